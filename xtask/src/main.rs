//! The developer's commands: `cargo xtask help`.
//!
//! Everything that decides whether a change is good is one of them, so that a person, a hook and the
//! continuous integration ask the same question.

use anyhow::{Result, bail};

mod bench;
mod debian;
mod guards;
mod history;
mod layers;
mod machine;
mod measure;
mod modules;
mod ports;
mod qemu;
mod service;
mod shell;
mod soak;
mod symbols;
mod test;
mod tidy;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  test              everything: tidy, documentation, unit tests with and without debug assertions,
                    loom, the preload's undefined symbols, instructions of the fast paths, and real programs
                    under kernmalloc
  tidy              format, clippy, layer order, stray files
  bench [--quick]   the benchmarks, beside glibc and the peers; writes docs/benchmarks.md, and plots in docs/benchmarks
  bench --rust      only Rust's global allocators, beside peers that are crates; writes docs/benchmarks/rust.*
  bench --blocks    only blocks replaced among a million to a hundred million; writes docs/benchmarks/blocks.*
  bench --sections  only the ways into a slot, which bench measures too; writes docs/benchmarks/sections.*
  bench --waste     only what real programs are served and did not ask for, and what slabs waste; writes docs/benchmarks/waste.*
  bench --small     only the peak memory of small programs; writes docs/benchmarks/small.md
  bench --reader    only the price of a reader polling every 10 ms; writes docs/benchmarks/reader.md
  bench --service   only the example service, beside the same with mimalloc; writes docs/benchmarks/service.md
  bench --vmem      only an arena, as its segments grow; writes docs/benchmarks/vmem.*
      --rounds N    how often each cell is measured (default 5, quick 3)
      --only TEXT   only rows whose name contains TEXT; prints, writes nothing
  qemu              boots the test kernel and runs the suite in it
      --smp N       so many CPUs (default 4)
      --multi       CPUs that run at once rather than in turn
      --singlestep  one instruction at a time under a fast timer: interrupts strike anywhere
      --numa N      so many domains, each with its CPUs and its part of the memory
      --hz N        timer interrupts per second and CPU
      --only TEXT   only tests whose names contain TEXT
      --debugger C  enters the debugger after the suite, and at a panic, and gives it command C (\"show malloc\"); repeatable
      --panic       panics after the suite
      --break NAME  with a fault put in, which the suite must catch: section-mask, tlb-shootdown, fpu-save, red-zone,
                    lost-wakeup, depot-race
  qemu --peers      threads that box, on our allocator and others in the same kernel; writes docs/benchmarks/kernel.md
  kernel            what test does with the kernel: the suite on three machines, the debugger, every fault
  suite             the same list of tests on the fake machine, in a Linux process and in the kernel, side by side
  guards [--write]  instructions of each fast path, counted by callgrind, against docs/benchmarks/instructions.csv;
                    with --write, records them there
  soak              everything mixed, for an hour: types, zones, arenas, contiguous memory, reclaim, sleepers and failures on fake
                    machines, which must end with nothing live and every figure exact; meanwhile, programs under kernmalloc
      --minutes N   for so long
      --seed S      the machines of that seed (default: new ones)
      --machines N  only so many machines and no programs: what a fault's report asks for
  help              this
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("test") => test::run(),
        Some("tidy") => tidy::run(),
        Some("bench") => bench::run(rest),
        Some("qemu") => qemu::run(rest),
        Some("kernel") => test::run_kernel(),
        Some("suite") => qemu::suite(),
        Some("guards") => {
            debian::provide(false);
            guards::run(rest)
        }
        Some("soak") => soak::run(rest),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("no command named {other:?}\n\n{HELP}"),
    }
}
