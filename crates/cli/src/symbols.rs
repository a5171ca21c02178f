//! Names for call sites: function, file and line from the files on disk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use blazesym::helper::read_elf_build_id;
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
}

impl Symbols {
    pub(crate) fn new() -> Self {
        Self { symbolizer: Symbolizer::new(), files: HashMap::new(), known: HashMap::new() }
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

fn place_of(symbol: Symbolized<'_>) -> Place {
    let Symbolized::Sym(symbol) = symbol else { return Place::default() };
    // The innermost function that was inlined here is the one whose source has the call.
    let (name, code) = match symbol.inlined.last() {
        Some(inlined) => (&inlined.name, inlined.code_info.as_ref()),
        None => (&symbol.name, symbol.code_info.as_deref()),
    };
    let path = |code: &CodeInfo<'_>| code.to_path().to_string_lossy().into_owned();
    Place { function: Some(name.to_string()), file: code.map(path), line: code.and_then(|code| code.line) }
}
