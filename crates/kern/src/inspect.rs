//! Tables for a kernel's console and its debugger, in the layouts of FreeBSD's `vmstat -m` and `show` commands.
//!
//! Nothing here takes a lock, enters a section or allocates, so all of it can be called from a panic. Figures are those of
//! the moment each is read: they agree with each other when nothing else runs.

use core::fmt::{Result, Write};

use abi::{Ordering, TypeTotals};
use platform::Platform;

use crate::class::{CLASSES, SLAB_CLASSES};
use crate::stats::TypeId;
use crate::system::System;
use crate::text::Text;

/// What `show uma` says of a zone.
pub(crate) struct ZoneFigures {
    pub(crate) name: [u8; 32],
    /// Its items come from elsewhere.
    pub(crate) is_cache: bool,
    pub(crate) item_bytes: u64,
    pub(crate) used: u64,
    pub(crate) free: u64,
    pub(crate) requests: u64,
    pub(crate) sleeps: u64,
    pub(crate) bucket: u64,
    pub(crate) xdomain: u64,
}

impl ZoneFigures {
    /// Of all items, in use or free: what FreeBSD calls the zone's memory.
    fn total_bytes(&self) -> u64 {
        self.used.wrapping_add(self.free).wrapping_mul(self.item_bytes)
    }
}

/// Shows items in falling order of their weight, equal ones as they come. There is no room to sort in, so each is searched for.
fn largest_first<T, I: Iterator<Item = (u64, T)>>(
    items: impl Fn() -> I,
    mut show: impl FnMut(u64, T) -> Result,
) -> Result {
    // The weight of those shown last, and how many of that weight.
    let (mut last, mut shown) = (None, 0usize);
    loop {
        let mut best: Option<(u64, T)> = None;
        let mut equal = 0;
        for (weight, item) in items() {
            let comes = match last {
                Some(max) if weight > max => false,
                Some(max) if weight == max => {
                    equal += 1;
                    equal > shown
                }
                _ => true,
            };
            if comes && best.as_ref().is_none_or(|(most, _)| weight > *most) {
                best = Some((weight, item));
            }
        }
        let Some((weight, item)) = best else { return Ok(()) };
        shown = if last == Some(weight) { shown + 1 } else { 1 };
        last = Some(weight);
        show(weight, item)?;
    }
}

impl<P: Platform> System<P> {
    fn types(&self) -> impl Iterator<Item = TypeId> {
        let used = self.header().types.used.load(Ordering::Acquire) as usize;
        (0..used).filter_map(TypeId::new)
    }

    /// Whether a type's module was unloaded and left nothing: there is no such type any more.
    fn is_over(&self, id: TypeId, totals: &TypeTotals) -> bool {
        let is_gone = self.type_record(id).flags.load(Ordering::Relaxed) & abi::type_flag::GONE != 0;
        is_gone && totals.in_use() == 0
    }

    /// `vmstat -m`: types that were ever used, in the order of their registration.
    pub fn vmstat_m(&self, out: &mut dyn Write) -> Result {
        writeln!(out, "{:>16} {:>4} {:>5} {:>3} Size(s)", "Type", "Use", "Memory", "Req")?;
        for id in self.types() {
            let totals = self.totals(id);
            if totals.allocs == 0 && totals.in_use() == 0 || self.is_over(id, &totals) {
                continue;
            }
            self.vmstat_row(out, id, &totals)?;
        }
        Ok(())
    }

    /// The row of one type in [`vmstat_m`](Self::vmstat_m).
    pub fn vmstat_row(&self, out: &mut dyn Write, id: TypeId, totals: &TypeTotals) -> Result {
        write!(
            out,
            "{:>16} {:>4} {:>5} {:>4} ",
            Name(&self.type_record(id).name),
            Humanized(totals.in_use(), 1000),
            Humanized(totals.bytes_in_use(), 1024),
            Humanized(totals.allocs, 1000)
        )?;
        let bits = (0..64u32).filter(|bit| totals.size_mask & 1 << bit != 0);
        for (place, bit) in bits.enumerate() {
            let bytes = match abi::SIZE_CLASSES.get(bit as usize) {
                Some(&bytes) => u64::from(bytes),
                None => 1 << (bit - abi::LARGE_BIT + 17),
            };
            write!(out, "{}{bytes}", if place == 0 { "" } else { "," })?;
        }
        writeln!(out)
    }

