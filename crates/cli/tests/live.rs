//! The command with real programs under it.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn kernmalloc() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("kernmalloc"));
    command.env_remove("KERNMALLOC").env_remove("KERNMALLOC_DIR").env_remove("LD_PRELOAD");
    command
}

fn run(args: &[&str]) -> Output {
    kernmalloc().arg("run").args(args).output().unwrap()
}

fn stdout(out: &Output) -> String {
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Waits until a command's output satisfies a condition.
#[track_caller]
fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A program under kernmalloc that waits for input.
struct Live {
    run: Child,
    /// Its own pid, not that of the command.
    pid: u32,
}

impl Live {
    fn start(args: &[&str]) -> Self {
        let mut command = kernmalloc();
        command.arg("run").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = command.spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", run.id());
        let pid = wait_for("the program starts", || {
            let pid = fs::read_to_string(&children).unwrap().split_whitespace().next()?.parse().ok()?;
            let out = kernmalloc().args(["vmstat", "-m", "-p"]).arg(format!("{pid}")).output().unwrap();
            (out.status.success() && out.stdout.iter().filter(|&&b| b == b'\n').count() > 1).then_some(pid)
        });
        Self { run, pid }
    }

    fn vmstat(&self, args: &[&str]) -> Output {
        kernmalloc().arg("vmstat").args(args).arg("-p").arg(self.pid.to_string()).output().unwrap()
    }

    fn signal(pid: u32, signal: i32) {
        // SAFETY: a process of ours that nobody has waited for.
        assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0);
    }

    fn read_line(&mut self) -> String {
        let stdout = self.run.stdout.as_mut().unwrap();
        // Byte by byte: what follows is for `wait_with_output`.
        let (mut line, mut byte) = (Vec::new(), [0]);
        while stdout.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.extend(byte);
        }
        String::from_utf8(line).unwrap()
    }

    /// Waits for it to end by itself.
    fn wait(mut self) -> Output {
        let input = self.run.stdin.take();
        let out = self.run.wait_with_output().unwrap();
        drop(input);
        out
    }

    /// Ends its input, and waits.
    fn finish(mut self) -> Output {
        drop(self.run.stdin.take());
        self.run.wait_with_output().unwrap()
    }
}

#[test]
fn output_input_and_status_pass_through() {
    let out = run(&["--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(3), "out\n"));
    let err = stderr(&out);
    assert!(err.starts_with("err\nkernmalloc: sh (pid "), "{err}");
    assert!(err.contains(") exited with status 3\n            Type  Use Memory Req Size(s)\n"), "{err}");
    let mut child = Live::start(&["--quiet", "cat"]);
    child.run.stdin.as_mut().unwrap().write_all(b"through\n").unwrap();
    let out = child.finish();
    assert_eq!((out.status.code(), stdout(&out).as_str(), stderr(&out).as_str()), (Some(0), "through\n", ""));
}

#[test]
fn what_follows_the_program_is_its_own() {
    assert_eq!(stdout(&run(&["--quiet", "echo", "--json", "-o", "--", "x"])), "--json -o -- x\n");
}

#[test]
fn statuses_of_programs_that_do_not_end_by_themselves() {
    for (args, code, text) in [
        (&["sh", "-c", "kill -9 $$"][..], 137, "was killed by signal 9 (SIGKILL)"),
        (&["sh", "-c", "kill -TERM $$"], 143, "was killed by signal 15 (SIGTERM)"),
        (&["/nonexistent/program"], 127, "No such file or directory"),
        (&["/etc/passwd"], 126, "Permission denied"),
    ] {
        let out = run(args);
        assert!(stderr(&out).contains(text), "{args:?}: {}", stderr(&out));
        assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(code), ""), "{args:?}");
    }
}

#[test]
fn a_killed_program_leaves_its_table() {
    let err = stderr(&run(&["--", "sh", "-c", "kill -9 $$"]));
    assert!(err.lines().count() > 2 && err.contains("Size(s)\n"), "{err}");
}

