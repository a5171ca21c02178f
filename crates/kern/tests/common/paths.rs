//! Which calls are alike: those made by the same way through the code.
//!
//! A script makes thousands of calls that can fail, most of them by ways that it has gone before. A call's *path* is the return
//! addresses on the stack, and what the test says of its subject ([`context`]); calls of one path differ in nothing but the state that
//! they meet. So each path's calls are failed at its first
//! time, its second and its last, and every call of the beginning besides, where state is young: each point of the code is failed, in a
//! time that does not grow with the script's length.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hasher as _};

use platform::fake::Call;

/// Calls from the start that are all failed.
const EARLY: usize = 30;

/// What is recorded: callbacks, and calls of the platform by kind.
type Kind = Option<usize>;

thread_local! {
    static CONTEXT: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    static RECORD: RefCell<Option<BTreeMap<Kind, Vec<u64>>>> = const { RefCell::new(None) };
}

unsafe extern "C" {
    // Of the unwinder that std brings.
    fn _Unwind_Backtrace(see: unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32, to: *mut c_void) -> i32;
    fn _Unwind_GetIP(frame: *mut c_void) -> usize;
}

unsafe extern "C" fn see(frame: *mut c_void, hasher: *mut c_void) -> i32 {
    // SAFETY: a frame of the unwinder's, and the hasher that `path` gave.
    unsafe { (*hasher.cast::<DefaultHasher>()).write_usize(_Unwind_GetIP(frame)) };
    0
}

/// What the next calls are about: calls about different things are of different paths.
pub(crate) fn context(what: u64) {
    CONTEXT.set(what);
}

/// The way by which this function was reached.
fn path() -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(CONTEXT.get());
    // SAFETY: `see` is what the unwinder wants, and takes a hasher.
    unsafe { _Unwind_Backtrace(see, (&raw mut hasher).cast()) };
    hasher.finish()
}

fn note(kind: Kind) {
    RECORD.with_borrow_mut(|record| {
        if let Some(record) = record {
            record.entry(kind).or_default().push(path());
        }
    });
}

/// A call of the platform; for `Config::on_call`.
pub(crate) fn note_call(call: Call) {
    note(Some(call as usize));
}

/// A callback that may fail.
pub(crate) fn note_callback() {
    note(None);
}

/// The paths of everything that can fail while `f` runs.
pub(crate) fn record<T>(f: impl FnOnce() -> T) -> (T, Paths) {
    RECORD.set(Some(BTreeMap::new()));
    let result = f();
    (result, Paths(RECORD.take().unwrap_or_default()))
}

/// See [`record`].
pub(crate) struct Paths(BTreeMap<Kind, Vec<u64>>);

impl Paths {
    fn of(&self, call: Option<Call>) -> &[u64] {
        self.0.get(&call.map(|call| call as usize)).map_or(&[], Vec::as_slice)
    }

    /// How many calls there were, and by how many paths. `None` is callbacks.
    pub(crate) fn counts(&self, call: Option<Call>) -> (usize, usize) {
        let mut paths = self.of(call).to_vec();
        paths.sort_unstable();
        paths.dedup();
        (self.of(call).len(), paths.len())
    }

    /// Numbers of the calls to fail, from 1.
    pub(crate) fn points(&self, call: Option<Call>) -> Vec<u64> {
        let calls = self.of(call);
        let mut by_path: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, &path) in calls.iter().enumerate() {
            by_path.entry(path).or_default().push(at);
        }
        let chosen = by_path.values().flat_map(|at| at.iter().take(2).chain(at.last()).copied());
        let mut points: Vec<u64> = chosen.chain(0..calls.len().min(EARLY)).map(|at| at as u64 + 1).collect();
        points.sort_unstable();
        points.dedup();
        points
    }
}
