//! Runs programs plainly and under kernmalloc, and holds the two against each other.
//!
//! # Theory
//!
//! The promise is that a program cannot tell: same output, same status. So every test here starts a real program twice,
//! or a test program (`tests/programs`) that checks itself. Nothing of the allocator is linked: what is tested is
//! the command that users start, found by [`Host`].
//!
//! A test needs its programs installed (`cargo xtask test` does that) and fails without them. Every program is bounded
//! in time, by a limit that only a hang reaches; nothing else here looks at a clock.

mod build;
mod host;
mod json;
mod process;
mod sandbox;

pub use build::{bench_program, cc, cc_with, rust_example, rustc, source};
pub use host::{Host, command, real_program};
pub use json::{
    Site, account_adds_up, crate_totals, failures_of, library_totals, named_types, own_bytes, running, sites,
    sites_if_any, sites_of_report,
};
pub use process::{Case, Live, Run, descendant};
pub use sandbox::Sandbox;

/// Says, past the test harness's capture, that something could not be tested here.
pub fn skipped(what: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}
