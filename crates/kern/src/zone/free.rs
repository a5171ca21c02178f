//! Free: the checks, the fast path, the ways of an item that the first bucket has no room for.

use core::ptr::null_mut;

use abi::{CacheEntry, Ordering, page};
use platform::{Misuse, Platform};

use super::RawZone;
use super::core::{ZoneCache, special};
use super::depot::STRAY;
use super::slab::{FREE, ZoneSlab};
use crate::bucket::BucketPtr;

/// Which of a cache's buckets an item wants.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bin {
    /// The two that allocations take from.
    Main,
    /// Of those that wait for readers.
    Deferred,
    /// Of those on their way to another domain.
    Cross,
}

/// What became of an item inside a section.
enum Pushed {
    Done,
    /// A bucket is missing.
    Wants(Bin),
    /// Not into a cache.
    Past,
}

impl<P: Platform> RawZone<'_, P> {
    /// Gives an item back, `dtor` called with a null argument. Null is nothing. Never sleeps. uma_zfree(9).
    ///
    /// # Safety
    /// 1. See [`free_arg`](Self::free_arg).
    #[doc(alias = "uma_zfree")]
    #[inline(always)]
    pub unsafe fn free(&self, item: *mut u8) {
        // SAFETY: 1. passed on.
        unsafe { self.free_arg(item, null_mut()) }
    }

    /// Gives an item back, `dtor` called with `arg` (in an SMR zone: null, when the readers have left). Null is nothing. Never sleeps.
    /// uma_zfree_arg(9), uma_zfree_smr(9).
    ///
    /// What is not an item of this zone in use is reported ([`Platform::misuse`]) and otherwise left alone; a cache zone cannot know.
    ///
    /// # Safety
    /// 1. Nobody uses the item any more; in an SMR zone: nobody can find it any more.
    /// 2. In a cache zone it came from this zone.
    #[doc(alias = "uma_zfree_arg")]
    #[doc(alias = "uma_zfree_smr")]
    #[inline(always)]
    pub unsafe fn free_arg(&self, item: *mut u8, arg: *mut ()) {
        let mut entry = CacheEntry { item: item as usize, tag: 0 };
        let mut domain = 0;
        if !self.core.keg.get().is_null() {
            let (slab, state) = match self.locate(item as usize) {
                Ok(found) => found,
                Err(None) => return,
                Err(Some(what)) => return self.misuse(what, item as usize),
            };
            // SAFETY: the slab is live and the state is the item's, which is the caller's (1.).
            unsafe {
                let was = *state;
                if was != self.core.ordinal.get() {
                    let free = was == FREE || was == STRAY;
                    return self.misuse(if free { Misuse::DuplicateFree } else { Misuse::WrongZone }, entry.item);
                }
                *state = FREE;
                domain = (*slab).domain as usize;
            }
            entry.tag = state as usize;
        } else if item.is_null() {
            return;
        }
        let special = self.core.special();
        let callbacks = self.core.callbacks();
        if let Some(dtor) = callbacks.dtor
            && special & special::SMR == 0
        {
            // SAFETY: 1.: the item is ours now.
            unsafe { dtor(callbacks.context, item, self.core.item_bytes.get(), arg) };
        }
        let slot = P::enter();
        if slot == 0 {
            return self.push_free(entry, domain);
        }
        // SAFETY: we hold the slot, and its cache.
        unsafe {
            let cache = self.core.cache(self.system.slot_index(slot));
            // Inside the section: see `limit` for why.
            if !cache.is_null() && self.core.special() == 0 && (*cache).push(entry) {
                (*cache).count_free();
                return P::leave(slot);
            }
            P::leave(slot);
        }
        self.push_free(entry, domain);
    }

    /// The slab and the state of an item that starts at `addr`. Null is `Err(None)`.
    #[inline(always)]
    fn locate(&self, addr: usize) -> Result<(*mut ZoneSlab, *mut u8), Option<Misuse>> {
        let slab = match self.system.word_of_any(addr) {
            Some(word) if page::code(word) == page::ZONE_SLAB => page::descriptor(word) as *mut ZoneSlab,
            Some(_) => return Err(Some(Misuse::InvalidFree)),
            None => self.locate_outside(addr)?,
        };
        let Some(keg) = self.core.keg() else { return Err(Some(Misuse::InvalidFree)) };
        // SAFETY: the word or the table named a slab, whose descriptor is readable.
        unsafe {
            if ((*slab).keg, (*slab).generation) != keg.identity() {
                return Err(Some(Misuse::WrongZone));
            }
            let index = keg.cut().item_at(&*slab, addr).ok_or(Some(Misuse::UnalignedFree))?;
            Ok((slab, keg.cut().state(slab, index)))
        }
    }

    #[cold]
    #[inline(never)]
    fn locate_outside(&self, addr: usize) -> Result<*mut ZoneSlab, Option<Misuse>> {
        if addr == 0 {
            return Err(None);
        }
        let keg = self.core.keg().filter(|keg| keg.supply.get().is_some());
        let found = keg.and_then(|keg| keg.table.lock().get(addr >> P::PAGE_SHIFT));
        found.ok_or(Some(Misuse::ForeignFree))
    }

    /// The domain of an item's slab.
    pub(super) fn item_domain(&self, item: usize) -> usize {
        // SAFETY: an item of this zone is in a live slab.
        self.core.keg().map_or(0, |keg| unsafe { (*self.system.slab_of(keg, item)).domain as usize })
    }

    /// Counts the free and puts the item wherever there is room.
    #[cold]
    #[inline(never)]
    pub(super) fn push_free(&self, entry: CacheEntry, domain: usize) {
        self.ensure_cache();
        let pushed = self.in_section(|cache, index, special| {
            let Some(cache) = cache else {
                self.core.record().direct_frees.fetch_add(1, Ordering::Release);
                return Pushed::Past;
            };
            cache.count_free();
            Self::try_push(cache, index, special, entry, domain)
        });
        match pushed {
            Pushed::Done => {}
            Pushed::Past => self.free_past(entry),
            Pushed::Wants(_) => {
                self.look();
                let size = self.bucket_items();
                let bucket = if size == 0 { None } else { self.system.pool.lock().get(&self.system.meta, size) };
                match bucket {
                    Some(bucket) => self.push_with(entry, domain, bucket),
                    None => self.free_past(entry),
                }
            }
        }
    }

    /// The bin for an item, and the item into it if it has room.
    fn try_push(cache: &mut ZoneCache, index: usize, special: u32, entry: CacheEntry, domain: usize) -> Pushed {
        if special & special::PAST_CACHES != 0 {
            return Pushed::Past;
        }
        let (bin, done) = if special & special::SMR != 0 {
            (Bin::Deferred, cache.push_second(entry))
        } else if special & special::CROSS != 0 && P::domain_of_slot(index) != domain {
            (Bin::Cross, cache.push_cross(entry))
        } else {
            if cache.alloc_count == cache.alloc_capacity && cache.free_count == 0 && cache.free_capacity > 0 {
                cache.swap();
            }
            (Bin::Main, cache.push(entry))
        };
        if done { Pushed::Done } else { Pushed::Wants(bin) }
    }

    /// The same with an empty bucket at hand, on whichever slot we are on now. What it displaces goes its way.
    fn push_with(&self, entry: CacheEntry, domain: usize, bucket: BucketPtr) {
        let mut spare = Some(bucket);
        let (old, bin, here, past) = self.in_section(|cache, index, special| {
            let here = P::domain_of_slot(index);
            let Some(cache) = cache else { return (None, Bin::Main, here, true) };
            let mut old = None;
            let bin = match Self::try_push(cache, index, special, entry, domain) {
                Pushed::Done => return (None, Bin::Main, here, false),
                Pushed::Past => return (None, Bin::Main, here, true),
                Pushed::Wants(bin) => bin,
            };
            if let Some(bucket) = spare.take() {
                match bin {
                    Bin::Main => {
                        // The full first becomes the second, and the second leaves.
                        cache.swap();
                        old = cache.put_alloc(bucket);
                        cache.push(entry);
                    }
                    Bin::Deferred => {
                        old = cache.put_second(bucket);
                        cache.push_second(entry);
                    }
                    Bin::Cross => {
                        old = cache.put_cross(bucket);
                        cache.push_cross(entry);
                    }
                }
            }
            (old, bin, here, false)
        });
        if let Some(bucket) = spare {
            self.system.pool.lock().put(bucket);
        }
        if past {
            self.free_past(entry);
        }
        match (old, bin) {
            (None, _) => {}
            (Some(old), Bin::Main) => self.dispose(old, here),
            (Some(old), Bin::Deferred) => self.defer(old, here),
            (Some(old), Bin::Cross) => self.send_home(old),
        }
    }

    /// An item that no cache takes.
    fn free_past(&self, entry: CacheEntry) {
        if self.core.special() & special::SMR != 0 {
            self.stray(entry);
        } else {
            self.release(&[entry]);
        }
    }
}
