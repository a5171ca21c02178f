//! Names for call sites: function, file and line from the files on disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use blazesym::helper::read_elf_build_id;
use blazesym::inspect::{self, Inspector};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Symbolized, Symbolizer};
use memstat::{Library, Snapshot, TypeKind};

/// What is known of a call site beyond library and offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) function: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
}

/// Looks up call sites; keeps what it read of each file for the next time.
pub(crate) struct Symbols {
    symbolizer: Symbolizer,
    /// The file that stands for a library, if it is the one the program mapped.
    files: HashMap<PathBuf, Option<PathBuf>>,
    known: HashMap<(PathBuf, u64), Place>,
    /// By executable: the allocator it has inside.
    allocators: HashMap<String, Option<&'static str>>,
}

/// Functions whose presence in an executable says that it has an allocator of its own: under malloc's name, or jemalloc, as C
/// and as Rust programs have it, mimalloc, tcmalloc, snmalloc, Go's.
const ALLOCATORS: [&str; 7] =
    ["malloc", "je_malloc", "_rjem_malloc", "mi_malloc", "tc_malloc", "sn_malloc", "runtime.mallocgc"];

impl Symbols {
    pub(crate) fn new() -> Self {
        Self { symbolizer: Symbolizer::new(), files: HashMap::new(), known: HashMap::new(), allocators: HashMap::new() }
    }

    /// The places of all call sites of a snapshot, by index of the type. `pid`: whose root directory the paths mean.
    pub(crate) fn places(&mut self, snapshot: &Snapshot, pid: Option<u32>) -> Vec<Place> {
        let mut places = vec![Place::default(); snapshot.types.len()];
        let mut wanted: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, ty) in snapshot.types.iter().enumerate() {
            let Some(lib) = ty.lib.filter(|&lib| lib < snapshot.libs.len()) else { continue };
            if ty.kind != TypeKind::Site || ty.offset == 0 || ty.totals.allocs == 0 && ty.failures == 0 {
                continue;
            }
            match self.known.get(&(snapshot.libs[lib].path.clone(), ty.offset)) {
                Some(place) => places[index] = place.clone(),
                None => wanted.entry(lib).or_default().push(index),
            }
        }
        for (lib, indices) in wanted {
            let lib = &snapshot.libs[lib];
            let Some(file) = self.file(lib, pid) else { continue };
            // The recorded address is where the call returns to: one byte earlier is still in the call, and in its line.
            let offsets: Vec<u64> = indices.iter().map(|&index| snapshot.types[index].offset - 1).collect();
            let source = Source::Elf(Elf::new(&file));
            let Ok(found) = self.symbolizer.symbolize(&source, Input::VirtOffset(&offsets)) else { continue };
            for (index, symbol) in indices.into_iter().zip(found) {
                places[index] = place_of(symbol);
                self.known.insert((lib.path.clone(), snapshot.types[index].offset), places[index].clone());
            }
        }
        places
    }

    /// The allocator that a program has inside, by the name of its malloc; what that serves never comes to ours.
    pub(crate) fn own_allocator(&mut self, exe: &str) -> Option<&'static str> {
        let find = || {
            let source = inspect::source::Source::Elf(inspect::source::Elf::new(exe));
            let inspector = Inspector::new();
            let found = inspector.lookup(&source, &ALLOCATORS).ok()?;
            ALLOCATORS.iter().zip(found).find(|(_, symbols)| !symbols.is_empty()).map(|(name, _)| *name)
        };
        *self.allocators.entry(exe.to_owned()).or_insert_with(find)
    }

    /// The place of one return address in a library.
    pub(crate) fn place(&mut self, lib: &Library, offset: u64, pid: Option<u32>) -> Option<Place> {
        let file = self.file(lib, pid)?;
        let source = Source::Elf(Elf::new(file));
        let found = self.symbolizer.symbolize_single(&source, Input::VirtOffset(offset.checked_sub(1)?));
        found.ok().map(place_of).filter(|place| place.function.is_some())
    }

    /// The file of a library, unless another has taken its name since.
    fn file(&mut self, lib: &Library, pid: Option<u32>) -> Option<PathBuf> {
        if lib.anonymous {
            return None;
        }
        let find = || {
            let in_root = pid.zip(lib.path.strip_prefix("/").ok());
            let in_root = in_root.map(|(pid, path)| Path::new(&format!("/proc/{pid}/root")).join(path));
            let candidates = in_root.into_iter().chain([lib.path.clone()]);
            candidates.into_iter().find(|path| {
                let found = read_elf_build_id(path);
                found.is_ok_and(|found| {
                    lib.build_id.is_empty() && found.is_none() || found.is_some_and(|id| *id == *lib.build_id)
                })
            })
        };
        self.files.entry(lib.path.clone()).or_insert_with(find).clone()
    }
}

