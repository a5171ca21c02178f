//! Sleepers against the fast path of free, in every interleaving that loom finds: who sleeps on the limit of a type (`kern`'s
//! `stats::compare` and `malloc::limit`, over the real [`Row`]) and who sleeps for memory (`system::shortage`). The fast path has
//! no branch and no fence for either; a wake-up that is lost is a wait without end, which loom reports.
//!
//! Preemption bound 3. Each step on which the argument rests is left out once, and must then be missed.
#![cfg(loom)]

mod rows;

use abi::{FreeSize, Ordering, PEAK_ARMED, TypeTotals};
use kernmalloc_abi as abi;
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Mutex};
use loom::thread;
use rows::OneType;

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    // Far more than a run takes that ends.
    builder.max_branches = 3000;
    builder.check(f);
}

/// A word to sleep on. Whoever waits does nothing until the word changes: when nobody changes it any more, loom says that the model goes
/// on without end.
struct Futex(AtomicU32);

impl Futex {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn read(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    fn wait(&self, seen: u32) {
        while self.0.load(Ordering::Acquire) == seen {
            thread::yield_now();
        }
    }

    fn wake_all(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

/// The lock word of a slot.
struct Section(AtomicU32);

impl Section {
    fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn enter(&self) {
        while self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            thread::yield_now();
        }
    }

    fn leave(&self) {
        self.0.store(0, Ordering::Release);
    }
}

const COMPARE_BYTES: u64 = 16;
const BLOCK: u64 = 48;

#[derive(Clone, Copy, PartialEq)]
enum Limit {
    Sound,
    /// The sleeper arms lines whose slots it does not hold.
    ArmsFromOutside,
    /// The sleeper counts itself after it has armed the lines.
    CountsLate,
    /// The sleeper looks at the sum before it reads the word that it sleeps on.
    LooksEarly,
}

struct Type {
    sections: [Section; 2],
    rows: [OneType; 2],
    sleepers: AtomicU32,
    wakeups: Futex,
}

impl Type {
    fn in_use(&self) -> u64 {
        TypeTotals::read(|| self.rows.iter().map(OneType::view)).bytes_in_use()
    }

    /// `Stats::fold`: inside the section of the row's slot.
    fn fold(&self, row: &OneType) -> bool {
        row.row().settle();
        let asleep = self.sleepers.load(Ordering::Relaxed) != 0;
        let peak = if asleep { PEAK_ARMED } else { row.line.in_use() as u64 };
        row.line.peak_bytes.store(peak, Ordering::Relaxed);
        asleep
    }

    /// The fast path of free, as far as statistics go.
    fn free(&self, slot: usize) {
        self.sections[slot].enter();
        let row = &self.rows[slot];
        // SAFETY: 1. there is one type. 2. we hold the slot.
        let off_peak = unsafe { row.row().count_free(0, FreeSize::new(BLOCK as u32), COMPARE_BYTES) };
        if off_peak && row.line.note_peak() && self.fold(row) {
            self.wakeups.wake_all();
        }
        self.sections[slot].leave();
    }

    /// `Malloc::admit`, for who is alone in line.
    fn sleep_until_below(&self, limit: u64, how: Limit) {
        let count = || self.sleepers.fetch_add(1, Ordering::SeqCst);
        if how != Limit::CountsLate {
            count();
        }
        for (section, row) in self.sections.iter().zip(&self.rows) {
            if how == Limit::ArmsFromOutside {
                row.line.peak_bytes.store(PEAK_ARMED, Ordering::Relaxed);
                continue;
            }
            section.enter();
            row.row().settle();
            row.line.peak_bytes.store(PEAK_ARMED, Ordering::Relaxed);
            section.leave();
        }
        if how == Limit::CountsLate {
            count();
        }
        loop {
            if how == Limit::LooksEarly {
                if self.in_use() < limit {
                    break;
                }
                self.wakeups.wait(self.wakeups.read());
                continue;
            }
            let seen = self.wakeups.read();
            if self.in_use() < limit {
                break;
            }
            self.wakeups.wait(seen);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Two blocks in use, both freed in another slot than they came from, and somebody who needs both to be free.
fn limit(how: Limit) {
    model(move || {
        let ty = Arc::new(Type {
            sections: [Section::new(), Section::new()],
            rows: [OneType::default(), OneType::default()],
            sleepers: AtomicU32::new(0),
            wakeups: Futex::new(),
        });
        for _ in 0..2 {
            ty.rows[0].line.count_alloc(BLOCK, BLOCK, 4);
        }
        let freer = {
            let ty = Arc::clone(&ty);
            thread::spawn(move || {
                ty.free(1);
                ty.free(1);
            })
        };
        ty.sleep_until_below(BLOCK, how);
        freer.join().unwrap();
        assert_eq!(ty.in_use(), 0);
    });
}

#[test]
fn a_sleeper_on_a_limit_is_woken() {
    limit(Limit::Sound);
}

#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn broken_lines_armed_from_outside_their_slots() {
    limit(Limit::ArmsFromOutside);
}

#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn broken_a_limit_sleeper_that_counts_itself_late() {
    limit(Limit::CountsLate);
}

#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn broken_a_sleeper_that_looks_before_it_reads_the_word() {
    limit(Limit::LooksEarly);
}

#[derive(Clone, Copy, PartialEq)]
enum Pages {
    Sound,
    /// Who gives a cache its bucket looks for sleepers before it enters the section.
    LooksOutside,
    /// The sleeper counts itself after it has emptied the caches.
    CountsLate,
    /// The caches keep their room.
    Undrained,
}

/// The cache of one slot: items, and for how many there is room.
#[derive(Default)]
struct Cache {
    items: Vec<usize>,
    capacity: usize,
}

struct Zone {
    section: Section,
    cache: UnsafeCell<Cache>,
    keg: Mutex<Vec<usize>>,
    sleepers: AtomicU32,
    wakeups: Futex,
}

// SAFETY: the cache is touched by the holder of the section only; that this is so is what loom checks.
unsafe impl Sync for Zone {}
// SAFETY: as above.
unsafe impl Send for Zone {}

impl Zone {
    fn is_short(&self) -> bool {
        self.sleepers.load(Ordering::Relaxed) != 0
    }

    /// Inside the section.
    fn cache<T>(&self, f: impl FnOnce(&mut Cache) -> T) -> T {
        // SAFETY: the caller holds the section.
        self.cache.with_mut(|cache| f(unsafe { &mut *cache }))
    }

    fn keg_put(&self, items: Vec<usize>) {
        let mut keg = self.keg.lock().unwrap();
        keg.extend(items);
        if self.is_short() {
            self.wakeups.wake_all();
        }
    }

    /// `System::free`: the fast path, and the slow one that gives the cache a bucket.
    fn free(&self, item: usize, how: Pages) {
        self.section.enter();
        let kept = self.cache(|cache| {
            let room = cache.items.len() < cache.capacity;
            if room {
                cache.items.push(item);
            }
            room
        });
        self.section.leave();
        if kept {
            return;
        }
        let short_before = self.is_short();
        self.section.enter();
        let short = if how == Pages::LooksOutside { short_before } else { self.is_short() };
        if !short {
            self.cache(|cache| {
                cache.capacity = 2;
                cache.items.push(item);
            });
        }
        self.section.leave();
        if short {
            self.keg_put(vec![item]);
        }
    }

    /// `Malloc::obtain`, for who is alone in line.
    fn take(&self, how: Pages) -> usize {
        let count = || self.sleepers.fetch_add(1, Ordering::SeqCst);
        if how != Pages::CountsLate {
            count();
        }
        self.section.enter();
        let drained = self.cache(|cache| {
            if how != Pages::Undrained {
                cache.capacity = 0;
            }
            std::mem::take(&mut cache.items)
        });
        self.section.leave();
        self.keg_put(drained);
        if how == Pages::CountsLate {
            count();
        }
        loop {
            let seen = self.wakeups.read();
            if let Some(item) = self.keg.lock().unwrap().pop() {
                self.sleepers.fetch_sub(1, Ordering::SeqCst);
                return item;
            }
            self.wakeups.wait(seen);
        }
    }
}

/// One free, with room in the cache or without, and somebody who sleeps until it is there.
fn pages(how: Pages, capacity: usize) {
    model(move || {
        let zone = Arc::new(Zone {
            section: Section::new(),
            cache: UnsafeCell::new(Cache { items: Vec::new(), capacity }),
            keg: Mutex::new(Vec::new()),
            sleepers: AtomicU32::new(0),
            wakeups: Futex::new(),
        });
        let freer = {
            let zone = Arc::clone(&zone);
            thread::spawn(move || zone.free(7, how))
        };
        assert_eq!(zone.take(how), 7);
        freer.join().unwrap();
    });
}

#[test]
fn a_sleeper_for_memory_is_woken() {
    pages(Pages::Sound, 0);
    pages(Pages::Sound, 2);
}

#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn broken_a_bucket_installed_by_an_old_look() {
    pages(Pages::LooksOutside, 0);
}

#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn broken_a_sleeper_for_memory_that_counts_itself_late() {
    pages(Pages::CountsLate, 0);
}

#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn broken_caches_that_keep_their_room() {
    pages(Pages::Undrained, 2);
}
