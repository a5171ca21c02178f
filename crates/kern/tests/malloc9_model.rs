//! malloc(9) and kmem(9) against a model: sequences of calls on 1, 2, 64 and 1,024 CPUs, with all the memory there is, with little, and
//! with each call of the platform failing in turn. The allocator is validated after every step.

extern crate kernmalloc_kern as kern;

mod common;

use abi::Ordering;
use common::{World, config, paths};
use kern::malloc::{CanFail, DomainSet, FlagWord, Flags, Malloc, MallocType, NoWait, Oom};
use platform::fake::{Call, Config, Fake, Machine};
use platform::{Misuse, Platform as _};
use proptest::prelude::*;

const TYPES: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    Malloc { ty: usize, bytes: usize, align_log2: u32, how: u8 },
    Array { ty: usize, count: usize, size: usize },
    Free { pick: usize, how: u8 },
    Realloc { pick: usize, ty: usize, bytes: usize, how: u8 },
    Special { ty: usize, bytes: usize, how: u8 },
    Domain { ty: usize, bytes: usize, align_log2: u32, set: u8 },
    Kmem { bytes: usize, zero: bool },
    KmemFree { pick: usize, wrong_by: usize },
    Limit { ty: usize, bytes: usize },
    Detach { ty: usize },
    Cpu(usize),
    Interrupt { ty: usize, bytes: usize },
    Reclaim,
}

struct Block {
    addr: usize,
    bytes: usize,
    /// Index of the type; `None` for kmem.
    ty: Option<usize>,
    seed: u8,
}

