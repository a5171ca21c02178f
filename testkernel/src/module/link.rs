//! A relocatable object as a linker sees it: what it needs, where its sections go, and what has to be written into
//! them.
//!
//! Nothing of this kernel is known here. Whoever loads an object makes a [`Plan`] of it, finds memory for as many bytes
//! as the plan says, and has the object [linked](Plan::link) into that; the rest of the kernel's part is in the parent
//! module. Objects are bad data from outside until proven otherwise: every offset in them is checked, and what is wrong
//! with one is an [`Error`] that names the place.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use object::LittleEndian;
use object::elf::{self, FileHeader64, RelocationType, SectionHeader64, Sym64};
use object::read::elf::{FileHeader, Rela as _, SectionHeader as _, SectionTable, Sym as _, SymbolTable};
use object::read::{SectionIndex, SymbolIndex};

type Header = FileHeader64<LittleEndian>;
type Sections<'d> = SectionTable<'d, Header>;
type Symbols<'d> = SymbolTable<'d, Header>;
const LE: LittleEndian = LittleEndian;

/// Bytes of a page: parts that are protected differently do not share one.
pub(crate) const PAGE: usize = 4096;

/// A name in an object, which may be any bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Name<'d>(pub(crate) &'d [u8]);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.escape_ascii(), f)
    }
}

/// A place in a section, with what is to be written there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place<'d> {
    section: Name<'d>,
    offset: u64,
    kind: RelocationType,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match elf::NAMES_R_X86_64.name(self.kind) {
            Some(name) => write!(f, "{name} at {}+{:#x}", self.section, self.offset),
            None => write!(f, "type {} at {}+{:#x}", self.kind.0, self.section, self.offset),
        }
    }
}

/// Why an object is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Error<'d> {
    /// It is cut short, or no ELF64 file at all.
    Malformed(object::Error),
    /// Its machine is another; `e_machine`.
    Machine(u16),
    /// It is no relocatable object; `e_type`.
    Type(u16),
    /// It has a section that cannot be placed.
    Section(Name<'d>, &'static str),
    /// It is larger than any memory for modules.
    TooLarge,
    /// It needs a symbol that nobody exports.
    Undefined(Name<'d>),
    /// It has a symbol that is nowhere.
    Symbol(Name<'d>, &'static str),
    /// It needs a relocation that is not known here.
    Unknown(Place<'d>),
    /// The place lies outside of its section.
    Outside(Place<'d>),
    /// The value does not fit; of which symbol.
    Range(Place<'d>, Name<'d>),
    /// A constructor or destructor is no function of the object.
    Function(Name<'d>),
    /// There is no memory for what the linker has to remember.
    Memory,
}

impl fmt::Display for Error<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => write!(f, "no ELF64 object, or a damaged one: {why}"),
            Self::Machine(found) => write!(f, "made for machine {found}, not for x86-64 ({})", elf::EM_X86_64.0),
            Self::Type(found) => {
                write!(f, "an ELF file of type {found}, not a relocatable object (1): compile with -c, or link with -r")
            }
            Self::Section(name, why) | Self::Symbol(name, why) => write!(f, "{name}: {why}"),
            Self::TooLarge => f.write_str("larger than the address space for modules"),
            Self::Undefined(name) => write!(f, "symbol {name} is not defined, and not exported by the kernel"),
            Self::Unknown(place) => {
                write!(f, "relocation {place} is not supported: compile with -mcmodel=kernel -fno-pic")
            }
            Self::Outside(place) => write!(f, "relocation {place} lies outside of its section"),
            Self::Range(place, symbol) => write!(f, "relocation {place}: symbol {symbol} is out of its reach"),
            Self::Function(name) => write!(f, "{name} names what is no function of the module"),
            Self::Memory => f.write_str("no memory"),
        }
    }
}

impl From<object::Error> for Error<'_> {
    fn from(error: object::Error) -> Self {
        Self::Malformed(error)
    }
}

/// What a section's memory is for. Parts lie in this order, each from a page on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Part {
    /// Runs.
    Text,
    /// Is read only.
    Constants,
    /// Is written to.
    Data,
}

const PARTS: [Part; 3] = [Part::Text, Part::Constants, Part::Data];

