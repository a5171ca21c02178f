//! malloc(3) and its family.

use core::ptr::null_mut;

use hosted::{Call, SYSTEM, type_of};
use kern::{MAX_REQUEST_BYTES, TypeId};

use crate::entry::{with_call, with_return, with_type};

const PAGE_BYTES: usize = 4096;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;

unsafe extern "C" {
    fn __errno_location() -> *mut i32;
}

#[cold]
#[inline(never)]
fn set_errno(error: i32) {
    // SAFETY: libc's word of this thread.
    unsafe { *__errno_location() = error };
}

/// Where an exported name was called from: `stack` points at the return address.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Stack(*const usize);

impl Stack {
    /// # Safety
    /// 1. `self` was handed on by an exported name.
    #[inline(always)]
    pub(crate) unsafe fn call(self, frame: usize) -> Call {
        // SAFETY: 1.: the return address is on the stack.
        Call { ret: unsafe { *self.0 }, stack: self.0 as usize + 8, frame }
    }

    #[inline(always)]
    unsafe fn credit(self, frame: usize) -> TypeId {
        // SAFETY: passed on.
        type_of(unsafe { self.call(frame) })
    }
}

with_type! {
    /// malloc(3).
    malloc(bytes: usize) -> *mut u8 => malloc_of, "rsi", "esi"; malloc_at, "rsi", "rdx";
    /// calloc(3).
    calloc(count: usize, bytes: usize) -> *mut u8 => calloc_of, "rdx", "edx"; calloc_at, "rdx", "rcx";
}

with_call! {
    /// realloc(3).
    realloc(block: *mut u8, bytes: usize) -> *mut u8 => realloc_at, "rdx", "rcx";
    /// reallocarray(3).
    reallocarray(block: *mut u8, count: usize, bytes: usize) -> *mut u8 => reallocarray_at, "rcx", "r8";
    /// memalign(3).
    memalign(align: usize, bytes: usize) -> *mut u8 => memalign_at, "rdx", "rcx";
    /// aligned_alloc(3).
    aligned_alloc(align: usize, bytes: usize) -> *mut u8 => aligned_alloc_at, "rdx", "rcx";
    /// posix_memalign(3).
    posix_memalign(out: *mut *mut u8, align: usize, bytes: usize) -> i32 => posix_memalign_at, "rcx", "r8";
    /// valloc(3).
    valloc(bytes: usize) -> *mut u8 => valloc_at, "rsi", "rdx";
    /// pvalloc(3).
    pvalloc(bytes: usize) -> *mut u8 => pvalloc_at, "rsi", "rdx";
}

with_return! {
    /// free(3).
    free(block: *mut u8) => free_at, "rsi";
    /// cfree(3), gone from glibc since 2.26; old programs still name it.
    cfree(block: *mut u8) => free_at, "rsi";
    /// free_sized of C23.
    free_sized(block: *mut u8, bytes: usize) => free_sized_at, "rdx";
    /// free_aligned_sized of C23.
    free_aligned_sized(block: *mut u8, align: usize, bytes: usize) => free_aligned_sized_at, "rcx";
}

/// malloc(3) for a type.
unsafe extern "C" fn malloc_of(bytes: usize, id: TypeId) -> *mut u8 {
    SYSTEM.alloc(bytes, id)
}

/// malloc(3), with the place of a call that the cache does not know, or knows for a wrapper's.
///
/// # Safety
/// 1. `stack` was handed on by an exported name.
pub unsafe extern "C" fn malloc_at(bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: 1.
    SYSTEM.alloc(bytes, hosted::type_of_uncached(unsafe { stack.call(frame) }))
}

/// calloc(3) for a type.
unsafe extern "C" fn calloc_of(count: usize, bytes: usize, id: TypeId) -> *mut u8 {
    match count.checked_mul(bytes) {
        Some(total) => SYSTEM.alloc_zeroed(total, id),
        None => SYSTEM.alloc(usize::MAX, id),
    }
}

/// calloc(3), with the place of a call as in [`malloc_at`].
///
/// # Safety
/// 1. As for [`malloc_at`].
pub unsafe extern "C" fn calloc_at(count: usize, bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: 1.
    unsafe { calloc_of(count, bytes, hosted::type_of_uncached(stack.call(frame))) }
}

/// free(3), with the caller.
///
/// # Safety
/// 1. `block` is null or the caller's, who uses it no more.
#[inline(never)]
pub unsafe extern "C" fn free_at(block: *mut u8, caller: usize) {
    // SAFETY: 1.
    unsafe { SYSTEM.free(block, caller) }
}

