//! System calls, straight: an allocator cannot pass through a libc that may allocate, lock or be interposed, nor set
//! `errno` behind a program's back.

use core::ffi::c_void;
use core::sync::atomic::{AtomicPtr, Ordering};

#[cfg(target_arch = "x86_64")]
mod nr {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const LSEEK: usize = 8;
    pub(super) const MMAP: usize = 9;
    pub(super) const MPROTECT: usize = 10;
    pub(super) const MUNMAP: usize = 11;
    pub(super) const SCHED_YIELD: usize = 24;
    pub(super) const MREMAP: usize = 25;
    pub(super) const MADVISE: usize = 28;
    pub(super) const GETPID: usize = 39;
    pub(super) const KILL: usize = 62;
    pub(super) const FTRUNCATE: usize = 77;
    pub(super) const SYSINFO: usize = 99;
    pub(super) const GETUID: usize = 102;
    pub(super) const GETPPID: usize = 110;
    pub(super) const FSTATFS: usize = 138;
    pub(super) const GETTID: usize = 186;
    pub(super) const FUTEX: usize = 202;
    pub(super) const CLOCK_GETTIME: usize = 228;
    pub(super) const TGKILL: usize = 234;
    pub(super) const OPENAT: usize = 257;
    pub(super) const MKDIRAT: usize = 258;
    pub(super) const UNLINKAT: usize = 263;
    pub(super) const READLINKAT: usize = 267;
    pub(super) const GETRANDOM: usize = 318;
    pub(super) const MEMFD_CREATE: usize = 319;
    pub(super) const MEMBARRIER: usize = 324;
    pub(super) const PRLIMIT64: usize = 302;
    pub(super) const STATX: usize = 332;
}
#[cfg(target_arch = "aarch64")]
mod nr {
    pub(super) const READ: usize = 63;
    pub(super) const WRITE: usize = 64;
    pub(super) const CLOSE: usize = 57;
    pub(super) const LSEEK: usize = 62;
    pub(super) const MMAP: usize = 222;
    pub(super) const MPROTECT: usize = 226;
    pub(super) const MUNMAP: usize = 215;
    pub(super) const SCHED_YIELD: usize = 124;
    pub(super) const MREMAP: usize = 216;
    pub(super) const MADVISE: usize = 233;
    pub(super) const GETPID: usize = 172;
    pub(super) const KILL: usize = 129;
    pub(super) const FTRUNCATE: usize = 46;
    pub(super) const SYSINFO: usize = 179;
    pub(super) const GETUID: usize = 174;
    pub(super) const GETPPID: usize = 173;
    pub(super) const FSTATFS: usize = 44;
    pub(super) const GETTID: usize = 178;
    pub(super) const FUTEX: usize = 98;
    pub(super) const CLOCK_GETTIME: usize = 113;
    pub(super) const TGKILL: usize = 131;
    pub(super) const OPENAT: usize = 56;
    pub(super) const MKDIRAT: usize = 34;
    pub(super) const UNLINKAT: usize = 35;
    pub(super) const READLINKAT: usize = 78;
    pub(super) const GETRANDOM: usize = 278;
    pub(super) const MEMFD_CREATE: usize = 279;
    pub(super) const MEMBARRIER: usize = 283;
    pub(super) const PRLIMIT64: usize = 261;
    pub(super) const STATX: usize = 291;
}

/// The kernel's answer: a value, or a negative error number.
///
/// # Safety
/// 1. The arguments are what the call demands; memory they name is valid for it.
#[inline(always)]
unsafe fn syscall(nr: usize, args: [usize; 6]) -> isize {
    let ret: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: 1.; the kernel clobbers rcx and r11 only.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") nr as isize => ret, in("rdi") args[0], in("rsi") args[1],
            in("rdx") args[2], in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: 1.
    unsafe {
        core::arch::asm!("svc 0", in("x8") nr, inlateout("x0") args[0] as isize => ret, in("x1") args[1],
            in("x2") args[2], in("x3") args[3], in("x4") args[4], in("x5") args[5], options(nostack));
    }
    ret
}

macro_rules! call {
    ($nr:ident $(, $arg:expr)*) => {{
        let args: &[usize] = &[$($arg as usize),*];
        let mut all = [0usize; 6];
        all[..args.len()].copy_from_slice(args);
        syscall(nr::$nr, all)
    }};
}

pub(crate) const EEXIST: isize = -17;

fn ok(ret: isize) -> Option<usize> {
    if ret < 0 { None } else { Some(ret as usize) }
}

const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
const MAP_ANONYMOUS: usize = 0x20;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;

/// What came of asking for pages at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mapped {
    Here,
    /// Something else is mapped there.
    Occupied,
    /// There is no memory, or a limit is reached.
    Refused,
}

