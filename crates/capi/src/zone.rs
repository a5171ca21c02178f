//! zone(9) by its C names: `vm/uma.h`.

use core::ffi::{c_char, c_int, c_void};
use core::ptr::{NonNull, null_mut};

use hosted::{Linux, SYSTEM};
use kern::malloc::{Flags as MallocFlags, NoWait};
use kern::zone::{Action, Callbacks, Flags, How, RawZone, Reclaim, Source, Wait, ZoneConfig, ZoneError};

use crate::types::M_HANDLES;
use crate::{MALLOC, refuse, text_of};

/// `uma_ctor`
pub type UmaCtor = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, c_int) -> c_int;
/// `uma_dtor`
pub type UmaDtor = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void);
/// `uma_init`
pub type UmaInit = unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int;
/// `uma_fini`
pub type UmaFini = unsafe extern "C" fn(*mut c_void, c_int);
/// `uma_import`
pub type UmaImport = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, c_int, c_int, c_int) -> c_int;
/// `uma_release`
pub type UmaRelease = unsafe extern "C" fn(*mut c_void, *mut *mut c_void, c_int);
/// `uma_maxaction_t`
pub type UmaMaxaction = unsafe extern "C" fn(*mut UmaZone, c_int);

/// What `uma_zone_t` points at: constant while the zone lives, but for the action.
pub struct UmaZone {
    zone: Option<RawZone<'static, Linux>>,
    ctor: Option<UmaCtor>,
    dtor: Option<UmaDtor>,
    init: Option<UmaInit>,
    fini: Option<UmaFini>,
    import: Option<UmaImport>,
    release: Option<UmaRelease>,
    arg: *mut c_void,
    maxaction: core::sync::atomic::AtomicPtr<c_void>,
}

const M_NOWAIT: c_int = 0x0001;
const M_WAITOK: c_int = 0x0002;
const M_ZERO: c_int = 0x0100;
const M_USE_RESERVE: c_int = 0x0400;

/// The flags of zone(9) in `vm/uma.h`, and what they are here. Those with none say nothing that this allocator does not do anyway.
const FLAGS: [(u32, Flags); 15] = [
    (0x0002, Flags::ZINIT),
    (0x0008, Flags::NOTOUCH),
    (0x0010, Flags::NONE), // MALLOC
    (0x0020, Flags::NOFREE),
    (0x0040, Flags::NONE), // MTXCLASS
    (0x0080, Flags::NONE), // VM
    (0x0100, Flags::NONE), // NOTPAGE
    (0x0400, Flags::NOBUCKET),
    (0x0800, Flags::MAXBUCKET),
    (0x1000, Flags::NOTRIM),
    (0x2000, Flags::CACHESPREAD),
    (0x4000, Flags::NODUMP),
    (0x8000, Flags::PCPU),
    (0x1_0000, Flags::NONE), // FIRSTTOUCH
    (0x2_0000, Flags::ROUNDROBIN),
];

/// `None` when a flag is among them that a process cannot have (CONTIG), or none at all.
fn flags_of(word: u32) -> Option<Flags> {
    let known = FLAGS.iter().fold(0, |all, (bit, _)| all | bit);
    if word & !known != 0 {
        return None;
    }
    Some(FLAGS.iter().filter(|(bit, _)| word & bit != 0).fold(Flags::NONE, |all, (_, flag)| all.and(*flag)))
}

fn how_of(flags: c_int) -> How {
    How {
        wait: if flags & M_WAITOK != 0 { Wait::Sleep } else { Wait::No },
        zero: flags & M_ZERO != 0,
        reserve: flags & M_USE_RESERVE != 0,
    }
}

fn c_wait(wait: Wait) -> c_int {
    if wait == Wait::Sleep { M_WAITOK } else { M_NOWAIT }
}

fn c_flags(how: How) -> c_int {
    c_wait(how.wait) | if how.zero { M_ZERO } else { 0 } | if how.reserve { M_USE_RESERVE } else { 0 }
}

/// The record behind a callback's context.
///
/// # Safety
/// 1. `context` is that of a zone made here, which lives.
unsafe fn of<'a>(context: *mut ()) -> &'a UmaZone {
    // SAFETY: 1.: the record is there before the zone is made, and until it is gone.
    unsafe { &*context.cast::<UmaZone>() }
}

// The callbacks of the core, each of which calls C's. SAFETY of all: 1. the core hands on the context of the zone (see `of`); 2. who made the zone
// says that its functions may be called so. No item is larger than a gigabyte, so that its size is an int.

unsafe fn call_ctor(context: *mut (), item: *mut u8, bytes: usize, arg: *mut (), how: How) -> bool {
    // SAFETY: 1., 2.
    unsafe { of(context).ctor.is_none_or(|ctor| ctor(item.cast(), bytes as c_int, arg.cast(), c_flags(how)) == 0) }
}