#[test]
fn signals_sent_to_the_command_reach_the_program() {
    let script = "trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.05; done";
    let mut live = Live::start(&["--quiet", "--", "sh", "-c", script]);
    assert_eq!(live.read_line(), "ready");
    Live::signal(live.run.id(), libc::SIGUSR1);
    let out = live.wait();
    assert_eq!((out.status.code(), stdout(&out).as_str()), (Some(5), "got\n"));
    let live = Live::start(&["--quiet", "cat"]);
    Live::signal(live.run.id(), libc::SIGTERM);
    let out = live.wait();
    assert_eq!((out.status.code(), out.status.signal()), (Some(143), None));
}

#[test]
fn a_program_that_stops_stops_the_command() {
    let live = Live::start(&["--quiet", "cat"]);
    let state = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().chars().next()
    };
    Live::signal(live.pid, libc::SIGSTOP);
    wait_for("the command stops", || (state(live.run.id()) == Some('T')).then_some(()));
    Live::signal(live.run.id(), libc::SIGCONT);
    wait_for("the program runs", || (state(live.pid) != Some('T')).then_some(()));
    assert_eq!(live.finish().status.code(), Some(0));
}

#[test]
fn a_family_is_a_tree_and_a_table_each() {
    let out = run(&["--", "bash", "-c", "(cat /dev/null; true); exec cat /dev/null"]);
    let err = stderr(&out);
    let lines: Vec<&str> = err.lines().collect();
    assert!(lines[1].ends_with(" bash => cat"), "{err}");
    assert!(lines[2].starts_with("`- ") && lines[2].ends_with(" bash"), "{err}");
    assert!(lines[3].starts_with("   `- ") && lines[3].ends_with(" bash => cat"), "{err}");
    assert_eq!(lines.iter().filter(|line| line.ends_with("Size(s)")).count(), 5, "{err}");
    let alone = stderr(&run(&["--no-follow-fork", "--", "bash", "-c", "(cat /dev/null; true); true"]));
    assert_eq!(alone.lines().filter(|line| line.ends_with("Size(s)")).count(), 1, "{alone}");
}

