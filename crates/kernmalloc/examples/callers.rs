//! Functions that allocate in every way a Rust program does, a number of blocks each that no other has, and some types. Says what
//! it holds, as `caller FUNCTION BLOCKS BYTES` and `type NAME BLOCKS BYTES`, and waits for the end of its input: meanwhile
//! `kernmalloc vmstat -m --sites -p PID` says the same.

use std::alloc::{Layout, alloc, alloc_zeroed};
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::io::Read as _;
use std::mem::forget;
use std::sync::Arc;

use kernmalloc::{KernMalloc, malloc_define};

#[global_allocator]
static GLOBAL: KernMalloc = KernMalloc;

malloc_define!(M_SCOPED, "scoped", "made inside a scope");
malloc_define!(M_BY_HAND, "by-hand", "made by name");

#[inline(never)]
fn via_box(n: usize) {
    for i in 0..n {
        forget(black_box(Box::new([i as u8; 100])));
    }
}

#[inline(never)]
fn via_capacity(n: usize) {
    for i in 0..n {
        let mut v: Vec<u64> = Vec::with_capacity(50);
        v.push(i as u64);
        forget(black_box(v));
    }
}

/// The first block by growing from nothing; the later ones replace it, and keep its owner.
#[inline(never)]
fn via_push(n: usize) {
    for i in 0..n {
        let mut v = black_box(Vec::new());
        for j in 0..40 {
            v.push(i * j);
        }
        forget(black_box(v));
    }
}

#[inline(never)]
fn via_collect(n: usize) {
    for i in 0..n {
        forget(black_box((0..i + 10).collect::<Vec<usize>>()));
    }
}

#[inline(never)]
fn via_string(n: usize) {
    for i in 0..n {
        forget(black_box(String::from(["short", "and another that is longer"][i % 2])));
    }
}

#[inline(never)]
fn via_zeroed(n: usize) {
    for _ in 0..n {
        forget(black_box(vec![0u64; 300]));
    }
}

#[inline(never)]
fn via_arc(n: usize) {
    for i in 0..n {
        forget(black_box(Arc::new(i)));
    }
}

#[inline(never)]
fn via_map(n: usize) {
    for i in 0..n {
        let mut map = HashMap::with_capacity(10);
        map.insert(i, i);
        forget(black_box(map));
    }
}

#[inline(never)]
fn via_tree(n: usize) {
    for i in 0..n {
        forget(black_box(BTreeMap::from([(i, i)])));
    }
}

#[inline(never)]
fn via_alloc(n: usize) {
    for _ in 0..n {
        // SAFETY: layouts with a size.
        unsafe {
            black_box(alloc(Layout::new::<[u64; 30]>()));
            black_box(alloc_zeroed(Layout::from_size_align(200, 256).unwrap()));
        }
    }
}

fn main() {
    via_box(173);
    via_capacity(179);
    via_push(181);
    via_collect(191);
    via_string(193);
    via_zeroed(197);
    via_arc(199);
    via_map(211);
    via_tree(223);
    via_alloc(227);
    M_SCOPED.scope(|| via_box(229));
    (0..233).for_each(|_| _ = black_box(kernmalloc::malloc(Layout::new::<[u8; 500]>(), &M_BY_HAND)));
    for (function, blocks, bytes) in [
        ("via_box", 173, 17_300),
        ("via_capacity", 179, 71_600),
        ("via_push", 181, 57_920),
        ("via_collect", 191, 160_440),
        ("via_string", 193, 2_981),
        ("via_zeroed", 197, 472_800),
        ("via_arc", 199, 4_776),
        ("via_map", 211, 54_016),
        ("via_tree", 223, 35_680),
        ("via_alloc", 454, 99_880),
    ] {
        println!("caller {function} {blocks} {bytes}");
    }
    println!("type scoped 229 {}", 229 * 112);
    println!("type by-hand 233 {}", 233 * 512);
    println!("wait");
    let _ = std::io::stdin().read(&mut [0]);
}
