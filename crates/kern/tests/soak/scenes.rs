//! Every way to sleep and to be woken, one after the other with nobody else about, so that each happens on each machine.

use std::sync::atomic::{AtomicUsize, Ordering};

use kern::malloc::{Flags, MallocType, NoWait, WaitOk};
use kern::zone::{How, Reclaim, ZoneConfig};
use vmem::{Arena, Fit, Wait};

use crate::machine::Soak;
use crate::ranges::OnFake;

/// `sleeper` is to fall asleep; then `wake` is called, and it must return.
fn sleep(soak: &Soak, what: &str, sleeper: &(dyn Fn() + Sync), wake: &(dyn Fn() + Sync)) {
    let machine = &soak.world.machine;
    let cpu = soak.plan.config.cpus - 1;
    let before = machine.sleeps();
    std::thread::scope(|scope| {
        let sleeper = scope.spawn(|| machine.run_on(cpu, sleeper));
        let start = std::time::Instant::now();
        while machine.sleeps() == before {
            assert!(!sleeper.is_finished(), "{what}: nobody slept");
            assert!(start.elapsed().as_secs() < 60, "{what}: nobody falls asleep");
            std::thread::yield_now();
        }
        machine.run(wake);
        sleeper.join().unwrap_or_else(|fault| std::panic::resume_unwind(fault));
    });
}

pub(crate) fn act(soak: &'static Soak) {
    type_limit(soak);
    memory(soak);
    zone_limit(soak);
    arena(soak);
    readers(soak);
}

fn free(soak: &Soak, block: usize) {
    // SAFETY: callers have a block, once.
    unsafe { soak.malloc.free(block as *mut u8) }
}

fn type_limit(soak: &Soak) {
    let ty: &'static MallocType = Box::leak(Box::new(MallocType::with_limit("soak scene", "", 1000)));
    let held = soak.world.machine.run(|| soak.malloc.malloc(ty, 1000, NoWait, Flags::NONE).unwrap().as_ptr() as usize);
    let sleeper = || free(soak, soak.malloc.malloc(ty, 100, WaitOk, Flags::NONE).as_ptr() as usize);
    sleep(soak, "the limit of a type", &sleeper, &|| free(soak, held));
    let held = soak.world.machine.run(|| soak.malloc.malloc(ty, 1000, NoWait, Flags::NONE).unwrap().as_ptr() as usize);
    sleep(soak, "a limit that is lifted", &sleeper, &|| soak.malloc.set_limit(ty, 0));
    soak.world.machine.run(|| free(soak, held));
}

fn memory(soak: &Soak) {
    let ty: &'static MallocType = Box::leak(Box::new(MallocType::new("soak memory", "")));
    let machine = &soak.world.machine;
    for wanted in [16, 300, 5000, 70_000] {
        machine.set_heap_budget(Some(0));
        let held: Vec<usize> = machine.run(|| {
            let mut held = Vec::new();
            // The heap of a fresh machine may be nothing at all.
            while held.is_empty() {
                held.extend(soak.malloc.malloc(ty, wanted, NoWait, Flags::NONE).map(|b| b.as_ptr() as usize));
                machine.set_heap_budget(Some(if held.is_empty() { 400 } else { 0 }));
            }
            // Until reclaiming finds nothing any more.
            let mut before = 0;
            while held.len() > before {
                before = held.len();
                for bytes in [wanted, 3 << 20, 200_000, 70_000, wanted, 5000, 300, 16] {
                    while let Some(block) = soak.malloc.malloc(ty, bytes, NoWait, Flags::NONE) {
                        held.push(block.as_ptr() as usize);
                    }
                }
                soak.world.system.reclaim();
                soak.world.system.reclaim_zones(Reclaim::DrainCpu);
            }
            held
        });
        let left = AtomicUsize::new(held.len());
        let sleeper = || free(soak, soak.malloc.malloc(ty, wanted, WaitOk, Flags::NONE).as_ptr() as usize);
        sleep(soak, "memory", &sleeper, &|| {
            while left.load(Ordering::Relaxed) > 0 {
                free(soak, held[left.fetch_sub(1, Ordering::Relaxed) - 1]);
            }
        });
        machine.heal();
    }
}

fn zone_limit(soak: &Soak) {
    let machine = &soak.world.machine;
    let zone = machine.run(|| soak.world.system.zcreate(&ZoneConfig::new("soak scene", 64, 8)).unwrap());
    let held = machine.run(|| {
        zone.set_max(1);
        zone.alloc(How::NOWAIT).unwrap().as_ptr() as usize
    });
    // SAFETY: 1. each item is freed once. 2. from this zone.
    let give_back = |item: usize| unsafe { zone.free(item as *mut u8) };
    let sleeper = || give_back(zone.alloc(How::WAIT).unwrap().as_ptr() as usize);
    sleep(soak, "the limit of a zone", &sleeper, &|| give_back(held));
    let held = machine.run(|| zone.alloc(How::NOWAIT).unwrap().as_ptr() as usize);
    sleep(soak, "a zone's limit that is lifted", &sleeper, &|| zone.set_max(0));
    machine.run(|| give_back(held));
    // SAFETY: 1. nobody has the handle any more.
    let lost = machine.run(|| unsafe { zone.destroy() });
    assert_eq!(lost, Ok(kern::zone::Destroyed::default()));
}

fn arena(soak: &Soak) {
    let tags = crate::ranges::Tags::default();
    let machine = &soak.world.machine;
    let arena = Arena::<OnFake>::new("scene", 1, &tags);
    machine.run(|| arena.add(1, 10, Wait::NoSleep).unwrap());
    let held = machine.run(|| arena.alloc(10, Fit::Instant, Wait::NoSleep).unwrap());
    let sleeper = || {
        let addr = arena.alloc(4, Fit::Instant, Wait::Sleep).unwrap();
        arena.free(addr, 4).unwrap();
    };
    sleep(soak, "an arena", &sleeper, &|| arena.free(held, 10).unwrap());
    machine.run(|| arena.destroy()).unwrap();
}

fn readers(soak: &Soak) {
    let machine = &soak.world.machine;
    let reader = std::sync::Mutex::new(Some(machine.run(|| soak.world.system.smr_enter())));
    sleep(soak, "readers", &|| soak.world.system.smr_synchronize(), &|| drop(reader.lock().unwrap().take()));
}
