//! The rows of a table of types: by library or by call site, named and sorted.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use memstat::{LibraryTotals, MallocType, Snapshot, TypeKind, TypeTotals};

use crate::args::SortColumn;
use crate::symbols::{Place, Symbols};

/// One row of `vmstat -m`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) totals: TypeTotals,
    pub(crate) high_water_bytes: u64,
    pub(crate) failures: u64,
    pub(crate) limit_bytes: u64,
    pub(crate) limit_blocks: u64,
    pub(crate) map_blocks: u64,
    /// Path of the library.
    pub(crate) library: Option<String>,
    pub(crate) build_id: Vec<u8>,
    /// Of a call site: return address in the library.
    pub(crate) offset: Option<u64>,
    pub(crate) place: Place,
}

impl Row {
    /// Share of the bytes served since the start that was not asked for, percent.
    pub(crate) fn waste_percent(&self) -> f64 {
        let served = self.totals.bytes_allocated;
        if served == 0 {
            return 0.0;
        }
        served.saturating_sub(self.totals.bytes_requested) as f64 * 100.0 / served as f64
    }
}

/// What a row says of allocations whose call site got no type of its own.
const BEYOND_SITES: &str = "(call sites beyond the table)";
const BEYOND_LIBRARIES: &str = "(libraries beyond the table)";

/// What a row of call sites stands for; their names come from these symbols, with the live process for the paths of its files.
pub(crate) enum By<'a> {
    /// A library with all of its call sites.
    Library,
    /// One call site.
    Site(&'a mut Symbols, Option<u32>),
    /// A crate in a library; call sites whose function has none are their library's.
    Crate(&'a mut Symbols, Option<u32>),
}

/// The rows of a snapshot, sorted.
pub(crate) fn rows(snapshot: &Snapshot, by: By<'_>, sort: Option<SortColumn>) -> Vec<Row> {
    let mut rows = match by {
        By::Site(symbols, pid) => {
            let places = symbols.places(snapshot, pid);
            let types = snapshot.types.iter().zip(places).filter(|(ty, _)| !is_gone(ty));
            types.map(|(ty, place)| site_row(snapshot, ty, place)).collect()
        }
        By::Crate(symbols, pid) => crate_rows(snapshot, &symbols.places(snapshot, pid)),
        By::Library => library_rows(snapshot),
    };
    // As FreeBSD does: a type that never served anything is not shown. One that only ever failed is, in our columns.
    rows.retain(|row| row.totals.allocs != 0 || row.totals.in_use() != 0 || row.failures != 0);
    sort_rows(&mut rows, sort);
    rows
}

/// Its module was unloaded, and nothing of it is left. What it leaked is still somebody's to explain.
fn is_gone(ty: &MallocType) -> bool {
    ty.gone && ty.totals.in_use() == 0
}

fn library_rows(snapshot: &Snapshot) -> Vec<Row> {
    let sums = snapshot.by_library().into_iter();
    let sums = sums.filter(|sum| sum.without_lib.is_none_or(|ty| !is_gone(&snapshot.types[ty])));
    sums.map(|sum| sum_row(snapshot, &sum)).collect()
}

fn sum_row(snapshot: &Snapshot, sum: &LibraryTotals) -> Row {
    let mut row = Row {
        totals: sum.totals,
        high_water_bytes: sum.high_water_bytes,
        failures: sum.failures,
        limit_bytes: sum.limit_bytes,
        limit_blocks: sum.limit_blocks,
        map_blocks: sum.map_blocks,
        ..Row::default()
    };
    match (sum.lib.map(|lib| &snapshot.libs[lib]), sum.without_lib.map(|ty| &snapshot.types[ty])) {
        (Some(lib), _) => {
            row.name = lib.name();
            row.library = Some(lib.path.to_string_lossy().into_owned());
            row.build_id.clone_from(&lib.build_id);
        }
        (None, Some(ty)) => row.name = type_name(snapshot, ty),
        (None, None) => {}
    }
    row
}

/// `places` are those of the snapshot's types.
fn crate_rows(snapshot: &Snapshot, places: &[Place]) -> Vec<Row> {
    let mut sums: BTreeMap<(usize, Option<&str>), LibraryTotals> = BTreeMap::new();
    let mut rows = Vec::new();
    for (index, (ty, place)) in snapshot.types.iter().zip(places).enumerate() {
        let Some(lib) = ty.lib.filter(|&lib| lib < snapshot.libs.len()) else {
            if is_gone(ty) {
                continue;
            }
            let mut alone = LibraryTotals { without_lib: Some(index), ..LibraryTotals::default() };
            alone.add(ty);
            rows.push(sum_row(snapshot, &alone));
            continue;
        };
        let name = place.function.as_deref().and_then(crate_of);
        let sum = sums.entry((lib, name)).or_default();
        sum.lib = Some(lib);
        sum.add(ty);
    }
    rows.extend(sums.iter().map(|(&(_, name), sum)| {
        let mut row = sum_row(snapshot, sum);
        if let Some(name) = name {
            name.clone_into(&mut row.name);
        }
        row
    }));
    rows
}

/// The crate of a Rust function's path, or the namespace of a C++ function. `<T as work::Trait>::f`, of a type that is anybody's, is
/// the trait's.
fn crate_of(function: &str) -> Option<&str> {
    let root = |path: &'_ str| {
        let end = path.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        (end > 0 && path[end..].starts_with("::")).then_some(end)
    };
    let path = function.trim_start_matches(['<', '&', '*', '[', '(']);
    let path = ["mut ", "const ", "dyn "].iter().find_map(|word| path.strip_prefix(word)).unwrap_or(path);
    match root(path) {
        Some(end) => Some(&path[..end]),
        None => {
            let of = function.strip_prefix('<')?.split_once(" as ")?.1;
            root(of).map(|end| &of[..end])
        }
    }
}