unsafe fn call_dtor(context: *mut (), item: *mut u8, bytes: usize, arg: *mut ()) {
    // SAFETY: 1., 2.
    unsafe {
        if let Some(dtor) = of(context).dtor {
            dtor(item.cast(), bytes as c_int, arg.cast());
        }
    }
}

unsafe fn call_init(context: *mut (), item: *mut u8, bytes: usize, wait: Wait) -> bool {
    // SAFETY: 1., 2.
    unsafe { of(context).init.is_none_or(|init| init(item.cast(), bytes as c_int, c_wait(wait)) == 0) }
}

unsafe fn call_fini(context: *mut (), item: *mut u8, bytes: usize) {
    // SAFETY: 1., 2.
    unsafe {
        if let Some(fini) = of(context).fini {
            fini(item.cast(), bytes as c_int);
        }
    }
}

unsafe fn call_import(context: *mut (), out: *mut *mut u8, want: usize, domain: usize, wait: Wait) -> usize {
    // SAFETY: 1., 2.
    unsafe {
        let it = of(context);
        let count = it.import.map_or(0, |import| {
            import(it.arg, out.cast(), want.min(c_int::MAX as usize) as c_int, domain as c_int, c_wait(wait))
        });
        usize::try_from(count).unwrap_or(0).min(want)
    }
}

unsafe fn call_release(context: *mut (), items: *const *mut u8, count: usize) {
    // SAFETY: 1., 2.
    unsafe {
        let it = of(context);
        if let Some(release) = it.release {
            release(it.arg, items.cast_mut().cast(), count as c_int);
        }
    }
}

unsafe fn call_maxaction(context: *mut ()) {
    // SAFETY: 1., 2.
    unsafe {
        let action = of(context).maxaction.load(core::sync::atomic::Ordering::Acquire);
        if !action.is_null() {
            let action = core::mem::transmute::<*mut c_void, UmaMaxaction>(action);
            action(context.cast(), 0);
        }
    }
}

impl UmaZone {
    fn callbacks(this: NonNull<Self>) -> Callbacks {
        // SAFETY: 1. who made the zone says so; `this` outlives it.
        let (it, mut callbacks) = unsafe { (this.as_ref(), Callbacks::new(this.as_ptr().cast())) };
        // Only those that C has: a zone without a constructor has a shorter way.
        if it.ctor.is_some() {
            callbacks = callbacks.ctor(call_ctor);
        }
        if it.dtor.is_some() {
            callbacks = callbacks.dtor(call_dtor);
        }
        if it.init.is_some() {
            callbacks = callbacks.init(call_init);
        }
        if it.fini.is_some() {
            callbacks = callbacks.fini(call_fini);
        }
        callbacks
    }

    /// Makes the record, then with it the zone; null, and why on standard error, where it cannot be.
    fn create(
        self,
        name: &str,
        make: impl FnOnce(NonNull<Self>) -> Result<RawZone<'static, Linux>, ZoneError>,
    ) -> *mut Self {
        let memory = hosted::boot().then(|| MALLOC.malloc(&M_HANDLES, size_of::<Self>(), NoWait, MallocFlags::NONE));
        let Some(record) = memory.flatten().map(NonNull::cast::<Self>) else {
            refuse("uma_zcreate", name, &ZoneError::Memory);
            return null_mut();
        };
        // SAFETY: fresh memory of that size, aligned to 16.
        unsafe { record.write(self) };
        match make(record) {
            Ok(zone) => {
                // SAFETY: the caller does not know it yet, and no callback looks at this field.
                unsafe { (&raw mut (*record.as_ptr()).zone).write(Some(zone)) };
                record.as_ptr()
            }
            Err(error) => {
                refuse("uma_zcreate", name, &error);
                // SAFETY: there is no zone that knows it.
                unsafe { MALLOC.free(record.as_ptr().cast()) };
                null_mut()
            }
        }
    }

    fn new(ctor: Option<UmaCtor>, dtor: Option<UmaDtor>, init: Option<UmaInit>, fini: Option<UmaFini>) -> Self {
        Self {
            zone: None,
            ctor,
            dtor,
            init,
            fini,
            import: None,
            release: None,
            arg: null_mut(),
            maxaction: core::sync::atomic::AtomicPtr::new(null_mut()),
        }
    }
}

/// The zone of a handle.
///
/// # Safety
/// 1. `zone` came from one of the functions that make zones, and is not destroyed.
#[inline(always)]
pub(crate) unsafe fn raw(zone: *mut UmaZone) -> RawZone<'static, Linux> {
    // SAFETY: 1.; a handle that is given out has its zone.
    unsafe { (*zone).zone.unwrap_unchecked() }
}

