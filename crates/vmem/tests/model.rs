//! Random operations against a model that is too simple to be wrong: a list of spans, a list of allocated ranges, and a
//! try of every address. After each operation the arena must agree with the model in every answer it can give, and find
//! itself well.
//!
//! Two million operations in release, fewer in debug and under Miri.

use kernmalloc_vmem::{Bucket, Error, Fit, HASH_INLINE, RawArena, Request, Segment, SegmentKind, Size, Tag};
use proptest::prelude::*;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Addresses in the world of the test, in quanta.
const WORLD: usize = 512;
const SPAN_UNIT: usize = 8;

const OPS: usize = if cfg!(miri) { 100 } else { 1000 };
const CASES: u32 = if cfg!(miri) {
    3
} else if cfg!(debug_assertions) {
    20
} else {
    2000
};

#[derive(Debug, Clone)]
struct World {
    /// 1, 16, ...
    quantum: usize,
    /// The world ends with the last address there is, else it begins with 0.
    at_top: bool,
}

/// All in quanta, from the world's first address.
#[derive(Debug, Clone)]
enum Op {
    Add { at: usize, len: usize, how: u8 },
    Remove { pick: usize },
    Alloc { size: usize, fit: Fit },
    Xalloc { size: usize, align: u32, phase: usize, nocross: u32, min: usize, max: usize, fit: Fit },
    Free { pick: usize },
    FreeWrong { at: usize, size: usize },
    Grow { pick: usize, by: usize },
    Shrink { pick: usize, by: usize },
    Tags { count: usize },
    TakeTags,
    Rehash,
    Clear,
}

fn fit() -> impl Strategy<Value = Fit> {
    prop_oneof![Just(Fit::Instant), Just(Fit::Best), Just(Fit::First), Just(Fit::Next)]
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1usize..6, 3 => 6usize..48, 1 => 48usize..200]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..WORLD / SPAN_UNIT, 1usize..96, 0u8..4).prop_map(|(at, len, how)| Op::Add { at, len, how }),
        2 => any::<usize>().prop_map(|pick| Op::Remove { pick }),
        24 => (size(), fit()).prop_map(|(size, fit)| Op::Alloc { size, fit }),
        16 => (size(), 0u32..8, 0usize..128, prop_oneof![Just(0u32), 1u32..10], 0..WORLD, 0..WORLD, fit(), 0u8..4)
            .prop_map(|(size, align, phase, nocross, a, b, fit, bounds)| Op::Xalloc {
                size,
                align,
                phase: phase & ((1 << align) - 1),
                nocross,
                min: if bounds & 1 != 0 { a.min(b) } else { 0 },
                max: if bounds & 2 != 0 { a.max(b) } else { usize::MAX },
                fit,
            }),
        24 => any::<usize>().prop_map(|pick| Op::Free { pick }),
        2 => (0..WORLD, 1usize..40).prop_map(|(at, size)| Op::FreeWrong { at, size }),
        5 => (any::<usize>(), 0usize..20).prop_map(|(pick, by)| Op::Grow { pick, by }),
        5 => (any::<usize>(), 0usize..20).prop_map(|(pick, by)| Op::Shrink { pick, by }),
        1 => (1usize..8).prop_map(|count| Op::Tags { count }),
        1 => Just(Op::TakeTags),
        1 => Just(Op::Rehash),
        1 => prop::bool::weighted(0.05).prop_map(|clear| if clear { Op::Clear } else { Op::Rehash }),
    ]
}

/// Everything in quanta from the world's first address.
#[derive(Default)]
struct Model {
    /// Base, size, imported; sorted.
    spans: Vec<(usize, usize, bool)>,
    /// Base, size; sorted.
    allocated: Vec<(usize, usize)>,
    /// Last address given by next fit.
    cursor: Option<usize>,
}

impl Model {
    fn span_of(&self, addr: usize) -> Option<(usize, usize, bool)> {
        self.spans.iter().copied().find(|&(base, size, _)| (base..base + size).contains(&addr))
    }

    /// Spans and segments in address order.
    fn segments(&self) -> Vec<Segment> {
        let mut out = Vec::new();
        let mut push = |kind, base, size| {
            if size != 0 {
                out.push(Segment { kind, base, size });
            }
        };
        let mut allocated = self.allocated.iter().copied().peekable();
        for &(base, size, imported) in &self.spans {
            push(SegmentKind::Span { imported }, base, size);
            let mut at = base;
            while let Some((from, len)) = allocated.next_if(|&(from, _)| from < base + size) {
                push(SegmentKind::Free, at, from - at);
                push(SegmentKind::Allocated, from, len);
                at = from + len;
            }
            push(SegmentKind::Free, at, base + size - at);
        }
        out
    }

