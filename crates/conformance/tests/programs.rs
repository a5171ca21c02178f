//! Real programs, unchanged and with the default attribution: the same output and status as without us, and while they wait,
//! an account that adds up.

use kernmalloc_conformance::{
    Case, Host, Live, Run, Sandbox, account_adds_up, cc, cc_with, descendant, library_totals, real_program, skipped,
};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Starts a program that says `ready` and then waits on its standard input; looks at its account; lets it end.
fn waits_with_a_good_account(name: &str, case: &Case) -> Run {
    let mut live = case.start(Host::Kernmalloc);
    live.wait_for(|line| line == "ready");
    account_adds_up(live.pid(), name);
    live.say(b"\n");
    live.finish().good()
}

// ---- python

const PYTHON_WORK: &str = r#"
import collections, hashlib, json, random, re, sys, zlib
random.seed(7)
tree = {str(i): [random.random() for _ in range(i % 50)] for i in range(3000)}
text = json.dumps(tree)
assert json.loads(text) == tree
words = re.findall(r"\d{3}", text)
print(len(text), collections.Counter(words).most_common(5))
lines = sorted(str(random.getrandbits(i % 300 + 1)) for i in range(50000))
print(hashlib.sha256("".join(lines).encode()).hexdigest(), len(zlib.compress(text.encode(), 9)))
class Node:
    def __init__(self, left, right): self.left, self.right = left, right
def build(depth): return Node(build(depth - 1), build(depth - 1)) if depth else None
trees = [build(12) for _ in range(5)]
print(sum(1 for _ in range(10)), sys.getrefcount(None) > 0)
big = bytearray()
for i in range(200000): big += b"%d," % i
print(len(big), hashlib.md5(big).hexdigest())
"#;

#[test]
fn python_computes_the_same() {
    for allocator in ["pymalloc", "malloc"] {
        let case = Case::new(real_program("python3")).args(["-c", PYTHON_WORK]);
        let run = case.env("PYTHONMALLOC", allocator).env("PYTHONHASHSEED", "1").same().good();
        assert_eq!(run.text().lines().count(), 4, "{run}");
    }
}

#[test]
fn python_waits_with_a_good_account() {
    let script = format!("{PYTHON_WORK}\nprint('ready', flush=True)\ninput()");
    for allocator in ["pymalloc", "malloc"] {
        let case = Case::new(real_program("python3")).args(["-c", &script]).env("PYTHONMALLOC", allocator);
        waits_with_a_good_account(&format!("python3 with {allocator}"), &case);
    }
}

/// Python's own tests. What fails is run once more without us, to say whose fault it is.
fn python_passes_its_own(modules: &[&str]) {
    let sandbox = Sandbox::new(&format!("python-{}", modules[0]));
    let case = Case::new(real_program("python3")).args(["-m", "test"]).args(modules).dir(sandbox.path());
    let run = case.run(Host::Kernmalloc);
    if run.status.success() && run.text().contains("SUCCESS") {
        return;
    }
    let plain = case.run(Host::Plain);
    panic!("under kernmalloc:\n{run}\nplain:\n{plain}\n(Debian has the tests in libpython3.X-testsuite)");
}

#[test]
fn python_passes_its_own_json_and_re() {
    python_passes_its_own(&["test_json", "test_re"]);
}

#[test]
fn python_passes_its_own_threading() {
    python_passes_its_own(
        &["test_threading", "test_thread", "test_threadedtempfile", "test_thread_local_bytecode"]
            .into_iter()
            .filter(|module| python_has(module))
            .collect::<Vec<_>>(),
    );
}

fn python_has(module: &str) -> bool {
    let probe = format!("import importlib.util, sys; sys.exit(importlib.util.find_spec('test.{module}') is None)");
    Command::new(real_program("python3")).args(["-c", &probe]).status().is_ok_and(|status| status.success())
}

#[test]
fn python_passes_its_own_multiprocessing_fork() {
    python_passes_its_own(&["test_multiprocessing_fork"]);
}

#[test]
fn python_passes_its_own_multiprocessing_main() {
    python_passes_its_own(&["test_multiprocessing_main_handling"]);
}

// ---- git

