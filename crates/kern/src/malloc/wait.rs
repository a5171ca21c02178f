//! Requests that may sleep when there is no memory: the order of reclaim, low-memory handlers, sleeping, and the last resort.

use core::ptr::{NonNull, null};
use core::sync::atomic::AtomicPtr;

use abi::Ordering;
use platform::Platform;

use super::{Flags, Malloc, Request, Waiting};
use crate::stats::TypeId;
use crate::system::MAX_REQUEST_BYTES;

/// Why handlers are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LowMemory {
    /// A request that may sleep found no memory.
    Pages,
    /// More pages are in use than the soft limit says.
    Soft,
}

/// Somebody who can give memory up, in a list that is called in rising order of `order`. FreeBSD's `vm_lowmem` event.
#[doc(alias = "vm_lowmem")]
#[derive(Debug)]
pub struct LowMemoryHandler {
    name: &'static str,
    order: i32,
    call: fn(LowMemory),
    next: AtomicPtr<LowMemoryHandler>,
}

impl LowMemoryHandler {
    /// A handler. `call` may free and may allocate without sleeping; it is never called while it runs.
    #[must_use]
    pub const fn new(name: &'static str, order: i32, call: fn(LowMemory)) -> Self {
        Self { name, order, call, next: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// What the hook of last resort decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oom {
    /// It has freed something: try again at once.
    Retry,
    /// Memory may come back: sleep.
    Wait,
    /// It will not: requests that can fail do so, others panic.
    GiveUp,
}

pub(super) struct Handlers {
    first: *const LowMemoryHandler,
    oom: Option<fn(usize) -> Oom>,
}

// SAFETY: static handlers, reached under the lock.
unsafe impl Send for Handlers {}

impl Handlers {
    pub(super) const fn new() -> Self {
        Self { first: null(), oom: None }
    }
}

impl<P: Platform> Malloc<'_, P> {
    /// Registers a handler for low memory. False when it is registered already. Never sleeps.
    #[doc(alias = "EVENTHANDLER_REGISTER")]
    pub fn register_low_memory(&self, handler: &'static LowMemoryHandler) -> bool {
        let mut handlers = self.handlers.lock();
        let (mut before, mut at): (Option<&'static LowMemoryHandler>, _) = (None, handlers.first);
        // SAFETY: the list holds static handlers only.
        while let Some(here) = unsafe { at.as_ref::<'static>() } {
            if core::ptr::eq(here, handler) {
                return false;
            }
            if here.order <= handler.order {
                before = Some(here);
            }
            at = here.next.load(Ordering::Relaxed);
        }
        let handler_ptr = core::ptr::from_ref(handler).cast_mut();
        match before {
            Some(before) => {
                handler.next.store(before.next.load(Ordering::Relaxed), Ordering::Relaxed);
                before.next.store(handler_ptr, Ordering::Relaxed);
            }
            None => {
                handler.next.store(handlers.first.cast_mut(), Ordering::Relaxed);
                handlers.first = handler_ptr;
            }
        }
        true
    }

    /// Sets what is asked when nothing else has helped; it is told the size of the request, in bytes, and may sleep.
    pub fn set_oom_hook(&self, hook: fn(usize) -> Oom) {
        self.handlers.lock().oom = Some(hook);
    }

    /// Calls the handlers, unless that is under way: a handler that runs out of memory itself does not come back here.
    pub fn call_low_memory_handlers(&self, why: LowMemory) -> bool {
        if self.reclaiming.swap(1, Ordering::Acquire) != 0 {
            return false;
        }
        let mut at = self.handlers.lock().first;
        // SAFETY: static handlers; they are never unlinked.
        while let Some(here) = unsafe { at.as_ref::<'static>() } {
            (here.call)(why);
            at = here.next.load(Ordering::Relaxed);
        }
        self.reclaiming.store(0, Ordering::Release);
        true
    }

    /// What a kernel's reclaim thread does, forever: sleeps until the soft limit is exceeded, then makes room. *May sleep.*
    #[doc(alias = "uma_reclaim_worker")]
    pub fn reclaim_once_asked(&self) {
        self.system.wait_for_reclaim_request();
        self.call_low_memory_handlers(LowMemory::Soft);
        self.system.obey_cold();
    }

    /// A request of an ordinary type that may sleep.
    pub(super) fn request_waiting(&self, name: &str, id: TypeId, request: &Request) -> Option<NonNull<u8>> {
        if !self.check_sleep(id, request) {
            let found = self.attempt(id, request);
            if found.is_none() && matches!(request.waiting, Waiting::WaitOk) {
                panic!("malloc: no memory for {} bytes of type {name}, and its caller may not sleep", request.bytes);
            }
            return found;
        }
        self.obtain(id, request)
    }

    /// A block by whatever it takes. `None` only for a request that can fail and can never be met.
    ///
    /// The order: what is free anyway; the allocator's own caches (N1.17: reclaim before giving up); memory that
    /// others give up when asked; memory that is freed while we sleep; the hook of last resort.
    pub(super) fn obtain(&self, id: TypeId, request: &Request) -> Option<NonNull<u8>> {
        if let Some(block) = self.attempt(id, request) {
            return Some(block);
        }
        if self.can_never_be_met(request) {
            return self.give_up(request);
        }
        // A failure is one that the caller sees.
        self.system.forgive(id);
        let attempt = || {
            let block = self.attempt(id, request);
            if block.is_none() {
                self.system.forgive(id);
            }
            block
        };
        if !request.flags.has(Flags::NORECLAIM) {
            self.system.reclaim();
            if let Some(block) = attempt() {
                return Some(block);
            }
            if self.call_low_memory_handlers(LowMemory::Pages) {
                self.system.reclaim();
                if let Some(block) = attempt() {
                    return Some(block);
                }
            }
        }
        if matches!(request.waiting, Waiting::CanFail) && self.system.heap_bytes() < request.bytes {
            // More than all that anybody could give back, and the port has no more: exhausted (NetBSD 1.73).
            self.system.fail_request(id);
            return None;
        }
        self.system.type_record(id).map_blocks.fetch_add(1, Ordering::Relaxed);
        let sleeper = self.system.sleeper(request.bytes);
        loop {
            let seen = self.system.wakeups();
            if self.system.is_first(&sleeper) {
                let found = attempt();
                let verdict = match found {
                    Some(_) => Oom::Wait,
                    None => self.ask_oom_hook(request.bytes),
                };
                if found.is_some() || verdict == Oom::GiveUp {
                    self.system.served(sleeper);
                    if found.is_none() {
                        self.system.fail_request(id);
                        return self.give_up(request);
                    }
                    return found;
                }
                if verdict == Oom::Retry {
                    continue;
                }
            }
            self.system.sleep(&sleeper, seen);
        }
    }

    fn ask_oom_hook(&self, bytes: usize) -> Oom {
        let hook = self.handlers.lock().oom;
        hook.map_or(Oom::Wait, |hook| hook(bytes))
    }

    /// No memory coming back would help: larger than everything.
    fn can_never_be_met(&self, request: &Request) -> bool {
        let pages = (request.bytes >> P::PAGE_SHIFT) as u64;
        // What the port says that the heap may grow to; 0 where it says nothing.
        let heap_max = self.system.header().heap_max_bytes;
        request.bytes > MAX_REQUEST_BYTES
            || request.align > MAX_REQUEST_BYTES
            || pages > self.system.page_limit()
            || heap_max != 0 && request.bytes as u64 > heap_max
    }

    fn give_up(&self, request: &Request) -> Option<NonNull<u8>> {
        match request.waiting {
            Waiting::WaitOk => panic!("malloc: {} bytes can never be had", request.bytes),
            _ => None,
        }
    }
}
