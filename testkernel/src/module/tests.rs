//! Tests of the loader, and the programs in C that run here as modules.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::ops::Range;

use object::read::archive::ArchiveFile;
use testsuite::{Host as _, Outcome, Test, Verdict, ensure};

use super::{Module, memory};
use crate::start::MALLOC;
use crate::suite::Machine;
use crate::{fault, frames, sched, space, warnings};

/// The objects that were built in.
static ARCHIVE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/modules.a"));

/// An object by its name. `None` when no modules were built in at all.
fn object(name: &str) -> Result<Option<&'static [u8]>, String> {
    let archive = ArchiveFile::parse(ARCHIVE).map_err(|error| error.to_string())?;
    let (mut any, wanted) = (false, format!("{name}.o"));
    for member in archive.members() {
        let member = member.map_err(|error| error.to_string())?;
        any = true;
        if member.name() == wanted.as_bytes() {
            return member.data(ARCHIVE).map(Some).map_err(|error| error.to_string());
        }
    }
    if any { Err(format!("no module is called {name}")) } else { Ok(None) }
}

type Body = fn(&Machine, &'static [u8]) -> Outcome;

/// Runs a test on an object.
fn with(host: &Machine, name: &str, body: Body) -> Verdict {
    match object(name) {
        Ok(Some(object)) => body(host, object).into(),
        Ok(None) => Verdict::Skipped("no modules were built in"),
        Err(why) => Verdict::Failed(why),
    }
}

/// The list.
pub(crate) fn tests() -> [Test<Machine>; 9] {
    macro_rules! tests {
        ($($name:ident($object:literal)),* $(,)?) => {
            [$(Test { name: stringify!($name), run: |host| with(host, $object, $name) }),*]
        };
    }
    tests![
        a_module_is_linked_and_protected("links"),
        types_come_and_go_with_their_module("module"),
        bad_objects_are_refused("links"),
        a_module_without_memory_is_refused("links"),
        modules_leave_nothing_behind("tidy"),
        modules_are_loaded_by_many_threads("links"),
        a_driver_attaches_works_and_detaches("driver"),
        a_client_of_pools_and_pool_caches("pool_client"),
        libmemstat_says_what_a_program_did("memstat"),
    ]
}

fn load(object: &[u8]) -> Result<Module<'_>, String> {
    // SAFETY: 1. the tests' modules are compiled with the headers of this interface.
    unsafe { Module::load(object) }.map_err(|refused| refused.to_string())
}

/// Calls `int name(void)` of a module.
fn call(module: &Module<'_>, name: &str) -> Result<i32, String> {
    let function = module.function(name).ok_or_else(|| format!("the module has no function {name}"))?;
    // SAFETY: the modules' functions that the tests name have this type, or return nothing.
    Ok(unsafe { core::mem::transmute::<usize, extern "C" fn() -> i32>(function)() })
}

/// What could be left behind: page frames, addresses, blocks.
#[derive(PartialEq, Eq, Debug, Clone, Copy)]
struct Footprint {
    frames: usize,
    addresses: usize,
    blocks: u64,
    types: usize,
}

fn footprint(host: &Machine) -> Footprint {
    let system = host.system();
    // So that free pages of the heap are nobody's.
    while system.reclaim() {}
    Footprint {
        frames: frames::available(),
        addresses: memory::in_use(),
        blocks: system.totals(kern::TypeId::MALLOC).in_use(),
        types: MALLOC.type_count(),
    }
}

/// Runs `body`, on one CPU, until nothing more is left of it. Some things are made once and for all (tables of the
/// address space, the heap's own records, caches of this CPU), so the first runs may leave some; what is left by every
/// run is lost.
fn without_trace(host: &Machine, mut body: impl FnMut() -> Outcome) -> Outcome {
    const RUNS: usize = 6;
    sched::bind(0);
    let mut run = || {
        let mut before = footprint(host);
        for _ in 0..RUNS {
            body()?;
            let after = footprint(host);
            if before == after {
                return Ok(());
            }
            before = after;
        }
        body()?;
        Err(format!("every time something is left: {before:?} became {:?}", footprint(host)))
    };
    let outcome = run();
    sched::unbind();
    outcome
}

fn a_module_is_linked_and_protected(_: &Machine, object: &'static [u8]) -> Outcome {
    let module = load(object)?;
    let wrong = call(&module, "links_check")?;
    ensure!(wrong == 0, "reference {wrong} of the module is wrong");
    let at = |part: Range<usize>| module.memory.addr() + part.start;
    for (part, range) in module.plan.parts() {
        ensure!(!range.is_empty(), "{part:?} is empty, so nothing is tested");
        let addr = at(range);
        let byte = fault::read(addr).ok_or("a part cannot be read")?;
        // SAFETY: 1. the module's memory, and the byte that is there.
        let written = unsafe { fault::write(addr, byte) };
        let is_data = part == super::link::Part::Data;
        ensure!(written == is_data, "{part:?} can be written: {written}");
        let runs = space::is_executable(addr);
        ensure!(runs == (part == super::link::Part::Text), "{part:?} can run: {runs}");
    }
    let range = module.range();
    // SAFETY: 1. nobody is in it.
    unsafe { module.unload() };
    ensure!(range.clone().step_by(space::PAGE).all(|page| fault::read(page).is_none()), "its pages are still there");
    Ok(())
}

