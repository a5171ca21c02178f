//! What the allocator says to whoever watches the console; and the last of it, for tests that expect a text.

use alloc::string::String;
use alloc::vec::Vec;

use platform::Lock;

use crate::module::text_of;
use crate::serial::println;
use crate::spin::SpinLock;

/// Warnings that are kept, and bytes of each.
const KEPT: usize = 16;
const LINE_BYTES: usize = 192;

/// A ring of lines. Nothing is allocated: a warning may be about memory.
struct Kept {
    lines: [[u8; LINE_BYTES]; KEPT],
    lengths: [usize; KEPT],
    /// All that were ever said.
    count: usize,
}

static WARNINGS: Lock<SpinLock, Kept> =
    Lock::new(Kept { lines: [[0; LINE_BYTES]; KEPT], lengths: [0; KEPT], count: 0 });

/// Prints a warning and keeps it.
pub(crate) fn say(text: &[u8]) {
    {
        let mut kept = WARNINGS.lock();
        let at = kept.count % KEPT;
        let bytes = text.len().min(LINE_BYTES);
        kept.lines[at][..bytes].copy_from_slice(&text[..bytes]);
        kept.lengths[at] = bytes;
        kept.count += 1;
    }
    println!("{}", text_of(text));
}

/// How many were said so far.
pub(crate) fn count() -> usize {
    WARNINGS.lock().count
}

/// Those said since there were `count`, as far as they are kept.
pub(crate) fn since(count: usize) -> Vec<String> {
    // One at a time: the lock must not be held while a line is allocated.
    let line = |number: usize| {
        let kept = WARNINGS.lock();
        let at = number % KEPT;
        (kept.lines[at], kept.lengths[at])
    };
    let end = self::count();
    (count.max(end.saturating_sub(KEPT))..end)
        .map(|number| {
            let (text, bytes) = line(number);
            String::from(text_of(&text[..bytes]))
        })
        .collect()
}
