//! malloc(9): types, flags and entry points. Tests named after rows of the history are the regression tests for them.

extern crate kernmalloc_kern as kern;

mod common;

use std::time::Duration;

use abi::Ordering;
use common::{World, config};
use kern::malloc::{CanFail, FlagWord, Flags, Malloc, MallocType, NoWait, TypeError, TypeTrace, WaitOk};
use platform::fake::{Fake, FakeLock, Machine, PAGE};
use platform::{Misuse, RawLock as _};

/// A type of its own for each test: a type belongs to one allocator.
fn new_type(name: &'static str) -> &'static MallocType {
    Box::leak(Box::new(MallocType::new(name, "a type of the tests")))
}

fn with_malloc<T>(cpus: usize, test: impl FnOnce(&World, &Malloc<'_, Fake>) -> T) -> T {
    let world = World::boot(config(cpus, 1));
    let malloc = Malloc::new(&world.system);
    world.machine.run(|| {
        let result = test(&world, &malloc);
        world.system.validate().unwrap();
        result
    })
}

fn in_use(world: &World, ty: &MallocType) -> (u64, u64) {
    let totals = world.totals(ty.id().unwrap());
    (totals.in_use(), totals.bytes_in_use())
}

/// What a debugger shows of types: those that are gone only while they own something.
#[test]
fn tables_forget_a_type_whose_module_is_gone() {
    with_malloc(1, |world, malloc| {
        let (tidy, leaky) = (new_type("tidy"), new_type("leaky"));
        let shown = || {
            let (mut malloc_table, mut vmstat) = (String::new(), String::new());
            world.system.show_malloc(&mut malloc_table, false).unwrap();
            world.system.vmstat_m(&mut vmstat).unwrap();
            let both = |name: &str| (malloc_table.contains(name), vmstat.contains(name));
            [both("tidy"), both("leaky")]
        };
        let leaked = malloc.malloc(leaky, 100, NoWait, Flags::NONE).unwrap();
        let block = malloc.malloc(tidy, 100, NoWait, Flags::NONE).unwrap();
        // SAFETY: a block of the test.
        unsafe { malloc.free(block.as_ptr()) };
        assert_eq!(shown(), [(true, true), (true, true)]);
        malloc.unload(&[tidy, leaky]);
        assert_eq!(shown(), [(false, false), (true, true)]);
        // SAFETY: as above.
        unsafe { malloc.free(leaked.as_ptr()) };
        assert_eq!(shown(), [(false, false), (false, false)]);
        // Whoever comes again under the name goes on where it was.
        malloc.load(&[tidy]).unwrap();
        assert_eq!(shown(), [(true, true), (false, false)]);
    });
}

#[test]
fn a_type_is_registered_on_first_use_and_found_by_name() {
    with_malloc(1, |world, malloc| {
        let (a, b) = (new_type("alpha"), new_type("beta"));
        assert_eq!((a.id(), malloc.type_count()), (None, 0));
        let block = malloc.malloc(a, 100, WaitOk, Flags::NONE);
        let other = malloc.malloc(b, 100, NoWait, Flags::NONE).unwrap();
        assert_eq!(in_use(world, a), (1, 112));
        assert_eq!(malloc.type_count(), 2);
        assert!(std::ptr::eq(malloc.find_type("alpha").unwrap(), a));
        assert!(malloc.find_type("gamma").is_none());
        let mut names = Vec::new();
        malloc.for_each_type(|ty| {
            names.push((ty.name(), ty.description()));
            true
        });
        assert_eq!(names, [("beta", "a type of the tests"), ("alpha", "a type of the tests")]);
        let mut private = 5;
        assert!(malloc.set_private(a, (&raw mut private).cast()));
        assert_eq!(malloc.private(a), (&raw mut private).cast());
        // SAFETY: blocks of the test.
        unsafe {
            malloc.free(block.as_ptr());
            malloc.free(other.as_ptr());
            malloc.free(std::ptr::null_mut());
        }
        assert_eq!(in_use(world, a), (0, 0));
    });
}

/// F: private data in its own zone: there from the registration to the end of the type, and seen by who looks at zones.
#[test]
fn private_data_comes_from_a_zone_of_its_own() {
    with_malloc(2, |world, malloc| {
        let in_zone = || {
            let mut found = None;
            world.system.each_zone(|zone| {
                if abi::c_text(&zone.name()) == b"mt_zone" {
                    found = Some(zone.in_use());
                }
            });
            found
        };
        assert_eq!(in_zone(), None, "no type, no zone");
        let (a, b) = (new_type("alpha"), new_type("beta"));
        let mut mine = 0;
        let mine: *mut () = (&raw mut mine).cast();
        assert!(!malloc.set_private(a, mine), "it is nobody's yet");
        malloc.attach(a).unwrap();
        // SAFETY: a block of the test.
        unsafe { malloc.free(malloc.malloc(b, 8, NoWait, Flags::NONE).unwrap().as_ptr()) };
        assert_eq!(in_zone(), Some(2));
        assert!(malloc.set_private(a, mine));
        assert!(malloc.private(a) == mine && malloc.private(b).is_null());
        // Both refused: nothing is left behind.
        assert_eq!(malloc.attach(a), Err(TypeError::Attached("alpha")));
        assert_eq!(in_zone(), Some(2));
        malloc.detach(a).unwrap();
        assert_eq!((in_zone(), malloc.private(a)), (Some(1), std::ptr::null_mut()));
        assert!(malloc.detach(a).is_err());
        malloc.attach(a).unwrap();
        assert_eq!((in_zone(), malloc.private(a)), (Some(2), std::ptr::null_mut()), "nothing of its first life");
        world.system.validate().unwrap();
    });
}

/// No memory for the private data: the request is met, credited to the row for all, and the next one registers the type.
#[test]
fn a_type_without_memory_for_its_private_data_is_registered_later() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("patient");
        let warm = world.system.alloc(100, world.types[0]);
        world.machine.set_heap_budget(Some(0));
        world.system.set_page_limit(0, 0);
        assert_eq!(malloc.attach(ty), Err(TypeError::Memory("patient")));
        let block = malloc.malloc(ty, 100, NoWait, Flags::NONE).expect("there is a slab");
        assert_eq!((ty.id(), ty.ordinary_id()), (None, None));
        world.machine.heal();
        world.system.set_page_limit(u64::MAX, 0);
        let other = malloc.malloc(ty, 100, NoWait, Flags::NONE).unwrap();
        assert_eq!(in_use(world, ty), (1, 112));
        // SAFETY: blocks of the test.
        unsafe {
            malloc.free(block.as_ptr());
            malloc.free(other.as_ptr());
            malloc.free(warm);
        }
    });
}

