//! Size classes: which zone serves a request, and how its slabs are laid out.
//!
//! Arithmetic only; nothing here touches memory.
#![forbid(unsafe_code)]

use abi::{SIZE_CLASSES, page};

/// Classes served from slabs: up to 16 KiB. A slab of larger items would be more pages than a small program has use for.
pub const SLAB_CLASSES: usize = 36;
/// Classes of page runs, four per doubling above the slab classes: reused at their size from per-CPU caches, so that
/// a program that allocates and frees one size never reaches the arena.
pub const RUN_CLASSES: usize = 28;
/// All classes; each is a zone of the same index.
pub const CLASSES: usize = SLAB_CLASSES + RUN_CLASSES;
/// Largest request served from a slab, bytes.
pub const SLAB_MAX_BYTES: usize = SIZE_CLASSES[SLAB_CLASSES - 1] as usize;
/// Largest request served from a run class, bytes.
pub const RUN_MAX_BYTES: usize = class_bytes(CLASSES - 1);
/// Every block is aligned for any type.
pub const MIN_ALIGN: usize = 16;

/// Sizes whose class a table tells, bytes.
pub(crate) const SMALL_MAX_BYTES: usize = 1024;

/// Place by 16-byte step, for the sizes where a table is shorter than the arithmetic.
const SMALL: [u16; 65] = {
    let mut out = [0; 65];
    let mut step = 0;
    while step < 65 {
        let mut class = 0;
        while (SIZE_CLASSES[class] as usize) < step * 16 {
            class += 1;
        }
        out[step] = Place::of_class(class).0 as u16;
        step += 1;
    }
    out
};

/// Place by 128-byte step up to [`SLAB_MAX_BYTES`], for sizes above [`SMALL_MAX_BYTES`]: every class there is so many of them.
const MEDIUM: [u16; SLAB_MAX_BYTES / MEDIUM_STEP] = {
    let mut out = [0; SLAB_MAX_BYTES / MEDIUM_STEP];
    let mut class = 0;
    let mut step = 0;
    while step < out.len() {
        while (SIZE_CLASSES[class] as usize) < (step + 1) * MEDIUM_STEP {
            class += 1;
        }
        out[step] = Place::of_class(class).0 as u16;
        step += 1;
    }
    out
};
const MEDIUM_STEP: usize = 128;
const _: () = {
    let mut class = 0;
    while class < SLAB_CLASSES {
        let bytes = SIZE_CLASSES[class] as usize;
        assert!(bytes <= SMALL_MAX_BYTES || bytes.is_multiple_of(MEDIUM_STEP));
        class += 1;
    }
};

/// Where a class's entry is in a table by code ([`page::class_code`]) whose entries are a cache line: its code times 64. The
/// fast paths know a class by this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(usize);

impl Place {
    /// Bytes of an entry.
    pub(crate) const STEP: usize = 64;

    pub(crate) const fn of_class(class: usize) -> Self {
        Self(page::class_code(class) * Self::STEP)
    }

    /// Of what the word of a page says, slab or not.
    #[inline(always)]
    pub(crate) const fn of_word(word: u64) -> Self {
        Self(page::code(word) as usize * Self::STEP)
    }

    #[inline(always)]
    pub(crate) const fn bytes(self) -> usize {
        self.0
    }

    pub(crate) const fn class(self) -> usize {
        page::class_of_code(self.0 / Self::STEP)
    }

    /// Of the smallest class whose items hold `bytes`, up to [`SMALL_MAX_BYTES`].
    #[inline(always)]
    pub(crate) const fn small(bytes: usize) -> Self {
        Self(SMALL[(bytes + 15) >> 4] as usize)
    }

    /// The same above [`SMALL_MAX_BYTES`] and up to [`SLAB_MAX_BYTES`].
    #[inline(always)]
    pub(crate) const fn medium(bytes: usize) -> Self {
        Self(MEDIUM[(bytes - 1) / MEDIUM_STEP] as usize)
    }

    /// The same above [`SLAB_MAX_BYTES`] and up to [`RUN_MAX_BYTES`].
    #[inline(always)]
    const fn run(bytes: usize) -> Self {
        // In (2^k, 2^(k+1)] the two bits after the leading one of bytes - 1 name the quarter.
        let last = bytes - 1;
        let k = usize::BITS as usize - 1 - last.leading_zeros() as usize;
        Self((page::class_code(8) + (k - 7) * 4 + ((last >> (k - 2)) & 3)) * Self::STEP)
    }
}

