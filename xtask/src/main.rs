//! The developer's commands: `cargo xtask help`.
//!
//! Everything that decides whether a change is good is one of them, so that a person, a hook and the
//! continuous integration ask the same question.

use anyhow::{Result, bail};

mod bench;
mod bench_vmem;
mod debian;
mod layers;
mod machine;
mod measure;
mod service;
mod shell;
mod soak;
mod symbols;
mod test;
mod tidy;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  test              everything: tidy, documentation, unit tests with and without debug assertions,
                    loom, the preload's undefined symbols, and real programs under kernmalloc
  tidy              format, clippy, layer order, stray files
  bench [--quick]   the benchmarks, beside glibc and the peers; writes docs/benchmarks.md
  bench --small     only the peak memory of small programs; writes docs/benchmarks/small.md
  bench --reader    only the price of a reader polling every 10 ms; writes docs/benchmarks/reader.md
  bench --service   only the example service, beside the same with mimalloc; writes docs/benchmarks/service.md
  bench --vmem      only an arena, as its segments grow; writes docs/benchmarks/vmem.*
      --rounds N    how often each cell is measured (default 5, quick 3)
      --only TEXT   only rows whose name contains TEXT; prints, writes nothing
  soak [SECONDS]    a long mixed stress under kernmalloc (default one hour)
  help              this
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("test") => test::run(),
        Some("tidy") => tidy::run(),
        Some("bench") => bench::run(rest),
        Some("soak") => soak::run(rest),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("no command named {other:?}\n\n{HELP}"),
    }
}