fn types_come_and_go_with_their_module(host: &Machine, object: &'static [u8]) -> Outcome {
    let (leaky, tidy) = ("leaky module", "tidy module");
    let shown = |name: &str| {
        let mut table = String::new();
        host.system().show_malloc(&mut table, false).map_err(|error| error.to_string())?;
        Ok::<_, String>(table.lines().any(|line| line.contains(name)))
    };
    for round in 1..=2u32 {
        let before = (warnings::count(), MALLOC.type_count());
        let module = load(object)?;
        ensure!(MALLOC.type_count() == before.1 + 2, "two types were to come");
        ensure!(MALLOC.find_type(leaky).is_some() && MALLOC.find_type(tidy).is_some(), "their names are not known");
        call(&module, "module_work")?;
        ensure!(shown(leaky)? && shown(tidy)?, "show malloc does not show them");
        let id = MALLOC.find_type(leaky).and_then(|ty| ty.id()).ok_or("no id")?;
        ensure!(host.system().totals(id).in_use() == u64::from(3 * round), "the module's blocks are not counted");
        // SAFETY: 1. nobody is in it.
        unsafe { module.unload() };
        ensure!(MALLOC.type_count() == before.1, "its types stay");
        ensure!(MALLOC.find_type(leaky).is_none() && MALLOC.find_type(tidy).is_none(), "their names stay");
        ensure!(!shown(tidy)?, "show malloc still shows the type that leaked nothing");
        // 100 bytes are served 112. What leaked the first time is still there the second.
        let (blocks, bytes) = (3 * round, 336 * round);
        let said = warnings::since(before.0);
        let wanted = format!(
            "Warning: memory type leaky module leaked memory on destroy ({blocks} allocations, {bytes} bytes leaked)."
        );
        ensure!(said == [wanted.as_str()], "said {said:?}, not {wanted:?}");
    }
    Ok(())
}

/// An object with some bytes of it overwritten.
fn patched(object: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut copy = object.to_vec();
    copy[at..at + bytes.len()].copy_from_slice(bytes);
    copy
}

/// Offset of the first relocation entry of `.rela.text` in the object.
fn first_relocation(object: &[u8]) -> Result<usize, String> {
    use object::LittleEndian as LE;
    use object::elf::FileHeader64;
    use object::read::elf::FileHeader as _;
    let text = |error: object::Error| error.to_string();
    let header = FileHeader64::<LE>::parse(object).map_err(text)?;
    let sections = header.sections(LE, object).map_err(text)?;
    let (_, section) = sections.section_by_name(LE, b".rela.text").ok_or("the object has no relocations")?;
    Ok(section.sh_offset.get(LE) as usize)
}

fn bad_objects_are_refused(host: &Machine, good: &'static [u8]) -> Outcome {
    const MACHINE: usize = 18;
    const KIND: usize = 16;
    let entry = first_relocation(good)?;
    let find = |name: &str| object(name)?.ok_or_else(|| String::from("not built in"));
    let (undefined, shared) = (find("undefined")?, find("shared")?);
    let cases: [(&str, Vec<u8>, &str); 10] = [
        ("empty", Vec::new(), "no ELF64 object, or a damaged one: "),
        (
            "text",
            b"#!/bin/sh\necho this is no object, however long it may be made; so long that a header would fit".to_vec(),
            "no ELF64",
        ),
        ("of another machine", patched(good, MACHINE, &183u16.to_le_bytes()), "made for machine 183, not for x86-64"),
        ("a program", patched(good, KIND, &2u16.to_le_bytes()), "an ELF file of type 2, not a relocatable object"),
        ("of 32 bits", patched(good, 4, &[1]), "no ELF64 object, or a damaged one: "),
        ("cut short", good[..good.len() / 2].to_vec(), "no ELF64 object, or a damaged one: "),
        (
            "with an unknown relocation",
            patched(good, entry + 8, &77u32.to_le_bytes()),
            "relocation type 77 at .text+0x",
        ),
        (
            "with a relocation outside",
            patched(good, entry, &(1u64 << 40).to_le_bytes()),
            " at .text+0x10000000000 lies outside of its section",
        ),
        (
            "with an undefined symbol",
            undefined.to_vec(),
            "symbol no_such_function is not defined, and not exported by the kernel",
        ),
        ("for a shared library", shared.to_vec(), "relocation R_X86_64_REX_GOTPCRELX at .text+0x"),
    ];
    for (what, bad, wanted) in &cases {
        without_trace(host, || match load(bad) {
            Ok(module) => {
                // SAFETY: 1. nobody is in it.
                unsafe { module.unload() };
                Err(format!("an object {what} was loaded"))
            }
            Err(why) => {
                ensure!(why.contains(wanted), "an object {what}: {why:?}, not {wanted:?}");
                Ok(())
            }
        })?;
    }
    // Wherever it is cut, the rest is refused, or is whole but for what nobody needs.
    let shortest = (0..good.len()).step_by(7).filter(|&bytes| {
        let loaded = load(&good[..bytes]);
        // SAFETY: 1. nobody is in it.
        loaded.map(|module| unsafe { module.unload() }).is_ok()
    });
    let whole = shortest.count();
    ensure!(whole == 0, "{whole} objects that were cut short were loaded");
    Ok(())
}

