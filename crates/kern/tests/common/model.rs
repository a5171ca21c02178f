//! A model of the allocator that is too simple to be wrong: a list of live blocks, and per type the figures that follow from
//! it. [`Model::apply`] makes one call and holds the allocator against the model after it.

use std::collections::BTreeMap;
use std::time::Duration;

use abi::{Ordering, SIZE_CLASSES};
use kern::{BlockInfo, MAX_REQUEST_BYTES, System, TypeId};
use platform::fake::{Call, Fake, Machine, PAGE};
use platform::{Misuse, MisuseReport};

use super::World;

const KIB: usize = 1024;

/// One step of a test. `pick` chooses among the live blocks, `ty` among the types, whatever their number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    Alloc {
        bytes: usize,
        ty: usize,
    },
    Aligned {
        bytes: usize,
        align_log2: u32,
        ty: usize,
    },
    Zeroed {
        bytes: usize,
        ty: usize,
    },
    Free {
        pick: usize,
    },
    Realloc {
        pick: usize,
        bytes: usize,
        ty: usize,
    },
    Reclaim,
    /// The thread is on another CPU from now on, on an unknown one with `None`.
    Cpu(Option<usize>),
    /// The thread finds itself on another CPU in the middle of the next call.
    Hop {
        sections: usize,
        cpu: usize,
    },
    /// Another thread is preempted in the first slot of this thread's CPU for as long as the next call takes.
    Contended,
    Advance {
        ms: u64,
    },
    /// Frees a block, and then again.
    DoubleFree {
        pick: usize,
    },
    /// Frees or resizes what lies so far inside a block.
    Interior {
        pick: usize,
        offset: usize,
        resize: bool,
    },
    /// Frees what lies so many bytes from the heap's start, if no block has it.
    Wild {
        offset: usize,
    },
}

/// A block as the model knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) addr: usize,
    /// As served.
    pub(crate) bytes: usize,
    /// Whether it has pages of its own; an aligned block of any size may.
    pub(crate) is_run: bool,
    pub(crate) id: TypeId,
    seed: u64,
}

/// Offsets of the words that a block's pattern is written to: both ends, and every page.
fn marks(bytes: usize) -> impl Iterator<Item = usize> {
    let last = bytes / 8 * 8;
    let ends = [0, 8, last.saturating_sub(16), last.saturating_sub(8)];
    ends.into_iter().chain((PAGE..bytes).step_by(PAGE)).filter(move |at| at + 8 <= bytes)
}

