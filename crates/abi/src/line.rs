//! The line of a malloc type in one slot, and the sum over slots.

use crate::{AtomicU64, Ordering};

/// Counters of one type in one slot: 64 bytes, written inside the slot's critical section with plain
/// loads and stores (no other writer exists), read by anyone.
#[repr(C, align(64))]
#[derive(Default)]
pub struct TypeLine {
    /// Blocks allocated.
    pub allocs: AtomicU64,
    /// Blocks freed.
    pub frees: AtomicU64,
    /// Bytes allocated, as served (rounded up to the size class).
    pub bytes_allocated: AtomicU64,
    /// Bytes freed, as served.
    pub bytes_freed: AtomicU64,
    /// Bytes asked for.
    pub bytes_requested: AtomicU64,
    /// Which sizes were ever used, see [`crate::LARGE_BIT`].
    pub size_mask: AtomicU64,
    /// Greatest `bytes_allocated - bytes_freed` of this line since the slot last compared with its peers.
    /// A difference of wrapping counters: read as `i64`.
    pub peak_bytes: AtomicU64,
    /// Below this difference the slot compares again (see `kern`'s `stats`).
    pub floor_bytes: AtomicU64,
}
#[cfg(not(loom))]
const _: () = assert!(core::mem::size_of::<TypeLine>() == 64);

/// What the only writer of a counter does: no read-modify-write instruction that locks the bus.
#[inline(always)]
fn add(counter: &AtomicU64, n: u64, order: Ordering) -> u64 {
    let sum = counter.load(Ordering::Relaxed).wrapping_add(n);
    counter.store(sum, order);
    sum
}

impl TypeLine {
    /// Counts one block out. Returns the line's bytes in use (as a wrapping difference) for the caller to hold
    /// against its peak.
    ///
    /// Only inside the critical section of the line's slot.
    #[inline(always)]
    pub fn count_alloc(&self, served_bytes: u64, requested_bytes: u64, size_mask: u64) -> i64 {
        add(&self.allocs, 1, Ordering::Relaxed);
        add(&self.bytes_requested, requested_bytes, Ordering::Relaxed);
        let mask = self.size_mask.load(Ordering::Relaxed);
        self.size_mask.store(mask | size_mask, Ordering::Relaxed);
        let allocated = add(&self.bytes_allocated, served_bytes, Ordering::Relaxed);
        allocated.wrapping_sub(self.bytes_freed.load(Ordering::Relaxed)) as i64
    }

    /// Counts one block back. Released, so that whoever sees this free sees the allocation that came before it,
    /// in whichever slot that was counted.
    ///
    /// Only inside the critical section of the line's slot.
    #[inline(always)]
    pub fn count_free(&self, served_bytes: u64) -> i64 {
        add(&self.frees, 1, Ordering::Release);
        let freed = add(&self.bytes_freed, served_bytes, Ordering::Release);
        self.bytes_allocated.load(Ordering::Relaxed).wrapping_sub(freed) as i64
    }
}

/// One type, summed over the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeTotals {
    /// Blocks allocated since the start.
    pub allocs: u64,
    /// Blocks freed since the start.
    pub frees: u64,
    /// Bytes allocated since the start, as served.
    pub bytes_allocated: u64,
    /// Bytes freed since the start, as served.
    pub bytes_freed: u64,
    /// Bytes asked for since the start.
    pub bytes_requested: u64,
    /// Union of the slots' size bits.
    pub size_mask: u64,
    /// Sum of the slots' peaks: with the record's stored high water, the high-water mark.
    pub peak_bytes: i64,
}

impl TypeTotals {
    /// Sums the lines of one type: every slot's frees before any slot's allocations, so that in-use is never
    /// negative however the program runs meanwhile.
    pub fn read<'a>(lines: impl Iterator<Item = &'a TypeLine> + Clone) -> Self {
        let mut sum = Self::default();
        for line in lines.clone() {
            sum.bytes_freed = sum.bytes_freed.wrapping_add(line.bytes_freed.load(Ordering::Acquire));
            sum.frees = sum.frees.wrapping_add(line.frees.load(Ordering::Acquire));
        }
        for line in lines {
            sum.allocs = sum.allocs.wrapping_add(line.allocs.load(Ordering::Acquire));
            sum.bytes_allocated = sum.bytes_allocated.wrapping_add(line.bytes_allocated.load(Ordering::Acquire));
            sum.bytes_requested = sum.bytes_requested.wrapping_add(line.bytes_requested.load(Ordering::Relaxed));
            sum.size_mask |= line.size_mask.load(Ordering::Relaxed);
            sum.peak_bytes = sum.peak_bytes.wrapping_add(line.peak_bytes.load(Ordering::Relaxed) as i64);
        }
        sum
    }

    /// Blocks in use.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.allocs.wrapping_sub(self.frees)
    }

    /// Bytes in use, as served.
    #[must_use]
    pub fn bytes_in_use(&self) -> u64 {
        self.bytes_allocated.wrapping_sub(self.bytes_freed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_block_freed_in_another_slot_cancels_in_the_sum() {
        let lines = [TypeLine::default(), TypeLine::default()];
        assert_eq!(lines[0].count_alloc(48, 40, 1 << 2), 48);
        assert_eq!(lines[1].count_free(48), -48);
        let sum = TypeTotals::read(lines.iter());
        assert_eq!((sum.in_use(), sum.bytes_in_use(), sum.allocs, sum.bytes_requested), (0, 0, 1, 40));
        assert_eq!(sum.size_mask, 4);
    }
}
