//! `cargo xtask bench --rust`: global allocators of Rust programs, one program per allocator.

use super::record::{Column, Quantity, Record, Role, Row};
use super::{Options, plot, write_record};
use crate::measure::{Cost, numbers};
use crate::shell;
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In full a workload is so many times what it is with `--quick`.
const SCALE: u64 = 4;

/// A workload of `tests/rust-bench`, and how many operations with `--quick`.
struct Workload {
    name: &'static str,
    args: [&'static str; 2],
    quick: u64,
    /// Whether the bare stack has a figure here. It is a bound for small blocks of one thread; nobody gives it anything back.
    has_bound: bool,
}

const fn workload(name: &'static str, args: [&'static str; 2], quick: u64) -> Workload {
    Workload { name, args, quick, has_bound: false }
}

const M: u64 = 1_000_000;
const WORKLOADS: [Workload; 11] = [
    Workload { name: "pair, 64 B", args: ["pair", "64"], quick: 20 * M, has_bound: true },
    Workload { name: "pair, 4 KiB", args: ["pair", "4096"], quick: 10 * M, has_bound: true },
    workload("pair, 64 KiB", ["pair", "65536"], 2 * M),
    workload("pair, 1 MiB", ["pair", "1048576"], 2 * M),
    workload("1000 × 64 B, LIFO", ["batch-lifo", "1000"], 10 * M),
    workload("1000 × 64 B, random", ["batch-random", "1000"], 10 * M),
    workload("100,000 × 64 B, random", ["batch-random", "100000"], 4 * M),
    workload("size mix, 4096 live", ["mix", "4096"], 8 * M),
    workload("freed on another thread, 64 B", ["remote", "64"], 8 * M),
    workload("Vec<u64> grown to 1 M, per push", ["push", "1000000"], 80 * M),
    workload("8 threads, mix", ["mix-threads", "4096"], 6 * M),
];

/// An allocator's program, by the end of its name, and the feature that it needs.
struct Contender {
    column: Column,
    program: &'static str,
    feature: Option<&'static str>,
}

const fn contender(name: &'static str, role: Role, program: &'static str, feature: Option<&'static str>) -> Contender {
    Contender { column: Column { name, role }, program, feature }
}

const CONTENDERS: [Contender; 9] = [
    contender("glibc", Role::Peer, "glibc", None),
    contender("mimalloc", Role::Peer, "mimalloc", Some("mimalloc")),
    contender("jemalloc", Role::Peer, "jemalloc", Some("jemalloc")),
    contender("snmalloc", Role::Peer, "snmalloc", Some("snmalloc")),
    contender("rpmalloc", Role::Peer, "rpmalloc", Some("rpmalloc")),
    contender("talc", Role::Peer, "talc", Some("talc")),
    contender("rlsf", Role::Peer, "rlsf", Some("rlsf")),
    contender("kernmalloc", Role::Ours, "kernmalloc", None),
    contender("bare stack", Role::Bound, "stack", None),
];

/// How the programs are built, see `Cargo.toml`.
const PROFILE: &str = "rust-bench";

/// Our pair over the bare stack's is to be at most this.
const MOST_OVER_BARE: f64 = 1.15;

/// What there is to measure on this machine.
struct Built {
    programs: Vec<(Column, PathBuf)>,
    /// Peers that did not build.
    missing: Vec<&'static str>,
}

/// The programs. A peer that does not build is said and left out, so that a machine without a C compiler has the rest; at least one
/// peer besides the C library must be there.
fn build() -> Result<Built> {
    let cargo = |features: &[&str]| {
        let mut build = shell::cargo();
        build.args(["build", "--quiet", "--profile", PROFILE, "--package", "kernmalloc-rust-bench", "--bins"]);
        build.arg(format!("--features={}", features.join(",")));
        shell::run(&mut build)
    };
    let wanted: Vec<&str> = CONTENDERS.iter().filter_map(|contender| contender.feature).collect();
    let mut missing = Vec::new();
    if cargo(&wanted).is_err() {
        println!("not all peers build here; trying one by one");
        cargo(&[])?;
        missing = wanted.into_iter().filter(|feature| cargo(&[feature]).is_err()).collect();
    }
    let there =
        CONTENDERS.iter().filter(|contender| contender.feature.is_none_or(|feature| !missing.contains(&feature)));
    let there = there.map(|contender| {
        let file = shell::target_dir().join(PROFILE).join(format!("rust-bench-{}", contender.program));
        (contender.column, file)
    });
    let programs: Vec<(Column, PathBuf)> = there.collect();
    if programs.iter().filter(|(column, _)| column.role == Role::Peer).count() < 2 {
        bail!("none of the peers builds: a table without them would be a better one for us");
    }
    Ok(Built { programs, missing })
}

fn measure(program: &Path, args: &[&str; 2], count: u64) -> Result<Cost> {
    let mut command = Command::new(program);
    command.args(args).arg(count.to_string());
    let found = numbers(command, None)?;
    let [cpu_us, peak_kib] = found[..] else { bail!("{} wrote {found:?}", program.display()) };
    Ok(Cost { cpu_us, peak_kib, ..Cost::default() })
}