/// F: the magic is checked on every use.
#[test]
fn a_type_that_is_none_is_reported() {
    with_malloc(1, |world, malloc| {
        // A type that was overwritten: zeros are a valid value of every field but the magic.
        let ty: &'static mut std::mem::MaybeUninit<MallocType> =
            Box::leak(Box::new(std::mem::MaybeUninit::new(MallocType::new("broken", ""))));
        let at = ty.as_ptr() as usize;
        for offset in (0..size_of::<MallocType>()).step_by(8) {
            let word = (at + offset) as *mut u64;
            // SAFETY: inside the type, which nobody else knows. The texts and the limit stay.
            unsafe {
                if *word >> 32 == 877_983_977 {
                    *word = 0xdead_beef;
                }
            }
        }
        // SAFETY: initialised above.
        let ty: &'static MallocType = unsafe { ty.assume_init_ref() };
        assert!(malloc.malloc(ty, 10, NoWait, Flags::NONE).is_none());
        assert!(malloc.malloc_flags(ty, 10, FlagWord(FlagWord::WAITOK)).is_null());
        assert_eq!(malloc.attach(ty), Err(TypeError::NotAttached("broken")));
        let reports = world.machine.take_reports();
        assert!(reports.iter().all(|report| report.what == Misuse::BadType && report.addr == at), "{reports:?}");
        assert_eq!(reports.len(), 3);
    });
}

kern::malloc_types! {
    /// A module's.
    static MODULE;
    M_MOD_BUFFERS: "modbuf", "a module's buffers";
    M_MOD_QUEUE: "modqueue", "a module's queue";
}

/// F: module load and unload, with the leak warning.
#[test]
fn a_module_comes_and_goes_and_its_leaks_are_warned_of() {
    with_malloc(2, |world, malloc| {
        malloc.load(MODULE).unwrap();
        assert_eq!(malloc.type_count(), 2);
        assert_eq!(malloc.load(MODULE), Err(TypeError::Attached("modbuf")));
        assert_eq!(world.machine.take_reports()[0].what, Misuse::TypeList);
        let leaked: Vec<_> = (0..3).map(|_| malloc.malloc(&M_MOD_BUFFERS, 1000, WaitOk, Flags::NONE)).collect();
        let id = M_MOD_BUFFERS.id().unwrap();
        malloc.unload(MODULE);
        assert_eq!(
            world.machine.take_warnings(),
            ["Warning: memory type modbuf leaked memory on destroy (3 allocations, 3072 bytes leaked)."]
        );
        assert_eq!((malloc.type_count(), M_MOD_BUFFERS.id()), (0, None));
        assert!(malloc.find_type("modbuf").is_none());
        // What leaked is still counted, and can still be freed.
        assert_eq!(world.totals(id).in_use(), 3);
        // SAFETY: a block of the test.
        unsafe { malloc.free(leaked[0].as_ptr()) };
        assert_eq!(world.totals(id).in_use(), 2);
        assert_eq!(malloc.detach(&M_MOD_QUEUE), Err(TypeError::NotAttached("modqueue")));
        assert_eq!(world.machine.take_reports()[0].what, Misuse::TypeList);
        // The module comes again: its types go on with their rows, or a module that is loaded often would fill the table.
        for _ in 0..100 {
            malloc.load(MODULE).unwrap();
            assert_eq!(M_MOD_BUFFERS.id(), Some(id));
            malloc.unload(MODULE);
        }
        assert_eq!(world.machine.take_warnings().len(), 100);
    });
}

