//! Zones made at run time: the limit is on items in use wherever the others lie, items with a copy per CPU, and readers without a lock.

use alloc::format;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kern::zone::{Callbacks, Fail, Flags, How, RawZone, ZoneConfig};

use crate::sleepers::destroy;
use crate::{Host, Outcome, Random, ensure};

pub(crate) fn give_back<H: Host>(zone: &RawZone<'_, H::P>, item: NonNull<u8>) {
    // SAFETY: 1. the test's item, forgotten from here on.
    unsafe { zone.free(item.as_ptr()) };
}

pub(crate) fn a_zones_last_item_is_fetched_from_any_cpu<H: Host>(host: &H) -> Outcome {
    const ITEMS: usize = 60;
    let zone = host.system().zcreate(&ZoneConfig::new("the last item", 100, 8)).map_err(|why| format!("{why}"))?;
    zone.set_max(ITEMS);
    for holder in 0..host.cpus() {
        // All items of the limit, freed by one CPU into its own caches,
        let mut items = Vec::with_capacity(ITEMS);
        host.on_cpu(holder, &mut || {
            while let Ok(item) = zone.alloc(How::NOWAIT) {
                ensure!(items.len() < ITEMS, "more items are in use than the limit allows");
                items.push(item);
            }
            ensure!(items.len() == ITEMS, "of {ITEMS} items {} could be had on cpu {holder}", items.len());
            items.drain(..).for_each(|item| give_back::<H>(&zone, item));
            Ok(())
        })?;
        // are another's to the last.
        let other = (holder + 1) % host.cpus();
        host.on_cpu(other, &mut || {
            for count in 0..ITEMS {
                let item = zone.alloc(How::NOWAIT);
                items.push(item.map_err(|why| format!("item {count} of {ITEMS} on cpu {other}: {why}"))?);
            }
            ensure!(zone.alloc(How::NOWAIT) == Err(Fail::Limit), "there is an item beyond the limit");
            ensure!(zone.is_exhausted() && zone.in_use() == ITEMS, "{:?}", zone.stats());
            Ok(())
        })?;
        items.drain(..).for_each(|item| give_back::<H>(&zone, item));
        zone.validate()?;
    }
    ensure!(zone.in_use() == 0, "{} items are in use", zone.in_use());
    destroy::<H>(zone)
}

pub(crate) fn items_of_a_zone_have_a_copy_for_each_cpu<H: Host>(host: &H) -> Outcome {
    let config = ZoneConfig { flags: Flags::PCPU, ..ZoneConfig::new("counters", 16, 8) };
    let zone = host.system().zcreate(&config).map_err(|why| format!("{why}"))?;
    let cpus = host.cpus();
    ensure!(zone.pcpu_copies() >= cpus, "{} copies for {cpus} CPUs", zone.pcpu_copies());
    let rounds = 2000 * host.effort() / 100;
    // Two items, whose copies must not be taken for each other's; then the same memory again.
    for _ in 0..2 {
        let take = || zone.alloc(How::NOWAIT.zeroed()).map(|item| item.as_ptr() as usize);
        let items = [take(), take()].map(|item| item.map_err(|why| format!("{why}")));
        let [one, two] = [items[0].clone()?, items[1].clone()?];
        let counter = |item: usize, cpu: usize| zone.pcpu_copy(item as *mut u8, cpu).cast::<u64>();
        let outcome = host.threads(cpus, &|cpu| {
            host.on_cpu(cpu, &mut || {
                for round in 0..rounds as u64 {
                    // SAFETY: this CPU's copies of our items, which no other thread touches.
                    unsafe {
                        let (mine, other) = (counter(one, cpu), counter(two, cpu));
                        ensure!(mine.read_volatile() == round, "a counter of cpu {cpu} is {}", mine.read_volatile());
                        mine.write_volatile(round + 1);
                        other.write_volatile(other.read_volatile() + 2);
                    }
                }
                Ok(())
            })
        });
        // SAFETY: as above, and the threads have ended.
        let sum = |item| (0..cpus).map(|cpu| unsafe { counter(item, cpu).read() }).sum::<u64>();
        let (sums, expected) = ((sum(one), sum(two)), (cpus * rounds) as u64);
        for item in [one, two].into_iter().filter_map(|item| NonNull::new(item as *mut u8)) {
            give_back::<H>(&zone, item);
        }
        outcome?;
        ensure!(sums == (expected, 2 * expected), "counters of {expected} come to {sums:?}");
    }
    destroy::<H>(zone)
}

