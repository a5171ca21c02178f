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

/// kernmalloc-sysctl(7), from the tables that the program and its readers go by.
fn sysctl_page() -> String {
    use abi::sysctl::{Access, Kind, Place, TABLE, TYPE_TABLE, ZONE_TABLE};

    let kind = |kind: Kind| match kind {
        Kind::Count => "a number".to_owned(),
        Kind::Bytes => "bytes".to_owned(),
        Kind::Pages => "pages".to_owned(),
        Kind::Seconds => "seconds".to_owned(),
        Kind::Percent => "percent".to_owned(),
        Kind::Bits => "bits".to_owned(),
        Kind::Text => "text".to_owned(),
        Kind::Words(words) => words.join(" or "),
    };
    let access = |access: Access| match access {
        Access::Read => "read-only",
        Access::Start => "set at start",
        Access::Run => "set at start or while it runs",
        Access::RunOnly => "set while it runs",
    };
    let mut out = String::from(include_str!("sysctl.roff"));
    let mut item = |name: &str, facts: &str, doc: &str| {
        out.push_str(&format!(".TP\n.BR {} \" ({facts})\"\n", name.replace('-', "\\-")));
        for line in doc.replace(". ", ".\n").lines() {
            out.push_str(&format!("{}\n", line.replace('-', "\\-")));
        }
    };
    for entry in TABLE {
        let range = match (entry.place, entry.kind) {
            (Place::Control(.., min, max), Kind::Count | Kind::Pages | Kind::Bytes | Kind::Percent) => {
                format!(", {min} to {max}")
            }
            _ => String::new(),
        };
        item(entry.name, &format!("{}{range}; {}", kind(entry.kind), access(entry.access)), entry.doc);
    }
    item(
        "vm.uma.NAME",
        "a subtree for each zone",
        "What is neither letter nor digit in the zone's name is an underscore.",
    );
    for entry in ZONE_TABLE {
        item(&format!("vm.uma.NAME.{}", entry.suffix), &kind(entry.kind), entry.doc);
    }
    item("kern.malloc_stats.NAME", "a subtree for each type that was defined by name", "As vmstat \\-m shows them.");
    for entry in TYPE_TABLE {
        item(&format!("kern.malloc_stats.NAME.{}", entry.suffix), &kind(entry.kind), entry.doc);
    }
    out.push_str(".SH SEE ALSO\n.BR kernmalloc (1),\n.BR malloc (9),\n.BR kmem (9),\n.BR sysctl (8)\n");
    out
}

fn check_current(file: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/man").join(file);
    if std::env::var_os("KERNMALLOC_WRITE_MAN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/man/{file} is not what the command makes: KERNMALLOC_WRITE_MAN=1 cargo test -p kernmalloc-cli man"
    );
}

#[test]
fn the_manual_page_is_current() {
    check_current("kernmalloc.1", &page());
}

#[test]
fn the_manual_page_of_names_is_current() {
    check_current("kernmalloc-sysctl.7", &sysctl_page());
}
