//! Physical memory: page frames from the loader's map.

use core::sync::atomic::{AtomicUsize, Ordering};

use platform::Lock;

use crate::space::{DIRECT, PAGE};
use crate::spin::SpinLock;

/// Frames that were never used lie in one range; those given back are linked through their first word.
struct Frames {
    next: usize,
    end: usize,
    freed: usize,
    free_count: usize,
}

static FRAMES: Lock<SpinLock, Frames> = Lock::new(Frames { next: 0, end: 0, freed: 0, free_count: 0 });
/// Frames kept back from [`alloc`], so that a test can make memory scarce.
static RESERVE: AtomicUsize = AtomicUsize::new(0);

/// All memory there is: from the end of the kernel to the end of the largest range above it.
pub(crate) fn init(start: usize, end: usize) {
    let mut frames = FRAMES.lock();
    frames.next = start.next_multiple_of(PAGE);
    frames.end = end / PAGE * PAGE;
    frames.free_count = (frames.end - frames.next) / PAGE;
}

/// A frame of zeros, by its physical address. `None` when there are no more but the reserve.
pub(crate) fn alloc() -> Option<usize> {
    let mut frames = FRAMES.lock();
    if frames.free_count <= RESERVE.load(Ordering::Relaxed) {
        return None;
    }
    frames.free_count -= 1;
    let frame = if frames.freed != 0 {
        let frame = frames.freed;
        // SAFETY: a free frame, whose first word `free` wrote.
        frames.freed = unsafe { *((DIRECT + frame) as *const usize) };
        frame
    } else {
        frames.next += PAGE;
        frames.next - PAGE
    };
    drop(frames);
    // SAFETY: the frame is ours, and the direct map has all memory.
    unsafe { core::ptr::write_bytes((DIRECT + frame) as *mut u8, 0, PAGE) };
    Some(frame)
}

/// Gives a frame back.
pub(crate) fn free(frame: usize) {
    let mut frames = FRAMES.lock();
    // SAFETY: the caller's frame, now ours.
    unsafe { *((DIRECT + frame) as *mut usize) = frames.freed };
    frames.freed = frame;
    frames.free_count += 1;
}

/// Frames that can be had.
pub(crate) fn available() -> usize {
    FRAMES.lock().free_count.saturating_sub(RESERVE.load(Ordering::Relaxed))
}

/// From now on so many frames can be had at most; all there are with `None`.
pub(crate) fn limit(most: Option<usize>) {
    let free = FRAMES.lock().free_count;
    RESERVE.store(most.map_or(0, |most| free.saturating_sub(most)), Ordering::Relaxed);
}
