//! What happens when the arena has nothing that serves: reclaim, import, sleep. And arenas as what others import from.
#![forbid(unsafe_code)]

use super::Arena;
use crate::error::Error;
use crate::fit::{Fit, Request};
use crate::raw::RawArena;
use crate::system::{Source, System, Wait};
use crate::tag::{Segment, SegmentKind};

impl<S: System> Arena<'_, S> {
    #[cold]
    pub(super) fn alloc_slow(&self, request: &Request, wait: Wait, mut error: Error) -> Result<usize, Error> {
        let try_wait = if wait == Wait::Sleep { Wait::NoSleep } else { wait };
        if error == Error::NoSpace {
            match self.import(request, try_wait) {
                Err(now) if now.is_shortage() => error = now,
                done => return done,
            }
        }
        if wait != Wait::Reserve && self.reclaim(request.size) {
            match self.attempt(request, try_wait) {
                Err(now) if now.is_shortage() => error = now,
                done => return done,
            }
        }
        if wait != Wait::Sleep {
            self.inner.lock().fails += 1;
            return Err(error);
        }
        self.sleep_in_line(request)
    }

    fn attempt(&self, request: &Request, wait: Wait) -> Result<usize, Error> {
        self.take(wait, |raw| raw.xalloc(request)).or_else(|_| self.import(request, wait))
    }

    /// Sleeps until it is this request's turn and there is space for it.
    #[cold]
    pub(super) fn sleep_in_line(&self, request: &Request) -> Result<usize, Error> {
        let place = self.queue.join(request.size);
        let result = loop {
            let sleeper = S::channel().enter();
            if place.is_first() {
                // The last look, see Channel::wake. It includes the caches, for a range that was freed into one before
                // we were counted woke nobody. The tag source and the parent may sleep in it.
                self.reclaim(request.size);
                match self.attempt(request, Wait::Sleep) {
                    Err(error) if error.is_shortage() => {}
                    done => break done,
                }
            }
            self.inner.lock().waits += 1;
            sleeper.wait::<S>();
        };
        drop(place);
        // The next in line may look now.
        S::channel().wake::<S>();
        result
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

    pub(super) fn release_span(&self, span: Segment) {
        if let Some(source) = self.source {
            source.release(span.base, span.size);
            self.inner.lock().releases += 1;
        }
        S::channel().wake::<S>();
    }
}

/// The span around `addr`, out of the arena, if it is imported and free as a whole.
pub(super) fn take_free(raw: &mut RawArena, addr: usize) -> Option<Segment> {
    let span = raw.free_span_at(addr).filter(|span| span.kind == SegmentKind::Span { imported: true })?;
    raw.remove_span(span.base).ok()?;
    Some(span)
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
