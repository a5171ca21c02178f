//! Which programs are under kernmalloc now, and what dead ones left behind.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::object::Object;
use crate::process;
use crate::snapshot::Program;

/// A live program under kernmalloc.
#[derive(Debug)]
pub struct Found {
    /// Its pid in our namespace.
    pub pid: u32,
    /// Its object.
    pub object: Object,
    /// What the object says of it.
    pub program: Program,
}

/// All live programs under kernmalloc that we may read, by pid. Processes that vanish meanwhile, belong to others, or are
/// not under kernmalloc are no error.
#[must_use]
pub fn find_programs() -> Vec<Found> {
    let found = |pid| {
        let object = Object::open_pid(pid).ok()?;
        let program = object.header().ok()?;
        Some(Found { pid, object, program })
    };
    process::all_pids().into_iter().filter_map(found).collect()
}

/// The objects in a directory, by pid and generation; a file that is none is an error beside its path.
pub fn objects_in(dir: &Path) -> Result<Vec<(PathBuf, Result<Object>)>> {
    let entries = fs::read_dir(dir).map_err(|e| Error::open(dir, e))?;
    let mut paths: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| process::is_object_name(path)).collect();
    let key = |path: &PathBuf| {
        let generation = path.extension().and_then(|g| g.to_str()?.parse::<u64>().ok());
        (process::object_name_pid(path), generation)
    };
    paths.sort_by_key(key);
    Ok(paths.into_iter().map(|path| (Object::open_file(&path), path)).map(|(object, path)| (path, object)).collect())
}

/// Removes from a directory the objects of our own user whose process is dead. Returns how many.
///
/// A pid in use again by another program keeps an old object alive until that one exits: nothing is lost by waiting.
pub fn clean_directory(dir: &Path) -> io::Result<usize> {
    // SAFETY: takes nothing, cannot fail.
    let uid = unsafe { libc::geteuid() };
    let mut removed = 0;
    for entry in fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let Some(pid) = process::object_name_pid(&path) else { continue };
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_file() && meta.uid() == uid && !process::is_alive(pid) && fs::remove_file(&path).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}
