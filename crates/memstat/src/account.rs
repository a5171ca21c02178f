//! The account: what the counters say, held against what the kernel says is resident.

use std::ops::Range;

use abi::page;

use crate::error::{Error, Result};
use crate::object::Object;
use crate::process::{self, PageRegion};
use crate::snapshot::{Heap, Snapshot};

/// A part of the account: bytes of address space, and how many of those are not in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residence {
    /// Bytes by the counters.
    pub bytes: u64,
    /// Bytes of the part's pages that are not in memory (never touched, given back, or in swap).
    pub absent_bytes: u64,
}

impl Residence {
    /// Bytes in memory.
    #[must_use]
    pub fn resident_bytes(&self) -> i64 {
        (self.bytes as i64).wrapping_sub(self.absent_bytes as i64)
    }
}

/// Where the memory of a program is. Every figure is bytes.
///
/// The counters come from the statistics object and the per-CPU caches. What is absent comes from the page map, its pages sorted by
/// the program's own page table. The sum of the two is held against `smaps`, which knows neither.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Served to the program in size classes: in use by the types, less the large blocks.
    pub served_classes: i64,
    /// In use by zones that the program made.
    pub served_zones: u64,
    /// Cached per CPU.
    pub cached: u64,
    /// In full buckets of the depots.
    pub depots: u64,
    /// Free in slabs.
    pub slab_free: u64,
    /// Slab headers and tails.
    pub slab_overhead: u64,
    /// All of the slabs: the six lines above.
    pub slabs: Residence,
    /// Served to the program in blocks larger than the largest size class.
    pub large: Residence,
    /// Free runs kept for reuse at their size.
    pub cached_runs: Residence,
    /// Free pages whose contents were not given back.
    pub free_dirty: Residence,
    /// Bytes in memory of pages that the counters hold for clean.
    pub clean_resident: u64,
    /// The table from page to slab.
    pub table: Residence,
    /// The allocator's records.
    pub records: Residence,
    /// The statistics object.
    pub object: Residence,
    /// Bytes of ours in swap (part of what is absent).
    pub swapped: u64,
    /// In memory and ours by `smaps`.
    pub smaps_ours: u64,
    /// Code and data of the library, in memory by `smaps`.
    pub library: u64,
    /// All resident memory of the program by `smaps`.
    pub total: u64,
    /// In use by all types, as the table of types says.
    pub types_in_use: u64,
    /// Served to the program since its start, whether freed or not.
    pub served_ever: u64,
    /// Asked for in those requests.
    pub requested_ever: u64,
}

impl Account {
    /// Reads the account of a live program, the calmest of a few attempts: the program runs meanwhile, and what it does between two
    /// readings shows as a difference.
    pub fn read(object: &Object) -> Result<(Self, Snapshot)> {
        const ATTEMPTS: u32 = 8;
        let Some(pid) = object.pid() else {
            let e = std::io::Error::new(std::io::ErrorKind::Unsupported, "the program is not running");
            return Err(Error::io("account of resident memory", e));
        };
        let mut best: Option<(Self, Snapshot)> = None;
        for _ in 0..ATTEMPTS {
            let snapshot = object.snapshot()?;
            let account = Self::read_once(pid, &snapshot)?;
            let difference = account.difference().unsigned_abs();
            // A thousandth is noise of a program that runs; the promise is a hundredth.
            let good_enough = difference * 1000 <= account.smaps_ours;
            if best.as_ref().is_none_or(|(old, _)| difference < old.difference().unsigned_abs()) {
                best = Some((account, snapshot));
            }
            if good_enough {
                break;
            }
        }
        best.ok_or(Error::NoSuchProcess { pid })
    }

    /// In memory and ours, by the counters and the page map.
    #[must_use]
    pub fn ours(&self) -> i64 {
        let parts = [self.slabs, self.large, self.cached_runs, self.free_dirty, self.table, self.records, self.object];
        parts.iter().map(Residence::resident_bytes).fold(self.clean_resident as i64, i64::wrapping_add)
    }

