//! Requests that may sleep: first come, first served, and woken by whoever gives back what they sleep for, on whichever CPU.
//!
//! Nothing here hopes for a thread to be asleep: the allocator counts its sleepers when they have their place in the queue, and
//! only then the next comes, and only when all are there is anything given back.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use abi::Ordering as AbiOrdering;
use kern::TypeId;
use kern::malloc::{Flags, Malloc, MallocType, NoWait, WaitOk};
use kern::zone::{How, RawZone, ZoneConfig};
use platform::Lock;

use crate::{Host, Outcome, Shared, Verdict, ensure, until};

/// Requests asleep at one time.
const SLEEPERS: usize = 4;

/// What the threads of a test of sleepers share: who may come, who was served, and with what.
struct Queue<H: Host> {
    arrived: AtomicUsize,
    /// Sleepers up to this one may ask.
    called: AtomicUsize,
    /// In the order in which they were served.
    served: Shared<H, Vec<(usize, usize)>>,
}

impl<H: Host> Queue<H> {
    fn new() -> Self {
        Self {
            arrived: AtomicUsize::new(0),
            called: AtomicUsize::new(0),
            served: Lock::new(Vec::with_capacity(SLEEPERS)),
        }
    }

    fn served(&self) -> usize {
        self.served.lock().len()
    }

    /// Sleeper `number`, from 1: asks in its turn.
    fn sleep(&self, host: &H, number: usize, ask: impl FnOnce() -> usize) -> Outcome {
        self.arrived.fetch_add(1, Ordering::SeqCst);
        until(host, "a sleeper's turn", || self.called.load(Ordering::SeqCst) >= number)?;
        let block = ask();
        self.served.lock().push((number, block));
        Ok(())
    }

    /// Calls the sleepers one by one, each when the one before is in the queue; then gives so many times, each time on another CPU.
    /// `give` is told how often it was called before, and what the sleeper served last has.
    fn serve(
        &self,
        host: &H,
        asleep: impl Fn() -> usize,
        mut give: impl FnMut(usize, Option<usize>) -> Outcome,
    ) -> Outcome {
        for number in 1..=SLEEPERS {
            self.called.store(number, Ordering::SeqCst);
            until(host, "the next sleeper in the queue", || asleep() == number || self.served() > 0)?;
            ensure!(self.served() == 0, "a sleeper was served before anything was given");
        }
        // Most of them are not only counted but asleep after this; it is right either way.
        (0..20).for_each(|_| host.yield_now());
        let mut last = None;
        for round in 0..SLEEPERS {
            host.on_cpu(round % host.cpus(), &mut || give(round, last))?;
            until(host, "a sleeper to be served", || self.served() > round)?;
            let (number, block) = self.served.lock()[round];
            ensure!(number == round + 1, "sleeper {number} was served as number {}", round + 1);
            last = Some(block);
        }
        ensure!(asleep() == 0, "{} still sleep", asleep());
        Ok(())
    }

    /// Lets everybody ask, whatever happened: a test that has failed is not to hang.
    fn open(&self) {
        self.called.store(SLEEPERS, Ordering::SeqCst);
    }
}

/// Frees a block of the test.
pub(crate) fn free<H: Host>(malloc: &Malloc<'_, H::P>, block: usize) {
    // SAFETY: 1. every caller has it, and forgets it.
    unsafe { malloc.free(block as *mut u8) };
}

kern::malloc_define!(M_IN_LINE, "in line", "blocks that sleepers wait for under a limit");

