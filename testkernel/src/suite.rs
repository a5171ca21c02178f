//! The suite in this kernel: the shared tests, and those of what only a kernel has.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Arguments;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use kern::zone::{How, ZoneConfig};
use kern::{System, TypeId};
use platform::{Lock, MisuseReport, Platform as _};
use testsuite::{Host, Outcome, Tally, Test, Verdict, ensure};

use crate::frames::{PHYSICAL, Physical};
use crate::hardware::*;
use crate::port::Kernel;
use crate::serial::{self, Exit, println};
use crate::space::{DIRECT, PAGE};
use crate::spin::SpinLock;
use crate::{breaks, cpu, debugger, fault, frames, hotplug, interrupts, misuse, module, numa, sched, space, start};

/// This kernel as the suite sees it.
pub(crate) struct Machine;

/// One call of [`Host::threads`].
struct Group<'a> {
    body: &'a (dyn Fn(usize) -> Outcome + Sync),
    next: AtomicUsize,
    left: AtomicU32,
    failure: Lock<SpinLock, Option<String>>,
}

extern "C" fn run_member(group: usize) -> ! {
    // SAFETY: whoever spawned us keeps the group until all of its threads have gone down to `left`.
    let group = unsafe { &*(group as *const Group<'_>) };
    let number = group.next.fetch_add(1, Ordering::Relaxed);
    if let Err(why) = (group.body)(number) {
        // The first counts; a later text is dropped outside of the lock.
        let _other = match &mut *group.failure.lock() {
            Some(_) => Some(why),
            first => first.replace(why),
        };
    }
    sched::finish(&group.left)
}

impl Host for Machine {
    type P = Kernel;
    type Frames = Physical;

    fn system(&self) -> &System<Kernel> {
        start::system()
    }

    fn cpus(&self) -> usize {
        cpu::count()
    }

    fn threads(&self, count: usize, body: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome {
        let group =
            Group { body, next: AtomicUsize::new(0), left: AtomicU32::new(count as u32), failure: Lock::new(None) };
        let mut missing = 0;
        for _ in 0..count {
            if sched::spawn(run_member, (&raw const group) as usize).is_none() {
                missing += 1;
                group.left.fetch_sub(1, Ordering::SeqCst);
            }
        }
        loop {
            let left = group.left.load(Ordering::SeqCst);
            if left == 0 {
                break;
            }
            sched::wait(&group.left, left);
        }
        ensure!(missing == 0, "{missing} of {count} threads could not be started");
        let failure = group.failure.lock().take();
        failure.map_or(Ok(()), Err)
    }

    fn interrupted(&self, handler: &(dyn Fn() + Sync), body: &mut dyn FnMut() -> Outcome) -> Outcome {
        interrupts::with_hook(handler, body)
    }

    fn has_interrupts(&self) -> bool {
        true
    }

    fn yield_now(&self) {
        sched::yield_now();
    }

    fn on_cpu(&self, cpu: usize, body: &mut dyn FnMut() -> Outcome) -> Outcome {
        sched::bind(cpu);
        let outcome = body();
        sched::unbind();
        outcome
    }

    fn set_online(&self, cpu: usize, online: bool) -> bool {
        if online { hotplug::online(cpu) } else { hotplug::offline(cpu) }
    }

    fn frames(&self) -> Option<&Physical> {
        Some(&PHYSICAL)
    }

    fn domain_of_memory(&self, addr: usize) -> Option<usize> {
        space::physical(addr).map(numa::of_memory)
    }

    fn limit_memory(&self, pages: Option<usize>) -> bool {
        frames::limit(pages);
        true
    }

    fn expect_misuse(&self, expected: bool) {
        misuse::EXPECTED.store(expected, Ordering::Relaxed);
    }

    fn take_misuse(&self) -> Option<MisuseReport> {
        misuse::take()
    }

    fn effort(&self) -> usize {
        EFFORT.load(Ordering::Relaxed)
    }

    fn print(&self, line: Arguments<'_>) {
        println!("{line}");
    }
}

static EFFORT: AtomicUsize = AtomicUsize::new(100);
/// NUMA domains that the machine was made with.
pub(crate) static DOMAINS: AtomicUsize = AtomicUsize::new(1);
static DEBUGGER: AtomicBool = AtomicBool::new(false);
static PANIC: AtomicBool = AtomicBool::new(false);
static ONLY: Lock<SpinLock, Option<String>> = Lock::new(None);

/// Runs only tests whose names contain this.
pub(crate) fn only(name: &str) {
    *ONLY.lock() = Some(String::from(name));
}

/// So many domains are to be found.
pub(crate) fn expect_domains(domains: usize) {
    DOMAINS.store(domains, Ordering::Relaxed);
}

/// Percent of the usual amount of work.
pub(crate) fn set_effort(percent: usize) {
    EFFORT.store(percent, Ordering::Relaxed);
}

/// Enters the debugger after the suite.
pub(crate) fn ask_debugger() {
    DEBUGGER.store(true, Ordering::Relaxed);
}

/// Panics after the suite, to show what a panic does.
pub(crate) fn ask_panic() {
    PANIC.store(true, Ordering::Relaxed);
}

/// The first thread.
pub(crate) extern "C" fn main(_: usize) -> ! {
    let host = Machine;
    let only = ONLY.lock().take().unwrap_or_default();
    let mut tally = Tally::default();
    let shared = testsuite::tests::<Machine>();
    for test in own_tests().iter().chain(&shared).chain(&module::tests()).filter(|test| test.name.contains(&*only)) {
        tally.run(&host, test);
        // With a fault put in, the first failure is all that is asked for; what comes after may hang.
        if tally.failed > 0 && breaks::any() {
            break;
        }
    }
    tally.print(&host);
    #[cfg(feature = "peers")]
    crate::peers::measure(&host);
    let count = |counter: &core::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "kernel: {} switches, {} preemptions, {} migrations, {} sleeps, {} ticks",
        count(&sched::SWITCHES),
        count(&sched::PREEMPTIONS),
        count(&sched::MIGRATIONS),
        count(&sched::SLEEPS),
        cpu::CPUS.iter().map(|cpu| count(&cpu.ticks)).sum::<u64>()
    );
    if DEBUGGER.load(Ordering::Relaxed) {
        debugger::enter("asked for on the command line");
    }
    assert!(!PANIC.load(Ordering::Relaxed), "asked for on the command line");
    serial::exit(if tally.failed == 0 && tally.passed > 0 { Exit::Passed } else { Exit::Failed })
}

fn own_tests() -> [Test<Machine>; 12] {
    macro_rules! tests {
        ($($name:ident),* $(,)?) => {
            [$(Test { name: stringify!($name), run: |host| Verdict::from($name(host)) }),*]
        };
    }
    tests![
        interrupts_spare_the_red_zone,
        interrupts_spare_floating_point,
        a_null_pointer_faults,
        a_guard_page_stops_an_overflow,
        pages_given_back_are_gone_on_every_cpu,
        a_bound_thread_stays,
        the_domains_are_those_of_the_machine,
        a_broken_affinity_table_is_refused,
        a_cpu_that_leaves_runs_nothing_until_it_is_back,
        a_cpu_that_was_away_forgets_its_mappings,
        boxes_are_counted_by_the_allocator,
        the_debugger_prints_without_allocating,
    ]
}

unsafe extern "C" {
    fn red_zone_probe(rounds: u64) -> u64;
}

fn interrupts_spare_the_red_zone(host: &Machine) -> Outcome {
    // As long as it takes for every CPU to have been interrupted many times.
    let ticks = || cpu::CPUS[..cpu::count()].iter().map(|cpu| cpu.ticks.load(Ordering::Relaxed)).min().unwrap_or(0);
    let until = ticks() + 20;
    host.threads(2 * host.cpus(), &|_| {
        while ticks() < until {
            // SAFETY: writes below its own stack pointer, which the ABI allows.
            let changed = unsafe { red_zone_probe(50) };
            ensure!(changed == 0, "an interrupt wrote below the stack pointer");
        }
        Ok(())
    })
}

/// What a thread computes in floating-point registers, not to be disturbed.
fn orbit(seed: usize, steps: usize) -> u64 {
    let (mut x, mut y) = (seed as f64 + 0.5, 0.25f64);
    // A turn by a small angle, so that both stay of their size.
    for step in 0..steps {
        (x, y) = (x * 0.995 - y * 0.0998 + (step & 1) as f64, x * 0.0998 + y * 0.995);
    }
    x.to_bits() ^ y.to_bits()
}

fn interrupts_spare_floating_point(host: &Machine) -> Outcome {
    let noise = AtomicUsize::new(0);
    // A handler that uses the same registers.
    let handler = || _ = noise.fetch_xor(orbit(noise.load(Ordering::Relaxed) & 7, 20) as usize, Ordering::Relaxed);
    let steps = 20_000 * host.effort().max(25) / 100;
    host.interrupted(&handler, &mut || {
        host.threads(4 * host.cpus(), &|number| {
            let first = orbit(number, steps);
            for round in 0..10 {
                let again = orbit(core::hint::black_box(number), steps);
                ensure!(first == again, "round {round} of thread {number} came to {again:#x}, not {first:#x}");
            }
            Ok(())
        })
    })
}

fn a_null_pointer_faults(host: &Machine) -> Outcome {
    host.threads(host.cpus(), &|_| {
        ensure!(fault::read(0).is_none() && fault::read(8).is_none(), "address 0 can be read");
        let word = 7u8;
        ensure!(fault::read((&raw const word) as usize) == Some(7), "a local variable cannot be read");
        Ok(())
    })
}

#[inline(never)]
fn recurse(depth: usize) -> usize {
    let frame = core::hint::black_box([depth; 64]);
    if depth == usize::MAX { 0 } else { recurse(depth + 1) + frame[depth % 64] }
}

extern "C" fn overflow(_: usize) -> ! {
    core::hint::black_box(recurse(0));
    unreachable!("the stack did not end");
}

fn a_guard_page_stops_an_overflow(_: &Machine) -> Outcome {
    const THREADS: u32 = 3;
    let before = fault::OVERFLOWS.load(Ordering::SeqCst);
    for _ in 0..THREADS {
        let thread = sched::spawn(overflow, 0).ok_or("no thread")?;
        // SAFETY: 1. the page below a stack is nobody's.
        let written = unsafe { fault::write(sched::guard_page(thread), 1) };
        ensure!(!written, "the page below a stack can be written");
    }
    loop {
        let ended = fault::OVERFLOWS.load(Ordering::SeqCst);
        if ended.wrapping_sub(before) == THREADS {
            return Ok(());
        }
        sched::wait(&fault::OVERFLOWS, ended);
    }
}

/// All CPUs use pages, so that each remembers where they are; the pages go back, and their frames to another use; then the
/// same addresses are allocated anew. A CPU that was not told to forget would read and write the frames of the other.
fn pages_given_back_are_gone_on_every_cpu(host: &Machine) -> Outcome {
    /// Few enough that a CPU remembers all of them (QEMU's has room for 256), and more than are forgotten one by one.
    const PAGES: [usize; 4] = [20, 40, 100, 150];
    const OTHERS: usize = 0x00ee_eeee_eeee_eeee;
    let system = host.system();
    let visit = |block: usize, bytes: usize, visitor: &(dyn Fn(usize, usize) -> Outcome + Sync)| {
        host.threads(host.cpus(), &|number| {
            sched::bind(number);
            let outcome = (block..block + bytes).step_by(PAGE).try_for_each(|page| visitor(number, page));
            sched::unbind();
            outcome
        })
    };
    let mut others = Vec::with_capacity(PAGES[3]);
    // What is free is one piece, so that the same place is best again.
    system.reclaim();
    for (round, bytes) in PAGES.iter().map(|pages| pages * PAGE).enumerate() {
        let block = system.alloc(bytes, TypeId::MALLOC);
        ensure!(!block.is_null(), "no memory");
        let addr = block as usize;
        visit(addr, bytes, &|number, page| {
            // SAFETY: a word of our block that no other thread uses.
            unsafe { ((page + 8 * number) as *mut usize).write_volatile(page ^ number) };
            Ok(())
        })?;
        // SAFETY: 1. ours, unused from now on.
        unsafe { system.free(block, 0) };
        ensure!(system.reclaim(), "round {round}: nothing went back");
        ensure!(space::physical(addr).is_none() && fault::read(addr).is_none(), "the memory behind a free page stays");
        // Somebody else gets the frames.
        others.extend((0..bytes / PAGE).filter_map(|_| frames::alloc()));
        for frame in &others {
            // SAFETY: our frame, in the direct map.
            unsafe { core::slice::from_raw_parts_mut((DIRECT + frame) as *mut usize, PAGE / 8) }.fill(OTHERS);
        }
        let again = system.alloc(bytes, TypeId::MALLOC);
        ensure!(again == block, "the same addresses were expected: {again:?}, not {block:?}");
        let outcome = visit(addr, bytes, &|number, page| {
            // SAFETY: as above.
            let word = unsafe { ((page + 8 * number) as *const usize).read_volatile() };
            ensure!(word == 0, "cpu {number} reads {word:#x} at {page:#x}, a page that was given back");
            // SAFETY: as above.
            unsafe { ((page + 8 * number) as *mut usize).write_volatile(!0) };
            Ok(())
        });
        let overwritten = others.iter().any(|frame: &usize| {
            // SAFETY: our frame, in the direct map.
            let words = unsafe { core::slice::from_raw_parts((DIRECT + frame) as *const usize, PAGE / 8) };
            words.iter().any(|word| *word != OTHERS)
        });
        others.drain(..).for_each(frames::free);
        // SAFETY: 1. ours, unused from now on.
        unsafe { system.free(again, 0) };
        outcome?;
        ensure!(!overwritten, "somebody wrote to a frame through a mapping that is gone");
    }
    Ok(())
}

fn a_bound_thread_stays(host: &Machine) -> Outcome {
    host.threads(2 * host.cpus(), &|number| {
        for round in 0..10 {
            let want = (number + round) % cpu::count();
            sched::bind(want);
            for _ in 0..5 {
                sched::yield_now();
                let slot = Kernel::enter();
                let here = cpu::id();
                // SAFETY: 1. entered above.
                unsafe { Kernel::leave(slot) };
                ensure!(here == want, "a thread bound to cpu {want} runs on {here}");
            }
            sched::unbind();
        }
        Ok(())
    })
}

/// `Box` and `Vec` of this kernel are the allocator's, under the type `malloc`.
fn boxes_are_counted_by_the_allocator(host: &Machine) -> Outcome {
    let system = host.system();
    let before = system.totals(TypeId::MALLOC);
    let boxes: Vec<_> = (0..1000usize).map(alloc::boxed::Box::new).collect();
    let during = system.totals(TypeId::MALLOC);
    ensure!(during.in_use() == before.in_use() + 1001, "1001 blocks are counted as {during:?} after {before:?}");
    ensure!(boxes.iter().enumerate().all(|(index, value)| index == **value), "a box changed");
    drop(boxes);
    let after = system.totals(TypeId::MALLOC);
    ensure!(after.in_use() == before.in_use(), "{} blocks are left", after.in_use() - before.in_use());
    Ok(())
}

fn the_debugger_prints_without_allocating(host: &Machine) -> Outcome {
    let system = host.system();
    let name = "shown by ddb";
    let id =
        system.register_type(abi::type_kind::STATIC, abi::NO_LIB, 0, name.as_bytes()).ok_or("no row for a type")?;
    let zone = system.zcreate(&ZoneConfig::new("shown", 700, 8)).map_err(|why| alloc::format!("{why}"))?;
    let item = zone.alloc(How::NOWAIT).map_err(|why| alloc::format!("{why}"))?;
    let blocks = [100, 100, 5000].map(|bytes| system.alloc(bytes, id));
    let mut lines = [const { kern::text::Text::<64>::new() }; debugger::COMMANDS.len()];
    for (line, command) in lines.iter_mut().zip(debugger::COMMANDS) {
        line.push(command.as_bytes());
        if command.ends_with("matches") || command.ends_with("block") {
            line.push(b" ").push_hex(blocks[2] as u64);
        }
    }
    /// As much as there is room for: to make more would be to allocate.
    struct Bounded(String);
    impl core::fmt::Write for Bounded {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            if self.0.len() + text.len() <= self.0.capacity() {
                self.0.push_str(text);
            }
            Ok(())
        }
    }
    let mut out = Bounded(String::with_capacity(200_000));
    // Every command, with every lock of the allocator held: whoever takes one hangs. Nobody else allocates: a thread that did would
    // wait for us.
    let before = system.totals(TypeId::MALLOC);
    for (_, lock) in system.locks() {
        platform::RawLock::lock(lock);
    }
    for line in &lines {
        debugger::run(core::str::from_utf8(line.as_bytes()).unwrap_or(""), &mut out);
    }
    for (_, lock) in system.locks() {
        // SAFETY: 1. taken above.
        unsafe { platform::RawLock::unlock(lock) };
    }
    let after = system.totals(TypeId::MALLOC);
    let out = out.0;
    for block in blocks {
        // SAFETY: 1. ours, unused from now on.
        unsafe { system.free(block, 0) };
    }
    // SAFETY: as above, and the zone's.
    unsafe { zone.free(item.as_ptr()) };
    ensure!(after.allocs == before.allocs, "{} allocations by the debugger", after.allocs - before.allocs);
    let row = alloc::format!("{name:>18} {:>12} {:>12}K {:>12}", 3, (112 + 112 + 5632usize).div_ceil(1024), 3);
    let csv = alloc::format!("\"{name}\",3,6K,3");
    let at = alloc::format!(
        "{:#x} is 0 bytes into an item of 5632 bytes at {:#x}, type {name}, live",
        blocks[2] as usize,
        blocks[2] as usize
    );
    for line in [&*row, &csv, &at, name, "\tquantum:\t4096", "no panic"] {
        ensure!(out.lines().any(|shown| shown == line), "the debugger does not say {line:?}, but:\n{out}");
    }
    let zone_row = out.lines().find(|line| line.starts_with("             shown    700       1 "));
    ensure!(zone_row.is_some(), "the debugger does not show a zone:\n{out}");
    // SAFETY: 1. no copy of the handle is used any more.
    unsafe { zone.destroy() }.map_err(|why| alloc::format!("{why}"))?;
    Ok(())
}
