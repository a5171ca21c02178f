//! The kernel's address space: page tables, ranges that grow, and telling other CPUs to forget a mapping.
//!
//! ```text
//! ffff_8000_0000_0000  DIRECT   all memory, as it is
//! ffff_c000_0000_0000  HEAP     what the allocator hands out
//! ffff_c800_0000_0000  WORDS    a word for each of its pages
//! ffff_d000_0000_0000  META     the allocator's own records
//! ffff_d800_0000_0000  STATS    the statistics object
//! ffff_e000_0000_0000  STACKS   of threads, each with an unmapped page below
//! ffff_ffff_8000_0000           the kernel's text and data
//! ffff_ffff_c000_0000  MODULES  loaded modules
//! ```
//!
//! A shootdown waits for every CPU to answer. A CPU that spins for a lock with interrupts masked answers from its loop, and
//! masks are short otherwise, so the caller may hold locks.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use platform::{Lock, RawLock};

use crate::spin::{self, SpinLock};
use crate::{breaks, cpu, frames, interrupts, numa};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// Memory as it is: physical address 0.
pub(crate) const DIRECT: usize = 0xffff_8000_0000_0000;
/// What the allocator hands out.
pub(crate) const HEAP: usize = 0xffff_c000_0000_0000;
/// A word for each page of the heap.
pub(crate) const WORDS: usize = 0xffff_c800_0000_0000;
/// The allocator's own records.
pub(crate) const META: usize = 0xffff_d000_0000_0000;
/// The statistics object.
pub(crate) const STATS: usize = 0xffff_d800_0000_0000;
/// Stacks of threads.
pub(crate) const STACKS: usize = 0xffff_e000_0000_0000;
/// Loaded modules: within 2 GiB of the kernel, so that both reach each other by 32 bits.
pub(crate) const MODULES: usize = 0xffff_ffff_c000_0000;
/// Where the kernel is linked; physical address 0.
pub(crate) const KERNEL: usize = 0xffff_ffff_8000_0000;

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const UNCACHED: u64 = 0x10;
const LARGE: u64 = 0x80;
const NO_EXECUTE: u64 = 1 << 63;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

static TABLES: Lock<SpinLock, ()> = Lock::new(());

unsafe extern "C" {
    static pml4: [u64; 512];
}

/// The entry of a page at one level (0 is the last), with the tables above it made if `make`.
fn entry(addr: usize, level: u32, make: bool) -> Option<*mut u64> {
    let mut table = (&raw const pml4) as usize - KERNEL;
    for depth in (level..4).rev() {
        let entry = ((DIRECT + table) as *mut u64).wrapping_add(addr >> (12 + 9 * depth) & 511);
        if depth == level {
            return Some(entry);
        }
        // SAFETY: an entry of a table in memory; the caller holds the lock of the tables.
        unsafe {
            if *entry & PRESENT == 0 {
                if !make {
                    return None;
                }
                *entry = frames::alloc()? as u64 | PRESENT | WRITE;
            }
            if *entry & LARGE != 0 {
                return None;
            }
            table = (*entry & FRAME) as usize;
        }
    }
    None
}

/// Drops the mapping that booting needed at low addresses, so that a null pointer faults, and caches no device registers. Other CPUs
/// [forget](cpu::forget_all) it themselves.
pub(crate) fn finish_boot() {
    const DEVICES: core::ops::Range<usize> = 0xfec0_0000..0x1_0000_0000;
    const LARGE_PAGE: usize = 2 << 20;
    let _tables = TABLES.lock();
    for addr in DEVICES.step_by(LARGE_PAGE) {
        if let Some(entry) = entry(DIRECT + addr, 1, false) {
            // SAFETY: the boot code's entry of this large page; the lock is held.
            unsafe { *entry |= UNCACHED };
        }
    }
    if let Some(low) = entry(0, 3, false) {
        // SAFETY: as above.
        unsafe { *low = 0 };
    }
    cpu::forget_all();
}

/// Puts memory of zeros behind every page of the range that has none. False when there is too little, and then perhaps some pages
/// have theirs.
pub(crate) fn back(addr: usize, bytes: usize) -> bool {
    /// No machine that this kernel boots on has more.
    const MOST_PAGES: usize = (4 << 30) / PAGE;
    let Some(last) = addr.checked_add(bytes).filter(|last| last - addr <= MOST_PAGES * PAGE) else { return false };
    let first = addr / PAGE * PAGE;
    // Tables come on top; a request that is far too large takes nothing from others on its way to failure.
    if (last - first) / PAGE > frames::available() + range_backed(first, last) {
        return false;
    }
    (first..last).step_by(PAGE).all(|page| {
        let _tables = TABLES.lock();
        let Some(entry) = entry(page, 0, true) else { return false };
        // SAFETY: the entry of our page; the lock is held.
        unsafe {
            if *entry & PRESENT == 0 {
                let Some(frame) = frames::alloc() else { return false };
                *entry = frame as u64 | PRESENT | WRITE | NO_EXECUTE;
            }
        }
        true
    })
}

/// What pages are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading and writing: as all pages are unless told otherwise.
    Write,
    /// Reading.
    Read,
    /// Reading and running.
    Execute,
}

/// Allows on the backed pages of a range this and nothing else, once no CPU remembers otherwise.
pub(crate) fn protect(addr: usize, bytes: usize, access: Access) {
    let bits = match access {
        Access::Write => WRITE | NO_EXECUTE,
        Access::Read => NO_EXECUTE,
        Access::Execute => 0,
    };
    for page in (addr..addr + bytes).step_by(PAGE) {
        let _tables = TABLES.lock();
        if let Some(entry) = entry(page, 0, false) {
            // SAFETY: the entry of a page of the caller's; the lock is held.
            unsafe { *entry = *entry & !(WRITE | NO_EXECUTE) | bits };
        }
    }
    shoot_down(addr, bytes);
}