/// Maps fresh zero pages at exactly `addr`, where nothing may be mapped yet.
pub(crate) fn map_at(addr: usize, bytes: usize) -> Mapped {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    // SAFETY: 1. replaces nothing.
    let got = unsafe { call!(MMAP, addr, bytes, PROT_READ_WRITE, flags, usize::MAX, 0usize) };
    match got {
        EEXIST => Mapped::Occupied,
        ..0 => Mapped::Refused,
        _ if got as usize == addr => Mapped::Here,
        _ => {
            // A kernel before 4.17 takes the address for a hint.
            // SAFETY: 1. what the call above mapped.
            unsafe { call!(MUNMAP, got, bytes) };
            Mapped::Occupied
        }
    }
}

/// Maps fresh zero pages anywhere.
pub(crate) fn map_anywhere(bytes: usize) -> Option<usize> {
    // SAFETY: 1. replaces nothing.
    ok(unsafe { call!(MMAP, 0usize, bytes, PROT_READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, usize::MAX, 0usize) })
}

/// Maps a file shared, at `at` in place of what is there, or anywhere when 0.
///
/// # Safety
/// 1. What is mapped at `at` is the caller's to replace.
pub(crate) unsafe fn map_file(fd: i32, bytes: usize, at: usize) -> Option<usize> {
    let flags = MAP_SHARED | if at == 0 { 0 } else { MAP_FIXED };
    // SAFETY: 1.
    ok(unsafe { call!(MMAP, at, bytes, PROT_READ_WRITE, flags, fd as isize, 0usize) })
}

/// # Safety
/// 1. The mapping is the caller's and not used any more.
pub(crate) unsafe fn unmap(addr: usize, bytes: usize) {
    // SAFETY: 1.
    unsafe { call!(MUNMAP, addr, bytes) };
}

/// Drops the memory behind private pages; they read as zero.
///
/// # Safety
/// 1. The pages are the caller's, contents not needed.
pub(crate) unsafe fn discard(addr: usize, bytes: usize) -> bool {
    const MADV_DONTNEED: usize = 4;
    // SAFETY: 1.
    unsafe { call!(MADVISE, addr, bytes, MADV_DONTNEED) == 0 }
}

/// Makes pages executable, or makes them data again.
///
/// # Safety
/// 1. The pages are the caller's.
pub(crate) unsafe fn protect(addr: usize, bytes: usize, executable: bool) -> bool {
    const PROT_EXEC: usize = 4;
    let prot = PROT_READ_WRITE | if executable { PROT_EXEC } else { 0 };
    // SAFETY: 1. they stay readable and writable.
    unsafe { call!(MPROTECT, addr, bytes, prot) == 0 }
}

/// Leaves pages out of a core, or takes them in again.
pub(crate) fn dump(addr: usize, bytes: usize, dumped: bool) -> bool {
    const MADV_DONTDUMP: usize = 16;
    const MADV_DODUMP: usize = 17;
    let advice = if dumped { MADV_DODUMP } else { MADV_DONTDUMP };
    // SAFETY: 1. changes what is in a core only.
    unsafe { call!(MADVISE, addr, bytes, advice) == 0 }
}

/// A fork child finds these pages zeroed.
pub(crate) fn wipe_on_fork(addr: usize, bytes: usize) -> bool {
    const MADV_WIPEONFORK: usize = 18;
    // SAFETY: 1. changes what a child sees only.
    unsafe { call!(MADVISE, addr, bytes, MADV_WIPEONFORK) == 0 }
}

/// Moves the pages behind `from` to `to`, leaving `from` mapped and zero (Linux 5.7).
///
/// # Safety
/// 1. Both ranges are the caller's; what is at `to` is replaced.
pub(crate) unsafe fn move_pages(from: usize, to: usize, bytes: usize) -> bool {
    const MREMAP_MAYMOVE_FIXED_DONTUNMAP: usize = 7;
    // SAFETY: 1.
    unsafe { call!(MREMAP, from, bytes, bytes, MREMAP_MAYMOVE_FIXED_DONTUNMAP, to) == to as isize }
}

const FUTEX_PRIVATE: usize = 128;

pub(crate) fn futex_wait(word: &core::sync::atomic::AtomicU32, seen: u32) {
    // SAFETY: 1. the word lives as long as the borrow.
    unsafe { call!(FUTEX, word.as_ptr(), FUTEX_PRIVATE, seen, 0usize) };
}

pub(crate) fn futex_wake(word: &core::sync::atomic::AtomicU32, most: usize) {
    // SAFETY: as above.
    unsafe { call!(FUTEX, word.as_ptr(), 1 | FUTEX_PRIVATE, most) };
}

