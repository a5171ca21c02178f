//! From the loader's call of our constructor to the end of the process.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};

unsafe extern "C" {
    fn __cxa_atexit(call: extern "C" fn(*mut c_void), arg: *mut c_void, object: *mut c_void) -> c_int;
}

/// Is the process on its way out? Then types that go are no module's that is unloaded.
static EXITING: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_ending() -> bool {
    EXITING.load(Ordering::Relaxed)
}

extern "C" fn exiting(_arg: *mut c_void) {
    EXITING.store(true, Ordering::Relaxed);
}

/// Called by every type that is loaded.
///
/// exit(3) calls these handlers, the last first, and one of them runs the destructors of all objects; dlclose(3) runs
/// destructors only. That tells a module that goes from a process that does. The C library registers its own between
/// the constructors of the libraries that a program is linked with and those of the program: ours must come after it,
/// hence each time anew.
pub(crate) fn watch_exit() {
    // SAFETY: the library is never unloaded (`-z nodelete`). Where there is no memory for it, warnings may be said at
    // the end.
    unsafe { __cxa_atexit(exiting, core::ptr::null_mut(), core::ptr::null_mut()) };
}

extern "C" fn constructor() {
    // Where it fails, the first request tries again, and fails as that kind of request does.
    hosted::boot();
}

extern "C" fn destructor() {
    hosted::finish();
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;
