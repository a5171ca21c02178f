//! Exceptions, panics, and the way out of them.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::entry::{Frame, RBP};
use crate::serial::{self, Raw};
use crate::{cpu, debugger, interrupts, sched};

unsafe extern "C" {
    fn probe_read(addr: usize) -> isize;
    fn probe_write(addr: usize, byte: u8) -> isize;
    static probe_read_at: u8;
    static probe_write_at: u8;
    static probe_failed: u8;
    static kernel_text_start: u8;
    static kernel_text_end: u8;
}

const PAGE_FAULT: u64 = 14;

/// Threads that ran off their stacks and were ended.
pub(crate) static OVERFLOWS: AtomicU32 = AtomicU32::new(0);

/// The byte at an address, or `None` when nothing is mapped there.
pub(crate) fn read(addr: usize) -> Option<u8> {
    // SAFETY: the fault handler goes on behind the load if it faults.
    let byte = unsafe { probe_read(addr) };
    u8::try_from(byte).ok()
}

/// Writes a byte. False when nothing is mapped there.
///
/// # Safety
/// 1. If something is, it is the caller's.
pub(crate) unsafe fn write(addr: usize, byte: u8) -> bool {
    // SAFETY: as in `read`, and 1.
    unsafe { probe_write(addr, byte) == 0 }
}

extern "C" fn end_thread(_: usize) -> ! {
    OVERFLOWS.fetch_add(1, Ordering::SeqCst);
    sched::wake_all(&OVERFLOWS);
    sched::exit()
}

/// What is not a device's.
pub(crate) fn exception(frame: &mut Frame) {
    if frame.vector == PAGE_FAULT {
        let at = |symbol: *const u8| frame.rip == symbol as u64;
        if at(&raw const probe_read_at) || at(&raw const probe_write_at) {
            frame.rip = (&raw const probe_failed) as u64;
            return;
        }
        if let Some(thread) = sched::guarded_by(cpu::fault_address())
            && sched::current() == Some(thread)
        {
            // Its stack is used up, so it goes on at the top of it, where it ends itself.
            *frame = Frame::starting(end_thread, 0, sched::stack_top(thread));
            return;
        }
    }
    if frame.vector == 2 {
        // Somebody panics.
        cpu::halt();
    }
    let (vector, error, rip, rsp) = (frame.vector, frame.error, frame.rip, frame.rsp);
    die(
        format_args!(
            "exception {vector} error {error:#x} at {rip:#x}, stack {rsp:#x}, address {:#x}",
            cpu::fault_address()
        ),
        frame.registers[RBP] as usize,
        rip as usize,
    )
}

/// Calls on the way here, by the chain of frame pointers; stops at what is no frame.
pub(crate) fn backtrace(mut frame: usize, out: &mut dyn core::fmt::Write) {
    const MOST: usize = 32;
    let text = (&raw const kernel_text_start) as usize..(&raw const kernel_text_end) as usize;
    for _ in 0..MOST {
        let word = |addr: usize| {
            let bytes = [0, 1, 2, 3, 4, 5, 6, 7].map(|byte| read(addr.wrapping_add(byte)));
            bytes.iter().rev().try_fold(0usize, |word, byte| Some(word << 8 | usize::from((*byte)?)))
        };
        let (Some(next), Some(caller)) = (word(frame), word(frame.wrapping_add(8))) else { return };
        if !text.contains(&caller) {
            return;
        }
        let _ = writeln!(out, "  at {caller:#x}");
        if next <= frame {
            return;
        }
        frame = next;
    }
}

/// Prints why and where, stops all CPUs, and ends the machine; by way of the debugger's prompt, if somebody sits at it.
fn die(why: core::fmt::Arguments<'_>, frame: usize, rip: usize) -> ! {
    use core::fmt::Write as _;
    /// The CPU that dies, plus one.
    static DYING: AtomicU32 = AtomicU32::new(0);
    cpu::interrupts_off();
    let (cpu, thread) = (cpu::id(), sched::current());
    match DYING.compare_exchange(0, cpu as u32 + 1, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => {}
        Err(first) if first == cpu as u32 + 1 => {
            let _ = writeln!(Raw, "\npanic in a panic: {why}");
            serial::exit(serial::Exit::Panic)
        }
        Err(_) => cpu::halt(),
    }
    interrupts::stop_others();
    let mut text = kern::text::Text::new();
    let _ = write!(text, "{why}");
    debugger::keep(debugger::Panic { text, cpu, thread });
    let _ = writeln!(Raw, "\npanic: {why}");
    let _ = writeln!(Raw, "cpu {cpu}, thread {thread:?}");
    if rip != 0 {
        let _ = writeln!(Raw, "  at {rip:#x}");
    }
    backtrace(frame, &mut Raw);
    if debugger::INTERACTIVE.load(Ordering::Relaxed) {
        debugger::enter("panic");
    }
    serial::exit(serial::Exit::Panic)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let frame: usize;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
    die(format_args!("{info}"), frame, 0)
}

// The precompiled `core` and `alloc` were built to unwind: their landing pads name these, and nothing gets there.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {
    cpu::halt();
}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    cpu::halt();
}
