//! Zones of every kind, with all that can be done to them while others allocate, made and destroyed again and again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};

use kern::zone::{
    Action, Callbacks, Fail, Flags, How, MoveReply, Mover, RawZone, Reclaim, SmrSection, Wait, ZoneConfig,
};
use platform::fake::{Fake, PAGE};

use crate::Random;
use crate::common::probe::{Probe, SCRIPT};
use crate::common::zones::{KINDS, Kind};
use crate::machine::{Soak, count};

/// A zone while it is there.
struct Live {
    raw: RawZone<'static, Fake>,
    probe: &'static Probe,
    bytes: usize,
    allocs: AtomicU64,
    frees: AtomicU64,
    fails: AtomicU64,
    refused: AtomicU64,
    /// Calls of the action at the limit.
    at_limit: AtomicU64,
}

#[derive(Clone, Copy)]
struct Item {
    addr: usize,
    mark: usize,
}

/// A place for a zone of one kind.
struct Seat {
    kind: Kind,
    /// Read by everybody who uses the zone; written by who makes or destroys it, who never waits.
    live: RwLock<Option<Box<Live>>>,
    pool: Mutex<Vec<Item>>,
    /// Of an SMR zone: what readers find.
    published: [AtomicUsize; 4],
}

pub(crate) struct Zones {
    seats: Vec<Seat>,
}

/// What a reader has found, and the word that must stay in it until he leaves.
pub(crate) struct Watch {
    addr: usize,
    word: usize,
}

/// The word of an item that readers look at.
fn watched(addr: usize) -> &'static AtomicUsize {
    // SAFETY: callers have an item of an SMR zone that is in use or was when their section began.
    unsafe { &*((addr + 8) as *const AtomicUsize) }
}

impl Zones {
    pub(crate) fn new() -> Self {
        let seat =
            |&kind| Seat { kind, live: RwLock::default(), pool: Mutex::default(), published: Default::default() };
        Self { seats: KINDS.iter().map(seat).collect() }
    }

    pub(crate) fn prepare(&'static self, soak: &'static Soak) {
        for seat in &self.seats {
            self.make(soak, seat);
        }
    }

    fn seat(&self, kind: Kind) -> &Seat {
        self.seats.iter().find(|seat| seat.kind == kind).unwrap()
    }

    /// A zone in an empty seat, if there is memory for it.
    fn make(&'static self, soak: &'static Soak, seat: &'static Seat) {
        let Ok(mut place) = seat.live.try_write() else { return };
        if place.is_some() {
            return;
        }
        let kind = seat.kind;
        let probe = Probe::leak(matches!(kind, Kind::Constructed | Kind::OwnPages | Kind::Smr | Kind::NoFree));
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
        let system = &soak.world.system;
        let made = match kind {
            Kind::Secondary => {
                let Ok(primary) = self.seat(Kind::Constructed).live.try_read() else { return Probe::unleak(probe) };
                let Some(primary) = primary.as_ref() else { return Probe::unleak(probe) };
                system.zsecond_create("soak secondary", primary.raw, callbacks)
            }
            Kind::Cache => system.zcache_create("soak cache", bytes, flags, probe.init_fini(), probe.source()),
            _ => {
                let plain = matches!(kind, Kind::Plain | Kind::RoundRobin | Kind::PerCpu);
                system.zcreate(&ZoneConfig {
                    flags,
                    callbacks: if plain { Callbacks::NONE } else { callbacks },
                    supply: (kind == Kind::OwnPages).then(|| probe.supply()),
                    ..ZoneConfig::new("soak zone", bytes, align)
                })
            }
        };
        let Ok(raw) = made else { return Probe::unleak(probe) };
        let live = Box::new(Live {
            raw,
            probe,
            bytes,
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            fails: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            at_limit: AtomicU64::new(0),
        });
        raw.set_warning("soak zone is full");
        let context = std::ptr::from_ref(&*live).cast_mut().cast();
        // SAFETY: 1. the record lives as long as the zone.
        unsafe { raw.set_maxaction(Some(Action { context, run: at_limit })) };
        *place = Some(live);
        count(&soak.done.zones);
    }

