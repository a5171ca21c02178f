//! Which file the code at an address comes from: the executable mappings of `/proc/self/maps`, read again whenever an
//! address is not among those known. Nothing here calls the loader, so it works inside constructors, in `dlopen` and
//! before `main`; all of it runs under the lock of [`crate::sites`].

use core::sync::atomic::Ordering;

use abi::{LibRecord, lib_flag};
use kern::TypeId;

use crate::elf::{self, Image};
use crate::port::{MAX_LIBS, SYSTEM};
use crate::{sys, wrappers};

/// One executable mapping.
#[derive(Clone, Copy)]
pub(crate) struct Module {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Read when code of the module is first seen to run, see [`Modules::read_image`]. None before that, for generated code,
    /// and for files that are not ELF.
    pub(crate) image: Option<Image>,
    inode: u64,
    /// Where the file's first page was mapped.
    base: usize,
    /// Its record; `None` until something was credited to it.
    pub(crate) lib: Option<u32>,
    /// Whether the record was there before this mapping: its call sites may be known by offset.
    pub(crate) seen_before: bool,
    /// Index of its wrappers in the pool.
    wrappers: (u32, u32),
    /// What its calls are credited to when there is no room for their sites.
    pub(crate) overflow: Option<TypeId>,
    pub(crate) live: bool,
    path: [u8; 256],
}

/// Address ranges of wrapper functions, of all modules.
const WRAPPER_POOL: usize = 64 * 1024;
const MAPS_BUFFER: usize = 8 * 1024;

/// What is known; memory of its own, since the number of modules has no bound that a static could have.
pub(crate) struct Modules {
    table: *mut Module,
    count: usize,
    pool: *mut (usize, usize),
    pool_used: usize,
    buffer: *mut u8,
}

// SAFETY: behind the lock of `sites`.
unsafe impl Send for Modules {}

const _: () = assert!(MAX_LIBS >= 1024);
/// Mappings remembered, dead ones included (they are reused).
const MAX_MODULES: usize = 2 * MAX_LIBS;

impl Modules {
    pub(crate) const fn new() -> Self {
        Self {
            table: core::ptr::null_mut(),
            count: 0,
            pool: core::ptr::null_mut(),
            pool_used: 0,
            buffer: core::ptr::null_mut(),
        }
    }

    fn ensure_memory(&mut self) -> Option<()> {
        if !self.table.is_null() {
            return Some(());
        }
        let table_bytes = MAX_MODULES * size_of::<Module>();
        let pool_bytes = WRAPPER_POOL * size_of::<(usize, usize)>();
        let memory = sys::map_anywhere(table_bytes + pool_bytes + MAPS_BUFFER)?;
        self.table = memory as *mut Module;
        self.pool = (memory + table_bytes) as *mut (usize, usize);
        self.buffer = (memory + table_bytes + pool_bytes) as *mut u8;
        Some(())
    }

    pub(crate) fn all(&mut self) -> &mut [Module] {
        if self.table.is_null() {
            return &mut [];
        }
        // SAFETY: the first `count` were written; we are borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.table, self.count) }
    }

    /// Index of the module whose code contains `addr`.
    pub(crate) fn find(&mut self, addr: usize) -> Option<usize> {
        self.ensure_memory()?;
        let known = |this: &mut Self| {
            this.all().iter().position(|module| module.live && addr >= module.start && addr < module.end)
        };
        known(self).or_else(|| {
            self.refresh();
            known(self)
        })
    }

    /// Reads the mappings anew: adds what is new and marks dead what is gone.
    pub(crate) fn refresh(&mut self) {
        if self.ensure_memory().is_none() {
            return;
        }
        let Ok(fd) = sys::open(b"/proc/self/maps\0", sys::O_RDONLY) else { return };
        for module in self.all() {
            module.live = false;
        }
        // SAFETY: our own memory of that size, used by nobody else meanwhile.
        let buffer = unsafe { core::slice::from_raw_parts_mut(self.buffer, MAPS_BUFFER) };
        let mut filled = 0;
        // The file whose mappings are being listed: inode and where its first page is.
        let mut file = (0u64, 0usize);
        while let Some(got) = sys::read(fd, &mut buffer[filled..]) {
            let end = filled + got;
            let mut from = 0;
            while let Some(len) = buffer[from..end].iter().position(|&byte| byte == b'\n') {
                if let Some(line) = parse(&buffer[from..from + len]) {
                    self.visit(&line, &mut file);
                }
                from += len + 1;
            }
            // A line longer than the buffer (a path of kilobytes) is dropped.
            filled = if from == 0 && end == buffer.len() { 0 } else { end - from };
            buffer.copy_within(end - filled..end, 0);
            if got == 0 {
                break;
            }
        }
        sys::close(fd);
        for index in 0..self.count {
            let module = self.all()[index];
            if let (false, Some(lib)) = (module.live, module.lib) {
                let elsewhere = self.all().iter().any(|other| other.live && other.lib == Some(lib));
                if !elsewhere {
                    // SAFETY: a record that was counted; flags are atomic.
                    let flags = unsafe { &(*SYSTEM.lib_record(lib as usize)).flags };
                    flags.fetch_or(lib_flag::UNLOADED, Ordering::Relaxed);
                }
            }
        }
    }

