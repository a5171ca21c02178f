//! Rows of the two revision logs that concern zones, a test to a row: N is NetBSD's revision of kern_malloc.c, F an entry of FreeBSD's.

extern crate kernmalloc_kern as kern;

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::probe::Probe;
use common::{World, config};
use kern::zone::{Destroyed, Fail, How, RawZone, Reclaim, ZoneConfig};
use platform::Misuse;
use platform::fake::{Fake, Machine, PAGE};

type Raw<'s> = RawZone<'s, Fake>;

fn take(zone: &Raw<'_>) -> *mut u8 {
    zone.alloc(How::NOWAIT).expect("an item").as_ptr()
}

fn give(zone: &Raw<'_>, item: *mut u8) {
    // SAFETY: none where a test means to misuse: what is found is reported and nothing done.
    unsafe { zone.free(item) }
}

fn destroy(zone: Raw<'_>) -> Destroyed {
    // SAFETY: 1. every test forgets the zone.
    unsafe { zone.destroy() }.expect("no secondaries")
}

fn on(cpus: usize, test: impl FnOnce(&World)) {
    let world = World::boot(config(cpus, 1));
    world.machine.run(|| test(&world));
}

fn reported(world: &World) -> Vec<Misuse> {
    world.machine.take_reports().into_iter().map(|report| report.what).collect()
}

#[test]
fn n1_16_a_second_free_is_told_and_a_block_that_looks_free_is_freed() {
    on(2, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("twice", 64, 8)).unwrap();
        let (item, other) = (take(&zone), take(&zone));
        // The contents of a block in use say nothing, whatever they are.
        // SAFETY: ours.
        unsafe { std::ptr::copy_nonoverlapping(item, other, 64) };
        give(&zone, item);
        // In the cache of its CPU, in that of another, in a depot, in its slab: free is free.
        give(&zone, item);
        Machine::set_cpu(Some(1));
        give(&zone, item);
        zone.reclaim(Reclaim::Drain);
        give(&zone, item);
        // `other` keeps the slab.
        zone.reclaim(Reclaim::DrainCpu);
        give(&zone, item);
        assert_eq!(reported(world), [Misuse::DuplicateFree; 4]);
        give(&zone, other);
        zone.validate().unwrap();
        assert_eq!((zone.in_use(), destroy(zone)), (0, Destroyed::default()));
    });
}

#[test]
fn n1_17_what_is_cached_is_reclaimed_before_a_request_gives_up() {
    on(4, |world| {
        let hoard = world.system.zcreate(&ZoneConfig::new("hoard", 2048, 8)).unwrap();
        let items: Vec<_> = (0..200).map(|_| take(&hoard)).collect();
        world.machine.set_heap_budget(Some(0));
        while hoard.alloc(How::NOWAIT).is_ok() {}
        for (n, item) in items.into_iter().enumerate() {
            Machine::set_cpu(Some(n % 4));
            give(&hoard, item);
        }
        // Another zone's request that may wait has the hoard reclaimed, and so gets pages.
        let zone = world.system.zcreate(&ZoneConfig::new("waits", 4096, 8)).unwrap();
        let item = zone.alloc(How::WAIT).unwrap();
        give(&zone, item.as_ptr());
        destroy(zone);
    });
}

#[test]
fn n1_48_an_address_outside_of_the_allocator_is_reported() {
    on(1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("inside", 64, 8)).unwrap();
        let mut outside = 0u64;
        give(&zone, std::ptr::from_mut(&mut outside).cast());
        give(&zone, std::ptr::null_mut());
        // Inside the heap, but a page of nobody's.
        let item = take(&zone);
        give(&zone, (world.machine.heap_base() + world.machine.heap_given() - PAGE) as *mut u8);
        assert_eq!(reported(world), [Misuse::ForeignFree, Misuse::InvalidFree]);
        give(&zone, item);
        destroy(zone);
    });
}

#[test]
fn n1_60_limits_are_unsigned() {
    on(1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("large limit", 64, 8)).unwrap();
        for limit in [usize::MAX, usize::MAX / 2 + 1, 1 << 31, (1 << 32) + 1] {
            zone.set_max(limit);
            assert_eq!(zone.max(), limit);
            let items: Vec<_> = (0..100).map(|_| take(&zone)).collect();
            assert!(!zone.is_exhausted());
            items.into_iter().for_each(|item| give(&zone, item));
        }
        destroy(zone);
    });
}

