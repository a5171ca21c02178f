//! Faults put into the kernel on purpose, chosen by `break=NAME` on the command line: negative controls. The suite must fail with
//! each of them, or it would not have noticed the mistake in a port either.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::spin::SpinLock;

/// Sections run with interrupts on.
pub(crate) static NO_SECTION_MASK: AtomicBool = AtomicBool::new(false);
/// Pages are unmapped without telling the other CPUs.
pub(crate) static NO_SHOOTDOWN: AtomicBool = AtomicBool::new(false);
/// Interrupts do not save the floating-point registers. Read by the entry code.
pub(crate) static NO_FPU_SAVE: AtomicBool = AtomicBool::new(false);
/// Handlers run on the interrupted stack.
pub(crate) static RED_ZONE: AtomicBool = AtomicBool::new(false);
/// A sleeper compares before it takes the lock that whoever wakes it takes.
pub(crate) static LOST_WAKEUP: AtomicBool = AtomicBool::new(false);
/// The depots' locks do not exclude.
pub(crate) static DEPOT_RACE: AtomicBool = AtomicBool::new(false);

const ALL: [(&str, &AtomicBool); 6] = [
    ("section-mask", &NO_SECTION_MASK),
    ("tlb-shootdown", &NO_SHOOTDOWN),
    ("fpu-save", &NO_FPU_SAVE),
    ("red-zone", &RED_ZONE),
    ("lost-wakeup", &LOST_WAKEUP),
    ("depot-race", &DEPOT_RACE),
];

/// Switches one on. False when there is none of that name.
pub(crate) fn set(name: &str) -> bool {
    let found = ALL.iter().find(|(known, _)| *known == name);
    if let Some((_, flag)) = found {
        flag.store(true, Ordering::Relaxed);
    }
    found.is_some()
}

/// Whether any is on.
pub(crate) fn any() -> bool {
    ALL.iter().any(|(_, flag)| flag.load(Ordering::Relaxed))
}

/// The depots' locks lie side by side in the allocator, one per class: first, distance, and how many.
static DEPOTS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Tells where the depots' locks are.
pub(crate) fn learn_depots<'a>(locks: impl Iterator<Item = (&'static str, &'a SpinLock)>) {
    let mut last = 0;
    for (name, lock) in locks {
        let addr = core::ptr::from_ref(lock) as usize;
        if name == "depot" {
            match DEPOTS[2].fetch_add(1, Ordering::Relaxed) {
                0 => DEPOTS[0].store(addr, Ordering::Relaxed),
                _ => DEPOTS[1].store(addr - last, Ordering::Relaxed),
            }
            last = addr;
        }
    }
}

/// Whether this lock must not exclude.
#[inline]
pub(crate) fn is_broken(lock: &SpinLock) -> bool {
    DEPOT_RACE.load(Ordering::Relaxed) && is_depot(core::ptr::from_ref(lock) as usize)
}

#[cold]
fn is_depot(lock: usize) -> bool {
    let [first, stride, count] = [0, 1, 2].map(|field: usize| DEPOTS[field].load(Ordering::Relaxed));
    let offset = lock.wrapping_sub(first);
    stride != 0 && offset.is_multiple_of(stride) && offset / stride < count
}
