//! The benchmark on the least that could be called an allocator: a stack of free blocks per thread and class, and a look-up of the class.
//!
//! Not a peer: it counts nothing, checks nothing, gives nothing back, and what another thread frees is that thread's. It says what a
//! pair costs at the least when it is called as an allocator is. What its stacks have no room for is the C library's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::null_mut;

/// What comes from the stacks; the rest is the C library's.
const LARGEST_BYTES: usize = 4096;
/// Sixteen bytes apart up to 128, from there on four to each doubling.
const FINE: usize = 8;
const CLASSES: usize = FINE + 4 * 5;
/// Blocks that a stack has room for.
const DEPTH: usize = 32;

struct Stack {
    length: usize,
    blocks: [*mut u8; DEPTH],
}

thread_local! {
    static STACKS: UnsafeCell<[Stack; CLASSES]> =
        const { UnsafeCell::new([const { Stack { length: 0, blocks: [null_mut(); DEPTH] } }; CLASSES]) };
}

/// What a class serves.
const fn bytes_of(class: usize) -> usize {
    if class < FINE { (class + 1) * 16 } else { (128 << ((class - FINE) / 4)) / 4 * (5 + (class - FINE) % 4) }
}

const fn table() -> [u8; LARGEST_BYTES / 16 + 1] {
    let mut classes = [0; LARGEST_BYTES / 16 + 1];
    let (mut granules, mut class) = (0, 0);
    while granules < classes.len() {
        if granules * 16 > bytes_of(class) {
            class += 1;
        }
        classes[granules] = class as u8;
        granules += 1;
    }
    assert!(class == CLASSES - 1 && bytes_of(class) == LARGEST_BYTES);
    classes
}

/// Class of a size, by sixteens.
static CLASS_OF: [u8; LARGEST_BYTES / 16 + 1] = table();

/// The class that serves so many bytes, at most [`LARGEST_BYTES`].
#[inline(always)]
fn class_of(bytes: usize) -> usize {
    usize::from(CLASS_OF[bytes.div_ceil(16)])
}

struct Stacks;

// SAFETY: a block is on one stack or in somebody's hands; a class's blocks are all of its size, and aligned as the C library aligns.
unsafe impl GlobalAlloc for Stacks {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > LARGEST_BYTES || layout.align() > 16 {
            // SAFETY: the caller's contract.
            return unsafe { System.alloc(layout) };
        }
        let class = class_of(layout.size());
        STACKS.with(|stacks| {
            // SAFETY: this thread's, and nothing here calls back.
            let stack = unsafe { &mut (*stacks.get())[class] };
            if stack.length == 0 {
                // SAFETY: more than 0 bytes: the caller's contract.
                return unsafe { System.alloc(Layout::from_size_align_unchecked(bytes_of(class), 16)) };
            }
            stack.length -= 1;
            // SAFETY: below the length, which is at most the depth.
            unsafe { *stack.blocks.get_unchecked(stack.length) }
        })
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if layout.size() > LARGEST_BYTES || layout.align() > 16 {
            // SAFETY: the caller's contract.
            return unsafe { System.dealloc(block, layout) };
        }
        let class = class_of(layout.size());
        STACKS.with(|stacks| {
            // SAFETY: as above.
            let stack = unsafe { &mut (*stacks.get())[class] };
            match stack.blocks.get_mut(stack.length) {
                Some(place) => {
                    *place = block;
                    stack.length += 1;
                }
                // SAFETY: allocated so.
                None => unsafe { System.dealloc(block, Layout::from_size_align_unchecked(bytes_of(class), 16)) },
            }
        });
    }
}

#[global_allocator]
static GLOBAL: Stacks = Stacks;

fn main() -> std::process::ExitCode {
    kernmalloc_rust_bench::main()
}
