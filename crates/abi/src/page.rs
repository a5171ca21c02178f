//! The word that the allocator keeps for every page of the heap, at `table_base + 8 * page index`.
//!
//! ```text
//!  63      48 47                           6 5    0
//! |        tags of its group >> 6          | code |   slab: see [`class_code`]
//! |        slab descriptor >> 6             | code |   ZONE_SLAB
//! | type tag | pages of the run             | code |   LARGE, CACHED_RUN (first page)
//! | type tag | kind | pages of the run      | code |   SPECIAL_RUN (first page)
//! | 0        | 0                            | code |   LARGE_TAIL, FREE_*
//! ```
//!
//! The code comes first so that a free finds everything else by it: a table of classes, indexed by the code, has entries
//! with no items for what is no slab.
//!
//! # Tags
//!
//! A slab is cut into *groups* of [`GROUP_BYTES`]. A group has a tag, two bytes, per *granule*: the largest power of two that is no
//! larger than the slab's items, so that no two items start in the same granule. The granule follows from the code, hence an
//! item's tag from its address and its page's word alone. Granules where no item starts have tags that say so.

/// Never touched or given back; reads as zero when touched.
pub const FREE_CLEAN: u64 = 0;
/// Part of a slab: what [`kind`] says for the code of any class.
pub const SLAB: u64 = 1;
/// First page of a block of whole pages that are of another kind than the heap's: executable, or not dumped.
pub const SPECIAL_RUN: u64 = 58;
/// Part of a slab of a zone that was made at run time; its layout stands in its descriptor and keg.
pub const ZONE_SLAB: u64 = 59;
/// Free, contents left over.
pub const FREE_DIRTY: u64 = 60;
/// First page of a block larger than every size class.
pub const LARGE: u64 = 61;
/// First page of a free run kept for reuse at its size.
pub const CACHED_RUN: u64 = 62;
/// Second and later pages of a [`LARGE`], [`CACHED_RUN`] or [`SPECIAL_RUN`] run.
pub const LARGE_TAIL: u64 = 63;

/// Codes there can be.
pub const CODES: usize = 64;
const CODE_MASK: u64 = CODES as u64 - 1;
const BODY_MASK: u64 = (1 << 48) - 1 - CODE_MASK;

/// The low bits: 0, a slab class plus one, or one of the constants above.
#[inline(always)]
#[must_use]
pub const fn code(word: u64) -> u64 {
    word & CODE_MASK
}

/// Bytes of a slab that share an array of tags.
pub const GROUP_BYTES: usize = 1 << GROUP_SHIFT;
const GROUP_SHIFT: u32 = 14;

/// The code of a size class: four to a doubling, so that the code's upper bits are the logarithm of the granule. (16 bytes stand
/// alone in their doubling, hence the gap after them.) Pages have codes of slab classes; caches stand at those of all.
#[inline(always)]
#[must_use]
pub const fn class_code(class: usize) -> usize {
    if class == 0 { 19 } else { class + 21 }
}

/// The inverse of [`class_code`].
#[inline(always)]
#[must_use]
pub const fn class_of_code(code: usize) -> usize {
    if code == class_code(0) { 0 } else { code - 21 }
}

/// log2 of a granule's bytes in slabs with this code.
#[inline(always)]
#[must_use]
pub const fn granule_shift(code: u64) -> u32 {
    (code >> 2) as u32
}

/// Address of the tag of the item that starts at `addr`, in a page with this word.
#[inline(always)]
#[must_use]
pub const fn tag(word: u64, addr: usize) -> usize {
    let granule = (addr & (GROUP_BYTES - 1)) >> granule_shift(code(word));
    tags(word) + 2 * granule
}

/// Which of the constants above.
#[inline(always)]
#[must_use]
pub const fn kind(word: u64) -> u64 {
    let code = code(word);
    if code == 0 || code >= SPECIAL_RUN { code } else { SLAB }
}

/// Size class of a slab.
#[inline(always)]
#[must_use]
pub const fn class(word: u64) -> usize {
    debug_assert!(kind(word) == SLAB);
    class_of_code(code(word) as usize)
}

/// Type tag of a run.
#[inline(always)]
#[must_use]
pub const fn run_tag(word: u64) -> u16 {
    (word >> 48) as u16
}

/// Address of the tags of the group that a slab's page lies in.
#[inline(always)]
#[must_use]
pub const fn tags(word: u64) -> usize {
    (word & !CODE_MASK) as usize
}

/// Address of the descriptor of a zone's slab.
#[inline(always)]
#[must_use]
pub const fn descriptor(word: u64) -> usize {
    (word & !CODE_MASK) as usize
}

/// Pages of a run.
#[inline(always)]
#[must_use]
pub const fn run_pages(word: u64) -> usize {
    ((word & BODY_MASK) >> 6) as usize
}

/// Pages of a run whose first page has this word, of whichever kind it is.
#[must_use]
pub const fn any_run_pages(word: u64) -> usize {
    if kind(word) == SPECIAL_RUN { run_pages(word & !(EXECUTABLE | NOT_DUMPED)) } else { run_pages(word) }
}

/// In a [`SPECIAL_RUN`]'s word: code in its pages can run.
pub const EXECUTABLE: u64 = 1 << 46;
/// In a [`SPECIAL_RUN`]'s word: its pages are not part of a core.
pub const NOT_DUMPED: u64 = 1 << 47;

/// The word of a slab's page: `tags` is a multiple of 64.
#[inline(always)]
#[must_use]
pub const fn slab(tags: usize, class: usize) -> u64 {
    debug_assert!(tags as u64 & CODE_MASK == 0 && class_code(class) < SPECIAL_RUN as usize);
    tags as u64 | class_code(class) as u64
}

/// The word of a page of a zone's slab, whose descriptor is at a multiple of 64.
#[inline(always)]
#[must_use]
pub const fn zone_slab(descriptor: usize) -> u64 {
    debug_assert!(descriptor as u64 & CODE_MASK == 0);
    descriptor as u64 | ZONE_SLAB
}

/// The word of a run's first page; `kind` is [`LARGE`] or [`CACHED_RUN`].
#[inline(always)]
#[must_use]
pub const fn run(kind: u64, pages: usize, tag: u16) -> u64 {
    debug_assert!(pages < 1 << 42);
    (tag as u64) << 48 | (pages as u64) << 6 | kind
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_granule_is_the_largest_power_of_two_in_an_item() {
        for (class, &bytes) in crate::SIZE_CLASSES.iter().enumerate() {
            assert_eq!(granule_shift(class_code(class) as u64), bytes.ilog2(), "{bytes}");
        }
    }

    #[test]
    fn words_give_back_what_they_were_made_of() {
        for class in 0..36 {
            // A kernel's addresses have all upper bits set.
            for addr in [0x7fff_ffff_ffc0, 0xffff_d000_0000_1240] {
                let word = slab(addr, class);
                assert_eq!((kind(word), super::class(word), tags(word)), (SLAB, class, addr));
                let word = zone_slab(addr);
                assert_eq!((kind(word), descriptor(word)), (ZONE_SLAB, addr));
            }
        }
        let word = run(LARGE, (1 << 30) + 5, 0x8abc);
        assert_eq!((kind(word), run_pages(word), run_tag(word)), (LARGE, (1 << 30) + 5, 0x8abc));
        let word = run(SPECIAL_RUN, 77, 0x8abc) | EXECUTABLE | NOT_DUMPED;
        assert_eq!((kind(word), any_run_pages(word), run_tag(word)), (SPECIAL_RUN, 77, 0x8abc));
    }
}
