//! The locked arena: imports, caches, tags, sleeping.

use kernmalloc_vmem::{
    Arena, Bucket, Channel, Error, Fit, Functions, HASH_INLINE, HeapTags, QuantumCache, Request, Segment, SegmentKind,
    Size, Std, System, Tag, TagSource, Wait, qcache_slab_size,
};
use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;
use {Fit::Instant, Wait::NoSleep};

type Ids<'a> = Arena<'a, Std>;

fn with_span(name: &'static str, base: usize, size: usize) -> Ids<'static> {
    let arena = Ids::new(name, 1, &HeapTags);
    arena.add(base, size, NoSleep).unwrap();
    arena
}

#[test]
fn a_child_imports_what_it_needs_and_releases_what_is_free() {
    let parent = Ids::new("parent", 16, &HeapTags);
    parent.add(0, 1024, NoSleep).unwrap();
    let child = Ids::new("child", 1, &HeapTags).with_import(&parent, 64);
    let a = child.alloc(10, Instant, NoSleep).unwrap();
    let b = child.alloc(20, Instant, NoSleep).unwrap();
    assert_eq!((a, b, parent.size(Size::Alloc), child.size(Size::Total)), (0, 10, 64, 64));
    let c = child.alloc(100, Instant, NoSleep).unwrap();
    assert_eq!((c, parent.size(Size::Alloc)), (64, 192));
    child.free(a, 10).unwrap();
    assert_eq!(parent.size(Size::Alloc), 192);
    child.free(b, 20).unwrap();
    assert_eq!((parent.size(Size::Alloc), child.size(Size::Total)), (128, 128));
    child.free(c, 100).unwrap();
    assert_eq!((parent.size(Size::Alloc), child.counts().imports, child.counts().releases), (0, 2, 2));
    // What the child was given by `add` stays.
    child.add(5000, 10, NoSleep).unwrap();
    let d = child.alloc(10, Instant, NoSleep).unwrap();
    child.free(d, 10).unwrap();
    assert_eq!((d, child.size(Size::Total)), (5000, 10));
    child.destroy().unwrap();
    parent.destroy().unwrap();
}

/// What a request makes the arena ask its source for; `None`: nothing.
fn asked_for(request: Request, alignment: usize) -> Option<usize> {
    let asked = Mutex::new(None);
    let import = |size, _| {
        assert_eq!(asked.lock().unwrap().replace(size), None, "asked twice");
        // As badly placed as the promise allows.
        Some((alignment * 0x1001, size))
    };
    let source = Functions::new(import, |_, _| {}, alignment);
    let arena = Ids::new("asking", 1, &HeapTags).with_import(&source, 1);
    if let Ok(addr) = arena.xalloc(&request, NoSleep) {
        arena.xfree(addr, request.size).unwrap();
    } else {
        assert_eq!(*asked.lock().unwrap(), None, "a useless import for {request:?}");
    }
    drop(arena);
    asked.into_inner().unwrap()
}

#[test]
fn nothing_is_imported_that_might_not_serve_the_request() {
    let any = Request::new(10);
    assert_eq!(asked_for(any, 1), Some(10));
    assert_eq!(asked_for(Request { min: 1, ..any }, 1), None);
    assert_eq!(asked_for(Request { max: usize::MAX - 1, ..any }, 1), None);
    assert_eq!(asked_for(Request { align: 64, ..any }, 1), Some(10 + 63));
    assert_eq!(asked_for(Request { align: 64, ..any }, 64), Some(10));
    assert_eq!(asked_for(Request { align: 64, phase: 5, ..any }, 64), Some(15));
    assert_eq!(asked_for(Request { nocross: 16, ..any }, 64), Some(10));
    assert_eq!(asked_for(Request { nocross: 16, ..any }, 1), Some(19));
    assert_eq!(asked_for(Request { align: 64, nocross: 16, phase: 8, ..any }, 1), None, "impossible");
    assert_eq!(asked_for(Request { size: usize::MAX, align: 64, ..any }, 1), None, "no such size");
}

#[test]
fn a_source_that_gives_less_than_asked_gets_it_back() {
    let given = AtomicUsize::new(0);
    let source = Functions::new(
        |size, _| {
            given.fetch_add(1, SeqCst);
            Some((0, size / 2))
        },
        |_, _| {
            given.fetch_sub(1, SeqCst);
        },
        1,
    );
    let arena = Ids::new("cheated", 1, &HeapTags).with_import(&source, 1);
    assert_eq!(arena.alloc(10, Instant, NoSleep), Err(Error::NoSpace));
    assert_eq!((given.load(SeqCst), arena.size(Size::Total)), (0, 0));
}

#[test]
fn the_limit_is_kept_by_imports() {
    let parent = with_span("parent", 0, 1000);
    let child = Ids::new("child", 1, &HeapTags).with_import(&parent, 1);
    child.set_limit(Some(100));
    let a = child.alloc(60, Instant, NoSleep).unwrap();
    assert_eq!(child.alloc(41, Instant, NoSleep), Err(Error::NoSpace));
    let b = child.alloc(40, Instant, NoSleep).unwrap();
    assert_eq!((child.size(Size::Total), parent.size(Size::Alloc)), (100, 100));
    child.set_limit(None);
    let c = child.alloc(41, Instant, NoSleep).unwrap();
    for (addr, size) in [(a, 60), (b, 40), (c, 41)] {
        child.free(addr, size).unwrap();
    }
}

#[test]
fn the_limit_is_asked_before_and_after_an_import() {
    let asked = AtomicUsize::new(0);
    let out = AtomicUsize::new(0);
    let source = Functions::new(
        |size, _| {
            asked.fetch_add(1, SeqCst);
            out.fetch_add(2 * size, SeqCst);
            Some((0, 2 * size))
        },
        |_, size| {
            out.fetch_sub(size, SeqCst);
        },
        1,
    );
    let arena = Ids::new("generous", 1, &HeapTags).with_import(&source, 1);
    arena.set_limit(Some(10));
    assert_eq!(arena.alloc(11, Instant, NoSleep), Err(Error::NoSpace));
    assert_eq!(asked.load(SeqCst), 0, "a useless import");
    assert_eq!(arena.alloc(6, Instant, NoSleep), Err(Error::NoSpace));
    assert_eq!((asked.load(SeqCst), out.load(SeqCst), arena.size(Size::Total)), (1, 0, 0));
    assert_eq!(arena.alloc(5, Instant, NoSleep), Ok(0));
    arena.free(0, 5).unwrap();
}

#[test]
fn an_empty_arena_calls_reclaim_once_and_looks_again() {
    let arena: &Ids = Box::leak(Box::new(with_span("ids", 0, 4)));
    let kept = Mutex::new(vec![arena.alloc(4, Instant, NoSleep).unwrap()]);
    let calls = Mutex::new(Vec::new());
    let reclaim: &(dyn Fn(usize) + Sync) = Box::leak(Box::new(move |size| {
        calls.lock().unwrap().push(size);
        assert!(calls.lock().unwrap().len() < 3, "called again and again");
        if let Some(addr) = kept.lock().unwrap().pop() {
            arena.free(addr, 4).unwrap();
        }
    }));
    arena.set_reclaim(Some(reclaim));
    assert_eq!(arena.alloc(3, Instant, NoSleep), Ok(0));
    assert_eq!(arena.alloc(3, Instant, NoSleep), Err(Error::NoSpace));
    assert_eq!(arena.counts().fails, 1);
    arena.set_reclaim(None);
    assert_eq!(arena.alloc(3, Instant, NoSleep), Err(Error::NoSpace));
}

/// The plainest quantum cache: a stack per size.
struct Stacks<S: System> {
    arena: OnceLock<&'static Arena<'static, S>>,
    kept: [Mutex<Vec<usize>>; 16],
}

impl<S: System> QuantumCache for Stacks<S> {
    fn alloc(&self, quanta: usize, wait: Wait) -> Option<usize> {
        let kept = self.kept[quanta - 1].lock().unwrap().pop();
        kept.or_else(|| self.arena.get()?.xalloc(&Request::new(quanta), wait).ok())
    }

    fn free(&self, quanta: usize, addr: usize) {
        self.kept[quanta - 1].lock().unwrap().push(addr);
    }

    fn adopt(&self, _quanta: usize, _addr: usize) {}

    fn drain(&self) {
        for (index, kept) in self.kept.iter().enumerate() {
            for addr in std::mem::take(&mut *kept.lock().unwrap()) {
                self.arena.get().unwrap().xfree(addr, index + 1).unwrap();
            }
        }
    }
}

fn with_stacks<S: System>(size: usize) -> &'static Arena<'static, S> {
    let stacks: &'static Stacks<S> = Box::leak(Box::new(Stacks { arena: OnceLock::new(), kept: Default::default() }));
    let arena: &'static Arena<S> =
        Box::leak(Box::new(Arena::new("cached", 1, &HeapTags).with_quantum_cache(stacks, 8)));
    assert!(stacks.arena.set(arena).is_ok());
    arena.add(0, size, NoSleep).unwrap();
    arena
}

/// A system with a channel of its own: what happens in other tests wakes nobody here, nor makes a cache drain.
macro_rules! system {
    ($name:ident) => {
        struct $name;

        impl System for $name {
            type Lock = <Std as System>::Lock;

            fn channel() -> &'static Channel {
                static CHANNEL: Channel = Channel::new();
                &CHANNEL
            }

            fn wait(word: &AtomicU32, seen: u32) {
                Std::wait(word, seen);
            }

            fn wake_all(word: &AtomicU32) {
                Std::wake_all(word);
            }
        }
    };
}

