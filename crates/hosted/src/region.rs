//! The allocator's address ranges: page words, records and heap, side by side, each growing upward.
//!
//! The ranges are *claimed, not reserved*: nothing is mapped ahead of use but a growth step, since address space that is
//! reserved counts against `ulimit -v` as if it were used. They lie where no other mapping is put (far below the mmap
//! area, far above the program); should one be there all the same, the heap starts behind it or ends before it.

use core::sync::atomic::{AtomicUsize, Ordering};

use platform::Extent;

use crate::sys;

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

    /// Maps the next `bytes`, rounded up to the step. One caller at a time.
    fn extend(&self, bytes: usize) -> Option<Extent> {
        let bytes = bytes.checked_next_multiple_of(self.step)?;
        let used = self.used.load(Ordering::Relaxed);
        if bytes > self.limit.load(Ordering::Relaxed) - used {
            return None;
        }
        let addr = self.base.load(Ordering::Relaxed) + used;
        if !sys::map_at(addr, bytes) {
            return None;
        }
        self.used.store(used + bytes, Ordering::Relaxed);
        Some(Extent { addr, bytes })
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
    let try_extend = |bytes: usize| {
        let words = HEAP.used.load(Ordering::Relaxed).checked_add(bytes)?.checked_next_multiple_of(4096)? / 512;
        let mapped = TABLE.used.load(Ordering::Relaxed);
        if words > mapped {
            TABLE.extend(words - mapped)?;
        }
        HEAP.extend(bytes)
    };
    try_extend(want_bytes.max(min_bytes)).or_else(|| try_extend(min_bytes))
}

/// See [`platform::Platform::extend_meta`]. One caller at a time (the record lock's holder).
pub(crate) fn extend_meta(min_bytes: usize) -> Option<Extent> {
    META.extend(min_bytes)
}
