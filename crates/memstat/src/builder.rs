//! Writes synthetic objects through the layout, for tests: small, in ordinary memory.

use std::mem::{offset_of, size_of};

use abi::{Header, LibRecord, Section, SlotLine, TypeLine, TypeRecord, ZoneLine, ZoneRecord};

/// One slot's part of a type, in the order of [`TypeLine`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Line {
    /// Blocks allocated.
    pub allocs: u64,
    /// Blocks freed.
    pub frees: u64,
    /// Bytes allocated.
    pub bytes_allocated: u64,
    /// Bytes freed.
    pub bytes_freed: u64,
    /// Bytes asked for.
    pub bytes_requested: u64,
    /// Sizes used.
    pub size_mask: u64,
    /// Peak of the line.
    pub peak_bytes: i64,
}

/// Bytes of an object under construction.
#[derive(Clone, Debug)]
pub struct Builder {
    bytes: Vec<u8>,
    slots: u64,
    counts: [u64; 3],
}

/// Room in the object, in records: enough for tests.
const LIBS: u64 = 8;
const TYPES: u64 = 64;
const ZONES: u64 = 64;

const LIBS_AT: u64 = abi::HEADER_BYTES;
const TYPES_AT: u64 = (LIBS_AT + LIBS * size_of::<LibRecord>() as u64).next_multiple_of(64);
const ZONES_AT: u64 = TYPES_AT + TYPES * size_of::<TypeRecord>() as u64;
const ZONE_LINES_AT: u64 = ZONES_AT + ZONES * size_of::<ZoneRecord>() as u64;
const ZONE_ROW: u64 = ZONES * size_of::<ZoneLine>() as u64;
const TYPE_ROW: u64 = (size_of::<SlotLine>() + TYPES as usize * size_of::<TypeLine>()) as u64;

macro_rules! at {
    ($($field:tt).+) => { offset_of!(Header, $($field).+) as u64 };
}

impl Builder {
    /// An object of pid 4242 with this many slots and nothing in it.
    #[must_use]
    pub fn new(slots: u64) -> Self {
        let type_lines_at = (ZONE_LINES_AT + slots * ZONE_ROW).next_multiple_of(64);
        let total = type_lines_at + slots * TYPE_ROW;
        let mut this = Self { bytes: vec![0; total as usize], slots, counts: [0; 3] };
        this.word(at!(magic), abi::MAGIC);
        this.half(at!(version), abi::VERSION);
        this.half(at!(state), abi::state::RUNNING);
        this.word(at!(total_bytes), total);
        this.section(at!(libs), LIBS_AT, size_of::<LibRecord>() as u64, LIBS, 0);
        this.section(at!(types), TYPES_AT, size_of::<TypeRecord>() as u64, TYPES, 0);
        this.section(at!(zones), ZONES_AT, size_of::<ZoneRecord>() as u64, ZONES, 0);
        this.section(at!(zone_lines), ZONE_LINES_AT, ZONE_ROW, slots, 0);
        this.section(at!(type_lines), type_lines_at, TYPE_ROW, slots, slots);
        this.half(at!(pid), 4242);
        this.half(at!(parent_pid), 1);
        this.half(at!(attribution), abi::attribution::SITE);
        this.half(at!(page_bytes), 4096);
        this.text(at!(exe), "/usr/bin/example");
        this
    }

