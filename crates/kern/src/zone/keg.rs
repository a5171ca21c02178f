//! Kegs: slabs made of pages, unmade, and their items.

use core::ptr::{NonNull, null_mut};

use abi::{AtomicU64, CacheEntry, Ordering, ZONE_DOMAINS, ZoneDomain, ZoneRecord, page};
use platform::{PageKind, Platform};

use super::config::{Fail, Flags, How, Wait};
use super::core::KegCore;
use super::depot::BATCH;
use super::slab::{Slabs, ZoneSlab};
use super::table;
use crate::System;

/// Counts that change together, told to the zone's record.
pub(super) struct Change<'a> {
    counter: &'a AtomicU64,
    before: usize,
}

impl<'a> Change<'a> {
    pub(super) fn of(counter: &'a AtomicU64, before: usize) -> Self {
        Self { counter, before }
    }

    pub(super) fn to(self, after: usize) {
        if after != self.before {
            self.counter.fetch_add((after as u64).wrapping_sub(self.before as u64), Ordering::Relaxed);
        }
    }
}

/// What a zone's record says of a domain.
pub(super) fn domain_record(record: &ZoneRecord, domain: usize) -> &ZoneDomain {
    &record.by_domain[domain.min(ZONE_DOMAINS - 1)]
}

/// What a keg's counts were, to tell its record how they changed.
struct Counts {
    free_items: usize,
    slabs: usize,
    empties: usize,
}

impl Counts {
    fn of(slabs: &Slabs) -> Self {
        Self { free_items: slabs.free_items, slabs: slabs.slabs, empties: slabs.empties }
    }
}

impl<P: Platform> System<P> {
    /// The slab of an item of this keg.
    pub(super) fn slab_of(&self, keg: &KegCore<P>, item: usize) -> *mut ZoneSlab {
        if self.in_heap(item) {
            return page::descriptor(self.word(item)) as *mut ZoneSlab;
        }
        keg.table.lock().get(item >> P::PAGE_SHIFT).unwrap_or(null_mut())
    }

