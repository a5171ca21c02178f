//! From the loader (PVH: 32-bit, paging off) or a start-up interrupt (16-bit) to Rust in long mode, in the upper half.
//!
//! The first page tables map the low 4 GiB three times: where they are (until [`crate::start`] has all CPUs up), at
//! [`crate::space::DIRECT`], and the first 2 GiB of them at the end of the address space, where the kernel is linked.

use core::arch::global_asm;

global_asm!(
    r#"
    .set BASE, 0xffffffff80000000

    .section .note.pvh,"a",@note
    .balign 4
    .long 4, 8, 18              # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .balign 4
    .quad pvh_start

    .section .boot,"ax",@progbits
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    mov  %ebx, %ebp             # hvm_start_info; .bss was zeroed by the loader
    mov  $(pdpt - BASE), %eax
    or   $3, %eax
    mov  %eax, pml4 - BASE
    mov  %eax, pml4 - BASE + 256*8
    mov  $(pdpt_kernel - BASE), %eax
    or   $3, %eax
    mov  %eax, pml4 - BASE + 511*8
    mov  $(pd - BASE), %eax
    or   $3, %eax
    mov  %eax, pdpt_kernel - BASE + 510*8
    mov  $(pdpt - BASE), %edi
    mov  $4, %ecx
1:  mov  %eax, (%edi)
    add  $0x1000, %eax
    add  $8, %edi
    loop 1b
    mov  $0x83, %eax            # present, write, 2 MiB
    mov  $(pd - BASE), %edi
    mov  $2048, %ecx
2:  mov  %eax, (%edi)
    add  $0x200000, %eax
    add  $8, %edi
    loop 2b
    mov  $0x6a0, %eax           # PAE | PGE | OSFXSR | OSXMMEXCPT
    mov  %eax, %cr4
    mov  $(pml4 - BASE), %eax
    mov  %eax, %cr3
    mov  $0xc0000080, %ecx
    rdmsr
    or   $0x900, %eax           # LME | NXE
    wrmsr
    mov  $0x80010033, %eax      # PG | WP | NE | ET | MP | PE
    mov  %eax, %cr0
    lgdt gdt_low_ptr
    ljmp $8, $start64
    .code64
start64:
    xor  %eax, %eax
    mov  %eax, %ds
    mov  %eax, %es
    mov  %eax, %ss
    mov  %eax, %fs
    mov  %eax, %gs
    movabs $boot_stack_top, %rsp
    mov  %ebp, %edi
    xor  %ebp, %ebp
    movabs $start_first_cpu, %rax
    call *%rax
    ud2

    .balign 8
gdt_low:
    .quad 0
    .quad 0x00af9b000000ffff    # 64-bit code
    .quad 0x00cf93000000ffff    # data
gdt_low_end:
gdt_low_ptr:
    .word gdt_low_end - gdt_low - 1
    .long gdt_low

ap64:
    xor  %eax, %eax
    mov  %eax, %ds
    mov  %eax, %es
    mov  %eax, %ss
    mov  %eax, %fs
    mov  %eax, %gs
    movabs $ap_high, %rax
    jmp  *%rax

    # Copied to 0x8000, where the start-up interrupt runs it in real mode.
    .globl tramp_start, tramp_end
    .code16
tramp_start:
    cli
    cld
    xor  %ax, %ax
    mov  %ax, %ds
    lgdtl (tramp_gdt - tramp_start + 0x8000)
    mov  $0x6a0, %eax
    mov  %eax, %cr4
    mov  $(pml4 - BASE), %eax
    mov  %eax, %cr3
    mov  $0xc0000080, %ecx
    rdmsr
    or   $0x900, %eax
    wrmsr
    mov  $0x80010033, %eax
    mov  %eax, %cr0
    ljmpl $8, $ap64
    .balign 8
tramp_gdt:
    .word gdt_low_end - gdt_low - 1
    .long gdt_low
tramp_end:

    .text
    .code64
ap_high:
    mov  $1, %edi
    lock xadd %edi, ap_next(%rip)
    mov  %edi, %eax
    shl  $16, %rax              # 64 KiB of stack each; the first is number 1
    lea  ap_stacks(%rip), %rsp
    add  %rax, %rsp
    xor  %ebp, %ebp
    call start_other_cpu
    ud2

    .data
    .balign 4
ap_next: .long 1

    .bss
    .balign 4096
    .globl pml4
pml4: .skip 4096
pdpt: .skip 4096
pdpt_kernel: .skip 4096
pd:   .skip 4096 * 4
boot_stack: .skip 65536
boot_stack_top:
ap_stacks: .skip 65536 * 15
"#,
    options(att_syntax)
);

// What a libc would give to the precompiled `core`.
global_asm!(
    r#"
    .text
    .globl memcpy, memmove, memset, memcmp, bcmp, strlen
memmove:
    mov  %rdi, %rax
    sub  %rsi, %rax
    cmp  %rdx, %rax             # dst - src, unsigned, below n: they overlap, so from the end
    jb   1f
memcpy:
    mov  %rdi, %rax
    mov  %rdx, %rcx
    shr  $3, %rcx
    rep  movsq
    mov  %edx, %ecx
    and  $7, %ecx
    rep  movsb
    ret
1:  mov  %rdi, %rax
    lea  -1(%rdi,%rdx), %rdi
    lea  -1(%rsi,%rdx), %rsi
    mov  %rdx, %rcx
    std
    rep  movsb
    cld
    ret
memset:
    mov  %rdi, %r8
    movzbl %sil, %eax
    movabs $0x0101010101010101, %rcx
    imul %rcx, %rax
    mov  %rdx, %rcx
    shr  $3, %rcx
    rep  stosq
    mov  %edx, %ecx
    and  $7, %ecx
    rep  stosb
    mov  %r8, %rax
    ret
bcmp:
memcmp:
    xor  %ecx, %ecx
    xor  %eax, %eax
2:  cmp  %rdx, %rcx
    je   3f
    movzbl (%rdi,%rcx), %eax
    movzbl (%rsi,%rcx), %r8d
    inc  %rcx
    sub  %r8d, %eax
    je   2b
3:  ret
strlen:
    xor  %eax, %eax
4:  cmpb $0, (%rdi,%rax)
    je   5f
    inc  %rax
    jmp  4b
5:  ret
"#,
    options(att_syntax)
);
