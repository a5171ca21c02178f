//! The high-water mark of a type (see the text of `stats`): exact with one slot, and with several never below the truth and above it by
//! no more than a comparing distance and a block for each further slot.

extern crate kernmalloc_kern as kern;

mod common;

use common::{World, config};
use kern::COMPARE_BYTES;
use platform::fake::Machine;
use proptest::prelude::*;

/// A type's bytes on several CPUs, with what it really had at most.
struct Scale {
    world: World,
    /// Blocks by the CPU that shall free them.
    held: Vec<Vec<*mut u8>>,
    now: u64,
    most: u64,
}

impl Scale {
    fn new(cpus: usize) -> Self {
        Self { world: World::boot(config(cpus, 1)), held: vec![Vec::new(); cpus], now: 0, most: 0 }
    }

    /// Allocates `blocks` of 1,024 bytes on a CPU.
    fn up(&mut self, cpu: usize, blocks: usize) {
        Machine::set_cpu(Some(cpu));
        for _ in 0..blocks {
            let block = self.world.system.alloc(1024, self.world.types[1]);
            self.held[cpu].push(block);
            self.now += 1024;
            self.most = self.most.max(self.now);
        }
    }

    /// Frees so many on a CPU, whoever allocated them.
    fn down(&mut self, cpu: usize, blocks: usize) {
        Machine::set_cpu(Some(cpu));
        for _ in 0..blocks {
            let longest = (0..self.held.len()).max_by_key(|&cpu| self.held[cpu].len()).unwrap();
            let from = if self.held[cpu].is_empty() { longest } else { cpu };
            let Some(block) = self.held[from].pop() else { return };
            // SAFETY: 1. it is in no list any more.
            unsafe { self.world.system.free(block, 1) };
            self.now -= 1024;
        }
    }

    fn mark(&self) -> u64 {
        self.world.high_water(self.world.types[1])
    }

    /// What the mark may say, beside the truth.
    fn slack(&self) -> u64 {
        (COMPARE_BYTES + 1024) * (self.held.len() as u64 - 1)
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let mark = self.mark();
        prop_assert!(mark >= self.most, "the mark is {mark}, below the truth, {}", self.most);
        prop_assert!(mark <= self.most + self.slack(), "the mark is {mark}, the truth {}", self.most);
        Ok(())
    }
}

fn moves(cpus: usize) -> impl Strategy<Value = Vec<(usize, isize)>> {
    prop::collection::vec((0..cpus, prop_oneof![-4..=4isize, -40..=40isize, -200..=200isize]), 1..80)
}

fn run(cpus: usize, moves: &[(usize, isize)]) -> Result<(), TestCaseError> {
    let mut scale = Scale::new(cpus);
    let machine = scale.world.machine.clone();
    machine.run(|| {
        for &(cpu, blocks) in moves {
            if blocks > 0 {
                scale.up(cpu, blocks as usize)
            } else {
                scale.down(cpu, blocks.unsigned_abs())
            }
            scale.check()?;
        }
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_slot_is_exact(moves in moves(1)) {
        run(1, &moves)?;
    }

    #[test]
    fn two_slots_are_within_the_bound(moves in moves(2)) {
        run(2, &moves)?;
    }

    #[test]
    fn eight_slots_are_within_the_bound(moves in moves(8)) {
        run(8, &moves)?;
    }
}

/// All slots rise together and then fall: exact, for each has its peak while the others have theirs.
#[test]
fn slots_that_rise_together_are_exact() {
    let mut scale = Scale::new(8);
    let machine = scale.world.machine.clone();
    machine.run(|| {
        for _ in 0..100 {
            (0..8).for_each(|cpu| scale.up(cpu, 1));
        }
        (0..8).for_each(|cpu| scale.down(cpu, 100));
        assert_eq!(scale.mark(), scale.most);
    });
}

/// The worst case: each slot has its peak while the other is as low as it may be without comparing. It shows that the bound is tight.
#[test]
fn slots_that_rise_in_turn_come_near_the_bound() {
    let mut scale = Scale::new(2);
    let machine = scale.world.machine.clone();
    let step = (COMPARE_BYTES / 1024) as usize;
    machine.run(|| {
        scale.up(0, 2 * step);
        scale.up(1, 2 * step);
        scale.down(1, step);
        scale.up(0, step);
        scale.check().unwrap();
        assert!(scale.mark() > scale.most + scale.slack() / 2, "{} {}", scale.mark(), scale.most);
    });
}
