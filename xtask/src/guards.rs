//! `cargo xtask guards`: how many instructions each fast path takes, against the record.
//!
//! Time on a shared machine says little about a change of a few instructions; callgrind counts them, and counts the same on every
//! machine. What would differ by machine is left out: instructions of the C library (its memset and memcpy are chosen by CPU), and all
//! that happens outside of the functions under guard.

use crate::{measure, shell};
use anyhow::{Context as _, Result, bail};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The record, one line per path.
const RECORD: &str = "docs/benchmarks/instructions.csv";
/// How many more instructions than recorded a path may take, in percent of the record.
const MOST_MORE_PERCENT: f64 = 2.0;
/// Accepts what is.
const ACCEPT: &str = "cargo xtask guards --write";

/// A path and its instructions per call. A fraction means that not every call takes the same.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    path: String,
    instructions: f64,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    match args {
        [] => check(),
        [option] if option == "--write" => write(),
        _ => bail!("usage: cargo xtask guards [--write]"),
    }
}

/// Fails on a path that takes more than the record says.
pub(crate) fn check() -> Result<()> {
    let file = shell::root().join(RECORD);
    let text = std::fs::read_to_string(&file).with_context(|| format!("no {RECORD}; make one with {ACCEPT}"))?;
    let record = parse_record(&text)?;
    let now = count()?;
    let verdict = compare(&record, &now);
    for line in &verdict.fewer {
        println!("{line}");
    }
    if verdict.failures.is_empty() {
        println!("{} paths take what {RECORD} says", now.len());
        return Ok(());
    }
    let mut why = verdict.failures.join("\n");
    let compilers = (compiler_of(&text), compiler());
    if compilers.0 != compilers.1 {
        let _ = write!(why, "\nthe record was made with {}, this is {}", compilers.0, compilers.1);
    }
    bail!("{why}\nif that is wanted, record it with {ACCEPT} and say why in the commit")
}

fn write() -> Result<()> {
    let figures = count()?;
    std::fs::write(shell::root().join(RECORD), record(&figures))?;
    for figure in &figures {
        println!("{:>10}  {}", shown(figure.instructions), figure.path);
    }
    println!(
        "written: {RECORD}; docs/performance.md takes the library's malloc and free of 64 B apart: see that its sums agree"
    );
    Ok(())
}

// ---- the record

fn compiler() -> String {
    let out = Command::new("rustc").arg("--version").output().ok();
    out.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
}

fn compiler_of(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or("an unknown compiler").to_owned()
}

/// At most three decimals, and none where there is no fraction.
fn shown(instructions: f64) -> String {
    let text = format!("{instructions:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn record(figures: &[Figure]) -> String {
    let mut out = format!("# {}\npath,instructions\n", compiler());
    for figure in figures {
        let _ = writeln!(out, "\"{}\",{}", figure.path, shown(figure.instructions));
    }
    out
}

fn parse_record(text: &str) -> Result<Vec<Figure>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && *line != "path,instructions");
    lines
        .map(|line| {
            let (path, count) = line.rsplit_once(',').with_context(|| format!("{RECORD}: no comma in {line:?}"))?;
            let instructions = count.parse().with_context(|| format!("{RECORD}: {count:?} is no number"))?;
            Ok(Figure { path: path.trim_matches('"').to_owned(), instructions })
        })
        .collect()
}

#[derive(Debug, Default)]
struct Verdict {
    /// Lines for a person.
    failures: Vec<String>,
    /// Better than recorded: the next change could take it all back unseen.
    fewer: Vec<String>,
}

fn compare(record: &[Figure], now: &[Figure]) -> Verdict {
    let mut verdict = Verdict::default();
    for Figure { path, instructions: new } in now {
        let Some(Figure { instructions: old, .. }) = record.iter().find(|figure| figure.path == *path) else {
            verdict.failures.push(format!("{path}: {} instructions, not in {RECORD}", shown(*new)));
            continue;
        };
        let percent = (new - old) / old * 100.0;
        let change = format!("{path}: {} instructions, {} recorded ({percent:+.1} %)", shown(*new), shown(*old));
        if percent > MOST_MORE_PERCENT {
            verdict.failures.push(change);
        } else if percent < -MOST_MORE_PERCENT {
            verdict.fewer.push(format!("{change}; keep it with {ACCEPT}"));
        }
    }
    for Figure { path, .. } in record {
        if !now.iter().any(|figure| figure.path == *path) {
            verdict.failures.push(format!("{path}: in {RECORD}, but nothing counts it any more"));
        }
    }
    verdict
}

