//! dlopen(3) without `RTLD_DEEPBIND`.
//!
//! A library opened so finds the C library's functions before those of anything preloaded: it would free with the one malloc what it got
//! from the other. PHP and others open all their modules so. The flag is taken out, as if the program had not known it.
//!
//! The C library takes its caller's place for that of who wants the library (search paths, `$ORIGIN`), so the exported names
//! *jump* to its functions.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::life;

const RTLD_DEEPBIND: i32 = 8;

/// The C library's own, asked for once; null where there is none.
fn next(cell: &AtomicPtr<c_void>, name: &[u8]) -> *mut c_void {
    let mut next = cell.load(Ordering::Relaxed);
    if next.is_null() {
        // SAFETY: 1. both callers' names end with a NUL.
        next = unsafe { life::symbol(life::RTLD_NEXT, name) }.unwrap_or(core::ptr::null_mut());
        cell.store(next, Ordering::Relaxed);
    }
    next
}

extern "C" fn next_dlopen() -> *mut c_void {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    next(&NEXT, b"dlopen\0")
}

extern "C" fn next_dlmopen() -> *mut c_void {
    static NEXT: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());
    next(&NEXT, b"dlmopen\0")
}

/// dlopen(3).
///
/// # Safety
/// 1. As for dlopen(3): the library's constructors run.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {next}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "and esi, ~{deep}",
        "test rax, rax",
        "je 2f",
        "jmp rax",
        "2: ret",
        next = sym next_dlopen,
        deep = const RTLD_DEEPBIND,
    );
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!(
        "stp x0, x1, [sp, #-32]!",
        "str x30, [sp, #16]",
        "bl {next}",
        "mov x16, x0",
        "ldr x30, [sp, #16]",
        "ldp x0, x1, [sp], #32",
        "and w1, w1, #~{deep}",
        "cbz x16, 2f",
        "br x16",
        "2: mov x0, #0",
        "ret",
        next = sym next_dlopen,
        deep = const RTLD_DEEPBIND,
    );
}

/// dlmopen(3). A library in a namespace of its own has a C library of its own as well, and keeps its flags.
///
/// # Safety
/// 1. As for dlmopen(3): the library's constructors run.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
#[unsafe(naked)]
pub unsafe extern "C" fn dlmopen(namespace: c_long, file: *const c_char, flags: c_int) -> *mut c_void {
    #[cfg(target_arch = "x86_64")]
    core::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "push rdx",
        "call {next}",
        "pop rdx",
        "pop rsi",
        "pop rdi",
        "test rdi, rdi", // LM_ID_BASE
        "jne 3f",
        "and edx, ~{deep}",
        "3: test rax, rax",
        "je 2f",
        "jmp rax",
        "2: ret",
        next = sym next_dlmopen,
        deep = const RTLD_DEEPBIND,
    );
    #[cfg(target_arch = "aarch64")]
    core::arch::naked_asm!(
        "stp x0, x1, [sp, #-32]!",
        "stp x2, x30, [sp, #16]",
        "bl {next}",
        "mov x16, x0",
        "ldp x2, x30, [sp, #16]",
        "ldp x0, x1, [sp], #32",
        "cbnz x0, 3f",
        "and w2, w2, #~{deep}",
        "3: cbz x16, 2f",
        "br x16",
        "2: mov x0, #0",
        "ret",
        next = sym next_dlmopen,
        deep = const RTLD_DEEPBIND,
    );
}
