//! The global allocator, and the ways to a block that it shares with the types.
//!
//! `GlobalAlloc::alloc` is one load of the thread's scope, a branch, and a jump: in an optimised program `__rust_alloc`
//! consists of these, so that at [`alloc_here`] the return address on the stack is that of the function which asked. Where
//! there is a frame in between (unoptimised programs), `hosted` steps over it by the unwind table; frame pointers are not needed.

use core::alloc::{GlobalAlloc, Layout};

use hosted::{Call, Linux, SYSTEM, cached_type, type_of};
use kern::class::MIN_ALIGN;
use kern::{System, TypeId};

use crate::scope;

/// The global allocator.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct KernMalloc;

/// A block of type `id`, aligned as `layout` says.
#[inline(always)]
pub(crate) fn alloc_as(layout: Layout, id: TypeId) -> *mut u8 {
    if layout.align() <= MIN_ALIGN { SYSTEM.alloc(layout.size(), id) } else { alloc_aligned_as(layout, id) }
}

/// A function of its own: inlined, its registers would be saved on the way of every block.
#[inline(never)]
fn alloc_aligned_as(layout: Layout, id: TypeId) -> *mut u8 {
    SYSTEM.alloc_aligned(layout.size(), layout.align(), id)
}

/// The same, zeroed.
pub(crate) fn alloc_zeroed_as(layout: Layout, id: TypeId) -> *mut u8 {
    if layout.align() <= System::<Linux>::natural_align(layout.size()) {
        // Knows of large blocks which pages are zero already.
        return SYSTEM.alloc_zeroed(layout.size(), id);
    }
    let block = SYSTEM.alloc_aligned(layout.size(), layout.align(), id);
    if !block.is_null() {
        // SAFETY: a fresh block of that size.
        unsafe { core::ptr::write_bytes(block, 0, layout.size()) };
    }
    block
}

/// A block at another size: where it stands if it can be, else moved. Of type `id` from there on. Null, with the old block
/// intact, when there is no memory.
///
/// # Safety
/// 1. The caller owns `block`, which has `old_bytes` of contents.
pub(crate) unsafe fn resize_as(block: *mut u8, old_bytes: usize, bytes: usize, align: usize, id: TypeId) -> *mut u8 {
    // Whatever the core does with it, a block of this size will do; or the core leaves it where it is.
    let aligned = (block as usize).is_multiple_of(align);
    if aligned && (align <= System::<Linux>::natural_align(bytes) || stays(block, bytes)) {
        // SAFETY: 1.
        return unsafe { SYSTEM.realloc(block, bytes, id, 0) };
    }
    let new = SYSTEM.alloc_aligned(bytes, align, id);
    if !new.is_null() {
        // SAFETY: both hold that many bytes; the new one is fresh; 1.
        unsafe {
            core::ptr::copy_nonoverlapping(block, new, old_bytes.min(bytes));
            SYSTEM.free(block, 0);
        }
    }
    new
}

/// Whether `realloc` to this size leaves the block where it is.
pub(crate) fn stays(block: *mut u8, bytes: usize) -> bool {
    SYSTEM.lookup(block as usize).is_some_and(|info| info.stays(bytes))
}

/// Allocates for the scope that holds. A function of its own, so that the other branch of `alloc` is a jump with nothing saved.
#[inline(never)]
fn alloc_in_scope(bytes: usize, align: usize, id: TypeId) -> *mut u8 {
    // SAFETY: from a layout.
    alloc_as(unsafe { Layout::from_size_align_unchecked(bytes, align) }, id)
}

/// See [`alloc_in_scope`].
#[inline(never)]
fn alloc_zeroed_in_scope(bytes: usize, align: usize, id: TypeId) -> *mut u8 {
    // SAFETY: from a layout.
    alloc_zeroed_as(unsafe { Layout::from_size_align_unchecked(bytes, align) }, id)
}

/// Hands on where the call came from.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn alloc_here(bytes: usize, align: usize) -> *mut u8 {
    core::arch::naked_asm!("mov rdx, rsp", "mov rcx, rbp", "jmp {to}", to = sym alloc_at)
}

