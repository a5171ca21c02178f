//! Size zones by malloc type and by NUMA domain.
//!
//! With `debug.malloc.numzones` above 1 every size class has so many zones, and a type's blocks come from the one that its number says: a
//! block that is written beyond its end, or after its free, then damages blocks of the few types that share its zone, and who did it is one of them
//! (FreeBSD's `DEBUG_MAXZONES`). The same kind of zone serves requests that name a domain (`malloc_domainset`), whose slabs have to lie there.
//!
//! Both leave the fast paths as they are. The caches of the size classes stay empty while there are subzones, so that each request comes by
//! the slow path, where it is sent here; and pages of these zones have no class's code in their words, so that free comes here by the way of what it
//! does not know. Zones are made when they are first wanted, and have caches, depots and statistics of their own.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use platform::{Misuse, Platform};

use super::{BlockInfo, System};
use crate::class::{SLAB_CLASSES, class_align, class_bytes};
use crate::slab::{TAG_FREE, size_mask};
use crate::stats::{Stats, TypeId};
use crate::text::Text;
use crate::zone::{DomainSet, RawZone, Reclaim};

/// Most zones of a size class.
pub const NUMZONES_MAX: usize = abi::NUMZONES_MAX as usize;

pub(crate) struct Subzones {
    /// Zones of each class, by type; 0 and 1: the class's own.
    count: AtomicU32,
    /// By class and number, each null until it is wanted; null itself until the first is.
    table: AtomicPtr<AtomicPtr<()>>,
    /// Domains of runs in turn.
    turn: AtomicUsize,
}

const ENTRIES: usize = SLAB_CLASSES * NUMZONES_MAX;

impl Subzones {
    pub(crate) const fn new() -> Self {
        Self { count: AtomicU32::new(0), table: AtomicPtr::new(null_mut()), turn: AtomicUsize::new(0) }
    }
}

impl<P: Platform> System<P> {
    /// Has each size class have `count` zones (1 to [`NUMZONES_MAX`], which it is held to), types going to them by their number. To be called after
    /// boot, before anything is allocated: blocks that are there already stay where they are. `debug.malloc.numzones`. Never sleeps.
    #[doc(alias = "debug.malloc.numzones")]
    pub fn set_numzones(&self, count: usize) {
        let count = count.clamp(1, NUMZONES_MAX) as u32;
        self.subzones.count.store(count, Ordering::SeqCst);
        if self.is_booted() {
            self.header().control.numzones.store(count.into(), Ordering::Relaxed);
            // What caches hold would be handed out from there.
            if self.header().type_lines.used.load(Ordering::Acquire) != 0 {
                self.drain_slots();
            }
        }
    }

    /// Zones of each size class.
    #[must_use]
    pub fn numzones(&self) -> usize {
        (self.subzones.count.load(Ordering::Relaxed) as usize).max(1)
    }

    /// Whether blocks come from zones by type. Asked on slow paths.
    #[inline]
    pub(super) fn has_subzones(&self) -> bool {
        self.subzones.count.load(Ordering::Relaxed) > 1
    }

    /// Which of a class's zones a type's blocks come from.
    fn zone_number(&self, id: TypeId) -> usize {
        id.index() % self.numzones()
    }

    fn table(&self) -> Option<&[AtomicPtr<()>]> {
        let mut table = self.subzones.table.load(Ordering::Acquire);
        if table.is_null() {
            let bytes = ENTRIES * size_of::<AtomicPtr<()>>();
            let fresh = self.meta.lock().alloc(bytes)?;
            let ours = fresh.cast::<AtomicPtr<()>>().as_ptr();
            table = ours;
            if let Err(theirs) =
                self.subzones.table.compare_exchange(null_mut(), ours, Ordering::AcqRel, Ordering::Acquire)
            {
                // SAFETY: 1. just allocated with this size, and nobody's.
                unsafe { self.meta.lock().free(fresh, bytes) };
                table = theirs;
            }
        }
        // SAFETY: so many pointers, zero at first, which is null; never given back.
        Some(unsafe { core::slice::from_raw_parts(table, ENTRIES) })
    }

