//! What a zone is made of, as its maker says it.

/// Whether a request may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It may: for room under a limit, or for memory. `M_WAITOK`.
    #[doc(alias = "M_WAITOK")]
    Sleep,
    /// It fails instead. `M_NOWAIT`.
    #[doc(alias = "M_NOWAIT")]
    No,
}

/// How an item is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// May it sleep?
    pub wait: Wait,
    /// Every byte of it zero (of every copy, in a per-CPU zone) before its constructor runs. `M_ZERO`. In a zone with an `init` this wipes what
    /// `init` made.
    #[doc(alias = "M_ZERO")]
    pub zero: bool,
    /// May take from the zone's reserve. `M_USE_RESERVE`.
    #[doc(alias = "M_USE_RESERVE")]
    pub reserve: bool,
}

impl How {
    /// May sleep.
    pub const WAIT: Self = Self { wait: Wait::Sleep, zero: false, reserve: false };
    /// Fails rather than sleep.
    pub const NOWAIT: Self = Self { wait: Wait::No, zero: false, reserve: false };

    /// The same, zeroed.
    #[must_use]
    pub const fn zeroed(self) -> Self {
        Self { zero: true, ..self }
    }

    /// The same, with the zone's reserve if need be.
    #[must_use]
    pub const fn with_reserve(self) -> Self {
        Self { reserve: true, ..self }
    }
}

/// Why there is no item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fail {
    /// The zone has as many items in use as it may.
    Limit,
    /// The system has no memory (or an import function no items).
    Memory,
    /// `ctor` or `init` said no.
    Callback,
}

impl core::fmt::Display for Fail {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Limit => "the zone is at its limit",
            Self::Memory => "out of memory",
            Self::Callback => "the item's constructor failed",
        })
    }
}

/// Why there is no zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneError {
    /// The item size is 0 or above a gigabyte, or in a per-CPU zone above a page.
    ItemBytes(usize),
    /// The alignment is no power of two, above 16 MiB, or in a per-CPU zone above a page.
    Align(usize),
    /// These flags exclude each other, or are not for this kind of zone.
    Flags(Flags),
    /// Slabs have so many bytes, and nobody gives contiguous pages for them.
    Contig(usize),
    /// The system has no memory for the zone's records (or nothing was booted).
    Memory,
    /// 253 zones share this keg already.
    KegFull,
    /// Zones on this zone's keg are still there.
    HasSecondaries,
}

impl core::fmt::Display for ZoneError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::ItemBytes(bytes) => write!(f, "no zone has items of {bytes} bytes; 1 to 2^30 (per CPU: a page) do"),
            Self::Align(align) => {
                write!(f, "no zone aligns to {align}; a power of two up to 2^24 (per CPU: a page) does")
            }
            Self::Flags(flags) => write!(f, "flags {:#x} do not go together, or not with this kind of zone", flags.0),
            Self::Contig(bytes) => {
                write!(
                    f,
                    "slabs of {bytes} bytes are not contiguous by themselves; give the zone a supply that makes them so"
                )
            }
            Self::Memory => f.write_str("no memory for the records of a zone"),
            Self::KegFull => f.write_str("253 zones share this keg already; make another primary zone"),
            Self::HasSecondaries => f.write_str("other zones are on this zone's keg; destroy them first"),
        }
    }
}