fn mark(seed: u64, at: usize) -> u64 {
    (seed ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

impl Block {
    pub(crate) fn new(addr: usize, served: Served, id: TypeId, seed: u64) -> Self {
        let Served { bytes, is_run } = served;
        let block = Self { addr, bytes, is_run, id, seed };
        for at in marks(bytes) {
            // SAFETY: a live block of the test, at least so long, aligned to 16.
            unsafe { *((addr + at) as *mut u64) = mark(seed, at) };
        }
        block
    }

    /// Whether the first `bytes` of `addr` still hold this block's pattern.
    pub(crate) fn holds(&self, addr: usize, bytes: usize) -> Result<(), String> {
        for at in marks(self.bytes).filter(|at| at + 8 <= bytes) {
            // SAFETY: a live block of the test, at least so long.
            let found = unsafe { *((addr + at) as *const u64) };
            if found != mark(self.seed, at) {
                return Err(format!("contents of {self:x?} changed at {at}: {found:#x}"));
            }
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        self.holds(self.addr, self.bytes)
    }
}

/// What a type's figures must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) allocs: u64,
    pub(crate) frees: u64,
    pub(crate) bytes_allocated: u64,
    pub(crate) bytes_freed: u64,
    pub(crate) bytes_requested: u64,
    pub(crate) size_mask: u64,
    pub(crate) failures: u64,
    pub(crate) high_water: u64,
}

impl Tally {
    pub(crate) fn in_use(&self) -> u64 {
        // One thread's share of a type may have freed more than it allocated.
        self.bytes_allocated.saturating_sub(self.bytes_freed)
    }

    pub(crate) fn alloc(&mut self, served: Served, requested: usize) {
        self.allocs += 1;
        self.bytes_allocated += served.bytes as u64;
        self.bytes_requested += requested as u64;
        let class = SIZE_CLASSES.iter().position(|&class| class as usize == served.bytes);
        self.size_mask |= match class {
            Some(class) => 1 << class,
            _ => 1 << abi::run_bit(served.bytes as u64),
        };
        self.high_water = self.high_water.max(self.in_use());
    }

    pub(crate) fn free(&mut self, served: usize) {
        self.frees += 1;
        self.bytes_freed += served as u64;
    }
}

/// How a request is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) bytes: usize,
    pub(crate) is_run: bool,
}

/// The size classes, one after the other, and page runs after the last.
pub(crate) fn served(bytes: usize) -> Served {
    if let Some(&class) = SIZE_CLASSES.iter().find(|&&class| class as usize >= bytes) {
        return Served { bytes: class as usize, is_run: class as usize > SLAB_MAX };
    }
    let mut base = 64 * KIB;
    while base < 2048 * KIB {
        if let Some(quarter) = (1..=4).find(|quarter| base + base / 4 * quarter >= bytes) {
            return Served { bytes: base + base / 4 * quarter, is_run: true };
        }
        base *= 2;
    }
    Served { bytes: bytes.checked_next_multiple_of(64 * KIB).unwrap_or(usize::MAX), is_run: true }
}

fn served_aligned(bytes: usize, align: usize) -> Served {
    if align <= 16 {
        return served(bytes);
    }
    let fits = |&&class: &&u32| class as usize >= bytes && (class as usize).is_multiple_of(align);
    match SIZE_CLASSES.iter().filter(|&&class| class as usize <= SLAB_MAX).find(fits) {
        Some(&class) if align <= PAGE => Served { bytes: class as usize, is_run: false },
        _ if align <= PAGE => served(bytes),
        _ if bytes > 2048 * KIB => served(bytes),
        _ => Served { bytes: bytes.max(1).next_multiple_of(PAGE), is_run: true },
    }
}

/// Largest size that comes from slabs.
const SLAB_MAX: usize = 16 * KIB;

pub(crate) struct Model {
    pub(crate) world: World,
    pub(crate) live: Vec<Block>,
    /// End of each live block by its start.
    ranges: BTreeMap<usize, usize>,
    pub(crate) tallies: Vec<Tally>,
    /// Whether only one slot was ever used: then the high-water mark is exact.
    one_slot: bool,
    contended: bool,
    misuses: u64,
    steps: u64,
}

/// What came of the calls that can fail, before and after one of the allocator's.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shortage {
    refused: u64,
    told: u64,
}

impl Model {
    pub(crate) fn new(world: World) -> Self {
        let tallies = vec![Tally::default(); world.types.len()];
        let one_slot = world.slots() == 2;
        Self {
            world,
            live: Vec::new(),
            ranges: BTreeMap::new(),
            tallies,
            one_slot,
            contended: false,
            misuses: 0,
            steps: 0,
        }
    }

    fn system(&self) -> &System<Fake> {
        &self.world.system
    }

    fn shortage(&self) -> Shortage {
        let machine = &self.world.machine;
        Shortage {
            refused: [Call::ExtendHeap, Call::ExtendMeta, Call::Populate]
                .iter()
                .map(|&call| machine.failed(call))
                .sum(),
            told: machine.calls(Call::OutOfMemory),
        }
    }

    fn id(&self, ty: usize) -> TypeId {
        self.world.types[ty % self.world.types.len()]
    }

    fn tally(&mut self, id: TypeId) -> &mut Tally {
        let at = self.world.types.iter().position(|&known| known == id).unwrap();
        &mut self.tallies[at]
    }

    /// Makes a call and checks all that can be checked after it.
    pub(crate) fn apply(&mut self, op: Op) -> Result<(), String> {
        self.steps += 1;
        if self.world.machine.failed(Call::Enter) != 0 {
            self.one_slot = false;
        }
        self.step(op).and_then(|()| self.check()).map_err(|error| format!("step {}, {op:?}: {error}", self.steps))
    }