#[test]
fn caches_serve_small_sizes_and_address_0_among_them() {
    system!(Awake);
    let arena = with_stacks::<Awake>(100);
    assert_eq!(arena.alloc(3, Instant, NoSleep), Ok(0));
    arena.free(0, 3).unwrap();
    assert_eq!(arena.size(Size::Alloc), 3, "kept in the cache");
    assert_eq!(arena.alloc(3, Instant, NoSleep), Ok(0));
    arena.free(0, 3).unwrap();
    // The whole arena can be had only if the cache lets go.
    assert_eq!(arena.alloc(100, Instant, NoSleep), Ok(0));
    assert_eq!(arena.alloc(1, Instant, NoSleep), Err(Error::NoSpace));
    arena.free(0, 100).unwrap();
    assert_eq!(arena.size(Size::Alloc), 0);
}

#[test]
fn slabs_of_caches_waste_a_quarter_at_most() {
    assert_eq!((qcache_slab_size(16), qcache_slab_size(5), qcache_slab_size(4096 * 16)), (64, 16, 4096 * 64));
    assert!((1..10000).all(|max| (qcache_slab_size(max) % max) * 4 <= qcache_slab_size(max)));
}

/// Runs `sleeper` in a thread; asserts that it sleeps (in `arena`) until `waker` has run, and then doesn't.
fn sleeps_until<S: System, T: Send>(
    arena: &Arena<'_, S>,
    sleeper: impl FnOnce() -> T + Send,
    waker: impl FnOnce(),
) -> T {
    let woken = AtomicBool::new(false);
    let waits = arena.counts().waits;
    thread::scope(|scope| {
        let sleeping = scope.spawn(|| {
            let result = sleeper();
            assert!(woken.load(SeqCst), "did not sleep");
            result
        });
        awake(|| arena.counts().waits > waits);
        woken.store(true, SeqCst);
        waker();
        awake(|| sleeping.is_finished());
        sleeping.join().unwrap()
    })
}

