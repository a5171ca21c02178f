//! malloc(9) by its C names.
//!
//! Each function is the one of the same name in `kern::malloc`; flags are C's word. Null where a request fails, which one with
//! `M_WAITOK` and without `M_CANFAIL` never does: one that could never be met is a panic.

use core::ffi::{c_int, c_long, c_void};
use core::ptr::{NonNull, null_mut};

use kern::malloc::{CanFail, FlagWord, Flags, MallocType, NoWait, WaitOk, Waiting};

use crate::Host;
use platform::Platform as _;

use crate::types::CType;

fn c_pointer(block: Option<NonNull<u8>>) -> *mut c_void {
    block.map_or(null_mut(), |block| block.as_ptr().cast())
}

/// A request by its flags. What makes no sense goes the way of [`kern::malloc::Malloc::malloc_flags`], which reports it.
fn request<H: Host>(ty: &'static MallocType, bytes: usize, align: usize, flags: c_int, more: Flags) -> *mut c_void {
    let word = FlagWord(flags.cast_unsigned());
    let Some((waiting, flags)) = word.parse() else { return H::malloc().malloc_flags(ty, bytes, word).cast() };
    let flags = flags | more;
    c_pointer(match waiting {
        Waiting::NoWait => H::malloc().malloc_aligned(ty, bytes, align, NoWait, flags),
        Waiting::CanFail => H::malloc().malloc_aligned(ty, bytes, align, CanFail, flags),
        Waiting::WaitOk => Some(H::malloc().malloc_aligned(ty, bytes, align, WaitOk, flags)),
    })
}

/// malloc(9): `bytes` of memory of type `ty`. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `ty` is a type.
pub unsafe extern "C" fn kernmalloc_malloc<H: Host>(bytes: usize, ty: *mut CType, flags: c_int) -> *mut c_void {
    // SAFETY: 1.
    let Some(ty) = (unsafe { CType::get::<H>(ty) }) else { return null_mut() };
    H::malloc().malloc_flags(ty, bytes, FlagWord(flags.cast_unsigned())).cast()
}

/// malloc_aligned(9): at a multiple of `align`, a power of two. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `ty` is a type.
pub unsafe extern "C" fn kernmalloc_malloc_aligned<H: Host>(
    bytes: usize,
    align: usize,
    ty: *mut CType,
    flags: c_int,
) -> *mut c_void {
    if !align.is_power_of_two() {
        panic!("malloc_aligned: the alignment {align} is no power of two");
    }
    // SAFETY: 1.
    let Some(ty) = (unsafe { CType::get::<H>(ty) }) else { return null_mut() };
    request::<H>(ty, bytes, align, flags, Flags::NONE)
}

/// malloc_exec(9): memory in which code can run; null, and with `M_WAITOK` a panic, where the system does not allow that. *May
/// sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `ty` is a type.
pub unsafe extern "C" fn kernmalloc_malloc_exec<H: Host>(bytes: usize, ty: *mut CType, flags: c_int) -> *mut c_void {
    // SAFETY: 1.
    let Some(ty) = (unsafe { CType::get::<H>(ty) }) else { return null_mut() };
    request::<H>(ty, bytes, 1, flags, Flags::EXEC)
}

/// mallocarray(9): `count` items of `size` bytes; a product that no computer has is never met. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `ty` is a type.
pub unsafe extern "C" fn kernmalloc_mallocarray<H: Host>(
    count: usize,
    size: usize,
    ty: *mut CType,
    flags: c_int,
) -> *mut c_void {
    // SAFETY: 1.
    unsafe { kernmalloc_malloc::<H>(count.saturating_mul(size), ty, flags) }
}

/// realloc(9): another size for a block, with what it held. Null is malloc; no bytes free it. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `ty` is a type. 2. The caller owns `block`, or it is null.
pub unsafe extern "C" fn kernmalloc_realloc<H: Host>(
    block: *mut c_void,
    bytes: usize,
    ty: *mut CType,
    flags: c_int,
) -> *mut c_void {
    // SAFETY: 1.
    let Some(ty) = (unsafe { CType::get::<H>(ty) }) else { return null_mut() };
    // SAFETY: 2.
    c_pointer(unsafe { H::malloc().realloc(ty, block.cast(), bytes, FlagWord(flags.cast_unsigned())) })
}

/// reallocf(9): realloc that frees the old block where it fails. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `ty` is a type. 2. The caller owns `block`, or it is null.
pub unsafe extern "C" fn kernmalloc_reallocf<H: Host>(
    block: *mut c_void,
    bytes: usize,
    ty: *mut CType,
    flags: c_int,
) -> *mut c_void {
    // SAFETY: 1.
    let Some(ty) = (unsafe { CType::get::<H>(ty) }) else { return null_mut() };
    // SAFETY: 2.
    c_pointer(unsafe { H::malloc().reallocf(ty, block.cast(), bytes, FlagWord(flags.cast_unsigned())) })
}

/// free(9): gives a block back, credited to the type that it was allocated with; `_ty` is what the program thinks that is. Null is
/// nothing. Never sleeps.
///
/// # Safety
/// 1. Nobody uses the block any more.
pub unsafe extern "C" fn kernmalloc_free<H: Host>(block: *mut c_void, _ty: *mut CType) {
    // SAFETY: 1.
    unsafe { H::malloc().free(block.cast()) }
}

/// zfree(9): overwrites all of the block first. Never sleeps.
///
/// # Safety
/// 1. Nobody uses the block any more.
pub unsafe extern "C" fn kernmalloc_zfree<H: Host>(block: *mut c_void, _ty: *mut CType) {
    // SAFETY: 1.
    unsafe { H::malloc().zfree(block.cast()) }
}

/// malloc_size(9), malloc_roundup(9): bytes that a request of so many is served.
pub extern "C" fn kernmalloc_malloc_size<H: Host>(bytes: usize) -> usize {
    kern::malloc::Malloc::<H::P>::malloc_size(bytes)
}

/// malloc_usable_size(9): bytes of a live block; 0 for anything else.
pub extern "C" fn kernmalloc_malloc_usable_size<H: Host>(block: *const c_void) -> usize {
    H::malloc().malloc_usable_size(block.cast())
}

/// malloc_last_fail(9): seconds since a request last failed; since the machine came up where none did.
pub extern "C" fn kernmalloc_malloc_last_fail<H: Host>() -> c_long {
    if !H::boot() {
        return 0;
    }
    let since_start = || <H::P>::now_ns() / 1_000_000_000;
    c_long::try_from(H::malloc().malloc_last_fail().unwrap_or_else(since_start)).unwrap_or(c_long::MAX)
}
