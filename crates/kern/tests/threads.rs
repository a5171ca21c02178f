//! Real threads on a fake machine: more of them than slots, blocks freed by others than allocated them, a reader that looks on,
//! and a fork's standstill.

extern crate kernmalloc_kern as kern;

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::model::{Block, Served, Tally, served};
use common::{World, config};
use platform::fake::{Call, Machine};

const THREADS: usize = 8;
const STEPS: u64 = 15_000;

/// A small generator, so that a thread's script depends on its number only.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    fn size(&mut self) -> usize {
        match self.below(64) {
            0 => self.below(1 << 20),
            1..8 => self.below(20_000),
            _ => self.below(600),
        }
    }
}

fn addr_of(block: &Block) -> *mut u8 {
    block.addr as *mut u8
}

/// One thread's life: allocates, frees its own blocks and those of others, hands blocks on. Returns its share of each type's figures.
fn churn(world: &World, mailbox: &Mutex<Vec<Block>>, number: u64, steps: impl Fn(u64) -> bool) -> Vec<Tally> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ number.wrapping_mul(0x1234_5677));
    let mut tallies = vec![Tally::default(); world.types.len()];
    let mut own: Vec<Block> = Vec::new();
    let free = |block: Block, tallies: &mut Vec<Tally>| {
        block.check().unwrap();
        // SAFETY: 1. the block is in no list any more.
        unsafe { world.system.free(addr_of(&block), 1) };
        let ty = world.types.iter().position(|&id| id == block.id).unwrap();
        tallies[ty].free(block.bytes);
    };
    let mut step = 0;
    while steps(step) {
        step += 1;
        while own.len() > 100 {
            free(own.swap_remove(random.below(own.len())), &mut tallies);
        }
        match random.below(10) {
            0..5 => {
                let (bytes, ty) = (random.size(), random.below(world.types.len()));
                let block = world.system.alloc(bytes, world.types[ty]);
                assert!(!block.is_null());
                let served = served(bytes);
                tallies[ty].alloc(served, bytes);
                own.push(Block::new(block as usize, served, world.types[ty], random.next()));
            }
            5..7 if !own.is_empty() => {
                let block = own.swap_remove(random.below(own.len()));
                let other = {
                    let mut mailbox = mailbox.lock().unwrap();
                    mailbox.push(block);
                    if mailbox.len() > 100 { Some(mailbox.swap_remove(0)) } else { None }
                };
                if let Some(block) = other {
                    free(block, &mut tallies);
                }
            }
            7 => {
                let block = mailbox.lock().unwrap().pop();
                if let Some(block) = block {
                    free(block, &mut tallies);
                }
            }
            8 if !own.is_empty() => {
                let at = random.below(own.len());
                let (block, bytes, ty) = (own[at], random.size(), random.below(world.types.len()));
                let new = {
                    // SAFETY: 1. ours.
                    unsafe { world.system.realloc(addr_of(&block), bytes, world.types[ty], 2) }
                };
                assert!(!new.is_null());
                block.holds(new as usize, block.bytes.min(bytes)).unwrap();
                let info = world.system.lookup(new as usize).unwrap();
                let served = Served { bytes: info.bytes, is_run: info.is_run };
                let old = world.types.iter().position(|&id| id == block.id).unwrap();
                tallies[ty].alloc(served, bytes);
                tallies[old].free(block.bytes);
                own[at] = Block::new(new as usize, served, world.types[ty], random.next());
            }
            9 if own.len() > random.below(100) => free(own.swap_remove(random.below(own.len())), &mut tallies),
            _ => Machine::set_cpu(Some(random.below(2))),
        }
    }
    mailbox.lock().unwrap().extend(own);
    tallies
}

/// Adds up the threads' shares, with wrapping differences: a thread may have freed more than it allocated.
fn sum(shares: &[Vec<Tally>], ty: usize) -> Tally {
    let mut sum = Tally::default();
    for share in shares {
        sum.allocs += share[ty].allocs;
        sum.frees += share[ty].frees;
        sum.bytes_allocated += share[ty].bytes_allocated;
        sum.bytes_freed += share[ty].bytes_freed;
        sum.bytes_requested += share[ty].bytes_requested;
        sum.size_mask |= share[ty].size_mask;
    }
    sum
}

fn found(world: &World, ty: usize) -> Tally {
    let totals = world.totals(world.types[ty]);
    Tally {
        allocs: totals.allocs,
        frees: totals.frees,
        bytes_allocated: totals.bytes_allocated,
        bytes_freed: totals.bytes_freed,
        bytes_requested: totals.bytes_requested,
        size_mask: totals.size_mask,
        ..Tally::default()
    }
}

/// Nothing is lost and nothing is left.
fn settle(world: &World, mailbox: &Mutex<Vec<Block>>, mut shares: Vec<Vec<Tally>>) {
    let blocks = core::mem::take(&mut *mailbox.lock().unwrap());
    world.machine.run(|| {
        for ty in 0..world.types.len() {
            assert_eq!(found(world, ty), sum(&shares, ty));
        }
        world.system.validate().unwrap();
        let live = blocks.iter().map(|block| Served { bytes: block.bytes, is_run: block.is_run });
        world.check_conservation(live).unwrap();
        let mut last = vec![Tally::default(); world.types.len()];
        for block in blocks {
            block.check().unwrap();
            // SAFETY: 1. no thread has it any more.
            unsafe { world.system.free(addr_of(&block), 3) };
            let ty = world.types.iter().position(|&id| id == block.id).unwrap();
            last[ty].frees += 1;
            last[ty].bytes_freed += block.bytes as u64;
        }
        shares.push(last);
        for (ty, &id) in world.types.iter().enumerate() {
            assert_eq!(found(world, ty), sum(&shares, ty));
            assert_eq!(world.totals(id).in_use(), 0);
        }
        world.system.reclaim();
        world.check_conservation(core::iter::empty()).unwrap();
        let counts = world.system.page_counts();
        assert_eq!((counts.out, counts.free_dirty), (0, 0));
        assert!(world.machine.take_reports().is_empty());
    });
}

