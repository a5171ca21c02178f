//! The statistics object: what a program under kernmalloc writes while it runs, and what a reader
//! maps read-only, live or after the program's death.
//!
//! # Theory
//!
//! One file (or memfd) per process. The writer's fast paths add to it with plain stores inside a
//! per-CPU critical section; nothing here is ever locked, so a reader can stop nobody and nobody
//! can stop a reader. The file is sparse: only what the program touched has pages.
//!
//! ```text
//!  Header | libraries | types | zones | zone lines (slot-major) | slot line, type lines (slot-major)
//! ```
//!
//! *Slot* is the writer's unit of exclusion (a CPU, or one of a few lock words of a CPU). A figure of a
//! malloc type is the sum of its lines over all slots. A block may be allocated in one slot and
//! freed in another, so one line's difference may be negative (it wraps); only sums mean anything.
//!
//! # Reading without a stop
//!
//! To never see more frees than allocations, read **every slot's frees first, then every slot's
//! allocations** ([`TypeTotals::read`]). The writer stores a block's allocation before its free
//! can be seen; a reader that saw the free therefore sees the allocation. What happens between
//! the two passes shows as in use, so the sum errs upward by the traffic of those microseconds
//! and is exact while the program stands still.
//!
//! # Version
//!
//! [`VERSION`] changes with any change of layout, or of what a size bit stands for; a reader refuses what it does not know. Sections
//! carry their own offset and stride, so records may grow at their end within one version.
#![no_std]

#[cfg(loom)]
extern crate std;

/// The atomic words of the object; loom's under `--cfg loom`, so that the reader's protocol is
/// checked on the very code that ships.
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

mod line;
pub mod page;
pub mod sysctl;
pub use line::{FreeSize, LineView, PEAK_ARMED, Row, SlotLine, TypeLine, TypeTotals};

/// `KERNMALC`, little-endian, at offset 0. Stored last by the writer: a reader that sees it sees a
/// whole header.
pub const MAGIC: u64 = u64::from_le_bytes(*b"KERNMALC");
/// Layout version, see the crate's text.
pub const VERSION: u32 = 3;
/// Bytes reserved for [`Header`]; the first section starts here.
pub const HEADER_BYTES: u64 = 8192;

/// The environment variable that names the directory in which a program makes its statistics
/// object (`PID.GENERATION`). The run command sets it, and keeps the files after their program's death.
pub const DIR_ENV: &str = "KERNMALLOC_DIR";
/// The environment variable with the tunables, `name=value,name=value`.
pub const TUNABLES_ENV: &str = "KERNMALLOC";
/// Directory used without [`DIR_ENV`]: this prefix and the user's id. Objects there go with their program.
pub const DEFAULT_DIR_PREFIX: &str = "/dev/shm/kernmalloc-";
/// Name of the memfd used when no directory can be written.
pub const MEMFD_NAME: &str = "kernmalloc-stats";

/// A table in the object.
#[repr(C)]
pub struct Section {
    /// Bytes from the start of the object.
    pub offset: u64,
    /// Bytes from one record to the next (for lines: from one slot's row to the next).
    pub stride: u64,
    /// How many records there is room for (for lines: rows).
    pub capacity: u64,
    /// How many records are in use; grows only. A record is complete before it is counted.
    pub used: AtomicU64,
}

/// What the program is doing.
pub mod state {
    /// Runs (or was killed with no chance to say otherwise: see whether the pid lives).
    pub const RUNNING: u32 = 1;
    /// Went through its exit handlers.
    pub const EXITED: u32 = 2;
}

/// How blocks are credited, [`Header::attribution`].
pub mod attribution {
    /// All to one type.
    pub const OFF: u32 = 0;
    /// To the library that called.
    pub const LIBRARY: u32 = 1;
    /// To the call site, whose parent is the library (the default).
    pub const SITE: u32 = 2;
}

/// Default of [`Control::dirty_keep_pages`].
pub const DIRTY_KEEP_PAGES: u64 = 256;
/// Default of [`Control::bucket_size_max`]: as large as the zones' own bounds allow.
pub const BUCKET_SIZE_MAX: u64 = 255;

/// Most zones that a size class may have, [`Control::numzones`].
pub const NUMZONES_MAX: u64 = 16;

