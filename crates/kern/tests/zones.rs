//! What zone(9) promises, one test to a promise; threads where the promise is about threads.

extern crate kernmalloc_kern as kern;

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::probe::Probe;
use common::{World, config};
use kern::zone::{Action, Callbacks, Destroyed, Fail, Flags, How, RawZone, Reclaim, Zone, ZoneConfig, ZoneError};
use platform::fake::{Config, Fake, Machine, PAGE};

type Raw<'s> = RawZone<'s, Fake>;

fn take(zone: &Raw<'_>) -> *mut u8 {
    zone.alloc(How::NOWAIT).expect("an item").as_ptr()
}

fn give(zone: &Raw<'_>, item: *mut u8) {
    // SAFETY: 1. every test forgets what it gives. 2. to the zone it came from.
    unsafe { zone.free(item) }
}

fn destroy(zone: Raw<'_>) -> Destroyed {
    // SAFETY: 1. every test forgets the zone.
    unsafe { zone.destroy() }.expect("no secondaries")
}

/// Runs a test on a machine of so many CPUs and domains.
fn on(cpus: usize, domains: usize, test: impl FnOnce(&World)) {
    let world = World::boot(Config { domains, ..config(cpus, 1) });
    world.machine.run(|| test(&world));
    let reports = world.machine.take_reports();
    assert!(reports.is_empty(), "reported: {reports:x?}");
}

#[test]
fn the_last_item_goes_to_who_asks_wherever_it_is_cached() {
    on(8, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("limited", 64, 8)).unwrap();
        zone.set_max(10);
        // Each CPU frees what it had: ten items are scattered over eight CPUs' caches.
        let items: Vec<_> = (0..10).map(|_| take(&zone)).collect();
        assert_eq!(zone.alloc(How::NOWAIT), Err(Fail::Limit));
        for (cpu, item) in items.into_iter().enumerate() {
            Machine::set_cpu(Some(cpu % 8));
            give(&zone, item);
        }
        // One CPU gets every one of them, and not one more.
        Machine::set_cpu(Some(3));
        let items: Vec<_> = (0..10).map(|_| take(&zone)).collect();
        assert!(zone.is_exhausted());
        assert_eq!(zone.alloc(How::NOWAIT), Err(Fail::Limit));
        // A limit can be lifted again.
        zone.set_max(0);
        give(&zone, take(&zone));
        items.into_iter().for_each(|item| give(&zone, item));
        assert_eq!(destroy(zone), Destroyed::default());
    });
}

#[test]
fn sleepers_are_served_first_come_first_served() {
    on(4, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("fifo", 64, 8)).unwrap();
        zone.set_max(1);
        let item = take(&zone) as usize;
        let order = Arc::new(Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for n in 0..3usize {
                let (order, machine) = (Arc::clone(&order), world.machine.clone());
                scope.spawn(move || {
                    machine.run_on(n + 1, || {
                        let item = zone.alloc(How::WAIT).unwrap();
                        order.lock().unwrap().push(n);
                        give(&zone, item.as_ptr());
                    });
                });
                // The next comes when this one is in the queue.
                while zone.stats().sleepers != n + 1 {
                    std::thread::yield_now();
                }
            }
            assert_eq!(zone.alloc(How::NOWAIT), Err(Fail::Limit), "nobody passes the queue");
            give(&zone, item as *mut u8);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
        let stats = zone.stats();
        assert_eq!((stats.sleeps, stats.sleepers, stats.in_use), (3, 0, 0));
        destroy(zone);
    });
}

