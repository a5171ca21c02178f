//! Ports: one by number, the lowest of a range, and a block of them for a gateway.
//!
//! `cargo run -p kernmalloc-vmem --features std --example ports`

use kernmalloc_vmem::{Arena, Error, Fit, HeapTags, Request, Size, Std, Wait};

fn main() -> Result<(), Error> {
    print!("{}", told()?);
    Ok(())
}

/// What the program says.
pub(crate) fn told() -> Result<String, Error> {
    let mut out = String::new();
    let ports: Arena<Std> = Arena::new("tcp port", 1, &HeapTags);
    ports.add(1, 65_535, Wait::Sleep)?;

    let exactly = |port| Request { min: port, max: port, ..Request::new(1) };
    out += &format!("bound to {}\n", ports.xalloc(&exactly(49_152), Wait::NoSleep)?);
    out += &format!("49152 again: {}\n", ports.xalloc(&exactly(49_152), Wait::NoSleep).unwrap_err());
    let ephemeral = Request { min: 49_152, fit: Fit::First, ..Request::new(1) };
    out += &format!("the lowest free ephemeral port is {}\n", ports.xalloc(&ephemeral, Wait::NoSleep)?);
    // 1024 in a row behind one address, as carrier-grade NAT gives them out (RFC 7422).
    let block = Request { align: 1024, min: 1024, fit: Fit::First, ..Request::new(1024) };
    let first = ports.xalloc(&block, Wait::NoSleep)?;
    out += &format!("a subscriber has {first}..={}\n", first + 1023);
    ports.xfree(first, 1024)?;
    out += &format!("{} in use\n", ports.size(Size::Alloc));
    Ok(out)
}
