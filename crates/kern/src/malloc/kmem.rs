//! kmem(9): the caller gives the size back, and it is checked.
//!
//! # How the size is known
//!
//! A block knows its size class, not what was asked for. Where the request left at least eight bytes of the block unused, the
//! last eight hold the size, keyed by the address; a wrong size is then told from the right one exactly, and so is an overrun
//! that reached them. Where it left fewer, those bytes are the caller's, and a size that would have left more is wrong. With
//! [`Malloc::set_kmem_diagnostic`] every request is made eight bytes larger, so that every size is known exactly
//! (`DIAGNOSTIC` in NetBSD).

use core::ptr::NonNull;

use abi::Ordering;
use platform::{Misuse, MisuseReport, Platform};

use super::{Flags, Malloc, Wait, Waiting};
use crate::stats::TypeId;

/// Bytes of the record.
const RECORD: usize = size_of::<u64>();
/// An odd number without pattern; its inverse undoes it.
const KEY: u64 = 0x9e37_79b9_7f4a_7c15;
const KEY_INVERSE: u64 = {
    // Newton: each step doubles the bits that are right.
    let mut inverse = KEY;
    let mut step = 0;
    while step < 6 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(KEY.wrapping_mul(inverse)));
        step += 1;
    }
    assert!(KEY.wrapping_mul(inverse) == 1);
    inverse
};

fn mask(addr: usize) -> u64 {
    (addr as u64).rotate_left(29) ^ 0x5bd1_e995_c2b2_ae35
}

fn encode(addr: usize, bytes: usize) -> u64 {
    (bytes as u64).wrapping_mul(KEY) ^ mask(addr)
}

fn decode(addr: usize, word: u64) -> usize {
    (word ^ mask(addr)).wrapping_mul(KEY_INVERSE) as usize
}

/// A string of [`Malloc::kmem_asprintf`] and its relatives: NUL-terminated, with its size beside it.
#[derive(Clone, Copy, Debug)]
pub struct KmemStr {
    /// First byte.
    pub text: NonNull<u8>,
    /// Bytes with the NUL: what kmem_free wants to hear.
    pub size: usize,
}

