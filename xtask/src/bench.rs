//! `cargo xtask bench`: the benchmarks beside glibc and the peers, interleaved, as a record in docs/.

use crate::measure::{self, Allocator, Bench, Cost, Program, geometric_mean, median};
use crate::{bench_vmem, debian, machine, service, shell};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// One of our own programs. `%` in an argument is that many times the scale: a tenth with `--quick`.
struct Row {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    /// Operations per run at full scale, for a time per operation; the programs count in the same way.
    operations: u64,
}

const fn row(name: &'static str, program: &'static str, args: &'static [&'static str], operations: u64) -> Row {
    Row { name, program, args, operations }
}

const M: u64 = 1_000_000;
const ROWS: &[Row] = &[
    row("pair, 16 B", "pair", &["16", "%50000000"], 100 * M),
    row("pair, 64 B", "pair", &["64", "%50000000"], 100 * M),
    row("pair, 1 KiB", "pair", &["1024", "%50000000"], 100 * M),
    row("pair, 4 KiB", "pair", &["4096", "%20000000"], 40 * M),
    row("pair, 64 KiB", "pair", &["65536", "%10000000"], 20 * M),
    row("pair, 1 MiB", "pair", &["1048576", "%4000000"], 8 * M),
    row("1000 × 64 B, LIFO", "batch", &["64", "1000", "%40000", "lifo"], 80 * M),
    row("1000 × 64 B, random", "batch", &["64", "1000", "%40000", "random"], 80 * M),
    row("100,000 × 64 B, LIFO", "batch", &["64", "100000", "%200", "lifo"], 40 * M),
    row("100,000 × 64 B, random", "batch", &["64", "100000", "%100", "random"], 20 * M),
    row("size mix, 4096 live", "mix", &["4096", "1", "%20000000"], 40 * M),
    row("size mix, 4096 live, 8 threads", "mix", &["4096", "8", "%20000000"], 40 * M),
    row("freed on another thread, 64 B", "remote", &["1", "%10000000", "64"], 20 * M),
    row("freed on another thread, mix", "remote", &["1", "%10000000"], 20 * M),
    row("freed on another thread, mix, 4 pairs", "remote", &["4", "%10000000"], 20 * M),
    row("server, 2 threads", "server", &["2", "5000", "%20000000"], 40 * M),
    row("server, 8 threads", "server", &["8", "5000", "%20000000"], 40 * M),
    row("stress, 2 threads", "stress", &["2", "%10000000", "10"], 20 * M),
    row("stress, 8 threads", "stress", &["8", "%10000000", "10"], 20 * M),
    row("array grown to 1 M", "grow", &["1000000", "%1000"], 1000 * M),
    row("large blocks, 50 live", "large", &["50", "%100000"], M / 5),
    row("thread churn", "threads", &["%16000", "500"], 16 * M),
    row("tiny objects", "bignum", &["%30000000"], 120 * M),
    row("drifting sizes", "drift", &["64", "%20"], 0),
];

/// Programs whose peak counts most where they are small.
const SMALL: &[(&str, &[&str])] = &[
    ("true", &[]),
    ("ls", &["/usr"]),
    ("cat", &["/etc/passwd"]),
    ("grep", &["-c", "root", "/etc/passwd"]),
    ("git", &["--version"]),
    ("bash", &["-c", ":"]),
    ("perl", &["-e", "1"]),
    ("python3", &["-c", "pass"]),
];

struct Options {
    quick: bool,
    rounds: u32,
    only: Option<String>,
}

pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut options = Options { quick: false, rounds: 0, only: None };
    let mut what = "all";
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quick" => options.quick = true,
            "--small" => what = "small",
            "--reader" => what = "reader",
            "--service" => what = "service",
            "--vmem" => what = "vmem",
            "--rounds" => options.rounds = args.next().context("--rounds takes a number")?.parse()?,
            "--only" => options.only = Some(args.next().context("--only takes a text")?.clone()),
            other => bail!("no option named {other:?}; see cargo xtask help"),
        }
    }
    if options.rounds == 0 {
        options.rounds = if options.quick { 3 } else { 5 };
    }
    if what == "service" {
        let machine = machine::described();
        return write_record("service.md", &service::run(&machine, options.rounds, options.quick)?);
    }
    if what == "vmem" {
        // Needs nothing but cargo.
        return bench_vmem::run();
    }
    debian::provide(true);
    let bench = Bench::new()?;
    // Described now, as it is measured: the tree may be another when the figures are there.
    let machine = machine::described();
    let allocators = measure::allocators()?;
    match what {
        "small" => small(&bench, &allocators, &machine, &options),
        "reader" => reader(&bench, &allocators, &machine, &options),
        _ => all(&bench, &allocators, &machine, &options),
    }
}

