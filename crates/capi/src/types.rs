//! `struct malloc_type`: C's memory with a Rust type in it.
//!
//! `MALLOC_DEFINE` initialises the first words and leaves the rest zero. The first to use the type (its constructor, as a rule)
//! writes a [`MallocType`] into the rest and says so in the state word, which every later use compares.

use core::cell::UnsafeCell;
use core::ffi::{c_char, c_int, c_ulong, c_void};
use core::mem::{MaybeUninit, offset_of};
use core::sync::atomic::{AtomicUsize, Ordering};

use kern::malloc::MallocType;
use platform::{Misuse, MisuseReport, Platform as _};

use crate::{Host, text_of};

/// What `MALLOC_DEFINE` puts into `ks_version`: `M_VERSION` of FreeBSD 13 and later.
const VERSION: c_ulong = 2_020_110_501;
/// Words that the header keeps for us.
const PRIVATE_WORDS: usize = 12;

/// States: as defined, being written, written. The last is no number that memory holds by accident.
const NEW: usize = 0;
const WRITING: usize = 1;
const READY: usize = 0x9a11_0c71_e57a_7e01;

/// `struct malloc_type` of `sys/malloc.h`.
#[repr(C)]
pub struct CType {
    state: AtomicUsize,
    version: c_ulong,
    short: *const c_char,
    long: *const c_char,
    limit_bytes: c_ulong,
    inner: UnsafeCell<MaybeUninit<MallocType>>,
    _room: [usize; PRIVATE_WORDS - size_of::<MallocType>() / size_of::<usize>()],
}
const _: () = assert!(size_of::<MallocType>().is_multiple_of(size_of::<usize>()));
const _: () = assert!(align_of::<MallocType>() == align_of::<usize>(), "the header's words hold a type");
const _: () = assert!(size_of::<CType>() == (5 + PRIVATE_WORDS) * size_of::<usize>(), "as in sys/malloc.h");

// SAFETY: the words are constant but for the state, which is atomic, and `inner`, which is written by whoever moved the state from
// NEW and read once it is READY.
unsafe impl Sync for CType {}

impl CType {
    /// A type that is there without a definition in C.
    #[must_use]
    pub const fn built_in(short: &'static core::ffi::CStr, long: &'static core::ffi::CStr) -> [Self; 1] {
        [Self {
            state: AtomicUsize::new(NEW),
            version: VERSION,
            short: short.as_ptr(),
            long: long.as_ptr(),
            limit_bytes: 0,
            inner: UnsafeCell::new(MaybeUninit::uninit()),
            _room: [0; PRIVATE_WORDS - size_of::<MallocType>() / size_of::<usize>()],
        }]
    }

    /// The type inside, written by the first who asks. `None`, and a report, for what is no type.
    ///
    /// # Safety
    /// 1. `this` points at readable memory that stays while the type is used; at a type, if the words say so.
    #[inline(always)]
    pub(crate) unsafe fn get<H: Host>(this: *const Self) -> Option<&'static MallocType> {
        // SAFETY: 1.
        if !this.is_null() && unsafe { (*this).state.load(Ordering::Acquire) } == READY {
            // SAFETY: 1.; READY: written. It lives until its module goes, which detaches it.
            return Some(unsafe { (*(*this).inner.get()).assume_init_ref() });
        }
        // SAFETY: 1.
        unsafe { Self::get_new::<H>(this) }
    }

    #[cold]
    #[inline(never)]
    unsafe fn get_new<H: Host>(this: *const Self) -> Option<&'static MallocType> {
        // SAFETY: 1. of `get`.
        let Some(it) = (unsafe { this.as_ref::<'static>() }) else {
            bad_type::<H>(this);
            return None;
        };
        loop {
            if it.version != VERSION {
                bad_type::<H>(this);
                return None;
            }
            match it.state.compare_exchange(NEW, WRITING, Ordering::Acquire, Ordering::Acquire) {
                Ok(_) => {
                    // A type is nothing without an allocator.
                    if !H::boot() {
                        it.state.store(NEW, Ordering::Release);
                        return None;
                    }
                    // SAFETY: 1. of `get`: texts of a definition, which live as long as it.
                    let (short, long) = unsafe { (text_of(it.short), text_of(it.long)) };
                    // SAFETY: the state is ours; nobody reads it before it is READY.
                    unsafe {
                        (*it.inner.get()).write(MallocType::with_limit(short, long, it.limit_bytes as usize));
                    }
                    it.state.store(READY, Ordering::Release);
                }
                Err(READY) => {
                    // SAFETY: READY: written.
                    return Some(unsafe { (*it.inner.get()).assume_init_ref() });
                }
                Err(WRITING) => core::hint::spin_loop(),
                Err(_) => {
                    bad_type::<H>(this);
                    return None;
                }
            }
        }
    }

    /// The C object around a type that is inside of one.
    fn around(ty: &'static MallocType) -> *mut Self {
        core::ptr::from_ref(ty).cast::<u8>().wrapping_sub(offset_of!(Self, inner)).cast::<Self>().cast_mut()
    }
}

fn bad_type<H: Host>(at: *const CType) {
    <H::P>::misuse(&MisuseReport {
        what: Misuse::BadType,
        addr: at as usize,
        item: 0,
        item_bytes: 0,
        type_index: None,
        caller: 0,
        freed_by: 0,
        zone_name: [0; 32],
    });
}

