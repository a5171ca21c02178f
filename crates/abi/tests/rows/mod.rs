//! A slot's row of one type, as the models use it.

use abi::{LineView, Row, SlotLine, TypeLine};
use kernmalloc_abi as abi;

#[derive(Default)]
#[repr(C)]
pub(crate) struct OneType {
    pub(crate) slot: SlotLine,
    pub(crate) line: TypeLine,
}

impl OneType {
    pub(crate) fn row(&self) -> Row<'_> {
        // SAFETY: 1. the first of a slot line and a line.
        unsafe { Row::new((&raw const *self).cast()) }
    }

    pub(crate) fn view(&self) -> LineView<'_> {
        LineView::new(&self.slot, &self.line, 0)
    }
}
