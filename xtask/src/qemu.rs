//! `cargo xtask qemu`: the test kernel, built, booted and judged. And `cargo xtask suite`: the same tests on every platform, side
//! by side.

use crate::{debian, modules, shell};
use anyhow::{Context as _, Result, bail};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Frame pointers are what a backtrace is made of.
pub(crate) const RUSTFLAGS: &str = "-C force-frame-pointers=yes";
const PACKAGE: &str = "kernmalloc-testkernel";
/// A machine that says nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(90);
/// QEMU's status when the kernel says that all passed, see `testkernel/src/serial.rs`.
const PASSED: i32 = 0x10 << 1 | 1;
/// And when it has panicked.
const PANICKED: i32 = 0x12 << 1 | 1;

/// A machine, and what the kernel is told.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    cpus: usize,
    /// A thread of the host for each CPU, which then really run at once.
    multi: bool,
    /// One instruction at a time, so that an interrupt can strike between any two.
    single_step: bool,
    /// NUMA nodes.
    numa: usize,
    /// Timer interrupts per second and CPU.
    hz: u32,
    /// Percent of the usual work.
    effort: usize,
    fault: Option<String>,
    only: Option<String>,
    /// Commands for the debugger, which is entered after the suite.
    debugger: Vec<String>,
    /// The kernel panics after the suite; the debugger is entered then.
    panic: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 4,
            multi: false,
            single_step: false,
            numa: 1,
            hz: 1000,
            effort: 100,
            fault: None,
            only: None,
            debugger: Vec::new(),
            panic: false,
        }
    }
}

/// A fault that can be put in: what makes the machine one on which it shows, and how the suite says that it has seen it.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    adapt: fn(&mut Machine),
    symptom: &'static str,
}

/// The negative controls.
pub(crate) const FAULTS: &[Fault] = &[
    Fault {
        name: "section-mask",
        // Interrupts mostly strike where translated code ends; one instruction at a time, they strike anywhere.
        adapt: Machine::stepping_longer,
        symptom: "a_section_has_one_holder ... FAILED",
    },
    Fault { name: "tlb-shootdown", adapt: |_| {}, symptom: "pages_given_back_are_gone_on_every_cpu ... FAILED" },
    Fault { name: "fpu-save", adapt: |_| {}, symptom: "interrupts_spare_floating_point ... FAILED" },
    Fault { name: "red-zone", adapt: |_| {}, symptom: "interrupts_spare_the_red_zone ... FAILED" },
    Fault { name: "lost-wakeup", adapt: Machine::stepping_longer, symptom: "a wake-up was lost" },
    Fault {
        name: "depot-race",
        // A few instructions of two CPUs have to coincide: one test, for as long as it takes. What is damaged then can come to
        // light in any of the allocator's checks.
        adapt: |machine| {
            (machine.multi, machine.effort, machine.only) = (true, 5000, Some("buckets_change_hands".to_owned()));
        },
        symptom: "",
    },
];

/// What a machine printed and how it ended.
pub(crate) struct Run {
    pub(crate) lines: Vec<String>,
    /// `None` when it hung.
    status: Option<i32>,
}

impl Run {
    pub(crate) fn passed(&self) -> bool {
        self.status == Some(PASSED)
    }

    /// The first line that says what went wrong.
    pub(crate) fn why(&self) -> String {
        let failed = self.lines.iter().position(|line| line.starts_with("panic: ") || line.ends_with("... FAILED"));
        match failed {
            Some(at) => self.lines[at..].iter().take(2).map(|line| line.trim()).collect::<Vec<_>>().join(": "),
            None if self.status.is_none() => format!("hung: nothing was printed for {} s", PATIENCE.as_secs()),
            None => format!("qemu ended with status {:?}", self.status),
        }
    }
}

impl Machine {
    fn stepping(&mut self) {
        (self.single_step, self.cpus, self.hz, self.effort) = (true, 2, 10_000, 4);
    }

    /// For a control: it ends when it has seen the fault, and until then may take its time.
    fn stepping_longer(&mut self) {
        self.stepping();
        self.effort = 20;
    }

