//! Who holds the memory: every row against a program's own books, to the block and the byte.

use kernmalloc_conformance::{
    Case, Host, Sandbox, Site, bench_program, cc, cc_with, library_totals, real_program, rustc, sites, sites_if_any,
    sites_of_report,
};
use std::collections::BTreeMap;

/// A call site as the program keeps its books on it.
#[derive(Debug)]
struct Booked {
    function: String,
    module: String,
    from: u64,
    to: u64,
    allocs: u64,
    frees: u64,
    in_use: u64,
    bytes_in_use: u64,
    bytes_allocated: u64,
    bytes_requested: u64,
}

impl Booked {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("site ")?.split(' ');
        let function = words.next()?.to_owned();
        let module = words.next()?.to_owned();
        let mut number = || {
            let word = words.next()?;
            match word.strip_prefix("0x") {
                Some(hex) => u64::from_str_radix(hex, 16).ok(),
                None => word.parse().ok(),
            }
        };
        let from = number()?;
        Some(Self {
            function,
            module,
            from,
            to: from + number()?,
            allocs: number()?,
            frees: number()?,
            in_use: number()?,
            bytes_in_use: number()?,
            bytes_allocated: number()?,
            bytes_requested: number()?,
        })
    }

    /// The row with a return address in this function. There is one call in it, so there is one row.
    fn row<'a>(&self, table: &'a [Site]) -> &'a Site {
        let inside =
            |site: &&Site| site.library == self.module && site.offset.is_some_and(|at| self.from < at && at <= self.to);
        let rows: Vec<&Site> = table.iter().filter(inside).collect();
        let [row] = rows[..] else { panic!("{} rows for {self:?}: {rows:#?}", rows.len()) };
        row
    }

    fn assert_is(&self, row: &Site, when: &str) {
        let table = [row.requests, row.frees, row.in_use, row.bytes_in_use, row.bytes_served, row.bytes_requested];
        let books =
            [self.allocs, self.frees, self.in_use, self.bytes_in_use, self.bytes_allocated, self.bytes_requested];
        assert_eq!(
            table, books,
            "{when}: {}: requests, frees, in use, bytes in use, bytes served, bytes requested; table, then books",
            self.function
        );
        assert_eq!(row.function.as_deref(), Some(&*self.function), "{when}");
        assert!(row.high_water >= row.bytes_in_use, "{when}: {row:?}");
    }
}

fn script_equals_table(blocks: &str, threads: &str, seed: &str, env: Option<(&str, &str)>) {
    for library in ["script_a", "script_b"] {
        drop(cc_with(library, &format!("lib{library}.so"), &["-fPIC", "-shared"]));
    }
    let program = cc_with("script", "script", &["-L.", "-lscript_a", "-lscript_b", "-Wl,-rpath,$ORIGIN"]);
    let sandbox = Sandbox::new(&format!("script-{threads}-{seed}"));
    let report = sandbox.file("report.json");
    let mut case = Case::new(program).args([blocks, threads, seed]).report(&report);
    if let Some((name, value)) = env {
        case = case.env(name, value);
    }
    let mut live = case.start(Host::Kernmalloc);
    let mut last = Vec::new();
    for checkpoint in 1..=5 {
        let lines = live.wait_for(|line| line == "wait");
        let books: Vec<Booked> = lines.iter().filter_map(|line| Booked::parse(line)).collect();
        assert_eq!(books.len(), 100, "{lines:#?}");
        let when = format!("checkpoint {checkpoint}");
        let table = sites(live.pid());
        for site in &books {
            site.assert_is(site.row(&table), &when);
        }
        // The program was worth the trouble: every site holds something, or has given all of it back.
        assert!(checkpoint == 5 || books.iter().all(|site| site.allocs > 0 && site.frees > 0 && site.in_use > 0));
        libraries_add_up(&books, &library_totals(live.pid()), &when);
        last = books;
        live.say(b"\n");
    }
    drop(live.finish().good());
    let table = sites_of_report(&report);
    for site in &last {
        site.assert_is(site.row(&table), "after the end");
    }
}

