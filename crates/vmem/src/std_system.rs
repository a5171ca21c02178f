//! Locks and sleeping of std.

use crate::channel::Channel;
use crate::system::System;
use core::sync::atomic::{AtomicU32, Ordering};
use platform::RawLock;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The [`System`] of an ordinary program.
#[derive(Debug, Clone, Copy)]
pub struct Std;

/// A lock word, with a place to sleep when it is taken. (A guard of std's can't be kept without its borrow; and a condition
/// variable alone costs a system call per unlock.)
pub struct StdLock {
    word: AtomicU32,
    asleep: Mutex<()>,
    freed: Condvar,
}

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody may be asleep.
const WANTED: u32 = 2;

fn enter<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nobody panics with one of ours, and nothing is in them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StdLock {
    #[cold]
    fn lock_taken(&self) {
        let mut asleep = enter(&self.asleep);
        // Whoever gets the lock in this way leaves it marked: there may be others asleep.
        while self.word.swap(WANTED, Ordering::Acquire) != FREE {
            asleep = self.freed.wait(asleep).unwrap_or_else(PoisonError::into_inner);
        }
    }

    #[cold]
    fn wake_one(&self) {
        // Who marked the word is asleep once the mutex is ours.
        drop(enter(&self.asleep));
        self.freed.notify_one();
    }
}

// SAFETY: the word leaves FREE by one thread's exchange, and returns there by the holder; acquire and release order what
// is done in between.
unsafe impl RawLock for StdLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "an initial value, copied into each lock")]
    const INIT: Self = StdLock { word: AtomicU32::new(FREE), asleep: Mutex::new(()), freed: Condvar::new() };

    #[inline]
    fn lock(&self) {
        if !self.try_lock() {
            self.lock_taken();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.word.compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[inline]
    unsafe fn unlock(&self) {
        if self.word.swap(FREE, Ordering::Release) == WANTED {
            self.wake_one();
        }
    }
}

static CHANNEL: Channel = Channel::new();
static SLEEP: Mutex<()> = Mutex::new(());
static WOKEN: Condvar = Condvar::new();

impl System for Std {
    type Lock = StdLock;

    fn channel() -> &'static Channel {
        &CHANNEL
    }

    fn wait(word: &AtomicU32, seen: u32) {
        let mut sleep = enter(&SLEEP);
        while word.load(Ordering::SeqCst) == seen {
            sleep = WOKEN.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake_all(_word: &AtomicU32) {
        // The word was changed before; whoever compared the old value is asleep once the mutex is ours.
        drop(enter(&SLEEP));
        WOKEN.notify_all();
    }
}
