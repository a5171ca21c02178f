//! A block that knows what it should contain, and gives itself back.

use alloc::string::String;

use kern::{System, TypeId};
use platform::Platform;

use crate::ledger::Ledger;
use crate::{Outcome, ensure};

/// A live block, written from end to end (a large one at both ends), whose contents tell it from any other.
pub(crate) struct Block {
    addr: usize,
    bytes: usize,
    seed: u64,
}

/// Bytes written at each end.
const ENDS: usize = 128;

impl Block {
    /// Allocates, records and fills. `None` when there is no memory.
    pub(crate) fn new<P: Platform>(
        system: &System<P>,
        bytes: usize,
        id: TypeId,
        seed: u64,
        ledger: &Ledger,
    ) -> Option<Self> {
        let addr = system.alloc(bytes, id) as usize;
        (addr != 0).then(|| Self::adopt(addr, bytes, seed, ledger))
    }

    /// Records and fills a block that was just allocated.
    fn adopt(addr: usize, bytes: usize, seed: u64, ledger: &Ledger) -> Self {
        ledger.alloc(bytes);
        let block = Self { addr, bytes, seed };
        block.fill();
        block
    }

    /// Fills a block of the caller's that is on record already.
    pub(crate) fn refill(addr: usize, bytes: usize) -> Self {
        let block = Self { addr, bytes, seed: 0 };
        block.fill();
        block
    }

    pub(crate) fn addr(&self) -> usize {
        self.addr
    }

    fn byte(&self, index: usize) -> u8 {
        (self.seed as usize).wrapping_add(self.addr >> 4).wrapping_add(index).wrapping_mul(31) as u8
    }

    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        let (bytes, ends) = (self.bytes, ENDS.min(self.bytes));
        (0..ends).chain((bytes - ends).max(ends)..bytes)
    }

    fn fill(&self) {
        for index in self.places() {
            // SAFETY: inside our block.
            unsafe { *((self.addr + index) as *mut u8) = self.byte(index) };
        }
    }

    /// Whether nobody else has written to it.
    pub(crate) fn check(&self) -> Outcome {
        for index in self.places() {
            // SAFETY: inside our block.
            let found = unsafe { ((self.addr + index) as *const u8).read_volatile() };
            ensure!(
                found == self.byte(index),
                "byte {index} of the block of {} bytes at {:#x} is {found:#x}, not {:#x}",
                self.bytes,
                self.addr,
                self.byte(index)
            );
        }
        Ok(())
    }

    /// Checks, records and frees.
    pub(crate) fn free<P: Platform>(self, system: &System<P>, ledger: &Ledger) -> Outcome {
        self.check()?;
        ledger.free(self.bytes);
        // SAFETY: 1. ours, and `self` ends here.
        unsafe { system.free(self.addr as *mut u8, 0) };
        Ok(())
    }

    /// Allocates like [`Block::new`], and fails the test when there is no memory.
    pub(crate) fn must<P: Platform>(
        system: &System<P>,
        bytes: usize,
        id: TypeId,
        seed: u64,
        ledger: &Ledger,
    ) -> Result<Self, String> {
        Self::new(system, bytes, id, seed, ledger).ok_or_else(|| alloc::format!("no memory for {bytes} bytes"))
    }
}
