//! malloc_domainset(9) on a machine with four NUMA domains: memory is from the domains that were named.

extern crate kernmalloc_kern as kern;

mod common;

use std::collections::BTreeMap;

use abi::Ordering;
use common::{World, config};
use kern::malloc::{DomainSet, Flags, Malloc, MallocType, NoWait, WaitOk};
use platform::fake::{Config, Fake, Machine, PAGE};

const DOMAINS: usize = 4;

fn new_type(name: &'static str) -> &'static MallocType {
    Box::leak(Box::new(MallocType::new(name, "a type of the tests")))
}

fn with_domains<T>(test: impl FnOnce(&World, &Malloc<'_, Fake>, &'static MallocType) -> T) -> T {
    let world = World::boot(Config { domains: DOMAINS, ..config(2 * DOMAINS, 1) });
    let malloc = Malloc::new(&world.system);
    world.machine.run(|| {
        let ty = new_type("near");
        let result = test(&world, &malloc, ty);
        world.system.validate().unwrap();
        let totals = world.totals(ty.id().unwrap());
        assert_eq!((totals.in_use(), totals.bytes_in_use()), (0, 0));
        world.system.reclaim();
        assert_eq!(world.pages_out(), 0);
        result
    })
}

fn free(malloc: &Malloc<'_, Fake>, block: usize) {
    // SAFETY: every caller has a block of the test.
    unsafe { malloc.free(block as *mut u8) }
}

/// The domain that every page of a block lies in.
fn domain_of(world: &World, block: usize) -> usize {
    let end = block + world.system.usable_bytes(block as *const u8);
    assert!(end > block, "a live block");
    let mut domains = (block / PAGE..end.div_ceil(PAGE)).map(|page| world.machine.domain_of_page(page * PAGE));
    let first = domains.next().unwrap();
    assert!(domains.all(|domain| domain == first), "a block in several domains");
    first.expect("a block whose pages were placed")
}

const SIZES: [usize; 12] = [0, 1, 100, 1024, 2000, 4096, 10_000, 16_384, 16_385, 70_000, 1 << 20, 5_000_000];

#[test]
fn a_fixed_or_preferred_domain_is_where_the_memory_is() {
    with_domains(|world, malloc, ty| {
        for bytes in SIZES {
            for domain in 0..DOMAINS {
                for set in [DomainSet::Fixed(domain), DomainSet::Prefer(domain)] {
                    Machine::set_cpu(Some((domain + bytes) % DOMAINS));
                    let sleeping = malloc.malloc_domainset(ty, bytes, set, WaitOk, Flags::NONE).as_ptr() as usize;
                    let other = malloc.malloc_domainset(ty, bytes, set, NoWait, Flags::NONE).unwrap().as_ptr() as usize;
                    for block in [sleeping, other] {
                        assert_eq!(domain_of(world, block), domain, "{bytes} bytes, {set:?}");
                        assert_eq!(malloc.malloc_usable_size(block as *const u8), Malloc::<Fake>::malloc_size(bytes));
                        free(malloc, block);
                    }
                }
            }
        }
    });
}

#[test]
fn every_form_keeps_to_the_domain_and_to_what_it_says() {
    with_domains(|world, malloc, ty| {
        let set = DomainSet::Fixed(3);
        for bytes in SIZES {
            for align in [1, 64, 4096, 1 << 16] {
                let block =
                    malloc.malloc_domainset_aligned(ty, bytes, align, set, NoWait, Flags::NONE).unwrap().as_ptr();
                assert!((block as usize).is_multiple_of(align) && domain_of(world, block as usize) == 3);
                // SAFETY: as long as asked for.
                unsafe { block.write_bytes(0xa5, bytes) };
                free(malloc, block as usize);
            }
            let block = malloc.malloc_domainset_zero(ty, bytes, set, NoWait, Flags::NONE).unwrap().as_ptr();
            // SAFETY: as above.
            assert!((0..bytes).all(|at| unsafe { block.add(at).read() } == 0), "{bytes} bytes are zero");
            assert_eq!(domain_of(world, block as usize), 3);
            free(malloc, block as usize);
            let block = malloc.malloc_domainset_exec(ty, bytes, set, NoWait, Flags::NONE).unwrap().as_ptr();
            assert_eq!(domain_of(world, block as usize), 3);
            assert!(world.machine.page_kind(block as usize).executable);
            free(malloc, block as usize);
        }
        let array = malloc.mallocarray_domainset(ty, 10, 100, set, NoWait, Flags::NONE).unwrap();
        assert_eq!(domain_of(world, array.as_ptr() as usize), 3);
        free(malloc, array.as_ptr() as usize);
        assert!(malloc.mallocarray_domainset(ty, usize::MAX / 4, 8, set, NoWait, Flags::NONE).is_none());
    });
}

#[test]
fn round_robin_takes_turns_and_first_touch_stays_home() {
    with_domains(|world, malloc, ty| {
        for bytes in [100, 10_000, 70_000] {
            let mut count = [0; DOMAINS];
            let blocks: Vec<_> = (0..40)
                .map(|_| {
                    let set = DomainSet::RoundRobin;
                    malloc.malloc_domainset(ty, bytes, set, NoWait, Flags::NONE).unwrap().as_ptr() as usize
                })
                .collect();
            blocks.iter().for_each(|&block| count[domain_of(world, block)] += 1);
            assert_eq!(count, [10; DOMAINS], "{bytes} bytes");
            blocks.into_iter().for_each(|block| free(malloc, block));
            for cpu in 0..2 * DOMAINS {
                Machine::set_cpu(Some(cpu));
                let set = DomainSet::FirstTouch;
                let block = malloc.malloc_domainset(ty, bytes, set, NoWait, Flags::NONE).unwrap().as_ptr() as usize;
                assert_eq!(domain_of(world, block), cpu % DOMAINS, "{bytes} bytes");
                free(malloc, block);
            }
        }
    });
}

/// What others have is nothing to a request for one domain; one that only prefers it takes that.
#[test]
fn a_fixed_domain_without_memory_refuses_and_a_preferred_one_goes_on() {
    with_domains(|world, malloc, ty| {
        let alloc =
            |set| malloc.malloc_domainset(ty, 100, set, NoWait, Flags::NONE).map(|block| block.as_ptr() as usize);
        let block = alloc(DomainSet::Fixed(0)).unwrap();
        world.system.set_page_limit(0, 0);
        assert_eq!(alloc(DomainSet::Fixed(1)), None);
        assert_eq!(world.failures(ty.id().unwrap()), 1);
        let other = alloc(DomainSet::Prefer(1)).expect("domain 0 has free items");
        let third = alloc(DomainSet::RoundRobin).expect("domain 0 has free items");
        let here = alloc(DomainSet::Fixed(0)).expect("domain 0 has free items");
        for block in [block, other, third, here] {
            assert_eq!(domain_of(world, block), 0);
            free(malloc, block);
        }
        world.system.set_page_limit(u64::MAX, 0);
    });
}

/// Blocks are freed on any CPU, and never come back as those of another domain.
#[test]
fn blocks_freed_elsewhere_go_home() {
    with_domains(|world, malloc, ty| {
        let mut live: BTreeMap<usize, usize> = BTreeMap::new();
        let mut seed = 12345u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..4000 {
            Machine::set_cpu(Some(random(2 * DOMAINS)));
            if random(2) == 0 || live.is_empty() {
                let (domain, bytes) = (random(DOMAINS), [40, 300, 3000, 20_000][random(4)]);
                let set = DomainSet::Fixed(domain);
                let block = malloc.malloc_domainset(ty, bytes, set, NoWait, Flags::NONE).unwrap().as_ptr() as usize;
                assert_eq!(domain_of(world, block), domain);
                assert!(live.insert(block, bytes).is_none());
            } else {
                let block = *live.keys().nth(random(live.len())).unwrap();
                live.remove(&block);
                free(malloc, block);
            }
        }
        let sum: usize = live.values().map(|&bytes| Malloc::<Fake>::malloc_size(bytes)).sum();
        let totals = world.totals(ty.id().unwrap());
        assert_eq!((totals.in_use(), totals.bytes_in_use()), (live.len() as u64, sum as u64));
        live.into_keys().for_each(|block| free(malloc, block));
    });
}

/// A sleeper for one domain is woken by a free of it on another CPU, with everything else full.
#[test]
fn who_sleeps_for_a_domain_is_woken_by_a_free_of_it() {
    for bytes in [100, 16_000, 70_000] {
        let world = World::boot(Config { domains: DOMAINS, ..config(2 * DOMAINS, 1) });
        let malloc = Malloc::new(&world.system);
        let ty = new_type("sleeper");
        let set = DomainSet::Fixed(2);
        let mut blocks = world.machine.run(|| {
            malloc.attach(ty).unwrap();
            world.system.set_page_limit(200, 0);
            let one = || malloc.malloc_domainset(ty, bytes, set, NoWait, Flags::NONE).map(|b| b.as_ptr() as usize);
            std::iter::from_fn(one).collect::<Vec<_>>()
        });
        assert!(blocks.len() > 2);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                world
                    .machine
                    .run_on(1, || malloc.malloc_domainset(ty, bytes, set, WaitOk, Flags::NONE).as_ptr() as usize)
            });
            let start = std::time::Instant::now();
            while world.machine.sleeps() == 0 {
                assert!(start.elapsed().as_secs() < 60, "the sleeper sleeps");
                std::thread::yield_now();
            }
            assert_eq!(world.system.type_record(ty.id().unwrap()).map_blocks.load(Ordering::SeqCst), 1);
            world.machine.run_on(5, || free(&malloc, blocks.pop().unwrap()));
            let block = sleeper.join().unwrap();
            world.machine.run(|| {
                assert_eq!(domain_of(&world, block), 2);
                free(&malloc, block);
                blocks.into_iter().for_each(|block| free(&malloc, block));
                world.system.validate().unwrap();
                world.system.reclaim();
                assert_eq!(world.pages_out(), 0);
            });
        });
    }
}