/// See [`alloc_here`].
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn alloc_zeroed_here(bytes: usize, align: usize) -> *mut u8 {
    core::arch::naked_asm!("mov rdx, rsp", "mov rcx, rbp", "jmp {to}", to = sym alloc_zeroed_at)
}

/// Hands on who frees, for the report of a second free.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn free_here(block: *mut u8) {
    core::arch::naked_asm!("mov rsi, qword ptr [rsp]", "jmp {to}", to = sym free_at)
}

/// # Safety
/// 1. `stack` points at the return address.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn credit(stack: *const usize, frame: usize) -> TypeId {
    // SAFETY: 1.
    type_of(Call { ret: unsafe { *stack }, stack: stack as usize + 8, frame })
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn alloc_at(bytes: usize, align: usize, stack: *const usize, frame: usize) -> *mut u8 {
    // SAFETY: 1. `alloc_here` hands on its stack pointer. From a layout.
    unsafe {
        match cached_type(*stack) {
            Some(id) => alloc_as(Layout::from_size_align_unchecked(bytes, align), id),
            None => alloc_slow(bytes, align, stack, frame),
        }
    }
}

/// The cache does not know the call, or knows it for a wrapper's.
///
/// # Safety
/// 1. As for [`alloc_at`].
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn alloc_slow(bytes: usize, align: usize, stack: *const usize, frame: usize) -> *mut u8 {
    // SAFETY: 1. From a layout.
    unsafe { alloc_as(Layout::from_size_align_unchecked(bytes, align), credit(stack, frame)) }
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn alloc_zeroed_at(bytes: usize, align: usize, stack: *const usize, frame: usize) -> *mut u8 {
    // SAFETY: 1. `alloc_zeroed_here` hands on its stack pointer. From a layout.
    unsafe { alloc_zeroed_as(Layout::from_size_align_unchecked(bytes, align), credit(stack, frame)) }
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn free_at(block: *mut u8, caller: usize) {
    // SAFETY: 1. the caller's contract.
    unsafe { SYSTEM.free(block, caller) }
}

/// Without a way to the return address: all to one type.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn alloc_here(bytes: usize, align: usize) -> *mut u8 {
    if hosted::boot() { alloc_in_scope(bytes, align, TypeId::MALLOC) } else { core::ptr::null_mut() }
}

/// See [`alloc_here`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn alloc_zeroed_here(bytes: usize, align: usize) -> *mut u8 {
    if hosted::boot() { alloc_zeroed_in_scope(bytes, align, TypeId::MALLOC) } else { core::ptr::null_mut() }
}

/// See [`alloc_here`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn free_here(block: *mut u8) {
    // SAFETY: 1. the caller's contract.
    unsafe { SYSTEM.free(block, 0) }
}

// SAFETY: blocks are aligned and disjoint, and stay until given back; nothing here unwinds.
unsafe impl GlobalAlloc for KernMalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match scope::current_id() {
            // SAFETY: the layout's own size and alignment.
            None => unsafe { alloc_here(layout.size(), layout.align()) },
            Some(id) => alloc_in_scope(layout.size(), layout.align(), id),
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: 1. the caller's contract.
        unsafe { free_here(block) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match scope::current_id() {
            // SAFETY: as in `alloc`.
            None => unsafe { alloc_zeroed_here(layout.size(), layout.align()) },
            Some(id) => alloc_zeroed_in_scope(layout.size(), layout.align(), id),
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Outside of a scope it keeps its type: whoever made a vector owns it, not who pushes to it.
        let id = scope::current_id().or_else(|| SYSTEM.lookup(block as usize).map(|info| info.type_id));
        // SAFETY: 1. the caller's contract. (What is no block has no type, and is reported by `realloc`.)
        unsafe { resize_as(block, layout.size(), bytes, layout.align(), id.unwrap_or(TypeId::MALLOC)) }
    }
}

extern "C" fn at_exit() {
    hosted::finish();
}

/// Says in the statistics object that the program is over.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;
