//! Read sections of SMR zones, for their users: smr(9).

use core::marker::PhantomData;

use platform::Platform;

use super::smr::Parity;
use crate::System;

/// A read section. While it lasts, items of SMR zones that are found in it stay what they are, freed or not.
#[must_use = "the section ends when this is dropped"]
pub struct SmrSection<'s, P: Platform> {
    system: &'s System<P>,
    parity: Parity,
    /// Sections may be left on another CPU, and by another thread.
    anywhere: PhantomData<P>,
}

impl<P: Platform> System<P> {
    /// Enters a read section. Nests; takes no lock and never sleeps; the reader itself may sleep, but holds up the reuse of memory meanwhile, and must not call
    /// [`smr_synchronize`](Self::smr_synchronize). smr_enter(9).
    ///
    /// # Panics
    /// If no SMR zone was ever made.
    pub fn smr_enter(&self) -> SmrSection<'_, P> {
        assert!(self.registry.smr.is_ready(), "a read section without an SMR zone: make the zone first");
        let slot = self.enter();
        // SAFETY: an SMR zone was made, hence booted, hence a slot; held.
        let parity = unsafe {
            let parity = self.registry.smr.enter((*slot).index as usize);
            Self::leave(slot);
            parity
        };
        SmrSection { system: self, parity, anywhere: PhantomData }
    }

    /// Waits until every read section that is open now has ended. *May sleep*. smr_synchronize(9).
    pub fn smr_synchronize(&self) {
        if self.registry.smr.is_ready() {
            self.registry.smr.synchronize();
        }
    }

    /// A number for [`smr_poll`](Self::smr_poll): of what is unreachable by now. smr_advance(9).
    #[doc(alias = "smr_advance")]
    #[must_use]
    pub fn smr_tag(&self) -> u64 {
        self.registry.smr.tag()
    }

    /// Whether every read section has ended that was open when `tag` was had. Never sleeps. smr_poll(9).
    #[must_use]
    pub fn smr_poll(&self, tag: u64) -> bool {
        !self.registry.smr.is_ready() || self.registry.smr.poll(tag)
    }
}

impl<P: Platform> Drop for SmrSection<'_, P> {
    /// smr_exit(9).
    fn drop(&mut self) {
        let slot = self.system.enter();
        // SAFETY: as in `smr_enter`.
        unsafe {
            self.system.registry.smr.leave((*slot).index as usize, self.parity);
            System::<P>::leave(slot);
        }
        self.system.registry.smr.wake();
    }
}
