//! What one caller sees.

use alloc::string::String;
use alloc::vec::Vec;

use kern::System;
use platform::{Misuse, Platform};

use crate::block::Block;
use crate::ledger::{Ledger, served_bytes};
use crate::{Host, Outcome, Random, Verdict, ensure, new_type};

/// Every size class from both sides, and sizes above.
fn sizes() -> Vec<usize> {
    let around = |bytes: usize| [bytes - 1, bytes, bytes + 1];
    let classes = abi::SIZE_CLASSES.iter().flat_map(|&bytes| around(bytes as usize));
    classes.chain([1, 80_000, 100_000, 131_072, 131_073, 1 << 20, (2 << 20) + 1, 5_000_000]).collect()
}

pub(crate) fn blocks_of_every_size_hold_their_contents<H: Host>(host: &H) -> Outcome {
    let (system, ledger) = (host.system(), Ledger::default());
    let id = new_type(system, "sizes")?;
    // All sizes at once, twice: from new slabs, and from used ones in another order.
    for round in 0..2 {
        let mut sizes = sizes();
        if round == 1 {
            sizes.reverse();
        }
        let mut blocks = Vec::new();
        for (seed, &bytes) in sizes.iter().enumerate() {
            let block = Block::must(system, bytes, id, seed as u64, &ledger)?;
            let usable = system.usable_bytes(block.addr() as *const u8);
            ensure!(usable as u64 == served_bytes(bytes), "{bytes} bytes are served with {usable}");
            blocks.push(block);
        }
        ledger.agrees(system, id)?;
        blocks.iter().try_for_each(Block::check)?;
        blocks.into_iter().try_for_each(|block| block.free(system, &ledger))?;
        ledger.agrees(system, id)?;
    }
    Ok(())
}

pub(crate) fn blocks_are_aligned<H: Host>(host: &H) -> Outcome {
    let system = host.system();
    let id = new_type(system, "aligned")?;
    let mut blocks = Vec::new();
    for log2 in 0..=18 {
        for bytes in [1, 100, 3000, 70_000] {
            let addr = system.alloc_aligned(bytes, 1 << log2, id) as usize;
            ensure!(addr != 0, "no memory for {bytes} bytes at 2^{log2}");
            ensure!(addr.trailing_zeros() >= log2.max(4), "{bytes} bytes at 2^{log2} are at {addr:#x}");
            blocks.push(addr);
        }
    }
    for addr in blocks {
        // SAFETY: 1. ours, unused from now on.
        unsafe { system.free(addr as *mut u8, 0) };
    }
    ensure!(system.totals(id).in_use() == 0, "aligned blocks are left");
    Ok(())
}

pub(crate) fn zeroed_blocks_are_zero<H: Host>(host: &H) -> Outcome {
    let system = host.system();
    let id = new_type(system, "zeroed")?;
    // Looking at every byte of the largest takes a slow machine too long.
    let most = if host.effort() < 50 { 200_000 } else { usize::MAX };
    for round in 0..3u8 {
        for bytes in sizes().into_iter().filter(|&bytes| bytes < most) {
            let block = system.alloc_zeroed(bytes, id);
            ensure!(!block.is_null(), "no memory for {bytes} bytes");
            // SAFETY: our block of that size, every byte of which is initialised.
            let contents = unsafe { core::slice::from_raw_parts_mut(block, bytes) };
            let dirty = contents.iter().position(|&byte| byte != 0);
            ensure!(dirty.is_none(), "round {round}: byte {dirty:?} of {bytes} is not zero");
            contents.fill(0xa5);
            // SAFETY: 1. ours, unused from now on.
            unsafe { system.free(block, 0) };
        }
        if round == 1 {
            system.reclaim();
        }
    }
    Ok(())
}

