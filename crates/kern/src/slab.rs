//! Slabs and kegs: runs of pages cut into items of one size.
//!
//! A slab knows which of its items lie in it free (a bitmap; caches and buckets count as outside) and, per item, a
//! *tag*: the type it was last handed out to and whether it is free. The tag is what makes a duplicate free certain
//! to be found, and what lets a free credit the type that allocated.
//!
//! A keg keeps its partly used slabs in eight lists by how full they are and takes from the fullest, so that the
//! emptiest get the chance to become empty and go back (Bonwick 1994; uma(9) "fullest first").

use core::ptr::NonNull;

use abi::{CacheEntry, FreeSize, page};

use crate::class::{Place, SLAB_CLASSES, SlabLayout, class_bytes, reciprocal, slab_layout};

/// Set in an item's tag while the item is free (in its slab or in any cache).
pub(crate) const TAG_FREE: u16 = 0x8000;

/// Tag of an item that was never handed out.
pub(crate) const TAG_NEVER: u16 = 0xffff;

/// Descriptor of a slab; the tags follow it, then the bitmap.
#[repr(C, align(64))]
pub(crate) struct Slab {
    next: *mut Slab,
    prev: *mut Slab,
    /// First byte of the slab.
    pub(crate) start: usize,
    /// Items that lie here free.
    pub(crate) free: u32,
    /// Items.
    items: u32,
    /// Word of the bitmap below which nothing is free.
    first_word: u32,
    /// Index of the list this slab is on.
    bin: u32,
    pub(crate) class: u32,
    /// From here to the bitmap, bytes.
    bitmap_offset: u32,
    /// For whom items were last taken from here.
    taker: u32,
    reserved: [u32; 3],
}
const _: () = assert!(size_of::<Slab>() == crate::class::DESCRIPTOR_BYTES);

/// What the fast paths know of a class, one to a cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct ClassInfo {
    /// See [`reciprocal`].
    reciprocal: u64,
    /// Bit in a type's size mask.
    pub(crate) size_mask: u64,
    /// From one group's tags to the next's, bytes.
    group_tag_bytes: u32,
    /// Item bytes as served, as a free counts them.
    pub(crate) free_size: FreeSize,
    /// Item bytes as served.
    pub(crate) bytes: u32,
    /// Slab bytes minus one.
    slab_mask: u32,
    /// Offset of the first item in its slab.
    pub(crate) first_offset: u32,
    /// Items per slab; 0 for a code that is no slab's.
    pub(crate) items: u32,
    /// From a slab's descriptor to its bitmap, bytes.
    bitmap_offset: u32,
}

impl ClassInfo {
    const NONE: Self = Self {
        reciprocal: 0,
        size_mask: 0,
        group_tag_bytes: 0,
        free_size: FreeSize::new(0),
        bytes: 0,
        slab_mask: 0,
        first_offset: 0,
        items: 0,
        bitmap_offset: 0,
    };
}

/// By code (see [`abi::page`]). Whatever but a slab a page's word may say has no items.
static CODE_INFO: [ClassInfo; page::CODES] = {
    let mut out = [ClassInfo::NONE; page::CODES];
    let mut class = 0;
    while class < SLAB_CLASSES {
        let bytes = class_bytes(class);
        let layout = slab_layout(class);
        out[page::class_code(class)] = ClassInfo {
            reciprocal: reciprocal(bytes),
            size_mask: 1 << class,
            group_tag_bytes: layout.group_tag_bytes as u32,
            free_size: FreeSize::new(bytes as u32),
            bytes: bytes as u32,
            slab_mask: layout.slab_bytes as u32 - 1,
            first_offset: layout.first_offset as u32,
            items: layout.items as u32,
            bitmap_offset: layout.bitmap_offset as u32,
        };
        class += 1;
    }
    out
};

/// Size mask of a class of either kind.
pub(crate) const fn size_mask(class: usize) -> u64 {
    1 << abi::run_bit(class_bytes(class) as u64)
}

