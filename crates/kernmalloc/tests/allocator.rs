//! A malloc type under containers that take an allocator. No global allocator of ours here: none is needed.
#![cfg(feature = "allocator-api2")]

use std::alloc::Layout;
use std::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use allocator_api2::{boxed::Box, vec::Vec};
use kernmalloc::{MallocType, malloc_define};

/// Blocks and bytes in use.
fn held(owner: &MallocType) -> (u64, u64) {
    let row = owner.stats();
    (row.in_use, row.bytes_in_use)
}

#[test]
fn vectors_and_boxes_are_of_their_type() {
    malloc_define!(M_VEC, "vectors", "");
    malloc_define!(M_BOX, "boxes", "");
    let mut vectors: std::vec::Vec<Vec<u32, _>> = std::vec::Vec::new();
    for length in 0..100 {
        let mut vector = Vec::new_in(&M_VEC);
        vector.extend(0..length);
        vectors.push(vector);
    }
    let boxes: std::vec::Vec<_> = (0..50u64).map(|n| Box::new_in([n; 12], &M_BOX)).collect();
    // The empty vector has no block.
    assert_eq!(M_VEC.stats().in_use, 99);
    assert_eq!(held(&M_BOX), (50, 50 * 96));
    assert!(vectors.iter().enumerate().all(|(length, v)| v.iter().copied().eq(0..length as u32)));
    assert!(boxes.iter().zip(0..).all(|(b, n)| **b == [n; 12]));
    // Freed on another thread it is still the type's.
    std::thread::spawn(move || drop((vectors, boxes))).join().unwrap();
    assert_eq!((held(&M_VEC), held(&M_BOX)), ((0, 0), (0, 0)));
    assert_eq!((M_BOX.stats().requests, M_BOX.stats().frees), (50, 50));
}

#[test]
fn a_block_stays_where_its_class_allows() {
    malloc_define!(M_STAYS, "stays", "");
    let mut vector: Vec<u8, _> = Vec::with_capacity_in(1100, &M_STAYS);
    vector.resize(1100, 7);
    let before = vector.as_ptr();
    // 1,152 bytes are served: there is room for these.
    vector.reserve_exact(1150 - 1100);
    assert_eq!((vector.as_ptr(), vector.capacity(), held(&M_STAYS)), (before, 1150, (1, 1152)));
    // Half and less of it would be a waste.
    vector.truncate(100);
    vector.shrink_to_fit();
    assert_eq!(held(&M_STAYS), (1, 112));
    assert!(vector.iter().all(|&byte| byte == 7));
}

#[test]
fn a_large_vector_grows_into_the_pages_behind_it() {
    malloc_define!(M_LARGE, "large", "");
    let mut vector: Vec<u64, _> = Vec::new_in(&M_LARGE);
    let mut moves = 0;
    let mut at = vector.as_ptr();
    for n in 0..2_000_000u64 {
        vector.push(n);
        moves += u32::from(vector.as_ptr() != at);
        at = vector.as_ptr();
    }
    assert!(vector.iter().copied().eq(0..2_000_000));
    let row = M_LARGE.stats();
    assert_eq!(row.in_use, 1);
    assert!(row.bytes_in_use >= 16_000_000 && row.bytes_in_use <= row.high_water_bytes, "{row:?}");
    // Growing is 20 doublings; some of them found room, or the vector would have been copied each time.
    assert!(moves <= 20, "{moves}");
}

#[test]
fn zero_bytes_are_no_block() {
    malloc_define!(M_NOTHING, "nothing", "");
    let nothing = [Layout::new::<()>(), Layout::from_size_align(0, 4096).unwrap()];
    for layout in nothing {
        let block = (&M_NOTHING).allocate(layout).unwrap();
        assert!(block.cast::<u8>().addr().get().is_multiple_of(layout.align()));
        let grown = Layout::from_size_align(100, layout.align()).unwrap();
        // SAFETY: each with the block and the layout that it has at that time.
        unsafe {
            let block = (&M_NOTHING).grow_zeroed(block.cast(), layout, grown).unwrap();
            assert_eq!(M_NOTHING.stats().in_use, 1);
            assert!(block.as_ref().iter().all(|&byte| byte == 0));
            let block = (&M_NOTHING).shrink(block.cast(), grown, layout).unwrap();
            assert_eq!(M_NOTHING.stats().in_use, 0);
            (&M_NOTHING).deallocate(block.cast(), layout);
        }
    }
    let mut nothings = Vec::new_in(&M_NOTHING);
    nothings.extend([(); 9]);
    assert_eq!(nothings.len(), 9);
    assert_eq!(M_NOTHING.stats().requests, 2);
}

#[test]
fn a_request_that_cannot_be_met_is_an_error_and_counted() {
    malloc_define!(M_TOO_MUCH, "too much", "");
    let layout = Layout::from_size_align(isize::MAX as usize - 4095, 1).unwrap();
    assert!((&M_TOO_MUCH).allocate(layout).is_err());
    let mut vector: Vec<u8, _> = Vec::new_in(&M_TOO_MUCH);
    vector.extend([1, 2, 3]);
    assert!(vector.try_reserve(layout.size() - 3).is_err());
    assert_eq!(*vector, [1, 2, 3]);
    let row = M_TOO_MUCH.stats();
    assert_eq!((row.failures, row.in_use), (2, 1));
}

/// A block with what its owner has written to it.
struct Held {
    block: NonNull<u8>,
    layout: Layout,
    byte: u8,
}

impl Held {
    fn check(&self) {
        // SAFETY: the block's own bytes, all of them written.
        let bytes = unsafe { std::slice::from_raw_parts(self.block.as_ptr(), self.layout.size()) };
        assert!(bytes.iter().all(|&byte| byte == self.byte), "{:?} of {}", self.layout, self.byte);
        assert!(self.block.addr().get().is_multiple_of(self.layout.align()), "{:?}", self.layout);
    }

