//! A zone's limit and those who sleep on it.
//!
//! What is counted are *items outside of the keg*: in use, in caches and in depots. So the fast path knows nothing of limits; who takes a
//! bucket's worth from the keg pays for it here. Before anyone fails or sleeps, what the caches and depots hold is
//! fetched back, so that in the end the limit is on items in use.
//!
//! # Sleeping
//!
//! Sleepers stand in a queue, first come, first served; a node on each one's stack, touched under the lock only. Items that
//! come back while somebody sleeps are granted under the lock to the first in the queue: the count stays, and passes to him.
//! After that the zone's word changes and all wake; who was not granted sleeps again.
//!
//! Nothing is lost because of the zone's `SLEEPERS` bit. A sleeper (1) enters the queue and sets the bit, (2) empties every
//! CPU's cache and every depot, (3) sleeps. A free tests the bit *inside its section*: either that section comes before (2) claims
//! the slot, and the item is found there, or it comes after, and sees the bit, and the item goes past the caches.
//! `crates/abi/tests/loom_zone_limit.rs` is a model of this.

use core::ptr;

/// A place in the queue.
pub(crate) struct Sleeper {
    next: *mut Sleeper,
    granted: bool,
}

impl Sleeper {
    pub(crate) const fn new() -> Self {
        Self { next: ptr::null_mut(), granted: false }
    }
}

/// Count, limit and queue; the zone keeps it behind a lock.
pub(crate) struct Limit {
    /// Items outside of the keg, those granted included.
    items: usize,
    /// 0 for none.
    max: usize,
    head: *mut Sleeper,
    tail: *mut Sleeper,
    sleepers: usize,
}

// SAFETY: the nodes are reached under the owner's lock only.
unsafe impl Send for Limit {}

impl Limit {
    pub(crate) const fn new() -> Self {
        Self { items: 0, max: 0, head: ptr::null_mut(), tail: ptr::null_mut(), sleepers: 0 }
    }

    pub(crate) fn items(&self) -> usize {
        self.items
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn sleepers(&self) -> usize {
        self.sleepers
    }

    /// Is more outside than a limit allows that was set since?
    pub(crate) fn is_over(&self) -> bool {
        self.max != 0 && self.items > self.max
    }

    fn room(&self) -> usize {
        if self.max == 0 { usize::MAX } else { self.max.saturating_sub(self.items) }
    }

    /// Pays for up to `want` items; for none while others sleep. A bucket is filled with half of what is left at
    /// most, so that a CPU's cache does not take the rest from all others.
    pub(crate) fn take(&mut self, want: usize) -> usize {
        if self.sleepers > 0 {
            return 0;
        }
        let room = self.room();
        let got = want.min(room.div_ceil(2)).min(room);
        self.items += got;
        got
    }

    /// An item that came by another way counts. Serves nobody.
    #[must_use]
    pub(crate) fn adopt(&mut self) -> bool {
        self.items += 1;
        false
    }

    /// Items are back in the keg. True when sleepers were granted: the caller wakes them.
    #[must_use]
    pub(crate) fn give(&mut self, count: usize) -> bool {
        debug_assert!(count <= self.items, "more items come back than were out");
        self.items -= count;
        self.grant()
    }

    /// Nobody sleeps: in the child of a fork, where the sleepers' stacks are nobody's.
    pub(crate) fn forget_sleepers(&mut self) {
        (self.head, self.tail, self.sleepers) = (ptr::null_mut(), ptr::null_mut(), 0);
    }

    /// See [`give`](Self::give); 0 is no limit.
    #[must_use]
    pub(crate) fn set_max(&mut self, max: usize) -> bool {
        self.max = max;
        self.grant()
    }

    fn grant(&mut self) -> bool {
        let mut any = false;
        while !self.head.is_null() && self.room() > 0 {
            // SAFETY: a node in the queue is on the stack of a sleeper, who stays until he is granted.
            unsafe {
                let first = self.head;
                self.head = (*first).next;
                (*first).granted = true;
            }
            if self.head.is_null() {
                self.tail = ptr::null_mut();
            }
            self.sleepers -= 1;
            self.items += 1;
            any = true;
        }
        any
    }

    /// Joins the end of the queue.
    ///
    /// # Safety
    /// 1. `node` stays where it is, untouched, until [`is_granted`](Self::is_granted) says true.
    pub(crate) unsafe fn enqueue(&mut self, node: *mut Sleeper) {
        if self.tail.is_null() {
            self.head = node;
        } else {
            // SAFETY: as in `grant`.
            unsafe { (*self.tail).next = node };
        }
        self.tail = node;
        self.sleepers += 1;
    }

    /// Whether a sleeper has his item.
    ///
    /// # Safety
    /// 1. `node` was given to [`enqueue`](Self::enqueue).
    pub(crate) unsafe fn is_granted(&self, node: *const Sleeper) -> bool {
        // SAFETY: 1.; whoever writes it holds the lock that guards `self`.
        unsafe { (*node).granted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_takes_half_of_what_is_left() {
        let mut limit = Limit::new();
        assert_eq!(limit.take(7), 7);
        assert!(!limit.set_max(10));
        assert_eq!((limit.take(7), limit.take(7), limit.take(7)), (2, 1, 0));
        assert!(!limit.give(4));
        assert_eq!(limit.items(), 6);
        assert!(!limit.set_max(0));
        assert_eq!(limit.take(100), 100);
    }

    #[test]
    fn sleepers_are_served_in_order_and_before_others() {
        let mut limit = Limit::new();
        let _ = limit.set_max(1);
        assert_eq!(limit.take(1), 1);
        let mut nodes = [Sleeper::new(), Sleeper::new()];
        let [first, second] = &mut nodes;
        let (first, second) = (ptr::from_mut(first), ptr::from_mut(second));
        // SAFETY: 1. the nodes stay in place to the end of the test.
        unsafe {
            limit.enqueue(first);
            limit.enqueue(second);
            assert!(limit.give(1));
            assert!(limit.is_granted(first) && !limit.is_granted(second));
            assert_eq!((limit.take(1), limit.items(), limit.sleepers()), (0, 1, 1));
            // A limit that is lifted lets everybody through.
            assert!(limit.set_max(0));
            assert!(limit.is_granted(second));
        }
        assert_eq!((limit.items(), limit.sleepers()), (2, 0));
    }
}
