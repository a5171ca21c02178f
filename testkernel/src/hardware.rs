//! Tests of what this kernel knows of its hardware: NUMA domains, CPUs that come and go.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kern::TypeId;
use platform::Frames as _;
use testsuite::{Host as _, Outcome, ensure};

use crate::acpi::{self, Affinity, Missing};
use crate::frames::{self, PHYSICAL};
use crate::space::{DIRECT, PAGE};
use crate::suite::{DOMAINS, Machine};
use crate::{cpu, hotplug, numa, sched, space, spin};

/// As `cargo xtask qemu --numa N` made it: CPUs by turns, memory in equal parts one after the other.
pub(crate) fn the_domains_are_those_of_the_machine(host: &Machine) -> Outcome {
    let expected = DOMAINS.load(Ordering::Relaxed);
    ensure!(numa::domains() == expected, "{} domains are found of {expected}", numa::domains());
    let mut apics: Vec<_> = (0..host.cpus()).map(|id| cpu::CPUS[id].apic.load(Ordering::Relaxed)).collect();
    for (id, apic) in apics.iter().enumerate() {
        let domain = numa::of_cpu(id);
        ensure!(domain == apic % expected, "the CPU with APIC {apic} is in domain {domain}, not {}", apic % expected);
    }
    apics.sort_unstable();
    ensure!(apics.iter().copied().eq(0..host.cpus()), "CPUs have the identities {apics:?}");
    let segments: Vec<_> = (0..).map_while(|index| PHYSICAL.segment(index)).collect();
    let mut pages = [0; numa::MAX_DOMAINS];
    for pfn in segments.iter().flat_map(|segment| segment.frames()) {
        pages[numa::of_memory(pfn.0 as usize * PAGE)] += 1;
    }
    let all: usize = pages.iter().sum();
    for (domain, pages) in pages[..expected].iter().enumerate() {
        // The kernel and its records are missing from one of them.
        let (share, most) = (all / expected, (16 << 20) / PAGE);
        ensure!(pages.abs_diff(share) < most, "domain {domain} has {pages} of {all} pages");
    }
    Ok(())
}

/// The parser, with a table that a firmware might have written: taken as it is when whole, and refused when it is not.
pub(crate) fn a_broken_affinity_table_is_refused(_: &Machine) -> Outcome {
    const RSDP: usize = 0;
    const RSDT: usize = 64;
    const SRAT: usize = 128;
    const CPU: [u8; 16] = [0, 16, 1, 5, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
    const ABSENT: [u8; 16] = [0, 16, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    fn memory_entry() -> [u8; 40] {
        let mut entry = [0; 40];
        (entry[0], entry[1], entry[2], entry[28]) = (1, 40, 7, 1);
        entry[8..16].copy_from_slice(&0x1_0000_0000u64.to_le_bytes());
        entry[16..24].copy_from_slice(&0x2000_0000u64.to_le_bytes());
        entry
    }
    let close = |table: &mut [u8], checksum: usize| {
        table[checksum] = 0;
        table[checksum] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    };
    let image = || {
        let mut image = alloc::vec![0u8; 512];
        let entries = [&CPU[..], &ABSENT[..], &memory_entry()[..]].concat();
        let (rsdt_end, srat_end) = (RSDT + 40, SRAT + 48 + entries.len());
        image[..8].copy_from_slice(b"RSD PTR ");
        image[16..20].copy_from_slice(&(RSDT as u32).to_le_bytes());
        image[RSDT..RSDT + 4].copy_from_slice(b"RSDT");
        image[RSDT + 4..RSDT + 8].copy_from_slice(&40u32.to_le_bytes());
        image[RSDT + 36..rsdt_end].copy_from_slice(&(SRAT as u32).to_le_bytes());
        image[SRAT..SRAT + 4].copy_from_slice(b"SRAT");
        image[SRAT + 4..SRAT + 8].copy_from_slice(&((srat_end - SRAT) as u32).to_le_bytes());
        image[SRAT + 48..srat_end].copy_from_slice(&entries);
        close(&mut image[..20], 8);
        close(&mut image[RSDT..rsdt_end], 9);
        close(&mut image[SRAT..srat_end], 9);
        image
    };
    let find = |image: Vec<u8>| {
        // Tests come once in the life of a kernel.
        let image: &'static [u8] = Vec::leak(image);
        acpi::find_srat(move |at, bytes| image.get(at as usize..(at as usize).checked_add(bytes)?), RSDP as u64)
    };
    let whole = find(image()).map_err(|why| alloc::format!("a whole table is refused: {why:?}"))?;
    let found: Vec<_> = acpi::affinities(whole).collect();
    let expected = [
        Affinity::Cpu { apic: 5, domain: 0x201 },
        Affinity::Memory { start: 0x1_0000_0000, bytes: 0x2000_0000, domain: 7 },
    ];
    ensure!(found == expected, "the table is read as {found:?}");
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, Missing); 6] = [
        (|image| image[0] = b'x', Missing::Rsdp),
        (|image| image[17] += 1, Missing::Rsdp),
        (|image| image[RSDT + 20] += 1, Missing::Damaged("the list of tables")),
        (|image| image[SRAT] = b'x', Missing::Srat),
        (|image| image[SRAT + 60] += 1, Missing::Damaged("SRAT")),
        (|image| image.truncate(SRAT + 60), Missing::Damaged("SRAT")),
    ];
    for (number, (damage, why)) in damages.into_iter().enumerate() {
        let mut image = image();
        damage(&mut image);
        let found = find(image);
        ensure!(found == Err(why), "damage {number} is taken for {found:?}");
    }
    // An entry that says it is longer than what is left, or has no length at all.
    for length in [0, 1, 200] {
        let mut table = whole.to_vec();
        table[49] = length;
        ensure!(acpi::affinities(&table).count() < 3, "an entry of {length} bytes is read");
    }
    Ok(())
}