/// A thread that sleeps for ever can't be failed in any other way.
fn awake(finished: impl Fn() -> bool) {
    for _ in 0..3000 {
        if finished() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    eprintln!("a thread sleeps for ever");
    std::process::abort();
}

#[test]
fn a_request_that_may_sleep_waits_for_a_free() {
    system!(Alone);
    let arena = Arena::<Alone>::new("ids", 1, &HeapTags);
    arena.add(0, 4, NoSleep).unwrap();
    arena.alloc(4, Instant, NoSleep).unwrap();
    let got = sleeps_until(&arena, || arena.alloc(2, Instant, Wait::Sleep), || arena.free(0, 4).unwrap());
    assert_eq!(got, Ok(0));
    // ... or for an addition, or for a tail given back.
    let got = sleeps_until(&arena, || arena.alloc(10, Instant, Wait::Sleep), || arena.add(100, 10, NoSleep).unwrap());
    assert_eq!(got, Ok(100));
    let got =
        sleeps_until(&arena, || arena.alloc(4, Instant, Wait::Sleep), || arena.extend_span(110, 4, NoSleep).unwrap());
    assert_eq!(got, Ok(110));
    let got = sleeps_until(
        &arena,
        || arena.alloc(5, Instant, Wait::Sleep),
        || arena.shrink_in_place(100, 10, 5, NoSleep).unwrap(),
    );
    assert_eq!(got, Ok(105));
    assert!(arena.counts().waits <= 8, "{} waits for 4 frees", arena.counts().waits);
}

#[test]
fn a_child_waits_for_its_parent_and_a_parent_for_its_child() {
    system!(Alone);
    let parent = Arena::<Alone>::new("parent", 1, &HeapTags);
    parent.add(0, 8, NoSleep).unwrap();
    let child = Arena::<Alone>::new("child", 1, &HeapTags).with_import(&parent, 8);
    parent.alloc(1, Instant, NoSleep).unwrap();
    let got = sleeps_until(&child, || child.alloc(5, Instant, Wait::Sleep), || parent.free(0, 1).unwrap());
    assert_eq!(got, Ok(0));
    let got = sleeps_until(&parent, || parent.alloc(8, Instant, Wait::Sleep), || child.free(0, 5).unwrap());
    assert_eq!(got, Ok(0));
}

#[test]
fn a_range_that_goes_into_a_cache_wakes_who_needs_it() {
    system!(Alone);
    let arena = with_stacks::<Alone>(8);
    arena.alloc(8, Instant, NoSleep).unwrap();
    let got = sleeps_until(arena, || arena.xalloc(&Request::new(8), Wait::Sleep), || arena.free(0, 8).unwrap());
    assert_eq!(got, Ok(0));
}

#[test]
fn a_range_that_went_into_a_cache_just_before_the_sleep_is_found() {
    system!(Alone);
    /// Holds all of the arena; the first drain comes just too early.
    struct Late {
        arena: OnceLock<&'static Arena<'static, Alone>>,
        drains: AtomicUsize,
    }
    impl QuantumCache for Late {
        fn alloc(&self, _quanta: usize, _wait: Wait) -> Option<usize> {
            None
        }
        fn free(&self, _quanta: usize, _addr: usize) {}
        fn adopt(&self, _quanta: usize, _addr: usize) {}
        fn drain(&self) {
            if self.drains.fetch_add(1, SeqCst) == 1 {
                self.arena.get().unwrap().xfree(0, 4).unwrap();
            }
        }
    }
    let late: &'static Late = Box::leak(Box::new(Late { arena: OnceLock::new(), drains: AtomicUsize::new(0) }));
    let arena: &'static Arena<Alone> =
        Box::leak(Box::new(Arena::new("late", 1, &HeapTags).with_quantum_cache(late, 4)));
    assert!(late.arena.set(arena).is_ok());
    arena.add(0, 4, NoSleep).unwrap();
    arena.xalloc(&Request::new(4), NoSleep).unwrap();
    let sleeping = thread::spawn(|| arena.xalloc(&Request::new(4), Wait::Sleep));
    awake(|| sleeping.is_finished());
    assert_eq!(sleeping.join().unwrap(), Ok(0));
}

/// A cache gets back what it handed out and what it was told of, whichever way a request went: at once, by the reserve, or asleep.
#[test]
fn a_cache_knows_every_range_that_comes_back_to_it() {
    system!(Alone);
    /// Has a range every other time, and keeps book.
    struct Ledger {
        arena: OnceLock<&'static Arena<'static, Alone>>,
        asked: AtomicUsize,
        out: Mutex<Vec<(usize, usize)>>,
        adopted: AtomicUsize,
    }
    impl Ledger {
        fn arena(&self) -> &'static Arena<'static, Alone> {
            self.arena.get().unwrap()
        }
    }
    impl QuantumCache for Ledger {
        fn alloc(&self, quanta: usize, _wait: Wait) -> Option<usize> {
            let has = self.asked.fetch_add(1, SeqCst).is_multiple_of(2);
            let addr = has.then(|| self.arena().xalloc(&Request::new(quanta), NoSleep).ok()).flatten()?;
            self.out.lock().unwrap().push((quanta, addr));
            Some(addr)
        }
        fn free(&self, quanta: usize, addr: usize) {
            let mut out = self.out.lock().unwrap();
            let at = out.iter().position(|&range| range == (quanta, addr)).expect("a range that the cache knows");
            out.swap_remove(at);
            drop(out);
            self.arena().xfree(addr, quanta).unwrap();
        }
        fn adopt(&self, quanta: usize, addr: usize) {
            self.adopted.fetch_add(1, SeqCst);
            self.out.lock().unwrap().push((quanta, addr));
        }
        fn drain(&self) {}
    }
    let ledger: &'static Ledger = Box::leak(Box::new(Ledger {
        arena: OnceLock::new(),
        asked: AtomicUsize::new(0),
        out: Mutex::default(),
        adopted: AtomicUsize::new(0),
    }));
    let arena: &'static Arena<Alone> =
        Box::leak(Box::new(Arena::new("ledger", 1, &HeapTags).with_quantum_cache(ledger, 4).with_reserve(8)));
    assert!(ledger.arena.set(arena).is_ok());
    arena.add(0, 64, NoSleep).unwrap();
    let mut held: Vec<_> = (0..20).map(|n| (arena.alloc(1 + n % 4, Instant, NoSleep).unwrap(), 1 + n % 4)).collect();
    held.push((arena.alloc(3, Instant, Wait::Reserve).unwrap(), 3));
    assert_eq!(ledger.adopted.load(SeqCst), 11);
    assert_eq!(arena.alloc(5, Instant, NoSleep), Ok(53));
    assert_eq!(ledger.adopted.load(SeqCst), 11, "too large for the cache");
    // Full but for six: sleeps, and is served by the arena.
    held.push((arena.xalloc(&Request::new(6), NoSleep).unwrap(), 6));
    let got = sleeps_until(arena, || arena.alloc(2, Instant, Wait::Sleep), || arena.xfree(58, 6).unwrap());
    held.pop();
    held.push((got.unwrap(), 2));
    assert_eq!(ledger.adopted.load(SeqCst), 12);
    held.into_iter().for_each(|(addr, size)| arena.free(addr, size).unwrap());
    arena.free(53, 5).unwrap();
    assert!(ledger.out.lock().unwrap().is_empty());
    assert_eq!(arena.size(Size::Free), 64);
}

