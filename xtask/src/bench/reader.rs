//! `cargo xtask bench --reader`: the price of a reader.

use super::{Options, write_record};
use crate::measure::{self, Allocator, Bench, Program, descendants, median};
use anyhow::{Context as _, Result, bail};
use std::process::{Command, Stdio};
use std::time::Duration;

pub(super) fn run(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let ours = allocators.iter().find(|a| a.is_ours()).context("ours is among them")?;
    let count = if options.quick { "20000000" } else { "100000000" };
    let program = Program::new(bench.program("mix")).args(["4096", "1", count]);
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    let rounds = options.rounds.max(5) * 2 + 1;
    for round in 0..rounds {
        let with_reader = |watched: &mut Vec<u64>| -> Result<()> {
            let cost = bench.run_beside(&program, ours, |launcher| {
                let pid = only_child(launcher)?;
                let mut vmstat = Command::new(measure::command());
                vmstat
                    .args(["vmstat", "-m", "-w", "0.01", "-p", &pid.to_string()])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                // Ends with the program.
                vmstat.status().context("kernmalloc vmstat")?;
                Ok(())
            })?;
            watched.push(cost.cpu_us);
            Ok(())
        };
        // Who goes first changes, so that a drift of the machine takes no side.
        if round % 2 == 0 {
            alone.push(bench.run(&program, ours)?.cpu_us);
            with_reader(&mut watched)?;
        } else {
            with_reader(&mut watched)?;
            alone.push(bench.run(&program, ours)?.cpu_us);
        }
    }
    let (a, w) = (median(alone.clone()), median(watched.clone()));
    let text = format!(
        "# The price of a reader\n\n\
         Made by `cargo xtask bench --reader`: CPU time of a program that allocates all the time (`mix 4096 1 {count}`), alone and\n\
         while `kernmalloc vmstat -m -w 0.01` reads its table every 10 ms; {rounds} runs of each, taking turns.\n\n{}\n\
         | | median | least | most |\n| --- | ---: | ---: | ---: |\n\
         | alone | {} ms | {} ms | {} ms |\n| read every 10 ms | {} ms | {} ms | {} ms |\n\nDifference of the medians: {:+.2} %.\n",
        machine,
        a / 1000,
        alone.iter().min().unwrap_or(&0) / 1000,
        alone.iter().max().unwrap_or(&0) / 1000,
        w / 1000,
        watched.iter().min().unwrap_or(&0) / 1000,
        watched.iter().max().unwrap_or(&0) / 1000,
        (w as f64 / a as f64 - 1.0) * 100.0,
    );
    println!("{text}");
    write_record("reader.md", &text)
}

/// The program below the launcher, once it has made its statistics object.
fn only_child(launcher: u32) -> Result<u32> {
    for _ in 0..1000 {
        if let Some(pid) = descendants(launcher).first().copied() {
            let mut ready = Command::new(measure::command());
            ready.args(["vmstat", "-s", "-p", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
            if ready.status().is_ok_and(|status| status.success()) {
                return Ok(pid);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("the program does not show up under kernmalloc")
}
