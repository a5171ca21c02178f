//! What `/proc` says of a process, and copies out of its memory.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) range: Range<u64>,
    pub(crate) shared: bool,
    pub(crate) inode: u64,
    /// As the kernel shows it, without a trailing ` (deleted)`.
    pub(crate) path: PathBuf,
    pub(crate) deleted: bool,
    /// Resident bytes, where the line came from `smaps`.
    pub(crate) rss_bytes: u64,
}

impl Mapping {
    /// Parses `start-end perms offset dev inode path`; `None` for a line of another form.
    fn parse(line: &[u8]) -> Option<Self> {
        // The path is the sixth field and may hold blanks; it is padded from the left.
        let mut rest = line;
        let mut fields = [&[][..]; 5];
        for field in &mut fields {
            let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
            (*field, rest) = rest.split_at(end);
            rest = rest.strip_prefix(b" ").unwrap_or(rest);
        }
        let text = |field| std::str::from_utf8(field).ok();
        let (start, end) = text(fields[0])?.split_once('-')?;
        let range = u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?;
        let shared = *fields[1].get(3)? == b's';
        let inode = text(fields[4])?.parse().ok()?;
        let path = rest.trim_ascii_start();
        let (path, deleted) = match path.strip_suffix(b" (deleted)") {
            Some(path) => (path, true),
            None => (path, false),
        };
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
        Some(Self { range, shared, inode, path, deleted, rss_bytes: 0 })
    }

    /// Is this the preload library, under any of its names?
    pub(crate) fn is_library(&self) -> bool {
        self.path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"libkernmalloc"))
    }

    /// Might this be a statistics object? By name only; the magic word decides.
    pub(crate) fn is_candidate(&self) -> bool {
        if !self.shared || self.inode == 0 {
            return false;
        }
        let path = self.path.as_os_str().as_bytes();
        let memfd = path.strip_prefix(b"/memfd:").is_some_and(|name| name == abi::MEMFD_NAME.as_bytes());
        memfd || path.windows(12).any(|part| part == b"/kernmalloc-") || is_object_name(&self.path)
    }
}

/// Is the last component `PID.GENERATION`?
pub(crate) fn is_object_name(path: &Path) -> bool {
    object_name_pid(path).is_some()
}

/// The pid in `PID.GENERATION`.
pub(crate) fn object_name_pid(path: &Path) -> Option<u32> {
    let (pid, generation) = path.file_name()?.to_str()?.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    (digits(pid) && digits(generation) && !generation.is_empty()).then(|| pid.parse().ok())?
}

/// All mappings of a process.
pub(crate) fn maps(pid: u32) -> Result<Vec<Mapping>> {
    let bytes = fs::read(format!("/proc/{pid}/maps")).map_err(|e| Error::proc(pid, "maps", e))?;
    Ok(bytes.split(|&b| b == b'\n').filter_map(Mapping::parse).collect())
}

/// All mappings of a process, with their resident bytes.
pub(crate) fn smaps(pid: u32) -> Result<Vec<Mapping>> {
    let file = File::open(format!("/proc/{pid}/smaps")).map_err(|e| Error::proc(pid, "smaps", e))?;
    let mut out: Vec<Mapping> = Vec::new();
    for line in BufReader::with_capacity(1 << 16, file).split(b'\n') {
        let line = line.map_err(|e| Error::proc(pid, "smaps", e))?;
        if let Some(kib) = line.strip_prefix(b"Rss:") {
            if let Some(last) = out.last_mut() {
                last.rss_bytes = kib_field(kib);
            }
        } else if line.first().is_some_and(|b| !b.is_ascii_uppercase())
            && let Some(mapping) = Mapping::parse(&line)
        {
            out.push(mapping);
        }
    }
    Ok(out)
}