/// The smallest class whose items hold `bytes`, for `bytes <= RUN_MAX_BYTES`.
#[inline(always)]
#[must_use]
pub const fn class_of(bytes: usize) -> usize {
    let place = if bytes <= SMALL_MAX_BYTES {
        Place::small(bytes)
    } else if bytes <= SLAB_MAX_BYTES {
        Place::medium(bytes)
    } else {
        return class_of_run(bytes);
    };
    place.class()
}

/// The same for `SLAB_MAX_BYTES < bytes <= RUN_MAX_BYTES`.
#[inline(always)]
pub(crate) const fn class_of_run(bytes: usize) -> usize {
    Place::run(bytes).class()
}

/// Item size of a class, bytes.
#[must_use]
pub const fn class_bytes(class: usize) -> usize {
    if class < SIZE_CLASSES.len() {
        return SIZE_CLASSES[class] as usize;
    }
    let steps = class - 8;
    let base = 128usize << (steps / 4);
    base + base / 4 * (steps % 4 + 1)
}

/// Bytes of the run of whole pages that serves a request, which is of no run class: one that needs an alignment, or is larger than all. Large
/// runs are multiples of 64 KiB, so that where one lay another will lie, on the same pages: what is between them would stay
/// unused, and what is dirty of it resident.
#[must_use]
pub const fn run_bytes(requested: usize, page: usize) -> usize {
    let step = if requested > RUN_MAX_BYTES { RUN_STEP_BYTES } else { page };
    if requested == 0 { page } else { requested.next_multiple_of(step) }
}

/// At most a thirty-second of the runs rounded to it.
const RUN_STEP_BYTES: usize = 64 * 1024;
const _: () = assert!(RUN_STEP_BYTES * 32 <= RUN_MAX_BYTES);

/// The run class whose items are exactly so large.
#[must_use]
pub const fn run_class(bytes: usize) -> Option<usize> {
    if bytes <= SLAB_MAX_BYTES || bytes > RUN_MAX_BYTES {
        return None;
    }
    let class = class_of(bytes);
    if class_bytes(class) == bytes { Some(class) } else { None }
}

/// The largest alignment that every item of a class has, bytes; at most a page.
#[must_use]
pub const fn class_align(class: usize) -> usize {
    let low_bit = 1 << class_bytes(class).trailing_zeros();
    if low_bit > 4096 { 4096 } else { low_bit }
}

/// The smallest slab class that holds `bytes` at a multiple of `align`, if `align` is at most a page.
#[must_use]
pub const fn class_of_aligned(bytes: usize, align: usize) -> Option<usize> {
    if bytes > SLAB_MAX_BYTES || align > 4096 {
        return None;
    }
    // A class that has the alignment is a multiple of it.
    let mut class = class_of((bytes + align - 1) & !(align - 1));
    while class < SLAB_CLASSES {
        if class_align(class) >= align {
            return Some(class);
        }
        class += 1;
    }
    None
}

/// Where things are in a slab of one class.
///
/// ```text
///  inline:   | Slab | tags by group | free bitmap | pad | item 0 | item 1 | … | tail |
///  off page: | Slab | tags by group | free bitmap |       | item 0 | item 1 | … | tail |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabLayout {
    /// Bytes of the slab, a power of two; slabs are aligned to it, so that an item's slab is a mask away.
    pub slab_bytes: usize,
    /// Items.
    pub items: usize,
    /// Offset of the first item: at the start of a granule, so that none is shared by an item and the header.
    pub first_offset: usize,
    /// From one group's tags to the next's; the first follow the descriptor.
    pub group_tag_bytes: usize,
    /// From the descriptor to the bitmap.
    pub bitmap_offset: usize,
    /// Whether the descriptor lies outside.
    pub offpage: bool,
    /// Bytes of the descriptor with bitmap and tags.
    pub descriptor_bytes: usize,
}

/// Bytes of the descriptor proper.
pub const DESCRIPTOR_BYTES: usize = 64;
/// Items up to this size share their slab with its descriptor. Above it the descriptor would cost a whole item, or
/// the items their page alignment.
const INLINE_MAX_BYTES: usize = 1024;

