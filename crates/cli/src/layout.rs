//! The layouts of tables, as text.
//!
//! What scripts parse is reproduced to the blank: field widths are those of FreeBSD's and NetBSD's `vmstat`, and
//! overlong fields push the rest to the right as they do there.

use std::fmt::Write;

use memstat::{Account, Residence, Zone, sizes};

use crate::humanize::humanize;
use crate::rows::Row;

/// FreeBSD's `vmstat -m`. A column of call sites or crates is as wide as most of their names need; of libraries, as there, 16.
pub(crate) fn freebsd_types(rows: &[Row], sites: bool) -> String {
    let longest = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let width = if sites { longest.clamp(16, 48) } else { 16 };
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
        // A run of pages is a page of its own kind, as long as it is an item.
        let run = zone.flags & abi::zone_flag::RUN != 0;
        let pages = if run { zone.used().saturating_add(zone.free()) } else { zone.slabs };
        let requested = zone.slabs_imported.max(pages);
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
        words.number(pick(7, 6), requested);
        words.number(pick(7, 6), requested - pages);
        words.number(6, pages);
        if wide {
            words.number(7, zone.slab_bytes);
        }
        words.number(6, zone.slabs_high_water.max(pages));
        words.number(6, 0);
        match zone.limit {
            0 => words.put(6, false, "inf"),
            limit => words.number(6, limit.div_ceil(zone.items_per_slab.max(1))),
        }
        words.number(5, zone.slabs_idle);
        let zone_used = zone.used().saturating_mul(zone.item_bytes);
        let zone_total = pages.saturating_mul(zone.slab_bytes);
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
        let value = if line.is_percent {
            format!("{}.{:02}", line.value / 100, line.value % 100)
        } else {
            line.value.to_string()
        };
        let _ = writeln!(out, "{value:>15} {}", line.text);
        out
    })
}

/// A line of the account.
pub(crate) struct Line {
    pub(crate) value: i64,
    /// The value is hundredths of a percent, not bytes.
    pub(crate) is_percent: bool,
    pub(crate) text: &'static str,
    /// Its name in JSON.
    pub(crate) key: &'static str,
}

/// The lines of the account, one definition each (kernmalloc(1) has them); in JSON by their keys.
pub(crate) fn account_lines(a: &Account) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut figure = |value: i64, text, key| lines.push(Line { value, is_percent: false, text, key });
    figure(a.served_classes, "bytes served to the program in size classes", "served-classes");
    figure(a.large.bytes as i64, "bytes served to the program in large blocks", "served-large");
    figure(a.served_zones as i64, "bytes served to the program by its zones", "served-zones");
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
    figure(a.clean_resident as i64, "resident though not in use or retained", "clean-resident");
    figure(a.ours(), "resident, ours: the sum of the above", "ours");
    figure(a.smaps_ours as i64, "resident, ours: by smaps", "smaps-ours");
    figure(a.difference(), "difference of the two", "difference");
    figure(a.library as i64, "resident, code and data of the library", "library");
    figure(a.not_ours() as i64, "resident, not ours", "not-ours");
    figure(a.total as i64, "resident, all of the program", "total");
    figure(a.swapped as i64, "ours in swap (part of what is not resident)", "swapped");
    figure(a.served_ever as i64, "bytes served to the program since its start", "served-ever");
    figure(a.requested_ever as i64, "bytes asked for, of those", "requested-ever");
    let mut percent = |value: f64, text, key| {
        lines.push(Line { value: (value * 100.0).round() as i64, is_percent: true, text, key });
    };
    percent(a.internal_waste_percent(), "percent of those not asked for: internal waste", "internal-waste-percent");
    percent(a.slab_waste_percent(), "percent of the slabs in headers and tails: slab waste", "slab-waste-percent");
    lines
}

#[cfg(test)]
mod tests {
    use memstat::TypeTotals;

    use super::*;