#[test]
fn types_beyond_the_table_are_credited_to_its_overflow() {
    with_malloc(1, |world, malloc| {
        for n in 0..common::SPARE_TYPES {
            malloc.attach(new_type(format!("type {n}").leak())).unwrap();
        }
        let beyond = new_type("one too many");
        assert_eq!(malloc.attach(beyond), Err(TypeError::Full("one too many")));
        let block = malloc.malloc(beyond, 100, WaitOk, Flags::NONE);
        assert_eq!(world.totals(kern::TypeId::OVERFLOW).in_use(), 1);
        // SAFETY: a block of the test.
        unsafe { malloc.free(block.as_ptr()) };
        assert_eq!(world.totals(kern::TypeId::OVERFLOW).in_use(), 0);
        let loaded = malloc.load(&[new_type("a"), new_type("b")]);
        assert_eq!(loaded, Err(TypeError::Full("a")));
    });
}

/// N1.65: the bytes asked for are zero, whatever lay there before.
#[test]
fn n1_65_zeroed_blocks_are_zero() {
    with_malloc(1, |_, malloc| {
        let ty = new_type("zero");
        for bytes in [1, 16, 100, 4096, 5000, 65_536, 100_000, 3 << 20] {
            for round in 0..3 {
                let block = malloc.malloc(ty, bytes, WaitOk, Flags::ZERO).as_ptr();
                // SAFETY: a block of the test, so long.
                unsafe {
                    let slice = std::slice::from_raw_parts_mut(block, bytes);
                    assert!(slice.iter().all(|&byte| byte == 0), "{bytes} bytes, round {round}");
                    slice.fill(0xa5);
                    malloc.free(block);
                }
            }
            let aligned = malloc.malloc_aligned(ty, bytes, 8192, WaitOk, Flags::ZERO).as_ptr();
            // SAFETY: as above.
            unsafe {
                assert!(std::slice::from_raw_parts(aligned, bytes).iter().all(|&byte| byte == 0));
                assert!((aligned as usize).is_multiple_of(8192));
                malloc.free(aligned);
            }
        }
    });
}

/// N1.137, N1.138: aligned for any type, and from a page on to the page, also after realloc.
#[test]
fn n1_137_138_blocks_are_aligned_and_pages_are_page_aligned() {
    with_malloc(1, |_, malloc| {
        let ty = new_type("align");
        let word = FlagWord(FlagWord::NOWAIT);
        let mut blocks = Vec::new();
        for bytes in (0..400).map(|n| n * 331).chain([PAGE, PAGE + 1, 5120, 65_536, 65_537, 3 << 20]) {
            let block = malloc.malloc(ty, bytes, NoWait, Flags::NONE).unwrap().as_ptr();
            let align = if bytes >= PAGE { PAGE } else { 16 };
            assert!((block as usize).is_multiple_of(align), "{bytes} bytes at {block:p}");
            assert_eq!(malloc.malloc_usable_size(block), Malloc::<Fake>::malloc_size(bytes));
            blocks.push(block);
        }
        for (n, &block) in blocks.iter().enumerate() {
            let bytes = 1 + n * 517 % 20_000;
            // SAFETY: a block of the test.
            let block = unsafe { malloc.realloc(ty, block, bytes, word) }.unwrap().as_ptr();
            let align = if bytes >= PAGE { PAGE } else { 16 };
            assert!((block as usize).is_multiple_of(align), "{bytes} bytes at {block:p}");
            // SAFETY: as above.
            unsafe { malloc.free(block) };
        }
    });
}

/// N1.146: a size near the end of the range fails, and never wraps to a small one.
#[test]
fn n1_146_huge_sizes_fail() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("huge");
        for bytes in [usize::MAX, usize::MAX - 15, usize::MAX - PAGE, isize::MAX as usize, 1 << 62] {
            assert!(malloc.malloc(ty, bytes, NoWait, Flags::NONE).is_none());
            assert!(malloc.malloc(ty, bytes, NoWait, Flags::ZERO).is_none());
            assert!(malloc.malloc(ty, bytes, CanFail, Flags::NONE).is_none());
            assert!(malloc.malloc_aligned(ty, bytes, PAGE, NoWait, Flags::NONE).is_none());
            assert!(Malloc::<Fake>::malloc_size(bytes) >= bytes);
        }
        assert!(malloc.malloc_aligned(ty, 16, 1 << 63, NoWait, Flags::NONE).is_none());
        assert!(malloc.mallocarray(ty, usize::MAX / 8 + 2, 8, NoWait, Flags::NONE).is_none());
        assert!(malloc.mallocarray(ty, usize::MAX, usize::MAX, NoWait, Flags::NONE).is_none());
        assert!(malloc.mallocarray(ty, 3, 5, NoWait, Flags::NONE).is_some());
        assert_eq!(world.failures(ty.id().unwrap()), 5 * 4 + 3);
        assert_eq!(in_use(world, ty), (1, 16));
    });
}

/// Larger than the address space of the heap: it would sleep for ever.
#[test]
#[should_panic(expected = "can never be had")]
fn a_request_larger_than_the_heap_can_grow_does_not_sleep() {
    with_malloc(1, |_, malloc| malloc.malloc(new_type("vast"), 1 << 47, WaitOk, Flags::NONE));
}

