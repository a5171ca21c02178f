//! C++ `operator new` and `operator delete`, by their mangled names (Itanium C++ ABI, 64-bit `size_t`).
//!
//! What finds no memory goes on to the C++ library's own `operator new`, which calls the program's new handler, asks
//! malloc (us) again, and throws or returns null as the form demands.

use hosted::{SYSTEM, type_of};

use crate::entry::{with_retry, with_return};
use crate::family::{Stack, free_at};

with_retry! {
    /// `operator new(size_t)`
    _Znwm(bytes: usize) => new_at, "rsi", "rdx";
    /// `operator new[](size_t)`
    _Znam(bytes: usize) => new_at, "rsi", "rdx";
    /// `operator new(size_t, nothrow_t const&)`
    _ZnwmRKSt9nothrow_t(bytes: usize, tag: usize) => new_at, "rsi", "rdx";
    /// `operator new[](size_t, nothrow_t const&)`
    _ZnamRKSt9nothrow_t(bytes: usize, tag: usize) => new_at, "rsi", "rdx";
    /// `operator new(size_t, align_val_t)`
    _ZnwmSt11align_val_t(bytes: usize, align: usize) => new_aligned_at, "rdx", "rcx";
    /// `operator new[](size_t, align_val_t)`
    _ZnamSt11align_val_t(bytes: usize, align: usize) => new_aligned_at, "rdx", "rcx";
    /// `operator new(size_t, align_val_t, nothrow_t const&)`
    _ZnwmSt11align_val_tRKSt9nothrow_t(bytes: usize, align: usize, tag: usize) => new_aligned_at, "rdx", "rcx";
    /// `operator new[](size_t, align_val_t, nothrow_t const&)`
    _ZnamSt11align_val_tRKSt9nothrow_t(bytes: usize, align: usize, tag: usize) => new_aligned_at, "rdx", "rcx";
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

/// One attempt. Its failure is not counted: the C++ library asks again.
unsafe extern "C" fn new_at(bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: handed on by an exported name.
    let id = type_of(unsafe { stack.call(frame) });
    let block = SYSTEM.alloc(bytes, id);
    if block.is_null() {
        SYSTEM.forgive(id);
    }
    block
}

/// One attempt. An alignment that C++ would not pass (no power of two) fails.
unsafe extern "C" fn new_aligned_at(bytes: usize, align: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: handed on by an exported name.
    let id = type_of(unsafe { stack.call(frame) });
    if !align.is_power_of_two() {
        return core::ptr::null_mut();
    }
    let block = SYSTEM.alloc_aligned(bytes, align, id);
    if block.is_null() {
        SYSTEM.forgive(id);
    }
    block
}
