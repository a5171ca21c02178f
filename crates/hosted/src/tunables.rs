//! Tunables from the environment: `KERNMALLOC=name=value,name=value`, names as of sysctl.
//!
//! An unknown name warns once with the nearest known one. Ignored in a process with raised rights (AT_SECURE).

use core::sync::atomic::{AtomicU64, Ordering};

use kern::text::Text;

use crate::{object, sys};

/// A tunable with a number or one of a few words for a value.
struct Tunable {
    name: &'static [u8],
    /// Words and what they mean; empty for plain numbers.
    words: &'static [(&'static [u8], u32)],
    value: AtomicU64,
}

const SWITCH: &[(&[u8], u32)] = &[(b"off", 0), (b"on", 1), (b"0", 0), (b"1", 1)];

static ATTRIBUTION: Tunable = Tunable {
    name: b"kern.malloc.attribution",
    words: &[
        (b"off", abi::attribution::OFF),
        (b"library", abi::attribution::LIBRARY),
        (b"site", abi::attribution::SITE),
    ],
    value: AtomicU64::new(abi::attribution::SITE as u64),
};
static ON_MISUSE: Tunable =
    Tunable { name: b"kern.malloc.on_misuse", words: &[(b"abort", 0), (b"report", 1)], value: AtomicU64::new(0) };
static RSEQ: Tunable = Tunable { name: b"kern.malloc.rseq", words: SWITCH, value: AtomicU64::new(1) };
static STRICT: Tunable = Tunable { name: b"kern.malloc.strict", words: SWITCH, value: AtomicU64::new(0) };

static DIRTY_KEEP: Tunable =
    Tunable { name: b"vm.kmem_dirty_keep", words: &[], value: AtomicU64::new(abi::DIRTY_KEEP_PAGES) };
static BUCKET_MAX: Tunable =
    Tunable { name: b"vm.uma_bucket_size_max", words: &[], value: AtomicU64::new(abi::BUCKET_SIZE_MAX) };

static FAILURE_RATE: Tunable = Tunable { name: b"debug.malloc.failure_rate", words: &[], value: AtomicU64::new(0) };
static NUMZONES: Tunable = Tunable { name: b"debug.malloc.numzones", words: &[], value: AtomicU64::new(1) };
/// A value of the heap's size that was not given.
const NOT_GIVEN: u64 = u64::MAX;
static KMEM: [Tunable; 6] = {
    const fn kmem(name: &'static [u8]) -> Tunable {
        Tunable { name, words: &[], value: AtomicU64::new(NOT_GIVEN) }
    }
    [
        kmem(b"vm.kmem_size"),
        kmem(b"vm.kmem_size_min"),
        kmem(b"vm.kmem_size_max"),
        kmem(b"vm.kmem_size_scale"),
        kmem(b"vm.kmem_reserve_pages"),
        kmem(b"vm.kmem_soft_percent"),
    ]
};

/// Each is in [`abi::sysctl::TABLE`], with its meaning.
static ALL: [&Tunable; 14] = [
    &ATTRIBUTION,
    &ON_MISUSE,
    &RSEQ,
    &STRICT,
    &DIRTY_KEEP,
    &BUCKET_MAX,
    &FAILURE_RATE,
    &NUMZONES,
    &KMEM[0],
    &KMEM[1],
    &KMEM[2],
    &KMEM[3],
    &KMEM[4],
    &KMEM[5],
];

/// How large the heap may become, as far as anybody said.
pub(crate) fn sizing() -> kern::malloc::Tunables {
    let [size, size_min, size_max, scale, reserve_pages, soft_percent] = [0, 1, 2, 3, 4, 5]
        .map(|at: usize| Some(KMEM[at].value.load(Ordering::Relaxed)).filter(|&value| value != NOT_GIVEN));
    kern::malloc::Tunables { size, size_min, size_max, scale, reserve_pages, soft_percent }
}

/// Zones of each size class.
pub(crate) fn numzones() -> usize {
    // Within its bounds, which are small.
    NUMZONES.value.load(Ordering::Relaxed) as usize
}

/// One of `abi::attribution`.
pub fn attribution() -> u32 {
    // One of the words'.
    ATTRIBUTION.value.load(Ordering::Relaxed) as u32
}

/// Whether a misuse is only reported, and the program goes on. May be changed from outside.
pub fn misuse_goes_on() -> bool {
    let header = object::header();
    if header.is_null() {
        return ON_MISUSE.value.load(Ordering::Relaxed) == 1;
    }
    // SAFETY: mapped for good.
    unsafe { (*header).control.misuse_goes_on.load(Ordering::Relaxed) == 1 }
}