pub(crate) fn realloc_keeps_contents<H: Host>(host: &H) -> Outcome {
    let system = host.system();
    let id = new_type(system, "realloc")?;
    let mut random = Random::new(7);
    let mut bytes = 1;
    let mut block = system.alloc(bytes, id);
    ensure!(!block.is_null(), "no memory for a byte");
    // SAFETY: our block.
    unsafe { *block = 1 };
    for step in 0..(200 * host.effort()).div_ceil(100) {
        let new_bytes = if step % 20 == 19 { random.below(3_000_000) + 1 } else { random.size() };
        // SAFETY: 1. ours.
        let new = unsafe { system.realloc(block, new_bytes, id, 0) };
        ensure!(!new.is_null(), "no memory for {new_bytes} bytes");
        let stamp = |index: usize| (index ^ index >> 8) as u8 | 1;
        // SAFETY: our block, written up to `bytes` before.
        let contents = unsafe { core::slice::from_raw_parts_mut(new, new_bytes) };
        let kept = bytes.min(new_bytes);
        let wrong = (0..kept).find(|&index| contents[index] != stamp(index));
        ensure!(wrong.is_none(), "byte {wrong:?} changed between {bytes} and {new_bytes} bytes");
        (kept..new_bytes).for_each(|index| contents[index] = stamp(index));
        (block, bytes) = (new, new_bytes);
    }
    // SAFETY: 1. ours, unused from now on.
    unsafe { system.free(block, 0) };
    ensure!(system.totals(id).in_use() == 0, "a block is left behind by realloc");
    Ok(())
}

/// Runs a misuse and says what was reported.
fn provoke<H: Host>(host: &H, misuse: impl FnOnce()) -> Option<Misuse> {
    host.take_misuse();
    host.expect_misuse(true);
    misuse();
    host.expect_misuse(false);
    host.take_misuse().map(|report| report.what)
}

pub(crate) fn misuse_is_reported<H: Host>(host: &H) -> Verdict {
    if !host.records_misuse() {
        return Verdict::Skipped("a misuse ends the program here");
    }
    misuses(host).into()
}

fn misuses<H: Host>(host: &H) -> Outcome {
    let system = host.system();
    let id = new_type(system, "misuse")?;
    for bytes in [24, 5000, 400_000] {
        let block = system.alloc(bytes, id);
        ensure!(!block.is_null(), "no memory for {bytes} bytes");
        let inside = block.wrapping_add(16);
        let expected = [
            (inside, Misuse::UnalignedFree, "a free inside a block"),
            (core::ptr::without_provenance_mut(16), Misuse::ForeignFree, "a free outside of the heap"),
        ];
        for (pointer, expected, what) in expected {
            // SAFETY: none: that is the point, and the allocator does nothing.
            let found = provoke(host, || unsafe { system.free(pointer, 0) });
            ensure!(found == Some(expected), "{what} of {bytes} bytes is reported as {found:?}");
        }
        ensure!(system.totals(id).in_use() == 1, "a misuse of {bytes} bytes was counted as a free");
        // SAFETY: 1. ours, unused from now on.
        unsafe { system.free(block, 0) };
        // SAFETY: none, as above.
        let found = provoke(host, || unsafe { system.free(block, 0) });
        ensure!(found == Some(Misuse::DuplicateFree), "a second free of {bytes} bytes is reported as {found:?}");
        ensure!(system.totals(id).in_use() == 0, "a misuse of {bytes} bytes was counted as a free");
    }
    Ok(())
}

pub(crate) fn counters_name_what_was_asked<H: Host>(host: &H) -> Outcome {
    let (system, ledger) = (host.system(), Ledger::default());
    let id = new_type(system, "a type with a name that is too long")?;
    let mut random = Random::new(11);
    let mut blocks = Vec::new();
    for step in 0..500 * host.effort() / 100 {
        blocks.push(Block::must(system, random.size(), id, step as u64, &ledger)?);
        if random.below(3) == 0 {
            blocks.swap_remove(random.below(blocks.len())).free(system, &ledger)?;
        }
    }
    ledger.agrees(system, id)?;
    let info = system.lookup(blocks[0].addr() + 1).ok_or("a live block is not found by an address inside")?;
    ensure!(info.addr == blocks[0].addr() && info.live && info.type_id == id, "found {info:?} instead");
    let mut row = String::new();
    system.vmstat_row(&mut row, id, &system.totals(id)).map_err(|_| "a row cannot be written")?;
    ensure!(
        row == ledger.row("a type with a name that is too "),
        "the row is {row:?}, by the test {:?}",
        ledger.row("…")
    );
    blocks.into_iter().try_for_each(|block| block.free(system, &ledger))?;
    ledger.agrees(system, id)
}

/// Last of the list: after all that happened, the allocator's structures agree with each other.
pub(crate) fn nothing_is_out_of_order<H: Host>(host: &H) -> Verdict {
    fn check<P: Platform>(system: &System<P>) -> Outcome {
        system.validate()?;
        system.reclaim();
        system.validate()?;
        let account = system.account();
        ensure!(account.in_use_bytes <= account.heap_bytes, "more is in use than there is: {account:?}");
        Ok(())
    }
    check(host.system()).into()
}