#[test]
#[should_panic(expected = "can never be had")]
fn a_request_that_cannot_fail_and_can_never_be_met_is_a_panic() {
    with_malloc(1, |_, malloc| malloc.malloc(new_type("never"), usize::MAX / 2, WaitOk, Flags::NONE));
}

/// N1.136, N1.150: what counts is the size that the block really has.
#[test]
fn n1_136_150_realloc_goes_by_the_true_size() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("realloc");
        let word = FlagWord(FlagWord::NOWAIT);
        // SAFETY: blocks of the test, used within their usable size.
        unsafe {
            let block = malloc.realloc(ty, std::ptr::null_mut(), 65, word).unwrap().as_ptr();
            assert_eq!(malloc.malloc_usable_size(block), 80);
            block.write_bytes(0x5a, 80);
            // Fits, and more than half: stays. At half or below: moves.
            for bytes in [80, 41, 79] {
                assert_eq!(malloc.realloc(ty, block, bytes, word).unwrap().as_ptr(), block, "{bytes}");
            }
            let small = malloc.realloc(ty, block, 40, word).unwrap().as_ptr();
            assert_ne!(small, block);
            assert_eq!(malloc.malloc_usable_size(small), 48);
            // All of the old block is copied, not what was asked for when it was made.
            let large = malloc.realloc(ty, small, 48, word).unwrap().as_ptr();
            large.add(47).write(0x77);
            let large = malloc.realloc(ty, large, 9000, word).unwrap().as_ptr();
            assert_eq!((large.read(), large.add(39).read(), large.add(47).read()), (0x5a, 0x5a, 0x77));
            // The smallest block is never too large.
            let least = malloc.malloc(ty, 16, NoWait, Flags::NONE).unwrap().as_ptr();
            assert_eq!(malloc.realloc(ty, least, 1, word).unwrap().as_ptr(), least);
            // No bytes: freed, and nothing comes back.
            assert!(malloc.realloc(ty, least, 0, word).is_none());
            assert!(malloc.realloc(ty, large, 0, word).is_none());
        }
        assert_eq!(in_use(world, ty), (0, 0));
    });
}

#[test]
fn a_realloc_that_fails_leaves_the_block_and_reallocf_frees_it() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("reallocf");
        let word = FlagWord(FlagWord::NOWAIT);
        // SAFETY: blocks of the test.
        unsafe {
            let block = malloc.malloc(ty, 100, NoWait, Flags::NONE).unwrap().as_ptr();
            block.write_bytes(7, 100);
            assert!(malloc.realloc(ty, block, usize::MAX / 2, word).is_none());
            assert_eq!((in_use(world, ty), block.add(99).read()), ((1, 112), 7));
            assert!(malloc.reallocf(ty, block, usize::MAX / 2, word).is_none());
            assert_eq!(in_use(world, ty), (0, 0));
            // What is no block is reported once, and not freed on top of that.
            assert!(malloc.reallocf(ty, block, 200, word).is_none());
            let reports = world.machine.take_reports();
            assert_eq!((reports.len(), reports[0].what), (1, Misuse::DuplicateFree));
            let block = malloc.reallocf(ty, std::ptr::null_mut(), 10, word).unwrap().as_ptr();
            assert!(malloc.reallocf(ty, block, 0, word).is_none());
        }
        assert_eq!(in_use(world, ty), (0, 0));
    });
}

/// N1.70.
#[test]
fn n1_70_malloc_roundup_is_what_would_be_served() {
    with_malloc(1, |_, malloc| {
        let ty = new_type("roundup");
        for bytes in (0..3000).step_by(7).chain((3000..200_000).step_by(997)).chain([3 << 20, (5 << 20) + 1]) {
            let block = malloc.malloc(ty, bytes, NoWait, Flags::NONE).unwrap();
            assert_eq!(malloc.malloc_usable_size(block.as_ptr()), Malloc::<Fake>::malloc_size(bytes), "{bytes}");
            // SAFETY: a block of the test.
            unsafe { malloc.free(block.as_ptr()) };
        }
    });
}

#[test]
fn zfree_leaves_nothing_behind() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("zfree");
        for bytes in [100, 5000, 70_000] {
            let block = malloc.malloc(ty, bytes, NoWait, Flags::NONE).unwrap().as_ptr();
            // SAFETY: a block of the test; freed memory of the fake machine stays readable.
            unsafe {
                let usable = malloc.malloc_usable_size(block);
                block.write_bytes(0xee, usable);
                malloc.zfree(block);
                // The first word remembers who freed it.
                assert!((8..usable).all(|at| block.add(at).read() == 0), "{bytes}");
            }
        }
        // SAFETY: null is nothing.
        unsafe { malloc.zfree(std::ptr::null_mut()) };
        assert_eq!(in_use(world, ty), (0, 0));
    });
}

