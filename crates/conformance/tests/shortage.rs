//! Out of memory: NULL and ENOMEM, counted; the rest of the program untouched.

use kernmalloc_conformance::{Case, Host, Live, Run, cc, failures_of, real_program};

/// The program after it ran out, still alive, with how often it was refused.
fn starved(case: &Case) -> (Live, u64) {
    let mut live = case.start(Host::Kernmalloc);
    let lines = live.wait_for(|line| line.starts_with("refused "));
    let refused = lines.last().and_then(|line| line.strip_prefix("refused ")?.parse().ok()).expect("a number");
    (live, refused)
}

fn refused_and_counted(args: [&str; 3]) {
    let (live, refused) = starved(&Case::new(cc("shortage")).args(args));
    assert!(refused >= 3, "{args:?}: refused {refused} times");
    assert_eq!(failures_of(live.pid(), "hungry_site"), refused, "{args:?}");
    let run: Run = live.finish();
    drop(run.good());
}

#[test]
fn small_blocks_and_address_space() {
    refused_and_counted(["as", "256", "100"]);
}

#[test]
fn pages_and_address_space() {
    refused_and_counted(["as", "256", "5000"]);
}

#[test]
fn large_blocks_and_address_space() {
    refused_and_counted(["as", "256", "1000000"]);
}

#[test]
fn small_blocks_and_data() {
    refused_and_counted(["data", "128", "100"]);
}

#[test]
fn large_blocks_and_data() {
    refused_and_counted(["data", "128", "3000000"]);
}

/// The limit is there before the program starts, so that the heap itself is made under it.
#[test]
fn a_limit_from_the_start() {
    for kibibytes in [65536, 262_144, 2_097_152] {
        let limited = format!("ulimit -v {kibibytes}; exec \"$@\"");
        let case = Case::new(real_program("bash"))
            .args(["-c", &limited, "-"])
            .args([cc("shortage").as_os_str()])
            .args(["none", "0", "50000"]);
        let (live, refused) = starved(&case);
        assert!(refused >= 3, "refused {refused} times");
        drop(live.finish().good());
    }
}
