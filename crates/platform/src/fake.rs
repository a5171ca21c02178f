//! A scripted machine in a test process: as many CPUs as the test likes, pages that end, calls that fail when told to.
//!
//! # Theory
//!
//! [`Fake`] is a [`Platform`], so all its functions are associated ones and know no `self`. Which [`Machine`] they act on
//! stands in a thread-local that [`Machine::run`] sets for the time of a closure; several machines can live in one process, and
//! each thread can be on another. The same thread-local holds the CPU the thread *says* it runs on: the test moves the thread
//! with [`Machine::set_cpu`] between calls, or with [`Machine::hop`] in the middle of one, between two sections, which is
//! where a scheduler hurts.
//!
//! Slots are real lock words taken by compare-and-swap, hence real threads may share a machine. Memory is three
//! ranges (heap, a word per heap page, records) that the C library maps and the kernel backs on touch.
//!
//! # What it holds against its caller
//!
//! A breach of the contract panics, with a text that names call and slot: `leave` of a slot that is not held, two sections at
//! once, a section entered with a lock held or a lock taken inside a section, locks taken in both orders, slots claimed out
//! of order, a discard of pages in use. Threads that wait for one that has panicked so give up too.
//!
//! # Failing calls
//!
//! Every call is counted by its [`Call`]. A test runs its script once, asks [`Machine::calls`] how often each was made, and runs it
//! again for each of them with [`Machine::fail_nth`]: that is every point where this script can meet a failure.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::alloc::Layout;
use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use std::vec::Vec;

use crate::{Extent, MisuseReport, PageKind, Platform, RawLock, SlotTable};

/// Bytes of a page of the machine.
pub const PAGE: usize = 1 << Fake::PAGE_SHIFT;
/// How long a thread waits for a slot or a lock before it says that something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sleepers of all machines: a wake-up on one is an early return on another.
static SLEEPERS: Mutex<()> = Mutex::new(());
static WOKEN: Condvar = Condvar::new();

/// A machine as the test wants it.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// CPU identities.
    pub cpus: usize,
    /// Slots of each.
    pub rows: usize,
    /// Address space of the heap.
    pub heap_bytes: usize,
    /// Address space of the allocator's records.
    pub meta_bytes: usize,
    /// Bytes left out between two extents of the heap, as when another mapping lies there.
    pub heap_gap_bytes: usize,
    /// Whether sections and locks exclude each other (the rule of `kern`: no lock inside a section, no section under a lock).
    pub strict: bool,
    /// NUMA domains; a CPU's is its number modulo this, as where boards are interleaved.
    pub domains: usize,
    /// Whether a page with this word is in use; what [`Platform::discard`] must never be told to discard. The machine knows
    /// where the words are but not what they say.
    pub page_in_use: fn(u64) -> bool,
    /// Told of every call that is counted, by the thread that makes it.
    pub on_call: fn(Call),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpus: 1,
            rows: 1,
            heap_bytes: 256 << 20,
            meta_bytes: 64 << 20,
            heap_gap_bytes: 0,
            domains: 1,
            strict: true,
            page_in_use: |_| false,
            on_call: |_| {},
        }
    }
}

/// The platform's calls, as counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Call {
    /// [`Platform::enter`]; a failure is a CPU without a free slot.
    Enter,
    /// [`Platform::claim_shared`]; cannot fail.
    ClaimShared,
    /// [`Platform::claim_remote`].
    ClaimRemote,
    /// [`Platform::extend_heap`].
    ExtendHeap,
    /// [`Platform::extend_meta`].
    ExtendMeta,
    /// [`Platform::discard`].
    Discard,
    /// [`Platform::populate`].
    Populate,
    /// [`Platform::move_pages`].
    MovePages,
    /// [`Platform::set_page_kind`], to another kind than the ordinary one.
    SetPageKind,
    /// [`Platform::out_of_memory`]; cannot fail.
    OutOfMemory,
    /// [`Platform::misuse`]; cannot fail.
    Misuse,
}

impl Call {
    const COUNT: usize = Self::Misuse as usize + 1;
    /// Those that can fail.
    pub const FALLIBLE: [Self; 7] = [
        Self::Enter,
        Self::ClaimRemote,
        Self::ExtendHeap,
        Self::ExtendMeta,
        Self::Discard,
        Self::Populate,
        Self::MovePages,
    ];
}

/// Counters and script of one call.
#[derive(Default)]
struct Script {
    made: AtomicU64,
    failed: AtomicU64,
    /// Of these, those that the script wanted.
    injected: AtomicU64,
    /// Number of the call that fails, 0 for none.
    fail_at: AtomicU64,
    /// Every so many calls one fails, 0 for none.
    fail_every: AtomicU64,
}

/// Address space from the C library: zero, and backed only where touched.
struct Space {
    block: *mut u8,
    layout: Layout,
    base: usize,
    bytes: usize,
}

