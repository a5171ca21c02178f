//! Pages of the heap: runs from a vmem arena, the word per page, and what of the free memory is still backed.
//!
//! The arena is one span that grows upward with the heap. Every page has a word ([`abi::page`]) that says what it is part of;
//! a free page's word says whether it may still be backed by memory (*dirty*) or reads as zero (*clean*). Best fit
//! keeps long runs whole, and dirty memory is handed out again before the heap grows.
//!
//! Lock: the owner's, below every keg lock and above the record lock.

use core::marker::PhantomData;
use core::ops::Range;

use abi::{AtomicU64, Ordering, page};
use platform::{Lock, Platform};
use vmem::{Fit, RawArena, Request, Tag};

use crate::meta::Meta;

/// Tags asked for at a time: a page of them.
const TAG_BATCH: usize = 4096 / size_of::<Tag>();
/// Least and most that the heap grows by beyond what is needed, bytes.
const GROW_MIN_BYTES: usize = 1 << 20;
const GROW_MAX_BYTES: usize = 64 << 20;

/// A run of free pages that now belongs to the caller.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) addr: usize,
    /// From the first to behind the last page that may not be zero, as bytes from the start; empty when all is known to be.
    pub(crate) dirty: Range<usize>,
}

/// Pages by use; together the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Free and possibly backed.
    pub free_dirty: u64,
    /// Free and known to be zero.
    pub free_clean: u64,
    /// Handed out (to slabs and large blocks).
    pub out: u64,
}

/// Large blocks freed last that are remembered, see [`Pages::freed_block`].
const FREED_BLOCKS: usize = 32;

pub(crate) struct Pages<P: Platform> {
    arena: RawArena,
    base: usize,
    /// Words of the pages from `base` on.
    table: *const AtomicU64,
    /// From the base to the end of the last extent.
    heap_bytes: usize,
    /// Of these, bytes between extents that are somebody else's.
    hole_bytes: usize,
    counts: PageCounts,
    /// Pages that were given back to the system and not handed out again since, and how many were, since
    /// [`Pages::forget_retaken`]: each of those made two trips to the system for nothing.
    purged: u64,
    retaken: u64,
    /// Least dirty free pages since [`Pages::unused_dirty`] was last asked: those that nobody wanted since.
    low_dirty: u64,
    /// Address, bytes and tag of large blocks freed last, the next to be overwritten at `freed_next`.
    freed: [(usize, usize, u16); FREED_BLOCKS],
    freed_next: usize,
    /// Most pages that may be out, `u64::MAX` for no limit; of these, pages that only a claimant of the reserve gets; and
    /// claimants now.
    pub(crate) most_pages: u64,
    /// See `most_pages`.
    pub(crate) reserve_pages: u64,
    /// See `most_pages`.
    pub(crate) reserve_claims: u32,
    platform: PhantomData<P>,
}

// SAFETY: the table is shared memory of atomics; the rest is plain data behind the owner's lock.
unsafe impl<P: Platform> Send for Pages<P> {}

/// Those of the words of a free segment that fill whole pages of the table.
fn whole_pages<P: Platform>(words: &[AtomicU64]) -> &[AtomicU64] {
    let page = 1usize << P::PAGE_SHIFT;
    let start = words.as_ptr() as usize;
    let first = (start.next_multiple_of(page) - start) / size_of::<AtomicU64>();
    let count = words.len().saturating_sub(first) / (page / size_of::<AtomicU64>()) * (page / size_of::<AtomicU64>());
    words.get(first..first + count).unwrap_or_default()
}

impl<P: Platform> Pages<P> {
    const PAGE: usize = 1 << P::PAGE_SHIFT;

