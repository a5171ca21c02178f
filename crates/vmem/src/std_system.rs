//! Locks and sleeping of std.

use crate::system::{Channel, System};
use core::sync::atomic::{AtomicU32, Ordering};
use platform::RawLock;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The [`System`] of an ordinary program.
#[derive(Debug, Clone, Copy)]
pub struct Std;

/// A lock of std that is given back without a guard.
pub struct StdLock {
    held: Mutex<bool>,
    freed: Condvar,
}

/// What a panic under the lock left behind is an arena between two operations: no code of others runs in one.
fn held<'a>(lock: &'a Mutex<bool>) -> MutexGuard<'a, bool> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: `held` goes from false to true by one thread at a time, under the mutex, and back by the holder.
unsafe impl RawLock for StdLock {
    #[allow(clippy::declare_interior_mutable_const, reason = "an initial value, copied into each lock")]
    const INIT: Self = StdLock { held: Mutex::new(false), freed: Condvar::new() };

    fn lock(&self) {
        let mut held = held(&self.held);
        while *held {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        *held = true;
    }

    fn try_lock(&self) -> bool {
        !core::mem::replace(&mut *held(&self.held), true)
    }

    unsafe fn unlock(&self) {
        *held(&self.held) = false;
        self.freed.notify_one();
    }
}

static CHANNEL: Channel = Channel::new();
static SLEEP: Mutex<bool> = Mutex::new(false);
static WOKEN: Condvar = Condvar::new();

impl System for Std {
    type Lock = StdLock;

    fn channel() -> &'static Channel {
        &CHANNEL
    }

    fn wait(word: &AtomicU32, seen: u32) {
        let mut sleep = held(&SLEEP);
        while word.load(Ordering::SeqCst) == seen {
            sleep = WOKEN.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake_all(_word: &AtomicU32) {
        // The word was changed before; whoever compared the old value is asleep once the mutex is ours.
        drop(held(&SLEEP));
        WOKEN.notify_all();
    }
}
