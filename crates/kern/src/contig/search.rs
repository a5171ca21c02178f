//! Which run of frames to take: arithmetic and hints only, nothing is changed here.
#![forbid(unsafe_code)]

use platform::{FrameRun, FrameUse, Frames, Paddr, Pfn};

use super::word::NPAGES_MAX;

/// A request for contiguous memory.
///
/// Start from [`ContigRequest::new`] and change what matters:
///
/// ```
/// # use kernmalloc_kern::contig::ContigRequest;
/// # use platform::Paddr;
/// // A ring for a device with 32 address bits, that counts in 16.
/// let ring = ContigRequest { high: Paddr(0xffff_ffff), boundary: 0x1_0000, zero: true, ..ContigRequest::new(0x6000) };
/// # let _ = ring;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContigRequest {
    /// Bytes, more than 0; rounded up to whole pages.
    pub size_bytes: usize,
    /// The lowest physical address that may be in the block.
    pub low: Paddr,
    /// The highest physical address that may be in the block.
    pub high: Paddr,
    /// The block's physical address is a multiple of this power of two; 0 (or anything below a page) for a page.
    pub alignment: u64,
    /// No multiple of this power of two, not smaller than the size, lies inside the block; 0 for no such limit.
    pub boundary: u64,
    /// The block is filled with zeros (`M_ZERO`). Its rounded size.
    pub zero: bool,
    /// The request may sleep (`M_WAITOK`), for laundering, moving, and memory that others free. It may fail all the
    /// same.
    pub wait: bool,
    /// Frames in use may be reclaimed; false is `M_NORECLAIM`.
    pub reclaim: bool,
}

impl ContigRequest {
    /// A request without constraints, that may sleep.
    #[must_use]
    pub const fn new(size_bytes: usize) -> ContigRequest {
        ContigRequest {
            size_bytes,
            low: Paddr(0),
            high: Paddr(u64::MAX),
            alignment: 0,
            boundary: 0,
            zero: false,
            wait: true,
            reclaim: true,
        }
    }

    /// The request in frames, or why there can be no such block.
    pub(super) const fn checked(&self, page_shift: u32) -> Result<Shape, &'static str> {
        let page = 1 << page_shift;
        if self.size_bytes == 0 {
            return Err("size is 0");
        }
        let size = match (self.size_bytes as u64).checked_next_multiple_of(page) {
            Some(size) if size >> page_shift <= NPAGES_MAX as u64 => size,
            _ => return Err("the size is beyond what a block can have"),
        };
        if self.alignment != 0 && !self.alignment.is_power_of_two() {
            return Err("alignment is not a power of two");
        }
        if self.boundary != 0 {
            if !self.boundary.is_power_of_two() {
                return Err("boundary is not a power of two");
            }
            if self.boundary < size {
                return Err("a block of this size crosses the boundary wherever it is");
            }
        }
        if self.low.0 > self.high.0 {
            return Err("low is above high");
        }
        // Whole frames between the bounds.
        let base = match self.low.0.checked_next_multiple_of(page) {
            Some(low) => low >> page_shift,
            None => return Err("no whole page lies above low"),
        };
        let end = match self.high.0.checked_add(1) {
            Some(end) => end >> page_shift,
            None => 1 << (u64::BITS - page_shift),
        };
        let align = if self.alignment <= page { 1 } else { self.alignment >> page_shift };
        // Not less than the size, so a page at least.
        let boundary = self.boundary >> page_shift;
        Ok(Shape { npages: (size >> page_shift) as usize, base, end, align, boundary })
    }
}

/// A checked request: all in frames.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) npages: usize,
    /// The lowest frame allowed, and one more than the highest.
    base: u64,
    end: u64,
    /// Powers of two; `boundary` may be 0.
    align: u64,
    boundary: u64,
}

impl Shape {
    /// The highest first frame, not above `most`, that alignment and boundary allow.
    fn place_below(&self, most: u64) -> u64 {
        let aligned = most & !(self.align - 1);
        if self.boundary == 0 {
            return aligned;
        }
        let last = aligned + (self.npages as u64 - 1);
        if aligned / self.boundary == last / self.boundary {
            return aligned;
        }
        // It reaches over this multiple, which is not 0. Below it, a boundary's worth of room, one place is enough: if
        // alignment is less it divides the boundary, and otherwise an aligned start is never crossed at all.
        let multiple = last & !(self.boundary - 1);
        (multiple - self.npages as u64) & !(self.align - 1)
    }
}

