//! An allocation and a free, as the number of segments grows from a hundred to a million.
//!
//! `cargo bench -p kernmalloc-vmem`; `cargo xtask bench --vmem` makes the record and the plot in docs/benchmarks of
//! it. The arena is made ragged first: random sizes, every other segment free. Then
//!
//! * `pair`: allocate and free at once: one place in memory;
//! * `replace-64`: free a random one of 64 of the allocated segments, allocate anew: the work of a long-lived arena,
//!   on memory that stays in the processor's caches however large the arena is. If the work grew with the segments it
//!   would show here;
//! * `replace-any`: the same of all allocated segments: with the caches as cold as the arena is large.
//!
//! Beside ours the crate `vmem` 1.0.0, with the same source of boundary tags, behind a mutex of std; `pair` only: it does not
//! join all free neighbours, and with the other loads it soon says `Empty` (after some thousand replacements of 50 ranges in a
//! span of 6,400, a tenth of it in use). A million segments are left out: its hash of allocated segments has 64 buckets for
//! ever, and filling the arena alone would take minutes.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kernmalloc_vmem::{Arena, Bucket, Fit, HeapTags, RawArena, Std, Wait};
use std::alloc::Layout;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::time::Duration;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((u128::from(self.0) * bound as u128) >> 64) as usize
    }
}

/// Memory is leaked: a bench ends.
fn leak<T>(count: usize) -> NonNull<T> {
    let mem: Box<[MaybeUninit<T>]> = (0..count).map(|_| MaybeUninit::uninit()).collect();
    NonNull::from(Box::leak(mem)).cast()
}

/// What is compared.
trait Ranges {
    /// With one span for so many segments, and whatever memory it wants for them.
    fn new(segments: usize) -> Self;
    fn alloc(&mut self, size: usize) -> usize;
    fn free(&mut self, addr: usize, size: usize);
    /// What the owner does now and then.
    fn upkeep(&mut self) {}
}

/// Of the span, for each segment: enough that a large free segment remains.
const SHARE: usize = 64;
const BASE: usize = 0x1000;

/// Instant fit, or best.
struct Raw<const BEST: bool>(RawArena);

impl<const BEST: bool> Ranges for Raw<BEST> {
    fn new(segments: usize) -> Self {
        let mut arena = RawArena::new("bench", 1);
        // SAFETY: leaked.
        unsafe { arena.donate_tags(leak(2 * segments + 64), 2 * segments + 64) };
        arena.add(BASE, segments * SHARE).expect("tags");
        Self(arena)
    }

    fn alloc(&mut self, size: usize) -> usize {
        self.0.alloc(size, if BEST { Fit::Best } else { Fit::Instant }).expect("room")
    }

    fn free(&mut self, addr: usize, size: usize) {
        self.0.free(addr, size).expect("allocated");
    }

    fn upkeep(&mut self) {
        if let Some(buckets) = self.0.hash_wanted() {
            // SAFETY: leaked.
            unsafe { self.0.donate_hash(leak::<Bucket>(buckets), buckets) };
        }
    }
}

struct Locked(Arena<'static, Std>);

impl Ranges for Locked {
    fn new(segments: usize) -> Self {
        let arena = Arena::new("bench", 1, &HeapTags);
        arena.add(BASE, segments * SHARE, Wait::NoSleep).expect("tags");
        Self(arena)
    }

    fn alloc(&mut self, size: usize) -> usize {
        self.0.alloc(size, Fit::Instant, Wait::NoSleep).expect("room")
    }

    fn free(&mut self, addr: usize, size: usize) {
        self.0.free(addr, size).expect("allocated");
    }

    fn upkeep(&mut self) {
        self.0.update();
    }
}

/// Tags from the heap, as `HeapTags`.
struct PublishedTags;

// SAFETY: memory of the global allocator, of that layout.
unsafe impl published::Allocator for PublishedTags {
    fn allocate(&self) -> Option<NonNull<published::Bt>> {
        // SAFETY: a tag has a size.
        NonNull::new(unsafe { std::alloc::alloc(Layout::new::<published::Bt>()) }.cast())
    }

    unsafe fn deallocate(&self, tag: NonNull<published::Bt>) {
        // SAFETY: from `allocate`.
        unsafe { std::alloc::dealloc(tag.as_ptr().cast(), Layout::new::<published::Bt>()) };
    }
}

struct Published(published::Arena<'static, 'static, PublishedTags, std::sync::Mutex<()>>);

impl Ranges for Published {
    fn new(segments: usize) -> Self {
        let arena = published::Arena::create("bench", 1, None, PublishedTags).expect("a power of two");
        arena.add_span(BASE, segments * SHARE).expect("tags");
        Self(arena)
    }

    fn alloc(&mut self, size: usize) -> usize {
        self.0.alloc(size, published::AllocPolicy::InstantFit).expect("room")
    }

    fn free(&mut self, addr: usize, _size: usize) {
        self.0.free(addr).expect("allocated");
    }
}

/// About this many segments, and what is allocated of them.
fn ragged<R: Ranges>(segments: usize) -> (R, Vec<(usize, usize)>, Random) {
    let mut random = Random(1);
    let mut ranges = R::new(segments);
    let mut all = Vec::new();
    for _ in 0..segments {
        let size = 1 + random.below(24);
        all.push((ranges.alloc(size), size));
        ranges.upkeep();
    }
    let mut kept = Vec::new();
    for (index, (addr, size)) in all.into_iter().enumerate() {
        if index % 2 == 0 {
            ranges.free(addr, size);
        } else {
            kept.push((addr, size));
        }
    }
    (ranges, kept, random)
}

fn measure<R: Ranges>(c: &mut Criterion, name: &str, log10: std::ops::RangeInclusive<u32>, replace: bool) {
    let mut group = c.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800)).sample_size(40);
    for segments in log10.map(|log10| 10_usize.pow(log10)) {
        let (mut ranges, mut live, mut random) = ragged::<R>(segments);
        group.bench_function(BenchmarkId::new("pair", segments), |b| {
            b.iter(|| {
                let addr = ranges.alloc(black_box(7));
                ranges.free(addr, 7);
            });
        });
        if !replace {
            continue;
        }
        for (load, of) in [("replace-64", live.len().min(64)), ("replace-any", live.len())] {
            group.bench_function(BenchmarkId::new(load, segments), |b| {
                b.iter(|| {
                    let at = random.below(of);
                    let (addr, size) = live[at];
                    ranges.free(addr, size);
                    let size = 1 + random.below(24);
                    live[at] = (ranges.alloc(size), size);
                });
            });
        }
    }
    group.finish();
}

fn arenas(c: &mut Criterion) {
    measure::<Raw<false>>(c, "raw-instant", 2..=6, true);
    // Sizes up to 32 quanta have lists of their own, where best fit takes the time of instant fit; when those are
    // empty it descends a tree of the sizes that there are.
    measure::<Raw<true>>(c, "raw-best", 2..=6, true);
    measure::<Locked>(c, "arena-instant", 2..=6, true);
    measure::<Published>(c, "published-instant", 2..=5, false);
}

criterion_group!(benches, arenas);
criterion_main!(benches);
