//! A statistics object, opened; and the programs that have one.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use abi::{
    CacheEntry, CpuCache, Header, LibRecord, LineView, Section, SlotLine, TypeLine, TypeRecord, TypeTotals, ZoneLine,
    ZoneRecord, page,
};

use crate::error::{Error, Result};
use crate::map::Map;
use crate::process::{self, Mapping};
use crate::snapshot::{Attribution, Heap, Library, MallocType, Program, Snapshot, TypeKind, Zone, ZoneDomain};

/// Offset in the object of a header's field, possibly of a field inside it.
macro_rules! at {
    ($($field:tt).+) => { offset_of!(Header, $($field).+) as u64 };
}

/// Where the bytes come from.
enum Source {
    /// A mapped file; what the program writes is seen.
    Mapped(Map),
    /// The object has no name in the file system (a memfd, or removed): copied from the program for each snapshot.
    Remote { base: u64 },
}

/// A statistics object, opened.
pub struct Object {
    source: Source,
    /// The live process it was found in.
    pid: Option<u32>,
    path: Option<PathBuf>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("pid", &self.pid).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Object {
    /// Opens an object left behind in a file (or one of a live program, by its path).
    pub fn open_file(path: &Path) -> Result<Self> {
        // Not to wait for whoever would write to a pipe of that name.
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = open.map_err(|e| Error::open(path, e))?;
        if !file.metadata().map_err(|e| Error::open(path, e))?.is_file() {
            return Err(Error::open(path, io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let map = Map::of_file(&file).map_err(|e| Error::open(path, e))?;
        Self::checked(Self { source: Source::Mapped(map), pid: None, path: Some(path.to_owned()) })
    }

    /// Takes a copy of an object's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut map = Map::zeroed(bytes.len()).map_err(|e| Error::io("copy of an object", e))?;
        map.fill(0, bytes.len() as u64)?.copy_from_slice(bytes);
        Self::checked(Self { source: Source::Mapped(map), pid: None, path: None })
    }

    /// Opens the object of a live process by what is mapped in it.
    pub fn open_pid(pid: u32) -> Result<Self> {
        let maps = process::maps(pid)?;
        if maps.is_empty() {
            let name = process::process_name(pid);
            return Err(if process::is_alive(pid) {
                Error::NotUnder { pid, name }
            } else {
                Error::Exited { pid, name }
            });
        }
        Self::of_maps(pid, &maps)
    }

    fn of_maps(pid: u32, maps: &[Mapping]) -> Result<Self> {
        let pids = process::namespace_pids(pid);
        let mut failure = None;
        let mut best: Option<(u64, Self)> = None;
        for mapping in maps.iter().filter(|mapping| mapping.is_candidate()) {
            // A mapping that cannot be read, or holds something else, says nothing yet: another may be the one.
            let (object, header) = match Self::of_mapping(pid, mapping).and_then(|o| Ok((o.header()?, o))) {
                Ok((header, object)) => (object, header),
                Err(Error::NotAnObject { .. }) => continue,
                Err(e) => {
                    failure = Some(e);
                    continue;
                }
            };
            if !pids.contains(&header.pid) {
                failure.get_or_insert(Error::Borrowed { pid, owner: header.pid });
            } else if best.as_ref().is_none_or(|(start, _)| *start < header.start_realtime_ns) {
                best = Some((header.start_realtime_ns, object));
            }
        }
        match (best, failure) {
            (Some((_, object)), _) => Ok(object),
            (None, Some(e)) => Err(e),
            (None, None) => {
                let name = process::process_name(pid);
                let library = maps.iter().any(Mapping::is_library);
                Err(if library { Error::NoObject { pid, name } } else { Error::NotUnder { pid, name } })
            }
        }
    }

    /// The object in one mapping: by its file where that can be opened, else out of the process's memory.
    fn of_mapping(pid: u32, mapping: &Mapping) -> Result<Self> {
        use std::os::unix::fs::MetadataExt;
        if !mapping.deleted && mapping.path.is_absolute() {
            let relative = mapping.path.strip_prefix("/").unwrap_or(&mapping.path);
            for path in [Path::new(&format!("/proc/{pid}/root")).join(relative), mapping.path.clone()] {
                // Another file may have the name by now, or in our mount namespace: the inode tells. (The device is
                // not compared: overlay and btrfs show one number in maps and another in stat.)
                let Ok(file) = File::open(&path) else { continue };
                if !file.metadata().is_ok_and(|meta| meta.ino() == mapping.inode && meta.is_file()) {
                    continue;
                }
                let map = Map::of_file(&file).map_err(|e| Error::open(&path, e))?;
                return Self::checked(Self { source: Source::Mapped(map), pid: Some(pid), path: Some(path) });
            }
        }
        Self::checked(Self { source: Source::Remote { base: mapping.range.start }, pid: Some(pid), path: None })
    }

    fn checked(self) -> Result<Self> {
        self.header()?;
        Ok(self)
    }

    /// The live process that the object was found in.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The file it was opened from.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Who wrote the object.
    pub fn header(&self) -> Result<Program> {
        match &self.source {
            Source::Mapped(map) => read_header(map).map(|(program, _)| program),
            Source::Remote { base } => read_header(&self.copy_header(*base)?).map(|(program, _)| program),
        }
    }

    /// Reads everything. The program is not stopped, and does nothing for it.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let mut snapshot = match &self.source {
            Source::Mapped(map) => read_snapshot(map, map)?,
            Source::Remote { base } => {
                // Two copies for the two passes: frees come from the older one.
                let older = self.copy(*base)?;
                let newer = self.copy(*base)?;
                read_snapshot(&older, &newer)?
            }
        };
        if let Some(pid) = self.pid {
            // Not permitted, or just gone: the zone lines of the object stand.
            snapshot.zones_live = read_caches(pid, &mut snapshot).is_ok();
        }
        Ok(snapshot)
    }

    /// Calls `read` with the header's bytes as they are now.
    pub(crate) fn with_header<T>(&self, read: impl FnOnce(&Map) -> Result<T>) -> Result<T> {
        match &self.source {
            Source::Mapped(map) => read(map),
            Source::Remote { base } => read(&self.copy_header(*base)?),
        }
    }

    /// Offset in the object of a zone's record.
    /// Where the record of a type is.
    pub(crate) fn type_offset(&self, index: u64) -> Result<u64> {
        self.with_header(|header| Layout::read(header)?.types.at(index, 0, size_of::<TypeRecord>() as u64))
    }

    /// Where the record of a zone is.
    pub(crate) fn zone_offset(&self, index: u64) -> Result<u64> {
        self.with_header(|header| Layout::read(header)?.zones.at(index, 0, size_of::<ZoneRecord>() as u64))
    }

    /// Writes a word of the object, in its file or in the program's memory.
    pub(crate) fn store(&self, offset: u64, value: u64) -> Result<()> {
        match (&self.source, &self.path, self.pid) {
            (Source::Mapped(_), Some(path), _) => {
                let file = File::options().read(true).write(true).open(path).map_err(|e| Error::open(path, e))?;
                crate::map::store(&file, offset, value).map_err(|e| Error::open(path, e))
            }
            (Source::Remote { base }, _, Some(pid)) => process::write_word(pid, base.wrapping_add(offset), value),
            _ => Err(Error::NotSettable { name: "a copy".to_owned(), why: "there is no program behind it".to_owned() }),
        }
    }

    fn copy_header(&self, base: u64) -> Result<Map> {
        let pid = self.pid.unwrap_or(0);
        let mut map = Map::zeroed(abi::HEADER_BYTES as usize).map_err(|e| Error::io("copy of an object", e))?;
        process::read_memory_exact(pid, base, map.fill(0, abi::HEADER_BYTES)?)?;
        Ok(map)
    }

    /// Copies what is in use, at the same offsets: reading more would make pages of the sparse object in the program.
    fn copy(&self, base: u64) -> Result<Map> {
        let pid = self.pid.unwrap_or(0);
        let header = self.copy_header(base)?;
        let layout = Layout::read(&header)?;
        let total = header.u64("total_bytes", at!(total_bytes))?;
        let len = usize::try_from(total).ok().filter(|&len| len >= abi::HEADER_BYTES as usize && len < 1 << 46);
        let Some(len) = len else {
            return Err(Error::Malformed { what: "total_bytes", offset: at!(total_bytes), found: total });
        };
        let mut map = Map::zeroed(len).map_err(|e| Error::io("copy of an object", e))?;
        layout.check_extents(&map)?;
        let mut copy = |offset: u64, len: u64| -> Result<()> {
            if len == 0 {
                return Ok(());
            }
            process::read_memory_exact(pid, base.wrapping_add(offset), map.fill(offset, len)?)
        };
        copy(0, abi::HEADER_BYTES)?;
        for table in [&layout.libs, &layout.types, &layout.zones] {
            let bytes = table.used.checked_mul(table.stride);
            copy(table.offset, bytes.ok_or_else(|| table.beyond(total))?)?;
        }
        for (rows, width) in [layout.zone_rows(), layout.type_rows()] {
            // Without columns there are no rows to copy, whatever their number.
            for row in 0..if width == 0 { 0 } else { rows.used } {
                copy(rows.at(row, 0, 0)?, width)?;
            }
        }
        Ok(map)
    }
}

/// A [`Section`] as read.
struct Table {
    what: &'static str,
    /// Where its description is, for messages.
    described_at: u64,
    offset: u64,
    stride: u64,
    used: u64,
}

impl Table {
    fn read(map: &Map, what: &'static str, described_at: u64, record_bytes: u64, align: u64) -> Result<Self> {
        let field = |offset: usize| map.u64(what, described_at + offset as u64);
        let malformed = |offset: usize, found| Error::Malformed { what, offset: described_at + offset as u64, found };
        let offset = field(offset_of!(Section, offset))?;
        let stride = field(offset_of!(Section, stride))?;
        let capacity = field(offset_of!(Section, capacity))?;
        let used = field(offset_of!(Section, used))?;
        if offset < abi::HEADER_BYTES && used > 0 || offset % align != 0 {
            return Err(malformed(offset_of!(Section, offset), offset));
        }
        if used > 0 && (stride < record_bytes || stride % align != 0) {
            return Err(malformed(offset_of!(Section, stride), stride));
        }
        if used > capacity {
            return Err(malformed(offset_of!(Section, used), used));
        }
        Ok(Self { what, described_at, offset, stride, used })
    }

