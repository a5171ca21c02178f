//! A zone's slabs, and the lists of them that one keg has in one domain.
//!
//! As in the size classes' kegs a bitmap says which items lie free in the slab; items in caches and depots count as outside. Per item
//! there is a byte besides, its *state*: zero while the item is free, wherever it lies, else the ordinal of the zone that handed
//! it out. So a second free is found, and a free to another zone than the item came from.

use core::ptr::NonNull;

use abi::CacheEntry;

use super::layout::{DESCRIPTOR_BYTES, KegLayout};
use crate::class::reciprocal;

/// State of an item that nobody has.
pub(crate) const FREE: u8 = 0;

/// Descriptor of a slab; the bitmap follows it, then the states.
#[repr(C, align(64))]
pub(crate) struct ZoneSlab {
    pub(crate) next: *mut ZoneSlab,
    prev: *mut ZoneSlab,
    /// The keg's record, whose owner knows its type.
    pub(crate) keg: *const (),
    /// First byte of the slab.
    pub(crate) start: usize,
    /// First byte of the first item.
    pub(crate) first: usize,
    /// Which of the kegs that had this record, one after another.
    pub(crate) generation: u32,
    pub(crate) domain: u32,
    /// Items that lie here free.
    free: u32,
    items: u32,
    /// Word of the bitmap below which nothing is free.
    first_word: u32,
    /// Index of the list this slab is on.
    bin: u32,
}
const _: () = assert!(size_of::<ZoneSlab>() == DESCRIPTOR_BYTES);

/// What a slab's users know of its keg.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    pub(crate) layout: KegLayout,
    reciprocal: u64,
}

impl Cut {
    pub(crate) const fn new(layout: KegLayout) -> Self {
        // A stride of one needs no division, and its reciprocal would not fit a word.
        let reciprocal = if layout.stride_bytes == 1 { 0 } else { reciprocal(layout.stride_bytes) };
        Self { layout, reciprocal }
    }

    /// Index of the item that starts at `addr`, for an address in `slab`.
    pub(crate) fn item_at(&self, slab: &ZoneSlab, addr: usize) -> Option<usize> {
        let offset = addr.checked_sub(slab.first)?;
        if self.layout.stride_bytes == 1 {
            return (offset < self.layout.items).then_some(offset);
        }
        let product = offset as u128 * u128::from(self.reciprocal);
        let index = (product >> 64) as usize;
        (index < self.layout.items && (product as u64) < self.reciprocal).then_some(index)
    }

    /// Index of the item that contains `addr` (in its first copy, where there are several).
    pub(crate) fn item_around(&self, slab: &ZoneSlab, addr: usize) -> Option<usize> {
        let index = addr.checked_sub(slab.first)? / self.layout.stride_bytes;
        (index < self.layout.items).then_some(index)
    }

    pub(crate) fn item(&self, slab: &ZoneSlab, index: usize) -> usize {
        slab.first + index * self.layout.stride_bytes
    }

    /// The type tag of an item, where items have one.
    pub(crate) fn type_tag(&self, slab: *const ZoneSlab, index: usize) -> *mut u16 {
        (slab as usize + self.layout.tags_offset + 2 * index) as *mut u16
    }

    /// The state of an item.
    pub(crate) fn state(&self, slab: *const ZoneSlab, index: usize) -> *mut u8 {
        (slab as usize + self.layout.states_offset + index) as *mut u8
    }
}

/// Lists by eighths in use.
const BINS: usize = 8;

/// The slabs of one keg in one domain. The owner keeps it behind a lock.
pub(crate) struct Slabs {
    /// Partly used, by how much.
    partial: [*mut ZoneSlab; BINS],
    /// Wholly free, kept for the next need.
    empty: *mut ZoneSlab,
    /// Wholly used: only a walk over all slabs needs them.
    full: *mut ZoneSlab,
    pub(crate) empties: usize,
    pub(crate) slabs: usize,
    pub(crate) free_items: usize,
}

// SAFETY: slabs are reached through their keg only, which its owner locks.
unsafe impl Send for Slabs {}

const EMPTY_BIN: u32 = BINS as u32;
const FULL_BIN: u32 = BINS as u32 + 1;
const NO_BIN: u32 = u32::MAX;

impl Slabs {
    pub(crate) const fn new() -> Self {
        let none = core::ptr::null_mut();
        Self { partial: [none; BINS], empty: none, full: none, empties: 0, slabs: 0, free_items: 0 }
    }

