//! The port for a microcontroller: one CPU, interrupts that can be masked, memory that is two static arrays and stays what it is. What
//! else a firmware has, a timer and a place for faults to go, is `crate`'s.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use kern::{Boot, Heap, ObjectLayout};
use platform::locks::{CriticalSectionLock, enter_critical, leave_critical};
use platform::{Extent, MisuseReport, Platform, SlotTable};

const PAGE: usize = 4096;
/// Memory for blocks: as large as the suite needs.
pub(crate) const HEAP_BYTES: usize = 24 << 20;
/// For the allocator's records.
const META_BYTES: usize = 2 << 20;
/// Two slots: the CPU's, and the one that all share.
const LAYOUT: ObjectLayout = ObjectLayout { slots: 2, types: 64, libs: 1 };

/// A static array of zeros, handed out from its beginning.
#[repr(C, align(4096))]
pub(crate) struct Region<const BYTES: usize>(UnsafeCell<[u8; BYTES]>, pub(crate) AtomicUsize);

// SAFETY: what `take` hands out is its caller's alone, and nobody else touches the array.
unsafe impl<const BYTES: usize> Sync for Region<BYTES> {}

impl<const BYTES: usize> Region<BYTES> {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; BYTES]), AtomicUsize::new(0))
    }

    fn base(&self) -> usize {
        self.0.get() as usize
    }

    /// The next `bytes`. Called by one caller at a time.
    fn take(&self, bytes: usize) -> Option<Extent> {
        let used = self.1.load(Ordering::Relaxed);
        let end = used.checked_add(bytes).filter(|end| *end <= BYTES)?;
        self.1.store(end, Ordering::Relaxed);
        Some(Extent { addr: self.base() + used, bytes })
    }
}

pub(crate) static HEAP: Region<HEAP_BYTES> = Region::new();
static WORDS: Region<{ HEAP_BYTES / PAGE * 8 }> = Region::new();
static META: Region<META_BYTES> = Region::new();
static STATS: Region<{ LAYOUT.bytes() }> = Region::new();
/// Address of the CPU's slot, 0 before boot.
static SLOT: AtomicUsize = AtomicUsize::new(0);

/// The machine.
pub(crate) struct Board;

// SAFETY: 1. whoever is in the critical section is alone. 2. parts of static arrays, each handed out once. 3. nothing is discarded.
unsafe impl Platform for Board {
    type Lock = CriticalSectionLock;

    fn bind_slots(table: SlotTable) {
        SLOT.store(table.slot(0), Ordering::Relaxed);
    }

    fn enter() -> usize {
        let slot = SLOT.load(Ordering::Relaxed);
        if slot != 0 {
            enter_critical();
        }
        slot
    }

    unsafe fn leave(_: usize) {
        // SAFETY: 1. the caller has entered.
        unsafe { leave_critical() };
    }

    unsafe fn claim_shared(_: usize) {
        enter_critical();
    }

    unsafe fn claim_remote(_: usize) -> bool {
        enter_critical();
        true
    }

    fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent> {
        HEAP.take(want_bytes).or_else(|| HEAP.take(min_bytes))
    }

    fn extend_meta(min_bytes: usize) -> Option<Extent> {
        META.take(min_bytes.next_multiple_of(PAGE))
    }

    fn now_ns() -> u64 {
        crate::now_ns()
    }

    fn may_sleep() -> Result<(), &'static str> {
        if crate::in_interrupt() { Err("in an interrupt") } else { Ok(()) }
    }

    fn misuse(report: &MisuseReport) {
        crate::fault(report);
    }
}

/// The allocator; in a firmware it is the `#[global_allocator]`.
pub(crate) static ALLOCATOR: Heap<Board, 1024> = Heap::new();

/// Called once at reset, before interrupts are on. False when the arrays are too small.
pub(crate) fn init() -> bool {
    let Some(stats) = NonNull::new(STATS.0.get().cast::<u8>()) else { return false };
    // SAFETY: zeros are a valid header, and nobody else knows it yet.
    LAYOUT.write_sections(unsafe { stats.cast().as_mut() });
    let boot = Boot { heap_base: HEAP.base(), table: WORDS.base(), ids: 1, rows: 1, stats };
    // SAFETY: 1. at reset, nothing else runs. 2. the arrays above.
    unsafe { ALLOCATOR.system().boot(&boot) }
}