    fn free_segments(&self) -> Vec<(usize, usize)> {
        let free = |segment: &Segment| (segment.kind == SegmentKind::Free).then_some((segment.base, segment.size));
        self.segments().iter().filter_map(free).collect()
    }
}

struct Test {
    world: World,
    arena: RawArena,
    model: Model,
    /// Each from a box of its own.
    tags: Vec<NonNull<Tag>>,
    table: Vec<MaybeUninit<Bucket>>,
}

impl Test {
    fn new(world: World) -> Test {
        let arena = RawArena::new("test", world.quantum);
        Test { world, arena, model: Model::default(), tags: Vec::new(), table: Vec::new() }
    }

    fn origin(&self) -> usize {
        if self.world.at_top { usize::MAX - WORLD * self.world.quantum + 1 } else { 0 }
    }

    /// A real address from one in quanta, and back.
    fn addr(&self, at: usize) -> usize {
        self.origin() + at * self.world.quantum
    }

    fn at(&self, addr: usize) -> usize {
        (addr - self.origin()) / self.world.quantum
    }

    fn donate(&mut self, count: usize) {
        for _ in 0..count {
            let mem: NonNull<Tag> = NonNull::from(Box::leak(Box::new(MaybeUninit::<Tag>::uninit()))).cast();
            self.tags.push(mem);
            // SAFETY: from a box that is freed after `take_tag` returned it, or when the arena is not used any more.
            unsafe { self.arena.donate_tags(mem, 1) };
        }
    }

    /// Runs an operation until there are tags enough; a refusal must leave everything as it was.
    fn with_tags<T>(&mut self, mut op: impl FnMut(&mut RawArena) -> Result<T, Error>) -> Result<T, Error> {
        for missing in 0.. {
            match op(&mut self.arena) {
                Err(Error::NoTags) => {
                    assert!(missing < RawArena::TAGS_PER_OP, "more tags taken than promised");
                    self.compare();
                    self.donate(1);
                }
                done => return done,
            }
        }
        unreachable!()
    }

    fn real_request(&self, op: &Op) -> Request {
        let quantum = self.world.quantum;
        let Op::Xalloc { size, align, phase, nocross, min, max, fit } = *op else { unreachable!() };
        Request {
            // Not always in whole quanta.
            size: size * quantum - (size % 3).min(quantum - 1),
            align: quantum << align,
            phase: phase * quantum,
            nocross: if nocross == 0 { 0 } else { quantum << nocross },
            min: if min == 0 { 0 } else { self.addr(min) - (min % 2).min(quantum - 1) },
            max: if max == usize::MAX { max } else { self.addr(max) + (quantum - 1) },
            fit,
        }
    }

    /// By the definition of each constraint, for real addresses.
    fn meets(&self, request: &Request, at: usize, size: usize) -> bool {
        let addr = self.addr(at);
        let last = addr + (size * self.world.quantum - 1);
        addr % request.align.max(1) == request.phase
            && (request.nocross == 0 || addr / request.nocross == last / request.nocross)
            && addr >= request.min
            && last <= request.max
    }

