//! The test's own record of a malloc type, kept apart from the allocator's and computed by other means.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use kern::{System, TypeId};
use platform::Platform;

use crate::{Outcome, ensure, type_name};

/// Blocks and bytes, out and back.
#[derive(Default)]
pub(crate) struct Ledger {
    allocs: AtomicU64,
    frees: AtomicU64,
    bytes_allocated: AtomicU64,
    bytes_freed: AtomicU64,
    bytes_requested: AtomicU64,
    size_mask: AtomicU64,
}

/// Bytes that a request is served with: the smallest size class that holds it; four sizes to each doubling up to 2 MiB;
/// multiples of 64 KiB above.
pub(crate) fn served_bytes(bytes: usize) -> u64 {
    if let Some(class) = abi::SIZE_CLASSES.iter().find(|&&class| class as usize >= bytes) {
        return u64::from(*class);
    }
    let bytes = bytes as u64;
    let quarter = bytes.next_power_of_two() / 8;
    if bytes <= 2 << 20 { bytes.next_multiple_of(quarter) } else { bytes.next_multiple_of(64 << 10) }
}

fn size_bit(served: u64) -> u64 {
    let class = abi::SIZE_CLASSES.iter().position(|&class| u64::from(class) == served);
    1 << class.map_or_else(|| abi::run_bit(served), |class| class as u32)
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Ledger {
    /// A request of so many bytes was served.
    pub(crate) fn alloc(&self, bytes: usize) {
        self.alloc_served(bytes, served_bytes(bytes));
    }

    /// A request was served with so many bytes.
    pub(crate) fn alloc_served(&self, bytes: usize, served: u64) {
        add(&self.allocs, 1);
        add(&self.bytes_allocated, served);
        add(&self.bytes_requested, bytes as u64);
        self.size_mask.fetch_or(size_bit(served), Ordering::Relaxed);
    }

    /// A block that was requested with so many bytes goes back.
    pub(crate) fn free(&self, bytes: usize) {
        self.free_served(served_bytes(bytes));
    }

    /// A block that was served with so many bytes goes back.
    pub(crate) fn free_served(&self, served: u64) {
        add(&self.frees, 1);
        add(&self.bytes_freed, served);
    }

    /// Adds another record of the same type.
    pub(crate) fn merge(&self, other: &Self) {
        let pairs = [
            (&self.allocs, &other.allocs),
            (&self.frees, &other.frees),
            (&self.bytes_allocated, &other.bytes_allocated),
            (&self.bytes_freed, &other.bytes_freed),
            (&self.bytes_requested, &other.bytes_requested),
        ];
        pairs.iter().for_each(|(to, from)| add(to, from.load(Ordering::Relaxed)));
        self.size_mask.fetch_or(other.size_mask.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    pub(crate) fn allocs(&self) -> u64 {
        self.allocs.load(Ordering::Relaxed)
    }

    /// Holds the allocator's counters of the type against this record. Nothing of the type may move meanwhile.
    pub(crate) fn agrees<P: Platform>(&self, system: &System<P>, id: TypeId) -> Outcome {
        let found = system.totals(id);
        let pairs = [
            ("blocks allocated", found.allocs, &self.allocs),
            ("blocks freed", found.frees, &self.frees),
            ("bytes allocated", found.bytes_allocated, &self.bytes_allocated),
            ("bytes freed", found.bytes_freed, &self.bytes_freed),
            ("bytes requested", found.bytes_requested, &self.bytes_requested),
            ("sizes", found.size_mask, &self.size_mask),
        ];
        for (what, found, own) in pairs {
            let own = own.load(Ordering::Relaxed);
            ensure!(
                found == own,
                "type {}: {what}: {found} by the allocator, {own} by the test",
                type_name(system, id)
            );
        }
        Ok(())
    }

    /// The row of `vmstat -m` that this record makes.
    pub(crate) fn row(&self, name: &str) -> String {
        let [allocs, frees, allocated, freed] = [&self.allocs, &self.frees, &self.bytes_allocated, &self.bytes_freed]
            .map(|counter| counter.load(Ordering::Relaxed));
        let mask = self.size_mask.load(Ordering::Relaxed);
        let sizes: Vec<String> = (0..64u32).filter(|bit| mask >> bit & 1 == 1).map(size_of_bit).collect();
        format!(
            "{name:>16} {:>4} {:>5} {:>4} {}\n",
            humanized(allocs - frees, 1000),
            humanized(allocated - freed, 1024),
            humanized(allocs, 1000),
            sizes.join(",")
        )
    }
}

fn size_of_bit(bit: u32) -> String {
    match abi::SIZE_CLASSES.get(bit as usize) {
        Some(class) => format!("{class}"),
        None => format!("{}", 1u64 << (bit - abi::LARGE_BIT + 17)),
    }
}

/// A number and a unit of 1000 or 1024, as `vmstat -m` prints it: a decimal place below ten units.
fn humanized(number: u64, unit: u64) -> String {
    let scale = (1..7).take_while(|&scale| number >= unit.pow(scale)).count();
    let hundredths = u128::from(number) * 100 / u128::from(unit.pow(scale as u32));
    let letter = if scale == 1 && unit == 1000 { "k" } else { ["", "K", "M", "G", "T", "P", "E"][scale] };
    if scale > 0 && hundredths < 995 {
        let tenths = (hundredths + 5) / 10;
        format!("{}.{}{letter}", tenths / 10, tenths % 10)
    } else {
        format!("{}{letter}", (hundredths + 50) / 100)
    }
}
