//! The suite on the fake machine: four CPUs of two slots, finite pages, and every breach of the contract a panic.

mod common;

use std::alloc::Layout;
use std::cell::Cell;
use std::fmt::Arguments;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use abi::{CpuCache, Header, page};
use kern::{Boot, ObjectLayout, SLOT_STRIDE_BYTES, System};
use kernmalloc_testsuite::{Host, Outcome};
use platform::fake::{Config, Fake, Machine};
use platform::fake_frames::FakeFrames;
use platform::{MisuseReport, Pfn};

const CPUS: usize = 4;

struct Simulated {
    machine: Machine,
    system: System<Fake>,
    frames: FakeFrames,
    /// CPUs that are away, a bit each.
    away: AtomicUsize,
}

impl Simulated {
    fn boot() -> Self {
        const ROWS: usize = 2;
        let page_in_use = |word| page::kind(word) > page::FREE_DIRTY;
        let config = Config { cpus: CPUS, rows: ROWS, domains: 2, page_in_use, ..Config::default() };
        let machine = Machine::new(config);
        let dimensions = ObjectLayout { slots: CPUS * ROWS + 1, types: 64, libs: 1 };
        let layout = Layout::from_size_align(dimensions.bytes(), 4096).unwrap();
        // SAFETY: the size is not zero. The object lives as long as the process.
        let mut stats = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap().cast::<Header>();
        // SAFETY: zeros are a valid header, and nobody else knows it yet.
        let header = unsafe { stats.as_mut() };
        dimensions.write_sections(header);
        header.cache_slot_stride = SLOT_STRIDE_BYTES as u64;
        header.cache_zone_stride = size_of::<CpuCache>() as u64;
        let (heap_base, table) = (machine.heap_base(), machine.table());
        let boot = Boot { heap_base, table, ids: CPUS, rows: ROWS, stats: stats.cast() };
        let system = System::new();
        // SAFETY: 1. nobody else has it. 2. the machine's ranges and an object of these dimensions.
        assert!(machine.run(|| unsafe { system.boot(&boot) }));
        // As on a PC: some low memory, then devices, then the rest, with frames of somebody else in it.
        let picture: String = (0..3000).map(|frame| if frame % 97 == 50 { '#' } else { '.' }).collect();
        let frames = FakeFrames::new(Pfn(1), &format!("{}{}{picture}", ".".repeat(158), "_".repeat(96)), usize::MAX);
        Self { machine, system, frames, away: AtomicUsize::new(0) }
    }

    /// The CPU that is meant, or the next that is there.
    fn cpu(&self, number: usize) -> usize {
        let away = self.away.load(Ordering::SeqCst);
        (number..).map(|number| number % CPUS).find(|cpu| away >> cpu & 1 == 0).expect("the first CPU stays")
    }

    fn place(&self, number: usize, body: &dyn Fn()) {
        self.machine.run_on(self.cpu(number), body);
    }
}

impl Host for Simulated {
    type P = Fake;
    type Frames = FakeFrames;

    fn system(&self) -> &System<Fake> {
        &self.system
    }

    fn cpus(&self) -> usize {
        CPUS
    }

    fn threads(&self, count: usize, body: &(dyn Fn(usize) -> Outcome + Sync)) -> Outcome {
        common::threads(count, body, &|number, body| self.place(number, body))
    }

    fn interrupted(&self, handler: &(dyn Fn() + Sync), body: &mut dyn FnMut() -> Outcome) -> Outcome {
        common::interrupted(CPUS, handler, body, &|number, body| self.place(number, body))
    }

    fn has_interrupts(&self) -> bool {
        false
    }

    fn yield_now(&self) {
        std::thread_local! {
            static MOVES: Cell<usize> = const { Cell::new(0) };
        }
        // A thread that lets others run comes back elsewhere.
        MOVES.set(MOVES.get() + 1);
        Machine::set_cpu(Some(self.cpu(MOVES.get())));
        std::thread::yield_now();
    }

    fn on_cpu(&self, cpu: usize, body: &mut dyn FnMut() -> Outcome) -> Outcome {
        Machine::set_cpu(Some(self.cpu(cpu)));
        body()
    }

    fn set_online(&self, cpu: usize, online: bool) -> bool {
        let (bit, before) = (1 << cpu, self.away.load(Ordering::SeqCst));
        let is_away = before & bit != 0;
        if cpu == 0 || is_away != online {
            return false;
        }
        self.away.store(before ^ bit, Ordering::SeqCst);
        // Who calls it is elsewhere, then.
        Machine::set_cpu(Some(self.cpu(cpu)));
        online || self.system.cpu_offline(cpu)
    }

    fn frames(&self) -> Option<&FakeFrames> {
        Some(&self.frames)
    }

    fn domain_of_memory(&self, addr: usize) -> Option<usize> {
        self.machine.domain_of_page(addr)
    }

    fn limit_memory(&self, pages: Option<usize>) -> bool {
        self.machine.set_heap_budget(pages);
        true
    }

    fn expect_misuse(&self, _: bool) {}

    fn take_misuse(&self) -> Option<MisuseReport> {
        self.machine.take_reports().pop()
    }

    fn effort(&self) -> usize {
        common::EFFORT
    }

    fn print(&self, line: Arguments<'_>) {
        println!("{line}");
    }
}

fn main() {
    let host = Simulated::boot();
    host.machine.run(|| common::main(&host));
}
