//! `cargo xtask soak`: a long mixed stress under kernmalloc.

use crate::{measure, shell};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

const DEFAULT_SECONDS: u64 = 3600;

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

pub(crate) fn run(args: &[String]) -> Result<()> {
    let seconds = match args {
        [] => DEFAULT_SECONDS,
        [seconds] => seconds.parse().with_context(|| format!("{seconds:?} is no number of seconds"))?,
        _ => bail!("usage: cargo xtask soak [SECONDS]"),
    };
    shell::run(shell::cargo().args(["build", "--quiet", "--release", "--package", "kernmalloc-cli"]))?;
    let dir = shell::target_dir().join("soak");
    std::fs::create_dir_all(&dir)?;
    let mut built: Vec<(PathBuf, &[&str])> = Vec::new();
    for (name, args) in PROGRAMS {
        let out = dir.join(name);
        let source = shell::root().join("tests/programs").join(format!("{name}.c"));
        shell::run(Command::new("gcc").args(["-O2", "-g", "-fno-builtin", "-pthread", "-o"]).arg(&out).arg(source))?;
        built.push((out, args));
    }

    let (start, mut seed, mut runs) = (Instant::now(), 1, 0_u64);
    let time_is_up = || start.elapsed() >= Duration::from_secs(seconds);
    while !time_is_up() {
        for (program, args) in &built {
            if time_is_up() {
                break;
            }
            let seed_text = u64::to_string(&seed);
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
        println!("{:>6.0} s  {runs} runs", start.elapsed().as_secs_f64());
    }
    println!("{runs} runs, none failed");
    Ok(())
}