/// The constructor of `MALLOC_DEFINE`: attaches the type, unless an earlier constructor has used it already.
///
/// # Safety
/// 1. `ty` is a type, and stays one until [`kernmalloc_type_unload`].
pub unsafe extern "C" fn kernmalloc_type_load<H: Host>(ty: *mut CType) {
    H::type_loads();
    // SAFETY: 1.
    if let Some(ty) = unsafe { CType::get::<H>(ty) }
        && ty.id().is_none()
    {
        // A full table is no error: what it has no row for is credited to the row that says so.
        let _ = H::malloc().attach(ty);
    }
}

/// The destructor of `MALLOC_DEFINE`: detaches the type of a module that goes, with a warning if it leaked. When the whole program
/// ends, nothing: who still frees may, and no module has leaked.
///
/// # Safety
/// 1. `ty` is a type; nobody allocates with it any more, unless the program is ending.
pub unsafe extern "C" fn kernmalloc_type_unload<H: Host>(ty: *mut CType) {
    if H::is_ending() {
        return;
    }
    // SAFETY: 1.
    if let Some(inner) = unsafe { CType::get::<H>(ty) }
        && inner.id().is_some()
    {
        let _ = H::malloc().detach(inner);
    }
}

/// malloc_init, NetBSD's malloc_type_attach: a type that `MALLOC_JUSTDEFINE` made. One that is attached already is reported.
///
/// # Safety
/// 1. `ty` is a type, and stays one until it is detached.
pub unsafe extern "C" fn kernmalloc_malloc_type_attach<H: Host>(ty: *mut CType) {
    // SAFETY: 1.
    if let Some(ty) = unsafe { CType::get::<H>(ty) } {
        let _ = H::malloc().attach(ty);
    }
}

/// malloc_uninit, malloc_type_detach: the opposite. One that is not attached is reported; one that owns memory is warned of.
///
/// # Safety
/// 1. `ty` is a type; nobody allocates with it any more.
pub unsafe extern "C" fn kernmalloc_malloc_type_detach<H: Host>(ty: *mut CType) {
    // SAFETY: 1.
    if let Some(ty) = unsafe { CType::get::<H>(ty) } {
        let _ = H::malloc().detach(ty);
    }
}

/// malloc_type_setlimit(9): the type gets no more while it has so many bytes; 0 lifts the limit.
///
/// # Safety
/// 1. `ty` is a type.
pub unsafe extern "C" fn kernmalloc_malloc_type_setlimit<H: Host>(ty: *mut CType, bytes: c_ulong) {
    // SAFETY: 1.
    if let Some(ty) = unsafe { CType::get::<H>(ty) } {
        H::malloc().set_limit(ty, bytes as usize);
    }
}

/// malloc_desc2type(9): the attached type with this short description, or null.
///
/// # Safety
/// 1. `short` ends with a NUL.
pub unsafe extern "C" fn kernmalloc_malloc_desc2type<H: Host>(short: *const c_char) -> *mut CType {
    // SAFETY: 1.
    let wanted = unsafe { text_of(short) };
    let mut found = core::ptr::null_mut();
    each::<H>(|ty| {
        if ty.name() == wanted {
            found = CType::around(ty);
        }
        found.is_null()
    });
    found
}

/// malloc_type_list(9): calls `visit` for every attached type. A lock is held: `visit` must not use a type for the first time.
///
/// # Safety
/// 1. `visit` may be called with `arg`.
pub unsafe extern "C" fn kernmalloc_malloc_type_list<H: Host>(
    visit: unsafe extern "C" fn(*mut CType, *mut c_void),
    arg: *mut c_void,
) {
    each::<H>(|ty| {
        // SAFETY: 1.
        unsafe { visit(CType::around(ty), arg) };
        true
    });
}

/// The attached types that are inside of C objects: all but our own.
fn each<H: Host>(mut visit: impl FnMut(&'static MallocType) -> bool) {
    H::malloc().for_each_type(|ty| OWN.iter().any(|own| core::ptr::eq(*own, ty)) || visit(ty));
}

/// Owner of the records behind `uma_zone_t` and its like.
pub(crate) static M_HANDLES: MallocType = MallocType::new("capi", "zones, pools and arenas of C");
/// Owner of arenas' boundary tags.
pub(crate) static M_TAGS: MallocType = MallocType::new("vmem", "boundary tags");

/// Owner of what libmemstat(3) has found.
pub(crate) static M_MEMSTAT: MallocType = MallocType::new("memstat", "lists of libmemstat(3)");

static OWN: [&MallocType; 3] = [&M_HANDLES, &M_TAGS, &M_MEMSTAT];

/// Figures of a type, for `memstat.h` and tests: `struct kernmalloc_type_stats`.
#[repr(C)]
pub struct TypeFigures {
    /// Blocks in use.
    pub in_use: u64,
    /// Bytes of those, as served.
    pub bytes_in_use: u64,
    /// Blocks allocated since the start.
    pub allocs: u64,
    /// Blocks freed since the start.
    pub frees: u64,
}

/// The type's figures now, all zero before its first use. 0, or -1 for what is no type.
///
/// # Safety
/// 1. `ty` is a type. 2. `out` may be written to.
pub unsafe extern "C" fn kernmalloc_type_stats<H: Host>(ty: *const CType, out: *mut TypeFigures) -> c_int {
    // SAFETY: 1.
    let Some(ty) = (unsafe { CType::get::<H>(ty) }) else { return -1 };
    let figures = match ty.id() {
        None => TypeFigures { in_use: 0, bytes_in_use: 0, allocs: 0, frees: 0 },
        Some(id) => {
            let totals = H::malloc().system().totals(id);
            TypeFigures {
                in_use: totals.in_use(),
                bytes_in_use: totals.bytes_in_use(),
                allocs: totals.allocs,
                frees: totals.frees,
            }
        }
    };
    // SAFETY: 2.
    unsafe { out.write(figures) };
    0
}