/// Functions that an object wants called, in the order of the calls; addresses.
#[derive(Default, Debug)]
pub(crate) struct Calls {
    /// When it was loaded.
    pub(crate) constructors: Vec<usize>,
    /// Before it is unloaded.
    pub(crate) destructors: Vec<usize>,
}

/// An object that can be linked, once there is memory.
pub(crate) struct Plan<'d> {
    object: &'d [u8],
    sections: Sections<'d>,
    symbols: Symbols<'d>,
    /// Offset of each section in the memory, if it has one.
    offsets: Vec<Option<usize>>,
    /// By [`PARTS`].
    parts: [Range<usize>; 3],
}

/// Finds the address of an exported symbol.
pub(crate) type Find<'a> = &'a dyn Fn(&[u8]) -> Option<usize>;

fn is_loaded(section: &SectionHeader64<LittleEndian>) -> bool {
    section.sh_flags(LE).contains(elf::SHF_ALLOC) && section.sh_size(LE) != 0
}

fn part_of(section: &SectionHeader64<LittleEndian>) -> Part {
    let flags = section.sh_flags(LE);
    if flags.contains(elf::SHF_EXECINSTR) {
        Part::Text
    } else if flags.contains(elf::SHF_WRITE) {
        Part::Data
    } else {
        Part::Constants
    }
}

