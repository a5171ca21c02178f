//! Contiguous memory on a machine of a few hundred frames: what is chosen, what is disturbed for it, and that nothing
//! is lost.
//!
//! Pictures draw a frame as `.` free, `c` cached, `d` dirty, `m` movable, `#` fixed, `_` none there, and `H` what a
//! block has.

extern crate kernmalloc_kern as kern;

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::{World, config};
use kern::TypeId;
use kern::contig::{Contig, ContigError, ContigRequest, TRIES};
use platform::fake::Fake;
use platform::fake_frames::{FRAME, FakeFrames, FrameCall};
use platform::{FrameRun, Misuse, Paddr, Pfn, RawLock as _};

/// The first frame of the machine.
const BASE: u64 = 0x100;

/// An allocator and a machine's memory.
struct Test {
    world: World,
    frames: &'static FakeFrames,
}

impl Test {
    fn new(picture: &str) -> Test {
        Test::with_space(picture, 1 << 20)
    }

    fn with_space(picture: &str, space: usize) -> Test {
        let frames = FakeFrames::new(Pfn(BASE), picture, space).leaked();
        Test { world: World::boot(config(1, 2)), frames }
    }

    fn contig(&self) -> Contig<'_, Fake, FakeFrames> {
        Contig::new(&self.world.system, self.frames)
    }

    fn id(&self) -> TypeId {
        self.world.types[1]
    }

    fn on<T>(&self, f: impl FnOnce() -> T) -> T {
        self.world.machine.run(f)
    }

    fn pages_counted(&self) -> usize {
        self.world.totals(self.id()).bytes_in_use() as usize / FRAME
    }
}

const fn pages(npages: usize) -> ContigRequest {
    ContigRequest::new(npages * FRAME)
}

const fn at(frame: u64) -> Paddr {
    Paddr((BASE + frame) * FRAME as u64)
}

/// Asks for a block; the machine must look like `after`, and the events must be (evicted, laundered, relocated).
fn check(before: &str, request: ContigRequest, after: &str, events: (u64, u64, u64)) {
    let test = Test::new(before);
    let contig = test.contig();
    let contents = test.frames.contents();
    let got = test.on(|| contig.alloc_frames(test.id(), &request));
    assert_eq!(test.frames.picture(), after, "{before} for {request:?}: {got:?}");
    let counts = contig.counts();
    assert_eq!((counts.evicted, counts.laundered, counts.relocated), events, "{before} for {request:?}");
    // What went is what was evicted and laundered, no more; what was moved is where it was moved to.
    let gone = (counts.evicted + counts.laundered) as usize;
    assert_eq!(test.frames.contents().len(), contents.len() - gone);
    assert_eq!(test.frames.written().len() as u64, counts.laundered);
    match got {
        Ok(run) => {
            let drawn = after.find('H').unwrap() as u64;
            assert_eq!(run, FrameRun { first: Pfn(BASE + drawn), npages: after.matches('H').count() });
            test.on(|| contig.free_frames(run)).unwrap();
            assert_eq!(test.frames.picture(), after.replace('H', "."));
        }
        Err(error) => {
            assert_eq!(error, ContigError::NoMemory);
            assert!(!after.contains('H'));
            assert_eq!(test.world.failures(test.id()), 1);
        }
    }
    assert_eq!(test.pages_counted(), 0);
}

#[test]
fn contig_takes_free_frames_before_it_reclaims_any() {
    check("mm..dd...cc.", pages(3), "mm..ddHHHcc.", (0, 0, 0));
    // The highest of equals.
    check("....#....", pages(2), "....#..HH", (0, 0, 0));
    check("...", pages(1), "..H", (0, 0, 0));
}

