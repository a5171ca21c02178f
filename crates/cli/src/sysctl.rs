//! `kernmalloc sysctl`.

use anyhow::{Context as _, Result};
use memstat::{Setting, Value};
use serde_json::json;

use crate::args::SysctlArgs;
use crate::{json, print, target};

pub(crate) fn sysctl(args: &SysctlArgs) -> Result<()> {
    let object = target::open(args.pid, args.file.as_deref())?;
    let mut shown = Vec::new();
    let mut text = String::new();
    if args.all {
        shown = object.settings()?;
    }
    for name in &args.names {
        let Some((name, value)) = name.split_once('=') else {
            shown.extend(object.find_settings(name)?);
            continue;
        };
        let (old, new) = object.set(name.trim(), value.trim())?;
        if args.json {
            shown.extend(object.find_settings(name.trim())?);
        } else {
            text.push_str(&format!("{}: {old} -> {new}\n", name.trim()));
        }
    }
    shown.retain(|setting| setting.settable || !args.writable);
    if args.json {
        let of = |setting: &Setting| match &setting.value {
            Some(Value::Number(number)) => {
                i64::try_from(*number).map_or_else(|_| json!(number.to_string()), |n| json!(n))
            }
            Some(value) => json!(value.to_string()),
            None => json!(null),
        };
        let values: serde_json::Map<String, serde_json::Value> =
            shown.iter().map(|setting| (setting.name.clone(), of(setting))).collect();
        let document = json::document([("sysctl", serde_json::Value::Object(values))]);
        return print(&format!("{document:#}\n"));
    }
    for setting in &shown {
        let value = match (&setting.value, args.description) {
            (_, true) => setting.doc.to_owned(),
            (Some(value), false) => value.to_string(),
            // Known to the program alone; it has a place in the list, as something that can be set at start.
            (None, false) if args.all => continue,
            (None, false) => return Err(unknown(setting)).context("nothing to show"),
        };
        if args.no_name {
            text.push_str(&format!("{value}\n"));
        } else {
            text.push_str(&format!("{}: {value}\n", setting.name));
        }
    }
    print(&text)
}

fn unknown(setting: &Setting) -> anyhow::Error {
    anyhow::anyhow!("{} is read when a program starts, and not shown afterwards", setting.name)
}
