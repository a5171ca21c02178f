//! What becomes of a misuse: a test that provokes one takes the report; any other ends the kernel.

use core::sync::atomic::{AtomicBool, Ordering};

use platform::{Lock, MisuseReport};

use crate::spin::SpinLock;

/// Whether a test waits for one.
pub(crate) static EXPECTED: AtomicBool = AtomicBool::new(false);
static LAST: Lock<SpinLock, Option<MisuseReport>> = Lock::new(None);

pub(crate) fn report(report: &MisuseReport) {
    if EXPECTED.load(Ordering::Relaxed) {
        *LAST.lock() = Some(*report);
        return;
    }
    panic!(
        "{:?} of {:#x} by {:#x}: item {:#x} of {} bytes, type {:?}, freed before by {:#x}",
        report.what, report.addr, report.caller, report.item, report.item_bytes, report.type_index, report.freed_by
    );
}

/// The last report, once.
pub(crate) fn take() -> Option<MisuseReport> {
    LAST.lock().take()
}
