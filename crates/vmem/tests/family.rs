//! Random operations on arenas with everything on: a parent, imports, a limit, a quantum cache, and a reclaim
//! function, against a list of what is handed out.
//!
//! A hundred thousand operations in debug, a million in release.

use kernmalloc_vmem::{
    Arena, Error, Fit, HeapTags, QCACHE_MAX, QuantumCache, Request, Segment, SegmentKind, Size, Std, Wait,
    qcache_slab_size,
};
use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};

const QUANTUM: usize = 16;
const IMPORT: usize = 4096;
const WORLD: usize = 64 * IMPORT;

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * bound as u128) >> 64) as usize
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A stack per size, eight deep; refilled four at a time from the arena that it serves.
struct Stacks {
    arena: OnceLock<&'static Arena<'static, Std>>,
    kept: Mutex<Vec<Vec<usize>>>,
}

impl Stacks {
    fn kept_size(&self) -> usize {
        self.kept.lock().unwrap().iter().enumerate().map(|(quanta, all)| quanta * QUANTUM * all.len()).sum()
    }

    fn arena(&self) -> &'static Arena<'static, Std> {
        self.arena.get().expect("set at once")
    }
}

impl QuantumCache for Stacks {
    fn alloc(&self, quanta: usize, wait: Wait) -> Option<usize> {
        let mut kept = self.kept.lock().unwrap();
        if kept[quanta].is_empty() {
            drop(kept);
            let request = Request::new(quanta * QUANTUM);
            let more: Vec<usize> = (0..4).map_while(|_| self.arena().xalloc(&request, wait).ok()).collect();
            kept = self.kept.lock().unwrap();
            kept[quanta].extend(more);
        }
        kept[quanta].pop()
    }

    fn free(&self, quanta: usize, addr: usize) {
        let mut kept = self.kept.lock().unwrap();
        if kept[quanta].len() < 8 {
            kept[quanta].push(addr);
            return;
        }
        drop(kept);
        self.arena().xfree(addr, quanta * QUANTUM).unwrap();
    }

    fn adopt(&self, _quanta: usize, _addr: usize) {}

