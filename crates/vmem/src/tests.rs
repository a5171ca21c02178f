//! The arena's behaviour, said in examples. Random operations are in `tests/model.rs`.

use super::*;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use std::boxed::Box;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

const TOP: usize = usize::MAX;

enum Op {
    Add(usize, usize),
    Import(usize, usize),
    Extend(usize, usize),
    Join(usize, usize),
    Remove(usize),
    Alloc(usize),
    By(Fit, usize),
    X(Request),
    Free(usize, usize),
    Grow(usize, usize, usize),
    Shrink(usize, usize, usize),
}
use Op::*;

fn donate(arena: &mut RawArena, count: usize) {
    let tags: Box<[MaybeUninit<Tag>]> = (0..count).map(|_| MaybeUninit::uninit()).collect();
    // SAFETY: leaked, hence valid for ever and nobody else's.
    unsafe { arena.donate_tags(NonNull::from(Box::leak(tags)).cast(), count) };
}

fn arena(quantum: usize) -> RawArena {
    let mut arena = RawArena::new("test", quantum);
    donate(&mut arena, 64);
    arena
}

/// A number as a person would write it: the far end is counted from the end.
fn short(number: usize) -> String {
    match TOP - number {
        0 => "TOP".to_string(),
        below @ 1..=0xffff => format!("TOP-{below}"),
        _ => number.to_string(),
    }
}

/// `[span: pieces]`, where `.n` is free and `#n` allocated.
fn picture(arena: &RawArena) -> String {
    let mut out = String::new();
    for segment in arena.segments() {
        let size = short(segment.size);
        match segment.kind {
            SegmentKind::Span { imported } => {
                let close = if out.is_empty() { "" } else { "] " };
                let mark = if imported { "^" } else { "" };
                out += &format!("{close}[{mark}{}:", short(segment.base));
            }
            SegmentKind::Free => out += &format!(" .{size}"),
            SegmentKind::Allocated => out += &format!(" #{size}"),
        }
    }
    if out.is_empty() { "-".to_string() } else { out + "]" }
}

fn apply(arena: &mut RawArena, op: &Op) -> String {
    let unit = |result: Result<(), Error>| result.map(|()| "ok".to_string());
    let number = |result: Result<usize, Error>| result.map(short);
    let result = match *op {
        Add(base, size) => unit(arena.add(base, size)),
        Import(base, size) => unit(arena.add_imported(base, size)),
        Extend(base, size) => unit(arena.extend_span(base, size)),
        Join(base, size) => unit(arena.add_joined(base, size)),
        Remove(base) => number(arena.remove_span(base)),
        Alloc(size) => number(arena.alloc(size, Fit::Instant)),
        By(fit, size) => number(arena.alloc(size, fit)),
        X(ref request) => number(arena.xalloc(request)),
        Free(addr, size) => unit(arena.free(addr, size)),
        Grow(addr, old, new) => unit(arena.grow_in_place(addr, old, new)),
        Shrink(addr, old, new) => unit(arena.shrink_in_place(addr, old, new)),
    };
    arena.validate().unwrap();
    result.unwrap_or_else(|error| format!("({error})"))
}

/// Runs the operations; what they return and what the arena then looks like must read as expected.
#[track_caller]
fn check_in(arena: &mut RawArena, ops: &[Op], expected: &str) {
    let results: Vec<String> = ops.iter().map(|op| apply(arena, op)).collect();
    assert_eq!(format!("{} => {}", results.join(" "), picture(arena)), expected);
}

#[track_caller]
fn check(ops: &[Op], expected: &str) {
    check_in(&mut arena(1), ops, expected);
}

const ANY: Request = Request::new(1);

#[test]
fn a_span_is_cut_from_the_front_and_heals() {
    check(&[Add(100, 50), Alloc(10), Alloc(20)], "ok 100 110 => [100: #10 #20 .20]");
    check(&[Add(100, 50), Alloc(10), Alloc(20), Free(100, 10)], "ok 100 110 ok => [100: .10 #20 .20]");
    check(&[Add(100, 50), Alloc(10), Alloc(20), Free(100, 10), Free(110, 20)], "ok 100 110 ok ok => [100: .50]");
    check(&[Add(100, 50), Alloc(10), Alloc(20), Free(110, 20), Free(100, 10)], "ok 100 110 ok ok => [100: .50]");
    check(&[Add(100, 50), Alloc(50), Free(100, 50)], "ok 100 ok => [100: .50]");
}

