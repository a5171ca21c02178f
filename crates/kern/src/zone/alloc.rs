//! Allocation: the fast path, and what happens when a bucket is empty.

use core::ptr::{NonNull, null_mut};

use abi::{CacheEntry, Ordering};
use platform::{Misuse, Platform};

use super::RawZone;
use super::config::{Fail, How, Wait};
use super::core::{ZoneCache, special};
use super::slab::FREE;
use crate::System;
use crate::bucket::BucketPtr;
use crate::slot::{SLOT_STRIDE_BYTES, Slot};

/// A bucket starts with so many items and doubles at each miss.
pub(super) const BUCKET_FIRST: usize = 7;

impl<P: Platform> RawZone<'_, P> {
    /// An item, `ctor` called with a null argument. *May sleep* if `how` says so. uma_zalloc(9).
    ///
    /// # Errors
    /// See [`alloc_arg`](Self::alloc_arg).
    #[doc(alias = "uma_zalloc")]
    #[inline(always)]
    pub fn alloc(&self, how: How) -> Result<NonNull<u8>, Fail> {
        self.alloc_arg(null_mut(), how)
    }

    /// An item, `ctor` called with `arg`. *May sleep* if `how` says so: for room under the limit, first come, first served, and for
    /// memory. uma_zalloc_arg(9).
    ///
    /// # Errors
    /// [`Fail::Limit`] and [`Fail::Memory`] only where `how` forbids sleep or sleep is forbidden here (which is reported), and only after
    /// what other CPUs' caches hold was fetched back. [`Fail::Callback`] when `ctor` or `init` fails; what was done is undone.
    #[doc(alias = "uma_zalloc_arg")]
    #[inline(always)]
    pub fn alloc_arg(&self, arg: *mut (), how: How) -> Result<NonNull<u8>, Fail> {
        if how.wait == Wait::Sleep
            && let Err(what) = P::may_sleep()
        {
            return self.alloc_forbidden(arg, how, what);
        }
        let slot = P::enter();
        if slot == 0 {
            return self.alloc_slow(arg, how);
        }
        // SAFETY: we hold the slot; its cache's items are `alloc_count` free items of this zone, of which we take one.
        unsafe {
            let cache = self.core.cache(self.system.slot_index(slot));
            if !cache.is_null()
                && self.core.special() & !special::FREE_ONLY == 0
                && let Some(entry) = (*cache).pop()
            {
                (*cache).count_alloc();
                P::leave(slot);
                return self.hand_out(entry, arg, how);
            }
            P::leave(slot);
        }
        self.alloc_slow(arg, how)
    }

    /// A caller that may not sleep asks to: reported, and served without sleep.
    #[cold]
    #[inline(never)]
    fn alloc_forbidden(&self, arg: *mut (), how: How, what: &'static str) -> Result<NonNull<u8>, Fail> {
        let mut text = crate::text::Text::<256>::new();
        text.push(b"zone ").push(abi::c_text(&self.core.name.get())).push(b": a request that may sleep, but ");
        text.push(what.as_bytes());
        P::warning(text.as_bytes());
        self.alloc_arg(arg, How { wait: Wait::No, ..how })
    }

    /// The item is out of every cache and counted: makes it its user's.
    #[inline(always)]
    fn hand_out(&self, entry: CacheEntry, arg: *mut (), how: How) -> Result<NonNull<u8>, Fail> {
        let item = entry.item as *mut u8;
        // SAFETY: the item is ours, and so is its state.
        unsafe {
            if entry.tag != 0 {
                *(entry.tag as *mut u8) = self.core.ordinal.get();
            }
            if how.zero {
                self.zero(item);
            }
            let callbacks = self.core.callbacks();
            if let Some(ctor) = callbacks.ctor
                && !ctor(callbacks.context, item, self.core.item_bytes.get(), arg, how)
            {
                return self.undo(entry);
            }
            Ok(NonNull::new_unchecked(item))
        }
    }

    /// # Safety
    /// 1. The item is the caller's.
    unsafe fn zero(&self, item: *mut u8) {
        let copies = self.core.keg().map_or(0, |keg| keg.copies.get()).max(1);
        for copy in 0..copies {
            // SAFETY: 1.; copies are a page apart.
            unsafe { core::ptr::write_bytes(item.add(copy << P::PAGE_SHIFT), 0, self.core.item_bytes.get()) };
        }
    }

    /// `ctor` failed: the item goes back as if freed, but without `dtor`.
    #[cold]
    #[inline(never)]
    fn undo(&self, entry: CacheEntry) -> Result<NonNull<u8>, Fail> {
        if entry.tag != 0 {
            // SAFETY: the item's state, and the item is ours.
            unsafe { *(entry.tag as *mut u8) = FREE };
        }
        if self.core.special() & special::SMR != 0 {
            // Nobody has seen it, and the deferred way would run `dtor`.
            self.count_free();
            self.release(&[entry]);
        } else {
            self.push_free(entry, self.item_domain(entry.item));
        }
        self.core.record().fails.fetch_add(1, Ordering::Relaxed);
        Err(Fail::Callback)
    }

    #[cold]
    #[inline(never)]
    pub(super) fn alloc_slow(&self, arg: *mut (), how: How) -> Result<NonNull<u8>, Fail> {
        self.ensure_cache();
        let (entry, domain, stranded) = self.in_section(|cache, index, special| {
            let domain = P::domain_of_slot(index);
            let Some(cache) = cache else { return (None, domain, None) };
            if special & special::PAST_CACHES != 0 {
                // Left here by a port that cannot claim other CPUs' slots: somebody sleeps for it.
                return (None, domain, Some(cache.detach()));
            }
            if cache.alloc_count == 0 && special & special::SMR == 0 && cache.free_count > 0 {
                cache.swap();
            }
            let entry = cache.pop();
            if entry.is_some() {
                cache.count_alloc();
            }
            (entry, domain, None)
        });
        if let Some(stranded) = stranded {
            self.settle(stranded, domain);
        }
        if let Some(entry) = entry {
            return self.hand_out(entry, arg, how);
        }
        self.look();
        match self.refill(domain, how) {
            Ok(entry) => {
                self.count_alloc();
                self.hand_out(entry, arg, how)
            }
            Err(fail) => {
                if fail == Fail::Memory {
                    P::out_of_memory();
                }
                self.core.record().fails.fetch_add(1, Ordering::Relaxed);
                Err(fail)
            }
        }
    }

    /// An item from behind the caches, which get what comes with it.
    fn refill(&self, domain: usize, how: How) -> Result<CacheEntry, Fail> {
        if self.core.special() & special::PAST_CACHES == 0
            && let Some(mut bucket) = self.full_bucket(domain)
        {
            let entry = bucket.pop();
            let mut bucket = Some(bucket);
            let left = self.in_section(|cache, index, special| {
                let fits = special & special::PAST_CACHES == 0
                    && (special & special::CROSS == 0 || P::domain_of_slot(index) == domain);
                let bucket = bucket.take()?;
                match cache {
                    Some(cache) if fits => cache.install_full(bucket, special),
                    _ => Some(bucket),
                }
            });
            if let Some(bucket) = left {
                self.dispose(bucket, domain);
            }
            return Ok(entry);
        }
        self.import_one(domain, how)
    }

    /// An item of this domain alone, past the caches. Never from another: [`Fail::Memory`] rather. *May sleep* if `how` says so.
    /// uma_zalloc_domain(9).
    ///
    /// # Errors
    /// As [`alloc_arg`](Self::alloc_arg); [`Fail::Memory`] for a domain that does not exist.
    #[doc(alias = "uma_zalloc_domain")]
    pub fn alloc_domain(&self, arg: *mut (), domain: usize, how: How) -> Result<NonNull<u8>, Fail> {
        if domain >= P::domains() {
            self.core.record().fails.fetch_add(1, Ordering::Relaxed);
            return Err(Fail::Memory);
        }
        self.alloc_past_caches(arg, domain, true, how)
    }

    /// An item past the caches, `only` of this domain or of this domain first.
    pub(super) fn alloc_past_caches(
        &self,
        arg: *mut (),
        domain: usize,
        only: bool,
        how: How,
    ) -> Result<NonNull<u8>, Fail> {
        match self.import_from(domain, only, how) {
            Ok(entry) => {
                self.count_alloc();
                self.hand_out(entry, arg, how)
            }
            Err(fail) => {
                self.core.record().fails.fetch_add(1, Ordering::Relaxed);
                Err(fail)
            }
        }
    }

    /// Runs `f` in a section, with the slot's cache of this zone, the slot's index and the zone's special bits as they are inside.
    pub(super) fn in_section<R>(&self, f: impl FnOnce(Option<&mut ZoneCache>, usize, u32) -> R) -> R {
        let slot = self.system.enter();
        // SAFETY: a system that made a zone was booted, so there is a slot, and we hold it: its cache is ours.
        unsafe {
            let index = (*slot).index as usize;
            let result = f(self.core.cache(index).as_mut(), index, self.core.special());
            System::<P>::leave(slot);
            result
        }
    }

    /// Gives the slot we are on a cache, if there is memory for one. Also in a zone without buckets: it holds the counters.
    pub(super) fn ensure_cache(&self) {
        let (there, index) = self.in_section(|cache, index, _| (cache.is_some(), index));
        if there {
            return;
        }
        let memory = self.system.meta.lock().alloc(size_of::<ZoneCache>());
        let Some(memory) = memory else { return };
        let cache = memory.cast::<ZoneCache>().as_ptr();
        // SAFETY: a fresh zeroed record, and zeros are an empty cache; nobody else knows it yet.
        unsafe {
            (*cache).line = match self.core.record_index.get() {
                usize::MAX => &raw const (*cache).own_line,
                record => self.system.stats().zone_line(index, record),
            };
        }
        let at = self.core.cache_ptr(index);
        if at.compare_exchange(null_mut(), cache, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            // SAFETY: 1. just allocated, and not installed.
            unsafe { self.system.meta.lock().free(memory, size_of::<ZoneCache>()) };
        }
    }

    /// Counts an allocation in whichever slot we are on now.
    pub(super) fn count_alloc(&self) {
        self.in_section(|cache, _, _| match cache {
            Some(cache) => cache.count_alloc(),
            None => _ = self.core.record().direct_allocs.fetch_add(1, Ordering::Relaxed),
        });
    }

    /// Counts a free in whichever slot we are on now.
    pub(super) fn count_free(&self) {
        self.in_section(|cache, _, _| match cache {
            Some(cache) => cache.count_free(),
            None => _ = self.core.record().direct_frees.fetch_add(1, Ordering::Release),
        });
    }

    #[cold]
    pub(super) fn misuse(&self, what: Misuse, item: usize) {
        self.system.zone_misuse(what, item);
    }
}

