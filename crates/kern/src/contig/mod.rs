//! Physically contiguous memory: contigmalloc(9).
//!
//! A device that reads memory by itself, without an IOMMU, wants its buffer in one piece, below the addresses that it
//! can form, and not across the boundaries that its counter does not carry over. The page allocator gives no such
//! promise: what is next to each other for the processor lies anywhere. So these requests go to the owner of the page
//! frames ([`Frames`]), with the type's statistics as the only thing they share with the rest of the allocator.
//!
//! # How a request falls through
//!
//! 1. Address space is reserved. It is the one thing whose want no reclaiming cures; asked for last it would be found
//!    missing after the machine was turned upside down (and once, in FreeBSD, with the pages leaked).
//! 2. The passes: each looks over the frames in the range, once, for the cheapest run that it can have:
//!    * *free*: nothing but free frames;
//!    * *cached*: frames too whose contents are on disk, and can be dropped at once;
//!    * *launder*: frames too that must be written first;
//!    * *relocate*: frames too whose contents must move elsewhere.
//!
//!    Only frames of the run that was chosen are disturbed (FreeBSD once laundered all of memory in hope). What is
//!    freed for the run is *withheld* at once: somebody else would have it before the last frame of the run is free.
//!    First the frames that cost nothing, then those that take time. If one can't be had, all that was withheld is
//!    free again, and the pass looks for another run without that frame.
//! 3. A request that may sleep waits for memory and begins again at 2, [`TRIES`] times in all.
//! 4. The run is mapped; or all of it, and the address space, goes back.
//!
//! `NOWAIT` makes the passes *free* and *cached*; without reclaiming (`NORECLAIM`) there is only *free*.
//!
//! # Who owns what
//!
//! A frame's word ([`Frames::word`]) says which block it is of: there is no other record, so nothing has to be
//! allocated for one. While a run is being gathered the words name the request: two of them may want the same frames.
//! There is no lock: each frame is withheld atomically, by the frames' owner, and a block is freed by whoever
//! exchanges the word of its first frame.
//!
//! # What may sleep
//!
//! Allocation with [`ContigRequest::wait`]. Nothing else.

mod search;
mod supply;
mod word;

use core::fmt;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use platform::{FrameRun, Frames, Paddr, Pfn, Platform};

use crate::stats::TypeId;
use crate::system::System;
use search::{Pass, REFUSALS_MAX, Refused, Shape, best_run};
use word::{Role, first_word, held_word, role, tail_word};

pub use search::ContigRequest;
pub use supply::ContigSupply;

/// How often a request that may sleep goes through the passes; between two of them it waits for memory. FreeBSD 13
/// (`kmem_alloc_contig`) reclaims as often before it gives up.
pub const TRIES: usize = 3;

/// Why contiguous memory was not given or not taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContigError {
    /// No memory can meet the request, whatever is done. What is wrong with it.
    Invalid(&'static str),
    /// No run of frames could be had, with what the flags allow to be done for it.
    NoMemory,
    /// No address space, or no memory for its page tables.
    NoAddressSpace,
    /// The caller may not sleep, for this reason, but asked to.
    MayNotSleep(&'static str),
    /// No contiguous block starts there.
    NotAllocated {
        /// The address, or the physical one for frames.
        addr: u64,
    },
    /// A block starts there, but of another size.
    WrongSize {
        /// The address, or the physical one for frames.
        addr: u64,
        /// The size given, bytes.
        given: u64,
        /// The size it has, bytes.
        allocated: u64,
    },
}

impl fmt::Display for ContigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContigError::Invalid(why) => write!(f, "impossible request: {why}"),
            ContigError::NoMemory => write!(f, "no contiguous memory in the range; widen it, or allow to sleep"),
            ContigError::NoAddressSpace => write!(f, "no kernel address space for the block"),
            ContigError::MayNotSleep(why) => write!(f, "a request that may sleep was made {why}; use NOWAIT"),
            ContigError::NotAllocated { addr } => write!(f, "no contiguous block starts at {addr:#x}"),
            ContigError::WrongSize { addr, given, allocated } => {
                write!(f, "the contiguous block at {addr:#x} has size {allocated:#x}, freed with size {given:#x}")
            }
        }
    }
}

impl core::error::Error for ContigError {}

/// Events and sums of a [`Contig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ContigCounts {
    /// Blocks that were handed out, and taken back.
    pub allocs: u64,
    /// See [`ContigCounts::allocs`].
    pub frees: u64,
    /// Requests that were not met, for any reason but an impossible request.
    pub fails: u64,
    /// Frames handed out now.
    pub pages_in_use: u64,
    /// Frames whose contents were dropped for a run.
    pub evicted: u64,
    /// Frames that were written to disk for a run.
    pub laundered: u64,
    /// Frames whose contents were moved for a run.
    pub relocated: u64,
    /// Runs that were chosen and then could not be had.
    pub abandoned: u64,
}

