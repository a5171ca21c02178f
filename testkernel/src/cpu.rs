//! What each CPU has for itself: its record, found through GS, its descriptor tables and interrupt stacks; and the few
//! instructions that Rust has no words for.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::{breaks, entry};

/// CPUs there is room for.
pub(crate) const MAX_CPUS: usize = 16;

/// [`Cpu::thread`] while none runs.
pub(crate) const IDLE: u32 = u32::MAX;

/// A CPU's own record. Only its CPU writes; others read counters.
#[repr(C, align(64))]
pub(crate) struct Cpu {
    /// Its own address, at GS:0.
    this: AtomicUsize,
    pub(crate) id: AtomicU32,
    /// Masks not yet taken back, see [`crate::spin::mask`].
    pub(crate) masks: AtomicU32,
    /// Whether the last of them lets interrupts in again.
    pub(crate) unmask_to: AtomicBool,
    /// Address of the allocator's slot of this CPU, 0 before they are bound.
    pub(crate) slot: AtomicUsize,
    /// Whether it takes part, see [`crate::hotplug`].
    pub(crate) power: AtomicU32,
    /// Identity of its local APIC.
    pub(crate) apic: AtomicUsize,
    /// Handlers under way.
    pub(crate) interrupts: AtomicU32,
    /// The thread that runs here, or [`IDLE`].
    pub(crate) thread: AtomicU32,
    pub(crate) ticks: AtomicU64,
}

impl Cpu {
    const fn new() -> Self {
        Self {
            this: AtomicUsize::new(0),
            id: AtomicU32::new(0),
            masks: AtomicU32::new(0),
            unmask_to: AtomicBool::new(false),
            slot: AtomicUsize::new(0),
            power: AtomicU32::new(crate::hotplug::ONLINE),
            apic: AtomicUsize::new(0),
            interrupts: AtomicU32::new(0),
            thread: AtomicU32::new(IDLE),
            ticks: AtomicU64::new(0),
        }
    }
}

pub(crate) static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];
static COUNT: AtomicUsize = AtomicUsize::new(1);

/// CPUs of this machine.
pub(crate) fn count() -> usize {
    COUNT.load(Ordering::Relaxed)
}

pub(crate) fn set_count(count: usize) {
    COUNT.store(count, Ordering::Relaxed);
}

/// The CPU we run on; means something only as long as interrupts are masked.
#[inline]
pub(crate) fn this() -> &'static Cpu {
    let this: *const Cpu;
    // SAFETY: `init` pointed GS at a record whose first word is its own address.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) this, options(nostack, readonly, preserves_flags));
        &*this
    }
}

/// Its number.
#[inline]
pub(crate) fn id() -> usize {
    this().id.load(Ordering::Relaxed) as usize
}

/// Masks interrupts; whether they were on.
#[inline]
pub(crate) fn interrupts_off() -> bool {
    let flags: u64;
    // SAFETY: reads a flag, then clears it; the memory clobber keeps accesses inside.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags & 0x200 != 0
}

/// Lets interrupts in.
#[inline]
pub(crate) fn interrupts_on() {
    // SAFETY: callers hold nothing that a handler may want.
    unsafe { asm!("sti") };
}

/// Whether interrupts are let in.
pub(crate) fn interrupts_enabled() -> bool {
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags & 0x200 != 0
}

/// Time since the first CPU's timer started, in whole ticks of it.
pub(crate) fn now_ns() -> u64 {
    CPUS[0].ticks.load(Ordering::Relaxed) * (1_000_000_000 / u64::from(crate::interrupts::tick_hz()))
}

/// Waits for an interrupt, letting them in.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: the instruction after `sti` runs before any interrupt, so none is missed.
    unsafe { asm!("sti", "hlt") };
}

/// For good, with interrupts masked.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: nothing runs here any more.
        unsafe { asm!("cli", "hlt") };
    }
}

pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: callers name registers of devices of this machine that this kernel owns.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

