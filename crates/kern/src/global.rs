//! An allocator for all of a `no_std` program, from its first instruction: an early heap inside the static, then the
//! [`System`], without a switch that anybody sees.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

use platform::Platform;

use crate::class::MIN_ALIGN;
use crate::stats::TypeId;
use crate::system::System;

/// Memory that is handed out once, front to back.
#[repr(C, align(16))]
struct Early<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

/// A [`System`] as the global allocator of a kernel, with `EARLY_BYTES` to serve what is allocated before
/// [`System::boot`]. Early blocks are valid for good; what of them is freed is not used again, since they are few.
///
/// ```ignore
/// #[global_allocator]
/// static HEAP: Heap<Kernel, 16384> = Heap::new();
/// // … once there are pages:
/// unsafe { HEAP.system().boot(&boot) };
/// ```
///
/// Never sleeps. Failure is null, which `alloc::alloc::handle_alloc_error` makes a panic of; the `try_` functions of the
/// collections make it an error.
pub struct Heap<P: Platform, const EARLY_BYTES: usize> {
    system: System<P>,
    early: Early<EARLY_BYTES>,
    early_used: AtomicUsize,
}

// SAFETY: parts of the early memory are handed out to one caller each, by an atomic addition.
unsafe impl<P: Platform, const EARLY_BYTES: usize> Sync for Heap<P, EARLY_BYTES> {}

impl<P: Platform, const EARLY_BYTES: usize> Default for Heap<P, EARLY_BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform, const EARLY_BYTES: usize> Heap<P, EARLY_BYTES> {
    /// A heap that serves from its early memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { system: System::new(), early: Early(UnsafeCell::new([0; EARLY_BYTES])), early_used: AtomicUsize::new(0) }
    }

    /// The allocator behind, to be booted, and for all that a global allocator has no words for.
    pub const fn system(&self) -> &System<P> {
        &self.system
    }

    /// Bytes of early memory handed out so far.
    pub fn early_bytes(&self) -> usize {
        self.early_used.load(Ordering::Relaxed)
    }

    fn is_early(&self, block: *mut u8) -> bool {
        (block as usize).wrapping_sub(self.early.0.get() as usize) < EARLY_BYTES
    }

    #[cold]
    fn early_alloc(&self, layout: Layout) -> *mut u8 {
        let base = self.early.0.get() as usize;
        let place = |used: usize| {
            let start = (base + used).checked_next_multiple_of(layout.align())? - base;
            let end = start.checked_add(layout.size())?;
            (end <= EARLY_BYTES).then_some((start, end))
        };
        let end_of = |used| place(used).map(|(_, end)| end);
        match self.early_used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end_of) {
            Ok(used) => place(used).map_or(core::ptr::null_mut(), |(start, _)| (base + start) as *mut u8),
            Err(_) => core::ptr::null_mut(),
        }
    }
}

// SAFETY: blocks are aligned and disjoint, and stay until given back; nothing here unwinds.
unsafe impl<P: Platform, const EARLY_BYTES: usize> GlobalAlloc for Heap<P, EARLY_BYTES> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !self.system.is_booted() {
            return self.early_alloc(layout);
        }
        if layout.align() <= MIN_ALIGN {
            self.system.alloc(layout.size(), TypeId::MALLOC)
        } else {
            self.system.alloc_aligned(layout.size(), layout.align(), TypeId::MALLOC)
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        if !self.is_early(block) {
            // SAFETY: 1. the caller's contract.
            unsafe { self.system.free(block, 0) };
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if self.system.is_booted() && layout.align() <= MIN_ALIGN {
            return self.system.alloc_zeroed(layout.size(), TypeId::MALLOC);
        }
        // SAFETY: the caller's contract; early memory is zero, and written once more does not matter.
        unsafe {
            let block = self.alloc(layout);
            if !block.is_null() {
                core::ptr::write_bytes(block, 0, layout.size());
            }
            block
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if layout.align() <= MIN_ALIGN && !self.is_early(block) {
            // SAFETY: the caller's contract.
            return unsafe { self.system.realloc(block, bytes, TypeId::MALLOC, 0) };
        }
        // SAFETY: the caller's contract: `bytes` rounded up to the alignment does not overflow.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(bytes, layout.align()));
            if !new.is_null() {
                core::ptr::copy_nonoverlapping(block, new, layout.size().min(bytes));
                self.dealloc(block, layout);
            }
            new
        }
    }
}