    fn step(&mut self, op: Op) -> Result<(), String> {
        match op {
            Op::Alloc { bytes, ty } => {
                let id = self.id(ty);
                self.fresh(served(bytes), 16, bytes, id, false, |system| system.alloc(bytes, id))
            }
            Op::Aligned { bytes, align_log2, ty } => {
                let (id, align) = (self.id(ty), 1usize << align_log2);
                let served = served_aligned(bytes, align);
                self.fresh(served, align, bytes, id, false, |system| system.alloc_aligned(bytes, align, id))
            }
            Op::Zeroed { bytes, ty } => {
                let id = self.id(ty);
                self.fresh(served(bytes), 16, bytes, id, true, |system| system.alloc_zeroed(bytes, id))
            }
            Op::Free { pick } => match self.take(pick) {
                Some(block) => self.free(block),
                None => Ok(()),
            },
            Op::Realloc { pick, bytes, ty } => match self.take(pick) {
                Some(block) => self.realloc(block, bytes, self.id(ty)),
                None => Ok(()),
            },
            Op::Reclaim => {
                self.system().reclaim();
                Ok(())
            }
            Op::Cpu(cpu) => {
                self.one_slot &= cpu.is_some();
                Machine::set_cpu(cpu);
                Ok(())
            }
            Op::Hop { sections, cpu } => {
                Machine::hop(sections, Some(cpu));
                Ok(())
            }
            Op::Contended => {
                self.contended = true;
                self.one_slot = false;
                Ok(())
            }
            Op::Advance { ms } => {
                self.world.machine.advance(Duration::from_millis(ms));
                Ok(())
            }
            Op::DoubleFree { pick } => match self.take(pick) {
                Some(block) => self.double_free(block),
                None => Ok(()),
            },
            Op::Interior { pick, offset, resize } => {
                if self.live.is_empty() {
                    return Ok(());
                }
                let block = self.live[pick % self.live.len()];
                let addr = block.addr + 1 + offset % (block.bytes - 1);
                self.misuse(Misuse::UnalignedFree, addr, Some((block, 0)), resize)
            }
            Op::Wild { offset } => {
                let addr = self.world.machine.heap_base() + offset;
                if self.ranges.range(..=addr).next_back().is_some_and(|(_, &end)| end > addr) {
                    return Ok(());
                }
                let what = match self.system().lookup(addr) {
                    // A free block that the model knew, or one that it never did: the report is of what the heap says.
                    Some(found) if found.live => return Err(format!("{addr:#x} is found as live: {found:x?}")),
                    Some(_) => return Ok(()),
                    None if offset < self.world.machine.heap_used() => Misuse::InvalidFree,
                    None => Misuse::ForeignFree,
                };
                self.misuse(what, addr, None, offset % 2 == 0)
            }
        }
    }

    /// Runs a call that may find the first slot of its CPU taken.
    fn call<T>(&mut self, f: impl FnOnce(&System<Fake>) -> T) -> T {
        let contended = core::mem::take(&mut self.contended);
        if contended {
            self.world.machine.preempt(0);
        }
        let result = f(&self.world.system);
        if contended {
            self.world.machine.resume(0);
        }
        result
    }

    /// Null is right only when memory was refused; then it was told, and counted once.
    fn check_null(&mut self, before: Shortage, id: TypeId, requested: usize) -> Result<(), String> {
        let now = self.shortage();
        if now.refused == before.refused && requested <= MAX_REQUEST_BYTES {
            return Err("no block, though no memory was refused".into());
        }
        if now.told != before.told + 1 {
            return Err(format!("the failure was told {} times", now.told - before.told));
        }
        self.tally(id).failures += 1;
        Ok(())
    }

    fn fresh(
        &mut self,
        served: Served,
        align: usize,
        requested: usize,
        id: TypeId,
        zeroed: bool,
        call: impl FnOnce(&System<Fake>) -> *mut u8,
    ) -> Result<(), String> {
        let before = self.shortage();
        let addr = self.call(call) as usize;
        if addr == 0 {
            return self.check_null(before, id, requested);
        }
        if self.shortage().told != before.told {
            return Err("a failure was told of a request that succeeded".into());
        }
        let align = align.max(System::<Fake>::natural_align(requested).min(if served.is_run { PAGE } else { 16 }));
        if !addr.is_multiple_of(align) {
            return Err(format!("{addr:#x} is not aligned to {align}"));
        }
        let usable = self.system().usable_bytes(addr as *const u8);
        if usable != served.bytes {
            return Err(format!("{usable} bytes are usable, not {served:?}"));
        }
        if zeroed {
            // SAFETY: a fresh block of at least so many bytes.
            let bytes = unsafe { std::slice::from_raw_parts(addr as *const u8, requested) };
            // SAFETY: any bits are a u64.
            let (head, words, tail) = unsafe { bytes.align_to::<u64>() };
            if words.iter().any(|&word| word != 0) || head.iter().chain(tail).any(|&byte| byte != 0) {
                return Err("a zeroed block is not zero".into());
            }
        }
        self.tally(id).alloc(served, requested);
        self.insert(addr, served, id)
    }