    fn drain(&self) {
        let kept = self.kept.lock().unwrap().iter_mut().map(std::mem::take).collect::<Vec<_>>();
        for (quanta, all) in kept.into_iter().enumerate() {
            all.into_iter().for_each(|addr| self.arena().xfree(addr, quanta * QUANTUM).unwrap());
        }
    }
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Handed out: first address to size in whole quanta, and whether past the cache.
type Live = BTreeMap<usize, (usize, bool)>;

fn insert(live: &mut Live, addr: usize, size: usize, past: bool) {
    let below = live.range(..addr + size).next_back();
    assert!(below.is_none_or(|(&at, &(len, _))| at + len <= addr), "{addr:#x}+{size:#x} overlaps {below:#x?}");
    live.insert(addr, (size, past));
}

fn take(live: &mut Live, random: &mut Random) -> Option<(usize, (usize, bool))> {
    let from = random.below(WORLD);
    let &addr = live.range(from..).next().or_else(|| live.iter().next())?.0;
    Some((addr, live.remove(&addr)?))
}

/// Whether an address of a free segment would do, by trying them.
fn would_do(arena: &Arena<'_, Std>, request: &Request, quantum: usize) -> bool {
    let size = request.size.next_multiple_of(quantum);
    let mut found = false;
    arena.walk(|segment: Segment| {
        if segment.kind == SegmentKind::Free && segment.size >= size {
            found |= (segment.base..=segment.base + segment.size - size)
                .step_by(quantum)
                .any(|addr| meets(request, addr, size));
        }
    });
    found
}

fn meets(request: &Request, addr: usize, size: usize) -> bool {
    addr % request.align.max(1) == request.phase
        && (request.nocross == 0 || addr / request.nocross == (addr + size - 1) / request.nocross)
        && addr >= request.min
        && addr + size - 1 <= request.max
}

#[test]
fn arenas_with_everything_on_and_a_list_agree() {
    let operations = if cfg!(miri) {
        300
    } else if cfg!(debug_assertions) {
        100_000
    } else {
        1_000_000
    };
    let mut random = Random(3);
    let parent: &'static Arena<'static, Std> = leak(Arena::new("parent", 256, &HeapTags));
    // Address 0 is in it.
    parent.add(0, WORLD, Wait::NoSleep).unwrap();
    let stacks: &'static Stacks =
        leak(Stacks { arena: OnceLock::new(), kept: Mutex::new(vec![Vec::new(); QCACHE_MAX + 1]) });
    const CACHED: usize = 8 * QUANTUM;
    assert!(qcache_slab_size(CACHED) <= IMPORT);
    let child = Arena::new("child", QUANTUM, &HeapTags).with_import(parent, IMPORT).with_quantum_cache(stacks, CACHED);
    let child: &'static Arena<'static, Std> = leak(child);
    assert!(stacks.arena.set(child).is_ok());
    // Ranges that somebody keeps only in case.
    let hoard: &'static Mutex<Vec<(usize, usize)>> = leak(Mutex::new(Vec::new()));
    child.set_reclaim(Some(leak(|_wanted: usize| {
        let all = std::mem::take(&mut *hoard.lock().unwrap());
        all.into_iter().for_each(|(addr, size)| child.xfree(addr, size).unwrap());
    })));

    let (mut live, mut held) = (Live::new(), Live::new());
    let mut limit = usize::MAX;
    let (mut met, mut unmet, mut at_zero) = (0_u32, 0_u32, 0_u32);
    for operation in 0..operations {
        let before = (child.counts().imports, child.size(Size::Total));
        let fit = random.one_of(&[Fit::Instant, Fit::Instant, Fit::Best, Fit::First, Fit::Next]);
        match random.below(20) {
            0..=4 => {
                let most = random.one_of(&[CACHED, CACHED, 600, 3000, 9000]);
                let size = 1 + random.below(most);
                match child.alloc(size, fit, Wait::NoSleep) {
                    Ok(addr) => {
                        insert(&mut live, addr, size.next_multiple_of(QUANTUM), false);
                        (met, at_zero) = (met + 1, at_zero + u32::from(addr == 0));
                    }
                    Err(Error::NoSpace) => {
                        assert!(!would_do(child, &Request::new(size), QUANTUM), "{size:#x} would have done");
                        unmet += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            5..=7 => {
                let most = random.one_of(&[100, 1000, 5000]);
                let size = 1 + random.below(most);
                let align = random.one_of(&[0, 64, 1024]);
                let nocross = random.one_of(&[0, 0, 8192]);
                let (min, max) = random.one_of(&[(0, usize::MAX), (0, usize::MAX), (WORLD / 4, WORLD / 2)]);
                let request = Request { size, align, nocross, min, max, fit, ..Request::new(1) };
                match child.xalloc(&request, Wait::NoSleep) {
                    Ok(addr) => {
                        let size = size.next_multiple_of(QUANTUM);
                        assert!(meets(&request, addr, size), "{addr:#x} for {request:?}");
                        insert(&mut live, addr, size, true);
                        met += 1;
                    }
                    Err(Error::NoSpace) => {
                        assert!(!would_do(child, &request, QUANTUM), "{request:?} would have been met");
                        // No import is made that doesn't serve.
                        assert_eq!(child.counts().imports, before.0, "imported in vain for {request:?}");
                        unmet += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            8..=13 => {
                if let Some((addr, (size, past))) = take(&mut live, &mut random) {
                    if past { child.xfree(addr, size) } else { child.free(addr, size) }.unwrap();
                }
            }
            14 => {
                if let Some((addr, (size, past))) = take(&mut live, &mut random) {
                    if past {
                        // Kept in case, until somebody needs it.
                        hoard.lock().unwrap().push((addr, size));
                    } else {
                        child.free(addr, size).unwrap();
                    }
                }
            }
            15 | 16 => match parent.alloc(256 * (1 + random.below(40)), fit, Wait::NoSleep) {
                Ok(addr) => {
                    let size = parent.whatis(addr).unwrap().size;
                    insert(&mut held, addr, size, true);
                }
                Err(error) => assert_eq!(error, Error::NoSpace),
            },
            17 | 18 => {
                if let Some((addr, (size, _))) = take(&mut held, &mut random) {
                    parent.free(addr, size).unwrap();
                }
            }
            _ => {
                limit = random.one_of(&[usize::MAX, usize::MAX, 8 * IMPORT, 32 * IMPORT]);
                child.set_limit((limit != usize::MAX).then_some(limit));
                child.update();
                parent.update();
            }
        }
        let imported = child.size(Size::Total);
        assert!(imported <= before.1 || imported <= limit, "imported beyond the limit");
        let listed = live.values().map(|range| range.0).sum::<usize>();
        let hoarded = hoard.lock().unwrap().iter().map(|range| range.1).sum::<usize>();
        assert_eq!(child.size(Size::Alloc), listed + hoarded + stacks.kept_size());
        assert_eq!(parent.size(Size::Alloc), imported + held.values().map(|range| range.0).sum::<usize>());
        if operation % 64 == 0 {
            child.validate().unwrap();
            parent.validate().unwrap();
        }
    }
    println!("{met} requests met, {unmet} not, address 0 given {at_zero} times");
    assert!(cfg!(miri) || (met > 1000 && unmet > 1000 && at_zero > 10));
    for (addr, (size, past)) in live {
        if past { child.xfree(addr, size) } else { child.free(addr, size) }.unwrap();
    }
    for (addr, size) in std::mem::take(&mut *hoard.lock().unwrap()) {
        child.xfree(addr, size).unwrap();
    }
    stacks.drain();
    assert_eq!((child.size(Size::Total), child.counts().imports), (0, child.counts().releases));
    held.into_iter().for_each(|(addr, (size, _))| parent.free(addr, size).unwrap());
    assert_eq!((parent.size(Size::Alloc), parent.size(Size::MaxFree)), (0, WORLD));
}
