//! What lies behind the depots: kegs, slabs and pages, and the account of them.

use core::ptr::NonNull;

use abi::{CacheEntry, Ordering};
use platform::Platform;

use super::System;
use crate::class::{DESCRIPTOR_BYTES, SLAB_CLASSES, SlabLayout, slab_layout};
use crate::page::Pages;
use crate::slab::{ANYBODY, ClassInfo, Keg, Returned, Slab};
use crate::slot::Slot;

/// How many pages may be given back and wanted again in [`RETAKEN_EVERY_NS`] before it goes slower: at a microsecond or two for such a
/// page, some thousandth of the time.
const RETAKEN_MOST: u64 = 1_000;
const RETAKEN_EVERY_NS: u64 = 1_000_000_000;
/// How long memory must have lain unused to be given back then.
const PURGE_EVERY_NS: u64 = 50_000_000;

impl<P: Platform> System<P> {
    /// Items from the keg's slabs for a CPU's identity, from a new slab when those have none for it.
    ///
    /// # Safety
    /// 1. `out` has room for `want` addresses.
    pub(super) unsafe fn keg_take(&self, class: usize, out: *mut CacheEntry, want: usize, taker: u32) -> usize {
        let mut keg = self.zones[class].keg.lock();
        // SAFETY: 1.
        let mut got = unsafe { keg.take(out, want, taker) };
        if got == 0 {
            drop(keg);
            self.use_cached_runs(slab_layout_of(class).slab_bytes);
            keg = self.zones[class].keg.lock();
            // SAFETY: 1. Others may have added a slab meanwhile.
            got = unsafe { keg.take(out, want, taker) };
        }
        if got == 0 {
            let taker = if self.add_slab(&mut keg, class).is_some() { taker } else { ANYBODY };
            // SAFETY: 1.
            got = unsafe { keg.take(out, want, taker) };
        }
        self.publish_keg(class, &keg);
        got
    }

    pub(super) fn keg_take_one(&self, class: usize, taker: u32) -> Option<CacheEntry> {
        let mut entry = CacheEntry { item: 0, tag: 0 };
        // SAFETY: room for one.
        let got = unsafe { self.keg_take(class, &raw mut entry, 1, taker) };
        (got == 1).then_some(entry)
    }

    /// Items go back into their slabs; slabs that become empty go back to the arena, but for one.
    ///
    /// # Safety
    /// 1. Free items of this class, in no cache.
    pub(super) unsafe fn keg_put(&self, class: usize, items: &[CacheEntry]) {
        let mut keg = self.zones[class].keg.lock();
        let mut rest = items;
        while let Some(&CacheEntry { item, .. }) = rest.first() {
            let word = self.word(item);
            let Some(slab) = ClassInfo::of_word(word).descriptor(word, item) else {
                rest = &rest[1..];
                continue;
            };
            // SAFETY: 1.
            let (count, returned) = unsafe { keg.put(slab, rest) };
            rest = &rest[count..];
            if let Returned::Release(slab) = returned {
                // SAFETY: `put` says that it is empty.
                unsafe { self.release_slab(&mut keg, class, slab) };
            }
        }
        // The empty slab that is kept otherwise is just what somebody may be waiting for.
        while self.is_short()
            && let Some(slab) = keg.surplus(0)
        {
            // SAFETY: a surplus slab is on the empty list.
            unsafe { self.release_slab(&mut keg, class, slab) };
        }
        self.publish_keg(class, &keg);
        self.wake_sleepers();
    }

    pub(super) fn add_slab(&self, keg: &mut Keg, class: usize) -> Option<()> {
        let layout = slab_layout_of(class);
        let run = self.page_alloc(layout.slab_bytes, layout.slab_bytes)?;
        let descriptor = if layout.offpage {
            let record = self.meta.lock().alloc(layout.descriptor_bytes);
            match record {
                Some(record) => record,
                None => {
                    self.pages.lock().free(&self.meta, run, layout.slab_bytes);
                    return None;
                }
            }
        } else {
            NonNull::new(run as *mut u8)?
        };
        // SAFETY: 1. a fresh run of that size and alignment. 2. by the two cases above.
        unsafe { keg.add_slab(layout, run, descriptor) };
        let tags = descriptor.as_ptr() as usize + DESCRIPTOR_BYTES;
        self.pages.lock().set_slab(run, layout.slab_bytes, tags, layout.group_tag_bytes, class);
        Some(())
    }

