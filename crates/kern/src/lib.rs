//! The allocator. Theory: see the modules, and `ARCHITECTURE.md` for one malloc and one free followed through them.
#![no_std]

#[cfg(test)]
extern crate std;

mod bucket;
pub mod class;
pub mod contig;
mod figures;
mod global;
mod inspect;
pub mod malloc;
mod meta;
mod page;
mod slab;
mod slot;
mod stats;
mod system;
pub mod text;
pub mod zone;

pub use figures::{SlotFigures, ZoneFigures, ZoneView};
pub use global::Heap;
pub use page::PageCounts;
pub use slot::SLOT_STRIDE_BYTES;
pub use stats::{COMPARE_BYTES, ObjectLayout, TypeId};
pub use system::{Account, BlockInfo, Boot, MAX_REQUEST_BYTES, NUMZONES_MAX, OutsideBlocks, System};
