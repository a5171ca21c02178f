//! `kernmalloc run`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::args::{AttributionArg, RunArgs};
use crate::child::{self, SpawnError};
use crate::diagnose;
use crate::family::{self, Member};
use crate::symbols::Symbols;
use crate::{json, library, report};

/// Exit status when the program was not found, and when it was but could not be executed (POSIX's shell and env).
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// Names the directories of `run` beside those of programs without one.
pub(crate) const DIRECTORY_PREFIX: &str = "kernmalloc-run-";

pub(crate) fn run(args: &RunArgs) -> Result<u8> {
    let library = library::find()?;
    let tunables = tunables(args)?;
    let directory = Directory::new()?;
    let program = &args.program[0];
    let mut command = Command::new(program);
    command.args(&args.program[1..]);
    command.env("LD_PRELOAD", prepended(library.into_os_string(), env::var_os("LD_PRELOAD")));
    command.env(abi::DIR_ENV, &directory.path);
    if let Some(tunables) = tunables {
        command.env(abi::TUNABLES_ENV, tunables);
    }
    let (pid, status) = match child::run(&mut command) {
        Ok(done) => done,
        Err(SpawnError::Exec(e)) => {
            let _ = writeln!(io::stderr(), "kernmalloc: {}: {e}", program.to_string_lossy());
            return Ok(if e.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE });
        }
        Err(SpawnError::Wait(e)) => return Err(e).context("waiting for the program"),
    };
    if !args.quiet {
        let ended = format!("{} (pid {pid}) {}", program.to_string_lossy(), child::describe(status));
        // The program's status is worth more than a table that cannot be written: it is returned in any case.
        if let Err(e) = show(args, &directory.path, pid, &ended)
            && !crate::is_broken_pipe(&e)
        {
            let _ = writeln!(io::stderr(), "kernmalloc: {e:#}");
        }
    }
    Ok(child::exit_code(status))
}

/// `library` in front of what was to be preloaded anyway.
fn prepended(library: OsString, existing: Option<OsString>) -> OsString {
    let mut list = library;
    if let Some(existing) = existing.filter(|existing| !existing.is_empty()) {
        // Under another `run` it is there already; the loader would not mind, but the list would grow with each.
        let ours = list.clone();
        let others = existing.as_bytes().split(|b| b" :".contains(b));
        let others = others.filter(|&other| !other.is_empty() && other != ours.as_bytes());
        for other in others {
            list.push(":");
            list.push(OsStr::from_bytes(other));
        }
    }
    list
}

/// The list of tunables for the program, ours after those that are set already.
fn tunables(args: &RunArgs) -> Result<Option<OsString>> {
    let mut ours = Vec::new();
    match args.attribution {
        Some(AttributionArg::Off) => ours.push("kern.malloc.attribution=off".to_owned()),
        Some(AttributionArg::Library) => ours.push("kern.malloc.attribution=library".to_owned()),
        Some(AttributionArg::Site) => ours.push("kern.malloc.attribution=site".to_owned()),
        None => {}
    }
    for set in &args.set {
        match set.split_once('=') {
            Some((name, value)) if !name.is_empty() && !value.contains(',') => ours.push(set.clone()),
            _ => bail!("--set takes NAME=VALUE without a comma, not {set:?}"),
        }
    }
    if ours.is_empty() {
        return Ok(None);
    }
    let mut list = env::var_os(abi::TUNABLES_ENV).filter(|list| !list.is_empty()).unwrap_or_default();
    if !list.is_empty() {
        list.push(",");
    }
    list.push(ours.join(","));
    Ok(Some(list))
}

/// A directory for the objects of one family, removed with what is in it.
struct Directory {
    path: PathBuf,
}

impl Directory {
    fn new() -> Result<Self> {
        let mut failures = Vec::new();
        // A file system too small for the objects is better than none.
        let (roomy, tight): (Vec<_>, Vec<_>) = Self::parents().into_iter().partition(|parent| has_room(parent));
        for parent in roomy.into_iter().chain(tight) {
            match Self::within(&parent) {
                Ok(path) => return Ok(Self { path }),
                Err(e) => failures.push(format!("{}: {e}", parent.display())),
            }
        }
        bail!("no directory for the statistics: {}", failures.join("; "))
    }

    /// Memory first: the objects are written with every allocation.
    pub(crate) fn parents() -> Vec<PathBuf> {
        let shm = Some(PathBuf::from("/dev/shm")).filter(|path| is_tmpfs(path));
        let named = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let others = [named("XDG_RUNTIME_DIR"), named("TMPDIR"), Some(PathBuf::from("/tmp"))];
        shm.into_iter().chain(others.into_iter().flatten()).collect()
    }

