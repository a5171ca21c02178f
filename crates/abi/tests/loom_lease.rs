//! A slot on lease (`hosted`'s `section`): its owner takes it by a flag, plain stores only, until another thread ends the lease.
//!
//! The owner sets the flag, then looks whether it still is the owner. Who ends the lease strikes the owner out, calls membarrier, looks at
//! the flag, and opens the slot to everybody when it is clear: Dekker's exclusion, whose two barriers the one membarrier stands for. In the
//! model it is a fence on either side: the interrupt falls before, between or after the owner's two accesses, and in each case they are as if
//! a fence stood between them. Everybody else takes the slot by its lock word, atomically: that is `loom_section.rs`'s matter.
//!
//! Each step left out must be noticed.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// Who ends the lease does not call membarrier.
    NoBarrier,
    /// The owner does not look again once its flag is set.
    NoSecondLook,
    /// The slot is opened without a look at the flag.
    NoLookAtFlag,
    /// An owner that finds its lease ended clears the lock with the flag.
    ClearsLock,
}

const LOCK: u64 = 1;
const FLAG: u64 = 1 << 32;

struct Slot {
    /// Lock and flag, 32 bits each. A store to one half is an operation on the whole that leaves the other as it is.
    head: AtomicU64,
    /// Whether the one owner there is still has it.
    owned: AtomicBool,
    leased: AtomicBool,
    /// What the section protects: loom panics at two accesses at once.
    inside: UnsafeCell<u32>,
}

// SAFETY: `inside` is touched by holders only; that there is one at a time is what the model checks.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

impl Slot {
    fn new() -> Self {
        Self {
            head: AtomicU64::new(0),
            owned: AtomicBool::new(true),
            leased: AtomicBool::new(true),
            inside: UnsafeCell::new(0),
        }
    }

    /// What the owner does. False: the lease was ended.
    fn enter_lease(&self, how: Break) -> bool {
        if !self.owned.load(Ordering::Relaxed) {
            return false;
        }
        self.head.fetch_or(FLAG, Ordering::Relaxed);
        // The membarrier's interrupt.
        fence(Ordering::SeqCst);
        if how == Break::NoSecondLook || self.owned.load(Ordering::Relaxed) {
            return true;
        }
        let keep = if how == Break::ClearsLock { 0 } else { !FLAG };
        self.head.fetch_and(keep, Ordering::Relaxed);
        false
    }

    /// `end_lease`.
    fn end_lease(&self, how: Break) {
        self.owned.store(false, Ordering::Relaxed);
        if how != Break::NoBarrier {
            fence(Ordering::SeqCst);
        }
        if how == Break::NoLookAtFlag || self.head.load(Ordering::Acquire) & FLAG == 0 {
            self.leased.store(false, Ordering::Release);
        }
    }

    /// What anybody does when there is no lease.
    fn enter(&self) -> bool {
        !self.leased.load(Ordering::Acquire) && self.head.fetch_or(LOCK, Ordering::Acquire) & LOCK == 0
    }

    fn hold(&self) {
        // SAFETY: we hold the slot.
        self.inside.with_mut(|inside| unsafe { *inside += 1 });
    }

    /// `leave`: one store to both words. (A swap: loom knows no single order of plain stores to one word, which all hardware has.)
    fn leave(&self) {
        self.head.swap(0, Ordering::Release);
    }
}

fn run(others: u32, bound: usize, how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || {
        let slot = Arc::new(Slot::new());
        let threads: Vec<_> = (0..others)
            .map(|_| {
                let slot = Arc::clone(&slot);
                thread::spawn(move || {
                    slot.end_lease(how);
                    let got = slot.enter();
                    if got {
                        slot.hold();
                        slot.leave();
                    }
                    u32::from(got)
                })
            })
            .collect();
        let mut holds = 0;
        for _ in 0..2 {
            // Once the lease is ended the owner is one of the others.
            if slot.enter_lease(how) || slot.enter() {
                slot.hold();
                slot.leave();
                holds += 1;
            }
        }
        holds += threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u32>();
        // SAFETY: all threads are done.
        assert_eq!(slot.inside.with(|inside| unsafe { *inside }), holds, "two holders at once");
        // Nobody is left out for good.
        slot.end_lease(Break::Nothing);
        assert!(slot.enter());
    });
}

#[test]
fn an_owner_and_who_ends_its_lease_never_both_hold() {
    run(1, 4, Break::Nothing);
}

#[test]
fn an_owner_and_two_that_end_its_lease_never_both_hold() {
    run(2, 2, Break::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_lease_ended_without_membarrier() {
    run(1, 4, Break::NoBarrier);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_an_owner_that_does_not_look_again() {
    run(1, 4, Break::NoSecondLook);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_lease_ended_without_a_look_at_the_flag() {
    run(1, 4, Break::NoLookAtFlag);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_an_owner_that_clears_the_lock_of_others() {
    run(2, 3, Break::ClearsLock);
}
