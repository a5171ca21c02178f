//! C++ `operator new` and `operator delete`, by their mangled names (Itanium C++ ABI, 64-bit `size_t`).
//!
//! A throwing new that finds no memory calls the program's new handler until there is none, then throws through the C++
//! library that the program has loaded; without one it cannot be called.

use hosted::{SYSTEM, type_of};

use crate::entry::{with_call, with_return};
use crate::family::{Stack, free_at};
use crate::life;

with_call! {
    /// `operator new(size_t)`
    _Znwm(bytes: usize) -> *mut u8 => new_at, "rsi", "rdx";
    /// `operator new[](size_t)`
    _Znam(bytes: usize) -> *mut u8 => new_at, "rsi", "rdx";
    /// `operator new(size_t, nothrow_t const&)`
    _ZnwmRKSt9nothrow_t(bytes: usize, tag: usize) -> *mut u8 => new_nothrow_at, "rdx", "rcx";
    /// `operator new[](size_t, nothrow_t const&)`
    _ZnamRKSt9nothrow_t(bytes: usize, tag: usize) -> *mut u8 => new_nothrow_at, "rdx", "rcx";
    /// `operator new(size_t, align_val_t)`
    _ZnwmSt11align_val_t(bytes: usize, align: usize) -> *mut u8 => new_aligned_at, "rdx", "rcx";
    /// `operator new[](size_t, align_val_t)`
    _ZnamSt11align_val_t(bytes: usize, align: usize) -> *mut u8 => new_aligned_at, "rdx", "rcx";
    /// `operator new(size_t, align_val_t, nothrow_t const&)`
    _ZnwmSt11align_val_tRKSt9nothrow_t(bytes: usize, align: usize, tag: usize) -> *mut u8 => new_aligned_nothrow_at, "rcx", "r8";
    /// `operator new[](size_t, align_val_t, nothrow_t const&)`
    _ZnamSt11align_val_tRKSt9nothrow_t(bytes: usize, align: usize, tag: usize) -> *mut u8 => new_aligned_nothrow_at, "rcx", "r8";
}

with_return! {
    /// `operator delete(void*)`
    _ZdlPv(block: *mut u8) => free_at, "rsi";
    /// `operator delete[](void*)`
    _ZdaPv(block: *mut u8) => free_at, "rsi";
    /// `operator delete(void*, size_t)`
    _ZdlPvm(block: *mut u8, bytes: usize) => free_at, "rsi";
    /// `operator delete[](void*, size_t)`
    _ZdaPvm(block: *mut u8, bytes: usize) => free_at, "rsi";
    /// `operator delete(void*, nothrow_t const&)`
    _ZdlPvRKSt9nothrow_t(block: *mut u8, tag: usize) => free_at, "rsi";
    /// `operator delete[](void*, nothrow_t const&)`
    _ZdaPvRKSt9nothrow_t(block: *mut u8, tag: usize) => free_at, "rsi";
    /// `operator delete(void*, align_val_t)`
    _ZdlPvSt11align_val_t(block: *mut u8, align: usize) => free_at, "rsi";
    /// `operator delete[](void*, align_val_t)`
    _ZdaPvSt11align_val_t(block: *mut u8, align: usize) => free_at, "rsi";
    /// `operator delete(void*, size_t, align_val_t)`
    _ZdlPvmSt11align_val_t(block: *mut u8, bytes: usize, align: usize) => free_at, "rsi";
    /// `operator delete[](void*, size_t, align_val_t)`
    _ZdaPvmSt11align_val_t(block: *mut u8, bytes: usize, align: usize) => free_at, "rsi";
    /// `operator delete(void*, align_val_t, nothrow_t const&)`
    _ZdlPvSt11align_val_tRKSt9nothrow_t(block: *mut u8, align: usize, tag: usize) => free_at, "rsi";
    /// `operator delete[](void*, align_val_t, nothrow_t const&)`
    _ZdaPvSt11align_val_tRKSt9nothrow_t(block: *mut u8, align: usize, tag: usize) => free_at, "rsi";
}

/// One attempt. An alignment that C++ would not pass (no power of two) fails.
unsafe fn attempt(bytes: usize, align: usize, stack: Stack, frame: usize) -> *mut u8 {
    if !align.is_power_of_two() {
        return core::ptr::null_mut();
    }
    // SAFETY: handed on by an exported name.
    let id = type_of(unsafe { stack.call(frame) });
    SYSTEM.alloc_aligned(bytes, align, id)
}

/// As long as there is a new handler: calls it and tries again.
#[cold]
#[inline(never)]
unsafe extern "C-unwind" fn retry(bytes: usize, align: usize, stack: Stack, frame: usize) -> *mut u8 {
    while let Some(handler) = life::new_handler() {
        // SAFETY: the program's own function, called as `operator new` shall; it may throw.
        unsafe { handler() };
        // SAFETY: passed on.
        let block = unsafe { attempt(bytes, align, stack, frame) };
        if !block.is_null() {
            return block;
        }
    }
    core::ptr::null_mut()
}

unsafe extern "C-unwind" fn new_at(bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: handed on by an exported name.
    let block = SYSTEM.alloc(bytes, type_of(unsafe { stack.call(frame) }));
    // SAFETY: as above.
    if block.is_null() { unsafe { or_throw(bytes, 1, stack, frame) } } else { block }
}

#[cold]
#[inline(never)]
unsafe extern "C-unwind" fn or_throw(bytes: usize, align: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: passed on.
    let block = unsafe { retry(bytes, align, stack, frame) };
    if block.is_null() {
        life::throw_bad_alloc();
    }
    block
}

unsafe extern "C-unwind" fn new_aligned_at(bytes: usize, align: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: handed on by an exported name.
    let block = unsafe { attempt(bytes, align, stack, frame) };
    // SAFETY: as above.
    if block.is_null() { unsafe { or_throw(bytes, align, stack, frame) } } else { block }
}

unsafe extern "C-unwind" fn new_nothrow_at(bytes: usize, _tag: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: handed on by an exported name.
    unsafe {
        let block = attempt(bytes, 1, stack, frame);
        if block.is_null() { retry(bytes, 1, stack, frame) } else { block }
    }
}

unsafe extern "C-unwind" fn new_aligned_nothrow_at(
    bytes: usize,
    align: usize,
    _tag: usize,
    stack: Stack,
    frame: usize,
) -> *mut u8 {
    // SAFETY: handed on by an exported name.
    unsafe {
        let block = attempt(bytes, align, stack, frame);
        if block.is_null() { retry(bytes, align, stack, frame) } else { block }
    }
}
