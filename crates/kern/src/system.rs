//! The allocator: one `System` per platform, and how a block is allocated and freed.
//!
//! # The order of an allocation
//!
//! 1. class of the size; section of a slot; pop from the slot's bucket of that class; count; leave; tag the item.
//! 2. the slot's second bucket (a swap), still inside the section;
//! 3. outside the section: a full bucket of the zone's depot, or a bucket filled from the keg's fullest slabs,
//!    or a new slab from the page arena, or more heap from the platform. One item is the caller's, the bucket is
//!    installed in whichever slot the caller then holds.
//!
//! A free takes the same way back: tag checked and marked, push, count. Nothing is locked in step 1 and 2.
//!
//! # Locks, in order
//!
//! section → (left before any lock is taken) → depot → bucket pool → keg → pages → records. No lock is ever taken inside a section,
//! and no section entered with a lock held, but for the counting of large blocks, which takes no lock.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

use abi::{AtomicU64, CpuCache, Ordering, page};
use platform::{Lock, Misuse, MisuseReport, Platform, RawLock, SlotTable};

use crate::bucket::{BucketPool, BucketPtr, Depot};
use crate::class::{
    CLASSES, RUN_MAX_BYTES, SLAB_CLASSES, SLAB_MAX_BYTES, bucket_max, class_align, class_bytes, class_of,
    class_of_aligned, slab_layout,
};
use crate::meta::Meta;
use crate::page::Pages;
use crate::slab::{CLASS_INFO, Keg, Returned, Slab, TAG_FREE};
use crate::slot::{CACHES_OFFSET, SLOT_STRIDE_BYTES, Slot};
use crate::stats::{Stats, TypeId};

/// Largest request, bytes (`PTRDIFF_MAX` as in C; N1.146: a size near the end of the range fails and never wraps).
pub const MAX_REQUEST_BYTES: usize = isize::MAX as usize - (1 << 21);

/// Full buckets a depot keeps per CPU identity; more go back to their slabs.
const DEPOT_BUCKETS_PER_ID: usize = 8;
/// A bucket of a class starts with so many items and doubles at each miss, so that a small program caches little.
const BUCKET_FIRST: usize = 6;
/// While free dirty memory exceeds this and an eighth of the heap in use, some is given back every [`PURGE_EVERY_NS`].
const DIRTY_KEEP_PAGES: u64 = 1024;
const PURGE_EVERY_NS: u64 = 50_000_000;

/// A zone of malloc: depot, keg, and how large its buckets are now.
struct ClassZone<P: Platform> {
    depot: Lock<P::Lock, Depot>,
    keg: Lock<P::Lock, Keg>,
    bucket_size: AtomicU32,
}

/// What a platform's port tells at boot.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    /// First address of the heap; every extent lies above it.
    pub heap_base: usize,
    /// The words of the heap's pages.
    pub table: usize,
    /// CPU identities and slots for each.
    pub ids: usize,
    /// See [`Boot::ids`].
    pub rows: usize,
    /// A statistics object with its sections written (see [`crate::ObjectLayout`]).
    pub stats: NonNull<u8>,
}

/// A block as found from its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// First byte.
    pub addr: usize,
    /// Bytes the owner may use.
    pub bytes: usize,
    /// The type that allocated it (last, if free).
    pub type_id: TypeId,
    /// Whether it is handed out.
    pub live: bool,
}

/// Sums over the whole heap, see [`System::account`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Address space the heap has taken so far.
    pub heap_bytes: usize,
    /// In blocks, as served.
    pub in_use_bytes: usize,
    /// In runs of pages, those kept for reuse included.
    pub large_bytes: usize,
    /// Free pages that may still be backed.
    pub dirty_bytes: usize,
    /// Free items in slabs.
    pub free_items: usize,
}

/// The allocator. `const`-constructible, so a process or kernel has it as a static before any code runs.
pub struct System<P: Platform> {
    // Constant after boot, read by every call.
    heap_base: AtomicUsize,
    table: AtomicUsize,
    stats: UnsafeCell<Stats>,
    // Grows only; published after the words of the new pages are accessible.
    heap_bytes: AtomicUsize,
    booted: AtomicBool,

    slots: UnsafeCell<SlotTable>,
    zones: [ClassZone<P>; CLASSES],
    pool: Lock<P::Lock, BucketPool>,
    pages: Lock<P::Lock, Pages<P>>,
    meta: Lock<P::Lock, Meta<P>>,
    types: Lock<P::Lock, usize>,
    last_purge_ns: AtomicU64,
}

// SAFETY: the cells are written once, in `boot`, before any other call; all else is locked or atomic.
unsafe impl<P: Platform> Sync for System<P> {}

impl<P: Platform> Default for System<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> System<P> {
    /// Bytes of a page.
    pub const PAGE: usize = 1 << P::PAGE_SHIFT;

    /// An allocator that has nothing yet: every request fails until [`boot`](Self::boot).
    #[must_use]
    pub const fn new() -> Self {
        let mut zones = [const {
            ClassZone {
                depot: Lock::new(Depot::new()),
                keg: Lock::new(Keg::new(0)),
                bucket_size: AtomicU32::new(BUCKET_FIRST as u32),
            }
        }; CLASSES];
        let mut class = 0;
        while class < CLASSES {
            // A write over a value without drop glue; `zones[class] = …` would want a const destructor.
            let keg = core::mem::replace(&mut zones[class].keg, Lock::new(Keg::new(class)));
            core::mem::forget(keg);
            class += 1;
        }
        Self {
            heap_base: AtomicUsize::new(0),
            table: AtomicUsize::new(0),
            // SAFETY: never used before `boot` replaces it: a type is needed to count and there is none.
            stats: UnsafeCell::new(unsafe { Stats::new(NonNull::dangling()) }),
            heap_bytes: AtomicUsize::new(0),
            booted: AtomicBool::new(false),
            slots: UnsafeCell::new(SlotTable { base: 0, stride_bytes: SLOT_STRIDE_BYTES, ids: 0, rows: 0 }),
            zones,
            pool: Lock::new(BucketPool::new()),
            pages: Lock::new(Pages::new()),
            meta: Lock::new(Meta::new()),
            types: Lock::new(TypeId::BUILT_IN),
            last_purge_ns: AtomicU64::new(0),
        }
    }