    fn with_slabs<R>(&self, keg: &KegCore<P>, domain: usize, f: impl FnOnce(&mut Slabs) -> R) -> R {
        let mut slabs = keg.domain(domain).lock();
        let before = Counts::of(&slabs);
        let result = f(&mut slabs);
        let record = keg.record();
        let here = domain_record(record, domain);
        for counter in [&record.slab_free, &here.free_items] {
            Change::of(counter, before.free_items).to(slabs.free_items);
        }
        for counter in [&record.slabs, &here.slabs] {
            Change::of(counter, before.slabs).to(slabs.slabs);
        }
        for counter in [&record.slabs_idle, &here.free_slabs] {
            Change::of(counter, before.empties).to(slabs.empties);
        }
        if slabs.slabs > before.slabs {
            record.slabs_imported.fetch_add((slabs.slabs - before.slabs) as u64, Ordering::Relaxed);
            record.slabs_high_water.fetch_max(record.slabs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        result
    }

    /// Up to `want` items, at least one, from a domain or, without `only`, from the others when it has none.
    ///
    /// # Safety
    /// 1. `out` has room for `want`.
    pub(super) unsafe fn zone_keg_take(
        &self,
        keg: &KegCore<P>,
        domain: usize,
        only: bool,
        out: *mut CacheEntry,
        want: usize,
        how: How,
    ) -> Result<usize, Fail> {
        let floor = if how.reserve { 0 } else { keg.reserve.load(Ordering::Relaxed) };
        let in_turn = keg.flags.get().has(Flags::ROUNDROBIN) && !only;
        let domain = if in_turn { keg.turn.fetch_add(1, Ordering::Relaxed) % keg.domains } else { domain };
        let take = |domain| {
            // SAFETY: 1.
            self.with_slabs(keg, domain, |slabs| unsafe { slabs.take(keg.cut(), out, want, floor) })
        };
        loop {
            match take(domain) {
                0 => {}
                got => {
                    if keg.low_water.load(Ordering::Relaxed) != 0 {
                        self.refill_to_low_water(keg, domain);
                    }
                    return Ok(got);
                }
            }
            // Others may take what the new slab brings: then another is made.
            if let Err(fail) = self.add_slab_to(keg, domain, how.wait) {
                let others = (0..keg.domains).filter(|&other| !only && other != domain);
                return others.map(take).find(|&got| got > 0).ok_or(fail);
            }
        }
    }

    /// Makes slabs until as many items are free in the domain as are to be, if there is memory for them. Never sleeps.
    #[cold]
    pub(super) fn refill_to_low_water(&self, keg: &KegCore<P>, domain: usize) -> bool {
        let low = keg.low_water.load(Ordering::Relaxed);
        while keg.domain(domain).lock().free_items < low {
            if self.add_slab_to(keg, domain, Wait::No).is_err() {
                return false;
            }
        }
        true
    }

    /// Free items go back into their slabs; slabs that become empty go back to the system, but for one (or as many as the high-water mark
    /// allows).
    pub(super) fn zone_keg_put(&self, keg: &KegCore<P>, items: &[CacheEntry]) {
        let mut doomed = null_mut();
        let keep = if keg.flags.get().has(Flags::NOFREE) { usize::MAX } else { keg.idle_slabs.load(Ordering::Relaxed) };
        let floor = keg.floor();
        for part in items.chunks(BATCH) {
            let mut slabs = [null_mut(); BATCH];
            for (slab, entry) in slabs.iter_mut().zip(part) {
                *slab = self.slab_of(keg, entry.item);
            }
            for domain in 0..keg.domains {
                // SAFETY: items of this keg are in live slabs of it.
                let here = |&(_, slab): &(_, &*mut ZoneSlab)| unsafe { (**slab).domain as usize == domain };
                let mut mine = part.iter().zip(&slabs).filter(here).peekable();
                if mine.peek().is_none() {
                    continue;
                }
                self.with_slabs(keg, domain, |list| {
                    for (entry, &slab) in mine {
                        // SAFETY: as above; the item was taken and not put back since.
                        unsafe {
                            let Some(index) = keg.cut().item_at(&*slab, entry.item) else { continue };
                            list.put(slab, index);
                        }
                    }
                    while let Some(slab) = list.take_empty(keep, floor) {
                        // SAFETY: on no list, hence ours.
                        unsafe { (*slab.as_ptr()).next = doomed };
                        doomed = slab.as_ptr();
                    }
                });
            }
        }
        self.destroy_slabs(keg, doomed);
        self.tell_memory();
    }

    /// Gives empty slabs back, down to `keep` per domain. Returns how many.
    pub(super) fn keg_trim(&self, keg: &KegCore<P>, keep: usize) -> usize {
        let (mut doomed, mut count) = (null_mut(), 0);
        let floor = keg.floor();
        for domain in 0..keg.domains {
            self.with_slabs(keg, domain, |list| {
                while let Some(slab) = list.take_empty(keep, floor) {
                    // SAFETY: on no list, hence ours.
                    unsafe { (*slab.as_ptr()).next = doomed };
                    doomed = slab.as_ptr();
                    count += 1;
                }
            });
        }
        self.destroy_slabs(keg, doomed);
        count
    }

    /// Slabs on no list, linked by `next`: `fini` for every item, and the pages back.
    fn destroy_slabs(&self, keg: &KegCore<P>, mut slab: *mut ZoneSlab) {
        while let Some(this) = NonNull::new(slab) {
            // SAFETY: on no list, hence ours.
            unsafe {
                slab = this.as_ref().next;
                self.destroy_slab(keg, this, keg.cut().layout.items);
            }
        }
    }

    /// A slab of which the first `made` items have seen `init`.
    ///
    /// # Safety
    /// 1. The slab is of this keg, on no list, and none of its items in use or cached.
    unsafe fn destroy_slab(&self, keg: &KegCore<P>, slab: NonNull<ZoneSlab>, made: usize) {
        let layout = &keg.cut().layout;
        let callbacks = keg.callbacks();
        // SAFETY: 1.
        unsafe {
            if let Some(fini) = callbacks.fini {
                for index in 0..made {
                    let item = keg.cut().item(slab.as_ref(), index) as *mut u8;
                    fini(callbacks.context, item, keg.item_bytes.get());
                }
            }
            let start = slab.as_ref().start;
            self.unmark(keg, start);
            if layout.offpage {
                self.meta.lock().free(slab.cast(), layout.descriptor_bytes);
            }
            self.give_pages(keg, start);
        }
    }

    fn slab_pages(keg: &KegCore<P>) -> usize {
        keg.cut().layout.slab_bytes >> P::PAGE_SHIFT
    }

    /// Pages for a slab, and their way back.
    fn take_pages(&self, keg: &KegCore<P>, domain: usize, wait: Wait) -> Option<usize> {
        let layout = &keg.cut().layout;
        match keg.supply.get() {
            Some(supply) => {
                // SAFETY: the maker's contract.
                let pages =
                    unsafe { (supply.alloc)(supply.context, layout.slab_bytes, layout.slab_align, domain, wait) };
                (!pages.is_null()).then_some(pages as usize)
            }
            None => {
                let start = self.page_alloc(layout.slab_bytes, layout.slab_align)?;
                P::place_pages(start, layout.slab_bytes, domain);
                if keg.flags.get().has(Flags::NODUMP) {
                    // SAFETY: 1. fresh pages, ours. A hint: a port that cannot dumps them.
                    unsafe {
                        P::set_page_kind(start, layout.slab_bytes, PageKind { executable: false, dumped: false })
                    };
                }
                self.stats().header().pages_slab.fetch_add(Self::slab_pages(keg) as u64, Ordering::Relaxed);
                Some(start)
            }
        }
    }

    fn give_pages(&self, keg: &KegCore<P>, start: usize) {
        let bytes = keg.cut().layout.slab_bytes;
        match keg.supply.get() {
            // SAFETY: pages of the supply that nobody uses; the maker's contract.
            Some(supply) => unsafe { (supply.free)(supply.context, start as *mut u8, bytes) },
            None => {
                self.stats().header().pages_slab.fetch_sub(Self::slab_pages(keg) as u64, Ordering::Relaxed);
                if keg.flags.get().has(Flags::NODUMP) {
                    // SAFETY: 1. pages of a slab that nobody uses.
                    unsafe { P::set_page_kind(start, bytes, PageKind::ORDINARY) };
                }
                self.page_free(start, bytes);
            }
        }
    }

    /// From now on the slab is found by its pages. False for want of memory.
    fn mark(&self, keg: &KegCore<P>, start: usize, slab: NonNull<ZoneSlab>) -> bool {
        let pages = Self::slab_pages(keg);
        let first = start >> P::PAGE_SHIFT;
        if keg.supply.get().is_none() {
            for page in first..first + pages {
                // SAFETY: a page of the heap, ours.
                let word = unsafe { &*self.word_ptr(page << P::PAGE_SHIFT) };
                word.store(page::zone_slab(slab.as_ptr() as usize), Ordering::Release);
            }
            return true;
        }
        loop {
            let mut table = keg.table.lock();
            let Some(len) = table.wanted(pages) else {
                (first..first + pages).for_each(|page| table.insert(page, slab.as_ptr()));
                return true;
            };
            drop(table);
            let memory = self.meta.lock().alloc(len * size_of::<table::Slot>());
            let Some(memory) = memory else { return false };
            let mut table = keg.table.lock();
            let (old, old_len) = if table.wanted(pages) == Some(len) {
                // SAFETY: 1. zeroed, and as long as wanted.
                unsafe { table.grow(memory.as_ptr().cast(), len) }
            } else {
                (memory.as_ptr().cast(), len)
            };
            drop(table);
            self.free_table(old, old_len);
        }
    }

    pub(super) fn free_table(&self, slots: *mut table::Slot, len: usize) {
        if let Some(slots) = NonNull::new(slots) {
            // SAFETY: 1. from `mark`, with this length.
            unsafe { self.meta.lock().free(slots.cast(), len * size_of::<table::Slot>()) };
        }
    }

    fn unmark(&self, keg: &KegCore<P>, start: usize) {
        if keg.supply.get().is_some() {
            let first = start >> P::PAGE_SHIFT;
            let mut table = keg.table.lock();
            (first..first + Self::slab_pages(keg)).for_each(|page| table.remove(page));
        }
        // Words of the heap's pages are the page layer's from here.
    }

    /// Makes a slab, `init` on each item, with no lock held; then others see it.
    pub(super) fn add_slab_to(&self, keg: &KegCore<P>, domain: usize, wait: Wait) -> Result<(), Fail> {
        let cut = keg.cut();
        let layout = &cut.layout;
        let start = self.take_pages(keg, domain, wait).ok_or(Fail::Memory)?;
        let descriptor = if layout.offpage {
            self.meta.lock().alloc(layout.descriptor_bytes)
        } else {
            NonNull::new(start as *mut u8)
        };
        let Some(descriptor) = descriptor else {
            self.give_pages(keg, start);
            return Err(Fail::Memory);
        };
        let colour = keg.colour.fetch_add(1, Ordering::Relaxed) % layout.colours;
        // SAFETY: 1. a record of that size, or the start of fresh pages whose layout has room for it there.
        let slab = unsafe { Slabs::describe(cut, descriptor, keg.identity(), start, colour, domain) };
        if !self.mark(keg, start, slab) {
            if layout.offpage {
                // SAFETY: 1. just allocated.
                unsafe { self.meta.lock().free(descriptor, layout.descriptor_bytes) };
            }
            self.give_pages(keg, start);
            return Err(Fail::Memory);
        }
        let mut unmade = Unmade { system: self, keg, slab, made: 0 };
        if !unmade.make(wait) {
            return Err(Fail::Callback);
        }
        core::mem::forget(unmade);
        // SAFETY: 1. nobody else knows it.
        self.with_slabs(keg, domain, |slabs| unsafe { slabs.add(slab) });
        Ok(())
    }

    /// Pages or items have come back: who waits for memory looks again.
    #[inline]
    pub(crate) fn tell_memory(&self) {
        if self.registry.memory_sleepers.load(Ordering::SeqCst) > 0 {
            self.registry.memory.fetch_add(1, Ordering::SeqCst);
            P::wake_all(&self.registry.memory);
        }
    }
}

/// A slab whose items are being made. Dropped, by a failure or a panic of `init`, it undoes what was done.
struct Unmade<'a, P: Platform> {
    system: &'a System<P>,
    keg: &'a KegCore<P>,
    slab: NonNull<ZoneSlab>,
    made: usize,
}

impl<P: Platform> Unmade<'_, P> {
    fn make(&mut self, wait: Wait) -> bool {
        let keg = self.keg;
        let layout = &keg.cut().layout;
        // SAFETY: the slab is ours, and its items lie inside its pages.
        unsafe {
            let slab = self.slab.as_ref();
            if keg.flags.get().has(Flags::ZINIT) {
                let bytes = slab.start + layout.slab_bytes - slab.first;
                core::ptr::write_bytes(slab.first as *mut u8, 0, bytes);
            }
            let callbacks = keg.callbacks();
            if let Some(init) = callbacks.init {
                for index in 0..layout.items {
                    let item = keg.cut().item(slab, index) as *mut u8;
                    if !init(callbacks.context, item, keg.item_bytes.get(), wait) {
                        return false;
                    }
                    self.made = index + 1;
                }
            }
        }
        true
    }
}

impl<P: Platform> Drop for Unmade<'_, P> {
    fn drop(&mut self) {
        // SAFETY: 1. on no list, and nobody knows its items.
        unsafe { self.system.destroy_slab(self.keg, self.slab, self.made) };
    }
}