/// What [`Control::uma_reclaim`] asks for, as FreeBSD's `uma_reclaim(9)` has it.
pub mod reclaim_request {
    /// Free pages go back to the system.
    pub const TRIM: u64 = 1;
    /// Depots and empty slabs, too.
    pub const DRAIN: u64 = 2;
    /// The caches of the CPUs, too.
    pub const DRAIN_CPU: u64 = 3;
}

/// Words that a process of the same user may write while the program runs, and that the program reads on slow paths. Whatever
/// stands in them, the program holds it to the bounds of [`sysctl`]. Written with their defaults at boot.
#[repr(C)]
#[derive(Default)]
pub struct Control {
    /// One of [`reclaim_request`], 0 for none; the program clears it when it takes it up.
    pub uma_reclaim: AtomicU64,
    /// Reclaims done because they were asked for.
    pub reclaims: AtomicU64,
    /// Free pages that stay with the heap however little is in use.
    pub dirty_keep_pages: AtomicU64,
    /// Most items in a bucket of any zone.
    pub bucket_size_max: AtomicU64,
    /// 1 when a misuse is only reported and the program goes on.
    pub misuse_goes_on: AtomicU64,
    /// 1 when something else was written, here or in the record of a type or zone, that takes more than to be read; the program clears it
    /// when it takes it up.
    pub settings: AtomicU64,
    /// Bytes that the heap may have in use.
    pub kmem_size: AtomicU64,
    /// Bounds of [`Control::kmem_size`], and what physical memory is divided by to have it computed anew when one of the three changes; 0: it is
    /// not by physical memory.
    pub kmem_size_min: AtomicU64,
    /// See [`Control::kmem_size_min`].
    pub kmem_size_max: AtomicU64,
    /// See [`Control::kmem_size_min`].
    pub kmem_size_scale: AtomicU64,
    /// Pages of them that only requests with `M_USE_RESERVE` get.
    pub kmem_reserve_pages: AtomicU64,
    /// Per cent of them beyond which reclaim is asked for.
    pub kmem_soft_percent: AtomicU64,
    /// Every so manieth request of malloc(9) that may not sleep fails, 0 for none.
    pub failure_rate: AtomicU64,
    /// How many failed for it.
    pub failure_count: AtomicU64,
    /// Zones that each size class has, by malloc type; as of the start.
    pub numzones: AtomicU64,
    /// Room to grow.
    pub reserved: [u64; 1],
}

