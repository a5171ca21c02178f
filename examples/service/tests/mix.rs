//! The service under a scripted mix of requests: its memory is named, and each kind's row is what its handlers hold.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kernmalloc_service::client::{Client, Script};
use memstat::{Object, Snapshot, TypeKind};

struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_service"));
        let mut child = command.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").unwrap().parse().unwrap();
        Self { child, address }
    }

    /// The script on several connections at once, which are closed at the end.
    fn drive(&self, connections: u64, requests: u32, seed: u64) {
        let address = self.address;
        let one = move |who| {
            let (mut client, mut script) = (Client::connect(address).unwrap(), Script::new(who, seed));
            for _ in 0..requests {
                script.step(&mut client).unwrap();
            }
        };
        thread::scope(|scope| (0..connections).for_each(|who| _ = scope.spawn(move || one(who))));
    }

    fn lines(&self, path: &str) -> String {
        let (status, body) = Client::connect(self.address).unwrap().request("GET", path, b"").unwrap();
        assert_eq!(status, 200);
        String::from_utf8(body).unwrap()
    }

    /// Blocks and bytes that the handlers say they hold, by the name of the kind.
    fn records(&self) -> BTreeMap<String, (u64, u64)> {
        let parse = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[0].to_owned(), (words[1].parse().unwrap(), words[2].parse().unwrap()))
        };
        self.lines("/records").lines().map(parse).collect()
    }

    /// As any reader from outside sees it.
    fn snapshot(&self) -> Snapshot {
        Object::open_pid(self.child.id()).unwrap().snapshot().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Blocks and bytes in use by the types with these names.
fn rows(snapshot: &Snapshot, names: &BTreeMap<String, (u64, u64)>) -> BTreeMap<String, (u64, u64)> {
    let named = snapshot.types.iter().filter(|ty| ty.kind == TypeKind::Static && names.contains_key(&ty.name));
    named.map(|ty| (ty.name.clone(), (ty.totals.in_use(), ty.totals.bytes_in_use()))).collect()
}

/// The rows are the records. An answer is dropped only after it was sent: what the last requests held may take a moment to go.
#[track_caller]
fn rows_equal_records(service: &Service) -> BTreeMap<String, (u64, u64)> {
    let start = Instant::now();
    loop {
        let records = service.records();
        let rows = rows(&service.snapshot(), &records);
        if rows == records {
            return records;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "rows {rows:#?}\nrecords {records:#?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn each_kinds_row_is_what_its_handlers_hold_and_nearly_all_is_named() {
    let service = Service::start();
    let mut before = BTreeMap::new();
    for round in 1..=3 {
        service.drive(4, 800, round);
        let held = rows_equal_records(&service);
        for kind in ["documents", "sessions", "searches", "events"] {
            assert!(held[kind].0 > 20 && held[kind].1 > 1000, "{kind}: {held:?}");
        }
        // These keep nothing, but did something.
        for kind in ["reads", "records"] {
            assert_eq!(held[kind], (0, 0), "{kind}");
        }
        assert_ne!(held, before, "round {round} changed nothing");
        before = held;

        let snapshot = service.snapshot();
        let named = snapshot.types.iter().filter(|ty| ty.kind == TypeKind::Static && ty.name != "malloc");
        let reads = named.clone().find(|ty| ty.name == "reads").unwrap();
        assert!(reads.totals.allocs > 100 && reads.high_water_bytes > 10_000, "{reads:?}");
        let named: u64 = named.map(|ty| ty.totals.bytes_in_use()).sum();
        let all = snapshot.bytes_in_use();
        println!("round {round}: {named} of {all} bytes are named; {before:?}");
        assert!(named * 100 >= all * 99, "{named} of {all} bytes are named: {:#?}", snapshot.types);
    }
}

#[test]
fn the_service_shows_the_same_rows_as_a_reader_outside() {
    let service = Service::start();
    service.drive(2, 300, 0);
    rows_equal_records(&service);
    let text = service.lines("/types");
    let snapshot = service.snapshot();
    for kind in ["documents", "sessions", "searches", "events", "tables"] {
        let line = text.lines().find(|line| line.starts_with(&format!("{kind} "))).unwrap();
        let figures: Vec<u64> = line.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
        let ty = snapshot.types.iter().find(|ty| ty.name == kind).unwrap();
        let outside = [ty.totals.in_use(), ty.totals.bytes_in_use(), ty.high_water_bytes, ty.totals.allocs];
        assert_eq!(figures, outside, "{kind}");
    }
}
