//! Where a function keeps its return address: the row of the unwind table for one address (DWARF 5, 6.4; the
//! `.eh_frame` of the x86-64 System V ABI).
//!
//! Asked once per call site inside a wrapper; what comes of it is two numbers that let every later call step over
//! the wrapper's frame with two loads.

/// How to step over one frame at one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameRule {
    /// The frame's address (the stack pointer before the call) is this register …
    pub(crate) from_frame_pointer: bool,
    /// … plus this.
    pub(crate) offset: i32,
    /// Where the caller's frame pointer is saved, from the frame's address; `None` when the register still holds it.
    pub(crate) frame_pointer_at: Option<i32>,
}

const RBP: u64 = 6;
const RSP: u64 = 7;

/// Reads an encoded table in memory.
#[derive(Clone, Copy)]
struct Cursor {
    at: usize,
    end: usize,
}

impl Cursor {
    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.end.checked_sub(self.at)? < N {
            return None;
        }
        // SAFETY: between `at` and `end`, which bound a loaded table.
        let value = unsafe { core::ptr::read_unaligned(self.at as *const [u8; N]) };
        self.at += N;
        Some(value)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn uleb(&mut self) -> Option<u64> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = self.u8()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
    }

    fn sleb(&mut self) -> Option<i64> {
        let (mut value, mut shift) = (0i64, 0);
        loop {
            let byte = self.u8()?;
            if shift < 64 {
                value |= i64::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte & 0x80 == 0 {
                if byte & 0x40 != 0 && shift < 64 {
                    value |= -1 << shift;
                }
                return Some(value);
            }
        }
    }

    /// A pointer in one of the encodings that x86-64 compilers write.
    fn pointer(&mut self, encoding: u8, table: usize) -> Option<usize> {
        let here = self.at;
        let raw = match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => self.bytes().map(usize::from_le_bytes)?,
            0x01 => self.uleb()? as usize,
            0x02 => u16::from_le_bytes(self.bytes()?) as usize,
            0x03 => self.u32()? as usize,
            0x09 => self.sleb()? as usize,
            0x0a => i16::from_le_bytes(self.bytes()?) as usize,
            0x0b => self.u32()? as i32 as usize,
            _ => return None,
        };
        match encoding & 0x70 {
            0x00 => Some(raw),
            0x10 => Some(raw.wrapping_add(here)),
            0x30 => Some(raw.wrapping_add(table)),
            _ => None,
        }
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        let to = self.at.checked_add(usize::try_from(bytes).ok()?)?;
        (to <= self.end).then(|| self.at = to)
    }
}

/// What the instructions have said so far.
#[derive(Clone, Copy)]
struct Row {
    register: u64,
    offset: i64,
    frame_pointer_at: Option<i64>,
    /// A rule that two numbers cannot express.
    opaque: bool,
}

struct Cie {
    code_align: u64,
    data_align: i64,
    encoding: u8,
    has_augmentation: bool,
    instructions: Cursor,
}

/// The rule at `pc`, an address inside a call's function (a return address minus one), from the table at `table`.
///
/// # Safety
/// 1. `table` is the loaded `.eh_frame_hdr` of the image that contains `pc`.
pub(crate) unsafe fn rule_at(table: usize, pc: usize) -> Option<FrameRule> {
    // SAFETY: 1.
    let entry = unsafe { find_entry(table, pc)? };
    let mut fde = record(entry)?;
    let pointer_at = fde.at;
    let cie_at = pointer_at.checked_sub(fde.u32()? as usize)?;
    let cie = parse_cie(record(cie_at)?)?;
    let start = fde.pointer(cie.encoding, table)?;
    let len = fde.pointer(cie.encoding & 0x0f, table)?;
    if pc.wrapping_sub(start) >= len {
        return None;
    }
    if cie.has_augmentation {
        let bytes = fde.uleb()?;
        fde.skip(bytes)?;
    }
    let mut row = Row { register: RSP, offset: 8, frame_pointer_at: None, opaque: false };
    run(cie.instructions, &cie, usize::MAX, &mut row, None)?;
    let initial = row;
    run(fde, &cie, pc - start, &mut row, Some(initial))?;
    if row.opaque || (row.register != RSP && row.register != RBP) {
        return None;
    }
    Some(FrameRule {
        from_frame_pointer: row.register == RBP,
        offset: i32::try_from(row.offset).ok()?,
        frame_pointer_at: match row.frame_pointer_at {
            Some(at) => Some(i32::try_from(at).ok()?),
            None => None,
        },
    })
}

