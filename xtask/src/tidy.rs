//! `cargo xtask tidy`: what a reviewer should not have to look for.

use crate::{history, layers, ports, qemu, shell};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

pub(crate) fn run() -> Result<()> {
    format()?;
    clippy()?;
    layers::check()?;
    ports::check()?;
    history::check()?;
    stray_files()?;
    println!("tidy");
    Ok(())
}

pub(crate) fn format() -> Result<()> {
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy() -> Result<()> {
    // Under the workspace's own profiles the kernel is a program without contents.
    let kernel = [
        "clippy",
        "--quiet",
        "--package",
        "kernmalloc-testkernel",
        "--profile",
        "kernel",
        "--features",
        "peers",
        "--",
        "-D",
        "warnings",
    ];
    shell::run(shell::cargo().env("RUSTFLAGS", qemu::RUSTFLAGS).args(kernel))?;
    // The benchmark's programs, with the peers that need no C compiler; those of the others are the same but for a name.
    let rust_bench =
        ["clippy", "--quiet", "--package", "kernmalloc-rust-bench", "--all-targets", "--features", "talc,rlsf"];
    shell::run(shell::cargo().args(rust_bench).args(["--", "-D", "warnings"]))?;
    shell::run(shell::cargo().args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

/// Nothing built, left over, huge or tied to one machine is under version control.
pub(crate) fn stray_files() -> Result<()> {
    let listed = shell::output(Command::new("git").arg("-C").arg(shell::root()).args(["ls-files", "-z"]))?;
    let mut found = Vec::new();
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        // Removed in the working tree, not yet committed.
        let Ok(content) = std::fs::read(shell::root().join(name)) else { continue };
        if let Some(why) = stray(Path::new(name), &content) {
            found.push(format!("{name}: {why}"));
        }
    }
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(())
}

fn stray(name: &Path, content: &[u8]) -> Option<&'static str> {
    const MOST_BYTES: usize = 1 << 20;
    // In two pieces, or this file would be the first to be found.
    const HOME: &[u8] = concat!("/ro", "ot/").as_bytes();

    let extension = name.extension().unwrap_or_default().to_string_lossy();
    if ["o", "so", "a", "orig", "rej", "bak", "swp", "rlib"].contains(&&*extension) {
        return Some("built or left over");
    }
    if content.starts_with(b"\x7fELF") {
        return Some("a built program");
    }
    if content.len() > MOST_BYTES {
        return Some("over a megabyte");
    }
    if content.windows(HOME.len()).any(|w| w == HOME) {
        return Some("names a home directory of one machine");
    }
    let text = ["rs", "c", "h", "cc", "md", "toml"].contains(&&*extension);
    if text && content.split(|&b| b == b'\n').any(|line| line.ends_with(b" ") || line.ends_with(b"\t")) {
        return Some("a line ends in white space");
    }
    if text && !content.is_empty() && !content.ends_with(b"\n") {
        return Some("no newline at the end");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted() {
        format().unwrap();
    }

    #[test]
    fn no_stray_files() {
        stray_files().unwrap();
    }

    #[test]
    fn stray_files_are_recognised() {
        let stray = |name: &str, content: &[u8]| stray(Path::new(name), content).is_some();
        assert!(stray("a.o", b""));
        assert!(stray("run", b"\x7fELF"));
        assert!(stray("a.csv", &vec![b'0'; (1 << 20) + 1]));
        assert!(stray("a.md", concat!("see /ro", "ot/x\n").as_bytes()));
        assert!(stray("a.rs", b"fn main() {} \n"));
        assert!(stray("a.rs", b"fn main() {}"));
        assert!(!stray("a.rs", b"fn main() {}\n"));
    }
}
