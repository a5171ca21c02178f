//! Threads that box in a loop, on our allocator and on others that Rust kernels use; each of those behind what makes it usable
//! there: the spin lock of this kernel, which masks interrupts.

use alloc::alloc::Layout;
use alloc::string::String;
use core::panic::Location;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use ax_sync::interface::{AcquireResult, ContextState, LockMetadata, SpinOps};
use buddy_slab_allocator::interface::BuddySlabIf;
use buddy_slab_allocator::{GlobalAllocator, PerCpuSlab, SlabPoolTrait, StaticSlabPool};
use kern::TypeId;
use platform::Lock;
use slabmalloc::{Allocator as _, LargeObjectPage, ObjectPage, ZoneAllocator};
use talc::{ErrOnOom, Span, Talc};
use testsuite::Host as _;

use crate::serial::println;
use crate::space::PAGE;
use crate::spin::{self, SpinLock};
use crate::suite::Machine;
use crate::{cpu, space, start};

/// Memory for each of the others, taken from ours.
const ARENA_BYTES: usize = 16 << 20;

/// An allocator under measurement.
struct Peer {
    name: &'static str,
    init: fn(NonNull<u8>),
    alloc: fn(Layout) -> *mut u8,
    free: fn(*mut u8, Layout),
}

struct Shared<T>(Lock<SpinLock, T>);

// SAFETY: reached under the lock only; the memory that it points to is its own.
unsafe impl<T> Sync for Shared<T> {}

static TALC: Shared<Talc<ErrOnOom>> = Shared(Lock::new(Talc::new(ErrOnOom)));
static LIST: Shared<linked_list_allocator::Heap> = Shared(Lock::new(linked_list_allocator::Heap::empty()));
static SLAB: Shared<Option<(ZoneAllocator<'static>, usize, usize)>> = Shared(Lock::new(None));
static BUDDY: GlobalAllocator<PAGE> = GlobalAllocator::new();
static BUDDY_SLABS: StaticSlabPool<PAGE, 4> =
    StaticSlabPool::new([PerCpuSlab::new(0), PerCpuSlab::new(1), PerCpuSlab::new(2), PerCpuSlab::new(3)], cpu::id);

struct BuddyPlatform;

#[ax_crate_interface::impl_interface]
impl BuddySlabIf for BuddyPlatform {
    fn virt_to_phys(vaddr: usize) -> usize {
        vaddr
    }

    fn slab_pool() -> &'static dyn SlabPoolTrait {
        &BUDDY_SLABS
    }
}

/// The spin locks inside buddy-slab-allocator; its caller masks interrupts.
struct BuddySpin;

#[ax_crate_interface::impl_interface]
impl SpinOps for BuddySpin {
    fn acquire(
        locked: &AtomicBool,
        _metadata: &LockMetadata,
        _addr: usize,
        _context: u8,
        _subclass: u32,
        _caller: &'static Location<'static>,
    ) -> ContextState {
        while locked.swap(true, Ordering::Acquire) {
            space::answer_shootdown();
            core::hint::spin_loop();
        }
        ContextState::new(0, 0)
    }

    fn try_acquire(
        locked: &AtomicBool,
        _metadata: &LockMetadata,
        _addr: usize,
        _context: u8,
        _subclass: u32,
        _caller: &'static Location<'static>,
    ) -> AcquireResult {
        AcquireResult::new(!locked.swap(true, Ordering::Acquire), ContextState::new(0, 0))
    }

    fn release(locked: &AtomicBool, _addr: usize, _context: u8, _state: ContextState) {
        locked.store(false, Ordering::Release);
    }

    fn force_release(locked: &AtomicBool, _addr: usize, _context: u8) {
        locked.store(false, Ordering::Release);
    }

    fn is_locked(locked: &AtomicBool) -> bool {
        locked.load(Ordering::Relaxed)
    }
}

fn or_null<E>(block: Result<NonNull<u8>, E>) -> *mut u8 {
    block.map_or(core::ptr::null_mut(), NonNull::as_ptr)
}

