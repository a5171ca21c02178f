//! How a keg's slabs are laid out: arithmetic only, at the zone's creation.
//!
//! ```text
//!  inline:   | ZoneSlab | free bitmap | states | tags | pad | colour | item 0 | item 1 | … | tail |
//!  off page: | colour | item 0 | item 1 | … | tail |            ZoneSlab, bitmap and states in a record
//!  per CPU:  | item 0 | item 1 | … | to the page's end, then the same again for CPU 1, CPU 2, …
//! ```
//!
//! A slab grows page by page until at most a tenth of it is not items (uma(9) asks the same), the descriptor inside it
//! or outside, whichever wastes less. What is left over moves the first item from slab to slab by a cache line (its *colour*), so
//! that the same field of items at the same index does not always fall on the same set of the cache (Bonwick 1994).
#![forbid(unsafe_code)]

/// Bytes of the descriptor proper.
pub(crate) const DESCRIPTOR_BYTES: usize = 64;
/// Most items in a slab (uma(9)): a slab with more stays partly used for too long.
pub(crate) const MAX_ITEMS: usize = 512;
/// Pages a slab may grow to in search of less waste, beyond what one item needs.
const MAX_GROWTH: usize = 32;
/// Largest item, bytes: offsets in a slab then leave the reciprocal exact.
pub(crate) const MAX_ITEM_BYTES: usize = 1 << 30;
/// Largest alignment of an item, bytes.
pub(crate) const MAX_ALIGN: usize = 1 << 24;
const LINE_BYTES: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) item_bytes: usize,
    /// A power of two.
    pub(crate) align: usize,
    pub(crate) page_bytes: usize,
    /// The descriptor must lie outside: items are never written, or must not share a page with it.
    pub(crate) offpage: bool,
    /// Items lie so that the same field of neighbours falls on different cache lines.
    pub(crate) cache_spread: bool,
    /// Copies of each item, a page apart; 0 for ordinary items.
    pub(crate) copies: usize,
    /// An item has the tag of a malloc type, two bytes.
    pub(crate) type_tags: bool,
    /// Slabs do not grow beyond a page for the sake of less waste.
    pub(crate) one_page: bool,
}

/// Where things are in a slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KegLayout {
    /// From item to item.
    pub(crate) stride_bytes: usize,
    /// Alignment of every item.
    pub(crate) align: usize,
    /// Pages of a slab, in bytes.
    pub(crate) slab_bytes: usize,
    /// Alignment of a slab.
    pub(crate) slab_align: usize,
    pub(crate) items: usize,
    /// Offset of the first item in a slab of colour 0.
    pub(crate) first_offset: usize,
    /// From the descriptor to the items' states.
    pub(crate) states_offset: usize,
    /// From the descriptor to the items' type tags, where they have them.
    pub(crate) tags_offset: usize,
    /// Bytes of descriptor, bitmap, states and tags.
    pub(crate) descriptor_bytes: usize,
    pub(crate) offpage: bool,
    /// Bytes from colour to colour, and how many colours there are.
    pub(crate) colour_bytes: usize,
    pub(crate) colours: usize,
}

/// An item size or alignment that no slab can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unfit;

impl KegLayout {
    /// The layout with the least waste that is small enough.
    pub(crate) fn new(want: &Want) -> Result<Self, Unfit> {
        let page = want.page_bytes;
        if want.item_bytes == 0
            || want.item_bytes > MAX_ITEM_BYTES
            || !want.align.is_power_of_two()
            || want.align > MAX_ALIGN
        {
            return Err(Unfit);
        }
        let mut stride = want.item_bytes.next_multiple_of(want.align);
        if want.copies > 0 {
            return Self::per_cpu(want, stride);
        }
        if want.cache_spread && (stride / want.align).is_multiple_of(2) {
            // An odd number of alignment units is prime to every power of two of cache sets.
            stride += want.align;
        }
        let needed = stride.div_ceil(page);
        let mut best: Option<Self> = None;
        let growth = if want.one_page { 0 } else { MAX_GROWTH };
        for pages in needed..=needed + growth {
            for offpage in [false, true] {
                if want.offpage && !offpage {
                    continue;
                }
                let Some(layout) = Self::with(want, stride, pages * page, offpage) else { continue };
                let better = best.is_none_or(|best| {
                    layout.waste_bytes(want) * best.slab_bytes < best.waste_bytes(want) * layout.slab_bytes
                });
                if better {
                    best = Some(layout);
                }
                if layout.waste_bytes(want) * 10 <= layout.slab_bytes {
                    return Ok(layout);
                }
            }
        }
        best.ok_or(Unfit)
    }

    fn with(want: &Want, stride: usize, slab_bytes: usize, offpage: bool) -> Option<Self> {
        let mut items = (slab_bytes / stride).min(MAX_ITEMS);
        while items > 0 {
            let Parts { states_offset, tags_offset, descriptor_bytes } = Parts::of(items, want.type_tags);
            let first_offset = if offpage { 0 } else { descriptor_bytes.next_multiple_of(want.align) };
            if first_offset + items * stride <= slab_bytes {
                let colour_bytes = want.align.max(LINE_BYTES);
                let left = slab_bytes - first_offset - items * stride;
                return Some(Self {
                    stride_bytes: stride,
                    align: want.align,
                    slab_bytes,
                    slab_align: want.align.max(want.page_bytes),
                    items,
                    first_offset,
                    states_offset,
                    tags_offset,
                    descriptor_bytes,
                    offpage,
                    colour_bytes,
                    colours: left / colour_bytes + 1,
                });
            }
            items -= 1;
        }
        None
    }

