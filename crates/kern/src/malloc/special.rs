//! Blocks whose pages are of another kind than the heap's: executable, or not dumped.
//!
//! They are in pages of their own, and on a list, so that free makes the pages ordinary again before others get them. There are few,
//! and where there is none free pays one load for it.

use core::ptr::{NonNull, null_mut};

use abi::Ordering;
use platform::{PageKind, Platform};

use super::{Flags, Malloc, MallocType, Request, Waiting};
use crate::class::SLAB_MAX_BYTES;
use crate::stats::TypeId;
use crate::system::System;

/// What makes a block special.
pub(super) const FLAGS: Flags = Flags::EXEC_OR_NODUMP;

/// A special block.
struct Special {
    addr: usize,
    bytes: usize,
    flags: Flags,
    next: *mut Special,
}

/// The list of them.
pub(super) struct Specials(*mut Special);

// SAFETY: its members are the list's alone, which is reached under its lock.
unsafe impl Send for Specials {}

impl Specials {
    pub(super) const fn new() -> Self {
        Self(null_mut())
    }
}

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
        let addr = block.as_ptr() as usize;
        let bytes = self.system.usable_bytes(block.as_ptr());
        let flags = request.flags.without(plain.flags);
        let record = Request { bytes: size_of::<Special>(), align: 1, flags: Flags::NONE, ..request };
        let record = match request.waiting {
            Waiting::NoWait => self.attempt(TypeId::MALLOC, &record),
            _ => self.obtain(TypeId::MALLOC, &record),
        };
        // SAFETY: 1. whole pages of the heap, just allocated.
        let done = record.is_some() && unsafe { P::set_page_kind(addr, bytes, kind_of(flags)) };
        if let (Some(record), true) = (record, done) {
            let mut list = self.special.lock();
            let record = record.cast::<Special>();
            // SAFETY: a fresh block of that size, aligned to 16.
            unsafe { record.write(Special { addr, bytes, flags, next: list.0 }) };
            list.0 = record.as_ptr();
            self.specials.fetch_add(1, Ordering::Relaxed);
            return Some(block);
        }
        if self.traces() {
            self.tell_free(block.as_ptr());
        }
        for unused in [Some(block), record].into_iter().flatten() {
            // SAFETY: 1. just allocated.
            unsafe { self.system.free(unused.as_ptr(), 0) };
        }
        if record.is_none() {
            // It is this type's request that has failed.
            self.system.forgive(TypeId::MALLOC);
        }
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
        if self.specials.load(Ordering::Relaxed) == 0 {
            return Flags::NONE;
        }
        let list = self.special.lock();
        let mut at = list.0;
        // SAFETY: members of the list, under its lock.
        while let Some(special) = unsafe { at.as_ref() } {
            if special.addr == block as usize {
                return special.flags;
            }
            at = special.next;
        }
        Flags::NONE
    }

    /// A block that is to be freed while there are special ones, or types with a trace.
    #[cold]
    pub(super) fn free_special(&self, block: *mut u8) {
        if self.traces() {
            self.tell_free(block);
        }
        self.make_ordinary(block);
    }

    /// The pages of a block become ordinary, if they are not.
    fn make_ordinary(&self, block: *mut u8) {
        let mut list = self.special.lock();
        let mut link: *mut *mut Special = &raw mut list.0;
        // SAFETY: links of the list, under its lock.
        let found = unsafe {
            while !(*link).is_null() && (**link).addr != block as usize {
                link = &raw mut (**link).next;
            }
            let found = *link;
            if found.is_null() {
                return;
            }
            *link = (*found).next;
            found
        };
        drop(list);
        self.specials.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: off the list, hence ours; its pages are the caller's block, who gives it up.
        unsafe {
            P::set_page_kind((*found).addr, (*found).bytes, PageKind::ORDINARY);
            self.system.free(found.cast(), 0);
        }
    }
}