#[test]
fn address_0_and_the_last_address_are_addresses() {
    check(&[Add(0, 2), Alloc(1), Alloc(1), Free(0, 1)], "ok 0 1 ok => [0: .1 #1]");
    check(
        &[Add(TOP - 1, 2), Alloc(1), Alloc(1), Alloc(1), Free(TOP, 1)],
        "ok TOP-1 TOP (no free segment meets the request) ok => [TOP-1: #1 .1]",
    );
    // All integers but one: the largest arena whose size is a number.
    check(
        &[Add(0, TOP), Add(TOP, 1)],
        "ok (impossible request: the sum of the spans is beyond usize::MAX) => [0: .TOP]",
    );
    check(&[Add(1, TOP), Alloc(TOP), Free(1, TOP)], "ok 1 ok => [1: .TOP]");
}

#[test]
fn sizes_near_the_end_of_numbers_fail_and_do_not_wrap() {
    const NO: &str = "(no free segment meets the request)";
    for size in [TOP, TOP - 1, TOP - 4095, TOP / 2 + 1] {
        for fit in [Fit::Instant, Fit::Best, Fit::First, Fit::Next] {
            let mut arena = arena(4096);
            let request = Request { size, align: 1 << 63, fit, ..ANY };
            let ops = [Add(4096, 8192), By(fit, size), X(request), Grow(4096, 4096, size)];
            let wrong = "(0x1000 is free already, in free segment 0x1000..=0x2fff of size 0x2000)";
            check_in(&mut arena, &ops, &format!("ok {NO} {NO} {wrong} => [4096: .8192]"));
        }
    }
    let mut arena = arena(4096);
    check_in(
        &mut arena,
        &[Add(TOP - 8191, 8192), Alloc(1), Grow(TOP - 8191, 1, TOP), Free(TOP - 8191, TOP)],
        "ok TOP-8191 (no free segment meets the request) \
         (0xffffffffffffe000 has size 0x1000, freed with size 0xffffffffffffffff) => [TOP-8191: #4096 .4096]",
    );
    assert_eq!(arena.roundup_size(TOP), None);
    assert_eq!(arena.roundup_size(TOP - 4095), Some(TOP - 4095));
    assert_eq!(arena.roundup_size(1), Some(4096));
}

#[test]
fn impossible_spans_are_refused() {
    check(
        &[Add(TOP, 2), Add(0, 0), Add(10, 10), Add(19, 1), Add(5, 6), Add(0, 100), Add(20, 5)],
        "(impossible request: a span reaches beyond the last address) (impossible request: size is 0) ok \
         (the range overlaps span 0xa..=0x13 of size 0xa) (the range overlaps span 0xa..=0x13 of size 0xa) \
         (the range overlaps span 0xa..=0x13 of size 0xa) ok => [10: .10] [20: .5]",
    );
    check_in(
        &mut arena(16),
        &[Add(8, 16), Add(16, 8)],
        "(impossible request: a span is not in whole quanta) (impossible request: a span is not in whole quanta) => -",
    );
}

#[test]
fn spans_stand_in_address_order_and_no_segment_reaches_over() {
    check(&[Add(20, 10), Add(0, 10), Add(10, 10), Alloc(11)], {
        "ok ok ok (no free segment meets the request) => [0: .10] [10: .10] [20: .10]"
    });
    // Neighbours in different spans don't merge when they are freed.
    check(
        &[Add(0, 4), Import(4, 4), Alloc(4), Alloc(4), Free(4, 4), Free(0, 4), Remove(4)],
        "ok ok 4 0 ok ok 4 => [0: .4]",
    );
}

#[test]
fn a_span_grows_upward_and_what_is_free_at_its_end_grows_with_it() {
    check(&[Add(0, 10), Extend(10, 5)], "ok ok => [0: .15]");
    check(&[Add(0, 10), Alloc(10), Extend(10, 5), Alloc(5)], "ok 0 ok 10 => [0: #10 #5]");
    check(&[Add(0, 10), Alloc(3), Extend(10, 5), Alloc(12)], "ok 0 ok 3 => [0: #3 #12]");
    check(&[Join(0, 10), Join(10, 10), Join(30, 10), Extend(25, 5)], {
        "ok ok ok (no span at 0x19) => [0: .20] [30: .10]"
    });
    check(&[Add(0, 10), Add(10, 10), Extend(10, 10)], {
        "ok ok (the range overlaps span 0xa..=0x13 of size 0xa) => [0: .10] [10: .10]"
    });
    check(&[Import(0, 10), Extend(10, 10), Join(10, 10)], "ok (no span at 0xa) ok => [^0: .10] [10: .10]");
    check(&[Add(TOP - 9, 5), Extend(TOP - 4, 5), Extend(0, 1)], "ok ok (no span at 0x0) => [TOP-9: .10]");
}

