//! A zone of Rust values, constructed once and reused as they are (Bonwick 1994).

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use platform::Platform;

use super::config::{Callbacks, Fail, How, Wait, ZoneConfig, ZoneError};
use super::create::Destroyed;
use super::{RawZone, ZoneStats};
use crate::System;

/// A zone of `T`.
///
/// A value is constructed when its slab is made and dropped when the slab is unmade. In between it goes from owner to owner: who gives one
/// back leaves it fit for the next ([`alloc_reset`](Self::alloc_reset) sees to it), and who gets one finds what it kept: a vector's capacity, a lock's memory. That
/// is the point of it: construction is paid once.
///
/// ```ignore
/// let zone = Zone::new(&SYSTEM, "request", || Some(Request::default()))?;
/// let mut request = zone.alloc(How::NOWAIT)?;
/// request.lines.push(line);      // the vector keeps its memory from owner to owner
/// ```
pub struct Zone<'s, P: Platform, T> {
    raw: RawZone<'s, P>,
    values: PhantomData<fn() -> T>,
}

/// What the callbacks of a typed zone need is one function pointer, which is their context.
fn context_of<T>(make: fn() -> Option<T>) -> *mut () {
    make as *mut ()
}

/// # Safety
/// 1. `context` came from [`context_of`] with this `T`; `item` has room for one, aligned.
unsafe fn init<T>(context: *mut (), item: *mut u8, _bytes: usize, _wait: Wait) -> bool {
    // SAFETY: 1.
    let make: fn() -> Option<T> = unsafe { core::mem::transmute(context) };
    let Some(value) = make() else { return false };
    // SAFETY: 1.
    unsafe { item.cast::<T>().write(value) };
    true
}

/// # Safety
/// 1. `item` is a `T` that nobody uses.
unsafe fn fini<T>(_context: *mut (), item: *mut u8, _bytes: usize) {
    // SAFETY: 1.
    unsafe { item.cast::<T>().drop_in_place() };
}

impl<'s, P: Platform, T: Send> Zone<'s, P, T> {
    /// A zone whose values `make` constructs, one slab of them at a time. `make` may allocate; `None` from it fails the request that needed the
    /// slab. If it panics, the values of the slab are dropped and the panic goes on to the requester.
    ///
    /// # Errors
    /// As [`System::zcreate`].
    pub fn new(system: &'s System<P>, name: &str, make: fn() -> Option<T>) -> Result<Self, ZoneError> {
        // SAFETY: 1. `init` and `fini` are for items of a `T`, and the context is what they want.
        let mut callbacks = unsafe { Callbacks::new(context_of(make)) }.init(init::<T>);
        if core::mem::needs_drop::<T>() {
            callbacks = callbacks.fini(fini::<T>);
        }
        // A value without size takes a byte, so that every owner has an address of his own.
        let config = ZoneConfig { callbacks, ..ZoneConfig::new(name, size_of::<T>().max(1), align_of::<T>()) };
        Ok(Self { raw: system.zcreate(&config)?, values: PhantomData })
    }

    /// A value, as its last owner left it. *May sleep* if `how` says so. [`How::zero`] is ignored: a value is not bytes.
    ///
    /// # Errors
    /// As [`RawZone::alloc_arg`].
    pub fn alloc(&self, how: How) -> Result<ZoneBox<'_, P, T>, Fail> {
        let item = self.raw.alloc(How { zero: false, ..how })?;
        Ok(ZoneBox { zone: self.raw, item: item.cast(), reset: None, value: PhantomData })
    }

    /// A value that `reset` is run on when it comes back, before the next owner sees it.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub fn alloc_reset(&self, how: How, reset: fn(&mut T)) -> Result<ZoneBox<'_, P, T>, Fail> {
        // Not by `..self.alloc(how)?`: that copies the fields, and drops the box they came from.
        let mut value = self.alloc(how)?;
        value.reset = Some(reset);
        Ok(value)
    }

    /// The zone as untyped: for limits, reserves and statistics.
    ///
    /// Only that: an item that is allocated untyped is a `T`, and must be one when it is freed.
    #[must_use]
    pub fn raw(&self) -> RawZone<'s, P> {
        self.raw
    }

    /// See [`RawZone::stats`].
    #[must_use]
    pub fn stats(&self) -> ZoneStats {
        self.raw.stats()
    }

    /// Unmakes the zone: drops every value that no owner has. Those of leaked boxes stay.
    pub fn destroy(self) -> Destroyed {
        // SAFETY: 1. boxes borrow the zone, so that none is left but leaked ones; nobody can sleep on it with `self` moved.
        let destroyed = unsafe { self.raw.destroy() };
        // A typed zone has no secondaries unless somebody made one by `raw`, who must then destroy it first.
        destroyed.unwrap_or_default()
    }
}

/// An owner's value of a [`Zone`]; dropped, the value goes back as it is.
pub struct ZoneBox<'z, P: Platform, T> {
    zone: RawZone<'z, P>,
    item: NonNull<T>,
    reset: Option<fn(&mut T)>,
    value: PhantomData<T>,
}

// SAFETY: it owns its value.
unsafe impl<P: Platform, T: Send> Send for ZoneBox<'_, P, T> {}
// SAFETY: as above.
unsafe impl<P: Platform, T: Sync> Sync for ZoneBox<'_, P, T> {}

impl<P: Platform, T> Deref for ZoneBox<'_, P, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: ours, and constructed.
        unsafe { self.item.as_ref() }
    }
}

impl<P: Platform, T> DerefMut for ZoneBox<'_, P, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: ours, and constructed.
        unsafe { self.item.as_mut() }
    }
}

impl<P: Platform, T> Drop for ZoneBox<'_, P, T> {
    fn drop(&mut self) {
        if let Some(reset) = self.reset {
            reset(self);
        }
        // SAFETY: 1. ours, and never used again. 2. from this zone.
        unsafe { self.zone.free(self.item.as_ptr().cast()) };
    }
}

impl<'z, P: Platform, T> ZoneBox<'z, P, T> {
    /// The value's address; give it back with [`from_raw`](Self::from_raw).
    #[must_use]
    pub fn into_raw(self) -> NonNull<T> {
        ManuallyDrop::new(self).item
    }

    /// # Safety
    /// 1. `item` came from [`into_raw`](Self::into_raw) of a box of this zone, and is turned back once.
    #[must_use]
    pub unsafe fn from_raw<'s: 'z>(zone: &'z Zone<'s, P, T>, item: NonNull<T>) -> Self {
        Self { zone: zone.raw, item, reset: None, value: PhantomData }
    }
}

impl<P: Platform, T: core::fmt::Debug> core::fmt::Debug for ZoneBox<'_, P, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        (**self).fmt(f)
    }
}