impl<P: Platform> Malloc<'_, P> {
    /// `bytes` of memory, contents undefined. *May sleep* with [`WaitOk`](super::WaitOk) (`KM_SLEEP`), never with
    /// [`NoWait`](super::NoWait) (`KM_NOSLEEP`). Not for interrupt handlers, even with `KM_NOSLEEP`: that is reported. A request for
    /// no bytes is a bug and is reported, too; it gets the smallest block. kmem_alloc(9).
    ///
    /// # Panics
    /// With `WaitOk`, for a request that could never be met.
    pub fn kmem_alloc<W: Wait>(&self, bytes: usize, wait: W) -> W::Block {
        self.not_in_interrupt(bytes);
        self.kmem_intr(bytes, wait, Flags::NONE)
    }

    /// As [`kmem_alloc`](Self::kmem_alloc), of zeros. kmem_zalloc(9).
    ///
    /// # Panics
    /// As [`kmem_alloc`](Self::kmem_alloc).
    pub fn kmem_zalloc<W: Wait>(&self, bytes: usize, wait: W) -> W::Block {
        self.not_in_interrupt(bytes);
        self.kmem_intr(bytes, wait, Flags::ZERO)
    }

    /// As [`kmem_alloc`](Self::kmem_alloc), also for interrupt handlers (which may not sleep). kmem_intr_alloc(9).
    ///
    /// # Panics
    /// As [`kmem_alloc`](Self::kmem_alloc).
    pub fn kmem_intr_alloc<W: Wait>(&self, bytes: usize, wait: W) -> W::Block {
        self.kmem_intr(bytes, wait, Flags::NONE)
    }

    /// As [`kmem_intr_alloc`](Self::kmem_intr_alloc), of zeros. kmem_intr_zalloc(9).
    ///
    /// # Panics
    /// As [`kmem_alloc`](Self::kmem_alloc).
    pub fn kmem_intr_zalloc<W: Wait>(&self, bytes: usize, wait: W) -> W::Block {
        self.kmem_intr(bytes, wait, Flags::ZERO)
    }

    /// From now on every size is recorded, at the price of eight bytes a block. Before the first block of kmem(9), if at all.
    pub fn set_kmem_diagnostic(&self) {
        self.kmem_extra.store(RECORD as u32, Ordering::Relaxed);
    }

    fn kmem_intr<W: Wait>(&self, bytes: usize, _wait: W, flags: Flags) -> W::Block {
        if bytes == 0 {
            self.misuse(Misuse::BadRequest, 0);
        }
        let extra = self.kmem_extra.load(Ordering::Relaxed) as usize;
        let request = super::Request {
            bytes: bytes.saturating_add(extra),
            align: 1,
            waiting: W::WAITING,
            domains: super::Domains::ANY,
            flags,
        };
        let id = self.kmem_id();
        let block = match request.waiting {
            Waiting::NoWait => self.attempt(id, &request),
            _ => self.request_waiting("kmem", id, &request),
        };
        if let Some(block) = block {
            let addr = block.as_ptr() as usize;
            let served = self.system.usable_bytes(block.as_ptr());
            let word = if served - bytes >= RECORD { encode(addr, bytes) } else { 0 };
            // Where there is no room for a record, its place is cleared: what an earlier block left there must not be taken for one. A
            // block of zeros loses nothing by that.
            // SAFETY: the last word of a fresh block, whose size is a multiple of 16.
            unsafe { ((addr + served - RECORD) as *mut u64).write(word) };
        }
        W::block(block)
    }

    /// The type that kmem(9)'s blocks are credited to; it is this allocator's own.
    fn kmem_id(&self) -> TypeId {
        let known = |index: u32| TypeId::new(index as usize).filter(|id| id.index() >= TypeId::BUILT_IN);
        if let Some(id) = known(self.kmem_type.load(Ordering::Acquire)) {
            return id;
        }
        let _list = self.list.lock();
        if let Some(id) = known(self.kmem_type.load(Ordering::Acquire)) {
            return id;
        }
        let id = self.system.register_type(abi::type_kind::STATIC, abi::NO_LIB, 0, b"kmem");
        if let Some(id) = id {
            self.kmem_type.store(id.index() as u32, Ordering::Release);
        }
        id.unwrap_or(TypeId::OVERFLOW)
    }

    /// Gives back `bytes` of memory that [`kmem_alloc`](Self::kmem_alloc) or [`kmem_zalloc`](Self::kmem_zalloc) returned. Another size than
    /// was asked for is reported with both, and the block stays. Never sleeps. Not for interrupt handlers. kmem_free(9).
    ///
    /// # Safety
    /// 1. Nobody uses the memory any more.
    pub unsafe fn kmem_free(&self, block: *mut u8, bytes: usize) {
        self.not_in_interrupt(bytes);
        // SAFETY: 1.
        unsafe { self.kmem_intr_free(block, bytes) }
    }

    /// [`kmem_free`](Self::kmem_free), also for interrupt handlers. kmem_intr_free(9).
    ///
    /// # Safety
    /// 1. Nobody uses the memory any more.
    pub unsafe fn kmem_intr_free(&self, block: *mut u8, bytes: usize) {
        if block.is_null() {
            return self.misuse(Misuse::BadRequest, 0);
        }
        let served = self.system.usable_bytes(block);
        // What is no live block is reported by free.
        if served != 0
            && let Err(asked) = self.check_size(block as usize, served, bytes)
        {
            let id = self.system.lookup(block as usize).map(|info| info.type_id.index() as u16);
            self.system.header().misuses.fetch_add(1, Ordering::Relaxed);
            return P::misuse(&MisuseReport {
                what: Misuse::WrongSize { given: bytes, asked },
                addr: block as usize,
                item: block as usize,
                item_bytes: served,
                type_index: id,
                caller: 0,
                freed_by: 0,
                zone_name: [0; 32],
            });
        }
        // SAFETY: 1.
        unsafe { self.free(block) }
    }

    /// Whether `given` is what a live block of `served` bytes was asked for as; else what it was, where that is known.
    fn check_size(&self, addr: usize, served: usize, given: usize) -> Result<(), Option<usize>> {
        // SAFETY: the last word of a live block that the caller gives up.
        let word = unsafe { ((addr + served - RECORD) as *const u64).read() };
        let recorded = decode(addr, word);
        // A record is one only where there is room for it, and in a block as that request would get.
        let extra = self.kmem_extra.load(Ordering::Relaxed) as usize;
        let is_record = recorded <= served - RECORD && Self::malloc_size(recorded + extra) == served;
        if is_record && recorded == given {
            return Ok(());
        }
        if is_record {
            return Err(Some(recorded));
        }
        let fits = given <= served && given.checked_add(extra).is_some_and(|all| Self::malloc_size(all) == served);
        if fits && served - given < RECORD { Ok(()) } else { Err(None) }
    }

    fn not_in_interrupt(&self, bytes: usize) {
        if P::in_interrupt() {
            self.system.header().misuses.fetch_add(1, Ordering::Relaxed);
            P::misuse(&MisuseReport {
                what: Misuse::MaySleep("in an interrupt, which kmem_intr_alloc(9) and kmem_intr_free(9) are for"),
                addr: 0,
                item: 0,
                item_bytes: bytes,
                type_index: Some(self.kmem_id().index() as u16),
                caller: 0,
                freed_by: 0,
                zone_name: [0; 32],
            });
        }
    }

    /// Text, formatted, in memory of its own; give it back with [`kmem_strfree`](Self::kmem_strfree). *May sleep.* kmem_asprintf(9).
    ///
    /// # Panics
    /// As [`kmem_alloc`](Self::kmem_alloc); if a `Display` in `text` fails or prints more the second time.
    pub fn kmem_asprintf(&self, text: core::fmt::Arguments<'_>) -> KmemStr {
        let mut measure = Writer { to: None, len: 0, room: usize::MAX };
        core::fmt::write(&mut measure, text).expect("kmem_asprintf: a formatter failed");
        let size = measure.len + 1;
        let block = self.kmem_alloc(size, super::WaitOk);
        let mut writer = Writer { to: Some(block), len: 0, room: size - 1 };
        core::fmt::write(&mut writer, text).expect("kmem_asprintf: a formatter failed");
        // SAFETY: at most at the last of `size` bytes. (Shorter the second time is shorter text in as much memory.)
        unsafe { block.as_ptr().add(writer.len).write(0) };
        KmemStr { text: block, size }
    }

    /// A copy of a text, with a NUL behind it, and its size. *May sleep.* kmem_strdupsize(9).
    ///
    /// # Panics
    /// As [`kmem_alloc`](Self::kmem_alloc).
    #[doc(alias = "kmem_strdupsize")]
    pub fn kmem_strdup(&self, text: &[u8]) -> KmemStr {
        self.kmem_strndup(text, usize::MAX)
    }

    /// A copy of the first `most` bytes of a text, with a NUL behind them. A NUL in the text ends it. *May sleep.* kmem_strndup(9).
    ///
    /// # Panics
    /// As [`kmem_alloc`](Self::kmem_alloc).
    pub fn kmem_strndup(&self, text: &[u8], most: usize) -> KmemStr {
        let text = abi::c_text(text);
        let text = &text[..text.len().min(most)];
        let size = text.len() + 1;
        let block = self.kmem_alloc(size, super::WaitOk);
        // SAFETY: `size` fresh bytes.
        unsafe {
            core::ptr::copy_nonoverlapping(text.as_ptr(), block.as_ptr(), text.len());
            block.as_ptr().add(text.len()).write(0);
        }
        KmemStr { text: block, size }
    }

    /// Gives back a string of these functions by its length, as if its size had been kept. Null is nothing. Never sleeps.
    /// kmem_strfree(9).
    ///
    /// # Safety
    /// 1. `text` came from `kmem_asprintf`, `kmem_strdup` or `kmem_strndup`, is as long as it was then, and nobody uses it any more.
    pub unsafe fn kmem_strfree(&self, text: *mut u8) {
        if text.is_null() {
            return;
        }
        let mut len = 0;
        // SAFETY: 1.: NUL-terminated.
        unsafe {
            while text.add(len).read() != 0 {
                len += 1;
            }
            self.kmem_free(text, len + 1);
        }
    }
}

/// Counts, and writes if it has where.
struct Writer {
    to: Option<NonNull<u8>>,
    len: usize,
    room: usize,
}

impl core::fmt::Write for Writer {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        if text.len() > self.room {
            return Err(core::fmt::Error);
        }
        if let Some(to) = self.to {
            // SAFETY: `room` more bytes follow.
            unsafe { core::ptr::copy_nonoverlapping(text.as_ptr(), to.as_ptr().add(self.len), text.len()) };
        }
        self.room -= text.len();
        self.len += text.len();
        Ok(())
    }
}