    pub(crate) const fn new() -> Self {
        Self {
            arena: RawArena::new("heap", 1 << P::PAGE_SHIFT),
            base: 0,
            table: core::ptr::null(),
            heap_bytes: 0,
            hole_bytes: 0,
            counts: PageCounts { free_dirty: 0, free_clean: 0, out: 0 },
            purged: 0,
            retaken: 0,
            low_dirty: 0,
            freed: [(0, 0, 0); FREED_BLOCKS],
            freed_next: 0,
            most_pages: u64::MAX,
            reserve_pages: 0,
            reserve_claims: 0,
            platform: PhantomData,
        }
    }

    pub(crate) fn boot(&mut self, base: usize, table: *const AtomicU64) {
        self.base = base;
        self.table = table;
    }

    fn words(&self, addr: usize, bytes: usize) -> &[AtomicU64] {
        debug_assert!(addr >= self.base && addr - self.base + bytes <= self.heap_bytes);
        let first = (addr - self.base) >> P::PAGE_SHIFT;
        // SAFETY: the table has a word for every page the heap was extended by.
        unsafe { core::slice::from_raw_parts(self.table.add(first), bytes >> P::PAGE_SHIFT) }
    }

    /// Makes sure that the next arena operation finds the boundary tags it may need.
    fn provide_tags(&mut self, meta: &Lock<P::Lock, Meta<P>>) -> Option<()> {
        while self.arena.tags_free() < RawArena::TAGS_PER_OP {
            let memory = meta.lock().alloc(TAG_BATCH * size_of::<Tag>())?;
            // SAFETY: fresh zeroed records of our own, 64-byte aligned, never given back.
            unsafe { self.arena.donate_tags(memory.cast::<Tag>(), TAG_BATCH) };
        }
        if let Some(buckets) = self.arena.hash_wanted() {
            let bytes = buckets * size_of::<vmem::Bucket>();
            // Without memory the smaller table serves on.
            let memory = meta.lock().alloc(bytes);
            if let Some(memory) = memory {
                // SAFETY: as above; the old table comes back to us.
                let old = unsafe { self.arena.donate_hash(memory.cast(), buckets) };
                if let Some((old, old_buckets)) = old {
                    // SAFETY: 1. an earlier turn of this loop allocated it with this size.
                    unsafe { meta.lock().free(old.cast::<u8>(), old_buckets * size_of::<vmem::Bucket>()) };
                }
            }
        }
        Some(())
    }

    /// Whether so many more bytes may be out.
    fn admits(&self, bytes: usize) -> bool {
        let reserve = if self.reserve_claims == 0 { self.reserve_pages } else { 0 };
        self.counts.out + (bytes >> P::PAGE_SHIFT) as u64 <= self.most_pages - reserve
    }

    /// A run of `bytes` (whole pages) at a multiple of `align` (a power of two, at least a page).
    pub(crate) fn alloc(&mut self, meta: &Lock<P::Lock, Meta<P>>, bytes: usize, align: usize) -> Option<Run> {
        debug_assert!(bytes > 0 && bytes.is_multiple_of(Self::PAGE) && align.is_power_of_two());
        if !self.admits(bytes) {
            return None;
        }
        self.provide_tags(meta)?;
        let addr = match self.take(bytes, align) {
            Some(addr) => addr,
            None => {
                self.grow(meta, bytes.checked_add(align - Self::PAGE)?)?;
                self.take(bytes, align)?
            }
        };
        let (dirty, dirty_bytes) = self.dirty_pages(addr, bytes);
        let pages = (bytes >> P::PAGE_SHIFT) as u64;
        // SAFETY: 1. just taken from the arena.
        if dirty != pages && !unsafe { self.populate(addr, bytes) } {
            let freed = self.arena.free(addr, bytes);
            debug_assert!(freed.is_ok(), "{freed:?}");
            return None;
        }
        self.counts.free_dirty -= dirty;
        self.low_dirty = self.low_dirty.min(self.counts.free_dirty);
        self.counts.free_clean -= pages - dirty;
        self.count_clean(pages - dirty);
        self.counts.out += pages;
        Some(Run { addr, dirty: dirty_bytes })
    }

