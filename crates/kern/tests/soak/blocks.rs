//! malloc(9) and kmem(9): types with and without limits, one of a module that comes and goes, and kmem's blocks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use kern::TypeId;
use kern::malloc::{CanFail, FlagWord, Flags, MallocType, NoWait, WaitOk};
use platform::fake::Machine;

use crate::Random;
use crate::machine::{Soak, count};

/// Types of the soak: the last is its module's.
const NAMES: [&str; 6] = ["soak one", "soak two", "soak small", "soak limited", "soak tight", "soak module"];
const MODULE: usize = 5;
/// The one behind them is kmem's.
const KMEM: usize = NAMES.len();

/// A block in use.
struct Block {
    addr: usize,
    bytes: usize,
    mark: u8,
}

/// A type, its blocks, and what the threads have counted.
struct Seat {
    ty: Option<&'static MallocType>,
    /// Held by everybody who allocates with it: the module waits until nobody does.
    gate: RwLock<()>,
    pool: Mutex<Vec<Block>>,
    allocs: AtomicU64,
    frees: AtomicU64,
    failures: AtomicU64,
    /// Failures that may have come after the block itself was had: counted as allocation and free.
    undone: AtomicU64,
    /// The row that it had when its module was last there.
    row: Mutex<Option<TypeId>>,
}

pub(crate) struct Blocks {
    seats: Vec<Seat>,
}

fn marks(bytes: usize) -> impl Iterator<Item = usize> {
    (0..bytes).step_by(509).chain(bytes.checked_sub(1))
}

impl Block {
    fn new(addr: usize, bytes: usize, mark: u8) -> Self {
        for at in marks(bytes) {
            // SAFETY: a fresh block, so long.
            unsafe { ((addr + at) as *mut u8).write(mark) };
        }
        Self { addr, bytes, mark }
    }

    /// The first `bytes` are as they were written. (The last byte of a block that shrank is another's mark no more.)
    fn check(&self, bytes: usize) {
        for at in marks(self.bytes).filter(|at| at % 509 == 0 && *at < bytes) {
            // SAFETY: inside of the block.
            let found = unsafe { ((self.addr + at) as *const u8).read() };
            assert_eq!(
                found, self.mark,
                "byte {at} of {} at {:#x} was written by somebody else",
                self.bytes, self.addr
            );
        }
    }
}

fn size(random: &mut Random) -> usize {
    match random.below(64) {
        0 => random.below(1 << 20),
        1..4 => random.below(150_000),
        4..12 => random.below(20_000),
        _ => random.below(700),
    }
}

impl Blocks {
    pub(crate) fn new() -> Self {
        let seat = |ty| Seat {
            ty,
            gate: RwLock::new(()),
            pool: Mutex::default(),
            allocs: AtomicU64::new(0),
            frees: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            undone: AtomicU64::new(0),
            row: Mutex::default(),
        };
        let limits = [0, 0, 0, 300_000, 20_000, 0];
        let types = NAMES.iter().zip(limits).map(|(name, limit)| {
            let ty: &'static MallocType =
                Box::leak(Box::new(MallocType::with_limit(name, "a type of the soak", limit)));
            seat(Some(ty))
        });
        Self { seats: types.chain([seat(None)]).collect() }
    }

    pub(crate) fn prepare(&self, soak: &Soak) {
        for seat in &self.seats {
            if let Some(ty) = seat.ty {
                soak.malloc.attach(ty).unwrap();
                *seat.row.lock().unwrap() = ty.id();
            }
        }
    }

