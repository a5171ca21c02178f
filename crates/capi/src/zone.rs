//! zone(9) by its C names: `vm/uma.h`.

use core::ffi::{c_char, c_int, c_void};
use core::ptr::{NonNull, null_mut};

use kern::malloc::{Flags as MallocFlags, NoWait};
use kern::zone::{Action, Callbacks, Flags, How, RawZone, Reclaim, Source, Wait, ZoneConfig, ZoneError};

use platform::Platform as _;

use crate::types::M_HANDLES;
use crate::{Host, refuse, text_of};

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
pub type UmaMaxaction = unsafe extern "C" fn(*mut c_void, c_int);

/// What `uma_zone_t` points at: constant while the zone lives, but for the action.
pub struct UmaZone<H: Host> {
    zone: Option<RawZone<'static, H::P>>,
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
unsafe fn of<'a, H: Host>(context: *mut ()) -> &'a UmaZone<H> {
    // SAFETY: 1.: the record is there before the zone is made, and until it is gone.
    unsafe { &*context.cast::<UmaZone<H>>() }
}

// The callbacks of the core, each of which calls C's. SAFETY of all: 1. the core hands on the context of the zone (see `of`); 2. who made the zone
// says that its functions may be called so. No item is larger than a gigabyte, so that its size is an int.

unsafe fn call_ctor<H: Host>(context: *mut (), item: *mut u8, bytes: usize, arg: *mut (), how: How) -> bool {
    // SAFETY: 1., 2.
    unsafe { of::<H>(context).ctor.is_none_or(|ctor| ctor(item.cast(), bytes as c_int, arg.cast(), c_flags(how)) == 0) }
}

unsafe fn call_dtor<H: Host>(context: *mut (), item: *mut u8, bytes: usize, arg: *mut ()) {
    // SAFETY: 1., 2.
    unsafe {
        if let Some(dtor) = of::<H>(context).dtor {
            dtor(item.cast(), bytes as c_int, arg.cast());
        }
    }
}

unsafe fn call_init<H: Host>(context: *mut (), item: *mut u8, bytes: usize, wait: Wait) -> bool {
    // SAFETY: 1., 2.
    unsafe { of::<H>(context).init.is_none_or(|init| init(item.cast(), bytes as c_int, c_wait(wait)) == 0) }
}

unsafe fn call_fini<H: Host>(context: *mut (), item: *mut u8, bytes: usize) {
    // SAFETY: 1., 2.
    unsafe {
        if let Some(fini) = of::<H>(context).fini {
            fini(item.cast(), bytes as c_int);
        }
    }
}

unsafe fn call_import<H: Host>(context: *mut (), out: *mut *mut u8, want: usize, domain: usize, wait: Wait) -> usize {
    // SAFETY: 1., 2.
    unsafe {
        let it = of::<H>(context);
        let count = it.import.map_or(0, |import| {
            import(it.arg, out.cast(), want.min(c_int::MAX as usize) as c_int, domain as c_int, c_wait(wait))
        });
        usize::try_from(count).unwrap_or(0).min(want)
    }
}

unsafe fn call_release<H: Host>(context: *mut (), items: *const *mut u8, count: usize) {
    // SAFETY: 1., 2.
    unsafe {
        let it = of::<H>(context);
        if let Some(release) = it.release {
            release(it.arg, items.cast_mut().cast(), count as c_int);
        }
    }
}

unsafe fn call_maxaction<H: Host>(context: *mut ()) {
    // SAFETY: 1., 2.
    unsafe {
        let action = of::<H>(context).maxaction.load(core::sync::atomic::Ordering::Acquire);
        if !action.is_null() {
            let action = core::mem::transmute::<*mut c_void, UmaMaxaction>(action);
            action(context.cast(), 0);
        }
    }
}

impl<H: Host> UmaZone<H> {
    fn callbacks(this: NonNull<Self>) -> Callbacks {
        // SAFETY: 1. who made the zone says so; `this` outlives it.
        let (it, mut callbacks) = unsafe { (this.as_ref(), Callbacks::new(this.as_ptr().cast())) };
        // Only those that C has: a zone without a constructor has a shorter way.
        if it.ctor.is_some() {
            callbacks = callbacks.ctor(call_ctor::<H>);
        }
        if it.dtor.is_some() {
            callbacks = callbacks.dtor(call_dtor::<H>);
        }
        if it.init.is_some() {
            callbacks = callbacks.init(call_init::<H>);
        }
        if it.fini.is_some() {
            callbacks = callbacks.fini(call_fini::<H>);
        }
        callbacks
    }

