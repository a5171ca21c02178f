//! A slot: what one CPU has for itself inside the platform's critical section.

use abi::{CpuCache, Row, page};

use crate::class::{CLASSES, Place};

/// Caches in a slot: one per code a class may have.
const CACHES: usize = page::class_code(CLASSES - 1) + 1;
/// Codes that no class has, whose room is the header's.
const HEADER_CACHES: usize = page::class_code(0);

/// The word of the platform, where this slot's counters are, and a cache per class, at its code.
///
/// All fields but `lock` are touched only by the holder of the section.
#[repr(C, align(4096))]
pub(crate) struct Slot {
    /// The platform's: zero while nobody holds the slot.
    lock: u64,
    /// This slot's row of type lines; none until the slot was first held.
    pub(crate) row: Row<'static>,
    pub(crate) index: u32,
    reserved: [u32; 16 * HEADER_CACHES - 5],
    caches: [CpuCache; CACHES - HEADER_CACHES],
}

/// From one slot to the next: a power of two, so that the platform's restartable sequence finds a slot by a shift.
pub const SLOT_STRIDE_BYTES: usize = size_of::<Slot>();
const _: () = assert!(SLOT_STRIDE_BYTES.is_power_of_two());
const _: () = assert!(core::mem::offset_of!(Slot, caches) == HEADER_CACHES * size_of::<CpuCache>());

impl Slot {
    /// This slot's cache of a class.
    pub(crate) fn cache(&mut self, class: usize) -> &mut CpuCache {
        &mut self.caches[page::class_code(class) - HEADER_CACHES]
    }

    /// The same, to look at.
    pub(crate) fn cache_ref(&self, class: usize) -> &CpuCache {
        &self.caches[page::class_code(class) - HEADER_CACHES]
    }

    /// This slot's cache of the class at this place.
    ///
    /// # Safety
    /// 1. The place is a class's.
    /// 2. The caller holds the slot for as long as it uses the cache.
    #[inline(always)]
    pub(crate) unsafe fn cache_at<'a>(&mut self, place: Place) -> &'a mut CpuCache {
        const { assert!(size_of::<CpuCache>() == Place::STEP) };
        debug_assert!((HEADER_CACHES..CACHES).contains(&(place.bytes() / Place::STEP)));
        let slot: *mut Self = self;
        // SAFETY: 1.; the header is as long as the caches of the codes that no class has.
        unsafe { &mut *slot.byte_add(place.bytes()).cast::<CpuCache>() }
    }
}
