//! Whose blocks the global allocator serves to a thread now.
//!
//! One thread-local word: constant at first and with nothing to drop, so that reading it never allocates, is allowed at any
//! time in a thread's life, and in a program (as opposed to a shared library) is one instruction.

use core::cell::Cell;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::task::{Context, Poll};

use kern::TypeId;

use crate::MallocType;

thread_local! {
    /// The index of a type; that of `TypeId::MALLOC`, 0, is no scope.
    static CURRENT: Cell<u16> = const { Cell::new(0) };
}

/// The type to credit for what the global allocator serves to this thread.
#[inline(always)]
pub(crate) fn current_id() -> Option<TypeId> {
    match CURRENT.get() {
        0 => None,
        index => Some(TypeId::from_tag(index)),
    }
}

/// A scope as a value: a malloc type, or none. For handing it to another thread, where it is entered anew:
///
/// ```
/// # #[global_allocator] static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;
/// use kernmalloc::{Scope, malloc_define};
/// malloc_define!(M_IMAGE, "image", "a picture and its thumbnails");
///
/// let thumbnail = M_IMAGE.scope(|| {
///     let scope = Scope::current();
///     std::thread::spawn(move || scope.run(|| vec![0u8; 3000])).join().unwrap()
/// });
/// assert!(M_IMAGE.stats().bytes_in_use >= 3000);
/// # drop(thumbnail);
/// ```
///
/// Threads are not given their parent's scope by themselves: a thread of a pool works for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a scope holds only inside `run` or an attached future"]
pub struct Scope(u16);

impl Scope {
    /// The scope that holds here, or [`none`](Self::none).
    #[inline]
    pub fn current() -> Self {
        Self(CURRENT.get())
    }

    /// No scope: inside it blocks are credited to their call sites. For caches and other long-lived things that happen to be
    /// filled inside somebody's scope.
    pub const fn none() -> Self {
        Self(0)
    }

    /// The scope of a type. Without memory for an allocator: none.
    #[inline]
    pub fn of(owner: &'static MallocType) -> Self {
        Self(owner.id().map_or(0, |id| id.index() as u16))
    }

    /// Runs `work` in this scope; the scope that held before holds again afterwards, also after a panic.
    #[inline]
    pub fn run<R>(self, work: impl FnOnce() -> R) -> R {
        struct Restore(u16);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _restore = Restore(CURRENT.replace(self.0));
        work()
    }

    /// Makes this the scope of the calling thread, until it is told otherwise: for the threads of a runtime, whose own
    /// allocations are then some type's as well. Inside [`run`](Self::run) it holds until that ends.
    ///
    /// ```
    /// # #[global_allocator] static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;
    /// use kernmalloc::{Scope, malloc_define};
    /// malloc_define!(M_WORKERS, "workers", "what the threads of the pool need for themselves");
    /// let worker = std::thread::spawn(|| {
    ///     Scope::of(&M_WORKERS).set_for_thread();
    ///     vec![0u8; 5000]
    /// });
    /// assert!(worker.join().unwrap().len() == 5000 && M_WORKERS.stats().requests > 0);
    /// ```
    #[inline]
    pub fn set_for_thread(self) {
        CURRENT.set(self.0);
    }

    /// A future inside of which this scope holds, see [`MallocType::scope_async`].
    pub fn attach<F: Future>(self, future: F) -> InScope<F> {
        InScope { scope: self, future: ManuallyDrop::new(future) }
    }
}

impl From<&'static MallocType> for Scope {
    fn from(owner: &'static MallocType) -> Self {
        Self::of(owner)
    }
}

/// A future with a scope, made by [`MallocType::scope_async`] and [`Scope::attach`].
#[derive(Debug)]
#[must_use = "a future does nothing unless it is polled"]
pub struct InScope<F> {
    scope: Scope,
    /// Dropped by hand: inside the scope.
    future: ManuallyDrop<F>,
}

impl<F: Future> Future for InScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: the future is pinned with us: nothing here moves it out, and our drop drops it where it is.
        let (scope, future) = unsafe {
            let this = self.get_unchecked_mut();
            (this.scope, Pin::new_unchecked(&mut *this.future))
        };
        scope.run(|| future.poll(context))
    }
}

impl<F> Drop for InScope<F> {
    fn drop(&mut self) {
        // SAFETY: dropped once, here, and not used after.
        self.scope.run(|| unsafe { ManuallyDrop::drop(&mut self.future) });
    }
}
