//! More types than there are rows. In a program of its own: the table is everybody's.

use kernmalloc::{Kind, RegisterError, malloc_define};

#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

malloc_define!(M_EARLY, "early", "registered while there is room");
malloc_define!(M_LATE, "late", "first used when there is none");

#[test]
fn a_type_without_a_row_works_and_is_counted_with_the_rest() {
    let early = M_EARLY.scope(|| vec![0u8; 100]);
    let mut made = 0u32;
    let error = loop {
        match kernmalloc::register_type("one of many") {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error, RegisterError::TableFull);
    assert!(made >= 1000, "{made}");
    assert_eq!(kernmalloc::stats().filter(|row| row.name == "one of many").count(), made as usize);

    let rest = || kernmalloc::stats().find(|row| row.kind == Kind::Rest).unwrap();
    let before = rest().in_use;
    let late = M_LATE.scope(|| vec![0u8; 100]);
    assert_eq!(rest().in_use, before + 1);
    assert_eq!(kernmalloc::find("late"), None);
    // Types that have a row are as before.
    assert_eq!(M_EARLY.stats().in_use, 1);
    drop((early, late));
    assert_eq!((M_EARLY.stats().in_use, rest().in_use), (0, before));
}