    /// Offset of byte `plus` of record `column` (each `width` bytes) in row `row`.
    fn at(&self, row: u64, column: u64, width: u64) -> Result<u64> {
        let at = row.checked_mul(self.stride).and_then(|n| n.checked_add(column.checked_mul(width)?));
        at.and_then(|n| n.checked_add(self.offset)).ok_or_else(|| self.beyond(u64::MAX))
    }

    fn beyond(&self, have_bytes: u64) -> Error {
        Error::Truncated { what: self.what, offset: self.offset, need_bytes: u64::MAX, have_bytes }
    }
}

struct Layout {
    libs: Table,
    types: Table,
    zones: Table,
    zone_lines: Table,
    type_lines: Table,
}

impl Layout {
    fn read(map: &Map) -> Result<Self> {
        let size = |n: usize| n as u64;
        let mut this = Self {
            libs: Table::read(map, "table of libraries", at!(libs), size(size_of::<LibRecord>()), 8)?,
            types: Table::read(map, "table of types", at!(types), size(size_of::<TypeRecord>()), 8)?,
            zones: Table::read(map, "table of zones", at!(zones), size(size_of::<ZoneRecord>()), 8)?,
            zone_lines: Table::read(map, "zone lines", at!(zone_lines), 0, 8)?,
            type_lines: Table::read(map, "type lines", at!(type_lines), 0, align_of::<TypeLine>() as u64)?,
        };
        // Slots are counted once, with the types' lines.
        let capacity = map.u64("zone lines", at!(zone_lines) + offset_of!(Section, capacity) as u64)?;
        this.zone_lines.used = this.zone_lines.used.max(this.type_lines.used.min(capacity));
        // Rows must hold a line for every record, or one slot's line would be read as another's.
        for (lines, width) in [this.zone_rows(), this.type_rows()] {
            if lines.used > 1 && lines.stride < width {
                let offset = lines.described_at + offset_of!(Section, stride) as u64;
                return Err(Error::Malformed { what: lines.what, offset, found: lines.stride });
            }
        }
        Ok(this)
    }

