//! `cargo xtask bench --service`: the example service with this allocator and with mimalloc, under the same load.

use crate::measure::median;
use crate::shell;
use anyhow::{Context as _, Result};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const CONNECTIONS: u64 = 8;
const ALLOCATORS: [(&str, &[&str]); 2] = [("kernmalloc", &[]), ("mimalloc", &["--features", "mimalloc"])];

/// What one run of the load showed.
#[derive(Default)]
struct Figures {
    /// Answers per second, client and server on this machine.
    per_second: Vec<u64>,
    /// CPU time of the server for one request, nanoseconds.
    cpu_ns: Vec<u64>,
    /// Most resident memory of the server, KiB.
    peak_kib: Vec<u64>,
}

/// Measures, prints, and returns the record.
pub(crate) fn run(machine: &str, rounds: u32, quick: bool) -> Result<String> {
    let requests = if quick { 2_000 } else { 20_000 };
    let dir = shell::target_dir().join("bench-service");
    std::fs::create_dir_all(&dir)?;
    let mut services = Vec::new();
    for (name, features) in ALLOCATORS {
        services.push(build(&dir, "service", name, features)?);
    }
    let load = build(&dir, "load", "client", &[])?;

    let mut figures = ALLOCATORS.map(|_| Figures::default());
    for round in 0..rounds {
        // Who goes first changes, so that a drift of the machine takes no side.
        let order: Vec<usize> = if round % 2 == 0 { vec![0, 1] } else { vec![1, 0] };
        for which in order {
            measure(&services[which], &load, requests, &mut figures[which])?;
        }
    }

    let mut text = format!(
        "# A service\n\n\
         Made by `cargo xtask bench --service`: the service of `examples/service`, with a malloc type per kind of request, and the\n\
         same service with mimalloc; {CONNECTIONS} connections of {requests} requests each from the same machine, {rounds} runs of each,\n\
         taking turns. Median, least and most.\n\n{machine}\n\
         | | requests/s | server's CPU time per request, µs | server's peak, MiB |\n| --- | ---: | ---: | ---: |\n",
    );
    for ((name, _), figures) in ALLOCATORS.iter().zip(&figures) {
        let cell = |values: &[u64], unit: f64, digits: usize| {
            let show = |value: u64| format!("{:.digits$}", value as f64 / unit);
            let (least, most) = (values.iter().min().copied(), values.iter().max().copied());
            let middle = median(values.to_vec());
            format!("{} ({}–{})", show(middle), show(least.unwrap_or(0)), show(most.unwrap_or(0)))
        };
        text += &format!(
            "| {name} | {} | {} | {} |\n",
            cell(&figures.per_second, 1.0, 0),
            cell(&figures.cpu_ns, 1000.0, 1),
            cell(&figures.peak_kib, 1024.0, 1),
        );
    }
    println!("{text}");
    Ok(text)
}

/// Builds a program of the example; a copy under a name of its own, since the next build takes its place.
fn build(dir: &Path, bin: &str, name: &str, features: &[&str]) -> Result<PathBuf> {
    let mut build = shell::cargo();
    build.args(["build", "--quiet", "--release", "--package", "kernmalloc-service", "--bin", bin]).args(features);
    shell::run(&mut build)?;
    let copy = dir.join(name);
    std::fs::copy(shell::target_dir().join("release").join(bin), &copy)?;
    Ok(copy)
}

/// Ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn measure(service: &Path, load: &Path, requests: u64, figures: &mut Figures) -> Result<()> {
    let mut command = Command::new(service);
    let child = command.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn();
    let mut service = Running(child.with_context(|| format!("cannot start {}", shell::shown(&command)))?);
    let mut line = String::new();
    BufReader::new(service.0.stdout.as_mut().context("no pipe")?).read_line(&mut line)?;
    let address = line.trim_end().strip_prefix("listening on ").with_context(|| format!("no address in {line:?}"))?;

    let per_second =
        shell::output(Command::new(load).args([address, &CONNECTIONS.to_string(), &requests.to_string()]))?;
    figures.per_second.push(per_second.trim().parse().with_context(|| format!("no number in {per_second:?}"))?);
    let process = PathBuf::from(format!("/proc/{}", service.0.id()));
    let mut cpu_ns = 0;
    for task in std::fs::read_dir(process.join("task"))? {
        let schedstat = std::fs::read_to_string(task?.path().join("schedstat"))?;
        cpu_ns +=
            schedstat.split(' ').next().and_then(|word| word.parse::<u64>().ok()).context("no time in schedstat")?;
    }
    figures.cpu_ns.push(cpu_ns / (CONNECTIONS * requests));
    let status = std::fs::read_to_string(process.join("status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM in status")?;
    figures.peak_kib.push(peak.trim().trim_end_matches(" kB").parse()?);
    Ok(())
}
