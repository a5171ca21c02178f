//! Allocation in interrupts, where nobody may sleep and every lock may be somebody's.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use platform::Lock;

use crate::block::Block;
use crate::ledger::Ledger;
use crate::{Host, Outcome, Random, Shared, ensure, new_type};

/// What interrupt handlers hold on to: a few blocks, handed from one interrupt to a later one on any CPU. While a handler has
/// them, which is without a lock, others have nothing to do.
struct Held<H: Host> {
    blocks: Shared<H, Option<(Vec<Block>, Random)>>,
    ledger: Ledger,
    misread: AtomicUsize,
    refused: AtomicUsize,
}

/// Most blocks handlers hold at a time; the room is there before the first interrupt.
const MOST_HELD: usize = 64;

impl<H: Host> Held<H> {
    fn new(seed: usize) -> Self {
        Self {
            blocks: Lock::new(Some((Vec::with_capacity(MOST_HELD), Random::new(seed)))),
            ledger: Ledger::default(),
            misread: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
        }
    }

    /// One interrupt: a block more or less, never waiting for the other handlers.
    fn handle(&self, host: &H, id: kern::TypeId) {
        let Some((mut blocks, mut random)) = self.blocks.lock().take() else { return };
        self.step(host, id, &mut blocks, &mut random);
        *self.blocks.lock() = Some((blocks, random));
    }

