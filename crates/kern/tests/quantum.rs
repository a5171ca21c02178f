//! Quantum caches of arenas, made of zones: exact, nothing lost, and what is cached is found by who needs it.

extern crate kernmalloc_kern as kern;

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;

use common::{World, config};
use kern::zone::QuantumZones;
use platform::Platform;
use platform::fake::{Call, Fake, Machine};
use vmem::{Arena, Channel, Error, Fit, HeapTags, Request, Size, Wait};

struct Kernel;

impl vmem::System for Kernel {
    type Lock = <Fake as Platform>::Lock;

    fn channel() -> &'static Channel {
        static CHANNEL: Channel = Channel::new();
        &CHANNEL
    }

    fn wait(word: &AtomicU32, seen: u32) {
        Fake::wait(word, seen);
    }

    fn wake_all(word: &AtomicU32) {
        Fake::wake_all(word);
    }
}

type Zones = QuantumZones<Fake, Kernel>;

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// An arena of `[0, size)` in units of 16 with caches for up to four of them.
fn cached(world: &'static World, size: usize) -> (&'static Arena<'static, Kernel>, &'static Zones) {
    let zones: &'static Zones = leak(QuantumZones::new(&world.system));
    let arena = leak(Arena::<Kernel>::new("ports", 16, &HeapTags).with_quantum_cache(zones, 64).with_reserve(4));
    arena.add(0, size, Wait::NoSleep).unwrap();
    (arena, zones)
}

#[test]
fn small_ranges_come_from_zones_and_go_back_when_they_are_needed() {
    let world: &'static World = leak(World::boot(config(4, 1)));
    world.machine.run(|| {
        let (arena, zones) = cached(world, 16 * 1024);
        zones.attach(arena, 64).unwrap();
        zones.attach(arena, 64).unwrap();
        let mut live = BTreeMap::new();
        let mut seed = 1u64;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = (seed >> 33) as usize;
            Machine::set_cpu(Some(pick % 4));
            if pick % 7 < 4 {
                let size = 1 + pick / 7 % 80;
                let Ok(addr) = arena.alloc(size, Fit::Instant, Wait::NoSleep) else { continue };
                let end = addr + size.next_multiple_of(16);
                assert!(addr.is_multiple_of(16) && end <= 16 * 1024);
                let before =
                    live.range(..end).next_back().map(|(&at, &len): (&usize, &usize)| at + len.next_multiple_of(16));
                assert!(before.is_none_or(|before| before <= addr), "{addr:#x} was given twice");
                live.insert(addr, size);
            } else if let Some((&addr, &size)) = live.range(pick % (16 * 1024)..).next() {
                live.remove(&addr);
                arena.free(addr, size).unwrap();
            }
        }
        for (addr, size) in live {
            arena.free(addr, size).unwrap();
        }
        let names: Vec<_> = (1..=4).map(|n| format!("ports-{}", 16 * n)).collect();
        let mut served = 0;
        world.system.each_zone(|zone| {
            let name = String::from_utf8(abi::c_text(&zone.name()).to_vec()).unwrap();
            assert!(names.contains(&name), "{name}");
            assert_eq!(zone.in_use(), 0, "{name}");
            served += zone.stats().allocs;
        });
        assert!(served > 5000, "the zones served {served}");
        assert!(arena.size(Size::Alloc) > 0, "nothing is cached");
        // All of it can be had: the caches let go, whichever CPU's they are.
        assert_eq!(arena.alloc(16 * 1024, Fit::Instant, Wait::NoSleep), Ok(0));
        assert_eq!(arena.alloc(16, Fit::Instant, Wait::NoSleep), Err(Error::NoSpace));
        arena.free(0, 16 * 1024).unwrap();
        world.system.validate().unwrap();
    });
    assert!(world.machine.take_reports().is_empty());
}

#[test]
fn a_cache_without_memory_leaves_it_to_the_arena() {
    let world: &'static World = leak(World::boot(config(2, 1)));
    world.machine.run(|| {
        let (arena, zones) = cached(world, 1024);
        zones.attach(arena, 64).unwrap();
        world.machine.fail_every(Call::ExtendMeta, 1);
        let ranges: Vec<_> = std::iter::from_fn(|| arena.alloc(32, Fit::Instant, Wait::NoSleep).ok()).collect();
        assert_eq!(ranges.len(), 1024 / 32);
        for addr in ranges {
            arena.free(addr, 32).unwrap();
        }
        world.machine.heal();
        assert_eq!(arena.xalloc(&Request::new(16), Wait::NoSleep).map(|addr| arena.xfree(addr, 16)), Ok(Ok(())));
        vmem::QuantumCache::drain(zones);
        assert_eq!(arena.size(Size::Alloc), 0);
    });
}

/// What the arena serves because a cache has nothing comes back to the cache: it must have counted it.
#[test]
fn a_zone_counts_what_the_arena_served_in_its_place() {
    let world: &'static World = leak(World::boot(config(2, 1)));
    world.machine.run(|| {
        let (arena, zones) = cached(world, 1024);
        zones.attach(arena, 64).unwrap();
        let in_use = || {
            let mut sum = 0;
            world.system.each_zone(|zone| {
                zone.validate().unwrap();
                sum += zone.in_use();
            });
            sum
        };
        // At its limit the zone refuses, and the arena has more.
        world.system.each_zone(|zone| zone.set_max(2));
        let ranges: Vec<_> = (0..20).map(|_| arena.alloc(32, Fit::Instant, Wait::NoSleep).unwrap()).collect();
        assert_eq!(in_use(), 20);
        let reserved = arena.alloc(16, Fit::Instant, Wait::Reserve).unwrap();
        assert_eq!(in_use(), 21);
        arena.free(reserved, 16).unwrap();
        for (freed, addr) in ranges.into_iter().enumerate() {
            Machine::set_cpu(Some(freed % 2));
            assert_eq!(in_use(), 20 - freed);
            arena.free(addr, 32).unwrap();
        }
        assert_eq!(in_use(), 0);
        vmem::QuantumCache::drain(zones);
        assert_eq!(arena.size(Size::Alloc), 0);
        world.system.validate().unwrap();
    });
}
