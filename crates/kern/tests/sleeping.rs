//! Requests that sleep: on the limit of their type and for pages, first come, first served, and woken by every way in which memory
//! comes back. A wake-up that is lost is a sleeper that the fake machine finds after a minute.

extern crate kernmalloc_kern as kern;

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};

use abi::Ordering;
use common::{World, config};
use kern::malloc::{CanFail, Flags, LowMemory, LowMemoryHandler, Malloc, MallocType, NoWait, Oom, WaitOk};
use platform::fake::{Fake, Machine, PAGE};

fn new_type(name: &'static str) -> &'static MallocType {
    Box::leak(Box::new(MallocType::new(name, "a type of the tests")))
}

fn free(malloc: &Malloc<'_, Fake>, block: usize) {
    // SAFETY: every caller has a block of the test.
    unsafe { malloc.free(block as *mut u8) }
}

fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !ready() {
        assert!(start.elapsed().as_secs() < 60, "waited for: {what}");
        std::thread::yield_now();
    }
}

fn asleep(world: &World, ty: &MallocType) -> u32 {
    world.system.type_record(ty.id().unwrap()).limit_sleepers.load(Ordering::SeqCst)
}

/// N1.60: limits are unsigned, and as large as an address.
#[test]
fn n1_60_limits_are_unsigned() {
    let world = World::boot(config(1, 1));
    let malloc = Malloc::new(&world.system);
    world.machine.run(|| {
        let ty = new_type("limited");
        for limit in [1 << 31, (1 << 32) + 16, 1 << 63, usize::MAX] {
            malloc.set_limit(ty, limit);
            assert_eq!(world.system.type_record(ty.id().unwrap()).limit_bytes.load(Ordering::Relaxed), limit as u64);
            let block = malloc.malloc(ty, 3 << 20, NoWait, Flags::NONE).expect("far below the limit");
            free(&malloc, block.as_ptr() as usize);
        }
    });
}

/// N1.77, N1.141: a type has memory while it is below its limit; who may not wait is refused then, and counted.
#[test]
fn n1_77_141_a_type_at_its_limit_gets_nothing() {
    let world = World::boot(config(2, 1));
    let malloc = Malloc::new(&world.system);
    world.machine.run(|| {
        let ty: &'static MallocType = Box::leak(Box::new(MallocType::with_limit("limited", "", 4096)));
        let mut blocks: Vec<usize> = Vec::new();
        while let Some(block) = malloc.malloc(ty, 1000, NoWait, Flags::NONE) {
            blocks.push(block.as_ptr() as usize);
        }
        assert_eq!(blocks.len(), 4);
        assert_eq!(world.failures(ty.id().unwrap()), 1);
        // Freed on another CPU, by the fast path: the next request sees it.
        Machine::set_cpu(Some(1));
        free(&malloc, blocks.pop().unwrap());
        Machine::set_cpu(Some(0));
        blocks.push(malloc.malloc(ty, 1000, NoWait, Flags::NONE).unwrap().as_ptr() as usize);
        assert!(malloc.malloc(ty, 1, NoWait, Flags::NONE).is_none());
        // A higher limit, none, and one below what is in use.
        malloc.set_limit(ty, 4097);
        blocks.push(malloc.malloc(ty, 1000, NoWait, Flags::NONE).unwrap().as_ptr() as usize);
        assert!(malloc.malloc(ty, 1, NoWait, Flags::NONE).is_none());
        malloc.set_limit(ty, 0);
        blocks.push(malloc.malloc(ty, 1000, NoWait, Flags::NONE).unwrap().as_ptr() as usize);
        malloc.set_limit(ty, 1);
        assert!(malloc.malloc(ty, 1, NoWait, Flags::NONE).is_none());
        blocks.drain(..).for_each(|block| free(&malloc, block));
        assert!(malloc.malloc(ty, 1, NoWait, Flags::NONE).is_some());
        assert!(malloc.malloc(ty, 1, NoWait, Flags::NONE).is_none());
        assert!(world.machine.take_reports().is_empty());
    });
}

