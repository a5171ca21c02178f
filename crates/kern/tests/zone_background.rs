//! Zones give memory back in the background of calls that are made for something else, where that runs none of their makers' code.

extern crate kernmalloc_kern as kern;

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{World, config};
use kern::zone::{Callbacks, Flags, How, MoveReply, Mover, RawZone, Zone, ZoneConfig};
use platform::fake::Fake;

type Raw<'s> = RawZone<'s, Fake>;

fn on(cpus: usize, test: impl FnOnce(&World)) {
    let world = World::boot(config(cpus, 1));
    world.machine.run(|| test(&world));
    let reports = world.machine.take_reports();
    assert!(reports.is_empty(), "reported: {reports:x?}");
}

fn take(zone: &Raw<'_>, count: usize) -> Vec<*mut u8> {
    (0..count).map(|_| zone.alloc(How::NOWAIT).expect("an item").as_ptr()).collect()
}

fn give(zone: &Raw<'_>, items: Vec<*mut u8>) {
    for item in items {
        // SAFETY: 1. and 2. items of the zone, which the tests forget.
        unsafe { zone.free(item) };
    }
}

/// Blocks of malloc that come and go, enough of them for slow paths.
fn work(world: &World) {
    let blocks: Vec<_> = (0..4000).map(|_| world.system.alloc(64, world.types[1])).collect();
    for block in blocks {
        assert!(!block.is_null());
        // SAFETY: 1. just allocated.
        unsafe { world.system.free(block, 1) };
    }
}

/// A program's work for so many seconds.
fn seconds_of_work(world: &World, seconds: u64) {
    for _ in 0..seconds {
        world.machine.advance(Duration::from_secs(1));
        work(world);
    }
}

unsafe fn count_fini(context: *mut (), _: *mut u8, _: usize) {
    // SAFETY: the context of the zones below is a counter that outlives them.
    unsafe { &*context.cast::<AtomicUsize>() }.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_zone_that_nobody_calls_shrinks_while_the_program_calls_malloc() {
    on(2, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("idle", 1000, 8)).unwrap();
        let kept = world.system.zcreate(&ZoneConfig { flags: Flags::NOTRIM, ..ZoneConfig::new("kept", 1000, 8) });
        let kept = kept.unwrap();
        for zone in [&zone, &kept] {
            give(zone, take(zone, 400));
        }
        let (peak, peak_kept) = (zone.stats(), kept.stats());
        assert!(peak.depot > 200, "{peak:?}");
        // No second has passed: nothing is looked at.
        work(world);
        assert_eq!(zone.stats(), peak);
        seconds_of_work(world, 20);
        let later = zone.stats();
        assert!(later.depot * 10 <= peak.depot && later.pages * 2 < peak.pages, "{later:?} after {peak:?}");
        assert_eq!((kept.stats().depot, kept.stats().pages), (peak_kept.depot, peak_kept.pages));
        world.system.validate().unwrap();
    });
}

#[test]
fn callbacks_run_in_calls_of_their_own_zone_only() {
    on(2, |world| {
        let unmade = AtomicUsize::new(0);
        let context = std::ptr::from_ref(&unmade).cast_mut().cast();
        // SAFETY: 1. the counter outlives the zone.
        let callbacks = unsafe { Callbacks::new(context) }.fini(count_fini);
        let zone = world.system.zcreate(&ZoneConfig { callbacks, ..ZoneConfig::new("with fini", 1000, 8) }).unwrap();
        let second = world.system.zsecond_create("on its keg", zone, Callbacks::NONE).unwrap();
        give(&zone, take(&zone, 400));
        give(&second, take(&second, 400));
        let before = (unmade.load(Ordering::Relaxed), zone.stats().depot, second.stats().depot);
        assert!(before.1 > 200 && before.2 > 200, "{before:?}");
        // Neither is trimmed by malloc: the second one's items may be the last of slabs with a `fini`.
        seconds_of_work(world, 10);
        world.header().control.uma_reclaim.store(abi::reclaim_request::DRAIN_CPU, Ordering::Relaxed);
        work(world);
        assert_eq!(world.header().control.reclaims.load(Ordering::Relaxed), 1);
        assert_eq!((unmade.load(Ordering::Relaxed), zone.stats().depot, second.stats().depot), before);
        // A call of its own does it, also one that only frees.
        for _ in 0..20 {
            world.machine.advance(Duration::from_secs(1));
            let items = take(&zone, 100);
            give(&zone, items);
        }
        assert!(unmade.load(Ordering::Relaxed) > before.0 && zone.stats().depot < before.1, "{:?}", zone.stats());
        assert_eq!(second.stats().depot, before.2);
        // And a port's timer does it for all.
        for _ in 0..20 {
            world.machine.advance(Duration::from_secs(1));
            world.system.tick_zones();
        }
        assert!(second.stats().depot * 10 < before.2, "{:?}", second.stats());
        // SAFETY: 1. forgotten.
        unsafe { second.destroy().unwrap() };
        // SAFETY: 1. forgotten.
        unsafe { zone.destroy().unwrap() };
    });
}