    /// The zone of a class for a type; made if need be. `None` for want of memory.
    fn subzone(&self, class: usize, id: TypeId) -> Option<RawZone<'_, P>> {
        let number = self.zone_number(id);
        let entry = &self.table()?[class * NUMZONES_MAX + number];
        let raw = entry.load(Ordering::Acquire);
        if !raw.is_null() {
            // SAFETY: 1. a zone of this system; those here are never destroyed.
            return Some(unsafe { RawZone::from_raw(self, raw) });
        }
        let mut name = Text::<32>::new();
        name.push(b"malloc-").push_number(class_bytes(class) as u64).push(b"-");
        if self.has_subzones() {
            name.push_number(number as u64)
        } else {
            name.push(b"domains")
        };
        let name = core::str::from_utf8(name.as_bytes()).unwrap_or("malloc");
        let zone = self.create_sized_zone(name, class_bytes(class), class_align(class))?;
        match entry.compare_exchange(null_mut(), zone.into_raw(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(zone),
            Err(theirs) => {
                // SAFETY: 1. nobody else knows it.
                let _ = unsafe { zone.destroy() };
                // SAFETY: 1. as above.
                Some(unsafe { RawZone::from_raw(self, theirs) })
            }
        }
    }

    /// A block of a slab class from the zone of its type, from a set of domains if one is named.
    #[cold]
    #[inline(never)]
    pub(super) fn alloc_sub(&self, class: usize, requested: usize, id: TypeId, set: DomainSet) -> *mut u8 {
        let block = self.subzone(class, id).and_then(|zone| zone.alloc_from_set(set).ok());
        let Some(block) = block else {
            self.fail(id);
            return null_mut();
        };
        let addr = block.as_ptr() as usize;
        if let Some(item) = self.sized_item(addr) {
            // SAFETY: the tag of an item that is ours.
            unsafe { *item.tag = id.tag() };
            if self.is_short() {
                // The bucket that came with it is just what somebody may be waiting for.
                item.zone.reclaim(Reclaim::DrainCpu);
            }
        }
        self.count(|slot, _| {
            // SAFETY: inside the section of `slot`.
            let row = unsafe { (*slot).row };
            Stats::count_alloc(row, id, class_bytes(class), requested, size_mask(class));
        });
        block.as_ptr()
    }

    /// A block of any size from a set of domains, which exist. Null when there is no memory. Never sleeps.
    pub(crate) fn alloc_in_domains(&self, class: Option<usize>, request: DomainRequest) -> *mut u8 {
        let DomainRequest { bytes, served, align, id, set } = request;
        if let Some(class) = class {
            return self.alloc_sub(class, bytes, id, set);
        }
        let block = if bytes > super::MAX_REQUEST_BYTES || align > super::MAX_REQUEST_BYTES {
            self.fail(id);
            null_mut()
        } else {
            self.alloc_pages_sized(served, bytes, align, id)
        };
        if !block.is_null() {
            P::place_pages(block as usize, served, self.domain_of_set(set));
        }
        block
    }

    /// The domain for a run of pages.
    fn domain_of_set(&self, set: DomainSet) -> usize {
        match set {
            DomainSet::Prefer(domain) | DomainSet::Fixed(domain) => domain,
            DomainSet::RoundRobin => self.subzones.turn.fetch_add(1, Ordering::Relaxed) % P::domains(),
            DomainSet::FirstTouch => {
                let mut domain = 0;
                // SAFETY: inside the section of `slot`, which is one of the table's.
                self.count(|slot, _| domain = P::domain_of_slot(unsafe { (*slot).index } as usize));
                domain
            }
        }
    }

    /// [`lookup_sub`](Self::lookup_sub) for an address of which nothing is known: the slab may be on its way out, and its descriptor name no keg
    /// any more, so that it is held against those there are.
    #[cold]
    pub(super) fn lookup_any_sub(&self, addr: usize) -> Option<BlockInfo> {
        let table = self.subzones.table.load(Ordering::Acquire);
        let keg = self.named_keg(addr)?;
        // SAFETY: null, or so many pointers; never given back.
        let mut entries =
            (0..ENTRIES).filter(|_| !table.is_null()).map(|at| unsafe { (*table.add(at)).load(Ordering::Acquire) });
        // SAFETY: 1. a zone of this system; those here are never destroyed.
        entries.find(|&raw| !raw.is_null() && unsafe { RawZone::from_raw(self, raw) }.is_on(keg))?;
        self.lookup_sub(addr)
    }