    fn step(&self, host: &H, id: kern::TypeId, blocks: &mut Vec<Block>, random: &mut Random) {
        if blocks.len() == MOST_HELD || (!blocks.is_empty() && random.below(2) == 0) {
            let at = random.below(blocks.len());
            if blocks.swap_remove(at).free(host.system(), &self.ledger).is_err() {
                self.misread.fetch_add(1, Ordering::Relaxed);
            }
            return;
        }
        let (bytes, seed) = (random.size(), random.next());
        match Block::new(host.system(), bytes, id, seed, &self.ledger) {
            Some(block) => blocks.push(block),
            None => _ = self.refused.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// After the last interrupt: all goes back, and nothing had gone wrong.
    fn finish(&self, host: &H) -> Outcome {
        let (blocks, _) = self.blocks.lock().take().ok_or("a handler never came back")?;
        blocks.into_iter().try_for_each(|block| block.free(host.system(), &self.ledger))?;
        let (misread, refused) = (self.misread.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed));
        ensure!(misread == 0, "{misread} blocks of interrupt handlers were overwritten");
        ensure!(refused == 0, "{refused} requests of interrupt handlers failed though there is memory");
        Ok(())
    }
}

pub(crate) fn interrupts_allocate_under_load<H: Host>(host: &H) -> Outcome {
    let system = host.system();
    let (ours, theirs) = (new_type(system, "under load")?, new_type(system, "in interrupts")?);
    let held = Held::<H>::new(1);
    let sum = Ledger::default();
    let steps = 2000 * host.effort() / 100;
    let handler = || held.handle(host, theirs);
    host.interrupted(&handler, &mut || {
        host.threads(2 * host.cpus(), &|number| {
            let (ledger, mut random) = (Ledger::default(), Random::new(200 + number));
            let mut blocks = Vec::with_capacity(32);
            for _ in 0..steps {
                blocks.push(Block::must(system, random.size(), ours, random.next(), &ledger)?);
                if blocks.len() == 32 {
                    blocks.drain(..16).try_for_each(|block: Block| block.free(system, &ledger))?;
                }
            }
            blocks.into_iter().try_for_each(|block| block.free(system, &ledger))?;
            sum.merge(&ledger);
            Ok(())
        })
    })?;
    held.finish(host)?;
    ensure!(held.ledger.allocs() > 0, "no interrupt came");
    sum.agrees(system, ours)?;
    held.ledger.agrees(system, theirs)
}

/// 10^6 allocations by threads that migrate and by interrupts; then the kernel's own table, byte for byte, against one made
/// from the test's record.
pub(crate) fn a_million_allocations_are_counted_to_the_byte<H: Host>(host: &H) -> Outcome {
    const NAMES: [&str; 4] = ["devbuf", "temp", "routetbl", "ufs_dirhash"];
    const LIVE: usize = 16;
    let system = host.system();
    let mut ids = [kern::TypeId::MALLOC; NAMES.len()];
    for (id, name) in ids.iter_mut().zip(NAMES) {
        *id = new_type(system, name)?;
    }
    let irq = new_type(system, "isr")?;
    let held = Held::<H>::new(2);
    let sums: [Ledger; NAMES.len()] = Default::default();
    // Some blocks stay, so that the table has something in use.
    let kept: Shared<H, Vec<(usize, Block)>> = Lock::new(Vec::with_capacity(256));
    let threads = 2 * host.cpus();
    let steps = 1_000_000 / threads * host.effort() / 100;
    let handler = || held.handle(host, irq);
    host.interrupted(&handler, &mut || {
        host.threads(threads, &|number| {
            let ledgers: [Ledger; NAMES.len()] = Default::default();
            let mut random = Random::new(300 + number);
            // A ring: what is allocated now goes when its place comes round again. One word of each block is checked.
            let mut ring: [Option<(usize, *mut u64, usize)>; LIVE] = [const { None }; LIVE];
            for step in 0..steps {
                let ty = random.below(NAMES.len());
                let bytes = 8 + if step % 1024 == 0 { random.size() } else { random.below(500) };
                let block = system.alloc(bytes, ids[ty]).cast::<u64>();
                ensure!(!block.is_null(), "no memory for {bytes} bytes");
                ledgers[ty].alloc(bytes);
                // SAFETY: our block, at least a word long.
                unsafe { block.write(block as u64 ^ bytes as u64) };
                if let Some((ty, old, bytes)) = ring[step % LIVE].replace((ty, block, bytes)) {
                    // SAFETY: our block, and 1. unused from now on.
                    unsafe {
                        ensure!(old.read_volatile() == old as u64 ^ bytes as u64, "a block of {bytes} bytes changed");
                        system.free(old.cast(), 0);
                    }
                    ledgers[ty].free(bytes);
                }
            }
            for (place, (ty, block, bytes)) in ring.into_iter().flatten().enumerate() {
                if place < 3 {
                    let block = Block::refill(block as usize, bytes);
                    kept.lock().push((ty, block));
                } else {
                    // SAFETY: 1. ours, unused from now on.
                    unsafe { system.free(block.cast(), 0) };
                    ledgers[ty].free(bytes);
                }
            }
            sums.iter().zip(&ledgers).for_each(|(sum, ledger)| sum.merge(ledger));
            Ok(())
        })
    })?;
    let rows = || NAMES.iter().zip(&sums).chain([(&"isr", &held.ledger)]).zip(ids.iter().chain([&irq]));
    for ((_, ledger), &id) in rows() {
        ledger.agrees(system, id)?;
    }
    let made: u64 = sums.iter().map(Ledger::allocs).sum::<u64>() + held.ledger.allocs();
    ensure!(made >= (steps * threads) as u64, "only {made} allocations were made");
    let mut table = String::new();
    system.vmstat_m(&mut table).map_err(|_| "the table cannot be written")?;
    let own: String = rows().map(|((name, ledger), _)| ledger.row(name)).collect();
    ensure!(table.contains(&own), "the table is\n{table}by the test it has\n{own}");
    let blocks = core::mem::take(&mut *kept.lock());
    blocks.into_iter().try_for_each(|(ty, block)| block.free(system, &sums[ty]))?;
    held.finish(host)?;
    for ((_, ledger), &id) in rows() {
        ledger.agrees(system, id)?;
        ensure!(system.totals(id).in_use() == 0, "blocks are left");
    }
    Ok(())
}
