//! Malloc types of a program's own.
//!
//! A type is a static object around one of the core's. It is registered, that is given a row of the statistics, when it is first used; from
//! then on a word of it holds the row's index, and using it is one load of that word. The word is 0 again while there is something special
//! about the type, a limit for instance: then requests go through the core's malloc(9), which looks.

use core::alloc::Layout;
use core::fmt;

use hosted::{Linux, MALLOC, SYSTEM};
use kern::class::{RUN_MAX_BYTES, class_bytes, class_of, run_bytes};
use kern::malloc::{Flags, NoWait, Wait};
use kern::{System, TypeId};

use crate::global;
use crate::scope::{InScope, Scope};
use crate::stats::TypeStats;

/// Longest short description, bytes: what `vmstat -m` has room for (`MEMTYPE_MAXNAME` of FreeBSD, less the NUL).
pub const NAME_MAX_BYTES: usize = 31;

/// Defines a malloc type: the static's name, the short description that `vmstat -m` shows, and a long one, which is also the
/// static's documentation. malloc(9), `MALLOC_DEFINE`.
///
/// ```
/// kernmalloc::malloc_define!(M_PARSER, "parser", "trees that are not yet compiled");
/// kernmalloc::malloc_define!(
///     /// Visibility, attributes and more documentation go in front.
///     pub(crate) M_LEXER, "lexer", "tokens of the file at hand"
/// );
/// assert_eq!(M_PARSER.scope(|| Box::new([0u8; 64])).len(), 64);
/// ```
///
/// A short description is of 1 to [`NAME_MAX_BYTES`] bytes; another does not compile:
///
/// ```compile_fail
/// kernmalloc::malloc_define!(M_LONG, "a short description of 32 bytes!", "one byte too many");
/// ```
///
/// A fourth argument is a [limit](MallocType::set_limit) in bytes.
///
/// Two types may have the same short description, as in malloc(9): they are two rows of that name, and
/// [`find`](crate::find) gives the one that was used first.
#[doc(alias = "MALLOC_DEFINE")]
#[macro_export]
macro_rules! malloc_define {
    ($(#[$attribute:meta])* $visibility:vis $name:ident, $short:expr, $long:literal $(,)?) => {
        $(#[$attribute])*
        #[doc = $long]
        $visibility static $name: $crate::MallocType = $crate::MallocType::new($short, $long);
    };
    ($(#[$attribute:meta])* $visibility:vis $name:ident, $short:expr, $long:literal, $limit:expr $(,)?) => {
        $(#[$attribute])*
        #[doc = $long]
        $visibility static $name: $crate::MallocType = $crate::MallocType::with_limit($short, $long, $limit);
    };
}

/// A malloc type: who is to be shown as the owner of a block. Made by [`malloc_define!`](crate::malloc_define).
///
/// Nothing here sleeps but what says so. Registration, at the first use, takes a lock.
pub struct MallocType {
    core: kern::malloc::MallocType,
}

impl MallocType {
    /// For [`malloc_define!`](crate::malloc_define).
    ///
    /// # Panics
    /// `name` is not of 1 to [`NAME_MAX_BYTES`] bytes, or has a NUL or a line's end in it: in a constant, an error of the compiler.
    #[must_use]
    pub const fn new(name: &'static str, description: &'static str) -> Self {
        Self::with_limit(name, description, 0)
    }

    /// A type with a limit from the start, see [`set_limit`](Self::set_limit).
    ///
    /// # Panics
    /// As [`new`](Self::new).
    #[must_use]
    pub const fn with_limit(name: &'static str, description: &'static str, limit_bytes: usize) -> Self {
        match check(name) {
            Ok(()) => Self { core: kern::malloc::MallocType::with_limit(name, description, limit_bytes) },
            Err(RegisterError::NameEmpty) => panic!("a malloc type's short description is empty"),
            Err(RegisterError::NameTooLong(_)) => panic!("a malloc type's short description has more than 31 bytes"),
            Err(_) => panic!("a malloc type's short description has a control character in it"),
        }
    }

    /// The short description, as `vmstat -m` shows it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.core.name()
    }

    /// The long description.
    #[must_use]
    pub const fn description(&self) -> &'static str {
        self.core.description()
    }

    /// The index of the row, for as long as the program runs. Registers the type at the first call. `None` when the system
    /// gives no memory for an allocator; the next call tries again.
    #[inline(always)]
    pub(crate) fn id(&'static self) -> Option<TypeId> {
        match self.core.ordinary_id() {
            None => self.id_cold(),
            id => id,
        }
    }

    #[cold]
    #[inline(never)]
    fn id_cold(&'static self) -> Option<TypeId> {
        hosted::boot().then(|| MALLOC.type_id(&self.core))
    }

    /// The row, if the type has one yet.
    fn known_id(&self) -> Option<TypeId> {
        self.core.id().or_else(|| self.core.ordinary_id())
    }

    /// A block of this type, aligned as `layout` says, its contents undefined; null when there is no memory. A layout of no
    /// bytes gets a block of the smallest size. Never sleeps. Null also when the type is at its limit. malloc(9) with `M_NOWAIT`.
    ///
    /// Give it back with [`free`].
    #[must_use]
    #[inline]
    pub fn malloc(&'static self, layout: Layout) -> *mut u8 {
        match self.core.ordinary_id() {
            Some(id) => global::alloc_as(layout, id),
            None => self.malloc_cold(layout, Flags::NONE),
        }
    }

    /// The first block, which registers the type; and the blocks of one that is not ordinary.
    #[cold]
    #[inline(never)]
    fn malloc_cold(&'static self, layout: Layout, flags: Flags) -> *mut u8 {
        self.malloc_flags(layout, NoWait, flags).map_or(core::ptr::null_mut(), core::ptr::NonNull::as_ptr)
    }

    /// The same, zeroed. malloc(9) with `M_NOWAIT | M_ZERO`.
    #[must_use]
    pub fn malloc_zeroed(&'static self, layout: Layout) -> *mut u8 {
        match self.core.ordinary_id() {
            Some(id) => global::alloc_zeroed_as(layout, id),
            None => self.malloc_cold(layout, Flags::ZERO),
        }
    }

    /// A block with all that malloc(9) has: what may wait is a type ([`WaitOk`](crate::malloc9::WaitOk) gives the block itself), the rest are
    /// [`Flags`]. *May sleep* with `WaitOk` and `CanFail`: while the type is at its limit, first come, first served,
    /// and while there is no memory (`vm.kmem_size`), until somebody frees. malloc(9).
    ///
    /// ```
    /// use core::alloc::Layout;
    /// use kernmalloc::malloc9::{Flags, WaitOk};
    /// kernmalloc::malloc_define!(M_JOB, "job", "jobs that wait to be run", 1 << 20);
    /// let block = M_JOB.malloc_flags(Layout::new::<[u8; 200]>(), WaitOk, Flags::ZERO);
    /// // SAFETY: just allocated.
    /// unsafe { kernmalloc::free(block.as_ptr()) };
    /// ```
    ///
    /// # Panics
    /// With `WaitOk`, for a request that could never be met.
    pub fn malloc_flags<W: Wait>(&'static self, layout: Layout, wait: W, flags: Flags) -> W::Block {
        if !hosted::boot() {
            return W::block(None);
        }
        MALLOC.malloc_aligned(&self.core, layout.size(), layout.align(), wait, flags)
    }

    /// Sets the type's limit in bytes, 0 for none. A type gets memory while it has less than its limit in use; a request by name then fails
    /// or, if it may, sleeps until a free has brought the type below. `kernmalloc sysctl kern.malloc_stats.NAME.limit=` does the same from
    /// outside.
    ///
    /// A limit is for requests that can be told no: [`malloc`](Self::malloc), [`malloc_flags`](Self::malloc_flags) and containers that were
    /// given the type for an allocator. What the global allocator serves in a [`scope`](Self::scope) counts, and is never refused: a
    /// program does not survive that. Takes a lock; never sleeps. malloc_type_setlimit(9).
    ///
    /// ```
    /// use core::alloc::Layout;
    /// kernmalloc::malloc_define!(M_BOUNDED, "bounded", "never more than two");
    /// M_BOUNDED.set_limit(2000);
    /// let layout = Layout::new::<[u8; 1000]>();
    /// let blocks = [(); 3].map(|()| M_BOUNDED.malloc(layout));
    /// assert_eq!(blocks.map(|block| block.is_null()), [false, false, true]);
    /// assert_eq!((M_BOUNDED.stats().failures, M_BOUNDED.limit()), (1, 2000));
    /// # for block in blocks { unsafe { kernmalloc::free(block) } }
    /// ```
    #[doc(alias = "malloc_type_setlimit")]
    pub fn set_limit(&'static self, limit_bytes: usize) {
        if hosted::boot() {
            MALLOC.set_limit(&self.core, limit_bytes);
        }
    }

    /// The limit in bytes; 0 for none.
    #[must_use]
    pub fn limit(&'static self) -> usize {
        usize::try_from(self.stats().limit_bytes).unwrap_or(usize::MAX)
    }

    /// A block at another size, as [`realloc`] says.
    ///
    /// # Safety
    /// 1. As for [`global::resize_as`].
    pub(crate) unsafe fn resize(
        &'static self,
        block: *mut u8,
        old_bytes: usize,
        bytes: usize,
        align: usize,
    ) -> *mut u8 {
        match self.core.ordinary_id() {
            // SAFETY: 1.
            Some(id) => unsafe { global::resize_as(block, old_bytes, bytes, align, id) },
            // SAFETY: 1.
            None => unsafe { self.resize_cold(block, old_bytes, bytes, align) },
        }
    }

    /// # Safety
    /// 1. As for [`global::resize_as`].
    #[cold]
    unsafe fn resize_cold(&'static self, block: *mut u8, old_bytes: usize, bytes: usize, align: usize) -> *mut u8 {
        let (Some(id), Ok(layout)) = (self.id(), Layout::from_size_align(bytes, align)) else {
            return core::ptr::null_mut();
        };
        if (block as usize).is_multiple_of(align) && global::stays(block, bytes) {
            // SAFETY: 1.
            return unsafe { SYSTEM.realloc(block, bytes, id, 0) };
        }
        // The limit is to be asked.
        let new = self.malloc(layout);
        if !new.is_null() {
            // SAFETY: both hold that many bytes; the new one is fresh; 1.
            unsafe {
                core::ptr::copy_nonoverlapping(block, new, old_bytes.min(bytes));
                SYSTEM.free(block, 0);
            }
        }
        new
    }

    /// Runs `work`; what the global allocator ([`KernMalloc`](crate::KernMalloc)) serves to this thread meanwhile is of this
    /// type. The scope around this one, if any, holds again afterwards, also after a panic.
    ///
    /// ```
    /// # #[global_allocator] static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;
    /// kernmalloc::malloc_define!(M_OUTER, "outer", "");
    /// kernmalloc::malloc_define!(M_INNER, "inner", "");
    /// let (a, b) = M_OUTER.scope(|| (vec![1u8; 100], M_INNER.scope(|| vec![2u8; 100])));
    /// assert_eq!((M_OUTER.stats().in_use, M_INNER.stats().in_use), (1, 1));
    /// # drop((a, b));
    /// ```
    #[inline]
    pub fn scope<R>(&'static self, work: impl FnOnce() -> R) -> R {
        Scope::of(self).run(work)
    }

    /// A future inside of which this type's scope holds: each time it is polled, and when it is dropped. Between two polls the
    /// thread has the scope that it had, so other tasks are not concerned, and the future may move between threads.
    ///
    /// ```
    /// # #[global_allocator] static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;
    /// kernmalloc::malloc_define!(M_QUERY, "query", "a query and its rows");
    /// let query = M_QUERY.scope_async(async {
    ///     let rows = vec![0u64; 500];
    ///     std::future::ready(()).await;
    ///     rows
    /// });
    /// # fn block_on<F: Future>(f: F) -> F::Output {
    /// #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// #     let mut f = std::pin::pin!(f);
    /// #     loop { if let std::task::Poll::Ready(out) = f.as_mut().poll(&mut context) { return out } }
    /// # }
    /// let rows = block_on(query);
    /// assert_eq!(M_QUERY.stats().in_use, 1);
    /// # drop(rows);
    /// ```
    pub fn scope_async<F: Future>(&'static self, future: F) -> InScope<F> {
        Scope::of(self).attach(future)
    }

    /// The type's figures now; all zero before its first use.
    #[must_use]
    pub fn stats(&self) -> TypeStats {
        self.known_id().map_or_else(|| TypeStats::unused(self.name()), TypeStats::of)
    }
}

impl fmt::Debug for MallocType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MallocType").field("name", &self.name()).field("description", &self.description()).finish()
    }
}

