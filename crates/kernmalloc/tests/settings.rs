//! What is set from outside by the names of kernmalloc-sysctl(7) takes effect in the running program; and malloc(9)'s requests that wait.

use std::alloc::Layout;
use std::sync::Mutex;

use kernmalloc::malloc9::{CanFail, Flags, NoWait, WaitOk};
use kernmalloc::{How, MallocType, malloc_define};
use memstat::Object;

#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

/// The settings are the process's.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const KB: Layout = Layout::new::<[u8; 1024]>();

fn object() -> Object {
    // Files come and go with the snapshot's own memory; the object is this process's.
    Object::open_pid(std::process::id()).unwrap()
}

/// Blocks come and go until what was set has been taken up, which slow paths do.
fn work() {
    let control = &hosted::SYSTEM.header().control;
    while control.settings.load(abi::Ordering::Relaxed) != 0 {
        drop((0..2000).map(|n| vec![0u8; 16 + n % 500]).collect::<Vec<_>>());
    }
}

/// Sets a value as `kernmalloc sysctl` does. Returns the old and the new one.
fn set(name: &str, value: &str) -> (String, String) {
    let (old, new) = object().set(name, value).unwrap();
    work();
    (old.to_string(), new.to_string())
}

fn value(name: &str) -> u64 {
    let [setting] = &object().find_settings(name).unwrap()[..] else { panic!("{name} is not one value") };
    setting.value.as_ref().unwrap().to_string().parse().unwrap()
}

fn refusal(name: &str, value: &str) -> String {
    object().set(name, value).unwrap_err().to_string()
}

fn free(block: *mut u8) {
    // SAFETY: blocks of the tests.
    unsafe { kernmalloc::free(block) }
}

/// Holds until so many requests of the type sleep on its limit.
fn until_asleep(ty: &'static MallocType, sleepers: u32) {
    let id = (0..).find(|&index| {
        let record = hosted::SYSTEM.type_record(kern::TypeId::new(index).unwrap());
        abi::c_text(&record.name) == ty.name().as_bytes()
    });
    let record = hosted::SYSTEM.type_record(kern::TypeId::new(id.unwrap()).unwrap());
    while record.limit_sleepers.load(abi::Ordering::SeqCst) != sleepers {
        std::thread::yield_now();
    }
}

#[test]
fn a_types_limit_is_set_from_outside_and_wakes_who_sleeps_on_it() {
    malloc_define!(M_TOLD, "told", "has its limit set");
    let _one = ONE_AT_A_TIME.lock();
    let first = M_TOLD.malloc(KB);
    assert_eq!(set("kern.malloc_stats.told.limit", "2000"), ("0".into(), "2000".into()));
    assert_eq!(M_TOLD.limit(), 2000);
    let second = M_TOLD.malloc(KB);
    assert!(M_TOLD.malloc(KB).is_null() && M_TOLD.malloc_zeroed(KB).is_null());
    assert!(M_TOLD.malloc_flags(KB, NoWait, Flags::NONE).is_none());
    assert_eq!((M_TOLD.stats().failures, value("kern.malloc_stats.told.failures")), (3, 3));
    // A block that would grow is refused, and stays; one that shrinks a little stays where it is.
    // SAFETY: 1. ours.
    unsafe {
        assert!(kernmalloc::realloc(first, KB, 5000, &M_TOLD).is_null());
        assert_eq!(kernmalloc::realloc(first, KB, 900, &M_TOLD), first);
    }
    // The global allocator never says no for a limit.
    let kept = M_TOLD.scope(|| vec![1u8; 3000]);
    assert_eq!(M_TOLD.stats().in_use, 3);
    std::thread::scope(|threads| {
        let sleeper = threads.spawn(|| M_TOLD.malloc_flags(KB, WaitOk, Flags::ZERO).as_ptr() as usize);
        until_asleep(&M_TOLD, 1);
        assert_eq!(value("kern.malloc_stats.told.limblocks"), 1);
        set("kern.malloc_stats.told.limit", "100000");
        free(sleeper.join().unwrap() as *mut u8);
        // And by a free, on another thread than the sleeper's.
        M_TOLD.set_limit(1024);
        let sleeper = threads.spawn(|| M_TOLD.malloc_flags(KB, CanFail, Flags::NONE).unwrap().as_ptr() as usize);
        until_asleep(&M_TOLD, 1);
        [first, second].into_iter().for_each(free);
        drop(kept);
        free(sleeper.join().unwrap() as *mut u8);
    });
    set("kern.malloc_stats.told.limit", "0");
    free(M_TOLD.malloc(KB));
    assert_eq!(M_TOLD.stats().in_use, 0);
    let error = refusal("kern.malloc_stats.told.limit", "much");
    assert_eq!(
        error,
        "kern.malloc_stats.told.limit cannot be set: much is not a whole number from 0 to 140737488355328"
    );
    assert!(refusal("kern.malloc_stats.told.memuse", "1").contains("read-only"));
    assert!(refusal("kern.malloc_stats.malloc.limit", "1").contains("read-only"));
}

