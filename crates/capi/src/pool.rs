//! pool(9) and pool_cache(9) over zones: `sys/pool.h`.
//!
//! A pool is a zone. A pool cache with a constructor or destructor is a zone on another's keg: objects are constructed when they leave
//! the keg and destructed when they return to it, and lie constructed in the caches between, as pool_cache(9) has it.

use core::ffi::{c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use hosted::{Linux, SYSTEM};
use kern::malloc::{Flags as MallocFlags, NoWait};
use kern::zone::{Callbacks, Fail, Flags, How, RawZone, Reclaim, Wait, ZoneConfig, ZoneError};

use crate::life::die;
use crate::types::M_HANDLES;
use crate::{MALLOC, refuse, text_of};

/// `int ctor(void *arg, void *object, int flags)`
pub type PoolCtor = unsafe extern "C" fn(*mut c_void, *mut c_void, c_int) -> c_int;
/// `void dtor(void *arg, void *object)`
pub type PoolDtor = unsafe extern "C" fn(*mut c_void, *mut c_void);
/// `void drain(void *arg, int flags)`
pub type DrainHook = unsafe extern "C" fn(*mut c_void, c_int);

const PR_WAITOK: c_int = 0x01;
const PR_NOWAIT: c_int = 0x02;
const PR_LIMITFAIL: c_int = 0x08;
const PR_NOTOUCH: c_int = 0x20;
const PR_ZERO: c_int = 0x1000;

/// What `pool_cache_t` points at, and a `struct pool` names.
pub struct Cache {
    zone: Option<RawZone<'static, Linux>>,
    /// The zone whose keg this one is on, if it is on another's.
    primary: Option<RawZone<'static, Linux>>,
    ctor: Option<PoolCtor>,
    dtor: Option<PoolDtor>,
    arg: *mut c_void,
    /// A [`DrainHook`], or null, and its argument.
    hook: AtomicPtr<c_void>,
    hook_arg: AtomicPtr<c_void>,
}

/// `struct pool` of `sys/pool.h`: the program's own memory.
#[repr(C)]
pub struct Pool {
    cache: *mut Cache,
}

fn c_wait(wait: Wait) -> c_int {
    if wait == Wait::Sleep { PR_WAITOK } else { PR_NOWAIT }
}

unsafe fn call_ctor(context: *mut (), object: *mut u8, _bytes: usize, wait: Wait) -> bool {
    // SAFETY: the context is the cache that the zone belongs to; its maker says that the constructor may be called so.
    unsafe {
        let it = &*context.cast::<Cache>();
        it.ctor.is_none_or(|ctor| ctor(it.arg, object.cast(), c_wait(wait)) == 0)
    }
}

unsafe fn call_dtor(context: *mut (), object: *mut u8, _bytes: usize) {
    // SAFETY: as above.
    unsafe {
        let it = &*context.cast::<Cache>();
        if let Some(dtor) = it.dtor {
            dtor(it.arg, object.cast());
        }
    }
}

/// The zones of a cache: its own, and the one whose keg that is on.
type Zones = (RawZone<'static, Linux>, Option<RawZone<'static, Linux>>);

fn make_zones(cache: *mut Cache, config: &ZoneConfig<'_>, is_constructed: bool) -> Result<Zones, ZoneError> {
    let primary = SYSTEM.zcreate(config)?;
    if !is_constructed {
        return Ok((primary, None));
    }
    // SAFETY: 1. the cache outlives its zones, and its maker says that its functions may be called so.
    let callbacks = unsafe { Callbacks::new(cache.cast()) }.init(call_ctor).fini(call_dtor);
    match SYSTEM.zsecond_create(config.name, primary, callbacks) {
        Ok(zone) => Ok((zone, Some(primary))),
        Err(error) => {
            // SAFETY: 1. nobody else knows it.
            let _ = unsafe { primary.destroy() };
            Err(error)
        }
    }
}

impl Cache {
    /// # Safety
    /// 1. The functions may be called with `arg` by any thread while the cache lives.
    unsafe fn create(
        name: &str,
        size: usize,
        [align, align_offset]: [c_uint; 2],
        flags: c_int,
        callbacks: (Option<PoolCtor>, Option<PoolDtor>, *mut c_void),
    ) -> *mut Self {
        if align_offset != 0 {
            refuse("pool_init", name, &"an align_offset other than 0 is not supported");
            return null_mut();
        }
        let (ctor, dtor, arg) = callbacks;
        let memory = hosted::boot().then(|| MALLOC.malloc(&M_HANDLES, size_of::<Self>(), NoWait, MallocFlags::NONE));
        let Some(record) = memory.flatten() else {
            refuse("pool_init", name, &ZoneError::Memory);
            return null_mut();
        };
        let cache = record.as_ptr().cast::<Self>();
        let nobody = || AtomicPtr::new(null_mut());
        // SAFETY: fresh memory of that size, aligned to 16.
        unsafe {
            cache.write(Self { zone: None, primary: None, ctor, dtor, arg, hook: nobody(), hook_arg: nobody() });
        }
        let zone_flags = if flags & PR_NOTOUCH != 0 { Flags::NOTOUCH } else { Flags::NONE };
        // 0: as any type needs it.
        let align = if align == 0 { 16 } else { align as usize };
        let config = ZoneConfig { flags: zone_flags, ..ZoneConfig::new(name, size, align) };
        match make_zones(cache, &config, ctor.is_some() || dtor.is_some()) {
            Ok((zone, primary)) => {
                // SAFETY: the caller does not know it yet; callbacks look at other fields.
                unsafe {
                    (&raw mut (*cache).zone).write(Some(zone));
                    (&raw mut (*cache).primary).write(primary);
                }
                cache
            }
            Err(error) => {
                refuse("pool_init", name, &error);
                // SAFETY: nobody knows it.
                unsafe { MALLOC.free(record.as_ptr()) };
                null_mut()
            }
        }
    }

    /// # Safety
    /// 1. `cache` lives, and nobody uses it any more.
    unsafe fn destroy(cache: *mut Self) {
        // SAFETY: 1.
        unsafe {
            for zone in [(*cache).zone, (*cache).primary].into_iter().flatten() {
                // What is still in use was warned of, and the one on the other's keg goes first.
                let _ = zone.destroy();
            }
            MALLOC.free(cache.cast());
        }
    }

    fn zone(&self) -> RawZone<'static, Linux> {
        // SAFETY: a cache that is given out has its zone.
        unsafe { self.zone.unwrap_unchecked() }
    }

    fn get(&self, flags: c_int) -> *mut c_void {
        let how = match flags & (PR_WAITOK | PR_NOWAIT) {
            PR_WAITOK => How::WAIT,
            PR_NOWAIT => How::NOWAIT,
            _ => die(format_args!("panic: pool_get: flags {flags:#x} have not exactly one of PR_WAITOK and PR_NOWAIT")),
        };
        let how = How { zero: flags & PR_ZERO != 0, ..how };
        let hook = self.hook.load(Ordering::Acquire);
        // Who is to hear of the limit, or has somebody to be called at it, does not sleep the first time.
        let first = if hook.is_null() && flags & PR_LIMITFAIL == 0 { how } else { How { wait: Wait::No, ..how } };
        let mut found = self.zone().alloc(first);
        if found.is_err() && !hook.is_null() {
            // SAFETY: a hook by `set_drain_hook`, whose caller says that it may be called so.
            unsafe {
                core::mem::transmute::<*mut c_void, DrainHook>(hook)(self.hook_arg.load(Ordering::Relaxed), flags);
            }
            found = self.zone().alloc(first);
        }
        if found.is_err() && first != how && !(found == Err(Fail::Limit) && flags & PR_LIMITFAIL != 0) {
            found = self.zone().alloc(how);
        }
        found.map_or(null_mut(), |object| object.as_ptr().cast())
    }

    fn set_hard_limit(&self, items: c_int, warning: &str) {
        self.zone().set_warning(warning);
        self.zone().set_max(items.max(0) as usize);
    }

    fn set_drain_hook(&self, hook: Option<DrainHook>, arg: *mut c_void) {
        self.hook_arg.store(arg, Ordering::Relaxed);
        self.hook.store(hook.map_or(null_mut(), |hook| hook as *mut c_void), Ordering::Release);
    }

    /// Makes slabs; for a constructed cache those of its keg.
    fn prime(&self, items: c_int) -> c_int {
        let zone = self.primary.unwrap_or_else(|| self.zone());
        c_int::from(zone.prealloc(items.max(0) as usize).is_err()) * 12
    }

    fn set_low_water(&self, items: c_int) {
        // What cannot be had now is made when there is memory again.
        let _ = self.primary.unwrap_or_else(|| self.zone()).set_low_water(items.max(0) as usize);
    }

    fn set_high_water(&self, items: c_int) {
        self.primary.unwrap_or_else(|| self.zone()).set_high_water(items.max(0) as usize);
    }

    /// All that is free is destructed and its pages go back. Whether there were any.
    fn reclaim(&self) -> bool {
        let slabs = |zone: &RawZone<'static, Linux>| zone.stats().slabs;
        let owner = self.primary.unwrap_or_else(|| self.zone());
        let before = slabs(&owner);
        self.zone().reclaim(Reclaim::DrainCpu);
        owner.reclaim(Reclaim::DrainCpu);
        slabs(&owner) < before
    }
}

