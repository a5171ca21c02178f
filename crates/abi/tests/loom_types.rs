//! Types registered on first use, by CPUs that do so at once, beside a reader that enumerates them and a module that takes one away.
//!
//! The real code: the state word (`kern`'s `malloc/state.rs`, this very file), the lines and their sums ([`Row`], [`TypeTotals`]). Modelled
//! are, line by line, `attach_unless_attached` and `detach` of `kern`'s `malloc/types.rs` and `register_type`, `revive_type` and
//! `totals_at_rest` of its `system/mod.rs`, with a record of one cell instead of a name.
//!
//! Preemption bound 3. Each step left out must be noticed.
#![cfg(loom)]

extern crate kernmalloc_abi as abi;

#[path = "../../kern/src/malloc/state.rs"]
#[allow(dead_code, reason = "the model needs a part of it")]
mod state;

use abi::{AtomicU64, FreeSize, LineView, Ordering, Row, SlotLine, TypeLine, TypeTotals};
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU32;
use loom::sync::{Arc, Mutex};
use loom::thread;
use state::{State, StateWord};

const TYPES: usize = 2;
const SLOTS: usize = 2;
const GONE: u64 = 1;
/// Bytes of every block.
const BYTES: u64 = 48;

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// Who finds a type new registers it without looking again under the lock.
    NoSecondLook,
    /// The number of records is raised before the record is written.
    CountFirst,
    /// The word names the record before it is written.
    WordFirst,
    /// An unloaded type's record is not taken up again.
    NoRevival,
    /// What an unloaded type has in use is summed without settling the rows.
    NoSettling,
}

/// A record: who it is of, written once, before anybody can know of it; and whether its module is gone.
struct Record {
    name: UnsafeCell<usize>,
    flags: AtomicU64,
}

#[derive(Default)]
#[repr(C)]
struct Lines {
    slot: SlotLine,
    types: [TypeLine; TYPES],
}

struct Slot {
    word: AtomicU32,
    lines: Lines,
}

struct Model {
    how: Break,
    types: [StateWord; TYPES],
    /// Types that are registered, in order: the list, by its lock.
    list: Mutex<Vec<usize>>,
    /// The next record, by the lock of the types.
    next: Mutex<usize>,
    used: AtomicU64,
    records: [Record; TYPES + 1],
    slots: [Slot; SLOTS],
}

// SAFETY: a record's name is written once, before others can know of it; that this is so is what the model checks.
unsafe impl Sync for Model {}
// SAFETY: as above.
unsafe impl Send for Model {}

impl Slot {
    fn row(&self) -> Row<'_> {
        // SAFETY: 1. the first of a slot line and a line for each type.
        unsafe { Row::new((&raw const self.lines).cast()) }
    }

    /// Runs `f` in the section of the slot.
    fn with<T>(&self, f: impl FnOnce(Row<'_>) -> T) -> T {
        while self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            thread::yield_now();
        }
        let result = f(self.row());
        self.word.store(0, Ordering::Release);
        result
    }
}

impl Model {
    fn new(how: Break) -> Self {
        let record = |_| Record { name: UnsafeCell::new(usize::MAX), flags: AtomicU64::new(0) };
        let slot = |_| Slot { word: AtomicU32::new(0), lines: Lines::default() };
        Self {
            how,
            types: std::array::from_fn(|_| StateWord(AtomicU64::new(StateWord::NEW))),
            list: Mutex::new(Vec::new()),
            next: Mutex::new(0),
            used: AtomicU64::new(0),
            records: std::array::from_fn(record),
            slots: std::array::from_fn(slot),
        }
    }

    /// What every reader of a record does: its name. Loom panics if it is being written.
    fn name(&self, index: usize) -> usize {
        // SAFETY: written before we learned the index.
        self.records[index].name.with(|name| unsafe { *name })
    }

    /// `register_type`.
    fn register(&self, ty: usize) -> usize {
        let mut next = self.next.lock().unwrap();
        let index = *next;
        if self.how == Break::CountFirst {
            self.used.store(index as u64 + 1, Ordering::Release);
        }
        if self.how == Break::WordFirst {
            self.types[ty].register(index, false);
        }
        // SAFETY: under the lock, and nobody knows the record yet.
        self.records[index].name.with_mut(|name| unsafe { *name = ty });
        *next += 1;
        self.used.store(*next as u64, Ordering::Release);
        index
    }

    /// `revive_type`.
    fn revive(&self, ty: usize) -> Option<usize> {
        if self.how == Break::NoRevival {
            return None;
        }
        let _next = self.next.lock().unwrap();
        (0..self.used.load(Ordering::Acquire) as usize).find(|&index| {
            let flags = &self.records[index].flags;
            let found = flags.load(Ordering::Relaxed) & GONE != 0 && self.name(index) == ty;
            if found {
                flags.fetch_and(!GONE, Ordering::AcqRel);
            }
            found
        })
    }

    /// `attach_unless_attached`.
    fn attach(&self, ty: usize) {
        let mut list = self.list.lock().unwrap();
        if self.types[ty].read() != State::New && self.how != Break::NoSecondLook {
            return;
        }
        let index = self.revive(ty).unwrap_or_else(|| self.register(ty));
        list.push(ty);
        self.types[ty].register(index, false);
    }

