//! What a kernel's debugger shows, to the byte: the layouts are FreeBSD's, which scripts read.

extern crate kernmalloc_kern as kern;

mod common;

use std::fmt::Write as _;

use common::{World, config};
use kern::zone::{Flags, How, Source, Wait, ZoneConfig};
use kern::{System, TypeId};
use platform::fake::Fake;

/// A type, and so many blocks of it of each size.
fn allocate(system: &System<Fake>, name: &str, sizes: &[(usize, usize)]) -> (TypeId, Vec<*mut u8>) {
    let id = system.register_type(abi::type_kind::STATIC, abi::NO_LIB, 0, name.as_bytes()).unwrap();
    let blocks = sizes.iter().flat_map(|&(bytes, count)| (0..count).map(move |_| system.alloc(bytes, id)));
    (id, blocks.collect())
}

fn shown(show: impl FnOnce(&mut String) -> std::fmt::Result) -> String {
    let mut text = String::new();
    show(&mut text).unwrap();
    text
}

fn free(system: &System<Fake>, blocks: impl IntoIterator<Item = *mut u8>) {
    // SAFETY: 1. every caller has the blocks, and forgets them.
    blocks.into_iter().for_each(|block| unsafe { system.free(block, 0) });
}

#[test]
fn show_malloc_lists_attached_types_largest_first() {
    let world = World::boot(config(2, 1));
    world.machine.run(|| {
        let system = &world.system;
        let (_, small) = allocate(system, "temp", &[(100, 3), (16, 2)]);
        allocate(system, "devbuf", &[(5000, 2), (100_000, 1)]);
        let (_, gone) = allocate(system, "a name of more than 31 characters is cut", &[(1000, 4)]);
        free(system, small.into_iter().take(2));
        free(system, gone);
        let table = shown(|out| system.show_malloc(out, false));
        // temp: 112 + 2 * 16; devbuf: 2 * 5632 and 112 KiB.
        let expected = "
              Type        InUse        MemUse     Requests
            devbuf            3          123K            3
              temp            3            1K            5
                 t            0            0K            0
                 t            0            0K            0
                 t            0            0K            0
                 t            0            0K            0
a name of more than 31 characte            0            0K            4
";
        assert_eq!(format!("\n{table}"), expected);
        let csv = shown(|out| system.show_malloc(out, true));
        let expected = "
Type,InUse,MemUse,Requests
\"devbuf\",3,123K,3
\"temp\",3,1K,5
";
        assert_eq!(format!("\n{}", csv.lines().take(3).fold(String::new(), |all, line| all + line + "\n")), expected);
    });
}

