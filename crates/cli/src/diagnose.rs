//! Why a program made no statistics object: what its file says.

use std::env;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// One clear reason, or that there is none to be seen.
pub(crate) fn why_no_object(program: &OsStr) -> String {
    let shown = program.to_string_lossy();
    let Some(path) = find(program) else { return format!("{shown} left no statistics") };
    let mut path = path;
    // A script is its interpreter; one that names another script is not worth following further.
    for _ in 0..4 {
        match interpreter(&path) {
            Some(next) => path = next,
            None => break,
        }
    }
    let name = path.display();
    let Ok(file) = File::open(&path) else {
        return format!("{shown} left no statistics, and {name} cannot be read to see why");
    };
    let mut head = [0u8; 64];
    let elf = file.read_at(&mut head, 0).is_ok_and(|n| n == head.len()) && head.starts_with(b"\x7fELF");
    if !elf {
        return format!("{shown} left no statistics: {name} is not an ELF program");
    }
    if privileged(&path, &file) {
        return format!(
            "{shown} left no statistics: {name} is setuid, setgid or has capabilities, and such programs ignore LD_PRELOAD"
        );
    }
    if head[4] != if cfg!(target_pointer_width = "64") { 2 } else { 1 } || machine(&head) != own_machine() {
        return format!("{shown} left no statistics: {name} is for another architecture than the preload library");
    }
    if !has_interpreter(&file, &head) {
        return format!(
            "{shown} left no statistics: {name} is statically linked, so its own malloc cannot be replaced (Go programs and \
             musl's static ones are such)"
        );
    }
    format!(
        "{shown} left no statistics: it ended before its first allocation, or could not load or write anything of ours"
    )
}

fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    let executable =
        |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    env::split_paths(&env::var_os("PATH")?).map(|dir| dir.join(program)).find(executable)
}

fn interpreter(path: &Path) -> Option<PathBuf> {
    let file = File::open(path).ok()?;
    let mut head = [0u8; 256];
    let n = file.read_at(&mut head, 0).ok()?;
    let line = head[..n].strip_prefix(b"#!")?.split(|&b| b == b'\n').next()?;
    let mut words = line.split(|&b| b == b' ' || b == b'\t').filter(|word| !word.is_empty());
    let first = Path::new(OsStr::from_bytes(words.next()?)).to_owned();
    // `#!/usr/bin/env python3`
    if first.file_name() == Some(OsStr::new("env"))
        && let Some(name) = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='))
    {
        return find(OsStr::from_bytes(name));
    }
    Some(first)
}

fn privileged(path: &Path, file: &File) -> bool {
    let meta = file.metadata();
    // SAFETY: takes nothing, cannot fail.
    let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
    let set = meta.is_ok_and(|m| m.mode() & 0o4000 != 0 && m.uid() != uid || m.mode() & 0o2000 != 0 && m.gid() != gid);
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return set };
    // SAFETY: NUL-terminated names, and no buffer: only the size is asked for.
    let capabilities =
        unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) } > 0;
    // To root capabilities of a file add nothing, and the loader is not in secure mode.
    set || capabilities && uid != 0
}

fn machine(head: &[u8; 64]) -> u16 {
    u16::from_le_bytes([head[18], head[19]])
}

fn own_machine() -> u16 {
    let mut head = [0u8; 64];
    let read = File::open("/proc/self/exe").and_then(|file| file.read_at(&mut head, 0));
    if read.is_ok() { machine(&head) } else { 0 }
}

/// Is there a PT_INTERP, that is, does a loader run that reads LD_PRELOAD?
fn has_interpreter(file: &File, head: &[u8; 64]) -> bool {
    let word = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    let (at, each, count) =
        (word(&head[32..40]), u16::from_le_bytes([head[54], head[55]]), u16::from_le_bytes([head[56], head[57]]));
    (0..u64::from(count)).any(|i| {
        let mut kind = [0u8; 4];
        let offset = at.wrapping_add(i * u64::from(each));
        file.read_at(&mut kind, offset).is_ok_and(|n| n == 4) && u32::from_le_bytes(kind) == libc::PT_INTERP
    })
}
