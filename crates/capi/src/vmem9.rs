//! vmem(9) by its C names, those of FreeBSD and of NetBSD.
//!
//! The two differ in vmem_create, which the header tells apart by the number of arguments, and in how flags are spelt, not in what
//! they are: `VM_SLEEP` is `M_WAITOK`, `VM_INSTANTFIT` is `M_FIRSTFIT`.

use core::ffi::{c_char, c_int, c_void};
use core::marker::PhantomData;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use kern::malloc::{Flags as MallocFlags, NoWait, WaitOk};
use kern::zone::QuantumZones;
use platform::{Lock, Platform, RawLock as _};
use vmem::{Arena, Bucket, Channel, Error, Fit, QCACHE_MAX, Request, Size, Source, System, Tag, TagSource, Wait};

use crate::types::{M_HANDLES, M_TAGS};
use crate::{Host, refuse, text_of};

/// Locks and sleeping, those of the port.
struct Port<H>(PhantomData<fn() -> H>);

impl<H: Host> System for Port<H> {
    type Lock = <H::P as Platform>::Lock;

    fn channel() -> &'static Channel {
        H::channel()
    }

    fn wait(word: &AtomicU32, seen: u32) {
        <H::P>::wait(word, seen);
    }

    fn wake_all(word: &AtomicU32) {
        <H::P>::wake_all(word);
    }
}

/// Boundary tags from malloc(9): arenas of C programs are no part of the allocator.
struct Tags<H>(PhantomData<fn() -> H>);

// SAFETY: 1. fresh blocks of the right size, aligned as asked.
unsafe impl<H: Host> TagSource for Tags<H> {
    fn get(&self, wait: Wait) -> Option<(NonNull<Tag>, usize)> {
        const BYTES: usize = size_of::<Tag>();
        let tag = match wait {
            Wait::Sleep => {
                Some(H::malloc().malloc_aligned(&M_TAGS, BYTES, align_of::<Tag>(), WaitOk, MallocFlags::NONE))
            }
            _ => H::malloc().malloc_aligned(&M_TAGS, BYTES, align_of::<Tag>(), NoWait, MallocFlags::NONE),
        };
        Some((tag?.cast(), 1))
    }

    unsafe fn put(&self, tag: NonNull<Tag>) {
        // SAFETY: 1.: from `get`, which takes one at a time.
        unsafe { H::malloc().free(tag.as_ptr().cast()) }
    }

    fn get_buckets(&self, count: usize) -> Option<NonNull<Bucket>> {
        let table = H::malloc().mallocarray(&M_TAGS, count, size_of::<Bucket>(), NoWait, MallocFlags::NONE);
        table.map(NonNull::cast)
    }

    unsafe fn put_buckets(&self, table: NonNull<Bucket>, _count: usize) {
        // SAFETY: 1.
        unsafe { H::malloc().free(table.as_ptr().cast()) }
    }
}

const M_WAITOK: c_int = 0x0002;
const M_USE_RESERVE: c_int = 0x0400;
const M_BESTFIT: c_int = 0x2000;
const M_NEXTFIT: c_int = 0x8000;
const VMEM_ALLOC: c_int = 1;
const VMEM_FREE: c_int = 2;
const VMEM_MAXFREE: c_int = 0x10;

const ENOMEM: c_int = 12;
const EINVAL: c_int = 22;

/// `vmem_import_t` of FreeBSD: `(arg, size, flags, &addr)`, 0 for success.
pub type ImportFn = unsafe extern "C" fn(*mut c_void, usize, c_int, *mut usize) -> c_int;
/// `vmem_release_t` of FreeBSD, and of NetBSD (where the argument is the source arena).
pub type ReleaseFn = unsafe extern "C" fn(*mut c_void, usize, usize);
/// `vmem_reclaim_t`.
pub type ReclaimFn = unsafe extern "C" fn(*mut c_void, c_int);

/// Where an arena imports from: C's functions.
struct CSource {
    import: ImportFn,
    release: ReleaseFn,
    arg: *mut c_void,
}

// SAFETY: functions and argument of the arena's maker, who says that any thread may call the ones with the other.
unsafe impl Sync for CSource {}

