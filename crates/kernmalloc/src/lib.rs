//! kernmalloc as a Rust program's allocator.
//!
//! ```
//! #[global_allocator]
//! static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;
//!
//! fn main() {
//!     let words: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
//!     assert_eq!(words.len(), 1000);
//! }
//! ```
//!
//! `kernmalloc vmstat -p PID` then shows, live and exactly, who holds the program's memory, by call site and crate of origin, as
//! it does for a program under the preloaded library. The functions of the standard library that allocate for somebody else
//! are looked through where the program has its symbols.
#![no_std]

use core::alloc::{GlobalAlloc, Layout};

use hosted::{Call, SYSTEM, type_of};
use kern::TypeId;

pub use kern::TypeId as MallocType;

/// The global allocator.
#[derive(Clone, Copy, Debug, Default)]
pub struct KernMalloc;

/// Registers a malloc type under a short description (cut at 31 bytes). `None` when the table of types is full or the system has
/// no memory. malloc(9), `MALLOC_DEFINE`.
#[doc(alias = "MALLOC_DEFINE")]
pub fn register_type(name: &str) -> Option<MallocType> {
    if !hosted::boot() {
        return None;
    }
    SYSTEM.register_type(abi::type_kind::STATIC, abi::NO_LIB, 0, name.as_bytes())
}

/// A block credited to a type; null when there is no memory. Aligned as `layout` says. Never sleeps. malloc(9) with `M_NOWAIT`.
///
/// Give it back with [`free`].
#[must_use]
pub fn malloc(layout: Layout, id: MallocType) -> *mut u8 {
    if !hosted::boot() {
        return core::ptr::null_mut();
    }
    alloc_as(layout, id)
}

/// Gives a block back, credited to the type that allocated it. free(9).
///
/// # Safety
/// 1. `block` is null or came from this allocator, and nobody uses it any more.
pub unsafe fn free(block: *mut u8) {
    // SAFETY: 1.
    unsafe { SYSTEM.free(block, 0) }
}

#[inline(always)]
fn alloc_as(layout: Layout, id: TypeId) -> *mut u8 {
    if layout.align() <= kern::class::MIN_ALIGN {
        SYSTEM.alloc(layout.size(), id)
    } else {
        SYSTEM.alloc_aligned(layout.size(), layout.align(), id)
    }
}

/// The place of the call, as the first frame outside this crate sees it.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
unsafe extern "C" fn alloc_here(bytes: usize, align: usize, zeroed: usize) -> *mut u8 {
    core::arch::naked_asm!("mov rcx, rsp", "mov r8, rbp", "jmp {to}", to = sym alloc_at)
}

#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn alloc_at(bytes: usize, align: usize, zeroed: usize, stack: *const usize, frame: usize) -> *mut u8 {
    // SAFETY: `alloc_here` hands on its stack pointer, which points at the return address.
    let call = Call { ret: unsafe { *stack }, stack: stack as usize + 8, frame };
    let id = type_of(call);
    // SAFETY: the layout came from the caller's.
    let layout = unsafe { Layout::from_size_align_unchecked(bytes, align) };
    if zeroed != 0 && align <= kern::class::MIN_ALIGN { SYSTEM.alloc_zeroed(bytes, id) } else { alloc_as(layout, id) }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn alloc_here(bytes: usize, align: usize, zeroed: usize) -> *mut u8 {
    if !hosted::boot() {
        return core::ptr::null_mut();
    }
    // SAFETY: the layout came from the caller's.
    let layout = unsafe { Layout::from_size_align_unchecked(bytes, align) };
    if zeroed != 0 && align <= kern::class::MIN_ALIGN {
        SYSTEM.alloc_zeroed(bytes, TypeId::MALLOC)
    } else {
        alloc_as(layout, TypeId::MALLOC)
    }
}

// SAFETY: blocks are aligned and disjoint, and stay until given back; nothing here unwinds.
unsafe impl GlobalAlloc for KernMalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the layout's own size and alignment.
        unsafe { alloc_here(layout.size(), layout.align(), 0) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, _layout: Layout) {
        // SAFETY: 1. the caller's contract.
        unsafe { SYSTEM.free(block, 0) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        let block = unsafe { alloc_here(layout.size(), layout.align(), 1) };
        if !block.is_null() && layout.align() > kern::class::MIN_ALIGN {
            // SAFETY: a fresh block of that size.
            unsafe { core::ptr::write_bytes(block, 0, layout.size()) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        if layout.align() <= kern::class::MIN_ALIGN
            && let Some(info) = SYSTEM.lookup(block as usize)
        {
            // SAFETY: the caller's contract; the block keeps its type.
            return unsafe { SYSTEM.realloc(block, bytes, info.type_id, 0) };
        }
        // SAFETY: the caller's contract: `bytes` rounded up to the alignment does not overflow.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(bytes, layout.align()));
            if !new.is_null() {
                core::ptr::copy_nonoverlapping(block, new, layout.size().min(bytes));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

extern "C" fn at_exit() {
    hosted::finish();
}

/// Says in the statistics object that the program is over.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

/// Bytes in use by a type, as served, and its blocks: exact while the program stands still.
#[must_use]
pub fn in_use(id: MallocType) -> (u64, u64) {
    let totals = SYSTEM.totals(id);
    (totals.bytes_in_use(), totals.in_use())
}
