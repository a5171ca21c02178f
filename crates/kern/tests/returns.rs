//! Memory goes back when a program shrinks, at once, since it may never call again; and stays when it is wanted again.

extern crate kernmalloc_kern as kern;

mod common;

use common::{World, config};
use platform::fake::{Call, PAGE};

/// A permutation that has nothing to do with addresses.
fn shuffled(count: usize) -> impl Iterator<Item = usize> {
    const STEP: usize = 1_000_003;
    assert!(count % STEP != 0);
    (0..count).map(move |n| n * STEP % count)
}

#[test]
fn a_program_that_frees_all_in_any_order_keeps_little() {
    const BLOCKS: usize = 400_000;
    let world = World::boot(config(2, 2));
    world.machine.run(|| {
        let blocks: Vec<_> = (0..BLOCKS).map(|n| world.system.alloc([64, 100][n % 2], world.types[1])).collect();
        let peak = world.system.page_counts().out;
        for n in shuffled(BLOCKS) {
            // SAFETY: 1. each is freed once: the step has no common divisor with the count.
            unsafe { world.system.free(blocks[n], 1) };
        }
        let counts = world.system.page_counts();
        // Four buckets of items, in two sizes, each of which may keep a slab of four pages; and what is kept on purpose.
        assert!(counts.out < 4 * 63 * 4 + 64, "{counts:?}, {peak} at the peak");
        assert!(counts.free_dirty <= 1024 * 3 / 2, "{counts:?}, {peak} at the peak");
        assert!(world.machine.calls(Call::Discard) > 0);
        world.system.validate().unwrap();
    });
}

#[test]
fn a_program_that_wants_it_again_is_left_alone() {
    const BLOCKS: usize = 10;
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        let turn = || {
            let blocks: Vec<_> = (0..BLOCKS).map(|_| world.system.alloc(4 << 20, world.types[1])).collect();
            blocks.into_iter().for_each(|block| {
                // SAFETY: 1. it was just allocated.
                unsafe { world.system.free(block, 1) };
            });
        };
        // No time passes, so at most 5,000 pages and a turn's are given back and taken again.
        let turn_pages = (BLOCKS * (4 << 20) / PAGE) as u64;
        (0..5_000 / turn_pages + 2).for_each(|_| turn());
        let discards = world.machine.calls(Call::Discard);
        (0..20).for_each(|_| turn());
        assert_eq!(world.machine.calls(Call::Discard), discards, "given back again and again");
        // A second later it is tried again.
        world.machine.advance(std::time::Duration::from_secs(2));
        turn();
        assert!(world.machine.calls(Call::Discard) > discards);
    });
}