    /// One call.
    pub(crate) fn step(&self, soak: &Soak, random: &mut Random) {
        let index = random.below(self.seats.len());
        let seat = &self.seats[index];
        let Ok(_gate) = seat.gate.try_read() else { return };
        match (random.below(20), seat.ty) {
            (0..9, Some(ty)) => self.alloc(soak, random, seat, ty),
            (0..9, None) => self.kmem_alloc(soak, random, seat),
            (9..12, Some(ty)) => self.realloc(soak, random, seat, ty),
            (12, Some(ty)) => self.special(soak, random, seat, ty),
            (13, Some(ty)) if index == 3 || index == 4 => {
                let limit = [20_000, 50_000, 300_000, 0][random.below(4)];
                soak.malloc.set_limit(ty, limit);
            }
            (13, Some(_)) if index == MODULE => {
                drop(_gate);
                self.reload(soak);
            }
            (9..11, None) => self.wrong_size(soak, random, seat),
            (14, _) if !random.grows => {
                // Together, so that slabs become empty.
                for _ in 0..40 {
                    self.free(soak, random, index);
                }
            }
            _ if random.grows && random.one_in(2) => {}
            _ => self.free(soak, random, index),
        }
    }

    fn keep(&self, soak: &Soak, seat: &Seat, addr: usize, bytes: usize, random: &mut Random) {
        count(&soak.done.blocks);
        count(&seat.allocs);
        let block = Block::new(addr, bytes, random.next() as u8);
        seat.pool.lock().unwrap().push(block);
    }

    fn refused(&self, soak: &Soak, seat: &Seat) {
        count(&soak.done.shortages);
        count(&seat.failures);
    }

    fn alloc(&self, soak: &Soak, random: &mut Random, seat: &Seat, ty: &'static MallocType) {
        let malloc = &soak.malloc;
        let zero = random.one_in(4);
        let mut flags = if zero { Flags::ZERO } else { Flags::NONE };
        if random.one_in(10) {
            flags = flags | [Flags::USE_RESERVE, Flags::NORECLAIM, Flags::NEVERFREED][random.below(3)];
        }
        let align = if random.one_in(6) { 1 << random.below(14) } else { 1 };
        let mut bytes = size(random);
        let block = match random.below(10) {
            0 => {
                bytes %= 40_000;
                Some(soak.sleeping(false, || malloc.malloc_aligned(ty, bytes, align, WaitOk, flags)))
            }
            1 => {
                bytes %= 300_000;
                soak.sleeping(true, || malloc.malloc_aligned(ty, bytes, align, CanFail, flags))
            }
            2 => Machine::interrupt(|| malloc.malloc(ty, bytes, NoWait, flags)),
            _ => malloc.malloc_aligned(ty, bytes, align, NoWait, flags),
        };
        let Some(block) = block.map(|block| block.as_ptr()) else { return self.refused(soak, seat) };
        // SAFETY: a fresh block, so long.
        let is_zero = || marks(bytes).all(|at| unsafe { block.add(at).read() } == 0);
        assert!(!zero || is_zero(), "{bytes} bytes of zeros are none");
        self.keep(soak, seat, block as usize, bytes, random);
    }

    /// Blocks whose pages are executable, or not dumped.
    fn special(&self, soak: &Soak, random: &mut Random, seat: &Seat, ty: &'static MallocType) {
        let flags = [Flags::EXEC, Flags::NODUMP, Flags::EXEC | Flags::NODUMP][random.below(3)];
        let bytes = size(random).min(100_000);
        match soak.malloc.malloc(ty, bytes, NoWait, flags) {
            Some(block) => self.keep(soak, seat, block.as_ptr() as usize, bytes, random),
            None => {
                self.refused(soak, seat);
                count(&seat.undone);
            }
        }
    }

    fn realloc(&self, soak: &Soak, random: &mut Random, seat: &Seat, ty: &'static MallocType) {
        let Some(block) = self.take(seat, random) else { return };
        let bytes = size(random);
        block.check(block.bytes);
        let (old, word) = (block.addr as *mut u8, FlagWord(FlagWord::NOWAIT));
        let or_free = random.one_in(3);
        // SAFETY: out of the pool: ours.
        let new = unsafe {
            if or_free { soak.malloc.reallocf(ty, old, bytes, word) } else { soak.malloc.realloc(ty, old, bytes, word) }
        };
        match new {
            Some(new) => {
                Block { addr: new.as_ptr() as usize, ..block }.check(bytes);
                count(&seat.frees);
                self.keep(soak, seat, new.as_ptr() as usize, bytes, random);
            }
            None if bytes == 0 => count(&seat.frees),
            None => {
                self.refused(soak, seat);
                count(&seat.undone);
                if or_free {
                    count(&seat.frees);
                } else {
                    seat.pool.lock().unwrap().push(block);
                }
            }
        }
    }

