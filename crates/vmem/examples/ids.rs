//! Process ids: a number comes again as late as possible, so that who still holds an old one does not meet a stranger.
//!
//! `cargo run -p kernmalloc-vmem --features std --example ids`

use kernmalloc_vmem::{Arena, Error, Fit, HeapTags, Size, Std, Wait};

fn main() -> Result<(), Error> {
    print!("{}", told()?);
    Ok(())
}

/// What the program says.
pub(crate) fn told() -> Result<String, Error> {
    let mut out = String::new();
    let pids: Arena<Std> = Arena::new("pid", 1, &HeapTags);
    pids.add(1, 5, Wait::Sleep)?;
    let next = || pids.alloc(1, Fit::Next, Wait::NoSleep);

    let first = next()?;
    pids.free(first, 1)?;
    out += &format!("{first} has ended, the next is {}\n", next()?);
    let rest: Vec<String> = (0..3).map(|_| Ok(next()?.to_string())).collect::<Result<_, Error>>()?;
    out += &format!("then {}, and only then {} again\n", rest.join(", "), next()?);
    out += &format!("{} in use; one more: {}\n", pids.size(Size::Alloc), next().unwrap_err());
    out += &format!("a wrong free: {}\n", pids.free(6, 1).unwrap_err());
    Ok(out)
}