struct Run<'a> {
    world: &'a World,
    malloc: Malloc<'a, Fake>,
    types: [&'static MallocType; TYPES],
    limits: [usize; TYPES],
    blocks: Vec<Block>,
    /// Whether any platform call may fail: then a request may fail where memory is.
    memory_may_end: bool,
    seed: u8,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, memory_may_end: bool) -> Self {
        let types = [0, 1, 2].map(|n| {
            let name = ["one", "two", "three"][n];
            &*Box::leak(Box::new(MallocType::new(name, "")))
        });
        let malloc = Malloc::new(&world.system);
        malloc.set_oom_hook(|_| Oom::GiveUp);
        Self { world, malloc, types, limits: [0; TYPES], blocks: Vec::new(), memory_may_end, seed: 0 }
    }

    fn in_use(&self, ty: usize) -> usize {
        let of = |block: &&Block| block.ty == Some(ty);
        self.blocks.iter().filter(of).map(|block| self.malloc.malloc_usable_size(block.addr as *const u8)).sum()
    }

    fn keep(&mut self, block: *mut u8, bytes: usize, ty: Option<usize>) {
        self.seed = self.seed.wrapping_add(17);
        for at in marks(bytes) {
            // SAFETY: a fresh block, at least so long.
            unsafe { block.add(at).write(self.seed) };
        }
        self.blocks.push(Block { addr: block as usize, bytes, ty, seed: self.seed });
    }

    fn take(&mut self, pick: usize, kmem: bool) -> Option<Block> {
        let of: Vec<usize> = (0..self.blocks.len()).filter(|&at| self.blocks[at].ty.is_none() == kmem).collect();
        let at = *of.get(pick.checked_rem(of.len())?)?;
        Some(self.blocks.swap_remove(at))
    }

    /// What a request must come to, of a type that had `in_use` bytes.
    fn expect(&self, found: bool, ty: usize, bytes: usize) -> Result<(), String> {
        let in_use = self.in_use(ty);
        let limit = self.limits[ty];
        let allowed = limit == 0 || in_use < limit;
        let possible = bytes <= kern::MAX_REQUEST_BYTES;
        if found && !(allowed && possible) {
            return Err(format!("{bytes} bytes served with {in_use} of {limit} in use"));
        }
        if !found && allowed && possible && !self.memory_may_end && bytes < 8 << 20 {
            return Err(format!("{bytes} bytes refused with {in_use} of {limit} in use"));
        }
        Ok(())
    }

    /// Whether the type has a row. Where memory may end it may get none for its private data, and its blocks are then credited to the row for all.
    fn is_attached(&self, ty: usize) -> bool {
        !self.memory_may_end
            || self.types[ty].id().is_some()
            || (0..2).any(|_| self.malloc.attach(self.types[ty]).is_ok())
    }

    fn apply(&mut self, op: Op) -> Result<(), String> {
        match op {
            Op::Malloc { ty, .. }
            | Op::Array { ty, .. }
            | Op::Realloc { ty, .. }
            | Op::Special { ty, .. }
            | Op::Domain { ty, .. }
            | Op::Limit { ty, .. }
            | Op::Interrupt { ty, .. }
                if !self.is_attached(ty) => {}
            Op::Malloc { ty, bytes, align_log2, how } => {
                let align = 1 << align_log2;
                let flags = if how & 1 != 0 { Flags::ZERO } else { Flags::NONE };
                // Who may sleep on a limit would sleep for good: one thread.
                let block = if how & 2 != 0 && self.limits[ty] == 0 {
                    self.malloc.malloc_aligned(self.types[ty], bytes, align, CanFail, flags)
                } else {
                    self.malloc.malloc_aligned(self.types[ty], bytes, align, NoWait, flags)
                };
                self.expect(block.is_some(), ty, bytes)?;
                if let Some(block) = block {
                    let block = block.as_ptr();
                    let least = if bytes >= 4096 { 4096 } else { 16 };
                    if !(block as usize).is_multiple_of(align.max(least)) {
                        return Err(format!("{bytes} bytes at {block:p}, alignment {align}"));
                    }
                    // SAFETY: a fresh block, at least so long.
                    if how & 1 != 0 && marks(bytes).any(|at| unsafe { block.add(at).read() } != 0) {
                        return Err("a block of zeros is none".to_owned());
                    }
                    self.keep(block, bytes, Some(ty));
                }
            }
            Op::Domain { ty, bytes, align_log2, set } => {
                let domain = usize::from(set / 4) % Fake::domains();
                let set = match set % 4 {
                    0 => DomainSet::FirstTouch,
                    1 => DomainSet::RoundRobin,
                    2 => DomainSet::Prefer(domain),
                    _ => DomainSet::Fixed(domain),
                };
                let (ty_ref, align) = (self.types[ty], 1 << align_log2);
                let block = self.malloc.malloc_domainset_aligned(ty_ref, bytes, align, set, NoWait, Flags::NONE);
                self.expect(block.is_some(), ty, bytes)?;
                if let Some(block) = block {
                    let block = block.as_ptr();
                    if !(block as usize).is_multiple_of(align) {
                        return Err(format!("{bytes} bytes at {block:p}, alignment {align}"));
                    }
                    let found = self.world.machine.domain_of_page(block as usize);
                    if matches!(set, DomainSet::Fixed(_)) && found != Some(domain) {
                        return Err(format!("{bytes} bytes of domain {domain} are in {found:?}"));
                    }
                    self.keep(block, bytes, Some(ty));
                }
            }
            Op::Array { ty, count, size } => {
                let block = self.malloc.mallocarray(self.types[ty], count, size, NoWait, Flags::NONE);
                let bytes = count.saturating_mul(size);
                self.expect(block.is_some(), ty, bytes)?;
                if let Some(block) = block {
                    self.keep(block.as_ptr(), bytes, Some(ty));
                }
            }
            Op::Free { pick, how } => {
                if let Some(block) = self.take(pick, false) {
                    check(&block)?;
                    // SAFETY: a block of the model.
                    unsafe {
                        match how {
                            0 => self.malloc.zfree(block.addr as *mut u8),
                            _ => self.malloc.free(block.addr as *mut u8),
                        }
                    }
                }
            }
            Op::Realloc { pick, ty, bytes, how } => {
                let Some(block) = self.take(pick, false) else { return Ok(()) };
                check(&block)?;
                let old = block.addr as *mut u8;
                let word = FlagWord(FlagWord::NOWAIT);
                // SAFETY: a block of the model.
                let new = unsafe {
                    match how {
                        0 => self.malloc.reallocf(self.types[ty], old, bytes, word),
                        _ => self.malloc.realloc(self.types[ty], old, bytes, word),
                    }
                };
                match new {
                    Some(new) => {
                        let kept = block.bytes.min(bytes);
                        let moved = Block { addr: new.as_ptr() as usize, bytes: kept, ..block };
                        check_part(&moved, kept)?;
                        let least = if bytes >= 4096 { 4096 } else { 16 };
                        if !moved.addr.is_multiple_of(least) {
                            return Err(format!("{bytes} bytes at {:#x} after realloc", moved.addr));
                        }
                        self.keep(new.as_ptr(), bytes, Some(ty));
                    }
                    None if bytes == 0 || how == 0 => {}
                    None => self.blocks.push(block),
                }
            }
            Op::Special { ty, bytes, how } => {
                let flags = [Flags::EXEC, Flags::NODUMP, Flags::EXEC | Flags::NODUMP][how as usize % 3];
                let block = self.malloc.malloc(self.types[ty], bytes, NoWait, flags);
                self.expect(block.is_some(), ty, bytes)?;
                if let Some(block) = block {
                    self.keep(block.as_ptr(), bytes, Some(ty));
                }
            }
            Op::Kmem { bytes, zero } => {
                let block = if zero {
                    self.malloc.kmem_zalloc(bytes, NoWait)
                } else {
                    self.malloc.kmem_intr_alloc(bytes, NoWait)
                };
                if let Some(block) = block {
                    // SAFETY: a fresh block, so long.
                    if zero && marks(bytes).any(|at| unsafe { block.as_ptr().add(at).read() } != 0) {
                        return Err("zalloc gave no zeros".to_owned());
                    }
                    self.keep(block.as_ptr(), bytes, None);
                } else if !self.memory_may_end {
                    return Err(format!("{bytes} bytes of kmem refused"));
                }
            }
            Op::KmemFree { pick, wrong_by } => {
                let Some(block) = self.take(pick, true) else { return Ok(()) };
                check(&block)?;
                if wrong_by > 8 {
                    // SAFETY: a deliberate mistake, which has no effect.
                    unsafe { self.malloc.kmem_free(block.addr as *mut u8, block.bytes + wrong_by) };
                    let reports = self.world.machine.take_reports();
                    let [report] = reports[..] else { return Err(format!("{reports:?}")) };
                    if !matches!(report.what, Misuse::WrongSize { .. }) {
                        return Err(format!("{report:?}"));
                    }
                }
                // SAFETY: a block of the model.
                unsafe { self.malloc.kmem_free(block.addr as *mut u8, block.bytes) };
            }
            Op::Limit { ty, bytes } => {
                self.malloc.set_limit(self.types[ty], bytes);
                self.limits[ty] = bytes;
            }
            Op::Detach { ty } => {
                if self.types[ty].id().is_some() {
                    let leaks = self.blocks.iter().any(|block| block.ty == Some(ty));
                    self.malloc.detach(self.types[ty]).map_err(|error| error.to_string())?;
                    if self.world.machine.take_warnings().is_empty() == leaks {
                        return Err("a leak is warned of, and nothing else".to_owned());
                    }
                    self.limits[ty] = 0;
                }
            }
            Op::Cpu(cpu) => Machine::set_cpu(Some(cpu)),
            Op::Interrupt { ty, bytes } => {
                let block = Machine::interrupt(|| self.malloc.malloc(self.types[ty], bytes, NoWait, Flags::NONE));
                self.expect(block.is_some(), ty, bytes)?;
                if let Some(block) = block {
                    self.keep(block.as_ptr(), bytes, Some(ty));
                }
            }
            Op::Reclaim => {
                self.world.system.reclaim();
            }
        }
        self.validate().map_err(|error| format!("after {op:?}: {error}"))
    }

    fn validate(&self) -> Result<(), String> {
        self.world.system.validate()?;
        let reports = self.world.machine.take_reports();
        if !reports.is_empty() {
            return Err(format!("{reports:?}"));
        }
        for (ty, handle) in self.types.iter().enumerate() {
            let Some(id) = handle.id() else { continue };
            let totals = self.world.totals(id);
            let blocks = self.blocks.iter().filter(|block| block.ty == Some(ty)).count() as u64;
            if (totals.in_use(), totals.bytes_in_use()) != (blocks, self.in_use(ty) as u64) {
                return Err(format!("{totals:?}, but {blocks} blocks of {} bytes", self.in_use(ty)));
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), String> {
        for block in std::mem::take(&mut self.blocks) {
            check(&block)?;
            // SAFETY: a block of the model.
            unsafe {
                match block.ty {
                    Some(_) => self.malloc.free(block.addr as *mut u8),
                    None => self.malloc.kmem_free(block.addr as *mut u8, block.bytes),
                }
            }
        }
        self.world.machine.heal();
        self.world.system.reclaim();
        self.validate()?;
        let out = self.world.pages_out();
        if self.world.machine.special_pages() != 0 {
            return Err("pages stayed executable, or without a dump".to_owned());
        }
        if out != 0 { Err(format!("{out} pages leaked")) } else { Ok(()) }
    }
}

fn marks(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes).step_by(509).chain(bytes.checked_sub(1))
}