// ---- counting

/// A program under callgrind.
struct Counted {
    command: Command,
    /// End of the path of the object whose instructions count; nothing else does.
    object: String,
    /// Names callgrind's files.
    name: &'static str,
}

fn count() -> Result<Vec<Figure>> {
    if !cfg!(target_arch = "x86_64") {
        bail!("{RECORD} holds the instructions of x86_64; this is another architecture");
    }
    let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !valgrind.is_ok_and(|status| status.success()) {
        bail!("valgrind is not installed (Debian: apt-get install valgrind)");
    }
    let dir = shell::target_dir().join("guards");
    std::fs::create_dir_all(&dir)?;
    let mut figures = Vec::new();
    for program in programs(&dir)? {
        figures.extend(counted(program, &dir)?);
    }
    Ok(figures)
}

fn programs(dir: &Path) -> Result<Vec<Counted>> {
    // The core as it is compiled for the library; the facade as a Rust program gets it, but that (see Cargo.toml) the compiler
    // does not cut its crates in pieces.
    let build = |profile: &str, bin: &str| -> Result<()> {
        let mut cargo = shell::cargo();
        cargo.args(["build", "--quiet", "--package", "kernmalloc-instructions", "--profile", profile, "--bin", bin]);
        // Flags of the caller's would be other figures.
        shell::run(cargo.env_remove("RUSTFLAGS"))
    };
    build("preload", "instructions-kern")?;
    build("guards", "instructions-facade")?;
    let library = measure::library()?;
    let preload = dir.join("preload");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fno-builtin", "-rdynamic", "-o"]);
    // With -rdynamic, the library sees the program's own __rseq_offset.
    shell::run(gcc.arg(&preload).arg(shell::root().join("tests/instructions/preload.c")))?;

    let rust = |profile: &str, name: &'static str| Counted {
        command: Command::new(shell::target_dir().join(profile).join(name)),
        object: format!("/{name}"),
        name,
    };
    let preloaded = |name: &'static str, args: &[&str], tunables: Option<&str>| {
        let mut command = Command::new(&preload);
        command.args(args).env("LD_PRELOAD", &library);
        if let Some(tunables) = tunables {
            command.env("KERNMALLOC", tunables);
        }
        let object = library.file_name().unwrap_or_default().to_string_lossy();
        Counted { command, object: format!("/{object}"), name }
    };
    Ok(vec![
        rust("preload", "instructions-kern"),
        rust("guards", "instructions-facade"),
        preloaded("preload", &["preload"], None),
        // Its malloc and its free of 64 bytes.
        preloaded("preload-slots", &["preload without rseq", "2"], Some("kern.malloc.rseq=off")),
    ])
}

