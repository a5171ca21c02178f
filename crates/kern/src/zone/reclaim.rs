//! Memory goes back: trim to the working set, drain, drain the CPUs' caches; walks over all zones; standing still for fork.

use abi::Ordering;
use platform::{Platform, RawLock};

use super::RawZone;
use super::config::{Flags, Reclaim};
use super::core::{KegCore, ZoneCache, ZoneCore, special};
use super::working_set::PERIOD_NS;
use crate::System;

/// In the background of other calls the time is asked at every so manieth slow path: in a process that is a system call.
const TURNS: u32 = 16;

impl<P: Platform> RawZone<'_, P> {
    /// Gives memory back that the zone holds without need. Takes locks and runs `fini` and (SMR) `dtor`; never sleeps. `uma_zone_reclaim`.
    #[doc(alias = "uma_zone_reclaim")]
    pub fn reclaim(&self, how: Reclaim) {
        match how {
            Reclaim::Trim => return self.trim(),
            Reclaim::Drain => {
                self.drain_depots();
                self.collect_strays();
            }
            Reclaim::DrainCpu => self.fetch_back(),
        }
        if let Some(keg) = self.core.keg().filter(|keg| !keg.flags.get().has(Flags::NOFREE)) {
            self.system.keg_trim(keg, 0);
        }
    }

    /// What caches and depots hold goes back to the keg.
    pub(super) fn fetch_back(&self) {
        for slot in 0..self.system.slot_table().count() {
            self.drain_slot_cache(slot);
        }
        self.drain_depots();
        self.collect_strays();
    }

    /// Empties the cache of one slot. False where the platform cannot claim it.
    pub(super) fn drain_slot_cache(&self, index: usize) -> bool {
        if self.core.cache(index).is_null() {
            return true;
        }
        let slot = self.system.slot_at(index);
        // SAFETY: 1. one of the table; we hold none.
        if !unsafe { P::claim_remote(slot as usize) } {
            return false;
        }
        // SAFETY: the slot is held, and so its cache ours.
        let buckets = unsafe {
            let buckets = self.core.cache(index).as_mut().map(ZoneCache::detach);
            System::<P>::leave(slot);
            buckets
        };
        if let Some(buckets) = buckets {
            self.settle(buckets, P::domain_of_slot(index));
        }
        true
    }

    fn drain_depots(&self) {
        for domain in 0..P::domains() {
            self.drain_depot(domain, usize::MAX);
        }
    }

    /// Up to so many items of a depot (and the bucket that reaches the number) go back to the keg.
    pub(super) fn drain_depot(&self, domain: usize, mut items: usize) {
        while items > 0
            && let Some(bucket) = self.depot_reclaim(domain)
        {
            items = items.saturating_sub(bucket.count());
            self.empty(bucket);
        }
    }

    /// Off the fast path: the zone is trimmed when a second has passed since the last time, and what was asked of the system is done.
    pub(super) fn look(&self) {
        self.look_at(P::now_ns());
        self.system.obey();
    }

    fn look_at(&self, now: u64) {
        let last = self.core.last_look_ns.load(Ordering::Relaxed);
        if now.wrapping_sub(last) >= PERIOD_NS
            && self.core.last_look_ns.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.trim();
        }
    }

    /// Does giving memory back run nothing of its maker's: no `fini`, no deferred `dtor`, no supply or source of its own? Then it can be done
    /// inside of any call. (What the maker's functions lock, somebody may hold who calls malloc for something else.)
    fn is_quiet(&self) -> bool {
        let own = self.core.callbacks();
        let defers = self.core.special() & special::SMR != 0 && own.dtor.is_some();
        let keg = self.core.keg().is_some_and(|keg| keg.callbacks().fini.is_none() && keg.supply.get().is_none());
        keg && own.fini.is_none() && !defers
    }

    /// Estimates the working set anew, and lets go what lies beyond it, see `working_set`.
    fn trim(&self) {
        if self.core.flags.get().has(Flags::NOTRIM) {
            return;
        }
        for domain in 0..P::domains() {
            let excess = self.with_depot(domain, |depots| {
                let items = depots.ready.items;
                let excess = depots.working_set.end_period(items);
                excess.max(depots.working_set.idle_excess(items))
            });
            self.drain_depot(domain, excess);
        }
        self.collect_strays();
        if let Some(keg) = self.core.keg().filter(|keg| !keg.flags.get().has(Flags::NOFREE)) {
            self.system.keg_trim(keg, 1);
        }
    }

    /// Checks the zone's lists and counts against each other; the caller sees to it that nothing moves meanwhile.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), &'static str> {
        let mut outside = 0;
        for slot in 0..self.system.slot_table().count() {
            // SAFETY: nothing moves meanwhile.
            if let Some(cache) = unsafe { self.core.cache(slot).as_ref() } {
                outside += cache.items();
            }
        }
        let mut in_depots = 0;
        for domain in 0..P::domains() {
            let depots = self.core.depot(domain).lock();
            in_depots += depots.ready.items + depots.pending_items();
        }
        if in_depots as u64 != self.core.record().depot.load(Ordering::Relaxed) {
            return Err("a zone's record is wrong about its depots");
        }
        outside += in_depots + self.core.strays.load(Ordering::Relaxed);
        let in_use = self.in_use();
        let limit = self.core.limit.lock();
        if limit.items() != outside + in_use {
            return Err("a zone's items outside of the keg are not those in use, in caches and in depots");
        }
        if limit.max() != 0 && limit.items() < limit.max() && limit.sleepers() > 0 {
            return Err("somebody sleeps on a zone's limit although there is room");
        }
        drop(limit);
        let Some(keg) = self.core.keg().filter(|_| self.core.owns_keg()) else { return Ok(()) };
        let (mut slabs, mut free, mut idle) = (0, 0, 0);
        for domain in 0..keg.domains {
            let list = keg.domain(domain).lock();
            list.validate(keg.cut())?;
            (slabs, free, idle) = (slabs + list.slabs, free + list.free_items, idle + list.empties);
        }
        let record = keg.record();
        let count = |counter: &abi::AtomicU64| counter.load(Ordering::Relaxed) as usize;
        if (count(&record.slabs), count(&record.slab_free), count(&record.slabs_idle)) != (slabs, free, idle) {
            return Err("a zone's record is wrong about its slabs");
        }
        if keg.zones.load(Ordering::Relaxed) == 1 && slabs * keg.cut().layout.items != free + outside + in_use {
            return Err("items of a zone are missing from its slabs, or too many");
        }
        Ok(())
    }
}