    /// `show malloc`: attached types, by the memory they have, largest first; as comma-separated values with `csv` (`/i`).
    #[doc(alias = "show malloc")]
    pub fn show_malloc(&self, out: &mut dyn Write, csv: bool) -> Result {
        if csv {
            writeln!(out, "Type,InUse,MemUse,Requests")?;
        } else {
            writeln!(out, "{:>18} {:>12}  {:>12} {:>12}", "Type", "InUse", "MemUse", "Requests")?;
        }
        let types = || {
            self.types().filter_map(|id| {
                let totals = self.totals(id);
                self.is_shown(id, &totals).then(|| (totals.bytes_in_use(), (id, totals)))
            })
        };
        largest_first(types, |bytes, (id, totals)| {
            let name = Name(&self.type_record(id).name);
            let (in_use, requests, kilobytes) = (totals.in_use(), totals.allocs, bytes.div_ceil(1024));
            if csv {
                writeln!(out, "\"{name}\",{in_use},{kilobytes}K,{requests}")
            } else {
                writeln!(out, "{name:>18} {in_use:>12} {kilobytes:>12}K {requests:>12}")
            }
        })
    }

    /// Whether a type is somebody's: not of a module that is gone and has left nothing, nor a built-in row without use.
    fn is_shown(&self, id: TypeId, totals: &TypeTotals) -> bool {
        let is_gone = self.type_record(id).flags.load(Ordering::Relaxed) & abi::type_flag::GONE != 0;
        let is_idle = is_gone && totals.in_use() == 0;
        let is_unused = id.index() < TypeId::BUILT_IN && totals.allocs == 0;
        !is_idle && !is_unused
    }

    /// `show uma`: zones of slabs, by the memory of their items, largest first: the size classes that were ever used, and all made at
    /// run time. As comma-separated values with `csv` (`/i`).
    #[doc(alias = "show uma")]
    pub fn show_uma(&self, out: &mut dyn Write, csv: bool) -> Result {
        if csv {
            writeln!(out, "Zone,Size,Used,Free,Requests,Sleeps,Bucket,Total Mem,XFree")?;
        } else {
            writeln!(
                out,
                "{:>18} {:>6} {:>7} {:>7} {:>11} {:>7} {:>7} {:>10} {:>8}",
                "Zone", "Size", "Used", "Free", "Requests", "Sleeps", "Bucket", "Total Mem", "XFree"
            )?;
        }
        let zones = || {
            let classes = (0..SLAB_CLASSES).map(|class| self.zone_figures(class)).filter(|zone| zone.requests != 0);
            classes.chain(self.made_zones().filter(|zone| !zone.is_cache)).map(|zone| (zone.total_bytes(), zone))
        };
        largest_first(zones, |bytes, zone| {
            let ZoneFigures { item_bytes, used, free, requests, sleeps, bucket, xdomain, .. } = zone;
            let name = Name(&zone.name);
            if csv {
                return writeln!(
                    out,
                    "\"{name}\",{item_bytes},{used},{free},{requests},{sleeps},{bucket},{bytes},{xdomain}"
                );
            }
            writeln!(
                out,
                "{name:>18} {item_bytes:>6} {used:>7} {free:>7} {requests:>11} {sleeps:>7} {bucket:>7} {bytes:>10} {xdomain:>8}"
            )
        })
    }

    /// `show umacache`: zones that cache what comes from elsewhere: runs of pages by size class, and cache zones made at run time.
    #[doc(alias = "show umacache")]
    pub fn show_umacache(&self, out: &mut dyn Write) -> Result {
        writeln!(out, "{:>18} {:>8} {:>8} {:>8} {:>12} {:>8}", "Zone", "Size", "Used", "Free", "Requests", "Bucket")?;
        let classes = (SLAB_CLASSES..CLASSES).map(|class| self.zone_figures(class)).filter(|zone| zone.requests != 0);
        for zone in classes.chain(self.made_zones().filter(|zone| zone.is_cache)) {
            let ZoneFigures { item_bytes, used, free, requests, bucket, .. } = zone;
            writeln!(out, "{:>18} {item_bytes:>8} {used:>8} {free:>8} {requests:>12} {bucket:>8}", Name(&zone.name))?;
        }
        Ok(())
    }

    /// A zone's figures, with those that only the CPUs' caches know.
    fn zone_figures(&self, class: usize) -> ZoneFigures {
        let record = self.stats().zone(class);
        let (mut allocs, mut frees, mut cached) = (0u64, 0u64, 0u64);
        for slot in 0..self.slot_table().count() {
            let more = self.class_slot_figures(class, slot);
            allocs = allocs.wrapping_add(more.allocs);
            frees = frees.wrapping_add(more.frees);
            cached = cached.wrapping_add(more.cached);
        }
        let count = |counter: &abi::AtomicU64| counter.load(Ordering::Relaxed);
        let behind = if class < SLAB_CLASSES { count(&record.depot) + count(&record.slab_free) } else { 0 };
        ZoneFigures {
            name: record.name,
            is_cache: class >= SLAB_CLASSES,
            item_bytes: u64::from(record.item_bytes),
            used: allocs.wrapping_sub(frees),
            free: cached.wrapping_add(behind),
            requests: allocs,
            sleeps: count(&record.sleeps),
            bucket: count(&record.bucket_size),
            xdomain: count(&record.xdomain),
        }
    }

