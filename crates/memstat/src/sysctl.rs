//! The tree of names of [`abi::sysctl`], read from an object and set in a running program.

use std::collections::HashMap;
use std::fmt;
use std::mem::offset_of;

use abi::sysctl::{self, Kind, Place, TypeFigure, ZoneFigure};
use abi::{Control, Header, TypeRecord, ZoneRecord};

use crate::error::{Error, Result};
use crate::object::Object;
use crate::snapshot::{MallocType, Snapshot, TypeKind, Zone, ZoneDomain};

/// A value of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number; what it counts stands in [`Setting::kind`].
    Number(i128),
    /// One of a few words.
    Word(&'static str),
    /// Text.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Word(word) => f.write_str(word),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// A name with its value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The whole name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its value; `None` where only the program itself knows it.
    pub value: Option<Value>,
    /// What it means.
    pub doc: &'static str,
    /// Whether it can be set while the program runs.
    pub settable: bool,
    /// Where to, and within which bounds.
    place: Option<(u64, u64, u64)>,
}

/// A name as part of another: what is neither letter nor digit is `_`.
fn part(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// A figure of a zone; of one of its domains, where it is by domain.
fn zone_figure(zone: &Zone, figure: ZoneFigure, domain: &ZoneDomain) -> u64 {
    match figure {
        ZoneFigure::Size => zone.item_bytes,
        ZoneFigure::Flags => zone.flags.into(),
        ZoneFigure::BucketSize => zone.bucket_size,
        ZoneFigure::BucketSizeMax => zone.bucket_size_max,
        ZoneFigure::BucketMax => zone.bucket_max,
        ZoneFigure::SlabBytes => zone.slab_bytes,
        ZoneFigure::ItemsPerSlab => zone.items_per_slab,
        ZoneFigure::Slabs => zone.slabs,
        ZoneFigure::Idle => zone.slabs_idle,
        ZoneFigure::Efficiency => (zone.item_bytes.saturating_mul(zone.items_per_slab).saturating_mul(100))
            .checked_div(zone.slab_bytes)
            .unwrap_or(0),
        ZoneFigure::SlabFree => zone.slab_free,
        ZoneFigure::Align => zone.align,
        ZoneFigure::Stride => zone.stride_bytes,
        ZoneFigure::Reserve => zone.reserve,
        ZoneFigure::KegName => zone.keg.unwrap_or(zone.index),
        ZoneFigure::DomainDepot => domain.depot,
        ZoneFigure::DomainMost => domain.most,
        ZoneFigure::DomainLeast => domain.least,
        ZoneFigure::DomainBatchLeast => domain.batch_least,
        ZoneFigure::DomainLongLeast => domain.long_least,
        ZoneFigure::DomainIdlePeriods => domain.idle_periods,
        ZoneFigure::DomainWorkingSet => domain.working_set,
        ZoneFigure::DomainFreeItems => domain.free_items,
        ZoneFigure::DomainFreeSlabs => domain.free_slabs,
        ZoneFigure::DomainPages => domain.slabs.saturating_mul(zone.slab_bytes),
        ZoneFigure::Limit => zone.limit,
        ZoneFigure::LimitItems => zone.limit_items,
        ZoneFigure::Sleepers => zone.sleepers,
        ZoneFigure::Sleeps => zone.sleeps,
        ZoneFigure::Current => zone.used(),
        ZoneFigure::Allocs => zone.allocs,
        ZoneFigure::Frees => zone.frees,
        ZoneFigure::Fails => zone.fails,
        ZoneFigure::CrossDomain => zone.xdomain,
    }
}

/// Names as parts of others, told apart where they are the same: the second of a name gets `_1`, as in FreeBSD.
#[derive(Default)]
struct Names(HashMap<String, u32>);

impl Names {
    fn unique(&mut self, name: &str) -> String {
        let mut name = part(name);
        while let Some(seen) = self.0.get_mut(&name) {
            let again = format!("{name}_{seen}");
            *seen += 1;
            if !self.0.contains_key(&again) {
                name = again;
            }
        }
        self.0.insert(name.clone(), 1);
        name
    }
}

fn type_figure(ty: &MallocType, figure: TypeFigure) -> u64 {
    match figure {
        TypeFigure::Failures => ty.failures,
        TypeFigure::HighUse => ty.high_water_bytes,
        TypeFigure::InUse => ty.totals.in_use(),
        TypeFigure::Limit => ty.limit_bytes,
        TypeFigure::LimitBlocks => ty.limit_blocks,
        TypeFigure::MapBlocks => ty.map_blocks,
        TypeFigure::MemUse => ty.totals.bytes_in_use(),
        TypeFigure::Requested => ty.totals.bytes_requested,
        TypeFigure::Requests => ty.totals.allocs,
    }
}

fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Object {
    /// The whole tree, sorted by name.
    pub fn settings(&self) -> Result<Vec<Setting>> {
        let snapshot = self.snapshot()?;
        let mut all = self.single_settings(&snapshot)?;
        let mut names = Names::default();
        for zone in snapshot.zones.iter().filter(|zone| !zone.name.is_empty()) {
            let name = names.unique(&zone.name);
            for entry in sysctl::ZONE_TABLE {
                self.zone_settings(&snapshot, zone, &name, entry, &mut all)?;
            }
        }
        let mut names = Names::default();
        for (index, ty) in snapshot.types.iter().enumerate() {
            if ty.kind != TypeKind::Static || ty.gone && ty.totals.in_use() == 0 {
                continue;
            }
            let name = names.unique(&ty.name);
            // "malloc" is nobody's own: what is credited to nobody knows no limit.
            let limited = !ty.gone && index != 0;
            for entry in sysctl::TYPE_TABLE {
                let settable = limited && entry.figure == TypeFigure::Limit;
                let offset = offset_of!(TypeRecord, limit_bytes) as u64;
                all.push(Setting {
                    name: format!("kern.malloc_stats.{name}.{}", entry.suffix),
                    kind: entry.kind,
                    value: Some(Value::Number(type_figure(ty, entry.figure).into())),
                    doc: entry.doc,
                    settable,
                    place: settable
                        .then(|| Ok((self.type_offset(index as u64)? + offset, 0, sysctl::LIMIT_MAX)))
                        .transpose()?,
                });
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// A name of a zone; one for each of its domains, where the figure is by domain.
    fn zone_settings(
        &self,
        snapshot: &Snapshot,
        zone: &Zone,
        name: &str,
        entry: &sysctl::ZoneEntry,
        all: &mut Vec<Setting>,
    ) -> Result<()> {
        let field = match entry.figure {
            ZoneFigure::BucketSizeMax => Some((offset_of!(ZoneRecord, bucket_size_max), 255)),
            // The zones of malloc's size classes have no limit.
            ZoneFigure::Limit if zone.flags & abi::zone_flag::MALLOC == 0 => {
                Some((offset_of!(ZoneRecord, limit), sysctl::LIMIT_MAX))
            }
            _ => None,
        };
        let place = field.map(|(offset, max)| Ok((self.zone_offset(zone.index)? + offset as u64, 0, max)));
        let place = place.transpose()?;
        let whole = ZoneDomain::default();
        let by_domain = entry.suffix.contains("domain.D.");
        let domains = if by_domain { &zone.domains[..] } else { std::slice::from_ref(&whole) };
        for (index, domain) in domains.iter().enumerate() {
            let number = zone_figure(zone, entry.figure, domain);
            let value = match entry.figure {
                ZoneFigure::KegName => {
                    let keg = snapshot.zones.iter().find(|keg| keg.index == number);
                    Value::Text(keg.map_or_else(String::new, |keg| keg.name.clone()))
                }
                ZoneFigure::DomainPages => Value::Number((number / snapshot.heap.page_bytes.max(1)).into()),
                _ => Value::Number(number.into()),
            };
            let suffix = entry.suffix.replace("domain.D.", &format!("domain.{index}."));
            all.push(Setting {
                name: format!("vm.uma.{name}.{suffix}"),
                kind: entry.kind,
                value: Some(value),
                doc: entry.doc,
                settable: place.is_some(),
                place,
            });
        }
        Ok(())
    }

    fn single_settings(&self, snapshot: &Snapshot) -> Result<Vec<Setting>> {
        self.with_header(|header| {
            sysctl::TABLE
                .iter()
                .map(|entry| {
                    let what = entry.name;
                    let number = match entry.place {
                        Place::U64(offset) | Place::Control(offset, ..) => Some(header.u64(what, offset)?.into()),
                        Place::U32(offset) => Some(header.u32(what, offset)?.into()),
                        Place::PagesAsBytes(offsets) => {
                            let pages = offsets
                                .iter()
                                .try_fold(0u64, |sum, &offset| Ok(sum.saturating_add(header.u64(what, offset)?)))?;
                            Some(i128::from(pages) * i128::from(snapshot.heap.page_bytes))
                        }
                        Place::Age(offset) => Some(match header.u64(what, offset)? {
                            0 => -1,
                            at => i128::from(monotonic_ns().saturating_sub(at) / 1_000_000_000),
                        }),
                        Place::Text(..) | Place::Nowhere => None,
                    };
                    let value = match (entry.place, entry.kind, number) {
                        (Place::Text(offset, len), ..) => Some(Value::Text(header.text(what, offset, len)?)),
                        (_, Kind::Words(words), Some(number)) => {
                            let word = usize::try_from(number).ok().and_then(|at| words.get(at));
                            // A word that has no name was written by somebody else than us.
                            Some(word.map_or(Value::Number(number), |word| Value::Word(word)))
                        }
                        (.., number) => number.map(Value::Number),
                    };
                    let place = match entry.place {
                        Place::Control(offset, min, max) if entry.access.while_running() => Some((offset, min, max)),
                        _ => None,
                    };
                    let name = entry.name.to_owned();
                    Ok(Setting { name, kind: entry.kind, value, doc: entry.doc, settable: place.is_some(), place })
                })
                .collect()
        })
    }

    /// What has this name, or lies below it.
    pub fn find_settings(&self, name: &str) -> Result<Vec<Setting>> {
        let mut all = self.settings()?;
        let below = format!("{name}.");
        if !all.iter().any(|setting| setting.name == name || setting.name.starts_with(&below)) {
            let nearest = all.iter().map(|setting| &setting.name).min_by_key(|known| distance(known, name));
            let nearest = nearest.cloned().unwrap_or_default();
            return Err(Error::NoSuchName { name: name.to_owned(), nearest });
        }
        all.retain(|setting| setting.name == name || setting.name.starts_with(&below));
        Ok(all)
    }

    /// Sets a value in the running program, which reads it on its slow paths. Returns the old value and the new one.
    pub fn set(&self, name: &str, text: &str) -> Result<(Value, Value)> {
        let not_settable = |why: String| Error::NotSettable { name: name.to_owned(), why };
        let mut found = self.find_settings(name)?;
        let setting = match found.len() {
            1 if found[0].name == name => found.remove(0),
            n => return Err(not_settable(format!("it is not one value; {n} lie below it"))),
        };
        let (Some((offset, min, max)), Some(old)) = (setting.place, setting.value) else {
            let at_start = sysctl::find(name).is_some_and(|entry| entry.access.at_start());
            return Err(not_settable(if at_start {
                format!("only when the program starts: kernmalloc run --set {name}={text} -- PROGRAM")
            } else {
                "it is read-only".to_owned()
            }));
        };
        // A program that is gone, or a file: setting it would be of no use to anybody.
        if self.pid().is_none() {
            return Err(not_settable("the program is not running".to_owned()));
        }
        let (number, new) = match setting.kind {
            Kind::Words(words) => {
                let at = words.iter().position(|word| *word == text);
                let at = at.ok_or_else(|| not_settable(format!("{text} is none of {}", words.join(", "))))?;
                (at as u64, Value::Word(words[at]))
            }
            _ => {
                let number = text.parse::<u64>().ok().filter(|number| (min..=max).contains(number));
                let number =
                    number.ok_or_else(|| not_settable(format!("{text} is not a whole number from {min} to {max}")))?;
                (number, Value::Number(number.into()))
            }
        };
        self.store(offset, number)?;
        // After the value: whoever sees it sees the value.
        self.store((offset_of!(Header, control) + offset_of!(Control, settings)) as u64, 1)?;
        Ok((old, new))
    }
}

/// How many bytes differ (Wagner and Fischer 1974).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::{Builder, Line};

    fn object() -> Object {
        let mut b = Builder::new(2);
        let a = Line { allocs: 10, bytes_allocated: 480, bytes_requested: 400, size_mask: 4, ..Line::default() };
        b.ty(abi::type_kind::STATIC, abi::NO_LIB, 0, "my type", &[a]);
        b.zone("malloc-48", 48, [2, 100, 14, 70, 20]);
        b.word((offset_of!(abi::Header, control) + offset_of!(abi::Control, dirty_keep_pages)) as u64, 77);
        Object::from_bytes(b.bytes()).unwrap()
    }

    fn value(object: &Object, name: &str) -> String {
        let [setting] = &object.find_settings(name).unwrap()[..] else { panic!("{name} is not one value") };
        setting.value.as_ref().map_or_else(|| "-".to_owned(), Value::to_string)
    }

    #[test]
    fn values_are_read_by_name() {
        let object = object();
        assert_eq!(value(&object, "vm.kmem_dirty_keep"), "77");
        assert_eq!(value(&object, "kern.malloc.attribution"), "site");
        assert_eq!(value(&object, "kern.malloc.on_misuse"), "abort");
        assert_eq!(value(&object, "kern.malloc_last_fail"), "-1");
        assert_eq!(value(&object, "kern.malloc.rseq"), "-");
        assert_eq!(value(&object, "vm.uma.malloc_48.size"), "48");
        assert_eq!(value(&object, "vm.uma.malloc_48.stats.current"), "50");
        assert_eq!(value(&object, "kern.malloc_stats.my_type.memuse"), "480");
        assert_eq!(object.find_settings("vm.uma.malloc_48.stats").unwrap().len(), 5);
        assert_eq!(object.find_settings("vm.uma").unwrap().len(), sysctl::ZONE_TABLE.len());
        let all = object.settings().unwrap();
        assert!(all.windows(2).all(|pair| pair[0].name < pair[1].name));
    }

    #[test]
    fn what_cannot_be_set_says_why() {
        let object = object();
        let error = |name: &str, value: &str| object.set(name, value).unwrap_err().to_string();
        assert_eq!(error("vm.kmem_map_size", "1"), "vm.kmem_map_size cannot be set: it is read-only");
        assert!(error("kern.malloc.rseq", "off").contains("kernmalloc run --set kern.malloc.rseq=off -- PROGRAM"));
        assert!(error("vm.kmem_dirty_kep", "1").contains("did you mean vm.kmem_dirty_keep?"));
        assert!(error("vm.uma", "1").contains("it is not one value"));
        assert!(error("vm.kmem_dirty_keep", "1").contains("the program is not running"));
    }
}
