//! Zones against a model: sequences of calls on 1, 2, 64 and 1,024 CPUs in 1 and 4 domains, with all the memory there is and with little.

extern crate kernmalloc_kern as kern;

mod common;

use common::zones::{Model, Op};
use common::{World, config};
use platform::fake::{Call, Config};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

fn op() -> impl Strategy<Value = Op> {
    let zone = any::<usize>();
    let pick = any::<usize>();
    prop_oneof![
        6 => (0..10usize).prop_map(Op::Create),
        1 => zone.prop_map(|zone| Op::Destroy { zone }),
        20 => (zone, any::<bool>(), any::<bool>()).prop_map(|(zone, zero, reserve)| Op::Alloc { zone, zero, reserve }),
        6 => (zone, 1..60usize).prop_map(|(zone, count)| Op::AllocMany { zone, count }),
        3 => (zone, 0..4usize).prop_map(|(zone, domain)| Op::AllocDomain { zone, domain }),
        20 => pick.prop_map(|pick| Op::Free { pick }),
        5 => (1..80usize).prop_map(|count| Op::FreeMany { count }),
        3 => (zone, prop_oneof![Just(0usize), 1..40usize]).prop_map(|(zone, items)| Op::Max { zone, items }),
        1 => (zone, 0..400usize).prop_map(|(zone, items)| Op::MaxCache { zone, items }),
        1 => (zone, 0..30usize).prop_map(|(zone, items)| Op::Reserve { zone, items }),
        1 => (zone, 0..60usize).prop_map(|(zone, items)| Op::Prealloc { zone, items }),
        3 => (zone, 0..3usize).prop_map(|(zone, how)| Op::Reclaim { zone, how }),
        1 => Just(Op::ReclaimAll),
        1 => Just(Op::Tick),
        2 => zone.prop_map(|zone| Op::Defragment { zone }),
        1 => (0..1024usize).prop_map(|cpu| Op::Offline { cpu }),
        6 => prop::option::weighted(0.9, 0..1024usize).prop_map(Op::Cpu),
        4 => (1..4usize, 0..1024usize).prop_map(|(sections, cpu)| Op::Hop { sections, cpu }),
        2 => Just(Op::Contended),
        2 => (0..60u64).prop_map(|seconds| Op::Advance { seconds }),
        3 => Just(Op::Enter),
        3 => pick.prop_map(|pick| Op::Exit { pick }),
        2 => pick.prop_map(|pick| Op::DoubleFree { pick }),
        2 => pick.prop_map(|pick| Op::WrongZone { pick }),
        2 => pick.prop_map(|pick| Op::Interior { pick }),
        1 => Just(Op::FreezeThaw),
    ]
}

/// Runs a sequence on a fresh machine.
fn run(config: Config, ops: &[Op], healthy: bool, prepare: impl FnOnce(&World)) -> Result<(), TestCaseError> {
    let world = World::boot(config);
    prepare(&world);
    let outcome = world.machine.run(|| {
        let mut model = Model::new(&world, healthy);
        ops.iter().try_for_each(|&op| model.apply(op))?;
        model.finish()
    });
    outcome.map_err(TestCaseError::fail)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

fn domains(config: Config, domains: usize) -> Config {
    Config { domains, ..config }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn on_one_cpu(ops in prop::collection::vec(op(), 1..250)) {
        run(config(1, 1), &ops, true, |_| {})?;
    }

    #[test]
    fn on_two_cpus(ops in prop::collection::vec(op(), 1..250)) {
        run(config(2, 2), &ops, true, |_| {})?;
    }

    #[test]
    fn on_four_cpus_in_four_domains(ops in prop::collection::vec(op(), 1..250)) {
        run(domains(config(4, 2), 4), &ops, true, |_| {})?;
    }

    #[test]
    fn with_few_pages(ops in prop::collection::vec(op(), 1..250), heap in 0..600usize, meta in 0..24usize) {
        run(domains(config(2, 2), 2), &ops, false, |world| {
            world.machine.set_heap_budget(Some(heap));
            world.machine.set_meta_budget(Some(meta));
        })?;
    }

    #[test]
    fn with_every_nth_call_failing(
        ops in prop::collection::vec(op(), 1..150),
        every in prop::collection::vec(prop_oneof![Just(0u64), 2..10u64], 4),
    ) {
        run(domains(config(2, 2), 2), &ops, false, |world| {
            let calls = [Call::Enter, Call::ExtendHeap, Call::ExtendMeta, Call::Discard];
            for (call, &n) in calls.into_iter().zip(&every) {
                world.machine.fail_every(call, n);
            }
        })?;
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn on_64_cpus_in_four_domains(ops in prop::collection::vec(op(), 1..250)) {
        run(domains(config(64, 2), 4), &ops, true, |_| {})?;
    }

    #[test]
    fn on_1024_cpus_in_four_domains(ops in prop::collection::vec(op(), 1..100)) {
        run(domains(config(1024, 1), 4), &ops, true, |_| {})?;
    }
}
