//! A model of zones: what is in use of each, and what its callbacks have seen. [`Model::apply`] makes one call, holds the zones against
//! the model and validates everything.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use kern::zone::{Callbacks, Fail, Flags, How, MoveReply, Mover, RawZone, Reclaim, SmrSection, Wait, ZoneConfig};
use platform::fake::{Call, Fake, Machine, PAGE};
use platform::{Misuse, Platform as _};

use super::World;
use super::paths;
use super::probe::{Probe, expect};

/// A kind of zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Constructed,
    OwnPages,
    NoTouch,
    RoundRobin,
    PerCpu,
    Smr,
    NoFree,
    Secondary,
    Cache,
}

pub(crate) const KINDS: [Kind; 10] = [
    Kind::Plain,
    Kind::Constructed,
    Kind::OwnPages,
    Kind::NoTouch,
    Kind::RoundRobin,
    Kind::PerCpu,
    Kind::Smr,
    Kind::NoFree,
    Kind::Secondary,
    Kind::Cache,
];

/// One step. `zone` and `pick` choose among what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Create(usize),
    Destroy { zone: usize },
    Alloc { zone: usize, zero: bool, reserve: bool },
    AllocMany { zone: usize, count: usize },
    AllocDomain { zone: usize, domain: usize },
    Free { pick: usize },
    FreeMany { count: usize },
    Max { zone: usize, items: usize },
    MaxCache { zone: usize, items: usize },
    Reserve { zone: usize, items: usize },
    Prealloc { zone: usize, items: usize },
    Reclaim { zone: usize, how: usize },
    ReclaimAll,
    Tick,
    Defragment { zone: usize },
    Offline { cpu: usize },
    Cpu(Option<usize>),
    Hop { sections: usize, cpu: usize },
    Contended,
    Advance { seconds: u64 },
    Enter,
    Exit { pick: usize },
    DoubleFree { pick: usize },
    WrongZone { pick: usize },
    Interior { pick: usize },
    FreezeThaw,
}

struct ModelZone<'w> {
    raw: RawZone<'w, Fake>,
    kind: Kind,
    bytes: usize,
    align: usize,
    probe: &'static Probe,
    /// Index of the primary's model zone, by identity.
    primary: Option<u64>,
    id: u64,
    max: usize,
    allocs: u64,
    fails: u64,
    refused: u64,
}

#[derive(Clone, Copy)]
struct Item {
    zone: u64,
    addr: usize,
    seed: usize,
}

pub(crate) struct Model<'w> {
    world: &'w World,
    zones: Vec<ModelZone<'w>>,
    live: Vec<Item>,
    /// Items freed in an SMR zone: which readers were inside.
    limbo: BTreeMap<usize, Vec<u64>>,
    readers: Vec<(u64, SmrSection<'w, Fake>)>,
    contended: bool,
    next_id: u64,
    pub(crate) failures: u64,
    pub(crate) refusals: u64,
    /// Memory never ends and no call fails.
    healthy: bool,
}

const MOST_ZONES: usize = 8;

impl<'w> Model<'w> {
    pub(crate) fn new(world: &'w World, healthy: bool) -> Self {
        Self {
            world,
            zones: Vec::new(),
            live: Vec::new(),
            limbo: BTreeMap::new(),
            readers: Vec::new(),
            contended: false,
            next_id: 1,
            failures: 0,
            refusals: 0,
            healthy,
        }
    }

    fn zone(&self, pick: usize) -> Option<usize> {
        let zone = (!self.zones.is_empty()).then(|| pick % self.zones.len())?;
        paths::context(self.zones[zone].kind as u64);
        Some(zone)
    }

    fn index_of(&self, id: u64) -> usize {
        self.zones.iter().position(|zone| zone.id == id).unwrap()
    }

    fn live_of(&self, id: u64) -> usize {
        self.live.iter().filter(|item| item.zone == id).count()
    }