#[test]
fn a_zone_of_plain_values_has_no_callback_to_wait_for() {
    on(2, |world| {
        let zone = Zone::new(&world.system, "plain values", || Some([0u64; 100])).unwrap();
        let values: Vec<_> = (0..400).map(|_| zone.alloc(How::NOWAIT).unwrap()).collect();
        drop(values);
        let peak = zone.stats();
        seconds_of_work(world, 20);
        assert!(zone.stats().depot * 10 < peak.depot, "{:?} after {peak:?}", zone.stats());
        zone.destroy();
    });
}

/// As of the depots of malloc's size classes: many buckets come and none is taken.
#[test]
fn a_zone_that_only_gets_back_lets_go_at_once() {
    on(1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("peak", 64, 8)).unwrap();
        let items = take(&zone, 40_000);
        let peak = zone.stats().slabs;
        // In an order that scatters what the depot has over all slabs: 7919 is prime to 40,000.
        give(&zone, (0..items.len()).map(|n| items[n * 7919 % items.len()]).collect());
        let after = zone.stats();
        // Two buckets in the CPU's cache and eight in the depot, all of the least size.
        assert!(
            after.in_use == 0 && after.outside <= 10 * 63 && after.slabs < peak,
            "{after:?}, {peak} slabs at the peak"
        );
    });
}

static LIVE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

unsafe fn offer(_: *mut (), from: *mut u8, to: *mut u8, bytes: usize) -> MoveReply {
    let mut live = LIVE.lock().unwrap();
    let Some(place) = live.iter_mut().find(|addr| **addr == from as usize) else { return MoveReply::DontKnow };
    // SAFETY: both are items of so many bytes, ours.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    *place = to as usize;
    MoveReply::Yes
}

#[test]
fn trim_has_items_moved_out_of_nearly_empty_slabs() {
    on(2, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("scattered", 256, 8)).unwrap();
        let per_slab = {
            give(&zone, take(&zone, 1));
            zone.stats().per_slab
        };
        let items = take(&zone, 200 * per_slab);
        let mut kept = Vec::new();
        let mut freed = Vec::new();
        for (n, item) in items.into_iter().enumerate() {
            if n % per_slab == 0 { kept.push(item as usize) } else { freed.push(item) }
        }
        give(&zone, freed);
        for &item in &kept {
            // SAFETY: an item in use, ours.
            unsafe { (item as *mut usize).write(!0 - item) };
        }
        let marks: Vec<usize> = kept.iter().map(|item| !0 - item).collect();
        // Without a move callback items stay where they are, and their slabs with them.
        world.system.trim();
        let scattered = zone.stats().slabs;
        assert!(scattered > 190, "{:?}", zone.stats());
        *LIVE.lock().unwrap() = kept;
        // SAFETY: 1. it needs no context.
        unsafe { zone.set_move(Some(Mover { context: std::ptr::null_mut(), offer })) };
        for _ in 0..20 {
            world.system.trim();
        }
        let gathered = zone.stats();
        // Below 101 slabs it is not worth the trouble.
        assert!(gathered.slabs <= 101 && gathered.in_use == 200, "{gathered:?}");
        let mut found: Vec<usize> = Vec::new();
        for &item in LIVE.lock().unwrap().iter() {
            // SAFETY: an item in use, ours.
            found.push(unsafe { *(item as *const usize) });
        }
        assert_eq!(found, marks, "an item was not moved with its contents");
        world.system.validate().unwrap();
    });
}
