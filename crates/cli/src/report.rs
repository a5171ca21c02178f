//! A snapshot as the user asked to see it.

use memstat::Snapshot;
use serde_json::Value;

use crate::args::TableArgs;
use crate::rows::{By, Row, rows};
use crate::symbols::Symbols;
use crate::{json, layout};

/// The table of types, in the layout that was asked for. `pid`: the live process, for the paths of its files.
pub(crate) fn types(snapshot: &Snapshot, pid: Option<u32>, args: &TableArgs, symbols: &mut Symbols) -> String {
    let rows = chosen(snapshot, pid, args, symbols);
    if args.netbsd {
        layout::netbsd(&rows, &snapshot.zones, args.wide)
    } else if args.wide {
        layout::wide_types(&rows, args.sites || args.crates)
    } else {
        layout::freebsd_types(&rows, args.sites || args.crates)
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
    let by = match (args.sites, args.crates) {
        (true, _) => By::Site(symbols, pid),
        (_, true) => By::Crate(symbols, pid),
        _ => By::Library,
    };
    rows(snapshot, by, args.sort)
}

/// What a reader of the table must know besides: misuse, a malloc of the program's own, call sites beyond the table.
pub(crate) fn remarks(snapshot: &Snapshot, pid: Option<u32>, symbols: &mut Symbols) -> Vec<String> {
    let p = &snapshot.program;
    let mut out = Vec::new();
    match symbols.own_allocator(&p.exe) {
        Some(allocator) => out.push(format!(
            "{} has an allocator of its own ({allocator}), which kernmalloc does not replace: the table has only what came to ours",
            p.name()
        )),
        None if p.foreign_malloc => out.push(format!(
            "{} brings its own malloc, which kernmalloc does not replace: the table has only what came to ours",
            p.name()
        )),
        None if snapshot.requests() == 0 && p.failures == 0 => {
            out.push(format!("{} asked for nothing: it allocates nothing, or in another way", p.name()));
        }
        None => {}
    }
    if let Some(report) = &p.report {
        out.push(format!("{} misused malloc ({} times); first report:", p.name(), p.misuses.max(1)));
        let lines = report.strip_prefix("kernmalloc: ").unwrap_or(report).lines();
        out.extend(lines.map(|line| format!("  {}", with_places(line, snapshot, pid, symbols))));
    }
    if p.site_overflow > 0 {
        out.push(format!("{} blocks came from call sites beyond the table; their row says so", p.site_overflow));
    }
    if p.failures > 0 {
        out.push(format!("{} requests failed for want of memory", p.failures));
    }
    out
}

/// A line of a report with function, file and line after each `module+0xoffset` in it.
///
/// The library that wrote it can look nothing up: it runs inside a malloc that was just misused.
fn with_places(line: &str, snapshot: &Snapshot, pid: Option<u32>, symbols: &mut Symbols) -> String {
    let mut out = String::new();
    for word in line.split_inclusive(' ') {
        out.push_str(word);
        let site = word.trim_end_matches([' ', ',', ':', ';', ')']);
        let Some((module, offset)) = site.trim_start_matches('(').rsplit_once("+0x") else { continue };
        let Ok(offset) = u64::from_str_radix(offset, 16) else { continue };
        let Some(lib) = snapshot.libs.iter().find(|lib| lib.name() == module) else { continue };
        let Some(place) = symbols.place(lib, offset, pid) else { continue };
        let function = place.function.unwrap_or_default();
        let at = match (place.file, place.line) {
            (Some(file), Some(line)) => format!(", {file}:{line}"),
            _ => String::new(),
        };
        if !out.ends_with(' ') {
            out.push(' ');
        }
        out.push_str(&format!("[{function}{at}]"));
        if word.ends_with(' ') {
            out.push(' ');
        }
    }
    out
}
