//! A zone's depots: full buckets by domain, and in an SMR zone those that wait for readers.

use core::ptr::null_mut;

use abi::{CacheEntry, Ordering};
use platform::Platform;

use super::RawZone;
use super::alloc::Detached;
use super::config::{Flags, How};
use super::core::{Depots, special};
use super::keg::{Change, domain_record};
use super::slab::FREE;
use super::working_set::WorkingSet;
use crate::bucket::BucketPtr;

/// State of an item of an SMR zone that was freed past the caches: it is put back by a walk over the slabs, once readers have left. No
/// memory is needed to remember it.
pub(super) const STRAY: u8 = 255;
/// Full buckets a depot keeps per CPU identity.
const DEPOT_BUCKETS_PER_ID: usize = 8;
/// A depot that was given so many times what it may hold, and nothing was taken from it, is let go, as those of the size classes are: the program
/// shrinks, and items in buckets keep their slabs from becoming empty.
const IDLE_TURNS: usize = 2;
/// Buckets of a zone that shrinks are made smaller down to so many items.
const SHRUNK_BUCKET_LEAST: usize = 63;
/// Items that are put back, or asked of an import function, at a time.
pub(super) const BATCH: usize = 32;

/// Most items in a bucket of items of this size: what is cached is bounded in bytes as well as in number (uma(9)).
pub(super) fn bucket_max(item_bytes: usize) -> usize {
    (32 * 1024 / item_bytes.max(1)).clamp(3, 255)
}

impl BucketPtr {
    /// Takes the last item out of a bucket that has one.
    pub(super) fn pop(&mut self) -> CacheEntry {
        let count = self.count();
        let entry = self.filled()[count - 1];
        self.set_count(count - 1);
        entry
    }

    /// Adds an item to a bucket that has room.
    fn push(&mut self, entry: CacheEntry) {
        let count = self.count();
        debug_assert!(count < self.capacity());
        // SAFETY: below the capacity, and the bucket is ours.
        unsafe { *self.items().add(count) = entry };
        self.set_count(count + 1);
    }
}

/// An empty bucket that goes back to the pool unless it is taken, also when a callback panics.
struct Spare<'z, 's, P: Platform> {
    zone: &'z RawZone<'s, P>,
    bucket: Option<BucketPtr>,
}

impl<P: Platform> Drop for Spare<'_, '_, P> {
    fn drop(&mut self) {
        if let Some(bucket) = self.bucket.take() {
            self.zone.system.pool.lock().put(bucket);
        }
    }
}