/// What may be done to have a frame; each pass may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pass {
    Free,
    Cached,
    Launder,
    Relocate,
}

impl Pass {
    /// The passes of a request, in order.
    pub(super) const fn allowed(request: &ContigRequest) -> &'static [Pass] {
        match (request.reclaim, request.wait) {
            (false, _) => &[Pass::Free],
            (true, false) => &[Pass::Free, Pass::Cached],
            (true, true) => &[Pass::Free, Pass::Cached, Pass::Launder, Pass::Relocate],
        }
    }

    /// The first pass that can have a frame used like this.
    pub(super) const fn needed(usage: FrameUse) -> Option<Pass> {
        match usage {
            FrameUse::Free => Some(Pass::Free),
            FrameUse::Cached => Some(Pass::Cached),
            FrameUse::Dirty => Some(Pass::Launder),
            FrameUse::Movable => Some(Pass::Relocate),
            FrameUse::Fixed => None,
        }
    }

    /// What it costs to have a frame in this way, by the time that somebody waits: to read again what was dropped,
    /// perhaps; to copy a page and change page tables on all processors; to write to disk.
    const fn cost(self) -> u64 {
        match self {
            Pass::Free => 0,
            Pass::Cached => 1,
            Pass::Relocate => 2,
            Pass::Launder => 16,
        }
    }
}

/// How many frames a pass may be refused before it gives up. Each refusal costs a look over all frames; FreeBSD
/// (`vm_page_reclaim_contig`) keeps as many runs to try.
pub(super) const REFUSALS_MAX: usize = 16;

/// Frames that looked as if they could be had, and couldn't.
pub(super) struct Refused {
    frames: [Pfn; REFUSALS_MAX],
    count: usize,
}

impl Refused {
    pub(super) const fn new() -> Refused {
        Refused { frames: [Pfn(0); REFUSALS_MAX], count: 0 }
    }

    pub(super) fn push(&mut self, pfn: Pfn) {
        if self.count < REFUSALS_MAX {
            self.frames[self.count] = pfn;
            self.count += 1;
        }
    }

    fn contains(&self, pfn: Pfn) -> bool {
        self.frames[..self.count].contains(&pfn)
    }
}

/// The cheapest run for a pass; of equals the highest, for low memory is what other devices will ask for. Time linear
/// in the frames between the bounds: each is looked at twice at most.
pub(super) fn best_run<F: Frames>(frames: &F, shape: &Shape, pass: Pass, refused: &Refused) -> Option<FrameRun> {
    let weigh = |pfn: u64| {
        let pfn = Pfn(pfn);
        let needed = Pass::needed(frames.usage(pfn)).filter(|&needed| needed <= pass)?;
        (!refused.contains(pfn)).then(|| needed.cost())
    };
    let mut best: Option<(u64, FrameRun)> = None;
    let segments = (0..).take_while(|&index| frames.segment(index).is_some()).count();
    for segment in (0..segments).rev().filter_map(|index| frames.segment(index)) {
        let base = segment.first.0.max(shape.base);
        let end = segment.end().0.min(shape.end);
        let found = best_in(base, end, shape, best.map(|(cost, _)| cost), weigh);
        if let Some((cost, first)) = found {
            best = Some((cost, FrameRun { first: Pfn(first), npages: shape.npages }));
            if cost == 0 {
                break;
            }
        }
    }
    best.map(|(_, run)| run)
}