    /// `look`, and what `look_cold` does with a new type.
    fn look(&self, ty: usize) -> usize {
        if let Some(index) = self.types[ty].ordinary() {
            return index;
        }
        if self.types[ty].read() == State::New {
            self.attach(ty);
        }
        self.types[ty].index().expect("registered just now")
    }

    /// `detach`. Returns how many blocks the type is accused of having leaked.
    fn detach(&self, ty: usize) -> u64 {
        let index = {
            let mut list = self.list.lock().unwrap();
            list.retain(|&listed| listed != ty);
            let index = self.types[ty].index().expect("a type that is registered");
            self.types[ty].unregister();
            self.records[index].flags.fetch_or(GONE, Ordering::AcqRel);
            index
        };
        match self.totals(index).in_use() {
            leaked if leaked == 0 || self.how == Break::NoSettling => leaked,
            _ => {
                // `totals_at_rest`.
                self.slots.iter().for_each(|slot| slot.with(|row| row.settle()));
                self.totals(index).in_use()
            }
        }
    }

    fn totals(&self, index: usize) -> TypeTotals {
        fn view(slot: &Slot, index: usize) -> LineView<'_> {
            LineView::new(&slot.lines.slot, &slot.lines.types[index], index)
        }
        TypeTotals::read(|| self.slots.iter().map(|slot| view(slot, index)))
    }

    /// A block out and back, in a slot.
    fn use_type(&self, ty: usize, slot: usize) -> usize {
        let index = self.look(ty);
        assert_eq!(self.name(index), ty, "a type is credited with another's blocks");
        self.slots[slot].with(|row| {
            // SAFETY: 1. there is such a type. 2. in the section.
            unsafe {
                row.line(index).count_alloc(BYTES, BYTES, 1);
                row.count_free(index, FreeSize::new(BYTES as u32), 0);
            }
        });
        index
    }

    /// What a process that maps the object sees: records that are whole. (Of their sums `loom_stats` is the model.)
    fn enumerate(&self) {
        for index in 0..self.used.load(Ordering::Acquire) as usize {
            assert!(self.name(index) < TYPES, "a record that nobody has written");
        }
    }

    /// Each type has one record, and each has freed what it allocated.
    fn check(&self, registered: usize) {
        let mut list = self.list.lock().unwrap().clone();
        list.sort_unstable();
        assert_eq!(list, (0..registered).collect::<Vec<_>>(), "the list of types");
        assert_eq!(self.used.load(Ordering::Acquire) as usize, registered, "records");
        for index in 0..registered {
            assert_eq!(self.totals(index).in_use(), 0);
        }
    }
}

fn run(bound: usize, how: Break, f: impl Fn(Arc<Model>) + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(move || f(Arc::new(Model::new(how))));
}

/// Two CPUs use the same type for the first time.
fn same_type(how: Break) {
    run(3, how, |model| {
        let other = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.use_type(0, 1))
        };
        let index = model.use_type(0, 0);
        assert_eq!(other.join().unwrap(), index, "one type, two records");
        model.check(1);
    });
}

#[test]
fn a_type_is_registered_once() {
    same_type(Break::Nothing);
}

#[test]
#[should_panic(expected = "one type, two records")]
fn broken_a_type_registered_without_a_second_look() {
    same_type(Break::NoSecondLook);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_word_that_names_a_record_before_it_is_written() {
    same_type(Break::WordFirst);
}

/// Different types at once, while somebody enumerates them.
fn different_types(how: Break) {
    run(3, how, |model| {
        let other = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.look(1))
        };
        let reader = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.enumerate())
        };
        let index = model.look(0);
        assert_ne!(other.join().unwrap(), index, "two types, one record");
        reader.join().unwrap();
        model.check(2);
    });
}

#[test]
fn a_reader_enumerates_whole_records_only() {
    different_types(Break::Nothing);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_a_record_that_is_counted_before_it_is_written() {
    different_types(Break::CountFirst);
}

/// A module goes and comes again, while others use another type in the slot where its last free still waits.
fn unload(how: Break) {
    run(3, how, |model| {
        let before = model.use_type(0, 1);
        let other = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.use_type(1, 1))
        };
        let leaked = model.detach(0);
        let again = model.look(0);
        other.join().unwrap();
        assert_eq!(leaked, 0, "accused of a leak");
        assert_eq!(again, before, "a type that comes again goes on with its row");
        model.check(2);
    });
}

/// The same while somebody enumerates: the record stays whole when it is taken up again.
fn enumerate_unloaded(how: Break) {
    run(3, how, |model| {
        model.look(0);
        let reader = {
            let model = Arc::clone(&model);
            thread::spawn(move || model.enumerate())
        };
        model.detach(0);
        model.look(0);
        reader.join().unwrap();
        model.check(1);
    });
}

#[test]
fn a_record_that_is_taken_up_again_stays_whole() {
    enumerate_unloaded(Break::Nothing);
}

#[test]
fn a_module_that_goes_is_accused_of_no_leak() {
    unload(Break::Nothing);
}

#[test]
#[should_panic(expected = "accused of a leak")]
fn broken_an_unload_that_misses_a_free_on_its_way() {
    unload(Break::NoSettling);
}

#[test]
#[should_panic(expected = "goes on with its row")]
fn broken_a_type_that_comes_again_in_a_new_record() {
    unload(Break::NoRevival);
}
