//! The arena with a lock, parents, caches and sleeping.

mod ask;
mod fork;
mod import;
mod queue;
mod upkeep;

use crate::error::Error;
use crate::fit::{Fit, Request};
use crate::raw::{Counts, RawArena, Size};
use crate::system::{QuantumCache, Source, System, TagSource, Wait};
use core::marker::PhantomData;
use platform::Lock;

/// The most multiples of the quantum that caches may serve, as in illumos (`VMEM_NQCACHE_MAX`).
pub const QCACHE_MAX: usize = 16;

/// The size of the slabs that a quantum cache should import: the power of two above three of its largest ranges, so
/// that at most a quarter of a slab is lost at its end (Bonwick and Adams, 2001).
#[must_use]
pub const fn qcache_slab_size(qcache_max: usize) -> usize {
    (3 * qcache_max + 1).next_power_of_two()
}

/// Calls and events of an [`Arena`], with the [`Counts`] of its structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ArenaCounts {
    /// Spans, segments, tags, and calls that reached the structure (those that a quantum cache served did not).
    pub raw: Counts,
    /// Spans that were imported.
    pub imports: u64,
    /// Spans that were released to where they came from.
    pub releases: u64,
    /// Times a request slept.
    pub waits: u64,
    /// Requests that were not met.
    pub fails: u64,
}

type Reclaim<'a> = &'a (dyn Fn(usize) + Sync);

/// What the lock protects.
struct Inner<'a> {
    raw: RawArena,
    /// Most that may be in all spans for an import to be made; `usize::MAX` for no limit.
    limit: usize,
    reclaim: Option<Reclaim<'a>>,
    /// The tag source had no memory for a larger hash table; asked again by [`Arena::update`].
    hash_denied: bool,
    imports: u64,
    releases: u64,
    waits: u64,
    fails: u64,
}

impl Inner<'_> {
    /// Whether the limit leaves room for an import of this size.
    fn allows(&self, size: usize) -> bool {
        self.raw.size(Size::Total).checked_add(size).is_some_and(|after| after <= self.limit)
    }
}

/// An arena of integers that any number of threads may use. See the [crate's text](crate) for the structure.
///
/// # How a request falls through
///
/// 1. [`Arena::alloc`] of a small multiple of the quantum: the quantum cache, if there is one.
/// 2. A free segment, under the arena's lock.
/// 3. An import from the parent, if one could serve whatever its address: a request with bounds imports nothing, one
///    with alignment imports as much as that may cost.
/// 4. The caches are drained and the reclaim function is called; then 2 and 3 again, once.
/// 5. [`Wait::Sleep`] sleeps until something is freed, here or in any arena of the system, and begins again at 2. Requests whose sizes have
///    the same power of two below them are served in the order in which they came, and one that may sleep does not overtake
///    those who do. Otherwise the request fails.
///
/// A request that may sleep where [`System::may_sleep`] says no is [reported](System::sleep_forbidden), also when there is space, and served
/// without sleep.
///
/// # Lock order
///
/// The arena's lock is innermost: nothing that belongs to somebody else is called with it held, but the visitors of
/// [`Arena::walk`] and the writer of [`Arena::print`], which must not call an arena.
///
/// # Recursion
///
/// Import goes up the chain of parents. A tag source may allocate from an arena, at worst from the one that asks,
/// with [`Wait::Reserve`]: that never calls a tag source, so it ends there. How many tags the reserve of such an
/// arena needs is said at [`Arena::with_reserve`].
///
/// Dropping an arena is [`Arena::destroy`] with nobody to read the answer.
pub struct Arena<'a, S: System> {
    // Constant.
    tags: &'a dyn TagSource,
    source: Option<&'a dyn Source>,
    import_quantum: usize,
    cache: Option<&'a dyn QuantumCache>,
    /// Largest size that the cache serves.
    cache_max: usize,
    reserve: usize,
    name: &'static str,
    quantum: usize,
    inner: Lock<S::Lock, Inner<'a>>,
    /// Who sleeps, in order.
    queue: queue::Queue,
    system: PhantomData<S>,
}

impl<'a, S: System> Arena<'a, S> {
    /// An empty arena. `name` is for reports, `quantum` (a power of two) the unit of all bases and sizes.
    ///
    /// # Panics
    /// If the quantum is not a power of two.
    #[doc(alias = "vmem_create")]
    #[doc(alias = "vmem_init")]
    #[must_use]
    pub const fn new(name: &'static str, quantum: usize, tags: &'a dyn TagSource) -> Self {
        let raw = RawArena::new(name, quantum);
        let inner = Inner {
            raw,
            limit: usize::MAX,
            reclaim: None,
            hash_denied: false,
            imports: 0,
            releases: 0,
            waits: 0,
            fails: 0,
        };
        Arena {
            tags,
            source: None,
            import_quantum: quantum,
            cache: None,
            cache_max: 0,
            reserve: 0,
            name,
            quantum,
            inner: Lock::new(inner),
            queue: queue::Queue::new(),
            system: PhantomData,
        }
    }

