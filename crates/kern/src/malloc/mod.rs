//! malloc(9): named types with limits, requests that may or may not sleep, and what happens when memory is short.
//!
//! # Theory
//!
//! [`Malloc`] stands in front of a [`System`], which knows types by number, never sleeps and always says no when there is no
//! memory. What is added here is everything that a kernel programmer expects of malloc(9) beyond that:
//!
//! ```text
//!  a request ──► the type's state word: one compare        ordinary? ──► System: pop, count, done
//!                   │ new, limited, or not a type at all
//!                   ▼
//!               limit (admitted, refused, or asleep in line) ──► System
//!                                                                  │ no memory, and the request may sleep
//!                                                                  ▼
//!               reclaim: caches, depots, slabs ─► low-memory handlers ─► asleep until something is freed ─► oom hook
//! ```
//!
//! * `types`: the static objects and the list of them; `state`: the word that says what a type is
//! * `flags`: waiting as a type, the rest as bits
//! * `domain`: blocks from NUMA domains that the caller names
//! * `limit`: admission, first come, first served
//! * `wait`: the order of reclaim, handlers, sleeping for pages
//! * `kmem`: kmem(9), sizes given back and checked
//! * `private`: what a type has while it is registered, in a zone of its own
//! * `special`: blocks whose pages are executable or not dumped
//! * `trace`: probes per type
//! * `sizing`: `vm.kmem_size` and its relatives
//! * `settings`: what is set from outside; standing still for fork
//!
//! # What may sleep
//!
//! Only a request with [`WaitOk`] or [`CanFail`], and each of them is held to it at once: where [`Platform::may_sleep`] says
//! no it is reported, whether or not there is memory. free never sleeps.
//!
//! # Locks
//!
//! list of types → admission; list of types, sizes as applied → (the system's). admission and handlers: no lock is taken while they are held.

mod domain;
mod flags;
mod kmem;
mod limit;
mod private;
mod settings;
mod sizing;
mod special;
mod state;
mod trace;
mod types;
mod wait;

use core::cell::Cell;
use core::ptr::{NonNull, null, null_mut};

use abi::Ordering;
use core::sync::atomic::{AtomicPtr, AtomicU32};
use platform::{Lock, Misuse, MisuseReport, Platform};

use crate::class::{MIN_ALIGN, RUN_MAX_BYTES, SLAB_MAX_BYTES, class_bytes, class_of, class_of_aligned, run_bytes};
use crate::stats::TypeId;
use crate::system::{MAX_REQUEST_BYTES, System};
use domain::Domains;
use settings::Applied;
use types::{List, Look};
use wait::Handlers;

pub use flags::{CanFail, FlagWord, Flags, NoWait, Wait, WaitOk, Waiting};
pub use kmem::KmemStr;
pub use sizing::{Bounds, OLD_NAMES, Sizing, Tunables, size_kmem};
pub use trace::TypeTrace;
pub use types::{M_CACHE, M_DEVBUF, M_TEMP, MallocType, TypeError};
pub use wait::{LowMemory, LowMemoryHandler, Oom};

pub use crate::zone::DomainSet;

/// malloc(9) over an allocator. `const`-constructible beside its [`System`].
pub struct Malloc<'s, P: Platform> {
    system: &'s System<P>,
    list: Lock<P::Lock, List>,
    admission: Lock<P::Lock, ()>,
    handlers: Lock<P::Lock, Handlers>,
    applied: Lock<P::Lock, Applied>,
    /// Requests since the last that failed on purpose.
    since_failure: AtomicU32,
    /// Types with a trace: what free looks at.
    traced_types: AtomicU32,
    /// Not zero while a thread runs the low-memory handlers.
    reclaiming: AtomicU32,
    /// Bytes that a block of kmem(9) is made larger by, and the index of its type, 0 before the first.
    kmem_extra: AtomicU32,
    kmem_type: AtomicU32,
    /// The zone of types' private data, null before the first type.
    private_zone: AtomicPtr<()>,
}

/// A request beyond its size and type.
#[derive(Clone, Copy)]
struct Request {
    bytes: usize,
    /// A power of two; 1 for any.
    align: usize,
    waiting: Waiting,
    /// Meant with [`Flags::DOMAINS`].
    domains: Domains,
    flags: Flags,
}

/// Bytes of the block that serves a request of `bytes`. Sizes that no computer has are not rounded, hence never wrap (NetBSD
/// 1.146).
const fn served_bytes(bytes: usize, align: usize, page: usize) -> usize {
    if bytes > MAX_REQUEST_BYTES {
        return bytes;
    }
    match class_of_aligned(bytes, block_align(bytes, align, page)) {
        Some(class) => class_bytes(class),
        None if bytes > SLAB_MAX_BYTES && bytes <= RUN_MAX_BYTES && align <= page => class_bytes(class_of(bytes)),
        None => run_bytes(bytes, page),
    }
}

