//! The statistics reader against writers, in every interleaving that loom finds: the code of [`TypeLine`] and [`TypeTotals`] itself.
//!
//! Preemption bound 3. Each property has a broken twin that must fail, so that the model is known to see the difference.
#![cfg(loom)]

mod rows;

use abi::{AtomicU64, FreeSize, Ordering, SlotLine, TypeTotals};
use kernmalloc_abi as abi;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicU32;
use loom::thread;
use rows::OneType;

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(f);
}

fn assert_sane(sum: &TypeTotals) {
    assert!(sum.in_use() as i64 >= 0, "more blocks freed than allocated");
    assert!(sum.bytes_in_use() as i64 >= 0, "more bytes freed than allocated");
}

#[derive(Clone, Copy, PartialEq)]
enum Break {
    Nothing,
    /// The reader sums allocations before frees.
    Order,
    /// The writer counts a free without releasing it.
    Release,
    /// The writer counts the free that waits before it takes it out.
    Pending,
}

fn read(rows: &[OneType; 2], how: Break) -> TypeTotals {
    if how != Break::Order {
        return TypeTotals::read(|| rows.iter().map(OneType::view));
    }
    let mut sum = TypeTotals::default();
    for row in rows {
        sum.allocs += row.line.allocs.load(Ordering::Acquire);
        sum.bytes_allocated += row.line.bytes_allocated.load(Ordering::Acquire);
    }
    let later = TypeTotals::read(|| rows.iter().map(OneType::view));
    TypeTotals { frees: later.frees, bytes_freed: later.bytes_freed, ..sum }
}

fn count_free(row: &OneType, how: Break) {
    let add = |counter: &AtomicU64, n| counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    match how {
        Break::Release => row.slot.pending.store(48 << 32 | size_of::<SlotLine>() as u64, Ordering::Relaxed),
        Break::Pending => {
            add(&row.line.frees, 1);
            add(&row.line.bytes_freed, row.slot.pending.load(Ordering::Relaxed) >> 32);
            row.slot.pending.store(48 << 32 | size_of::<SlotLine>() as u64, Ordering::Release);
        }
        // SAFETY: 1. there is one type.
        _ => _ = unsafe { row.row().count_free(0, FreeSize::new(48), 0) },
    }
}

/// A block goes out in slot 0, is handed to another thread, and comes back in slot 1, while a reader sums.
fn hand_over(how: Break) {
    model(move || {
        let lines = Arc::new([OneType::default(), OneType::default()]);
        let mailbox = Arc::new(AtomicU32::new(0));
        let reader = {
            let lines = Arc::clone(&lines);
            thread::spawn(move || assert_sane(&read(&lines, how)))
        };
        let freer = {
            let (lines, mailbox) = (Arc::clone(&lines), Arc::clone(&mailbox));
            thread::spawn(move || {
                while mailbox.load(Ordering::Acquire) == 0 {
                    thread::yield_now();
                }
                count_free(&lines[1], how);
            })
        };
        lines[0].line.count_alloc(48, 40, 4);
        mailbox.store(1, Ordering::Release);
        reader.join().unwrap();
        freer.join().unwrap();
        let sum = read(&lines, how);
        assert_eq!((sum.allocs, sum.frees, sum.in_use()), (1, 1, 0));
        assert_eq!((sum.bytes_allocated, sum.bytes_freed), (48, 48));
    });
}

#[test]
fn a_reader_never_sees_more_frees_than_allocations() {
    hand_over(Break::Nothing);
}

#[test]
#[should_panic(expected = "freed than allocated")]
fn broken_a_reader_that_sums_allocations_first() {
    hand_over(Break::Order);
}

#[test]
#[should_panic(expected = "freed than allocated")]
fn broken_a_free_that_is_not_released() {
    hand_over(Break::Release);
}

/// Two blocks come back one after the other, so that the first is moved from the pending word into its line, while a reader sums.
fn move_pending(how: Break) {
    model(move || {
        let rows = Arc::new([OneType::default(), OneType::default()]);
        rows[0].line.count_alloc(48, 40, 4);
        rows[0].line.count_alloc(48, 40, 4);
        // SAFETY: 1. there is one type.
        unsafe { rows[1].row().count_free(0, FreeSize::new(48), 0) };
        let reader = {
            let rows = Arc::clone(&rows);
            thread::spawn(move || {
                let sum = read(&rows, how);
                assert_sane(&sum);
                assert!(sum.in_use() <= 2);
            })
        };
        count_free(&rows[1], how);
        reader.join().unwrap();
        let sum = read(&rows, how);
        assert_eq!((sum.frees, sum.in_use(), sum.bytes_in_use()), (2, 0, 0));
        rows[1].row().settle();
        let settled = read(&rows, how);
        assert_eq!((settled.frees, settled.bytes_freed), (2, 96));
    });
}