    /// `show vmem`: the arena of the heap's pages.
    ///
    /// # Safety
    /// 1. Nothing else runs: the arena is read without its lock.
    #[doc(alias = "show vmem")]
    pub unsafe fn show_vmem(&self, out: &mut dyn Write) -> Result {
        // SAFETY: 1.
        unsafe { (*self.page_arena()).arena() }.show(out)
    }

    /// `show vmemdump`: every boundary tag of that arena.
    ///
    /// # Safety
    /// 1. As for [`show_vmem`](Self::show_vmem).
    #[doc(alias = "show vmemdump")]
    pub unsafe fn show_vmemdump(&self, out: &mut dyn Write) -> Result {
        // SAFETY: 1.
        unsafe { (*self.page_arena()).arena() }.show_dump(out)
    }

    /// `show multizone_matches`: the names of all types that have ever had memory of the size zone that an address is in: who may have
    /// damaged it. With `debug.malloc.numzones` above 1 these are few. A line that says so when it is in none.
    #[doc(alias = "show multizone_matches")]
    pub fn show_matches(&self, addr: usize, out: &mut dyn Write) -> Result {
        let Some(info) = self.lookup(addr) else { return writeln!(out, "{addr:#x} is in no block") };
        let bit = 1 << abi::run_bit(info.bytes as u64);
        for id in self.types() {
            let totals = self.totals(id);
            if totals.size_mask & bit != 0 && self.is_shown(id, &totals) && self.may_share_zone(addr, id) {
                writeln!(out, "{}", Name(&self.type_record(id).name))?;
            }
        }
        Ok(())
    }

    /// What an address is, as one line: block, size, type, whether it is live.
    #[doc(alias = "pool_whatis")]
    pub fn show_block(&self, addr: usize, out: &mut dyn Write) -> Result {
        match self.lookup(addr) {
            Some(info) => writeln!(
                out,
                "{addr:#x} is {} bytes into {} of {} bytes at {:#x}, type {}, {}",
                addr - info.addr,
                if info.is_run { "a run" } else { "an item" },
                info.bytes,
                info.addr,
                Name(&self.type_record(info.type_id).name),
                if info.live { "live" } else { "free" }
            ),
            None => writeln!(out, "{addr:#x} is in no block"),
        }
    }
}

/// A NUL-terminated field.
struct Name<'a>(&'a [u8]);

impl core::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> Result {
        f.pad(core::str::from_utf8(abi::c_text(self.0)).unwrap_or("?"))
    }
}

/// A figure and the divisor of its units, as libxo prints it: one decimal below ten, `k` for 1000 and `K` for 1024.
struct Humanized(u64, u64);

impl core::fmt::Display for Humanized {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> Result {
        let Self(value, divisor) = *self;
        let units: &[u8; 7] = if divisor == 1000 { b" kMGTPE" } else { b" KMGTPE" };
        let (mut scale, mut whole, mut hundredths) = (0, value, u128::from(value) * 100);
        while whole >= divisor && scale < units.len() - 1 {
            whole /= divisor;
            hundredths /= u128::from(divisor);
            scale += 1;
        }
        let mut text = Text::<24>::new();
        if scale > 0 && hundredths < 995 {
            let tenths = ((hundredths + 5) / 10) as u64;
            text.push_number(tenths / 10).push(b".").push_number(tenths % 10);
        } else {
            text.push_number(((hundredths + 50) / 100) as u64);
        }
        if scale > 0 {
            text.push(&units[scale..=scale]);
        }
        f.pad(core::str::from_utf8(text.as_bytes()).unwrap_or("?"))
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::ToString;

    use super::{Humanized, Name};

    #[test]
    fn figures_are_those_of_vmstat() {
        for (value, divisor, expected) in [
            (0, 1024, "0"),
            (999, 1000, "999"),
            (1000, 1000, "1.0k"),
            (1023, 1024, "1023"),
            (1536, 1024, "1.5K"),
            (9949, 1000, "9.9k"),
            (9950, 1000, "10k"),
            (78_644 << 10, 1024, "77M"),
            (u64::MAX, 1024, "16E"),
        ] {
            assert_eq!(Humanized(value, divisor).to_string(), expected, "{value}");
        }
        assert_eq!(format!("{:>5}|{:>7}|", Humanized(1536, 1024), Name(b"isr\0\0")), " 1.5K|    isr|");
    }
}
