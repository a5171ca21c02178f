//! The state word of a malloc type: magic, special bits and identity in one word, so that one load and one compare on the way to an
//! allocation say at once that it is a type, registered and without anything special.
//!
//! The word is what CPUs that use a type for the first time at once, those that have it already, and a module that takes it away meet
//! on. `crates/abi/tests/loom_types.rs` compiles this very file against loom's atomics.

use abi::{AtomicU64, Ordering};

/// Upper half of the word (FreeBSD's `M_MAGIC`).
const MAGIC: u64 = 877_983_977;
/// Special bits, in the third 16 bits of the word; no bit set means registered and ordinary.
const SPECIAL_NEW: u64 = 1 << 16;
const SPECIAL_LIMIT: u64 = 2 << 16;
const SPECIAL_TRACE: u64 = 4 << 16;
/// Some of its requests fail on purpose.
const SPECIAL_FAIL: u64 = 8 << 16;
const SPECIAL_BITS: u64 = 0xffff << 16;
const ID_BITS: u64 = 0xffff;

/// See the module's text. Changes under the lock of the list of types.
#[derive(Debug)]
pub(crate) struct StateWord(pub(crate) AtomicU64);

/// What a word says. An index is that of the type's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No type has such a word.
    NotAType,
    /// A type that has no record.
    New,
    /// Registered, and nothing special.
    Ordinary { index: usize },
    /// Registered, and something special.
    Special { index: usize, limited: bool, traced: bool },
}

impl StateWord {
    /// The word of a type that was never used.
    pub(crate) const NEW: u64 = MAGIC << 32 | SPECIAL_NEW;
    /// Records that a word can name.
    pub(crate) const INDEX_MAX: usize = ID_BITS as usize - 1;

    /// The record of a registered type without anything special: one load, one compare.
    #[inline(always)]
    pub(crate) fn ordinary(&self) -> Option<usize> {
        // What was written to the record before `register` is seen by whoever learns its index here.
        let word = self.0.load(Ordering::Acquire);
        if word >> 16 == MAGIC << 16 { Some(Self::index_of(word)) } else { None }
    }

    /// What the word says.
    pub(crate) fn read(&self) -> State {
        let word = self.0.load(Ordering::Acquire);
        let index = Self::index_of(word);
        match word & SPECIAL_BITS {
            _ if word >> 32 != MAGIC => State::NotAType,
            0 => State::Ordinary { index },
            bits if bits & SPECIAL_NEW != 0 => State::New,
            bits => State::Special { index, limited: bits & SPECIAL_LIMIT != 0, traced: bits & SPECIAL_TRACE != 0 },
        }
    }

    /// The record of a registered type.
    pub(crate) fn index(&self) -> Option<usize> {
        match self.read() {
            State::Ordinary { index } | State::Special { index, .. } => Some(index),
            State::NotAType | State::New => None,
        }
    }

    /// The type has a record, which is whole. Under the list's lock.
    pub(crate) fn register(&self, index: usize, limited: bool) {
        let special = if limited { SPECIAL_LIMIT } else { 0 };
        self.0.store(MAGIC << 32 | special | (index as u64 + 1), Ordering::Release);
    }

    /// The type has none any more. Under the list's lock.
    pub(crate) fn unregister(&self) {
        self.0.store(Self::NEW, Ordering::Release);
    }

    /// Sets or clears the special bit of a limit.
    pub(crate) fn set_limited(&self, limited: bool) {
        self.set(SPECIAL_LIMIT, limited);
    }

    /// Sets or clears the special bit of a trace.
    pub(crate) fn set_traced(&self, traced: bool) {
        self.set(SPECIAL_TRACE, traced);
    }

    /// Sets or clears the special bit of failures on purpose.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.set(SPECIAL_FAIL, failing);
    }

    fn set(&self, bit: u64, on: bool) {
        if on {
            self.0.fetch_or(bit, Ordering::AcqRel);
        } else {
            self.0.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    fn index_of(word: u64) -> usize {
        ((word & ID_BITS) as usize).wrapping_sub(1)
    }
}

const _: () = assert!(
    (SPECIAL_NEW | SPECIAL_LIMIT | SPECIAL_TRACE | SPECIAL_FAIL) & !SPECIAL_BITS == 0 && SPECIAL_BITS & ID_BITS == 0
);