    fn row(name: &str, in_use: u64, bytes: u64, requests: u64, size_mask: u64) -> Row {
        Row {
            name: name.to_owned(),
            totals: TypeTotals {
                allocs: requests,
                frees: requests - in_use,
                bytes_allocated: bytes + (requests - in_use) * 16,
                bytes_freed: (requests - in_use) * 16,
                bytes_requested: bytes,
                size_mask,
                peak_bytes: 0,
            },
            high_water_bytes: bytes + 1000,
            ..Row::default()
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            row("libpython3.11.so.1.0", 14_321, 5_242_880, 376_426, 0b1011 | 1 << 44),
            row("python3.11", 15, 1_600, 15, 1 << 6),
            row("libc.so.6", 0, 0, 1_000, 0b101),
        ]
    }

    fn zone(name: &str, item_bytes: u64) -> Zone {
        Zone {
            name: name.to_owned(),
            item_bytes,
            slab_bytes: 4096,
            items_per_slab: 4096 / item_bytes,
            slabs: 3,
            slab_free: 10,
            depot: 20,
            cached: Some(5),
            allocs: 123_456,
            frees: 123_400,
            bucket_size_max: 0,
            bucket_size: 32,
            slabs_imported: 4,
            slabs_high_water: 4,
            flags: abi::zone_flag::MALLOC,
            ..Zone::default()
        }
    }

    #[test]
    fn freebsd_vmstat_m() {
        let expected = concat!(
            "            Type  Use Memory Req Size(s)\n",
            "libpython3.11.so.1.0  14k  5.0M 376k 16,32,64,131072\n",
            "      python3.11   15  1.6K   15 112\n",
            "       libc.so.6    0     0 1.0k 16,48\n",
        );
        assert_eq!(freebsd_types(&rows(), false), expected);
    }

    #[test]
    fn a_type_that_never_served_is_skipped() {
        let failed = Row { name: "libx.so".to_owned(), failures: 3, ..Row::default() };
        assert_eq!(freebsd_types(&[failed], false).lines().count(), 1);
    }

    #[test]
    fn call_sites_widen_their_column() {
        let rows = [row("json_dumps_of_something (encoder.c:77)", 1, 16, 1, 1), row("short", 2, 32, 2, 1)];
        let expected = concat!(
            "                                  Type  Use Memory Req Size(s)\n",
            "json_dumps_of_something (encoder.c:77)    1    16    1 16\n",
            "                                 short    2    32    2 16\n",
        );
        assert_eq!(freebsd_types(&rows, true), expected);
    }

    #[test]
    fn freebsd_vmstat_z() {
        let zones = [zone("malloc-16", 16), Zone { limit: 100, ..zone("a zone of a very long name here", 2048) }];
        let expected = concat!(
            "ITEM                   SIZE   LIMIT     USED     FREE      REQ FAIL SLEEP XDOM\n",
            "malloc-16:               16,      0,      56,      35,  123456,   0,   0,   0\n",
            "a zone of a very long name here:2048,    100,      56,      35,  123456,   0,   0,   0\n",
        );
        assert_eq!(freebsd_zones(&zones), expected);
    }

    #[test]
    fn wide_columns() {
        let expected = concat!(
            "     InUse        MemUse       HighUse     Requests        Frees   Fail       Requested Waste%  Type\n",
            "     14321       5242880       5243880       376426       362105      0         5242880   52.5  libpython3.11.so.1.0\n",
            "        15          1600          2600           15            0      0            1600    0.0  python3.11\n",
            "         0             0          1000         1000         1000      0               0  100.0  libc.so.6\n",
        );
        assert_eq!(wide_types(&rows(), false), expected);
    }

