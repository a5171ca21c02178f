//! The local APIC, and what happens on an interrupt or an exception.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::entry::Frame;
use crate::{cpu, fault, sched, space};

/// Vectors.
pub(crate) const TIMER: u32 = 32;
/// Look for another thread.
pub(crate) const RESCHEDULE: u32 = 33;
/// Forget mappings.
pub(crate) const SHOOTDOWN: u32 = 34;

/// Come back (`hotplug`). Of a higher class than the others, so that it alone passes when those are held back.
pub(crate) const WAKE: u32 = 48;

/// Rounds of the local timer's clock (1 GHz under QEMU, divided by 16) in a second.
const TIMER_HZ: u32 = 62_500_000;
static TICK_HZ: AtomicU32 = AtomicU32::new(1000);

/// Registers of the local APIC, each CPU its own at the same address.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Apic {
    Identity = 0x20,
    TaskPriority = 0x80,
    EndOfInterrupt = 0xb0,
    Spurious = 0xf0,
    Command = 0x300,
    Timer = 0x320,
    InitialCount = 0x380,
    Divide = 0x3e0,
}

const APIC: usize = space::DIRECT + 0xfee0_0000;

fn apic_write(register: Apic, value: u32) {
    // SAFETY: a register of this CPU's own device.
    unsafe { ((APIC + register as usize) as *mut u32).write_volatile(value) };
}

fn apic_read(register: Apic) -> u32 {
    // SAFETY: as in `apic_write`.
    unsafe { ((APIC + register as usize) as *const u32).read_volatile() }
}

/// Timer interrupts per second and CPU.
pub(crate) fn tick_hz() -> u32 {
    TICK_HZ.load(Ordering::Relaxed)
}

/// Sets them; before [`init`].
pub(crate) fn set_tick_hz(hz: u32) {
    TICK_HZ.store(hz.clamp(1, 100_000), Ordering::Relaxed);
}

/// The devices of the PC before the APIC are silent.
pub(crate) fn init_machine() {
    cpu::out8(0x21, 0xff);
    cpu::out8(0xa1, 0xff);
}

/// This CPU's APIC, and its timer.
pub(crate) fn init() {
    const ENABLE: u32 = 0x100;
    const SPURIOUS: u32 = 255;
    const BY_16: u32 = 0b0011;
    cpu::this().apic.store((apic_read(Apic::Identity) >> 24) as usize, Ordering::Relaxed);
    apic_write(Apic::Spurious, ENABLE | SPURIOUS);
    apic_write(Apic::TaskPriority, 0);
    apic_write(Apic::Divide, BY_16);
    apic_write(Apic::Timer, TIMER_MODE | TIMER);
    apic_write(Apic::InitialCount, TIMER_HZ / tick_hz());
}

/// The timer is periodic.
const TIMER_MODE: u32 = 1 << 17;

/// From now on this CPU's timer is silent and all vectors below [`WAKE`] wait; or it is as before.
pub(crate) fn hold_back(hold: bool) {
    const MASKED: u32 = 1 << 16;
    /// Vectors of the classes up to this one wait.
    const CLASS: u32 = (WAKE - 1) & 0xf0;
    apic_write(Apic::Timer, TIMER_MODE | TIMER | if hold { MASKED } else { 0 });
    apic_write(Apic::TaskPriority, if hold { CLASS } else { 0 });
}

/// Raises a vector on all CPUs but this.
pub(crate) fn send_others(vector: u32) {
    apic_write(Apic::Command, 0xc4000 | vector);
}

/// Stops all other CPUs for good, whatever they do.
pub(crate) fn stop_others() {
    apic_write(Apic::Command, 0xc4400);
}

/// The two steps that start the other CPUs at 0x8000.
pub(crate) fn send_init() {
    apic_write(Apic::Command, 0xc4500);
}

/// See [`send_init`].
pub(crate) fn send_startup() {
    apic_write(Apic::Command, 0xc4608);
}

/// What a test wants called in every timer interrupt: address of a `&dyn Fn()` that outlives its use, or 0.
static HOOK: AtomicUsize = AtomicUsize::new(0);

/// Calls `handler` in every timer interrupt of every CPU while `body` runs.
pub(crate) fn with_hook<T>(handler: &(dyn Fn() + Sync), body: impl FnOnce() -> T) -> T {
    let pointer = &raw const handler;
    HOOK.store(pointer as usize, Ordering::SeqCst);
    let result = body();
    HOOK.store(0, Ordering::SeqCst);
    // Whoever has loaded the pointer is in a handler.
    for cpu in &cpu::CPUS {
        while cpu.interrupts.load(Ordering::SeqCst) != 0 {
            core::hint::spin_loop();
        }
    }
    result
}

fn call_hook() {
    let hook = HOOK.load(Ordering::SeqCst) as *const &(dyn Fn() + Sync);
    // SAFETY: `with_hook` waits for this handler before the reference ends.
    if let Some(handler) = unsafe { hook.as_ref() } {
        handler();
    }
}

/// Every vector ends here, interrupts masked.
#[unsafe(no_mangle)]
extern "C" fn interrupt(frame: &mut Frame) {
    let cpu = cpu::this();
    match frame.vector as u32 {
        TIMER => {
            cpu.ticks.fetch_add(1, Ordering::Relaxed);
            apic_write(Apic::EndOfInterrupt, 0);
            cpu.interrupts.fetch_add(1, Ordering::SeqCst);
            call_hook();
            cpu.interrupts.fetch_sub(1, Ordering::SeqCst);
            sched::tick();
            sched::switch(frame);
        }
        RESCHEDULE => {
            // Also an instruction of a thread that sleeps; then there is nothing to end, and the APIC ignores it.
            apic_write(Apic::EndOfInterrupt, 0);
            sched::switch(frame);
        }
        SHOOTDOWN => {
            apic_write(Apic::EndOfInterrupt, 0);
            space::answer_shootdown();
        }
        WAKE => apic_write(Apic::EndOfInterrupt, 0),
        _ => fault::exception(frame),
    }
}