/// First record of the object.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`] once the object is complete.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: u32,
    /// One of [`state`].
    pub state: AtomicU32,
    /// Size of the whole object, bytes.
    pub total_bytes: u64,

    /// [`LibRecord`]s.
    pub libs: Section,
    /// [`TypeRecord`]s.
    pub types: Section,
    /// [`ZoneRecord`]s.
    pub zones: Section,
    /// [`ZoneLine`]s: row per slot, in it one per zone.
    pub zone_lines: Section,
    /// A row per slot: its [`SlotLine`], then a [`TypeLine`] per type (see [`Row`]). `used` counts slots that were ever
    /// entered, as one past the highest.
    pub type_lines: Section,

    /// Process id, and that of the parent, in the program's own pid namespace.
    pub pid: u32,
    /// See [`Header::pid`].
    pub parent_pid: u32,
    /// 0 for the first image under this pid, one more after each exec.
    pub generation: u32,
    /// One of [`attribution`].
    pub attribution: u32,
    /// When the object was made, nanoseconds of `CLOCK_REALTIME`.
    pub start_realtime_ns: u64,
    /// `/proc/self/exe` at start, NUL-terminated, cut at 255 bytes.
    pub exe: [u8; 256],

    /// The heap's address range: first address, bytes given to the arena so far, bytes it may grow to.
    pub heap_base: u64,
    /// See [`Header::heap_base`]. Grows only.
    pub heap_bytes: AtomicU64,
    /// See [`Header::heap_base`].
    pub heap_max_bytes: u64,
    /// The table from page to slab: address and bytes mapped so far.
    pub table_base: u64,
    /// See [`Header::table_base`].
    pub table_bytes: AtomicU64,
    /// The allocator's own records (descriptors, buckets, boundary tags, slots, call-site table): address
    /// and bytes mapped so far.
    pub meta_base: u64,
    /// See [`Header::meta_base`].
    pub meta_bytes: AtomicU64,
    /// Bytes of meta handed out to records.
    pub meta_used_bytes: AtomicU64,
    /// Address of the statistics object in the program.
    pub stats_base: u64,

    /// Address in the program of slot 0, with the strides to the next slot and from one [`CpuCache`] to the next; that of a
    /// class of malloc stands at [`page::class_code`]. For a reader with ptrace rights. 0 before the first allocation.
    pub caches_base: AtomicU64,
    /// See [`Header::caches_base`].
    pub cache_slot_stride: u64,
    /// See [`Header::caches_base`].
    pub cache_zone_stride: u64,

    /// Bytes per page.
    pub page_bytes: u32,
    /// Which CPU identity the slots follow: 1 concurrency id, 2 CPU number, 3 thread.
    pub slot_kind: AtomicU32,

    /// Pages of the heap by use; together they are `heap_bytes`. In slabs.
    pub pages_slab: AtomicU64,
    /// In blocks larger than the largest size class.
    pub pages_large: AtomicU64,
    /// Free, and possibly still backed by memory.
    pub pages_free_dirty: AtomicU64,
    /// Free, and given back to the system or never touched.
    pub pages_free_clean: AtomicU64,
    /// Large pages that are free but kept in caches of runs (counted in `pages_large`).
    pub pages_large_cached: AtomicU64,

    /// Blocks that were credited to an overflow row because the table of types was full.
    pub site_overflow: AtomicU64,
    /// Requests that failed for want of memory.
    pub failures: AtomicU64,
    /// When the last request failed, nanoseconds of `CLOCK_MONOTONIC`; 0 never.
    pub last_fail_monotonic_ns: AtomicU64,
    /// Frees reported as misuse.
    pub misuses: AtomicU64,
    /// Text of the first misuse report, NUL-terminated. The length is stored after the text.
    pub report_len: AtomicU32,
    /// Non-zero when malloc of this program is not ours: it brings its own.
    pub foreign_malloc: AtomicU32,
    /// See [`Header::report_len`].
    pub report: [u8; 2048],
    /// What may be set from outside while the program runs.
    pub control: Control,
}
const _: () = assert!(core::mem::size_of::<Header>() <= HEADER_BYTES as usize);

/// Flags of a [`LibRecord`].
pub mod lib_flag {
    /// The main program.
    pub const MAIN: u32 = 1;
    /// Not mapped any more (dlclose).
    pub const UNLOADED: u32 = 2;
    /// Not a file: generated code.
    pub const ANONYMOUS: u32 = 4;
}

/// A library (or the main program), by path and build id: opened twice it is one record.
#[repr(C)]
pub struct LibRecord {
    /// Path as the loader mapped it, NUL-terminated, cut at 255 bytes.
    pub path: [u8; 256],
    /// GNU build id, as long as `build_id_len` says.
    pub build_id: [u8; 32],
    /// Bytes of `build_id`; 0 when the file has none.
    pub build_id_len: u32,
    /// Bits of [`lib_flag`].
    pub flags: AtomicU32,
    /// What was added to the file's addresses when it was last mapped (an address in the program minus this is
    /// an address in the file's symbol table).
    pub bias: AtomicU64,
}

/// What a [`TypeRecord`] stands for.
pub mod type_kind {
    /// A malloc type defined by a program, with a name.
    pub const STATIC: u32 = 1;
    /// A call site: library and offset.
    pub const SITE: u32 = 2;
    /// What a library allocated after the table of call sites was full.
    pub const LIB_OVERFLOW: u32 = 3;
    /// What libraries allocated after the table of libraries was full.
    pub const OVERFLOW: u32 = 4;
    /// All that a library allocated: attribution is by library.
    pub const LIBRARY: u32 = 5;
}

/// Flags of a [`TypeRecord`].
pub mod type_flag {
    /// The module that defined the type was unloaded; what it leaked still counts. The next type of this name goes on
    /// with the record.
    pub const GONE: u32 = 1;
}

/// [`TypeRecord::lib`] of a type that has no library.
pub const NO_LIB: u32 = u32::MAX;

