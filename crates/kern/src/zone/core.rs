//! The records behind a zone: zone, keg, depot, per-CPU cache; and the list of all zones.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicUsize};

use abi::{AtomicU64, CacheEntry, Ordering, ZoneLine, ZoneRecord};
use platform::{Lock, Platform};

use super::config::{Action, Callbacks, Flags, Source, Supply};
use super::limit::Limit;
use super::slab::{Cut, Slabs};
use super::smr::Smr;
use super::table::PageTable;
use super::working_set::WorkingSet;
use crate::bucket::Depot;

/// Bits of [`ZoneCore::special`]: tested once on each fast path, and any of them leaves it.
pub(crate) mod special {
    /// No per-CPU caches.
    pub(crate) const NOBUCKET: u32 = 1;
    /// Somebody sleeps: what comes back goes past the caches.
    pub(crate) const SLEEPERS: u32 = 1 << 1;
    /// Frees are deferred.
    pub(crate) const SMR: u32 = 1 << 2;
    /// Items are sent home to their domain.
    pub(crate) const CROSS: u32 = 1 << 3;
    /// Destroyed.
    pub(crate) const DEAD: u32 = 1 << 4;
    /// More items are outside of the keg than a limit set since allows.
    pub(crate) const OVER: u32 = 1 << 5;
    /// Nothing to do for an allocation.
    pub(crate) const FREE_ONLY: u32 = SMR | CROSS;
    /// What sends everything past the caches.
    pub(crate) const PAST_CACHES: u32 = NOBUCKET | SLEEPERS | DEAD | OVER;
}

/// What one slot has of a zone. Touched only by the slot's holder.
#[repr(C, align(64))]
pub(crate) struct ZoneCache {
    /// What allocations pop and frees push.
    pub(crate) alloc_items: *mut CacheEntry,
    /// The bucket behind it. In an SMR zone what was freed and waits for readers.
    pub(crate) free_items: *mut CacheEntry,
    pub(crate) alloc_count: u32,
    pub(crate) alloc_capacity: u32,
    pub(crate) free_count: u32,
    pub(crate) free_capacity: u32,
    /// Where this slot counts for this zone.
    pub(crate) line: *const ZoneLine,
    /// Items of other domains, on their way home.
    pub(crate) cross_items: *mut CacheEntry,
    pub(crate) cross_count: u32,
    pub(crate) cross_capacity: u32,
    /// The line of a zone that the statistics object has no room for.
    pub(crate) own_line: ZoneLine,
}

/// Full buckets of one zone and domain.
pub(crate) struct Depots {
    pub(crate) ready: Depot,
    /// Buckets that wait for readers, by era modulo three: those of era E are ready in era E+2, before E+3 needs their place.
    pub(crate) pending: [Depot; 3],
    pub(crate) pending_era: [u64; 3],
    pub(crate) working_set: WorkingSet,
}

impl Depots {
    const fn new() -> Self {
        Self {
            ready: Depot::new(),
            pending: [Depot::new(), Depot::new(), Depot::new()],
            pending_era: [0; 3],
            working_set: WorkingSet::NONE,
        }
    }

    pub(crate) fn pending_items(&self) -> usize {
        self.pending.iter().map(|depot| depot.items).sum()
    }
}

/// Items of one layout, shared by a primary zone and its secondaries.
pub(crate) struct KegCore<P: Platform> {
    /// Constant while the keg lives.
    pub(crate) cut: UnsafeCell<Cut>,
    pub(crate) item_bytes: Cell<usize>,
    /// Copies of an item; 0 for ordinary ones.
    pub(crate) copies: Cell<usize>,
    pub(crate) flags: Cell<Flags>,
    pub(crate) callbacks: UnsafeCell<Callbacks>,
    pub(crate) supply: Cell<Option<Supply>>,
    pub(crate) record: Cell<*const ZoneRecord>,
    /// The zone it was made with.
    pub(crate) primary: Cell<*const ZoneCore<P>>,
    /// One more each time that the record becomes another keg.
    pub(crate) generation: AtomicU32,
    /// Zones on it.
    pub(crate) zones: AtomicU32,
    /// The ordinal of the next zone.
    pub(crate) next_ordinal: AtomicU8,
    /// By domain.
    pub(crate) slabs: *const Lock<P::Lock, Slabs>,
    pub(crate) domains: usize,
    /// The next slab's.
    pub(crate) colour: AtomicUsize,
    /// The next domain, where they take turns.
    pub(crate) turn: AtomicUsize,
    /// Items of each domain that only `How::reserve` may take.
    pub(crate) reserve: AtomicUsize,
    /// Items of each domain that stay free in slabs, and slabs without an item in use that do; see [`super::RawZone::set_low_water`].
    pub(crate) low_water: AtomicUsize,
    pub(crate) idle_slabs: AtomicUsize,
    /// Pages of a supply of its own, which have no word.
    pub(crate) table: Lock<P::Lock, PageTable>,
    pub(crate) next: Cell<*mut KegCore<P>>,
    /// The next on the list of all records, in use or not.
    pub(crate) all_next: Cell<*mut KegCore<P>>,
}