    pub(crate) fn apply(&mut self, op: Op) -> Result<(), String> {
        // Another thread is preempted in the first slot of this thread's CPU for as long as the call takes.
        let taken = std::mem::take(&mut self.contended);
        if taken {
            self.world.machine.preempt(0);
        }
        let claims = !taken;
        let result = if claims || matches!(op, Op::Alloc { .. } | Op::Free { .. }) && self.is_roomy() {
            self.step(op)
        } else {
            Ok(())
        };
        if taken {
            self.world.machine.resume(0);
        }
        result.and_then(|()| self.check()).map_err(|fault| format!("{op:?}: {fault}"))
    }

    /// No call claims slots: one that another holds would never be had.
    fn is_roomy(&self) -> bool {
        self.healthy && self.zones.iter().all(|zone| zone.max == 0 && zone.kind != Kind::Smr)
    }

    fn step(&mut self, op: Op) -> Result<(), String> {
        let system = &self.world.system;
        match op {
            Op::Create(kind) => return self.create(KINDS[kind % KINDS.len()]),
            Op::Destroy { zone } => return self.zone(zone).map_or(Ok(()), |zone| self.destroy(zone)),
            Op::Alloc { zone, zero, reserve } => {
                let Some(zone) = self.zone(zone) else { return Ok(()) };
                let how = How { wait: Wait::No, zero, reserve };
                return self.alloc(zone, how, None).map(|_| ());
            }
            Op::AllocMany { zone, count } => {
                let Some(zone) = self.zone(zone) else { return Ok(()) };
                for _ in 0..count {
                    if !self.alloc(zone, How::NOWAIT, None)? {
                        break;
                    }
                }
            }
            Op::AllocDomain { zone, domain } => {
                let Some(zone) = self.zone(zone) else { return Ok(()) };
                self.alloc(zone, How::NOWAIT, Some(domain % Fake::domains()))?;
            }
            Op::Free { pick } => {
                if !self.live.is_empty() {
                    return self.free(pick % self.live.len());
                }
            }
            Op::FreeMany { count } => {
                for n in 0..count.min(self.live.len()) {
                    self.free(n * 7919 % self.live.len())?;
                }
            }
            Op::Max { zone, items } => {
                if let Some(zone) = self.zone(zone) {
                    self.zones[zone].raw.set_max(items);
                    self.zones[zone].max = items;
                    expect(self.zones[zone].raw.max() == items, "the limit is not what was set")?;
                }
            }
            Op::MaxCache { zone, items } => {
                if let Some(zone) = self.zone(zone) {
                    self.zones[zone].raw.set_maxcache(if items == 0 { usize::MAX } else { items });
                }
            }
            Op::Reserve { zone, items } => {
                if let Some(zone) = self.zone(zone) {
                    let done = self.zones[zone].raw.set_reserve(items);
                    let may_fail = !self.healthy || self.zones[zone].kind == Kind::Cache;
                    expect(done.is_ok() || may_fail, "a reserve could not be made")?;
                }
            }
            Op::Prealloc { zone, items } => {
                if let Some(zone) = self.zone(zone) {
                    let done = self.zones[zone].raw.prealloc(items);
                    let may_fail = !self.healthy || self.zones[zone].kind == Kind::Cache;
                    expect(done.is_ok() || may_fail, "items could not be preallocated")?;
                }
            }
            Op::Reclaim { zone, how } => {
                if let Some(zone) = self.zone(zone) {
                    let how = [Reclaim::Trim, Reclaim::Drain, Reclaim::DrainCpu][how % 3];
                    self.zones[zone].raw.reclaim(how);
                    let stats = self.zones[zone].raw.stats();
                    if how == Reclaim::DrainCpu && self.healthy && self.readers.is_empty() {
                        expect(stats.outside == stats.in_use, "a drained zone still has items in caches")?;
                    }
                }
            }
            Op::ReclaimAll => {
                system.reclaim();
            }
            Op::Tick => system.tick_zones(),
            Op::Defragment { zone } => {
                if let Some(zone) = self.zone(zone) {
                    return self.defragment(zone);
                }
            }
            Op::Offline { cpu } => {
                let done = system.cpu_offline(cpu);
                expect(done || !self.healthy, "a CPU's caches could not be emptied")?;
            }
            Op::Cpu(cpu) => Machine::set_cpu(cpu),
            Op::Hop { sections, cpu } => Machine::hop(sections, Some(cpu)),
            Op::Contended => self.contended = true,
            Op::Advance { seconds } => self.world.machine.advance(Duration::from_secs(seconds)),
            Op::Enter => {
                if self.zones.iter().any(|zone| zone.kind == Kind::Smr) && self.readers.len() < 4 {
                    self.next_id += 1;
                    self.readers.push((self.next_id, system.smr_enter()));
                }
            }
            Op::Exit { pick } => {
                if !self.readers.is_empty() {
                    let reader = pick % self.readers.len();
                    drop(self.readers.swap_remove(reader));
                }
            }
            Op::DoubleFree { pick } => return self.double_free(pick),
            Op::WrongZone { pick } => return self.wrong_zone(pick),
            Op::Interior { pick } => return self.interior(pick),
            Op::FreezeThaw => {
                system.freeze();
                // SAFETY: 1. just frozen.
                unsafe { system.thaw() };
            }
        }
        Ok(())
    }

