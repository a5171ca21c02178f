//! Limits per type: admission, first come, first served.
//!
//! A type's memory in use is the sum of its lines, which the fast path of free changes without looking at any limit. So an
//! allocation is *admitted* under a lock, against that sum and what was admitted but not counted yet; frees wake sleepers through
//! the lines' thresholds (`stats::Stats::compare`), which cost the fast path nothing.

use core::ptr::NonNull;

use abi::Ordering;
use platform::Platform;

use super::private::Private;
use super::{Malloc, MallocType, Request, Waiting};
use crate::stats::TypeId;

impl<P: Platform> Malloc<'_, P> {
    /// Sets a type's limit in bytes, 0 for none. A type may have more in use than a limit set later; it then gets nothing until
    /// it is below. Never sleeps. NetBSD `malloc_type_setlimit`.
    ///
    /// The limit counts from the type's next request on.
    #[doc(alias = "malloc_type_setlimit")]
    pub fn set_limit(&self, ty: &'static MallocType, limit_bytes: usize) {
        let Some(id) = self.look(ty).id() else { return };
        if id == TypeId::OVERFLOW {
            return;
        }
        {
            let list = self.list.lock();
            let _admission = self.admission.lock();
            self.system.type_record(id).limit_bytes.store(limit_bytes as u64, Ordering::Relaxed);
            ty.set_limited(&list, limit_bytes != 0);
        }
        self.system.wake_limit(id);
    }

    /// Whether a request of the type may go on. Under the admission lock. As in NetBSD a type gets memory while it has less than its
    /// limit, so that its last block may reach beyond; one counted just now may count twice for a moment.
    fn is_below_limit(&self, private: &Private, id: TypeId) -> bool {
        let limit = self.system.type_record(id).limit_bytes.load(Ordering::Relaxed);
        // What is admitted first: a block that moves from the one to the other meanwhile counts twice rather than never.
        let pending = private.pending_bytes.load(Ordering::Acquire);
        limit == 0 || self.system.totals(id).bytes_in_use().saturating_add(pending) < limit
    }

    /// A request of a type with a limit, or some of whose requests fail on purpose.
    #[cold]
    pub(super) fn request_of_special(
        &self,
        ty: &'static MallocType,
        id: TypeId,
        request: &Request,
    ) -> Option<NonNull<u8>> {
        if matches!(request.waiting, Waiting::NoWait) && self.fails_on_purpose() {
            self.system.fail_request(id);
            return None;
        }
        if self.system.type_record(id).limit_bytes.load(Ordering::Relaxed) != 0 {
            return self.request_limited(ty, id, request);
        }
        self.request_ordinary(ty, id, request)
    }

    /// A request of a type with a limit.
    fn request_limited(&self, ty: &'static MallocType, id: TypeId, request: &Request) -> Option<NonNull<u8>> {
        let may_sleep = self.check_sleep(id, request) && !matches!(request.waiting, Waiting::NoWait);
        let served = super::served_bytes(request.bytes, request.align, 1 << P::PAGE_SHIFT) as u64;
        let Some(private) = ty.data() else {
            // Detached under its user: it has no limit any more.
            return self.request_ordinary(ty, id, request);
        };
        if !self.admit(private, id, served, may_sleep) {
            self.system.fail_request(id);
            if matches!(request.waiting, Waiting::WaitOk) {
                panic!("malloc: type {} is at its limit, and its caller may not sleep", ty.name());
            }
            return None;
        }
        let block = match request.waiting {
            Waiting::NoWait => self.attempt(id, request),
            _ => self.obtain(id, request),
        };
        let waiting = {
            let _admission = self.admission.lock();
            private.pending_bytes.fetch_sub(served, Ordering::Release);
            private.next_ticket.load(Ordering::Relaxed) != private.serving.load(Ordering::Relaxed)
        };
        if waiting {
            // For as long as it counted twice somebody may have been refused for it.
            self.system.wake_limit(id);
        }
        block
    }

    /// Waits for the type to be below its limit, if it may, and takes `served` bytes of it.
    fn admit(&self, private: &Private, id: TypeId, served: u64, may_sleep: bool) -> bool {
        let record = self.system.type_record(id);
        let ticket = {
            let _admission = self.admission.lock();
            // Nobody overtakes those who wait.
            let nobody_waits = private.next_ticket.load(Ordering::Relaxed) == private.serving.load(Ordering::Relaxed);
            if nobody_waits && self.is_below_limit(private, id) {
                private.pending_bytes.fetch_add(served, Ordering::Relaxed);
                return true;
            }
            if !may_sleep {
                return false;
            }
            record.limit_blocks.fetch_add(1, Ordering::Relaxed);
            // Counted before the lines are armed: see `Stats::compare`.
            self.system.count_limit_sleeper(id, true);
            private.next_ticket.fetch_add(1, Ordering::Relaxed)
        };
        let armed = self.system.arm_limit(id);
        loop {
            let seen = record.limit_wakeups.load(Ordering::Acquire);
            {
                let _admission = self.admission.lock();
                if private.serving.load(Ordering::Relaxed) == ticket && self.is_below_limit(private, id) {
                    private.serving.fetch_add(1, Ordering::Relaxed);
                    private.pending_bytes.fetch_add(served, Ordering::Relaxed);
                    self.system.count_limit_sleeper(id, false);
                    break;
                }
            }
            if armed {
                P::wait(&record.limit_wakeups, seen);
            } else {
                // A slot could not be claimed, and a free there wakes nobody: again and again, then.
                core::hint::spin_loop();
            }
        }
        // The next in line is the first now.
        self.system.wake_limit(id);
        true
    }
}
