//! Modules: relocatable objects (ELF64 `.o`, x86-64) that are linked while the kernel runs, as kld(4) has it.
//!
//! # Theory
//!
//! ```text
//!  object ─► link::Plan      checked, sections laid out: text | constants | data, each from a page on; every
//!     │                      undefined symbol is on the list of `exports`, or the object is refused
//!     ├────► memory::Memory  addresses from an arena beside the kernel, frames behind them
//!     ├────► Plan::link      sections copied, relocations written
//!     ├────► protect         text runs and is not written to, constants are read, data is not run
//!     └────► constructors    of MALLOC_DEFINE: the module's types are attached
//!
//!  unload: destructors (types are detached, with a warning for what leaked) ─► types that nobody detached
//!          ─► pages, addresses
//! ```
//!
//! Until the constructors run, whatever fails leaves nothing behind: the memory goes with the value that owns it. After
//! that nothing fails.
//!
//! What a module has made beside its types (zones, threads, blocks) is its own affair; that it is unloaded with calls
//! into it under way is a bug of its user, hence [`Module::unload`] is unsafe.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use kern::malloc::MallocType;

use crate::start::MALLOC;

mod exports;
mod link;
mod memory;
mod tests;

use link::{Calls, Plan};
use memory::Memory;

pub(crate) use tests::tests;

/// A loaded module.
pub(crate) struct Module<'d> {
    plan: Plan<'d>,
    memory: Memory,
    destructors: Vec<usize>,
}

/// Why a module is not loaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<'d> {
    /// Its object is not as it should be.
    Object(link::Error<'d>),
    /// There is no memory for so many bytes.
    Memory(usize),
}

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Object(error) => error.fmt(f),
            Self::Memory(bytes) => write!(f, "no memory for its {bytes} bytes"),
        }
    }
}

impl<'d> From<link::Error<'d>> for Refused<'d> {
    fn from(error: link::Error<'d>) -> Self {
        Self::Object(error)
    }
}

impl<'d> Module<'d> {
    /// Loads an object and runs its constructors.
    ///
    /// # Errors
    /// Why not; nothing is left of it then.
    ///
    /// # Safety
    /// 1. Its code keeps to the rules of the interface that it was compiled against.
    pub(crate) unsafe fn load(object: &'d [u8]) -> Result<Self, Refused<'d>> {
        let plan = Plan::new(object, memory::ROOM, &exports::find)?;
        let bytes = plan.bytes();
        let mut memory = Memory::new(bytes).ok_or(Refused::Memory(bytes))?;
        let base = memory.addr();
        let Calls { constructors, destructors } = plan.link(memory.contents(), base, &exports::find)?;
        for (part, range) in plan.parts() {
            memory.protect(part, range);
        }
        for constructor in constructors {
            // SAFETY: a function of the object's text, linked and made executable. 1.
            unsafe { call(constructor) };
        }
        Ok(Self { plan, memory, destructors })
    }

    /// The address of a function that the module defines for others.
    pub(crate) fn function(&self, name: &str) -> Option<usize> {
        self.plan.function(name, self.memory.addr())
    }

    /// The addresses that are the module's.
    pub(crate) fn range(&self) -> Range<usize> {
        self.memory.addr()..self.memory.addr() + self.memory.bytes()
    }

    /// Runs the destructors, detaches what types are left, and gives the memory back.
    ///
    /// # Safety
    /// 1. Nobody calls into the module, or will, and nothing of the kernel points into it but its malloc types.
    pub(crate) unsafe fn unload(self) {
        for &destructor in &self.destructors {
            // SAFETY: as the constructors.
            unsafe { call(destructor) };
        }
        // Those attached by hand, and by a first use without a definition. They are about to be no memory.
        while let Some(ty) = self.attached() {
            let _ = MALLOC.detach(ty);
        }
    }

    /// A type in the module's memory that is attached.
    fn attached(&self) -> Option<&'static MallocType> {
        let range = self.range();
        let mut found = None;
        MALLOC.for_each_type(|ty| {
            found = Some(ty).filter(|ty| range.contains(&(core::ptr::from_ref(*ty) as usize)));
            found.is_none()
        });
        found
    }
}

/// Calls a function without arguments.
///
/// # Safety
/// 1. There is one.
unsafe fn call(function: usize) {
    // SAFETY: 1.
    unsafe { core::mem::transmute::<usize, unsafe extern "C" fn()>(function)() }
}

/// Bytes as text; what is not UTF-8 ends it.
pub(crate) fn text_of(bytes: &[u8]) -> &str {
    match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""),
    }
}
