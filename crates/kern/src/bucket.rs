//! Buckets: arrays of free items that move between a CPU's cache and a zone's depot as one.
//!
//! Two buckets of M items per cache bound the misses to one in M operations (Bonwick and Adams 2001). A depot
//! holds full buckets only; empty ones go back to a pool that all zones share.

use core::ptr::NonNull;

use abi::CacheEntry;
use platform::{Lock, Platform};

use crate::meta::Meta;

/// Head of a bucket; its items follow.
#[repr(C)]
pub(crate) struct Bucket {
    next: *mut Bucket,
    /// Items in it while it lies in a depot.
    pub(crate) count: u32,
    /// Items it has room for.
    pub(crate) capacity: u32,
}

const HEAD_BYTES: usize = size_of::<Bucket>();

/// Sizes a bucket may have: header and items together fill a multiple of 64 bytes (uma(9) has the same ladder).
const CAPACITIES: [u32; 7] = [3, 7, 15, 31, 63, 127, 255];

/// Holding one proves that the bucket is ours: in no cache, no depot and no pool.
pub(crate) struct BucketPtr(NonNull<Bucket>);

impl BucketPtr {
    /// The bucket whose items start here.
    ///
    /// # Safety
    /// 1. `items` came from [`BucketPtr::into_items`] and was not turned back yet.
    pub(crate) unsafe fn from_items(items: *mut CacheEntry) -> Option<Self> {
        NonNull::new(items).map(|items| {
            // SAFETY: 1.: the head lies just before the items.
            Self(unsafe { items.cast::<u8>().sub(HEAD_BYTES).cast::<Bucket>() })
        })
    }

    pub(crate) fn items(&self) -> *mut CacheEntry {
        self.0.as_ptr().wrapping_add(1).cast::<CacheEntry>()
    }

    pub(crate) fn into_items(self) -> *mut CacheEntry {
        self.items()
    }

    pub(crate) fn count(&self) -> usize {
        // SAFETY: ours, by the type's meaning.
        unsafe { self.0.as_ref().count as usize }
    }

    pub(crate) fn set_count(&mut self, count: usize) {
        debug_assert!(count <= self.capacity());
        // SAFETY: as in `count`.
        unsafe { self.0.as_mut().count = count as u32 };
    }

    pub(crate) fn capacity(&self) -> usize {
        // SAFETY: as in `count`.
        unsafe { self.0.as_ref().capacity as usize }
    }

    /// The items in it.
    pub(crate) fn filled(&self) -> &[CacheEntry] {
        // SAFETY: as in `count`; the first `count` items were written.
        unsafe { core::slice::from_raw_parts(self.items(), self.count()) }
    }
}

/// Empty buckets, by capacity, for all zones.
pub(crate) struct BucketPool {
    free: [*mut Bucket; CAPACITIES.len()],
}

// SAFETY: buckets in the pool are the pool's alone; the owner locks it.
unsafe impl Send for BucketPool {}

impl BucketPool {
    pub(crate) const fn new() -> Self {
        Self { free: [core::ptr::null_mut(); CAPACITIES.len()] }
    }

    /// An empty bucket for `items` items, or a few more.
    pub(crate) fn get<P: Platform>(&mut self, meta: &Lock<P::Lock, Meta<P>>, items: usize) -> Option<BucketPtr> {
        let size = CAPACITIES.iter().position(|&capacity| capacity as usize >= items).unwrap_or(CAPACITIES.len() - 1);
        if let Some(bucket) = NonNull::new(self.free[size]) {
            // SAFETY: in the pool, hence live and nobody else's.
            self.free[size] = unsafe { bucket.as_ref().next };
            return Some(BucketPtr(bucket));
        }
        let memory =
            meta.lock().alloc(HEAD_BYTES + CAPACITIES[size] as usize * size_of::<CacheEntry>())?.cast::<Bucket>();
        // SAFETY: a fresh record of that size.
        unsafe { memory.write(Bucket { next: core::ptr::null_mut(), count: 0, capacity: CAPACITIES[size] }) };
        Some(BucketPtr(memory))
    }

    /// Takes an empty bucket back.
    pub(crate) fn put(&mut self, mut bucket: BucketPtr) {
        bucket.set_count(0);
        let capacity = bucket.capacity() as u32;
        let size = CAPACITIES.iter().position(|&known| known == capacity).unwrap_or(0);
        // SAFETY: ours, by the type's meaning.
        unsafe { bucket.0.as_mut().next = self.free[size] };
        self.free[size] = bucket.0.as_ptr();
    }
}

/// Full buckets of one zone and domain.
pub(crate) struct Depot {
    full: *mut Bucket,
    buckets: usize,
    pub(crate) items: usize,
    /// Buckets put in since one was last taken out, and when that was first asked for, nanoseconds; 0 before.
    idle_pushes: usize,
    idle_since_ns: u64,
}

// SAFETY: buckets in the depot are the depot's alone; the owner locks it.
unsafe impl Send for Depot {}

impl Depot {
    pub(crate) const fn new() -> Self {
        Self { full: core::ptr::null_mut(), buckets: 0, items: 0, idle_pushes: 0, idle_since_ns: 0 }
    }

    /// The bucket put in last.
    pub(crate) fn pop(&mut self) -> Option<BucketPtr> {
        self.idle_pushes = 0;
        self.idle_since_ns = 0;
        self.take()
    }

    /// As [`pop`](Self::pop), but not for an allocation.
    pub(crate) fn take(&mut self) -> Option<BucketPtr> {
        let bucket = NonNull::new(self.full)?;
        // SAFETY: in the depot, hence live and nobody else's.
        unsafe {
            self.full = bucket.as_ref().next;
            self.items -= bucket.as_ref().count as usize;
        }
        self.buckets -= 1;
        Some(BucketPtr(bucket))
    }

    /// Buckets in it.
    pub(crate) fn buckets(&self) -> usize {
        self.buckets
    }

    /// How many buckets were put in since one was last taken out: many say that the program gives back and does not take.
    pub(crate) fn idle_pushes(&self) -> usize {
        self.idle_pushes
    }

    /// For how long that has been so, as far as it was asked.
    pub(crate) fn idle_ns(&mut self, now_ns: u64) -> u64 {
        if self.idle_since_ns == 0 {
            self.idle_since_ns = now_ns;
        }
        now_ns.saturating_sub(self.idle_since_ns)
    }

    /// Keeps a bucket with items, or hands it back when there are `most` already.
    pub(crate) fn push(&mut self, mut bucket: BucketPtr, most: usize) -> Result<(), BucketPtr> {
        self.idle_pushes += 1;
        if self.buckets >= most {
            return Err(bucket);
        }
        self.items += bucket.count();
        self.buckets += 1;
        // SAFETY: ours, by the type's meaning.
        unsafe { bucket.0.as_mut().next = self.full };
        self.full = bucket.0.as_ptr();
        Ok(())
    }
}
