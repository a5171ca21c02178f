//! realloc.

use abi::page;
use platform::{Misuse, Platform};

use super::{BlockInfo, MAX_REQUEST_BYTES, System};
use crate::class::{SLAB_MAX_BYTES, class_bytes, class_of, run_class};
use crate::slab::ClassInfo;
use crate::stats::{Stats, TypeId};

impl<P: Platform> System<P> {
    /// Resizes a block: in place where its size class or its neighbour allows, else by moving. The block counts as freed
    /// by its old type and allocated by `id`, also when it stays. Null, with the old block intact, when there is no memory.
    /// A pointer that is no live block is reported and null returned. realloc(9).
    ///
    /// # Safety
    /// 1. The caller owns `block`, which is not null.
    pub unsafe fn realloc(&self, block: *mut u8, bytes: usize, id: TypeId, caller: usize) -> *mut u8 {
        let Some(info) = self.live_block(block as usize) else {
            let found = self.lookup(block as usize);
            if let Some(info) = found.filter(|info| info.live && info.addr == block as usize) {
                // SAFETY: 1. What `live_block` does not know is of a zone beside the classes' own.
                return unsafe { self.resize_sub(&info, bytes, id, caller) };
            }
            let what = match found {
                None if self.in_heap(block as usize) => Misuse::InvalidFree,
                None => Misuse::ForeignFree,
                Some(info) if !info.live => Misuse::DuplicateFree,
                Some(_) => Misuse::UnalignedFree,
            };
            self.report(what, block as usize, caller, found);
            return core::ptr::null_mut();
        };
        if bytes > MAX_REQUEST_BYTES {
            self.fail(id);
            return core::ptr::null_mut();
        }
        let old = info.bytes;
        if info.is_run {
            if page::code(self.word(info.addr)) == page::SPECIAL_RUN {
                // SAFETY: 1.
                return unsafe { self.resize_special(&info, bytes, id, caller) };
            }
            if bytes > SLAB_MAX_BYTES || info.stays(bytes) {
                // SAFETY: 1.
                if let Some(moved) = unsafe { self.resize_run(&info, bytes, id) } {
                    return moved;
                }
            }
        } else if info.stays(bytes) {
            // (N1.136: by the size it really has.)
            self.credit(&info, old, bytes, id);
            return block;
        }
        let new = self.alloc(bytes, id);
        if !new.is_null() {
            // SAFETY: both hold that many bytes; the new one is fresh; 1.
            unsafe {
                core::ptr::copy_nonoverlapping(block, new, old.min(bytes));
                self.free(block, caller);
            }
        }
        new
    }

    pub(crate) fn in_heap(&self, addr: usize) -> bool {
        self.word_of_any(addr).is_some()
    }

    /// Moves the credit for a block that stays (or whose pages move) from its old type to `id`, and its bytes to
    /// `new_bytes`. The word of a run is the caller's to write; an item's tag is written here.
    pub(super) fn credit(&self, info: &BlockInfo, new_bytes: usize, requested: usize, id: TypeId) {
        let word = self.word(info.addr);
        let class = ClassInfo::of_word(word);
        let mask = if info.is_run { 1 << abi::run_bit(new_bytes as u64) } else { class.size_mask };
        self.count(|slot, stats| {
            // SAFETY: inside the section of `slot`.
            unsafe {
                // Out with the old first: a block that stays was never twice, and the high-water mark must not say so.
                stats.count_free_slow(info.type_id, (*slot).row, info.bytes);
                Stats::count_alloc((*slot).row, id, new_bytes, requested, mask);
                if info.is_run {
                    // The zone that takes it back is the one of its size then.
                    if let Some(class) = run_class(info.bytes) {
                        (*slot).cache(class).count_free_elsewhere();
                    }
                    if let Some(class) = run_class(new_bytes) {
                        (*slot).cache(class).count_alloc_elsewhere();
                    }
                }
            }
        });
        if !info.is_run && info.type_id != id {
            // SAFETY: a live item of the caller's starts there.
            unsafe { *(page::tag(word, info.addr) as *mut u16) = id.tag() };
        }
    }
}

/// Up to here a block of a slab that is half used is left alone, bytes: a smaller one would hardly be smaller than the work.
const SMALL_STEPS_BYTES: usize = 128;

impl BlockInfo {
    /// Whether [`System::realloc`] to so many bytes leaves the block where it is for certain: it holds them, and a block of a slab made for
    /// them would not be of a smaller class. Half of a run of pages may lie unused.
    #[inline]
    #[must_use]
    pub const fn stays(&self, bytes: usize) -> bool {
        let old = self.bytes;
        if bytes > old {
            return false;
        }
        if self.is_run {
            // Also a run that is small, for the sake of its alignment.
            return bytes > old / 2;
        }
        bytes > old - old / 8 || (old <= SMALL_STEPS_BYTES && bytes > old / 2) || old == class_bytes(class_of(bytes))
    }
}