pub(crate) fn sleepers_on_a_types_limit_are_served_in_order<H: Host>(host: &H) -> Outcome {
    const BYTES: usize = 4096;
    let (malloc, queue) = (Malloc::new(host.system()), Queue::<H>::new());
    malloc.set_limit(&M_IN_LINE, BYTES);
    let first = malloc.malloc(&M_IN_LINE, BYTES, NoWait, Flags::NONE).ok_or("no memory")?.as_ptr() as usize;
    let id = M_IN_LINE.id().ok_or("the type has no row")?;
    let record = host.system().type_record(id);
    let before = record.limit_blocks.load(AbiOrdering::Relaxed);
    let asleep = || record.limit_sleepers.load(AbiOrdering::SeqCst) as usize;
    let outcome = host.threads(SLEEPERS + 1, &|number| {
        if number > 0 {
            let ask = || malloc.malloc(&M_IN_LINE, BYTES, WaitOk, Flags::NONE).as_ptr() as usize;
            return queue.sleep(host, number, ask);
        }
        let outcome = queue.serve(host, asleep, |_, last| {
            ensure!(malloc.malloc(&M_IN_LINE, 16, NoWait, Flags::NONE).is_none(), "a request overtook those who wait");
            free::<H>(&malloc, last.unwrap_or(first));
            Ok(())
        });
        queue.open();
        if outcome.is_err() {
            malloc.set_limit(&M_IN_LINE, 0);
        }
        outcome
    });
    malloc.set_limit(&M_IN_LINE, 0);
    outcome?;
    let last = queue.served.lock().pop().ok_or("nobody was served")?;
    free::<H>(&malloc, last.1);
    let slept = record.limit_blocks.load(AbiOrdering::Relaxed) - before;
    ensure!(slept == SLEEPERS as u32 as _, "{SLEEPERS} sleepers are counted as {slept}");
    let totals = host.system().totals(id);
    ensure!(totals.in_use() == 0 && totals.bytes_in_use() == 0, "blocks are left: {totals:?}");
    Ok(())
}

pub(crate) fn sleepers_on_a_zones_limit_are_served_in_order<H: Host>(host: &H) -> Outcome {
    let zone = host.system().zcreate(&ZoneConfig::new("in line", 200, 8)).map_err(|why| alloc::format!("{why}"))?;
    let queue = Queue::<H>::new();
    zone.set_max(1);
    let first = zone.alloc(How::NOWAIT).map_err(|why| alloc::format!("{why}"))?.as_ptr() as usize;
    let give_back = |item: usize| {
        // SAFETY: 1. the test's, forgotten from here on.
        unsafe { zone.free(item as *mut u8) };
    };
    let outcome = host.threads(SLEEPERS + 1, &|number| {
        if number > 0 {
            return queue.sleep(host, number, || zone.alloc(How::WAIT).map_or(0, |item| item.as_ptr() as usize));
        }
        let outcome = queue.serve(
            host,
            || zone.stats().sleepers,
            |_, last| {
                ensure!(zone.alloc(How::NOWAIT).is_err(), "a request overtook those who wait");
                give_back(last.unwrap_or(first));
                Ok(())
            },
        );
        queue.open();
        if outcome.is_err() {
            zone.set_max(0);
        }
        outcome
    });
    outcome?;
    let last = queue.served.lock().pop().ok_or("nobody was served")?.1;
    ensure!(last != 0, "a request that may sleep failed");
    give_back(last);
    let stats = zone.stats();
    ensure!(stats.in_use == 0 && stats.sleeps == SLEEPERS as u64, "{SLEEPERS} sleepers are counted so: {stats:?}");
    zone.validate()?;
    destroy::<H>(zone)
}

/// Unmakes a zone of which nothing is in use.
pub(crate) fn destroy<H: Host>(zone: RawZone<'_, H::P>) -> Outcome {
    // SAFETY: 1. no copy of the handle is used any more.
    let lost = unsafe { zone.destroy() }.map_err(|why| alloc::format!("{why}"))?;
    ensure!(lost.items == 0 && lost.pages == 0, "{} items and {} pages are lost", lost.items, lost.pages);
    Ok(())
}

kern::malloc_define!(M_CROWD, "crowd", "blocks under a limit that many threads share");