pub(crate) fn yield_cpu() {
    // SAFETY: 1. no arguments.
    unsafe { call!(SCHED_YIELD) };
}

pub(crate) fn membarrier_register_rseq() -> bool {
    // SAFETY: 1. no memory.
    unsafe { call!(MEMBARRIER, 1usize << 8, 0usize, 0usize) == 0 }
}

/// Restarts every restartable sequence of this process that is under way on any CPU.
pub(crate) fn membarrier_rseq() -> bool {
    // SAFETY: as above.
    unsafe { call!(MEMBARRIER, 1usize << 7, 0usize, 0usize) == 0 }
}

pub(crate) fn getpid() -> u32 {
    // SAFETY: 1. no arguments.
    unsafe { call!(GETPID) as u32 }
}

pub(crate) fn gettid() -> u32 {
    // SAFETY: as above.
    unsafe { call!(GETTID) as u32 }
}

pub(crate) fn getppid() -> u32 {
    // SAFETY: as above.
    unsafe { call!(GETPPID) as u32 }
}

pub(crate) fn getuid() -> u32 {
    // SAFETY: as above.
    unsafe { call!(GETUID) as u32 }
}

const AT_FDCWD: isize = -100;
pub(crate) const O_RDONLY: usize = 0;
pub(crate) const O_RDWR_CREATE_NEW: usize = 0o2 | 0o100 | 0o200 | 0o400_000;
const O_CLOEXEC: usize = 0o2_000_000;

/// Opens the file of a NUL-terminated path. The error number is negative.
pub(crate) fn open(path: &[u8], flags: usize) -> Result<i32, isize> {
    debug_assert!(path.ends_with(&[0]));
    // SAFETY: 1. the path ends with a NUL.
    let fd = unsafe { call!(OPENAT, AT_FDCWD, path.as_ptr(), flags | O_CLOEXEC, 0o600usize) };
    if fd < 0 { Err(fd) } else { Ok(fd as i32) }
}

pub(crate) fn close(fd: i32) {
    // SAFETY: 1. no memory.
    unsafe { call!(CLOSE, fd as isize) };
}

pub(crate) fn read(fd: i32, into: &mut [u8]) -> Option<usize> {
    // SAFETY: 1. the slice is writable.
    ok(unsafe { call!(READ, fd as isize, into.as_mut_ptr(), into.len()) })
}

pub(crate) fn seek(fd: i32, offset: u64) -> bool {
    // SAFETY: 1. no memory.
    unsafe { call!(LSEEK, fd as isize, offset, 0usize) >= 0 }
}

pub(crate) fn write(fd: i32, text: &[u8]) -> Option<usize> {
    // SAFETY: 1. the slice is readable.
    ok(unsafe { call!(WRITE, fd as isize, text.as_ptr(), text.len()) })
}

pub(crate) fn make_dir(path: &[u8]) -> isize {
    // SAFETY: 1. the path ends with a NUL.
    unsafe { call!(MKDIRAT, AT_FDCWD, path.as_ptr(), 0o700usize) }
}

pub(crate) fn unlink(path: &[u8]) {
    // SAFETY: 1. the path ends with a NUL.
    unsafe { call!(UNLINKAT, AT_FDCWD, path.as_ptr(), 0usize) };
}

pub(crate) fn read_link(path: &[u8], into: &mut [u8]) -> usize {
    // SAFETY: 1. the path ends with a NUL; the slice is writable.
    ok(unsafe { call!(READLINKAT, AT_FDCWD, path.as_ptr(), into.as_mut_ptr(), into.len()) }).unwrap_or(0)
}

pub(crate) fn memfd(name: &[u8]) -> Option<i32> {
    // SAFETY: 1. the name ends with a NUL.
    ok(unsafe { call!(MEMFD_CREATE, name.as_ptr(), 1usize) }).map(|fd| fd as i32)
}

pub(crate) fn truncate(fd: i32, bytes: usize) -> bool {
    // SAFETY: 1. no memory.
    unsafe { call!(FTRUNCATE, fd as isize, bytes) == 0 }
}

/// Bytes free in the file system of an open file.
pub(crate) fn free_bytes(fd: i32) -> Option<u64> {
    // struct statfs: f_type, f_bsize, f_blocks, f_bfree, f_bavail, ...; 120 bytes.
    let mut statfs = [0u64; 16];
    // SAFETY: 1. the buffer is larger than the structure.
    ok(unsafe { call!(FSTATFS, fd as isize, statfs.as_mut_ptr()) })?;
    Some(statfs[4].saturating_mul(statfs[1]))
}

