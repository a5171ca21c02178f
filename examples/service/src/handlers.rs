//! The handlers. None of them mentions an allocator: the scope of its kind is around it.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};

use crate::kinds::{DOCUMENTS, EVENTS, KINDS, READS, RECORDS, SEARCHES, SESSIONS};
use crate::store::{Kept, MOST_EVENTS, Session, Store};

type Shared = State<Arc<Store>>;

/// The service on a store.
pub fn router(store: Arc<Store>) -> Router {
    let with = |routes: Router<Arc<Store>>| routes.with_state(Arc::clone(&store));
    let name = "/documents/{name}";
    Router::new()
        .merge(DOCUMENTS.route(with(Router::new().route(name, put(put_document).delete(delete_document)))))
        .merge(READS.route(with(Router::new().route(name, get(read_document)))))
        .merge(SESSIONS.route(with(Router::new().route("/sessions/{user}", post(log_in).delete(log_out)))))
        .merge(SEARCHES.route(with(Router::new().route("/search/{word}", get(search)))))
        .merge(EVENTS.route(with(Router::new().route("/events", post(add_event)))))
        .merge(RECORDS.route(Router::new().route("/records", get(records)).route("/types", get(types))))
}

/// Keeps a document, in place of the one of that name.
async fn put_document(State(store): Shared, Path(name): Path<String>, body: Bytes) -> StatusCode {
    let (name, body): (Box<str>, Box<[u8]>) = (Box::from(&*name), Box::from(&*body));
    DOCUMENTS.keep(name.footprint() + body.footprint());
    let mut contents = store.lock();
    let Some((old_name, old)) = contents.documents.remove_entry(&name) else {
        contents.documents.insert(name, body);
        return StatusCode::CREATED;
    };
    contents.documents.insert(name, body);
    DOCUMENTS.give_up(old_name.footprint() + old.footprint());
    StatusCode::OK
}

/// Drops a document.
async fn delete_document(State(store): Shared, Path(name): Path<String>) -> StatusCode {
    let Some((name, body)) = store.lock().documents.remove_entry(&*name) else { return StatusCode::NOT_FOUND };
    DOCUMENTS.give_up(name.footprint() + body.footprint());
    StatusCode::OK
}

/// A copy of a document.
async fn read_document(State(store): Shared, Path(name): Path<String>) -> Result<Vec<u8>, StatusCode> {
    store.lock().documents.get(&*name).map(|body| body.to_vec()).ok_or(StatusCode::NOT_FOUND)
}

/// A session with what the body says of the user, a fact per line.
async fn log_in(State(store): Shared, Path(user): Path<String>, facts: String) -> StatusCode {
    let user: Box<str> = Box::from(&*user);
    let session = Session { facts: exactly(facts.lines().count(), facts.lines()) };
    let mut contents = store.lock();
    if contents.sessions.contains_key(&user) {
        return StatusCode::CONFLICT;
    }
    SESSIONS.keep(user.footprint() + session.footprint());
    contents.sessions.insert(user, session);
    StatusCode::CREATED
}

/// Copies of texts, in a block that is as large as they need. (One that was shrunk would keep its size class while it is more than
/// half used, and then be larger than its [footprint](Kept).)
fn exactly<'a>(count: usize, texts: impl IntoIterator<Item = &'a str>) -> Box<[Box<str>]> {
    let mut copies = Vec::with_capacity(count);
    copies.extend(texts.into_iter().map(Box::from));
    copies.into_boxed_slice()
}

/// Ends a session.
async fn log_out(State(store): Shared, Path(user): Path<String>) -> StatusCode {
    let Some((user, session)) = store.lock().sessions.remove_entry(&*user) else { return StatusCode::NOT_FOUND };
    SESSIONS.give_up(user.footprint() + session.footprint());
    StatusCode::OK
}

/// Only the start of a document is looked through for a word.
const SEARCHED_BYTES: usize = 1000;

/// Names of the documents that have a word, one per line. What was found for a word is kept.
async fn search(State(store): Shared, Path(word): Path<String>) -> String {
    let mut contents = store.lock();
    if let Some(names) = contents.searches.get(&*word) {
        return names.join("\n");
    }
    let start = |body: &[u8]| body.len().min(SEARCHED_BYTES);
    let has = |body: &[u8]| body[..start(body)].windows(word.len().max(1)).any(|window| window == word.as_bytes());
    let found = contents.documents.iter().filter(|(_, body)| has(body)).map(|(name, _)| &**name);
    let found: Vec<&str> = found.collect();
    let (word, names): (Box<str>, _) = (Box::from(&*word), exactly(found.len(), found));
    let answer = names.join("\n");
    SEARCHES.keep(word.footprint() + names.footprint());
    contents.searches.insert(word, names);
    answer
}

/// Adds an event; the oldest goes when there are [`MOST_EVENTS`].
async fn add_event(State(store): Shared, text: String) -> StatusCode {
    let event: Box<str> = Box::from(&*text);
    EVENTS.keep(event.footprint());
    let mut contents = store.lock();
    contents.events.push_back(event);
    if contents.events.len() > MOST_EVENTS
        && let Some(oldest) = contents.events.pop_front()
    {
        EVENTS.give_up(oldest.footprint());
    }
    StatusCode::CREATED
}

/// What the handlers say they hold: `name blocks bytes` per line.
async fn records() -> String {
    let mut text = String::new();
    for kind in KINDS {
        let kept = kind.kept();
        let _ = writeln!(text, "{} {} {}", kind.owner.name(), kept.blocks, kept.bytes);
    }
    text
}

/// What the allocator says they hold: `name blocks bytes most-bytes requests` per line, of the types with a name.
async fn types() -> String {
    let mut text = String::new();
    for row in kernmalloc::stats().filter(|row| row.kind == kernmalloc::Kind::Named) {
        let _ = writeln!(
            text,
            "{} {} {} {} {}",
            row.name, row.in_use, row.bytes_in_use, row.high_water_bytes, row.requests
        );
    }
    text
}
