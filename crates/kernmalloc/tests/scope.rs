//! Scopes: whatever the global allocator serves inside one is the type's.

use std::alloc::Layout;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};

use kernmalloc::{Kind, MallocType, Scope, malloc_define};

#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

fn in_use(owner: &MallocType) -> u64 {
    owner.stats().in_use
}

#[test]
fn what_is_served_inside_is_the_types() {
    malloc_define!(M_WORK, "work", "what a test makes");
    let before = vec![0u8; 50];
    let mut made = M_WORK.scope(|| {
        let mut map = std::collections::BTreeMap::new();
        for n in 0..1000 {
            map.insert(n, format!("a string that needs a block of its own, {n}"));
        }
        map
    });
    let row = M_WORK.stats();
    // The strings, and the tree's nodes of at most 11.
    assert!((1000 + 91..2000).contains(&row.in_use), "{row:?}");
    assert!(row.bytes_in_use > 40_000 && row.high_water_bytes >= row.bytes_in_use, "{row:?}");
    assert_eq!((M_WORK.name(), M_WORK.description()), ("work", "what a test makes"));
    // Outside nothing is.
    let outside = vec![0u8; 50];
    assert_eq!(M_WORK.stats(), row);
    // Freed outside, it is still the type's.
    made.retain(|n, _| *n < 100);
    assert!(in_use(&M_WORK) < 200);
    M_WORK.scope(|| drop((before, outside)));
    drop(made);
    let row = M_WORK.stats();
    assert_eq!((row.in_use, row.bytes_in_use), (0, 0));
}

#[test]
fn scopes_nest_and_none_is_a_scope() {
    malloc_define!(M_A, "scope a", "");
    malloc_define!(M_B, "scope b", "");
    assert_eq!(Scope::current(), Scope::none());
    M_A.scope(|| {
        assert_eq!(Scope::current(), Scope::of(&M_A));
        let a = Box::new([0u64; 4]);
        let (b, nobody) = M_B.scope(|| (Box::new([1u64; 4]), Scope::none().run(|| Box::new([2u64; 4]))));
        let a_again = Box::new([3u64; 4]);
        assert_eq!((in_use(&M_A), in_use(&M_B)), (2, 1));
        drop((a, b, nobody, a_again));
    });
    assert_eq!(Scope::current(), Scope::none());
    assert_eq!((in_use(&M_A), in_use(&M_B), M_A.stats().requests, M_B.stats().requests), (0, 0, 2, 1));
}

#[test]
fn a_panic_leaves_the_scope() {
    malloc_define!(M_OUTER, "outer", "");
    malloc_define!(M_PANICS, "panics", "");
    M_OUTER.scope(|| {
        let result = catch_unwind(|| M_PANICS.scope(|| std::panic::resume_unwind(Box::new(5))));
        assert_eq!(result.map(|(): ()| 0).unwrap_err().downcast_ref(), Some(&5));
        assert_eq!(Scope::current(), Scope::of(&M_OUTER));
    });
    assert_eq!(Scope::current(), Scope::none());
    // The box, and the unwinder's own object.
    assert_eq!((M_PANICS.stats().requests, in_use(&M_PANICS)), (2, 0));
}

#[test]
fn another_thread_has_the_scope_that_it_is_given() {
    malloc_define!(M_HANDED, "handed over", "");
    let (send, receive) = mpsc::channel::<(Scope, usize)>();
    let worker = std::thread::spawn(move || {
        let mut made = Vec::with_capacity(10);
        for (scope, bytes) in receive {
            made.push(scope.run(|| vec![0u8; bytes]));
        }
        assert_eq!(Scope::current(), Scope::none());
        made
    });
    M_HANDED.scope(|| {
        // A thread of its own has no scope by itself.
        let alone = std::thread::spawn(|| (Scope::current(), vec![0u8; 100])).join().unwrap();
        assert_eq!(alone.0, Scope::none());
        let scope = Scope::current();
        Scope::none().run(|| (0..5).for_each(|_| send.send((scope, 1000)).unwrap()));
        Scope::none().run(|| send.send((Scope::none(), 1000)).unwrap());
    });
    drop(send);
    let made = worker.join().unwrap();
    let row = M_HANDED.stats();
    let sizes = made.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes, [1000; 6]);
    assert!(row.bytes_in_use >= 5120 && row.bytes_requested >= 5000, "{row:?}");
    // The five, and what making a thread leaves.
    drop(made);
    assert_eq!(row.in_use - in_use(&M_HANDED), 5);
}

