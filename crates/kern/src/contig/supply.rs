//! Contiguous memory as a zone's page supply: `UMA_ZONE_CONTIG`.

use platform::{Frames, Paddr, Platform};

use super::{Contig, ContigRequest};
use crate::stats::TypeId;
use crate::zone::{Supply, Wait};

/// Slabs whose pages are physically contiguous, so that no item is in two pieces for a device. For a zone with
/// [`Flags::CONTIG`](crate::zone::Flags::CONTIG).
pub struct ContigSupply<P: Platform, F: Frames + 'static> {
    contig: &'static Contig<'static, P, F>,
    /// Whose the slabs are in the statistics.
    id: TypeId,
    /// Lowest and highest physical address of a slab, and the boundary that none crosses, as in [`ContigRequest`].
    low: Paddr,
    high: Paddr,
    boundary: u64,
}

impl<P: Platform, F: Frames + 'static> ContigSupply<P, F> {
    /// Slabs from anywhere, counted under a type.
    #[must_use]
    pub const fn new(contig: &'static Contig<'static, P, F>, id: TypeId) -> Self {
        Self { contig, id, low: Paddr(0), high: Paddr(u64::MAX), boundary: 0 }
    }

    /// Slabs between two physical addresses that cross no multiple of `boundary` (a power of two, 0 for none).
    #[must_use]
    pub const fn within(self, low: Paddr, high: Paddr, boundary: u64) -> Self {
        Self { low, high, boundary, ..self }
    }

    /// What [`ZoneConfig::supply`](crate::zone::ZoneConfig::supply) takes.
    #[must_use]
    pub fn supply(&'static self) -> Supply {
        // SAFETY: 1. `self` is for ever, and contiguous memory is for any thread. 2. `alloc` sees to the alignment; the rest is
        // `Contig::alloc`'s.
        unsafe { Supply::new(core::ptr::from_ref(self).cast_mut().cast(), Self::alloc, Self::free) }
    }

    /// See [`crate::zone::PagesAlloc`].
    ///
    /// # Safety
    /// 1. `context` is a `Self`, for ever.
    unsafe fn alloc(context: *mut (), bytes: usize, align: usize, _domain: usize, wait: Wait) -> *mut u8 {
        // SAFETY: 1.
        let this = unsafe { &*context.cast::<Self>() };
        let request = ContigRequest {
            low: this.low,
            high: this.high,
            // As the frames lie, so do the addresses of a port that maps all memory at once.
            alignment: align as u64,
            boundary: this.boundary,
            wait: wait == Wait::Sleep,
            ..ContigRequest::new(bytes)
        };
        let Ok(pages) = this.contig.alloc(this.id, &request) else { return core::ptr::null_mut() };
        if !(pages.as_ptr() as usize).is_multiple_of(align) {
            // SAFETY: 1. just allocated.
            let _ = unsafe { this.contig.free(pages.as_ptr(), bytes) };
            return core::ptr::null_mut();
        }
        pages.as_ptr()
    }

    /// See [`crate::zone::PagesFree`].
    ///
    /// # Safety
    /// 1. `context` is a `Self`, and the pages came from its `alloc`.
    unsafe fn free(context: *mut (), pages: *mut u8, bytes: usize) {
        // SAFETY: 1.; an error would say that this is no such block.
        let freed = unsafe { (*context.cast::<Self>()).contig.free(pages, bytes) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