/// Bits of [`ZoneConfig::flags`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// Items are zeroed once, when their slab is made; who frees one leaves it zero. `UMA_ZONE_ZINIT`.
    #[doc(alias = "UMA_ZONE_ZINIT")]
    pub const ZINIT: Self = Self(1);
    /// The allocator never writes to an item, nor to the pages that items lie in. `UMA_ZONE_NOTOUCH`.
    #[doc(alias = "UMA_ZONE_NOTOUCH")]
    pub const NOTOUCH: Self = Self(1 << 1);
    /// Slabs are never given back, so that an item's memory always is an item. `UMA_ZONE_NOFREE`.
    #[doc(alias = "UMA_ZONE_NOFREE")]
    pub const NOFREE: Self = Self(1 << 2);
    /// No per-CPU caches. `UMA_ZFLAG_CACHE` off; pool(9) `PR_NOCACHE`.
    #[doc(alias = "UMA_ZONE_NOBUCKET")]
    pub const NOBUCKET: Self = Self(1 << 3);
    /// Buckets of the largest size from the start. `UMA_ZONE_MAXBUCKET`.
    #[doc(alias = "UMA_ZONE_MAXBUCKET")]
    pub const MAXBUCKET: Self = Self(1 << 4);
    /// The same field of neighbouring items falls on different cache lines. `UMA_ZONE_CACHESPREAD`.
    #[doc(alias = "UMA_ZONE_CACHESPREAD")]
    pub const CACHESPREAD: Self = Self(1 << 5);
    /// An item is a copy per CPU, a page apart; see [`super::RawZone::pcpu_copy`]. `UMA_ZONE_PCPU`.
    #[doc(alias = "UMA_ZONE_PCPU")]
    pub const PCPU: Self = Self(1 << 6);
    /// Slabs come from all domains in turn. `UMA_ZONE_ROUNDROBIN`. Otherwise from the domain of the CPU that asks
    /// (`UMA_ZONE_FIRSTTOUCH`), and an item freed elsewhere is sent home.
    #[doc(alias = "UMA_ZONE_ROUNDROBIN")]
    pub const ROUNDROBIN: Self = Self(1 << 7);
    /// A freed item is used again only when every reader inside a section ([`crate::System::smr_enter`]) at its free has left, and
    /// `dtor` runs then. `UMA_ZONE_SMR`.
    #[doc(alias = "UMA_ZONE_SMR")]
    pub const SMR: Self = Self(1 << 8);
    /// Not trimmed to the working set; drained only. `UMA_ZONE_NOTRIM`.
    #[doc(alias = "UMA_ZONE_NOTRIM")]
    pub const NOTRIM: Self = Self(1 << 9);

    /// Items' contents are of no use in a core: slabs are no part of one, where the port can do that. `UMA_ZONE_NODUMP`.
    #[doc(alias = "UMA_ZONE_NODUMP")]
    pub const NODUMP: Self = Self(1 << 10);
    /// The pages of a slab are physically contiguous. Slabs of more than a page then need a supply that gives such pages
    /// ([`ContigSupply`](crate::contig::ContigSupply)). `UMA_ZONE_CONTIG`.
    #[doc(alias = "UMA_ZONE_CONTIG")]
    pub const CONTIG: Self = Self(1 << 11);

    const ALL: u32 = (1 << 12) - 1;

    /// Serves malloc: an item has a type's tag. The allocator's own. `UMA_ZONE_MALLOC`.
    pub(super) const MALLOC: Self = Self(1 << 12);

    /// These and those.
    #[must_use]
    pub const fn and(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Whether all of `some` are set.
    #[must_use]
    pub const fn has(self, some: Self) -> bool {
        self.0 & some.0 == some.0
    }

    /// Whether the bits are known and go together.
    pub(super) const fn are_sound(self) -> bool {
        self.0 & !Self::ALL == 0
            && !(self.has(Self::NOBUCKET) && self.has(Self::MAXBUCKET))
            && !(self.has(Self::NOBUCKET) && self.has(Self::SMR))
            && !(self.has(Self::NOTOUCH) && self.has(Self::ZINIT))
            && !(self.has(Self::PCPU) && self.has(Self::CACHESPREAD))
            && !(self.has(Self::PCPU) && self.has(Self::CONTIG))
    }
}

/// `(context, item, bytes, arg, how)`: makes an item ready for its user, at each allocation. False: it cannot. May sleep if
/// `how` says so. `arg` is what the caller of [`super::RawZone::alloc_arg`] gave.
pub type Ctor = unsafe fn(*mut (), *mut u8, usize, *mut (), How) -> bool;
/// `(context, item, bytes, arg)`: undoes `ctor`, at each free.
pub type Dtor = unsafe fn(*mut (), *mut u8, usize, *mut ());
/// `(context, item, bytes, wait)`: makes an item when its slab is made (in a secondary zone: when it leaves the keg). False: it cannot.
pub type Init = unsafe fn(*mut (), *mut u8, usize, Wait) -> bool;
/// `(context, item, bytes)`: undoes `init`.
pub type Fini = unsafe fn(*mut (), *mut u8, usize);

/// What a zone's maker runs on items. All are called with no lock held and outside of every section; they may use other zones. None may
/// unwind, but for the `init` of a zone with a keg of its own.
#[derive(Clone, Copy, Debug)]
pub struct Callbacks {
    pub(super) context: *mut (),
    pub(super) ctor: Option<Ctor>,
    pub(super) dtor: Option<Dtor>,
    pub(super) init: Option<Init>,
    pub(super) fini: Option<Fini>,
}

impl Callbacks {
    /// None.
    pub const NONE: Self = Self { context: core::ptr::null_mut(), ctor: None, dtor: None, init: None, fini: None };

    /// None yet, of a zone whose callbacks are handed `context`.
    ///
    /// # Safety
    /// 1. The callbacks that are added may be called with `context`, and otherwise as their types say, by any thread, from the zone's making
    ///    to its end.
    #[must_use]
    pub const unsafe fn new(context: *mut ()) -> Self {
        Self { context, ..Self::NONE }
    }