    /// # Safety
    /// 1. `slab` is on the keg's empty list.
    pub(super) unsafe fn release_slab(&self, keg: &mut Keg, class: usize, slab: NonNull<Slab>) {
        let layout = slab_layout_of(class);
        // SAFETY: 1.
        let start = unsafe {
            keg.remove(slab);
            slab.as_ref().start
        };
        if layout.offpage {
            // SAFETY: 1.: nobody knows the descriptor any more but its pages' words, which the next line changes.
            unsafe { self.meta.lock().free(slab.cast(), layout.descriptor_bytes) };
        }
        self.page_free(start, layout.slab_bytes);
    }

    /// Pages from the arena; publishes the heap's new end and the account.
    pub(crate) fn page_alloc(&self, bytes: usize, align: usize) -> Option<usize> {
        let mut pages = self.pages.lock();
        let before = pages.counts().out;
        let run = pages.alloc(&self.meta, bytes, align)?;
        self.check_soft_limit(before, pages.counts().out);
        self.publish_pages(&pages);
        Some(run.addr)
    }

    pub(crate) fn page_free(&self, addr: usize, bytes: usize) {
        let mut pages = self.pages.lock();
        pages.free(&self.meta, addr, bytes);
        self.trim_pages(&mut pages);
        self.publish_pages(&pages);
        self.wake_sleepers();
        drop(pages);
        self.tell_memory();
    }

    /// Lets free memory go, so that what is freed after a peak is either used again soon or gone: nothing can be done later, when
    /// the program may call no more. Where a program has wanted much of it again lately, only what it had no use for in 50 ms goes.
    pub(super) fn trim_pages(&self, pages: &mut Pages<P>) {
        let counts = pages.counts();
        let keep = self.stats().header().control.dirty_keep_pages.load(Ordering::Relaxed).max(counts.out / 8);
        // In portions: a purge walks the arena's free list.
        if counts.free_dirty <= 2 * keep {
            return;
        }
        let now = P::now_ns();
        if now.wrapping_sub(self.retaken_since_ns.load(Ordering::Relaxed)) >= RETAKEN_EVERY_NS {
            self.retaken_since_ns.store(now, Ordering::Relaxed);
            pages.forget_retaken();
        }
        if pages.retaken() < RETAKEN_MOST {
            pages.purge(keep);
            self.last_purge_ns.store(now, Ordering::Relaxed);
        } else if now.wrapping_sub(self.last_purge_ns.load(Ordering::Relaxed)) >= PURGE_EVERY_NS {
            self.last_purge_ns.store(now, Ordering::Relaxed);
            let unused = pages.unused_dirty();
            pages.purge(keep.max(counts.free_dirty - unused));
        }
    }

    pub(super) fn publish_pages(&self, pages: &Pages<P>) {
        let counts = pages.counts();
        let header = self.stats().header();
        self.heap_pages.store(pages.heap_bytes() >> P::PAGE_SHIFT, Ordering::Release);
        header.pages_free_dirty.store(counts.free_dirty, Ordering::Relaxed);
        header.pages_free_clean.store(counts.free_clean, Ordering::Relaxed);
    }

    pub(super) fn publish_keg(&self, class: usize, keg: &Keg) {
        let record = self.stats().zone(class);
        let before = record.slabs.load(Ordering::Relaxed);
        record.slab_free.store(keg.free_items as u64, Ordering::Relaxed);
        if before != keg.slabs as u64 {
            record.slabs.store(keg.slabs as u64, Ordering::Relaxed);
            let pages = (slab_layout_of(class).slab_bytes >> P::PAGE_SHIFT) as u64;
            let delta = (keg.slabs as u64).wrapping_sub(before).wrapping_mul(pages);
            self.stats().header().pages_slab.fetch_add(delta, Ordering::Relaxed);
            let added = (keg.slabs as u64).saturating_sub(before);
            record.slabs_imported.fetch_add(added, Ordering::Relaxed);
            record.slabs_high_water.fetch_max(keg.slabs as u64, Ordering::Relaxed);
        }
        record.slabs_idle.store(keg.empties as u64, Ordering::Relaxed);
        let used = self.meta.lock().used_bytes();
        self.stats().header().meta_used_bytes.store(used as u64, Ordering::Relaxed);
    }

    /// Shows the slot's counts of a zone to readers.
    pub(super) fn publish_zone(&self, slot: &Slot, class: usize) {
        let cache = slot.cache_ref(class);
        let line = self.stats().zone_line(slot.index as usize, class);
        line.allocs.store(cache.allocs, Ordering::Relaxed);
        line.frees.store(cache.frees(), Ordering::Relaxed);
    }
}

static LAYOUTS: [SlabLayout; SLAB_CLASSES] = {
    let mut out = [slab_layout(0); SLAB_CLASSES];
    let mut class = 0;
    while class < SLAB_CLASSES {
        out[class] = slab_layout(class);
        class += 1;
    }
    out
};

pub(super) fn slab_layout_of(class: usize) -> &'static SlabLayout {
    &LAYOUTS[class]
}
