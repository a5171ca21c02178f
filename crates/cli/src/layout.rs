//! The layouts of tables, as text.
//!
//! What scripts parse is reproduced to the blank: field widths are those of FreeBSD's and NetBSD's `vmstat`, and
//! overlong fields push the rest to the right as they do there.

use std::fmt::Write;

use memstat::{Account, Residence, Zone, sizes};

use crate::humanize::humanize;
use crate::rows::Row;

/// FreeBSD's `vmstat -m`. A column of call sites is as wide as its longest name; of libraries, as there, 16.
pub(crate) fn freebsd_types(rows: &[Row], sites: bool) -> String {
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let width = if sites { longest.max(16) } else { 16 };
    let mut out = String::new();
    let _ = writeln!(out, "{:>width$} {:>4} {:>5} {:>3} Size(s)", "Type", "Use", "Memory", "Req");
    for row in rows.iter().filter(|row| row.totals.allocs != 0 || row.totals.in_use() != 0) {
        let used = humanize(row.totals.in_use(), 1000);
        let memory = humanize(row.totals.bytes_in_use(), 1024);
        let requests = humanize(row.totals.allocs, 1000);
        let sizes = list(sizes(row.totals.size_mask));
        let _ = writeln!(out, "{:>width$} {used:>4} {memory:>5} {requests:>4} {sizes}", row.name);
    }
    out
}

fn list(items: impl Iterator<Item = u64>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    items.join(",")
}

/// Our own columns: exact figures, names last so that long ones push nothing aside.
pub(crate) fn wide_types(rows: &[Row], sites: bool) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:>10} {:>13} {:>13} {:>12} {:>12} {:>6} {:>15} {:>6}  {}",
        "InUse",
        "MemUse",
        "HighUse",
        "Requests",
        "Frees",
        "Fail",
        "Requested",
        "Waste%",
        if sites { "Type  Library" } else { "Type" },
    );
    for row in rows {
        let t = &row.totals;
        let _ = write!(
            out,
            "{:>10} {:>13} {:>13} {:>12} {:>12} {:>6} {:>15} {:>6.1}  {}",
            t.in_use(),
            t.bytes_in_use(),
            row.high_water_bytes,
            t.allocs,
            t.frees,
            row.failures,
            t.bytes_requested,
            row.waste_percent(),
            row.name,
        );
        match &row.library {
            Some(library) if sites => _ = writeln!(out, "  {library}"),
            _ => out.push('\n'),
        }
    }
    out
}

/// FreeBSD's `vmstat -z`.
pub(crate) fn freebsd_zones(zones: &[Zone]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<19} {:>7} {:>7} {:>8} {:>8} {:>8} {:>4} {:>4} {:>4}",
        "ITEM", "SIZE", "LIMIT", "USED", "FREE", "REQ", "FAIL", "SLEEP", "XDOM"
    );
    for zone in zones {
        let width = 26usize.saturating_sub(zone.name.len()).max(1);
        let _ = writeln!(
            out,
            "{}:{:>width$},{:>7},{:>8},{:>8},{:>8},{:>4},{:>4},{:>4}",
            zone.name,
            zone.item_bytes,
            zone.limit,
            zone.used(),
            zone.free(),
            zone.allocs,
            zone.fails,
            zone.sleeps,
            zone.xdomain,
        );
    }
    out
}

/// All five parts of NetBSD's `vmstat -m`; `wide` is its `-W`.
pub(crate) fn netbsd(rows: &[Row], zones: &[Zone], wide: bool) -> String {
    let mut out = String::new();
    netbsd_buckets(&mut out, zones);
    netbsd_sizes(&mut out, rows);
    netbsd_types(&mut out, rows, zones);
    netbsd_pools(&mut out, zones, wide);
    out
}

fn netbsd_buckets(out: &mut String, zones: &[Zone]) {
    out.push_str("Memory statistics by bucket size\n");
    out.push_str("    Size   In Use   Free   Requests  HighWater  Couldfree\n");
    for zone in zones.iter().filter(|zone| zone.allocs != 0) {
        let _ = writeln!(
            out,
            "{:>8} {:>8} {:>6} {:>10} {:>7} {:>10}",
            zone.item_bytes,
            zone.used(),
            zone.free(),
            zone.allocs,
            zone.bucket_size,
            0,
        );
    }
}

