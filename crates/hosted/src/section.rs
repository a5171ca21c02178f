//! The per-CPU critical section of a process: a lock word per slot, taken by a restartable sequence.
//!
//! The kernel restarts a sequence (rseq(2)) whose thread is preempted, migrated or signalled inside it. Ours reads which CPU
//! it runs on, looks at that CPU's lock word and stores 1: the store is the last instruction, so it happens only if nothing
//! of this CPU ran in between. No instruction locks the bus. The holder may be preempted *after* it took
//! the word; then the next rows of slots are tried, and last the slot that all share.
//!
//! Where the kernel numbers the running threads of a process (`mm_cid`, Linux 6.3) that number stands for the CPU: it is
//! dense, so a single thread uses one slot wherever it runs.
//!
//! A slot is taken from another CPU by compare-and-swap followed by membarrier(2), which restarts all sequences under way:
//! whichever had seen the word free looks again, and one that stored in between is seen by the claimant, who
//! then waits its turn.
//!
//! Without rseq (old glibc, seccomp) a thread's slot follows from its control block's address and is taken by
//! compare-and-swap.
//!
//! A program's first thread has the first slot *on lease*: it takes it by setting a flag of its own beside the lock word, half the
//! instructions of a sequence, and no other thread takes that slot. Whoever wants it first ends the lease, for good: it
//! strikes the owner out, calls membarrier, and has the slot once the flag is clear. The owner looks after it has set the flag
//! whether it still is the owner (Dekker's exclusion, with the barrier on one side only; the model is `abi`'s `loom_lease.rs`). Threads are told
//! apart by their pointers, so nothing is to be done when one ends. A signal handler finds the flag set and takes another slot.
//!
//! [`HOT`] reads as zero in the child of a fork that ran no handlers: then no slot can be had, and
//! [`crate::fork`] adopts the child.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence};

use platform::SlotTable;

use crate::sys;

/// Slots that each CPU has. Two to four leave nearly no attempt refused in the worst case of threads that do nothing
/// else; memory is touched only by rows that are used.
pub(crate) const ROWS: usize = 4;

/// What the sequence reads, on a page of its own that a fork wipes.
#[repr(C, align(4096))]
pub(crate) struct Hot {
    /// A load is held up by an earlier store to another page at the same offset; slots begin with their lock word, so
    /// what is read before every section stays clear of the first offsets of a page.
    clear: [u8; 2112],
    /// Thread pointer of the thread that has the leased slot, 0 when the lease was ended.
    owner: AtomicUsize,
    /// The slot on lease, which no sequence takes; 0 when there is none.
    leased: AtomicUsize,
    /// CPU identities, 0 while no sequence may run.
    limit: AtomicU32,
    /// 1 with rseq, 2 with thread slots, 0 before boot (and in a child that was not adopted yet).
    mode: AtomicU32,
    /// From the thread pointer to the rseq area.
    area: AtomicUsize,
    /// From the thread pointer to the CPU identity.
    id: AtomicUsize,
    base: AtomicUsize,
    /// From a row to the next, bytes.
    row_bytes: AtomicUsize,
    /// Behind the last row.
    end: AtomicUsize,
    rest: [u8; 4096 - 2112 - 64],
}

/// See [`Hot`]. Zero at start, hence in anonymous memory.
pub(crate) static HOT: Hot = Hot {
    clear: [0; 2112],
    owner: AtomicUsize::new(0),
    leased: AtomicUsize::new(0),
    limit: AtomicU32::new(0),
    mode: AtomicU32::new(0),
    area: AtomicUsize::new(0),
    id: AtomicUsize::new(0),
    base: AtomicUsize::new(0),
    row_bytes: AtomicUsize::new(0),
    end: AtomicUsize::new(0),
    rest: [0; 4096 - 2112 - 64],
};

/// What [`HOT`] is set from, also again in an adopted child.
struct Setup {
    mode: AtomicU32,
    area: AtomicUsize,
    id: AtomicUsize,
    base: AtomicUsize,
    stride: AtomicUsize,
    ids: AtomicUsize,
    rows: AtomicUsize,
}

