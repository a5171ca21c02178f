//! What can be wrong with an object or a process; all of it ordinary, none of it a panic.

use std::io;
use std::path::PathBuf;

/// Why statistics could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No process has this pid.
    #[error("no process has pid {pid}")]
    NoSuchProcess {
        /// The pid asked for.
        pid: u32,
    },
    /// The process was not started under kernmalloc.
    #[error("pid {pid} ({name}) is not under kernmalloc; start it with: kernmalloc run -- {name}")]
    NotUnder {
        /// The pid asked for.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// The library is in the process, but its statistics are not to be found.
    #[error(
        "pid {pid} ({name}) runs with the library, but has no statistics object: it is just starting, or could make none"
    )]
    NoObject {
        /// The pid asked for.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// The process is dead, but its parent has not collected its status yet.
    #[error("pid {pid} ({name}) has exited and waits for its parent; its figures went with it")]
    Exited {
        /// The pid asked for.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// The process still runs on the memory of its parent (between vfork and exec).
    #[error("pid {pid} runs on the memory of pid {owner} until it calls exec; ask for {owner}")]
    Borrowed {
        /// The pid asked for.
        pid: u32,
        /// Whose object is mapped there.
        owner: u32,
    },
    /// The caller may not look into the process.
    #[error("pid {pid} may not be read (run this as its user, or as root)")]
    NotPermitted {
        /// The pid asked for.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// A name that the tree does not have.
    #[error("there is no {name}; did you mean {nearest}? (kernmalloc sysctl -a shows all)")]
    NoSuchName {
        /// The name asked for.
        name: String,
        /// The most similar one.
        nearest: String,
    },
    /// A value that cannot be set, or not to this.
    #[error("{name} cannot be set: {why}")]
    NotSettable {
        /// The name.
        name: String,
        /// Why, and what can be.
        why: String,
    },
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The first bytes are not those of a statistics object.
    #[error("not a statistics object: offset 0 holds {found:#018x}, not {:#018x}", abi::MAGIC)]
    NotAnObject {
        /// The word at offset 0.
        found: u64,
    },
    /// Written by another version of kernmalloc.
    #[error("statistics object of layout version {found}; this reader knows version {}", abi::VERSION)]
    Version {
        /// The version at offset 8.
        found: u32,
    },
    /// The object ends before what it says it holds.
    #[error(
        "truncated statistics object (layout version {}): {what} at offset {offset} needs {need_bytes} bytes of {have_bytes}",
        abi::VERSION
    )]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where it starts.
        offset: u64,
        /// Where it ends.
        need_bytes: u64,
        /// Where the object ends.
        have_bytes: u64,
    },
    /// A field holds what no writer stores.
    #[error("malformed statistics object (layout version {}): {what} at offset {offset}: {found}", abi::VERSION)]
    Malformed {
        /// Which field.
        what: &'static str,
        /// Where it is.
        offset: u64,
        /// What it holds.
        found: u64,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    pub(crate) fn open(path: &std::path::Path, source: io::Error) -> Self {
        Self::io(path.display().to_string(), source)
    }

    /// Of a file under `/proc/PID`: the process may have gone, or may not be ours to read.
    pub(crate) fn proc(pid: u32, file: &str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Self::NoSuchProcess { pid },
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted { pid, source },
            _ => Self::io(PathBuf::from(format!("/proc/{pid}/{file}")).display().to_string(), source),
        }
    }
}

/// Result with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
