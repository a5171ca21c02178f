//! libmemstat(3): `memstat.h`. The figures of this program's own allocator, types of malloc(9) and zones of zone(9), as
//! a list.
//!
//! A query walks types or zones and writes what it finds into the list's entries, which it makes where there are none;
//! so a second query brings the list up to date, and what a caller has attached to an entry stays. An entry whose type
//! or zone is gone keeps its last figures.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::ptr::{NonNull, null_mut};

use abi::Ordering;
use kern::TypeId;
use kern::malloc::{Flags, NoWait};
use platform::Platform as _;

use crate::Host;
use crate::types::M_MEMSTAT;

const ALLOCATOR_UNKNOWN: c_int = 0;
const ALLOCATOR_MALLOC: c_int = 1;
const ALLOCATOR_UMA: c_int = 2;
const ALLOCATOR_ANY: c_int = 255;

const ERROR_UNDEFINED: c_int = 0;
const ERROR_NOMEMORY: c_int = 1;
const ERROR_KVM: c_int = 6;

/// `MEMSTAT_MAXCALLER`: words of each kind that a caller can keep with an entry.
const MAX_CALLER: usize = 16;

/// What `struct memory_type_list *` points at.
pub struct TypeList {
    first: *mut MemoryType,
    last: *mut MemoryType,
    error: c_int,
    /// Queries so far: an entry is of the present one, or is yet to be found again.
    query: u64,
}

/// What a caller keeps.
#[derive(Clone, Copy)]
struct Caller {
    pointers: [*mut c_void; MAX_CALLER],
    numbers: [u64; MAX_CALLER],
}

impl Caller {
    const NONE: Self = Self { pointers: [null_mut(); MAX_CALLER], numbers: [0; MAX_CALLER] };
}

/// Figures of an entry, named as the functions that return them.
#[derive(Clone, Copy, Default)]
struct Figures {
    countlimit: u64,
    byteslimit: u64,
    sizemask: u64,
    size: u64,
    rsize: u64,
    memalloced: u64,
    memfreed: u64,
    numallocs: u64,
    numfrees: u64,
    bytes: u64,
    count: u64,
    free: u64,
    failures: u64,
    sleeps: u64,
    xdomain: u64,
    zonefree: u64,
    kegfree: u64,
}

/// Figures of an entry on one CPU.
#[derive(Clone, Copy, Default)]
struct CpuFigures {
    memalloced: u64,
    memfreed: u64,
    numallocs: u64,
    numfrees: u64,
    sizemask: u64,
    free: u64,
}

#[derive(Clone, Copy)]
struct Cpu {
    figures: CpuFigures,
    caller: Caller,
}

/// What `struct memory_type *` points at; its CPUs lie behind it in the same block.
pub struct MemoryType {
    next: *mut MemoryType,
    query: u64,
    allocator: c_int,
    name: [u8; 32],
    figures: Figures,
    caller: Caller,
    cpus: usize,
}
const _: () = assert!(size_of::<MemoryType>().is_multiple_of(align_of::<Cpu>()) && align_of::<MemoryType>() <= 16);

impl MemoryType {
    /// A CPU's figures, if there is such a CPU.
    ///
    /// # Safety
    /// 1. `this` is an entry of a list.
    unsafe fn cpu<'a>(this: *const Self, cpu: c_int) -> Option<&'a mut Cpu> {
        // SAFETY: 1.; as many lie behind the entry, each written when it was made. Threads that share a list take turns
        // (libmemstat(3) has no locks).
        unsafe {
            let index = usize::try_from(cpu).ok().filter(|index| *index < (*this).cpus)?;
            Some(&mut *this.cast_mut().add(1).cast::<Cpu>().add(index))
        }
    }
}

/// Writes what it finds into a list, or says which error stopped it.
///
/// # Safety
/// 1. It is a list.
type Query = unsafe fn(*mut TypeList) -> Result<(), c_int>;

