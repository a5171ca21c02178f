//! Giving memory back, and standing still for fork.

use abi::{CacheEntry, Ordering};
use platform::{Platform, RawLock};

use super::System;
use crate::bucket::BucketPtr;
use crate::class::{CLASSES, SLAB_CLASSES, class_bytes};
use crate::slot::Slot;
use crate::zone::Reclaim;

impl<P: Platform> System<P> {
    /// Gives back what is free: depots to their slabs, empty slabs and dirty pages to the system. The caches of the CPUs are
    /// emptied where the platform can claim them. Returns whether memory went back. malloc_trim(3), `UMA_RECLAIM_DRAIN_CPU`.
    /// Runs `fini` of zones.
    #[doc(alias = "uma_reclaim")]
    pub fn reclaim(&self) -> bool {
        self.reclaim_with(|how| self.reclaim_zones(how))
    }

    /// The same, with zones as the caller has them reclaimed.
    pub(super) fn reclaim_with(&self, zones: impl FnOnce(Reclaim)) -> bool {
        if !self.is_booted() {
            return false;
        }
        self.drain_slots();
        self.drain_zones();
        zones(Reclaim::DrainCpu);
        let mut pages = self.pages.lock();
        let purged = pages.purge(0);
        self.publish_pages(&pages);
        purged > 0
    }

    /// Empties the caches of all slots. False when the platform could not claim one.
    pub(super) fn drain_slots(&self) -> bool {
        let mut all = true;
        for index in 0..self.slot_table().count() {
            all &= self.drain_slot(index);
        }
        all
    }

    /// Items of the depots go to their slabs, and slabs that are empty to the arena. `UMA_RECLAIM_DRAIN`.
    pub(super) fn drain_zones(&self) {
        self.drain_depots();
        for class in 0..SLAB_CLASSES {
            let mut keg = self.zones[class].keg.lock();
            while let Some(slab) = keg.surplus(0) {
                // SAFETY: a surplus slab is on the empty list.
                unsafe { self.release_slab(&mut keg, class, slab) };
            }
            self.publish_keg(class, &keg);
        }
    }

    /// The slabs that a CPU has had to itself are anybody's.
    pub(crate) fn open_slabs_of(&self, id: usize) {
        for zone in &self.zones[..SLAB_CLASSES] {
            zone.keg.lock().open_slabs_of(id as u32);
        }
    }

    /// Empties one slot's caches, bucket by bucket. False when the platform could not claim it.
    pub(crate) fn drain_slot(&self, index: usize) -> bool {
        let slot = self.slot_table().slot(index) as *mut Slot;
        for class in 0..CLASSES {
            // SAFETY: 1. one of the table.
            if !unsafe { P::claim_remote(slot as usize) } {
                return false;
            }
            // SAFETY: held.
            let buckets = unsafe {
                if (*slot).row.is_none() {
                    Self::leave(slot);
                    return true;
                }
                let cache = (*slot).cache(class);
                let mut first = BucketPtr::from_items(cache.alloc_items);
                if let Some(bucket) = &mut first {
                    bucket.set_count(cache.alloc_count());
                }
                let mut second = BucketPtr::from_items(cache.free_items);
                if let Some(bucket) = &mut second {
                    bucket.set_count(cache.free_count as usize);
                }
                let (allocs, frees) = (cache.allocs, cache.frees());
                *cache = core::mem::zeroed();
                cache.allocs = allocs;
                cache.filled = allocs.wrapping_sub(frees);
                self.publish_zone(&*slot, class);
                Self::leave(slot);
                [first, second]
            };
            for bucket in buckets.into_iter().flatten() {
                if class < SLAB_CLASSES {
                    // SAFETY: free items of this class, out of every cache.
                    unsafe { self.keg_put(class, bucket.filled()) };
                } else {
                    for &CacheEntry { item: addr, .. } in bucket.filled() {
                        self.free_cached_run(addr, class);
                    }
                }
                self.pool.lock().put(bucket);
            }
        }
        true
    }

    /// Before pages are touched that hold nothing yet: the runs that lie in the caller's slot for requests of their size are as good, and
    /// resident.
    pub(super) fn use_cached_runs(&self, bytes: usize) {
        if self.stats().header().pages_free_dirty.load(Ordering::Relaxed) >= (bytes >> P::PAGE_SHIFT) as u64 {
            return;
        }
        loop {
            let mut runs = [(0, 0); 32];
            let mut count = 0;
            self.count(|slot, _| {
                for class in SLAB_CLASSES..CLASSES {
                    // SAFETY: inside the section of `slot`.
                    let cache = unsafe { &mut *slot }.cache(class);
                    while count < runs.len() {
                        // SAFETY: 1. as above.
                        let Some(entry) = (unsafe { cache.pop() }) else { break };
                        cache.filled = cache.filled.wrapping_sub(1);
                        runs[count] = (entry.item, class);
                        count += 1;
                    }
                }
            });
            for &(addr, class) in &runs[..count] {
                self.free_cached_run(addr, class);
            }
            if count < runs.len() {
                return;
            }
        }
    }

    /// A run that a cache held goes to the arena.
    fn free_cached_run(&self, addr: usize, class: usize) {
        let bytes = class_bytes(class);
        self.stats().header().pages_large.fetch_sub((bytes >> P::PAGE_SHIFT) as u64, Ordering::Relaxed);
        self.page_free(addr, bytes);
    }

    /// Stops the allocator: every lock and every slot is the caller's. For fork(2), which copies the calling thread only. On a port that
    /// cannot claim every slot the locks alone are.
    pub fn freeze(&self) {
        self.types.raw().lock();
        self.freeze_zones();
        for zone in &self.zones {
            zone.depot.raw().lock();
        }
        self.pool.raw().lock();
        for zone in &self.zones {
            zone.keg.raw().lock();
        }
        self.freeze_kegs();
        self.pages.raw().lock();
        self.meta.raw().lock();
        // SAFETY: 1. it is the bound table.
        let has_slots = unsafe { P::claim_all(self.slot_table()) };
        self.has_slots.store(has_slots, Ordering::Relaxed);
    }

    /// Lets it go on, in the parent or in the child.
    ///
    /// # Safety
    /// 1. The caller (or the thread it is a copy of) has called [`freeze`](Self::freeze).
    pub unsafe fn thaw(&self) {
        // SAFETY: 1.
        unsafe {
            if self.has_slots.load(Ordering::Relaxed) {
                for index in 0..self.slot_table().count() {
                    P::leave(self.slot_table().slot(index));
                }
            }
            self.meta.raw().unlock();
            self.pages.raw().unlock();
            self.thaw_kegs();
            for zone in &self.zones {
                zone.keg.raw().unlock();
            }
            self.pool.raw().unlock();
            for zone in &self.zones {
                zone.depot.raw().unlock();
            }
            self.thaw_zones();
            self.types.raw().unlock();
        }
    }
}
