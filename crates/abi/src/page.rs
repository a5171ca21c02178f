//! The word that the allocator keeps for every page of the heap, at `table_base + 8 * page index`.
//!
//! ```text
//!  63      48 47                              3 2   0
//! | class    | slab descriptor >> 3            | kind |   SLAB
//! | type tag | pages of the run                | kind |   LARGE, CACHED_RUN (first page)
//! | 0        | 0                               | kind |   LARGE_TAIL, FREE_*
//! ```

/// Never touched or given back; reads as zero when touched.
pub const FREE_CLEAN: u64 = 0;
/// Free, contents left over.
pub const FREE_DIRTY: u64 = 1;
/// Part of a slab.
pub const SLAB: u64 = 2;
/// First page of a block larger than every size class.
pub const LARGE: u64 = 3;
/// First page of a free run kept for reuse at its size.
pub const CACHED_RUN: u64 = 4;
/// Second and later pages of a [`LARGE`] or [`CACHED_RUN`] run.
pub const LARGE_TAIL: u64 = 5;

const KIND_MASK: u64 = 7;
const BODY_MASK: u64 = (1 << 48) - 1 - KIND_MASK;

/// Which of the constants above.
#[inline(always)]
#[must_use]
pub const fn kind(word: u64) -> u64 {
    word & KIND_MASK
}

/// The upper 16 bits: size class of a slab, type tag of a run.
#[inline(always)]
#[must_use]
pub const fn upper(word: u64) -> u16 {
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
    ((word & BODY_MASK) >> 3) as usize
}

/// The word of a slab's page.
#[inline(always)]
#[must_use]
pub const fn slab(descriptor: usize, class: u16) -> u64 {
    debug_assert!(descriptor as u64 & !BODY_MASK == 0);
    (class as u64) << 48 | descriptor as u64 | SLAB
}

/// The word of a run's first page; `kind` is [`LARGE`] or [`CACHED_RUN`].
#[inline(always)]
#[must_use]
pub const fn run(kind: u64, pages: usize, tag: u16) -> u64 {
    debug_assert!(pages < 1 << 45);
    (tag as u64) << 48 | (pages as u64) << 3 | kind
}
