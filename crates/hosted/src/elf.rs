//! A mapped ELF file, read where it lies: build id, symbols by name, unwind tables. And the symbol table of its file, if it
//! was not stripped.
//!
//! The loader has checked these files; still every offset is taken with care, since a wrong row is better than a crash.

use kern::text::Text;

use crate::sys;

/// A loaded file.
#[derive(Clone, Copy)]
pub(crate) struct Image {
    /// Where the file's first byte is mapped.
    base: usize,
    /// Added to the file's addresses.
    pub(crate) bias: usize,
    /// Address of the dynamic section, by which the loader's own record names the file.
    pub(crate) dynamic: usize,
    /// Address of `.eh_frame_hdr`, or 0.
    pub(crate) unwind_table: usize,
    note: usize,
    note_bytes: usize,
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_NOTE: u32 = 4;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;

/// A value in the image.
///
/// # Safety
/// 1. `addr` lies in a mapped, readable part of the image.
unsafe fn get<T: Copy>(addr: usize) -> T {
    // SAFETY: 1.
    unsafe { core::ptr::read_unaligned(addr as *const T) }
}

impl Image {
    /// The image whose first page is at `base`.
    ///
    /// # Safety
    /// 1. The first page of a file is mapped readable at `base`, and stays so.
    pub(crate) unsafe fn at(base: usize) -> Option<Self> {
        // SAFETY: 1.: header and program headers of a loaded file lie in its first page.
        unsafe {
            if get::<[u8; 5]>(base) != *b"\x7fELF\x02" {
                return None;
            }
            let headers = base + get::<u64>(base + 32) as usize;
            let (size, count) = (get::<u16>(base + 54) as usize, get::<u16>(base + 56) as usize);
            if headers + size * count > base + 4096 {
                return None;
            }
            let header = |index: usize| headers + index * size;
            let vaddr = |at: usize| get::<u64>(at + 16) as usize;
            let first = (0..count).map(header).find(|&at| get::<u32>(at) == PT_LOAD)?;
            let bias = base.wrapping_sub(vaddr(first) & !4095);
            let mut image = Self { base, bias, dynamic: 0, unwind_table: 0, note: 0, note_bytes: 0 };
            for at in (0..count).map(header) {
                let addr = bias.wrapping_add(vaddr(at));
                match get::<u32>(at) {
                    PT_DYNAMIC => image.dynamic = addr,
                    PT_GNU_EH_FRAME => image.unwind_table = addr,
                    PT_NOTE if image.build_id().is_none() => {
                        image.note = addr;
                        image.note_bytes = get::<u64>(at + 40) as usize;
                    }
                    _ => {}
                }
            }
            Some(image)
        }
    }

    /// The GNU build id.
    pub(crate) fn build_id(&self) -> Option<&'static [u8]> {
        let mut at = self.note;
        let end = self.note + self.note_bytes;
        // SAFETY: a loaded note segment.
        unsafe {
            while at + 16 <= end {
                let (name, desc, kind) = (get::<u32>(at) as usize, get::<u32>(at + 4) as usize, get::<u32>(at + 8));
                let body = at + 12 + name.next_multiple_of(4);
                if body + desc > end {
                    return None;
                }
                if kind == 3 && name == 4 && get::<[u8; 4]>(at + 12) == *b"GNU\0" {
                    return Some(core::slice::from_raw_parts(body as *const u8, desc.min(32)));
                }
                at = body + desc.next_multiple_of(4);
            }
        }
        None
    }

    fn dynamic_entry(&self, tag: u64) -> Option<usize> {
        if self.dynamic == 0 {
            return None;
        }
        let mut at = self.dynamic;
        // SAFETY: a loaded dynamic section ends with a null entry.
        unsafe {
            while get::<u64>(at) != 0 {
                if get::<u64>(at) == tag {
                    let value = get::<u64>(at + 8) as usize;
                    // glibc has made these addresses; musl leaves them as in the file.
                    return Some(if value < self.base { value.wrapping_add(self.bias) } else { value });
                }
                at += 16;
            }
        }
        None
    }

