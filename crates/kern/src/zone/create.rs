//! Making and unmaking zones.

use core::ptr::{NonNull, null, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use abi::ZoneRecord;
use platform::{Lock, Platform};

use super::RawZone;
use super::alloc::BUCKET_FIRST;
use super::config::{Callbacks, Flags, Source, ZoneConfig, ZoneError};
use super::core::{Depots, KegCore, OnLimit, ZoneCache, ZoneCore, special};
use super::depot::bucket_max;
use super::layout::{KegLayout, MAX_ALIGN, MAX_ITEM_BYTES, Want};
use super::limit::Limit;
use super::slab::{Cut, Slabs};
use super::smr::SmrLine;
use crate::System;
use crate::class::CLASSES;
use crate::stats::ZONES;
use crate::text::Text;

/// Zones on one keg: an item's state has room for no more.
const MAX_ZONES_PER_KEG: u8 = 253;

/// What was left of a zone that is no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Destroyed {
    /// Items of it that are still in use. Their memory stays theirs, and is lost.
    pub items: usize,
    /// Pages they hold.
    pub pages: usize,
}

/// How a zone is made, whatever its kind.
struct Plan<'a, P: Platform> {
    name: &'a str,
    item_bytes: usize,
    flags: Flags,
    callbacks: Callbacks,
    keg: *const KegCore<P>,
    ordinal: u8,
    is_secondary: bool,
    source: Option<Source>,
}

impl<P: Platform> System<P> {
    /// A zone with a keg of its own. Never sleeps. uma_zcreate(9), pool_cache_init(9).
    ///
    /// # Errors
    /// [`ZoneError`] says what cannot be, or that memory for its records is short; nothing is left behind.
    #[doc(alias = "uma_zcreate")]
    pub fn zcreate(&self, config: &ZoneConfig<'_>) -> Result<RawZone<'_, P>, ZoneError> {
        let flags = config.flags;
        if !flags.are_sound() || (flags.has(Flags::SMR) && flags.has(Flags::PCPU)) {
            return Err(ZoneError::Flags(flags));
        }
        self.zcreate_sound(config)
    }

    /// [`zcreate`](Self::zcreate) with flags that go together.
    pub(super) fn zcreate_sound(&self, config: &ZoneConfig<'_>) -> Result<RawZone<'_, P>, ZoneError> {
        let flags = config.flags;
        if !self.is_booted() {
            return Err(ZoneError::Memory);
        }
        if flags.has(Flags::SMR) && !self.provide_readers() {
            return Err(ZoneError::Memory);
        }
        let copies = if flags.has(Flags::PCPU) { self.slot_table().ids } else { 0 };
        let most_bytes = if copies > 0 { Self::PAGE } else { MAX_ITEM_BYTES };
        let most_align = if copies > 0 { Self::PAGE } else { MAX_ALIGN };
        if config.item_bytes == 0 || config.item_bytes > most_bytes {
            return Err(ZoneError::ItemBytes(config.item_bytes));
        }
        if !config.align.is_power_of_two() || config.align > most_align {
            return Err(ZoneError::Align(config.align));
        }
        let layout = KegLayout::new(&Want {
            item_bytes: config.item_bytes,
            align: config.align,
            page_bytes: Self::PAGE,
            offpage: flags.has(Flags::NOTOUCH),
            cache_spread: flags.has(Flags::CACHESPREAD),
            copies,
            type_tags: flags.has(Flags::MALLOC),
            one_page: flags.has(Flags::CONTIG) && config.supply.is_none(),
        })
        .map_err(|_| ZoneError::ItemBytes(config.item_bytes))?;
        if flags.has(Flags::CONTIG) && layout.slab_bytes > Self::PAGE && config.supply.is_none() {
            return Err(ZoneError::Contig(layout.slab_bytes));
        }
        let keg = self.new_keg(Cut::new(layout)).ok_or(ZoneError::Memory)?;
        // SAFETY: 1. nobody else knows the keg yet.
        unsafe {
            keg.item_bytes.set(config.item_bytes);
            keg.copies.set(copies);
            keg.flags.set(flags);
            *keg.callbacks.get() = config.callbacks;
            keg.supply.set(config.supply);
        }
        keg.zones.store(1, Ordering::Relaxed);
        keg.next_ordinal.store(2, Ordering::Relaxed);
        let plan = Plan {
            name: config.name,
            item_bytes: config.item_bytes,
            flags,
            callbacks: config.callbacks,
            keg,
            ordinal: 1,
            is_secondary: false,
            source: None,
        };
        match self.new_zone(&plan) {
            Some(zone) => Ok(zone),
            None => {
                self.idle_keg(keg);
                Err(ZoneError::Memory)
            }
        }
    }

    /// A zone on the keg of another: its items are of the same layout and come from the same slabs. The keg's `init` and `fini` run when slabs are
    /// made and unmade, this zone's when items leave the keg for it and come back. Never sleeps. uma_zsecond_create(9).
    ///
    /// # Errors
    /// [`ZoneError::Flags`] for a cache zone's or an SMR zone's keg; [`ZoneError::KegFull`]; [`ZoneError::Memory`].
    #[doc(alias = "uma_zsecond_create")]
    pub fn zsecond_create(
        &self,
        name: &str,
        primary: RawZone<'_, P>,
        callbacks: Callbacks,
    ) -> Result<RawZone<'_, P>, ZoneError> {
        let Some(keg) = primary.core.keg() else { return Err(ZoneError::Flags(primary.core.flags.get())) };
        if keg.flags.get().has(Flags::SMR) {
            return Err(ZoneError::Flags(keg.flags.get()));
        }
        let next = |ordinal: u8| (ordinal < MAX_ZONES_PER_KEG).then_some(ordinal + 1);
        let ordinal = keg.next_ordinal.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let ordinal = ordinal.map_err(|_| ZoneError::KegFull)?;
        keg.zones.fetch_add(1, Ordering::Relaxed);
        let plan = Plan {
            name,
            item_bytes: keg.item_bytes.get(),
            flags: keg.flags.get(),
            callbacks,
            keg,
            ordinal,
            is_secondary: true,
            source: None,
        };
        let zone = self.new_zone(&plan);
        if zone.is_none() {
            keg.zones.fetch_sub(1, Ordering::Relaxed);
        }
        zone.ok_or(ZoneError::Memory)
    }

    /// A zone without slabs, whose items come from `source` and go back there. Never sleeps. uma_zcache_create(9).
    ///
    /// # Errors
    /// [`ZoneError::Flags`] for flags that speak of slabs; [`ZoneError::Memory`].
    #[doc(alias = "uma_zcache_create")]
    pub fn zcache_create(
        &self,
        name: &str,
        item_bytes: usize,
        flags: Flags,
        callbacks: Callbacks,
        source: Source,
    ) -> Result<RawZone<'_, P>, ZoneError> {
        const MEANINGFUL: u32 = Flags::NOBUCKET.0 | Flags::MAXBUCKET.0 | Flags::NOTRIM.0 | Flags::NOTOUCH.0;
        if flags.0 & !MEANINGFUL != 0 || !flags.are_sound() {
            return Err(ZoneError::Flags(flags));
        }
        if !self.is_booted() {
            return Err(ZoneError::Memory);
        }
        let plan = Plan {
            name,
            item_bytes,
            flags,
            callbacks,
            keg: null(),
            ordinal: 0,
            is_secondary: false,
            source: Some(source),
        };
        self.new_zone(&plan).ok_or(ZoneError::Memory)
    }

