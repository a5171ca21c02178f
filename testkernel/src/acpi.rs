//! The firmware's tables (ACPI), as far as they say which NUMA domain CPUs and memory belong to: from the RSDP to the System
//! Resource Affinity Table (ACPI 6.5, 5.2.5 to 5.2.8 and 5.2.16).
//!
//! A parser of slices: whatever the firmware wrote, no byte outside of a table is read.

/// What an entry of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Affinity {
    /// The CPU with this local APIC identity is in the domain.
    Cpu { apic: u32, domain: u32 },
    /// So many bytes of memory from `start` on are in the domain.
    Memory { start: u64, bytes: u64, domain: u32 },
}

/// Why there is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The loader gave no RSDP, or what it gave is none.
    Rsdp,
    /// Its bytes do not sum up to zero, or it ends before its header does.
    Damaged(&'static str),
    /// The firmware has none: a machine of one domain.
    Srat,
}

const HEADER_BYTES: usize = 36;

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = bytes.get(at..at + len)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The table at a physical address, whole.
fn table(memory: &impl Fn(u64, usize) -> Option<&'static [u8]>, at: u64) -> Option<&'static [u8]> {
    let bytes = number(memory(at, HEADER_BYTES)?, 4, 4)? as usize;
    memory(at, bytes).filter(|table| table.len() >= HEADER_BYTES && sums_to_zero(table))
}

/// The affinity table, found from the RSDP. `memory` gives bytes by physical address, where there are any.
pub(crate) fn find_srat(
    memory: impl Fn(u64, usize) -> Option<&'static [u8]>,
    rsdp: u64,
) -> Result<&'static [u8], Missing> {
    /// Of the first version, and the only one that its checksum covers.
    const RSDP_BYTES: usize = 20;
    /// Since the second version there are addresses of 64 bits, in another list of tables.
    const XSDT: usize = 24;
    const RSDT: usize = 16;
    let root = memory(rsdp, RSDP_BYTES).filter(|root| root.starts_with(b"RSD PTR ") && sums_to_zero(root));
    let root = root.ok_or(Missing::Rsdp)?;
    let xsdt = if root[15] >= 2 { memory(rsdp + XSDT as u64, 8).and_then(|field| number(field, 0, 8)) } else { None };
    let (list, width) = match xsdt {
        Some(list) if list != 0 => (list, 8),
        _ => (number(root, RSDT, 4).ok_or(Missing::Rsdp)?, 4),
    };
    let list = table(&memory, list).ok_or(Missing::Damaged("the list of tables"))?;
    let mut entries = list[HEADER_BYTES..].chunks_exact(width).filter_map(|entry| number(entry, 0, width));
    let is_srat = |at: &u64| memory(*at, 4) == Some(b"SRAT");
    table(&memory, entries.find(is_srat).ok_or(Missing::Srat)?).ok_or(Missing::Damaged("SRAT"))
}

/// What an affinity table says of CPUs and memory that are there. Ends at the first entry that reaches over the table's end.
pub(crate) fn affinities(srat: &[u8]) -> impl Iterator<Item = Affinity> {
    const FIRST: usize = HEADER_BYTES + 12;
    const ENABLED: u64 = 1;
    let mut rest = srat.get(FIRST..).unwrap_or(&[]);
    let entries = core::iter::from_fn(move || {
        let bytes = usize::from(*rest.get(1)?).max(2);
        let entry = rest.get(..bytes)?;
        rest = &rest[bytes..];
        Some(entry)
    });
    entries.filter_map(|entry| {
        let field = |at, len| number(entry, at, len);
        let (flags, affinity) = match entry[0] {
            0 => {
                let domain = field(2, 1)? | field(9, 3)? << 8;
                (field(4, 4)?, Affinity::Cpu { apic: field(3, 1)? as u32, domain: domain as u32 })
            }
            1 => {
                let (start, bytes) = (field(8, 8)?, field(16, 8)?);
                (field(28, 4)?, Affinity::Memory { start, bytes, domain: field(2, 4)? as u32 })
            }
            2 => (field(12, 4)?, Affinity::Cpu { apic: field(8, 4)? as u32, domain: field(4, 4)? as u32 }),
            _ => return None,
        };
        (flags & ENABLED != 0).then_some(affinity)
    })
}