/// N1.16: a free of a free block, or of one that looks free, is told from an ordinary one, and harms nothing. N1.79: in use never
/// falls below nothing.
#[test]
fn n1_16_79_a_second_free_is_reported_and_nothing_underflows() {
    with_malloc(2, |world, malloc| {
        let ty = new_type("twice");
        for bytes in [48, 5000, 70_000, 3 << 20] {
            let block = malloc.malloc(ty, bytes, NoWait, Flags::NONE).unwrap().as_ptr();
            // A block full of what free items hold is no free item.
            for pattern in [0u64, 0xdead_beef_dead_beef, 0xdead_c0de_dead_c0de, block as u64] {
                for at in (0..bytes).step_by(8) {
                    // SAFETY: a block of the test.
                    unsafe { block.add(at).cast::<u64>().write(pattern) };
                }
            }
            // SAFETY: a block of the test, and then a deliberate mistake.
            unsafe {
                malloc.free(block);
                assert!(world.machine.take_reports().is_empty());
                Machine::set_cpu(Some(1));
                malloc.free(block);
                malloc.free(block);
                Machine::set_cpu(Some(0));
            }
            let reports = world.machine.take_reports();
            assert_eq!(reports.len(), 2);
            assert!(reports.iter().all(|report| report.what == Misuse::DuplicateFree), "{bytes}: {reports:?}");
            assert_eq!(in_use(world, ty), (0, 0), "{bytes}");
            world.system.validate().unwrap();
        }
    });
}

/// N1.129, N1.130, N1.133: active allocations are counted in 64 bits, per size.
#[test]
fn n1_133_more_than_65536_active_items_are_counted() {
    with_malloc(2, |world, malloc| {
        let ty = new_type("many");
        let blocks: Vec<_> = (0..70_000).map(|_| malloc.malloc(ty, 16, NoWait, Flags::NONE).unwrap()).collect();
        assert_eq!(in_use(world, ty), (70_000, 70_000 * 16));
        world.system.publish_zones();
        assert_eq!(world.zone_in_use(0), 70_000);
        for block in blocks {
            // SAFETY: a block of the test.
            unsafe { malloc.free(block.as_ptr()) };
        }
        world.system.publish_zones();
        assert_eq!((in_use(world, ty), world.zone_in_use(0)), ((0, 0), 0));
    });
}

/// N1.44, N1.61, F (WITNESS): a request that may sleep where that is not allowed is reported with what is held, also when there
/// is memory.
#[test]
fn n1_44_61_sleeping_requests_in_the_wrong_place_are_reported() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("sleepy");
        malloc.attach(ty).unwrap();
        let report = |expected: &'static str| {
            let reports = world.machine.take_reports();
            assert_eq!(reports.len(), 1, "{reports:?}");
            assert_eq!(reports[0].what, Misuse::MaySleep(expected));
            assert_eq!(reports[0].type_index, Some(ty.id().unwrap().index() as u16));
        };
        let block = Machine::interrupt(|| malloc.malloc(ty, 100, WaitOk, Flags::NONE));
        report("in an interrupt");
        assert!(Machine::interrupt(|| malloc.malloc(ty, 100, CanFail, Flags::NONE)).is_some());
        report("in an interrupt");
        // SAFETY: a block of the test.
        let grown =
            Machine::interrupt(|| unsafe { malloc.realloc(ty, block.as_ptr(), 5000, FlagWord(FlagWord::WAITOK)) });
        assert!(grown.is_some());
        assert!(world.machine.take_reports().iter().all(|r| r.what == Misuse::MaySleep("in an interrupt")));
        assert!(Machine::interrupt(|| malloc.malloc(ty, 100, NoWait, Flags::NONE)).is_some());
        malloc.set_limit(ty, 1 << 20);
        Machine::interrupt(|| malloc.malloc(ty, 100, WaitOk, Flags::NONE));
        report("in an interrupt");
        assert!(malloc.malloc(ty, 100, CanFail, Flags::NONE).is_some());
        assert!(world.machine.take_reports().is_empty());
    });
}

#[test]
fn flags_that_make_no_sense_are_reported() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("flags");
        for word in [0, FlagWord::NOWAIT | FlagWord::WAITOK, FlagWord::CANFAIL, FlagWord::NOWAIT | 1 << 20] {
            assert!(!malloc.malloc_flags(ty, 10, FlagWord(word)).is_null());
            let reports = world.machine.take_reports();
            assert_eq!((reports.len(), reports[0].what, reports[0].addr), (1, Misuse::BadRequest, word as usize));
        }
    });
}

/// F: malloc_last_fail.
#[test]
fn malloc_last_fail_says_how_many_seconds_ago() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("fail");
        assert_eq!(malloc.malloc_last_fail(), None);
        world.machine.advance(Duration::from_secs(5));
        assert!(malloc.malloc(ty, usize::MAX, NoWait, Flags::NONE).is_none());
        assert_eq!(malloc.malloc_last_fail(), Some(0));
        world.machine.advance(Duration::from_millis(12_300));
        assert_eq!(malloc.malloc_last_fail(), Some(12));
    });
}

/// Takes all the memory there is.
fn exhaust(malloc: &Malloc<'_, Fake>, ty: &'static MallocType) -> Vec<std::ptr::NonNull<u8>> {
    let mut blocks = Vec::new();
    for bytes in [200_000, 70_000, 40_000, 5000, 300, 16] {
        while let Some(block) = malloc.malloc(ty, bytes, NoWait, Flags::NONE) {
            blocks.push(block);
        }
    }
    blocks
}

