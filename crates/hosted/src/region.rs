//! The allocator's address ranges: page words, records and heap, side by side, each growing upward.
//!
//! The ranges are *claimed, not reserved*: nothing is mapped ahead of use but a growth step, since address space that is
//! reserved counts against `ulimit -v` as if it were used. They lie where no other mapping is put (far below the mmap
//! area, far above the program). Where one is there all the same (some programs map at random addresses), the heap goes on
//! behind it.

use core::sync::atomic::{AtomicUsize, Ordering};

use platform::Extent;

use crate::sys::{self, Mapped};

const TIB: usize = 1 << 40;
const GIB: usize = 1 << 30;
/// Most heap there can be.
pub(crate) const HEAP_MAX_BYTES: usize = 4 * TIB;
/// A word of 8 bytes for every 4 KiB page.
const TABLE_BYTES: usize = HEAP_MAX_BYTES / 4096 * 8;
const META_BYTES: usize = 32 * GIB;

/// One range.
struct Region {
    base: AtomicUsize,
    used: AtomicUsize,
    limit: AtomicUsize,
    step: usize,
}

static TABLE: Region = Region::new(64 * 1024);
static META: Region = Region::new(128 * 1024);
static HEAP: Region = Region::new(4096);

impl Region {
    const fn new(step: usize) -> Self {
        Self { base: AtomicUsize::new(0), used: AtomicUsize::new(0), limit: AtomicUsize::new(0), step }
    }

    fn place(&self, base: usize, limit: usize) {
        self.base.store(base, Ordering::Relaxed);
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Maps the next `bytes`, rounded up to the step, at or `skip` bytes behind the end. One caller at a time.
    fn extend(&self, bytes: usize, skip: usize) -> Result<Extent, Mapped> {
        let bytes = bytes.checked_next_multiple_of(self.step).ok_or(Mapped::Refused)?;
        let used = self.used.load(Ordering::Relaxed);
        let room = self.limit.load(Ordering::Relaxed) - used;
        if skip > room || bytes > room - skip {
            return Err(Mapped::Refused);
        }
        let addr = self.base.load(Ordering::Relaxed) + used + skip;
        match sys::map_at(addr, bytes) {
            Mapped::Here => {
                self.used.store(used + skip + bytes, Ordering::Relaxed);
                Ok(Extent { addr, bytes })
            }
            other => Err(other),
        }
    }
}

/// Chooses where the ranges lie. Before anything else here.
pub(crate) fn place() {
    // Between 16 and 80 TiB, at a multiple of 1 GiB of the kernel's choosing: below the mmap area of any x86-64 process,
    // above everything that programs place by hand (sanitizers' shadows end at 16 TiB + 512 MiB).
    let start = 17 * TIB + (sys::random() as usize % (48 << 10)) * GIB;
    TABLE.place(start, TABLE_BYTES);
    META.place(start + TABLE_BYTES, META_BYTES);
    HEAP.place(start + TABLE_BYTES + META_BYTES, HEAP_MAX_BYTES);
}

pub(crate) fn heap_base() -> usize {
    HEAP.base.load(Ordering::Relaxed)
}

pub(crate) fn table_base() -> usize {
    TABLE.base.load(Ordering::Relaxed)
}

pub(crate) fn meta_base() -> usize {
    META.base.load(Ordering::Relaxed)
}

/// Bytes mapped of heap, table and meta.
pub(crate) fn used() -> [usize; 3] {
    [&HEAP, &TABLE, &META].map(|region| region.used.load(Ordering::Relaxed))
}

/// See [`platform::Platform::extend_heap`]. One caller at a time (the page lock's holder).
pub(crate) fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent> {
    extend_heap_by(want_bytes.max(min_bytes)).or_else(|| extend_heap_by(min_bytes))
}

fn extend_heap_by(bytes: usize) -> Option<Extent> {
    let mut skip = 0;
    loop {
        let end = HEAP.used.load(Ordering::Relaxed).checked_add(skip)?.checked_add(bytes)?;
        let words = end.checked_next_multiple_of(4096)? / 512;
        let mapped = TABLE.used.load(Ordering::Relaxed);
        if words > mapped {
            TABLE.extend(words - mapped, 0).ok()?;
        }
        match HEAP.extend(bytes, skip) {
            Ok(extent) => return Some(extent),
            // Somebody else's mapping: twice as far, until its end is behind us.
            Err(Mapped::Occupied) => skip = (2 * skip).max(1 << 20),
            Err(_) => return None,
        }
    }
}

/// See [`platform::Platform::extend_meta`]. One caller at a time (the record lock's holder).
pub(crate) fn extend_meta(min_bytes: usize) -> Option<Extent> {
    let mut skip = 0;
    loop {
        match META.extend(min_bytes, skip) {
            Ok(extent) => return Some(extent),
            Err(Mapped::Occupied) => skip = (2 * skip).max(1 << 20),
            Err(_) => return None,
        }
    }
}
