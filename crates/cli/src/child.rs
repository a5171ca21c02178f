//! The program of `run`: started, its signals passed on, its end waited for.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

/// What a person or a supervisor may send to us and means for the program.
const FORWARDED: [i32; 8] = [
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGTSTP,
];

/// A set of signals, blocked until dropped.
struct Blocked {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

impl Blocked {
    fn new() -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are ours; an all-zero set is valid, and every call below writes a valid one.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in FORWARDED.into_iter().chain([libc::SIGCHLD, libc::SIGCONT]) {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            Self { set: set.assume_init(), before: before.assume_init() }
        }
    }

    /// Waits for one of the signals: its number, and whether a process sent it (the kernel sends the terminal's).
    fn wait(&self) -> io::Result<(i32, bool)> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        loop {
            // SAFETY: a set of ours and room for the answer; all zero is a valid siginfo_t.
            let signal = unsafe { libc::sigwaitinfo(&self.set, info.as_mut_ptr()) };
            if signal > 0 {
                // SAFETY: written by the call.
                let code = unsafe { info.assume_init_ref() }.si_code;
                return Ok((signal, code <= 0));
            }
            let e = io::Error::last_os_error();
            if e.kind() != io::ErrorKind::Interrupted {
                return Err(e);
            }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one the system gave us.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

/// Runs the program to its end, standing in for it: signals sent to us go to it, and when it stops we stop.
///
/// What the terminal sends is not passed on: the program is in our process group and has it already.
pub(crate) fn run(command: &mut Command) -> Result<(u32, ExitStatus), SpawnError> {
    let blocked = Blocked::new();
    let before = blocked.before;
    // Ignored (as some daemons leave it), it would take the program's status with it. The program gets what we got.
    // SAFETY: the default action is no handler of ours.
    let on_child = unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: both calls are async-signal-safe, and the closure touches nothing else.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGCHLD, on_child);
            libc::sigprocmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
            Ok(())
        });
    }
    let mut child = command.spawn().map_err(SpawnError::Exec)?;
    let pid = child.id();
    loop {
        let (signal, by_process) = blocked.wait().map_err(SpawnError::Wait)?;
        match signal {
            libc::SIGCHLD => {
                if let Some(status) = reap(&mut child).map_err(SpawnError::Wait)? {
                    return Ok((pid, status));
                }
            }
            // Someone resumed us: whether the program was resumed with us or not, it should run now.
            libc::SIGCONT => send(pid, libc::SIGCONT),
            _ if by_process => send(pid, signal),
            _ => {}
        }
    }
}

/// Why there is no exit status.
pub(crate) enum SpawnError {
    /// The program could not be executed.
    Exec(io::Error),
    /// It runs, but cannot be waited for.
    Wait(io::Error),
}

fn send(pid: u32, signal: i32) {
    // SAFETY: the child is not reaped before `run` returns, so its pid is nobody else's.
    unsafe { libc::kill(pid as i32, signal) };
}

/// The status of a child that ended. One that stopped stops us too, so that a shell sees the job stop.
fn reap(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    let pid = child.id() as i32;
    loop {
        let mut status = 0;
        // SAFETY: a child of ours and room for its status.
        let found = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG | libc::WUNTRACED) };
        match found {
            0 => return Ok(None),
            -1 => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => {}
                e => return Err(e),
            },
            _ if libc::WIFSTOPPED(status) => {
                // SAFETY: to ourselves.
                unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
            }
            _ => return Ok(Some(ExitStatus::from_raw(status))),
        }
    }
}

/// The status to exit with: the program's own, or 128+n when signal n ended it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (None, None) => crate::OWN_FAILURE,
    }
}

/// `exited with status 3`, `was killed by signal 9 (SIGKILL)`.
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with status {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal} ({})", signal_name(signal)),
        (None, None) => "ended".to_owned(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGSYS => "SIGSYS",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        _ => "another",
    }
}
