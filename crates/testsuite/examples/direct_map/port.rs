//! The port for a kernel that has a frame allocator, all memory mapped, and a mutex of the `lock_api` crate.
//!
//! The heap's addresses are those of the direct map, from its beginning: frames of others are holes in it. Frames stay
//! with the heap once they are part of it, since without mappings of their own they could not come back to the same address.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use abi::Header;
use kern::{Boot, ObjectLayout, System};
use platform::locks::LockApi;
use platform::{Extent, MisuseReport, Platform, SlotTable};

use crate::machine::{self, CPUS, FRAME, IrqMutex};

static HEAP_END: AtomicUsize = AtomicUsize::new(0);
static SLOTS: AtomicUsize = AtomicUsize::new(0);
const STRIDE: usize = kern::SLOT_STRIDE_BYTES;

/// The kernel.
pub(crate) struct Kernel;

/// The word of a slot.
fn word(slot: usize) -> &'static AtomicU32 {
    // SAFETY: the first word of a slot is the port's, and slots stay.
    unsafe { AtomicU32::from_ptr(slot as *mut u32) }
}

fn spin_for(slot: usize) {
    machine::mask_interrupts();
    while word(slot).swap(1, Ordering::Acquire) != 0 {
        machine::relax();
    }
}

// SAFETY: 1. a slot's word is taken by an atomic exchange, with interrupts masked. 2. frames that the frame allocator has given to us
// for good. 3. nothing is discarded.
unsafe impl Platform for Kernel {
    type Lock = LockApi<IrqMutex>;

    fn bind_slots(table: SlotTable) {
        SLOTS.store(table.base, Ordering::Relaxed);
    }

    fn enter() -> usize {
        let slots = SLOTS.load(Ordering::Relaxed);
        if slots == 0 {
            return 0;
        }
        machine::mask_interrupts();
        let slot = slots + machine::cpu() * STRIDE;
        if word(slot).swap(1, Ordering::Acquire) != 0 {
            machine::unmask_interrupts();
            return 0;
        }
        slot
    }

    unsafe fn leave(slot: usize) {
        word(slot).store(0, Ordering::Release);
        machine::unmask_interrupts();
    }

    unsafe fn claim_shared(slot: usize) {
        spin_for(slot);
    }

    unsafe fn claim_remote(slot: usize) -> bool {
        spin_for(slot);
        true
    }

    fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent> {
        // Extents come in rising order.
        let above = HEAP_END.load(Ordering::Relaxed);
        let run = |bytes| Some((machine::frames_above(above, bytes / FRAME)?, bytes));
        let (addr, bytes) = run(want_bytes).or_else(|| run(min_bytes))?;
        HEAP_END.store(addr + bytes, Ordering::Relaxed);
        Some(Extent { addr, bytes })
    }

    fn extend_meta(min_bytes: usize) -> Option<Extent> {
        let bytes = min_bytes.next_multiple_of(FRAME);
        Some(Extent { addr: machine::frames_above(0, bytes / FRAME)?, bytes })
    }

    fn now_ns() -> u64 {
        machine::nanoseconds()
    }

    fn wait(word: &AtomicU32, seen: u32) {
        machine::sleep_while(word, seen);
    }

    fn wake_all(word: &AtomicU32) {
        machine::wake(word);
    }

    fn misuse(report: &MisuseReport) {
        machine::record(report);
    }
}

/// The allocator.
pub(crate) static SYSTEM: System<Kernel> = System::new();

/// Called once by the first CPU, when the frame allocator works.
pub(crate) fn init() -> bool {
    let layout = ObjectLayout { slots: CPUS + 1, types: 64, libs: 1 };
    let words = machine::memory_bytes() / FRAME * 8;
    let (Some(stats), Some(table)) =
        (machine::frames_above(0, layout.bytes().div_ceil(FRAME)), machine::frames_above(0, words.div_ceil(FRAME)))
    else {
        return false;
    };
    let Some(stats) = NonNull::new(stats as *mut Header) else { return false };
    // SAFETY: fresh frames of zeros, which are a valid header.
    unsafe { layout.write_sections(&mut *stats.as_ptr()) };
    let boot = Boot { heap_base: machine::memory_base(), table, ids: CPUS, rows: 1, stats: stats.cast() };
    // SAFETY: 1. one CPU runs. 2. all memory is mapped from its base, and has its words.
    unsafe { SYSTEM.boot(&boot) }
}
