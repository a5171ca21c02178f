//! What the preloaded library may ask of the C library.
//!
//! On the paths of malloc nothing of libc may run: it may allocate, or be wrapped by the program. A crate's feature
//! switched on elsewhere in the workspace can drag libc in without a line of ours changing, so the built file is asked.

use crate::{measure, shell};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Undefined symbols that are in order, each with its reason.
const ALLOWED: &[(&str, &str)] = &[
    ("__errno_location", "ENOMEM and EINVAL are part of malloc's contract; reads the thread pointer only"),
    ("__register_atfork", "locks are taken around fork; called once at start"),
    ("__rseq_offset", "where the C library keeps the restartable sequence's area; weak, missing before glibc 2.35"),
    ("__rseq_size", "whether it registered one; weak"),
    ("dlsym", "what we stand before (dlclose), and the program's C++ library; never on a path that serves memory"),
    ("getauxval", "whether the program is setuid; read once at start"),
    ("environ", "tunables; read once at start"),
    ("fwrite", "malloc_info writes to a stream of the program's"),
    ("abort", "the end of a misuse report"),
    ("memcpy", "calloc and realloc copy; the C library's is the fastest, and calls nothing"),
    ("memmove", "as memcpy"),
    ("memset", "as memcpy"),
    ("bcmp", "as memcpy"),
    ("strlen", "as memcpy"),
    ("__cxa_finalize", "every shared library's start files refer to it, weakly"),
    ("__gmon_start__", "every shared library's start files refer to it, weakly"),
    ("_ITM_deregisterTMCloneTable", "every shared library's start files refer to it, weakly"),
    ("_ITM_registerTMCloneTable", "every shared library's start files refer to it, weakly"),
];

/// Asks the library that the command carries; fails on a symbol that is not allowed.
pub(crate) fn check() -> Result<()> {
    let library = measure::library()?;
    let undefined = undefined(&library)?;
    let offending = offending(&undefined);
    if !offending.is_empty() {
        bail!(
            "the preload asks the C library for {}: remove the use, or allow it with its reason in xtask/src/symbols.rs",
            offending.join(", ")
        );
    }
    Ok(())
}

fn undefined(library: &Path) -> Result<String> {
    shell::output(Command::new("nm").args(["-D", "--undefined-only"]).arg(library))
}

fn offending(nm: &str) -> Vec<&str> {
    nm.lines()
        .filter_map(|line| line.split_whitespace().last())
        .filter(|symbol| {
            let name = symbol.split('@').next().unwrap_or(symbol);
            !ALLOWED.iter().any(|(allowed, _)| *allowed == name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::offending;

    #[test]
    fn names_what_is_not_allowed() {
        let nm = "                 U __errno_location@GLIBC_2.2.5\n                 w __rseq_offset\n                 U printf@GLIBC_2.2.5\n";
        assert_eq!(offending(nm), ["printf@GLIBC_2.2.5"]);
    }
}
