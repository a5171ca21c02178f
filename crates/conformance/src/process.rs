//! One run of a program: to its end, or held while it waits.

use crate::Host;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Write as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Only a hang takes this long.
pub(crate) const HANG: Duration = Duration::from_secs(400);

/// A program with its arguments and surroundings.
#[derive(Clone, Debug)]
pub struct Case {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    stdin: Vec<u8>,
    report: Option<PathBuf>,
}

impl Case {
    /// Just the program.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), env: Vec::new(), dir: None, stdin: Vec::new(), report: None }
    }

    /// With further arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// In this folder.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// With this on standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// Where the command's table goes; without it, nowhere.
    #[must_use]
    pub fn report(mut self, file: impl Into<PathBuf>) -> Self {
        self.report = Some(file.into());
        self
    }

    fn command(&self, host: Host) -> Command {
        let mut command = host.command(&self.program, self.report.as_deref());
        command.args(&self.args).envs(self.env.iter().map(|(k, v)| (k, v)));
        // What a developer has in the environment is not part of the test.
        command.env_remove("KERNMALLOC_DIR").env("LC_ALL", "C").env("TZ", "UTC");
        if !self.env.iter().any(|(name, _)| name == "KERNMALLOC") {
            command.env_remove("KERNMALLOC");
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Killed as a whole when it hangs.
        command.process_group(0);
        // A shell starts what it puts in the background with these ignored, and programs inherit that.
        // SAFETY: signal(2) is safe between fork and exec, and takes no memory.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGINT, libc::SIGQUIT] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        command
    }

    /// Starts it, and lets the test talk to it.
    #[must_use]
    pub fn start(&self, host: Host) -> Live {
        let mut command = self.command(host);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stdin = child.stdin.take();
        let (lines, stdout) = drain(child.stdout.take().expect("piped"));
        let (_, stderr) = drain(child.stderr.take().expect("piped"));
        Live { host, child, stdin, lines, stdout, stderr, shown: format!("{command:?}") }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(&self, host: Host) -> Run {
        let mut live = self.start(host);
        let mut stdin = live.stdin.take().expect("piped");
        let input = self.stdin.clone();
        // It may end without reading all of it.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let run = live.finish();
        drop(writer.join());
        run
    }

    /// Runs it plainly and under kernmalloc, and compares output and status. `prepare` is called before each.
    ///
    /// Gives the plain run, for the test to see that it was worth something.
    pub fn same_with(&self, mut prepare: impl FnMut()) -> Run {
        prepare();
        let plain = self.run(Host::Plain);
        prepare();
        let ours = self.run(Host::Kernmalloc);
        assert_eq!(plain.code(), ours.code(), "plain:\n{plain}\nunder kernmalloc:\n{ours}");
        assert!(plain.stdout == ours.stdout, "standard output differs, plain:\n{plain}\nunder kernmalloc:\n{ours}");
        assert!(plain.stderr == ours.stderr, "standard error differs, plain:\n{plain}\nunder kernmalloc:\n{ours}");
        plain
    }

    /// [`Case::same_with`] with nothing to prepare.
    pub fn same(&self) -> Run {
        self.same_with(|| ())
    }
}

/// Reads a pipe to its end, and passes its lines on as they come.
fn drain(mut pipe: impl std::io::Read + Send + 'static) -> (Receiver<String>, JoinHandle<Vec<u8>>) {
    let (send, lines) = channel();
    let reader = std::thread::spawn(move || {
        let (mut all, mut begin, mut chunk) = (Vec::new(), 0, [0; 65536]);
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            all.extend_from_slice(&chunk[..n]);
            while let Some(end) = all[begin..].iter().position(|&b| b == b'\n') {
                let _ = send.send(String::from_utf8_lossy(&all[begin..begin + end]).into_owned());
                begin += end + 1;
            }
        }
        all
    });
    (lines, reader)
}

/// A program that runs.
pub struct Live {
    host: Host,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    shown: String,
}

impl Live {
    /// Pid of the program itself, which under kernmalloc is a child of the command.
    #[must_use]
    pub fn pid(&self) -> u32 {
        let first = self.child.id();
        if self.host == Host::Plain || std::env::var_os("CONFORMANCE_PRELOAD").is_some() {
            return first;
        }
        children(first).first().copied().unwrap_or(first)
    }

