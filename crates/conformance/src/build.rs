//! Building the test programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A file of `tests/programs`.
#[must_use]
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/programs").join(name)
}

fn out_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a file");
    // target/PROFILE/deps/TEST
    let profile = exe.ancestors().nth(2).expect("cargo's folders").to_owned();
    let dir = profile.join("test-programs");
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// Builds `tests/programs/NAME.c` or `.cc`, once per run, and gives the program.
#[must_use]
pub fn cc(name: &str) -> PathBuf {
    cc_with(name, name, &[])
}

/// The same with further arguments (libraries, `-shared`); `out` is the file's name.
#[must_use]
pub fn cc_with(name: &str, out: &str, args: &[&str]) -> PathBuf {
    let c = source(&format!("{name}.c"));
    if c.exists() {
        build("gcc", "-std=gnu11", &c, out, args)
    } else {
        build("g++", "-std=c++17", &source(&format!("{name}.cc")), out, args)
    }
}

/// Builds `tests/bench/NAME.c`.
#[must_use]
pub fn bench_program(name: &str, args: &[&str]) -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/bench").join(format!("{name}.c"));
    build("gcc", "-std=gnu11", &file, name, args)
}

/// Builds `tests/programs/NAME.rs`.
#[must_use]
pub fn rustc(name: &str) -> PathBuf {
    let out = out_dir().join(name);
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "-O", "-g", "-o"]).arg(&out).arg(source(&format!("{name}.rs")));
    let status = rustc.status().unwrap_or_else(|e| panic!("rustc: {e}"));
    assert!(status.success(), "{rustc:?} failed");
    out
}

/// Builds `examples/NAME.rs` of the crate `kernmalloc` with further arguments for cargo, in a folder of that build's own, and gives
/// the program.
#[must_use]
pub fn rust_example(name: &str, build: &str, args: &[&str]) -> PathBuf {
    // Two tests may want the same program, and cargo says where it is only when it is done.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let target = out_dir().join("rust").join(build);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "kernmalloc", "--message-format=json", "--example", name]);
    cargo.arg("--target-dir").arg(&target).args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.env_remove("RUSTFLAGS").stderr(std::process::Stdio::inherit());
    let out = cargo.output().unwrap_or_else(|e| panic!("{cargo:?}: {e}"));
    assert!(out.status.success(), "{cargo:?} failed");
    String::from_utf8_lossy(&out.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .expect("cargo names the program that it built")
}

fn build(compiler: &str, standard: &str, file: &Path, out: &str, args: &[&str]) -> PathBuf {
    static BUILT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let out = out_dir().join(out);
    // Held while building: two tests may want the same program.
    let mut built = BUILT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if built.contains(&out) {
        return out;
    }
    // To another name first: an earlier run may still execute the old file.
    let fresh = out.with_extension("new");
    let mut command = Command::new(compiler);
    command
        .arg(standard)
        // The compiler shall not know what malloc is, or it removes what is under test.
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fno-builtin", "-pthread", "-rdynamic", "-o"])
        .arg(&fresh)
        .arg(file)
        .args(args)
        .current_dir(out_dir());
    let status = command.status().unwrap_or_else(|e| panic!("{compiler}: {e}; the tests need it"));
    assert!(status.success(), "{command:?} failed");
    std::fs::rename(&fresh, &out).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
    built.push(out.clone());
    out
}
