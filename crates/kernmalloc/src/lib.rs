//! kernmalloc as a Rust program's allocator: every block is credited to somebody, live and exactly.
//!
//! ```
//! use kernmalloc::{KernMalloc, malloc_define};
//!
//! #[global_allocator]
//! static GLOBAL: KernMalloc = KernMalloc;
//!
//! malloc_define!(M_WORDS, "words", "what the user typed");
//!
//! fn main() {
//!     let words: Vec<String> = M_WORDS.scope(|| (0..1000).map(|n| n.to_string()).collect());
//!     assert_eq!(words.len(), 1000);
//!     assert_eq!(M_WORDS.stats().in_use, 1001); // the strings, and the vector
//!     drop(words);
//!     assert_eq!(M_WORDS.stats().in_use, 0);
//! }
//! ```
//!
//! From outside, `kernmalloc vmstat -m -p PID` shows the same figures while the program runs, and `kernmalloc ps` lists it.
//! The program needs no library preloaded and may be linked statically.
//!
//! # Who a block is credited to
//!
//! A **malloc type** is a static with a short name, defined by [`malloc_define!`]. Its row counts blocks and bytes in use,
//! the most there were at one time, requests and failures. There are three ways to it:
//!
//! - **By scope.** Whatever the global allocator serves inside [`MallocType::scope`] is the type's, whichever library asks.
//!   [`MallocType::scope_async`] wraps a future, [`Scope::current`] takes the scope to another thread.
//! - **By allocator.** `&'static MallocType` is an allocator for everything that takes one: see [below](#a-type-is-an-allocator).
//! - **By name**: [`MallocType::malloc`], and [`free`].
//!
//! Everything else is credited to its **call site**: the function that asked, looked for through those that ask for
//! somebody else (`Box::new`, `Vec`'s growth and so on). `kernmalloc vmstat -m --sites` shows them with file and line.
//! The rows are told apart by return addresses, so they are as good as the program's symbols: with `strip = true` the
//! functions of the standard library are not recognised, and what they allocate for all callers is one row.
//!
//! Whoever frees a block, on whichever thread and in whichever scope, it is taken from the type that it was credited
//! to. A block that grows or shrinks keeps its type, unless that happens inside a scope: then it is the scope's from there on.
//!
//! # A type is an allocator
//!
//! With the feature `allocator-api2` (on by default) for the trait of that crate, with `nightly` for the standard library's.
//!
//! ```
//! # #[cfg(feature = "allocator-api2")] {
//! use allocator_api2::{boxed::Box, vec::Vec};
//! kernmalloc::malloc_define!(M_FRAMES, "frames", "pictures not yet shown");
//!
//! let mut frame: Vec<u8, _> = Vec::with_capacity_in(1000, &M_FRAMES);
//! frame.extend_from_slice(&[7; 500]);
//! let header = Box::new_in([0u32; 4], &M_FRAMES);
//! assert_eq!(M_FRAMES.stats().in_use, 2);
//! # drop((frame, header));
//! # assert_eq!(M_FRAMES.stats().in_use, 0);
//! # }
//! ```
//!
//! Such containers need no `#[global_allocator]`: a program may keep its allocator, and give only what it wants counted to a type.
//!
//! # What it costs
//!
//! The global allocator reads one thread-local word and branches; that is all while no scope is used. Entering and
//! leaving a scope are two stores. A type counts in lines of the current CPU, so that threads do not meet there.

#![cfg_attr(feature = "nightly", feature(allocator_api))]

mod allocator;
mod global;
pub mod malloc9;
mod malloc_type;
mod scope;
mod stats;
mod zone;

pub use global::KernMalloc;
pub use malloc_type::{
    MallocType, NAME_MAX_BYTES, RegisterError, free, malloc, malloc_size, malloc_usable_size, realloc, register_type,
};
pub use scope::{InScope, Scope};
pub use stats::{Kind, Stats, TypeStats, find, stats};
pub use zone::{Fail, How, Wait, Zone, ZoneBox, ZoneError, trim, zone};
