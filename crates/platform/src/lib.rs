//! What a process or a kernel must give the allocator, and nothing more.
//!
//! # Rules for every function of [`Platform`]
//!
//! * None may allocate from the allocator, directly or not, and none may unwind.
//! * Unless its text says *may sleep* it can be called wherever the allocator can: inside a critical
//!   section, in an interrupt, with a [`RawLock`] held.
//!
//! # Critical sections
//!
//! The allocator keeps its caches and counters in *slots*. [`Platform::enter`] gives the caller one slot for itself until
//! [`Platform::leave`]. In a kernel a slot is a CPU and the section masks what could re-enter the allocator. In a
//! process a slot is a lock word that belongs to a CPU and is taken by a restartable sequence; a CPU has a few, since
//! the holder of one may be preempted. Either way what runs inside is ordinary code, must be short, and may take a
//! [`RawLock`] only where the allocator's text says so.
#![no_std]

#[cfg(feature = "fake")]
extern crate std;

use core::sync::atomic::AtomicU32;

mod lock;
mod phys;
pub use lock::{Lock, LockGuard, RawLock};
pub use phys::{FrameRun, FrameUse, Frames, Paddr, Pfn};
#[cfg(any(feature = "lock_api", feature = "critical-section"))]
pub mod locks;

#[cfg(feature = "fake")]
pub mod fake;
#[cfg(feature = "fake")]
pub mod fake_frames;

/// Where the slots are: `ids * rows` of them plus one that all share, `stride_bytes` apart.
///
/// Slot `row * ids + id` belongs to CPU identity `id`; the last belongs to whoever found no other.
#[derive(Clone, Copy, Debug)]
pub struct SlotTable {
    /// Address of the first slot. The first 64 bits of each are the platform's, zero when the slot is free.
    pub base: usize,
    /// From one slot to the next.
    pub stride_bytes: usize,
    /// CPU identities.
    pub ids: usize,
    /// Slots per identity.
    pub rows: usize,
}

impl SlotTable {
    /// Slots, the shared one included.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.ids * self.rows + 1
    }

    /// Address of a slot.
    #[must_use]
    pub const fn slot(&self, index: usize) -> usize {
        self.base + index * self.stride_bytes
    }
}

/// New memory for the heap or for the allocator's own records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First address, page aligned.
    pub addr: usize,
    /// Bytes, a multiple of the page size.
    pub bytes: usize,
}

/// What pages are beside readable and writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageKind {
    /// Code in them can run.
    pub executable: bool,
    /// They are part of a core; a hint.
    pub dumped: bool,
}

impl PageKind {
    /// As pages are unless told otherwise.
    pub const ORDINARY: Self = Self { executable: false, dumped: true };
}

/// What was wrong with a pointer given back, or with memory looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misuse {
    /// The item is free already.
    DuplicateFree,
    /// Inside the heap, but no block starts there and none contains it.
    InvalidFree,
    /// Inside a block, not at its start.
    UnalignedFree,
    /// Not an address of this heap.
    ForeignFree,
    /// A live item, but of another zone than the one it was given to.
    WrongZone,
    /// A block was given back with another size than it was asked for (kmem(9)).
    WrongSize {
        /// Bytes that the caller says it has.
        given: usize,
        /// Bytes that were asked for; `None` when the record of them was overwritten, or was never made because the block
        /// did not come from kmem(9).
        asked: Option<usize>,
    },
    /// Memory was asked for with permission to sleep where that is not allowed; what forbids it.
    MaySleep(&'static str),
    /// What was given as a malloc type is none: its magic word is wrong. The address is that of the supposed type.
    BadType,
    /// A malloc type was attached that is attached already, or detached that is not. The address is the type's.
    TypeList,
    /// A request for no bytes where that makes no sense (kmem(9)), or for a number of bytes that no computer has.
    BadRequest,
}

/// A misuse, with all that is known of the address. Addresses of code are as the program sees them.
#[derive(Clone, Copy, Debug)]
pub struct MisuseReport {
    /// What happened.
    pub what: Misuse,
    /// The pointer given.
    pub addr: usize,
    /// Start of the block that contains it, or 0.
    pub item: usize,
    /// Bytes of that block as served, or 0.
    pub item_bytes: usize,
    /// The type that allocated the block (live or, for a duplicate free, last), or `None`.
    pub type_index: Option<u16>,
    /// Return address of the call that misuses, or 0.
    pub caller: usize,
    /// Return address of the call that freed the block before, or 0.
    pub freed_by: usize,
    /// Name of the zone that the item belongs to, NUL-terminated; all zeros when it is none of a zone's.
    pub zone_name: [u8; 32],
}

