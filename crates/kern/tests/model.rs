//! The allocator against a model: sequences of calls on 1, 2, 64 and 1,024 CPUs, with all the memory there is and with little.

extern crate kernmalloc_kern as kern;

mod common;

use common::model::{Model, Op};
use common::{World, config};
use platform::fake::{Call, Config};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const KIB: usize = 1024;

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0..=128usize,
        6 => 0..=4 * KIB,
        3 => 0..=80 * KIB,
        2 => 60 * KIB..=2100 * KIB,
        1 => 0..=8 * KIB * KIB,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let ty = 0..5usize;
    let pick = any::<usize>();
    prop_oneof![
        20 => (size(), ty.clone()).prop_map(|(bytes, ty)| Op::Alloc { bytes, ty }),
        4 => (size(), 0..=16u32, ty.clone()).prop_map(|(bytes, align_log2, ty)| Op::Aligned { bytes, align_log2, ty }),
        4 => (size(), ty.clone()).prop_map(|(bytes, ty)| Op::Zeroed { bytes, ty }),
        20 => pick.prop_map(|pick| Op::Free { pick }),
        8 => (pick, size(), ty.clone()).prop_map(|(pick, bytes, ty)| Op::Realloc { pick, bytes, ty }),
        1 => Just(Op::Reclaim),
        4 => prop::option::weighted(0.9, 0..1024usize).prop_map(Op::Cpu),
        4 => (1..4usize, 0..1024usize).prop_map(|(sections, cpu)| Op::Hop { sections, cpu }),
        2 => Just(Op::Contended),
        2 => (0..100u64).prop_map(|ms| Op::Advance { ms }),
        2 => pick.prop_map(|pick| Op::DoubleFree { pick }),
        2 => (pick, any::<usize>(), any::<bool>())
            .prop_map(|(pick, offset, resize)| Op::Interior { pick, offset, resize }),
        2 => (0..64 * KIB * KIB).prop_map(|offset| Op::Wild { offset }),
        1 => (MOST - 4096..=usize::MAX, ty).prop_map(|(bytes, ty)| Op::Alloc { bytes, ty }),
    ]
}
const MOST: usize = kern::MAX_REQUEST_BYTES;

/// Few sizes and mostly the same type: what fills and drains buckets.
fn narrow_op() -> impl Strategy<Value = Op> {
    let size = prop_oneof![Just(48usize), Just(5000), Just(60_000), Just(70_000)];
    let pick = any::<usize>();
    prop_oneof![
        12 => size.prop_map(|bytes| Op::Alloc { bytes, ty: 1 }),
        11 => pick.prop_map(|pick| Op::Free { pick }),
        1 => (0..2usize).prop_map(|cpu| Op::Cpu(Some(cpu))),
        2 => (1..4usize, 0..2usize).prop_map(|(sections, cpu)| Op::Hop { sections, cpu }),
    ]
}

/// Runs a sequence on a fresh machine.
fn run(config: Config, ops: &[Op], prepare: impl FnOnce(&World)) -> Result<(), TestCaseError> {
    let world = World::boot(config);
    prepare(&world);
    let mut model = Model::new(world.clone());
    let outcome = world.machine.run(|| {
        for &op in ops {
            model.apply(op)?;
        }
        model.finish()
    });
    outcome.map_err(TestCaseError::fail)
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// Without what moves the thread: on one CPU with one slot the high-water mark is exact too.
fn stay(ops: Vec<Op>) -> Vec<Op> {
    ops.into_iter().filter(|op| !matches!(op, Op::Cpu(_) | Op::Contended)).collect()
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn on_one_cpu_with_one_slot(ops in prop::collection::vec(op(), 1..300)) {
        run(config(1, 1), &stay(ops), |_| {})?;
    }

    #[test]
    fn on_two_cpus(ops in prop::collection::vec(op(), 1..300)) {
        run(config(2, 2), &ops, |_| {})?;
    }

    #[test]
    fn with_few_sizes_and_many_blocks(ops in prop::collection::vec(narrow_op(), 1..1000)) {
        run(config(2, 1), &ops, |_| {})?;
    }

    #[test]
    fn with_holes_in_the_heap(ops in prop::collection::vec(op(), 1..150)) {
        run(Config { heap_gap_bytes: 64 * KIB, ..config(2, 1) }, &ops, |_| {})?;
    }

    #[test]
    fn with_few_pages(ops in prop::collection::vec(op(), 1..300), heap in 0..3000usize, meta in 0..16usize) {
        run(config(2, 2), &ops, |world| {
            world.machine.set_heap_budget(Some(heap));
            world.machine.set_meta_budget(Some(meta));
        })?;
    }

    #[test]
    fn with_every_nth_call_failing(
        ops in prop::collection::vec(op(), 1..200),
        every in prop::collection::vec(prop_oneof![Just(0u64), 2..10u64], 6),
    ) {
        run(config(2, 2), &ops, |world| {
            let calls =
                [Call::Enter, Call::ExtendHeap, Call::ExtendMeta, Call::Discard, Call::Populate, Call::MovePages];
            for (call, &n) in calls.into_iter().zip(&every) {
                world.machine.fail_every(call, n);
            }
        })?;
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn on_64_cpus(ops in prop::collection::vec(op(), 1..300)) {
        run(config(64, 2), &ops, |_| {})?;
    }

    #[test]
    fn on_1024_cpus(ops in prop::collection::vec(op(), 1..150)) {
        run(config(1024, 1), &ops, |_| {})?;
    }
}
