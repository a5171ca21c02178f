//! Tables in JSON, shaped as libxo shapes those of FreeBSD's `vmstat`, with exact figures and our own fields after its.

use memstat::{Account, Snapshot, Zone, sizes};
use serde_json::{Map, Value, json};

use crate::layout::{Line, account_lines};
use crate::rows::Row;

/// What libxo's users call the version of the output.
const VERSION: &str = "1";

/// Wraps the parts of a document.
pub(crate) fn document(parts: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut out = Map::new();
    out.insert("__version".to_owned(), VERSION.into());
    out.extend(parts.into_iter().map(|(name, part)| (name.to_owned(), part)));
    Value::Object(out)
}

/// The program that figures belong to.
pub(crate) fn program(snapshot: &Snapshot) -> Value {
    let p = &snapshot.program;
    let mut out = json!({
        "pid": p.pid,
        "parent-pid": p.parent_pid,
        "generation": p.generation,
        "name": p.name(),
        "exe": p.exe,
        "exited": p.exited,
        "foreign-malloc": p.foreign_malloc,
        "failures": p.failures,
        "misuses": p.misuses,
        "call-sites-beyond-table": p.site_overflow,
    });
    if let (Some(report), Value::Object(map)) = (&p.report, &mut out) {
        map.insert("report".to_owned(), report.as_str().into());
    }
    out
}

/// `malloc-statistics`.
pub(crate) fn types(rows: &[Row]) -> Value {
    json!({ "memory": rows.iter().map(row).collect::<Vec<_>>() })
}

fn row(row: &Row) -> Value {
    let t = &row.totals;
    let mut out = json!({
        "type": row.name,
        "in-use": t.in_use(),
        "memory-use": t.bytes_in_use(),
        "requests": t.allocs,
        "size": sizes(t.size_mask).collect::<Vec<_>>(),
        "high-water": row.high_water_bytes,
        "frees": t.frees,
        "failures": row.failures,
        "requested-bytes": t.bytes_requested,
        "served-bytes": t.bytes_allocated,
        "freed-bytes": t.bytes_freed,
    });
    let Value::Object(map) = &mut out else { return out };
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(name.to_owned(), value);
        }
    };
    put("library", row.library.as_deref().map(Value::from));
    let hex = || row.build_id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    put("build-id", (!row.build_id.is_empty()).then(|| hex().into()));
    put("offset", row.offset.map(Value::from));
    put("function", row.place.function.as_deref().map(Value::from));
    put("file", row.place.file.as_deref().map(Value::from));
    put("line", row.place.line.map(Value::from));
    out
}

/// `memory-zone-statistics`.
pub(crate) fn zones(zones: &[Zone]) -> Value {
    let zone = |zone: &Zone| {
        json!({
            "name": zone.name,
            "size": zone.item_bytes,
            "limit": zone.limit,
            "used": zone.used(),
            "free": zone.free(),
            "requests": zone.allocs,
            "fail": zone.fails,
            "sleep": zone.sleeps,
            "sleepers": zone.sleepers,
            "xdomain": zone.xdomain,
            "frees": zone.frees,
            "cached": zone.cached(),
            "depot": zone.depot,
            "slab-free": zone.slab_free,
            "slabs": zone.slabs,
            "slab-size": zone.slab_bytes,
            "items-per-slab": zone.items_per_slab,
            "bucket-size": zone.bucket_size,
        })
    };
    json!({ "zone": zones.iter().map(zone).collect::<Vec<_>>() })
}

/// `memory-account`.
pub(crate) fn account(account: &Account) -> Value {
    let value =
        |line: &Line| if line.is_percent { Value::from(line.value as f64 / 100.0) } else { Value::from(line.value) };
    let figures = account_lines(account).into_iter().map(|line| (line.key.to_owned(), value(&line)));
    Value::Object(figures.collect())
}
