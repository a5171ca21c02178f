//! Questions, and the end.

use super::{Counts, RawArena, Size};
use crate::lists::FreeLists;
use crate::tag::{Segment, SegmentKind};
use crate::tree::Spans;

impl RawArena {
    /// Exact sums. [`Size::MaxFree`] walks the list of the largest free segments, the others take constant time.
    #[doc(alias = "vmem_size")]
    #[must_use]
    pub fn size(&self, what: Size) -> usize {
        match what {
            Size::Alloc => self.alloc_size,
            Size::Free => self.total_size - self.alloc_size,
            Size::MaxFree => self.max_free(),
            Size::Total => self.total_size,
        }
    }

    /// The size of the largest free segment, 0 without one.
    #[must_use]
    pub fn max_free(&self) -> usize {
        self.lists.largest()
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

    /// Numbers of things and of calls.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            spans: self.spans.count(),
            allocated: self.hash.count(),
            free: self.lists.count(),
            tags_free: self.spare_count,
            tags: self.tag_count,
            buckets: self.hash.buckets().len(),
            allocs: self.allocs,
            frees: self.frees,
            fails: self.fails,
        }
    }

    /// The size of the allocated segment that begins at `addr`. As fast as a free.
    #[must_use]
    pub fn allocated_size(&self, addr: usize) -> Option<usize> {
        Some(self.hash.find(addr)?.size.get())
    }

    /// The segment that holds `addr`; `None` if no span does. Walks the segments of the span, unless one that is
    /// allocated begins there.
    #[doc(alias = "vmem_whatis")]
    #[must_use]
    pub fn whatis(&self, addr: usize) -> Option<Segment> {
        if let Some(tag) = self.hash.find(addr) {
            return Some(tag.segment());
        }
        let span = self.spans.at_or_below(addr).filter(|span| span.contains(addr))?;
        Some(self.after(span).find(|tag| tag.contains(addr))?.segment())
    }

    /// All spans and segments in address order, each span before its segments.
    pub fn segments(&self) -> impl Iterator<Item = Segment> {
        self.from(self.first).map(|tag| tag.segment())
    }

    /// Calls `f` with every span and segment in address order, each span before its segments.
    #[doc(alias = "vmem_walk")]
    pub fn walk(&self, f: impl FnMut(Segment)) {
        self.segments().for_each(f);
    }

    /// Calls `f` with every free segment: the smallest first.
    pub fn walk_free(&self, mut f: impl FnMut(Segment)) {
        for class in self.candidate_lists(self.quantum) {
            self.lists.list(class).for_each(|tag| f(tag.segment()));
        }
    }

    /// Forgets all spans and segments, allocated or not, and gets their tags free; the first of the allocated ones
    /// is returned, so that a leak can be reported. For the end of an arena, with [`RawArena::take_tag`] and
    /// [`RawArena::retire_hash`] after it.
    #[doc(alias = "vmem_destroy")]
    #[doc(alias = "vmem_fini")]
    pub fn clear(&mut self) -> Option<Segment> {
        let leak = self.segments().find(|segment| segment.kind == SegmentKind::Allocated);
        self.hash.clear();
        self.lists = FreeLists::new(self.quantum);
        self.spans = Spans::new();
        let mut next = self.first.take();
        self.last = None;
        while let Some(tag) = next {
            next = tag.next.get();
            self.put_spare(tag);
        }
        self.cursor = None;
        self.alloc_size = 0;
        self.total_size = 0;
        leak
    }
}