struct Counters {
    allocs: AtomicU64,
    frees: AtomicU64,
    fails: AtomicU64,
    pages_in_use: AtomicU64,
    evicted: AtomicU64,
    laundered: AtomicU64,
    relocated: AtomicU64,
    abandoned: AtomicU64,
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// A contiguous block as found from an address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContigBlock {
    /// First address, as mapped.
    pub addr: usize,
    /// Its frames.
    pub run: FrameRun,
    /// Who allocated it.
    pub type_id: TypeId,
}

/// contigmalloc(9): blocks of memory that is contiguous for devices, from the owner of the page frames.
pub struct Contig<'a, P: Platform, F: Frames> {
    system: &'a System<P>,
    frames: &'a F,
    counters: Counters,
    /// Names requests while they gather frames.
    requests: AtomicU64,
}

impl<'a, P: Platform, F: Frames> Contig<'a, P, F> {
    const PAGE: u64 = 1 << P::PAGE_SHIFT;

    /// Contiguous memory of these frames, counted in the types of that allocator. One per owner of frames: the words
    /// are its own.
    #[must_use]
    pub const fn new(system: &'a System<P>, frames: &'a F) -> Self {
        Contig { system, frames, counters: Counters::new(), requests: AtomicU64::new(0) }
    }

    /// Allocates and maps a block. Its size is rounded up to whole pages, its address is page aligned. It is counted
    /// under the type, as rounded, and goes back by [`Contig::free`] or, once [attached](System::attach_outside), by
    /// free(9). May sleep if the request says so; never retries for ever: unlike malloc(9) a request that may sleep
    /// can fail.
    ///
    /// # Errors
    /// [`ContigError::Invalid`], [`ContigError::NoMemory`], [`ContigError::NoAddressSpace`],
    /// [`ContigError::MayNotSleep`]. Whatever the error, everything is as it was, but for what reclaiming has done.
    #[doc(alias = "contigmalloc")]
    pub fn alloc(&self, id: TypeId, request: &ContigRequest) -> Result<NonNull<u8>, ContigError> {
        let shape = self.begin(request)?;
        let reserved =
            self.frames.reserve(shape.npages).ok_or(ContigError::NoAddressSpace).or_else(|e| self.fail(id, e))?;
        let Ok(run) = self.gather(&shape, request) else {
            self.frames.unreserve(reserved, shape.npages);
            return self.fail(id, ContigError::NoMemory);
        };
        let addr = self.frames.map(reserved, run).and_then(|addr| NonNull::new(addr as *mut u8));
        let Some(addr) = addr else {
            self.give_back(run);
            self.frames.unreserve(reserved, shape.npages);
            return self.fail(id, ContigError::NoAddressSpace);
        };
        self.hand_out(id, run, request, true);
        Ok(addr)
    }

    /// Allocates frames that are not mapped: for a device's memory that the processor never looks at, or that the
    /// caller maps by himself. The owner's `alloc_contig`. As [`Contig::alloc`] otherwise, and for
    /// [`Contig::free_frames`].
    ///
    /// # Errors
    /// As [`Contig::alloc`], but for the address space.
    #[doc(alias = "vm_page_alloc_contig")]
    #[doc(alias = "alloc_contig")]
    pub fn alloc_frames(&self, id: TypeId, request: &ContigRequest) -> Result<FrameRun, ContigError> {
        let shape = self.begin(request)?;
        match self.gather(&shape, request) {
            Ok(run) => {
                self.hand_out(id, run, request, false);
                Ok(run)
            }
            Err(NoRun) => self.fail(id, ContigError::NoMemory),
        }
    }

    /// Frees what [`Contig::alloc`] returned, with the size that was asked for (or that rounded up). Never sleeps.
    /// The bytes are credited to the type that allocated the block.
    ///
    /// # Errors
    /// [`ContigError::NotAllocated`], [`ContigError::WrongSize`]; nothing has changed.
    ///
    /// # Safety
    /// 1. Nobody uses the block any more, no device either.
    #[doc(alias = "contigfree")]
    pub unsafe fn free(&self, block: *mut u8, size_bytes: usize) -> Result<(), ContigError> {
        self.free_mapped(block as usize, Some(size_bytes))
    }

