//! The tree of names: every tunable and counter under the name that the BSDs give it, with its type, its bounds, where it stands in the
//! object and what it means. The one place for it: the program, its readers, the command and the manual page
//! kernmalloc-sysctl(7) go by these tables.
#![forbid(unsafe_code)]

use core::mem::offset_of;

use crate::{Control, Header};

/// What a value is, for people; all are 64-bit integers in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number of things.
    Count,
    /// A number of bytes.
    Bytes,
    /// A number of pages.
    Pages,
    /// Seconds.
    Seconds,
    /// A share of a hundred.
    Percent,
    /// Bits.
    Bits,
    /// One of these words; its value is its index.
    Words(&'static [&'static str]),
    /// Text; only ever read.
    Text,
}

/// When a value can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Never.
    Read,
    /// When the program starts: `KERNMALLOC=name=value`.
    Start,
    /// When the program starts, and while it runs.
    Run,
    /// While it runs.
    RunOnly,
}

impl Access {
    /// Whether a running program's value can be set.
    #[must_use]
    pub const fn while_running(self) -> bool {
        matches!(self, Self::Run | Self::RunOnly)
    }

    /// Whether it can be set at start.
    #[must_use]
    pub const fn at_start(self) -> bool {
        matches!(self, Self::Run | Self::Start)
    }
}

/// Where a value stands. Offsets are from the start of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A 64-bit word.
    U64(u64),
    /// A 32-bit word.
    U32(u64),
    /// A 64-bit word that may be written, with the least and the greatest value that mean something.
    Control(u64, u64, u64),
    /// The sum of these words, which are pages, in bytes.
    PagesAsBytes(&'static [u64]),
    /// Seconds since the time of `CLOCK_MONOTONIC` in this word, in nanoseconds; 0 is never, and reads as -1.
    Age(u64),
    /// NUL-terminated text, so long.
    Text(u64, u64),
    /// Nowhere: only at start.
    Nowhere,
}

/// A name in the tree.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The whole name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// When it can be set.
    pub access: Access,
    /// Where it is.
    pub place: Place,
    /// What it means: a sentence or two.
    pub doc: &'static str,
}

macro_rules! at {
    ($($field:tt).+) => { offset_of!(Header, $($field).+) as u64 };
}

/// Where a control word stands.
const fn control(offset: usize, min: u64, max: u64) -> Place {
    Place::Control(at!(control) + offset as u64, min, max)
}

const fn entry(name: &'static str, kind: Kind, access: Access, place: Place, doc: &'static str) -> Entry {
    Entry { name, kind, access, place, doc }
}

/// Most bytes that a heap may be allowed.
pub const KMEM_SIZE_MAX: u64 = 1 << 47;
/// Most bytes or items that a limit may say.
pub const LIMIT_MAX: u64 = 1 << 47;

