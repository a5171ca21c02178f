//! malloc(9)'s requests that wait, their flags, and what happens when memory is short.
//!
//! [`MallocType::malloc_flags`](crate::MallocType::malloc_flags) takes them. A process is short of memory when the system gives it no more,
//! or when as much is in use as `vm.kmem_size` allows.

use hosted::MALLOC;

pub use kern::malloc::{CanFail, Flags, LowMemory, LowMemoryHandler, NoWait, Oom, Wait, WaitOk};

/// Registers somebody who can give memory up; called, in rising order, before a request sleeps. False when it is registered already, or when
/// the system gives no memory for an allocator. Never sleeps.
#[doc(alias = "vm_lowmem")]
pub fn register_low_memory(handler: &'static LowMemoryHandler) -> bool {
    hosted::boot() && MALLOC.register_low_memory(handler)
}

/// Sets what is asked when nothing else has helped. It is told the size of the request, in bytes, and may sleep.
pub fn set_oom_hook(hook: fn(usize) -> Oom) {
    MALLOC.set_oom_hook(hook);
}

/// Seconds since a request last failed; `None` when none ever did. malloc_last_fail(9).
#[must_use]
pub fn malloc_last_fail() -> Option<u64> {
    if hosted::boot() { MALLOC.malloc_last_fail() } else { None }
}
