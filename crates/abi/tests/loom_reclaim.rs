//! Reclaim of another CPU's caches and of the depot, while allocations and frees go on there (`kern`'s `drain_slot` and `drain_depots`
//! against `alloc_class_slow` and `free_class_slow`).
//!
//! The real code: the cache itself with its counters ([`CpuCache`]). Modelled are the slot's lock word, the depot and the keg behind
//! their locks, and line by line: `drain_slot` and `drain_depots` of `kern`'s `system/reclaim.rs`; what `system/alloc.rs` and
//! `system/free.rs` do with a cache that is empty, full, or without buckets since somebody took them; and `full_bucket` and
//! `store_full` of `system/supply.rs`, with a depot that has room for one bucket. Buckets have room for two items.
//!
//! Whatever was taken from whom in the middle of what: no item is lost or doubled, and what the caches say they have handed out less what
//! they took back is what is out.
//!
//! Preemption bound 3. Each careless step must be noticed.
#![cfg(loom)]

use kernmalloc_abi::{CacheEntry, CpuCache};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Items that a bucket has room for.
const ROOM: usize = 2;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// The caches are emptied without claiming their slot.
    NoClaim,
    /// The second bucket of a cache is forgotten.
    ForgetSecond,
    /// The counters of a cache go with its buckets.
    ForgetCounters,
    /// The buckets are read in one section and taken out of the cache in the next.
    TakeLate,
    /// The depot's bucket is copied under the lock, and removed under the next.
    DepotTwice,
    /// Who comes back with a bucket does not look whether the cache has one again.
    InstallBlindly,
}

/// A bucket: the first of its entries, and how many there are. Memory is leaked: a model is short.
struct Bucket {
    items: *mut CacheEntry,
    count: usize,
}

// SAFETY: whoever has the bucket has its memory.
unsafe impl Send for Bucket {}

impl Bucket {
    fn new(items: &[usize]) -> Self {
        let entry = |n: usize| CacheEntry { item: items.get(n).copied().unwrap_or(0), tag: 0 };
        let memory: [CacheEntry; ROOM] = std::array::from_fn(entry);
        Self { items: Box::leak(Box::new(memory)).as_mut_ptr(), count: items.len() }
    }

    /// A bucket by its memory, null for none.
    fn from_items(items: *mut CacheEntry, count: usize) -> Option<Self> {
        (!items.is_null()).then_some(Self { items, count })
    }

    fn filled(&self) -> Vec<usize> {
        // SAFETY: so many entries, ours.
        (0..self.count).map(|n| unsafe { (*self.items.add(n)).item }).collect()
    }
}

struct Slot {
    word: AtomicU32,
    cache: UnsafeCell<CpuCache>,
}

struct Zone {
    how: Break,
    slots: Vec<Slot>,
    depot: Mutex<Vec<Bucket>>,
    keg: Mutex<Vec<usize>>,
}

// SAFETY: a cache is touched by the holder of its slot's word only; that this is so is what the model checks.
unsafe impl Sync for Zone {}
// SAFETY: as above.
unsafe impl Send for Zone {}

/// Being in the section of a slot.
struct Section<'a>(&'a Slot);

impl Section<'_> {
    fn with<T>(&self, f: impl FnOnce(&mut CpuCache) -> T) -> T {
        // SAFETY: the section is ours.
        self.0.cache.with_mut(|cache| f(unsafe { &mut *cache }))
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.0.word.store(0, Ordering::Release);
    }
}

fn empty_cache() -> CpuCache {
    // SAFETY: zeros are a cache without buckets.
    unsafe { core::mem::zeroed() }
}

fn swap_buckets(cache: &mut CpuCache) {
    let (items, count, capacity) = (cache.free_items, cache.free_count as usize, cache.free_capacity as usize);
    cache.free_items = cache.alloc_items;
    (cache.free_count, cache.free_capacity) = (cache.alloc_count() as u32, cache.alloc_capacity() as u32);
    cache.set_alloc(items, count, capacity);
}

impl Zone {
    fn new(how: Break, slots: usize, depot: &[&[usize]], keg: &[usize]) -> Self {
        let slot = |_| Slot { word: AtomicU32::new(0), cache: UnsafeCell::new(empty_cache()) };
        Self {
            how,
            slots: (0..slots).map(slot).collect(),
            depot: Mutex::new(depot.iter().map(|items| Bucket::new(items)).collect()),
            keg: Mutex::new(keg.to_vec()),
        }
    }