/// A malloc type; its counters are the lines with its index.
#[repr(C, align(64))]
pub struct TypeRecord {
    /// One of [`type_kind`].
    pub kind: u32,
    /// Index of the library, or [`NO_LIB`].
    pub lib: u32,
    /// For a call site: return address minus the library's bias.
    pub offset: u64,
    /// For a static type: its short description, NUL-terminated.
    pub name: [u8; 32],
    /// Most bytes in use at one time, as of the last time a slot compared (see `kern`'s `stats`); a reader takes the
    /// greater of this and what [`TypeTotals::read`] finds.
    pub high_water_bytes: AtomicU64,
    /// Requests of this type that failed.
    pub failures: AtomicU64,
    /// Limit in bytes, 0 for none.
    pub limit_bytes: AtomicU64,
    /// Times a request slept on the limit.
    pub limit_blocks: AtomicU64,
    /// Times a request slept for want of memory.
    pub map_blocks: AtomicU64,
    /// Requests that are asleep on the limit now.
    pub limit_sleepers: AtomicU32,
    /// Changes whenever one of them should look again: the word they sleep on.
    pub limit_wakeups: AtomicU32,
    /// Bits of [`type_flag`].
    pub flags: AtomicU32,
    /// Room to grow.
    pub reserved: [u32; 3],
}
const _: () = assert!(core::mem::size_of::<TypeRecord>() == 128);

/// Flags of a [`ZoneRecord`].
pub mod zone_flag {
    /// Serves a malloc size class.
    pub const MALLOC: u32 = 1;
    /// Slab header outside the slab.
    pub const OFFPAGE: u32 = 2;
    /// Serves runs of pages: an item is a whole run.
    pub const RUN: u32 = 4;
    /// Takes its items from another zone's keg.
    pub const SECONDARY: u32 = 8;
    /// Takes its items from functions of its maker; has no slabs.
    pub const CACHE: u32 = 16;
    /// Items are reused only after every reader that may see them has left.
    pub const SMR: u32 = 32;
    /// An item has a copy per CPU; `item_bytes` is one copy.
    pub const PCPU: u32 = 64;
    /// Serves a malloc size class beside the class's own zone: for types that were hashed to it, or for requests that name a domain.
    pub const SUBZONE: u32 = 128;
}

/// A zone. Counts are items unless named otherwise.
#[repr(C, align(64))]
pub struct ZoneRecord {
    /// NUL-terminated.
    pub name: [u8; 32],
    /// Item size in bytes as served.
    pub item_bytes: u32,
    /// Slab size in bytes.
    pub slab_bytes: u32,
    /// Items in a slab.
    pub items_per_slab: u32,
    /// Bytes at the start of a slab that are not items (inline header), rounded up to the first item.
    pub header_bytes: u32,
    /// Bits of [`zone_flag`].
    pub flags: u32,
    /// Bit of this zone in [`TypeLine::size_mask`].
    pub size_bit: u32,
    /// Slabs.
    pub slabs: AtomicU64,
    /// Free items in slabs.
    pub slab_free: AtomicU64,
    /// Items in full buckets of the depots.
    pub depot: AtomicU64,
    /// Most items, 0 for no limit.
    pub limit: AtomicU64,
    /// Failed allocations.
    pub fails: AtomicU64,
    /// Allocations that slept.
    pub sleeps: AtomicU64,
    /// Items freed in another domain than they came from.
    pub xdomain: AtomicU64,
    /// Items that the largest bucket holds now.
    pub bucket_size: AtomicU64,
    /// Allocations and frees that went past the per-CPU caches.
    pub direct_allocs: AtomicU64,
    /// See [`ZoneRecord::direct_allocs`].
    pub direct_frees: AtomicU64,
    /// Slabs ever imported from the arena; those given back are this less `slabs`.
    pub slabs_imported: AtomicU64,
    /// Most slabs at one time.
    pub slabs_high_water: AtomicU64,
    /// Slabs without an item in use, kept for reuse.
    pub slabs_idle: AtomicU64,
    /// Non-zero while the record is no zone's: its zone was destroyed, and a reader passes it over.
    pub dead: AtomicU64,
    /// Requests that are asleep now.
    pub sleepers: AtomicU64,
    /// Most items in a bucket, 0 for what the item size allows. May be written from outside, see [`Control`].
    pub bucket_size_max: AtomicU64,
    /// Items that count towards the limit.
    pub limit_items: AtomicU64,
    /// Most items in all buckets, 0 for no bound.
    pub bucket_max: AtomicU64,
    /// Items of each domain that only requests with `M_USE_RESERVE` get.
    pub reserve: AtomicU64,
    /// From item to item in a slab, bytes; 0 without slabs, and in zones of malloc's size classes.
    pub stride_bytes: u32,
    /// Alignment of every item, bytes; 0 in zones of malloc's size classes.
    pub align: u32,
    /// One more than the index of the zone whose slabs the items come from; 0 for its own.
    pub keg: u32,
    /// Domains of the machine, 0 in zones of malloc's size classes.
    pub domains: u32,
    /// By domain; what there is beyond the last counts there.
    pub by_domain: [ZoneDomain; ZONE_DOMAINS],
}
#[cfg(not(loom))]
const _: () = assert!(core::mem::size_of::<ZoneRecord>() == 512);

