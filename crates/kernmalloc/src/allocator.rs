//! A malloc type as an allocator of containers.

#[cfg(all(feature = "allocator-api2", not(feature = "nightly")))]
use allocator_api2::alloc::{AllocError, Allocator};
#[cfg(feature = "nightly")]
use core::alloc::{AllocError, Allocator};

#[cfg(any(feature = "allocator-api2", feature = "nightly"))]
mod implementation {
    use super::{AllocError, Allocator};
    use crate::MallocType;
    use core::alloc::Layout;
    use core::ptr::NonNull;
    use hosted::SYSTEM;

    fn block(addr: *mut u8, bytes: usize) -> Result<NonNull<[u8]>, AllocError> {
        NonNull::new(addr).map(|addr| NonNull::slice_from_raw_parts(addr, bytes)).ok_or(AllocError)
    }

    /// Where nothing lies: aligned, and never the address of a block.
    fn nothing(layout: Layout) -> NonNull<[u8]> {
        let aligned = NonNull::new(core::ptr::without_provenance_mut(layout.align()));
        NonNull::slice_from_raw_parts(aligned.unwrap_or(NonNull::dangling()), 0)
    }

    impl MallocType {
        /// # Safety
        /// 1. As for [`Allocator::grow`] and [`Allocator::shrink`].
        unsafe fn resize_block(
            &'static self,
            old: NonNull<u8>,
            old_layout: Layout,
            layout: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            // SAFETY: 1.; a layout of no bytes has no block, and the callers have seen to those.
            let new =
                unsafe { MallocType::resize(self, old.as_ptr(), old_layout.size(), layout.size(), layout.align()) };
            block(new, layout.size())
        }
    }

    // SAFETY: blocks are disjoint, aligned, and stay until given back, from whichever copy of the reference.
    unsafe impl Allocator for &'static MallocType {
        #[inline]
        fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
            if layout.size() == 0 {
                return Ok(nothing(layout));
            }
            block(self.malloc(layout), layout.size())
        }

        fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
            if layout.size() == 0 {
                return Ok(nothing(layout));
            }
            block(self.malloc_zeroed(layout), layout.size())
        }

        #[inline]
        unsafe fn deallocate(&self, old: NonNull<u8>, layout: Layout) {
            if layout.size() != 0 {
                // SAFETY: 1. a block of `allocate`'s, which the caller gives up.
                unsafe { SYSTEM.free(old.as_ptr(), 0) }
            }
        }

        unsafe fn grow(
            &self,
            old: NonNull<u8>,
            old_layout: Layout,
            layout: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            if old_layout.size() == 0 {
                return self.allocate(layout);
            }
            // SAFETY: 1. the caller's contract.
            unsafe { self.resize_block(old, old_layout, layout) }
        }

        unsafe fn grow_zeroed(
            &self,
            old: NonNull<u8>,
            old_layout: Layout,
            layout: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            if old_layout.size() == 0 {
                return self.allocate_zeroed(layout);
            }
            // SAFETY: 1. the caller's contract; the new block has room for both.
            unsafe {
                let new = self.resize_block(old, old_layout, layout)?;
                let tail = new.cast::<u8>().add(old_layout.size());
                tail.write_bytes(0, layout.size() - old_layout.size());
                Ok(new)
            }
        }

        unsafe fn shrink(
            &self,
            old: NonNull<u8>,
            old_layout: Layout,
            layout: Layout,
        ) -> Result<NonNull<[u8]>, AllocError> {
            if layout.size() == 0 {
                // SAFETY: the caller's contract.
                unsafe { self.deallocate(old, old_layout) };
                return Ok(nothing(layout));
            }
            // SAFETY: 1. the caller's contract.
            unsafe { self.resize_block(old, old_layout, layout) }
        }
    }
}