    fn create(&mut self, kind: Kind) -> Result<(), String> {
        if self.zones.len() >= MOST_ZONES {
            return Ok(());
        }
        paths::context(kind as u64);
        let primary = self.zones.iter().find(|zone| zone.kind == Kind::Constructed);
        if kind == Kind::Secondary && primary.is_none() {
            return Ok(());
        }
        let touches = matches!(kind, Kind::Constructed | Kind::OwnPages | Kind::Smr | Kind::NoFree);
        let probe = Probe::leak(touches);
        let callbacks = probe.callbacks();
        let (bytes, align, flags) = match kind {
            Kind::Plain | Kind::Cache => (40, 8, Flags::NONE),
            Kind::Constructed | Kind::Secondary => (200, 64, Flags::CACHESPREAD),
            Kind::OwnPages => (1000, 16, Flags::NONE),
            Kind::NoTouch => (24, 8, Flags::NOTOUCH.and(Flags::NOBUCKET)),
            Kind::RoundRobin => (128, 16, Flags::ROUNDROBIN.and(Flags::MAXBUCKET).and(Flags::ZINIT)),
            Kind::PerCpu => (16, 16, Flags::PCPU),
            Kind::Smr => (96, 8, Flags::SMR),
            Kind::NoFree => (3000, 8, Flags::NOFREE),
        };
        let system = &self.world.system;
        let made = match kind {
            Kind::Secondary => {
                let primary = primary.map(|zone| zone.raw).unwrap();
                system.zsecond_create("secondary", primary, callbacks)
            }
            Kind::Cache => system.zcache_create("cache", bytes, flags, probe.init_fini(), probe.source()),
            _ => {
                let plain = matches!(kind, Kind::Plain | Kind::RoundRobin | Kind::PerCpu);
                system.zcreate(&ZoneConfig {
                    flags,
                    callbacks: if plain { Callbacks::NONE } else { callbacks },
                    supply: (kind == Kind::OwnPages).then(|| probe.supply()),
                    ..ZoneConfig::new("model", bytes, align)
                })
            }
        };
        let raw = match made {
            Ok(raw) => raw,
            Err(error) => {
                self.failures += 1;
                return expect(!self.healthy, &format!("no zone: {error}"));
            }
        };
        self.next_id += 1;
        let primary = primary.filter(|_| kind == Kind::Secondary).map(|zone| zone.id);
        self.zones.push(ModelZone {
            raw,
            kind,
            bytes,
            align,
            probe,
            primary,
            id: self.next_id,
            max: 0,
            allocs: 0,
            fails: 0,
            refused: 0,
        });
        Ok(())
    }

