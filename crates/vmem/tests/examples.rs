//! The examples say what they are said to say.

#[path = "../examples/ids.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod ids;
#[path = "../examples/iova.rs"]
#[allow(dead_code, reason = "as above")]
mod iova;
#[path = "../examples/ports.rs"]
#[allow(dead_code, reason = "as above")]
mod ports;

#[test]
fn ids() {
    assert_eq!(
        ids::told().unwrap(),
        "1 has ended, the next is 2\n\
         then 3, 4, 5, and only then 1 again\n\
         5 in use; one more: no free segment meets the request\n\
         a wrong free: 0x6 is in no span\n"
    );
}

#[test]
fn ports() {
    assert_eq!(
        ports::told().unwrap(),
        "bound to 49152\n\
         49152 again: no free segment meets the request\n\
         the lowest free ephemeral port is 49153\n\
         a subscriber has 1024..=2047\n\
         2 in use\n"
    );
}

#[test]
fn iova() {
    let told = iova::told().unwrap();
    for line in [
        "legacy ring at 0x4000\n",
        "arena nic rings: quantum 0x40\n",
        "  imports 1, releases 0, limit 0x100000; slept 0, failed 0\n",
        "in use on the bus after the buffers are free: 0x6000\n",
    ] {
        assert!(told.contains(line), "{line:?} is not in\n{told}");
    }
}