fn site_row(snapshot: &Snapshot, ty: &MallocType, place: Place) -> Row {
    let lib = ty.lib.and_then(|lib| snapshot.libs.get(lib));
    let site = ty.kind == TypeKind::Site && ty.offset != 0;
    let at = || {
        let module = lib.map_or_else(|| "?".to_owned(), memstat::Library::name);
        format!("{module}+{:#x}", ty.offset)
    };
    let function = place.function.as_deref().map(shortened);
    let name = match (function, &place.file, place.line) {
        _ if !site => type_name(snapshot, ty),
        (Some(function), Some(file), Some(line)) => {
            format!("{function} ({}:{line})", file.rsplit('/').next().unwrap_or(file))
        }
        (Some(function), ..) => format!("{function} ({})", at()),
        (None, ..) => at(),
    };
    Row {
        name,
        totals: ty.totals,
        high_water_bytes: ty.high_water_bytes,
        failures: ty.failures,
        limit_bytes: ty.limit_bytes,
        limit_blocks: ty.limit_blocks,
        map_blocks: ty.map_blocks,
        library: lib.map(|lib| lib.path.to_string_lossy().into_owned()),
        build_id: lib.map(|lib| lib.build_id.clone()).unwrap_or_default(),
        offset: site.then_some(ty.offset),
        place,
    }
}

/// A function's name for a table: those of C++ templates run to thousands of characters. JSON has all of it.
fn shortened(name: &str) -> String {
    const MOST: usize = 72;
    match name.char_indices().nth(MOST) {
        Some((cut, _)) => format!("{}...", &name[..cut]),
        None => name.to_owned(),
    }
}

/// The name of a type that is not a call site.
fn type_name(snapshot: &Snapshot, ty: &MallocType) -> String {
    let lib = ty.lib.and_then(|lib| snapshot.libs.get(lib)).map(memstat::Library::name);
    match (ty.kind, lib) {
        (TypeKind::LibraryOverflow, Some(lib)) => format!("{lib} {BEYOND_SITES}"),
        (TypeKind::Overflow, None) if !snapshot.types.iter().any(|ty| ty.kind == TypeKind::LibraryOverflow) => {
            BEYOND_SITES.to_owned()
        }
        (TypeKind::Overflow, _) => BEYOND_LIBRARIES.to_owned(),
        (_, Some(lib)) => lib,
        (_, None) if ty.name.is_empty() => "(unnamed)".to_owned(),
        (_, None) => ty.name.clone(),
    }
}