impl<P: Platform> RawZone<'_, P> {
    /// How many items a new bucket should hold; 0 for none.
    pub(super) fn bucket_items(&self) -> usize {
        let size = self.core.bucket_size.load(Ordering::Relaxed).min(self.bucket_cap());
        match self.core.max_cache.load(Ordering::Relaxed) {
            usize::MAX => size,
            // Caches hold two buckets per slot, three where there are items on their way home.
            most => size.min(most / (3 * self.system.slot_table().count())),
        }
    }

    /// Most items that a bucket may have, as of the item size, the zone's own cap and the one for all.
    fn bucket_cap(&self) -> usize {
        let set = |word: &abi::AtomicU64| match word.load(Ordering::Relaxed) {
            0 => usize::MAX,
            items => usize::try_from(items).unwrap_or(usize::MAX),
        };
        let own = set(&self.core.record().bucket_size_max);
        let all = set(&self.system.stats().header().control.bucket_size_max);
        bucket_max(self.core.item_bytes.get()).min(own).min(all)
    }

    /// A bucket with items: from the depot, or filled. `None` when that would take waiting.
    pub(super) fn full_bucket(&self, domain: usize) -> Option<BucketPtr> {
        if let Some(bucket) = self.depot_pop(domain) {
            return Some(bucket);
        }
        let size = self.bucket_items();
        if size == 0 {
            return None;
        }
        // Twice as large at each miss: a zone that is little used caches little.
        let larger = (size * 2 + 1).min(self.bucket_cap());
        self.core.bucket_size.fetch_max(larger, Ordering::Relaxed);
        self.core.record().bucket_size.store(larger as u64, Ordering::Relaxed);
        let bucket = self.system.pool.lock().get(&self.system.meta, size)?;
        let mut spare = Spare { zone: self, bucket: Some(bucket) };
        let bucket = spare.bucket.as_mut()?;
        let want = size.min(bucket.capacity());
        // SAFETY: the bucket has room for `want`.
        let got = unsafe { self.import(domain, bucket.items(), want, How::NOWAIT) }.ok()?;
        bucket.set_count(got);
        spare.bucket.take()
    }

    /// A bucket of the depot whose items are ready for use.
    fn depot_pop(&self, domain: usize) -> Option<BucketPtr> {
        self.pop_bucket(domain, |set, _, items| set.taken(items))
    }

    /// The same for nobody's use.
    pub(super) fn depot_reclaim(&self, domain: usize) -> Option<BucketPtr> {
        self.pop_bucket(domain, |set, count, items| set.reclaimed(count, items))
    }

    fn pop_bucket(&self, domain: usize, note: impl FnOnce(&mut WorkingSet, usize, usize)) -> Option<BucketPtr> {
        let is_smr = self.core.special() & special::SMR != 0;
        let bucket = self.with_depot(domain, |depots| {
            let ready = depots.ready.pop();
            if let Some(bucket) = &ready {
                note(&mut depots.working_set, bucket.count(), depots.ready.items);
            }
            ready.or_else(|| if is_smr { self.pop_ripe(depots) } else { None })
        })?;
        if is_smr {
            self.destruct(&bucket);
        }
        Some(bucket)
    }

    /// A bucket whose readers have left.
    fn pop_ripe(&self, depots: &mut Depots) -> Option<BucketPtr> {
        (0..3).find_map(|index| {
            let ripe = depots.pending[index].items > 0 && self.system.registry.smr.poll(depots.pending_era[index]);
            if ripe { depots.pending[index].pop() } else { None }
        })
    }

    /// Runs `dtor` on items of an SMR zone whose readers have left.
    fn destruct(&self, bucket: &BucketPtr) {
        let callbacks = self.core.callbacks();
        if let Some(dtor) = callbacks.dtor {
            for entry in bucket.filled() {
                // SAFETY: free items, out of every cache: ours.
                unsafe { dtor(callbacks.context, entry.item as *mut u8, self.core.item_bytes.get(), null_mut()) };
            }
        }
    }

    pub(super) fn with_depot<R>(&self, domain: usize, f: impl FnOnce(&mut Depots) -> R) -> R {
        let mut depots = self.core.depot(domain).lock();
        let items = |depots: &Depots| depots.ready.items + depots.pending_items();
        let record = self.core.record();
        let here = domain_record(record, domain);
        let changes = [&record.depot, &here.depot].map(|counter| Change::of(counter, items(&depots)));
        let result = f(&mut depots);
        changes.into_iter().for_each(|change| change.to(items(&depots)));
        let set = &depots.working_set;
        for (counter, value) in [
            (&here.most, set.most),
            (&here.least, set.least),
            (&here.batch_least, set.batch_least),
            (&here.working_set, set.estimate),
        ] {
            counter.store(value as u64, Ordering::Relaxed);
        }
        for (counter, value) in [(&here.long_least, set.long_least), (&here.idle_periods, set.idle_periods)] {
            counter.store(u32::try_from(value).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
        result
    }

    /// A bucket that no cache wants: to the pool when empty, else to the depot. In an SMR zone its items have seen `dtor` already, which a
    /// depot's have not: they go back to the keg.
    pub(super) fn dispose(&self, bucket: BucketPtr, domain: usize) {
        if bucket.count() > 0 {
            if self.core.special() & special::SMR == 0 {
                return self.store_full(bucket, domain);
            }
            self.release(bucket.filled());
        }
        self.system.pool.lock().put(bucket);
    }

    /// A bucket with items to the depot, or to the keg when the depot has enough or somebody sleeps.
    fn store_full(&self, bucket: BucketPtr, domain: usize) {
        let most = DEPOT_BUCKETS_PER_ID * self.system.slot_table().ids;
        let most_items = match self.core.max_cache.load(Ordering::Relaxed) {
            usize::MAX => usize::MAX,
            share => share / P::domains(),
        };
        let may_trim = !self.core.flags.get().has(Flags::NOTRIM);
        let (refused, idle) = self.with_depot(domain, |depots| {
            let items = depots.ready.items + bucket.count();
            // Under the lock: a sleeper sets the bit before he empties the depot.
            if self.core.special() & special::PAST_CACHES != 0 || items > most_items {
                return (Some(bucket), false);
            }
            let refused = depots.ready.push(bucket, most).err();
            depots.working_set.given(depots.ready.items);
            (refused, may_trim && depots.ready.idle_pushes() > IDLE_TURNS * most)
        });
        if let Some(bucket) = refused {
            self.empty(bucket);
        }
        if idle {
            let size = self.core.bucket_size.load(Ordering::Relaxed);
            self.core.bucket_size.store((size / 2).max(SHRUNK_BUCKET_LEAST).min(size), Ordering::Relaxed);
            self.drain_depot(domain, usize::MAX);
        }
    }

    /// A bucket of an SMR zone waits for readers.
    pub(super) fn defer(&self, bucket: BucketPtr, domain: usize) {
        if bucket.count() == 0 {
            return self.system.pool.lock().put(bucket);
        }
        let wanted = self.with_depot(domain, |depots| {
            let era = self.system.registry.smr.tag();
            let place = (era % 3) as usize;
            if depots.pending_era[place] != era {
                // Three eras old at least, and so without readers.
                while let Some(ripe) = depots.pending[place].pop() {
                    let _ = depots.ready.push(ripe, usize::MAX);
                }
                depots.working_set.given(depots.ready.items);
                depots.pending_era[place] = era;
            }
            let _ = depots.pending[place].push(bucket, usize::MAX);
            self.core.special() & special::SLEEPERS != 0
        });
        if wanted {
            self.wake();
            self.system.tell_memory();
        }
    }

    /// Remembers an item of an SMR zone in its state.
    pub(super) fn stray(&self, entry: CacheEntry) {
        // SAFETY: the state of a free item, which is ours.
        unsafe { *(entry.tag as *mut u8) = STRAY };
        let smr = &self.system.registry.smr;
        self.core.strays_era.fetch_max(smr.tag(), Ordering::SeqCst);
        self.core.strays.fetch_add(1, Ordering::SeqCst);
        if self.core.special() & special::SLEEPERS != 0 {
            self.wake();
            self.system.tell_memory();
        }
        // Nobody else may come by: what can be put back now is.
        self.collect_strays();
    }

    /// Puts strays back whose readers have left.
    pub(super) fn collect_strays(&self) {
        let strays = self.core.strays.load(Ordering::SeqCst);
        if strays == 0 || !self.system.registry.smr.poll(self.core.strays_era.load(Ordering::SeqCst)) {
            return;
        }
        let Some(keg) = self.core.keg() else { return };
        let mut left = strays;
        for domain in 0..keg.domains {
            while left > 0 {
                let mut found = [CacheEntry { item: 0, tag: 0 }; BATCH];
                let mut count = 0;
                keg.domain(domain).lock().each(|slab| {
                    for index in 0..keg.cut().layout.items {
                        let state = keg.cut().state(slab, index);
                        // SAFETY: a live slab of the keg; a stray's state changes under this lock only.
                        unsafe {
                            if count < BATCH.min(left) && *state == STRAY {
                                *state = FREE;
                                found[count] = CacheEntry { item: keg.cut().item(&*slab, index), tag: state as usize };
                                count += 1;
                            }
                        }
                    }
                });
                if count == 0 {
                    break;
                }
                left -= count;
                self.core.strays.fetch_sub(count, Ordering::SeqCst);
                let callbacks = self.core.callbacks();
                if let Some(dtor) = callbacks.dtor {
                    for entry in &found[..count] {
                        let bytes = self.core.item_bytes.get();
                        // SAFETY: a free item in no cache: ours.
                        unsafe { dtor(callbacks.context, entry.item as *mut u8, bytes, null_mut()) };
                    }
                }
                self.release(&found[..count]);
            }
        }
    }

    /// A bucket of items from several domains: each to its depot.
    pub(super) fn send_home(&self, mut bucket: BucketPtr) {
        self.core.record().xdomain.fetch_add(bucket.count() as u64, Ordering::Relaxed);
        while let Some(last) = bucket.filled().last() {
            // Asked of items that are still in the bucket only: the slab of one that was sent away may be gone.
            let domain = self.item_domain(last.item);
            let here = |entry: &CacheEntry| self.item_domain(entry.item) == domain;
            let count = bucket.filled().iter().filter(|entry| here(entry)).count();
            if count == bucket.count() {
                return self.dispose(bucket, domain);
            }
            let home = self.system.pool.lock().get(&self.system.meta, count);
            match home {
                Some(mut home) => {
                    let mut kept = 0;
                    for index in 0..bucket.count() {
                        let entry = bucket.filled()[index];
                        if here(&entry) {
                            home.push(entry);
                        } else {
                            // SAFETY: not beyond `index`, and the bucket is ours.
                            unsafe { *bucket.items().add(kept) = entry };
                            kept += 1;
                        }
                    }
                    bucket.set_count(kept);
                    self.dispose(home, domain);
                }
                None => self.release(&[bucket.pop()]),
            }
        }
        self.system.pool.lock().put(bucket);
    }

    /// The buckets of a cache, all to where others find them.
    pub(super) fn settle(&self, buckets: Detached, domain: usize) {
        let is_smr = self.core.special() & special::SMR != 0;
        if let Some(bucket) = buckets.free {
            if is_smr { self.defer(bucket, domain) } else { self.empty(bucket) }
        }
        buckets.alloc.into_iter().chain(buckets.cross).for_each(|bucket| self.empty(bucket));
    }

    /// A bucket's items to the keg, and the bucket to the pool.
    pub(super) fn empty(&self, bucket: BucketPtr) {
        self.release(bucket.filled());
        self.system.pool.lock().put(bucket);
    }
}
