//! NUMA domains: whose memory is near which CPU, as the firmware says. A machine without a word on it is one domain.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::acpi::{self, Affinity, Missing};
use crate::cpu;
use crate::serial::println;

/// Domains there is room for.
pub(crate) const MAX_DOMAINS: usize = 8;
/// Pieces of memory of one domain each; the firmware cuts it at the holes for devices.
const MAX_PIECES: usize = 32;

/// Written at boot, by the first CPU.
struct Topology {
    domains: AtomicUsize,
    /// Domain of each local APIC.
    apics: [AtomicU32; 256],
    /// First byte and the byte after the last, and the domain.
    pieces: [[AtomicU64; 3]; MAX_PIECES],
    /// Pieces that are known.
    known: AtomicUsize,
}

static TOPOLOGY: Topology = Topology {
    domains: AtomicUsize::new(1),
    apics: [const { AtomicU32::new(0) }; 256],
    pieces: [const { [const { AtomicU64::new(0) }; 3] }; MAX_PIECES],
    known: AtomicUsize::new(0),
};

/// Reads the firmware's table. `memory` gives bytes by physical address.
pub(crate) fn init(memory: impl Fn(u64, usize) -> Option<&'static [u8]>, rsdp: u64) {
    let srat = match acpi::find_srat(memory, rsdp) {
        Ok(srat) => srat,
        Err(Missing::Srat) => return,
        Err(why) => return println!("numa: {why:?} in the firmware's tables: taken for one domain"),
    };
    // The firmware numbers domains as it likes; ours are numbered in the order in which they come.
    let mut known = [0u32; MAX_DOMAINS];
    let (mut count, mut pieces) = (0, 0);
    for affinity in acpi::affinities(srat) {
        let (Affinity::Cpu { domain, .. } | Affinity::Memory { domain, .. }) = affinity;
        let number = known[..count].iter().position(|other| *other == domain).unwrap_or_else(|| {
            assert!(count < MAX_DOMAINS, "the machine has more than {MAX_DOMAINS} domains: raise MAX_DOMAINS");
            known[count] = domain;
            count += 1;
            count - 1
        });
        match affinity {
            Affinity::Cpu { apic, .. } => {
                if let Some(entry) = TOPOLOGY.apics.get(apic as usize) {
                    entry.store(number as u32, Ordering::Relaxed);
                }
            }
            Affinity::Memory { start, bytes, .. } => {
                assert!(pieces < MAX_PIECES, "memory is in more than {MAX_PIECES} pieces: raise MAX_PIECES");
                let values = [start, start.saturating_add(bytes), number as u64];
                TOPOLOGY.pieces[pieces].iter().zip(values).for_each(|(to, value)| to.store(value, Ordering::Relaxed));
                pieces += 1;
            }
        }
    }
    TOPOLOGY.known.store(pieces, Ordering::Relaxed);
    TOPOLOGY.domains.store(count.max(1), Ordering::Relaxed);
}

/// Domains of this machine.
pub(crate) fn domains() -> usize {
    TOPOLOGY.domains.load(Ordering::Relaxed)
}

/// The domain of a CPU; 0 for what is none.
pub(crate) fn of_cpu(id: usize) -> usize {
    let Some(cpu) = cpu::CPUS.get(id) else { return 0 };
    TOPOLOGY.apics.get(cpu.apic.load(Ordering::Relaxed)).map_or(0, |domain| domain.load(Ordering::Relaxed) as usize)
}

/// The domain of a physical address; 0 for memory that the firmware does not name.
pub(crate) fn of_memory(addr: usize) -> usize {
    let addr = addr as u64;
    let found = TOPOLOGY
        .pieces
        .iter()
        .find(|[start, end, _]| (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&addr));
    found.map_or(0, |[_, _, domain]| domain.load(Ordering::Relaxed) as usize)
}
