//! Blocks larger than every slab class: runs of pages.

use abi::{CacheEntry, Ordering, page};
use platform::Platform;

use super::{BlockInfo, MAX_REQUEST_BYTES, System};
use crate::class::{RUN_MAX_BYTES, bucket_max, class_bytes, class_of_run, run_bytes, run_class};
use crate::page::Run;
use crate::slab::{TAG_FREE, size_mask};
use crate::slot::Slot;
use crate::stats::{Stats, TypeId};

/// A run class gets a cache in a slot at its so-manieth free there: what a program frees once or twice (a table that
/// grows) is better off in the arena, where any size can use it.
const RUN_FREES_BEFORE_CACHE: u64 = 8;

impl<P: Platform> System<P> {
    /// A block larger than every slab class: whole pages.
    #[inline(never)]
    pub(super) fn alloc_large(&self, bytes: usize, id: TypeId) -> *mut u8 {
        if bytes <= RUN_MAX_BYTES {
            return self.alloc_run(class_of_run(bytes), bytes, id);
        }
        self.alloc_pages(bytes, Self::PAGE, id)
    }

    /// A run of a run class, from the slot's cache if it has one.
    pub(super) fn alloc_run(&self, class: usize, requested: usize, id: TypeId) -> *mut u8 {
        let slot = P::enter() as *mut Slot;
        if slot.is_null() {
            return self.alloc_run_enter(class, requested, id);
        }
        // SAFETY: 1. just taken.
        unsafe { self.alloc_run_in(slot, class, requested, id) }
    }

    /// The platform has no slot for us at once: the same by the long way.
    #[cold]
    #[inline(never)]
    fn alloc_run_enter(&self, class: usize, requested: usize, id: TypeId) -> *mut u8 {
        let slot = self.enter();
        if slot.is_null() {
            return self.alloc_pages_sized(class_bytes(class), requested, Self::PAGE, id);
        }
        // SAFETY: 1. just taken.
        unsafe { self.alloc_run_in(slot, class, requested, id) }
    }

    /// # Safety
    /// 1. The caller holds `slot`, which is left.
    #[inline(always)]
    unsafe fn alloc_run_in(&self, slot: *mut Slot, class: usize, requested: usize, id: TypeId) -> *mut u8 {
        let bytes = class_bytes(class);
        // SAFETY: 1. A cache that has items is in a slot that has its lines.
        unsafe {
            let cache = (*slot).cache(class);
            let Some(CacheEntry { item: addr, .. }) = cache.pop() else {
                Self::leave(slot);
                return self.alloc_pages_sized(bytes, requested, Self::PAGE, id);
            };
            cache.allocs += 1;
            Stats::count_alloc((*slot).row, id, bytes, requested, size_mask(class));
            Self::leave(slot);
            self.set_word(addr, page::run(page::LARGE, bytes >> P::PAGE_SHIFT, id.tag()));
            addr as *mut u8
        }
    }

    #[inline(always)]
    pub(super) fn set_word(&self, addr: usize, word: u64) {
        // SAFETY: as in `word`.
        unsafe { (*self.word_ptr(addr)).store(word, Ordering::Relaxed) };
    }

    /// Whole pages at an alignment of at least a page.
    pub(super) fn alloc_pages(&self, requested: usize, align: usize, id: TypeId) -> *mut u8 {
        if requested > MAX_REQUEST_BYTES || align > MAX_REQUEST_BYTES {
            self.fail(id);
            return core::ptr::null_mut();
        }
        self.alloc_pages_sized(run_bytes(requested, Self::PAGE), requested, align, id)
    }

    #[inline(never)]
    pub(super) fn alloc_pages_sized(&self, served: usize, requested: usize, align: usize, id: TypeId) -> *mut u8 {
        self.take_run(served, requested, align, id).map_or(core::ptr::null_mut(), |run| run.addr as *mut u8)
    }