#[test]
fn contig_passes_go_from_what_is_cheap_to_what_is_not() {
    check(".c.d.m.m.", pages(3), "HHHd.m.m.", (1, 0, 0));
    check("#..d.m.m.", pages(3), "#.HHHm.m.", (0, 1, 0));
    check("#.m.#...#", pages(3), "#.m.#HHH#", (0, 0, 0));
    check("#.m.#.#.#", pages(3), "#HHH#m#.#", (0, 0, 1));
    // Within a pass, the run with the least to do.
    check("ccc#c.c#", pages(3), "ccc#HHH#", (2, 0, 0));
    check("m.d#d#d#.m.#.", pages(3), "mmd#d#d#HHH#.", (0, 0, 1));
}

#[test]
fn contig_keeps_low_high_alignment_and_boundary() {
    let free = "................";
    check(free, ContigRequest { high: Paddr(at(8).0 - 1), ..pages(3) }, ".....HHH........", (0, 0, 0));
    check(free, ContigRequest { high: Paddr(at(8).0 - 2), ..pages(3) }, "....HHH.........", (0, 0, 0));
    check(free, ContigRequest { low: at(14), ..pages(3) }, free, (0, 0, 0));
    check(free, ContigRequest { low: at(13), ..pages(3) }, ".............HHH", (0, 0, 0));
    check(free, ContigRequest { alignment: 8 * FRAME as u64, ..pages(3) }, "........HHH.....", (0, 0, 0));
    check(free, ContigRequest { boundary: 4 * FRAME as u64, ..pages(3) }, ".............HHH", (0, 0, 0));
    check("............#...", ContigRequest { boundary: 4 * FRAME as u64, ..pages(3) }, "............#HHH", (0, 0, 0));
    check("..............#.", ContigRequest { boundary: 4 * FRAME as u64, ..pages(3) }, ".........HHH..#.", (0, 0, 0));
    // Only what serves the request is disturbed, though it costs more than elsewhere.
    check("dddd........", ContigRequest { high: Paddr(at(4).0 - 1), ..pages(2) }, "ddHH........", (0, 2, 0));
    // Memory with a hole in it.
    check("..__..", pages(3), "..__..", (0, 0, 0));
    check("..__...", pages(3), "..__HHH", (0, 0, 0));
}

#[test]
fn contig_nowait_drops_what_can_be_dropped_and_tries_once() {
    let nowait = ContigRequest { wait: false, ..pages(3) };
    check("ccc#ddd#mmm", nowait, "HHH#ddd#mmm", (3, 0, 0));
    check("#ddd#mmm", nowait, "#ddd#mmm", (0, 0, 0));
    let test = Test::new("dd");
    assert!(test.on(|| test.contig().alloc_frames(test.id(), &nowait)).is_err());
    assert_eq!(test.frames.calls_of(FrameCall::WaitForFree), 0);
}

#[test]
fn contig_noreclaim_leaves_everybody_in_peace() {
    check("ccc#ddd#mmm", ContigRequest { reclaim: false, ..pages(3) }, "ccc#ddd#mmm", (0, 0, 0));
    check("...#ddd#mmm", ContigRequest { reclaim: false, ..pages(3) }, "HHH#ddd#mmm", (0, 0, 0));
}

#[test]
fn contig_launders_only_a_run_that_can_satisfy_the_request() {
    // The two at the left never can: fixed frames are around them.
    check("dd#d#dddd", pages(3), "dd#d#dHHH", (0, 3, 0));
    // Nothing can: nothing is laundered.
    check("dd#d#dd#", pages(3), "dd#d#dd#", (0, 0, 0));
}

#[test]
fn contig_withholds_what_it_freed_from_those_who_wait_for_it() {
    let test = Test::new(".d.cdm...");
    // While a frame is laundered or moved, somebody takes every free frame there is, but for the last two.
    test.frames.set_hook(|frames, call| {
        if matches!(call, FrameCall::Launder | FrameCall::Relocate) {
            for index in 0..7 {
                let _ = frames.steal(Pfn(BASE + index));
            }
        }
    });
    let contig = test.contig();
    let request = ContigRequest { low: at(1), high: Paddr(at(6).0 - 1), ..pages(5) };
    let run = test.on(|| contig.alloc_frames(test.id(), &request)).unwrap();
    assert_eq!(run, FrameRun { first: Pfn(BASE + 1), npages: 5 });
    assert_eq!(test.frames.picture(), "#HHHHH#m.");
    assert_eq!(contig.counts().abandoned, 0);
}