    /// What the account has and `smaps` has not.
    #[must_use]
    pub fn difference(&self) -> i64 {
        self.ours().wrapping_sub(self.smaps_ours as i64)
    }

    /// Resident memory of the program that is not ours.
    #[must_use]
    pub fn not_ours(&self) -> u64 {
        self.total.saturating_sub(self.smaps_ours).saturating_sub(self.library)
    }

    /// Internal waste: of a hundred bytes served since the start, so many were not asked for.
    #[must_use]
    pub fn internal_waste_percent(&self) -> f64 {
        percent(self.served_ever.saturating_sub(self.requested_ever), self.served_ever)
    }

    /// Slab waste: of a hundred bytes of slabs, so many are headers and tails.
    #[must_use]
    pub fn slab_waste_percent(&self) -> f64 {
        percent(self.slab_overhead, self.slabs.bytes)
    }

    fn read_once(pid: u32, snapshot: &Snapshot) -> Result<Self> {
        let heap = &snapshot.heap;
        let page_bytes = heap.page_bytes;
        if !page_bytes.is_power_of_two() {
            let offset = std::mem::offset_of!(abi::Header, page_bytes) as u64;
            return Err(Error::Malformed { what: "page_bytes", offset, found: page_bytes });
        }
        let pages = read_pages(pid, heap)?;
        let ranges = [
            heap.base..heap.base.saturating_add(heap.bytes),
            heap.table_base..heap.table_base.saturating_add(heap.table_bytes),
            heap.meta_base..heap.meta_base.saturating_add(heap.meta_bytes),
            heap.stats_base..heap.stats_base.saturating_add(heap.stats_bytes),
        ];
        let regions = |range: &Range<u64>| process::page_regions(pid, range.clone(), page_bytes);
        let parts = ranges[1..].iter().map(regions).collect::<Result<Vec<_>>>()?;
        let smaps = process::smaps(pid)?;

        let residence = |range: &Range<u64>, regions: &[PageRegion]| {
            let bytes = range.end - range.start;
            Residence { bytes, absent_bytes: bytes.saturating_sub(resident(regions)) }
        };
        let mut this = Self {
            table: residence(&ranges[1], &parts[0]),
            records: residence(&ranges[2], &parts[1]),
            object: residence(&ranges[3], &parts[2]),
            swapped: pages.swapped + parts.iter().flatten().filter(|r| r.swapped).map(region_bytes).sum::<u64>(),
            types_in_use: snapshot.bytes_in_use(),
            served_ever: snapshot.types.iter().fold(0, |sum, ty| ty.totals.bytes_allocated.wrapping_add(sum)),
            requested_ever: snapshot.types.iter().fold(0, |sum, ty| ty.totals.bytes_requested.wrapping_add(sum)),
            ..Self::default()
        };

        // Runs of the smaller sizes wait in the zones' caches; the header knows those that wait elsewhere.
        let runs = snapshot.zones.iter().filter(|zone| zone.flags & abi::zone_flag::RUN != 0);
        let run_bytes = runs
            .map(|zone| zone.cached().saturating_add(zone.depot).saturating_mul(zone.item_bytes))
            .fold(heap.pages_large_cached.saturating_mul(page_bytes), u64::saturating_add);
        let large_bytes = heap.pages_large.saturating_mul(page_bytes).saturating_sub(run_bytes);
        this.large = Residence { bytes: large_bytes, absent_bytes: pages.large_absent };
        this.cached_runs = Residence { bytes: run_bytes, absent_bytes: pages.run_absent };
        let dirty_bytes = heap.pages_free_dirty.saturating_mul(page_bytes);
        this.free_dirty = Residence { bytes: dirty_bytes, absent_bytes: pages.dirty_absent };

        let mut slab_bytes = 0u64;
        for zone in &snapshot.zones {
            // What zones without slabs of their own hold lies in others' slabs, and counts as cached there.
            const NO_SLABS: u32 = abi::zone_flag::RUN | abi::zone_flag::SECONDARY | abi::zone_flag::CACHE;
            if zone.flags & NO_SLABS != 0 {
                continue;
            }
            let items = |n: u64| n.saturating_mul(zone.item_bytes);
            let zone_bytes = zone.slabs.saturating_mul(zone.slab_bytes);
            slab_bytes = slab_bytes.saturating_add(zone_bytes);
            this.cached = this.cached.saturating_add(items(zone.cached()));
            this.depots = this.depots.saturating_add(items(zone.depot));
            this.slab_free = this.slab_free.saturating_add(items(zone.slab_free));
            let overhead = zone_bytes.saturating_sub(items(zone.items()));
            this.slab_overhead = this.slab_overhead.saturating_add(overhead);
            if zone.flags & (abi::zone_flag::MALLOC | abi::zone_flag::SUBZONE) == 0 {
                // No type speaks for these.
                let free = zone.cached().saturating_add(zone.depot).saturating_add(zone.slab_free);
                this.served_zones = this.served_zones.saturating_add(items(zone.items().saturating_sub(free)));
            }
        }
        // What the types have in use, not what is missing from the zones: so the table of types itself is held against
        // the kernel, and an error in it shows as a difference.
        this.served_classes = (this.types_in_use as i64).wrapping_sub(large_bytes as i64);
        let free = [this.served_zones, this.cached, this.depots, this.slab_free, this.slab_overhead]
            .into_iter()
            .fold(0, u64::saturating_add);
        let bytes = u64::try_from(this.served_classes.saturating_add_unsigned(free)).unwrap_or(0);
        this.slabs = Residence { bytes, absent_bytes: pages.slab_absent };

        let mut previous_was_library = false;
        for mapping in &smaps {
            this.total += mapping.rss_bytes;
            let overlaps = |range: &&Range<u64>| {
                !range.is_empty() && mapping.range.start < range.end && range.start < mapping.range.end
            };
            if let Some(range) = ranges.iter().find(overlaps) {
                previous_was_library = false;
                if *range == ranges[0] {
                    // Some programs map at addresses of their choice, and the heap goes on behind: a mapping of which
                    // the heap never used a page is theirs.
                    if within(&pages.kept, &mapping.range).next().is_none() {
                        continue;
                    }
                    let clean = within(&pages.clean, &mapping.range).map(|part| part.end - part.start);
                    this.clean_resident += clean.sum::<u64>();
                }
                this.smaps_ours += mapping.rss_bytes;
                continue;
            }
            // Zeroed data of the library has no file: it follows the library's last mapping.
            let library = mapping.is_library()
                || previous_was_library && mapping.inode == 0 && !mapping.shared && mapping.path.as_os_str().is_empty();
            if library {
                this.library += mapping.rss_bytes;
            }
            previous_was_library = mapping.is_library();
        }
        Ok(this)
    }
}

