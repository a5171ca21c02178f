//! What a type has from its registration to its end, in a zone of its own: FreeBSD's `struct malloc_type_internal` and `mt_zone`.
//!
//! The static object has only what a request looks at (`state`); what limits, tracers and the definer keep of a type is here. (Its statistics are
//! rows of the statistics object, so that other processes can read them.) `vmstat -z` shows the zone.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};

use abi::Ordering;
use platform::Platform;

use super::trace::TypeTrace;
use super::{Malloc, MallocType};
use crate::zone::{Flags, How, RawZone, ZoneConfig};

/// The private data of a registered type: a cache line, so that types with limits do not share one.
#[repr(C, align(64))]
pub(super) struct Private {
    /// Bytes admitted under the limit that are not counted as in use yet.
    pub(super) pending_bytes: AtomicU64,
    /// Tickets of those who sleep on the limit.
    pub(super) next_ticket: AtomicU32,
    pub(super) serving: AtomicU32,
    /// Probes; null for none, else static. See [`Malloc::set_trace`].
    pub(super) trace: AtomicPtr<TypeTrace>,
    /// The definer's, see [`Malloc::set_private`].
    definers: AtomicPtr<()>,
}

impl Private {
    /// As of a type that is registered just now. By stores, not by a write of the whole: somebody who still uses a type that was detached under
    /// him may look at what is another's now, and then reads old figures but never half of one.
    fn reset(&self) {
        self.pending_bytes.store(0, Ordering::Relaxed);
        self.next_ticket.store(0, Ordering::Relaxed);
        self.serving.store(0, Ordering::Relaxed);
        self.trace.store(null_mut(), Ordering::Relaxed);
        self.definers.store(null_mut(), Ordering::Relaxed);
    }
}

impl<'s, P: Platform> Malloc<'s, P> {
    /// Keeps a word for a type's definer: its own statistics, what a tracer keeps of the type. It is forgotten when the type is detached. False, with
    /// nothing kept, for a type that is not attached. Never sleeps.
    pub fn set_private(&self, ty: &'static MallocType, data: *mut ()) -> bool {
        let private = ty.data();
        if let Some(private) = private {
            private.definers.store(data, Ordering::Release);
        }
        private.is_some()
    }

    /// What [`set_private`](Self::set_private) keeps of a type; null before, and of a type that is not attached.
    #[must_use]
    pub fn private(&self, ty: &'static MallocType) -> *mut () {
        ty.data().map_or(null_mut(), |private| private.definers.load(Ordering::Acquire))
    }

    /// Private data for a type that is to be registered. `None` for want of memory. Never sleeps; called with no lock held.
    pub(super) fn new_private(&self) -> Option<NonNull<Private>> {
        let private = self.private_zone()?.alloc(How::NOWAIT).ok()?.cast::<Private>();
        // SAFETY: an item of the zone, which has the size and alignment, and any bytes make a valid one.
        unsafe { private.as_ref() }.reset();
        Some(private)
    }

    /// Nobody's private data any more. Called with no lock held.
    pub(super) fn free_private(&self, private: NonNull<Private>) {
        if let Some(zone) = self.private_zone() {
            // SAFETY: 1. the callers took it from the type, or never gave it one. Whoever uses the type nonetheless reads memory that stays an
            // item of this zone (`NOFREE`).
            unsafe { zone.free(private.as_ptr().cast()) };
        }
    }

    /// The zone; made for the first type.
    fn private_zone(&self) -> Option<RawZone<'s, P>> {
        let core = self.private_zone.load(Ordering::Acquire);
        if core.is_null() {
            return self.make_private_zone();
        }
        // SAFETY: 1. from `into_raw` below, of this system's; it is never destroyed.
        Some(unsafe { RawZone::from_raw(self.system, core) })
    }

    #[cold]
    fn make_private_zone(&self) -> Option<RawZone<'s, P>> {
        // So that there is one.
        let _list = self.list.lock();
        let core = self.private_zone.load(Ordering::Acquire);
        if !core.is_null() {
            // SAFETY: 1. as in `private_zone`.
            return Some(unsafe { RawZone::from_raw(self.system, core) });
        }
        let config = ZoneConfig::new("mt_zone", size_of::<Private>(), align_of::<Private>());
        let zone = self.system.zcreate(&ZoneConfig { flags: Flags::NOFREE, ..config }).ok()?;
        self.private_zone.store(zone.into_raw(), Ordering::Release);
        Some(zone)
    }
}
