//! Free segments, in lists by size class.
//!
//! The first [`EXACT`] lists hold one size each, in quanta; the others one doubling each. Segregated storage
//! of this kind wastes at most half of what perfect fit would leave (Wilson et al. 1995).
#![forbid(unsafe_code)]

use crate::tag::TagRef;

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
    heads: [Option<TagRef>; LISTS],
    /// log2 of the quantum.
    shift: u32,
    /// Segments in all lists.
    count: usize,
}

impl FreeLists {
    pub(crate) const fn new(quantum: usize) -> FreeLists {
        FreeLists { map: [0; WORDS], heads: [None; LISTS], shift: quantum.trailing_zeros(), count: 0 }
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

    /// A segment of at least this size, in constant time; `None` if the lists alone can't tell of one.
    #[inline]
    pub(crate) fn instant(&self, size: usize) -> Option<TagRef> {
        self.heads[self.first_from(self.class_above(size))?]
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

    /// The last list that is not empty.
    pub(crate) fn last(&self) -> Option<usize> {
        let word = (0..WORDS).rev().find(|&word| self.map[word] != 0)?;
        Some(word * 64 + 63 - self.map[word].leading_zeros() as usize)
    }

    /// The segments of a list, last inserted first.
    pub(crate) fn list(&self, class: usize) -> impl Iterator<Item = TagRef> {
        core::iter::successors(self.heads[class], |tag| tag.link_b.get())
    }

    pub(crate) fn is_marked(&self, class: usize) -> bool {
        self.map[class / 64] & 1 << (class % 64) != 0
    }

    #[inline]
    pub(crate) fn insert(&mut self, tag: TagRef) {
        let class = self.class_of(tag.size.get());
        let head = self.heads[class];
        tag.link_a.set(None);
        tag.link_b.set(head);
        if let Some(head) = head {
            head.link_a.set(Some(tag));
        }
        self.heads[class] = Some(tag);
        self.map[class / 64] |= 1 << (class % 64);
        self.count += 1;
    }

    #[inline]
    pub(crate) fn remove(&mut self, tag: TagRef) {
        let class = self.class_of(tag.size.get());
        let (before, after) = (tag.link_a.get(), tag.link_b.get());
        if let Some(after) = after {
            after.link_a.set(before);
        }
        match before {
            Some(before) => before.link_b.set(after),
            None => {
                self.heads[class] = after;
                if after.is_none() {
                    self.map[class / 64] &= !(1 << (class % 64));
                }
            }
        }
        self.count -= 1;
    }

    /// Gives a free segment another range. Within one class it keeps its place, which is what happens mostly when
    /// small pieces are cut from a large segment.
    #[inline]
    pub(crate) fn resize(&mut self, tag: TagRef, base: usize, size: usize) {
        let stays = self.class_of(tag.size.get()) == self.class_of(size);
        if !stays {
            self.remove(tag);
        }
        tag.base.set(base);
        tag.size.set(size);
        if !stays {
            self.insert(tag);
        }
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
