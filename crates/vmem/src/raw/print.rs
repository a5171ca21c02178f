//! An arena, written down for a person.
#![forbid(unsafe_code)]

use super::{RawArena, Size};
use crate::tag::SegmentKind;
use core::fmt;

impl RawArena {
    /// Writes down sums, and free segments by size class: the first thing to look at. `show vmem` of a kernel debugger.
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "vmem_print")]
    pub fn print_summary(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let counts = self.counts();
        writeln!(out, "arena {}: quantum {:#x}", self.name(), self.quantum())?;
        writeln!(
            out,
            "  {:#x} in {} spans: {:#x} allocated in {}, {:#x} free in {}, largest {:#x}",
            self.size(Size::Total),
            counts.spans,
            self.size(Size::Alloc),
            counts.allocated,
            self.size(Size::Free),
            counts.free,
            self.max_free(),
        )?;
        writeln!(out, "  tags {} free {}, buckets {}", counts.tags, counts.tags_free, counts.buckets)?;
        writeln!(out, "  allocated {} times, freed {}, no space {}", counts.allocs, counts.frees, counts.fails)?;
        for class in self.candidate_lists(self.quantum()) {
            let (mut segments, mut size, mut least, mut most) = (0_usize, 0, usize::MAX, 0);
            for tag in self.lists.list(class) {
                let this = tag.size.get();
                (segments, size, least, most) = (segments + 1, size + this, least.min(this), most.max(this));
            }
            write!(out, "  free of size {least:#x}")?;
            if least != most {
                write!(out, "..={most:#x}")?;
            }
            writeln!(out, ": {segments}, together {size:#x}")?;
        }
        Ok(())
    }

    /// Writes the arena down for a person: [`RawArena::print_summary`], then every span with its segments. For
    /// the layout of a kernel debugger see [`RawArena::show_dump`].
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "vmem_printall")]
    pub fn print(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.print_summary(out)?;
        self.print_segments(out)
    }

    pub(crate) fn print_segments(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        for segment in self.segments() {
            let (indent, kind) = match segment.kind {
                SegmentKind::Span { imported: false } => ("  ", "span"),
                SegmentKind::Span { imported: true } => ("  ", "span, imported"),
                SegmentKind::Allocated => ("    ", "allocated"),
                SegmentKind::Free => ("    ", "free"),
            };
            writeln!(out, "{indent}{:#x}..={:#x} {:#x} {kind}", segment.base, segment.last(), segment.size)?;
        }
        Ok(())
    }
}
