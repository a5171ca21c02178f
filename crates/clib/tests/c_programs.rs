//! C programs, written against the manual pages, compiled against the installed headers and run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const STRICT: [&str; 6] = ["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// target/PROFILE/capi
fn out_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a file");
    let dir = exe.ancestors().nth(2).expect("cargo's folders").join("capi");
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// Where the library was installed for these tests, by the script that users run.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = out_dir().join("prefix");
        let script = root().join("crates/clib/install.sh");
        let mut install = Command::new(script);
        // Flags of the tests' own build (coverage, sanitizers) are not for a library without std.
        install.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTC_WORKSPACE_WRAPPER");
        run(install.arg(&prefix).arg(out_dir().join("target")));
        prefix
    })
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

fn run(command: &mut Command) -> Output {
    let out = output(command);
    assert!(out.status.success(), "{command:?}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn source(name: &str) -> PathBuf {
    root().join("tests/programs/capi").join(name)
}

/// Builds `tests/programs/capi/NAME.c` as C99.
fn cc(name: &str, out: &str, args: &[&str]) -> PathBuf {
    let lib = prefix().join("lib");
    let out = out_dir().join(out);
    let mut gcc = Command::new("gcc");
    gcc.arg("-std=c99").args(STRICT).arg("-I").arg(prefix().join("include")).arg("-o").arg(&out);
    gcc.arg(source(&format!("{name}.c"))).arg("-L").arg(&lib).arg(format!("-Wl,-rpath,{}", lib.display()));
    run(gcc.args(args));
    out
}

fn program(name: &str) -> PathBuf {
    cc(name, name, &["-lkernmalloc-c"])
}

/// The rest of a program that runs in a kernel as well.
fn environment() -> [String; 2] {
    ["env.c", "env_process.c"].map(|file| source(file).to_str().expect("a name of ours").to_owned())
}

/// Such a program.
fn portable(name: &str, out: &str, library: &str) -> PathBuf {
    let [env, process] = environment();
    cc(name, out, &[&env, &process, library])
}

#[test]
fn a_driver_attaches_works_and_detaches() {
    let out = run(&mut Command::new(portable("driver", "driver", "-lkernmalloc-c")));
    assert_eq!(text(&out.stdout), "driver detached\n");
    let said = text(&out.stderr);
    for line in [
        "kernmalloc: [zone: xe packet] the transmit queues have all packets",
        "kernmalloc: uma_zcreate(xe contig): flags 0x4: ",
        "kernmalloc: vmem_create(odd): the quantum 3 is no power of two",
    ] {
        assert!(said.lines().any(|seen| seen.starts_with(line)), "{line}\n{said}");
    }
    assert_eq!(said.lines().count(), 3, "and nothing else: {said}");
}

#[test]
fn a_client_of_pools_and_pool_caches() {
    let out = run(&mut Command::new(portable("pool_client", "pool_client", "-lkernmalloc-c")));
    assert_eq!(text(&out.stdout), "pools destroyed\n");
    let said = [
        "kernmalloc: pool_init(offset): an align_offset other than 0 is not supported\n",
        "kernmalloc: [zone: small] the pool is small\n",
        "kernmalloc: [zone: scarce] the pool is scarce\n",
    ];
    assert_eq!(text(&out.stderr), said.concat());
}

#[test]
fn libmemstat_says_what_a_program_did() {
    let out = run(&mut Command::new(portable("memstat", "memstat", "-lkernmalloc-c")));
    assert_eq!((text(&out.stdout).as_str(), text(&out.stderr).as_str()), ("figures agree\n", ""));
}

/// The locks of arenas and those who sleep in them, across fork(2).
#[test]
fn a_child_goes_on_with_arenas_that_others_sleep_in() {
    let out = run(&mut Command::new(cc("vmem_fork", "vmem_fork", &["-std=c11", "-lkernmalloc-c"])));
    assert_eq!((text(&out.stdout).as_str(), text(&out.stderr).as_str()), ("100 children\n", ""));
}

#[test]
fn the_static_library_does_the_same() {
    let archive = prefix().join("lib/libkernmalloc-c.a");
    let driver = portable("driver", "driver-static", archive.to_str().expect("a name of ours"));
    let out = run(&mut Command::new(driver));
    assert_eq!(text(&out.stdout), "driver detached\n");
}

#[test]
fn pkg_config_finds_it() {
    let pc = std::fs::read_to_string(prefix().join("lib/pkgconfig/kernmalloc-c.pc")).expect("install.sh writes it");
    assert!(pc.contains(&format!("prefix={}\n", prefix().canonicalize().unwrap().display())), "{pc}");
    assert!(pc.contains("Libs: -L${libdir} -lkernmalloc-c\n") && !pc.contains('@'), "{pc}");
}

#[test]
fn a_module_that_leaks_is_named_when_it_is_unloaded() {
    let module = cc("module", "module.so", &["-shared", "-fPIC", "-lkernmalloc-c"]);
    let out = run(Command::new(cc("host", "host", &["-lkernmalloc-c", "-ldl"])).arg(module));
    assert_eq!(text(&out.stdout), "loaded: 1\nunloaded: 1\nloaded: 1\nunloaded: 1\n");
    // 100 bytes are served 112. The second time there is more of it: what leaked before is still there. The host's own type is no
    // module's.
    let warning = |count: u32| {
        let bytes = 112 * count;
        format!(
            "kernmalloc: Warning: memory type leaky module leaked memory on destroy ({count} allocations, {bytes} bytes leaked).\n"
        )
    };
    assert_eq!(text(&out.stderr), warning(3) + &warning(6));
}

#[test]
fn bugs_are_reported_and_end_the_program() {
    let misuse = program("misuse");
    for (bug, report) in [
        ("twice", "kernmalloc: Duplicate free of "),
        ("size", ": 90 given != allocated size 100"),
        ("magic", "kernmalloc: Malloc type with bad magic at "),
        ("flags", "kernmalloc: Request that makes no sense: 0x100"),
        ("never", "panic: malloc: "),
        ("range", "panic: vmem_free(0x1, 0x1): "),
    ] {
        let out = output(Command::new(&misuse).arg(bug));
        let said = text(&out.stderr);
        assert!(!out.status.success() && said.contains(report), "{bug}: {}: {said}", out.status);
    }
    run(Command::new(&misuse).arg("none"));
}

/// Every header alone, and twice, and after and before the C library's.
#[test]
fn the_headers_are_cxx_too() {
    let headers = ["sys/malloc.h", "sys/kmem.h", "vm/uma.h", "sys/vmem.h", "sys/pool.h", "memstat.h"];
    let define = "MALLOC_DEFINE(M_X, \"x\", \"of C++\");\nstatic MALLOC_DEFINE_LIMIT(M_Y, \"y\", \"of C++\", 100);\n";
    let mut files: Vec<(String, &str)> =
        headers.iter().map(|header| (format!("#include <{header}>\n#include <{header}>\n"), "")).collect();
    let all: String = headers.iter().map(|header| format!("#include <{header}>\n")).collect();
    let libc = "#include <stdlib.h>\n#include <string.h>\n#include <stdio.h>\n#include <pthread.h>\n";
    files.push((format!("{libc}{all}{define}"), ""));
    files.push((format!("{all}{libc}{define}"), ""));
    files.push((format!("{all}{define}"), "void f(void);\nvoid f(void) { free(malloc(1, M_X, M_WAITOK), M_Y); }\n"));
    for (index, (includes, body)) in files.iter().enumerate() {
        for (compiler, standard, ending) in [("g++", "-std=c++17", "cc"), ("gcc", "-std=c99", "c")] {
            let file = out_dir().join(format!("header-{index}.{ending}"));
            std::fs::write(&file, format!("{includes}{body}")).expect("the target folder is writable");
            let mut command = Command::new(compiler);
            command.arg(standard).args(STRICT).arg("-I").arg(prefix().join("include"));
            run(command.arg("-fsyntax-only").arg(&file));
            if includes.contains("<stdlib.h>") {
                continue;
            }
            // In a kernel, where there is no C library.
            let own = text(&run(Command::new(compiler).arg("-print-file-name=include")).stdout);
            let mut command = Command::new(compiler);
            command.arg(standard).args(STRICT).args([
                "-D_KERNEL",
                "-ffreestanding",
                "-nostdinc",
                "-isystem",
                own.trim(),
            ]);
            run(command.arg("-I").arg(prefix().join("include")).arg("-fsyntax-only").arg(&file));
        }
    }
}