    fn insert(&mut self, addr: usize, served: Served, id: TypeId) -> Result<(), String> {
        let bytes = served.bytes;
        let base = self.world.machine.heap_base();
        if addr < base || addr + bytes > base + self.world.machine.heap_used() {
            return Err(format!("{addr:#x} and {bytes} bytes lie outside of the heap"));
        }
        let below = self.ranges.range(..addr + bytes).next_back();
        if let Some((&start, &end)) = below.filter(|&(_, &end)| end > addr) {
            return Err(format!("{addr:#x} and {bytes} bytes overlap {start:#x} to {end:#x}"));
        }
        self.ranges.insert(addr, addr + bytes);
        self.live.push(Block::new(addr, served, id, self.steps));
        self.check_lookup(self.live.len() - 1)
    }

    fn take(&mut self, pick: usize) -> Option<Block> {
        if self.live.is_empty() {
            return None;
        }
        let block = self.live.swap_remove(pick % self.live.len());
        self.ranges.remove(&block.addr);
        Some(block)
    }

    fn free(&mut self, block: Block) -> Result<(), String> {
        block.check()?;
        // SAFETY: 1. the model's block, and the model forgets it.
        self.call(|system| unsafe { system.free(block.addr as *mut u8, CALLER) });
        self.tally(block.id).free(block.bytes);
        Ok(())
    }

    fn realloc(&mut self, block: Block, bytes: usize, id: TypeId) -> Result<(), String> {
        block.check()?;
        let before = self.shortage();
        // SAFETY: 1. the model's block.
        let addr = self.call(|system| unsafe { system.realloc(block.addr as *mut u8, bytes, id, CALLER) }) as usize;
        if addr == 0 {
            self.live.push(block);
            self.ranges.insert(block.addr, block.addr + block.bytes);
            block.check()?;
            return self.check_null(before, id, bytes);
        }
        if self.shortage().told != before.told {
            return Err("a failure was told of a request that succeeded".into());
        }
        let usable = self.system().usable_bytes(addr as *const u8);
        let is_run = self.system().lookup(addr).is_some_and(|info| info.is_run);
        if usable < bytes || usable > (2 * bytes).max(served(bytes).bytes) {
            return Err(format!("{usable} bytes are usable for {bytes}"));
        }
        let now = Served { bytes: usable, is_run };
        block.holds(addr, block.bytes.min(bytes))?;
        // While a block moves by copying both are there; one that stays was never twice.
        if addr == block.addr || block.bytes >= 512 * KIB && bytes > block.bytes {
            self.tally(block.id).free(block.bytes);
            self.tally(id).alloc(now, bytes);
        } else {
            self.tally(id).alloc(now, bytes);
            self.tally(block.id).free(block.bytes);
        }
        self.insert(addr, now, id)
    }

    fn double_free(&mut self, block: Block) -> Result<(), String> {
        self.free(block)?;
        let found = self.system().lookup(block.addr);
        let expected =
            BlockInfo { addr: block.addr, bytes: block.bytes, type_id: block.id, live: false, is_run: block.is_run };
        match found {
            Some(found) if found == expected => self.misuse(
                Misuse::DuplicateFree,
                block.addr,
                Some((block, if block.is_run { 0 } else { CALLER })),
                false,
            ),
            // Its pages went back to the arena. Large blocks freed last are remembered all the same.
            None if block.is_run => self.misuse(Misuse::DuplicateFree, block.addr, Some((block, 0)), false),
            // The slab of an item: nothing is known of it any more.
            None => self.misuse(Misuse::InvalidFree, block.addr, None, false),
            found => Err(format!("a freed block is found as {found:x?}, not {expected:x?}")),
        }
    }

