//! When memory that readers may see is used again (`kern`'s `zone::smr`), as a model.
//!
//! A reader counts itself into the era's parity in one slot, follows a pointer, and counts itself out in another slot, as a thread does that
//! was moved meanwhile. The writer takes the item out of the pointer, tags it with the era, and writes to it once the era is two
//! further. A write while a reader looks is what loom finds.
//!
//! Preemption bound 3. Each step left out must be noticed.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use loom::thread;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// One era is thought enough.
    OneEra,
    /// Enterings are summed before leavings.
    EnteredFirst,
    /// The reader has no fence after it counts itself in.
    NoReaderFence,
    /// A step does not wait for the other parity's readers.
    NoWait,
}

const SLOTS: usize = 2;

struct Smr {
    era: AtomicU64,
    entered: [[AtomicU64; 2]; SLOTS],
    left: [[AtomicU64; 2]; SLOTS],
    /// 1 while the item can be found.
    pointer: AtomicUsize,
    item: UnsafeCell<u32>,
    how: Break,
}

// SAFETY: that `item` is never written while it is read is what the model checks.
unsafe impl Sync for Smr {}
// SAFETY: as above.
unsafe impl Send for Smr {}

impl Smr {
    fn new(how: Break) -> Self {
        let zero = || [AtomicU64::new(0), AtomicU64::new(0)];
        Self {
            era: AtomicU64::new(2),
            entered: [zero(), zero()],
            left: [zero(), zero()],
            pointer: AtomicUsize::new(1),
            item: UnsafeCell::new(0),
            how,
        }
    }

    /// In the code a plain store under the slot's section; here slots are shared by threads that have no section.
    fn bump(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Release);
    }

    fn read(&self, slot: usize) {
        let parity = (self.era.load(Ordering::Relaxed) & 1) as usize;
        Self::bump(&self.entered[slot][parity]);
        if self.how != Break::NoReaderFence {
            fence(Ordering::SeqCst);
        }
        if self.pointer.load(Ordering::Acquire) == 1 {
            // SAFETY: found inside the section; loom says if somebody writes.
            self.item.with(|item| unsafe { assert_eq!(*item, 0, "the item is another's") });
        }
        Self::bump(&self.left[(slot + 1) % SLOTS][parity]);
    }

    fn advance(&self) -> bool {
        let era = self.era.load(Ordering::Relaxed);
        let parity = ((era + 1) & 1) as usize;
        fence(Ordering::SeqCst);
        let sum =
            |of: &[[AtomicU64; 2]; SLOTS]| -> u64 { of.iter().map(|slot| slot[parity].load(Ordering::Acquire)).sum() };
        let (entered, left) = if self.how == Break::EnteredFirst {
            let entered = sum(&self.entered);
            fence(Ordering::SeqCst);
            (entered, sum(&self.left))
        } else {
            let left = sum(&self.left);
            fence(Ordering::SeqCst);
            (sum(&self.entered), left)
        };
        if entered != left && self.how != Break::NoWait {
            return false;
        }
        self.era.store(era + 1, Ordering::Release);
        true
    }

    /// Takes the item out, and uses it again if that can be done at once.
    fn retire(&self) {
        self.pointer.store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        let tag = self.era.load(Ordering::Relaxed);
        let grace = if self.how == Break::OneEra { 1 } else { 2 };
        while self.era.load(Ordering::Acquire) < tag + grace {
            if !self.advance() {
                return;
            }
        }
        // SAFETY: no reader is left; loom says if there is.
        self.item.with_mut(|item| unsafe { *item = 1 });
    }
}

fn run(readers: usize, bound: usize, how: Break) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || {
        let smr = Arc::new(Smr::new(how));
        let threads: Vec<_> = (0..readers)
            .map(|slot| {
                let smr = Arc::clone(&smr);
                thread::spawn(move || smr.read(slot))
            })
            .collect();
        smr.retire();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

#[test]
fn an_item_is_not_used_again_under_a_reader() {
    run(1, 3, Break::Nothing);
}

#[test]
fn an_item_is_not_used_again_under_two_readers() {
    run(2, 2, Break::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_one_era_is_not_enough() {
    run(1, 3, Break::OneEra);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_enterings_summed_first() {
    run(2, 4, Break::EnteredFirst);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_reader_without_a_fence() {
    run(1, 3, Break::NoReaderFence);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_step_that_does_not_wait() {
    run(1, 3, Break::NoWait);
}
