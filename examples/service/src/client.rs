//! A client with one connection, and the script of requests that test and benchmark send.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail};

/// A connection that stays open.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("no service at {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One request; its status and the body of the answer.
    ///
    /// # Errors
    /// The connection ended, or the answer is not one.
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let mut message = format!(
            "{method} {path} HTTP/1.1\r\nhost: service\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        message.extend_from_slice(body);
        self.stream.get_mut().write_all(&message)?;

        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).with_context(|| format!("no status in {line:?}"))?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                bail!("the connection ended inside an answer to {method} {path}");
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok((status, answer))
    }
}

/// The same requests every time for the same seed, for one connection: a mix of all kinds, in which what is kept is replaced
/// and dropped.
#[derive(Debug)]
pub struct Script {
    /// Which connection: names of its own.
    who: u64,
    state: u64,
}

impl Script {
    /// The script of connection `who` with these random numbers.
    #[must_use]
    pub fn new(who: u64, seed: u64) -> Self {
        Self { who, state: 0x9e37_79b9_7f4a_7c15 ^ (who + 1) << 17 ^ seed << 40 }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % below
    }

    /// Sends the next request.
    ///
    /// # Errors
    /// The connection ended, or the service gave an answer that the script does not expect.
    pub fn step(&mut self, client: &mut Client) -> Result<()> {
        let (who, what) = (self.who, self.random(100));
        let number = self.random(400);
        let mut ask = |method: &str, path: String, body: &[u8], good: &[u16]| -> Result<()> {
            let (status, answer) = client.request(method, &path, body)?;
            if !good.contains(&status) {
                bail!("{method} {path}: {status} {}", String::from_utf8_lossy(&answer));
            }
            Ok(())
        };
        match what {
            0..25 => {
                // Mostly small, some of many pages.
                let most = [200, 3000, 30_000, 400_000][(self.random(64) as u32).trailing_zeros().min(3) as usize];
                let length = self.random(most) as usize;
                let words = format!("word{} of connection {who}, ", self.random(50));
                let body: Vec<u8> = words.bytes().cycle().take(length).collect();
                ask("PUT", format!("/documents/document-{who}-{number}"), &body, &[200, 201])
            }
            25..30 => ask("DELETE", format!("/documents/document-{who}-{number}"), b"", &[200, 404]),
            30..60 => ask("GET", format!("/documents/document-{who}-{number}"), b"", &[200, 404]),
            60..72 => {
                let facts: String = (0..number % 9).map(|n| format!("fact {n} about user {number}\n")).collect();
                ask("POST", format!("/sessions/user-{who}-{number}"), facts.as_bytes(), &[201, 409])
            }
            72..80 => ask("DELETE", format!("/sessions/user-{who}-{number}"), b"", &[200, 404]),
            80..82 => ask("GET", format!("/search/word{}", number % 60), b"", &[200]),
            82..98 => {
                let event = "it happened again, ".repeat(1 + (number % 13) as usize);
                ask("POST", "/events".to_owned(), event.as_bytes(), &[201])
            }
            _ => ask("GET", ["/records", "/types"][(number % 2) as usize].to_owned(), b"", &[200]),
        }
    }
}
