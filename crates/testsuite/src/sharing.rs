//! What many threads see.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use platform::Lock;

use crate::block::Block;
use crate::ledger::Ledger;
use crate::{Host, Outcome, Random, Shared, ensure, new_type};

pub(crate) fn threads_do_not_share_blocks<H: Host>(host: &H) -> Outcome {
    let system = host.system();
    let id = new_type(system, "threads")?;
    let steps = 1500 * host.effort() / 100;
    let sum = Ledger::default();
    host.threads(4 * host.cpus(), &|number| {
        let (ledger, mut random) = (Ledger::default(), Random::new(number));
        let mut blocks = Vec::with_capacity(64);
        for _ in 0..steps {
            if blocks.len() == 64 || (!blocks.is_empty() && random.below(2) == 0) {
                let block: Block = blocks.swap_remove(random.below(blocks.len()));
                block.free(system, &ledger)?;
            } else {
                blocks.push(Block::must(system, random.size(), id, random.next(), &ledger)?);
            }
            if random.below(100) == 0 {
                host.yield_now();
            }
        }
        blocks.into_iter().try_for_each(|block| block.free(system, &ledger))?;
        sum.merge(&ledger);
        Ok(())
    })?;
    sum.agrees(system, id)
}

pub(crate) fn blocks_are_freed_by_other_threads<H: Host>(host: &H) -> Outcome {
    let system = host.system();
    let id = new_type(system, "handed over")?;
    let steps = 1000 * host.effort() / 100;
    // Room for all that can be there at once: nothing is allocated under the lock.
    let mailbox: Shared<H, Vec<Block>> = Lock::new(Vec::with_capacity(4096));
    let sum = Ledger::default();
    host.threads(4 * host.cpus(), &|number| {
        let (ledger, mut random) = (Ledger::default(), Random::new(100 + number));
        for _ in 0..steps {
            let block = Block::must(system, random.size(), id, random.next(), &ledger)?;
            let other = {
                let mut mailbox = mailbox.lock();
                let full = mailbox.len() >= 200;
                mailbox.push(block);
                let at = random.below(mailbox.len());
                full.then(|| mailbox.swap_remove(at))
            };
            other.map_or(Ok(()), |other| other.free(system, &ledger))?;
        }
        sum.merge(&ledger);
        Ok(())
    })?;
    sum.agrees(system, id)?;
    let left = core::mem::take(&mut *mailbox.lock());
    left.into_iter().try_for_each(|block| block.free(system, &sum))?;
    sum.agrees(system, id)?;
    ensure!(system.totals(id).in_use() == 0, "blocks are left");
    Ok(())
}

/// A box in the allocator under test.
struct Boxed<'a, H: Host> {
    host: &'a H,
    value: *mut [usize; 4],
}

impl<'a, H: Host> Boxed<'a, H> {
    fn new(host: &'a H, id: kern::TypeId, value: [usize; 4]) -> Option<Self> {
        let place = host.system().alloc(size_of_val(&value), id).cast::<[usize; 4]>();
        if place.is_null() {
            return None;
        }
        // SAFETY: a fresh block of that size.
        unsafe { place.write(value) };
        Some(Self { host, value: place })
    }
}

impl<H: Host> Drop for Boxed<'_, H> {
    fn drop(&mut self) {
        // SAFETY: 1. ours, unused from now on.
        unsafe { self.host.system().free(self.value.cast(), 0) };
    }
}

pub(crate) fn many_threads_box_in_a_loop<H: Host>(host: &H) -> Outcome {
    const THREADS: usize = 128;
    let system = host.system();
    let id = new_type(system, "boxes")?;
    let rounds = (200 * host.effort()).div_ceil(100);
    host.threads(THREADS, &|number| {
        for round in 0..rounds {
            let first = Boxed::new(host, id, [number, round, number ^ round, 1]).ok_or("no memory for a box")?;
            let second = Boxed::new(host, id, [round; 4]).ok_or("no memory for a box")?;
            // SAFETY: both boxes are ours.
            let (one, two) = unsafe { (first.value.read_volatile(), second.value.read_volatile()) };
            ensure!(one == [number, round, number ^ round, 1] && two == [round; 4], "boxes are mixed up");
        }
        Ok(())
    })?;
    let (totals, expected) = (system.totals(id), (THREADS * rounds * 2) as u64);
    ensure!(totals.allocs == expected && totals.in_use() == 0, "{expected} boxes are counted as {totals:?}");
    Ok(())
}

/// One size, of which buckets hold few, and so many at once that every step goes past the CPU's cache: full and empty buckets go through the depot, which all
/// CPUs share. Every block is stamped with its holder; two holders of one block see each other.
pub(crate) fn buckets_change_hands<H: Host>(host: &H) -> Outcome {
    const BYTES: usize = 5000;
    const MOST: usize = 100;
    let system = host.system();
    let id = new_type(system, "buckets")?;
    let rounds = (400 * host.effort()).div_ceil(100);
    let shared = AtomicUsize::new(0);
    host.threads(2 * host.cpus(), &|number| {
        let mut blocks: Vec<*mut usize> = Vec::with_capacity(MOST);
        for round in 0..rounds {
            for index in 0..MOST {
                let block = system.alloc(BYTES, id).cast::<usize>();
                ensure!(!block.is_null(), "no memory for {BYTES} bytes");
                // SAFETY: our block.
                unsafe { block.add(1).write_volatile(number << 32 | index) };
                blocks.push(block);
            }
            if round % 64 == 0 {
                host.yield_now();
            }
            for (index, block) in blocks.drain(..).enumerate() {
                // SAFETY: our block, and 1. unused from now on.
                unsafe {
                    if block.add(1).read_volatile() != number << 32 | index {
                        shared.fetch_add(1, Ordering::Relaxed);
                    }
                    system.free(block.cast(), 0);
                }
            }
        }
        Ok(())
    })?;
    let shared = shared.load(Ordering::Relaxed);
    ensure!(shared == 0, "{shared} blocks had two holders");
    let expected = (2 * host.cpus() * rounds * MOST) as u64;
    let totals = system.totals(id);
    ensure!(totals.allocs == expected && totals.in_use() == 0, "{expected} blocks are counted as {totals:?}");
    system.validate()?;
    Ok(())
}