/// The function whose source asked for memory, of those that were inlined at the call.
///
/// The innermost that does not only hand the request on, as the allocation functions of the languages' own libraries do, which are
/// generic and inlined everywhere; else the function that they were inlined into.
fn place_of(symbol: Symbolized<'_>) -> Place {
    let Symbolized::Sym(symbol) = symbol else { return Place::default() };
    let path = |code: &CodeInfo<'_>| code.to_path().to_string_lossy().into_owned();
    let place = |name: &str, code: Option<&CodeInfo<'_>>| Place {
        function: Some(name.to_owned()),
        file: code.map(path),
        line: code.and_then(|code| code.line),
    };
    let inlined = symbol.inlined.iter().rev().map(|frame| (&*frame.name, frame.code_info.as_ref()));
    let outermost = (&*symbol.name, symbol.code_info.as_deref());
    let (name, code) = inlined.into_iter().find(|(name, _)| !hands_on(name)).unwrap_or(outermost);
    place(name, code)
}

/// Is this a function of a language's own library that allocates for whoever calls it?
fn hands_on(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "malloc",
        "calloc",
        "realloc",
        "reallocarray",
        "aligned_alloc",
        "memalign",
        "posix_memalign",
        "strdup",
        "__rust_alloc",
    ];
    const PREFIXES: [&str; 9] = [
        "alloc::",
        "core::",
        "std::",
        "hashbrown::",
        "allocator_api2::",
        "__rustc::",
        "kernmalloc::global::KernMalloc as ",
        "__gnu_cxx::",
        "operator new",
    ];
    let is_library = |path: &str| PREFIXES.iter().any(|prefix| path.starts_with(prefix));
    // A trait of the library for a type that is nobody's in particular: `<T as alloc::slice::ConvertVec>::to_vec`.
    let by_trait = || {
        let (ty, of) = name.strip_prefix('<')?.split_once(" as ")?;
        Some(!ty.contains("::") && is_library(of))
    };
    NAMES.contains(&name) || is_library(name.trim_start_matches('<')) || by_trait() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_that_hand_a_request_on() {
        for name in [
            "malloc",
            "alloc::raw_vec::RawVec<T,A>::reserve",
            "operator new(unsigned long)",
            "std::allocator<int>::allocate",
            "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            "<T as alloc::slice::<impl [T]>::to_vec_in::ConvertVec>::to_vec",
            "<kernmalloc::global::KernMalloc as core::alloc::global::GlobalAlloc>::alloc",
            "__rustc::__rust_alloc",
        ] {
            assert!(hands_on(name), "{name}");
        }
        for name in [
            "PyObject_Malloc",
            "my_alloc::grow",
            "allocate",
            "strdup_twice",
            "<main::Work as core::clone::Clone>::clone",
            "<T as main::Work>::work",
            "kernmalloc::main",
        ] {
            assert!(!hands_on(name), "{name}");
        }
    }

    /// Its first instruction is its own, and of no function inlined into it, however it is optimised.
    #[inline(never)]
    fn landmark() {
        // SAFETY: does nothing.
        unsafe { std::arch::asm!("nop", "nop") };
    }

    #[test]
    fn a_call_in_our_own_program_has_function_file_and_line() {
        let exe = std::env::current_exe().unwrap();
        let build_id = read_elf_build_id(&exe).unwrap().map(|id| id.to_vec()).unwrap_or_default();
        // The address of a function in the file: what the loader added is the start of the first mapping.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = maps.lines().find(|line| line.ends_with(&*exe.to_string_lossy())).unwrap();
        let bias = u64::from_str_radix(start.split('-').next().unwrap(), 16).unwrap();
        let function: fn() = landmark;
        let offset = (function as usize) as u64 - bias + 1;
        let ty = memstat::MallocType {
            lib: Some(0),
            offset,
            totals: memstat::TypeTotals { allocs: 1, ..Default::default() },
            ..Default::default()
        };
        let lib = Library { path: exe, build_id, main: true, ..Library::default() };
        let mut snapshot = Snapshot { libs: vec![lib], types: vec![ty], ..Snapshot::default() };
        let place = Symbols::new().places(&snapshot, None).remove(0);
        assert_eq!(place.function.as_deref(), Some("kernmalloc::symbols::tests::landmark"));
        assert!(place.file.unwrap().ends_with("src/symbols.rs") && place.line.is_some());

        // Another file by that name says nothing of the call.
        snapshot.libs[0].build_id = vec![1, 2, 3];
        assert_eq!(Symbols::new().places(&snapshot, None), [Place::default()]);
    }
}
