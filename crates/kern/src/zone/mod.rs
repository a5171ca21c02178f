//! Zones made at run time: uma(9), with what pool(9) and illumos' kmem caches add.
//!
//! # The nouns
//!
//! A *zone* serves items of one size. Its *keg* cuts pages into *slabs* of such items; zones that stack on one keg are *secondary*. A *cache zone*
//! has no keg: its items come from two functions. Free items wait in *buckets*: two per zone and slot (three where there are
//! several domains), and full ones in the zone's *depot* of each domain.
//!
//! # The order of an allocation
//!
//! 1. section of a slot; pop from the slot's bucket; count; leave; `ctor`. No lock, three branches (slot or cache missing, something
//!    special, bucket empty).
//! 2. the slot's second bucket; a full bucket of the domain's depot; a bucket filled from the keg, paid for at the limit;
//! 3. one item past the buckets: from the keg's fullest slab, from a new slab, from what the caches of other CPUs hold, from another
//!    domain; then sleep or fail.
//!
//! `init` runs when a slab is made (in a secondary zone when an item leaves the keg), `ctor` at each allocation; what either undoes runs
//! in the opposite order. None of them is called with a lock held or in a section.
//!
//! # The life of an item
//!
//! ```text
//!   pages ─add_slab: init─► slab ─keg_take─► bucket ─pop: state = zone─► in use
//!     ▲                      ▲                 │ ▲                         │
//!     └─destroy_slab: fini───┴────keg_put──────┘ └──push: state = FREE─────┘   (SMR: by way of `pending`, until readers have left)
//! ```
//!
//! # Locks, in order
//!
//! list of zones → depot → (SMR step) → bucket pool → keg's slabs → pages → records; `limit`, `on_limit`, `mover` and the table of foreign pages are
//! taken alone. Sections are entered with no lock held.
//!
//! # What may sleep
//!
//! Requests with [`Wait::Sleep`]; [`RawZone::wait`]; [`System::smr_synchronize`]; [`RawZone::destroy`] of an SMR zone. Callbacks do as they
//! were told by their last argument.
//!
//! Sources: uma(9), zone(9), smr(9), pool_cache(9); Bonwick, "The slab allocator" (1994); Bonwick and Adams, "Magazines and vmem" (2001);
//! McKenney's SRCU for the read sections.
//!
//! [`System::smr_synchronize`]: crate::System::smr_synchronize

mod alloc;
mod config;
mod control;
mod core;
mod create;
mod depot;
mod free;
mod import;
mod keg;
mod layout;
mod limit;
mod moves;
mod quantum;
mod readers;
mod reclaim;
mod show;
mod sized;
mod slab;
mod smr;
mod table;
mod typed;
mod working_set;

pub use config::{
    Action, Callbacks, Ctor, Dtor, Fail, Fini, Flags, How, Import, Init, PagesAlloc, PagesFree, Reclaim, Release,
    Source, Supply, Wait, ZoneConfig, ZoneError,
};
pub use control::{ItemInfo, ZoneStats};
pub use create::Destroyed;
pub use moves::{MoveReply, Mover};
pub use quantum::QuantumZones;
pub use readers::SmrSection;
pub use sized::DomainSet;
pub use typed::{Zone, ZoneBox};

pub(crate) use self::core::Registry;

use self::core::ZoneCore;
use crate::System;
use platform::Platform;

/// A zone of untyped items. A handle: copies are the same zone.
///
/// All its functions may be called from any CPU and, but for those that say *may sleep*, from wherever the platform lets the allocator be called.
#[doc(alias = "uma_zone_t")]
pub struct RawZone<'s, P: Platform> {
    system: &'s System<P>,
    core: &'s ZoneCore<P>,
}

impl<'s, P: Platform> RawZone<'s, P> {
    /// The zone as a word that a static can hold.
    pub(crate) fn into_raw(self) -> *mut () {
        ::core::ptr::from_ref(self.core).cast_mut().cast()
    }

    /// The zone again.
    ///
    /// # Safety
    /// 1. `raw` is from [`into_raw`](Self::into_raw) of a zone of this system, which was not destroyed.
    pub(crate) unsafe fn from_raw(system: &'s System<P>, raw: *mut ()) -> Self {
        // SAFETY: 1.; records of zones are never given back.
        Self { system, core: unsafe { &*raw.cast::<ZoneCore<P>>() } }
    }
}

impl<P: Platform> Clone for RawZone<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for RawZone<'_, P> {}

impl<P: Platform> PartialEq for RawZone<'_, P> {
    fn eq(&self, other: &Self) -> bool {
        ::core::ptr::eq(self.core, other.core)
    }
}

impl<P: Platform> ::core::fmt::Debug for RawZone<'_, P> {
    fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
        let name = self.core.name.get();
        write!(f, "RawZone({})", ::core::str::from_utf8(abi::c_text(&name)).unwrap_or("?"))
    }
}
