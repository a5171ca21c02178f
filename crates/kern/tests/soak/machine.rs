//! A machine's life: boot, scenes, phases of threads that do everything, and the account after each.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kern::malloc::{LowMemoryHandler, Malloc, Oom};
use kern::zone::{Reclaim, SmrSection};
use platform::Misuse;
use platform::fake::{Call, Config, Fake, Machine};

use crate::Random;
use crate::blocks::Blocks;
use crate::common::probe::{SCRIPT, Script};
use crate::common::{World, config};
use crate::frames::FramePool;
use crate::ranges::Ranges;
use crate::scenes;
use crate::zones::{Watch, Zones};

/// A machine and what happens on it: all follows from the seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) config: Config,
    pub(crate) threads: usize,
    pub(crate) phases: usize,
    pub(crate) steps: usize,
    /// Pages the heap may grow to.
    pub(crate) heap_pages: Option<usize>,
    /// How often calls of the platform and callbacks fail: once in so many; 0 for never.
    pub(crate) failures: usize,
}

impl Plan {
    pub(crate) fn new(seed: u64, phases: usize, steps: usize) -> Self {
        let mut random = Random::new(seed);
        // One of each in turn, so that four machines in a row are different.
        let (cpus, rows, domains) = [(2, 2, 1), (4, 2, 2), (1, 1, 1), (64, 1, 4)][(seed % 4) as usize];
        let heap_gap_bytes = if random.one_in(3) { 1 << 20 } else { 0 };
        Self {
            seed,
            config: Config { domains, heap_gap_bytes, ..config(cpus, rows) },
            threads: 3 + random.below(4),
            phases,
            steps,
            heap_pages: (!random.one_in(4)).then(|| 5000 + random.below(3000)),
            failures: if random.one_in(5) { 0 } else { 20 + random.below(200) },
        }
    }
}