/// Names with one value, sorted.
pub const TABLE: &[Entry] = &[
    entry(
        "debug.malloc.failure_count",
        Kind::Count,
        Access::Read,
        Place::U64(at!(control) + offset_of!(Control, failure_count) as u64),
        "Requests that failed because of debug.malloc.failure_rate.",
    ),
    entry(
        "debug.malloc.failure_rate",
        Kind::Count,
        Access::Run,
        control(offset_of!(Control, failure_rate), 0, 1 << 31),
        "Every so manieth request that names a malloc type and may not sleep fails, to see how its caller takes it; 0 for none. What malloc(3) and \
         Rust's global allocator serve names no type, and does not fail.",
    ),
    entry(
        "debug.malloc.numzones",
        Kind::Count,
        Access::Start,
        control(offset_of!(Control, numzones), 1, crate::NUMZONES_MAX),
        "Zones of each size class up to 16 KiB. A malloc type (a call site is one) has its blocks from the one that its number says, so that who \
         damaged a block is one of the few types that share its zone. Slower, and takes more memory; 1 for none of it.",
    ),
    entry(
        "debug.uma_reclaim",
        Kind::Count,
        Access::RunOnly,
        control(offset_of!(Control, uma_reclaim), 0, 3),
        "Set to 1 to give free pages back to the system, to 2 to empty depots and slabs as well, to 3 to empty the CPUs' caches, \
         too. The program does it when it next comes by a slow path, and clears the value.",
    ),
    entry(
        "debug.uma_reclaims",
        Kind::Count,
        Access::Read,
        Place::U64(at!(control) + offset_of!(Control, reclaims) as u64),
        "Reclaims done because they were asked for.",
    ),
    entry(
        "kern.malloc.attribution",
        Kind::Words(&["off", "library", "site"]),
        Access::Start,
        Place::U32(at!(attribution)),
        "To whom blocks are credited: to nobody, to the library that asked, or to the call site in it.",
    ),
    entry(
        "kern.malloc.on_misuse",
        Kind::Words(&["abort", "report"]),
        Access::Run,
        control(offset_of!(Control, misuse_goes_on), 0, 1),
        "What follows the report of a double, wild or interior free: the end of the program, or nothing.",
    ),
    entry(
        "kern.malloc.rseq",
        Kind::Words(&["off", "on"]),
        Access::Start,
        Place::Nowhere,
        "Whether CPUs' caches are taken by restartable sequences, where the system has them.",
    ),
    entry(
        "kern.malloc.strict",
        Kind::Words(&["off", "on"]),
        Access::Start,
        Place::Nowhere,
        "Whether an unknown tunable ends the program, rather than being warned of.",
    ),
    entry(
        "kern.malloc_count",
        Kind::Count,
        Access::Read,
        Place::U64(at!(types.used)),
        "Malloc types, call sites included.",
    ),
    entry(
        "kern.malloc_failures",
        Kind::Count,
        Access::Read,
        Place::U64(at!(failures)),
        "Requests that failed for want of memory.",
    ),
    entry(
        "kern.malloc_last_fail",
        Kind::Seconds,
        Access::Read,
        Place::Age(at!(last_fail_monotonic_ns)),
        "Seconds since a request last failed, -1 when none ever did. malloc_last_fail(9).",
    ),
    entry(
        "kern.malloc_misuses",
        Kind::Count,
        Access::Read,
        Place::U64(at!(misuses)),
        "Frees and requests that were reported as misuse.",
    ),
    entry(
        "kern.malloc_site_overflow",
        Kind::Count,
        Access::Read,
        Place::U64(at!(site_overflow)),
        "Blocks credited to a row for all, because the table of types was full.",
    ),
    entry("kern.proc.pathname", Kind::Text, Access::Read, Place::Text(at!(exe), 256), "The program."),
    entry("kern.proc.pid", Kind::Count, Access::Read, Place::U32(at!(pid)), "Its process id, as it sees it itself."),
    entry(
        "vm.kmem_dirty_keep",
        Kind::Pages,
        Access::Run,
        control(offset_of!(Control, dirty_keep_pages), 0, 1 << 40),
        "Free pages that stay with the heap however little is in use. When there are twice as many, and more than a quarter of what is in \
         use, half of them go back to the system: at once, or every 50 ms where the program has wanted much of them again lately.",
    ),
    entry(
        "vm.kmem_free_clean",
        Kind::Bytes,
        Access::Read,
        Place::PagesAsBytes(&[at!(pages_free_clean)]),
        "Free memory of the heap that is with the system, or was never touched.",
    ),
    entry(
        "vm.kmem_free_dirty",
        Kind::Bytes,
        Access::Read,
        Place::PagesAsBytes(&[at!(pages_free_dirty)]),
        "Free memory of the heap that may still be backed.",
    ),
    entry(
        "vm.kmem_large",
        Kind::Bytes,
        Access::Read,
        Place::PagesAsBytes(&[at!(pages_large)]),
        "Memory in blocks larger than the largest size class, those kept for reuse included.",
    ),
    entry(
        "vm.kmem_map_free",
        Kind::Bytes,
        Access::Read,
        Place::PagesAsBytes(&[at!(pages_free_dirty), at!(pages_free_clean)]),
        "Free memory of the heap.",
    ),
    entry(
        "vm.kmem_map_size",
        Kind::Bytes,
        Access::Read,
        Place::PagesAsBytes(&[at!(pages_slab), at!(pages_large)]),
        "Memory of the heap in use: in slabs and in large blocks.",
    ),
    entry(
        "vm.kmem_meta_size",
        Kind::Bytes,
        Access::Read,
        Place::U64(at!(meta_bytes)),
        "Memory for the allocator's own records.",
    ),
    entry(
        "vm.kmem_reserve_pages",
        Kind::Pages,
        Access::Run,
        control(offset_of!(Control, kmem_reserve_pages), 0, 1 << 32),
        "Pages of vm.kmem_size that only requests with M_USE_RESERVE get; half of it at most.",
    ),
    entry(
        "vm.kmem_size",
        Kind::Bytes,
        Access::Run,
        control(offset_of!(Control, kmem_size), 4096, KMEM_SIZE_MAX),
        "Bytes that the heap may have in use. What it has beyond a value set later stays; requests fail, or sleep, until it is less. Held \
         between vm.kmem_size_min and vm.kmem_size_max.",
    ),
    entry(
        "vm.kmem_size_max",
        Kind::Bytes,
        Access::Run,
        control(offset_of!(Control, kmem_size_max), 4096, KMEM_SIZE_MAX),
        "Most bytes that vm.kmem_size may be. Setting it, vm.kmem_size_min or vm.kmem_size_scale computes vm.kmem_size anew.",
    ),
    entry(
        "vm.kmem_size_min",
        Kind::Bytes,
        Access::Run,
        control(offset_of!(Control, kmem_size_min), 4096, KMEM_SIZE_MAX),
        "Fewest bytes that vm.kmem_size may be; where the two cross, vm.kmem_size_max holds.",
    ),
    entry(
        "vm.kmem_size_scale",
        Kind::Count,
        Access::Run,
        control(offset_of!(Control, kmem_size_scale), 0, 1 << 20),
        "What the machine's memory is divided by for vm.kmem_size; at 0, as in a process unless it is set, that is vm.kmem_size_max.",
    ),
    entry("vm.kmem_slabs", Kind::Bytes, Access::Read, Place::PagesAsBytes(&[at!(pages_slab)]), "Memory in slabs."),
    entry(
        "vm.kmem_soft_percent",
        Kind::Percent,
        Access::Run,
        control(offset_of!(Control, kmem_soft_percent), 1, 100),
        "Per cent of vm.kmem_size beyond which free memory is reclaimed; 100 for never.",
    ),
    entry(
        "vm.uma_bucket_size_max",
        Kind::Count,
        Access::Run,
        control(offset_of!(Control, bucket_size_max), 1, 255),
        "Most items that a bucket of any zone may have. Buckets that are larger already stay until they are exchanged.",
    ),
    entry("vm.zone_count", Kind::Count, Access::Read, Place::U64(at!(zones.used)), "Zones."),
];