/// Domains that a zone's record tells apart.
pub const ZONE_DOMAINS: usize = 4;

/// What a zone has in a NUMA domain.
#[repr(C)]
pub struct ZoneDomain {
    /// Items in full buckets of the depot.
    pub depot: AtomicU64,
    /// Most and fewest of them since the zone was last looked at.
    pub most: AtomicU64,
    /// See [`ZoneDomain::most`].
    pub least: AtomicU64,
    /// How many the depot needs, by the working-set estimate.
    pub working_set: AtomicU64,
    /// Slabs.
    pub slabs: AtomicU64,
    /// Free items in slabs.
    pub free_items: AtomicU64,
    /// Slabs without an item in use.
    pub free_slabs: AtomicU64,
    /// Fewest items in the depot since there were most.
    pub batch_least: AtomicU64,
    /// How many were never needed, over a long time, and for how many looks at the zone that was more than none.
    pub long_least: AtomicU32,
    /// See [`ZoneDomain::long_least`].
    pub idle_periods: AtomicU32,
}

/// Counters of one zone in one slot, as of the slot's last exchange of a bucket (the live ones are in
/// [`CpuCache`], private to the program).
#[repr(C)]
pub struct ZoneLine {
    /// Items handed out.
    pub allocs: AtomicU64,
    /// Items taken back.
    pub frees: AtomicU64,
}

/// A free item in a bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheEntry {
    /// Address of the item.
    pub item: usize,
    /// Address of its tag, so that who takes it out need not look for it; 0 for runs of pages.
    pub tag: usize,
}

/// The per-CPU cache of one zone: one cache line, changed only inside the slot's critical section.
///
/// Here because a reader with ptrace rights copies it out of the live program.
#[repr(C, align(64))]
pub struct CpuCache {
    /// Past the last item of the bucket that allocations pop and frees push.
    pub alloc_top: *mut CacheEntry,
    /// First item of that bucket.
    pub alloc_items: *mut CacheEntry,
    /// Past the last item that it has room for.
    pub alloc_end: *mut CacheEntry,
    /// Items of the bucket behind it.
    pub free_items: *mut CacheEntry,
    /// How many items the second holds.
    pub free_count: u32,
    /// How many it has room for.
    pub free_capacity: u32,
    /// Items handed out by this cache.
    pub allocs: u64,
    /// Items that came into the cache otherwise than by a free, less those that left it otherwise than by an allocation
    /// (wraps): with it the frees need no counter that every free adds to.
    pub filled: u64,
    /// Room to grow.
    pub reserved: u64,
}
const _: () = assert!(core::mem::size_of::<CpuCache>() == 64);

impl CpuCache {
    /// Items in the first bucket.
    #[must_use]
    pub fn alloc_count(&self) -> usize {
        (self.alloc_top as usize - self.alloc_items as usize) / size_of::<CacheEntry>()
    }

    /// Items that the first bucket has room for.
    #[must_use]
    pub fn alloc_capacity(&self) -> usize {
        (self.alloc_end as usize - self.alloc_items as usize) / size_of::<CacheEntry>()
    }

    /// Makes `items`, of which `count` are there and room is for `capacity`, the first bucket.
    pub fn set_alloc(&mut self, items: *mut CacheEntry, count: usize, capacity: usize) {
        self.alloc_items = items;
        self.alloc_top = items.wrapping_add(count);
        self.alloc_end = items.wrapping_add(capacity);
    }

    /// The item pushed last; `None` when the first bucket is empty. Not counted.
    ///
    /// # Safety
    /// 1. The caller is the cache's holder.
    #[inline(always)]
    pub unsafe fn pop(&mut self) -> Option<CacheEntry> {
        let top = self.alloc_top;
        if top == self.alloc_items {
            return None;
        }
        // SAFETY: 1.: from the first to the top are items.
        unsafe {
            self.alloc_top = top.sub(1);
            Some(*self.alloc_top)
        }
    }

