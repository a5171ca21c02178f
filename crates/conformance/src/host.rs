//! What a program runs under.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What a program runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The system's own malloc.
    Plain,
    /// `kernmalloc run`, or a bare library where `CONFORMANCE_PRELOAD` names one.
    Kernmalloc,
}

impl Host {
    /// The program, to be started under this host. `report` receives the table by call site as JSON at the program's end;
    /// without it there is none. Either way the program's own output stays as it is.
    #[must_use]
    pub fn command(self, program: &Path, report: Option<&Path>) -> Command {
        if self == Self::Plain {
            return Command::new(program);
        }
        if let Some(library) = library() {
            let mut command = Command::new(program);
            command.env("LD_PRELOAD", library);
            return command;
        }
        let mut run = Command::new(command());
        run.arg("run");
        match report {
            Some(file) => run.args(["--json", "--sites", "-o"]).arg(file),
            None => run.arg("--quiet"),
        };
        run.arg("--").arg(program);
        run
    }
}

/// A library to preload in place of the command: to try a build, or to run these tests against another malloc.
fn library() -> Option<PathBuf> {
    std::env::var_os("CONFORMANCE_PRELOAD").map(PathBuf::from)
}

/// The command: `KERNMALLOC_COMMAND`, or built now.
#[must_use]
pub fn command() -> &'static Path {
    static COMMAND: OnceLock<PathBuf> = OnceLock::new();
    COMMAND.get_or_init(|| {
        if let Some(command) = std::env::var_os("KERNMALLOC_COMMAND") {
            return command.into();
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build
            .args(["build", "--quiet", "--release", "--package", "kernmalloc-cli", "--message-format=json"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
            .stderr(std::process::Stdio::inherit());
        let out = build.output().unwrap_or_else(|e| panic!("{build:?}: {e}"));
        assert!(out.status.success(), "the command does not build");
        String::from_utf8_lossy(&out.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
            .next_back()
            .expect("cargo names the command that it built")
    })
}

/// The first file of this name on `PATH` that is a program itself. A shim would run its shell under test, not the program.
#[must_use]
pub fn real_program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| is_elf(file)).unwrap_or_else(|| {
        panic!("{name} is not installed, or only as a script; `cargo xtask test` installs it on Debian")
    })
}

fn is_elf(file: &Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 4];
    std::fs::File::open(file).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}