    fn visit(&mut self, line: &Line<'_>, file: &mut (u64, usize)) {
        if line.inode != file.0 || line.inode == 0 || line.offset == 0 {
            *file = (line.inode, if line.offset == 0 { line.start } else { 0 });
        }
        if !line.executable {
            return;
        }
        let same = |module: &&mut Module| {
            module.start == line.start
                && module.inode == line.inode
                && module.base == file.1
                && abi::c_text(&module.path) == &line.path[..line.path.len().min(255)]
        };
        if let Some(known) = self.all().iter_mut().find(same) {
            known.end = line.end;
            known.live = true;
            return;
        }
        let mut module = Module {
            start: line.start,
            end: line.end,
            image: None,
            inode: line.inode,
            base: file.1,
            lib: None,
            seen_before: false,
            wrappers: (0, 0),
            overflow: None,
            live: true,
            path: [0; 256],
        };
        let len = line.path.len().min(255);
        module.path[..len].copy_from_slice(&line.path[..len]);
        let free = self.all().iter().position(|module| !module.live && module.lib.is_none());
        let index = free.unwrap_or(self.count);
        if index >= MAX_MODULES {
            return;
        }
        // SAFETY: below the table's size.
        unsafe { self.table.add(index).write(module) };
        self.count = self.count.max(index + 1);
    }

    /// Reads the headers of a module that must be loaded, since its code is running. Of any other the list may be out of date:
    /// another thread may unmap it at this moment.
    fn read_image(&mut self, index: usize) {
        let module = &mut self.all()[index];
        if module.image.is_none() && module.inode != 0 && module.base != 0 {
            // SAFETY: the mapping at the base is the file's first page, readable as all of a loaded file's are, and the
            // caller's code is of this file; memory of other kinds has no inode.
            module.image = unsafe { Image::at(module.base) };
        }
    }

    /// The library record of a module whose code is running, made at its first credit; `None` when there is no room for another library.
    pub(crate) fn lib_of(&mut self, index: usize) -> Option<u32> {
        self.read_image(index);
        let module = self.all()[index];
        if module.lib.is_some() {
            return module.lib;
        }
        let header = SYSTEM.header();
        let used = header.libs.used.load(Ordering::Relaxed) as usize;
        let path = if module.image.is_some() { abi::c_text(&module.path) } else { b"[anonymous]" };
        let build_id = module.image.and_then(|image| image.build_id()).unwrap_or(b"");
        let known = (0..used).find(|&lib| {
            // SAFETY: a record that was counted.
            let record = unsafe { &*SYSTEM.lib_record(lib) };
            abi::c_text(&record.path) == path && &record.build_id[..record.build_id_len as usize] == build_id
        });
        let lib = match known {
            Some(lib) => {
                // SAFETY: as above; atomics.
                let record = unsafe { &*SYSTEM.lib_record(lib) };
                record.flags.fetch_and(!lib_flag::UNLOADED, Ordering::Relaxed);
                record.bias.store(module.image.map_or(0, |image| image.bias) as u64, Ordering::Relaxed);
                lib
            }
            None => {
                if used as u64 >= header.libs.capacity {
                    return None;
                }
                // SAFETY: a record not counted yet, under the lock.
                unsafe { write_lib(SYSTEM.lib_record(used), path, build_id, &module, &header.exe) };
                header.libs.used.store(used as u64 + 1, Ordering::Release);
                used
            }
        };
        self.find_wrappers(index);
        let module = &mut self.all()[index];
        module.seen_before = known.is_some();
        module.lib = Some(lib as u32);
        module.lib
    }

