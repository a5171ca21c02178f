//! From the address of a call to the type that its blocks are credited to.
//!
//! Fast path: a two-way cache of words, each `return address << 16 | id`, where an id below 0x8000 is a type and one
//! above names a *frame rule*: the call is inside a wrapper, step over its frame and look again. Everything else is cold
//! and under one lock: the full table, new call sites, new modules.

use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use abi::{NO_LIB, type_kind};
use kern::TypeId;
use platform::{Lock, RawLock};

use crate::cfi::{self, FrameRule};
use crate::lock::FutexLock;
use crate::modules::Modules;
use crate::port::SYSTEM;
use crate::{sys, tunables};

const CACHE_BITS: u32 = 11;
/// Pairs of neighbours are the two ways. Public for entry points in assembler, which look as [`cached_type`] does.
pub static CACHE: [AtomicU64; 1 << CACHE_BITS] = [const { AtomicU64::new(0) }; 1 << CACHE_BITS];

const RULE: u16 = 0x8000;
/// The greatest id that is a type's.
pub const LAST_TYPE: u16 = RULE - 1;
/// Call sites inside wrappers that are looked through.
const MOST_RULES: usize = 4096;
/// Wrappers within wrappers. (A vector of an unoptimised Rust program asks through ten functions of its library.)
const MOST_FRAMES: usize = 24;
/// A frame of a wrapper is not larger than this; a sum that says so is wrong.
const MOST_FRAME_BYTES: usize = 64 * 1024;

/// Where a call came from, as the entry point of the library saw it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Return address.
    pub ret: usize,
    /// Stack pointer after the return.
    pub stack: usize,
    /// Frame pointer register at the call.
    pub frame: usize,
}

#[derive(Clone, Copy)]
struct Rule {
    frame: FrameRule,
    /// The wrapper's own call site, for a stack that does not look as expected.
    own: TypeId,
}

static RULES: AtomicPtr<Rule> = AtomicPtr::new(core::ptr::null_mut());

struct Sites {
    modules: Modules,
    /// Open addressing, the cache's word format; 0 empty, 1 removed.
    table: *mut u64,
    capacity: usize,
    used: usize,
    rules: usize,
}

// SAFETY: behind the lock.
unsafe impl Send for Sites {}

static SITES: Lock<FutexLock, Sites> =
    Lock::new(Sites { modules: Modules::new(), table: core::ptr::null_mut(), capacity: 0, used: 0, rules: 0 });
/// Thread that holds the lock while it reads unwind tables, for a fault there to be told apart.
static MODE: AtomicU32 = AtomicU32::new(u32::MAX);