#[test]
fn contig_looks_elsewhere_when_a_frame_cannot_be_had() {
    let test = Test::new("...#...#...");
    // The first frame asked for is taken by somebody else at that moment.
    let once = AtomicBool::new(false);
    test.frames.set_hook(move |frames, call| {
        if call == FrameCall::Take && !once.swap(true, Ordering::SeqCst) {
            assert!(frames.steal(Pfn(BASE + 8)));
        }
    });
    let contig = test.contig();
    let run = test.on(|| contig.alloc_frames(test.id(), &pages(3))).unwrap();
    assert_eq!((run.first, contig.counts().abandoned), (Pfn(BASE + 4), 1));
    assert_eq!(test.frames.picture(), "...#HHH##..");
}

#[test]
fn contig_lets_go_when_a_frame_is_put_to_use_meanwhile() {
    let test = Test::new("...#...#...");
    let once = AtomicBool::new(false);
    test.frames.set_hook(move |frames, call| {
        if call == FrameCall::Take && !once.swap(true, Ordering::SeqCst) {
            // Not the frame asked for, but the next.
            assert!(frames.steal(Pfn(BASE + 9)));
        }
    });
    let run = test.on(|| test.contig().alloc_frames(test.id(), &pages(3))).unwrap();
    assert_eq!((run.first, test.frames.picture().as_str()), (Pfn(BASE + 4), "...#HHH#.#."));
}

#[test]
fn contig_asks_no_frame_twice_that_was_refused() {
    let test = Test::new("d#d#d#d");
    [6, 4].iter().for_each(|&index| test.frames.stick(Pfn(BASE + index)));
    let contig = test.contig();
    let run = test.on(|| contig.alloc_frames(test.id(), &pages(1))).unwrap();
    assert_eq!((run.first, contig.counts().abandoned, test.frames.calls()), (Pfn(BASE + 2), 2, 3));
    // One pass gives up in the end, the next begins anew, and all of them end.
    let test = Test::new(&"d".repeat(40));
    (0..40).for_each(|index| test.frames.stick(Pfn(BASE + index)));
    assert_eq!(test.on(|| test.contig().alloc_frames(test.id(), &pages(1))), Err(ContigError::NoMemory));
}

/// Two requests at once, of which the second has a frame that the first has already chosen.
#[test]
fn contig_requests_do_not_take_each_others_frames() {
    let test = Test::new("..d");
    let contig = test.contig();
    let [low, high] =
        [ContigRequest { high: Paddr(at(2).0 - 1), wait: false, ..pages(2) }, ContigRequest { low: at(1), ..pages(2) }];
    let (chosen, was_chosen) = std::sync::mpsc::channel();
    let (held, was_held) = std::sync::mpsc::channel();
    let (over, was_over) = std::sync::mpsc::channel();
    let [was_held, was_over] = [was_held, was_over].map(Mutex::new);
    let first = AtomicBool::new(true);
    test.frames.set_hook(move |_, call| match call {
        FrameCall::Take if first.swap(false, Ordering::SeqCst) => {
            chosen.send(()).unwrap();
            was_held.lock().unwrap().recv().unwrap();
        }
        FrameCall::Launder => {
            held.send(()).unwrap();
            was_over.lock().unwrap().recv().unwrap();
        }
        _ => {}
    });
    std::thread::scope(|scope| {
        let (test, contig) = (&test, &contig);
        scope.spawn(move || {
            // Gone with this thread, should it fail: then nobody waits for it.
            let over = over;
            assert_eq!(test.on(|| contig.alloc_frames(test.id(), &low)), Err(ContigError::NoMemory));
            over.send(()).unwrap();
        });
        was_chosen.recv().unwrap();
        let run = test.on(|| contig.alloc_frames(test.id(), &high)).unwrap();
        assert_eq!(run, FrameRun { first: Pfn(BASE + 1), npages: 2 });
    });
    assert_eq!(test.frames.picture(), ".HH");
}

