//! `cargo xtask bench`: what is measured beside glibc and the peers, interleaved, as records in docs/.

use crate::measure::{self, Bench};
use crate::{debian, machine, service, shell};
use anyhow::{Context as _, Result, bail};

mod blocks;
mod plot;
mod reader;
mod real;
mod record;
mod rust;
mod sections;
mod small;
mod suite;
mod vmem;
mod waste;

pub(crate) use record::{Column, Role};

struct Options {
    quick: bool,
    rounds: u32,
    only: Option<String>,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut options = Options { quick: false, rounds: 0, only: None };
    let mut what = "all";
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--small" | "--reader" | "--service" | "--vmem" | "--rust" | "--blocks" | "--sections" | "--waste" => {
                what = &arg[2..]
            }
            "--rounds" => options.rounds = args.next().context("--rounds takes a number")?.parse()?,
            "--only" => options.only = Some(args.next().context("--only takes a text")?.clone()),
            other => bail!("no option named {other:?}; see cargo xtask help"),
        }
    }
    if options.rounds == 0 {
        options.rounds = match (what, options.quick) {
            // Its cells are short, and several allocators may be close.
            ("rust", true) => 5,
            ("rust", false) => 9,
            (_, true) => 3,
            (_, false) => 5,
        };
    }
    // Described now, as it is measured: the tree may be another when the figures are there.
    let machine = machine::described();
    // These need nothing but cargo and compilers.
    match what {
        "service" => return write_record("service.md", &service::run(&machine, options.rounds, options.quick)?),
        "vmem" => return vmem::run(),
        "rust" => return rust::run(&machine, &options),
        _ => {}
    }
    debian::provide(true);
    let bench = Bench::new()?;
    let allocators = measure::allocators()?;
    match what {
        "small" => small::run(&bench, &allocators, &machine, &options),
        "blocks" => blocks::run(&bench, &allocators, &machine, &options),
        "sections" => sections::run(&bench, &allocators, &machine, &options),
        "waste" => waste::run(&bench, &allocators, &machine, &options),
        "reader" => reader::run(&bench, &allocators, &machine, &options),
        _ => {
            suite::run(&bench, &allocators, &machine, &options)?;
            if options.only.is_none() { sections::run(&bench, &allocators, &machine, &options) } else { Ok(()) }
        }
    }
}

/// Writes a file of docs/benchmarks.
fn write_record(name: &str, text: &str) -> Result<()> {
    let dir = shell::root().join("docs/benchmarks");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join(name), text)?;
    println!("written: docs/benchmarks/{name}");
    Ok(())
}
