//! Defragmentation: items of nearly empty slabs are offered to their owners to be moved, so that the slabs become empty
//! (illumos `kmem_cache_set_move`).

use core::ptr::NonNull;

use abi::CacheEntry;
use platform::Platform;

use super::RawZone;
use super::config::How;
use super::core::special;
use super::depot::STRAY;
use super::slab::FREE;

/// What an item's owner says to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReply {
    /// Moved: the old item is free now.
    Yes,
    /// It will never be moved: its slab is left alone.
    No,
    /// Not now.
    Later,
    /// The owner has no use for it: both items are free now.
    DontNeed,
    /// The owner does not know the item: it is on its way in or out.
    DontKnow,
}

/// Asked with `(context, from, to, bytes)`. `to` has seen `init` but not `ctor`. It must find out under the owner's own locks whether `from` is
/// an item in use that it knows, and touch it in no other case: it may be freed meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Mover {
    /// Handed to `offer`.
    pub context: *mut (),
    /// See [`Mover`].
    pub offer: unsafe fn(*mut (), *mut u8, *mut u8, usize) -> MoveReply,
}

/// A zone with fewer slabs is not worth the trouble, and one with less than an eighth of its items free is not fragmented (illumos).
const LEAST_SLABS: usize = 101;
const FREE_SHARE: usize = 8;
/// Items offered in one call.
const MOST_OFFERS: usize = 64;

impl<P: Platform> RawZone<'_, P> {
    /// Sets or takes away the move callback. kmem_cache_set_move(9).
    ///
    /// # Safety
    /// 1. `mover.offer` may be called with `mover.context` during [`defragment`](Self::defragment) and [`System::trim`](crate::System::trim).
    #[doc(alias = "kmem_cache_set_move")]
    pub unsafe fn set_move(&self, mover: Option<Mover>) {
        *self.core.mover.lock() = mover;
    }

    /// Offers items of slabs that are less than an eighth full to be moved into fuller ones, if the zone has at least 101 slabs and more than
    /// an eighth of its items free. Returns how many moved. Takes locks; sleeps only if the callback does.
    pub fn defragment(&self) -> usize {
        let stats = self.stats();
        let free = stats.slabs * stats.per_slab - stats.in_use.min(stats.slabs * stats.per_slab);
        if stats.slabs < LEAST_SLABS || free * FREE_SHARE <= stats.slabs * stats.per_slab {
            return 0;
        }
        self.defragment_now()
    }

    /// The same whatever the zone's state.
    pub fn defragment_now(&self) -> usize {
        let (Some(keg), Some(mover)) = (self.core.keg(), *self.core.mover.lock()) else { return 0 };
        if self.core.special() & special::SMR != 0 {
            return 0;
        }
        // Free items in caches keep slabs from becoming empty.
        self.fetch_back();
        let mut moved = 0;
        for domain in 0..keg.domains {
            let mut candidates = [(core::ptr::null_mut::<u8>(), 0usize); MOST_OFFERS];
            let mut count = 0;
            {
                let list = keg.domain(domain).lock();
                let mut slab = list.nearly_empty();
                while !slab.is_null() && count < MOST_OFFERS {
                    for index in 0..keg.cut().layout.items {
                        let state = keg.cut().state(slab, index);
                        // SAFETY: a live slab, under its lock; the state of an item in use changes with its owner's free only.
                        unsafe {
                            if count < MOST_OFFERS && *state == self.core.ordinal.get() {
                                candidates[count] = (keg.cut().item(&*slab, index) as *mut u8, state as usize);
                                count += 1;
                            }
                        }
                    }
                    // SAFETY: as above.
                    slab = unsafe { (*slab).next };
                }
            }
            for &(from, state) in &candidates[..count] {
                match self.offer(mover, domain, from, state) {
                    MoveReply::Yes => moved += 1,
                    MoveReply::Later => break,
                    _ => {}
                }
            }
        }
        moved
    }

    fn offer(&self, mover: Mover, domain: usize, from: *mut u8, state: usize) -> MoveReply {
        let Ok(to) = self.import_from(domain, true, How::NOWAIT) else { return MoveReply::Later };
        // SAFETY: the state of an item stays readable while its zone lives.
        let still = unsafe { *(state as *const u8) };
        let same_slab = self.system.slab_of_item(self, from as usize) == self.system.slab_of_item(self, to.item);
        if still == FREE || still == STRAY || same_slab {
            self.release(&[to]);
            return MoveReply::DontKnow;
        }
        // SAFETY: 1. of `set_move`; `to` is ours.
        let reply = unsafe { (mover.offer)(mover.context, from, to.item as *mut u8, self.core.item_bytes.get()) };
        match reply {
            MoveReply::Yes => {
                // The owner's item is another now: one in, one out.
                self.adopt(to);
                self.discharge(CacheEntry { item: from as usize, tag: state });
            }
            MoveReply::DontNeed => {
                self.release(&[to]);
                self.discharge(CacheEntry { item: from as usize, tag: state });
            }
            MoveReply::No | MoveReply::Later | MoveReply::DontKnow => self.release(&[to]),
        }
        reply
    }

    /// An item becomes its owner's without `ctor`.
    fn adopt(&self, entry: CacheEntry) {
        // SAFETY: a fresh item, ours.
        unsafe { *(entry.tag as *mut u8) = self.core.ordinal.get() };
        self.count_alloc();
    }

    /// An item is its owner's no more, without `dtor`.
    fn discharge(&self, entry: CacheEntry) {
        // SAFETY: the owner has given it up by his reply.
        unsafe { *(entry.tag as *mut u8) = FREE };
        self.count_free();
        self.release(&[entry]);
    }
}

impl<P: Platform> crate::System<P> {
    fn slab_of_item(&self, zone: &RawZone<'_, P>, item: usize) -> Option<NonNull<super::slab::ZoneSlab>> {
        zone.core.keg().and_then(|keg| NonNull::new(self.slab_of(keg, item)))
    }
}
