//! The statistics object as its writer sees it: where the records are, new types, and the high-water mark.
//!
//! # High water
//!
//! A type's bytes in use are spread over the slots, so its greatest value is nobody's to see. Each line has a peak: the greatest
//! difference it had since it last *compared*. A line is at its greatest either now or just before a free, so only
//! frees look. The sum of all lines' peaks is never below the true maximum. A slot compares, that is folds that sum into
//! the record and forgets its peak, at a free that finds its line more than [`COMPARE_BYTES`] below its peak. With one slot active
//! (a single thread has one) the mark is exact, also when all slots rise together and then fall; otherwise it may exceed the
//! truth by `COMPARE_BYTES` and a block for each further slot: a line may be that far below its peak without comparing,
//! while another is at its own.

use core::ptr::NonNull;

use abi::{
    AtomicU32, AtomicU64, FreeSize, Header, LibRecord, NO_LIB, Ordering, PEAK_ARMED, Row, Section, SlotLine, TypeLine,
    TypeRecord, TypeTotals, ZoneLine, ZoneRecord,
};

use crate::class::CLASSES;
use crate::slab::ClassInfo;

/// Zones that have a record and lines in the object: those of the size classes, then those made at run time. A zone beyond
/// them works and is not shown.
pub(crate) const ZONES: usize = 512;

/// How far a slot's share of a type falls before the slot compares, bytes.
pub const COMPARE_BYTES: u64 = 32 * 1024;

/// A malloc type: the index of its record and of its lines. The upper bit is the tag's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct TypeId(u32);

impl TypeId {
    /// What is credited to nobody: attribution is off.
    pub const MALLOC: Self = Self(0);
    /// What is credited to call sites beyond the table.
    pub const OVERFLOW: Self = Self(1);
    /// Types that exist from the start.
    pub const BUILT_IN: usize = 2;
    /// Most types there can be: an item's tag has 15 bits for them, and the greatest value says that there is none.
    pub const MAX: usize = (1 << 15) - 1;

    /// The type with this index.
    ///
    /// `None` when it is out of range.
    #[must_use]
    pub const fn new(index: usize) -> Option<Self> {
        if index < Self::MAX { Some(Self(index as u32)) } else { None }
    }

    /// From an item's tag, free or not.
    #[inline(always)]
    #[must_use]
    pub const fn from_tag(tag: u16) -> Self {
        Self((tag & !crate::slab::TAG_FREE) as u32)
    }

    /// Index of the record.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The tag of a live item.
    #[inline(always)]
    pub(crate) const fn tag(self) -> u16 {
        self.0 as u16
    }
}

/// Where everything is in a statistics object of these dimensions.
#[derive(Clone, Copy, Debug)]
pub struct ObjectLayout {
    /// Slots, the shared one included.
    pub slots: usize,
    /// Records of types (and lines per slot).
    pub types: usize,
    /// Records of libraries.
    pub libs: usize,
}

impl ObjectLayout {
    const fn offsets(&self) -> [u64; 6] {
        let mut at = [abi::HEADER_BYTES; 6];
        at[1] = at[0] + (self.libs * size_of::<LibRecord>()) as u64;
        at[2] = Self::page(at[1]) + (self.types * size_of::<TypeRecord>()) as u64;
        at[3] = Self::page(at[2]) + (ZONES * size_of::<ZoneRecord>()) as u64;
        at[4] = Self::page(at[3]) + (self.slots * ZONES * size_of::<ZoneLine>()) as u64;
        at[5] = Self::page(at[4]) + (self.slots * self.row_bytes()) as u64;
        let mut section = 1;
        while section < 6 {
            at[section] = Self::page(at[section]);
            section += 1;
        }
        at
    }

    const fn row_bytes(&self) -> usize {
        size_of::<SlotLine>() + self.types * size_of::<TypeLine>()
    }

    const fn page(offset: u64) -> u64 {
        offset.next_multiple_of(4096)
    }

    /// Bytes of the whole object; sparse.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.offsets()[5] as usize
    }

    /// Writes the sections of a header; the rest of it, and the magic at the end, are the caller's.
    pub fn write_sections(&self, header: &mut Header) {
        let at = self.offsets();
        let section = |offset: u64, stride: usize, capacity: usize| Section {
            offset,
            stride: stride as u64,
            capacity: capacity as u64,
            used: AtomicU64::new(0),
        };
        header.libs = section(at[0], size_of::<LibRecord>(), self.libs);
        header.types = section(at[1], size_of::<TypeRecord>(), self.types);
        header.zones = section(at[2], size_of::<ZoneRecord>(), ZONES);
        header.zone_lines = section(at[3], ZONES * size_of::<ZoneLine>(), self.slots);
        header.type_lines = section(at[4], self.row_bytes(), self.slots);
        header.total_bytes = self.bytes() as u64;
        header.version = abi::VERSION;
    }
}

/// The writer's view.
#[derive(Clone, Copy)]
pub(crate) struct Stats {
    base: NonNull<u8>,
    /// The platform's `wake_all`.
    wake_all: fn(&AtomicU32),
}

