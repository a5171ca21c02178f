//! Every point where a fixed sequence of calls can meet a failure of the platform, each failed once.
//!
//! The sequence is run without failures first, to count how often each call of the platform is made; then once for each of
//! those calls, with that one failing. After each step the allocator agrees with the model (a request without memory
//! is null and counted for its type, all else is as if it had not been made), and at the end everything comes back.

extern crate kernmalloc_kern as kern;

mod common;

use common::model::{Model, Op};
use common::paths;
use common::{World, config};
use platform::fake::{Call, Config, Machine};

const KIB: usize = 1024;

/// A sequence that comes by every call of the platform: new slabs of both kinds, buckets of all sizes, depots, runs that are
/// cached, aligned, grown, shrunk and moved, memory given back, slots taken by others.
fn script() -> Vec<Op> {
    // Two blocks side by side, of which the first grows: it has to move.
    let mut ops = vec![Op::Alloc { bytes: 3_000_000, ty: 0 }, Op::Alloc { bytes: 3_000_000, ty: 0 }];
    ops.push(Op::Realloc { pick: 0, bytes: 5_000_000, ty: 1 });
    let sizes = [0, 16, 40, 100, 500, 1024, 1300, 3000, 10_000, 40_000, 65_536, 65_537, 100_000, 700_000, 3_000_000];
    for (ty, &bytes) in sizes.iter().enumerate() {
        ops.extend([Op::Alloc { bytes, ty }, Op::Zeroed { bytes, ty: ty + 1 }, Op::Free { pick: ty }]);
        ops.push(Op::Aligned { bytes, align_log2: ty as u32 + 4, ty });
    }
    // Enough of one size to go through depots, on two CPUs, and to reach a second page of boundary tags.
    for n in 0..160 {
        if n % 20 == 0 {
            ops.push(Op::Cpu(Some(n / 20)));
        }
        ops.push(Op::Alloc { bytes: 2000, ty: 2 });
        if n % 8 == 0 {
            ops.push(Op::Alloc { bytes: 70_000, ty: 3 });
            ops.push(Op::Aligned { bytes: 4096, align_log2: 13, ty: 3 });
        }
    }
    for n in 0..140 {
        if n % 10 == 0 {
            ops.push(Op::Cpu(Some(n / 10)));
        }
        ops.push(Op::Free { pick: n * 7 });
    }
    // Growth in place, at the end of the heap, and by a move.
    for (pick, bytes) in
        [(1, 600_000), (2, 900_000), (3, 8_000_000), (1, 2_000_000), (2, 100), (3, 1_200_000), (1, 70_000)]
    {
        ops.extend([Op::Realloc { pick, bytes, ty: 4 }, Op::Alloc { bytes: 300_000, ty: 1 }]);
    }
    ops.extend([Op::Contended, Op::Alloc { bytes: 48, ty: 0 }, Op::Contended, Op::Free { pick: 3 }]);
    ops.extend([Op::Hop { sections: 2, cpu: 1 }, Op::Alloc { bytes: 5000, ty: 0 }, Op::Reclaim]);
    for n in 0..30 {
        ops.extend([Op::Free { pick: n }, Op::Advance { ms: 60 }]);
    }
    ops.extend([Op::Reclaim, Op::Alloc { bytes: 7 * KIB * KIB, ty: 1 }, Op::Alloc { bytes: 24, ty: 1 }]);
    ops
}

const CONFIG: fn() -> Config = || config(2, 2);

/// Runs the script on a machine that has been told what to fail. Returns the requests that failed.
fn run(machine: Machine) -> Result<u64, String> {
    let world = match World::try_boot(machine, CONFIG()) {
        Ok(world) => world,
        Err(world) => {
            // An allocator that did not boot serves nobody and harms nobody.
            return world.machine.run(|| {
                let id = world.types[0];
                assert!(world.system.alloc(100, id).is_null() && world.system.alloc(1 << 20, id).is_null());
                assert!(!world.system.reclaim() && world.system.lookup(world.machine.heap_base()).is_none());
                Ok(1)
            });
        }
    };
    let mut model = Model::new(world.clone());
    world.machine.run(|| {
        for op in script() {
            model.apply(op)?;
        }
        let failures = model.tallies.iter().map(|tally| tally.failures).sum();
        model.finish()?;
        Ok(failures)
    })
}

#[test]
fn every_failing_call_of_the_platform_is_survived() {
    let healthy = Machine::new(Config { on_call: paths::note_call, ..CONFIG() });
    let (outcome, paths) = paths::record(|| run(healthy));
    assert_eq!(outcome, Ok(0));
    let mut points = 0;
    for call in Call::FALLIBLE {
        let (calls, ways) = paths.counts(Some(call));
        assert!(calls > 0, "the script never comes by {call:?}");
        let mut noticed = 0;
        for n in paths.points(Some(call)) {
            let machine = Machine::new(CONFIG());
            machine.fail_nth(call, n);
            noticed += run(machine).unwrap_or_else(|error| panic!("{call:?} number {n} fails: {error}"));
            points += 1;
        }
        println!("{call:?}: {calls} calls by {ways} ways, {noticed} requests failed by failing one of them");
    }
    println!("{points} points of failure");
}

#[test]
fn platforms_that_fail_often_are_survived() {
    for call in Call::FALLIBLE {
        for every in [1, 2, 3, 5] {
            let machine = Machine::new(CONFIG());
            machine.fail_every(call, every);
            run(machine).unwrap_or_else(|error| panic!("every {every}. {call:?} fails: {error}"));
        }
    }
}

#[test]
fn every_amount_of_memory_is_enough_or_said_to_be_too_little() {
    for pages in (0..600).step_by(31).chain((600..4200).step_by(450)) {
        let machine = Machine::new(CONFIG());
        machine.set_heap_budget(Some(pages));
        let failures = run(machine).unwrap_or_else(|error| panic!("with {pages} pages of heap: {error}"));
        assert!(failures > 0 || pages > 1000, "{pages} pages cannot be enough");
    }
    for pages in (0..16).chain([20, 28]) {
        let machine = Machine::new(CONFIG());
        machine.set_meta_budget(Some(pages));
        run(machine).unwrap_or_else(|error| panic!("with {pages} pages of records: {error}"));
    }
}

/// The heap grows in the middle of an allocation, and both take boundary tags: they must be there for both, whatever the number left.
#[test]
fn growth_never_fails_for_want_of_tags() {
    for heap_gap_bytes in [0, 64 * KIB] {
        for small in 0..70 {
            let config = Config { heap_gap_bytes, ..CONFIG() };
            let mut model = Model::new(World::boot(config));
            let machine = model.world.machine.clone();
            let ops = (0..small).map(|_| Op::Aligned { bytes: 4096, align_log2: 13, ty: 0 });
            let ops = ops.chain((0..3).map(|_| Op::Aligned { bytes: 3 << 20, align_log2: 14, ty: 1 }));
            let outcome =
                machine.run(|| ops.into_iter().try_for_each(|op| model.apply(op)).and_then(|()| model.finish()));
            outcome.unwrap_or_else(|error| panic!("after {small} blocks, gap {heap_gap_bytes}: {error}"));
        }
    }
}
