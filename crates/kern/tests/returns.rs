//! Memory goes back when a program shrinks, at once, since it may never call again; and stays when it is wanted again.

extern crate kernmalloc_kern as kern;

mod common;

use abi::Ordering;
use common::{World, config};
use kern::ZoneView;
use platform::fake::{Call, PAGE};

/// A random permutation (Fisher and Yates; the numbers are Knuth's MMIX generator's).
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = 1u64;
    for last in (1..count).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}

#[test]
fn a_program_that_frees_all_in_any_order_keeps_little() {
    const BLOCKS: usize = 400_000;
    let world = World::boot(config(2, 2));
    world.machine.run(|| {
        let blocks: Vec<_> = (0..BLOCKS).map(|n| world.system.alloc([64, 100][n % 2], world.types[1])).collect();
        let peak = world.system.page_counts().out;
        for n in shuffled(BLOCKS) {
            // SAFETY: 1. each is freed once.
            unsafe { world.system.free(blocks[n], 1) };
        }
        let counts = world.system.page_counts();
        // Four buckets of items, in two sizes, each of which may keep a slab of four pages; and what is kept on purpose.
        assert!(counts.out < 4 * 63 * 4 + 64, "{counts:?}, {peak} at the peak");
        assert!(counts.free_dirty <= 2 * 1024, "{counts:?}, {peak} at the peak");
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
        // No time passes, so at most 1,000 pages and a turn's are given back and taken again.
        let turn_pages = (BLOCKS * (4 << 20) / PAGE) as u64;
        (0..1_000 / turn_pages + 2).for_each(|_| turn());
        let discards = world.machine.calls(Call::Discard);
        (0..20).for_each(|_| turn());
        assert_eq!(world.machine.calls(Call::Discard), discards, "given back again and again");
        // A second later it is tried again.
        world.machine.advance(std::time::Duration::from_secs(2));
        turn();
        assert!(world.machine.calls(Call::Discard) > discards);
    });
}

/// A program that works on with less than it had: what it needs again and again stays, the rest goes.
#[test]
fn what_lies_unused_goes_while_the_rest_is_used() {
    const MIB: usize = 1 << 20;
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        let turn = |mebibytes: usize| {
            let blocks: Vec<_> = (0..mebibytes / 4).map(|_| world.system.alloc(4 * MIB, world.types[1])).collect();
            blocks.into_iter().for_each(|block| {
                // SAFETY: 1. it was just allocated.
                unsafe { world.system.free(block, 1) };
            });
        };
        (0..4).for_each(|_| turn(100));
        let dirty = || world.system.page_counts().free_dirty as usize * PAGE / MIB;
        assert!(dirty() >= 90, "it is left alone, {}", dirty());
        let discards = world.machine.calls(Call::Discard);
        for _ in 0..3 {
            world.machine.advance(std::time::Duration::from_millis(60));
            turn(40);
        }
        assert!((40..=60).contains(&dirty()), "{} of 100 MiB with 40 in use at times", dirty());
        assert!(world.machine.calls(Call::Discard) > discards);
    });
}

/// Where the machine has no memory left for new pages, what lies free and dirty elsewhere is memory yet.
#[test]
fn memory_that_lies_free_elsewhere_is_given_back_before_a_request_fails() {
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        let alloc = |bytes: usize| world.system.alloc(bytes, world.types[1]);
        // Not at the end of the heap, where what is asked for next would begin with it.
        let (block, _behind) = (alloc(1 << 20), alloc(100_000));
        // SAFETY: 1. it was just allocated.
        unsafe { world.system.free(block, 1) };
        assert_eq!(world.system.page_counts().free_dirty, (1 << 20) / PAGE as u64);
        world.machine.fail_nth(Call::Populate, 1);
        assert!(!alloc(8 << 20).is_null());
        assert_eq!((world.machine.failed(Call::Populate), world.system.page_counts().free_dirty), (1, 0));
        // And when there is nothing to give back, it fails.
        world.machine.fail_nth(Call::Populate, 1);
        assert!(alloc(16 << 20).is_null());
        world.system.validate().unwrap();
    });
}

/// Free items of the size class in depots.
fn in_depots(world: &World, bytes: u64) -> u64 {
    let mut items = None;
    world.system.each_zone_view(|view| {
        let figures = view.figures();
        if matches!(view, ZoneView::Class(..)) && figures.item_bytes == bytes {
            items = Some(figures.depot);
        }
    });
    items.expect("a class of that size")
}

/// What a program frees and wants again stays in buckets, however much it is; and goes when it is not wanted any more, though nothing of
/// that size is freed then.
#[test]
fn a_depot_grows_to_the_working_set_and_shrinks_with_it() {
    const BLOCKS: usize = 40_000;
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        let turn = || {
            let blocks: Vec<_> = (0..BLOCKS).map(|_| world.system.alloc(64, world.types[1])).collect();
            blocks.into_iter().rev().for_each(|block| {
                // SAFETY: 1. it was just allocated.
                unsafe { world.system.free(block, 1) };
            });
        };
        let other = |times: usize| {
            (0..times).for_each(|_| {
                let blocks: Vec<_> = (0..600).map(|_| world.system.alloc(1024, world.types[1])).collect();
                // SAFETY: 1. each was just allocated.
                blocks.into_iter().for_each(|block| unsafe { world.system.free(block, 1) });
            });
        };
        turn();
        let once = in_depots(&world, 64);
        assert!(once < BLOCKS as u64 / 5, "{once} of {BLOCKS} after they were used once");
        (0..5).for_each(|_| turn());
        let used = in_depots(&world, 64);
        assert!(used > BLOCKS as u64 * 9 / 10, "{used} of {BLOCKS} after they were used again and again");
        let out = world.system.page_counts().out;
        // No time has passed, so all stays whatever else happens.
        other(20);
        assert_eq!(in_depots(&world, 64), used);
        for _ in 0..10 {
            world.machine.advance(std::time::Duration::from_millis(100));
            other(1);
        }
        let later = in_depots(&world, 64);
        assert!(later * 20 < used, "{later} of {used} a second later");
        assert!(world.system.page_counts().out * 3 < out, "{:?} with {out} before", world.system.page_counts());
        // As small as at first: what is freed once is not kept.
        turn();
        assert!(in_depots(&world, 64) < BLOCKS as u64 / 5);
        world.system.validate().unwrap();
    });
}

