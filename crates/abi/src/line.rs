//! The line of a malloc type in one slot, a slot's row of them, and the sum over slots.

use core::marker::PhantomData;

use crate::{AtomicU64, Ordering};

/// Counters of one type in one slot: 64 bytes, written inside the slot's critical section with plain
/// loads and stores (no other writer exists), read by anyone.
#[repr(C, align(64))]
#[derive(Default)]
pub struct TypeLine {
    /// Blocks allocated.
    pub allocs: AtomicU64,
    /// Blocks freed, but for the one that the slot's [`SlotLine::pending`] names.
    pub frees: AtomicU64,
    /// Bytes allocated, as served (rounded up to the size class).
    pub bytes_allocated: AtomicU64,
    /// Bytes freed, as served, with the same exception.
    pub bytes_freed: AtomicU64,
    /// Bytes asked for.
    pub bytes_requested: AtomicU64,
    /// Which sizes were ever used, see [`crate::LARGE_BIT`].
    pub size_mask: AtomicU64,
    /// Greatest `bytes_allocated - bytes_freed` that this line had just before a free since the slot last compared with
    /// its peers. A difference of wrapping counters: read as `i64`. The line's peak is the greater of this and what it has now.
    pub peak_bytes: AtomicU64,
    /// Room to grow.
    pub reserved: AtomicU64,
}
#[cfg(not(loom))]
const _: () = assert!(core::mem::size_of::<TypeLine>() == 64);

/// In the place of [`TypeLine::peak_bytes`]: the line is as far below its peak as can be, so that every free of the type in that slot
/// looks closer, as frees do that have fallen far. Somebody sleeps on the type's limit. The line has not fallen since.
pub const PEAK_ARMED: u64 = 1 << 62;

/// First line of a slot's row.
#[repr(C, align(64))]
#[derive(Default)]
pub struct SlotLine {
    /// The slot's last free that is in no type's line yet: bytes as served in the upper half, in the lower the offset of
    /// the type's line from this one, in bytes; 0 for none.
    pub pending: AtomicU64,
    /// What is added to when there is none: at the places of [`TypeLine::frees`] and [`TypeLine::bytes_freed`].
    sink: [AtomicU64; 7],
}

/// What the only writer of a counter does: no read-modify-write instruction that locks the bus.
#[inline(always)]
fn add(counter: &AtomicU64, n: u64, order: Ordering) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), order);
}

/// A word as its only writer reads it: a plain load, which may become another instruction's operand.
///
/// # Safety
/// 1. Nobody else writes to it.
#[inline(always)]
unsafe fn own(word: &AtomicU64) -> u64 {
    #[cfg(loom)]
    return word.load(Ordering::Relaxed);
    #[cfg(not(loom))]
    // SAFETY: 1.
    unsafe {
        *word.as_ptr()
    }
}

impl TypeLine {
    /// Counts one block out.
    ///
    /// Only inside the critical section of the line's slot.
    #[inline(always)]
    pub fn count_alloc(&self, served_bytes: u64, requested_bytes: u64, size_mask: u64) {
        add(&self.allocs, 1, Ordering::Relaxed);
        add(&self.bytes_requested, requested_bytes, Ordering::Relaxed);
        let mask = self.size_mask.load(Ordering::Relaxed);
        self.size_mask.store(mask | size_mask, Ordering::Relaxed);
        add(&self.bytes_allocated, served_bytes, Ordering::Relaxed);
    }

    /// Counts one block back. Released, so that whoever sees this free sees the allocation that came before it,
    /// in whichever slot that was counted.
    #[inline(always)]
    fn add_free(&self, served_bytes: u64) {
        add(&self.frees, 1, Ordering::Release);
        add(&self.bytes_freed, served_bytes, Ordering::Release);
    }

    /// Bytes allocated less bytes freed, of a line without a pending free.
    #[inline(always)]
    #[must_use]
    pub fn in_use(&self) -> i64 {
        let freed = self.bytes_freed.load(Ordering::Relaxed);
        self.bytes_allocated.load(Ordering::Relaxed).wrapping_sub(freed) as i64
    }