/// A constant of a live zone or keg: written only while nobody else knows the record.
pub(crate) struct Cell<T>(UnsafeCell<T>);

impl<T: Copy> Cell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> T {
        // SAFETY: constant while others look.
        unsafe { *self.0.get() }
    }

    /// # Safety
    /// 1. Nobody else looks.
    pub(crate) unsafe fn set(&self, value: T) {
        // SAFETY: 1.
        unsafe { *self.0.get() = value }
    }
}

/// A zone.
pub(crate) struct ZoneCore<P: Platform> {
    // Read by every call.
    pub(crate) special: AtomicU32,
    /// What an item in use has for its state.
    pub(crate) ordinal: Cell<u8>,
    /// A cache per slot, null until the slot needs one.
    pub(crate) caches: *const AtomicPtr<ZoneCache>,
    /// Null for a cache zone.
    pub(crate) keg: Cell<*const KegCore<P>>,
    pub(crate) item_bytes: Cell<usize>,
    pub(crate) callbacks: UnsafeCell<Callbacks>,

    // Constant while the zone lives, read off the fast paths.
    pub(crate) flags: Cell<Flags>,
    pub(crate) is_secondary: Cell<bool>,
    pub(crate) source: Cell<Option<Source>>,
    pub(crate) record: Cell<*const ZoneRecord>,
    /// Index of the record in the statistics object, `usize::MAX` for one of our own.
    pub(crate) record_index: Cell<usize>,
    pub(crate) own_record: ZoneRecord,
    pub(crate) name: Cell<[u8; 32]>,

    // Written now and then, or rarely.
    pub(crate) bucket_size: AtomicUsize,
    /// Most items in all depots, and most in all caches; `usize::MAX` for no bound.
    pub(crate) max_cache: AtomicUsize,
    pub(crate) last_look_ns: AtomicU64,
    /// By domain.
    pub(crate) depots: *const Lock<P::Lock, Depots>,
    pub(crate) limit: Lock<P::Lock, Limit>,
    /// Changes whenever a sleeper should look again.
    pub(crate) wake: AtomicU32,
    /// Requests that wait for memory.
    pub(crate) memory_sleepers: AtomicU32,
    pub(crate) on_limit: Lock<P::Lock, OnLimit>,
    pub(crate) mover: Lock<P::Lock, Option<super::Mover>>,
    /// Items of an SMR zone that only their state remembers, and the youngest era in which one was freed.
    pub(crate) strays: AtomicUsize,
    pub(crate) strays_era: AtomicU64,
    /// Walks over all zones that are at this one.
    pub(crate) visitors: AtomicU32,
    /// The next zone on the list of all.
    pub(crate) next: Cell<*mut ZoneCore<P>>,
    /// The next on the list of all records, in use or not.
    pub(crate) all_next: Cell<*mut ZoneCore<P>>,
}

/// What happens when a request meets the limit.
#[derive(Clone, Copy)]
pub(crate) struct OnLimit {
    pub(crate) warning: [u8; 128],
    pub(crate) warned_ns: u64,
    pub(crate) action: Option<Action>,
}

impl OnLimit {
    pub(crate) const NONE: Self = Self { warning: [0; 128], warned_ns: 0, action: None };
}

