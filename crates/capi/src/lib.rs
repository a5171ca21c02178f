//! The C interface: what `include/` declares, for C programs of a Linux process written against the manual pages malloc(9),
//! kmem(9), zone(9), vmem(9), pool(9) and pool_cache(9).
//!
//! # How the names meet
//!
//! A header maps each name of a manual page to one with the prefix `kernmalloc_` (malloc(9) would collide with malloc(3)), and
//! declares that; here it is defined. What a C program sees as an object is one of these:
//!
//! * `struct malloc_type` is the program's own static memory. Its last words are a `kern::malloc::MallocType`, written there at
//!   its first use, so that the core sees an ordinary type ([`types`]).
//! * `uma_zone_t`, `pool_cache_t` and `vmem_t *` are records from this allocator, with the C callbacks and the Rust handle in them. They
//!   are credited to types of their own.
//!
//! # What may sleep
//!
//! As the manual pages say: what is called with `M_WAITOK`, `KM_SLEEP`, `PR_WAITOK` or `VM_SLEEP`. It sleeps on a futex. A bug
//! of the caller that the core finds is reported on standard error and ends the program, unless `KERNMALLOC=kern.malloc.on_misuse=report`.
//!
//! Built with `panic = "abort"` (the profile `preload`) this is `no_std`; a panic of the core is printed and aborts, as the kernel's would.
#![cfg_attr(panic = "abort", no_std)]

pub mod kmem;
pub mod life;
pub mod malloc;
pub mod pool;

pub mod types;
pub mod vmem9;
pub mod zone;

use hosted::MALLOC;

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

/// Says on standard error what was refused and why, as a kernel would on its console.
fn refuse(what: &str, name: &str, why: &dyn core::fmt::Display) {
    use core::fmt::Write as _;
    let _ = writeln!(life::Stderr, "kernmalloc: {what}({name}): {why}");
}

/// A panic is the end of the process: there is nobody to unwind to in C.
#[cfg(all(panic = "abort", not(test)))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    life::die(format_args!("panic: {}", info.message()))
}

/// The precompiled core was built to unwind and names this; nothing here unwinds.
#[cfg(all(panic = "abort", not(test)))]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
