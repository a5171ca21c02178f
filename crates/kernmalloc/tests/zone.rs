//! Zones of a program's own, on the real platform, and what a reader in another process would see of them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernmalloc::{Fail, How, Zone};
use memstat::Object;

#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

static MADE: AtomicUsize = AtomicUsize::new(0);

struct Request {
    lines: Vec<u64>,
}

fn requests() -> &'static Zone<Request> {
    static REQUESTS: OnceLock<Zone<Request>> = OnceLock::new();
    REQUESTS.get_or_init(|| {
        let make = || {
            MADE.fetch_add(1, Ordering::Relaxed);
            Some(Request { lines: Vec::with_capacity(32) })
        };
        kernmalloc::zone("test request", make).unwrap()
    })
}

fn seen(name: &str) -> memstat::Zone {
    let snapshot = Object::open_pid(std::process::id()).unwrap().snapshot().unwrap();
    assert!(snapshot.zones_live);
    snapshot.zones.into_iter().find(|zone| zone.name == name).unwrap()
}

#[test]
fn threads_share_a_zone_and_a_reader_counts_with_them() {
    let zone = requests();
    let threads: Vec<_> = (0..8u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut held = Vec::new();
                for n in 0..50_000 {
                    let mut request = zone.alloc_reset(How::WAIT, |request| request.lines.clear()).unwrap();
                    assert!(request.lines.is_empty() && request.lines.capacity() >= 32);
                    request.lines.push(seed << 32 | n);
                    held.push(request);
                    if held.len() > 40 {
                        let at = (n * 7919 % 41) as usize;
                        let request = held.swap_remove(at);
                        assert_eq!(request.lines[0] >> 32, seed, "another owner wrote to it");
                    }
                }
                held.truncate(10);
                held
            })
        })
        .collect();
    let held: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    let zone = seen("test request");
    assert_eq!((zone.used(), zone.allocs, zone.frees), (80, 400_000, 399_920));
    assert_eq!(zone.items(), zone.used() + zone.free());
    // Constructed once per item of a slab, however often it was handed out.
    assert!((MADE.load(Ordering::Relaxed) as u64) < 8000 && zone.slabs_imported * zone.items_per_slab < 8000);
    drop(held);
    assert_eq!(seen("test request").used(), 0);
}

#[test]
fn a_limit_makes_threads_wait_for_each_other() {
    let zone: &'static Zone<u64> = Box::leak(Box::new(kernmalloc::zone("test limit", || Some(0u64)).unwrap()));
    zone.raw().set_max(2);
    let inside = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..3000 {
                    let mut item = zone.alloc(How::WAIT).unwrap();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                    *item += 1;
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    let stats = zone.stats();
    assert_eq!((stats.in_use, stats.allocs, stats.sleepers), (0, 18_000, 0));
    let held = [zone.alloc(How::NOWAIT).unwrap(), zone.alloc(How::NOWAIT).unwrap()];
    assert_eq!(zone.alloc(How::NOWAIT).map(|_| ()), Err(Fail::Limit));
    // What 18,000 turns added up to is in the two items that there are.
    assert_eq!(seen("test limit").limit, 2);
    drop(held);
}
