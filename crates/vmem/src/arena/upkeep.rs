//! Memory of boundary tags and of the hash table, from the arena's tag source and back.

use super::{Arena, Inner};
use crate::error::Error;
use crate::hash::HASH_INLINE;
use crate::system::{System, Wait};
use crate::tag::{Segment, Tag};
use core::ptr::NonNull;

impl<'a, S: System> Arena<'a, S> {
    /// Runs an operation once there are tags for it, under the lock.
    #[inline]
    pub(super) fn with_tags<T>(
        &self,
        need: usize,
        wait: Wait,
        f: impl FnOnce(&mut Inner<'a>) -> T,
    ) -> Result<T, Error> {
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

    /// Tags for the arena that it did not ask for: from a tag source that has just used some of its reserve.
    ///
    /// # Safety
    /// 1. As [`RawArena::donate_tags`](crate::RawArena::donate_tags).
    /// 2. The tags may be [put](crate::TagSource::put) to the arena's tag source at its end.
    pub unsafe fn donate_tags(&self, mem: NonNull<Tag>, count: usize) {
        // SAFETY: (1).
        unsafe { self.inner.lock().raw.donate_tags(mem, count) };
    }

    /// How many tags are free, the reserve included.
    #[must_use]
    pub fn tags_free(&self) -> usize {
        self.inner.lock().raw.tags_free()
    }

    /// Gives the hash table the size it should have; worth a call every few seconds (the BSDs: ten). Growing happens
    /// by itself as well, when an allocation finds the table too small; shrinking happens only here.
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
    pub(super) fn resize_hash(&self, buckets: usize) {
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
}

impl<S: System> Drop for Arena<'_, S> {
    fn drop(&mut self) {
        self.teardown();
    }
}
