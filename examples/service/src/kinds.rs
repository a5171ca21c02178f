//! The kinds of request, a malloc type each.

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use kernmalloc::{MallocType, malloc_define};
use std::sync::atomic::{AtomicI64, Ordering};

malloc_define!(pub M_HTTP, "http", "the runtime, connections, and requests before they have a handler");
malloc_define!(pub M_TABLES, "tables", "the tables of documents, sessions and searches, and the ring of events");
malloc_define!(pub M_DOCUMENTS, "documents", "documents with their names");
malloc_define!(pub M_READS, "reads", "documents on their way out");
malloc_define!(pub M_SESSIONS, "sessions", "who is logged in, and what is known of them");
malloc_define!(pub M_SEARCHES, "searches", "words looked for, and the names of documents that have them");
malloc_define!(pub M_EVENTS, "events", "the last things that happened");
malloc_define!(pub M_RECORDS, "records", "answers about the service itself");

/// A kind of request: its type, and the handler's own record of what it holds.
#[derive(Debug)]
pub struct Kind {
    /// Who is to be shown as the owner.
    pub owner: &'static MallocType,
    blocks: AtomicI64,
    bytes: AtomicI64,
}

impl Kind {
    const fn new(owner: &'static MallocType) -> Self {
        Self { owner, blocks: AtomicI64::new(0), bytes: AtomicI64::new(0) }
    }

    /// Notes something that is kept from now on.
    pub fn keep(&self, what: Footprint) {
        self.blocks.fetch_add(what.blocks, Ordering::Relaxed);
        self.bytes.fetch_add(what.bytes, Ordering::Relaxed);
    }

    /// Notes something that is not kept any more.
    pub fn give_up(&self, what: Footprint) {
        self.keep(Footprint { blocks: -what.blocks, bytes: -what.bytes });
    }

    /// What is kept now.
    #[must_use]
    pub fn kept(&self) -> Footprint {
        Footprint { blocks: self.blocks.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// Everything behind these routes is of this kind: extractors, handler, answer.
    pub fn route(&'static self, routes: Router) -> Router {
        let scoped = |request: Request, next: Next| self.owner.scope_async(next.run(request));
        routes.route_layer(from_fn(scoped))
    }
}

/// `PUT` and `DELETE /documents/{name}`.
pub static DOCUMENTS: Kind = Kind::new(&M_DOCUMENTS);
/// `GET /documents/{name}`: holds nothing between two requests.
pub static READS: Kind = Kind::new(&M_READS);
/// `POST` and `DELETE /sessions/{user}`.
pub static SESSIONS: Kind = Kind::new(&M_SESSIONS);
/// `GET /search/{word}`.
pub static SEARCHES: Kind = Kind::new(&M_SEARCHES);
/// `POST /events`.
pub static EVENTS: Kind = Kind::new(&M_EVENTS);
/// `GET /records`, `GET /types`: hold nothing between two requests.
pub static RECORDS: Kind = Kind::new(&M_RECORDS);

/// All of them.
pub static KINDS: [&Kind; 6] = [&DOCUMENTS, &READS, &SESSIONS, &SEARCHES, &EVENTS, &RECORDS];

/// Blocks and their bytes as malloc serves them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Blocks.
    pub blocks: i64,
    /// Bytes, each block's rounded up to what is served for it.
    pub bytes: i64,
}

impl Footprint {
    /// One block, or none for no bytes.
    #[must_use]
    pub fn of_block(bytes: usize) -> Self {
        if bytes == 0 {
            return Self::default();
        }
        Self { blocks: 1, bytes: i64::try_from(kernmalloc::malloc_size(bytes)).unwrap_or(i64::MAX) }
    }
}

impl std::ops::Add for Footprint {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { blocks: self.blocks + other.blocks, bytes: self.bytes + other.bytes }
    }
}

impl std::iter::Sum for Footprint {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), std::ops::Add::add)
    }
}
