//! Trace probes of a type: dtmalloc(4).
//!
//! A traced type has a bit in its state word, so that its requests leave the fast path where all special ones do. free knows a block and no
//! type; while any type is traced it looks the block up.

use core::ptr::{NonNull, null_mut};

use abi::Ordering;
use platform::Platform;

use super::{Flags, Malloc, MallocType, Request};
use crate::stats::TypeId;

/// What a tracer is told. Called with no lock held, by whoever allocates or frees; must not use the type it traces.
#[doc(alias = "dtmalloc")]
#[derive(Debug)]
pub struct TypeTrace {
    /// `(type, block, bytes asked for, flags)`: a request was met.
    pub malloc: fn(&'static MallocType, NonNull<u8>, usize, Flags),
    /// `(type, block, bytes as served)`: a block is about to be freed.
    pub free: fn(&'static MallocType, NonNull<u8>, usize),
}

impl<P: Platform> Malloc<'_, P> {
    /// Has every block of the type told to `trace`, from its next request on; no more with `None`. Blocks that realloc(9) resizes in place are
    /// not. A trace ends when its type is detached. A probe may be under way on another CPU when this returns. Never sleeps. dtmalloc(4).
    pub fn set_trace(&self, ty: &'static MallocType, trace: Option<&'static TypeTrace>) {
        if self.look(ty).id().is_none_or(|id| id == TypeId::OVERFLOW) {
            return;
        }
        let list = self.list.lock();
        self.exchange_trace(ty, trace.map_or(null_mut(), |trace| core::ptr::from_ref(trace).cast_mut()));
        ty.set_traced(&list, trace.is_some());
    }

    /// The type is detached. Under the list's lock.
    pub(super) fn forget_trace(&self, ty: &'static MallocType) {
        self.exchange_trace(ty, null_mut());
    }

    fn exchange_trace(&self, ty: &'static MallocType, probes: *mut TypeTrace) {
        let Some(private) = ty.data() else { return };
        let was = !private.trace.swap(probes, Ordering::AcqRel).is_null();
        match (was, !probes.is_null()) {
            (false, true) => _ = self.traced_types.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.traced_types.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }

    /// A request of a traced type, made as any other.
    pub(super) fn request_traced(&self, ty: &'static MallocType, id: TypeId, request: &Request) -> Option<NonNull<u8>> {
        let block = self.request_of_special(ty, id, request)?;
        if let Some(trace) = trace_of(ty) {
            (trace.malloc)(ty, block, request.bytes, request.flags.without(Flags::DOMAINS));
        }
        Some(block)
    }

    /// Whether any type is traced.
    pub(super) fn traces(&self) -> bool {
        self.traced_types.load(Ordering::Relaxed) != 0
    }

    /// A block that is about to be freed: its type's tracer is told, if it has one.
    pub(super) fn tell_free(&self, block: *mut u8) {
        let found = NonNull::new(block).zip(self.system.lookup(block as usize));
        // What is no live block is reported by free.
        let Some((start, info)) = found.filter(|(_, info)| info.live && info.addr == block as usize) else { return };
        let mut tracer = None;
        self.for_each_type(|ty| {
            if ty.id() == Some(info.type_id) {
                tracer = trace_of(ty).map(|trace| (ty, trace));
                return false;
            }
            true
        });
        if let Some((ty, trace)) = tracer {
            (trace.free)(ty, start, info.bytes);
        }
    }
}

fn trace_of(ty: &MallocType) -> Option<&'static TypeTrace> {
    // SAFETY: null, or static.
    ty.data().and_then(|private| unsafe { private.trace.load(Ordering::Acquire).as_ref() })
}
