//! Which program a command is about.

use std::path::Path;

use anyhow::{Result, bail};
use memstat::{Object, find_programs};

/// Opens what `-p` or `-f` names, else the only program under kernmalloc.
pub(crate) fn open(pid: Option<u32>, file: Option<&Path>) -> Result<Object> {
    if let Some(pid) = pid {
        return Ok(Object::open_pid(pid)?);
    }
    if let Some(file) = file {
        return Ok(Object::open_file(file)?);
    }
    let mut found = find_programs();
    match found.len() {
        0 => bail!(
            "no program of yours is under kernmalloc; start one with: kernmalloc run -- PROGRAM (to read another user's, run \
             this as that user or as root)"
        ),
        1 => Ok(found.remove(0).object),
        _ => {
            let list: Vec<String> = found.iter().map(|f| format!("{} ({})", f.pid, f.program.name())).collect();
            bail!("several programs are under kernmalloc; say which with -p PID: {}", list.join(", "))
        }
    }
}