fn a_module_without_memory_is_refused(host: &Machine, object: &'static [u8]) -> Outcome {
    // Every number of frames that is too small, up to the one that does.
    let mut loaded = false;
    for most in 0..64 {
        without_trace(host, || {
            host.limit_memory(Some(most));
            // SAFETY: 1. as in `load`, which would want memory for a text.
            let result = unsafe { Module::load(object) };
            host.limit_memory(None);
            match result {
                Ok(module) => {
                    loaded = true;
                    // SAFETY: 1. nobody is in it.
                    unsafe { module.unload() };
                }
                Err(why) => ensure!(why.to_string().starts_with("no memory"), "{most} frames: {why}"),
            }
            Ok(())
        })?;
        if loaded {
            ensure!(most > 2, "a module needs no memory");
            return Ok(());
        }
    }
    Err(String::from("64 frames are not enough"))
}

fn modules_leave_nothing_behind(host: &Machine, object: &'static [u8]) -> Outcome {
    let said = warnings::count();
    without_trace(host, || {
        for _ in 0..100 {
            let module = load(object)?;
            let wrong = call(&module, "tidy_work")?;
            // SAFETY: 1. nobody is in it.
            unsafe { module.unload() };
            ensure!(wrong == 0, "the module says {wrong}");
        }
        Ok(())
    })?;
    ensure!(warnings::count() == said, "a module that leaks nothing is warned of: {:?}", warnings::since(said));
    Ok(())
}

fn modules_are_loaded_by_many_threads(host: &Machine, object: &'static [u8]) -> Outcome {
    let rounds = 2 + 48 * host.effort() / 100;
    host.threads(2 * host.cpus(), &|_| {
        for _ in 0..rounds {
            let module = load(object)?;
            // While this one is there nobody else's is in its place.
            host.yield_now();
            let wrong = call(&module, "links_check")?;
            // SAFETY: 1. nobody else knows it.
            unsafe { module.unload() };
            ensure!(wrong == 0, "reference {wrong} of a module is wrong");
        }
        Ok(())
    })?;
    ensure!(memory::in_use() == 0, "{:#x} bytes of addresses are still in use", memory::in_use());
    Ok(())
}

/// Runs a program in C. What the allocator said meanwhile.
fn run_program(object: &'static [u8]) -> Result<Vec<String>, String> {
    let said = warnings::count();
    let module = load(object)?;
    let failures = call(&module, "program")?;
    // SAFETY: 1. the program has joined its threads.
    unsafe { module.unload() };
    ensure!(failures == 0, "{failures} checks of the program do not hold, see above");
    Ok(warnings::since(said))
}

fn a_driver_attaches_works_and_detaches(_: &Machine, object: &'static [u8]) -> Outcome {
    let said = run_program(object)?;
    let wanted = [
        "[zone: xe packet] the transmit queues have all packets",
        "uma_zcreate(xe contig): flags 0x4: ",
        "vmem_create(odd): the quantum 3 is no power of two",
    ];
    let agrees = said.len() == wanted.len() && said.iter().zip(wanted).all(|(said, wanted)| said.starts_with(wanted));
    ensure!(agrees, "said {said:?}, not {wanted:?}");
    Ok(())
}

fn a_client_of_pools_and_pool_caches(_: &Machine, object: &'static [u8]) -> Outcome {
    let said = run_program(object)?;
    let wanted = [
        "pool_init(offset): an align_offset other than 0 is not supported",
        "[zone: small] the pool is small",
        "[zone: scarce] the pool is scarce",
    ];
    ensure!(said == wanted, "said {said:?}, not {wanted:?}");
    Ok(())
}

fn libmemstat_says_what_a_program_did(_: &Machine, object: &'static [u8]) -> Outcome {
    let said = run_program(object)?;
    ensure!(said.is_empty(), "said {said:?}");
    Ok(())
}