/// Why a name is none.
const fn check(name: &str) -> Result<(), RegisterError> {
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return Err(RegisterError::NameEmpty);
    }
    if bytes.len() > NAME_MAX_BYTES {
        return Err(RegisterError::NameTooLong(bytes.len()));
    }
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at].is_ascii_control() {
            return Err(RegisterError::NameHasControl(at));
        }
        at += 1;
    }
    Ok(())
}

/// Why a type was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegisterError {
    /// The short description has no bytes.
    NameEmpty,
    /// The short description has so many bytes, more than [`NAME_MAX_BYTES`].
    NameTooLong(usize),
    /// The byte at this place of the short description is a control character, which would break the table.
    NameHasControl(usize),
    /// The system gives no memory for an allocator.
    NoMemory,
    /// There are as many types as an item's tag can name, or as the statistics object has room for.
    TableFull,
}

impl fmt::Display for RegisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameEmpty => f.write_str("a malloc type's short description is empty; give it a name"),
            Self::NameTooLong(bytes) => {
                write!(f, "a malloc type's short description has {bytes} bytes; shorten it to {NAME_MAX_BYTES}")
            }
            Self::NameHasControl(at) => {
                write!(f, "a malloc type's short description has a control character at byte {at}; leave it out")
            }
            Self::NoMemory => f.write_str("the system gives no memory for the allocator"),
            Self::TableFull => f.write_str(
                "the table of malloc types is full; define fewer types, or set KERNMALLOC=kern.malloc.attribution=library \
                 so that call sites take no rows",
            ),
        }
    }
}