const GIT_WORK: &str = r#"
set -e
git init -q -b main repo && cd repo
for i in $(seq 500); do
    mkdir -p "dir$((i % 17))"
    echo "line $i" >> "dir$((i % 17))/file$((i % 41))"
    seq "$i" "$((i + 200))" > "numbers$((i % 7))"
    git add -A
    GIT_AUTHOR_DATE="$((1600000000 + i * 60)) +0000" GIT_COMMITTER_DATE="$((1600000000 + i * 60)) +0000" \
        git commit -q -m "commit $i"
done
git log --format='%H %s'
git gc -q --aggressive --prune=now
git fsck --strict --no-progress
cd .. && git clone -q --no-local repo clone && cd clone
git log --stat | sha256sum
git blame numbers3 | sha256sum
git diff HEAD~200 | sha256sum
git rev-parse HEAD
git count-objects -v | grep -v size
"#;

fn git(case: Case, home: &Path) -> Case {
    case.env("HOME", home)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "A U Thor")
        .env("GIT_AUTHOR_EMAIL", "author@example.com")
        .env("GIT_COMMITTER_NAME", "C O Mitter")
        .env("GIT_COMMITTER_EMAIL", "committer@example.com")
}

#[test]
fn git_makes_the_same_history() {
    let sandbox = Sandbox::new("git");
    let work = sandbox.file("work");
    let case = git(Case::new(real_program("bash")).args(["-c", GIT_WORK]).dir(&work), sandbox.path());
    let run = case.same_with(|| drop(sandbox.fresh_dir("work"))).good();
    assert!(run.text().lines().count() > 500, "{run}");

    // It reads object names for as long as its input is open.
    let case = git(Case::new(real_program("git")).args(["cat-file", "--batch"]).dir(work.join("repo")), sandbox.path());
    let mut live = case.start(Host::Kernmalloc);
    live.say(b"HEAD\nHEAD~300:numbers3\n");
    live.wait_for(|line| line == "commit 500");
    live.wait_for(|line| line == "300");
    account_adds_up(live.pid(), "git");
    drop(live.finish().good());
}

// ---- gcc

/// A C file of many different functions.
fn large_c_file(functions: usize) -> String {
    let mut c =
        String::from("#include <stdio.h>\n#include <string.h>\nstruct s { int a, b; double d; char text[32]; };\n");
    for i in 0..functions {
        let _ = writeln!(
            c,
            "int f{i}(struct s *s, int n) {{\n  int sum = {i};\n  for (int i = 0; i < n; i++) {{\n    switch ((s[i].a * {} + i) % 7) {{\n      \
             case 0: sum += s[i].b << {}; break;\n      case 1: s[i].d *= {}.5; break;\n      case 2: sum ^= (int)strlen(s[i].text); break;\n      \
             case 3: snprintf(s[i].text, sizeof s[i].text, \"%d-{i}\", sum); break;\n      default: sum -= s[(i + {}) % n].a;\n    }}\n  }}\n  return sum{};\n}}",
            i * 7 + 1,
            i % 13,
            i % 97,
            i % 11,
            if i > 0 { format!(" + f{}(s, n / 2)", i - 1) } else { String::new() }
        );
    }
    c
}

#[test]
fn gcc_makes_the_same_object() {
    let sandbox = Sandbox::new("gcc");
    sandbox.write("large.c", large_c_file(1500));
    let case = Case::new(real_program("gcc")).args(["-O2", "-g", "-c", "large.c", "-o", "large.o"]).dir(sandbox.path());
    let object = |host| {
        let _ = std::fs::remove_file(sandbox.file("large.o"));
        let run = case.run(host).good();
        (run.stdout, run.stderr, std::fs::read(sandbox.file("large.o")).unwrap())
    };
    let plain = object(Host::Plain);
    assert!(plain.2.len() > 500_000, "only {} bytes", plain.2.len());
    assert!(plain == object(Host::Kernmalloc), "the object files differ");

    // The compiler proper waits for the rest of its input, after the include files and a declaration.
    let case =
        Case::new(real_program("gcc")).args(["-O2", "-x", "c", "-S", "-o", "/dev/null", "-"]).dir(sandbox.path());
    let mut live = case.start(Host::Kernmalloc);
    live.say(b"#include <stdio.h>\nint x;\n");
    let compiler = descendant(live.pid(), "cc1");
    settle(compiler);
    account_adds_up(compiler, "cc1");
    live.say(b"int main(void) { return x; }\n");
    drop(live.finish().good());
}

