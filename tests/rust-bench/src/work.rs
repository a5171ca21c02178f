//! The workloads. An operation is an allocation and the free of it, or a push.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::{Condvar, Mutex, PoisonError};

/// What Box and Vec of words ask for.
const ALIGN: usize = 8;
/// Threads of [`mix_threads`].
const THREADS: u64 = 8;
/// Blocks that are handed over at once in [`remote`], and how many such lots are under way.
const LOT: u64 = 256;
const LOTS: u64 = 16;

/// A block that was used: its first and last bytes are written.
struct Block {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: memory that nobody else has.
unsafe impl Send for Block {}

const fn layout(bytes: usize) -> Layout {
    match Layout::from_size_align(bytes, ALIGN) {
        Ok(layout) => layout,
        Err(_) => panic!("too large for a layout"),
    }
}

impl Block {
    /// # Panics
    /// For 0 bytes.
    #[inline(always)]
    fn new(bytes: usize) -> Self {
        let layout = layout(bytes);
        assert!(bytes > 0);
        // SAFETY: the layout has a size.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: the block has so many bytes.
        unsafe {
            start.write(bytes as u8);
            start.add(bytes - 1).write(bytes as u8);
        }
        // The compiler neither drops a pair of calls nor knows where a block lies.
        Self { start: black_box(start), bytes }
    }
}

impl Drop for Block {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: allocated so, and nobody has it any more.
        unsafe { dealloc(self.start, layout(self.bytes)) };
    }
}

/// Marsaglia's xorshift: enough to choose by, and the same everywhere.
struct Random(u64);

impl Random {
    fn new(n: u64) -> Self {
        Self(n.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x632B_E59B_D9B4_E019))
    }

    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// Most requests of programs are small; the tail is long. Mean near 200 bytes; as in `tests/bench/bench.h`.
#[inline(always)]
fn usual_size(random: u64) -> usize {
    let rest = random >> 10;
    let bytes = match random & 1023 {
        0..600 => 16 + rest % 64,
        600..900 => 64 + rest % 256,
        900..1010 => 256 + rest % 1024,
        _ => 1024 + rest % 8192,
    };
    bytes as usize
}

/// One block of one size, allocated and freed at once.
pub(crate) fn pair(bytes: usize, count: u64) {
    for _ in 0..count {
        drop(Block::new(black_box(bytes)));
    }
}

/// So many blocks of 64 bytes at a time, then all freed in this order.
fn batch(length: usize, count: u64, order: &[u32]) {
    let mut blocks: Vec<Option<Block>> = (0..length).map(|_| None).collect();
    for _ in 0..count.div_ceil(length as u64) {
        for block in &mut blocks {
            *block = Some(Block::new(64));
        }
        for &index in order {
            blocks[index as usize] = None;
        }
    }
}

/// The newest first.
pub(crate) fn batch_lifo(length: usize, count: u64) {
    let order: Vec<u32> = (0..length as u32).rev().collect();
    batch(length, count, &order);
}

/// See [`batch`].
pub(crate) fn batch_random(length: usize, count: u64) {
    let mut order: Vec<u32> = (0..length as u32).collect();
    let mut random = Random::new(1);
    for i in (1..length).rev() {
        order.swap(i, (random.next() % (i as u64 + 1)) as usize);
    }
    batch(length, count, &order);
}

/// So many live blocks of usual sizes, of which a random one is replaced.
fn churn(live: usize, count: u64, seed: u64) {
    let mut blocks: Vec<Option<Block>> = (0..live).map(|_| None).collect();
    let mut random = Random::new(seed);
    for _ in 0..count {
        let r = random.next();
        let slot = &mut blocks[(r >> 40) as usize % live];
        *slot = None;
        *slot = Some(Block::new(usual_size(r)));
    }
}

/// See [`churn`].
pub(crate) fn mix(live: usize, count: u64) {
    churn(live, count, 1);
}

/// The same on eight threads, each with its own blocks; the count is for all together.
pub(crate) fn mix_threads(live: usize, count: u64) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || churn(live, count / THREADS, thread + 1));
        }
    });
}

/// What goes around between the two threads of [`remote`].
#[derive(Default)]
struct Lots {
    full: VecDeque<Vec<Block>>,
    empty: Vec<Vec<Block>>,
}

/// Who has to wait sleeps, so that waiting costs no CPU time.
#[derive(Default)]
struct Belt {
    lots: Mutex<Lots>,
    changed: Condvar,
}

impl Belt {
    fn take(&self, choose: impl Fn(&mut Lots) -> Option<Vec<Block>>) -> Vec<Block> {
        let mut lots = self.lots.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(lot) = choose(&mut lots) {
                return lot;
            }
            lots = self.changed.wait(lots).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn give(&self, put: impl FnOnce(&mut Lots)) {
        put(&mut self.lots.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }
}

/// Blocks of one size, allocated on one thread and freed on another.
pub(crate) fn remote(bytes: usize, count: u64) {
    let belt = Belt::default();
    let rounds = count.div_ceil(LOT);
    belt.give(|lots| {
        lots.full.reserve(LOTS as usize);
        lots.empty.extend((0..LOTS).map(|_| Vec::with_capacity(LOT as usize)));
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..rounds {
                let mut lot = belt.take(|lots| lots.empty.pop());
                lot.extend((0..LOT).map(|_| Block::new(bytes)));
                belt.give(|lots| lots.full.push_back(lot));
            }
        });
        for _ in 0..rounds {
            let mut lot = belt.take(|lots| lots.full.pop_front());
            lot.clear();
            belt.give(|lots| lots.empty.push(lot));
        }
    });
}

/// A vector of words grown to this length by pushes, then dropped; the count is of pushes.
pub(crate) fn push(length: usize, count: u64) {
    for _ in 0..count.div_ceil(length as u64) {
        let mut vector: Vec<u64> = Vec::new();
        for n in 0..length as u64 {
            vector.push(n);
        }
        black_box(&vector);
    }
}
