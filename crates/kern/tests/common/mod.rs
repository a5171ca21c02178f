//! An allocator on a fake machine, with its statistics object in ordinary memory, and what a reader of that object sees.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod model;
pub(crate) mod paths;
pub(crate) mod probe;
pub(crate) mod zones;

use std::alloc::Layout;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use abi::{CpuCache, Header, Ordering, Row, SlotLine, TypeTotals, ZoneLine, ZoneRecord, page};
use kern::class::{CLASSES, SLAB_CLASSES, class_bytes};
use kern::{Boot, ObjectLayout, SLOT_STRIDE_BYTES, System, TypeId};
use platform::fake::{Config, Fake, Machine, PAGE};

use model::Served;

/// What the port of the tests says that its heap may grow to.
pub(crate) const HEAP_MAX_BYTES: u64 = 1 << 46;

/// Types beside the built-in ones.
pub(crate) const TYPES: usize = 4;
/// Types that tests may register themselves.
pub(crate) const SPARE_TYPES: usize = 32;

/// A statistics object in memory of ours: zero, 4 KiB aligned, touched only where used.
struct Object {
    block: *mut u8,
    layout: Layout,
    base: NonNull<Header>,
}

impl Object {
    fn new(dimensions: &ObjectLayout) -> Self {
        const ALIGN: usize = 4096;
        let layout = Layout::from_size_align(dimensions.bytes() + ALIGN, 8).unwrap();
        // SAFETY: the size is not zero.
        let block = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!block.is_null());
        let mut base = NonNull::new((block as usize).next_multiple_of(ALIGN) as *mut Header).unwrap();
        // SAFETY: zeros are a valid header, and nobody else knows it yet.
        let header = unsafe { base.as_mut() };
        dimensions.write_sections(header);
        header.cache_slot_stride = SLOT_STRIDE_BYTES as u64;
        header.cache_zone_stride = size_of::<CpuCache>() as u64;
        header.heap_max_bytes = HEAP_MAX_BYTES;
        Self { block, layout, base }
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: from `alloc_zeroed` with this layout.
        unsafe { std::alloc::dealloc(self.block, self.layout) };
    }
}

/// An allocator, its machine and its statistics; clones are the same.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) system: System<Fake>,
    pub(crate) machine: Machine,
    pub(crate) types: Vec<TypeId>,
    object: Object,
}

// SAFETY: the object is atomics after boot; the rest is Sync by itself.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Deref for World {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// A machine for the allocator: it knows which pages are in use.
pub(crate) fn config(cpus: usize, rows: usize) -> Config {
    Config {
        cpus,
        rows,
        page_in_use: |word| !matches!(page::kind(word), page::FREE_DIRTY | page::FREE_CLEAN),
        ..Config::default()
    }
}

impl World {
    pub(crate) fn boot(config: Config) -> Self {
        Self::try_boot(Machine::new(config), config).unwrap_or_else(|_| panic!("there was memory to boot"))
    }

    /// Boots an allocator on a machine, which may have been told to fail. What did not boot is returned too.
    pub(crate) fn try_boot(machine: Machine, config: Config) -> Result<Self, Self> {
        let slots = config.cpus * config.rows + 1;
        let object = Object::new(&ObjectLayout { slots, types: TypeId::BUILT_IN + TYPES + SPARE_TYPES, libs: 1 });
        let boot = Boot {
            heap_base: machine.heap_base(),
            table: machine.table(),
            ids: config.cpus,
            rows: config.rows,
            stats: object.base.cast(),
        };
        let system = System::new();
        // SAFETY: 1. nobody else has it. 2. the machine's ranges and an object of these dimensions.
        let booted = machine.run(|| unsafe { system.boot(&boot) });
        let mut types = vec![TypeId::MALLOC];
        if booted {
            types.extend(machine.run(|| {
                (0..TYPES)
                    .map(|n| system.register_type(abi::type_kind::STATIC, abi::NO_LIB, n as u64, b"t").unwrap())
                    .collect::<Vec<_>>()
            }));
        }
        let world = Self(Arc::new(Inner { system, machine, types, object }));
        if booted { Ok(world) } else { Err(world) }
    }
}

impl Inner {
    pub(crate) fn header(&self) -> &Header {
        // SAFETY: lives as long as `self`; what changes in it are atomics.
        unsafe { self.object.base.as_ref() }
    }

    fn at<T>(&self, offset: u64) -> &T {
        // SAFETY: callers name a record inside a section of the object, all of atomics and constant fields.
        unsafe { self.object.base.cast::<u8>().byte_add(offset as usize).cast::<T>().as_ref() }
    }

    pub(crate) fn slots(&self) -> usize {
        self.header().type_lines.capacity as usize
    }

