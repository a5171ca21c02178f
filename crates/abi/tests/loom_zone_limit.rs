//! How a request sleeps on a zone's limit and a free wakes it (`kern`'s `zone::limit`, `zone::import`), as a model.
//!
//! One CPU's cache, which its section guards; a limit of one item; whoever has the item frees it, into the cache or past it. A sleeper enters the
//! queue and sets the bit, empties the cache as a claimant of the slot does, and waits for the word to change. In the model a
//! section is a lock; who waits is entered in a list under the lock that guards the comparison, and his thread ends. Who is woken goes on once
//! the threads are done. In the end nobody may be left on the list.
//!
//! Preemption bound 3 (2 with three threads). Each step left out must be noticed.
#![cfg(loom)]

use std::collections::VecDeque;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// A free tests the bit before its section.
    BitOutside,
    /// The sleeper does not empty the cache.
    NoDrain,
    /// The sleeper empties the cache, and sets the bit after that.
    DrainFirst,
    /// The sleeper looks at the word only after it was not granted.
    SeenLate,
    /// Who grants wakes without a change of the word.
    SameWord,
}

#[derive(Default)]
struct Limit {
    items: u32,
    queue: VecDeque<u32>,
    granted: Vec<u32>,
    order: Vec<u32>,
}

/// Who sleeps, and who was woken.
#[derive(Default)]
struct Sleep {
    asleep: Vec<u32>,
    woken: Vec<u32>,
}

const MAX: u32 = 1;
const SLEEPERS: u32 = 1;

struct Zone {
    special: AtomicU32,
    /// Items in the CPU's cache; the lock is the slot's section.
    cache: Mutex<u32>,
    limit: Mutex<Limit>,
    wake: AtomicU32,
    sleep: Mutex<Sleep>,
    how: Break,
}

impl Zone {
    fn new(how: Break) -> Self {
        let limit = Limit { items: MAX, ..Limit::default() };
        Self {
            special: AtomicU32::new(0),
            cache: Mutex::new(0),
            limit: Mutex::new(limit),
            wake: AtomicU32::new(0),
            sleep: Mutex::default(),
            how,
        }
    }

    fn free(&self) {
        let before = self.special.load(Ordering::Relaxed);
        let past = {
            let mut cache = self.cache.lock().unwrap();
            let special = if self.how == Break::BitOutside { before } else { self.special.load(Ordering::Relaxed) };
            if special & SLEEPERS == 0 {
                *cache += 1;
            }
            special & SLEEPERS != 0
        };
        if past {
            self.give(1);
        }
    }

    /// Items are back in the keg.
    fn give(&self, count: u32) {
        let mut granted = false;
        {
            let mut limit = self.limit.lock().unwrap();
            limit.items -= count;
            while limit.items < MAX
                && let Some(first) = limit.queue.pop_front()
            {
                limit.granted.push(first);
                limit.order.push(first);
                limit.items += 1;
                granted = true;
            }
            if limit.queue.is_empty() {
                self.special.store(0, Ordering::Relaxed);
            }
        }
        if granted {
            if self.how != Break::SameWord {
                self.wake.fetch_add(1, Ordering::Relaxed);
            }
            let mut sleep = self.sleep.lock().unwrap();
            let asleep = std::mem::take(&mut sleep.asleep);
            sleep.woken.extend(asleep);
        }
    }

    fn drain(&self) {
        let items = std::mem::take(&mut *self.cache.lock().unwrap());
        if items > 0 {
            self.give(items);
        }
    }

    /// False: asleep.
    fn wait(&self, me: u32, seen: u32) -> bool {
        let mut sleep = self.sleep.lock().unwrap();
        if self.wake.load(Ordering::Relaxed) != seen {
            return true;
        }
        sleep.asleep.push(me);
        false
    }

    /// A request that sleeps until it has an item. False: it is asleep.
    fn alloc(&self, me: u32) -> bool {
        if self.how == Break::DrainFirst {
            self.drain();
        }
        {
            let mut limit = self.limit.lock().unwrap();
            if limit.items < MAX && limit.queue.is_empty() {
                limit.items += 1;
                return true;
            }
            limit.queue.push_back(me);
            self.special.store(SLEEPERS, Ordering::Relaxed);
        }
        if !matches!(self.how, Break::DrainFirst | Break::NoDrain) {
            self.drain();
        }
        self.go_on(me)
    }

    fn go_on(&self, me: u32) -> bool {
        loop {
            let seen = self.wake.load(Ordering::Relaxed);
            if self.limit.lock().unwrap().granted.contains(&me) {
                return true;
            }
            let seen = if self.how == Break::SeenLate { self.wake.load(Ordering::Relaxed) } else { seen };
            if !self.wait(me, seen) {
                return false;
            }
        }
    }
}

/// The item's owner frees it while so many others want it; each of those frees it again.
fn run(wanting: u32, bound: usize, how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || {
        let zone = Arc::new(Zone::new(how));
        let threads: Vec<_> = (0..wanting)
            .map(|me| {
                let zone = Arc::clone(&zone);
                thread::spawn(move || {
                    if zone.alloc(me) {
                        zone.free();
                    }
                })
            })
            .collect();
        zone.free();
        for thread in threads {
            thread.join().unwrap();
        }
        loop {
            let Some(me) = zone.sleep.lock().unwrap().woken.pop() else { break };
            if zone.go_on(me) {
                zone.free();
            }
        }
        assert!(zone.sleep.lock().unwrap().asleep.is_empty(), "somebody sleeps for ever");
        let (cached, limit) = (*zone.cache.lock().unwrap(), zone.limit.lock().unwrap());
        assert_eq!(limit.items, cached, "what is outside of the keg is in the cache");
        assert!(limit.queue.is_empty());
    });
}

#[test]
fn a_sleeper_is_woken() {
    run(1, 3, Break::Nothing);
}

#[test]
fn two_sleepers_are_woken() {
    run(2, 2, Break::Nothing);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn broken_a_free_that_looks_before_its_section() {
    run(1, 3, Break::BitOutside);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn broken_a_sleeper_that_leaves_items_in_the_cache() {
    run(1, 3, Break::NoDrain);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn broken_a_sleeper_that_empties_the_cache_too_early() {
    run(1, 3, Break::DrainFirst);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn broken_a_sleeper_that_looks_at_the_word_too_late() {
    run(1, 3, Break::SeenLate);
}

#[test]
#[should_panic(expected = "somebody sleeps for ever")]
fn broken_a_wake_without_a_change_of_the_word() {
    run(1, 3, Break::SameWord);
}