    /// Of a line that is off its peak: writes down a new one. Whether it is far below instead.
    ///
    /// Only inside the critical section of the line's slot, before the free that found it so is in the line.
    #[must_use]
    pub fn note_peak(&self) -> bool {
        let in_use = self.in_use();
        let is_new = (self.peak_bytes.load(Ordering::Relaxed) as i64).wrapping_sub(in_use) < 0;
        if is_new {
            self.peak_bytes.store(in_use as u64, Ordering::Relaxed);
        }
        !is_new
    }

    /// Whether the line is above its peak, or more than `far` bytes below.
    ///
    /// # Safety
    /// 1. Inside the critical section of the line's slot.
    #[inline(always)]
    unsafe fn is_off_peak(&self, far: u64) -> bool {
        // SAFETY: 1.
        unsafe {
            let free = own(&self.peak_bytes).wrapping_sub(own(&self.bytes_allocated));
            let fall = free.wrapping_add(own(&self.bytes_freed));
            fall > far
        }
    }
}

/// A slot's row: its [`SlotLine`] and the lines of all types.
///
/// # Why the last free waits
///
/// A free learns the type from memory that it finds through the block's address, and a processor holds back later loads
/// while it does not know where an earlier store goes. So a free writes the one word whose address is known at once, and counts the
/// free before it, whose type is known by then. The next allocation need not wait for the tag.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    slot: *const SlotLine,
    lines: PhantomData<&'a SlotLine>,
}

impl<'a> Row<'a> {
    /// A row that was never entered. Nothing else may be asked of it.
    pub const NONE: Self = Self { slot: core::ptr::null(), lines: PhantomData };

    /// # Safety
    /// 1. At `slot` are a [`SlotLine`] and behind it as many lines as there are types, for `'a`.
    #[must_use]
    pub const unsafe fn new(slot: *const SlotLine) -> Self {
        Self { slot, lines: PhantomData }
    }

    /// Whether this is [`Row::NONE`].
    #[inline(always)]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.slot.is_null()
    }

    #[inline(always)]
    fn slot_line(self) -> &'a SlotLine {
        // SAFETY: 1. of `new`.
        unsafe { &*self.slot }
    }

    /// # Safety
    /// 1. `offset` is 0 or that of a line of this row.
    #[inline(always)]
    unsafe fn line_at(self, offset: u64) -> &'a TypeLine {
        // SAFETY: 1. A slot line is as large as a type's, and all atomic words.
        unsafe { &*self.slot.byte_add(offset as usize).cast::<TypeLine>() }
    }

    /// Offset of a type's line, bytes.
    #[inline(always)]
    const fn offset(index: usize) -> u64 {
        (size_of::<SlotLine>() + index * size_of::<TypeLine>()) as u64
    }

    /// The line of a type.
    ///
    /// # Safety
    /// 1. There is a type with this index.
    #[inline(always)]
    #[must_use]
    pub unsafe fn line(self, index: usize) -> &'a TypeLine {
        // SAFETY: 1.
        unsafe { self.line_at(Self::offset(index)) }
    }

    /// The line of a type and what may be pending for it.
    ///
    /// # Safety
    /// 1. There is a type with this index.
    #[inline(always)]
    #[must_use]
    pub unsafe fn view(self, index: usize) -> LineView<'a> {
        // SAFETY: 1.
        LineView { line: unsafe { self.line(index) }, pending: &self.slot_line().pending, offset: Self::offset(index) }
    }

    /// Counts one block back. True when the type's line was above its peak before that, or more than `far` bytes below: then the
    /// caller has it [`note_peak`](TypeLine::note_peak).
    ///
    /// # Safety
    /// 1. There is a type with this index.
    /// 2. Inside the critical section of the row's slot.
    #[inline(always)]
    pub unsafe fn count_free(self, index: usize, size: FreeSize, far: u64) -> bool {
        let pending = &self.slot_line().pending;
        let offset = (index * size_of::<TypeLine>()) as u64;
        let before = pending.load(Ordering::Relaxed);
        // First, so that a reader who finds the earlier free in its line does not find it here again.
        pending.store(size.0.wrapping_add(offset), Ordering::Release);
        // SAFETY: what is pending names a line of this row or is 0; 1. and 2.
        unsafe {
            self.line_at(before & u64::from(u32::MAX)).add_free(before >> 32);
            self.line(index).is_off_peak(far)
        }
    }

    /// Counts one block of any size back, at once and wholly. Returns whether the type's line was more than `far` bytes below its peak
    /// before that.
    ///
    /// # Safety
    /// 1. There is a type with this index.
    /// 2. Inside the critical section of the row's slot.
    pub unsafe fn count_free_now(self, index: usize, served_bytes: u64, far: u64) -> bool {
        self.settle();
        // SAFETY: 1. and 2.
        unsafe {
            let line = self.line(index);
            let fallen = line.is_off_peak(far) && line.note_peak();
            line.add_free(served_bytes);
            fallen
        }
    }

    /// Puts what is pending into its line.
    ///
    /// Only inside the critical section of the row's slot.
    pub fn settle(self) {
        let pending = &self.slot_line().pending;
        let before = pending.load(Ordering::Relaxed);
        pending.store(0, Ordering::Release);
        // SAFETY: as in `count_free`.
        unsafe { self.line_at(before & u64::from(u32::MAX)).add_free(before >> 32) };
    }

    /// Bytes of the free that is pending for the type with this index, 0 when none is.
    #[must_use]
    pub fn pending_bytes(self, index: usize) -> u64 {
        let pending = self.slot_line().pending.load(Ordering::Relaxed);
        if pending & u64::from(u32::MAX) == Self::offset(index) { pending >> 32 } else { 0 }
    }
}