/// Threads that allocate, free and sleep under a limit of a few items: none sleeps for ever (the machine says so after a minute), none has more
/// than the limit.
#[test]
fn no_wakeup_is_lost() {
    for flags in [Flags::NONE, Flags::SMR, Flags::NOBUCKET] {
        on(4, 2, |world| {
            let zone = world.system.zcreate(&ZoneConfig { flags, ..ZoneConfig::new("busy", 64, 8) }).unwrap();
            zone.set_max(3);
            // It begins with everything taken and everybody asleep.
            let taken: Vec<_> = (0..3).map(|_| take(&zone) as usize).collect();
            let (live, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                for cpu in 0..6 {
                    let (machine, live, most) = (world.machine.clone(), &live, &most);
                    scope.spawn(move || {
                        machine.run_on(cpu, || {
                            for n in 0..600 {
                                Machine::set_cpu(Some(cpu + n));
                                let item = zone.alloc(How::WAIT).unwrap();
                                most.fetch_max(live.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                                if n % 7 == 0 {
                                    std::thread::yield_now();
                                }
                                live.fetch_sub(1, Ordering::SeqCst);
                                Machine::set_cpu(Some(cpu * n));
                                give(&zone, item.as_ptr());
                            }
                        });
                    });
                }
                while zone.stats().sleepers < 6 {
                    std::thread::yield_now();
                }
                taken.into_iter().for_each(|item| give(&zone, item as *mut u8));
            });
            let stats = zone.stats();
            assert!(most.load(Ordering::SeqCst) <= 3);
            assert_eq!((stats.in_use, stats.allocs, stats.frees, stats.sleepers), (0, 3603, 3603, 0), "{flags:?}");
            assert!(stats.sleeps >= 6);
            zone.validate().unwrap();
            assert_eq!(destroy(zone), Destroyed::default());
        });
    }
}

#[test]
fn lifting_a_limit_wakes_everybody() {
    on(4, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("lifted", 64, 8)).unwrap();
        zone.set_max(1);
        let first = take(&zone) as usize;
        std::thread::scope(|scope| {
            for cpu in 1..4 {
                let machine = world.machine.clone();
                scope.spawn(move || machine.run_on(cpu, || give(&zone, zone.alloc(How::WAIT).unwrap().as_ptr())));
            }
            while zone.stats().sleepers != 3 {
                std::thread::yield_now();
            }
            zone.set_max(0);
        });
        give(&zone, first as *mut u8);
        destroy(zone);
    });
}

/// N1.111 and N1.117: a refill that sleeps for memory holds nothing that the one who brings memory needs, and the free list it comes
/// back to is whole.
#[test]
fn a_refill_that_sleeps_for_memory_is_woken_by_a_free() {
    on(2, 1, |world| {
        let (zone, other) = (
            world.system.zcreate(&ZoneConfig::new("sleeper", 4096, 8)).unwrap(),
            world.system.zcreate(&ZoneConfig::new("holder", 4096, 8)).unwrap(),
        );
        let held: Vec<_> = (0..40).map(|_| take(&other) as usize).collect();
        let mut own = Vec::new();
        world.machine.set_heap_budget(Some(0));
        while let Ok(item) = zone.alloc(How::NOWAIT) {
            own.push(item.as_ptr() as usize);
        }
        assert_eq!(zone.stats().fails, 1);
        std::thread::scope(|scope| {
            let machine = world.machine.clone();
            let sleeper = scope.spawn(move || machine.run_on(1, || zone.alloc(How::WAIT).unwrap().as_ptr() as usize));
            while zone.stats().sleepers == 0 {
                std::thread::yield_now();
            }
            // Items of another zone: their slabs' pages serve this one, once they leave the CPU's cache.
            held.iter().for_each(|&item| give(&other, item as *mut u8));
            other.reclaim(Reclaim::DrainCpu);
            own.push(sleeper.join().unwrap());
        });
        world.system.validate().unwrap();
        own.into_iter().for_each(|item| give(&zone, item as *mut u8));
        assert_eq!((destroy(zone), destroy(other)), (Destroyed::default(), Destroyed::default()));
    });
}

/// The same, woken by an item of its own zone that another CPU frees.
#[test]
fn an_item_freed_while_somebody_sleeps_for_memory_goes_past_the_caches() {
    on(2, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("sleeper", 4096, 8)).unwrap();
        let mut own = vec![take(&zone) as usize];
        world.machine.set_heap_budget(Some(0));
        while let Ok(item) = zone.alloc(How::NOWAIT) {
            own.push(item.as_ptr() as usize);
        }
        std::thread::scope(|scope| {
            let machine = world.machine.clone();
            scope.spawn(move || machine.run_on(1, || give(&zone, zone.alloc(How::WAIT).unwrap().as_ptr())));
            while zone.stats().sleepers == 0 {
                std::thread::yield_now();
            }
            give(&zone, own.pop().unwrap() as *mut u8);
        });
        own.into_iter().for_each(|item| give(&zone, item as *mut u8));
        destroy(zone);
    });
}