    /// Frees (or resizes) what must not be, and expects one report that says why, and that nothing else happened.
    fn misuse(&mut self, what: Misuse, addr: usize, block: Option<(Block, usize)>, resize: bool) -> Result<(), String> {
        let requests = self.world.machine.calls(Call::Enter);
        // SAFETY: none: the misuse is the test. The fake's report returns, and then the call has no effect.
        let result = unsafe {
            if resize {
                self.system().realloc(addr as *mut u8, 100, self.world.types[0], CALLER + 1)
            } else {
                self.system().free(addr as *mut u8, CALLER + 1);
                std::ptr::null_mut()
            }
        };
        if !result.is_null() {
            return Err(format!("a misuse gave a block, {result:?}"));
        }
        self.misuses += 1;
        let expected = MisuseReport {
            what,
            addr,
            item: block.map_or(0, |(block, _)| block.addr),
            item_bytes: block.map_or(0, |(block, _)| block.bytes),
            type_index: block.map(|(block, _)| block.id.index() as u16),
            caller: CALLER + 1,
            freed_by: block.map_or(0, |(_, freed_by)| freed_by),
            zone_name: [0; 32],
        };
        let reports = self.world.machine.take_reports();
        if reports.len() != 1 || format!("{:x?}", reports[0]) != format!("{expected:x?}") {
            return Err(format!("reported {reports:x?}, not {expected:x?}"));
        }
        if self.world.machine.calls(Call::Enter) != requests {
            return Err("a misuse entered a section".into());
        }
        Ok(())
    }

    /// A block is found from its first, last and a middle byte.
    fn check_lookup(&self, at: usize) -> Result<(), String> {
        let Some(block) = self.live.get(at) else { return Ok(()) };
        let expected =
            BlockInfo { addr: block.addr, bytes: block.bytes, type_id: block.id, live: true, is_run: block.is_run };
        for addr in [block.addr, block.addr + block.bytes / 2, block.addr + block.bytes - 1] {
            let found = self.system().lookup(addr);
            if found != Some(expected) {
                return Err(format!("{addr:#x} is found as {found:x?}, not {expected:x?}"));
            }
        }
        Ok(())
    }

    /// Everything that must hold between two calls.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.system().validate()?;
        for (&id, tally) in self.world.types.iter().zip(&self.tallies) {
            let totals = self.world.totals(id);
            let high_water = self.world.high_water(id);
            let found = Tally {
                allocs: totals.allocs,
                frees: totals.frees,
                bytes_allocated: totals.bytes_allocated,
                bytes_freed: totals.bytes_freed,
                bytes_requested: totals.bytes_requested,
                size_mask: totals.size_mask,
                failures: self.world.failures(id),
                high_water: if self.one_slot { high_water } else { tally.high_water },
            };
            if found != *tally {
                return Err(format!("{id:?} counts {found:?}, not {tally:?}"));
            }
            if high_water < tally.high_water {
                return Err(format!("{id:?} had {} bytes, but its mark is {high_water}", tally.high_water));
            }
        }
        if self.world.header().misuses.load(Ordering::Relaxed) != self.misuses {
            return Err("misuses are miscounted".into());
        }
        if let Some(report) = self.world.machine.take_reports().first() {
            return Err(format!("a report that nobody asked for: {report:x?}"));
        }
        self.check_lookup(self.steps as usize % self.live.len().max(1))?;
        self.world.check_conservation(self.live.iter().map(|block| Served { bytes: block.bytes, is_run: block.is_run }))
    }

    /// Contents of all blocks, and the counts of the zones.
    pub(crate) fn check_all(&self) -> Result<(), String> {
        for (at, block) in self.live.iter().enumerate() {
            block.check()?;
            self.check_lookup(at)?;
        }
        let unclaimed = self.world.machine.failed(Call::ClaimRemote);
        self.system().publish_zones();
        // What no one may claim is not published.
        let published = self.world.machine.failed(Call::ClaimRemote) == unclaimed;
        for class in (0..kern::class::CLASSES).filter(|_| published) {
            let bytes = kern::class::class_bytes(class);
            let in_use =
                self.live.iter().filter(|block| block.bytes == bytes && block.is_run == (bytes > SLAB_MAX)).count()
                    as i64;
            if self.world.zone_in_use(class) != in_use {
                let counted = self.world.zone_in_use(class);
                return Err(format!("the zone of {bytes} bytes counts {counted} items in use, not {in_use}"));
            }
        }
        self.check()
    }

    /// Frees all, gives all back, and finds that nothing is left.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        self.check_all()?;
        while let Some(block) = self.take(0) {
            self.free(block)?;
        }
        self.world.machine.heal();
        self.system().reclaim();
        self.check_all()?;
        let counts = self.system().page_counts();
        if counts.out != 0 || counts.free_dirty != 0 {
            return Err(format!("pages did not come back: {counts:?}"));
        }
        let given = self.world.machine.heap_given();
        if counts.free_clean as usize * PAGE != given {
            return Err(format!("{counts:?}, but the heap was given {} pages", given / PAGE));
        }
        Ok(())
    }
}

/// Where the test's calls come from, in reports.
const CALLER: usize = 0x00ca_1100;
