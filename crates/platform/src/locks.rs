//! Locks for ports that have none of their own.

#[cfg(feature = "critical-section")]
use core::cell::UnsafeCell;
#[cfg(feature = "critical-section")]
use core::sync::atomic::{AtomicBool, Ordering};

use crate::RawLock;

/// Any raw mutex of the `lock_api` crate.
///
/// Choose one that is safe against everything that calls the allocator: in a kernel whose interrupts do, one that masks them.
#[cfg(feature = "lock_api")]
#[repr(transparent)]
pub struct LockApi<M>(M);

// SAFETY: the mutex's own contract is mutual exclusion; that it holds in interrupts is the choice of whoever names it.
#[cfg(feature = "lock_api")]
unsafe impl<M: lock_api::RawMutex + Send + Sync + 'static> RawLock for LockApi<M> {
    const INIT: Self = Self(M::INIT);

    #[inline]
    fn lock(&self) {
        self.0.lock();
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.try_lock()
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: 1. the caller holds it.
        unsafe { self.0.unlock() };
    }
}

/// How deep we are in critical sections, and what restores the state before the outermost. Touched only inside.
#[cfg(feature = "critical-section")]
struct Nesting(UnsafeCell<(usize, Option<critical_section::RestoreState>)>);

// SAFETY: whoever touches it is in the machine's one critical section.
#[cfg(feature = "critical-section")]
unsafe impl Sync for Nesting {}

#[cfg(feature = "critical-section")]
static NESTING: Nesting = Nesting(UnsafeCell::new((0, None)));

/// Enters the machine's critical section (the `critical-section` crate's), once more if inside already. Sections and locks
/// share the count, so they may be left in any order.
#[cfg(feature = "critical-section")]
#[inline]
pub fn enter_critical() {
    // SAFETY: released by the `leave_critical` that brings the count to 0. An inner acquisition changes nothing, and need not be released.
    let before = unsafe { critical_section::acquire() };
    // SAFETY: inside.
    let (depth, outermost) = unsafe { &mut *NESTING.0.get() };
    if *depth == 0 {
        *outermost = Some(before);
    }
    *depth += 1;
}

/// Leaves it, if this was the outermost.
///
/// # Safety
/// 1. The caller has entered it.
#[cfg(feature = "critical-section")]
#[inline]
pub unsafe fn leave_critical() {
    // SAFETY: 1., inside.
    let (depth, outermost) = unsafe { &mut *NESTING.0.get() };
    *depth -= 1;
    if *depth == 0
        && let Some(before) = outermost.take()
    {
        // SAFETY: from the outermost acquisition.
        unsafe { critical_section::release(before) };
    }
}

/// The lock of a machine with one CPU: to hold it is to be in the critical section.
#[cfg(feature = "critical-section")]
pub struct CriticalSectionLock(AtomicBool);

// SAFETY: nobody else runs while it is held.
#[cfg(feature = "critical-section")]
unsafe impl RawLock for CriticalSectionLock {
    const INIT: Self = Self(AtomicBool::new(false));

    #[inline]
    fn lock(&self) {
        enter_critical();
        // Nobody else is inside, so whoever holds it is the caller itself.
        debug_assert!(!self.0.load(Ordering::Relaxed), "a lock is taken twice");
        self.0.store(true, Ordering::Relaxed);
    }

    #[inline]
    fn try_lock(&self) -> bool {
        enter_critical();
        if self.0.load(Ordering::Relaxed) {
            // SAFETY: 1. just entered.
            unsafe { leave_critical() };
            return false;
        }
        self.0.store(true, Ordering::Relaxed);
        true
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Relaxed);
        // SAFETY: 1. `lock` entered.
        unsafe { leave_critical() };
    }
}
