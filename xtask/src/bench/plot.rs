//! Plots in SVG: ratios to the best peer by row, and lines over powers of ten.

use super::record::{Quantity, Record, Role};
use std::fmt::Write as _;

/// The width of a letter, about, in pixels.
const LETTER: f64 = 6.2;

/// The opening of a plot of this size, on white.
fn canvas(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

/// What markup would take for itself.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Colours that are told apart by those who see no red or green (Okabe and Ito's), for everybody in every plot.
fn colour(name: &str) -> &'static str {
    match name {
        "kernmalloc" => "#000000",
        "kernmalloc, off" => "#777777",
        "glibc" => "#e69f00",
        "mimalloc" => "#0072b2",
        "jemalloc" => "#d55e00",
        "tcmalloc" | "snmalloc" => "#009e73",
        "rpmalloc" => "#cc79a7",
        "talc" => "#56b4e9",
        "rlsf" => "#8c6d1f",
        _ => "#b0b0b0",
    }
}

/// Every column's ratio to the best peer, a line per row; ours are the filled marks.
pub(crate) fn ratios(record: &Record, quantity: Quantity) -> String {
    const LINE: f64 = 17.0;
    const TOP: f64 = 54.0;
    const WIDE: f64 = 460.0;
    /// Ratios that are shown; what is beyond stands at the edge.
    const SHOWN: (f64, f64) = (0.25, 8.0);
    const TICKS: [f64; 6] = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

    let letters = record.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let left = 12.0 + letters as f64 * LETTER;
    let (width, bottom) = (left + WIDE + 24.0, TOP + record.rows.len() as f64 * LINE);
    let x = |ratio: f64| {
        let share = (ratio.clamp(SHOWN.0, SHOWN.1) / SHOWN.0).ln() / (SHOWN.1 / SHOWN.0).ln();
        left + share * WIDE
    };
    let mut out = canvas(width, bottom + 24.0);
    let title = quantity.title().split(',').next().unwrap_or_default();
    let _ =
        writeln!(out, "<text x=\"8\" y=\"16\" font-weight=\"bold\">{title}: ratio to the best peer of the row</text>");
    let mut at = 8.0;
    for column in &record.columns {
        mark(&mut out, at + 5.0, 30.0, column.name, column.role);
        let _ = writeln!(out, "<text x=\"{:.0}\" y=\"34\">{}</text>", at + 13.0, column.name);
        at += 30.0 + column.name.len() as f64 * LETTER;
    }
    for tick in TICKS {
        let (at, strong) = (x(tick), if tick == 1.0 { "#666" } else { "#ddd" });
        let _ = writeln!(
            out,
            "<path d=\"M{at:.1} {:.0}V{bottom:.0}\" stroke=\"{strong}\"/>\
             <text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{tick}</text>",
            TOP - 8.0,
            bottom + 15.0
        );
    }
    for (row, name) in record.rows.iter().map(|row| &row.name).enumerate() {
        let y = TOP + (row as f64 + 0.5) * LINE;
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text><path d=\"M{left:.0} {y:.1}h{WIDE}\" stroke=\"#eee\"/>",
            left - 6.0,
            y + 4.0,
            escaped(name)
        );
        // Ours last, on top of the others, and of those the first.
        let mut columns: Vec<usize> = (0..record.columns.len()).rev().collect();
        columns.sort_by_key(|column| record.columns[*column].role == Role::Ours);
        for column in columns {
            if let Some(ratio) = record.ratio_to_best(row, column, quantity) {
                let column = &record.columns[column];
                mark(&mut out, x(ratio), y, column.name, column.role);
            }
        }
    }
    out += "</svg>\n";
    out
}

fn mark(out: &mut String, x: f64, y: f64, name: &str, role: Role) {
    let colour = colour(name);
    let _ = match role {
        Role::Ours => writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\" fill=\"{colour}\"/>"),
        Role::Peer => writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"white\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        ),
        Role::Bound => writeln!(out, "<path d=\"M{x:.1} {:.1}v10\" stroke=\"{colour}\" stroke-width=\"2\"/>", y - 5.0),
    };
}

/// A line of a plot.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) colour: &'static str,
    pub(crate) is_dashed: bool,
    /// Count and nanoseconds.
    pub(crate) points: Vec<(u64, f64)>,
}

/// Lines with a title of their own; every panel has the same lines by name.
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) subtitle: String,
    pub(crate) lines: Vec<Line>,
}

