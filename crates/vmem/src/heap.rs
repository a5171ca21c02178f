//! Tags from the global allocator.

use crate::hash::Bucket;
use crate::system::{TagSource, Wait};
use crate::tag::Tag;
use alloc::alloc::{alloc, dealloc};
use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

/// Tags are allocated by pages of so many bytes, aligned to as many: one by one, with the heap's own records between them, they lie on twice as many
/// cache lines and pages, and a large arena is nothing but misses.
const PAGE_BYTES: usize = 4096;
const PAGE: Layout = match Layout::from_size_align(PAGE_BYTES, PAGE_BYTES) {
    Ok(layout) => layout,
    Err(_) => panic!("a page is 2^n bytes"),
};
/// Tags of a page, whose first place is the head's.
const TAGS: usize = PAGE_BYTES / size_of::<Tag>() - 1;

/// Head of a page.
struct Head {
    /// Tags that have not been put back.
    out: AtomicUsize,
}
const _: () = assert!(size_of::<Head>() <= size_of::<Tag>());

/// Boundary tags and hash tables from the global allocator: for arenas of a program that has one. Never in an
/// allocator.
///
/// Tags come by the page. It is freed when the last of them is put back.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeapTags;

// SAFETY: 1. is what the global allocator promises; tags of a page lie behind its head and do not overlap.
unsafe impl TagSource for HeapTags {
    fn get(&self, _wait: Wait) -> Option<(NonNull<Tag>, usize)> {
        // SAFETY: a page has a size.
        let head = NonNull::new(unsafe { alloc(PAGE) })?.cast::<Head>();
        // SAFETY: fresh memory, large enough; behind the head there is room for the tags.
        unsafe {
            head.write(Head { out: AtomicUsize::new(TAGS) });
            Some((head.cast::<Tag>().add(1), TAGS))
        }
    }

    unsafe fn put(&self, tag: NonNull<Tag>) {
        let head = tag.as_ptr().map_addr(|addr| addr & !(PAGE_BYTES - 1)).cast::<Head>();
        // SAFETY: 1. it came from `get`, in a page whose head is there until its last tag is back.
        let last = unsafe { (*head).out.fetch_sub(1, Ordering::AcqRel) } == 1;
        if last {
            // SAFETY: it was allocated in `get` with this layout, and nobody has a tag of it any more.
            unsafe { dealloc(head.cast(), PAGE) };
        }
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