    /// Makes the record, then with it the zone; null, and why on standard error, where it cannot be.
    fn create(
        self,
        name: &str,
        make: impl FnOnce(NonNull<Self>) -> Result<RawZone<'static, H::P>, ZoneError>,
    ) -> *mut Self {
        let memory = H::boot().then(|| H::malloc().malloc(&M_HANDLES, size_of::<Self>(), NoWait, MallocFlags::NONE));
        let Some(record) = memory.flatten().map(NonNull::cast::<Self>) else {
            refuse::<H>("uma_zcreate", name, &ZoneError::Memory);
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
                refuse::<H>("uma_zcreate", name, &error);
                // SAFETY: there is no zone that knows it.
                unsafe { H::malloc().free(record.as_ptr().cast()) };
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
pub(crate) unsafe fn raw<H: Host>(zone: *mut UmaZone<H>) -> RawZone<'static, H::P> {
    // SAFETY: 1.; a handle that is given out has its zone.
    unsafe { (*zone).zone.unwrap_unchecked() }
}

/// uma_zcreate(9). `align` is a mask (`UMA_ALIGN_PTR`, …). Null, and why on standard error, where there can be no such zone.
///
/// # Safety
/// 1. `name` ends with a NUL. 2. The callbacks may be called as zone(9) says, while the zone lives.
pub unsafe extern "C" fn kernmalloc_uma_zcreate<H: Host>(
    name: *const c_char,
    size: usize,
    ctor: Option<UmaCtor>,
    dtor: Option<UmaDtor>,
    init: Option<UmaInit>,
    fini: Option<UmaFini>,
    align: c_int,
    flags: u32,
) -> *mut UmaZone<H> {
    // SAFETY: 1.
    let name = unsafe { text_of(name) };
    let Some(zone_flags) = flags_of(flags) else {
        refuse::<H>(
            "uma_zcreate",
            name,
            &format_args!("flags {flags:#x}: UMA_ZONE_CONTIG and unknown ones are not served"),
        );
        return null_mut();
    };
    UmaZone::<H>::new(ctor, dtor, init, fini).create(name, |record| {
        let align = usize::try_from(align).map_err(|_| ZoneError::Align(0))? + 1;
        let callbacks = UmaZone::<H>::callbacks(record);
        H::malloc().system().zcreate(&ZoneConfig { flags: zone_flags, callbacks, ..ZoneConfig::new(name, size, align) })
    })
}

/// uma_zsecond_create(9).
///
/// # Safety
/// 1. `name` ends with a NUL. 2. As for [`kernmalloc_uma_zcreate`]. 3. `primary` lives, and longer than this one.
pub unsafe extern "C" fn kernmalloc_uma_zsecond_create<H: Host>(
    name: *const c_char,
    ctor: Option<UmaCtor>,
    dtor: Option<UmaDtor>,
    init: Option<UmaInit>,
    fini: Option<UmaFini>,
    primary: *mut UmaZone<H>,
) -> *mut UmaZone<H> {
    // SAFETY: 1., 3.
    let (name, primary) = unsafe { (text_of(name), raw(primary)) };
    UmaZone::<H>::new(ctor, dtor, init, fini)
        .create(name, |record| H::malloc().system().zsecond_create(name, primary, UmaZone::<H>::callbacks(record)))
}

/// uma_zcache_create(9).
///
/// # Safety
/// 1. `name` ends with a NUL. 2. As for [`kernmalloc_uma_zcreate`]. 3. Items that `import` gives are not null, and writable where the zone is
///    asked for zeros.
pub unsafe extern "C" fn kernmalloc_uma_zcache_create<H: Host>(
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
) -> *mut UmaZone<H> {
    // SAFETY: 1.
    let name = unsafe { text_of(name) };
    let Some(zone_flags) = flags_of(flags.cast_unsigned()) else {
        refuse::<H>("uma_zcache_create", name, &format_args!("flags {flags:#x} are not known"));
        return null_mut();
    };
    UmaZone::<H> { import, release, arg, ..UmaZone::<H>::new(ctor, dtor, init, fini) }.create(name, |record| {
        // SAFETY: 1. the context is the record, which outlives the zone; 2. 3.
        let source = unsafe { Source::new(record.as_ptr().cast(), call_import::<H>, call_release::<H>) };
        // A negative size says that nobody knows it (as in FreeBSD).
        let bytes = usize::try_from(size).unwrap_or(0);
        H::malloc().system().zcache_create(name, bytes, zone_flags, UmaZone::<H>::callbacks(record), source)
    })
}

/// uma_zdestroy(9). A zone with secondary zones stays, and says so.
///
/// # Safety
/// 1. `zone` lives, and nobody uses it any more.
pub unsafe extern "C" fn kernmalloc_uma_zdestroy<H: Host>(zone: *mut UmaZone<H>) {
    // SAFETY: 1.
    let raw = unsafe { raw(zone) };
    let name = raw.name();
    // SAFETY: 1.
    match unsafe { raw.destroy() } {
        // SAFETY: the zone is gone, and with it the last who knows the record.
        Ok(_) => unsafe { H::malloc().free(zone.cast()) },
        Err(error) => refuse::<H>("uma_zdestroy", core::str::from_utf8(abi::c_text(&name)).unwrap_or("?"), &error),
    }
}

/// uma_zalloc_arg(9): an item, or null. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `zone` lives. 2. `arg` is what its constructor expects.
pub unsafe extern "C" fn kernmalloc_uma_zalloc_arg<H: Host>(
    zone: *mut UmaZone<H>,
    arg: *mut c_void,
    flags: c_int,
) -> *mut c_void {
    // SAFETY: 1.
    let item = unsafe { raw(zone) }.alloc_arg(arg.cast(), how_of(flags));
    item.map_or(null_mut(), |item| item.as_ptr().cast())
}

/// uma_zalloc_domain(9): an item of a NUMA domain if there is one, or null. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `zone` lives. 2. `arg` is what its constructor expects.
pub unsafe extern "C" fn kernmalloc_uma_zalloc_domain<H: Host>(
    zone: *mut UmaZone<H>,
    arg: *mut c_void,
    domain: c_int,
    flags: c_int,
) -> *mut c_void {
    let domain = usize::try_from(domain).unwrap_or(0).min(<H::P>::domains() - 1);
    // SAFETY: 1.
    let item = unsafe { raw(zone) }.alloc_domain(arg.cast(), domain, how_of(flags));
    item.map_or(null_mut(), |item| item.as_ptr().cast())
}

/// uma_zfree_arg(9): gives an item back; null is nothing. Never sleeps.
///
/// # Safety
/// 1. `zone` lives. 2. Nobody uses the item any more. 3. `arg` is what the destructor expects.
pub unsafe extern "C" fn kernmalloc_uma_zfree_arg<H: Host>(zone: *mut UmaZone<H>, item: *mut c_void, arg: *mut c_void) {
    if !item.is_null() {
        // SAFETY: 1. 2. 3.
        unsafe { raw(zone).free_arg(item.cast(), arg.cast()) };
    }
}

/// uma_zwait(9). *Sleeps* until the zone has an item.
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zwait<H: Host>(zone: *mut UmaZone<H>) {
    // SAFETY: 1.
    let _ = unsafe { raw(zone) }.wait();
}

/// uma_prealloc(9). *May sleep.*
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_prealloc<H: Host>(zone: *mut UmaZone<H>, items: c_int) {
    // SAFETY: 1. What there is no memory for is not made, and nobody is told (as in FreeBSD).
    let _ = unsafe { raw(zone) }.prealloc(usize::try_from(items).unwrap_or(0));
}

/// uma_zone_reserve(9).
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zone_reserve<H: Host>(zone: *mut UmaZone<H>, items: c_int) {
    // SAFETY: 1.
    let raw = unsafe { raw(zone) };
    if let Err(error) = raw.set_reserve(usize::try_from(items).unwrap_or(0)) {
        refuse::<H>("uma_zone_reserve", core::str::from_utf8(abi::c_text(&raw.name())).unwrap_or("?"), &error);
    }
}

/// uma_zone_set_max(9): the limit, in items; 0 lifts it. Returns what holds.
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zone_set_max<H: Host>(zone: *mut UmaZone<H>, items: c_int) -> c_int {
    let items = items.max(0);
    // SAFETY: 1.
    unsafe { raw(zone) }.set_max(items as usize);
    items
}

/// uma_zone_get_max(9).
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zone_get_max<H: Host>(zone: *mut UmaZone<H>) -> c_int {
    // SAFETY: 1.
    c_int::try_from(unsafe { raw(zone) }.max()).unwrap_or(c_int::MAX)
}

/// uma_zone_get_cur(9): items in use.
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zone_get_cur<H: Host>(zone: *mut UmaZone<H>) -> c_int {
    // SAFETY: 1.
    c_int::try_from(unsafe { raw(zone) }.in_use()).unwrap_or(c_int::MAX)
}

/// uma_zone_set_maxcache(9).
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zone_set_maxcache<H: Host>(zone: *mut UmaZone<H>, items: c_int) {
    // SAFETY: 1.
    unsafe { raw(zone) }.set_maxcache(items.max(0) as usize);
}

/// uma_zone_exhausted(9).
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zone_exhausted<H: Host>(zone: *mut UmaZone<H>) -> c_int {
    // SAFETY: 1.
    c_int::from(unsafe { raw(zone) }.is_exhausted())
}

/// uma_zone_set_warning(9).
///
/// # Safety
/// 1. `zone` lives. 2. `warning` ends with a NUL.
pub unsafe extern "C" fn kernmalloc_uma_zone_set_warning<H: Host>(zone: *mut UmaZone<H>, warning: *const c_char) {
    // SAFETY: 1. 2.
    unsafe { raw(zone).set_warning(text_of(warning)) };
}

/// uma_zone_set_maxaction(9).
///
/// # Safety
/// 1. `zone` lives. 2. `action` may be called by any thread while it does.
pub unsafe extern "C" fn kernmalloc_uma_zone_set_maxaction<H: Host>(
    zone: *mut UmaZone<H>,
    action: Option<UmaMaxaction>,
) {
    let pointer = action.map_or(null_mut(), |action| action as *mut c_void);
    // SAFETY: 1. 2.
    unsafe {
        (*zone).maxaction.store(pointer, core::sync::atomic::Ordering::Release);
        let run = Action { context: zone.cast(), run: call_maxaction::<H> };
        raw(zone).set_maxaction(action.map(|_| run));
    }
}

/// `UMA_RECLAIM_DRAIN`, `_DRAIN_CPU`, `_TRIM`.
fn reclaim_of(request: c_int) -> Reclaim {
    match request {
        1 => Reclaim::Drain,
        2 => Reclaim::DrainCpu,
        3 => Reclaim::Trim,
        other => panic!("uma_reclaim: unknown request {other}"),
    }
}

/// uma_zone_reclaim(9).
///
/// # Safety
/// 1. `zone` lives.
pub unsafe extern "C" fn kernmalloc_uma_zone_reclaim<H: Host>(zone: *mut UmaZone<H>, request: c_int) {
    // SAFETY: 1.
    unsafe { raw(zone) }.reclaim(reclaim_of(request));
}

/// uma_reclaim(9): all zones.
pub extern "C" fn kernmalloc_uma_reclaim<H: Host>(request: c_int) {
    if H::boot() {
        H::malloc().system().reclaim_zones(reclaim_of(request));
    }
}
