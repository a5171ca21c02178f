//! The command `kernmalloc`: runs programs under kernmalloc, and shows who holds their memory.
//!
//! ```text
//!  run ── library (finds or writes the preload library) ── child (spawn, signals, status)
//!    └── family (the objects a program and its children left) ──┐
//!  vmstat ── target (which program) ──────────────────────────────┼── rows ── layout | json
//!  sysctl ── target
//!  ps ────────────────────────────────────────────────────────────┘     └── symbols
//! ```
//!
//! Every figure comes from the reader crate; this one only chooses rows and prints. Standard output is for
//! tables that were asked for, standard error for what `run` and errors have to say.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};

mod args;
mod child;
mod diagnose;
mod family;
mod humanize;
mod json;
mod layout;
mod library;
#[cfg(test)]
mod man;
mod ps;
mod report;
mod rows;
mod run;
mod symbols;
mod sysctl;
mod target;
mod vmstat;

use args::{Cli, Command};

/// Exit status of `run` when kernmalloc itself failed, as env(1), nohup(1) and timeout(1) have it.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            let run = std::env::args_os().nth(1).is_some_and(|command| command == "run");
            return match e.exit_code() {
                0 => ExitCode::SUCCESS,
                _ if run => ExitCode::from(OWN_FAILURE),
                code => ExitCode::from(code as u8),
            };
        }
    };
    let run = matches!(cli.command, Command::Run(_));
    match execute(cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(io::stderr(), "kernmalloc: {e:#}");
            ExitCode::from(if run { OWN_FAILURE } else { 1 })
        }
    }
}

fn execute(command: Command) -> Result<u8> {
    match command {
        Command::Run(args) => return run::run(&args),
        Command::Ps(args) => ps::ps(&args)?,
        Command::Vmstat(args) => vmstat::vmstat(&args)?,
        Command::Sysctl(args) => sysctl::sysctl(&args)?,
        Command::Library => print(&format!("{}\n", library::find()?.display()))?,
        Command::Completions(args) => {
            let mut out = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "kernmalloc", &mut out);
            print(&String::from_utf8_lossy(&out))?;
        }
    }
    Ok(0)
}

/// Writes to standard output.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// The reader of our output has seen enough: no error of anybody's.
fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