    /// Four CPUs that take turns; the same in two domains, for what domains are about; two CPUs at once; and two, one instruction at a
    /// time under a fast timer.
    pub(crate) fn for_tests() -> [Self; 4] {
        let mut machines: [Self; 4] = core::array::from_fn(|_| Self::default());
        let [_, domains, multi, stepping] = &mut machines;
        (domains.numa, domains.effort) = (2, 20);
        (multi.cpus, multi.multi) = (2, true);
        stepping.stepping();
        machines
    }

    /// A machine on which the fault must show.
    pub(crate) fn with_fault(name: &str) -> Result<Self> {
        let Some(fault) = FAULTS.iter().find(|fault| fault.name == name) else {
            let names: Vec<_> = FAULTS.iter().map(|fault| fault.name).collect();
            bail!("no fault is named {name:?}; there are {}", names.join(", "));
        };
        let mut machine = Self { fault: Some(name.to_owned()), ..Self::default() };
        (fault.adapt)(&mut machine);
        Ok(machine)
    }

    fn parse(args: &[String]) -> Result<Self> {
        let fault = args.iter().position(|arg| arg == "--break").and_then(|at| args.get(at + 1));
        let mut machine = fault.map_or_else(|| Ok(Self::default()), |name| Self::with_fault(name))?;
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            let number = |text: &String| text.parse().with_context(|| format!("{arg} {text}: not a number"));
            match arg.as_str() {
                "--smp" => machine.cpus = number(value()?)?,
                "--multi" => machine.multi = true,
                "--singlestep" => machine.stepping(),
                "--numa" => machine.numa = number(value()?)?,
                "--hz" => machine.hz = number(value()?)? as u32,
                "--effort" => machine.effort = number(value()?)?,
                "--only" => machine.only = Some(value()?.clone()),
                "--debugger" => machine.debugger.push(value()?.clone()),
                "--panic" => machine.panic = true,
                "--break" => _ = value()?,
                _ => bail!("qemu has no option {arg:?}; `cargo xtask help` names them"),
            }
        }
        if !(1..=16).contains(&machine.cpus) || machine.numa == 0 || machine.numa > machine.cpus {
            bail!("--smp is from 1 to 16, and --numa at most that");
        }
        Ok(machine)
    }

    /// The machine in a few words.
    pub(crate) fn described(&self) -> String {
        let how = if self.multi { "at once" } else { "in turn" };
        let step = if self.single_step { ", one instruction at a time" } else { "" };
        let domains = if self.numa > 1 { format!(" of {} domains", self.numa) } else { String::new() };
        format!("{} CPUs{domains} {how}{step}, timer at {} Hz", self.cpus, self.hz)
    }

    fn command_line(&self) -> String {
        let mut line = format!("hz={} effort={}", self.hz, self.effort);
        let mut add = |name: &str, value: &Option<String>| {
            if let Some(value) = value {
                line += &format!(" {name}={value}");
            }
        };
        add("break", &self.fault);
        add("only", &self.only);
        if self.numa > 1 {
            line += &format!(" numa={}", self.numa);
        }
        match (self.panic, self.debugger.is_empty()) {
            (true, true) => line += " panic",
            (true, false) => line += " ddb panic",
            (false, true) => {}
            (false, false) => line += " ddb debugger",
        }
        line
    }

    fn command(&self, kernel: &std::path::Path) -> Command {
        const MEMORY_MIB: usize = 256;
        let mut command = Command::new("qemu-system-x86_64");
        let thread = if self.multi { "multi" } else { "single" };
        command.args(["-machine", "q35", "-cpu", "qemu64", "-accel", &format!("tcg,thread={thread}")]);
        command.args(["-smp", &self.cpus.to_string(), "-m", &MEMORY_MIB.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        if self.single_step {
            command.arg("-singlestep");
        }
        for node in 0..if self.numa > 1 { self.numa } else { 0 } {
            let (bytes, cpus) = (MEMORY_MIB / self.numa, (self.cpus - 1 - node) / self.numa + 1);
            let cpus: Vec<_> = (0..cpus).map(|nth| format!("cpus={}", node + nth * self.numa)).collect();
            command.args(["-object", &format!("memory-backend-ram,id=m{node},size={bytes}M")]);
            command.args(["-numa", &format!("node,nodeid={node},memdev=m{node},{}", cpus.join(","))]);
        }
        command.arg("-kernel").arg(kernel).args(["-append", &self.command_line()]);
        command
    }

    /// Boots the kernel. `show` is what happens to each line.
    pub(crate) fn run(&self, kernel: &std::path::Path, mut show: impl FnMut(&str)) -> Result<Run> {
        let mut command = self.command(kernel);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("qemu-system-x86_64 cannot be started (package qemu-system-x86)")?;
        let mut input = child.stdin.take().context("no pipe")?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let (mut lines, mut hung) = (Vec::new(), false);
        loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok(line) => {
                    show(&line);
                    if line.starts_with("KDB: enter") {
                        for command in &self.debugger {
                            writeln!(input, "{command}")?;
                        }
                        writeln!(input, "continue")?;
                    }
                    lines.push(line);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    hung = true;
                    child.kill()?;
                    break;
                }
            }
        }
        drop(reader.join());
        let status = child.wait()?;
        Ok(Run { lines, status: if hung { None } else { status.code() } })
    }
}