impl<P: Platform> System<P> {
    /// Index of a slot that was entered.
    #[inline(always)]
    pub(crate) fn slot_index(&self, slot: usize) -> usize {
        const SHIFT: u32 = SLOT_STRIDE_BYTES.trailing_zeros();
        (slot - self.slot_table().base) >> SHIFT
    }

    pub(crate) fn slot_at(&self, index: usize) -> *mut Slot {
        self.slot_table().slot(index) as *mut Slot
    }
}

/// The buckets of a cache, out of it.
pub(super) struct Detached {
    pub(super) alloc: Option<BucketPtr>,
    pub(super) free: Option<BucketPtr>,
    pub(super) cross: Option<BucketPtr>,
}

impl ZoneCache {
    /// Takes an item off the first bucket.
    #[inline(always)]
    pub(super) fn pop(&mut self) -> Option<CacheEntry> {
        let count = self.alloc_count.checked_sub(1)?;
        self.alloc_count = count;
        // SAFETY: the bucket holds `alloc_count` entries.
        Some(unsafe { *self.alloc_items.add(count as usize) })
    }

    /// Puts an item on the first bucket, if it has room.
    #[inline(always)]
    pub(super) fn push(&mut self, entry: CacheEntry) -> bool {
        if self.alloc_count == self.alloc_capacity {
            return false;
        }
        // SAFETY: below the capacity.
        unsafe { *self.alloc_items.add(self.alloc_count as usize) = entry };
        self.alloc_count += 1;
        true
    }

