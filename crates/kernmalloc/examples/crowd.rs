//! A thousand threads, each with a block of each of a thousand malloc types, all at the same time. Says `wait`, and waits for the end of
//! its input: meanwhile `kernmalloc vmstat -s -p PID` says what the allocator needs for itself.

use std::io::Read as _;
use std::sync::Barrier;
use std::thread::Builder;

use allocator_api2::boxed::Box;
use kernmalloc::{KernMalloc, MallocType, register_type};

#[global_allocator]
static GLOBAL: KernMalloc = KernMalloc;

const THREADS: usize = 1000;
const TYPES: usize = 1000;

fn main() {
    let register = |n| register_type(&format!("crowd {n}")).expect("there is room for a thousand types");
    let types: Vec<&'static MallocType> = (0..TYPES).map(register).collect();
    // All hold their blocks; then all may go.
    let (full, go) = (Barrier::new(THREADS + 1), Barrier::new(THREADS + 1));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            let hold = || {
                let blocks: Vec<_> = types.iter().map(|of| Box::new_in([0u64; 2], *of)).collect();
                full.wait();
                go.wait();
                drop(blocks);
            };
            Builder::new().stack_size(64 << 10).spawn_scoped(scope, hold).expect("a thread");
        }
        full.wait();
        println!("wait");
        let _ = std::io::stdin().read(&mut [0]);
        go.wait();
    });
    assert!(types.iter().all(|of| of.stats().in_use == 0));
}
