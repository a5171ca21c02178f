//! Questions.
#![forbid(unsafe_code)]

use super::{Arena, ArenaCounts};
use crate::check::Damage;
use crate::raw::Size;
use crate::system::System;
use crate::tag::Segment;
use core::fmt;

impl<S: System> Arena<'_, S> {
    /// Exact sums, see [`RawArena::size`](crate::RawArena::size); what the caches keep counts as allocated.
    #[doc(alias = "vmem_size")]
    #[must_use]
    pub fn size(&self, what: Size) -> usize {
        self.inner.lock().raw.size(what)
    }

    /// What `size` is rounded up to; `None` if that is no number.
    #[doc(alias = "vmem_roundup_size")]
    #[must_use]
    pub const fn roundup_size(&self, size: usize) -> Option<usize> {
        match size.checked_add(self.quantum - 1) {
            Some(sum) => Some(sum & !(self.quantum - 1)),
            None => None,
        }
    }

    /// The segment that holds `addr`, see [`RawArena::whatis`](crate::RawArena::whatis).
    #[doc(alias = "vmem_whatis")]
    #[must_use]
    pub fn whatis(&self, addr: usize) -> Option<Segment> {
        self.inner.lock().raw.whatis(addr)
    }

    /// Calls `f` with every span and segment in address order, under the lock: `f` must not call an arena, nor anything
    /// that may.
    #[doc(alias = "vmem_walk")]
    pub fn walk(&self, f: impl FnMut(Segment)) {
        self.inner.lock().raw.walk(f);
    }

    /// Numbers of things, calls and events.
    #[must_use]
    pub fn counts(&self) -> ArenaCounts {
        let inner = self.inner.lock();
        ArenaCounts {
            raw: inner.raw.counts(),
            imports: inner.imports,
            releases: inner.releases,
            waits: inner.waits,
            fails: inner.fails,
        }
    }

    /// Checks every invariant of the structure.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), Damage> {
        self.inner.lock().raw.validate()
    }

    /// Writes down sums, events, and free segments by size: the first thing to look at. Under the lock: the writer must not call an arena, nor anything that may.
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "vmem_print")]
    pub fn print_summary(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let inner = self.inner.lock();
        inner.raw.print_summary(out)?;
        write!(out, "  imports {}, releases {}, limit ", inner.imports, inner.releases)?;
        match inner.limit {
            usize::MAX => write!(out, "none")?,
            limit => write!(out, "{limit:#x}")?,
        }
        writeln!(out, "; slept {}, failed {}", inner.waits, inner.fails)
    }

    /// Writes the arena down for a person: [`Arena::print_summary`], then every span with its segments. Under the
    /// lock, as there.
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "vmem_printall")]
    pub fn print(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.print_summary(out)?;
        self.inner.lock().raw.print_segments(out)
    }
}
