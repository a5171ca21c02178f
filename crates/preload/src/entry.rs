//! The exported names.

/// A name whose function behind it gets the call's place as two further arguments: the address of the return address, and the
/// frame pointer. `$a` and `$b` are the argument registers that follow the function's own.
macro_rules! with_call {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) -> $ret:ty => $to:path, $stack:literal, $frame:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// 1. As the standard says of the function: memory given back is the caller's, and memory named is writable.
        #[cfg_attr(panic = "abort", unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                concat!("mov ", $stack, ", rsp"),
                concat!("mov ", $frame, ", rbp"),
                "jmp {to}",
                to = sym $to,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!("b {to}", to = sym $to);
        }
    )*};
}

/// A name whose function behind it gets the type of the call, in the argument register `$id` that follows its own, when the cache
/// knows it ([`hosted::CACHE`]; in assembler, so the fast path has no frame, and no register to spare for one). When not,
/// a second function gets the call's place, as with [`with_call`].
macro_rules! with_type {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) -> $ret:ty =>
        $known:path, $id:literal, $low:literal; $unknown:path, $stack:literal, $frame:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// 1. As the standard says of the function: memory given back is the caller's, and memory named is writable.
        #[cfg_attr(panic = "abort", unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                concat!("mov ", $id, ", qword ptr [rsp]"),
                concat!("mov eax, ", $low),
                "and eax, {mask}",
                "lea r10, [rip + {cache}]",
                concat!("shl ", $id, ", 16"),
                // The address cancels; what is left is the id.
                concat!("xor ", $id, ", qword ptr [r10 + 8 * rax]"),
                concat!("cmp ", $id, ", {last}"),
                "jbe {known}",
                concat!("mov ", $stack, ", rsp"),
                concat!("mov ", $frame, ", rbp"),
                "jmp {unknown}",
                mask = const hosted::WAY_MASK,
                cache = sym hosted::CACHE,
                last = const hosted::LAST_TYPE,
                known = sym $known,
                unknown = sym $unknown,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!("b {unknown}", unknown = sym $unknown);
        }
    )*};
}

/// A name whose function behind it gets the return address as one further argument.
macro_rules! with_return {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) => $to:path, $ret:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// 1. As the standard says of the function: memory given back is the caller's, and memory named is writable.
        #[cfg_attr(panic = "abort", unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                concat!("mov ", $ret, ", qword ptr [rsp]"),
                "jmp {to}",
                to = sym $to,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!("b {to}", to = sym $to);
        }
    )*};
}

/// `operator new`: as [`with_call`], but a null comes back here, with nothing of ours on the stack, and the request goes on
/// to the C++ library's own function of that name. That calls the new handler, asks us again and throws: an exception must
/// not pass a frame of this library, which has no landing pads.
macro_rules! with_retry {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) => $to:path, $stack:literal, $frame:literal;)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// 1. As the standard says of the function: memory given back is the caller's, and memory named is writable.
        #[cfg_attr(panic = "abort", unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> *mut u8 {
            #[cfg(target_arch = "x86_64")]
            core::arch::naked_asm!(
                "push rdi",
                "push rsi",
                "push rdx",
                concat!("lea ", $stack, ", [rsp + 24]"),
                concat!("mov ", $frame, ", rbp"),
                "call {to}",
                "test rax, rax",
                "je 2f",
                "add rsp, 24",
                "ret",
                "2: lea rdi, [rip + 3f]",
                "call {next}",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                // libstdc++ rounds the size up to the alignment; what can never be had must not wrap to what can.
                "mov r10, 0x7fffffffffffff00",
                "cmp rdi, r10",
                "cmova rdi, r10",
                "jmp rax",
                concat!("3: .asciz \"", stringify!($name), "\""),
                to = sym $to,
                next = sym $crate::life::next_function,
            );
            #[cfg(target_arch = "aarch64")]
            core::arch::naked_asm!("b {to}", to = sym $to);
        }
    )*};
}

pub(crate) use {with_call, with_retry, with_return, with_type};
