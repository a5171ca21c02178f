//! From the loader's call of our constructor to the end of the process.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};

use capi::Host as _;

use crate::Process;

unsafe extern "C" {
    /// glibc's pthread_atfork(3) as shared libraries call it.
    fn __register_atfork(
        prepare: extern "C" fn(),
        parent: extern "C" fn(),
        child: extern "C" fn(),
        library: *const u8,
    ) -> c_int;
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
    // After the allocator's handlers, so that ours run before them and take the arenas' locks first: an arena may be waiting for a boundary tag.
    // SAFETY: the handlers live as long as the process: the library is never unloaded.
    unsafe { __register_atfork(prepare, parent, child, core::ptr::null()) };
}

extern "C" fn prepare() {
    Process::arenas().freeze();
}

extern "C" fn parent() {
    // SAFETY: 1. `prepare` froze them.
    unsafe { Process::arenas().thaw() };
}

extern "C" fn child() {
    // SAFETY: 1. the thread that we are a copy of froze them.
    unsafe {
        Process::arenas().forget_sleepers();
        Process::arenas().thaw();
    }
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