#[test]
fn threads_never_hold_one_number_twice() {
    const IDS: usize = 64;
    let rounds = if cfg!(miri) { 20 } else { 20_000 };
    let parent = with_span("parent", 0, IDS);
    let child = Ids::new("child", 1, &HeapTags).with_import(&parent, 8);
    let held: [AtomicU8; IDS] = [const { AtomicU8::new(0) }; IDS];
    thread::scope(|scope| {
        for id in 0..4usize {
            let (parent, child, held) = (&parent, &child, &held);
            scope.spawn(move || {
                let mut random = id;
                for _ in 0..rounds {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    // Nobody sleeps holding anything, so there is no deadlock; the largest need the whole range.
                    let from_parent = random >> 40 & 3 == 0;
                    let size = if random >> 50 & 255 == 0 { IDS } else { 1 + (random >> 45) % 20 };
                    let addr = if from_parent {
                        parent.alloc(size, Instant, Wait::Sleep)
                    } else {
                        child.alloc(size, Instant, Wait::Sleep)
                    };
                    let addr = addr.unwrap();
                    assert!(held[addr..addr + size].iter().all(|id| id.fetch_add(1, SeqCst) == 0));
                    assert!(held[addr..addr + size].iter().all(|id| id.fetch_sub(1, SeqCst) == 1));
                    if from_parent { parent.free(addr, size) } else { child.free(addr, size) }.unwrap();
                }
            });
        }
    });
    child.validate().unwrap();
    parent.validate().unwrap();
    assert_eq!((child.size(Size::Total), parent.size(Size::Alloc)), (0, 0));
}