impl std::error::Error for RegisterError {}

/// Makes and registers a type whose name is known only at run time: per plug-in, per tenant. Types are never taken away, so this is
/// for what a program has a bounded number of; each call makes a row.
///
/// ```
/// let tenant = kernmalloc::register_type("tenant 7")?;
/// assert_eq!((tenant.name(), tenant.stats().in_use), ("tenant 7", 0));
/// # Ok::<(), kernmalloc::RegisterError>(())
/// ```
///
/// # Errors
/// The name is none, see [`MallocType::new`]; there is no memory, or no row left.
#[doc(alias = "malloc_type_attach")]
pub fn register_type(name: &str) -> Result<&'static MallocType, RegisterError> {
    check(name)?;
    // For good, like the row. What it takes is nobody's in particular, whoever's scope this is.
    let (name, made): (&'static str, _) = Scope::none().run(|| {
        let name = Box::leak(Box::<str>::from(name));
        (&*name, Box::new(MallocType::new(name, "")))
    });
    debug_assert_eq!(made.name(), name);
    let made: &'static MallocType = Box::leak(made);
    match made.id() {
        None => Err(RegisterError::NoMemory),
        Some(TypeId::OVERFLOW) => Err(RegisterError::TableFull),
        Some(_) => Ok(made),
    }
}