    /// Makes the allocator ready. False when the platform has no memory for the slots.
    ///
    /// # Safety
    /// 1. Called once, by one thread, with no other call under way.
    /// 2. `boot` tells the truth.
    pub unsafe fn boot(&self, boot: &Boot) -> bool {
        // SAFETY: 1. and 2.
        unsafe {
            *self.stats.get() = Stats::new(boot.stats);
            self.stats().boot();
        }
        let mut table = SlotTable { base: 0, stride_bytes: SLOT_STRIDE_BYTES, ids: boot.ids, rows: boot.rows };
        let Some(memory) = self.meta.lock().alloc(table.count() * SLOT_STRIDE_BYTES) else { return false };
        table.base = memory.as_ptr() as usize;
        // SAFETY: 1.
        unsafe { *self.slots.get() = table };
        for index in 0..table.count() {
            let slot = table.slot(index) as *mut Slot;
            // SAFETY: zeroed records of our own; a slot is made whole before the platform hands it out. Its lines wait for
            // its first holder, so that slots never used cost no memory.
            unsafe { (*slot).index = index as u32 };
            if index > 0 && table.count() > 64 {
                // Thousands of slots: let their first holder write the index instead.
                break;
            }
        }
        self.heap_base.store(boot.heap_base, Ordering::Relaxed);
        self.table.store(boot.table, Ordering::Relaxed);
        self.pages.lock().boot(boot.heap_base, boot.table as *const AtomicU64);
        let header = self.stats().header();
        header.caches_base.store((table.base + CACHES_OFFSET) as u64, Ordering::Relaxed);
        P::bind_slots(table);
        self.booted.store(true, Ordering::Release);
        true
    }

    /// Whether [`boot`](Self::boot) has succeeded.
    pub fn is_booted(&self) -> bool {
        self.booted.load(Ordering::Acquire)
    }

    #[inline(always)]
    pub(crate) fn stats(&self) -> &Stats {
        // SAFETY: written once, in `boot`.
        unsafe { &*self.stats.get() }
    }

    fn slot_table(&self) -> &SlotTable {
        // SAFETY: written once, in `boot`.
        unsafe { &*self.slots.get() }
    }

    // ---- sections -------------------------------------------------------------------------------------------

    /// A slot for the caller, by whichever way there is. Null only before boot.
    #[inline(always)]
    fn enter(&self) -> *mut Slot {
        let slot = P::enter() as *mut Slot;
        // SAFETY: a slot the platform gives is ours alone.
        if slot.is_null() || unsafe { (*slot).lines.is_null() } { self.enter_slow(slot) } else { slot }
    }

    #[cold]
    #[inline(never)]
    fn enter_slow(&self, mut slot: *mut Slot) -> *mut Slot {
        if slot.is_null() {
            if !self.is_booted() {
                return slot;
            }
            let table = self.slot_table();
            slot = table.slot(table.count() - 1) as *mut Slot;
            // SAFETY: 1. it is the last.
            unsafe { P::claim_shared(slot as usize) };
        }
        // SAFETY: ours alone now.
        unsafe {
            if (*slot).lines.is_null() {
                let table = self.slot_table();
                let index = (slot as usize - table.base) / table.stride_bytes;
                (*slot).index = index as u32;
                (*slot).lines = self.stats().type_lines(index);
                self.stats().count_slot(index);
            }
        }
        slot
    }

    /// # Safety
    /// 1. `slot` is held by the caller.
    #[inline(always)]
    unsafe fn leave(slot: *mut Slot) {
        // SAFETY: 1.
        unsafe { P::leave(slot as usize) }
    }

    /// Counts blocks that no cache counts: large ones, and credits that move.
    fn count(&self, with: impl FnOnce(*mut Slot, &Stats)) {
        let slot = self.enter();
        if slot.is_null() {
            return;
        }
        // SAFETY: we hold the slot.
        unsafe {
            with(slot, self.stats());
            Self::leave(slot);
        }
    }

    // ---- allocation -----------------------------------------------------------------------------------------

    /// A block of `bytes`, aligned to 16 (to the page from a page on), credited to `id`; null when there is no memory.
    /// Contents undefined. Never sleeps. malloc(9) with `M_NOWAIT`.
    #[doc(alias = "malloc")]
    #[inline(always)]
    pub fn alloc(&self, bytes: usize, id: TypeId) -> *mut u8 {
        if bytes > SLAB_MAX_BYTES {
            return self.alloc_large(bytes, id);
        }
        self.alloc_class(class_of(bytes), bytes, id)
    }

    /// A block of a slab class. The fast path: no lock; the branches are slot missing, bucket empty, and the two
    /// of the high-water mark.
    #[inline(always)]
    fn alloc_class(&self, class: usize, requested: usize, id: TypeId) -> *mut u8 {
        let slot = self.enter();
        if slot.is_null() {
            return core::ptr::null_mut();
        }
        // SAFETY: we hold the slot; a cache's items are `alloc_count` addresses of free blocks of its class.
        unsafe {
            let cache = &mut (*slot).caches[class];
            let count = cache.alloc_count;
            if count == 0 {
                return self.alloc_class_slow(slot, class, requested, id);
            }
            cache.alloc_count = count - 1;
            cache.allocs += 1;
            let item = *cache.alloc_items.add(count as usize - 1);
            let info = &CLASS_INFO[class];
            self.stats().count_alloc(id, (*slot).line(id), info.bytes as usize, requested, class as u32);
            Self::leave(slot);
            self.tag_item(item, info, id);
            item as *mut u8
        }
    }

    /// Says in the item's tag that it is live and whose it is.
    ///
    /// # Safety
    /// 1. `item` is a free block of this class that the caller took out of a cache.
    #[inline(always)]
    unsafe fn tag_item(&self, item: usize, info: &crate::slab::ClassInfo, id: TypeId) {
        let word = self.word(item);
        let (index, _) = info.item_of(item);
        // SAFETY: 1.: the word of an item's page names its slab.
        unsafe { *info.tag(page::descriptor(word), index) = id.tag() };
    }

    /// The word of an address inside the heap.
    #[inline(always)]
    fn word(&self, addr: usize) -> u64 {
        let index = (addr - self.heap_base.load(Ordering::Relaxed)) >> P::PAGE_SHIFT;
        let table = self.table.load(Ordering::Relaxed) as *const AtomicU64;
        // SAFETY: every caller has found the address inside the heap, whose words are accessible.
        unsafe { (*table.add(index)).load(Ordering::Relaxed) }
    }