    /// A fresh run, marked and counted; `None`, counted as a failure, when there is none.
    fn take_run(&self, served: usize, requested: usize, align: usize, id: TypeId) -> Option<Run> {
        if !self.is_booted() {
            return None;
        }
        self.obey();
        self.use_cached_runs(served);
        let run = {
            let mut pages = self.pages.lock();
            let before = pages.counts().out;
            let run = pages.alloc(&self.meta, served, align);
            self.check_soft_limit(before, pages.counts().out);
            if let Some(run) = &run {
                pages.set_run(run.addr, served, id.tag());
            }
            self.publish_pages(&pages);
            run
        };
        if run.is_none() {
            self.fail(id);
            return None;
        }
        self.stats().header().pages_large.fetch_add((served >> P::PAGE_SHIFT) as u64, Ordering::Relaxed);
        let mask = 1 << abi::run_bit(served as u64);
        self.count(|slot, _| {
            // SAFETY: inside the section of `slot`.
            let slot = unsafe { &mut *slot };
            Stats::count_alloc(slot.row, id, served, requested, mask);
            // Also one that came by its alignment: its free will count in the zone of its size.
            if let Some(class) = run_class(served) {
                slot.cache(class).count_alloc_elsewhere();
            }
        });
        run
    }

    /// Larger than every slab class, and zero: pages known to be zero are not written, so that what the program does not write
    /// either costs no memory.
    #[inline(never)]
    pub(super) fn alloc_large_zeroed(&self, requested: usize, id: TypeId) -> *mut u8 {
        if requested > MAX_REQUEST_BYTES {
            self.fail(id);
            return core::ptr::null_mut();
        }
        let mut served = run_bytes(requested, Self::PAGE);
        if requested <= RUN_MAX_BYTES {
            let class = class_of_run(requested);
            served = class_bytes(class);
            let mut is_cached = false;
            self.count(|slot, _| {
                // SAFETY: inside the section of `slot`.
                is_cached = unsafe { &mut *slot }.cache(class).alloc_count() != 0;
            });
            // Nothing is known of the pages of a run that lay in a cache. (Whether it is still there does not matter.)
            if is_cached {
                let block = self.alloc_large(requested, id);
                if !block.is_null() {
                    // SAFETY: a fresh run of at least that size.
                    unsafe { core::ptr::write_bytes(block, 0, requested) };
                }
                return block;
            }
        }
        let Some(run) = self.take_run(served, requested, Self::PAGE, id) else { return core::ptr::null_mut() };
        let dirty = run.dirty.start.min(requested)..run.dirty.end.min(requested);
        // SAFETY: inside a fresh run of at least `requested`.
        unsafe { core::ptr::write_bytes((run.addr as *mut u8).add(dirty.start), 0, dirty.len()) };
        run.addr as *mut u8
    }

    /// Frees a large block whose first page's word is `word`.
    #[inline(never)]
    pub(super) fn free_large(&self, addr: usize, word: u64) {
        let bytes = page::run_pages(word) << P::PAGE_SHIFT;
        let id = TypeId::from_tag(page::run_tag(word));
        self.set_word(addr, page::run(page::CACHED_RUN, page::run_pages(word), id.tag() | TAG_FREE));
        let class = run_class(bytes);
        let mut kept = false;
        let mut want_bucket = false;
        self.count(|slot, stats| {
            // SAFETY: inside the section of `slot`.
            let slot = unsafe { &mut *slot };
            stats.count_free_slow(id, slot.row, bytes);
            if let Some(class) = class {
                let cache = slot.cache(class);
                // A bucket may have more room than its class is to keep.
                if cache.alloc_count() < bucket_max(class) {
                    // SAFETY: 1. we are in its slot's section.
                    kept = unsafe { cache.push(CacheEntry { item: addr, tag: 0 }) };
                }
                if !kept {
                    cache.count_free_elsewhere();
                }
                want_bucket = cache.alloc_end.is_null() && cache.frees() >= RUN_FREES_BEFORE_CACHE;
            }
        });
        if kept {
            return;
        }
        if let Some(class) = class
            && want_bucket
            && self.cache_first_run(class, addr)
        {
            return;
        }
        self.stats().header().pages_large.fetch_sub((bytes >> P::PAGE_SHIFT) as u64, Ordering::Relaxed);
        let mut pages = self.pages.lock();
        pages.free_block(&self.meta, addr, bytes, id.tag() | TAG_FREE);
        self.trim_pages(&mut pages);
        self.publish_pages(&pages);
        self.wake_sleepers();
        drop(pages);
        self.tell_memory();
        self.obey();
    }

