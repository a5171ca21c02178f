//! What processes and threads do around an allocator: fork, exec, exit, constructors, descriptors, other users.

use kernmalloc_conformance::{Case, Host, Sandbox, cc, cc_with, skipped};
use std::path::PathBuf;
use std::process::Command;

fn says(case: &Case, text: &str) {
    // The program is right under the C library, so that a failure is ours.
    assert_eq!(case.run(Host::Plain).good().text(), text);
    assert_eq!(case.run(Host::Kernmalloc).good().text(), text);
}

#[test]
fn fork_while_other_threads_allocate() {
    says(&Case::new(cc("forks")).args(["fork", "200"]), "200 of fork\n");
}

/// The first thread has a slot to itself, until another wants it: at whatever moment, nobody gets a block that is somebody's.
#[test]
fn a_second_thread_takes_the_slot_of_the_first() {
    says(&Case::new(cc("lease")).args(["120"]), "120 leases\n");
}

/// The statistics object is larger than such a file may be, and asking for it would be a signal.
#[test]
fn a_limit_on_file_size_ends_nobody() {
    let script = "ulimit -f 64; (echo child); sqlite3 :memory: 'select 6 * 7'";
    says(&Case::new("/bin/bash").args(["-c", script]), "child\n42\n");
}

#[test]
fn vfork_and_exec_while_other_threads_allocate() {
    says(&Case::new(cc("forks")).args(["vfork", "100"]), "100 of vfork\n");
}

#[test]
fn posix_spawn_while_other_threads_allocate() {
    says(&Case::new(cc("forks")).args(["spawn", "100"]), "100 of spawn\n");
}

/// No handler runs in a child made by the bare system call, and what other threads held stays held: one thread.
#[test]
fn clone_by_system_call_past_the_fork_handlers() {
    let run = Case::new(cc("forks")).args(["clone", "200"]).run(Host::Kernmalloc).good();
    assert_eq!(run.text(), "200 of clone\n");
}

#[test]
fn threads_by_the_ten_thousand() {
    says(&Case::new(cc("threads")).args(["10000"]), "10000 threads\n");
}

#[test]
fn constructors_exit_handlers_and_destructors() {
    Case::new(cc("lifecycle")).same();
}

#[test]
fn exit_while_other_threads_allocate() {
    for _ in 0..20 {
        let run = Case::new(cc("lifecycle")).args(["threads"]).run(Host::Kernmalloc).good();
        assert!(run.text().ends_with("destructor 101\n"), "{run}");
    }
}

fn plugins() -> [PathBuf; 3] {
    // Copies, so that the loader maps one where another was.
    ["plugin1.so", "plugin2.so", "plugin3.so"].map(|name| cc_with("plugin", name, &["-fPIC", "-shared"]))
}

#[test]
fn libraries_that_come_and_go() {
    says(&Case::new(cc("plugins")).args(["300"]).args(plugins()), "300 times\n");
}

/// `RTLD_DEEPBIND` puts the C library's malloc before ours for the library opened so, and the two would free each other's blocks.
#[test]
fn a_library_bound_to_its_own_dependencies_first() {
    let [plugin, ..] = plugins();
    let deeper = cc_with("deeper", "deeper.so", &["-fPIC", "-shared", "-Wl,-rpath,$ORIGIN"]);
    let name = plugin.file_name().expect("a file").to_owned();
    says(&Case::new(cc("deepbind")).args([deeper.into_os_string(), name]), "done\n");
}

#[test]
fn every_descriptor_closed() {
    let sandbox = Sandbox::new("closed");
    says(&Case::new(cc("closed")).args([sandbox.path()]), "untouched\n");
}

/// A setuid program ignores the preload, as it ignores every preload: it runs, and with the system's malloc.
#[test]
fn a_setuid_program_is_left_alone() {
    // SAFETY: no arguments, no memory.
    if unsafe { libc::geteuid() } != 0 {
        skipped("a setuid program: making one needs root");
        return;
    }
    let sandbox = Sandbox::new("setuid");
    let program = sandbox.file("setuid");
    std::fs::copy(cc("setuid"), &program).unwrap();
    for (path, mode) in [(sandbox.path(), "755"), (&program, "4755")] {
        assert!(Command::new("chmod").arg(mode).arg(path).status().unwrap().success());
    }
    let nosuid = Command::new("findmnt").args(["-no", "OPTIONS", "--target"]).arg(&program).output();
    if nosuid.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("nosuid")) {
        skipped("a setuid program: the temporary folder is mounted nosuid");
        return;
    }
    // As nobody, who starts root's program.
    let case =
        Case::new("/usr/bin/setpriv").args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args([&program]);
    let expected = "secure 1, uid 65534, effective 0, malloc of libc.so.6\n";
    assert_eq!(case.run(Host::Plain).good().text(), expected);
    assert_eq!(case.run(Host::Kernmalloc).good().text(), expected);
}

/// Started from a process that was itself started so, and without its variables: neither is confused.
#[test]
fn an_emptied_environment() {
    let program = cc("lifecycle");
    let case = Case::new("/usr/bin/env").args(["-i".as_ref(), program.as_os_str()]);
    assert_eq!(case.run(Host::Plain).good().text(), case.run(Host::Kernmalloc).good().text());
}

#[test]
fn a_foreign_mapping_where_the_heap_would_grow() {
    says(&Case::new(cc("intruder")), "unharmed\n");
}