/// The libraries hold what their sites hold; they have no others.
fn libraries_add_up(books: &[Booked], table: &[Site], when: &str) {
    let mut sums: BTreeMap<&str, [u64; 5]> = BTreeMap::new();
    for site in books.iter().filter(|site| site.module.starts_with("lib")) {
        let sum = sums.entry(&site.module).or_default();
        for (sum, figure) in
            sum.iter_mut().zip([site.allocs, site.frees, site.in_use, site.bytes_in_use, site.bytes_requested])
        {
            *sum += figure;
        }
    }
    assert_eq!(sums.len(), 2);
    for (library, books) in sums {
        let rows: Vec<&Site> = table.iter().filter(|row| row.library == library).collect();
        let [row] = rows[..] else { panic!("{when}: {} rows for {library}", rows.len()) };
        let table = [row.requests, row.frees, row.in_use, row.bytes_in_use, row.bytes_requested];
        assert_eq!(table, books, "{when}: {library}: requests, frees, in use, bytes in use, bytes requested");
    }
}

#[test]
fn ten_million_blocks_of_a_hundred_sites_on_eight_threads() {
    script_equals_table("10000000", "8", "1", None);
}

#[test]
fn the_script_on_one_thread() {
    script_equals_table("1000000", "1", "2", None);
}

#[test]
fn the_script_without_restartable_sequences() {
    script_equals_table("2000000", "8", "3", Some(("GLIBC_TUNABLES", "glibc.pthread.rseq=0")));
}

/// Many more threads than CPUs: critical sections are preempted, and blocks counted past the caches.
#[test]
fn the_script_on_sixty_threads() {
    script_equals_table("3000000", "60", "4", None);
}

/// Compares the callers that a program names with the rows of their functions.
fn callers_are_credited(case: &Case, expected: usize) {
    let mut live = case.start(Host::Kernmalloc);
    let lines = live.wait_for(|line| line == "wait");
    let table = sites(live.pid());
    let (mut wrong, mut callers) = (Vec::new(), 0);
    for line in lines {
        let Some(rest) = line.strip_prefix("caller ") else { continue };
        let words: Vec<&str> = rest.split(' ').collect();
        let [function, blocks, bytes] = words[..] else { panic!("{line}") };
        let (blocks, bytes): (u64, u64) = (blocks.parse().unwrap(), bytes.parse().unwrap());
        callers += 1;
        // Rust's names are paths.
        let named =
            |site: &&Site| site.function.as_deref().is_some_and(|name| name.rsplit("::").next() == Some(function));
        let rows = || table.iter().filter(named);
        let in_use: u64 = rows().map(|site| site.in_use).sum();
        let bytes_in_use: u64 = rows().map(|site| site.bytes_in_use).sum();
        if in_use != blocks || bytes_in_use < bytes {
            wrong.push(format!(
                "{function}: {in_use} blocks of {bytes_in_use} bytes, should be {blocks} of {bytes} or more"
            ));
        }
    }
    assert_eq!(callers, expected);
    assert!(wrong.is_empty(), "{wrong:#?}\n{table:#?}");
    drop(live.finish().good());
}

#[test]
fn wrappers_are_looked_through() {
    callers_are_credited(&Case::new(cc_with("wrappers", "wrappers", &["-ldl"])), 12);
}

#[test]
fn the_wrappers_of_rust_are_looked_through() {
    callers_are_credited(&Case::new(rustc("rusty")), 6);
}

/// Python allocates through several layers of its own; none of them holds anything.
#[test]
fn the_wrappers_of_python_are_looked_through() {
    let script = "x = [str(i) * 9 for i in range(100000)]; print('ready', flush=True); input()";
    let case = Case::new(real_program("python3")).args(["-c", script]).env("PYTHONMALLOC", "malloc");
    let mut live = case.start(Host::Kernmalloc);
    live.wait_for(|line| line == "ready");
    let table = sites(live.pid());
    let all: u64 = table.iter().map(|site| site.in_use).sum();
    assert!(all > 100_000, "{table:#?}");
    let wrappers = [
        "PyMem_Malloc",
        "PyMem_Calloc",
        "PyMem_Realloc",
        "PyMem_RawMalloc",
        "PyMem_RawCalloc",
        "PyMem_RawRealloc",
        "PyObject_Malloc",
        "PyObject_Calloc",
        "PyObject_Realloc",
    ];
    let held: Vec<&Site> = table
        .iter()
        .filter(|site| site.in_use > 0 && site.function.as_deref().is_some_and(|name| wrappers.contains(&name)))
        .collect();
    assert!(held.is_empty(), "{held:#?}");
    live.say(b"\n");
    drop(live.finish().good());
}