/// A name below `vm.uma.NAME.` of each zone. (Characters of a zone's name that are neither letters nor digits are `_` there, as in FreeBSD.)
#[derive(Clone, Copy, Debug)]
pub struct ZoneEntry {
    /// The rest of the name.
    pub suffix: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means.
    pub doc: &'static str,
    /// Which figure.
    pub figure: ZoneFigure,
}

/// A figure of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "said in the table")]
pub enum ZoneFigure {
    Align,
    BucketMax,
    DomainBatchLeast,
    DomainDepot,
    DomainFreeItems,
    DomainFreeSlabs,
    DomainIdlePeriods,
    DomainLongLeast,
    DomainMost,
    DomainLeast,
    DomainPages,
    DomainWorkingSet,
    KegName,
    Idle,
    LimitItems,
    Reserve,
    Sleepers,
    Stride,
    Size,
    Flags,
    BucketSize,
    BucketSizeMax,
    SlabBytes,
    ItemsPerSlab,
    Slabs,
    Efficiency,
    SlabFree,
    Limit,
    Sleeps,
    Current,
    Allocs,
    Frees,
    Fails,
    CrossDomain,
}

const fn zone(suffix: &'static str, kind: Kind, figure: ZoneFigure, doc: &'static str) -> ZoneEntry {
    ZoneEntry { suffix, kind, doc, figure }
}

