//! What `kernmalloc vmstat --json` says of a live program, and of one that has ended.

use crate::host::command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

fn vmstat(pid: u32, args: &[&str]) -> Value {
    let mut vmstat = Command::new(command());
    vmstat.arg("vmstat").args(args).args(["--json", "-p", &pid.to_string()]);
    let out = vmstat.output().unwrap_or_else(|e| panic!("{vmstat:?}: {e}"));
    assert!(out.status.success(), "{vmstat:?}: {}{}", out.status, String::from_utf8_lossy(&out.stderr));
    parse(&out.stdout)
}

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_else(|e| panic!("{e} in {}", String::from_utf8_lossy(json)))
}

fn figure(row: &Value, name: &str) -> u64 {
    row[name].as_u64().unwrap_or_else(|| panic!("no figure {name}, or a negative one, in {row}"))
}

/// A row of the table: a call site, or a library as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The library's file name.
    pub library: String,
    /// Name of the function, where symbols have one.
    pub function: Option<String>,
    /// Return address in the file; `None` in a table by library.
    pub offset: Option<u64>,
    /// Blocks allocated since the start.
    pub requests: u64,
    /// Blocks freed since the start.
    pub frees: u64,
    /// Blocks in use.
    pub in_use: u64,
    /// Bytes in use, as served.
    pub bytes_in_use: u64,
    /// Bytes allocated since the start, as served.
    pub bytes_served: u64,
    /// Bytes asked for since the start.
    pub bytes_requested: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Most bytes in use at a time.
    pub high_water: u64,
}

fn rows(table: &Value) -> Vec<Site> {
    let rows = table["malloc-statistics"]["memory"].as_array().unwrap_or_else(|| panic!("no table in {table}"));
    rows.iter()
        .map(|row| Site {
            library: row["library"]
                .as_str()
                .and_then(|path| Path::new(path).file_name())
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
            function: row["function"].as_str().map(str::to_owned),
            offset: row["offset"].as_u64(),
            requests: figure(row, "requests"),
            frees: figure(row, "frees"),
            in_use: figure(row, "in-use"),
            bytes_in_use: figure(row, "memory-use"),
            bytes_served: figure(row, "served-bytes"),
            bytes_requested: figure(row, "requested-bytes"),
            failures: figure(row, "failures"),
            high_water: figure(row, "high-water"),
        })
        .collect()
}

/// The table by call site of a live program.
#[must_use]
pub fn sites(pid: u32) -> Vec<Site> {
    rows(&vmstat(pid, &["-m", "--sites"]))
}

/// The table by call site, when the program is far enough to have one, and lives.
#[must_use]
pub fn sites_if_any(pid: u32) -> Option<Vec<Site>> {
    let mut vmstat = Command::new(command());
    let out = vmstat.args(["vmstat", "-m", "--sites", "--json", "-p", &pid.to_string()]).output();
    let out = out.unwrap_or_else(|e| panic!("{vmstat:?}: {e}"));
    out.status.success().then(|| rows(&parse(&out.stdout)))
}

/// The table by library of a live program.
#[must_use]
pub fn library_totals(pid: u32) -> Vec<Site> {
    rows(&vmstat(pid, &["-m"]))
}

/// Blocks and bytes in use of a live program's types with a name of their own.
#[must_use]
pub fn named_types(pid: u32) -> BTreeMap<String, (u64, u64)> {
    let table = vmstat(pid, &["-m"]);
    let rows = table["malloc-statistics"]["memory"].as_array().unwrap_or_else(|| panic!("no table in {table}"));
    let named = rows.iter().filter(|row| row["library"].is_null());
    let name = |row: &Value| row["type"].as_str().unwrap_or_else(|| panic!("no name in {row}")).to_owned();
    named.map(|row| (name(row), (figure(row, "in-use"), figure(row, "memory-use")))).collect()
}

/// Blocks and bytes in use of a live program's rows by crate, the named types among them.
#[must_use]
pub fn crate_totals(pid: u32) -> BTreeMap<String, (u64, u64)> {
    let table = vmstat(pid, &["-m", "--crates"]);
    let rows = table["malloc-statistics"]["memory"].as_array().unwrap_or_else(|| panic!("no table in {table}"));
    let name = |row: &Value| row["type"].as_str().unwrap_or_else(|| panic!("no name in {row}")).to_owned();
    rows.iter().map(|row| (name(row), (figure(row, "in-use"), figure(row, "memory-use")))).collect()
}

