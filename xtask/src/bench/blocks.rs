//! `cargo xtask bench --blocks`: the time of replacing one of N live blocks, as N grows, beside the time of only touching one.

use super::plot::{self, Line, Panel};
use super::record::{Quantity, Record, Row};
use super::{Options, write_record};
use crate::measure::{Allocator, Bench, Cost, numbers};
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::process::Command;

const LIVE: [u64; 5] = [1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000];
/// Ours and those that it stands beside, with the colours of their lines.
const ALLOCATORS: [(&str, &str); 3] = [("glibc", "#e69f00"), ("mimalloc", "#0072b2"), ("kernmalloc", "#000000")];
/// What a live block takes at the most, of 16 to 64 bytes, with the array of pointers.
const BYTES_PER_BLOCK: u64 = 80;
/// Of what is available, so much may be used: the machine shall not begin to swap.
const MOST_PERCENT: u64 = 80;

/// Both costs of a run.
struct Records {
    replaced: Record,
    touched: Record,
    /// Numbers of blocks for which there was not enough memory.
    left_out: Vec<u64>,
}

fn available_bytes() -> u64 {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) << 10
}

pub(super) fn run(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let count: u64 = if options.quick { 2_000_000 } else { 10_000_000 };
    let fits = |live: &u64| live * BYTES_PER_BLOCK <= available_bytes() / 100 * MOST_PERCENT;
    let (live, left_out): (Vec<u64>, Vec<u64>) = LIVE.into_iter().partition(fits);
    let chosen: Vec<&Allocator> =
        ALLOCATORS.iter().filter_map(|(name, _)| allocators.iter().find(|allocator| allocator.name == *name)).collect();
    let rows: Vec<Row> = live.iter().map(|live| Row { name: grouped(*live), operations: count }).collect();
    let record = || Record::new(rows.clone(), chosen.iter().map(|allocator| allocator.column()).collect());
    let mut records = Records { replaced: record(), touched: record(), left_out };
    for round in 0..options.rounds {
        for (row, live) in live.iter().enumerate() {
            for turn in 0..chosen.len() {
                let column = (turn + round as usize) % chosen.len();
                let mut command = Command::new(bench.program("blocks"));
                command.args([live.to_string(), count.to_string()]);
                let found = numbers(command, Some(chosen[column]))?;
                let [replaced, touched, peak_kib] = found[..] else { bail!("blocks wrote {found:?}") };
                records.replaced.add(row, column, Cost { cpu_us: replaced, peak_kib, ..Cost::default() });
                records.touched.add(row, column, Cost { cpu_us: touched, peak_kib, ..Cost::default() });
            }
            println!("round {} of {}: {} blocks", round + 1, options.rounds, grouped(*live));
        }
    }
    let text = page(&records, machine, options);
    println!("\n{text}");
    write_record("blocks.csv", &csv(&records))?;
    write_record("blocks.svg", &svg(&records, &live))?;
    write_record("blocks.md", &text)
}

/// With a comma between thousands.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let cut = |at: usize| if at > 0 && (digits.len() - at).is_multiple_of(3) { "," } else { "" };
    digits.char_indices().map(|(at, digit)| format!("{}{digit}", cut(at))).collect()
}

/// Nanoseconds of one operation, in the median.
fn ns(record: &Record, row: usize, column: usize) -> f64 {
    let us = record.median(row, column, Quantity::Time).unwrap_or_default();
    us * 1e3 / record.rows[row].operations as f64
}

fn csv(records: &Records) -> String {
    let csv = |record: &Record, what: &str| {
        let lines = record.csv();
        lines.lines().skip(1).map(|line| format!("{what},{}\n", line.trim_end_matches(','))).collect::<String>()
    };
    let (replaced, touched) = (csv(&records.replaced, "replace"), csv(&records.touched, "touch"));
    format!("what,live,allocator,round,cpu_us,peak_kib\n{replaced}{touched}")
}