/// Panels side by side, both axes logarithmic: nanoseconds, from 10 up, over counts between two powers of ten.
pub(crate) fn lines(panels: &[Panel], powers: (u32, u32), counted: &str) -> String {
    const HEIGHT: f64 = 260.0;
    const LEFT: f64 = 52.0;
    const TOP: f64 = 34.0;
    const GAP: f64 = 18.0;
    let panel_wide = if panels.len() == 1 { 420.0 } else { 250.0 };
    let all = panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points);
    // From 10 ns to the next power of ten above everything.
    let most = all.map(|(_, ns)| *ns).fold(100.0, f64::max).log10().ceil();
    let (first, last) = powers;
    let x = |panel: usize, count: f64| {
        let share = (count.log10() - f64::from(first)) / f64::from(last - first);
        LEFT + panel as f64 * (panel_wide + GAP) + share * (panel_wide - 24.0) + 12.0
    };
    let y = |ns: f64| TOP + HEIGHT - (ns.max(1.0).log10() - 1.0).max(0.0) / (most - 1.0) * HEIGHT;
    let width = LEFT + panels.len() as f64 * (panel_wide + GAP);
    let legend: &[Line] = panels.first().map_or(&[], |panel| &panel.lines);
    let mut out = canvas(width, TOP + HEIGHT + 46.0 + 16.0 * legend.len() as f64);
    for (index, panel) in panels.iter().enumerate() {
        let left = LEFT + index as f64 * (panel_wide + GAP);
        let (title, subtitle) = (escaped(&panel.title), escaped(&panel.subtitle));
        let _ = writeln!(
            out,
            "<text x=\"{left:.0}\" y=\"14\" font-weight=\"bold\">{title}</text><text x=\"{left:.0}\" y=\"27\">{subtitle}</text>\n\
             <rect x=\"{left:.0}\" y=\"{TOP}\" width=\"{panel_wide}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#888\"/>"
        );
        for power in 1..=most as i32 {
            let ns = 10_f64.powi(power);
            let at = y(ns);
            let right = left + panel_wide;
            let _ = writeln!(out, "<path d=\"M{left:.0} {at:.1}H{right:.0}\" stroke=\"#ddd\"/>");
            if index == 0 {
                let (end, base) = (left - 5.0, at + 4.0);
                let text = if power < 3 { format!("{ns:.0} ns") } else { format!("{:.0} µs", ns / 1000.0) };
                let _ = writeln!(out, "<text x=\"{end:.0}\" y=\"{base:.1}\" text-anchor=\"end\">{text}</text>");
            }
        }
        for power in first..=last {
            let (at, base) = (x(index, 10_f64.powi(power as i32)), TOP + HEIGHT + 14.0);
            let _ = writeln!(
                out,
                "<text x=\"{at:.1}\" y=\"{base:.0}\" text-anchor=\"middle\">10<tspan dy=\"-4\" \
                 font-size=\"8\">{power}</tspan></text>"
            );
        }
        for line in &panel.lines {
            let at: Vec<(f64, f64)> = line.points.iter().map(|(count, ns)| (x(index, *count as f64), y(*ns))).collect();
            let path: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let (colour, dashes) = (line.colour, dashes(line));
            let path = path.join(" ");
            let _ = writeln!(
                out,
                "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"{dashes}/>"
            );
            for (x, y) in at {
                let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>");
            }
        }
    }
    let (middle, base) = (width / 2.0, TOP + HEIGHT + 30.0);
    let _ = writeln!(out, "<text x=\"{middle:.0}\" y=\"{base:.0}\" text-anchor=\"middle\">{counted}</text>");
    for (index, line) in legend.iter().enumerate() {
        let at = TOP + HEIGHT + 46.0 + 16.0 * index as f64;
        let (middle, text, end) = (at - 4.0, LEFT + 28.0, LEFT + 20.0);
        let (name, colour, dashes) = (escaped(line.name), line.colour, dashes(line));
        let _ = writeln!(
            out,
            "<path d=\"M{LEFT} {middle}H{end}\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>\
             <text x=\"{text}\" y=\"{at}\">{name}</text>"
        );
    }
    out += "</svg>\n";
    out
}

fn dashes(line: &Line) -> &'static str {
    if line.is_dashed { " stroke-dasharray=\"4 3\"" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::small;

    #[test]
    fn every_figure_has_its_mark_at_its_ratio() {
        let plot = ratios(&small(), Quantity::Time);
        // Four in the legend; four and three in the rows, of which one is a bound.
        assert_eq!((plot.matches("<circle").count(), plot.matches("v10\"").count()), (3 + 6, 2));
        // The best peer of each row stands on the line of 1: 0.25 · 4, two fifths of the way.
        let left = 12.0 + 7.0 * LETTER;
        let one = format!("cx=\"{:.1}\"", left + 460.0 * 2.0 / 5.0);
        assert_eq!(plot.matches(&one).count(), 2, "{plot}");
        assert!(!plot.contains("NaN"));
    }

    #[test]
    fn names_do_not_end_the_markup() {
        assert_eq!(escaped("a < b & c"), "a &lt; b &amp; c");
    }
}
