//! Contiguous memory (`kern::contig`) on the machine's own map of physical memory, with the constraints of devices.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;

use kern::TypeId;
use kern::contig::{Contig, ContigRequest};
use platform::{FrameRun, FrameUse, Frames, Paddr, Pfn, Platform};

use crate::{Host, Outcome, Random, Verdict, ensure, new_type};

const NO_FRAMES: Verdict = Verdict::Skipped("no page frames here");

/// Segments of the map.
fn segments<F: Frames>(frames: &F) -> Vec<FrameRun> {
    (0..).map_while(|index| frames.segment(index)).collect()
}

fn page<P: Platform>() -> u64 {
    1 << P::PAGE_SHIFT
}

/// A live block of the test.
struct Held {
    addr: NonNull<u8>,
    bytes: usize,
    first: Pfn,
    npages: u64,
    stamp: u64,
}

impl Held {
    fn overlaps(&self, first: u64, npages: u64) -> bool {
        self.first.0 < first + npages && first < self.first.0 + self.npages
    }

    /// The first word of each of its pages.
    fn words<P: Platform>(&self) -> impl Iterator<Item = *mut u64> {
        let base = self.addr.as_ptr() as usize;
        (0..self.npages as usize).map(move |index| (base + (index << P::PAGE_SHIFT)) as *mut u64)
    }
}

/// Whether a place keeps what was asked for: the rules of contigmalloc(9), tried one by one.
fn is_allowed(request: &ContigRequest, first: u64, npages: u64, page: u64) -> bool {
    let (start, last) = (first * page, (first + npages) * page - 1);
    start >= request.low.0
        && last <= request.high.0
        && (request.alignment == 0 || start.is_multiple_of(request.alignment))
        && (request.boundary == 0 || start / request.boundary == last / request.boundary)
}

struct Bench<'h, H: Host> {
    contig: Contig<'h, H::P, H::Frames>,
    frames: &'h H::Frames,
    segments: Vec<FrameRun>,
    id: TypeId,
}

impl<'h, H: Host> Bench<'h, H> {
    fn new(host: &'h H, frames: &'h H::Frames, name: &str) -> Result<Self, String> {
        let id = new_type(host.system(), name)?;
        Ok(Self { contig: Contig::new(host.system(), frames), frames, segments: segments(frames), id })
    }

    /// Asks, and looks at what comes: where it is, that it is in one piece, and what is in it. The pages are stamped.
    fn take(&self, request: &ContigRequest, stamp: u64) -> Result<Option<Held>, String> {
        let Ok(addr) = self.contig.alloc(self.id, request) else { return Ok(None) };
        let page = page::<H::P>();
        let npages = (request.size_bytes as u64).div_ceil(page);
        let start = self.contig.physical(addr.as_ptr() as usize).ok_or("a block has no physical address")?.0;
        let held = Held { addr, bytes: request.size_bytes, first: Pfn(start / page), npages, stamp };
        ensure!(start.is_multiple_of(page), "{request:?} is at {start:#x}");
        ensure!(is_allowed(request, held.first.0, npages, page), "{request:?} is at {start:#x}");
        let inside = |segment: &FrameRun| segment.first.0 <= held.first.0 && held.first.0 + npages <= segment.end().0;
        ensure!(self.segments.iter().any(inside), "{request:?} is at {start:#x}, where there is no memory");
        for (index, word) in held.words::<H::P>().enumerate() {
            let at = self.contig.physical(word as usize).map(|addr| addr.0);
            ensure!(at == Some(start + index as u64 * page), "page {index} of the block at {start:#x} is at {at:x?}");
            // SAFETY: a page of ours.
            unsafe {
                let bytes = core::slice::from_raw_parts(word.cast::<u8>(), page as usize);
                let dirty = request.zero && bytes.iter().any(|byte| *byte != 0);
                ensure!(!dirty, "page {index} of the block at {start:#x} is not zero");
                word.write_volatile(stamp);
            }
        }
        Ok(Some(held))
    }