#[test]
fn n1_79_a_free_too_many_leaves_the_counts_alone() {
    on(1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("counts", 64, 8)).unwrap();
        let item = take(&zone);
        give(&zone, item);
        give(&zone, item);
        let stats = zone.stats();
        assert_eq!((stats.in_use, stats.allocs, stats.frees), (0, 1, 1));
        assert_eq!(reported(world), [Misuse::DuplicateFree]);
        destroy(zone);
    });
}

#[test]
fn n1_82_the_free_lists_can_be_walked_on_demand() {
    on(1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("walked", 64, 8)).unwrap();
        let (item, kept) = (take(&zone), take(&zone));
        zone.reclaim(Reclaim::DrainCpu);
        zone.validate().unwrap();
        give(&zone, item);
        // A count that is off is found.
        let record = world.zone(world.header().zones.used.load(Ordering::Relaxed) as usize - 1);
        record.slab_free.fetch_add(1, Ordering::Relaxed);
        assert!(zone.validate().is_err() && world.system.validate().is_err());
        record.slab_free.fetch_sub(1, Ordering::Relaxed);
        zone.validate().unwrap();
        give(&zone, kept);
        destroy(zone);
    });
}

#[test]
fn n1_97_slabs_are_cut_from_large_chunks() {
    on(1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("chunks", 4096, 8)).unwrap();
        let before = world.machine.calls(platform::fake::Call::ExtendHeap);
        let items: Vec<_> = (0..200).map(|_| take(&zone)).collect();
        assert!(world.machine.calls(platform::fake::Call::ExtendHeap) - before <= 1, "a call per slab");
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
    });
}

#[test]
fn n1_102_4_2_an_item_is_freed_to_the_source_it_came_from() {
    on(1, |world| {
        let one = world.system.zcreate(&ZoneConfig::new("one", 64, 8)).unwrap();
        let two = world.system.zcreate(&ZoneConfig::new("two", 64, 8)).unwrap();
        let shared = world.system.zsecond_create("three", one, kern::zone::Callbacks::NONE).unwrap();
        let item = take(&one);
        give(&two, item);
        give(&shared, item);
        // SAFETY: none: the misuse is found.
        unsafe { world.system.free(item, 0) };
        let reports = world.machine.take_reports();
        assert!(reports.iter().all(|report| report.what == Misuse::WrongZone && report.item == item as usize));
        assert!(reports.iter().all(|report| abi::c_text(&report.zone_name) == b"one"), "the culprit is named");
        assert_eq!(reports.len(), 3);
        give(&one, item);
        // And a block of malloc is no zone's.
        let block = world.system.alloc(64, world.types[0]);
        give(&one, block);
        assert_eq!(reported(world), [Misuse::InvalidFree]);
        // SAFETY: 1. ours.
        unsafe { world.system.free(block, 0) };
        [shared, two, one].into_iter().for_each(|zone| assert_eq!(destroy(zone), Destroyed::default()));
    });
}

#[test]
fn n1_133_sizes_at_the_ends_of_the_range_are_refused_or_exact() {
    on(1, |world| {
        for bytes in [usize::MAX, usize::MAX - 63, 1 << 63, (1 << 30) + 1, 0] {
            assert!(world.system.zcreate(&ZoneConfig::new("x", bytes, 8)).is_err(), "{bytes}");
        }
        let zone = world.system.zcreate(&ZoneConfig::new("large", 20 << 20, PAGE)).unwrap();
        let item = take(&zone);
        // SAFETY: an item of that size, to its last byte.
        unsafe { item.add((20 << 20) - 1).write(1) };
        give(&zone, item);
        assert_eq!(destroy(zone), Destroyed::default());
    });
}

/// N1.127: a zone needs no constructor that runs before main: the allocator is a constant, and a zone is made at its first use.
#[test]
fn n1_127_an_allocator_is_a_constant_and_refuses_zones_before_it_is_booted() {
    static SYSTEM: kern::System<Fake> = kern::System::new();
    Machine::new(config(1, 1)).run(|| {
        let early = SYSTEM.zcreate(&ZoneConfig::new("early", 64, 8));
        assert_eq!(early.err(), Some(kern::zone::ZoneError::Memory));
        SYSTEM.reclaim_zones(Reclaim::DrainCpu);
        SYSTEM.each_zone(|_| unreachable!("no zone was made"));
    });
}