    /// A keg's record: one given back, or a new one.
    fn new_keg(&self, cut: Cut) -> Option<&KegCore<P>> {
        {
            let mut list = self.registry.list.lock();
            // SAFETY: idle records are whole and nobody's.
            if let Some(keg) = unsafe { list.idle_kegs.as_ref() } {
                list.idle_kegs = keg.next.get();
                // SAFETY: as above.
                unsafe { *keg.cut.get() = cut };
                keg.colour.store(0, Ordering::Relaxed);
                keg.turn.store(0, Ordering::Relaxed);
                keg.reserve.store(0, Ordering::Relaxed);
                keg.low_water.store(0, Ordering::Relaxed);
                keg.idle_slabs.store(1, Ordering::Relaxed);
                return Some(keg);
            }
        }
        let domains = P::domains();
        let [keg, lists] = self.records([size_of::<KegCore<P>>(), domains * size_of::<Lock<P::Lock, Slabs>>()])?;
        let keg = keg.cast::<KegCore<P>>();
        // SAFETY: 1. fresh records, never given back from here on.
        unsafe {
            KegCore::write(keg.as_ptr(), lists.cast().as_ptr(), domains, cut);
            let mut list = self.registry.list.lock();
            keg.as_ref().all_next.set(list.all_kegs);
            list.all_kegs = keg.as_ptr();
            Some(keg.as_ref())
        }
    }