// SAFETY: the object is shared memory of atomics; records are written before they are counted, by the holder of the
// type lock.
unsafe impl Send for Stats {}
// SAFETY: as above.
unsafe impl Sync for Stats {}

impl Stats {
    /// # Safety
    /// 1. `base` is a statistics object whose sections were written by [`ObjectLayout`], mapped for good.
    pub(crate) const unsafe fn new(base: NonNull<u8>, wake_all: fn(&AtomicU32)) -> Self {
        Self { base, wake_all }
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: 1. of `new`; what changes in it are atomics.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// Record `index` of a section.
    fn record<T>(&self, section: &Section, index: usize) -> *mut T {
        debug_assert!((index as u64) < section.capacity);
        self.base.as_ptr().wrapping_add((section.offset + section.stride * index as u64) as usize).cast::<T>()
    }

    pub(crate) fn types(&self) -> usize {
        self.header().types.capacity as usize
    }

    pub(crate) fn type_record(&self, id: TypeId) -> &TypeRecord {
        // SAFETY: inside the section; a type's record is written before its id is given out.
        unsafe { &*self.record::<TypeRecord>(&self.header().types, id.index()) }
    }

    pub(crate) fn type_record_ptr(&self, index: usize) -> *mut TypeRecord {
        self.record(&self.header().types, index)
    }

    pub(crate) fn lib_record_ptr(&self, index: usize) -> *mut LibRecord {
        self.record(&self.header().libs, index)
    }

    pub(crate) fn zone(&self, class: usize) -> &ZoneRecord {
        // SAFETY: inside the section; zeros are a valid record.
        unsafe { &*self.record::<ZoneRecord>(&self.header().zones, class) }
    }

    pub(crate) fn zone_ptr(&self, class: usize) -> *mut ZoneRecord {
        self.record(&self.header().zones, class)
    }

    pub(crate) fn zone_line(&self, slot: usize, class: usize) -> &ZoneLine {
        let row: *mut ZoneLine = self.record(&self.header().zone_lines, slot);
        // SAFETY: a row has a line per class; zeros are a valid line.
        unsafe { &*row.add(class) }
    }

    /// The row of one slot.
    pub(crate) fn row(&self, slot: usize) -> Row<'static> {
        // SAFETY: 1. inside the section; the object stays mapped. Zeros are a valid row.
        unsafe { Row::new(self.record::<SlotLine>(&self.header().type_lines, slot)) }
    }

    /// A type's counters, summed over the slots that were ever used.
    pub(crate) fn totals(&self, id: TypeId) -> TypeTotals {
        let slots = || self.header().type_lines.used.load(Ordering::Acquire) as usize;
        // SAFETY: 1. a row has a line for every type there can be.
        TypeTotals::read(|| (0..slots()).map(|slot| unsafe { self.row(slot).view(id.index()) }))
    }

    /// The slot's lines are in use from now on.
    pub(crate) fn count_slot(&self, slot: usize) {
        self.header().type_lines.used.fetch_max(slot as u64 + 1, Ordering::Release);
    }

    /// Folds the sum of all peaks into the type's mark, and forgets the peak of the slot's own line.
    ///
    /// Inside the section of the row's slot, after a free of `served` bytes that is in the line already or, with 0, pending. While
    /// somebody sleeps on the type's limit, every free comes by here (see [`abi::PEAK_ARMED`]) and wakes them: the fast path
    /// has no branch of its own for sleepers. None is missed, because a sleeper counts itself first and then arms each
    /// slot's line *holding the slot*: a free before that is in the sum that the sleeper looks at afterwards, one
    /// after it finds the line armed.
    #[cold]
    #[inline(never)]
    pub(crate) fn compare(&self, id: TypeId, row: Row<'_>, served: u64) {
        if self.fold(id, row, served) {
            self.wake_limit(id);
        }
    }

    /// [`compare`](Self::compare) without waking. Whether somebody sleeps; then the line is armed.
    ///
    /// Inside the section of the row's slot.
    pub(crate) fn fold(&self, id: TypeId, row: Row<'_>, served: u64) -> bool {
        let served = served + row.pending_bytes(id.index());
        row.settle();
        // SAFETY: 1. a row has a line for every type there can be.
        let own = unsafe { row.line(id.index()) };
        if own.peak_bytes.load(Ordering::Relaxed) == PEAK_ARMED {
            // Armed since the last free, it has only risen until this one.
            own.peak_bytes.store((own.in_use() as u64).wrapping_add(served), Ordering::Relaxed);
        }
        let sum = self.totals(id).peak_bytes;
        let mark = &self.type_record(id).high_water_bytes;
        if sum > 0 && sum as u64 > mark.load(Ordering::Relaxed) {
            mark.fetch_max(sum as u64, Ordering::Relaxed);
        }
        let asleep = self.type_record(id).limit_sleepers.load(Ordering::Relaxed) != 0;
        own.peak_bytes.store(if asleep { PEAK_ARMED } else { own.in_use() as u64 }, Ordering::Relaxed);
        asleep
    }

