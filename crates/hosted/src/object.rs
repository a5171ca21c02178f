//! The statistics object of this process: made at boot, made anew in a fork child, marked at exit.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use abi::Header;
use kern::ObjectLayout;
use kern::text::Text;

use crate::{region, sys, tunables};

static BASE: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Whether the file goes with the program (no run command keeps it).
static OWN_FILE: AtomicU32 = AtomicU32::new(0);
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// Pid of whoever made the object; a copy in a child without handlers is not its own.
static MAKER: AtomicU32 = AtomicU32::new(0);

/// A tmpfs with less room than this may run full under us, and then a store is a SIGBUS: use a memfd.
const ROOM_BYTES: u64 = 64 << 20;

type Path = Text<512>;

fn directory() -> Option<(Path, bool)> {
    let mut path = Path::new();
    if let Some(dir) = tunables::env(abi::DIR_ENV.as_bytes()) {
        path.push(dir);
        return Some((path, false));
    }
    if tunables::is_secure() {
        return None;
    }
    let uid = sys::getuid();
    path.push(abi::DEFAULT_DIR_PREFIX.as_bytes()).push_number(u64::from(uid));
    let mut with_nul = path.clone();
    with_nul.push(b"\0");
    let made = sys::make_dir(with_nul.as_bytes());
    if made == sys::EEXIST {
        // Somebody else's directory, or a link to one, is not ours to write to.
        let (owner, mode) = sys::owner_and_mode(with_nul.as_bytes())?;
        if owner != uid || mode != 0o040_700 {
            return None;
        }
    } else if made < 0 {
        return None;
    }
    Some((path, true))
}

fn file_path(directory: &Path, pid: u32, generation: u32) -> Path {
    let mut path = directory.clone();
    path.push(b"/").push_number(u64::from(pid)).push(b".").push_number(u64::from(generation)).push(b"\0");
    path
}

/// A new file (or memfd) of `bytes`.
fn create(bytes: usize) -> Option<i32> {
    if sys::file_size_limit().is_some_and(|limit| limit < bytes as u64) {
        return None;
    }
    if let Some((directory, own)) = directory() {
        let pid = sys::getpid();
        for generation in 0..10_000 {
            let path = file_path(&directory, pid, generation);
            match sys::open(path.as_bytes(), sys::O_RDWR_CREATE_NEW) {
                Ok(fd) => {
                    if sys::free_bytes(fd).is_some_and(|free| free >= ROOM_BYTES) && sys::truncate(fd, bytes) {
                        OWN_FILE.store(u32::from(own), Ordering::Relaxed);
                        GENERATION.store(generation, Ordering::Relaxed);
                        return Some(fd);
                    }
                    sys::close(fd);
                    sys::unlink(path.as_bytes());
                    break;
                }
                Err(sys::EEXIST) => {}
                Err(_) => break,
            }
        }
    }
    OWN_FILE.store(0, Ordering::Relaxed);
    GENERATION.store(0, Ordering::Relaxed);
    let mut name = Text::<32>::new();
    name.push(abi::MEMFD_NAME.as_bytes()).push(b"\0");
    let fd = sys::memfd(name.as_bytes())?;
    if sys::truncate(fd, bytes) {
        return Some(fd);
    }
    sys::close(fd);
    None
}

/// Makes the object and maps it. Without any file the program still runs: its statistics are private memory then.
pub(crate) fn make(layout: &ObjectLayout) -> Option<*mut Header> {
    let bytes = layout.bytes();
    let base = create(bytes)
        .and_then(|fd| {
            // SAFETY: 1. at an address of the kernel's choosing.
            let base = unsafe { sys::map_file(fd, bytes, 0) };
            sys::close(fd);
            base
        })
        .or_else(|| sys::map_anywhere(bytes))?;
    BASE.store(base, Ordering::Relaxed);
    BYTES.store(bytes, Ordering::Relaxed);
    let header = base as *mut Header;
    // SAFETY: a fresh mapping of at least a header; zeros are a valid one.
    layout.write_sections(unsafe { &mut *header });
    Some(header)
}

/// Writes what identifies this process. Also in a fork child, over its parent's.
///
/// # Safety
/// 1. `header` is the object of this process, and no reader relies on it yet.
pub(crate) unsafe fn identify(header: *mut Header) {
    // SAFETY: 1.
    unsafe {
        (*header).pid = sys::getpid();
        (*header).parent_pid = sys::getppid();
        (*header).generation = GENERATION.load(Ordering::Relaxed);
        (*header).attribution = tunables::attribution();
        (*header).start_realtime_ns = sys::realtime_ns();
        let exe = &mut (*header).exe;
        let len = sys::read_link(b"/proc/self/exe\0", &mut exe[..255]);
        exe[len..].fill(0);
        (*header).heap_base = region::heap_base() as u64;
        (*header).heap_max_bytes = region::HEAP_MAX_BYTES as u64;
        (*header).table_base = region::table_base() as u64;
        (*header).meta_base = region::meta_base() as u64;
        (*header).stats_base = header as u64;
        (*header).cache_slot_stride = kern::SLOT_STRIDE_BYTES as u64;
        (*header).cache_zone_stride = size_of::<abi::CpuCache>() as u64;
        (*header).page_bytes = 4096;
        publish_regions(&*header);
        (*header).state.store(abi::state::RUNNING, Ordering::Relaxed);
        (*header).magic.store(abi::MAGIC, Ordering::Release);
    }
    MAKER.store(sys::getpid(), Ordering::Relaxed);
}

