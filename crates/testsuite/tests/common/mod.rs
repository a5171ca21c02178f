//! What hosts with the standard library's threads share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};

use kernmalloc_testsuite::Outcome;

/// Percent of the usual work: debug builds are slow.
pub(crate) const EFFORT: usize = if cfg!(debug_assertions) { 10 } else { 50 };

/// Runs `body` in so many threads, each of which `place` puts where it belongs. All start together, so that a limit that one of
/// them sets does not hit the making of another.
pub(crate) fn threads(
    count: usize,
    body: &(dyn Fn(usize) -> Outcome + Sync),
    place: &(dyn Fn(usize, &dyn Fn()) + Sync),
) -> Outcome {
    let (ready, failure) = (Barrier::new(count), Mutex::new(None));
    std::thread::scope(|scope| {
        for number in 0..count {
            let (ready, failure) = (&ready, &failure);
            scope.spawn(move || {
                place(number, &|| {
                    ready.wait();
                    if let Err(why) = body(number) {
                        failure.lock().unwrap().get_or_insert(why);
                    }
                });
            });
        }
    });
    failure.into_inner().unwrap().map_or(Ok(()), Err)
}

/// A thread per CPU plays its interrupts while `body` runs.
pub(crate) fn interrupted(
    cpus: usize,
    handler: &(dyn Fn() + Sync),
    body: &mut dyn FnMut() -> Outcome,
    place: &(dyn Fn(usize, &dyn Fn()) + Sync),
) -> Outcome {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for cpu in 0..cpus {
            let done = &done;
            scope.spawn(move || {
                place(cpu, &|| {
                    while !done.load(Ordering::Relaxed) {
                        handler();
                        std::thread::yield_now();
                    }
                });
            });
        }
        // Also when `body` panics, or the scope would wait for good.
        struct Done<'a>(&'a AtomicBool);
        impl Drop for Done<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _done = Done(&done);
        body()
    })
}

/// Runs the list; its status is the test program's.
pub(crate) fn main<H: kernmalloc_testsuite::Host>(host: &H) {
    // As the standard harness: the first argument that is no option selects.
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let tally = kernmalloc_testsuite::run(host, &only);
    tally.print(host);
    if tally.failed != 0 {
        std::process::exit(1);
    }
}
