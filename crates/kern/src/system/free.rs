//! Free: the checks, the fast path, and reports of what does not pass.

use abi::{CacheEntry, CpuCache, Ordering, page};
use platform::{Misuse, MisuseReport, Platform};

use super::alloc::swap_buckets;
use super::{BlockInfo, System};
use crate::bucket::BucketPtr;
use crate::class::Place;
use crate::slab::{ClassInfo, TAG_FREE};
use crate::slot::Slot;
use crate::stats::{Stats, TypeId};

impl<P: Platform> System<P> {
    /// Gives a block back, credited to the type that allocated it. Null is nothing. `caller` is the address of the call, for
    /// reports. Never sleeps. free(9).
    ///
    /// A pointer that is not a live block is reported ([`Platform::misuse`]) and otherwise left alone.
    ///
    /// # Safety
    /// 1. Nobody uses the block any more.
    #[inline(always)]
    pub unsafe fn free(&self, block: *mut u8, caller: usize) {
        let addr = block as usize;
        let Some(word) = self.word_of_any(addr) else { return self.free_outside(addr, caller) };
        let place = Place::of_word(word);
        // SAFETY: 1. it is a page's word's.
        let info = unsafe { ClassInfo::at(place) };
        if !info.may_start_item(addr) {
            return self.free_not_item(addr, word, caller);
        }
        // SAFETY: the word named a live slab of this class, whose tags say where items start; the item is the caller's (1.).
        unsafe {
            let tag = page::tag(word, addr) as *mut u16;
            let was = *tag;
            if was & TAG_FREE != 0 {
                return self.misuse(addr, caller);
            }
            *tag |= TAG_FREE;
            // The item itself remembers who freed it, for the report of a second free.
            *(addr as *mut usize) = caller;
            let id = TypeId::from_tag(was);
            let slot = P::enter() as *mut Slot;
            if slot.is_null() {
                return self.free_class_enter(addr, tag, word, id);
            }
            let entry = CacheEntry { item: addr, tag: tag as usize };
            // A slot that was never used has no room either.
            if !(*slot).cache_at(place).push(entry) {
                return self.free_class_slow(entry, slot, page::class(word), id);
            }
            if Stats::count_free((*slot).row, id, info.free_size) {
                return self.free_class_look(slot, id);
            }
            Self::leave(slot);
        }
    }

    /// The platform has no slot for us at once: the same by the long way.
    #[cold]
    #[inline(never)]
    fn free_class_enter(&self, item: usize, tag: *mut u16, word: u64, id: TypeId) {
        let slot = self.enter();
        // SAFETY: we hold the slot (there is a block, so there was a boot).
        unsafe { self.free_class_slow(CacheEntry { item, tag: tag as usize }, slot, page::class(word), id) }
    }

    /// The block is back and counted; its line is off its peak.
    ///
    /// # Safety
    /// 1. The caller holds `slot`, which is left.
    #[cold]
    #[inline(never)]
    unsafe fn free_class_look(&self, slot: *mut Slot, id: TypeId) {
        // SAFETY: 1.
        unsafe {
            self.stats().look(id, (*slot).row);
            Self::leave(slot);
        }
    }

