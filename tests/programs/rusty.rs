//! A Rust program with the system's allocator: each caller makes a number of blocks that no other makes. See wrappers.cc.

use std::alloc::{Layout, alloc, alloc_zeroed, realloc};
use std::hint::black_box;
use std::io::Read as _;

#[inline(never)]
fn via_box(n: usize) {
    for i in 0..n {
        std::mem::forget(black_box(Box::new([i as u8; 100])));
    }
}

#[inline(never)]
fn via_capacity(n: usize) {
    for i in 0..n {
        let mut v: Vec<u64> = Vec::with_capacity(50);
        v.push(i as u64);
        std::mem::forget(black_box(v));
    }
}

#[inline(never)]
fn via_zeroed(n: usize) {
    for _ in 0..n {
        // SAFETY: the layout has a size.
        black_box(unsafe { alloc_zeroed(Layout::new::<[u64; 300]>()) });
    }
}

/// An alignment beyond malloc's own: Rust asks another function of the family for it.
#[inline(never)]
fn via_aligned(n: usize) {
    for _ in 0..n {
        // SAFETY: the layout has a size.
        black_box(unsafe { alloc(Layout::from_size_align(200, 256).unwrap()) });
    }
}

#[inline(never)]
fn made_to_grow() -> *mut u8 {
    // SAFETY: the layout has a size.
    black_box(unsafe { alloc(Layout::new::<u64>()) })
}

#[inline(never)]
fn via_realloc(n: usize) {
    for _ in 0..n {
        // SAFETY: the block is of that layout.
        black_box(unsafe { realloc(made_to_grow(), Layout::new::<u64>(), 500) });
    }
}

fn main() {
    via_box(173);
    via_capacity(179);
    via_zeroed(181);
    via_aligned(191);
    via_realloc(193);
    println!("caller via_box 173 17300");
    println!("caller via_capacity 179 71600");
    println!("caller via_zeroed 181 434400");
    println!("caller via_aligned 191 38200");
    println!("caller via_realloc 193 96500");
    println!("caller made_to_grow 0 0");
    println!("wait");
    let _ = std::io::stdin().read(&mut [0]);
}
