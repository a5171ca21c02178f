//! Physical memory: page frames from the loader's map, free ones in a list per domain, any of them to be had by its number.
//!
//! Beside each frame, not in it, lie its place in the list and the word that contiguous allocation wants (`kern::contig`). The
//! highest frames go first: low ones are what devices of small reach need.

use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use platform::{FrameRun, FrameUse, Lock, Pfn};

use crate::numa::{self, MAX_DOMAINS};
use crate::space::{DIRECT, PAGE};
use crate::spin::SpinLock;
use crate::{cpu, sched};

/// What a frame is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum State {
    Free = 1,
    Used,
    /// Taken by number, see [`platform::Frames`].
    Withheld,
}

/// A frame's record; all zeros where there is no memory, or none of ours. All but the word changes under the lock.
struct Frame {
    /// Contiguous allocation's.
    word: AtomicU64,
    /// Neighbours in the list by their numbers, 0 for none: frame 0 is never ours.
    next: AtomicU32,
    prev: AtomicU32,
    state: AtomicU32,
}

/// Address of the records, by number of the frame, and how many there are.
static TABLE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

/// First frames of the lists, and how many are in all of them.
struct Lists {
    free: [u32; MAX_DOMAINS],
    free_count: usize,
}

static LISTS: Lock<SpinLock, Lists> = Lock::new(Lists { free: [0; MAX_DOMAINS], free_count: 0 });
/// Frames kept back from [`alloc`], so that a test can make memory scarce.
static RESERVE: AtomicUsize = AtomicUsize::new(0);
/// Changes when a frame becomes free.
static FREED: AtomicU32 = AtomicU32::new(0);

/// Pieces of memory there is room for.
const MAX_SEGMENTS: usize = 16;
/// First frame and the one after the last of each piece; the unused ones are empty.
static SEGMENTS: [[AtomicUsize; 2]; MAX_SEGMENTS] = [const { [const { AtomicUsize::new(0) }; 2] }; MAX_SEGMENTS];

/// The record of a frame, if there is one of this number.
fn record(number: usize) -> Option<&'static Frame> {
    let [first, count] = TABLE.each_ref().map(|value| value.load(Ordering::Relaxed));
    // SAFETY: `init` has made so many, for good.
    (number < count).then(|| unsafe { &*(first as *const Frame).add(number) })
}

impl Frame {
    /// # Panics
    /// If there is no frame of this number.
    fn of(number: u32) -> &'static Self {
        record(number as usize).unwrap_or_else(|| panic!("this machine has no frame {number:#x}"))
    }

    fn is(&self, state: State) -> bool {
        self.state.load(Ordering::Relaxed) == state as u32
    }

    fn set(&self, next: u32, prev: u32, state: State) {
        self.next.store(next, Ordering::Relaxed);
        self.prev.store(prev, Ordering::Relaxed);
        self.state.store(state as u32, Ordering::Relaxed);
    }
}

impl Lists {
    fn push(&mut self, number: u32) {
        let head = &mut self.free[numa::of_memory(number as usize * PAGE)];
        Frame::of(number).set(*head, 0, State::Free);
        if *head != 0 {
            Frame::of(*head).prev.store(number, Ordering::Relaxed);
        }
        *head = number;
        self.free_count += 1;
        FREED.fetch_add(1, Ordering::Relaxed);
    }

    /// A free frame leaves its list.
    fn unlink(&mut self, number: u32, state: State) {
        let frame = Frame::of(number);
        let [next, prev] = [&frame.next, &frame.prev].map(|link| link.load(Ordering::Relaxed));
        if next != 0 {
            Frame::of(next).prev.store(prev, Ordering::Relaxed);
        }
        match prev {
            0 => self.free[numa::of_memory(number as usize * PAGE)] = next,
            _ => Frame::of(prev).next.store(next, Ordering::Relaxed),
        }
        frame.set(0, 0, state);
        self.free_count -= 1;
    }

    fn may_take(&self) -> bool {
        self.free_count > RESERVE.load(Ordering::Relaxed)
    }
}

/// All memory there is: the loader's ranges, without what `taken` lists.
pub(crate) fn init(ranges: impl Iterator<Item = Range<usize>> + Clone, taken: &[Range<usize>]) {
    let end = ranges.clone().map(|range| range.end).max().expect("there is memory") / PAGE;
    let own_bytes = end * size_of::<Frame>();
    // Our own records come first in the largest range, after what is taken there.
    let free_from = |range: &Range<usize>| {
        let inside = taken.iter().filter(|taken| range.contains(&taken.start)).map(|taken| taken.end);
        inside.max().unwrap_or(range.start).next_multiple_of(PAGE)
    };
    let largest = ranges.clone().max_by_key(|range| range.end.saturating_sub(free_from(range))).expect("as above");
    let own = free_from(&largest)..free_from(&largest) + own_bytes;
    assert!(own.end <= largest.end, "{} bytes of memory have no room for {own_bytes} bytes of records", largest.len());
    // SAFETY: memory that nobody has, in the direct map.
    unsafe { core::ptr::write_bytes((DIRECT + own.start) as *mut u8, 0, own_bytes) };
    TABLE[0].store(DIRECT + own.start, Ordering::Relaxed);
    TABLE[1].store(end, Ordering::Relaxed);
    let overlaps = |page: usize, range: &Range<usize>| page < range.end && range.start < page + PAGE;
    let is_ours =
        |page: &usize| *page != 0 && !overlaps(*page, &own) && !taken.iter().any(|taken| overlaps(*page, taken));
    let pages = ranges.flat_map(|range| (range.start.next_multiple_of(PAGE)..range.end / PAGE * PAGE).step_by(PAGE));
    let mut lists = LISTS.lock();
    let (mut segments, mut segment) = (SEGMENTS.iter(), &SEGMENTS[0]);
    for number in pages.filter(is_ours).map(|page| page / PAGE) {
        if segment[1].load(Ordering::Relaxed) != number {
            segment = segments.next().expect("memory is in more pieces than MAX_SEGMENTS");
            segment[0].store(number, Ordering::Relaxed);
        }
        segment[1].store(number + 1, Ordering::Relaxed);
        lists.push(number as u32);
    }
}