pub(crate) fn a_crowd_under_a_limit_gets_through<H: Host>(host: &H) -> Outcome {
    const LIMIT: usize = 8192;
    const SIZES: [usize; 4] = [512, 1024, 2048, 4096];
    let malloc = Malloc::new(host.system());
    malloc.set_limit(&M_CROWD, LIMIT);
    let totals = || host.system().totals(M_CROWD.id().unwrap_or(TypeId::OVERFLOW));
    let before = totals().allocs;
    let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (threads, rounds) = (2 * host.cpus() + 1, (400 * host.effort()).div_ceil(100));
    let outcome = host.threads(threads, &|thread| {
        for round in 0..rounds {
            let bytes = SIZES[(thread + round) % SIZES.len()];
            let block = malloc.malloc(&M_CROWD, bytes, WaitOk, Flags::NONE).as_ptr();
            most.fetch_max(held.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
            // SAFETY: our block, longer than a word.
            unsafe { block.cast::<usize>().write_volatile(thread << 32 | round) };
            host.yield_now();
            // SAFETY: as above.
            let stamp = unsafe { block.cast::<usize>().read_volatile() };
            held.fetch_sub(bytes, Ordering::SeqCst);
            free::<H>(&malloc, block as usize);
            ensure!(stamp == thread << 32 | round, "a block had two holders");
        }
        Ok(())
    });
    malloc.set_limit(&M_CROWD, 0);
    outcome?;
    let most = most.load(Ordering::SeqCst);
    // As in NetBSD, the last block admitted may reach beyond the limit.
    ensure!(most < LIMIT + SIZES[3], "{most} bytes were in use at one time");
    let (totals, expected) = (totals(), (threads * rounds) as u64);
    ensure!(totals.in_use() == 0 && totals.allocs == before + expected, "{expected} blocks are counted as {totals:?}");
    Ok(())
}

/// Pages that are left when a test makes memory scarce, and room for all blocks that fit, found before.
pub(crate) const SCARCE_PAGES: usize = 1000;
const MOST_BLOCKS: usize = 20_000;

kern::malloc_define!(pub(crate) M_HOARD, "hoard", "all the memory there is");

/// Takes all the memory there is, what CPUs have in their caches included; ends with as many blocks of `last` bytes as there
/// can be.
pub(crate) fn exhaust<H: Host>(malloc: &Malloc<'_, H::P>, hoard: &mut Vec<usize>, last: usize) -> Outcome {
    loop {
        let before = hoard.len();
        for bytes in [1 << 20, last, 256, 16] {
            while let Some(block) = malloc.malloc(&M_HOARD, bytes, NoWait, Flags::NONE) {
                ensure!(hoard.len() < hoard.capacity(), "memory does not end");
                hoard.push(block.as_ptr() as usize);
            }
        }
        if hoard.len() == before {
            return Ok(());
        }
        malloc.system().reclaim();
    }
}

/// Takes a block of this size out of the hoard.
pub(crate) fn take_of_size<H: Host>(malloc: &Malloc<'_, H::P>, hoard: &mut Vec<usize>, bytes: usize) -> Option<usize> {
    let at = hoard.iter().position(|block| malloc.malloc_usable_size(*block as *const u8) == bytes)?;
    Some(hoard.swap_remove(at))
}

/// Types that have no row yet get theirs, while there is memory.
pub(crate) fn attach<H: Host>(malloc: &Malloc<'_, H::P>, types: &[&'static MallocType]) {
    for ty in types.iter().filter(|ty| ty.id().is_none()) {
        // A table that is full shows in the counts.
        let _ = malloc.attach(ty);
    }
}

/// A type's counter of requests that slept for memory.
pub(crate) fn slept<H: Host>(host: &H, ty: &MallocType) -> u64 {
    let id = ty.id().unwrap_or(TypeId::OVERFLOW);
    host.system().type_record(id).map_blocks.load(AbiOrdering::SeqCst)
}

kern::malloc_define!(M_SHORT, "short", "blocks that sleepers wait for when there is no memory");