    /// Writes a descriptor for fresh pages; the slab is on no list yet.
    ///
    /// # Safety
    /// 1. `at` is a record of `layout.descriptor_bytes`, nobody else's.
    pub(crate) unsafe fn describe(
        cut: &Cut,
        at: NonNull<u8>,
        keg: (*const (), u32),
        start: usize,
        colour: usize,
        domain: usize,
    ) -> NonNull<ZoneSlab> {
        let slab = at.cast::<ZoneSlab>();
        let items = cut.layout.items;
        // SAFETY: 1. gives room for the descriptor, its bitmap and its states.
        unsafe {
            slab.write(ZoneSlab {
                next: core::ptr::null_mut(),
                prev: core::ptr::null_mut(),
                keg: keg.0,
                start,
                first: start + cut.layout.first_offset + colour * cut.layout.colour_bytes,
                generation: keg.1,
                domain: domain as u32,
                free: items as u32,
                items: items as u32,
                first_word: 0,
                bin: NO_BIN,
            });
            let words = Self::bitmap(slab.as_ptr());
            for word in 0..items.div_ceil(64) {
                let here = (items - word * 64).min(64);
                *words.add(word) = if here == 64 { !0 } else { (1 << here) - 1 };
            }
            core::ptr::write_bytes(cut.state(slab.as_ptr(), 0), FREE, items);
        }
        slab
    }

    /// Takes a described slab in.
    ///
    /// # Safety
    /// 1. `slab` is this keg's and domain's, on no list.
    pub(crate) unsafe fn add(&mut self, slab: NonNull<ZoneSlab>) {
        // SAFETY: 1.
        unsafe {
            self.free_items += slab.as_ref().items as usize;
            self.slabs += 1;
            self.relist(slab.as_ptr());
        }
    }

    fn bitmap(slab: *mut ZoneSlab) -> *mut u64 {
        // The bitmap starts where the descriptor ends.
        slab.wrapping_add(1).cast::<u64>()
    }

    fn head(&mut self, bin: u32) -> &mut *mut ZoneSlab {
        match bin {
            EMPTY_BIN => &mut self.empty,
            FULL_BIN => &mut self.full,
            bin => &mut self.partial[bin as usize],
        }
    }

    /// # Safety
    /// 1. `slab` is on the list that its `bin` says, if on any.
    unsafe fn unlink(&mut self, slab: *mut ZoneSlab) {
        // SAFETY: 1.: its neighbours are live slabs of this keg.
        unsafe {
            let bin = (*slab).bin;
            if bin == NO_BIN {
                return;
            }
            if (*slab).prev.is_null() {
                *self.head(bin) = (*slab).next;
            } else {
                (*(*slab).prev).next = (*slab).next;
            }
            if !(*slab).next.is_null() {
                (*(*slab).next).prev = (*slab).prev;
            }
            self.empties -= usize::from(bin == EMPTY_BIN);
            (*slab).bin = NO_BIN;
        }
    }

    fn bin_of(items: u32, free: u32) -> u32 {
        if free == items {
            EMPTY_BIN
        } else if free == 0 {
            FULL_BIN
        } else {
            (items - free) * BINS as u32 / items
        }
    }

    /// Puts a slab on the list that fits its count.
    ///
    /// # Safety
    /// 1. As for [`unlink`](Self::unlink).
    unsafe fn relist(&mut self, slab: *mut ZoneSlab) {
        // SAFETY: 1.; a list's head is a live slab of this keg.
        unsafe {
            let bin = Self::bin_of((*slab).items, (*slab).free);
            if bin == (*slab).bin {
                return;
            }
            self.unlink(slab);
            let head = self.head(bin);
            (*slab).next = *head;
            (*slab).prev = core::ptr::null_mut();
            if !(*head).is_null() {
                (**head).prev = slab;
            }
            *head = slab;
            (*slab).bin = bin;
            self.empties += usize::from(bin == EMPTY_BIN);
        }
    }

    /// Takes up to `want` items out of the fullest slabs, and leaves at least `floor` free. Returns how many.
    ///
    /// # Safety
    /// 1. `out` has room for `want` entries.
    pub(crate) unsafe fn take(&mut self, cut: &Cut, out: *mut CacheEntry, want: usize, floor: usize) -> usize {
        let want = want.min(self.free_items.saturating_sub(floor));
        let mut got = 0;
        while got < want {
            let slab = self.partial.iter().rev().copied().find(|head| !head.is_null()).unwrap_or(self.empty);
            if slab.is_null() {
                break;
            }
            // SAFETY: lists hold live slabs of this keg, those with free items have a bit per free item; 1. bounds the writes.
            unsafe {
                let words = Self::bitmap(slab);
                let mut index = (*slab).first_word as usize;
                while got < want && (*slab).free > 0 {
                    let word = *words.add(index);
                    if word == 0 {
                        index += 1;
                        continue;
                    }
                    let item = index * 64 + word.trailing_zeros() as usize;
                    *words.add(index) = word & (word - 1);
                    // Lowest address last: a bucket is popped from its end, and so upward through memory.
                    *out.add(want - 1 - got) =
                        CacheEntry { item: cut.item(&*slab, item), tag: cut.state(slab, item) as usize };
                    got += 1;
                    (*slab).free -= 1;
                    self.free_items -= 1;
                }
                (*slab).first_word = index as u32;
                self.relist(slab);
            }
        }
        if got < want && got > 0 {
            // SAFETY: 1.: both ranges lie in the room for `want` entries.
            unsafe { core::ptr::copy(out.add(want - got), out, got) };
        }
        got
    }

