//! The port: [`Platform`] for a Linux process, the one [`System`], and its boot.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use kern::malloc::Malloc;
use kern::{Boot, ObjectLayout, System, TypeId};
use platform::{Extent, Lock, MisuseReport, PageKind, Platform, SlotTable};

use crate::lock::FutexLock;
use crate::{elf, fork, object, region, report, section, sys, tunables};

/// A Linux process.
#[derive(Clone, Copy, Debug)]
pub struct Linux;

/// The allocator of this process.
pub static SYSTEM: System<Linux> = System::new();

/// malloc(9) of this process, over [`SYSTEM`].
pub static MALLOC: Malloc<'static, Linux> = Malloc::new(&SYSTEM);

// SAFETY: 1. see `section`. 2. and 3. fresh anonymous mappings; MADV_DONTNEED zeroes private pages.
unsafe impl Platform for Linux {
    type Lock = FutexLock;

    fn bind_slots(table: SlotTable) {
        section::bind(table);
    }

    #[inline(always)]
    fn enter() -> usize {
        section::enter()
    }

    fn enter_other() -> usize {
        section::enter_other()
    }

    #[inline(always)]
    unsafe fn leave(slot: usize) {
        // SAFETY: 1. passed on.
        unsafe { section::leave(slot) }
    }

    unsafe fn claim_shared(slot: usize) {
        // SAFETY: 1. passed on.
        unsafe { section::claim_shared(slot) }
    }

    unsafe fn claim_remote(slot: usize) -> bool {
        // SAFETY: 1. passed on.
        unsafe { section::claim_remote(slot) }
    }

    unsafe fn claim_all(table: &SlotTable) -> bool {
        // SAFETY: 1. passed on.
        unsafe { section::claim_all(table) }
    }

    fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent> {
        let extent = region::extend_heap(min_bytes, want_bytes);
        publish();
        extent
    }

    fn extend_meta(min_bytes: usize) -> Option<Extent> {
        let extent = region::extend_meta(min_bytes);
        publish();
        extent
    }

    unsafe fn discard(addr: usize, bytes: usize) -> bool {
        // SAFETY: 1. passed on.
        unsafe { sys::discard(addr, bytes) }
    }

    unsafe fn discard_table(addr: usize, bytes: usize) {
        // Refused or not: it reads as zero.
        // SAFETY: 1. passed on.
        unsafe { sys::discard(addr, bytes) };
    }

    unsafe fn move_pages(from: usize, to: usize, bytes: usize) -> bool {
        /// Every move splits mappings, of which a process has 65,530: past this many, copy.
        const MOST_MOVES: u32 = 4096;
        static MOVES: AtomicU32 = AtomicU32::new(0);
        if MOVES.load(Ordering::Relaxed) >= MOST_MOVES {
            return false;
        }
        MOVES.fetch_add(1, Ordering::Relaxed);
        // SAFETY: 1. passed on.
        unsafe { sys::move_pages(from, to, bytes) }
    }

    unsafe fn set_page_kind(addr: usize, bytes: usize, kind: PageKind) -> bool {
        // SAFETY: 1. passed on. Where neither was changed nothing splits, and the calls cost little.
        if !unsafe { sys::protect(addr, bytes, kind.executable) } {
            return false;
        }
        // A hint: pages of huge pages' file systems and the like are dumped.
        sys::dump(addr, bytes, kind.dumped);
        true
    }

    fn now_ns() -> u64 {
        sys::monotonic_ns()
    }

    fn wait(word: &AtomicU32, seen: u32) {
        sys::futex_wait(word, seen);
    }

    fn wake_all(word: &AtomicU32) {
        sys::futex_wake(word, i32::MAX as usize);
    }

    #[cold]
    fn out_of_memory() {
        const ENOMEM: i32 = 12;
        // SAFETY: libc's word of this thread.
        unsafe { *__errno_location() = ENOMEM };
    }

    fn misuse(misuse: &MisuseReport) {
        report::misuse(misuse);
    }

    #[cold]
    fn warning(text: &[u8]) {
        let mut line = kern::text::Text::<512>::new();
        line.push(b"kernmalloc: ").push(text).push(b"\n");
        sys::write(2, line.as_bytes());
    }
}

unsafe extern "C" {
    fn __errno_location() -> *mut i32;
}

fn publish() {
    let header = object::header();
    if !header.is_null() {
        // SAFETY: mapped for good.
        object::publish_regions(unsafe { &*header });
    }
}