/// Alignment of a block: what was asked for, 16 at least, and the page from a page on (NetBSD 1.138).
const fn block_align(bytes: usize, align: usize, page: usize) -> usize {
    let least = if bytes >= page { page } else { MIN_ALIGN };
    if align > least { align } else { least }
}

impl<'s, P: Platform> Malloc<'s, P> {
    /// malloc(9) over this allocator.
    #[must_use]
    pub const fn new(system: &'s System<P>) -> Self {
        Self {
            system,
            list: Lock::new(List(Cell::new(null()))),
            admission: Lock::new(()),
            handlers: Lock::new(Handlers::new()),
            applied: Lock::new(Applied::NONE),
            since_failure: AtomicU32::new(0),
            traced_types: AtomicU32::new(0),
            reclaiming: AtomicU32::new(0),
            kmem_extra: AtomicU32::new(0),
            kmem_type: AtomicU32::new(0),
            private_zone: AtomicPtr::new(null_mut()),
        }
    }

    /// The allocator behind it.
    #[must_use]
    pub const fn system(&self) -> &'s System<P> {
        self.system
    }

    /// A block of `bytes`, aligned to 16 (from a page on to the page), credited to `ty`. No bytes are a valid, smallest block.
    ///
    /// *May sleep* with [`WaitOk`] (which returns the block itself) and [`CanFail`]; with [`NoWait`] it never does. Fails for
    /// want of memory, under the type's limit, or for a size that no computer has; each failure is counted for the type. malloc(9).
    ///
    /// # Panics
    /// With [`WaitOk`], for a request that could never be met.
    #[inline]
    pub fn malloc<W: Wait>(&self, ty: &'static MallocType, bytes: usize, _wait: W, flags: Flags) -> W::Block {
        W::block(self.request(ty, Request { bytes, align: 1, waiting: W::WAITING, domains: Domains::ANY, flags }))
    }

    /// malloc with the flags of C. Null where the request fails. Flags that say both or neither of `M_NOWAIT` and `M_WAITOK`
    /// are reported, and taken for `M_NOWAIT`.
    pub fn malloc_flags(&self, ty: &'static MallocType, bytes: usize, word: FlagWord) -> *mut u8 {
        let (waiting, flags) = self.parse(word);
        as_ptr(self.request(ty, Request { bytes, align: 1, waiting, domains: Domains::ANY, flags }))
    }

    fn parse(&self, word: FlagWord) -> (Waiting, Flags) {
        word.parse().unwrap_or_else(|| {
            self.misuse(Misuse::BadRequest, word.0 as usize);
            (Waiting::NoWait, Flags::NONE)
        })
    }

    /// A block at a multiple of `align` (a power of two). Otherwise as [`malloc`](Self::malloc). malloc_aligned(9).
    ///
    /// # Panics
    /// If `align` is not a power of two; as [`malloc`](Self::malloc).
    pub fn malloc_aligned<W: Wait>(
        &self,
        ty: &'static MallocType,
        bytes: usize,
        align: usize,
        _wait: W,
        flags: Flags,
    ) -> W::Block {
        assert!(align.is_power_of_two(), "malloc_aligned: {align} is not a power of two");
        W::block(self.request(ty, Request { bytes, align, waiting: W::WAITING, domains: Domains::ANY, flags }))
    }

    /// A block in which code can run. Otherwise as [`malloc`](Self::malloc). Fails where the port cannot do it. malloc_exec(9).
    ///
    /// # Panics
    /// As [`malloc`](Self::malloc), and with [`WaitOk`] where the port cannot.
    pub fn malloc_exec<W: Wait>(&self, ty: &'static MallocType, bytes: usize, wait: W, flags: Flags) -> W::Block {
        self.malloc(ty, bytes, wait, flags | Flags::EXEC)
    }

    /// A block for `count` items of `size` bytes each. A product that no computer has is a failure, never a smaller block (FreeBSD
    /// panics even without `M_WAITOK`; NetBSD 1.146 wrapped). Otherwise as [`malloc`](Self::malloc). mallocarray(9).
    ///
    /// # Panics
    /// As [`malloc`](Self::malloc).
    pub fn mallocarray<W: Wait>(
        &self,
        ty: &'static MallocType,
        count: usize,
        size: usize,
        wait: W,
        flags: Flags,
    ) -> W::Block {
        self.malloc(ty, count.saturating_mul(size), wait, flags)
    }

    /// Gives a block back, credited to the type that allocated it. Null is nothing. Never sleeps. A pointer that is no block is
    /// reported. free(9).
    ///
    /// # Safety
    /// 1. Nobody uses the block any more.
    #[inline]
    pub unsafe fn free(&self, block: *mut u8) {
        if self.traces() {
            self.tell_free(block);
        }
        // SAFETY: 1.
        unsafe { self.system.free(block, 0) }
    }

    /// Overwrites all of a block with zeros, then gives it back. Never sleeps. zfree(9).
    ///
    /// # Safety
    /// 1. Nobody uses the block any more.
    pub unsafe fn zfree(&self, block: *mut u8) {
        let bytes = self.system.usable_bytes(block);
        for at in 0..bytes {
            // SAFETY: a live block of so many bytes (none for anything else); 1. Volatile: the bytes are never read again, which a
            // compiler could take for a reason not to write them.
            unsafe { block.add(at).write_volatile(0) };
        }
        // SAFETY: 1.
        unsafe { self.free(block) }
    }

    /// Resizes a block; its contents stay, up to the smaller size. Null is [`malloc`](Self::malloc). No bytes free the block
    /// and return `None`. Where it fails the old block stays valid. In place while the size fits and is more than half of the
    /// block. With [`Flags::ZERO`] nothing beyond the old contents is zeroed (as in the BSDs). *May sleep* unless the
    /// word says `M_NOWAIT`. realloc(9).
    ///
    /// # Safety
    /// 1. The caller owns `block`, or it is null.
    pub unsafe fn realloc(
        &self,
        ty: &'static MallocType,
        block: *mut u8,
        bytes: usize,
        word: FlagWord,
    ) -> Option<NonNull<u8>> {
        let (waiting, flags) = self.parse(word);
        if block.is_null() {
            return self.request(ty, Request { bytes, align: 1, waiting, domains: Domains::ANY, flags });
        }
        if bytes == 0 {
            // SAFETY: 1.
            unsafe { self.free(block) };
            return None;
        }
        // SAFETY: 1.
        unsafe { self.resize(ty, block, Request { bytes, align: 1, waiting, domains: Domains::ANY, flags }) }
    }

    /// realloc that gives the old block back where it fails. reallocf(9).
    ///
    /// # Safety
    /// 1. As [`realloc`](Self::realloc).
    pub unsafe fn reallocf(
        &self,
        ty: &'static MallocType,
        block: *mut u8,
        bytes: usize,
        word: FlagWord,
    ) -> Option<NonNull<u8>> {
        // SAFETY: 1.
        let new = unsafe { self.realloc(ty, block, bytes, word) };
        if new.is_none() && bytes != 0 && self.system.usable_bytes(block) != 0 {
            // SAFETY: 1.; the failed call left the block alone.
            unsafe { self.free(block) };
        }
        new
    }

    /// Bytes that a request of so many would be served. malloc_size(9).
    #[doc(alias = "malloc_roundup")]
    #[must_use]
    pub const fn malloc_size(bytes: usize) -> usize {
        served_bytes(bytes, 1, System::<P>::PAGE)
    }

    /// Bytes of a live block that its owner may use; 0 for anything else. malloc_usable_size(9).
    #[must_use]
    pub fn malloc_usable_size(&self, block: *const u8) -> usize {
        self.system.usable_bytes(block)
    }

    /// Seconds since a request last failed, so that caches can hold back; `None` when none ever did. malloc_last_fail(9).
    #[must_use]
    pub fn malloc_last_fail(&self) -> Option<u64> {
        match self.system.header().last_fail_monotonic_ns.load(Ordering::Relaxed) {
            0 => None,
            at => Some(P::now_ns().saturating_sub(at) / 1_000_000_000),
        }
    }

    /// The way of every request. Ordinary types and no permission to sleep: the system's fast path, one compare later.
    #[inline]
    fn request(&self, ty: &'static MallocType, request: Request) -> Option<NonNull<u8>> {
        if request.flags.has_any(special::FLAGS) {
            return self.request_special(ty, request);
        }
        match self.look(ty) {
            Look::Plain(id) => self.request_ordinary(ty, id, &request),
            Look::Special { id, traced: true } => self.request_traced(ty, id, &request),
            Look::Special { id, traced: false } => self.request_of_special(ty, id, &request),
            Look::Bad => None,
        }
    }

    #[inline]
    fn request_ordinary(&self, ty: &'static MallocType, id: TypeId, request: &Request) -> Option<NonNull<u8>> {
        match request.waiting {
            Waiting::NoWait => self.attempt(id, request),
            _ => self.request_waiting(ty.name(), id, request),
        }
    }

    /// Asks the system once. A failure is counted.
    fn attempt(&self, id: TypeId, request: &Request) -> Option<NonNull<u8>> {
        if request.flags.has_any(Flags::RESERVE_OR_DOMAINS) {
            return self.attempt_unusual(id, request);
        }
        NonNull::new(self.ask(id, request))
    }

    /// [`attempt`](Self::attempt) with the reserve, or from domains.
    #[cold]
    fn attempt_unusual(&self, id: TypeId, request: &Request) -> Option<NonNull<u8>> {
        let from_domains = request.flags.has(Flags::DOMAINS);
        let ask = || NonNull::new(if from_domains { self.ask_in_domains(id, request) } else { self.ask(id, request) });
        let block = ask();
        if block.is_some() || !request.flags.has(Flags::USE_RESERVE) {
            return block;
        }
        // Only when it is needed: the lock of the pages would be taken at every such request.
        self.system.forgive(id);
        self.system.with_reserve(ask)
    }

    #[inline]
    fn ask(&self, id: TypeId, request: &Request) -> *mut u8 {
        let Request { bytes, align, flags, .. } = *request;
        if bytes > SLAB_MAX_BYTES && align <= System::<P>::PAGE || bytes < System::<P>::PAGE && align <= MIN_ALIGN {
            if flags.has(Flags::ZERO) {
                return self.system.alloc_zeroed(bytes, id);
            }
            return self.system.alloc(bytes, id);
        }
        let block = self.system.alloc_aligned(bytes, block_align(bytes, align, System::<P>::PAGE), id);
        if !block.is_null() && flags.has(Flags::ZERO) {
            // SAFETY: a fresh block of at least `bytes`.
            unsafe { core::ptr::write_bytes(block, 0, bytes) };
        }
        block
    }

    /// realloc proper.
    ///
    /// # Safety
    /// 1. The caller owns `block`, which is not null.
    unsafe fn resize(&self, ty: &'static MallocType, block: *mut u8, request: Request) -> Option<NonNull<u8>> {
        let (id, is_special) = match self.look(ty) {
            // The old block's type may be traced.
            Look::Plain(id) => (id, self.traces()),
            Look::Special { id, .. } => (id, true),
            Look::Bad => return None,
        };
        // SAFETY: 1., in each of the calls.
        let in_system = || NonNull::new(unsafe { self.system.realloc(block, request.bytes, id, 0) });
        let Some(info) = self.system.live_block(block as usize) else {
            // No block: reported there.
            return in_system();
        };
        let old = info.bytes;
        let kind = self.special_flags(block);
        if kind != Flags::NONE {
            // It keeps its kind, and moves: its pages are not the system's to extend.
            let new = self.request(ty, Request { flags: kind, ..request })?;
            // SAFETY: as below.
            unsafe {
                core::ptr::copy_nonoverlapping(block, new.as_ptr(), old.min(request.bytes));
                self.free(block);
            }
            return Some(new);
        }
        // (1.136: by the size that it really has.)
        let stays = info.stays(request.bytes);
        // Pages may grow where they are, or be moved without copying; and nothing is promised of what is below a page.
        let pages = request.bytes > SLAB_MAX_BYTES || request.bytes < System::<P>::PAGE;
        if stays || pages && !is_special && matches!(request.waiting, Waiting::NoWait) {
            if !stays || self.check_sleep(id, &request) {
                return in_system();
            }
        } else if pages && !is_special && self.check_sleep(id, &request) {
            if let Some(resized) = in_system() {
                return Some(resized);
            }
            self.system.forgive(id);
        }
        // A new block with all the rights of this request, and the contents moved: the old one counts until then.
        let new = self.request(ty, Request { flags: Flags::NONE, ..request })?;
        // SAFETY: both hold that many bytes, the new one is fresh; 1.
        unsafe {
            core::ptr::copy_nonoverlapping(block, new.as_ptr(), old.min(request.bytes));
            self.free(block);
        }
        Some(new)
    }

    /// Reports a request that may sleep from where that is not allowed.
    fn check_sleep(&self, id: TypeId, request: &Request) -> bool {
        if matches!(request.waiting, Waiting::NoWait) {
            return true;
        }
        match P::may_sleep() {
            Ok(()) => true,
            Err(held) => {
                self.system.header().misuses.fetch_add(1, Ordering::Relaxed);
                P::misuse(&MisuseReport {
                    what: Misuse::MaySleep(held),
                    addr: 0,
                    item: 0,
                    item_bytes: request.bytes,
                    type_index: Some(id.index() as u16),
                    caller: 0,
                    freed_by: 0,
                    zone_name: [0; 32],
                });
                false
            }
        }
    }

    fn misuse(&self, what: Misuse, addr: usize) {
        self.system.header().misuses.fetch_add(1, Ordering::Relaxed);
        P::misuse(&MisuseReport {
            what,
            addr,
            item: 0,
            item_bytes: 0,
            type_index: None,
            caller: 0,
            freed_by: 0,
            zone_name: [0; 32],
        });
    }
}

fn as_ptr(block: Option<NonNull<u8>>) -> *mut u8 {
    block.map_or(null_mut(), NonNull::as_ptr)
}
