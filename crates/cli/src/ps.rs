//! `kernmalloc ps`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use memstat::{clean_directory, find_programs, is_alive};
use serde_json::{Value, json};

use crate::args::PsArgs;
use crate::humanize::humanize;
use crate::{json, print, run};

pub(crate) fn ps(args: &PsArgs) -> Result<()> {
    clean();
    let mut text = format!("{:>7} {:>7} {:>6} {:>6} {:>6} COMMAND\n", "PID", "PPID", "USE", "MEMORY", "REQ");
    let mut list = Vec::new();
    for found in find_programs() {
        // It may have ended since it was found.
        let Ok(snapshot) = found.object.snapshot() else { continue };
        let (used, memory, requests) = (snapshot.blocks_in_use(), snapshot.bytes_in_use(), snapshot.requests());
        let p = &snapshot.program;
        text.push_str(&format!(
            "{:>7} {:>7} {:>6} {:>6} {:>6} {}\n",
            found.pid,
            p.parent_pid,
            humanize(used, 1000),
            humanize(memory, 1024),
            humanize(requests, 1000),
            p.exe,
        ));
        let mut program = json::program(&snapshot);
        if let Value::Object(map) = &mut program {
            // As seen from here, which may be another pid namespace than the program's.
            map.insert("pid".to_owned(), json!(found.pid));
            map.insert("in-use".to_owned(), json!(used));
            map.insert("memory-use".to_owned(), json!(memory));
            map.insert("requests".to_owned(), json!(requests));
        }
        list.push(program);
    }
    if args.json {
        text = format!("{:#}\n", json::document([("process", Value::Array(list))]));
    }
    print(&text)
}

/// Removes what killed programs and killed `run` commands of this user left.
fn clean() {
    // SAFETY: takes nothing, cannot fail.
    let uid = unsafe { libc::geteuid() };
    let default = PathBuf::from(format!("{}{uid}", abi::DEFAULT_DIR_PREFIX));
    // Nothing there, or not ours: nothing to clean.
    let _ = clean_directory(&default);
    for parent in run::directory_parents() {
        let Ok(entries) = fs::read_dir(parent) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            let orphan = run_pid(&path).is_some_and(|pid| !is_alive(pid));
            if orphan && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid) {
                let _ = clean_directory(&path);
                // Not while a program of that family lives.
                let _ = fs::remove_dir(&path);
            }
        }
    }
}

/// The pid of the `run` that made a directory.
fn run_pid(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix(run::DIRECTORY_PREFIX)?.split('-').next()?.parse().ok()
}
