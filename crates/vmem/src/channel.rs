//! How a request sleeps, and how it is woken.
//!
//! The only thing here that takes care, so the only thing here: `tests/loom_sleep.rs` compiles this very file against
//! loom's atomics.

use crate::sync::{AtomicU32, Ordering};
use crate::system::System;

/// The place where requests wait for something to be freed.
///
/// One for all arenas, since what a request waits for may come back in its own arena or in any parent. Sleepers are
/// rare; while there are none, a free reads one shared word.
#[derive(Debug)]
pub struct Channel {
    /// Counts wake-ups. What a sleeper sleeps on.
    pub(crate) generation: AtomicU32,
    /// Requests between their decision to sleep and their next.
    pub(crate) waiters: AtomicU32,
}

impl Channel {
    /// Tells the sleepers that there may be space now. Arenas do; a [`Source`](crate::Source) that is no arena should
    /// when it has more.
    pub fn wake<S: System>(&self) {
        // The order that loses no wake-up: a sleeper counts itself before it looks for space the last time, and both
        // that look and the free happen under the arena's lock. So either the look sees what was freed, or we
        // see the sleeper here and change the word that it compares before it sleeps.
        if self.has_waiters() {
            self.generation.fetch_add(1, Ordering::SeqCst);
            S::wake_all(&self.generation);
        }
    }

    /// Whether anybody sleeps or is about to.
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) != 0
    }

    /// Makes the caller a sleeper; it looks for space once more before it calls [`Sleeper::wait`].
    pub(crate) fn enter(&self) -> Sleeper<'_> {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        Sleeper { channel: self, seen: self.generation.load(Ordering::SeqCst) }
    }
}

/// One that is counted in [`Channel::waiters`].
pub(crate) struct Sleeper<'a> {
    channel: &'a Channel,
    seen: u32,
}

impl Sleeper<'_> {
    /// The value of the word that it compares before it sleeps.
    pub(crate) fn seen(&self) -> u32 {
        self.seen
    }

    pub(crate) fn wait<S: System>(&self) {
        S::wait(&self.channel.generation, self.seen());
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.channel.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}