/// N1.17: a request that may wait makes others give memory up before it waits or fails.
#[test]
fn n1_17_caches_are_reclaimed_before_a_request_gives_up() {
    with_malloc(2, |world, malloc| {
        let ty = new_type("reclaim");
        world.machine.set_heap_budget(Some(600));
        let small: Vec<_> = (0..3000).map(|_| malloc.malloc(ty, 256, NoWait, Flags::NONE).unwrap()).collect();
        let rest = exhaust(malloc, ty);
        for block in small {
            // SAFETY: a block of the test.
            unsafe { malloc.free(block.as_ptr()) };
        }
        // All of it lies in caches, depots and slabs of another size. Who may not wait goes without.
        Machine::set_cpu(Some(1));
        assert!(malloc.malloc(ty, 300_000, NoWait, Flags::NONE).is_none());
        let block = malloc.malloc(ty, 300_000, WaitOk, Flags::NONE);
        let record = world.system.type_record(ty.id().unwrap());
        assert_eq!(record.map_blocks.load(Ordering::Relaxed), 0, "it slept");
        for block in rest.into_iter().chain([block]) {
            // SAFETY: a block of the test.
            unsafe { malloc.free(block.as_ptr()) };
        }
        assert_eq!(in_use(world, ty), (0, 0));
    });
}

/// The reserve is for those who say that they may have it.
#[test]
fn the_reserve_is_for_those_who_may_use_it() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("reserve");
        world.system.set_page_limit(512, 64);
        let blocks = exhaust(malloc, ty);
        assert!(world.system.page_counts().out <= 512 - 64);
        let failures = world.failures(ty.id().unwrap());
        let mut got = Vec::new();
        while let Some(block) = malloc.malloc(ty, 2 * PAGE + 40_000, NoWait, Flags::USE_RESERVE) {
            got.push(block);
        }
        assert!(got.len() >= 2, "{} blocks", got.len());
        assert_eq!(world.failures(ty.id().unwrap()), failures + 1);
        assert!(world.system.page_counts().out <= 512);
        assert!(malloc.malloc(ty, 2 * PAGE + 40_000, NoWait, Flags::NONE).is_none());
        // Larger than everything: no use to wait for it.
        assert!(malloc.malloc(ty, 513 * PAGE, CanFail, Flags::NONE).is_none());
        for block in blocks.into_iter().chain(got) {
            // SAFETY: a block of the test.
            unsafe { malloc.free(block.as_ptr()) };
        }
    });
}

/// F (WITNESS): with a lock held.
#[test]
fn f_waitok_with_a_lock_held_is_reported() {
    let world = World::boot(platform::fake::Config { strict: false, ..config(1, 1) });
    let malloc = Malloc::new(&world.system);
    world.machine.run(|| {
        let ty = new_type("locked");
        let lock: platform::Lock<platform::fake::FakeLock, ()> = platform::Lock::new(());
        let guard = lock.lock();
        malloc.malloc(ty, 100, WaitOk, Flags::NONE);
        let reports = world.machine.take_reports();
        assert_eq!((reports.len(), reports[0].what), (1, Misuse::MaySleep("a lock is held")));
        assert!(malloc.malloc(ty, 100, NoWait, Flags::NONE).is_some());
        drop(guard);
        malloc.malloc(ty, 100, WaitOk, Flags::NONE);
        assert!(world.machine.take_reports().is_empty());
    });
}

/// N1.97: memory is taken from the machine in large pieces.
#[test]
fn n1_97_memory_is_taken_in_large_pieces() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("pieces");
        for _ in 0..(64 << 20) / 512 {
            malloc.malloc(ty, 500, NoWait, Flags::NONE).unwrap();
        }
        let calls = world.machine.calls(platform::fake::Call::ExtendHeap);
        assert!(world.machine.heap_given() >= 64 << 20 && calls <= 32, "{calls} calls");
    });
}

#[test]
fn pages_of_a_kind_are_made_so_and_ordinary_again_at_free() {
    use platform::PageKind;
    use platform::fake::Call;

    with_malloc(2, |world, malloc| {
        let ty = new_type("code");
        let machine = &world.machine;
        let word = FlagWord(FlagWord::NOWAIT);
        for bytes in [10, PAGE, 70_000, 3 << 20] {
            let code = malloc.malloc_exec(ty, bytes, WaitOk, Flags::ZERO).as_ptr();
            let quiet = malloc.malloc(ty, bytes, NoWait, Flags::NODUMP).unwrap().as_ptr();
            for at in (0..bytes).step_by(PAGE) {
                let (code, quiet) = (code as usize + at, quiet as usize + at);
                assert_eq!(machine.page_kind(code), PageKind { executable: true, dumped: true });
                // A hint, for what is smaller than a page.
                let dumped = bytes < PAGE;
                assert_eq!(machine.page_kind(quiet), PageKind { executable: false, dumped });
            }
            // SAFETY: blocks of the test.
            unsafe {
                code.write(0xc3);
                let moved = malloc.realloc(ty, code, bytes + 5000, word).unwrap().as_ptr();
                assert_eq!((moved.read(), machine.page_kind(moved as usize).executable), (0xc3, true));
                assert!(!machine.page_kind(code as usize).executable || moved == code);
                malloc.free(moved);
                malloc.zfree(quiet);
            }
            assert_eq!((machine.special_pages(), in_use(world, ty)), (0, (0, 0)), "{bytes}");
        }
        // A port that cannot.
        machine.fail_every(Call::SetPageKind, 1);
        let failures = world.failures(ty.id().unwrap());
        assert!(malloc.malloc_exec(ty, 100, NoWait, Flags::NONE).is_none());
        assert!(malloc.malloc_exec(ty, 100, CanFail, Flags::NONE).is_none());
        assert_eq!(world.failures(ty.id().unwrap()), failures + 2);
        machine.heal();
        assert_eq!((machine.special_pages(), in_use(world, ty)), (0, (0, 0)));
        assert_eq!(world.totals(kern::TypeId::MALLOC).in_use(), 0);
        assert!(machine.take_reports().is_empty());
    });
}