pub(crate) fn out16(port: u16, value: u16) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: as `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

pub(crate) fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

pub(crate) fn fault_address() -> usize {
    let addr;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) addr, options(nomem, nostack)) };
    addr
}

/// Forgets the mapping of one page on this CPU.
pub(crate) fn forget_page(addr: usize) {
    // SAFETY: costs a walk of the tables at most.
    unsafe { asm!("invlpg [{}]", in(reg) addr, options(nostack)) };
}

/// Forgets all mappings on this CPU.
pub(crate) fn forget_all() {
    // SAFETY: the same tables again.
    unsafe { asm!("mov {r}, cr3", "mov cr3, {r}", r = out(reg) _, options(nostack)) };
}

/// Cycles, for measuring.
#[cfg(feature = "peers")]
pub(crate) fn cycles() -> u64 {
    // SAFETY: reads a counter that every x86-64 has.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[repr(C, packed(4))]
struct Tss {
    reserved0: u32,
    rsp: [u64; 3],
    reserved1: u64,
    stacks: [u64; 7],
    reserved2: u64,
    reserved3: u16,
    io_map: u16,
}

const STACK_BYTES: usize = 16384;

#[repr(C, align(4096))]
struct Stacks([[u8; STACK_BYTES]; 3]);

struct Tables {
    gdt: [u64; 5],
    tss: Tss,
    stacks: Stacks,
}

/// Written by one CPU each (or by the first alone), before it is used.
#[repr(transparent)]
struct Own<T>(UnsafeCell<T>);

// SAFETY: see the type.
unsafe impl<T> Sync for Own<T> {}

static TABLES: [Own<Tables>; MAX_CPUS] = [const {
    Own(UnsafeCell::new(Tables {
        gdt: [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, 0],
        tss: Tss {
            reserved0: 0,
            rsp: [0; 3],
            reserved1: 0,
            stacks: [0; 7],
            reserved2: 0,
            reserved3: 0,
            io_map: size_of::<Tss>() as u16,
        },
        stacks: Stacks([[0; STACK_BYTES]; 3]),
    }))
}; MAX_CPUS];
static IDT: Own<[[u64; 2]; 256]> = Own(UnsafeCell::new([[0; 2]; 256]));

/// Fills the one interrupt table: stack 1 for interrupts, 2 for page and protection faults, which may strike in a handler, 3 for what
/// may strike anywhere.
pub(crate) fn init_vectors() {
    let gate = |handler: usize, stack: u64| {
        let handler = handler as u64;
        let low = (handler & 0xffff) | 8 << 16 | stack << 32 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48;
        [low, handler >> 32]
    };
    // SAFETY: called once, by the first CPU, before any loads the table.
    let table = unsafe { &mut *IDT.0.get() };
    for (vector, entry) in table.iter_mut().enumerate().take(entry::VECTORS) {
        let stack = match vector {
            2 | 8 | 18 => 3,
            13 | 14 => 2,
            32.. if breaks::RED_ZONE.load(Ordering::Relaxed) => 0,
            _ => 1,
        };
        *entry = gate(entry::stub(vector), stack);
    }
    table[255] = gate(entry::spurious(), 1);
}

/// Makes the CPU that runs this number `id`.
pub(crate) fn init(id: usize) {
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    const GS_BASE: u32 = 0xc000_0101;
    let cpu = &CPUS[id];
    cpu.this.store(core::ptr::from_ref(cpu) as usize, Ordering::Relaxed);
    cpu.id.store(id as u32, Ordering::Relaxed);
    // SAFETY: the tables are this CPU's and stay; the selectors are those of the table just loaded.
    unsafe {
        let tables = &mut *TABLES[id].0.get();
        let base = (&raw const tables.stacks) as u64;
        for stack in 0..3u64 {
            tables.tss.stacks[stack as usize] = base + (stack + 1) * STACK_BYTES as u64;
        }
        let tss = &raw const tables.tss as u64;
        let limit = size_of::<Tss>() as u64 - 1;
        tables.gdt[3] = limit | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        tables.gdt[4] = tss >> 32;
        let gdt = Pointer(size_of_val(&tables.gdt) as u16 - 1, tables.gdt.as_ptr() as u64);
        let idt = Pointer(4095, IDT.0.get() as u64);
        asm!("lgdt [{}]", "lidt [{}]", "ltr {:x}", in(reg) &raw const gdt, in(reg) &raw const idt, in(reg) 0x18);
        let gs = core::ptr::from_ref(cpu) as u64;
        asm!("wrmsr", in("ecx") GS_BASE, in("eax") gs as u32, in("edx") (gs >> 32) as u32, options(nostack));
    }
}