/// Process ids of the programs that the command finds.
#[must_use]
pub fn running() -> Vec<u32> {
    let mut ps = Command::new(command());
    let out = ps.args(["ps", "--json"]).output().unwrap_or_else(|e| panic!("{ps:?}: {e}"));
    assert!(out.status.success(), "{ps:?}: {}{}", out.status, String::from_utf8_lossy(&out.stderr));
    let list = parse(&out.stdout);
    let list = list["process"].as_array().unwrap_or_else(|| panic!("no list in {list}"));
    list.iter().filter_map(|program| program["pid"].as_u64()?.try_into().ok()).collect()
}

/// The table that `run --json -o FILE` left, of its only program.
#[must_use]
pub fn sites_of_report(file: &Path) -> Vec<Site> {
    let text = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    rows(&parse(&text))
}

/// Failed requests of all sites in a function.
#[must_use]
pub fn failures_of(pid: u32, function: &str) -> u64 {
    sites(pid).iter().filter(|site| site.function.as_deref() == Some(function)).map(|site| site.failures).sum()
}

/// Resident memory of the whole program, by the kernel's own sum.
fn resident(pid: u32) -> u64 {
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the program lives, and is ours");
    let line = smaps.lines().find(|line| line.starts_with("Rss:")).expect("smaps_rollup has Rss");
    let kibibytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kibibytes * 1024
}

/// Resident memory of a live program that the allocator needs for itself: its tables, its records, the statistics object, and what slabs
/// have beside their items. (Free items and pages are the program's next blocks, and not in it.)
#[must_use]
pub fn own_bytes(pid: u32) -> u64 {
    let document = vmstat(pid, &["-s"]);
    let line =
        |name: &str| document["memory-account"][name].as_i64().unwrap_or_else(|| panic!("no {name}: {document}"));
    let parts = ["page-table", "records", "object"].map(|name| line(name) + line(&format!("absent-{name}")));
    // Each is there, or it would not have been found.
    assert!(parts.iter().all(|part| *part > 0) && line("slab-overhead") > 0, "{document}");
    (parts.iter().sum::<i64>() + line("slab-overhead")).unsigned_abs()
}

/// Whether every thread of a process sleeps or is stopped: what it said last it may have said a moment before it was done.
fn stands_still(pid: u32) -> bool {
    let state = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // Behind the name, which may have anything in it.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    };
    let tasks =
        std::fs::read_dir(format!("/proc/{pid}/task")).map(|tasks| tasks.flatten().map(state).collect::<Vec<_>>());
    tasks.is_ok_and(|states| states.iter().all(|state| matches!(state, Some('S' | 'T' | 't') | None)))
}

/// The account of a program that stands still, or will: its lines add up to its sum, the sum is within 1 % of what smaps has as ours,
/// and ours and not ours are all there is.
#[track_caller]
pub fn account_adds_up(pid: u32, who: &str) {
    const LINES: [&str; 18] = [
        "served-classes",
        "served-large",
        "cached",
        "depots",
        "slab-free",
        "slab-overhead",
        "cached-runs",
        "free-pages",
        "page-table",
        "records",
        "object",
        "absent-slabs",
        "absent-large",
        "absent-cached-runs",
        "absent-free-pages",
        "absent-page-table",
        "absent-records",
        "absent-object",
    ];
    let start = std::time::Instant::now();
    while !stands_still(pid) {
        assert!(start.elapsed() < crate::process::HANG, "{who} does not come to rest");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let document = vmstat(pid, &["-s"]);
    let account = &document["memory-account"];
    let line = |name: &str| {
        account[name].as_i64().unwrap_or_else(|| panic!("{who}: no figure {name} in the account {document}"))
    };
    let near = |a: i64, b: i64| a.abs_diff(b) * 100 <= b.unsigned_abs();

    let sum: i64 = LINES.iter().map(|name| line(name)).sum::<i64>() + line("clean-resident");
    assert_eq!(sum, line("ours"), "{who}: the lines do not add up to their sum: {account:#}");
    assert!(line("smaps-ours") > 0, "{who}: {account:#}");
    assert!(near(line("ours"), line("smaps-ours")), "{who}: more than 1 % between account and smaps: {account:#}");
    let all = line("smaps-ours") + line("library") + line("not-ours");
    assert_eq!(all, line("total"), "{who}: ours and not ours are not all: {account:#}");
    let kernel = resident(pid) as i64;
    assert!(near(line("total"), kernel), "{who}: the kernel has {kernel} resident: {account:#}");
    for name in LINES.iter().filter(|name| !name.starts_with("absent-")) {
        assert!(line(name) >= 0, "{who}: {name} is negative: {account:#}");
    }

    // The table of types tells the same story.
    let served = line("served-classes") + line("served-large");
    let types: u64 = sites(pid).iter().map(|site| site.bytes_in_use).sum();
    assert!(near(types as i64, served), "{who}: the types have {types} in use, the account {served}: {account:#}");
}