/// The cheapest run in `base..end` that costs less than `most`, with its cost; of equals the highest.
///
/// A window slides down over the frames. What leaves it is weighed again and may have changed meanwhile: then the sum
/// is a little wrong, and a run is chosen that is not quite the cheapest. Nobody is harmed, and nothing has to be
/// remembered.
fn best_in(
    base: u64,
    end: u64,
    shape: &Shape,
    mut most: Option<u64>,
    weigh: impl Fn(u64) -> Option<u64>,
) -> Option<(u64, u64)> {
    let npages = shape.npages as u64;
    let mut best = None;
    // The window's first frame; what of it is weighed: `from..to`, costing `cost`.
    let mut first = shape.place_below(end.checked_sub(npages)?);
    let (mut from, mut to, mut cost) = (first + npages, first + npages, 0_u64);
    while first >= base {
        let window_end = first + npages;
        if window_end <= from {
            (from, to, cost) = (window_end, window_end, 0);
        }
        while to > window_end {
            to -= 1;
            cost = cost.saturating_sub(weigh(to).unwrap_or(0));
        }
        let mut blocked = None;
        while from > first {
            match weigh(from - 1) {
                Some(more) => {
                    cost += more;
                    from -= 1;
                }
                None => {
                    blocked = Some(from - 1);
                    break;
                }
            }
        }
        let next = match blocked {
            // The run must end below it.
            Some(frame) => frame.checked_sub(npages),
            None => {
                if most.is_none_or(|most| cost < most) {
                    (best, most) = (Some((cost, first)), Some(cost));
                    if cost == 0 {
                        break;
                    }
                }
                first.checked_sub(1)
            }
        };
        let Some(next) = next else { break };
        first = shape.place_below(next);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn shape(npages: usize, align: u64, boundary: u64) -> Shape {
        Shape { npages, base: 0, end: u64::MAX, align, boundary }
    }

    #[test]
    fn places_are_the_highest_that_alignment_and_boundary_allow() {
        for (npages, align, boundary) in
            (1..9).flat_map(|n| [1, 2, 4, 8, 16].into_iter().flat_map(move |a| [0, 8, 16, 64].map(|b| (n, a, b))))
        {
            let shape = shape(npages, align, boundary);
            let allowed = |first: u64| {
                let last = first + npages as u64 - 1;
                first.is_multiple_of(align) && (boundary == 0 || first / boundary == last / boundary)
            };
            for most in 0..130 {
                let expected = (0..=most).rev().find(|&first| allowed(first));
                assert_eq!(Some(shape.place_below(most)), expected, "{npages} {align} {boundary} {most}");
            }
        }
    }

    #[test]
    fn the_window_finds_what_trying_every_place_finds() {
        // Costs of frames by a fixed rule that is not periodic in small numbers; some are blocked.
        for seed in 0..400_u64 {
            let weigh = |pfn: u64| match (pfn * 2654435761 + seed * 40503) >> 5 & 15 {
                0 | 1 => None,
                n if n < 9 => Some(0),
                n => Some(n - 8),
            };
            for (npages, align, boundary) in [(1, 1, 0), (3, 1, 0), (4, 2, 8), (5, 4, 0), (6, 1, 8)] {
                let shape = shape(npages, align, boundary);
                let fits = |first: &u64| shape.place_below(*first) == *first;
                let all: Vec<(u64, u64)> = (10..70 - npages as u64 + 1)
                    .filter(fits)
                    .filter_map(|first| {
                        let cost: Option<u64> = (first..first + npages as u64).map(weigh).sum();
                        Some((cost?, first))
                    })
                    .collect();
                let cheapest = all.iter().map(|&(cost, _)| cost).min();
                let expected = all.iter().rev().find(|&&(cost, _)| Some(cost) == cheapest).copied();
                assert_eq!(best_in(10, 70, &shape, None, weigh), expected, "seed {seed}, {npages} frames");
            }
        }
    }

    #[test]
    fn frames_between_the_bounds_are_whole() {
        let checked = |low: u64, high: u64| {
            let request = ContigRequest { low: Paddr(low), high: Paddr(high), ..ContigRequest::new(1) };
            request.checked(12).map(|shape| (shape.base, shape.end))
        };
        assert_eq!(checked(0, 0xffff_ffff), Ok((0, 0x10_0000)));
        assert_eq!(checked(1, 0x2fff), Ok((1, 3)));
        assert_eq!(checked(0x1000, 0x2ffe), Ok((1, 2)));
        assert_eq!(checked(0, u64::MAX), Ok((0, 1 << 52)));
        assert_eq!(checked(2, 1), Err("low is above high"));
        assert!(checked(u64::MAX, u64::MAX).is_err());
    }
}
