//! Quantum caches of an arena, each a cache zone: vmem(9)'s small ranges out of per-CPU buckets (Bonwick and Adams 2001).
//!
//! The arena knows them by the trait [`vmem::QuantumCache`]; they get ranges from it, and return them, by the ways past its caches. So arenas
//! need no zones, and zones no arenas.

use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use platform::Platform;
use vmem::{Arena, QCACHE_MAX, QuantumCache, Request};

use super::RawZone;
use super::config::{Callbacks, Flags, How, Reclaim, Source, Wait, ZoneError};
use super::core::ZoneCore;
use crate::System;
use crate::text::Text;

/// The caches of one arena: a static, given to [`Arena::with_quantum_cache`], and told of the arena by [`attach`](Self::attach) before the arena
/// is used. Sizes whose zone finds no memory the arena serves itself.
///
/// An address is one less than its item, since 0 is an address, and no item.
pub struct QuantumZones<P: Platform, S: vmem::System> {
    system: &'static System<P>,
    arena: AtomicPtr<Arena<'static, S>>,
    lines: [Line<P, S>; QCACHE_MAX],
}

/// The cache of one multiple of the quantum; what its zone's functions are handed.
struct Line<P: Platform, S: vmem::System> {
    zone: AtomicPtr<ZoneCore<P>>,
    /// Written before the zone is made.
    arena: UnsafeCell<Option<&'static Arena<'static, S>>>,
    bytes: UnsafeCell<usize>,
}

// SAFETY: the cells are written by `attach`, once, before the zone that reads them is made.
unsafe impl<P: Platform, S: vmem::System> Sync for Line<P, S> {}

impl<P: Platform, S: vmem::System> QuantumZones<P, S> {
    /// Caches whose zones are this system's.
    #[must_use]
    pub const fn new(system: &'static System<P>) -> Self {
        Self {
            system,
            arena: AtomicPtr::new(null_mut()),
            lines: [const {
                Line { zone: AtomicPtr::new(null_mut()), arena: UnsafeCell::new(None), bytes: UnsafeCell::new(0) }
            }; QCACHE_MAX],
        }
    }

    /// Makes the zones, one for each multiple of the arena's quantum up to `max` bytes, called `NAME-BYTES`. Nothing on a second call, unless they were [detached](Self::detach). Never
    /// sleeps.
    ///
    /// # Errors
    /// As [`System::zcache_create`]: those made so far serve, for the rest the arena does.
    pub fn attach(&'static self, arena: &'static Arena<'static, S>, max: usize) -> Result<(), ZoneError> {
        let this = core::ptr::from_ref(arena).cast_mut();
        if self.arena.compare_exchange(null_mut(), this, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Ok(());
        }
        for (index, line) in self.lines.iter().enumerate().take(max / arena.quantum()) {
            let bytes = (index + 1) * arena.quantum();
            // SAFETY: the exchange above lets one caller come here, and nobody reads them before there is a zone.
            unsafe {
                *line.arena.get() = Some(arena);
                *line.bytes.get() = bytes;
            }
            let mut name = Text::<32>::new();
            name.push(arena.name().as_bytes()).push(b"-").push_number(bytes as u64);
            let name = core::str::from_utf8(name.as_bytes()).unwrap_or("quantum cache");
            // SAFETY: 1. the line is for ever. 2. an address plus one is not 0.
            let source =
                unsafe { Source::new(core::ptr::from_ref(line).cast_mut().cast(), Self::import, Self::release) };
            let zone = self.system.zcache_create(name, bytes, Flags::NOTOUCH, Callbacks::NONE, source)?;
            line.zone.store(core::ptr::from_ref(zone.core).cast_mut(), Ordering::Release);
        }
        Ok(())
    }

    /// Ends the caches: what they keep goes back to the arena, and their zones are unmade. They may be attached again.
    ///
    /// # Safety
    /// 1. No call on the arena is under way. What it gave by way of the caches is not freed any more, or is so only after they were attached again.
    pub unsafe fn detach(&self) {
        for line in &self.lines {
            let core = line.zone.swap(null_mut(), Ordering::AcqRel);
            // SAFETY: null, or the zone's record, which is never given back.
            if let Some(core) = unsafe { core.as_ref() } {
                // SAFETY: 1.: nobody else uses a zone of ours. It has no secondary zones.
                let _ = unsafe { RawZone { system: self.system, core }.destroy() };
            }
            // SAFETY: 1.; there is no zone any more that reads it.
            unsafe { *line.arena.get() = None };
        }
        self.arena.store(null_mut(), Ordering::Release);
    }

