//! `docs/porting.md` says how long each port is: whether it still is.

use crate::shell;
use anyhow::{Context as _, Result, bail};

/// The port of the test kernel stays below this.
const MOST_LINES: usize = 100;
const KERNEL_PORT: &str = "testkernel/src/port.rs";

/// Files and their lines, from the table.
fn stated(document: &str) -> Vec<(&str, usize)> {
    document.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<(&str, usize)> {
    let mut cells = line.strip_prefix("| `")?.split('|');
    let file = cells.next()?.trim().strip_suffix('`')?;
    Some((file, cells.next()?.trim().parse().ok()?))
}

fn lines(source: &str) -> usize {
    source.lines().filter(|line| !line.trim().is_empty()).count()
}

/// Fails on a figure that is wrong, and on a port that has grown too long.
pub(crate) fn check() -> Result<()> {
    let document = std::fs::read_to_string(shell::root().join("docs/porting.md"))?;
    let stated = stated(&document);
    if !stated.iter().any(|(file, _)| *file == KERNEL_PORT) {
        bail!("docs/porting.md does not say how long {KERNEL_PORT} is");
    }
    for (file, stated) in stated {
        let source = std::fs::read_to_string(shell::root().join(file)).with_context(|| file.to_owned())?;
        let found = lines(&source);
        if found != stated {
            bail!("{file} has {found} lines that are not blank; docs/porting.md says {stated}");
        }
        if file == KERNEL_PORT && found >= MOST_LINES {
            bail!("{file} has {found} lines; a port is to stay below {MOST_LINES}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_are_as_long_as_stated() {
        check().unwrap();
    }

    #[test]
    fn a_table_is_read() {
        let found = stated("| port | lines |\n| --- | --- |\n| `a/b.rs` | 12 | c |\n| `x`: y | z |\n");
        assert_eq!(found, [("a/b.rs", 12)]);
        assert_eq!(lines("a\n\n  \nb\n"), 2);
    }
}
