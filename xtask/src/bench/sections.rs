//! `cargo xtask bench --sections`: the ways into a slot, beside each other.

use super::record::{Column, Quantity, Record, Role, Row};
use super::{Options, write_record};
use crate::measure::{Allocator, Bench, Program};
use anyhow::{Context as _, Result};
use std::fmt::Write as _;

const M: u64 = 1_000_000;
/// Threads, and the size of pairs or nothing for a mix.
const ROWS: [(&str, &str, Option<&str>); 6] = [
    ("pair, 64 B", "1", Some("64")),
    ("size mix, 512 live", "1", None),
    ("pair, 64 B, 2 threads", "2", Some("64")),
    ("size mix, 512 live each, 2 threads", "2", None),
    ("pair, 64 B, 8 threads", "8", Some("64")),
    ("size mix, 512 live each, 8 threads", "8", None),
];

/// A column: the program's word for the lease, and a variable of its environment.
struct Way {
    name: &'static str,
    is_ours: bool,
    lease: &'static str,
    env: Option<(&'static str, &'static str)>,
}

const WAYS: [Way; 4] = [
    Way { name: "glibc", is_ours: false, lease: "lease", env: None },
    Way { name: "rseq, lease", is_ours: true, lease: "lease", env: None },
    Way { name: "rseq, lease ended", is_ours: true, lease: "ended", env: None },
    Way { name: "thread slots", is_ours: true, lease: "lease", env: Some(("GLIBC_TUNABLES", "glibc.pthread.rseq=0")) },
];

pub(super) fn run(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let named = |name| allocators.iter().find(|allocator| allocator.name == name).context(name);
    let (glibc, ours) = (named("glibc")?, named("kernmalloc")?);
    let count = if options.quick { 4 * M } else { 40 * M };
    let rows = ROWS.map(|(name, ..)| Row { name: name.to_owned(), operations: 2 * count });
    let role = |way: &Way| if way.is_ours { Role::Ours } else { Role::Peer };
    let columns = WAYS.iter().map(|way| Column { name: way.name, role: role(way) });
    let mut record = Record::new(rows.into(), columns.collect());
    for round in 0..options.rounds as usize {
        for (row, (name, threads, size)) in ROWS.iter().enumerate() {
            for turn in 0..WAYS.len() {
                let column = (turn + round) % WAYS.len();
                let way = &WAYS[column];
                let mut program =
                    Program::new(bench.program("section")).args([threads, &*count.to_string(), way.lease]);
                program = program.args(size.iter());
                program.env.extend(way.env);
                record.add(row, column, bench.run(&program, if way.is_ours { ours } else { glibc })?);
            }
            println!("round {} of {}: {name}", round + 1, options.rounds);
        }
    }
    let text = page(&record, machine, options);
    println!("\n{text}");
    write_record("sections.csv", &record.csv())?;
    write_record("sections.md", &text)
}

fn page(record: &Record, machine: &str, options: &Options) -> String {
    let mut out = format!(
        "# Ways into a slot\n\n\
         Made by `cargo xtask bench --sections` from `tests/bench/section.c`; the figures of every run are in\n\
         [sections.csv](sections.csv). Medians of {} runs{}, taking turns; CPU time per malloc or free, each of which enters a\n\
         critical section once. All with statistics and attribution on.\n\n\
         - *rseq, lease*: as users have it, where the kernel and the C library have rseq(2). The first thread has the first slot on lease\n\
         \x20 (`design/0011`), which ends when another thread meets it there.\n\
         - *rseq, lease ended*: another thread ended the lease before the work began.\n\
         - *thread slots*: without rseq (`GLIBC_TUNABLES=glibc.pthread.rseq=0`, as under an old C library or a filter of system calls): a\n\
         \x20 thread's slot follows from its address and is taken by compare-and-swap.\n\n\
         In a kernel the section is a mask of interrupts: [kernel.md](kernel.md) has its figures, beside other allocators behind the same\n\
         mask and a lock, in an emulated machine.\n\n{machine}\n",
        options.rounds,
        if options.quick { " of a tenth of the work" } else { "" },
    );
    let names: Vec<&str> = record.columns.iter().map(|column| column.name).collect();
    let _ = writeln!(out, "| | {} |\n| --- |{}", names.join(" | "), " ---: |".repeat(names.len()));
    for (row, Row { name, .. }) in record.rows.iter().enumerate() {
        let cells = (0..names.len()).map(|column| match record.shown(row, column, Quantity::Time) {
            shown if shown.is_empty() => " |".to_owned(),
            shown => format!(" {shown} |"),
        });
        let _ = writeln!(out, "| {name} |{}", cells.collect::<String>());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::small;

    #[test]
    fn every_figure_is_in_the_table() {
        let options = Options { quick: true, rounds: 3, only: None };
        let text = page(&small(), "- here\n", &options);
        assert!(
            text.ends_with(
                "| pair | 9.00 ns | 5.00 ns | 4.00 ns | 2.00 ns |\n| program | 3.00 s | 6.00 s | 5.00 s | |\n"
            )
        );
    }
}