#[test]
fn a_free_that_moves_is_never_seen_twice() {
    move_pending(Break::Nothing);
}

#[test]
#[should_panic(expected = "freed than allocated")]
fn broken_a_free_counted_before_it_is_taken_out() {
    // Seen twice while the other is not yet pending: three frees of two blocks, if the second is read after the move.
    model(|| {
        let rows = Arc::new([OneType::default(), OneType::default()]);
        rows[0].line.count_alloc(48, 40, 4);
        // SAFETY: 1. there is one type.
        unsafe { rows[1].row().count_free(0, FreeSize::new(48), 0) };
        let reader = {
            let rows = Arc::clone(&rows);
            thread::spawn(move || assert_sane(&read(&rows, Break::Nothing)))
        };
        rows[0].line.count_alloc(48, 40, 4);
        count_free(&rows[1], Break::Pending);
        reader.join().unwrap();
    });
}

/// A slot: a lock word, a cache of items, the line of one type.
struct Slot {
    word: AtomicU32,
    items: UnsafeCell<Vec<usize>>,
    counts: OneType,
}

// SAFETY: the items are touched by the holder of the word only; that this is so is what the model checks.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

impl Slot {
    fn new(items: &[usize]) -> Self {
        Self { word: AtomicU32::new(0), items: UnsafeCell::new(items.to_vec()), counts: OneType::default() }
    }

    /// One attempt at the section.
    fn enter(&self, locked: bool) -> bool {
        !locked || self.word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn leave(&self, locked: bool) {
        if locked {
            self.word.store(0, Ordering::Release);
        }
    }

    fn alloc(&self, locked: bool) -> Option<usize> {
        if !self.enter(locked) {
            return None;
        }
        // SAFETY: we hold the word.
        let item = self.items.with_mut(|items| unsafe { (*items).pop() });
        if item.is_some() {
            self.counts.line.count_alloc(48, 48, 4);
        }
        self.leave(locked);
        item
    }

    /// False when the slot is taken: the caller tries another.
    fn free(&self, item: usize, locked: bool) -> bool {
        if !self.enter(locked) {
            return false;
        }
        // SAFETY: we hold the word.
        self.items.with_mut(|items| unsafe { (*items).push(item) });
        // SAFETY: 1. there is one type; we hold the word.
        unsafe { self.counts.row().count_free(0, FreeSize::new(48), 0) };
        self.leave(locked);
        true
    }
}

/// Two threads that migrate: each allocates in one slot and frees in the other, beside each other and a reader.
fn cross_frees(locked: bool) {
    model(move || {
        let slots = Arc::new([Slot::new(&[1]), Slot::new(&[2])]);
        let threads: Vec<_> = (0..2)
            .map(|number| {
                let slots = Arc::clone(&slots);
                thread::spawn(move || {
                    let item = slots[number].alloc(locked)?;
                    // To the other slot, and back to the first where that is taken.
                    if slots[1 - number].free(item, locked) || slots[number].free(item, locked) {
                        return None;
                    }
                    Some(item)
                })
            })
            .collect();
        assert_sane(&TypeTotals::read(|| slots.iter().map(|slot| slot.counts.view())));
        let mut items: Vec<usize> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        let live = items.len() as u64;
        let sum = TypeTotals::read(|| slots.iter().map(|slot| slot.counts.view()));
        assert_eq!((sum.in_use(), sum.bytes_in_use()), (live, 48 * live), "the counts are not those of the items");
        for slot in slots.iter() {
            // SAFETY: all threads are done.
            slot.items.with(|cached| items.extend(unsafe { &*cached }));
        }
        items.sort_unstable();
        assert_eq!(items, [1, 2], "items are lost or doubled");
    });
}

#[test]
fn frees_on_other_cpus_keep_items_and_counts() {
    cross_frees(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_frees_without_a_section() {
    cross_frees(false);
}