// SAFETY: what is not locked or atomic is constant while the zone lives, or a slot's holder's.
unsafe impl<P: Platform> Sync for ZoneCore<P> {}
// SAFETY: as above.
unsafe impl<P: Platform> Sync for KegCore<P> {}

impl<P: Platform> KegCore<P> {
    /// # Safety
    /// 1. `at` is zeroed memory for it, and `slabs` for one lock per domain, for good.
    pub(crate) unsafe fn write(at: *mut Self, slabs: *mut Lock<P::Lock, Slabs>, domains: usize, cut: Cut) {
        // SAFETY: 1.
        unsafe {
            for domain in 0..domains {
                slabs.add(domain).write(Lock::new(Slabs::new()));
            }
            at.write(Self {
                cut: UnsafeCell::new(cut),
                item_bytes: Cell::new(0),
                copies: Cell::new(0),
                flags: Cell::new(Flags::NONE),
                callbacks: UnsafeCell::new(Callbacks::NONE),
                supply: Cell::new(None),
                record: Cell::new(core::ptr::null()),
                primary: Cell::new(core::ptr::null()),
                generation: AtomicU32::new(0),
                zones: AtomicU32::new(0),
                next_ordinal: AtomicU8::new(1),
                slabs,
                domains,
                colour: AtomicUsize::new(0),
                turn: AtomicUsize::new(0),
                reserve: AtomicUsize::new(0),
                low_water: AtomicUsize::new(0),
                idle_slabs: AtomicUsize::new(1),
                table: Lock::new(PageTable::new()),
                next: Cell::new(core::ptr::null_mut()),
                all_next: Cell::new(core::ptr::null_mut()),
            });
        }
    }

    pub(crate) fn cut(&self) -> &Cut {
        // SAFETY: constant while the keg lives.
        unsafe { &*self.cut.get() }
    }

    pub(crate) fn callbacks(&self) -> &Callbacks {
        // SAFETY: constant while the keg lives.
        unsafe { &*self.callbacks.get() }
    }

    pub(crate) fn domain(&self, domain: usize) -> &Lock<P::Lock, Slabs> {
        debug_assert!(domain < self.domains);
        // SAFETY: written with one lock per domain.
        unsafe { &*self.slabs.add(domain) }
    }

    pub(crate) fn record(&self) -> &ZoneRecord {
        // SAFETY: the primary zone's, which lives as long as the keg's memory.
        unsafe { &*self.record.get() }
    }

    /// Items of a domain that stay free in its slabs whatever is given back.
    pub(crate) fn floor(&self) -> usize {
        self.reserve.load(Ordering::Relaxed).max(self.low_water.load(Ordering::Relaxed))
    }

    /// What a slab says of whom it belongs to.
    pub(crate) fn identity(&self) -> (*const (), u32) {
        (core::ptr::from_ref(self).cast(), self.generation.load(Ordering::Relaxed))
    }
}

impl<P: Platform> ZoneCore<P> {
    /// # Safety
    /// 1. `at` is zeroed memory for it, `depots` for one lock per domain and `caches` for a pointer per slot, for good.
    pub(crate) unsafe fn write(
        at: *mut Self,
        depots: *mut Lock<P::Lock, Depots>,
        domains: usize,
        caches: *const AtomicPtr<ZoneCache>,
    ) {
        // SAFETY: 1.
        unsafe {
            for domain in 0..domains {
                depots.add(domain).write(Lock::new(Depots::new()));
            }
            at.write(Self {
                special: AtomicU32::new(special::DEAD),
                ordinal: Cell::new(0),
                caches,
                keg: Cell::new(core::ptr::null()),
                item_bytes: Cell::new(0),
                callbacks: UnsafeCell::new(Callbacks::NONE),
                flags: Cell::new(Flags::NONE),
                is_secondary: Cell::new(false),
                source: Cell::new(None),
                record: Cell::new(core::ptr::null()),
                record_index: Cell::new(usize::MAX),
                own_record: core::mem::zeroed(),
                name: Cell::new([0; 32]),
                bucket_size: AtomicUsize::new(0),
                max_cache: AtomicUsize::new(usize::MAX),
                last_look_ns: AtomicU64::new(0),
                depots,
                limit: Lock::new(Limit::new()),
                wake: AtomicU32::new(0),
                memory_sleepers: AtomicU32::new(0),
                on_limit: Lock::new(OnLimit::NONE),
                mover: Lock::new(None),
                strays: AtomicUsize::new(0),
                strays_era: AtomicU64::new(0),
                visitors: AtomicU32::new(0),
                next: Cell::new(core::ptr::null_mut()),
                all_next: Cell::new(core::ptr::null_mut()),
            });
        }
    }

