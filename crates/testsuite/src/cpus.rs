//! A CPU that leaves: nothing stays in its caches, and nothing is lost or counted twice.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use kern::zone::{How, ZoneConfig};
use kern::{System, TypeId};
use platform::Platform;

use crate::block::Block;
use crate::ledger::Ledger;
use crate::sleepers::destroy;
use crate::zones::give_back;
use crate::{Host, Outcome, Random, Verdict, ensure, new_type};

const STAYS: Verdict = Verdict::Skipped("no CPU leaves here");

/// Free items and bytes of slabs of the size class with items of so many bytes, by `show uma`.
fn class_figures<P: Platform>(system: &System<P>, item_bytes: usize) -> Result<(usize, usize), String> {
    let mut table = String::new();
    system.show_uma(&mut table, false).map_err(|_| "the table cannot be written")?;
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let is_class = |row: &Vec<&str>| row.len() == 9 && row[0].starts_with("malloc") && row[1].parse() == Ok(item_bytes);
    let row = rows.into_iter().find(is_class).ok_or_else(|| format!("no class of {item_bytes} bytes in:\n{table}"))?;
    let number = |column: usize| row[column].parse::<usize>().map_err(|_| format!("{} is no number", row[column]));
    Ok((number(3)?, number(7)?))
}

pub(crate) fn a_cpu_that_leaves_gives_its_items_to_the_others<H: Host>(host: &H) -> Verdict {
    fn zones<H: Host>(host: &H, cpu: usize) -> Outcome {
        let zone = host.system().zcreate(&ZoneConfig::new("leaving", 300, 8)).map_err(|why| format!("{why}"))?;
        let mut items = Vec::with_capacity(4096);
        host.on_cpu(cpu, &mut || {
            // Until every item that there is of the zone is in use, in four slabs at least.
            let all_out = |zone: &kern::zone::RawZone<'_, H::P>| {
                let stats = zone.stats();
                stats.slabs >= 4 && stats.in_use == stats.slabs * stats.per_slab
            };
            while !all_out(&zone) {
                ensure!(items.len() < 4096, "never were all items of a zone in use: {:?}", zone.stats());
                items.push(zone.alloc(How::NOWAIT).map_err(|why| format!("{why}"))?);
            }
            // The first item of each slab stays in use, so that the slabs stay.
            items.sort_unstable();
            let per_slab = zone.stats().per_slab;
            let (kept, others): (Vec<_>, Vec<_>) =
                items.drain(..).enumerate().partition(|(index, _)| index.is_multiple_of(per_slab));
            others.into_iter().for_each(|(_, item)| give_back::<H>(&zone, item));
            items.extend(kept.into_iter().map(|(_, item)| item));
            Ok(())
        })?;
        let before = zone.stats();
        ensure!(before.outside > before.depot + before.in_use, "no item is in the CPU's cache: {before:?}");
        ensure!(host.set_online(cpu, false), "the CPU does not leave");
        let gone = zone.stats();
        let valid = zone.validate();
        let mut more = Vec::with_capacity(4096);
        let free = before.slabs * before.per_slab - before.in_use;
        // Another CPU of the same domain, if there is one: the items are memory of that.
        let same_domain = |other: &usize| H::P::domain_of_slot(*other) == H::P::domain_of_slot(cpu);
        let other = (0..cpu).find(same_domain).unwrap_or(0);
        let taken = host.on_cpu(other, &mut || {
            (0..free).try_for_each(|_| {
                more.push(zone.alloc(How::NOWAIT).map_err(|why| format!("{why}"))?);
                Ok(())
            })
        });
        let full = zone.stats();
        ensure!(host.set_online(cpu, true), "the CPU does not come back");
        valid?;
        taken?;
        // In the slabs or the depots, all of them: and then all of them somebody else's, without a new slab.
        ensure!(gone.outside == gone.depot + gone.in_use, "items stay in the caches of a CPU that is gone: {gone:?}");
        ensure!(gone.depot + gone.slab_free == free, "of {free} free items there are {gone:?}");
        ensure!(
            full.slabs == before.slabs && full.in_use == full.slabs * full.per_slab,
            "the others got other items than those of the CPU that is gone: {before:?}, then {full:?}"
        );
        // It works as before.
        host.on_cpu(cpu, &mut || {
            items.append(&mut more);
            items.drain(..).for_each(|item| give_back::<H>(&zone, item));
            items.push(zone.alloc(How::NOWAIT).map_err(|why| format!("{why}"))?);
            Ok(())
        })?;
        items.drain(..).for_each(|item| give_back::<H>(&zone, item));
        let (stats, expected) = (zone.stats(), before.allocs + free as u64 + 1);
        ensure!(stats.allocs == expected && stats.frees == expected, "{expected} items are counted as {stats:?}");
        zone.validate()?;
        destroy::<H>(zone)
    }

    fn blocks<H: Host>(host: &H, cpu: usize, id: TypeId) -> Outcome {
        const BYTES: usize = 5632;
        let system = host.system();
        let mut blocks = Vec::with_capacity(4096);
        let take = |count: usize, blocks: &mut Vec<*mut u8>| {
            for _ in 0..count {
                let block = system.alloc(BYTES, id);
                ensure!(!block.is_null(), "no memory for {BYTES} bytes");
                blocks.push(block);
            }
            Ok(())
        };
        // Nothing of the class in the caches of others.
        system.reclaim();
        host.on_cpu(cpu, &mut || {
            take(20, &mut blocks)?;
            while class_figures(system, BYTES)?.0 != 0 {
                ensure!(blocks.len() < 4096, "never were all items of a class in use");
                take(1, &mut blocks)?;
            }
            Ok(())
        })?;
        let (count, (_, slab_bytes)) = (blocks.len(), class_figures(system, BYTES)?);
        let free_all = |blocks: &mut Vec<*mut u8>| {
            // SAFETY: 1. ours, and forgotten.
            blocks.drain(..).for_each(|block| unsafe { system.free(block, 0) });
        };
        host.on_cpu(cpu, &mut || {
            // Of each slab some stay in use, so that it stays.
            blocks.sort_unstable();
            let (kept, others): (Vec<_>, Vec<_>) =
                blocks.drain(..).enumerate().partition(|(index, _)| index.is_multiple_of(3));
            free_all(&mut others.into_iter().map(|(_, block)| block).collect());
            blocks.extend(kept.into_iter().map(|(_, block)| block));
            Ok(())
        })?;
        let (free, with_free) = class_figures(system, BYTES)?;
        ensure!(host.set_online(cpu, false), "the CPU does not leave");
        let gone = class_figures(system, BYTES);
        let taken = take(free, &mut blocks);
        let full = class_figures(system, BYTES);
        ensure!(host.set_online(cpu, true), "the CPU does not come back");
        taken?;
        let (gone, full) = (gone?, full?);
        ensure!(gone == (free, with_free), "{free} free items in {with_free} bytes became {gone:?}");
        // Every one of them was to be had, those that had been in the caches too.
        ensure!(
            full == (0, with_free),
            "{free} more blocks leave {full:?} of {with_free} bytes, at first {slab_bytes}"
        );
        free_all(&mut blocks);
        let (totals, expected) = (system.totals(id), (count + free) as u64);
        ensure!(totals.allocs == expected && totals.in_use() == 0, "{expected} blocks are counted as {totals:?}");
        Ok(())
    }

    let cpu = host.cpus() - 1;
    if cpu == 0 || !host.set_online(cpu, false) {
        return STAYS;
    }
    if !host.set_online(cpu, true) {
        return Verdict::Failed("a CPU does not come back".into());
    }
    new_type(host.system(), "leaving").and_then(|id| zones(host, cpu).and_then(|()| blocks(host, cpu, id))).into()
}