#[test]
fn a_zones_limit_is_set_from_outside_and_its_figures_are_read() {
    let _one = ONE_AT_A_TIME.lock();
    let zones = ["told twice", "told twice"].map(|name| kernmalloc::zone(name, || Some([0u64; 50])).unwrap());
    let gone = kernmalloc::zone("gone", || Some(0u8)).unwrap();
    let zone = kernmalloc::zone("told-zone", || Some([0u64; 50])).unwrap();
    gone.destroy();
    let mut items: Vec<_> = (0..20).map(|_| zone.alloc(How::NOWAIT).unwrap()).collect();
    assert_eq!(set("vm.uma.told_zone.limit.max_items", "10"), ("0".into(), "10".into()));
    assert_eq!(zone.raw().max(), 10);
    assert!(zone.alloc(How::NOWAIT).is_err());
    items.truncate(9);
    items.push(zone.alloc(How::NOWAIT).unwrap());
    assert!(zone.alloc(How::NOWAIT).is_err());
    for (name, expected) in [
        ("size", 400),
        ("limit.max_items", 10),
        ("limit.items", 10),
        ("limit.sleepers", 0),
        ("stats.current", 10),
        ("stats.fails", 2),
        ("keg.rsize", 400),
        ("keg.align", 8),
        ("keg.ipers", zone.stats().per_slab as u64),
        ("keg.slabs", zone.stats().slabs as u64),
        ("keg.domain.0.pages", zone.stats().pages as u64),
        ("keg.domain.0.free_items", zone.stats().slab_free as u64),
        ("domain.0.nitems", zone.stats().depot as u64),
        ("domain.0.wss", zone.stats().working_set as u64),
        ("domain.0.bimin", zone.stats().depot as u64),
        ("domain.0.limin", 0),
        ("domain.0.timin", 0),
    ] {
        assert_eq!(value(&format!("vm.uma.told_zone.{name}")), expected, "{name}");
    }
    let [keg] = &object().find_settings("vm.uma.told_zone.keg.name").unwrap()[..] else { panic!() };
    assert_eq!(keg.value.as_ref().unwrap().to_string(), "told-zone");
    // Zones of one name are told apart, and each is set for itself.
    set("vm.uma.told_twice_1.limit.max_items", "7");
    let limits = zones.each_ref().map(|zone| zone.raw().max());
    assert!(limits == [0, 7] || limits == [7, 0], "{limits:?}");
    // A cap on buckets holds for zones made at run time, too.
    set("vm.uma.told_twice.bucket_size_max", "2");
    set("vm.uma.told_zone.limit.max_items", "0");
    items.extend((0..500).map(|_| zone.alloc(How::NOWAIT).unwrap()));
    assert_eq!(zone.raw().max(), 0);
    assert!(refusal("vm.uma.malloc_64.limit.max_items", "5").contains("read-only"));
    assert!(refusal("vm.uma.told_zone.limit.max_items", "-5").contains("-5 is not a whole number from 0 to"));
    assert!(refusal("vm.uma.gone.size", "5").contains("did you mean"));
}

