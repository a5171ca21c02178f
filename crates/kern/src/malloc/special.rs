//! Blocks whose pages are of another kind than the heap's: executable, or not dumped.
//!
//! They are in pages of their own; see `system::special` for how free knows them.

use core::ptr::NonNull;

use platform::{PageKind, Platform};

use super::{Flags, Malloc, MallocType, Request, Waiting};
use crate::class::SLAB_MAX_BYTES;
use crate::system::System;

/// What makes a block special.
pub(super) const FLAGS: Flags = Flags::EXEC_OR_NODUMP;

fn kind_of(flags: Flags) -> PageKind {
    PageKind { executable: flags.has(Flags::EXEC), dumped: !flags.has(Flags::NODUMP) }
}

impl<P: Platform> Malloc<'_, P> {
    /// A request with one of [`FLAGS`].
    #[cold]
    pub(super) fn request_special(&self, ty: &'static MallocType, request: Request) -> Option<NonNull<u8>> {
        let page = System::<P>::PAGE;
        let mut plain = Request { flags: request.flags.without(FLAGS), ..request };
        if !request.flags.has(Flags::EXEC) && request.bytes < page {
            // The slab's pages have other items, which are dumped.
            return self.request(ty, plain);
        }
        if request.bytes <= SLAB_MAX_BYTES {
            // No slab class has such an alignment: whole pages.
            plain.align = plain.align.max(2 * page);
        }
        let block = self.request(ty, plain)?;
        let bytes = self.system.usable_bytes(block.as_ptr());
        let flags = request.flags.without(plain.flags);
        // SAFETY: 1. just allocated.
        if unsafe { self.system.make_special(block.as_ptr(), kind_of(flags)) } {
            return Some(block);
        }
        if self.traces() {
            self.tell_free(block.as_ptr());
        }
        // SAFETY: 1. just allocated.
        unsafe { self.system.free(block.as_ptr(), 0) };
        if let Some(id) = ty.id() {
            self.system.fail_request(id);
        }
        if matches!(request.waiting, Waiting::WaitOk) {
            panic!("malloc: {bytes} bytes of type {} cannot be made executable", ty.name());
        }
        None
    }

    /// Which of [`FLAGS`] a block has.
    pub(super) fn special_flags(&self, block: *mut u8) -> Flags {
        let Some(kind) = self.system.special_kind(block) else { return Flags::NONE };
        let exec = if kind.executable { Flags::EXEC } else { Flags::NONE };
        exec | if kind.dumped { Flags::NONE } else { Flags::NODUMP }
    }
}