    /// With this one, see [`Ctor`].
    #[must_use]
    pub const fn ctor(self, ctor: Ctor) -> Self {
        Self { ctor: Some(ctor), ..self }
    }

    /// With this one, see [`Dtor`].
    #[must_use]
    pub const fn dtor(self, dtor: Dtor) -> Self {
        Self { dtor: Some(dtor), ..self }
    }

    /// With this one, see [`Init`].
    #[must_use]
    pub const fn init(self, init: Init) -> Self {
        Self { init: Some(init), ..self }
    }

    /// With this one, see [`Fini`].
    #[must_use]
    pub const fn fini(self, fini: Fini) -> Self {
        Self { fini: Some(fini), ..self }
    }
}

/// A function and its context: `uma_maxaction_t`.
#[derive(Clone, Copy, Debug)]
pub struct Action {
    /// Handed to `run`.
    pub context: *mut (),
    /// What is done.
    pub run: unsafe fn(*mut ()),
}

/// `(context, bytes, align, domain, wait)`: pages nobody else uses, or null.
pub type PagesAlloc = unsafe fn(*mut (), usize, usize, usize, Wait) -> *mut u8;
/// `(context, pages, bytes)`: takes pages back.
pub type PagesFree = unsafe fn(*mut (), *mut u8, usize);

/// A zone's own page supply: `uma_zone_set_allocf`, `uma_zone_set_freef`.
#[derive(Clone, Copy, Debug)]
pub struct Supply {
    pub(super) context: *mut (),
    pub(super) alloc: PagesAlloc,
    pub(super) free: PagesFree,
}

impl Supply {
    /// A supply of two functions, both handed `context`.
    ///
    /// # Safety
    /// 1. Both may be called as their types say, by any thread, while the zone lives.
    /// 2. Pages from `alloc` are aligned as asked, writable, not the heap's, and the zone's alone until `free`.
    #[must_use]
    pub const unsafe fn new(context: *mut (), alloc: PagesAlloc, free: PagesFree) -> Self {
        Self { context, alloc, free }
    }
}

/// `(context, out, want, domain, wait)`: writes up to `want` items and says how many.
pub type Import = unsafe fn(*mut (), *mut *mut u8, usize, usize, Wait) -> usize;
/// `(context, items, count)`: takes items back.
pub type Release = unsafe fn(*mut (), *const *mut u8, usize);

/// Where a cache zone's items come from: `uma_zcache_create`.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub(super) context: *mut (),
    pub(super) import: Import,
    pub(super) release: Release,
}

impl Source {
    /// A source of two functions, both handed `context`.
    ///
    /// # Safety
    /// 1. Both may be called as their types say, by any thread, while the zone lives.
    /// 2. No item from `import` is null. The zone does not look into items unless asked to zero them.
    #[must_use]
    pub const unsafe fn new(context: *mut (), import: Import, release: Release) -> Self {
        Self { context, import, release }
    }
}

/// A zone to be made.
#[derive(Clone, Copy, Debug)]
pub struct ZoneConfig<'a> {
    /// As shown; cut at 31 bytes.
    pub name: &'a str,
    /// Bytes of an item (of one copy, in a per-CPU zone).
    pub item_bytes: usize,
    /// Alignment of every item, a power of two. `uma_align_mask` plus one.
    pub align: usize,
    /// See [`Flags`].
    pub flags: Flags,
    /// See [`Callbacks`].
    pub callbacks: Callbacks,
    /// Pages from elsewhere than the heap.
    pub supply: Option<Supply>,
}

impl<'a> ZoneConfig<'a> {
    /// A zone of plain items.
    #[must_use]
    pub const fn new(name: &'a str, item_bytes: usize, align: usize) -> Self {
        Self { name, item_bytes, align, flags: Flags::NONE, callbacks: Callbacks::NONE, supply: None }
    }
}

/// How much [`super::RawZone::reclaim`] gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reclaim {
    /// What the zone's depots hold beyond its working set. `UMA_RECLAIM_TRIM`.
    #[doc(alias = "UMA_RECLAIM_TRIM")]
    Trim,
    /// All that its depots hold, and empty slabs. `UMA_RECLAIM_DRAIN`.
    #[doc(alias = "UMA_RECLAIM_DRAIN")]
    Drain,
    /// The CPUs' caches as well. `UMA_RECLAIM_DRAIN_CPU`.
    #[doc(alias = "UMA_RECLAIM_DRAIN_CPU")]
    DrainCpu,
}