    /// The first page is cut into items, and as many pages follow as there are further copies.
    fn per_cpu(want: &Want, stride: usize) -> Result<Self, Unfit> {
        if stride > want.page_bytes || want.align > want.page_bytes {
            return Err(Unfit);
        }
        let items = (want.page_bytes / stride).min(MAX_ITEMS);
        let Parts { states_offset, tags_offset, descriptor_bytes } = Parts::of(items, want.type_tags);
        Ok(Self {
            stride_bytes: stride,
            align: want.align,
            slab_bytes: want.page_bytes * want.copies,
            slab_align: want.page_bytes,
            items,
            first_offset: 0,
            states_offset,
            tags_offset,
            descriptor_bytes,
            offpage: true,
            colour_bytes: LINE_BYTES,
            colours: 1,
        })
    }

    /// Bytes of a slab that are not items, a descriptor outside counted.
    fn waste_bytes(&self, want: &Want) -> usize {
        let outside = if self.offpage { self.descriptor_bytes } else { 0 };
        self.slab_bytes - self.items * want.item_bytes + outside
    }

    /// Per cent of a slab that is items.
    pub(crate) fn efficiency_percent(&self, item_bytes: usize, copies: usize) -> usize {
        self.items * item_bytes * copies.max(1) * 100 / self.slab_bytes
    }
}

/// Where a descriptor's parts are.
struct Parts {
    states_offset: usize,
    tags_offset: usize,
    descriptor_bytes: usize,
}

impl Parts {
    fn of(items: usize, type_tags: bool) -> Self {
        let states_offset = DESCRIPTOR_BYTES + items.div_ceil(64) * 8;
        let tags_offset = (states_offset + items).next_multiple_of(2);
        let end = if type_tags { tags_offset + 2 * items } else { states_offset + items };
        Self { states_offset, tags_offset, descriptor_bytes: end.next_multiple_of(64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    fn want(item_bytes: usize, align: usize) -> Want {
        Want {
            item_bytes,
            align,
            page_bytes: PAGE,
            offpage: false,
            cache_spread: false,
            copies: 0,
            type_tags: false,
            one_page: false,
        }
    }

    fn check(want: &Want) -> KegLayout {
        let layout = KegLayout::new(want).unwrap();
        let at = format_args!("{want:?} {layout:?}").to_string();
        assert!(layout.items > 0 && layout.items <= MAX_ITEMS, "{at}");
        assert!(layout.stride_bytes >= want.item_bytes && layout.stride_bytes.is_multiple_of(want.align), "{at}");
        assert!(layout.slab_bytes.is_multiple_of(PAGE) && layout.slab_align.is_multiple_of(want.align.max(PAGE)));
        let last_colour = (layout.colours - 1) * layout.colour_bytes;
        let room = if want.copies > 0 { PAGE } else { layout.slab_bytes };
        assert!(layout.first_offset + last_colour + layout.items * layout.stride_bytes <= room, "{at}");
        assert!((layout.first_offset + last_colour).is_multiple_of(want.align), "{at}");
        if !layout.offpage {
            assert!(layout.first_offset >= layout.descriptor_bytes, "{at}");
        }
        layout
    }

    use std::string::ToString as _;

    #[test]
    fn every_size_and_alignment_fits_its_slab() {
        for item_bytes in (1..300).chain([512, 1000, 1024, 4000, 4096, 4097, 5000, 9000, 65_536, 70_001, 3 << 20]) {
            for align in [1, 8, 16, 64, 256, 4096, 16384] {
                check(&want(item_bytes, align));
                check(&Want { offpage: true, ..want(item_bytes, align) });
                check(&Want { cache_spread: true, ..want(item_bytes, align) });
                check(&Want { type_tags: true, ..want(item_bytes, align) });
            }
        }
    }

    #[test]
    fn at_most_a_tenth_is_wasted_where_the_sizes_allow_it() {
        for item_bytes in (64..4096).step_by(16) {
            let layout = check(&want(item_bytes, 16));
            assert!(layout.efficiency_percent(item_bytes, 0) >= 88, "{item_bytes}: {layout:?}");
        }
    }

    #[test]
    fn copies_lie_a_page_apart() {
        let layout = check(&Want { copies: 64, ..want(8, 8) });
        assert_eq!((layout.slab_bytes, layout.items), (64 * PAGE, 512));
        assert_eq!(KegLayout::new(&Want { copies: 2, ..want(PAGE + 1, 8) }), Err(Unfit));
    }

    #[test]
    fn spread_items_are_an_odd_number_of_units() {
        for item_bytes in [64, 128, 192, 256, 1024, 2048] {
            let layout = check(&Want { cache_spread: true, ..want(item_bytes, 64) });
            assert_eq!(layout.stride_bytes / 64 % 2, 1, "{item_bytes}");
        }
    }

    #[test]
    fn impossible_items_are_refused() {
        for (item_bytes, align) in [(0, 8), (8, 3), (8, 0), (MAX_ITEM_BYTES + 1, 8), (8, 2 * MAX_ALIGN)] {
            assert_eq!(KegLayout::new(&want(item_bytes, align)), Err(Unfit), "{item_bytes} {align}");
        }
    }
}