    /// The sums of a type, as a reader computes them.
    pub(crate) fn totals(&self, id: TypeId) -> TypeTotals {
        let section = &self.header().type_lines;
        let view = |slot: u64| {
            // SAFETY: 1. a row of the section. 1. a type that was registered.
            unsafe { Row::new(self.at::<SlotLine>(section.offset + slot * section.stride)).view(id.index()) }
        };
        TypeTotals::read(|| (0..section.used.load(Ordering::Acquire)).map(view))
    }

    /// The high-water mark of a type, as a reader computes it.
    pub(crate) fn high_water(&self, id: TypeId) -> u64 {
        let stored = self.system.type_record(id).high_water_bytes.load(Ordering::Relaxed);
        stored.max(self.totals(id).peak_bytes.max(0) as u64)
    }

    pub(crate) fn failures(&self, id: TypeId) -> u64 {
        self.system.type_record(id).failures.load(Ordering::Relaxed)
    }

    /// Pages in use that are not those which the zone of malloc types' private data keeps for good.
    pub(crate) fn pages_out(&self) -> usize {
        let mut kept = 0;
        self.machine.run(|| {
            self.system.each_zone(|zone| {
                if abi::c_text(&zone.name()) == b"mt_zone" {
                    kept = zone.stats().pages;
                }
            });
        });
        self.system.page_counts().out as usize - kept
    }

    pub(crate) fn zone(&self, class: usize) -> &ZoneRecord {
        let section = &self.header().zones;
        self.at(section.offset + class as u64 * section.stride)
    }

    /// Items of a zone handed out less those taken back, as published.
    pub(crate) fn zone_in_use(&self, class: usize) -> i64 {
        let section = &self.header().zone_lines;
        (0..self.slots() as u64)
            .map(|slot| {
                let row = section.offset + slot * section.stride;
                let line = self.at::<ZoneLine>(row + (class * size_of::<ZoneLine>()) as u64);
                line.allocs.load(Ordering::Relaxed).wrapping_sub(line.frees.load(Ordering::Relaxed)) as i64
            })
            .sum()
    }

    /// Items in the caches of all CPUs. Nothing may run meanwhile.
    pub(crate) fn cached(&self, class: usize) -> usize {
        let header = self.header();
        let base = header.caches_base.load(Ordering::Relaxed);
        (0..self.slots() as u64)
            .map(|slot| {
                let code = page::class_code(class) as u64;
                let at = base + slot * header.cache_slot_stride + code * header.cache_zone_stride;
                // SAFETY: the caches of a slot of the table, which nobody changes now.
                let cache = unsafe { &*(at as *const CpuCache) };
                cache.items() as usize
            })
            .sum()
    }

    /// Holds the whole account together: every item of every slab is in its slab, in a depot, in a cache or live, and every
    /// page of the heap in a slab, in a run or free. `live` are the served sizes of the live blocks.
    pub(crate) fn check_conservation(&self, live: impl Iterator<Item = Served>) -> Result<(), String> {
        let mut in_use = [0usize; CLASSES];
        let mut live_pages = 0;
        for served in live {
            match (0..SLAB_CLASSES).find(|&class| class_bytes(class) == served.bytes) {
                Some(class) if !served.is_run => in_use[class] += 1,
                _ => live_pages += served.bytes / PAGE,
            }
        }
        for (class, &in_use) in in_use.iter().enumerate().take(SLAB_CLASSES) {
            let record = self.zone(class);
            let count = |counter: &abi::AtomicU64| counter.load(Ordering::Relaxed) as usize;
            let items = count(&record.slabs) * record.items_per_slab as usize;
            let (slabs, depot, cached) = (count(&record.slab_free), count(&record.depot), self.cached(class));
            if items != slabs + depot + cached + in_use {
                return Err(format!(
                    "zone of {} bytes: {items} items, but {slabs} in slabs, {depot} in depots, {cached} in caches, \
                     {in_use} in use",
                    class_bytes(class)
                ));
            }
        }
        let header = self.header();
        let pages = |counter: &abi::AtomicU64| counter.load(Ordering::Relaxed) as usize;
        let cached_pages: usize =
            (SLAB_CLASSES..CLASSES).map(|class| self.cached(class) * (class_bytes(class) / PAGE)).sum();
        if pages(&header.pages_large) != live_pages + cached_pages {
            let large = pages(&header.pages_large);
            return Err(format!("{large} pages in runs, but {live_pages} in use and {cached_pages} in caches"));
        }
        let counts = self.system.page_counts();
        if counts.out as usize != pages(&header.pages_slab) + pages(&header.pages_large) {
            let (slab, large) = (pages(&header.pages_slab), pages(&header.pages_large));
            return Err(format!("{} pages are out, but {slab} in slabs and {large} in runs", counts.out));
        }
        Ok(())
    }
}
