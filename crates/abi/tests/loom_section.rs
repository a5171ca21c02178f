//! How a slot is taken (`hosted`'s `section`): a restartable sequence on its own CPU against claimants from others, as a model.
//!
//! The sequence looks at the word and stores 1, no atomic instruction; the kernel restarts it if a membarrier of another CPU falls in between. A
//! claimant exchanges the word, calls membarrier, and looks again. In the model a membarrier is a counter behind a
//! lock: a sequence notes it when it starts, and its last instruction, the store, takes effect only while the counter is the same
//! (an interrupt is before an instruction or after it). The lock's ordering stands for the barrier on both sides.
//!
//! Preemption bound 3 (2 with three threads). Each step left out must be noticed.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CLAIMED: u32 = 2;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// The claimant does not call membarrier.
    NoBarrier,
    /// The claimant does not look again.
    NoSecondLook,
    /// The sequence is not restarted.
    NoRestart,
    /// All claimants write the same word.
    SharedWord,
}

struct Slot {
    word: AtomicU32,
    /// How many membarriers there were.
    barriers: Mutex<u32>,
    /// What the section protects: loom panics at two accesses at once.
    inside: UnsafeCell<u32>,
}

// SAFETY: `inside` is touched by holders only; that there is one at a time is what the model checks.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

impl Slot {
    fn new() -> Self {
        Self { word: AtomicU32::new(FREE), barriers: Mutex::new(0), inside: UnsafeCell::new(0) }
    }

    /// The restartable sequence. Twice restarted it gives up, as a caller does that finds the next row.
    fn enter(&self, how: Break) -> bool {
        for _ in 0..2 {
            let start = *self.barriers.lock().unwrap();
            if self.word.load(Ordering::Acquire) != FREE {
                return false;
            }
            let now = self.barriers.lock().unwrap();
            if *now == start || how == Break::NoRestart {
                // The store. A swap of which nobody looks at the result: loom knows no single order of plain stores to one word, which
                // all hardware has, and would let the second look miss this one.
                self.word.swap(HELD, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    fn membarrier(&self) {
        *self.barriers.lock().unwrap() += 1;
    }

    /// One attempt of a claimant from another CPU.
    fn claim(&self, me: u32, how: Break) -> bool {
        let word = if how == Break::SharedWord { CLAIMED } else { CLAIMED + me };
        if self.word.compare_exchange(FREE, word, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        if how != Break::NoBarrier {
            self.membarrier();
        }
        how == Break::NoSecondLook || self.word.load(Ordering::Acquire) == word
    }

    fn hold(&self) {
        // SAFETY: we hold the slot.
        self.inside.with_mut(|inside| unsafe { *inside += 1 });
        self.word.store(FREE, Ordering::Release);
    }
}

fn run(claimants: u32, rounds: u32, bound: usize, how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || {
        let slot = Arc::new(Slot::new());
        let threads: Vec<_> = (0..claimants)
            .map(|me| {
                let slot = Arc::clone(&slot);
                thread::spawn(move || {
                    let got = slot.claim(me, how);
                    if got {
                        slot.hold();
                    }
                    u32::from(got)
                })
            })
            .collect();
        let mut holds = 0;
        for _ in 0..rounds {
            if slot.enter(how) {
                slot.hold();
                holds += 1;
            }
        }
        holds += threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>();
        // SAFETY: all threads are done.
        assert_eq!(slot.inside.with(|inside| unsafe { *inside }), holds, "two holders at once");
    });
}

#[test]
fn a_sequence_and_a_claimant_never_both_hold() {
    run(1, 2, 3, Break::Nothing);
}

#[test]
fn a_sequence_and_two_claimants_never_both_hold() {
    run(2, 1, 2, Break::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_claim_without_membarrier() {
    run(1, 2, 3, Break::NoBarrier);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_claim_without_a_second_look() {
    run(1, 2, 3, Break::NoSecondLook);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_sequence_that_is_not_restarted() {
    run(1, 2, 3, Break::NoRestart);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_claimants_that_cannot_tell_each_other_apart() {
    run(2, 1, 4, Break::SharedWord);
}
