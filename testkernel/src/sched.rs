//! Preemptive threads on one run queue, so that they migrate; sleep and wake-up by address; stacks with a guard page.
//!
//! A thread is a [`Frame`]. A switch happens only in a handler, which runs on a stack of its own: it copies the interrupted frame
//! into the thread's record and the next thread's frame over it.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use platform::Lock;

use crate::cpu::{self, IDLE, MAX_CPUS};
use crate::entry::Frame;
use crate::space::{self, PAGE, STACKS};
use crate::spin::{self, SpinLock};
use crate::{breaks, hotplug, interrupts};

/// Threads at one time.
pub(crate) const MAX_THREADS: usize = 256;
/// Bytes of a stack; as much address space again below it is never mapped.
const STACK_BYTES: usize = 64 << 10;
const STACK_STRIDE: usize = 2 * STACK_BYTES;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No thread.
    None,
    /// On the run queue.
    Ready,
    Running,
    /// Going to sleep, and on its way to the switch.
    Blocking,
    Blocked,
    /// On its way to the switch, not to come back.
    Exiting,
}

struct Thread {
    frame: Frame,
    state: State,
    /// Address of the word it sleeps on.
    sleeps_on: usize,
    /// The only CPU it may run on.
    bound: Option<usize>,
    /// The CPU it is on for a moment instead, to claim a slot.
    visits: Option<usize>,
    last_cpu: usize,
}

impl Thread {
    /// Where it must run, if that matters. A thread that is bound to a CPU which is away runs anywhere.
    fn place(&self) -> Option<usize> {
        self.visits.or(self.bound).filter(|cpu| hotplug::is_online(*cpu))
    }
}

/// The queue is a ring of thread numbers.
struct Sched {
    threads: [Thread; MAX_THREADS],
    queue: [u16; MAX_THREADS],
    queue_first: usize,
    queue_len: usize,
    idle: [Frame; MAX_CPUS],
}

impl Sched {
    fn make_ready(&mut self, thread: usize) {
        self.threads[thread].state = State::Ready;
        self.queue[(self.queue_first + self.queue_len) % MAX_THREADS] = thread as u16;
        self.queue_len += 1;
    }

    /// The first thread in the queue that may run here.
    fn take(&mut self, cpu: usize) -> Option<usize> {
        for _ in 0..self.queue_len {
            let thread = self.queue[self.queue_first] as usize;
            self.queue_first = (self.queue_first + 1) % MAX_THREADS;
            self.queue_len -= 1;
            if self.threads[thread].place().is_none_or(|place| place == cpu) {
                return Some(thread);
            }
            self.make_ready(thread);
        }
        None
    }
}

static SCHED: Lock<SpinLock, Sched> = Lock::new(Sched {
    threads: [const {
        Thread { frame: Frame::empty(), state: State::None, sleeps_on: 0, bound: None, visits: None, last_cpu: 0 }
    }; MAX_THREADS],
    queue: [0; MAX_THREADS],
    queue_first: 0,
    queue_len: 0,
    idle: [const { Frame::empty() }; MAX_CPUS],
});

/// What the scheduler has done, for the report at the end.
pub(crate) static SWITCHES: AtomicU64 = AtomicU64::new(0);
/// A running thread had to go.
pub(crate) static PREEMPTIONS: AtomicU64 = AtomicU64::new(0);
/// A thread goes on on another CPU.
pub(crate) static MIGRATIONS: AtomicU64 = AtomicU64::new(0);
/// A thread went to sleep.
pub(crate) static SLEEPS: AtomicU64 = AtomicU64::new(0);

/// In a handler, interrupts masked: lets the next thread run, if there is one.
pub(crate) fn switch(frame: &mut Frame) {
    let here = cpu::this();
    let cpu = cpu::id();
    let current = here.thread.load(Ordering::Relaxed);
    let mut sched = SCHED.lock();
    let stays = hotplug::is_online(cpu);
    let goes_on = current == IDLE || sched.threads[current as usize].state == State::Running;
    if goes_on && sched.queue_len == 0 && stays && !must_move(&sched, current, cpu) {
        return;
    }
    if current == IDLE {
        sched.idle[cpu] = *frame;
    } else {
        let number = current as usize;
        let thread = &mut sched.threads[number];
        thread.frame = *frame;
        thread.last_cpu = cpu;
        match thread.state {
            State::Running => {
                PREEMPTIONS.fetch_add(1, Ordering::Relaxed);
                sched.make_ready(number);
            }
            State::Blocking => {
                SLEEPS.fetch_add(1, Ordering::Relaxed);
                thread.state = State::Blocked;
            }
            State::Exiting => thread.state = State::None,
            state => panic!("thread {number} runs, but is {state:?}"),
        }
    }
    SWITCHES.fetch_add(1, Ordering::Relaxed);
    let next = if stays { sched.take(cpu) } else { None };
    if let Some(number) = next {
        let thread = &mut sched.threads[number];
        thread.state = State::Running;
        if thread.last_cpu != cpu {
            MIGRATIONS.fetch_add(1, Ordering::Relaxed);
        }
        here.thread.store(number as u32, Ordering::Relaxed);
        *frame = thread.frame;
    } else {
        here.thread.store(IDLE, Ordering::Relaxed);
        *frame = sched.idle[cpu];
    }
}