/// Bytes as served of a block freed, below 4 GiB, in the form in which [`Row::count_free`] wants them.
#[derive(Clone, Copy, Debug)]
pub struct FreeSize(u64);

impl FreeSize {
    /// From bytes.
    #[must_use]
    pub const fn new(served_bytes: u32) -> Self {
        Self((served_bytes as u64) << 32 | size_of::<SlotLine>() as u64)
    }
}

/// A line as a reader sees it.
#[derive(Clone, Copy)]
pub struct LineView<'a> {
    line: &'a TypeLine,
    pending: &'a AtomicU64,
    offset: u64,
}

impl<'a> LineView<'a> {
    /// For a reader that maps the words one by one: `index` is the type's.
    #[must_use]
    pub fn new(slot: &'a SlotLine, line: &'a TypeLine, index: usize) -> Self {
        Self { line, pending: &slot.pending, offset: Row::offset(index) }
    }

    /// Frees and bytes freed. The line first: a free is taken out of `pending` before it is counted there, so none is seen
    /// twice; one that moves meanwhile is not seen, like any that comes a moment later.
    fn freed(&self) -> (u64, u64) {
        let bytes = self.line.bytes_freed.load(Ordering::Acquire);
        let frees = self.line.frees.load(Ordering::Acquire);
        let pending = self.pending.load(Ordering::Acquire);
        if pending & u64::from(u32::MAX) == self.offset {
            (frees.wrapping_add(1), bytes.wrapping_add(pending >> 32))
        } else {
            (frees, bytes)
        }
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
    /// negative however the program runs meanwhile. `lines` is asked twice, and must look each time how many slots are in
    /// use: a block may come from a slot that was first entered after the frees were read.
    pub fn read<'a, I: Iterator<Item = LineView<'a>>>(mut lines: impl FnMut() -> I) -> Self {
        let mut sum = Self::default();
        for view in lines() {
            let (frees, bytes) = view.freed();
            sum.bytes_freed = sum.bytes_freed.wrapping_add(bytes);
            sum.frees = sum.frees.wrapping_add(frees);
        }
        for view in lines() {
            let line = view.line;
            sum.allocs = sum.allocs.wrapping_add(line.allocs.load(Ordering::Acquire));
            let allocated = line.bytes_allocated.load(Ordering::Acquire);
            sum.bytes_allocated = sum.bytes_allocated.wrapping_add(allocated);
            sum.bytes_requested = sum.bytes_requested.wrapping_add(line.bytes_requested.load(Ordering::Relaxed));
            sum.size_mask |= line.size_mask.load(Ordering::Relaxed);
            let now = allocated.wrapping_sub(view.freed().1) as i64;
            let peak = match line.peak_bytes.load(Ordering::Relaxed) {
                PEAK_ARMED => now,
                peak => now.max(peak as i64),
            };
            sum.peak_bytes = sum.peak_bytes.wrapping_add(peak);
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

    /// A row of two types.
    #[derive(Default)]
    #[repr(C)]
    struct TwoTypes {
        slot: SlotLine,
        lines: [TypeLine; 2],
    }

    impl TwoTypes {
        fn row(&self) -> Row<'_> {
            // SAFETY: the first of a slot line and two lines.
            unsafe { Row::new((&raw const *self).cast()) }
        }
    }

    fn totals(rows: &[TwoTypes], index: usize) -> TypeTotals {
        // SAFETY: there are two types.
        TypeTotals::read(|| rows.iter().map(|row| unsafe { row.row().view(index) }))
    }

    #[test]
    fn a_block_freed_in_another_slot_cancels_in_the_sum() {
        let rows = [TwoTypes::default(), TwoTypes::default()];
        rows[0].lines[1].count_alloc(48, 40, 1 << 2);
        // SAFETY: there are two types.
        assert!(!unsafe { rows[1].row().count_free(1, FreeSize::new(48), 0) });
        let sum = totals(&rows, 1);
        assert_eq!((sum.in_use(), sum.bytes_in_use(), sum.allocs, sum.bytes_requested), (0, 0, 1, 40));
        assert_eq!(sum.size_mask, 4);
    }

    #[test]
    fn a_slot_that_appears_between_the_passes_is_read() {
        let rows = [TwoTypes::default(), TwoTypes::default()];
        rows[1].lines[0].count_alloc(48, 40, 0);
        // SAFETY: there are two types.
        unsafe { rows[0].row().count_free(0, FreeSize::new(48), 0) };
        let mut used = 0;
        let sum = TypeTotals::read(|| {
            used += 1;
            // SAFETY: as above.
            rows[..used].iter().map(|row| unsafe { row.row().view(0) })
        });
        assert_eq!((sum.in_use(), sum.bytes_in_use()), (0, 0));
    }

    #[test]
    fn a_pending_free_counts_for_its_type_and_in_the_peak() {
        let rows = [TwoTypes::default()];
        let row = rows[0].row();
        for _ in 0..3 {
            for index in [0, 1] {
                rows[0].lines[index].count_alloc(64, 64, 0);
                // SAFETY: there are two types.
                if unsafe { row.count_free(index, FreeSize::new(64), 0) } {
                    assert!(!rows[0].lines[index].note_peak(), "it never fell");
                }
                assert_eq!((totals(&rows, 0).in_use(), totals(&rows, 1).in_use()), (0, 0));
            }
        }
        assert_eq!((totals(&rows, 0).frees, totals(&rows, 1).frees), (3, 3));
        row.settle();
        row.settle();
        assert_eq!((rows[0].lines[0].frees.load(Ordering::Relaxed), rows[0].lines[1].in_use()), (3, 0));
        assert_eq!((totals(&rows, 0).peak_bytes, totals(&rows, 1).peak_bytes), (64, 64));
        // A block too large for the pending word's half.
        rows[0].lines[0].count_alloc(1 << 40, 1, 0);
        // SAFETY: as above.
        assert!(!unsafe { row.count_free_now(0, 1 << 40, 0) });
        assert_eq!((totals(&rows, 0).bytes_in_use(), totals(&rows, 0).peak_bytes), (0, 1 << 40));
    }
}