unsafe extern "C" fn free_sized_at(block: *mut u8, _bytes: usize, caller: usize) {
    // SAFETY: 1. of `free_at` passed on.
    unsafe { free_at(block, caller) }
}

unsafe extern "C" fn free_aligned_sized_at(block: *mut u8, _align: usize, _bytes: usize, caller: usize) {
    // SAFETY: as above.
    unsafe { free_at(block, caller) }
}

/// realloc(3), with the place of the call: null allocates; size 0 frees and returns null, as glibc does.
///
/// # Safety
/// 1. As for [`malloc_at`] and [`free_at`].
pub unsafe extern "C" fn realloc_at(block: *mut u8, bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: 1.
    unsafe {
        let call = stack.call(frame);
        if block.is_null() {
            return SYSTEM.alloc(bytes, type_of(call));
        }
        if bytes == 0 {
            SYSTEM.free(block, call.ret);
            return null_mut();
        }
        SYSTEM.realloc(block, bytes, type_of(call), call.ret)
    }
}

/// reallocarray(3), with the place of the call.
///
/// # Safety
/// 1. As for [`realloc_at`].
pub unsafe extern "C" fn reallocarray_at(
    block: *mut u8,
    count: usize,
    bytes: usize,
    stack: Stack,
    frame: usize,
) -> *mut u8 {
    match count.checked_mul(bytes) {
        // SAFETY: 1.
        Some(total) => unsafe { realloc_at(block, total, stack, frame) },
        // SAFETY: 1.
        None => unsafe { SYSTEM.alloc(usize::MAX, stack.credit(frame)) },
    }
}

/// memalign(3), with the place of the call: an alignment that is no power of two is rounded up to one, as in glibc.
///
/// # Safety
/// 1. As for [`malloc_at`].
pub unsafe extern "C" fn memalign_at(align: usize, bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    let Some(align) = align.checked_next_power_of_two() else {
        set_errno(EINVAL);
        return null_mut();
    };
    // SAFETY: 1.
    SYSTEM.alloc_aligned(bytes, align, unsafe { stack.credit(frame) })
}

/// aligned_alloc(3), with the place of the call; as lenient as glibc of before 2.38.
///
/// # Safety
/// 1. As for [`malloc_at`].
pub unsafe extern "C" fn aligned_alloc_at(align: usize, bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: 1.
    unsafe { memalign_at(align, bytes, stack, frame) }
}

/// posix_memalign(3), with the place of the call. Returns the error; `errno` and, on failure, `*out` stay as they are.
///
/// # Safety
/// 1. As for [`malloc_at`]. 2. `out` is writable.
pub unsafe extern "C" fn posix_memalign_at(
    out: *mut *mut u8,
    align: usize,
    bytes: usize,
    stack: Stack,
    frame: usize,
) -> i32 {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<usize>()) {
        return EINVAL;
    }
    // SAFETY: libc's word of this thread.
    let errno = unsafe { *__errno_location() };
    // SAFETY: 1.
    let block = SYSTEM.alloc_aligned(bytes, align, unsafe { stack.credit(frame) });
    if block.is_null() {
        set_errno(errno);
        return ENOMEM;
    }
    // SAFETY: 2.
    unsafe { *out = block };
    0
}

/// valloc(3), with the place of the call.
///
/// # Safety
/// 1. As for [`malloc_at`].
pub unsafe extern "C" fn valloc_at(bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    // SAFETY: 1.
    SYSTEM.alloc_aligned(bytes, PAGE_BYTES, unsafe { stack.credit(frame) })
}

/// pvalloc(3), with the place of the call: whole pages.
///
/// # Safety
/// 1. As for [`malloc_at`].
pub unsafe extern "C" fn pvalloc_at(bytes: usize, stack: Stack, frame: usize) -> *mut u8 {
    if bytes > MAX_REQUEST_BYTES {
        set_errno(ENOMEM);
        return null_mut();
    }
    let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
    // SAFETY: 1.
    SYSTEM.alloc_aligned(bytes, PAGE_BYTES, unsafe { stack.credit(frame) })
}

/// malloc_usable_size(3): every byte it counts may be written. 0 for null.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub extern "C" fn malloc_usable_size(block: *const u8) -> usize {
    SYSTEM.usable_bytes(block)
}
