//! How a request is made: what may wait is a type, the rest are bits.
#![forbid(unsafe_code)]

use core::ops::BitOr;
use core::ptr::NonNull;

/// Bits of a request, with the values of FreeBSD's `sys/malloc.h` (`CANFAIL`: NetBSD's). Whether a request may sleep is not
/// here but a type, see [`Wait`]; only [`FlagWord`] has those bits, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// The bytes asked for are zero. Done with no lock held.
    pub const ZERO: Self = Self(0x0100);
    /// A request that sleeps is not to make others give memory up: it waits for what is freed anyway.
    pub const NORECLAIM: Self = Self(0x0080);
    /// Only from memory that the allocator has already. Taken and not acted upon, as in FreeBSD.
    pub const NOVM: Self = Self(0x0200);
    /// May dip into the reserve (`vm.kmem_reserve_pages`).
    pub const USE_RESERVE: Self = Self(0x0400);
    /// Contents are of no use in a core. For blocks of a page or more, where the port can; others are dumped with their slab.
    pub const NODUMP: Self = Self(0x0800);
    /// Code in the block can run. In pages of its own; fails where the port cannot do it.
    pub const EXEC: Self = Self(0x4000);
    /// For arenas (vmem(9)); malloc takes and ignores it.
    pub const FIRSTFIT: Self = Self(0x1000);
    /// See [`Flags::FIRSTFIT`].
    pub const BESTFIT: Self = Self(0x2000);
    /// See [`Flags::FIRSTFIT`].
    pub const NEXTFIT: Self = Self(0x8000);
    /// Will never be freed. A hint.
    pub const NEVERFREED: Self = Self(0x1_0000);

    /// The request names domains. The allocator's own: no flag word has it.
    pub(super) const DOMAINS: Self = Self(1 << 31);
    /// What a request rarely has.
    pub(super) const RESERVE_OR_DOMAINS: Self = Self(Self::USE_RESERVE.0 | Self::DOMAINS.0);
    /// What needs pages of its own.
    pub(super) const EXEC_OR_NODUMP: Self = Self(Self::EXEC.0 | Self::NODUMP.0);

    const ALL: u32 = 0x1_ff80;

    /// These but for some.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// Whether any of these is set.
    #[must_use]
    pub const fn has_any(self, flags: Self) -> bool {
        self.0 & flags.0 != 0
    }

    /// Whether all of these are set.
    #[must_use]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A request's flags as C gives them: those of [`Flags`], and exactly one of `M_NOWAIT` and `M_WAITOK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlagWord(pub u32);

/// What a [`FlagWord`] says of waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// `M_NOWAIT`.
    NoWait,
    /// `M_WAITOK | M_CANFAIL`.
    CanFail,
    /// `M_WAITOK`.
    WaitOk,
}

impl FlagWord {
    /// `M_NOWAIT`
    pub const NOWAIT: u32 = 0x0001;
    /// `M_WAITOK`
    pub const WAITOK: u32 = 0x0002;
    /// `M_CANFAIL`
    pub const CANFAIL: u32 = 0x0004;

    /// The word's parts; `None` when it has both or neither of `M_NOWAIT` and `M_WAITOK`, or a bit that means nothing.
    #[must_use]
    pub const fn parse(self) -> Option<(Waiting, Flags)> {
        let flags = self.0 & !(Self::NOWAIT | Self::WAITOK | Self::CANFAIL);
        if flags & !Flags::ALL != 0 {
            return None;
        }
        let waiting = match self.0 & (Self::NOWAIT | Self::WAITOK) {
            Self::NOWAIT => Waiting::NoWait,
            Self::WAITOK if self.0 & Self::CANFAIL != 0 => Waiting::CanFail,
            Self::WAITOK => Waiting::WaitOk,
            _ => return None,
        };
        Some((waiting, Flags(flags)))
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::NoWait {}
    impl Sealed for super::WaitOk {}
    impl Sealed for super::CanFail {}
}

/// Whether a request may sleep, and hence what it returns: one of [`NoWait`], [`WaitOk`] and [`CanFail`].
pub trait Wait: sealed::Sealed {
    /// A block, or perhaps one.
    type Block;
    /// As a value.
    const WAITING: Waiting;
    /// A request that failed has `None`; one that cannot fail never gives it.
    fn block(found: Option<NonNull<u8>>) -> Self::Block;
}

/// `M_NOWAIT`: never sleeps, and may fail.
#[derive(Clone, Copy, Debug)]
pub struct NoWait;

/// `M_WAITOK`: may sleep, and cannot fail. A request that can never be met is a panic.
#[derive(Clone, Copy, Debug)]
pub struct WaitOk;

/// `M_WAITOK | M_CANFAIL`: may sleep, and fails only where it could never be met.
#[derive(Clone, Copy, Debug)]
pub struct CanFail;

impl Wait for NoWait {
    type Block = Option<NonNull<u8>>;
    const WAITING: Waiting = Waiting::NoWait;
    fn block(found: Option<NonNull<u8>>) -> Self::Block {
        found
    }
}

impl Wait for CanFail {
    type Block = Option<NonNull<u8>>;
    const WAITING: Waiting = Waiting::CanFail;
    fn block(found: Option<NonNull<u8>>) -> Self::Block {
        found
    }
}

impl Wait for WaitOk {
    type Block = NonNull<u8>;
    const WAITING: Waiting = Waiting::WaitOk;
    fn block(found: Option<NonNull<u8>>) -> Self::Block {
        found.expect("malloc: a request that may sleep was not met")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_exactly_one_way_to_wait() {
        assert_eq!(FlagWord(0x0101).parse(), Some((Waiting::NoWait, Flags::ZERO)));
        assert_eq!(FlagWord(0x0002).parse(), Some((Waiting::WaitOk, Flags::NONE)));
        assert_eq!(FlagWord(0x0406).parse(), Some((Waiting::CanFail, Flags::USE_RESERVE)));
        for wrong in [0, 3, 0x0100, 0x0004, 0x0041, 0x8000_0001] {
            assert_eq!(FlagWord(wrong).parse(), None, "{wrong:#x}");
        }
    }
}
