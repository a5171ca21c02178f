//! The core's paths on the least of platforms: its section is one slot with a plain lock word, as a kernel's with interrupts
//! masked. So the figures are the core's own.

use std::alloc::Layout;
use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use kern::zone::{Fail, How, RawZone, ZoneConfig};
use kern::{Boot, ObjectLayout, SLOT_STRIDE_BYTES, System, TypeId};
use platform::{Extent, MisuseReport, Platform, RawLock, SlotTable};

mod steady;

const PAGE: usize = 4096;
const HEAP_BYTES: usize = 64 << 20;
const META_BYTES: usize = 16 << 20;

/// One thread, one CPU.
struct Least;

/// Nobody else is there to wait for.
struct Flag(AtomicBool);

// SAFETY: one thread; a second holder is a fault, and ends the program.
unsafe impl RawLock for Flag {
    const INIT: Self = Self(AtomicBool::new(false));

    fn lock(&self) {
        assert!(self.try_lock(), "a lock taken twice");
    }

    fn try_lock(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    unsafe fn unlock(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

static SLOT: AtomicUsize = AtomicUsize::new(0);
static HEAP: Supply = Supply::new();
static META: Supply = Supply::new();

/// Memory that is given out from its start.
struct Supply {
    base: AtomicUsize,
    used: AtomicUsize,
}

impl Supply {
    const fn new() -> Self {
        Self { base: AtomicUsize::new(0), used: AtomicUsize::new(0) }
    }

    fn take(&self, bytes: usize, of: usize) -> Option<Extent> {
        let used = self.used.load(Ordering::Relaxed);
        let end = used.checked_add(bytes.next_multiple_of(PAGE)).filter(|end| *end <= of)?;
        self.used.store(end, Ordering::Relaxed);
        Some(Extent { addr: self.base.load(Ordering::Relaxed) + used, bytes: end - used })
    }
}

/// Whole pages. Asked for without their alignment: the standard library would then write the zeros itself.
fn zeroed(bytes: usize) -> NonNull<u8> {
    // SAFETY: not of size zero. Never freed.
    let start = unsafe { std::alloc::alloc_zeroed(Layout::array::<u8>(bytes + PAGE).unwrap()) };
    assert!(!start.is_null(), "no memory");
    NonNull::new(start.wrapping_add(start.align_offset(PAGE))).unwrap()
}

// SAFETY: 1. one thread; the word says whether it holds the slot. 2. fresh zeroed memory, given once. 3. keeps contents.
unsafe impl Platform for Least {
    type Lock = Flag;

    fn bind_slots(table: SlotTable) {
        SLOT.store(table.base, Ordering::Relaxed);
    }

    #[inline(always)]
    fn enter() -> usize {
        let slot = SLOT.load(Ordering::Relaxed);
        // SAFETY: bound before the first call: the slot's first word is ours.
        unsafe { (*(slot as *const AtomicU32)).store(1, Ordering::Relaxed) };
        slot
    }

    #[inline(always)]
    unsafe fn leave(slot: usize) {
        // SAFETY: 1.
        unsafe { (*(slot as *const AtomicU32)).store(0, Ordering::Relaxed) };
    }

    unsafe fn claim_shared(_: usize) {
        unreachable!("the only slot is never taken");
    }

    unsafe fn claim_remote(_: usize) -> bool {
        false
    }

    fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent> {
        HEAP.take(want_bytes, HEAP_BYTES).or_else(|| HEAP.take(min_bytes, HEAP_BYTES))
    }

    fn extend_meta(min_bytes: usize) -> Option<Extent> {
        META.take(min_bytes, META_BYTES)
    }

    unsafe fn discard(_: usize, _: usize) -> bool {
        false
    }

    fn now_ns() -> u64 {
        1
    }

    fn misuse(report: &MisuseReport) {
        panic!("{report:?}");
    }
}

static SYSTEM: System<Least> = System::new();
/// A type of its own, so that nothing is known of it when this is compiled.
static TYPE: AtomicUsize = AtomicUsize::new(0);

#[inline(always)]
fn id() -> TypeId {
    TypeId::from_tag(TYPE.load(Ordering::Relaxed) as u16)
}

fn boot() {
    HEAP.base.store(zeroed(HEAP_BYTES).as_ptr() as usize, Ordering::Relaxed);
    META.base.store(zeroed(META_BYTES).as_ptr() as usize, Ordering::Relaxed);
    let table = zeroed(HEAP_BYTES / PAGE * size_of::<u64>());
    let layout = ObjectLayout { slots: 2, types: TypeId::BUILT_IN + 2, libs: 1 };
    let object = zeroed(layout.bytes());
    // SAFETY: zeros are a valid header, which nobody else knows.
    let header = unsafe { &mut *object.as_ptr().cast::<abi::Header>() };
    layout.write_sections(header);
    header.cache_slot_stride = SLOT_STRIDE_BYTES as u64;
    header.cache_zone_stride = size_of::<abi::CpuCache>() as u64;
    let heap_base = HEAP.base.load(Ordering::Relaxed);
    let boot = Boot { heap_base, table: table.as_ptr() as usize, ids: 1, rows: 1, stats: object };
    // SAFETY: 1. the first thing that happens. 2. the memory is as said.
    assert!(unsafe { SYSTEM.boot(&boot) });
    let id = SYSTEM.register_type(abi::type_kind::STATIC, abi::NO_LIB, 1, b"counted").unwrap();
    TYPE.store(id.index(), Ordering::Relaxed);
}

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_alloc(bytes: usize, id: TypeId) -> *mut u8 {
    SYSTEM.alloc(bytes, id)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_alloc_zeroed(bytes: usize, id: TypeId) -> *mut u8 {
    SYSTEM.alloc_zeroed(bytes, id)
}

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_alloc_aligned(bytes: usize, align: usize, id: TypeId) -> *mut u8 {
    SYSTEM.alloc_aligned(bytes, align, id)
}

/// # Safety
/// 1. `block` is the caller's, who uses it no more.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe fn guarded_free(block: *mut u8, caller: usize) {
    // SAFETY: 1.
    unsafe { SYSTEM.free(block, caller) }
}

/// # Safety
/// 1. `block` is the caller's.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe fn guarded_realloc(block: *mut u8, bytes: usize, id: TypeId, caller: usize) -> *mut u8 {
    // SAFETY: 1.
    unsafe { SYSTEM.realloc(block, bytes, id, caller) }
}

#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_zalloc(zone: &RawZone<'_, Least>, how: How) -> Result<NonNull<u8>, Fail> {
    zone.alloc(how)
}

/// # Safety
/// 1. `item` is the caller's, of this zone, who uses it no more.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe fn guarded_zfree(zone: &RawZone<'_, Least>, item: *mut u8) {
    // SAFETY: 1.
    unsafe { zone.free(item) }
}

