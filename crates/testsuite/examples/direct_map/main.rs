//! The direct map's port under the suite.

#[path = "../../tests/common/mod.rs"]
mod common;
mod machine;
mod port;

use core::fmt::Arguments;

use kern::System;
use kernmalloc_testsuite::no_frames::NoFrames;
use kernmalloc_testsuite::{Host, Outcome};
use machine::CPUS;
use platform::MisuseReport;
use port::{Kernel, SYSTEM};

struct Process;

fn on_cpu(number: usize, body: &dyn Fn()) {
    machine::set_cpu(number % CPUS);
    body();
}

impl Host for Process {
    type P = Kernel;
    type Frames = NoFrames;

    fn system(&self) -> &System<Kernel> {
        &SYSTEM
    }

    fn cpus(&self) -> usize {
        CPUS
    }

    fn threads(&self, count: usize, body: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome {
        common::threads(count, body, &on_cpu)
    }

    fn interrupted(&self, handler: &(dyn Fn() + Sync), body: &mut dyn FnMut() -> Outcome) -> Outcome {
        common::interrupted(CPUS, handler, body, &on_cpu)
    }

    fn has_interrupts(&self) -> bool {
        false
    }

    fn yield_now(&self) {
        machine::set_cpu((machine::cpu() + 1) % CPUS);
        std::thread::yield_now();
    }

    fn on_cpu(&self, cpu: usize, body: &mut dyn FnMut() -> Outcome) -> Outcome {
        machine::set_cpu(cpu % CPUS);
        body()
    }

    fn limit_memory(&self, pages: Option<usize>) -> bool {
        machine::limit(pages);
        true
    }

    fn gives_pages_back(&self) -> bool {
        false
    }

    fn expect_misuse(&self, _: bool) {}

    fn take_misuse(&self) -> Option<MisuseReport> {
        machine::take_misuse()
    }

    fn effort(&self) -> usize {
        common::EFFORT
    }

    fn print(&self, line: Arguments<'_>) {
        println!("{line}");
    }
}

fn main() {
    assert!(port::init());
    common::main(&Process);
}
