//! Which free segment serves a request: the fits.
#![forbid(unsafe_code)]

use super::RawArena;
use crate::fit::Shape;
use crate::tag::TagRef;

impl RawArena {
    /// The free segments that are big enough for a size, the smallest first.
    fn candidates(&self, size: usize) -> impl Iterator<Item = TagRef> {
        self.candidate_lists(size).flat_map(move |class| self.lists.list_from(class, size))
    }

    /// The classes that have free segments of a size, or of a greater one.
    pub(super) fn candidate_lists(&self, size: usize) -> impl Iterator<Item = usize> {
        let mut class = self.lists.class_of(size);
        core::iter::from_fn(move || {
            let found = self.lists.first_from(class)?;
            class = found + 1;
            Some(found)
        })
    }

    pub(super) fn find_instant(&self, shape: &Shape) -> Option<(TagRef, usize)> {
        let sure = shape.sure_size().and_then(|size| self.lists.instant(size));
        if let Some(tag) = sure {
            let addr = shape.place(tag.base.get(), tag.last());
            debug_assert!(addr.is_some(), "sure_size was not");
            if let Some(addr) = addr {
                return Some((tag, addr));
            }
        }
        self.find_best(shape)
    }

    pub(super) fn find_best(&self, shape: &Shape) -> Option<(TagRef, usize)> {
        // In ascending order of size: the first that serves is the smallest.
        self.candidates(shape.size).find_map(|tag| Some((tag, shape.place(tag.base.get(), tag.last())?)))
    }

    pub(super) fn find_first(&self, shape: &Shape) -> Option<(TagRef, usize)> {
        self.candidates(shape.size)
            .filter_map(|tag| Some((tag, shape.place(tag.base.get(), tag.last())?)))
            .min_by_key(|&(_, addr)| addr)
    }

    pub(super) fn find_next(&self, shape: &Shape) -> Option<(TagRef, usize)> {
        // Not to walk a full arena in vain.
        self.lists.first_from(self.lists.class_of(shape.size))?;
        let whole = |tag: TagRef| {
            let addr = if tag.is_free() { shape.place(tag.base.get(), tag.last()) } else { None };
            addr.map(|addr| (tag, addr))
        };
        let Some((start, cursor)) = self.cursor else {
            return self.from(self.first).find_map(whole);
        };
        if start.is_free()
            && cursor < start.last()
            && let Some(addr) = shape.place(cursor + 1, start.last())
        {
            return Some((start, addr));
        }
        // Round the end up to the starting segment, which comes once more for what lies before the cursor.
        self.after(start)
            .chain(self.from(self.first).take_while(|&tag| tag != start))
            .find_map(whole)
            .or_else(|| whole(start))
    }
}