/// An item that readers follow a pointer to: both words say the same while it is one.
#[repr(C)]
struct Node {
    value: AtomicUsize,
    inverse: AtomicUsize,
}

/// How often the destructor ran.
type Ended = AtomicUsize;

/// Runs when no reader can see the item any more; makes it unlike any node.
///
/// # Safety
/// 1. As [`kern::zone::Dtor`] says, with an [`Ended`] for its context.
unsafe fn end(context: *mut (), item: *mut u8, _: usize, _: *mut ()) {
    // SAFETY: 1.
    unsafe {
        (*item.cast::<Node>()).value.store(0xdead, Ordering::Relaxed);
        (*item.cast::<Node>()).inverse.store(0xdead, Ordering::Relaxed);
        (*context.cast::<Ended>()).fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) fn readers_see_no_item_change<H: Host>(host: &H) -> Outcome {
    const PLACES: usize = 8;
    let ended = Ended::new(0);
    // SAFETY: 1. the counter outlives the zone, which this function destroys.
    let callbacks = unsafe { Callbacks::new((&raw const ended).cast_mut().cast()) }.dtor(end);
    let config = ZoneConfig { flags: Flags::SMR, callbacks, ..ZoneConfig::new("nodes", size_of::<Node>(), 16) };
    let system = host.system();
    let zone = system.zcreate(&config).map_err(|why| format!("{why}"))?;
    let places = [const { AtomicUsize::new(0) }; PLACES];
    let (readers, writers) = (host.cpus(), 2);
    // So few that each is used again as soon as it may be: a writer waits for readers.
    zone.set_max(PLACES + writers + 2);
    let (steps, done, reads) = (3000 * host.effort() / 100, AtomicUsize::new(0), AtomicUsize::new(0));
    let failed = AtomicBool::new(false);
    let write = |random: &mut Random| {
        let node = zone.alloc(How::WAIT).map_err(|why| format!("{why}"))?.cast::<Node>();
        let value = random.next() as usize;
        // SAFETY: a fresh item, ours until it is put in its place.
        unsafe {
            node.as_ref().value.store(value, Ordering::Relaxed);
            node.as_ref().inverse.store(!value, Ordering::Relaxed);
        }
        let old = places[random.below(PLACES)].swap(node.as_ptr() as usize, Ordering::AcqRel);
        // SAFETY: 1. nobody finds it any more (or it is null).
        unsafe { zone.free(old as *mut u8) };
        Ok::<(), alloc::string::String>(())
    };
    let read = |random: &mut Random, linger: &dyn Fn()| {
        let _section = system.smr_enter();
        let node = places[random.below(PLACES)].load(Ordering::Acquire) as *const Node;
        // SAFETY: null, or an item that was found inside the section.
        let Some(node) = (unsafe { node.as_ref() }) else { return Ok(()) };
        let both = || (node.value.load(Ordering::Relaxed), node.inverse.load(Ordering::Relaxed));
        let first = both();
        linger();
        let last = both();
        ensure!(
            first.0 == !first.1 && last == first,
            "an item changed under its reader: {:#x?}, then {:#x?}",
            first,
            last
        );
        reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let outcome = host.threads(readers + writers, &|number| {
        let mut random = Random::new(500 + number);
        let outcome = if number < writers {
            (0..steps).try_for_each(|_| write(&mut random))
        } else {
            (|| {
                while done.load(Ordering::SeqCst) < writers && !failed.load(Ordering::SeqCst) {
                    for step in 0..64 {
                        // Readers may migrate and be preempted inside.
                        read(&mut random, &|| if step % 16 == 0 { host.yield_now() } else { core::hint::spin_loop() })?;
                    }
                }
                Ok(())
            })()
        };
        if number < writers {
            done.fetch_add(1, Ordering::SeqCst);
        }
        failed.fetch_or(outcome.is_err(), Ordering::SeqCst);
        outcome
    });
    for place in &places {
        // SAFETY: 1. all threads have ended.
        unsafe { zone.free(place.swap(0, Ordering::SeqCst) as *mut u8) };
    }
    let stats = zone.stats();
    let left = destroy::<H>(zone);
    outcome?;
    left?;
    let (written, ended) = ((writers * steps) as u64, ended.load(Ordering::SeqCst) as u64);
    ensure!(stats.allocs == written && stats.in_use == 0, "{written} nodes are counted as {stats:?}");
    ensure!(ended == written, "of {written} nodes {ended} were ended");
    Ok(())
}
