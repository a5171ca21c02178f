//! The exported names.

/// A name whose function behind it gets the call's place as two further arguments: the address of the return address, and the
/// frame pointer. `$a` and `$b` are the argument registers that follow the function's own.
macro_rules! with_call {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) -> $ret:ty => $to:path, $stack:literal, $frame:literal;)*) => {$(
        $(#[$doc])*
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

/// A name whose function behind it gets the return address as one further argument.
macro_rules! with_return {
    ($($(#[$doc:meta])* $name:ident ( $($arg:ident : $ty:ty),* ) => $to:path, $ret:literal;)*) => {$(
        $(#[$doc])*
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

pub(crate) use {with_call, with_return};
