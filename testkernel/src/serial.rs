//! The serial console, and the way out of the machine.

use core::fmt;

use platform::Lock;

use crate::cpu;
use crate::spin::SpinLock;

const DATA: u16 = 0x3f8;
const STATUS: u16 = 0x3fd;

/// The console without its lock: for a machine that is dying or in the debugger.
pub(crate) struct Raw;

impl fmt::Write for Raw {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        const CAN_SEND: u8 = 0x20;
        for byte in text.bytes() {
            while cpu::in8(STATUS) & CAN_SEND == 0 {
                core::hint::spin_loop();
            }
            cpu::out8(DATA, byte);
        }
        Ok(())
    }
}

/// The console.
pub(crate) static CONSOLE: Lock<SpinLock, Raw> = Lock::new(Raw);

/// Prints a line.
macro_rules! println {
    ($($text:tt)*) => {{
        // The arguments first: they may do anything, which is too much with the lock held.
        match format_args!($($text)*) {
            line => $crate::serial::print(line),
        }
    }};
}
pub(crate) use println;

/// Prints a line, not mixed with another CPU's.
pub(crate) fn print(line: fmt::Arguments<'_>) {
    use fmt::Write as _;
    let _ = writeln!(CONSOLE.lock(), "{line}");
}

/// Reads a line, echoing it. Its length; what does not fit is dropped.
pub(crate) fn read_line(buffer: &mut [u8]) -> usize {
    use fmt::Write as _;
    const RECEIVED: u8 = 1;
    let mut length = 0;
    loop {
        while cpu::in8(STATUS) & RECEIVED == 0 {
            core::hint::spin_loop();
        }
        let byte = cpu::in8(DATA);
        if byte == b'\r' || byte == b'\n' {
            return length;
        }
        if length < buffer.len() && (byte == b' ' || byte.is_ascii_graphic()) {
            buffer[length] = byte;
            length += 1;
            let _ = Raw.write_char(char::from(byte));
        }
    }
}

/// Why the machine ends. QEMU's status is twice this plus one.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Exit {
    /// All passed.
    Passed = 0x10,
    /// A test failed.
    Failed = 0x11,
    /// The kernel panicked.
    Panic = 0x12,
}

/// Ends the machine.
pub(crate) fn exit(why: Exit) -> ! {
    const DEBUG_EXIT: u16 = 0xf4;
    cpu::out32(DEBUG_EXIT, why as u32);
    cpu::halt()
}