    /// Destroys a zone whose items are all freed first, and its secondaries before it.
    fn destroy(&mut self, zone: usize) -> Result<(), String> {
        let id = self.zones[zone].id;
        while let Some(secondary) = self.zones.iter().position(|other| other.primary == Some(id)) {
            // SAFETY: 1. it fails, as the secondary is there.
            let refused = unsafe { self.zones[self.index_of(id)].raw.destroy() };
            expect(refused.is_err(), "a primary zone was destroyed under its secondary")?;
            self.destroy(secondary)?;
        }
        while let Some(item) = self.live.iter().position(|item| item.zone == id) {
            self.free(item)?;
        }
        if self.zones[self.index_of(id)].kind == Kind::Smr {
            self.readers.clear();
            self.limbo.clear();
        }
        let zone = self.zones.swap_remove(self.index_of(id));
        // SAFETY: 1. the model forgets it.
        let lost = unsafe { zone.raw.destroy() };
        if lost.map_err(|error| error.to_string())? != kern::zone::Destroyed::default() {
            return Err(format!("a zone without items in use lost some: {lost:?}"));
        }
        let left = zone.probe.left();
        expect(left == (0, 0, 0, 0), &format!("left after destroy: init, ctor, import, pages {left:?}"))
    }

    fn alloc(&mut self, index: usize, how: How, domain: Option<usize>) -> Result<bool, String> {
        let zone = &self.zones[index];
        let how = if zone.kind == Kind::Cache { How { zero: false, ..how } } else { how };
        // Zeroing wipes what `init` wrote.
        let how = How { zero: how.zero && !zone.probe.touches && zone.kind != Kind::Secondary, ..how };
        let refused_claims = self.world.machine.failed(Call::ClaimRemote);
        let got = match domain {
            Some(domain) if zone.kind != Kind::Cache => zone.raw.alloc_domain(std::ptr::null_mut(), domain, how),
            _ => zone.raw.alloc(how),
        };
        let live = self.live_of(zone.id);
        let item = match got {
            Ok(item) => item.as_ptr(),
            Err(fail) => {
                self.failures += 1;
                let zone = &mut self.zones[index];
                zone.fails += 1;
                if fail == Fail::Callback {
                    zone.refused += 1;
                    self.refusals += 1;
                }
                let stranded = zone.kind == Kind::Smr || self.world.machine.failed(Call::ClaimRemote) != refused_claims;
                let at_limit = zone.max != 0 && (live >= zone.max || stranded);
                return match fail {
                    Fail::Limit if at_limit => Ok(false),
                    Fail::Limit => Err(format!("at the limit of {} with {live} items in use", zone.max)),
                    _ if !self.healthy => Ok(false),
                    fail => Err(format!("failed without reason: {fail}")),
                };
            }
        };
        let zone = &mut self.zones[index];
        zone.allocs += 1;
        expect(zone.max == 0 || live < zone.max, "an item above the limit")?;
        if zone.kind == Kind::Cache {
            expect(zone.probe.state.lock().unwrap().imported.contains(&(item as usize)), "not an imported item")?;
        }
        let addr = item as usize;
        if zone.kind != Kind::Cache {
            expect(addr.is_multiple_of(zone.align), "an item is not aligned")?;
            let copies = zone.raw.pcpu_copies().max(1);
            let overlaps = |other: &&Item| {
                let other_zone = &self.zones[self.index_of(other.zone)];
                other_zone.kind != Kind::Cache
                    && other.addr < addr + self.zones[index].bytes
                    && addr < other.addr + other_zone.bytes
            };
            if let Some(other) = self.live.iter().find(overlaps) {
                return Err(format!("{addr:#x} overlaps {:#x}", other.addr));
            }
            let zone = &self.zones[index];
            if let Some(domain) = domain
                && zone.kind != Kind::OwnPages
            {
                let placed = self.world.machine.domain_of_page(addr);
                expect(placed == Some(domain), &format!("asked of domain {domain}, of {placed:?}"))?;
            }
            for copy in 0..copies {
                let at = (addr + copy * PAGE) as *const u8;
                // SAFETY: the item is ours.
                let bytes = unsafe { std::slice::from_raw_parts(at, zone.bytes) };
                let zeroed = how.zero || zone.kind == Kind::RoundRobin;
                expect(!zeroed || bytes.iter().all(|&byte| byte == 0), "not zero")?;
            }
        }
        if let Some(readers) = self.limbo.remove(&addr)
            && readers.iter().any(|id| self.readers.iter().any(|reader| reader.0 == *id))
        {
            return Err(format!("{addr:#x} is used again while a reader may see it"));
        }
        let item = Item { zone: self.zones[index].id, addr, seed: self.next_id as usize ^ addr };
        self.next_id += 1;
        self.fill(item);
        self.live.push(item);
        Ok(true)
    }