    fn check_alloc(&mut self, request: &Request, result: Result<usize, Error>) {
        let size = request.size.div_ceil(self.world.quantum);
        let free = self.model.free_segments();
        // For every free segment that can serve, the lowest place in it.
        let places: Vec<(usize, usize, usize)> = free
            .iter()
            .filter_map(|&(base, len)| {
                let at = (base..(base + len + 1).saturating_sub(size)).find(|&at| self.meets(request, at, size))?;
                Some((base, len, at))
            })
            .collect();
        let addr = match result {
            Ok(addr) => addr,
            Err(error) => {
                assert!(places.is_empty(), "{error} for {request:?} but {places:?} would do");
                assert!(matches!(error, Error::NoSpace | Error::Invalid(_)));
                return;
            }
        };
        let at = self.at(addr);
        assert_eq!(self.addr(at), addr, "not on a quantum");
        let Some(&(base, len)) = free.iter().find(|&&(base, len)| base <= at && at + size <= base + len) else {
            panic!("{at}+{size} is not free: {free:?}");
        };
        assert!(self.meets(request, at, size), "{at}+{size} does not meet {request:?}");
        match request.fit {
            Fit::Instant => {}
            Fit::Best => {
                let best = places.iter().map(|&(_, len, _)| len).min();
                assert_eq!(Some(len), best, "{at} lies in ({base}, {len}), not the smallest of {places:?}");
            }
            Fit::First => assert_eq!(places.iter().map(|&(_, _, at)| at).min(), Some(at)),
            Fit::Next => {
                let from = self.model.cursor.map_or(0, |cursor| cursor + 1);
                let all = free.iter().flat_map(|&(base, len)| base..(base + len + 1).saturating_sub(size));
                let all: Vec<usize> = all.filter(|&at| self.meets(request, at, size)).collect();
                let next = all.iter().find(|&&at| at >= from).or(all.first());
                assert_eq!(next, Some(&at), "next fit from {from} of {free:?}");
                self.model.cursor = Some(at + size - 1);
            }
        }
        self.model.allocated.push((at, size));
        self.model.allocated.sort_unstable();
    }

    fn pick(&self, pick: usize) -> Option<(usize, usize)> {
        let len = self.model.allocated.len();
        (len != 0).then(|| self.model.allocated[pick % len])
    }

