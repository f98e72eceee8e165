//! Reads of one size from an NBD server on a unix socket, as many at once as wanted, for benches/nbd.sh: what a
//! server's search for holes costs cannot be seen with clients that always ask for the same kind of replies.
//!
//! ```text
//! cargo run --release -p nbd-server --example nbd_reads -- SOCKET EXPORT simple|holes|df BYTES DEPTH SECONDS
//! ```
//!
//! `simple` is without structured replies, `holes` with them, `df` with them and NBD_CMD_FLAG_DF on each read: only with
//! `holes` may a server answer in chunks. Prints the number of reads.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const STRUCTURED_REPLY: u32 = 8;
const GO: u32 = 7;
const DF: u16 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, export, kind, bytes, depth, seconds] = &words[..] else {
        return Err("usage: nbd_reads SOCKET EXPORT simple|holes|df BYTES DEPTH SECONDS".into());
    };
    let (bytes, depth): (u32, usize) = (bytes.parse()?, depth.parse()?);
    let time = Duration::from_secs_f64(seconds.parse()?);
    let mut stream = UnixStream::connect(socket)?;
    let size = choose(&mut stream, export, kind != "simple")?;
    let flags = if kind == "df" { DF } else { 0 };
    let places = size / u64::from(bytes);
    let (begun, mut under_way, mut asked, mut done) = (Instant::now(), VecDeque::new(), 0u64, 0u64);
    while begun.elapsed() < time || !under_way.is_empty() {
        while under_way.len() < depth && begun.elapsed() < time {
            // A stride that visits all places in an order that no read-ahead expects.
            let offset = asked.wrapping_mul(0x9e37_79b1) % places * u64::from(bytes);
            stream.write_all(&request(flags, asked, offset, bytes))?;
            under_way.push_back(asked);
            asked += 1;
        }
        let cookie = take_answer(&mut stream, kind != "simple", bytes)?;
        let at = under_way.iter().position(|asked| *asked == cookie).ok_or("an answer to no read")?;
        under_way.remove(at);
        done += 1;
    }
    println!("{done}");
    Ok(())
}

/// Shakes hands; the export's size.
fn choose(stream: &mut UnixStream, export: &str, structured: bool) -> Result<u64, Box<dyn Error>> {
    take(stream, 18)?;
    stream.write_all(&3u32.to_be_bytes())?;
    if structured {
        stream.write_all(&option(STRUCTURED_REPLY, b""))?;
        if reply(stream)?.0 != 1 {
            return Err("the server knows no structured replies".into());
        }
    }
    let name = [&(export.len() as u32).to_be_bytes()[..], export.as_bytes(), &[0, 0]].concat();
    stream.write_all(&option(GO, &name))?;
    let mut size = None;
    loop {
        match reply(stream)? {
            (1, _) => return size.ok_or_else(|| "the server tells no size".into()),
            (3, data) if data.starts_with(&[0, 0]) => size = data.get(2..10).map(number),
            (3, _) => {}
            (kind, _) => return Err(format!("the server refuses the export: {kind:#x}").into()),
        }
    }
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [b"IHAVEOPT", &number.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

fn reply(stream: &mut UnixStream) -> Result<(u64, Vec<u8>), Box<dyn Error>> {
    let head = take(stream, 20)?;
    let data = take(stream, number(&head[16..]) as usize)?;
    Ok((number(&head[12..16]), data))
}

fn request(flags: u16, cookie: u64, offset: u64, bytes: u32) -> Vec<u8> {
    let (magic, flags) = (0x2560_9513u32.to_be_bytes(), flags.to_be_bytes());
    let (cookie, offset) = (cookie.to_be_bytes(), offset.to_be_bytes());
    [&magic[..], &flags, &[0, 0], &cookie, &offset, &bytes.to_be_bytes()].concat()
}

/// The cookie of the next read that is answered in full.
fn take_answer(stream: &mut UnixStream, structured: bool, bytes: u32) -> Result<u64, Box<dyn Error>> {
    if !structured {
        let head = take(stream, 16 + bytes as usize)?;
        return Ok(number(&head[8..16]));
    }
    loop {
        let head = take(stream, 20)?;
        take(stream, number(&head[16..]) as usize)?;
        if head[5] & 1 != 0 {
            return Ok(number(&head[8..16]));
        }
    }
}

fn take(stream: &mut UnixStream, bytes: usize) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut taken = vec![0; bytes];
    stream.read_exact(&mut taken)?;
    Ok(taken)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
