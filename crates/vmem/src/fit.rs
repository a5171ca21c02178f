//! Requests: what may be asked of an arena, and where in a free range an answer lies. Arithmetic only.
#![forbid(unsafe_code)]

use crate::Error;

/// Which of the free segments that can serve a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// Whichever is found at once. Constant time as long as a segment exists that is big enough by its list alone, with
    /// the worst placement that alignment and `nocross` can force; otherwise a search through the free segments that
    /// remain, so that a request fails only if nothing can serve it. `min` and `max` always search.
    #[default]
    #[doc(alias = "VM_INSTANTFIT")]
    #[doc(alias = "M_FIRSTFIT")]
    Instant,
    /// The smallest. Descends the tree of the request's class and, if nothing there serves, of one class more (with
    /// constraints, goes through the free segments by size until one serves).
    #[doc(alias = "VM_BESTFIT")]
    #[doc(alias = "M_BESTFIT")]
    Best,
    /// The one with the lowest address at which the request can be placed, in the whole arena. Walks all
    /// free segments of the request's class and above: for identifiers that must stay small, not for speed.
    #[doc(alias = "VM_FIRSTFIT")]
    First,
    /// The lowest address above the last one that was given out in this way, or the lowest of all if there is none: a number
    /// is reused as late as possible. Walks the segments from there. Removing the span where the last one lay starts
    /// again at the lowest.
    #[doc(alias = "VM_NEXTFIT")]
    #[doc(alias = "M_NEXTFIT")]
    Next,
}

/// A request with constraints, for [`RawArena::xalloc`](crate::RawArena::xalloc).
///
/// Start from [`Request::new`] and change what matters:
///
/// ```
/// # use kernmalloc_vmem::Request;
/// let dma = Request { align: 0x1000, nocross: 0x1_0000, max: 0xffff_ffff, ..Request::new(0x3000) };
/// # let _ = dma;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Addresses wanted, more than 0; rounded up to the quantum.
    pub size: usize,
    /// A power of two, or 0 for the quantum. `address % align == phase`.
    pub align: usize,
    /// Less than `align`, and a multiple of the quantum.
    pub phase: usize,
    /// A power of two not smaller than the size, or 0 for none: no multiple of it lies inside the range (it may be the
    /// first address).
    pub nocross: usize,
    /// The lowest address that may be in the range.
    pub min: usize,
    /// The highest address that may be in the range (as in NetBSD and FreeBSD; illumos counts one more).
    pub max: usize,
    /// Which free segment to take.
    pub fit: Fit,
}

impl Request {
    /// A request without constraints, instant fit.
    #[must_use]
    pub const fn new(size: usize) -> Request {
        Request { size, align: 0, phase: 0, nocross: 0, min: 0, max: usize::MAX, fit: Fit::Instant }
    }

    /// The request in whole quanta, or why there can be no such thing.
    pub(crate) const fn checked(&self, quantum: usize) -> Result<Shape, Error> {
        let size = match round_up(self.size, quantum) {
            Ok(size) => size,
            Err(error) => return Err(error),
        };
        if self.align != 0 && !self.align.is_power_of_two() {
            return Err(Error::Invalid("align is not a power of two"));
        }
        let align = if self.align > quantum { self.align } else { quantum };
        if self.phase != 0 && self.phase >= self.align {
            return Err(Error::Invalid("phase is not less than align"));
        }
        if self.phase & (quantum - 1) != 0 {
            return Err(Error::Invalid("phase is not a multiple of the quantum"));
        }
        if self.nocross != 0 {
            if !self.nocross.is_power_of_two() {
                return Err(Error::Invalid("nocross is not a power of two"));
            }
            // Within a block of `nocross`, the lowest offset of the right phase leaves most room: if that isn't
            // enough, no block has it. (With align > nocross there is only this one offset.)
            let room = self.nocross - (self.phase & (self.nocross - 1));
            if size > room {
                return Err(Error::Invalid("with this size and phase every range crosses nocross"));
            }
        }
        if self.min > self.max {
            return Err(Error::Invalid("min is above max"));
        }
        Ok(Shape { size, align, phase: self.phase, nocross: self.nocross, min: self.min, max: self.max, quantum })
    }
}

/// Rounds a size up to a multiple of the quantum. A size that does not exist in quanta is larger than every arena, and
/// that is what the answer says.
pub(crate) const fn round_up(size: usize, quantum: usize) -> Result<usize, Error> {
    if size == 0 {
        return Err(Error::Invalid("size is 0"));
    }
    match size.checked_add(quantum - 1) {
        Some(sum) => Ok(sum & !(quantum - 1)),
        None => Err(Error::NoSpace),
    }
}

