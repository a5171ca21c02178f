//! A kernel whose allocator is kernmalloc: `cargo xtask qemu` builds it (profile `kernel`), boots it on as many CPUs as wanted, and
//! passes its verdict on. Under any profile that unwinds the same package is a program that says so, hence ordinary builds
//! of the workspace pass.
//!
//! Read `port.rs` first: it is all that a kernel writes. The rest is the kernel: `boot` to long mode, `entry` and
//! `interrupts`, `cpu`, `spin`, `frames` and `space` for memory, `sched`, `fault`; `suite` runs the tests, `breaks` spoils them.
#![cfg_attr(panic = "abort", no_std, no_main)]

#[cfg(panic = "abort")]
extern crate alloc;

#[cfg(panic = "abort")]
mod boot;
#[cfg(panic = "abort")]
mod breaks;
#[cfg(panic = "abort")]
mod cpu;
#[cfg(panic = "abort")]
mod debugger;
#[cfg(panic = "abort")]
mod entry;
#[cfg(panic = "abort")]
mod fault;
#[cfg(panic = "abort")]
mod frames;
#[cfg(panic = "abort")]
mod interrupts;
#[cfg(panic = "abort")]
mod misuse;
#[cfg(panic = "abort")]
mod module;
#[cfg(all(panic = "abort", feature = "peers"))]
mod peers;
#[cfg(panic = "abort")]
mod port;
#[cfg(panic = "abort")]
mod sched;
#[cfg(panic = "abort")]
mod serial;
#[cfg(panic = "abort")]
mod space;
#[cfg(panic = "abort")]
mod spin;
#[cfg(panic = "abort")]
mod start;
#[cfg(panic = "abort")]
mod suite;
#[cfg(panic = "abort")]
mod warnings;

#[cfg(panic = "unwind")]
fn main() {
    eprintln!("testkernel: built as an ordinary program; `cargo xtask qemu` builds the kernel and boots it");
}