    /// Frees all items of a zone and destroys it: nothing may be left of it. Not while somebody uses it.
    fn destroy(&self, seat: &Seat) {
        // A primary goes after its secondary, and nobody makes one meanwhile.
        let secondary = (seat.kind == Kind::Constructed).then(|| self.seat(Kind::Secondary));
        let mut guard = None;
        if let Some(secondary) = secondary {
            self.destroy(secondary);
            let Ok(place) = secondary.live.try_write() else { return };
            if place.is_some() {
                return;
            }
            guard = Some(place);
        }
        let Ok(mut place) = seat.live.try_write() else { return };
        let Some(live) = place.take() else { return };
        while let Some(item) = seat.any_item() {
            live.free(seat, item);
        }
        // SAFETY: 1. alone, by the lock, and nobody sleeps on it.
        let lost = unsafe { live.raw.destroy() };
        assert_eq!(lost, Ok(kern::zone::Destroyed::default()), "a {:?} zone without items in use lost some", seat.kind);
        live.check_probe(seat).unwrap();
        assert_eq!(live.probe.left(), (0, 0, 0, 0), "{:?}: left of init, ctor, import and pages", seat.kind);
        Probe::unleak(live.probe);
        drop(guard);
    }

    /// One call.
    pub(crate) fn step(
        &'static self,
        soak: &'static Soak,
        random: &mut Random,
        readers: &mut Vec<SmrSection<'static, Fake>>,
        watches: &mut Vec<Watch>,
    ) {
        let seat = &self.seats[random.below(self.seats.len())];
        let what = random.below(60);
        if what == 0 {
            Self::leave(readers, watches);
            self.destroy(seat);
            return self.make(soak, seat);
        }
        let Ok(place) = seat.live.try_read() else { return };
        let Some(live) = place.as_deref() else {
            drop(place);
            return self.make(soak, seat);
        };
        match what {
            1..22 => {
                for _ in 0..1 + random.below(20) {
                    if !self.alloc(soak, random, seat, live, Wait::No) {
                        break;
                    }
                }
            }
            22..26 => {
                Self::leave(readers, watches);
                self.alloc(soak, random, seat, live, Wait::Sleep);
            }
            26..46 if random.grows && random.one_in(2) => {}
            26..46 => {
                for _ in 0..1 + random.below(20) {
                    self.free(seat, live, random);
                }
            }
            46 => live.raw.set_max([0, 0, 10, 40, 100][random.below(5)]),
            47 => live.raw.set_maxcache([usize::MAX, 0, 50, 400][random.below(4)]),
            48 => _ = live.raw.set_reserve([0, 0, 5, 20][random.below(4)]),
            49 => _ = live.raw.prealloc(random.below(60)),
            50 => self.defragment(soak, random, seat, live),
            51..54 => self.wrong_free(soak, random, seat, live),
            54..57 if seat.kind == Kind::Smr => {
                if readers.len() < 3 {
                    readers.push(soak.world.system.smr_enter());
                    let addr = seat.published[random.below(4)].load(Ordering::Acquire);
                    if addr != 0 {
                        watches.push(Watch { addr, word: watched(addr).load(Ordering::Acquire) });
                    }
                }
            }
            57 if seat.kind == Kind::Smr => {
                Self::leave(readers, watches);
                soak.sleeping(false, || soak.world.system.smr_synchronize());
            }
            58 => _ = (live.raw.stats(), live.raw.is_exhausted()),
            _ => Self::leave(readers, watches),
        }
    }

    /// Ends this thread's read sections. What was found in them is still what it was.
    pub(crate) fn leave(readers: &mut Vec<SmrSection<'static, Fake>>, watches: &mut Vec<Watch>) {
        for watch in watches.drain(..) {
            let word = watched(watch.addr).load(Ordering::Acquire);
            assert_eq!(word, watch.word, "item {:#x} was used again while a reader could see it", watch.addr);
        }
        readers.clear();
    }

    fn alloc(&self, soak: &Soak, random: &mut Random, seat: &Seat, live: &Live, wait: Wait) -> bool {
        let plain = !live.probe.touches && !matches!(seat.kind, Kind::Secondary | Kind::Cache);
        let how = How { wait, zero: plain && random.one_in(3), reserve: random.one_in(5) };
        let domains = soak.plan.config.domains;
        let domain = (seat.kind != Kind::Cache && random.one_in(8)).then(|| random.below(domains));
        let ask = || match domain {
            Some(domain) => live.raw.alloc_domain(std::ptr::null_mut(), domain, how),
            None => live.raw.alloc(how),
        };
        let got = if wait == Wait::Sleep {
            // Who imports items or pages for somebody who may sleep may not fail.
            let script = SCRIPT.get();
            SCRIPT.set(crate::common::probe::Script { fail_at: 0, ..script });
            soak.sleeping(false, ask)
        } else {
            ask()
        };
        let addr = match got {
            Ok(item) => item.as_ptr() as usize,
            Err(fail) => {
                assert!(wait == Wait::No || fail == Fail::Callback, "{fail} for a request that may sleep");
                count(&soak.done.shortages);
                count(&live.fails);
                if fail == Fail::Callback {
                    count(&live.refused);
                }
                return false;
            }
        };
        count(&soak.done.items);
        count(&live.allocs);
        let copies = live.raw.pcpu_copies().max(1);
        if how.zero || seat.kind == Kind::RoundRobin {
            for copy in 0..copies {
                // SAFETY: the item is ours.
                let bytes = unsafe { std::slice::from_raw_parts((addr + copy * PAGE) as *const u8, live.bytes) };
                assert!(bytes.iter().all(|&byte| byte == 0), "an item of zeros is none");
            }
        }
        let item = Item { addr, mark: random.next() as usize };
        live.each_word(seat, item, |word, value| word.store(value, Ordering::Release));
        if seat.kind == Kind::Smr && random.one_in(3) {
            let before = seat.published[random.below(4)].swap(addr, Ordering::AcqRel);
            seat.pool.lock().unwrap().extend((before != 0).then(|| Item::found(before)));
        } else {
            seat.pool.lock().unwrap().push(item);
        }
        true
    }