    /// The block of such a zone that contains an address in a slab that stays, live or free.
    #[cold]
    pub(super) fn lookup_sub(&self, addr: usize) -> Option<BlockInfo> {
        let item = self.sized_item(addr)?;
        // SAFETY: the tag lies in the slab's descriptor, which stays readable.
        let tag = unsafe { *item.tag };
        Some(BlockInfo {
            addr: item.addr,
            bytes: item.bytes,
            type_id: TypeId::from_tag(tag & !TAG_FREE),
            live: item.live,
            is_run: false,
        })
    }

    /// Frees a block of such a zone, or reports what is wrong with it. False where the address is in none.
    #[cold]
    #[inline(never)]
    pub(super) fn free_sub(&self, addr: usize, caller: usize) -> bool {
        let (Some(item), Some(block)) = (self.sized_item(addr), self.lookup_sub(addr)) else { return false };
        let what = match block {
            BlockInfo { live: false, .. } => Some(Misuse::DuplicateFree),
            BlockInfo { addr: start, .. } if start != addr => Some(Misuse::UnalignedFree),
            _ => None,
        };
        if let Some(what) = what {
            self.report(what, addr, caller, Some(block));
            return true;
        }
        self.count(|slot, stats| {
            // SAFETY: inside the section of `slot`.
            let row = unsafe { (*slot).row };
            stats.count_free_slow(block.type_id, row, block.bytes);
        });
        // SAFETY: 1. a live item of this zone, which its owner gives up. It remembers who freed it, as those of the classes' own zones do.
        unsafe {
            *(addr as *mut usize) = caller;
            item.zone.free(addr as *mut u8);
        }
        if self.is_short() {
            // Somebody sleeps for memory (see `shortage`): it goes where everybody can have it.
            item.zone.reclaim(Reclaim::DrainCpu);
            self.wake_sleepers();
        }
        true
    }

    /// realloc of such a block. Null where there is no memory.
    ///
    /// # Safety
    /// 1. The caller owns the block, which is live.
    #[cold]
    pub(super) unsafe fn resize_sub(&self, info: &BlockInfo, bytes: usize, id: TypeId, caller: usize) -> *mut u8 {
        let old = info.bytes;
        let block = info.addr as *mut u8;
        let same_zone = self.zone_number(info.type_id) == self.zone_number(id);
        if same_zone && bytes <= old && (bytes > old / 2 || old == class_bytes(0)) {
            self.count(|slot, stats| {
                // SAFETY: inside the section of `slot`. Out with the old first, as in `credit`.
                let row = unsafe { (*slot).row };
                stats.count_free_slow(info.type_id, row, old);
                Stats::count_alloc(row, id, old, bytes, size_mask(crate::class::class_of(old)));
            });
            if let Some(item) = self.sized_item(info.addr) {
                // SAFETY: the tag of an item that is the caller's (1.).
                unsafe { *item.tag = id.tag() };
            }
            return block;
        }
        // What malloc(9) promises from a page on, the page's alignment: kept, and given to what was less than a page.
        let on_page = bytes >= Self::PAGE && (old < Self::PAGE || info.addr.is_multiple_of(Self::PAGE));
        let new = self.alloc_aligned(bytes, if on_page { Self::PAGE } else { 1 }, id);
        if let Some(new) = NonNull::new(new) {
            // SAFETY: both hold that many bytes; the new one is fresh; 1.
            unsafe {
                core::ptr::copy_nonoverlapping(block, new.as_ptr(), old.min(bytes));
                self.free(block, caller);
            }
        }
        new
    }

    /// Whether blocks of a type come from the zone that an address is in, if it is one of types' zones.
    pub(crate) fn may_share_zone(&self, addr: usize, id: TypeId) -> bool {
        self.lookup_any_sub(addr).is_none_or(|block| self.zone_number(id) == self.zone_number(block.type_id))
    }
}

/// What is asked for of a set of domains.
pub(crate) struct DomainRequest {
    pub(crate) bytes: usize,
    /// Bytes of the block that serves it.
    pub(crate) served: usize,
    pub(crate) align: usize,
    pub(crate) id: TypeId,
    pub(crate) set: DomainSet,
}