/// Shows how far the ranges have grown.
pub(crate) fn publish_regions(header: &Header) {
    let [heap, table, meta] = region::used();
    header.heap_bytes.store(heap as u64, Ordering::Relaxed);
    header.table_bytes.store(table as u64, Ordering::Relaxed);
    header.meta_bytes.store(meta as u64, Ordering::Relaxed);
}

/// The mapped object, or null before boot.
pub(crate) fn header() -> *mut Header {
    BASE.load(Ordering::Relaxed) as *mut Header
}

/// The program has gone through its exit handlers: says so, and removes a file that nobody keeps.
pub(crate) fn finish() {
    let header = header();
    if header.is_null() || MAKER.load(Ordering::Relaxed) != sys::getpid() {
        return;
    }
    // SAFETY: mapped for good.
    unsafe { (*header).state.store(abi::state::EXITED, Ordering::Release) };
    if OWN_FILE.load(Ordering::Relaxed) == 1
        && let Some((directory, true)) = directory()
    {
        let path = file_path(&directory, sys::getpid(), GENERATION.load(Ordering::Relaxed));
        sys::unlink(path.as_bytes());
    }
}

/// A copy of all that is in use of the object, taken while nothing moves; private memory, so that a fork child inherits it.
pub(crate) struct Copy {
    memory: usize,
    bytes: usize,
}

/// A section's records in use, as bytes from the start of the object; for lines one piece per slot.
fn pieces(header: &Header, mut visit: impl FnMut(usize, usize)) {
    visit(0, abi::HEADER_BYTES as usize);
    for section in [&header.libs, &header.types, &header.zones] {
        visit(section.offset as usize, (section.stride * section.used.load(Ordering::Relaxed)) as usize);
    }
    let slots = header.type_lines.used.load(Ordering::Relaxed);
    let types = header.types.used.load(Ordering::Relaxed) as usize;
    for slot in 0..slots {
        let lines = &header.type_lines;
        visit(
            (lines.offset + slot * lines.stride) as usize,
            size_of::<abi::SlotLine>() + types * size_of::<abi::TypeLine>(),
        );
        let lines = &header.zone_lines;
        visit((lines.offset + slot * lines.stride) as usize, lines.stride as usize);
    }
}

/// `None` when there is no memory for it: the child then starts from what it can still see.
pub(crate) fn copy() -> Option<Copy> {
    let base = BASE.load(Ordering::Relaxed);
    // SAFETY: mapped for good.
    let header = unsafe { &*header() };
    let mut bytes = 0;
    pieces(header, |_, len| bytes += len);
    let memory = sys::map_anywhere(bytes)?;
    let mut at = memory;
    pieces(header, |offset, len| {
        // SAFETY: pieces lie in the object; the copy has room for their sum.
        unsafe { core::ptr::copy_nonoverlapping((base + offset) as *const u8, at as *mut u8, len) };
        at += len;
    });
    Some(Copy { memory, bytes })
}

impl Copy {
    /// In the child: a new object in place of the parent's, with the copied contents.
    pub(crate) fn restore(self) {
        let base = BASE.load(Ordering::Relaxed);
        let bytes = BYTES.load(Ordering::Relaxed);
        let fd = create(bytes);
        let mapped = match fd {
            // SAFETY: 1. replaces the parent's object in this process only.
            Some(fd) => unsafe { sys::map_file(fd, bytes, base) },
            None => None,
        };
        if let Some(fd) = fd {
            sys::close(fd);
        }
        if mapped.is_none() && !replace_by_private(base, bytes) {
            // Nothing may be written to the parent's object. There is no going on without one.
            sys::abort();
        }
        // SAFETY: the copy begins with the header, which says what follows it.
        let copied = unsafe { &*(self.memory as *const Header) };
        let mut at = self.memory;
        pieces(copied, |offset, len| {
            // SAFETY: as in `copy`, the other way.
            unsafe { core::ptr::copy_nonoverlapping(at as *const u8, (base + offset) as *mut u8, len) };
            at += len;
        });
        // SAFETY: 1. ours since the mapping above.
        unsafe { identify(base as *mut Header) };
        self.drop_memory();
    }

    /// In the parent.
    pub(crate) fn drop_memory(self) {
        // SAFETY: 1. mapped by `copy`.
        unsafe { sys::unmap(self.memory, self.bytes) };
    }
}

fn replace_by_private(base: usize, bytes: usize) -> bool {
    // SAFETY: 1. this process's view of the parent's object.
    unsafe { sys::unmap(base, bytes) };
    sys::map_at(base, bytes) == sys::Mapped::Here
}
