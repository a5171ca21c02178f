//! Physical memory in a test process: a few hundred frames of real memory, drawn as a picture.

use crate::phys::{FrameRun, FrameUse, Frames, Pfn};
use std::alloc::Layout;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::string::String;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::vec::Vec;

/// Bytes of a frame.
pub const FRAME: usize = 4096;

/// What a frame has in it that nobody wrote there.
const GARBAGE: u8 = 0xdb;

/// The calls that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "they are named for the function")]
pub enum FrameCall {
    Take,
    Evict,
    Launder,
    Relocate,
    Reserve,
    Map,
    /// Cannot fail, but shows itself to the hook.
    WaitForFree,
}

impl FrameCall {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Take, Self::Evict, Self::Launder, Self::Relocate, Self::Reserve, Self::Map, Self::WaitForFree];
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    Hole,
    Free,
    /// With the identity of what is in it.
    Used(FrameUse, u64),
    Withheld,
}

type Hook = Arc<dyn Fn(&FakeFrames, FrameCall) + Send + Sync>;

struct State {
    frames: Vec<Frame>,
    /// Pages of address space, and of these with a page table.
    space: usize,
    reserved: usize,
    mapped: BTreeMap<usize, usize>,
    /// Identities whose contents went to disk.
    written: Vec<u64>,
    calls: u64,
    by_call: BTreeMap<FrameCall, u64>,
    fail_call: Option<u64>,
    /// Frames whose contents don't go.
    stuck: Vec<u64>,
    hook: Option<Hook>,
}

/// The machine's memory.
pub struct FakeFrames {
    first: u64,
    segments: Vec<FrameRun>,
    words: Vec<AtomicU64>,
    memory: *mut u8,
    state: Mutex<State>,
}

// SAFETY: the memory is reached through withheld frames (one owner) or under the lock.
unsafe impl Send for FakeFrames {}
// SAFETY: as above.
unsafe impl Sync for FakeFrames {}

impl FakeFrames {
    /// Memory from frame `first` on, a character per frame: `.` free, `c` cached, `d` dirty, `m` movable, `#` fixed,
    /// `_` none there. `space` pages of address space.
    ///
    /// # Panics
    /// At any other character.
    #[must_use]
    pub fn new(first: Pfn, picture: &str, space: usize) -> FakeFrames {
        let mut frames = Vec::new();
        for (index, sign) in picture.bytes().enumerate() {
            let identity = index as u64 + 1;
            frames.push(match sign {
                b'.' => Frame::Free,
                b'c' => Frame::Used(FrameUse::Cached, identity),
                b'd' => Frame::Used(FrameUse::Dirty, identity),
                b'm' => Frame::Used(FrameUse::Movable, identity),
                b'#' => Frame::Used(FrameUse::Fixed, identity),
                b'_' => Frame::Hole,
                other => panic!("no frame is drawn as {other}"),
            });
        }
        let mut segments: Vec<FrameRun> = Vec::new();
        for (index, _) in frames.iter().enumerate().filter(|(_, frame)| **frame != Frame::Hole) {
            let pfn = Pfn(first.0 + index as u64);
            match segments.last_mut() {
                Some(last) if last.end() == pfn => last.npages += 1,
                _ => segments.push(FrameRun { first: pfn, npages: 1 }),
            }
        }
        let layout = Self::layout(frames.len());
        // SAFETY: the size is not 0.
        let memory = unsafe { std::alloc::alloc(layout) };
        assert!(!memory.is_null());
        let fake = FakeFrames {
            first: first.0,
            segments,
            words: frames.iter().map(|_| AtomicU64::new(0)).collect(),
            memory,
            state: Mutex::new(State {
                frames: Vec::new(),
                space,
                reserved: 0,
                mapped: BTreeMap::new(),
                written: Vec::new(),
                calls: 0,
                by_call: BTreeMap::new(),
                fail_call: None,
                stuck: Vec::new(),
                hook: None,
            }),
        };
        for (index, frame) in frames.iter().enumerate() {
            fake.fill(index, GARBAGE);
            if let Frame::Used(_, identity) = frame {
                fake.mark(index, *identity);
            }
        }
        fake.state().frames = frames;
        fake
    }

    fn layout(frames: usize) -> Layout {
        Layout::from_size_align(frames.max(1) * FRAME, FRAME).expect("a few frames")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self, index: usize) -> *mut u8 {
        assert!(index < self.words.len());
        self.memory.wrapping_add(index * FRAME)
    }

    fn fill(&self, index: usize, byte: u8) {
        // SAFETY: a frame of ours, that is free, withheld for the caller, or under the lock.
        unsafe { self.page(index).write_bytes(byte, FRAME) };
    }

    fn mark(&self, index: usize, identity: u64) {
        // SAFETY: as in `fill`.
        unsafe { self.page(index).cast::<u64>().write(identity) };
    }

