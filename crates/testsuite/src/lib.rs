//! One list of tests for every platform: the fake machine, a Linux process, a booted kernel, and whatever comes. A port that passes
//! has kept the contract of [`platform::Platform`] as far as tests can say (`docs/porting.md`).
//!
//! A port implements [`Host`], which is what tests need besides the allocator: threads, something that plays the interrupt,
//! memory that can be made scarce. Then it calls [`run`].
//!
//! The tests use `alloc` for their own records, and the allocator under test by its own calls, with malloc types of their own;
//! so in a kernel, where both are the same allocator, what they count is still theirs alone.
#![no_std]

extern crate alloc;

mod basic;
mod block;
mod contiguous;
mod contract;
mod cpus;
mod domains;
mod interrupts;
mod ledger;
mod pressure;
mod sharing;
mod shortage;
mod sleepers;
mod zones;

pub mod no_frames;

use alloc::string::String;
use core::fmt::{Arguments, Write as _};

use kern::{System, TypeId};
use platform::{Frames, MisuseReport, Platform};

/// Why a test failed.
pub type Outcome = Result<(), String>;

/// Fails the test, with a text, unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(alloc::format!($($text)+));
        }
    };
}

/// What a test may need that is not the allocator's.
pub trait Host: Sync {
    /// The port under test.
    type P: Platform;
    /// The owner of page frames; [`no_frames::NoFrames`] where there is none.
    type Frames: Frames;

    /// Its allocator, booted.
    fn system(&self) -> &System<Self::P>;

    /// CPUs, at least 1.
    fn cpus(&self) -> usize;

    /// Runs `body` in so many threads at once, each with its number, and waits for all. The first failure, if any.
    fn threads(&self, count: usize, body: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome;

    /// Runs `body`, and meanwhile, again and again, `handler` in interrupts of every CPU. A process has none: there other threads play
    /// them.
    fn interrupted(&self, handler: &(dyn Fn() + Sync), body: &mut dyn FnMut() -> Outcome) -> Outcome;

    /// Whether [`interrupted`](Self::interrupted) raises interrupts, which forbid sleeping.
    fn has_interrupts(&self) -> bool;

    /// Lets others run.
    fn yield_now(&self);

    /// From now on the system has about so many pages to give; as many as there are with `None`. False where that cannot be had.
    fn limit_memory(&self, pages: Option<usize>) -> bool;

    /// Runs `body` on this CPU, as far as the host can say where a thread runs.
    fn on_cpu(&self, _cpu: usize, body: &mut dyn FnMut() -> Outcome) -> Outcome {
        body()
    }

    /// Sends a CPU away, and tells the allocator ([`System::cpu_offline`]); or has it back. False where that cannot be had.
    fn set_online(&self, _cpu: usize, _online: bool) -> bool {
        false
    }

    /// Page frames for contiguous memory, where there are any.
    fn frames(&self) -> Option<&Self::Frames> {
        None
    }

    /// NUMA domain of the memory behind an address, by other means than [`Platform::place_pages`]; `None` where nobody knows.
    fn domain_of_memory(&self, _addr: usize) -> Option<usize> {
        None
    }

    /// Whether [`Platform::discard`] ever does.
    fn gives_pages_back(&self) -> bool {
        true
    }

    /// Whether a misuse can be recorded; elsewhere it ends the program, and programs of their own test it.
    fn records_misuse(&self) -> bool {
        true
    }

    /// Until the next call with `false`, a misuse is recorded rather than fatal.
    fn expect_misuse(&self, expected: bool);

    /// The last misuse recorded.
    fn take_misuse(&self) -> Option<MisuseReport>;

    /// Percent of the usual amount of work, for machines that are slow.
    fn effort(&self) -> usize {
        100
    }

    /// Prints a line.
    fn print(&self, line: Arguments<'_>);
}

/// What came of one test.
pub enum Verdict {
    /// It holds.
    Passed,
    /// The host lacks what it needs.
    Skipped(&'static str),
    /// It does not hold.
    Failed(String),
}

/// A test of the list.
pub struct Test<H: Host> {
    /// What it says, as a name.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(&H) -> Verdict,
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Ok(()) => Self::Passed,
            Err(why) => Self::Failed(why),
        }
    }
}

/// The list.
#[must_use]
pub fn tests<H: Host>() -> [Test<H>; 40] {
    macro_rules! tests {
        ($($module:ident :: $name:ident),* $(,)?) => {
            [$(Test { name: stringify!($name), run: |host| $module::$name(host).into() }),*]
        };
    }
    tests![
        contract::a_section_has_one_holder,
        contract::a_lock_has_one_holder,
        contract::a_slot_can_be_claimed_from_afar,
        contract::time_does_not_go_back,
        contract::whoever_waits_is_woken,
        contract::sleeping_is_forbidden_where_it_must_be,
        basic::blocks_of_every_size_hold_their_contents,
        basic::blocks_are_aligned,
        basic::zeroed_blocks_are_zero,
        basic::realloc_keeps_contents,
        basic::misuse_is_reported,
        basic::counters_name_what_was_asked,
        sharing::threads_do_not_share_blocks,
        sharing::blocks_are_freed_by_other_threads,
        sharing::many_threads_box_in_a_loop,
        sharing::buckets_change_hands,
        interrupts::interrupts_allocate_under_load,
        interrupts::a_million_allocations_are_counted_to_the_byte,
        sleepers::sleepers_on_a_types_limit_are_served_in_order,
        sleepers::sleepers_on_a_zones_limit_are_served_in_order,
        sleepers::a_crowd_under_a_limit_gets_through,
        zones::a_zones_last_item_is_fetched_from_any_cpu,
        zones::items_of_a_zone_have_a_copy_for_each_cpu,
        zones::readers_see_no_item_change,
        contiguous::contiguous_memory_keeps_its_constraints,
        contiguous::low_memory_ends_and_comes_back,
        contiguous::a_frame_has_one_holder,
        domains::a_zone_takes_memory_of_the_callers_domain,
        domains::a_zone_takes_memory_of_all_domains_in_turn,
        domains::items_go_home_to_their_domain,
        cpus::a_cpu_that_leaves_gives_its_items_to_the_others,
        cpus::cpus_leave_and_come_back_under_load,
        shortage::memory_ends_in_null,
        shortage::memory_goes_back_and_comes_again,
        shortage::threads_survive_shortage,
        pressure::memory_in_other_cpus_caches_serves_before_anyone_sleeps,
        pressure::what_can_give_memory_is_asked_in_order,
        sleepers::sleepers_for_memory_are_served_in_order,
        sleepers::sleepers_are_woken_by_interrupts,
        basic::nothing_is_out_of_order,
    ]
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that hold.
    pub passed: usize,
    /// Tests that the host could not run.
    pub skipped: usize,
    /// Tests that do not hold.
    pub failed: usize,
}

impl Tally {
    /// Runs one more test and prints what came of it.
    pub fn run<H: Host>(&mut self, host: &H, test: &Test<H>) {
        match (test.run)(host) {
            Verdict::Passed => {
                self.passed += 1;
                host.print(format_args!("test {} ... ok", test.name));
            }
            Verdict::Skipped(why) => {
                self.skipped += 1;
                host.print(format_args!("test {} ... ignored, {why}", test.name));
            }
            Verdict::Failed(why) => {
                self.failed += 1;
                host.print(format_args!("test {} ... FAILED", test.name));
                host.print(format_args!("    {why}"));
            }
        }
    }