#[test]
fn f_slabs_are_found_from_the_page_and_every_free_is_checked() {
    on(1, |world| {
        let zone = world.system.zcreate(&ZoneConfig::new("checked", 100, 4)).unwrap();
        let items: Vec<_> = (0..90).map(|_| take(&zone)).collect();
        for &item in &items {
            for off in [1, 4, 50, 99] {
                // SAFETY: none: the misuse is found.
                unsafe { zone.free(item.add(off)) };
            }
            assert_eq!(reported(world), [Misuse::UnalignedFree; 4]);
        }
        // The header of a slab is no item either.
        give(&zone, (items[0] as usize & !(PAGE - 1)) as *mut u8);
        assert_eq!(reported(world), [Misuse::UnalignedFree]);
        items.into_iter().for_each(|item| give(&zone, item));
        destroy(zone);
    });
}

/// mbuma: mbufs, clusters, and packets that are an mbuf with a cluster: a secondary zone whose `init` allocates from another zone.
#[test]
fn f_mbuma_packets_keep_their_clusters_while_cached() {
    static CLUSTERS: AtomicUsize = AtomicUsize::new(0);
    unsafe fn init(context: *mut (), item: *mut u8, _: usize, wait: kern::zone::Wait) -> bool {
        // SAFETY: the zone of clusters, which outlives this one.
        let clusters = unsafe { &*context.cast::<Raw<'_>>() };
        let Ok(cluster) = clusters.alloc(How { wait, ..How::NOWAIT }) else { return false };
        CLUSTERS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the item is the callback's.
        unsafe { item.cast::<*mut u8>().write(cluster.as_ptr()) };
        true
    }
    unsafe fn fini(context: *mut (), item: *mut u8, _: usize) {
        // SAFETY: as above; `init` wrote it.
        unsafe { (*context.cast::<Raw<'_>>()).free(item.cast::<*mut u8>().read()) };
        CLUSTERS.fetch_sub(1, Ordering::SeqCst);
    }
    on(2, |world| {
        let mbuf = world.system.zcreate(&ZoneConfig::new("mbuf", 256, 8)).unwrap();
        let clusters = world.system.zcreate(&ZoneConfig::new("mbuf_cluster", 2048, 2048)).unwrap();
        clusters.set_max(64);
        // SAFETY: 1. the zone of clusters outlives that of packets.
        let callbacks = unsafe {
            let context = std::ptr::from_ref(&clusters).cast_mut().cast();
            kern::zone::Callbacks::new(context).init(init).fini(fini)
        };
        let packets = world.system.zsecond_create("mbuf_packet", mbuf, callbacks).unwrap();
        let mut all = Vec::new();
        while let Ok(packet) = packets.alloc(How::NOWAIT) {
            all.push(packet.as_ptr());
        }
        // As many as there are clusters: what their limit refuses is undone here.
        assert_eq!((all.len(), CLUSTERS.load(Ordering::SeqCst)), (64, 64));
        assert_eq!(packets.alloc(How::NOWAIT), Err(Fail::Callback));
        all.into_iter().for_each(|packet| give(&packets, packet));
        assert!(CLUSTERS.load(Ordering::SeqCst) > 0, "a cached packet keeps its cluster");
        packets.reclaim(Reclaim::DrainCpu);
        assert_eq!((CLUSTERS.load(Ordering::SeqCst), clusters.in_use(), mbuf.in_use()), (0, 0, 0));
        [packets, clusters, mbuf].into_iter().for_each(|zone| assert_eq!(destroy(zone), Destroyed::default()));
    });
}

/// mb_alloc: absent CPUs read as zero: a CPU that never came by a zone costs it nothing.
#[test]
fn f_mb_alloc_absent_cpus_cost_nothing() {
    on(1024, |world| {
        let probe = Probe::leak(false);
        let config = ZoneConfig { callbacks: probe.callbacks(), ..ZoneConfig::new("sparse", 64, 8) };
        let zone = world.system.zcreate(&config).unwrap();
        let before = world.machine.meta_used();
        Machine::set_cpu(Some(1000));
        let item = take(&zone);
        assert!(world.machine.meta_used() - before <= 16 * PAGE);
        assert_eq!(zone.in_use(), 1);
        give(&zone, item);
        destroy(zone);
    });
}