    fn free(&self, seat: &Seat, live: &Live, random: &mut Random) {
        let item = {
            let mut pool = seat.pool.lock().unwrap();
            let len = pool.len();
            (len > 0).then(|| pool.swap_remove(random.below(len)))
        };
        if let Some(item) = item {
            live.free(seat, item);
        }
    }

    /// Frees that are mistakes, and have no effect but a report.
    fn wrong_free(&self, soak: &Soak, random: &mut Random, seat: &Seat, live: &Live) {
        if matches!(seat.kind, Kind::Cache | Kind::OwnPages) {
            return;
        }
        let Some(item) = seat.pool.lock().unwrap().pop() else { return };
        // SAFETY: deliberate mistakes. The item is ours, so that nobody frees it meanwhile.
        unsafe {
            match random.below(2) {
                0 => {
                    live.raw.free((item.addr + 1 + random.below(live.bytes - 1)) as *mut u8);
                    count(&soak.provoked);
                }
                _ => {
                    let other = &self.seats[random.below(self.seats.len())];
                    if let Ok(other_live) = other.live.try_read()
                        && let Some(other_live) = other_live.as_ref().filter(|_| other.kind != Kind::Cache)
                        && other.kind != seat.kind
                    {
                        other_live.raw.free(item.addr as *mut u8);
                        count(&soak.provoked);
                    }
                }
            }
        }
        seat.pool.lock().unwrap().push(item);
    }

    fn defragment(&self, soak: &Soak, random: &mut Random, seat: &Seat, live: &Live) {
        // Owners that know only their items' addresses cannot keep what `ctor` made of them.
        if seat.kind != Kind::Plain {
            return;
        }
        let context = Moving { seat, live, turn: AtomicU64::new(random.next()) };
        let context = std::ptr::from_ref(&context).cast_mut().cast();
        let alone = MOVING.lock().unwrap();
        // SAFETY: 1. taken away again below, and nobody else defragments meanwhile.
        unsafe { live.raw.set_move(Some(Mover { context, offer })) };
        let moved = live.raw.defragment_now();
        // SAFETY: 1. no callback.
        unsafe { live.raw.set_move(None) };
        drop(alone);
        soak.done.moved.fetch_add(moved as u64, Ordering::Relaxed);
    }

    pub(crate) fn reclaim_one(&self, random: &mut Random) {
        let seat = &self.seats[random.below(self.seats.len())];
        if let Ok(place) = seat.live.try_read()
            && let Some(live) = place.as_ref()
        {
            live.raw.reclaim([Reclaim::Trim, Reclaim::Drain, Reclaim::DrainCpu][random.below(3)]);
        }
    }

    /// Frees an item, if there is one and nobody is in the way.
    pub(crate) fn free_one(&self, turn: usize) -> bool {
        for offset in 0..self.seats.len() {
            let seat = &self.seats[(turn + offset) % self.seats.len()];
            let Ok(place) = seat.live.try_read() else { continue };
            if let Some(live) = place.as_ref()
                && let Some(item) = seat.any_item()
            {
                live.free(seat, item);
                return true;
            }
        }
        false
    }