    /// How many pages of a free run may still be backed, and where the first of them begins and the last ends, bytes.
    fn dirty_pages(&self, addr: usize, bytes: usize) -> (u64, Range<usize>) {
        let is_dirty = |word: &AtomicU64| page::kind(word.load(Ordering::Relaxed)) == page::FREE_DIRTY;
        let words = self.words(addr, bytes);
        let Some(first) = words.iter().position(is_dirty) else { return (0, 0..0) };
        let last = words.iter().rposition(is_dirty).unwrap_or(first);
        let count = words[first..=last].iter().filter(|word| is_dirty(word)).count();
        (count as u64, first << P::PAGE_SHIFT..(last + 1) << P::PAGE_SHIFT)
    }

    fn take(&mut self, bytes: usize, align: usize) -> Option<usize> {
        if align == Self::PAGE {
            self.arena.alloc(bytes, Fit::Best).ok()
        } else {
            self.arena.xalloc(&Request { align, fit: Fit::Best, ..Request::new(bytes) }).ok()
        }
    }

    /// More heap: at least `min_bytes`, usually an eighth of what there is, so that growth costs a bounded number of
    /// system calls per doubling.
    fn grow(&mut self, meta: &Lock<P::Lock, Meta<P>>, min_bytes: usize) -> Option<()> {
        let ample = (self.heap_bytes / 8).clamp(GROW_MIN_BYTES, GROW_MAX_BYTES);
        let want = min_bytes.max(ample.next_multiple_of(Self::PAGE));
        let extent = P::extend_heap(min_bytes, want)?;
        let joined = extent.addr == self.base + self.heap_bytes && self.heap_bytes > 0;
        self.hole_bytes += extent.addr - (self.base + self.heap_bytes);
        self.heap_bytes = extent.addr + extent.bytes - self.base;
        self.counts.free_clean += (extent.bytes >> P::PAGE_SHIFT) as u64;
        let added = if joined {
            self.arena.extend_span(extent.addr, extent.bytes)
        } else {
            self.arena.add(extent.addr, extent.bytes)
        };
        debug_assert!(added.is_ok());
        // For what the heap grew for. The caller had provided for the span; should there be none now, the memory is
        // already the arena's and serves the next request.
        self.provide_tags(meta)
    }

    /// Marks a run as the pages of one slab, whose first group has its tags at `tags`.
    pub(crate) fn set_slab(&self, addr: usize, bytes: usize, tags: usize, group_tag_bytes: usize, class: usize) {
        for (index, word) in self.words(addr, bytes).iter().enumerate() {
            let group = (index << P::PAGE_SHIFT) / page::GROUP_BYTES;
            word.store(page::slab(tags + group * group_tag_bytes, class), Ordering::Release);
        }
    }

    /// Marks a run as one large block.
    pub(crate) fn set_run(&self, addr: usize, bytes: usize, tag: u16) {
        let words = self.words(addr, bytes);
        for word in &words[1..] {
            word.store(page::LARGE_TAIL, Ordering::Relaxed);
        }
        words[0].store(page::run(page::LARGE, words.len(), tag), Ordering::Release);
    }

