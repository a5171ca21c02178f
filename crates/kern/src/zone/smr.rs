//! Safe memory reclamation: read sections that take no lock, and when what was freed during them may be used again.
//!
//! # Protocol
//!
//! There is an *era*, a number that only grows. A reader counts itself into the era's parity, in the counters of the slot
//! it is in, and out of the same parity later, perhaps in another slot: only sums over all slots mean something. A reader may be
//! preempted, migrate and sleep inside its section, unlike FreeBSD's smr(9), whose sections pin the CPU: a process cannot.
//!
//! The era goes from E to E+1 only when nobody is counted in the parity of E+1, which is that of E-1. What was unlinked before its
//! era tag E was read is therefore unreachable from era E+2 on: the step to E+1 waited for the readers of E-1, the step to E+2
//! for those of E. A reader that was slow and counts itself into an old parity came too late to have seen it: it counts
//! itself before it reads, and both sides have a full fence between.
//!
//! A parity is empty when, all leavings being summed *before* all enterings, the sums are equal (the argument of SRCU).
//! `crates/abi/tests/loom_smr.rs` is a model of this.

use core::sync::atomic::{AtomicPtr, AtomicU32, fence};

use abi::{AtomicU64, Ordering};
use platform::{Lock, Platform};

/// Counters of one slot, written in its section only.
#[repr(C, align(64))]
pub(crate) struct SmrLine {
    entered: [AtomicU64; 2],
    left: [AtomicU64; 2],
}

/// The state of all SMR zones of a system.
pub(crate) struct Smr<P: Platform> {
    era: AtomicU64,
    /// One per slot; null until first needed.
    lines: AtomicPtr<SmrLine>,
    slots: AtomicU32,
    /// Who takes the step to the next era.
    step: Lock<P::Lock, ()>,
    /// Who waits for readers, and the word they sleep on.
    waiters: AtomicU32,
    word: AtomicU32,
}

/// Eras a tag must be behind for its items to be free of readers.
pub(crate) const GRACE_ERAS: u64 = 2;

/// A reader inside a section: in which parity it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parity(usize);

fn bump(counter: &AtomicU64) {
    // Only the slot's holder writes it. Released: who sums it sees what the section's holder did before.
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
}

impl<P: Platform> Smr<P> {
    pub(crate) const fn new() -> Self {
        Self {
            era: AtomicU64::new(GRACE_ERAS),
            lines: AtomicPtr::new(core::ptr::null_mut()),
            slots: AtomicU32::new(0),
            step: Lock::new(()),
            waiters: AtomicU32::new(0),
            word: AtomicU32::new(0),
        }
    }

    /// Whether there are lines.
    pub(crate) fn is_ready(&self) -> bool {
        !self.lines.load(Ordering::Acquire).is_null()
    }

    /// Installs zeroed lines, one per slot. False when there were some.
    pub(crate) fn install(&self, lines: *mut SmrLine, slots: usize) -> bool {
        self.slots.store(slots as u32, Ordering::Relaxed);
        let null = core::ptr::null_mut();
        self.lines.compare_exchange(null, lines, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn line(&self, slot: usize) -> &SmrLine {
        debug_assert!((slot as u32) < self.slots.load(Ordering::Relaxed));
        // SAFETY: installed with a line per slot, and never given back.
        unsafe { &*self.lines.load(Ordering::Acquire).add(slot) }
    }

    /// Counts a reader in.
    ///
    /// Inside the section of `slot`.
    pub(crate) fn enter(&self, slot: usize) -> Parity {
        let parity = (self.era.load(Ordering::Relaxed) & 1) as usize;
        bump(&self.line(slot).entered[parity]);
        // The count is seen by whoever unlinks something that this reader does not see unlinked.
        fence(Ordering::SeqCst);
        Parity(parity)
    }

    /// Counts a reader out.
    ///
    /// Inside the section of `slot`.
    pub(crate) fn leave(&self, slot: usize, parity: Parity) {
        bump(&self.line(slot).left[parity.0]);
    }

    /// After [`leave`](Self::leave), outside of the section: wakes who waits for readers.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::Relaxed) > 0 {
            self.word.fetch_add(1, Ordering::Release);
            P::wake_all(&self.word);
        }
    }

    /// The tag for what is unreachable by now.
    pub(crate) fn tag(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.era.load(Ordering::Relaxed)
    }

    /// Whether what has this tag may be used again. Takes the steps that can be taken at once. Never sleeps; takes a lock.
    pub(crate) fn poll(&self, tag: u64) -> bool {
        while self.era.load(Ordering::Acquire) < tag + GRACE_ERAS {
            if !self.advance() {
                return false;
            }
        }
        true
    }

    /// One step. False when a reader stands in the way.
    fn advance(&self) -> bool {
        let _step = self.step.lock();
        let era = self.era.load(Ordering::Relaxed);
        let parity = ((era + 1) & 1) as usize;
        fence(Ordering::SeqCst);
        let slots = self.slots.load(Ordering::Relaxed) as usize;
        let sum = |of: fn(&SmrLine) -> &[AtomicU64; 2]| {
            (0..slots).fold(0u64, |sum, slot| sum.wrapping_add(of(self.line(slot))[parity].load(Ordering::Acquire)))
        };
        let left = sum(|line| &line.left);
        // All leavings first: an entering that is missed here belongs to a reader whose leaving was not counted either.
        fence(Ordering::SeqCst);
        let entered = sum(|line| &line.entered);
        if entered != left {
            return false;
        }
        self.era.store(era + 1, Ordering::Release);
        true
    }

    /// Waits until every reader that is inside now has left. *May sleep*, and not be called by a reader.
    pub(crate) fn synchronize(&self) {
        let tag = self.tag();
        while !self.poll(tag) {
            self.waiters.fetch_add(1, Ordering::SeqCst);
            let seen = self.word.load(Ordering::Acquire);
            fence(Ordering::SeqCst);
            // A reader that left before it could see the waiter is seen to have left now.
            if !self.poll(tag) {
                P::wait(&self.word, seen);
            }
            self.waiters.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn raw_lock(&self) -> &P::Lock {
        self.step.raw()
    }
}