// SAFETY: plain memory; who may touch which part of it is the allocator's affair.
unsafe impl Send for Space {}
// SAFETY: as above.
unsafe impl Sync for Space {}

impl Space {
    /// `base` is `skew` bytes past a multiple of `align`.
    fn new(bytes: usize, align: usize, skew: usize) -> Self {
        assert!(bytes > 0 && align.is_power_of_two());
        // Asked for with no alignment, since an aligned request would be zeroed by hand, and so be touched.
        let layout = Layout::from_size_align(bytes + align + skew, 8).expect("a size that exists");
        // SAFETY: the size is not zero.
        let block = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!block.is_null(), "no address space for the fake machine: {bytes} bytes");
        Self { block, layout, base: (block as usize).next_multiple_of(align) + skew, bytes }
    }

    fn contains(&self, addr: usize, bytes: usize) -> bool {
        addr >= self.base && bytes <= self.bytes && addr - self.base <= self.bytes - bytes
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: from `alloc_zeroed` with this layout.
        unsafe { std::alloc::dealloc(self.block, self.layout) };
    }
}

/// What changes rarely enough for a mutex.
#[derive(Default)]
struct Supply {
    heap_used: usize,
    heap_given: usize,
    heap_budget: Option<usize>,
    meta_used: usize,
    meta_budget: Option<usize>,
    discarded_bytes: usize,
    reports: Vec<MisuseReport>,
    warnings: Vec<std::string::String>,
    /// What [`Platform::place_pages`] was told: address, bytes, domain.
    placed: Vec<(usize, usize, usize)>,
    /// Pages that are not ordinary, by their addresses.
    page_kinds: std::collections::HashMap<usize, PageKind>,
    /// Locks that have names, by their addresses.
    lock_names: std::collections::HashMap<usize, &'static str>,
    /// What [`Platform::may_sleep`] has said of them, each text once.
    lock_texts: HashSet<&'static str>,
    /// Pairs of locks of which the second was taken under the first.
    lock_order: HashSet<(usize, usize)>,
}

struct Inner {
    config: Config,
    heap: Space,
    words: Space,
    meta: Space,
    supply: Mutex<Supply>,
    slots: OnceLock<SlotTable>,
    scripts: [Script; Call::COUNT],
    now_ns: AtomicU64,
    /// How often a thread fell asleep in [`Platform::wait`].
    sleeps: AtomicU64,
    /// A thread has broken the contract; who waits need not wait on.
    broken: AtomicBool,
}

impl Inner {
    fn supply(&self) -> std::sync::MutexGuard<'_, Supply> {
        self.supply.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call. True when the script wants it to fail.
    fn call(&self, call: Call) -> bool {
        (self.config.on_call)(call);
        let script = &self.scripts[call as usize];
        let number = script.made.fetch_add(1, Ordering::Relaxed) + 1;
        let every = script.fail_every.load(Ordering::Relaxed);
        let fails = script.fail_at.load(Ordering::Relaxed) == number || (every != 0 && number.is_multiple_of(every));
        if fails {
            script.failed.fetch_add(1, Ordering::Relaxed);
            script.injected.fetch_add(1, Ordering::Relaxed);
        }
        fails
    }

    /// Counts a call that failed for want of pages.
    fn refuse(&self, call: Call) {
        self.scripts[call as usize].failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Which locks these are, in the order in which they were taken, as far as they have names.
    fn describe_locks(&self, locks: &[usize]) -> &'static str {
        let mut supply = self.supply();
        let names: Vec<&str> = locks.iter().filter_map(|lock| supply.lock_names.get(lock).copied()).collect();
        if names.is_empty() {
            return "a lock is held";
        }
        let text = std::format!("held: {}", names.join(", "));
        match supply.lock_texts.get(text.as_str()) {
            Some(known) => known,
            None => {
                let text: &'static str = text.leak();
                supply.lock_texts.insert(text);
                text
            }
        }
    }

    #[track_caller]
    fn breach(&self, text: core::fmt::Arguments<'_>) -> ! {
        self.broken.store(true, Ordering::Relaxed);
        panic!("fake platform: {text}");
    }

    fn slot_table(&self) -> SlotTable {
        match self.slots.get() {
            Some(table) => *table,
            None => self.breach(format_args!("a slot is claimed before the slots are bound")),
        }
    }

    /// Index of a slot of the bound table.
    fn slot_index(&self, what: &str, slot: usize) -> usize {
        let table = self.slot_table();
        let offset = slot.wrapping_sub(table.base);
        let index = offset / table.stride_bytes;
        if !offset.is_multiple_of(table.stride_bytes) || index >= table.count() {
            self.breach(format_args!("{what}: {slot:#x} is no slot of the table"));
        }
        index
    }

