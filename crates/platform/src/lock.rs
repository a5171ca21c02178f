//! Locks: the platform's raw one, and the cell that carries what it protects.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// A lock the platform provides.
///
/// # Safety
/// Mutual exclusion between all contexts that call the allocator (a kernel's masks interrupts).
pub unsafe trait RawLock: Send + Sync + 'static {
    /// Unlocked.
    #[allow(clippy::declare_interior_mutable_const, reason = "an initial value, copied into each lock")]
    const INIT: Self;
    /// Waits until it holds the lock.
    fn lock(&self);
    /// Takes the lock if nobody has it.
    fn try_lock(&self) -> bool;
    /// Gives the lock back.
    ///
    /// # Safety
    /// 1. Held by the caller.
    unsafe fn unlock(&self);
}

/// A value behind a [`RawLock`].
pub struct Lock<L: RawLock, T> {
    raw: L,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through the guard only, hence by one thread at a time.
unsafe impl<L: RawLock, T: Send> Sync for Lock<L, T> {}

impl<L: RawLock, T> Lock<L, T> {
    /// An unlocked lock.
    pub const fn new(value: T) -> Self {
        Self { raw: L::INIT, value: UnsafeCell::new(value) }
    }

    /// Waits for the lock.
    #[inline]
    pub fn lock(&self) -> LockGuard<'_, L, T> {
        self.raw.lock();
        LockGuard { lock: self }
    }

    /// Takes the lock if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<LockGuard<'_, L, T>> {
        // Made only when it is held: a guard unlocks when it is dropped.
        self.raw.try_lock().then(|| LockGuard { lock: self })
    }

    /// The value without the lock, for a debugger that has stopped everybody who could hold it.
    pub const fn as_ptr(&self) -> *mut T {
        self.value.get()
    }

    /// The value, for a caller that holds the [`raw`](Self::raw) lock by hand (fork).
    ///
    /// # Safety
    /// 1. The lock is held by the caller, for as long as the result is used.
    pub unsafe fn held(&self) -> &T {
        // SAFETY: 1.
        unsafe { &*self.value.get() }
    }

    /// The lock without the value, for a caller that takes all of them (fork).
    pub fn raw(&self) -> &L {
        &self.raw
    }
}

/// Holding one proves that the lock is held.
pub struct LockGuard<'a, L: RawLock, T> {
    lock: &'a Lock<L, T>,
}

impl<L: RawLock, T> Deref for LockGuard<'_, L, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard's existence says that we hold the lock.
        unsafe { &*self.lock.value.get() }
    }
}

impl<L: RawLock, T> DerefMut for LockGuard<'_, L, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<L: RawLock, T> Drop for LockGuard<'_, L, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: 1. the guard's existence says so.
        unsafe { self.lock.raw.unlock() }
    }
}