macro_rules! done {
    ($($(#[$attr:meta])* $name:ident: $text:expr,)+) => {
        /// What was done, counted.
        #[derive(Default)]
        pub(crate) struct Done {
            $($(#[$attr])* pub(crate) $name: AtomicU64,)+
        }

        impl Done {
            pub(crate) fn add(&mut self, other: &Self) {
                $(*self.$name.get_mut() += other.$name.load(Ordering::Relaxed);)+
            }
        }

        impl std::fmt::Display for Done {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let parts = [$((self.$name.load(Ordering::Relaxed), $text)),+];
                for (n, (count, text)) in parts.into_iter().enumerate() {
                    write!(f, "{}{count} {text}", if n == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
        }
    };
}

done! {
    operations: "operations",
    blocks: "blocks of malloc and kmem",
    items: "items of zones",
    ranges: "ranges of arenas",
    runs: "contiguous runs",
    shortages: "requests refused",
    callbacks: "callbacks failed",
    calls: "calls of the platform failed",
    sleeps: "sleeps",
    reclaims: "reclaims",
    handlers: "low-memory calls",
    moved: "items moved",
    zones: "zones made and destroyed",
    loads: "types loaded and unloaded",
    offlines: "CPUs off-line",
    misuses: "misuses reported",
    readings: "readings of the statistics",
}

impl Done {
    /// A soak in which something never happens says nothing of it.
    pub(crate) fn check_variety(&self) {
        let counts = [
            ("blocks", &self.blocks),
            ("items", &self.items),
            ("ranges", &self.ranges),
            ("runs", &self.runs),
            ("requests refused", &self.shortages),
            ("failed callbacks", &self.callbacks),
            ("failed calls", &self.calls),
            ("sleeps", &self.sleeps),
            ("reclaims", &self.reclaims),
            ("low-memory calls", &self.handlers),
            ("zones", &self.zones),
            ("types loaded", &self.loads),
            ("off-line CPUs", &self.offlines),
            ("misuses", &self.misuses),
        ];
        for (name, count) in counts {
            assert_ne!(count.load(Ordering::Relaxed), 0, "a soak without {name}");
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// An allocator with everything on it. Lives until [`live`] ends.
pub(crate) struct Soak {
    pub(crate) world: &'static World,
    pub(crate) plan: &'static Plan,
    pub(crate) malloc: Malloc<'static, Fake>,
    pub(crate) done: Done,
    pub(crate) blocks: Blocks,
    pub(crate) zones: Zones,
    pub(crate) ranges: Ranges,
    pub(crate) frames: FramePool,
    /// Threads in a call that may sleep.
    pub(crate) sleepers: AtomicU64,
    /// Reports that were provoked.
    pub(crate) provoked: AtomicU64,
}

thread_local! {
    /// What this thread works on: for hooks, which are plain functions.
    static HERE: std::cell::Cell<Option<&'static Soak>> = const { std::cell::Cell::new(None) };
    static MAY_GIVE_UP: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static HOOK_RANDOM: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Last resort: now and then another try, and for who can take it, a refusal.
fn oom(_bytes: usize) -> Oom {
    let turn = HOOK_RANDOM.get() + 1;
    HOOK_RANDOM.set(turn);
    match turn % 7 {
        0 if MAY_GIVE_UP.get() => Oom::GiveUp,
        3 => Oom::Retry,
        _ => Oom::Wait,
    }
}

/// A low-memory handler: frees a few blocks, whoever they belong to.
fn low_memory(_: kern::malloc::LowMemory) {
    if let Some(soak) = HERE.get() {
        count(&soak.done.handlers);
        for turn in 0..4 {
            soak.blocks.free_one(soak, turn);
        }
    }
}

/// Boots the machine, lives its phases, and sees that nothing is left.
pub(crate) fn live(plan: &Plan) -> Done {
    // Everything of a machine refers to it, and it ends with this function: leaked here, and taken back below.
    let owned_plan: *mut Plan = Box::into_raw(Box::new(*plan));
    let owned_world: *mut World = Box::into_raw(Box::new(World::boot(plan.config)));
    // SAFETY: leaked just now, taken back when nobody has them any more.
    let (world, plan) = unsafe { (&*owned_world, &*owned_plan) };
    let owned_soak: *mut Soak = world.machine.run(|| Box::into_raw(Box::new(Soak::new(world, plan))));
    // SAFETY: as above.
    let soak = unsafe { &*owned_soak };
    soak.prepare();
    soak.account("after the making");
    scenes::act(soak);
    soak.account("after the scenes");
    for phase in 0..plan.phases {
        soak.phase(phase as u64);
        soak.account(&format!("after phase {phase}"));
    }
    soak.end();
    HERE.set(None);
    // SAFETY: all threads have ended, and nothing of the machine is in use.
    unsafe {
        let soak = Box::from_raw(owned_soak);
        let done = world.machine.run(|| soak.into_done());
        drop(Box::from_raw(owned_world));
        drop(Box::from_raw(owned_plan));
        done
    }
}

impl Soak {
    fn new(world: &'static World, plan: &'static Plan) -> Self {
        Self {
            world,
            plan,
            malloc: Malloc::new(&world.system),
            done: Done::default(),
            blocks: Blocks::new(),
            zones: Zones::new(),
            ranges: Ranges::new(world),
            frames: FramePool::new(world),
            sleepers: AtomicU64::new(0),
            provoked: AtomicU64::new(0),
        }
    }

    fn prepare(&'static self) {
        HERE.set(Some(self));
        self.world.machine.run(|| {
            self.malloc.set_oom_hook(oom);
            let handler = Box::leak(Box::new(LowMemoryHandler::new("soak", 0, low_memory)));
            assert!(self.malloc.register_low_memory(handler));
            self.blocks.prepare(self);
            self.zones.prepare(self);
        });
    }

    /// A call that may sleep, with nothing held. `may_fail`: the oom hook may refuse it.
    pub(crate) fn sleeping<T>(&self, may_fail: bool, call: impl FnOnce() -> T) -> T {
        MAY_GIVE_UP.set(may_fail);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let result = call();
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Threads do everything, until each has done its steps.
    fn phase(&'static self, phase: u64) {
        let (machine, plan) = (&self.world.machine, self.plan);
        machine.set_heap_budget(plan.heap_pages.map(|pages| pages.saturating_sub(machine.heap_given() / 4096)));
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..plan.threads as u64)
                .map(|thread| scope.spawn(move || self.guard("worker", &|| self.work(phase, thread))))
                .collect();
            let over = &over;
            let janitor = scope.spawn(move || self.guard("janitor", &|| self.clean(phase, over)));
            let reclaimer = scope.spawn(move || self.guard("reclaim thread", &|| self.reclaim_when_asked(over)));
            let faults: Vec<_> = workers.into_iter().filter_map(|worker| worker.join().err()).collect();
            over.store(true, Ordering::Release);
            if let Some(fault) = faults.into_iter().next() {
                std::panic::resume_unwind(fault);
            }
            janitor.join().unwrap_or_else(|fault| std::panic::resume_unwind(fault));
            // The reclaim thread sleeps until the soft limit is exceeded: once more, so that it sees the end.
            while !reclaimer.is_finished() {
                machine.run(|| {
                    machine.advance(Duration::from_secs(1));
                    self.exceed_soft_limit();
                });
                std::thread::yield_now();
            }
            reclaimer.join().unwrap_or_else(|fault| std::panic::resume_unwind(fault));
        });
    }

    /// A thread's life. If it panics, those who wait for it need not.
    fn guard(&'static self, name: &str, life: &dyn Fn()) {
        let life = std::panic::AssertUnwindSafe(|| self.world.machine.run(life));
        if let Err(fault) = std::panic::catch_unwind(life) {
            // Here as well as at the end: a second panic on the way there would be an abort.
            eprintln!("soak: a {name} has failed: cargo xtask soak --seed {} --machines 1", self.plan.seed);
            self.world.machine.give_up();
            std::panic::resume_unwind(fault);
        }
    }

    fn exceed_soft_limit(&self) {
        let system = &self.world.system;
        system.set_soft_limit(system.page_counts().out);
        let run = system.alloc(3 << 20, kern::TypeId::MALLOC);
        // SAFETY: null, or just allocated.
        unsafe { system.free(run, 0) };
    }

    /// What a kernel's reclaim thread does.
    fn reclaim_when_asked(&'static self, over: &AtomicBool) {
        HERE.set(Some(self));
        while !over.load(Ordering::Acquire) {
            self.malloc.reclaim_once_asked();
            count(&self.done.reclaims);
        }
    }

    /// One thread's script.
    fn work(&'static self, phase: u64, thread: u64) {
        HERE.set(Some(self));
        let mut random = Random::new(self.plan.seed ^ (phase << 32) ^ (thread << 24));
        let mut readers: Vec<SmrSection<'static, Fake>> = Vec::new();
        let mut watches: Vec<Watch> = Vec::new();
        SCRIPT.set(Script::default());
        for step in 0..self.plan.steps {
            count(&self.done.operations);
            random.grows = (step * 8 / self.plan.steps + thread as usize / 2).is_multiple_of(2);
            if random.one_in(3) {
                let cpus = self.plan.config.cpus;
                match random.below(8) {
                    0 => Machine::set_cpu(None),
                    1..4 => Machine::hop(1 + random.below(3), Some(random.below(cpus))),
                    _ => Machine::set_cpu(Some(random.below(cpus))),
                }
            }
            self.inject(&mut random);
            match random.below(100) {
                0..38 => self.blocks.step(self, &mut random),
                38..72 => self.zones.step(self, &mut random, &mut readers, &mut watches),
                72..86 => self.ranges.step(self, &mut random),
                86..91 => self.frames.step(self, &mut random),
                91..94 => self.reclaim(&mut random),
                94..97 => self.read(&mut random),
                97 => self.world.machine.advance(Duration::from_millis(1 << random.below(16))),
                _ => std::thread::yield_now(),
            }
        }
        Zones::leave(&mut readers, &mut watches);
        let script = SCRIPT.get();
        self.done.callbacks.fetch_add(script.failed, Ordering::Relaxed);
    }

    /// Has something fail soon.
    fn inject(&self, random: &mut Random) {
        let rate = self.plan.failures;
        if rate == 0 || !random.one_in(rate) {
            return;
        }
        match random.below(4) {
            0 => {
                let mut script = SCRIPT.get();
                script.fail_at = script.calls + 1 + random.below(20) as u64;
                SCRIPT.set(script);
            }
            1 => self.frames.fail_soon(random),
            2 => self.ranges.fail_soon(random),
            _ => {
                let calls = [
                    Call::Enter,
                    Call::ClaimRemote,
                    Call::ExtendHeap,
                    Call::ExtendMeta,
                    Call::Discard,
                    Call::Populate,
                    Call::MovePages,
                    Call::SetPageKind,
                ];
                let within = [50, 50, 2, 2, 3, 2, 1, 2];
                let which = random.below(calls.len());
                self.world.machine.fail_nth(calls[which], 1 + random.below(within[which]) as u64);
            }
        }
    }

    fn reclaim(&self, random: &mut Random) {
        let system = &self.world.system;
        count(&self.done.reclaims);
        match random.below(12) {
            0..2 => _ = system.reclaim(),
            2 => system.reclaim_zones([Reclaim::Trim, Reclaim::Drain, Reclaim::DrainCpu][random.below(3)]),
            3 => system.tick_zones(),
            4 => {
                count(&self.done.offlines);
                system.cpu_offline(random.below(self.plan.config.cpus));
            }
            5 => {
                let request = [abi::reclaim_request::TRIM, abi::reclaim_request::DRAIN][random.below(2)];
                self.world.header().control.uma_reclaim.store(request, Ordering::Relaxed);
                system.obey_cold();
            }
            6 => system.set_soft_limit(system.page_counts().out + random.below(100) as u64),
            7 => {
                system.freeze();
                // SAFETY: 1. just frozen.
                unsafe { system.thaw() };
            }
            8 => system.publish_zones(),
            _ => self.zones.reclaim_one(random),
        }
    }

    /// What somebody sees who only looks: never more given back than was given out.
    fn read(&self, random: &mut Random) {
        count(&self.done.readings);
        let system = &self.world.system;
        self.blocks.look(self);
        let mut text = String::new();
        match random.below(6) {
            0 => system.show_uma(&mut text, false).unwrap(),
            1 => system.show_malloc(&mut text, false).unwrap(),
            2 => system.vmstat_m(&mut text).unwrap(),
            3 => {
                let addr = self.world.machine.heap_base() + random.below(self.world.machine.heap_used().max(1));
                let _ = (system.zone_item(addr), system.lookup(addr & !15));
            }
            4 => _ = system.account(),
            _ => system.each_zone(|zone| assert!(zone.stats().in_use < 1 << 40)),
        }
    }

    /// Frees while somebody sleeps, until the phase is over.
    fn clean(&'static self, phase: u64, over: &AtomicBool) {
        HERE.set(Some(self));
        let mut random = Random::new(self.plan.seed ^ (phase << 32) ^ 0xffff_ffff);
        let machine = &self.world.machine;
        let mut injected = 0;
        while !over.load(Ordering::Acquire) {
            if self.sleepers.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
                continue;
            }
            let cpus = self.plan.config.cpus;
            Machine::set_cpu(Some(random.below(cpus)));
            let mut freed = self.blocks.free_one(self, random.below(64));
            freed |= self.zones.free_one(random.below(64));
            freed |= self.ranges.free_one(self);
            let failed = machine.injected();
            if !freed && failed != injected {
                // A call has failed for no reason that a free would cure. That it works again is the port's to tell.
                injected = failed;
                self.world.system.wake_sleepers();
                self.ranges.drain();
            }
            std::thread::yield_now();
        }
    }

    /// All stand still: everything agrees with what was counted, and everything is well.
    pub(crate) fn account(&self, when: &str) {
        let machine = &self.world.machine;
        machine.run(|| {
            machine.heal();
            let result = self
                .blocks
                .account(self)
                .and_then(|()| self.zones.account())
                .and_then(|()| self.ranges.account())
                .and_then(|()| self.world.system.validate().map_err(str::to_owned));
            if let Err(fault) = result {
                panic!("{when}: {fault}");
            }
            let reports = machine.take_reports();
            let strange = |report: &&platform::MisuseReport| {
                !matches!(report.what, Misuse::WrongSize { .. } | Misuse::WrongZone | Misuse::UnalignedFree)
            };
            if let Some(report) = reports.iter().find(strange) {
                panic!("{when}: {report:?}");
            }
            let provoked = self.provoked.swap(0, Ordering::Relaxed);
            assert_eq!(reports.len() as u64, provoked, "{when}: misuses reported, and provoked");
            self.done.misuses.fetch_add(provoked, Ordering::Relaxed);
            let warnings = machine.take_warnings();
            let strange = |text: &&String| !text.contains("soak zone is full");
            assert_eq!(warnings.iter().find(strange), None, "{when}");
        });
    }

    /// Everything is freed and destroyed; nothing is left.
    fn end(&'static self) {
        let machine = &self.world.machine;
        machine.run(|| {
            machine.heal();
            self.blocks.free_all(self);
            self.zones.destroy_all();
            self.ranges.free_all();
            self.frames.free_all(self);
        });
        self.account("at the end");
        machine.run(|| {
            self.blocks.check_empty(self).unwrap();
            self.world.system.reclaim();
            self.world.system.validate().unwrap();
            self.world.check_conservation(core::iter::empty()).unwrap();
            let counts = self.world.system.page_counts();
            assert_eq!((self.world.pages_out(), counts.free_dirty), (0, 0), "pages that nobody has");
            assert_eq!(machine.special_pages(), 0, "pages that stayed executable or without a dump");
            let mut zones = 0;
            self.world.system.each_zone(|zone| zones += usize::from(abi::c_text(&zone.name()) != b"mt_zone"));
            assert_eq!(zones, 0, "zones");
        });
        self.done.calls.store(machine.injected(), Ordering::Relaxed);
        self.done.sleeps.store(machine.sleeps(), Ordering::Relaxed);
    }

    fn into_done(self) -> Done {
        self.ranges.destroy();
        self.frames.destroy();
        self.done
    }
}
