//! Real programs with work that takes a second or two.

use super::record::Row;
use super::suite::{Cell, Work};
use crate::measure::{Allocator, Bench, Cost, Program};
use crate::shell;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const PYTHON: &str = "\
import json, re
tree = {str(i): [str(j * i) for j in range(i % 60)] for i in range(6000)}
for _ in range(3):
    text = json.dumps(tree); tree = json.loads(text)
words = {}
for word in re.findall(r'\\d+', text): words.setdefault(word[:4], []).append(word)
class Node:
    __slots__ = ('left', 'right', 'name')
    def __init__(self, d): self.left = Node(d - 1) if d else None; self.right = Node(d - 1) if d else None; self.name = 'n' * (d % 40)
for _ in range(6): Node(14)
out = sorted(' '.join(map(str, range(i % 50))) for i in range(60000))
";

const SQL: &str = "\
CREATE TABLE t(id INTEGER PRIMARY KEY, grp INTEGER, name TEXT, value REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)
INSERT INTO t SELECT i, (i * 7919) % 1000, 'name ' || ((i * 104729) % 50021), i * 0.25 FROM n;
CREATE INDEX by_group ON t(grp, value);
CREATE INDEX by_name ON t(name);
SELECT grp, count(*), sum(value), min(name), max(name), group_concat(name) FROM t GROUP BY grp;
SELECT count(*) FROM t a JOIN t b ON a.name = b.name AND a.id < b.id;
UPDATE t SET name = name || '!' WHERE grp % 3 = 0;
SELECT count(DISTINCT substr(name, 1, 7)), total(length(name)) FROM t;
";

pub(super) fn real(name: &str) -> Result<std::path::PathBuf> {
    shell::find_program(name).with_context(|| format!("{name} is not installed"))
}

pub(super) fn programs(bench: &Bench) -> Result<Vec<Cell>> {
    let dir = bench.dir();
    let cell =
        |name: &str, program| Cell { row: Row { name: name.to_owned(), operations: 0 }, work: Work::Plain(program) };
    let mut cells = Vec::new();

    let mut python = Program::new(real("python3")?).args(["-c", PYTHON]);
    python.env = vec![("PYTHONMALLOC", "malloc"), ("PYTHONHASHSEED", "1")];
    cells.push(cell("python3", python));

    std::fs::write(dir.join("work.sql"), SQL)?;
    let mut sqlite = Program::new(real("sqlite3")?).args(["-batch", ":memory:"]);
    sqlite.stdin = Some(dir.join("work.sql"));
    cells.push(cell("sqlite3", sqlite));

    std::fs::write(dir.join("large.c"), large_c_file())?;
    let mut gcc = Program::new(real("gcc")?).args(["-O2", "-c", "large.c", "-o", "large.o"]);
    gcc.dir = Some(dir.to_owned());
    cells.push(cell("gcc -O2", gcc));

    let repository = dir.join("repository");
    make_repository(&repository)?;
    let mut git = Program::new(real("git")?);
    git = git.args(["-c", "pack.threads=1", "repack", "-a", "-d", "-f", "-q", "--depth=30", "--window=15"]);
    git.dir = Some(repository);
    git.env = vec![("GIT_CONFIG_NOSYSTEM", "1"), ("HOME", "/nonexistent")];
    cells.push(cell("git repack", git));

    cells.push(Cell { row: Row { name: "redis-server".to_owned(), operations: 0 }, work: Work::Redis });
    Ok(cells)
}

fn large_c_file() -> String {
    let mut c = String::from("struct s { int a, b; double d; char text[32]; };\nint g(const char *, ...);\n");
    for i in 0..350 {
        let _ = writeln!(
            c,
            "int f{i}(struct s *s, int n) {{ int sum = {i}; for (int i = 0; i < n; i++) switch ((s[i].a * {} + i) % 5) {{ \
             case 0: sum += s[i].b << {}; break; case 1: s[i].d *= {}.5; break; case 2: sum ^= g(s[i].text, sum); break; \
             default: sum -= s[(i + {}) % n].a; }} return sum; }}",
            i * 7 + 1,
            i % 13,
            i % 97,
            i % 11,
        );
    }
    c
}

/// A history of many files and commits, the same every time; made once.
fn make_repository(dir: &Path) -> Result<()> {
    if dir.join(".git/done").exists() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(dir);
    shell::run(Command::new("git").args(["init", "-q", "-b", "main"]).arg(dir))?;
    let mut stream = String::new();
    for commit in 1..=1500_u64 {
        let _ = writeln!(
            stream,
            "commit refs/heads/main\nmark :{commit}\ncommitter A U Thor <author@example.com> {} +0000\ndata 7\ncommit",
            1_600_000_000 + commit * 60
        );
        if commit > 1 {
            let _ = writeln!(stream, "from :{}", commit - 1);
        }
        for file in 0..3_u64 {
            let lines = 150 + (commit * 31 + file) % 100;
            let text: String =
                (0..lines).map(|line| format!("line {line} {}\n", (commit / 9 + line * file * 7919) % 10007)).collect();
            let path = format!("dir{}/file{}", (commit + file) % 13, (commit * 7 + file) % 60);
            let _ = writeln!(stream, "M 100644 inline {path}\ndata {}\n{text}", text.len());
        }
    }
    let mut import = Command::new("git");
    import.arg("-C").arg(dir).args(["fast-import", "--quiet"]).stdin(Stdio::piped());
    let mut child = import.spawn().context("git fast-import")?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    std::io::Write::write_all(&mut stdin, stream.as_bytes())?;
    drop(stdin);
    anyhow::ensure!(child.wait()?.success(), "git fast-import failed");
    std::fs::write(dir.join(".git/done"), "")?;
    Ok(())
}

/// The server alone is measured; it ends when it is told to. `full` gets the launcher's pid when the client has done its work.
pub(super) fn redis(
    bench: &Bench,
    allocator: &Allocator,
    quick: bool,
    full: &mut dyn FnMut(u32) -> Result<()>,
) -> Result<Cost> {
    let socket = bench.dir().join("redis.socket");
    let _ = std::fs::remove_file(&socket);
    let socket = socket.to_string_lossy().into_owned();
    let mut server = Program::new(real("redis-server")?)
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--loglevel", "warning", "--unixsocket"])
        .args([socket.clone()]);
    server.dir = Some(bench.dir().to_owned());
    let client = |args: &[&str]| -> Result<String> {
        let mut cli = Command::new(real("redis-cli")?);
        let out = cli.args(["-s", &socket]).args(args).stderr(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    bench.run_beside(&server, allocator, |launcher| {
        let mut tries = 0;
        while client(&["PING"])? != "PONG" {
            tries += 1;
            anyhow::ensure!(tries < 500, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut benchmark = Command::new(real("redis-benchmark")?);
        benchmark.args(["-s", &socket, "-q", "-c", "20", "-d", "200", "-r", "50000", "-P", "16"]);
        benchmark.args(["-n", if quick { "30000" } else { "300000" }]);
        benchmark.args(["-t", "set,get,incr,lpush,rpop,sadd,hset,zadd,mset"]);
        shell::run(benchmark.stdout(Stdio::null()))?;
        full(launcher)?;
        client(&["SHUTDOWN", "NOSAVE"])?;
        Ok(())
    })
}