/// Something measured under every allocator.
enum Work {
    Plain(Program),
    /// The server's cost while a client works it; see [`redis`].
    Redis,
}

struct Cell {
    name: String,
    work: Work,
    operations: u64,
}

fn all(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let mut cells: Vec<Cell> = ROWS
        .iter()
        .map(|row| {
            let scaled = |arg: &&str| match arg.strip_prefix('%') {
                Some(count) => {
                    let count: u64 = count.parse().expect("the table holds numbers");
                    (if options.quick { (count / 10).max(1) } else { count }).to_string()
                }
                None => (*arg).to_owned(),
            };
            Cell {
                name: row.name.to_owned(),
                work: Work::Plain(Program::new(bench.program(row.program)).args(row.args.iter().map(scaled))),
                operations: if options.quick { row.operations / 10 } else { row.operations },
            }
        })
        .collect();
    cells.extend(real_programs(bench)?);
    if let Some(only) = &options.only {
        cells.retain(|cell| cell.name.contains(only.as_str()));
    }
    if cells.is_empty() {
        bail!("no row has that name");
    }

    let mut figures = Figures::default();
    for round in 0..options.rounds {
        for (row, cell) in cells.iter().enumerate() {
            for (column, allocator) in allocators.iter().enumerate() {
                let cost = match &cell.work {
                    Work::Plain(program) => bench.run(program, allocator)?,
                    Work::Redis => redis(bench, allocator, options.quick)?,
                };
                figures.add(row, column, cost);
            }
            println!("round {} of {}: {}", round + 1, options.rounds, cell.name);
        }
    }
    let tables = tables(&cells, allocators, &figures);
    println!("\n{tables}");
    if options.only.is_none() {
        let docs = shell::root().join("docs");
        std::fs::create_dir_all(docs.join("benchmarks"))?;
        std::fs::write(docs.join("benchmarks/figures.csv"), csv(&cells, allocators, &figures))?;
        std::fs::write(docs.join("benchmarks.md"), document(&tables, machine, options))?;
        println!("written: docs/benchmarks.md, docs/benchmarks/figures.csv");
    }
    Ok(())
}

/// All costs, by row and column.
#[derive(Default)]
struct Figures(BTreeMap<(usize, usize), Vec<Cost>>);

impl Figures {
    fn add(&mut self, row: usize, column: usize, cost: Cost) {
        self.0.entry((row, column)).or_default().push(cost);
    }

    fn median(&self, row: usize, column: usize, of: impl Fn(&Cost) -> u64) -> u64 {
        median(self.0.get(&(row, column)).map(|costs| costs.iter().map(of).collect()).unwrap_or_default())
    }
}

/// The two tables, time and memory, with their geometric means.
fn tables(cells: &[Cell], allocators: &[Allocator], figures: &Figures) -> String {
    let mut out = String::new();
    let time = |row: usize, column: usize| figures.median(row, column, |cost| cost.cpu_us) as f64;
    let peak = |row: usize, column: usize| figures.median(row, column, |cost| cost.peak_kib) as f64;
    let shown_time = |row: usize, column: usize| {
        let cell: &Cell = &cells[row];
        let us = time(row, column);
        if cell.operations == 0 {
            format!("{:.2} s", us / 1e6)
        } else {
            format!("{:.2} ns", us * 1e3 / cell.operations as f64)
        }
    };
    let shown_peak = |row: usize, column: usize| format!("{:.1}", peak(row, column) / 1024.0);
    let _ = writeln!(out, "## CPU time\n");
    out += &table(cells, allocators, &time, &shown_time);
    let _ = writeln!(out, "\n## Peak of resident memory, MiB\n");
    out += &table(cells, allocators, &peak, &shown_peak);
    out
}