    /// # Safety
    /// 1. The caller holds `slot`, whose first bucket of this class is empty. The slot is left.
    #[cold]
    #[inline(never)]
    unsafe fn alloc_class_slow(&self, mut slot: *mut Slot, class: usize, requested: usize, id: TypeId) -> *mut u8 {
        let info = &CLASS_INFO[class];
        // SAFETY: 1., and below whenever `slot` is used it is held.
        unsafe {
            let cache = &mut (*slot).caches[class];
            let mut item = 0;
            let mut left_over = None;
            if cache.free_count > 0 {
                swap_buckets(cache);
            } else {
                Self::leave(slot);
                match self.full_bucket(class) {
                    Some(mut bucket) => {
                        let count = bucket.count();
                        item = bucket.filled()[count - 1];
                        bucket.set_count(count - 1);
                        slot = self.enter();
                        left_over = install_full(&mut (*slot).caches[class], bucket);
                    }
                    None => {
                        item = self.keg_take_one(class);
                        if item == 0 {
                            self.fail(id);
                            return core::ptr::null_mut();
                        }
                        slot = self.enter();
                    }
                }
            }
            let cache = &mut (*slot).caches[class];
            if item == 0 {
                cache.alloc_count -= 1;
                item = *cache.alloc_items.add(cache.alloc_count as usize);
            }
            cache.allocs += 1;
            self.stats().count_alloc(id, (*slot).line(id), info.bytes as usize, requested, info.size_bit);
            self.publish_zone(&*slot, class);
            Self::leave(slot);
            self.tag_item(item, info, id);
            if let Some(bucket) = left_over {
                self.dispose(class, bucket);
            }
            item as *mut u8
        }
    }

    /// A bucket that no cache wants: to the pool when empty, else to the depot.
    fn dispose(&self, class: usize, bucket: BucketPtr) {
        if bucket.count() == 0 {
            self.pool.lock().put(bucket);
        } else {
            self.store_full(class, bucket);
        }
    }

    /// A bucket with items, from the depot or filled from the keg; `None` when memory for either ends.
    fn full_bucket(&self, class: usize) -> Option<BucketPtr> {
        let zone = &self.zones[class];
        {
            let mut depot = zone.depot.lock();
            if let Some(bucket) = depot.pop() {
                self.stats().zone(class).depot.store(depot.items as u64, Ordering::Relaxed);
                return Some(bucket);
            }
        }
        let size = zone.bucket_size.load(Ordering::Relaxed) as usize;
        let larger = (size * 2 + 2).min(bucket_max(class));
        zone.bucket_size.store(larger as u32, Ordering::Relaxed);
        self.stats().zone(class).bucket_size.store(larger as u64, Ordering::Relaxed);
        let mut bucket = self.pool.lock().get(&self.meta, size)?;
        let want = size.min(bucket.capacity());
        // SAFETY: the bucket has room for `want`.
        let got = unsafe { self.keg_take(class, bucket.items(), want) };
        if got == 0 {
            self.pool.lock().put(bucket);
            return None;
        }
        bucket.set_count(got);
        Some(bucket)
    }

    /// Items from the keg's slabs, from a new slab when those have none.
    ///
    /// # Safety
    /// 1. `out` has room for `want` addresses.
    unsafe fn keg_take(&self, class: usize, out: *mut usize, want: usize) -> usize {
        let mut keg = self.zones[class].keg.lock();
        // SAFETY: 1.
        let mut got = unsafe { keg.take(out, want) };
        if got == 0 && self.add_slab(&mut keg, class).is_some() {
            // SAFETY: 1.
            got = unsafe { keg.take(out, want) };
        }
        self.publish_keg(class, &keg);
        got
    }

    fn keg_take_one(&self, class: usize) -> usize {
        let mut item = 0;
        // SAFETY: room for one.
        unsafe { self.keg_take(class, &raw mut item, 1) };
        item
    }

    fn add_slab(&self, keg: &mut Keg, class: usize) -> Option<()> {
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
        self.pages.lock().set_slab(run, layout.slab_bytes, descriptor.as_ptr() as usize, class);
        Some(())
    }

    /// Pages from the arena; publishes the heap's new end and the account.
    fn page_alloc(&self, bytes: usize, align: usize) -> Option<usize> {
        let mut pages = self.pages.lock();
        let run = pages.alloc(&self.meta, bytes, align)?;
        self.publish_pages(&pages);
        Some(run.addr)
    }

    fn page_free(&self, addr: usize, bytes: usize) {
        let mut pages = self.pages.lock();
        pages.free(&self.meta, addr, bytes);
        self.trim_pages(&mut pages);
        self.publish_pages(&pages);
    }

    /// Lets free memory go in steps, so that what is freed after a peak is either used again soon or gone within a second.
    fn trim_pages(&self, pages: &mut Pages<P>) {
        let counts = pages.counts();
        let keep = DIRTY_KEEP_PAGES.max(counts.out / 8);
        if counts.free_dirty <= keep {
            return;
        }
        let now = P::now_ns();
        let last = self.last_purge_ns.load(Ordering::Relaxed);
        if last == 0 || now.wrapping_sub(last) >= PURGE_EVERY_NS {
            self.last_purge_ns.store(now, Ordering::Relaxed);
            if last != 0 && now - last < 4 * PURGE_EVERY_NS {
                pages.purge(keep + (counts.free_dirty - keep) / 2);
            }
        }
    }

    fn publish_pages(&self, pages: &Pages<P>) {
        let counts = pages.counts();
        let header = self.stats().header();
        self.heap_bytes.store(pages.heap_bytes(), Ordering::Release);
        header.pages_free_dirty.store(counts.free_dirty, Ordering::Relaxed);
        header.pages_free_clean.store(counts.free_clean, Ordering::Relaxed);
    }

    fn publish_keg(&self, class: usize, keg: &Keg) {
        let record = self.stats().zone(class);
        let before = record.slabs.load(Ordering::Relaxed);
        record.slab_free.store(keg.free_items as u64, Ordering::Relaxed);
        if before != keg.slabs as u64 {
            record.slabs.store(keg.slabs as u64, Ordering::Relaxed);
            let pages = (slab_layout_of(class).slab_bytes >> P::PAGE_SHIFT) as u64;
            let delta = (keg.slabs as u64).wrapping_sub(before).wrapping_mul(pages);
            self.stats().header().pages_slab.fetch_add(delta, Ordering::Relaxed);
        }
        let used = self.meta.lock().used_bytes();
        self.stats().header().meta_used_bytes.store(used as u64, Ordering::Relaxed);
    }