impl TypeList {
    /// The entry that this query is to write for a type or zone: one of the same name that it has not written yet, or a
    /// new one.
    ///
    /// # Safety
    /// 1. `this` is a list.
    unsafe fn entry<H: Host>(this: *mut Self, allocator: c_int, name: [u8; 32]) -> Option<*mut MemoryType> {
        let cpus = H::malloc().system().ids();
        // SAFETY: 1., and entries of it.
        unsafe {
            let mut at = (*this).first;
            while let Some(entry) = at.as_mut() {
                if entry.allocator == allocator && entry.name == name && entry.query != (*this).query {
                    entry.query = (*this).query;
                    return Some(at);
                }
                at = entry.next;
            }
            let bytes = size_of::<MemoryType>() + cpus * size_of::<Cpu>();
            let block = H::malloc().malloc(&M_MEMSTAT, bytes, NoWait, Flags::NONE)?;
            let entry = block.cast::<MemoryType>();
            entry.write(MemoryType {
                next: null_mut(),
                query: (*this).query,
                allocator,
                name,
                figures: Figures::default(),
                caller: Caller::NONE,
                cpus,
            });
            let first: NonNull<Cpu> = entry.add(1).cast();
            for cpu in 0..cpus {
                first.add(cpu).write(Cpu { figures: CpuFigures::default(), caller: Caller::NONE });
            }
            match (*this).last.as_mut() {
                Some(last) => last.next = entry.as_ptr(),
                None => (*this).first = entry.as_ptr(),
            }
            (*this).last = entry.as_ptr();
            Some(entry.as_ptr())
        }
    }

    /// # Safety
    /// 1. `this` is a list.
    unsafe fn query_malloc<H: Host>(this: *mut Self) -> Result<(), c_int> {
        let system = H::malloc().system();
        // SAFETY: 1.
        unsafe { (*this).query += 1 };
        let used = system.header().types.used.load(Ordering::Acquire) as usize;
        for id in (0..used).filter_map(TypeId::new) {
            let record = system.type_record(id);
            let totals = system.totals(id);
            let is_gone = record.flags.load(Ordering::Relaxed) & abi::type_flag::GONE != 0 && totals.in_use() == 0;
            if is_gone || abi::c_text(&record.name).is_empty() {
                // Its module left nothing; or a place in a program, which no name stands for.
                continue;
            }
            // SAFETY: 1.
            let entry = unsafe { Self::entry::<H>(this, ALLOCATOR_MALLOC, record.name) }.ok_or(ERROR_NOMEMORY)?;
            let figures = Figures {
                byteslimit: record.limit_bytes.load(Ordering::Relaxed),
                sizemask: totals.size_mask,
                memalloced: totals.bytes_allocated,
                memfreed: totals.bytes_freed,
                numallocs: totals.allocs,
                numfrees: totals.frees,
                bytes: totals.bytes_in_use(),
                count: totals.in_use(),
                failures: record.failures.load(Ordering::Relaxed),
                sleeps: record.limit_blocks.load(Ordering::Relaxed) + record.map_blocks.load(Ordering::Relaxed),
                ..Figures::default()
            };
            // SAFETY: an entry.
            unsafe { (*entry).figures = figures };
            Self::each_cpu::<H>(entry, |figures, slot| {
                let more = system.slot_totals(slot, id);
                figures.memalloced = figures.memalloced.wrapping_add(more.bytes_allocated);
                figures.memfreed = figures.memfreed.wrapping_add(more.bytes_freed);
                figures.numallocs = figures.numallocs.wrapping_add(more.allocs);
                figures.numfrees = figures.numfrees.wrapping_add(more.frees);
                figures.sizemask |= more.size_mask;
            });
        }
        Ok(())
    }

    /// # Safety
    /// 1. `this` is a list.
    unsafe fn query_uma<H: Host>(this: *mut Self) -> Result<(), c_int> {
        // SAFETY: 1.
        unsafe { (*this).query += 1 };
        let mut result = Ok(());
        H::malloc().system().each_zone_view(|zone| {
            let found = zone.figures();
            // SAFETY: 1.
            let Some(entry) = (unsafe { Self::entry::<H>(this, ALLOCATOR_UMA, found.name) }) else {
                result = Err(ERROR_NOMEMORY);
                return;
            };
            let zonefree = found.cached + found.depot;
            let bytes_of = |items: u64| items.wrapping_mul(found.item_bytes);
            let count = found.allocs.wrapping_sub(found.frees);
            let figures = Figures {
                countlimit: found.limit,
                byteslimit: bytes_of(found.limit),
                size: found.item_bytes,
                rsize: found.stride_bytes,
                memalloced: bytes_of(found.allocs),
                memfreed: bytes_of(found.frees),
                numallocs: found.allocs,
                numfrees: found.frees,
                bytes: bytes_of(count),
                count,
                free: zonefree + found.slab_free,
                failures: found.fails,
                sleeps: found.sleeps,
                xdomain: found.xdomain,
                zonefree,
                kegfree: found.slab_free,
                ..Figures::default()
            };
            // SAFETY: an entry.
            unsafe { (*entry).figures = figures };
            Self::each_cpu::<H>(entry, |figures, slot| {
                let more = zone.slot(slot);
                figures.numallocs = figures.numallocs.wrapping_add(more.allocs);
                figures.numfrees = figures.numfrees.wrapping_add(more.frees);
                figures.memalloced = bytes_of(figures.numallocs);
                figures.memfreed = bytes_of(figures.numfrees);
                figures.free += more.cached;
            });
        });
        result
    }

