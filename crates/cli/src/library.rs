//! Where the preload library is: named, installed beside the command, or embedded in it.

use std::env;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Names a library to use instead.
const LIBRARY_ENV: &str = "KERNMALLOC_LIBRARY";
/// Built with this command; empty when it was built alone.
static EMBEDDED: &[u8] = include_bytes!(env!("KERNMALLOC_EMBEDDED"));

/// The path of the library; written out first when only the embedded one is there.
pub(crate) fn find() -> Result<PathBuf> {
    if let Some(named) = env::var_os(LIBRARY_ENV).filter(|named| !named.is_empty()) {
        let path =
            fs::canonicalize(&named).with_context(|| format!("{LIBRARY_ENV} names {}", Path::new(&named).display()))?;
        return preloadable(path);
    }
    if let Some(installed) = installed() {
        return preloadable(installed);
    }
    if EMBEDDED.is_empty() {
        bail!("this command was built without the preload library; name one in {LIBRARY_ENV}");
    }
    let mut failures = Vec::new();
    for dir in cache_directories() {
        match write_embedded(&dir).and_then(preloadable) {
            Ok(path) => return Ok(path),
            Err(e) => failures.push(format!("{}: {e:#}", dir.display())),
        }
    }
    bail!("no directory for the preload library: {}; name a copy of it in {LIBRARY_ENV}", failures.join("; "))
}

/// The loader splits the list of libraries at blanks and colons, and nothing quotes them.
fn preloadable(path: PathBuf) -> Result<PathBuf> {
    if path.as_os_str().as_bytes().iter().any(|b| b" \t:".contains(b)) {
        bail!("{} cannot be preloaded: blanks and colons separate libraries in LD_PRELOAD", path.display());
    }
    Ok(path)
}

fn installed() -> Option<PathBuf> {
    let exe = fs::canonicalize(env::current_exe().ok()?).ok()?;
    let dir = exe.parent()?;
    let candidates = [dir.join("libkernmalloc.so"), dir.join("../lib/kernmalloc/libkernmalloc.so")];
    candidates.into_iter().find_map(|path| fs::canonicalize(path).ok().filter(|path| path.is_file()))
}

fn cache_directories() -> Vec<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // SAFETY: takes nothing, cannot fail.
    let uid = unsafe { libc::geteuid() };
    let named = absolute("XDG_CACHE_HOME");
    // What root runs often goes on as another user, who cannot look into root's home.
    let shared = (uid == 0).then(|| PathBuf::from("/var/cache"));
    let home = absolute("HOME").map(|home| home.join(".cache"));
    let caches = match named {
        Some(named) => vec![named],
        None => shared.into_iter().chain(home).collect(),
    };
    let temporary = Path::new("/tmp").join(format!("kernmalloc-{uid}"));
    caches.into_iter().map(|cache| cache.join("kernmalloc")).chain([temporary]).collect()
}

/// The embedded library as a file in `dir`, written at most once; what is there under its name must be the same to the byte.
fn write_embedded(dir: &Path) -> Result<PathBuf> {
    private_directory(dir)?;
    let path = dir.join(concat!("libkernmalloc-", env!("KERNMALLOC_EMBEDDED_HASH"), ".so"));
    if holds_embedded(&path) {
        return Ok(path);
    }
    // Written beside and renamed: whoever runs at the same time finds all of it or nothing.
    let temporary = dir.join(format!(".libkernmalloc.{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&temporary)?;
        file.write_all(EMBEDDED)?;
        // Whatever the umask: who it is for may be another user.
        file.set_permissions(Permissions::from_mode(0o755))?;
        drop(file);
        fs::rename(&temporary, &path)
    };
    if let Err(e) = write() {
        let _ = fs::remove_file(&temporary);
        return Err(e.into());
    }
    Ok(path)
}

fn holds_embedded(path: &Path) -> bool {
    let mut found = Vec::with_capacity(EMBEDDED.len() + 1);
    let read = File::open(path).and_then(|file| file.take(EMBEDDED.len() as u64 + 1).read_to_end(&mut found));
    read.is_ok() && found == EMBEDDED
}

/// Makes a directory only we can write: others' code is not to be preloaded into our programs. Others may read what root has.
fn private_directory(dir: &Path) -> Result<()> {
    if !dir.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // SAFETY: takes nothing, cannot fail.
        if unsafe { libc::geteuid() } == 0 {
            fs::set_permissions(dir, Permissions::from_mode(0o755))?;
        }
    }
    let meta = fs::symlink_metadata(dir)?;
    // SAFETY: takes nothing, cannot fail.
    let uid = unsafe { libc::geteuid() };
    if !meta.is_dir() || meta.uid() != uid {
        bail!("not a directory of this user");
    }
    if meta.mode() & 0o022 != 0 {
        bail!("others may write to it");
    }
    if forbids_exec(dir) {
        bail!("its file system is mounted noexec");
    }
    Ok(())
}

fn forbids_exec(dir: &Path) -> bool {
    let Ok(path) = CString::new(dir.as_os_str().as_bytes()) else { return false };
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a NUL-terminated path, and room for the answer, which is valid when all zero too.
    let stat = unsafe {
        libc::statvfs(path.as_ptr(), stat.as_mut_ptr());
        stat.assume_init()
    };
    stat.f_flag & libc::ST_NOEXEC != 0
}