/// Waits until a process sleeps: it has read what there is.
fn settle(pid: u32) {
    let mut asleep = 0;
    for _ in 0..10_000 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        asleep = if state.starts_with('S') { asleep + 1 } else { 0 };
        if asleep == 20 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("process {pid} never waits");
}

// ---- sqlite

fn sql() -> String {
    let mut sql = String::from(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, grp INTEGER, name TEXT, value REAL);\nBEGIN;\n\
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 200000)\n\
         INSERT INTO t SELECT i, (i * 7919) % 1000, 'name ' || ((i * 104729) % 50021), i * 0.25 FROM n;\nCOMMIT;\n",
    );
    sql += "CREATE INDEX by_group ON t(grp, value);\nCREATE INDEX by_name ON t(name);\nANALYZE;\n\
            SELECT grp, count(*), sum(value), min(name), max(name) FROM t GROUP BY grp ORDER BY 3 DESC LIMIT 20;\n\
            SELECT count(*) FROM t a JOIN t b ON a.name = b.name AND a.id < b.id WHERE a.grp < 50;\n\
            SELECT group_concat(name, ',') FROM (SELECT DISTINCT name FROM t WHERE grp = 17 ORDER BY name);\n\
            UPDATE t SET name = name || '!' WHERE grp % 3 = 0;\nDELETE FROM t WHERE id % 10 = 3;\n\
            SELECT count(*), total(length(name)), hex(substr(group_concat(name), 1, 40)) FROM t;\n\
            SELECT name, rank() OVER (ORDER BY value DESC) FROM t WHERE grp = 5 LIMIT 10;\n\
            PRAGMA integrity_check;\n";
    sql
}

#[test]
fn sqlite_answers_the_same() {
    let sandbox = Sandbox::new("sqlite");
    for database in [":memory:", "file.db"] {
        let work = sandbox.file("work");
        let case = Case::new(real_program("sqlite3")).args(["-batch", database]).stdin(sql()).dir(&work);
        let run = case.same_with(|| drop(sandbox.fresh_dir("work"))).good();
        assert!(run.text().ends_with("ok\n"), "{run}");
    }
    let mut live = Case::new(real_program("sqlite3")).args(["-batch", ":memory:"]).start(Host::Kernmalloc);
    live.say(sql().as_bytes());
    live.say(b".print ready\n");
    live.wait_for(|line| line == "ready");
    account_adds_up(live.pid(), "sqlite3");
    drop(live.finish().good());
}

// ---- redis

struct Redis {
    live: Live,
    socket: String,
}

impl Redis {
    fn start(host: Host, dir: &Path) -> Self {
        let socket = dir.join("socket").to_string_lossy().into_owned();
        let live = Case::new(real_program("redis-server"))
            .args([
                "--port",
                "0",
                "--unixsocket",
                &socket,
                "--save",
                "",
                "--appendonly",
                "no",
                "--dbfilename",
                "dump.rdb",
            ])
            .args(["--dir".as_ref(), dir.as_os_str()])
            .args(["--daemonize", "no", "--maxclients", "200"])
            .start(host);
        let redis = Self { live, socket };
        redis.until("PING", |answer| answer == "PONG");
        redis
    }

