//! `cargo xtask test`: the whole of it, in the order in which a mistake is cheapest to find.

use crate::{debian, guards, layers, measure, ports, qemu, shell, symbols, tidy};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// Runs programs under the preload: once, against the optimised command; not part of the unit tests' two runs.
const CONFORMANCE: &str = "kernmalloc-conformance";

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    /// Names of failed tests and steps.
    failures: Vec<String>,
    skipped: Vec<String>,
}

impl Tally {
    /// A step that is no `cargo test`.
    fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) {
        let start = Instant::now();
        println!("--- {name}");
        if let Err(why) = work() {
            println!("{why:#}");
            self.failed += 1;
            self.failures.push(name.to_owned());
        }
        println!("    {:.1} s", start.elapsed().as_secs_f64());
    }

    /// A `cargo test`, whose results are counted from what it prints.
    fn cargo_test(&mut self, name: &str, command: &mut Command) {
        let start = Instant::now();
        println!("--- {name}: {}", shell::shown(command));
        let before = self.failed;
        let ran = shell::run_seen(command, |line| self.see(name, line));
        // A run that dies without a result line (does not compile, crashes) is one failure.
        if !matches!(ran, Ok(true)) && self.failed == before {
            self.failed += 1;
            self.failures.push(match ran {
                Ok(_) => format!("{name} (did not build or did not finish)"),
                Err(why) => format!("{name} ({why:#})"),
            });
        }
        println!("    {:.1} s", start.elapsed().as_secs_f64());
    }

    fn see(&mut self, step: &str, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count = |word: &str| {
                counts
                    .split([';', '.'])
                    .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
                    .unwrap_or(0)
            };
            self.passed += count("passed");
            self.failed += count("failed");
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(format!("{step}: {name}"));
        }
    }

    /// Says what came of it all; ends the program if anything failed.
    fn finish(&self, start: Instant) -> Result<()> {
        println!();
        for skipped in &self.skipped {
            println!("skipped: {skipped}");
        }
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        println!("{:.0} s", start.elapsed().as_secs_f64());
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed != 0 {
            std::process::exit(1);
        }
        Ok(())
    }
}

/// What is also tested as it is shipped, optimised and without debug assertions: what has threads and unsafe code of its own. (To
/// build all of the workspace's tests so takes longer than to run them.)
const CORE: &[&str] = &[
    "kernmalloc-abi",
    "kernmalloc-platform",
    "kernmalloc-vmem",
    "kernmalloc-kern",
    "kernmalloc-hosted",
    "kernmalloc-testsuite",
];

pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let mut tally = Tally::default();
    debian::provide(false);

    tally.step("format", tidy::format);
    tally.step("layers", layers::check);
    tally.step("line counts of the ports", ports::check);
    tally.step("stray files", tidy::stray_files);
    tally.step("clippy", tidy::clippy);
    tally.step("documentation", || {
        shell::run(shell::cargo().env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--quiet",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ]))
    });
    tally.cargo_test(
        "unit tests, debug assertions on",
        shell::cargo().args(["test", "--quiet", "--no-fail-fast", "--workspace", "--exclude", CONFORMANCE]).args(PLAIN),
    );
    tally.cargo_test(
        "unit tests of the core, debug assertions off",
        shell::cargo()
            .args(["test", "--quiet", "--no-fail-fast", "--release"])
            .args(CORE.iter().flat_map(|package| ["--package", package]))
            .args(PLAIN),
    );
    match loom_crates() {
        Ok(crates) => {
            for name in crates {
                tally.cargo_test(
                    &format!("loom models of {name}"),
                    shell::cargo()
                        .env("RUSTFLAGS", "--cfg loom")
                        .env("CARGO_TARGET_DIR", shell::target_dir().join("loom"))
                        .args(["test", "--quiet", "--no-fail-fast", "--release", "--package", &name, "--test", "loom*"])
                        .args(PLAIN),
                );
            }
        }
        Err(why) => tally.step("loom models", || Err(why)),
    }
    kernel(&mut tally);
    tally.step("the command, and undefined symbols of its library", symbols::check);
    tally.step("instructions of the fast paths", guards::check);
    tally.cargo_test(
        "programs under kernmalloc",
        shell::cargo()
            .env("KERNMALLOC_COMMAND", measure::command())
            .args(["test", "--quiet", "--no-fail-fast", "--release", "--package", CONFORMANCE])
            // One at a time: programs are compared by their accounts and their peaks, and some fill both CPUs.
            .args(PLAIN)
            .arg("--test-threads=2"),
    );
    aarch64(&mut tally);
    tally.finish(start)
}

