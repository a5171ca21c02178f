//! Whether an arena is well.
#![forbid(unsafe_code)]

use crate::RawArena;
use crate::hash::Hash;
use crate::lists::LISTS;
use crate::raw::Parts;
use crate::tag::{Kind, TagRef};
use core::fmt;

/// What [`RawArena::validate`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// The rule that is broken.
    pub what: &'static str,
    /// Base of the segment or span where that was seen; 0 if it is not about one.
    pub addr: usize,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "arena damaged at {:#x}: {}", self.addr, self.what)
    }
}

impl core::error::Error for Damage {}

fn rule(holds: bool, what: &'static str, addr: usize) -> Result<(), Damage> {
    if holds { Ok(()) } else { Err(Damage { what, addr }) }
}

impl RawArena {
    /// Checks every invariant of the structure, and that all lists, sums and counts agree. Changes nothing; linear in the
    /// number of segments and buckets, and ends even if links form a ring.
    ///
    /// # Errors
    /// The first broken rule.
    #[doc(alias = "vmem_check")]
    pub fn validate(&self) -> Result<(), Damage> {
        let parts = self.parts();
        let seen = segment_list(&parts)?;
        free_lists(&parts, seen.free)?;
        hash(&parts, seen.allocated)?;
        span_tree(&parts, seen.spans)?;
        pool(&parts, seen.spans + seen.free + seen.allocated)
    }
}

struct Seen {
    spans: usize,
    free: usize,
    allocated: usize,
}

fn segment_list(parts: &Parts<'_>) -> Result<Seen, Damage> {
    let mut seen = Seen { spans: 0, free: 0, allocated: 0 };
    let (mut alloc_size, mut total_size) = (0usize, 0usize);
    let mut before: Option<TagRef> = None;
    let mut span: Option<TagRef> = None;
    let mut cursor_seen = parts.cursor.is_none();
    let mut next = parts.first;
    while let Some(tag) = next {
        let addr = tag.base.get();
        rule(seen.spans + seen.free + seen.allocated < parts.tag_count, "more segments than tags: a ring", addr)?;
        rule(tag.prev.get() == before, "prev is not the one before", addr)?;
        rule(tag.size.get() != 0, "an empty segment", addr)?;
        rule((addr | tag.size.get()) & (parts.quantum - 1) == 0, "not in whole quanta", addr)?;
        rule(addr.checked_add(tag.size.get() - 1).is_some(), "wraps", addr)?;
        if tag.is_span() {
            if let (Some(span), Some(before)) = (span, before) {
                rule(!before.is_span(), "a span without segments", span.base.get())?;
                rule(before.last() == span.last(), "the segments end before the span", span.base.get())?;
                rule(span.last() < addr, "spans overlap or are out of order", addr)?;
            }
            rule(before.is_none() || span.is_some(), "the list doesn't begin with a span", addr)?;
            span = next;
            seen.spans += 1;
            let sum = total_size.checked_add(tag.size.get());
            rule(sum.is_some(), "the spans' sum wraps", addr)?;
            total_size = sum.unwrap_or(0);
        } else {
            let (Some(span), Some(before)) = (span, before) else {
                return Err(Damage { what: "a segment before the first span", addr });
            };
            if before.is_span() {
                rule(addr == span.base.get(), "the first segment isn't at the span's base", addr)?;
            } else {
                rule(before.last().wrapping_add(1) == addr && addr != 0, "a gap or overlap before", addr)?;
                rule(!(before.is_free() && tag.is_free()), "two free neighbours", addr)?;
            }
            rule(tag.last() <= span.last(), "reaches beyond its span", addr)?;
            match tag.kind.get() {
                Kind::Free => seen.free += 1,
                Kind::Allocated => {
                    seen.allocated += 1;
                    alloc_size += tag.size.get();
                }
                _ => return Err(Damage { what: "a spare tag in the segment list", addr }),
            }
        }
        if let Some((at, cursor)) = parts.cursor
            && at == tag
        {
            rule(!tag.is_span() && tag.contains(cursor), "the cursor is not in its segment", addr)?;
            cursor_seen = true;
        }
        before = next;
        next = tag.next.get();
    }
    rule(before == parts.last, "last is not the last", 0)?;
    if let (Some(span), Some(before)) = (span, before) {
        rule(!before.is_span(), "a span without segments", span.base.get())?;
        rule(before.last() == span.last(), "the segments end before the span", span.base.get())?;
    }
    rule(cursor_seen, "the cursor's segment isn't in the list", 0)?;
    rule(alloc_size == parts.alloc_size, "the sum of allocated sizes is wrong", 0)?;
    rule(total_size == parts.total_size, "the sum of span sizes is wrong", 0)?;
    Ok(seen)
}