/// Without a column: most bytes in use first, then most requests.
pub(crate) fn sort_rows(rows: &mut [Row], column: Option<SortColumn>) {
    let descending = |rows: &mut [Row], key: &dyn Fn(&Row) -> u64| rows.sort_by_key(|row| Reverse(key(row)));
    // The order among equals.
    rows.sort_by(|a, b| b.totals.allocs.cmp(&a.totals.allocs).then_with(|| a.name.cmp(&b.name)));
    match column {
        None | Some(SortColumn::Memory) => descending(rows, &|row| row.totals.bytes_in_use()),
        Some(SortColumn::Type) => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        Some(SortColumn::Library) => rows.sort_by(|a, b| a.library.cmp(&b.library)),
        Some(SortColumn::Use) => descending(rows, &|row| row.totals.in_use()),
        Some(SortColumn::Requests) => descending(rows, &|row| row.totals.allocs),
        Some(SortColumn::High) => descending(rows, &|row| row.high_water_bytes),
        Some(SortColumn::Frees) => descending(rows, &|row| row.totals.frees),
        Some(SortColumn::Fail) => descending(rows, &|row| row.failures),
        Some(SortColumn::Requested) => descending(rows, &|row| row.totals.bytes_requested),
        Some(SortColumn::Waste) => rows.sort_by(|a, b| b.waste_percent().total_cmp(&a.waste_percent())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_of_a_function() {
        for (function, expected) in [
            ("tokio::runtime::task::spawn", Some("tokio")),
            ("<hyper::proto::h1::conn::Conn<I, B, T> as hyper::body::Body>::poll", Some("hyper")),
            ("<&mut axum::Router as core::fmt::Debug>::fmt", Some("axum")),
            ("<[work::Item] as core::fmt::Debug>::fmt", Some("work")),
            ("<T as work::Trait>::f", Some("work")),
            ("<u64 as alloc::string::ToString>::to_string", Some("alloc")),
            ("g_malloc", None),
            ("main", None),
            ("operator new(unsigned long)", None),
            ("leveldb::Arena::Allocate(unsigned long)", Some("leveldb")),
            ("", None),
        ] {
            assert_eq!(crate_of(function), expected, "{function}");
        }
    }

    #[test]
    fn a_library_is_split_by_crate_and_the_sums_stay() {
        let lib = memstat::Library { path: "/bin/program".into(), ..memstat::Library::default() };
        let ty = |lib, name: &str, allocs| MallocType {
            lib,
            name: name.to_owned(),
            kind: if lib.is_some() { TypeKind::Site } else { TypeKind::Static },
            totals: TypeTotals { allocs, ..TypeTotals::default() },
            ..MallocType::default()
        };
        let types = vec![
            ty(Some(0), "", 1),
            ty(None, "parser", 2),
            ty(Some(0), "", 4),
            ty(Some(0), "", 8),
            ty(Some(0), "", 16),
        ];
        let snapshot = Snapshot { libs: vec![lib], types, ..Snapshot::default() };
        let place = |name: &str| Place { function: Some(name.to_owned()), ..Place::default() };
        let places =
            [place("hyper::a"), Place::default(), place("tokio::b"), place("<hyper::C as tokio::D>::e"), place("main")];
        let mut rows = crate_rows(&snapshot, &places);
        sort_rows(&mut rows, Some(SortColumn::Requests));
        let got: Vec<_> =
            rows.iter().map(|row| (row.name.as_str(), row.totals.allocs, row.library.is_some())).collect();
        assert_eq!(got, [("program", 16, true), ("hyper", 9, true), ("tokio", 4, true), ("parser", 2, false)]);
    }
}