    fn idle_keg(&self, keg: &KegCore<P>) {
        let mut list = self.registry.list.lock();
        // SAFETY: 1. the last zone on it is gone.
        unsafe { keg.next.set(list.idle_kegs) };
        list.idle_kegs = core::ptr::from_ref(keg).cast_mut();
    }

    fn new_core(&self) -> Option<&ZoneCore<P>> {
        {
            let mut list = self.registry.list.lock();
            // SAFETY: idle records are whole and nobody's.
            if let Some(core) = unsafe { list.idle_zones.as_ref() } {
                list.idle_zones = core.next.get();
                return Some(core);
            }
        }
        let (domains, slots) = (P::domains(), self.slot_table().count());
        let [core, depots, caches] = self.records([
            size_of::<ZoneCore<P>>(),
            domains * size_of::<Lock<P::Lock, Depots>>(),
            slots * size_of::<AtomicPtr<ZoneCache>>(),
        ])?;
        let core = core.cast::<ZoneCore<P>>();
        // SAFETY: 1. fresh zeroed records, never given back from here on; null pointers are zero.
        unsafe {
            ZoneCore::write(core.as_ptr(), depots.cast().as_ptr(), domains, caches.cast().as_ptr());
            let mut list = self.registry.list.lock();
            core.as_ref().all_next.set(list.all_zones);
            list.all_zones = core.as_ptr();
            Some(core.as_ref())
        }
    }

    /// Records of these sizes, or none of them.
    fn records<const N: usize>(&self, sizes: [usize; N]) -> Option<[NonNull<u8>; N]> {
        let mut meta = self.meta.lock();
        let mut parts = [NonNull::dangling(); N];
        for index in 0..N {
            match meta.alloc(sizes[index]) {
                Some(part) => parts[index] = part,
                None => {
                    for undo in 0..index {
                        // SAFETY: 1. just allocated with this size.
                        unsafe { meta.free(parts[undo], sizes[undo]) };
                    }
                    return None;
                }
            }
        }
        Some(parts)
    }

