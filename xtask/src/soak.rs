//! `cargo xtask soak`: a long stress that mixes everything.
//!
//! Two at once, so that each is in the other's way: the soak of `kern` (`crates/kern/tests/soak`), where allocators on fake machines meet
//! every failure and must account for everything at the end; and test programs under the preload, which check themselves.

use crate::{measure, shell};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const DEFAULT_MINUTES: u64 = 60;

/// Test programs that check themselves, with their arguments; `SEED` changes every time.
const PROGRAMS: &[(&str, &[&str])] = &[
    ("random_ops", &["SEED", "1", "2000000"]),
    ("random_ops", &["SEED", "8", "4000000"]),
    ("random_ops", &["SEED", "61", "4000000"]),
    ("forks", &["fork", "100"]),
    ("forks", &["vfork", "200"]),
    ("threads", &["20000"]),
    ("lifecycle", &["threads"]),
];

const USAGE: &str = "usage: cargo xtask soak [--minutes N] [--seed S] [--machines N]";

struct Options {
    time: Duration,
    seed: u64,
    /// So many fake machines and no more, and no programs.
    machines: Option<u64>,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self { time: Duration::from_secs(60 * DEFAULT_MINUTES), seed: fresh_seed(), machines: None };
        for pair in args.chunks(2) {
            let [name, value] = pair else { bail!("{} wants a value; {USAGE}", pair[0]) };
            let value: u64 = value.parse().with_context(|| format!("{name} {value:?} is no number; {USAGE}"))?;
            match name.as_str() {
                "--minutes" => options.time = Duration::from_secs(60 * value),
                "--seed" => options.seed = value,
                "--machines" => options.machines = Some(value.max(1)),
                other => bail!("no option {other:?}; {USAGE}"),
            }
        }
        Ok(options)
    }
}

/// Another one each time; printed, so that any can be had again.
fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_secs())
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    shell::run(shell::cargo().args(["build", "--quiet", "--release", "--package", "kernmalloc-cli"]))?;
    let programs = if options.machines.is_none() { build_programs()? } else { Vec::new() };
    let mut core = Core(start_core(&options)?);
    let mut ended = None;
    if options.machines.is_none() {
        let runs = run_programs(&programs, &options, || {
            ended = core.0.try_wait()?;
            Ok(ended.is_some())
        })?;
        println!("soak: {runs} runs of programs, none failed");
    }
    let status = match ended {
        Some(status) => status,
        None => core.0.wait()?,
    };
    if !status.success() {
        bail!(
            "the soak of kern, seed {}, ended with {status}; how to run the machine again is said above",
            options.seed
        );
    }
    Ok(())
}

/// Ends with us, also where a program has failed.
struct Core(Child);

impl Drop for Core {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_core(options: &Options) -> Result<Child> {
    let binary = test_binary()?;
    let mut command = Command::new(binary);
    command
        .args(["--ignored", "--nocapture", "--exact", "a_long_soak_leaves_nothing"])
        .env("SOAK_SEED", options.seed.to_string())
        .env("SOAK_SECONDS", options.time.as_secs().to_string());
    if let Some(machines) = options.machines {
        command.env("SOAK_MACHINES", machines.to_string());
    }
    command.spawn().with_context(|| shell::shown(&command))
}

/// Builds the test program, optimised and with all checks on, and returns its path.
fn test_binary() -> Result<PathBuf> {
    let out = shell::output(shell::cargo().args([
        "test",
        "--quiet",
        "--profile",
        "soak",
        "--package",
        "kernmalloc-kern",
        "--test",
        "soak",
        "--no-run",
        "--message-format",
        "json",
    ]))?;
    let path = out.lines().filter(|line| line.contains("\"name\":\"soak\"")).find_map(|line| {
        let at = line.split("\"executable\":\"").nth(1)?;
        at.split('"').next().map(PathBuf::from)
    });
    path.context("cargo test --no-run names no program soak")
}

fn build_programs() -> Result<Vec<(PathBuf, &'static [&'static str])>> {
    let dir = shell::target_dir().join("soak-programs");
    std::fs::create_dir_all(&dir)?;
    let mut built: Vec<(PathBuf, &[&str])> = Vec::new();
    for (name, args) in PROGRAMS {
        let out = dir.join(name);
        let source = shell::root().join("tests/programs").join(format!("{name}.c"));
        shell::run(Command::new("gcc").args(["-O2", "-g", "-fno-builtin", "-pthread", "-o"]).arg(&out).arg(source))?;
        built.push((out, args));
    }
    Ok(built)
}

/// Runs the programs in turn until the time is up or `is_over`. Returns how many runs there were.
fn run_programs(
    programs: &[(PathBuf, &[&str])],
    options: &Options,
    mut is_over: impl FnMut() -> Result<bool>,
) -> Result<u64> {
    let (start, mut seed, mut runs) = (Instant::now(), options.seed, 0_u64);
    loop {
        for (program, args) in programs {
            if start.elapsed() >= options.time || is_over()? {
                return Ok(runs);
            }
            let seed_text = seed.to_string();
            let args = args.iter().map(|arg| if *arg == "SEED" { seed_text.as_str() } else { arg });
            let mut command = Command::new(measure::command());
            command.args(["run", "--quiet", "--"]).arg(program).args(args);
            let out = command.output().with_context(|| shell::shown(&command))?;
            if !out.status.success() {
                bail!(
                    "run {runs}: {} ended with {}\n{}{}",
                    shell::shown(&command),
                    out.status,
                    String::from_utf8_lossy(&out.stdout),
                    String::from_utf8_lossy(&out.stderr)
                );
            }
            runs += 1;
        }
        seed += 1;
        println!("programs: {:>6.0} s  {runs} runs", start.elapsed().as_secs_f64());
    }
}
