//! A service that keeps things in memory, and shows at any moment whose they are.
//!
//! Each kind of request has a malloc type ([`kinds`]). Its handler runs in the type's scope, so that whatever it makes is
//! credited to it, in whichever library that happens. What the server needs for itself (runtime, connections, the parts of
//! requests) is of one more type, and the tables in which things are found of another: they take the type for an allocator.
//!
//! Every handler keeps a record of what it holds, which `GET /records` shows. It is there for the test, which compares it with
//! the types' rows as a reader sees them from outside.

pub mod client;
pub mod handlers;
pub mod kinds;
pub mod store;