impl Source for CSource {
    fn import(&self, size: usize, wait: Wait) -> Option<(usize, usize)> {
        let flags = if wait == Wait::Sleep { M_WAITOK } else { 0x0001 };
        let mut addr = 0;
        // SAFETY: 1. of `kernmalloc_vmem_set_import`.
        let failed = unsafe { (self.import)(self.arg, size, flags, &raw mut addr) };
        (failed == 0).then_some((addr, size))
    }

    fn release(&self, base: usize, size: usize) {
        // SAFETY: as above.
        unsafe { (self.release)(self.arg, base, size) }
    }
}

/// What `vmem_t *` points at.
pub struct Vmem<H: Host> {
    /// `None` only while [`kernmalloc_vmem_set_import`] is at work.
    arena: Option<Arena<'static, Port<H>>>,
    source: Option<CSource>,
    /// Of small ranges.
    caches: QuantumZones<H::P, Port<H>>,
    /// Largest size that they serve; 0 without.
    cache_max: usize,
    /// A [`ReclaimFn`], or null.
    reclaim: AtomicPtr<c_void>,
    /// Block of the closure that calls it, or null.
    closure: *mut u8,
    name: [u8; 32],
    /// The next on the list of all; under its lock.
    next: *mut Vmem<H>,
}

/// All of C's arenas, so that fork(2) finds their locks. The list's lock comes before theirs.
pub struct Arenas<H: Host> {
    first: Lock<<H::P as Platform>::Lock, First<H>>,
}

struct First<H: Host>(*mut Vmem<H>);

// SAFETY: arenas on the list live, and are reached under its lock.
unsafe impl<H: Host> Send for First<H> {}

impl<H: Host> Default for Arenas<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Host> Arenas<H> {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { first: Lock::new(First(null_mut())) }
    }

    fn add(&self, vm: *mut Vmem<H>) {
        let mut first = self.first.lock();
        // SAFETY: an arena that was made just now, and that nobody else knows.
        unsafe { (*vm).next = first.0 };
        first.0 = vm;
    }

    fn remove(&self, vm: *mut Vmem<H>) {
        let mut first = self.first.lock();
        let mut link = &raw mut first.0;
        // SAFETY: arenas on the list live; their links change under the lock only.
        unsafe {
            while !(*link).is_null() && *link != vm {
                link = &raw mut (**link).next;
            }
            if !(*link).is_null() {
                *link = (*vm).next;
            }
        }
    }

    /// Every arena on the list, whose lock is held by hand.
    fn each(&self, visit: impl Fn(&Arena<'static, Port<H>>)) {
        // SAFETY: 1. the callers hold it.
        let mut vm = unsafe { self.first.held() }.0;
        // SAFETY: arenas on the list live, and are whole while its lock is held.
        while let Some(this) = unsafe { vm.as_ref() } {
            if let Some(arena) = &this.arena {
                visit(arena);
            }
            vm = this.next;
        }
    }

    /// Takes the locks of all arenas, before those of the allocator, for fork(2).
    pub fn freeze(&self) {
        self.first.raw().lock();
        self.each(Arena::freeze);
    }

    /// Lets them go, after the allocator was let go.
    ///
    /// # Safety
    /// 1. The caller, or the thread that it is a copy of, has called [`freeze`](Self::freeze).
    pub unsafe fn thaw(&self) {
        // SAFETY: 1. No arena came or went meanwhile: the list's lock was held.
        self.each(|arena| unsafe { arena.thaw() });
        // SAFETY: 1.
        unsafe { self.first.raw().unlock() };
    }

    /// For the child of a fork: threads that sleep in its parent do not exist here. What others had in hand just then is lost to the child: ranges that
    /// they had allocated, and in arenas with caches the bucket that one of them was moving.
    ///
    /// # Safety
    /// 1. Between [`freeze`](Self::freeze) and [`thaw`](Self::thaw), in a process with one thread.
    pub unsafe fn forget_sleepers(&self) {
        // SAFETY: 1.
        self.each(|arena| unsafe { arena.forget_sleepers() });
        // SAFETY: 1.
        unsafe { H::channel().forget_sleepers() };
    }
}

/// # Safety
/// 1. `vm` came from vmem_create, and is not destroyed.
#[inline(always)]
unsafe fn arena<'a, H: Host>(vm: *mut Vmem<H>) -> &'a Arena<'static, Port<H>> {
    // SAFETY: 1.
    unsafe { (*vm).arena.as_ref().unwrap_unchecked() }
}