#[test]
fn tables_go_to_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let out = run(&["-o", &file("all"), "--", "bash", "-c", "(true); (true); true"]);
    assert_eq!((stdout(&out), stderr(&out)), (String::new(), String::new()));
    let text = fs::read_to_string(file("all")).unwrap();
    assert_eq!(text.lines().filter(|line| line.ends_with("Size(s)")).count(), 3, "{text}");

    run(&["--json", "-o", &file("one.%p.json"), "--", "bash", "-c", "(true); (true); true"]);
    let mut pids = Vec::new();
    for entry in fs::read_dir(dir.path()).unwrap().flatten().filter(|e| e.file_name() != "all") {
        let value: serde_json::Value = serde_json::from_slice(&fs::read(entry.path()).unwrap()).unwrap();
        let pid = value["program"]["pid"].as_u64().unwrap();
        assert_eq!(entry.file_name().to_string_lossy(), format!("one.{pid}.json"));
        assert!(value["malloc-statistics"]["memory"].as_array().is_some_and(|rows| !rows.is_empty()));
        pids.push(pid);
    }
    assert_eq!(pids.len(), 3);

    let out = run(&["--json", "--", "bash", "-c", "(true); true"]);
    let value: serde_json::Value = serde_json::from_slice(&out.stderr).unwrap();
    assert_eq!(value["process"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_live_program_is_read_and_its_account_adds_up() {
    let live = Live::start(&["--quiet", "cat"]);
    let table = live.vmstat(&["-m"]);
    assert!(stdout(&table).starts_with("            Type  Use Memory Req Size(s)\n"), "{}", stderr(&table));
    let zones = stdout(&live.vmstat(&["-z"]));
    assert!(zones.starts_with("ITEM                   SIZE   LIMIT     USED     FREE      REQ FAIL SLEEP XDOM\n"));

    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_slice(&live.vmstat(args).stdout).unwrap() };
    let account = json(&["-s", "--json"])["memory-account"].clone();
    let figure = |name: &str| account[name].as_i64().unwrap();
    assert!(figure("smaps-ours") > 0 && figure("difference").abs() * 100 <= figure("smaps-ours"), "{account:#}");
    // By library and by call site the sums are the same, and so are those of the zones and large blocks.
    let sum = |table: &serde_json::Value, field: &str| {
        let rows = table["malloc-statistics"]["memory"].as_array().unwrap();
        rows.iter().map(|row| row[field].as_i64().unwrap()).sum::<i64>()
    };
    let (libraries, sites) = (json(&["-m", "--json"]), json(&["-m", "--json", "--sites"]));
    for field in ["in-use", "memory-use", "requests", "frees", "requested-bytes", "served-bytes"] {
        assert_eq!(sum(&libraries, field), sum(&sites, field), "{field}");
    }
    assert_eq!(sum(&libraries, "memory-use"), figure("served-classes") + figure("served-large"));
    // Zones of slabs hold what is served in size classes.
    let zones = json(&["-z", "--json"]);
    let slabs = zones["memory-zone-statistics"]["zone"].as_array().unwrap().iter();
    let slabs = slabs.map(|zone| (zone["used"].as_i64().unwrap(), zone["size"].as_i64().unwrap()));
    let used: i64 = slabs.filter(|(_, size)| *size <= 65536).map(|(used, size)| used * size).sum();
    assert_eq!(used, figure("served-classes"));

    let listed = kernmalloc().args(["ps", "--json"]).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let me = listed["process"].as_array().unwrap().iter().find(|p| p["pid"] == live.pid).unwrap().clone();
    assert_eq!((me["name"].as_str(), me["memory-use"].as_i64()), (Some("cat"), Some(sum(&libraries, "memory-use"))));
    live.finish();
}

#[test]
fn repeated_tables_end_with_the_program() {
    let live = Live::start(&["--quiet", "cat"]);
    let mut vmstat = kernmalloc();
    vmstat.args(["vmstat", "-m", "-w", "0.05", "-p"]).arg(live.pid.to_string()).stdout(Stdio::piped());
    let mut vmstat = vmstat.spawn().unwrap();
    let mut lines = BufReader::new(vmstat.stdout.take().unwrap()).lines().map(Result::unwrap);
    // Again and again, while the program lives.
    for table in ["first", "second", "third"] {
        assert!(lines.any(|line| line.contains("Size(s)")), "there is no {table} table");
    }
    live.finish();
    // And then no more: the tables end, and well.
    lines.for_each(drop);
    assert!(vmstat.wait().unwrap().success());
    let live = Live::start(&["--quiet", "cat"]);
    assert_eq!(stdout(&live.vmstat(&["-m", "-w", "0.01", "-c", "3"])).matches("Size(s)").count(), 3);
    live.finish();
}

#[test]
fn an_object_whose_file_is_gone_is_read_from_the_program() {
    let live = Live::start(&["--quiet", "cat"]);
    let before = stdout(&live.vmstat(&["-m"]));
    let maps = fs::read_to_string(format!("/proc/{}/maps", live.pid)).unwrap();
    let path =
        maps.lines().find_map(|line| line.contains("/kernmalloc-run-").then(|| &line[line.find('/').unwrap()..]));
    fs::remove_file(path.unwrap()).unwrap();
    assert_eq!(stdout(&live.vmstat(&["-m"])), before);
    let out = live.finish();
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn without_a_directory_the_object_is_read_from_the_program() {
    let library = stdout(&kernmalloc().arg("library").output().unwrap());
    let mut cat = Command::new("cat");
    cat.env("LD_PRELOAD", library.trim_end()).env("KERNMALLOC_DIR", "/nonexistent").stdin(Stdio::piped());
    let mut cat = cat.spawn().unwrap();
    let table = wait_for("its table", || {
        let out = kernmalloc().args(["vmstat", "-m", "-p"]).arg(cat.id().to_string()).output().unwrap();
        out.status.success().then(|| stdout(&out)).filter(|table| table.contains("libc.so"))
    });
    assert!(table.contains("libc.so"), "{table}");
    // And written there, as there is no file.
    let sysctl = |arg: &str| {
        let out = kernmalloc().args(["sysctl", "-p", &cat.id().to_string(), arg]).output().unwrap();
        stdout(&out) + &stderr(&out)
    };
    assert_eq!(sysctl("vm.kmem_dirty_keep=77"), "vm.kmem_dirty_keep: 256 -> 77\n");
    assert_eq!(sysctl("vm.kmem_dirty_keep"), "vm.kmem_dirty_keep: 77\n");
    drop(cat.stdin.take());
    assert!(cat.wait().unwrap().success());
}

#[test]
fn ps_removes_what_killed_commands_left() {
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let dir = format!("/tmp/kernmalloc-run-{}-test", dead.id());
    let alive = format!("/tmp/kernmalloc-run-{}-test", std::process::id());
    for dir in [&dir, &alive] {
        fs::create_dir(dir).unwrap();
        fs::write(Path::new(dir).join(format!("{}.0", dead.id())), "object").unwrap();
    }
    assert!(kernmalloc().arg("ps").status().unwrap().success());
    assert!(!Path::new(&dir).exists() && Path::new(&alive).exists());
    fs::remove_dir_all(alive).unwrap();
}

#[test]
fn nothing_is_left_behind() {
    let out = kernmalloc().args(["run", "--quiet", "sh", "-c", "echo $KERNMALLOC_DIR"]).output().unwrap();
    let dir = stdout(&out);
    assert!(dir.contains("/kernmalloc-run-") && !Path::new(dir.trim_end()).exists(), "{dir}");
}

#[test]
fn preloads_and_tunables_are_added_to_those_there_are() {
    let script = "echo $LD_PRELOAD; echo $KERNMALLOC";
    let mut command = kernmalloc();
    command.args([
        "run",
        "--quiet",
        "--attribution",
        "library",
        "--set",
        "kern.malloc.on_misuse=report",
        "sh",
        "-c",
        script,
    ]);
    let out = command.env("LD_PRELOAD", "libc.so.6").env("KERNMALLOC", "kern.malloc.strict=0").output().unwrap();
    let text = stdout(&out);
    let (preload, tunables) = text.split_once('\n').unwrap();
    assert!(preload.starts_with('/') && preload.ends_with(".so:libc.so.6"), "{text}");
    let expected = "kern.malloc.strict=0,kern.malloc.attribution=library,kern.malloc.on_misuse=report\n";
    assert_eq!(tunables, expected);
}

#[test]
fn the_library_is_written_once_and_only_to_a_directory_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let library = || {
        let out = kernmalloc().arg("library").env("XDG_CACHE_HOME", dir.path()).output().unwrap();
        stdout(&out).trim_end().to_owned()
    };
    let path = library();
    assert!(Path::new(&path).starts_with(dir.path()), "{path}");
    let written = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!((library(), fs::metadata(&path).unwrap().modified().unwrap()), (path.clone(), written));
    // Damaged, it is written anew.
    fs::write(&path, "no library").unwrap();
    library();
    assert!(fs::read(&path).unwrap().starts_with(b"\x7fELF"));
    // Where others may write, it is not put.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(dir.path().join("kernmalloc"), mode).unwrap();
    assert!(!Path::new(&library()).starts_with(dir.path()));
}

/// Builds a C program; `None` without a compiler, or without a static libc.
fn compile(dir: &Path, source: &str, args: &[&str]) -> Option<String> {
    let (file, program) = (dir.join("program.c"), dir.join("program"));
    fs::write(&file, source).unwrap();
    let built = Command::new("cc").args(args).arg("-o").arg(&program).arg(&file).output();
    built.is_ok_and(|out| out.status.success()).then(|| program.to_string_lossy().into_owned())
}

#[test]
fn a_program_without_an_object_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = compile(dir.path(), "int main(void) { return 4; }", &["-static"]) else { return };
    let out = run(&["--", &program]);
    assert_eq!(out.status.code(), Some(4));
    assert!(stderr(&out).contains("is statically linked"), "{}", stderr(&out));
}

