//! malloc_domainset(9): blocks from the NUMA domains that the caller names.
//!
//! Small blocks come from zones whose slabs lie in one domain each (`system::subzone`), larger ones are runs of pages that the port is asked to
//! place. What is freed goes home to its domain.

use core::ptr::NonNull;

use platform::Platform;

use super::{Flags, Malloc, MallocType, Request, Wait, block_align, served_bytes};
use crate::class::class_of_aligned;
use crate::stats::TypeId;
use crate::system::{DomainRequest, System};
use crate::zone::DomainSet;

/// A [`DomainSet`] or none, in the bytes that a [`Request`] has left over.
#[derive(Clone, Copy)]
pub(super) struct Domains(u16);

impl Domains {
    /// None named.
    pub(super) const ANY: Self = Self(0);
    const FIRST_TOUCH: u16 = 1;
    const ROUND_ROBIN: u16 = 2;
    const PREFER: u16 = 0x4000;
    const FIXED: u16 = 0x8000;

    /// # Panics
    /// For a domain that is not there, as in FreeBSD.
    fn of(set: DomainSet, domains: usize) -> Self {
        let (kind, domain) = match set {
            DomainSet::FirstTouch => (Self::FIRST_TOUCH, 0),
            DomainSet::RoundRobin => (Self::ROUND_ROBIN, 0),
            DomainSet::Prefer(domain) => (Self::PREFER, domain),
            DomainSet::Fixed(domain) => (Self::FIXED, domain),
        };
        assert!(domain < domains, "malloc_domainset: domain {domain} of a machine with {domains}");
        assert!(domain < Self::PREFER.into(), "malloc_domainset: domain {domain}");
        Self(kind | domain as u16)
    }

    fn set(self) -> DomainSet {
        let domain = usize::from(self.0 & (Self::PREFER - 1));
        match self.0 {
            Self::ROUND_ROBIN => DomainSet::RoundRobin,
            code if code & Self::FIXED != 0 => DomainSet::Fixed(domain),
            code if code & Self::PREFER != 0 => DomainSet::Prefer(domain),
            _ => DomainSet::FirstTouch,
        }
    }
}

impl<P: Platform> Malloc<'_, P> {
    /// A block, all of whose memory is from a set of NUMA domains. With [`DomainSet::Fixed`] a request that its domain cannot meet fails or
    /// sleeps, whatever others have. Otherwise as [`malloc`](Self::malloc). What realloc(9) makes of it may lie anywhere. malloc_domainset(9).
    ///
    /// # Panics
    /// As [`malloc`](Self::malloc), and for a domain that is not there, as in FreeBSD.
    pub fn malloc_domainset<W: Wait>(
        &self,
        ty: &'static MallocType,
        bytes: usize,
        set: DomainSet,
        wait: W,
        flags: Flags,
    ) -> W::Block {
        self.malloc_domainset_aligned(ty, bytes, 1, set, wait, flags)
    }

    /// [`malloc_domainset`](Self::malloc_domainset) at a multiple of `align` (a power of two). malloc_domainset_aligned(9).
    ///
    /// # Panics
    /// As [`malloc_domainset`](Self::malloc_domainset), and if `align` is not a power of two.
    pub fn malloc_domainset_aligned<W: Wait>(
        &self,
        ty: &'static MallocType,
        bytes: usize,
        align: usize,
        set: DomainSet,
        _wait: W,
        flags: Flags,
    ) -> W::Block {
        assert!(align.is_power_of_two(), "malloc_domainset_aligned: {align} is not a power of two");
        let domains = Domains::of(set, P::domains());
        let flags = flags | Flags::DOMAINS;
        W::block(self.request(ty, Request { bytes, align, waiting: W::WAITING, domains, flags }))
    }

    /// [`malloc_domainset`](Self::malloc_domainset) of zeros.
    ///
    /// # Panics
    /// As [`malloc_domainset`](Self::malloc_domainset).
    pub fn malloc_domainset_zero<W: Wait>(
        &self,
        ty: &'static MallocType,
        bytes: usize,
        set: DomainSet,
        wait: W,
        flags: Flags,
    ) -> W::Block {
        self.malloc_domainset(ty, bytes, set, wait, flags | Flags::ZERO)
    }

    /// [`malloc_domainset`](Self::malloc_domainset) of memory in which code can run. malloc_domainset_exec(9).
    ///
    /// # Panics
    /// As [`malloc_domainset`](Self::malloc_domainset), and with [`WaitOk`](super::WaitOk) where the port cannot.
    pub fn malloc_domainset_exec<W: Wait>(
        &self,
        ty: &'static MallocType,
        bytes: usize,
        set: DomainSet,
        wait: W,
        flags: Flags,
    ) -> W::Block {
        self.malloc_domainset(ty, bytes, set, wait, flags | Flags::EXEC)
    }

    /// [`mallocarray`](Self::mallocarray) from a set of domains. mallocarray_domainset(9).
    ///
    /// # Panics
    /// As [`malloc_domainset`](Self::malloc_domainset).
    pub fn mallocarray_domainset<W: Wait>(
        &self,
        ty: &'static MallocType,
        count: usize,
        size: usize,
        set: DomainSet,
        wait: W,
        flags: Flags,
    ) -> W::Block {
        self.malloc_domainset(ty, count.saturating_mul(size), set, wait, flags)
    }

    /// Asks the system once, for a request that names domains.
    pub(super) fn ask_in_domains(&self, id: TypeId, request: &Request) -> *mut u8 {
        let page = System::<P>::PAGE;
        let Request { bytes, align, flags, domains, .. } = *request;
        let align = block_align(bytes, align, page);
        let class = class_of_aligned(bytes, align);
        let served = served_bytes(bytes, align, page).max(page);
        let set = domains.set();
        let block =
            self.system.alloc_in_domains(class, DomainRequest { bytes, served, align: align.max(page), id, set });
        if let Some(block) = NonNull::new(block).filter(|_| flags.has(Flags::ZERO)) {
            // SAFETY: a fresh block of at least `bytes`.
            unsafe { block.write_bytes(0, bytes) };
        }
        block
    }
}
