//! kernmalloc in a Linux process.
//!
//! Three things are made here of the core: pages from mmap(2) (`region`), the per-CPU section from rseq(2)
//! (`section`), and types from the addresses of calls (`sites`, `modules`, `elf`, `cfi`). Around them:
//! the statistics object (`object`), fork (`fork`), tunables and reports.
//!
//! Nothing here allocates, starts a thread or takes a signal; libc is asked for three things, each outside of any
//! allocation: the environment, the auxiliary vector, and a place in its list of fork handlers.
//!
//! Locks, in order: boot → sites → the core's (see `kern::system`).
#![no_std]

#[cfg(test)]
extern crate std;

mod cfi;
mod elf;
mod fork;
mod lock;
mod modules;
mod object;
mod port;
mod region;
mod report;
mod section;
mod sites;
mod sys;
mod tunables;
mod wrappers;

pub use lock::FutexLock;
pub use port::{Linux, MALLOC, SYSTEM, boot, finish};
pub use sites::{
    CACHE, Call, LAST_TYPE, WAY_MASK, cached_type, library_closed, library_closing, same_module, type_of,
    type_of_uncached,
};
pub use tunables::{attribution, is_secure, misuse_goes_on};

/// Text on standard error, past any stdio.
pub fn write_stderr(text: &[u8]) {
    sys::write(2, text);
}