/// Owner and mode of the file itself, also when it is a link.
pub(crate) fn owner_and_mode(path: &[u8]) -> Option<(u32, u32)> {
    const AT_SYMLINK_NOFOLLOW: usize = 0x100;
    // struct statx: stx_uid at 20, stx_mode (16 bits) at 28; 256 bytes.
    let mut statx = [0u32; 64];
    // SAFETY: 1. the path ends with a NUL; the buffer is as large as the structure.
    ok(unsafe { call!(STATX, AT_FDCWD, path.as_ptr(), AT_SYMLINK_NOFOLLOW, 0x7ffusize, statx.as_mut_ptr()) })?;
    Some((statx[5], statx[7] & 0xffff))
}

pub(crate) fn random() -> u64 {
    let mut out = 0u64;
    // SAFETY: 1. eight writable bytes.
    unsafe { call!(GETRANDOM, &raw mut out, 8usize, 1usize) };
    out
}

/// The kernel's clock_gettime(2) that runs in user mode (vdso(7)), a tenth of the price; null where there is none.
static USER_CLOCK: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// # Safety
/// 1. `function` is the address of a clock_gettime that stays.
pub(crate) unsafe fn set_user_clock(function: usize) {
    USER_CLOCK.store(function as *mut c_void, Ordering::Relaxed);
}

fn clock_ns(id: usize) -> u64 {
    type Clock = unsafe extern "C" fn(i32, *mut u64) -> i32;
    let mut time = [0u64; 2];
    let user = USER_CLOCK.load(Ordering::Relaxed);
    // SAFETY: 1. of `set_user_clock`; a timespec is two words.
    unsafe {
        let done =
            !user.is_null() && core::mem::transmute::<*mut c_void, Clock>(user)(id as i32, time.as_mut_ptr()) == 0;
        if !done {
            call!(CLOCK_GETTIME, id, time.as_mut_ptr());
        }
    }
    time[0].wrapping_mul(1_000_000_000).wrapping_add(time[1])
}

pub(crate) fn realtime_ns() -> u64 {
    clock_ns(0)
}

pub(crate) fn monotonic_ns() -> u64 {
    clock_ns(1)
}

/// Memory of the machine, bytes; 0 where the system does not say.
pub(crate) fn physical_bytes() -> u64 {
    /// `struct sysinfo` of sysinfo(2), as far as it is of use.
    #[repr(C)]
    struct Info {
        _uptime_and_loads: [u64; 4],
        total: u64,
        _free_shared_buffers_swaps: [u64; 5],
        _processes: u64,
        _high: [u64; 2],
        unit_bytes: u32,
        _room: [u8; 64],
    }
    // SAFETY: zeros are a valid one.
    let mut info: Info = unsafe { core::mem::zeroed() };
    // SAFETY: 1. the call writes one `struct sysinfo`, of 112 bytes.
    let ret = unsafe { call!(SYSINFO, &raw mut info) };
    if ret < 0 { 0 } else { info.total.saturating_mul(u64::from(info.unit_bytes.max(1))) }
}

/// Ends the process by SIGABRT, as abort(3) does, without its locks.
pub(crate) fn abort() -> ! {
    // SAFETY: 1. no memory.
    unsafe {
        let tid = call!(GETTID);
        call!(TGKILL, getpid(), tid, 6usize);
        // A handler returned, or SIGABRT is blocked.
        call!(KILL, getpid(), 9usize);
    }
    loop {
        yield_cpu();
    }
}

fn soft_limit(resource: usize) -> Option<u64> {
    let mut limit = [0u64; 2];
    // SAFETY: 1. a rlimit64 is two words.
    ok(unsafe { call!(PRLIMIT64, 0usize, resource, 0usize, limit.as_mut_ptr()) })?;
    (limit[0] != u64::MAX).then_some(limit[0])
}

/// The limit on address space (`ulimit -v`), if there is one, bytes.
pub(crate) fn address_space_limit() -> Option<u64> {
    soft_limit(9)
}

/// The limit on the size of files (`ulimit -f`), if there is one, bytes. Past it truncate(2) raises a signal.
pub(crate) fn file_size_limit() -> Option<u64> {
    soft_limit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_of_user_mode_tells_the_kernels_time() {
        USER_CLOCK.store(core::ptr::null_mut(), Ordering::Relaxed);
        let before = monotonic_ns();
        let vdso = crate::tunables::vdso_base();
        crate::elf::find_user_clock(vdso);
        let has = !USER_CLOCK.load(Ordering::Relaxed).is_null();
        assert_eq!(has, vdso != 0, "every kernel that has an image has a clock in it");
        let between = monotonic_ns();
        USER_CLOCK.store(core::ptr::null_mut(), Ordering::Relaxed);
        let after = monotonic_ns();
        assert!(before > 0 && before <= between && between <= after, "{before} {between} {after}");
    }
}