    fn kmem_alloc(&self, soak: &Soak, random: &mut Random, seat: &Seat) {
        let malloc = &soak.malloc;
        let most = if random.one_in(8) { 100_000 } else { 3000 };
        let mut bytes = 1 + random.below(most);
        let block = match random.below(7) {
            0 => {
                bytes = bytes.min(30_000);
                Some(soak.sleeping(false, || malloc.kmem_alloc(bytes, WaitOk)))
            }
            1 => malloc.kmem_zalloc(bytes, NoWait),
            2 => Machine::interrupt(|| malloc.kmem_intr_alloc(bytes, NoWait)),
            3 => {
                // A string is a block of its size.
                let text = soak.sleeping(false, || malloc.kmem_asprintf(format_args!("soak {bytes:>40}")));
                bytes = text.size;
                Some(text.text)
            }
            4 => Machine::interrupt(|| malloc.kmem_intr_zalloc(bytes, NoWait)),
            _ => malloc.kmem_alloc(bytes, NoWait),
        };
        match block {
            Some(block) => self.keep(soak, seat, block.as_ptr() as usize, bytes, random),
            None => self.refused(soak, seat),
        }
    }

    /// A size that was not asked for: reported, and the block stays.
    fn wrong_size(&self, soak: &Soak, random: &mut Random, seat: &Seat) {
        let Some(block) = self.take(seat, random) else { return };
        count(&soak.provoked);
        // SAFETY: a deliberate mistake, which has no effect.
        unsafe { soak.malloc.kmem_free(block.addr as *mut u8, block.bytes + 9 + random.below(5000)) };
        seat.pool.lock().unwrap().push(block);
    }

    fn take(&self, seat: &Seat, random: &mut Random) -> Option<Block> {
        let mut pool = seat.pool.lock().unwrap();
        let len = pool.len();
        (len > 0).then(|| pool.swap_remove(random.below(len)))
    }

    fn free(&self, soak: &Soak, random: &mut Random, index: usize) {
        let Some(block) = self.take(&self.seats[index], random) else { return };
        let way = random.below(6);
        self.give_back(soak, index, block, way);
    }

    fn give_back(&self, soak: &Soak, index: usize, block: Block, way: usize) {
        block.check(block.bytes);
        let addr = block.addr as *mut u8;
        // SAFETY: out of the pool: ours.
        unsafe {
            match (index, way) {
                (KMEM, 0) => Machine::interrupt(|| soak.malloc.kmem_intr_free(addr, block.bytes)),
                (KMEM, _) => soak.malloc.kmem_free(addr, block.bytes),
                (_, 0) => soak.malloc.zfree(addr),
                (_, 1) => Machine::interrupt(|| soak.malloc.free(addr)),
                _ => soak.malloc.free(addr),
            }
        }
        count(&self.seats[index].frees);
    }

    /// Frees a block, if there is one and nobody is in the way.
    pub(crate) fn free_one(&self, soak: &Soak, turn: usize) -> bool {
        for offset in 0..self.seats.len() {
            let index = (turn + offset) % self.seats.len();
            let Ok(_gate) = self.seats[index].gate.try_read() else { continue };
            let block = self.seats[index].pool.try_lock().ok().and_then(|mut pool| pool.pop());
            if let Some(block) = block {
                self.give_back(soak, index, block, 2);
                return true;
            }
        }
        false
    }