/// [`MallocType::malloc`] with the arguments in malloc(9)'s order.
#[must_use]
pub fn malloc(layout: Layout, owner: &'static MallocType) -> *mut u8 {
    owner.malloc(layout)
}

/// Resizes a block, in place where it can be; it is of type `owner` from there on. Aligned as `layout` says, with as much of
/// its contents as fits. Null, with the old block intact, when there is no memory. Never sleeps. realloc(9).
///
/// # Safety
/// 1. `block` came from this allocator with `layout`'s alignment and at least its size, and belongs to the caller.
#[must_use]
pub unsafe fn realloc(block: *mut u8, layout: Layout, bytes: usize, owner: &'static MallocType) -> *mut u8 {
    // SAFETY: 1.
    unsafe { owner.resize(block, layout.size(), bytes, layout.align()) }
}

/// Gives a block back, whatever its type; null is nothing. Never sleeps. free(9).
///
/// A pointer that is not a live block of this allocator is reported, and ends the program (`kern.malloc.on_misuse`).
///
/// # Safety
/// 1. `block` is null or came from this allocator, and nobody uses it any more.
pub unsafe fn free(block: *mut u8) {
    // SAFETY: 1.
    unsafe { SYSTEM.free(block, 0) }
}

/// Bytes that a request of `bytes` would be served: its size class, or whole pages; 0 for one that can never be met. A request with
/// an alignment above 16 may be served more. malloc_size(9).
///
/// ```
/// assert_eq!([1, 100, 1000, 100_000].map(kernmalloc::malloc_size), [16, 112, 1024, 114_688]);
/// ```
#[must_use]
pub const fn malloc_size(bytes: usize) -> usize {
    if bytes > kern::MAX_REQUEST_BYTES {
        0
    } else if bytes > RUN_MAX_BYTES {
        run_bytes(bytes, System::<Linux>::PAGE)
    } else {
        class_bytes(class_of(bytes))
    }
}

