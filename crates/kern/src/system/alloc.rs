//! Allocation from slab classes: the fast path, and what happens when a bucket is empty.

use abi::{CpuCache, Ordering};
use platform::Platform;

use super::System;
use crate::bucket::BucketPtr;
use crate::class::{MIN_ALIGN, Place, SLAB_MAX_BYTES, SMALL_MAX_BYTES, class_of_aligned};
use crate::slab::ClassInfo;
use crate::slot::Slot;
use crate::stats::{Stats, TypeId};
use crate::zone::DomainSet;

impl<P: Platform> System<P> {
    /// A block of `bytes`, aligned to 16 (to the page from a page on), credited to `id`; null when there is no memory.
    /// Contents undefined. Never sleeps. malloc(9) with `M_NOWAIT`.
    #[doc(alias = "malloc")]
    #[inline(always)]
    pub fn alloc(&self, bytes: usize, id: TypeId) -> *mut u8 {
        if bytes <= SMALL_MAX_BYTES {
            self.alloc_place(Place::small(bytes), bytes, id)
        } else {
            self.alloc_medium(bytes, id)
        }
    }

    /// A block of more than [`SMALL_MAX_BYTES`].
    #[inline(never)]
    fn alloc_medium(&self, bytes: usize, id: TypeId) -> *mut u8 {
        if bytes > SLAB_MAX_BYTES {
            return self.alloc_large(bytes, id);
        }
        self.alloc_place(Place::medium(bytes), bytes, id)
    }

    /// A block of the slab class at this place. The fast path: no lock, two branches (slot missing, bucket empty), and
    /// whatever is rare is a tail call, so that nothing needs a register saved.
    #[inline(always)]
    fn alloc_place(&self, place: Place, requested: usize, id: TypeId) -> *mut u8 {
        let slot = P::enter() as *mut Slot;
        if slot.is_null() {
            return self.alloc_place_enter(requested, id, place);
        }
        // SAFETY: we hold the slot, and a cache's items are free blocks of its class. A cache that has items is in a slot that
        // has its row.
        unsafe {
            let info = ClassInfo::at(place);
            let cache = (*slot).cache_at(place);
            let Some(entry) = cache.pop() else { return self.alloc_place_slow(requested, id, slot, place) };
            cache.allocs += 1;
            // The item is live from here: nobody else knows it.
            *(entry.tag as *mut u16) = id.tag();
            Stats::count_alloc((*slot).row, id, info.bytes as usize, requested, info.size_mask);
            Self::leave(slot);
            core::hint::assert_unchecked(entry.item != 0);
            entry.item as *mut u8
        }
    }

    /// The platform has no slot for us at once: the same by the long way.
    #[cold]
    #[inline(never)]
    fn alloc_place_enter(&self, requested: usize, id: TypeId, place: Place) -> *mut u8 {
        let slot = self.enter();
        if slot.is_null() {
            self.fail(id);
            return core::ptr::null_mut();
        }
        // SAFETY: we hold the slot.
        unsafe { self.alloc_place_slow(requested, id, slot, place) }
    }

    /// By whichever way there is: the slot's first bucket, its second, a full one from behind.
    ///
    /// # Safety
    /// 1. The caller holds `slot`. The slot is left.
    #[cold]
    #[inline(never)]
    unsafe fn alloc_place_slow(&self, requested: usize, id: TypeId, mut slot: *mut Slot, place: Place) -> *mut u8 {
        let class = place.class();
        if self.has_subzones() {
            // SAFETY: 1.
            unsafe { Self::leave(slot) };
            return self.alloc_sub(class, requested, id, DomainSet::FirstTouch);
        }
        // SAFETY: 1., and below whenever `slot` is used it is held.
        unsafe {
            let info = ClassInfo::at(place);
            self.prepare_slot(slot);
            let mut cache = (*slot).cache_at(place);
            let mut entry = None;
            let mut left_over = None;
            if cache.alloc_count() == 0 && cache.free_count > 0 {
                swap_buckets(cache);
            } else if cache.alloc_count() == 0 {
                let taker = (*slot).index % self.slot_table().ids as u32;
                Self::leave(slot);
                match self.full_bucket(class, taker) {
                    Some(mut bucket) => {
                        let count = bucket.count();
                        entry = Some(bucket.filled()[count - 1]);
                        bucket.set_count(count - 1);
                        slot = self.enter();
                        // While somebody sleeps for memory no cache gets room (see `shortage`).
                        let short = self.is_short();
                        left_over = if short { Some(bucket) } else { install_full((*slot).cache_at(place), bucket) };
                    }
                    None => {
                        entry = self.keg_take_one(class, taker);
                        if entry.is_none() {
                            self.fail(id);
                            return core::ptr::null_mut();
                        }
                        slot = self.enter();
                    }
                }
                cache = (*slot).cache_at(place);
            }
            let entry = match entry {
                Some(entry) => {
                    cache.count_alloc_elsewhere();
                    entry
                }
                None => {
                    cache.allocs += 1;
                    cache.pop().unwrap_unchecked()
                }
            };
            *(entry.tag as *mut u16) = id.tag();
            Stats::count_alloc((*slot).row, id, info.bytes as usize, requested, info.size_mask);
            self.publish_zone(&*slot, class);
            Self::leave(slot);
            if let Some(bucket) = left_over {
                self.dispose(class, bucket);
            }
            entry.item as *mut u8
        }
    }