static SETUP: Setup = Setup {
    mode: AtomicU32::new(0),
    area: AtomicUsize::new(0),
    id: AtomicUsize::new(0),
    base: AtomicUsize::new(0),
    stride: AtomicUsize::new(0),
    ids: AtomicUsize::new(0),
    rows: AtomicUsize::new(0),
};

const FREE: u32 = 0;
const HELD: u32 = 1;

/// A slot's first words.
#[repr(C)]
struct Head {
    /// Who holds the slot: [`FREE`], [`HELD`], or a claimant's word.
    lock: AtomicU32,
    /// 1 while its owner holds a slot on lease.
    flag: AtomicU32,
}

/// # Safety
/// 1. `slot` is one of the bound table.
unsafe fn head<'a>(slot: usize) -> &'a Head {
    // SAFETY: 1.: the first 64 bits are the platform's.
    unsafe { &*(slot as *const Head) }
}

/// The word of a claimant: each has its own, or two that claim at once could not tell whose claim survived.
fn claim_word() -> u32 {
    sys::gettid() | 1 << 31
}

/// Which identity slots follow; the values of `abi::Header::slot_kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotKind {
    Concurrency = 1,
    Cpu = 2,
    Thread = 3,
}

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(".weak __rseq_offset", ".weak __rseq_size");

/// glibc's word for where a thread's rseq area is, or nothing (before 2.35, or another libc).
#[cfg(target_arch = "x86_64")]
fn rseq_offset() -> Option<usize> {
    let (offset, size): (*const isize, *const u32);
    // SAFETY: loads two addresses from the global offset table; 0 when the symbols are not there.
    unsafe {
        core::arch::asm!("mov {}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {}, qword ptr [rip + __rseq_size@GOTPCREL]", out(reg) offset, out(reg) size,
            options(nostack, readonly, pure));
    }
    if offset.is_null() || size.is_null() {
        return None;
    }
    // SAFETY: glibc's, constant once the program runs. Size 0 means that the registration failed.
    unsafe { (*size != 0).then_some(*offset as usize) }
}

/// Decides how slots are taken and for how many identities. `feature_size` is the kernel's `AT_RSEQ_FEATURE_SIZE`, or 0.
pub(crate) fn prepare(feature_size: usize, cpus: usize, rseq_allowed: bool) -> (SlotKind, usize) {
    #[cfg(target_arch = "x86_64")]
    if rseq_allowed
        && let Some(area) = rseq_offset()
        && sys::membarrier_register_rseq()
    {
        const CPU_ID: usize = 4;
        const MM_CID: usize = 24;
        let concurrency = feature_size >= MM_CID + 4;
        SETUP.mode.store(1, Ordering::Relaxed);
        SETUP.area.store(area, Ordering::Relaxed);
        SETUP.id.store(area.wrapping_add(if concurrency { MM_CID } else { CPU_ID }), Ordering::Relaxed);
        return (if concurrency { SlotKind::Concurrency } else { SlotKind::Cpu }, cpus);
    }
    let _ = (feature_size, rseq_allowed);
    SETUP.mode.store(2, Ordering::Relaxed);
    (SlotKind::Thread, (2 * cpus).max(8))
}

/// From now on slots can be taken.
pub(crate) fn bind(table: SlotTable) {
    SETUP.base.store(table.base, Ordering::Relaxed);
    SETUP.stride.store(table.stride_bytes, Ordering::Relaxed);
    SETUP.ids.store(table.ids, Ordering::Relaxed);
    SETUP.rows.store(table.rows, Ordering::Relaxed);
    sys::wipe_on_fork(&raw const HOT as usize, size_of::<Hot>());
    lease();
    arm();
}

/// Gives the first slot to the calling thread, if nobody has it. Only when no other thread can enter.
pub(crate) fn lease() {
    // Only sequences pass a leased slot by.
    if SETUP.mode.load(Ordering::Relaxed) != 1 {
        return;
    }
    let slot = SETUP.base.load(Ordering::Relaxed);
    // SAFETY: 1. the first of the table.
    let head = unsafe { head(slot) };
    if head.lock.load(Ordering::Relaxed) == FREE && head.flag.load(Ordering::Relaxed) == FREE {
        HOT.leased.store(slot, Ordering::Relaxed);
        HOT.owner.store(thread_pointer(), Ordering::Release);
    }
}

