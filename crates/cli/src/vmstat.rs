//! `kernmalloc vmstat`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use memstat::{Account, Object, is_alive};

use crate::args::VmstatArgs;
use crate::symbols::Symbols;
use crate::{json, layout, print, report, target};

pub(crate) fn vmstat(args: &VmstatArgs) -> Result<()> {
    let interval = match args.wait {
        None => None,
        Some(seconds) if seconds > 0.0 && seconds.is_finite() => Some(Duration::try_from_secs_f64(seconds)?),
        Some(seconds) => bail!("an interval of {seconds} seconds is none"),
    };
    let object = target::open(args.pid, args.file.as_deref())?;
    let mut symbols = Symbols::new();
    let mut next = Instant::now();
    let mut done = 0;
    loop {
        let text = match page(args, &object, &mut symbols) {
            Ok(text) => text,
            // It ended between two readings.
            Err(_) if done > 0 && !is_running(&object) => return Ok(()),
            Err(e) => return Err(e),
        };
        let separator = if done > 0 && !args.table.json { "\n" } else { "" };
        print(&format!("{separator}{text}"))?;
        done += 1;
        let Some(interval) = interval else { return Ok(()) };
        if args.count.is_some_and(|count| done >= count) || !is_running(&object) {
            return Ok(());
        }
        // From the planned time, not from now: what a reading takes does not add up.
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn is_running(object: &Object) -> bool {
    match object.pid() {
        Some(pid) => is_alive(pid),
        // Of a file only its writer knows.
        None => object.header().is_ok_and(|program| !program.exited && is_alive(program.pid)),
    }
}

fn page(args: &VmstatArgs, object: &Object, symbols: &mut Symbols) -> Result<String> {
    let pid = object.pid();
    if args.summary {
        let (account, snapshot) = Account::read(object)?;
        if args.table.json {
            let parts = [("program", json::program(&snapshot)), ("memory-account", json::account(&account))];
            return Ok(format!("{:#}\n", json::document(parts)));
        }
        return Ok(layout::account(&account));
    }
    let snapshot = object.snapshot()?;
    if args.zones {
        if args.table.json {
            let parts =
                [("program", json::program(&snapshot)), ("memory-zone-statistics", json::zones(&snapshot.zones))];
            return Ok(format!("{:#}\n", json::document(parts)));
        }
        return Ok(layout::freebsd_zones(&snapshot.zones));
    }
    if args.table.json {
        return Ok(format!("{:#}\n", json::document(report::types_json(&snapshot, pid, &args.table, symbols))));
    }
    for remark in report::remarks(&snapshot, pid, symbols) {
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("kernmalloc: {remark}\n"));
    }
    Ok(report::types(&snapshot, pid, &args.table, symbols))
}