    fn within(parent: &Path) -> io::Result<PathBuf> {
        let mut nonce = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        loop {
            let path = parent.join(format!("{DIRECTORY_PREFIX}{}-{nonce:x}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    // What root runs may go on as another user, and makes its object all the same: as in /tmp, but without looking round.
                    // SAFETY: takes nothing, cannot fail.
                    if unsafe { libc::geteuid() } == 0 {
                        fs::set_permissions(&path, Permissions::from_mode(0o1733))?;
                    }
                    return Ok(path);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => nonce = nonce.wrapping_add(1),
                Err(e) => return Err(e),
            }
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Programs of the family that still run keep their objects mapped; `ps` and `vmstat` find them there.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Where `run` may have made its directories.
pub(crate) fn directory_parents() -> Vec<PathBuf> {
    Directory::parents()
}

/// Where less than 64 MiB are free the library puts its object elsewhere, out of our reach: a file system that runs full would
/// end the program. Containers' `/dev/shm` often is that small. Twice as much leaves some for a family.
const ROOM_BYTES: u64 = 128 << 20;

fn has_room(path: &Path) -> bool {
    statfs(path).is_some_and(|stat| stat.f_bavail.saturating_mul(stat.f_bsize as u64) >= ROOM_BYTES)
}

fn is_tmpfs(path: &Path) -> bool {
    statfs(path).is_some_and(|stat| stat.f_type == libc::TMPFS_MAGIC)
}

fn statfs(path: &Path) -> Option<libc::statfs> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a NUL-terminated path and room for the answer.
    let done = unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } == 0;
    // SAFETY: all zero is a valid answer, and so is what the call wrote.
    done.then(|| unsafe { stat.assume_init() })
}

fn show(args: &RunArgs, directory: &Path, pid: u32, ended: &str) -> Result<()> {
    let (members, failures) = family::read(directory, args.no_follow_fork.then_some(pid));
    let mut remarks = failures;
    if members.is_empty() && remarks.is_empty() {
        remarks.push(diagnose::why_no_object(&args.program[0]));
    }
    for remark in remarks {
        let _ = writeln!(io::stderr(), "kernmalloc: {remark}");
    }
    let mut symbols = Symbols::new();
    match &args.output {
        Some(pattern) if pattern.contains("%p") => {
            let mut by_pid: BTreeMap<u32, Vec<&Member>> = BTreeMap::new();
            for member in &members {
                by_pid.entry(member.snapshot.program.pid).or_default().push(member);
            }
            for (pid, images) in by_pid {
                let path = pattern.replace("%p", &pid.to_string());
                write_file(&path, &document(args, &images, None, &mut symbols))?;
            }
            Ok(())
        }
        output => {
            let mut all: Vec<&Member> = members.iter().collect();
            let few = output.is_some() || args.all || args.table.json || all.len() <= MOST_TABLES;
            if !few && let Some(last) = all.iter().copied().rfind(|member| member.snapshot.program.pid == pid) {
                let _ = writeln!(
                    io::stderr(),
                    "kernmalloc: {} programs and images; the table is of the last one of pid {pid} (--all prints each, -o 'FILE.%p' keeps each)",
                    all.len()
                );
                all = vec![last];
            }
            let tree = (members.len() > 1).then(|| family::tree(&members));
            let heading = Heading { ended, tree };
            let text = document(args, &all, Some(&heading), &mut symbols);
            match output {
                Some(path) => write_file(path, &text),
                None => Ok(io::stderr().write_all(text.as_bytes())?),
            }
        }
    }
}

/// A shell script starts hundreds of programs; more tables than this would bury the one that was asked for.
const MOST_TABLES: usize = 8;

fn write_file(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.to_owned())
}

/// What comes before the tables.
struct Heading<'a> {
    ended: &'a str,
    tree: Option<String>,
}

fn document(args: &RunArgs, members: &[&Member], heading: Option<&Heading<'_>>, symbols: &mut Symbols) -> String {
    if args.table.json {
        return json_document(args, members, symbols);
    }
    let mut out = String::new();
    if let Some(heading) = heading {
        out.push_str(&format!("kernmalloc: {}\n", heading.ended));
        if let Some(tree) = &heading.tree {
            out.push_str(tree);
        }
    }
    for (nth, member) in members.iter().enumerate() {
        let p = &member.snapshot.program;
        if members.len() > 1 || heading.is_none() {
            let blank = if nth > 0 || heading.is_some() { "\n" } else { "" };
            let image = if p.generation > 0 { format!(", image {}", p.generation) } else { String::new() };
            let running = if member.live.is_some() { ", running" } else { "" };
            out.push_str(&format!("{blank}pid {} {} (parent {}{image}{running})\n", p.pid, p.name(), p.parent_pid));
        }
        for remark in report::remarks(&member.snapshot, member.live, symbols) {
            out.push_str(&format!("kernmalloc: {remark}\n"));
        }
        out.push_str(&report::types(&member.snapshot, member.live, &args.table, symbols));
    }
    out
}

/// Of one image the shape of `vmstat -m --json`, of several a list of those.
fn json_document(args: &RunArgs, members: &[&Member], symbols: &mut Symbols) -> String {
    let mut one = |member: &&Member| report::types_json(&member.snapshot, member.live, &args.table, symbols);
    let value = match members {
        [member] => json::document(one(member)),
        _ => {
            let each = |parts: [(&'static str, Value); 2]| -> Value {
                parts.into_iter().map(|(name, part)| (name.to_owned(), part)).collect::<serde_json::Map<_, _>>().into()
            };
            let list: Vec<Value> = members.iter().map(|member| each(one(member))).collect();
            json::document([("process", Value::Array(list))])
        }
    };
    format!("{value:#}\n")
}
