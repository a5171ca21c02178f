//! What the kernel lets modules call: the C interface, and what C code in a kernel wants besides.
//!
//! The list is the only way in: a symbol that is not on it is undefined, whatever the kernel's own linker knew.

use core::ffi::{c_char, c_int, c_void};
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicU32, Ordering};

use capi::Symbol;
use kern::malloc::{Flags, Malloc, NoWait};
use testsuite::Host as _;

use crate::port::Kernel;
use crate::serial::CONSOLE;
use crate::start::MALLOC;
use crate::suite::Machine;
use crate::{interrupts, sched};

/// The C interface's view of this kernel.
pub(crate) struct Host;

impl capi::Host for Host {
    type P = Kernel;

    fn malloc() -> &'static Malloc<'static, Kernel> {
        &MALLOC
    }

    fn channel() -> &'static vmem::Channel {
        static CHANNEL: vmem::Channel = vmem::Channel::new();
        &CHANNEL
    }

    fn arenas() -> &'static capi::vmem9::Arenas<Self> {
        static ARENAS: capi::vmem9::Arenas<Host> = capi::vmem9::Arenas::new();
        &ARENAS
    }
}

kern::malloc_define!(
    /// Owner of threads' records.
    M_THREAD, "kthread", "threads of modules"
);

/// The address of a symbol, as modules name it.
pub(crate) fn find(name: &[u8]) -> Option<usize> {
    let all = capi::symbols::<Host>().iter().chain(OWN);
    all.into_iter().find(|symbol| symbol.name.as_bytes() == name).map(|symbol| symbol.address as usize)
}

macro_rules! own {
    ($($function:ident),* $(,)?) => {
        /// The kernel's own.
        static OWN: &[Symbol] =
            &[$(Symbol { name: stringify!($function), address: $function as *const () }),*];
    };
}

own![
    memcpy,
    memmove,
    memset,
    memcmp,
    strlen,
    kernel_print,
    kernel_effort,
    kernel_yield,
    kernel_thread,
    kernel_join,
    kernel_interrupted,
];

unsafe extern "C" {
    // See `boot`.
    fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void;
    fn memmove(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void;
    fn memset(to: *mut c_void, byte: c_int, bytes: usize) -> *mut c_void;
    fn memcmp(a: *const c_void, b: *const c_void, bytes: usize) -> c_int;
    fn strlen(text: *const c_char) -> usize;
}

/// Puts text on the console. Never sleeps.
///
/// # Safety
/// 1. `text` is readable for so many bytes.
unsafe extern "C" fn kernel_print(text: *const u8, bytes: usize) {
    use core::fmt::Write as _;
    // SAFETY: 1.
    let text = unsafe { core::slice::from_raw_parts(text, bytes) };
    let _ = write!(CONSOLE.lock(), "{}", super::text_of(text));
}

/// Per cent of the usual work that a test is to do.
extern "C" fn kernel_effort() -> c_int {
    Machine.effort() as c_int
}

extern "C" fn kernel_yield() {
    sched::yield_now();
}

type Entry = unsafe extern "C" fn(*mut c_void);

/// A thread that a module started.
struct Thread {
    entry: Entry,
    arg: *mut c_void,
    running: AtomicU32,
}

extern "C" fn run(thread: usize) -> ! {
    // SAFETY: the record stays until `running` is 0.
    let thread = unsafe { &*(thread as *const Thread) };
    // SAFETY: the module says that the function may be called so, and stays until the thread is joined.
    unsafe { (thread.entry)(thread.arg) };
    // Said by the kernel: whoever joins may unload the module, which this thread has left now.
    sched::finish(&thread.running)
}

/// Starts a thread that calls `entry(arg)`. Null when there is no memory. Every thread must be joined before its module
/// goes.
///
/// # Safety
/// 1. `entry` may be called with `arg` in another thread.
unsafe extern "C" fn kernel_thread(entry: Entry, arg: *mut c_void) -> *mut c_void {
    let Some(memory) = MALLOC.malloc(&M_THREAD, size_of::<Thread>(), NoWait, Flags::NONE) else {
        return null_mut();
    };
    let record: NonNull<Thread> = memory.cast();
    // SAFETY: fresh memory of that size, aligned to 16.
    unsafe { record.write(Thread { entry, arg, running: AtomicU32::new(1) }) };
    if sched::spawn(run, record.as_ptr() as usize).is_none() {
        // SAFETY: nobody else knows it.
        unsafe { MALLOC.free(memory.as_ptr()) };
        return null_mut();
    }
    memory.as_ptr().cast()
}

/// Waits until a thread has ended. *Sleeps.*
///
/// # Safety
/// 1. `thread` is from [`kernel_thread`], and was not joined.
unsafe extern "C" fn kernel_join(thread: *mut c_void) {
    // SAFETY: 1.
    let running = unsafe { &(*thread.cast::<Thread>()).running };
    while running.load(Ordering::SeqCst) != 0 {
        sched::wait(running, 1);
    }
    // SAFETY: 1.; the thread does not look at its record any more.
    unsafe { MALLOC.free(thread.cast()) };
}

/// Calls `body(arg)`, and meanwhile, in every timer interrupt of every CPU, `handler(arg)`.
///
/// # Safety
/// 1. Both may be called so; `handler` by several CPUs at a time.
unsafe extern "C" fn kernel_interrupted(handler: Entry, body: Entry, arg: *mut c_void) {
    let shared = arg as usize;
    // SAFETY: 1.
    let in_interrupt = move || unsafe { handler(shared as *mut c_void) };
    // SAFETY: 1.
    interrupts::with_hook(&in_interrupt, || unsafe { body(arg) });
}
