//! The port for a machine with one CPU, flat memory and nothing else: `docs/porting.md`, step by step.
//!
//! All memory is static arrays. The critical section is that of the `critical-section` crate, which masks interrupts on the
//! hardware. Pages cannot be given back, since there is nobody to give them to.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use abi::Header;
use kern::{Boot, Heap, ObjectLayout};
use platform::locks::{CriticalSectionLock, enter_critical, leave_critical};
use platform::{Extent, MisuseReport, Platform, SlotTable};

/// Memory for blocks: as large as the suite needs.
pub(crate) const HEAP_BYTES: usize = 24 << 20;
const META_BYTES: usize = 2 << 20;
const PAGE: usize = 4096;
const LAYOUT: ObjectLayout = ObjectLayout { slots: 2, types: 64, libs: 1 };

#[repr(C, align(4096))]
struct Memory<const BYTES: usize>(UnsafeCell<[u8; BYTES]>);

// SAFETY: each is handed to the allocator, which looks after it.
unsafe impl<const BYTES: usize> Sync for Memory<BYTES> {}

impl<const BYTES: usize> Memory<BYTES> {
    const fn new() -> Self {
        Self(UnsafeCell::new([0; BYTES]))
    }

    fn base(&self) -> usize {
        self.0.get() as usize
    }

    /// The next part of so many bytes, of which `used` are gone.
    fn take(&self, used: &AtomicUsize, bytes: usize) -> Option<Extent> {
        let first = used.load(Ordering::Relaxed);
        let fits = bytes <= BYTES - first;
        fits.then(|| used.store(first + bytes, Ordering::Relaxed));
        fits.then_some(Extent { addr: self.base() + first, bytes })
    }
}

static HEAP: Memory<HEAP_BYTES> = Memory::new();
pub(crate) static HEAP_USED: AtomicUsize = AtomicUsize::new(0);
static WORDS: [AtomicU64; HEAP_BYTES / PAGE] = [const { AtomicU64::new(0) }; HEAP_BYTES / PAGE];
static META: Memory<META_BYTES> = Memory::new();
static META_USED: AtomicUsize = AtomicUsize::new(0);
static STATS: Memory<{ LAYOUT.bytes() }> = Memory::new();
static SLOT: AtomicUsize = AtomicUsize::new(0);

/// Counted by the timer interrupt.
pub(crate) static TICKS: AtomicU64 = AtomicU64::new(0);
/// Set by every interrupt's entry.
pub(crate) static IN_INTERRUPT: AtomicBool = AtomicBool::new(false);
/// What the last misuse was; a firmware would reset.
pub(crate) static MISUSE: platform::Lock<CriticalSectionLock, Option<MisuseReport>> = platform::Lock::new(None);

/// The machine.
pub(crate) struct Board;

// SAFETY: 1. the one slot is whoever's is in the critical section. 2. parts of static arrays, each handed out once. 3. nothing is
// discarded.
unsafe impl Platform for Board {
    type Lock = CriticalSectionLock;

    fn bind_slots(table: SlotTable) {
        SLOT.store(table.slot(0), Ordering::Relaxed);
    }

    fn enter() -> usize {
        enter_critical();
        let slot = SLOT.load(Ordering::Relaxed);
        if slot == 0 {
            // SAFETY: 1. just entered.
            unsafe { leave_critical() };
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
        HEAP.take(&HEAP_USED, want_bytes).or_else(|| HEAP.take(&HEAP_USED, min_bytes))
    }

    fn extend_meta(min_bytes: usize) -> Option<Extent> {
        META.take(&META_USED, min_bytes.next_multiple_of(PAGE))
    }

    unsafe fn discard(_: usize, _: usize) -> bool {
        false
    }

    fn now_ns() -> u64 {
        TICKS.load(Ordering::Relaxed) * 1_000_000
    }

    fn may_sleep() -> Result<(), &'static str> {
        if IN_INTERRUPT.load(Ordering::Relaxed) { Err("in an interrupt") } else { Ok(()) }
    }

    fn wait(word: &AtomicU32, seen: u32) {
        while word.load(Ordering::Acquire) == seen {
            core::hint::spin_loop();
        }
    }

    fn misuse(report: &MisuseReport) {
        *MISUSE.lock() = Some(*report);
    }
}

/// The allocator; in a firmware it is the `#[global_allocator]`.
pub(crate) static ALLOCATOR: Heap<Board, 1024> = Heap::new();

/// Called once at reset, before interrupts are on.
pub(crate) fn init() -> bool {
    let stats = STATS.base() as *mut Header;
    // SAFETY: zeros are a valid header, and nobody else knows it yet.
    unsafe { LAYOUT.write_sections(&mut *stats) };
    let stats = NonNull::new(stats.cast()).expect("a static has an address");
    let boot = Boot { heap_base: HEAP.base(), table: (&raw const WORDS) as usize, ids: 1, rows: 1, stats };
    // SAFETY: 1. at reset, nothing else runs. 2. the arrays above.
    unsafe { ALLOCATOR.system().boot(&boot) }
}