/// Items, and pages when there are none; the first page is as large as what it serves needs.
fn slab_alloc(layout: Layout) -> *mut u8 {
    let mut slab = SLAB.0.lock();
    let Some((zone, next, end)) = &mut *slab else { return core::ptr::null_mut() };
    if let Ok(block) = zone.allocate(layout) {
        return block.as_ptr();
    }
    let is_large = layout.size() > ZoneAllocator::MAX_BASE_ALLOC_SIZE;
    let bytes = if is_large { size_of::<LargeObjectPage<'_>>() } else { PAGE };
    let page = next.next_multiple_of(bytes);
    if page + bytes > *end {
        return core::ptr::null_mut();
    }
    *next = page + bytes;
    // SAFETY: a page of zeros, aligned to its size, that nobody else has; for good.
    let refilled = unsafe {
        if is_large {
            zone.refill_large(layout, &mut *(page as *mut LargeObjectPage<'static>))
        } else {
            zone.refill(layout, &mut *(page as *mut ObjectPage<'static>))
        }
    };
    if refilled.is_err() { core::ptr::null_mut() } else { or_null(zone.allocate(layout)) }
}

const PEERS: [Peer; 5] = [
    Peer {
        name: "kernmalloc",
        init: |_| (),
        alloc: |layout| start::system().alloc(layout.size(), TypeId::MALLOC),
        // SAFETY: 1. the measurement frees what it allocated, once.
        free: |block, _| unsafe { start::system().free(block, 0) },
    },
    Peer {
        name: "buddy-slab-allocator",
        init: |arena| {
            // SAFETY: the arena is ours, and stays.
            let region = unsafe { core::slice::from_raw_parts_mut(arena.as_ptr(), ARENA_BYTES) };
            // SAFETY: as above.
            unsafe { BUDDY.init(region) }.expect("an arena for buddy-slab-allocator");
        },
        alloc: |layout| {
            spin::mask();
            let block = or_null(BUDDY.alloc(layout));
            spin::unmask();
            block
        },
        free: |block, layout| {
            spin::mask();
            if let Some(block) = NonNull::new(block) {
                // SAFETY: allocated with this layout.
                unsafe { BUDDY.dealloc(block, layout) };
            }
            spin::unmask();
        },
    },
    Peer {
        name: "talc",
        init: |arena| {
            // SAFETY: the arena is ours, and stays.
            let claimed = unsafe { TALC.0.lock().claim(Span::from_base_size(arena.as_ptr(), ARENA_BYTES)) };
            claimed.expect("an arena for talc");
        },
        // SAFETY: the size is not 0.
        alloc: |layout| or_null(unsafe { TALC.0.lock().malloc(layout) }),
        free: |block, layout| {
            if let Some(block) = NonNull::new(block) {
                // SAFETY: allocated with this layout.
                unsafe { TALC.0.lock().free(block, layout) };
            }
        },
    },
    Peer {
        name: "slabmalloc",
        init: |arena| {
            let base = arena.as_ptr() as usize;
            *SLAB.0.lock() = Some((ZoneAllocator::new(), base, base + ARENA_BYTES));
        },
        alloc: slab_alloc,
        free: |block, layout| {
            if let (Some(block), Some((zone, ..))) = (NonNull::new(block), &mut *SLAB.0.lock()) {
                let _ = zone.deallocate(block, layout);
            }
        },
    },
    Peer {
        name: "linked_list_allocator",
        // SAFETY: the arena is ours, and stays.
        init: |arena| unsafe { LIST.0.lock().init(arena.as_ptr(), ARENA_BYTES) },
        alloc: |layout| or_null(LIST.0.lock().allocate_first_fit(layout)),
        free: |block, layout| {
            if let Some(block) = NonNull::new(block) {
                // SAFETY: allocated with this layout.
                unsafe { LIST.0.lock().deallocate(block, layout) };
            }
        },
    },
];

/// Cycles per nanosecond of the timer, in 1024ths.
fn calibrate() -> u64 {
    const TICKS: u64 = 100;
    let ticks = || cpu::now_ns();
    let (ns, cycles) = (ticks(), cpu::cycles());
    while ticks() < ns + TICKS * 1_000_000 {
        core::hint::spin_loop();
    }
    ((cpu::cycles() - cycles) << 10) / (ticks() - ns)
}

/// Threads that box, `held` boxes each at a time. Nanoseconds of the machine per box, and its free.
fn run(host: &Machine, peer: &Peer, threads: usize, rounds: usize, rate: u64) -> Result<u64, String> {
    const LAYOUTS: [Layout; 4] =
        [Layout::new::<[u64; 2]>(), Layout::new::<[u64; 5]>(), Layout::new::<[u64; 13]>(), Layout::new::<[u64; 29]>()];
    const HELD: usize = 8;
    let start = cpu::cycles();
    host.threads(threads, &|number| {
        let mut held = [core::ptr::null_mut::<u8>(); HELD];
        for round in 0..rounds {
            let place = round % HELD;
            if !held[place].is_null() {
                (peer.free)(held[place], LAYOUTS[place % 4]);
            }
            let block = (peer.alloc)(LAYOUTS[place % 4]);
            if block.is_null() {
                return Err(String::from("no memory"));
            }
            // SAFETY: our block, at least a word long.
            unsafe { block.cast::<usize>().write_volatile(number) };
            held[place] = block;
        }
        for (place, block) in held.into_iter().enumerate().filter(|(_, block)| !block.is_null()) {
            (peer.free)(block, LAYOUTS[place % 4]);
        }
        Ok(())
    })?;
    Ok(((cpu::cycles() - start) << 10) / rate / (threads * rounds) as u64)
}

/// Prints a row for each allocator: one thread, and 128.
pub(crate) fn measure(host: &Machine) {
    const ROUNDS: usize = 256_000;
    let rate = calibrate();
    println!("| ns per box and free | 1 thread | 128 threads |");
    println!("| --- | ---: | ---: |");
    for peer in &PEERS {
        if let Some(arena) = NonNull::new(start::system().alloc_zeroed(ARENA_BYTES, TypeId::MALLOC)) {
            (peer.init)(arena);
        }
        let best = |threads: usize| (0..3).map(|_| run(host, peer, threads, ROUNDS / threads, rate)).min();
        println!("| {} | {} | {} |", peer.name, show(best(1)), show(best(128)));
    }
}

fn show(result: Option<Result<u64, String>>) -> String {
    match result {
        Some(Ok(ns)) => alloc::format!("{ns}"),
        Some(Err(why)) => why,
        None => String::new(),
    }
}
