//! fork(2): the allocator stands still while the process is copied, and the child gets statistics of its own.
//!
//! Handlers are registered with glibc at boot, so ours runs last before the fork and first after it. A child made without
//! handlers (a raw clone(2)) finds [`crate::section::HOT`] wiped at its first call and is adopted then: its statistics
//! start from a copy of what its parent's are at that moment.

use core::cell::UnsafeCell;

use crate::object::{self, Copy};
use crate::port::{MALLOC, SYSTEM};
use crate::{section, sites, sys};

/// Between the handlers, which one thread runs with the allocator frozen.
struct Pending(UnsafeCell<Option<Copy>>);

// SAFETY: touched by the forking thread only, under the freeze.
unsafe impl Sync for Pending {}

static PENDING: Pending = Pending(UnsafeCell::new(None));

unsafe extern "C" {
    /// glibc's pthread_atfork(3) as shared libraries call it.
    fn __register_atfork(
        prepare: extern "C" fn(),
        parent: extern "C" fn(),
        child: extern "C" fn(),
        library: *const u8,
    ) -> i32;
}

/// Registers the handlers.
pub(crate) fn register() {
    // SAFETY: the handlers live as long as the process: a preloaded library and a program are never unloaded.
    unsafe { __register_atfork(prepare, parent, child, core::ptr::null()) };
}

extern "C" fn prepare() {
    sites::freeze();
    MALLOC.freeze();
    SYSTEM.freeze();
    // SAFETY: see `Pending`.
    unsafe { *PENDING.0.get() = object::copy() };
}

extern "C" fn parent() {
    // SAFETY: see `Pending`.
    if let Some(copy) = unsafe { (*PENDING.0.get()).take() } {
        copy.drop_memory();
    }
    // SAFETY: 1. `prepare` froze it.
    unsafe {
        SYSTEM.thaw();
        MALLOC.thaw();
        sites::thaw();
    }
}

extern "C" fn child() {
    section::arm();
    // SAFETY: see `Pending`.
    match unsafe { (*PENDING.0.get()).take() } {
        Some(copy) => copy.restore(),
        None => sys::abort(),
    }
    // SAFETY: 1. the thread we are a copy of froze it.
    unsafe {
        SYSTEM.forget_sleepers();
        MALLOC.forget_sleepers();
        SYSTEM.thaw();
        MALLOC.thaw();
        sites::thaw();
    }
    section::lease();
}

/// Makes the child of a fork without handlers a program of its own. What other threads of the parent held stays held; a
/// program that forks so has one thread, or does not allocate in the child.
pub(crate) fn adopt() {
    section::arm();
    if let Some(copy) = object::copy() {
        copy.restore();
    }
    section::lease();
}
