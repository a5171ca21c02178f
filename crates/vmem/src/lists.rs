//! Free segments by size class.
//!
//! The first [`EXACT`] classes have one size each, in quanta; the others one doubling each. Segregated storage
//! of this kind wastes at most half of what perfect fit would leave (Wilson et al. 1995).
//!
//! A class of one size is a list. One of a doubling is a tree of the sizes that there are, with a chain of those that have the same behind each node.
//! So the smallest segment that is big enough is found by descending, however many there are; what the descent takes, and an insertion,
//! grows with the logarithm of the number of *different* sizes in the class: never more than the width of the class, and no more as segments get many.
#![forbid(unsafe_code)]

use crate::tag::TagRef;
use crate::tree::{BySize, Tree};

/// Sizes, in quanta, that have a list of their own: most requests are small, and in such a list every segment is both
/// the first and the best fit. FreeBSD has as many (`VMEM_OPTORDER`).
const EXACT: usize = 32;
const EXACT_LOG2: u32 = EXACT.ilog2();
const _: () = assert!(EXACT.is_power_of_two());

/// 32 exact lists; then 33..=63 quanta, 64..=127, and so on to the doubling that ends at `usize::MAX`.
pub(crate) const LISTS: usize = EXACT + (usize::BITS - EXACT_LOG2) as usize;

/// Bits of the map of non-empty lists.
const WORDS: usize = LISTS.div_ceil(64);

pub(crate) struct FreeLists {
    map: [u64; WORDS],
    heads: [Option<TagRef>; EXACT],
    trees: [Tree<BySize>; LISTS - EXACT],
    /// log2 of the quantum.
    shift: u32,
    /// Segments in all lists.
    count: usize,
}