/// Whether what lies at an address of one of the ranges can run.
pub(crate) fn is_executable(addr: usize) -> bool {
    let _tables = TABLES.lock();
    // SAFETY: an entry; the lock is held.
    entry(addr, 0, false).is_some_and(|entry| unsafe { *entry } & (PRESENT | NO_EXECUTE) == PRESENT)
}

/// Pages of a range that have memory.
fn range_backed(first: usize, last: usize) -> usize {
    (first..last).step_by(PAGE).filter(|&page| physical(page).is_some()).count()
}

/// Physical address behind a page of one of the ranges.
pub(crate) fn physical(addr: usize) -> Option<usize> {
    let _tables = TABLES.lock();
    // SAFETY: an entry; the lock is held.
    let entry = unsafe { *entry(addr, 0, false)? };
    (entry & PRESENT != 0).then_some((entry & FRAME) as usize + addr % PAGE)
}

/// Takes the memory from behind a range, once no CPU can reach it any more.
pub(crate) fn unback(addr: usize, bytes: usize) {
    let each = |visit: &dyn Fn(&mut u64)| {
        for page in (addr..addr + bytes).step_by(PAGE) {
            let _tables = TABLES.lock();
            if let Some(entry) = entry(page, 0, false) {
                // SAFETY: the entry of a page of the caller's; the lock is held.
                visit(unsafe { &mut *entry });
            }
        }
    };
    each(&|entry| *entry &= !PRESENT);
    shoot_down(addr, bytes);
    each(&|entry| {
        if *entry & FRAME != 0 {
            frames::free((*entry & FRAME) as usize);
            *entry = 0;
        }
    });
}

/// Puts frames of a domain behind pages that nobody uses yet, as far as the domain has some. What the pages contain is lost.
pub(crate) fn place(addr: usize, bytes: usize, domain: usize) {
    // Frames on their way out, linked through their first word, 0 at the end.
    let mut old = 0;
    for page in (addr..addr + bytes).step_by(PAGE) {
        if physical(page).is_none_or(|frame| numa::of_memory(frame) == domain) {
            continue;
        }
        let Some(new) = frames::alloc_of(domain) else { break };
        let _tables = TABLES.lock();
        if let Some(entry) = entry(page, 0, false) {
            // SAFETY: the entry of the caller's page, with the lock held; the old frame's contents are nobody's.
            unsafe {
                let frame = (*entry & FRAME) as usize;
                *((DIRECT + frame) as *mut usize) = old;
                old = frame;
                *entry = new as u64 | *entry & !FRAME;
            }
        }
    }
    if old != 0 {
        shoot_down(addr, bytes);
    }
    while old != 0 {
        let frame = old;
        // SAFETY: linked above, and still ours.
        old = unsafe { *((DIRECT + frame) as *const usize) };
        frames::free(frame);
    }
}

/// The one shootdown under way: its range, and a bit for each CPU that has yet to answer.
static SHOOTDOWN: SpinLock = SpinLock::INIT;
static RANGE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
static PENDING: AtomicU32 = AtomicU32::new(0);

/// CPUs that have to answer, a bit each.
static ATTENDING: AtomicU32 = AtomicU32::new(0);

/// From now on this CPU is told what to forget, or no more: then it must forget all before it is again.
pub(crate) fn set_attending(attends: bool) {
    SHOOTDOWN.lock();
    let own = 1 << cpu::id();
    if attends {
        ATTENDING.fetch_or(own, Ordering::SeqCst);
    } else {
        ATTENDING.fetch_and(!own, Ordering::SeqCst);
    }
    // SAFETY: 1. taken above.
    unsafe { SHOOTDOWN.unlock() };
}

/// Makes every CPU forget the mappings of a range, and waits until all have.
fn shoot_down(addr: usize, bytes: usize) {
    spin::mask();
    forget(addr, bytes);
    if !breaks::NO_SHOOTDOWN.load(Ordering::Relaxed) {
        SHOOTDOWN.lock();
        RANGE[0].store(addr, Ordering::Relaxed);
        RANGE[1].store(bytes, Ordering::Relaxed);
        PENDING.store(ATTENDING.load(Ordering::SeqCst) & !(1 << cpu::id()), Ordering::Release);
        interrupts::send_others(interrupts::SHOOTDOWN);
        while PENDING.load(Ordering::Acquire) != 0 {
            core::hint::spin_loop();
        }
        // SAFETY: 1. taken above.
        unsafe { SHOOTDOWN.unlock() };
    }
    spin::unmask();
}

fn forget(addr: usize, bytes: usize) {
    /// Past so many pages all is forgotten at once.
    const MOST_SINGLE: usize = 64;
    if bytes / PAGE > MOST_SINGLE {
        cpu::forget_all();
    } else {
        (addr..addr + bytes).step_by(PAGE).for_each(cpu::forget_page);
    }
}

/// Answers a shootdown, if this CPU has yet to: in its handler, or while it waits with interrupts masked.
pub(crate) fn answer_shootdown() {
    if PENDING.load(Ordering::Acquire) == 0 {
        return;
    }
    spin::mask();
    let own = 1 << cpu::id();
    if PENDING.load(Ordering::Acquire) & own != 0 {
        forget(RANGE[0].load(Ordering::Relaxed), RANGE[1].load(Ordering::Relaxed));
        PENDING.fetch_and(!own, Ordering::Release);
    }
    spin::unmask();
}