    /// The bytes of an item that are its user's: not those that `init` wrote, and none of an item nobody touches or that must stay zero.
    fn user_words(&self, item: Item) -> Vec<*mut usize> {
        let zone = &self.zones[self.index_of(item.zone)];
        if matches!(zone.kind, Kind::Cache | Kind::NoTouch | Kind::RoundRobin) {
            return Vec::new();
        }
        let copies = zone.raw.pcpu_copies().max(1);
        let first = usize::from(zone.probe.touches || zone.kind == Kind::Secondary);
        (0..copies)
            .flat_map(|copy| {
                (first..zone.bytes / 8).map(move |word| (item.addr + copy * PAGE + word * 8) as *mut usize)
            })
            .collect()
    }

    fn fill(&self, item: Item) {
        for (n, word) in self.user_words(item).into_iter().enumerate() {
            // SAFETY: inside an item in use.
            unsafe { word.write_unaligned(item.seed ^ n) };
        }
    }

    fn intact(&self, item: Item) -> Result<(), String> {
        for (n, word) in self.user_words(item).into_iter().enumerate() {
            // SAFETY: inside an item in use.
            let found = unsafe { word.read_unaligned() };
            expect(found == item.seed ^ n, &format!("item {:#x} was written over", item.addr))?;
        }
        Ok(())
    }

    fn free(&mut self, index: usize) -> Result<(), String> {
        let item = self.live.swap_remove(index);
        self.intact(item)?;
        let zone = &self.zones[self.index_of(item.zone)];
        paths::context(zone.kind as u64);
        if zone.kind == Kind::Smr {
            self.limbo.insert(item.addr, self.readers.iter().map(|reader| reader.0).collect());
        }
        // SAFETY: 1. the model forgets it. 2. from this zone.
        unsafe { zone.raw.free(item.addr as *mut u8) };
        Ok(())
    }

    fn reported(&self, what: Misuse, item: usize) -> Result<(), String> {
        let reports = self.world.machine.take_reports();
        let matches = reports.len() == 1 && reports[0].what == what && reports[0].item == item;
        expect(matches, &format!("reported {reports:x?}, not {what:?} of {item:#x}"))
    }

    fn item_in_heap(&self, pick: usize) -> Option<(Item, Kind)> {
        if self.live.is_empty() {
            return None;
        }
        let item = self.live[pick % self.live.len()];
        let kind = self.zones[self.index_of(item.zone)].kind;
        (!matches!(kind, Kind::Cache | Kind::OwnPages)).then_some((item, kind))
    }

    fn double_free(&mut self, pick: usize) -> Result<(), String> {
        let Some((item, _)) = self.item_in_heap(pick) else { return Ok(()) };
        let raw = self.zones[self.index_of(item.zone)].raw;
        let again = self.live.iter().position(|other| other.addr == item.addr).unwrap();
        self.free(again)?;
        if self.world.system.zone_item(item.addr).is_some() {
            // SAFETY: none: that is the point; what is found is reported, nothing done.
            unsafe { raw.free(item.addr as *mut u8) };
            self.reported(Misuse::DuplicateFree, item.addr)?;
        }
        Ok(())
    }

    fn wrong_zone(&mut self, pick: usize) -> Result<(), String> {
        let Some((item, _)) = self.item_in_heap(pick) else { return Ok(()) };
        let other = self.zones.iter().find(|zone| zone.id != item.zone && zone.kind != Kind::Cache);
        let Some(other) = other else { return Ok(()) };
        // SAFETY: as above.
        unsafe { other.raw.free(item.addr as *mut u8) };
        self.reported(Misuse::WrongZone, item.addr)?;
        // SAFETY: as above.
        unsafe { self.world.system.free(item.addr as *mut u8, 0) };
        self.reported(Misuse::WrongZone, item.addr)
    }

