//! Figures of types and zones one by one, for those who make their own tables of them: libmemstat(3), a kernel's
//! debugger.
//!
//! Nothing here waits, enters a section or allocates. Figures of caches that are in use are those of the moment each is
//! read.

use abi::{CacheEntry, Ordering, TypeTotals, zone_flag};
use platform::Platform;

use crate::class::{CLASSES, SLAB_CLASSES};
use crate::slot::Slot;
use crate::stats::TypeId;
use crate::system::System;
use crate::zone::RawZone;

/// A zone in figures. Counts are items unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneFigures {
    /// NUL-terminated.
    pub name: [u8; 32],
    /// Bytes of an item, as asked for; 0 where nobody knows.
    pub item_bytes: u64,
    /// Bytes of an item with what lies between two.
    pub stride_bytes: u64,
    /// Most, 0 for no limit.
    pub limit: u64,
    /// Handed out since the start.
    pub allocs: u64,
    /// Taken back since the start.
    pub frees: u64,
    /// Requests that failed.
    pub fails: u64,
    /// Requests that slept.
    pub sleeps: u64,
    /// Freed in another domain than they came from.
    pub xdomain: u64,
    /// In the CPUs' caches.
    pub cached: u64,
    /// In depots.
    pub depot: u64,
    /// In slabs; in a secondary zone 0, since those are the primary's.
    pub slab_free: u64,
}

/// What one slot (in a kernel: one CPU) has done with a zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotFigures {
    /// Items handed out.
    pub allocs: u64,
    /// Items taken back.
    pub frees: u64,
    /// Items in the slot's cache.
    pub cached: u64,
}

/// A zone to be looked at: of a size class, or made at run time.
pub enum ZoneView<'a, P: Platform> {
    /// By the class's index.
    Class(&'a System<P>, usize),
    /// By its handle.
    Zone(RawZone<'a, P>),
}

impl<P: Platform> System<P> {
    /// Calls `visit` for every zone: those of malloc's classes, then those made at run time. No zone that is visited
    /// goes away meanwhile.
    pub fn each_zone_view(&self, mut visit: impl FnMut(&ZoneView<'_, P>)) {
        if !self.is_booted() {
            return;
        }
        for class in 0..CLASSES {
            visit(&ZoneView::Class(self, class));
        }
        self.each_zone(|zone| visit(&ZoneView::Zone(zone)));
    }

    /// CPU identities, each with so many slots ([`rows`](Self::rows)), and one slot more that is nobody's.
    #[must_use]
    pub fn ids(&self) -> usize {
        if self.is_booted() { self.slot_table().ids } else { 0 }
    }

    /// Slots of each identity: slot `row * ids + id` is one of `id`.
    #[must_use]
    pub fn rows(&self) -> usize {
        if self.is_booted() { self.slot_table().rows } else { 0 }
    }

    /// What one slot has counted for a type: less than nothing in use, where others allocate what it frees.
    ///
    /// # Panics
    /// If there is no such slot.
    #[must_use]
    pub fn slot_totals(&self, slot: usize, id: TypeId) -> TypeTotals {
        assert!(slot < self.slot_table().count(), "there is no slot {slot}");
        // SAFETY: 1. a row has a line for every type there can be.
        TypeTotals::read(|| core::iter::once(unsafe { self.stats().row(slot).view(id.index()) }))
    }

    /// What a slot's cache says of a class.
    pub(crate) fn class_slot_figures(&self, class: usize, slot: usize) -> SlotFigures {
        let slot = self.slot_table().slot(slot) as *const Slot;
        // SAFETY: a slot of the table. Its holder may be changing it, so this is a copy that may be torn: figures only,
        // and what follows from them cannot overflow.
        let cache = unsafe { core::ptr::from_ref((*slot).cache_ref(class)).read_volatile() };
        let first = (cache.alloc_top as usize).wrapping_sub(cache.alloc_items as usize) / size_of::<CacheEntry>();
        let cached = (first as u64).wrapping_add(u64::from(cache.free_count));
        // As `CpuCache::frees` has it.
        let frees = cached.wrapping_add(cache.allocs).wrapping_sub(cache.filled);
        SlotFigures { allocs: cache.allocs, frees, cached }
    }
}

impl<P: Platform> ZoneView<'_, P> {
    /// All of it.
    #[must_use]
    pub fn figures(&self) -> ZoneFigures {
        match self {
            Self::Class(system, class) => {
                let record = system.stats().zone(*class);
                let mut sum = SlotFigures::default();
                for slot in 0..system.slot_table().count() {
                    let more = system.class_slot_figures(*class, slot);
                    sum.allocs = sum.allocs.wrapping_add(more.allocs);
                    sum.frees = sum.frees.wrapping_add(more.frees);
                    sum.cached = sum.cached.wrapping_add(more.cached);
                }
                let count = |counter: &abi::AtomicU64| counter.load(Ordering::Relaxed);
                let has_slabs = *class < SLAB_CLASSES;
                debug_assert!(has_slabs == (record.flags & zone_flag::RUN == 0));
                ZoneFigures {
                    name: record.name,
                    item_bytes: u64::from(record.item_bytes),
                    stride_bytes: u64::from(record.item_bytes),
                    limit: 0,
                    allocs: sum.allocs.wrapping_add(count(&record.direct_allocs)),
                    frees: sum.frees.wrapping_add(count(&record.direct_frees)),
                    fails: count(&record.fails),
                    sleeps: count(&record.sleeps),
                    xdomain: count(&record.xdomain),
                    cached: sum.cached,
                    depot: if has_slabs { count(&record.depot) } else { 0 },
                    slab_free: if has_slabs { count(&record.slab_free) } else { 0 },
                }
            }
            Self::Zone(zone) => {
                let stats = zone.stats();
                let outside = stats.outside.saturating_sub(stats.in_use + stats.depot);
                ZoneFigures {
                    name: zone.name(),
                    item_bytes: zone.item_bytes() as u64,
                    stride_bytes: stats.stride_bytes.max(zone.item_bytes()) as u64,
                    limit: stats.limit as u64,
                    allocs: stats.allocs,
                    frees: stats.frees,
                    fails: stats.fails,
                    sleeps: stats.sleeps,
                    xdomain: stats.xdomain,
                    cached: outside as u64,
                    depot: stats.depot as u64,
                    slab_free: stats.slab_free as u64,
                }
            }
        }
    }

    /// What one slot has done with it.
    #[must_use]
    pub fn slot(&self, slot: usize) -> SlotFigures {
        match self {
            Self::Class(system, class) => system.class_slot_figures(*class, slot),
            Self::Zone(zone) => zone.slot_figures(slot),
        }
    }
}