    /// Frees what [`Contig::alloc_frames`] returned. Never sleeps.
    ///
    /// # Errors
    /// [`ContigError::NotAllocated`] for what is no such block (or a mapped one), [`ContigError::WrongSize`]; nothing
    /// has changed.
    #[doc(alias = "release_contig")]
    pub fn free_frames(&self, run: FrameRun) -> Result<(), ContigError> {
        let addr = run.first.0 << P::PAGE_SHIFT;
        let (id, npages) =
            match self.is_ours(run.first).then(|| role(self.frames.word(run.first).load(Ordering::Acquire))) {
                Some(Role::First { npages, id, mapped: false }) => (id, npages),
                _ => return Err(ContigError::NotAllocated { addr }),
            };
        if npages != run.npages {
            let bytes = |pages: usize| (pages as u64) << P::PAGE_SHIFT;
            return Err(ContigError::WrongSize { addr, given: bytes(run.npages), allocated: bytes(npages) });
        }
        if !self.claim_block(run, id, false) {
            return Err(ContigError::NotAllocated { addr });
        }
        self.take_back(run, id);
        Ok(())
    }

    /// The block that an address lies in, if it lies in a mapped one.
    #[must_use]
    pub fn whatis(&self, addr: usize) -> Option<ContigBlock> {
        let pfn = self.frames.frame_at(addr)?;
        let back = match role(self.frames.word(pfn).load(Ordering::Acquire)) {
            Role::First { mapped: true, .. } => 0,
            Role::Tail { index } => index,
            _ => return None,
        };
        let first = Pfn(pfn.0.checked_sub(back)?);
        let Role::First { npages, id, mapped: true } = role(self.frames.word(first).load(Ordering::Acquire)) else {
            return None;
        };
        let start = (addr & !(Self::PAGE as usize - 1)) - ((back as usize) << P::PAGE_SHIFT);
        Some(ContigBlock { addr: start, run: FrameRun { first, npages }, type_id: id })
    }

    /// The physical address behind an address of a block: what the device is told. vtophys(9).
    #[doc(alias = "vtophys")]
    #[must_use]
    pub fn physical(&self, addr: usize) -> Option<Paddr> {
        let pfn = self.frames.frame_at(addr)?;
        Some(Paddr((pfn.0 << P::PAGE_SHIFT) | (addr as u64 & (Self::PAGE - 1))))
    }