/// Bytes of a live block that its owner may use, 0 for null and for what is no block's start. malloc_usable_size(9).
#[must_use]
pub fn malloc_usable_size(block: *const u8) -> usize {
    SYSTEM.usable_bytes(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn names_have_bounds() {
        let check_name = |name: &str, expected| assert_eq!(check(name), expected, "{name:?}");
        check_name("temp", Ok(()));
        check_name("with blank, and ünïcode", Ok(()));
        check_name(&"x".repeat(31), Ok(()));
        check_name(&"x".repeat(32), Err(RegisterError::NameTooLong(32)));
        check_name("", Err(RegisterError::NameEmpty));
        check_name("a\0b", Err(RegisterError::NameHasControl(1)));
        check_name("line\n", Err(RegisterError::NameHasControl(4)));
    }

    #[test]
    fn the_size_that_would_be_served_is_served() {
        static SIZES: MallocType = MallocType::new("sizes", "");
        for bytes in (0..70_000).step_by(13).chain((70_000..5_000_000).step_by(70_001)) {
            let block = SIZES.malloc(Layout::from_size_align(bytes, 8).unwrap());
            assert_eq!(malloc_size(bytes), malloc_usable_size(block), "{bytes}");
            assert_eq!(SIZES.stats().bytes_in_use, malloc_size(bytes) as u64, "{bytes}");
            // SAFETY: from `malloc`.
            unsafe { free(block) };
        }
        assert_eq!((malloc_size(usize::MAX), malloc_usable_size(core::ptr::null())), (0, 0));
    }

    #[test]
    fn an_error_says_what_to_do() {
        let text = register_type(&"y".repeat(40)).unwrap_err().to_string();
        assert!(text.contains("40 bytes") && text.contains("31"), "{text}");
    }

    #[test]
    fn threads_that_meet_at_the_first_use_make_one_row() {
        const THREADS: u32 = 2;
        static TYPES: [MallocType; 1000] = [const { MallocType::new("met at first use", "") }; 1000];
        let before = crate::stats().filter(|row| row.name == "met at first use").count();
        assert_eq!(before, 0);
        let arrived = AtomicU32::new(0);
        // All come to each type at the same moment: a barrier would let them go one after the other.
        let meet = |(round, ty): (u32, &'static MallocType)| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < (round + 1) * THREADS {
                core::hint::spin_loop();
            }
            ty.id().unwrap().index()
        };
        let ids: Vec<Vec<usize>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| (0..).zip(&TYPES).map(meet).collect())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|seen| *seen == ids[0]), "{ids:?}");
        assert_eq!(crate::stats().filter(|row| row.name == "met at first use").count(), TYPES.len());
    }
}
