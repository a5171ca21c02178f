//! The developer's commands: `cargo xtask help`.
//!
//! Everything that decides whether a change is good is one of them, so that a person, a hook and the
//! continuous integration ask the same question.

use anyhow::{Result, bail};

mod debian;
mod layers;
mod shell;
mod symbols;
mod test;
mod tidy;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  test              everything: tidy, documentation, unit tests with and without debug assertions,
                    loom, the preload's undefined symbols, and real programs under kernmalloc
  tidy              format, clippy, layer order, stray files
  help              this
";

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("test") => test::run(),
        Some("tidy") => tidy::run(),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("no command named {other:?}\n\n{HELP}"),
    }
}