impl ClassInfo {
    /// The facts of a slab class.
    ///
    /// # Safety
    /// 1. `class` is below [`SLAB_CLASSES`].
    #[inline(always)]
    pub(crate) unsafe fn of(class: usize) -> &'static Self {
        debug_assert!(class < SLAB_CLASSES);
        // SAFETY: 1.
        unsafe { Self::at(Place::of_class(class)) }
    }

    /// The facts of what has this place.
    ///
    /// # Safety
    /// 1. The place is that of a slab class or of a page's word.
    #[inline(always)]
    pub(crate) unsafe fn at(place: Place) -> &'static Self {
        const { assert!(size_of::<Self>() == Place::STEP) };
        debug_assert!(place.bytes() < size_of_val(&CODE_INFO));
        // SAFETY: 1.: its code is below `page::CODES`.
        unsafe { &*(&raw const CODE_INFO).byte_add(place.bytes()).cast::<Self>() }
    }

    /// The facts for whatever a page's word says.
    #[inline(always)]
    pub(crate) fn of_word(word: u64) -> &'static Self {
        // SAFETY: a code is below the table's length.
        unsafe { CODE_INFO.get_unchecked(page::code(word) as usize) }
    }

    /// Whether `addr`, an address in a page that these facts are of, may start an item: false for the inside of one and for what is
    /// no slab. In a slab's header and tail it may be true; the tag there says that there is no item.
    #[inline(always)]
    pub(crate) fn may_start_item(&self, addr: usize) -> bool {
        let offset = (addr as u32 & self.slab_mask).wrapping_sub(self.first_offset);
        // The lower half of the product that `item_at` uses.
        u64::from(offset).wrapping_mul(self.reciprocal) < self.reciprocal
    }

    /// Index of the item that starts at `addr`, an address in a page that these facts are of. `None` for an address that
    /// starts no item: the header, the tail, the inside of an item, or no slab at all.
    #[inline(always)]
    pub(crate) fn item_at(&self, addr: usize) -> Option<usize> {
        let offset = (addr as u32 & self.slab_mask).wrapping_sub(self.first_offset);
        let product = u128::from(offset) * u128::from(self.reciprocal);
        let index = (product >> 64) as u64;
        (index < u64::from(self.items) && (product as u64) < self.reciprocal).then_some(index as usize)
    }

    /// Index of the item that contains `addr` and the offset in it, for an address in a slab of this class.
    pub(crate) fn item_around(&self, addr: usize) -> Option<(usize, usize)> {
        let offset = (addr as u32 & self.slab_mask).checked_sub(self.first_offset)?;
        let (index, rest) = ((offset / self.bytes) as usize, (offset % self.bytes) as usize);
        (index < self.items as usize).then_some((index, rest))
    }

    /// The descriptor of the slab of this class that `addr`, in a page with this word, lies in.
    pub(crate) fn descriptor(&self, word: u64, addr: usize) -> Option<NonNull<Slab>> {
        let group = (addr & self.slab_mask as usize) / page::GROUP_BYTES;
        let descriptor = page::tags(word) - group * self.group_tag_bytes as usize - size_of::<Slab>();
        NonNull::new(descriptor as *mut Slab)
    }

    /// Slab bytes.
    pub(crate) fn slab_bytes(&self) -> u32 {
        self.slab_mask + 1
    }
}

/// Lists by eighths in use.
const BINS: usize = 8;

/// Taker of items that come from any slab.
pub(crate) const ANYBODY: u32 = u32::MAX;

/// The slabs of one class. The owner keeps it behind a lock.
pub(crate) struct Keg {
    class: usize,
    /// Partly used, by how much.
    partial: [*mut Slab; BINS],
    /// Wholly free, kept for the next need.
    empty: *mut Slab,
    pub(crate) empties: usize,
    pub(crate) slabs: usize,
    pub(crate) free_items: usize,
}

// SAFETY: slabs are reached through their keg only, which its owner locks.
unsafe impl Send for Keg {}

/// Where a slab stands after an item came back to it.
pub(crate) enum Returned {
    /// Still in use, or kept.
    Kept,
    /// Wholly free and not wanted: the caller gives its pages back.
    Release(NonNull<Slab>),
}

