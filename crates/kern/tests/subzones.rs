//! Several zones per size class, malloc types going to one of them each (`debug.malloc.numzones`): who damaged a block is one of few.

extern crate kernmalloc_kern as kern;

mod common;

use std::collections::BTreeMap;

use common::{World, config};
use kern::malloc::{FlagWord, Flags, Malloc, MallocType, NoWait, WaitOk};
use kern::{NUMZONES_MAX, TypeId};
use platform::Misuse;
use platform::fake::{Fake, Machine, PAGE};

const ZONES: usize = 3;

fn new_type(name: &'static str) -> &'static MallocType {
    Box::leak(Box::new(MallocType::new(name, "a type of the tests")))
}

fn with_zones<T>(cpus: usize, test: impl FnOnce(&World, &Malloc<'_, Fake>) -> T) -> T {
    let world = World::boot(config(cpus, 1));
    let malloc = Malloc::new(&world.system);
    world.machine.run(|| {
        world.system.set_numzones(ZONES);
        let result = test(&world, &malloc);
        world.system.validate().unwrap();
        world.system.reclaim();
        assert_eq!(world.pages_out(), 0);
        result
    })
}

fn free(malloc: &Malloc<'_, Fake>, block: usize) {
    // SAFETY: every caller has a block of the test.
    unsafe { malloc.free(block as *mut u8) }
}

fn random(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize % below
}

/// The number of the zone that a page's slab belongs to, by its name.
fn zone_of(world: &World, addr: usize) -> usize {
    let item = world.system.zone_item(addr).expect("a block of a zone of types");
    let name = String::from_utf8(abi::c_text(&item.zone_name).to_vec()).unwrap();
    name.rsplit('-').next().unwrap().parse().unwrap()
}

/// Against a model: allocations, resizes and frees on any CPU. Types of different number share no page, and every figure is exact.
#[test]
fn types_of_different_zones_share_no_slab_and_figures_stay_exact() {
    with_zones(4, |world, malloc| {
        let types: Vec<_> = ["a", "b", "c", "d", "e"].into_iter().map(new_type).collect();
        types.iter().for_each(|ty| malloc.attach(ty).unwrap());
        let number = |ty: usize| types[ty].id().unwrap().index() % ZONES;
        // By address: type, bytes asked for, what is written in it.
        let mut live: BTreeMap<usize, (usize, usize, u8)> = BTreeMap::new();
        let mut allocs = vec![0u64; types.len()];
        let seed = &mut 77;
        for step in 0..6000 {
            Machine::set_cpu(Some(random(seed, 4)));
            let ty = random(seed, types.len());
            let most = [40, 300, 3000, 16_384][random(seed, 4)];
            let bytes = random(seed, most);
            let mark = step as u8;
            let picked = || live.keys().nth(step * 31 % live.len().max(1)).copied();
            let made = match (random(seed, 4), picked()) {
                (0, Some(old)) => {
                    let (old_ty, old_bytes, old_mark) = live.remove(&old).unwrap();
                    // SAFETY: a block of the test.
                    let new = unsafe { malloc.realloc(types[ty], old as *mut u8, bytes.max(1), FlagWord(1)) }.unwrap();
                    let new = new.as_ptr();
                    let kept = old_bytes.min(bytes.max(1));
                    // SAFETY: as long as both.
                    assert!((0..kept).all(|at| unsafe { new.add(at).read() } == old_mark), "contents move");
                    let _ = old_ty;
                    (new as usize, bytes.max(1))
                }
                (1, Some(old)) => {
                    live.remove(&old);
                    free(malloc, old);
                    continue;
                }
                (2, _) => (malloc.malloc_aligned(types[ty], bytes, 64, WaitOk, Flags::NONE).as_ptr() as usize, bytes),
                _ => (malloc.malloc(types[ty], bytes, NoWait, Flags::ZERO).unwrap().as_ptr() as usize, bytes),
            };
            let (block, bytes) = made;
            allocs[ty] += 1;
            assert!(malloc.malloc_usable_size(block as *const u8) >= bytes);
            // SAFETY: as long as asked for.
            unsafe { (block as *mut u8).write_bytes(mark, bytes) };
            assert!(live.insert(block, (ty, bytes, mark)).is_none());
            assert_eq!(zone_of(world, block), number(ty));
            let info = world.system.lookup(block + bytes / 2).unwrap();
            assert_eq!((info.addr, info.live, info.type_id), (block, true, types[ty].id().unwrap()));
        }
        // Whose page a page is.
        let mut pages: BTreeMap<usize, usize> = BTreeMap::new();
        for (&block, &(ty, bytes, mark)) in &live {
            for page in block / PAGE..=(block + bytes.max(1) - 1) / PAGE {
                assert_eq!(*pages.entry(page).or_insert(number(ty)), number(ty), "a page of two zones");
            }
            // SAFETY: as long as asked for.
            let byte = |at: usize| unsafe { (block as *const u8).add(at).read() };
            assert!((0..bytes).all(|at| byte(at) == mark), "nobody else wrote it");
        }
        for (at, ty) in types.iter().enumerate() {
            let mine = live.iter().filter(|(_, block)| block.0 == at);
            let served: usize = mine.clone().map(|(&block, _)| malloc.malloc_usable_size(block as *const u8)).sum();
            let totals = world.totals(ty.id().unwrap());
            assert_eq!((totals.in_use(), totals.bytes_in_use()), (mine.count() as u64, served as u64));
            assert_eq!(totals.allocs, allocs[at]);
        }
        live.into_keys().for_each(|block| free(malloc, block));
        assert!(world.machine.take_reports().is_empty());
    });
}

#[test]
fn misuse_is_reported_with_the_type() {
    with_zones(1, |world, malloc| {
        let ty = new_type("owner");
        let block = malloc.malloc(ty, 100, NoWait, Flags::NONE).unwrap().as_ptr();
        // SAFETY: wrong on purpose; reported and left alone.
        unsafe { malloc.free(block.add(16)) };
        free(malloc, block as usize);
        free(malloc, block as usize);
        let id = Some(ty.id().unwrap().index() as u16);
        let reports: Vec<_> =
            world.machine.take_reports().iter().map(|it| (it.what, it.item, it.item_bytes, it.type_index)).collect();
        let item = block as usize;
        assert_eq!(reports, [(Misuse::UnalignedFree, item, 112, id), (Misuse::DuplicateFree, item, 112, id)]);
        assert_eq!(world.totals(ty.id().unwrap()).in_use(), 0);
        assert_eq!(malloc.malloc_usable_size(block), 0);
    });
}

/// A block that fits moves all the same when a type of another zone takes it over, and keeps its alignment to the page.
#[test]
fn a_block_that_changes_its_type_changes_its_zone() {
    with_zones(1, |world, malloc| {
        let (one, two) = (new_type("one"), new_type("two"));
        malloc.attach(one).unwrap();
        malloc.attach(two).unwrap();
        let mut kept = Vec::new();
        for bytes in [100, 100, 4548, 4548, 4548, 4548] {
            let block = malloc.malloc(one, bytes, NoWait, Flags::NONE).unwrap().as_ptr();
            // SAFETY: a block of the test.
            let moved = unsafe { malloc.realloc(two, block, bytes, FlagWord(1)) }.unwrap().as_ptr() as usize;
            assert_ne!(zone_of(world, moved), one.id().unwrap().index() % ZONES);
            assert!(bytes < PAGE || moved.is_multiple_of(PAGE));
            assert_eq!(world.totals(one.id().unwrap()).in_use(), 0);
            kept.push(moved);
        }
        kept.into_iter().for_each(|block| free(malloc, block));
    });
}

#[test]
fn what_is_there_when_it_is_set_stays_and_is_freed_as_ever() {
    let world = World::boot(config(2, 1));
    world.machine.run(|| {
        let malloc = Malloc::new(&world.system);
        let ty = new_type("early");
        let block = || malloc.malloc(ty, 100, NoWait, Flags::NONE).unwrap().as_ptr() as usize;
        let early: Vec<_> = (0..50).map(|_| block()).collect();
        world.system.set_numzones(2);
        for block in early {
            assert!(world.system.zone_item(block).is_none());
            free(&malloc, block);
            // Not handed out again: it would be a block of no type's zone.
            let late = self::zone_of(&world, self::alloc(&malloc, ty));
            assert_eq!(late, ty.id().unwrap().index() % 2);
        }
        let bounds: Vec<_> = [0, 1, NUMZONES_MAX, usize::MAX]
            .into_iter()
            .map(|count| {
                world.system.set_numzones(count);
                world.system.numzones()
            })
            .collect();
        assert_eq!(bounds, [1, 1, NUMZONES_MAX, NUMZONES_MAX]);
    });
}

fn alloc(malloc: &Malloc<'_, Fake>, ty: &'static MallocType) -> usize {
    malloc.malloc(ty, 100, NoWait, Flags::NONE).unwrap().as_ptr() as usize
}

#[test]
fn the_matches_of_an_address_are_the_types_of_its_zone() {
    with_zones(1, |world, malloc| {
        let types: Vec<_> = ["t0", "t1", "t2", "t3", "t4"].into_iter().map(new_type).collect();
        types.iter().for_each(|ty| malloc.attach(ty).unwrap());
        let blocks: Vec<_> = types.iter().map(|ty| alloc(malloc, ty)).collect();
        // The same zone as the first, and of that size once; of the second's, but never of that size.
        let large = malloc.malloc(types[3], 3000, NoWait, Flags::NONE).unwrap().as_ptr() as usize;
        free(malloc, blocks[3]);
        let shown = |addr: usize| {
            let mut out = String::new();
            world.system.show_matches(addr, &mut out).unwrap();
            out
        };
        assert_eq!(shown(blocks[0] + 7), "t0\nt3\n");
        assert_eq!(shown(blocks[1]), "t1\nt4\n");
        assert_eq!(shown(large), "t3\n");
        for (at, block) in blocks.into_iter().enumerate() {
            if at != 3 {
                free(malloc, block);
            }
        }
        free(malloc, large);
    });
}

/// Threads on their own CPUs, each freeing what the one before it made.
#[test]
fn figures_are_exact_after_threads() {
    const THREADS: usize = 4;
    const BLOCKS: usize = 3000;
    let world = World::boot(config(THREADS, 2));
    world.machine.run(|| world.system.set_numzones(ZONES));
    let ids: Vec<TypeId> = world.types.clone();
    let queues: Vec<_> = (0..THREADS).map(|_| std::sync::mpsc::channel::<usize>()).collect();
    let (senders, receivers): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
    std::thread::scope(|scope| {
        for (at, receiver) in receivers.into_iter().enumerate() {
            let (world, ids, sender) = (&world, &ids, senders[(at + 1) % THREADS].clone());
            scope.spawn(move || {
                world.machine.run_on(at, || {
                    for n in 0..BLOCKS {
                        let block = world.system.alloc(1 + n % 2000, ids[(n + at) % ids.len()]);
                        assert!(!block.is_null());
                        sender.send(block as usize).unwrap();
                    }
                    drop(sender);
                    for block in receiver.iter().take(BLOCKS) {
                        // SAFETY: a block of the thread before this one, sent once.
                        unsafe { world.system.free(block as *mut u8, 0) };
                    }
                });
            });
        }
        drop(senders);
    });
    world.machine.run(|| {
        world.system.validate().unwrap();
        let sum = ids.iter().map(|&id| world.totals(id)).fold((0, 0, 0), |sum, totals| {
            (sum.0 + totals.allocs, sum.1 + totals.in_use(), sum.2 + totals.bytes_in_use())
        });
        assert_eq!(sum, ((THREADS * BLOCKS) as u64, 0, 0));
        assert!(world.machine.take_reports().is_empty());
        world.system.reclaim();
        assert_eq!(world.pages_out(), 0);
    });
}

/// Who sleeps for memory is woken by a free that goes to the cache of a zone of another type's.
#[test]
fn who_sleeps_for_pages_is_woken_by_a_free_of_another_zone() {
    let world = World::boot(config(4, 1));
    let malloc = Malloc::new(&world.system);
    let (ty, other) = (new_type("sleeper"), new_type("other"));
    let mut blocks = world.machine.run(|| {
        world.system.set_numzones(2);
        malloc.attach(ty).unwrap();
        malloc.attach(other).unwrap();
        world.system.set_page_limit(100, 0);
        let one = || malloc.malloc(other, 3000, NoWait, Flags::NONE).map(|block| block.as_ptr() as usize);
        std::iter::from_fn(one).collect::<Vec<_>>()
    });
    std::thread::scope(|scope| {
        let sleeper =
            scope.spawn(|| world.machine.run_on(1, || malloc.malloc(ty, 3000, WaitOk, Flags::NONE).as_ptr() as usize));
        let start = std::time::Instant::now();
        while world.machine.sleeps() == 0 {
            assert!(start.elapsed().as_secs() < 60, "the sleeper sleeps");
            std::thread::yield_now();
        }
        // Of other CPUs' caches; the last of them makes a slab empty.
        while let Some(block) = blocks.pop() {
            world.machine.run_on(blocks.len() % 4, || free(&malloc, block));
        }
        let block = sleeper.join().unwrap();
        world.machine.run(|| {
            free(&malloc, block);
            world.system.validate().unwrap();
            world.system.reclaim();
            assert_eq!(world.pages_out(), 0);
        });
    });
}