/// pool_cache_init(9). `palloc` must be one of `sys/pool.h` or null. Null, and why on standard error, where there can be no such cache.
///
/// # Safety
/// 1. `name` ends with a NUL. 2. The functions may be called with `arg` by any thread while the cache lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_init(
    size: usize,
    align: c_uint,
    align_offset: c_uint,
    flags: c_int,
    name: *const c_char,
    _palloc: *mut c_void,
    _ipl: c_int,
    ctor: Option<PoolCtor>,
    dtor: Option<PoolDtor>,
    arg: *mut c_void,
) -> *mut Cache {
    // SAFETY: 1., 2.
    unsafe { Cache::create(text_of(name), size, [align, align_offset], flags, (ctor, dtor, arg)) }
}

/// pool_cache_destroy(9). What is still in use is warned of, and lost.
///
/// # Safety
/// 1. `cache` lives, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_destroy(cache: *mut Cache) {
    // SAFETY: 1.
    unsafe { Cache::destroy(cache) }
}

/// pool_cache_get(9): a constructed object, or null. *May sleep* with `PR_WAITOK`.
///
/// # Safety
/// 1. `cache` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_get(cache: *mut Cache, flags: c_int) -> *mut c_void {
    // SAFETY: 1.
    unsafe { &*cache }.get(flags)
}