    /// The same arena, importing from `source` in multiples of `import_quantum`, a power of two not less than its own
    /// quantum. A span that came from there goes back as soon as it is free as a whole.
    ///
    /// # Panics
    /// If the import quantum is no such number.
    #[doc(alias = "vmem_set_import")]
    #[must_use]
    pub const fn with_import(mut self, source: &'a dyn Source, import_quantum: usize) -> Self {
        assert!(import_quantum.is_power_of_two() && import_quantum >= self.quantum, "an import quantum is 2^n quanta");
        self.source = Some(source);
        self.import_quantum = import_quantum;
        self
    }

    /// The same arena with caches in front for sizes up to `max`, at most [`QCACHE_MAX`] quanta.
    ///
    /// # Panics
    /// If that is more.
    #[must_use]
    pub const fn with_quantum_cache(mut self, cache: &'a dyn QuantumCache, max: usize) -> Self {
        assert!(max / self.quantum <= QCACHE_MAX, "quantum caches are for few quanta");
        self.cache = Some(cache);
        self.cache_max = max;
        self
    }

    /// The same arena with so many tags kept for [`Wait::Reserve`].
    ///
    /// What is needed, if the tag source draws from this arena: each of its allocations takes
    /// [`RawArena::TAGS_PER_OP`] tags, and twice that if it imports (the span and its free segment come on top). So 4
    /// times the number of callers that may be in the tag source at once, and 4 if it lets in one at a time.
    /// (FreeBSD: 4 per operation; illumos: 12 and 4 per thread that may populate.)
    ///
    /// The source fills the reserve up again: of what it allocated here for another arena it first
    /// [donates](Arena::donate_tags) to this one what that took.
    #[must_use]
    pub const fn with_reserve(mut self, tags: usize) -> Self {
        self.reserve = tags;
        self
    }

    /// The name given at creation.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The unit of all bases and sizes.
    #[must_use]
    pub const fn quantum(&self) -> usize {
        self.quantum
    }

    // ---- spans ----

    /// Adds a span, see [`RawArena::add`]. May sleep for tags.
    ///
    /// # Errors
    /// [`Error::NoTags`], [`Error::Overlap`], [`Error::Invalid`].
    #[doc(alias = "vmem_add")]
    pub fn add(&self, base: usize, size: usize, wait: Wait) -> Result<(), Error> {
        self.enlarge(wait, |raw| raw.add(base, size))
    }

    /// Makes a span longer at its end, see [`RawArena::extend_span`]. May sleep for tags.
    ///
    /// # Errors
    /// As [`Arena::add`], and [`Error::NoSpan`].
    pub fn extend_span(&self, base: usize, size: usize, wait: Wait) -> Result<(), Error> {
        self.enlarge(wait, |raw| raw.extend_span(base, size))
    }

    /// Removes a span that is free as a whole, see [`RawArena::remove_span`]. Does not sleep.
    ///
    /// # Errors
    /// [`Error::NoSpan`], [`Error::Busy`].
    pub fn remove_span(&self, base: usize) -> Result<usize, Error> {
        self.inner.lock().raw.remove_span(base)
    }

    /// Nothing is imported that would make the sum of all spans more than this; `None` for no limit. What is there
    /// already stays.
    #[doc(alias = "vmem_set_limit")]
    pub fn set_limit(&self, limit: Option<usize>) {
        self.inner.lock().limit = limit.unwrap_or(usize::MAX);
    }

    /// The function that is called, with the size wanted, when the arena can't serve a request: it may free ranges that
    /// were only kept in case. It is called without a lock, in the context of the request; it must not sleep if any
    /// caller uses [`Wait::NoSleep`].
    #[doc(alias = "vmem_set_reclaim")]
    pub fn set_reclaim(&self, reclaim: Option<Reclaim<'a>>) {
        self.inner.lock().reclaim = reclaim;
    }

    // ---- allocation ----

    /// Allocates `size`, rounded up to the quantum, through the caches if they serve that size (whatever the fit).
    /// Returns the first address, for [`Arena::free`]. Sleeps only with [`Wait::Sleep`].
    ///
    /// # Errors
    /// [`Error::NoSpace`] and [`Error::NoTags`], never with [`Wait::Sleep`] where the caller may sleep; [`Error::Invalid`] for size 0.
    #[doc(alias = "vmem_alloc")]
    pub fn alloc(&self, size: usize, fit: Fit, wait: Wait) -> Result<usize, Error> {
        let wait = self.check_sleep(wait);
        let Some((cache, quanta)) = self.cached(size) else { return self.alloc_past(size, fit, wait) };
        let in_line = wait == Wait::Sleep && self.queue.is_waited_for(size);
        if wait != Wait::Reserve
            && !in_line
            && let Some(addr) = cache.alloc(quanta, wait)
        {
            return Ok(addr);
        }
        // What the cache can't give, for want of ranges or of memory for itself, the arena may have. It comes back to the cache.
        let addr = self.alloc_past(size, fit, wait)?;
        cache.adopt(quanta, addr);
        Ok(addr)
    }