    /// A bucket that no cache wants: to the pool when empty, else to the depot.
    pub(super) fn dispose(&self, class: usize, bucket: BucketPtr) {
        if bucket.count() == 0 {
            self.pool.lock().put(bucket);
        } else {
            self.store_full(class, bucket);
        }
    }

    /// A block at a multiple of `align` (a power of two). malloc_aligned(9); any alignment is served.
    #[doc(alias = "malloc_aligned")]
    pub fn alloc_aligned(&self, bytes: usize, align: usize, id: TypeId) -> *mut u8 {
        debug_assert!(align.is_power_of_two());
        if align <= MIN_ALIGN {
            return self.alloc(bytes, id);
        }
        match class_of_aligned(bytes, align) {
            Some(class) => self.alloc_place(Place::of_class(class), bytes, id),
            None if align <= Self::PAGE => self.alloc(bytes, id),
            None => self.alloc_pages(bytes, align, id),
        }
    }

    /// A block of zeros. `M_ZERO`.
    #[doc(alias = "calloc")]
    pub fn alloc_zeroed(&self, bytes: usize, id: TypeId) -> *mut u8 {
        if bytes > SLAB_MAX_BYTES {
            return self.alloc_large_zeroed(bytes, id);
        }
        let block = self.alloc(bytes, id);
        if !block.is_null() {
            // SAFETY: a fresh block of at least `bytes`.
            unsafe { core::ptr::write_bytes(block, 0, bytes) };
        }
        block
    }

    /// A request failed: counted for its type and for the whole.
    #[cold]
    pub(super) fn fail(&self, id: TypeId) {
        P::out_of_memory();
        if !self.is_booted() {
            return;
        }
        self.stats().type_record(id).failures.fetch_add(1, Ordering::Relaxed);
        let header = self.stats().header();
        header.failures.fetch_add(1, Ordering::Relaxed);
        header.last_fail_monotonic_ns.store(P::now_ns(), Ordering::Relaxed);
    }

    /// Takes back the count of the last failure of a type: its request will be made again, by other means.
    #[cold]
    pub fn forgive(&self, id: TypeId) {
        if self.is_booted() {
            self.stats().type_record(id).failures.fetch_sub(1, Ordering::Relaxed);
            self.stats().header().failures.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The second bucket becomes the first.
pub(super) fn swap_buckets(cache: &mut CpuCache) {
    let (items, count, capacity) = (cache.alloc_items, cache.alloc_count(), cache.alloc_capacity());
    cache.set_alloc(cache.free_items, cache.free_count as usize, cache.free_capacity as usize);
    (cache.free_items, cache.free_count, cache.free_capacity) = (items, count as u32, capacity as u32);
}

/// Puts a bucket with items into a cache that the caller holds, where there is room for it. Returns the bucket it
/// displaces, or the bucket itself when others have filled the cache meanwhile: no lock is taken inside a section.
pub(super) fn install_full(cache: &mut CpuCache, bucket: BucketPtr) -> Option<BucketPtr> {
    let (count, capacity) = (bucket.count(), bucket.capacity());
    let items = if cache.alloc_count() == 0 {
        let old = cache.alloc_items;
        cache.set_alloc(bucket.into_items(), count, capacity);
        old
    } else if cache.free_count == 0 {
        (cache.free_count, cache.free_capacity) = (count as u32, capacity as u32);
        core::mem::replace(&mut cache.free_items, bucket.into_items())
    } else {
        return Some(bucket);
    };
    cache.filled = cache.filled.wrapping_add(count as u64);
    // SAFETY: a cache's items came from `into_items`; the cache does not know them any more.
    let mut old = unsafe { BucketPtr::from_items(items) }?;
    old.set_count(0);
    Some(old)
}
