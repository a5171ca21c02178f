//! The allocator under Rust's own containers, and types of a program's own.

use std::alloc::Layout;

#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

#[test]
fn containers_keep_their_contents() {
    let threads: Vec<_> = (0..4u64)
        .map(|seed| {
            std::thread::spawn(move || {
                let mut map = std::collections::HashMap::new();
                for n in 0..20_000u64 {
                    map.insert(n.wrapping_mul(seed + 7), vec![n; (n % 50) as usize]);
                }
                map.iter().all(|(key, value)| value.iter().all(|&n| n.wrapping_mul(seed + 7) == *key))
            })
        })
        .collect();
    assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
}

#[test]
fn alignment_is_what_the_layout_asks() {
    for align in [1, 8, 16, 64, 256, 4096, 1 << 16] {
        for bytes in [1, 40, 5000, 100_000] {
            let layout = Layout::from_size_align(bytes, align).unwrap();
            // SAFETY: a layout of non-zero size; the block is freed with the same layout.
            unsafe {
                let block = std::alloc::alloc_zeroed(layout);
                assert!(!block.is_null() && (block as usize).is_multiple_of(align));
                assert!((0..bytes).all(|at| *block.add(at) == 0));
                std::alloc::dealloc(block, layout);
            }
        }
    }
}