/// Tags of the heap, counted; one request in `fail_each` fails.
struct Scarce {
    out: AtomicUsize,
    asked: AtomicUsize,
    fail_each: usize,
}

// SAFETY: 1. fresh blocks, one tag each, so that many are asked for; tables are HeapTags'.
unsafe impl TagSource for Scarce {
    fn get(&self, _wait: Wait) -> Option<(NonNull<Tag>, usize)> {
        if self.asked.fetch_add(1, SeqCst).is_multiple_of(self.fail_each) {
            return None;
        }
        self.out.fetch_add(1, SeqCst);
        // SAFETY: a tag has a size.
        Some((NonNull::new(unsafe { std::alloc::alloc(std::alloc::Layout::new::<Tag>()) })?.cast(), 1))
    }

    unsafe fn put(&self, tag: NonNull<Tag>) {
        self.out.fetch_sub(1, SeqCst);
        // SAFETY: 1. of `get`, with this layout.
        unsafe { std::alloc::dealloc(tag.as_ptr().cast(), std::alloc::Layout::new::<Tag>()) };
    }

    fn get_buckets(&self, count: usize) -> Option<NonNull<Bucket>> {
        if self.asked.fetch_add(1, SeqCst).is_multiple_of(self.fail_each) {
            return None;
        }
        self.out.fetch_add(1, SeqCst);
        HeapTags.get_buckets(count)
    }

    unsafe fn put_buckets(&self, mem: NonNull<Bucket>, count: usize) {
        self.out.fetch_sub(1, SeqCst);
        // SAFETY: 1. is the caller's.
        unsafe { HeapTags.put_buckets(mem, count) };
    }
}

#[test]
fn whatever_the_tag_source_refuses_nothing_is_lost() {
    for fail_each in [2, 3, 5, 17] {
        let tags = Scarce { out: AtomicUsize::new(0), asked: AtomicUsize::new(0), fail_each };
        {
            let parent = Ids::new("parent", 1, &tags);
            while parent.add(0, 100_000, NoSleep).is_err() {}
            let child = Ids::new("child", 1, &tags).with_import(&parent, 128);
            let mut live = Vec::new();
            let mut refused = 0;
            for step in 0..3000usize {
                let size = 1 + step * 7 % 50;
                match child.alloc(size, Instant, NoSleep) {
                    Ok(addr) => live.push((addr, size)),
                    Err(error) => {
                        assert!(matches!(error, Error::NoTags | Error::NoSpace));
                        refused += 1;
                    }
                }
                if step % 3 == 0 && !live.is_empty() {
                    let (addr, size) = live.swap_remove(step * 31 % live.len());
                    child.free(addr, size).unwrap();
                }
                if step % 100 == 0 {
                    child.validate().unwrap();
                    parent.validate().unwrap();
                    child.update();
                }
            }
            assert!(refused > 0, "the test tests nothing");
            assert_eq!(child.size(Size::Alloc), live.iter().map(|live| live.1).sum::<usize>());
            assert_eq!(child.size(Size::Total), parent.size(Size::Alloc));
            for (addr, size) in live {
                child.free(addr, size).unwrap();
            }
            assert_eq!(parent.size(Size::Alloc), 0);
            child.destroy().unwrap();
            parent.destroy().unwrap();
        }
        assert_eq!(tags.out.load(SeqCst), 0, "tags were lost");
    }
}