    /// Whoever sleeps on the type's limit looks again. Allowed inside a section.
    pub(crate) fn wake_limit(&self, id: TypeId) {
        let word = &self.type_record(id).limit_wakeups;
        word.fetch_add(1, Ordering::Release);
        (self.wake_all)(word);
    }

    /// Counts one block out, in the section of the row's slot.
    #[inline(always)]
    pub(crate) fn count_alloc(row: Row<'_>, id: TypeId, served: usize, requested: usize, size_mask: u64) {
        // SAFETY: 1. as above.
        unsafe { row.line(id.index()) }.count_alloc(served as u64, requested as u64, size_mask);
    }

    /// Counts one block of a slab class back, in the section of the row's slot. True when the caller must [`look`](Self::look) at the line
    /// before it leaves.
    #[inline(always)]
    pub(crate) fn count_free(row: Row<'_>, id: TypeId, size: FreeSize) -> bool {
        // SAFETY: 1. as above.
        unsafe { row.count_free(id.index(), size, COMPARE_BYTES) }
    }

    /// What [`count_free`](Self::count_free) left: a new peak, or a line that has fallen so far that it must
    /// [`compare`](Self::compare).
    pub(crate) fn look(&self, id: TypeId, row: Row<'_>) {
        // SAFETY: 1. as above.
        if unsafe { row.line(id.index()) }.note_peak() {
            self.compare(id, row, 0);
        }
    }

    /// The whole of a count, for a block of any size and those who are in no hurry.
    pub(crate) fn count_free_slow(&self, id: TypeId, row: Row<'_>, served: usize) {
        // SAFETY: 1. as above.
        if unsafe { row.count_free_now(id.index(), served as u64, COMPARE_BYTES) } {
            self.compare(id, row, served as u64);
        }
    }

    /// Arms the lines of every type that has sleepers, in a slot that gets its row just now.
    ///
    /// Inside the section of the row's slot.
    #[cold]
    pub(crate) fn arm_all(&self, row: Row<'_>) {
        let types = self.header().types.used.load(Ordering::Acquire) as usize;
        for id in (0..types).filter_map(TypeId::new) {
            if self.type_record(id).limit_sleepers.load(Ordering::Relaxed) != 0 {
                self.fold(id, row, 0);
            }
        }
    }

    /// Writes the record of a built-in or static type.
    ///
    /// # Safety
    /// 1. The caller holds the type lock and `index` is not given out yet.
    pub(crate) unsafe fn write_type(&self, index: usize, kind: u32, lib: u32, offset: u64, name: &[u8]) {
        let record = self.type_record_ptr(index);
        // SAFETY: inside the section; nobody else looks at a record that is not counted (1.).
        unsafe {
            (*record).kind = kind;
            (*record).lib = lib;
            (*record).offset = offset;
            let len = name.len().min(31);
            (&mut (*record).name)[..len].copy_from_slice(&name[..len]);
        }
    }

    /// Built-in types and the zones' constant fields.
    ///
    /// # Safety
    /// 1. Called once, before any other use.
    pub(crate) unsafe fn boot(&self) {
        // SAFETY: 1.
        unsafe {
            self.write_type(TypeId::MALLOC.index(), abi::type_kind::STATIC, NO_LIB, 0, b"malloc");
            self.write_type(TypeId::OVERFLOW.index(), abi::type_kind::OVERFLOW, NO_LIB, 0, b"(more call sites)");
        }
        self.header().types.used.store(TypeId::BUILT_IN as u64, Ordering::Release);
        let control = &self.header().control;
        control.dirty_keep_pages.store(abi::DIRTY_KEEP_PAGES, Ordering::Relaxed);
        control.bucket_size_max.store(abi::BUCKET_SIZE_MAX, Ordering::Relaxed);
        control.numzones.store(1, Ordering::Relaxed);
        for class in 0..CLASSES {
            let record = self.zone_ptr(class);
            let bytes = crate::class::class_bytes(class) as u32;
            // SAFETY: inside the section; 1.
            unsafe {
                (*record).item_bytes = bytes;
                (*record).size_bit = crate::slab::size_mask(class).trailing_zeros();
                if class < crate::class::SLAB_CLASSES {
                    let info = ClassInfo::of(class);
                    (*record).slab_bytes = info.slab_bytes();
                    (*record).items_per_slab = info.items;
                    (*record).header_bytes = info.first_offset;
                    let offpage = if info.first_offset == 0 { abi::zone_flag::OFFPAGE } else { 0 };
                    (*record).flags = abi::zone_flag::MALLOC | offpage;
                } else {
                    (*record).slab_bytes = bytes;
                    (*record).items_per_slab = 1;
                    (*record).flags = abi::zone_flag::MALLOC | abi::zone_flag::RUN;
                }
                let mut name = crate::text::Text::<32>::new();
                name.push(b"malloc-");
                name.push_number(u64::from(bytes));
                (&mut (*record).name)[..name.as_bytes().len()].copy_from_slice(name.as_bytes());
            }
        }
        self.header().zones.used.store(CLASSES as u64, Ordering::Release);
    }
}
