//! Tunables from the environment: `KERNMALLOC=name=value,name=value`, names as of sysctl.
//!
//! An unknown name warns once with the nearest known one. Ignored in a process with raised rights (AT_SECURE).

use core::sync::atomic::{AtomicU32, Ordering};

use kern::text::Text;

use crate::sys;

/// A tunable with a number or one of a few words for a value.
struct Tunable {
    name: &'static [u8],
    /// Words and what they mean; empty for plain numbers.
    words: &'static [(&'static [u8], u32)],
    value: AtomicU32,
}

const SWITCH: &[(&[u8], u32)] = &[(b"off", 0), (b"on", 1), (b"0", 0), (b"1", 1)];

static ATTRIBUTION: Tunable = Tunable {
    name: b"kern.malloc.attribution",
    words: &[
        (b"off", abi::attribution::OFF),
        (b"library", abi::attribution::LIBRARY),
        (b"site", abi::attribution::SITE),
    ],
    value: AtomicU32::new(abi::attribution::SITE),
};
static ON_MISUSE: Tunable =
    Tunable { name: b"kern.malloc.on_misuse", words: &[(b"abort", 0), (b"report", 1)], value: AtomicU32::new(0) };
static RSEQ: Tunable = Tunable { name: b"kern.malloc.rseq", words: SWITCH, value: AtomicU32::new(1) };
static STRICT: Tunable = Tunable { name: b"kern.malloc.strict", words: SWITCH, value: AtomicU32::new(0) };

static ALL: [&Tunable; 4] = [&ATTRIBUTION, &ON_MISUSE, &RSEQ, &STRICT];

/// One of `abi::attribution`.
pub fn attribution() -> u32 {
    ATTRIBUTION.value.load(Ordering::Relaxed)
}

/// Whether a misuse is only reported, and the program goes on.
pub fn misuse_goes_on() -> bool {
    ON_MISUSE.value.load(Ordering::Relaxed) == 1
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

/// Whether the process has rights that its caller lacks.
pub fn is_secure() -> bool {
    getauxval(AT_SECURE) != 0
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
    for setting in text.split(|&byte| byte == b',').filter(|setting| !setting.is_empty()) {
        apply(setting);
    }
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
    match tunable.words.iter().find(|(word, _)| *word == value) {
        Some((_, meaning)) => tunable.value.store(*meaning, Ordering::Relaxed),
        None => {
            let mut known = Text::<256>::new();
            for (word, _) in tunable.words {
                known.push(b" ").push(word);
            }
            warn(&[b"bad value ", value, b" for ", name, b"; known are", known.as_bytes()]);
        }
    }
}

fn warn(parts: &[&[u8]]) {
    let mut text = Text::<512>::new();
    text.push(b"kernmalloc: ");
    for part in parts {
        text.push(part);
    }
    text.push(b"\n");
    sys::write(2, text.as_bytes());
    if STRICT.value.load(Ordering::Relaxed) == 1 {
        sys::abort();
    }
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
    fn the_nearest_name_is_by_edits() {
        assert_eq!(distance(b"kitten", b"sitting"), 3);
        assert_eq!(distance(b"", b"abc"), 3);
        assert_eq!(distance(b"same", b"same"), 0);
    }
}
