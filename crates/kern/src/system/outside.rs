//! Blocks that are not of the heap but counted with it, and freed by the same free: contiguous memory.

use core::sync::atomic::{AtomicPtr, Ordering};
use platform::Platform;

use super::System;
use crate::stats::{Stats, TypeId};

/// The owner of blocks outside the heap.
pub trait OutsideBlocks: Sync {
    /// Frees the block that starts at the address, and counts it. False, with nothing changed, if none of its own
    /// does. Never sleeps.
    ///
    /// # Safety
    /// 1. If there is such a block, nobody uses it any more.
    unsafe fn free(&self, addr: usize) -> bool;

    /// Bytes of the block that starts at the address; `None` if none of its own does.
    fn usable_bytes(&self, addr: usize) -> Option<usize>;
}

/// Where a system keeps it.
pub(super) struct Outside(AtomicPtr<&'static dyn OutsideBlocks>);

impl Outside {
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(core::ptr::null_mut()))
    }

    pub(super) fn get(&self) -> Option<&'static dyn OutsideBlocks> {
        // SAFETY: null, or what `attach_outside` stored: a reference for ever.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }.copied()
    }
}

impl<P: Platform> System<P> {
    /// Makes [`free`](Self::free) and [`usable_bytes`](Self::usable_bytes) know blocks outside the heap. The last one
    /// attached counts. (A reference to a reference: what is stored is one word.)
    pub fn attach_outside(&self, blocks: &'static &'static dyn OutsideBlocks) {
        self.outside.0.store(core::ptr::from_ref(blocks).cast_mut(), Ordering::Release);
    }

    /// What [`usable_bytes`](Self::usable_bytes) says of an address outside the heap.
    #[cold]
    pub(super) fn usable_outside(&self, addr: usize) -> usize {
        self.outside.get().and_then(|outside| outside.usable_bytes(addr)).unwrap_or(0)
    }

    /// Counts a block from elsewhere under a type, as a large one.
    pub(crate) fn count_outside_alloc(&self, id: TypeId, served: usize, requested: usize) {
        let mask = 1 << abi::run_bit(served as u64);
        // SAFETY: inside the section of `slot`.
        self.count(|slot, _| Stats::count_alloc(unsafe { (*slot).row }, id, served, requested, mask));
    }

    /// Takes it off again.
    pub(crate) fn count_outside_free(&self, id: TypeId, served: usize) {
        // SAFETY: inside the section of `slot`.
        self.count(|slot, stats| stats.count_free_slow(id, unsafe { (*slot).row }, served));
    }

    /// Counts a request that was not met.
    pub(crate) fn fail_outside(&self, id: TypeId) {
        self.fail(id);
    }
}