pub(super) fn run(machine: &str, options: &Options) -> Result<()> {
    let Built { programs, missing } = build()?;
    let scale = if options.quick { 1 } else { SCALE };
    let is_wanted =
        |workload: &&Workload| options.only.as_ref().is_none_or(|only| workload.name.contains(only.as_str()));
    let workloads: Vec<&Workload> = WORKLOADS.iter().filter(is_wanted).collect();
    if workloads.is_empty() {
        bail!("no row has that name");
    }
    let row = |workload: &&Workload| Row { name: workload.name.to_owned(), operations: workload.quick * scale };
    let columns = programs.iter().map(|(column, _)| *column).collect();
    let mut record = Record::new(workloads.iter().map(row).collect(), columns);
    for round in 0..options.rounds {
        for (row, workload) in workloads.iter().enumerate() {
            for turn in 0..programs.len() {
                // Who goes first changes, so that a drift of the machine takes no side.
                let column = (turn + round as usize) % programs.len();
                let (Column { role, .. }, program) = &programs[column];
                if *role != Role::Bound || workload.has_bound {
                    record.add(row, column, measure(program, &workload.args, workload.quick * scale)?);
                }
            }
            println!("round {} of {}: {}", round + 1, options.rounds, workload.name);
        }
    }
    let text = page(&record, &missing, machine, options);
    println!("\n{text}");
    if options.only.is_none() {
        write_record("rust.csv", &record.csv())?;
        write_record("rust.svg", &plot::ratios(&record, Quantity::Time))?;
        write_record("rust.md", &text)?;
    }
    Ok(())
}

/// The pairs against the bare stack's.
fn bounds(record: &Record) -> Option<String> {
    let column = |role| record.columns.iter().position(|column| column.role == role);
    let (ours, bare) = (column(Role::Ours)?, column(Role::Bound)?);
    let mut out = format!(
        "## Against the bare stack\n\nOur pair over that of a thread-local stack with a look-up of the class; the mark is {MOST_OVER_BARE}.\n\n\
         | | ours / bare stack |\n| --- | ---: |\n"
    );
    for (row, name) in record.rows.iter().map(|row| &row.name).enumerate() {
        let figure = |column| record.median(row, column, Quantity::Time);
        if let (Some(ours), Some(bare)) = (figure(ours), figure(bare)) {
            let _ = writeln!(out, "| {name} | {:.2} |", ours / bare);
        }
    }
    Some(out)
}

fn page(record: &Record, missing: &[&str], machine: &str, options: &Options) -> String {
    let mut out = format!(
        "# Global allocators of Rust programs\n\n\
         Made by `cargo xtask bench --rust` from `tests/rust-bench`; the figures of every run are in [rust.csv](rust.csv). Medians of\n\
         {} runs{}, the allocators taking turns within each round; CPU time, user and system, of all threads,\n\
         after a sixteenth of the work to warm up. Where blocks are counted it is the time of an allocation and its free, with the\n\
         program's own work in it. `kernmalloc` is the crate as users have it: exact statistics, credited to call sites. Bold: no peer\n\
         is better.\n\n\
         All are built as cargo builds a release, the peers in C and C++ by their crates with gcc. They are mimalloc,\n\
         tikv-jemallocator, snmalloc-rs and rpmalloc with its caches; talc behind a spin lock and rlsf behind a mutex are made for programs\n\
         without an operating system. `bare stack` is no allocator but a bound: a stack per thread and class, and a look-up of the class,\n\
         without a count or a check. ferroc, which needs a nightly compiler, is missing. Allocators of kernels are in\n\
         [kernel.md](kernel.md).\n\n",
        options.rounds,
        if options.quick { " of a quarter of the work" } else { "" },
    );
    if !missing.is_empty() {
        let _ = writeln!(out, "Not built on this machine, hence missing: {}.\n", missing.join(", "));
    }
    let _ = writeln!(out, "{machine}\n![CPU time, ratio to the best peer](rust.svg)\n");
    let bounds = bounds(record);
    let parts =
        [Some(record.table(Quantity::Time)), bounds, Some(record.spreads()), Some(record.table(Quantity::Peak))];
    out += &parts.into_iter().flatten().collect::<Vec<_>>().join("\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::small;

    #[test]
    fn every_contender_has_its_program() {
        let manifest = std::fs::read_to_string(shell::root().join("tests/rust-bench/Cargo.toml")).unwrap();
        for contender in &CONTENDERS {
            assert!(
                manifest.contains(&format!("name = \"rust-bench-{}\"", contender.program)),
                "{}",
                contender.program
            );
            if let Some(feature) = contender.feature {
                assert!(manifest.contains(&format!("required-features = [\"{feature}\"]")), "{feature}");
            }
        }
        assert_eq!(CONTENDERS[0].column.name, "glibc");
    }

    #[test]
    fn pairs_are_held_against_the_bound_where_it_has_a_figure() {
        let text = bounds(&small()).unwrap();
        assert!(text.ends_with("| pair | 2.00 |\n"), "{text}");
    }
}
