//! The facade's paths in a Linux process, with a restartable sequence where callgrind has none.

use std::alloc::Layout;
use std::hint::black_box;

use kernmalloc::{KernMalloc, MallocType, malloc_define};

mod steady;

// Valgrind does not know rseq(2), and without it a slot is taken the long way. This program stands in for kernel and C library: an
// area of its own where they keep theirs, which says CPU 0 for ever. One thread that no event restarts cannot tell the difference.
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".section .tbss, \"awT\", @nobits",
    ".balign 32",
    "kernmalloc_rseq_area: .zero 32",
    ".section .data.kernmalloc_rseq, \"aw\"",
    ".balign 8",
    ".globl __rseq_offset",
    "__rseq_offset: .quad kernmalloc_rseq_area@tpoff",
    ".globl __rseq_size",
    "__rseq_size: .long 32",
    ".text",
);

#[global_allocator]
static GLOBAL: KernMalloc = KernMalloc;

malloc_define!(M_COUNTED, "counted", "what is counted");

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_typed(bytes: usize, align: usize, owner: &'static MallocType) -> *mut u8 {
    // SAFETY: callers pass a layout's.
    owner.malloc(unsafe { Layout::from_size_align_unchecked(bytes, align) })
}

/// # Safety
/// 1. `block` is the caller's, who uses it no more.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe fn guarded_typed_free(block: *mut u8) {
    // SAFETY: 1.
    unsafe { kernmalloc::free(block) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_global(bytes: usize, align: usize) -> *mut u8 {
    // SAFETY: callers pass a layout's, not of size zero.
    unsafe { std::alloc::alloc(Layout::from_size_align_unchecked(bytes, align)) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_global_zeroed(bytes: usize, align: usize) -> *mut u8 {
    // SAFETY: callers pass a layout's, not of size zero.
    unsafe { std::alloc::alloc_zeroed(Layout::from_size_align_unchecked(bytes, align)) }
}

/// # Safety
/// 1. `block` is the caller's, of this layout, who uses it no more.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe fn guarded_global_free(block: *mut u8, bytes: usize, align: usize) {
    // SAFETY: 1.
    unsafe { std::alloc::dealloc(block, Layout::from_size_align_unchecked(bytes, align)) }
}

/// # Safety
/// 1. `block` is the caller's, of this layout.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe fn guarded_global_realloc(block: *mut u8, old: usize, align: usize, bytes: usize) -> *mut u8 {
    // SAFETY: 1.
    unsafe { std::alloc::realloc(block, Layout::from_size_align_unchecked(old, align), bytes) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_scope(owner: &'static MallocType) {
    owner.scope(|| black_box(()));
}

const ALIGN: usize = 8;

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(black_box(bytes), black_box(ALIGN)).unwrap()
}

fn typed(rounds: u32) {
    for _ in 0..rounds {
        let block = guarded_typed(black_box(64), black_box(ALIGN), black_box(&M_COUNTED));
        assert!(!block.is_null());
        // SAFETY: 1. just allocated.
        unsafe { kernmalloc::free(block) };
    }
}

fn typed_free(rounds: u32) {
    for _ in 0..rounds {
        // SAFETY: 1. just allocated.
        unsafe { guarded_typed_free(M_COUNTED.malloc(layout(64))) };
    }
}

fn global(rounds: u32) {
    for _ in 0..rounds {
        let block = guarded_global(black_box(64), black_box(ALIGN));
        assert!(!block.is_null());
        // SAFETY: just allocated.
        unsafe { std::alloc::dealloc(block, layout(64)) };
    }
}

fn global_in_scope(rounds: u32) {
    M_COUNTED.scope(|| global(rounds));
}

fn global_zeroed(rounds: u32) {
    for _ in 0..rounds {
        let block = guarded_global_zeroed(black_box(64), black_box(ALIGN));
        // SAFETY: just allocated.
        unsafe { std::alloc::dealloc(block, layout(64)) };
    }
}

fn global_free(rounds: u32) {
    for _ in 0..rounds {
        // SAFETY: 1. just allocated.
        unsafe { guarded_global_free(std::alloc::alloc(layout(64)), black_box(64), black_box(ALIGN)) };
    }
}

fn global_realloc(rounds: u32) {
    // SAFETY: not of size zero.
    let block = unsafe { std::alloc::alloc(layout(100)) };
    for round in 0..rounds {
        let (old, new) = if round % 2 == 0 { (100, 110) } else { (110, 100) };
        // SAFETY: 1. ours, of that size since the last round.
        let same = unsafe { guarded_global_realloc(block, black_box(old), black_box(ALIGN), black_box(new)) };
        assert_eq!(same, block);
    }
    // SAFETY: ours; `free` does not look at the layout's size.
    unsafe { std::alloc::dealloc(block, layout(100)) };
}

fn scope(rounds: u32) {
    for _ in 0..rounds {
        guarded_scope(black_box(&M_COUNTED));
    }
}

fn main() {
    steady::run(&[
        ("facade: MallocType::malloc, 64 B", typed),
        ("facade: free, 64 B", typed_free),
        ("facade: GlobalAlloc::alloc, 64 B", global),
        ("facade: GlobalAlloc::alloc in a scope, 64 B", global_in_scope),
        ("facade: GlobalAlloc::alloc_zeroed, 64 B", global_zeroed),
        ("facade: GlobalAlloc::dealloc, 64 B", global_free),
        ("facade: GlobalAlloc::realloc in place, 100 to 110 B", global_realloc),
        ("facade: MallocType::scope", scope),
    ]);
}