    #[test]
    fn netbsd_vmstat_m() {
        let expected = concat!(
            "Memory statistics by bucket size\n",
            "    Size   In Use   Free   Requests  HighWater  Couldfree\n",
            "      16       56     35     123456      32          0\n",
            "    2048       56     35     123456      32          0\n",
            "\n",
            "Memory usage type by bucket size\n",
            "    Size  Type(s)\n",
            "      16  libpython3.11.so.1.0, libc.so.6\n",
            "      32  libpython3.11.so.1.0\n",
            "      48  libc.so.6\n",
            "      64  libpython3.11.so.1.0\n",
            "     112  python3.11\n",
            "  131072  libpython3.11.so.1.0\n",
            "\n",
            "Memory statistics by type                           Type  Kern\n",
            "         Type  InUse MemUse HighUse  Limit Requests Limit Limit Size(s)\n",
            "libpython3.11.so.1.0 14321  5120K   5121K     0K   376426    0     0  16,32,64,131072\n",
            "    python3.11    15     2K      3K     0K       15    0     0  112:15\n",
            "     libc.so.6     0     0K      1K     0K     1000    0     0  16:0,48:0\n",
            "\n",
            "Memory Totals:  In Use    Free    Requests\n",
            "                 5122K     71K      377441\n",
            "\n",
            "Memory resource pool statistics\n",
            "Name        Size Requests Fail Releases Pgreq Pgrel Npage Hiwat Minpg Maxpg Idle\n",
            "malloc-16     16   123456    0   123400     4     1     3     4     0   inf    0\n",
            "malloc-2048 2048   123456    0   123400     4     1     3     4     0     5    0\n",
            "\n",
            "In use 112K, total allocated 24K; utilization 466.7%\n",
        );
        let zones = [zone("malloc-16", 16), Zone { limit: 10, ..zone("malloc-2048", 2048) }];
        assert_eq!(netbsd(&rows(), &zones, false), expected);
    }

    #[test]
    fn netbsd_wide_pools_and_overlong_words() {
        let mut out = String::new();
        let busy = Zone { allocs: 123_456_789_012, frees: 123_456_788_956, ..zone("m", 16) };
        netbsd_pools(&mut out, &[zone("malloc-16", 16), busy], true);
        let expected = concat!(
            "Memory resource pool statistics\n",
            "Name              Size    Requests Fail    Releases  InUse Avail  Pgreq  Pgrel Npage PageSz Hiwat Minpg Maxpg Idle Flags   Util\n",
            "malloc-16           16      123456    0      123400     56    35      4      1     3   4096     4     0   inf    0 0x001   7.3%\n",
            "m                   16 123456789012   0 123456788956    56    35      4      1     3   4096     4     0   inf    0 0x001   7.3%\n",
        );
        assert_eq!(&out[..expected.len()], expected);
    }

    #[test]
    fn names_of_a_size_wrap_at_80() {
        let name = "a_library_of_twenty_";
        let rows: Vec<Row> = (0..5).map(|n| row(&format!("{name}{n}"), 1, 16, 1, 1)).collect();
        let mut out = String::new();
        netbsd_sizes(&mut out, &rows);
        let expected = concat!(
            "\nMemory usage type by bucket size\n    Size  Type(s)\n",
            "      16  a_library_of_twenty_0, a_library_of_twenty_1, a_library_of_twenty_2,\n",
            "\t  a_library_of_twenty_3, a_library_of_twenty_4\n",
        );
        assert_eq!(out, expected);
    }

    #[test]
    fn the_account_adds_up() {
        let part = |bytes, absent_bytes| Residence { bytes, absent_bytes };
        let a = Account {
            served_classes: 1000,
            cached: 100,
            depots: 50,
            slab_free: 30,
            slab_overhead: 20,
            slabs: part(1200, 200),
            large: part(8192, 4096),
            free_dirty: part(4096, 0),
            table: part(4096, 0),
            records: part(8192, 4096),
            object: part(65536, 61440),
            smaps_ours: 21_480,
            library: 4096,
            total: 100_000,
            served_ever: 40_000,
            requested_ever: 37_982,
            ..Account::default()
        };
        let lines = account_lines(&a);
        let value = |key| lines.iter().find(|line| line.key == key).map_or(0, |line| line.value);
        let ours = lines.iter().position(|line| line.key == "ours").unwrap();
        assert_eq!(lines[..ours].iter().map(|line| line.value).sum::<i64>(), value("ours"));
        assert_eq!(value("difference"), value("ours") - value("smaps-ours"));
        assert_eq!(value("smaps-ours") + value("library") + value("not-ours"), value("total"));
        let text = account(&a);
        assert!(text.starts_with("           1000 bytes served to the program in size classes\n"));
        // 2,018 of 40,000, and 20 of 1,200.
        assert!(text.contains("           5.05 percent of those not asked for: internal waste\n"), "{text}");
        assert!(text.ends_with("           1.67 percent of the slabs in headers and tails: slab waste\n"), "{text}");
    }
}
