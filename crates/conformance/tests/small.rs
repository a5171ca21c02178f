//! What the preload costs a small program in memory. Peaks are the kernel's, not times, and repeat to a few pages.

use kernmalloc_conformance::{Sandbox, bench_program, command, real_program};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A preloaded allocator should not cost a small program more.
const LIMIT_KIB: u64 = 1024;

/// The library that `kernmalloc run` would preload; the command itself shall not be in the measurement.
fn library() -> PathBuf {
    let out = Command::new(command()).arg("library").output().expect("the command runs");
    assert!(out.status.success(), "{out:?}");
    PathBuf::from(String::from_utf8_lossy(&out.stdout).trim())
}

/// What runs a program with its memory where it lies every time, where that is allowed: how much the kernel maps around a fault hangs
/// on it, which is a hundred KiB for the larger of these programs.
fn steady(program: &Path) -> Command {
    let setarch = |args: &[&std::ffi::OsStr]| {
        let mut setarch = Command::new("setarch");
        setarch.arg("-R").args(args);
        setarch
    };
    if setarch(&["true".as_ref()]).status().is_ok_and(|status| status.success()) {
        setarch(&[program.as_os_str()])
    } else {
        Command::new(program)
    }
}

/// The least of three peaks: what other programs do at the time only adds.
fn peak_kib(sandbox: &Sandbox, launcher: &Path, preload: Option<&Path>, program: &[&str]) -> u64 {
    let result = sandbox.file("result");
    let once = || {
        let mut launch = steady(launcher);
        // Python's tables are of other sizes with every seed, by more than what is measured.
        launch.env("PYTHONHASHSEED", "1");
        launch.arg(&result).env_remove("LD_PRELOAD").env_remove("KERNMALLOC").env_remove("KERNMALLOC_DIR");
        if let Some(library) = preload {
            launch.arg(format!("LD_PRELOAD={}", library.display()));
        }
        launch.arg(real_program(program[0])).args(&program[1..]).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(launch.status().expect("the launcher runs").success());
        let text = std::fs::read_to_string(&result).expect("the launcher wrote it");
        let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        assert_eq!(numbers[0], 0, "{program:?}: {text}");
        numbers[3]
    };
    (0..3).map(|_| once()).min().expect("three")
}

#[test]
fn small_programs_stay_small() {
    let sandbox = Sandbox::new("small");
    let launcher = bench_program("launch", &["-static"]);
    let library = library();
    let programs: [&[&str]; 8] = [
        &["true"],
        &["ls", "/usr"],
        &["cat", "/etc/passwd"],
        &["grep", "-c", "root", "/etc/passwd"],
        &["git", "--version"],
        &["bash", "-c", ":"],
        &["perl", "-e", "1"],
        // Debian's, which needs 8 MB: others that may be on the path need more.
        &["/usr/bin/python3", "-c", "pass"],
    ];
    for program in programs {
        let plain = peak_kib(&sandbox, &launcher, None, program);
        let ours = peak_kib(&sandbox, &launcher, Some(&library), program);
        println!("{program:?}: {ours} KiB under kernmalloc, {plain} KiB without");
        // Something was loaded, or nothing was measured.
        assert!(ours > plain, "{program:?}: {ours} KiB under kernmalloc, {plain} KiB without");
        assert!(ours <= plain + LIMIT_KIB, "{program:?}: {ours} KiB under kernmalloc, {plain} KiB without");
    }
}