    /// Every zone's figures are what the threads have counted and hold.
    pub(crate) fn account(&self) -> Result<(), String> {
        for seat in &self.seats {
            let place = seat.live.try_read().map_err(|_| "a zone is in use, and nobody runs".to_owned())?;
            let Some(live) = place.as_deref() else { continue };
            let published = seat.published.iter().filter(|slot| slot.load(Ordering::Relaxed) != 0).count();
            let held = seat.pool.lock().unwrap().len() + published;
            let stats = live.raw.stats();
            let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let (allocs, refused) = (of(&live.allocs), of(&live.refused));
            let counted = (held, of(&live.fails), 0);
            // What `init` has refused was never handed out; what `ctor` has refused was, and came back.
            let allocs_agree = (allocs..=allocs + refused).contains(&stats.allocs);
            if (stats.in_use, stats.fails, stats.sleepers) != counted
                || !allocs_agree
                || stats.allocs - stats.frees != held as u64
                || stats.frees - of(&live.frees) != stats.allocs - allocs
            {
                return Err(format!(
                    "{:?} zone: in use, fails and sleepers should be {counted:?}, allocations {allocs} (and of {refused} \
                     refused some): {stats:?}",
                    seat.kind
                ));
            }
            live.check_probe(seat)?;
        }
        Ok(())
    }

    pub(crate) fn destroy_all(&self) {
        for kind in [Kind::Secondary].into_iter().chain(KINDS) {
            self.destroy(self.seat(kind));
            assert!(self.seat(kind).live.try_read().unwrap().is_none());
        }
    }
}

impl Seat {
    /// Some item in use, taken from where others find it.
    fn any_item(&self) -> Option<Item> {
        if let Ok(mut pool) = self.pool.try_lock()
            && let Some(item) = pool.pop()
        {
            return Some(item);
        }
        self.published.iter().find_map(|slot| {
            let addr = slot.swap(0, Ordering::AcqRel);
            (addr != 0).then(|| Item::found(addr))
        })
    }
}

impl Item {
    /// An item of an SMR zone that was published.
    fn found(addr: usize) -> Self {
        Self { addr, mark: watched(addr).load(Ordering::Acquire) ^ 1 }
    }
}

impl Live {
    /// The words of an item that are its user's, each with what is in it: not those that `init` wrote, and none of an item nobody
    /// touches or that must stay zero.
    fn each_word(&self, seat: &Seat, item: Item, mut f: impl FnMut(&AtomicUsize, usize)) {
        if matches!(seat.kind, Kind::Cache | Kind::NoTouch | Kind::RoundRobin) {
            return;
        }
        let first = usize::from(self.probe.touches || seat.kind == Kind::Secondary);
        for copy in 0..self.raw.pcpu_copies().max(1) {
            for word in first..self.bytes / 8 {
                // SAFETY: inside of an item in use; all zones here align to eight.
                f(unsafe { &*((item.addr + copy * PAGE + word * 8) as *const AtomicUsize) }, item.mark ^ word);
            }
        }
    }

    fn free(&self, seat: &Seat, item: Item) {
        self.each_word(seat, item, |word, value| {
            assert_eq!(word.load(Ordering::Acquire), value, "item {:#x} was written over", item.addr);
        });
        // SAFETY: 1. out of the pool: ours. 2. from this zone.
        unsafe { self.raw.free(item.addr as *mut u8) };
        count(&self.frees);
    }

    fn check_probe(&self, seat: &Seat) -> Result<(), String> {
        match &self.probe.state.lock().unwrap().fault {
            Some(fault) => Err(format!("{:?} zone: {fault}", seat.kind)),
            None => Ok(()),
        }
    }
}

/// What a zone runs at its limit.
unsafe fn at_limit(context: *mut ()) {
    // SAFETY: the zone's record, see `make`.
    count(unsafe { &(*context.cast::<Live>()).at_limit });
}

/// One thread defragments at a time: a zone has one mover, whose context is on that thread's stack.
static MOVING: Mutex<()> = Mutex::new(());

struct Moving<'a> {
    seat: &'a Seat,
    live: &'a Live,
    turn: AtomicU64,
}

/// Moves an item that is in the pool, or not.
unsafe fn offer(context: *mut (), from: *mut u8, to: *mut u8, bytes: usize) -> MoveReply {
    // SAFETY: of `defragment`.
    let moving = unsafe { &*context.cast::<Moving<'_>>() };
    let mut pool = moving.seat.pool.lock().unwrap();
    let Some(at) = pool.iter().position(|item| item.addr == from as usize) else { return MoveReply::DontKnow };
    match moving.turn.fetch_add(1, Ordering::Relaxed) % 8 {
        0 => return MoveReply::No,
        1 => return MoveReply::Later,
        2 => {
            pool.swap_remove(at);
            count(&moving.live.frees);
            return MoveReply::DontNeed;
        }
        _ => {}
    }
    // SAFETY: both are items of this size, disjoint; the old one is in the pool, whose lock we hold, and so in use and its owner's.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    pool[at].addr = to as usize;
    count(&moving.live.allocs);
    count(&moving.live.frees);
    MoveReply::Yes
}