#[test]
fn a_span_leaves_only_when_it_is_free_as_a_whole() {
    check(
        &[Add(0, 10), Add(20, 10), Alloc(10), Remove(20), Remove(25), Remove(0), Free(20, 10), Remove(20)],
        "ok ok 20 (the span is in use: allocated segment 0x14..=0x1d of size 0xa) (no span at 0x19) 10 ok 10 => -",
    );
}

#[test]
fn a_wrong_free_is_named_and_changes_nothing() {
    check(
        &[
            Add(0, 40),
            Alloc(10),
            Alloc(10),
            Free(10, 9),
            Free(15, 5),
            Free(20, 1),
            Free(90, 1),
            Free(0, 10),
            Free(0, 10),
        ],
        "ok 0 10 (0xa has size 0xa, freed with size 0x9) \
         (0xf is not the start of its segment, allocated segment 0xa..=0x13 of size 0xa) \
         (0x14 is free already, in free segment 0x14..=0x27 of size 0x14) (0x5a is in no span) ok \
         (0x0 is free already, in free segment 0x0..=0x9 of size 0xa) => [0: .10 #10 .20]",
    );
}

#[test]
fn growing_takes_from_behind_and_shrinking_gives_back() {
    check(&[Add(0, 20), Alloc(5), Grow(0, 5, 12)], "ok 0 ok => [0: #12 .8]");
    check(&[Add(0, 20), Alloc(5), Grow(0, 5, 20)], "ok 0 ok => [0: #20]");
    check(&[Add(0, 20), Alloc(5), Grow(0, 5, 21)], "ok 0 (no free segment meets the request) => [0: #5 .15]");
    check(&[Add(0, 20), Alloc(5), Alloc(5), Grow(0, 5, 6)], {
        "ok 0 5 (no free segment meets the request) => [0: #5 #5 .10]"
    });
    check(&[Add(0, 20), Alloc(20), Shrink(0, 20, 5)], "ok 0 ok => [0: #5 .15]");
    check(&[Add(0, 20), Alloc(10), Shrink(0, 10, 5)], "ok 0 ok => [0: #5 .15]");
    check(&[Add(0, 20), Alloc(10), Shrink(0, 10, 0), Shrink(0, 10, 11), Grow(0, 10, 9), Grow(0, 10, 10)], {
        "ok 0 (impossible request: size is 0) (impossible request: shrinking to a greater size) \
         (impossible request: growing to a lesser size) ok => [0: #10 .10]"
    });
}

/// Free segments of 50 at 0, 40 at 60, 45 at 110 and 38 at 165: all in one list of doubling sizes.
fn four_holes() -> RawArena {
    let mut arena = arena(1);
    let made = [Add(0, 203), Alloc(50), Alloc(10), Alloc(40), Alloc(10), Alloc(45), Alloc(10), Alloc(38)];
    made.iter().for_each(|op| drop(apply(&mut arena, op)));
    [Free(110, 45), Free(0, 50), Free(165, 38), Free(60, 40)].iter().for_each(|op| drop(apply(&mut arena, op)));
    assert_eq!(picture(&arena), "[0: .50 #10 .40 #10 .45 #10 .38]");
    arena
}

#[test]
fn best_fit_is_the_smallest_that_serves() {
    for (size, at) in [(33, 165), (38, 165), (39, 60), (40, 60), (41, 110), (45, 110), (46, 0), (50, 0)] {
        let mut arena = four_holes();
        assert_eq!(arena.alloc(size, Fit::Best), Ok(at), "{size}");
    }
    // With constraints, the smallest in which there is a place: 64 is in the hole of 40, as 128 is in that of 45.
    let aligned = Request { size: 20, align: 64, fit: Fit::Best, ..ANY };
    assert_eq!(four_holes().xalloc(&aligned), Ok(64));
    assert_eq!(four_holes().xalloc(&Request { min: 65, ..aligned }), Ok(128));
    assert_eq!(four_holes().xalloc(&Request { max: 63, ..aligned }), Ok(0));
}

