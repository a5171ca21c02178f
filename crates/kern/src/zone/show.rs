//! Zones made at run time as a debugger sees them: without a lock.

use abi::Ordering;
use platform::Platform;

use super::RawZone;
use super::core::{ZoneCore, special};
use crate::System;
use crate::inspect::ZoneFigures;

impl<P: Platform> System<P> {
    /// All of them in figures, the youngest first. The list and the caches are read past their locks: for whoever has stopped everything
    /// else, or can live with figures of a moment while no zone is made or unmade.
    pub(crate) fn made_zones(&self) -> impl Iterator<Item = ZoneFigures> {
        // SAFETY: records on the list stay readable, also those of zones on their way out.
        let first = unsafe { (*self.registry.list.as_ptr()).first.as_ref() };
        // SAFETY: as above.
        let zones = ::core::iter::successors(first, |core| unsafe { core.next.get().as_ref() });
        zones.filter(|core| core.special() & special::DEAD == 0).map(|core| self.figures_of(core))
    }

    fn figures_of(&self, core: &ZoneCore<P>) -> ZoneFigures {
        let (allocs, frees) = RawZone { system: self, core }.counts();
        let mut free = 0u64;
        for slot in 0..self.slot_table().count() {
            let cache = core.cache(slot);
            if !cache.is_null() {
                // SAFETY: a cache's record stays while the zone lives. Its holder may be changing the counts: figures only.
                let counts = unsafe {
                    [&raw const (*cache).alloc_count, &raw const (*cache).free_count, &raw const (*cache).cross_count]
                        .map(|count| u64::from(count.read_volatile()))
                };
                free = free.wrapping_add(counts.iter().sum());
            }
        }
        let record = core.record();
        let count = |counter: &abi::AtomicU64| counter.load(Ordering::Relaxed);
        let in_slabs = if core.owns_keg() { count(&record.slab_free) } else { 0 };
        ZoneFigures {
            name: core.name.get(),
            is_cache: core.keg().is_none(),
            item_bytes: core.item_bytes.get() as u64,
            used: allocs.wrapping_sub(frees),
            free: free.wrapping_add(count(&record.depot)).wrapping_add(in_slabs),
            requests: allocs,
            sleeps: count(&record.sleeps),
            bucket: core.bucket_size.load(Ordering::Relaxed) as u64,
            xdomain: count(&record.xdomain),
        }
    }

    /// The locks of zones made at run time, with their names, past the list's lock: for [`locks`](Self::locks).
    pub(crate) fn zone_locks(&self) -> impl Iterator<Item = (&'static str, &P::Lock)> {
        // SAFETY: records are never given back.
        let first = unsafe { (*self.registry.list.as_ptr()).all_zones.as_ref() };
        // SAFETY: as above.
        let zones = ::core::iter::successors(first, |core| unsafe { core.all_next.get().as_ref() });
        let own = zones.flat_map(|core| {
            let depots = (0..P::domains()).map(|domain| ("zone depot", core.depot(domain).raw()));
            [("zone limit", core.limit.raw()), ("zone", core.on_limit.raw()), ("zone", core.mover.raw())]
                .into_iter()
                .chain(depots)
        });
        // SAFETY: as above.
        let first = unsafe { (*self.registry.list.as_ptr()).all_kegs.as_ref() };
        // SAFETY: as above.
        let kegs = ::core::iter::successors(first, |keg| unsafe { keg.all_next.get().as_ref() });
        let kegs = kegs.flat_map(|keg| {
            let slabs = (0..keg.domains).map(|domain| ("zone keg", keg.domain(domain).raw()));
            slabs.chain([("foreign pages", keg.table.raw())])
        });
        [("zones", self.registry.list.raw()), ("readers", self.registry.smr.raw_lock())]
            .into_iter()
            .chain(own)
            .chain(kegs)
    }
}
