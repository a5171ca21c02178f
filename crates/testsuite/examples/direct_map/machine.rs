//! The kernel around the port, played by this process: a piece of memory for all there is, threads for CPUs.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::alloc::Layout;
use std::cell::Cell;
use std::sync::{Condvar, LazyLock, Mutex};
use std::time::Instant;

use lock_api::{GuardSend, RawMutex};
use platform::MisuseReport;

pub(crate) const CPUS: usize = 3;
pub(crate) const FRAME: usize = 4096;
const MEMORY_BYTES: usize = 96 << 20;

/// A spin lock as kernels have them; the masking is left out, for threads have no interrupts.
pub(crate) struct IrqMutex(AtomicBool);

// SAFETY: one thread at a time passes the swap from false.
unsafe impl RawMutex for IrqMutex {
    const INIT: Self = Self(AtomicBool::new(false));
    type GuardMarker = GuardSend;

    fn lock(&self) {
        while !self.try_lock() {
            relax();
        }
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Acquire)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// All memory, and which frames are taken. One in 4000 is a device's from the start, so that the heap has holes.
struct Frames {
    base: usize,
    taken: Mutex<Vec<bool>>,
}

static FRAMES: LazyLock<Frames> = LazyLock::new(|| {
    let layout = Layout::from_size_align(MEMORY_BYTES, FRAME).unwrap();
    // SAFETY: the size is not zero. The memory is never given back.
    let base = unsafe { std::alloc::alloc_zeroed(layout) } as usize;
    let count = MEMORY_BYTES / FRAME;
    Frames { base, taken: Mutex::new((0..count).map(|frame| frame % 4000 == 100).collect()) }
});

pub(crate) fn memory_base() -> usize {
    FRAMES.base
}

pub(crate) fn memory_bytes() -> usize {
    MEMORY_BYTES
}

/// Frames that may still be had.
static BUDGET: AtomicUsize = AtomicUsize::new(usize::MAX);

/// From now on so many frames can be had at most; all there are with `None`.
pub(crate) fn limit(frames: Option<usize>) {
    BUDGET.store(frames.unwrap_or(usize::MAX), Ordering::Relaxed);
}

/// The lowest run of so many free frames at or above an address.
pub(crate) fn frames_above(addr: usize, count: usize) -> Option<usize> {
    let mut taken = FRAMES.taken.lock().unwrap();
    let budget = BUDGET.load(Ordering::Relaxed);
    if budget < count {
        return None;
    }
    let from = addr.saturating_sub(FRAMES.base) / FRAME;
    let mut free = 0;
    for frame in from..taken.len() {
        free = if taken[frame] { 0 } else { free + 1 };
        if free == count {
            let first = frame + 1 - count;
            taken[first..=frame].fill(true);
            if budget != usize::MAX {
                BUDGET.store(budget - count, Ordering::Relaxed);
            }
            return Some(FRAMES.base + first * FRAME);
        }
    }
    None
}

std::thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
}

pub(crate) fn cpu() -> usize {
    CPU.get()
}

pub(crate) fn set_cpu(cpu: usize) {
    CPU.set(cpu);
}

pub(crate) fn mask_interrupts() {}

pub(crate) fn unmask_interrupts() {}

/// Waits a moment; the holder of what we wait for may be a thread that does not run.
pub(crate) fn relax() {
    std::thread::yield_now();
}

pub(crate) fn nanoseconds() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}

static SLEEPERS: Mutex<()> = Mutex::new(());
static WOKEN: Condvar = Condvar::new();

pub(crate) fn sleep_while(word: &AtomicU32, seen: u32) {
    let mut asleep = SLEEPERS.lock().unwrap();
    while word.load(Ordering::SeqCst) == seen {
        asleep = WOKEN.wait(asleep).unwrap();
    }
}

pub(crate) fn wake(_: &AtomicU32) {
    drop(SLEEPERS.lock().unwrap());
    WOKEN.notify_all();
}

static MISUSE: Mutex<Option<MisuseReport>> = Mutex::new(None);

pub(crate) fn record(report: &MisuseReport) {
    *MISUSE.lock().unwrap() = Some(*report);
}

pub(crate) fn take_misuse() -> Option<MisuseReport> {
    MISUSE.lock().unwrap().take()
}
