//! `load ADDRESS CONNECTIONS REQUESTS`: sends the script on so many connections, so many requests each, and prints how many were
//! answered per second.

use std::net::SocketAddr;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use kernmalloc_service::client::{Client, Script};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, connections, requests] = &args[..] else { bail!("usage: load ADDRESS CONNECTIONS REQUESTS") };
    let address: SocketAddr =
        address.parse().with_context(|| format!("{address:?} is no address; as 127.0.0.1:3000"))?;
    let connections: u64 = connections.parse().with_context(|| format!("{connections:?} is no number"))?;
    let requests: u64 = requests.parse().with_context(|| format!("{requests:?} is no number"))?;
    let start = Instant::now();
    let one = |who: u64| -> Result<()> {
        let (mut client, mut script) = (Client::connect(address)?, Script::new(who, 0));
        (0..requests).try_for_each(|_| script.step(&mut client))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|who| scope.spawn(move || one(who))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("the script does not panic"))
    })?;
    println!("{:.0}", (connections * requests) as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