    fn enter(&self, slot: usize) -> Section<'_> {
        let slot = &self.slots[slot];
        while slot.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            thread::yield_now();
        }
        Section(slot)
    }

    /// An allocation on a CPU: the cache, or a bucket from behind.
    fn alloc(&self, slot: usize) -> Option<usize> {
        let found = self.enter(slot).with(|cache| {
            if cache.alloc_count() == 0 && cache.free_count > 0 {
                swap_buckets(cache);
            }
            // SAFETY: 1. in the section.
            let entry = unsafe { cache.pop() };
            cache.allocs += u64::from(entry.is_some());
            entry
        });
        if let Some(entry) = found {
            return Some(entry.item);
        }
        // `full_bucket`.
        let bucket = self.depot.lock().unwrap().pop().or_else(|| {
            let mut keg = self.keg.lock().unwrap();
            let from = keg.len().saturating_sub(ROOM);
            let items = keg.split_off(from);
            (!items.is_empty()).then(|| Bucket::new(&items))
        });
        let mut bucket = bucket?;
        let item = *bucket.filled().last()?;
        bucket.count -= 1;
        let refused = self.enter(slot).with(|cache| {
            cache.count_alloc_elsewhere();
            if cache.alloc_count() == 0 || self.how == Break::InstallBlindly {
                let old = Bucket::from_items(cache.alloc_items, cache.alloc_count());
                cache.filled = cache.filled.wrapping_add(bucket.count as u64);
                cache.set_alloc(bucket.items, bucket.count, ROOM);
                old.filter(|old| old.count > 0 && self.how != Break::InstallBlindly)
            } else {
                Some(bucket)
            }
        });
        self.store(refused);
        Some(item)
    }

    /// A free on a CPU.
    fn free(&self, slot: usize, item: usize) {
        let entry = CacheEntry { item, tag: 0 };
        // A push counts the free; what goes elsewhere is counted by hand.
        // SAFETY: 1. in the section.
        if self.enter(slot).with(|cache| unsafe { cache.push(entry) }) {
            return;
        }
        let fresh = Bucket::new(&[]);
        let displaced = self.enter(slot).with(|cache| {
            // SAFETY: 1. in the section.
            if unsafe { cache.push(entry) } {
                return None;
            }
            let full = Bucket::from_items(cache.free_items, cache.free_count as usize);
            cache.filled = cache.filled.wrapping_sub(u64::from(cache.free_count));
            cache.free_items = cache.alloc_items;
            (cache.free_count, cache.free_capacity) = (cache.alloc_count() as u32, cache.alloc_capacity() as u32);
            cache.set_alloc(fresh.items, 0, ROOM);
            // SAFETY: 1. in the section.
            unsafe { cache.push(entry) };
            full
        });
        self.store(displaced);
    }

    /// `store_full`: the depot has room for one.
    fn store(&self, bucket: Option<Bucket>) {
        let Some(bucket) = bucket.filter(|bucket| bucket.count > 0) else { return };
        let refused = {
            let mut depot = self.depot.lock().unwrap();
            if depot.is_empty() {
                depot.push(bucket);
                None
            } else {
                Some(bucket)
            }
        };
        if let Some(bucket) = refused {
            self.keg_put(&bucket);
        }
    }

    fn keg_put(&self, bucket: &Bucket) {
        self.keg.lock().unwrap().extend(bucket.filled());
    }

    /// `drain_slot`.
    fn drain_slot(&self, slot: usize) {
        let take = |cache: &mut CpuCache| {
            let first = Bucket::from_items(cache.alloc_items, cache.alloc_count());
            let second = Bucket::from_items(cache.free_items, cache.free_count as usize);
            (first, second.filter(|_| self.how != Break::ForgetSecond))
        };
        let clear = |cache: &mut CpuCache| {
            let (allocs, frees) = (cache.allocs, cache.frees());
            *cache = empty_cache();
            if self.how != Break::ForgetCounters {
                cache.allocs = allocs;
                cache.filled = allocs.wrapping_sub(frees);
            }
        };
        let both = |cache: &mut CpuCache| {
            let buckets = take(cache);
            clear(cache);
            buckets
        };
        let (first, second) = match self.how {
            Break::NoClaim => {
                // SAFETY: none: that is what is broken.
                self.slots[slot].cache.with_mut(|cache| both(unsafe { &mut *cache }))
            }
            Break::TakeLate => {
                let buckets = self.enter(slot).with(take);
                self.enter(slot).with(clear);
                buckets
            }
            _ => self.enter(slot).with(both),
        };
        for bucket in [first, second].into_iter().flatten() {
            self.keg_put(&bucket);
        }
    }

    /// `drain_depots`.
    fn drain_depot(&self) {
        if self.how == Break::DepotTwice {
            let copy = self.depot.lock().unwrap().last().map(Bucket::filled);
            let removed = self.depot.lock().unwrap().pop();
            if removed.is_some() {
                self.keg.lock().unwrap().extend(copy.unwrap_or_default());
            }
            return;
        }
        loop {
            let bucket = self.depot.lock().unwrap().pop();
            let Some(bucket) = bucket else { return };
            self.keg_put(&bucket);
        }
    }

    /// All items that are not out, and how many the caches say are out. Nobody else is there.
    fn account(&self) -> (Vec<usize>, u64) {
        let mut items = self.keg.lock().unwrap().clone();
        self.depot.lock().unwrap().iter().for_each(|bucket| items.extend(bucket.filled()));
        let mut out = 0u64;
        for slot in &self.slots {
            Section(slot).with(|cache| {
                let buckets = [
                    Bucket::from_items(cache.alloc_items, cache.alloc_count()),
                    Bucket::from_items(cache.free_items, cache.free_count as usize),
                ];
                buckets.into_iter().flatten().for_each(|bucket| items.extend(bucket.filled()));
                out = out.wrapping_add(cache.allocs).wrapping_sub(cache.frees());
            });
        }
        (items, out)
    }
}