impl Keg {
    pub(crate) const fn new(class: usize) -> Self {
        Self {
            class,
            partial: [core::ptr::null_mut(); BINS],
            empty: core::ptr::null_mut(),
            empties: 0,
            slabs: 0,
            free_items: 0,
        }
    }

    /// Makes a slab of fresh pages and puts it on the empty list.
    ///
    /// # Safety
    /// 1. `start` is a run of `layout.slab_bytes`, aligned to it, ours alone.
    /// 2. `descriptor` is `start` when the layout is inline, else a record of `layout.descriptor_bytes`.
    pub(crate) unsafe fn add_slab(&mut self, layout: &SlabLayout, start: usize, descriptor: NonNull<u8>) {
        let slab = descriptor.as_ptr().cast::<Slab>();
        // SAFETY: 2. gives room for the descriptor, its bitmap and its tags.
        unsafe {
            slab.write(Slab {
                next: core::ptr::null_mut(),
                prev: core::ptr::null_mut(),
                start,
                free: layout.items as u32,
                items: layout.items as u32,
                first_word: 0,
                bin: BINS as u32,
                class: self.class as u32,
                bitmap_offset: layout.bitmap_offset as u32,
                taker: ANYBODY,
                reserved: [0; 3],
            });
            let words = Self::bitmap(slab);
            let full = layout.items / 64;
            for word in 0..full {
                *words.add(word) = !0;
            }
            if !layout.items.is_multiple_of(64) {
                *words.add(full) = (1 << (layout.items % 64)) - 1;
            }
            let tags = slab.add(1).cast::<u8>();
            // TAG_NEVER, in both its bytes.
            core::ptr::write_bytes(tags, TAG_NEVER as u8, layout.bitmap_offset - size_of::<Slab>());
            Self::push(&mut self.empty, slab);
        }
        self.empties += 1;
        self.slabs += 1;
        self.free_items += layout.items;
    }

    /// # Safety
    /// 1. `slab` is a live slab.
    unsafe fn bitmap(slab: *mut Slab) -> *mut u64 {
        // SAFETY: 1.
        slab.wrapping_byte_add(unsafe { (*slab).bitmap_offset } as usize).cast::<u64>()
    }

    /// # Safety
    /// 1. `slab` is a live slab of this keg, on no list.
    unsafe fn push(head: &mut *mut Slab, slab: *mut Slab) {
        // SAFETY: 1., and the list's head is a live slab of this keg too.
        unsafe {
            (*slab).next = *head;
            (*slab).prev = core::ptr::null_mut();
            if !head.is_null() {
                (**head).prev = slab;
            }
        }
        *head = slab;
    }

    /// # Safety
    /// 1. `slab` is on the list of `head`.
    unsafe fn unlink(head: &mut *mut Slab, slab: *mut Slab) {
        // SAFETY: 1.: its neighbours are live slabs of this keg.
        unsafe {
            if (*slab).prev.is_null() {
                *head = (*slab).next;
            } else {
                (*(*slab).prev).next = (*slab).next;
            }
            if !(*slab).next.is_null() {
                (*(*slab).next).prev = (*slab).prev;
            }
        }
    }

    /// List for a slab with so many free items; `BINS` for the empty list, past it for a full slab, which is on none.
    fn bin_of(items: u32, free: u32) -> u32 {
        if free == items {
            BINS as u32
        } else if free == 0 {
            BINS as u32 + 1
        } else {
            (items - free) * BINS as u32 / items
        }
    }

    /// Puts a slab on the list that fits its count.
    ///
    /// # Safety
    /// 1. `slab` is a live slab of this keg, on the list that `bin` says.
    unsafe fn relist(&mut self, slab: *mut Slab) {
        // SAFETY: 1. throughout.
        unsafe {
            let bin = Self::bin_of((*slab).items, (*slab).free);
            let old = (*slab).bin;
            if bin == old {
                return;
            }
            match old as usize {
                BINS => {
                    Self::unlink(&mut self.empty, slab);
                    self.empties -= 1;
                }
                old if old < BINS => Self::unlink(&mut self.partial[old], slab),
                _ => {}
            }
            (*slab).bin = bin;
            match bin as usize {
                BINS => {
                    Self::push(&mut self.empty, slab);
                    self.empties += 1;
                }
                bin if bin < BINS => Self::push(&mut self.partial[bin], slab),
                _ => {}
            }
        }
    }

