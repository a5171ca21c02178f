//! Zones that serve malloc beside the zones of its size classes: one size class each, of malloc types that were hashed there, or for requests
//! that name a NUMA domain. FreeBSD's `UMA_ZONE_MALLOC`.
//!
//! Besides its state an item has the tag of the malloc type that it is credited to, in the slab's descriptor after the states.

use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering;

use abi::page;
use platform::Platform;

use super::RawZone;
use super::config::{Fail, Flags, How, ZoneConfig};
use super::core::KegCore;
use super::depot::STRAY;
use super::slab::{FREE, ZoneSlab};
use crate::System;

/// From which NUMA domain memory is to come. `struct domainset` of domainset(9); the sets are all of the machine's domains.
#[doc(alias = "domainset")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainSet {
    /// From that of the CPU that asks, else from any. `DOMAINSET_FT`.
    #[doc(alias = "DOMAINSET_FT")]
    FirstTouch,
    /// From each in turn; from the next when one has none. `DOMAINSET_RR`.
    #[doc(alias = "DOMAINSET_RR")]
    RoundRobin,
    /// From this one, else from any. `DOMAINSET_PREF`.
    #[doc(alias = "DOMAINSET_PREF")]
    Prefer(usize),
    /// From this one and no other. `DOMAINSET_FIXED`.
    #[doc(alias = "DOMAINSET_FIXED")]
    Fixed(usize),
}

/// An item of such a zone, found from an address in it.
pub(crate) struct SizedItem<'s, P: Platform> {
    pub(crate) zone: RawZone<'s, P>,
    pub(crate) addr: usize,
    pub(crate) bytes: usize,
    pub(crate) live: bool,
    /// Of the type that has or had it.
    pub(crate) tag: *mut u16,
}

impl<P: Platform> System<P> {
    /// A zone for blocks of `bytes`, at multiples of `align`.
    pub(crate) fn create_sized_zone(&self, name: &str, bytes: usize, align: usize) -> Option<RawZone<'_, P>> {
        self.zcreate_sound(&ZoneConfig { flags: Flags::MALLOC, ..ZoneConfig::new(name, bytes, align) }).ok()
    }

    /// The record of the keg that the slab of an address says it belongs to; to be compared, not followed.
    pub(crate) fn named_keg(&self, addr: usize) -> Option<*const ()> {
        let word = self.word_of_any(addr).filter(|&word| page::code(word) == page::ZONE_SLAB)?;
        // SAFETY: a descriptor that a page's word names is readable and stays so.
        Some(unsafe { (*(page::descriptor(word) as *const ZoneSlab)).keg })
    }

    /// The item that contains an address, if it is one of such a zone. The slab of the address does not go meanwhile: an item of it is in use.
    pub(crate) fn sized_item(&self, addr: usize) -> Option<SizedItem<'_, P>> {
        let word = self.word_of_any(addr).filter(|&word| page::code(word) == page::ZONE_SLAB)?;
        let slab = page::descriptor(word) as *mut ZoneSlab;
        // SAFETY: a descriptor that a page's word names is readable and stays so; it names a keg's record, which is never given back. Zones with
        // this flag are not destroyed, so a slab of the keg's generation is one of theirs.
        unsafe {
            let keg = &*(*slab).keg.cast::<KegCore<P>>();
            if (*slab).generation != keg.identity().1 || !keg.flags.get().has(Flags::MALLOC) {
                return None;
            }
            let core = keg.primary.get().as_ref()?;
            let index = keg.cut().item_around(&*slab, addr)?;
            let state = *keg.cut().state(slab, index);
            Some(SizedItem {
                zone: RawZone { system: self, core },
                addr: keg.cut().item(&*slab, index),
                bytes: keg.item_bytes.get(),
                live: state != FREE && state != STRAY,
                tag: keg.cut().type_tag(slab, index),
            })
        }
    }
}

impl<P: Platform> RawZone<'_, P> {
    /// Whether its items come from this keg.
    pub(crate) fn is_on(&self, keg: *const ()) -> bool {
        core::ptr::eq(self.core.keg.get().cast(), keg)
    }

    /// An item from a set of domains, which exist. Never sleeps.
    pub(crate) fn alloc_from_set(&self, set: DomainSet) -> Result<NonNull<u8>, Fail> {
        let (domain, only) = match set {
            DomainSet::FirstTouch => return self.alloc(How::NOWAIT),
            DomainSet::RoundRobin => (self.next_domain(), false),
            DomainSet::Prefer(domain) => (domain, false),
            DomainSet::Fixed(domain) => (domain, true),
        };
        self.alloc_past_caches(null_mut(), domain, only, How::NOWAIT)
    }

    /// Domains in turn.
    fn next_domain(&self) -> usize {
        self.core.keg().map_or(0, |keg| keg.turn.fetch_add(1, Ordering::Relaxed) % keg.domains)
    }
}
