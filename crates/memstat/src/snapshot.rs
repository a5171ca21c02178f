//! The figures of one moment, as ordinary values.

use std::path::PathBuf;

use abi::TypeTotals;

/// Everything an object says at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Who.
    pub program: Program,
    /// The heap's ranges and pages.
    pub heap: Heap,
    /// Libraries, by index.
    pub libs: Vec<Library>,
    /// Malloc types (call sites), by index.
    pub types: Vec<MallocType>,
    /// Zones, by index.
    pub zones: Vec<Zone>,
    /// Were the zones' per-CPU caches read from the live program? Else their figures are as of each slot's last
    /// exchange of a bucket.
    pub zones_live: bool,
}

/// How blocks are credited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attribution {
    /// All to one type.
    Off,
    /// To the library that called.
    Library,
    /// To the call site.
    #[default]
    Site,
}

/// The program that wrote the object.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Process id in the program's own pid namespace.
    pub pid: u32,
    /// The parent's.
    pub parent_pid: u32,
    /// How many images ran under this pid before (exec).
    pub generation: u32,
    /// Path of the executable.
    pub exe: String,
    /// Did it go through its exit handlers?
    pub exited: bool,
    /// How blocks are credited.
    pub attribution: Attribution,
    /// Start, nanoseconds of `CLOCK_REALTIME`.
    pub start_realtime_ns: u64,
    /// Slots (CPUs) that were ever entered.
    pub slots: u64,
    /// Does the program bring a malloc of its own, so that ours serves nothing or little?
    pub foreign_malloc: bool,
    /// Text of the first misuse report.
    pub report: Option<String>,
    /// Frees reported as misuse.
    pub misuses: u64,
    /// Requests that failed for want of memory.
    pub failures: u64,
    /// Blocks credited to an overflow row.
    pub site_overflow: u64,
}

impl Program {
    /// Last component of the executable's path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.exe.rsplit('/').next().unwrap_or("")
    }
}

/// Ranges of the heap in the program, and its pages by use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heap {
    /// Bytes per page.
    pub page_bytes: u64,
    /// First address of the heap.
    pub base: u64,
    /// Bytes given to the arena.
    pub bytes: u64,
    /// Bytes it may grow to.
    pub max_bytes: u64,
    /// The table from page to slab.
    pub table_base: u64,
    /// Its bytes.
    pub table_bytes: u64,
    /// The allocator's records.
    pub meta_base: u64,
    /// Bytes mapped for them.
    pub meta_bytes: u64,
    /// Bytes of those handed out.
    pub meta_used_bytes: u64,
    /// The statistics object.
    pub stats_base: u64,
    /// Its size (sparse).
    pub stats_bytes: u64,
    /// Pages in slabs.
    pub pages_slab: u64,
    /// Pages in blocks above the largest class, cached runs included.
    pub pages_large: u64,
    /// Free pages possibly backed by memory.
    pub pages_free_dirty: u64,
    /// Free pages given back or never touched.
    pub pages_free_clean: u64,
    /// Free runs kept for reuse.
    pub pages_large_cached: u64,
    /// Address of the per-CPU caches.
    pub caches_base: u64,
    /// Bytes from slot to slot in them.
    pub cache_slot_stride: u64,
    /// Bytes from zone to zone in them.
    pub cache_zone_stride: u64,
}

/// A library or the main program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Library {
    /// As the loader mapped it.
    pub path: PathBuf,
    /// GNU build id; empty when it has none.
    pub build_id: Vec<u8>,
    /// Is it the main program?
    pub main: bool,
    /// Was it unmapped (dlclose)?
    pub unloaded: bool,
    /// Is it generated code, not a file?
    pub anonymous: bool,
    /// Address in the program minus address in the file.
    pub bias: u64,
}

impl Library {
    /// Last component of the path.
    #[must_use]
    pub fn name(&self) -> String {
        match self.path.file_name() {
            Some(name) => name.to_string_lossy().into_owned(),
            None if self.path.as_os_str().is_empty() => "(anonymous code)".to_owned(),
            None => self.path.to_string_lossy().into_owned(),
        }
    }
}

/// What a type stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TypeKind {
    /// Defined by the program, with a name.
    Static,
    /// A call site.
    #[default]
    Site,
    /// A library's allocations after the table of call sites was full.
    LibraryOverflow,
    /// Allocations of libraries after the table of libraries was full.
    Overflow,
    /// All that a library allocated (attribution by library).
    Library,
    /// A kind this reader does not know.
    Other(u32),
}

/// A malloc type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MallocType {
    /// What it stands for.
    pub kind: TypeKind,
    /// Index of its library.
    pub lib: Option<usize>,
    /// Return address of the call, in the library's own addresses.
    pub offset: u64,
    /// Name of a static type.
    pub name: String,
    /// Its counters.
    pub totals: TypeTotals,
    /// Most bytes in use at one time.
    pub high_water_bytes: u64,
    /// Failed requests.
    pub failures: u64,
    /// Limit, 0 for none.
    pub limit_bytes: u64,
    /// Requests that slept on the limit.
    pub limit_blocks: u64,
    /// Requests that slept for memory.
    pub map_blocks: u64,
    /// Whether the module that defined the type was unloaded.
    pub gone: bool,
}

