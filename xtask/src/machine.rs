//! What a record of figures says about where it was made.

use crate::shell;
use std::process::Command;

fn first_line(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output();
    out.ok().and_then(|out| String::from_utf8(out.stdout).ok()?.lines().next().map(str::to_owned)).unwrap_or_default()
}

/// CPU, kernel, C library, compilers and commit, as lines of a list in Markdown.
pub(crate) fn described() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let huge = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let huge = huge.split(['[', ']']).nth(1).unwrap_or("unknown");
    format!(
        "- CPU: {} (family {}, model {}), {cpus} CPUs, {} GiB\n- kernel: Linux {}, transparent huge pages: {huge}\n\
         - C library: {}\n- compilers: {}; {}\n- load average over 15 minutes: {}\n- commit: {}\n",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        (kib + (1 << 19)) >> 20,
        first_line("uname", &["-r"]),
        first_line("getconf", &["GNU_LIBC_VERSION"]),
        first_line("gcc", &["--version"]),
        first_line("rustc", &["--version"]),
        // Over one of these per CPU, other work ran at the same time: times are then worth less.
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').nth(2).unwrap_or("unknown"),
        commit(),
    )
}

/// The commit, and whether the allocator in the working tree differs from it.
pub(crate) fn commit() -> String {
    let root = shell::root().to_string_lossy().into_owned();
    let hash = first_line("git", &["-C", &root, "rev-parse", "--short=12", "HEAD"]);
    let changed = first_line("git", &["-C", &root, "status", "--porcelain", "--", "crates"]);
    if changed.is_empty() { hash } else { format!("{hash} with changes") }
}