/// Writes the control words that were set at start.
pub(crate) fn write_controls(control: &abi::Control) {
    let value = |tunable: &Tunable| tunable.value.load(Ordering::Relaxed);
    control.misuse_goes_on.store(value(&ON_MISUSE), Ordering::Relaxed);
    control.dirty_keep_pages.store(value(&DIRTY_KEEP), Ordering::Relaxed);
    control.bucket_size_max.store(value(&BUCKET_MAX), Ordering::Relaxed);
    control.failure_rate.store(value(&FAILURE_RATE), Ordering::Relaxed);
}

pub(crate) fn rseq_allowed() -> bool {
    RSEQ.value.load(Ordering::Relaxed) == 1
}

unsafe extern "C" {
    static environ: *const *const u8;
    safe fn getauxval(kind: usize) -> usize;
}

const AT_SECURE: usize = 23;
const AT_RSEQ_FEATURE_SIZE: usize = 27;
const AT_SYSINFO_EHDR: usize = 33;

/// Whether the process has rights that its caller lacks.
pub fn is_secure() -> bool {
    getauxval(AT_SECURE) != 0
}

/// Where the kernel has mapped its own image; 0 for nowhere.
pub(crate) fn vdso_base() -> usize {
    getauxval(AT_SYSINFO_EHDR)
}

pub(crate) fn rseq_feature_size() -> usize {
    getauxval(AT_RSEQ_FEATURE_SIZE)
}

/// The bytes of a NUL-terminated string.
///
/// # Safety
/// 1. `text` is NUL-terminated and outlives the result.
pub(crate) unsafe fn c_bytes<'a>(text: *const u8) -> &'a [u8] {
    let mut len = 0;
    // SAFETY: 1.
    unsafe {
        while *text.add(len) != 0 {
            len += 1;
        }
        core::slice::from_raw_parts(text, len)
    }
}

/// The value of an environment variable; nothing in a process with raised rights.
pub(crate) fn env(name: &[u8]) -> Option<&'static [u8]> {
    if is_secure() {
        return None;
    }
    // SAFETY: libc's, set before any library runs; null before that. Entries are NUL-terminated strings.
    unsafe {
        let mut entry = environ;
        if entry.is_null() {
            return None;
        }
        while !(*entry).is_null() {
            let text = c_bytes(*entry);
            if let Some(rest) = text.strip_prefix(name)
                && let Some(value) = rest.strip_prefix(b"=")
            {
                return Some(value);
            }
            entry = entry.add(1);
        }
    }
    None
}

/// Reads the environment. Once, at boot.
pub(crate) fn load() {
    let Some(text) = env(abi::TUNABLES_ENV.as_bytes()) else { return };
    let settings = || text.split(|&byte| byte == b',').filter(|setting| !setting.is_empty());
    settings().filter(|setting| present_name(setting).is_none()).for_each(apply);
    // Names of the past after those of the present, which win.
    settings().for_each(apply_past);
}

/// What a tunable of an earlier system is called now.
fn present_name(setting: &[u8]) -> Option<(&'static str, &'static str)> {
    let name = setting.split(|&byte| byte == b'=').next()?;
    kern::malloc::OLD_NAMES.into_iter().find(|(past, _)| past.as_bytes() == name)
}

fn apply_past(setting: &[u8]) {
    let Some((past, present)) = present_name(setting) else { return };
    let Some(tunable) = KMEM.iter().find(|tunable| tunable.name == present.as_bytes()) else { return };
    let Some(value) = setting.get(past.len() + 1..) else {
        return warn(&[b"tunable without a value: ", setting, b" (name=value)"]);
    };
    let unit: u64 = if past == "vm.nkmempages" { 4096 } else { 1 };
    let (least, greatest) = bounds(tunable.name);
    let Some(value) = number(value, (least.div_ceil(unit), greatest / unit)) else {
        return warn_number(past.as_bytes(), value, (least.div_ceil(unit), greatest / unit));
    };
    let both = tunable.value.load(Ordering::Relaxed) != NOT_GIVEN;
    let more: &[u8] = if both { b", which is set as well and wins" } else { b"" };
    if !both {
        tunable.value.store(value * unit, Ordering::Relaxed);
    }
    say(&[b"tunable ", past.as_bytes(), b" is now called ", present.as_bytes(), more]);
}

