//! What a zone can be told and asked: limits, reserves, statistics, whose an address is.

use abi::{Ordering, ZoneLine, page};
use platform::{Misuse, MisuseReport, Platform};

use super::RawZone;
use super::config::{Action, Fail, Flags, How, Wait};
use super::core::{KegCore, OnLimit, ZoneCore, special};
use super::slab::{FREE, Slabs, ZoneSlab};
use crate::System;
use crate::figures::SlotFigures;

/// A limit's warning is said at most so often (uma(9)).
const WARN_EVERY_NS: u64 = 300_000_000_000;

/// A zone in figures, exact while nothing moves. Counts are items unless named otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneStats {
    /// In use.
    pub in_use: usize,
    /// Handed out since the start.
    pub allocs: u64,
    /// Taken back since the start, those included that `ctor` refused.
    pub frees: u64,
    /// Requests that failed.
    pub fails: u64,
    /// Requests that slept.
    pub sleeps: u64,
    /// Sent home from another domain.
    pub xdomain: u64,
    /// Requests that are asleep now.
    pub sleepers: usize,
    /// Most, 0 for no limit.
    pub limit: usize,
    /// Outside of the keg: in use, in caches, in depots.
    pub outside: usize,
    /// In depots.
    pub depot: usize,
    /// Free in slabs (0 in a secondary zone: its keg's are the primary zone's).
    pub slab_free: usize,
    /// Slabs.
    pub slabs: usize,
    /// Pages of all slabs.
    pub pages: usize,
    /// Items per slab.
    pub per_slab: usize,
    /// From item to item in a slab, bytes.
    pub stride_bytes: usize,
    /// Per cent of a slab that is items.
    pub efficiency_percent: usize,
    /// What depots need, by the working-set estimate.
    pub working_set: usize,
    /// Items in a new bucket.
    pub bucket_items: usize,
}

/// Whose an address is: pool(9)'s `whatis`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ItemInfo {
    /// The zone's name (the primary's of its keg), NUL-terminated.
    pub zone_name: [u8; 32],
    /// First byte of the item.
    pub item: usize,
    /// Offset of the address in it.
    pub offset: usize,
    /// Is it in use?
    pub in_use: bool,
    /// Does it lie free in its slab, rather than in a cache or depot?
    pub in_slab: bool,
    /// Domain of its slab.
    pub domain: usize,
}