#[test]
fn the_heaps_size_is_set_from_outside() {
    malloc_define!(M_BIG, "big", "asks for much");
    const LARGE: usize = 256 << 20;
    let _one = ONE_AT_A_TIME.lock();
    let before = value("vm.kmem_size");
    assert_eq!(before, value("vm.kmem_size_max"));
    let limit = value("vm.kmem_map_size") + (64 << 20);
    set("vm.kmem_size", &limit.to_string());
    assert_eq!(value("vm.kmem_size"), limit / 4096 * 4096);
    let layout = Layout::from_size_align(LARGE, 1).unwrap();
    assert!(M_BIG.malloc(layout).is_null());
    assert!(M_BIG.malloc_flags(layout, CanFail, Flags::NONE).is_none(), "it could never be met");
    assert!(Vec::<u8>::new().try_reserve_exact(LARGE).is_err());
    let small = M_BIG.malloc(Layout::from_size_align(1 << 20, 1).unwrap());
    assert!(!small.is_null());
    free(small);
    // Its bounds: the size is computed anew, and held between them.
    set("vm.kmem_size_max", &(2 * LARGE + limit as usize).to_string());
    assert_eq!(value("vm.kmem_size"), value("vm.kmem_size_max"));
    free(M_BIG.malloc(layout));
    set("vm.kmem_size", &before.to_string());
    assert_eq!(value("vm.kmem_size"), value("vm.kmem_size_max"), "held to the greatest");
    set("vm.kmem_size_max", &before.to_string());
    // By the machine's memory.
    set("vm.kmem_size_scale", "1");
    let physical = value("vm.kmem_size");
    assert!(physical > limit && physical < before, "{physical}");
    let scale = physical / limit;
    set("vm.kmem_size_scale", &scale.to_string());
    assert_eq!(value("vm.kmem_size"), physical / scale / 4096 * 4096);
    set("vm.kmem_size_scale", "0");
    assert_eq!(value("vm.kmem_size"), before);
    let block = M_BIG.malloc(layout);
    assert!(!block.is_null());
    free(block);
    assert!(refusal("vm.kmem_size", "0").contains("0 is not a whole number from 4096 to 140737488355328"));
    assert!(refusal("vm.kmem_soft_percent", "101").contains("101 is not a whole number from 1 to 100"));
}

#[test]
fn failures_on_purpose_are_for_requests_by_name_that_may_not_sleep() {
    malloc_define!(M_FAILS, "fails", "is told no");
    let _one = ONE_AT_A_TIME.lock();
    let counted = value("debug.malloc.failure_count");
    // One that is registered before, and one after.
    free(M_FAILS.malloc(KB));
    set("debug.malloc.failure_rate", "3");
    let outcomes = |ty: &'static MallocType| {
        let blocks: Vec<_> = (0..9).map(|_| ty.malloc(KB)).collect();
        let failed = blocks.iter().filter(|block| block.is_null()).count();
        blocks.into_iter().for_each(free);
        failed
    };
    assert_eq!(outcomes(&M_FAILS), 3);
    malloc_define!(M_FAILS_LATER, "fails later", "is told no");
    assert_eq!(outcomes(&M_FAILS_LATER), 3);
    assert_eq!((M_FAILS.stats().failures, value("debug.malloc.failure_count") - counted), (3, 6));
    // Who may sleep gets it; so does whoever asks by no name.
    (0..9).for_each(|_| free(M_FAILS.malloc_flags(KB, WaitOk, Flags::NONE).as_ptr()));
    drop((0..9).map(|_| M_FAILS.scope(|| Box::new(5u64))).collect::<Vec<_>>());
    set("debug.malloc.failure_rate", "0");
    assert_eq!(outcomes(&M_FAILS), 0);
    assert_eq!(value("debug.malloc.failure_count") - counted, 6);
}

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn alarm(seconds: u32) -> u32;
    fn _exit(status: i32) -> !;
}

