//! The manual page: options from the command line's own description, the rest from `man.roff`.
//!
//! `docs/man/kernmalloc.1` is checked in, so that packages need no program to make it; a test holds it against what this
//! makes. To write it anew: `KERNMALLOC_WRITE_MAN=1 cargo test -p kernmalloc-cli man`.

use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use crate::args::Cli;

/// Sections that clap knows nothing of.
const HAND_WRITTEN: &str = include_str!("man.roff");

fn page() -> String {
    // That every command has --help is not worth a line for each.
    let names: Vec<String> = Cli::command().get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let mut command = names
        .into_iter()
        .fold(Cli::command(), |command, name| command.mut_subcommand(name, |sub| sub.disable_help_flag(true)));
    command.build();
    let man = Man::new(command.clone()).title("KERNMALLOC").section("1").manual("kernmalloc");
    let mut out = Vec::new();
    man.render_title(&mut out).unwrap();
    man.render_name_section(&mut out).unwrap();
    man.render_synopsis_section(&mut out).unwrap();
    man.render_description_section(&mut out).unwrap();
    out.extend_from_slice(b".SH COMMANDS\n");
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let man = Man::new(sub.clone());
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part).unwrap();
        man.render_description_section(&mut part).unwrap();
        man.render_options_section(&mut part).unwrap();
        // Sections of a page of its own become subsections of ours.
        let part = String::from_utf8(part).unwrap();
        let heading = format!(".SS kernmalloc {}\n", sub.get_name());
        let part = part.lines().fold(heading, |mut text, line| {
            match line {
                ".SH SYNOPSIS" | ".SH DESCRIPTION" | ".SH OPTIONS" => text.push_str(".PP\n"),
                line => text.extend([line, "\n"]),
            }
            text
        });
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(HAND_WRITTEN.as_bytes());
    String::from_utf8(out).unwrap()
}

#[test]
fn the_manual_page_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man/kernmalloc.1");
    let page = page();
    if std::env::var_os("KERNMALLOC_WRITE_MAN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/man/kernmalloc.1 is not what the command makes: KERNMALLOC_WRITE_MAN=1 cargo test -p kernmalloc-cli man"
    );
}