impl<P: Platform> RawZone<'_, P> {
    /// Allows at most `items` in use at a time; 0 lifts the limit. Who sleeps on it is served as far as it goes. Items in use above a new
    /// limit stay; nothing new is served until they are fewer. uma_zone_set_max(9).
    #[doc(alias = "uma_zone_set_max")]
    pub fn set_max(&self, items: usize) {
        self.core.record().limit.store(items as u64, Ordering::Relaxed);
        self.settle_limit(|limit| limit.set_max(items));
        if items != 0 {
            // At once, rather than by the next request that finds its CPU's cache above the limit.
            self.fetch_back();
        }
    }

    /// Takes up a limit that was written into the zone's record from outside. What caches hold is fetched back by the first request that meets
    /// it: here its maker's callbacks would run in somebody else's call.
    pub(crate) fn obey_limit(&self) {
        let items = usize::try_from(self.core.record().limit.load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        if items != self.max() {
            self.settle_limit(|limit| limit.set_max(items));
        }
    }

    /// The limit; 0 for none. uma_zone_get_max(9).
    #[doc(alias = "uma_zone_get_max")]
    #[must_use]
    pub fn max(&self) -> usize {
        self.core.limit.lock().max()
    }

    /// Bounds what caches and depots hold of the zone, in all; `usize::MAX` lifts the bound. uma_zone_set_maxcache(9).
    ///
    /// Half is the depots', half the CPUs'; where that is less than an item for each bucket of each slot, CPUs cache nothing.
    #[doc(alias = "uma_zone_set_maxcache")]
    pub fn set_maxcache(&self, items: usize) {
        let share = if items == usize::MAX { items } else { items / 2 };
        self.core.max_cache.store(share, Ordering::Relaxed);
        let shown = if items == usize::MAX { 0 } else { items as u64 };
        self.core.record().bucket_max.store(shown, Ordering::Relaxed);
        self.fetch_back();
    }

    /// Items in use. uma_zone_get_cur(9).
    #[doc(alias = "uma_zone_get_cur")]
    #[must_use]
    pub fn in_use(&self) -> usize {
        let (allocs, frees) = self.counts();
        allocs.wrapping_sub(frees) as usize
    }

    /// Is every item that the limit allows in use? uma_zone_exhausted(9).
    #[doc(alias = "uma_zone_exhausted")]
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        let max = self.max();
        max != 0 && self.in_use() >= max
    }

    /// Allocations and frees, all slots' frees first: never more frees than allocations.
    pub(super) fn counts(&self) -> (u64, u64) {
        let lines = || (0..self.system.slot_table().count()).filter_map(|slot| self.line(slot));
        let record = self.core.record();
        let sum = |of: fn(&ZoneLine) -> u64| lines().fold(0u64, |sum, line| sum.wrapping_add(of(line)));
        let frees = record.direct_frees.load(Ordering::Acquire);
        let frees = frees.wrapping_add(sum(|line| line.frees.load(Ordering::Acquire)));
        let allocs = sum(|line| line.allocs.load(Ordering::Relaxed));
        (allocs.wrapping_add(record.direct_allocs.load(Ordering::Relaxed)), frees)
    }

    fn line(&self, slot: usize) -> Option<&ZoneLine> {
        // SAFETY: a cache's record stays while the zone lives, and so does its line.
        unsafe { self.core.cache(slot).as_ref().map(|cache| &*cache.line) }
    }

    /// What one slot has done with the zone. Read while its holder may change it: figures only.
    pub(crate) fn slot_figures(&self, slot: usize) -> SlotFigures {
        let cache = self.core.cache(slot);
        if cache.is_null() {
            return SlotFigures::default();
        }
        // SAFETY: a cache's record stays while the zone lives, and so does its line. The counts may be torn.
        let (counts, line) = unsafe {
            let count = |field: *const u32| u64::from(field.read_volatile());
            let counts =
                [&raw const (*cache).alloc_count, &raw const (*cache).free_count, &raw const (*cache).cross_count];
            (counts.map(count), &*(*cache).line)
        };
        let frees = line.frees.load(Ordering::Acquire);
        SlotFigures { allocs: line.allocs.load(Ordering::Relaxed), frees, cached: counts.iter().sum() }
    }

    /// Everything that is counted.
    #[must_use]
    pub fn stats(&self) -> ZoneStats {
        let record = self.core.record();
        let (allocs, frees) = self.counts();
        let count = |counter: &abi::AtomicU64| counter.load(Ordering::Relaxed) as usize;
        let working_set =
            (0..P::domains()).map(|domain| self.core.depot(domain).lock().working_set.estimate).sum::<usize>();
        let mut out = ZoneStats {
            in_use: allocs.wrapping_sub(frees) as usize,
            allocs,
            frees,
            fails: count(&record.fails) as u64,
            sleeps: count(&record.sleeps) as u64,
            xdomain: count(&record.xdomain) as u64,
            sleepers: count(&record.sleepers),
            limit: self.max(),
            outside: self.core.limit.lock().items(),
            depot: count(&record.depot),
            slab_free: count(&record.slab_free),
            slabs: count(&record.slabs),
            working_set,
            bucket_items: self.bucket_items(),
            ..ZoneStats::default()
        };
        if let Some(keg) = self.core.keg() {
            let layout = &keg.cut().layout;
            out.per_slab = layout.items;
            out.stride_bytes = layout.stride_bytes;
            out.pages = out.slabs * (layout.slab_bytes >> P::PAGE_SHIFT);
            out.efficiency_percent = layout.efficiency_percent(keg.item_bytes.get(), keg.copies.get());
        }
        out
    }

    /// Name, cut at 31 bytes.
    #[must_use]
    pub fn name(&self) -> [u8; 32] {
        self.core.name.get()
    }

    /// Bytes of an item. uma_zone_get_size(9).
    #[must_use]
    pub fn item_bytes(&self) -> usize {
        self.core.item_bytes.get()
    }

    /// Says `text` (cut at 127 bytes) on the console when a request meets the limit, at most once in 300 seconds. Empty: nothing.
    /// uma_zone_set_warning(9).
    #[doc(alias = "uma_zone_set_warning")]
    pub fn set_warning(&self, text: &str) {
        let mut on_limit = self.core.on_limit.lock();
        on_limit.warning = [0; 128];
        let len = text.len().min(127);
        on_limit.warning[..len].copy_from_slice(&text.as_bytes()[..len]);
        on_limit.warned_ns = 0;
    }

    /// Runs `action` whenever a request meets the limit, before it fails or sleeps: by the requester, with no lock held.
    /// uma_zone_set_maxaction(9).
    ///
    /// # Safety
    /// 1. `action` may be run by any thread until the zone is destroyed or this is called anew.
    #[doc(alias = "uma_zone_set_maxaction")]
    pub unsafe fn set_maxaction(&self, action: Option<Action>) {
        self.core.on_limit.lock().action = action;
    }

    /// A request met the limit.
    #[cold]
    pub(super) fn tell_limit(&self) {
        let OnLimit { warning, action, .. } = {
            let mut on_limit = self.core.on_limit.lock();
            let mut now = *on_limit;
            let time = P::now_ns();
            if now.warned_ns != 0 && time.wrapping_sub(now.warned_ns) < WARN_EVERY_NS {
                now.warning[0] = 0;
            } else if now.warning[0] != 0 {
                on_limit.warned_ns = time.max(1);
            }
            now
        };
        if warning[0] != 0 {
            let mut text = crate::text::Text::<256>::new();
            text.push(b"[zone: ").push(abi::c_text(&self.core.name.get())).push(b"] ").push(abi::c_text(&warning));
            P::warning(text.as_bytes());
        }
        if let Some(action) = action {
            // SAFETY: 1. of `set_maxaction`.
            unsafe { (action.run)(action.context) };
        }
    }

    /// Keeps `items` free in the slabs of each domain for requests with [`How::reserve`]. Makes the slabs at once. uma_zone_reserve(9).
    ///
    /// # Errors
    /// When there is no memory for them: then the reserve is as before. A zone without a keg has none.
    #[doc(alias = "uma_zone_reserve")]
    pub fn set_reserve(&self, items: usize) -> Result<(), Fail> {
        let keg = self.core.keg().ok_or(Fail::Memory)?;
        let before = keg.reserve.swap(items, Ordering::Relaxed);
        for domain in 0..keg.domains {
            while keg.domain(domain).lock().free_items < items {
                if let Err(fail) = self.system.add_slab_to(keg, domain, Wait::No) {
                    keg.reserve.store(before, Ordering::Relaxed);
                    self.system.keg_trim(keg, 1);
                    return Err(fail);
                }
            }
        }
        keg.record().reserve.store(items as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Keeps at least `items` free in the slabs of each domain, for anybody: makes slabs for them now, makes another when they are fewer and there
    /// is memory, and gives none back that they lie in. 0 for none. Never sleeps. pool_setlowat(9).
    ///
    /// # Errors
    /// When there is no memory for all of them; the mark is set all the same. A zone without a keg has none.
    #[doc(alias = "pool_setlowat")]
    pub fn set_low_water(&self, items: usize) -> Result<(), Fail> {
        let keg = self.core.keg().ok_or(Fail::Memory)?;
        keg.low_water.store(items, Ordering::Relaxed);
        // Each of them, also after one that found no memory.
        let short = (0..keg.domains).filter(|&domain| !self.system.refill_to_low_water(keg, domain)).count();
        if short == 0 { Ok(()) } else { Err(Fail::Memory) }
    }

    /// Keeps slabs without an item in use for as many as `items` in each domain, rather than one of them: what is free beyond goes back to the
    /// system at once, what is within when the zone is trimmed. Nothing in a zone without a keg. Never sleeps. pool_sethiwat(9).
    #[doc(alias = "pool_sethiwat")]
    pub fn set_high_water(&self, items: usize) {
        if let Some(keg) = self.core.keg() {
            let slabs = items.div_ceil(keg.cut().layout.items);
            keg.idle_slabs.store(slabs, Ordering::Relaxed);
            if !keg.flags.get().has(Flags::NOFREE) {
                self.system.keg_trim(keg, slabs);
            }
        }
    }

    /// Makes slabs until `items` are free in them, of all domains in turn. *May sleep* in `init` and in the zone's own supply. uma_prealloc(9).
    ///
    /// # Errors
    /// When there is no memory for all of them; those made stay.
    #[doc(alias = "uma_prealloc")]
    pub fn prealloc(&self, items: usize) -> Result<(), Fail> {
        let keg = self.core.keg().ok_or(Fail::Memory)?;
        for turn in 0.. {
            let free: usize = (0..keg.domains).map(|domain| keg.domain(domain).lock().free_items).sum();
            if free >= items {
                break;
            }
            self.system.add_slab_to(keg, turn % keg.domains, Wait::Sleep)?;
        }
        Ok(())
    }

    /// The copy of a per-CPU item for a CPU identity. `zpcpu_get_cpu`.
    ///
    /// # Panics
    /// If there is no such CPU, or the zone is no per-CPU zone.
    #[doc(alias = "zpcpu_get_cpu")]
    #[must_use]
    pub fn pcpu_copy(&self, item: *mut u8, cpu: usize) -> *mut u8 {
        let copies = self.core.keg().map_or(0, |keg| keg.copies.get());
        assert!(cpu < copies, "an item of this zone has {copies} copies, and none for CPU {cpu}");
        item.wrapping_add(cpu << P::PAGE_SHIFT)
    }

    /// Copies of an item: CPU identities in a per-CPU zone, else 0.
    #[must_use]
    pub fn pcpu_copies(&self) -> usize {
        self.core.keg().map_or(0, |keg| keg.copies.get())
    }

    /// Waits until an item could be had. *May sleep*. uma_zwait(9).
    ///
    /// # Errors
    /// [`Fail::Callback`]: `ctor` or `init` fails.
    #[doc(alias = "uma_zwait")]
    pub fn wait(&self) -> Result<(), Fail> {
        let item = self.alloc(How::WAIT)?;
        // SAFETY: 1. just allocated. 2. from here.
        unsafe { self.free(item.as_ptr()) };
        Ok(())
    }

    /// The flags it was made with.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.core.flags.get()
    }

    /// Does everything go past the caches: by flag, or because somebody sleeps?
    #[must_use]
    pub fn is_past_caches(&self) -> bool {
        self.core.special() & special::PAST_CACHES != 0
    }
}

