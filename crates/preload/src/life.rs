//! From the loader's call of our constructor to its call of our destructor; and the few things asked of other libraries,
//! none of them on the way of an allocation.

use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, Ordering};

use hosted::SYSTEM;

unsafe extern "C" {
    fn dlsym(handle: *const c_void, name: *const u8) -> *mut c_void;
    fn abort() -> !;
}

#[cfg(panic = "abort")]
const RTLD_DEFAULT: *const c_void = core::ptr::null();
pub(crate) const RTLD_NEXT: *const c_void = usize::MAX as *const c_void;

/// # Safety
/// 1. `name` ends with a NUL.
pub(crate) unsafe fn symbol(handle: *const c_void, name: &[u8]) -> Option<*mut c_void> {
    debug_assert!(name.ends_with(&[0]));
    // SAFETY: 1.
    let found = unsafe { dlsym(handle, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// The function of this name in the libraries behind ours.
///
/// # Safety
/// 1. `name` ends with a NUL.
pub(crate) unsafe extern "C" fn next_function(name: *const u8) -> *mut c_void {
    // SAFETY: 1.
    let found = unsafe { dlsym(RTLD_NEXT, name) };
    if found.is_null() {
        die(b"kernmalloc: operator new found no memory, and there is no C++ library to throw through\n");
    }
    found
}

/// Last words on stderr, then SIGABRT.
#[cold]
pub(crate) fn die(text: &[u8]) -> ! {
    hosted::write_stderr(text);
    // SAFETY: never returns.
    unsafe { abort() }
}

/// dlclose(3): addresses of a library that is gone mean nothing any more.
///
/// # Safety
/// 1. As for dlclose(3).
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub unsafe extern "C" fn dlclose(handle: *mut c_void) -> i32 {
    type Close = unsafe extern "C" fn(*mut c_void) -> i32;
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    let mut next = NEXT.load(Ordering::Relaxed);
    if next.is_null() {
        // SAFETY: the name ends with a NUL.
        next = unsafe { symbol(RTLD_NEXT, b"dlclose\0") }.unwrap_or(core::ptr::null_mut());
        NEXT.store(next, Ordering::Relaxed);
    }
    if next.is_null() {
        return -1;
    }
    if SYSTEM.is_booted() && !handle.is_null() {
        // SAFETY: 1.: a handle is the loader's `struct link_map`, whose third word is the address of the dynamic section.
        hosted::library_closing(unsafe { *handle.cast::<usize>().add(2) });
    }
    // SAFETY: libc's function of that name; 1.
    let result = unsafe { core::mem::transmute::<*mut c_void, Close>(next)(handle) };
    if SYSTEM.is_booted() {
        hosted::library_closed();
    }
    result
}

#[cfg(panic = "abort")]
extern "C" fn constructor() {
    if !hosted::boot() {
        return;
    }
    // Whose malloc does everybody call? (Our own name would lead to the program's as well, if it defines one.)
    // SAFETY: the name ends with a NUL.
    if let Some(seen) = unsafe { symbol(RTLD_DEFAULT, b"malloc\0") }
        && !hosted::same_module(seen as usize, constructor as *const () as usize)
    {
        SYSTEM.header().foreign_malloc.store(1, Ordering::Relaxed);
    }
}

#[cfg(panic = "abort")]
extern "C" fn destructor() {
    hosted::finish();
}

#[cfg(panic = "abort")]
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

#[cfg(panic = "abort")]
#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;