    /// The module goes, with nothing left, and comes again at its type's next use.
    fn reload(&self, soak: &Soak) {
        let seat = &self.seats[MODULE];
        let Ok(_alone) = seat.gate.try_write() else { return };
        while let Some(block) = seat.pool.lock().unwrap().pop() {
            self.give_back(soak, MODULE, block, 2);
        }
        let ty = seat.ty.unwrap();
        soak.malloc.unload(&[ty]);
        assert_eq!(ty.id(), None);
        assert!(soak.malloc.find_type(ty.name()).is_none());
        if soak.malloc.load(&[ty]).is_ok() {
            assert_eq!(ty.id(), *seat.row.lock().unwrap(), "a type that comes again goes on with its row");
        }
        count(&soak.done.loads);
    }

    /// Whoever looks while others work sees sums that can be.
    pub(crate) fn look(&self, soak: &Soak) {
        for seat in &self.seats {
            if let Some(id) = *seat.row.lock().unwrap() {
                let totals = soak.world.totals(id);
                let sane = totals.in_use() < 1 << 40 && totals.bytes_in_use() < 1 << 50;
                assert!(sane, "somebody saw more frees than allocations: {totals:?}");
            }
        }
        assert!(soak.malloc.type_count() >= NAMES.len() - 1);
    }

    fn row(&self, soak: &Soak, index: usize) -> Option<TypeId> {
        match self.seats[index].ty {
            Some(_) => *self.seats[index].row.lock().unwrap(),
            // kmem's row is the allocator's own affair; it is the one of that name.
            None => {
                let used = soak.world.header().types.used.load(Ordering::Acquire) as usize;
                let named = |id: &TypeId| abi::c_text(&soak.world.system.type_record(*id).name) == b"kmem";
                (0..used).filter_map(TypeId::new).find(named)
            }
        }
    }

    /// Every type's figures are what the threads have counted and hold.
    pub(crate) fn account(&self, soak: &Soak) -> Result<(), String> {
        for (index, seat) in self.seats.iter().enumerate() {
            let Some(id) = self.row(soak, index) else { continue };
            let pool = seat.pool.lock().unwrap();
            let bytes: usize = pool.iter().map(|b| soak.malloc.malloc_usable_size(b.addr as *const u8)).sum();
            let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let counted = (of(&seat.allocs), of(&seat.frees), of(&seat.failures), pool.len() as u64, bytes as u64);
            let totals = soak.world.totals(id);
            let failures = soak.world.failures(id);
            let undone = totals.allocs.wrapping_sub(of(&seat.allocs)).min(of(&seat.undone));
            let (allocs, frees) = (totals.allocs - undone, totals.frees - undone);
            let found = (allocs, frees, failures, totals.in_use(), totals.bytes_in_use());
            if found != counted {
                let name = seat.ty.map_or("kmem", |ty| ty.name());
                return Err(format!(
                    "type {name}: allocations, frees, failures, blocks and bytes in use are {found:?}, not {counted:?}"
                ));
            }
            let record = soak.world.system.type_record(id);
            if record.limit_sleepers.load(Ordering::Relaxed) != 0 {
                return Err("a type has sleepers, and nobody sleeps".to_owned());
            }
            let mark = soak.world.high_water(id);
            if mark < bytes as u64 {
                return Err(format!("the high-water mark is {mark}, with {bytes} bytes in use"));
            }
        }
        Ok(())
    }

    pub(crate) fn free_all(&self, soak: &Soak) {
        while self.free_one(soak, 0) {}
    }

    /// No type has anything in use, and each has freed as often as it has allocated.
    pub(crate) fn check_empty(&self, soak: &Soak) -> Result<(), String> {
        let used = soak.world.header().types.used.load(Ordering::Acquire) as usize;
        for id in (0..used).filter_map(TypeId::new) {
            let totals = soak.world.totals(id);
            if (totals.allocs, totals.bytes_in_use()) != (totals.frees, 0) {
                let name = soak.world.system.type_record(id).name;
                return Err(format!("type {}: {totals:?}", String::from_utf8_lossy(abi::c_text(&name))));
            }
        }
        Ok(())
    }
}