fn table(
    cells: &[Cell],
    allocators: &[Allocator],
    figure: &dyn Fn(usize, usize) -> f64,
    shown: &dyn Fn(usize, usize) -> String,
) -> String {
    let mut out = String::new();
    let names: Vec<&str> = allocators.iter().map(|a| a.name).collect();
    let peers: Vec<usize> = (0..allocators.len()).filter(|c| !allocators[*c].is_ours()).collect();
    let ours = allocators.iter().position(Allocator::is_ours).unwrap_or(0);
    let _ = writeln!(out, "| | {} | ours / glibc | ours / best |", names.join(" | "));
    let _ = writeln!(out, "| --- |{}", " ---: |".repeat(allocators.len() + 2));
    let (mut to_glibc, mut to_best) = (Vec::new(), Vec::new());
    let mut to_each = vec![Vec::new(); allocators.len()];
    for (row, cell) in cells.iter().enumerate() {
        let best = peers.iter().map(|c| figure(row, *c)).fold(f64::INFINITY, f64::min);
        let mut line = format!("| {} |", cell.name);
        for (column, ratios) in to_each.iter_mut().enumerate() {
            let value = figure(row, column);
            let bold = if value <= best { "**" } else { "" };
            let _ = write!(line, " {bold}{}{bold} |", shown(row, column));
            ratios.push(figure(row, ours) / value);
        }
        to_glibc.push(figure(row, ours) / figure(row, 0));
        to_best.push(figure(row, ours) / best);
        let _ = writeln!(out, "{line} {:.2} | {:.2} |", figure(row, ours) / figure(row, 0), figure(row, ours) / best);
    }
    let _ = write!(out, "| geometric mean, ours / this |");
    for ratios in &to_each {
        let _ = write!(out, " {:.3} |", geometric_mean(ratios));
    }
    let _ = writeln!(out, " {:.3} | {:.3} |", geometric_mean(&to_glibc), geometric_mean(&to_best));
    out
}

fn csv(cells: &[Cell], allocators: &[Allocator], figures: &Figures) -> String {
    let mut out = String::from("row,allocator,round,cpu_us,peak_kib\n");
    for ((row, column), costs) in &figures.0 {
        for (round, cost) in costs.iter().enumerate() {
            let (name, allocator) = (&cells[*row].name, allocators[*column].name);
            let _ = writeln!(out, "\"{name}\",\"{allocator}\",{},{},{}", round + 1, cost.cpu_us, cost.peak_kib);
        }
    }
    out
}

fn document(tables: &str, machine: &str, options: &Options) -> String {
    format!(
        "# Benchmarks\n\n\
         A record, made by `cargo xtask bench`; the raw figures of every run are in\n\
         [benchmarks/figures.csv](benchmarks/figures.csv). Small programs are in [benchmarks/small.md](benchmarks/small.md), the\n\
         price of a reader in [benchmarks/reader.md](benchmarks/reader.md), allocators of kernels in\n\
         [benchmarks/kernel.md](benchmarks/kernel.md).\n\n\
         Every figure is a median of {} runs{}, the allocators taking turns within each round. Time is CPU time, user and\n\
         system, of all threads; where a row counts operations (a malloc or a free; a push), it is CPU time per operation, with\n\
         the program's own work in it. All allocators are preloaded in the same way, except glibc, which needs no preload.\n\
         `kernmalloc` is as users run it: exact statistics, credited to library and call site. `kernmalloc, off` has attribution\n\
         off; statistics stay on. Bold: no peer is better. \"Best\" is the best of glibc and the peers in that row. The peers are\n\
         Debian's libmimalloc2.0, libjemalloc2 and libtcmalloc-minimal4.\n\n\
         The programs are in `tests/bench`; the real ones are python3 with `PYTHONMALLOC=malloc`, sqlite3 in memory, gcc -O2,\n\
         git repack, and the redis server under redis-benchmark. Debian links that server with jemalloc, so in its row the column of\n\
         glibc is jemalloc, too, without a preload.\n\n{}\n{tables}",
        options.rounds,
        if options.quick { " of a tenth of the work" } else { "" },
        machine,
    )
}

// ---- real programs

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

fn real(name: &str) -> Result<std::path::PathBuf> {
    shell::find_program(name).with_context(|| format!("{name} is not installed"))
}