    fn zone(&self, quanta: usize) -> Option<RawZone<'static, P>> {
        let core = self.lines.get(quanta.checked_sub(1)?)?.zone.load(Ordering::Acquire);
        // SAFETY: null, or the zone's record, which is never given back; the zone lives as long as we do.
        unsafe { core.as_ref() }.map(|core| RawZone { system: self.system, core })
    }

    /// See [`super::Import`].
    ///
    /// # Safety
    /// 1. `context` is a line of ours, whose zone is being served; `out` has room for `want`.
    unsafe fn import(context: *mut (), out: *mut *mut u8, want: usize, _domain: usize, _wait: Wait) -> usize {
        // SAFETY: 1.
        let (arena, bytes) = unsafe { Self::of(context) };
        let Some(arena) = arena else { return 0 };
        for index in 0..want {
            // Whoever may sleep does so in the arena, which has order among them.
            let Ok(addr) = arena.xalloc(&Request::new(bytes), vmem::Wait::NoSleep) else { return index };
            // SAFETY: 1.
            unsafe { *out.add(index) = addr.wrapping_add(1) as *mut u8 };
        }
        want
    }

    /// See [`super::Release`].
    ///
    /// # Safety
    /// 1. `context` is a line of ours, and the items came from its `import`.
    unsafe fn release(context: *mut (), items: *const *mut u8, count: usize) {
        // SAFETY: 1.
        let (arena, bytes) = unsafe { Self::of(context) };
        let Some(arena) = arena else { return };
        for index in 0..count {
            // SAFETY: 1.
            let addr = unsafe { *items.add(index) } as usize - 1;
            if let Err(error) = arena.xfree(addr, bytes) {
                panic!("arena {}: {addr:#x} was freed, which it does not know: {error}", arena.name());
            }
        }
    }

    /// # Safety
    /// 1. `context` is a line of ours whose zone was made.
    unsafe fn of(context: *mut ()) -> (Option<&'static Arena<'static, S>>, usize) {
        // SAFETY: 1.: written before.
        unsafe {
            let line = &*context.cast::<Line<P, S>>();
            (*line.arena.get(), *line.bytes.get())
        }
    }
}

impl<P: Platform> RawZone<'_, P> {
    /// Counts an item that did not come from this cache zone and will be freed to it: beyond its limit, if need be.
    fn count_foreign(&self) {
        self.settle_limit(|limit| limit.adopt());
        self.count_alloc();
    }
}

impl<P: Platform, S: vmem::System> QuantumCache for QuantumZones<P, S> {
    fn alloc(&self, quanta: usize, _wait: vmem::Wait) -> Option<usize> {
        let item = self.zone(quanta)?.alloc(How::NOWAIT).ok()?;
        Some(item.as_ptr() as usize - 1)
    }

    fn free(&self, quanta: usize, addr: usize) {
        let item = NonNull::new(addr.wrapping_add(1) as *mut u8);
        match (self.zone(quanta), item) {
            // SAFETY: 1. the range is given up. 2. ranges of this size come from the zone, or are adopted by it.
            (Some(zone), Some(item)) => unsafe { zone.free(item.as_ptr()) },
            _ => {
                // SAFETY: null before `attach`, else an arena that is for ever.
                let arena = unsafe { self.arena.load(Ordering::Acquire).as_ref() };
                let arena = arena.expect("quantum caches are attached before their arena is used");
                if let Err(error) = arena.xfree(addr, quanta * arena.quantum()) {
                    panic!("arena {}: {addr:#x} was freed, which it does not know: {error}", arena.name());
                }
            }
        }
    }

    fn adopt(&self, quanta: usize, _addr: usize) {
        if let Some(zone) = self.zone(quanta) {
            zone.count_foreign();
        }
    }

    fn drain(&self) {
        for quanta in 1..=QCACHE_MAX {
            if let Some(zone) = self.zone(quanta) {
                zone.reclaim(Reclaim::DrainCpu);
            }
        }
    }
}