impl FreeLists {
    pub(crate) const fn new(quantum: usize) -> FreeLists {
        FreeLists {
            map: [0; WORDS],
            heads: [None; EXACT],
            trees: [const { Tree::new() }; LISTS - EXACT],
            shift: quantum.trailing_zeros(),
            count: 0,
        }
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// The list in which a segment of this size belongs.
    #[inline]
    pub(crate) const fn class_of(&self, size: usize) -> usize {
        let quanta = size >> self.shift;
        if quanta <= EXACT { quanta - 1 } else { EXACT + (quanta.ilog2() - EXACT_LOG2) as usize }
    }

    /// The first list in which every segment has at least this size. May be [`LISTS`]: there is none.
    #[inline]
    const fn class_above(&self, size: usize) -> usize {
        let quanta = size >> self.shift;
        if quanta <= EXACT {
            quanta - 1
        } else {
            // A power of two is the least of its list; anything else has lesser ones beside it.
            EXACT + (quanta.ilog2() - EXACT_LOG2) as usize + !quanta.is_power_of_two() as usize
        }
    }

    /// Whether all segments of the list have one size.
    pub(crate) const fn is_exact(class: usize) -> bool {
        class < EXACT
    }

    /// The first list from `class` on that is not empty.
    #[inline]
    pub(crate) fn first_from(&self, class: usize) -> Option<usize> {
        let mut word = class / 64;
        if word >= WORDS {
            return None;
        }
        let mut bits = self.map[word] & (!0 << (class % 64));
        loop {
            if bits != 0 {
                return Some(word * 64 + bits.trailing_zeros() as usize);
            }
            word += 1;
            if word == WORDS {
                return None;
            }
            bits = self.map[word];
        }
    }

    /// A segment of at least this size, in constant time; `None` if the classes alone can't tell of one.
    #[inline]
    pub(crate) fn instant(&self, size: usize) -> Option<TagRef> {
        let class = self.first_from(self.class_above(size))?;
        match self.tree(class) {
            None => self.heads[class],
            // One of a chain, where there is one: the tree stays as it is.
            Some(tree) => tree.root().map(|root| root.link_c.get().unwrap_or(root)),
        }
    }

    /// The smallest segment of at least this size, if that can be told in constant time: it is in an exact list.
    #[inline]
    pub(crate) fn best_exact(&self, size: usize) -> Option<TagRef> {
        let class = self.class_of(size);
        if !Self::is_exact(class) {
            return None;
        }
        self.first_from(class).filter(|&class| Self::is_exact(class)).and_then(|class| self.heads[class])
    }

    /// The size of the largest segment, 0 without one.
    pub(crate) fn largest(&self) -> usize {
        let Some(word) = (0..WORDS).rev().find(|&word| self.map[word] != 0) else { return 0 };
        let class = word * 64 + 63 - self.map[word].leading_zeros() as usize;
        let tag = match self.tree(class) {
            None => self.heads[class],
            Some(tree) => tree.last(),
        };
        tag.map_or(0, |tag| tag.size.get())
    }

    /// The tree of a class that has one.
    #[inline]
    pub(crate) fn tree(&self, class: usize) -> Option<&Tree<BySize>> {
        class.checked_sub(EXACT).map(|index| &self.trees[index])
    }

    /// The segments of a class, the smallest first.
    pub(crate) fn list(&self, class: usize) -> impl Iterator<Item = TagRef> {
        self.list_from(class, 0)
    }

    /// Those of at least this size.
    pub(crate) fn list_from(&self, class: usize, size: usize) -> impl Iterator<Item = TagRef> {
        let tree = self.tree(class);
        let first = match tree {
            None => self.heads[class].filter(|tag| tag.size.get() >= size),
            Some(tree) => size.checked_sub(1).map_or_else(|| tree.first(), |below| tree.above(below)),
        };
        core::iter::successors(first, move |tag| match tree {
            None => tag.link_b.get(),
            Some(tree) => tag.link_c.get().or_else(|| tree.above(tag.size.get())),
        })
    }

    pub(crate) fn is_marked(&self, class: usize) -> bool {
        self.map[class / 64] & 1 << (class % 64) != 0
    }

    #[inline]
    pub(crate) fn insert(&mut self, tag: TagRef) {
        let class = self.class_of(tag.size.get());
        match class.checked_sub(EXACT) {
            None => {
                let head = self.heads[class];
                tag.link_a.set(None);
                tag.link_b.set(head);
                if let Some(head) = head {
                    head.link_a.set(Some(tag));
                }
                self.heads[class] = Some(tag);
            }
            Some(index) => Self::insert_sized(&self.trees[index], tag),
        }
        self.map[class / 64] |= 1 << (class % 64);
        self.count += 1;
    }

    fn insert_sized(tree: &Tree<BySize>, tag: TagRef) {
        let same = tree.at(tag.size.get());
        tag.is_chained.set(same.is_some());
        match same {
            None => {
                tag.link_c.set(None);
                tree.insert(tag);
            }
            Some(node) => {
                let after = node.link_c.replace(Some(tag));
                tag.link_a.set(Some(node));
                tag.link_c.set(after);
                if let Some(after) = after {
                    after.link_a.set(Some(tag));
                }
            }
        }
    }

    #[inline]
    pub(crate) fn remove(&mut self, tag: TagRef) {
        let class = self.class_of(tag.size.get());
        let is_empty = match class.checked_sub(EXACT) {
            None => {
                let (before, after) = (tag.link_a.get(), tag.link_b.get());
                if let Some(after) = after {
                    after.link_a.set(before);
                }
                match before {
                    Some(before) => before.link_b.set(after),
                    None => self.heads[class] = after,
                }
                self.heads[class].is_none()
            }
            Some(index) => {
                Self::remove_sized(&self.trees[index], tag);
                self.trees[index].root().is_none()
            }
        };
        if is_empty {
            self.map[class / 64] &= !(1 << (class % 64));
        }
        self.count -= 1;
    }

    fn remove_sized(tree: &Tree<BySize>, tag: TagRef) {
        let after = tag.link_c.get();
        if tag.is_chained.get() {
            if let Some(before) = tag.link_a.get() {
                before.link_c.set(after);
            }
            if let Some(after) = after {
                after.link_a.set(tag.link_a.get());
            }
            return;
        }
        match after {
            None => tree.remove(tag),
            Some(heir) => {
                tree.replace(tag, heir);
                heir.is_chained.set(false);
            }
        }
    }

    /// Gives a free segment another range. Alone in its class it keeps its place, which is what happens mostly when
    /// small pieces are cut from a large segment.
    #[inline]
    pub(crate) fn resize(&mut self, tag: TagRef, base: usize, size: usize) {
        let before = tag.size.get();
        let class = self.class_of(before);
        let stays = before == size || class == self.class_of(size) && self.is_alone(class, tag);
        if !stays {
            self.remove(tag);
        }
        tag.base.set(base);
        tag.size.set(size);
        if !stays {
            self.insert(tag);
        }
    }

    /// Whether a segment is the only one of its class, which has a tree.
    #[inline]
    fn is_alone(&self, class: usize, tag: TagRef) -> bool {
        let alone = |tree: &Tree<BySize>| tree.root() == Some(tag) && tree.is_leaf(tag) && tag.link_c.get().is_none();
        self.tree(class).is_some_and(alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_looked_for_where_all_are_big_enough_and_no_list_further() {
        for shift in [0, 12] {
            let lists = FreeLists::new(1 << shift);
            let class = |quanta: usize| (lists.class_of(quanta << shift), lists.class_above(quanta << shift));
            assert_eq!([1, 2, 32].map(class), [(0, 0), (1, 1), (31, 31)]);
            assert_eq!(
                [33, 63, 64, 65, 127, 128].map(class),
                [(32, 33), (32, 33), (33, 33), (33, 34), (33, 34), (34, 34)]
            );
        }
        let lists = FreeLists::new(1);
        assert_eq!(lists.class_of(usize::MAX), LISTS - 1);
        assert_eq!(lists.class_above(usize::MAX), LISTS);
        assert!(lists.first_from(LISTS).is_none());
    }
}
