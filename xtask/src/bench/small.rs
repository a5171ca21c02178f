//! `cargo xtask bench --small`: what the preload costs a small program in memory.

use super::real::real;
use super::record::{Quantity, Record, Row};
use super::{Options, write_record};
use crate::measure::{Allocator, Bench, Program};
use anyhow::{Result, bail};
use std::fmt::Write as _;

/// Programs whose peak counts most where they are small.
const SMALL: &[(&str, &[&str])] = &[
    ("true", &[]),
    ("ls", &["/usr"]),
    ("cat", &["/etc/passwd"]),
    ("grep", &["-c", "root", "/etc/passwd"]),
    ("git", &["--version"]),
    ("bash", &["-c", ":"]),
    ("perl", &["-e", "1"]),
    ("python3", &["-c", "pass"]),
];

/// A preloaded allocator should not cost a small program more than this.
const SMALL_LIMIT_KIB: i64 = 1024;

pub(super) fn run(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let rows = SMALL.iter().map(|(name, args)| Row { name: [&[*name], *args].concat().join(" "), operations: 0 });
    let mut record = Record::new(rows.collect(), allocators.iter().map(Allocator::column).collect());
    for _ in 0..options.rounds {
        for (row, (name, args)) in SMALL.iter().enumerate() {
            let program = Program::new(real(name)?).args(args.iter().copied());
            for (column, allocator) in allocators.iter().enumerate() {
                record.add(row, column, bench.run(&program, allocator)?);
            }
        }
    }
    let mut out = format!(
        "# Peak of resident memory of small programs, KiB\n\nMade by `cargo xtask bench --small`; medians of {} runs.\n\n{}\n",
        options.rounds, machine
    );
    let names: Vec<&str> = allocators.iter().map(|a| a.name).collect();
    let _ = writeln!(out, "| | {} | ours − glibc |\n| --- |{}", names.join(" | "), " ---: |".repeat(names.len() + 1));
    let ours = allocators.iter().position(Allocator::is_ours).unwrap_or(0);
    let mut over = Vec::new();
    for (row, (name, _)) in SMALL.iter().enumerate() {
        let peak = |column| record.median(row, column, Quantity::Peak).unwrap_or_default() as i64;
        let _ = write!(out, "| `{}` |", record.rows[row].name);
        for column in 0..allocators.len() {
            let _ = write!(out, " {} |", peak(column));
        }
        let more = peak(ours) - peak(0);
        let _ = writeln!(out, " {more} |");
        if more > SMALL_LIMIT_KIB {
            over.push(format!("{name}: {more} KiB more than under glibc"));
        }
    }
    println!("{out}");
    write_record("small.md", &out)?;
    if !over.is_empty() {
        bail!("more than {SMALL_LIMIT_KIB} KiB: {}", over.join(", "));
    }
    Ok(())
}
