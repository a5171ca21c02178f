//! Blocks whose pages are of another kind than the heap's: executable, or not dumped.
//!
//! The word of their first page says so, with a code that no other block has. So free comes here by the way of what it does not know, which
//! costs the others nothing, and makes the pages ordinary again before anybody else gets them.

use abi::page;
use platform::{PageKind, Platform};

use super::{BlockInfo, System};
use crate::stats::TypeId;

impl<P: Platform> System<P> {
    /// Makes the pages of a live block of whole pages of this kind. False, with nothing changed, for any other block, and where the port
    /// cannot.
    ///
    /// # Safety
    /// 1. The block is the caller's alone.
    pub unsafe fn make_special(&self, block: *mut u8, kind: PageKind) -> bool {
        let addr = block as usize;
        let word = self.word_of_any(addr).filter(|&word| page::kind(word) == page::LARGE);
        let Some(word) = word.filter(|_| addr.is_multiple_of(Self::PAGE)) else { return false };
        // SAFETY: 1. whole pages of a live run.
        if !unsafe { P::set_page_kind(addr, page::run_pages(word) << P::PAGE_SHIFT, kind) } {
            return false;
        }
        let mut special = page::run(page::SPECIAL_RUN, page::run_pages(word), page::run_tag(word));
        special |= if kind.executable { page::EXECUTABLE } else { 0 };
        special |= if kind.dumped { 0 } else { page::NOT_DUMPED };
        self.set_word(addr, special);
        true
    }

    /// The kind of a block's pages, if it is one of [`make_special`](Self::make_special)'s.
    #[must_use]
    pub fn special_kind(&self, block: *const u8) -> Option<PageKind> {
        let word = self.word_of_any(block as usize).filter(|&word| page::kind(word) == page::SPECIAL_RUN)?;
        (block as usize)
            .is_multiple_of(Self::PAGE)
            .then_some(PageKind { executable: word & page::EXECUTABLE != 0, dumped: word & page::NOT_DUMPED == 0 })
    }

    /// Such a block at another size: it keeps its kind, and moves, since its pages cannot grow into their neighbours.
    ///
    /// # Safety
    /// 1. The caller owns the block.
    #[cold]
    pub(super) unsafe fn resize_special(&self, info: &BlockInfo, bytes: usize, id: TypeId, caller: usize) -> *mut u8 {
        let old = info.addr as *mut u8;
        let kind = self.special_kind(old).unwrap_or(PageKind::ORDINARY);
        // No slab class has such an alignment: whole pages.
        let new = self.alloc_aligned(bytes, 2 * Self::PAGE, id);
        if new.is_null() {
            return new;
        }
        // SAFETY: 1. just allocated.
        if !unsafe { self.make_special(new, kind) } {
            // SAFETY: 1. just allocated.
            unsafe { self.free(new, caller) };
            self.fail(id);
            return core::ptr::null_mut();
        }
        // SAFETY: both hold that many bytes; the new one is fresh; 1.
        unsafe {
            core::ptr::copy_nonoverlapping(old, new, info.bytes.min(bytes));
            self.free(old, caller);
        }
        new
    }

    /// Frees such a block.
    #[cold]
    pub(super) fn free_special(&self, addr: usize, word: u64) {
        let pages = page::any_run_pages(word);
        // SAFETY: 1. the pages of a live block, whose owner gives it up.
        if !unsafe { P::set_page_kind(addr, pages << P::PAGE_SHIFT, PageKind::ORDINARY) } {
            // Never by the contract. Nobody may get executable pages by accident: they stay a block that nobody has.
            return P::warning(b"pages of a special block could not be made ordinary; they are lost");
        }
        let word = page::run(page::LARGE, pages, page::run_tag(word));
        self.set_word(addr, word);
        self.free_large(addr, word);
    }
}
