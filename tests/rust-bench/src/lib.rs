//! The benchmark program, for whichever global allocator its `main` has; `cargo xtask bench --rust` runs them in turns.
//!
//! `PROGRAM WORKLOAD SIZE COUNT` does the work once to warm up, a sixteenth of it, and once in earnest, and prints one line: CPU time of
//! that, user and system, of all threads, in microseconds, and the process's peak of resident memory in KiB.

mod work;

use std::process::ExitCode;

/// The first number is a size or a number of blocks, the second how often.
type Workload = fn(usize, u64);

/// What has a figure, by name.
const WORKLOADS: [(&str, Workload); 7] = [
    ("pair", work::pair),
    ("batch-lifo", work::batch_lifo),
    ("batch-random", work::batch_random),
    ("mix", work::mix),
    ("remote", work::remote),
    ("push", work::push),
    ("mix-threads", work::mix_threads),
];

/// Runs the workload that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, size, count] = &args[..] else {
        return refused("usage: WORKLOAD SIZE COUNT");
    };
    let Some((_, run)) = WORKLOADS.iter().find(|(known, _)| known == name) else {
        let known: Vec<&str> = WORKLOADS.iter().map(|(known, _)| *known).collect();
        return refused(&format!("no workload named {name:?}; there are {}", known.join(", ")));
    };
    let (Ok(size), Ok(count)) = (size.parse::<usize>(), count.parse::<u64>()) else {
        return refused(&format!("{size:?} and {count:?} should be numbers"));
    };
    if size == 0 || count == 0 {
        return refused("nothing to do: SIZE and COUNT are at least 1");
    }
    run(size, count.div_ceil(16));
    let before = cpu_ns();
    run(size, count);
    let ns = cpu_ns() - before;
    println!("{} {}", ns / 1000, peak_kib());
    ExitCode::SUCCESS
}

fn refused(why: &str) -> ExitCode {
    eprintln!("rust-bench: {why}");
    ExitCode::from(2)
}

/// CPU time of the process since its start.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes what it is given the address of.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "Linux has this clock");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Of this program alone: what getrusage(2) says includes what its parent had when it started it.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    static MADE: AtomicU64 = AtomicU64::new(0);
    static FREED: AtomicU64 = AtomicU64::new(0);

    struct Counting;

    // SAFETY: the system's.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            MADE.fetch_add(1, Relaxed);
            // SAFETY: the caller's contract.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            FREED.fetch_add(1, Relaxed);
            // SAFETY: the caller's contract.
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[global_allocator]
    static COUNTING: Counting = Counting;

    /// A figure is for so many operations, and no program grows with them. (One test: the counters are everybody's.)
    #[test]
    fn workloads_do_what_they_are_counted_for_and_keep_nothing() {
        for (name, run) in WORKLOADS {
            let before = (MADE.load(Relaxed), FREED.load(Relaxed), cpu_ns());
            run(100, 40_000);
            let (made, freed) = (MADE.load(Relaxed) - before.0, FREED.load(Relaxed) - before.1);
            // A vector of a hundred is grown six times: to 4, 8, …, 128.
            let least = if name == "push" { 40_000 / 100 * 6 } else { 40_000 };
            assert!((least..least + 500).contains(&made), "{name}: {made} blocks");
            // The harness has a thread of its own, which may be doing something.
            assert!(made.abs_diff(freed) < 50, "{name}: {made} blocks made, {freed} freed");
            assert!(cpu_ns() > before.2 && peak_kib() > 0, "{name}");
        }
    }
}