    fn wait_until(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let start = Instant::now();
        let mut rounds = 0u64;
        while !ready() {
            rounds += 1;
            if self.broken.load(Ordering::Relaxed) {
                panic!("fake platform: {what}: gives up waiting, since another thread broke the contract");
            }
            if rounds.is_multiple_of(1024) && start.elapsed() > PATIENCE {
                self.breach(format_args!("{what}: waited for {PATIENCE:?}"));
            }
            std::thread::yield_now();
        }
    }
}

/// This thread's place on a machine.
struct Here {
    machine: Arc<Inner>,
    cpu: Option<usize>,
    hops: VecDeque<Option<usize>>,
    /// Slots held, by index.
    held: Vec<usize>,
    /// Locks held, by address.
    locks: Vec<usize>,
    interrupt: bool,
}

std::thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// Non-zero, unique to the running thread: what it writes into a slot's word.
fn thread_token() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    std::thread_local! {
        static TOKEN: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    TOKEN.with(|token| *token)
}

#[track_caller]
fn with<T>(f: impl FnOnce(&mut Here) -> T) -> T {
    HERE.with_borrow_mut(|here| match here {
        Some(here) => f(here),
        None => panic!("fake platform: called outside of Machine::run"),
    })
}

/// Puts back where the thread was before, when a run ends.
struct Restore(Option<Here>);

impl Drop for Restore {
    fn drop(&mut self) {
        let ended = HERE.with_borrow_mut(|here| core::mem::replace(here, self.0.take()));
        if let Some(ended) = ended
            && !std::thread::panicking()
        {
            assert!(ended.held.is_empty(), "fake platform: a run ended inside the section of slot {:?}", ended.held);
            assert!(ended.locks.is_empty(), "fake platform: a run ended with {} locks held", ended.locks.len());
        }
    }
}

/// A handle on one machine; clones are the same machine.
#[derive(Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

impl Machine {
    /// A machine with all its memory unused.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let inner = Inner {
            heap: Space::new(config.heap_bytes, PAGE, 0),
            words: Space::new(config.heap_bytes / PAGE * 8, PAGE, 0),
            // One page past a multiple of any larger power of two: the contract promises no more than a page.
            meta: Space::new(config.meta_bytes, 2 * PAGE, PAGE),
            config,
            supply: Mutex::default(),
            slots: OnceLock::new(),
            scripts: Default::default(),
            now_ns: AtomicU64::new(1),
            sleeps: AtomicU64::new(0),
            broken: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Runs a closure on CPU 0 of this machine.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> T {
        self.run_on(0, f)
    }

    /// Runs a closure on a CPU of this machine.
    pub fn run_on<T>(&self, cpu: usize, f: impl FnOnce() -> T) -> T {
        let here = Here {
            machine: Arc::clone(&self.inner),
            cpu: Some(cpu),
            hops: VecDeque::new(),
            held: Vec::new(),
            locks: Vec::new(),
            interrupt: false,
        };
        let _restore = Restore(HERE.with_borrow_mut(|place| place.replace(here)));
        f()
    }