/// A module's types vanish with it, unless they have left something.
#[test]
fn a_type_that_is_gone_is_shown_while_it_has_memory() {
    kern::malloc_types! {
        static TYPES;
        M_LEFT: "left behind", "leaks";
        M_GONE: "gone", "does not";
    }
    let world = World::boot(config(1, 1));
    let malloc = kern::malloc::Malloc::new(&world.system);
    world.machine.run(|| {
        malloc.load(TYPES).unwrap();
        let block = malloc.malloc(&M_LEFT, 40, kern::malloc::NoWait, kern::malloc::Flags::NONE).unwrap();
        malloc.unload(TYPES);
        let names = || {
            let table = shown(|out| world.system.show_malloc(out, true));
            table.lines().skip(1).map(|line| line.split('"').nth(1).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(), ["left behind", "t", "t", "t", "t"]);
        free(&world.system, [block.as_ptr()]);
        assert_eq!(names(), ["t"; 4]);
    });
}

/// Items of a cache zone for the table: numbers, and who has them does not matter.
unsafe fn import(_: *mut (), out: *mut *mut u8, want: usize, _: usize, _: Wait) -> usize {
    for index in 0..want {
        // SAFETY: the zone's contract: room for `want`.
        unsafe { *out.add(index) = (index + 1) as *mut u8 };
    }
    want
}

unsafe fn release(_: *mut (), _: *const *mut u8, _: usize) {}

#[test]
fn show_uma_lists_classes_and_zones_largest_first() {
    let world = World::boot(config(2, 1));
    world.machine.run(|| {
        let system = &world.system;
        let (_, blocks) = allocate(system, "t", &[(256, 10), (40_000, 3)]);
        free(system, blocks.into_iter().take(4));
        let zone = system.zcreate(&ZoneConfig::new("vnodes", 500, 8)).unwrap();
        let items: Vec<_> = (0..5).map(|_| zone.alloc(How::NOWAIT).unwrap()).collect();
        // SAFETY: 1. ours, forgotten.
        unsafe { zone.free(items[0].as_ptr()) };
        system.zcreate(&ZoneConfig::new("never used", 64, 8)).unwrap();
        // SAFETY: 1. and 2. the functions need nothing.
        let source = unsafe { Source::new(std::ptr::null_mut(), import, release) };
        let cache = system.zcache_create("numbers", 8, Flags::NONE, kern::zone::Callbacks::NONE, source).unwrap();
        cache.alloc(How::NOWAIT).unwrap();
        // 256: 61 items in a slab; vnodes: 8 (504 bytes) in a slab of a page, and a bucket of 7 was filled.
        let table = shown(|out| system.show_uma(out, false));
        let expected = "
              Zone   Size    Used    Free    Requests  Sleeps  Bucket  Total Mem    XFree
        malloc-256    256       6      57          10       0      31      16128        0
            vnodes    500       4       4           5       0      15       4000        0
        never used     64       0       0           0       0       7          0        0
";
        assert_eq!(format!("\n{table}"), expected);
        let csv = shown(|out| system.show_uma(out, true));
        let expected = "
Zone,Size,Used,Free,Requests,Sleeps,Bucket,Total Mem,XFree
\"malloc-256\",256,6,57,10,0,31,16128,0
\"vnodes\",500,4,4,5,0,15,4000,0
\"never used\",64,0,0,0,0,7,0,0
";
        assert_eq!(format!("\n{csv}"), expected);
        let table = shown(|out| system.show_umacache(out));
        let expected = "
              Zone     Size     Used     Free     Requests   Bucket
      malloc-40960    40960        3        0            3        0
           numbers        8        1        6            1       15
";
        assert_eq!(format!("\n{table}"), expected);
    });
}

/// By the slabs and their items, as `stats` and the class table know them: the sums above, computed otherwise.
#[test]
fn what_is_free_is_in_slabs_depots_and_caches() {
    let world = World::boot(config(2, 1));
    world.machine.run(|| {
        let zone = world.system.zcreate(&ZoneConfig::new("sums", 200, 8)).unwrap();
        let mut items: Vec<_> = (0..300).map(|_| zone.alloc(How::NOWAIT).unwrap()).collect();
        for (index, item) in items.drain(..280).enumerate() {
            platform::fake::Machine::set_cpu(Some(index % 2));
            // SAFETY: 1. ours, forgotten.
            unsafe { zone.free(item.as_ptr()) };
        }
        let stats = zone.stats();
        let all = stats.slabs * stats.per_slab;
        let mut row = String::new();
        write!(row, "{:>18} {:>6} {:>7} {:>7} {:>11} ", "sums", 200, 20, all - 20, 300).unwrap();
        let table = shown(|out| world.system.show_uma(out, false));
        let found = table.lines().find(|line| line.starts_with(&row));
        assert!(found.is_some_and(|line| line.contains(&format!(" {} ", all * 200))), "{row:?} is not in\n{table}");
    });
}

#[test]
fn multizone_matches_are_the_types_that_share_the_zone() {
    let world = World::boot(config(2, 1));
    world.machine.run(|| {
        let system = &world.system;
        let (_, culprit) = allocate(system, "culprit", &[(100, 1), (2000, 1)]);
        allocate(system, "victim", &[(112, 1)]);
        allocate(system, "bystander", &[(64, 1), (80_000, 1)]);
        let (_, large) = allocate(system, "large", &[(90_000, 1), (5 << 20, 1)]);
        let matches = |addr: usize| shown(|out| system.show_matches(addr, out));
        assert_eq!(matches(culprit[0] as usize + 5), "culprit\nvictim\n");
        assert_eq!(matches(culprit[1] as usize), "culprit\n");
        // Runs are told apart by the doubling.
        assert_eq!(matches(large[0] as usize + 70_000), "bystander\nlarge\n");
        assert_eq!(matches(large[1] as usize), "large\n");
        assert_eq!(matches(0x10), "0x10 is in no block\n");
        let (base, addr) = (culprit[1] as usize, culprit[1] as usize + 3);
        let block = shown(|out| system.show_block(addr, out));
        assert_eq!(
            block,
            format!("{addr:#x} is 3 bytes into an item of 2048 bytes at {base:#x}, type culprit, live\n")
        );
    });
}

/// The arena's own text is tested with the arena; here, that it is the heap's.
#[test]
fn show_vmem_is_the_heaps_arena() {
    let world = World::boot(config(1, 1));
    world.machine.run(|| {
        let system = &world.system;
        let (_, blocks) = allocate(system, "t", &[(3 << 20, 1)]);
        // SAFETY: 1. nothing else runs.
        let text = shown(|out| unsafe { system.show_vmem(out) });
        let lines: Vec<_> = text.lines().collect();
        let size = world.machine.heap_given();
        assert!(lines[0].starts_with("vmem 0x") && lines[0].ends_with(" 'heap'"), "{text}");
        let expected = [
            "\tquantum:\t4096".to_owned(),
            format!("\tsize:\t{size}"),
            format!("\tinuse:\t{}", 3 << 20),
            format!("\tfree:\t{}", size - (3 << 20)),
            "\tbusy tags:\t1".to_owned(),
        ];
        assert_eq!(lines[1..6], expected);
        assert!(lines.contains(&"\t2097152         1\t3145728         0\t0               "), "{text}");
        // SAFETY: as above.
        let dump = shown(|out| unsafe { system.show_vmemdump(out) });
        let busy = format!(": {:x} {:x}, 4(busy)", blocks[0] as usize, 3 << 20);
        assert_eq!(dump.lines().filter(|line| line.ends_with(&busy)).count(), 1, "{dump}");
    });
}
