//! The benchmark on talc behind a spin lock, with an arena that it never has to grow.

use talc::TalcLock;
use talc::source::Claim;

/// Several times what the largest workload has live. Pages that are never touched are never there.
const ARENA_BYTES: usize = 512 << 20;

static mut ARENA: [u8; ARENA_BYTES] = [0; ARENA_BYTES];

// SAFETY: the arena is talc's alone, for good.
#[global_allocator]
static GLOBAL: TalcLock<spinning_top::RawSpinlock, Claim> = TalcLock::new(unsafe { Claim::array(&raw mut ARENA) });

fn main() -> std::process::ExitCode {
    kernmalloc_rust_bench::main()
}
