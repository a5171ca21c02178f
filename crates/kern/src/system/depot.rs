//! The depots of the size classes: full buckets that no cache has room for, as many as the program's working set wants.
//!
//! A depot may hold a few buckets per CPU. What it has no room for goes to its slabs, item by item, and when it is wanted again soon it is
//! taken out of them item by item, which costs more than all the rest of an allocation. So a depot *grows* by each bucket that was sent away
//! and missed afterwards, and is looked at ten times a second: what lay in it all the while is let go, and it shrinks to its
//! working set, estimated as uma(9) does from how far its content moved.

use abi::Ordering;
use platform::Platform;

use super::System;
use super::supply::slab_layout_of;
use crate::bucket::{BucketPtr, Depot};
use crate::class::{SLAB_CLASSES, bucket_max};

/// Full buckets a depot keeps per CPU identity until it grows; more go back to their slabs.
const USUAL_PER_ID: usize = 8;
/// A depot that was given so many times what it may hold, and nothing was taken from it, is let go: the program shrinks, and items
/// in buckets keep their slabs from becoming empty.
const IDLE_TURNS: usize = 2;
/// Buckets of a zone that shrinks are made smaller down to so many items: what lies in a bucket keeps its slab.
const SHRUNK_BUCKET_LEAST: u32 = 63;
/// The same where it has only shrunk for [`LONG_IDLE_NS`]: it will not want them back at once.
const LONG_SHRUNK_BUCKET_LEAST: u32 = 7;
const LONG_IDLE_NS: u64 = 50_000_000;
/// Every how many buckets the time is asked for.
const IDLE_LOOK_EVERY: usize = 16;
/// From one look at the depots to the next.
const LOOK_EVERY_NS: u64 = 100_000_000;
/// The time is asked for every so many times that a slow path comes by.
const LOOK_TURNS: u32 = 16;

/// Full buckets of one size class, and how many are worth keeping.
pub(super) struct ClassDepot {
    full: Depot,
    /// Buckets that it may hold beyond the usual.
    grown: usize,
    /// Buckets that were sent away lately and not missed yet.
    spilled: usize,
    /// Fewest and most buckets since the last look.
    least: usize,
    most: usize,
    /// How many the program is thought to use.
    working_set: usize,
}

impl ClassDepot {
    pub(super) const fn new() -> Self {
        Self { full: Depot::new(), grown: 0, spilled: 0, least: 0, most: 0, working_set: 0 }
    }

    pub(super) fn items(&self) -> usize {
        self.full.items
    }

    /// A bucket for a cache that has nothing. That there is none counts as one missed.
    fn pop(&mut self) -> Option<BucketPtr> {
        let bucket = self.full.pop();
        match bucket {
            Some(_) => self.least = self.least.min(self.full.buckets()),
            None if self.spilled > 0 => {
                self.spilled -= 1;
                self.grown += 1;
            }
            None => {}
        }
        bucket
    }

    /// Keeps a bucket, or hands it back when there are enough.
    fn push(&mut self, bucket: BucketPtr, usual: usize) -> Result<(), BucketPtr> {
        let refused = self.full.push(bucket, usual + self.grown);
        self.spilled += usize::from(refused.is_err());
        self.most = self.most.max(self.full.buckets());
        refused
    }

    /// A bucket that the program does not want.
    fn spill(&mut self) -> Option<BucketPtr> {
        let bucket = self.full.take();
        self.spilled += usize::from(bucket.is_some());
        self.least = self.least.min(self.full.buckets());
        bucket
    }

    /// A bucket to be let go, whatever the program wants.
    pub(super) fn take(&mut self) -> Option<BucketPtr> {
        let bucket = self.full.take();
        self.least = self.least.min(self.full.buckets());
        bucket
    }

    /// Whether buckets only come. Then it is as small again as it was once.
    fn is_idle(&mut self, usual: usize) -> bool {
        let idle = self.full.idle_pushes() > IDLE_TURNS * (usual + self.grown);
        if idle {
            self.grown = 0;
        }
        idle
    }

    /// Estimates the working set anew. Returns how many buckets lie beyond it.
    fn look(&mut self, usual: usize) -> usize {
        self.working_set = (self.working_set / 2).max(self.most - self.least);
        self.grown = self.grown.min(self.working_set.saturating_sub(usual));
        self.spilled /= 2;
        let buckets = self.full.buckets();
        (self.least, self.most) = (buckets, buckets);
        buckets.saturating_sub(self.working_set)
    }
}

impl<P: Platform> System<P> {
    /// Buckets that a depot may hold before it grows.
    fn usual_depot(&self) -> usize {
        USUAL_PER_ID * self.slot_table().ids
    }