/// How far the end of a lease has come.
#[derive(PartialEq, Eq)]
enum Ended {
    /// The slot is as any other.
    Yes,
    /// Its owner holds it for a moment yet.
    NotYet,
    /// The kernel refuses the barrier.
    Refused,
}

/// Ends the lease for good, for a thread that is not its owner.
fn end_lease(slot: usize) -> Ended {
    HOT.owner.store(0, Ordering::SeqCst);
    // After it the owner has either set its flag, which we see, or will find that it is none any more.
    if !sys::membarrier_rseq() {
        return Ended::Refused;
    }
    // SAFETY: 1. what is on lease is a slot of the table.
    if unsafe { head(slot) }.flag.load(Ordering::Acquire) != FREE {
        return Ended::NotYet;
    }
    HOT.leased.store(0, Ordering::Release);
    Ended::Yes
}

/// The leased slot for its owner, by the flag, outside of the fast path. `None` when the caller is not the owner, or holds it already.
fn enter_lease() -> Option<usize> {
    let owner = thread_pointer();
    let slot = HOT.leased.load(Ordering::Relaxed);
    if slot == 0 || HOT.owner.load(Ordering::Relaxed) != owner {
        return None;
    }
    // SAFETY: 1. what is on lease is a slot of the table.
    let flag = unsafe { &head(slot).flag };
    if flag.load(Ordering::Relaxed) != FREE {
        return None;
    }
    flag.store(HELD, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    if HOT.owner.load(Ordering::SeqCst) != owner {
        flag.store(FREE, Ordering::Release);
        return None;
    }
    Some(slot)
}

/// Sets [`HOT`], at boot and in a fork child.
pub(crate) fn arm() {
    let mode = SETUP.mode.load(Ordering::Relaxed);
    let base = SETUP.base.load(Ordering::Relaxed);
    let row_bytes = SETUP.ids.load(Ordering::Relaxed) * SETUP.stride.load(Ordering::Relaxed);
    HOT.base.store(base, Ordering::Relaxed);
    HOT.row_bytes.store(row_bytes, Ordering::Relaxed);
    HOT.end.store(base + row_bytes * SETUP.rows.load(Ordering::Relaxed), Ordering::Relaxed);
    HOT.id.store(SETUP.id.load(Ordering::Relaxed), Ordering::Relaxed);
    HOT.mode.store(mode, Ordering::Relaxed);
    let ids = if mode == 1 { SETUP.ids.load(Ordering::Relaxed) as u32 } else { 0 };
    HOT.limit.store(ids, Ordering::Relaxed);
    // Last: a sequence begins by looking whether there is an area.
    let area = if mode == 1 { SETUP.area.load(Ordering::Relaxed) } else { 0 };
    HOT.area.store(area, Ordering::Release);
}

/// Whether this is the child of a fork whose handlers did not run: bound once, and wiped since.
pub(crate) fn is_orphan() -> bool {
    HOT.mode.load(Ordering::Relaxed) == 0 && SETUP.base.load(Ordering::Relaxed) != 0
}

/// A slot of the running CPU, of the first row that has it free, or 0. `$first` is tried before the sequence; it goes on at 3 with a slot, else
/// at 6. `$leased` says what is done about a slot on lease: on to the next row (2), or no slot at all (5).
#[cfg(target_arch = "x86_64")]
macro_rules! attempt {
    ($leased:literal, $($first:literal),*) => {{
        let slot: usize;
        // Between 2 and 8 the thread is on the CPU whose number it read, or starts again at 6 (the kernel jumps to 4 on any
        // event). The number is below the limit, so the address is a slot of the first row, and then of the next ones up to the end.
        core::arch::asm!(
            ".pushsection __rseq_cs, \"aw\"", ".balign 32",
            "9: .long 0, 0", ".quad 2f, 8f-2f, 4f", ".popsection",
            $($first,)*
            "3:",
            ".pushsection .text.kernmalloc_section, \"ax\"",
            // Held by a thread that was preempted: the next row's.
            "2: add {slot}, qword ptr [rip + {hot} + {row_bytes}]",
            "cmp {slot}, qword ptr [rip + {hot} + {end}]",
            "jb 7f",
            "5: xor {slot:e}, {slot:e}",
            "jmp 3b",
            "6: mov {area}, qword ptr [rip + {hot} + {at} + 8]",
            "test {area}, {area}", // none: before boot, without rseq, in a child that was not adopted
            "jz 5b",
            "lea {slot}, [rip + 9b]",
            "mov qword ptr fs:[{area} + 8], {slot}", // arm: rseq->rseq_cs
            "mov {area}, qword ptr [rip + {hot} + {at} + 16]",
            "mov {slot:e}, dword ptr fs:[{area}]", // which CPU
            "cmp {slot:e}, dword ptr [rip + {hot} + {at}]",
            "jae 5b",
            "shl {slot}, {shift}",
            "add {slot}, qword ptr [rip + {hot} + {at} + 24]",
            "7: cmp dword ptr [{slot}], 0",
            "jne 2b",
            "cmp {slot}, qword ptr [rip + {hot} + {at} - 8]", // on lease
            concat!("je ", $leased),
            "mov dword ptr [{slot}], 1", // commit
            "8: jmp 3b",
            ".byte 0x0f, 0xb9, 0x3d", ".long 0x53053053", // the signature that the kernel wants before 4
            "4: jmp 6b",
            "21: mov dword ptr [{slot} + 4], 0", // the lease was ended under us
            "jmp 6b",
            ".popsection",
            area = out(reg) _,
            slot = out(reg) slot,
            hot = sym HOT,
            at = const core::mem::offset_of!(Hot, limit),
            row_bytes = const core::mem::offset_of!(Hot, row_bytes),
            end = const core::mem::offset_of!(Hot, end),
            shift = const kern::SLOT_STRIDE_BYTES.trailing_zeros(),
            options(nostack)
        );
        slot
    }};
}

/// A slot of the CPU we run on, or 0.
#[inline(always)]
pub(crate) fn enter() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the first row starts at the base, the word after the identity's place; before boot the limit is 0. The lease's
        // owner sets its flag, unless it is set, and looks again; else it is the sequence's turn.
        unsafe {
            attempt!(
                "5b",
                "mov {area}, qword ptr fs:[0]",
                "cmp {area}, qword ptr [rip + {hot} + {at} - 16]",
                "jne 6f",
                // What is on lease: the first slot. (`leased` may be 0 by now.)
                "mov {slot}, qword ptr [rip + {hot} + {at} + 24]",
                "cmp dword ptr [{slot} + 4], 0",
                "jne 6f",
                "mov dword ptr [{slot} + 4], 1",
                "cmp {area}, qword ptr [rip + {hot} + {at} - 16]",
                "jne 21f"
            )
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    enter_other()
}

/// All slots of the CPU are held by preempted threads, one is on lease, or there is no rseq.
#[cold]
#[inline(never)]
pub(crate) fn enter_other() -> usize {
    match HOT.mode.load(Ordering::Relaxed) {
        #[cfg(target_arch = "x86_64")]
        1 => {
            contest_lease();
            // SAFETY: the rows are those of the bound table.
            unsafe { attempt!("2b", "jmp 6f") }
        }
        2 => {
            let ids = SETUP.ids.load(Ordering::Relaxed);
            let stride = SETUP.stride.load(Ordering::Relaxed);
            let id = (thread_pointer() >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
            for row in 0..SETUP.rows.load(Ordering::Relaxed) {
                let slot = SETUP.base.load(Ordering::Relaxed) + (row * ids + id % ids) * stride;
                // SAFETY: a slot of the bound table.
                if unsafe { try_claim(slot, HELD) } {
                    return slot;
                }
            }
            0
        }
        _ if is_orphan() => {
            crate::fork::adopt();
            enter_other()
        }
        _ => {
            // Before boot: the first request makes the allocator.
            if crate::port::boot_on_first_use() { enter_other() } else { 0 }
        }
    }
}

/// Ends the lease if it is what keeps this thread from its CPU's first slot.
#[cfg(target_arch = "x86_64")]
fn contest_lease() {
    let slot = HOT.leased.load(Ordering::Relaxed);
    if slot == 0 || HOT.owner.load(Ordering::Relaxed) == thread_pointer() {
        return;
    }
    let id: u32;
    // SAFETY: the area of this thread, as a sequence reads it; what is on lease is the first slot, the identity 0's.
    unsafe {
        core::arch::asm!("mov {:e}, dword ptr fs:[{}]", out(reg) id, in(reg) HOT.id.load(Ordering::Relaxed),
            options(nostack, readonly));
    }
    if id == 0 {
        end_lease(slot);
    }
}

fn thread_pointer() -> usize {
    let pointer: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the first word of the thread control block is its own address (System V ABI, TLS variant II).
    unsafe {
        core::arch::asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(nostack, readonly, pure));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, nomem, pure));
    }
    pointer
}

