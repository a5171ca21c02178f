//! Spans by base, in a zip tree (Tarjan, Levy, Timmel 2021): a search tree kept in balance by a rank per node that is a
//! hash of its base. It needs two links and no stored balance, and no operation recurses.
//!
//! Why a tree: an arena that imports may have 10^5 spans, and both finding the place of a new one in address order and
//! finding the span of an address would otherwise be walks along all segments.
#![forbid(unsafe_code)]

use crate::tag::{Link, TagRef};
use core::cell::Cell;

pub(crate) struct Spans {
    root: Link,
    count: usize,
}

/// Rank of a node: geometrically distributed. Equal ranks are ordered by base, the lower one on top.
fn rank(base: usize) -> u32 {
    // The finaliser of splitmix64: bases differ in few bits, and trailing zeros need all bits to be mixed.
    let mut x = base as u64;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)).trailing_zeros()
}

fn left(tag: &TagRef) -> &Link {
    &tag.link_a
}

fn right(tag: &TagRef) -> &Link {
    &tag.link_b
}

impl Spans {
    pub(crate) const fn new() -> Spans {
        Spans { root: Cell::new(None), count: 0 }
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// The span with the greatest base that is not above `addr`.
    pub(crate) fn at_or_below(&self, addr: usize) -> Option<TagRef> {
        let mut best = None;
        let mut node = self.root.get();
        while let Some(tag) = node {
            node = if tag.base.get() <= addr {
                best = node;
                right(&tag).get()
            } else {
                left(&tag).get()
            };
        }
        best
    }

    /// The span with the least base that is above `addr`.
    pub(crate) fn above(&self, addr: usize) -> Option<TagRef> {
        let mut best = None;
        let mut node = self.root.get();
        while let Some(tag) = node {
            node = if tag.base.get() > addr {
                best = node;
                left(&tag).get()
            } else {
                right(&tag).get()
            };
        }
        best
    }

    /// The span with the least base.
    pub(crate) fn first(&self) -> Option<TagRef> {
        core::iter::successors(self.root.get(), |tag| left(tag).get()).last()
    }

    pub(crate) fn insert(&mut self, tag: TagRef) {
        let (base, rank_new) = (tag.base.get(), rank(tag.base.get()));
        // Down to where the new node outranks what is there ...
        let mut parent: Option<(TagRef, bool)> = None;
        let mut node = self.root.get();
        while let Some(below) = node {
            let rank_below = rank(below.base.get());
            if rank_below < rank_new || rank_below == rank_new && below.base.get() > base {
                break;
            }
            let goes_left = base < below.base.get();
            parent = Some((below, goes_left));
            node = if goes_left { left(&below).get() } else { right(&below).get() };
        }
        self.set_child(parent, Some(tag));
        // ... and the tree under that place is unzipped into what is below the base and what is above.
        let (mut low, mut high) = ((tag, true), (tag, false));
        while let Some(below) = node {
            if below.base.get() < base {
                self.set_child(Some(low), node);
                low = (below, false);
                node = right(&below).get();
            } else {
                self.set_child(Some(high), node);
                high = (below, true);
                node = left(&below).get();
            }
        }
        self.set_child(Some(low), None);
        self.set_child(Some(high), None);
        self.count += 1;
    }

    /// Takes out a span that is in the tree.
    pub(crate) fn remove(&mut self, tag: TagRef) {
        let base = tag.base.get();
        let mut parent = None;
        let mut node = self.root.get();
        while let Some(here) = node {
            if here == tag {
                break;
            }
            let goes_left = base < here.base.get();
            parent = Some((here, goes_left));
            node = if goes_left { left(&here).get() } else { right(&here).get() };
        }
        // The two subtrees are zipped along their inner edges, by rank.
        let (mut low, mut high) = (left(&tag).get(), right(&tag).get());
        loop {
            match (low, high) {
                (Some(l), Some(h)) => {
                    if rank(l.base.get()) >= rank(h.base.get()) {
                        self.set_child(parent, low);
                        parent = Some((l, false));
                        low = right(&l).get();
                    } else {
                        self.set_child(parent, high);
                        parent = Some((h, true));
                        high = left(&h).get();
                    }
                }
                _ => {
                    self.set_child(parent, low.or(high));
                    break;
                }
            }
        }
        self.count -= 1;
    }

    /// Whether a span's children rank below it, the left one strictly: the order that keeps the tree flat.
    pub(crate) fn outranks_children(&self, tag: TagRef) -> bool {
        let own = rank(tag.base.get());
        left(&tag).get().is_none_or(|child| rank(child.base.get()) < own)
            && right(&tag).get().is_none_or(|child| rank(child.base.get()) <= own)
    }

    fn set_child(&self, parent: Option<(TagRef, bool)>, child: Option<TagRef>) {
        match parent {
            None => self.root.set(child),
            Some((parent, true)) => left(&parent).set(child),
            Some((parent, false)) => right(&parent).set(child),
        }
    }
}