    fn fill(&mut self, byte: u8) {
        self.byte = byte;
        // SAFETY: as in `check`.
        unsafe { self.block.write_bytes(byte, self.layout.size()) };
    }
}

/// Every function of the trait in random order, with sizes of every kind (nothing, items, runs) and alignments up to four pages
/// that change as blocks grow and shrink.
#[test]
fn random_operations_keep_contents_alignment_and_counts() {
    malloc_define!(M_RANDOM, "random", "");
    let owner = &M_RANDOM;
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut blocks: std::vec::Vec<Held> = std::vec::Vec::new();
    let (mut stayed, mut moved) = (0, 0);
    for step in 0..60_000u32 {
        let byte = step as u8 | 1;
        let most = [1, 40, 300, 5000, 70_000, 300_000][random(6)];
        let size = random(most);
        let align = 1 << random(15);
        match random(10) {
            0..=3 if blocks.len() < 200 => {
                let layout = Layout::from_size_align(size, align).unwrap();
                let zeroed = random(2) == 0;
                let block = if zeroed { owner.allocate_zeroed(layout) } else { owner.allocate(layout) }.unwrap();
                assert_eq!(block.len(), size);
                let mut held = Held { block: block.cast(), layout, byte: 0 };
                if zeroed {
                    held.check();
                }
                held.fill(byte);
                blocks.push(held);
            }
            4..=7 if !blocks.is_empty() => {
                let at = random(blocks.len());
                let held = &mut blocks[at];
                let layout = Layout::from_size_align(size, align).unwrap();
                let old = held.layout;
                let grows = size >= old.size();
                let zeroed = grows && random(2) == 0;
                // SAFETY: the block is of the old layout; which function it is goes by the sizes.
                let block = unsafe {
                    match (grows, zeroed) {
                        (true, true) => owner.grow_zeroed(held.block, old, layout),
                        (true, false) => owner.grow(held.block, old, layout),
                        (false, _) => owner.shrink(held.block, old, layout),
                    }
                };
                let block = block.unwrap().cast::<u8>();
                (stayed, moved) = if block == held.block { (stayed + 1, moved) } else { (stayed, moved + 1) };
                let (kept, byte_before) = (size.min(old.size()), held.byte);
                *held = Held { block, layout, byte: byte_before };
                Held { block, layout: Layout::from_size_align(kept, align).unwrap(), byte: byte_before }.check();
                if zeroed {
                    // SAFETY: inside the block.
                    let tail = unsafe { block.add(kept) };
                    Held { block: tail, layout: Layout::from_size_align(size - kept, 1).unwrap(), byte: 0 }.check();
                }
                held.fill(byte);
            }
            _ if !blocks.is_empty() => {
                let at = random(blocks.len());
                let held = blocks.swap_remove(at);
                held.check();
                // SAFETY: the block is of that layout, and gone from the list.
                unsafe { owner.deallocate(held.block, held.layout) };
            }
            _ => {}
        }
        if step % 64 == 0 {
            let live = blocks.iter().filter(|held| held.layout.size() > 0);
            let (count, bytes) = live.fold((0, 0), |(n, sum), held| (n + 1, sum + held.layout.size() as u64));
            let row = owner.stats();
            assert_eq!(row.in_use, count);
            assert!(row.bytes_in_use >= bytes, "{row:?}, {bytes}");
        }
    }
    assert!(stayed > 500 && moved > 5000, "{stayed} stayed, {moved} moved");
    for held in blocks {
        held.check();
        // SAFETY: as above.
        unsafe { owner.deallocate(held.block, held.layout) };
    }
    assert_eq!(held(owner), (0, 0));
}

#[test]
fn hash_maps_are_of_their_type() {
    malloc_define!(M_MAP, "map", "");
    malloc_define!(M_VALUES, "map values", "");
    let mut map = hashbrown::HashMap::new_in(&M_MAP);
    for n in 0..10_000u64 {
        map.insert(n, Box::new_in(n * 3, &M_VALUES));
    }
    assert!((0..10_000).all(|n| **map.get(&n).unwrap() == n * 3));
    // One table, of 16,384 pairs and a byte for each.
    let table = 16_384 * (size_of::<(u64, Box<u64, &MallocType>)>() as u64 + 1);
    let row = M_MAP.stats();
    assert_eq!(row.in_use, 1);
    assert!((table..table * 5 / 4).contains(&row.bytes_in_use), "{row:?}");
    assert_eq!(held(&M_VALUES), (10_000, 160_000));
    map.retain(|n, _| n % 2 == 0);
    assert_eq!(held(&M_VALUES), (5_000, 80_000));
    drop(map);
    assert_eq!((held(&M_MAP), held(&M_VALUES)), ((0, 0), (0, 0)));
}

/// An arena that takes its chunks from an allocator.
#[test]
fn an_arena_is_of_its_type() {
    malloc_define!(M_ARENA, "arena", "");
    use bump_scope::alloc::compat::AllocatorApi2V02Compat;
    let arena =
        bump_scope::Bump::<AllocatorApi2V02Compat<&'static MallocType>>::new_in(AllocatorApi2V02Compat(&M_ARENA));
    let numbers: std::vec::Vec<&u64> = (0..100_000u64).map(|n| &*arena.alloc(n).into_mut()).collect();
    assert!(numbers.iter().zip(0..).all(|(&&number, n)| number == n));
    assert!((800_000..4_000_000).contains(&M_ARENA.stats().bytes_in_use), "{:?}", M_ARENA.stats());
    drop(arena);
    assert_eq!(held(&M_ARENA), (0, 0));
}
