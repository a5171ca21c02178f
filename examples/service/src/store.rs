//! What the service keeps.

use std::collections::VecDeque;
use std::hash::RandomState;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;
#[cfg(not(feature = "mimalloc"))]
use kernmalloc::MallocType;

use crate::kinds::{Footprint, M_TABLES};

#[cfg(not(feature = "mimalloc"))]
type TableAllocator = &'static MallocType;
#[cfg(not(feature = "mimalloc"))]
fn table_allocator() -> TableAllocator {
    &M_TABLES
}
#[cfg(feature = "mimalloc")]
type TableAllocator = allocator_api2::alloc::Global;
#[cfg(feature = "mimalloc")]
fn table_allocator() -> TableAllocator {
    allocator_api2::alloc::Global
}

/// A table whose own memory is [`M_TABLES`]'s; keys and values are of whoever made them.
pub type Table<V> = HashMap<Box<str>, V, RandomState, TableAllocator>;

/// Events that are kept.
pub const MOST_EVENTS: usize = 10_000;

/// Somebody who is logged in.
#[derive(Debug)]
pub struct Session {
    /// What is known of them.
    pub facts: Box<[Box<str>]>,
}

/// Everything that outlives a request.
#[derive(Debug)]
pub struct Contents {
    /// By name.
    pub documents: Table<Box<[u8]>>,
    /// By user.
    pub sessions: Table<Session>,
    /// By word: names of the documents that had it when it was first asked for.
    pub searches: Table<Box<[Box<str>]>>,
    /// The last [`MOST_EVENTS`], oldest first.
    pub events: VecDeque<Box<str>>,
}

/// The contents, behind one lock.
#[derive(Debug)]
pub struct Store(Mutex<Contents>);

impl Store {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        let table = table_allocator();
        let hasher = RandomState::new;
        Self(Mutex::new(Contents {
            documents: HashMap::with_hasher_in(hasher(), table),
            sessions: HashMap::with_hasher_in(hasher(), table),
            searches: HashMap::with_hasher_in(hasher(), table),
            // The standard library's containers take no allocator yet: by scope.
            events: M_TABLES.scope(|| VecDeque::with_capacity(MOST_EVENTS + 1)),
        }))
    }

    /// A handler that panicked has left nothing half done: each changes the contents in one step.
    pub fn lock(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// What something of the store takes.
pub trait Kept {
    /// Its blocks.
    fn footprint(&self) -> Footprint;
}

impl Kept for Box<str> {
    fn footprint(&self) -> Footprint {
        Footprint::of_block(self.len())
    }
}

impl Kept for Box<[u8]> {
    fn footprint(&self) -> Footprint {
        Footprint::of_block(self.len())
    }
}

impl Kept for Box<[Box<str>]> {
    fn footprint(&self) -> Footprint {
        Footprint::of_block(size_of_val(&**self)) + self.iter().map(Kept::footprint).sum()
    }
}

impl Kept for Session {
    fn footprint(&self) -> Footprint {
        self.facts.footprint()
    }
}
