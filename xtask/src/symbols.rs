//! What the preloaded library may ask of the C library.
//!
//! On the paths of malloc nothing of libc may run: it may allocate, or be wrapped by the program. A crate's feature
//! switched on elsewhere in the workspace can drag libc in without a line of ours changing, so the built file is asked.

use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::process::Command;

/// Undefined symbols that are in order, each with its reason.
const ALLOWED: &[(&str, &str)] = &[
    ("__errno_location", "ENOMEM and EINVAL are part of malloc's contract; reads the thread pointer only"),
    ("__register_atfork", "locks are taken around fork; called once at start"),
    ("pthread_atfork", "the same, by its public name"),
    ("__cxa_finalize", "every shared library's start files refer to it, weakly"),
    ("__cxa_atexit", "says that the program went through its exit handlers"),
    ("__gmon_start__", "every shared library's start files refer to it, weakly"),
    ("_ITM_deregisterTMCloneTable", "every shared library's start files refer to it, weakly"),
    ("_ITM_registerTMCloneTable", "every shared library's start files refer to it, weakly"),
    ("__rseq_offset", "where the C library keeps the restartable sequence's area; weak, missing before glibc 2.35"),
    ("__rseq_size", "whether it registered one; weak"),
    ("__rseq_flags", "how it registered it; weak"),
    ("__libc_single_threaded", "whether a second thread was ever made; weak"),
    ("__tls_get_addr", "weak in position-independent code"),
    ("dl_iterate_phdr", "names of libraries; called when a call site is first seen, never inside a critical section"),
    ("_dl_find_object", "the library of an address without a lock; weak, missing before glibc 2.35"),
    ("dlsym", "whether the program brings its own malloc; called once at start"),
    ("__cxa_throw", "weak: operator new throws bad_alloc through the program's own C++ library"),
    ("__cxa_allocate_exception", "weak, the same"),
    ("_ZSt17__throw_bad_allocv", "weak, the same"),
    ("_ZSt15get_new_handlerv", "weak: operator new calls the program's handler"),
    ("_ZSt7nothrow", "weak, data"),
    ("environ", "tunables, read once at start"),
    ("__environ", "the same"),
    ("abort", "the end of a misuse report"),
    ("memcpy", "calloc and realloc copy; the C library's is the fastest, and calls nothing"),
    ("memmove", "as memcpy"),
    ("memset", "as memcpy"),
    ("memcmp", "as memcpy"),
    ("bcmp", "as memcpy"),
    ("strlen", "as memcpy"),
];

/// Builds the library as it ships, and fails on a symbol that is not allowed.
pub(crate) fn check() -> Result<()> {
    shell::run(shell::cargo().args(["build", "--quiet", "--profile", "preload", "--package", "kernmalloc-preload"]))?;
    let dir = shell::target_dir().join("preload");
    let library = std::fs::read_dir(&dir)
        .with_context(|| dir.display().to_string())?
        .flatten()
        .map(|entry| entry.path())
        .find(|file| file.extension().is_some_and(|ext| ext == "so"))
        .with_context(|| format!("{} holds no shared library: kernmalloc-preload built none", dir.display()))?;
    let undefined = undefined(&library)?;
    let offending = offending(&undefined);
    if !offending.is_empty() {
        bail!(
            "the preload asks the C library for {}: remove the use, or allow it with its reason in xtask/src/symbols.rs",
            offending.join(", ")
        );
    }
    println!("undefined symbols of {}: all allowed", library.file_name().unwrap_or_default().to_string_lossy());
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
