//! The figures, read from inside the program. Nothing here allocates, locks or sleeps.

use kern::TypeId;

use abi::type_kind;
use hosted::SYSTEM;

/// What a row of the statistics stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A malloc type with a name.
    Named,
    /// A call site: an address in the program or in a library.
    CallSite,
    /// All that a library allocated (`kern.malloc.attribution=library`).
    Library,
    /// What found no row of its own in a full table.
    Rest,
}

/// The figures of one malloc type or call site.
///
/// They are exact while nothing moves. Read while other threads allocate they are never contradictory: no block is counted
/// as freed that is not counted as allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TypeStats {
    /// Short description; empty for call sites and libraries.
    pub name: &'static str,
    /// What the row stands for.
    pub kind: Kind,
    /// Of a call site or a library: the path of the file, as far as it is UTF-8.
    pub library: Option<&'static str>,
    /// Of a call site: the return address in that file (as its symbol table counts), else 0.
    pub offset: u64,
    /// Blocks in use.
    pub in_use: u64,
    /// Bytes in use, as served: rounded up to the size class.
    pub bytes_in_use: u64,
    /// Most bytes in use at one time: exact for what one thread did alone, otherwise up to 32 KiB and a block too high for each
    /// further CPU slot that took part.
    pub high_water_bytes: u64,
    /// Blocks allocated since the start.
    pub requests: u64,
    /// Blocks freed since the start.
    pub frees: u64,
    /// Bytes served since the start.
    pub bytes_served: u64,
    /// Bytes asked for since the start.
    pub bytes_requested: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Limit in bytes, 0 for none.
    pub limit_bytes: u64,
    /// Times a request slept on the limit.
    pub limit_blocks: u64,
}

impl TypeStats {
    /// Of a type that was never used.
    pub(crate) const fn unused(name: &'static str) -> Self {
        Self {
            name,
            kind: Kind::Named,
            library: None,
            offset: 0,
            in_use: 0,
            bytes_in_use: 0,
            high_water_bytes: 0,
            requests: 0,
            frees: 0,
            bytes_served: 0,
            bytes_requested: 0,
            failures: 0,
            limit_bytes: 0,
            limit_blocks: 0,
        }
    }

    pub(crate) fn of(id: TypeId) -> Self {
        let record = SYSTEM.type_record(id);
        let totals = SYSTEM.totals(id);
        let count = |counter: &abi::AtomicU64| counter.load(abi::Ordering::Relaxed);
        Self {
            name: text(abi::c_text(&record.name)),
            kind: match record.kind {
                type_kind::STATIC => Kind::Named,
                type_kind::SITE => Kind::CallSite,
                type_kind::LIBRARY => Kind::Library,
                _ => Kind::Rest,
            },
            library: library(record.lib),
            offset: record.offset,
            in_use: totals.in_use(),
            bytes_in_use: totals.bytes_in_use(),
            high_water_bytes: count(&record.high_water_bytes).max(totals.peak_bytes.max(0) as u64),
            requests: totals.allocs,
            frees: totals.frees,
            bytes_served: totals.bytes_allocated,
            bytes_requested: totals.bytes_requested,
            failures: count(&record.failures),
            limit_bytes: count(&record.limit_bytes),
            limit_blocks: count(&record.limit_blocks),
        }
    }
}

/// A name as far as it is text: a path cut in the middle of a character loses that character.
fn text(bytes: &'static [u8]) -> &'static str {
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => core::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
    }
}

fn library(index: u32) -> Option<&'static str> {
    if index == abi::NO_LIB || u64::from(index) >= SYSTEM.header().libs.capacity {
        return None;
    }
    // SAFETY: inside the section, which is mapped for good; the record's path was written before a type named it.
    let record = unsafe { &*SYSTEM.lib_record(index as usize) };
    Some(text(abi::c_text(&record.path)))
}

/// The rows, see [`stats`].
#[derive(Clone, Debug)]
pub struct Stats {
    next: usize,
    end: usize,
}

impl Iterator for Stats {
    type Item = TypeStats;

    fn next(&mut self) -> Option<TypeStats> {
        if self.next == self.end {
            return None;
        }
        let id = TypeId::new(self.next)?;
        self.next += 1;
        Some(TypeStats::of(id))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.end - self.next, Some(self.end - self.next))
    }
}

impl ExactSizeIterator for Stats {}

/// Every row of the program's statistics: the two that are always there ("malloc", for what is credited to nobody, and the row of
/// what found no row), then types and call sites in the order of their first use. Each row is read when the iterator
/// comes to it. What `kernmalloc vmstat -m -p PID` shows of this program. `malloc_type_list` of malloc(9).
///
/// ```
/// # #[global_allocator] static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;
/// for row in kernmalloc::stats().filter(|row| row.bytes_in_use > 0) {
///     println!("{:>10} {:>6} {}", row.bytes_in_use, row.in_use, row.name);
/// }
/// ```
#[doc(alias = "malloc_type_list")]
#[must_use]
pub fn stats() -> Stats {
    let end = if hosted::boot() { SYSTEM.header().types.used.load(abi::Ordering::Acquire) as usize } else { 0 };
    Stats { next: 0, end }
}

/// The type of this short description that was used first. `malloc_desc2type` of malloc(9).
///
/// ```
/// kernmalloc::malloc_define!(M_JOBS, "jobs", "work to be done");
/// assert!(kernmalloc::find("jobs").is_none()); // never used
/// # let layout = std::alloc::Layout::new::<u64>();
/// let block = M_JOBS.malloc(layout);
/// assert_eq!(kernmalloc::find("jobs").map(|row| row.in_use), Some(1));
/// // SAFETY: from `malloc`, and not used any more.
/// unsafe { kernmalloc::free(block) };
/// ```
#[doc(alias = "malloc_desc2type")]
#[must_use]
pub fn find(name: &str) -> Option<TypeStats> {
    stats().find(|row| row.kind == Kind::Named && row.name == name)
}
