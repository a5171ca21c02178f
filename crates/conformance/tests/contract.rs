//! The malloc(3) family against its contract and against a model.

use kernmalloc_conformance::{Case, Host, cc, cc_with, real_program};

#[test]
fn the_malloc_family_keeps_its_contract() {
    let program = cc("contract");
    // Under the C library first: a contract that it breaks is not the one that programs rely on.
    assert_eq!(Case::new(&program).run(Host::Plain).good().text(), "contract kept\n");
    assert_eq!(Case::new(&program).args(["--ours"]).run(Host::Kernmalloc).good().text(), "contract kept\n");
}

#[test]
fn operator_new_and_delete_keep_their_contract() {
    let program = cc("contract_new");
    let plain = Case::new(&program).run(Host::Plain).good().text();
    assert_eq!(Case::new(&program).args(["--ours"]).run(Host::Kernmalloc).good().text(), plain);
}

fn model_holds(case: &Case) {
    let text = case.run(Host::Kernmalloc).good().text();
    assert!(text.ends_with("model holds\n"), "{text}");
}

#[test]
fn random_operations_on_one_thread() {
    for seed in ["1", "2", "3"] {
        model_holds(&Case::new(cc("random_ops")).args([seed, "1", "500000"]));
    }
}

#[test]
fn random_operations_on_eight_threads() {
    for seed in ["4", "5", "6"] {
        model_holds(&Case::new(cc("random_ops")).args([seed, "8", "1000000"]));
    }
}

/// Without restartable sequences a thread's slot plays the CPU; every promise is the same.
#[test]
fn random_operations_without_restartable_sequences() {
    let case = Case::new(cc("random_ops")).args(["7", "8", "1000000"]);
    model_holds(&case.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0"));
}

#[test]
fn random_operations_with_attribution_off() {
    model_holds(
        &Case::new(cc("random_ops")).args(["8", "8", "1000000"]).env("KERNMALLOC", "kern.malloc.attribution=off"),
    );
}

/// The page supply fails again and again: at 40 MiB for most of what is asked, at 1 GiB for nothing.
#[test]
fn random_operations_when_address_space_is_short() {
    let program = cc("random_ops");
    let mut refusals = Vec::new();
    for mebibytes in [60, 100, 200, 400, 1000] {
        for threads in ["1", "8"] {
            let limited = format!("ulimit -v {}; exec \"$@\"", mebibytes * 1024);
            let case = Case::new(real_program("bash"))
                .args(["-c", &limited, "-"])
                .args([program.as_os_str()])
                .args(["9", threads, "300000", "short"]);
            let run = case.run(Host::Kernmalloc);
            let text = run.text();
            assert!(run.status.success() && text.ends_with("model holds\n"), "ulimit -v of {mebibytes} MiB: {run}");
            refusals.push(text.lines().next().unwrap_or_default().to_owned());
        }
    }
    // The limit was felt, or nothing was tested.
    assert!(refusals.iter().any(|line| line != "refused 0"), "{refusals:?}");
}

#[test]
fn a_second_preload_beside_ours() {
    let wrapper = cc_with("wrapper", "libwrapper.so", &["-fPIC", "-shared"]);
    let plugin = cc_with("plugin", "plugin1.so", &["-fPIC", "-shared"]);
    // The shell's own preload list is before what the command adds; both orders must work.
    let script =
        "LD_PRELOAD=$1:$LD_PRELOAD WRAPPER_REPORTS=1 \"$2\" 30 \"$3\" && LD_PRELOAD=$LD_PRELOAD:$1 \"$2\" 30 \"$3\"";
    let case = Case::new(real_program("bash"))
        .args(["-c", script, "-"])
        .args([wrapper, cc("plugins"), plugin].iter().map(|path| path.as_os_str()));
    assert_eq!(case.run(Host::Kernmalloc).good().text(), "wrapped calls\n30 times\n30 times\n");
}
