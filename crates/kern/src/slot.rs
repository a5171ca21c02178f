//! A slot: what one CPU has for itself inside the platform's critical section.

use abi::{CpuCache, TypeLine, page};

use crate::class::CLASSES;
use crate::stats::TypeId;

/// The word of the platform, where this slot's counters are, and a cache per class.
///
/// All fields but `lock` are touched only by the holder of the section.
#[repr(C, align(4096))]
pub(crate) struct Slot {
    /// The platform's: zero while nobody holds the slot.
    lock: u32,
    pub(crate) index: u32,
    /// This slot's row of type lines; null until the slot was first held.
    pub(crate) lines: *const TypeLine,
    reserved: [u64; 6],
    pub(crate) caches: [CpuCache; CLASSES],
}

/// From one slot to the next: a power of two, so that the platform's restartable sequence finds a slot by a shift.
pub const SLOT_STRIDE_BYTES: usize = size_of::<Slot>();
const _: () = assert!(SLOT_STRIDE_BYTES.is_power_of_two());
/// Offset of the caches in a slot, for readers.
pub(crate) const CACHES_OFFSET: usize = core::mem::offset_of!(Slot, caches);

impl Slot {
    /// This slot's cache of a class.
    ///
    /// # Safety
    /// 1. `class` is below [`CLASSES`].
    #[inline(always)]
    pub(crate) unsafe fn cache(&mut self, class: usize) -> *mut CpuCache {
        debug_assert!(class < CLASSES);
        // SAFETY: 1.
        unsafe { self.caches.as_mut_ptr().add(class) }
    }

    /// This slot's cache for the slab that a page's word names.
    ///
    /// # Safety
    /// 1. `word` names a slab.
    #[inline(always)]
    pub(crate) unsafe fn cache_of_word(&mut self, word: u64) -> *mut CpuCache {
        // The header is as long as a cache, so that a code, which is a class plus one, finds its cache by itself.
        const { assert!(core::mem::offset_of!(Slot, caches) == size_of::<CpuCache>()) };
        let slot: *mut Self = self;
        // SAFETY: 1.: the code is at most the number of slab classes.
        unsafe { slot.cast::<CpuCache>().add(page::code(word) as usize) }
    }

    /// This slot's line of a type.
    ///
    /// # Safety
    /// 1. The caller is in the slot's section, and the slot has its lines.
    #[inline(always)]
    pub(crate) unsafe fn line<'a>(&self, id: TypeId) -> &'a TypeLine {
        // SAFETY: a row has a line for every type there can be; the object stays mapped.
        unsafe { &*self.lines.add(id.index()) }
    }
}