#[repr(align(4096))]
struct Page(#[expect(dead_code, reason = "memory is only handed out")] MaybeUninit<[u8; 4096]>);

/// See [`Arena::with_reserve`]: one in the source at a time.
const RESERVE: usize = 4;

#[test]
fn the_reserve_is_for_those_who_say_so() {
    // Nothing but the tags donated here.
    let tags = Scarce { out: AtomicUsize::new(0), asked: AtomicUsize::new(0), fail_each: 1 };
    let arena = std::mem::ManuallyDrop::new(Ids::new("pages", 1, &tags).with_reserve(4));
    let own: &'static mut [MaybeUninit<Tag>] = Box::leak((0..8).map(|_| MaybeUninit::uninit()).collect());
    // SAFETY: leaked; and the arena does not end, so that they are put nowhere.
    unsafe { arena.donate_tags(NonNull::from(own).cast(), 8) };
    arena.add(0, 100, NoSleep).unwrap();
    let mut given = 0;
    assert_eq!(arena.alloc(1, Instant, NoSleep), Ok(given));
    // 5 are left: an operation might need 2, and 4 must remain.
    assert_eq!(arena.alloc(1, Instant, NoSleep), Err(Error::NoTags));
    assert_eq!(tags.asked.load(SeqCst), 1);
    while arena.alloc(1, Instant, Wait::Reserve).is_ok() {
        given += 1;
    }
    assert_eq!((given, arena.tags_free(), tags.asked.load(SeqCst)), (4, 1, 1), "without a call of the source");
}

/// A machine's memory, whose addresses are in an arena that gets its tags from that memory: the loop that a kernel has.
struct Machine {
    memory: Box<[UnsafeCell<Page>]>,
    /// Serves until the arena does.
    boot: Mutex<Vec<usize>>,
    arena: OnceLock<&'static Ids<'static>>,
    inside: Mutex<()>,
}

// SAFETY: the memory is only handed out by address.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

// SAFETY: 1. each page is handed out once: by the boot list, or by the arena to whom the others belong.
unsafe impl TagSource for Machine {
    fn get(&self, _wait: Wait) -> Option<(NonNull<Tag>, usize)> {
        // One at a time, so that a reserve for one suffices.
        let _inside = self.inside.lock().unwrap();
        let page = match self.boot.lock().unwrap().pop() {
            Some(page) => page,
            None => self.arena.get()?.alloc(1, Instant, Wait::Reserve).ok()?,
        };
        // The arena's own reserve first, then who asked.
        let (mem, count) = (NonNull::new(self.memory[page].get())?.cast::<Tag>(), size_of::<Page>() / size_of::<Tag>());
        let mut own = 0;
        if let Some(arena) = self.arena.get() {
            own = RESERVE.saturating_sub(arena.tags_free());
            // SAFETY: within the page, given to nobody else, and never put anywhere.
            unsafe { arena.donate_tags(mem, own) };
        }
        // SAFETY: own is less than a page of tags.
        Some((unsafe { mem.add(own) }, count - own))
    }

    unsafe fn put(&self, _tag: NonNull<Tag>) {}
}

#[test]
fn an_arena_may_feed_its_own_tags() {
    const PAGES: usize = if cfg!(miri) { 12 } else { 400 };
    let machine: &'static Machine = Box::leak(Box::new(Machine {
        memory: (0..PAGES).map(|_| UnsafeCell::new(Page(MaybeUninit::uninit()))).collect(),
        boot: Mutex::new(vec![0]),
        arena: OnceLock::new(),
        inside: Mutex::new(()),
    }));
    let pages: &'static Ids = Box::leak(Box::new(Ids::new("pages", 1, machine).with_reserve(RESERVE)));
    assert!(machine.arena.set(pages).is_ok());
    pages.add(1, PAGES - 1, NoSleep).unwrap();
    let others = Ids::new("others", 1, machine);
    others.add(0, usize::MAX, NoSleep).unwrap();
    // Every second of many numbers, so that every number costs tags; all pages go into them.
    let mut count = 0;
    let request = Request { align: 2, ..Request::new(1) };
    let error = loop {
        match others.xalloc(&request, NoSleep) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, Error::NoTags);
    assert!(pages.alloc(1, Instant, NoSleep).unwrap_err().is_shortage());
    assert_eq!(pages.size(Size::Free), 0);
    assert!(count > (PAGES - 4) * 60 / 2, "{count} numbers from {PAGES} pages");
    pages.validate().unwrap();
    others.validate().unwrap();
}

#[test]
fn the_hash_follows_the_number_of_segments() {
    let arena = with_span("ids", 0, 100_000);
    for id in 0..10_000 {
        assert_eq!(arena.alloc(3, Instant, NoSleep), Ok(id * 3));
    }
    assert!(arena.counts().raw.buckets >= 4096, "{:?}", arena.counts());
    for id in 0..10_000 {
        arena.free(id * 3, 3).unwrap();
    }
    arena.update();
    assert_eq!(arena.counts().raw.buckets, HASH_INLINE);
}

#[test]
fn a_table_that_was_refused_is_not_asked_for_until_the_next_update() {
    struct Reluctant(AtomicUsize);
    // SAFETY: 1. is HeapTags' promise.
    unsafe impl TagSource for Reluctant {
        fn get(&self, wait: Wait) -> Option<(NonNull<Tag>, usize)> {
            HeapTags.get(wait)
        }
        unsafe fn put(&self, tag: NonNull<Tag>) {
            // SAFETY: 1. is the caller's.
            unsafe { HeapTags.put(tag) };
        }
        fn get_buckets(&self, count: usize) -> Option<NonNull<Bucket>> {
            if self.0.fetch_add(1, SeqCst) == 0 { None } else { HeapTags.get_buckets(count) }
        }
        unsafe fn put_buckets(&self, mem: NonNull<Bucket>, count: usize) {
            // SAFETY: 1. is the caller's.
            unsafe { HeapTags.put_buckets(mem, count) };
        }
    }
    let tags = Reluctant(AtomicUsize::new(0));
    let arena = Ids::new("ids", 1, &tags);
    arena.add(0, 1000, NoSleep).unwrap();
    (0..100).for_each(|id| assert_eq!(arena.alloc(1, Instant, NoSleep), Ok(id)));
    assert_eq!(tags.0.load(SeqCst), 1);
    arena.update();
    assert_eq!((tags.0.load(SeqCst), arena.counts().raw.buckets), (2, 128));
    // From now on as ever.
    (100..300).for_each(|id| assert_eq!(arena.alloc(1, Instant, NoSleep), Ok(id)));
    assert_eq!((tags.0.load(SeqCst), arena.counts().raw.buckets), (3, 512));
    (0..300).for_each(|id| arena.free(id, 1).unwrap());
}