    /// Shows the slot's counts of a zone to readers.
    fn publish_zone(&self, slot: &Slot, class: usize) {
        let cache = &slot.caches[class];
        let line = self.stats().zone_line(slot.index as usize, class);
        line.allocs.store(cache.allocs, Ordering::Relaxed);
        line.frees.store(cache.frees, Ordering::Relaxed);
    }

    /// A request failed: counted for its type and for the whole.
    #[cold]
    fn fail(&self, id: TypeId) {
        if !self.is_booted() {
            return;
        }
        self.stats().type_record(id).failures.fetch_add(1, Ordering::Relaxed);
        let header = self.stats().header();
        header.failures.fetch_add(1, Ordering::Relaxed);
        header.last_fail_monotonic_ns.store(P::now_ns(), Ordering::Relaxed);
    }

    // ---- large blocks ---------------------------------------------------------------------------------------

    /// A block of more than [`SLAB_MAX_BYTES`]: whole pages.
    #[inline(never)]
    fn alloc_large(&self, bytes: usize, id: TypeId) -> *mut u8 {
        if bytes <= RUN_MAX_BYTES {
            return self.alloc_run(class_of(bytes), bytes, id);
        }
        self.alloc_pages(bytes, Self::PAGE, id)
    }

    /// A run of a run class, from the slot's cache if it has one.
    fn alloc_run(&self, class: usize, requested: usize, id: TypeId) -> *mut u8 {
        let slot = self.enter();
        if slot.is_null() {
            return core::ptr::null_mut();
        }
        let info = &CLASS_INFO[class];
        // SAFETY: we hold the slot.
        unsafe {
            let cache = &mut (*slot).caches[class];
            if cache.alloc_count == 0 {
                Self::leave(slot);
                return self.alloc_pages_sized(info.bytes as usize, requested, Self::PAGE, id, Some(class));
            }
            cache.alloc_count -= 1;
            cache.allocs += 1;
            let addr = *cache.alloc_items.add(cache.alloc_count as usize);
            self.stats().count_alloc(id, (*slot).line(id), info.bytes as usize, requested, info.size_bit);
            Self::leave(slot);
            self.set_word(addr, page::run(page::LARGE, info.bytes as usize >> P::PAGE_SHIFT, id.tag()));
            addr as *mut u8
        }
    }

    #[inline(always)]
    fn set_word(&self, addr: usize, word: u64) {
        let index = (addr - self.heap_base.load(Ordering::Relaxed)) >> P::PAGE_SHIFT;
        let table = self.table.load(Ordering::Relaxed) as *const AtomicU64;
        // SAFETY: as in `word`.
        unsafe { (*table.add(index)).store(word, Ordering::Relaxed) };
    }

    /// Whole pages at an alignment of at least a page.
    fn alloc_pages(&self, requested: usize, align: usize, id: TypeId) -> *mut u8 {
        if requested > MAX_REQUEST_BYTES || align > MAX_REQUEST_BYTES {
            self.fail(id);
            return core::ptr::null_mut();
        }
        self.alloc_pages_sized(requested.max(1).next_multiple_of(Self::PAGE), requested, align, id, None)
    }

    fn alloc_pages_sized(&self, served: usize, requested: usize, align: usize, id: TypeId, class: Option<usize>) -> *mut u8 {
        if !self.is_booted() {
            return core::ptr::null_mut();
        }
        let run = {
            let mut pages = self.pages.lock();
            let run = pages.alloc(&self.meta, served, align);
            if let Some(run) = run {
                pages.set_run(run.addr, served, id.tag());
            }
            self.publish_pages(&pages);
            run
        };
        let Some(run) = run else {
            self.fail(id);
            return core::ptr::null_mut();
        };
        self.stats().header().pages_large.fetch_add((served >> P::PAGE_SHIFT) as u64, Ordering::Relaxed);
        let bit = abi::large_bit(served as u64);
        self.count(|slot, stats| {
            // SAFETY: inside the section of `slot`.
            stats.count_alloc(id, unsafe { (*slot).line(id) }, served, requested, bit);
            if let Some(class) = class {
                // SAFETY: as above; the cache is the holder's.
                unsafe { (*slot).caches[class].allocs += 1 };
            }
        });
        run.addr as *mut u8
    }

    /// Frees a large block whose first page's word is `word`.
    #[inline(never)]
    fn free_large(&self, addr: usize, word: u64) {
        let bytes = page::run_pages(word) << P::PAGE_SHIFT;
        let id = TypeId::from_tag(page::upper(word));
        self.set_word(addr, page::run(page::CACHED_RUN, page::run_pages(word), id.tag() | TAG_FREE));
        let class = if bytes <= RUN_MAX_BYTES { class_of(bytes) } else { CLASSES };
        let cacheable = class < CLASSES && class >= SLAB_CLASSES && CLASS_INFO[class].bytes as usize == bytes;
        let mut kept = false;
        let mut want_bucket = false;
        self.count(|slot, stats| {
            // SAFETY: inside the section of `slot`.
            stats.count_free(id, unsafe { (*slot).line(id) }, bytes);
            if cacheable {
                // SAFETY: as above; the cache is the holder's.
                let cache = unsafe { &mut (*slot).caches[class] };
                cache.frees += 1;
                if (cache.alloc_count as usize) < (cache.capacity as usize).min(bucket_max(class)) {
                    // SAFETY: below the capacity.
                    unsafe { *cache.alloc_items.add(cache.alloc_count as usize) = addr };
                    cache.alloc_count += 1;
                    kept = true;
                }
                want_bucket = cache.capacity == 0;
            }
        });
        if kept {
            return;
        }
        if want_bucket && self.cache_first_run(class, addr) {
            return;
        }
        self.stats().header().pages_large.fetch_sub((bytes >> P::PAGE_SHIFT) as u64, Ordering::Relaxed);
        self.page_free(addr, bytes);
    }

    /// The first run freed of its class in a slot: gives the cache its bucket.
    fn cache_first_run(&self, class: usize, addr: usize) -> bool {
        let Some(bucket) = self.pool.lock().get(&self.meta, bucket_max(class)) else { return false };
        let mut bucket = Some(bucket);
        let mut kept = false;
        self.count(|slot, _| {
            // SAFETY: inside the section of `slot`; the cache is the holder's.
            let cache = unsafe { &mut (*slot).caches[class] };
            if cache.capacity == 0
                && let Some(bucket) = bucket.take()
            {
                cache.capacity = bucket.capacity() as u32;
                cache.alloc_items = bucket.into_items();
                // SAFETY: the first of an empty bucket.
                unsafe { *cache.alloc_items = addr };
                cache.alloc_count = 1;
                kept = true;
            }
        });
        if let Some(bucket) = bucket {
            self.pool.lock().put(bucket);
        }
        kept
    }

