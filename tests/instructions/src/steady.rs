//! The frame of a program whose instructions are counted.
//!
//! Callgrind collects only inside functions named `guarded_…`, and writes what it collected after each call of
//! [`kernmalloc_steady`]: so a figure is what the path itself takes, without the loop around it, without the calls that bring
//! a block back for the next round, and without the first rounds, in which caches fill.
//!
//! Functions under guard have Rust's calling convention: in a C one the compiler sees to it that nothing unwinds out of it, which
//! takes a frame.

use std::hint::black_box;

/// A name, and what runs its path so many times.
pub(crate) type Path = (&'static str, fn(u32));

/// Rounds before the counted ones: enough for a run class to get its cache, and for a depot to have what is needed.
const WARM_ROUNDS: u32 = 64;

/// Callgrind knows it by this name.
#[unsafe(no_mangle)]
#[inline(never)]
fn kernmalloc_steady(path: fn(u32), rounds: u32) {
    path(rounds);
    // Not a tail call: this function ends after the path.
    black_box(());
}

/// Runs each path and prints, in the order of callgrind's files, rounds and name.
pub(crate) fn run(paths: &[Path]) {
    const ROUNDS: u32 = 256;
    for (_, path) in paths {
        // One copy for both: a call in another copy would be another call site.
        let path = black_box(*path);
        path(WARM_ROUNDS);
        kernmalloc_steady(path, ROUNDS);
    }
    for (name, _) in paths {
        println!("{ROUNDS} {name}");
    }
}
