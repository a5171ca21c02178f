//! When memory ends.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use abi::Ordering as AbiOrdering;

use crate::block::Block;
use crate::ledger::Ledger;
use crate::{Host, Outcome, Random, Shared, Verdict, ensure, new_type};

pub(crate) const UNLIMITED: Verdict = Verdict::Skipped("memory cannot be made scarce here");

/// Runs `body` with so many pages left.
fn with_pages<H: Host>(host: &H, pages: usize, body: impl FnOnce() -> Outcome) -> Verdict {
    if !host.limit_memory(Some(pages)) {
        return UNLIMITED;
    }
    let outcome = body();
    host.limit_memory(None);
    outcome.into()
}

/// Room for more blocks than there can be, found before memory becomes scarce.
const MOST_BLOCKS: usize = 20_000;

pub(crate) fn memory_ends_in_null<H: Host>(host: &H) -> Verdict {
    let pages = if host.effort() < 50 { 1000 } else { 2000 };
    let system = host.system();
    let id = match new_type(system, "exhaustion") {
        Ok(id) => id,
        Err(why) => return Verdict::Failed(why),
    };
    let ledger = Ledger::default();
    let mut blocks = Vec::with_capacity(MOST_BLOCKS);
    with_pages(host, pages, || {
        for bytes in [4000, 60_000, 300_000, 3_000_000] {
            let failures = || system.type_record(id).failures.load(AbiOrdering::Relaxed);
            let before = failures();
            while let Some(block) = Block::new(system, bytes, id, blocks.len() as u64, &ledger) {
                blocks.push(block);
                ensure!(blocks.len() < MOST_BLOCKS, "memory does not end");
            }
            ensure!(failures() == before + 1, "one failure is counted as {}", failures() - before);
            ensure!(system.alloc(bytes, id).is_null(), "there is memory after all");
            blocks.iter().try_for_each(Block::check)?;
            ledger.agrees(system, id)?;
            blocks.drain(..).try_for_each(|block| block.free(system, &ledger))?;
            let again = Block::must(system, bytes, id, 0, &ledger)?;
            again.free(system, &ledger)?;
            system.reclaim();
        }
        ensure!(system.alloc(isize::MAX as usize, id).is_null(), "half of the address space was to be had");
        ensure!(system.alloc(usize::MAX, id).is_null(), "all of the address space was to be had");
        ledger.agrees(system, id)
    })
}

pub(crate) fn memory_goes_back_and_comes_again<H: Host>(host: &H) -> Verdict {
    if !host.gives_pages_back() {
        return Verdict::Skipped("pages stay with the heap here");
    }
    peaks(host).into()
}

fn peaks<H: Host>(host: &H) -> Outcome {
    let (system, ledger) = (host.system(), Ledger::default());
    let id = new_type(system, "peak")?;
    system.reclaim();
    let before = system.page_counts();
    for _ in 0..3 {
        let mut blocks = Vec::with_capacity(600);
        for step in 0..300 * host.effort().max(20) / 100 {
            blocks.push(Block::must(system, 3000, id, step as u64, &ledger)?);
            blocks.push(Block::must(system, 40_000 + 100 * step, id, step as u64, &ledger)?);
        }
        let peak = system.page_counts();
        ensure!(peak.out > before.out + 500, "the peak is not to be seen: {before:?}, then {peak:?}");
        blocks.drain(..).try_for_each(|block| block.free(system, &ledger))?;
        drop(blocks);
        ensure!(system.reclaim(), "nothing went back");
        let after = system.page_counts();
        ensure!(after.free_dirty == 0, "{} free pages are kept", after.free_dirty);
        ensure!(after.out <= before.out + 64, "of {} pages {} are still out", peak.out, after.out);
    }
    ledger.agrees(system, id)
}

pub(crate) fn threads_survive_shortage<H: Host>(host: &H) -> Verdict {
    const PAGES: usize = 1500;
    let system = host.system();
    let (id, isr) = match (new_type(system, "scarce"), new_type(system, "scarce isr")) {
        (Ok(id), Ok(isr)) => (id, isr),
        _ => return Verdict::Failed("the table of types is full".into()),
    };
    let threads = 2 * host.cpus();
    let steps = 600 * host.effort() / 100;
    let sum = Ledger::default();
    let (refused, handler_refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // Rooms first, so that shortage strikes the allocator under test and not the test.
    let rooms: Vec<_> = (0..threads).map(|_| Shared::<H, _>::new(Vec::with_capacity(4096))).collect();
    let handler = || {
        let block = system.alloc(2000, isr);
        if block.is_null() {
            handler_refused.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: 1. ours (or null), unused from now on.
        unsafe { system.free(block, 0) };
    };
    host.interrupted(&handler, &mut || {
        host.threads(threads, &|number| {
            if number == 0 && !host.limit_memory(Some(PAGES)) {
                return Ok(());
            }
            let (ledger, mut random) = (Ledger::default(), Random::new(400 + number));
            let mut blocks = core::mem::take(&mut *rooms[number].lock());
            for _ in 0..steps {
                if blocks.len() == blocks.capacity() || random.below(3) == 0 {
                    if !blocks.is_empty() {
                        let block: Block = blocks.swap_remove(random.below(blocks.len()));
                        block.free(system, &ledger)?;
                    }
                    continue;
                }
                let bytes = random.size() * 4;
                match Block::new(system, bytes, id, random.next(), &ledger) {
                    Some(block) => blocks.push(block),
                    None => _ = refused.fetch_add(1, Ordering::Relaxed),
                }
            }
            blocks.drain(..).try_for_each(|block| block.free(system, &ledger))?;
            sum.merge(&ledger);
            Ok(())
        })
    })
    .and_then(|()| {
        if !host.limit_memory(None) {
            return Ok(false);
        }
        sum.agrees(system, id)?;
        let failures = |id| system.type_record(id).failures.load(AbiOrdering::Relaxed) as usize;
        let (refused, by_handlers) = (refused.load(Ordering::Relaxed), handler_refused.load(Ordering::Relaxed));
        ensure!(failures(id) == refused, "{refused} failures are counted as {}", failures(id));
        ensure!(failures(isr) == by_handlers, "{by_handlers} failures are counted as {}", failures(isr));
        ensure!(system.totals(isr).in_use() == 0, "blocks of handlers are left");
        Ok(true)
    })
    .map_or_else(Verdict::Failed, |limited| if limited { Verdict::Passed } else { UNLIMITED })
}
