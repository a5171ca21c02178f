//! Why an operation of an arena did not happen.
#![forbid(unsafe_code)]

use crate::{Segment, SegmentKind};
use core::fmt;

/// Why an operation did not happen. Whatever it says, the arena is as it was before the call.
///
/// Shortage ([`Error::is_shortage`]) may pass when somebody frees, adds or donates. Everything else is a mistake of
/// the caller, and names what was found in place of what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// No free segment meets the request.
    NoSpace,
    /// The operation needs more boundary tags than are free: donate some and call again.
    NoTags,
    /// The request contradicts itself or the quantum, so that no arena of this kind could ever meet it.
    Invalid(&'static str),
    /// The range to be added has integers in common with this span.
    Overlap(Segment),
    /// No span begins (or, for an extension, ends) there.
    NoSpan {
        /// Where it was looked for.
        addr: usize,
    },
    /// The span cannot be removed, because this segment of it is allocated.
    Busy(Segment),
    /// No allocated segment begins at the address.
    NotAllocated {
        /// The address that the caller gave.
        addr: usize,
        /// The segment that holds the address: free (freed twice?) or allocated with another base; `None` if the address is
        /// in no span.
        found: Option<Segment>,
    },
    /// The segment at the address is allocated, but its size is not what the caller says.
    WrongSize {
        /// The address that the caller gave.
        addr: usize,
        /// The size that the caller gave.
        given: usize,
        /// The size that was allocated.
        allocated: usize,
    },
}

impl Error {
    /// Whether the operation may succeed later, with the same arguments.
    #[must_use]
    pub const fn is_shortage(&self) -> bool {
        matches!(self, Error::NoSpace | Error::NoTags)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::NoSpace => f.write_str("no free segment meets the request"),
            Error::NoTags => f.write_str("no free boundary tag"),
            Error::Invalid(why) => write!(f, "impossible request: {why}"),
            Error::Overlap(span) => write!(f, "the range overlaps {span}"),
            Error::NoSpan { addr } => write!(f, "no span at {addr:#x}"),
            Error::Busy(segment) => write!(f, "the span is in use: {segment}"),
            Error::NotAllocated { addr, found: None } => write!(f, "{addr:#x} is in no span"),
            Error::NotAllocated { addr, found: Some(found) } => match found.kind {
                SegmentKind::Allocated => write!(f, "{addr:#x} is not the start of its segment, {found}"),
                _ => write!(f, "{addr:#x} is free already, in {found}"),
            },
            Error::WrongSize { addr, given, allocated } => {
                write!(f, "{addr:#x} has size {allocated:#x}, freed with size {given:#x}")
            }
        }
    }
}

impl core::error::Error for Error {}