fn must_move(sched: &Sched, current: u32, cpu: usize) -> bool {
    current != IDLE && sched.threads[current as usize].place().is_some_and(|place| place != cpu)
}

/// Goes through the scheduler now.
pub(crate) fn yield_now() {
    // SAFETY: an interrupt like any other.
    unsafe { asm!("int {}", const interrupts::RESCHEDULE) };
}

/// The running thread's number; `None` on a CPU's boot stack.
pub(crate) fn current() -> Option<usize> {
    spin::mask();
    let thread = cpu::this().thread.load(Ordering::Relaxed);
    spin::unmask();
    (thread != IDLE).then_some(thread as usize)
}

/// Top of a thread's stack.
pub(crate) fn stack_top(thread: usize) -> usize {
    STACKS + (thread + 1) * STACK_STRIDE
}

/// The last page below a thread's stack.
pub(crate) fn guard_page(thread: usize) -> usize {
    stack_top(thread) - STACK_BYTES - PAGE
}

/// The thread whose guard page this address lies in.
pub(crate) fn guarded_by(addr: usize) -> Option<usize> {
    let offset = addr.checked_sub(STACKS).filter(|offset| *offset < MAX_THREADS * STACK_STRIDE)?;
    (offset % STACK_STRIDE < STACK_STRIDE - STACK_BYTES).then_some(offset / STACK_STRIDE)
}

/// Starts a thread. Its number, or `None` when there are as many as can be or no memory for a stack.
pub(crate) fn spawn(entry: extern "C" fn(usize) -> !, argument: usize) -> Option<usize> {
    let thread = {
        let mut sched = SCHED.lock();
        let thread = sched.threads.iter().position(|thread| thread.state == State::None)?;
        // Nobody wakes it, for nobody knows it.
        sched.threads[thread].state = State::Blocked;
        sched.threads[thread].sleeps_on = 0;
        sched.threads[thread].bound = None;
        sched.threads[thread].visits = None;
        thread
    };
    let top = stack_top(thread);
    let has_stack = space::back(top - STACK_BYTES, STACK_BYTES);
    let mut sched = SCHED.lock();
    if !has_stack {
        sched.threads[thread].state = State::None;
        return None;
    }
    sched.threads[thread].frame = Frame::starting(entry, argument, top);
    sched.make_ready(thread);
    drop(sched);
    interrupts::send_others(interrupts::RESCHEDULE);
    Some(thread)
}

/// Ends the running thread.
pub(crate) fn exit() -> ! {
    if let Some(thread) = current() {
        SCHED.lock().threads[thread].state = State::Exiting;
    }
    yield_now();
    unreachable!("a thread that has ended runs");
}

/// Takes one from `left`, wakes those who wait for it, and ends the running thread. The word may be gone as soon as it is 0.
pub(crate) fn finish(left: &AtomicU32) -> ! {
    let addr = core::ptr::from_ref(left) as usize;
    left.fetch_sub(1, Ordering::SeqCst);
    wake_addr(addr);
    exit()
}

/// Whether the caller may sleep, and what forbids it otherwise.
pub(crate) fn may_sleep() -> Result<(), &'static str> {
    let masked = !cpu::interrupts_enabled();
    spin::mask();
    let (handlers, thread) = {
        let cpu = cpu::this();
        (cpu.interrupts.load(Ordering::Relaxed), cpu.thread.load(Ordering::Relaxed))
    };
    spin::unmask();
    if handlers != 0 {
        Err("in an interrupt")
    } else if masked {
        Err("interrupts are masked: inside a critical section, or a lock is held")
    } else if thread == IDLE {
        Err("not a thread")
    } else {
        Ok(())
    }
}

/// Sleeps until [`wake_all`] for this word, unless it has another value than `seen` already: compared under the lock that
/// whoever wakes takes, so that no wake-up falls between.
///
/// Panics where sleeping is forbidden: a thread that slept with interrupts masked would wake on a CPU whose are not.
pub(crate) fn wait(word: &AtomicU32, seen: u32) {
    if let Err(why) = may_sleep() {
        panic!("somebody sleeps {why}");
    }
    let Some(me) = current() else { return };
    if breaks::LOST_WAKEUP.load(Ordering::Relaxed) && word.load(Ordering::SeqCst) != seen {
        return;
    }
    {
        let mut sched = SCHED.lock();
        if !breaks::LOST_WAKEUP.load(Ordering::Relaxed) && word.load(Ordering::SeqCst) != seen {
            return;
        }
        sched.threads[me].state = State::Blocking;
        sched.threads[me].sleeps_on = core::ptr::from_ref(word) as usize;
    }
    yield_now();
}

