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

mod alloc;
mod depot;
mod free;
mod large;
mod outside;
mod reclaim;
mod resize;
mod shortage;
mod special;
mod subzone;
mod supply;

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

use abi::{AtomicU64, Ordering, page};
use platform::{Lock, Platform, SlotTable};

use self::depot::ClassDepot;
use crate::bucket::BucketPool;
use crate::class::{CLASSES, Place, SLAB_CLASSES, SLAB_MAX_BYTES, class_align, class_of};
use crate::meta::Meta;
use crate::page::Pages;
use crate::slab::{ClassInfo, Keg, TAG_FREE, TAG_NEVER};
use crate::slot::{SLOT_STRIDE_BYTES, Slot};
use crate::stats::{Stats, TypeId};
use crate::zone::Registry;
use outside::Outside;
use shortage::Shortage;
use subzone::Subzones;

pub use outside::OutsideBlocks;
pub use subzone::NUMZONES_MAX;

pub(crate) use subzone::DomainRequest;

/// Largest request, bytes (`PTRDIFF_MAX` as in C; N1.146: a size near the end of the range fails and never wraps).
pub const MAX_REQUEST_BYTES: usize = isize::MAX as usize - (1 << 21);

/// A bucket of a class starts with so many items and doubles at each miss, so that a small program caches little.
const BUCKET_FIRST: usize = 7;

/// A zone of malloc: depot, keg, and how large its buckets are now.
struct ClassZone<P: Platform> {
    depot: Lock<P::Lock, ClassDepot>,
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
    /// Whether it is a run of pages of its own, rather than an item of a slab.
    pub is_run: bool,
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
    /// The words of its pages.
    words: AtomicUsize,
    stats: UnsafeCell<Stats>,
    // Grows only; published after the words of the new pages are accessible.
    heap_pages: AtomicUsize,
    booted: AtomicBool,

