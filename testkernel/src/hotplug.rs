//! CPUs that leave and come back.
//!
//! A CPU that is to leave runs no thread any more: its scheduler takes none, and threads bound to it may run elsewhere. From
//! its idle loop, where it holds nothing, it takes itself out of shootdowns and sleeps with all interrupts held back but
//! one. Then the allocator is told, and gives what the CPU's caches hold to the others. When it comes back it forgets every
//! mapping first, since nobody told it of changes.
//!
//! What others may do to its slot meanwhile, [`claim`] says.

use core::sync::atomic::{AtomicU32, Ordering};

use platform::Platform as _;

use crate::port::Kernel;
use crate::spin::{mask, mask_section, unmask, unmask_section};
use crate::{cpu, interrupts, sched, space, start};

/// [`cpu::Cpu::power`]: takes part in everything.
pub(crate) const ONLINE: u32 = 0;
/// Asked to go.
const LEAVING: u32 = 1;
/// Gone.
const PARKED: u32 = 2;
/// Asked to come back.
const RETURNING: u32 = 3;

/// What the first word of a slot says of its holder: that it needs nothing undone, or came to this CPU to claim it.
pub(crate) const HELD: u32 = 1;
/// See [`HELD`].
pub(crate) const CLAIMED: u32 = 2;

/// The word of a slot.
pub(crate) fn word(slot: usize) -> &'static AtomicU32 {
    // SAFETY: the first word of a slot is the port's, and slots stay.
    unsafe { AtomicU32::from_ptr(slot as *mut u32) }
}

/// Whether a CPU runs threads.
pub(crate) fn is_online(cpu: usize) -> bool {
    cpu::CPUS[cpu].power.load(Ordering::SeqCst) == ONLINE
}

fn ask(cpu: usize, from: u32, to: u32, until: u32) -> bool {
    let power = &cpu::CPUS[cpu].power;
    if power.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        return false;
    }
    interrupts::send_others(if to == LEAVING { interrupts::RESCHEDULE } else { interrupts::WAKE });
    while power.load(Ordering::SeqCst) != until {
        sched::yield_now();
    }
    true
}

/// Sends a CPU away and has its caches emptied. False when it is away already, and for the first, which keeps the clock. *May sleep.*
pub(crate) fn offline(cpu: usize) -> bool {
    cpu != 0 && ask(cpu, ONLINE, LEAVING, PARKED) && start::system().cpu_offline(cpu)
}

/// Has a CPU back. False when it is not away. *May sleep.*
pub(crate) fn online(cpu: usize) -> bool {
    ask(cpu, PARKED, RETURNING, ONLINE)
}

/// In the idle loop: goes, if asked to, and returns when asked back.
pub(crate) fn leave_if_asked() {
    let own = cpu::this();
    if own.power.load(Ordering::SeqCst) != LEAVING {
        return;
    }
    mask();
    space::set_attending(false);
    interrupts::hold_back(true);
    own.power.store(PARKED, Ordering::SeqCst);
    while own.power.load(Ordering::SeqCst) != RETURNING {
        cpu::wait_for_interrupt();
        cpu::interrupts_off();
    }
    space::set_attending(true);
    cpu::forget_all();
    interrupts::hold_back(false);
    // From here on who claims our slot comes here to do so; who has claimed it before is waited for.
    own.power.store(ONLINE, Ordering::SeqCst);
    while word(own.slot.load(Ordering::Relaxed)).load(Ordering::SeqCst) != 0 {
        space::answer_shootdown();
    }
    unmask();
}

/// Takes a slot from wherever the caller runs: goes to the CPU whose it is and masks there; or, where no CPU enters it (the shared one, or
/// that of a CPU which is away), takes its word by exchange. False where the caller cannot go.
///
/// # Safety
/// 1. `slot` is one of the bound table.
pub(crate) unsafe fn claim(slot: usize) -> bool {
    let owner = cpu::CPUS[..cpu::count()].iter().position(|cpu| cpu.slot.load(Ordering::Relaxed) == slot);
    let is_away = || owner.is_none_or(|cpu| !is_online(cpu));
    loop {
        if is_away() {
            // SAFETY: an exchange excludes others like us, and a CPU that comes back looks at the word after it has said so: either it
            // sees the word taken and waits, or we see here that it is back.
            unsafe {
                Kernel::claim_shared(slot);
                if is_away() {
                    return true;
                }
                Kernel::leave(slot);
            }
        }
        if sched::may_sleep().is_err() {
            return false;
        }
        if owner.is_some_and(sched::visit) {
            mask_section();
            if owner == Some(cpu::id()) {
                word(slot).store(CLAIMED, Ordering::Relaxed);
                return true;
            }
            // It went away between the two.
            unmask_section();
            sched::end_visit();
        }
    }
}
