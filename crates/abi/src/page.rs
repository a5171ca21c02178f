//! The word that the allocator keeps for every page of the heap, at `table_base + 8 * page index`.
//!
//! ```text
//!  63      48 47                           6 5    0
//! | 0        | slab descriptor >> 6         | code |   slab: code is its size class plus one
//! | type tag | pages of the run             | code |   LARGE, CACHED_RUN (first page)
//! | 0        | 0                            | code |   LARGE_TAIL, FREE_*
//! ```
//!
//! The code comes first so that a free finds everything else by it: a table of classes, indexed by the code, has entries
//! with no items for what is no slab.

/// Never touched or given back; reads as zero when touched.
pub const FREE_CLEAN: u64 = 0;
/// Part of a slab: what [`kind`] says for the code of any class.
pub const SLAB: u64 = 1;
/// Free, contents left over.
pub const FREE_DIRTY: u64 = 60;
/// First page of a block larger than every size class.
pub const LARGE: u64 = 61;
/// First page of a free run kept for reuse at its size.
pub const CACHED_RUN: u64 = 62;
/// Second and later pages of a [`LARGE`] or [`CACHED_RUN`] run.
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

/// Which of the constants above.
#[inline(always)]
#[must_use]
pub const fn kind(word: u64) -> u64 {
    let code = code(word);
    if code == 0 || code >= FREE_DIRTY { code } else { SLAB }
}

/// Size class of a slab.
#[inline(always)]
#[must_use]
pub const fn class(word: u64) -> usize {
    debug_assert!(kind(word) == SLAB);
    code(word) as usize - 1
}

/// Type tag of a run.
#[inline(always)]
#[must_use]
pub const fn run_tag(word: u64) -> u16 {
    (word >> 48) as u16
}

/// Address of the slab's descriptor.
#[inline(always)]
#[must_use]
pub const fn descriptor(word: u64) -> usize {
    (word & BODY_MASK) as usize
}

/// Pages of a run.
#[inline(always)]
#[must_use]
pub const fn run_pages(word: u64) -> usize {
    ((word & BODY_MASK) >> 6) as usize
}

/// The word of a slab's page.
#[inline(always)]
#[must_use]
pub const fn slab(descriptor: usize, class: usize) -> u64 {
    debug_assert!(descriptor as u64 & !BODY_MASK == 0 && class + 1 < FREE_DIRTY as usize);
    descriptor as u64 | (class as u64 + 1)
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
    fn words_give_back_what_they_were_made_of() {
        for class in 0..44 {
            let word = slab(0x7fff_ffff_ffc0, class);
            assert_eq!((kind(word), super::class(word), descriptor(word)), (SLAB, class, 0x7fff_ffff_ffc0));
        }
        let word = run(LARGE, (1 << 30) + 5, 0x8abc);
        assert_eq!((kind(word), run_pages(word), run_tag(word)), (LARGE, (1 << 30) + 5, 0x8abc));
    }
}
