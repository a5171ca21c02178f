//! Bad frees: one report that names the address and who allocated the block, then abort; or, when asked to report only, a heap
//! that is still sound.

use kernmalloc_conformance::{Case, Host, cc};
use std::ops::Range;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Copy)]
enum Block {
    /// Of ours: the report names where it was allocated.
    Ours,
    /// Nobody's: the report says so.
    Foreign,
}

/// Where a function lies in its file.
fn function(program: &Path, name: &str) -> Range<u64> {
    let out = Command::new("nm").args(["-S", "--defined-only"]).arg(program).output().expect("nm runs");
    let table = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = table.lines().find(|line| line.ends_with(&format!(" {name}"))).expect("the program has that function");
    let mut numbers = line.split(' ').map_while(|word| u64::from_str_radix(word, 16).ok());
    let (from, length) = (numbers.next().expect("an address"), numbers.next().expect("a length"));
    from..from + length
}

/// `mistake` is the argument of `badfree.c`.
fn reported(mistake: &str, says: &[&str], block: Block) {
    let program = cc("badfree");
    let case = Case::new(&program).args([mistake]);

    let run = case.run(Host::Kernmalloc);
    let address = run.text().lines().next().unwrap_or_default().to_owned();
    let report = run.errors();
    assert!(address.starts_with("0x"), "{mistake}: {run}");
    assert!(run.ended_by(libc::SIGABRT), "{mistake}: did not abort: {run}");
    assert!(says.iter().any(|text| report.contains(text)), "{mistake}: the report says none of {says:?}: {run}");
    assert!(report.contains(&address), "{mistake}: the report does not name {address}: {run}");
    if matches!(block, Block::Ours) {
        let place = report.lines().find_map(|line| line.trim().strip_prefix("allocated by:"));
        let offset = place.and_then(|place| u64::from_str_radix(place.trim().strip_prefix("badfree+0x")?, 16).ok());
        let site = function(&program, "victim_site");
        assert!(
            offset.is_some_and(|at| site.contains(&at)),
            "{mistake}: the report does not say that victim_site ({site:#x?}) allocated the block: {run}"
        );
    }

    let run = case.env("KERNMALLOC", "kern.malloc.on_misuse=report").run(Host::Kernmalloc);
    let report = run.errors();
    assert!(run.status.success(), "{mistake}, report only: {run}");
    assert!(run.text().ends_with("\nsound\n"), "{mistake}, report only: {run}");
    assert!(says.iter().any(|text| report.contains(text)), "{mistake}, report only: no report: {run}");
}

const DUPLICATE: &[&str] = &["Duplicate free of"];
const INTERIOR: &[&str] = &["Invalid free of", "Unaligned free of"];
const FOREIGN: &[&str] = &["not allocated by", "Invalid free of"];

macro_rules! mistakes {
    ($($test:ident: $mistake:literal, $says:expr, $block:ident;)*) => {
        $(#[test]
        fn $test() {
            reported($mistake, $says, Block::$block);
        })*
    };
}

mistakes! {
    freed_twice_at_once: "double", DUPLICATE, Ours;
    freed_twice_with_traffic_between: "double-later", DUPLICATE, Ours;
    freed_twice_with_a_neighbour_between: "double-after-neighbour", DUPLICATE, Ours;
    freed_again_by_another_thread: "double-in-thread", DUPLICATE, Ours;
    freed_after_another_thread_did: "double-of-thread", DUPLICATE, Ours;
    freed_after_realloc_moved_it: "double-realloc", DUPLICATE, Ours;
    reallocated_after_free: "realloc-of-freed", &["Duplicate free of", "Invalid realloc of", "free"], Ours;
    inside_a_block: "interior", INTERIOR, Ours;
    one_byte_off: "unaligned", INTERIOR, Ours;
    inside_and_unaligned: "interior-unaligned", INTERIOR, Ours;
    large_freed_twice_at_once: "large-double", DUPLICATE, Ours;
    large_freed_twice_with_traffic_between: "large-double-later", DUPLICATE, Ours;
    large_freed_again_by_another_thread: "large-double-in-thread", DUPLICATE, Ours;
    large_inside_a_block: "large-interior", INTERIOR, Ours;
    large_one_byte_off: "large-unaligned", INTERIOR, Ours;
    a_wild_address: "wild", FOREIGN, Foreign;
    a_small_number: "wild-low", FOREIGN, Foreign;
    a_poisoned_pointer: "wild-noncanonical", FOREIGN, Foreign;
    an_address_never_handed_out: "wild-in-heap", FOREIGN, Foreign;
    memory_from_mmap: "mapped", FOREIGN, Foreign;
    memory_of_the_stack: "stack", FOREIGN, Foreign;
    static_memory: "static", FOREIGN, Foreign;
}

/// Nothing is wrong, nothing is said.
#[test]
fn a_program_without_mistakes_is_not_reported() {
    for args in [vec!["3", "8", "200000"], vec!["4", "1", "200000"]] {
        let run = Case::new(cc("random_ops")).args(args).run(Host::Kernmalloc).good();
        assert_eq!(run.errors(), "");
    }
}