/// N1.17: no memory where one can wait: what is cached is reclaimed before anyone gives up.
#[test]
fn memory_in_other_cpus_caches_is_fetched_back_before_a_request_fails() {
    on(4, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("scattered", 2048, 8)).unwrap();
        let mut items: Vec<_> = (0..64).map(|_| take(&zone)).collect();
        world.machine.set_heap_budget(Some(0));
        while let Ok(item) = zone.alloc(How::NOWAIT) {
            items.push(item.as_ptr());
        }
        for (n, item) in items.drain(..8).enumerate() {
            Machine::set_cpu(Some(n % 4));
            give(&zone, item);
        }
        Machine::set_cpu(Some(2));
        items.extend((0..8).map(|_| take(&zone)));
        assert_eq!(zone.alloc(How::NOWAIT), Err(Fail::Memory));
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
    });
}

#[test]
fn a_request_that_may_sleep_is_reported_where_sleep_is_forbidden() {
    on(1, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("asleep", 64, 8)).unwrap();
        give(&zone, zone.alloc(How::WAIT).unwrap().as_ptr());
        assert!(world.machine.take_warnings().is_empty());
        let lock = platform::Lock::<platform::fake::FakeLock, ()>::new(());
        let relaxed = World::boot(Config { strict: false, ..config(1, 1) });
        relaxed.machine.run(|| {
            let zone = relaxed.system.zcreate(&ZoneConfig::new("asleep", 64, 8)).unwrap();
            let held = lock.lock();
            let item = zone.alloc(How::WAIT).unwrap();
            drop(held);
            give(&zone, item.as_ptr());
            let warnings = relaxed.machine.take_warnings();
            assert_eq!(warnings, ["zone asleep: a request that may sleep, but a lock is held"]);
            destroy(zone);
        });
        destroy(zone);
    });
}

#[test]
fn the_limit_warns_once_in_300_seconds_and_acts_each_time() {
    unsafe fn act(context: *mut ()) {
        // SAFETY: the counter below.
        unsafe { &*context.cast::<AtomicUsize>() }.fetch_add(1, Ordering::SeqCst);
    }
    on(1, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("mbuf", 64, 8)).unwrap();
        let acted = AtomicUsize::new(0);
        zone.set_warning("kern.ipc.nmbufs limit reached");
        let context = std::ptr::from_ref(&acted).cast_mut().cast();
        // SAFETY: 1. the counter outlives the zone.
        unsafe { zone.set_maxaction(Some(Action { context, run: act })) };
        zone.set_max(1);
        let item = take(&zone);
        for (wait_seconds, warned) in [(0, 1), (10, 0), (289, 0), (2, 1)] {
            world.machine.advance(Duration::from_secs(wait_seconds));
            assert_eq!(zone.alloc(How::NOWAIT), Err(Fail::Limit));
            let warnings = world.machine.take_warnings();
            assert_eq!(warnings.len(), warned, "{warnings:?}");
            assert!(warnings.iter().all(|text| text == "[zone: mbuf] kern.ipc.nmbufs limit reached"));
        }
        assert_eq!(acted.load(Ordering::SeqCst), 4);
        give(&zone, item);
        destroy(zone);
    });
}

/// N1.102.4.2 (freecheck) and FreeBSD's slab membership checks: an item goes back to where it came from.
#[test]
fn a_zone_destroyed_with_items_out_says_how_many_and_what_is_lost() {
    on(1, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("leaky", 1024, 8)).unwrap();
        let items: Vec<_> = (0..9).map(|_| take(&zone)).collect();
        let pages = zone.stats().pages;
        let lost = destroy(zone);
        assert!(lost.items == 9 && lost.pages > 0 && lost.pages <= pages, "{lost:?} of {pages}");
        let text = format!("Freed UMA keg (leaky) was not empty (9 items). Lost {} pages of memory.", lost.pages);
        assert_eq!(world.machine.take_warnings(), [text]);
        // The items stay theirs: nobody else gets that memory, also not a zone with the same record.
        let again = world.system.zcreate(&ZoneConfig::new("again", 1024, 8)).unwrap();
        let fresh: Vec<_> = (0..64).map(|_| take(&again)).collect();
        assert!(fresh.iter().all(|item| !items.contains(item)));
        // And freeing one to whoever has the record now is a misuse.
        give(&again, items[0]);
        let reports = world.machine.take_reports();
        assert_eq!(reports.len(), 1);
        assert_eq!(reports[0].what, platform::Misuse::WrongZone);
        fresh.into_iter().for_each(|item| give(&again, item));
        assert_eq!(destroy(again), Destroyed::default());
    });
}

