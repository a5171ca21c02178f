//! What happens when memory is short: a limit on pages with a reserve below it, reclaim that is asked for, and sleeping until
//! memory comes back.
//!
//! # Sleeping without a lost wake-up
//!
//! Freed items stay in the CPUs' caches, where no sleeper on another CPU sees them, and the fast path has no branch for
//! sleepers. So a sleeper first counts itself and then empties every slot's caches *holding the slot*, which leaves them
//! without room. From then on every free in that slot takes the slow path, and slow paths look at the count inside the
//! section: while it is not zero they give no cache a bucket, put items into their slabs at once, and wake. A free
//! before the slot was emptied has its item in the buckets that were taken from it; one after it sees the count.
//!
//! Who sleeps waits in the queue of its size class, first come, first served; a request for a small block never waits
//! behind one for a large run.

use abi::Ordering;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use platform::Platform;

use super::System;
use crate::class::{CLASSES, RUN_MAX_BYTES, class_of};
use crate::slot::Slot;
use crate::stats::TypeId;
use crate::zone::Reclaim;

/// Least time between two reclaims for the sake of the soft limit, nanoseconds.
const SOFT_EVERY_NS: u64 = 50_000_000;

/// Tickets of one size class.
struct Queue {
    next: AtomicU32,
    serving: AtomicU32,
}

pub(crate) struct Shortage {
    /// Requests that sleep for memory now.
    sleepers: AtomicU32,
    /// Changes when one of them should try again: the word they sleep on.
    wakeups: AtomicU32,
    queues: [Queue; CLASSES + 1],
    /// Pages in use beyond which reclaim is asked for; `u64::MAX` for none.
    soft_pages: AtomicU64,
    /// Not zero while a reclaim is asked for: also the word that a kernel's reclaim thread sleeps on.
    wanted: AtomicU32,
    last_soft_ns: AtomicU64,
    /// A `fn()`, or null.
    on_settings: AtomicPtr<()>,
}