/// Sum of the types of one library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibraryTotals {
    /// Index of the library; `None` for types without one.
    pub lib: Option<usize>,
    /// What the types without a library stand for (a static type's name, or the overflow row).
    pub without_lib: Option<usize>,
    /// Sum of the counters.
    pub totals: TypeTotals,
    /// Sum of the types' high-water marks: no less than the library's own, since the types need not peak together.
    pub high_water_bytes: u64,
    /// Failed requests.
    pub failures: u64,
    /// Sum of the limits.
    pub limit_bytes: u64,
    /// Requests that slept on a limit.
    pub limit_blocks: u64,
    /// Requests that slept for memory.
    pub map_blocks: u64,
    /// How many types were summed.
    pub types: usize,
}

impl LibraryTotals {
    /// Adds a type's figures.
    pub fn add(&mut self, ty: &MallocType) {
        let (sum, t) = (&mut self.totals, &ty.totals);
        sum.allocs = sum.allocs.wrapping_add(t.allocs);
        sum.frees = sum.frees.wrapping_add(t.frees);
        sum.bytes_allocated = sum.bytes_allocated.wrapping_add(t.bytes_allocated);
        sum.bytes_freed = sum.bytes_freed.wrapping_add(t.bytes_freed);
        sum.bytes_requested = sum.bytes_requested.wrapping_add(t.bytes_requested);
        sum.size_mask |= t.size_mask;
        sum.peak_bytes = sum.peak_bytes.wrapping_add(t.peak_bytes);
        self.high_water_bytes = self.high_water_bytes.saturating_add(ty.high_water_bytes);
        self.failures = self.failures.saturating_add(ty.failures);
        self.limit_bytes = self.limit_bytes.saturating_add(ty.limit_bytes);
        self.limit_blocks = self.limit_blocks.saturating_add(ty.limit_blocks);
        self.map_blocks = self.map_blocks.saturating_add(ty.map_blocks);
        self.types += 1;
    }
}

impl Snapshot {
    /// Sums the types by library, in the order of the libraries; types without one follow, each alone.
    #[must_use]
    pub fn by_library(&self) -> Vec<LibraryTotals> {
        let mut libs: Vec<LibraryTotals> = Vec::new();
        libs.resize_with(self.libs.len(), LibraryTotals::default);
        let mut rest = Vec::new();
        for (index, ty) in self.types.iter().enumerate() {
            match ty.lib.and_then(|lib| libs.get_mut(lib)) {
                Some(sum) => sum.add(ty),
                None => {
                    let mut alone = LibraryTotals { without_lib: Some(index), ..LibraryTotals::default() };
                    alone.add(ty);
                    rest.push(alone);
                }
            }
        }
        for (lib, sum) in libs.iter_mut().enumerate() {
            sum.lib = Some(lib);
        }
        libs.into_iter().filter(|sum| sum.types > 0).chain(rest).collect()
    }

    /// Bytes in use by all types.
    #[must_use]
    pub fn bytes_in_use(&self) -> u64 {
        self.types.iter().fold(0, |sum, ty| sum.wrapping_add(ty.totals.bytes_in_use()))
    }

    /// Blocks in use of all types.
    #[must_use]
    pub fn blocks_in_use(&self) -> u64 {
        self.types.iter().fold(0, |sum, ty| sum.wrapping_add(ty.totals.in_use()))
    }

    /// Requests of all types.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.types.iter().fold(0, |sum, ty| sum.wrapping_add(ty.totals.allocs))
    }
}

/// The sizes named by a mask of [`abi::TypeLine::size_mask`], ascending: classes, then doublings above the largest.
pub fn sizes(mask: u64) -> impl Iterator<Item = u64> {
    (0..64u32).filter(move |bit| mask & 1 << bit != 0).map(size_of_bit)
}

/// The size (for runs of pages: the most bytes) that a bit of [`abi::TypeLine::size_mask`] stands for.
#[must_use]
pub fn size_of_bit(bit: u32) -> u64 {
    match abi::SIZE_CLASSES.get(bit as usize) {
        Some(&bytes) => u64::from(bytes),
        None => 1 << (bit.min(63) - abi::LARGE_BIT + 17),
    }
}

