//! kmem(9): sizes given back are the sizes asked for, and what is not is reported with both.

extern crate kernmalloc_kern as kern;

mod common;

use common::{World, config};
use kern::malloc::{CanFail, Malloc, NoWait, WaitOk};
use platform::Misuse;
use platform::fake::{Fake, Machine};

fn with_malloc<T>(test: impl FnOnce(&World, &Malloc<'_, Fake>) -> T) -> T {
    let world = World::boot(config(2, 1));
    let malloc = Malloc::new(&world.system);
    world.machine.run(|| {
        let result = test(&world, &malloc);
        world.system.validate().unwrap();
        result
    })
}

fn kmem_in_use(world: &World) -> u64 {
    let types = world.header().types.used.load(abi::Ordering::Relaxed) as usize;
    let named = |id: &kern::TypeId| abi::c_text(&world.system.type_record(*id).name) == b"kmem";
    let id = (0..types).filter_map(kern::TypeId::new).find(named).expect("kmem(9) has a type");
    world.totals(id).in_use()
}

fn wrong_size(world: &World) -> Option<(usize, Option<usize>)> {
    let mut reports = world.machine.take_reports();
    assert!(reports.len() <= 1, "{reports:?}");
    match reports.pop()?.what {
        Misuse::WrongSize { given, asked } => Some((given, asked)),
        other => panic!("{other:?}"),
    }
}

/// Sizes around those of the classes, pages and runs.
fn sizes() -> impl Iterator<Item = usize> {
    let classes = (0..kern::class::CLASSES).map(kern::class::class_bytes);
    let around = classes.flat_map(|bytes| [bytes - 15, bytes - 9, bytes - 8, bytes - 7, bytes - 1, bytes]);
    (1..300).chain(around).chain([4096, 4097, 3 << 20, (5 << 20) + 3]).filter(|&bytes| bytes > 0)
}

#[test]
fn the_right_size_is_taken_and_a_wrong_one_reported_with_both() {
    for diagnostic in [false, true] {
        with_malloc(|world, malloc| {
            if diagnostic {
                malloc.set_kmem_diagnostic();
            }
            for bytes in sizes() {
                // Twice, so that the second block finds what the first left.
                for round in 0..2 {
                    let block = malloc.kmem_alloc(bytes, WaitOk).as_ptr();
                    // SAFETY: a block of the test, so long.
                    unsafe { block.write_bytes(0xa5, bytes) };
                    let others = [1, bytes - 1, bytes + 1, bytes - bytes.min(8), bytes + 8, 2 * bytes, usize::MAX];
                    for wrong in others.into_iter().filter(|&wrong| wrong != bytes) {
                        let served = malloc.malloc_usable_size(block);
                        // SAFETY: a deliberate mistake, which has no effect where it is found.
                        let known = diagnostic || served - bytes >= 8;
                        let seen = |size: usize| Malloc::<Fake>::malloc_size(size) == served && served - size < 8;
                        if !known && seen(wrong) {
                            // The last seven bytes of a block are the caller's: which of them it asked for is not known.
                            continue;
                        }
                        // SAFETY: as above.
                        unsafe { malloc.kmem_free(block, wrong) };
                        let expected = (wrong, known.then_some(bytes));
                        assert_eq!(wrong_size(world), Some(expected), "{bytes} bytes as {wrong}, round {round}");
                    }
                    // SAFETY: a block of the test.
                    unsafe { malloc.kmem_free(block, bytes) };
                    assert_eq!(wrong_size(world), None, "{bytes} bytes, round {round}, diagnostic {diagnostic}");
                }
                assert_eq!(kmem_in_use(world), 0);
            }
        });
    }
}

#[test]
fn an_overrun_of_the_block_is_found_at_free() {
    with_malloc(|world, malloc| {
        let block = malloc.kmem_alloc(100, WaitOk).as_ptr();
        // SAFETY: a deliberate mistake, inside the item of 112 bytes.
        unsafe {
            block.write_bytes(0x41, 112);
            malloc.kmem_free(block, 100);
        }
        assert_eq!(wrong_size(world), Some((100, None)));
    });
}

#[test]
fn zalloc_is_zero_and_a_second_free_and_a_foreign_block_are_reported() {
    with_malloc(|world, malloc| {
        for bytes in [1, 8, 9, 16, 100, 112, 5000, 100_000] {
            for _ in 0..2 {
                let block = malloc.kmem_zalloc(bytes, NoWait).unwrap().as_ptr();
                // SAFETY: a block of the test, so long.
                unsafe {
                    let slice = std::slice::from_raw_parts_mut(block, bytes);
                    assert!(slice.iter().all(|&byte| byte == 0), "{bytes}");
                    slice.fill(0xff);
                    malloc.kmem_free(block, bytes);
                }
                // SAFETY: a deliberate mistake.
                unsafe { malloc.kmem_free(block, bytes) };
                assert_eq!(world.machine.take_reports()[0].what, Misuse::DuplicateFree);
            }
        }
        let other = world.system.alloc(100, kern::TypeId::MALLOC);
        // SAFETY: a deliberate mistake: the block is malloc's.
        unsafe {
            other.write_bytes(0, 112);
            malloc.kmem_free(other, 100);
        }
        assert_eq!(wrong_size(world), Some((100, None)));
    });
}

/// N1.134 and the split of kmem in NetBSD: interrupt handlers have variants of their own, and the plain ones are not for them.
#[test]
fn n1_134_interrupt_variants() {
    with_malloc(|world, malloc| {
        Machine::interrupt(|| {
            let block = malloc.kmem_intr_alloc(100, NoWait).unwrap().as_ptr();
            let zero = malloc.kmem_intr_zalloc(100, NoWait).unwrap().as_ptr();
            // SAFETY: blocks of the test.
            unsafe {
                assert_eq!(zero.add(99).read(), 0);
                malloc.kmem_intr_free(block, 100);
                malloc.kmem_intr_free(zero, 100);
            }
            assert!(world.machine.take_reports().is_empty());
            let block = malloc.kmem_alloc(100, NoWait).unwrap().as_ptr();
            // SAFETY: as above.
            unsafe { malloc.kmem_free(block, 100) };
            let block = malloc.kmem_intr_alloc(100, CanFail).unwrap().as_ptr();
            // SAFETY: as above.
            unsafe { malloc.kmem_intr_free(block, 100) };
        });
        let reports = world.machine.take_reports();
        assert_eq!(reports.len(), 3);
        for (report, text) in reports.iter().zip(["kmem_intr_alloc", "kmem_intr_free", "in an interrupt"]) {
            assert!(matches!(report.what, Misuse::MaySleep(held) if held.contains(text)), "{report:?}");
        }
    });
}

#[test]
fn no_bytes_are_a_bug_and_huge_ones_fail() {
    with_malloc(|world, malloc| {
        let block = malloc.kmem_alloc(0, WaitOk).as_ptr();
        assert_eq!(world.machine.take_reports()[0].what, Misuse::BadRequest);
        // SAFETY: a block of the test; then null, which nobody has.
        unsafe {
            malloc.kmem_free(block, 0);
            malloc.kmem_free(std::ptr::null_mut(), 8);
        }
        assert_eq!(world.machine.take_reports().last().unwrap().what, Misuse::BadRequest);
        malloc.set_kmem_diagnostic();
        for bytes in [usize::MAX, usize::MAX - 7, usize::MAX / 2] {
            assert!(malloc.kmem_alloc(bytes, NoWait).is_none());
            assert!(malloc.kmem_zalloc(bytes, CanFail).is_none());
        }
        assert_eq!(kmem_in_use(world), 0);
    });
}

#[test]
fn strings() {
    with_malloc(|world, malloc| {
        let text = |block: kern::malloc::KmemStr| {
            // SAFETY: `size` bytes of a block of the test.
            let bytes = unsafe { std::slice::from_raw_parts(block.text.as_ptr(), block.size) };
            assert_eq!(bytes.last(), Some(&0));
            String::from_utf8(bytes[..bytes.len() - 1].to_vec()).unwrap()
        };
        for n in 0..40usize {
            let made = malloc.kmem_asprintf(format_args!("{:>n$}|{:x}", "zone", 0xbeef));
            assert_eq!(text(made), format!("{:>n$}|beef", "zone"));
            // SAFETY: as it was made.
            unsafe { malloc.kmem_strfree(made.text.as_ptr()) };
        }
        let copies = [malloc.kmem_strdup(b"hello"), malloc.kmem_strdup(b""), malloc.kmem_strndup(b"hello", 3)];
        assert_eq!(copies.map(text), ["hello", "", "hel"]);
        assert_eq!((text(malloc.kmem_strdup(b"a\0b")), copies.map(|copy| copy.size)), ("a".to_owned(), [6, 1, 4]));
        for copy in copies {
            // SAFETY: as it was made, by its size and by its length.
            unsafe { malloc.kmem_free(copy.text.as_ptr(), copy.size) };
        }
        // SAFETY: null is nothing.
        unsafe { malloc.kmem_strfree(std::ptr::null_mut()) };
        // A string that was cut is not as long as it was.
        let cut = malloc.kmem_strdup(b"twelve bytes");
        // SAFETY: a deliberate mistake.
        unsafe {
            cut.text.as_ptr().add(2).write(0);
            malloc.kmem_strfree(cut.text.as_ptr());
        }
        // 13 of 16 bytes: no record, and three would have left room for one.
        assert_eq!(wrong_size(world), Some((3, None)));
    });
}