    fn give(&self, held: &Held) -> Outcome {
        for (index, word) in held.words::<H::P>().enumerate() {
            // SAFETY: a page of ours.
            let found = unsafe { word.read_volatile() };
            ensure!(found == held.stamp, "page {index} of the block at {:?} was overwritten: {found:#x}", held.first);
            // SAFETY: as above.
            unsafe { core::ptr::write_bytes(word.cast::<u8>(), 0xa5, page::<H::P>() as usize) };
        }
        // SAFETY: 1. ours, and forgotten.
        unsafe { self.contig.free(held.addr.as_ptr(), held.bytes) }.map_err(|why| format!("{why:?}"))
    }

    /// The lowest place that would do, found by trying all.
    fn place(&self, request: &ContigRequest) -> Option<u64> {
        let page = page::<H::P>();
        let npages = (request.size_bytes as u64).div_ceil(page);
        let is_free = |pfn: u64| self.frames.usage(Pfn(pfn)) == FrameUse::Free;
        self.segments.iter().find_map(|segment| {
            let mut free = 0;
            (segment.first.0..segment.end().0).find_map(|pfn| {
                free = if is_free(pfn) { free + 1 } else { 0 };
                let first = (pfn + 1).checked_sub(npages).filter(|_| free >= npages)?;
                is_allowed(request, first, npages, page).then_some(first)
            })
        })
    }
}

/// Ends of low memory, as devices know it: the first piece of memory, a fifteenth of all, and all.
fn reaches(segments: &[FrameRun], page: u64) -> [u64; 3] {
    let pages: usize = segments.iter().map(|segment| segment.npages).sum();
    let end = |run: Option<&FrameRun>| run.map_or(0, |run| run.end().0 * page - 1);
    [end(segments.first()), segments.first().map_or(0, |run| (run.first.0 + pages as u64 / 15) * page - 1), u64::MAX]
}

pub(crate) fn contiguous_memory_keeps_its_constraints<H: Host>(host: &H) -> Verdict {
    fn test<H: Host>(host: &H, frames: &H::Frames) -> Outcome {
        const MOST_HELD: usize = 24;
        let bench = Bench::new(host, frames, "contiguous")?;
        let (page, mut random) = (page::<H::P>(), Random::new(700));
        let reaches = reaches(&bench.segments, page);
        let (mut held, mut refused) = (Vec::<Held>::with_capacity(MOST_HELD), 0);
        let (mut allocs, mut frees, mut bytes_out) = (0, 0, 0);
        let steps = 400 * host.effort().max(8) / 100;
        for step in 0..steps {
            if held.len() == MOST_HELD || (!held.is_empty() && random.below(3) == 0) {
                let old = held.swap_remove(random.below(held.len()));
                bench.give(&old)?;
                (frees, bytes_out) = (frees + 1, bytes_out - old.npages * page);
                continue;
            }
            let most_pages = if random.below(8) == 0 { 300 } else { 20 };
            let size_bytes = 1 + random.below(most_pages * page as usize);
            let power = |random: &mut Random| page << random.below(6);
            let boundary = (size_bytes as u64).next_power_of_two().max(page) << random.below(3);
            let request = ContigRequest {
                high: Paddr(reaches[random.below(3)]),
                low: Paddr(if random.below(4) == 0 { reaches[0] / 2 } else { 0 }),
                alignment: if random.below(2) == 0 { power(&mut random) } else { 0 },
                boundary: if random.below(2) == 0 { boundary } else { 0 },
                zero: random.below(2) == 0,
                wait: random.below(4) == 0,
                ..ContigRequest::new(size_bytes)
            };
            let place = bench.place(&request);
            let Some(new) = bench.take(&request, random.next())? else {
                ensure!(place.is_none(), "step {step}: {request:?} failed, though frames from {place:x?} on are free");
                refused += 1;
                continue;
            };
            ensure!(place.is_some(), "step {step}: {request:?} was served with frames that were not free");
            let other = held.iter().find(|other| other.overlaps(new.first.0, new.npages));
            ensure!(other.is_none(), "{request:?} is at {:?}, where another block is", new.first);
            (allocs, bytes_out) = (allocs + 1, bytes_out + new.npages * page);
            held.push(new);
            let totals = host.system().totals(bench.id);
            ensure!(
                (totals.allocs, totals.in_use(), totals.bytes_in_use()) == (allocs, allocs - frees, bytes_out),
                "{allocs} blocks, {frees} of them freed, {bytes_out} bytes, are counted as {totals:?}"
            );
        }
        held.drain(..).try_for_each(|block| bench.give(&block))?;
        let failures = host.system().type_record(bench.id).failures.load(abi::Ordering::Relaxed);
        ensure!(failures == refused, "{refused} failures are counted as {failures}");
        ensure!(allocs as usize > steps / 4, "in {steps} steps only {allocs} requests could be served");
        Ok(())
    }
    host.frames().map_or(NO_FRAMES, |frames| test(host, frames).into())
}

