//! What a misuse looks like on paper.

use core::sync::atomic::Ordering;

use abi::type_kind;
use kern::TypeId;
use kern::text::Text;
use platform::{Misuse, MisuseReport};

use crate::port::SYSTEM;
use crate::{object, sites, sys, tunables};

type Page = Text<2048>;

/// Prints the report, keeps it in the statistics object, and ends the process unless told otherwise.
#[cold]
pub(crate) fn misuse(report: &MisuseReport) {
    let mut text = Page::new();
    write_report(report, &mut text);
    sys::write(2, text.as_bytes());
    keep(&text);
    if !tunables::misuse_goes_on() {
        sys::abort();
    }
}

fn write_report(report: &MisuseReport, text: &mut Page) {
    let what: &[u8] = match report.what {
        Misuse::DuplicateFree => b"Duplicate free of ",
        Misuse::InvalidFree => b"Invalid free of ",
        Misuse::UnalignedFree => b"Unaligned free of ",
        Misuse::ForeignFree => b"Invalid free of ",
        Misuse::WrongZone => b"Free to the wrong zone of ",
        Misuse::WrongSize { .. } => b"Free with the wrong size of ",
        Misuse::MaySleep(_) => b"Sleeping allocation where sleeping is not allowed: ",
        Misuse::BadType => b"Malloc type with bad magic at ",
        Misuse::TypeList => b"Malloc type attached twice, or detached without being attached, at ",
        Misuse::BadRequest => b"Request that makes no sense: ",
    };
    text.push(b"kernmalloc: ").push(what);
    if !matches!(report.what, Misuse::MaySleep(_)) {
        text.push_hex(report.addr as u64);
    }
    match report.what {
        Misuse::WrongSize { given, asked: Some(asked) } => {
            text.push(b": ").push_number(given as u64).push(b" given != allocated size ").push_number(asked as u64);
        }
        Misuse::WrongSize { given, asked: None } => {
            text.push(b": ").push_number(given as u64).push(b" given; its own record of the size is overwritten");
        }
        Misuse::MaySleep(held) => {
            text.push(held.as_bytes());
        }
        _ => {}
    }
    if report.what == Misuse::ForeignFree {
        text.push(b": not allocated by kernmalloc");
    } else if report.item == 0 {
        text.push(b": no block is allocated there");
    }
    text.push(b"\n");
    if report.item != 0 {
        text.push(b"  item:         ").push_hex(report.item as u64).push(b", ").push_number(report.item_bytes as u64);
        text.push(b" bytes");
        if report.addr != report.item {
            text.push(b"; the address is ").push_number((report.addr - report.item) as u64).push(b" bytes into it");
        }
        text.push(b"\n");
    }
    if report.zone_name[0] != 0 {
        text.push(b"  zone:         ").push(abi::c_text(&report.zone_name)).push(b"\n");
    }
    if let Some(id) = report.type_index.and_then(|index| TypeId::new(index.into())) {
        text.push(b"  allocated by: ");
        push_type(id, text);
        text.push(b"\n");
    }
    if report.freed_by != 0 {
        let mut known = Page::new();
        if push_code(report.freed_by, &mut known) {
            text.push(b"  first freed:  ").push(known.as_bytes()).push(b"\n");
        }
    }
    if report.caller != 0 {
        text.push(b"  freed now by: ");
        if !push_code(report.caller, text) {
            text.push_hex(report.caller as u64);
        }
        text.push(b"\n");
    }
}

/// `file+offset`.
fn push_code(addr: usize, text: &mut Page) -> bool {
    sites::describe(addr, |path, offset| {
        text.push(file_name(path)).push(b"+").push_hex(offset as u64);
    })
}

fn file_name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').map_or(path, |slash| &path[slash + 1..])
}

fn push_type(id: TypeId, text: &mut Page) {
    let record = SYSTEM.type_record(id);
    match record.kind {
        type_kind::SITE => {
            // SAFETY: a type names a library that was counted.
            let lib = unsafe { &*SYSTEM.lib_record(record.lib as usize) };
            text.push(file_name(abi::c_text(&lib.path))).push(b"+").push_hex(record.offset);
        }
        type_kind::LIB_OVERFLOW | type_kind::LIBRARY => {
            // SAFETY: as above.
            let lib = unsafe { &*SYSTEM.lib_record(record.lib as usize) };
            text.push(file_name(abi::c_text(&lib.path)));
        }
        _ => {
            text.push(abi::c_text(&record.name));
        }
    }
}

/// The first report stays in the statistics object, for whoever started the program.
fn keep(text: &Page) {
    let header = object::header();
    if header.is_null() {
        return;
    }
    // SAFETY: mapped for good; the length is claimed by whoever reports first and nobody else writes the text.
    unsafe {
        if (*header).report_len.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let bytes = text.as_bytes();
        let len = bytes.len().min(2047);
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut (*header).report).cast::<u8>(), len);
        (*header).report_len.store(len as u32, Ordering::Release);
    }
}