/// F: kegs and secondary zones; items pass their `init` on the way in and `fini` on the way back.
#[test]
fn a_secondary_zone_shares_slabs_and_runs_its_own_init() {
    on(2, 1, |world| {
        let (one, two) = (Probe::leak(true), Probe::leak(false));
        let primary = ZoneConfig { callbacks: one.callbacks(), ..ZoneConfig::new("mbuf", 256, 8) };
        let mbuf = world.system.zcreate(&primary).unwrap();
        let packet = world.system.zsecond_create("mbuf_packet", mbuf, two.callbacks()).unwrap();
        let items: Vec<_> = (0..20).map(|_| take(&packet)).collect();
        assert!(two.left().0 >= 20 && two.left().1 == 20);
        assert!(one.left().0 >= 20 && one.left().1 == 0, "the keg's init, and not the primary zone's ctor");
        // SAFETY: 1. it fails.
        assert_eq!(unsafe { mbuf.destroy() }, Err(ZoneError::HasSecondaries));
        items.into_iter().for_each(|item| give(&packet, item));
        packet.reclaim(Reclaim::DrainCpu);
        assert_eq!(two.left(), (0, 0, 0, 0));
        destroy(packet);
        destroy(mbuf);
        assert_eq!(one.left(), (0, 0, 0, 0));
    });
}

#[test]
fn a_reserve_is_for_those_who_may() {
    on(1, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("reserved", 4096, 8)).unwrap();
        zone.set_reserve(5).unwrap();
        world.machine.set_heap_budget(Some(0));
        let mut items = Vec::new();
        while let Ok(item) = zone.alloc(How::NOWAIT) {
            items.push(item.as_ptr());
        }
        for _ in 0..5 {
            items.push(zone.alloc(How::NOWAIT.with_reserve()).expect("the reserve").as_ptr());
        }
        assert_eq!(zone.alloc(How::NOWAIT.with_reserve()), Err(Fail::Memory));
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
    });
}

#[test]
fn water_marks_say_how_much_stays_free() {
    on(1, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig { flags: Flags::NOBUCKET, ..ZoneConfig::new("marks", 1000, 8) });
        let zone = zone.unwrap();
        let per_slab = zone.stats().per_slab;
        let round = |items: usize| {
            let taken: Vec<_> = (0..items).map(|_| take(&zone)).collect();
            taken.into_iter().for_each(|item| give(&zone, item));
        };
        // As a zone is: one idle slab stays.
        round(20 * per_slab);
        assert_eq!(zone.stats().slabs, 1);
        // High: slabs for so many stay, and go when the mark falls.
        zone.set_high_water(5 * per_slab - 1);
        round(20 * per_slab);
        assert_eq!(zone.stats().slabs, 5);
        zone.set_high_water(2 * per_slab);
        assert_eq!(zone.stats().slabs, 2);
        zone.set_high_water(0);
        assert_eq!(zone.stats().slabs, 0);
        // Low: so many are free at once and always, whatever is taken and given back.
        let low = 3 * per_slab;
        zone.set_low_water(low).unwrap();
        assert_eq!(zone.stats().slab_free, low);
        let held: Vec<_> = (0..per_slab + 1).map(|_| take(&zone)).collect();
        assert!(zone.stats().slab_free >= low, "{:?}", zone.stats());
        held.into_iter().for_each(|item| give(&zone, item));
        zone.reclaim(Reclaim::DrainCpu);
        assert_eq!(zone.stats().slab_free, low);
        // They are for anybody, also when the machine has no more.
        world.machine.fail_every(platform::fake::Call::ExtendHeap, 1);
        while !world.system.alloc_aligned(PAGE, PAGE, world.types[1]).is_null() {}
        let last: Vec<_> = std::iter::from_fn(|| zone.alloc(How::NOWAIT).ok()).map(std::ptr::NonNull::as_ptr).collect();
        assert!(last.len() >= low && zone.set_low_water(low).is_err(), "{}", last.len());
        last.into_iter().for_each(|item| give(&zone, item));
        world.machine.heal();
        zone.set_low_water(0).unwrap();
        zone.reclaim(Reclaim::DrainCpu);
        assert_eq!(zone.stats().slabs, 0);
        destroy(zone);
    });
}

#[test]
fn preallocated_items_need_no_memory() {
    on(2, 2, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("prealloc", 3000, 8)).unwrap();
        zone.prealloc(40).unwrap();
        world.machine.set_heap_budget(Some(0));
        let items: Vec<_> = (0..40).map(|_| take(&zone)).collect();
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
    });
}