fn page(records: &Records, machine: &str, options: &Options) -> String {
    let Records { replaced, touched, left_out } = records;
    let mut out = format!(
        "# Replacing one of many live blocks\n\n\
         Made by `cargo xtask bench --blocks` from `tests/bench/blocks.c`; the figures of every run are in [blocks.csv](blocks.csv).\n\
         Blocks of 16 to 64 bytes; a random one is freed and another allocated, {} times. Then blocks chosen in the same order are\n\
         only touched, read and written: what the misses of the caches cost that no allocator is to blame for. Medians of {} runs, the\n\
         allocators taking turns; CPU time, nanoseconds. kernmalloc as users run it, preloaded, statistics and attribution on.\n\n\
         ![Nanoseconds over live blocks](blocks.svg)\n\n{machine}\n",
        replaced.rows.first().map_or_else(String::new, |row| grouped(row.operations)),
        options.rounds,
    );
    if !left_out.is_empty() {
        let numbers: Vec<String> = left_out.iter().map(|live| grouped(*live)).collect();
        let _ = writeln!(out, "Not measured, for want of memory: {} blocks.\n", numbers.join(" and "));
    }
    let names: Vec<&str> = replaced.columns.iter().map(|column| column.name).collect();
    for (title, of) in [
        ("A replacement", &(|row, column| ns(replaced, row, column)) as &dyn Fn(usize, usize) -> f64),
        ("A touch", &|row, column| ns(touched, row, column)),
        ("What a replacement takes beyond a touch", &|row, column| {
            ns(replaced, row, column) - ns(touched, row, column)
        }),
    ] {
        let _ = writeln!(out, "## {title}\n\n| live blocks | {} |", names.join(" | "));
        let _ = writeln!(out, "| ---: |{}", " ---: |".repeat(names.len()));
        for (row, Row { name, .. }) in replaced.rows.iter().enumerate() {
            let cells = (0..names.len()).map(|column| format!(" {:.0} |", of(row, column)));
            let _ = writeln!(out, "| {name} |{}", cells.collect::<String>());
        }
        out.push('\n');
    }
    let _ = writeln!(
        out,
        "## Growth\n\nBy how much more a replacement takes than with the fewest blocks, in touches' growth: how many misses a \
         replacement has\nfor each of a touch. A structure that is searched, or grows deeper, would have more with every line.\n\n\
         | live blocks | {} |\n| ---: |{}",
        names.join(" | "),
        " ---: |".repeat(names.len())
    );
    for (row, Row { name, .. }) in replaced.rows.iter().enumerate().skip(1) {
        let growth = |record, column| ns(record, row, column) - ns(record, 0, column);
        let cells =
            (0..names.len()).map(|column| format!(" {:.1} |", growth(replaced, column) / growth(touched, column)));
        let _ = writeln!(out, "| {name} |{}", cells.collect::<String>());
    }
    out += "\n## Peak of resident memory, MiB\n\nWith the array of pointers, eight bytes a block.\n\n";
    let table = replaced.table(Quantity::Peak);
    out += table.split_once("\n\n").map_or("", |(_, table)| table);
    out
}

fn svg(records: &Records, live: &[u64]) -> String {
    let line = |record: &Record, column: usize, is_dashed: bool| {
        let points = live.iter().enumerate().map(|(row, live)| (*live, ns(record, row, column)));
        let (name, colour) = ALLOCATORS[column];
        Line { name: if is_dashed { "only touched" } else { name }, colour, is_dashed, points: points.collect() }
    };
    let replaced = (0..ALLOCATORS.len()).map(|column| line(&records.replaced, column, false));
    let touched = line(&records.touched, ALLOCATORS.len() - 1, true);
    let panel = Panel {
        title: "a random block of many replaced".to_owned(),
        subtitle: "nanoseconds of CPU time".to_owned(),
        lines: replaced.chain([touched]).collect(),
    };
    plot::lines(&[panel], (6, 8), "live blocks")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::{Column, Role};

    fn records() -> Records {
        let column = |(name, _): &(&'static str, &str)| Column {
            name,
            role: if *name == "kernmalloc" { Role::Ours } else { Role::Peer },
        };
        let rows = vec![
            Row { name: grouped(1_000_000), operations: 1000 },
            Row { name: grouped(10_000_000), operations: 1000 },
        ];
        let record = || Record::new(rows.clone(), ALLOCATORS.iter().map(column).collect());
        let mut records = Records { replaced: record(), touched: record(), left_out: vec![100_000_000] };
        for (row, replaced, touched) in [(0, 50, 20), (1, 110, 40)] {
            for column in 0..ALLOCATORS.len() {
                let cost = |cpu_us| Cost { cpu_us, peak_kib: 1024, ..Cost::default() };
                records.replaced.add(row, column, cost(replaced));
                records.touched.add(row, column, cost(touched));
            }
        }
        records
    }

    #[test]
    fn growth_is_counted_in_touches() {
        let options = Options { quick: true, rounds: 1, only: None };
        let text = page(&records(), "- here\n", &options);
        // 60 ns more of a replacement, 20 more of a touch.
        assert!(text.contains("## Growth") && text.contains("| 10,000,000 | 3.0 | 3.0 | 3.0 |\n"), "{text}");
        assert!(
            text.contains("| 10,000,000 | 70 | 70 | 70 |\n") && text.contains("want of memory: 100,000,000 blocks"),
            "{text}"
        );
    }

    #[test]
    fn every_point_is_in_the_plot_and_every_run_in_the_csv() {
        let records = records();
        let plot = svg(&records, &[1_000_000, 10_000_000]);
        assert_eq!(plot.matches("<circle").count(), (ALLOCATORS.len() + 1) * 2);
        let csv = csv(&records);
        assert_eq!(csv.lines().count(), 1 + 2 * 2 * ALLOCATORS.len());
        assert!(csv.contains("touch,\"10,000,000\",\"kernmalloc\",1,40,1024\n"), "{csv}");
    }
}