/// Wakes everybody who sleeps on the word.
pub(crate) fn wake_all(word: &AtomicU32) {
    wake_addr(core::ptr::from_ref(word) as usize);
}

/// The word is not looked at: it may be gone.
fn wake_addr(addr: usize) {
    let mut sched = SCHED.lock();
    let mut woken = 0;
    for number in 0..MAX_THREADS {
        if sched.threads[number].sleeps_on != addr {
            continue;
        }
        match sched.threads[number].state {
            State::Blocking => sched.threads[number].state = State::Running,
            State::Blocked => {
                sched.make_ready(number);
                woken += 1;
            }
            _ => continue,
        }
        sched.threads[number].sleeps_on = 0;
    }
    drop(sched);
    if woken > 0 {
        interrupts::send_others(interrupts::RESCHEDULE);
    }
}

/// The running thread goes on on this CPU and stays there, until [`unbind`] or until the CPU goes [away](crate::hotplug). False for
/// what is no thread, and for a CPU that is away.
pub(crate) fn bind(cpu: usize) -> bool {
    let Some(me) = current() else { return false };
    SCHED.lock().threads[me].bound = Some(cpu);
    let there = go_to(cpu);
    if !there {
        unbind();
    }
    there
}

/// See [`bind`].
pub(crate) fn unbind() {
    if let Some(me) = current() {
        SCHED.lock().threads[me].bound = None;
    }
}

/// Like [`bind`], for a moment, whatever the thread is bound to; until [`end_visit`].
pub(crate) fn visit(cpu: usize) -> bool {
    let Some(me) = current() else { return false };
    SCHED.lock().threads[me].visits = Some(cpu);
    let there = go_to(cpu);
    if !there {
        end_visit();
    }
    there
}

/// The running thread goes back to where it is bound to.
pub(crate) fn end_visit() {
    let Some(me) = current() else { return };
    let bound = {
        let mut sched = SCHED.lock();
        sched.threads[me].visits = None;
        sched.threads[me].bound
    };
    if let Some(cpu) = bound {
        go_to(cpu);
    }
}

/// Yields until the running thread is on this CPU, where it must run. False when the CPU goes away.
fn go_to(cpu: usize) -> bool {
    while hotplug::is_online(cpu) {
        spin::mask();
        let here = cpu::id();
        spin::unmask();
        if here == cpu {
            return true;
        }
        interrupts::send_others(interrupts::RESCHEDULE);
        yield_now();
    }
    false
}

/// Whether somebody waits for something that only a thread could bring about, and no thread runs.
static QUIET_TICKS: AtomicU32 = AtomicU32::new(0);
/// Set once threads are supposed to run.
pub(crate) static WATCHED: AtomicBool = AtomicBool::new(false);

/// In the timer interrupt: the first CPU looks whether all threads sleep. Nobody but a thread wakes one here, so that is for good.
pub(crate) fn tick() {
    /// A thread between the queue and a CPU looks like none for a moment.
    const MANY_TICKS: u32 = 20;
    if cpu::id() != 0 || !WATCHED.load(Ordering::Relaxed) {
        return;
    }
    let sched = SCHED.lock();
    let can_run = |thread: &Thread| !matches!(thread.state, State::None | State::Blocked);
    if sched.threads.iter().any(can_run) {
        QUIET_TICKS.store(0, Ordering::Relaxed);
    } else if QUIET_TICKS.fetch_add(1, Ordering::Relaxed) > MANY_TICKS {
        let asleep = sched.threads.iter().filter(|thread| thread.state == State::Blocked).count();
        drop(sched);
        panic!("all {asleep} threads sleep, and nobody is left to wake them: a wake-up was lost");
    }
}

/// Threads and what they do, for the debugger: past the lock.
pub(crate) fn show(out: &mut dyn core::fmt::Write) -> core::fmt::Result {
    // SAFETY: read while all other CPUs have stopped; what is torn nevertheless are figures on a screen.
    let sched = unsafe { &*SCHED.as_ptr() };
    for (number, thread) in sched.threads.iter().enumerate().filter(|(_, thread)| thread.state != State::None) {
        writeln!(
            out,
            "thread {number}: {:?}, last on cpu {}, at {:#x}",
            thread.state, thread.last_cpu, thread.frame.rip
        )?;
    }
    Ok(())
}