/// Threads that sleep in a parent do not exist in its child: nobody there waits behind them, and nobody counts them.
#[test]
fn a_child_does_not_wait_behind_its_parents_sleepers() {
    malloc_define!(M_FORKED, "forked", "at its limit when the process forks", 1024);
    let _one = ONE_AT_A_TIME.lock();
    let zone = kernmalloc::zone("forked zone", || Some([0u8; 100])).unwrap();
    zone.raw().set_max(1);
    let item = zone.alloc(How::NOWAIT).unwrap();
    let block = M_FORKED.malloc(KB);
    let status = std::thread::scope(|threads| {
        let sleeper = threads.spawn(|| M_FORKED.malloc_flags(KB, WaitOk, Flags::NONE).as_ptr() as usize);
        let in_zone = threads.spawn(|| drop(zone.alloc(How::WAIT)));
        until_asleep(&M_FORKED, 1);
        while zone.stats().sleepers != 1 {
            std::thread::yield_now();
        }
        // SAFETY: the child calls nothing that another thread may have left locked; a hang is ended by the signal.
        let child = unsafe { fork() };
        if child == 0 {
            // SAFETY: ends the child if it hangs.
            unsafe { alarm(20) };
            free(block);
            let again = M_FORKED.malloc_flags(KB, WaitOk, Flags::NONE).as_ptr();
            free(again);
            let raw = zone.raw();
            // SAFETY: 1. the item is ours, and its box is forgotten.
            unsafe { raw.free(std::ptr::from_ref(&*item).cast_mut().cast()) };
            let served = zone.alloc(How::WAIT).is_ok() && zone.stats().sleepers == 0;
            // SAFETY: ends without destructors.
            unsafe { _exit(i32::from(!served)) }
        }
        let mut status = -1;
        // SAFETY: our child.
        unsafe { waitpid(child, &raw mut status, 0) };
        free(block);
        drop(item);
        in_zone.join().unwrap();
        free(sleeper.join().unwrap() as *mut u8);
        status
    });
    assert_eq!(status, 0, "the child hung, or was told no");
}

/// The mapping of an address in /proc/self/smaps: permissions, and whether it is left out of cores.
#[cfg(target_os = "linux")]
fn mapping(addr: usize) -> (String, bool) {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = None;
    for line in smaps.lines() {
        let head = line.split_once(' ').and_then(|(range, rest)| Some((range.split_once('-')?, rest)));
        if let Some(((start, end), rest)) = head
            && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        {
            if let Some(found) = found {
                return (found, false);
            }
            found = (start..end).contains(&addr).then(|| rest[..3].to_owned());
        } else if let (Some(flags), Some(found)) = (line.strip_prefix("VmFlags:"), &found) {
            return (found.clone(), flags.split_whitespace().any(|flag| flag == "dd"));
        }
    }
    panic!("{addr:#x} is not mapped")
}

#[test]
fn code_runs_in_a_block_that_is_no_part_of_a_core() {
    malloc_define!(M_CODE, "code", "instructions");
    let _one = ONE_AT_A_TIME.lock();
    let layout = Layout::from_size_align(100, 16).unwrap();
    let ordinary = M_CODE.malloc(layout);
    let quiet = M_CODE.malloc_flags(Layout::from_size_align(50_000, 16).unwrap(), WaitOk, Flags::NODUMP).as_ptr();
    let code = M_CODE.malloc_flags(layout, WaitOk, Flags::EXEC).as_ptr();
    assert_eq!(mapping(ordinary as usize), ("rw-".into(), false));
    assert_eq!(mapping(quiet as usize + 49_999), ("rw-".into(), true));
    assert_eq!(mapping(code as usize), ("rwx".into(), false));
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `mov eax, 42; ret` in executable memory of ours.
    unsafe {
        code.copy_from_nonoverlapping([0xb8, 42, 0, 0, 0, 0xc3].as_ptr(), 6);
        let call: extern "C" fn() -> i32 = std::mem::transmute(code);
        assert_eq!(call(), 42);
    }
    [ordinary, quiet, code].into_iter().for_each(free);
    assert_eq!(mapping(quiet as usize), ("rw-".into(), false));
    assert_eq!(mapping(code as usize), ("rw-".into(), false));
    assert_eq!(M_CODE.stats().in_use, 0);
}