/// Builds the kernel.
pub(crate) fn build() -> Result<PathBuf> {
    build_as("kernel", &[])
}

fn build_as(profile: &str, features: &[&str]) -> Result<PathBuf> {
    debian::provide_qemu();
    let mut cargo = shell::cargo();
    cargo.env("KERNMALLOC_MODULES", modules::build()?);
    cargo.env("RUSTFLAGS", RUSTFLAGS).args(["build", "--quiet", "--package", PACKAGE, "--profile", profile]);
    shell::run(cargo.args(features))?;
    Ok(shell::target_dir().join(profile).join("testkernel"))
}

/// `cargo xtask qemu --peers`: threads that box, on our allocator and on others, in the same kernel. Writes the record.
fn peers() -> Result<()> {
    const RECORD: &str = "docs/benchmarks/kernel.md";
    let kernel = build_as("kernel-bench", &["--features", "peers"])?;
    let machine = Machine { cpus: 4, multi: true, only: Some("boxes".to_owned()), ..Machine::default() };
    let run = machine.run(&kernel, |line| println!("{line}"))?;
    if !run.passed() {
        bail!("{}", run.why());
    }
    let table: String = run.lines.iter().filter(|line| line.starts_with('|')).map(|line| format!("{line}\n")).collect();
    let text = format!(
        "# Boxing in a kernel\n\nWritten by `cargo xtask qemu --peers`. Threads in the test kernel that allocate and free boxes of 16, 40, \
         104 and 232 bytes, eight\nheld at a time; each of the others behind that kernel's spin lock, which masks interrupts. The machine is \
         emulated (QEMU, TCG,\n{}), hence the figures are worth something beside each other only. Best of three.\n\n{table}\n{}",
        machine.described(),
        crate::machine::described()
    );
    std::fs::write(shell::root().join(RECORD), text)?;
    println!("{RECORD} written");
    Ok(())
}

/// Functions of the kernel by address, for backtraces.
struct Symbols(Vec<(u64, String)>);

impl Symbols {
    fn of(kernel: &std::path::Path) -> Self {
        let listed = shell::output(Command::new("nm").args(["-C", "-n"]).arg(kernel)).unwrap_or_default();
        let symbol = |line: &str| {
            let (addr, rest) = line.split_once(' ')?;
            Some((u64::from_str_radix(addr, 16).ok()?, rest.get(2..)?.to_owned()))
        };
        Self(listed.lines().filter_map(symbol).collect())
    }

    /// A line of a backtrace with the function's name.
    fn resolve(&self, line: &str) -> Option<String> {
        let addr = u64::from_str_radix(line.strip_prefix("  at 0x")?, 16).ok()?;
        let at = self.0.partition_point(|(start, _)| *start <= addr).checked_sub(1)?;
        let (start, name) = &self.0[at];
        Some(format!("{line} {name}+{:#x}", addr - start))
    }
}

/// `cargo xtask qemu`.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if args == ["--peers"] {
        return peers();
    }
    let machine = Machine::parse(args)?;
    let kernel = build()?;
    let symbols = Symbols::of(&kernel);
    println!("{}", machine.described());
    let run = machine.run(&kernel, |line| println!("{}", symbols.resolve(line).as_deref().unwrap_or(line)))?;
    match (&machine.fault, run.passed()) {
        (None, true) => Ok(()),
        (None, false) => bail!("{}", run.why()),
        (Some(name), false) => {
            println!("fault {name} is caught: {}", run.why());
            Ok(())
        }
        (Some(name), true) => bail!("fault {name} was not caught: the suite passed"),
    }
}

