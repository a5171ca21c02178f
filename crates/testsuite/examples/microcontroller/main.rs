//! The microcontroller's port under the suite. The machine is played by this process: whoever is in the critical section (a
//! mutex here) is what the one CPU runs.

#[path = "../../tests/common/mod.rs"]
mod common;
mod port;

use core::fmt::Arguments;
use core::sync::atomic::{AtomicU64, Ordering};

use kern::System;
use kernmalloc_testsuite::no_frames::NoFrames;
use kernmalloc_testsuite::{Host, Outcome};
use platform::locks::CriticalSectionLock;
use platform::{Lock, MisuseReport, Platform as _};
use port::{ALLOCATOR, Board, HEAP, HEAP_BYTES};

/// Counted by the timer interrupt.
static TICKS: AtomicU64 = AtomicU64::new(0);
/// What the last misuse was; a firmware would reset.
static MISUSE: Lock<CriticalSectionLock, Option<MisuseReport>> = Lock::new(None);

fn now_ns() -> u64 {
    TICKS.load(Ordering::Relaxed) * 1_000_000
}

/// Set by every interrupt's entry; here threads play the interrupts.
fn in_interrupt() -> bool {
    false
}

fn fault(report: &MisuseReport) {
    *MISUSE.lock() = Some(*report);
}

struct Process;

impl Host for Process {
    type P = Board;
    type Frames = NoFrames;

    fn system(&self) -> &System<Board> {
        ALLOCATOR.system()
    }

    fn cpus(&self) -> usize {
        1
    }

    fn threads(&self, count: usize, body: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome {
        common::threads(count, body, &|_, body| body())
    }

    fn interrupted(&self, handler: &(dyn Fn() + Sync), body: &mut dyn FnMut() -> Outcome) -> Outcome {
        common::interrupted(1, handler, body, &|_, body| body())
    }

    fn has_interrupts(&self) -> bool {
        false
    }

    fn yield_now(&self) {
        TICKS.fetch_add(1, Ordering::Relaxed);
        std::thread::yield_now();
    }

    /// Somebody else takes all of the array but so much, for good.
    fn limit_memory(&self, pages: Option<usize>) -> bool {
        if let Some(pages) = pages {
            HEAP.1.fetch_max(HEAP_BYTES - pages * 4096, Ordering::Relaxed);
        }
        true
    }

    fn gives_pages_back(&self) -> bool {
        false
    }

    fn expect_misuse(&self, _: bool) {}

    fn take_misuse(&self) -> Option<MisuseReport> {
        MISUSE.lock().take()
    }

    fn effort(&self) -> usize {
        common::EFFORT
    }

    fn print(&self, line: Arguments<'_>) {
        println!("{line}");
    }
}

fn main() {
    // What is allocated before `init` comes from the early heap, and may be freed at any time after.
    let layout = core::alloc::Layout::new::<[u64; 4]>();
    // SAFETY: the layout is not of size 0; the block is freed below with the same.
    let early = unsafe { core::alloc::GlobalAlloc::alloc(&ALLOCATOR, layout) };
    assert!(!early.is_null() && ALLOCATOR.early_bytes() >= 32);
    assert!(port::init());
    // SAFETY: from `alloc` with this layout.
    unsafe { core::alloc::GlobalAlloc::dealloc(&ALLOCATOR, early, layout) };
    assert!(MISUSE.lock().is_none(), "an early block is not known any more");
    common::main(&Process);
    // The array ends, and that is an answer like any other.
    let id = kern::TypeId::MALLOC;
    let taken = (0..).take_while(|_| !ALLOCATOR.system().alloc(1 << 20, id).is_null()).count();
    assert!((1..HEAP_BYTES >> 20).contains(&taken), "{taken} MiB of {} could be had", HEAP_BYTES >> 20);
    assert_eq!(Board::extend_heap(HEAP_BYTES, HEAP_BYTES), None);
}
