//! No wake-up is lost: the sleeping protocol of `src/channel.rs`, that very file, under loom.
//!
//! What is modelled around it is how [`Arena`](kernmalloc_vmem::Arena) uses it: an arena is a number of free things under a lock, a
//! quantum cache another; a futex is a condition variable whose mutex guards the comparison. A lost wake-up is a sleeper for
//! ever, which loom reports as a deadlock.
//!
//! Preemption bound 3 (2 with three threads). Each step left out must be noticed.
#![cfg(loom)]

#[path = "../src/channel.rs"]
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
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use sync::{AtomicU32, Ordering};
use system::System;

/// For the link in the crate's text.
#[allow(unused_imports, reason = "the file's documentation names it")]
use kernmalloc_vmem::Source;

loom::lazy_static! {
    static ref SLEEP: Mutex<()> = Mutex::new(());
    static ref WOKEN: Condvar = Condvar::new();
}

/// A futex.
struct Futex;

impl System for Futex {
    fn wait(word: &AtomicU32, seen: u32) {
        let mut sleep = SLEEP.lock().unwrap();
        while word.load(Ordering::SeqCst) == seen {
            sleep = WOKEN.wait(sleep).unwrap();
        }
    }

    fn wake_all(_word: &AtomicU32) {
        drop(SLEEP.lock().unwrap());
        WOKEN.notify_all();
    }
}

/// A system that does not take the mutex before it wakes: between a sleeper's comparison and its sleep.
struct Hasty;

impl System for Hasty {
    fn wait(word: &AtomicU32, seen: u32) {
        // As a port that compares first and then sleeps.
        if word.load(Ordering::SeqCst) == seen {
            let sleep = SLEEP.lock().unwrap();
            drop(WOKEN.wait(sleep).unwrap());
        }
    }

    fn wake_all(_word: &AtomicU32) {
        WOKEN.notify_all();
    }
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
    fn xfree<S: System>(&self, how: Break) {
        if how == Break::WakeThenFree {
            self.channel.wake::<S>();
        }
        *self.free.lock().unwrap() += 1;
        if how != Break::WakeThenFree {
            self.channel.wake::<S>();
        }
    }

    /// `Arena::free` of a size that a cache serves.
    fn free_cached<S: System>(&self, how: Break) {
        *self.cached.lock().unwrap() += 1;
        if how != Break::NoAsk && self.channel.has_waiters() {
            self.drain::<S>(how);
        }
    }

    fn drain<S: System>(&self, how: Break) {
        let cached = std::mem::take(&mut *self.cached.lock().unwrap());
        for _ in 0..cached {
            self.xfree::<S>(how);
        }
    }

    /// The end of `Arena::alloc_slow`.
    fn take_or_sleep<S: System>(&self, how: Break) {
        let mut early = how == Break::LookThenEnter && self.take();
        while !early {
            let sleeper = self.channel.enter();
            if how != Break::NoDrain {
                self.drain::<S>(how);
            }
            if how != Break::LookThenEnter && self.take() {
                return;
            }
            if how == Break::LateCompare {
                let seen = self.channel.generation.load(Ordering::SeqCst);
                S::wait(&self.channel.generation, seen);
            } else {
                sleeper.wait::<S>();
            }
            early = how == Break::LookThenEnter && self.take();
        }
    }
}

fn run<S: System + 'static>(sleepers: u32, cached: bool, bound: usize, how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || {
        let arena = Arc::new(Arena::new());
        let threads: Vec<_> = (0..sleepers)
            .map(|_| {
                let arena = Arc::clone(&arena);
                thread::spawn(move || arena.take_or_sleep::<S>(how))
            })
            .collect();
        for _ in 0..sleepers {
            if cached { arena.free_cached::<S>(how) } else { arena.xfree::<S>(how) }
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((*arena.free.lock().unwrap(), *arena.cached.lock().unwrap()), (0, 0));
        assert!(!arena.channel.has_waiters());
    });
}

#[test]
fn a_free_wakes_the_sleeper() {
    run::<Futex>(1, false, 3, Break::Nothing);
}

#[test]
fn two_frees_wake_two_sleepers() {
    run::<Futex>(2, false, 2, Break::Nothing);
}

#[test]
fn a_free_into_a_cache_wakes_the_sleeper() {
    run::<Futex>(1, true, 3, Break::Nothing);
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_a_sleeper_that_looks_and_then_counts_itself() {
    run::<Futex>(1, false, 3, Break::LookThenEnter);
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_a_free_that_wakes_first() {
    run::<Futex>(1, false, 3, Break::WakeThenFree);
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_a_comparison_with_a_value_taken_too_late() {
    run::<Futex>(1, false, 3, Break::LateCompare);
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_a_sleeper_that_forgets_the_caches() {
    run::<Futex>(1, true, 3, Break::NoDrain);
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_a_free_into_a_cache_that_asks_for_nobody() {
    run::<Futex>(1, true, 3, Break::NoAsk);
}

#[test]
#[should_panic(expected = "deadlock")]
fn broken_a_port_that_compares_without_the_mutex() {
    run::<Hasty>(1, false, 3, Break::Nothing);
}