    fn new_zone(&self, plan: &Plan<'_, P>) -> Option<RawZone<'_, P>> {
        let core = self.new_core()?;
        let mut name = Text::<32>::new();
        name.push(plan.name.as_bytes());
        let mut name_bytes = [0; 32];
        name_bytes[..name.as_bytes().len()].copy_from_slice(name.as_bytes());
        let flags = plan.flags;
        let cross = P::domains() > 1
            && !plan.keg.is_null()
            && !flags.has(Flags::ROUNDROBIN)
            && !flags.has(Flags::PCPU)
            && !flags.has(Flags::SMR);
        let mut bits = 0;
        for (set, bit) in [
            (flags.has(Flags::NOBUCKET), special::NOBUCKET),
            (flags.has(Flags::SMR), special::SMR),
            (cross, special::CROSS),
        ] {
            bits |= if set { bit } else { 0 };
        }
        let first = if flags.has(Flags::MAXBUCKET) { usize::MAX } else { BUCKET_FIRST };
        // SAFETY: 1. nobody else knows the record yet.
        unsafe {
            core.ordinal.set(plan.ordinal);
            core.keg.set(plan.keg);
            core.item_bytes.set(plan.item_bytes);
            *core.callbacks.get() = plan.callbacks;
            core.flags.set(flags);
            core.is_secondary.set(plan.is_secondary);
            core.source.set(plan.source);
            core.name.set(name_bytes);
        }
        core.bucket_size.store(first.min(bucket_max(plan.item_bytes)), Ordering::Relaxed);
        core.max_cache.store(usize::MAX, Ordering::Relaxed);
        core.last_look_ns.store(P::now_ns(), Ordering::Relaxed);
        *core.limit.lock() = Limit::new();
        *core.on_limit.lock() = OnLimit::NONE;
        *core.mover.lock() = None;
        let mut list = self.registry.list.lock();
        self.new_record(&mut list.idle_records, core);
        // SAFETY: 1. as above; from here on walks find it.
        unsafe { core.next.set(list.first) };
        list.first = core::ptr::from_ref(core).cast_mut();
        self.registry.zones.fetch_add(1, Ordering::Relaxed);
        core.special.store(bits, Ordering::Release);
        drop(list);
        Some(RawZone { system: self, core })
    }

    /// Gives a zone a record in the statistics object, or its own when those are all taken.
    fn new_record(&self, idle: &mut [u64], core: &ZoneCore<P>) {
        let zones = &self.stats().header().zones;
        let used = zones.used.load(Ordering::Relaxed) as usize;
        let most = (zones.capacity as usize).min(ZONES);
        let reused = (CLASSES..used).find(|&index| idle[index / 64] >> (index % 64) & 1 == 1);
        let index = reused.or((used < most).then_some(used));
        let record = match index {
            Some(index) => self.stats().zone_ptr(index),
            None => (&raw const core.own_record).cast_mut(),
        };
        // SAFETY: 1. nobody else knows the zone yet; the record is in the object, and no other zone's.
        unsafe {
            core.record.set(record);
            core.record_index.set(index.unwrap_or(usize::MAX));
            let keg_index = match core.keg().filter(|_| core.is_secondary.get()) {
                // The primary's, which is in the object or has no index.
                Some(keg) => self.record_index_of(keg.record.get()).map_or(0, |index| index as u32 + 1),
                None => 0,
            };
            Self::write_record(core, record, keg_index);
        }
        if let Some(keg) = core.keg()
            && !core.is_secondary.get()
        {
            // SAFETY: 1. nobody else knows the keg yet.
            unsafe {
                keg.record.set(record);
                keg.primary.set(core);
            }
        }
        let Some(index) = index else { return };
        if reused.is_some() {
            idle[index / 64] &= !(1 << (index % 64));
            let slots = self.stats().header().type_lines.used.load(Ordering::Relaxed) as usize;
            for slot in 0..slots {
                let line = self.stats().zone_line(slot, index);
                line.allocs.store(0, Ordering::Relaxed);
                line.frees.store(0, Ordering::Relaxed);
            }
        }
        // SAFETY: as above.
        unsafe { (*record).dead.store(0, Ordering::Release) };
        if reused.is_none() {
            zones.used.store(index as u64 + 1, Ordering::Release);
        }
    }

    /// Where in the object a record is; `None` for one outside of it.
    fn record_index_of(&self, record: *const ZoneRecord) -> Option<usize> {
        let offset = (record as usize).checked_sub(self.stats().zone_ptr(0) as usize)?;
        Some(offset / size_of::<ZoneRecord>()).filter(|&index| index < ZONES)
    }

    /// # Safety
    /// 1. `record` is the zone's own.
    unsafe fn write_record(core: &ZoneCore<P>, record: *mut ZoneRecord, keg_index: u32) {
        use abi::zone_flag;
        let flags = core.flags.get();
        let kind = if core.is_secondary.get() {
            zone_flag::SECONDARY
        } else if core.keg().is_none() {
            zone_flag::CACHE
        } else {
            0
        };
        let mut bits = kind;
        bits |= if flags.has(Flags::SMR) { zone_flag::SMR } else { 0 };
        bits |= if flags.has(Flags::PCPU) { zone_flag::PCPU } else { 0 };
        bits |= if flags.has(Flags::MALLOC) { zone_flag::SUBZONE } else { 0 };
        // SAFETY: 1. Readers pass over a record that says it is dead; zeros are a valid record.
        unsafe {
            record.write_bytes(0, 1);
            (*record).dead.store(1, Ordering::Relaxed);
            (*record).name = core.name.get();
            (*record).item_bytes = core.item_bytes.get() as u32;
            (*record).size_bit = u32::MAX;
            (*record).domains = P::domains() as u32;
            if let Some(keg) = core.keg() {
                (*record).stride_bytes = keg.cut().layout.stride_bytes as u32;
                (*record).align = keg.cut().layout.align as u32;
                (*record).keg = keg_index;
            }
            if let Some(keg) = core.keg().filter(|_| kind == 0) {
                let layout = &keg.cut().layout;
                (*record).slab_bytes = layout.slab_bytes as u32;
                (*record).items_per_slab = layout.items as u32;
                (*record).header_bytes = layout.first_offset as u32;
                bits |= if layout.offpage { zone_flag::OFFPAGE } else { 0 };
            }
            (*record).flags = bits;
            (*record).bucket_size.store(core.bucket_size.load(Ordering::Relaxed) as u64, Ordering::Relaxed);
        }
    }

    /// Lines for readers' sections, one per slot; made once.
    fn provide_readers(&self) -> bool {
        let smr = &self.registry.smr;
        if smr.is_ready() {
            return true;
        }
        let slots = self.slot_table().count();
        let bytes = slots * size_of::<SmrLine>();
        let memory = self.meta.lock().alloc(bytes);
        let Some(memory) = memory else { return false };
        if !smr.install(memory.cast().as_ptr(), slots) {
            // SAFETY: 1. just allocated, and not installed.
            unsafe { self.meta.lock().free(memory, bytes) };
        }
        true
    }
}

impl<P: Platform> RawZone<'_, P> {
    /// Unmakes the zone. Items in use stay their owners' memory but are lost: counted in what is returned, and reported as
    /// `Freed UMA keg (NAME) was not empty (N items). Lost M pages of memory.` *May sleep* for readers of an SMR zone. uma_zdestroy(9).
    ///
    /// # Errors
    /// [`ZoneError::HasSecondaries`], with nothing done.
    ///
    /// # Safety
    /// 1. Unless it fails, no other call on this zone is under way or will be made, by any copy of the handle; nobody sleeps on its limit.
    #[doc(alias = "uma_zdestroy")]
    pub unsafe fn destroy(self) -> Result<Destroyed, ZoneError> {
        let core = self.core;
        if core.owns_keg() && core.keg().is_some_and(|keg| keg.zones.load(Ordering::Acquire) > 1) {
            return Err(ZoneError::HasSecondaries);
        }
        if core.special() & special::SMR != 0 {
            self.system.registry.smr.synchronize();
        }
        core.special.fetch_or(special::DEAD, Ordering::SeqCst);
        while core.visitors.load(Ordering::SeqCst) > 0 {
            core::hint::spin_loop();
        }
        // A port may refuse a claim now and then; what it never lets go of is lost.
        for slot in 0..self.system.slot_table().count() {
            let _ = (0..100).any(|_| self.drain_slot_cache(slot));
        }
        self.fetch_back();
        if core.special() & special::SMR != 0 {
            // What the caches held was deferred just now.
            self.system.registry.smr.synchronize();
            self.fetch_back();
        }
        let items = core.limit.lock().items();
        let mut lost = Destroyed { items, pages: 0 };
        if let Some(keg) = core.keg() {
            if keg.zones.fetch_sub(1, Ordering::AcqRel) == 1 {
                lost.pages = self.lose_keg(keg);
            }
            if items > 0 {
                let mut text = Text::<256>::new();
                text.push(b"Freed UMA keg (").push(abi::c_text(&core.name.get())).push(b") was not empty (");
                text.push_number(items as u64).push(b" items). Lost ").push_number(lost.pages as u64);
                text.push(b" pages of memory.");
                P::warning(text.as_bytes());
            }
        }
        self.forget_caches();
        let record_index = core.record_index.get();
        core.record().dead.store(1, Ordering::Release);
        let mut list = self.system.registry.list.lock();
        let mut at = list.first;
        let this = core::ptr::from_ref(core).cast_mut();
        // SAFETY: the list holds live zones, this one among them, whose links change under the lock only.
        unsafe {
            if at == this {
                list.first = core.next.get();
            }
            while !at.is_null() && at != this {
                let next = (*at).next.get();
                if next == this {
                    (*at).next.set(core.next.get());
                }
                at = next;
            }
            core.next.set(list.idle_zones);
        }
        list.idle_zones = this;
        self.system.registry.zones.fetch_sub(1, Ordering::Relaxed);
        if record_index < ZONES {
            list.idle_records[record_index / 64] |= 1 << (record_index % 64);
        }
        Ok(lost)
    }