#[test]
fn items_freed_in_another_domain_go_home() {
    on(4, 4, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("homes", 512, 8)).unwrap();
        let domain_of = |item: *mut u8| world.machine.domain_of_page(item as usize).unwrap();
        let mut items = Vec::new();
        for cpu in 0..4 {
            Machine::set_cpu(Some(cpu));
            let own: Vec<_> = (0..100).map(|_| take(&zone)).collect();
            assert!(own.iter().all(|&item| domain_of(item) == cpu), "first touch");
            items.extend(own);
        }
        // CPU 0 frees everything; each CPU then still gets its own domain's memory only.
        Machine::set_cpu(Some(0));
        items.into_iter().for_each(|item| give(&zone, item));
        assert!(zone.stats().xdomain >= 250, "{:?}", zone.stats());
        let slabs = zone.stats().slabs;
        let mut items = Vec::new();
        for cpu in 0..4 {
            Machine::set_cpu(Some(cpu));
            // The bucket on its way home may still hold some.
            let own: Vec<_> = (0..35).map(|_| take(&zone)).collect();
            assert!(own.iter().all(|&item| domain_of(item) == cpu), "a CPU got memory of another domain");
            items.extend(own);
        }
        assert_eq!(zone.stats().slabs, slabs, "what came home was used again");
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
        // In turn, whatever the CPU.
        let flags = Flags::ROUNDROBIN;
        let zone = world.system.zcreate(&ZoneConfig { flags, ..ZoneConfig::new("turns", 4096, 8) }).unwrap();
        let items: Vec<_> = (0..64).map(|_| take(&zone)).collect();
        for domain in 0..4 {
            assert!(items.iter().filter(|&&item| domain_of(item) == domain).count() >= 8, "domain {domain}");
        }
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
    });
}

/// Sorting a bucket must not look at an item that it has sent away: its slab may be gone by then.
#[test]
fn items_on_their_way_home_may_be_the_last_of_their_slabs() {
    on(4, 4, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("homeless", 4096, 8)).unwrap();
        // Depots that take little: most of what comes home goes on to its slab, which is then empty and goes.
        zone.set_maxcache(60);
        let mut items = Vec::new();
        for n in 0..240 {
            Machine::set_cpu(Some(n % 4));
            items.push(take(&zone));
        }
        Machine::set_cpu(Some(0));
        items.into_iter().for_each(|item| give(&zone, item));
        zone.validate().unwrap();
        assert!(zone.stats().outside <= 60 && zone.stats().xdomain > 100, "{:?}", zone.stats());
        destroy(zone);
    });
}

#[test]
fn per_cpu_items_have_a_copy_per_cpu_a_page_apart() {
    on(64, 1, |world| {
        let flags = Flags::PCPU;
        let zone = world.system.zcreate(&ZoneConfig { flags, ..ZoneConfig::new("pcpu-8", 8, 8) }).unwrap();
        let (one, two) = (take(&zone), zone.alloc(How::NOWAIT.zeroed()).unwrap().as_ptr());
        for cpu in 0..64 {
            let copy = zone.pcpu_copy(two, cpu).cast::<u64>();
            // SAFETY: a copy of an item in use.
            unsafe {
                assert_eq!(*copy, 0);
                *copy = cpu as u64;
                *zone.pcpu_copy(one, cpu).cast::<u64>() = !0;
            }
        }
        // SAFETY: as above.
        assert!((0..64).all(|cpu| unsafe { *zone.pcpu_copy(two, cpu).cast::<u64>() } == cpu as u64));
        give(&zone, one);
        give(&zone, two);
        destroy(zone);
    });
}

#[test]
fn what_a_reader_sees_is_not_used_again_before_it_leaves() {
    on(2, 1, |world| {
        let probe = Probe::leak(true);
        let config = ZoneConfig { flags: Flags::SMR, callbacks: probe.callbacks(), ..ZoneConfig::new("smr", 64, 8) };
        let zone = world.system.zcreate(&config).unwrap();
        zone.set_max(20);
        let items: Vec<_> = (0..20).map(|_| take(&zone)).collect();
        let reader = world.system.smr_enter();
        items.iter().for_each(|&item| give(&zone, item));
        assert_eq!(probe.left().1, 20, "dtor waits for the readers");
        assert_eq!(zone.alloc(How::NOWAIT), Err(Fail::Limit), "all of it may be seen by the reader");
        // A reader that comes later cannot see them, and holds nothing up.
        let later = world.system.smr_enter();
        Machine::set_cpu(Some(1));
        drop(reader);
        drop(later);
        let again: Vec<_> = (0..20).map(|_| take(&zone)).collect();
        again.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
        assert_eq!(probe.left(), (0, 0, 0, 0));
    });
}