    #[inline(always)]
    pub(crate) fn callbacks(&self) -> &Callbacks {
        // SAFETY: constant while the zone lives.
        unsafe { &*self.callbacks.get() }
    }

    pub(crate) fn keg(&self) -> Option<&KegCore<P>> {
        // SAFETY: null, or a keg that lives as long as its zones.
        unsafe { self.keg.get().as_ref() }
    }

    /// Whether the keg's callbacks are this zone's, and its items its own.
    pub(crate) fn owns_keg(&self) -> bool {
        !self.keg.get().is_null() && !self.is_secondary.get()
    }

    #[inline(always)]
    pub(crate) fn cache(&self, slot: usize) -> *mut ZoneCache {
        // SAFETY: one per slot of the table.
        unsafe { (*self.caches.add(slot)).load(Ordering::Acquire) }
    }

    pub(crate) fn cache_ptr(&self, slot: usize) -> &AtomicPtr<ZoneCache> {
        // SAFETY: one per slot of the table.
        unsafe { &*self.caches.add(slot) }
    }

    pub(crate) fn depot(&self, domain: usize) -> &Lock<P::Lock, Depots> {
        // SAFETY: one per domain; domains are the platform's.
        unsafe { &*self.depots.add(domain) }
    }

    pub(crate) fn record(&self) -> &ZoneRecord {
        // SAFETY: of the statistics object, or our own.
        unsafe { &*self.record.get() }
    }

    /// The record, if the zone has had one.
    pub(crate) fn shown_record(&self) -> Option<&ZoneRecord> {
        // SAFETY: null, of the statistics object, or our own.
        unsafe { self.record.get().as_ref() }
    }

    #[inline(always)]
    pub(crate) fn special(&self) -> u32 {
        self.special.load(Ordering::Relaxed)
    }
}

/// All zones made at run time, behind a lock; their records are reused, never given back.
pub(crate) struct ZoneList<P: Platform> {
    pub(crate) first: *mut ZoneCore<P>,
    /// Every record ever made, the youngest first: the order in which fork takes their locks.
    pub(crate) all_zones: *mut ZoneCore<P>,
    pub(crate) all_kegs: *mut KegCore<P>,
    pub(crate) idle_zones: *mut ZoneCore<P>,
    pub(crate) idle_kegs: *mut KegCore<P>,
    /// Record indices given back, a bit each.
    pub(crate) idle_records: [u64; crate::stats::ZONES / 64],
}

// SAFETY: the lists are reached under the owner's lock only.
unsafe impl<P: Platform> Send for ZoneList<P> {}

/// What a system has for its zones.
pub(crate) struct Registry<P: Platform> {
    pub(crate) list: Lock<P::Lock, ZoneList<P>>,
    pub(crate) smr: Smr<P>,
    /// Changes when pages have come back while somebody waits for memory.
    pub(crate) memory: AtomicU32,
    pub(crate) memory_sleepers: AtomicU32,
    /// Zones there are.
    pub(crate) zones: AtomicU32,
    /// Slow paths that came by since.
    pub(crate) turns: AtomicU32,
    /// When zones were last trimmed in the background.
    pub(crate) last_tick_ns: AtomicU64,
}

impl<P: Platform> Registry<P> {
    pub(crate) const fn new() -> Self {
        let (none, no_keg) = (core::ptr::null_mut(), core::ptr::null_mut());
        Self {
            list: Lock::new(ZoneList {
                first: none,
                all_zones: none,
                all_kegs: no_keg,
                idle_zones: none,
                idle_kegs: no_keg,
                idle_records: [0; crate::stats::ZONES / 64],
            }),
            smr: Smr::new(),
            memory: AtomicU32::new(0),
            memory_sleepers: AtomicU32::new(0),
            zones: AtomicU32::new(0),
            turns: AtomicU32::new(0),
            last_tick_ns: AtomicU64::new(0),
        }
    }
}