    /// Stores a 64-bit word.
    pub fn word(&mut self, at: u64, value: u64) -> &mut Self {
        self.bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Stores a 32-bit word.
    pub fn half(&mut self, at: u64, value: u32) -> &mut Self {
        self.bytes[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Stores text with its NUL.
    pub fn text(&mut self, at: u64, text: &str) -> &mut Self {
        let at = at as usize;
        self.bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        self.bytes[at + text.len()] = 0;
        self
    }

    fn section(&mut self, at: u64, offset: u64, stride: u64, capacity: u64, used: u64) {
        self.word(at + offset_of!(Section, offset) as u64, offset);
        self.word(at + offset_of!(Section, stride) as u64, stride);
        self.word(at + offset_of!(Section, capacity) as u64, capacity);
        self.word(at + offset_of!(Section, used) as u64, used);
    }

    /// Sets pid, parent and generation.
    pub fn identity(&mut self, pid: u32, parent_pid: u32, generation: u32, exe: &str) -> &mut Self {
        self.half(at!(pid), pid).half(at!(parent_pid), parent_pid).half(at!(generation), generation);
        self.text(at!(exe), exe)
    }

    /// Stores a misuse report.
    pub fn report(&mut self, text: &str) -> &mut Self {
        self.text(at!(report), text).half(at!(report_len), text.len() as u32).word(at!(misuses), 1)
    }

    /// Says that the program's malloc is not ours.
    pub fn foreign(&mut self) -> &mut Self {
        self.half(at!(foreign_malloc), 1)
    }

    fn count(&mut self, table: usize, section_at: u64) -> u64 {
        let index = self.counts[table];
        self.counts[table] += 1;
        let used = self.counts[table];
        self.word(section_at + offset_of!(Section, used) as u64, used);
        index
    }

    /// Adds a library; returns its index.
    pub fn lib(&mut self, path: &str, build_id: &[u8], flags: u32) -> u32 {
        let index = self.count(0, at!(libs));
        let at = LIBS_AT + index * size_of::<LibRecord>() as u64;
        self.text(at + offset_of!(LibRecord, path) as u64, path);
        let id_at = (at + offset_of!(LibRecord, build_id) as u64) as usize;
        self.bytes[id_at..id_at + build_id.len()].copy_from_slice(build_id);
        self.half(at + offset_of!(LibRecord, build_id_len) as u64, build_id.len() as u32);
        self.half(at + offset_of!(LibRecord, flags) as u64, flags);
        index as u32
    }

    /// Adds a type with one line for each of the first slots; returns its index.
    pub fn ty(&mut self, kind: u32, lib: u32, offset: u64, name: &str, lines: &[Line]) -> u64 {
        let index = self.count(1, at!(types));
        let at = Self::type_at(index);
        self.half(at + offset_of!(TypeRecord, kind) as u64, kind);
        self.half(at + offset_of!(TypeRecord, lib) as u64, lib);
        self.word(at + offset_of!(TypeRecord, offset) as u64, offset);
        self.text(at + offset_of!(TypeRecord, name) as u64, name);
        for (slot, line) in lines.iter().enumerate() {
            let row = self.bytes.len() as u64 - (self.slots - slot as u64) * TYPE_ROW;
            let at = row + (size_of::<SlotLine>() + index as usize * size_of::<TypeLine>()) as u64;
            self.word(at + offset_of!(TypeLine, allocs) as u64, line.allocs);
            self.word(at + offset_of!(TypeLine, frees) as u64, line.frees);
            self.word(at + offset_of!(TypeLine, bytes_allocated) as u64, line.bytes_allocated);
            self.word(at + offset_of!(TypeLine, bytes_freed) as u64, line.bytes_freed);
            self.word(at + offset_of!(TypeLine, bytes_requested) as u64, line.bytes_requested);
            self.word(at + offset_of!(TypeLine, size_mask) as u64, line.size_mask);
            self.word(at + offset_of!(TypeLine, peak_bytes) as u64, line.peak_bytes as u64);
        }
        index
    }

    /// Where a type's record is, to store more into it.
    #[must_use]
    pub fn type_at(index: u64) -> u64 {
        TYPES_AT + index * size_of::<TypeRecord>() as u64
    }

    /// Adds a zone of 4 KiB slabs; `counts` are slabs, free in slabs, in depots, allocations and frees.
    pub fn zone(&mut self, name: &str, item_bytes: u32, counts: [u64; 5]) -> u64 {
        let [slabs, slab_free, depot, allocs, frees] = counts;
        let index = self.count(2, at!(zones));
        let at = ZONES_AT + index * size_of::<ZoneRecord>() as u64;
        self.text(at + offset_of!(ZoneRecord, name) as u64, name);
        self.half(at + offset_of!(ZoneRecord, item_bytes) as u64, item_bytes);
        self.half(at + offset_of!(ZoneRecord, slab_bytes) as u64, 4096);
        self.half(at + offset_of!(ZoneRecord, items_per_slab) as u64, 4096 / item_bytes.max(1));
        self.half(at + offset_of!(ZoneRecord, flags) as u64, abi::zone_flag::MALLOC);
        self.word(at + offset_of!(ZoneRecord, slabs) as u64, slabs);
        self.word(at + offset_of!(ZoneRecord, slab_free) as u64, slab_free);
        self.word(at + offset_of!(ZoneRecord, depot) as u64, depot);
        let line_at = ZONE_LINES_AT + index * size_of::<ZoneLine>() as u64;
        self.word(line_at + offset_of!(ZoneLine, allocs) as u64, allocs);
        self.word(line_at + offset_of!(ZoneLine, frees) as u64, frees);
        index
    }

    /// The object's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
