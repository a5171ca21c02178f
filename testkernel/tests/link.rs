//! The loader's linker, on the host: against the system's linker, byte for byte, and against objects that are damaged.

extern crate alloc;

#[path = "../src/module/link.rs"]
#[allow(dead_code, reason = "the kernel's part uses all of it")]
mod link;

use std::path::{Path, PathBuf};
use std::process::Command;

use link::{Error, Part, Plan};
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use object::{LittleEndian as LE, elf};

/// Where modules lie in the test kernel.
const BASE: usize = 0xffff_ffff_c000_0000;
const ROOM: usize = 256 << 20;
/// Where the symbols are that the kernel would export.
const EXPORTS: usize = 0xffff_ffff_8012_3450;

fn out_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("a test has a file");
    let dir = exe.ancestors().nth(2).expect("cargo's folders").join("link");
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

fn run(command: &mut Command) -> Vec<u8> {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

/// Compiles `tests/programs/FILE` as for the kernel, with more flags; the result is called `NAME`.
fn compile(file: &str, name: &str, flags: &[&str]) -> (PathBuf, Vec<u8>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = out_dir().join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c99", "-D_KERNEL", "-ffreestanding", "-mcmodel=kernel", "-fno-pic", "-fno-common", "-O2"]);
    gcc.args(["-fno-asynchronous-unwind-tables", "-mgeneral-regs-only", "-fcf-protection=none"]).args(flags);
    gcc.arg("-I").arg(root.join("include")).arg("-c").arg(root.join("tests/programs").join(file)).arg("-o").arg(&out);
    run(&mut gcc);
    let object = std::fs::read(&out).expect("gcc made it");
    (out, object)
}

/// Everything is at [`EXPORTS`].
fn find(_: &[u8]) -> Option<usize> {
    Some(EXPORTS)
}

fn link(object: &[u8]) -> Result<Vec<u8>, Error<'_>> {
    let plan = Plan::new(object, ROOM, &find)?;
    let mut memory = vec![0; plan.bytes()];
    plan.link(&mut memory, BASE, &find)?;
    Ok(memory)
}

/// Names of the loaded sections of a part, in the order of the object.
fn sections(object: &[u8], part: Part) -> Vec<String> {
    let header = FileHeader64::<LE>::parse(object).unwrap();
    let table = header.sections(LE, object).unwrap();
    let of = |flags: elf::SectionFlags| {
        if flags.contains(elf::SHF_EXECINSTR) {
            Part::Text
        } else if flags.contains(elf::SHF_WRITE) {
            Part::Data
        } else {
            Part::Constants
        }
    };
    let loaded = table.iter().filter(|section| {
        section.sh_flags(LE).contains(elf::SHF_ALLOC) && section.sh_size(LE) != 0 && of(section.sh_flags(LE)) == part
    });
    loaded.map(|section| String::from_utf8(table.section_name(LE, section).unwrap().to_vec()).unwrap()).collect()
}

/// The system's linker, told to lay the sections out the same way.
fn by_ld(path: &Path, object: &[u8], bytes: usize) -> Vec<u8> {
    let mut script = format!("OUTPUT_FORMAT(binary)\nSECTIONS {{\n. = {BASE:#x};\n");
    let mut names = Vec::new();
    for part in [Part::Text, Part::Constants, Part::Data] {
        script += ". = ALIGN(4096);\n";
        for (index, name) in sections(object, part).into_iter().enumerate() {
            script += &format!(".{part:?}{index} : {{ *({name}) }}\n");
            names.push(name);
        }
    }
    script += "/DISCARD/ : { *(*) }\n}\n";
    let header = FileHeader64::<LE>::parse(object).unwrap();
    let table = header.sections(LE, object).unwrap();
    let symbols = table.symbols(LE, object, elf::SHT_SYMTAB).unwrap();
    for symbol in symbols.iter() {
        use object::read::elf::Sym as _;
        let name = String::from_utf8(symbols.symbol_name(LE, symbol).unwrap().to_vec()).unwrap();
        if symbol.is_undefined(LE) && !name.is_empty() {
            script += &format!("{name} = {EXPORTS:#x};\n");
        }
    }
    let (script_path, out) = (path.with_extension("ld"), path.with_extension("bin"));
    std::fs::write(&script_path, script).unwrap();
    run(Command::new("ld").arg("-T").arg(&script_path).arg("-o").arg(&out).arg(path));
    let mut linked = std::fs::read(out).unwrap();
    // The zeros at the end are not in the file.
    assert!(linked.len() <= bytes, "{} bytes by ld, {bytes} by us", linked.len());
    linked.resize(bytes, 0);
    linked
}