/// 0 of nothing.
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn region_bytes(region: &PageRegion) -> u64 {
    region.range.end - region.range.start
}

fn resident(regions: &[PageRegion]) -> u64 {
    regions.iter().filter(|region| region.resident).map(region_bytes).sum()
}

/// The heap's pages by kind and presence, bytes.
#[derive(Default)]
struct Pages {
    slab_absent: u64,
    large_absent: u64,
    run_absent: u64,
    dirty_absent: u64,
    swapped: u64,
    /// Addresses of pages in use or dirty, ascending.
    kept: Vec<Range<u64>>,
    /// Addresses of resident pages that the table holds for clean, ascending.
    clean: Vec<Range<u64>>,
}

/// Appends a range to an ascending list, to its last one where they touch.
fn append(list: &mut Vec<Range<u64>>, range: Range<u64>) {
    match list.last_mut() {
        _ if range.is_empty() => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => list.push(range),
    }
}

/// The parts of an ascending list that lie in `range`.
fn within<'a>(list: &'a [Range<u64>], range: &'a Range<u64>) -> impl Iterator<Item = Range<u64>> + 'a {
    let from = list.partition_point(|part| part.end <= range.start);
    let parts = list[from..].iter().take_while(|part| part.start < range.end);
    parts.map(|part| part.start.max(range.start)..part.end.min(range.end))
}