    /// The code of an exported function: first address and the one behind its last. By the GNU hash table.
    pub(crate) fn function(&self, name: &[u8]) -> Option<(usize, usize)> {
        const DT_STRTAB: u64 = 5;
        const DT_SYMTAB: u64 = 6;
        const DT_GNU_HASH: u64 = 0x6fff_fef5;
        let table = self.dynamic_entry(DT_GNU_HASH)?;
        let symbols = self.dynamic_entry(DT_SYMTAB)?;
        let strings = self.dynamic_entry(DT_STRTAB)?;
        let hash = name.iter().fold(5381u32, |hash, &byte| hash.wrapping_mul(33).wrapping_add(byte.into()));
        // SAFETY: loaded tables of the dynamic section, in the layout of the GNU hash section.
        unsafe {
            let (buckets, first, bloom) =
                (get::<u32>(table) as usize, get::<u32>(table + 4), get::<u32>(table + 8) as usize);
            if buckets == 0 || bloom == 0 {
                return None;
            }
            let word = get::<u64>(table + 16 + 8 * ((hash as usize / 64) % bloom));
            let shift = get::<u32>(table + 12);
            if word >> (hash % 64) & word >> ((hash >> shift) % 64) & 1 == 0 {
                return None;
            }
            let bucket_table = table + 16 + 8 * bloom;
            let mut index = get::<u32>(bucket_table + 4 * (hash as usize % buckets));
            if index < first {
                return None;
            }
            let chain = bucket_table + 4 * buckets;
            loop {
                let link = get::<u32>(chain + 4 * (index - first) as usize);
                if link | 1 == hash | 1 {
                    let symbol = symbols + 24 * index as usize;
                    let text = crate::tunables::c_bytes((strings + get::<u32>(symbol) as usize) as *const u8);
                    if text == name {
                        return self.function_at(get::<u8>(symbol + 4), get::<u16>(symbol + 6), symbol);
                    }
                }
                if link & 1 == 1 {
                    return None;
                }
                index += 1;
            }
        }
    }

    /// # Safety
    /// 1. `symbol` is an entry of the loaded symbol table.
    unsafe fn function_at(&self, info: u8, section: u16, symbol: usize) -> Option<(usize, usize)> {
        const STT_FUNC: u8 = 2;
        if info & 15 != STT_FUNC || section == 0 {
            return None;
        }
        // SAFETY: 1.
        let (value, size) = unsafe { (get::<u64>(symbol + 8) as usize, get::<u64>(symbol + 16) as usize) };
        let start = self.bias.wrapping_add(value);
        Some((start, start + size.max(1)))
    }
}

/// Takes the time from the image that the kernel maps into every process (vdso(7)), if there is one.
pub(crate) fn find_user_clock(vdso: usize) {
    const NAME: &[u8] = if cfg!(target_arch = "aarch64") { b"__kernel_clock_gettime" } else { b"__vdso_clock_gettime" };
    if vdso == 0 {
        return;
    }
    // SAFETY: 1. the kernel's image, mapped for good.
    if let Some((start, _)) = unsafe { Image::at(vdso) }.and_then(|image| image.function(NAME)) {
        // SAFETY: 1. it is that function of the kernel's.
        unsafe { sys::set_user_clock(start) };
    }
}

/// Reads the file piece by piece into a buffer that its holder lends.
struct Reader<'a> {
    fd: i32,
    buffer: &'a mut [u8],
}