/// pool_cache_put(9): gives an object back, constructed as it came. Never sleeps.
///
/// # Safety
/// 1. `cache` lives. 2. Nobody uses the object any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_put(cache: *mut Cache, object: *mut c_void) {
    // SAFETY: 1., 2.
    unsafe { (*cache).zone().free(object.cast()) }
}

/// pool_cache_destruct_object(9): destructs an object that is not as it came, and gives it back. It is constructed anew at once; one whose
/// constructor refuses is lost, and that is said.
///
/// # Safety
/// 1. `cache` lives. 2. Nobody uses the object any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_destruct_object(cache: *mut Cache, object: *mut c_void) {
    // SAFETY: 1., 2.
    unsafe {
        let zone = (*cache).zone();
        call_dtor(cache.cast(), object.cast(), zone.item_bytes());
        if call_ctor(cache.cast(), object.cast(), zone.item_bytes(), Wait::No) {
            zone.free(object.cast());
        } else {
            let name = zone.name();
            let name = core::str::from_utf8(abi::c_text(&name)).unwrap_or("?");
            refuse("pool_cache_destruct_object", name, &"its constructor failed: the object is lost");
        }
    }
}

/// pool_cache_invalidate(9): destructs all objects that lie in caches. Those in use are as they were.
///
/// # Safety
/// 1. `cache` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_invalidate(cache: *mut Cache) {
    // SAFETY: 1.
    unsafe { &*cache }.zone().reclaim(Reclaim::DrainCpu);
}

/// pool_cache_reclaim(9): the same, and pages go back. Whether any did.
///
/// # Safety
/// 1. `cache` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_reclaim(cache: *mut Cache) -> bool {
    // SAFETY: 1.
    unsafe { &*cache }.reclaim()
}

/// pool_cache_setlowat(9): keeps at least so many objects free in pages, makes pages for them when there are fewer, and gives those back to
/// nobody.
///
/// # Safety
/// 1. `cache` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_setlowat(cache: *mut Cache, items: c_int) {
    // SAFETY: 1.
    unsafe { &*cache }.set_low_water(items);
}

/// pool_cache_sethiwat(9): pages with nothing in use are kept for as many objects; those beyond go back at once.
///
/// # Safety
/// 1. `cache` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_sethiwat(cache: *mut Cache, items: c_int) {
    // SAFETY: 1.
    unsafe { &*cache }.set_high_water(items);
}

/// pool_cache_prime(9): makes room for so many objects now. 0, or `ENOMEM`.
///
/// # Safety
/// 1. `cache` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_prime(cache: *mut Cache, items: c_int) -> c_int {
    // SAFETY: 1.
    unsafe { &*cache }.prime(items)
}

/// pool_cache_sethardlimit(9): at most so many objects in use; `warning`, unless null, is said at the limit, at most once in 300 seconds.
///
/// # Safety
/// 1. `cache` lives. 2. `warning` is null or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_sethardlimit(
    cache: *mut Cache,
    items: c_int,
    warning: *const c_char,
    _ratecap_seconds: c_int,
) {
    // SAFETY: 1., 2.
    unsafe { (*cache).set_hard_limit(items, text_of(warning)) }
}

/// pool_cache_set_drain_hook(9): called when a request finds nothing, before it fails or sleeps; null for none.
///
/// # Safety
/// 1. `cache` lives, and nobody uses it meanwhile. 2. `hook` may be called with `arg` by any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_cache_set_drain_hook(
    cache: *mut Cache,
    hook: Option<DrainHook>,
    arg: *mut c_void,
) {
    // SAFETY: 1.
    unsafe { &*cache }.set_drain_hook(hook, arg);
}

/// pool_init(9). Where there can be no such pool: a panic, since nothing is returned.
///
/// # Safety
/// 1. `pool` may be written to. 2. `name` ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_pool_init(
    pool: *mut Pool,
    size: usize,
    align: c_uint,
    align_offset: c_uint,
    flags: c_int,
    name: *const c_char,
    _palloc: *mut c_void,
    _ipl: c_int,
) {
    // SAFETY: 1., 2.
    unsafe {
        let cache = Cache::create(text_of(name), size, [align, align_offset], flags, (None, None, null_mut()));
        if cache.is_null() {
            die(format_args!("panic: pool_init: see above"));
        }
        pool.write(Pool { cache });
    }
}

/// `pool_allocator_kmem`, `pool_allocator_nointr`: something to point at.
#[unsafe(no_mangle)]
pub static kernmalloc_pool_allocator: c_int = 0;
