//! What is done before anyone sleeps or fails for want of memory: what the CPUs' caches hold is fetched back, those who can give
//! memory are asked, one after the other, and the hook of last resort decides.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use abi::Ordering as AbiOrdering;
use kern::malloc::{CanFail, Flags, LowMemory, LowMemoryHandler, Malloc, Oom, WaitOk};
use kern::{System, TypeId};

use crate::shortage::UNLIMITED;
use crate::sleepers::{M_HOARD, SCARCE_PAGES, attach, exhaust, free, slept, take_of_size};
use crate::{Host, Outcome, Verdict, ensure};

const BYTES: usize = 3328;
const MOST_BLOCKS: usize = 20_000;

kern::malloc_define!(M_WANTED, "wanted", "blocks asked for when there is no memory");

/// Runs `body` with no memory left, and all of it in blocks of the hoard, many of [`BYTES`] among them.
fn without_memory<H: Host>(
    host: &H,
    malloc: &Malloc<'_, H::P>,
    body: impl FnOnce(&mut Vec<usize>) -> Outcome,
) -> Verdict {
    attach::<H>(malloc, &[&M_HOARD, &M_WANTED]);
    let mut hoard = Vec::with_capacity(MOST_BLOCKS);
    if !host.limit_memory(Some(SCARCE_PAGES)) {
        return UNLIMITED;
    }
    let outcome = exhaust::<H>(malloc, &mut hoard, BYTES).and_then(|()| body(&mut hoard));
    hoard.drain(..).for_each(|block| free::<H>(malloc, block));
    host.limit_memory(None);
    outcome.into()
}

pub(crate) fn memory_in_other_cpus_caches_serves_before_anyone_sleeps<H: Host>(host: &H) -> Verdict {
    const EACH: usize = 6;
    let malloc = Malloc::new(host.system());
    without_memory(host, &malloc, |hoard| {
        let before = slept(host, &M_WANTED);
        let mut freed = 0;
        for cpu in 0..host.cpus() {
            let mut blocks = [0; EACH];
            for block in &mut blocks {
                *block = take_of_size::<H>(&malloc, hoard, BYTES).ok_or("too few blocks in the hoard")?;
            }
            // They stay in the caches of that CPU.
            host.on_cpu(cpu, &mut || {
                blocks.iter().for_each(|block| free::<H>(&malloc, *block));
                Ok(())
            })?;
            freed += EACH;
        }
        // All of them, and by a request that would otherwise sleep for good.
        for _ in 0..freed {
            let block =
                malloc.malloc(&M_WANTED, BYTES, CanFail, Flags::NONE).ok_or("a request that may sleep failed")?;
            // Its type is the hoard's from here on: they go back together.
            hoard.push(block.as_ptr() as usize);
        }
        let slept = slept(host, &M_WANTED) - before;
        ensure!(slept == 0, "{slept} requests slept, though CPUs had free blocks in their caches");
        Ok(())
    })
}

/// What was called since the last look, a decimal digit each, the first on the left.
static CALLED: AtomicU32 = AtomicU32::new(0);

fn note(digit: u32) {
    let _ = CALLED.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |called| Some(called * 10 + digit));
}

/// A block that whoever is asked gives up, the digit of who does, and the allocator that it goes to. Handlers get no argument.
static GIFT: AtomicUsize = AtomicUsize::new(0);
static GIVER: AtomicU32 = AtomicU32::new(0);
static SYSTEM: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
/// Bytes that the hook was told of.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// Gives the block up if it is this giver's turn.
fn give<H: Host>(digit: u32) -> bool {
    note(digit);
    if GIVER.load(Ordering::SeqCst) != digit {
        return false;
    }
    let (system, block) = (SYSTEM.load(Ordering::SeqCst) as *const System<H::P>, GIFT.swap(0, Ordering::SeqCst));
    // SAFETY: the test put its own host's allocator there, and 1. a block that is nobody's any more (or null).
    unsafe { (*system).free(block as *mut u8, 0) };
    block != 0
}

fn hook<H: Host>(bytes: usize) -> Oom {
    ASKED.store(bytes, Ordering::SeqCst);
    if give::<H>(3) { Oom::Retry } else { Oom::GiveUp }
}

/// Handlers of this host, in the order in which they are to be called.
struct Handlers<H: Host>(core::marker::PhantomData<H>);

impl<H: Host> Handlers<H> {
    fn first(why: LowMemory) {
        if why == LowMemory::Pages {
            give::<H>(1);
        }
    }

    fn second(_: LowMemory) {
        give::<H>(2);
    }
}

pub(crate) fn what_can_give_memory_is_asked_in_order<H: Host>(host: &H) -> Verdict {
    let malloc = Malloc::new(host.system());
    // For good: handlers are static. They belong to this test's malloc(9), and are called by no other.
    let handler =
        |name, order, call| &*alloc::boxed::Box::leak(alloc::boxed::Box::new(LowMemoryHandler::new(name, order, call)));
    let second = handler("suite second", 20, Handlers::<H>::second);
    let first = handler("suite first", 10, Handlers::<H>::first);
    if !malloc.register_low_memory(second) || !malloc.register_low_memory(first) || malloc.register_low_memory(first) {
        return Verdict::Failed("a handler is registered twice, or not once".into());
    }
    malloc.set_oom_hook(hook::<H>);
    SYSTEM.store(core::ptr::from_ref(host.system()).cast_mut().cast(), Ordering::SeqCst);
    let id = || M_WANTED.id().unwrap_or(TypeId::OVERFLOW);
    let failures = || host.system().type_record(id()).failures.load(AbiOrdering::Relaxed);
    without_memory(host, &malloc, |hoard| {
        // Who gives, who was called until then, and whether the request slept in between.
        for (giver, flags, called, sleeps) in [
            (1, Flags::NONE, 12, 0),
            (2, Flags::NONE, 12, 0),
            (3, Flags::NONE, 123, 1),
            (3, Flags::NORECLAIM, 3, 1),
            (0, Flags::NONE, 123, 1),
        ] {
            let (slept_before, failed_before) = (slept(host, &M_WANTED), failures());
            CALLED.store(0, Ordering::SeqCst);
            GIVER.store(giver, Ordering::SeqCst);
            let gift = if giver == 0 { None } else { take_of_size::<H>(&malloc, hoard, BYTES) };
            ensure!(giver == 0 || gift.is_some(), "too few blocks in the hoard");
            GIFT.store(gift.unwrap_or(0), Ordering::SeqCst);
            let block = if giver == 0 {
                malloc.malloc(&M_WANTED, BYTES, CanFail, flags)
            } else {
                Some(malloc.malloc(&M_WANTED, BYTES, WaitOk, flags))
            };
            hoard.extend(block.map(|block| block.as_ptr() as usize));
            let was_called = CALLED.load(Ordering::SeqCst);
            ensure!(was_called == called, "when {giver} gives, {was_called} were called, not {called}");
            ensure!(block.is_some() == (giver != 0), "when {giver} gives, the request has {block:?}");
            let (slept, failed) = (slept(host, &M_WANTED) - slept_before, failures() - failed_before);
            ensure!(slept == sleeps, "when {giver} gives, {slept} requests are counted as having slept");
            ensure!(failed == u64::from(giver == 0), "when {giver} gives, {failed} failures are counted");
            if called % 10 == 3 {
                let asked = ASKED.load(Ordering::SeqCst);
                ensure!(asked == BYTES, "the hook was told of {asked} bytes");
            }
        }
        Ok(())
    })
}
