//! What was measured, by row and column, and how it is shown: tables in Markdown, and every run in CSV.

use crate::measure::{Cost, geometric_mean};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Something measured under every allocator.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// Operations of one run, for a time per operation; 0 where a run counts as a whole.
    pub(crate) operations: u64,
}

/// What a column is to the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// One of those that we compare with.
    Peer,
    /// Ours; the first of these is the one that ratios are of.
    Ours,
    /// What no allocator is: a bound. In no ratio to the best.
    Bound,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
}

/// A figure of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quantity {
    Time,
    Peak,
    Steady,
    Faults,
    Calls,
}

impl Quantity {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Time => "CPU time",
            Self::Peak => "Peak of resident memory, MiB",
            Self::Steady => "Steady resident memory, MiB",
            Self::Faults => "Page faults",
            Self::Calls => "System calls",
        }
    }

    /// `None` where it was not measured.
    fn of(self, cost: &Cost) -> Option<u64> {
        match self {
            Self::Time => Some(cost.cpu_us),
            Self::Peak => Some(cost.peak_kib),
            Self::Steady => cost.steady_kib,
            Self::Faults => cost.faults,
            Self::Calls => cost.system_calls,
        }
    }

    fn shown(self, value: f64, operations: u64) -> String {
        match self {
            Self::Time if operations == 0 => format!("{:.2} s", value / 1e6),
            Self::Time => format!("{:.2} ns", value * 1e3 / operations as f64),
            Self::Peak | Self::Steady => format!("{:.1}", value / 1024.0),
            Self::Faults | Self::Calls => format!("{value:.0}"),
        }
    }
}

/// Least, first quartile, median, third quartile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) lower: f64,
    pub(crate) median: f64,
    pub(crate) upper: f64,
}

impl Spread {
    /// Of at least one value; between two values it is read off the line between them.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| {
            let place = share * last as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Self { least: values[0], lower: at(0.25), median: at(0.5), upper: at(0.75) })
    }
}

/// How ours stands to the best peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Ahead,
    /// The middle halves of the runs overlap.
    Tie,
    Behind,
}

impl Standing {
    fn between(ours: Spread, best: Spread) -> Self {
        if ours.median <= best.median {
            Self::Ahead
        } else if ours.lower <= best.upper {
            Self::Tie
        } else {
            Self::Behind
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ahead => "ahead",
            Self::Tie => "tie",
            Self::Behind => "behind",
        }
    }
}

/// All costs, by row and column. The first column is the C library's.
pub(crate) struct Record {
    pub(crate) rows: Vec<Row>,
    pub(crate) columns: Vec<Column>,
    costs: BTreeMap<(usize, usize), Vec<Cost>>,
}