/// Sleepers on a limit are served in the order in which they came, whichever CPU the frees are on.
#[test]
fn sleepers_on_a_limit_are_served_in_order() {
    for cpus in [1, 2, 64] {
        let world = World::boot(config(cpus, 1));
        let malloc = Malloc::new(&world.system);
        let ty = new_type("fifo");
        let served = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let mut held = world.machine.run(|| {
                malloc.set_limit(ty, 1024);
                malloc.malloc(ty, 1024, WaitOk, Flags::NONE).as_ptr() as usize
            });
            for n in 0..5 {
                let (world, malloc, served) = (&world, &malloc, &served);
                scope.spawn(move || {
                    world.machine.run_on(n % cpus, || {
                        let block = malloc.malloc(ty, 1024, WaitOk, Flags::NONE).as_ptr() as usize;
                        served.lock().unwrap().push((n, block));
                    });
                });
                until("the sleeper", || asleep(world, ty) == n as u32 + 1);
                // Who comes while others wait, and may not, gets nothing.
                world.machine.run(|| assert!(malloc.malloc(ty, 16, NoWait, Flags::NONE).is_none()));
            }
            for n in 0..5 {
                world.machine.run_on((n + 1) % cpus, || free(&malloc, held));
                until("the next", || served.lock().unwrap().len() == n + 1);
                let (who, block) = served.lock().unwrap()[n];
                assert_eq!(who, n, "on {cpus} CPUs");
                held = block;
            }
            world.machine.run(|| free(&malloc, held));
        });
        let record = world.system.type_record(ty.id().unwrap());
        assert_eq!(record.limit_blocks.load(Ordering::Relaxed), 5);
        // Lines that are armed say nothing of their peak, and must not be taken to.
        let mark = world.high_water(ty.id().unwrap());
        assert!((1024..1 << 20).contains(&mark), "{mark}");
        assert_eq!((asleep(&world, ty), world.totals(ty.id().unwrap()).in_use()), (0, 0));
        world.machine.run(|| world.system.validate().unwrap());
    }
}

/// Each way in which a type's memory in use falls, or its limit rises, wakes.
#[test]
fn every_way_below_the_limit_wakes() {
    type Way = fn(&Malloc<'_, Fake>, &'static MallocType, usize);
    let ways: [(&str, usize, Way); 7] = [
        ("free of an item", 2000, |malloc, _, block| free(malloc, block)),
        ("free of a run", 100_000, |malloc, _, block| free(malloc, block)),
        ("free of pages", 4 << 20, |malloc, _, block| free(malloc, block)),
        ("zfree", 2000, |malloc, _, block| {
            // SAFETY: a block of the test.
            unsafe { malloc.zfree(block as *mut u8) }
        }),
        ("realloc to nothing", 2000, |malloc, ty, block| {
            let word = kern::malloc::FlagWord(kern::malloc::FlagWord::NOWAIT);
            // SAFETY: as above.
            assert!(unsafe { malloc.realloc(ty, block as *mut u8, 0, word) }.is_none());
        }),
        ("a higher limit", 2000, |malloc, ty, _| malloc.set_limit(ty, 1 << 20)),
        ("no limit", 2000, |malloc, ty, _| malloc.set_limit(ty, 0)),
    ];
    for (name, bytes, way) in ways {
        let world = World::boot(config(2, 2));
        let malloc = Malloc::new(&world.system);
        let ty = new_type("ways");
        let block = world.machine.run_on(1, || {
            malloc.set_limit(ty, 1000);
            malloc.malloc(ty, bytes, NoWait, Flags::NONE).unwrap().as_ptr() as usize
        });
        std::thread::scope(|scope| {
            let sleeper =
                scope.spawn(|| world.machine.run(|| malloc.malloc(ty, 16, WaitOk, Flags::NONE).as_ptr() as usize));
            until(name, || asleep(&world, ty) == 1);
            // Asleep, not on its way there: that is the harder case.
            std::thread::yield_now();
            world.machine.run_on(1, || way(&malloc, ty, block));
            sleeper.join().unwrap();
        });
    }
}

