//! `libkernmalloc-c`: the C interface (the crate `capi`) as a library for C programs of a Linux process.
//!
//! Each name of [`capi::interface!`] becomes a symbol, over the port for Linux. What sleeps, sleeps on a futex. What a
//! request cannot have, and what the core finds to be a bug, is said on standard error; a bug ends the program, unless
//! `KERNMALLOC=kern.malloc.on_misuse=report`.
//!
//! Built with `panic = "abort"` (the profile `preload`) this is `no_std`; a panic of the core is printed and aborts, as
//! the kernel's would.
#![cfg_attr(panic = "abort", no_std)]

mod life;
#[cfg(all(panic = "abort", not(test)))]
mod panic;

use capi::names::*;
use kern::malloc::Malloc;

/// The host of the interface: this process.
pub struct Process;

impl capi::Host for Process {
    type P = hosted::Linux;

    fn malloc() -> &'static Malloc<'static, hosted::Linux> {
        &hosted::MALLOC
    }

    fn boot() -> bool {
        hosted::boot()
    }

    fn channel() -> &'static vmem::Channel {
        static CHANNEL: vmem::Channel = vmem::Channel::new();
        &CHANNEL
    }

    fn arenas() -> &'static capi::vmem9::Arenas<Self> {
        static ARENAS: capi::vmem9::Arenas<Process> = capi::vmem9::Arenas::new();
        &ARENAS
    }

    fn type_loads() {
        life::watch_exit();
    }

    fn is_ending() -> bool {
        life::is_ending()
    }
}

/// What [`capi::interface!`] calls it.
type H = Process;

macro_rules! export {
    (
        functions { $(fn $function:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)* }
        plain { $(fn $plain:ident($($plain_arg:ident: $plain_type:ty),* $(,)?) $(-> $plain_result:ty)?;)* }
        objects { $($object:ident: $object_type:ty = $value:expr;)* }
    ) => {
        $(symbol! { $function [::<H>] ($($arg: $type),*) $(-> $result)? })*
        $(symbol! { $plain [] ($($plain_arg: $plain_type),*) $(-> $plain_result)? })*
        $(
            #[doc = concat!("`", stringify!($object), "` of the headers.")]
            #[unsafe(no_mangle)]
            #[allow(non_upper_case_globals, reason = "a name that C has in a header")]
            pub static $object: $object_type = $value;
        )*
    };
}

macro_rules! symbol {
    ($function:ident [$($host:tt)*] ($($arg:ident: $type:ty),*) $(-> $result:ty)?) => {
        #[doc = concat!("See `", stringify!($function), "` in the crate `capi`.")]
        ///
        /// # Safety
        /// As there.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $function($($arg: $type),*) $(-> $result)? {
            // SAFETY: the caller's, as there.
            #[allow(unused_unsafe, reason = "some have no conditions")]
            unsafe { capi::names::$function$($host)*($($arg),*) }
        }
    };
}
capi::interface!(export);
