//! Callbacks for zones under test: what they see, and which of them fails.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;

use kern::zone::{Callbacks, How, Source, Supply, Wait};
use platform::Platform as _;
use platform::fake::{Fake, PAGE};

/// What a zone's callbacks see. Leaked, one per zone: callbacks know it by its address.
#[derive(Default)]
pub(crate) struct Probe {
    pub(crate) state: Mutex<ProbeState>,
    /// Does `init` write to the item?
    pub(crate) touches: bool,
}

#[derive(Default)]
pub(crate) struct ProbeState {
    pub(crate) inited: HashSet<usize>,
    pub(crate) constructed: HashSet<usize>,
    pub(crate) imported: BTreeSet<usize>,
    pub(crate) pages: BTreeMap<usize, usize>,
    next: usize,
    pub(crate) fault: Option<String>,
}

/// Calls of callbacks on this thread, and which of them fails.
#[derive(Clone, Copy, Default)]
pub(crate) struct Script {
    pub(crate) calls: u64,
    pub(crate) fail_at: u64,
    pub(crate) failed: u64,
}

thread_local! {
    pub(crate) static SCRIPT: std::cell::Cell<Script> = const { std::cell::Cell::new(Script { calls: 0, fail_at: 0, failed: 0 }) };
}

/// Counts a callback that may fail. True: it does.
fn fails() -> bool {
    super::paths::note_callback();
    let mut script = SCRIPT.get();
    script.calls += 1;
    let fails = script.calls == script.fail_at;
    script.failed += u64::from(fails);
    SCRIPT.set(script);
    fails
}

const MAGIC: usize = 0x600d_600d;

impl Probe {
    fn of<'a>(context: *mut ()) -> &'a Self {
        // SAFETY: every context here is a leaked probe.
        unsafe { &*context.cast::<Self>() }
    }

    fn with(&self, f: impl FnOnce(&mut ProbeState) -> Result<(), String>) {
        let mut state = self.state.lock().unwrap();
        let free = Fake::may_sleep().map_err(|what| format!("a callback is called {what}"));
        if let Err(fault) = free.and_then(|()| f(&mut state)) {
            state.fault.get_or_insert(fault);
        }
    }

    pub(crate) fn leak(touches: bool) -> &'static Self {
        Box::leak(Box::new(Self { touches, ..Self::default() }))
    }

    /// Takes a leaked probe back, whose zone is gone or was never made.
    pub(crate) fn unleak(probe: &'static Self) {
        // SAFETY: from `leak`, and its one user is gone.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(probe).cast_mut()) });
    }

    fn context(&self) -> *mut () {
        std::ptr::from_ref(self).cast_mut().cast()
    }

    pub(crate) fn supply(&self) -> Supply {
        // SAFETY: 1. leaked. 2. of the C library's.
        unsafe { Supply::new(self.context(), supply_alloc, supply_free) }
    }

    pub(crate) fn source(&self) -> Source {
        // SAFETY: 1. leaked. 2. counted from 1.
        unsafe { Source::new(self.context(), import, release) }
    }

    /// What was made and not unmade: by `init`, `ctor`, `import`, the supply.
    pub(crate) fn left(&self) -> (usize, usize, usize, usize) {
        let state = self.state.lock().unwrap();
        (state.inited.len(), state.constructed.len(), state.imported.len(), state.pages.len())
    }

    /// Of a zone whose items are no memory.
    pub(crate) fn init_fini(&self) -> Callbacks {
        // SAFETY: 1. leaked; without `touches` they look at no item.
        unsafe { Callbacks::new(self.context()) }.init(init).fini(fini)
    }

    pub(crate) fn callbacks(&self) -> Callbacks {
        // SAFETY: 1. leaked; callbacks of any item.
        let none = unsafe { Callbacks::new(self.context()) };
        none.ctor(ctor).dtor(dtor).init(init).fini(fini)
    }
}

pub(crate) fn expect(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

unsafe fn init(context: *mut (), item: *mut u8, _bytes: usize, _wait: Wait) -> bool {
    let probe = Probe::of(context);
    if fails() {
        return false;
    }
    probe.with(|state| expect(state.inited.insert(item as usize), "init of an item that has seen it"));
    if probe.touches {
        // SAFETY: the item is the callback's.
        unsafe { *item.cast::<usize>() = MAGIC };
    }
    true
}

unsafe fn fini(context: *mut (), item: *mut u8, _bytes: usize) {
    let probe = Probe::of(context);
    probe.with(|state| {
        expect(!state.constructed.contains(&(item as usize)), "fini of an item in use")?;
        expect(state.inited.remove(&(item as usize)), "fini without init")
    });
    if probe.touches {
        // SAFETY: the item is the callback's.
        let magic = unsafe { *item.cast::<usize>() };
        probe.with(|_| expect(magic == MAGIC, "what init wrote is gone"));
    }
}

unsafe fn ctor(context: *mut (), item: *mut u8, _bytes: usize, _arg: *mut (), how: How) -> bool {
    let probe = Probe::of(context);
    if fails() {
        return false;
    }
    probe.with(|state| {
        expect(state.inited.contains(&(item as usize)), "ctor without init")?;
        expect(state.constructed.insert(item as usize), "ctor of an item in use")
    });
    if probe.touches && !how.zero {
        // SAFETY: the item is the callback's.
        let magic = unsafe { *item.cast::<usize>() };
        probe.with(|_| expect(magic == MAGIC, "what init wrote is gone at ctor"));
    }
    true
}

unsafe fn dtor(context: *mut (), item: *mut u8, _bytes: usize, _arg: *mut ()) {
    let probe = Probe::of(context);
    probe.with(|state| expect(state.constructed.remove(&(item as usize)), "dtor without ctor"));
}

unsafe fn import(context: *mut (), out: *mut *mut u8, want: usize, _domain: usize, _wait: Wait) -> usize {
    let probe = Probe::of(context);
    let want = if fails() { want / 2 } else { want };
    probe.with(|state| {
        for index in 0..want {
            // Numbers, not memory: a cache zone must not touch its items.
            state.next += 1;
            state.imported.insert(state.next);
            // SAFETY: room for `want`.
            unsafe { *out.add(index) = state.next as *mut u8 };
        }
        Ok(())
    });
    want
}

unsafe fn release(context: *mut (), items: *const *mut u8, count: usize) {
    let probe = Probe::of(context);
    probe.with(|state| {
        (0..count).try_for_each(|index| {
            // SAFETY: so many items.
            let item = unsafe { *items.add(index) } as usize;
            expect(state.imported.remove(&item), "released what was not imported")
        })
    });
}

unsafe fn supply_alloc(context: *mut (), bytes: usize, align: usize, _domain: usize, _wait: Wait) -> *mut u8 {
    let probe = Probe::of(context);
    if fails() {
        return std::ptr::null_mut();
    }
    let layout = std::alloc::Layout::from_size_align(bytes, align).unwrap();
    // SAFETY: the size is not zero.
    let pages = unsafe { std::alloc::alloc(layout) };
    probe.with(|state| {
        state.pages.insert(pages as usize, bytes);
        Ok(())
    });
    pages
}

unsafe fn supply_free(context: *mut (), pages: *mut u8, bytes: usize) {
    let probe = Probe::of(context);
    probe.with(|state| expect(state.pages.remove(&(pages as usize)) == Some(bytes), "pages freed that were not given"));
    // SAFETY: from `supply_alloc`, which aligned to a page.
    unsafe { std::alloc::dealloc(pages, std::alloc::Layout::from_size_align(bytes, PAGE).unwrap()) };
}
