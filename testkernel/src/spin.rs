//! Masking interrupts, and the lock that does.

use core::sync::atomic::{AtomicBool, Ordering};

use platform::RawLock;

use crate::{breaks, cpu, space};

/// Masks interrupts on this CPU until as many calls of [`unmask`]; FreeBSD's `spinlock_enter`. The count belongs to the CPU, so that
/// locks may be given back in any order.
#[inline]
pub(crate) fn mask() {
    let enabled = cpu::interrupts_off();
    let cpu = cpu::this();
    let depth = cpu.masks.load(Ordering::Relaxed);
    if depth == 0 {
        cpu.unmask_to.store(enabled, Ordering::Relaxed);
    }
    cpu.masks.store(depth + 1, Ordering::Relaxed);
}

/// Takes one [`mask`] back.
#[inline]
pub(crate) fn unmask() {
    let cpu = cpu::this();
    let depth = cpu.masks.load(Ordering::Relaxed) - 1;
    cpu.masks.store(depth, Ordering::Relaxed);
    if depth == 0 && cpu.unmask_to.load(Ordering::Relaxed) {
        cpu::interrupts_on();
    }
}

/// What a section of the allocator does: [`mask`].
#[inline]
pub(crate) fn mask_section() {
    if !breaks::NO_SECTION_MASK.load(Ordering::Relaxed) {
        mask();
    }
}

/// And [`unmask`].
#[inline]
pub(crate) fn unmask_section() {
    if !breaks::NO_SECTION_MASK.load(Ordering::Relaxed) {
        unmask();
    }
}

/// A spin lock that masks interrupts. While it waits it answers requests to forget mappings, since whoever holds the
/// lock may be waiting for this CPU to do so.
pub(crate) struct SpinLock(AtomicBool);

// SAFETY: one CPU at a time passes the swap from false, and nothing else runs on it until it unlocks.
unsafe impl RawLock for SpinLock {
    const INIT: Self = Self(AtomicBool::new(false));

    #[inline]
    fn lock(&self) {
        while !self.try_lock() {
            space::answer_shootdown();
            core::hint::spin_loop();
        }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        mask();
        if !self.0.swap(true, Ordering::Acquire) || breaks::is_broken(self) {
            return true;
        }
        unmask();
        false
    }

    #[inline]
    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Release);
        unmask();
    }
}