#[test]
fn a_program_with_a_malloc_of_its_own_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = "#include <stddef.h>
        static char heap[1 << 20]; static size_t at;
        void *malloc(size_t n) { void *p = heap + at; at += (n + 15) & ~15ul; return p; }
        void free(void *p) { (void)p; }
        void *calloc(size_t a, size_t b) { return malloc(a * b); }
        void *realloc(void *p, size_t n) { return p ? NULL : malloc(n); }
        int main(void) { return malloc(100) == NULL; }";
    let Some(program) = compile(dir.path(), source, &["-fno-builtin"]) else { return };
    let out = run(&["--", &program]);
    assert_eq!(out.status.code(), Some(0));
    let err = stderr(&out);
    assert!(err.contains("kernmalloc: program has an allocator of its own (malloc), which"), "{err}");
    let ours = stderr(&run(&["--", "bash", "-c", "true"]));
    assert!(!ours.contains("of its own"), "{ours}");
}

#[test]
fn a_misuse_is_reported_with_the_lines_of_its_calls() {
    let dir = tempfile::tempdir().unwrap();
    let source = "#include <stdlib.h>
        void *make(void) { return malloc(100); }
        void drop(void *p) { free(p); }
        int main(void) { void *p = make(); drop(p); drop(p); return 0; }";
    let Some(program) = compile(dir.path(), source, &["-g", "-O0", "-w"]) else { return };
    let out = run(&["--", &program]);
    assert_eq!(out.status.code(), Some(134));
    let err = stderr(&out);
    assert!(err.contains("kernmalloc: program misused malloc (1 times); first report:"), "{err}");
    for (function, line) in [("make", 2), ("drop", 3)] {
        assert!(err.contains(&format!(" [{function}, ")) && err.contains(&format!("program.c:{line}]")), "{err}");
    }
}