/// uma_zcreate(9). `align` is a mask (`UMA_ALIGN_PTR`, …). Null, and why on standard error, where there can be no such zone.
///
/// # Safety
/// 1. `name` ends with a NUL. 2. The callbacks may be called as zone(9) says, while the zone lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zcreate(
    name: *const c_char,
    size: usize,
    ctor: Option<UmaCtor>,
    dtor: Option<UmaDtor>,
    init: Option<UmaInit>,
    fini: Option<UmaFini>,
    align: c_int,
    flags: u32,
) -> *mut UmaZone {
    // SAFETY: 1.
    let name = unsafe { text_of(name) };
    let Some(zone_flags) = flags_of(flags) else {
        refuse(
            "uma_zcreate",
            name,
            &format_args!("flags {flags:#x}: a process has no UMA_ZONE_CONTIG nor unknown ones"),
        );
        return null_mut();
    };
    UmaZone::new(ctor, dtor, init, fini).create(name, |record| {
        let align = usize::try_from(align).map_err(|_| ZoneError::Align(0))? + 1;
        let callbacks = UmaZone::callbacks(record);
        SYSTEM.zcreate(&ZoneConfig { flags: zone_flags, callbacks, ..ZoneConfig::new(name, size, align) })
    })
}

/// uma_zsecond_create(9).
///
/// # Safety
/// 1. `name` ends with a NUL. 2. As for [`kernmalloc_uma_zcreate`]. 3. `primary` lives, and longer than this one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zsecond_create(
    name: *const c_char,
    ctor: Option<UmaCtor>,
    dtor: Option<UmaDtor>,
    init: Option<UmaInit>,
    fini: Option<UmaFini>,
    primary: *mut UmaZone,
) -> *mut UmaZone {
    // SAFETY: 1., 3.
    let (name, primary) = unsafe { (text_of(name), raw(primary)) };
    UmaZone::new(ctor, dtor, init, fini)
        .create(name, |record| SYSTEM.zsecond_create(name, primary, UmaZone::callbacks(record)))
}

/// uma_zcache_create(9).
///
/// # Safety
/// 1. `name` ends with a NUL. 2. As for [`kernmalloc_uma_zcreate`]. 3. Items that `import` gives are not null, and writable where the zone is
///    asked for zeros.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zcache_create(
    name: *const c_char,
    size: c_int,
    ctor: Option<UmaCtor>,
    dtor: Option<UmaDtor>,
    init: Option<UmaInit>,
    fini: Option<UmaFini>,
    import: Option<UmaImport>,
    release: Option<UmaRelease>,
    arg: *mut c_void,
    flags: c_int,
) -> *mut UmaZone {
    // SAFETY: 1.
    let name = unsafe { text_of(name) };
    let Some(zone_flags) = flags_of(flags.cast_unsigned()) else {
        refuse("uma_zcache_create", name, &format_args!("flags {flags:#x} are not known"));
        return null_mut();
    };
    UmaZone { import, release, arg, ..UmaZone::new(ctor, dtor, init, fini) }.create(name, |record| {
        // SAFETY: 1. the context is the record, which outlives the zone; 2. 3.
        let source = unsafe { Source::new(record.as_ptr().cast(), call_import, call_release) };
        // A negative size says that nobody knows it (as in FreeBSD).
        let bytes = usize::try_from(size).unwrap_or(0);
        SYSTEM.zcache_create(name, bytes, zone_flags, UmaZone::callbacks(record), source)
    })
}

/// uma_zdestroy(9). A zone with secondary zones stays, and says so.
///
/// # Safety
/// 1. `zone` lives, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zdestroy(zone: *mut UmaZone) {
    // SAFETY: 1.
    let raw = unsafe { raw(zone) };
    let name = raw.name();
    // SAFETY: 1.
    match unsafe { raw.destroy() } {
        // SAFETY: the zone is gone, and with it the last who knows the record.
        Ok(_) => unsafe { MALLOC.free(zone.cast()) },
        Err(error) => refuse("uma_zdestroy", core::str::from_utf8(abi::c_text(&name)).unwrap_or("?"), &error),
    }
}

/// uma_zalloc_arg(9): an item, or null. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `zone` lives. 2. `arg` is what its constructor expects.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zalloc_arg(zone: *mut UmaZone, arg: *mut c_void, flags: c_int) -> *mut c_void {
    // SAFETY: 1.
    let item = unsafe { raw(zone) }.alloc_arg(arg.cast(), how_of(flags));
    item.map_or(null_mut(), |item| item.as_ptr().cast())
}

/// uma_zalloc_domain(9): an item of a NUMA domain if there is one, or null. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `zone` lives. 2. `arg` is what its constructor expects.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zalloc_domain(
    zone: *mut UmaZone,
    arg: *mut c_void,
    domain: c_int,
    flags: c_int,
) -> *mut c_void {
    let domain = usize::try_from(domain).unwrap_or(0).min(<Linux as platform::Platform>::domains() - 1);
    // SAFETY: 1.
    let item = unsafe { raw(zone) }.alloc_domain(arg.cast(), domain, how_of(flags));
    item.map_or(null_mut(), |item| item.as_ptr().cast())
}

