//! What glibc tells of its heap, told of ours: mallinfo(3), mallopt(3), malloc_info(3), malloc_stats(3), malloc_trim(3).

use core::ffi::c_void;

use hosted::SYSTEM;
use kern::text::Text;

/// `struct mallinfo2`, bytes and counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mallinfo2 {
    /// The heap, without large blocks.
    pub arena: usize,
    /// Free blocks.
    pub ordblks: usize,
    /// 0: fastbins are glibc's.
    pub smblks: usize,
    /// Large blocks' number: not counted apart, 0.
    pub hblks: usize,
    /// Bytes in large blocks.
    pub hblkhd: usize,
    /// 0, as in glibc.
    pub usmblks: usize,
    /// 0: fastbins are glibc's.
    pub fsmblks: usize,
    /// Bytes in use.
    pub uordblks: usize,
    /// Bytes free.
    pub fordblks: usize,
    /// Bytes that malloc_trim would give back at least.
    pub keepcost: usize,
}

/// `struct mallinfo`: the same, cut to `int`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Mallinfo {
    fields: [i32; 10],
}

fn gather() -> Mallinfo2 {
    if !SYSTEM.is_booted() {
        return Mallinfo2::default();
    }
    let account = SYSTEM.account();
    Mallinfo2 {
        arena: account.heap_bytes - account.large_bytes,
        ordblks: account.free_items,
        hblkhd: account.large_bytes,
        uordblks: account.in_use_bytes.saturating_sub(account.large_bytes),
        fordblks: (account.heap_bytes - account.large_bytes)
            .saturating_sub(account.in_use_bytes.saturating_sub(account.large_bytes)),
        keepcost: account.dirty_bytes,
        ..Mallinfo2::default()
    }
}

/// mallinfo2(3).
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub extern "C" fn mallinfo2() -> Mallinfo2 {
    gather()
}

/// mallinfo(3).
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub extern "C" fn mallinfo() -> Mallinfo {
    let all = gather();
    let cut = |n: usize| n as i32;
    Mallinfo {
        fields: [
            cut(all.arena),
            cut(all.ordblks),
            0,
            0,
            cut(all.hblkhd),
            0,
            0,
            cut(all.uordblks),
            cut(all.fordblks),
            cut(all.keepcost),
        ],
    }
}

/// mallopt(3): the parameters are of glibc's heap; each is accepted and changes nothing. Unknown ones are refused.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub extern "C" fn mallopt(parameter: i32, _value: i32) -> i32 {
    i32::from((-8..=1).contains(&parameter) && parameter != 0)
}

/// malloc_trim(3): gives free memory back to the system, that of zones as well. 1 when some went back.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub extern "C" fn malloc_trim(_keep: usize) -> i32 {
    i32::from(SYSTEM.trim())
}

fn line(text: &mut Text<1024>, before: &[u8], n: usize, after: &[u8]) {
    text.push(before).push_number(n as u64).push(after);
}

/// malloc_stats(3): a summary on stderr, in glibc's words.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub extern "C" fn malloc_stats() {
    let all = gather();
    let mut text = Text::<1024>::new();
    text.push(b"Arena 0:\n");
    line(&mut text, b"system bytes     = ", all.arena, b"\n");
    line(&mut text, b"in use bytes     = ", all.uordblks, b"\n");
    text.push(b"Total (incl. mmap):\n");
    line(&mut text, b"system bytes     = ", all.arena + all.hblkhd, b"\n");
    line(&mut text, b"in use bytes     = ", all.uordblks + all.hblkhd, b"\n");
    hosted::write_stderr(text.as_bytes());
}

unsafe extern "C" {
    fn fwrite(from: *const c_void, bytes: usize, count: usize, stream: *mut c_void) -> usize;
}

/// malloc_info(3): XML on a stdio stream. Options other than 0 are EINVAL.
///
/// # Safety
/// 1. `stream` is an open stream.
#[cfg_attr(panic = "abort", unsafe(no_mangle))]
pub unsafe extern "C" fn malloc_info(options: i32, stream: *mut c_void) -> i32 {
    const EINVAL: i32 = 22;
    if options != 0 {
        return EINVAL;
    }
    let all = gather();
    let mut text = Text::<1024>::new();
    text.push(b"<malloc version=\"1\">\n<heap nr=\"0\">\n");
    line(&mut text, b"<total type=\"rest\" count=\"", all.ordblks, b"\" ");
    line(&mut text, b"size=\"", all.fordblks, b"\"/>\n");
    line(&mut text, b"<system type=\"current\" size=\"", all.arena, b"\"/>\n</heap>\n");
    line(&mut text, b"<total type=\"mmap\" size=\"", all.hblkhd, b"\"/>\n");
    line(&mut text, b"<system type=\"current\" size=\"", all.arena + all.hblkhd, b"\"/>\n</malloc>\n");
    let bytes = text.as_bytes();
    // SAFETY: 1.
    unsafe { fwrite(bytes.as_ptr().cast::<c_void>(), 1, bytes.len(), stream) };
    0
}