    /// Writes the figures of each CPU anew: `add` adds those of one of its slots. What goes by the shared slot is no
    /// CPU's.
    fn each_cpu<H: Host>(entry: *mut MemoryType, mut add: impl FnMut(&mut CpuFigures, usize)) {
        let system = H::malloc().system();
        let (ids, rows) = (system.ids(), system.rows());
        for id in 0..ids {
            // SAFETY: 1. an entry, which the caller has just found or made.
            let Some(cpu) = (unsafe { MemoryType::cpu(entry, id as c_int) }) else { return };
            cpu.figures = CpuFigures::default();
            (0..rows).for_each(|row| add(&mut cpu.figures, row * ids + id));
        }
    }

    /// Runs queries and keeps what went wrong.
    ///
    /// # Safety
    /// 1. `this` is a list.
    unsafe fn ask<H: Host>(this: *mut Self, queries: &[Query]) -> c_int {
        let booted = if H::boot() { Ok(()) } else { Err(ERROR_NOMEMORY) };
        // SAFETY: 1.
        let result = booted.and_then(|()| queries.iter().try_for_each(|query| unsafe { query(this) }));
        match result {
            Ok(()) => 0,
            Err(error) => {
                // SAFETY: 1.
                unsafe { (*this).error = error };
                -1
            }
        }
    }
}

/// memstat_strerror(3): the text of an error number.
pub extern "C" fn kernmalloc_memstat_strerror(error: c_int) -> *const c_char {
    const TEXTS: [&CStr; 9] = [
        c"Undefined error",
        c"Cannot allocate memory",
        c"Version mismatch",
        c"Permission denied",
        c"Too many CPUs",
        c"Data format error",
        c"There is no kvm(3) on this system",
        c"Kernel symbol not found",
        c"Short read of kernel memory",
    ];
    let text = usize::try_from(error).ok().and_then(|index| TEXTS.get(index));
    text.map_or(c"Unknown error".as_ptr(), |text| text.as_ptr())
}

/// memstat_mtl_alloc(3): an empty list, or null.
pub extern "C" fn kernmalloc_memstat_mtl_alloc<H: Host>() -> *mut TypeList {
    let memory = H::boot().then(|| H::malloc().malloc(&M_MEMSTAT, size_of::<TypeList>(), NoWait, Flags::NONE));
    let Some(block) = memory.flatten() else {
        <H::P>::out_of_memory();
        return null_mut();
    };
    let list = block.as_ptr().cast::<TypeList>();
    // SAFETY: fresh memory of that size, aligned to 16.
    unsafe { list.write(TypeList { first: null_mut(), last: null_mut(), error: ERROR_UNDEFINED, query: 0 }) };
    list
}

/// memstat_mtl_free(3): the list and all its entries.
///
/// # Safety
/// 1. `list` is a list, or null; nobody uses it or its entries any more.
pub unsafe extern "C" fn kernmalloc_memstat_mtl_free<H: Host>(list: *mut TypeList) {
    // SAFETY: 1.
    unsafe {
        let mut entry = list.as_ref().map_or(null_mut(), |list| list.first);
        while !entry.is_null() {
            let next = (*entry).next;
            H::malloc().free(entry.cast());
            entry = next;
        }
        H::malloc().free(list.cast());
    }
}

/// memstat_mtl_first(3): the first entry, or null.
///
/// # Safety
/// 1. `list` is a list.
pub unsafe extern "C" fn kernmalloc_memstat_mtl_first(list: *mut TypeList) -> *mut MemoryType {
    // SAFETY: 1.
    unsafe { (*list).first }
}

