//! The C interface: what `include/` declares, for C code written against the manual pages malloc(9), kmem(9), zone(9),
//! vmem(9), pool(9), pool_cache(9) and libmemstat(3); over any port, in a process or a kernel.
//!
//! # How the names meet
//!
//! A header maps each name of a manual page to one with the prefix `kernmalloc_` (malloc(9) would collide with
//! malloc(3)), and declares that; here it is defined, once for all ports. [`interface!`](crate::interface!) lists them all. A program that
//! C is linked with makes symbols of the list (the crate `clib`: `libkernmalloc-c` of a Linux process); a kernel that
//! loads modules looks them up in [`symbols`]. What a C program sees as an object is one of these:
//!
//! * `struct malloc_type` is the program's own static memory. Its last words are a `kern::malloc::MallocType`, written
//!   there at
//!   its first use, so that the core sees an ordinary type ([`types`]).
//! * `uma_zone_t`, `pool_cache_t` and `vmem_t *` are records from this allocator, with the C callbacks and the Rust
//!   handle in them. They
//!   are credited to types of their own.
//!
//! # What may sleep
//!
//! As the manual pages say: what is called with `M_WAITOK`, `KM_SLEEP`, `PR_WAITOK` or `VM_SLEEP`. It sleeps as the
//! port does. A bug of the caller that the core finds is reported as the port reports a misuse; one that only C can
//! make is a panic.
#![no_std]

mod interface;
pub mod kmem;
pub mod malloc;
pub mod memstat;
pub mod pool;
pub mod types;
pub mod vmem9;
pub mod zone;

pub use interface::{Symbol, names, symbols};

use kern::malloc::Malloc;
use platform::Platform;

/// What the C interface needs beside the port.
pub trait Host: Sized + 'static {
    /// The port.
    type P: Platform;

    /// malloc(9) over its allocator.
    fn malloc() -> &'static Malloc<'static, Self::P>;

    /// Makes the allocator, if it is made at its first use. False when there is no memory for it.
    fn boot() -> bool {
        true
    }

    /// Where sleepers of C's arenas wait: one static variable.
    fn channel() -> &'static vmem::Channel;

    /// The list of C's arenas: one static variable.
    fn arenas() -> &'static vmem9::Arenas<Self>;

    /// A type of C is about to be attached by its constructor.
    fn type_loads() {}

    /// Whether all of the program is on its way out: then types that go are no module's that is unloaded.
    fn is_ending() -> bool {
        false
    }
}

/// The text of a C string; empty for null. What is not UTF-8 ends it.
///
/// # Safety
/// 1. `text` is null, or ends with a NUL and lives as long as `'a`.
unsafe fn text_of<'a>(text: *const core::ffi::c_char) -> &'a str {
    if text.is_null() {
        return "";
    }
    // SAFETY: 1.
    let bytes = unsafe { core::ffi::CStr::from_ptr(text) }.to_bytes();
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    }
}

/// Says on the console (in a process: standard error) what was refused and why.
fn refuse<H: Host>(what: &str, name: &str, why: &dyn core::fmt::Display) {
    use core::fmt::Write as _;
    let mut line = Line(kern::text::Text::new());
    let _ = write!(line, "{what}({name}): {why}");
    <H::P>::warning(line.0.as_bytes());
}

/// A line of text without an allocation; what does not fit is cut.
struct Line(kern::text::Text<400>);

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.0.push(text.as_bytes());
        Ok(())
    }
}