    /// A thread on a CPU of this machine.
    pub fn spawn<T: Send + 'static>(
        &self,
        cpu: usize,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let machine = self.clone();
        std::thread::spawn(move || machine.run_on(cpu, f))
    }

    /// The running thread is on this CPU from now on; on none that the platform knows of with `None`.
    pub fn set_cpu(cpu: Option<usize>) {
        with(|here| here.cpu = cpu);
    }

    /// At the `sections`-th section entered from now on (1 is the next) the running thread finds itself on this CPU.
    pub fn hop(sections: usize, cpu: Option<usize>) {
        with(|here| {
            while here.hops.len() + 1 < sections {
                let stay = here.hops.back().copied().unwrap_or(here.cpu);
                here.hops.push_back(stay);
            }
            here.hops.truncate(sections - 1);
            here.hops.push_back(cpu);
        });
    }

    /// First address of the heap.
    #[must_use]
    pub fn heap_base(&self) -> usize {
        self.inner.heap.base
    }

    /// Address of the word of the heap's first page.
    #[must_use]
    pub fn table(&self) -> usize {
        self.inner.words.base
    }

    /// How far the heap reaches by now, gaps included, bytes.
    #[must_use]
    pub fn heap_used(&self) -> usize {
        self.inner.supply().heap_used
    }

    /// Bytes of the heap given out so far.
    #[must_use]
    pub fn heap_given(&self) -> usize {
        self.inner.supply().heap_given
    }

    /// Bytes of records given out so far.
    #[must_use]
    pub fn meta_used(&self) -> usize {
        self.inner.supply().meta_used
    }

    /// Bytes ever discarded.
    #[must_use]
    pub fn discarded_bytes(&self) -> usize {
        self.inner.supply().discarded_bytes
    }

    /// From now on the heap grows by at most so many pages; without a bound (but that of its address space) with `None`.
    pub fn set_heap_budget(&self, pages: Option<usize>) {
        self.inner.supply().heap_budget = pages.map(|pages| pages * PAGE);
    }

    /// The same for the allocator's records.
    pub fn set_meta_budget(&self, pages: Option<usize>) {
        self.inner.supply().meta_budget = pages.map(|pages| pages * PAGE);
    }

    /// The `n`-th of these calls from now on fails (1 is the next).
    pub fn fail_nth(&self, call: Call, n: u64) {
        let script = &self.inner.scripts[call as usize];
        script.fail_at.store(script.made.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// Every `n`-th of these calls fails; none with 0.
    pub fn fail_every(&self, call: Call, n: u64) {
        self.inner.scripts[call as usize].fail_every.store(n, Ordering::Relaxed);
    }

    /// No call fails any more, and memory is bounded by its address space only.
    pub fn heal(&self) {
        for script in &self.inner.scripts {
            script.fail_at.store(0, Ordering::Relaxed);
            script.fail_every.store(0, Ordering::Relaxed);
        }
        self.set_heap_budget(None);
        self.set_meta_budget(None);
    }

    /// How often a call was made.
    #[must_use]
    pub fn calls(&self, call: Call) -> u64 {
        self.inner.scripts[call as usize].made.load(Ordering::Relaxed)
    }

    /// How often a thread fell asleep in [`Platform::wait`], rather than return at once: what a test waits for that wants somebody
    /// to have looked in vain.
    #[must_use]
    pub fn sleeps(&self) -> u64 {
        self.inner.sleeps.load(Ordering::Acquire)
    }

    /// How often a call failed, because the script said so or for want of pages.
    #[must_use]
    pub fn failed(&self, call: Call) -> u64 {
        self.inner.scripts[call as usize].failed.load(Ordering::Relaxed)
    }

    /// How many calls of all kinds failed because the script said so.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.inner.scripts.iter().map(|script| script.injected.load(Ordering::Relaxed)).sum()
    }

    /// A thread of the test has failed: those that wait on this machine, asleep or for a lock, panic instead of waiting for it in vain.
    pub fn give_up(&self) {
        self.inner.broken.store(true, Ordering::Relaxed);
        drop(SLEEPERS.lock().unwrap_or_else(PoisonError::into_inner));
        WOKEN.notify_all();
    }

    /// Gives a lock a name, which [`Platform::may_sleep`] then says while it is held.
    pub fn name_lock(&self, lock: &FakeLock, name: &'static str) {
        self.inner.supply().lock_names.insert(lock.address(), name);
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        self.inner.now_ns.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Runs `f` as an interrupt handler does, on the CPU that this thread is on.
    pub fn interrupt<T>(f: impl FnOnce() -> T) -> T {
        let before = with(|here| core::mem::replace(&mut here.interrupt, true));
        let result = f();
        with(|here| here.interrupt = before);
        result
    }

    /// The misuses reported since the last call of this function.
    #[must_use]
    pub fn take_reports(&self) -> Vec<MisuseReport> {
        core::mem::take(&mut self.inner.supply().reports)
    }

    /// Of which kind a page is.
    #[must_use]
    pub fn page_kind(&self, addr: usize) -> PageKind {
        self.inner.supply().page_kinds.get(&(addr & !(PAGE - 1))).copied().unwrap_or(PageKind::ORDINARY)
    }

    /// Pages that are not ordinary.
    #[must_use]
    pub fn special_pages(&self) -> usize {
        self.inner.supply().page_kinds.len()
    }

    /// The warnings since the last call of this function.
    #[must_use]
    pub fn take_warnings(&self) -> Vec<std::string::String> {
        core::mem::take(&mut self.inner.supply().warnings)
    }

    /// The domain that a page was last placed in, if it ever was.
    #[must_use]
    pub fn domain_of_page(&self, addr: usize) -> Option<usize> {
        let supply = self.inner.supply();
        supply.placed.iter().rev().find(|(at, bytes, _)| (*at..at + bytes).contains(&addr)).map(|placed| placed.2)
    }

    /// Takes a slot from under the allocator, as a holder does that is preempted. Give it back with [`Machine::resume`].
    ///
    /// # Panics
    /// If it is held already.
    pub fn preempt(&self, slot: usize) {
        let word = word(self.inner.slot_table().slot(slot));
        let taken = word.compare_exchange(0, u32::MAX, Ordering::Acquire, Ordering::Relaxed);
        assert!(taken.is_ok(), "fake platform: slot {slot} is held");
    }

    /// See [`Machine::preempt`].
    ///
    /// # Panics
    /// If the slot is not one taken so.
    pub fn resume(&self, slot: usize) {
        let word = word(self.inner.slot_table().slot(slot));
        let left = word.compare_exchange(u32::MAX, 0, Ordering::Release, Ordering::Relaxed);
        assert!(left.is_ok(), "fake platform: slot {slot} was not taken by `preempt`");
    }
}

/// The lock word of a slot.
fn word(slot: usize) -> &'static AtomicU32 {
    // SAFETY: every caller has a slot of the bound table, whose first word is the platform's. The table is in the
    // machine's records, which live as long as the machine that the caller runs on; the reference does not leave the call.
    unsafe { &*(slot as *const AtomicU32) }
}