/// Whoever frees such a block, or resizes it, need not know what it is.
#[test]
fn a_block_of_special_pages_goes_back_by_any_free() {
    use platform::PageKind;

    with_malloc(2, |world, malloc| {
        let (ty, machine, system) = (new_type("special"), &world.machine, &world.system);
        let id = system.register_type(abi::type_kind::STATIC, abi::NO_LIB, 0, b"other").unwrap();
        let kind = PageKind { executable: true, dumped: false };
        let block = malloc.malloc(ty, 3 * PAGE, NoWait, Flags::EXEC | Flags::NODUMP).unwrap().as_ptr();
        assert_eq!((system.special_kind(block), machine.page_kind(block as usize + 2 * PAGE)), (Some(kind), kind));
        let info = system.lookup(block as usize + 2 * PAGE + 5).unwrap();
        assert_eq!(
            (info.addr, info.bytes, info.live, info.is_run),
            (block as usize, system.usable_bytes(block), true, true)
        );
        // SAFETY: blocks of the test; pointers into them are reported and left alone.
        unsafe {
            block.write(0xc3);
            let larger = system.realloc(block, 9 * PAGE, id, 1);
            assert_eq!((larger.read(), system.special_kind(larger)), (0xc3, Some(kind)));
            assert_eq!((in_use(world, ty), world.totals(id).in_use()), ((0, 0), 1));
            system.free(larger.add(PAGE), 1);
            system.free(larger.add(16), 1);
            assert_eq!(
                machine.take_reports().iter().map(|report| report.what).collect::<Vec<_>>(),
                [platform::Misuse::UnalignedFree, platform::Misuse::UnalignedFree,]
            );
            system.free(larger, 1);
            assert_eq!((machine.special_pages(), world.totals(id).in_use()), (0, 0));
            system.free(larger, 1);
            assert_eq!(machine.take_reports()[0].what, platform::Misuse::DuplicateFree);
        }
        // What comes there next is ordinary.
        let again: Vec<_> =
            (0..20).map(|_| malloc.malloc(ty, 9 * PAGE, NoWait, Flags::NONE).unwrap().as_ptr()).collect();
        assert!(again.iter().all(|&block| system.special_kind(block).is_none()));
        assert!(!again.iter().any(|&block| machine.page_kind(block as usize).executable));
        // An ordinary block of pages can be made special; an item cannot.
        // SAFETY: 1. blocks of the test.
        unsafe {
            assert!(system.make_special(again[0], kind));
            assert!(!system.make_special(again[0], kind), "twice");
            assert!(!system.make_special(again[1].add(16), kind));
            let item = system.alloc(100, id);
            assert!(!system.make_special(item, kind));
            system.free(item, 1);
            again.into_iter().for_each(|block| system.free(block, 1));
        }
        assert_eq!((machine.special_pages(), in_use(world, ty)), (0, (0, 0)));
        world.system.validate().unwrap();
    });
}

/// F: what is reported names the locks held, in the order in which they were taken; by malloc, kmem and zones.
#[test]
fn the_report_of_a_sleep_with_locks_held_names_them() {
    let world = World::boot(platform::fake::Config { strict: false, ..config(1, 1) });
    let malloc = Malloc::new(&world.system);
    let [queue, vnode, nameless] = [const { FakeLock::INIT }; 3];
    world.machine.name_lock(&queue, "disk queue");
    world.machine.name_lock(&vnode, "vnode");
    world.machine.run(|| {
        let ty = new_type("sleepy");
        let zone = world.system.zcreate(&kern::zone::ZoneConfig::new("inodes", 100, 8)).unwrap();
        for (locks, expected) in [
            (&[&queue][..], "held: disk queue"),
            (&[&queue, &nameless, &vnode], "held: disk queue, vnode"),
            (&[&nameless], "a lock is held"),
        ] {
            locks.iter().for_each(|lock| lock.lock());
            // There is memory: the mistake is one all the same.
            let blocks = [malloc.malloc(ty, 100, WaitOk, Flags::NONE), malloc.kmem_alloc(100, WaitOk)];
            let item = zone.alloc(kern::zone::How::WAIT).unwrap();
            for lock in locks {
                // SAFETY: 1. taken above.
                unsafe { lock.unlock() };
            }
            let said: Vec<_> = world.machine.take_reports().iter().map(|report| report.what).collect();
            assert_eq!(said, [Misuse::MaySleep(expected); 2]);
            let warning = format!("zone inodes: a request that may sleep, but {expected}");
            assert_eq!(world.machine.take_warnings(), [warning]);
            // SAFETY: blocks and an item of the test.
            unsafe {
                malloc.free(blocks[0].as_ptr());
                malloc.kmem_free(blocks[1].as_ptr(), 100);
                zone.free(item.as_ptr());
            }
        }
    });
}