    /// Waits for a line of its output that `wanted` takes; gives the lines up to and with it.
    pub fn wait_for(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let mut seen = Vec::new();
        let start = Instant::now();
        loop {
            match self.lines.recv_timeout(HANG.saturating_sub(start.elapsed())) {
                Ok(line) => {
                    let last = wanted(&line);
                    seen.push(line);
                    if last {
                        return seen;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.kill();
                    panic!("{} hangs; it said {seen:#?}", self.shown);
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let shown = std::mem::take(&mut self.shown);
                    self.stdin = None;
                    let status = self.child.wait().expect("it is our child");
                    let stderr = std::mem::replace(&mut self.stderr, std::thread::spawn(Vec::new));
                    let errors = stderr.join().expect("the reader does not panic");
                    let last = &seen[seen.len().saturating_sub(20)..];
                    panic!(
                        "{shown} ended early, {status}: {}; it said last {last:#?}",
                        String::from_utf8_lossy(&errors)
                    );
                }
            }
        }
    }

    /// Writes to its standard input.
    pub fn say(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("its standard input is open").write_all(bytes).expect("it listens");
    }

    fn kill(&self) {
        // SAFETY: no memory is involved; the group is the one made for this child.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
    }

    /// Closes its standard input and waits for its end.
    #[must_use]
    pub fn finish(mut self) -> Run {
        drop(self.stdin.take());
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                break status;
            }
            if start.elapsed() > HANG {
                self.kill();
                let status = self.child.wait().expect("it is our child");
                let out = Run { status, stdout: Vec::new(), stderr: Vec::new() };
                panic!("{} hangs: {out}", self.shown);
            }
            std::thread::sleep(Duration::from_millis(if start.elapsed() < Duration::from_secs(1) { 2 } else { 20 }));
        };
        // What it left running in the background holds the pipes.
        self.kill();
        Run {
            status,
            stdout: self.stdout.join().expect("the reader does not panic"),
            stderr: self.stderr.join().expect("the reader does not panic"),
        }
    }

    /// Sends a signal to the program itself, and waits for the end.
    #[must_use]
    pub fn signal_and_finish(self, signal: i32) -> Run {
        // SAFETY: no memory is involved; the pid is of our descendant, which its parent has not waited for.
        unsafe { libc::kill(self.pid() as i32, signal) };
        self.finish()
    }

    /// Sends a signal to the process that was started (the command, where there is one), and waits for its end.
    #[must_use]
    pub fn signal_first_and_finish(self, signal: i32) -> Run {
        // SAFETY: no memory is involved; the pid is of our child, which was not waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
        self.finish()
    }
}

/// What a program left.
pub struct Run {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Run {
    /// Its standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails unless it ended well.
    #[track_caller]
    pub fn good(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Its status as a shell has it, and as the command passes it on: 128 + n for a signal.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Whether `signal` ended it, also where the command passes that on as 128 + n.
    #[must_use]
    pub fn ended_by(&self, signal: i32) -> bool {
        self.code() == 128 + signal
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The ends tell most, and a megabyte of output nothing.
        let tail = |bytes: &[u8]| {
            let from = bytes.len().saturating_sub(3000);
            String::from_utf8_lossy(&bytes[from..]).into_owned()
        };
        write!(f, "{}\nstdout: {}\nstderr: {}", self.status, tail(&self.stdout), tail(&self.stderr))
    }
}

/// Children of a process.
fn children(pid: u32) -> Vec<u32> {
    let file = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The first process of this name below `pid`, waiting for it to appear.
#[must_use]
pub fn descendant(pid: u32, name: &str) -> u32 {
    fn find(pid: u32, name: &str) -> Option<u32> {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim_end() == name {
            return Some(pid);
        }
        children(pid).into_iter().find_map(|child| find(child, name))
    }
    let start = Instant::now();
    loop {
        if let Some(found) = find(pid, name) {
            return found;
        }
        assert!(start.elapsed() < HANG, "no process named {name} below {pid}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
