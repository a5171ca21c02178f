//! Where interrupts and exceptions enter, and the frame that a preempted thread is.
//!
//! Every vector runs on a stack of its own (the interrupt stack table), for two reasons. The precompiled `core` keeps data in
//! the 128 bytes below the stack pointer (the red zone), which a handler on the interrupted stack would overwrite. And a
//! thread that has run off its stack can still be told so. The frame holds all of the thread, its floating-point registers
//! included since `core` uses them anywhere; a switch exchanges the whole frame and never touches the interrupted stack.

use core::arch::global_asm;

use crate::breaks;

/// A whole interrupted thread, as the entry code lays it down.
#[repr(C, align(16))]
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    /// The FXSAVE area.
    pub(crate) fx: [u8; 512],
    /// r15 to r8, rbp, rdi, rsi, rdx, rcx, rbx, rax.
    pub(crate) registers: [u64; 15],
    pub(crate) vector: u64,
    /// What the CPU says of an exception; 0 for those without.
    pub(crate) error: u64,
    pub(crate) rip: u64,
    pub(crate) cs: u64,
    pub(crate) flags: u64,
    pub(crate) rsp: u64,
    pub(crate) ss: u64,
}

/// Indices into [`Frame::registers`].
pub(crate) const RBP: usize = 8;
pub(crate) const RDI: usize = 9;

impl Frame {
    /// A thread at its start: `entry(argument)` with interrupts on.
    pub(crate) fn starting(entry: extern "C" fn(usize) -> !, argument: usize, stack_top: usize) -> Self {
        const MASKED_X87: u16 = 0x37f;
        const MASKED_SSE: u32 = 0x1f80;
        let mut frame = Self {
            fx: [0; 512],
            registers: [0; 15],
            vector: 0,
            error: 0,
            rip: entry as usize as u64,
            cs: 8,
            flags: 0x202,
            // As if called: the stack is 16-byte aligned before the return address.
            rsp: (stack_top & !15) as u64 - 8,
            ss: 0,
        };
        frame.fx[0..2].copy_from_slice(&MASKED_X87.to_le_bytes());
        frame.fx[24..28].copy_from_slice(&MASKED_SSE.to_le_bytes());
        frame.registers[RDI] = argument as u64;
        frame
    }

    pub(crate) const fn empty() -> Self {
        Self { fx: [0; 512], registers: [0; 15], vector: 0, error: 0, rip: 0, cs: 0, flags: 0, rsp: 0, ss: 0 }
    }
}

unsafe extern "C" {
    /// The first of the stubs, 16 bytes apart, one per vector below [`VECTORS`].
    static entry_stubs: u8;
    /// Of the vector that the local APIC raises when there was nothing after all.
    static entry_spurious: u8;
}

/// Bytes from one stub to the next.
const STUB_BYTES: usize = 16;
/// Vectors that have one.
pub(crate) const VECTORS: usize = 49;

/// Address of the stub of a vector.
pub(crate) fn stub(vector: usize) -> usize {
    (&raw const entry_stubs) as usize + vector * STUB_BYTES
}

/// Address of the stub that does nothing.
pub(crate) fn spurious() -> usize {
    (&raw const entry_spurious) as usize
}

global_asm!(
    r#"
    .text
    .globl entry_stubs, entry_spurious
    .balign 16
entry_stubs:
    .set vector, 0
    .rept {vectors}
    .balign 16
    .if (vector != 8) && (vector != 10) && (vector != 11) && (vector != 12) && (vector != 13) && (vector != 14) && (vector != 17) && (vector != 21) && (vector != 29) && (vector != 30)
    pushq $0
    .endif
    pushq $vector
    jmp entry_common
    .set vector, vector + 1
    .endr

entry_common:
    push %rax; push %rbx; push %rcx; push %rdx; push %rsi; push %rdi; push %rbp
    push %r8; push %r9; push %r10; push %r11; push %r12; push %r13; push %r14; push %r15
    sub  $512, %rsp
    cmpb $0, {no_fpu}(%rip)
    jne  1f
    fxsave64 (%rsp)
1:  mov  %rsp, %rdi
    cld
    call interrupt
    cmpb $0, {no_fpu}(%rip)
    jne  2f
    fxrstor64 (%rsp)
2:  add  $512, %rsp
    pop  %r15; pop %r14; pop %r13; pop %r12; pop %r11; pop %r10; pop %r9; pop %r8
    pop  %rbp; pop %rdi; pop %rsi; pop %rdx; pop %rcx; pop %rbx; pop %rax
    add  $16, %rsp
entry_spurious:
    iretq

    # red_zone_probe(n): n rounds of writing the 128 bytes below rsp and reading them back; how many found them changed
    .globl red_zone_probe
red_zone_probe:
    xor  %eax, %eax
6:  mov  $-128, %rcx
7:  mov  %rdi, (%rsp,%rcx)
    add  $8, %rcx
    jnz  7b
    mov  $200, %ecx
8:  pause
    loop 8b
    mov  $-128, %rcx
9:  cmp  %rdi, (%rsp,%rcx)
    jne  10f
    add  $8, %rcx
    jnz  9b
    jmp  11f
10: inc  %eax
11: dec  %rdi
    jnz  6b
    ret

    # probe_read(addr): the byte there, or -1 if it cannot be read; probe_write(addr, byte): 0 or -1. The fault handler
    # goes on at probe_failed when it finds itself at one of the two instructions.
    .globl probe_read, probe_read_at, probe_write, probe_write_at, probe_failed
probe_read:
    xor  %eax, %eax
probe_read_at:
    movb (%rdi), %al
    ret
probe_write:
    xor  %eax, %eax
probe_write_at:
    movb %sil, (%rdi)
    ret
probe_failed:
    mov  $-1, %rax
    ret
"#,
    vectors = const VECTORS,
    no_fpu = sym breaks::NO_FPU_SAVE,
    options(att_syntax)
);
