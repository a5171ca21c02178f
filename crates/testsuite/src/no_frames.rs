//! For hosts without page frames of their own.

use core::sync::atomic::AtomicU64;

use platform::{FrameRun, FrameUse, Frames, Pfn};

/// No frames, and nobody who owns them: there is no value of this type.
#[derive(Clone, Copy, Debug)]
pub enum NoFrames {}

// SAFETY: there is none.
unsafe impl Frames for NoFrames {
    fn segment(&self, _: usize) -> Option<FrameRun> {
        match *self {}
    }

    fn usage(&self, _: Pfn) -> FrameUse {
        match *self {}
    }

    fn take(&self, _: Pfn) -> bool {
        match *self {}
    }

    fn evict(&self, _: Pfn) -> bool {
        match *self {}
    }

    fn launder(&self, _: Pfn) -> bool {
        match *self {}
    }

    fn relocate(&self, _: Pfn, _: FrameRun) -> bool {
        match *self {}
    }

    fn release(&self, _: FrameRun) {
        match *self {}
    }

    fn zero(&self, _: Pfn) {
        match *self {}
    }

    fn word(&self, _: Pfn) -> &AtomicU64 {
        match *self {}
    }

    fn reserve(&self, _: usize) -> Option<usize> {
        match *self {}
    }

    fn unreserve(&self, _: usize, _: usize) {
        match *self {}
    }

    fn map(&self, _: usize, _: FrameRun) -> Option<usize> {
        match *self {}
    }

    fn unmap(&self, _: usize, _: usize) {
        match *self {}
    }

    fn frame_at(&self, _: usize) -> Option<Pfn> {
        match *self {}
    }
}