    /// A slab to take from: the fullest that `taker` (a CPU's identity) took from last. The tags of neighbours share a cache line, and two CPUs
    /// that write to them in turns wait for each other at every operation; so another CPU's slab is had only when a slab's worth of items is
    /// free in all. Null: a new slab had better be made.
    fn head(&self, taker: u32, items_per_slab: usize) -> *mut Slab {
        /// Slabs of a list that are looked at.
        const LOOKED_AT: usize = 4;
        // SAFETY: lists hold live slabs of this keg.
        let is_own = |&slab: &*mut Slab| unsafe { (*slab).taker == taker || (*slab).taker == ANYBODY };
        // SAFETY: as above.
        let next = |&slab: &*mut Slab| unsafe { Some((*slab).next).filter(|next| !next.is_null()) };
        let heads = || self.partial.iter().rev().copied().filter(|head| !head.is_null());
        if taker == ANYBODY {
            return heads().next().unwrap_or(self.empty);
        }
        let own = heads()
            .find_map(|head| core::iter::successors(Some(head), next).take(LOOKED_AT).find(is_own))
            .unwrap_or(self.empty);
        if own.is_null() && self.free_items >= items_per_slab {
            return heads().next().unwrap_or(core::ptr::null_mut());
        }
        own
    }

    /// Whoever wants may take from the slabs that `taker` took from last. Walks over all slabs that are not full.
    pub(crate) fn open_slabs_of(&mut self, taker: u32) {
        for &head in &self.partial {
            let mut slab = head;
            while !slab.is_null() {
                // SAFETY: lists hold live slabs of this keg.
                unsafe {
                    if (*slab).taker == taker {
                        (*slab).taker = ANYBODY;
                    }
                    slab = (*slab).next;
                }
            }
        }
    }

    /// Takes up to `want` items for `taker`, lowest address last so that a stack of them is popped upward through memory. Returns how
    /// many were had without a new slab.
    ///
    /// # Safety
    /// 1. `out` has room for `want` addresses.
    pub(crate) unsafe fn take(&mut self, out: *mut CacheEntry, want: usize, taker: u32) -> usize {
        // SAFETY: 1. a keg is of a slab class.
        let info = unsafe { ClassInfo::of(self.class) };
        let code = page::class_code(self.class) as u64;
        let mut got = 0;
        while got < want {
            let head = self.head(taker, info.items as usize);
            if head.is_null() {
                break;
            }
            // SAFETY: lists hold live slabs of this keg; the bitmap has a bit per item; 1. bounds the writes.
            unsafe {
                (*head).taker = taker;
                let words = Self::bitmap(head);
                let tags = head as usize + size_of::<Slab>();
                let mut index = (*head).first_word as usize;
                let mut left = (*head).free;
                while got < want && left > 0 {
                    let mut word = *words.add(index);
                    while word != 0 && got < want {
                        let bit = word.trailing_zeros() as usize;
                        word &= word - 1;
                        let offset = info.first_offset as usize + (index * 64 + bit) * info.bytes as usize;
                        let group_tags = tags + offset / page::GROUP_BYTES * info.group_tag_bytes as usize;
                        *out.add(want - 1 - got) = CacheEntry {
                            item: (*head).start + offset,
                            tag: page::tag(group_tags as u64 | code, offset),
                        };
                        got += 1;
                        left -= 1;
                    }
                    *words.add(index) = word;
                    if word == 0 {
                        index += 1;
                    }
                }
                self.free_items -= ((*head).free - left) as usize;
                (*head).first_word = index as u32;
                (*head).free = left;
                self.relist(head);
            }
        }
        if got < want && got > 0 {
            // SAFETY: 1.: both ranges lie in the room for `want` addresses.
            unsafe { core::ptr::copy(out.add(want - got), out, got) };
        }
        got
    }