/// A table that is mostly never written costs what is written of it; what was used before is zero all the same.
#[test]
fn zeroed_pages_are_written_only_where_they_were_used() {
    const BYTES: usize = 256 * 1024;
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        let zeroed = |bytes: usize| world.system.alloc_zeroed(bytes, world.types[1]);
        let used = zeroed(BYTES);
        // SAFETY: 1. it was just allocated.
        unsafe { world.system.free(used, 1) };
        // Behind it are pages that the allocator knows to be zero; a mark there shows whether it writes them.
        let heap_end = world.machine.heap_base() + world.machine.heap_used();
        let pages = || (0..(heap_end - used as usize) / PAGE).map(|page| used.wrapping_add(page * PAGE));
        assert!(pages().len() > 2 * BYTES / PAGE);
        // SAFETY: free pages of the machine's heap.
        pages().for_each(|page| unsafe { *page = 0x77 });
        let block = zeroed(2 * BYTES);
        assert_eq!(block, used);
        let marked = |range: core::ops::Range<usize>| {
            // SAFETY: as above.
            pages().take(range.end).skip(range.start).filter(|&page| unsafe { *page } == 0x77).count()
        };
        let (dirty, all) = (BYTES / PAGE, 2 * BYTES / PAGE);
        assert_eq!((marked(0..dirty), marked(dirty..all)), (0, all - dirty));
    });
}

/// Runs that are freed again and again come from a cache, where nothing is known of their pages.
#[test]
fn zeroed_runs_of_a_cache_are_zero() {
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        for turn in 0..40 {
            let bytes = 100_000 - turn;
            let block = world.system.alloc_zeroed(bytes, world.types[1]);
            // SAFETY: our block, every byte of which is initialised.
            let contents = unsafe { core::slice::from_raw_parts_mut(block, bytes) };
            assert_eq!(contents.iter().position(|&byte| byte != 0), None, "turn {turn}");
            contents.fill(0xa5);
            // SAFETY: 1. it was just allocated.
            unsafe { world.system.free(block, 1) };
        }
        assert_eq!(world.system.account().large_bytes, 98_304 + 16_384, "the last lies in the cache of its class");
    });
}

/// What lies in a cache for requests of its size is memory for any other before the heap's untouched pages are.
#[test]
fn runs_of_a_cache_serve_before_new_pages() {
    const RUN: usize = 320 * 1024;
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        for _ in 0..10 {
            let block = world.system.alloc(RUN, world.types[1]);
            // SAFETY: 1. it was just allocated.
            unsafe { world.system.free(block, 1) };
        }
        assert_eq!(world.system.account().large_bytes, RUN, "the last lies in the cache of its class");
        let clean = world.system.page_counts().free_clean;
        let small: Vec<_> = (0..250 * 1024 / 112).map(|_| world.system.alloc(112, world.types[1])).collect();
        assert_eq!((world.system.account().large_bytes, world.system.page_counts().free_clean), (0, clean));
        // And runs of another size.
        small.into_iter().for_each(|block| {
            // SAFETY: 1. it was just allocated.
            unsafe { world.system.free(block, 1) };
        });
        world.system.reclaim();
        for turn in 0..20 {
            let block = world.system.alloc([RUN, 100_000][turn / 10], world.types[1]);
            // SAFETY: 1. it was just allocated.
            unsafe { world.system.free(block, 1) };
        }
        let clean = world.system.page_counts().free_clean;
        assert!(!world.system.alloc(RUN / 2, world.types[1]).is_null());
        assert_eq!(world.system.page_counts().free_clean, clean);
        world.system.validate().unwrap();
    });
}

/// A depot that is let go because buckets only come says that it is empty.
#[test]
fn what_lies_in_a_depot_that_is_let_go_is_counted_once() {
    const BLOCKS: usize = 100_000;
    let class = kern::class::class_of(100);
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        let blocks: Vec<_> = (0..BLOCKS).map(|_| world.system.alloc(100, world.types[1])).collect();
        let mut largest = 0;
        for (n, block) in blocks.into_iter().enumerate() {
            // SAFETY: 1. each is freed once.
            unsafe { world.system.free(block, 1) };
            let zone = world.zone(class);
            let [slabs, depot, free] =
                [&zone.slabs, &zone.depot, &zone.slab_free].map(|count| count.load(Ordering::Relaxed) as usize);
            let items = slabs * zone.items_per_slab as usize;
            assert_eq!(
                items,
                BLOCKS - 1 - n + world.cached(class) + depot + free,
                "{depot} in the depot after {n} frees"
            );
            largest = largest.max(depot);
        }
        assert!(largest > 0 && world.zone(class).depot.load(Ordering::Relaxed) == 0, "{largest} in the depot once");
    });
}