impl Reader<'_> {
    /// Calls `visit` with consecutive pieces of `bytes` bytes at `offset`, each but the last as long as the buffer.
    fn pieces(&mut self, offset: u64, bytes: u64, mut visit: impl FnMut(u64, &[u8])) -> Option<()> {
        let mut done = 0;
        while done < bytes {
            if !sys::seek(self.fd, offset + done) {
                return None;
            }
            let want = (bytes - done).min(self.buffer.len() as u64) as usize;
            let got = sys::read(self.fd, &mut self.buffer[..want]).filter(|&got| got > 0)?;
            visit(done, &self.buffer[..got]);
            done += got as u64;
        }
        Some(())
    }

    fn exact<const N: usize>(&mut self, offset: u64) -> Option<[u8; N]> {
        let mut out = [0; N];
        let mut filled = 0;
        self.pieces(offset, N as u64, |at, piece| {
            out[at as usize..at as usize + piece.len()].copy_from_slice(piece);
            filled += piece.len();
        })?;
        (filled == N).then_some(out)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Most matching names looked for in one file. (An unoptimised Rust program of some size has thousands.)
const MOST_NAMES: usize = 32 * 1024;
/// Symbol tables larger than this are left alone: reading one would take tenths of a second.
const MOST_BYTES: u64 = 256 << 20;

/// Looks through the symbol table of an unstripped file for functions whose name `wanted` accepts, and shows each one's
/// first and last-plus-one address as in the file. Local functions are found only here.
pub(crate) fn local_functions(
    path: &[u8],
    buffer: &mut [u8],
    wanted: impl Fn(&[u8]) -> Option<usize>,
    mut found: impl FnMut(u64, u64),
) -> Option<()> {
    let mut with_nul = Text::<512>::new();
    with_nul.push(path).push(b"\0");
    let fd = sys::open(with_nul.as_bytes(), sys::O_RDONLY).ok()?;
    let mut reader = Reader { fd, buffer };
    let result = scan(&mut reader, wanted, &mut found);
    sys::close(fd);
    result
}

fn scan(
    reader: &mut Reader<'_>,
    wanted: impl Fn(&[u8]) -> Option<usize>,
    found: &mut impl FnMut(u64, u64),
) -> Option<()> {
    const SHT_SYMTAB: u32 = 2;
    let header: [u8; 64] = reader.exact(0)?;
    let (table, count) = (u64_at(&header, 40), u32_at(&header, 60) & 0xffff);
    let mut symbols = None;
    for index in 0..u64::from(count) {
        let section: [u8; 64] = reader.exact(table + index * 64)?;
        if u32_at(&section, 4) == SHT_SYMTAB {
            let strings: [u8; 64] = reader.exact(table + u64::from(u32_at(&section, 40)) * 64)?;
            symbols =
                Some(((u64_at(&section, 24), u64_at(&section, 32)), (u64_at(&strings, 24), u64_at(&strings, 32))));
        }
    }
    let ((symbols_at, symbols_bytes), (strings_at, strings_bytes)) = symbols?;
    if symbols_bytes > MOST_BYTES || strings_bytes > MOST_BYTES {
        return None;
    }

    let names = sys::map_anywhere(MOST_NAMES * size_of::<u32>())?;
    // SAFETY: fresh memory of that size, given back below.
    let table = unsafe { core::slice::from_raw_parts_mut(names as *mut u32, MOST_NAMES) };
    let result = scan_for(reader, (symbols_at, symbols_bytes), (strings_at, strings_bytes), table, wanted, found);
    // SAFETY: 1. mapped above, and not used any more.
    unsafe { sys::unmap(names, MOST_NAMES * size_of::<u32>()) };
    result
}

/// The same, of a symbol table and a string table, each an offset in the file and bytes. `names` is memory to work in.
fn scan_for(
    reader: &mut Reader<'_>,
    (symbols_at, symbols_bytes): (u64, u64),
    (strings_at, strings_bytes): (u64, u64),
    names: &mut [u32],
    wanted: impl Fn(&[u8]) -> Option<usize>,
    found: &mut impl FnMut(u64, u64),
) -> Option<()> {
    // First the names: where in the string table one of the wanted stands. Linkers share tails, so a name may
    // begin inside a longer one; `wanted` says how long a tail of the text it accepts.
    let mut known = 0;
    let mut tail = Text::<256>::new();
    reader.pieces(strings_at, strings_bytes, |at, piece| {
        let mut from = 0;
        for (end, _) in piece.iter().enumerate().filter(|&(_, &byte)| byte == 0) {
            let text = if tail.as_bytes().is_empty() {
                &piece[from..end]
            } else {
                tail.push(&piece[from..end]);
                tail.as_bytes()
            };
            if let Some(len) = wanted(text)
                && known < names.len()
            {
                names[known] = (at + end as u64) as u32 - len as u32;
                known += 1;
            }
            if !tail.as_bytes().is_empty() {
                tail = Text::new();
            }
            from = end + 1;
        }
        tail.push(&piece[from..]);
    })?;
    if known == 0 {
        return Some(());
    }
    let names = &mut names[..known];
    names.sort_unstable();

    let entry_bytes = 24;
    let whole = reader.buffer.len() / entry_bytes * entry_bytes;
    let mut at = 0;
    while at < symbols_bytes {
        let want = (symbols_bytes - at).min(whole as u64);
        reader.pieces(symbols_at + at, want, |_, piece| {
            for symbol in piece.chunks_exact(entry_bytes) {
                let is_function = symbol[4] & 15 == 2 && symbol[6..8] != [0, 0];
                if is_function && names.binary_search(&u32_at(symbol, 0)).is_ok() {
                    let start = u64_at(symbol, 8);
                    found(start, start + u64_at(symbol, 16).max(1));
                }
            }
        })?;
        at += want;
    }
    Some(())
}
