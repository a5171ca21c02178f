//! Values that are set from outside while the program runs (kernmalloc-sysctl(7)), and standing still for fork.

use abi::Ordering;
use platform::{Platform, RawLock};

use super::{Malloc, MallocType, Sizing, Tunables, size_kmem};

/// The control words of the heap's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Words {
    size: u64,
    min: u64,
    max: u64,
    scale: u64,
    reserve_pages: u64,
    soft_percent: u64,
}

impl Words {
    fn read(control: &abi::Control) -> Self {
        let value = |word: &abi::AtomicU64| word.load(Ordering::Relaxed);
        Self {
            size: value(&control.kmem_size),
            min: value(&control.kmem_size_min),
            max: value(&control.kmem_size_max),
            scale: value(&control.kmem_size_scale),
            reserve_pages: value(&control.kmem_reserve_pages),
            soft_percent: value(&control.kmem_soft_percent),
        }
    }

    fn write(&self, control: &abi::Control) {
        for (word, value) in [
            (&control.kmem_size, self.size),
            (&control.kmem_size_min, self.min),
            (&control.kmem_size_max, self.max),
            (&control.kmem_size_scale, self.scale),
            (&control.kmem_reserve_pages, self.reserve_pages),
            (&control.kmem_soft_percent, self.soft_percent),
        ] {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// What is in force when these are asked for and `before` was: whatever stands in them is held to its bounds.
    fn resolve(self, before: &Self, physical_bytes: u64, most_bytes: u64, page: u64) -> Self {
        let max = self.max.clamp(page, most_bytes);
        let min = self.min.clamp(page, max);
        let bounds_changed = (self.min, self.max, self.scale) != (before.min, before.max, before.scale);
        let size = if self.size != before.size || !bounds_changed {
            self.size
        } else if self.scale == 0 {
            max
        } else {
            let by_machine =
                Tunables { size_min: Some(min), size_max: Some(max), scale: Some(self.scale), ..Tunables::default() };
            size_kmem(physical_bytes, page, &by_machine).size
        };
        let size = size.clamp(min, max) / page * page;
        Self {
            size,
            min,
            max,
            scale: self.scale,
            reserve_pages: self.reserve_pages.min(size / page / 2),
            soft_percent: self.soft_percent.clamp(1, 100),
        }
    }
}

/// What is in force.
pub(super) struct Applied {
    words: Words,
    /// Memory of the machine, bytes.
    physical_bytes: u64,
}

impl Applied {
    pub(super) const NONE: Self = Self {
        words: Words { size: 0, min: 0, max: 0, scale: 0, reserve_pages: 0, soft_percent: 0 },
        physical_bytes: 0,
    };
}

impl<P: Platform> Malloc<'_, P> {
    /// Puts a sizing into force: the limit on pages, the reserve and the soft limit. After the system has booted.
    pub fn apply_sizing(&self, sizing: &Sizing) {
        let words = Words {
            size: sizing.size,
            min: sizing.bounds.min,
            max: sizing.bounds.max,
            scale: sizing.scale,
            reserve_pages: sizing.reserve_pages,
            soft_percent: sizing.soft_percent,
        };
        let mut applied = self.applied.lock();
        applied.physical_bytes = sizing.physical_bytes;
        self.enforce(&mut applied, words);
    }

    /// For a process on a machine of so much memory: the heap may grow as far as the port lets it, unless the tunables say otherwise.
    pub fn apply_tunables(&self, physical_bytes: u64, tunables: &Tunables) {
        let page = 1 << P::PAGE_SHIFT;
        let most = self.most_bytes();
        let unlimited = Words { size: most, min: page, max: most, scale: 0, reserve_pages: 0, soft_percent: 100 };
        let asked = Words {
            size: tunables.size.unwrap_or(unlimited.size),
            min: tunables.size_min.unwrap_or(unlimited.min),
            max: tunables.size_max.unwrap_or(unlimited.max),
            scale: tunables.scale.unwrap_or(unlimited.scale),
            reserve_pages: tunables.reserve_pages.unwrap_or(unlimited.reserve_pages),
            soft_percent: tunables.soft_percent.unwrap_or(unlimited.soft_percent),
        };
        let mut applied = self.applied.lock();
        applied.physical_bytes = physical_bytes;
        self.enforce(&mut applied, asked.resolve(&unlimited, physical_bytes, most, page));
    }

    /// Takes up what was set from outside since the last time: limits of types, failures on purpose, the heap's size. A port has the system
    /// call it ([`System::on_settings`](crate::System::on_settings)). Never sleeps.
    pub fn obey_settings(&self) {
        let control = &self.system.header().control;
        let failing = control.failure_rate.load(Ordering::Relaxed) != 0;
        {
            let list = self.list.lock();
            let _admission = self.admission.lock();
            list.each(|ty| {
                ty.set_failing(&list, failing);
                let limit = ty.id().map(|id| self.system.type_record(id).limit_bytes.load(Ordering::Relaxed));
                ty.set_limited(&list, limit.is_some_and(|limit| limit != 0));
                true
            });
        }
        self.for_each_type(|ty| {
            if let Some(id) = ty.id() {
                self.system.wake_limit(id);
            }
            true
        });
        let mut applied = self.applied.lock();
        let asked = Words::read(control);
        if asked != applied.words && applied.words.max != 0 {
            let page = 1 << P::PAGE_SHIFT;
            let words = asked.resolve(&applied.words, applied.physical_bytes, self.most_bytes(), page);
            self.enforce(&mut applied, words);
        }
    }

    /// Bytes that the port says its heap can have.
    fn most_bytes(&self) -> u64 {
        match self.system.header().heap_max_bytes {
            0 => u64::MAX,
            most => most,
        }
    }

    fn enforce(&self, applied: &mut Applied, words: Words) {
        words.write(&self.system.header().control);
        applied.words = words;
        let pages = words.size >> P::PAGE_SHIFT;
        // The port knows better than a number where its own end is.
        let most_pages = if words.size >= self.most_bytes() { u64::MAX } else { pages };
        self.system.set_page_limit(most_pages, words.reserve_pages);
        let soft = match words.soft_percent {
            100 => u64::MAX,
            // Divided first: the product of a large machine would wrap.
            percent => pages / 100 * percent + pages % 100 * percent / 100,
        };
        self.system.set_soft_limit(soft);
    }

    /// Whether this request, which may not sleep, is to fail for `debug.malloc.failure_rate`.
    pub(super) fn fails_on_purpose(&self) -> bool {
        let control = &self.system.header().control;
        let rate = control.failure_rate.load(Ordering::Relaxed);
        if rate == 0 {
            return false;
        }
        let turn = self.since_failure.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let fails = u64::from(turn) >= rate;
        if fails {
            self.since_failure.store(0, Ordering::Relaxed);
            control.failure_count.fetch_add(1, Ordering::Relaxed);
        }
        fails
    }

    /// Takes every lock, before the system's ([`System::freeze`](crate::System::freeze)), for fork(2).
    pub fn freeze(&self) {
        self.list.raw().lock();
        self.admission.raw().lock();
        self.handlers.raw().lock();
        self.applied.raw().lock();
    }

    /// Lets them go, after the system was let go.
    ///
    /// # Safety
    /// 1. The caller (or the thread it is a copy of) has called [`freeze`](Self::freeze).
    pub unsafe fn thaw(&self) {
        // SAFETY: 1.
        unsafe {
            self.applied.raw().unlock();
            self.handlers.raw().unlock();
            self.admission.raw().unlock();
            self.list.raw().unlock();
        }
    }

    /// For the child of a fork: threads that sleep in its parent do not exist here, and nobody waits behind them.
    ///
    /// # Safety
    /// 1. Between [`freeze`](Self::freeze) and [`thaw`](Self::thaw), in a process with one thread.
    pub unsafe fn forget_sleepers(&self) {
        let forget = |ty: &MallocType| {
            if let Some(private) = ty.data() {
                private.serving.store(private.next_ticket.load(Ordering::Relaxed), Ordering::Relaxed);
                private.pending_bytes.store(0, Ordering::Relaxed);
            }
            if let Some(id) = ty.id() {
                self.system.type_record(id).limit_sleepers.store(0, Ordering::Relaxed);
            }
            true
        };
        // SAFETY: 1. the lock is held.
        unsafe { self.list.held() }.each(forget);
        self.reclaiming.store(0, Ordering::Relaxed);
    }
}