/// A pointer that readers follow while a writer replaces what it points to, with very little memory to reuse.
#[test]
fn readers_never_see_an_item_change_under_them() {
    on(3, 1, |world| {
        let config = ZoneConfig { flags: Flags::SMR, ..ZoneConfig::new("readers", 64, 8) };
        let zone = world.system.zcreate(&config).unwrap();
        zone.set_max(4);
        let publish = |n: usize| {
            let item = zone.alloc(How::WAIT).unwrap().as_ptr().cast::<[AtomicUsize; 8]>();
            // SAFETY: a fresh item of that size; atomics, as a reader may still look at it if the zone is wrong.
            unsafe { (*item).iter().for_each(|word| word.store(n, Ordering::Relaxed)) };
            item as usize
        };
        let current = AtomicUsize::new(publish(0));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for cpu in 1..3 {
                let (machine, current, done) = (world.machine.clone(), &current, &done);
                scope.spawn(move || {
                    machine.run_on(cpu, || {
                        while !done.load(Ordering::Relaxed) {
                            let section = world.system.smr_enter();
                            // SAFETY: published, and not used again while the section lasts.
                            let words = unsafe { &*(current.load(Ordering::Acquire) as *const [AtomicUsize; 8]) };
                            let first = words[0].load(Ordering::Relaxed);
                            std::thread::yield_now();
                            assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == first), "used again");
                            drop(section);
                        }
                    });
                });
            }
            for n in 1..3000 {
                let old = current.swap(publish(n), Ordering::AcqRel);
                give(&zone, old as *mut u8);
            }
            done.store(true, Ordering::Relaxed);
        });
        give(&zone, current.load(Ordering::Relaxed) as *mut u8);
        assert_eq!(destroy(zone), Destroyed::default());
    });
}

/// The working set is kept, the rest of the depot goes back (uma(9)'s estimate), and a drain leaves nothing.
#[test]
fn a_zone_is_trimmed_to_its_working_set() {
    on(2, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("trimmed", 128, 8)).unwrap();
        let burst = |n: usize| {
            let items: Vec<_> = (0..n).map(|_| take(&zone)).collect();
            items.into_iter().for_each(|item| give(&zone, item));
        };
        burst(3000);
        assert!(zone.stats().depot > 500);
        zone.reclaim(Reclaim::Trim);
        assert_eq!(zone.stats().depot, 0, "what was only given is not needed");
        burst(3000);
        burst(3000);
        let peak = zone.stats();
        assert!(peak.depot > 500, "{peak:?}");
        zone.reclaim(Reclaim::Trim);
        assert!(zone.stats().depot > 500, "what was in use in the last interval is the working set");
        for _ in 0..12 {
            world.machine.advance(Duration::from_secs(21));
            burst(40);
            zone.reclaim(Reclaim::Trim);
        }
        let quiet = zone.stats();
        assert!(quiet.depot * 10 < peak.depot && quiet.pages * 4 < peak.pages, "{quiet:?} after {peak:?}");
        burst(500);
        zone.reclaim(Reclaim::DrainCpu);
        assert_eq!((zone.stats().outside, zone.stats().slabs), (0, 0));
        destroy(zone);
    });
}

#[test]
fn a_cpu_that_goes_offline_leaves_its_items_to_the_others() {
    on(4, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("offline", 64, 8)).unwrap();
        Machine::set_cpu(Some(3));
        give(&zone, take(&zone));
        assert!(zone.stats().outside > 0);
        Machine::set_cpu(Some(0));
        assert!(world.system.cpu_offline(2) && zone.stats().outside > 0);
        assert!(world.system.cpu_offline(3));
        assert_eq!(zone.stats().outside, 0);
        destroy(zone);
    });
}

#[test]
fn caches_hold_no_more_than_they_may() {
    on(4, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("bounded", 64, 8)).unwrap();
        zone.set_maxcache(100);
        let items: Vec<_> = (0..800).map(|_| take(&zone)).collect();
        for (n, item) in items.into_iter().enumerate() {
            Machine::set_cpu(Some(n % 4));
            give(&zone, item);
        }
        let stats = zone.stats();
        assert!(stats.outside <= 100 && stats.outside > 20, "{stats:?}");
        destroy(zone);
    });
}

