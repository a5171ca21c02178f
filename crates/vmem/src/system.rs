//! What a locked arena needs from its surroundings: a lock, sleeping, memory for tags, and, if it is to have them, a
//! source of more integers and caches in front.

use crate::channel::Channel;
use crate::hash::Bucket;
use crate::tag::Tag;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU32;
use platform::RawLock;

/// Locks and sleeping. Zero-sized: all is associated.
///
/// Nothing here may call an arena.
pub trait System: Sized + Send + Sync + 'static {
    /// The lock of an arena. It is held for the time of one operation of a [`RawArena`](crate::RawArena), never while
    /// anything of this file is called.
    type Lock: RawLock;

    /// Where sleepers of all arenas of this system wait: one static variable.
    fn channel() -> &'static Channel;

    /// Sleeps until [`System::wake_all`] is called with this word, if it still has the value `seen`; returns at once
    /// otherwise, and may return early. A futex wait, or a condition variable whose mutex guards the comparison.
    ///
    /// A system in which nobody may sleep panics here and doesn't ask with [`Wait::Sleep`].
    fn wait(word: &AtomicU32, seen: u32);

    /// Wakes everybody who sleeps on the word.
    fn wake_all(word: &AtomicU32);

    /// Whether the caller may sleep here: no interrupt, no critical section, no lock held. What forbids it otherwise, in a word or two. Asked
    /// of every request with [`Wait::Sleep`], also when there is space (`ASSERT_SLEEPABLE`).
    #[inline]
    fn may_sleep() -> Result<(), &'static str> {
        Ok(())
    }

    /// Somebody asked an arena for something with [`Wait::Sleep`] where he may not sleep, because of `what`: a mistake of his, to be reported. If
    /// this returns, the request is served as with [`Wait::NoSleep`].
    fn sleep_forbidden(_arena: &'static str, _what: &'static str) {}
}

impl Channel {
    /// With nobody waiting.
    #[must_use]
    pub const fn new() -> Channel {
        Channel { generation: AtomicU32::new(0), waiters: AtomicU32::new(0) }
    }
}

impl Default for Channel {
    fn default() -> Channel {
        Channel::new()
    }
}

/// What to do when it can't be had at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Sleep until it can. The request never fails for shortage; one that nothing will ever serve sleeps for ever.
    #[doc(alias = "VM_SLEEP")]
    #[doc(alias = "M_WAITOK")]
    Sleep,
    /// Fail.
    #[doc(alias = "VM_NOSLEEP")]
    #[doc(alias = "M_NOWAIT")]
    NoSleep,
    /// Fail, but take from the arena's reserve of tags rather than call its tag source: for the tag source itself.
    #[doc(alias = "M_USE_RESERVE")]
    Reserve,
}

/// Where an arena gets memory for boundary tags and its hash table: how the loop between arenas and the allocator that is
/// built on them is cut. Called without any arena's lock, so it may allocate from whatever it likes, even from the very
/// arena that asks if it does so with [`Wait::Reserve`].
///
/// # Safety
/// 1. What [`TagSource::get`] and [`TagSource::get_buckets`] return is valid for reads and writes of so many,
///    aligned, and touched by nobody else until it is put back.
pub unsafe trait TagSource: Sync {
    /// Memory for at least one tag, and for how many. With [`Wait::Sleep`] it sleeps rather than return `None`, if tags
    /// can come at all.
    fn get(&self, wait: Wait) -> Option<(NonNull<Tag>, usize)>;

    /// Takes one tag back: an arena ends. Tags of one `get` come back one by one, in any order.
    ///
    /// # Safety
    /// 1. The tag came from `get`, and is not used any more.
    unsafe fn put(&self, tag: NonNull<Tag>);

    /// Memory for a hash table. `None` means that the arena keeps the one it has, and is slow when it is large.
    fn get_buckets(&self, _count: usize) -> Option<NonNull<Bucket>> {
        None
    }

    /// Takes a hash table back.
    ///
    /// # Safety
    /// 1. It came from `get_buckets` with that count, and is not used any more.
    unsafe fn put_buckets(&self, _mem: NonNull<Bucket>, _count: usize) {}
}

/// Where an arena imports spans from: a parent arena, or functions ([`Functions`]). Called without the arena's lock.
pub trait Source: Sync {
    /// A range of at least `size`: its base and its size, both multiples of the importing arena's quantum. With
    /// [`Wait::Sleep`] it may sleep until it can serve, or return `None` and [wake](Channel::wake) the channel later.
    #[doc(alias = "vmem_import_t")]
    fn import(&self, size: usize, wait: Wait) -> Option<(usize, usize)>;

    /// Takes back a range that `import` returned, as a whole.
    #[doc(alias = "vmem_release_t")]
    fn release(&self, base: usize, size: usize);

    /// A power of two that divides every base that `import` returns. Less is imported for an aligned request if
    /// this is not less than the alignment.
    fn alignment(&self) -> usize {
        1
    }
}

/// A [`Source`] of two functions.
pub struct Functions<I, R> {
    import: I,
    release: R,
    alignment: usize,
}

impl<I, R> Functions<I, R>
where
    I: Fn(usize, Wait) -> Option<(usize, usize)> + Sync,
    R: Fn(usize, usize) + Sync,
{
    /// See [`Source::import`], [`Source::release`] and [`Source::alignment`].
    pub const fn new(import: I, release: R, alignment: usize) -> Self {
        Functions { import, release, alignment }
    }
}

impl<I, R> Source for Functions<I, R>
where
    I: Fn(usize, Wait) -> Option<(usize, usize)> + Sync,
    R: Fn(usize, usize) + Sync,
{
    fn import(&self, size: usize, wait: Wait) -> Option<(usize, usize)> {
        (self.import)(size, wait)
    }

    fn release(&self, base: usize, size: usize) {
        (self.release)(base, size);
    }

    fn alignment(&self) -> usize {
        self.alignment
    }
}

/// Caches in front of an arena, one for each of the smallest multiples of its quantum: per-CPU magazines in a kernel, where
/// each is a zone whose items are addresses. Called without the arena's lock; it gets ranges from
/// [`Arena::xalloc`](crate::Arena::xalloc) and returns them to [`Arena::xfree`](crate::Arena::xfree), which are the ways
/// past the caches.
///
/// Addresses are plain numbers here, and 0 is one of them.
pub trait QuantumCache: Sync {
    /// A range of `quanta` quanta; `None` if there is none and none can be had from the arena.
    fn alloc(&self, quanta: usize, wait: Wait) -> Option<usize>;

    /// Takes a range back, to keep it or to free it to the arena. It is one that `alloc` returned, or that the cache was told of by
    /// [`adopt`](Self::adopt).
    fn free(&self, quanta: usize, addr: usize);

    /// A range that the arena has served itself, because `alloc` had none or was not asked, and that will come back by `free`. A cache that counts what
    /// it has handed out counts it: else it would get back more than it gave. Must not call the arena.
    fn adopt(&self, quanta: usize, addr: usize);

    /// Frees to the arena whatever is kept.
    #[doc(alias = "vmem_qcache_reap")]
    fn drain(&self);
}