fn apply(setting: &[u8]) {
    let Some(equals) = setting.iter().position(|&byte| byte == b'=') else {
        return warn(&[b"tunable without a value: ", setting, b" (name=value)"]);
    };
    let (name, value) = (&setting[..equals], &setting[equals + 1..]);
    let Some(tunable) = ALL.iter().find(|tunable| tunable.name == name) else {
        let nearest = ALL.iter().min_by_key(|tunable| distance(tunable.name, name)).map_or(&b""[..], |near| near.name);
        return warn(&[b"unknown tunable ", name, b"; did you mean ", nearest, b"?"]);
    };
    if tunable.words.is_empty() {
        match number(value, bounds(name)) {
            Some(value) => tunable.value.store(value, Ordering::Relaxed),
            None => warn_number(name, value, bounds(name)),
        }
        return;
    }
    match tunable.words.iter().find(|(word, _)| *word == value) {
        Some((_, meaning)) => tunable.value.store(u64::from(*meaning), Ordering::Relaxed),
        None => {
            let mut known = Text::<256>::new();
            for (word, _) in tunable.words {
                known.push(b" ").push(word);
            }
            warn(&[b"bad value ", value, b" for ", name, b"; known are", known.as_bytes()]);
        }
    }
}

fn warn_number(name: &[u8], value: &[u8], (least, greatest): (u64, u64)) {
    let mut range = Text::<64>::new();
    range.push_number(least).push(b" to ").push_number(greatest);
    warn(&[b"bad value ", value, b" for ", name, b"; it is a number, ", range.as_bytes()]);
}

/// What a number's table entry allows.
fn bounds(name: &[u8]) -> (u64, u64) {
    match abi::sysctl::TABLE.iter().find(|entry| entry.name.as_bytes() == name).map(|entry| entry.place) {
        Some(abi::sysctl::Place::Control(_, least, greatest)) => (least, greatest),
        _ => (0, u32::MAX.into()),
    }
}

fn number(text: &[u8], (least, greatest): (u64, u64)) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let value = text.iter().try_fold(0u64, |sum, &digit| {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 10)?;
        sum.checked_mul(10)?.checked_add(digit.into())
    })?;
    (least..=greatest).contains(&value).then_some(value)
}

/// Says it, and ends the program if it is to be held to its tunables.
fn warn(parts: &[&[u8]]) {
    say(parts);
    if STRICT.value.load(Ordering::Relaxed) == 1 {
        sys::abort();
    }
}

fn say(parts: &[&[u8]]) {
    let mut text = Text::<512>::new();
    text.push(b"kernmalloc: ");
    for part in parts {
        text.push(part);
    }
    text.push(b"\n");
    sys::write(2, text.as_bytes());
}

/// How many bytes differ: edits of two texts of at most 63 bytes (Wagner and Fischer 1974).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let (a, b) = (&a[..a.len().min(63)], &b[..b.len().min(63)]);
    let mut row = [0usize; 64];
    for (at, cell) in row.iter_mut().enumerate() {
        *cell = at;
    }
    for (i, &left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &right) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_digits_within_its_bounds() {
        assert_eq!(number(b"255", (1, 255)), Some(255));
        for wrong in [&b""[..], b"-1", b"0", b"256", b"1k", b"99999999999999999999999"] {
            assert_eq!(number(wrong, (1, 255)), None);
        }
        assert_eq!(bounds(b"vm.uma_bucket_size_max"), (1, 255));
    }

    #[test]
    fn every_tunable_is_in_the_tree_and_the_other_way_round() {
        let known: std::vec::Vec<&[u8]> = ALL.iter().map(|tunable| tunable.name).collect();
        for entry in abi::sysctl::TABLE {
            assert_eq!(known.contains(&entry.name.as_bytes()), entry.access.at_start(), "{}", entry.name);
        }
        for tunable in ALL {
            let entry = abi::sysctl::TABLE.iter().find(|entry| entry.name.as_bytes() == tunable.name);
            let abi::sysctl::Kind::Words(words) = entry.unwrap().kind else {
                assert!(tunable.words.is_empty());
                continue;
            };
            for (value, word) in words.iter().enumerate() {
                assert!(tunable.words.contains(&(word.as_bytes(), value as u32)), "{word}");
            }
        }
    }

    #[test]
    fn the_nearest_name_is_by_edits() {
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(distance(b"same", b"same"), 0);
    }
}
