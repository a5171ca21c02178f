//! Tags by a number of theirs, in a zip tree (Tarjan, Levy, Timmel 2021): a search tree kept in balance by a rank per node that is a
//! hash of its key. It needs two links and no stored balance, and no operation recurses.
//!
//! Why trees: an arena that imports may have 10^5 spans, and both finding the place of a new one in address order and
//! finding the span of an address would otherwise be walks along all segments. And best fit among free segments of like size would be a walk
//! along all of those.
#![forbid(unsafe_code)]

use crate::tag::{Link, Tag, TagRef};
use core::cell::Cell;
use core::marker::PhantomData;

/// What a tree is ordered by. No two tags of one tree have the same.
pub(crate) trait Key {
    fn of(tag: &Tag) -> usize;
}

/// Spans.
pub(crate) struct ByBase;

impl Key for ByBase {
    #[inline]
    fn of(tag: &Tag) -> usize {
        tag.base.get()
    }
}

/// Free segments of different size.
pub(crate) struct BySize;

impl Key for BySize {
    #[inline]
    fn of(tag: &Tag) -> usize {
        tag.size.get()
    }
}

pub(crate) struct Tree<K> {
    root: Link,
    key: PhantomData<K>,
}

/// Rank of a node: geometrically distributed. Equal ranks are ordered by key, the lower one on top.
fn rank(key: usize) -> u32 {
    // The finaliser of splitmix64: keys differ in few bits, and trailing zeros need all bits to be mixed.
    let mut x = key as u64;
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

impl<K: Key> Tree<K> {
    pub(crate) const fn new() -> Self {
        Self { root: Cell::new(None), key: PhantomData }
    }

    /// One of them, in constant time.
    #[inline]
    pub(crate) fn root(&self) -> Option<TagRef> {
        self.root.get()
    }

    pub(crate) fn at(&self, key: usize) -> Option<TagRef> {
        let mut node = self.root.get();
        while let Some(tag) = node {
            let here = K::of(&tag);
            if here == key {
                break;
            }
            node = if key < here { left(&tag).get() } else { right(&tag).get() };
        }
        node
    }

    /// The one with the greatest key that is not above `key`.
    pub(crate) fn at_or_below(&self, key: usize) -> Option<TagRef> {
        let mut best = None;
        let mut node = self.root.get();
        while let Some(tag) = node {
            node = if K::of(&tag) <= key {
                best = node;
                right(&tag).get()
            } else {
                left(&tag).get()
            };
        }
        best
    }

    /// The one with the least key that is above `key`.
    pub(crate) fn above(&self, key: usize) -> Option<TagRef> {
        let mut best = None;
        let mut node = self.root.get();
        while let Some(tag) = node {
            node = if K::of(&tag) > key {
                best = node;
                left(&tag).get()
            } else {
                right(&tag).get()
            };
        }
        best
    }

    /// The one with the least key.
    pub(crate) fn first(&self) -> Option<TagRef> {
        core::iter::successors(self.root.get(), |tag| left(tag).get()).last()
    }

    /// The one with the greatest key.
    pub(crate) fn last(&self) -> Option<TagRef> {
        core::iter::successors(self.root.get(), |tag| right(tag).get()).last()
    }

    pub(crate) fn insert(&self, tag: TagRef) {
        let (key, rank_new) = (K::of(&tag), rank(K::of(&tag)));
        // Down to where the new node outranks what is there ...
        let mut parent: Option<(TagRef, bool)> = None;
        let mut node = self.root.get();
        while let Some(below) = node {
            let rank_below = rank(K::of(&below));
            if rank_below < rank_new || rank_below == rank_new && K::of(&below) > key {
                break;
            }
            let goes_left = key < K::of(&below);
            parent = Some((below, goes_left));
            node = if goes_left { left(&below).get() } else { right(&below).get() };
        }
        self.set_child(parent, Some(tag));
        // ... and the tree under that place is unzipped into what is below the key and what is above.
        let (mut low, mut high) = ((tag, true), (tag, false));
        while let Some(below) = node {
            if K::of(&below) < key {
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
    }

    /// Whether a tag that is in the tree has none below it.
    #[inline]
    pub(crate) fn is_leaf(&self, tag: TagRef) -> bool {
        left(&tag).get().is_none() && right(&tag).get().is_none()
    }

    /// What leads to a tag that is in the tree, and on which side.
    fn parent(&self, tag: TagRef) -> Option<(TagRef, bool)> {
        let key = K::of(&tag);
        let mut parent = None;
        let mut node = self.root.get();
        while let Some(here) = node {
            if here == tag {
                break;
            }
            let goes_left = key < K::of(&here);
            parent = Some((here, goes_left));
            node = if goes_left { left(&here).get() } else { right(&here).get() };
        }
        parent
    }

    /// Takes out a tag that is in the tree.
    pub(crate) fn remove(&self, tag: TagRef) {
        let mut parent = self.parent(tag);
        // The two subtrees are zipped along their inner edges, by rank.
        let (mut low, mut high) = (left(&tag).get(), right(&tag).get());
        loop {
            match (low, high) {
                (Some(l), Some(h)) => {
                    if rank(K::of(&l)) >= rank(K::of(&h)) {
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
    }

    /// Puts a tag with the same key into the place of one that is in the tree.
    pub(crate) fn replace(&self, tag: TagRef, by: TagRef) {
        debug_assert!(K::of(&tag) == K::of(&by));
        self.set_child(self.parent(tag), Some(by));
        left(&by).set(left(&tag).get());
        right(&by).set(right(&tag).get());
    }

    /// Whether a node's children rank below it, the left one strictly: the order that keeps the tree flat.
    pub(crate) fn outranks_children(&self, tag: TagRef) -> bool {
        let own = rank(K::of(&tag));
        left(&tag).get().is_none_or(|child| rank(K::of(&child)) < own)
            && right(&tag).get().is_none_or(|child| rank(K::of(&child)) <= own)
    }

    fn set_child(&self, parent: Option<(TagRef, bool)>, child: Option<TagRef>) {
        match parent {
            None => self.root.set(child),
            Some((parent, true)) => left(&parent).set(child),
            Some((parent, false)) => right(&parent).set(child),
        }
    }
}

/// The spans of an arena by base, and how many they are.
pub(crate) struct Spans {
    tree: Tree<ByBase>,
    count: usize,
}

impl Spans {
    pub(crate) const fn new() -> Self {
        Self { tree: Tree::new(), count: 0 }
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn insert(&mut self, span: TagRef) {
        self.tree.insert(span);
        self.count += 1;
    }

    pub(crate) fn remove(&mut self, span: TagRef) {
        self.tree.remove(span);
        self.count -= 1;
    }
}

impl core::ops::Deref for Spans {
    type Target = Tree<ByBase>;

    fn deref(&self) -> &Tree<ByBase> {
        &self.tree
    }
}