    /// [`alloc`](Self::alloc) past the caches.
    fn alloc_past(&self, size: usize, fit: Fit, wait: Wait) -> Result<usize, Error> {
        if wait == Wait::Sleep && self.queue.is_waited_for(size) {
            return self.sleep_in_line(&Request { fit, ..Request::new(size) });
        }
        match self.take(wait, |raw| raw.alloc(size, fit)) {
            Err(error) if error.is_shortage() => self.alloc_slow(&Request { fit, ..Request::new(size) }, wait, error),
            done => done,
        }
    }

    /// Frees what [`Arena::alloc`] returned, with the size that was asked for. Does not sleep.
    ///
    /// # Errors
    /// As [`RawArena::free`]. A range that goes into a cache is checked when it leaves it.
    #[doc(alias = "vmem_free")]
    pub fn free(&self, addr: usize, size: usize) -> Result<(), Error> {
        if let Some((cache, quanta)) = self.cached(size) {
            cache.free(quanta, addr);
            if S::channel().has_waiters() {
                // Somebody sleeps for want of what caches keep.
                cache.drain();
            }
            return Ok(());
        }
        self.xfree(addr, size)
    }

    /// What a request may do about waiting where it is made.
    #[inline]
    fn check_sleep(&self, wait: Wait) -> Wait {
        if wait == Wait::Sleep
            && let Err(what) = S::may_sleep()
        {
            S::sleep_forbidden(self.name, what);
            return Wait::NoSleep;
        }
        wait
    }

    #[inline]
    fn cached(&self, size: usize) -> Option<(&'a dyn QuantumCache, usize)> {
        let cache = self.cache?;
        (size != 0 && size <= self.cache_max).then(|| (cache, size.div_ceil(self.quantum)))
    }

    /// Allocates under constraints, past the caches. For [`Arena::xfree`]. Sleeps only with [`Wait::Sleep`].
    ///
    /// # Errors
    /// [`Error::NoSpace`] and [`Error::NoTags`], never with [`Wait::Sleep`] where the caller may sleep; [`Error::Invalid`] if no address at
    /// all could meet the request.
    #[doc(alias = "vmem_xalloc")]
    pub fn xalloc(&self, request: &Request, wait: Wait) -> Result<usize, Error> {
        let wait = self.check_sleep(wait);
        if wait == Wait::Sleep && self.queue.is_waited_for(request.size) {
            return self.sleep_in_line(request);
        }
        match self.take(wait, |raw| raw.xalloc(request)) {
            Err(error) if error.is_shortage() => self.alloc_slow(request, wait, error),
            done => done,
        }
    }

    /// Frees what [`Arena::xalloc`] returned; releases its span if that is imported and now free. Does not sleep.
    ///
    /// # Errors
    /// As [`RawArena::free`].
    #[doc(alias = "vmem_xfree")]
    pub fn xfree(&self, addr: usize, size: usize) -> Result<(), Error> {
        let mut inner = self.inner.lock();
        inner.raw.free(addr, size)?;
        let span = if self.source.is_some() { import::take_free(&mut inner.raw, addr) } else { None };
        drop(inner);
        match span {
            Some(span) => self.release_span(span),
            None => S::channel().wake::<S>(),
        }
        Ok(())
    }

    /// Makes an allocated range longer in place, see [`RawArena::grow_in_place`]. Does not sleep; imports nothing. Not
    /// for sizes that the caches serve.
    ///
    /// # Errors
    /// As there.
    pub fn grow_in_place(&self, addr: usize, old: usize, new: usize) -> Result<(), Error> {
        self.inner.lock().raw.grow_in_place(addr, old, new)
    }

    /// Gives back the tail of an allocated range, see [`RawArena::shrink_in_place`]. May sleep for a tag. Not for sizes
    /// that the caches serve.
    ///
    /// # Errors
    /// As there.
    pub fn shrink_in_place(&self, addr: usize, old: usize, new: usize, wait: Wait) -> Result<(), Error> {
        self.enlarge(wait, |raw| raw.shrink_in_place(addr, old, new))
    }

    /// An operation after which more is free than before.
    fn enlarge(&self, wait: Wait, f: impl FnOnce(&mut RawArena) -> Result<(), Error>) -> Result<(), Error> {
        self.with_tags(RawArena::TAGS_PER_OP, wait, |inner| f(&mut inner.raw))??;
        S::channel().wake::<S>();
        Ok(())
    }

    /// From a free segment, under the lock.
    #[inline]
    fn take(&self, wait: Wait, f: impl FnOnce(&mut RawArena) -> Result<usize, Error>) -> Result<usize, Error> {
        let (result, larger) = self.with_tags(RawArena::TAGS_PER_OP, wait, |inner| {
            let result = f(&mut inner.raw);
            (result, if inner.hash_denied { None } else { inner.raw.hash_too_small() })
        })?;
        if let Some(buckets) = larger
            && wait != Wait::Reserve
        {
            self.resize_hash(buckets);
        }
        result
    }
}