fn try_claim(slot: usize) -> bool {
    word(slot).compare_exchange(0, thread_token(), Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// The platform of whichever [`Machine`] the running thread is on.
#[derive(Clone, Copy, Debug)]
pub struct Fake;

impl Fake {
    fn machine() -> Arc<Inner> {
        with(|here| Arc::clone(&here.machine))
    }
}

// SAFETY: 1. a slot's word is taken by compare-and-swap with acquire and left with release. 2. and 3. extents are parts of
// zeroed memory that are given out once; `discard` zeroes.
unsafe impl Platform for Fake {
    type Lock = FakeLock;

    fn bind_slots(table: SlotTable) {
        with(|here| {
            let machine = &here.machine;
            if !machine.meta.contains(table.base, table.count() * table.stride_bytes) {
                machine.breach(format_args!("bind_slots: the table lies outside of the records"));
            }
            if machine.slots.set(table).is_err() {
                machine.breach(format_args!("bind_slots: bound twice"));
            }
        });
    }

    fn enter() -> usize {
        with(|here| {
            let machine = &here.machine;
            if let Some(cpu) = here.hops.pop_front() {
                here.cpu = cpu;
            }
            if let Some(held) = here.held.first() {
                machine.breach(format_args!("enter: this thread is in the section of slot {held} already"));
            }
            if machine.config.strict && !here.locks.is_empty() {
                machine.breach(format_args!("enter: this thread holds {} locks", here.locks.len()));
            }
            let fails = machine.call(Call::Enter);
            let (Some(table), Some(cpu), false) = (machine.slots.get(), here.cpu, fails) else { return 0 };
            for row in 0..table.rows {
                let index = row * table.ids + cpu % table.ids;
                if try_claim(table.slot(index)) {
                    here.held.push(index);
                    return table.slot(index);
                }
            }
            0
        })
    }

    unsafe fn leave(slot: usize) {
        with(|here| {
            let index = here.machine.slot_index("leave", slot);
            let Some(at) = here.held.iter().position(|&held| held == index) else {
                here.machine.breach(format_args!("leave: this thread does not hold slot {index}"));
            };
            here.held.swap_remove(at);
            let was = word(slot).swap(0, Ordering::Release);
            if was != thread_token() {
                here.machine.breach(format_args!("leave: the word of slot {index} was {was:#x}, not this thread's"));
            }
        });
    }

    unsafe fn claim_shared(slot: usize) {
        with(|here| {
            let machine = &here.machine;
            machine.call(Call::ClaimShared);
            let index = machine.slot_index("claim_shared", slot);
            if index + 1 != machine.slot_table().count() {
                machine.breach(format_args!("claim_shared: slot {index} is not the last"));
            }
            if !here.held.is_empty() {
                machine.breach(format_args!("claim_shared: this thread holds slot {}", here.held[0]));
            }
            machine.wait_until("claim_shared", || try_claim(slot));
            here.held.push(index);
        });
    }

    unsafe fn claim_remote(slot: usize) -> bool {
        with(|here| {
            let machine = &here.machine;
            let index = machine.slot_index("claim_remote", slot);
            if let Some(held) = here.held.iter().find(|&&held| held >= index) {
                machine.breach(format_args!("claim_remote: slot {index} after slot {held}"));
            }
            if machine.call(Call::ClaimRemote) {
                return false;
            }
            machine.wait_until("claim_remote", || try_claim(slot));
            here.held.push(index);
            true
        })
    }

    fn domain_of_slot(index: usize) -> usize {
        let machine = Self::machine();
        let table = machine.slot_table();
        // The last slot is everybody's, and so of no CPU: it counts as one of the first domain.
        if index + 1 == table.count() { 0 } else { index % table.ids % machine.config.domains }
    }

    fn domains() -> usize {
        Self::machine().config.domains
    }

    fn place_pages(addr: usize, bytes: usize, domain: usize) {
        let machine = Self::machine();
        machine.check_pages("place_pages", addr, bytes);
        if domain >= machine.config.domains {
            machine.breach(format_args!("place_pages: there is no domain {domain}"));
        }
        machine.supply().placed.push((addr, bytes, domain));
    }

    fn warning(text: &[u8]) {
        let text = std::string::String::from_utf8_lossy(text).into_owned();
        Self::machine().supply().warnings.push(text);
    }

    fn extend_heap(min_bytes: usize, want_bytes: usize) -> Option<Extent> {
        let machine = Self::machine();
        if min_bytes == 0 || !min_bytes.is_multiple_of(PAGE) || !want_bytes.is_multiple_of(PAGE) {
            machine.breach(format_args!("extend_heap: {min_bytes} to {want_bytes} bytes are not whole pages"));
        }
        if machine.call(Call::ExtendHeap) {
            return None;
        }
        let mut supply = machine.supply();
        let gap = if supply.heap_used == 0 { 0 } else { machine.config.heap_gap_bytes };
        let space = machine.heap.bytes.saturating_sub(supply.heap_used + gap) / PAGE * PAGE;
        let most = supply.heap_budget.map_or(space, |budget| budget.min(space));
        let bytes = if want_bytes.max(min_bytes) <= most { want_bytes.max(min_bytes) } else { min_bytes };
        if bytes > most {
            machine.refuse(Call::ExtendHeap);
            return None;
        }
        if let Some(budget) = &mut supply.heap_budget {
            *budget -= bytes;
        }
        let addr = machine.heap.base + supply.heap_used + gap;
        supply.heap_used += gap + bytes;
        supply.heap_given += bytes;
        Some(Extent { addr, bytes })
    }

    fn extend_meta(min_bytes: usize) -> Option<Extent> {
        let machine = Self::machine();
        if machine.call(Call::ExtendMeta) {
            return None;
        }
        let mut supply = machine.supply();
        let bytes = min_bytes.next_multiple_of(PAGE);
        let space = machine.meta.bytes - supply.meta_used;
        if bytes > supply.meta_budget.map_or(space, |budget| budget.min(space)) {
            machine.refuse(Call::ExtendMeta);
            return None;
        }
        if let Some(budget) = &mut supply.meta_budget {
            *budget -= bytes;
        }
        let addr = machine.meta.base + supply.meta_used;
        supply.meta_used += bytes;
        Some(Extent { addr, bytes })
    }

    unsafe fn discard(addr: usize, bytes: usize) -> bool {
        let machine = Self::machine();
        machine.check_pages("discard", addr, bytes);
        for page in (addr..addr + bytes).step_by(PAGE) {
            // SAFETY: the page is the heap's, so it has a word.
            let word = unsafe { &*((machine.words.base + (page - machine.heap.base) / PAGE * 8) as *const AtomicU64) };
            let word = word.load(Ordering::Relaxed);
            if (machine.config.page_in_use)(word) {
                machine.breach(format_args!("discard: page {page:#x} is in use, its word is {word:#x}"));
            }
        }
        if machine.call(Call::Discard) {
            return false;
        }
        // SAFETY: pages of the heap that are free (1.).
        unsafe { core::ptr::write_bytes(addr as *mut u8, 0, bytes) };
        machine.supply().discarded_bytes += bytes;
        true
    }

    unsafe fn populate(addr: usize, bytes: usize) -> bool {
        let machine = Self::machine();
        machine.check_pages("populate", addr, bytes);
        !machine.call(Call::Populate)
    }

    unsafe fn set_page_kind(addr: usize, bytes: usize, kind: PageKind) -> bool {
        let machine = Self::machine();
        machine.check_pages("set_page_kind", addr, bytes);
        if kind != PageKind::ORDINARY && machine.call(Call::SetPageKind) {
            return false;
        }
        let mut supply = machine.supply();
        for page in (addr..addr + bytes).step_by(PAGE) {
            if kind == PageKind::ORDINARY {
                supply.page_kinds.remove(&page);
            } else {
                supply.page_kinds.insert(page, kind);
            }
        }
        true
    }

    unsafe fn move_pages(from: usize, to: usize, bytes: usize) -> bool {
        let machine = Self::machine();
        machine.check_pages("move_pages", from, bytes);
        machine.check_pages("move_pages", to, bytes);
        if from < to + bytes && to < from + bytes {
            machine.breach(format_args!("move_pages: {bytes} bytes at {from:#x} and {to:#x} overlap"));
        }
        if machine.call(Call::MovePages) {
            return false;
        }
        // SAFETY: disjoint pages of the heap that nobody else touches (1.).
        unsafe {
            core::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
            core::ptr::write_bytes(from as *mut u8, 0, bytes);
        }
        true
    }

    fn in_interrupt() -> bool {
        with(|here| here.interrupt)
    }

    fn may_sleep() -> Result<(), &'static str> {
        with(|here| {
            if here.interrupt {
                Err("in an interrupt")
            } else if !here.held.is_empty() {
                Err("inside a critical section")
            } else if !here.locks.is_empty() {
                Err(here.machine.describe_locks(&here.locks))
            } else {
                Ok(())
            }
        })
    }

    fn wait(word: &AtomicU32, seen: u32) {
        let machine = Self::machine();
        if let Err(what) = Self::may_sleep() {
            machine.breach(format_args!("wait: {what}"));
        }
        let deadline = Instant::now() + PATIENCE;
        let mut asleep = SLEEPERS.lock().unwrap_or_else(PoisonError::into_inner);
        if word.load(Ordering::SeqCst) == seen {
            machine.sleeps.fetch_add(1, Ordering::Release);
        }
        while word.load(Ordering::SeqCst) == seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if machine.broken.load(Ordering::Relaxed) {
                drop(asleep);
                panic!("fake platform: wait: gives up, since another thread failed");
            }
            if left.is_zero() {
                machine.breach(format_args!("wait: nobody wakes the sleeper"));
            }
            asleep = WOKEN.wait_timeout(asleep, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wake_all(_word: &AtomicU32) {
        // The word was changed before: whoever compared the old value is asleep once the mutex is ours.
        drop(SLEEPERS.lock().unwrap_or_else(PoisonError::into_inner));
        WOKEN.notify_all();
    }

    fn now_ns() -> u64 {
        Self::machine().now_ns.load(Ordering::Relaxed)
    }

    fn out_of_memory() {
        Self::machine().call(Call::OutOfMemory);
    }

    fn misuse(report: &MisuseReport) {
        let machine = Self::machine();
        machine.call(Call::Misuse);
        machine.supply().reports.push(*report);
    }
}

impl Inner {
    fn check_pages(&self, what: &str, addr: usize, bytes: usize) {
        let used = self.supply().heap_used;
        let whole = bytes > 0 && addr.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE);
        if !whole || !self.heap.contains(addr, bytes) || addr + bytes > self.heap.base + used {
            self.breach(format_args!("{what}: {bytes} bytes at {addr:#x} are not pages of the heap"));
        }
    }
}

/// A spin lock that knows who may take it when.
pub struct FakeLock(AtomicUsize);

impl FakeLock {
    fn address(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }

    /// Panics where the order of locks or sections forbids this lock to this thread.
    fn check(&self, here: &Here) {
        let machine = &here.machine;
        if here.locks.contains(&self.address()) {
            machine.breach(format_args!("lock: this thread holds the lock already"));
        }
        if machine.config.strict && !here.held.is_empty() {
            machine.breach(format_args!("lock: taken inside the section of slot {}", here.held[0]));
        }
        let mut supply = machine.supply();
        for &held in &here.locks {
            if supply.lock_order.contains(&(self.address(), held)) {
                drop(supply);
                machine.breach(format_args!("lock: two locks are taken in either order"));
            }
            supply.lock_order.insert((held, self.address()));
        }
    }

    fn take(&self) -> bool {
        self.0.compare_exchange(0, thread_token() as usize, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

// SAFETY: one thread at a time passes the exchange from 0.
unsafe impl RawLock for FakeLock {
    const INIT: Self = Self(AtomicUsize::new(0));

    fn lock(&self) {
        with(|here| {
            self.check(here);
            here.machine.wait_until("lock", || self.take());
            here.locks.push(self.address());
        });
    }

    fn try_lock(&self) -> bool {
        with(|here| {
            let taken = self.take();
            if taken {
                here.locks.push(self.address());
            }
            taken
        })
    }

    unsafe fn unlock(&self) {
        with(|here| {
            let Some(at) = here.locks.iter().rposition(|&held| held == self.address()) else {
                // A panic that unwinds through a guard must not become two.
                if std::thread::panicking() {
                    return;
                }
                here.machine.breach(format_args!("unlock: this thread does not hold the lock"));
            };
            here.locks.remove(at);
            self.0.store(0, Ordering::Release);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(config: Config) -> (Machine, SlotTable) {
        let machine = Machine::new(config);
        let table = machine.run(|| {
            let stride_bytes = 64;
            let bytes = (config.cpus * config.rows + 1) * stride_bytes;
            let base = Fake::extend_meta(bytes).unwrap().addr;
            let table = SlotTable { base, stride_bytes, ids: config.cpus, rows: config.rows };
            Fake::bind_slots(table);
            table
        });
        (machine, table)
    }

    #[test]
    fn a_cpu_has_its_rows_and_then_none() {
        let (machine, table) = machine(Config { cpus: 2, rows: 2, ..Config::default() });
        machine.run_on(1, || {
            let slot = Fake::enter();
            assert_eq!(slot, table.slot(1));
            // SAFETY: 1. just entered.
            unsafe { Fake::leave(slot) };
            machine.preempt(1);
            let slot = Fake::enter();
            assert_eq!(slot, table.slot(3));
            // SAFETY: 1. just entered.
            unsafe { Fake::leave(slot) };
            machine.preempt(3);
            assert_eq!(Fake::enter(), 0);
            Machine::hop(1, Some(0));
            Machine::hop(2, None);
            let slot = Fake::enter();
            assert_eq!(slot, table.slot(0));
            // SAFETY: 1. just entered.
            unsafe { Fake::leave(slot) };
            assert_eq!(Fake::enter(), 0);
            assert_eq!(machine.calls(Call::Enter), 5);
        });
    }

    #[test]
    fn pages_end_and_calls_fail_as_told() {
        let (machine, _) = machine(Config::default());
        machine.run(|| {
            machine.set_heap_budget(Some(3));
            assert_eq!(Fake::extend_heap(PAGE, 8 * PAGE).map(|extent| extent.bytes), Some(PAGE));
            assert_eq!(Fake::extend_heap(PAGE, 2 * PAGE).map(|extent| extent.bytes), Some(2 * PAGE));
            assert_eq!(Fake::extend_heap(PAGE, PAGE), None);
            machine.heal();
            machine.fail_nth(Call::ExtendHeap, 2);
            assert!(Fake::extend_heap(PAGE, PAGE).is_some());
            assert!(Fake::extend_heap(PAGE, PAGE).is_none());
            assert!(Fake::extend_heap(PAGE, PAGE).is_some());
            machine.fail_every(Call::ExtendMeta, 2);
            let served = (0..6).filter(|_| Fake::extend_meta(PAGE).is_some()).count();
            assert_eq!((served, machine.failed(Call::ExtendMeta)), (3, 3));
        });
    }

    #[test]
    fn machines_do_not_know_each_other() {
        let (one, two) = (Machine::new(Config::default()), Machine::new(Config::default()));
        one.run(|| {
            one.advance(Duration::from_nanos(6));
            two.run(|| assert_eq!(Fake::now_ns(), 1));
            assert_eq!(Fake::now_ns(), 7);
            let there = two.clone();
            two.spawn(3, move || there.advance(Duration::from_nanos(2))).join().unwrap();
            assert_eq!(two.run(Fake::now_ns), 3);
        });
    }

    #[test]
    #[should_panic(expected = "leave: this thread does not hold slot 0")]
    fn a_leave_without_enter_is_a_breach() {
        let (machine, table) = machine(Config::default());
        // SAFETY: none: that is the point; the fake finds out before it does anything.
        machine.run(|| unsafe { Fake::leave(table.slot(0)) });
    }

    #[test]
    #[should_panic(expected = "enter: this thread is in the section of slot 0 already")]
    fn a_section_inside_a_section_is_a_breach() {
        let (machine, _) = machine(Config::default());
        machine.run(|| (Fake::enter(), Fake::enter()));
    }

    #[test]
    #[should_panic(expected = "claim_remote: slot 1 after slot 1")]
    fn a_slot_claimed_twice_is_a_breach() {
        let (machine, table) = machine(Config { cpus: 2, ..Config::default() });
        // SAFETY: 1. a slot of the table; the second claim is the breach, found before anything is done.
        machine.run(|| unsafe { (Fake::claim_remote(table.slot(1)), Fake::claim_remote(table.slot(1))) });
    }

    #[test]
    #[should_panic(expected = "is in use, its word is 0x3")]
    fn a_discard_of_pages_in_use_is_a_breach() {
        let machine = Machine::new(Config { page_in_use: |word| word == 3, ..Config::default() });
        machine.run(|| {
            let extent = Fake::extend_heap(2 * PAGE, 2 * PAGE).unwrap();
            // SAFETY: the words of the heap's pages are ours to write.
            unsafe { *((machine.table() + 8) as *mut u64) = 3 };
            // SAFETY: none for the second page: the fake finds out before it does anything.
            unsafe { Fake::discard(extent.addr, extent.bytes) };
        });
    }

    #[test]
    #[should_panic(expected = "two locks are taken in either order")]
    fn locks_in_both_orders_are_a_breach() {
        let machine = Machine::new(Config::default());
        let locks = [FakeLock::INIT, FakeLock::INIT];
        machine.run(|| {
            for (first, second) in [(0, 1), (1, 0)] {
                locks[first].lock();
                locks[second].lock();
                for lock in &locks {
                    // SAFETY: 1. both were just taken.
                    unsafe { lock.unlock() };
                }
            }
        });
    }

    #[test]
    fn a_lock_that_cannot_be_taken_stays_with_its_holder() {
        let machine = Machine::new(Config::default());
        let lock = crate::Lock::<FakeLock, u32>::new(7);
        machine.run(|| {
            let guard = lock.lock();
            assert!(lock.try_lock().is_none() && lock.try_lock().is_none());
            assert_eq!(*guard, 7);
            drop(guard);
            assert!(lock.try_lock().is_some());
        });
    }

    #[test]
    #[should_panic(expected = "lock: taken inside the section of slot 0")]
    fn a_lock_inside_a_section_is_a_breach() {
        let (machine, _) = machine(Config::default());
        let lock = FakeLock::INIT;
        machine.run(|| {
            Fake::enter();
            lock.lock();
        });
    }
}