/// # Safety
/// 1. `slot` is one of the bound table.
unsafe fn try_claim(slot: usize, how: u32) -> bool {
    // SAFETY: 1.
    let word = unsafe { &head(slot).lock };
    word.compare_exchange(FREE, how, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// # Safety
/// 1. The caller holds `slot`.
#[inline(always)]
pub(crate) unsafe fn leave(slot: usize) {
    compiler_fence(Ordering::Release);
    // Lock and flag at once, whichever it was taken by: while one is the holder's, nobody else writes the other, but for an owner
    // that finds its lease ended and clears its flag.
    // SAFETY: 1. A plain store: on x86 no earlier access moves behind it.
    unsafe { (*(slot as *const AtomicU64)).store(u64::from(FREE), Ordering::Release) };
}

/// # Safety
/// 1. `slot` is the shared slot, which no sequence takes.
pub(crate) unsafe fn claim_shared(slot: usize) {
    // SAFETY: 1.
    while !unsafe { try_claim(slot, HELD) } {
        sys::yield_cpu();
    }
}

/// # Safety
/// 1. `slot` is one of the bound table.
pub(crate) unsafe fn claim_remote(slot: usize) -> bool {
    while HOT.leased.load(Ordering::Acquire) == slot {
        if enter_lease().is_some() {
            return true;
        }
        if HOT.owner.load(Ordering::Relaxed) == thread_pointer() {
            // Below us on the stack: never, unless a signal handler asks.
            return false;
        }
        match end_lease(slot) {
            Ended::Yes => {}
            Ended::NotYet => sys::yield_cpu(),
            Ended::Refused => return false,
        }
    }
    // SAFETY: 1.
    let word = unsafe { &head(slot).lock };
    let claimed = claim_word();
    loop {
        // SAFETY: 1.
        while !unsafe { try_claim(slot, claimed) } {
            sys::yield_cpu();
        }
        if HOT.mode.load(Ordering::Relaxed) != 1 {
            return true;
        }
        if !sys::membarrier_rseq() {
            // Only if it is still ours: a sequence may have stored over it, and then its holder lets go of it.
            let _ = word.compare_exchange(claimed, FREE, Ordering::Release, Ordering::Relaxed);
            return false;
        }
        // Every sequence that saw the word free before our exchange has either stored, which we would see here, or
        // starts again and sees ours.
        if word.load(Ordering::Acquire) == claimed {
            return true;
        }
    }
}

/// # Safety
/// 1. `table` is the bound one, and the caller holds no slot of it.
pub(crate) unsafe fn claim_all(table: &SlotTable) -> bool {
    let claimed = claim_word();
    // What is on lease comes first: it stays on lease if it is ours. (Without a barrier it is as with the sequences below.)
    let leased = HOT.leased.load(Ordering::Acquire);
    if leased != 0 {
        // SAFETY: 1.
        unsafe { claim_remote(leased) };
    }
    loop {
        let mut pending = false;
        for index in 0..table.count() {
            if table.slot(index) == leased {
                continue;
            }
            // SAFETY: 1.
            let word = unsafe { &head(table.slot(index)).lock };
            if word.load(Ordering::Relaxed) != claimed {
                // SAFETY: 1.
                while !unsafe { try_claim(table.slot(index), claimed) } {
                    sys::yield_cpu();
                }
                pending = true;
            }
        }
        if !pending {
            return true;
        }
        if HOT.mode.load(Ordering::Relaxed) == 1 && !sys::membarrier_rseq() {
            return true;
        }
    }
}
