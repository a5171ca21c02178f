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
struct ZoneFigures {
    item_bytes: u64,
    used: u64,
    free: u64,
    requests: u64,
    sleeps: u64,
    bucket: u64,
    total_bytes: u64,
    xdomain: u64,
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

    /// `show malloc`: types by the memory they have, largest first; as comma-separated values with `csv` (`/i`).
    #[doc(alias = "show malloc")]
    pub fn show_malloc(&self, out: &mut dyn Write, csv: bool) -> Result {
        if csv {
            writeln!(out, "Type,InUse,MemUse,Requests")?;
        } else {
            writeln!(out, "{:>18} {:>12}  {:>12} {:>12}", "Type", "InUse", "MemUse", "Requests")?;
        }
        // The next after (bytes, index) in falling order; there is no room to sort in.
        let mut last = None;
        while let Some((bytes, id, totals)) = self.next_type(last) {
            let name = Name(&self.type_record(id).name);
            let (in_use, requests) = (totals.in_use(), totals.allocs);
            if csv {
                writeln!(out, "{name},{in_use},{bytes},{requests}")?;
            } else {
                writeln!(out, "{name:>18} {in_use:>12} {:>12}K {requests:>12}", bytes.div_ceil(1024))?;
            }
            last = Some((bytes, id));
        }
        Ok(())
    }

    /// The type with most bytes that comes after `last`; equal ones in order of registration.
    fn next_type(&self, last: Option<(u64, TypeId)>) -> Option<(u64, TypeId, TypeTotals)> {
        let mut best: Option<(u64, TypeId, TypeTotals)> = None;
        for id in self.types() {
            let totals = self.totals(id);
            let bytes = totals.bytes_in_use();
            if self.is_over(id, &totals) {
                continue;
            }
            let comes_after = last.is_none_or(|(max, before)| bytes < max || (bytes == max && id > before));
            if totals.allocs != 0 && comes_after && best.as_ref().is_none_or(|best| bytes > best.0) {
                best = Some((bytes, id, totals));
            }
        }
        best
    }

    /// `show uma`: zones of slabs that were ever used.
    #[doc(alias = "show uma")]
    pub fn show_uma(&self, out: &mut dyn Write) -> Result {
        writeln!(
            out,
            "{:>18} {:>6} {:>7} {:>7} {:>11} {:>7} {:>7} {:>10} {:>8}",
            "Zone", "Size", "Used", "Free", "Requests", "Sleeps", "Bucket", "Total Mem", "XFree"
        )?;
        for class in 0..SLAB_CLASSES {
            let zone = self.zone_figures(class);
            if zone.requests == 0 {
                continue;
            }
            writeln!(
                out,
                "{:>18} {:>6} {:>7} {:>7} {:>11} {:>7} {:>7} {:>10} {:>8}",
                Name(&self.stats().zone(class).name),
                zone.item_bytes,
                zone.used,
                zone.free,
                zone.requests,
                zone.sleeps,
                zone.bucket,
                zone.total_bytes,
                zone.xdomain
            )?;
        }
        Ok(())
    }

    /// `show umacache`: zones that cache what comes from elsewhere, here runs of pages.
    #[doc(alias = "show umacache")]
    pub fn show_umacache(&self, out: &mut dyn Write) -> Result {
        writeln!(out, "{:>18} {:>6} {:>7} {:>7} {:>11} {:>7}", "Zone", "Size", "Used", "Free", "Requests", "Bucket")?;
        for class in SLAB_CLASSES..CLASSES {
            let zone = self.zone_figures(class);
            if zone.requests != 0 {
                let name = Name(&self.stats().zone(class).name);
                let (size, used, free) = (zone.item_bytes, zone.used, zone.free);
                writeln!(out, "{name:>18} {size:>6} {used:>7} {free:>7} {:>11} {:>7}", zone.requests, zone.bucket)?;
            }
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
        let used = allocs.wrapping_sub(frees);
        let item_bytes = u64::from(record.item_bytes);
        let (free, total_bytes) = if class < SLAB_CLASSES {
            let free = cached.wrapping_add(count(&record.depot) + count(&record.slab_free));
            (free, count(&record.slabs) * u64::from(record.slab_bytes))
        } else {
            (cached, used.wrapping_add(cached).wrapping_mul(item_bytes))
        };
        ZoneFigures {
            item_bytes,
            used,
            free,
            requests: allocs,
            sleeps: count(&record.sleeps),
            bucket: count(&record.bucket_size),
            total_bytes,
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
        unsafe { (*self.page_arena()).arena() }.print_summary(out)
    }

    /// `show vmemdump`: the same, and every segment of that arena.
    ///
    /// # Safety
    /// 1. As for [`show_vmem`](Self::show_vmem).
    #[doc(alias = "show vmemdump")]
    pub unsafe fn show_vmemdump(&self, out: &mut dyn Write) -> Result {
        // SAFETY: 1.
        unsafe { (*self.page_arena()).arena() }.print(out)
    }

    /// `show multizone_matches`: what an address is, as one line: block, size, type, whether it is live.
    #[doc(alias = "show multizone_matches")]
    pub fn show_matches(&self, addr: usize, out: &mut dyn Write) -> Result {
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
