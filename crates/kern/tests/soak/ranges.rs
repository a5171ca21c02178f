//! vmem(9): a parent, a child that imports from it, and one with quantum caches that are zones of the same machine. Tags and imports fail
//! when told to. No number is ever held twice.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use kern::zone::{Callbacks, Flags, How, RawZone, Reclaim, Source as ItemSource, Wait as ZoneWait};
use platform::Platform as _;
use platform::fake::{Fake, FakeLock};
use vmem::{Arena, Channel, Error, Fit, QuantumCache, Request, Size, Source, System, Tag, TagSource, Wait};

use crate::Random;
use crate::common::World;
use crate::machine::{Soak, count};

/// Sleepers of arenas sleep as all others on the machine do.
pub(crate) struct OnFake;

impl System for OnFake {
    type Lock = FakeLock;

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

/// The first number, and how many there are.
const FIRST: usize = 64;
const NUMBERS: usize = 8192;
/// Largest size that the quantum caches serve.
const CACHED: usize = 4;

/// Counts down to a failure; none while negative.
#[derive(Default)]
pub(crate) struct Fuse(AtomicI64);

impl Fuse {
    /// Only requests that may fail do.
    fn blows(&self, wait: Wait) -> bool {
        wait != Wait::Sleep && self.0.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Tags from the C library, counted.
#[derive(Default)]
pub(crate) struct Tags {
    fuse: Fuse,
    out: AtomicUsize,
}

// SAFETY: 1. is what the global allocator promises.
unsafe impl TagSource for Tags {
    fn get(&self, wait: Wait) -> Option<(NonNull<Tag>, usize)> {
        if self.fuse.blows(wait) {
            return None;
        }
        self.out.fetch_add(1, Ordering::Relaxed);
        // SAFETY: a tag has a size.
        let memory = unsafe { std::alloc::alloc(Layout::new::<Tag>()) };
        Some((NonNull::new(memory)?.cast(), 1))
    }

    unsafe fn put(&self, tag: NonNull<Tag>) {
        self.out.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: 1. from `get`, with this layout.
        unsafe { std::alloc::dealloc(tag.as_ptr().cast(), Layout::new::<Tag>()) };
    }
}

type Numbers = Arena<'static, OnFake>;

/// The way from a parent to its children.
struct Imports {
    parent: OnceLock<&'static Numbers>,
    fuse: Fuse,
}

impl Source for Imports {
    fn import(&self, size: usize, wait: Wait) -> Option<(usize, usize)> {
        if self.fuse.blows(wait) {
            return None;
        }
        self.parent.get()?.import(size, wait)
    }

    fn release(&self, base: usize, size: usize) {
        self.parent.get().expect("a parent").release(base, size);
    }
}

/// Caches that are zones: one for each number of quanta, whose items are ranges.
struct Caches {
    arena: OnceLock<&'static Numbers>,
    zones: OnceLock<[RawZone<'static, Fake>; CACHED]>,
    /// What the zones' functions are handed.
    seats: [OnceLock<CacheSeat>; CACHED],
    /// By their first numbers, the ranges in use that came from the zones: what the arena has given for want of them is not theirs to
    /// take back.
    theirs: Vec<AtomicBool>,
}

struct CacheSeat {
    caches: &'static Caches,
    quanta: usize,
}

unsafe fn import(context: *mut (), out: *mut *mut u8, want: usize, _domain: usize, _wait: ZoneWait) -> usize {
    // SAFETY: a seat of the caches, which outlive their zones.
    let seat = unsafe { &*context.cast::<CacheSeat>() };
    let arena = seat.caches.arena.get().expect("an arena");
    for index in 0..want {
        match arena.xalloc(&Request::new(seat.quanta), Wait::NoSleep) {
            // SAFETY: room for `want`.
            Ok(addr) => unsafe { *out.add(index) = addr as *mut u8 },
            Err(_) => return index,
        }
    }
    want
}

unsafe fn release(context: *mut (), items: *const *mut u8, items_count: usize) {
    // SAFETY: as above.
    let seat = unsafe { &*context.cast::<CacheSeat>() };
    for index in 0..items_count {
        // SAFETY: so many items.
        let addr = unsafe { *items.add(index) } as usize;
        seat.caches.arena.get().expect("an arena").xfree(addr, seat.quanta).expect("a range of this arena");
    }
}

impl QuantumCache for Caches {
    fn alloc(&self, quanta: usize, _wait: Wait) -> Option<usize> {
        // Nobody sleeps in a cache: what it has not, the arena may have.
        let addr = self.zones.get()?[quanta - 1].alloc(How::NOWAIT).ok()?.as_ptr() as usize;
        self.theirs[addr].store(true, Ordering::Release);
        Some(addr)
    }

    fn free(&self, quanta: usize, addr: usize) {
        if self.theirs[addr].swap(false, Ordering::AcqRel) {
            // SAFETY: 1. the arena's caller gave the range up. 2. it came from here.
            unsafe { self.zones.get().expect("zones")[quanta - 1].free(addr as *mut u8) };
        } else {
            self.arena.get().expect("an arena").xfree(addr, quanta).expect("a range of this arena");
        }
    }

    fn adopt(&self, _quanta: usize, _addr: usize) {
        // `theirs` says which are.
    }

    fn drain(&self) {
        for zone in self.zones.get().expect("zones") {
            zone.reclaim(Reclaim::DrainCpu);
        }
    }
}

/// A range in use.
struct Range {
    arena: usize,
    addr: usize,
    size: usize,
    /// By the way past the caches.
    past_caches: bool,
}

pub(crate) struct Ranges {
    /// Parent, child, and the one with caches.
    arenas: [&'static Numbers; 3],
    tags: &'static Tags,
    imports: &'static Imports,
    caches: &'static Caches,
    pool: Mutex<Vec<Range>>,
    held: Vec<AtomicU8>,
    /// Somebody drains the caches.
    draining: AtomicBool,
    /// The caches' zones are gone.
    is_over: AtomicBool,
}

impl Ranges {
    pub(crate) fn new(world: &'static World) -> Self {
        let tags: &'static Tags = Box::leak(Box::default());
        let imports: &'static Imports = Box::leak(Box::new(Imports { parent: OnceLock::new(), fuse: Fuse::default() }));
        let caches: &'static Caches = Box::leak(Box::new(Caches {
            arena: OnceLock::new(),
            zones: OnceLock::new(),
            seats: Default::default(),
            theirs: (0..FIRST + NUMBERS).map(|_| AtomicBool::new(false)).collect(),
        }));
        let leak = |arena| &*Box::leak(Box::new(arena));
        let parent = leak(Numbers::new("parent", 1, tags));
        parent.add(FIRST, NUMBERS, Wait::NoSleep).unwrap();
        assert!(imports.parent.set(parent).is_ok());
        let child = leak(Numbers::new("child", 1, tags).with_import(imports, 64));
        let cached = leak(Numbers::new("cached", 1, tags).with_import(imports, 64).with_quantum_cache(caches, CACHED));
        assert!(caches.arena.set(cached).is_ok());
        let zones = std::array::from_fn(|index| {
            let seat = caches.seats[index].get_or_init(|| CacheSeat { caches, quanta: index + 1 });
            let context = std::ptr::from_ref(seat).cast_mut().cast();
            // SAFETY: 1. they live longer than the zone. 2. there is no number 0.
            let source = unsafe { ItemSource::new(context, import, release) };
            world.system.zcache_create("soak ranges", index + 1, Flags::NONE, Callbacks::NONE, source).unwrap()
        });
        assert!(caches.zones.set(zones).is_ok());
        Self {
            arenas: [parent, child, cached],
            tags,
            imports,
            caches,
            pool: Mutex::default(),
            held: (0..FIRST + NUMBERS).map(|_| AtomicU8::new(0)).collect(),
            draining: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
        }
    }

    /// Has tags or imports fail soon.
    pub(crate) fn fail_soon(&self, random: &mut Random) {
        let fuse = [&self.tags.fuse, &self.imports.fuse][random.below(2)];
        fuse.0.store(1 + random.below(10) as i64, Ordering::Relaxed);
    }

    /// One call.
    pub(crate) fn step(&self, soak: &Soak, random: &mut Random) {
        let index = random.below(3);
        let arena = self.arenas[index];
        match random.below(24) {
            0..9 => {
                let fit = [Fit::Instant, Fit::Best, Fit::First, Fit::Next][random.below(4)];
                let most = if random.one_in(4) { 300 } else { 8 };
                let size = 1 + random.below(most);
                let got = arena.alloc(size, fit, Wait::NoSleep);
                self.keep(soak, index, got, size, false);
            }
            9 => {
                let size = 1 + random.below(200);
                let got = soak.sleeping(false, || arena.alloc(size, Fit::Instant, Wait::Sleep));
                assert!(got.is_ok(), "{got:?} for who may sleep");
                self.keep(soak, index, got, size, false);
            }
            10..12 => {
                let size = 1 + random.below(60);
                let align = 1 << random.below(7);
                let request = Request {
                    align,
                    phase: random.below(align),
                    nocross: if random.one_in(2) { 256 } else { 0 },
                    min: if random.one_in(3) { 2000 } else { 0 },
                    max: if random.one_in(3) { 7000 } else { usize::MAX },
                    ..Request::new(size)
                };
                let got = arena.xalloc(&request, Wait::NoSleep);
                if let Ok(addr) = got {
                    let crosses = request.nocross != 0 && addr / 256 != (addr + size - 1) / 256;
                    let fits = addr % align == request.phase && addr >= request.min && addr + size - 1 <= request.max;
                    assert!(fits && !crosses, "{addr} for {request:?}");
                }
                self.keep(soak, index, got, size, true);
            }
            12 => arena.set_limit([None, Some(1000), Some(4000)][random.below(3)].filter(|_| index != 0)),
            13 => self.resize(random),
            14 => {
                arena.update();
                self.drain();
            }
            15 => arena.validate().unwrap_or_else(|damage| panic!("arena {}: {damage:?}", arena.name())),
            _ if random.grows && random.one_in(2) => {}
            _ => {
                for _ in 0..1 + random.below(6) {
                    let range = {
                        let mut pool = self.pool.lock().unwrap();
                        let len = pool.len();
                        (len > 0).then(|| pool.swap_remove(random.below(len)))
                    };
                    if let Some(range) = range {
                        self.free(range);
                    }
                }
            }
        }
    }

    fn keep(&self, soak: &Soak, arena: usize, got: Result<usize, Error>, size: usize, past_caches: bool) {
        match got {
            Ok(addr) => {
                for number in addr..addr + size {
                    assert_eq!(self.held[number].fetch_add(1, Ordering::AcqRel), 0, "{number} is held twice");
                }
                count(&soak.done.ranges);
                self.pool.lock().unwrap().push(Range { arena, addr, size, past_caches });
            }
            Err(error) => {
                assert!(matches!(error, Error::NoSpace | Error::NoTags), "{error}");
                count(&soak.done.shortages);
            }
        }
    }

    /// Longer or shorter in place.
    fn resize(&self, random: &mut Random) {
        let range = {
            let mut pool = self.pool.lock().unwrap();
            let at = pool.iter().position(|range| range.past_caches && range.size > 1);
            at.map(|at| pool.swap_remove(at))
        };
        let Some(mut range) = range else { return };
        let arena = self.arenas[range.arena];
        if random.one_in(2) {
            let size = range.size + 1 + random.below(20);
            if arena.grow_in_place(range.addr, range.size, size).is_ok() {
                for number in range.addr + range.size..range.addr + size {
                    assert_eq!(self.held[number].fetch_add(1, Ordering::AcqRel), 0, "{number} is held twice");
                }
                range.size = size;
            }
        } else {
            let size = 1 + random.below(range.size - 1);
            let tail = || &self.held[range.addr + size..range.addr + range.size];
            tail().iter().for_each(|number| _ = number.fetch_sub(1, Ordering::AcqRel));
            if arena.shrink_in_place(range.addr, range.size, size, Wait::NoSleep).is_ok() {
                range.size = size;
            } else {
                tail().iter().for_each(|number| assert_eq!(number.fetch_add(1, Ordering::AcqRel), 0));
            }
        }
        self.pool.lock().unwrap().push(range);
    }

    fn free(&self, range: Range) {
        for number in range.addr..range.addr + range.size {
            assert_eq!(self.held[number].fetch_sub(1, Ordering::AcqRel), 1, "{number} was held twice");
        }
        let arena = self.arenas[range.arena];
        let done =
            if range.past_caches { arena.xfree(range.addr, range.size) } else { arena.free(range.addr, range.size) };
        done.unwrap_or_else(|error| panic!("{} numbers at {}: {error}", range.size, range.addr));
    }

    /// Frees a range, if there is one.
    pub(crate) fn free_one(&self, _soak: &Soak) -> bool {
        let range = self.pool.try_lock().ok().and_then(|mut pool| pool.pop());
        range.map(|range| self.free(range)).is_some()
    }

    /// What the caches keep goes back.
    pub(crate) fn drain(&self) {
        if !self.draining.swap(true, Ordering::Acquire) {
            self.caches.drain();
            self.draining.store(false, Ordering::Release);
        }
    }

    pub(crate) fn account(&self) -> Result<(), String> {
        let pool = self.pool.lock().unwrap();
        for (index, arena) in self.arenas.iter().enumerate() {
            arena.validate().map_err(|damage| format!("arena {}: {damage:?}", arena.name()))?;
            let held: usize = pool.iter().filter(|range| range.arena == index).map(|range| range.size).sum();
            let cached: usize = match index {
                2 if !self.is_over.load(Ordering::Relaxed) => {
                    let zones = self.caches.zones.get().expect("zones");
                    let kept = |zone: &RawZone<'_, Fake>| zone.stats().outside - zone.stats().in_use;
                    zones.iter().enumerate().map(|(n, zone)| kept(zone) * (n + 1)).sum()
                }
                _ => 0,
            };
            // What children have of the parent is in use there.
            let lent: usize = if index == 0 { self.arenas[1..].iter().map(|a| a.size(Size::Total)).sum() } else { 0 };
            let found = arena.size(Size::Alloc);
            if found != held + cached + lent {
                let name = arena.name();
                return Err(format!("arena {name}: {found} in use, but {held} held, {cached} cached and {lent} lent"));
            }
        }
        Ok(())
    }

    /// Everything goes back; the zones go.
    pub(crate) fn free_all(&self) {
        while let Some(range) = self.pool.lock().unwrap().pop() {
            self.free(range);
        }
        for zone in self.caches.zones.get().expect("zones") {
            // SAFETY: 1. nobody uses the arena any more, but by the ways past its caches.
            let lost = unsafe { zone.destroy() };
            assert_eq!(lost, Ok(kern::zone::Destroyed::default()));
        }
        self.is_over.store(true, Ordering::Relaxed);
        for arena in self.arenas.iter().rev() {
            assert_eq!(arena.size(Size::Alloc), 0, "numbers of {} that nobody has", arena.name());
        }
        assert!(self.held.iter().all(|number| number.load(Ordering::Relaxed) == 0));
    }

    /// The arenas end, children first, and all their tags are back.
    pub(crate) fn destroy(&self) {
        for arena in self.arenas.iter().rev() {
            // SAFETY: leaked in `new`; nobody uses it any more.
            let arena = unsafe { *Box::from_raw(std::ptr::from_ref::<Numbers>(arena).cast_mut()) };
            arena.destroy().unwrap_or_else(|segment| panic!("an arena ended with {segment:?} in use"));
        }
        assert_eq!(self.tags.out.load(Ordering::Relaxed), 0, "boundary tags that nobody has");
        // SAFETY: as above; the arenas, which refer to them, are gone.
        unsafe {
            drop(Box::from_raw(std::ptr::from_ref(self.caches).cast_mut()));
            drop(Box::from_raw(std::ptr::from_ref(self.imports).cast_mut()));
            drop(Box::from_raw(std::ptr::from_ref(self.tags).cast_mut()));
        }
    }
}
