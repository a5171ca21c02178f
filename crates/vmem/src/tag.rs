//! Boundary tags, and the one place where a pointer to one is followed.

use core::cell::Cell;
use core::fmt;
use core::ops::Deref;
use core::ptr::NonNull;

/// What a segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// Not a piece but a whole: the range that was added at once. The segments that tile it follow.
    Span {
        /// It came from a parent arena and goes back there when it is free as a whole.
        imported: bool,
    },
    /// May be allocated.
    Free,
    /// Handed out.
    Allocated,
}

/// A range, as shown to callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// What it is.
    pub kind: SegmentKind,
    /// First address.
    pub base: usize,
    /// Number of addresses, not 0.
    pub size: usize,
}

impl Segment {
    /// The last address, which may be `usize::MAX`.
    #[must_use]
    pub const fn last(&self) -> usize {
        self.base + (self.size - 1)
    }

    /// Whether the address lies inside.
    #[must_use]
    pub const fn contains(&self, addr: usize) -> bool {
        self.base <= addr && addr <= self.last()
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SegmentKind::Span { imported: false } => "span",
            SegmentKind::Span { imported: true } => "imported span",
            SegmentKind::Free => "free segment",
            SegmentKind::Allocated => "allocated segment",
        };
        write!(f, "{kind} {:#x}..={:#x} of size {:#x}", self.base, self.last(), self.size)
    }
}

/// What a tag stands for just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// In the pool of free tags.
    Spare,
    Span,
    ImportedSpan,
    Free,
    Allocated,
}

pub(crate) type Link = Cell<Option<TagRef>>;

/// A boundary tag: the record of one span or one segment. Opaque; the owner of an arena only has to find memory for tags
/// (see [`RawArena::donate_tags`](crate::RawArena::donate_tags)).
#[doc(alias = "vmem_btag")]
#[doc(alias = "vmem_seg")]
// A line of its own: seven words would lie across two lines half of the time, and a large arena is nothing but misses
// (measured at 10^6 segments, see benches/arena.rs: a tenth faster).
#[repr(C, align(64))]
pub struct Tag {
    pub(crate) base: Cell<usize>,
    pub(crate) size: Cell<usize>,
    /// Neighbours in the segment list, which is in address order; a span's tag precedes its segments. In the pool of
    /// free tags `next` is the pool's link.
    pub(crate) prev: Link,
    pub(crate) next: Link,
    /// By kind: free list (previous, next), tree of sizes or of spans (left, right), chain of one size (previous, unused), hash chain (unused,
    /// next). No tag is in two of them.
    pub(crate) link_a: Link,
    pub(crate) link_b: Link,
    /// Of a free segment in a tree of sizes, and in the chain behind it: the next of its size.
    pub(crate) link_c: Link,
    pub(crate) kind: Cell<Kind>,
    /// Of a free segment of a class with a tree: in a chain, rather than in the tree itself.
    pub(crate) is_chained: Cell<bool>,
}
const _: () = assert!(size_of::<Tag>() == 64, "a tag is a cache line");
const _: () = assert!(size_of::<Link>() == size_of::<usize>(), "a link is a pointer");

impl Tag {
    const fn spare() -> Tag {
        Tag {
            base: Cell::new(0),
            size: Cell::new(0),
            prev: Cell::new(None),
            next: Cell::new(None),
            link_a: Cell::new(None),
            link_b: Cell::new(None),
            link_c: Cell::new(None),
            kind: Cell::new(Kind::Spare),
            is_chained: Cell::new(false),
        }
    }

    /// The last address of the range.
    #[inline]
    pub(crate) fn last(&self) -> usize {
        self.base.get() + (self.size.get() - 1)
    }

    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.kind.get() == Kind::Free
    }

    pub(crate) fn is_span(&self) -> bool {
        matches!(self.kind.get(), Kind::Span | Kind::ImportedSpan)
    }

    pub(crate) fn contains(&self, addr: usize) -> bool {
        self.base.get() <= addr && addr <= self.last()
    }

    pub(crate) fn segment(&self) -> Segment {
        let kind = match self.kind.get() {
            Kind::Span => SegmentKind::Span { imported: false },
            Kind::ImportedSpan => SegmentKind::Span { imported: true },
            Kind::Allocated => SegmentKind::Allocated,
            Kind::Free | Kind::Spare => SegmentKind::Free,
        };
        Segment { kind, base: self.base.get(), size: self.size.get() }
    }
}

/// A tag of this arena. Holding one proves that the tag was donated, was not taken back, is initialised, and is touched
/// only through the arena that holds it. All fields are cells, so any number of these may point to one tag, in one
/// thread; the arena is not `Sync`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct TagRef(NonNull<Tag>);

impl TagRef {
    /// Makes donated memory a tag.
    ///
    /// # Safety
    /// 1. `mem` is valid for writes of one `Tag`, and aligned.
    /// 2. Nobody else touches it until [`TagRef::into_raw`] of the last copy.
    pub(crate) unsafe fn new(mem: NonNull<Tag>) -> TagRef {
        // SAFETY: (1) and (2) are the caller's.
        unsafe { mem.write(Tag::spare()) };
        TagRef(mem)
    }

    /// The memory, for its owner. The caller keeps no other copy.
    pub(crate) fn into_raw(self) -> NonNull<Tag> {
        self.0
    }
}

impl Deref for TagRef {
    type Target = Tag;

    #[inline]
    fn deref(&self) -> &Tag {
        // SAFETY: what holding a TagRef proves, see the type; shared references to cells may alias.
        unsafe { self.0.as_ref() }
    }
}
