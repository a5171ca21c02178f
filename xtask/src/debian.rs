//! What the tests and benchmarks need from the system, and installing it on Debian and its kin.

use crate::shell;
use std::path::Path;
use std::process::Command;

/// Something that must exist, and the package that brings it.
struct Need {
    /// A program on `PATH`, or (with a slash) a file.
    what: &'static str,
    package: &'static str,
}

const fn need(what: &'static str, package: &'static str) -> Need {
    Need { what, package }
}

/// For `cargo xtask test`.
const FOR_TESTS: &[Need] = &[
    need("gcc", "gcc"),
    need("g++", "g++"),
    need("nm", "binutils"),
    // Its `valgrind` is a script.
    need("valgrind.bin", "valgrind"),
    need("make", "make"),
    need("bash", "bash"),
    need("perl", "perl"),
    need("git", "git"),
    need("sqlite3", "sqlite3"),
    need("redis-server", "redis-server"),
    need("redis-cli", "redis-tools"),
    need("redis-benchmark", "redis-tools"),
    need("node", "nodejs"),
    need("python3", "python3"),
    need("qemu-system-x86_64", "qemu-system-x86"),
    need("/usr/lib/*/libglib-2.0.so.0", "libglib2.0-0"),
];

/// For `cargo xtask bench`, besides [`FOR_TESTS`].
const FOR_BENCHMARKS: &[Need] = &[
    need("/usr/lib/*/libmimalloc.so.2", "libmimalloc2.0"),
    need("/usr/lib/*/libjemalloc.so.2", "libjemalloc2"),
    need("/usr/lib/*/libtcmalloc_minimal.so.4", "libtcmalloc-minimal4"),
    need("strace", "strace"),
];

/// The file, where `*` stands for the machine's multiarch directory.
pub(crate) fn library(pattern: &str) -> Option<std::path::PathBuf> {
    let (before, after) = pattern.split_once("/*/")?;
    std::fs::read_dir(before).ok()?.flatten().map(|entry| entry.path().join(after)).find(|file| file.exists())
}

fn present(need: &Need) -> bool {
    if need.what.contains("/*/") { library(need.what).is_some() } else { shell::find_program(need.what).is_some() }
}

/// Python's own test suite, a package per version of python.
fn python_testsuite() -> Option<String> {
    let python = shell::find_program("python3")?;
    let mut probe = Command::new(python);
    probe.args(["-c", "import sys\ntry:\n import test.test_json\nexcept ImportError:\n print('libpython%d.%d-testsuite' % sys.version_info[:2])"]);
    let missing = shell::output(&mut probe).ok()?;
    let missing = missing.trim();
    (!missing.is_empty()).then(|| missing.to_owned())
}

/// Installs what is missing, or says in one line what could not be had. The tests that need it then fail, and
/// name it again.
pub(crate) fn provide(benchmarks: bool) {
    let needs = || FOR_TESTS.iter().chain(if benchmarks { FOR_BENCHMARKS } else { &[] });
    let mut packages: Vec<String> = needs().filter(|need| !present(need)).map(|need| need.package.to_owned()).collect();
    packages.extend(python_testsuite());
    packages.dedup();
    if packages.is_empty() {
        return;
    }
    if let Err(why) = install(&packages) {
        println!("cannot install {}: {why:#}", packages.join(" "));
    }
}

/// Installs what boots the test kernel, likewise.
pub(crate) fn provide_qemu() {
    const QEMU: Need = need("qemu-system-x86_64", "qemu-system-x86");
    if !present(&QEMU)
        && let Err(why) = install(&[QEMU.package.to_owned()])
    {
        println!("cannot install {}: {why:#}", QEMU.package);
    }
}

fn install(packages: &[String]) -> anyhow::Result<()> {
    anyhow::ensure!(Path::new("/usr/bin/apt-get").exists(), "there is no apt-get here");
    // SAFETY: no arguments, no memory.
    let root = unsafe { libc::geteuid() } == 0;
    println!("installing {}", packages.join(" "));
    for args in [vec!["update", "-qq"], vec!["install", "-y", "-qq", "--no-install-recommends"]] {
        let mut command = if root {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.args(["-n", "--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
            sudo
        };
        let installs = args[0] == "install";
        command.env("DEBIAN_FRONTEND", "noninteractive").args(args);
        if installs {
            command.args(packages);
        }
        shell::run(&mut command)?;
    }
    Ok(())
}