/// A slot that is first used while somebody sleeps gets armed lines, too: here its share rises above nothing before it falls, which
/// alone would make no line compare, and the sleeper has looked in between.
#[test]
fn a_new_slot_wakes_sleepers_as_well() {
    let world = World::boot(config(64, 1));
    let malloc = Malloc::new(&world.system);
    let ty = new_type("new slot");
    let (first, second) = world.machine.run(|| {
        malloc.set_limit(ty, 2000);
        let block = || malloc.malloc(ty, 1500, NoWait, Flags::NONE).unwrap().as_ptr() as usize;
        (block(), block())
    });
    std::thread::scope(|scope| {
        let sleeper =
            scope.spawn(|| world.machine.run(|| malloc.malloc(ty, 1000, WaitOk, Flags::NONE).as_ptr() as usize));
        until("the sleeper", || world.machine.sleeps() == 1);
        world.machine.run_on(62, || {
            // Admitted by nobody: as a request that was admitted before the sleeper came, and is served only now.
            assert!(!world.system.alloc(1500, ty.id().unwrap()).is_null());
        });
        world.machine.run(|| free(&malloc, second));
        // The sleeper has looked, and found too much in use.
        until("the sleeper's second sleep", || world.machine.sleeps() == 2);
        assert!(!sleeper.is_finished());
        world.machine.run_on(62, || free(&malloc, first));
        sleeper.join().unwrap();
    });
}