/// CPUs this machine may ever have: `possible` of sysfs, "0-3" or "0-3,8-11".
fn possible_cpus() -> usize {
    let mut text = [0u8; 256];
    let Ok(fd) = sys::open(b"/sys/devices/system/cpu/possible\0", sys::O_RDONLY) else { return FALLBACK_CPUS };
    let len = sys::read(fd, &mut text).unwrap_or(0);
    sys::close(fd);
    last_cpu(&text[..len]).map_or(FALLBACK_CPUS, |last| last + 1)
}

/// CPUs assumed where sysfs is not there; beyond it threads share slots.
const FALLBACK_CPUS: usize = 64;
/// More identities than this share.
const MOST_IDS: usize = 4096;

/// The last number of a CPU list.
fn last_cpu(list: &[u8]) -> Option<usize> {
    let digits = list.iter().rposition(u8::is_ascii_digit)? + 1;
    let start = list[..digits].iter().rposition(|byte| !byte.is_ascii_digit()).map_or(0, |at| at + 1);
    list[start..digits].iter().try_fold(0usize, |sum, digit| sum.checked_mul(10)?.checked_add((digit - b'0').into()))
}

struct Booting {
    done: bool,
}

static BOOT: Lock<FutexLock, Booting> = Lock::new(Booting { done: false });

/// Makes the allocator, if nobody has. False when the system gives no memory for it.
pub fn boot() -> bool {
    if SYSTEM.is_booted() {
        return true;
    }
    let mut booting = BOOT.lock();
    if !booting.done {
        booting.done = boot_locked();
    }
    booting.done
}

#[cold]
pub(crate) fn boot_on_first_use() -> bool {
    boot()
}

fn boot_locked() -> bool {
    tunables::load();
    elf::find_user_clock(tunables::vdso_base());
    region::place();
    let cpus = possible_cpus().min(MOST_IDS);
    let (kind, ids) = section::prepare(tunables::rseq_feature_size(), cpus, tunables::rseq_allowed());
    // Two rows suffice where CPUs are many: the chance that both holders of one CPU are preempted falls with each.
    let rows = if ids > 64 { 2 } else { section::ROWS };
    let layout = ObjectLayout { slots: ids * rows + 1, types: types_for(ids * rows), libs: MAX_LIBS };
    let Some(header) = object::make(&layout) else { return false };
    // SAFETY: a fresh object; nobody reads it before its magic is stored.
    unsafe {
        object::identify(header);
        (*header).slot_kind.store(kind as u32, Ordering::Relaxed);
    }
    let boot = Boot {
        heap_base: region::heap_base(),
        table: region::table_base(),
        ids,
        rows,
        // SAFETY: just mapped.
        stats: unsafe { NonNull::new_unchecked(header.cast::<u8>()) },
    };
    // SAFETY: 1. under the boot lock, once. 2. as computed.
    let booted = unsafe { SYSTEM.boot(&boot) };
    if booted {
        tunables::write_controls(&SYSTEM.header().control);
        if tunables::numzones() > 1 {
            SYSTEM.set_numzones(tunables::numzones());
        }
        MALLOC.apply_tunables(sys::physical_bytes(), &tunables::sizing());
        SYSTEM.on_settings(|| MALLOC.obey_settings());
        fork::register();
    }
    booted
}

/// Most libraries that have a row of their own.
pub(crate) const MAX_LIBS: usize = 8192;

/// Types there is room for: all that an item's tag can name, fewer where thousands of slots would make the object's address
/// space large, or where a limit on address space makes every megabyte count.
fn types_for(slots: usize) -> usize {
    const BUDGET_BYTES: usize = 1 << 30;
    let by_budget = BUDGET_BYTES / (slots * size_of::<abi::TypeLine>());
    let by_limit = if address_space_is_limited() { 4096 } else { TypeId::MAX };
    by_budget.min(by_limit).clamp(1024, TypeId::MAX)
}

fn address_space_is_limited() -> bool {
    sys::address_space_limit().is_some()
}

/// The program is over: last figures, and the object says so. Calls after this still work.
pub fn finish() {
    SYSTEM.publish_zones();
    object::finish();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpu_of_a_list() {
        assert_eq!(last_cpu(b"0-3\n"), Some(3));
        assert_eq!(last_cpu(b"0-3,8-127\n"), Some(127));
        assert_eq!(last_cpu(b"0"), Some(0));
        assert_eq!(last_cpu(b""), None);
    }
}
