//! The arena with a lock, parents, caches and sleeping.

use crate::check::Damage;
use crate::error::Error;
use crate::fit::{Fit, Request};
use crate::hash::HASH_INLINE;
use crate::raw::{Counts, RawArena, Size};
use crate::system::{QuantumCache, Source, System, TagSource, Wait};
use crate::tag::{Segment, SegmentKind, Tag};
use core::fmt;
use core::marker::PhantomData;
use core::ptr::NonNull;
use platform::Lock;

/// The most multiples of the quantum that caches may serve, as in illumos (`VMEM_NQCACHE_MAX`).
pub const QCACHE_MAX: usize = 16;

/// The size of the slabs that a quantum cache should import: the power of two above three of its largest ranges, so that at
/// most a quarter of a slab is lost at its end (Bonwick and Adams, 2001).
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
/// 5. [`Wait::Sleep`] sleeps until something is freed, here or in any arena of the system, and begins again at 2.
///    Otherwise the request fails.
///
/// # Lock order
///
/// The arena's lock is innermost: nothing that belongs to somebody else is called with it held, but the visitors of
/// [`Arena::walk`] and the writer of [`Arena::print`], which must not call an arena.
///
/// # Recursion
///
/// Import goes up the chain of parents. A tag source may allocate from an arena, at worst from the one that asks,
/// with [`Wait::Reserve`]: that never calls a tag source, so it ends there. How many tags the reserve of such an arena needs is
/// said at [`Arena::with_reserve`].
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
    /// times the number of callers that may be in the tag source at once, and 4 if it lets in one at a time. (FreeBSD: 4 per
    /// operation; illumos: 12 and 4 per thread that may populate.)
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
        self.with_tags(RawArena::TAGS_PER_OP, wait, |inner| inner.raw.add(base, size))??;
        S::channel().wake::<S>();
        Ok(())
    }

    /// Makes a span longer at its end, see [`RawArena::extend_span`]. May sleep for tags.
    ///
    /// # Errors
    /// As [`Arena::add`], and [`Error::NoSpan`].
    pub fn extend_span(&self, base: usize, size: usize, wait: Wait) -> Result<(), Error> {
        self.with_tags(RawArena::TAGS_PER_OP, wait, |inner| inner.raw.extend_span(base, size))??;
        S::channel().wake::<S>();
        Ok(())
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
    /// [`Error::NoSpace`] and [`Error::NoTags`], never with [`Wait::Sleep`]; [`Error::Invalid`] for size 0.
    #[doc(alias = "vmem_alloc")]
    pub fn alloc(&self, size: usize, fit: Fit, wait: Wait) -> Result<usize, Error> {
        // What the cache can't give, for want of ranges or of memory for itself, the arena may have.
        if wait != Wait::Reserve
            && let Some((cache, quanta)) = self.cached(size)
            && let Some(addr) = cache.alloc(quanta, wait)
        {
            return Ok(addr);
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

    #[inline]
    fn cached(&self, size: usize) -> Option<(&'a dyn QuantumCache, usize)> {
        let cache = self.cache?;
        (size != 0 && size <= self.cache_max).then(|| (cache, size.div_ceil(self.quantum)))
    }

    /// Allocates under constraints, past the caches. For [`Arena::xfree`]. Sleeps only with [`Wait::Sleep`].
    ///
    /// # Errors
    /// [`Error::NoSpace`] and [`Error::NoTags`], never with [`Wait::Sleep`]; [`Error::Invalid`] if no address at all
    /// could meet the request.
    #[doc(alias = "vmem_xalloc")]
    pub fn xalloc(&self, request: &Request, wait: Wait) -> Result<usize, Error> {
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
        let span = if self.source.is_some() { take_free_import(&mut inner.raw, addr) } else { None };
        drop(inner);
        match span {
            Some(span) => self.release(span),
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
        self.with_tags(RawArena::TAGS_PER_OP, wait, |inner| inner.raw.shrink_in_place(addr, old, new))??;
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

    #[cold]
    fn alloc_slow(&self, request: &Request, wait: Wait, mut error: Error) -> Result<usize, Error> {
        let attempt = |wait| self.take(wait, |raw| raw.xalloc(request)).or_else(|_| self.import(request, wait));
        let try_wait = if wait == Wait::Sleep { Wait::NoSleep } else { wait };
        if error == Error::NoSpace {
            match self.import(request, try_wait) {
                Err(now) if now.is_shortage() => error = now,
                done => return done,
            }
        }
        if wait != Wait::Reserve && self.reclaim(request.size) {
            match attempt(try_wait) {
                Err(now) if now.is_shortage() => error = now,
                done => return done,
            }
        }
        if wait != Wait::Sleep {
            self.inner.lock().fails += 1;
            return Err(error);
        }
        loop {
            let sleeper = S::channel().enter();
            // The last look, see Channel::wake. It includes the caches, for a range that was freed into one before
            // we were counted woke nobody. The tag source and the parent may sleep in it.
            self.reclaim(request.size);
            match attempt(Wait::Sleep) {
                Err(error) if error.is_shortage() => {}
                done => return done,
            }
            self.inner.lock().waits += 1;
            sleeper.wait::<S>();
        }
    }

    /// Lets go of what is kept in case; whether there was anything to be asked.
    fn reclaim(&self, size: usize) -> bool {
        if let Some(cache) = self.cache {
            cache.drain();
        }
        let reclaim = self.inner.lock().reclaim;
        if let Some(reclaim) = reclaim {
            reclaim(size);
        }
        self.cache.is_some() || reclaim.is_some()
    }

    /// Imports a span that can serve the request, and serves it from there.
    fn import(&self, request: &Request, wait: Wait) -> Result<usize, Error> {
        let source = self.source.ok_or(Error::NoSpace)?;
        // What must be imported to be sure. Bounds: nothing is.
        let shape = request.checked(self.quantum)?;
        let size = shape.import_size(source.alignment()).ok_or(Error::NoSpace)?;
        let size = size.checked_add(self.import_quantum - 1).ok_or(Error::NoSpace)? & !(self.import_quantum - 1);
        // Twice the tags of an operation: the span and its segment, then the allocation. Made sure of first, since
        // to import and to give back, again and again, would wake all who sleep.
        let need = 2 * RawArena::TAGS_PER_OP;
        if !self.with_tags(need, wait, |inner| inner.allows(size))? {
            return Err(Error::NoSpace);
        }
        let (base, got) = source.import(size, wait).ok_or(Error::NoSpace)?;
        // Added and used under one hold of the lock, so that nobody else can take what was imported for this request.
        let served = self.with_tags(need, wait, |inner| {
            if !inner.allows(got) {
                return Err(Error::NoSpace);
            }
            inner.raw.add_imported(base, got)?;
            inner.raw.xalloc(request).inspect_err(|_| {
                // The source gave less than it was asked for, or not as aligned as it says.
                let removed = inner.raw.remove_span(base);
                debug_assert!(removed == Ok(got));
            })
        });
        let served = served.unwrap_or_else(Err);
        match served {
            Ok(_) => {
                self.inner.lock().imports += 1;
                // What is left of it may serve others.
                S::channel().wake::<S>();
            }
            Err(_) => source.release(base, got),
        }
        served
    }

    fn release(&self, span: Segment) {
        if let Some(source) = self.source {
            source.release(span.base, span.size);
            self.inner.lock().releases += 1;
        }
        S::channel().wake::<S>();
    }

    /// Runs an operation once there are tags for it, under the lock.
    #[inline]
    fn with_tags<T>(&self, need: usize, wait: Wait, f: impl FnOnce(&mut Inner<'a>) -> T) -> Result<T, Error> {
        let need = if wait == Wait::Reserve { need } else { need + self.reserve };
        loop {
            let mut inner = self.inner.lock();
            if inner.raw.tags_free() >= need {
                return Ok(f(&mut inner));
            }
            drop(inner);
            self.refill_tags(wait)?;
        }
    }

    #[cold]
    fn refill_tags(&self, wait: Wait) -> Result<(), Error> {
        if wait == Wait::Reserve {
            return Err(Error::NoTags);
        }
        let (mem, count) = self.tags.get(wait).ok_or(Error::NoTags)?;
        // SAFETY: 1. and 2. are the tag source's promise (1); we put them back in `teardown` only.
        unsafe { self.inner.lock().raw.donate_tags(mem, count) };
        Ok(())
    }

    // ---- upkeep ----

    /// Tags for the arena that it did not ask for: from a tag source that has just used some of its reserve.
    ///
    /// # Safety
    /// 1. As [`RawArena::donate_tags`].
    /// 2. The tags may be [put](TagSource::put) to the arena's tag source at its end.
    pub unsafe fn donate_tags(&self, mem: NonNull<Tag>, count: usize) {
        // SAFETY: (1).
        unsafe { self.inner.lock().raw.donate_tags(mem, count) };
    }

    /// How many tags are free, the reserve included.
    #[must_use]
    pub fn tags_free(&self) -> usize {
        self.inner.lock().raw.tags_free()
    }

    /// Gives the hash table the size it should have; worth a call every few seconds (the BSDs: ten). Growing happens by itself
    /// as well, when an allocation finds the table too small; shrinking happens only here.
    #[doc(alias = "vmem_update")]
    pub fn update(&self) {
        let mut inner = self.inner.lock();
        inner.hash_denied = false;
        let wanted = inner.raw.hash_wanted();
        drop(inner);
        if let Some(buckets) = wanted {
            self.resize_hash(buckets);
        }
    }

    #[cold]
    fn resize_hash(&self, buckets: usize) {
        let mem = if buckets == HASH_INLINE { None } else { self.tags.get_buckets(buckets) };
        let mut inner = self.inner.lock();
        let unused = match mem {
            None if buckets != HASH_INLINE => {
                inner.hash_denied = true;
                None
            }
            // Somebody else was here, or the number has changed.
            _ if inner.raw.hash_wanted() != Some(buckets) => mem.map(|mem| (mem, buckets)),
            None => inner.raw.retire_hash(),
            // SAFETY: 1. and 2. are the tag source's promise (1); what comes back is put back.
            Some(mem) => unsafe { inner.raw.donate_hash(mem, buckets) },
        };
        drop(inner);
        if let Some((mem, count)) = unused {
            // SAFETY: 1. it came from get_buckets, with this count, and the arena does not use it (any more).
            unsafe { self.tags.put_buckets(mem, count) };
        }
    }

    /// Ends the arena: drains the caches, gives tags and hash table back.
    ///
    /// # Errors
    /// The first segment that is still allocated. Its span, if imported, is not released: somebody may use it.
    #[doc(alias = "vmem_destroy")]
    #[doc(alias = "vmem_fini")]
    pub fn destroy(mut self) -> Result<(), Segment> {
        match self.teardown() {
            None => Ok(()),
            Some(leak) => Err(leak),
        }
    }

    fn teardown(&mut self) -> Option<Segment> {
        if let Some(cache) = self.cache {
            cache.drain();
        }
        // What is imported and free went back with the free; so every imported span has a leak in it now.
        let mut inner = self.inner.lock();
        let leak = inner.raw.clear();
        let table = inner.raw.retire_hash();
        drop(inner);
        if let Some((mem, count)) = table {
            // SAFETY: 1. from get_buckets by `resize_hash`; retired.
            unsafe { self.tags.put_buckets(mem, count) };
        }
        let next = || self.inner.lock().raw.take_tag();
        while let Some(tag) = next() {
            // SAFETY: 1. from get by `refill_tags`, or from a donor who says that it is as good; taken out.
            unsafe { self.tags.put(tag) };
        }
        leak
    }

    // ---- questions ----

    /// Exact sums, see [`RawArena::size`]; what the caches keep counts as allocated.
    #[doc(alias = "vmem_size")]
    #[must_use]
    pub fn size(&self, what: Size) -> usize {
        self.inner.lock().raw.size(what)
    }

    /// What `size` is rounded up to; `None` if that is no number.
    #[doc(alias = "vmem_roundup_size")]
    #[must_use]
    pub const fn roundup_size(&self, size: usize) -> Option<usize> {
        match size.checked_add(self.quantum - 1) {
            Some(sum) => Some(sum & !(self.quantum - 1)),
            None => None,
        }
    }

    /// The segment that holds `addr`, see [`RawArena::whatis`].
    #[doc(alias = "vmem_whatis")]
    #[must_use]
    pub fn whatis(&self, addr: usize) -> Option<Segment> {
        self.inner.lock().raw.whatis(addr)
    }

    /// Calls `f` with every span and segment in address order, under the lock: `f` must not call an arena, nor anything
    /// that may.
    #[doc(alias = "vmem_walk")]
    pub fn walk(&self, f: impl FnMut(Segment)) {
        self.inner.lock().raw.walk(f);
    }

    /// Numbers of things, calls and events.
    #[must_use]
    pub fn counts(&self) -> ArenaCounts {
        let inner = self.inner.lock();
        ArenaCounts {
            raw: inner.raw.counts(),
            imports: inner.imports,
            releases: inner.releases,
            waits: inner.waits,
            fails: inner.fails,
        }
    }

    /// Checks every invariant of the structure.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn validate(&self) -> Result<(), Damage> {
        self.inner.lock().raw.validate()
    }

    /// Writes the arena down for a person: sums, then every span with its segments. Under the lock: the writer must not
    /// call an arena, nor anything that may.
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "vmem_print")]
    #[doc(alias = "vmem_printall")]
    pub fn print(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.inner.lock().raw.print(out)
    }
}

impl RawArena {
    /// Writes the arena down for a person: sums, then every span with its segments.
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "vmem_print")]
    pub fn print(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let counts = self.counts();
        writeln!(out, "arena {}: quantum {:#x}", self.name(), self.quantum())?;
        writeln!(
            out,
            "  {:#x} in {} spans: {:#x} allocated in {}, {:#x} free in {}, largest {:#x}",
            self.size(Size::Total),
            counts.spans,
            self.size(Size::Alloc),
            counts.allocated,
            self.size(Size::Free),
            counts.free,
            self.max_free(),
        )?;
        writeln!(out, "  tags {} free {}, buckets {}", counts.tags, counts.tags_free, counts.buckets)?;
        for segment in self.segments() {
            let (indent, kind) = match segment.kind {
                SegmentKind::Span { imported: false } => ("  ", "span"),
                SegmentKind::Span { imported: true } => ("  ", "span, imported"),
                SegmentKind::Allocated => ("    ", "allocated"),
                SegmentKind::Free => ("    ", "free"),
            };
            writeln!(out, "{indent}{:#x}..={:#x} {:#x} {kind}", segment.base, segment.last(), segment.size)?;
        }
        Ok(())
    }
}

/// The span around `addr`, out of the arena, if it is imported and free as a whole.
fn take_free_import(raw: &mut RawArena, addr: usize) -> Option<Segment> {
    let span = raw.free_span_at(addr).filter(|span| span.kind == SegmentKind::Span { imported: true })?;
    raw.remove_span(span.base).ok()?;
    Some(span)
}

impl<S: System> Drop for Arena<'_, S> {
    fn drop(&mut self) {
        self.teardown();
    }
}

/// An arena is what another imports from. Never sleeps: the child does, on the channel that both share.
impl<S: System> Source for Arena<'_, S> {
    fn import(&self, size: usize, wait: Wait) -> Option<(usize, usize)> {
        let wait = if wait == Wait::Sleep { Wait::NoSleep } else { wait };
        let size = self.roundup_size(size)?;
        let base = self.alloc(size, Fit::Instant, wait).ok()?;
        Some((base, size))
    }

    /// # Panics
    /// If the range is not allocated here.
    fn release(&self, base: usize, size: usize) {
        if let Err(error) = self.free(base, size) {
            panic!("arena {}: a span that isn't ours was released: {error}", self.name);
        }
    }

    fn alignment(&self) -> usize {
        self.quantum
    }
}