/// `    1234 kB` in bytes.
fn kib_field(field: &[u8]) -> u64 {
    let text = std::str::from_utf8(field).unwrap_or("");
    text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The command name of a process (`comm`), or `?`.
#[must_use]
pub fn process_name(pid: u32) -> String {
    fs::read(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |name| String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// Is there a process of this pid that still has memory (not a zombie)?
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { return false };
    let after_name = stat.iter().rposition(|&b| b == b')').map_or(0, |at| at + 1);
    !matches!(stat[after_name..].trim_ascii_start().first(), Some(b'Z' | b'X') | None)
}

/// The pid of this process in each pid namespace it is in, ours first.
pub(crate) fn namespace_pids(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let pids: Vec<u32> = line.unwrap_or("").split_whitespace().filter_map(|n| n.parse().ok()).collect();
    if pids.is_empty() { vec![pid] } else { pids }
}

/// Every pid in `/proc`.
pub(crate) fn all_pids() -> Vec<u32> {
    let Ok(dir) = fs::read_dir("/proc") else { return Vec::new() };
    let mut pids: Vec<u32> = dir.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

/// Copies memory of a process. Short where its mapping ends: returns the bytes copied.
pub(crate) fn read_memory(pid: u32, addr: u64, out: &mut [u8]) -> io::Result<usize> {
    // One call copies at most MAX_RW_COUNT (2 GiB less a page); smaller pieces keep a partial result useful.
    const PIECE: usize = 64 << 20;
    let mut done = 0;
    while done < out.len() {
        let piece = (out.len() - done).min(PIECE);
        let local = libc::iovec { iov_base: out[done..].as_mut_ptr().cast(), iov_len: piece };
        let from = addr.checked_add(done as u64).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(from as usize), iov_len: piece };
        // SAFETY: the local vector is `piece` bytes of `out`, exclusively ours; the remote one names memory of the
        // other process, which the kernel checks.
        let n = unsafe { libc::process_vm_readv(pid as i32, &local, 1, &remote, 1, 0) };
        match n {
            -1 if done > 0 => break,
            -1 => return Err(io::Error::last_os_error()),
            n => done += n as usize,
        }
        if n < piece as isize {
            break;
        }
    }
    Ok(done)
}

/// Writes a word of a process's memory.
pub(crate) fn write_word(pid: u32, addr: u64, value: u64) -> Result<()> {
    let bytes = value.to_ne_bytes();
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(addr as usize), iov_len: bytes.len() };
    // SAFETY: the local vector is `bytes`, which is only read; the remote one names memory of the other process, which the kernel
    // checks.
    let n = unsafe { libc::process_vm_writev(pid as i32, &local, 1, &remote, 1, 0) };
    if n == bytes.len() as isize {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    match e.raw_os_error() {
        Some(libc::ESRCH) => Err(Error::NoSuchProcess { pid }),
        Some(libc::EPERM | libc::EACCES) => Err(Error::NotPermitted { pid, source: e }),
        _ => Err(Error::io(format!("memory of pid {pid} at {addr:#x}"), e)),
    }
}

/// Copies exactly `out.len()` bytes of a process's memory.
pub(crate) fn read_memory_exact(pid: u32, addr: u64, out: &mut [u8]) -> Result<()> {
    let what = || format!("memory of pid {pid} at {addr:#x}");
    match read_memory(pid, addr, out) {
        Ok(n) if n == out.len() => Ok(()),
        Ok(_) => Err(Error::io(what(), io::Error::from_raw_os_error(libc::EFAULT))),
        Err(e) => match e.raw_os_error() {
            Some(libc::ESRCH) => Err(Error::NoSuchProcess { pid }),
            Some(libc::EPERM | libc::EACCES) => Err(Error::NotPermitted { pid, source: e }),
            _ => Err(Error::io(what(), e)),
        },
    }
}

/// Pages of one state that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageRegion {
    pub(crate) range: Range<u64>,
    /// In memory and counted in `Rss` (which the shared page of zeroes is not).
    pub(crate) resident: bool,
    pub(crate) swapped: bool,
}

/// Which pages of `range` are in memory or in swap; pages that are neither are left out.
pub(crate) fn page_regions(pid: u32, range: Range<u64>, page_bytes: u64) -> Result<Vec<PageRegion>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let file = File::open(format!("/proc/{pid}/pagemap")).map_err(|e| Error::proc(pid, "pagemap", e))?;
    match scan_regions(&file, range.clone()) {
        Ok(regions) => Ok(regions),
        // Before Linux 6.7: page by page, and the shared page of zeroes cannot be told from another.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            read_regions(&file, range, page_bytes).map_err(|e| Error::proc(pid, "pagemap", e))
        }
        Err(e) => Err(Error::proc(pid, "pagemap", e)),
    }
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 3 << 30 | (size_of::<ScanArg>() as u64) << 16 | (b'f' as u64) << 8 | 16;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRegion {
    start: u64,
    end: u64,
    categories: u64,
}