    /// Puts an item on the second bucket, if it has room.
    pub(super) fn push_second(&mut self, entry: CacheEntry) -> bool {
        if self.free_count == self.free_capacity {
            return false;
        }
        // SAFETY: below the capacity.
        unsafe { *self.free_items.add(self.free_count as usize) = entry };
        self.free_count += 1;
        true
    }

    /// Puts an item on the bucket for other domains, if it has room.
    pub(super) fn push_cross(&mut self, entry: CacheEntry) -> bool {
        if self.cross_count == self.cross_capacity {
            return false;
        }
        // SAFETY: below the capacity.
        unsafe { *self.cross_items.add(self.cross_count as usize) = entry };
        self.cross_count += 1;
        true
    }

    #[inline(always)]
    pub(super) fn count_alloc(&self) {
        // SAFETY: this slot's line, written by its holder only.
        let allocs = unsafe { &(*self.line).allocs };
        allocs.store(allocs.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Released, so that whoever sees this free sees the allocation that came before it.
    #[inline(always)]
    pub(super) fn count_free(&self) {
        // SAFETY: as in `count_alloc`.
        let frees = unsafe { &(*self.line).frees };
        frees.store(frees.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    pub(super) fn swap(&mut self) {
        core::mem::swap(&mut self.alloc_items, &mut self.free_items);
        core::mem::swap(&mut self.alloc_count, &mut self.free_count);
        core::mem::swap(&mut self.alloc_capacity, &mut self.free_capacity);
    }

    /// A bucket by its items, its count set.
    fn bucket(items: *mut CacheEntry, count: u32) -> Option<BucketPtr> {
        // SAFETY: 1. a cache's items came from `into_items`; the caller forgets them.
        let mut bucket = unsafe { BucketPtr::from_items(items) }?;
        bucket.set_count(count as usize);
        Some(bucket)
    }

    /// The empty bucket that a full one takes the place of; or the full one back, where there is no place.
    fn install_full(&mut self, bucket: BucketPtr, special: u32) -> Option<BucketPtr> {
        if self.alloc_count == 0 {
            self.put_alloc(bucket)
        } else if self.free_count == 0 && special & special::SMR == 0 {
            self.put_second(bucket)
        } else {
            Some(bucket)
        }
    }

    /// Makes `bucket` the first. Returns the one it displaces.
    pub(super) fn put_alloc(&mut self, bucket: BucketPtr) -> Option<BucketPtr> {
        let old = Self::bucket(self.alloc_items, self.alloc_count);
        (self.alloc_count, self.alloc_capacity) = (bucket.count() as u32, bucket.capacity() as u32);
        self.alloc_items = bucket.into_items();
        old
    }

    /// Makes `bucket` the second. Returns the one it displaces.
    pub(super) fn put_second(&mut self, bucket: BucketPtr) -> Option<BucketPtr> {
        let old = Self::bucket(self.free_items, self.free_count);
        (self.free_count, self.free_capacity) = (bucket.count() as u32, bucket.capacity() as u32);
        self.free_items = bucket.into_items();
        old
    }

    /// Makes `bucket` the one for other domains. Returns the one it displaces.
    pub(super) fn put_cross(&mut self, bucket: BucketPtr) -> Option<BucketPtr> {
        let old = Self::bucket(self.cross_items, self.cross_count);
        (self.cross_count, self.cross_capacity) = (bucket.count() as u32, bucket.capacity() as u32);
        self.cross_items = bucket.into_items();
        old
    }

    /// Takes all buckets out.
    pub(super) fn detach(&mut self) -> Detached {
        let out = Detached {
            alloc: Self::bucket(self.alloc_items, self.alloc_count),
            free: Self::bucket(self.free_items, self.free_count),
            cross: Self::bucket(self.cross_items, self.cross_count),
        };
        (self.alloc_items, self.free_items, self.cross_items) = (null_mut(), null_mut(), null_mut());
        (self.alloc_count, self.free_count, self.cross_count) = (0, 0, 0);
        (self.alloc_capacity, self.free_capacity, self.cross_capacity) = (0, 0, 0);
        out
    }

    /// Items in it.
    pub(super) fn items(&self) -> usize {
        self.alloc_count as usize + self.free_count as usize + self.cross_count as usize
    }
}