impl<P: Platform> System<P> {
    /// Calls `f` for every zone; zones may come and go meanwhile, and `f` may make some, but must not destroy the one it is called for.
    pub fn each_zone(&self, mut f: impl FnMut(RawZone<'_, P>)) {
        let mut core = {
            let list = self.registry.list.lock();
            self.visit(list.first)
        };
        // SAFETY: a zone that is visited stays on the list.
        while let Some(this) = unsafe { core.as_ref() } {
            f(RawZone { system: self, core: this });
            let list = self.registry.list.lock();
            core = self.visit(this.next.get());
            drop(list);
            this.visitors.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Under the list's lock: the first zone from here on that is not on its way out, held.
    fn visit(&self, mut core: *mut ZoneCore<P>) -> *mut ZoneCore<P> {
        // SAFETY: on the list, whose lock the caller holds.
        while let Some(this) = unsafe { core.as_ref() } {
            this.visitors.fetch_add(1, Ordering::SeqCst);
            if this.special.load(Ordering::SeqCst) & special::DEAD == 0 {
                break;
            }
            this.visitors.fetch_sub(1, Ordering::SeqCst);
            core = this.next.get();
        }
        core
    }

    /// [`RawZone::reclaim`] for every zone. Never sleeps. uma_reclaim(9).
    #[doc(alias = "uma_reclaim")]
    pub fn reclaim_zones(&self, how: Reclaim) {
        if self.is_booted() {
            self.each_zone(|zone| zone.reclaim(how));
        }
    }

    /// Trims every zone to its working set, each at most once a second however often it is called, and those of the size classes ten times; for
    /// a port's timer. Runs `fini` and (SMR)
    /// `dtor`; never sleeps.
    ///
    /// Where nobody calls it, slow paths of any call trim zones that have no callbacks to run, and slow paths of a zone's own calls trim it.
    pub fn tick_zones(&self) {
        if self.is_booted() {
            let now = P::now_ns();
            self.look_at_depots(now);
            self.each_zone(|zone| zone.look_at(now));
        }
    }

    /// In the background of other calls, with no lock and no slot held: zones that nobody calls are trimmed. One load while there are none.
    #[inline]
    pub(crate) fn trim_in_background(&self) {
        if self.registry.zones.load(Ordering::Relaxed) != 0 {
            self.trim_in_background_cold();
        }
    }

    #[cold]
    fn trim_in_background_cold(&self) {
        let registry = &self.registry;
        // Two that count at once count one: no matter.
        let turn = registry.turns.load(Ordering::Relaxed).wrapping_add(1);
        registry.turns.store(turn, Ordering::Relaxed);
        if !turn.is_multiple_of(TURNS) {
            return;
        }
        let now = P::now_ns();
        let last = registry.last_tick_ns.load(Ordering::Relaxed);
        if now.wrapping_sub(last) >= PERIOD_NS
            && registry.last_tick_ns.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            self.each_quiet_zone(|zone| zone.look_at(now));
        }
    }

    /// [`reclaim`](RawZone::reclaim) for those zones that can be reclaimed inside of any call.
    pub(crate) fn reclaim_quiet_zones(&self, how: Reclaim) {
        self.each_quiet_zone(|zone| zone.reclaim(how));
    }

    fn each_quiet_zone(&self, f: impl Fn(RawZone<'_, P>)) {
        self.each_zone(|zone| {
            if zone.is_quiet() {
                f(zone);
            }
        });
    }

    /// Gives back all that is free, as [`reclaim`](Self::reclaim) does, has owners move items out of nearly empty slabs
    /// ([`RawZone::defragment`]), and gives back what that frees. Returns whether memory went back. The caller holds no lock that a callback of a
    /// zone takes. *May sleep* if a move callback does. malloc_trim(3).
    #[doc(alias = "malloc_trim")]
    pub fn trim(&self) -> bool {
        let mut back = self.reclaim();
        let mut moved = 0;
        if self.is_booted() {
            self.each_zone(|zone| moved += zone.defragment());
        }
        if moved > 0 {
            back |= self.reclaim();
        }
        back
    }

    /// A CPU is gone: what its caches hold, of zones and size classes, goes to where the others find it. Never sleeps. Call it after the
    /// CPU's last section. False where the platform cannot claim the CPU's slots.
    #[doc(alias = "uma_cache_offline")]
    pub fn cpu_offline(&self, id: usize) -> bool {
        let table = *self.slot_table();
        let mut done = true;
        for row in 0..table.rows {
            let index = row * table.ids + id % table.ids;
            self.drain_slot(index);
            self.each_zone(|zone| done &= zone.drain_slot_cache(index));
        }
        self.open_slabs_of(id % table.ids);
        done
    }

    /// Every zone is well. See [`RawZone::validate`].
    pub(crate) fn validate_zones(&self) -> Result<(), &'static str> {
        let mut result = Ok(());
        if self.is_booted() {
            self.each_zone(|zone| result = result.and_then(|()| zone.validate()));
        }
        result
    }

    /// The locks of zones that come before the bucket pool's. Of idle records too: the order is theirs for good.
    pub(crate) fn freeze_zones(&self) {
        self.registry.list.raw().lock();
        self.each_zone_record(|core| {
            core.mover.raw().lock();
            core.on_limit.raw().lock();
            core.limit.raw().lock();
            (0..P::domains()).for_each(|domain| core.depot(domain).raw().lock());
        });
        self.registry.smr.raw_lock().lock();
    }

    /// For the child of a fork: nobody sleeps on a zone here.
    ///
    /// # Safety
    /// 1. After [`freeze_zones`](Self::freeze_zones), in a process with one thread.
    pub(crate) unsafe fn forget_zone_sleepers(&self) {
        self.registry.memory_sleepers.store(0, Ordering::Relaxed);
        self.each_zone_record(|core| {
            // SAFETY: 1. the lock is held.
            unsafe { (*core.limit.as_ptr()).forget_sleepers() };
            core.memory_sleepers.store(0, Ordering::Relaxed);
            core.visitors.store(0, Ordering::Relaxed);
            core.special.fetch_and(!special::SLEEPERS, Ordering::Relaxed);
            if let Some(record) = core.shown_record() {
                record.sleepers.store(0, Ordering::Relaxed);
            }
        });
    }

    /// The locks of kegs, which come after the bucket pool's.
    pub(crate) fn freeze_kegs(&self) {
        self.each_keg_record(|keg| {
            keg.table.raw().lock();
            (0..keg.domains).for_each(|domain| keg.domain(domain).raw().lock());
        });
    }

    /// # Safety
    /// 1. After [`freeze_kegs`](Self::freeze_kegs).
    pub(crate) unsafe fn thaw_kegs(&self) {
        self.each_keg_record(|keg| {
            // SAFETY: 1.
            unsafe {
                (0..keg.domains).for_each(|domain| keg.domain(domain).raw().unlock());
                keg.table.raw().unlock();
            }
        });
    }

    /// # Safety
    /// 1. After [`freeze_zones`](Self::freeze_zones).
    pub(crate) unsafe fn thaw_zones(&self) {
        // SAFETY: 1.
        unsafe {
            self.registry.smr.raw_lock().unlock();
            self.each_zone_record(|core| {
                (0..P::domains()).for_each(|domain| core.depot(domain).raw().unlock());
                core.limit.raw().unlock();
                core.on_limit.raw().unlock();
                core.mover.raw().unlock();
            });
            self.registry.list.raw().unlock();
        }
    }

    /// Every zone's record, with the list's lock held by hand.
    fn each_zone_record(&self, mut f: impl FnMut(&ZoneCore<P>)) {
        // SAFETY: 1. the callers hold it.
        let mut core = unsafe { self.registry.list.held() }.all_zones;
        // SAFETY: records on the list are whole, and never given back.
        while let Some(this) = unsafe { core.as_ref() } {
            f(this);
            core = this.all_next.get();
        }
    }

    /// Every keg's record, with the list's lock held by hand.
    fn each_keg_record(&self, mut f: impl FnMut(&KegCore<P>)) {
        // SAFETY: 1. the callers hold it.
        let mut keg = unsafe { self.registry.list.held() }.all_kegs;
        // SAFETY: records on the list are whole, and never given back.
        while let Some(this) = unsafe { keg.as_ref() } {
            f(this);
            keg = this.all_next.get();
        }
    }
}
