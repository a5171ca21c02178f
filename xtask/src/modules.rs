//! The test kernel's modules: C, compiled as for a kernel, in one archive that the kernel has inside and loads from.

use crate::shell;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How C is compiled for a kernel in the upper half.
const FLAGS: &[&str] = &[
    "-std=c99",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-D_KERNEL",
    "-ffreestanding",
    "-nostdinc",
    "-mcmodel=kernel",
    "-fno-pic",
    "-fno-common",
    // Interrupts use the interrupted stack in kernels other than this one; and only `core` uses floating-point
    // registers here.
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none",
    "-fno-omit-frame-pointer",
];

/// A module: its sources, and flags that it alone has.
struct Module {
    name: &'static str,
    sources: &'static [&'static str],
    flags: &'static [&'static str],
}

/// What the programs in C run on, see `env.h`.
const ENVIRONMENT: [&str; 2] = ["capi/env.c", "capi/env_kernel.c"];

const MODULES: &[Module] = &[
    Module { name: "driver", sources: &["capi/driver.c", ENVIRONMENT[0], ENVIRONMENT[1]], flags: &[] },
    Module { name: "pool_client", sources: &["capi/pool_client.c", ENVIRONMENT[0], ENVIRONMENT[1]], flags: &[] },
    Module { name: "memstat", sources: &["capi/memstat.c", ENVIRONMENT[0], ENVIRONMENT[1]], flags: &[] },
    Module { name: "module", sources: &["capi/module.c"], flags: &[] },
    Module { name: "links", sources: &["modules/links.c"], flags: &[] },
    Module { name: "tidy", sources: &["modules/tidy.c"], flags: &[] },
    Module { name: "undefined", sources: &["modules/undefined.c"], flags: &[] },
    Module { name: "shared", sources: &["modules/shared.c"], flags: &["-mcmodel=small", "-fPIC"] },
];

/// Tests of programs in C that run in a process (`crates/clib/tests`) and, under the same names, as modules in the
/// kernel.
pub(crate) const C_PROGRAMS: [&str; 3] =
    ["a_driver_attaches_works_and_detaches", "a_client_of_pools_and_pool_caches", "libmemstat_says_what_a_program_did"];

/// Compiles one module: `OUT/NAME.o`.
fn compile(module: &Module, out: &Path) -> Result<PathBuf> {
    let root = shell::root();
    let own_headers = shell::output(Command::new("gcc").arg("-print-file-name=include"))?;
    let mut objects = Vec::new();
    for source in module.sources {
        let object = out.join(format!("{}-{}.o", module.name, objects.len()));
        let mut gcc = Command::new("gcc");
        gcc.args(FLAGS).args(module.flags).args(["-isystem", own_headers.trim()]);
        gcc.arg("-I").arg(root.join("include")).args(["-c", "-o"]).arg(&object);
        shell::run(gcc.arg(root.join("tests/programs").join(source)))?;
        objects.push(object);
    }
    let linked = out.join(format!("{}.o", module.name));
    shell::run(Command::new("ld").args(["-r", "-o"]).arg(&linked).args(&objects))?;
    Ok(linked)
}

/// Compiles all of them. The archive.
pub(crate) fn build() -> Result<PathBuf> {
    let out = shell::target_dir().join("modules");
    std::fs::create_dir_all(&out)?;
    let objects = MODULES.iter().map(|module| compile(module, &out)).collect::<Result<Vec<_>>>()?;
    // Under another name first: cargo looks at the time of the file, which stays if nothing in it is new.
    let (fresh, archive) = (out.join("fresh.a"), out.join("modules.a"));
    let _ = std::fs::remove_file(&fresh);
    shell::run(Command::new("ar").arg("rcsD").arg(&fresh).args(&objects))?;
    if std::fs::read(&archive).ok() != Some(std::fs::read(&fresh)?) {
        std::fs::rename(&fresh, &archive)?;
    }
    Ok(archive)
}