    fn interior(&mut self, pick: usize) -> Result<(), String> {
        let Some((item, _)) = self.item_in_heap(pick) else { return Ok(()) };
        let zone = &self.zones[self.index_of(item.zone)];
        // SAFETY: as above.
        unsafe { zone.raw.free((item.addr + 1 + pick % (zone.bytes - 1)) as *mut u8) };
        self.reported(Misuse::UnalignedFree, item.addr)?;
        let info = self.world.system.zone_item(item.addr + zone.bytes - 1).ok_or("no zone's item")?;
        let expected = (item.addr, zone.bytes - 1, true, false);
        expect((info.item, info.offset, info.in_use, info.in_slab) == expected, &format!("{info:?}"))
    }

    fn defragment(&mut self, index: usize) -> Result<(), String> {
        let zone = &self.zones[index];
        // Owners that know only their items' addresses cannot keep what `ctor` made of them.
        if zone.kind != Kind::Plain {
            return Ok(());
        }
        let raw = zone.raw;
        let live = Mutex::new(std::mem::take(&mut self.live));
        let context = std::ptr::from_ref(&live).cast_mut().cast();
        // SAFETY: 1. taken away again below.
        unsafe { raw.set_move(Some(Mover { context, offer })) };
        let moved = raw.defragment_now();
        // SAFETY: 1. no callback.
        unsafe { raw.set_move(None) };
        self.live = live.into_inner().unwrap();
        self.zones[index].allocs += moved as u64;
        Ok(())
    }

    /// The zones agree with the model, and everything is well.
    fn check(&self) -> Result<(), String> {
        self.world.system.validate()?;
        for zone in &self.zones {
            let stats = zone.raw.stats();
            let live = self.live_of(zone.id);
            let at = || format!("{:?} zone: {stats:?}, but {live} live, {} allocs", zone.kind, zone.allocs);
            expect(stats.in_use == live, &at())?;
            expect(stats.fails == zone.fails, &format!("{} fails; {}", zone.fails, at()))?;
            expect(stats.sleepers == 0 && stats.in_use <= stats.outside, &at())?;
            expect(stats.allocs <= zone.allocs + zone.refused && stats.allocs >= zone.allocs, &at())?;
            if let Some(fault) = &zone.probe.state.lock().unwrap().fault {
                return Err(format!("{:?} zone: {fault}", zone.kind));
            }
        }
        Ok(())
    }

    /// Frees and destroys everything. Nothing is left.
    pub(crate) fn finish(mut self) -> Result<(), String> {
        self.readers.clear();
        while !self.live.is_empty() {
            self.free(0)?;
        }
        self.check()?;
        while !self.zones.is_empty() {
            self.destroy(0)?;
        }
        self.world.system.reclaim();
        self.world.check_conservation(std::iter::empty())?;
        let mut zones = 0;
        self.world.system.each_zone(|_| zones += 1);
        expect(zones == 0, "zones are left")
    }
}

/// Moves an item that the model knows.
unsafe fn offer(context: *mut (), from: *mut u8, to: *mut u8, bytes: usize) -> MoveReply {
    // SAFETY: the list that `defragment` gave.
    let live = unsafe { &*context.cast::<Mutex<Vec<Item>>>() };
    let mut live = live.lock().unwrap();
    let Some(item) = live.iter_mut().find(|item| item.addr == from as usize) else { return MoveReply::DontKnow };
    // SAFETY: both are items of this size, disjoint, and the old one is in use and its owner's here.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    item.addr = to as usize;
    MoveReply::Yes
}

impl Drop for Model<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Leaving a section on a machine that is broken would panic again, and abort before the first panic is told.
            std::mem::forget(std::mem::take(&mut self.readers));
        }
    }
}
