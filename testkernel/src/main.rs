//! A kernel whose allocator is kernmalloc: `cargo xtask qemu` builds it (profile `kernel`), boots it on as many CPUs as wanted, and
//! passes its verdict on. Under any profile that unwinds the same package is a program that says so, hence ordinary builds
//! of the workspace pass.
//!
//! Read `port.rs` first: it is all that a kernel writes. The rest is the kernel: `boot` to long mode, `entry` and
//! `interrupts`, `cpu`, `spin`, `frames` and `space` for memory, `sched`, `fault`; `suite` runs the tests, `breaks` spoils them.
#![cfg_attr(panic = "abort", no_std, no_main)]

#[cfg(panic = "abort")]
extern crate alloc;

/// All of the kernel, in files beside this one; one `cfg` for the lot.
#[cfg(panic = "abort")]
#[path = ""]
mod kernel {
    pub(crate) mod acpi;
    pub(crate) mod boot;
    pub(crate) mod breaks;
    pub(crate) mod cpu;
    pub(crate) mod debugger;
    pub(crate) mod entry;
    pub(crate) mod fault;
    pub(crate) mod frames;
    pub(crate) mod hardware;
    pub(crate) mod hotplug;
    pub(crate) mod interrupts;
    pub(crate) mod misuse;
    pub(crate) mod module;
    pub(crate) mod numa;
    #[cfg(feature = "peers")]
    pub(crate) mod peers;
    pub(crate) mod port;
    pub(crate) mod sched;
    pub(crate) mod serial;
    pub(crate) mod space;
    pub(crate) mod spin;
    pub(crate) mod start;
    pub(crate) mod suite;
    pub(crate) mod warnings;
}
#[cfg(panic = "abort")]
use kernel::*;

#[cfg(panic = "unwind")]
fn main() {
    eprintln!("testkernel: built as an ordinary program; `cargo xtask qemu` builds the kernel and boots it");
}