impl Shortage {
    pub(crate) const fn new() -> Self {
        Self {
            sleepers: AtomicU32::new(0),
            wakeups: AtomicU32::new(0),
            queues: [const { Queue { next: AtomicU32::new(0), serving: AtomicU32::new(0) } }; CLASSES + 1],
            soft_pages: AtomicU64::new(u64::MAX),
            wanted: AtomicU32::new(0),
            last_soft_ns: AtomicU64::new(0),
            on_settings: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    fn on_settings(&self) -> Option<fn()> {
        // SAFETY: null, which is `None`, or what `System::on_settings` stored.
        unsafe { core::mem::transmute::<*mut (), Option<fn()>>(self.on_settings.load(Ordering::Acquire)) }
    }
}

/// Someone who sleeps for memory; made by [`System::sleeper`].
pub(crate) struct Sleeper {
    queue: usize,
    ticket: u32,
    /// Whether every slot could be emptied; if not, the sleeper cannot rely on being woken and looks again by itself.
    woken: bool,
}

impl<P: Platform> System<P> {
    /// Whether anybody sleeps for memory. Exact inside a section: see the module's text.
    #[inline]
    pub(super) fn is_short(&self) -> bool {
        self.shortage.sleepers.load(Ordering::Relaxed) != 0
    }

    /// Memory has come back: whoever sleeps for it tries again. Never sleeps. A port calls it when the machine got memory
    /// by ways the allocator knows nothing of.
    #[doc(alias = "vm_wait")]
    pub fn wake_sleepers(&self) {
        if self.is_short() {
            self.wake_sleepers_cold();
        }
    }

    #[cold]
    fn wake_sleepers_cold(&self) {
        self.shortage.wakeups.fetch_add(1, Ordering::Release);
        P::wake_all(&self.shortage.wakeups);
    }

    /// Joins the queue for a block of `bytes`. The caller may sleep and holds nothing.
    pub(crate) fn sleeper(&self, bytes: usize) -> Sleeper {
        let queue = if bytes > RUN_MAX_BYTES { CLASSES } else { class_of(bytes) };
        let ticket = self.shortage.queues[queue].next.fetch_add(1, Ordering::AcqRel);
        // Counted before the first slot is claimed: see the module's text.
        self.shortage.sleepers.fetch_add(1, Ordering::SeqCst);
        let woken = self.drain_slots();
        self.drain_zones();
        Sleeper { queue, ticket, woken }
    }

    /// Requests that sleep for memory now, each in the queue of its size. Those of zones are in their statistics.
    pub fn sleepers(&self) -> usize {
        self.shortage.sleepers.load(Ordering::Acquire) as usize
    }

    /// What a sleeper must read before it tries, and hand to [`sleep`](Self::sleep) when it tried in vain.
    pub(crate) fn wakeups(&self) -> u32 {
        self.shortage.wakeups.load(Ordering::Acquire)
    }

    /// Whether the sleeper is the first of its queue, and so may try.
    pub(crate) fn is_first(&self, sleeper: &Sleeper) -> bool {
        self.shortage.queues[sleeper.queue].serving.load(Ordering::Acquire) == sleeper.ticket
    }

    /// Sleeps until memory has come back since `seen` was read. *May sleep.*
    pub(crate) fn sleep(&self, sleeper: &Sleeper, seen: u32) {
        if sleeper.woken {
            P::wait(&self.shortage.wakeups, seen);
        } else {
            // The port could not empty every slot, and a free there wakes nobody: again and again, then.
            core::hint::spin_loop();
        }
    }

    /// Leaves the queue, being its first; the next one tries.
    pub(crate) fn served(&self, sleeper: Sleeper) {
        self.shortage.queues[sleeper.queue].serving.fetch_add(1, Ordering::AcqRel);
        self.shortage.sleepers.fetch_sub(1, Ordering::AcqRel);
        self.wake_sleepers();
    }

    /// Arms the type's line in every slot, so that each later free of it wakes the sleepers on its limit. False where the port
    /// cannot claim a slot.
    ///
    /// The caller counts itself in the type's record first.
    pub(crate) fn arm_limit(&self, id: TypeId) -> bool {
        (0..self.slot_table().count()).all(|index| {
            let slot = self.slot_table().slot(index) as *mut Slot;
            // SAFETY: 1. one of the table; held after `true`. A slot without a row gets an armed one from its first holder.
            unsafe {
                if !P::claim_remote(slot as usize) {
                    return false;
                }
                if !(*slot).row.is_none() {
                    self.stats().fold(id, (*slot).row, 0);
                }
                Self::leave(slot);
            }
            true
        })
    }

    /// Counts a sleeper on a limit in (before it [arms](Self::arm_limit)) or out.
    pub(crate) fn count_limit_sleeper(&self, id: TypeId, joins: bool) {
        let counters = [&self.limit_sleepers, &self.type_record(id).limit_sleepers];
        for counter in counters {
            if joins {
                counter.fetch_add(1, Ordering::SeqCst);
            } else {
                counter.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Sleepers on a type's limit look again. Never sleeps.
    pub(crate) fn wake_limit(&self, id: TypeId) {
        if self.is_booted() {
            self.stats().wake_limit(id);
        }
    }

    /// The most pages the heap may have in use, and how many of these only a request with `M_USE_RESERVE` gets. `vm.kmem_size`.
    pub fn set_page_limit(&self, most_pages: u64, reserve_pages: u64) {
        {
            let mut pages = self.pages.lock();
            pages.most_pages = most_pages;
            pages.reserve_pages = reserve_pages.min(most_pages);
        }
        self.wake_sleepers();
    }

    /// The most pages the heap may have in use; `u64::MAX` without a limit.
    pub fn page_limit(&self) -> u64 {
        self.pages.lock().most_pages
    }

    /// Runs `f` with leave to dip into the reserve. Requests that others make meanwhile have it, too.
    pub(crate) fn with_reserve<T>(&self, f: impl FnOnce() -> T) -> T {
        self.pages.lock().reserve_claims += 1;
        let result = f();
        self.pages.lock().reserve_claims -= 1;
        result
    }

    /// Sets the pages in use beyond which reclaim is asked for; `u64::MAX` for none.
    pub fn set_soft_limit(&self, pages: u64) {
        self.shortage.soft_pages.store(pages, Ordering::Relaxed);
    }

    /// Pages in use went from `before` to `after`: asks for reclaim where that crosses the soft limit.
    pub(super) fn check_soft_limit(&self, before: u64, after: u64) {
        let soft = self.shortage.soft_pages.load(Ordering::Relaxed);
        if after <= soft || before > soft {
            return;
        }
        let now = P::now_ns();
        let last = self.shortage.last_soft_ns.load(Ordering::Relaxed);
        if last == 0 || now.wrapping_sub(last) >= SOFT_EVERY_NS {
            self.shortage.last_soft_ns.store(now.max(1), Ordering::Relaxed);
            self.shortage.wanted.store(1, Ordering::Release);
            P::wake_all(&self.shortage.wanted);
        }
    }

    /// For a kernel's reclaim thread: sleeps until reclaim is asked for. *May sleep.* Without such a thread the next call
    /// that comes by a slow path does the work.
    pub fn wait_for_reclaim_request(&self) {
        while self.shortage.wanted.load(Ordering::Acquire) == 0 {
            P::wait(&self.shortage.wanted, 0);
        }
    }

    /// Has `hook` called when something was set from outside ([`abi::Control::settings`]): by a slow path of any call, with no lock and no slot
    /// held. It must not sleep. For [`Malloc::obey_settings`](crate::malloc::Malloc::obey_settings).
    pub fn on_settings(&self, hook: fn()) {
        self.shortage.on_settings.store(hook as *mut (), Ordering::Release);
    }

    /// For the child of a fork: threads that sleep in its parent do not exist here.
    ///
    /// # Safety
    /// 1. Between [`freeze`](Self::freeze) and [`thaw`](Self::thaw), in a process with one thread.
    pub unsafe fn forget_sleepers(&self) {
        for queue in &self.shortage.queues {
            queue.serving.store(queue.next.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.shortage.sleepers.store(0, Ordering::Relaxed);
        self.limit_sleepers.store(0, Ordering::Relaxed);
        // SAFETY: 1.
        unsafe { self.forget_zone_sleepers() };
    }

    /// Does what was asked for by the soft limit, or from outside through the control words, and what there is to do in the background.
    /// Called on slow paths, with no lock and no slot held; four loads when there is nothing to do.
    pub(crate) fn obey(&self) {
        let control = &self.stats().header().control;
        let asked = control.uma_reclaim.load(Ordering::Relaxed) | control.settings.load(Ordering::Relaxed);
        if self.shortage.wanted.load(Ordering::Relaxed) == 0 && asked == 0 {
            self.trim_depots_in_background();
            return self.trim_in_background();
        }
        // Not in an interrupt: what is asked for may take long.
        if !P::in_interrupt() {
            self.obey_asked(false);
        }
    }

    /// Does at once what was asked for. True if anything was. A kernel's reclaim thread calls it. Runs callbacks of zones.
    pub fn obey_cold(&self) -> bool {
        self.obey_asked(true)
    }

    /// `all`: also zones whose callbacks run then, which no call can do that was made for something else.
    #[cold]
    fn obey_asked(&self, all: bool) -> bool {
        if !self.is_booted() {
            return false;
        }
        let zones = |how| if all { self.reclaim_zones(how) } else { self.reclaim_quiet_zones(how) };
        let control = &self.stats().header().control;
        if control.settings.swap(0, Ordering::AcqRel) != 0 {
            self.each_zone(|zone| zone.obey_limit());
            if let Some(hook) = self.shortage.on_settings() {
                hook();
            }
        }
        let soft = self.shortage.wanted.swap(0, Ordering::AcqRel) != 0;
        let request = control.uma_reclaim.swap(0, Ordering::AcqRel);
        match request {
            abi::reclaim_request::TRIM => {
                zones(Reclaim::Trim);
                let mut pages = self.pages.lock();
                pages.purge(0);
                self.publish_pages(&pages);
            }
            abi::reclaim_request::DRAIN => {
                self.drain_zones();
                zones(Reclaim::Drain);
            }
            _ if soft || request != 0 => _ = self.reclaim_with(zones),
            _ => return false,
        }
        control.reclaims.fetch_add(1, Ordering::Relaxed);
        true
    }
}