#[test]
fn the_end_of_an_arena_tells_of_what_is_left() {
    let parent = with_span("parent", 0, 100);
    let child = Ids::new("child", 1, &HeapTags).with_import(&parent, 16);
    let ids: Vec<usize> = (0..3).map(|_| child.alloc(10, Instant, NoSleep).unwrap()).collect();
    child.free(ids[0], 10).unwrap();
    let leak = Segment { kind: SegmentKind::Allocated, base: 16, size: 10 };
    assert_eq!(child.destroy(), Err(leak));
    assert_eq!(parent.size(Size::Alloc), 32, "what is in use isn't released");
}

/// In the layouts that scripts know from FreeBSD's debugger.
#[test]
fn an_arena_is_shown_as_ddb_shows_it() {
    let mut tags = [const { std::mem::MaybeUninit::<kernmalloc_vmem::Tag>::uninit() }; 16];
    let mut arena = kernmalloc_vmem::RawArena::new("dma", 0x1000);
    // SAFETY: the tags outlive the arena, and nothing else uses them.
    unsafe { arena.donate_tags(std::ptr::NonNull::from(&mut tags).cast(), 16) };
    arena.add(0x10_0000, 0x10_0000).unwrap();
    let blocks = [0x1000, 0x1000, 0x3000, 0x4_0000].map(|size| arena.alloc(size, Instant).unwrap());
    arena.add_imported(0x80_0000, 0x2_8000).unwrap();
    assert_eq!(arena.alloc(0x2_8000, Fit::Best), Ok(0x80_0000));
    arena.free(blocks[1], 0x1000).unwrap();
    arena.free(blocks[2], 0x3000).unwrap();
    let mut text = String::new();
    arena.show(&mut text).unwrap();
    let expected = format!(
        "vmem {:p} 'dma'\n\
         \tquantum:\t4096\n\
         \tsize:\t1212416\n\
         \tinuse:\t430080\n\
         \tfree:\t782336\n\
         \tbusy tags:\t3\n\
         \tfree tags:\t9\n\
         \t\t\tinuse\tsize\t\tfree\tsize\n\
         \t4096            1\t4096            0\t0               \n\
         \t16384           0\t0               1\t16384           \n\
         \t131072          1\t163840          0\t0               \n\
         \t262144          1\t262144          0\t0               \n\
         \t524288          0\t0               1\t765952          \n",
        &raw const arena
    );
    assert_eq!(text, expected);
    let mut dump = String::new();
    arena.show_dump(&mut dump).unwrap();
    // Addresses of tags are what they are; each is one of the array's.
    let range = tags.as_ptr_range();
    let range = range.start as usize..range.end as usize;
    let without: String = dump
        .lines()
        .map(|line| match line.strip_prefix("\t0x").and_then(|rest| rest.split_once(": ")) {
            Some((addr, rest)) => {
                assert!(range.contains(&usize::from_str_radix(addr, 16).unwrap()), "{line}");
                format!("\tTAG: {rest}\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    let expected = format!(
        "vmem {:p} 'dma'\n\
         \tTAG: 100000 100000, 2(static span)\n\
         \tTAG: 100000 1000, 4(busy)\n\
         \tTAG: 101000 4000, 3(free)\n\
         \tTAG: 105000 40000, 4(busy)\n\
         \tTAG: 145000 bb000, 3(free)\n\
         \tTAG: 800000 28000, 1(span)\n\
         \tTAG: 800000 28000, 4(busy)\n\
         freelist[3]\n\
         \tTAG: 101000 4000, 3(free)\n\
         freelist[33]\n\
         \tTAG: 145000 bb000, 3(free)\n",
        &raw const arena
    );
    assert_eq!(without, expected);
}

#[test]
fn an_arena_can_be_read() {
    let parent = with_span("dma", 0x8000, 0x8000);
    let arena = Ids::new("ring", 1, &HeapTags).with_import(&parent, 0x1000);
    arena.alloc(0x800, Instant, NoSleep).unwrap();
    arena.add(0, 0x10, NoSleep).unwrap();
    let mut text = String::new();
    arena.print(&mut text).unwrap();
    let expected = "\
arena ring: quantum 0x1
  0x1010 in 2 spans: 0x800 allocated in 1, 0x810 free in 2, largest 0x800
  tags 63 free 58, buckets 16
  allocated 1 times, freed 0, no space 1
  free of size 0x10: 1, together 0x10
  free of size 0x800: 1, together 0x800
  imports 1, releases 0, limit none; slept 0, failed 0
  0x0..=0xf 0x10 span
    0x0..=0xf 0x10 free
  0x8000..=0x8fff 0x1000 span, imported
    0x8000..=0x87ff 0x800 allocated
    0x8800..=0x8fff 0x800 free
";
    assert_eq!(text, expected);
    arena.set_limit(Some(0x2000));
    let mut summary = String::new();
    arena.print_summary(&mut summary).unwrap();
    assert_eq!(
        summary,
        expected.lines().take(6).map(|line| format!("{line}\n")).collect::<String>()
            + "  imports 1, releases 0, limit 0x2000; slept 0, failed 0\n"
    );
    assert_eq!(arena.whatis(0x8801).map(|segment| segment.base), Some(0x8800));
    let mut count = 0;
    arena.walk(|_| count += 1);
    assert_eq!((count, arena.roundup_size(5)), (5, Some(5)));
}

#[test]
fn sleepers_are_served_in_the_order_in_which_they_came() {
    const SLEEPERS: usize = 8;
    system!(Alone);
    let arena = Arena::<Alone>::new("in line", 1, &HeapTags);
    arena.add(0, 7, NoSleep).unwrap();
    arena.alloc(7, Instant, NoSleep).unwrap();
    let order = Mutex::new(Vec::new());
    // Sizes 4 to 7 are of one class, and of 7 only one of them can be had.
    let size = |name: usize| 4 + name * 3 % 4;
    thread::scope(|scope| {
        for name in 0..SLEEPERS {
            let (arena, order) = (&arena, &order);
            scope.spawn(move || {
                arena.alloc(size(name), Instant, Wait::Sleep).unwrap();
                order.lock().unwrap().push(name);
            });
            // Nothing is freed meanwhile, so that each of them goes to sleep once.
            awake(|| arena.counts().waits == name as u64 + 1);
        }
        arena.free(0, 7).unwrap();
        for served in 1..=SLEEPERS {
            awake(|| order.lock().unwrap().len() == served);
            let name = order.lock().unwrap()[served - 1];
            arena.free(0, size(name)).unwrap();
        }
    });
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(arena.size(Size::Alloc), 0);
}

#[test]
fn nobody_who_may_sleep_overtakes_a_sleeper_of_his_class() {
    system!(Alone);
    let arena = Arena::<Alone>::new("in line", 1, &HeapTags);
    arena.add(0, 7, NoSleep).unwrap();
    assert_eq!([arena.alloc(4, Instant, NoSleep), arena.alloc(3, Instant, NoSleep)], [Ok(0), Ok(4)]);
    let order = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let sleep = |size: usize| {
            let (arena, order) = (&arena, &order);
            scope.spawn(move || {
                arena.alloc(size, Instant, Wait::Sleep).unwrap();
                order.lock().unwrap().push(size);
            });
        };
        sleep(7);
        awake(|| arena.counts().waits == 1);
        // It looks, and sleeps again.
        arena.free(0, 4).unwrap();
        awake(|| arena.counts().waits == 2);
        // What is free would do for this one.
        sleep(4);
        awake(|| {
            if !order.lock().unwrap().is_empty() {
                // Not by a panic: who sleeps would keep the scope from ending.
                eprintln!("a sleeper was overtaken");
                std::process::abort();
            }
            arena.counts().waits == 3
        });
        // Who may not sleep takes what there is, and so does who wants little.
        assert_eq!(arena.alloc(4, Instant, NoSleep), Ok(0));
        arena.free(0, 4).unwrap();
        assert_eq!(arena.alloc(1, Instant, Wait::Sleep), Ok(0));
        arena.free(0, 1).unwrap();
        arena.free(4, 3).unwrap();
        awake(|| order.lock().unwrap().len() == 1);
        arena.free(0, 7).unwrap();
        awake(|| order.lock().unwrap().len() == 2);
        arena.free(0, 4).unwrap();
    });
    assert_eq!(*order.lock().unwrap(), [7, 4]);
}

#[test]
fn a_request_that_may_sleep_is_reported_where_sleep_is_forbidden() {
    static REPORTS: Mutex<Vec<(&str, &str)>> = Mutex::new(Vec::new());
    struct Strict;

    impl System for Strict {
        type Lock = <Std as System>::Lock;

        fn channel() -> &'static Channel {
            Std::channel()
        }

        fn wait(_word: &AtomicU32, _seen: u32) {
            panic!("slept in an interrupt");
        }

        fn wake_all(_word: &AtomicU32) {}

        fn may_sleep() -> Result<(), &'static str> {
            Err("an interrupt")
        }

        fn sleep_forbidden(arena: &'static str, what: &'static str) {
            REPORTS.lock().unwrap().push((arena, what));
        }
    }

    let arena = Arena::<Strict>::new("strict", 1, &HeapTags);
    arena.add(0, 10, NoSleep).unwrap();
    // Also when there is space; and it fails, rather than sleep, when there is none.
    assert_eq!(arena.alloc(10, Instant, Wait::Sleep), Ok(0));
    assert_eq!(arena.alloc(1, Instant, Wait::Sleep), Err(Error::NoSpace));
    assert_eq!(arena.xalloc(&Request::new(1), Wait::Sleep), Err(Error::NoSpace));
    assert_eq!(*REPORTS.lock().unwrap(), [("strict", "an interrupt"); 3]);
    assert_eq!(arena.alloc(1, Instant, NoSleep), Err(Error::NoSpace));
    assert_eq!(REPORTS.lock().unwrap().len(), 3);
}
