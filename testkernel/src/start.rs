//! From the first Rust instruction to a running suite.

use core::ffi::{CStr, c_char};
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use abi::{CpuCache, Header};
use kern::malloc::Malloc;
use kern::{Boot, Heap, ObjectLayout, SLOT_STRIDE_BYTES, System};

use crate::port::Kernel;
use crate::serial::println;
use crate::space::{self, DIRECT, HEAP, KERNEL, STATS, WORDS};
use crate::{breaks, cpu, debugger, frames, hotplug, interrupts, numa, sched, suite};

/// Bytes that can be allocated before the allocator has booted.
const EARLY_BYTES: usize = 16 << 10;

#[global_allocator]
static ALLOCATOR: Heap<Kernel, EARLY_BYTES> = Heap::new();

/// The allocator of this kernel.
pub(crate) fn system() -> &'static System<Kernel> {
    ALLOCATOR.system()
}

/// malloc(9) over it.
pub(crate) static MALLOC: Malloc<'static, Kernel> = Malloc::new(ALLOCATOR.system());

/// Malloc types there is room for.
const TYPES: usize = 256;

/// What the loader hands over (PVH, `hvm_start_info`).
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_ranges: u32,
    reserved: u32,
}

#[repr(C)]
struct MemoryRange {
    start: u64,
    bytes: u64,
    kind: u32,
    reserved: u32,
}

unsafe extern "C" {
    static kernel_end: u8;
    static tramp_start: u8;
    static tramp_end: u8;
}

static READY: AtomicU32 = AtomicU32::new(0);
static GO: AtomicBool = AtomicBool::new(false);

/// What the first page tables map.
const MAPPED: usize = 4 << 30;
/// Where a CPU starts in real mode.
const TRAMPOLINE: usize = 0x8000;

/// Memory by the loader's map.
fn find_memory(info: &StartInfo) -> impl Iterator<Item = Range<usize>> + Clone {
    const RAM: u32 = 1;
    // SAFETY: the loader's table, in the direct map.
    let ranges: &'static [MemoryRange] = unsafe {
        let first = (DIRECT + info.memory_map as usize) as *const MemoryRange;
        core::slice::from_raw_parts(first, info.memory_ranges as usize)
    };
    let usable = ranges.iter().filter(|range| range.kind == RAM);
    usable.map(|range| range.start as usize..((range.start + range.bytes) as usize).min(MAPPED))
}

/// Bytes by physical address.
fn physical_bytes(at: u64, bytes: usize) -> Option<&'static [u8]> {
    let inside = (at as usize).checked_add(bytes).is_some_and(|end| end <= MAPPED);
    // SAFETY: in the direct map; asked for what the firmware wrote, which nobody changes.
    inside.then(|| unsafe { core::slice::from_raw_parts((DIRECT + at as usize) as *const u8, bytes) })
}

/// How many CPUs QEMU has made (its configuration device, item 5).
fn count_cpus() -> usize {
    cpu::out16(0x510, 5);
    usize::from(cpu::in8(0x511)) | usize::from(cpu::in8(0x511)) << 8
}

