//! Everything at once: malloc(9) types with limits, zones of every kind, kmem(9), arenas, contiguous memory, sleepers, reclaim from other
//! threads, CPUs that go off-line, threads that migrate, and failures of every call of the platform and of every callback.
//!
//! # How
//!
//! A run is a row of *machines*, each drawn from the seed: CPUs, slots, domains, memory. A machine lives for some *phases*. In a phase
//! threads make random calls; what they get they put into pools that all threads share, so that blocks are freed by others than
//! allocated them, and nobody holds anything while he sleeps. A *janitor* frees from the pools while somebody sleeps: a
//! wake-up that is lost leaves a sleeper for whom there is everything, and the fake machine gives him up after a minute.
//!
//! Between phases all stand still. Then every type's and zone's figures must be exactly what the threads have counted, and `validate()` finds
//! everything well. At a machine's end everything is freed and destroyed: no item is live, no page is out, and no frame, range, tag or
//! address space is missing.
//!
//! Before the phases each machine is made to sleep in every way there is, one after the other, so that no run is without
//! (`scenes`).
//!
//! The short run here has a fixed seed. `cargo xtask soak` runs the long one; it prints the seed, and a fault says how to run that
//! machine again. The threads' scripts follow from the seed, their interleaving does not.

extern crate kernmalloc_kern as kern;

#[path = "../common/mod.rs"]
mod common;

mod blocks;
mod frames;
mod machine;
mod ranges;
mod scenes;
mod zones;

use std::time::{Duration, Instant};

use machine::{Done, Plan};

/// A small generator, so that a thread's script depends on its seed only.
pub(crate) struct Random {
    state: u64,
    /// Whether its thread allocates more than it frees just now: memory must become short, and be given back.
    pub(crate) grows: bool,
}

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Splitmix: neighbouring seeds have nothing in common.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self { state: (mixed ^ (mixed >> 31)) | 1, grows: false }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 11) as usize % n
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// Runs machines until `until` says that it is enough, which it is asked after each. Returns what was done.
fn soak(seed: u64, phases: usize, steps: usize, mut enough: impl FnMut(u64, &Done) -> bool) -> Done {
    let mut done = Done::default();
    for number in 0.. {
        let plan = Plan::new(seed.wrapping_add(number), phases, steps);
        let this = std::panic::catch_unwind(|| machine::live(&plan));
        match this {
            Ok(this) => done.add(&this),
            Err(fault) => {
                eprintln!("soak: {plan:?}");
                eprintln!("soak: the same machine again: cargo xtask soak --seed {} --machines 1", plan.seed);
                std::panic::resume_unwind(fault);
            }
        }
        if enough(number, &done) {
            break;
        }
    }
    done
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")))
}

/// One machine of each kind, with a fixed seed.
#[test]
fn a_short_soak_leaves_nothing() {
    let done = soak(1, 2, 500, |number, _| number == 3);
    println!("{done}");
    done.check_variety();
}

/// The long one, for `cargo xtask soak`.
#[test]
#[ignore = "as long as one likes: cargo xtask soak"]
fn a_long_soak_leaves_nothing() {
    let seconds = number("SOAK_SECONDS").unwrap_or(60);
    let machines = number("SOAK_MACHINES").unwrap_or(u64::MAX);
    let seed = number("SOAK_SEED").unwrap_or(1);
    let start = Instant::now();
    println!("soak: seed {seed}, {seconds} s");
    let done = soak(seed, 60, 4000, |number, done| {
        println!("soak: {:>5.0} s  {} machines: {done}", start.elapsed().as_secs_f64(), number + 1);
        number + 1 >= machines || start.elapsed() >= Duration::from_secs(seconds)
    });
    done.check_variety();
    println!("soak: seed {seed}: nothing is live, no page is missing, every figure is exact");
}
