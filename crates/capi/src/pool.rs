//! pool(9) and pool_cache(9) over zones: `sys/pool.h`.
//!
//! A pool is a zone. A pool cache with a constructor or destructor is a zone on another's keg: objects are constructed when they leave
//! the keg and destructed when they return to it, and lie constructed in the caches between, as pool_cache(9) has it.

use core::ffi::{c_char, c_int, c_uint, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use kern::malloc::{Flags as MallocFlags, NoWait};
use kern::zone::{Callbacks, Fail, Flags, How, RawZone, Reclaim, Wait, ZoneConfig, ZoneError};

use platform::Platform as _;

use crate::types::M_HANDLES;
use crate::{Host, refuse, text_of};

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
pub struct Cache<H: Host> {
    zone: Option<RawZone<'static, H::P>>,
    /// The zone whose keg this one is on, if it is on another's.
    primary: Option<RawZone<'static, H::P>>,
    ctor: Option<PoolCtor>,
    dtor: Option<PoolDtor>,
    arg: *mut c_void,
    /// A [`DrainHook`], or null, and its argument.
    hook: AtomicPtr<c_void>,
    hook_arg: AtomicPtr<c_void>,
    /// Water marks, in items, 0 for none: so many are free after a request; of more than so many pages go back.
    low: AtomicUsize,
    high: AtomicUsize,
    /// Free items that could not go back the last time, since their pages have others in use.
    stuck: AtomicUsize,
}

/// `struct pool` of `sys/pool.h`: the program's own memory.
#[repr(C)]
pub struct Pool<H: Host> {
    cache: *mut Cache<H>,
}

fn c_wait(wait: Wait) -> c_int {
    if wait == Wait::Sleep { PR_WAITOK } else { PR_NOWAIT }
}

unsafe fn call_ctor<H: Host>(context: *mut (), object: *mut u8, _bytes: usize, wait: Wait) -> bool {
    // SAFETY: the context is the cache that the zone belongs to; its maker says that the constructor may be called so.
    unsafe {
        let it = &*context.cast::<Cache<H>>();
        it.ctor.is_none_or(|ctor| ctor(it.arg, object.cast(), c_wait(wait)) == 0)
    }
}

unsafe fn call_dtor<H: Host>(context: *mut (), object: *mut u8, _bytes: usize) {
    // SAFETY: as above.
    unsafe {
        let it = &*context.cast::<Cache<H>>();
        if let Some(dtor) = it.dtor {
            dtor(it.arg, object.cast());
        }
    }
}

/// The zones of a cache: its own, and the one whose keg that is on.
type Zones<P> = (RawZone<'static, P>, Option<RawZone<'static, P>>);

fn make_zones<H: Host>(
    cache: *mut Cache<H>,
    config: &ZoneConfig<'_>,
    is_constructed: bool,
) -> Result<Zones<H::P>, ZoneError> {
    let primary = H::malloc().system().zcreate(config)?;
    if !is_constructed {
        return Ok((primary, None));
    }
    // SAFETY: 1. the cache outlives its zones, and its maker says that its functions may be called so.
    let callbacks = unsafe { Callbacks::new(cache.cast()) }.init(call_ctor::<H>).fini(call_dtor::<H>);
    match H::malloc().system().zsecond_create(config.name, primary, callbacks) {
        Ok(zone) => Ok((zone, Some(primary))),
        Err(error) => {
            // SAFETY: 1. nobody else knows it.
            let _ = unsafe { primary.destroy() };
            Err(error)
        }
    }
}

impl<H: Host> Cache<H> {
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
            refuse::<H>("pool_init", name, &"an align_offset other than 0 is not supported");
            return null_mut();
        }
        let (ctor, dtor, arg) = callbacks;
        let memory = H::boot().then(|| H::malloc().malloc(&M_HANDLES, size_of::<Self>(), NoWait, MallocFlags::NONE));
        let Some(record) = memory.flatten() else {
            refuse::<H>("pool_init", name, &ZoneError::Memory);
            return null_mut();
        };
        let cache = record.as_ptr().cast::<Self>();
        let (nobody, none) = (|| AtomicPtr::new(null_mut()), || AtomicUsize::new(0));
        // SAFETY: fresh memory of that size, aligned to 16.
        unsafe {
            cache.write(Self {
                zone: None,
                primary: None,
                ctor,
                dtor,
                arg,
                hook: nobody(),
                hook_arg: nobody(),
                low: none(),
                high: none(),
                stuck: none(),
            });
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
                refuse::<H>("pool_init", name, &error);
                // SAFETY: nobody knows it.
                unsafe { H::malloc().free(record.as_ptr()) };
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
            H::malloc().free(cache.cast());
        }
    }

    fn zone(&self) -> RawZone<'static, H::P> {
        // SAFETY: a cache that is given out has its zone.
        unsafe { self.zone.unwrap_unchecked() }
    }

    fn get(&self, flags: c_int) -> *mut c_void {
        let how = match flags & (PR_WAITOK | PR_NOWAIT) {
            PR_WAITOK => How::WAIT,
            PR_NOWAIT => How::NOWAIT,
            _ => panic!("pool_get: flags {flags:#x} have not exactly one of PR_WAITOK and PR_NOWAIT"),
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
        let low = self.low.load(Ordering::Relaxed);
        if low != 0 && found.is_ok() {
            // At once, and not only when the next finds nothing: that one may be in a hurry.
            let _ = self.owner().prealloc(low);
        }
        found.map_or(null_mut(), |object| object.as_ptr().cast())
    }

    /// # Safety
    /// 1. Nobody uses the object any more, which is from this cache.
    unsafe fn put(&self, object: *mut c_void) {
        // SAFETY: 1. 2.
        unsafe { self.zone().free(object.cast()) };
        if self.high.load(Ordering::Relaxed) != 0 && <H::P>::may_sleep().is_ok() {
            self.keep_below_high();
        }
    }

    /// The zone whose keg the objects are on.
    fn owner(&self) -> RawZone<'static, H::P> {
        self.primary.unwrap_or_else(|| self.zone())
    }

    /// Free objects, wherever they lie, and how many a slab has.
    fn free_objects(&self) -> (usize, usize) {
        let (used, kept) = (self.zone().stats(), self.owner().stats());
        (used.outside.saturating_sub(used.in_use) + kept.slab_free, kept.per_slab)
    }

    /// Pages go back if more objects are free than the high mark says, and not for less than a page.
    fn keep_below_high(&self) {
        let (free, per_slab) = self.free_objects();
        let mark = self.high.load(Ordering::Relaxed).max(self.stuck.load(Ordering::Relaxed));
        if free > mark + per_slab {
            self.reclaim();
            self.stuck.store(self.free_objects().0, Ordering::Relaxed);
            let _ = self.owner().prealloc(self.low.load(Ordering::Relaxed));
        } else if free < self.high.load(Ordering::Relaxed) {
            self.stuck.store(0, Ordering::Relaxed);
        }
    }

    fn set_low(&self, items: c_int) {
        self.low.store(items.max(0) as usize, Ordering::Relaxed);
        let _ = self.owner().prealloc(items.max(0) as usize);
    }

    fn set_high(&self, items: c_int) {
        self.high.store(items.max(0) as usize, Ordering::Relaxed);
        self.stuck.store(0, Ordering::Relaxed);
        if items > 0 {
            self.keep_below_high();
        }
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
        c_int::from(self.owner().prealloc(items.max(0) as usize).is_err()) * 12
    }

    /// All that is free is destructed and its pages go back. Whether there were any.
    fn reclaim(&self) -> bool {
        let slabs = |zone: &RawZone<'static, H::P>| zone.stats().slabs;
        let owner = self.owner();
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
pub unsafe extern "C" fn kernmalloc_pool_cache_init<H: Host>(
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
) -> *mut Cache<H> {
    // SAFETY: 1., 2.
    unsafe { Cache::<H>::create(text_of(name), size, [align, align_offset], flags, (ctor, dtor, arg)) }
}

/// pool_cache_destroy(9). What is still in use is warned of, and lost.
///
/// # Safety
/// 1. `cache` lives, and nobody uses it any more.
pub unsafe extern "C" fn kernmalloc_pool_cache_destroy<H: Host>(cache: *mut Cache<H>) {
    // SAFETY: 1.
    unsafe { Cache::destroy(cache) }
}

/// pool_cache_get(9): a constructed object, or null. *May sleep* with `PR_WAITOK`.
///
/// # Safety
/// 1. `cache` lives.
pub unsafe extern "C" fn kernmalloc_pool_cache_get<H: Host>(cache: *mut Cache<H>, flags: c_int) -> *mut c_void {
    // SAFETY: 1.
    unsafe { &*cache }.get(flags)
}

/// pool_cache_put(9): gives an object back, constructed as it came. Never sleeps.
///
/// # Safety
/// 1. `cache` lives. 2. Nobody uses the object any more.
pub unsafe extern "C" fn kernmalloc_pool_cache_put<H: Host>(cache: *mut Cache<H>, object: *mut c_void) {
    // SAFETY: 1., 2.
    unsafe { (*cache).put(object) }
}

/// pool_cache_destruct_object(9): destructs an object that is not as it came, and gives it back. It is constructed anew at once; one whose
/// constructor refuses is lost, and that is said.
///
/// # Safety
/// 1. `cache` lives. 2. Nobody uses the object any more.
pub unsafe extern "C" fn kernmalloc_pool_cache_destruct_object<H: Host>(cache: *mut Cache<H>, object: *mut c_void) {
    // SAFETY: 1., 2.
    unsafe {
        let zone = (*cache).zone();
        call_dtor::<H>(cache.cast(), object.cast(), zone.item_bytes());
        if call_ctor::<H>(cache.cast(), object.cast(), zone.item_bytes(), Wait::No) {
            zone.free(object.cast());
        } else {
            let name = zone.name();
            let name = core::str::from_utf8(abi::c_text(&name)).unwrap_or("?");
            refuse::<H>("pool_cache_destruct_object", name, &"its constructor failed: the object is lost");
        }
    }
}

/// pool_cache_invalidate(9): destructs all objects that lie in caches. Those in use are as they were.
///
/// # Safety
/// 1. `cache` lives.
pub unsafe extern "C" fn kernmalloc_pool_cache_invalidate<H: Host>(cache: *mut Cache<H>) {
    // SAFETY: 1.
    unsafe { &*cache }.zone().reclaim(Reclaim::DrainCpu);
}

/// pool_cache_reclaim(9): the same, and pages go back. Whether any did.
///
/// # Safety
/// 1. `cache` lives.
pub unsafe extern "C" fn kernmalloc_pool_cache_reclaim<H: Host>(cache: *mut Cache<H>) -> bool {
    // SAFETY: 1.
    unsafe { &*cache }.reclaim()
}

/// pool_cache_prime(9): makes room for so many objects now. 0, or `ENOMEM`.
///
/// # Safety
/// 1. `cache` lives.
pub unsafe extern "C" fn kernmalloc_pool_cache_prime<H: Host>(cache: *mut Cache<H>, items: c_int) -> c_int {
    // SAFETY: 1.
    unsafe { &*cache }.prime(items)
}

/// pool_cache_setlowat(9): from now on so many objects can be had without new pages after each request; 0 for none.
///
/// # Safety
/// 1. `cache` lives.
pub unsafe extern "C" fn kernmalloc_pool_cache_setlowat<H: Host>(cache: *mut Cache<H>, items: c_int) {
    // SAFETY: 1.
    unsafe { &*cache }.set_low(items);
}

/// pool_cache_sethiwat(9): pages go back when so many objects are free, and a page's worth more; 0 for never.
///
/// # Safety
/// 1. `cache` lives.
pub unsafe extern "C" fn kernmalloc_pool_cache_sethiwat<H: Host>(cache: *mut Cache<H>, items: c_int) {
    // SAFETY: 1.
    unsafe { &*cache }.set_high(items);
}

/// pool_cache_sethardlimit(9): at most so many objects in use; `warning`, unless null, is said at the limit, at most once in 300 seconds.
///
/// # Safety
/// 1. `cache` lives. 2. `warning` is null or ends with a NUL.
pub unsafe extern "C" fn kernmalloc_pool_cache_sethardlimit<H: Host>(
    cache: *mut Cache<H>,
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
pub unsafe extern "C" fn kernmalloc_pool_cache_set_drain_hook<H: Host>(
    cache: *mut Cache<H>,
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
pub unsafe extern "C" fn kernmalloc_pool_init<H: Host>(
    pool: *mut Pool<H>,
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
        let cache = Cache::<H>::create(text_of(name), size, [align, align_offset], flags, (None, None, null_mut()));
        if cache.is_null() {
            panic!("pool_init: see above");
        }
        pool.write(Pool { cache });
    }
}