/// Ready at its second poll; what is made at each, in the middle of other futures, is kept.
struct Twice<'a> {
    kept: &'a mut Vec<Vec<u8>>,
    polled: bool,
}

impl Future for Twice<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        self.kept.push(vec![1; 300]);
        if std::mem::replace(&mut self.polled, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Twice<'_> {
    fn drop(&mut self) {
        self.kept.push(vec![2; 300]);
    }
}

#[test]
fn a_future_has_its_scope_at_every_poll_and_no_other_time() {
    malloc_define!(M_ONE, "future one", "");
    malloc_define!(M_TWO, "future two", "");
    malloc_define!(M_POLLER, "poller", "");
    let (mut one, mut two) = (Vec::with_capacity(4), Vec::with_capacity(4));
    let mut context = Context::from_waker(Waker::noop());
    let mut first = M_ONE.scope_async(Twice { kept: &mut one, polled: false });
    let mut second = Scope::of(&M_TWO).attach(async {
        Twice { kept: &mut two, polled: false }.await;
        M_ONE.scope(|| ());
        two.push(vec![3; 300]);
    });
    {
        // SAFETY: neither is moved from here on.
        let (mut first, mut second) = unsafe { (Pin::new_unchecked(&mut first), Pin::new_unchecked(&mut second)) };
        let between = M_POLLER.scope(|| {
            assert!(first.as_mut().poll(&mut context).is_pending());
            assert_eq!(Scope::current(), Scope::of(&M_POLLER));
            assert!(second.as_mut().poll(&mut context).is_pending());
            let between = vec![0u8; 300];
            assert!(second.as_mut().poll(&mut context).is_ready());
            between
        });
        // The first is dropped between two polls: still inside.
        drop(between);
        assert_eq!((in_use(&M_ONE), in_use(&M_TWO), M_POLLER.stats().requests), (1, 4, 1));
    }
    drop(first);
    drop(second);
    assert_eq!((in_use(&M_ONE), in_use(&M_TWO)), (2, 4));
    assert!(one.iter().map(Vec::len).eq([300; 2]) && two.iter().map(Vec::len).eq([300; 4]));
    drop((one, two));
    assert_eq!((in_use(&M_ONE), in_use(&M_TWO)), (0, 0));
}

#[test]
fn a_block_that_grows_keeps_its_type_outside_and_changes_it_inside() {
    malloc_define!(M_MADE, "made", "");
    malloc_define!(M_GREW, "grew", "");
    let mut vector = M_MADE.scope(|| vec![9u8; 100]);
    vector.reserve_exact(10_000);
    assert_eq!((in_use(&M_MADE), in_use(&M_GREW)), (1, 0));
    M_GREW.scope(|| vector.reserve_exact(20_000));
    assert_eq!((in_use(&M_MADE), in_use(&M_GREW)), (0, 1));
    vector.truncate(60);
    vector.shrink_to_fit();
    assert_eq!(in_use(&M_GREW), 1);
    assert!(vector.iter().all(|&byte| byte == 9));
    drop(vector);
    assert_eq!(in_use(&M_GREW), 0);
}

/// bumpalo takes no allocator: its chunks come from the global one.
#[test]
fn an_arena_made_and_filled_inside_is_the_types() {
    malloc_define!(M_ARENA, "bumpalo", "");
    let mut arena = bumpalo::Bump::new();
    let sum: u64 = M_ARENA.scope(|| {
        let numbers: Vec<&u64> = (0..100_000u64).map(|n| &*arena.alloc(n)).collect();
        numbers.into_iter().sum()
    });
    assert_eq!(sum, 100_000 * 99_999 / 2);
    let row = M_ARENA.stats();
    assert!(row.bytes_in_use as usize >= arena.allocated_bytes() && row.bytes_in_use < 4_000_000, "{row:?}");
    // Its own vector, which takes the arena for an allocator, is in the arena's chunks: no block of its own.
    let mut vector = allocator_api2::vec::Vec::with_capacity_in(10, &arena);
    vector.extend([1, 2, 3]);
    assert_eq!((in_use(&M_ARENA), vector.len()), (row.in_use, 3));
    drop(vector);
    arena.reset();
    drop(arena);
    assert_eq!(in_use(&M_ARENA), 0);
}

