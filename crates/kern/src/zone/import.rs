//! Items from behind the depots, paid for at the limit; and sleep.

use core::ptr::null_mut;

use abi::{CacheEntry, Ordering};
use platform::Platform;

use super::RawZone;
use super::config::{Fail, How, Wait};
use super::core::special;
use super::depot::BATCH;
use super::limit::{Limit, Sleeper};

/// Items paid for at the limit that are not there yet. Dropped, by a failure or a panic of a callback, it pays them back.
struct Paid<'z, 's, P: Platform> {
    zone: &'z RawZone<'s, P>,
    count: usize,
}

impl<P: Platform> Drop for Paid<'_, '_, P> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.zone.repay(self.count);
        }
    }
}

impl<P: Platform> RawZone<'_, P> {
    /// Up to `want` items from the keg or the import function, paid for. At least one, or why not.
    ///
    /// # Safety
    /// 1. `out` has room for `want`.
    pub(super) unsafe fn import(
        &self,
        domain: usize,
        out: *mut CacheEntry,
        want: usize,
        how: How,
    ) -> Result<usize, Fail> {
        let paid = self.pay(want);
        if paid == 0 {
            return Err(Fail::Limit);
        }
        let mut paid = Paid { zone: self, count: paid };
        // SAFETY: 1.
        let got = unsafe { self.import_paid(domain, out, paid.count, how) }?;
        paid.count -= got;
        Ok(got)
    }

    /// # Safety
    /// 1. `out` has room for `want`.
    unsafe fn import_paid(&self, domain: usize, out: *mut CacheEntry, want: usize, how: How) -> Result<usize, Fail> {
        let Some(keg) = self.core.keg() else {
            // SAFETY: 1.
            return unsafe { self.import_source(domain, out, want, how.wait) };
        };
        // SAFETY: 1.
        let got = unsafe { self.system.zone_keg_take(keg, domain, false, out, want, how) }?;
        // SAFETY: 1., of which `got` are items.
        unsafe { self.init_secondary(out, got, how.wait) }
    }

    /// # Safety
    /// 1. `out` has room for `want`.
    unsafe fn import_source(
        &self,
        domain: usize,
        out: *mut CacheEntry,
        want: usize,
        wait: Wait,
    ) -> Result<usize, Fail> {
        let Some(source) = self.core.source.get() else { return Err(Fail::Memory) };
        let mut got = 0;
        while got < want {
            let mut items = [null_mut(); BATCH];
            let ask = (want - got).min(BATCH);
            // SAFETY: room for `ask`; the maker's contract.
            let count = unsafe { (source.import)(source.context, items.as_mut_ptr(), ask, domain, wait) };
            for &item in &items[..count.min(ask)] {
                // SAFETY: 1.
                unsafe { *out.add(got) = CacheEntry { item: item as usize, tag: 0 } };
                got += 1;
            }
            if count < ask {
                break;
            }
        }
        // SAFETY: 1., of which `got` are items.
        if got == 0 { Err(Fail::Memory) } else { unsafe { self.init_secondary(out, got, wait) } }
    }

    /// `init` of a zone without a keg of its own, on items that are on their way in. Those of which it fails go back.
    ///
    /// # Safety
    /// 1. `out` holds `got` items, ours.
    unsafe fn init_secondary(&self, out: *mut CacheEntry, got: usize, wait: Wait) -> Result<usize, Fail> {
        let callbacks = self.core.callbacks();
        let Some(init) = callbacks.init.filter(|_| !self.core.owns_keg()) else { return Ok(got) };
        for index in 0..got {
            // SAFETY: 1.
            unsafe {
                let item = (*out.add(index)).item as *mut u8;
                if !init(callbacks.context, item, self.core.item_bytes.get(), wait) {
                    self.give_back(core::slice::from_raw_parts(out.add(index), got - index));
                    return if index == 0 { Err(Fail::Callback) } else { Ok(index) };
                }
            }
        }
        Ok(got)
    }

    /// One item past the caches. Sleeps if `how` says so.
    pub(super) fn import_one(&self, domain: usize, how: How) -> Result<CacheEntry, Fail> {
        self.import_from(domain, false, how)
    }

    /// One item past the caches, `only` from this domain or with this domain first.
    pub(super) fn import_from(&self, domain: usize, only: bool, how: How) -> Result<CacheEntry, Fail> {
        self.pay_one(how)?;
        let mut paid = Paid { zone: self, count: 1 };
        let entry = self.import_paid_one(domain, only, how)?;
        paid.count = 0;
        Ok(entry)
    }

    fn import_paid_one(&self, domain: usize, only: bool, how: How) -> Result<CacheEntry, Fail> {
        let mut fetched = false;
        loop {
            let fail = match self.take_one(domain, only, how) {
                Ok(entry) => return Ok(entry),
                Err(fail) => fail,
            };
            if fail == Fail::Memory && !fetched {
                // Before anyone fails or sleeps: what waits in caches.
                fetched = true;
                self.fetch_back();
                continue;
            }
            if fail != Fail::Memory || how.wait == Wait::No || self.core.keg().is_none() {
                return Err(fail);
            }
            match self.sleep_for_memory(|| self.take_one(domain, only, how)) {
                Err(Fail::Memory) => {}
                result => return result,
            }
        }
    }

    /// One item that is paid for, without sleep for memory.
    fn take_one(&self, domain: usize, only: bool, how: How) -> Result<CacheEntry, Fail> {
        let mut entry = CacheEntry { item: 0, tag: 0 };
        let out = &raw mut entry;
        // SAFETY: room for one.
        unsafe {
            match self.core.keg() {
                Some(keg) => {
                    self.system.zone_keg_take(keg, domain, only, out, 1, how)?;
                    self.init_secondary(out, 1, how.wait)?;
                }
                None => _ = self.import_source(domain, out, 1, how.wait)?,
            }
        }
        Ok(entry)
    }

    /// Pays for up to `want` items at the limit.
    fn pay(&self, want: usize) -> usize {
        let mut limit = self.core.limit.lock();
        let paid = limit.take(want);
        self.show(&limit);
        paid
    }

    /// Under the limit's lock: what readers see of it.
    fn show(&self, limit: &Limit) {
        self.core.record().limit_items.store(limit.items() as u64, Ordering::Relaxed);
    }

    /// Room for one item under the limit.
    fn pay_one(&self, how: How) -> Result<(), Fail> {
        if self.pay(1) == 1 {
            return Ok(());
        }
        self.fetch_back();
        if self.pay(1) == 1 {
            return Ok(());
        }
        self.tell_limit();
        if how.wait == Wait::No {
            return Err(Fail::Limit);
        }
        self.sleep_on_limit();
        Ok(())
    }

    /// Sleeps in the queue until an item is granted.
    fn sleep_on_limit(&self) {
        let mut node = Sleeper::new();
        let node = &raw mut node;
        {
            let mut limit = self.core.limit.lock();
            if limit.take(1) == 1 {
                return self.show(&limit);
            }
            // SAFETY: 1. it stays here until granted: the loop below ends no sooner.
            unsafe { limit.enqueue(node) };
            self.update_special(&limit);
            self.core.record().sleepers.fetch_add(1, Ordering::Relaxed);
        }
        self.core.record().sleeps.fetch_add(1, Ordering::Relaxed);
        let is_smr = self.core.special() & special::SMR != 0;
        // Only now, with the bit set: what others put into caches before they could see it is found here.
        self.fetch_back();
        loop {
            let seen = self.core.wake.load(Ordering::Acquire);
            // SAFETY: 1. enqueued above.
            if unsafe { self.core.limit.lock().is_granted(node) } {
                break;
            }
            if is_smr && self.deferred_items() > 0 {
                self.system.registry.smr.synchronize();
                self.fetch_back();
                continue;
            }
            P::wait(&self.core.wake, seen);
        }
        self.core.record().sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Items that wait for readers.
    fn deferred_items(&self) -> usize {
        let domains = 0..P::domains();
        let pending: usize = domains
            .map(|domain| {
                let depots = self.core.depot(domain).lock();
                depots.ready.items + depots.pending_items()
            })
            .sum();
        pending + self.core.strays.load(Ordering::SeqCst)
    }

    /// Sleeps until pages or items have come back and `take` has one, or fails otherwise than for memory.
    fn sleep_for_memory(&self, take: impl Fn() -> Result<CacheEntry, Fail>) -> Result<CacheEntry, Fail> {
        let registry = &self.system.registry;
        registry.memory_sleepers.fetch_add(1, Ordering::SeqCst);
        {
            let limit = self.core.limit.lock();
            self.core.memory_sleepers.fetch_add(1, Ordering::SeqCst);
            self.update_special(&limit);
        }
        self.core.record().sleeps.fetch_add(1, Ordering::Relaxed);
        self.core.record().sleepers.fetch_add(1, Ordering::Relaxed);
        self.system.reclaim();
        let is_smr = self.core.special() & special::SMR != 0;
        let result = loop {
            let seen = registry.memory.load(Ordering::SeqCst);
            match take() {
                Err(Fail::Memory) if is_smr && self.deferred_items() > 0 => {
                    registry.smr.synchronize();
                    self.fetch_back();
                }
                Err(Fail::Memory) => P::wait(&registry.memory, seen),
                result => break result,
            }
        };
        self.core.record().sleepers.fetch_sub(1, Ordering::Relaxed);
        registry.memory_sleepers.fetch_sub(1, Ordering::SeqCst);
        let limit = self.core.limit.lock();
        self.core.memory_sleepers.fetch_sub(1, Ordering::SeqCst);
        self.update_special(&limit);
        result
    }

    /// Under the limit's lock: the bits follow what it says.
    fn update_special(&self, limit: &Limit) {
        let sleeps = limit.sleepers() > 0 || self.core.memory_sleepers.load(Ordering::SeqCst) > 0;
        for (set, bit) in [(sleeps, special::SLEEPERS), (limit.is_over(), special::OVER)] {
            let was = self.core.special() & bit != 0;
            if set && !was {
                self.core.special.fetch_or(bit, Ordering::SeqCst);
            } else if was && !set {
                self.core.special.fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }

    /// So many items are not outside of the keg any more.
    pub(super) fn repay(&self, count: usize) {
        self.settle_limit(|limit| limit.give(count));
    }

    /// Changes the limit or its count, and wakes whom that serves.
    pub(super) fn settle_limit(&self, change: impl FnOnce(&mut Limit) -> bool) {
        let granted = {
            let mut limit = self.core.limit.lock();
            let granted = change(&mut limit);
            self.update_special(&limit);
            self.show(&limit);
            granted
        };
        if granted {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        self.core.wake.fetch_add(1, Ordering::SeqCst);
        P::wake_all(&self.core.wake);
    }

    /// Free items out of every cache go back to where they came from, and are paid back.
    pub(super) fn release(&self, items: &[CacheEntry]) {
        if items.is_empty() {
            return;
        }
        let callbacks = self.core.callbacks();
        if let Some(fini) = callbacks.fini.filter(|_| !self.core.owns_keg()) {
            for entry in items {
                // SAFETY: ours.
                unsafe { fini(callbacks.context, entry.item as *mut u8, self.core.item_bytes.get()) };
            }
        }
        self.give_back(items);
        self.repay(items.len());
    }

    /// The last of [`release`](Self::release): no callback of this zone, no count.
    fn give_back(&self, items: &[CacheEntry]) {
        if let Some(keg) = self.core.keg() {
            return self.system.zone_keg_put(keg, items);
        }
        let Some(source) = self.core.source.get() else { return };
        for part in items.chunks(BATCH) {
            let mut out = [null_mut(); BATCH];
            for (to, entry) in out.iter_mut().zip(part) {
                *to = entry.item as *mut u8;
            }
            // SAFETY: items that came from `import`; the maker's contract.
            unsafe { (source.release)(source.context, out.as_ptr(), part.len()) };
        }
    }
}
