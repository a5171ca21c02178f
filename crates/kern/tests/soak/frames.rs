//! Contiguous memory on a machine of a few hundred frames, some of them others' who come and go.

use std::sync::Mutex;

use kern::TypeId;
use kern::contig::{Contig, ContigRequest};
use platform::fake::Fake;
use platform::fake_frames::{FRAME, FakeFrames};
use platform::{FrameRun, Paddr, Pfn};

use crate::Random;
use crate::common::World;
use crate::machine::{Soak, count};

/// First frame.
const BASE: u64 = 0x100;

enum Run {
    Mapped { addr: usize, bytes: usize, mark: u8 },
    Frames(FrameRun),
}

pub(crate) struct FramePool {
    frames: &'static FakeFrames,
    contig: Contig<'static, Fake, FakeFrames>,
    id: TypeId,
    pool: Mutex<Vec<Run>>,
    /// Frames that other users of the machine took, and give back.
    stolen: Mutex<Vec<Pfn>>,
}

impl FramePool {
    pub(crate) fn new(world: &'static World) -> Self {
        let picture = [".".repeat(120), "c.d.m.#.".repeat(12), "____".to_owned(), ".".repeat(100)].concat();
        let frames: &'static FakeFrames = FakeFrames::new(Pfn(BASE), &picture, 400).leaked();
        let contig = Contig::new(&world.system, frames);
        Self { frames, contig, id: world.types[1], pool: Mutex::default(), stolen: Mutex::default() }
    }

    pub(crate) fn fail_soon(&self, random: &mut Random) {
        self.frames.fail_nth(1 + random.below(30) as u64);
    }

    /// One call.
    pub(crate) fn step(&self, soak: &Soak, random: &mut Random) {
        match random.below(10) {
            0..4 => self.alloc(soak, random),
            4 => {
                let pfn = Pfn(BASE + random.below(300) as u64);
                if self.stolen.lock().unwrap().len() < 20 && self.frames.steal(pfn) {
                    self.stolen.lock().unwrap().push(pfn);
                }
            }
            5 => {
                let pfn = self.stolen.lock().unwrap().pop();
                if let Some(pfn) = pfn {
                    self.frames.vacate(pfn);
                }
            }
            _ => {
                let run = {
                    let mut pool = self.pool.lock().unwrap();
                    let len = pool.len();
                    (len > 0).then(|| pool.swap_remove(random.below(len)))
                };
                if let Some(run) = run {
                    self.free(run);
                }
            }
        }
    }

    fn alloc(&self, soak: &Soak, random: &mut Random) {
        let npages = 1 + random.below(12);
        let request = ContigRequest {
            low: if random.one_in(4) { Paddr((BASE + 40) << 12) } else { Paddr(0) },
            high: if random.one_in(4) { Paddr(((BASE + 200) << 12) - 1) } else { Paddr(u64::MAX) },
            alignment: if random.one_in(4) { 4 * FRAME as u64 } else { 0 },
            boundary: if random.one_in(4) { 16 * FRAME as u64 } else { 0 },
            zero: random.one_in(4),
            wait: random.one_in(3),
            reclaim: !random.one_in(3),
            ..ContigRequest::new(npages * FRAME)
        };
        let run = if random.one_in(3) {
            self.contig.alloc_frames(self.id, &request).map(Run::Frames)
        } else {
            self.contig.alloc(self.id, &request).map(|block| {
                let (addr, bytes, mark) = (block.as_ptr() as usize, npages * FRAME, random.next() as u8);
                // SAFETY: a fresh block of so many bytes.
                unsafe {
                    let bytes = std::slice::from_raw_parts_mut(block.as_ptr(), bytes);
                    assert!(!request.zero || bytes.iter().all(|&byte| byte == 0), "a block of zeros is none");
                    bytes.fill(mark);
                }
                Run::Mapped { addr, bytes, mark }
            })
        };
        match run {
            Ok(run) => {
                count(&soak.done.runs);
                self.pool.lock().unwrap().push(run);
            }
            Err(_) => count(&soak.done.shortages),
        }
    }

    fn free(&self, run: Run) {
        match run {
            Run::Frames(run) => self.contig.free_frames(run).unwrap(),
            Run::Mapped { addr, bytes, mark } => {
                // SAFETY: ours, out of the pool.
                unsafe {
                    let block = std::slice::from_raw_parts(addr as *const u8, bytes);
                    assert!(block.iter().all(|&byte| byte == mark), "a block at {addr:#x} was written over");
                    self.contig.free(addr as *mut u8, bytes).unwrap();
                }
            }
        }
    }

    pub(crate) fn free_all(&self, soak: &Soak) {
        for run in std::mem::take(&mut *self.pool.lock().unwrap()) {
            self.free(run);
        }
        for pfn in std::mem::take(&mut *self.stolen.lock().unwrap()) {
            self.frames.vacate(pfn);
        }
        let counts = self.contig.counts();
        assert_eq!((counts.allocs - counts.frees, counts.pages_in_use), (0, 0), "{counts:?}");
        assert_eq!(self.frames.reserved(), 0, "address space that nobody has");
        assert!(!self.frames.picture().contains('H'), "frames that nobody has: {}", self.frames.picture());
        assert_eq!(soak.world.totals(self.id).bytes_in_use(), 0);
    }

    pub(crate) fn destroy(&self) {
        // SAFETY: leaked in `new`; nobody uses the frames any more.
        unsafe { drop(Box::from_raw(std::ptr::from_ref(self.frames).cast_mut())) };
    }
}