    /// Puts items back into their slab: those at the front of `items` that lie in it, at least one. Returns how many, and where the
    /// slab stands then. Keeps one empty slab for the next need.
    ///
    /// # Safety
    /// 1. `slab` is the slab of this keg that contains the first item; the items were taken from this keg and not put back since.
    pub(crate) unsafe fn put(&mut self, slab: NonNull<Slab>, items: &[CacheEntry]) -> (usize, Returned) {
        // SAFETY: 1. of `of`: a keg is of a slab class.
        let info = unsafe { ClassInfo::of(self.class) };
        let slab = slab.as_ptr();
        // SAFETY: 1.
        unsafe {
            // Slabs are aligned to their size.
            let start = items.first().map_or(0, |entry| entry.item) & !(info.slab_mask as usize);
            // Nothing here waits for the descriptor, so that the misses of several slabs overlap.
            let words = slab.wrapping_byte_add(info.bitmap_offset as usize).cast::<u64>();
            let mut lowest = u32::MAX;
            let (mut looked_at, mut count) = (0, 0);
            // Items that were freed one after the other mostly lie in one slab: its list is looked for once.
            for entry in items {
                if entry.item & !(info.slab_mask as usize) != start {
                    break;
                }
                looked_at += 1;
                let Some(index) = info.item_at(entry.item) else { continue };
                let word = words.add(index / 64);
                debug_assert!(*word & (1 << (index % 64)) == 0, "an item came back twice");
                *word |= 1 << (index % 64);
                lowest = lowest.min((index / 64) as u32);
                count += 1;
            }
            debug_assert!(count == looked_at, "no item of the slab");
            (*slab).first_word = (*slab).first_word.min(lowest);
            (*slab).free += count as u32;
            self.free_items += count;
            self.relist(slab);
            if (*slab).free < (*slab).items || self.empties <= 1 {
                return (looked_at, Returned::Kept);
            }
            // SAFETY: it is not null.
            (looked_at, Returned::Release(NonNull::new_unchecked(slab)))
        }
    }

    /// An empty slab that the keg can do without, if `keep` leaves any.
    pub(crate) fn surplus(&self, keep: usize) -> Option<NonNull<Slab>> {
        if self.empties > keep { NonNull::new(self.empty) } else { None }
    }

    /// Takes an empty slab off the keg.
    ///
    /// # Safety
    /// 1. `slab` is on the empty list.
    pub(crate) unsafe fn remove(&mut self, slab: NonNull<Slab>) {
        // SAFETY: 1.
        unsafe {
            Self::unlink(&mut self.empty, slab.as_ptr());
            self.free_items -= slab.as_ref().items as usize;
        }
        self.empties -= 1;
        self.slabs -= 1;
    }

    /// Checks the lists, bitmaps and counts against each other.
    pub(crate) fn validate(&self) -> Result<(), &'static str> {
        let mut free = 0;
        let mut empties = 0;
        let lists = self.partial.iter().copied().enumerate().chain(core::iter::once((BINS, self.empty)));
        for (bin, head) in lists {
            let (mut slab, mut prev) = (head, core::ptr::null_mut());
            while !slab.is_null() {
                // SAFETY: lists hold live slabs of this keg.
                let this = unsafe { &*slab };
                if this.prev != prev {
                    return Err("a slab's back link is wrong");
                }
                if this.bin as usize != bin || Self::bin_of(this.items, this.free) as usize != bin {
                    return Err("a slab is on the wrong list");
                }
                let words = (this.items as usize).div_ceil(64);
                // SAFETY: the bitmap has a bit per item.
                let bits: u32 = (0..words).map(|word| unsafe { (*Self::bitmap(slab).add(word)).count_ones() }).sum();
                if bits != this.free {
                    return Err("a slab's bitmap and count differ");
                }
                free += this.free as usize;
                empties += usize::from(bin == BINS);
                prev = slab;
                slab = this.next;
            }
        }
        if free != self.free_items {
            return Err("a keg's count of free items is wrong");
        }
        if empties != self.empties {
            return Err("a keg's count of empty slabs is wrong");
        }
        Ok(())
    }
}
