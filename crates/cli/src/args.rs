//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run programs under kernmalloc and see who holds their memory.
///
/// A program started with `kernmalloc run` counts every block it allocates, exactly and from its first byte, by the library
/// and the place in it that asked. The figures can be read at any moment from outside, without stopping the program, and
/// after its death.
#[derive(Debug, Parser)]
#[command(name = "kernmalloc", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  kernmalloc run -- python3 script.py         run, and print the table at exit
  kernmalloc run --sites -o mem.%p -- make    one file per process, by call site
  kernmalloc ps                               programs now under kernmalloc
  kernmalloc vmstat -m -p 1234                who holds the memory of pid 1234
  kernmalloc vmstat -m -w 2 --sort memory     the same every 2 seconds, largest first
  kernmalloc sysctl vm.kmem_dirty_keep=256    set a value in the running program
  kernmalloc vmstat -s                        where resident memory is, and what is not ours
  LD_PRELOAD=$(kernmalloc library) program    without the run command";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(RunArgs),
    Ps(PsArgs),
    Vmstat(VmstatArgs),
    Sysctl(SysctlArgs),
    Library,
    Completions(CompletionsArgs),
}

/// Run a program under kernmalloc
///
/// Standard input, signals and the exit status pass through: 128+n when the program died of signal n, 126 when it could not be
/// executed, 127 when it was not found, 125 when kernmalloc itself failed. At exit the table goes to standard error, also when
/// the program was killed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kernmalloc run -- python3 -c 'import json'
  kernmalloc run --wide --sort high -- redis-server
  kernmalloc run --json -o stats.%p.json -- make -j4
  kernmalloc run --set kern.malloc.on_misuse=report -- ./program")]
pub(crate) struct RunArgs {
    /// Write the table to FILE instead of standard error; with %p in it, one file per process
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<String>,
    /// Print no table
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) table: TableArgs,
    /// Show the programs that it starts or forks, too; the default
    #[arg(long, overrides_with = "no_follow_fork", hide = true)]
    pub(crate) follow_fork: bool,
    /// Show the program alone, not those that it starts or forks
    #[arg(long, overrides_with = "follow_fork")]
    pub(crate) no_follow_fork: bool,
    /// Print a table for every program of a large family; without it more than eight are only drawn as a tree, and
    /// the last image of PROGRAM itself has its table
    #[arg(long)]
    pub(crate) all: bool,
    /// Credit blocks to nobody, to the library that asked, or to the call site in it (the default)
    #[arg(long, value_enum, value_name = "TO")]
    pub(crate) attribution: Option<AttributionArg>,
    /// Set a tunable; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum AttributionArg {
    Off,
    Library,
    Site,
}

/// How a table looks.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TableArgs {
    /// One row per call site instead of one per library
    #[arg(long)]
    pub(crate) sites: bool,
    /// One row per crate of a Rust program (per namespace of a C++ one), instead of one for all of it
    #[arg(long, conflicts_with = "sites")]
    pub(crate) crates: bool,
    /// Sort by this column: names ascending, figures descending
    #[arg(long, value_enum, value_name = "COLUMN")]
    pub(crate) sort: Option<SortColumn>,
    /// Exact figures in JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// The layout of NetBSD's vmstat -m
    #[arg(long, conflicts_with = "json")]
    pub(crate) netbsd: bool,
    /// More columns, exact figures
    #[arg(short = 'W', long, conflicts_with = "json")]
    pub(crate) wide: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortColumn {
    /// Name
    Type,
    /// Blocks in use
    Use,
    /// Bytes in use
    Memory,
    /// Requests
    Requests,
    /// High-water mark
    High,
    /// Frees
    Frees,
    /// Failed requests
    Fail,
    /// Bytes asked for
    Requested,
    /// Share of the served bytes that was not asked for
    Waste,
    /// Path of the library
    Library,
}

/// List the programs now under kernmalloc
///
/// Objects left behind by killed programs of this user are removed on the way.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kernmalloc ps
  kernmalloc ps --json")]
pub(crate) struct PsArgs {
    /// Exact figures in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show the memory of a program under kernmalloc
///
/// Without -p or -f: of the only program under kernmalloc.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).args(["malloc", "zones", "summary"]),
    group = clap::ArgGroup::new("of").args(["pid", "file"]),
    after_help = "\
Examples:
  kernmalloc vmstat -m -p 1234
  kernmalloc vmstat -m --sites --wide --sort memory
  kernmalloc vmstat -m --crates -p 1234
  kernmalloc vmstat -m -w 1 -c 10
  kernmalloc vmstat -z -p 1234
  kernmalloc vmstat -s --json")]
pub(crate) struct VmstatArgs {
    /// Malloc types: who holds how much
    #[arg(short = 'm', long)]
    pub(crate) malloc: bool,
    /// Zones: the size classes and their caches
    #[arg(short = 'z', long)]
    pub(crate) zones: bool,
    /// The account: where resident memory is
    #[arg(short = 's', long)]
    pub(crate) summary: bool,
    /// The program with this process id
    #[arg(short, long)]
    pub(crate) pid: Option<u32>,
    /// A statistics object left behind
    #[arg(short, long)]
    pub(crate) file: Option<PathBuf>,
    /// Repeat after this many seconds, until the program ends
    #[arg(short, long, value_name = "SECONDS")]
    pub(crate) wait: Option<f64>,
    /// Repeat this many times
    #[arg(short, long, value_name = "N", requires = "wait")]
    pub(crate) count: Option<u64>,
    #[command(flatten)]
    pub(crate) table: TableArgs,
}

/// Read and set the values of a program under kernmalloc
///
/// Names are those of the BSDs; kernmalloc-sysctl(7) lists them. A name stands for all below it, too. NAME=VALUE sets a value in the
/// running program and prints the old value and the new one; the program reads it when it next comes by a slow path. Without -p or
/// -f: of the only program under kernmalloc.
#[derive(Debug, Args)]
#[command(
    group = clap::ArgGroup::new("which").required(true).multiple(true).args(["all", "names"]),
    group = clap::ArgGroup::new("from").args(["pid", "file"]),
    after_help = "\
Examples:
  kernmalloc sysctl -a -p 1234
  kernmalloc sysctl vm.kmem_map_size vm.uma.malloc_64
  kernmalloc sysctl -d kern.malloc
  kernmalloc sysctl vm.kmem_dirty_keep=256
  kernmalloc sysctl debug.uma_reclaim=3")]
pub(crate) struct SysctlArgs {
    /// The program with this process id
    #[arg(short, long)]
    pub(crate) pid: Option<u32>,
    /// A statistics object left behind
    #[arg(short, long)]
    pub(crate) file: Option<PathBuf>,
    /// Everything
    #[arg(short, long, conflicts_with = "names")]
    pub(crate) all: bool,
    /// Only what can be set while the program runs
    #[arg(short = 'W', long)]
    pub(crate) writable: bool,
    /// What it means instead of its value
    #[arg(short, long)]
    pub(crate) description: bool,
    /// Values without their names
    #[arg(short = 'n', long)]
    pub(crate) no_name: bool,
    /// Exact values in JSON
    #[arg(long, conflicts_with_all = ["description", "no_name"])]
    pub(crate) json: bool,
    /// A name, or a name and what to set it to
    #[arg(value_name = "NAME[=VALUE]")]
    pub(crate) names: Vec<String>,
}

/// Print shell completions
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  kernmalloc completions bash > ~/.local/share/bash-completion/completions/kernmalloc")]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}
