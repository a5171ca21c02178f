//! How much memory the kernel's heap may have: `vm.kmem_size` and its relatives, from tunables and the machine's memory.
//!
//! All in 64 bits and saturating: machines beyond 4.5 GB wrapped the BSDs' arithmetic (NetBSD 1.94, FreeBSD), and an artificial
//! cap starved small ones (NetBSD 1.95).
#![forbid(unsafe_code)]

use crate::text::Text;

/// A number with its least and greatest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Least.
    pub min: u64,
    /// Greatest.
    pub max: u64,
}

/// What the loader or the command line says; `None` where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunables {
    /// `vm.kmem_size`, bytes.
    pub size: Option<u64>,
    /// `vm.kmem_size_min`, bytes.
    pub size_min: Option<u64>,
    /// `vm.kmem_size_max`, bytes.
    pub size_max: Option<u64>,
    /// `vm.kmem_size_scale`: by what physical memory is divided for the default size.
    pub scale: Option<u64>,
    /// `vm.kmem_reserve_pages`.
    pub reserve_pages: Option<u64>,
    /// `vm.kmem_soft_percent`: of the size, beyond which reclaim is asked for.
    pub soft_percent: Option<u64>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizing {
    /// Bytes that the heap may have in use; whole pages.
    pub size: u64,
    /// `vm.kmem_size_min`, `vm.kmem_size_max` as used.
    pub bounds: Bounds,
    /// As used.
    pub scale: u64,
    /// Pages of the size that only `M_USE_RESERVE` gets.
    pub reserve_pages: u64,
    /// Pages in use beyond which reclaim is asked for.
    pub soft_pages: u64,
    /// The same as a share of the size.
    pub soft_percent: u64,
    /// Memory of the machine it is for.
    pub physical_bytes: u64,
}

/// Names that tunables had once, and what they are called now.
pub const OLD_NAMES: [(&str, &str); 4] = [
    ("kern.vm.kmem.size", "vm.kmem_size"),
    ("kern.vm.kmem.size.max", "vm.kmem_size_max"),
    ("kern.vm.kmem.size.scale", "vm.kmem_size_scale"),
    ("vm.nkmempages", "vm.kmem_size"),
];

const DEFAULT_MIN: u64 = 12 << 20;
const DEFAULT_SCALE: u64 = 1;

impl Tunables {
    /// Takes a tunable by its name, present or past; `page_bytes` for those in pages. Warns of a past name, and lets a value that
    /// was given under the present one stand. False for a name that is none of these.
    pub fn set(&mut self, name: &str, value: u64, page_bytes: u64, mut warn: impl FnMut(&[u8])) -> bool {
        let present = OLD_NAMES.iter().find(|(old, _)| *old == name).map(|(_, present)| *present);
        let value = if name == "vm.nkmempages" { value.saturating_mul(page_bytes) } else { value };
        let field = match present.unwrap_or(name) {
            "vm.kmem_size" => &mut self.size,
            "vm.kmem_size_min" => &mut self.size_min,
            "vm.kmem_size_max" => &mut self.size_max,
            "vm.kmem_size_scale" => &mut self.scale,
            "vm.kmem_reserve_pages" => &mut self.reserve_pages,
            "vm.kmem_soft_percent" => &mut self.soft_percent,
            _ => return false,
        };
        let Some(present) = present else {
            *field = Some(value);
            return true;
        };
        let mut text = Text::<160>::new();
        text.push(b"tunable ").push(name.as_bytes()).push(b" is now called ").push(present.as_bytes());
        if field.is_some() {
            text.push(b", which is set as well and wins");
        } else {
            *field = Some(value);
        }
        warn(text.as_bytes());
        true
    }
}