impl<'d> Plan<'d> {
    /// Looks an object through and lays its sections out, in at most `limit` bytes. All that `find` has to know is
    /// asked for already here.
    pub(crate) fn new(object: &'d [u8], limit: usize, find: Find<'_>) -> Result<Self, Error<'d>> {
        let header = Header::parse(object)?;
        let endian = header.endian()?;
        let _: LittleEndian = endian;
        if header.e_machine(LE) != elf::EM_X86_64 {
            return Err(Error::Machine(header.e_machine(LE).0));
        }
        if header.e_type(LE) != elf::ET_REL {
            return Err(Error::Type(header.e_type(LE).0));
        }
        let sections = header.sections(LE, object)?;
        let symbols = sections.symbols(LE, object, elf::SHT_SYMTAB)?;
        let mut plan = Self { object, sections, symbols, offsets: Vec::new(), parts: [0..0, 0..0, 0..0] };
        plan.lay_out(limit)?;
        for (index, symbol) in plan.symbols.enumerate() {
            let name = plan.name(symbol)?;
            // Named by every object for a shared library; its relocations say better what is wrong with that.
            let is_table = name.0 == b"_GLOBAL_OFFSET_TABLE_";
            let is_wanted = index.0 != 0 && symbol.is_undefined(LE) && !symbol.is_weak() && !is_table;
            if is_wanted && find(name.0).is_none() {
                return Err(Error::Undefined(name));
            }
        }
        Ok(plan)
    }

    fn lay_out(&mut self, limit: usize) -> Result<(), Error<'d>> {
        let count = self.sections.len();
        self.offsets.try_reserve_exact(count).map_err(|_| Error::Memory)?;
        self.offsets.resize(count, None);
        let mut end = 0usize;
        for (part, range) in PARTS.into_iter().zip(&mut self.parts) {
            let start = end.next_multiple_of(PAGE);
            end = start;
            for (index, section) in self.sections.enumerate() {
                if !is_loaded(section) || part_of(section) != part {
                    continue;
                }
                let name = Name(self.sections.section_name(LE, section)?);
                if section.sh_flags(LE).contains(elf::SHF_TLS) {
                    return Err(Error::Section(name, "thread-local data has no place in a kernel module"));
                }
                let align = usize::try_from(section.sh_addralign(LE)).unwrap_or(usize::MAX).max(1);
                if !align.is_power_of_two() || align > PAGE {
                    return Err(Error::Section(name, "its alignment is no power of two up to a page"));
                }
                // Its contents are there, or it is refused before anybody looks for memory.
                section.data(LE, self.object)?;
                let bytes = usize::try_from(section.sh_size(LE)).map_err(|_| Error::TooLarge)?;
                let offset = end.next_multiple_of(align);
                end = offset.checked_add(bytes).filter(|end| *end <= limit).ok_or(Error::TooLarge)?;
                self.offsets[index.0] = Some(offset);
            }
            *range = start..end;
        }
        if end == 0 {
            return Err(Error::Section(Name(b"all sections"), "nothing in them is to be loaded"));
        }
        Ok(())
    }

    /// Bytes of memory it takes, a multiple of the page.
    pub(crate) fn bytes(&self) -> usize {
        self.parts[2].end.next_multiple_of(PAGE)
    }

    /// Its parts and where they lie in the memory, whole pages; those without contents are empty.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (Part, Range<usize>)> + '_ {
        let whole = |range: &Range<usize>| range.start..range.end.next_multiple_of(PAGE).max(range.start);
        PARTS.into_iter().zip(self.parts.iter().map(whole))
    }

    fn name(&self, symbol: &Sym64<LittleEndian>) -> Result<Name<'d>, Error<'d>> {
        Ok(Name(self.symbols.symbol_name(LE, symbol)?))
    }

    /// The address of a symbol, in memory at `base`.
    fn address(&self, index: SymbolIndex, base: usize, find: Find<'_>) -> Result<(u64, Name<'d>), Error<'d>> {
        if index.0 == 0 {
            return Ok((0, Name(b"")));
        }
        let symbol = self.symbols.symbol(index)?;
        let name = self.name(symbol)?;
        if symbol.is_undefined(LE) {
            return match find(name.0) {
                Some(address) => Ok((address as u64, name)),
                None if symbol.is_weak() => Ok((0, name)),
                None => Err(Error::Undefined(name)),
            };
        }
        if symbol.is_absolute(LE) {
            return Ok((symbol.st_value(LE), name));
        }
        if symbol.is_common(LE) {
            return Err(Error::Symbol(name, "a common symbol: compile with -fno-common"));
        }
        if symbol.st_type() == elf::STT_TLS || symbol.st_type() == elf::STT_GNU_IFUNC {
            return Err(Error::Symbol(name, "neither thread-local data nor an indirect function can be linked"));
        }
        let section = self.symbols.symbol_section(LE, symbol, index)?.ok_or(Error::Symbol(name, "in no section"))?;
        let offset = self.offsets.get(section.0).copied().flatten();
        let offset = offset.ok_or(Error::Symbol(name, "in a section that is not loaded"))?;
        // A section's own symbol has no name.
        let name = if name.0.is_empty() { self.section_name(section)? } else { name };
        Ok(((base as u64).wrapping_add(offset as u64).wrapping_add(symbol.st_value(LE)), name))
    }

    fn section_name(&self, index: SectionIndex) -> Result<Name<'d>, Error<'d>> {
        Ok(Name(self.sections.section_name(LE, self.sections.section(index)?)?))
    }

    /// The address of a function that the object defines for others, in memory at `base`.
    pub(crate) fn function(&self, name: &str, base: usize) -> Option<usize> {
        let is_it = |symbol: &Sym64<LittleEndian>| {
            !symbol.is_local()
                && !symbol.is_undefined(LE)
                && symbol.st_type() == elf::STT_FUNC
                && self.name(symbol).is_ok_and(|found| found.0 == name.as_bytes())
        };
        let (index, _) = self.symbols.enumerate().find(|(_, symbol)| is_it(symbol))?;
        let (address, _) = self.address(index, base, &|_| None).ok()?;
        Some(address as usize).filter(|address| self.is_text(*address, base))
    }

    fn is_text(&self, address: usize, base: usize) -> bool {
        self.parts[0].contains(&address.wrapping_sub(base))
    }

    /// Writes the object into `memory`, which is zero, [`bytes`](Self::bytes) long and will be seen at `base`. What of
    /// it is written when this fails means nothing.
    pub(crate) fn link(&self, memory: &mut [u8], base: usize, find: Find<'_>) -> Result<Calls, Error<'d>> {
        for (index, section) in self.sections.enumerate() {
            if let Some(offset) = self.offsets[index.0] {
                let contents = section.data(LE, self.object)?;
                let place = offset.checked_add(contents.len()).and_then(|end| memory.get_mut(offset..end));
                place.ok_or(Error::TooLarge)?.copy_from_slice(contents);
            }
        }
        for section in self.sections.iter() {
            let target = section.info_link(LE);
            if section.sh_type(LE) == elf::SHT_REL && self.offsets.get(target.0).is_some_and(Option::is_some) {
                return Err(Error::Section(
                    self.section_name(target)?,
                    "relocations without addends are not of x86-64",
                ));
            }
            let Some((entries, symbols)) = section.rela(LE, self.object)? else { continue };
            let Some(offset) = self.offsets.get(target.0).copied().flatten() else { continue };
            if symbols != self.symbols.section() {
                return Err(Error::Section(self.section_name(target)?, "its relocations have no symbol table"));
            }
            let bytes = self.sections.section(target)?.sh_size(LE) as usize;
            let place = memory.get_mut(offset..offset + bytes).ok_or(Error::TooLarge)?;
            for entry in entries {
                let at = Place {
                    section: self.section_name(target)?,
                    offset: entry.r_offset(LE),
                    kind: entry.r_type(LE, false),
                };
                let symbol = self.address(SymbolIndex(entry.r_sym(LE, false) as usize), base, find)?;
                relocate(place, base + offset, at, symbol, entry.r_addend(LE))?;
            }
        }
        let mut calls = Calls::default();
        self.functions(b".init_array", memory, base, &mut calls.constructors)?;
        self.functions(b".fini_array", memory, base, &mut calls.destructors)?;
        calls.destructors.reverse();
        Ok(calls)
    }

    /// The functions that a section, and those of the same name with a priority, point at: by priority, those without
    /// one last.
    fn functions(&self, name: &[u8], memory: &[u8], base: usize, out: &mut Vec<usize>) -> Result<(), Error<'d>> {
        let priority = |found: &[u8]| match found.strip_prefix(name)? {
            b"" => Some(u32::MAX),
            suffix => core::str::from_utf8(suffix.strip_prefix(b".")?).ok()?.parse().ok(),
        };
        // As many rounds as there are priorities: nothing has to be sorted, nor remembered.
        let mut last = None;
        loop {
            let mut next: Option<u32> = None;
            for section in self.sections.iter() {
                let found = priority(self.sections.section_name(LE, section)?);
                if let Some(found) = found.filter(|found| last.is_none_or(|last| *found > last)) {
                    next = Some(next.map_or(found, |next| next.min(found)));
                }
            }
            let Some(now) = next else { return Ok(()) };
            for (index, section) in self.sections.enumerate() {
                let found = self.sections.section_name(LE, section)?;
                let Some(offset) = self.offsets[index.0].filter(|_| priority(found) == Some(now)) else { continue };
                let words = memory.get(offset..offset + section.sh_size(LE) as usize).ok_or(Error::TooLarge)?;
                let (words, _) = words.as_chunks::<8>();
                out.try_reserve(words.len()).map_err(|_| Error::Memory)?;
                for word in words {
                    let address = u64::from_le_bytes(*word) as usize;
                    if !self.is_text(address, base) {
                        return Err(Error::Function(Name(found)));
                    }
                    out.push(address);
                }
            }
            last = Some(now);
        }
    }
}