impl<P: Platform> System<P> {
    /// The zone whose item contains an address of the heap. For reports and debuggers: takes locks, and what it finds may have
    /// changed by the time it is told. `None` for what is no zone's.
    #[doc(alias = "pool_whatis")]
    #[must_use]
    pub fn zone_item(&self, addr: usize) -> Option<ItemInfo> {
        if !self.is_booted() || !self.in_heap(addr) {
            return None;
        }
        let word = self.word(addr);
        if page::code(word) != page::ZONE_SLAB {
            return None;
        }
        let slab = page::descriptor(word) as *mut ZoneSlab;
        let mut found = None;
        self.each_zone(|zone| {
            let Some(keg) = zone.core.keg().filter(|_| zone.core.owns_keg() && found.is_none()) else { return };
            // SAFETY: a descriptor that a page's word names is readable, and stays so; whether it is this keg's, it says.
            if unsafe { ((*slab).keg, (*slab).generation) } == keg.identity() {
                found = Self::describe_item(zone.core, keg, slab, addr);
            }
        });
        found
    }

    fn describe_item(core: &ZoneCore<P>, keg: &KegCore<P>, slab: *mut ZoneSlab, addr: usize) -> Option<ItemInfo> {
        // SAFETY: a live slab of this keg; the state is inside its descriptor.
        unsafe {
            let index = keg.cut().item_around(&*slab, addr)?;
            let domain = (*slab).domain as usize;
            let in_slab = {
                let _list = keg.domain(domain).lock();
                Slabs::lies_free(slab, index)
            };
            let item = keg.cut().item(&*slab, index);
            let state = *keg.cut().state(slab, index);
            let in_use = state != FREE && state != super::depot::STRAY;
            Some(ItemInfo { zone_name: core.name.get(), item, offset: addr - item, in_use, in_slab, domain })
        }
    }

    /// Reports a misuse of a zone's item.
    #[cold]
    pub(crate) fn zone_misuse(&self, what: Misuse, addr: usize) {
        if self.is_booted() {
            self.stats().header().misuses.fetch_add(1, Ordering::Relaxed);
        }
        let info = self.zone_item(addr);
        let bytes = |zone: &RawZone<'_, P>| zone.core.item_bytes.get();
        let mut item_bytes = 0;
        if let Some(info) = &info {
            self.each_zone(|zone| {
                if zone.core.name.get() == info.zone_name {
                    item_bytes = bytes(&zone);
                }
            });
        }
        P::misuse(&MisuseReport {
            what,
            addr,
            item: info.map_or(0, |info| info.item),
            item_bytes,
            type_index: None,
            caller: 0,
            freed_by: 0,
            zone_name: info.map_or([0; 32], |info| info.zone_name),
        });
    }
}
