//! The arena itself, without a lock.

mod ask;
mod ddb;
mod find;
mod print;
mod span;

use crate::error::Error;
use crate::fit::{Fit, Request, Shape, round_up};
use crate::hash::{Bucket, HASH_INLINE, Hash};
use crate::lists::{FreeLists, LISTS};
use crate::tag::{Kind, Tag, TagRef};
use crate::tree::Spans;
use core::ptr::NonNull;

/// What [`RawArena::size`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// Allocated.
    #[doc(alias = "VMEM_ALLOC")]
    Alloc,
    /// Not allocated.
    #[doc(alias = "VMEM_FREE")]
    Free,
    /// The largest free segment.
    #[doc(alias = "VMEM_MAXFREE")]
    MaxFree,
    /// Everything that was added.
    Total,
}

/// Numbers of things and of calls, for statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// Spans.
    pub spans: usize,
    /// Allocated segments.
    pub allocated: usize,
    /// Free segments.
    pub free: usize,
    /// Free boundary tags.
    pub tags_free: usize,
    /// Boundary tags, free and used.
    pub tags: usize,
    /// Buckets of the hash of allocated segments.
    pub buckets: usize,
    /// Allocations that succeeded.
    pub allocs: u64,
    /// Frees that succeeded.
    pub frees: u64,
    /// Allocations that failed for [`Error::NoSpace`].
    pub fails: u64,
}

/// An arena of integers without a lock: its owner serialises the calls. See the [crate's text](crate) for the
/// structure.
///
/// Every operation either happens or returns an [`Error`] and leaves the arena as it was. None sleeps or allocates.
/// What the owner must bring is memory for boundary tags ([`RawArena::donate_tags`]) and, for large arenas, for the
/// hash table ([`RawArena::hash_wanted`]).
///
/// Dropping an arena forgets its donated memory. An arena may be moved; tags do not point to it.
///
/// ```
/// # use kernmalloc_vmem::{Error, Fit, RawArena, Tag};
/// # use core::{mem::MaybeUninit, ptr::NonNull};
/// let mut tags = [const { MaybeUninit::<Tag>::uninit() }; 8];
/// let mut ports = RawArena::new("ports", 1);
/// // SAFETY: the tags outlive the arena, and nothing else uses them.
/// unsafe { ports.donate_tags(NonNull::from(&mut tags).cast(), 8) };
/// ports.add(49152, 16384)?;
/// let port = ports.alloc(1, Fit::Instant)?;
/// assert_eq!(port, 49152);
/// ports.free(port, 1)?;
/// assert_eq!(ports.free(port, 1).unwrap_err().to_string(),
///     "0xc000 is free already, in free segment 0xc000..=0xffff of size 0x4000");
/// # Ok::<(), Error>(())
/// ```
pub struct RawArena {
    // Constant.
    name: &'static str,
    quantum: usize,

    // Touched by every allocation and free.
    /// Tags in no list but this pool.
    spare: Option<TagRef>,
    spare_count: usize,
    lists: FreeLists,
    hash: Hash,
    /// Of all allocated segments together.
    alloc_size: usize,
    allocs: u64,
    frees: u64,
    fails: u64,
    /// The segment that holds the last address given out by [`Fit::Next`], and that address.
    cursor: Option<(TagRef, usize)>,

    // Touched when spans come and go.
    first: Option<TagRef>,
    last: Option<TagRef>,
    spans: Spans,
    /// Of all spans together.
    total_size: usize,
    /// Donated and not taken back.
    tag_count: usize,
}

// SAFETY: the tags and the table are reached only through the arena, so they go with it to another thread; the donor
// has promised that nobody else touches them.
unsafe impl Send for RawArena {}

impl RawArena {
    /// The most tags that one operation takes from the pool.
    ///
    /// * An allocation from the middle of a free segment makes three segments of one: 2 more tags. From an end: 1.
    ///   Whole: 0.
    /// * Adding a span makes its own tag and one free segment: 2. Extending a span: at most 1.
    /// * Shrinking makes a free segment of the tail: at most 1.
    /// * Freeing and growing only merge: 0.
    pub const TAGS_PER_OP: usize = 2;