impl Live {
    fn sysctl(&self, args: &[&str]) -> Output {
        kernmalloc().arg("sysctl").args(args).arg("-p").arg(self.pid.to_string()).output().unwrap()
    }

    fn value(&self, name: &str) -> i64 {
        let out = self.sysctl(&["-n", name]);
        stdout(&out).trim().parse().unwrap_or_else(|_| panic!("{name}: {out:?}"))
    }
}

#[test]
fn sysctl_reads_a_running_program() {
    let live = Live::start(&["--quiet", "cat"]);
    let all = stdout(&live.sysctl(&["-a"]));
    for name in [
        "vm.kmem_map_size: ",
        "vm.uma.malloc_64.stats.current: ",
        "kern.malloc_count: ",
        "kern.malloc.on_misuse: abort",
    ] {
        assert!(all.lines().any(|line| line.starts_with(name)), "{name} is not in {all}");
    }
    assert!(live.value("kern.malloc_count") >= 2);
    assert_eq!(live.value("kern.proc.pid"), i64::from(live.pid));
    let json: serde_json::Value =
        serde_json::from_slice(&live.sysctl(&["--json", "vm.uma.malloc_16.size"]).stdout).unwrap();
    assert_eq!(json["sysctl"]["vm.uma.malloc_16.size"], 16);
    let out = live.sysctl(&["-d", "vm.kmem_slabs"]);
    assert_eq!(stdout(&out), "vm.kmem_slabs: Memory in slabs.\n");
    let out = live.sysctl(&["vm.kmem_dirty_kepp"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("did you mean vm.kmem_dirty_keep?"), "{out:?}");
    let out = live.sysctl(&["vm.kmem_map_size=1"]);
    assert!(stderr(&out).contains("vm.kmem_map_size cannot be set: it is read-only"), "{out:?}");
    let out = live.sysctl(&["vm.uma_bucket_size_max=0"]);
    assert!(stderr(&out).contains("0 is not a whole number from 1 to 255"), "{out:?}");
    live.finish();
}

/// A program that does a round of work for each line it reads, and answers when it is done.
const WORKER: &str = "
import sys
junk = None
for line in sys.stdin:
    what, n = (line.split() + ['0'])[:2]
    if what == 'grow':
        junk = [bytes(1500) for _ in range(int(n))]
    elif what == 'drop':
        junk = None
    elif what == 'stir':
        for _ in range(int(n)):
            x = [bytes(700 + i % 8 * 600) for i in range(600)]
    print('done', flush=True)
";

fn tell(live: &mut Live, what: &str) {
    live.run.stdin.as_mut().unwrap().write_all(format!("{what}\n").as_bytes()).unwrap();
    assert_eq!(live.read_line(), "done");
}

#[test]
fn sysctl_has_a_running_program_give_memory_back() {
    // Keeps all it ever freed, and says so.
    let mut live = Live::start(&["--quiet", "--set", "vm.kmem_dirty_keep=1000000", "--", "python3", "-c", WORKER]);
    // It answers: what was started may have been a script that starts the program in its place.
    tell(&mut live, "grow 40000");
    assert_eq!(live.value("vm.kmem_dirty_keep"), 1_000_000);
    tell(&mut live, "drop");
    tell(&mut live, "stir 1");
    let kept = live.value("vm.kmem_free_dirty");
    assert!(kept > 20 << 20, "{kept} bytes are kept");
    // Asked to, it gives it back when it next works; nothing else does.
    tell(&mut live, "stir 1");
    assert!(live.value("vm.kmem_free_dirty") > 20 << 20);
    let out = live.sysctl(&["debug.uma_reclaim=3"]);
    assert_eq!(stdout(&out), "debug.uma_reclaim: 0 -> 3\n");
    tell(&mut live, "stir 3");
    assert_eq!((live.value("debug.uma_reclaim"), live.value("debug.uma_reclaims")), (0, 1));
    let left = live.value("vm.kmem_free_dirty");
    assert!(left < 8 << 20, "{left} bytes are left of {kept}");
    live.finish();
}

#[test]
fn sysctl_changes_how_much_a_running_program_keeps() {
    let mut live = Live::start(&["--quiet", "--set", "vm.kmem_dirty_keep=1000000", "--", "python3", "-c", WORKER]);
    tell(&mut live, "grow 40000");
    tell(&mut live, "drop");
    assert!(live.value("vm.kmem_free_dirty") > 20 << 20);
    assert_eq!(stdout(&live.sysctl(&["vm.kmem_dirty_keep=64"])), "vm.kmem_dirty_keep: 1000000 -> 64\n");
    // When pages come and go next.
    wait_for("the memory goes back", || {
        tell(&mut live, "grow 3000");
        tell(&mut live, "drop");
        (live.value("vm.kmem_free_dirty") < 16 << 20).then_some(())
    });
    assert_eq!(live.value("debug.uma_reclaims"), 0);
    live.finish();
}

#[test]
fn sysctl_caps_the_buckets_of_a_zone() {
    let mut live = Live::start(&["--quiet", "--", "python3", "-c", WORKER]);
    tell(&mut live, "stir 20");
    assert!(live.value("vm.uma.malloc_1664.bucket_size") > 4);
    assert_eq!(
        stdout(&live.sysctl(&["vm.uma.malloc_1664.bucket_size_max=3"])),
        "vm.uma.malloc_1664.bucket_size_max: 0 -> 3\n"
    );
    live.sysctl(&["debug.uma_reclaim=3"]);
    tell(&mut live, "grow 5000");
    assert_eq!(live.value("vm.uma.malloc_1664.bucket_size"), 3);
    live.finish();
}

/// A service that root starts and that goes on as another user: both the library and the place for its figures are there for it.
#[test]
fn a_program_that_root_runs_as_another_user_is_shown() {
    // SAFETY: no arguments, no memory.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: to become another user needs root");
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    fs::set_permissions(cache.path(), Permissions::from_mode(0o755)).unwrap();
    let report = cache.path().join("report.json");
    let mut command = kernmalloc();
    command.env("XDG_CACHE_HOME", cache.path()).env_remove("KERNMALLOC_LIBRARY");
    command.args(["run", "--json", "-o"]).arg(&report).arg("--");
    command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-e", "print qq(uid $>)"]);
    // SAFETY: umask(2) may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o077);
            Ok(())
        });
    }
    let out = command.output().unwrap();
    assert_eq!((stdout(&out).as_str(), stderr(&out).as_str()), ("uid 65534", ""));
    let report = fs::read_to_string(&report).unwrap();
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let processes = report["process"].as_array().unwrap();
    let names: Vec<_> = processes.iter().filter_map(|process| process["program"]["name"].as_str()).collect();
    assert_eq!(names, ["setpriv", "perl"], "{report}");
}