fn real_programs(bench: &Bench) -> Result<Vec<Cell>> {
    let dir = bench.dir();
    let cell = |name: &str, program| Cell { name: name.to_owned(), work: Work::Plain(program), operations: 0 };
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

    cells.push(Cell { name: "redis-server".to_owned(), work: Work::Redis, operations: 0 });
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

/// The server alone is measured; it ends when it is told to.
fn redis(bench: &Bench, allocator: &Allocator, quick: bool) -> Result<Cost> {
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
    bench.run_beside(&server, allocator, |_| {
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
        client(&["SHUTDOWN", "NOSAVE"])?;
        Ok(())
    })
}

// ---- small programs

/// A preloaded allocator should not cost a small program more than this.
const SMALL_LIMIT_KIB: u64 = 1024;

fn small(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let mut figures = Figures::default();
    for _ in 0..options.rounds {
        for (row, (name, args)) in SMALL.iter().enumerate() {
            let program = Program::new(real(name)?).args(args.iter().copied());
            for (column, allocator) in allocators.iter().enumerate() {
                figures.add(row, column, bench.run(&program, allocator)?);
            }
        }
    }
    let mut out = format!(
        "# Peak of resident memory of small programs, KiB\n\nMade by `cargo xtask bench --small`; medians of {} runs.\n\n{}\n",
        options.rounds, machine
    );
    let names: Vec<&str> = allocators.iter().map(|a| a.name).collect();
    let _ = writeln!(out, "| | {} | ours − glibc |\n| --- |{}", names.join(" | "), " ---: |".repeat(names.len() + 1));
    let ours = allocators.iter().position(Allocator::is_ours).unwrap_or(0);
    let mut over = Vec::new();
    for (row, (name, args)) in SMALL.iter().enumerate() {
        let peak = |column| figures.median(row, column, |cost| cost.peak_kib);
        let _ = write!(out, "| `{}` |", [&[*name], *args].concat().join(" "));
        for column in 0..allocators.len() {
            let _ = write!(out, " {} |", peak(column));
        }
        let more = peak(ours) as i64 - peak(0) as i64;
        let _ = writeln!(out, " {more} |");
        if more > SMALL_LIMIT_KIB as i64 {
            over.push(format!("{name}: {more} KiB more than under glibc"));
        }
    }
    println!("{out}");
    write_record("small.md", &out)?;
    if !over.is_empty() {
        bail!("more than {SMALL_LIMIT_KIB} KiB: {}", over.join(", "));
    }
    Ok(())
}

fn write_record(name: &str, text: &str) -> Result<()> {
    let dir = shell::root().join("docs/benchmarks");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join(name), text)?;
    println!("written: docs/benchmarks/{name}");
    Ok(())
}

// ---- the price of a reader

fn reader(bench: &Bench, allocators: &[Allocator], machine: &str, options: &Options) -> Result<()> {
    let ours = allocators.iter().find(|a| a.is_ours()).context("ours is among them")?;
    let count = if options.quick { "20000000" } else { "100000000" };
    let program = Program::new(bench.program("mix")).args(["4096", "1", count]);
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    let rounds = options.rounds.max(5) * 2 + 1;
    for round in 0..rounds {
        let with_reader = |watched: &mut Vec<u64>| -> Result<()> {
            let cost = bench.run_beside(&program, ours, |launcher| {
                let pid = only_child(launcher)?;
                let mut vmstat = Command::new(measure::command());
                vmstat
                    .args(["vmstat", "-m", "-w", "0.01", "-p", &pid.to_string()])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null());
                // Ends with the program.
                vmstat.status().context("kernmalloc vmstat")?;
                Ok(())
            })?;
            watched.push(cost.cpu_us);
            Ok(())
        };
        // Who goes first changes, so that a drift of the machine takes no side.
        if round % 2 == 0 {
            alone.push(bench.run(&program, ours)?.cpu_us);
            with_reader(&mut watched)?;
        } else {
            with_reader(&mut watched)?;
            alone.push(bench.run(&program, ours)?.cpu_us);
        }
    }
    let (a, w) = (median(alone.clone()), median(watched.clone()));
    let text = format!(
        "# The price of a reader\n\n\
         Made by `cargo xtask bench --reader`: CPU time of a program that allocates all the time (`mix 4096 1 {count}`), alone and\n\
         while `kernmalloc vmstat -m -w 0.01` reads its table every 10 ms; {rounds} runs of each, taking turns.\n\n{}\n\
         | | median | least | most |\n| --- | ---: | ---: | ---: |\n\
         | alone | {} ms | {} ms | {} ms |\n| read every 10 ms | {} ms | {} ms | {} ms |\n\nDifference of the medians: {:+.2} %.\n",
        machine,
        a / 1000,
        alone.iter().min().unwrap_or(&0) / 1000,
        alone.iter().max().unwrap_or(&0) / 1000,
        w / 1000,
        watched.iter().min().unwrap_or(&0) / 1000,
        watched.iter().max().unwrap_or(&0) / 1000,
        (w as f64 / a as f64 - 1.0) * 100.0,
    );
    println!("{text}");
    write_record("reader.md", &text)
}

/// The program below the launcher, once it has made its statistics object.
fn only_child(launcher: u32) -> Result<u32> {
    for _ in 0..1000 {
        let children =
            std::fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children")).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            let mut ready = Command::new(measure::command());
            ready.args(["vmstat", "-s", "-p", &u32::to_string(&pid)]).stdout(Stdio::null()).stderr(Stdio::null());
            if ready.status().is_ok_and(|status| status.success()) {
                return Ok(pid);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("the program does not show up under kernmalloc")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_program() {
        for row in ROWS {
            let source = shell::root().join("tests/bench").join(format!("{}.c", row.program));
            assert!(source.exists(), "{}", source.display());
        }
    }
}