    /// Takes a run back.
    pub(crate) fn free(&mut self, meta: &Lock<P::Lock, Meta<P>>, addr: usize, bytes: usize) {
        for word in self.words(addr, bytes) {
            word.store(page::FREE_DIRTY, Ordering::Relaxed);
        }
        let pages = (bytes >> P::PAGE_SHIFT) as u64;
        self.counts.out -= pages;
        self.counts.free_dirty += pages;
        // A free only merges, so it needs no tag that is not there; should the arena disagree, the pages stay out
        // of use and its own check says so.
        let _ = self.provide_tags(meta);
        let freed = self.arena.free(addr, bytes);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    /// Takes a large block back and remembers it for a while.
    pub(crate) fn free_block(&mut self, meta: &Lock<P::Lock, Meta<P>>, addr: usize, bytes: usize, tag: u16) {
        self.free(meta, addr, bytes);
        // One entry per address: what counts is the block that was there last.
        let known = self.freed.iter().position(|freed| freed.0 == addr);
        self.freed[known.unwrap_or(self.freed_next)] = (addr, bytes, tag);
        if known.is_none() {
            self.freed_next = (self.freed_next + 1) % FREED_BLOCKS;
        }
    }

    /// A large block that started at this address and was freed not long ago: its bytes and tag. Pages are used again at once
    /// and for anything, so that only this tells a second free of a large block from a wild one.
    pub(crate) fn freed_block(&self, addr: usize) -> Option<(usize, u16)> {
        self.freed.iter().find(|freed| freed.0 == addr && addr != 0).map(|&(_, bytes, tag)| (bytes, tag))
    }

    /// Lengthens a run where it stands, if what follows is free.
    pub(crate) fn grow_in_place(&mut self, meta: &Lock<P::Lock, Meta<P>>, addr: usize, old: usize, new: usize) -> bool {
        if !self.admits(new - old) || self.provide_tags(meta).is_none() {
            return false;
        }
        if self.arena.grow_in_place(addr, old, new).is_err() {
            // The last run of the heap grows with the heap.
            if addr + old != self.base + self.heap_bytes
                || self.grow(meta, new - old).is_none()
                || self.provide_tags(meta).is_none()
                || self.arena.grow_in_place(addr, old, new).is_err()
            {
                return false;
            }
        }
        let (dirty, _) = self.dirty_pages(addr + old, new - old);
        let pages = ((new - old) >> P::PAGE_SHIFT) as u64;
        // SAFETY: 1. just taken from the arena.
        if dirty != pages && !unsafe { self.populate(addr + old, new - old) } {
            let shrunk = self.arena.shrink_in_place(addr, new, old);
            debug_assert!(shrunk.is_ok(), "{shrunk:?}");
            return false;
        }
        for word in self.words(addr + old, new - old) {
            word.store(page::LARGE_TAIL, Ordering::Relaxed);
        }
        self.counts.free_dirty -= dirty;
        self.low_dirty = self.low_dirty.min(self.counts.free_dirty);
        self.counts.free_clean -= pages - dirty;
        self.count_clean(pages - dirty);
        self.counts.out += pages;
        true
    }

    /// Gives the tail of a run back.
    pub(crate) fn shrink_in_place(
        &mut self,
        meta: &Lock<P::Lock, Meta<P>>,
        addr: usize,
        old: usize,
        new: usize,
    ) -> bool {
        if self.provide_tags(meta).is_none() || self.arena.shrink_in_place(addr, old, new).is_err() {
            return false;
        }
        for word in self.words(addr + new, old - new) {
            word.store(page::FREE_DIRTY, Ordering::Relaxed);
        }
        let pages = ((old - new) >> P::PAGE_SHIFT) as u64;
        self.counts.out -= pages;
        self.counts.free_dirty += pages;
        true
    }

    /// After the platform moved the memory behind a run elsewhere: its pages are zero.
    pub(crate) fn free_clean(&mut self, meta: &Lock<P::Lock, Meta<P>>, addr: usize, bytes: usize) {
        self.free(meta, addr, bytes);
        for word in self.words(addr, bytes) {
            word.store(page::FREE_CLEAN, Ordering::Relaxed);
        }
        let pages = (bytes >> P::PAGE_SHIFT) as u64;
        self.counts.free_dirty -= pages;
        self.counts.free_clean += pages;
    }

    /// Has the platform put memory behind pages; where it has none left, with what dirty free pages hold of it.
    ///
    /// # Safety
    /// 1. Pages of the heap, just taken from the arena.
    unsafe fn populate(&mut self, addr: usize, bytes: usize) -> bool {
        // SAFETY: 1.
        unsafe { P::populate(addr, bytes) || self.purge(0) > 0 && P::populate(addr, bytes) }
    }

    /// Gives dirty free memory back to the system until at most `keep_pages` of it are left. Returns pages given back.
    pub(crate) fn purge(&mut self, keep_pages: u64) -> u64 {
        let before = self.counts.free_dirty;
        let mut left = before;
        let (base, table) = (self.base, self.table);
        self.arena.walk_free(|segment| {
            let (addr, bytes) = (segment.base, segment.size);
            if left <= keep_pages {
                return;
            }
            let first = (addr - base) >> P::PAGE_SHIFT;
            // SAFETY: a free segment lies inside the heap.
            let words = unsafe { core::slice::from_raw_parts(table.add(first), bytes >> P::PAGE_SHIFT) };
            let before = left;
            let mut at = 0;
            while at < words.len() {
                let is_dirty = |word: &AtomicU64| page::kind(word.load(Ordering::Relaxed)) == page::FREE_DIRTY;
                if !is_dirty(&words[at]) {
                    at += 1;
                    continue;
                }
                let len = words[at..].iter().take_while(|word| is_dirty(word)).count();
                // SAFETY: 1. free pages of the heap, and the caller's lock keeps them so.
                if unsafe { P::discard(addr + (at << P::PAGE_SHIFT), len << P::PAGE_SHIFT) } {
                    words[at..at + len].iter().for_each(|word| word.store(page::FREE_CLEAN, Ordering::Relaxed));
                    left -= len as u64;
                }
                at += len;
            }
            let is_clean = |word: &AtomicU64| word.load(Ordering::Relaxed) == page::FREE_CLEAN;
            let table = whole_pages::<P>(words);
            if left != before && table.iter().all(is_clean) && !table.is_empty() {
                // SAFETY: 1. all zero, and the caller's lock keeps them so.
                unsafe { P::discard_table(table.as_ptr() as usize, size_of_val(table)) };
            }
        });
        self.counts.free_dirty = left;
        self.low_dirty = self.low_dirty.min(left);
        self.counts.free_clean += before - left;
        self.purged += before - left;
        before - left
    }

    /// Dirty free pages that lay unused since this was last asked.
    pub(crate) fn unused_dirty(&mut self) -> u64 {
        core::mem::replace(&mut self.low_dirty, self.counts.free_dirty)
    }

    /// Clean pages were handed out: as far as there are any, those that were given back.
    fn count_clean(&mut self, pages: u64) {
        let again = pages.min(self.purged);
        self.purged -= again;
        self.retaken += again;
    }

    /// Pages that were given back and then wanted again.
    pub(crate) fn retaken(&self) -> u64 {
        self.retaken
    }

    /// Counts anew.
    pub(crate) fn forget_retaken(&mut self) {
        self.retaken = 0;
    }

    pub(crate) fn counts(&self) -> PageCounts {
        self.counts
    }

    /// The arena, to be printed.
    pub(crate) fn arena(&self) -> &RawArena {
        &self.arena
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.heap_bytes
    }

    /// Checks the arena, the words and the counts against each other.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        self.arena.validate().map_err(|_| "the page arena is inconsistent")?;
        let mut counts = PageCounts::default();
        self.arena.walk_free(|segment| {
            for word in self.words(segment.base, segment.size) {
                match page::kind(word.load(Ordering::Relaxed)) {
                    page::FREE_DIRTY => counts.free_dirty += 1,
                    page::FREE_CLEAN => counts.free_clean += 1,
                    _ => counts.out += 1,
                }
            }
        });
        if counts.out != 0 {
            return Err("a free page is marked as in use");
        }
        if counts.free_dirty != self.counts.free_dirty || counts.free_clean != self.counts.free_clean {
            return Err("the counts of free pages are wrong");
        }
        let total = self.counts.free_dirty + self.counts.free_clean + self.counts.out;
        if total != ((self.heap_bytes - self.hole_bytes) >> P::PAGE_SHIFT) as u64 {
            return Err("pages are missing from the heap");
        }
        Ok(())
    }
}
