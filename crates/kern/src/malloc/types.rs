//! Malloc types: static objects, registered on first use, on a list that readers of the statistics see. What a type is, its *state
//! word* says (`state`).

use core::cell::Cell;
use core::ptr::{NonNull, null_mut};

use abi::Ordering;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use platform::{Misuse, MisuseReport, Platform};

use super::Malloc;
use super::private::Private;
use super::state::{State, StateWord};
use crate::stats::TypeId;
use crate::text::Text;

/// A malloc type. Made with [`malloc_define!`](crate::malloc_define); `MALLOC_DEFINE` of malloc(9).
///
/// A type belongs to one allocator, the one that it was first used with.
#[doc(alias = "malloc_type")]
#[derive(Debug)]
pub struct MallocType {
    // Constant.
    short_description: &'static str,
    long_description: &'static str,
    limit_at_definition: usize,
    /// Changes at registration, with the limit, the trace and failures on purpose; under the list's lock.
    state: StateWord,
    /// The id's index while the type is registered and ordinary, else 0: what a port looks at that knows its types for types.
    quick: AtomicU32,
    // Under the list's lock.
    next: AtomicPtr<MallocType>,
    /// The handle: what it has while it is registered, else null. `ks_mti`.
    private: AtomicPtr<Private>,
}

/// Why types were not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TypeError {
    /// The table of types is full; the description of the first that found no room.
    Full(&'static str),
    /// There is no memory for its private data; the next use tries again.
    Memory(&'static str),
    /// It is attached already. Also reported as a misuse.
    Attached(&'static str),
    /// It is not attached. Also reported as a misuse.
    NotAttached(&'static str),
}

impl core::fmt::Display for TypeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Full(name) => write!(f, "no room for the malloc type {name}: the table of types is full"),
            Self::Memory(name) => write!(f, "no memory for the private data of the malloc type {name}"),
            Self::Attached(name) => write!(f, "the malloc type {name} is attached already"),
            Self::NotAttached(name) => write!(f, "the malloc type {name} is not attached"),
        }
    }
}

/// What a type looks like to [`Malloc::look`].
pub(super) enum Look {
    Plain(TypeId),
    /// With a limit, with a trace, or one whose requests fail on purpose.
    Special {
        id: TypeId,
        traced: bool,
    },
    Bad,
}

impl Look {
    /// The record, if it is a type.
    pub(super) fn id(&self) -> Option<TypeId> {
        match *self {
            Self::Plain(id) | Self::Special { id, .. } => Some(id),
            Self::Bad => None,
        }
    }
}

impl MallocType {
    /// A type with a short description (shown by `vmstat -m`, cut at 31 bytes) and a long one.
    #[must_use]
    pub const fn new(short_description: &'static str, long_description: &'static str) -> Self {
        Self::with_limit(short_description, long_description, 0)
    }

    /// A type whose memory in use may not reach `limit_bytes`, 0 for no limit. `MALLOC_DEFINE_LIMIT`.
    #[doc(alias = "MALLOC_DEFINE_LIMIT")]
    #[must_use]
    pub const fn with_limit(
        short_description: &'static str,
        long_description: &'static str,
        limit_bytes: usize,
    ) -> Self {
        Self {
            short_description,
            long_description,
            limit_at_definition: limit_bytes,
            state: StateWord(AtomicU64::new(StateWord::NEW)),
            quick: AtomicU32::new(0),
            next: AtomicPtr::new(null_mut()),
            private: AtomicPtr::new(null_mut()),
        }
    }