#[test]
fn contig_that_may_sleep_waits_for_what_others_free() {
    let test = Test::new("#.#.#");
    test.frames.set_hook(|frames, call| {
        if call == FrameCall::WaitForFree && frames.calls_of(FrameCall::WaitForFree) == TRIES as u64 - 1 {
            frames.vacate(Pfn(BASE + 2));
        }
    });
    let run = test.on(|| test.contig().alloc_frames(test.id(), &pages(3))).unwrap();
    assert_eq!(run.first, Pfn(BASE + 1));
    // And not for ever.
    let full = Test::new("#.#.#");
    assert_eq!(full.on(|| full.contig().alloc_frames(full.id(), &pages(3))), Err(ContigError::NoMemory));
    assert_eq!(full.frames.calls_of(FrameCall::WaitForFree), TRIES as u64 - 1);
}

#[test]
fn contig_without_address_space_disturbs_and_keeps_nothing() {
    let test = Test::with_space("dddd", 3);
    let contig = test.contig();
    assert_eq!(test.on(|| contig.alloc(test.id(), &pages(4))), Err(ContigError::NoAddressSpace));
    assert_eq!((test.frames.picture().as_str(), test.frames.reserved()), ("dddd", 0));
    // Page tables are asked for last: then the pages go back, and the address space.
    test.frames.fail_nth(1 + 3 + 1);
    assert_eq!(test.on(|| contig.alloc(test.id(), &pages(3))), Err(ContigError::NoAddressSpace));
    assert_eq!((test.frames.picture().as_str(), test.frames.reserved()), ("d...", 0));
    assert_eq!((test.world.failures(test.id()), contig.counts().fails, test.pages_counted()), (2, 2, 0));
    // Frames alone need none.
    let run = test.on(|| contig.alloc_frames(test.id(), &pages(4))).unwrap();
    assert_eq!((run.npages, test.frames.reserved()), (4, 0));
}

/// Each call of the machine that can fail, failed once, over requests that come by all of them.
#[test]
fn contig_leaks_nothing_whichever_step_fails() {
    const PICTURE: &str = "#.c.d.m.#.mm.#..d#ccc#....#m.m.#..";
    let script = |test: &Test, contig: &Contig<'_, Fake, FakeFrames>| {
        let mut blocks = Vec::new();
        let mut failed = 0;
        for (npages, zero) in [(4, false), (7, true), (3, false), (4, true), (5, false)] {
            let request = ContigRequest { zero, ..pages(npages) };
            match contig.alloc(test.id(), &request) {
                Ok(block) => blocks.push((block, npages)),
                Err(_) => failed += 1,
            }
            let held = blocks.iter().map(|block| block.1).sum::<usize>();
            assert_eq!(test.frames.picture().matches('H').count(), held, "{}", test.frames.picture());
            assert_eq!((test.frames.reserved(), test.pages_counted()), (held, held));
        }
        for (block, npages) in blocks {
            // SAFETY: ours, and not used.
            unsafe { contig.free(block.as_ptr(), npages * FRAME) }.unwrap();
        }
        failed
    };
    let run = |fail_nth: Option<u64>| {
        let test = Test::with_space(PICTURE, 64);
        let contig = test.contig();
        if let Some(nth) = fail_nth {
            test.frames.fail_nth(nth);
        }
        let before = test.frames.contents();
        let failed = test.on(|| script(&test, &contig));
        let counts = contig.counts();
        assert!(!test.frames.picture().contains('H'), "frames stay withheld: {}", test.frames.picture());
        assert_eq!((test.frames.reserved(), test.pages_counted(), counts.pages_in_use), (0, 0, 0));
        assert_eq!((counts.allocs, counts.fails), (counts.frees, failed));
        assert_eq!(test.world.failures(test.id()), failed);
        // Nothing that was in use is lost but what was dropped or is on disk.
        let gone = (counts.evicted + counts.laundered) as usize;
        assert_eq!(test.frames.contents().len(), before.len() - gone);
        test.on(|| test.world.system.validate()).unwrap();
        (test.frames.calls(), FrameCall::ALL.map(|call| test.frames.calls_of(call)))
    };
    let (calls, kinds) = run(None);
    assert!(kinds.iter().all(|&count| count != 0), "the script comes by every call: {kinds:?}");
    for nth in 1..=calls {
        run(Some(nth));
    }
    println!("{calls} points of failure, each failed once");
}

