//! vmem(9): an allocator of integer ranges.
//!
//! # Theory
//!
//! Most of what a kernel hands out is not memory but numbers: address space, bus addresses, process
//! ids, ports, interrupt vectors, disk blocks. An **arena** is a set of integers; it gives out ranges of them and takes
//! them back. It never looks at what the numbers stand for, so it can serve memory that does not exist yet.
//!
//! The nouns, each with one meaning in this crate:
//!
//! * **span**: a range that was put into the arena ([`RawArena::add`], or imported from a parent).
//! * **segment**: a piece of a span, either allocated or free. Segments tile their span without a gap, and two free
//!   neighbours of one span never stay apart: they merge when the second one is freed.
//! * **boundary tag** ([`Tag`]): the record of one segment or one span, kept apart from the range it describes.
//! * **quantum**: the unit, a power of two. Every base and size is a multiple of it; requests are rounded up to it.
//! * **fit** ([`Fit`]): which of the free segments that are big enough is used.
//!
//! ```text
//!  segment list (address order):
//!    [span 0x1000+0x9000] [alloc 0x1000] [free 0x3000] [alloc 0x4000] [free 0x8000] [span 0x40000+..] ..
//!                                          │                             │
//!  free lists by size class:    1q  2q ..  └─ list 0              list 1 ┘   (bitmap: bits 0 and 1)
//!  hash of allocated segments:  0x1000 ─► tag,  0x4000 ─► tag
//!  tree of spans by base:       0x1000, 0x40000
//! ```
//!
//! Units: everything is in the arena's own integers, called addresses and sizes here whatever they stand for. A range
//! is written base and size; its last integer is `base + size - 1`, so a span may end at `usize::MAX`. Address 0 is an
//! address like any other.
//!
//! # How a request falls through
//!
//! 1. Instant fit takes the class above the size (a shift), finds the first non-empty list from there (find first
//!    set in a bitmap) and takes the head of that list, which is big enough whatever it is: constant time.
//! 2. Only if no such list exists, the class is searched that has both bigger and smaller segments than the size: it is a tree of sizes, so
//!    that the smallest one that serves is found by descending. Best fit does that at once.
//! 3. The front of the segment becomes the allocation, what is left stays free.
//!
//! Bonwick and Adams ("Magazines and Vmem", USENIX 2001) describe the structure; illumos, NetBSD and FreeBSD have each
//! an implementation under the same name. Three of their faults are repaired: best fit takes the smallest
//! segment that serves (NetBSD takes the first that does in a list), [`RawArena::max_free`] is the size of a
//! segment (FreeBSD gives the bound of a list), and the segment list is in address order across spans (illumos keeps
//! spans in order of addition).
//!
//! # Who owns what
//!
//! The arena allocates nothing. Tags and the hash table are memory that the owner *donates*, so an allocator can
//! keep its own address space in an arena: an operation that lacks a tag says [`Error::NoTags`] and has changed nothing;
//! the owner finds tags however it can and asks again. No operation takes more than
//! [`RawArena::TAGS_PER_OP`].
//!
//! [`RawArena`] has no lock, never sleeps, calls nobody back but visitors of [`RawArena::walk`], and recurses
//! nowhere. [`Arena`] is one behind a lock, with what vmem(9) has besides: a [`TagSource`] that finds the tags, a parent
//! to import from ([`Source`]), caches in front ([`QuantumCache`]), sleeping ([`Wait`]). Its text says what may sleep and
//! what calls what.
#![no_std]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(any(test, feature = "std"))]
extern crate std;

mod arena;
mod channel;
mod check;
mod error;
mod fit;
mod hash;
#[cfg(feature = "alloc")]
mod heap;
mod lists;
mod raw;
#[cfg(feature = "std")]
mod std_system;
mod system;
mod tag;
#[cfg(test)]
mod tests;
mod tree;

/// What `channel` is made of; its model brings loom's.
mod sync {
    pub(crate) use core::sync::atomic::{AtomicU32, Ordering};
}

#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../README.md")]
struct Readme;

pub use arena::{Arena, ArenaCounts, QCACHE_MAX, qcache_slab_size};
pub use channel::Channel;
pub use check::Damage;
pub use error::Error;
pub use fit::{Fit, Request};
pub use hash::{Bucket, HASH_INLINE, HASH_MAX};
#[cfg(feature = "alloc")]
pub use heap::HeapTags;
pub use platform::RawLock;
pub use raw::{Counts, RawArena, Size};
#[cfg(feature = "std")]
pub use std_system::Std;
pub use system::{Functions, QuantumCache, Source, System, TagSource, Wait};
pub use tag::{Segment, SegmentKind, Tag};