/// Names of each zone, sorted.
pub const ZONE_TABLE: &[ZoneEntry] = &[
    zone("bucket_size", Kind::Count, ZoneFigure::BucketSize, "Items that a bucket has now."),
    zone(
        "bucket_size_max",
        Kind::Count,
        ZoneFigure::BucketSizeMax,
        "Most items that a bucket of this zone may have, 0 for what its item size allows. May be set while the program runs.",
    ),
    zone(
        "domain.D.bimin",
        Kind::Count,
        ZoneFigure::DomainBatchLeast,
        "Fewest items in full buckets since there were most: how far the batch went that is being taken now.",
    ),
    zone("domain.D.imax", Kind::Count, ZoneFigure::DomainMost, "Most of them since the zone was last looked at."),
    zone("domain.D.imin", Kind::Count, ZoneFigure::DomainLeast, "Fewest of them since then."),
    zone(
        "domain.D.limin",
        Kind::Count,
        ZoneFigure::DomainLongLeast,
        "How many of them nobody needed, over a long time; of these a quarter goes at a time when that was so for a quarter of an hour.",
    ),
    zone(
        "domain.D.nitems",
        Kind::Count,
        ZoneFigure::DomainDepot,
        "Items in full buckets, for each NUMA domain; what there is of domains beyond the fourth counts as the fourth's.",
    ),
    zone(
        "domain.D.timin",
        Kind::Count,
        ZoneFigure::DomainIdlePeriods,
        "For how many looks at the zone, one a second at most, some of them were not needed.",
    ),
    zone(
        "domain.D.wss",
        Kind::Count,
        ZoneFigure::DomainWorkingSet,
        "Of them, how many are needed by the working-set estimate.",
    ),
    zone(
        "flags",
        Kind::Bits,
        ZoneFigure::Flags,
        "1 serves a malloc size class, 2 slab headers off page, 4 runs of pages, 8 secondary, 16 cache zone, 32 SMR, 64 per-CPU items, \
         128 serves a malloc size class for some types, or for a domain.",
    ),
    zone("keg.align", Kind::Bytes, ZoneFigure::Align, "Alignment of every item."),
    zone("keg.domain.D.free_items", Kind::Count, ZoneFigure::DomainFreeItems, "Free items in slabs, for each domain."),
    zone("keg.domain.D.free_slabs", Kind::Count, ZoneFigure::DomainFreeSlabs, "Slabs without an item in use."),
    zone("keg.domain.D.pages", Kind::Pages, ZoneFigure::DomainPages, "Pages of all slabs."),
    zone("keg.efficiency", Kind::Percent, ZoneFigure::Efficiency, "Of a slab, how much is items."),
    zone("keg.free_items", Kind::Count, ZoneFigure::SlabFree, "Free items in slabs."),
    zone("keg.free_slabs", Kind::Count, ZoneFigure::Idle, "Slabs without an item in use."),
    zone("keg.ipers", Kind::Count, ZoneFigure::ItemsPerSlab, "Items in a slab."),
    zone("keg.name", Kind::Text, ZoneFigure::KegName, "The zone whose slabs the items come from."),
    zone("keg.ppera", Kind::Bytes, ZoneFigure::SlabBytes, "Bytes of a slab."),
    zone(
        "keg.reserve",
        Kind::Count,
        ZoneFigure::Reserve,
        "Items of each domain that only requests with M_USE_RESERVE get.",
    ),
    zone("keg.rsize", Kind::Bytes, ZoneFigure::Stride, "From item to item in a slab."),
    zone("keg.slabs", Kind::Count, ZoneFigure::Slabs, "Slabs."),
    zone("limit.bucket_max", Kind::Count, ZoneFigure::BucketMax, "Most items in all buckets together, 0 for no bound."),
    zone(
        "limit.items",
        Kind::Count,
        ZoneFigure::LimitItems,
        "Items that count towards the limit: in use, and in buckets, which are fetched back before a request fails.",
    ),
    zone(
        "limit.max_items",
        Kind::Count,
        ZoneFigure::Limit,
        "Most items, 0 for no limit. May be set while the program runs, but for the zones of malloc's size classes.",
    ),
    zone("limit.sleepers", Kind::Count, ZoneFigure::Sleepers, "Requests that are asleep now."),
    zone("limit.sleeps", Kind::Count, ZoneFigure::Sleeps, "Requests that slept on the limit."),
    zone("size", Kind::Bytes, ZoneFigure::Size, "Bytes of an item."),
    zone("stats.allocs", Kind::Count, ZoneFigure::Allocs, "Items handed out since the start."),
    zone("stats.current", Kind::Count, ZoneFigure::Current, "Items in use."),
    zone("stats.fails", Kind::Count, ZoneFigure::Fails, "Requests that failed."),
    zone("stats.frees", Kind::Count, ZoneFigure::Frees, "Items taken back since the start."),
    zone("stats.xdomain", Kind::Count, ZoneFigure::CrossDomain, "Items freed in another domain than they came from."),
];

