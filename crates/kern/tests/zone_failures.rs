//! Every point where a fixed sequence of zone calls can meet a failure, of the platform or of a callback, each failed once.
//!
//! The sequence is run without failures first, to count; then once for each call, with that one failing. After each step the zones agree
//! with the model (a request that failed is counted, all else is as if it had not been made), and at the end everything comes back.

extern crate kernmalloc_kern as kern;

mod common;

use common::paths;
use common::probe::SCRIPT;
use common::zones::{KINDS, Kind, Model, Op};
use common::{World, config};
use platform::fake::{Call, Config, Machine};

/// Comes by every callback and every call of the platform: zones of all kinds, slabs, buckets, depots, domains, limits, readers.
fn script() -> Vec<Op> {
    let kind = |kind: Kind| KINDS.iter().position(|&known| known == kind).unwrap();
    let mut ops = Vec::new();
    // Primaries before their secondary; the order of the zones is then that of this list.
    for known in [
        Kind::Plain,
        Kind::Constructed,
        Kind::Secondary,
        Kind::OwnPages,
        Kind::Smr,
        Kind::Cache,
        Kind::PerCpu,
        Kind::RoundRobin,
    ] {
        ops.push(Op::Create(kind(known)));
    }
    ops.push(Op::Enter);
    for zone in 0..8 {
        ops.extend([
            Op::Cpu(Some(zone)),
            Op::Alloc { zone, zero: true, reserve: false },
            Op::AllocMany { zone, count: 30 },
            Op::AllocDomain { zone, domain: zone },
            Op::FreeMany { count: 12 },
            Op::Cpu(Some(zone + 1)),
            Op::AllocMany { zone, count: 15 },
            Op::FreeMany { count: 20 },
        ]);
    }
    ops.push(Op::Exit { pick: 0 });
    for zone in 0..8 {
        ops.extend([
            Op::Max { zone, items: 12 },
            Op::AllocMany { zone, count: 14 },
            Op::Reserve { zone, items: 9 },
            Op::Alloc { zone, zero: false, reserve: true },
            Op::Max { zone, items: 0 },
            Op::Prealloc { zone, items: 70 },
            Op::AllocMany { zone, count: 40 },
            Op::Advance { seconds: 30 },
        ]);
    }
    ops.extend([Op::Defragment { zone: 0 }, Op::FreeMany { count: 150 }, Op::Defragment { zone: 0 }, Op::Tick]);
    for zone in 0..8 {
        ops.extend([Op::Reserve { zone, items: 0 }, Op::Reclaim { zone, how: zone }, Op::FreeMany { count: 20 }]);
    }
    ops.extend([Op::Offline { cpu: 1 }, Op::Destroy { zone: 1 }, Op::Create(kind(Kind::NoFree)), Op::ReclaimAll]);
    ops.extend([Op::AllocMany { zone: 6, count: 10 }, Op::FreeMany { count: 300 }, Op::ReclaimAll]);
    ops
}

const CONFIG: fn() -> Config = || Config { domains: 2, ..config(2, 2) };

/// Runs the script on a machine that has been told what to fail. Returns requests that failed, and those for a callback.
fn run(machine: Machine, healthy: bool) -> Result<(u64, u64), String> {
    let Ok(world) = World::try_boot(machine, CONFIG()) else { return Ok((1, 0)) };
    world.machine.run(|| {
        let mut model = Model::new(&world, healthy);
        script().into_iter().try_for_each(|op| model.apply(op))?;
        let failures = (model.failures, model.refusals);
        model.finish()?;
        Ok(failures)
    })
}

#[test]
fn every_failing_call_and_callback_is_survived() {
    let healthy = Machine::new(Config { on_call: paths::note_call, ..CONFIG() });
    SCRIPT.set(Default::default());
    let (outcome, paths) = paths::record(|| run(healthy, true));
    let (failures, _) = outcome.unwrap();
    let (callbacks, ways) = paths.counts(None);
    assert!(ways > 10, "the script comes by few callbacks: {callbacks} by {ways} ways");
    let (mut points, mut refused) = (0, 0);
    for n in paths.points(None) {
        SCRIPT.set(common::probe::Script { fail_at: n, ..Default::default() });
        let outcome = run(Machine::new(CONFIG()), false);
        let (_, refusals) = outcome.unwrap_or_else(|error| panic!("callback number {n} fails: {error}"));
        assert_eq!(SCRIPT.get().failed, 1, "callback number {n} was never called");
        refused += refusals;
        points += 1;
    }
    println!("callbacks: {callbacks} calls by {ways} ways, {refused} requests refused by failing one of them");
    SCRIPT.set(Default::default());
    for call in Call::FALLIBLE.into_iter().filter(|&call| call != Call::MovePages) {
        let (calls, ways) = paths.counts(Some(call));
        assert!(calls > 0, "the script never comes by {call:?}");
        let mut noticed = 0;
        for n in paths.points(Some(call)) {
            let machine = Machine::new(CONFIG());
            machine.fail_nth(call, n);
            let (more, _) = run(machine, false).unwrap_or_else(|error| panic!("{call:?} number {n} fails: {error}"));
            noticed += more.saturating_sub(failures);
            points += 1;
        }
        println!("{call:?}: {calls} calls by {ways} ways, {noticed} requests failed by failing one of them");
    }
    println!("{points} points of failure");
}

#[test]
fn every_amount_of_memory_is_enough_or_said_to_be_too_little() {
    for pages in (0..40).chain((40..400).step_by(23)) {
        let machine = Machine::new(CONFIG());
        machine.set_heap_budget(Some(pages));
        run(machine, false).unwrap_or_else(|error| panic!("with {pages} pages of heap: {error}"));
    }
    for pages in 0..40 {
        let machine = Machine::new(CONFIG());
        machine.set_meta_budget(Some(pages));
        run(machine, false).unwrap_or_else(|error| panic!("with {pages} pages of records: {error}"));
    }
}
