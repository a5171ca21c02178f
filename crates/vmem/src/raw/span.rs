//! Spans come and go.
#![forbid(unsafe_code)]

use super::RawArena;
use crate::error::Error;
use crate::tag::{Kind, Segment, TagRef};

impl RawArena {
    /// Adds a span. Spans do not overlap; neighbouring spans stay apart, so that no segment reaches from one to the
    /// other. `base` and `size` are multiples of the quantum. Takes 2 tags. Logarithmic in the number of spans.
    ///
    /// # Errors
    /// [`Error::Overlap`], [`Error::NoTags`], [`Error::Invalid`] (a range that wraps, is empty or not in quanta; a sum
    /// of spans above `usize::MAX`).
    #[doc(alias = "vmem_add")]
    pub fn add(&mut self, base: usize, size: usize) -> Result<(), Error> {
        self.add_kind(base, size, Kind::Span)
    }

    /// [`RawArena::add`] for a range that came from a parent and will go back: a mark for
    /// [`RawArena::free_span_at`].
    pub fn add_imported(&mut self, base: usize, size: usize) -> Result<(), Error> {
        self.add_kind(base, size, Kind::ImportedSpan)
    }

    fn add_kind(&mut self, base: usize, size: usize, kind: Kind) -> Result<(), Error> {
        let (below, above) = self.room_for(base, size)?;
        if self.spare_count < 2 {
            return Err(Error::NoTags);
        }
        let before = match above {
            Some(above) => above.prev.get(),
            None => self.last,
        };
        debug_assert!(below.is_some() == before.is_some());
        let span = self.new_tag(base, size, kind, before);
        let free = self.new_tag(base, size, Kind::Free, Some(span));
        self.spans.insert(span);
        self.lists.insert(free);
        self.total_size += size;
        Ok(())
    }

    /// Makes the span that ends right before `base` longer by `size`. The new range is free and merges with what is
    /// free at the span's end: for an arena whose range grows upward. Takes at most 1 tag.
    ///
    /// # Errors
    /// [`Error::NoSpan`] if no span ends there, or an imported one, which goes back as it came; otherwise as
    /// [`RawArena::add`].
    pub fn extend_span(&mut self, base: usize, size: usize) -> Result<(), Error> {
        let (below, above) = self.room_for(base, size)?;
        let joins = |span: &TagRef| span.kind.get() == Kind::Span && span.last().wrapping_add(1) == base;
        let Some(span) = below.filter(joins) else {
            return Err(Error::NoSpan { addr: base });
        };
        let end = match above {
            Some(above) => above.prev.get(),
            None => self.last,
        };
        match end {
            Some(end) if end.is_free() => self.lists.resize(end, end.base.get(), end.size.get() + size),
            _ => {
                if self.spare_count < 1 {
                    return Err(Error::NoTags);
                }
                let free = self.new_tag(base, size, Kind::Free, end);
                self.lists.insert(free);
            }
        }
        span.size.set(span.size.get() + size);
        self.total_size += size;
        Ok(())
    }

    /// [`RawArena::extend_span`] if a span ends right before `base`, else [`RawArena::add`].
    pub fn add_joined(&mut self, base: usize, size: usize) -> Result<(), Error> {
        match self.extend_span(base, size) {
            Err(Error::NoSpan { .. }) => self.add(base, size),
            done => done,
        }
    }

    /// Checks a range that is to be added, and finds the spans next to it.
    fn room_for(&self, base: usize, size: usize) -> Result<(Option<TagRef>, Option<TagRef>), Error> {
        if size == 0 {
            return Err(Error::Invalid("size is 0"));
        }
        if (base | size) & (self.quantum - 1) != 0 {
            return Err(Error::Invalid("a span is not in whole quanta"));
        }
        let Some(last) = base.checked_add(size - 1) else {
            return Err(Error::Invalid("a span reaches beyond the last address"));
        };
        let below = self.spans.at_or_below(base);
        if let Some(span) = below.filter(|span| span.last() >= base) {
            return Err(Error::Overlap(span.segment()));
        }
        let above = self.spans.above(base);
        if let Some(span) = above.filter(|span| span.base.get() <= last) {
            return Err(Error::Overlap(span.segment()));
        }
        if self.total_size.checked_add(size).is_none() {
            // Spans from 0 to the very last address: their size is no number.
            return Err(Error::Invalid("the sum of the spans is beyond usize::MAX"));
        }
        Ok((below, above))
    }

    /// Removes the span that begins at `base`, which must be free as a whole; returns its size.
    ///
    /// # Errors
    /// [`Error::NoSpan`], [`Error::Busy`] with its first allocated segment.
    pub fn remove_span(&mut self, base: usize) -> Result<usize, Error> {
        let Some(span) = self.spans.at_or_below(base).filter(|span| span.base.get() == base) else {
            return Err(Error::NoSpan { addr: base });
        };
        let Some(only) = self.whole(span) else {
            let busy = self.after(span).find(|tag| tag.kind.get() == Kind::Allocated);
            return Err(Error::Busy(busy.unwrap_or(span).segment()));
        };
        let size = span.size.get();
        if self.cursor.is_some_and(|(tag, _)| tag == only) {
            self.cursor = None;
        }
        self.lists.remove(only);
        self.spans.remove(span);
        self.drop_tag(only);
        self.drop_tag(span);
        self.total_size -= size;
        Ok(size)
    }

    /// The free segment that is all of the span.
    fn whole(&self, span: TagRef) -> Option<TagRef> {
        span.next.get().filter(|only| only.is_free() && only.size == span.size)
    }

    /// The span around `addr`, if it is free as a whole: what may be released after a free. Logarithmic in the
    /// number of spans.
    #[must_use]
    pub fn free_span_at(&self, addr: usize) -> Option<Segment> {
        let span = self.spans.at_or_below(addr).filter(|span| span.contains(addr))?;
        self.whole(span).map(|_| span.segment())
    }

    /// The span around `addr`.
    #[must_use]
    pub fn span_at(&self, addr: usize) -> Option<Segment> {
        Some(self.spans.at_or_below(addr).filter(|span| span.contains(addr))?.segment())
    }
}