/// Buckets run empty and full: the way to the depot and back, spread over what it serves.
#[unsafe(no_mangle)]
#[inline(never)]
fn guarded_thousand(blocks: &mut [*mut u8; 1000], bytes: usize, id: TypeId) {
    for block in blocks.iter_mut() {
        *block = SYSTEM.alloc(bytes, id);
    }
    for block in blocks {
        // SAFETY: 1. just allocated.
        unsafe { SYSTEM.free(*block, 1) };
    }
}

fn alloc_of<const BYTES: usize>(rounds: u32) {
    for _ in 0..rounds {
        let block = guarded_alloc(black_box(BYTES), id());
        assert!(!block.is_null());
        // SAFETY: 1. just allocated.
        unsafe { SYSTEM.free(block, 1) };
    }
}

fn free_of<const BYTES: usize>(rounds: u32) {
    for _ in 0..rounds {
        let block = SYSTEM.alloc(black_box(BYTES), id());
        // SAFETY: 1. just allocated.
        unsafe { guarded_free(block, black_box(1)) };
    }
}

fn alloc_zeroed(rounds: u32) {
    for _ in 0..rounds {
        let block = guarded_alloc_zeroed(black_box(64), id());
        // SAFETY: 1. just allocated.
        unsafe { SYSTEM.free(block, 1) };
    }
}

fn alloc_aligned(rounds: u32) {
    for _ in 0..rounds {
        let block = guarded_alloc_aligned(black_box(100), black_box(64), id());
        // SAFETY: 1. just allocated.
        unsafe { SYSTEM.free(block, 1) };
    }
}

/// Between two sizes of a class (or of a run), the block never moves.
fn realloc_between<const FROM: usize, const TO: usize>(rounds: u32) {
    let block = SYSTEM.alloc(FROM, id());
    for round in 0..rounds {
        let bytes = if round % 2 == 0 { TO } else { FROM };
        // SAFETY: 1. it is ours.
        let same = unsafe { guarded_realloc(block, black_box(bytes), id(), 1) };
        assert_eq!(same, block);
    }
    // SAFETY: 1. as above.
    unsafe { SYSTEM.free(block, 1) };
}

/// A zone of plain items, the same for all rounds.
fn zone() -> &'static RawZone<'static, Least> {
    static ZONE: OnceLock<RawZone<'static, Least>> = OnceLock::new();
    ZONE.get_or_init(|| SYSTEM.zcreate(&ZoneConfig::new("counted", 64, 16)).unwrap())
}

fn zalloc(rounds: u32) {
    for _ in 0..rounds {
        let item = guarded_zalloc(zone(), black_box(How::NOWAIT)).unwrap();
        // SAFETY: 1. just allocated.
        unsafe { zone().free(item.as_ptr()) };
    }
}

fn zfree(rounds: u32) {
    for _ in 0..rounds {
        let item = zone().alloc(How::NOWAIT).unwrap();
        // SAFETY: 1. just allocated.
        unsafe { guarded_zfree(zone(), item.as_ptr()) };
    }
}

fn thousand(rounds: u32) {
    let mut blocks = [std::ptr::null_mut(); 1000];
    for _ in 0..rounds {
        guarded_thousand(&mut blocks, black_box(64), id());
    }
}

fn main() {
    boot();
    steady::run(&[
        ("kern: alloc, 64 B", alloc_of::<64>),
        ("kern: free, 64 B", free_of::<64>),
        ("kern: alloc, 2 KiB", alloc_of::<2048>),
        ("kern: free, 2 KiB", free_of::<2048>),
        ("kern: alloc, 64 KiB run", alloc_of::<65536>),
        ("kern: free, 64 KiB run", free_of::<65536>),
        ("kern: alloc_zeroed, 64 B", alloc_zeroed),
        ("kern: alloc_aligned, 100 B at 64", alloc_aligned),
        ("kern: realloc in place, 100 to 110 B", realloc_between::<100, 110>),
        ("kern: realloc in place, 60 to 64 KB run", realloc_between::<60_000, 64_000>),
        ("kern: zone alloc, 64 B", zalloc),
        ("kern: zone free, 64 B", zfree),
        ("kern: 1000 x alloc then 1000 x free, 64 B", thousand),
    ]);
    SYSTEM.validate().expect("a sound heap");
}