#[test]
fn first_fit_is_the_lowest_address_even_if_a_smaller_segment_serves() {
    let mut arena = four_holes();
    assert_eq!(arena.alloc(1, Fit::First), Ok(0));
    assert_eq!(arena.alloc(49, Fit::First), Ok(1));
    assert_eq!(arena.alloc(38, Fit::First), Ok(60));
    assert_eq!(arena.alloc(38, Fit::First), Ok(110));
    assert_eq!(arena.alloc(3, Fit::First), Ok(155 - 7));
}

#[test]
fn next_fit_reuses_as_late_as_possible() {
    use Fit::Next;
    check(
        &[Add(0, 4), By(Next, 1), Free(0, 1), By(Next, 1), Free(1, 1), By(Next, 1), By(Next, 1), By(Next, 1)],
        "ok 0 ok 1 ok 2 3 0 => [0: #1 .1 #1 #1]",
    );
    // From one span to the next and round the end.
    check(&[Add(0, 2), Add(10, 2), By(Next, 2), By(Next, 2), Free(0, 2), By(Next, 1)], {
        "ok ok 0 10 ok 0 => [0: #1 .1] [10: #2]"
    });
    // The cursor survives the merging and cutting of its segment, not the removal of its span.
    check(
        &[
            Add(0, 8),
            By(Next, 3),
            Free(0, 3),
            Alloc(2),
            By(Next, 2),
            Free(0, 2),
            Free(3, 2),
            Remove(0),
            Add(0, 8),
            By(Next, 1),
        ],
        "ok 0 ok 0 3 ok ok 8 ok 0 => [0: #1 .7]",
    );
}

#[test]
fn instant_fit_finds_the_last_segment_that_serves() {
    // 33..=63 share a list: the one that is big enough is found behind those that aren't.
    let mut arena = four_holes();
    assert_eq!(arena.alloc(46, Fit::Instant), Ok(0));
    assert_eq!(arena.alloc(46, Fit::Instant), Err(Error::NoSpace));
}

#[test]
fn constraints_are_exact() {
    let x = |request: Request| {
        let mut arena = arena(1);
        arena.add(100, 100).unwrap();
        let result = arena.xalloc(&request);
        arena.validate().unwrap();
        result
    };
    let no = Err(Error::NoSpace);
    // Bounds are of the whole range, both inclusive.
    assert_eq!(x(Request { size: 10, min: 190, ..ANY }), Ok(190));
    assert_eq!(x(Request { size: 10, min: 191, ..ANY }), no);
    assert_eq!(x(Request { size: 10, max: 109, ..ANY }), Ok(100));
    assert_eq!(x(Request { size: 10, max: 108, ..ANY }), no);
    assert_eq!(x(Request { size: 1, min: 150, max: 150, ..ANY }), Ok(150));
    // address % align == phase
    assert_eq!(x(Request { size: 10, align: 64, ..ANY }), Ok(128));
    assert_eq!(x(Request { size: 10, align: 64, phase: 40, ..ANY }), Ok(104));
    assert_eq!(x(Request { size: 10, align: 64, phase: 30, ..ANY }), Ok(158));
    assert_eq!(x(Request { size: 43, align: 64, phase: 30, ..ANY }), no);
    assert_eq!(x(Request { size: 10, align: 256, ..ANY }), no);
    // No multiple of nocross inside, but one may be the first address.
    assert_eq!(x(Request { size: 28, nocross: 64, ..ANY }), Ok(100));
    assert_eq!(x(Request { size: 29, nocross: 64, ..ANY }), Ok(128));
    assert_eq!(x(Request { size: 64, nocross: 64, ..ANY }), Ok(128));
    // 121 and 8 more would cross 128; 153 doesn't cross 192 by any phase of 32, but 121 + 32 does fit.
    assert_eq!(x(Request { size: 8, align: 32, phase: 25, nocross: 64, ..ANY }), Ok(153));
    // What no address could meet is no shortage.
    for request in [
        Request { size: 0, ..ANY },
        Request { align: 3, ..ANY },
        Request { align: 4, phase: 4, ..ANY },
        Request { phase: 1, ..ANY },
        Request { nocross: 3, ..ANY },
        Request { size: 9, nocross: 8, ..ANY },
        Request { size: 8, align: 16, phase: 1, nocross: 8, ..ANY },
        Request { min: 2, max: 1, ..ANY },
    ] {
        assert!(matches!(x(request), Err(Error::Invalid(_))), "{request:?}");
    }
}