/// Many threads, few bytes: nobody is forgotten, and the limit holds but for the last block admitted.
#[test]
fn a_crowd_under_a_limit_gets_through() {
    const LIMIT: usize = 8 * 1024;
    let world = World::boot(config(4, 2));
    let malloc = Malloc::new(&world.system);
    let ty = new_type("crowd");
    let most = AtomicUsize::new(0);
    let held = AtomicUsize::new(0);
    world.machine.run(|| malloc.set_limit(ty, LIMIT));
    std::thread::scope(|scope| {
        for thread in 0..6usize {
            let (world, malloc, most, held) = (&world, &malloc, &most, &held);
            scope.spawn(move || {
                world.machine.run_on(thread % 4, || {
                    for n in 0..400usize {
                        Machine::set_cpu(Some((thread + n) % 4));
                        let bytes = [512, 1024, 2048, 4096][(thread + n) % 4];
                        let block = malloc.malloc(ty, bytes, WaitOk, Flags::NONE);
                        most.fetch_max(held.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                        Machine::set_cpu(Some((thread + n * 3) % 4));
                        if n % 3 == 0 {
                            std::thread::yield_now();
                        }
                        held.fetch_sub(bytes, Ordering::SeqCst);
                        free(malloc, block.as_ptr() as usize);
                    }
                });
            });
        }
    });
    let most = most.load(Ordering::SeqCst);
    assert!(most < LIMIT + 4096, "{most} bytes at one time");
    assert_eq!((asleep(&world, ty), world.totals(ty.id().unwrap()).in_use()), (0, 0));
    println!("slept {} times", world.system.type_record(ty.id().unwrap()).limit_blocks.load(Ordering::Relaxed));
}

/// Takes all the memory there is, in blocks of these sizes.
fn exhaust(malloc: &Malloc<'_, Fake>, ty: &'static MallocType, sizes: &[usize]) -> Vec<usize> {
    let mut blocks = Vec::new();
    for &bytes in sizes {
        while let Some(block) = malloc.malloc(ty, bytes, NoWait, Flags::NONE) {
            blocks.push(block.as_ptr() as usize);
        }
    }
    blocks
}

fn short_of_memory(world: &World, ty: &MallocType) -> u64 {
    world.system.type_record(ty.id().unwrap()).map_blocks.load(Ordering::SeqCst)
}

/// N1.17, N1.111, N1.117: a refill that finds nothing sleeps with nothing held and its free lists whole, while others go on; and a
/// free anywhere lets it go on.
#[test]
fn n1_111_117_a_refill_that_sleeps_is_woken_by_a_free_on_any_cpu() {
    for (filler, wanted) in [(300, 300), (300, 5000), (5000, 300), (70_000, 16), (16, 16), (70_000, 100_000)] {
        let world = World::boot(config(4, 2));
        let malloc = Malloc::new(&world.system);
        let (ty, other) = (new_type("sleeper"), new_type("other"));
        world.machine.set_heap_budget(Some(700));
        let mut blocks = world.machine.run(|| {
            malloc.attach(ty).unwrap();
            exhaust(&malloc, other, &[filler, 200_000, 70_000, wanted, 5000, 300, 16])
        });
        std::thread::scope(|scope| {
            let sleeper = scope
                .spawn(|| world.machine.run_on(1, || malloc.malloc(ty, wanted, WaitOk, Flags::NONE).as_ptr() as usize));
            until("the sleeper", || short_of_memory(&world, ty) == 1);
            // Others run into the wall meanwhile, and free and allocate what there is.
            let mut n = 0;
            while !sleeper.is_finished() && !blocks.is_empty() {
                world.machine.run_on(n % 4, || {
                    free(&malloc, blocks.swap_remove(n * 7919 % blocks.len()));
                    if n % 5 == 4 {
                        blocks.extend(malloc.malloc(other, 16, NoWait, Flags::NONE).map(|b| b.as_ptr() as usize));
                    }
                });
                n += 1;
                if n % 16 == 0 {
                    std::thread::yield_now();
                }
            }
            let block = sleeper.join().unwrap();
            world.machine.run(|| {
                world.system.validate().unwrap();
                free(&malloc, block);
                blocks.drain(..).for_each(|block| free(&malloc, block));
                world.system.reclaim();
                world.system.validate().unwrap();
                assert_eq!(world.pages_out(), 0, "{filler} and {wanted}");
            });
        });
        assert_eq!((world.failures(ty.id().unwrap()), world.totals(ty.id().unwrap()).in_use()), (0, 0));
    }
}

/// One free, and nobody does anything after it.
#[test]
fn a_single_free_is_enough_for_who_waits_for_that_size() {
    for bytes in [16, 300, 5000, 40_000, 100_000, 4 << 20] {
        for (freed_on, flags) in [(0, Flags::NONE), (1, Flags::NONE), (0, Flags::NORECLAIM)] {
            let world = World::boot(config(2, 1));
            let malloc = Malloc::new(&world.system);
            let (ty, other) = (new_type("sleeper"), new_type("other"));
            world.machine.set_heap_budget(Some(3000));
            let blocks = world.machine.run(|| {
                malloc.attach(ty).unwrap();
                let large = malloc.malloc(other, bytes, NoWait, Flags::NONE).unwrap().as_ptr() as usize;
                let mut blocks = exhaust(&malloc, other, &[4 << 20, 200_000, 70_000, bytes, 5000, 300, 16]);
                // Frees that stay in this CPU's caches, and must not be overlooked.
                blocks.push(large);
                blocks
            });
            std::thread::scope(|scope| {
                let sleeper = scope
                    .spawn(|| world.machine.run_on(1, || malloc.malloc(ty, bytes, WaitOk, flags).as_ptr() as usize));
                until("the sleeper", || short_of_memory(&world, ty) == 1);
                world.machine.run_on(freed_on, || free(&malloc, *blocks.last().unwrap()));
                sleeper.join().unwrap();
            });
        }
    }
}

/// A request of another size that is served meanwhile must not leave room in a cache: what is freed there would be missed.
#[test]
fn no_cache_gets_room_while_somebody_sleeps() {
    const BYTES: usize = 5000;
    let slab = kern::class::slab_layout(kern::class::class_of(BYTES));
    let world = World::boot(config(2, 1));
    let malloc = Malloc::new(&world.system);
    let (ty, other) = (new_type("sleeper"), new_type("other"));
    world.machine.set_heap_budget(Some(slab.slab_bytes / PAGE + 40));
    let blocks = world.machine.run(|| {
        malloc.attach(ty).unwrap();
        // Exactly a slab's worth, each of its items out; and nothing else left.
        let blocks: Vec<_> =
            (0..slab.items).map(|_| world.system.alloc(BYTES, kern::TypeId::MALLOC) as usize).collect();
        exhaust(&malloc, other, &[40_000, 300, 16]);
        blocks
    });
    std::thread::scope(|scope| {
        let sleeper =
            scope.spawn(|| world.machine.run_on(1, || malloc.malloc(ty, 2000, WaitOk, Flags::NONE).as_ptr() as usize));
        until("the sleeper", || world.machine.sleeps() == 1);
        world.machine.run(|| {
            let mut blocks = blocks;
            free(&malloc, blocks.pop().unwrap());
            blocks.push(world.system.alloc(BYTES, kern::TypeId::MALLOC) as usize);
            assert!(!blocks.contains(&0));
            blocks.drain(..).for_each(|block| free(&malloc, block));
        });
        sleeper.join().unwrap();
    });
}

/// Who waits for a small block is not held up by who waits for a large one, and within a size it is first come, first served.
#[test]
fn a_queue_for_each_size() {
    let world = World::boot(config(2, 1));
    let malloc = Malloc::new(&world.system);
    let (ty, other) = (new_type("queue"), new_type("other"));
    world.machine.set_heap_budget(Some(400));
    let mut blocks = world.machine.run(|| {
        malloc.attach(ty).unwrap();
        exhaust(&malloc, other, &[300, 16])
    });
    let served = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (n, bytes) in [300_000, 300, 300, 300].into_iter().enumerate() {
            let (world, malloc, served) = (&world, &malloc, &served);
            scope.spawn(move || {
                world.machine.run_on(1, || {
                    malloc.malloc(ty, bytes, WaitOk, Flags::NONE);
                    served.lock().unwrap().push(n);
                });
            });
            // Asleep, and so in the queue: it is counted before, and empties the caches between.
            until("the sleeper", || world.machine.sleeps() > n as u64);
            assert_eq!(short_of_memory(world, ty), n as u64 + 1);
        }
        let mut expected = Vec::new();
        for n in 1..4 {
            world.machine.run(|| free(&malloc, blocks.remove(0)));
            expected.push(n);
            until("the next small one", || served.lock().unwrap().len() == n);
            let mut seen = served.lock().unwrap().clone();
            seen.sort_unstable();
            assert_eq!(seen, expected);
        }
        for block in blocks {
            world.machine.run(|| free(&malloc, block));
        }
        until("the large one", || served.lock().unwrap().len() == 4);
    });
}