/// The port contract. Zero-sized: all is associated functions, so that everything inlines.
///
/// # Safety
/// 1. [`enter`](Self::enter) gives a slot to one caller at a time, until it calls [`leave`](Self::leave); what a
///    holder wrote is visible to the next.
/// 2. Memory from the `extend` functions is unused by anyone else, zero, writable and stays so.
/// 3. After [`discard`](Self::discard) the pages read as zero or keep their contents; after `true`, zero.
pub unsafe trait Platform: Sized + Send + Sync + 'static {
    /// A lock that is safe against everything that may call the allocator.
    type Lock: RawLock;
    /// log2 of the page size.
    const PAGE_SHIFT: u32 = 12;

    /// Tells the port where the slots are. Called once, before the first [`enter`](Self::enter) that may succeed.
    fn bind_slots(table: SlotTable);

    /// Takes a slot of the CPU we run on and returns its address, or 0 when that cannot be had at once (taken by a
    /// preempted holder, CPU unknown, not bound yet). Never waits. On the fast path of everything: inline it, and leave
    /// what is rare to [`enter_other`](Self::enter_other).
    fn enter() -> usize;

    /// After [`enter`](Self::enter) gave 0: another slot of this CPU, or 0 when all are taken or nothing is bound yet.
    fn enter_other() -> usize {
        0
    }

    /// Gives a slot back.
    ///
    /// # Safety
    /// 1. `slot` is held by the caller, from [`enter`](Self::enter) or one of the `claim` functions.
    unsafe fn leave(slot: usize);

    /// Takes the shared slot, waiting for its holder. Used when [`enter`](Self::enter) fails.
    ///
    /// # Safety
    /// 1. `slot` is the last of the bound table.
    unsafe fn claim_shared(slot: usize);

    /// Takes any slot, from whichever CPU we run on, waiting for its holder; never called while holding one, except
    /// by a caller that takes them all in index order. False where the port cannot.
    ///
    /// # Safety
    /// 1. `slot` is one of the bound table.
    unsafe fn claim_remote(slot: usize) -> bool;

    /// Takes every slot of the table, as [`claim_remote`](Self::claim_remote) does; the caller holds none. For fork(2), which
    /// kernels have no use for. False, with none taken, where the port cannot.
    ///
    /// # Safety
    /// 1. `table` is the bound one.
    unsafe fn claim_all(table: &SlotTable) -> bool {
        for index in 0..table.count() {
            // SAFETY: 1., each slot is one of the table.
            if unsafe { !Self::claim_remote(table.slot(index)) } {
                // SAFETY: 1. claimed just now.
                (0..index).for_each(|taken| unsafe { Self::leave(table.slot(taken)) });
                return false;
            }
        }
        true
    }

    /// NUMA domain of a slot's CPU, below [`domains`](Self::domains).
    fn domain_of_slot(_index: usize) -> usize {
        0
    }

    /// NUMA domains, at least one; constant.
    fn domains() -> usize {
        1
    }

    /// Asks that the memory behind fresh pages of the heap come from a domain. A hint: without it the first touch decides.
    fn place_pages(_addr: usize, _bytes: usize, _domain: usize) {}

    /// Says something to whoever watches the console: one line of text, without the newline.
    fn warning(_text: &[u8]) {}

    /// Grows the heap by at least `min_bytes`, by `want_bytes` if that can be had; the table word of every new page
    /// becomes accessible (and zero) as well. `None` when the system has no more.
    fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent>;

    /// Grows the region of the allocator's own records.
    fn extend_meta(min_bytes: usize) -> Option<Extent>;

    /// Gives the memory behind pages of the heap back to the system, keeping the addresses. False, with nothing changed, where the
    /// port has nobody to give it to.
    ///
    /// # Safety
    /// 1. The pages are the heap's and free.
    unsafe fn discard(_addr: usize, _bytes: usize) -> bool {
        false
    }

    /// The same for whole pages of the heap's table, of which every word is zero. They must read as zero afterwards, at any time and without
    /// [`populate`](Self::populate), and take what is written to them.
    ///
    /// # Safety
    /// 1. The pages are the table's, and their words are zero.
    unsafe fn discard_table(_addr: usize, _bytes: usize) {}

    /// Sees to it that there is memory behind pages of the heap that were [discarded](Self::discard), before they are
    /// handed out again; they read as zero. False when the system has no more: the request fails then. A port whose
    /// pages come back by themselves when touched has nothing to do here.
    ///
    /// # Safety
    /// 1. The pages are the heap's, and the caller's alone.
    unsafe fn populate(_addr: usize, _bytes: usize) -> bool {
        true
    }

    /// Makes pages of the heap of a kind. False, with nothing changed, where the port cannot; back to
    /// [`PageKind::ORDINARY`] it always can.
    ///
    /// # Safety
    /// 1. The pages are the heap's, and the caller's alone.
    unsafe fn set_page_kind(_addr: usize, _bytes: usize, kind: PageKind) -> bool {
        !kind.executable
    }

    /// Moves the memory behind `from` to `to` without copying; afterwards `from` reads as zero. False, with nothing
    /// changed, where the port cannot.
    ///
    /// # Safety
    /// 1. Both ranges are the heap's, whole pages, disjoint; nobody else touches them.
    unsafe fn move_pages(_from: usize, _to: usize, _bytes: usize) -> bool {
        false
    }

    /// Monotonic time, nanoseconds.
    fn now_ns() -> u64;

    /// Whether the caller may sleep: no interrupt, no critical section, no lock held. What forbids it otherwise, in a word or
    /// two for the report: the names of the locks held, where the port knows them (WITNESS). A caller who asks for memory with permission to sleep is held to it here even when there
    /// is memory.
    fn may_sleep() -> Result<(), &'static str> {
        Ok(())
    }

    /// Whether the caller is an interrupt handler. Never in a process.
    fn in_interrupt() -> bool {
        false
    }

    /// Sleeps until [`wake_all`](Self::wake_all) is called for `word`; returns at once when `word` has another value than
    /// `seen`, and may return early. *May sleep*: called with no slot and no [`RawLock`] held. A futex wait, or a sleep queue
    /// whose lock guards the comparison. Without one of its own a port polls.
    fn wait(_word: &AtomicU32, _seen: u32) {
        core::hint::spin_loop();
    }

    /// Wakes everybody who sleeps on `word`, whose value was changed before.
    fn wake_all(_word: &AtomicU32) {}

    /// A request is about to fail for want of memory (a process sets `errno`).
    fn out_of_memory() {}

    /// Reports a misuse. Returns if the program is to go on, in which case the call that misused has no effect.
    fn misuse(report: &MisuseReport);
}
