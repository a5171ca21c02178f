//! Reader of the statistics of programs under kernmalloc: of a live process by its pid, or of the
//! object it left behind.
//!
//! # Theory
//!
//! A program under kernmalloc writes its counters into a shared file ([`abi`] has the layout). It
//! cannot be asked for anything: this crate finds the file among the program's mappings
//! ([`Object::open_pid`]), maps it read-only, and adds up the per-CPU lines
//! ([`Object::snapshot`]), so a reader costs the program nothing but the cache lines it looks at.
//! An object without a name (a memfd, or a file already removed) is copied out of the program's
//! memory instead; the rights needed are those of ptrace in either case.
//!
//! What is read may be wrong: a file cut short, another version, a program that died while it
//! wrote. So every offset is checked against the bytes there are, and what does not fit is an
//! [`Error`] with offset and version, never a panic.
//!
//! [`Account`] holds the counters against what the kernel says is resident, page by page: types +
//! caches + slabs + records = resident memory that is ours; the rest of the program's is not.
//!
//! This crate links no part of the allocator, only the layout.

mod account;
#[cfg(any(test, feature = "builder"))]
pub mod builder;
mod error;
mod map;
mod object;
mod process;
mod programs;
mod snapshot;
mod sysctl;

pub use abi::TypeTotals;
pub use account::{Account, Residence};
pub use error::{Error, Result};
pub use object::Object;
pub use process::{is_alive, process_name};
pub use programs::{Found, clean_directory, find_programs, objects_in};
pub use snapshot::{
    Attribution, Heap, Library, LibraryTotals, MallocType, Program, Snapshot, TypeKind, Zone, ZoneDomain, size_of_bit,
    sizes,
};
pub use sysctl::{Setting, Value};