fn netbsd_sizes(out: &mut String, rows: &[Row]) {
    out.push_str("\nMemory usage type by bucket size\n");
    out.push_str("    Size  Type(s)\n");
    let used = rows.iter().fold(0, |mask, row| mask | row.totals.size_mask);
    for (bit, size) in (0..64u32).filter(|bit| used & 1 << bit != 0).zip(sizes(used)) {
        let mut column = 8;
        let mut first = true;
        for row in rows.iter().filter(|row| row.totals.size_mask & 1 << bit != 0) {
            column += 2 + row.name.len();
            if first {
                let _ = write!(out, "{size:>8}  {}", row.name);
            } else {
                out.push(',');
            }
            if column >= 80 {
                out.push_str("\n\t ");
                column = 10 + row.name.len();
            }
            if !first {
                let _ = write!(out, " {}", row.name);
            }
            first = false;
        }
        out.push('\n');
    }
}

fn netbsd_types(out: &mut String, rows: &[Row], zones: &[Zone]) {
    let kib = |bytes: u64| bytes.div_ceil(1024);
    out.push_str("\nMemory statistics by type                           Type  Kern\n");
    out.push_str("         Type  InUse MemUse HighUse  Limit Requests Limit Limit Size(s)\n");
    let shown = || rows.iter().filter(|row| row.totals.allocs != 0);
    for row in shown() {
        let _ = writeln!(
            out,
            "{:>14}{:>6}{:>6}K{:>7}K{:>6}K{:>9}{:>5}{:>6}  {}",
            row.name,
            row.totals.in_use(),
            kib(row.totals.bytes_in_use()),
            kib(row.high_water_bytes),
            kib(row.limit_bytes),
            row.totals.allocs,
            row.limit_blocks,
            row.map_blocks,
            sizes_in_use(row),
        );
    }
    let used: u64 = shown().map(|row| row.totals.bytes_in_use()).fold(0, u64::wrapping_add);
    let requests: u64 = shown().map(|row| row.totals.allocs).fold(0, u64::wrapping_add);
    let free = zones.iter().map(|zone| zone.free().saturating_mul(zone.item_bytes)).fold(0, u64::saturating_add);
    out.push_str("\nMemory Totals:  In Use    Free    Requests\n");
    let _ = writeln!(out, "              {:>7}K {:>6}K    {requests:>8}\n", kib(used), kib(free));
}

/// `size:blocks in use` where the figure is known: nothing in use, or one size only. Blocks are not counted by size.
fn sizes_in_use(row: &Row) -> String {
    let sizes: Vec<u64> = sizes(row.totals.size_mask).collect();
    let in_use = row.totals.in_use();
    let known = in_use == 0 || sizes.len() == 1;
    let text = |size: &u64| if known { format!("{size}:{in_use}") } else { size.to_string() };
    sizes.iter().map(text).collect::<Vec<_>>().join(",")
}

/// A line of words whose overlong ones take from the blanks of those that follow, as NetBSD's PRWORD.
struct Words<'a> {
    out: &'a mut String,
    overflow: usize,
}

impl Words<'_> {
    fn put(&mut self, width: usize, left: bool, text: &str) {
        let before = self.out.len();
        if left {
            let pad = width.saturating_sub(self.overflow);
            let _ = write!(self.out, "{text:<pad$}");
        } else {
            let pad = width.saturating_sub(1 + self.overflow);
            let _ = write!(self.out, " {text:>pad$}");
        }
        self.overflow = (self.overflow + self.out.len() - before).saturating_sub(width);
    }

    fn number(&mut self, width: usize, value: u64) {
        self.put(width, false, &value.to_string());
    }
}

