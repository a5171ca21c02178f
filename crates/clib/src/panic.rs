//! A panic is the end of the process: there is nobody to unwind to in C.

use core::fmt::Write as _;

unsafe extern "C" {
    fn abort() -> !;
}

/// Standard error, past any stdio.
struct Stderr;

impl core::fmt::Write for Stderr {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        hosted::write_stderr(text.as_bytes());
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let _ = writeln!(Stderr, "panic: {}", info.message());
    // SAFETY: never returns.
    unsafe { abort() }
}

/// The precompiled core was built to unwind and names this; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