fn read_pages(pid: u32, heap: &Heap) -> Result<Pages> {
    let page_bytes = heap.page_bytes;
    // No address space has more than 2^57 bytes; with a heap at most that long, nothing below overflows.
    let addressable = 1u64 << 57;
    if heap.base > addressable || heap.bytes > addressable {
        let offset = std::mem::offset_of!(abi::Header, heap_bytes) as u64;
        return Err(Error::Malformed { what: "heap_bytes", offset, found: heap.bytes });
    }
    let npages = heap.bytes / page_bytes;
    let end = heap.base.saturating_add(npages * page_bytes);
    let regions = process::page_regions(pid, heap.base..end, page_bytes)?;

    let mut out = Pages { swapped: regions.iter().filter(|r| r.swapped).map(region_bytes).sum(), ..Pages::default() };
    let residents: Vec<Range<u64>> = regions.into_iter().filter(|r| r.resident).map(|r| r.range).collect();
    // By bisection: the heap may be huge and nearly empty.
    let pages_at = |first: u64, last: u64| heap.base + first * page_bytes..heap.base + last * page_bytes;

    // Only the table's own present pages are read: reading an absent one would make it in the program.
    let table = heap.table_base..heap.table_base.saturating_add(npages.saturating_mul(8));
    let table_pages = process::page_regions(pid, table.clone(), page_bytes)?;
    let mut next = 0u64;
    // A page of a run knows its kind only from the run's first page.
    let mut run = (page::FREE_CLEAN, 0u64);
    let mut words = vec![0u8; 1 << 20];
    for region in table_pages.iter().filter(|region| region.resident || region.swapped) {
        let mut at = region.range.start.max(table.start);
        let stop = region.range.end.min(table.end);
        while at < stop {
            let bytes = usize::try_from(stop - at).map_or(words.len(), |n| n.min(words.len()));
            process::read_memory_exact(pid, at, &mut words[..bytes])?;
            let first = (at - table.start) / 8;
            within(&residents, &pages_at(next, first)).for_each(|part| append(&mut out.clean, part));
            for (i, word) in words[..bytes].chunks_exact(8).enumerate() {
                let index = first + i as u64;
                let word = u64::from_le_bytes(word.try_into().unwrap_or_default());
                let mut kind = page::kind(word);
                if kind == page::LARGE || kind == page::CACHED_RUN {
                    run = (kind, index + page::run_pages(word) as u64);
                } else if kind == page::SPECIAL_RUN {
                    kind = page::LARGE;
                    run = (kind, index + page::any_run_pages(word) as u64);
                } else if kind == page::LARGE_TAIL && index < run.1 {
                    kind = run.0;
                }
                let at = pages_at(index, index + 1);
                let resident = within(&residents, &at).next().is_some();
                let absent = if resident { 0 } else { page_bytes };
                if kind != page::FREE_CLEAN {
                    append(&mut out.kept, at.clone());
                }
                match kind {
                    page::SLAB | page::ZONE_SLAB => out.slab_absent += absent,
                    page::LARGE | page::LARGE_TAIL => out.large_absent += absent,
                    page::CACHED_RUN => out.run_absent += absent,
                    page::FREE_DIRTY => out.dirty_absent += absent,
                    _ if resident => append(&mut out.clean, at),
                    _ => {}
                }
            }
            next = first + bytes as u64 / 8;
            at += bytes as u64;
        }
    }
    within(&residents, &pages_at(next, npages)).for_each(|part| append(&mut out.clean, part));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waste_is_a_share_of_what_was_served() {
        let slabs = Residence { bytes: 4000, absent_bytes: 0 };
        let account =
            Account { served_ever: 800, requested_ever: 740, slabs, slab_overhead: 100, ..Account::default() };
        assert_eq!((account.internal_waste_percent(), account.slab_waste_percent()), (7.5, 2.5));
        let nothing = Account::default();
        assert_eq!((nothing.internal_waste_percent(), nothing.slab_waste_percent()), (0.0, 0.0));
    }
}
