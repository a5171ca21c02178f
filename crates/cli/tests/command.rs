//! The command from outside: what it prints, where, and with which status.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;
use memstat::builder::{Builder, Line};

fn kernmalloc() -> Command {
    Command::cargo_bin("kernmalloc").unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The only line on standard error.
#[track_caller]
fn error_of(args: &[&str]) -> String {
    let out = kernmalloc().args(args).output().unwrap();
    let stderr = text(&out.stderr);
    assert_eq!((out.status.code(), text(&out.stdout).as_str()), (Some(1), ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.trim_end().to_owned()
}

fn object(dir: &Path, name: &str, change: impl FnOnce(&mut Builder)) -> PathBuf {
    let mut b = Builder::new(2);
    let main = b.lib("/nowhere/example", &[1, 2, 3], abi::lib_flag::MAIN);
    let lib = b.lib("/nowhere/libexample.so.1", &[], 0);
    let a = Line { allocs: 10, bytes_allocated: 480, bytes_requested: 400, size_mask: 4, ..Line::default() };
    let f = Line { frees: 4, bytes_freed: 192, peak_bytes: -192, ..Line::default() };
    b.ty(abi::type_kind::SITE, main, 0x1234, "", &[a, f]);
    b.ty(abi::type_kind::SITE, lib, 0x4567, "", &[a]);
    b.ty(abi::type_kind::LIB_OVERFLOW, lib, 0, "", &[f, a]);
    b.zone("malloc-48", 48, [2, 100, 14, 70, 20]);
    change(&mut b);
    let path = dir.join(name);
    fs::write(&path, b.bytes()).unwrap();
    path
}

fn vmstat(path: &Path, args: &[&str]) -> Output {
    kernmalloc().arg("vmstat").args(args).arg("-f").arg(path).output().unwrap()
}

#[test]
fn a_type_whose_module_is_gone_is_shown_only_while_it_leaks() {
    let dir = tempfile::tempdir().unwrap();
    let path = object(dir.path(), "4242.0", |b| {
        let a = Line { allocs: 10, bytes_allocated: 480, ..Line::default() };
        let f = Line { frees: 10, bytes_freed: 480, ..Line::default() };
        let flags = std::mem::offset_of!(abi::TypeRecord, flags) as u64;
        for (name, lines) in [("leaked", &[a][..]), ("clean", &[a, f])] {
            let index = b.ty(abi::type_kind::STATIC, abi::NO_LIB, 0, name, lines);
            b.half(Builder::type_at(index) + flags, abi::type_flag::GONE);
        }
    });
    for args in [&["-m"][..], &["-m", "--sites"], &["-m", "--netbsd"]] {
        let out = text(&vmstat(&path, args).stdout);
        assert!(out.contains("leaked") && !out.contains("clean"), "{out}");
    }
}

#[test]
fn an_object_left_behind_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = object(dir.path(), "4242.0", |_| ());
    let out = vmstat(&path, &["-m"]);
    let expected = concat!(
        "            Type  Use Memory Req Size(s)\n",
        " libexample.so.1   16   768   20 48\n",
        "         example    6   288   10 48\n",
    );
    assert_eq!(text(&out.stdout), expected, "{}", text(&out.stderr));
    let out = vmstat(&path, &["-m", "--sites", "--sort", "type"]);
    let expected = concat!(
        "                                         Type  Use Memory Req Size(s)\n",
        "                               example+0x1234    6   288   10 48\n",
        "libexample.so.1 (call sites beyond the table)    6   288   10 48\n",
        "                       libexample.so.1+0x4567   10   480   10 48\n",
    );
    assert_eq!(text(&out.stdout), expected);
    let out = vmstat(&path, &["-z"]);
    assert!(
        text(&out.stdout).ends_with("malloc-48:               48,      0,      50,     120,      70,   0,   0,   0\n")
    );
}

#[test]
fn json_has_exact_figures_in_the_shape_of_libxo() {
    let dir = tempfile::tempdir().unwrap();
    let path = object(dir.path(), "4242.0", |_| ());
    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_slice(&vmstat(&path, args).stdout).unwrap() };
    let types = json(&["-m", "--json", "--sites", "--sort", "type"]);
    let row = &types["malloc-statistics"]["memory"][0];
    let expected = serde_json::json!({
        "type": "example+0x1234", "in-use": 6, "memory-use": 288, "requests": 10, "size": [48], "high-water": 288,
        "frees": 4, "failures": 0, "requested-bytes": 400, "served-bytes": 480, "freed-bytes": 192,
        "library": "/nowhere/example", "build-id": "010203", "offset": 0x1234,
    });
    assert_eq!(*row, expected);
    assert_eq!((&types["__version"], &types["program"]["pid"]), (&"1".into(), &4242.into()));
    let zones = json(&["-z", "--json"]);
    let zone = &zones["memory-zone-statistics"]["zone"][0];
    assert_eq!((&zone["name"], &zone["used"], &zone["xdomain"]), (&"malloc-48".into(), &50.into(), &0.into()));
}

#[test]
fn what_a_reader_must_know_goes_to_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = object(dir.path(), "1.0", |b| {
        b.report("free of 0x10: no block\nallocated by nobody").foreign();
    });
    let stderr = text(&vmstat(&path, &["-m"]).stderr);
    let expected = concat!(
        "kernmalloc: example brings its own malloc, which kernmalloc does not replace: the table has only what came to ours\n",
        "kernmalloc: example misused malloc (1 times); first report:\n",
        "kernmalloc:   free of 0x10: no block\n",
        "kernmalloc:   allocated by nobody\n",
    );
    assert_eq!(stderr, expected);
}