/// Writes one value into a section that will be seen at `base`. (System V ABI, AMD64 supplement, "Relocation types".)
fn relocate<'d>(
    section: &mut [u8],
    base: usize,
    place: Place<'d>,
    (symbol, name): (u64, Name<'d>),
    addend: i64,
) -> Result<(), Error<'d>> {
    let absolute = symbol.wrapping_add_signed(addend);
    let relative = absolute.wrapping_sub((base as u64).wrapping_add(place.offset));
    let (value, bytes, fits) = match place.kind {
        elf::R_X86_64_NONE => return Ok(()),
        elf::R_X86_64_64 => (absolute, 8, true),
        elf::R_X86_64_PC64 => (relative, 8, true),
        elf::R_X86_64_32 => (absolute, 4, u32::try_from(absolute).is_ok()),
        elf::R_X86_64_32S => (absolute, 4, i32::try_from(absolute.cast_signed()).is_ok()),
        // There is no procedure linkage table: a call goes where it wants to.
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => (relative, 4, i32::try_from(relative.cast_signed()).is_ok()),
        _ => return Err(Error::Unknown(place)),
    };
    if !fits {
        return Err(Error::Range(place, name));
    }
    let start = usize::try_from(place.offset).map_err(|_| Error::Outside(place))?;
    let there = start.checked_add(bytes).and_then(|end| section.get_mut(start..end)).ok_or(Error::Outside(place))?;
    there.copy_from_slice(&value.to_le_bytes()[..bytes]);
    Ok(())
}