pub(crate) fn cpus_leave_and_come_back_under_load<H: Host>(host: &H) -> Verdict {
    fn test<H: Host>(host: &H) -> Outcome {
        let system = host.system();
        let id = new_type(system, "comings and goings")?;
        let zone = system.zcreate(&ZoneConfig::new("comings", 120, 8)).map_err(|why| format!("{why}"))?;
        let (sum, stop) = (Ledger::default(), AtomicBool::new(false));
        let turns = (12 * host.effort()).div_ceil(100).max(3);
        let outcome = host.threads(2 * host.cpus() + 1, &|number| {
            if number == 0 {
                let outcome = (0..turns).try_for_each(|turn| {
                    // Never the first CPU, and at times two at once.
                    let cpu = 1 + turn % (host.cpus() - 1);
                    let next = 1 + (turn + 1) % (host.cpus() - 1);
                    ensure!(host.set_online(cpu, false), "cpu {cpu} does not leave");
                    let second = next != cpu && host.set_online(next, false);
                    (0..5).for_each(|_| host.yield_now());
                    system.reclaim();
                    ensure!(!second || host.set_online(next, true), "cpu {next} does not come back");
                    ensure!(host.set_online(cpu, true), "cpu {cpu} does not come back");
                    (0..5).for_each(|_| host.yield_now());
                    Ok(())
                });
                stop.store(true, Ordering::SeqCst);
                return outcome;
            }
            let (ledger, mut random) = (Ledger::default(), Random::new(600 + number));
            let (mut blocks, mut items) = (Vec::with_capacity(32), Vec::with_capacity(32));
            while !stop.load(Ordering::SeqCst) {
                for _ in 0..20 {
                    blocks.push(Block::must(system, random.size(), id, random.next(), &ledger)?);
                    items.push(zone.alloc(How::NOWAIT).map_err(|why| format!("{why}"))?);
                    if blocks.len() == 32 {
                        blocks.drain(8..).try_for_each(|block: Block| block.free(system, &ledger))?;
                        items.drain(8..).for_each(|item| give_back::<H>(&zone, item));
                    }
                }
                host.yield_now();
            }
            blocks.into_iter().try_for_each(|block| block.free(system, &ledger))?;
            items.into_iter().for_each(|item| give_back::<H>(&zone, item));
            sum.merge(&ledger);
            Ok(())
        });
        outcome?;
        sum.agrees(system, id)?;
        let stats = zone.stats();
        ensure!(stats.in_use == 0 && stats.allocs == sum.allocs(), "{} items are counted as {stats:?}", sum.allocs());
        system.validate()?;
        destroy::<H>(zone)
    }
    if host.cpus() < 2 || !host.set_online(1, false) {
        return STAYS;
    }
    host.set_online(1, true);
    test(host).into()
}