#[test]
fn it_links_as_the_systems_linker_does() {
    for (file, flags) in [
        ("modules/links.c", &[][..]),
        ("modules/links.c", &["-O0"]),
        ("modules/tidy.c", &[]),
        ("capi/module.c", &["-ffunction-sections", "-fdata-sections"]),
        ("modules/links.c", &["-mcmodel=large"]),
    ] {
        let name = format!("ld-{}-{}.o", file.replace('/', "-"), flags.concat());
        let (path, object) = compile(file, &name, flags);
        let ours = link(&object).unwrap_or_else(|error| panic!("{file} {flags:?}: {error}"));
        let theirs = by_ld(&path, &object, ours.len());
        let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{file} {flags:?}: the first byte that differs");
        assert!(ours.iter().any(|byte| *byte != 0));
    }
}

/// The bytes of one relocation, changed, in an object of one.
fn relocation(kind: u32, offset: u64, addend: i64) -> Vec<u8> {
    let (_, mut object) = compile("modules/undefined.c", "one.o", &[]);
    let header = FileHeader64::<LE>::parse(&object[..]).unwrap();
    let table = header.sections(LE, &object[..]).unwrap();
    let (_, section) = table.section_by_name(LE, b".rela.text").expect("a call is relocated");
    let at = section.sh_offset.get(LE) as usize;
    object[at..at + 8].copy_from_slice(&offset.to_le_bytes());
    object[at + 8..at + 12].copy_from_slice(&kind.to_le_bytes());
    object[at + 16..at + 24].copy_from_slice(&addend.to_le_bytes());
    object
}

#[test]
fn values_that_do_not_fit_are_refused() {
    let said = |kind: elf::RelocationType, offset: u64, addend: i64| match link(&relocation(kind.0, offset, addend)) {
        Ok(memory) => format!("{:02x?}", &memory[offset as usize..offset as usize + 8]),
        Err(error) => error.to_string(),
    };
    let export = EXPORTS as i64;
    // A signed word reaches the last two gigabytes, an unsigned one the first four.
    assert_eq!(said(elf::R_X86_64_32S, 1, 0)[..15], *"[50, 34, 12, 80");
    assert_eq!(
        said(elf::R_X86_64_32S, 1, -(1 << 31)),
        "relocation R_X86_64_32S at .text+0x1: symbol no_such_function is out of its reach"
    );
    assert_eq!(
        said(elf::R_X86_64_32, 1, 0),
        "relocation R_X86_64_32 at .text+0x1: symbol no_such_function is out of its reach"
    );
    assert_eq!(said(elf::R_X86_64_32, 1, -export + 0xffff_ffff)[..15], *"[ff, ff, ff, ff");
    assert!(said(elf::R_X86_64_32, 1, -export + 0x1_0000_0000).ends_with("is out of its reach"));
    assert_eq!(said(elf::R_X86_64_64, 0, 1), "[51, 34, 12, 80, ff, ff, ff, ff]");
    // The distance from the place at BASE + 1: just within two gigabytes, and just not.
    let distance = |wanted: i64| wanted - (export - (BASE as i64 + 1));
    assert_eq!(said(elf::R_X86_64_PC32, 1, distance(i64::from(i32::MAX)))[..15], *"[ff, ff, ff, 7f");
    assert!(said(elf::R_X86_64_PLT32, 1, distance(i64::from(i32::MAX) + 1)).ends_with("is out of its reach"));
    assert_eq!(said(elf::R_X86_64_PLT32, 1, distance(i64::from(i32::MIN)))[..15], *"[00, 00, 00, 80");
    assert!(said(elf::R_X86_64_PC32, 1, distance(i64::from(i32::MIN) - 1)).ends_with("is out of its reach"));
    assert_eq!(said(elf::R_X86_64_PC64, 0, BASE as i64 - export), "[00, 00, 00, 00, 00, 00, 00, 00]");
    assert_eq!(
        said(elf::R_X86_64_GOTTPOFF, 3, 0),
        "relocation R_X86_64_GOTTPOFF at .text+0x3 is not supported: compile with -mcmodel=kernel -fno-pic"
    );
    assert_eq!(
        said(elf::RelocationType(200), 3, 0),
        "relocation type 200 at .text+0x3 is not supported: compile with -mcmodel=kernel -fno-pic"
    );
    assert!(said(elf::R_X86_64_64, u64::MAX - 3, 0).ends_with("lies outside of its section"));
}