/// Whoever reads while the program runs at full speed sees figures that were true: never more frees than allocations, never less
/// than before.
#[test]
fn figures_of_a_running_program_never_contradict_each_other() {
    let live = Case::new(bench_program("mix", &[])).args(["1000", "8", "1000000000000"]).start(Host::Kernmalloc);
    let mut before: BTreeMap<(String, Option<u64>), (u64, u64)> = BTreeMap::new();
    let (mut seen, mut moved) = (0, 0);
    while seen < 60 {
        let Some(table) = sites_if_any(live.pid()) else { continue };
        seen += 1;
        for site in &table {
            assert!(site.frees <= site.requests, "{site:?}");
            assert_eq!(site.in_use, site.requests - site.frees, "{site:?}");
            assert!(site.bytes_requested <= site.bytes_served, "{site:?}");
            let now = (site.requests, site.frees);
            let old = before.insert((site.library.clone(), site.offset), now).unwrap_or_default();
            assert!(old.0 <= now.0 && old.1 <= now.1, "{old:?} before, now {site:?}");
            moved += u64::from(old != (0, 0) && old.0 < now.0);
        }
    }
    assert!(moved >= 30, "only {moved} rows moved: the program did not run meanwhile");
    let run = live.signal_and_finish(libc::SIGKILL);
    assert!(run.ended_by(libc::SIGKILL), "{run}");
}

/// The figures are in memory that the command holds too: a program killed at once leaves all of them.
#[test]
fn a_killed_program_leaves_its_figures() {
    for library in ["script_a", "script_b"] {
        drop(cc_with(library, &format!("lib{library}.so"), &["-fPIC", "-shared"]));
    }
    let program = cc_with("script", "script", &["-L.", "-lscript_a", "-lscript_b", "-Wl,-rpath,$ORIGIN"]);
    let sandbox = Sandbox::new("killed");
    let report = sandbox.file("report.json");
    let mut live = Case::new(program).args(["400000", "4", "5"]).report(&report).start(Host::Kernmalloc);
    let lines = live.wait_for(|line| line == "wait");
    let books: Vec<Booked> = lines.iter().filter_map(|line| Booked::parse(line)).collect();
    let run = live.signal_and_finish(libc::SIGKILL);
    assert!(run.ended_by(libc::SIGKILL), "{run}");
    let table = sites_of_report(&report);
    for site in &books {
        site.assert_is(site.row(&table), "killed");
    }
}

/// What a library allocated stays its own after it is gone.
#[test]
fn a_library_that_is_gone_keeps_its_row() {
    let plugins = ["plugin1.so", "plugin2.so"].map(|name| cc_with("plugin", name, &["-fPIC", "-shared"]));
    let sandbox = Sandbox::new("gone");
    let report = sandbox.file("report.json");
    let run = Case::new(cc("plugins")).args(["50"]).args(plugins).report(&report).run(Host::Kernmalloc);
    drop(run.good());
    let table = sites_of_report(&report);
    for library in ["plugin1.so", "plugin2.so"] {
        let say = table.iter().filter(|site| site.library == library && site.function.as_deref() == Some("plugin_say"));
        let (requests, frees) = say.fold((0, 0), |(r, f), site| (r + site.requests, f + site.frees));
        // Four threads of fifty turns over two copies.
        assert_eq!((requests, frees), (100, 100), "{library}: {table:#?}");
        let load = table.iter().filter(|site| site.library == library && site.function.as_deref() == Some("loaded"));
        let (requests, in_use) = load.fold((0, 0), |(r, u), site| (r + site.requests, u + site.in_use));
        assert!(requests > 0 && in_use == 0, "{library}: {table:#?}");
    }
}