fn wait_of(flags: c_int) -> Wait {
    if flags & M_WAITOK != 0 {
        Wait::Sleep
    } else if flags & M_USE_RESERVE != 0 {
        Wait::Reserve
    } else {
        Wait::NoSleep
    }
}

fn fit_of(flags: c_int) -> Fit {
    if flags & M_BESTFIT != 0 {
        Fit::Best
    } else if flags & M_NEXTFIT != 0 {
        Fit::Next
    } else {
        Fit::Instant
    }
}

fn errno_of<T>(result: Result<T, Error>) -> c_int {
    match result {
        Ok(_) => 0,
        Err(Error::NoSpace | Error::NoTags) => ENOMEM,
        Err(_) => EINVAL,
    }
}

/// vmem_create(9): an arena in units of `quantum`, with the span `[base, base + size)` unless `size` is 0. Null, and why on standard
/// error, where there can be none. Sizes up to `qcache_max`, rounded down to the quantum and at most 16 of them, are cached by CPU. *May sleep* with
/// `M_WAITOK`.
///
/// # Safety
/// 1. `name` ends with a NUL.
pub unsafe extern "C" fn kernmalloc_vmem_create<H: Host>(
    name: *const c_char,
    base: usize,
    size: usize,
    quantum: usize,
    qcache_max: usize,
    flags: c_int,
) -> *mut Vmem<H> {
    // SAFETY: 1.
    let text = unsafe { text_of(name) };
    if !quantum.is_power_of_two() {
        refuse::<H>("vmem_create", text, &format_args!("the quantum {quantum} is no power of two"));
        return null_mut();
    }
    let memory = H::boot().then(|| H::malloc().malloc(&M_HANDLES, size_of::<Vmem<H>>(), NoWait, MallocFlags::NONE));
    let Some(record) = memory.flatten().map(NonNull::cast::<Vmem<H>>) else {
        refuse::<H>("vmem_create", text, &Error::NoTags);
        return null_mut();
    };
    let mut kept = [0; 32];
    let mut len = text.len().min(31);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    kept[..len].copy_from_slice(&text.as_bytes()[..len]);
    // SAFETY: fresh memory of that size, aligned to 16 (checked below). The name stays where it is for as long as the arena.
    let vm = unsafe {
        record.write(Vmem {
            arena: None,
            source: None,
            caches: QuantumZones::new(H::malloc().system()),
            cache_max: (qcache_max / quantum).min(QCACHE_MAX) * quantum,
            reclaim: AtomicPtr::new(null_mut()),
            closure: null_mut(),
            name: kept,
            next: null_mut(),
        });
        let vm = record.as_ptr();
        let name = core::slice::from_raw_parts((&raw const (*vm).name).cast::<u8>(), len);
        let arena = Arena::new(core::str::from_utf8_unchecked(name), quantum, &const { Tags::<H>(PhantomData) });
        (*vm).arena = Some(match (*vm).cache_max {
            0 => arena,
            max => arena.with_quantum_cache(&(*vm).caches, max),
        });
        attach(vm);
        vm
    };
    H::arenas().add(vm);
    if size != 0
        // SAFETY: 1. just made.
        && let Err(error) = unsafe { arena(vm) }.add(base, size, wait_of(flags))
    {
        refuse::<H>("vmem_create", text, &error);
        // SAFETY: 1. as above, and nobody knows it.
        unsafe { kernmalloc_vmem_destroy(vm) };
        return null_mut();
    }
    vm
}
/// Has the arena's caches serve it. Where there is no memory for one, the arena serves those sizes itself.
///
/// # Safety
/// 1. `vm` lives, and nobody uses it meanwhile.
unsafe fn attach<H: Host>(vm: *mut Vmem<H>) {
    // SAFETY: 1.; arena and caches stay where they are until the caches are detached.
    unsafe {
        let (caches, max): (&'static QuantumZones<H::P, Port<H>>, usize) = (&(*vm).caches, (*vm).cache_max);
        if max != 0 {
            let _ = caches.attach(arena(vm), max);
        }
    }
}

/// vmem_destroy(9). What is still allocated is said on standard error.
///
/// # Safety
/// 1. `vm` lives, and nobody uses it any more.
pub unsafe extern "C" fn kernmalloc_vmem_destroy<H: Host>(vm: *mut Vmem<H>) {
    H::arenas().remove(vm);
    // SAFETY: 1. The arena serves what is left by itself.
    unsafe { (*vm).caches.detach() };
    // SAFETY: 1.
    let (arena, name, closure) = unsafe { ((*vm).arena.take(), (*vm).name, (*vm).closure) };
    if let Some(Err(leak)) = arena.map(Arena::destroy) {
        let name = core::str::from_utf8(abi::c_text(&name)).unwrap_or("?");
        refuse::<H>("vmem_destroy", name, &format_args!("{:#x}, {:#x} long, is still allocated", leak.base, leak.size));
    }
    // SAFETY: 1.: from `kernmalloc_vmem_create`; what was in it is taken out, or needs no drop. The arena that called the closure is gone.
    unsafe {
        H::malloc().free(closure);
        H::malloc().free(vm.cast());
    }
}

/// vmem_add(9): another span. 0, or an error number. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `vm` lives.
pub unsafe extern "C" fn kernmalloc_vmem_add<H: Host>(
    vm: *mut Vmem<H>,
    base: usize,
    size: usize,
    flags: c_int,
) -> c_int {
    // SAFETY: 1.
    errno_of(unsafe { arena(vm) }.add(base, size, wait_of(flags)))
}

/// vmem_set_import(9), before the first allocation.
///
/// # Safety
/// 1. `import` and `release` may be called with `arg` by any thread while the arena lives. 2. `vm` lives, and nobody uses it meanwhile.
pub unsafe extern "C" fn kernmalloc_vmem_set_import<H: Host>(
    vm: *mut Vmem<H>,
    import: ImportFn,
    release: ReleaseFn,
    arg: *mut c_void,
    import_quantum: usize,
) {
    // A fork meanwhile would find no arena here.
    let _list = H::arenas().first.lock();
    // SAFETY: 2.; the source stays where it is for as long as the arena.
    unsafe {
        (*vm).caches.detach();
        let Some(arena) = (*vm).arena.take() else { return };
        if !import_quantum.is_power_of_two() || import_quantum < arena.quantum() {
            panic!("vmem_set_import: {import_quantum} is no power of two of quanta of {}", arena.quantum());
        }
        (*vm).source = Some(CSource { import, release, arg });
        let source: &'static CSource = (*vm).source.as_ref().unwrap_unchecked();
        (*vm).arena = Some(arena.with_import(source, import_quantum));
        attach(vm);
    }
}

/// vmem_set_limit(9): nothing is imported that would make the arena larger.
///
/// # Safety
/// 1. `vm` lives.
pub unsafe extern "C" fn kernmalloc_vmem_set_limit<H: Host>(vm: *mut Vmem<H>, limit: usize) {
    // SAFETY: 1.
    unsafe { arena(vm) }.set_limit((limit != 0).then_some(limit));
}

/// Puts a closure into memory of its own; the block is the second of what is returned.
fn place<H: Host, F: Fn(usize) + Sync + 'static>(call: F) -> Option<(&'static (dyn Fn(usize) + Sync), *mut u8)> {
    const { assert!(align_of::<F>() <= 16, "what malloc aligns to") }
    let block = H::malloc().malloc(&M_HANDLES, size_of::<F>(), NoWait, MallocFlags::NONE)?;
    let call_at = block.cast::<F>();
    // SAFETY: fresh memory of that size; it stays until the arena is gone.
    unsafe {
        call_at.write(call);
        Some((call_at.as_ref(), block.as_ptr()))
    }
}