    /// Counts the free and puts the item wherever there is room: the first bucket, an empty second one, a fresh one.
    ///
    /// # Safety
    /// 1. The caller holds `slot`, which is left. `item` is a free block of this class, tagged so.
    #[cold]
    #[inline(never)]
    unsafe fn free_class_slow(&self, item: CacheEntry, mut slot: *mut Slot, class: usize, id: TypeId) {
        // SAFETY: 1., and below whenever `slot` is used it is held.
        unsafe {
            self.prepare_slot(slot);
            let place = Place::of_class(class);
            let mut cache = (*slot).cache_at(place);
            cache.count_free_elsewhere();
            self.stats().count_free_slow(id, (*slot).row, ClassInfo::of(class).bytes as usize);
            self.publish_zone(&*slot, class);
            if cache.alloc_top == cache.alloc_end && cache.free_count == 0 && cache.free_capacity > 0 {
                swap_buckets(cache);
            }
            if push_counted(cache, item) {
                Self::leave(slot);
                return;
            }
            Self::leave(slot);
            self.obey();
            let size = (self.zones[class].bucket_size.load(Ordering::Relaxed) as usize).min(self.bucket_cap(class));
            let Some(bucket) = self.pool.lock().get(&self.meta, size) else {
                self.keg_put(class, &[item]);
                return;
            };
            slot = self.enter();
            if self.is_short() || self.has_subzones() {
                // Somebody sleeps for memory: the item goes where everyone can have it (see `shortage`). Or nobody is to have it from a cache.
                Self::leave(slot);
                self.pool.lock().put(bucket);
                self.keg_put(class, &[item]);
                return;
            }
            cache = (*slot).cache_at(place);
            if push_counted(cache, item) {
                // Another slot, or others emptied it meanwhile.
                Self::leave(slot);
                self.pool.lock().put(bucket);
                return;
            }
            let full = BucketPtr::from_items(cache.free_items).map(|mut full| {
                full.set_count(cache.free_count as usize);
                full
            });
            cache.filled = cache.filled.wrapping_sub(u64::from(cache.free_count));
            (cache.free_count, cache.free_capacity) = (cache.alloc_count() as u32, cache.alloc_capacity() as u32);
            cache.free_items = cache.alloc_items;
            let capacity = bucket.capacity();
            cache.set_alloc(bucket.into_items(), 0, capacity);
            push_counted(cache, item);
            Self::leave(slot);
            if let Some(full) = full {
                self.dispose(class, full);
            }
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn free_outside(&self, addr: usize, caller: usize) {
        // SAFETY: 1. of `free`.
        let foreign = |addr| !self.outside.get().is_some_and(|outside| unsafe { outside.free(addr) });
        if addr != 0 && foreign(addr) {
            self.report(Misuse::ForeignFree, addr, caller, None);
        }
    }

    /// No item starts at the address: a large block, or a mistake.
    #[inline(never)]
    pub(super) fn free_not_item(&self, addr: usize, word: u64, caller: usize) {
        if page::kind(word) == page::LARGE && addr.is_multiple_of(Self::PAGE) {
            self.free_large(addr, word);
        } else {
            self.misuse(addr, caller);
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn misuse(&self, addr: usize, caller: usize) {
        if page::code(self.word(addr)) == page::ZONE_SLAB {
            // Of a zone that serves malloc, or of another, given to free(9).
            if self.free_sub(addr, caller) {
                return;
            }
            return self.zone_misuse(Misuse::WrongZone, addr);
        }
        if self.special_kind(addr as *const u8).is_some() {
            return self.free_special(addr, self.word(addr));
        }
        let found = self.lookup(addr);
        let freed_block = || {
            let (bytes, tag) = self.pages.lock().freed_block(addr)?;
            Some(BlockInfo { addr, bytes, type_id: TypeId::from_tag(tag), live: false, is_run: true })
        };
        // A block that starts here; else a large one that did until it was freed; else one that contains the address.
        let block = found.filter(|block| block.addr == addr).or_else(freed_block).or(found);
        let what = match block {
            None => Misuse::InvalidFree,
            Some(block) if !block.live => Misuse::DuplicateFree,
            Some(_) => Misuse::UnalignedFree,
        };
        self.report(what, addr, caller, block);
    }

    pub(super) fn report(&self, what: Misuse, addr: usize, caller: usize, block: Option<BlockInfo>) {
        if self.is_booted() {
            self.stats().header().misuses.fetch_add(1, Ordering::Relaxed);
        }
        let freed_by = match block {
            // SAFETY: a free item of the heap is readable; what the program may have written over it is only shown.
            Some(block) if !block.live && !block.is_run => unsafe { *(block.addr as *const usize) },
            _ => 0,
        };
        P::misuse(&MisuseReport {
            what,
            addr,
            item: block.map_or(0, |block| block.addr),
            item_bytes: block.map_or(0, |block| block.bytes),
            type_index: block.map(|block| block.type_id.index() as u16),
            caller,
            freed_by,
            zone_name: [0; 32],
        });
    }
}

/// Puts an item into a cache whose free was counted as one elsewhere.
///
/// # Safety
/// 1. The caller holds the cache's slot.
unsafe fn push_counted(cache: &mut CpuCache, item: CacheEntry) -> bool {
    // SAFETY: 1.
    let pushed = unsafe { cache.push(item) };
    cache.filled = cache.filled.wrapping_add(u64::from(pushed));
    pushed
}