/// memstat_mtl_next(3): the entry after, or null.
///
/// # Safety
/// 1. `entry` is an entry of a list.
pub unsafe extern "C" fn kernmalloc_memstat_mtl_next(entry: *mut MemoryType) -> *mut MemoryType {
    // SAFETY: 1.
    unsafe { (*entry).next }
}

/// memstat_mtl_find(3): the first entry of this name and allocator (or of any), or null.
///
/// # Safety
/// 1. `list` is a list. 2. `name` ends with a NUL.
pub unsafe extern "C" fn kernmalloc_memstat_mtl_find(
    list: *mut TypeList,
    allocator: c_int,
    name: *const c_char,
) -> *mut MemoryType {
    // SAFETY: 2.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    // SAFETY: 1., and entries of it.
    unsafe {
        let mut at = (*list).first;
        while let Some(entry) = at.as_ref() {
            if (allocator == ALLOCATOR_ANY || allocator == entry.allocator) && abi::c_text(&entry.name) == name {
                return at;
            }
            at = entry.next;
        }
    }
    null_mut()
}

/// memstat_mtl_geterror(3): what the last query that failed says.
///
/// # Safety
/// 1. `list` is a list.
pub unsafe extern "C" fn kernmalloc_memstat_mtl_geterror(list: *mut TypeList) -> c_int {
    // SAFETY: 1.
    unsafe { (*list).error }
}

/// memstat_sysctl_malloc(3): types of malloc(9) into the list. 0, or -1.
///
/// # Safety
/// 1. `list` is a list.
pub unsafe extern "C" fn kernmalloc_memstat_sysctl_malloc<H: Host>(list: *mut TypeList, _flags: c_int) -> c_int {
    // SAFETY: 1.
    unsafe { TypeList::ask::<H>(list, &[TypeList::query_malloc::<H>]) }
}

/// memstat_sysctl_uma(3): zones into the list. 0, or -1.
///
/// # Safety
/// 1. `list` is a list.
pub unsafe extern "C" fn kernmalloc_memstat_sysctl_uma<H: Host>(list: *mut TypeList, _flags: c_int) -> c_int {
    // SAFETY: 1.
    unsafe { TypeList::ask::<H>(list, &[TypeList::query_uma::<H>]) }
}

/// memstat_sysctl_all(3): both. 0, or -1.
///
/// # Safety
/// 1. `list` is a list.
pub unsafe extern "C" fn kernmalloc_memstat_sysctl_all<H: Host>(list: *mut TypeList, _flags: c_int) -> c_int {
    // SAFETY: 1.
    unsafe { TypeList::ask::<H>(list, &[TypeList::query_malloc::<H>, TypeList::query_uma::<H>]) }
}

/// memstat_kvm_all(3), memstat_kvm_malloc(3), memstat_kvm_uma(3): there is no kvm(3) to read through, which is what the
/// error says.
///
/// # Safety
/// 1. `list` is a list.
pub unsafe extern "C" fn kernmalloc_memstat_kvm(list: *mut TypeList, _kvm: *mut c_void) -> c_int {
    // SAFETY: 1.
    unsafe { (*list).error = ERROR_KVM };
    -1
}

/// memstat_get_name(3).
///
/// # Safety
/// 1. `entry` is an entry of a list.
pub unsafe extern "C" fn kernmalloc_memstat_get_name(entry: *const MemoryType) -> *const c_char {
    // SAFETY: 1.; the name stays as long as the entry.
    unsafe { (&raw const (*entry).name).cast() }
}

/// memstat_get_allocator(3).
///
/// # Safety
/// 1. `entry` is an entry of a list, or null.
pub unsafe extern "C" fn kernmalloc_memstat_get_allocator(entry: *const MemoryType) -> c_int {
    // SAFETY: 1.
    unsafe { entry.as_ref() }.map_or(ALLOCATOR_UNKNOWN, |entry| entry.allocator)
}

macro_rules! getters {
    ($($function:ident: $field:ident),* $(,)?) => {
        $(
            /// An accessor of libmemstat(3).
            ///
            /// # Safety
            /// 1. `entry` is an entry of a list.
            pub unsafe extern "C" fn $function(entry: *const MemoryType) -> u64 {
                // SAFETY: 1.
                unsafe { (*entry).figures.$field }
            }
        )*
    };
}

