//! A prompt on the serial line, as ddb(4) has it. No lock is taken and nothing is allocated: it must work when both are broken.

use core::fmt::{Result, Write};

use crate::serial::Raw;
use crate::{cpu, fault, interrupts, sched, serial, start};

/// What it understands, besides `continue` and `help`.
pub(crate) const COMMANDS: [&str; 11] = [
    "show malloc",
    "show malloc /i",
    "show uma",
    "show umacache",
    "show vmem",
    "show vmemdump",
    "show multizone_matches",
    "show allmalloc",
    "show threads",
    "show cpus",
    "trace",
];

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
            _ => {
                let mut text = kern::text::Text::<64>::new();
                text.push(line.as_bytes());
                run(&text, &mut Raw);
            }
        }
    }
}

/// Runs one command.
pub(crate) fn run(line: &kern::text::Text<64>, out: &mut dyn Write) {
    let line = core::str::from_utf8(line.as_bytes()).unwrap_or("");
    let _ = execute(line, out);
}

fn execute(line: &str, out: &mut dyn Write) -> Result {
    let system = start::system();
    if let Some(addr) = line.strip_prefix("show multizone_matches ") {
        return match usize::from_str_radix(addr.trim().trim_start_matches("0x"), 16) {
            Ok(addr) => system.show_matches(addr, out),
            Err(_) => writeln!(out, "{addr:?} is no address: write it in hexadecimal"),
        };
    }
    match line {
        "show malloc" => system.show_malloc(out, false),
        "show malloc /i" => system.show_malloc(out, true),
        "show allmalloc" => system.vmstat_m(out),
        "show uma" => system.show_uma(out),
        "show umacache" => system.show_umacache(out),
        // SAFETY: 1. the other CPUs have stopped (or, in the test, hold no pages: the lock is ours).
        "show vmem" => unsafe { system.show_vmem(out) },
        // SAFETY: as above.
        "show vmemdump" => unsafe { system.show_vmemdump(out) },
        "show multizone_matches" => writeln!(out, "of which address? show multizone_matches ADDR"),
        "show threads" => sched::show(out),
        "show cpus" => show_cpus(out),
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