/// `cargo xtask kernel`: the part of it that boots the test kernel.
pub(crate) fn run_kernel() -> Result<()> {
    let start = Instant::now();
    let mut tally = Tally::default();
    kernel(&mut tally);
    tally.finish(start)
}
/// The suite in the booted kernel, on three machines, and the faults that it must catch.
fn kernel(tally: &mut Tally) {
    let mut built = None;
    tally.step("the test kernel", || {
        built = Some(qemu::build()?);
        Ok(())
    });
    let Some(kernel) = built else { return };
    for machine in qemu::Machine::for_tests() {
        let name = format!("kernel: {}", machine.described());
        println!("--- {name}");
        let start = Instant::now();
        let before = tally.failed;
        let run = machine.run(&kernel, |line| {
            println!("{line}");
            tally.see(&name, line);
        });
        let why = run.map(|run| (!run.passed()).then(|| run.why())).unwrap_or_else(|why| Some(format!("{why:#}")));
        if let Some(why) = why.filter(|_| tally.failed == before) {
            tally.failed += 1;
            tally.failures.push(format!("{name}: {why}"));
        }
        println!("    {:.1} s", start.elapsed().as_secs_f64());
    }
    tally.step("kernel: the debugger", || qemu::ask_debugger(&kernel));
    for fault in qemu::FAULTS {
        tally.step(&format!("kernel with the fault {}", fault.name), || qemu::control(&kernel, fault));
    }
}

/// One line per test, so that a failure has a name in the log and in the tally.
const PLAIN: &[&str] = &["--", "--format=pretty"];

/// Packages with loom models.
fn loom_crates() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(shell::root().join("crates"))? {
        let dir: PathBuf = entry?.path();
        let Ok(tests) = std::fs::read_dir(dir.join("tests")) else { continue };
        let has_loom = tests.flatten().any(|test| test.file_name().to_string_lossy().starts_with("loom"));
        if has_loom {
            let manifest = std::fs::read_to_string(dir.join("Cargo.toml"))?;
            let name = manifest
                .lines()
                .find_map(|line| line.strip_prefix("name = "))
                .with_context(|| format!("{} has no name", dir.display()))?;
            names.push(name.trim_matches('"').to_owned());
        }
    }
    names.sort();
    if names.is_empty() {
        bail!("no crate has a tests/loom*.rs");
    }
    Ok(names)
}

/// The other architecture, as far as this machine can say.
fn aarch64(tally: &mut Tally) {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let libdir = shell::output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]));
    let installed = libdir.is_ok_and(|dir| PathBuf::from(dir.trim()).exists());
    if !installed {
        println!("--- {TARGET}: skipped, its standard library is not installed (rustup target add {TARGET})");
        tally.skipped.push(format!("cargo check for {TARGET}: not installed"));
        return;
    }
    tally.step(TARGET, || {
        let mut check = shell::cargo();
        check.args(["check", "--quiet", "--target", TARGET]);
        for package in ["platform", "abi", "vmem", "kern", "hosted", "preload", "memstat"] {
            check.args(["--package", &format!("kernmalloc-{package}")]);
        }
        shell::run(&mut check)
    });
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn results_are_counted_from_what_cargo_prints() {
        let mut tally = Tally::default();
        for line in [
            "test line::tests::sums ... ok",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s",
            "test zone::grows ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s",
        ] {
            tally.see("unit", line);
        }
        assert_eq!((tally.passed, tally.failed), (15, 1));
        assert_eq!(tally.failures, ["unit: zone::grows"]);
    }

    #[test]
    fn a_run_that_dies_without_a_result_is_a_failure() {
        let mut tally = Tally::default();
        tally.cargo_test("dies", &mut std::process::Command::new("false"));
        assert_eq!((tally.passed, tally.failed), (0, 1));
    }
}
