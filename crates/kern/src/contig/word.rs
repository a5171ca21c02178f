//! What the word of a withheld frame says.
//!
//! ```text
//!  63               32 31      16 15      3   2  0
//! | pages            | type tag  | mapped | 1 |   the first frame of a block
//! | index in block   | 0         | 0      | 2 |   the others
//! | request << 3                          | 3 |   gathered by a request
//! | 0                                     | 0 |   none of ours
//! ```
#![forbid(unsafe_code)]

use crate::stats::TypeId;

const FIRST: u64 = 1;
const TAIL: u64 = 2;
const HELD: u64 = 3;
const KIND: u64 = 7;
const MAPPED: u64 = 1 << 3;
const TYPE_SHIFT: u32 = 16;
const NUMBER_SHIFT: u32 = 32;

/// Most pages of a block: what the word has room for, 16 TiB.
pub(super) const NPAGES_MAX: usize = u32::MAX as usize;

pub(super) enum Role {
    First { npages: usize, id: TypeId, mapped: bool },
    Tail { index: u64 },
    Other,
}

pub(super) const fn first_word(npages: usize, id: TypeId, mapped: bool) -> u64 {
    (npages as u64) << NUMBER_SHIFT | (id.tag() as u64) << TYPE_SHIFT | if mapped { MAPPED } else { 0 } | FIRST
}

pub(super) const fn tail_word(index: u64) -> u64 {
    index << NUMBER_SHIFT | TAIL
}

pub(super) const fn held_word(request: u64) -> u64 {
    request << 3 | HELD
}

pub(super) const fn role(word: u64) -> Role {
    match word & KIND {
        FIRST => Role::First {
            npages: (word >> NUMBER_SHIFT) as usize,
            id: TypeId::from_tag((word >> TYPE_SHIFT) as u16),
            mapped: word & MAPPED != 0,
        },
        TAIL => Role::Tail { index: word >> NUMBER_SHIFT },
        _ => Role::Other,
    }
}