    fn index(&self, pfn: Pfn) -> usize {
        let index = pfn.0.checked_sub(self.first).expect("a frame of this machine") as usize;
        assert!(index < self.words.len(), "frame {pfn:?} is not of this machine");
        index
    }

    /// Counts a call, shows it to the hook, and says whether it is to succeed.
    fn admit(&self, call: FrameCall) -> bool {
        let mut state = self.state();
        state.calls += 1;
        *state.by_call.entry(call).or_default() += 1;
        let (this, hook, fail) = (state.calls, state.hook.clone(), state.fail_call);
        drop(state);
        if let Some(hook) = hook {
            hook(self, call);
        }
        fail != Some(this)
    }

    fn withhold(&self, call: FrameCall, pfn: Pfn, wanted: impl Fn(Frame) -> bool) -> bool {
        if !self.admit(call) {
            return false;
        }
        let index = self.index(pfn);
        let mut state = self.state();
        if !wanted(state.frames[index]) || state.stuck.contains(&pfn.0) {
            return false;
        }
        if let (FrameCall::Launder, Frame::Used(_, identity)) = (call, state.frames[index]) {
            state.written.push(identity);
        }
        state.frames[index] = Frame::Withheld;
        self.fill(index, GARBAGE);
        assert_eq!(self.words[index].load(std::sync::atomic::Ordering::SeqCst), 0, "the word of {pfn:?} was left");
        true
    }

    /// The memory now, as it was drawn, with `H` for withheld frames.
    #[must_use]
    pub fn picture(&self) -> String {
        let sign = |frame: &Frame| match frame {
            Frame::Hole => '_',
            Frame::Free | Frame::Used(FrameUse::Free, _) => '.',
            Frame::Used(FrameUse::Cached, _) => 'c',
            Frame::Used(FrameUse::Dirty, _) => 'd',
            Frame::Used(FrameUse::Movable, _) => 'm',
            Frame::Used(FrameUse::Fixed, _) => '#',
            Frame::Withheld => 'H',
        };
        self.state().frames.iter().map(sign).collect()
    }

    /// Identities of all that is kept in frames (a frame's is its place in the first picture plus one), sorted.
    ///
    /// # Panics
    /// If a frame has not in it what it should.
    #[must_use]
    pub fn contents(&self) -> Vec<u64> {
        let state = self.state();
        let mut all = Vec::new();
        for (index, frame) in state.frames.iter().enumerate() {
            if let Frame::Used(_, identity) = frame {
                // SAFETY: a frame in use does not change but under the lock.
                let found = unsafe { self.page(index).cast::<u64>().read() };
                assert_eq!(found, *identity, "frame {index} has lost its contents");
                all.push(found);
            }
        }
        all.sort_unstable();
        all
    }

    /// Identities that were laundered, in order.
    #[must_use]
    pub fn written(&self) -> Vec<u64> {
        self.state().written.clone()
    }

    /// Pages of address space that are reserved, those mapped included.
    #[must_use]
    pub fn reserved(&self) -> usize {
        self.state().reserved
    }

    /// All calls that can fail, so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Calls of one kind, so far.
    #[must_use]
    pub fn calls_of(&self, call: FrameCall) -> u64 {
        self.state().by_call.get(&call).copied().unwrap_or(0)
    }

    /// The `n`th call from now on, whichever it is, fails.
    pub fn fail_nth(&self, n: u64) {
        let mut state = self.state();
        state.fail_call = Some(state.calls + n);
    }

    /// No call fails that has no reason to.
    pub fn heal(&self) {
        self.state().fail_call = None;
    }

    /// What is in the frame can be neither written nor dropped, though it looks so.
    pub fn stick(&self, pfn: Pfn) {
        self.state().stuck.push(pfn.0);
    }

    /// Called, without a lock, at the beginning of each call: what the rest of the machine does meanwhile.
    pub fn set_hook(&self, hook: impl Fn(&FakeFrames, FrameCall) + Send + Sync + 'static) {
        self.state().hook = Some(Arc::new(hook));
    }

    /// Another user of the machine takes a free frame, for good. False if there is none, or it is no free one.
    pub fn steal(&self, pfn: Pfn) -> bool {
        let index = self.index(pfn);
        let mut state = self.state();
        let free = state.frames[index] == Frame::Free;
        if free {
            let identity = index as u64 + 1 + (1 << 32);
            state.frames[index] = Frame::Used(FrameUse::Fixed, identity);
            self.mark(index, identity);
        }
        free
    }

    /// Another user of the machine frees what he has in a frame.
    pub fn vacate(&self, pfn: Pfn) {
        let index = self.index(pfn);
        let mut state = self.state();
        if let Frame::Used(..) = state.frames[index] {
            state.frames[index] = Frame::Free;
            self.fill(index, GARBAGE);
        }
    }

    /// The memory of a withheld frame, for the one who withholds it.
    #[must_use]
    pub fn memory(&self, pfn: Pfn) -> *mut u8 {
        self.page(self.index(pfn))
    }

