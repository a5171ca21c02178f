//! A prompt on the serial line, as ddb(4) has it. No lock is taken and nothing is allocated: it must work when both are broken.

use core::fmt::{Result, Write};
use core::sync::atomic::AtomicBool;

use kern::System;
use kern::text::Text;
use platform::Lock;

use crate::port::Kernel;
use crate::serial::Raw;
use crate::spin::SpinLock;
use crate::{cpu, fault, interrupts, sched, serial, start};

/// What it understands, besides `continue` and `help`.
pub(crate) const COMMANDS: [&str; 14] = [
    "show malloc",
    "show malloc/i",
    "show uma",
    "show uma/i",
    "show umacache",
    "show vmem",
    "show vmemdump",
    "show multizone_matches",
    "show block",
    "show allmalloc",
    "show threads",
    "show cpus",
    "show panic",
    "trace",
];

/// Whether somebody sits at the console: then a panic ends at the prompt rather than with the machine.
pub(crate) static INTERACTIVE: AtomicBool = AtomicBool::new(false);

/// What the kernel panicked of: kept for `show panic`, with the CPU and the thread whose memory a dump would be of.
pub(crate) struct Panic {
    pub(crate) text: Text<256>,
    pub(crate) cpu: usize,
    pub(crate) thread: Option<usize>,
}

/// Written once, by the one CPU that panics.
static PANIC: Lock<SpinLock, Option<Panic>> = Lock::new(None);

/// Keeps it. Takes no lock: whoever panics may hold any.
pub(crate) fn keep(panic: Panic) {
    // SAFETY: all other CPUs have stopped, and this one comes here once.
    unsafe { *PANIC.as_ptr() = Some(panic) };
}

/// Stops all other CPUs, which do not come back, and reads commands until `continue`.
pub(crate) fn enter(why: &str) {
    cpu::interrupts_off();
    interrupts::stop_others();
    let _ = writeln!(Raw, "KDB: enter: {why}");
    let mut buffer = [0u8; 80];
    loop {
        let _ = Raw.write_str("db> ");
        let length = serial::read_line(&mut buffer);
        let line = core::str::from_utf8(&buffer[..length]).unwrap_or("").trim();
        let _ = writeln!(Raw);
        match line {
            "" => {}
            "c" | "continue" => return,
            _ => run(line, &mut Raw),
        }
    }
}

/// Runs one command.
pub(crate) fn run(line: &str, out: &mut dyn Write) {
    let _ = execute(line, out);
}

fn execute(line: &str, out: &mut dyn Write) -> Result {
    let system = start::system();
    for (command, show) in [
        ("show multizone_matches", System::show_matches as fn(&System<Kernel>, usize, &mut dyn Write) -> Result),
        ("show block", System::show_block),
    ] {
        let Some(addr) = line.strip_prefix(command) else { continue };
        return match usize::from_str_radix(addr.trim().trim_start_matches("0x"), 16) {
            Ok(addr) => show(system, addr, out),
            Err(_) => writeln!(out, "usage: {command} <addr>, in hexadecimal"),
        };
    }
    match line {
        "show malloc" => system.show_malloc(out, false),
        "show malloc/i" => system.show_malloc(out, true),
        "show allmalloc" => system.vmstat_m(out),
        "show uma" => system.show_uma(out, false),
        "show uma/i" => system.show_uma(out, true),
        "show umacache" => system.show_umacache(out),
        // SAFETY: 1. the other CPUs have stopped (or, in the test, hold no pages: the lock is ours).
        "show vmem" => unsafe { system.show_vmem(out) },
        // SAFETY: as above.
        "show vmemdump" => unsafe { system.show_vmemdump(out) },
        "show threads" => sched::show(out),
        "show cpus" => show_cpus(out),
        "show panic" => show_panic(out),
        "trace" => {
            let frame: usize;
            // SAFETY: reads a register.
            unsafe { core::arch::asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack)) };
            fault::backtrace(frame, out);
            Ok(())
        }
        _ => {
            writeln!(out, "no command is called {line:?}; there are:")?;
            COMMANDS.iter().try_for_each(|command| writeln!(out, "  {command}"))?;
            writeln!(out, "  continue")
        }
    }
}

fn show_panic(out: &mut dyn Write) -> Result {
    // SAFETY: whoever writes it does so before the prompt.
    let Some(panic) = (unsafe { &*PANIC.as_ptr() }) else { return writeln!(out, "no panic") };
    writeln!(out, "panic: {}", core::str::from_utf8(panic.text.as_bytes()).unwrap_or("?"))?;
    writeln!(out, "cpuid = {}", panic.cpu)?;
    match panic.thread {
        Some(thread) => writeln!(out, "dumptid = {thread}"),
        None => writeln!(out, "dumptid = none: no thread ran"),
    }
}

fn show_cpus(out: &mut dyn Write) -> Result {
    use core::sync::atomic::Ordering::Relaxed;
    for cpu in &cpu::CPUS[..cpu::count()] {
        let (id, ticks, thread) = (cpu.id.load(Relaxed), cpu.ticks.load(Relaxed), cpu.thread.load(Relaxed));
        match thread {
            cpu::IDLE => writeln!(out, "cpu {id}: {ticks} ticks, idle")?,
            _ => writeln!(out, "cpu {id}: {ticks} ticks, thread {thread}")?,
        }
    }
    Ok(())
}
