//! The bytes of an object, every access checked.
//!
//! The only room here with unsafe code that touches the object: everything else asks for words at
//! offsets and gets an [`Error`] beyond the end. Words are read atomically, because a live
//! program writes them meanwhile; whatever it writes (or a broken file holds), no offset is
//! trusted.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use abi::{AtomicU32, AtomicU64, Ordering, SlotLine, TypeLine};

use crate::error::{Error, Result};

/// A mapping that lives as long as this value: of a file, or of private memory filled by us.
pub(crate) struct Map {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread, and is only read after its construction (by atomic loads).
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps all of a file, read-only and shared: what the writer stores later is seen.
    ///
    /// Nobody shortens a statistics object (its writer sets the size once, before the magic word); a file cut while
    /// it is mapped would end this process by SIGBUS, as with any mapped file.
    pub(crate) fn of_file(file: &File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Self::new(len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd())
    }

    /// Private memory, zero until [`Map::fill`]; pages that are never filled cost nothing.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1)
    }

    fn new(len: usize, prot: i32, flags: i32, fd: i32) -> io::Result<Self> {
        if len == 0 {
            return Ok(Self { base: NonNull::dangling(), len: 0 });
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { base, len })
    }

    /// An error unless `len` bytes at `offset` are there.
    pub(crate) fn holds(&self, what: &'static str, offset: u64, len: u64) -> Result<()> {
        self.check(what, offset, len, 1).map(drop)
    }

    /// The bytes at `offset`, to be filled; only of [`Map::zeroed`], whose owner is still alone with it.
    pub(crate) fn fill(&mut self, offset: u64, len: u64) -> Result<&mut [u8]> {
        let at = self.check("copy", offset, len, 1)?;
        // SAFETY: `check` holds the range inside the mapping, `&mut self` makes it exclusive, and it is writable
        // private memory (the callers in this crate fill only what `zeroed` returned).
        Ok(unsafe { std::slice::from_raw_parts_mut(at, len as usize) })
    }

    fn check(&self, what: &'static str, offset: u64, len: u64, align: u64) -> Result<*mut u8> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end > self.len as u64) {
            let need_bytes = offset.saturating_add(len);
            return Err(Error::Truncated { what, offset, need_bytes, have_bytes: self.len as u64 });
        }
        if !offset.is_multiple_of(align) {
            return Err(Error::Malformed { what, offset, found: offset % align });
        }
        // SAFETY: `offset <= self.len`, so the result is within the mapping or one past it.
        Ok(unsafe { self.base.as_ptr().add(offset as usize) })
    }

    pub(crate) fn u64(&self, what: &'static str, offset: u64) -> Result<u64> {
        let at = self.check(what, offset, 8, 8)?;
        // SAFETY: eight mapped, aligned bytes (the mapping starts at a page); only atomic loads touch them here.
        // A load from a read-only page is an ordinary load on the targets of this crate.
        Ok(unsafe { AtomicU64::from_ptr(at.cast()) }.load(Ordering::Acquire))
    }

    pub(crate) fn u32(&self, what: &'static str, offset: u64) -> Result<u32> {
        let at = self.check(what, offset, 4, 4)?;
        // SAFETY: as in `u64`, four bytes.
        Ok(unsafe { AtomicU32::from_ptr(at.cast()) }.load(Ordering::Acquire))
    }

    /// `len` bytes, copied.
    pub(crate) fn bytes(&self, what: &'static str, offset: u64, len: u64) -> Result<Vec<u8>> {
        let at = self.check(what, offset, len, 1)?;
        // SAFETY: as in `u64`, byte by byte.
        Ok((0..len as usize).map(|i| unsafe { AtomicU8::from_ptr(at.add(i)) }.load(Ordering::Relaxed)).collect())
    }

    /// A NUL-terminated field, read to its NUL; bytes that are not UTF-8 are replaced.
    pub(crate) fn text(&self, what: &'static str, offset: u64, len: u64) -> Result<String> {
        let bytes = self.bytes(what, offset, len)?;
        Ok(String::from_utf8_lossy(abi::c_text(&bytes)).into_owned())
    }

    pub(crate) fn slot_line(&self, offset: u64) -> Result<&SlotLine> {
        let at = self.check("slot line", offset, size_of::<SlotLine>() as u64, align_of::<SlotLine>() as u64)?;
        // SAFETY: as in `line`.
        Ok(unsafe { &*at.cast::<SlotLine>() })
    }

    pub(crate) fn line(&self, offset: u64) -> Result<&TypeLine> {
        let at = self.check("type line", offset, size_of::<TypeLine>() as u64, align_of::<TypeLine>() as u64)?;
        // SAFETY: as in `u64`: a line is nothing but atomic words, so any bytes make one.
        Ok(unsafe { &*at.cast::<TypeLine>() })
    }
}

/// Stores a word of a file that others have mapped, in one piece.
pub(crate) fn store(file: &File, offset: u64, value: u64) -> io::Result<()> {
    const PAGE: u64 = 4096;
    if !offset.is_multiple_of(8) || offset + 8 > file.metadata()?.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let start = offset / PAGE * PAGE;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the page holds the offset.
    let base =
        unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, prot, flags, file.as_raw_fd(), start as libc::off_t) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: eight aligned bytes of that page; everybody else who touches them does so atomically. Nobody keeps the reference, and
    // the mapping is ours to end.
    unsafe {
        AtomicU64::from_ptr(base.cast::<u8>().add((offset - start) as usize).cast()).store(value, Ordering::Release);
        libc::munmap(base, PAGE as usize);
    }
    Ok(())
}

impl Drop for Map {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the range is the mapping made in `new`, and no reference outlives `self`.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
        }
    }
}