pub(crate) fn a_cpu_that_leaves_runs_nothing_until_it_is_back(host: &Machine) -> Outcome {
    let cpus = host.cpus();
    ensure!(!hotplug::offline(0), "the first CPU left, and took the clock with it");
    if cpus == 1 {
        return Ok(());
    }
    let away = cpus - 1;
    let (stop, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let visit_here = || {
        // Inside: a thread that has looked where it is, and is moved before it says so, would lie.
        spin::mask();
        seen.fetch_or(1 << cpu::id(), Ordering::SeqCst);
        spin::unmask();
    };
    host.threads(2 * cpus + 1, &|number| {
        if number > 0 {
            // Some are bound to the CPU that leaves, and run elsewhere meanwhile.
            if number % 3 == 0 {
                sched::bind(away);
            }
            while !stop.load(Ordering::SeqCst) {
                visit_here();
                sched::yield_now();
            }
            sched::unbind();
            return Ok(());
        }
        let visit = |what: &str, expected: u64| {
            let start = cpu::now_ns();
            while seen.load(Ordering::SeqCst) != expected {
                let found = seen.load(Ordering::SeqCst);
                ensure!(found & !expected == 0, "{what}: threads ran on CPUs {found:#b}, not {expected:#b}");
                ensure!(cpu::now_ns() < start + 20_000_000_000, "{what}: threads run on {found:#b} only");
                sched::yield_now();
            }
            Ok(())
        };
        let all = (1 << cpus) - 1;
        let mut outcome = Ok(());
        for _ in 0..3 {
            let left = hotplug::offline(away) && !hotplug::offline(away);
            let ticks = cpu::CPUS[away].ticks.load(Ordering::SeqCst);
            seen.store(0, Ordering::SeqCst);
            outcome = outcome.and_then(|()| visit("without the last CPU", all & !(1 << away)));
            let ticked = cpu::CPUS[away].ticks.load(Ordering::SeqCst) - ticks;
            let back = hotplug::online(away) && !hotplug::online(away);
            outcome = outcome.and_then(|()| {
                ensure!(left && back, "a CPU left: {left}, and came back: {back}");
                ensure!(ticked == 0, "a CPU that is away was interrupted {ticked} times");
                visit("with the last CPU", all)
            });
        }
        stop.store(true, Ordering::SeqCst);
        outcome
    })
}

/// Pages that a CPU remembers change hands while it is away: nobody tells it, so it has to forget them by itself.
pub(crate) fn a_cpu_that_was_away_forgets_its_mappings(host: &Machine) -> Outcome {
    const PAGES: usize = 40;
    const OTHERS: usize = 0x00ee_eeee_eeee_eeee;
    let (system, away) = (host.system(), host.cpus() - 1);
    if away == 0 {
        return Ok(());
    }
    let bytes = PAGES * PAGE;
    let mut others = Vec::with_capacity(2 * PAGES);
    system.reclaim();
    let block = system.alloc(bytes, TypeId::MALLOC);
    ensure!(!block.is_null(), "no memory");
    let words = || (block as usize..block as usize + bytes).step_by(PAGE).map(|page| page as *mut usize);
    let on = |cpu: usize, visit: &mut dyn FnMut() -> Outcome| {
        // Off the CPU's queue first: a thread that is elsewhere must not look as if it had been there.
        ensure!(sched::bind(cpu), "cpu {cpu} is away");
        let outcome = visit();
        sched::unbind();
        outcome
    };
    on(away, &mut || {
        // SAFETY: words of our block.
        words().for_each(|word| unsafe { word.write_volatile(1) });
        Ok(())
    })?;
    ensure!(hotplug::offline(away), "the CPU does not leave");
    let outcome = (|| {
        // SAFETY: 1. ours, unused from now on.
        unsafe { system.free(block, 0) };
        ensure!(system.reclaim(), "nothing went back");
        ensure!(space::physical(block as usize).is_none(), "the memory behind a free page stays");
        others.extend((0..PAGES).filter_map(|_| frames::alloc()));
        for frame in &others {
            // SAFETY: our frame, in the direct map.
            unsafe { core::slice::from_raw_parts_mut((DIRECT + frame) as *mut usize, PAGE / 8) }.fill(OTHERS);
        }
        let again = system.alloc(bytes, TypeId::MALLOC);
        ensure!(again == block, "the same addresses were expected: {again:?}, not {block:?}");
        Ok(())
    })();
    ensure!(hotplug::online(away), "the CPU does not come back");
    outcome?;
    let outcome = on(away, &mut || {
        for word in words() {
            // SAFETY: a word of our block.
            let found = unsafe { word.read_volatile() };
            ensure!(found == 0, "a CPU that was away reads {found:#x} at {word:?}, in a page that changed hands");
        }
        Ok(())
    });
    others.drain(..).for_each(frames::free);
    // SAFETY: 1. ours, unused from now on.
    unsafe { system.free(block, 0) };
    outcome
}