fn check(block: &Block) -> Result<(), String> {
    check_part(block, block.bytes)
}

fn check_part(block: &Block, bytes: usize) -> Result<(), String> {
    for at in marks(block.bytes).filter(|&at| at < bytes && (at % 509 == 0)) {
        // SAFETY: a block of the model, at least so long.
        let found = unsafe { ((block.addr + at) as *const u8).read() };
        if found != block.seed {
            return Err(format!("byte {at} of {} is {found}, not {}", block.bytes, block.seed));
        }
    }
    Ok(())
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 0..=300usize,
        6 => 0..=8192usize,
        2 => 0..=150_000usize,
        1 => 0..=3usize << 20,
        1 => usize::MAX - 8192..=usize::MAX,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let (ty, pick) = (0..TYPES, any::<usize>());
    prop_oneof![
        14 => (ty.clone(), size(), 0..=14u32, 0..4u8)
            .prop_map(|(ty, bytes, align_log2, how)| Op::Malloc { ty, bytes, align_log2, how }),
        2 => (ty.clone(), any::<usize>(), 0..100usize).prop_map(|(ty, count, size)| Op::Array { ty, count, size }),
        2 => (ty.clone(), 0..1000usize, 0..100usize).prop_map(|(ty, count, size)| Op::Array { ty, count, size }),
        14 => (pick, 0..4u8).prop_map(|(pick, how)| Op::Free { pick, how }),
        8 => (pick, ty.clone(), size(), 0..2u8)
            .prop_map(|(pick, ty, bytes, how)| Op::Realloc { pick, ty, bytes, how }),
        2 => (ty.clone(), size(), 0..3u8).prop_map(|(ty, bytes, how)| Op::Special { ty, bytes, how }),
        4 => (ty.clone(), size(), 0..=14u32, 0..16u8)
            .prop_map(|(ty, bytes, align_log2, set)| Op::Domain { ty, bytes, align_log2, set }),
        6 => (1..10_000usize, any::<bool>()).prop_map(|(bytes, zero)| Op::Kmem { bytes, zero }),
        6 => (pick, 0..40usize).prop_map(|(pick, wrong_by)| Op::KmemFree { pick, wrong_by }),
        3 => (ty.clone(), prop_oneof![Just(0usize), 1..100_000usize]).prop_map(|(ty, bytes)| Op::Limit { ty, bytes }),
        1 => ty.clone().prop_map(|ty| Op::Detach { ty }),
        4 => (0..1024usize).prop_map(Op::Cpu),
        3 => (ty, size()).prop_map(|(ty, bytes)| Op::Interrupt { ty, bytes }),
        1 => Just(Op::Reclaim),
    ]
}