getters![
    kernmalloc_memstat_get_countlimit: countlimit,
    kernmalloc_memstat_get_byteslimit: byteslimit,
    kernmalloc_memstat_get_sizemask: sizemask,
    kernmalloc_memstat_get_size: size,
    kernmalloc_memstat_get_rsize: rsize,
    kernmalloc_memstat_get_memalloced: memalloced,
    kernmalloc_memstat_get_memfreed: memfreed,
    kernmalloc_memstat_get_numallocs: numallocs,
    kernmalloc_memstat_get_numfrees: numfrees,
    kernmalloc_memstat_get_bytes: bytes,
    kernmalloc_memstat_get_count: count,
    kernmalloc_memstat_get_free: free,
    kernmalloc_memstat_get_failures: failures,
    kernmalloc_memstat_get_sleeps: sleeps,
    kernmalloc_memstat_get_xdomain: xdomain,
    kernmalloc_memstat_get_zonefree: zonefree,
    kernmalloc_memstat_get_kegfree: kegfree,
];

macro_rules! cpu_getters {
    ($($function:ident: $field:ident),* $(,)?) => {
        $(
            /// An accessor of libmemstat(3): of one CPU; 0 where there is no such CPU.
            ///
            /// # Safety
            /// 1. `entry` is an entry of a list.
            pub unsafe extern "C" fn $function(entry: *const MemoryType, cpu: c_int) -> u64 {
                // SAFETY: 1.
                unsafe { MemoryType::cpu(entry, cpu) }.map_or(0, |cpu| cpu.figures.$field)
            }
        )*
    };
}

cpu_getters![
    kernmalloc_memstat_get_percpu_memalloced: memalloced,
    kernmalloc_memstat_get_percpu_memfreed: memfreed,
    kernmalloc_memstat_get_percpu_numallocs: numallocs,
    kernmalloc_memstat_get_percpu_numfrees: numfrees,
    kernmalloc_memstat_get_percpu_sizemask: sizemask,
    kernmalloc_memstat_get_percpu_free: free,
];

/// Where a caller's words are: of the entry itself with `cpu` negative.
///
/// # Safety
/// 1. `entry` is an entry of a list.
unsafe fn caller<'a>(entry: *const MemoryType, cpu: Option<c_int>) -> Option<&'a mut Caller> {
    // SAFETY: 1.; see `MemoryType::cpu`.
    unsafe {
        match cpu {
            None => Some(&mut (*entry.cast_mut()).caller),
            Some(cpu) => MemoryType::cpu(entry, cpu).map(|cpu| &mut cpu.caller),
        }
    }
}

macro_rules! caller_words {
    ($($get:ident, $set:ident: $field:ident, $type:ty, $none:expr, ($($cpu:ident)?);)*) => {
        $(
            /// The caller's own word; nothing for an index from `MEMSTAT_MAXCALLER` on.
            ///
            /// # Safety
            /// 1. `entry` is an entry of a list.
            pub unsafe extern "C" fn $get(entry: *const MemoryType, $($cpu: c_int,)? index: c_int) -> $type {
                // SAFETY: 1.
                let words = unsafe { caller(entry, None$(.or(Some($cpu)))?) };
                let word = words.and_then(|words| words.$field.get(usize::try_from(index).ok()?).copied());
                word.unwrap_or($none)
            }

            /// Sets it; an index from `MEMSTAT_MAXCALLER` on is ignored.
            ///
            /// # Safety
            /// 1. `entry` is an entry of a list.
            pub unsafe extern "C" fn $set(entry: *mut MemoryType, $($cpu: c_int,)? index: c_int, value: $type) {
                // SAFETY: 1.
                let words = unsafe { caller(entry, None$(.or(Some($cpu)))?) };
                if let Some(word) = words.and_then(|words| words.$field.get_mut(usize::try_from(index).ok()?)) {
                    *word = value;
                }
            }
        )*
    };
}

caller_words! {
    kernmalloc_memstat_get_caller_pointer, kernmalloc_memstat_set_caller_pointer: pointers, *mut c_void, null_mut(), ();
    kernmalloc_memstat_get_caller_uint64, kernmalloc_memstat_set_caller_uint64: numbers, u64, 0, ();
    kernmalloc_memstat_get_percpu_caller_pointer, kernmalloc_memstat_set_percpu_caller_pointer:
        pointers, *mut c_void, null_mut(), (cpu);
    kernmalloc_memstat_get_percpu_caller_uint64, kernmalloc_memstat_set_percpu_caller_uint64: numbers, u64, 0, (cpu);
}
