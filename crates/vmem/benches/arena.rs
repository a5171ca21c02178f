//! An allocation and a free, as the number of segments grows from a hundred to a million.
//!
//! `cargo bench -p kernmalloc-vmem`. The arena is made ragged first: random sizes, every other segment free. Then
//!
//! * `pair`: allocate and free at once; one place in memory, always warm;
//! * `replace`: free a random one of the allocated segments, allocate anew: what a long-lived arena sees, with the
//!   processor's caches as cold as the arena is large.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use kernmalloc_vmem::{Bucket, Fit, RawArena};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

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

/// An arena with about this many segments, and what is allocated in it.
fn ragged(segments: usize) -> (RawArena, Vec<(usize, usize)>, Random) {
    let mut random = Random(1);
    let mut arena = RawArena::new("bench", 1);
    // SAFETY: leaked.
    unsafe { arena.donate_tags(leak(2 * segments + 64), 2 * segments + 64) };
    arena.add(0x1000, segments * 32).expect("tags");
    let mut all = Vec::new();
    for _ in 0..segments {
        let size = 1 + random.below(24);
        all.push((arena.alloc(size, Fit::Instant).expect("room"), size));
        if let Some(buckets) = arena.hash_wanted() {
            // SAFETY: leaked.
            unsafe { arena.donate_hash(leak::<Bucket>(buckets), buckets) };
        }
    }
    let mut kept = Vec::new();
    for (index, (addr, size)) in all.into_iter().enumerate() {
        if index % 2 == 0 {
            arena.free(addr, size).expect("allocated");
        } else {
            kept.push((addr, size));
        }
    }
    (arena, kept, random)
}

fn arena(c: &mut Criterion) {
    for fit in [Fit::Instant, Fit::Best] {
        let mut group = c.benchmark_group(format!("{fit:?}"));
        for log10 in 2..=6 {
            // Best fit walks a list of doubling sizes: not a thing to do a million times.
            if fit == Fit::Best && log10 > 4 {
                continue;
            }
            let segments = 10usize.pow(log10);
            let (mut arena, mut live, mut random) = ragged(segments);
            group.bench_function(BenchmarkId::new("pair", segments), |b| {
                b.iter(|| {
                    let addr = arena.alloc(black_box(7), fit).expect("room");
                    arena.free(addr, 7).expect("allocated");
                });
            });
            group.bench_function(BenchmarkId::new("replace", segments), |b| {
                b.iter(|| {
                    let at = random.below(live.len());
                    let (addr, size) = live[at];
                    arena.free(addr, size).expect("allocated");
                    let size = 1 + random.below(24);
                    live[at] = (arena.alloc(size, fit).expect("room"), size);
                });
            });
            arena.validate().expect("well");
        }
        group.finish();
    }
}

criterion_group!(benches, arena);
criterion_main!(benches);