fn free_lists(parts: &Parts<'_>, free: usize) -> Result<(), Damage> {
    let mut count = 0;
    for class in 0..LISTS {
        let mut before: Option<TagRef> = None;
        for tag in parts.lists.list(class) {
            let addr = tag.base.get();
            count += 1;
            rule(count <= free, "more in free lists than in the segment list", addr)?;
            rule(tag.is_free(), "not free, but in a free list", addr)?;
            rule(parts.lists.class_of(tag.size.get()) == class, "in another class's list", addr)?;
            match parts.lists.tree(class) {
                Some(tree) if !tag.is_chained.get() => {
                    rule(
                        before.is_none_or(|before| before.size < tag.size),
                        "the tree of sizes is out of order",
                        addr,
                    )?;
                    rule(tree.at(tag.size.get()) == Some(tag), "a free segment is not found in its tree", addr)?;
                    rule(tree.outranks_children(tag), "a tree of sizes is out of balance", addr)?;
                }
                tree => {
                    rule(tag.link_a.get() == before, "the free list's backward link is wrong", addr)?;
                    let same = before.is_some_and(|before| before.size == tag.size);
                    rule(same || tree.is_none(), "in the chain of another size", addr)?;
                }
            }
            before = Some(tag);
        }
        rule(parts.lists.is_marked(class) == before.is_some(), "the map of lists is wrong", 0)?;
    }
    rule(count == free && parts.lists.count() == free, "a free segment is in no list", 0)
}

fn hash(parts: &Parts<'_>, allocated: usize) -> Result<(), Damage> {
    let mut count = 0;
    for bucket in parts.hash.buckets() {
        for tag in Hash::chain(bucket) {
            let addr = tag.base.get();
            count += 1;
            rule(count <= allocated, "more in the hash than in the segment list", addr)?;
            rule(tag.kind.get() == Kind::Allocated, "not allocated, but in the hash", addr)?;
            rule(parts.hash.belongs(tag, bucket), "in another bucket's chain", addr)?;
        }
    }
    rule(count == allocated && parts.hash.count() == allocated, "an allocated segment is not in the hash", 0)
}

fn span_tree(parts: &Parts<'_>, spans: usize) -> Result<(), Damage> {
    rule(parts.spans.count() == spans, "the count of spans is wrong", 0)?;
    let mut in_tree = parts.spans.first();
    for tag in core::iter::successors(parts.first, |tag| tag.next.get()).filter(|tag| tag.is_span()) {
        let addr = tag.base.get();
        rule(in_tree == Some(tag), "a span is not in the tree", addr)?;
        rule(parts.spans.at_or_below(addr) == Some(tag), "a span is not found in the tree", addr)?;
        rule(parts.spans.outranks_children(tag), "the tree of spans is out of balance", addr)?;
        in_tree = parts.spans.above(addr);
    }
    rule(in_tree.is_none(), "the tree has more spans than the segment list", 0)
}

fn pool(parts: &Parts<'_>, used: usize) -> Result<(), Damage> {
    let mut count = 0;
    let mut next = parts.spare;
    while let Some(tag) = next {
        count += 1;
        rule(count <= parts.spare_count, "more spare tags than counted", 0)?;
        rule(tag.kind.get() == Kind::Spare, "a tag in use is in the pool", tag.base.get())?;
        next = tag.next.get();
    }
    rule(count == parts.spare_count, "fewer spare tags than counted", 0)?;
    rule(used + count == parts.tag_count, "tags were lost", 0)
}