    /// A bucket with items, from the depot or filled from the keg for a CPU's identity; `None` when memory for either ends.
    pub(super) fn full_bucket(&self, class: usize, taker: u32) -> Option<BucketPtr> {
        self.obey();
        let zone = &self.zones[class];
        {
            let mut depot = zone.depot.lock();
            if let Some(bucket) = depot.pop() {
                self.stats().zone(class).depot.store(depot.items() as u64, Ordering::Relaxed);
                return Some(bucket);
            }
        }
        let most = self.bucket_cap(class);
        let size = (zone.bucket_size.load(Ordering::Relaxed) as usize).min(most);
        // Twice as large at each miss, up to 63 items or an eighth of what the zone has: a small program caches little.
        let larger = (size * 2 + 1).min(most).min((self.zone_items(class) / 8).max(63)).max(size);
        zone.bucket_size.store(larger as u32, Ordering::Relaxed);
        self.stats().zone(class).bucket_size.store(larger as u64, Ordering::Relaxed);
        let mut bucket = self.pool.lock().get(&self.meta, size)?;
        let want = size.min(bucket.capacity());
        // SAFETY: the bucket has room for `want`.
        let got = unsafe { self.keg_take(class, bucket.items(), want, taker) };
        if got == 0 {
            self.pool.lock().put(bucket);
            return None;
        }
        bucket.set_count(got);
        Some(bucket)
    }

    /// Items of a zone, free or not.
    fn zone_items(&self, class: usize) -> usize {
        self.stats().zone(class).slabs.load(Ordering::Relaxed) as usize * slab_layout_of(class).items
    }

    /// Most items that a bucket of this class may have, as of the zone's own cap and of the one for all.
    pub(super) fn bucket_cap(&self, class: usize) -> usize {
        let all = self.stats().header().control.bucket_size_max.load(Ordering::Relaxed);
        let own = self.stats().zone(class).bucket_size_max.load(Ordering::Relaxed);
        let cap = |value: u64| if value == 0 { usize::MAX } else { usize::try_from(value).unwrap_or(usize::MAX) };
        bucket_max(class).min(cap(all)).min(cap(own))
    }

    /// A bucket with items goes to the depot, or its items to their slabs when the depot has enough.
    pub(super) fn store_full(&self, class: usize, bucket: BucketPtr) {
        let zone = &self.zones[class];
        let usual = self.usual_depot();
        let (mut extra, idle, long_idle) = {
            let mut depot = zone.depot.lock();
            // While somebody sleeps for memory, free items stay in their slabs (see `shortage`).
            let mut extra = if self.is_short() { Some(bucket) } else { depot.push(bucket, usual).err() };
            let idle = depot.is_idle(usual);
            if idle && extra.is_none() {
                extra = depot.spill();
            }
            let long_idle = idle
                && depot.full.idle_pushes().is_multiple_of(IDLE_LOOK_EVERY)
                && depot.full.idle_ns(P::now_ns()) > LONG_IDLE_NS;
            self.stats().zone(class).depot.store(depot.items() as u64, Ordering::Relaxed);
            (extra, idle, long_idle)
        };
        if idle {
            let size = zone.bucket_size.load(Ordering::Relaxed);
            let least = if long_idle { LONG_SHRUNK_BUCKET_LEAST } else { SHRUNK_BUCKET_LEAST };
            zone.bucket_size.store((size / 2).max(least).min(size), Ordering::Relaxed);
        }
        while let Some(bucket) = extra {
            self.empty_bucket(class, bucket);
            extra = None;
            if idle {
                let mut depot = zone.depot.lock();
                extra = depot.spill();
                self.stats().zone(class).depot.store(depot.items() as u64, Ordering::Relaxed);
            }
        }
    }

    /// The items of a bucket that is in no cache and no depot go to their slabs, the bucket to the pool.
    fn empty_bucket(&self, class: usize, bucket: BucketPtr) {
        // SAFETY: free items of this class, out of every cache.
        unsafe { self.keg_put(class, bucket.filled()) };
        self.pool.lock().put(bucket);
    }

    /// So many buckets of a depot go to their slabs.
    fn drain_depot(&self, class: usize, buckets: usize) {
        for _ in 0..buckets {
            let bucket = {
                let mut depot = self.zones[class].depot.lock();
                let bucket = depot.take();
                self.stats().zone(class).depot.store(depot.items() as u64, Ordering::Relaxed);
                bucket
            };
            let Some(bucket) = bucket else { return };
            self.empty_bucket(class, bucket);
        }
    }

    /// Items of all depots go to their slabs.
    pub(super) fn drain_depots(&self) {
        for class in 0..SLAB_CLASSES {
            self.drain_depot(class, usize::MAX);
        }
    }

    /// In the background of other calls, with no lock and no slot held: depots are trimmed to their working sets.
    pub(super) fn trim_depots_in_background(&self) {
        // Two that count at once count one: no matter.
        let turn = self.depot_turns.load(Ordering::Relaxed).wrapping_add(1);
        self.depot_turns.store(turn, Ordering::Relaxed);
        if turn.is_multiple_of(LOOK_TURNS) {
            self.look_at_depots(P::now_ns());
        }
    }

    /// Trims the depots of the size classes, ten times a second however often it is called. Never sleeps.
    pub(crate) fn look_at_depots(&self, now: u64) {
        let last = self.depots_seen_ns.load(Ordering::Relaxed);
        if now.wrapping_sub(last) < LOOK_EVERY_NS
            || self.depots_seen_ns.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        for class in 0..SLAB_CLASSES {
            let excess = self.zones[class].depot.lock().look(self.usual_depot());
            self.drain_depot(class, excess);
        }
    }
}