#[test]
fn what_a_module_cannot_have_is_named() {
    let refused = |code: &str, name: &str, flags: &[&str]| {
        let source = out_dir().join(format!("{name}.c"));
        std::fs::write(&source, code).unwrap();
        let (_, object) = compile(source.to_str().unwrap(), &format!("{name}.o"), flags);
        link(&object).err().map_or_else(|| "linked".to_owned(), |error| error.to_string())
    };
    assert_eq!(
        refused("int shared;\nint f(void) { return shared; }\n", "common", &["-fcommon"]),
        "shared: a common symbol: compile with -fno-common"
    );
    let local = refused("__thread int mine = 3;\nint f(void) { return mine; }\n", "tls", &[]);
    assert_eq!(local, ".tdata: thread-local data has no place in a kernel module");
    let aligned = refused("int far __attribute__((aligned(8192))) = 1;\n", "aligned", &[]);
    assert_eq!(aligned, ".data: its alignment is no power of two up to a page");
    assert_eq!(refused("int far[1 << 28];\n", "large", &[]), "larger than the address space for modules");
    assert_eq!(refused("", "nothing", &[]), "all sections: nothing in them is to be loaded");
    let stray = "static int x = 1;\n__attribute__((section(\".init_array\"), used)) static int *p = &x;\n";
    assert_eq!(refused(stray, "stray", &[]), ".init_array names what is no function of the module");
}

/// Constructors by priority, the others last, and destructors the other way round.
#[test]
fn calls_come_in_order() {
    let source = out_dir().join("order.c");
    let code = "int calls;\n#define C(n, w, p) __attribute__((w p)) void n(void) { calls++; }\n\
                C(f1, constructor, ) C(f2, constructor, (300)) C(f3, constructor, (101)) C(g1, destructor, ) C(g2, destructor, (200))\n";
    std::fs::write(&source, code).unwrap();
    let (_, object) = compile(source.to_str().unwrap(), "order.o", &[]);
    let plan = Plan::new(&object, ROOM, &find).unwrap();
    let mut memory = vec![0; plan.bytes()];
    let calls = plan.link(&mut memory, BASE, &find).unwrap();
    let at = |name: &str| plan.function(name, BASE).unwrap();
    assert_eq!(calls.constructors, [at("f3"), at("f2"), at("f1")]);
    assert_eq!(calls.destructors, [at("g1"), at("g2")]);
}

/// Whatever an object says, the linker neither panics nor writes outside of its memory (which would be a panic).
#[test]
fn damaged_objects_do_no_harm() {
    let (_, good) = compile("modules/links.c", "damaged.o", &[]);
    let (mut linked, mut refused) = (0, 0);
    let mut attempt = |object: &[u8]| match link(object) {
        Ok(_) => linked += 1,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            refused += 1;
        }
    };
    for bytes in 0..good.len() {
        attempt(&good[..bytes]);
    }
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 11) as usize % bound
    };
    for _ in 0..20_000 {
        let mut bad = good.clone();
        for _ in 0..=random(4) {
            let at = random(bad.len());
            bad[at] = match random(4) {
                0 => 0,
                1 => 0xff,
                2 => bad[at] ^ 1 << random(8),
                _ => random(256) as u8,
            };
        }
        attempt(&bad);
    }
    // Both happen, or the damage was none or all too great.
    assert!(linked > 1000 && refused > 1000, "{linked} linked, {refused} refused");
}