const fn round_up(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

const fn layout_for(class: usize, slab_bytes: usize) -> SlabLayout {
    let item_bytes = class_bytes(class);
    let offpage = item_bytes > INLINE_MAX_BYTES;
    let granule = 1 << page::granule_shift(page::class_code(class) as u64);
    // Words of pages name a group's tags by their address without its lower six bits.
    let group_tag_bytes = round_up(2 * page::GROUP_BYTES.div_ceil(granule), 64);
    let bitmap_offset = DESCRIPTOR_BYTES + slab_bytes.div_ceil(page::GROUP_BYTES) * group_tag_bytes;
    let mut items = slab_bytes / item_bytes;
    loop {
        let descriptor_bytes = round_up(bitmap_offset + items.div_ceil(64) * 8, 64);
        let align = if class_align(class) > granule { class_align(class) } else { granule };
        let first_offset = if offpage { 0 } else { round_up(descriptor_bytes, align) };
        if first_offset + items * item_bytes <= slab_bytes {
            return SlabLayout {
                slab_bytes,
                items,
                first_offset,
                group_tag_bytes,
                bitmap_offset,
                offpage,
                descriptor_bytes,
            };
        }
        items -= 1;
    }
}

/// Layout of a slab class: the smallest slab of at least 16 KiB that holds 8 items (4 where an item is larger than 32
/// KiB) with at most a tenth of it not items (uma(9) asks the same 90 %; the smallest classes pay their tags, two
/// bytes an item, and may fall to 80 %).
#[must_use]
pub const fn slab_layout(class: usize) -> SlabLayout {
    let item_bytes = class_bytes(class);
    let mut slab_bytes = 16 * 1024;
    loop {
        let layout = layout_for(class, slab_bytes);
        let used_percent = layout.items * item_bytes * 100 / slab_bytes;
        let want_percent = if item_bytes <= 64 { 80 } else { 90 };
        let want_items = if item_bytes > 32 * 1024 { 4 } else { 8 };
        if layout.items >= want_items && used_percent >= want_percent {
            return layout;
        }
        slab_bytes *= 2;
        assert!(slab_bytes <= 1024 * 1024);
    }
}

/// `ceil(2^64 / bytes)`: the 128-bit product with an offset in a slab has the item's index in its upper half, and in its
/// lower half a fraction that is less than the reciprocal itself exactly when the offset is the start of an item. (Offsets are
/// below 2^20 and sizes at most 2^16, so the product's error stays far below the fraction's last places that count.)
#[must_use]
pub const fn reciprocal(bytes: usize) -> u64 {
    (u64::MAX / bytes as u64) + 1
}

/// Most items a bucket of this class holds: what is cached is bounded in bytes as well as in number (uma(9) ends at 254 of
/// the smallest items).
#[must_use]
pub const fn bucket_max(class: usize) -> usize {
    let bytes = class_bytes(class);
    let by_bytes = if class < SLAB_CLASSES { 32 * 1024 / bytes } else { 384 * 1024 / bytes };
    let least = if class < SLAB_CLASSES { 4 } else { 1 };
    if by_bytes > 255 {
        255
    } else if by_bytes < least {
        least
    } else {
        by_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_size_is_the_smallest_that_holds_it() {
        for bytes in 1..=RUN_MAX_BYTES {
            let class = class_of(bytes);
            assert!(class_bytes(class) >= bytes, "{bytes}");
            assert!(class == 0 || class_bytes(class - 1) < bytes, "{bytes}");
        }
        assert_eq!(class_of(0), 0);
    }

    #[test]
    fn an_aligned_class_has_its_alignment() {
        for align in [16, 32, 64, 128, 256, 512, 1024, 2048, 4096] {
            for bytes in [0, 1, 17, 100, 1000, 3000, 5000, 16384] {
                let class = class_of_aligned(bytes, align).unwrap();
                assert!(class_bytes(class) >= bytes && class_bytes(class).is_multiple_of(align));
                if !slab_layout(class).offpage {
                    assert_eq!(slab_layout(class).first_offset % align, 0);
                }
            }
        }
        assert_eq!(class_of_aligned(100, 8192), None);
    }

    #[test]
    fn slabs_hold_what_they_say() {
        for class in 0..SLAB_CLASSES {
            let layout = slab_layout(class);
            let bytes = class_bytes(class);
            assert!(layout.slab_bytes.is_power_of_two() && layout.slab_bytes <= 1 << 19, "{class} {layout:?}");
            assert!(layout.first_offset + layout.items * bytes <= layout.slab_bytes);
            if !layout.offpage {
                assert!(layout.descriptor_bytes <= layout.first_offset);
            }
        }
    }

    #[test]
    fn division_by_reciprocal_is_exact() {
        for class in 0..SLAB_CLASSES {
            let bytes = class_bytes(class);
            for offset in 0..slab_layout(class).slab_bytes {
                let product = offset as u128 * u128::from(reciprocal(bytes));
                assert_eq!((product >> 64) as usize, offset / bytes);
                assert_eq!((product as u64) < reciprocal(bytes), offset.is_multiple_of(bytes));
            }
        }
    }
}