    /// Collects where the wrapper functions of a module lie.
    fn find_wrappers(&mut self, index: usize) {
        let module = self.all()[index];
        let Some(image) = module.image else { return };
        let first = self.pool_used;
        for name in wrappers::NAMES {
            if let Some(range) = image.function(name) {
                self.add_wrapper(range);
            }
        }
        wrappers::string_members(|name| image.function(name).map(|range| self.add_wrapper(range)).is_some());
        let path = module.path;
        // SAFETY: our own memory of that size, used by nobody else meanwhile.
        let buffer = unsafe { core::slice::from_raw_parts_mut(self.buffer, MAPS_BUFFER) };
        elf::local_functions(abi::c_text(&path), buffer, wrappers::match_symbol, |start, end| {
            self.add_wrapper((image.bias.wrapping_add(start as usize), image.bias.wrapping_add(end as usize)));
        });
        let last = self.pool_used;
        // SAFETY: the pool's first `pool_used` entries were written, and these are this module's.
        unsafe { core::slice::from_raw_parts_mut(self.pool.add(first), last - first) }.sort_unstable();
        self.all()[index].wrappers = (first as u32, last as u32);
    }

    fn add_wrapper(&mut self, range: (usize, usize)) {
        if self.pool_used < WRAPPER_POOL {
            // SAFETY: below the pool's size.
            unsafe { self.pool.add(self.pool_used).write(range) };
            self.pool_used += 1;
        }
    }

    /// Whether the call that returns to `addr` is made by a wrapper of this module.
    pub(crate) fn in_wrapper(&mut self, index: usize, addr: usize) -> bool {
        let (first, last) = self.all()[index].wrappers;
        // SAFETY: the pool's first `pool_used` entries were written.
        let pool = unsafe { core::slice::from_raw_parts(self.pool, self.pool_used) };
        // Sorted, and functions do not overlap (but several names may be one function's).
        let ranges = &pool[first as usize..last as usize];
        let behind = ranges.partition_point(|&(start, _)| start < addr);
        behind > 0 && addr <= ranges[behind - 1].1
    }

    /// File name of the module that contains `addr` and the offset there, without looking for new mappings.
    pub(crate) fn describe(&mut self, addr: usize) -> Option<(&[u8], usize)> {
        let found = |module: &Module| module.live && addr >= module.start && addr < module.end;
        let index = self.all().iter().position(found)?;
        self.read_image(index);
        let module = &self.all()[index];
        let bias = module.image.map_or(0, |image| image.bias);
        Some((abi::c_text(&module.path), addr.wrapping_sub(bias)))
    }
}

/// # Safety
/// 1. `record` is not counted yet and only we write to it.
unsafe fn write_lib(record: *mut LibRecord, path: &[u8], build_id: &[u8], module: &Module, exe: &[u8]) {
    // SAFETY: 1.; zeros are a valid record.
    let record = unsafe { &mut *record };
    record.path[..path.len().min(255)].copy_from_slice(&path[..path.len().min(255)]);
    record.build_id[..build_id.len()].copy_from_slice(build_id);
    record.build_id_len = build_id.len() as u32;
    record.bias.store(module.image.map_or(0, |image| image.bias) as u64, Ordering::Relaxed);
    let main = if path == abi::c_text(exe) { lib_flag::MAIN } else { 0 };
    let anonymous = if module.image.is_none() { lib_flag::ANONYMOUS } else { 0 };
    record.flags.store(main | anonymous, Ordering::Relaxed);
}

/// A line of the maps file.
struct Line<'a> {
    start: usize,
    end: usize,
    executable: bool,
    offset: u64,
    inode: u64,
    path: &'a [u8],
}

fn hex(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |sum, &byte| Some(sum << 4 | u64::from((byte as char).to_digit(16)?)))
}

/// `start-end perms offset device inode path`.
fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let range = fields.next()?;
    let dash = range.iter().position(|&byte| byte == b'-')?;
    let permissions = fields.next()?;
    let offset = hex(fields.next()?)?;
    fields.next()?;
    let inode = fields
        .next()?
        .iter()
        .try_fold(0u64, |sum, &digit| sum.checked_mul(10)?.checked_add(digit.checked_sub(b'0')?.into()))?;
    let rest = fields.next().unwrap_or(b"");
    let path = &rest[rest.iter().position(|&byte| byte != b' ').unwrap_or(rest.len())..];
    Some(Line {
        start: hex(&range[..dash])? as usize,
        end: hex(&range[dash + 1..])? as usize,
        executable: permissions.get(2) == Some(&b'x'),
        offset,
        inode,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps() {
        let line =
            parse(b"7f10a000-7f10b000 r-xp 00001000 08:01 1234                       /usr/lib/lib x.so").unwrap();
        assert_eq!((line.start, line.end, line.executable), (0x7f10_a000, 0x7f10_b000, true));
        assert_eq!((line.offset, line.inode, line.path), (0x1000, 1234, &b"/usr/lib/lib x.so"[..]));
        let line = parse(b"7f10a000-7f10b000 rw-p 00000000 00:00 0 ").unwrap();
        assert_eq!((line.executable, line.inode, line.path), (false, 0, &b""[..]));
    }
}
