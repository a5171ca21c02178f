//! Tags from the global allocator.

use crate::hash::Bucket;
use crate::system::{TagSource, Wait};
use crate::tag::Tag;
use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;

/// Boundary tags and hash tables from the global allocator: for arenas of a program that has one. Never in an
/// allocator.
///
/// Tags come one by one, since they go back one by one.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeapTags;

// SAFETY: 1. is what the global allocator promises.
unsafe impl TagSource for HeapTags {
    fn get(&self, _wait: Wait) -> Option<(NonNull<Tag>, usize)> {
        // SAFETY: a tag has a size.
        let mem = unsafe { alloc(Layout::new::<Tag>()) };
        Some((NonNull::new(mem)?.cast(), 1))
    }

    unsafe fn put(&self, tag: NonNull<Tag>) {
        // SAFETY: 1. it was allocated in `get` with this layout.
        unsafe { dealloc(tag.as_ptr().cast(), Layout::new::<Tag>()) };
    }

    fn get_buckets(&self, count: usize) -> Option<NonNull<Bucket>> {
        // SAFETY: a table has buckets, and a bucket has a size.
        let mem = unsafe { alloc(Layout::array::<Bucket>(count).ok()?) };
        Some(NonNull::new(mem)?.cast())
    }

    unsafe fn put_buckets(&self, mem: NonNull<Bucket>, count: usize) {
        if let Ok(layout) = Layout::array::<Bucket>(count) {
            // SAFETY: 1. it was allocated in `get_buckets` with this layout.
            unsafe { dealloc(mem.as_ptr().cast(), layout) };
        }
    }
}