fn scan_regions(file: &File, range: Range<u64>) -> io::Result<Vec<PageRegion>> {
    let mut found = vec![ScanRegion::default(); 4096];
    let mut out = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: 0,
            start,
            end: range.end,
            walk_end: 0,
            vec: found.as_mut_ptr().expose_provenance() as u64,
            vec_len: found.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO,
        };
        // SAFETY: the request takes a `ScanArg` and writes at most `vec_len` regions at `vec`, all ours.
        let n = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &mut arg) };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        out.extend(found.iter().take(n as usize).map(|region| PageRegion {
            range: region.start..region.end,
            resident: region.categories & (PAGE_IS_PRESENT | PAGE_IS_PFNZERO) == PAGE_IS_PRESENT,
            swapped: region.categories & PAGE_IS_SWAPPED != 0,
        }));
        if arg.walk_end <= start {
            break;
        }
        start = arg.walk_end;
    }
    Ok(out)
}

fn read_regions(file: &File, range: Range<u64>, page_bytes: u64) -> io::Result<Vec<PageRegion>> {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    let mut out: Vec<PageRegion> = Vec::new();
    let mut words = vec![0u8; 8 << 16];
    let (mut page, last) = (range.start / page_bytes, range.end.div_ceil(page_bytes));
    while page < last {
        let want = usize::try_from((last - page) * 8).map_or(words.len(), |n| n.min(words.len()));
        let n = file.read_at(&mut words[..want], page * 8)?;
        if n < 8 {
            break;
        }
        for word in words[..n - n % 8].chunks_exact(8) {
            let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
            let start = page * page_bytes;
            page += 1;
            let (resident, swapped) = (word & PRESENT != 0, word & SWAPPED != 0);
            if !resident && !swapped {
                continue;
            }
            match out.last_mut() {
                Some(r) if r.range.end == start && (r.resident, r.swapped) == (resident, swapped) => {
                    r.range.end += page_bytes;
                }
                _ => out.push(PageRegion { range: start..start + page_bytes, resident, swapped }),
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_with_blanks_in_its_path() {
        let line = b"7f00a000-7f00c000 rw-s 00000000 00:1a 4242                       /tmp/a b/77.0 (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.range, 0x7f00_a000..0x7f00_c000);
        assert_eq!((mapping.shared, mapping.inode, mapping.deleted), (true, 4242, true));
        assert_eq!(mapping.path, Path::new("/tmp/a b/77.0"));
        assert!(mapping.is_candidate());
    }

    #[test]
    fn candidates_by_name() {
        let candidate = |path: &str| {
            let line = format!("1000-2000 rw-s 00000000 00:1a 7                       {path}");
            Mapping::parse(line.as_bytes()).unwrap().is_candidate()
        };
        assert!(candidate("/dev/shm/kernmalloc-1000/12.0"));
        assert!(candidate("/memfd:kernmalloc-stats (deleted)"));
        assert!(candidate("/var/tmp/mine/12.3"));
        assert!(!candidate("/usr/lib/libc.so.6"));
        assert!(!candidate("/memfd:pulseaudio (deleted)"));
    }

    #[test]
    fn resident_pages_are_those_that_were_touched() {
        let page = 4096u64;
        let mut map = crate::map::Map::zeroed(64 * page as usize).unwrap();
        let base = map.fill(0, 1).unwrap().as_ptr().addr() as u64;
        map.fill(3 * page, 2 * page).unwrap().fill(1);
        let check = |regions: Vec<PageRegion>| {
            let resident: Vec<_> = regions.into_iter().filter(|r| r.resident).map(|r| r.range).collect();
            assert_eq!(resident, vec![base + 3 * page..base + 5 * page]);
        };
        let pid = std::process::id();
        check(page_regions(pid, base..base + 64 * page, page).unwrap());
        let file = File::open("/proc/self/pagemap").unwrap();
        check(read_regions(&file, base..base + 64 * page, page).unwrap());
        let smaps = smaps(pid).unwrap();
        let ours = smaps.iter().find(|m| m.range.contains(&base)).unwrap();
        assert!(ours.rss_bytes >= 2 * page);
    }
}