#[test]
fn realloc_and_reports_know_such_blocks() {
    with_domains(|world, malloc, ty| {
        let set = DomainSet::Fixed(1);
        let block = malloc.malloc_domainset(ty, 100, set, NoWait, Flags::NONE).unwrap().as_ptr();
        // SAFETY: a block of the test of 112 bytes, resized and freed once; the second frees are what is tested.
        unsafe {
            block.write_bytes(7, 100);
            let same = malloc.realloc(ty, block, 112, kern::malloc::FlagWord(1)).unwrap().as_ptr();
            assert_eq!(same, block);
            let larger = malloc.realloc(ty, block, 5000, kern::malloc::FlagWord(1)).unwrap().as_ptr();
            assert!((0..100).all(|at| larger.add(at).read() == 7));
            assert_eq!(world.totals(ty.id().unwrap()).bytes_in_use(), Malloc::<Fake>::malloc_size(5000) as u64);
            malloc.free(larger);
            assert!(world.machine.take_reports().is_empty());
            malloc.free(block);
            let inside = malloc.malloc_domainset(ty, 100, set, NoWait, Flags::NONE).unwrap().as_ptr();
            malloc.free(inside.add(8));
            let whats: Vec<_> = world.machine.take_reports().iter().map(|report| report.what).collect();
            assert_eq!(whats, [platform::Misuse::DuplicateFree, platform::Misuse::UnalignedFree]);
            malloc.free(inside);
        }
    });
}

#[test]
#[should_panic(expected = "malloc_domainset: domain 2 of a machine with 2")]
fn a_domain_that_is_not_there_is_a_panic() {
    let world = World::boot(Config { domains: 2, ..config(4, 1) });
    let malloc = Malloc::new(&world.system);
    let ty = new_type("domains");
    world.machine.run(|| malloc.malloc_domainset(ty, 100, DomainSet::Prefer(2), NoWait, Flags::NONE));
}