/// A host on which memory can be made scarce, and with nobody asleep before.
fn with_scarcity<H: Host>(
    host: &H,
    give: &(dyn Fn(&Malloc<'_, H::P>, usize) -> Outcome + Sync),
) -> Result<bool, alloc::string::String> {
    const BYTES: usize = 3328;
    let (malloc, queue) = (Malloc::new(host.system()), Queue::<H>::new());
    let hoard: Shared<H, Vec<usize>> = Lock::new(Vec::with_capacity(MOST_BLOCKS));
    attach::<H>(&malloc, &[&M_HOARD, &M_SHORT]);
    let before = slept(host, &M_SHORT);
    let scarce = AtomicUsize::new(0);
    let outcome = host.threads(SLEEPERS + 1, &|number| {
        if number > 0 {
            // Beyond the end of the test only where memory cannot be made scarce.
            return queue.sleep(host, number, || malloc.malloc(&M_SHORT, BYTES, WaitOk, Flags::NONE).as_ptr() as usize);
        }
        // All threads are there before memory ends: they need some to be made.
        until(host, "the threads", || queue.arrived.load(Ordering::SeqCst) == SLEEPERS)?;
        let mut own = core::mem::take(&mut *hoard.lock());
        let outcome = if host.limit_memory(Some(SCARCE_PAGES)) {
            scarce.store(1, Ordering::SeqCst);
            exhaust::<H>(&malloc, &mut own, BYTES).and_then(|()| {
                queue.serve(
                    host,
                    || host.system().sleepers(),
                    |_, _| {
                        let block = take_of_size::<H>(&malloc, &mut own, BYTES).ok_or("no block of that size")?;
                        give(&malloc, block)
                    },
                )
            })
        } else {
            Ok(())
        };
        // Only now others have memory again.
        own.drain(..).for_each(|block| free::<H>(&malloc, block));
        host.limit_memory(None);
        host.system().wake_sleepers();
        queue.open();
        outcome
    });
    let served = core::mem::take(&mut *queue.served.lock());
    served.iter().for_each(|(_, block)| free::<H>(&malloc, *block));
    outcome?;
    if scarce.load(Ordering::SeqCst) == 0 {
        return Ok(false);
    }
    let slept = slept(host, &M_SHORT) - before;
    ensure!(slept == SLEEPERS as u64, "{SLEEPERS} sleepers are counted as {slept}");
    for ty in [&M_SHORT, &M_HOARD] {
        let totals = ty.id().map(|id| host.system().totals(id)).ok_or("the type has no row")?;
        ensure!(totals.in_use() == 0, "{} has blocks left: {totals:?}", ty.name());
    }
    let failures = M_SHORT.id().map(|id| host.system().type_record(id).failures.load(AbiOrdering::Relaxed));
    ensure!(failures == Some(0), "who slept is counted as failed: {failures:?}");
    Ok(true)
}

fn verdict(outcome: Result<bool, alloc::string::String>) -> Verdict {
    match outcome {
        Ok(true) => Verdict::Passed,
        Ok(false) => crate::shortage::UNLIMITED,
        Err(why) => Verdict::Failed(why),
    }
}

/// Freed by a thread, each time on another CPU.
pub(crate) fn sleepers_for_memory_are_served_in_order<H: Host>(host: &H) -> Verdict {
    verdict(with_scarcity(host, &|malloc, block| {
        free::<H>(malloc, block);
        Ok(())
    }))
}

/// Freed by an interrupt handler, on whichever CPU is interrupted first.
pub(crate) fn sleepers_are_woken_by_interrupts<H: Host>(host: &H) -> Verdict {
    let (mailbox, freeing) = (AtomicUsize::new(0), Malloc::new(host.system()));
    let handler = || match mailbox.swap(0, Ordering::SeqCst) {
        0 => {}
        block => free::<H>(&freeing, block),
    };
    let mut outcome = Ok(false);
    // Outside of the scarcity: where threads play the interrupts, they need memory to be made.
    let run = host.interrupted(&handler, &mut || {
        outcome = with_scarcity(host, &|_, block| {
            mailbox.store(block, Ordering::SeqCst);
            until(host, "an interrupt", || mailbox.load(Ordering::SeqCst) == 0)
        });
        Ok(())
    });
    verdict(run.and(outcome))
}