#[test]
fn colours_and_spreading_move_items_over_cache_lines() {
    on(1, 1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("coloured", 1000, 8)).unwrap();
        let items: Vec<_> = (0..400).map(|_| take(&zone)).collect();
        let per_slab = zone.stats().per_slab;
        let mut firsts: Vec<_> = items.iter().map(|item| *item as usize % PAGE).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert!(firsts.len() > per_slab, "every slab begins at the same colour");
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
        let flags = Flags::CACHESPREAD;
        let zone = world.system.zcreate(&ZoneConfig { flags, ..ZoneConfig::new("spread", 128, 64) }).unwrap();
        assert_eq!(zone.stats().stride_bytes, 192);
        destroy(zone);
    });
}

/// Bonwick 1994: what was constructed stays so from owner to owner.
#[test]
fn a_typed_zone_constructs_once() {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    static DROPPED: AtomicUsize = AtomicUsize::new(0);
    struct Request {
        lines: Vec<u32>,
    }
    impl Drop for Request {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, Ordering::SeqCst);
        }
    }
    on(2, 1, |world| {
        let make = || {
            MADE.fetch_add(1, Ordering::SeqCst);
            Some(Request { lines: Vec::with_capacity(100) })
        };
        let zone = Zone::new(&world.system, "request", make).unwrap();
        for n in 0..1000 {
            let mut request = zone.alloc_reset(How::NOWAIT, |request| request.lines.clear()).unwrap();
            assert!(request.lines.is_empty() && request.lines.capacity() >= 100);
            request.lines.push(n);
        }
        let made = MADE.load(Ordering::SeqCst);
        assert_eq!(made, zone.stats().slabs * zone.stats().per_slab);
        assert_eq!(DROPPED.load(Ordering::SeqCst), 0);
        let held = zone.alloc(How::NOWAIT).unwrap().into_raw();
        // SAFETY: 1. just turned into one.
        drop(unsafe { kern::zone::ZoneBox::from_raw(&zone, held) });
        assert_eq!(zone.destroy(), Destroyed::default());
        assert_eq!(DROPPED.load(Ordering::SeqCst), made);
    });
}

/// A constructor that panics leaves nothing behind.
#[test]
fn a_panic_in_a_typed_zones_constructor_is_undone() {
    static LIVE: AtomicUsize = AtomicUsize::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            LIVE.fetch_sub(1, Ordering::SeqCst);
        }
    }
    on(1, 1, |world| {
        let make = || {
            assert!(LIVE.fetch_add(1, Ordering::SeqCst) < 5, "the fifth fails");
            Some(Counted)
        };
        let zone = Zone::new(&world.system, "panics", make).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(zone.alloc(How::NOWAIT))));
        assert!(result.is_err());
        // The one that panicked was counted and never made.
        assert_eq!((LIVE.load(Ordering::SeqCst), zone.stats().slabs), (1, 0));
        zone.raw().validate().unwrap();
    });
}

#[test]
fn zones_are_seen_in_the_statistics_object() {
    on(2, 1, |world| {
        let before = world.header().zones.used.load(Ordering::Relaxed) as usize;
        let zone = world.system.zcreate(&ZoneConfig::new("vmstat", 100, 8)).unwrap();
        let items: Vec<_> = (0..50).map(|_| take(&zone)).collect();
        items[..20].iter().for_each(|&item| give(&zone, item));
        let record = world.zone(before);
        assert_eq!(abi::c_text(&record.name), b"vmstat");
        assert_eq!((record.item_bytes, world.zone_in_use(before)), (100, 30));
        assert_eq!(record.slabs.load(Ordering::Relaxed) as usize, zone.stats().slabs);
        items[20..].iter().for_each(|&item| give(&zone, item));
        destroy(zone);
        assert_ne!(record.dead.load(Ordering::Relaxed), 0);
        // The record is the next zone's, from zero.
        let zone = world.system.zcreate(&ZoneConfig::new("next", 100, 8)).unwrap();
        assert_eq!((abi::c_text(&record.name), world.zone_in_use(before)), (&b"next"[..], 0));
        destroy(zone);
        // More zones than the object has records for work, and are not shown.
        let zones: Vec<_> = (0..600).map(|_| world.system.zcreate(&ZoneConfig::new("many", 16, 8)).unwrap()).collect();
        for zone in zones {
            let item = take(&zone);
            assert_eq!(zone.in_use(), 1);
            give(&zone, item);
            destroy(zone);
        }
    });
}