#[test]
fn blocks_by_hand() {
    malloc_define!(M_HAND, "by hand", "");
    malloc_define!(M_OTHER, "other hand", "");
    let layout = Layout::from_size_align(100, 8).unwrap();
    let blocks: Vec<_> = (0..10).map(|_| kernmalloc::malloc(layout, &M_HAND)).collect();
    assert_eq!((in_use(&M_HAND), M_HAND.stats().bytes_in_use), (10, 1120));
    for block in blocks {
        // SAFETY: from `malloc` with that layout, and used by nobody else.
        unsafe {
            block.write_bytes(5, 100);
            let block = kernmalloc::realloc(block, layout, 3000, &M_OTHER);
            assert!((0..100).all(|at| *block.add(at) == 5));
            kernmalloc::free(block);
        }
    }
    let aligned = Layout::from_size_align(500, 1024).unwrap();
    let block = M_HAND.malloc_zeroed(aligned);
    // SAFETY: a block of that layout, freed once.
    unsafe {
        assert!((0..500).all(|at| *block.add(at) == 0) && block.addr().is_multiple_of(1024));
        kernmalloc::free(block);
        kernmalloc::free(std::ptr::null_mut());
    }
    let (hand, other) = (M_HAND.stats(), M_OTHER.stats());
    assert_eq!((hand.requests, hand.frees, hand.in_use), (11, 11, 0));
    assert_eq!((other.requests, other.frees, other.bytes_requested), (10, 10, 30_000));
}

#[test]
fn types_by_name() {
    malloc_define!(M_TWIN, "twin", "");
    malloc_define!(M_OTHER_TWIN, "twin", "");
    assert_eq!(kernmalloc::find("twin"), None);
    let blocks = (M_OTHER_TWIN.scope(|| Box::new(1u64)), M_TWIN.scope(|| [Box::new(2u64), Box::new(3)]));
    let twins: Vec<u64> = kernmalloc::stats().filter(|row| row.name == "twin").map(|row| row.in_use).collect();
    assert_eq!(twins, [1, 2]);
    // As malloc_desc2type(9): the first.
    assert_eq!(kernmalloc::find("twin").unwrap().in_use, 1);
    drop(blocks);

    let tenant = kernmalloc::register_type("tenant 12").unwrap();
    let block = tenant.scope(|| vec![0u8; 400]);
    assert_eq!(kernmalloc::find("tenant 12").unwrap(), tenant.stats());
    assert_eq!((tenant.stats().in_use, tenant.stats().bytes_in_use), (1, 416));
    drop(block);
}

/// Every block of the program is in some row: the rows add up to what is in use, and each has a name or a place.
#[test]
fn every_row_has_an_owner() {
    let keep: Vec<String> = (0..100).map(|n| format!("a string with a block of its own: {n}")).collect();
    let rows: Vec<_> = kernmalloc::stats().collect();
    assert!(rows.iter().filter(|row| row.kind == Kind::CallSite).any(|row| row.in_use > 0));
    for row in rows {
        assert!(row.frees <= row.requests && row.bytes_requested <= row.bytes_served, "{row:?}");
        match row.kind {
            Kind::Named | Kind::Rest => assert!(!row.name.is_empty() && row.library.is_none(), "{row:?}"),
            Kind::CallSite | Kind::Library => {
                assert!(row.name.is_empty() && row.library.is_some_and(|path| path.starts_with('/')), "{row:?}");
            }
        }
    }
    drop(keep);
}

/// A destructor of a thread-local runs when others are gone already; the scope's word is not.
#[test]
fn a_thread_that_ends_may_still_allocate_in_scopes() {
    malloc_define!(M_LATE, "late", "");
    struct Late;
    impl Drop for Late {
        fn drop(&mut self) {
            M_LATE.scope(|| drop(vec![0u8; 5000]));
        }
    }
    thread_local! { static LATE: Late = const { Late } }
    std::thread::spawn(|| LATE.with(|_| ())).join().unwrap();
    assert_eq!((M_LATE.stats().requests, in_use(&M_LATE)), (1, 0));
}

#[test]
fn a_panic_in_a_future_leaves_the_scope() {
    malloc_define!(M_FUTURE, "panicking future", "");
    let mut future = Box::pin(M_FUTURE.scope_async(async { std::panic::resume_unwind(Box::new(())) }));
    let mut context = Context::from_waker(Waker::noop());
    let poll = || -> Poll<()> { future.as_mut().poll(&mut context) };
    assert!(catch_unwind(AssertUnwindSafe(poll)).is_err());
    assert_eq!(Scope::current(), Scope::none());
}