    // ---- free -----------------------------------------------------------------------------------------------

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
        let offset = addr.wrapping_sub(self.heap_base.load(Ordering::Relaxed));
        if offset >= self.heap_bytes.load(Ordering::Relaxed) {
            return self.free_outside(addr, caller);
        }
        let word = self.word(addr);
        if page::kind(word) != page::SLAB {
            return self.free_not_slab(addr, word, caller);
        }
        let class = page::upper(word) as usize;
        let info = &CLASS_INFO[class];
        let (index, rest) = info.item_of(addr);
        if rest != 0 || index >= info.items as usize {
            return self.misuse(addr, caller);
        }
        // SAFETY: the word named a live slab of this class, and the index is in range; the item is the caller's (1.).
        unsafe {
            let tag = info.tag(page::descriptor(word), index);
            let was = *tag;
            if was & TAG_FREE != 0 {
                return self.misuse(addr, caller);
            }
            *tag = was | TAG_FREE;
            // The item itself remembers who freed it, for the report of a second free.
            *(addr as *mut usize) = caller;
            let slot = self.enter();
            let cache = &mut (*slot).caches[class];
            let id = TypeId::from_tag(was);
            self.stats().count_free(id, (*slot).line(id), info.bytes as usize);
            cache.frees += 1;
            let count = cache.alloc_count;
            if count == cache.capacity {
                return self.free_class_slow(slot, class, addr);
            }
            *cache.alloc_items.add(count as usize) = addr;
            cache.alloc_count = count + 1;
            Self::leave(slot);
        }
    }

    /// # Safety
    /// 1. The caller holds `slot`, whose first bucket of this class is full, and has counted the free. The slot is left.
    #[cold]
    #[inline(never)]
    unsafe fn free_class_slow(&self, mut slot: *mut Slot, class: usize, item: usize) {
        // SAFETY: 1., and below whenever `slot` is used it is held.
        unsafe {
            let mut cache = &mut (*slot).caches[class];
            if cache.free_count == 0 && cache.free_capacity > 0 {
                swap_buckets(cache);
                *cache.alloc_items = item;
                cache.alloc_count = 1;
                Self::leave(slot);
                return;
            }
            Self::leave(slot);
            let size = (self.zones[class].bucket_size.load(Ordering::Relaxed) as usize).min(bucket_max(class));
            let Some(bucket) = self.pool.lock().get(&self.meta, size) else {
                self.keg_put(class, &[item]);
                return;
            };
            slot = self.enter();
            cache = &mut (*slot).caches[class];
            self.publish_zone(&*slot, class);
            if cache.alloc_count < cache.capacity {
                // Another slot, or others emptied it meanwhile.
                let cache = &mut (*slot).caches[class];
                *cache.alloc_items.add(cache.alloc_count as usize) = item;
                cache.alloc_count += 1;
                Self::leave(slot);
                self.pool.lock().put(bucket);
                return;
            }
            let cache = &mut (*slot).caches[class];
            let full = BucketPtr::from_items(cache.free_items).map(|mut full| {
                full.set_count(cache.free_count as usize);
                full
            });
            cache.free_items = cache.alloc_items;
            cache.free_count = cache.alloc_count;
            cache.free_capacity = cache.capacity;
            cache.capacity = bucket.capacity() as u32;
            cache.alloc_items = bucket.into_items();
            *cache.alloc_items = item;
            cache.alloc_count = 1;
            Self::leave(slot);
            if let Some(full) = full {
                self.dispose(class, full);
            }
        }
    }

    /// A bucket with items goes to the depot, or its items to their slabs when the depot has enough.
    fn store_full(&self, class: usize, bucket: BucketPtr) {
        let most = DEPOT_BUCKETS_PER_ID * self.slot_table().ids;
        let refused = {
            let mut depot = self.zones[class].depot.lock();
            let refused = depot.push(bucket, most).err();
            self.stats().zone(class).depot.store(depot.items as u64, Ordering::Relaxed);
            refused
        };
        if let Some(bucket) = refused {
            // SAFETY: free items of this class, out of every cache.
            unsafe { self.keg_put(class, bucket.filled()) };
            self.pool.lock().put(bucket);
        }
    }

    /// Items go back into their slabs; slabs that become empty go back to the arena, but for one.
    ///
    /// # Safety
    /// 1. Free items of this class, in no cache.
    unsafe fn keg_put(&self, class: usize, items: &[usize]) {
        let mut keg = self.zones[class].keg.lock();
        for &item in items {
            let descriptor = page::descriptor(self.word(item)) as *mut Slab;
            let Some(slab) = NonNull::new(descriptor) else { continue };
            // SAFETY: 1.
            if let Returned::Release(slab) = unsafe { keg.put(slab, item) } {
                // SAFETY: `put` says that it is empty.
                unsafe { self.release_slab(&mut keg, class, slab) };
            }
        }
        self.publish_keg(class, &keg);
    }

    /// # Safety
    /// 1. `slab` is on the keg's empty list.
    unsafe fn release_slab(&self, keg: &mut Keg, class: usize, slab: NonNull<Slab>) {
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

    #[cold]
    #[inline(never)]
    fn free_outside(&self, addr: usize, caller: usize) {
        if addr != 0 {
            self.report(Misuse::ForeignFree, addr, caller, None);
        }
    }

    #[inline(never)]
    fn free_not_slab(&self, addr: usize, word: u64, caller: usize) {
        if page::kind(word) == page::LARGE && addr.is_multiple_of(Self::PAGE) {
            self.free_large(addr, word);
        } else {
            self.misuse(addr, caller);
        }
    }

    #[cold]
    #[inline(never)]
    fn misuse(&self, addr: usize, caller: usize) {
        let block = self.lookup(addr);
        let what = match block {
            None => Misuse::InvalidFree,
            Some(block) if !block.live => Misuse::DuplicateFree,
            Some(_) => Misuse::UnalignedFree,
        };
        self.report(what, addr, caller, block);
    }

    fn report(&self, what: Misuse, addr: usize, caller: usize, block: Option<BlockInfo>) {
        if self.is_booted() {
            self.stats().header().misuses.fetch_add(1, Ordering::Relaxed);
        }
        let freed_by = match block {
            // SAFETY: a free item of the heap is readable; what the program may have written over it is only shown.
            Some(block) if !block.live && block.bytes <= SLAB_MAX_BYTES => unsafe { *(block.addr as *const usize) },
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
        });
    }

    // ---- other calls ----------------------------------------------------------------------------------------

    /// The block that contains an address, live or free; `None` for addresses that are no block's.
    #[must_use]
    pub fn lookup(&self, addr: usize) -> Option<BlockInfo> {
        let base = self.heap_base.load(Ordering::Relaxed);
        if addr.wrapping_sub(base) >= self.heap_bytes.load(Ordering::Acquire) {
            return None;
        }
        let word = self.word(addr);
        match page::kind(word) {
            page::SLAB => {
                let info = &CLASS_INFO[page::upper(word) as usize];
                let (index, rest) = info.item_of(addr);
                if index >= info.items as usize || rest >= info.bytes as usize {
                    return None;
                }
                // SAFETY: the word named a live slab of this class, and the index is in range.
                let tag = unsafe { *info.tag(page::descriptor(word), index) };
                let never = tag == TAG_FREE;
                (!never).then(|| BlockInfo {
                    addr: addr - rest,
                    bytes: info.bytes as usize,
                    type_id: TypeId::from_tag(tag),
                    live: tag & TAG_FREE == 0,
                })
            }
            page::LARGE | page::CACHED_RUN | page::LARGE_TAIL => {
                let mut first = addr & !(Self::PAGE - 1);
                let mut word = word;
                while page::kind(word) == page::LARGE_TAIL && first > base {
                    first -= Self::PAGE;
                    word = self.word(first);
                }
                let live = page::kind(word) == page::LARGE;
                (live || page::kind(word) == page::CACHED_RUN).then(|| BlockInfo {
                    addr: first,
                    bytes: page::run_pages(word) << P::PAGE_SHIFT,
                    type_id: TypeId::from_tag(page::upper(word)),
                    live,
                })
            }
            _ => None,
        }
    }

    /// Bytes of a live block that its owner may use; 0 for anything else. malloc_usable_size(9).
    #[doc(alias = "malloc_usable_size")]
    #[must_use]
    pub fn usable_bytes(&self, block: *const u8) -> usize {
        match self.lookup(block as usize) {
            Some(info) if info.live && info.addr == block as usize => info.bytes,
            _ => 0,
        }
    }

    /// A block at a multiple of `align` (a power of two). malloc_aligned(9); any alignment is served.
    #[doc(alias = "malloc_aligned")]
    pub fn alloc_aligned(&self, bytes: usize, align: usize, id: TypeId) -> *mut u8 {
        debug_assert!(align.is_power_of_two());
        if align <= crate::class::MIN_ALIGN {
            return self.alloc(bytes, id);
        }
        match class_of_aligned(bytes, align) {
            Some(class) => self.alloc_class(class, bytes, id),
            None if align <= Self::PAGE => self.alloc(bytes, id),
            None => self.alloc_pages(bytes, align, id),
        }
    }

    /// A block of zeros. `M_ZERO`.
    #[doc(alias = "calloc")]
    pub fn alloc_zeroed(&self, bytes: usize, id: TypeId) -> *mut u8 {
        if bytes > RUN_MAX_BYTES && bytes <= MAX_REQUEST_BYTES {
            return self.alloc_pages_zeroed(bytes, id);
        }
        let block = self.alloc(bytes, id);
        if !block.is_null() {
            // SAFETY: a fresh block of at least `bytes`.
            unsafe { core::ptr::write_bytes(block, 0, bytes) };
        }
        block
    }

    /// Large and zero: pages known to be zero are not written.
    fn alloc_pages_zeroed(&self, requested: usize, id: TypeId) -> *mut u8 {
        if !self.is_booted() {
            return core::ptr::null_mut();
        }
        let served = requested.next_multiple_of(Self::PAGE);
        let run = {
            let mut pages = self.pages.lock();
            let run = pages.alloc(&self.meta, served, Self::PAGE);
            if let Some(run) = run {
                pages.set_run(run.addr, served, id.tag());
            }
            self.publish_pages(&pages);
            run
        };
        let Some(run) = run else {
            self.fail(id);
            return core::ptr::null_mut();
        };
        self.stats().header().pages_large.fetch_add((served >> P::PAGE_SHIFT) as u64, Ordering::Relaxed);
        self.count(|slot, stats| {
            // SAFETY: inside the section of `slot`.
            stats.count_alloc(id, unsafe { (*slot).line(id) }, served, requested, abi::large_bit(served as u64));
        });
        if run.dirty {
            // SAFETY: a fresh run of that size.
            unsafe { core::ptr::write_bytes(run.addr as *mut u8, 0, requested) };
        }
        run.addr as *mut u8
    }

    /// Resizes a block: in place where its size class or its neighbour allows, else by moving. The block counts as freed
    /// by its old type and allocated by `id`, also when it stays. Null, with the old block intact, when there is no memory.
    /// A pointer that is no live block is reported and null returned. realloc(9).
    ///
    /// # Safety
    /// 1. The caller owns `block`, which is not null.
    pub unsafe fn realloc(&self, block: *mut u8, bytes: usize, id: TypeId, caller: usize) -> *mut u8 {
        let info = match self.lookup(block as usize) {
            Some(info) if info.live && info.addr == block as usize => info,
            found => {
                let what = match found {
                    None if self.in_heap(block as usize) => Misuse::InvalidFree,
                    None => Misuse::ForeignFree,
                    Some(info) if !info.live => Misuse::DuplicateFree,
                    Some(_) => Misuse::UnalignedFree,
                };
                self.report(what, block as usize, caller, found);
                return core::ptr::null_mut();
            }
        };
        if bytes > MAX_REQUEST_BYTES {
            self.fail(id);
            return core::ptr::null_mut();
        }
        let old = info.bytes;
        if old > SLAB_MAX_BYTES && bytes > SLAB_MAX_BYTES {
            // SAFETY: 1.
            if let Some(moved) = unsafe { self.resize_run(&info, bytes, id) } {
                return moved;
            }
        }
        // The block serves while it fits and is more than half used (N1.136: by the size it really has).
        if bytes <= old && (bytes > old / 2 || old == class_bytes(0)) {
            self.credit(&info, old, old, bytes, id);
            return block;
        }
        let new = self.alloc(bytes, id);
        if !new.is_null() {
            // SAFETY: both hold that many bytes; the new one is fresh; 1.
            unsafe {
                core::ptr::copy_nonoverlapping(block, new, old.min(bytes));
                self.free(block, caller);
            }
        }
        new
    }

    fn in_heap(&self, addr: usize) -> bool {
        addr.wrapping_sub(self.heap_base.load(Ordering::Relaxed)) < self.heap_bytes.load(Ordering::Relaxed)
    }

    /// Moves the credit for a block that stays where it is (or whose pages move) from its old type to `id`.
    fn credit(&self, info: &BlockInfo, old_bytes: usize, new_bytes: usize, requested: usize, id: TypeId) {
        let bit = if new_bytes > SLAB_MAX_BYTES {
            abi::large_bit(new_bytes as u64)
        } else {
            CLASS_INFO[page::upper(self.word(info.addr)) as usize].size_bit
        };
        self.count(|slot, stats| {
            // SAFETY: inside the section of `slot`.
            unsafe {
                stats.count_alloc(id, (*slot).line(id), new_bytes, requested, bit);
                stats.count_free(info.type_id, (*slot).line(info.type_id), old_bytes);
            }
        });
        if new_bytes <= SLAB_MAX_BYTES && info.type_id != id {
            // SAFETY: a live item of the caller's.
            unsafe { self.tag_item(info.addr, &CLASS_INFO[page::upper(self.word(info.addr)) as usize], id) };
        }
    }

    /// A large block to another large size: grown or shrunk where it stands, or its pages moved. `None`: copy.
    ///
    /// # Safety
    /// 1. The caller owns the block.
    unsafe fn resize_run(&self, info: &BlockInfo, requested: usize, id: TypeId) -> Option<*mut u8> {
        let old = info.bytes;
        let new = requested.next_multiple_of(Self::PAGE);
        let pages_of = |bytes: usize| (bytes >> P::PAGE_SHIFT) as u64;
        if new <= old && new > old / 2 {
            // Small shrinking keeps the run whole: it may grow again, and its size class stays.
            self.credit(info, old, old, requested, id);
            self.set_word(info.addr, page::run(page::LARGE, old >> P::PAGE_SHIFT, id.tag()));
            return Some(info.addr as *mut u8);
        }
        let mut pages = self.pages.lock();
        if new < old {
            if !pages.shrink_in_place(&self.meta, info.addr, old, new) {
                return None;
            }
            pages.set_run(info.addr, new, id.tag());
            self.publish_pages(&pages);
            drop(pages);
            self.stats().header().pages_large.fetch_sub(pages_of(old - new), Ordering::Relaxed);
            self.credit(info, old, new, requested, id);
            return Some(info.addr as *mut u8);
        }
        // Room ahead saves the next growth of a vector a move; untouched pages cost nothing.
        let ample = new.saturating_add(new / 4).next_multiple_of(Self::PAGE);
        for target in [ample, new] {
            if pages.grow_in_place(&self.meta, info.addr, old, target) {
                pages.set_run(info.addr, target, id.tag());
                self.publish_pages(&pages);
                drop(pages);
                self.stats().header().pages_large.fetch_add(pages_of(target - old), Ordering::Relaxed);
                self.credit(info, old, target, requested, id);
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
        drop(pages);
        self.stats().header().pages_large.fetch_add(pages_of(new - old), Ordering::Relaxed);
        self.credit(info, old, new, requested, id);
        Some(run.addr as *mut u8)
    }

    /// Gives back what is free: depots to their slabs, empty slabs and dirty pages to the system. The caches of the CPUs are
    /// emptied where the platform can claim them. Returns whether memory went back. malloc_trim(3), `UMA_RECLAIM_DRAIN_CPU`.
    #[doc(alias = "uma_reclaim")]
    pub fn reclaim(&self) -> bool {
        if !self.is_booted() {
            return false;
        }
        for index in 0..self.slot_table().count() {
            self.drain_slot(index);
        }
        for class in 0..SLAB_CLASSES {
            while let Some(bucket) = {
                let mut depot = self.zones[class].depot.lock();
                let bucket = depot.pop();
                self.stats().zone(class).depot.store(depot.items as u64, Ordering::Relaxed);
                bucket
            } {
                // SAFETY: free items of this class, out of every cache.
                unsafe { self.keg_put(class, bucket.filled()) };
                self.pool.lock().put(bucket);
            }
            let mut keg = self.zones[class].keg.lock();
            while let Some(slab) = keg.surplus(0) {
                // SAFETY: a surplus slab is on the empty list.
                unsafe { self.release_slab(&mut keg, class, slab) };
            }
            self.publish_keg(class, &keg);
        }
        let mut pages = self.pages.lock();
        let purged = pages.purge(0);
        self.publish_pages(&pages);
        purged > 0
    }

    /// Empties one slot's caches, bucket by bucket.
    fn drain_slot(&self, index: usize) {
        let slot = self.slot_table().slot(index) as *mut Slot;
        for class in 0..CLASSES {
            // SAFETY: 1. one of the table.
            if !unsafe { P::claim_remote(slot as usize) } {
                return;
            }
            // SAFETY: held.
            let buckets = unsafe {
                if (*slot).lines.is_null() {
                    Self::leave(slot);
                    return;
                }
                let cache = &mut (*slot).caches[class];
                let mut first = BucketPtr::from_items(cache.alloc_items);
                if let Some(bucket) = &mut first {
                    bucket.set_count(cache.alloc_count as usize);
                }
                let mut second = BucketPtr::from_items(cache.free_items);
                if let Some(bucket) = &mut second {
                    bucket.set_count(cache.free_count as usize);
                }
                let (allocs, frees) = (cache.allocs, cache.frees);
                *cache = core::mem::zeroed();
                cache.allocs = allocs;
                cache.frees = frees;
                self.publish_zone(&*slot, class);
                Self::leave(slot);
                [first, second]
            };
            for bucket in buckets.into_iter().flatten() {
                if class < SLAB_CLASSES {
                    // SAFETY: free items of this class, out of every cache.
                    unsafe { self.keg_put(class, bucket.filled()) };
                } else {
                    for &addr in bucket.filled() {
                        let bytes = CLASS_INFO[class].bytes as usize;
                        self.stats().header().pages_large.fetch_sub((bytes >> P::PAGE_SHIFT) as u64, Ordering::Relaxed);
                        self.page_free(addr, bytes);
                    }
                }
                self.pool.lock().put(bucket);
            }
        }
    }

    // ---- types ----------------------------------------------------------------------------------------------

    /// Registers a type. `None` when the table is full. Never sleeps, but takes a lock.
    pub fn register_type(&self, kind: u32, lib: u32, offset: u64, name: &[u8]) -> Option<TypeId> {
        let mut next = self.types.lock();
        let stats = self.stats();
        if *next >= stats.types() {
            return None;
        }
        let id = TypeId::new(*next)?;
        // SAFETY: 1. we hold the lock.
        unsafe { stats.write_type(*next, kind, lib, offset, name) };
        *next += 1;
        stats.header().types.used.store(*next as u64, Ordering::Release);
        Some(id)
    }

    /// The statistics object's header.
    #[must_use]
    pub fn header(&self) -> &abi::Header {
        self.stats().header()
    }

    /// The record of a library, to be written by the port before it counts it.
    #[must_use]
    pub fn lib_record(&self, index: usize) -> *mut abi::LibRecord {
        self.stats().lib_record_ptr(index)
    }

    /// The record of a type.
    #[must_use]
    pub fn type_record(&self, id: TypeId) -> &abi::TypeRecord {
        self.stats().type_record(id)
    }

    /// Shows every slot's counts of every zone to readers, for a last look.
    pub fn publish_zones(&self) {
        if !self.is_booted() {
            return;
        }
        for index in 0..self.slot_table().count() {
            let slot = self.slot_table().slot(index) as *mut Slot;
            // SAFETY: 1. one of the table; held after `true`.
            unsafe {
                if (*slot).lines.is_null() || !P::claim_remote(slot as usize) {
                    continue;
                }
                for class in 0..CLASSES {
                    self.publish_zone(&*slot, class);
                }
                Self::leave(slot);
            }
        }
    }

    // ---- fork -----------------------------------------------------------------------------------------------

    /// Stops the allocator: every lock and every slot is the caller's. For fork(2), which copies the calling thread only.
    pub fn freeze(&self) {
        self.types.raw().lock();
        for zone in &self.zones {
            zone.depot.raw().lock();
        }
        self.pool.raw().lock();
        for zone in &self.zones {
            zone.keg.raw().lock();
        }
        self.pages.raw().lock();
        self.meta.raw().lock();
        // SAFETY: 1. it is the bound table.
        unsafe { P::claim_all(self.slot_table()) };
    }

    /// Lets it go on, in the parent or in the child.
    ///
    /// # Safety
    /// 1. The caller (or the thread it is a copy of) has called [`freeze`](Self::freeze).
    pub unsafe fn thaw(&self) {
        // SAFETY: 1.
        unsafe {
            for index in 0..self.slot_table().count() {
                P::leave(self.slot_table().slot(index));
            }
            self.meta.raw().unlock();
            self.pages.raw().unlock();
            for zone in &self.zones {
                zone.keg.raw().unlock();
            }
            self.pool.raw().unlock();
            for zone in &self.zones {
                zone.depot.raw().unlock();
            }
            self.types.raw().unlock();
        }
    }

    /// Checks everything that can be checked from outside the sections; the caller sees to it that nothing moves meanwhile.
    pub fn validate(&self) -> Result<(), &'static str> {
        for zone in &self.zones {
            zone.keg.lock().validate()?;
        }
        self.pages.lock().validate()
    }

    /// Pages by use.
    pub fn page_counts(&self) -> crate::page::PageCounts {
        self.pages.lock().counts()
    }

    /// The heap in a few sums.
    pub fn account(&self) -> Account {
        let header = self.stats().header();
        let types = header.types.used.load(Ordering::Relaxed) as usize;
        let slots = header.type_lines.used.load(Ordering::Relaxed) as usize;
        let mut in_use_bytes = 0;
        for index in 0..types {
            // SAFETY: a row has a line per type.
            let lines = (0..slots).map(|slot| unsafe { &*self.stats().type_lines(slot).add(index) });
            in_use_bytes += abi::TypeTotals::read(lines).bytes_in_use() as usize;
        }
        let page = |count: &AtomicU64| (count.load(Ordering::Relaxed) as usize) << P::PAGE_SHIFT;
        Account {
            heap_bytes: self.heap_bytes.load(Ordering::Relaxed),
            in_use_bytes,
            large_bytes: page(&header.pages_large),
            dirty_bytes: page(&header.pages_free_dirty),
            free_items: (0..SLAB_CLASSES)
                .map(|class| self.stats().zone(class).slab_free.load(Ordering::Relaxed) as usize)
                .sum(),
        }
    }

    /// Alignment that every block of this size has without asking for it, bytes.
    #[must_use]
    pub const fn natural_align(bytes: usize) -> usize {
        if bytes > SLAB_MAX_BYTES { Self::PAGE } else { class_align(class_of(bytes)) }
    }
}