#[test]
fn contig_is_counted_under_its_type_and_freed_with_its_size() {
    let test = Test::new("........");
    let contig = test.contig();
    let other = test.world.types[2];
    test.on(|| {
        let block = contig.alloc(test.id(), &ContigRequest::new(2 * FRAME + 1)).unwrap();
        let totals = test.world.totals(test.id());
        assert_eq!((totals.bytes_in_use(), totals.allocs - totals.frees), (3 * FRAME as u64, 1));
        assert_eq!(test.world.high_water(test.id()), 3 * FRAME as u64);
        let addr = block.as_ptr() as u64;
        let wrong = ContigError::WrongSize { addr, given: 3 * FRAME as u64 + 1, allocated: 3 * FRAME as u64 };
        // SAFETY: ours, and not used.
        unsafe {
            assert_eq!(contig.free(block.as_ptr(), 3 * FRAME + 1), Err(wrong));
            assert!(matches!(contig.free(block.as_ptr(), 2 * FRAME), Err(ContigError::WrongSize { .. })));
            assert!(matches!(contig.free(block.as_ptr(), usize::MAX), Err(ContigError::WrongSize { .. })));
            let inside = block.as_ptr().wrapping_add(FRAME);
            let nothing = ContigError::NotAllocated { addr: inside as u64 };
            assert_eq!(contig.free(inside, 2 * FRAME), Err(nothing));
            assert_eq!(test.pages_counted(), 3);
            contig.free(block.as_ptr(), 2 * FRAME + 1).unwrap();
            assert_eq!(contig.free(block.as_ptr(), 2 * FRAME + 1), Err(ContigError::NotAllocated { addr }));
        }
        assert_eq!((test.pages_counted(), test.world.totals(other).allocs), (0, 0));
    });
    assert_eq!(test.frames.picture(), "........");
}

#[test]
fn contig_memory_is_in_one_piece_and_zero_when_asked() {
    let test = Test::new("#......#");
    let contig = test.contig();
    test.on(|| {
        let request = ContigRequest { zero: true, ..pages(4) };
        let block = contig.alloc(test.id(), &request).unwrap();
        // SAFETY: a block of four pages.
        let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_ptr(), 4 * FRAME) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes.fill(7);
        for index in 0..4 * FRAME {
            let addr = block.as_ptr() as usize + index;
            assert_eq!(contig.physical(addr), Some(Paddr(at(3).0 + index as u64)));
        }
        let found = contig.whatis(block.as_ptr() as usize + 2 * FRAME + 5).unwrap();
        assert_eq!((found.addr, found.run.npages, found.type_id), (block.as_ptr() as usize, 4, test.id()));
        assert_eq!(contig.whatis(block.as_ptr() as usize + 4 * FRAME), None);
        // SAFETY: ours, and not used any more.
        unsafe { contig.free(block.as_ptr(), 4 * FRAME) }.unwrap();
        assert_eq!(contig.whatis(block.as_ptr() as usize), None);
    });
}