/// The port has got memory by itself.
#[test]
fn memory_that_the_port_got_wakes() {
    let world = World::boot(config(1, 1));
    let malloc = Malloc::new(&world.system);
    let ty = new_type("port");
    world.machine.set_heap_budget(Some(64));
    world.machine.run(|| {
        exhaust(&malloc, ty, &[5000, 16]);
    });
    std::thread::scope(|scope| {
        let sleeper =
            scope.spawn(|| world.machine.run(|| malloc.malloc(ty, 3 << 20, WaitOk, Flags::NONE).as_ptr() as usize));
        until("the sleeper", || short_of_memory(&world, ty) == 1);
        world.machine.set_heap_budget(None);
        world.machine.run(|| world.system.wake_sleepers());
        sleeper.join().unwrap();
    });
}

static ORDER: Mutex<Vec<&str>> = Mutex::new(Vec::new());
static GIVE_UP: AtomicUsize = AtomicUsize::new(0);

/// The order of reclaim: handlers by their order, each once, then sleep, then the last resort.
#[test]
fn handlers_are_called_in_order_before_anybody_sleeps_and_the_oom_hook_last() {
    fn early(why: LowMemory) {
        assert_eq!(why, LowMemory::Pages);
        ORDER.lock().unwrap().push("early");
    }
    fn late(_: LowMemory) {
        ORDER.lock().unwrap().push("late");
    }
    fn oom(bytes: usize) -> Oom {
        assert_eq!(bytes, 100_000);
        ORDER.lock().unwrap().push("oom");
        match GIVE_UP.fetch_add(1, Ordering::SeqCst) {
            0 => Oom::Retry,
            _ => Oom::GiveUp,
        }
    }
    static EARLY: LowMemoryHandler = LowMemoryHandler::new("early", -5, early);
    static LATE: LowMemoryHandler = LowMemoryHandler::new("late", 10, late);
    static MIDDLE: LowMemoryHandler =
        LowMemoryHandler::new("middle", 10, |_| ORDER.lock().unwrap().push("middle, registered later"));

    let world = World::boot(config(1, 1));
    let malloc = Malloc::new(&world.system);
    let ty = new_type("handlers");
    world.machine.set_heap_budget(Some(300));
    world.machine.run(|| {
        assert!(malloc.register_low_memory(&LATE) && malloc.register_low_memory(&EARLY));
        assert!(malloc.register_low_memory(&MIDDLE) && !malloc.register_low_memory(&LATE));
        malloc.set_oom_hook(oom);
        exhaust(&malloc, ty, &[5000, 16]);
        let failures = world.failures(ty.id().unwrap());
        assert!(malloc.malloc(ty, 100_000, CanFail, Flags::NONE).is_none());
        assert_eq!(world.failures(ty.id().unwrap()), failures + 1);
        let calls = ["early", "late", "middle, registered later", "oom", "oom"];
        assert_eq!(core::mem::take(&mut *ORDER.lock().unwrap()), calls);
        // Who does not want others to give memory up gets there without them.
        assert!(malloc.malloc(ty, 100_000, CanFail, Flags::NORECLAIM).is_none());
        assert_eq!(core::mem::take(&mut *ORDER.lock().unwrap()), ["oom"]);
        // N1.73: more than the machine has, and the machine has no more.
        assert!(malloc.malloc(ty, 64 << 20, CanFail, Flags::NONE).is_none());
        // Who may not wait is refused at once.
        core::mem::take(&mut *ORDER.lock().unwrap());
        assert!(malloc.malloc(ty, 100_000, NoWait, Flags::NONE).is_none());
        assert!(ORDER.lock().unwrap().is_empty());
    });
}

