//! `cargo xtask bench --waste`: how much of what real programs are served was not asked for, and how much of slabs is not items.

use super::suite::{Cell, Work};
use super::{Options, real, write_record};
use crate::measure::{self, Allocator, Bench, descendants};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Neither waste may be more.
const MOST_PERCENT: f64 = 10.0;
/// Between two looks at a program.
const EVERY: Duration = Duration::from_millis(20);

/// What the account of a process says of waste.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sample {
    /// Bytes since the start.
    served: f64,
    requested: f64,
    /// Bytes of all slabs, and of those the headers and tails.
    slabs: f64,
    overhead: f64,
}

impl Sample {
    /// Of `kernmalloc vmstat -s --json`.
    fn parse(json: &str) -> Result<Self> {
        let figure = |key: &str| -> Result<f64> {
            let (_, rest) = json.split_once(&format!("\"{key}\": ")).with_context(|| format!("no {key} in {json}"))?;
            let end = rest.find([',', '\n', '}']).context("cut off")?;
            Ok(rest[..end].trim().parse()?)
        };
        let overhead = figure("slab-overhead")?;
        let parts = ["served-classes", "served-zones", "cached", "depots", "slab-free"];
        let items: f64 = parts.into_iter().map(figure).sum::<Result<f64>>()?;
        let (served, requested) = (figure("served-ever")?, figure("requested-ever")?);
        Ok(Self { served, requested, slabs: items + overhead, overhead })
    }

    /// A process's figures so far, and a later look: of what was served the latest, of slabs those at their largest.
    fn then(self, later: Self) -> Self {
        let Self { slabs, overhead, .. } = if later.slabs >= self.slabs { later } else { self };
        Self { slabs, overhead, ..later }
    }

    fn internal(&self) -> f64 {
        (self.served - self.requested) * 100.0 / self.served.max(1.0)
    }

    fn slab(&self) -> f64 {
        self.overhead * 100.0 / self.slabs.max(1.0)
    }
}

/// What every process below the launcher has come to.
#[derive(Default)]
struct Samples(BTreeMap<u32, Sample>);

impl Samples {
    fn look(&mut self, launcher: u32) -> Result<()> {
        for pid in descendants(launcher) {
            let mut vmstat = Command::new(measure::command());
            vmstat.args(["vmstat", "-s", "--json", "-p", &pid.to_string()]).stderr(Stdio::null());
            let out = vmstat.output().context("kernmalloc vmstat")?;
            // It may not have begun yet, or be over.
            if out.status.success() {
                let later = Sample::parse(&String::from_utf8_lossy(&out.stdout))?;
                let sample = self.0.entry(pid).or_insert(later);
                *sample = sample.then(later);
            }
        }
        Ok(())
    }

    /// Of the process that was served most: a compiler's, not its driver's.
    fn largest(&self) -> Option<Sample> {
        self.0.values().copied().max_by(|a, b| a.served.total_cmp(&b.served))
    }
}

pub(super) fn run(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let ours = allocators.iter().find(|allocator| allocator.is_ours()).context("ours is among them")?;
    let mut rows = Vec::new();
    for Cell { row, work } in real::programs(bench)? {
        let mut samples = Samples::default();
        match work {
            Work::Plain(program) => {
                _ = bench.run_beside(&program, ours, |launcher| {
                    // Until the launcher is about to end: it has no child any more.
                    let mut was_there = false;
                    loop {
                        samples.look(launcher)?;
                        let is_there = !descendants(launcher).is_empty();
                        if was_there && !is_there {
                            return Ok(());
                        }
                        was_there |= is_there;
                        std::thread::sleep(EVERY);
                    }
                })?
            }
            Work::Redis => _ = real::redis(bench, ours, options.quick, &mut |launcher| samples.look(launcher))?,
        }
        let Some(sample) = samples.largest() else { bail!("{} was over before it could be read", row.name) };
        println!("{}: {:.1} % internal, {:.1} % slabs", row.name, sample.internal(), sample.slab());
        rows.push((row.name, sample));
    }
    let text = page(&rows, machine);
    println!("\n{text}");
    write_record("waste.csv", &csv(&rows))?;
    write_record("waste.md", &text)
}

fn csv(rows: &[(String, Sample)]) -> String {
    let mut out = String::from("row,served_bytes,requested_bytes,slab_bytes,slab_overhead_bytes\n");
    for (name, Sample { served, requested, slabs, overhead }) in rows {
        let _ = writeln!(out, "\"{name}\",{served},{requested},{slabs},{overhead}");
    }
    out
}

fn page(rows: &[(String, Sample)], machine: &str) -> String {
    let mut out = format!(
        "# Waste\n\n\
         Made by `cargo xtask bench --waste`: real programs under kernmalloc, read every {} ms with `kernmalloc vmstat -s`; of each the process\n\
         that was served most. *Internal waste* is what was served and not asked for, of all that was served until the last look. *Slab\n\
         waste* is what slabs have beside their items, headers and tails, when the slabs were at their largest; of the server, when it\n\
         was full. The mark is {MOST_PERCENT} % for both; above it: bold.\n\n{machine}\n\
         | | served, MiB | asked for, MiB | internal waste | slabs, MiB | headers and tails, MiB | slab waste |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        EVERY.as_millis(),
    );
    for (name, sample) in rows {
        let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
        let percent = |percent: f64| {
            let bold = if percent > MOST_PERCENT { "**" } else { "" };
            format!("{bold}{percent:.1} %{bold}")
        };
        let Sample { served, requested, slabs, overhead } = *sample;
        let (served, requested, slabs, overhead) = (mib(served), mib(requested), mib(slabs), mib(overhead));
        let (internal, slab) = (percent(sample.internal()), percent(sample.slab()));
        let _ = writeln!(out, "| {name} | {served} | {requested} | {internal} | {slabs} | {overhead} | {slab} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = "{\n  \"memory-account\": {\n    \"served-classes\": 700,\n    \"served-zones\": 0,\n    \"cached\": 100,\n    \
                        \"depots\": 50,\n    \"slab-free\": 50,\n    \"slab-overhead\": 100,\n    \"served-ever\": 8000,\n    \
                        \"requested-ever\": 7000\n  }\n}\n";

    #[test]
    fn waste_is_read_from_the_account() {
        let sample = Sample::parse(JSON).unwrap();
        assert_eq!(sample, Sample { served: 8000.0, requested: 7000.0, slabs: 1000.0, overhead: 100.0 });
        assert_eq!((sample.internal(), sample.slab()), (12.5, 10.0));
        assert!(Sample::parse("{}").is_err());
        let text = page(&[("program".to_owned(), sample)], "- here\n");
        assert!(text.contains("| **12.5 %** |") && text.contains("| 10.0 % |\n"), "{text}");
    }

    #[test]
    fn slabs_count_when_they_are_largest() {
        let first = Sample { served: 10.0, requested: 9.0, slabs: 50.0, overhead: 5.0 };
        let last = Sample { served: 20.0, requested: 19.0, slabs: 30.0, overhead: 1.0 };
        assert_eq!(first.then(last), Sample { served: 20.0, requested: 19.0, slabs: 50.0, overhead: 5.0 });
        assert_eq!(last.then(first), first);
    }
}