/// All frames that a device with few address lines can reach; more there are not, and above there are.
pub(crate) fn low_memory_ends_and_comes_back<H: Host>(host: &H) -> Verdict {
    fn test<H: Host>(host: &H, frames: &H::Frames) -> Outcome {
        const FRAMES: usize = 500;
        let bench = Bench::new(host, frames, "low memory")?;
        let page = page::<H::P>();
        // The reach of a device that sees the first so many frames.
        let last = bench.segments.iter().flat_map(FrameRun::frames).nth(FRAMES).ok_or("there are few frames")?;
        let high = Paddr(last.0 * page - 1);
        let request = ContigRequest { high, wait: false, ..ContigRequest::new(page as usize) };
        let free = || {
            let all = bench.segments.iter().flat_map(FrameRun::frames);
            let is_low = |pfn: &Pfn| (pfn.0 + 1) * page - 1 <= request.high.0;
            all.take_while(is_low).filter(|pfn| frames.usage(*pfn) == FrameUse::Free).count()
        };
        let mut held = Vec::with_capacity(2 * free() + 64);
        for round in 0..2 {
            let before = free();
            ensure!(before > 8, "{before} frames of low memory are free");
            while let Some(block) = bench.take(&request, round << 32 | held.len() as u64)? {
                held.push(block);
                ensure!(held.len() <= before, "there is more low memory than there was");
            }
            ensure!(held.len() == before, "of {before} frames of low memory {} could be had", held.len());
            let anywhere = ContigRequest { high: Paddr(u64::MAX), ..request };
            let above = bench.take(&anywhere, 1)?.ok_or("above low memory there is none either")?;
            ensure!(above.first.0 * page > request.high.0, "there was low memory after all");
            bench.give(&above)?;
            held.drain(..).try_for_each(|block: Held| bench.give(&block))?;
            ensure!(free() == before, "of {before} frames of low memory {} came back", free());
        }
        Ok(())
    }
    host.frames().map_or(NO_FRAMES, |frames| test(host, frames).into())
}

pub(crate) fn a_frame_has_one_holder<H: Host>(host: &H) -> Verdict {
    fn test<H: Host>(host: &H, frames: &H::Frames) -> Outcome {
        let bench = Bench::new(host, frames, "frames")?;
        let high = Paddr(reaches(&bench.segments, page::<H::P>())[1]);
        let served = AtomicUsize::new(0);
        host.threads(2 * host.cpus(), &|number| {
            let mut random = Random::new(800 + number);
            let mut held = Vec::with_capacity(4);
            for _ in 0..(40 * host.effort()).div_ceil(100) {
                let size_bytes = 1 + random.below(30_000);
                let request = ContigRequest { high, wait: false, ..ContigRequest::new(size_bytes) };
                held.extend(bench.take(&request, random.next())?);
                if held.len() == 4 {
                    bench.give(&held.swap_remove(random.below(4)))?;
                }
                host.yield_now();
            }
            served.fetch_add(held.len(), core::sync::atomic::Ordering::Relaxed);
            held.iter().try_for_each(|block| bench.give(block))
        })?;
        let counts = bench.contig.counts();
        ensure!(counts.allocs == counts.frees && counts.pages_in_use == 0, "blocks are left: {counts:?}");
        ensure!(served.into_inner() > 0, "nobody was served");
        Ok(())
    }
    host.frames().map_or(NO_FRAMES, |frames| test(host, frames).into())
}
