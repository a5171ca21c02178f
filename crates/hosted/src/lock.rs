//! A futex lock (Drepper, "Futexes Are Tricky", the third mutex): 0 free, 1 held, 2 held and waited for.

use core::sync::atomic::{AtomicU32, Ordering};

use platform::RawLock;

use crate::sys;

/// Spins a little, then sleeps in the kernel.
pub struct FutexLock(AtomicU32);

/// Rounds of spinning before sleeping: about the time that the longest common hold takes.
const SPINS: u32 = 60;

impl FutexLock {
    #[cold]
    fn lock_slow(&self) {
        for _ in 0..SPINS {
            core::hint::spin_loop();
            if self.0.load(Ordering::Relaxed) == 0 && self.try_lock() {
                return;
            }
        }
        while self.0.swap(2, Ordering::Acquire) != 0 {
            sys::futex_wait(&self.0, 2);
        }
    }
}

// SAFETY: one thread at a time passes the exchange from 0.
unsafe impl RawLock for FutexLock {
    const INIT: Self = Self(AtomicU32::new(0));

    #[inline]
    fn lock(&self) {
        if !self.try_lock() {
            self.lock_slow();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        if self.0.swap(0, Ordering::Release) == 2 {
            sys::futex_wake(&self.0, 1);
        }
    }
}