/// A type's name, whether it was a free, block, bytes, flags.
type Told = (&'static str, bool, usize, usize, Flags);

thread_local! {
    /// What the probes of this test's thread were told.
    static TRACED: std::cell::RefCell<Vec<Told>> = const { std::cell::RefCell::new(Vec::new()) };
}

static TRACE: TypeTrace = TypeTrace {
    malloc: |ty, block, bytes, flags| {
        TRACED.with_borrow_mut(|seen| seen.push((ty.name(), false, block.as_ptr() as usize, bytes, flags)));
    },
    free: |ty, block, bytes| {
        TRACED.with_borrow_mut(|seen| seen.push((ty.name(), true, block.as_ptr() as usize, bytes, Flags::NONE)));
    },
};

/// F: trace probes of types: each request that was met and each free, of the types that are traced and no others.
#[test]
fn a_trace_is_told_of_every_block_of_its_type() {
    with_malloc(2, |world, malloc| {
        let (traced, limited, other) = (new_type("traced"), new_type("limited"), new_type("other"));
        let alloc = |ty, bytes, flags| malloc.malloc(ty, bytes, NoWait, flags).map(|block| block.as_ptr() as usize);
        // SAFETY: every block is one of the test, freed once.
        let free = |block: usize| unsafe { malloc.free(block as *mut u8) };
        let early = alloc(traced, 100, Flags::NONE).unwrap();
        malloc.set_limit(limited, 3000);
        malloc.set_trace(traced, Some(&TRACE));
        malloc.set_trace(limited, Some(&TRACE));
        let mut expected = Vec::new();
        let mut blocks = Vec::new();
        for (ty, bytes, flags) in [
            (traced, 100, Flags::ZERO),
            (other, 100, Flags::NONE),
            (limited, 5000, Flags::NONE),
            (traced, 70_000, Flags::USE_RESERVE),
            (other, 70_000, Flags::NONE),
            (traced, 3 << 20, Flags::NONE),
        ] {
            let block = alloc(ty, bytes, flags).unwrap();
            blocks.push((ty, block, malloc.malloc_usable_size(block as *const u8)));
            if !std::ptr::eq(ty, other) {
                expected.push((ty.name(), false, block, bytes, flags));
            }
        }
        // What is refused is no block.
        assert_eq!(alloc(limited, 5000, Flags::NONE), None);
        assert_eq!(TRACED.take(), expected);
        let moved = blocks.remove(0).1;
        // SAFETY: a block of the test.
        let new = unsafe { malloc.realloc(other, moved as *mut u8, 2000, FlagWord(FlagWord::NOWAIT)) }.unwrap();
        assert_eq!(TRACED.take(), [("traced", true, moved, 112, Flags::NONE)]);
        Machine::set_cpu(Some(1));
        let mut expected = vec![("traced", true, early, 112, Flags::NONE)];
        free(early);
        for (ty, block, bytes) in blocks {
            if !std::ptr::eq(ty, other) {
                expected.push((ty.name(), true, block, bytes, Flags::NONE));
            }
            free(block);
        }
        free(new.as_ptr() as usize);
        free(0);
        assert_eq!(TRACED.take(), expected);
        // A mistake is reported as ever, and told to nobody.
        free(early);
        assert!(matches!(world.machine.take_reports()[..], [report] if report.what == Misuse::DuplicateFree));
        // One trace ends by itself, the other with its type; what comes then is not told, and costs what it did before.
        malloc.set_trace(limited, None);
        let last = alloc(traced, 10, Flags::NONE).unwrap();
        assert_eq!(TRACED.take().len(), 1);
        free(last);
        TRACED.take();
        malloc.detach(traced).unwrap();
        free(alloc(traced, 10, Flags::NONE).unwrap());
        free(alloc(limited, 10, Flags::NONE).unwrap());
        assert!(TRACED.take().is_empty());
        for ty in [traced, limited, other] {
            assert_eq!(in_use(world, ty), (0, 0));
        }
    });
}

/// 1.138 for a block that is a run of pages only because of its alignment: at more than half of its size it stays, and stays aligned.
#[test]
fn a_small_run_that_is_resized_keeps_its_place() {
    with_malloc(1, |world, malloc| {
        let ty = new_type("aligned");
        let block = malloc.malloc_aligned(ty, 8000, 1 << 14, NoWait, Flags::NONE).unwrap().as_ptr();
        // SAFETY: a block of the test.
        unsafe {
            let same = malloc.realloc(ty, block, 4775, FlagWord(FlagWord::NOWAIT)).unwrap().as_ptr();
            assert_eq!(same, block);
            assert_eq!(in_use(world, ty), (1, 8192));
            let less = malloc.realloc(ty, block, 4090, FlagWord(FlagWord::WAITOK)).unwrap().as_ptr();
            assert_eq!(in_use(world, ty), (1, 4096));
            malloc.free(less);
        }
    });
}
