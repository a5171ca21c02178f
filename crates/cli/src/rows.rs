//! The rows of a table of types: by library or by call site, named and sorted.

use std::cmp::Reverse;

use memstat::{MallocType, Snapshot, TypeKind, TypeTotals};

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

/// The rows of a snapshot, sorted. `symbols`: by call site, named by these.
pub(crate) fn rows(
    snapshot: &Snapshot,
    symbols: Option<(&mut Symbols, Option<u32>)>,
    sort: Option<SortColumn>,
) -> Vec<Row> {
    let mut rows = match symbols {
        Some((symbols, pid)) => {
            let places = symbols.places(snapshot, pid);
            snapshot.types.iter().zip(places).map(|(ty, place)| site_row(snapshot, ty, place)).collect()
        }
        None => library_rows(snapshot),
    };
    // As FreeBSD does: a type that never served anything is not shown. One that only ever failed is, in our columns.
    rows.retain(|row| row.totals.allocs != 0 || row.totals.in_use() != 0 || row.failures != 0);
    sort_rows(&mut rows, sort);
    rows
}

fn library_rows(snapshot: &Snapshot) -> Vec<Row> {
    let sums = snapshot.by_library().into_iter().map(|sum| {
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
    });
    sums.collect()
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
