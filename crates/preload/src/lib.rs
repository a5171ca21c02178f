//! The preloaded library: malloc(3) and its family, C++ new and delete, for any dynamically linked program.
//!
//! Each exported name is a few instructions that hand on where the call came from (return address, stack, frame pointer) and
//! jump to the function behind it, so that no frame of ours lies between caller and allocator.
//!
//! Contracts are those of the manual pages malloc(3), posix_memalign(3), malloc_usable_size(3), and of C23 and C++20. `errno` is
//! set on failure only; success leaves it alone.
//!
//! Built with `panic = "abort"` this is a `no_std` shared object; built any other way (tests, lints) it is an ordinary
//! library whose functions carry mangled names, so that it does not become the malloc of a test program.
#![cfg_attr(panic = "abort", no_std)]

#[allow(non_snake_case, reason = "the names are mangled ones")]
pub mod cxx;
mod entry;
pub mod family;
pub mod info;
pub mod life;
pub mod open;

/// A panic here is a fault of ours: nothing in the library panics by design. There is nobody to unwind to.
#[cfg(all(panic = "abort", not(test)))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    life::die(b"kernmalloc: internal fault\n")
}

/// The precompiled core was built to unwind and names this; nothing here unwinds.
#[cfg(all(panic = "abort", not(test)))]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
