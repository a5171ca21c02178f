//! Every name of the interface, once: for those who make symbols of them, and for those who look them up.

use core::marker::PhantomData;

use crate::Host;
use names::*;

/// What the signatures of [`interface!`](crate::interface!) are made of.
pub mod names {
    pub use crate::kmem::*;
    pub use crate::malloc::*;
    pub use crate::memstat::*;
    pub use crate::pool::*;
    pub use crate::types::*;
    pub use crate::vmem9::*;
    pub use crate::zone::*;
    pub use core::ffi::{c_char, c_int, c_long, c_uint, c_ulong, c_void};
}

/// Calls the macro `$with` with all functions (those that are generic over the [`Host`], called `H` in their
/// signatures, and the plain ones) and all static objects. Everything else is in [`names`].
#[macro_export]
macro_rules! interface {
    ($with:ident) => {
        $with! {
            functions {
                // malloc(9)
                fn kernmalloc_malloc(bytes: usize, ty: *mut CType, flags: c_int) -> *mut c_void;
                fn kernmalloc_malloc_aligned(bytes: usize, align: usize, ty: *mut CType, flags: c_int) -> *mut c_void;
                fn kernmalloc_malloc_exec(bytes: usize, ty: *mut CType, flags: c_int) -> *mut c_void;
                fn kernmalloc_mallocarray(count: usize, size: usize, ty: *mut CType, flags: c_int) -> *mut c_void;
                fn kernmalloc_realloc(block: *mut c_void, bytes: usize, ty: *mut CType, flags: c_int) -> *mut c_void;
                fn kernmalloc_reallocf(block: *mut c_void, bytes: usize, ty: *mut CType, flags: c_int) -> *mut c_void;
                fn kernmalloc_free(block: *mut c_void, ty: *mut CType);
                fn kernmalloc_zfree(block: *mut c_void, ty: *mut CType);
                fn kernmalloc_malloc_size(bytes: usize) -> usize;
                fn kernmalloc_malloc_usable_size(block: *const c_void) -> usize;
                fn kernmalloc_malloc_last_fail() -> c_long;
                // malloc types
                fn kernmalloc_type_load(ty: *mut CType);
                fn kernmalloc_type_unload(ty: *mut CType);
                fn kernmalloc_malloc_type_attach(ty: *mut CType);
                fn kernmalloc_malloc_type_detach(ty: *mut CType);
                fn kernmalloc_malloc_type_setlimit(ty: *mut CType, bytes: c_ulong);
                fn kernmalloc_malloc_desc2type(short: *const c_char) -> *mut CType;
                fn kernmalloc_malloc_type_list(
                    visit: unsafe extern "C" fn(*mut CType, *mut c_void), arg: *mut c_void
                );
                fn kernmalloc_type_stats(ty: *const CType, out: *mut TypeFigures) -> c_int;
                // kmem(9)
                fn kernmalloc_kmem_alloc(bytes: usize, flags: c_uint) -> *mut c_void;
                fn kernmalloc_kmem_zalloc(bytes: usize, flags: c_uint) -> *mut c_void;
                fn kernmalloc_kmem_free(block: *mut c_void, bytes: usize);
                fn kernmalloc_kmem_intr_alloc(bytes: usize, flags: c_uint) -> *mut c_void;
                fn kernmalloc_kmem_intr_zalloc(bytes: usize, flags: c_uint) -> *mut c_void;
                fn kernmalloc_kmem_intr_free(block: *mut c_void, bytes: usize);
                fn kernmalloc_kmem_strndup(text: *const c_char, most: usize, flags: c_uint) -> *mut c_char;
                fn kernmalloc_kmem_strdupsize(text: *const c_char, size: *mut usize, flags: c_uint) -> *mut c_char;
                fn kernmalloc_kmem_strfree(text: *mut c_char);
                // zone(9)
                fn kernmalloc_uma_zcreate(
                    name: *const c_char, size: usize, ctor: Option<UmaCtor>, dtor: Option<UmaDtor>,
                    init: Option<UmaInit>, fini: Option<UmaFini>, align: c_int, flags: u32
                ) -> *mut UmaZone<H>;
                fn kernmalloc_uma_zsecond_create(
                    name: *const c_char, ctor: Option<UmaCtor>, dtor: Option<UmaDtor>, init: Option<UmaInit>,
                    fini: Option<UmaFini>, primary: *mut UmaZone<H>
                ) -> *mut UmaZone<H>;
                fn kernmalloc_uma_zcache_create(
                    name: *const c_char, size: c_int, ctor: Option<UmaCtor>, dtor: Option<UmaDtor>,
                    init: Option<UmaInit>, fini: Option<UmaFini>, import: Option<UmaImport>,
                    release: Option<UmaRelease>, arg: *mut c_void, flags: c_int
                ) -> *mut UmaZone<H>;
                fn kernmalloc_uma_zdestroy(zone: *mut UmaZone<H>);
                fn kernmalloc_uma_zalloc_arg(zone: *mut UmaZone<H>, arg: *mut c_void, flags: c_int) -> *mut c_void;
                fn kernmalloc_uma_zalloc_domain(
                    zone: *mut UmaZone<H>, arg: *mut c_void, domain: c_int, flags: c_int
                ) -> *mut c_void;
                fn kernmalloc_uma_zfree_arg(zone: *mut UmaZone<H>, item: *mut c_void, arg: *mut c_void);
                fn kernmalloc_uma_zwait(zone: *mut UmaZone<H>);
                fn kernmalloc_uma_prealloc(zone: *mut UmaZone<H>, items: c_int);
                fn kernmalloc_uma_zone_reserve(zone: *mut UmaZone<H>, items: c_int);
                fn kernmalloc_uma_zone_set_max(zone: *mut UmaZone<H>, items: c_int) -> c_int;
                fn kernmalloc_uma_zone_get_max(zone: *mut UmaZone<H>) -> c_int;
                fn kernmalloc_uma_zone_get_cur(zone: *mut UmaZone<H>) -> c_int;
                fn kernmalloc_uma_zone_set_maxcache(zone: *mut UmaZone<H>, items: c_int);
                fn kernmalloc_uma_zone_exhausted(zone: *mut UmaZone<H>) -> c_int;
                fn kernmalloc_uma_zone_set_warning(zone: *mut UmaZone<H>, warning: *const c_char);
                fn kernmalloc_uma_zone_set_maxaction(zone: *mut UmaZone<H>, action: Option<UmaMaxaction>);
                fn kernmalloc_uma_zone_reclaim(zone: *mut UmaZone<H>, request: c_int);
                fn kernmalloc_uma_reclaim(request: c_int);
                // vmem(9)
                fn kernmalloc_vmem_create(
                    name: *const c_char, base: usize, size: usize, quantum: usize, qcache_max: usize, flags: c_int
                ) -> *mut Vmem<H>;
                fn kernmalloc_vmem_destroy(vm: *mut Vmem<H>);
                fn kernmalloc_vmem_add(vm: *mut Vmem<H>, base: usize, size: usize, flags: c_int) -> c_int;
                fn kernmalloc_vmem_set_import(
                    vm: *mut Vmem<H>, import: ImportFn, release: ReleaseFn, arg: *mut c_void, import_quantum: usize
                );
                fn kernmalloc_vmem_set_limit(vm: *mut Vmem<H>, limit: usize);
                fn kernmalloc_vmem_set_reclaim(vm: *mut Vmem<H>, reclaim: Option<ReclaimFn>);
                fn kernmalloc_vmem_alloc(vm: *mut Vmem<H>, size: usize, flags: c_int, addr: *mut usize) -> c_int;
                fn kernmalloc_vmem_xalloc(
                    vm: *mut Vmem<H>, size: usize, align: usize, phase: usize, nocross: usize, min: usize,
                    max: usize, flags: c_int, addr: *mut usize
                ) -> c_int;
                fn kernmalloc_vmem_free(vm: *mut Vmem<H>, addr: usize, size: usize);
                fn kernmalloc_vmem_xfree(vm: *mut Vmem<H>, addr: usize, size: usize);
                fn kernmalloc_vmem_size(vm: *mut Vmem<H>, mask: c_int) -> usize;
                fn kernmalloc_vmem_roundup_size(vm: *mut Vmem<H>, size: usize) -> usize;
                // pool(9), pool_cache(9)
                fn kernmalloc_pool_cache_init(
                    size: usize, align: c_uint, align_offset: c_uint, flags: c_int, name: *const c_char,
                    palloc: *mut c_void, ipl: c_int, ctor: Option<PoolCtor>, dtor: Option<PoolDtor>,
                    arg: *mut c_void
                ) -> *mut Cache<H>;
                fn kernmalloc_pool_cache_destroy(cache: *mut Cache<H>);
                fn kernmalloc_pool_cache_get(cache: *mut Cache<H>, flags: c_int) -> *mut c_void;
                fn kernmalloc_pool_cache_put(cache: *mut Cache<H>, object: *mut c_void);
                fn kernmalloc_pool_cache_destruct_object(cache: *mut Cache<H>, object: *mut c_void);
                fn kernmalloc_pool_cache_invalidate(cache: *mut Cache<H>);
                fn kernmalloc_pool_cache_reclaim(cache: *mut Cache<H>) -> bool;
                fn kernmalloc_pool_cache_prime(cache: *mut Cache<H>, items: c_int) -> c_int;
                fn kernmalloc_pool_cache_setlowat(cache: *mut Cache<H>, items: c_int);
                fn kernmalloc_pool_cache_sethiwat(cache: *mut Cache<H>, items: c_int);
                fn kernmalloc_pool_cache_sethardlimit(
                    cache: *mut Cache<H>, items: c_int, warning: *const c_char, ratecap_seconds: c_int
                );
                fn kernmalloc_pool_cache_set_drain_hook(
                    cache: *mut Cache<H>, hook: Option<DrainHook>, arg: *mut c_void
                );
                fn kernmalloc_pool_init(
                    pool: *mut Pool<H>, size: usize, align: c_uint, align_offset: c_uint, flags: c_int,
                    name: *const c_char, palloc: *mut c_void, ipl: c_int
                );
                // libmemstat(3)
                fn kernmalloc_memstat_mtl_alloc() -> *mut TypeList;
                fn kernmalloc_memstat_mtl_free(list: *mut TypeList);
                fn kernmalloc_memstat_sysctl_all(list: *mut TypeList, flags: c_int) -> c_int;
                fn kernmalloc_memstat_sysctl_malloc(list: *mut TypeList, flags: c_int) -> c_int;
                fn kernmalloc_memstat_sysctl_uma(list: *mut TypeList, flags: c_int) -> c_int;
            }
            plain {
                fn kernmalloc_memstat_strerror(error: c_int) -> *const c_char;
                fn kernmalloc_memstat_mtl_first(list: *mut TypeList) -> *mut MemoryType;
                fn kernmalloc_memstat_mtl_next(entry: *mut MemoryType) -> *mut MemoryType;
                fn kernmalloc_memstat_mtl_find(
                    list: *mut TypeList, allocator: c_int, name: *const c_char
                ) -> *mut MemoryType;
                fn kernmalloc_memstat_mtl_geterror(list: *mut TypeList) -> c_int;
                fn kernmalloc_memstat_kvm(list: *mut TypeList, kvm: *mut c_void) -> c_int;
                fn kernmalloc_memstat_get_name(entry: *const MemoryType) -> *const c_char;
                fn kernmalloc_memstat_get_allocator(entry: *const MemoryType) -> c_int;
                fn kernmalloc_memstat_get_countlimit(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_byteslimit(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_sizemask(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_size(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_rsize(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_memalloced(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_memfreed(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_numallocs(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_numfrees(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_bytes(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_count(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_free(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_failures(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_sleeps(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_xdomain(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_zonefree(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_kegfree(entry: *const MemoryType) -> u64;
                fn kernmalloc_memstat_get_percpu_memalloced(entry: *const MemoryType, cpu: c_int) -> u64;
                fn kernmalloc_memstat_get_percpu_memfreed(entry: *const MemoryType, cpu: c_int) -> u64;
                fn kernmalloc_memstat_get_percpu_numallocs(entry: *const MemoryType, cpu: c_int) -> u64;
                fn kernmalloc_memstat_get_percpu_numfrees(entry: *const MemoryType, cpu: c_int) -> u64;
                fn kernmalloc_memstat_get_percpu_sizemask(entry: *const MemoryType, cpu: c_int) -> u64;
                fn kernmalloc_memstat_get_percpu_free(entry: *const MemoryType, cpu: c_int) -> u64;
                fn kernmalloc_memstat_get_caller_pointer(entry: *const MemoryType, index: c_int) -> *mut c_void;
                fn kernmalloc_memstat_set_caller_pointer(entry: *mut MemoryType, index: c_int, value: *mut c_void);
                fn kernmalloc_memstat_get_caller_uint64(entry: *const MemoryType, index: c_int) -> u64;
                fn kernmalloc_memstat_set_caller_uint64(entry: *mut MemoryType, index: c_int, value: u64);
                fn kernmalloc_memstat_get_percpu_caller_pointer(
                    entry: *const MemoryType, cpu: c_int, index: c_int
                ) -> *mut c_void;
                fn kernmalloc_memstat_set_percpu_caller_pointer(
                    entry: *mut MemoryType, cpu: c_int, index: c_int, value: *mut c_void
                );
                fn kernmalloc_memstat_get_percpu_caller_uint64(
                    entry: *const MemoryType, cpu: c_int, index: c_int
                ) -> u64;
                fn kernmalloc_memstat_set_percpu_caller_uint64(
                    entry: *mut MemoryType, cpu: c_int, index: c_int, value: u64
                );
            }
            objects {
                kernmalloc_M_CACHE: [CType; 1] = CType::built_in(c"cache", c"dynamically allocated cache");
                kernmalloc_M_DEVBUF: [CType; 1] = CType::built_in(c"devbuf", c"device driver memory");
                kernmalloc_M_TEMP: [CType; 1] = CType::built_in(c"temp", c"misc temporary data buffers");
                // `pool_allocator_kmem`, `pool_allocator_nointr`: something to point at.
                kernmalloc_pool_allocator: c_int = 0;
            }
        }
    };
}

/// A name of the interface and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Symbol {
    /// As C's object files have it.
    pub name: &'static str,
    /// Of a function or an object.
    pub address: *const (),
}

// SAFETY: the address of something static.
unsafe impl Sync for Symbol {}

struct Table<H>(PhantomData<H>);

macro_rules! table {
    (
        functions { $(fn $function:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)* }
        plain { $(fn $plain:ident($($plain_arg:ident: $plain_type:ty),* $(,)?) $(-> $plain_result:ty)?;)* }
        objects { $($object:ident: $object_type:ty = $value:expr;)* }
    ) => {
        $(
            #[allow(non_upper_case_globals, reason = "a name that C has in a header")]
            static $object: $object_type = $value;
        )*
        impl<H: Host> Table<H> {
            const ALL: &'static [Symbol] = &[
                $(Symbol { name: stringify!($function), address: $function::<H> as *const () },)*
                $(Symbol { name: stringify!($plain), address: $plain as *const () },)*
                $(Symbol { name: stringify!($object), address: (&raw const $object).cast() },)*
            ];
        }
    };
}
interface!(table);

/// The whole interface over a port, for a linker: names as in object files made with the headers.
#[must_use]
pub fn symbols<H: Host>() -> &'static [Symbol] {
    Table::<H>::ALL
}