/// A handler's memory serves the request that had it called.
#[test]
fn a_handler_gives_memory_up() {
    static HOARD: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    static WORLD: std::sync::OnceLock<World> = std::sync::OnceLock::new();
    static GIVER: LowMemoryHandler = LowMemoryHandler::new("giver", 0, |_| {
        for block in HOARD.lock().unwrap().drain(..) {
            // SAFETY: blocks of the test.
            unsafe { WORLD.get().unwrap().system.free(block as *mut u8, 0) };
        }
    });
    let world = WORLD.get_or_init(|| World::boot(config(1, 1)));
    let malloc = Malloc::new(&world.system);
    let ty = new_type("giver");
    world.machine.set_heap_budget(Some(300));
    world.machine.run(|| {
        malloc.register_low_memory(&GIVER);
        HOARD.lock().unwrap().extend(exhaust(&malloc, ty, &[5000, 300]));
        let block = malloc.malloc(ty, 400_000, WaitOk, Flags::NONE);
        assert_eq!(short_of_memory(world, ty), 0);
        assert!(HOARD.lock().unwrap().is_empty());
        free(&malloc, block.as_ptr() as usize);
    });
}

/// Exceeding the soft limit wakes the reclaim thread, or has the next call that comes by a slow path do the work.
#[test]
fn the_soft_limit_asks_for_reclaim() {
    static CALLED: AtomicU32 = AtomicU32::new(0);
    static COUNTER: LowMemoryHandler = LowMemoryHandler::new("counter", 0, |why| {
        assert_eq!(why, LowMemory::Soft);
        CALLED.fetch_add(1, Ordering::SeqCst);
    });
    let world = World::boot(config(2, 1));
    let malloc = Malloc::new(&world.system);
    let ty = new_type("soft");
    world.machine.run(|| malloc.register_low_memory(&COUNTER));
    world.system.set_soft_limit(1000);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            world.machine.run_on(1, || malloc.reclaim_once_asked());
            done.store(true, Ordering::SeqCst);
        });
        world.machine.run(|| {
            malloc.malloc(ty, 992 * PAGE, NoWait, Flags::NONE).unwrap();
            std::thread::yield_now();
            assert!(!done.load(Ordering::SeqCst));
            malloc.malloc(ty, 10 * PAGE, NoWait, Flags::NONE).unwrap();
        });
        until("the reclaim thread", || done.load(Ordering::SeqCst));
    });
    assert_eq!(CALLED.load(Ordering::SeqCst), 1);
    assert_eq!(world.header().control.reclaims.load(Ordering::SeqCst), 1);
    // Without a thread.
    world.machine.run(|| {
        world.machine.advance(std::time::Duration::from_secs(1));
        world.system.set_soft_limit(world.system.page_counts().out + 20);
        malloc.malloc(ty, 50 * PAGE, NoWait, Flags::NONE).unwrap();
        malloc.malloc(ty, 70 * PAGE, NoWait, Flags::NONE).unwrap();
    });
    assert_eq!(world.header().control.reclaims.load(Ordering::SeqCst), 2);
}