#[test]
fn the_largest_free_size_is_that_of_a_segment() {
    let mut arena = four_holes();
    assert_eq!(arena.max_free(), 50);
    assert_eq!(arena.alloc(arena.max_free(), Fit::Instant), Ok(0));
    assert_eq!(arena.max_free(), 45);
    assert_eq!((arena.size(Size::Free), arena.size(Size::Alloc), arena.size(Size::Total)), (123, 80, 203));
    assert_eq!(self::arena(1).max_free(), 0);
}

#[test]
fn without_tags_nothing_happens_and_with_them_it_does() {
    let mut arena = RawArena::new("poor", 1);
    assert_eq!(arena.add(0, 10), Err(Error::NoTags));
    donate(&mut arena, 1);
    assert_eq!(arena.add(0, 10), Err(Error::NoTags));
    donate(&mut arena, 1);
    check_in(
        &mut arena,
        &[Add(0, 10), Alloc(1), Add(20, 1)],
        "ok (no free boundary tag) (no free boundary tag) => [0: .10]",
    );
    // The whole needs none; neither does giving back to a free neighbour.
    check_in(&mut arena, &[Alloc(10), Shrink(0, 10, 5), Extend(10, 2)], {
        "0 (no free boundary tag) (no free boundary tag) => [0: #10]"
    });
    donate(&mut arena, 1);
    check_in(
        &mut arena,
        &[Shrink(0, 10, 5), X(Request { min: 7, max: 7, ..ANY })],
        "ok (no free boundary tag) => [0: #5 .5]",
    );
    donate(&mut arena, 2);
    check_in(&mut arena, &[X(Request { min: 7, max: 7, ..ANY })], "7 => [0: #5 .2 #1 .2]");
    assert_eq!((arena.tags_free(), arena.take_tag()), (0, None));
}

#[test]
fn questions_about_an_address() {
    let mut arena = four_holes();
    let segment = |kind, base, size| Some(Segment { kind, base, size });
    assert_eq!(arena.whatis(55), segment(SegmentKind::Allocated, 50, 10));
    assert_eq!(arena.whatis(50), segment(SegmentKind::Allocated, 50, 10));
    assert_eq!(arena.whatis(109), segment(SegmentKind::Allocated, 100, 10));
    assert_eq!(arena.whatis(110), segment(SegmentKind::Free, 110, 45));
    assert_eq!(arena.whatis(203), None);
    assert_eq!(arena.span_at(7), segment(SegmentKind::Span { imported: false }, 0, 203));
    assert_eq!((arena.allocated_size(50), arena.allocated_size(51)), (Some(10), None));
    let mut sizes = Vec::new();
    arena.walk_free(|segment| sizes.push(segment.size));
    sizes.sort_unstable();
    assert_eq!(sizes, [38, 40, 45, 50]);
    assert_eq!(arena.clear(), segment(SegmentKind::Allocated, 50, 10));
    arena.validate().unwrap();
    assert_eq!((picture(&arena), arena.tags_free()), ("-".to_string(), 64));
}

#[test]
fn the_hash_is_asked_for_by_number_of_segments() {
    const EACH: usize = if cfg!(miri) { 211 } else { 2 };
    let mut arena = RawArena::new("ids", 1);
    donate(&mut arena, 3000);
    arena.add(0, 1 << 20).unwrap();
    let table = |buckets: usize| {
        let table: Box<[MaybeUninit<Bucket>]> = (0..buckets).map(|_| MaybeUninit::uninit()).collect();
        NonNull::from(Box::leak(table)).cast()
    };
    let mut sizes = Vec::new();
    for id in 0..1000 {
        arena.alloc(3, Fit::Instant).unwrap();
        if let Some(buckets) = arena.hash_wanted() {
            sizes.push(buckets);
            // SAFETY: leaked.
            unsafe { arena.donate_hash(table(buckets), buckets) };
        }
        if id % EACH == 0 {
            arena.validate().unwrap();
        }
    }
    assert_eq!(sizes, [64, 256, 1024]);
    for id in 0..1000 {
        arena.free(id * 3, 3).unwrap();
        match arena.hash_wanted() {
            None => {}
            Some(HASH_INLINE) => assert!(arena.retire_hash().is_some()),
            Some(buckets) => {
                sizes.push(buckets);
                // SAFETY: leaked.
                unsafe { arena.donate_hash(table(buckets), buckets) };
            }
        }
        if id % EACH == 0 {
            arena.validate().unwrap();
        }
    }
    assert_eq!(sizes, [64, 256, 1024, 256, 64]);
    assert_eq!(arena.counts().buckets, HASH_INLINE);
}