/// Runs it; its figures in the order of its paths.
fn counted(program: Counted, dir: &Path) -> Result<Vec<Figure>> {
    let out = dir.join(format!("callgrind.{}", program.name));
    let part = |n: usize| PathBuf::from(format!("{}.{n}", out.display()));
    for n in (1..).take_while(|n| part(*n).exists()) {
        std::fs::remove_file(part(n))?;
    }
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["-q", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=guarded_*"]);
    valgrind.args(["--zero-before=kernmalloc_steady", "--dump-after=kernmalloc_steady"]);
    valgrind.args(["--compress-strings=no", "--compress-pos=no", "--dump-line=no"]);
    let mut option = std::ffi::OsString::from("--callgrind-out-file=");
    option.push(&out);
    valgrind.arg(option).arg(program.command.get_program()).args(program.command.get_args());
    valgrind.env_remove("KERNMALLOC").env_remove("KERNMALLOC_DIR").env_remove("LD_PRELOAD").env("LC_ALL", "C");
    valgrind.envs(program.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // Callgrind's remark on what it takes for positions is of no use here.
    let ran = valgrind.stdin(Stdio::null()).output().with_context(|| shell::shown(&valgrind))?;
    if !ran.status.success() {
        bail!("{} ended with {}\n{}", shell::shown(&valgrind), ran.status, String::from_utf8_lossy(&ran.stderr));
    }
    let mut figures = Vec::new();
    for (index, line) in String::from_utf8_lossy(&ran.stdout).lines().enumerate() {
        let (rounds, path) = line.split_once(' ').with_context(|| format!("{}: {line:?}", program.name))?;
        let rounds: f64 = rounds.parse().with_context(|| format!("{}: {line:?}", program.name))?;
        let file = part(index + 1);
        let profile = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let instructions = cost_in(&profile, &program.object) as f64 / rounds;
        // A function that was inlined or renamed would pass every comparison.
        if instructions == 0.0 {
            bail!("{path}: callgrind saw no instruction of it; is its function still named guarded_…?");
        }
        figures.push(Figure { path: path.to_owned(), instructions });
    }
    if figures.is_empty() || part(figures.len() + 1).exists() {
        bail!("{}: callgrind wrote other than one file per path", program.name);
    }
    Ok(figures)
}

/// Instructions in one object, by a profile in callgrind's format without abbreviations: `ob=` says whose the lines of figures
/// are that follow; the line after `calls=` repeats what the callee took.
fn cost_in(profile: &str, object: &str) -> u64 {
    let mut sum = 0;
    let mut inside = false;
    let mut lines = profile.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("ob=") {
            inside = name.ends_with(object);
        } else if line.starts_with("calls=") {
            lines.next();
        } else if inside && let Some((position, cost)) = line.split_once(' ') {
            let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if digits(position) && digits(cost) {
                sum += cost.parse::<u64>().unwrap_or(0);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(of: &[(&str, f64)]) -> Vec<Figure> {
        of.iter().map(|(path, instructions)| Figure { path: (*path).to_owned(), instructions: *instructions }).collect()
    }

    fn check(record: &[(&str, f64)], now: &[(&str, f64)], failures: &[&str], fewer: &[&str]) {
        let verdict = compare(&figures(record), &figures(now));
        assert_eq!((verdict.failures, verdict.fewer), (owned(failures), owned(fewer)));
    }

    fn owned(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn more_than_two_percent_more_fails_with_both_figures() {
        check(&[("a", 100.0)], &[("a", 102.0)], &[], &[]);
        check(&[("a", 100.0)], &[("a", 103.0)], &["a: 103 instructions, 100 recorded (+3.0 %)"], &[]);
        check(&[("a", 33.0)], &[("a", 34.0)], &["a: 34 instructions, 33 recorded (+3.0 %)"], &[]);
    }

    #[test]
    fn fewer_is_no_failure_but_is_said() {
        let line = "a: 90 instructions, 100 recorded (-10.0 %); keep it with cargo xtask guards --write";
        check(&[("a", 100.0)], &[("a", 90.0)], &[], &[line]);
    }

    #[test]
    fn a_path_on_one_side_only_fails() {
        check(&[], &[("a", 5.5)], &["a: 5.5 instructions, not in docs/benchmarks/instructions.csv"], &[]);
        let gone = "a: in docs/benchmarks/instructions.csv, but nothing counts it any more";
        check(&[("a", 5.0)], &[], &[gone], &[]);
    }

    #[test]
    fn the_record_reads_as_it_was_written() {
        let all = figures(&[("kern: alloc, 64 B", 33.0), ("b", 1.125)]);
        let text = record(&all);
        assert_eq!(parse_record(&text).unwrap(), all);
        assert_eq!(compiler_of(&text), compiler());
        assert!(parse_record("path,instructions\n\"a\",many\n").is_err());
        assert!(parse_record("nothing\n").is_err());
    }

    #[test]
    fn only_the_object_under_guard_counts() {
        let profile = "events: Ir\nsummary: 99\n\nob=/usr/lib/libc.so.6\nfn=memset\n7 11\n\nob=/t/lib.so\nfl=a.rs\n\
                       fn=guarded_a\n150 512\nfi=b.rs\n20 3\ncob=/usr/lib/libc.so.6\ncfn=memset\ncalls=1 7\n151 11\n152 1\n\
                       \ntotals: 99\n";
        assert_eq!(cost_in(profile, "/lib.so"), 516);
        assert_eq!(cost_in(profile, "/libc.so.6"), 11);
        assert_eq!(cost_in(profile, "/other"), 0);
    }

    #[test]
    fn the_record_is_there() {
        let text = std::fs::read_to_string(shell::root().join(RECORD)).unwrap();
        assert!(parse_record(&text).unwrap().iter().all(|figure| figure.instructions > 0.0));
    }
}
