//! Physical page frames, for ports that have them: what contiguous allocation asks of the owner of the machine's
//! memory.
//!
//! A process has none, and needs nothing of this.

use core::sync::atomic::AtomicU64;

/// A physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Paddr(pub u64);

/// Number of a page frame: its physical address divided by the page size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pfn(pub u64);

/// Page frames that follow one another in physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameRun {
    /// The lowest.
    pub first: Pfn,
    /// How many, not 0.
    pub npages: usize,
}

impl FrameRun {
    /// One more than the highest.
    #[must_use]
    pub const fn end(&self) -> Pfn {
        Pfn(self.first.0 + self.npages as u64)
    }

    /// Whether the frame is one of these.
    #[must_use]
    pub const fn contains(&self, pfn: Pfn) -> bool {
        self.first.0 <= pfn.0 && pfn.0 < self.end().0
    }

    /// Each of them, from the lowest up.
    pub fn frames(&self) -> impl Iterator<Item = Pfn> + use<> {
        (self.first.0..self.end().0).map(Pfn)
    }
}

/// What a frame is used for, by what it takes to have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FrameUse {
    /// By nobody.
    Free,
    /// Holds a copy of what is on disk as well: can be dropped at once.
    Cached,
    /// Holds what must be written first.
    Dirty,
    /// In use, but its contents may move to another frame.
    Movable,
    /// In use where it is: wired, the kernel's, or withheld.
    Fixed,
}

/// The owner of the page frames, and the kernel's address space as far as contiguous blocks need it.
///
/// A frame that [`take`](Self::take), [`evict`](Self::evict), [`launder`](Self::launder) or
/// [`relocate`](Self::relocate) answered with true is *withheld*: out of everybody's reach until
/// [`release`](Self::release). So a run is gathered frame by frame, and what was freed for it first is still there
/// when the last frame is.
///
/// Functions may be called from any thread, with no lock held. Those that may sleep say so. A frame is not changed by a
/// call that answers false.
///
/// # Safety
/// 1. A frame is withheld for one caller at a time, and nobody else reads or writes it until it is released.
/// 2. Memory that [`map`](Self::map) returned is readable and writable until [`unmap`](Self::unmap), and page aligned.
/// 3. [`word`](Self::word) is the same for the same frame.
pub unsafe trait Frames: Sync {
    /// Where there is memory: runs in address order, apart from each other or at least not overlapping. Constant.
    fn segment(&self, index: usize) -> Option<FrameRun>;

    /// What the frame is used for at this moment: a hint, true no longer than until the answer is read.
    fn usage(&self, pfn: Pfn) -> FrameUse;

    /// Withholds a free frame.
    fn take(&self, pfn: Pfn) -> bool;

    /// Drops what is cached in the frame and withholds it.
    fn evict(&self, pfn: Pfn) -> bool;

    /// Writes what is in the frame to where it belongs, drops it, and withholds the frame. *May sleep.*
    fn launder(&self, pfn: Pfn) -> bool;

    /// Moves what is in the frame to a free one outside of `keep_out`, and withholds the frame. *May sleep.*
    fn relocate(&self, pfn: Pfn, keep_out: FrameRun) -> bool;

    /// Makes withheld frames free.
    fn release(&self, run: FrameRun);

    /// Fills a withheld frame with zeros.
    fn zero(&self, pfn: Pfn);

    /// A word that belongs to whoever withholds the frame. Zero when the frame is withheld, and to be zero again when
    /// it is released.
    fn word(&self, pfn: Pfn) -> &AtomicU64;

    /// Waits until some memory was freed, or for a while. *May sleep.* A port that cannot returns at once.
    fn wait_for_free(&self) {}

    /// Address space for so many pages: asked for before memory is, since other memory may have to go for it. A port
    /// that sees all of its memory at constant addresses has nothing to reserve, and answers 0.
    fn reserve(&self, npages: usize) -> Option<usize>;

    /// Gives back what [`reserve`](Self::reserve) returned.
    fn unreserve(&self, reserved: usize, npages: usize);

    /// Makes withheld frames visible, in the address space reserved; returns their address. `None`, with the
    /// reservation as it was, when there is no memory for page tables.
    fn map(&self, reserved: usize, run: FrameRun) -> Option<usize>;

    /// Undoes [`map`](Self::map) and [`reserve`](Self::reserve); the frames stay withheld.
    fn unmap(&self, addr: usize, npages: usize);

    /// The frame that an address of [`map`](Self::map) stands for; `None` for any other address.
    fn frame_at(&self, addr: usize) -> Option<Pfn>;
}