#[test]
fn contig_frames_that_are_not_mapped_are_no_addresses() {
    let test = Test::with_space("......", 0);
    let contig = test.contig();
    test.on(|| {
        let run = contig.alloc_frames(test.id(), &ContigRequest { zero: true, ..pages(4) }).unwrap();
        // SAFETY: frames withheld for us.
        let byte = |pfn| unsafe { *test.frames.memory(pfn) };
        assert!(run.frames().all(|pfn| byte(pfn) == 0));
        assert_eq!((test.pages_counted(), contig.counts().pages_in_use), (4, 4));
        assert_eq!(contig.whatis(test.frames.memory(run.first) as usize), None);
        let addr = run.first.0 << 12;
        for wrong in [FrameRun { npages: 3, ..run }, FrameRun { npages: 5, ..run }] {
            assert!(matches!(contig.free_frames(wrong), Err(ContigError::WrongSize { .. })));
        }
        let inside = FrameRun { first: Pfn(run.first.0 + 1), npages: 3 };
        assert!(matches!(contig.free_frames(inside), Err(ContigError::NotAllocated { .. })));
        let nowhere = FrameRun { first: Pfn(3), npages: 1 };
        assert_eq!(contig.free_frames(nowhere), Err(ContigError::NotAllocated { addr: 3 << 12 }));
        contig.free_frames(run).unwrap();
        assert_eq!(contig.free_frames(run), Err(ContigError::NotAllocated { addr }));
        // A mapped block is not freed as frames: its address space would be lost.
    });
    let mapped = Test::new("....");
    mapped.on(|| {
        let contig = mapped.contig();
        contig.alloc(mapped.id(), &pages(4)).unwrap();
        let run = FrameRun { first: Pfn(BASE), npages: 4 };
        assert!(matches!(contig.free_frames(run), Err(ContigError::NotAllocated { .. })));
    });
}

#[test]
fn contig_is_freed_by_free_as_well() {
    // For ever, as a kernel's.
    let test: &'static Test = Box::leak(Box::new(Test::new("......")));
    let contig: &'static Contig<'static, Fake, FakeFrames> =
        Box::leak(Box::new(Contig::new(&test.world.system, test.frames)));
    let outside: &'static &'static dyn kern::OutsideBlocks = Box::leak(Box::new(contig as _));
    test.on(|| {
        let block = contig.alloc(test.id(), &pages(3)).unwrap().as_ptr();
        assert_eq!(test.world.system.usable_bytes(block), 0);
        test.world.system.attach_outside(outside);
        assert_eq!(test.world.system.usable_bytes(block), 3 * FRAME);
        assert_eq!(test.world.system.usable_bytes(block.wrapping_add(FRAME)), 0);
        // SAFETY: ours and not used; the others are reported.
        unsafe {
            test.world.system.free(block.wrapping_add(16), 0);
            assert_eq!(test.pages_counted(), 3);
            test.world.system.free(block, 0);
            assert_eq!((test.pages_counted(), test.frames.reserved()), (0, 0));
            test.world.system.free(block, 0);
        }
    });
    let reports = test.world.machine.take_reports();
    assert_eq!(reports.iter().map(|report| report.what).collect::<Vec<_>>(), [Misuse::ForeignFree; 2]);
}

#[test]
fn contig_that_may_sleep_is_refused_where_nobody_may() {
    let test = Test::new("....");
    let lock = <Fake as platform::Platform>::Lock::INIT;
    test.on(|| {
        lock.lock();
        let got = test.contig().alloc_frames(test.id(), &pages(1));
        // SAFETY: taken above.
        unsafe { lock.unlock() };
        assert!(matches!(got, Err(ContigError::MayNotSleep(_))), "{got:?}");
    });
    assert_eq!(test.frames.calls(), 0);
}

#[test]
fn contig_says_what_is_wrong_with_an_impossible_request() {
    let test = Test::new("....");
    let page = FRAME as u64;
    for (request, why) in [
        (ContigRequest::new(0), "size is 0"),
        (ContigRequest::new(usize::MAX), "the size is beyond what a block can have"),
        (ContigRequest { alignment: 3 * page, ..pages(1) }, "alignment is not a power of two"),
        (ContigRequest { boundary: 3 * page, ..pages(1) }, "boundary is not a power of two"),
        (ContigRequest { boundary: page, ..pages(2) }, "a block of this size crosses the boundary wherever it is"),
        (ContigRequest { low: Paddr(2), high: Paddr(1), ..pages(1) }, "low is above high"),
    ] {
        assert_eq!(test.contig().alloc_frames(test.id(), &request), Err(ContigError::Invalid(why)));
        assert_eq!(test.contig().alloc(test.id(), &request), Err(ContigError::Invalid(why)));
    }
    assert_eq!((test.frames.calls(), test.world.failures(test.id())), (0, 0));
}

