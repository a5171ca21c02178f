//! No wake-up is lost: the sleeping protocol of `src/channel.rs`, that very file, under loom.
//!
//! What is modelled around it is how [`Arena`](kernmalloc_vmem::Arena) uses it: an arena is a number of free things
//! under a lock, a quantum cache another. A thread that would sleep ends, with its sleeper still counted; when all
//! threads have ended, it sleeps for ever if the word is what it was when it was compared. (A thread that really
//! slept for ever would be a deadlock, which loom can't unwind.)
//!
//! Preemption bound 3 (2 with three threads). Each step left out must be noticed.
#![cfg(loom)]

#[path = "../src/channel.rs"]
#[allow(unreachable_pub, dead_code, reason = "public in the crate, and its wait is not called here")]
mod channel;

/// What the file is compiled against.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU32, Ordering};
}

/// As in the crate, what of it the protocol needs.
mod system {
    use crate::sync::AtomicU32;

    pub(crate) trait System {
        fn wait(word: &AtomicU32, seen: u32);
        fn wake_all(word: &AtomicU32);
    }
}

use channel::Channel;
use loom::sync::{Arc, Mutex};
use loom::thread;
use sync::{AtomicU32, Ordering};
use system::System;

/// A futex, of which only the comparison is modelled.
struct Futex;

/// What a comparison in `Futex::wait` answers: the thread would sleep.
fn would_sleep(word: &AtomicU32, seen: u32) -> bool {
    word.load(Ordering::SeqCst) == seen
}

impl System for Futex {
    fn wait(_word: &AtomicU32, _seen: u32) {
        unreachable!("threads end instead");
    }

    fn wake_all(_word: &AtomicU32) {}
}

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// The sleeper looks for space and only then counts itself.
    LookThenEnter,
    /// The one who frees wakes the sleepers and only then frees.
    WakeThenFree,
    /// The sleeper takes the word's value only when it goes to sleep.
    LateCompare,
    /// The sleeper does not look into the caches.
    NoDrain,
    /// A free into a cache does not ask for sleepers.
    NoAsk,
}

struct Arena {
    channel: Channel,
    free: Mutex<u32>,
    cached: Mutex<u32>,
}

impl Arena {
    fn new() -> Arena {
        let channel = Channel { generation: AtomicU32::new(0), waiters: AtomicU32::new(0) };
        Arena { channel, free: Mutex::new(0), cached: Mutex::new(0) }
    }

    fn take(&self) -> bool {
        let mut free = self.free.lock().unwrap();
        let some = *free != 0;
        *free -= u32::from(some);
        some
    }

    /// `Arena::xfree`.
    fn xfree(&self, how: Break) {
        if how == Break::WakeThenFree {
            self.channel.wake::<Futex>();
        }
        *self.free.lock().unwrap() += 1;
        if how != Break::WakeThenFree {
            self.channel.wake::<Futex>();
        }
    }

    /// `Arena::free` of a size that a cache serves.
    fn free_cached(&self, how: Break) {
        *self.cached.lock().unwrap() += 1;
        if how != Break::NoAsk && self.channel.has_waiters() {
            self.drain(how);
        }
    }

    fn drain(&self, how: Break) {
        let cached = std::mem::take(&mut *self.cached.lock().unwrap());
        for _ in 0..cached {
            self.xfree(how);
        }
    }

    /// The end of `Arena::alloc_slow`. With the value of the word at which the thread would sleep, if it would.
    fn take_or_sleep(&self, how: Break) -> Option<u32> {
        loop {
            if how == Break::LookThenEnter && self.take() {
                return None;
            }
            let sleeper = self.channel.enter();
            if how != Break::NoDrain {
                self.drain(how);
            }
            if how != Break::LookThenEnter && self.take() {
                return None;
            }
            let now = || self.channel.generation.load(Ordering::SeqCst);
            let seen = if how == Break::LateCompare { now() } else { sleeper.seen() };
            if would_sleep(&self.channel.generation, seen) {
                // Counted as long as it sleeps.
                std::mem::forget(sleeper);
                return Some(seen);
            }
        }
    }
}

fn run(sleepers: u32, cached: bool, bound: usize, how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || {
        let arena = Arc::new(Arena::new());
        let threads: Vec<_> = (0..sleepers)
            .map(|_| {
                let arena = Arc::clone(&arena);
                thread::spawn(move || arena.take_or_sleep(how))
            })
            .collect();
        for _ in 0..sleepers {
            if cached { arena.free_cached(how) } else { arena.xfree(how) }
        }
        let asleep: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        for seen in asleep {
            assert!(arena.channel.generation.load(Ordering::SeqCst) != seen, "a sleeper for ever");
            // It wakes, and finds something.
            arena.channel.waiters.fetch_sub(1, Ordering::SeqCst);
            assert_eq!(arena.take_or_sleep(how), None, "woken for nothing");
        }
        assert_eq!((*arena.free.lock().unwrap(), *arena.cached.lock().unwrap()), (0, 0));
        assert!(!arena.channel.has_waiters());
    });
}

#[test]
fn a_free_wakes_the_sleeper() {
    run(1, false, 3, Break::Nothing);
}

#[test]
fn two_frees_wake_two_sleepers() {
    run(2, false, 2, Break::Nothing);
}

#[test]
fn a_free_into_a_cache_wakes_the_sleeper() {
    run(1, true, 3, Break::Nothing);
}

#[test]
#[should_panic(expected = "a sleeper for ever")]
fn broken_a_sleeper_that_looks_and_then_counts_itself() {
    run(1, false, 3, Break::LookThenEnter);
}

#[test]
#[should_panic(expected = "a sleeper for ever")]
fn broken_a_free_that_wakes_first() {
    run(1, false, 3, Break::WakeThenFree);
}

#[test]
#[should_panic(expected = "a sleeper for ever")]
fn broken_a_comparison_with_a_value_taken_too_late() {
    run(1, false, 3, Break::LateCompare);
}

#[test]
#[should_panic(expected = "a sleeper for ever")]
fn broken_a_sleeper_that_forgets_the_caches() {
    run(1, true, 3, Break::NoDrain);
}

#[test]
#[should_panic(expected = "a sleeper for ever")]
fn broken_a_free_into_a_cache_that_asks_for_nobody() {
    run(1, true, 3, Break::NoAsk);
}