    /// Prints the sum, as cargo's tests do.
    pub fn print<H: Host>(&self, host: &H) {
        let word = if self.failed == 0 { "ok" } else { "FAILED" };
        host.print(format_args!(
            "test result: {word}. {} passed; {} failed; {} ignored; 0 measured; 0 filtered out",
            self.passed, self.failed, self.skipped
        ));
    }
}

/// Runs the tests whose names contain `only` (all with ""), and prints each.
pub fn run<H: Host>(host: &H, only: &str) -> Tally {
    let mut tally = Tally::default();
    for test in tests::<H>().iter().filter(|test| test.name.contains(only)) {
        tally.run(host, test);
    }
    tally
}

/// What the port's own lock protects.
type Shared<H, T> = platform::Lock<<<H as Host>::P as Platform>::Lock, T>;

/// A malloc type for one test.
fn new_type<P: Platform>(system: &System<P>, name: &str) -> Result<TypeId, String> {
    let id = system.register_type(abi::type_kind::STATIC, abi::NO_LIB, 0, name.as_bytes());
    id.ok_or_else(|| String::from("the table of types is full"))
}

/// Text of a type's name in its record.
fn type_name<P: Platform>(system: &System<P>, id: TypeId) -> String {
    let mut name = String::new();
    let _ = write!(name, "{}", abi::c_text(&system.type_record(id).name).escape_ascii());
    name
}

/// Lets others run until it is so. An error, rather than to hang, when it never comes.
fn until<H: Host>(host: &H, what: &str, is_so: impl Fn() -> bool) -> Outcome {
    const MOST_YIELDS: usize = 4_000_000;
    for _ in 0..MOST_YIELDS {
        if is_so() {
            return Ok(());
        }
        host.yield_now();
    }
    Err(alloc::format!("waited in vain: {what}"))
}

/// Random enough to visit everything (xorshift64*).
struct Random(u64);

impl Random {
    fn new(seed: usize) -> Self {
        Self((seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound
    }

    /// Mostly small, sometimes of any class, seldom pages.
    fn size(&mut self) -> usize {
        match self.below(64) {
            0 => 65_537 + self.below(200_000),
            1..8 => 1 + self.below(65_536),
            8..24 => 1 + self.below(2048),
            _ => 1 + self.below(256),
        }
    }
}