    /// The last zone is gone: what is left of the keg are slabs with lost items. Returns their pages.
    fn lose_keg(&self, keg: &KegCore<P>) -> usize {
        keg.reserve.store(0, Ordering::Relaxed);
        keg.low_water.store(0, Ordering::Relaxed);
        self.system.keg_trim(keg, 0);
        // Items that are freed from now on are nobody's.
        keg.generation.fetch_add(1, Ordering::SeqCst);
        let mut slabs = 0;
        for domain in 0..keg.domains {
            let mut list = keg.domain(domain).lock();
            slabs += list.slabs;
            *list = Slabs::new();
        }
        let (table, len) = keg.table.lock().take();
        self.system.free_table(table, len);
        self.system.idle_keg(keg);
        slabs * (keg.cut().layout.slab_bytes >> P::PAGE_SHIFT)
    }

    fn forget_caches(&self) {
        for slot in 0..self.system.slot_table().count() {
            let cache = self.core.cache_ptr(slot).swap(null_mut(), Ordering::AcqRel);
            if let Some(cache) = NonNull::new(cache) {
                // SAFETY: 1. from `ensure_cache`; no call is under way any more, and `fetch_back` has emptied it.
                unsafe { self.system.meta.lock().free(cache.cast(), size_of::<ZoneCache>()) };
            }
        }
    }
}
