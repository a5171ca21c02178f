//! The port: all that this kernel gives the allocator. `docs/porting.md` explains each function.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use platform::{Extent, MisuseReport, Platform, SlotTable};

use crate::hotplug::{self, CLAIMED, HELD, word};
use crate::space::{self, HEAP, META, PAGE, WORDS};
use crate::spin::{SpinLock, mask_section, unmask_section};
use crate::{cpu, misuse, numa, sched, warnings};

/// This kernel.
pub(crate) struct Kernel;

static HEAP_END: AtomicUsize = AtomicUsize::new(HEAP);
static META_END: AtomicUsize = AtomicUsize::new(META);

// SAFETY: 1. a slot is a CPU's, and its interrupts are masked; whoever claims it moves there. 2. and 3. see `space`.
unsafe impl Platform for Kernel {
    type Lock = SpinLock;

    fn bind_slots(table: SlotTable) {
        (0..table.ids).for_each(|id| cpu::CPUS[id].slot.store(table.slot(id), Ordering::Relaxed));
    }

    #[inline(always)]
    fn enter() -> usize {
        mask_section();
        let slot = cpu::this().slot.load(Ordering::Relaxed);
        match slot {
            0 => unmask_section(),
            _ => word(slot).store(HELD, Ordering::Relaxed),
        }
        slot
    }

    #[inline(always)]
    unsafe fn leave(slot: usize) {
        let how = word(slot).load(Ordering::Relaxed);
        word(slot).store(0, Ordering::Release);
        unmask_section();
        if how == CLAIMED {
            sched::end_visit();
        }
    }

    unsafe fn claim_shared(slot: usize) {
        mask_section();
        while word(slot).swap(HELD, Ordering::Acquire) != 0 {
            space::answer_shootdown();
        }
    }

    unsafe fn claim_remote(slot: usize) -> bool {
        // SAFETY: 1.
        unsafe { hotplug::claim(slot) }
    }

    fn domain_of_slot(index: usize) -> usize {
        numa::of_cpu(index)
    }

    fn domains() -> usize {
        numa::domains()
    }

    fn place_pages(addr: usize, bytes: usize, domain: usize) {
        space::place(addr, bytes, domain);
    }

    fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent> {
        let addr = HEAP_END.load(Ordering::Relaxed);
        let words = WORDS + (addr - HEAP) / PAGE * 8;
        let has = |&bytes: &usize| space::back(words, bytes / PAGE * 8) && space::back(addr, bytes);
        let bytes = [want_bytes, min_bytes].into_iter().find(has)?;
        HEAP_END.store(addr + bytes, Ordering::Relaxed);
        Some(Extent { addr, bytes })
    }

    fn extend_meta(min_bytes: usize) -> Option<Extent> {
        let (addr, bytes) = (META_END.load(Ordering::Relaxed), min_bytes.next_multiple_of(PAGE));
        space::back(addr, bytes).then(|| META_END.store(addr + bytes, Ordering::Relaxed))?;
        Some(Extent { addr, bytes })
    }

    unsafe fn discard(addr: usize, bytes: usize) -> bool {
        space::unback(addr, bytes);
        true
    }

    unsafe fn populate(addr: usize, bytes: usize) -> bool {
        space::back(addr, bytes)
    }

    fn now_ns() -> u64 {
        cpu::now_ns()
    }

    fn may_sleep() -> Result<(), &'static str> {
        sched::may_sleep()
    }

    fn wait(word: &AtomicU32, seen: u32) {
        sched::wait(word, seen);
    }

    fn wake_all(word: &AtomicU32) {
        sched::wake_all(word);
    }

    fn warning(text: &[u8]) {
        warnings::say(text);
    }

    fn misuse(report: &MisuseReport) {
        misuse::report(report);
    }
}