/// The heap's size for a machine: `min(max(physical / scale, min), max)`, at most twice the physical memory, in whole pages.
///
/// ```
/// use kernmalloc_kern::malloc::{Tunables, size_kmem};
///
/// let sizing = size_kmem(64 << 30, 4096, &Tunables::default());
/// assert_eq!(sizing.size, 64 << 30);
/// ```
#[must_use]
pub fn size_kmem(physical_bytes: u64, page_bytes: u64, tunables: &Tunables) -> Sizing {
    let twice = physical_bytes.saturating_mul(2);
    let max = tunables.size_max.unwrap_or(u64::MAX);
    // Bounds that cross: the greatest is the promise that protects the machine.
    let min = tunables.size_min.unwrap_or(DEFAULT_MIN).min(max);
    let scale = tunables.scale.unwrap_or(DEFAULT_SCALE).max(1);
    let size = match tunables.size {
        Some(size) => size,
        None => (physical_bytes / scale).max(min).min(max),
    };
    let pages = (size.min(twice) / page_bytes).max(1);
    let soft_percent = tunables.soft_percent.unwrap_or(90).min(100);
    Sizing {
        size: pages * page_bytes,
        bounds: Bounds { min, max },
        scale,
        reserve_pages: tunables.reserve_pages.unwrap_or(pages / 256).min(pages / 2),
        // Divided first: the product of a large machine would wrap.
        soft_pages: pages / 100 * soft_percent + pages % 100 * soft_percent / 100,
        soft_percent,
        physical_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    const GIB: u64 = 1 << 30;

    fn size(physical: u64, set: impl FnOnce(&mut Tunables)) -> Sizing {
        let mut tunables = Tunables::default();
        set(&mut tunables);
        size_kmem(physical, 4096, &tunables)
    }

    #[test]
    fn the_size_is_between_its_bounds() {
        assert_eq!(size(4 * GIB, |t| t.scale = Some(3)).size, (4 * GIB / 3) & !4095);
        assert_eq!(size(4 * GIB, |t| (t.scale, t.size_max) = (Some(3), Some(GIB))).size, GIB);
        assert_eq!(size(64 << 20, |t| (t.scale, t.size_min) = (Some(64), Some(16 << 20))).size, 16 << 20);
        assert_eq!(size(GIB, |t| t.size = Some(u64::MAX)).size, 2 * GIB);
        assert_eq!(size(GIB, |t| t.size = Some(3 << 20)).size, 3 << 20);
        // Bounds that cross, a scale of nothing, a machine of nothing.
        assert_eq!(size(GIB, |t| (t.size_min, t.size_max) = (Some(GIB), Some(GIB / 2))).size, GIB / 2);
        assert_eq!(size(GIB, |t| t.scale = Some(0)).size, GIB);
        assert_eq!(size(0, |_| {}).size, 4096);
    }

    /// NetBSD 1.94, 1.95 and FreeBSD beyond 4.5 GB.
    #[test]
    fn n1_94_1_95_large_machines_do_not_wrap_and_small_ones_are_not_capped() {
        for shift in 26..=63 {
            let physical = 1u64 << shift;
            let sizing = size(physical, |_| {});
            assert_eq!(sizing.size, physical.max(DEFAULT_MIN), "2^{shift} bytes");
            assert!(sizing.soft_pages <= sizing.size / 4096 && sizing.soft_pages >= sizing.size / 4096 / 100 * 90);
            assert!(sizing.reserve_pages < sizing.size / 4096);
        }
        let most = size(u64::MAX, |_| {});
        assert_eq!(most.size, u64::MAX / 4096 * 4096);
    }

    #[test]
    fn an_old_name_is_taken_with_a_warning_and_the_new_one_wins() {
        let mut said: Vec<String> = Vec::new();
        let mut tunables = Tunables::default();
        let mut set = |name: &str, value| {
            tunables.set(name, value, 4096, |text| said.push(String::from_utf8_lossy(text).into_owned()))
        };
        assert!(set("vm.nkmempages", 1000));
        assert!(set("kern.vm.kmem.size.max", 77));
        assert!(set("vm.kmem_size_max", 88));
        assert!(set("kern.vm.kmem.size.max", 99));
        assert!(!set("vm.kmem_sise", 1));
        assert_eq!((tunables.size, tunables.size_max), (Some(4_096_000), Some(88)));
        assert_eq!(
            said,
            [
                "tunable vm.nkmempages is now called vm.kmem_size",
                "tunable kern.vm.kmem.size.max is now called vm.kmem_size_max",
                "tunable kern.vm.kmem.size.max is now called vm.kmem_size_max, which is set as well and wins",
            ]
        );
    }
}
