//! Programs with the allocator inside: nothing is preloaded, and the command finds and reads them all the same.

use kernmalloc_conformance::{
    Case, Host, Live, Site, crate_totals, named_types, own_bytes, running, rust_example, sites,
};

/// Holds what the program says it holds against what the command says.
fn callers_and_types(live: &mut Live, what: &str) -> Vec<Site> {
    let lines = live.wait_for(|line| line == "wait");
    let (table, types) = (sites(live.pid()), named_types(live.pid()));
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind @ ("caller" | "type"), name, blocks, bytes] = words[..] else { continue };
        let (blocks, bytes): (u64, u64) = (blocks.parse().unwrap(), bytes.parse().unwrap());
        let found = if kind == "type" {
            types.get(name).copied().unwrap_or_default()
        } else {
            let rows = table.iter().filter(|site| {
                site.function.as_deref().is_some_and(|function| function.rsplit("::").next() == Some(name))
            });
            rows.fold((0, 0), |(in_use, bytes), site| (in_use + site.in_use, bytes + site.bytes_in_use))
        };
        seen += 1;
        // Of a type the program knows what is served, of a caller what it asked for.
        let enough = if kind == "type" { found.1 == bytes } else { found.1 >= bytes };
        if found.0 != blocks || !enough {
            wrong.push(format!("{line}, but the table says {found:?}"));
        }
    }
    assert_eq!(seen, 12);
    assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{table:#?}");
    assert!(running().contains(&live.pid()), "{what}: not listed");
    table
}

/// Blocks of the program's functions together.
const CALLERS_BLOCKS: u64 = 2_201;

fn example(what: &str, args: &[&str]) {
    let mut live = Case::new(rust_example("callers", what, args)).start(Host::Plain);
    let table = callers_and_types(&mut live, what);
    // Nearly nothing of the standard library's own is left over.
    let held = |site: &&Site| site.in_use > 0;
    assert!(table.iter().filter(held).count() < 20, "{what}: {table:#?}");
    // All callers are of one crate; the standard library has its own few blocks, and is the only other.
    let crates = crate_totals(live.pid());
    assert_eq!(crates["callers"].0, CALLERS_BLOCKS, "{what}: {crates:?}");
    assert_eq!(crates.keys().collect::<Vec<_>>(), ["by-hand", "callers", "scoped", "std"], "{what}: {crates:?}");
    drop(live.finish().good());
}

#[test]
fn an_optimised_program() {
    example("release", &["--release"]);
}

/// Here every function of the standard library has a frame of its own.
#[test]
fn an_unoptimised_program() {
    example("debug", &[]);
}

#[test]
fn an_optimised_program_with_link_time_optimisation() {
    example("lto", &["--release", "--config=profile.release.lto='fat'"]);
}

/// No loader, no shared library, nothing to preload into.
#[test]
fn a_statically_linked_program() {
    // With a target of its own, or the flag would be for the compiler's plugins as well.
    let target = format!("--target={}-unknown-linux-gnu", std::env::consts::ARCH);
    let flags = "--config=build.rustflags='-Ctarget-feature=+crt-static'";
    let program = rust_example("callers", "static", &["--release", &target, flags]);
    let file = std::fs::read(&program).unwrap();
    let has_loader = file.windows(15).any(|window| window == b"/lib64/ld-linux");
    assert!(!has_loader, "{} is not static", program.display());
    let mut live = Case::new(program).start(Host::Plain);
    callers_and_types(&mut live, "static");
    drop(live.finish().good());
}

/// Without symbols the callers have no names, and what the library's functions hand on is theirs; the types are as exact as ever.
#[test]
fn a_stripped_program_keeps_its_types() {
    let program = rust_example("callers", "stripped", &["--release", "--config=profile.release.strip=true"]);
    let mut live = Case::new(program).start(Host::Plain);
    live.wait_for(|line| line == "wait");
    let types = named_types(live.pid());
    assert_eq!((types["scoped"], types["by-hand"]), ((229, 229 * 112), (233, 233 * 512)));
    let all: u64 = sites(live.pid()).iter().map(|site| site.in_use).sum();
    assert!(all >= CALLERS_BLOCKS + 229 + 233, "{all}");
    drop(live.finish().good());
}

/// The program's own allocator counts what Rust asks for, the preloaded one what the C library does: two objects of one process,
/// of which the command shows the one that the program made itself.
#[test]
fn a_program_with_the_allocator_inside_runs_under_the_command_too() {
    let mut live = Case::new(rust_example("callers", "release", &["--release"])).start(Host::Kernmalloc);
    callers_and_types(&mut live, "under the command");
    drop(live.finish().good());
}

/// What the allocator needs for itself goes by CPUs and types, not by threads: a million blocks of a thousand threads and types.
#[test]
fn a_thousand_threads_with_a_thousand_types() {
    const LIMIT_BYTES: u64 = 64 << 20;
    // Lines of counters are per type and CPU, the rest is some for each: far below the limit on a machine of a few CPUs.
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let limit = LIMIT_BYTES.min((8 + cpus) << 20);
    let mut live = Case::new(rust_example("crowd", "release", &["--release"])).start(Host::Plain);
    live.wait_for(|line| line == "wait");
    let tasks = std::fs::read_dir(format!("/proc/{}/task", live.pid())).expect("the program lives").count();
    assert_eq!(tasks, 1001);
    let types = named_types(live.pid());
    let crowd: Vec<(u64, u64)> =
        types.iter().filter(|(name, _)| name.starts_with("crowd ")).map(|(_, row)| *row).collect();
    assert_eq!(crowd, vec![(1000, 16_000); 1000]);
    let own = own_bytes(live.pid());
    println!("{own} bytes for {tasks} threads and {} types", crowd.len());
    assert!(own <= limit, "{own} bytes of our own, {limit} are enough");
    drop(live.finish().good());
}