#[test]
fn spans_are_found_in_any_order_of_coming_and_going() {
    const SPANS: usize = if cfg!(miri) { 100 } else { 1000 };
    let mut arena = RawArena::new("spans", 1);
    donate(&mut arena, SPANS * 2);
    // 7 generates all residues of 1000 and of 100: a fixed order that is not sorted.
    for i in 0..SPANS {
        arena.add(i * 7 % SPANS * 10, 5).unwrap();
    }
    arena.validate().unwrap();
    for i in 0..SPANS {
        assert_eq!(arena.span_at(i * 10 + 4).map(|span| span.base), Some(i * 10));
        assert_eq!(arena.span_at(i * 10 + 5), None);
        assert!(matches!(arena.add(i * 10 + 4, 2), Err(Error::Overlap(_))));
    }
    for i in 0..SPANS {
        assert_eq!(arena.remove_span(i * 3 % SPANS * 10), Ok(5));
        if i % 97 == 0 {
            arena.validate().unwrap();
        }
    }
    assert_eq!(picture(&arena), "-");
}

/// Best fit among segments beyond the sizes that have a list of their own: against a search of all, with few sizes, so that many are the same.
#[test]
fn best_fit_is_the_smallest_that_serves_also_among_many_of_like_size() {
    let mut tags = Box::new([const { core::mem::MaybeUninit::<Tag>::uninit() }; 1200]);
    let mut arena = RawArena::new("like", 1);
    // SAFETY: the tags outlive the arena, and nothing else uses them.
    unsafe { arena.donate_tags(NonNull::from(&mut *tags).cast(), 1200) };
    arena.add(0, 40_000).unwrap();
    let mut seed = 9u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut live = Vec::new();
    let steps = if cfg!(miri) { 300 } else { 6000 };
    for step in 0..steps {
        if random(100) < 53 || live.is_empty() {
            let size = [33, 40, 41, 64, 65, 127, 128, 300][random(8)];
            let mut smallest = None;
            let mut free_sizes = Vec::new();
            arena.walk_free(|segment| {
                free_sizes.push(segment.size);
                if segment.size >= size && smallest.is_none_or(|least| segment.size < least) {
                    smallest = Some(segment.size);
                }
            });
            assert!(free_sizes.is_sorted());
            assert_eq!(arena.max_free(), free_sizes.last().copied().unwrap_or(0));
            let fit = if step % 3 == 0 { Fit::Instant } else { Fit::Best };
            let before = arena.counts().free;
            match (arena.alloc(size, fit), smallest) {
                (Ok(addr), Some(least)) => {
                    live.push((addr, size));
                    if fit == Fit::Best {
                        // What is left of it stays, or it is gone as a whole.
                        let mut after = Vec::new();
                        arena.walk_free(|segment| after.push(segment.size));
                        let mut expected = free_sizes.clone();
                        expected.remove(expected.iter().position(|&size| size == least).unwrap());
                        if least > size {
                            expected.push(least - size);
                        }
                        expected.sort_unstable();
                        assert_eq!(after, expected, "{size} of {least}");
                    }
                }
                (Err(Error::NoSpace), None) => assert_eq!(arena.counts().free, before),
                (got, smallest) => panic!("{size}: {got:?}, and the smallest is {smallest:?}"),
            }
        } else {
            let (addr, size) = live.swap_remove(random(live.len()));
            arena.free(addr, size).unwrap();
        }
        arena.validate().unwrap();
    }
    for (addr, size) in live {
        arena.free(addr, size).unwrap();
    }
    arena.validate().unwrap();
    assert_eq!(arena.max_free(), 40_000);
}
