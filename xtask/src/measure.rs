//! One measurement: a program under one allocator, its CPU time, its resident memory, its page faults and system calls.

use crate::bench::{Column, Role};
use crate::{debian, shell};
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a program runs under.
#[derive(Clone, Debug)]
pub(crate) struct Allocator {
    pub(crate) name: &'static str,
    preload: Option<PathBuf>,
    tunables: Option<&'static str>,
}

impl Allocator {
    /// Whether it is ours, in any setting.
    pub(crate) fn is_ours(&self) -> bool {
        self.name.starts_with("kernmalloc")
    }

    /// What it is in a table.
    pub(crate) fn column(&self) -> Column {
        Column { name: self.name, role: if self.is_ours() { Role::Ours } else { Role::Peer } }
    }
}

/// glibc's, the peers that Debian has, and ours with attribution on and off. A peer that is not installed is an error: a table
/// without it would be a better one for us.
pub(crate) fn allocators() -> Result<Vec<Allocator>> {
    let peer = |name, file: &str| -> Result<Allocator> {
        let preload = debian::library(file).with_context(|| format!("{file} is not installed"))?;
        Ok(Allocator { name, preload: Some(preload), tunables: None })
    };
    let ours = library()?;
    Ok(vec![
        Allocator { name: "glibc", preload: None, tunables: None },
        peer("mimalloc", "/usr/lib/*/libmimalloc.so.2")?,
        peer("jemalloc", "/usr/lib/*/libjemalloc.so.2")?,
        peer("tcmalloc", "/usr/lib/*/libtcmalloc_minimal.so.4")?,
        Allocator { name: "kernmalloc", preload: Some(ours.clone()), tunables: None },
        Allocator { name: "kernmalloc, off", preload: Some(ours), tunables: Some("kern.malloc.attribution=off") },
    ])
}

/// Builds the command; the library that it carries.
pub(crate) fn library() -> Result<PathBuf> {
    shell::run(shell::cargo().args(["build", "--quiet", "--release", "--package", "kernmalloc-cli"]))?;
    let path = shell::output(Command::new(command()).arg("library"))?;
    Ok(PathBuf::from(path.trim()))
}

/// The command, built by [`library`].
pub(crate) fn command() -> PathBuf {
    shell::target_dir().join("release/kernmalloc")
}

/// Takes out of its environment what would be measured with it: a developer's settings, and cargo's path for libraries, in which the
/// loader looks for every one.
fn plain_environment(command: &mut Command) {
    for name in ["LD_PRELOAD", "LD_LIBRARY_PATH", "KERNMALLOC", "KERNMALLOC_DIR"] {
        command.env_remove(name);
    }
}

/// What a run cost. `None`: not measured in such a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    /// CPU time, user and system, of all threads and of children waited for.
    pub(crate) cpu_us: u64,
    /// Peak of resident memory.
    pub(crate) peak_kib: u64,
    /// Resident memory in the middle of the run's samples.
    pub(crate) steady_kib: Option<u64>,
    /// Page faults, with and without reading from a file.
    pub(crate) faults: Option<u64>,
    pub(crate) system_calls: Option<u64>,
}

/// Runs a program that measures itself, under an allocator if one is named, and gives the numbers that it writes.
pub(crate) fn numbers(mut command: Command, allocator: Option<&Allocator>) -> Result<Vec<u64>> {
    plain_environment(&mut command);
    if let Some(library) = allocator.and_then(|allocator| allocator.preload.as_ref()) {
        command.env("LD_PRELOAD", library);
    }
    if let Some(tunables) = allocator.and_then(|allocator| allocator.tunables) {
        command.env("KERNMALLOC", tunables);
    }
    let text = shell::output(&mut command)?;
    let words = text.split_whitespace().map(str::parse);
    words.collect::<Result<_, _>>().with_context(|| format!("{} wrote {text:?}", shell::shown(&command)))
}

/// A program with its arguments and surroundings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(&'static str, &'static str)>,
    pub(crate) dir: Option<PathBuf>,
    pub(crate) stdin: Option<PathBuf>,
}

impl Program {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), ..Self::default() }
    }

    pub(crate) fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// What is in its environment besides ours, as `NAME=VALUE`.
    fn variables(&self, allocator: &Allocator) -> Vec<String> {
        let preload = allocator.preload.as_ref().map(|library| format!("LD_PRELOAD={}", library.display()));
        let tunables = allocator.tunables.map(|tunables| format!("KERNMALLOC={tunables}"));
        let own = self.env.iter().map(|(name, value)| format!("{name}={value}"));
        preload.into_iter().chain(tunables).chain(own).collect()
    }

    /// Where what starts it runs, with which input, and without what a developer has in the environment.
    fn surround(&self, command: &mut Command) -> Result<()> {
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        plain_environment(command);
        command.env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        if let Some(stdin) = &self.stdin {
            command.stdin(std::fs::File::open(stdin).with_context(|| stdin.display().to_string())?);
        }
        Ok(())
    }

    /// The launcher around it, preloaded only below the launcher.
    fn command(&self, allocator: &Allocator, launcher: &Path, result: &Path) -> Result<Command> {
        let mut command = Command::new(launcher);
        command.arg(result).args(self.variables(allocator)).arg(&self.program).args(&self.args);
        self.surround(&mut command)?;
        Ok(command)
    }
}

