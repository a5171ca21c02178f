//! Memory for modules: addresses within reach of the kernel's text, from an arena of their own, and page frames behind
//! them.
//!
//! A module's code calls the kernel, and the compiler's model for kernels (`-mcmodel=kernel`) takes 32 bits of address
//! for everything. So modules lie beside the kernel in the last 2 GiB, not in the heap. Of their pages none is both
//! written to and run.

use core::ops::Range;
use core::sync::atomic::AtomicU32;

use vmem::{Arena, Channel, Fit, HeapTags, Size, System, Wait};

use super::link::Part;
use crate::space::{self, Access, MODULES, PAGE};
use crate::{sched, spin};

/// Bytes of address space for modules.
pub(crate) const ROOM: usize = 256 << 20;

struct Kernel;

impl System for Kernel {
    type Lock = spin::SpinLock;

    fn channel() -> &'static Channel {
        static CHANNEL: Channel = Channel::new();
        &CHANNEL
    }

    fn wait(word: &AtomicU32, seen: u32) {
        sched::wait(word, seen);
    }

    fn wake_all(word: &AtomicU32) {
        sched::wake_all(word);
    }
}

static ARENA: Arena<'static, Kernel> = Arena::new("modules", PAGE, &HeapTags);

/// Pages of a module, zero at first. Given back when dropped.
pub(crate) struct Memory {
    addr: usize,
    bytes: usize,
}

impl Memory {
    /// Whole pages, to be read and written. `None` when there are no addresses or no frames left.
    pub(crate) fn new(bytes: usize) -> Option<Self> {
        if ARENA.size(Size::Total) == 0 {
            // Whoever comes second adds nothing: the span is there.
            let _ = ARENA.add(MODULES, ROOM, Wait::NoSleep);
        }
        let addr = ARENA.alloc(bytes, Fit::Best, Wait::NoSleep).ok()?;
        // Dropped, it takes back as much as there is.
        let memory = Self { addr, bytes };
        space::back(addr, bytes).then_some(memory)
    }

    /// First address.
    pub(crate) fn addr(&self) -> usize {
        self.addr
    }

    /// Bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The memory as it is written, before [`protect`](Self::protect).
    pub(crate) fn contents(&mut self) -> &mut [u8] {
        // SAFETY: backed and ours alone; nothing in it runs yet.
        unsafe { core::slice::from_raw_parts_mut(self.addr as *mut u8, self.bytes) }
    }

    /// From now on a part is for what its name says only.
    pub(crate) fn protect(&self, part: Part, range: Range<usize>) {
        let access = match part {
            Part::Text => Access::Execute,
            Part::Constants => Access::Read,
            Part::Data => Access::Write,
        };
        space::protect(self.addr + range.start, range.len(), access);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        space::unback(self.addr, self.bytes);
        if ARENA.free(self.addr, self.bytes).is_err() {
            unreachable!("the arena does not know a module's addresses");
        }
    }
}

/// Bytes of address space that modules have.
pub(crate) fn in_use() -> usize {
    ARENA.size(Size::Alloc)
}