#[test]
fn eight_threads_on_four_slots_count_exactly() {
    let world = World::boot(config(2, 2));
    let mailbox = Arc::new(Mutex::new(Vec::new()));
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let (there, mailbox) = (world.clone(), Arc::clone(&mailbox));
            world.machine.spawn(number % 2, move || churn(&there, &mailbox, number as u64, |step| step < STEPS))
        })
        .collect();
    // Whoever looks on never sees more given back than was given out.
    let (there, stop) = (world.clone(), Arc::clone(&done));
    let reader = std::thread::spawn(move || {
        let mut reads = 0u64;
        while !stop.load(Ordering::Relaxed) {
            for &id in &there.types {
                let totals = there.totals(id);
                assert!(totals.in_use() < u64::MAX / 2 && totals.bytes_in_use() < u64::MAX / 2, "{totals:?}");
            }
            reads += 1;
        }
        reads
    });
    let shares: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    done.store(true, Ordering::Relaxed);
    let reads = reader.join().unwrap();
    let machine = &world.machine;
    println!(
        "{} sections, {} of them shared, {reads} readings",
        machine.calls(Call::Enter),
        machine.calls(Call::ClaimShared)
    );
    settle(&world, &mailbox, shares);
}

#[test]
fn a_trim_while_threads_run_loses_nothing() {
    let world = World::boot(config(2, 2));
    let mailbox = Arc::new(Mutex::new(Vec::new()));
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (there, mailbox, stop) = (world.clone(), Arc::clone(&mailbox), Arc::clone(&done));
            let runs = move |_| !stop.load(Ordering::Relaxed);
            world.machine.spawn(number % 2, move || churn(&there, &mailbox, 100 + number as u64, runs))
        })
        .collect();
    world.machine.run(|| {
        for _ in 0..100 {
            world.system.reclaim();
            world.system.publish_zones();
            world.machine.advance(Duration::from_millis(60));
        }
    });
    done.store(true, Ordering::Relaxed);
    let shares = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    settle(&world, &mailbox, shares);
}

#[test]
fn nothing_moves_while_the_allocator_is_frozen() {
    let world = World::boot(config(2, 2));
    let mailbox = Arc::new(Mutex::new(Vec::new()));
    let done = Arc::new(AtomicBool::new(false));
    let steps = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let (there, mailbox) = (world.clone(), Arc::clone(&mailbox));
            let (stop, steps) = (Arc::clone(&done), Arc::clone(&steps));
            let runs = move |_| {
                steps.fetch_add(1, Ordering::Relaxed);
                !stop.load(Ordering::Relaxed)
            };
            world.machine.spawn(number % 2, move || churn(&there, &mailbox, 200 + number as u64, runs))
        })
        .collect();
    let picture = || -> Vec<_> { world.types.iter().map(|&id| world.totals(id)).collect() };
    world.machine.run(|| {
        for _ in 0..50 {
            let before = steps.load(Ordering::Relaxed);
            world.system.freeze();
            let still = picture();
            for _ in 0..20 {
                std::thread::yield_now();
                assert_eq!(picture(), still);
            }
            // SAFETY: 1. frozen above.
            unsafe { world.system.thaw() };
            while steps.load(Ordering::Relaxed) < before + 200 {
                std::thread::yield_now();
            }
        }
    });
    done.store(true, Ordering::Relaxed);
    let shares = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    settle(&world, &mailbox, shares);
}

/// A port that cannot stop some CPU stops none, and nothing is left that was not taken.
#[test]
fn a_freeze_without_all_slots_thaws() {
    for nth in 1..=5 {
        let world = World::boot(config(2, 2));
        world.machine.run(|| {
            world.machine.fail_nth(Call::ClaimRemote, nth);
            world.system.freeze();
            assert_eq!(world.machine.failed(Call::ClaimRemote), 1);
            // SAFETY: 1. frozen above.
            unsafe { world.system.thaw() };
            let block = world.system.alloc(100, world.types[0]);
            assert!(!block.is_null());
            // SAFETY: 1. just allocated.
            unsafe { world.system.free(block, 0) };
            world.system.freeze();
            // SAFETY: 1. frozen above.
            unsafe { world.system.thaw() };
            world.system.validate().unwrap();
        });
    }
}

/// Tags of neighbours lie in one cache line, so CPUs that take turns at a class have slabs of their own; but no more slabs for it than one
/// beside what there is.
#[test]
fn cpus_take_from_slabs_of_their_own_while_those_are_few() {
    const SLAB: usize = 16 * 1024;
    let slab_of = |world: &World, cpu: usize| {
        world.machine.run_on(cpu, || {
            let block = world.system.alloc(64, world.types[0]);
            assert!(!block.is_null());
            block as usize / SLAB
        })
    };
    let world = World::boot(config(2, 1));
    let slabs = [slab_of(&world, 0), slab_of(&world, 1)];
    assert_ne!(slabs[0], slabs[1]);
    // Their buckets are used up, and the next are of the same slabs.
    for turn in 0..40 {
        assert_eq!(slab_of(&world, turn % 2), slabs[turn % 2], "{turn}");
    }
    world.machine.run(|| world.system.validate().unwrap());
    // Eight CPUs do not take eight.
    let world = World::boot(config(8, 1));
    let slabs: BTreeSet<_> = (0..8).map(|cpu| slab_of(&world, cpu)).collect();
    assert!((2..=3).contains(&slabs.len()), "{slabs:?}");
}