    fn run(&mut self, op: &Op) {
        let quantum = self.world.quantum;
        match *op {
            Op::Add { at, len, how } => {
                let (at, len) = (at * SPAN_UNIT, len.min(WORLD - at * SPAN_UNIT));
                let (base, size) = (self.addr(at), len * quantum);
                let result = self.with_tags(|arena| match how {
                    0 => arena.add(base, size),
                    1 => arena.add_imported(base, size),
                    2 => arena.extend_span(base, size),
                    _ => arena.add_joined(base, size),
                });
                let overlaps = self.model.spans.iter().any(|&(base, size, _)| base < at + len && at < base + size);
                let before = self.model.spans.iter().position(|&(base, size, imported)| base + size == at && !imported);
                match result {
                    Ok(()) => {
                        assert!(!overlaps);
                        match before {
                            Some(before) if how >= 2 => self.model.spans[before].1 += len,
                            _ => {
                                assert!(how != 2, "extended a span that isn't there");
                                self.model.spans.push((at, len, how == 1));
                                self.model.spans.sort_unstable();
                            }
                        }
                    }
                    Err(Error::Overlap(_)) => assert!(overlaps),
                    Err(Error::NoSpan { .. }) => assert!(how == 2 && before.is_none() && !overlaps),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Remove { pick } => {
                let Some(&(base, size, _)) = self.model.spans.get(pick % self.model.spans.len().max(1)) else {
                    return;
                };
                let used = self.model.allocated.iter().find(|&&(at, _)| (base..base + size).contains(&at));
                match (self.arena.remove_span(self.addr(base)), used) {
                    (Ok(removed), None) => {
                        assert_eq!(removed, size * quantum);
                        self.model.spans.retain(|span| span.0 != base);
                        if self.model.cursor.is_some_and(|cursor| (base..base + size).contains(&cursor)) {
                            self.model.cursor = None;
                        }
                    }
                    (Err(Error::Busy(found)), Some(&(at, len))) => {
                        assert_eq!((self.at(found.base), found.size), (at, len * quantum));
                    }
                    (result, used) => panic!("{result:?} with {used:?}"),
                }
            }
            Op::Alloc { size, fit } => {
                let request = Request { size: size * quantum - (size % 2).min(quantum - 1), fit, ..Request::new(1) };
                let result = self.with_tags(|arena| arena.alloc(request.size, fit));
                self.check_alloc(&request, result);
            }
            Op::Xalloc { .. } => {
                let request = self.real_request(op);
                let result = self.with_tags(|arena| arena.xalloc(&request));
                self.check_alloc(&request, result);
            }
            Op::Free { pick } => {
                let Some((at, size)) = self.pick(pick) else { return };
                self.arena.free(self.addr(at), size * quantum).unwrap();
                self.model.allocated.retain(|segment| segment.0 != at);
                let span = self.model.span_of(at).unwrap();
                let used = self.model.allocated.iter().any(|&(at, _)| self.model.span_of(at) == Some(span));
                let whole = self.arena.free_span_at(self.addr(at));
                assert_eq!(whole.map(|span| self.at(span.base)), (!used).then_some(span.0));
            }
            Op::FreeWrong { at, size } => {
                let real = self.model.allocated.iter().find(|segment| segment.0 == at).map(|segment| segment.1);
                if real == Some(size) {
                    return;
                }
                match (self.arena.free(self.addr(at), size * quantum), real) {
                    (Err(Error::NotAllocated { addr, found }), None) => {
                        assert_eq!(found.is_some(), self.model.span_of(at).is_some());
                        assert!(found.is_none_or(|found| found.contains(addr)));
                    }
                    (Err(Error::WrongSize { allocated, .. }), Some(real)) => assert_eq!(allocated, real * quantum),
                    (result, real) => panic!("{result:?} with {real:?}"),
                }
            }
            Op::Grow { pick, by } => {
                let Some((at, size)) = self.pick(pick) else { return };
                let result = self.arena.grow_in_place(self.addr(at), size * quantum, (size + by) * quantum);
                let room =
                    self.model.free_segments().iter().find(|&&(base, _)| base == at + size).map_or(0, |free| free.1);
                let span = self.model.span_of(at).unwrap();
                let room = if at + size == span.0 + span.1 { 0 } else { room };
                assert_eq!(result, if by <= room { Ok(()) } else { Err(Error::NoSpace) });
                if result.is_ok() {
                    self.resize(at, size + by);
                }
            }
            Op::Shrink { pick, by } => {
                let Some((at, size)) = self.pick(pick) else { return };
                let new = size.saturating_sub(by).max(1);
                let addr = self.addr(at);
                self.with_tags(|arena| arena.shrink_in_place(addr, size * quantum, new * quantum)).unwrap();
                self.resize(at, new);
            }
            Op::Tags { count } => self.donate(count),
            Op::TakeTags => {
                while let Some(tag) = self.arena.take_tag() {
                    let own = self.tags.iter().position(|&own| own == tag).expect("a tag that was donated");
                    self.tags.swap_remove(own);
                    // SAFETY: from a box, see `donate`.
                    drop(unsafe { Box::from_raw(tag.as_ptr().cast::<MaybeUninit<Tag>>()) });
                }
            }
            Op::Rehash => {
                let wanted = self.arena.hash_wanted();
                // The wish is right most of the time; any other number has to work too.
                let buckets = wanted.unwrap_or(if self.table.is_empty() { 4 } else { HASH_INLINE });
                let mut table: Vec<_> = (0..buckets).map(|_| MaybeUninit::uninit()).collect();
                let old = if buckets == HASH_INLINE {
                    self.arena.retire_hash()
                } else {
                    let mem = NonNull::from(&mut table[..]).cast();
                    // SAFETY: on the heap, kept in self.table.
                    unsafe { self.arena.donate_hash(mem, buckets) }
                };
                assert_eq!(old.map_or(0, |old| old.1), self.table.len());
                self.table = if buckets == HASH_INLINE { Vec::new() } else { table };
                assert!(wanted.is_none() || self.arena.hash_wanted().is_none(), "the wish doesn't settle");
            }
            Op::Clear => {
                let leak = self.arena.clear();
                assert_eq!(leak.map(|leak| self.at(leak.base)), self.model.allocated.first().map(|first| first.0));
                self.model = Model::default();
            }
        }
    }

    fn resize(&mut self, at: usize, size: usize) {
        self.model.allocated.iter_mut().find(|segment| segment.0 == at).unwrap().1 = size;
    }

    /// Everything that can be asked.
    fn compare(&self) {
        self.arena.validate().unwrap();
        let quantum = self.world.quantum;
        let real = |segment: &Segment| Segment {
            kind: segment.kind,
            base: self.addr(segment.base),
            size: segment.size * quantum,
        };
        let expected: Vec<Segment> = self.model.segments().iter().map(real).collect();
        assert!(self.arena.segments().eq(expected.iter().copied()));
        let sum =
            |kind| expected.iter().filter(|segment| segment.kind == kind).map(|segment| segment.size).sum::<usize>();
        assert_eq!(self.arena.size(Size::Alloc), sum(SegmentKind::Allocated));
        assert_eq!(self.arena.size(Size::Free), sum(SegmentKind::Free));
        let max = expected.iter().filter(|segment| segment.kind == SegmentKind::Free).map(|segment| segment.size).max();
        assert_eq!(self.arena.size(Size::MaxFree), max.unwrap_or(0));
        let counts = self.arena.counts();
        assert_eq!((counts.spans, counts.allocated), (self.model.spans.len(), self.model.allocated.len()));
        assert_eq!(counts.tags, self.tags.len());
        assert_eq!(counts.tags - counts.tags_free, expected.len());
    }
}

impl Drop for Test {
    fn drop(&mut self) {
        for tag in &self.tags {
            // SAFETY: from a box, see `donate`; the arena's own drop does not touch tags.
            drop(unsafe { Box::from_raw(tag.as_ptr().cast::<MaybeUninit<Tag>>()) });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_arena_and_the_model_agree(
        quantum_log2 in prop_oneof![Just(0u32), Just(4), Just(12)],
        at_top: bool,
        ops in prop::collection::vec(op(), OPS),
    ) {
        let mut test = Test::new(World { quantum: 1 << quantum_log2, at_top });
        // Something to begin with.
        test.donate(4);
        test.run(&Op::Add { at: 0, len: 96, how: 0 });
        for op in &ops {
            test.run(op);
            test.compare();
        }
    }
}

/// Random numbers (splitmix64), for what is too long for proptest.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * bound as u128) >> 64) as usize
    }
}

/// A large arena that fills up, lives, and empties, with the hash resized on the way; every range given out is held
/// against all others.
#[test]
fn a_large_arena_never_gives_a_range_twice() {
    let (segments, steps) = if cfg!(miri) {
        (50, 500)
    } else if cfg!(debug_assertions) {
        (2_000, 15_000)
    } else {
        (100_000, 1_000_000)
    };
    let mut random = Random(1);
    let mut tags: Vec<MaybeUninit<Tag>> = (0..3 * segments).map(|_| MaybeUninit::uninit()).collect();
    let mut arena = RawArena::new("large", 16);
    // SAFETY: on the heap, not touched, dropped after the last use of the arena.
    unsafe { arena.donate_tags(NonNull::from(&mut tags[..]).cast(), 3 * segments) };
    arena.add(0, segments * 16 * 16).unwrap();
    let mut table: Vec<MaybeUninit<Bucket>> = Vec::new();
    let mut live: std::collections::BTreeMap<usize, usize> = std::collections::BTreeMap::new();
    let mut order: Vec<usize> = Vec::new();
    for step in 0..steps {
        let filling = step < steps / 2;
        if order.is_empty() || (order.len() < segments && random.below(8) < if filling { 6 } else { 3 }) {
            // Best, first and next fit walk: rarely here.
            let fit =
                [Fit::Instant, Fit::Best, Fit::First, Fit::Next][random.below(1000) / 997 * (1 + random.below(3))];
            let most = if random.below(50) == 0 { 4000 } else { 300 };
            let size = 1 + random.below(most);
            let align = [0, 0, 0, 64, 4096][random.below(5)];
            match arena.xalloc(&Request { size, align, fit, ..Request::new(1) }) {
                Ok(addr) => {
                    let size = size.next_multiple_of(16);
                    assert!(addr % align.max(16) == 0 && addr + size <= segments * 256);
                    assert!(live.range(..addr + size).next_back().is_none_or(|(&at, &len)| at + len <= addr));
                    live.insert(addr, size);
                    order.push(addr);
                }
                Err(error) => assert_eq!(error, Error::NoSpace),
            }
        } else {
            let addr = order.swap_remove(random.below(order.len()));
            arena.free(addr, live.remove(&addr).unwrap()).unwrap();
        }
        if step % 1024 == 0
            && let Some(buckets) = arena.hash_wanted()
        {
            if buckets == HASH_INLINE {
                arena.retire_hash();
            } else {
                let mut new: Vec<_> = (0..buckets).map(|_| MaybeUninit::uninit()).collect();
                // SAFETY: on the heap, and kept until the arena has another.
                unsafe { arena.donate_hash(NonNull::from(&mut new[..]).cast(), buckets) };
                drop(std::mem::replace(&mut table, new));
            }
        }
        if step % (steps / 50) == 0 {
            arena.validate().unwrap();
            assert_eq!(arena.size(Size::Alloc), live.values().sum::<usize>());
        }
    }
    for addr in order {
        arena.free(addr, live[&addr]).unwrap();
    }
    arena.validate().unwrap();
    assert_eq!((arena.max_free(), arena.counts().free), (segments * 256, 1));
}