/// uma_zfree_arg(9): gives an item back; null is nothing. Never sleeps.
///
/// # Safety
/// 1. `zone` lives. 2. Nobody uses the item any more. 3. `arg` is what the destructor expects.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zfree_arg(zone: *mut UmaZone, item: *mut c_void, arg: *mut c_void) {
    if !item.is_null() {
        // SAFETY: 1. 2. 3.
        unsafe { raw(zone).free_arg(item.cast(), arg.cast()) };
    }
}

/// uma_zwait(9). *Sleeps* until the zone has an item.
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zwait(zone: *mut UmaZone) {
    // SAFETY: 1.
    let _ = unsafe { raw(zone) }.wait();
}

/// uma_prealloc(9). *May sleep.*
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_prealloc(zone: *mut UmaZone, items: c_int) {
    // SAFETY: 1. What there is no memory for is not made, and nobody is told (as in FreeBSD).
    let _ = unsafe { raw(zone) }.prealloc(usize::try_from(items).unwrap_or(0));
}

/// uma_zone_reserve(9).
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_reserve(zone: *mut UmaZone, items: c_int) {
    // SAFETY: 1.
    let raw = unsafe { raw(zone) };
    if let Err(error) = raw.set_reserve(usize::try_from(items).unwrap_or(0)) {
        refuse("uma_zone_reserve", core::str::from_utf8(abi::c_text(&raw.name())).unwrap_or("?"), &error);
    }
}

/// uma_zone_set_max(9): the limit, in items; 0 lifts it. Returns what holds.
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_set_max(zone: *mut UmaZone, items: c_int) -> c_int {
    let items = items.max(0);
    // SAFETY: 1.
    unsafe { raw(zone) }.set_max(items as usize);
    items
}

/// uma_zone_get_max(9).
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_get_max(zone: *mut UmaZone) -> c_int {
    // SAFETY: 1.
    c_int::try_from(unsafe { raw(zone) }.max()).unwrap_or(c_int::MAX)
}

/// uma_zone_get_cur(9): items in use.
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_get_cur(zone: *mut UmaZone) -> c_int {
    // SAFETY: 1.
    c_int::try_from(unsafe { raw(zone) }.in_use()).unwrap_or(c_int::MAX)
}

/// uma_zone_set_maxcache(9).
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_set_maxcache(zone: *mut UmaZone, items: c_int) {
    // SAFETY: 1.
    unsafe { raw(zone) }.set_maxcache(items.max(0) as usize);
}

/// uma_zone_exhausted(9).
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_exhausted(zone: *mut UmaZone) -> c_int {
    // SAFETY: 1.
    c_int::from(unsafe { raw(zone) }.is_exhausted())
}

/// uma_zone_set_warning(9).
///
/// # Safety
/// 1. `zone` lives. 2. `warning` ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_set_warning(zone: *mut UmaZone, warning: *const c_char) {
    // SAFETY: 1. 2.
    unsafe { raw(zone).set_warning(text_of(warning)) };
}

/// uma_zone_set_maxaction(9).
///
/// # Safety
/// 1. `zone` lives. 2. `action` may be called by any thread while it does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_set_maxaction(zone: *mut UmaZone, action: Option<UmaMaxaction>) {
    let pointer = action.map_or(null_mut(), |action| action as *mut c_void);
    // SAFETY: 1. 2.
    unsafe {
        (*zone).maxaction.store(pointer, core::sync::atomic::Ordering::Release);
        let run = Action { context: zone.cast(), run: call_maxaction };
        raw(zone).set_maxaction(action.map(|_| run));
    }
}

/// `UMA_RECLAIM_DRAIN`, `_DRAIN_CPU`, `_TRIM`.
fn reclaim_of(request: c_int) -> Reclaim {
    match request {
        1 => Reclaim::Drain,
        2 => Reclaim::DrainCpu,
        3 => Reclaim::Trim,
        other => crate::life::die(format_args!("panic: uma_reclaim: unknown request {other}")),
    }
}

/// uma_zone_reclaim(9).
///
/// # Safety
/// 1. `zone` lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kernmalloc_uma_zone_reclaim(zone: *mut UmaZone, request: c_int) {
    // SAFETY: 1.
    unsafe { raw(zone) }.reclaim(reclaim_of(request));
}

/// uma_reclaim(9): all zones.
#[unsafe(no_mangle)]
pub extern "C" fn kernmalloc_uma_reclaim(request: c_int) {
    if hosted::boot() {
        SYSTEM.reclaim_zones(reclaim_of(request));
    }
}