    /// Events and sums.
    #[must_use]
    pub fn counts(&self) -> ContigCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ContigCounts {
            allocs: read(&self.counters.allocs),
            frees: read(&self.counters.frees),
            fails: read(&self.counters.fails),
            pages_in_use: read(&self.counters.pages_in_use),
            evicted: read(&self.counters.evicted),
            laundered: read(&self.counters.laundered),
            relocated: read(&self.counters.relocated),
            abandoned: read(&self.counters.abandoned),
        }
    }

    // ---- allocation, step by step ----

    /// What is refused before anything is touched.
    fn begin(&self, request: &ContigRequest) -> Result<Shape, ContigError> {
        let shape = request.checked(P::PAGE_SHIFT).map_err(ContigError::Invalid)?;
        if request.wait {
            // Also when there is memory: the mistake would show only when there isn't.
            P::may_sleep().map_err(ContigError::MayNotSleep)?;
        }
        Ok(shape)
    }

    fn fail<T>(&self, id: TypeId, error: ContigError) -> Result<T, ContigError> {
        add(&self.counters.fails, 1);
        self.system.fail_outside(id);
        Err(error)
    }

    /// A run of withheld frames, whose words name this request.
    fn gather(&self, shape: &Shape, request: &ContigRequest) -> Result<FrameRun, NoRun> {
        // 61 bits of requests: no name comes twice.
        let held = held_word(self.requests.fetch_add(1, Ordering::Relaxed));
        for again in 0..if request.wait { TRIES } else { 1 } {
            if again != 0 {
                self.frames.wait_for_free();
            }
            for &pass in Pass::allowed(request) {
                if let Some(run) = self.make_pass(shape, pass, held) {
                    return Ok(run);
                }
            }
        }
        Err(NoRun)
    }

    fn make_pass(&self, shape: &Shape, pass: Pass, held: u64) -> Option<FrameRun> {
        let mut refused = Refused::new();
        for _ in 0..=REFUSALS_MAX {
            let run = best_run(self.frames, shape, pass, &refused)?;
            match self.withhold(run, pass, held) {
                Ok(()) => return Some(run),
                Err(pfn) => {
                    add(&self.counters.abandoned, 1);
                    refused.push(pfn);
                }
            }
        }
        None
    }

    /// Withholds every frame of the run, or none; then the one that can't be had is the error.
    fn withhold(&self, run: FrameRun, pass: Pass, held: u64) -> Result<(), Pfn> {
        // What takes no time first, all of it: while the rest is laundered somebody else would have it.
        for step in [Pass::Cached, Pass::Relocate] {
            for pfn in run.frames() {
                // The words of withheld frames tell which of them are ours already; somebody else's frame has another.
                if self.frames.word(pfn).load(Ordering::Relaxed) == held {
                    continue;
                }
                let Some(needs) = Pass::needed(self.frames.usage(pfn)).filter(|&needs| needs <= pass) else {
                    self.let_go(run, held);
                    return Err(pfn);
                };
                if needs > step {
                    continue;
                }
                let (done, counter) = match needs {
                    Pass::Free => (self.frames.take(pfn), None),
                    Pass::Cached => (self.frames.evict(pfn), Some(&self.counters.evicted)),
                    Pass::Launder => (self.frames.launder(pfn), Some(&self.counters.laundered)),
                    Pass::Relocate => (self.frames.relocate(pfn, run), Some(&self.counters.relocated)),
                };
                if !done {
                    self.let_go(run, held);
                    return Err(pfn);
                }
                self.frames.word(pfn).store(held, Ordering::Relaxed);
                if let Some(counter) = counter {
                    add(counter, 1);
                }
            }
        }
        Ok(())
    }

    /// Releases those frames of the run that this request withholds.
    #[cold]
    fn let_go(&self, run: FrameRun, held: u64) {
        for pfn in run.frames() {
            let word = self.frames.word(pfn);
            if word.load(Ordering::Relaxed) == held {
                word.store(0, Ordering::Relaxed);
                self.frames.release(FrameRun { first: pfn, npages: 1 });
            }
        }
    }

    /// The whole run is withheld by us, with whatever words.
    fn give_back(&self, run: FrameRun) {
        for pfn in run.frames() {
            self.frames.word(pfn).store(0, Ordering::Relaxed);
        }
        self.frames.release(run);
    }

    fn hand_out(&self, id: TypeId, run: FrameRun, request: &ContigRequest, mapped: bool) {
        if request.zero {
            run.frames().for_each(|pfn| self.frames.zero(pfn));
        }
        for (index, pfn) in run.frames().enumerate().skip(1) {
            self.frames.word(pfn).store(tail_word(index as u64), Ordering::Relaxed);
        }
        self.frames.word(run.first).store(first_word(run.npages, id, mapped), Ordering::Release);
        self.system.count_outside_alloc(id, run.npages << P::PAGE_SHIFT, request.size_bytes);
        add(&self.counters.allocs, 1);
        add(&self.counters.pages_in_use, run.npages as u64);
    }

    // ---- free ----

    /// The frame has a word: it is in a segment.
    fn is_ours(&self, pfn: Pfn) -> bool {
        (0..).map_while(|index| self.frames.segment(index)).any(|segment| segment.contains(pfn))
    }

    /// `None`: any size will do, the block's own is taken.
    fn free_mapped(&self, addr: usize, size_bytes: Option<usize>) -> Result<(), ContigError> {
        let missing = ContigError::NotAllocated { addr: addr as u64 };
        let block = self.whatis(addr).filter(|block| block.addr == addr).ok_or(missing)?;
        let bytes = block.run.npages << P::PAGE_SHIFT;
        if let Some(given) = size_bytes
            && given.checked_next_multiple_of(Self::PAGE as usize) != Some(bytes)
        {
            return Err(ContigError::WrongSize { addr: addr as u64, given: given as u64, allocated: bytes as u64 });
        }
        if !self.claim_block(block.run, block.type_id, true) {
            return Err(missing);
        }
        self.frames.unmap(addr, block.run.npages);
        self.take_back(block.run, block.type_id);
        Ok(())
    }

    /// Of two who free a block at once, one gets it.
    fn claim_block(&self, run: FrameRun, id: TypeId, mapped: bool) -> bool {
        let word = self.frames.word(run.first);
        word.compare_exchange(first_word(run.npages, id, mapped), 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn take_back(&self, run: FrameRun, id: TypeId) {
        self.give_back(run);
        self.system.count_outside_free(id, run.npages << P::PAGE_SHIFT);
        add(&self.counters.frees, 1);
        self.counters.pages_in_use.fetch_sub(run.npages as u64, Ordering::Relaxed);
    }
}

/// No pass found a run.
struct NoRun;

impl Counters {
    const fn new() -> Counters {
        Counters {
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            fails: AtomicU64::new(0),
            pages_in_use: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            laundered: AtomicU64::new(0),
            relocated: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
        }
    }
}

impl<P: Platform, F: Frames> crate::system::OutsideBlocks for Contig<'_, P, F> {
    unsafe fn free(&self, addr: usize) -> bool {
        self.free_mapped(addr, None).is_ok()
    }

    fn usable_bytes(&self, addr: usize) -> Option<usize> {
        let block = self.whatis(addr).filter(|block| block.addr == addr)?;
        Some(block.run.npages << P::PAGE_SHIFT)
    }
}