    /// The same machine for ever, for an allocator that is a static.
    #[must_use]
    pub fn leaked(self) -> &'static FakeFrames {
        Box::leak(Box::new(self))
    }
}

impl Drop for FakeFrames {
    fn drop(&mut self) {
        // SAFETY: from `alloc` with this layout.
        unsafe { std::alloc::dealloc(self.memory, Self::layout(self.words.len())) };
    }
}

// SAFETY: 1. a frame becomes withheld under the lock, and only from another state. 2. it is memory of the process, as
// long as the machine. 3. one per frame.
unsafe impl Frames for FakeFrames {
    fn segment(&self, index: usize) -> Option<FrameRun> {
        self.segments.get(index).copied()
    }

    fn usage(&self, pfn: Pfn) -> FrameUse {
        match self.state().frames[self.index(pfn)] {
            Frame::Free => FrameUse::Free,
            Frame::Used(usage, _) => usage,
            Frame::Withheld => FrameUse::Fixed,
            Frame::Hole => panic!("frame {pfn:?} is in no segment"),
        }
    }

    fn take(&self, pfn: Pfn) -> bool {
        self.withhold(FrameCall::Take, pfn, |frame| frame == Frame::Free)
    }

    fn evict(&self, pfn: Pfn) -> bool {
        self.withhold(FrameCall::Evict, pfn, |frame| matches!(frame, Frame::Used(FrameUse::Cached, _)))
    }

    fn launder(&self, pfn: Pfn) -> bool {
        self.withhold(FrameCall::Launder, pfn, |frame| matches!(frame, Frame::Used(FrameUse::Dirty, _)))
    }

    fn relocate(&self, pfn: Pfn, keep_out: FrameRun) -> bool {
        if !self.admit(FrameCall::Relocate) {
            return false;
        }
        let from = self.index(pfn);
        let mut state = self.state();
        let Frame::Used(FrameUse::Movable, identity) = state.frames[from] else { return false };
        let outside = |index: usize| !keep_out.contains(Pfn(self.first + index as u64));
        let Some(to) = (0..self.words.len()).find(|&to| state.frames[to] == Frame::Free && outside(to)) else {
            return false;
        };
        state.frames[to] = state.frames[from];
        self.mark(to, identity);
        state.frames[from] = Frame::Withheld;
        self.fill(from, GARBAGE);
        true
    }

    fn release(&self, run: FrameRun) {
        let mut state = self.state();
        for pfn in run.frames() {
            let index = self.index(pfn);
            assert!(state.frames[index] == Frame::Withheld, "{pfn:?} is released but not withheld");
            let word = self.words[index].load(std::sync::atomic::Ordering::SeqCst);
            assert_eq!(word, 0, "the word of {pfn:?} was left");
            state.frames[index] = Frame::Free;
            self.fill(index, GARBAGE);
        }
    }

    fn zero(&self, pfn: Pfn) {
        let index = self.index(pfn);
        assert!(self.state().frames[index] == Frame::Withheld, "{pfn:?} is zeroed but not withheld");
        self.fill(index, 0);
    }

    fn word(&self, pfn: Pfn) -> &AtomicU64 {
        &self.words[self.index(pfn)]
    }

    fn wait_for_free(&self) {
        self.admit(FrameCall::WaitForFree);
    }

    fn reserve(&self, npages: usize) -> Option<usize> {
        if !self.admit(FrameCall::Reserve) {
            return None;
        }
        let mut state = self.state();
        if npages > state.space - state.reserved {
            return None;
        }
        state.reserved += npages;
        Some(npages)
    }

    fn unreserve(&self, reserved: usize, npages: usize) {
        assert_eq!(reserved, npages, "not what was reserved");
        self.state().reserved -= npages;
    }

    fn map(&self, reserved: usize, run: FrameRun) -> Option<usize> {
        if !self.admit(FrameCall::Map) {
            return None;
        }
        assert_eq!(reserved, run.npages, "not what was reserved");
        let addr = self.memory(run.first) as usize;
        let mut state = self.state();
        for pfn in run.frames() {
            assert!(state.frames[self.index(pfn)] == Frame::Withheld, "{pfn:?} is mapped but not withheld");
        }
        assert!(state.mapped.insert(addr, run.npages).is_none(), "mapped twice");
        Some(addr)
    }

    fn unmap(&self, addr: usize, npages: usize) {
        let mut state = self.state();
        assert_eq!(state.mapped.remove(&addr), Some(npages), "{addr:#x} is not mapped so");
        state.reserved -= npages;
    }

    fn frame_at(&self, addr: usize) -> Option<Pfn> {
        let state = self.state();
        let (start, npages) = state.mapped.range(..=addr).next_back()?;
        let inside = addr - start < npages * FRAME;
        inside.then(|| Pfn(self.first + ((addr - self.memory as usize) / FRAME) as u64))
    }
}
