//! The suite in a Linux process, on the port that the preloaded library uses.

mod common;

use std::fmt::Arguments;

use hosted::{Linux, SYSTEM};
use kern::System;
use kernmalloc_testsuite::no_frames::NoFrames;
use kernmalloc_testsuite::{Host, Outcome};
use platform::MisuseReport;

struct Process;

impl Host for Process {
    type P = Linux;
    type Frames = NoFrames;

    fn system(&self) -> &System<Linux> {
        &SYSTEM
    }

    fn cpus(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn threads(&self, count: usize, body: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome {
        common::threads(count, body, &|_, body| body())
    }

    fn interrupted(&self, handler: &(dyn Fn() + Sync), body: &mut dyn FnMut() -> Outcome) -> Outcome {
        common::interrupted(self.cpus(), handler, body, &|_, body| body())
    }

    fn has_interrupts(&self) -> bool {
        false
    }

    fn yield_now(&self) {
        std::thread::yield_now();
    }

    /// Of the CPUs that the process may use.
    fn on_cpu(&self, cpu: usize, body: &mut dyn FnMut() -> Outcome) -> Outcome {
        let size = size_of::<libc::cpu_set_t>();
        // SAFETY: zeros are an empty set; records of ours, read and written; the running thread.
        unsafe {
            let (mut before, mut only) = (core::mem::zeroed(), core::mem::zeroed());
            libc::sched_getaffinity(0, size, &raw mut before);
            let allowed = (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &before));
            if let Some(cpu) = allowed.clone().nth(cpu % allowed.count().max(1)) {
                libc::CPU_SET(cpu, &mut only);
                libc::sched_setaffinity(0, size, &raw const only);
            }
            let outcome = body();
            libc::sched_setaffinity(0, size, &raw const before);
            outcome
        }
    }

    /// A limit on the address space, so much above what the process has.
    fn limit_memory(&self, pages: Option<usize>) -> bool {
        let Ok(statm) = std::fs::read_to_string("/proc/self/statm") else { return false };
        let Some(now) = statm.split(' ').next().and_then(|pages| pages.parse::<usize>().ok()) else { return false };
        let most = pages.map_or(libc::RLIM_INFINITY, |pages| ((now + pages) * 4096) as u64);
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a record of ours, read and written.
        unsafe {
            if libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) != 0 {
                return false;
            }
            limit.rlim_cur = most.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_AS, &raw const limit) == 0
        }
    }

    fn records_misuse(&self) -> bool {
        false
    }

    fn expect_misuse(&self, _: bool) {}

    fn take_misuse(&self) -> Option<MisuseReport> {
        None
    }

    fn effort(&self) -> usize {
        common::EFFORT
    }

    fn print(&self, line: Arguments<'_>) {
        println!("{line}");
    }
}

fn main() {
    assert!(hosted::boot(), "no memory for the allocator");
    common::main(&Process);
}
