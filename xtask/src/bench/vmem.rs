//! `cargo xtask bench --vmem`: time of an allocation and a free in an arena, over the number of segments, as a table
//! and a plot.

use super::plot::{self, Line, Panel};
use crate::{machine, shell};
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::path::Path;

/// One point: nanoseconds for an allocation and a free.
#[derive(Debug, Clone, PartialEq)]
struct Point {
    structure: String,
    load: String,
    segments: u64,
    median: f64,
    /// Bounds of the median's 95 % confidence interval.
    low: f64,
    high: f64,
}

/// What is measured, in the bench's words and in ours, with a colour.
const STRUCTURES: [(&str, &str, &str); 4] = [
    ("raw-instant", "RawArena, instant fit", "#0b6e4f"),
    ("raw-best", "RawArena, best fit", "#6fb98f"),
    ("arena-instant", "Arena with its lock, instant fit", "#1f4e9e"),
    ("published-instant", "crate vmem 1.0.0, instant fit", "#b3341f"),
];
const LOADS: [(&str, &str); 3] = [
    ("pair", "the same range again"),
    ("replace-64", "one of 64 ranges, random sizes"),
    ("replace-any", "one of all ranges, random sizes"),
];

pub(crate) fn run() -> Result<()> {
    let machine = machine::described();
    let criterion = shell::target_dir().join("criterion");
    // What an older run left would stand beside what this one measures.
    for (structure, _, _) in STRUCTURES {
        let _ = std::fs::remove_dir_all(criterion.join(structure));
    }
    shell::run(shell::cargo().args(["bench", "--quiet", "--package", "kernmalloc-vmem", "--bench", "arena"]))?;
    let points = collect(&criterion)?;
    let dir = shell::root().join("docs/benchmarks");
    std::fs::write(dir.join("vmem.csv"), csv(&points))?;
    std::fs::write(dir.join("vmem.svg"), svg(&points))?;
    std::fs::write(dir.join("vmem.md"), page(&points, &machine))?;
    println!("{} points; docs/benchmarks/vmem.md, .csv, .svg", points.len());
    Ok(())
}

fn collect(criterion: &Path) -> Result<Vec<Point>> {
    let mut points = Vec::new();
    for (structure, _, _) in STRUCTURES {
        for (load, _) in LOADS {
            for segments in (2..=6).map(|log10| 10_u64.pow(log10)) {
                let file = criterion.join(structure).join(load).join(segments.to_string()).join("new/estimates.json");
                // Not everything is measured at every size.
                let Ok(text) = std::fs::read_to_string(&file) else { continue };
                let [low, high, median] = median_of(&text).with_context(|| file.display().to_string())?;
                let (structure, load) = (structure.to_owned(), load.to_owned());
                points.push(Point { structure, load, segments, median, low, high });
            }
        }
    }
    if points.is_empty() {
        bail!("no figures under {}", criterion.display());
    }
    Ok(points)
}

/// Lower bound, upper bound and value of the median in criterion's file.
fn median_of(text: &str) -> Result<[f64; 3]> {
    let at = text.find("\"median\"").context("no median")?;
    let mut found = [0.0; 3];
    for (slot, name) in found.iter_mut().zip(["\"lower_bound\":", "\"upper_bound\":", "\"point_estimate\":"]) {
        let rest = &text[at..];
        let rest = &rest[rest.find(name).with_context(|| format!("no {name}"))? + name.len()..];
        let end = rest.find([',', '}']).context("cut off")?;
        *slot = rest[..end].trim().parse()?;
    }
    Ok(found)
}

fn csv(points: &[Point]) -> String {
    let mut out = String::from("structure,load,segments,median_ns,low_ns,high_ns\n");
    for point in points {
        let Point { structure, load, segments, median, low, high } = point;
        let _ = writeln!(out, "{structure},{load},{segments},{median:.2},{low:.2},{high:.2}");
    }
    out
}

fn page(points: &[Point], machine: &str) -> String {
    let mut out = String::from(
        "# Time of an allocation and a free in an arena\n\n\
         Made by `cargo xtask bench --vmem` from `crates/vmem/benches/arena.rs`, which says what is measured: medians\n\
         of both calls together, in nanoseconds; the bounds of the median's 95 % confidence interval are in\n\
         [vmem.csv](vmem.csv).\n\n\
         ![Nanoseconds over segments](vmem.svg)\n\n",
    );
    out += machine;
    for (load, title) in LOADS {
        let _ = write!(out, "\n## {load}: {title}\n\n| segments |");
        let mut rule = String::from("| ---: |");
        for (_, name, _) in STRUCTURES {
            let _ = write!(out, " {name} |");
            rule += " ---: |";
        }
        let _ = write!(out, "\n{rule}\n");
        for segments in (2..=6).map(|log10| 10_u64.pow(log10)) {
            let _ = write!(out, "| {segments} |");
            for (structure, _, _) in STRUCTURES {
                let is_it =
                    |point: &&Point| point.structure == structure && point.load == load && point.segments == segments;
                match points.iter().find(is_it) {
                    Some(point) => _ = write!(out, " {:.0} |", point.median),
                    None => out += " |",
                }
            }
            out.push('\n');
        }
    }
    out
}

/// A panel per load.
fn svg(points: &[Point]) -> String {
    let panels = LOADS.map(|(load, title)| Panel {
        title: load.to_owned(),
        subtitle: title.to_owned(),
        lines: STRUCTURES
            .map(|(structure, name, colour)| {
                let mut line: Vec<&Point> =
                    points.iter().filter(|point| point.structure == structure && point.load == load).collect();
                line.sort_by_key(|point| point.segments);
                let points = line.iter().map(|point| (point.segments, point.median)).collect();
                Line { name, colour, is_dashed: false, points }
            })
            .into(),
    });
    plot::lines(&panels, (2, 6), "segments in the arena")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_read_from_what_criterion_writes() {
        let interval = |low, high, point| {
            format!(
                "{{\"confidence_interval\":{{\"confidence_level\":0.95,\"lower_bound\":{low},\"upper_bound\":{high}}},\"point_estimate\":{point},\"standard_error\":0.1}}"
            )
        };
        let text = format!("{{\"mean\":{},\"median\":{}}}", interval(1.0, 2.0, 1.5), interval(14.25, 1.5e1, 14.5));
        assert_eq!(median_of(&text).unwrap(), [14.25, 15.0, 14.5]);
        assert!(median_of("{\"mean\":1}").is_err());
    }

    #[test]
    fn every_point_is_in_the_table_the_page_and_the_plot() {
        let point = |structure: &str, segments, median| Point {
            structure: structure.into(),
            load: "pair".into(),
            segments,
            median,
            low: median - 1.0,
            high: median + 1.0,
        };
        let points = [point("raw-instant", 100, 14.0), point("published-instant", 100_000, 2345.0)];
        assert_eq!(csv(&points).lines().nth(2), Some("published-instant,pair,100000,2345.00,2344.00,2346.00"));
        let page = page(&points, "- here\n");
        assert!(page.contains("| 100 | 14 | | | |\n") && page.contains("| 100000 | | | | 2345 |\n"), "{page}");
        let plot = svg(&points);
        assert_eq!(plot.matches("<circle").count(), 2);
        assert!(plot.contains("10 µs") && !plot.contains("NaN"));
    }
}