    /// The short description.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.short_description
    }

    /// The long description.
    #[must_use]
    pub const fn description(&self) -> &'static str {
        self.long_description
    }

    /// The type's id in its allocator, once it is attached.
    #[must_use]
    pub fn id(&self) -> Option<TypeId> {
        self.state.index().and_then(TypeId::new)
    }

    /// The type's id while it is attached and nothing is special about it, so that nothing has to be asked about a request of it. Of a type that
    /// found no row when it was first used: the id of the row for those. One load.
    #[inline(always)]
    #[must_use]
    pub fn ordinary_id(&self) -> Option<TypeId> {
        match self.quick.load(Ordering::Relaxed) {
            0 => None,
            index => TypeId::new(index as usize),
        }
    }

    /// Its private data, while it is attached.
    pub(super) fn data(&self) -> Option<&Private> {
        // SAFETY: null, or an item of a zone that never gives its slabs back, and all of whose fields are atomics: whatever becomes of the
        // type meanwhile, there is such a value.
        unsafe { self.private.load(Ordering::Acquire).as_ref() }
    }

    /// Changes the state word of an attached type, under the list's lock.
    fn change(&self, _list: &List, change: impl FnOnce(&StateWord)) {
        if self.state.index().is_some() {
            self.quick.store(0, Ordering::Release);
            change(&self.state);
            self.show_ordinary();
        }
    }

    /// After the state word was written.
    fn show_ordinary(&self) {
        if let State::Ordinary { index } = self.state.read() {
            self.quick.store(index as u32, Ordering::Release);
        }
    }

    /// Sets or clears the special bit of a limit.
    pub(super) fn set_limited(&self, list: &List, limited: bool) {
        self.change(list, |state| state.set_limited(limited));
    }

    /// Sets or clears the special bit of a trace.
    pub(super) fn set_traced(&self, list: &List, traced: bool) {
        self.change(list, |state| state.set_traced(traced));
    }

    /// Sets or clears the special bit of failures on purpose.
    pub(super) fn set_failing(&self, list: &List, failing: bool) {
        self.change(list, |state| state.set_failing(failing));
    }
}