/// vmem_set_reclaim(9): called when the arena cannot serve a request, before that sleeps or fails; null for none.
///
/// # Safety
/// 1. `vm` lives, and no other thread sets the function meanwhile. 2. `reclaim` may be called by any thread that uses the arena.
pub unsafe extern "C" fn kernmalloc_vmem_set_reclaim<H: Host>(vm: *mut Vmem<H>, reclaim: Option<ReclaimFn>) {
    let pointer = reclaim.map_or(null_mut(), |reclaim| reclaim as *mut c_void);
    // SAFETY: 1.
    unsafe {
        (*vm).reclaim.store(pointer, Ordering::Release);
        if reclaim.is_none() || !(*vm).closure.is_null() {
            return;
        }
    }
    let at = vm as usize;
    let call = move |_size: usize| {
        let vm = at as *mut Vmem<H>;
        // SAFETY: an arena calls while it lives. 2.
        unsafe {
            let pointer = (*vm).reclaim.load(Ordering::Acquire);
            if !pointer.is_null() {
                core::mem::transmute::<*mut c_void, ReclaimFn>(pointer)(vm.cast(), 0x0001);
            }
        }
    };
    if let Some((call, block)) = place::<H, _>(call) {
        // SAFETY: 1.
        unsafe {
            (*vm).closure = block;
            arena(vm).set_reclaim(Some(call));
        }
    }
}

