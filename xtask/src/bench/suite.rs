//! `cargo xtask bench`: our own programs and real ones, preloaded.

use super::record::{Quantity, Record, Row};
use super::{Options, plot, real, write_record};
use crate::measure::{Allocator, Bench, Program};
use crate::shell;
use anyhow::{Result, bail};

/// One of our own programs. `%` in an argument is that many times the scale: a tenth with `--quick`.
struct Own {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    /// Operations per run at full scale, for a time per operation; the programs count in the same way.
    operations: u64,
}

const fn own(name: &'static str, program: &'static str, args: &'static [&'static str], operations: u64) -> Own {
    Own { name, program, args, operations }
}

const M: u64 = 1_000_000;
const ROWS: &[Own] = &[
    own("pair, 16 B", "pair", &["16", "%50000000"], 100 * M),
    own("pair, 64 B", "pair", &["64", "%50000000"], 100 * M),
    own("pair, 1 KiB", "pair", &["1024", "%50000000"], 100 * M),
    own("pair, 4 KiB", "pair", &["4096", "%20000000"], 40 * M),
    own("pair, 64 KiB", "pair", &["65536", "%10000000"], 20 * M),
    own("pair, 1 MiB", "pair", &["1048576", "%4000000"], 8 * M),
    own("1000 × 64 B, LIFO", "batch", &["64", "1000", "%40000", "lifo"], 80 * M),
    own("1000 × 64 B, random", "batch", &["64", "1000", "%40000", "random"], 80 * M),
    own("100,000 × 64 B, LIFO", "batch", &["64", "100000", "%200", "lifo"], 40 * M),
    own("100,000 × 64 B, random", "batch", &["64", "100000", "%100", "random"], 20 * M),
    own("size mix, 4096 live", "mix", &["4096", "1", "%20000000"], 40 * M),
    own("size mix, 4096 live, 8 threads", "mix", &["4096", "8", "%20000000"], 40 * M),
    own("freed on another thread, 64 B", "remote", &["1", "%10000000", "64"], 20 * M),
    own("freed on another thread, mix", "remote", &["1", "%10000000"], 20 * M),
    own("freed on another thread, mix, 4 pairs", "remote", &["4", "%10000000"], 20 * M),
    own("server, 2 threads", "server", &["2", "5000", "%20000000"], 40 * M),
    own("server, 8 threads", "server", &["8", "5000", "%20000000"], 40 * M),
    own("stress, 2 threads", "stress", &["2", "%10000000", "10"], 20 * M),
    own("stress, 8 threads", "stress", &["8", "%10000000", "10"], 20 * M),
    own("array grown to 1 M", "grow", &["1000000", "%1000"], 1000 * M),
    own("large blocks, 50 live", "large", &["50", "%100000"], M / 5),
    own("thread churn", "threads", &["%16000", "500"], 16 * M),
    own("tiny objects", "bignum", &["%30000000"], 120 * M),
    own("drifting sizes", "drift", &["64", "%20"], 0),
];

/// What is run for a row.
pub(super) enum Work {
    Plain(Program),
    /// The server's cost while a client works it; see [`real::redis`].
    Redis,
}

/// A row and what is run for it.
pub(super) struct Cell {
    pub(super) row: Row,
    pub(super) work: Work,
}

/// Our own programs' cells, at full scale or a tenth of it.
fn own_programs(bench: &Bench, quick: bool) -> Vec<Cell> {
    let scale = if quick { 10 } else { 1 };
    let scaled = |arg: &&str| match arg.strip_prefix('%') {
        Some(count) => (count.parse::<u64>().expect("the table holds numbers") / scale).max(1).to_string(),
        None => (*arg).to_owned(),
    };
    let cell = |own: &Own| Cell {
        row: Row { name: own.name.to_owned(), operations: own.operations / scale },
        work: Work::Plain(Program::new(bench.program(own.program)).args(own.args.iter().map(scaled))),
    };
    ROWS.iter().map(cell).collect()
}