/// Defines malloc types: `malloc_define!(pub M_TEMP, "temp", "misc temporary data");`, with a limit in bytes as a fourth
/// argument if it has one. `MALLOC_DEFINE` of malloc(9).
#[macro_export]
macro_rules! malloc_define {
    ($(#[$attr:meta])* $vis:vis $name:ident, $short:expr, $long:expr $(,)?) => {
        $(#[$attr])*
        #[doc = $long]
        $vis static $name: $crate::malloc::MallocType = $crate::malloc::MallocType::new($short, $long);
    };
    ($(#[$attr:meta])* $vis:vis $name:ident, $short:expr, $long:expr, $limit:expr $(,)?) => {
        $(#[$attr])*
        #[doc = $long]
        $vis static $name: $crate::malloc::MallocType = $crate::malloc::MallocType::with_limit($short, $long, $limit);
    };
}

/// Defines a module's types and the slice of them that [`Malloc::load`](crate::malloc::Malloc::load) and
/// [`unload`](crate::malloc::Malloc::unload) take: the link set of a loadable module.
///
/// ```
/// kernmalloc_kern::malloc_types! {
///     /// The types of the example driver.
///     pub static TYPES;
///     M_EXAMPLE_BUFFERS: "exbuf", "example driver buffers";
///     M_EXAMPLE_QUEUE: "exqueue", "example driver queues";
/// }
/// assert_eq!(TYPES.len(), 2);
/// ```
#[macro_export]
macro_rules! malloc_types {
    ($(#[$attr:meta])* $vis:vis static $set:ident; $($name:ident: $short:expr, $long:expr;)+) => {
        $($crate::malloc_define!($vis $name, $short, $long);)+
        $(#[$attr])*
        $vis static $set: &[&$crate::malloc::MallocType] = &[$(&$name),+];
    };
}

malloc_define!(
    /// Built in.
    pub M_CACHE, "cache", "dynamically allocated cache"
);
malloc_define!(
    /// Built in.
    pub M_DEVBUF, "devbuf", "device driver memory"
);
malloc_define!(
    /// Built in.
    pub M_TEMP, "temp", "misc temporary data buffers"
);

impl<P: Platform> Malloc<'_, P> {
    /// What a type is. One compare for one that is registered and ordinary.
    #[inline(always)]
    pub(super) fn look(&self, ty: &'static MallocType) -> Look {
        match ty.state.ordinary() {
            Some(index) => Look::Plain(id_of(index)),
            None => self.look_cold(ty),
        }
    }

    #[cold]
    #[inline(never)]
    fn look_cold(&self, ty: &'static MallocType) -> Look {
        let mut state = ty.state.read();
        if state == State::New {
            // Types beyond the table are credited to the row that says so, and have no limit; those that find no memory are, this once.
            match self.attach_unless_attached(ty) {
                Ok(_) => {}
                Err(TypeError::Full(_)) => {
                    ty.quick.store(TypeId::OVERFLOW.index() as u32, Ordering::Relaxed);
                    return Look::Plain(TypeId::OVERFLOW);
                }
                Err(_) => return Look::Plain(TypeId::OVERFLOW),
            }
            state = ty.state.read();
        }
        match state {
            State::Ordinary { index } => Look::Plain(id_of(index)),
            State::Special { index, traced, .. } => Look::Special { id: id_of(index), traced },
            // Gone again at once: its module is unloaded under its user.
            State::New => Look::Plain(TypeId::OVERFLOW),
            State::NotAType => {
                self.type_misuse(Misuse::BadType, ty);
                Look::Bad
            }
        }
    }

    /// The type's id; registers it if need be. That of the row for those that find none when the table of types is full. Never sleeps.
    pub fn type_id(&self, ty: &'static MallocType) -> TypeId {
        self.look(ty).id().unwrap_or(TypeId::OVERFLOW)
    }

    pub(super) fn type_misuse(&self, what: Misuse, ty: &'static MallocType) {
        self.system.header().misuses.fetch_add(1, Ordering::Relaxed);
        P::misuse(&MisuseReport {
            what,
            addr: core::ptr::from_ref(ty) as usize,
            item: 0,
            item_bytes: 0,
            type_index: None,
            caller: 0,
            freed_by: 0,
            zone_name: [0; 32],
        });
    }

    /// First use, or a module that is loaded: the type gets its record. `Ok(false)` when somebody else was first.
    fn attach_unless_attached(&self, ty: &'static MallocType) -> Result<bool, TypeError> {
        if ty.state.read() != State::New {
            return Ok(false);
        }
        // Before the lock: the zone's slow path may come back to the list of types.
        let private = self.new_private().ok_or(TypeError::Memory(ty.short_description))?;
        let attached = self.attach_with(ty, private);
        if !matches!(attached, Ok(true)) {
            self.free_private(private);
        }
        attached
    }

    /// [`attach_unless_attached`](Self::attach_unless_attached) with its private data at hand, which is the type's after `Ok(true)`.
    fn attach_with(&self, ty: &'static MallocType, private: NonNull<Private>) -> Result<bool, TypeError> {
        let list = self.list.lock();
        if ty.state.read() != State::New {
            return Ok(false);
        }
        let name = ty.short_description.as_bytes();
        let id = match self.system.revive_type(name) {
            Some(id) => id,
            None => self
                .system
                .register_type(abi::type_kind::STATIC, abi::NO_LIB, 0, name)
                .ok_or(TypeError::Full(ty.short_description))?,
        };
        let record = self.system.type_record(id);
        record.limit_bytes.store(ty.limit_at_definition as u64, Ordering::Relaxed);
        let failing = self.system.header().control.failure_rate.load(Ordering::Relaxed) != 0;
        ty.next.store(list.0.get().cast_mut(), Ordering::Relaxed);
        list.0.set(ty);
        ty.private.store(private.as_ptr(), Ordering::Release);
        ty.state.register(id.index(), ty.limit_at_definition != 0);
        if failing {
            ty.state.set_failing(true);
        }
        ty.show_ordinary();
        Ok(true)
    }

    /// Attaches a type before its first use. A type that is attached already is reported ([`Misuse::TypeList`]) and left alone.
    /// Never sleeps. NetBSD `malloc_type_attach`.
    #[doc(alias = "malloc_type_attach")]
    #[doc(alias = "malloc_init")]
    pub fn attach(&self, ty: &'static MallocType) -> Result<(), TypeError> {
        if ty.state.read() == State::NotAType {
            self.type_misuse(Misuse::BadType, ty);
            return Err(TypeError::NotAttached(ty.short_description));
        }
        if self.attach_unless_attached(ty)? {
            return Ok(());
        }
        self.type_misuse(Misuse::TypeList, ty);
        Err(TypeError::Attached(ty.short_description))
    }

    /// Detaches a type: its module goes. Memory it still owns is warned of and keeps its row until it is freed. A type that is not
    /// attached is reported ([`Misuse::TypeList`]). Nobody may be allocating with it. Never sleeps. NetBSD `malloc_type_detach`.
    #[doc(alias = "malloc_type_detach")]
    #[doc(alias = "malloc_uninit")]
    pub fn detach(&self, ty: &'static MallocType) -> Result<(), TypeError> {
        let found = {
            let list = self.list.lock();
            let mut link: Option<&'static MallocType> = None;
            let mut at = list.0.get();
            // SAFETY: the list holds static types only.
            while let Some(here) = unsafe { at.as_ref::<'static>() } {
                if core::ptr::eq(here, ty) {
                    break;
                }
                link = Some(here);
                at = here.next.load(Ordering::Relaxed);
            }
            if at.is_null() {
                None
            } else {
                let next = ty.next.load(Ordering::Relaxed);
                match link {
                    Some(before) => before.next.store(next, Ordering::Relaxed),
                    None => list.0.set(next),
                }
                let id = ty.id();
                self.forget_trace(ty);
                ty.quick.store(0, Ordering::Release);
                ty.state.unregister();
                if let Some(id) = id {
                    self.system.retire_type(id);
                }
                id.zip(NonNull::new(ty.private.swap(null_mut(), Ordering::AcqRel)))
            }
        };
        if let Some((_, private)) = found {
            self.free_private(private);
        }
        let Some((id, _)) = found else {
            self.type_misuse(Misuse::TypeList, ty);
            return Err(TypeError::NotAttached(ty.short_description));
        };
        let mut totals = self.system.totals(id);
        if totals.in_use() != 0 {
            // Nobody is accused of a leak for a free that was on its way into the sum.
            totals = self.system.totals_at_rest(id);
        }
        if totals.in_use() != 0 {
            let mut text = Text::<192>::new();
            text.push(b"Warning: memory type ").push(ty.short_description.as_bytes());
            text.push(b" leaked memory on destroy (").push_number(totals.in_use()).push(b" allocations, ");
            text.push_number(totals.bytes_in_use()).push(b" bytes leaked).");
            P::warning(text.as_bytes());
        }
        Ok(())
    }

    /// A module comes: attaches its types, all or none. `SYSINIT` of malloc(9).
    pub fn load(&self, types: &[&'static MallocType]) -> Result<(), TypeError> {
        for (index, ty) in types.iter().enumerate() {
            if let Err(error) = self.attach(ty) {
                for earlier in &types[..index] {
                    let _ = self.detach(earlier);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// A module goes: detaches those of its types that were ever used or loaded. `SYSUNINIT` of malloc(9).
    pub fn unload(&self, types: &[&'static MallocType]) {
        for ty in types {
            if ty.id().is_some() {
                let _ = self.detach(ty);
            }
        }
    }

    /// Calls `visit` for every attached type, the newest first, until it returns `false`. A lock is held meanwhile: `visit` must not
    /// allocate with a type for the first time. malloc(9) `malloc_type_list`.
    #[doc(alias = "malloc_type_list")]
    pub fn for_each_type(&self, mut visit: impl FnMut(&'static MallocType) -> bool) {
        self.list.lock().each(&mut visit);
    }

    /// The attached type with this short description. malloc(9) `malloc_desc2type`.
    #[doc(alias = "malloc_desc2type")]
    pub fn find_type(&self, short_description: &str) -> Option<&'static MallocType> {
        let mut found = None;
        self.for_each_type(|ty| {
            if ty.short_description == short_description {
                found = Some(ty);
            }
            found.is_none()
        });
        found
    }

    /// Attached types. `kern.malloc_count`.
    pub fn type_count(&self) -> usize {
        let mut count = 0;
        self.for_each_type(|_| {
            count += 1;
            true
        });
        count
    }
}

fn id_of(index: usize) -> TypeId {
    // The overflow row stands in for an id that cannot be.
    TypeId::new(index).unwrap_or(TypeId::OVERFLOW)
}
const _: () = assert!(TypeId::MAX <= StateWord::INDEX_MAX);

/// First of the list of types.
pub(super) struct List(pub(super) Cell<*const MallocType>);

impl List {
    /// Calls `visit` for every type on it, until it returns `false`.
    pub(super) fn each(&self, mut visit: impl FnMut(&'static MallocType) -> bool) {
        let mut at = self.0.get();
        // SAFETY: the list holds static types only.
        while let Some(here) = unsafe { at.as_ref::<'static>() } {
            if !visit(here) {
                return;
            }
            at = here.next.load(Ordering::Relaxed);
        }
    }
}

// SAFETY: static types, reached under the list's lock.
unsafe impl Send for List {}
