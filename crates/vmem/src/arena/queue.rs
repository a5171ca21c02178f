//! In what order those who sleep are served: first come, first served, among requests of one size class.
//!
//! A class is a power of two, as on the free lists: a request for little never waits behind one for much, which may be waiting for
//! something that never comes. Who is not the first of its class does not look for space at all; the first, once served, lets the next one
//! look.
//!
//! No turn is lost by the argument of [`Channel`](crate::Channel): a sleeper is counted there before it reads whose turn it is, and the turn
//! passes on before sleepers are woken.

use core::sync::atomic::{AtomicU32, Ordering};

/// Tickets of one class.
struct Line {
    next: AtomicU32,
    serving: AtomicU32,
}

pub(super) struct Queue {
    lines: [Line; usize::BITS as usize],
}

/// A place in a line. Dropped, by the first, it lets the next one have its turn; nobody else may drop it.
pub(super) struct Place<'a> {
    line: &'a Line,
    ticket: u32,
}

impl Queue {
    pub(super) const fn new() -> Self {
        Self { lines: [const { Line { next: AtomicU32::new(0), serving: AtomicU32::new(0) } }; usize::BITS as usize] }
    }

    fn line(&self, size: usize) -> &Line {
        &self.lines[size.max(1).ilog2() as usize]
    }

    /// Does anybody stand in line for this size?
    pub(super) fn is_waited_for(&self, size: usize) -> bool {
        let line = self.line(size);
        line.next.load(Ordering::Relaxed) != line.serving.load(Ordering::Relaxed)
    }

    /// Whoever stands in line is not there any more.
    pub(super) fn forget(&self) {
        for line in &self.lines {
            line.serving.store(line.next.load(Ordering::SeqCst), Ordering::SeqCst);
        }
    }

    /// Joins the end of the line.
    pub(super) fn join(&self, size: usize) -> Place<'_> {
        let line = self.line(size);
        Place { line, ticket: line.next.fetch_add(1, Ordering::SeqCst) }
    }
}

impl Place<'_> {
    pub(super) fn is_first(&self) -> bool {
        self.line.serving.load(Ordering::SeqCst) == self.ticket
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.line.serving.fetch_add(1, Ordering::SeqCst);
    }
}