fn run(config: Config, ops: &[Op], prepare: impl FnOnce(&World) -> bool) -> Result<(), String> {
    let world = World::boot(config);
    let memory_may_end = prepare(&world);
    world.machine.run(|| {
        let mut run = Run::new(&world, memory_may_end);
        for &op in ops {
            run.apply(op)?;
        }
        run.finish()
    })
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(80))]

    #[test]
    fn on_one_cpu(ops in prop::collection::vec(op(), 1..200)) {
        run(config(1, 1), &ops, |_| false).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn on_two_cpus(ops in prop::collection::vec(op(), 1..200)) {
        run(config(2, 2), &ops, |_| false).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn on_four_cpus_in_four_domains(ops in prop::collection::vec(op(), 1..200)) {
        run(Config { domains: 4, ..config(4, 2) }, &ops, |_| false).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn with_three_zones_for_each_size(ops in prop::collection::vec(op(), 1..200)) {
        run(Config { domains: 2, ..config(4, 1) }, &ops, |world| {
            world.machine.run(|| world.system.set_numzones(3));
            false
        }).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn with_few_pages(ops in prop::collection::vec(op(), 1..200), heap in 0..1500usize, meta in 4..20usize) {
        run(config(2, 2), &ops, |world| {
            world.machine.set_heap_budget(Some(heap));
            world.machine.set_meta_budget(Some(meta));
            true
        }).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn under_a_limit_on_pages(ops in prop::collection::vec(op(), 1..200), most in 0..1500u64, reserve in 0..100u64) {
        run(config(2, 2), &ops, |world| {
            world.machine.run(|| world.system.set_page_limit(most, reserve));
            true
        }).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn with_every_nth_call_failing(
        ops in prop::collection::vec(op(), 1..150),
        every in prop::collection::vec(prop_oneof![Just(0u64), 2..10u64], 5),
    ) {
        run(config(2, 2), &ops, |world| {
            let calls = [Call::Enter, Call::ExtendHeap, Call::ExtendMeta, Call::Discard, Call::MovePages];
            for (call, &n) in calls.into_iter().zip(&every) {
                world.machine.fail_every(call, n);
            }
            true
        }).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(cases(16))]

    #[test]
    fn on_64_cpus_in_four_domains(ops in prop::collection::vec(op(), 1..150)) {
        run(Config { domains: 4, ..config(64, 2) }, &ops, |_| false).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn on_1024_cpus_in_four_domains(ops in prop::collection::vec(op(), 1..80)) {
        run(Config { domains: 4, ..config(1024, 1) }, &ops, |_| false).map_err(TestCaseError::fail)?;
    }
}

/// A fixed sequence that comes by every call, run once for each call that it makes, with that one failing.
#[test]
fn each_allocation_point_fails_in_turn() {
    // Two blocks side by side, of which the first grows: it has to move.
    let large = Op::Malloc { ty: 0, bytes: 3_000_000, align_log2: 0, how: 0 };
    let mut script = vec![large, large, Op::Realloc { pick: 0, ty: 0, bytes: 5_000_000, how: 1 }];
    for n in 0..60usize {
        script.extend([
            Op::Malloc { ty: n % 3, bytes: n * n * 23, align_log2: n as u32 % 14, how: n as u8 % 4 },
            Op::Kmem { bytes: 1 + n * 37, zero: n % 2 == 0 },
            Op::Special { ty: n % 3, bytes: n * 700, how: n as u8 },
            Op::Realloc { pick: n * 7, ty: n % 2, bytes: n * 999, how: 1 },
            Op::Interrupt { ty: 2, bytes: 40 },
            Op::Domain { ty: n % 3, bytes: n * n * 11, align_log2: 0, set: n as u8 },
        ]);
        match n % 6 {
            0 => script.push(Op::Cpu(n / 6)),
            1 => script.push(Op::Limit { ty: 1, bytes: n * 5000 }),
            2 => script.push(Op::KmemFree { pick: n, wrong_by: n }),
            3 => script.push(Op::Free { pick: n, how: 0 }),
            4 if n % 4 == 0 => script.push(Op::Reclaim),
            _ => script.push(Op::Detach { ty: 2 }),
        }
    }
    let attempt = |world: World| {
        let outcome = world.machine.run(|| {
            let mut run = Run::new(&world, true);
            script.iter().try_for_each(|&op| run.apply(op)).and_then(|()| run.finish())
        });
        (outcome, world.header().failures.load(Ordering::Relaxed))
    };
    let healthy = World::boot(Config { on_call: paths::note_call, ..config(2, 2) });
    let ((outcome, failures), paths) = paths::record(|| attempt(healthy));
    assert_eq!((outcome, failures > 0), (Ok(()), true), "a limit refuses some");
    let mut points = 0;
    for call in Call::FALLIBLE.into_iter().chain([Call::SetPageKind]) {
        let (calls, ways) = paths.counts(Some(call));
        assert!(calls > 0, "the script never comes by {call:?}");
        for n in paths.points(Some(call)) {
            let world = World::boot(config(2, 2));
            world.machine.fail_nth(call, n);
            let (outcome, _) = attempt(world);
            outcome.unwrap_or_else(|error| panic!("{call:?} number {n} fails: {error}"));
            points += 1;
        }
        println!("{call:?}: {calls} calls by {ways} ways");
    }
    println!("{points} points of failure");
    assert!(points > 100);
}