/// Random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(x ^ (x >> 31)) * u128::from(bound)) >> 64) as u64
    }
}

/// Random machines and requests against a try of every place: a request is met if and only if a run exists that the
/// flags allow to be had, and in the first pass that has one.
#[test]
fn contig_and_a_try_of_every_place_agree() {
    let machines = if cfg!(debug_assertions) { 300 } else { 3000 };
    let mut random = Random(7);
    for _ in 0..machines {
        let signs: &[u8] =
            [&b"..cdm#"[..], b"...........cdm#_", b"mmmmmmmm..d#", b"cccccdddd.._"][random.below(4) as usize];
        let picture: String = (0..60).map(|_| char::from(signs[random.below(signs.len() as u64) as usize])).collect();
        let test = Test::with_space(&picture, 100);
        let contig = test.contig();
        let mut live: Vec<FrameRun> = Vec::new();
        for _ in 0..12 {
            if !live.is_empty() && random.below(3) == 0 {
                let run = live.swap_remove(random.below(live.len() as u64) as usize);
                test.on(|| contig.free_frames(run)).unwrap();
                continue;
            }
            let npages = 1 + random.below(9) as usize;
            let mut request = pages(npages);
            request.alignment = [0, 0, 2, 8][random.below(4) as usize] * FRAME as u64;
            request.boundary = [0, 0, 0, 16][random.below(4) as usize] * FRAME as u64;
            (request.wait, request.reclaim) = (random.below(3) != 0, random.below(5) != 0);
            if random.below(3) == 0 {
                let ends = [random.below(60), random.below(60)];
                (request.low, request.high) = (at(ends[0].min(ends[1])), Paddr(at(ends[0].max(ends[1]) + 1).0 - 1));
            }
            let before = test.frames.picture();
            let got = test.on(|| contig.alloc_frames(test.id(), &request));
            let meets = |first: usize| {
                let (addr, last) = (at(first as u64).0, at((first + npages) as u64).0 - 1);
                addr >= request.low.0
                    && last <= request.high.0
                    && addr.is_multiple_of(request.alignment.max(1))
                    && (request.boundary == 0 || addr / request.boundary == last / request.boundary)
            };
            let places: Vec<&str> = (0..60 - npages + 1)
                .filter(|&first| meets(first))
                .map(|first| &before[first..first + npages])
                .collect();
            let passes: &[&str] = match (request.reclaim, request.wait) {
                (false, _) => &["."],
                (true, false) => &[".", ".c"],
                (true, true) => &[".", ".c", ".cd", ".cdm"],
            };
            let pass = passes.iter().find(|pass| places.iter().any(|run| run.chars().all(|sign| pass.contains(sign))));
            match (got, pass) {
                (Ok(run), Some(pass)) => {
                    let first = (run.first.0 - BASE) as usize;
                    assert!(meets(first) && run.npages == npages);
                    let had = &before[first..first + npages];
                    assert!(had.chars().all(|sign| pass.contains(sign)), "{had} in {before}, but {pass} would do");
                    live.push(run);
                }
                (Err(ContigError::NoMemory), None) => assert_eq!(test.frames.picture(), before),
                // To move frames takes free ones elsewhere.
                (Err(ContigError::NoMemory), Some(&".cdm")) => {}
                (got, pass) => panic!("{got:?}, but {pass:?} for {request:?} in {before}"),
            }
            let _ = test.frames.contents();
            let held = live.iter().map(|run| run.npages).sum::<usize>();
            assert_eq!((test.frames.picture().matches('H').count(), test.pages_counted()), (held, held));
        }
    }
}