/// Blocks from this size on are moved by the platform rather than copied, bytes.
const MOVE_MIN_BYTES: usize = 512 * 1024;

static LAYOUTS: [crate::class::SlabLayout; SLAB_CLASSES] = {
    let mut out = [slab_layout(0); SLAB_CLASSES];
    let mut class = 0;
    while class < SLAB_CLASSES {
        out[class] = slab_layout(class);
        class += 1;
    }
    out
};

fn slab_layout_of(class: usize) -> &'static crate::class::SlabLayout {
    &LAYOUTS[class]
}

/// The second bucket becomes the first.
fn swap_buckets(cache: &mut CpuCache) {
    core::mem::swap(&mut cache.alloc_items, &mut cache.free_items);
    core::mem::swap(&mut cache.alloc_count, &mut cache.free_count);
    core::mem::swap(&mut cache.capacity, &mut cache.free_capacity);
}

/// Puts a bucket with items into a cache that the caller holds, where there is room for it. Returns the bucket it
/// displaces, or the bucket itself when others have filled the cache meanwhile: no lock is taken inside a section.
fn install_full(cache: &mut CpuCache, bucket: BucketPtr) -> Option<BucketPtr> {
    let (count, capacity) = (bucket.count() as u32, bucket.capacity() as u32);
    let items = if cache.alloc_count == 0 {
        (cache.alloc_count, cache.capacity) = (count, capacity);
        core::mem::replace(&mut cache.alloc_items, bucket.into_items())
    } else if cache.free_count == 0 {
        (cache.free_count, cache.free_capacity) = (count, capacity);
        core::mem::replace(&mut cache.free_items, bucket.into_items())
    } else {
        return Some(bucket);
    };
    // SAFETY: a cache's items came from `into_items`; the cache does not know them any more.
    let mut old = unsafe { BucketPtr::from_items(items) }?;
    old.set_count(0);
    Some(old)
}
