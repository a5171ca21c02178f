//! NUMA: whose memory an item is, by what lies behind its address and not by what the allocator believes.

use alloc::format;
use alloc::vec::Vec;
use core::ptr::NonNull;

use kern::zone::{Flags, How, RawZone, ZoneConfig};
use platform::Platform as _;

use crate::sleepers::destroy;
use crate::zones::give_back;
use crate::{Host, Outcome, Verdict, ensure};

const ONE_DOMAIN: Verdict = Verdict::Skipped("one domain");
const ITEM_BYTES: usize = 1000;
/// More than any CPU caches of such items, and some slabs in each domain.
const ITEMS: usize = 200;

fn has_domains<H: Host>() -> bool {
    H::P::domains() > 1
}

/// Domain of a CPU: its first slot has its number.
fn of_cpu<H: Host>(cpu: usize) -> usize {
    H::P::domain_of_slot(cpu)
}

fn of_item<H: Host>(host: &H, item: NonNull<u8>) -> Result<usize, alloc::string::String> {
    let domain = host.domain_of_memory(item.as_ptr() as usize);
    domain.ok_or_else(|| format!("nobody knows what lies behind {item:?}"))
}

fn zone<'h, H: Host>(host: &'h H, name: &str, flags: Flags) -> Result<RawZone<'h, H::P>, alloc::string::String> {
    let config = ZoneConfig { flags, ..ZoneConfig::new(name, ITEM_BYTES, 8) };
    host.system().zcreate(&config).map_err(|why| format!("{why}"))
}

fn take<H: Host>(zone: &RawZone<'_, H::P>, count: usize, items: &mut Vec<NonNull<u8>>) -> Outcome {
    for _ in 0..count {
        items.push(zone.alloc(How::NOWAIT).map_err(|why| format!("{why}"))?);
    }
    Ok(())
}

pub(crate) fn a_zone_takes_memory_of_the_callers_domain<H: Host>(host: &H) -> Verdict {
    fn test<H: Host>(host: &H) -> Outcome {
        let zone = zone(host, "first touch", Flags::NONE)?;
        let mut items = Vec::with_capacity(ITEMS * host.cpus());
        for cpu in 0..host.cpus() {
            host.on_cpu(cpu, &mut || take::<H>(&zone, ITEMS, &mut items))?;
            for item in &items[cpu * ITEMS..] {
                let (found, expected) = (of_item(host, *item)?, of_cpu::<H>(cpu));
                ensure!(found == expected, "cpu {cpu} of domain {expected} has {item:?}, which is memory of {found}");
            }
        }
        items.drain(..).for_each(|item| give_back::<H>(&zone, item));
        // Asked for by name, from any CPU.
        for domain in (0..H::P::domains()).cycle().take(4 * host.cpus()) {
            let item = zone.alloc_domain(core::ptr::null_mut(), domain, How::NOWAIT).map_err(|why| format!("{why}"))?;
            items.push(item);
            let found = of_item(host, item)?;
            ensure!(found == domain, "domain {domain} was asked for, and {item:?} is memory of {found}");
            host.yield_now();
        }
        items.drain(..).for_each(|item| give_back::<H>(&zone, item));
        zone.validate()?;
        destroy::<H>(zone)
    }
    if has_domains::<H>() { test(host).into() } else { ONE_DOMAIN }
}

pub(crate) fn a_zone_takes_memory_of_all_domains_in_turn<H: Host>(host: &H) -> Verdict {
    fn test<H: Host>(host: &H) -> Outcome {
        // Past the caches: each request is one turn.
        let zone = zone(host, "round robin", Flags::ROUNDROBIN.and(Flags::NOBUCKET))?;
        let domains = H::P::domains();
        let mut items = Vec::with_capacity(ITEMS);
        host.on_cpu(0, &mut || take::<H>(&zone, ITEMS, &mut items))?;
        let mut counts = alloc::vec![0; domains];
        for item in &items {
            counts[of_item(host, *item)?] += 1;
        }
        items.drain(..).for_each(|item| give_back::<H>(&zone, item));
        let even = counts.iter().all(|count| (ITEMS / domains..=ITEMS.div_ceil(domains)).contains(count));
        ensure!(even, "of {ITEMS} items the domains have {counts:?}");
        destroy::<H>(zone)
    }
    if has_domains::<H>() { test(host).into() } else { ONE_DOMAIN }
}

pub(crate) fn items_go_home_to_their_domain<H: Host>(host: &H) -> Verdict {
    fn test<H: Host>(host: &H) -> Outcome {
        let here = 0;
        let there = (1..host.cpus()).find(|cpu| of_cpu::<H>(*cpu) != of_cpu::<H>(here)).ok_or("one CPU")?;
        let zone = zone(host, "going home", Flags::NONE)?;
        let mut items = Vec::with_capacity(2 * ITEMS);
        host.on_cpu(here, &mut || take::<H>(&zone, ITEMS, &mut items))?;
        let own = items.clone();
        host.on_cpu(there, &mut || {
            items.drain(..).for_each(|item| give_back::<H>(&zone, item));
            // Whoever frees them does not get them: they are another domain's memory.
            take::<H>(&zone, ITEMS, &mut items)
        })?;
        for item in &items {
            let (found, expected) = (of_item(host, *item)?, of_cpu::<H>(there));
            ensure!(found == expected, "cpu {there} of domain {expected} has {item:?}, which is memory of {found}");
        }
        items.drain(..).for_each(|item| give_back::<H>(&zone, item));
        let stats = zone.stats();
        ensure!(stats.in_use == 0, "items are left: {stats:?}");
        ensure!(
            stats.xdomain > 0 && stats.xdomain <= ITEMS as u64,
            "{} of {ITEMS} items were sent home",
            stats.xdomain
        );
        // The CPU that had them has them again, but for those on their way in a bucket.
        host.on_cpu(here, &mut || take::<H>(&zone, ITEMS, &mut items))?;
        let again = items.iter().filter(|item| own.contains(item)).count();
        items.drain(..).for_each(|item| give_back::<H>(&zone, item));
        ensure!(again * 2 > ITEMS, "of {ITEMS} items that went home {again} were there");
        zone.validate()?;
        destroy::<H>(zone)
    }
    if has_domains::<H>() { test(host).into() } else { ONE_DOMAIN }
}