#[test]
fn slabs_that_are_no_part_of_a_core() {
    on(1, 1, |world| {
        let config = ZoneConfig { flags: Flags::NODUMP, ..ZoneConfig::new("secrets", 3000, 8) };
        let zone = world.system.zcreate(&config).unwrap();
        let items: Vec<_> = (0..100).map(|_| take(&zone)).collect();
        assert!(items.iter().all(|&item| !world.machine.page_kind(item as usize).dumped));
        assert_eq!(world.machine.special_pages(), zone.stats().pages);
        items.into_iter().for_each(|item| give(&zone, item));
        // Pages that go back are dumped again, whoever gets them.
        destroy(zone);
        assert_eq!(world.machine.special_pages(), 0);
        // A hint: a port that cannot says so, and the zone is one.
        world.machine.fail_every(platform::fake::Call::SetPageKind, 1);
        let zone = world.system.zcreate(&config).unwrap();
        give(&zone, take(&zone));
        destroy(zone);
    });
}

#[test]
fn bad_zones_are_refused_with_a_reason() {
    on(1, 1, |world| {
        let create = |config: ZoneConfig<'_>| world.system.zcreate(&config).map(|_| ()).unwrap_err();
        assert_eq!(create(ZoneConfig::new("x", 0, 8)), ZoneError::ItemBytes(0));
        assert_eq!(create(ZoneConfig::new("x", 8, 24)), ZoneError::Align(24));
        let pcpu = ZoneConfig { flags: Flags::PCPU, ..ZoneConfig::new("x", PAGE + 1, 8) };
        assert_eq!(create(pcpu), ZoneError::ItemBytes(PAGE + 1));
        let both = Flags::NOBUCKET.and(Flags::MAXBUCKET);
        let flags = create(ZoneConfig { flags: both, ..ZoneConfig::new("x", 8, 8) });
        assert_eq!(flags, ZoneError::Flags(both));
        assert!(flags.to_string().contains("do not go together"));
        let smr = ZoneConfig { flags: Flags::SMR, ..ZoneConfig::new("x", 8, 8) };
        let smr = world.system.zcreate(&smr).unwrap();
        let second = world.system.zsecond_create("y", smr, Callbacks::NONE);
        assert_eq!(second.map(|_| ()), Err(ZoneError::Flags(Flags::SMR)));
        destroy(smr);
    });
}

/// Many threads, one zone, every CPU, with memory going back meanwhile: nothing is lost, nothing is served twice.
#[test]
fn threads_share_a_zone() {
    on(4, 2, |world| {
        let probe = Probe::leak(true);
        let config = ZoneConfig { callbacks: probe.callbacks(), ..ZoneConfig::new("shared", 120, 8) };
        let zone = world.system.zcreate(&config).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let machine = world.machine.clone();
                scope.spawn(move || {
                    machine.run_on(thread, || {
                        let mut mine: Vec<*mut usize> = Vec::new();
                        let mut seed = thread * 7919 + 1;
                        for n in 0..6000 {
                            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            Machine::set_cpu(Some(seed >> 60));
                            if seed >> 40 & 1 == 0 || mine.is_empty() {
                                let item = take(&zone).cast::<usize>();
                                // SAFETY: ours; the first word is init's.
                                unsafe { *item.add(1) = item as usize ^ thread };
                                mine.push(item);
                            } else {
                                let item = mine.swap_remove((seed >> 20 & 0xffff_ffff) % mine.len());
                                // SAFETY: ours.
                                assert_eq!(unsafe { *item.add(1) }, item as usize ^ thread);
                                give(&zone, item.cast());
                            }
                            if n % 997 == thread {
                                zone.reclaim(Reclaim::DrainCpu);
                            }
                        }
                        mine.into_iter().for_each(|item| give(&zone, item.cast()));
                    });
                });
            }
        });
        zone.validate().unwrap();
        assert_eq!(zone.stats().in_use, 0);
        assert_eq!(destroy(zone), Destroyed::default());
        assert_eq!(probe.left(), (0, 0, 0, 0));
        assert_eq!(probe.state.lock().unwrap().fault, None);
    });
}
