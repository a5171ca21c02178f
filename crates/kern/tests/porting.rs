//! Figures that docs/porting.md states.

extern crate kernmalloc_kern as kern;

use kern::{ObjectLayout, SLOT_STRIDE_BYTES};

#[test]
fn sizes_are_those_of_the_document() {
    let document = include_str!("../../../docs/porting.md").split_whitespace().collect::<Vec<_>>().join(" ");
    let object = |slots, types| ObjectLayout { slots, types, libs: 1 }.bytes() >> 10;
    let sentences = [
        format!("about {} KiB for four CPUs and 256 types", object(5, 256)),
        format!("{} KiB for one CPU and 64 types", object(2, 64)),
        format!("{} KiB of records for the slot of each CPU", SLOT_STRIDE_BYTES >> 10),
    ];
    for sentence in sentences {
        assert!(document.contains(&sentence), "docs/porting.md does not say {sentence:?}");
    }
}
