//! Memory for the allocator's own records: descriptors, buckets, boundary tags, slots.
//!
//! A bump pointer over the platform's meta region, and free lists by size in steps of 64 bytes. Records are never
//! given back to the system: there are few, and they are reused. This is the boot stage as well: it needs
//! nothing but [`Platform::extend_meta`].

use core::marker::PhantomData;
use core::ptr::NonNull;

use platform::Platform;

/// Free lists for records up to `STEPS * 64` bytes.
const STEPS: usize = 80;
const STEP_BYTES: usize = 64;

/// The record allocator; its owner keeps it behind a lock.
pub(crate) struct Meta<P> {
    next: usize,
    end: usize,
    /// Singly linked through the first word of each free record.
    free: [usize; STEPS + 1],
    used_bytes: usize,
    platform: PhantomData<P>,
}

impl<P: Platform> Meta<P> {
    pub(crate) const fn new() -> Self {
        Self { next: 0, end: 0, free: [0; STEPS + 1], used_bytes: 0, platform: PhantomData }
    }

    /// A record of `bytes`, aligned to 64, zeroed. `None` when the system has no more.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        let steps = bytes.div_ceil(STEP_BYTES);
        let size = steps * STEP_BYTES;
        let addr = match self.free.get(steps) {
            Some(&head) if head != 0 => {
                // SAFETY: on the list are records given to `free`, ours alone, at least a word long.
                self.free[steps] = unsafe { *(head as *const usize) };
                // SAFETY: as above; the record is `size` bytes.
                unsafe { core::ptr::write_bytes(head as *mut u8, 0, size) };
                head
            }
            _ => self.bump(size)?,
        };
        self.used_bytes += size;
        NonNull::new(addr as *mut u8)
    }

    fn bump(&mut self, size: usize) -> Option<usize> {
        if self.end - self.next < size {
            let extent = P::extend_meta(size)?;
            if extent.addr != self.end {
                // A gap: what was left of the old extent stays unused. It is less than a record.
                self.next = extent.addr;
            }
            self.end = extent.addr + extent.bytes;
        }
        let addr = self.next;
        self.next += size;
        Some(addr)
    }

    /// Takes a record back.
    ///
    /// # Safety
    /// 1. `record` came from [`alloc`](Self::alloc) with the same `bytes` and is not used any more.
    pub(crate) unsafe fn free(&mut self, record: NonNull<u8>, bytes: usize) {
        let steps = bytes.div_ceil(STEP_BYTES);
        self.used_bytes -= steps * STEP_BYTES;
        if let Some(head) = self.free.get_mut(steps) {
            // SAFETY: 1. gives us the record, which is at least a word long and aligned.
            unsafe { *record.as_ptr().cast::<usize>() = *head };
            *head = record.as_ptr() as usize;
        }
    }

    /// Bytes in records.
    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}