    fn ask(&self, command: &str) -> String {
        let mut cli = Command::new(real_program("redis-cli"));
        cli.args(["-s", &self.socket]).args(command.split(' '));
        let out = cli.output().expect("redis-cli runs");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    fn until(&self, command: &str, wanted: impl Fn(&str) -> bool) {
        let start = Instant::now();
        loop {
            let answer = self.ask(command);
            if wanted(&answer) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "{command} keeps answering {answer:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A sum over all keys and what they hold. Run by the server.
    fn digest(&self) -> String {
        let mut cli = Command::new(real_program("redis-cli"));
        cli.args(["-s", &self.socket, "--raw", "EVAL"]).arg(
            "local keys = redis.call('KEYS', 'user:*') table.sort(keys) local sum = '' \
             for _, key in ipairs(keys) do sum = redis.sha1hex(sum .. key .. redis.call('GET', key)) end return #keys .. ' ' .. sum",
        );
        let out = cli.arg("0").output().expect("redis-cli runs");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    fn load(&self) {
        let mut commands = String::new();
        for i in 0..30_000_u64 {
            let value = "v".repeat((i * 7919 % 600) as usize);
            let _ = write!(commands, "SET user:{i} {value}{}\r\n", i * 104_729);
        }
        self.pipe(&commands, 30_000);
    }

    /// Sets keys by number. (Not by a script: its interpreter's own garbage would stay among the keys.)
    fn fill(&self, numbers: std::ops::Range<u64>) {
        let mut commands = String::new();
        for i in numbers.clone() {
            let _ = write!(commands, "SET user:{i} value-{i}-{}\r\n", "x".repeat((i % 80) as usize));
        }
        self.pipe(&commands, numbers.end - numbers.start);
    }

    fn pipe(&self, commands: &str, count: u64) {
        let mut cli = Command::new(real_program("redis-cli"));
        cli.args(["-s", &self.socket, "--pipe"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = cli.spawn().expect("redis-cli runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), commands.as_bytes()).expect("it listens");
        let out = child.wait_with_output().expect("it is our child");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains(&format!("errors: 0, replies: {count}")), "{text}");
    }

    fn benchmark(&self) {
        let mut bench = Command::new(real_program("redis-benchmark"));
        bench.args(["-s", &self.socket, "-q", "-n", "20000", "-c", "20", "-d", "200", "-r", "10000", "-P", "4"]);
        bench.args(["-t", "set,get,incr,lpush,rpush,lpop,sadd,hset,spop,zadd,mset,lrange_100"]);
        let out = bench.output().expect("redis-benchmark runs");
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && text.contains("requests per second"), "{text}");
    }

    fn save_in_background(&self) {
        assert_eq!(self.ask("BGSAVE"), "Background saving started");
        self.until("INFO persistence", |info| info.contains("rdb_bgsave_in_progress:0"));
        assert!(self.ask("INFO persistence").contains("rdb_last_bgsave_status:ok"), "{}", self.ask("INFO persistence"));
    }

    fn shut_down(self) -> Run {
        self.ask("SHUTDOWN NOSAVE");
        self.live.finish().good()
    }
}

#[test]
fn redis_serves_forks_and_comes_back() {
    let sandbox = Sandbox::new("redis");
    let mut digests = Vec::new();
    for host in [Host::Plain, Host::Kernmalloc] {
        let dir = sandbox.fresh_dir("work");
        let redis = Redis::start(host, &dir);
        redis.load();
        redis.benchmark();
        // The child writes while the parent goes on.
        redis.save_in_background();
        redis.load();
        redis.save_in_background();
        let before = redis.digest();
        assert!(before.starts_with("30000 "), "{before}");
        if host == Host::Kernmalloc {
            account_adds_up(redis.live.pid(), "redis-server");
        }
        redis.shut_down();

        let redis = Redis::start(host, &dir);
        assert_eq!(redis.digest(), before, "after a restart");
        assert_eq!(redis.ask("FLUSHALL"), "OK");
        if host == Host::Kernmalloc {
            account_adds_up(redis.live.pid(), "redis-server after FLUSHALL");
        }
        redis.shut_down();
        digests.push(before);
    }
    assert_eq!(digests[0], digests[1]);
}

/// Bytes resident: what the kernel says of the whole process.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("every process has one");
    let kilobytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of kB");
    kilobytes * 1024
}

/// Bytes that a program has allocated and not freed.
fn in_use_bytes(pid: u32) -> u64 {
    library_totals(pid).iter().map(|row| row.bytes_in_use).sum()
}

/// What a server took for many keys goes back when they are gone, while it goes on to serve.
///
/// *Live* is what is resident of the program for its own sake (the server before its first key, with code, libraries and
/// the allocator's tables) and what it has allocated since. `KERNMALLOC_REDIS_KEYS=2000000` is the full size.
#[test]
fn redis_gives_back_what_its_keys_took() {
    let keys: u64 = match std::env::var("KERNMALLOC_REDIS_KEYS") {
        Ok(keys) => keys.parse().expect("KERNMALLOC_REDIS_KEYS is a number"),
        Err(_) => 300_000,
    };
    let sandbox = Sandbox::new("redis-flushed");
    let redis = Redis::start(Host::Kernmalloc, &sandbox.fresh_dir("work"));
    let pid = redis.live.pid();
    let (resident_at_start, live_at_start) = (resident_bytes(pid), in_use_bytes(pid));
    for first in (0..keys).step_by(100_000) {
        redis.fill(first..keys.min(first + 100_000));
    }
    assert_eq!(redis.ask("DBSIZE"), keys.to_string());
    let peak = resident_bytes(pid);
    assert!(peak > resident_at_start + 100 * keys, "{peak} bytes are not {keys} keys");
    assert_eq!(redis.ask("FLUSHALL"), "OK");
    // A second of work: commands, each answered.
    let start = Instant::now();
    let mut answered = 0;
    while start.elapsed() < Duration::from_secs(1) {
        assert_eq!(redis.ask("SET a b"), "OK");
        assert_eq!(redis.ask("GET a"), "b");
        answered += 2;
    }
    let live = resident_at_start + in_use_bytes(pid).saturating_sub(live_at_start);
    let resident = resident_bytes(pid);
    println!(
        "{keys} keys: {resident_at_start} bytes, then {peak}, after FLUSHALL and {answered} commands {resident}; {live} live"
    );
    assert!(resident * 10 <= live * 13, "{resident} bytes resident after FLUSHALL, with {live} live; {peak} before");
    redis.shut_down();
}

// ---- perl, node, shells, make, C++

const PERL_WORK: &str = r#"
use strict; use warnings;
my (%count, @lines);
for my $i (1 .. 60000) { my $k = "key" . ($i * 7919 % 5003); $count{$k} .= chr(97 + $i % 26); push @lines, join("-", $i, $k, "x" x ($i % 80)); }
my $text = join("\n", @lines);
my $n = () = $text =~ /key(\d+)-x{40,}/g;
$text =~ s/(\d+)-key(\d+)/$2:$1/g;
my $sum = 0; $sum = ($sum * 31 + ord($_)) % 1000000007 for split //, substr($text, 0, 200000);
printf "%d %d %d %s\n", scalar(keys %count), $n, $sum, (sort { $count{$a} cmp $count{$b} or $a cmp $b } keys %count)[17];
my @tree = (); for (1 .. 200) { @tree = ([@tree], { a => [1 .. 20] }); } print scalar(@tree), "\n";
"#;

#[test]
fn perl_prints_the_same() {
    let case = Case::new(real_program("perl")).args(["-e", PERL_WORK]).env("PERL_HASH_SEED", "0");
    assert_eq!(case.same().good().text().lines().count(), 2);
    let waiting = format!("{PERL_WORK}\n$| = 1; print \"ready\\n\"; <STDIN>;");
    waits_with_a_good_account("perl", &Case::new(real_program("perl")).args(["-e", &waiting]));
}

const NODE_WORK: &str = r#"
const zlib = require("zlib"), crypto = require("crypto"), { Worker, isMainThread } = require("worker_threads");
const rows = []; let seed = 1;
for (let i = 0; i < 100000; i++) { seed = (seed * 1103515245 + 12345) % 2147483648; rows.push({ id: i, name: "n" + seed, list: [i, seed % 100] }); }
const text = JSON.stringify(rows), back = JSON.parse(text);
console.log(text.length, back[777].name, crypto.createHash("sha256").update(text).digest("hex"));
const packed = zlib.deflateSync(text); console.log(zlib.inflateSync(packed).length === text.length);
const buffers = []; for (let i = 0; i < 2000; i++) buffers.push(Buffer.alloc(i * 13, i % 256));
console.log(crypto.createHash("md5").update(Buffer.concat(buffers)).digest("hex"));
const worker = new Worker("const a=[];for(let i=0;i<1e5;i++)a.push('x'+i);require('worker_threads').parentPort.postMessage(a.join('').length)", { eval: true });
worker.on("message", n => console.log("worker", n));
"#;

#[test]
fn node_prints_the_same() {
    let case = Case::new(real_program("node")).args(["-e", NODE_WORK]);
    assert_eq!(case.same().good().text().lines().count(), 4);
    let waiting = format!(
        "{NODE_WORK}\nworker.on('exit', () => {{ console.log('ready'); process.stdin.once('data', () => process.exit(0)); }});"
    );
    waits_with_a_good_account("node", &Case::new(real_program("node")).args(["-e", &waiting]));
}

const BASH_WORK: &str = r#"
for i in $(seq 60); do echo "$i" | tr 0-9 a-j | sed "s/a/zero/" | sort | head -1; done
seq 5000 | awk '{ s[$1 % 7] += $1 } END { for (i = 0; i < 7; i++) print i, s[i] }'
declare -A table; for i in $(seq 3000); do table[key$((i % 500))]+=$(printf %x $i); done
for k in "${!table[@]}"; do echo "$k ${table[$k]}"; done | sort | sha256sum
x=$(for i in $(seq 200); do (echo $((i * i)) & wait); done | paste -sd+ | bc 2>/dev/null || echo none)
for i in $(seq 8); do (seq $((i * 1000)) | md5sum > "out$i") & done; wait; cat out?
false | true | (exit 7); echo "${PIPESTATUS[@]}"
exit 5
"#;

#[test]
fn bash_pipelines_print_the_same() {
    let sandbox = Sandbox::new("bash");
    let work = sandbox.file("work");
    let case = Case::new(real_program("bash")).args(["-c", BASH_WORK]).dir(&work);
    let run = case.same_with(|| drop(sandbox.fresh_dir("work")));
    assert_eq!(run.code(), 5, "{run}");
    assert!(run.text().lines().count() > 75, "{run}");
    let waiting = format!("cd \"$1\"\n{}\necho ready; read -r", BASH_WORK.replace("exit 5", ""));
    sandbox.fresh_dir("work");
    waits_with_a_good_account("bash", &Case::new(real_program("bash")).args(["-c", &waiting, "-"]).args([&work]));
}

#[test]
fn make_builds_the_same() {
    let sandbox = Sandbox::new("make");
    let makefile = "SHELL = /bin/bash\nOBJECTS := $(shell for i in $$(seq 40); do echo part$$i.o; done)\n\
        all: program\n\t@./program\nprogram: $(OBJECTS) main.c\n\t@$(CC) -o $@ $^\n\
        part%.c:\n\t@echo \"int part$*(void) { return $* * 3; }\" > $@\n\
        main.c:\n\t@{ for i in $$(seq 40); do echo \"int part$$i(void);\"; done; echo '#include <stdio.h>'; \
        echo 'int main(void) { int s = 0;'; for i in $$(seq 40); do echo \"s += part$$i();\"; done; \
        echo 'printf(\"%d\\n\", s); return 0; }'; } > $@\n.SECONDARY:\n";
    let work = sandbox.file("work");
    let case = Case::new(real_program("make")).args(["-s", "-j2"]).dir(&work);
    let run = case
        .same_with(|| {
            sandbox.fresh_dir("work");
            sandbox.write("work/Makefile", makefile);
        })
        .good();
    assert_eq!(run.text(), "2460\n");
    sandbox
        .write("work/Makefile", "$(info ready)\n$(eval X := $(shell read -r))\nall:\n\t@read -r line; echo $$line\n");
    let mut live = Case::new(real_program("make")).args(["-s"]).dir(&work).start(Host::Kernmalloc);
    live.wait_for(|line| line == "ready");
    let make = descendant(live.pid(), "make");
    settle(make);
    account_adds_up(make, "make");
    live.say(b"\ndone\n");
    drop(live.finish().good());
}

#[test]
fn a_program_with_exceptions_threads_and_libraries() {
    let plugin = cc_with("plugin", "plugin1.so", &["-fPIC", "-shared"]);
    let run = Case::new(cc("exceptions")).args([&plugin]).same();
    assert_eq!(run.code(), 3, "{run}");
    assert!(run.text().ends_with("8 thread objects\nstd::bad_alloc\nterminated\n"), "{run}");
}

/// Signals reach the program, and its death by one is passed on.
#[test]
fn signals_pass_through() {
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let case = Case::new(real_program("bash")).args(["-c", script]);
    for host in [Host::Plain, Host::Kernmalloc] {
        let mut live = case.start(host);
        live.wait_for(|line| line == "ready");
        let run = live.signal_first_and_finish(libc::SIGTERM);
        assert_eq!((run.code(), run.text().as_str()), (9, "ready\ncaught\n"), "{host:?}: {run}");
    }
    let run = Case::new(real_program("bash")).args(["-c", "kill -SEGV $$"]).run(Host::Kernmalloc);
    assert!(run.ended_by(libc::SIGSEGV), "{run}");
    if std::env::var_os("CONFORMANCE_PRELOAD").is_some() {
        skipped("statuses of the command: CONFORMANCE_PRELOAD goes without it");
        return;
    }
    let run = Case::new("/nonexistent/program").run(Host::Kernmalloc);
    assert_eq!(run.code(), 127, "{run}");
    let run = Case::new("/etc/passwd").run(Host::Kernmalloc);
    assert_eq!(run.code(), 126, "{run}");
}