/// vmem_alloc(9): a range through `*addr`. 0, or `ENOMEM` or `EINVAL`. *May sleep* with `M_WAITOK`.
///
/// # Safety
/// 1. `vm` lives. 2. `addr` may be written to.
pub unsafe extern "C" fn kernmalloc_vmem_alloc<H: Host>(
    vm: *mut Vmem<H>,
    size: usize,
    flags: c_int,
    addr: *mut usize,
) -> c_int {
    // SAFETY: 1.
    let result = unsafe { arena(vm) }.alloc(size, fit_of(flags), wait_of(flags));
    if let Ok(found) = result {
        // SAFETY: 2.
        unsafe { addr.write(found) };
    }
    errno_of(result)
}

/// vmem_xalloc(9): the same under constraints. `min` and `max` are both in the range that is allowed.
///
/// # Safety
/// 1. `vm` lives. 2. `addr` may be written to.
pub unsafe extern "C" fn kernmalloc_vmem_xalloc<H: Host>(
    vm: *mut Vmem<H>,
    size: usize,
    align: usize,
    phase: usize,
    nocross: usize,
    min: usize,
    max: usize,
    flags: c_int,
    addr: *mut usize,
) -> c_int {
    let request = Request { size, align, phase, nocross, min, max, fit: fit_of(flags) };
    // SAFETY: 1.
    let result = unsafe { arena(vm) }.xalloc(&request, wait_of(flags));
    if let Ok(found) = result {
        // SAFETY: 2.
        unsafe { addr.write(found) };
    }
    errno_of(result)
}

/// vmem_free(9). A range that is not allocated, or with another size, is a panic that says what is there. Never sleeps.
///
/// # Safety
/// 1. `vm` lives.
pub unsafe extern "C" fn kernmalloc_vmem_free<H: Host>(vm: *mut Vmem<H>, addr: usize, size: usize) {
    // SAFETY: 1.
    if let Err(error) = unsafe { arena(vm) }.free(addr, size) {
        panic!("vmem_free({addr:#x}, {size:#x}): {error}");
    }
}

/// vmem_xfree(9): vmem_free for what vmem_xalloc gave.
///
/// # Safety
/// 1. `vm` lives.
pub unsafe extern "C" fn kernmalloc_vmem_xfree<H: Host>(vm: *mut Vmem<H>, addr: usize, size: usize) {
    // SAFETY: 1.
    if let Err(error) = unsafe { arena(vm) }.xfree(addr, size) {
        panic!("vmem_xfree({addr:#x}, {size:#x}): {error}");
    }
}

/// vmem_size(9): the sum of what is `VMEM_ALLOC`, `VMEM_FREE` or both; or `VMEM_MAXFREE`, the largest free range.
///
/// # Safety
/// 1. `vm` lives.
pub unsafe extern "C" fn kernmalloc_vmem_size<H: Host>(vm: *mut Vmem<H>, mask: c_int) -> usize {
    // SAFETY: 1.
    let arena = unsafe { arena(vm) };
    const BOTH: c_int = VMEM_ALLOC | VMEM_FREE;
    match mask {
        VMEM_ALLOC => arena.size(Size::Alloc),
        VMEM_FREE => arena.size(Size::Free),
        BOTH => arena.size(Size::Total),
        VMEM_MAXFREE => arena.size(Size::MaxFree),
        other => panic!("vmem_size: unknown mask {other:#x}"),
    }
}

/// vmem_roundup_size(9).
///
/// # Safety
/// 1. `vm` lives.
pub unsafe extern "C" fn kernmalloc_vmem_roundup_size<H: Host>(vm: *mut Vmem<H>, size: usize) -> usize {
    // SAFETY: 1.
    unsafe { arena(vm) }.roundup_size(size).unwrap_or(0)
}