/// Builds the benchmark programs and measures with their launcher.
pub(crate) struct Bench {
    dir: PathBuf,
    launcher: PathBuf,
}

impl Bench {
    pub(crate) fn new() -> Result<Self> {
        let dir = shell::target_dir().join("bench");
        std::fs::create_dir_all(&dir)?;
        let sources = shell::root().join("tests/bench");
        for entry in std::fs::read_dir(&sources)? {
            let file = entry?.path();
            if file.extension().is_none_or(|ext| ext != "c") {
                continue;
            }
            let out = dir.join(file.file_stem().context("it has a name")?);
            let mut gcc = Command::new("gcc");
            gcc.args(["-std=gnu11", "-O2", "-Wall", "-pthread", "-fno-builtin-malloc", "-fno-builtin-free", "-o"]);
            gcc.arg(&out).arg(&file);
            if out.ends_with("launch") {
                gcc.arg("-static");
            }
            shell::run(&mut gcc)?;
        }
        Ok(Self { launcher: dir.join("launch"), dir })
    }

    /// One of our own programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A folder for what the programs read and write.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, program: &Program, allocator: &Allocator) -> Result<Cost> {
        self.run_beside(program, allocator, |_| Ok(()))
    }

    /// Runs it, and `beside` meanwhile, which gets the launcher's pid.
    pub(crate) fn run_beside(
        &self,
        program: &Program,
        allocator: &Allocator,
        beside: impl FnOnce(u32) -> Result<()>,
    ) -> Result<Cost> {
        let result = self.dir.join("result");
        let _ = std::fs::remove_file(&result);
        let mut command = program.command(allocator, &self.launcher, &result)?;
        let mut child = command.spawn().with_context(|| shell::shown(&command))?;
        let besides = beside(child.id());
        let status = child.wait()?;
        besides?;
        if !status.success() {
            bail!("{} ended with {status}", shell::shown(&command));
        }
        let text = std::fs::read_to_string(&result).with_context(|| result.display().to_string())?;
        let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [status, user_us, system_us, peak_kib, faults, steady_kib] = numbers[..] else {
            bail!("the launcher wrote {text:?}")
        };
        if status != 0 {
            bail!("{} under {} ended with wait status {status:#x}", shell::shown(&command), allocator.name);
        }
        Ok(Cost {
            cpu_us: user_us + system_us,
            peak_kib,
            steady_kib: Some(steady_kib),
            faults: Some(faults),
            system_calls: None,
        })
    }
}

impl Bench {
    /// System calls of one run, of all its threads and processes, as strace(1) counts them; `None` where that is not installed or not
    /// allowed.
    pub(crate) fn system_calls(&self, program: &Program, allocator: &Allocator) -> Result<Option<u64>> {
        let Some(strace) = shell::find_program("strace") else { return Ok(None) };
        let counts = self.dir.join("strace");
        let mut command = Command::new(strace);
        command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(&counts);
        for variable in program.variables(allocator) {
            command.arg("-E").arg(variable);
        }
        command.arg(&program.program).args(&program.args);
        program.surround(&mut command)?;
        // Where tracing is not allowed, or it is no program for that: a table without these figures is better than none at all.
        if let Err(why) = shell::run(&mut command) {
            println!("system calls are not counted: {why:#}");
            return Ok(None);
        }
        let text = std::fs::read_to_string(&counts).with_context(|| counts.display().to_string())?;
        let total = text.lines().find_map(|line| line.trim().strip_suffix("total")?.trim().parse().ok());
        Ok(Some(total.with_context(|| format!("strace wrote no total:\n{text}"))?))
    }
}

/// The processes below one: its children, each followed by those below it.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.flat_map(|child| [vec![child], descendants(child)].concat()).collect()
}

/// The middle one.
pub(crate) fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    let middle = values.len() / 2;
    match values.len() {
        0 => 0,
        n if n % 2 == 1 => values[middle],
        _ => values[middle - 1].midpoint(values[middle]),
    }
}

/// The geometric mean.
pub(crate) fn geometric_mean(ratios: &[f64]) -> f64 {
    (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![9, 1, 5]), 5);
        assert_eq!(median(vec![4, 1, 9, 6]), 5);
    }

    #[test]
    fn doubling_and_halving_cancel() {
        assert!((geometric_mean(&[2.0, 0.5]) - 1.0).abs() < 1e-12);
    }
}
