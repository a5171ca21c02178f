//! A snapshot as the user asked to see it.

use memstat::Snapshot;
use serde_json::Value;

use crate::args::TableArgs;
use crate::rows::{Row, rows};
use crate::symbols::Symbols;
use crate::{json, layout};

/// The table of types, in the layout that was asked for. `pid`: the live process, for the paths of its files.
pub(crate) fn types(snapshot: &Snapshot, pid: Option<u32>, args: &TableArgs, symbols: &mut Symbols) -> String {
    let rows = chosen(snapshot, pid, args, symbols);
    if args.netbsd {
        layout::netbsd(&rows, &snapshot.zones, args.wide)
    } else if args.wide {
        layout::wide_types(&rows, args.sites)
    } else {
        layout::freebsd_types(&rows, args.sites)
    }
}

/// The parts of the JSON document of a table of types.
pub(crate) fn types_json(
    snapshot: &Snapshot,
    pid: Option<u32>,
    args: &TableArgs,
    symbols: &mut Symbols,
) -> [(&'static str, Value); 2] {
    let rows = chosen(snapshot, pid, args, symbols);
    [("program", json::program(snapshot)), ("malloc-statistics", json::types(&rows))]
}

fn chosen(snapshot: &Snapshot, pid: Option<u32>, args: &TableArgs, symbols: &mut Symbols) -> Vec<Row> {
    rows(snapshot, args.sites.then_some((symbols, pid)), args.sort)
}

/// What a reader of the table must know besides: misuse, a malloc of the program's own, call sites beyond the table.
pub(crate) fn remarks(snapshot: &Snapshot) -> Vec<String> {
    let p = &snapshot.program;
    let mut out = Vec::new();
    if p.foreign_malloc {
        out.push(format!(
            "{} brings its own malloc, which kernmalloc does not replace: the table has only what went to ours",
            p.name()
        ));
    }
    if let Some(report) = &p.report {
        out.push(format!("{} misused malloc ({} times); first report:", p.name(), p.misuses.max(1)));
        out.extend(report.lines().map(|line| format!("  {line}")));
    }
    if p.site_overflow > 0 {
        out.push(format!("{} blocks came from call sites beyond the table; their row says so", p.site_overflow));
    }
    if p.failures > 0 {
        out.push(format!("{} requests failed for want of memory", p.failures));
    }
    out
}
