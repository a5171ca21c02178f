//! Allocated segments by base: how a free finds its tag.

use crate::tag::{Link, TagRef};
use core::cell::Cell;
use core::ptr::NonNull;

/// Buckets that every arena has in itself. illumos begins with as many.
pub const HASH_INLINE: usize = 16;

/// The most buckets an arena asks for. With chains of two at most that is right for two million segments, where the
/// table is 8 MiB; beyond, chains grow. (illumos stops at 131072 since its larger arenas have quantum caches.)
pub const HASH_MAX: usize = 1 << 20;

/// One bucket of the hash table. Opaque; the size of a pointer.
#[repr(transparent)]
pub struct Bucket(Link);

pub(crate) struct Hash {
    /// Used while there is no table.
    own: [Bucket; HASH_INLINE],
    /// Donated buckets, a power of two of them.
    table: Option<(NonNull<Bucket>, usize)>,
    /// 64 minus log2 of the number of buckets.
    down: u32,
    /// log2 of the quantum: the bits below are 0 in every base.
    shift: u32,
    count: usize,
}

impl Hash {
    pub(crate) const fn new(quantum: usize) -> Hash {
        Hash {
            own: [const { Bucket(Cell::new(None)) }; HASH_INLINE],
            table: None,
            down: 64 - HASH_INLINE.ilog2(),
            shift: quantum.trailing_zeros(),
            count: 0,
        }
    }

    /// Allocated segments.
    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn buckets(&self) -> &[Bucket] {
        match self.table {
            None => &self.own,
            // SAFETY: `replace` has initialised the whole table, and its caller has promised that the memory is ours
            // until the next `replace`; buckets are cells, so shared access is all we need.
            Some((mem, count)) => unsafe { core::slice::from_raw_parts(mem.as_ptr(), count) },
        }
    }

    #[inline]
    fn bucket(&self, base: usize) -> &Link {
        // Multiplication by 2^64/phi spreads equal strides over the upper bits (Knuth 6.4).
        let mixed = ((base >> self.shift) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.buckets()[(mixed >> self.down) as usize].0
    }

    #[inline]
    pub(crate) fn insert(&mut self, tag: TagRef) {
        let bucket = self.bucket(tag.base.get());
        tag.link_b.set(bucket.get());
        bucket.set(Some(tag));
        self.count += 1;
    }

    #[inline]
    pub(crate) fn find(&self, base: usize) -> Option<TagRef> {
        self.slot(base).get()
    }

    /// The link that leads to the tag with this base, or the empty one at the end of its chain.
    #[inline]
    fn slot(&self, base: usize) -> &Link {
        let mut slot: *const Link = self.bucket(base);
        loop {
            // SAFETY: `slot` is a bucket of ours or a field of a tag of ours, and both outlive the borrow of self.
            let link = unsafe { &*slot };
            match link.get() {
                Some(tag) if tag.base.get() != base => slot = &raw const tag.link_b,
                _ => return link,
            }
        }
    }

    /// Takes out the segment with this base.
    #[inline]
    pub(crate) fn remove(&mut self, base: usize) {
        let slot = self.slot(base);
        if let Some(tag) = slot.get() {
            slot.set(tag.link_b.get());
            self.count -= 1;
        }
    }

    /// Moves everything into another table (`None`: the inline one); returns the memory of the one before.
    ///
    /// # Safety
    /// 1. The memory is valid for writes of that many buckets and aligned.
    /// 2. Nobody else touches it until a later call has returned it.
    pub(crate) unsafe fn replace(
        &mut self,
        table: Option<(NonNull<Bucket>, usize)>,
    ) -> Option<(NonNull<Bucket>, usize)> {
        // All segments on one chain first, so that old and new table need not exist beside each other.
        let mut all = None;
        for bucket in self.buckets() {
            let mut chain = bucket.0.take();
            while let Some(tag) = chain {
                chain = tag.link_b.replace(all);
                all = Some(tag);
            }
        }
        if let Some((mem, count)) = table {
            for index in 0..count {
                // SAFETY: (1), and index < count.
                unsafe { mem.add(index).write(Bucket(Cell::new(None))) };
            }
        }
        let old = core::mem::replace(&mut self.table, table);
        self.down = 64 - self.buckets().len().ilog2();
        self.count = 0;
        while let Some(tag) = all {
            all = tag.link_b.get();
            self.insert(tag);
        }
        old
    }

    /// The number of buckets that would serve the present number of segments, if the present one is wrong: more than
    /// twice as many segments as buckets, or less than a quarter (the thresholds of illumos and NetBSD; far enough
    /// apart that an arena in steady state is not rehashed to and fro).
    pub(crate) fn wanted(&self) -> Option<usize> {
        let now = self.buckets().len();
        if self.count <= now * 2 && self.count >= now / 4 {
            return None;
        }
        let right = self.count.next_power_of_two().clamp(HASH_INLINE, HASH_MAX);
        (right != now).then_some(right)
    }

    /// Forgets all segments; their tags are the caller's now.
    pub(crate) fn clear(&mut self) {
        for bucket in self.buckets() {
            bucket.0.set(None);
        }
        self.count = 0;
    }

    /// The tags of one bucket.
    pub(crate) fn chain(bucket: &Bucket) -> impl Iterator<Item = TagRef> {
        core::iter::successors(bucket.0.get(), |tag| tag.link_b.get())
    }

    /// Whether the tag's base leads to this bucket.
    pub(crate) fn belongs(&self, tag: TagRef, bucket: &Bucket) -> bool {
        core::ptr::eq(self.bucket(tag.base.get()), &raw const bucket.0)
    }
}