    slots: UnsafeCell<SlotTable>,
    zones: [ClassZone<P>; CLASSES],
    pub(crate) pool: Lock<P::Lock, BucketPool>,
    pages: Lock<P::Lock, Pages<P>>,
    pub(crate) meta: Lock<P::Lock, Meta<P>>,
    types: Lock<P::Lock, usize>,
    /// Types whose module was unloaded and that nobody goes on with.
    gone_types: AtomicU32,
    last_purge_ns: AtomicU64,
    retaken_since_ns: AtomicU64,
    /// When the depots were last looked at, and slow paths that came by since.
    depots_seen_ns: AtomicU64,
    depot_turns: AtomicU32,
    outside: Outside,
    subzones: Subzones,
    /// Zones made at run time.
    pub(crate) registry: Registry<P>,
    /// Requests asleep on the limit of their type.
    limit_sleepers: AtomicU32,
    /// Whether the last freeze has the slots: under the lock of the types.
    has_slots: AtomicBool,
    pub(crate) shortage: Shortage,
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
                depot: Lock::new(ClassDepot::new()),
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
            words: AtomicUsize::new(0),
            // SAFETY: never used before `boot` replaces it: a type is needed to count and there is none.
            stats: UnsafeCell::new(unsafe { Stats::new(NonNull::dangling(), P::wake_all) }),
            heap_pages: AtomicUsize::new(0),
            booted: AtomicBool::new(false),
            slots: UnsafeCell::new(SlotTable { base: 0, stride_bytes: SLOT_STRIDE_BYTES, ids: 0, rows: 0 }),
            zones,
            pool: Lock::new(BucketPool::new()),
            pages: Lock::new(Pages::new()),
            meta: Lock::new(Meta::new()),
            types: Lock::new(TypeId::BUILT_IN),
            gone_types: AtomicU32::new(0),
            last_purge_ns: AtomicU64::new(0),
            retaken_since_ns: AtomicU64::new(0),
            depots_seen_ns: AtomicU64::new(0),
            depot_turns: AtomicU32::new(0),
            outside: Outside::new(),
            subzones: Subzones::new(),
            registry: Registry::new(),
            limit_sleepers: AtomicU32::new(0),
            has_slots: AtomicBool::new(false),
            shortage: Shortage::new(),
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
            *self.stats.get() = Stats::new(boot.stats, P::wake_all);
            self.stats().boot();
        }
        let mut table = SlotTable { base: 0, stride_bytes: SLOT_STRIDE_BYTES, ids: boot.ids, rows: boot.rows };
        let Some(memory) = self.meta.lock().alloc(table.count() * SLOT_STRIDE_BYTES) else { return false };
        table.base = memory.as_ptr() as usize;
        // SAFETY: 1.
        unsafe { *self.slots.get() = table };
        self.heap_base.store(boot.heap_base, Ordering::Relaxed);
        self.words.store(boot.table, Ordering::Relaxed);
        self.pages.lock().boot(boot.heap_base, boot.table as *const AtomicU64);
        let header = self.stats().header();
        header.caches_base.store(table.base as u64, Ordering::Relaxed);
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

    #[inline(always)]
    pub(crate) fn slot_table(&self) -> &SlotTable {
        // SAFETY: written once, in `boot`.
        unsafe { &*self.slots.get() }
    }

    /// A slot for the caller, by whichever way there is. Null only before boot.
    pub(crate) fn enter(&self) -> *mut Slot {
        let mut slot = P::enter() as *mut Slot;
        if slot.is_null() {
            slot = P::enter_other() as *mut Slot;
        }
        if slot.is_null() {
            if !self.is_booted() {
                return slot;
            }
            let table = self.slot_table();
            slot = table.slot(table.count() - 1) as *mut Slot;
            // SAFETY: 1. it is the last.
            unsafe { P::claim_shared(slot as usize) };
        }
        // SAFETY: 1. just taken.
        unsafe { self.prepare_slot(slot) };
        slot
    }

    /// A slot gets its lines from its first holder, so that slots never used cost no memory.
    ///
    /// # Safety
    /// 1. The caller holds `slot`.
    unsafe fn prepare_slot(&self, slot: *mut Slot) {
        // SAFETY: 1.
        unsafe {
            if (*slot).row.is_none() {
                let table = self.slot_table();
                let index = (slot as usize - table.base) / table.stride_bytes;
                (*slot).index = index as u32;
                (*slot).row = self.stats().row(index);
                self.stats().count_slot(index);
                if self.limit_sleepers.load(Ordering::Relaxed) != 0 {
                    self.stats().arm_all((*slot).row);
                }
            }
        }
    }

    /// # Safety
    /// 1. `slot` is held by the caller.
    #[inline(always)]
    pub(crate) unsafe fn leave(slot: *mut Slot) {
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

    /// The word of an address inside the heap.
    pub(crate) fn word(&self, addr: usize) -> u64 {
        // SAFETY: every caller has found the address inside the heap, whose words are accessible.
        unsafe { (*self.word_ptr(addr)).load(Ordering::Relaxed) }
    }

    pub(crate) fn word_ptr(&self, addr: usize) -> *const AtomicU64 {
        let page = (addr - self.heap_base.load(Ordering::Relaxed)) >> P::PAGE_SHIFT;
        (self.words.load(Ordering::Relaxed) as *const AtomicU64).wrapping_add(page)
    }

    /// The word of any address; `None` outside the heap.
    #[inline(always)]
    pub(crate) fn word_of_any(&self, addr: usize) -> Option<u64> {
        let page = addr.wrapping_sub(self.heap_base.load(Ordering::Relaxed)) >> P::PAGE_SHIFT;
        if page >= self.heap_pages.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: the heap's pages have accessible words.
        Some(unsafe { (*(self.words.load(Ordering::Relaxed) as *const AtomicU64).add(page)).load(Ordering::Relaxed) })
    }

    /// The block that contains an address, live or free; `None` for addresses that are no block's.
    #[must_use]
    pub fn lookup(&self, addr: usize) -> Option<BlockInfo> {
        let base = self.heap_base.load(Ordering::Relaxed);
        let word = self.word_of_any(addr)?;
        match page::kind(word) {
            page::SLAB => {
                let info = ClassInfo::of_word(word);
                let (_, rest) = info.item_around(addr)?;
                // The item may have started in another group.
                let word = self.word(addr - rest);
                // SAFETY: the word named a live slab of this class, and an item starts there.
                let tag = unsafe { *(page::tag(word, addr - rest) as *const u16) };
                let never = tag == TAG_NEVER;
                (!never).then(|| BlockInfo {
                    addr: addr - rest,
                    bytes: info.bytes as usize,
                    type_id: TypeId::from_tag(tag),
                    live: tag & TAG_FREE == 0,
                    is_run: false,
                })
            }
            page::LARGE | page::CACHED_RUN | page::LARGE_TAIL | page::SPECIAL_RUN => {
                let mut first = addr & !(Self::PAGE - 1);
                let mut word = word;
                while page::kind(word) == page::LARGE_TAIL && first > base {
                    first -= Self::PAGE;
                    word = self.word(first);
                }
                let live = matches!(page::kind(word), page::LARGE | page::SPECIAL_RUN);
                (live || page::kind(word) == page::CACHED_RUN).then(|| BlockInfo {
                    addr: first,
                    bytes: page::any_run_pages(word) << P::PAGE_SHIFT,
                    type_id: TypeId::from_tag(page::run_tag(word)),
                    live,
                    is_run: true,
                })
            }
            page::ZONE_SLAB => self.lookup_any_sub(addr),
            _ => None,
        }
    }

    /// The live block that starts at an address: [`lookup`](Self::lookup) for those who expect one.
    #[inline]
    pub(crate) fn live_block(&self, addr: usize) -> Option<BlockInfo> {
        let word = self.word_of_any(addr)?;
        // SAFETY: 1. it is a page's word's.
        let info = unsafe { ClassInfo::at(Place::of_word(word)) };
        if info.may_start_item(addr) {
            // SAFETY: the word named a live slab of this class, whose tags say where live items start.
            let tag = unsafe { *(page::tag(word, addr) as *const u16) };
            let (bytes, type_id) = (info.bytes as usize, TypeId::from_tag(tag));
            return (tag & TAG_FREE == 0).then_some(BlockInfo { addr, bytes, type_id, live: true, is_run: false });
        }
        let live = matches!(page::kind(word), page::LARGE | page::SPECIAL_RUN) && addr.is_multiple_of(Self::PAGE);
        let (bytes, type_id) = (page::any_run_pages(word) << P::PAGE_SHIFT, TypeId::from_tag(page::run_tag(word)));
        live.then_some(BlockInfo { addr, bytes, type_id, live: true, is_run: true })
    }

    /// Bytes of a live block that its owner may use; 0 for anything else. malloc_usable_size(9).
    #[doc(alias = "malloc_usable_size")]
    #[must_use]
    pub fn usable_bytes(&self, block: *const u8) -> usize {
        match self.live_block(block as usize) {
            Some(info) => info.bytes,
            None if self.in_heap(block as usize) => {
                // Of a zone beside the classes' own, or nothing.
                let live = |info: &BlockInfo| info.live && info.addr == block as usize && !info.is_run;
                self.lookup_sub(block as usize).filter(live).map_or(0, |info| info.bytes)
            }
            None => self.usable_outside(block as usize),
        }
    }

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

    /// The type of this name whose module was unloaded, for the next of that name to go on with.
    pub(crate) fn revive_type(&self, name: &[u8]) -> Option<TypeId> {
        let _types = self.types.lock();
        // So as not to look through all call sites of a program whenever it registers a type.
        if self.gone_types.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let used = self.stats().header().types.used.load(Ordering::Acquire) as usize;
        let name = &name[..name.len().min(31)];
        (0..used).filter_map(TypeId::new).find(|&id| {
            let record = self.type_record(id);
            let gone = record.kind == abi::type_kind::STATIC
                && record.flags.load(Ordering::Relaxed) & abi::type_flag::GONE != 0
                && abi::c_text(&record.name) == name;
            if gone {
                self.gone_types.fetch_sub(1, Ordering::Relaxed);
                record.flags.fetch_and(!abi::type_flag::GONE, Ordering::AcqRel);
            }
            gone
        })
    }

    /// The type's module is unloaded; its record stays, for what leaked and for the next of that name.
    pub(crate) fn retire_type(&self, id: TypeId) {
        let _types = self.types.lock();
        self.type_record(id).flags.fetch_or(abi::type_flag::GONE, Ordering::AcqRel);
        self.gone_types.fetch_add(1, Ordering::Relaxed);
    }

    /// A request of the type failed before it came here. Counted.
    pub(crate) fn fail_request(&self, id: TypeId) {
        self.fail(id);
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
                if (*slot).row.is_none() || !P::claim_remote(slot as usize) {
                    continue;
                }
                for class in 0..CLASSES {
                    self.publish_zone(&*slot, class);
                }
                Self::leave(slot);
            }
        }
    }

    /// Checks everything that can be checked from outside the sections; the caller sees to it that nothing moves meanwhile.
    pub fn validate(&self) -> Result<(), &'static str> {
        for zone in &self.zones {
            zone.keg.lock().validate()?;
        }
        self.validate_zones()?;
        self.pages.lock().validate()
    }

    /// The pages, past their lock: for whoever has stopped everything else.
    pub(crate) fn page_arena(&self) -> *const Pages<P> {
        self.pages.as_ptr()
    }

    /// Every lock with its name, for a port that shows who waits for which.
    pub fn locks(&self) -> impl Iterator<Item = (&'static str, &P::Lock)> {
        let zones = self.zones.iter().flat_map(|zone| [("depot", zone.depot.raw()), ("keg", zone.keg.raw())]);
        let rest = [
            ("buckets", self.pool.raw()),
            ("pages", self.pages.raw()),
            ("records", self.meta.raw()),
            ("types", self.types.raw()),
        ];
        zones.chain(rest).chain(self.zone_locks())
    }

    /// Bytes from the start of the heap to its end so far.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.heap_pages.load(Ordering::Relaxed) << P::PAGE_SHIFT
    }

    /// Pages by use.
    pub fn page_counts(&self) -> crate::page::PageCounts {
        self.pages.lock().counts()
    }

    /// A type's counters, summed over the slots.
    #[must_use]
    pub fn totals(&self, id: TypeId) -> abi::TypeTotals {
        if !self.is_booted() {
            return abi::TypeTotals::default();
        }
        self.stats().totals(id)
    }

    /// The counters of a type that nobody uses now: exact, whatever others do. A free that waits in a slot's row moves to its line when the
    /// next one of any type comes, and who sums just then misses it; so every row is settled first, in its section. Takes each slot once.
    pub(crate) fn totals_at_rest(&self, id: TypeId) -> abi::TypeTotals {
        for index in 0..self.slot_table().count() {
            let slot = self.slot_table().slot(index) as *mut Slot;
            // SAFETY: 1. one of the table; held after `true`.
            unsafe {
                if P::claim_remote(slot as usize) {
                    if !(*slot).row.is_none() {
                        (*slot).row.settle();
                    }
                    Self::leave(slot);
                }
            }
        }
        self.totals(id)
    }

    /// The heap in a few sums.
    pub fn account(&self) -> Account {
        let header = self.stats().header();
        let types = header.types.used.load(Ordering::Relaxed) as usize;
        let in_use_bytes = (0..types).filter_map(TypeId::new).map(|id| self.totals(id).bytes_in_use() as usize).sum();
        let page = |count: &AtomicU64| (count.load(Ordering::Relaxed) as usize) << P::PAGE_SHIFT;
        Account {
            heap_bytes: self.heap_pages.load(Ordering::Relaxed) << P::PAGE_SHIFT,
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
