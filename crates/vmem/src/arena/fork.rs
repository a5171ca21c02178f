//! Standing still for fork(2), which copies one thread: what others hold stays held in the child, and who sleeps in the parent does not exist there.

use super::Arena;
use crate::channel::Channel;
use crate::sync::Ordering;
use crate::system::System;
use platform::RawLock;

impl<S: System> Arena<'_, S> {
    /// Takes the arena's lock until [`thaw`](Self::thaw). Where several are taken, in whatever order, all arenas' come before those of what arenas
    /// stand on.
    pub fn freeze(&self) {
        self.inner.raw().lock();
    }

    /// Lets it go.
    ///
    /// # Safety
    /// 1. The caller, or the thread that it is a copy of, has called [`freeze`](Self::freeze).
    pub unsafe fn thaw(&self) {
        // SAFETY: 1.
        unsafe { self.inner.raw().unlock() };
    }

    /// For the child of a fork: nobody stands in line here. The [channel's](Channel::forget_sleepers) sleepers are forgotten apart.
    ///
    /// # Safety
    /// 1. Between [`freeze`](Self::freeze) and [`thaw`](Self::thaw), in a process with one thread.
    pub unsafe fn forget_sleepers(&self) {
        self.queue.forget();
    }
}

impl Channel {
    /// For the child of a fork: nobody sleeps here.
    ///
    /// # Safety
    /// 1. In a process with one thread, which is not about to sleep.
    pub unsafe fn forget_sleepers(&self) {
        self.waiters.store(0, Ordering::SeqCst);
    }
}
