//! An arena in the layouts of FreeBSD's kernel debugger, ddb(4), which scripts read.
#![forbid(unsafe_code)]

use super::RawArena;
use crate::tag::{Kind, Tag};
use core::fmt;

/// Sizes that have a row of their own in the table, in quanta (`VMEM_OPTVALUE`); then one row to each doubling.
const EXACT: usize = 32;
/// Rows: 32, and the doublings from 64 quanta to the last (`VMEM_MAXORDER`).
const ROWS: usize = EXACT + (usize::BITS - EXACT.ilog2()) as usize - 1;

/// The row of a size. As FreeBSD has it, sizes between 32 and 64 quanta are in the row of 32.
fn row_of(quanta: usize) -> usize {
    if quanta <= EXACT { quanta - 1 } else { EXACT - 1 + (quanta.ilog2() - EXACT.ilog2()) as usize }
}

/// The least size in a row, in quanta.
fn row_size(row: usize) -> usize {
    if row < EXACT { row + 1 } else { 1 << (row + 1 - EXACT + EXACT.ilog2() as usize) }
}

/// Segments of one kind and row.
#[derive(Clone, Copy, Default)]
struct Sum {
    segments: usize,
    size: usize,
}

impl RawArena {
    /// Writes the arena as `show vmem` does: sums, and how many segments of which size are in use and free.
    ///
    /// Takes no lock and calls nothing but the writer.
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "show vmem")]
    pub fn show(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let counts = self.counts();
        self.show_name(out)?;
        writeln!(out, "\tquantum:\t{}", self.quantum())?;
        writeln!(out, "\tsize:\t{}", self.total_size)?;
        writeln!(out, "\tinuse:\t{}", self.alloc_size)?;
        writeln!(out, "\tfree:\t{}", self.total_size - self.alloc_size)?;
        writeln!(out, "\tbusy tags:\t{}", counts.allocated)?;
        writeln!(out, "\tfree tags:\t{}", counts.tags_free)?;
        let mut rows = [[Sum::default(); 2]; ROWS];
        for tag in self.from(self.first) {
            let column = match tag.kind.get() {
                Kind::Allocated => 0,
                Kind::Free => 1,
                Kind::Spare | Kind::Span | Kind::ImportedSpan => continue,
            };
            let sum = &mut rows[row_of(tag.size.get() / self.quantum())][column];
            *sum = Sum { segments: sum.segments + 1, size: sum.size + tag.size.get() };
        }
        writeln!(out, "\t\t\tinuse\tsize\t\tfree\tsize")?;
        for (row, [used, free]) in rows.iter().enumerate().filter(|(_, sums)| sums.iter().any(|sum| sum.segments != 0))
        {
            writeln!(
                out,
                "\t{:<15} {}\t{:<15} {}\t{:<16}",
                row_size(row) * self.quantum(),
                used.segments,
                used.size,
                free.segments,
                free.size
            )?;
        }
        Ok(())
    }

    /// Writes the arena as `show vmemdump` does: every boundary tag in address order, then the free ones by size.
    ///
    /// Takes no lock and calls nothing but the writer.
    ///
    /// # Errors
    /// The writer's.
    #[doc(alias = "show vmemdump")]
    pub fn show_dump(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        self.show_name(out)?;
        for tag in self.from(self.first) {
            show_tag(&tag, out)?;
        }
        let mut last = None;
        for class in self.candidate_lists(self.quantum()) {
            for tag in self.lists.list(class) {
                let row = row_of(tag.size.get() / self.quantum());
                if last != Some(row) {
                    writeln!(out, "freelist[{row}]")?;
                    last = Some(row);
                }
                show_tag(&tag, out)?;
            }
        }
        Ok(())
    }

    fn show_name(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        writeln!(out, "vmem {:p} '{}'", core::ptr::from_ref(self), self.name())
    }
}

/// A tag with FreeBSD's number and name of its kind.
fn show_tag(tag: &Tag, out: &mut dyn fmt::Write) -> fmt::Result {
    let (number, kind) = match tag.kind.get() {
        Kind::ImportedSpan => (1, "span"),
        Kind::Span => (2, "static span"),
        Kind::Free => (3, "free"),
        Kind::Allocated => (4, "busy"),
        Kind::Spare => (0, "BOGUS"),
    };
    let (base, size) = (tag.base.get(), tag.size.get());
    writeln!(out, "\t{:p}: {base:x} {size:x}, {number}({kind})", core::ptr::from_ref(tag))
}

#[cfg(test)]
mod tests {
    use super::{ROWS, row_of, row_size};

    #[test]
    fn rows_are_those_of_freebsd() {
        for (quanta, row, least) in [(1, 0, 1), (31, 30, 31), (32, 31, 32), (33, 31, 32), (63, 31, 32), (64, 32, 64)] {
            assert_eq!((row_of(quanta), row_size(row)), (row, least), "{quanta}");
        }
        assert_eq!((row_of(127), row_of(128), row_size(33)), (32, 33, 128));
        assert_eq!((row_of(usize::MAX), row_size(ROWS - 1)), (ROWS - 1, 1 << 63));
    }
}