    /// An error unless all that is in use lies within the map. After this, counts of records are no more than its bytes.
    fn check_extents(&self, map: &Map) -> Result<()> {
        let plain = [(&self.libs, size_of::<LibRecord>()), (&self.types, size_of::<TypeRecord>())];
        let plain = plain.into_iter().chain([(&self.zones, size_of::<ZoneRecord>())]);
        let plain = plain.map(|(table, record_bytes)| (table, record_bytes as u64));
        for (table, width) in plain.chain([self.zone_rows(), self.type_rows()]) {
            if table.used > 0 && width > 0 {
                let last = table.at(table.used - 1, 0, 0)?;
                map.holds(table.what, table.offset, last.saturating_sub(table.offset).saturating_add(width))?;
            }
        }
        Ok(())
    }

    /// The rows of zone lines, and the bytes in use of each.
    fn zone_rows(&self) -> (&Table, u64) {
        (&self.zone_lines, self.zones.used.saturating_mul(size_of::<ZoneLine>() as u64))
    }

    fn type_rows(&self) -> (&Table, u64) {
        (&self.type_lines, self.types.used.saturating_mul(size_of::<TypeLine>() as u64).saturating_add(SLOT_LINE))
    }
}

fn read_header(map: &Map) -> Result<(Program, Heap)> {
    let u64_at = |offset| map.u64("header", offset);
    let u32_at = |offset| map.u32("header", offset);
    let magic = u64_at(at!(magic))?;
    if magic != abi::MAGIC {
        return Err(Error::NotAnObject { found: magic });
    }
    let version = u32_at(at!(version))?;
    if version != abi::VERSION {
        return Err(Error::Version { found: version });
    }
    let report_bytes = u64::from(u32_at(at!(report_len))?).min(size_of::<[u8; 2048]>() as u64);
    let report = match report_bytes {
        0 => None,
        len => Some(map.text("report", at!(report), len)?),
    };
    let program = Program {
        pid: u32_at(at!(pid))?,
        parent_pid: u32_at(at!(parent_pid))?,
        generation: u32_at(at!(generation))?,
        exe: map.text("exe", at!(exe), 256)?,
        exited: u32_at(at!(state))? == abi::state::EXITED,
        attribution: match u32_at(at!(attribution))? {
            abi::attribution::OFF => Attribution::Off,
            abi::attribution::LIBRARY => Attribution::Library,
            _ => Attribution::Site,
        },
        start_realtime_ns: u64_at(at!(start_realtime_ns))?,
        slots: u64_at(at!(type_lines) + offset_of!(Section, used) as u64)?,
        foreign_malloc: u32_at(at!(foreign_malloc))? != 0,
        report,
        misuses: u64_at(at!(misuses))?,
        failures: u64_at(at!(failures))?,
        site_overflow: u64_at(at!(site_overflow))?,
    };
    let heap = Heap {
        page_bytes: u64::from(u32_at(at!(page_bytes))?),
        base: u64_at(at!(heap_base))?,
        bytes: u64_at(at!(heap_bytes))?,
        max_bytes: u64_at(at!(heap_max_bytes))?,
        table_base: u64_at(at!(table_base))?,
        table_bytes: u64_at(at!(table_bytes))?,
        meta_base: u64_at(at!(meta_base))?,
        meta_bytes: u64_at(at!(meta_bytes))?,
        meta_used_bytes: u64_at(at!(meta_used_bytes))?,
        stats_base: u64_at(at!(stats_base))?,
        stats_bytes: u64_at(at!(total_bytes))?,
        pages_slab: u64_at(at!(pages_slab))?,
        pages_large: u64_at(at!(pages_large))?,
        pages_free_dirty: u64_at(at!(pages_free_dirty))?,
        pages_free_clean: u64_at(at!(pages_free_clean))?,
        pages_large_cached: u64_at(at!(pages_large_cached))?,
        caches_base: u64_at(at!(caches_base))?,
        cache_slot_stride: u64_at(at!(cache_slot_stride))?,
        cache_zone_stride: u64_at(at!(cache_zone_stride))?,
    };
    Ok((program, heap))
}

/// Reads frees from `older`, all else from `newer`; the two are one mapping where the object is mapped.
fn read_snapshot(older: &Map, newer: &Map) -> Result<Snapshot> {
    let (program, heap) = read_header(newer)?;
    let layout = Layout::read(older)?;
    layout.check_extents(older)?;
    layout.check_extents(newer)?;
    let libs = (0..layout.libs.used).map(|i| read_lib(newer, layout.libs.at(i, 0, 0)?)).collect::<Result<_>>()?;
    let zones = (0..layout.zones.used).map(|i| read_zone(older, newer, &layout, i));
    let zones = zones.filter_map(Result::transpose).collect::<Result<_>>()?;
    let types = (0..layout.types.used).map(|i| read_type(older, newer, &layout, i)).collect::<Result<_>>()?;
    Ok(Snapshot { program, heap, libs, types, zones, zones_live: false })
}

fn read_lib(map: &Map, at: u64) -> Result<Library> {
    let what = "library";
    let field = |offset: usize| at + offset as u64;
    let flags = map.u32(what, field(offset_of!(LibRecord, flags)))?;
    let id_bytes = u64::from(map.u32(what, field(offset_of!(LibRecord, build_id_len)))?).min(32);
    Ok(Library {
        path: map.text(what, field(offset_of!(LibRecord, path)), 256)?.into(),
        build_id: map.bytes(what, field(offset_of!(LibRecord, build_id)), id_bytes)?,
        main: flags & abi::lib_flag::MAIN != 0,
        unloaded: flags & abi::lib_flag::UNLOADED != 0,
        anonymous: flags & abi::lib_flag::ANONYMOUS != 0,
        bias: map.u64(what, field(offset_of!(LibRecord, bias)))?,
    })
}

/// Bytes of a row before its first type line.
const SLOT_LINE: u64 = size_of::<SlotLine>() as u64;

/// Slots in use by now, which may be more than the layout says: a block may have come from one that was first entered a moment ago.
fn slots_now(map: &Map, layout: &Layout) -> Result<u64> {
    let field = |offset: usize| map.u64("type lines", at!(type_lines) + offset as u64);
    let used = field(offset_of!(Section, used))?.min(field(offset_of!(Section, capacity))?);
    Ok(used.max(layout.type_lines.used))
}

fn read_type(older: &Map, newer: &Map, layout: &Layout, index: u64) -> Result<MallocType> {
    let what = "type";
    let at = layout.types.at(index, 0, 0)?;
    let field = |offset: usize| at + offset as u64;
    let mut maps = [older, newer].into_iter();
    let mut failed = None;
    let totals = TypeTotals::read(|| {
        let map = maps.next().unwrap_or(newer);
        let views = slots_now(map, layout).and_then(|slots| {
            let view = |slot| {
                let row = layout.type_lines.at(slot, 0, 0)?;
                let at = layout.type_lines.at(slot, index, size_of::<TypeLine>() as u64)?.saturating_add(SLOT_LINE);
                Ok(LineView::new(map.slot_line(row)?, map.line(at)?, index as usize))
            };
            (0..slots).map(view).collect::<Result<Vec<_>>>()
        });
        views
            .unwrap_or_else(|error| {
                failed = Some(error);
                Vec::new()
            })
            .into_iter()
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let lib = newer.u32(what, field(offset_of!(TypeRecord, lib)))?;
    let stored_high = newer.u64(what, field(offset_of!(TypeRecord, high_water_bytes)))?;
    let seen_high = u64::try_from(totals.peak_bytes).unwrap_or(0);
    Ok(MallocType {
        kind: match newer.u32(what, field(offset_of!(TypeRecord, kind)))? {
            abi::type_kind::STATIC => TypeKind::Static,
            abi::type_kind::SITE => TypeKind::Site,
            abi::type_kind::LIB_OVERFLOW => TypeKind::LibraryOverflow,
            abi::type_kind::OVERFLOW => TypeKind::Overflow,
            abi::type_kind::LIBRARY => TypeKind::Library,
            other => TypeKind::Other(other),
        },
        lib: (lib != abi::NO_LIB).then_some(lib as usize),
        offset: newer.u64(what, field(offset_of!(TypeRecord, offset)))?,
        name: newer.text(what, field(offset_of!(TypeRecord, name)), 32)?,
        high_water_bytes: stored_high.max(seen_high).max(totals.bytes_in_use()),
        totals,
        failures: newer.u64(what, field(offset_of!(TypeRecord, failures)))?,
        limit_bytes: newer.u64(what, field(offset_of!(TypeRecord, limit_bytes)))?,
        limit_blocks: newer.u64(what, field(offset_of!(TypeRecord, limit_blocks)))?,
        map_blocks: newer.u64(what, field(offset_of!(TypeRecord, map_blocks)))?,
        gone: newer.u32(what, field(offset_of!(TypeRecord, flags)))? & abi::type_flag::GONE != 0,
    })
}

/// `None` for the record of a zone that was destroyed.
fn read_zone(older: &Map, newer: &Map, layout: &Layout, index: u64) -> Result<Option<Zone>> {
    let what = "zone";
    let at = layout.zones.at(index, 0, 0)?;
    let field = |offset: usize| at + offset as u64;
    let word = |offset: usize| newer.u64(what, field(offset));
    let half = |offset: usize| newer.u32(what, field(offset)).map(u64::from);
    if word(offset_of!(ZoneRecord, dead))? != 0 {
        return Ok(None);
    }
    let line = |map: &Map, offset: usize| -> Result<u64> {
        (0..layout.zone_lines.used).try_fold(0u64, |sum, slot| {
            let at = layout.zone_lines.at(slot, index, size_of::<ZoneLine>() as u64)?;
            Ok(sum.wrapping_add(map.u64("zone line", at + offset as u64)?))
        })
    };
    // Frees first, as for types.
    let direct_frees = older.u64(what, field(offset_of!(ZoneRecord, direct_frees)))?;
    let frees = direct_frees.wrapping_add(line(older, offset_of!(ZoneLine, frees))?);
    let direct_allocs = word(offset_of!(ZoneRecord, direct_allocs))?;
    let allocs = direct_allocs.wrapping_add(line(newer, offset_of!(ZoneLine, allocs))?);
    let slabs = word(offset_of!(ZoneRecord, slabs))?;
    Ok(Some(Zone {
        name: newer.text(what, field(offset_of!(ZoneRecord, name)), 32)?,
        flags: newer.u32(what, field(offset_of!(ZoneRecord, flags)))?,
        item_bytes: half(offset_of!(ZoneRecord, item_bytes))?,
        slab_bytes: half(offset_of!(ZoneRecord, slab_bytes))?,
        items_per_slab: half(offset_of!(ZoneRecord, items_per_slab))?,
        header_bytes: half(offset_of!(ZoneRecord, header_bytes))?,
        slabs,
        slab_free: word(offset_of!(ZoneRecord, slab_free))?,
        depot: word(offset_of!(ZoneRecord, depot))?,
        cached: None,
        limit: word(offset_of!(ZoneRecord, limit))?,
        fails: word(offset_of!(ZoneRecord, fails))?,
        sleeps: word(offset_of!(ZoneRecord, sleeps))?,
        xdomain: word(offset_of!(ZoneRecord, xdomain))?,
        bucket_size: word(offset_of!(ZoneRecord, bucket_size))?,
        bucket_size_max: word(offset_of!(ZoneRecord, bucket_size_max))?,
        allocs,
        frees,
        direct_allocs,
        direct_frees,
        // A writer that counts slabs only now has imported and had at least those.
        slabs_imported: word(offset_of!(ZoneRecord, slabs_imported))?.max(slabs),
        slabs_high_water: word(offset_of!(ZoneRecord, slabs_high_water))?.max(slabs),
        slabs_idle: word(offset_of!(ZoneRecord, slabs_idle))?,
        sleepers: word(offset_of!(ZoneRecord, sleepers))?,
        index,
        limit_items: word(offset_of!(ZoneRecord, limit_items))?,
        bucket_max: word(offset_of!(ZoneRecord, bucket_max))?,
        reserve: word(offset_of!(ZoneRecord, reserve))?,
        stride_bytes: match half(offset_of!(ZoneRecord, stride_bytes))? {
            0 => half(offset_of!(ZoneRecord, item_bytes))?,
            stride => stride,
        },
        align: half(offset_of!(ZoneRecord, align))?,
        keg: half(offset_of!(ZoneRecord, keg))?.checked_sub(1),
        domains: read_domains(newer, at, slabs)?,
    }))
}

/// What a zone has in each domain. The zones of malloc's size classes have one, whose figures are the zone's.
fn read_domains(map: &Map, zone_at: u64, slabs: u64) -> Result<Vec<ZoneDomain>> {
    let what = "zone";
    let field = |offset: usize| map.u64(what, zone_at + offset as u64);
    let count = map.u32(what, zone_at + offset_of!(ZoneRecord, domains) as u64)?;
    if count == 0 {
        let depot = field(offset_of!(ZoneRecord, depot))?;
        return Ok(vec![ZoneDomain {
            depot,
            slabs,
            free_items: field(offset_of!(ZoneRecord, slab_free))?,
            free_slabs: field(offset_of!(ZoneRecord, slabs_idle))?,
            ..ZoneDomain::default()
        }]);
    }
    let read = |domain: usize| {
        let base = offset_of!(ZoneRecord, by_domain) + domain * size_of::<abi::ZoneDomain>();
        let word = |offset: usize| field(base + offset);
        Ok(ZoneDomain {
            depot: word(offset_of!(abi::ZoneDomain, depot))?,
            most: word(offset_of!(abi::ZoneDomain, most))?,
            least: word(offset_of!(abi::ZoneDomain, least))?,
            working_set: word(offset_of!(abi::ZoneDomain, working_set))?,
            slabs: word(offset_of!(abi::ZoneDomain, slabs))?,
            free_items: word(offset_of!(abi::ZoneDomain, free_items))?,
            free_slabs: word(offset_of!(abi::ZoneDomain, free_slabs))?,
        })
    };
    (0..(count as usize).min(abi::ZONE_DOMAINS)).map(read).collect()
}

/// Replaces the zones' figures by those of the live per-CPU caches.
fn read_caches(pid: u32, snapshot: &mut Snapshot) -> Result<()> {
    let Heap { caches_base: base, cache_slot_stride: slot_stride, cache_zone_stride: zone_stride, .. } = snapshot.heap;
    // The zones of the size classes come first. Those made at run time count in their lines at once, and need no second look.
    let classes = snapshot.zones.iter().take_while(|zone| zone.flags & abi::zone_flag::MALLOC != 0).count();
    let (slots, nzones) = (snapshot.program.slots, classes as u64);
    let malformed = |what, offset, found| Error::Malformed { what, offset, found };
    if base == 0 || nzones == 0 || slots == 0 {
        return Err(malformed("caches_base", at!(caches_base), base));
    }
    let codes = page::class_code(nzones as usize - 1) as u64 + 1;
    let row_bytes = zone_stride.checked_mul(codes).filter(|&n| n <= slot_stride.max(zone_stride) && n <= 1 << 24);
    let (Some(row_bytes), true) = (row_bytes, slots <= 1 << 20 && zone_stride >= size_of::<CpuCache>() as u64) else {
        return Err(malformed("cache_zone_stride", at!(cache_zone_stride), zone_stride));
    };
    // A cache, from the copy of a row: allocations, items in it, items filled in; `None` for one copied in the middle of a change of
    // buckets.
    let cache = |row: &[u8], zone: usize| -> Option<[u64; 3]> {
        let word = |offset: usize, bytes: usize| {
            let start = page::class_code(zone) * zone_stride as usize + offset;
            let mut word = [0u8; 8];
            word[..bytes].copy_from_slice(&row[start..start + bytes]);
            u64::from_le_bytes(word)
        };
        let entry = size_of::<CacheEntry>() as u64;
        let first = word(offset_of!(CpuCache, alloc_top), 8).wrapping_sub(word(offset_of!(CpuCache, alloc_items), 8));
        let room = word(offset_of!(CpuCache, alloc_end), 8).wrapping_sub(word(offset_of!(CpuCache, alloc_items), 8));
        if first > room || room > entry << 16 {
            return None;
        }
        let items = first / entry + word(offset_of!(CpuCache, free_count), 4);
        Some([word(offset_of!(CpuCache, allocs), 8), items, word(offset_of!(CpuCache, filled), 8)])
    };
    let zones = 0..classes;
    let read_row = |slot: u64| -> Result<Vec<[u64; 3]>> {
        const TRIES: usize = 100;
        let mut row = vec![0u8; row_bytes as usize];
        let at = slot.checked_mul(slot_stride).and_then(|n| n.checked_add(base));
        for _ in 0..TRIES {
            process::read_memory_exact(pid, at.unwrap_or(u64::MAX), &mut row)?;
            if let Some(caches) = zones.clone().map(|zone| cache(&row, zone)).collect() {
                return Ok(caches);
            }
        }
        Err(malformed("per-CPU caches", at!(caches_base), at.unwrap_or(u64::MAX)))
    };
    // Two copies, frees from the older, so that no block freed between them counts as a free without its allocation.
    let read = || (0..slots).map(read_row).collect::<Result<Vec<_>>>();
    let (older, newer) = (read()?, read()?);
    for (index, zone) in snapshot.zones.iter_mut().take(classes).enumerate() {
        let sum =
            |rows: &[Vec<[u64; 3]>], of: usize| rows.iter().fold(0u64, |sum, row| sum.wrapping_add(row[index][of]));
        let frees = sum(&older, 0).wrapping_add(sum(&older, 1)).wrapping_sub(sum(&older, 2));
        zone.frees = zone.direct_frees.wrapping_add(frees);
        zone.allocs = zone.direct_allocs.wrapping_add(sum(&newer, 0));
        zone.cached = Some(sum(&newer, 1));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::builder::{Builder, Line};

    fn example() -> Builder {
        let mut b = Builder::new(3);
        let main = b.lib("/usr/bin/example", &[1, 2, 3], abi::lib_flag::MAIN);
        let lib = b.lib("/usr/lib/libexample.so.1", &[], abi::lib_flag::UNLOADED);
        let a = Line { allocs: 10, bytes_allocated: 480, bytes_requested: 400, size_mask: 4, ..Line::default() };
        let f = Line { frees: 4, bytes_freed: 192, peak_bytes: -100, ..Line::default() };
        b.ty(abi::type_kind::SITE, main, 0x1234, "", &[a, Line::default(), f]);
        b.ty(abi::type_kind::LIB_OVERFLOW, lib, 0, "", &[a]);
        b.ty(abi::type_kind::OVERFLOW, abi::NO_LIB, 0, "", &[]);
        let sized = b.ty(abi::type_kind::STATIC, abi::NO_LIB, 0, "temp", &[f, a]);
        b.word(Builder::type_at(sized) + offset_of!(TypeRecord, high_water_bytes) as u64, 1000);
        b.zone("malloc-48", 48, [2, 100, 14, 70, 20]);
        b
    }

    #[test]
    fn what_was_written_is_read() {
        let snapshot = Object::from_bytes(example().bytes()).unwrap().snapshot().unwrap();
        assert_eq!((snapshot.program.pid, snapshot.program.parent_pid, snapshot.program.slots), (4242, 1, 3));
        assert_eq!((snapshot.program.name(), snapshot.program.exited), ("example", false));
        assert_eq!(snapshot.program.attribution, Attribution::Site);
        assert_eq!(snapshot.libs[0].build_id, [1, 2, 3]);
        assert_eq!((snapshot.libs[0].main, snapshot.libs[1].unloaded), (true, true));
        assert_eq!(snapshot.libs[1].name(), "libexample.so.1");

        let site = &snapshot.types[0];
        assert_eq!((site.kind, site.lib, site.offset), (TypeKind::Site, Some(0), 0x1234));
        assert_eq!((site.totals.in_use(), site.totals.bytes_in_use(), site.totals.allocs), (6, 288, 10));
        assert_eq!((site.high_water_bytes, site.totals.bytes_requested), (380, 400));
        let kinds: Vec<_> = snapshot.types.iter().map(|ty| (ty.kind, ty.lib)).collect();
        assert_eq!(
            kinds[1..],
            [(TypeKind::LibraryOverflow, Some(1)), (TypeKind::Overflow, None), (TypeKind::Static, None)]
        );
        assert_eq!((snapshot.types[3].name.as_str(), snapshot.types[3].high_water_bytes), ("temp", 1000));

        let zone = &snapshot.zones[0];
        assert_eq!((zone.name.as_str(), zone.item_bytes, zone.used(), zone.items()), ("malloc-48", 48, 50, 170));
        assert_eq!((zone.cached(), zone.free()), (6, 120));
        assert!(!snapshot.zones_live);
    }

    fn error(bytes: &[u8]) -> String {
        match Object::from_bytes(bytes).and_then(|object| object.snapshot()) {
            Ok(_) => "none".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn errors_name_offset_and_version() {
        let good = example();
        let check = |at: u64, value: u64, expected: &str| {
            let found = error(good.clone().word(at, value).bytes());
            assert!(found.contains(expected), "{found}");
        };
        check(0, 0x1234, "not a statistics object: offset 0 holds 0x0000000000001234");
        check(at!(version), 9, "layout version 9; this reader knows version 3");
        let used = at!(types) + offset_of!(Section, used) as u64;
        check(used, 65, "(layout version 3): table of types at offset");
        check(
            at!(types),
            1 << 40,
            "truncated statistics object (layout version 3): table of types at offset 1099511627776",
        );
        let stride = at!(type_lines) + offset_of!(Section, stride) as u64;
        check(stride, 64, "malformed statistics object (layout version 3): type lines at offset");
        assert_eq!(error(&good.bytes()[..100]).find("truncated"), Some(0));
        assert_eq!(error(&good.bytes()[..good.bytes().len() - 4096 * 2]).find("truncated"), Some(0));
        assert_eq!(error(&[]).find("truncated"), Some(0));
        assert_eq!(error(b"not an object at all").find("not a statistics object"), Some(0));
    }

    #[test]
    fn a_report_is_shown_up_to_its_stored_length() {
        let object = |b: &mut Builder| Object::from_bytes(b.bytes()).unwrap().header().unwrap();
        assert_eq!(object(&mut example()).report, None);
        let header = object(example().report("double free of 0x10"));
        assert_eq!((header.report.as_deref(), header.misuses), (Some("double free of 0x10"), 1));
        let header = object(example().report("x").half(at!(report_len), u32::MAX));
        assert_eq!(header.report.as_deref(), Some("x"));
    }

    #[test]
    fn an_object_without_a_name_is_copied_from_its_program() {
        let mut b = example();
        b.identity(std::process::id(), 1, 0, "/usr/bin/example");
        // SAFETY: a NUL-terminated name.
        let fd = unsafe { libc::memfd_create(c"kernmalloc-stats".as_ptr(), 0) };
        assert!(fd >= 0);
        // SAFETY: the descriptor was just made and is nobody else's.
        let mut file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
        std::io::Write::write_all(&mut file, b.bytes()).unwrap();
        let _mapped = Map::of_file(&file).unwrap();
        drop(file);

        let object = Object::open_pid(std::process::id()).unwrap();
        assert_eq!((object.pid(), object.path()), (Some(std::process::id()), None));
        let snapshot = object.snapshot().unwrap();
        let expected = Object::from_bytes(b.bytes()).unwrap().snapshot().unwrap();
        assert_eq!((snapshot.types, snapshot.libs), (expected.types, expected.libs));
        assert!(crate::find_programs().iter().any(|found| found.pid == std::process::id()));
    }

    /// Two slots, each freeing what the other allocated, while a reader looks: a reader that took allocations before frees would see
    /// more frees than allocations, sooner or later.
    #[test]
    fn a_running_program_never_has_less_than_nothing() {
        use std::sync::atomic::{AtomicBool, Ordering};

        let mut b = Builder::new(2);
        b.ty(abi::type_kind::STATIC, abi::NO_LIB, 0, "temp", &[]);
        let len = b.bytes().len();
        let mut shared = Map::zeroed(len).unwrap();
        shared.fill(0, len as u64).unwrap().copy_from_slice(b.bytes());
        let lines = shared.u64("", at!(type_lines)).unwrap();
        let stride = shared.u64("", at!(type_lines) + offset_of!(Section, stride) as u64).unwrap();
        let slots = [shared.slot_line(lines).unwrap(), shared.slot_line(lines + stride).unwrap()];
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: 1. rows of the object, which `shared` keeps mapped.
                let rows = slots.map(|slot| unsafe { abi::Row::new(slot) });
                while !stop.load(Ordering::Relaxed) {
                    for (from, to) in [(0, 1), (1, 0)] {
                        // SAFETY: 1. there is a type 0.
                        unsafe {
                            rows[from].line(0).count_alloc(48, 40, 1 << 2);
                            rows[to].count_free(0, abi::FreeSize::new(48), 0);
                        }
                    }
                }
            });
            let mut wrong = None;
            for _ in 0..20_000 {
                let totals = read_snapshot(&shared, &shared).unwrap().types[0].totals;
                let negative = (totals.in_use() as i64) < 0 || (totals.bytes_in_use() as i64) < 0;
                wrong = wrong.or(negative.then_some(totals));
            }
            // First of all: a failure must not leave the writer running.
            stop.store(true, Ordering::Relaxed);
            assert_eq!(wrong, None);
        });
        let totals = read_snapshot(&shared, &shared).unwrap().types[0].totals;
        assert_eq!((totals.in_use(), totals.bytes_in_use()), (0, 0));
        assert!(totals.allocs > 0 && totals.bytes_requested == totals.allocs * 40);
    }

    #[test]
    fn a_pid_that_cannot_be_opened() {
        assert!(matches!(Object::open_pid(u32::MAX / 2), Err(Error::NoSuchProcess { .. })));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let e = Object::open_pid(child.id()).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
        let expected = "is not under kernmalloc; start it with: kernmalloc run --";
        assert!(matches!(e, Error::NotUnder { .. }) && e.to_string().contains(expected), "{e}");
    }

    proptest! {
        /// Whatever the bytes, reading ends in figures or in an error. (That it reads nothing beyond the end is the
        /// map's part: its last page ends the mapping, and the next is not ours.)
        #[test]
        fn mutated_objects_never_panic(
            words in prop::collection::vec((0u64..1100, prop_oneof![
                any::<u64>(), 0u64..100_000, Just(u64::MAX), Just(1 << 63), Just(0)
            ]), 1..6),
            cut in prop_oneof![Just(usize::MAX), 0usize..40_000],
        ) {
            let mut b = example();
            for (index, value) in words {
                // Not the magic word and version: those are refused at once.
                b.word(16 + index * 8, value);
            }
            let bytes = &b.bytes()[..cut.min(b.bytes().len())];
            if let Ok(object) = Object::from_bytes(bytes)
                && let Ok(snapshot) = object.snapshot()
            {
                let _ = snapshot.by_library();
                let _ = snapshot.zones.iter().map(Zone::free).max();
            }
        }
    }
}