impl Record {
    pub(crate) fn new(rows: Vec<Row>, columns: Vec<Column>) -> Self {
        Self { rows, columns, costs: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, row: usize, column: usize, cost: Cost) {
        self.costs.entry((row, column)).or_default().push(cost);
    }

    /// Puts down what one run of a cell was counted for.
    pub(crate) fn set_system_calls(&mut self, row: usize, column: usize, calls: u64) {
        for cost in self.costs.get_mut(&(row, column)).into_iter().flatten() {
            cost.system_calls = Some(calls);
        }
    }

    pub(crate) fn spread(&self, row: usize, column: usize, quantity: Quantity) -> Option<Spread> {
        let costs = self.costs.get(&(row, column))?;
        Spread::of(costs.iter().filter_map(|cost| quantity.of(cost)).map(|value| value as f64).collect())
    }

    pub(crate) fn median(&self, row: usize, column: usize, quantity: Quantity) -> Option<f64> {
        self.spread(row, column, quantity).map(|spread| spread.median)
    }

    /// The median as a cell of a table; nothing where there is none.
    pub(crate) fn shown(&self, row: usize, column: usize, quantity: Quantity) -> String {
        let operations = self.rows[row].operations;
        self.median(row, column, quantity).map_or_else(String::new, |figure| quantity.shown(figure, operations))
    }

    fn ours(&self) -> usize {
        self.columns.iter().position(|column| column.role == Role::Ours).unwrap_or(0)
    }

    /// The peer with the least of it in that row, and how much.
    pub(crate) fn best(&self, row: usize, quantity: Quantity) -> Option<(usize, f64)> {
        let peers = (0..self.columns.len()).filter(|column| self.columns[*column].role == Role::Peer);
        let figures = peers.filter_map(|column| Some((column, self.median(row, column, quantity)?)));
        figures.min_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// A column's figure over the best peer's; `None` where either is not there.
    pub(crate) fn ratio_to_best(&self, row: usize, column: usize, quantity: Quantity) -> Option<f64> {
        Some(self.median(row, column, quantity)? / self.best(row, quantity)?.1.max(f64::MIN_POSITIVE))
    }

    /// A heading and a table of medians, with ratios to the C library's column and to the best peer.
    pub(crate) fn table(&self, quantity: Quantity) -> String {
        let mut out = format!("## {}\n\n", quantity.title());
        let names: Vec<&str> = self.columns.iter().map(|column| column.name).collect();
        let _ = writeln!(out, "| | {} | ours / {} | ours / best |", names.join(" | "), names[0]);
        let _ = writeln!(out, "| --- |{}", " ---: |".repeat(names.len() + 2));
        let ours = self.ours();
        let mut to_each = vec![Vec::new(); names.len()];
        let mut to_best = Vec::new();
        for (row, Row { name, operations }) in self.rows.iter().enumerate() {
            let _ = write!(out, "| {name} |");
            let best = self.best(row, quantity).map(|(_, figure)| figure);
            let own = self.median(row, ours, quantity);
            for (column, ratios) in to_each.iter_mut().enumerate() {
                let Some(figure) = self.median(row, column, quantity) else {
                    out += " |";
                    continue;
                };
                let is_best = self.columns[column].role != Role::Bound && best.is_none_or(|best| figure <= best);
                let bold = if is_best { "**" } else { "" };
                let _ = write!(out, " {bold}{}{bold} |", quantity.shown(figure, *operations));
                ratios.extend(own.map(|own| own / figure).filter(|ratio| ratio.is_finite()));
            }
            let first = self.median(row, 0, quantity);
            let ratios = [first, best].map(|to| Some(own? / to?).filter(|ratio| ratio.is_finite()));
            to_best.extend(ratios[1]);
            let _ = writeln!(out, "{}", ratios.map(|ratio| shown_ratio(ratio, 2)).concat());
        }
        let _ = write!(out, "| geometric mean, ours / this |");
        for (column, ratios) in to_each.iter().enumerate() {
            // A bound stands in some rows only, and its mean would look like the others'.
            let mean = (self.columns[column].role != Role::Bound && !ratios.is_empty()).then(|| geometric_mean(ratios));
            out += &shown_ratio(mean, 3);
        }
        let means = [&to_each[0], &to_best].map(|ratios| (!ratios.is_empty()).then(|| geometric_mean(ratios)));
        let _ = writeln!(out, "{}", means.map(|mean| shown_ratio(mean, 3)).concat());
        out
    }

    /// How ours and the best peer's times spread, and who leads.
    pub(crate) fn spreads(&self) -> String {
        let mut out = String::from(
            "## Spread\n\nCPU time of ours and of the best peer: least, quartiles. A tie is where the middle halves of the runs overlap.\n\n\
             | | ours | best | its | |\n| --- | ---: | --- | ---: | --- |\n",
        );
        for (row, Row { name, operations }) in self.rows.iter().enumerate() {
            let best = self.best(row, Quantity::Time);
            let own = self.spread(row, self.ours(), Quantity::Time);
            let (Some((peer, _)), Some(own)) = (best, own) else { continue };
            let Some(its) = self.spread(row, peer, Quantity::Time) else { continue };
            let shown = |spread: Spread| {
                let figures = [spread.least, spread.lower, spread.median, spread.upper];
                let figures = figures.map(|figure| Quantity::Time.shown(figure, *operations));
                let figures = figures.each_ref().map(|text| text.split(' ').next().unwrap_or_default());
                format!("{}; {}, {}, {}", figures[0], figures[1], figures[2], figures[3])
            };
            let word = Standing::between(own, its).word();
            let _ =
                writeln!(out, "| {name} | {} | {} | {} | {word} |", shown(own), self.columns[peer].name, shown(its));
        }
        out
    }

    /// Every run.
    pub(crate) fn csv(&self) -> String {
        let mut out = String::from("row,allocator,round,cpu_us,peak_kib,steady_kib,faults,system_calls\n");
        for ((row, column), costs) in &self.costs {
            for (round, cost) in costs.iter().enumerate() {
                let (name, allocator) = (&self.rows[*row].name, self.columns[*column].name);
                let _ = write!(out, "\"{name}\",\"{allocator}\",{},{},{}", round + 1, cost.cpu_us, cost.peak_kib);
                for figure in [cost.steady_kib, cost.faults, cost.system_calls] {
                    let _ = write!(out, ",{}", figure.map(|figure| figure.to_string()).unwrap_or_default());
                }
                out.push('\n');
            }
        }
        out
    }
}

/// A cell of a table.
fn shown_ratio(ratio: Option<f64>, digits: usize) -> String {
    ratio.map_or_else(|| " |".to_owned(), |ratio| format!(" {ratio:.digits$} |"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two peers, ours and a bound; in the second row the bound has no figure and ours is behind.
    pub(crate) fn small() -> Record {
        let row = |name: &str, operations| Row { name: name.to_owned(), operations };
        let column = |name, role| Column { name, role };
        let columns = vec![
            column("glibc", Role::Peer),
            column("other", Role::Peer),
            column("kernmalloc", Role::Ours),
            column("stack", Role::Bound),
        ];
        let mut record = Record::new(vec![row("pair", 1000), row("program", 0)], columns);
        let costs: [(usize, usize, [u64; 3]); 7] = [
            (0, 0, [8, 9, 10]),
            (0, 1, [4, 5, 6]),
            (0, 2, [5, 4, 4]),
            (0, 3, [1, 2, 3]),
            (1, 0, [2_000_000, 3_000_000, 4_000_000]),
            (1, 1, [6_000_000; 3]),
            (1, 2, [5_000_000; 3]),
        ];
        for (row, column, times) in costs {
            for cpu_us in times {
                record.add(row, column, Cost { cpu_us, peak_kib: 2048, ..Cost::default() });
            }
        }
        record
    }

    #[test]
    fn quartiles_are_read_between_the_values() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { least: 1.0, lower: 1.75, median: 2.5, upper: 3.25 });
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn bounds_are_shown_but_never_the_best() {
        let table = small().table(Quantity::Time);
        assert!(table.contains("| pair | 9.00 ns | **5.00 ns** | **4.00 ns** | 2.00 ns | 0.44 | 0.80 |\n"), "{table}");
        assert!(table.contains("| program | **3.00 s** | 6.00 s | 5.00 s | | 1.67 | 1.67 |\n"), "{table}");
        // √(4/9 · 5/3), √(4/5 · 5/6), and √(4/5 · 5/3) to the best.
        let means = "| geometric mean, ours / this | 0.861 | 0.816 | 1.000 | | 0.861 | 1.155 |\n";
        assert!(table.ends_with(means), "{table}");
    }

    #[test]
    fn who_leads_is_said_by_quartiles() {
        let text = small().spreads();
        assert!(
            text.contains("| pair | 4.00; 4.00, 4.00, 4.50 | other | 4.00; 4.50, 5.00, 5.50 | ahead |\n"),
            "{text}"
        );
        assert!(
            text.contains("| program | 5.00; 5.00, 5.00, 5.00 | glibc | 2.00; 2.50, 3.00, 3.50 | behind |\n"),
            "{text}"
        );
        let spread = |values: [f64; 3]| Spread::of(values.to_vec()).unwrap();
        assert_eq!(Standing::between(spread([4.0, 5.0, 6.0]), spread([4.0, 4.5, 5.0])), Standing::Tie);
    }

    #[test]
    fn every_run_is_in_the_csv() {
        let mut record = small();
        record.set_system_calls(1, 2, 77);
        let csv = record.csv();
        assert_eq!(csv.lines().count(), 1 + 7 * 3);
        assert_eq!(csv.lines().last(), Some("\"program\",\"kernmalloc\",3,5000000,2048,,,77"));
    }
}