/// A negative control: an error when the suite passes with the fault, or fails without having seen it.
pub(crate) fn control(kernel: &std::path::Path, fault: &Fault) -> Result<()> {
    let run = Machine::with_fault(fault.name)?.run(kernel, |_| ())?;
    let why = run.why();
    if run.passed() {
        bail!("the suite passes with the fault {}", fault.name);
    }
    if run.status.is_none() || !why.contains(fault.symptom) {
        bail!("with the fault {} the suite was to say {:?}, but: {why}", fault.name, fault.symptom);
    }
    println!("caught: {why}");
    Ok(())
}

/// What the debugger is asked in the tests, and how the lines of the answer begin: all of it where that is the same in every run. The
/// tables' contents are tested in `crates/kern/tests/debugger.rs`, and by the kernel against its own record.
const QUESTIONS: &[(&str, &[&str])] = &[
    ("show malloc", &["              Type        InUse        MemUse     Requests", "            malloc "]),
    ("show malloc/i", &["Type,InUse,MemUse,Requests", "\"malloc\","]),
    (
        "show uma",
        &["              Zone   Size    Used    Free    Requests  Sleeps  Bucket  Total Mem    XFree", "      "],
    ),
    ("show uma/i", &["Zone,Size,Used,Free,Requests,Sleeps,Bucket,Total Mem,XFree", "\"malloc-"]),
    ("show umacache", &["              Zone     Size     Used     Free     Requests   Bucket"]),
    (
        "show vmem",
        &[
            "vmem 0xffffffff8",
            "\tquantum:\t4096",
            "\tsize:\t",
            "\tinuse:\t",
            "\tfree:\t",
            "\tbusy tags:\t",
            "\tfree tags:\t",
        ],
    ),
    ("show vmemdump", &["vmem 0xffffffff8", "\t0xffffd000"]),
    ("show multizone_matches 10", &["0x10 is in no block"]),
    ("show multizone_matches", &["usage: show multizone_matches <addr>"]),
    ("show block 10", &["0x10 is in no block"]),
    ("show threads", &["thread 0: Running"]),
    ("trace", &["  at 0xffffffff8"]),
    ("nonsense", &["no command is called \"nonsense\"; there are:", "  show malloc"]),
];