/// A frame of zeros, by its physical address: of the domain of this CPU, or of any when that has none. `None` when there are no
/// more but the reserve.
pub(crate) fn alloc() -> Option<usize> {
    let near = numa::of_cpu(cpu::id());
    alloc_of(near).or_else(|| (0..numa::domains()).filter(|domain| *domain != near).find_map(alloc_of))
}

/// A frame of zeros of this domain and no other.
pub(crate) fn alloc_of(domain: usize) -> Option<usize> {
    let mut lists = LISTS.lock();
    let number = lists.free[domain];
    if number == 0 || !lists.may_take() {
        return None;
    }
    lists.unlink(number, State::Used);
    drop(lists);
    let frame = number as usize * PAGE;
    // SAFETY: the frame is ours, and the direct map has all memory.
    unsafe { core::ptr::write_bytes((DIRECT + frame) as *mut u8, 0, PAGE) };
    Some(frame)
}

/// Gives a frame back.
pub(crate) fn free(frame: usize) {
    let mut lists = LISTS.lock();
    let number = (frame / PAGE) as u32;
    assert!(Frame::of(number).is(State::Used), "the frame at {frame:#x} is freed, but not in use");
    lists.push(number);
}

/// Frames that can be had.
pub(crate) fn available() -> usize {
    LISTS.lock().free_count.saturating_sub(RESERVE.load(Ordering::Relaxed))
}

/// From now on so many frames can be had at most; all there are with `None`.
pub(crate) fn limit(most: Option<usize>) {
    let free = LISTS.lock().free_count;
    RESERVE.store(most.map_or(0, |most| free.saturating_sub(most)), Ordering::Relaxed);
}

/// Memory as contiguous allocation sees it: free frames can be had by number, and nothing else moves.
pub(crate) struct Physical;

/// The owner of all memory.
pub(crate) static PHYSICAL: Physical = Physical;

// SAFETY: 1. `take` changes the state under the lock, and only of a free frame. 2. the direct map has all memory for good. 3. the word
// is the frame's.
unsafe impl platform::Frames for Physical {
    fn segment(&self, index: usize) -> Option<FrameRun> {
        let [first, end] = SEGMENTS.get(index)?.each_ref().map(|frame| frame.load(Ordering::Relaxed));
        (first < end).then_some(FrameRun { first: Pfn(first as u64), npages: end - first })
    }

    fn usage(&self, pfn: Pfn) -> FrameUse {
        if Frame::of(pfn.0 as u32).is(State::Free) { FrameUse::Free } else { FrameUse::Fixed }
    }

    fn take(&self, pfn: Pfn) -> bool {
        let mut lists = LISTS.lock();
        let can = Frame::of(pfn.0 as u32).is(State::Free) && lists.may_take();
        if can {
            lists.unlink(pfn.0 as u32, State::Withheld);
        }
        can
    }

    fn evict(&self, _: Pfn) -> bool {
        false
    }

    fn launder(&self, _: Pfn) -> bool {
        false
    }

    fn relocate(&self, _: Pfn, _: FrameRun) -> bool {
        false
    }

    fn release(&self, run: FrameRun) {
        let mut lists = LISTS.lock();
        for pfn in run.frames() {
            assert!(Frame::of(pfn.0 as u32).is(State::Withheld), "{pfn:?} is released, but not withheld");
            lists.push(pfn.0 as u32);
        }
    }

    fn zero(&self, pfn: Pfn) {
        // SAFETY: a frame that the caller withholds.
        unsafe { core::ptr::write_bytes((DIRECT + pfn.0 as usize * PAGE) as *mut u8, 0, PAGE) };
    }

    fn word(&self, pfn: Pfn) -> &AtomicU64 {
        &Frame::of(pfn.0 as u32).word
    }

    fn wait_for_free(&self) {
        const A_WHILE_NS: u64 = 20_000_000;
        let (seen, end) = (FREED.load(Ordering::Relaxed), cpu::now_ns() + A_WHILE_NS);
        while FREED.load(Ordering::Relaxed) == seen && cpu::now_ns() < end {
            sched::yield_now();
        }
    }

    fn reserve(&self, _: usize) -> Option<usize> {
        Some(0)
    }

    fn unreserve(&self, _: usize, _: usize) {}

    fn map(&self, _: usize, run: FrameRun) -> Option<usize> {
        Some(DIRECT + run.first.0 as usize * PAGE)
    }

    fn unmap(&self, _: usize, _: usize) {}

    fn frame_at(&self, addr: usize) -> Option<Pfn> {
        let frame = addr.checked_sub(DIRECT)? / PAGE;
        record(frame).map(|_| Pfn(frame as u64))
    }
}
