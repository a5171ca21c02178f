//! The exchange of buckets between the slots' caches and a depot (`kern`'s `alloc_class_slow` and `free_class_slow`), as a model.
//!
//! Nothing is locked inside a section: a thread that finds its bucket empty (or full) leaves the section, takes a bucket from the
//! depot (or an empty one), and enters again, perhaps another slot; meanwhile others may have filled or emptied what it
//! saw. Whatever it then finds, no item may be lost or doubled. The model has the smallest buckets, so that nearly each call exchanges.
//!
//! Preemption bound 2. Each careless step must be noticed.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

/// Items that a bucket has room for when it is filled by frees; those of the depot have two.
const ROOM: usize = 1;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// A bucket from the depot replaces the first one, whatever others have put there meanwhile.
    InstallBlindly,
    /// The bucket that a fresh one displaces is forgotten.
    ForgetDisplaced,
    /// The cache is used after its section was left.
    UseAfterLeave,
}

#[derive(Default)]
struct Cache {
    /// Allocations pop here.
    first: Vec<usize>,
    /// Frees push here.
    second: Vec<usize>,
}

struct Slot {
    word: AtomicU32,
    cache: UnsafeCell<Cache>,
}

// SAFETY: the cache is touched by the holder of the word only; that this is so is what the model checks.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

struct Zone {
    slots: Vec<Slot>,
    depot: Mutex<Vec<Vec<usize>>>,
}

/// Being in the section of a slot.
struct Section<'a>(&'a Slot);

impl Section<'_> {
    fn with<T>(&self, f: impl FnOnce(&mut Cache) -> T) -> T {
        // SAFETY: the section is ours.
        self.0.cache.with_mut(|cache| f(unsafe { &mut *cache }))
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        self.0.word.store(0, Ordering::Release);
    }
}

impl Zone {
    fn new(slots: usize, depot: &[&[usize]]) -> Self {
        let slot = |_| Slot { word: AtomicU32::new(0), cache: UnsafeCell::new(Cache::default()) };
        Self { slots: (0..slots).map(slot).collect(), depot: Mutex::new(depot.iter().map(|b| b.to_vec()).collect()) }
    }

    /// The first slot that is free, or the last by waiting.
    fn enter(&self) -> Section<'_> {
        let take = |slot: &Slot| slot.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        loop {
            if let Some(slot) = self.slots.iter().find(|slot| take(slot)) {
                return Section(slot);
            }
            thread::yield_now();
        }
    }

    fn alloc(&self, how: Break) -> Option<usize> {
        let section = self.enter();
        let item = section.with(|cache| {
            if cache.first.is_empty() {
                core::mem::swap(&mut cache.first, &mut cache.second);
            }
            cache.first.pop()
        });
        let slot = section.0;
        drop(section);
        if item.is_some() {
            return item;
        }
        let mut bucket = self.depot.lock().unwrap().pop()?;
        let item = bucket.pop();
        if how == Break::UseAfterLeave {
            // SAFETY: none: that is what is broken.
            slot.cache.with_mut(|cache| unsafe { (*cache).first.append(&mut bucket) });
            return item;
        }
        let refused = self.enter().with(|cache| {
            if cache.first.is_empty() || how == Break::InstallBlindly {
                cache.first = bucket;
                None
            } else if cache.second.is_empty() {
                cache.second = bucket;
                None
            } else {
                Some(bucket)
            }
        });
        self.store(refused);
        item
    }

    fn free(&self, item: usize, how: Break) {
        let pushed = self.enter().with(|cache| {
            if cache.second.len() >= ROOM && cache.first.is_empty() {
                core::mem::swap(&mut cache.first, &mut cache.second);
            }
            let room = cache.second.len() < ROOM;
            if room {
                cache.second.push(item);
            }
            room
        });
        if pushed {
            return;
        }
        // A fresh bucket would come from the pool here, under a lock.
        let displaced = self.enter().with(|cache| {
            if cache.second.len() < ROOM {
                cache.second.push(item);
                return None;
            }
            let displaced = core::mem::replace(&mut cache.second, vec![item]);
            Some(displaced).filter(|_| how != Break::ForgetDisplaced)
        });
        self.store(displaced);
    }

    fn store(&self, bucket: Option<Vec<usize>>) {
        if let Some(bucket) = bucket.filter(|bucket| !bucket.is_empty()) {
            self.depot.lock().unwrap().push(bucket);
        }
    }

    /// All items, wherever they are. Nobody else is there.
    fn items(&self) -> Vec<usize> {
        let mut items: Vec<usize> = self.depot.lock().unwrap().concat();
        for slot in &self.slots {
            Section(slot).with(|cache| items.extend(cache.first.iter().chain(&cache.second)));
        }
        items
    }
}

/// Threads that each take two items and give them back, or keep what they got.
fn run(slots: usize, bucket: &'static [&'static [usize]], how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let zone = Arc::new(Zone::new(slots, bucket));
        let other = {
            let zone = Arc::clone(&zone);
            thread::spawn(move || work(&zone, how))
        };
        let mut items = work(&zone, how);
        items.extend(other.join().unwrap());
        items.extend(zone.items());
        items.sort_unstable();
        let mut expected = bucket.concat();
        expected.sort_unstable();
        assert_eq!(items, expected, "items are lost or doubled");
    });
}

/// Two out, both back, one out: through empty, half full and full caches. Returns what is kept.
fn work(zone: &Zone, how: Break) -> Vec<usize> {
    let taken = [zone.alloc(how), zone.alloc(how)];
    for item in taken.into_iter().flatten() {
        zone.free(item, how);
    }
    zone.alloc(how).into_iter().collect()
}

const ITEMS: &[&[usize]] = &[&[1, 2], &[3, 4]];

#[test]
fn items_are_conserved_in_one_slot() {
    run(1, ITEMS, Break::Nothing);
}

#[test]
fn items_are_conserved_in_two_slots() {
    run(2, ITEMS, Break::Nothing);
}

#[test]
#[should_panic(expected = "items are lost or doubled")]
fn broken_a_bucket_installed_over_what_others_put_there() {
    run(1, ITEMS, Break::InstallBlindly);
}

#[test]
#[should_panic(expected = "items are lost or doubled")]
fn broken_a_displaced_bucket_that_is_forgotten() {
    run(1, ITEMS, Break::ForgetDisplaced);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_cache_used_after_its_section() {
    run(1, ITEMS, Break::UseAfterLeave);
}