/// Threads that ask for overlapping runs, with frames coming and going: no frame is in two blocks.
#[test]
fn contig_threads_never_share_a_frame() {
    let rounds = if cfg!(debug_assertions) { 300 } else { 2000 };
    let picture = "....mm..cc....mmmm......cccc....mm..".repeat(4);
    let test = Arc::new(Test::new(&picture));
    let contents = test.frames.contents().len();
    let owners: Arc<Mutex<BTreeMap<u64, u64>>> = Arc::default();
    let contig: &'static Contig<'static, Fake, FakeFrames> = {
        let test: &'static Test = Box::leak(Box::new(Arc::clone(&test)));
        Box::leak(Box::new(Contig::new(&test.world.system, test.frames)))
    };
    std::thread::scope(|scope| {
        for me in 0..4_u64 {
            let (test, owners) = (Arc::clone(&test), Arc::clone(&owners));
            scope.spawn(move || {
                let mut random = Random(me);
                for _ in 0..rounds {
                    let request = ContigRequest { wait: random.below(2) == 0, ..pages(1 + random.below(24) as usize) };
                    let Ok(run) = test.on(|| contig.alloc_frames(test.id(), &request)) else { continue };
                    for pfn in run.frames() {
                        assert_eq!(owners.lock().unwrap().insert(pfn.0, me), None, "{pfn:?} is in two blocks");
                    }
                    std::thread::yield_now();
                    for pfn in run.frames() {
                        assert_eq!(owners.lock().unwrap().remove(&pfn.0), Some(me));
                    }
                    test.on(|| contig.free_frames(run)).unwrap();
                }
            });
        }
    });
    assert_eq!(test.frames.contents().len(), contents - contig.counts().evicted as usize);
    assert!(!test.frames.picture().contains('H'));
    assert_eq!((test.pages_counted(), contig.counts().pages_in_use), (0, 0));
}

/// Each slab of such a zone is one run of frames, from where the supply says.
#[test]
fn contig_zones_have_slabs_in_one_piece() {
    use kern::contig::ContigSupply;
    use kern::zone::{Flags, How, ZoneConfig, ZoneError};

    let test = Test::new(&".#..".repeat(64));
    let world: &'static World = Box::leak(Box::new(test.world.clone()));
    let contig: &'static Contig<'static, Fake, FakeFrames> =
        Box::leak(Box::new(Contig::new(&world.system, test.frames)));
    let id = test.id();
    test.on(|| {
        let config = ZoneConfig { flags: Flags::CONTIG, ..ZoneConfig::new("descriptors", 1500, 8) };
        // Without a supply a slab is a page, and what is larger is refused.
        let plain = world.system.zcreate(&config).unwrap();
        assert_eq!(plain.alloc(How::NOWAIT).map(|_| plain.stats().pages), Ok(1));
        let large = ZoneConfig { item_bytes: 2 * FRAME, ..config };
        assert_eq!(world.system.zcreate(&large), Err(ZoneError::Contig(2 * FRAME)));
        let supply: &'static _ = Box::leak(Box::new(ContigSupply::new(contig, id).within(at(100), at(200), 0)));
        let zone = world.system.zcreate(&ZoneConfig { supply: Some(supply.supply()), ..large }).unwrap();
        let items: Vec<_> = std::iter::from_fn(|| zone.alloc(How::NOWAIT).ok()).collect();
        assert!(items.len() >= 20, "{} items", items.len());
        for item in &items {
            let addr = item.as_ptr() as usize;
            let [first, last] = [addr, addr + 2 * FRAME - 1].map(|addr| contig.physical(addr).unwrap().0);
            assert_eq!(last - first, 2 * FRAME as u64 - 1, "an item in two pieces");
            assert!(first >= at(100).0 && last <= at(200).0);
        }
        assert_eq!(test.pages_counted(), zone.stats().pages);
        for item in items {
            // SAFETY: 1. and 2. items of the zone.
            unsafe { zone.free(item.as_ptr()) };
        }
        // SAFETY: 1. forgotten.
        unsafe { zone.destroy().unwrap() };
        assert_eq!((contig.counts().pages_in_use, test.pages_counted()), (0, 0));
    });
}
