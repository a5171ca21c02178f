//! kmem(9) by its C names. (kmem_asprintf is in the header: it takes what only C can take.)

use core::ffi::{c_char, c_uint, c_void};
use core::ptr::{NonNull, null_mut};

use kern::malloc::{NoWait, WaitOk};

use crate::Host;

/// `KM_SLEEP` and `KM_NOSLEEP` of NetBSD.
const KM_SLEEP: c_uint = 1;
const KM_NOSLEEP: c_uint = 2;

/// Runs one of two requests by the flags: exactly one of the two bits.
fn by_flags<H: Host>(
    flags: c_uint,
    sleep: impl FnOnce() -> NonNull<u8>,
    no_sleep: impl FnOnce() -> Option<NonNull<u8>>,
) -> *mut c_void {
    if !H::boot() {
        if flags == KM_SLEEP {
            panic!("kmem: the system gives no memory for an allocator");
        }
        return null_mut();
    }
    match flags {
        KM_SLEEP => sleep().as_ptr().cast(),
        KM_NOSLEEP => no_sleep().map_or(null_mut(), |block| block.as_ptr().cast()),
        other => panic!("kmem: flags {other:#x} are neither KM_SLEEP (1) nor KM_NOSLEEP (2)"),
    }
}

/// kmem_alloc(9): `bytes` of memory. *May sleep* with `KM_SLEEP`.
pub extern "C" fn kernmalloc_kmem_alloc<H: Host>(bytes: usize, flags: c_uint) -> *mut c_void {
    by_flags::<H>(flags, || H::malloc().kmem_alloc(bytes, WaitOk), || H::malloc().kmem_alloc(bytes, NoWait))
}

/// kmem_zalloc(9): `bytes` of zeros. *May sleep* with `KM_SLEEP`.
pub extern "C" fn kernmalloc_kmem_zalloc<H: Host>(bytes: usize, flags: c_uint) -> *mut c_void {
    by_flags::<H>(flags, || H::malloc().kmem_zalloc(bytes, WaitOk), || H::malloc().kmem_zalloc(bytes, NoWait))
}

/// kmem_free(9): gives `bytes` of memory back; another size than was asked for is reported with both. Never sleeps.
///
/// # Safety
/// 1. Nobody uses the memory any more.
pub unsafe extern "C" fn kernmalloc_kmem_free<H: Host>(block: *mut c_void, bytes: usize) {
    // SAFETY: 1.
    unsafe { H::malloc().kmem_free(block.cast(), bytes) }
}

/// kmem_intr_alloc(9): kmem_alloc from where an interrupt handler may be.
pub extern "C" fn kernmalloc_kmem_intr_alloc<H: Host>(bytes: usize, flags: c_uint) -> *mut c_void {
    by_flags::<H>(flags, || H::malloc().kmem_intr_alloc(bytes, WaitOk), || H::malloc().kmem_intr_alloc(bytes, NoWait))
}

/// kmem_intr_zalloc(9): kmem_zalloc from where an interrupt handler may be.
pub extern "C" fn kernmalloc_kmem_intr_zalloc<H: Host>(bytes: usize, flags: c_uint) -> *mut c_void {
    by_flags::<H>(flags, || H::malloc().kmem_intr_zalloc(bytes, WaitOk), || H::malloc().kmem_intr_zalloc(bytes, NoWait))
}

/// kmem_intr_free(9): kmem_free from where an interrupt handler may be.
///
/// # Safety
/// 1. Nobody uses the memory any more.
pub unsafe extern "C" fn kernmalloc_kmem_intr_free<H: Host>(block: *mut c_void, bytes: usize) {
    // SAFETY: 1.
    unsafe { H::malloc().kmem_intr_free(block.cast(), bytes) }
}

/// kmem_strndup(9): a copy of at most `most` bytes of a text, and a NUL. *May sleep* with `KM_SLEEP`.
///
/// # Safety
/// 1. `text` is readable to its NUL, or for `most` bytes if that comes first.
pub unsafe extern "C" fn kernmalloc_kmem_strndup<H: Host>(
    text: *const c_char,
    most: usize,
    flags: c_uint,
) -> *mut c_char {
    let mut len = 0;
    // SAFETY: 1.
    while len < most && unsafe { text.add(len).read() } != 0 {
        len += 1;
    }
    let copy = kernmalloc_kmem_alloc::<H>(len + 1, flags).cast::<c_char>();
    if !copy.is_null() {
        // SAFETY: 1.; a fresh block of `len + 1` bytes.
        unsafe {
            core::ptr::copy_nonoverlapping(text, copy, len);
            copy.add(len).write(0);
        }
    }
    copy
}

/// kmem_strdupsize(9): a copy of a text, and through `size`, unless it is null, the bytes that kmem_free wants to hear. *May
/// sleep* with `KM_SLEEP`.
///
/// # Safety
/// 1. `text` ends with a NUL. 2. `size` is null or may be written to.
pub unsafe extern "C" fn kernmalloc_kmem_strdupsize<H: Host>(
    text: *const c_char,
    size: *mut usize,
    flags: c_uint,
) -> *mut c_char {
    // SAFETY: 1.
    let (copy, len) = unsafe {
        (
            kernmalloc_kmem_strndup::<H>(text, usize::MAX, flags),
            core::ffi::CStr::from_ptr(text).to_bytes_with_nul().len(),
        )
    };
    if !size.is_null() {
        // SAFETY: 2.
        unsafe { size.write(len) };
    }
    copy
}

/// kmem_strfree(9): gives such a copy back, by its length. Null is nothing. Never sleeps.
///
/// # Safety
/// 1. A text of these functions, as long as it was, which nobody uses any more.
pub unsafe extern "C" fn kernmalloc_kmem_strfree<H: Host>(text: *mut c_char) {
    // SAFETY: 1.
    unsafe { H::malloc().kmem_strfree(text.cast()) }
}