    /// Puts an item into the first bucket; false when it is full (also when there is none).
    ///
    /// # Safety
    /// 1. The caller is the cache's holder.
    #[inline(always)]
    pub unsafe fn push(&mut self, entry: CacheEntry) -> bool {
        let top = self.alloc_top;
        if top == self.alloc_end {
            return false;
        }
        // SAFETY: 1.: from the top to the end is room.
        unsafe {
            *top = entry;
            self.alloc_top = top.add(1);
        }
        true
    }

    /// Items in the cache.
    #[must_use]
    pub fn items(&self) -> u64 {
        self.alloc_count() as u64 + u64::from(self.free_count)
    }

    /// Items taken back by this cache: what came in must have gone out or be here.
    #[must_use]
    pub fn frees(&self) -> u64 {
        self.allocs.wrapping_add(self.items()).wrapping_sub(self.filled)
    }

    /// Counts an allocation whose item was not taken from here.
    pub fn count_alloc_elsewhere(&mut self) {
        self.allocs = self.allocs.wrapping_add(1);
        self.filled = self.filled.wrapping_add(1);
    }

    /// Counts a free whose item was not put here.
    pub fn count_free_elsewhere(&mut self) {
        self.filled = self.filled.wrapping_sub(1);
    }
}

/// Size bits of [`TypeLine::size_mask`]: below this, the index of a size class up to 64 KiB; from it on, one bit per doubling
/// (`LARGE_BIT + log2(bytes) - 17`, at most 63).
pub const LARGE_BIT: u32 = 44;

/// The size classes of malloc, bytes: 16-byte steps to 128, then four per doubling to 64 KiB. Of 2^k bytes, 9/8, 11/8, 13/8 and 2 up to
/// 8 KiB: requests are often a power of two and a few words more. Then whole pages, but for one more of the former.
pub const SIZE_CLASSES: [u32; LARGE_BIT as usize] = {
    let mut out = [0u32; LARGE_BIT as usize];
    let mut i = 0;
    while i < 8 {
        out[i] = 16 * (i as u32 + 1);
        i += 1;
    }
    let mut base = 128;
    while i < LARGE_BIT as usize {
        let eighths = match base {
            ..8192 => [9, 11, 13, 16],
            // Three pages are needed: a request aligned to the page would be served with four.
            8192 => [9, 12, 14, 16],
            _ => [10, 12, 14, 16],
        };
        let mut step = 0;
        while step < 4 {
            out[i] = base / 8 * eighths[step];
            i += 1;
            step += 1;
        }
        base *= 2;
    }
    assert!(out[LARGE_BIT as usize - 1] == 65536);
    out
};

/// Bit for a run of pages of `bytes`, rounded up to a size that has one.
#[must_use]
pub const fn run_bit(bytes: u64) -> u32 {
    let mut class = LARGE_BIT as usize;
    while class > 0 && SIZE_CLASSES[class - 1] as u64 >= bytes {
        class -= 1;
    }
    if class < LARGE_BIT as usize {
        return class as u32;
    }
    let log2 = if bytes > 1 << 62 { 63 } else { bytes.next_power_of_two().trailing_zeros() };
    let bit = LARGE_BIT + log2 - 17;
    if bit > 63 { 63 } else { bit }
}

/// Text of a NUL-terminated field.
#[must_use]
pub fn c_text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn classes_waste_a_fifth_at_most_above_64_bytes() {
        for pair in SIZE_CLASSES.windows(2).filter(|pair| pair[0] >= 64 && pair[1] != 12288) {
            assert!((pair[1] - pair[0]) * 5 <= pair[1], "{pair:?}");
            assert!(pair[1] % 16 == 0);
        }
    }

    #[test]
    fn a_large_block_has_a_bit_of_its_own_doubling() {
        assert_eq!(run_bit(65537), 44);
        assert_eq!(run_bit(128 * 1024), 44);
        assert_eq!(run_bit(128 * 1024 + 1), 45);
        assert_eq!(run_bit(u64::MAX / 2), 63);
    }

    #[test]
    fn text_ends_at_the_nul() {
        assert_eq!(c_text(b"temp\0x"), b"temp");
        assert_eq!(c_text(b"temp"), b"temp");
    }
}