    /// Puts an item back into its slab. Returns whether the slab is wholly free now.
    ///
    /// # Safety
    /// 1. `slab` is of this keg and domain and contains item `index`, which was taken from it and not put back since.
    pub(crate) unsafe fn put(&mut self, slab: *mut ZoneSlab, index: usize) -> bool {
        // SAFETY: 1.
        unsafe {
            let word = Self::bitmap(slab).add(index / 64);
            debug_assert!(*word & (1 << (index % 64)) == 0, "an item came back twice");
            *word |= 1 << (index % 64);
            (*slab).first_word = (*slab).first_word.min((index / 64) as u32);
            (*slab).free += 1;
            self.free_items += 1;
            self.relist(slab);
            (*slab).free == (*slab).items
        }
    }

    /// Takes an empty slab off the lists, if more than `keep` are empty and `floor` items stay free without it.
    pub(crate) fn take_empty(&mut self, keep: usize, floor: usize) -> Option<NonNull<ZoneSlab>> {
        let slab = NonNull::new(self.empty)?;
        // SAFETY: on the list of empty slabs.
        let items = unsafe { slab.as_ref().items as usize };
        if self.empties <= keep || self.free_items - items < floor {
            return None;
        }
        // SAFETY: as above.
        unsafe { self.unlink(slab.as_ptr()) };
        self.free_items -= items;
        self.slabs -= 1;
        Some(slab)
    }

    /// Every slab, whatever its list.
    pub(crate) fn each(&self, mut f: impl FnMut(*mut ZoneSlab)) {
        for head in self.partial.iter().chain([&self.empty, &self.full]) {
            let mut slab = *head;
            while !slab.is_null() {
                // SAFETY: lists hold live slabs of this keg. Read first: `f` may do away with the slab.
                let next = unsafe { (*slab).next };
                f(slab);
                slab = next;
            }
        }
    }

    /// The emptiest partly used slabs: those that are at most an eighth full.
    pub(crate) fn nearly_empty(&self) -> *mut ZoneSlab {
        self.partial[0]
    }

    /// Checks the lists, bitmaps and counts against each other.
    pub(crate) fn validate(&self, cut: &Cut) -> Result<(), &'static str> {
        let (mut free, mut slabs, mut empties) = (0, 0, 0);
        let mut fault = None;
        self.each(|slab| {
            // SAFETY: a live slab of this keg.
            let this = unsafe { &*slab };
            if this.bin != Self::bin_of(this.items, this.free) {
                fault = Some("a zone's slab is on the wrong list");
            }
            // SAFETY: the neighbour is on the same list.
            if !this.next.is_null() && unsafe { (*this.next).prev } != slab {
                fault = Some("a zone's slab has a wrong back link");
            }
            let mut bits = 0;
            for index in 0..this.items as usize {
                // SAFETY: the bitmap has a bit per item.
                let lies_here = unsafe { *Self::bitmap(slab).add(index / 64) } >> (index % 64) & 1 == 1;
                bits += u32::from(lies_here);
                // SAFETY: an item of this slab has a state.
                if lies_here && unsafe { *cut.state(slab, index) } != FREE {
                    fault = Some("an item lies free in its slab and is in use");
                }
            }
            if bits != this.free {
                fault = Some("a zone slab's bitmap and count differ");
            }
            free += this.free as usize;
            slabs += 1;
            empties += usize::from(this.bin == EMPTY_BIN);
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        if free != self.free_items {
            return Err("a zone's count of free items in slabs is wrong");
        }
        if slabs != self.slabs || empties != self.empties {
            return Err("a zone's count of slabs is wrong");
        }
        Ok(())
    }

    /// Whether an item lies free in its slab.
    ///
    /// # Safety
    /// 1. `slab` is live and has an item of this index; the caller holds its keg's lock.
    pub(crate) unsafe fn lies_free(slab: *mut ZoneSlab, index: usize) -> bool {
        // SAFETY: 1.
        unsafe { *Self::bitmap(slab).add(index / 64) >> (index % 64) & 1 == 1 }
    }
}