const fn slot_of(address: usize, bits: u32) -> usize {
    ((address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
}

/// Where [`CACHE`] keeps an address: these low bits, which differ most.
pub const WAY_MASK: usize = (1 << CACHE_BITS) - 1;

#[inline(always)]
const fn way_of(ret: usize) -> usize {
    ret & WAY_MASK
}

/// The type to credit for a call that returns to `ret`, when the cache knows it and it is no wrapper's.
#[inline(always)]
#[must_use]
pub fn cached_type(ret: usize) -> Option<TypeId> {
    let word = CACHE[way_of(ret)].load(Ordering::Relaxed);
    // The address cancels; what is left is the id, below RULE for a type.
    let id = word ^ (ret as u64) << 16;
    if id < u64::from(RULE) { Some(TypeId::from_tag(id as u16)) } else { None }
}

/// The type to credit for a call.
#[inline(always)]
#[must_use]
pub fn type_of(call: Call) -> TypeId {
    match cached_type(call.ret) {
        Some(id) => id,
        None => type_of_slow::<false>(call),
    }
}

#[inline]
fn cached(ret: usize) -> Option<u16> {
    let first = way_of(ret);
    [first, first ^ 1]
        .into_iter()
        .map(|way| CACHE[way].load(Ordering::Relaxed))
        .find(|word| word >> 16 == ret as u64)
        .map(|word| word as u16)
}

/// What the cache does not say at once. (Generic in nothing, so that it is compiled where it is called, for speed as its callers are;
/// not inlined, or they would save registers for it.)
#[inline(never)]
fn type_of_slow<const NOTHING: bool>(call: Call) -> TypeId {
    type_of_uncached(call)
}

/// The type to credit for a call that [`cached_type`] does not know.
#[inline(always)]
#[must_use]
pub fn type_of_uncached(mut call: Call) -> TypeId {
    for _ in 0..MOST_FRAMES {
        let id = match cached(call.ret) {
            Some(id) => id,
            None => match learn(call.ret) {
                Some(id) => id,
                None => return TypeId::MALLOC,
            },
        };
        if id & RULE == 0 {
            return TypeId::from_tag(id);
        }
        // SAFETY: a rule is written before its id is given out.
        let rule = unsafe { *RULES.load(Ordering::Acquire).add((id & !RULE) as usize) };
        match step(call, &rule.frame) {
            Some(caller) => call = caller,
            None => return rule.own,
        }
    }
    TypeId::MALLOC
}

/// The caller's caller.
#[inline]
fn step(call: Call, rule: &FrameRule) -> Option<Call> {
    let base = if rule.from_frame_pointer { call.frame } else { call.stack };
    let frame_addr = base.wrapping_add_signed(rule.offset as isize);
    // Frames lie upward from the stack pointer, words aligned: what does not is no frame.
    if frame_addr <= call.stack - 8 || frame_addr - call.stack > MOST_FRAME_BYTES || !frame_addr.is_multiple_of(8) {
        return None;
    }
    // SAFETY: inside the stack of the calling thread, between its stack pointer and the frame that made the call.
    unsafe {
        Some(Call {
            ret: *((frame_addr - 8) as *const usize),
            stack: frame_addr,
            frame: match rule.frame_pointer_at {
                Some(at) => *(frame_addr.wrapping_add_signed(at as isize) as *const usize),
                None => call.frame,
            },
        })
    }
}

/// Finds or makes the id of a return address. `None` before boot and when attribution is off.
#[cold]
fn learn(ret: usize) -> Option<u16> {
    if !crate::port::boot() {
        return None;
    }
    if MODE.load(Ordering::Relaxed) == u32::MAX {
        MODE.store(tunables::attribution(), Ordering::Relaxed);
    }
    let mode = MODE.load(Ordering::Relaxed);
    let id = if mode == abi::attribution::OFF {
        TypeId::MALLOC.index() as u16
    } else {
        let mut sites = SITES.lock();
        match sites.find(ret) {
            Some(id) => id,
            None => {
                let id = sites.classify(ret, mode);
                sites.insert(ret, id);
                id
            }
        }
    };
    let first = way_of(ret);
    let displaced = CACHE[first].swap((ret as u64) << 16 | u64::from(id), Ordering::Relaxed);
    CACHE[first ^ 1].store(displaced, Ordering::Relaxed);
    Some(id)
}

impl Sites {
    fn entries(&self) -> &[u64] {
        if self.table.is_null() {
            return &[];
        }
        // SAFETY: our own memory of that size.
        unsafe { core::slice::from_raw_parts(self.table, self.capacity) }
    }

    fn find(&self, ret: usize) -> Option<u16> {
        if self.capacity == 0 {
            return None;
        }
        let mut at = slot_of(ret, self.capacity.trailing_zeros());
        loop {
            match self.entries()[at] {
                0 => return None,
                word if word >> 16 == ret as u64 => return Some(word as u16),
                _ => at = (at + 1) % self.capacity,
            }
        }
    }

    /// Remembers an id. Without memory the address is classified again next time.
    fn insert(&mut self, ret: usize, id: u16) {
        if 2 * (self.used + 1) > self.capacity && self.grow().is_none() && self.used + 1 >= self.capacity {
            return;
        }
        self.place((ret as u64) << 16 | u64::from(id));
        self.used += 1;
    }

    fn place(&mut self, word: u64) {
        let mut at = slot_of((word >> 16) as usize, self.capacity.trailing_zeros());
        while self.entries()[at] > 1 {
            at = (at + 1) % self.capacity;
        }
        // SAFETY: below the capacity, as the slice access showed.
        unsafe { *self.table.add(at) = word };
    }

    fn grow(&mut self) -> Option<()> {
        let capacity = (self.capacity * 2).max(512);
        let memory = sys::map_anywhere(capacity * 8)?;
        let (old, old_capacity) = (self.table, self.capacity);
        (self.table, self.capacity, self.used) = (memory as *mut u64, capacity, 0);
        for index in 0..old_capacity {
            // SAFETY: the old table, still mapped.
            let word = unsafe { *old.add(index) };
            if word > 1 {
                self.place(word);
                self.used += 1;
            }
        }
        if !old.is_null() {
            // SAFETY: 1. ours, and not used any more.
            unsafe { sys::unmap(old as usize, old_capacity * 8) };
        }
        Some(())
    }

    /// What a call at a new address is: a site of its library, or a step through a wrapper.
    fn classify(&mut self, ret: usize, mode: u32) -> u16 {
        let overflow = TypeId::OVERFLOW.index() as u16;
        let Some(module) = self.modules.find(ret - 1) else { return self.site(None, ret, mode) };
        if self.modules.lib_of(module).is_none() {
            return overflow;
        }
        if mode != abi::attribution::OFF
            && self.modules.in_wrapper(module, ret)
            && let Some(id) = self.rule(module, ret, mode)
        {
            return id;
        }
        self.site(Some(module), ret, mode)
    }

    /// A frame rule for a call inside a wrapper.
    fn rule(&mut self, module: usize, ret: usize, mode: u32) -> Option<u16> {
        let image = self.modules.all()[module].image?;
        if image.unwind_table == 0 || self.rules >= MOST_RULES {
            return None;
        }
        // SAFETY: 1. the loaded table of the image that contains the call.
        let frame = unsafe { cfi::rule_at(image.unwind_table, ret - 1)? };
        let own = TypeId::from_tag(self.site(Some(module), ret, mode));
        let mut rules = RULES.load(Ordering::Relaxed);
        if rules.is_null() {
            rules = sys::map_anywhere(MOST_RULES * size_of::<Rule>())? as *mut Rule;
        }
        // SAFETY: below the table's size; no reader knows this index yet.
        unsafe { rules.add(self.rules).write(Rule { frame, own }) };
        RULES.store(rules, Ordering::Release);
        self.rules += 1;
        Some(RULE | (self.rules - 1) as u16)
    }

    /// The type of a call site; when the table is full, that of all further sites of its library.
    fn site(&mut self, module: Option<usize>, ret: usize, mode: u32) -> u16 {
        let overflow = TypeId::OVERFLOW.index() as u16;
        let Some(index) = module else { return overflow };
        let module = self.modules.all()[index];
        let Some(lib) = module.lib else { return overflow };
        if mode == abi::attribution::LIBRARY {
            return self.library_type(index, lib, type_kind::LIBRARY);
        }
        // Generated code has no offsets that mean anything: one site for all of it.
        let offset = module.image.map_or(0, |image| ret.wrapping_sub(image.bias)) as u64;
        if (module.seen_before || module.image.is_none())
            && let Some(id) = known_site(lib, offset)
        {
            return id;
        }
        let header = SYSTEM.header();
        // The last eighth is kept for libraries whose sites find no room.
        let room = header.types.capacity - header.types.capacity / 8;
        let site = if header.types.used.load(Ordering::Relaxed) < room {
            SYSTEM.register_type(type_kind::SITE, lib, offset, b"")
        } else {
            None
        };
        match site {
            Some(id) => id.index() as u16,
            None => self.library_type(index, lib, type_kind::LIB_OVERFLOW),
        }
    }

    /// The one type of a library that stands for many sites.
    fn library_type(&mut self, module: usize, lib: u32, kind: u32) -> u16 {
        if let Some(id) = self.modules.all()[module].overflow {
            return id.index() as u16;
        }
        let shared = self.modules.all().iter().find(|other| other.lib == Some(lib)).and_then(|other| other.overflow);
        let id = shared.or_else(|| SYSTEM.register_type(kind, lib, 0, b"")).unwrap_or(TypeId::OVERFLOW);
        self.modules.all()[module].overflow = Some(id);
        id.index() as u16
    }

    /// Forgets the addresses of modules that are gone; their types and figures stay.
    fn forget_dead(&mut self) {
        for index in 0..self.modules.all().len() {
            let module = self.modules.all()[index];
            if module.live || module.start == 0 {
                continue;
            }
            let inside = |word: u64| (module.start as u64..=module.end as u64).contains(&(word >> 16));
            for at in 0..self.capacity {
                if inside(self.entries()[at]) {
                    // SAFETY: below the capacity.
                    unsafe { *self.table.add(at) = 1 };
                }
            }
            for way in &CACHE {
                if inside(way.load(Ordering::Relaxed)) {
                    way.store(0, Ordering::Relaxed);
                }
            }
            let dead = &mut self.modules.all()[index];
            (dead.start, dead.end, dead.lib) = (0, 0, None);
        }
    }
}

/// A site registered before, by library and offset.
fn known_site(lib: u32, offset: u64) -> Option<u16> {
    let used = SYSTEM.header().types.used.load(Ordering::Relaxed) as usize;
    (TypeId::BUILT_IN..used)
        .filter_map(TypeId::new)
        .find(|&id| {
            let record = SYSTEM.type_record(id);
            record.kind == type_kind::SITE && record.lib == lib && record.offset == offset
        })
        .map(|id| id.index() as u16)
}

/// A library may be about to go, named by the address of its dynamic section: forgets its addresses now, so that what
/// another thread maps in its place meanwhile is not taken for it. If it stays after all it is found again.
pub fn library_closing(dynamic: usize) {
    let mut sites = SITES.lock();
    let mut known = false;
    for module in sites.modules.all() {
        if module.live && module.image.is_some_and(|image| image.dynamic == dynamic) {
            module.live = false;
            known = true;
        }
    }
    if known {
        sites.forget_dead();
    }
}

/// A library may have gone: addresses in it mean nothing any more. After dlclose(3).
pub fn library_closed() {
    let mut sites = SITES.lock();
    sites.modules.refresh();
    sites.forget_dead();
}

/// Whether two addresses of code belong to one loaded file.
pub fn same_module(a: usize, b: usize) -> bool {
    let mut sites = SITES.lock();
    let a = sites.modules.find(a);
    a.is_some() && a == sites.modules.find(b)
}

/// File and offset of an address, for a report. False when nothing is known of it.
pub(crate) fn describe(addr: usize, mut with: impl FnMut(&[u8], usize)) -> bool {
    // A report may come from a thread that holds the lock; it then does without names.
    let Some(mut sites) = SITES.try_lock() else { return false };
    match sites.modules.describe(addr.wrapping_sub(1)) {
        Some((path, offset)) => {
            with(path, offset + 1);
            true
        }
        None => false,
    }
}

/// Stops new sites, for fork.
pub(crate) fn freeze() {
    SITES.raw().lock();
}

/// # Safety
/// 1. The caller (or the thread it is a copy of) has called [`freeze`].
pub(crate) unsafe fn thaw() {
    // SAFETY: 1.
    unsafe { SITES.raw().unlock() };
}

const _: () = assert!(NO_LIB == u32::MAX);