    /// An empty arena. `name` is for reports; `quantum` is the unit of all bases and sizes, a power of two.
    ///
    /// # Panics
    /// If the quantum is not a power of two.
    #[doc(alias = "vmem_create")]
    #[doc(alias = "vmem_init")]
    #[must_use]
    pub const fn new(name: &'static str, quantum: usize) -> RawArena {
        assert!(quantum.is_power_of_two(), "the quantum of an arena is a power of two");
        RawArena {
            name,
            quantum,
            spare: None,
            spare_count: 0,
            lists: FreeLists::new(quantum),
            hash: Hash::new(quantum),
            alloc_size: 0,
            allocs: 0,
            frees: 0,
            fails: 0,
            cursor: None,
            first: None,
            last: None,
            spans: Spans::new(),
            total_size: 0,
            tag_count: 0,
        }
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

    // ---- donated memory ----

    /// Gives the arena memory for `count` boundary tags; its contents do not matter.
    ///
    /// # Safety
    /// 1. `mem` is valid for reads and writes of `count` tags, and aligned.
    /// 2. Nobody else touches a tag of it until the arena is gone, or [`RawArena::take_tag`] has returned that tag.
    pub unsafe fn donate_tags(&mut self, mem: NonNull<Tag>, count: usize) {
        // From the end, so that the pool hands them out from the start: neighbours in time share cache lines.
        for index in (0..count).rev() {
            // SAFETY: (1) and (2), index < count.
            let tag = unsafe { TagRef::new(mem.add(index)) };
            self.put_spare(tag);
        }
        self.tag_count += count;
    }

    /// Takes a free tag back, if there is one: to destroy the arena, or to move tags between arenas.
    pub fn take_tag(&mut self) -> Option<NonNull<Tag>> {
        let tag = self.get_spare()?;
        self.tag_count -= 1;
        Some(tag.into_raw())
    }

    /// How many tags are free.
    #[must_use]
    pub const fn tags_free(&self) -> usize {
        self.spare_count
    }

    /// The number of buckets that the hash of allocated segments should have, if it should have another than now: more
    /// than twice as many segments as buckets, or less than a quarter. The owner asks from time to time (BSD: every
    /// ten seconds) and calls [`RawArena::donate_hash`] with that many, or [`RawArena::retire_hash`] if the answer
    /// is [`HASH_INLINE`]. An arena whose owner never does works, with chains as long as they get.
    #[must_use]
    pub fn hash_wanted(&self) -> Option<usize> {
        self.hash.wanted()
    }

    /// [`RawArena::hash_wanted`] if that is more than now.
    #[inline]
    pub(crate) fn hash_too_small(&self) -> Option<usize> {
        self.hash.wanted().filter(|&wanted| wanted > self.hash.buckets().len())
    }

    /// Replaces the hash table by one in this memory, and returns the memory and number of buckets of the one before,
    /// unless that was the inline one. Moves every allocated segment: time linear in their number.
    ///
    /// # Safety
    /// 1. `mem` is valid for reads and writes of `buckets` buckets, and aligned; its contents do not matter.
    /// 2. Nobody else touches it until the arena is gone or a later call has returned it.
    ///
    /// # Panics
    /// If `buckets` is not a power of two, or less than 2.
    #[doc(alias = "vmem_rehash")]
    pub unsafe fn donate_hash(&mut self, mem: NonNull<Bucket>, buckets: usize) -> Option<(NonNull<Bucket>, usize)> {
        assert!(buckets.is_power_of_two() && buckets >= 2, "a hash table has 2^n buckets, two at least");
        // SAFETY: (1) and (2).
        unsafe { self.hash.replace(Some((mem, buckets))) }
    }

    /// Goes back to the inline hash table of [`HASH_INLINE`] buckets; returns the memory of the one before.
    pub fn retire_hash(&mut self) -> Option<(NonNull<Bucket>, usize)> {
        // SAFETY: no memory, no promise.
        unsafe { self.hash.replace(None) }
    }

    // ---- allocation ----

    /// Allocates `size`, rounded up to the quantum; returns the first address. Takes at most 1 tag.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::NoTags`]; [`Error::Invalid`] for size 0.
    #[doc(alias = "vmem_alloc")]
    #[inline]
    pub fn alloc(&mut self, size: usize, fit: Fit) -> Result<usize, Error> {
        let size = match round_up(size, self.quantum) {
            Ok(size) => size,
            Err(error) => return self.failed(error),
        };
        let quick = match fit {
            Fit::Instant => self.lists.instant(size),
            Fit::Best => self.lists.best_exact(size),
            Fit::First | Fit::Next => None,
        };
        if let Some(tag) = quick {
            let addr = tag.base.get();
            self.carve(tag, addr, size)?;
            return Ok(addr);
        }
        self.alloc_shape(&Shape::plain(size, self.quantum), fit)
    }

    /// Allocates under constraints, all of which hold for the result; a request fails for want of space only if no
    /// free segment can meet it. Takes at most 2 tags.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::NoTags`]; [`Error::Invalid`] if no address at all could meet it.
    #[doc(alias = "vmem_xalloc")]
    pub fn xalloc(&mut self, request: &Request) -> Result<usize, Error> {
        match request.checked(self.quantum) {
            Ok(shape) => self.alloc_shape(&shape, request.fit),
            Err(error) => self.failed(error),
        }
    }

    #[cold]
    fn failed<T>(&mut self, error: Error) -> Result<T, Error> {
        self.fails += u64::from(error == Error::NoSpace);
        Err(error)
    }

    fn alloc_shape(&mut self, shape: &Shape, fit: Fit) -> Result<usize, Error> {
        let found = match fit {
            Fit::Instant => self.find_instant(shape),
            Fit::Best => self.find_best(shape),
            Fit::First => self.find_first(shape),
            Fit::Next => self.find_next(shape),
        };
        let Some((tag, addr)) = found else {
            return self.failed(Error::NoSpace);
        };
        let given = self.carve(tag, addr, shape.size)?;
        if fit == Fit::Next {
            self.cursor = Some((given, given.last()));
        }
        Ok(addr)
    }

    /// Allocates `addr..addr + size` out of a free segment that contains it; returns the tag of the new segment.
    ///
    /// The free segment keeps its tag, and mostly its list, whenever something of it remains.
    #[inline]
    fn carve(&mut self, free: TagRef, addr: usize, size: usize) -> Result<TagRef, Error> {
        let front = addr - free.base.get();
        let back = free.size.get() - front - size;
        if self.spare_count < usize::from(front != 0) + usize::from(back != 0) {
            return Err(Error::NoTags);
        }
        let given = if front == 0 && back == 0 {
            self.lists.remove(free);
            free.kind.set(Kind::Allocated);
            free
        } else if front == 0 {
            let given = self.new_tag(addr, size, Kind::Allocated, free.prev.get());
            self.lists.resize(free, addr + size, back);
            self.settle_cursor(free, given);
            given
        } else {
            let given = self.new_tag(addr, size, Kind::Allocated, Some(free));
            self.lists.resize(free, free.base.get(), front);
            self.settle_cursor(free, given);
            if back != 0 {
                let rest = self.new_tag(addr + size, back, Kind::Free, Some(given));
                self.lists.insert(rest);
                self.settle_cursor(free, rest);
            }
            given
        };
        self.hash.insert(given);
        self.alloc_size += size;
        self.allocs += 1;
        Ok(given)
    }

    /// Frees what [`RawArena::alloc`] or [`RawArena::xalloc`] returned, with the size that was asked for (or that
    /// rounded up). It merges with free neighbours at once. Takes no tag.
    ///
    /// # Errors
    /// [`Error::NotAllocated`], [`Error::WrongSize`]; [`Error::Invalid`] for size 0.
    #[doc(alias = "vmem_free")]
    #[doc(alias = "vmem_xfree")]
    pub fn free(&mut self, addr: usize, size: usize) -> Result<(), Error> {
        let tag = self.claim(addr, size)?;
        let size = tag.size.get();
        self.hash.remove(addr);
        self.alloc_size -= size;
        self.frees += 1;
        let before = tag.prev.get().filter(|tag| tag.is_free());
        let after = tag.next.get().filter(|tag| tag.is_free());
        match (before, after) {
            (None, None) => {
                tag.kind.set(Kind::Free);
                self.lists.insert(tag);
            }
            (Some(before), None) => {
                self.lists.resize(before, before.base.get(), before.size.get() + size);
                self.absorb(tag, before);
            }
            (None, Some(after)) => {
                self.lists.resize(after, addr, size + after.size.get());
                self.absorb(tag, after);
            }
            (Some(before), Some(after)) => {
                self.lists.remove(after);
                self.lists.resize(before, before.base.get(), before.size.get() + size + after.size.get());
                self.absorb(tag, before);
                self.absorb(after, before);
            }
        }
        Ok(())
    }

    /// The tag of an allocated segment, if the caller knows it rightly.
    #[inline]
    fn claim(&self, addr: usize, size: usize) -> Result<TagRef, Error> {
        let Some(tag) = self.hash.find(addr) else {
            return Err(self.not_allocated(addr));
        };
        match round_up(size, self.quantum) {
            Ok(rounded) if rounded == tag.size.get() => Ok(tag),
            _ => Err(Error::WrongSize { addr, given: size, allocated: tag.size.get() }),
        }
    }

    #[cold]
    fn not_allocated(&self, addr: usize) -> Error {
        Error::NotAllocated { addr, found: self.whatis(addr) }
    }

    /// Makes an allocated segment longer without moving it, from the free segment behind it. Both sizes are rounded up
    /// to the quantum. Alignment and bounds of the original request are not looked at again. Takes no tag.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if what follows is not free or not enough; [`Error::Invalid`] if `new` is less than
    /// `old`; otherwise as [`RawArena::free`].
    pub fn grow_in_place(&mut self, addr: usize, old: usize, new: usize) -> Result<(), Error> {
        let tag = self.claim(addr, old)?;
        let (old, new) = (tag.size.get(), round_up(new, self.quantum)?);
        if new < old {
            return Err(Error::Invalid("growing to a lesser size"));
        }
        let more = new - old;
        if more == 0 {
            return Ok(());
        }
        let Some(free) = tag.next.get().filter(|next| next.is_free() && next.size.get() >= more) else {
            return Err(Error::NoSpace);
        };
        tag.size.set(new);
        if free.size.get() == more {
            self.lists.remove(free);
            self.absorb(free, tag);
        } else {
            self.lists.resize(free, free.base.get() + more, free.size.get() - more);
            self.settle_cursor(free, tag);
        }
        self.alloc_size += more;
        Ok(())
    }

    /// Gives back the tail of an allocated segment. Both sizes are rounded up to the quantum. Takes at most 1 tag.
    ///
    /// # Errors
    /// [`Error::NoTags`]; [`Error::Invalid`] if `new` is more than `old`, or 0; otherwise as [`RawArena::free`].
    pub fn shrink_in_place(&mut self, addr: usize, old: usize, new: usize) -> Result<(), Error> {
        let tag = self.claim(addr, old)?;
        let (old, new) = (tag.size.get(), round_up(new, self.quantum)?);
        if new > old {
            return Err(Error::Invalid("shrinking to a greater size"));
        }
        let less = old - new;
        if less == 0 {
            return Ok(());
        }
        if let Some(free) = tag.next.get().filter(|next| next.is_free()) {
            tag.size.set(new);
            self.lists.resize(free, free.base.get() - less, free.size.get() + less);
            self.settle_cursor(tag, free);
        } else {
            if self.spare_count < 1 {
                return Err(Error::NoTags);
            }
            tag.size.set(new);
            let free = self.new_tag(addr + new, less, Kind::Free, Some(tag));
            self.lists.insert(free);
            self.settle_cursor(tag, free);
        }
        self.alloc_size -= less;
        Ok(())
    }

    // ---- the segment list and the pool ----

    fn from(&self, start: Option<TagRef>) -> impl Iterator<Item = TagRef> {
        core::iter::successors(start, |tag| tag.next.get())
    }

    fn after(&self, tag: TagRef) -> impl Iterator<Item = TagRef> {
        self.from(tag.next.get())
    }

    fn put_spare(&mut self, tag: TagRef) {
        tag.kind.set(Kind::Spare);
        tag.next.set(self.spare);
        self.spare = Some(tag);
        self.spare_count += 1;
    }

    fn get_spare(&mut self) -> Option<TagRef> {
        let tag = self.spare?;
        self.spare = tag.next.get();
        self.spare_count -= 1;
        Some(tag)
    }

    /// Puts a tag into the segment list behind `before` (`None`: as the first). The caller has counted the spare tags.
    #[inline]
    fn new_tag(&mut self, base: usize, size: usize, kind: Kind, before: Option<TagRef>) -> TagRef {
        let tag = self.get_spare().expect("spare tags were counted before");
        let after = match before {
            Some(before) => before.next.replace(Some(tag)),
            None => self.first.replace(tag),
        };
        match after {
            Some(after) => after.prev.set(Some(tag)),
            None => self.last = Some(tag),
        }
        tag.prev.set(before);
        tag.next.set(after);
        tag.base.set(base);
        tag.size.set(size);
        tag.kind.set(kind);
        tag
    }

    /// Takes a tag out of the segment list, into the pool.
    #[inline]
    fn drop_tag(&mut self, tag: TagRef) {
        let (before, after) = (tag.prev.get(), tag.next.get());
        match before {
            Some(before) => before.next.set(after),
            None => self.first = after,
        }
        match after {
            Some(after) => after.prev.set(before),
            None => self.last = before,
        }
        self.put_spare(tag);
    }

    /// Drops the tag of a segment that has become part of `into`.
    #[inline]
    fn absorb(&mut self, tag: TagRef, into: TagRef) {
        if let Some((at, addr)) = self.cursor
            && at == tag
        {
            self.cursor = Some((into, addr));
        }
        self.drop_tag(tag);
    }

    /// After `tag` lost a part of its range to `other`: the cursor follows its address.
    #[inline]
    fn settle_cursor(&mut self, tag: TagRef, other: TagRef) {
        if let Some((at, addr)) = self.cursor
            && at == tag
            && other.contains(addr)
        {
            self.cursor = Some((other, addr));
        }
    }

    /// For [`RawArena::validate`].
    pub(crate) fn parts(&self) -> Parts<'_> {
        Parts {
            quantum: self.quantum,
            first: self.first,
            last: self.last,
            spare: self.spare,
            spare_count: self.spare_count,
            tag_count: self.tag_count,
            alloc_size: self.alloc_size,
            total_size: self.total_size,
            cursor: self.cursor,
            lists: &self.lists,
            hash: &self.hash,
            spans: &self.spans,
        }
    }
}

/// What the checker reads.
pub(crate) struct Parts<'a> {
    pub(crate) quantum: usize,
    pub(crate) first: Option<TagRef>,
    pub(crate) last: Option<TagRef>,
    pub(crate) spare: Option<TagRef>,
    pub(crate) spare_count: usize,
    pub(crate) tag_count: usize,
    pub(crate) alloc_size: usize,
    pub(crate) total_size: usize,
    pub(crate) cursor: Option<(TagRef, usize)>,
    pub(crate) lists: &'a FreeLists,
    pub(crate) hash: &'a Hash,
    pub(crate) spans: &'a Spans,
}

const _: () = assert!(LISTS <= 128 && HASH_INLINE.is_power_of_two());