/// The entry whose range starts last at or before `pc`, by binary search in the header's table.
///
/// # Safety
/// 1. As for [`rule_at`].
unsafe fn find_entry(table: usize, pc: usize) -> Option<usize> {
    let mut header = Cursor { at: table, end: table + 64 };
    let [version, frame_encoding, count_encoding, row_encoding] = header.bytes()?;
    // The one layout that linkers write: sorted pairs of 32-bit offsets from the table.
    if version != 1 || row_encoding != 0x3b {
        return None;
    }
    header.pointer(frame_encoding, table)?;
    let count = header.pointer(count_encoding, table)?;
    let rows = header.at;
    let row = |index: usize, field: usize| {
        // SAFETY: 1.: the table has `count` rows of two words.
        let offset = unsafe { core::ptr::read_unaligned((rows + 8 * index + 4 * field) as *const i32) };
        table.wrapping_add(offset as usize)
    };
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = usize::midpoint(low, high);
        if row(middle, 0) <= pc {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    (low > 0).then(|| row(low - 1, 1))
}

/// The body of the record at `at`.
fn record(at: usize) -> Option<Cursor> {
    let mut cursor = Cursor { at, end: at + 4 };
    let bytes = cursor.u32()?;
    // 64-bit lengths do not occur in .eh_frame.
    (bytes != 0 && bytes != u32::MAX).then(|| Cursor { at: cursor.at, end: cursor.at + bytes as usize })
}

fn parse_cie(mut cursor: Cursor) -> Option<Cie> {
    cursor.u32().filter(|&id| id == 0)?;
    let version = cursor.u8()?;
    let mut augmentation = [0u8; 8];
    let mut len = 0;
    loop {
        match cursor.u8()? {
            0 => break,
            byte => {
                *augmentation.get_mut(len)? = byte;
                len += 1;
            }
        }
    }
    let code_align = cursor.uleb()?;
    let data_align = cursor.sleb()?;
    if version == 1 {
        cursor.u8()?;
    } else {
        cursor.uleb()?;
    }
    let mut encoding = 0;
    let has_augmentation = augmentation[0] == b'z';
    if has_augmentation {
        let bytes = cursor.uleb()?;
        let after = Cursor { at: cursor.at.checked_add(bytes as usize)?, end: cursor.end };
        for letter in &augmentation[1..len] {
            match letter {
                b'R' => encoding = cursor.u8()?,
                b'L' => {
                    cursor.u8()?;
                }
                b'P' => {
                    let personality = cursor.u8()?;
                    cursor.pointer(personality, 0)?;
                }
                b'S' | b'B' => {}
                _ => break,
            }
        }
        cursor = after;
    }
    Some(Cie { code_align, data_align, encoding, has_augmentation, instructions: cursor })
}

/// Runs call frame instructions up to `offset` bytes into the function.
fn run(mut code: Cursor, cie: &Cie, offset: usize, row: &mut Row, initial: Option<Row>) -> Option<()> {
    let mut saved = [*row; 4];
    let mut depth = 0;
    let mut here = 0usize;
    let initial = initial.unwrap_or(*row);
    while code.at < code.end {
        let op = code.u8()?;
        let low = u64::from(op & 0x3f);
        let set = |row: &mut Row, register: u64, at: Option<i64>| {
            if register == RBP {
                row.frame_pointer_at = at;
            }
        };
        let step = |units: u64| (units as usize).wrapping_mul(cie.code_align as usize);
        let advance = match op >> 6 {
            1 => Some(step(low)),
            2 => {
                let at = (code.uleb()? as i64).wrapping_mul(cie.data_align);
                set(row, low, Some(at));
                None
            }
            3 => {
                set(row, low, initial.frame_pointer_at);
                None
            }
            _ => match op {
                0x00 => None,
                0x02 => Some(step(u64::from(code.u8()?))),
                0x03 => Some(step(u64::from(u16::from_le_bytes(code.bytes()?)))),
                0x04 => Some(step(u64::from(code.u32()?))),
                0x05 => {
                    let register = code.uleb()?;
                    let at = (code.uleb()? as i64).wrapping_mul(cie.data_align);
                    set(row, register, Some(at));
                    None
                }
                0x06 => {
                    let register = code.uleb()?;
                    set(row, register, initial.frame_pointer_at);
                    None
                }
                0x07 | 0x08 => {
                    let register = code.uleb()?;
                    set(row, register, None);
                    None
                }
                0x09 => {
                    let register = code.uleb()?;
                    code.uleb()?;
                    row.opaque |= register == RBP;
                    None
                }
                0x0a => {
                    *saved.get_mut(depth)? = *row;
                    depth += 1;
                    None
                }
                0x0b => {
                    depth = depth.checked_sub(1)?;
                    *row = saved[depth];
                    None
                }
                0x0c => {
                    row.register = code.uleb()?;
                    row.offset = code.uleb()? as i64;
                    row.opaque = false;
                    None
                }
                0x0d => {
                    row.register = code.uleb()?;
                    None
                }
                0x0e => {
                    row.offset = code.uleb()? as i64;
                    None
                }
                0x0f => {
                    let bytes = code.uleb()?;
                    code.skip(bytes)?;
                    row.opaque = true;
                    None
                }
                0x10 | 0x16 => {
                    let register = code.uleb()?;
                    let bytes = code.uleb()?;
                    code.skip(bytes)?;
                    row.opaque |= register == RBP;
                    None
                }
                0x11 => {
                    let register = code.uleb()?;
                    let at = code.sleb()?.wrapping_mul(cie.data_align);
                    set(row, register, Some(at));
                    None
                }
                0x12 => {
                    row.register = code.uleb()?;
                    row.offset = code.sleb()?.wrapping_mul(cie.data_align);
                    row.opaque = false;
                    None
                }
                0x13 => {
                    row.offset = code.sleb()?.wrapping_mul(cie.data_align);
                    None
                }
                0x2e => {
                    code.uleb()?;
                    None
                }
                _ => return None,
            },
        };
        if let Some(bytes) = advance {
            here = here.wrapping_add(bytes);
            if here > offset {
                return Some(());
            }
        }
    }
    Some(())
}