fn read_command_line(text: &str) {
    for word in text.split_ascii_whitespace() {
        match word.split_once('=') {
            Some(("hz", hz)) => interrupts::set_tick_hz(hz.parse().expect("hz=NUMBER")),
            Some(("break", name)) => assert!(breaks::set(name), "no fault is named {name:?}"),
            Some(("numa", domains)) => suite::expect_domains(domains.parse().expect("numa=NUMBER")),
            Some(("only", name)) => suite::only(name),
            Some(("effort", percent)) => suite::set_effort(percent.parse().expect("effort=PERCENT")),
            _ if word == "debugger" => suite::ask_debugger(),
            _ if word == "ddb" => debugger::INTERACTIVE.store(true, Ordering::Relaxed),
            _ if word == "panic" => suite::ask_panic(),
            _ => panic!(
                "{word:?} on the command line means nothing; known are hz=N, numa=N, effort=PERCENT, break=NAME, only=NAME, debugger \
                 (enter it after the suite), ddb (enter it at a panic), panic (after the suite)"
            ),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn start_first_cpu(info: usize) -> ! {
    cpu::init_vectors();
    cpu::init(0);
    // SAFETY: the loader's record, in the direct map, where nothing writes before memory is handed out.
    let info = unsafe { &*((DIRECT + info) as *const StartInfo) };
    // SAFETY: as above; it ends with a zero.
    let line = unsafe { CStr::from_ptr((DIRECT + info.command_line as usize) as *const c_char) };
    // A copy on the early heap: the original is about to become free memory.
    let line = alloc::string::String::from(line.to_str().expect("a command line in UTF-8"));
    read_command_line(&line);
    cpu::init_vectors();
    let cpus = count_cpus().min(cpu::MAX_CPUS);
    cpu::set_count(cpus);
    numa::init(physical_bytes, info.rsdp);
    // The kernel lies from its link address on, and the start of other CPUs at its own.
    let kernel = 2 << 20..(&raw const kernel_end) as usize - KERNEL;
    frames::init(find_memory(info), &[kernel, TRAMPOLINE..TRAMPOLINE + space::PAGE]);
    interrupts::init_machine();
    interrupts::init();
    space::set_attending(true);
    let (mib, domains, hz) = ((frames::available() * space::PAGE) >> 20, numa::domains(), interrupts::tick_hz());
    println!("boot: {cpus} CPUs, {domains} domains, {mib} MiB, {hz} Hz, command line {line:?}");
    boot_allocator(cpus);
    start_other_cpus(cpus);
    space::finish_boot();
    GO.store(true, Ordering::Release);
    sched::spawn(suite::main, 0).expect("memory for the first thread");
    sched::WATCHED.store(true, Ordering::Relaxed);
    idle()
}

/// The statistics object lies in kernel memory; a slot per CPU, and the shared one.
fn boot_allocator(cpus: usize) {
    let layout = ObjectLayout { slots: cpus + 1, types: TYPES, libs: 1 };
    assert!(space::back(STATS, layout.bytes()), "memory for the statistics");
    // SAFETY: fresh pages of zeros, which are a valid header, and nobody else's yet.
    let header = unsafe { &mut *(STATS as *mut Header) };
    layout.write_sections(header);
    header.cache_slot_stride = SLOT_STRIDE_BYTES as u64;
    header.cache_zone_stride = size_of::<CpuCache>() as u64;
    header.page_bytes = space::PAGE as u32;
    header.heap_base = HEAP as u64;
    let boot = Boot { heap_base: HEAP, table: WORDS, ids: cpus, rows: 1, stats: NonNull::from(header).cast() };
    // SAFETY: 1. one CPU runs, and nothing is allocated meanwhile. 2. the ranges of `space`, the object just made.
    assert!(unsafe { system().boot(&boot) }, "memory for the allocator");
    breaks::learn_depots(system().locks());
}

fn start_other_cpus(cpus: usize) {
    let bytes = (&raw const tramp_end) as usize - (&raw const tramp_start) as usize;
    // SAFETY: low memory that nobody uses; the code's own copy lies where the loader put it.
    unsafe {
        let from = (DIRECT + (&raw const tramp_start) as usize) as *const u8;
        core::ptr::copy_nonoverlapping(from, (DIRECT + TRAMPOLINE) as *mut u8, bytes);
    }
    let others = cpus as u32 - 1;
    if others == 0 {
        return;
    }
    interrupts::send_init();
    // A write to this port takes about a microsecond.
    (0..1000).for_each(|_| cpu::out8(0x80, 0));
    interrupts::send_startup();
    (0..200).for_each(|_| cpu::out8(0x80, 0));
    if READY.load(Ordering::Acquire) < others {
        interrupts::send_startup();
    }
    while READY.load(Ordering::Acquire) < others {
        core::hint::spin_loop();
    }
}

#[unsafe(no_mangle)]
extern "C" fn start_other_cpu(id: usize) -> ! {
    cpu::init(id);
    interrupts::init();
    space::set_attending(true);
    READY.fetch_add(1, Ordering::AcqRel);
    while !GO.load(Ordering::Acquire) {
        core::hint::spin_loop();
    }
    cpu::forget_all();
    idle()
}

/// What a CPU does without a thread.
fn idle() -> ! {
    loop {
        cpu::wait_for_interrupt();
        hotplug::leave_if_asked();
    }
}