const DEPOT: &[&[usize]] = &[&[1, 2]];
const KEG: &[usize] = &[3, 4, 5, 6, 7];

/// A thread allocates and frees on CPU 0, and by the end on the last one, through the depot; another reclaims everything and uses CPU 0
/// itself in between.
fn run(slots: usize, how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let zone = Arc::new(Zone::new(how, slots, DEPOT, KEG));
        // A cache with both buckets and a bucket in the depot: there is something to take everywhere.
        let mut held: Vec<usize> = (0..7).filter_map(|_| zone.alloc(0)).collect();
        held.drain(..5).for_each(|item| zone.free(0, item));
        let mut kept = vec![held.remove(0)];
        let worker = {
            let zone = Arc::clone(&zone);
            thread::spawn(move || {
                held.extend(zone.alloc(0));
                held.extend(zone.alloc(0));
                zone.free(0, held.remove(0));
                zone.free(slots - 1, held.remove(0));
                held
            })
        };
        zone.drain_slot(0);
        zone.free(0, kept.remove(0));
        zone.drain_depot();
        (1..slots).for_each(|slot| zone.drain_slot(slot));
        kept.extend(worker.join().unwrap());
        let (mut items, out) = zone.account();
        let held = kept.len() as u64;
        items.extend(kept);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4, 5, 6, 7], "items are lost or doubled");
        assert_eq!(out, held, "the caches' counters are wrong");
    });
}

#[test]
fn reclaim_of_one_cpu_loses_nothing() {
    run(1, Break::Nothing);
}

#[test]
fn reclaim_of_two_cpus_loses_nothing() {
    run(2, Break::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_reclaim_without_a_claim() {
    run(1, Break::NoClaim);
}

#[test]
#[should_panic(expected = "items are lost or doubled")]
fn broken_a_reclaim_that_forgets_the_second_bucket() {
    run(1, Break::ForgetSecond);
}

#[test]
#[should_panic(expected = "counters are wrong")]
fn broken_a_reclaim_that_forgets_the_counters() {
    run(1, Break::ForgetCounters);
}

#[test]
#[should_panic(expected = "items are lost or doubled")]
fn broken_buckets_that_are_taken_in_two_sections() {
    run(1, Break::TakeLate);
}

#[test]
#[should_panic(expected = "items are lost or doubled")]
fn broken_a_depot_that_is_read_and_emptied_in_two_steps() {
    run(1, Break::DepotTwice);
}

#[test]
#[should_panic(expected = "items are lost or doubled")]
fn broken_a_bucket_installed_over_one_that_came_meanwhile() {
    run(1, Break::InstallBlindly);
}