/// A checked request: `size`, `align`, `phase` are multiples of the quantum, `align` is at least that.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) size: usize,
    align: usize,
    phase: usize,
    nocross: usize,
    min: usize,
    max: usize,
    quantum: usize,
}

impl Shape {
    /// Without constraints; `size` is rounded.
    pub(crate) const fn plain(size: usize, quantum: usize) -> Shape {
        Shape { size, align: quantum, phase: 0, nocross: 0, min: 0, max: usize::MAX, quantum }
    }

    /// The lowest address of a range that meets the request and lies in `base..=last`.
    pub(crate) fn place(&self, base: usize, last: usize) -> Option<usize> {
        let low = base.max(self.min);
        let last = last.min(self.max);
        let addr = self.aligned_from(low)?;
        if self.holds(addr, last)? {
            return Some(addr);
        }
        // Crosses: the next chance is in the block that begins at the multiple inside. One step is enough, for
        // `checked` has seen that the right phase from a block's start does not cross.
        let boundary = (addr | (self.nocross - 1)).checked_add(1)?;
        let addr = self.aligned_from(boundary)?;
        (self.holds(addr, last)?).then_some(addr)
    }

    /// The lowest address from `low` on with the right phase.
    fn aligned_from(&self, low: usize) -> Option<usize> {
        // Adding the distance modulo align; the quantum divides align and phase, so a `low` in the middle of a quantum
        // (from `min`) is rounded up on the way.
        low.checked_add(self.phase.wrapping_sub(low) & (self.align - 1))
    }

    /// `None`: the range ends beyond `last`. Otherwise whether it keeps `nocross`.
    fn holds(&self, addr: usize, last: usize) -> Option<bool> {
        if addr > last || last - addr < self.size - 1 {
            return None;
        }
        Some(self.nocross == 0 || (addr ^ (addr + (self.size - 1))) & !(self.nocross - 1) == 0)
    }

    /// The size of a range which surely has a place for the request, if the range begins at a multiple of `start_align`
    /// (a power of two): what has to be imported. `None` if no size is sure, because where an import lies is for its source
    /// to say and the request has bounds, or because the size is no number.
    pub(crate) fn import_size(&self, start_align: usize) -> Option<usize> {
        let sure = self.sure_size()?;
        if self.align > start_align || self.nocross > start_align {
            return Some(sure);
        }
        // All multiples of `start_align` are alike to this request: what serves from 0 on serves from any of them.
        Some(self.place(0, usize::MAX)? + self.size)
    }

    /// The size of a free segment in which the request has a place wherever the segment lies; `None` if there is
    /// no such size.
    pub(crate) const fn sure_size(&self) -> Option<usize> {
        if self.min != 0 || self.max != usize::MAX {
            return None;
        }
        // Alignment skips at most this much.
        let skip = self.align - self.quantum;
        let extra = if self.nocross == 0 {
            skip
        } else {
            // The boundary crossed is at most size - quantum after the first try; from there alignment again.
            match (self.size - self.quantum).checked_add(skip) {
                Some(second) => match second.checked_add(skip) {
                    Some(extra) => extra,
                    None => return None,
                },
                None => return None,
            }
        };
        self.size.checked_add(extra)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every request with these numbers, at every base: the segment of the sure size serves, and when only
    /// alignment is asked for, a smaller one does not always.
    #[test]
    fn a_segment_of_the_sure_size_serves_wherever_it_lies() {
        const POWERS: [usize; 7] = [0, 1, 2, 4, 8, 16, 32];
        for quantum in [1, 4] {
            for (size, align, nocross) in (1..20).flat_map(|size| {
                POWERS.iter().flat_map(move |&align| POWERS.iter().map(move |&nocross| (size, align, nocross)))
            }) {
                for phase in (0..align.max(1)).step_by(quantum) {
                    let request = Request { size, align, phase, nocross, ..Request::new(1) };
                    let Ok(shape) = request.checked(quantum) else { continue };
                    let sure = shape.sure_size().unwrap();
                    let serves = |size: usize| {
                        (0..64).step_by(quantum).all(|base| size != 0 && shape.place(base, base + size - 1).is_some())
                    };
                    assert!(serves(sure), "{request:?}");
                    assert!(nocross != 0 || !serves(sure - quantum), "{request:?}");
                }
            }
        }
        let narrow = Request { max: 100, ..Request::new(1) };
        assert!(narrow.checked(1).unwrap().sure_size().is_none());
    }
}