#[test]
fn errors_are_one_line_with_a_remedy() {
    assert_eq!(error_of(&["vmstat", "-m", "-p", "4194305"]), "kernmalloc: no process has pid 4194305");
    let mut sleep = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let found = error_of(&["vmstat", "-m", "-p", &sleep.id().to_string()]);
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    let expected = "(sleep) is not under kernmalloc; start it with: kernmalloc run -- sleep";
    assert!(found.ends_with(expected), "{found}");

    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| -> String {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_string_lossy().into_owned()
    };
    let found = error_of(&["vmstat", "-m", "-f", &file("text", b"no object, though longer than eight bytes")]);
    assert!(found.starts_with("kernmalloc: not a statistics object: offset 0 holds"), "{found}");
    let whole = fs::read(object(dir.path(), "4242.0", |_| ())).unwrap();
    let found = error_of(&["vmstat", "-m", "-f", &file("cut", &whole[..9000])]);
    assert!(found.starts_with("kernmalloc: truncated statistics object (layout version 3)"), "{found}");
    let mut other = whole;
    other[8] = 77;
    let found = error_of(&["vmstat", "-m", "-f", &file("other", &other)]);
    assert_eq!(found, "kernmalloc: statistics object of layout version 77; this reader knows version 3");
    let found = error_of(&["vmstat", "-m", "-f", "/nonexistent/object"]);
    assert_eq!(found, "kernmalloc: /nonexistent/object: No such file or directory (os error 2)");
}

#[test]
fn a_closed_pipe_is_quiet() {
    let dir = tempfile::tempdir().unwrap();
    let path = object(dir.path(), "4242.0", |_| ());
    let exe = assert_cmd::cargo::cargo_bin!("kernmalloc");
    // By the time it writes, nobody reads.
    let script = format!(
        "(sleep 0.3; exec {} vmstat -m -f {}) | true; echo \"${{PIPESTATUS[0]}}\"",
        exe.display(),
        path.display()
    );
    let out = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert_eq!((text(&out.stdout).as_str(), text(&out.stderr).as_str()), ("0\n", ""));
}

#[test]
fn help_has_examples_and_completions_name_the_options() {
    let out = |args: &[&str]| text(&kernmalloc().args(args).output().unwrap().stdout);
    for args in [&["--help"][..], &["run", "--help"], &["vmstat", "--help"], &["ps", "--help"]] {
        assert!(out(args).contains("Examples:\n"), "{args:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(out(&["completions", shell]).contains("attribution"), "{shell}");
    }
}

#[test]
fn mistakes_in_the_command_line() {
    for (args, code) in [
        (&["vmstat", "-m", "-z"][..], 2),
        (&["vmstat"], 2),
        (&["vmstat", "-m", "-w", "-1"], 2),
        (&["vmstat", "-m", "-w", "0"], 1),
        (&["run"], 125),
        (&["run", "--set", "novalue", "--", "true"], 125),
        (&["run", "--unknown", "--", "true"], 125),
        (&["frobnicate"], 2),
    ] {
        kernmalloc().args(args).assert().code(code);
    }
}