pub(super) fn run(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let mut cells = own_programs(bench, options.quick);
    cells.extend(real::programs(bench)?);
    if let Some(only) = &options.only {
        cells.retain(|cell| cell.row.name.contains(only.as_str()));
    }
    if cells.is_empty() {
        bail!("no row has that name");
    }

    let rows = cells.iter().map(|cell| cell.row.clone()).collect();
    let mut record = Record::new(rows, allocators.iter().map(Allocator::column).collect());
    for round in 0..options.rounds {
        for (row, cell) in cells.iter().enumerate() {
            for turn in 0..allocators.len() {
                // Who goes first changes, so that a drift of the machine takes no side.
                let column = (turn + round as usize) % allocators.len();
                let cost = match &cell.work {
                    Work::Plain(program) => bench.run(program, &allocators[column])?,
                    Work::Redis => real::redis(bench, &allocators[column], options.quick, &mut |_| Ok(()))?,
                };
                record.add(row, column, cost);
            }
            println!("round {} of {}: {}", round + 1, options.rounds, cell.row.name);
        }
    }
    for (row, cell) in cells.iter().enumerate() {
        let Work::Plain(program) = &cell.work else { continue };
        for (column, allocator) in allocators.iter().enumerate() {
            if let Some(calls) = bench.system_calls(program, allocator)? {
                record.set_system_calls(row, column, calls);
            }
        }
        println!("system calls: {}", cell.row.name);
    }

    let quantities = [Quantity::Time, Quantity::Peak, Quantity::Steady, Quantity::Faults, Quantity::Calls];
    let mut tables = quantities.map(|quantity| record.table(quantity)).to_vec();
    tables.insert(1, record.spreads());
    let tables = tables.join("\n");
    println!("\n{tables}");
    if options.only.is_none() {
        write_record("figures.csv", &record.csv())?;
        write_record("time.svg", &plot::ratios(&record, Quantity::Time))?;
        write_record("peak.svg", &plot::ratios(&record, Quantity::Peak))?;
        std::fs::write(shell::root().join("docs/benchmarks.md"), document(&tables, machine, options))?;
        println!("written: docs/benchmarks.md");
    }
    Ok(())
}

/// What is written about the tables before them.
fn document(tables: &str, machine: &str, options: &Options) -> String {
    format!(
        "# Benchmarks\n\n\
         A record, made by `cargo xtask bench`; the raw figures of every run are in\n\
         [benchmarks/figures.csv](benchmarks/figures.csv). Other records: [Rust's global allocators](benchmarks/rust.md),\n\
         [small programs](benchmarks/small.md), [the price of a reader](benchmarks/reader.md), [a service](benchmarks/service.md),\n\
         [many live blocks](benchmarks/blocks.md), [ways into a slot](benchmarks/sections.md), [waste](benchmarks/waste.md),\n\
         [arenas](benchmarks/vmem.md), [allocators of kernels](benchmarks/kernel.md).\n\n\
         Every figure is a median of {} runs{}, the allocators taking turns within each round. Time is CPU time, user and\n\
         system, of all threads; where a row counts operations (a malloc or a free; a push), it is CPU time per operation, with\n\
         the program's own work in it. All allocators are preloaded in the same way, except glibc, which needs no preload.\n\
         `kernmalloc` is as users run it: exact statistics, credited to library and call site. `kernmalloc, off` has attribution\n\
         off; statistics stay on. Bold: no peer is better. \"Best\" is the best of glibc and the peers in that row. The peers are\n\
         Debian's libmimalloc2.0, libjemalloc2 and libtcmalloc-minimal4.\n\n\
         The programs are in `tests/bench`; the real ones are python3 with `PYTHONMALLOC=malloc`, sqlite3 in memory, gcc -O2,\n\
         git repack, and the redis server under redis-benchmark. Debian links that server with jemalloc, so in its row the column of\n\
         glibc is jemalloc, too, without a preload.\n\n\
         Peak memory is the kernel's figure for the largest process; steady memory is the middle of samples every 10 ms, of all processes\n\
         together; page faults are counted by the kernel. System calls are those of one more run, counted by strace(1), which makes\n\
         threads wait for each other in other ways than they do alone; not of the server.\n\n{}\n\
         ![CPU time, ratio to the best peer](benchmarks/time.svg)\n\n\
         ![Peak memory, ratio to the best peer](benchmarks/peak.svg)\n\n{tables}",
        options.rounds,
        if options.quick { " of a tenth of the work" } else { "" },
        machine,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_program() {
        for row in ROWS {
            let source = shell::root().join("tests/bench").join(format!("{}.c", row.program));
            assert!(source.exists(), "{}", source.display());
        }
    }
}