/// A name below `kern.malloc_stats.NAME.` of each type that a program defined by name.
#[derive(Clone, Copy, Debug)]
pub struct TypeEntry {
    /// The rest of the name.
    pub suffix: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it means.
    pub doc: &'static str,
    /// Which figure.
    pub figure: TypeFigure,
}

/// A figure of a malloc type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "said in the table")]
pub enum TypeFigure {
    Failures,
    HighUse,
    InUse,
    Limit,
    LimitBlocks,
    MapBlocks,
    MemUse,
    Requested,
    Requests,
}

const fn ty(suffix: &'static str, kind: Kind, figure: TypeFigure, doc: &'static str) -> TypeEntry {
    TypeEntry { suffix, kind, doc, figure }
}

/// Names of each type, sorted.
pub const TYPE_TABLE: &[TypeEntry] = &[
    ty("failures", Kind::Count, TypeFigure::Failures, "Requests that failed."),
    ty("highuse", Kind::Bytes, TypeFigure::HighUse, "Most bytes in use at one time."),
    ty("inuse", Kind::Count, TypeFigure::InUse, "Blocks in use."),
    ty("limblocks", Kind::Count, TypeFigure::LimitBlocks, "Requests that slept on the limit."),
    ty(
        "limit",
        Kind::Bytes,
        TypeFigure::Limit,
        "Bytes in use at which requests by this type's name fail or sleep, 0 for no limit. May be set while the program runs.",
    ),
    ty("mapblocks", Kind::Count, TypeFigure::MapBlocks, "Requests that slept for want of memory."),
    ty("memuse", Kind::Bytes, TypeFigure::MemUse, "Bytes in use, as served."),
    ty("requested", Kind::Bytes, TypeFigure::Requested, "Bytes asked for since the start."),
    ty("requests", Kind::Count, TypeFigure::Requests, "Blocks allocated since the start."),
];

/// The entry of a whole name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Entry> {
    TABLE.iter().find(|entry| entry.name == name)
}

#[cfg(all(test, not(loom)))]
mod tests {
    extern crate std;

    use super::*;

    #[test]
    fn the_tables_are_sorted_and_say_what_they_mean() {
        assert!(TABLE.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(ZONE_TABLE.windows(2).all(|pair| pair[0].suffix < pair[1].suffix));
        assert!(TYPE_TABLE.windows(2).all(|pair| pair[0].suffix < pair[1].suffix));
        let docs = TABLE.iter().map(|entry| entry.doc);
        let docs = docs.chain(ZONE_TABLE.iter().map(|entry| entry.doc)).chain(TYPE_TABLE.iter().map(|entry| entry.doc));
        for doc in docs {
            assert!(doc.ends_with('.') && !doc.contains("  "), "{doc}");
        }
    }

    #[test]
    fn what_can_be_set_has_a_place_and_bounds() {
        for entry in TABLE {
            match (entry.access.while_running(), entry.place) {
                (true, Place::Control(offset, min, max)) => {
                    let words = offset_of!(Header, control) as u64;
                    assert!(
                        offset >= words && offset < words + size_of::<Control>() as u64 && min < max,
                        "{}",
                        entry.name
                    );
                    if let Kind::Words(words) = entry.kind {
                        assert_eq!((min, max), (0, words.len() as u64 - 1), "{}", entry.name);
                    }
                }
                // Its bounds hold at start.
                (false, Place::Control(_, min, max)) if entry.access.at_start() => assert!(min < max, "{}", entry.name),
                (false, Place::Control(..)) | (true, _) => panic!("{}: access and place disagree", entry.name),
                _ => {}
            }
        }
    }
}