/// A zone. Counts are items unless named otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Its name.
    pub name: String,
    /// Bits of [`abi::zone_flag`].
    pub flags: u32,
    /// Item size in bytes.
    pub item_bytes: u64,
    /// Slab size in bytes.
    pub slab_bytes: u64,
    /// Items in a slab.
    pub items_per_slab: u64,
    /// Bytes at the start of a slab that are not items.
    pub header_bytes: u64,
    /// Slabs.
    pub slabs: u64,
    /// Free items in slabs.
    pub slab_free: u64,
    /// Items in full buckets of the depots.
    pub depot: u64,
    /// Items in per-CPU caches, where they could be read.
    pub cached: Option<u64>,
    /// Most items, 0 for no limit.
    pub limit: u64,
    /// Failed allocations.
    pub fails: u64,
    /// Allocations that slept.
    pub sleeps: u64,
    /// Items freed in another domain.
    pub xdomain: u64,
    /// Items that the largest bucket holds now.
    pub bucket_size: u64,
    /// Most items in a bucket as set for this zone, 0 for what the item size allows.
    pub bucket_size_max: u64,
    /// Allocations.
    pub allocs: u64,
    /// Frees.
    pub frees: u64,
    /// Those of the allocations that went past the per-CPU caches.
    pub direct_allocs: u64,
    /// Those of the frees that went past the per-CPU caches.
    pub direct_frees: u64,
    /// Slabs ever imported from the arena.
    pub slabs_imported: u64,
    /// Most slabs at one time.
    pub slabs_high_water: u64,
    /// Slabs without an item in use.
    pub slabs_idle: u64,
    /// Requests that are asleep.
    pub sleepers: u64,
    /// Index of its record.
    pub index: u64,
    /// Items that count towards the limit.
    pub limit_items: u64,
    /// Most items in all buckets, 0 for no bound.
    pub bucket_max: u64,
    /// Items of each domain that only requests with `M_USE_RESERVE` get.
    pub reserve: u64,
    /// From item to item in a slab, bytes.
    pub stride_bytes: u64,
    /// Alignment of every item, bytes; 0 where the record does not say.
    pub align: u64,
    /// Index of the record of the zone whose slabs the items come from, if it is another.
    pub keg: Option<u64>,
    /// What it has in each NUMA domain.
    pub domains: Vec<ZoneDomain>,
}

/// What a zone has in a NUMA domain. Counts are items unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneDomain {
    /// In full buckets of the depot.
    pub depot: u64,
    /// Most of them since the zone was last looked at.
    pub most: u64,
    /// Fewest of them since then.
    pub least: u64,
    /// How many the depot needs, by the working-set estimate.
    pub working_set: u64,
    /// Slabs.
    pub slabs: u64,
    /// Free items in slabs.
    pub free_items: u64,
    /// Slabs without an item in use.
    pub free_slabs: u64,
    /// Fewest items in the depot since there were most.
    pub batch_least: u64,
    /// How many were never needed, over a long time.
    pub long_least: u64,
    /// For how many looks at the zone that was more than none.
    pub idle_periods: u64,
}

impl Zone {
    /// Items in use.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.allocs.saturating_sub(self.frees)
    }

    /// Items of all slabs.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.slabs.saturating_mul(self.items_per_slab)
    }

    /// Items in per-CPU caches: as read, or else what is neither in use nor in a depot or slab.
    #[must_use]
    pub fn cached(&self) -> u64 {
        self.cached.unwrap_or_else(|| {
            self.items().saturating_sub(self.used()).saturating_sub(self.depot).saturating_sub(self.slab_free)
        })
    }

    /// Free items, wherever they wait.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.cached().saturating_add(self.depot).saturating_add(self.slab_free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_a_mask() {
        let mask = 1 | 1 << 7 | 1 << 43 | 1 << 44 | 1 << 45 | 1 << 63;
        assert_eq!(sizes(mask).collect::<Vec<_>>(), [16, 128, 65536, 131_072, 262_144, 1 << 36]);
        for bytes in [65537, 1 << 17, (1 << 17) + 1, 1 << 30] {
            assert!(size_of_bit(abi::run_bit(bytes)) >= bytes);
            assert!(size_of_bit(abi::run_bit(bytes)) < 2 * bytes);
        }
    }

    #[test]
    fn types_sum_to_their_library_and_overflow_stands_alone() {
        let ty = |kind, lib, allocs| MallocType {
            kind,
            lib,
            totals: TypeTotals { allocs, bytes_allocated: 16 * allocs, ..TypeTotals::default() },
            ..MallocType::default()
        };
        let snapshot = Snapshot {
            libs: vec![Library::default(), Library::default()],
            types: vec![
                ty(TypeKind::Site, Some(1), 3),
                ty(TypeKind::Overflow, None, 7),
                ty(TypeKind::LibraryOverflow, Some(1), 4),
                ty(TypeKind::Site, Some(99), 1),
            ],
            ..Snapshot::default()
        };
        let sums = snapshot.by_library();
        let got: Vec<_> = sums.iter().map(|s| (s.lib, s.without_lib, s.totals.allocs, s.types)).collect();
        assert_eq!(got, [(Some(1), None, 7, 2), (None, Some(1), 7, 1), (None, Some(3), 1, 1)]);
        assert_eq!((snapshot.requests(), snapshot.blocks_in_use(), snapshot.bytes_in_use()), (15, 15, 240));
    }
}
