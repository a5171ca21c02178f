//! Builds the preload library and embeds it, so that `cargo install` gives one file that works.
//!
//! The library needs a profile of its own (`preload`: no unwinder, one unit), which a dependency cannot
//! have; hence a cargo inside the cargo, with a target directory below ours, so that the two never wait
//! for each other's lock.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates that the library consists of, for cargo to know when to run this again.
const CRATES: [&str; 6] = ["preload", "hosted", "kern", "vmem", "platform", "abi"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=KERNMALLOC_SKIP_PRELOAD");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let embedded = out.join("libkernmalloc.so");

    // Alone (from a registry, or where documentation is built) there is nothing to build: the command then looks for an
    // installed library.
    let crates = manifest.join("..");
    let alone = !crates.join("preload/Cargo.toml").is_file();
    if alone || env::var_os("DOCS_RS").is_some() || env::var_os("KERNMALLOC_SKIP_PRELOAD").is_some() {
        fs::write(&embedded, b"").expect("OUT_DIR is writable");
    } else {
        for name in CRATES {
            println!("cargo:rerun-if-changed={}", crates.join(name).join("Cargo.toml").display());
            println!("cargo:rerun-if-changed={}", crates.join(name).join("src").display());
            for extra in ["build.rs", "exports.map"] {
                let extra = crates.join(name).join(extra);
                if extra.exists() {
                    println!("cargo:rerun-if-changed={}", extra.display());
                }
            }
        }
        println!("cargo:rerun-if-changed={}", crates.join("../Cargo.toml").display());
        match build_preload(&crates.join("preload/Cargo.toml"), &out.join("preload-target")) {
            Some(library) => {
                fs::copy(&library, &embedded).expect("the library was just built and OUT_DIR is writable");
            }
            // The crate makes no shared library (yet): an installed one can still be named at run time.
            None => fs::write(&embedded, b"").expect("OUT_DIR is writable"),
        }
    }
    let hash = fnv(&fs::read(&embedded).expect("written above"));
    println!("cargo:rustc-env=KERNMALLOC_EMBEDDED={}", embedded.display());
    println!("cargo:rustc-env=KERNMALLOC_EMBEDDED_HASH={hash:016x}");
}

fn build_preload(manifest: &Path, target_dir: &Path) -> Option<PathBuf> {
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--profile", "preload", "-p", "kernmalloc-preload", "--lib"]);
    command.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target_dir).args(["--target", &target]);
    // What cargo tells this script about our own build is not for the other: clippy's and the coverage tool's wrappers and
    // flags, our features and profile.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours =
            text.starts_with("CARGO_FEATURE_") || text.starts_with("CARGO_CFG_") || text.starts_with("CARGO_PKG_");
        let named = matches!(
            &*text,
            "CARGO_ENCODED_RUSTFLAGS"
                | "RUSTFLAGS"
                | "CARGO_BUILD_RUSTFLAGS"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER"
                | "CLIPPY_ARGS"
                | "LLVM_PROFILE_FILE"
                | "CARGO_TARGET_DIR"
                | "CARGO_BUILD_TARGET_DIR"
                | "CARGO_BUILD_TARGET"
                | "CARGO_PRIMARY_PACKAGE"
                | "CARGO_MANIFEST_DIR"
                | "OUT_DIR"
                | "PROFILE"
                | "OPT_LEVEL"
                | "DEBUG"
        );
        if ours || named {
            command.env_remove(&name);
        }
    }
    match command.status() {
        Ok(status) if status.success() => {}
        // Its own messages are above; a panic's trace would only bury them.
        failed => {
            eprintln!("the preload library does not build: {failed:?}");
            std::process::exit(1);
        }
    }
    let library = target_dir.join(target).join("preload/libkernmalloc_preload.so");
    library.is_file().then_some(library)
}

/// FNV-1a: a name for the content; what the file holds is compared byte by byte before it is used.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