    /// The first run freed of its class in a slot: gives the cache its bucket.
    pub(super) fn cache_first_run(&self, class: usize, addr: usize) -> bool {
        let Some(bucket) = self.pool.lock().get(&self.meta, bucket_max(class)) else { return false };
        let mut bucket = Some(bucket);
        let mut kept = false;
        self.count(|slot, _| {
            // SAFETY: inside the section of `slot`.
            let cache = unsafe { &mut *slot }.cache(class);
            if cache.alloc_end.is_null()
                && !self.is_short()
                && let Some(bucket) = bucket.take()
            {
                let capacity = bucket.capacity();
                cache.set_alloc(bucket.into_items(), 0, capacity);
                // SAFETY: 1. as above.
                kept = unsafe { cache.push(CacheEntry { item: addr, tag: 0 }) };
                cache.filled = cache.filled.wrapping_add(1);
            }
        });
        if let Some(bucket) = bucket {
            self.pool.lock().put(bucket);
        }
        kept
    }

    /// A large block to another large size: grown or shrunk where it stands, or its pages moved. `None`: copy.
    ///
    /// # Safety
    /// 1. The caller owns the block.
    pub(super) unsafe fn resize_run(&self, info: &BlockInfo, requested: usize, id: TypeId) -> Option<*mut u8> {
        let old = info.bytes;
        let pages_of = |bytes: usize| (bytes >> P::PAGE_SHIFT) as u64;
        // [`BlockInfo::stays`], for a run.
        if requested <= old && requested > old / 2 {
            // Small shrinking keeps the run whole: it may grow again, and its size class stays.
            self.credit(info, old, requested, id);
            self.set_word(info.addr, page::run(page::LARGE, old >> P::PAGE_SHIFT, id.tag()));
            return Some(info.addr as *mut u8);
        }
        let new = run_bytes(requested, Self::PAGE);
        let mut pages = self.pages.lock();
        if new < old {
            if !pages.shrink_in_place(&self.meta, info.addr, old, new) {
                return None;
            }
            pages.set_run(info.addr, new, id.tag());
            self.publish_pages(&pages);
            self.wake_sleepers();
            drop(pages);
            self.stats().header().pages_large.fetch_sub(pages_of(old - new), Ordering::Relaxed);
            self.credit(info, new, requested, id);
            return Some(info.addr as *mut u8);
        }
        // Room ahead saves the next growth of a vector a move; untouched pages cost nothing.
        let ample = run_bytes(new.saturating_add(new / 4), Self::PAGE);
        for target in [ample, new] {
            if pages.grow_in_place(&self.meta, info.addr, old, target) {
                pages.set_run(info.addr, target, id.tag());
                self.publish_pages(&pages);
                drop(pages);
                self.stats().header().pages_large.fetch_add(pages_of(target - old), Ordering::Relaxed);
                self.credit(info, target, requested, id);
                return Some(info.addr as *mut u8);
            }
        }
        if old < MOVE_MIN_BYTES {
            return None;
        }
        let run = pages.alloc(&self.meta, new, Self::PAGE)?;
        // SAFETY: both runs are ours alone: one fresh, one the caller's (1.).
        let moved = unsafe { P::move_pages(info.addr, run.addr, old) };
        if !moved {
            pages.free(&self.meta, run.addr, new);
            return None;
        }
        pages.set_run(run.addr, new, id.tag());
        pages.free_clean(&self.meta, info.addr, old);
        self.publish_pages(&pages);
        self.wake_sleepers();
        drop(pages);
        self.stats().header().pages_large.fetch_add(pages_of(new - old), Ordering::Relaxed);
        self.credit(info, new, requested, id);
        Some(run.addr as *mut u8)
    }
}

/// Blocks from this size on are moved by the platform rather than copied, bytes.
const MOVE_MIN_BYTES: usize = 512 * 1024;