fn netbsd_pools(out: &mut String, zones: &[Zone], wide: bool) {
    let pick = |wide_width, width| if wide { wide_width } else { width };
    let only_wide = |text| if wide { text } else { "" };
    out.push_str("Memory resource pool statistics\n");
    let _ = writeln!(
        out,
        "{:<name$}{:>size$}{:>requests$}{:>5}{:>requests$}{}{}{:>pages$}{:>pages$}{:>6}{}{:>6}{:>6}{:>6}{:>5}{}{}",
        "Name",
        "Size",
        "Requests",
        "Fail",
        "Releases",
        only_wide("  InUse"),
        only_wide(" Avail"),
        "Pgreq",
        "Pgrel",
        "Npage",
        only_wide(" PageSz"),
        "Hiwat",
        "Minpg",
        "Maxpg",
        "Idle",
        only_wide(" Flags"),
        only_wide("   Util"),
        name = pick(16, 11),
        size = pick(6, 5),
        requests = pick(12, 9),
        pages = pick(7, 6),
    );
    let (mut used_bytes, mut total_bytes) = (0u64, 0u64);
    for zone in zones.iter().filter(|zone| zone.allocs != 0) {
        let mut words = Words { out, overflow: 0 };
        words.put(pick(16, 11), true, &zone.name);
        words.number(pick(6, 5), zone.item_bytes);
        words.number(pick(12, 9), zone.allocs);
        words.number(5, zone.fails);
        words.number(pick(12, 9), zone.frees);
        if wide {
            words.number(7, zone.used());
            words.number(6, zone.free());
        }
        words.number(pick(7, 6), zone.slabs_imported);
        words.number(pick(7, 6), zone.slabs_imported.saturating_sub(zone.slabs));
        words.number(6, zone.slabs);
        if wide {
            words.number(7, zone.slab_bytes);
        }
        words.number(6, zone.slabs_high_water);
        words.number(6, 0);
        match zone.limit {
            0 => words.put(6, false, "inf"),
            limit => words.number(6, limit.div_ceil(zone.items_per_slab.max(1))),
        }
        words.number(5, zone.slabs_idle);
        let zone_used = zone.used().saturating_mul(zone.item_bytes);
        let zone_total = zone.slabs.saturating_mul(zone.slab_bytes);
        if wide {
            words.put(6, false, &format!("0x{:03x}", zone.flags));
            match zone_total {
                0 => out.push_str("   ---"),
                total => _ = write!(out, " {:>5.1}%", zone_used as f64 * 100.0 / total as f64),
            }
        }
        out.push('\n');
        used_bytes = used_bytes.saturating_add(zone_used);
        total_bytes = total_bytes.saturating_add(zone_total);
    }
    let (used, total) = (used_bytes / 1024, total_bytes / 1024);
    let utilization = if total == 0 { 0.0 } else { used as f64 * 100.0 / total as f64 };
    let _ = writeln!(out, "\nIn use {used}K, total allocated {total}K; utilization {utilization:.1}%");
}

/// The account of `vmstat -s`: figure first, as that command has always printed.
pub(crate) fn account(account: &Account) -> String {
    account_lines(account).iter().fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "{:>15} {}", line.value, line.text);
        out
    })
}

/// A line of the account.
pub(crate) struct Line {
    pub(crate) value: i64,
    pub(crate) text: &'static str,
    /// Its name in JSON.
    pub(crate) key: &'static str,
}

/// The lines of the account, one definition each (kernmalloc(1) has them); in JSON by their keys.
pub(crate) fn account_lines(a: &Account) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut figure = |value: i64, text, key| lines.push(Line { value, text, key });
    figure(a.served_classes, "bytes served to the program in size classes", "served-classes");
    figure(a.large.bytes as i64, "bytes served to the program in large blocks", "served-large");
    figure(a.cached as i64, "bytes cached per CPU", "cached");
    figure(a.depots as i64, "bytes in depots", "depots");
    figure(a.slab_free as i64, "bytes free in slabs", "slab-free");
    figure(a.slab_overhead as i64, "bytes of slab headers and tails", "slab-overhead");
    figure(a.cached_runs.bytes as i64, "bytes in free runs kept for reuse", "cached-runs");
    figure(a.free_dirty.bytes as i64, "bytes of retained free pages", "free-pages");
    figure(a.table.bytes as i64, "bytes of the page table", "page-table");
    figure(a.records.bytes as i64, "bytes of the allocator's records", "records");
    figure(a.object.bytes as i64, "bytes of the statistics object", "object");
    let absent = |part: &Residence| -(part.absent_bytes as i64);
    figure(absent(&a.slabs), "not resident: slabs", "absent-slabs");
    figure(absent(&a.large), "not resident: large blocks", "absent-large");
    figure(absent(&a.cached_runs), "not resident: free runs", "absent-cached-runs");
    figure(absent(&a.free_dirty), "not resident: free pages", "absent-free-pages");
    figure(absent(&a.table), "not resident: page table", "absent-page-table");
    figure(absent(&a.records), "not resident: records", "absent-records");
    figure(absent(&a.object), "not resident: statistics object", "absent-object");
    figure(a.clean_resident as i64, "resident though given back (huge pages)", "clean-resident");
    figure(a.ours(), "resident, ours: the sum of the above", "ours");
    figure(a.smaps_ours as i64, "resident, ours: by smaps", "smaps-ours");
    figure(a.difference(), "difference of the two", "difference");
    figure(a.library as i64, "resident, code and data of the library", "library");
    figure(a.not_ours() as i64, "resident, not ours", "not-ours");
    figure(a.total as i64, "resident, all of the program", "total");
    figure(a.swapped as i64, "ours in swap (part of what is not resident)", "swapped");
    lines
}
