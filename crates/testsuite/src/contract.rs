//! The port's functions themselves.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use platform::{Lock, Platform, RawLock as _};

use crate::{Host, Outcome, Shared, Verdict, ensure, new_type};

/// Enters a section by whichever way there is.
fn section<H: Host, T>(body: impl FnOnce(usize) -> T) -> Option<T> {
    let mut slot = H::P::enter();
    if slot == 0 {
        slot = H::P::enter_other();
    }
    if slot == 0 {
        return None;
    }
    let result = body(slot);
    // SAFETY: 1. entered above.
    unsafe { H::P::leave(slot) };
    Some(result)
}

/// Holders of each slot seen so far, by address: found once, then counted without an atomic addition, so that two
/// holders at a time lose counts.
struct Visits {
    slots: Vec<(AtomicUsize, AtomicUsize)>,
}

impl Visits {
    fn new(most: usize) -> Self {
        Self { slots: (0..most).map(|_| (AtomicUsize::new(0), AtomicUsize::new(0))).collect() }
    }

    /// In the section of `slot`. False when there are more slots than expected.
    fn count(&self, slot: usize) -> bool {
        for (known, count) in &self.slots {
            let owner = known.load(Ordering::Relaxed);
            let ours = owner == slot
                || (owner == 0
                    && known
                        .compare_exchange(0, slot, Ordering::Relaxed, Ordering::Relaxed)
                        .map_or_else(|other| other == slot, |_| true));
            if ours {
                let before = count.load(Ordering::Relaxed);
                (0..8).for_each(|_| core::hint::spin_loop());
                count.store(before + 1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    fn total(&self) -> usize {
        self.slots.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }
}

pub(crate) fn a_section_has_one_holder<H: Host>(host: &H) -> Outcome {
    const ROUNDS: usize = 20_000;
    let rounds = ROUNDS * host.effort() / 100;
    let visits = Visits::new(host.cpus() * 8 + 1);
    let (entered, strangers) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let visit = || {
        if let Some(known) = section::<H, _>(|slot| visits.count(slot)) {
            (if known { &entered } else { &strangers }).fetch_add(1, Ordering::Relaxed);
        }
    };
    host.interrupted(&visit, &mut || {
        host.threads(2 * host.cpus(), &|_| {
            (0..rounds).for_each(|_| visit());
            Ok(())
        })
    })?;
    ensure!(strangers.load(Ordering::Relaxed) == 0, "enter gave slots that are not of the table");
    let (entered, total) = (entered.load(Ordering::Relaxed), visits.total());
    ensure!(entered == total, "{entered} sections counted {total}: two were in one slot at a time");
    ensure!(entered >= rounds, "only {entered} sections could be entered");
    Ok(())
}

pub(crate) fn a_lock_has_one_holder<H: Host>(host: &H) -> Outcome {
    let rounds = 5000 * host.effort() / 100;
    let counter: Shared<H, usize> = Lock::new(0);
    let others = AtomicUsize::new(0);
    let add = || {
        let mut counter = counter.lock();
        let before = *counter;
        (0..8).for_each(|_| core::hint::spin_loop());
        *core::hint::black_box(&mut *counter) = before + 1;
    };
    let handler = || {
        add();
        others.fetch_add(1, Ordering::Relaxed);
    };
    let threads = 2 * host.cpus();
    host.interrupted(&handler, &mut || {
        host.threads(threads, &|_| {
            (0..rounds).for_each(|_| add());
            Ok(())
        })
    })?;
    let (found, expected) = (*counter.lock(), threads * rounds + others.load(Ordering::Relaxed));
    ensure!(found == expected, "a counter under a lock is {found}, not {expected}");
    ensure!(counter.raw().try_lock(), "a free lock cannot be taken");
    ensure!(!counter.raw().try_lock(), "a lock is taken twice");
    // SAFETY: 1. taken above.
    unsafe { counter.raw().unlock() };
    Ok(())
}

pub(crate) fn a_slot_can_be_claimed_from_afar<H: Host>(host: &H) -> Verdict {
    let system = host.system();
    let id = match new_type(system, "claims") {
        Ok(id) => id,
        Err(why) => return Verdict::Failed(why),
    };
    let stop = AtomicBool::new(false);
    // `reclaim` claims every slot while the others go on with theirs.
    host.threads(host.cpus() + 1, &|number| {
        if number == 0 {
            for _ in 0..(20 * host.effort()).div_ceil(100) {
                system.reclaim();
                host.yield_now();
            }
            stop.store(true, Ordering::Release);
            return Ok(());
        }
        while !stop.load(Ordering::Acquire) {
            for bytes in [16, 100, 3000] {
                let block = system.alloc(bytes, id);
                ensure!(!block.is_null(), "no memory for {bytes} bytes");
                // SAFETY: 1. ours, unused from now on.
                unsafe { system.free(block, 0) };
            }
            host.yield_now();
        }
        Ok(())
    })
    .and_then(|()| {
        let totals = system.totals(id);
        ensure!(totals.allocs > 0 && totals.in_use() == 0, "blocks are lost: {totals:?}");
        Ok(())
    })
    .into()
}

pub(crate) fn time_does_not_go_back<H: Host>(host: &H) -> Outcome {
    let last = core::sync::atomic::AtomicU64::new(0);
    host.threads(host.cpus(), &|_| {
        for _ in 0..1000 {
            let before = last.load(Ordering::SeqCst);
            let now = H::P::now_ns();
            ensure!(now >= before, "it was {before} ns, and is {now}");
            last.fetch_max(now, Ordering::SeqCst);
        }
        Ok(())
    })
}

/// A semaphore on the port's own words.
struct Semaphore(AtomicU32);

impl Semaphore {
    fn take<H: Host>(&self) {
        loop {
            let count = self.0.load(Ordering::SeqCst);
            if count == 0 {
                H::P::wait(&self.0, 0);
            } else if self.0.compare_exchange(count, count - 1, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                return;
            }
        }
    }

    fn give<H: Host>(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        H::P::wake_all(&self.0);
    }
}

/// A token goes round a ring of threads, each of which sleeps until it comes: if one wake-up is lost, all sleep for good.
pub(crate) fn whoever_waits_is_woken<H: Host>(host: &H) -> Outcome {
    const THREADS: usize = 5;
    let rounds = 2000 * host.effort() / 100;
    let ring: [Semaphore; THREADS] = [const { Semaphore(AtomicU32::new(0)) }; THREADS];
    let passed = AtomicUsize::new(0);
    host.threads(THREADS, &|number| {
        for _ in 0..rounds {
            if number == 0 {
                ring[1].give::<H>();
                ring[0].take::<H>();
            } else {
                ring[number].take::<H>();
                ring[(number + 1) % THREADS].give::<H>();
            }
            passed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    ensure!(passed.load(Ordering::Relaxed) == THREADS * rounds, "a wait ended before its wake-up");
    Ok(())
}

pub(crate) fn sleeping_is_forbidden_where_it_must_be<H: Host>(host: &H) -> Verdict {
    if !host.has_interrupts() {
        return Verdict::Skipped("no interrupts here");
    }
    let check = || {
        host.threads(1, &|_| {
            ensure!(H::P::may_sleep().is_ok(), "a thread may not sleep: {:?}", H::P::may_sleep());
            let inside = section::<H, _>(|_| H::P::may_sleep().is_err());
            ensure!(inside == Some(true), "a thread may sleep inside a section");
            let lock: Shared<H, ()> = Lock::new(());
            let _guard = lock.lock();
            ensure!(H::P::may_sleep().is_err(), "a thread may sleep with a lock held");
            Ok(())
        })?;
        let (calls, allowed) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let handler = || {
            calls.fetch_add(1, Ordering::Relaxed);
            if H::P::may_sleep().is_ok() {
                allowed.fetch_add(1, Ordering::Relaxed);
            }
        };
        host.interrupted(&handler, &mut || {
            while calls.load(Ordering::Relaxed) < 3 {
                host.yield_now();
            }
            Ok(())
        })?;
        ensure!(allowed.load(Ordering::Relaxed) == 0, "an interrupt handler may sleep");
        Ok(())
    };
    check().into()
}