/// Asks the debugger all of [`QUESTIONS`]: entered after the suite, and at a panic.
pub(crate) fn ask_debugger(kernel: &std::path::Path) -> Result<()> {
    let questions = |more: &[(&'static str, &'static [&'static str])]| {
        QUESTIONS.iter().chain(more).map(|(question, answer)| (*question, *answer)).collect::<Vec<_>>()
    };
    let machine = Machine { only: Some("boxes".to_owned()), ..Machine::default() };
    let after_suite = questions(&[("show panic", &["no panic"])]);
    let run = machine.ask(kernel, &after_suite)?;
    if !run.passed() {
        bail!("{}", run.why());
    }
    let at_panic = questions(&[(
        "show panic",
        &["panic: panicked at testkernel/src/", "asked for on the command line", "cpuid = ", "dumptid = 0"],
    )]);
    let run = Machine { panic: true, ..machine }.ask(kernel, &at_panic)?;
    if run.status != Some(PANICKED) {
        bail!("a kernel that panics, and goes on from the prompt, ended with {:?}: {}", run.status, run.why());
    }
    println!("{} questions answered", after_suite.len() + at_panic.len());
    Ok(())
}

impl Machine {
    /// Boots the kernel, enters the debugger and holds its answers against those expected.
    fn ask(&self, kernel: &std::path::Path, questions: &[(&str, &[&str])]) -> Result<Run> {
        let debugger = questions.iter().map(|(question, _)| (*question).to_owned()).collect();
        let run = Self { debugger, ..self.clone() }.run(kernel, |_| ())?;
        for (question, answer) in questions {
            let asked = run.lines.iter().position(|line| line == &format!("db> {question}"));
            let found = asked.and_then(|at| run.lines.get(at + 1..)).unwrap_or_default();
            for (number, expected) in answer.iter().enumerate() {
                let line = found.get(number).map_or("", String::as_str);
                if !line.starts_with(expected) {
                    bail!("line {} of the answer to {question:?} is {line:?}, not {expected:?}", number + 1);
                }
            }
        }
        Ok(run)
    }
}

/// Names and verdicts in what a suite printed.
fn verdicts<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    let verdict = |line: &str| {
        let (name, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
        Some((name.to_owned(), verdict.split(',').next().unwrap_or(verdict).to_owned()))
    };
    lines.filter_map(verdict).collect()
}

/// `cargo xtask suite`: the list with its results on the fake machine, in a Linux process and in the kernel. An error if
/// any failed.
pub(crate) fn suite() -> Result<()> {
    let kernel = build()?;
    let mut columns = Vec::new();
    for host in ["fake", "linux"] {
        let mut lines = Vec::new();
        let mut cargo = shell::cargo();
        cargo.args(["test", "--quiet", "--release", "--package", "kernmalloc-testsuite", "--test", host]);
        shell::collect(&mut cargo, &mut lines)?;
        if host == "linux" {
            // The programs in C are linked with the library here, and are modules there.
            let mut cargo = shell::cargo();
            cargo.args(["test", "--quiet", "--release", "--package", "kernmalloc-clib", "--test", "c_programs", "--"]);
            shell::collect(cargo.arg("--format=pretty").args(modules::C_PROGRAMS), &mut lines)?;
        }
        columns.push((host, verdicts(lines.iter().map(String::as_str))));
    }
    let run = Machine::default().run(&kernel, |_| ())?;
    columns.push(("kernel", verdicts(run.lines.iter().map(String::as_str))));
    let mut names: Vec<&String> = Vec::new();
    for (_, verdicts) in &columns {
        for (name, _) in verdicts {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    println!("{:width$}  {:8}{:8}{:8}", "", "fake", "linux", "kernel");
    for name in &names {
        print!("{name:width$}  ");
        for (_, verdicts) in &columns {
            let verdict = verdicts.iter().find(|(known, _)| known == *name).map_or("-", |(_, verdict)| verdict);
            print!("{verdict:8}");
        }
        println!();
    }
    let count = |verdicts: &[(String, String)]| verdicts.iter().filter(|(_, verdict)| verdict == "ok").count();
    print!("{:width$}  ", "passed");
    columns.iter().for_each(|(_, verdicts)| print!("{:<8}", count(verdicts)));
    println!();
    let failed = columns.iter().any(|(_, verdicts)| verdicts.iter().any(|(_, verdict)| verdict == "FAILED"));
    if failed || !run.passed() || columns.iter().any(|(_, verdicts)| verdicts.is_empty()) {
        bail!("not all passed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_make_a_machine() {
        let parse = |text: &str| Machine::parse(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let machine = parse("--smp 2 --multi --only boxes").unwrap();
        assert_eq!((machine.cpus, machine.multi), (2, true));
        assert_eq!(machine.command_line(), "hz=1000 effort=100 only=boxes");
        assert_eq!(parse("--panic").unwrap().command_line(), "hz=1000 effort=100 panic");
        let machine = parse("--panic --debugger trace --numa 2").unwrap();
        assert_eq!(machine.command_line(), "hz=1000 effort=100 numa=2 ddb panic");
        assert_eq!(parse("--break lost-wakeup").unwrap().command_line(), "hz=10000 effort=20 break=lost-wakeup");
        for wrong in ["--smp", "--smp x", "--smp 0", "--smp 17", "--break nothing", "--break", "--fast", "--numa 5"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn verdicts_are_read_from_what_a_suite_prints() {
        let lines = ["boot: 4 CPUs", "test a_b ... ok", "test c ... ignored, no interrupts here", "test d ... FAILED"];
        let found = verdicts(lines.into_iter());
        let found: Vec<_> = found.iter().map(|(name, verdict)| (name.as_str(), verdict.as_str())).collect();
        assert_eq!(found, [("a_b", "ok"), ("c", "ignored"), ("d", "FAILED")]);
    }

    #[test]
    fn a_run_says_what_went_wrong() {
        let run = |lines: &[&str], status| Run { lines: lines.iter().map(|&line| line.to_owned()).collect(), status };
        let failed = run(&["test a ... ok", "test b ... FAILED", "    3 is not 4"], Some(35));
        assert!(!failed.passed());
        assert_eq!(failed.why(), "test b ... FAILED: 3 is not 4");
        assert_eq!(run(&[], None).why(), "hung: nothing was printed for 90 s");
        assert!(run(&[], Some(PASSED)).passed());
    }
}
