//! A raw NBD client that waits for its answers, and servers to try it on.
#![allow(dead_code, clippy::unwrap_used)] // each test file uses its part; a test may unwrap

pub mod haggle;
pub mod raw;
pub mod remote;
#[cfg(feature = "tls")]
#[path = "../../src/tls/samples.rs"]
pub mod samples;
#[cfg(feature = "tls")]
pub mod tls;

use nbd_server::engine::Devices;
use nbd_server::export::{Export, ExportId};
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::reactor::{Reactor, ReactorConfig, ReactorHandle};
use raidcore::dev::BlockDev;
use std::cell::OnceCell;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A server with one export, `vol`, on a unix socket in a folder of its own; on a TCP port, too, once one is used.
pub struct Server {
    pub reactor: Option<Reactor<Devices>>,
    pub handle: ReactorHandle<Devices>,
    pub path: PathBuf,
    addr: OnceCell<SocketAddr>,
    _dir: tempfile::TempDir,
}

impl Server {
    pub fn start<D: BlockDev + Send + 'static>(device: D) -> Server {
        Server::with(ReactorConfig::small(), device)
    }

    pub fn with<D: BlockDev + Send + 'static>(config: ReactorConfig, device: D) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&ListenAddr::Unix(path.clone())).unwrap();
        let reactor = Reactor::spawn(config, |_| Ok(Devices::new())).unwrap();
        let handle = reactor.handle();
        handle
            .call(move |host| {
                let geometry = host.engine_mut().insert(ExportId(1), Box::new(device));
                let (id, name) = (ExportId(1), "vol".to_owned());
                let description = String::new();
                host.add_export(Export { id, name, description, geometry, byte_granular: true }).unwrap();
                host.add_listener(listener).unwrap();
            })
            .unwrap();
        Server { reactor: Some(reactor), handle, path, addr: OnceCell::new(), _dir: dir }
    }

    /// One more place to connect to, with TLS by the certificates in `dir`; they are used for all places.
    #[cfg(feature = "tls")]
    pub fn listen_with_tls(
        &self,
        dir: &Path,
        mode: nbd_server::tls::TlsMode,
        clients: nbd_server::tls::ClientCerts,
    ) -> PathBuf {
        let path = self.path.with_file_name(format!("{mode}-{clients:?}"));
        let listener = Listener::bind(&ListenAddr::Unix(path.clone())).unwrap().with_tls(mode);
        let certificates = nbd_server::tls::ServerTls::from_dir(dir, clients).unwrap();
        self.handle
            .call(move |host| {
                host.set_certificates(Some(certificates));
                host.add_listener(listener).unwrap();
            })
            .unwrap();
        path
    }

    pub fn connect(&self, structured: bool) -> Client {
        Client::connect(&self.path, structured)
    }

    /// Connects from 127.0.0.`host`: a client of its own for each.
    pub fn connect_from(&self, host: u8, structured: bool) -> Client {
        Client::on(self.open_from(host), structured)
    }

    /// Where it listens for TCP.
    pub fn addr(&self) -> SocketAddr {
        *self.addr.get_or_init(|| {
            let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
            let ListenAddr::Tcp(addr) = *listener.addr() else { panic!("a port") };
            self.handle.call(|host| host.add_listener(listener).unwrap()).unwrap();
            addr
        })
    }

    pub fn open_from(&self, host: u8) -> UnixStream {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let stream = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&stream, &SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
        connect(&stream, &self.addr()).unwrap();
        // To read and to write, one stream is like another.
        with_patience(UnixStream::from(stream))
    }

    /// Waits until the reactor has neither connections nor memory in use.
    pub fn wait_until_idle(&self) {
        self.wait_for("connections and memory to be given back", |host| {
            host.connections().is_empty() && host.slab().usage().used_bytes == 0
        });
    }

    pub fn wait_for<F>(&self, what: &str, check: F)
    where
        F: Fn(&nbd_server::reactor::Host<Devices>) -> bool + Send + Clone + 'static,
    {
        let start = Instant::now();
        loop {
            let check = check.clone();
            if self.handle.call(move |host| check(host)).unwrap() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
            std::thread::yield_now();
        }
    }

    pub fn stop(mut self) -> nbd_server::reactor::StopReport {
        let report = self.handle.stop(PATIENCE).unwrap();
        self.reactor.take().unwrap().join();
        report
    }
}

/// A client in the transmission phase.
pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
    pub size: u64,
    pub flags: u16,
}

/// An answer, its cookie first.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

pub fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// The bytes of a client that chooses the default export.
pub fn hello(structured: bool) -> Vec<u8> {
    let structured = if structured { option(8, b"") } else { Vec::new() };
    [&[0, 0, 0, 3], &structured[..], &option(7, &[0; 6])].concat()
}

/// Shakes hands and chooses the default export after `options`; its size and flags.
pub fn hello_with(stream: &mut UnixStream, options: &[Vec<u8>]) -> (u64, u16) {
    let take = |stream: &mut UnixStream, bytes: usize| {
        let mut taken = vec![0; bytes];
        stream.read_exact(&mut taken).unwrap();
        taken
    };
    assert_eq!(take(stream, 18), b"NBDMAGICIHAVEOPT\0\x03");
    let bytes = [&[0, 0, 0, 3], &options.concat()[..], &option(7, &[0; 6])].concat();
    stream.write_all(&bytes).unwrap();
    let (mut acks, mut answer) = (options.len() + 1, (0, 0));
    while acks > 0 {
        let header = take(stream, 20);
        let (kind, len) = (be(&header[12..16]), be(&header[16..20]));
        let data = take(stream, len as usize);
        match kind {
            1 => acks -= 1,
            3 => answer = (be(&data[2..10]), be(&data[10..12]) as u16),
            4 => assert!(data.len() > 4),
            other => panic!("option reply {other:#x}"),
        }
    }
    answer
}

pub fn open(path: &Path) -> UnixStream {
    with_patience(UnixStream::connect(path).unwrap())
}

fn with_patience(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Client {
    pub fn connect(path: &Path, structured: bool) -> Client {
        Client::on(open(path), structured)
    }

    pub fn on(mut stream: UnixStream, structured: bool) -> Client {
        let options = if structured { vec![option(8, b"")] } else { Vec::new() };
        let (size, flags) = hello_with(&mut stream, &options);
        Client { stream, structured, size, flags }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = vec![0; bytes];
        self.stream.read_exact(&mut taken).unwrap();
        taken
    }

    /// Reads one answer; `data_len` tells how much data a successful simple reply to it has.
    pub fn answer(&mut self, data_len: impl Fn(u64) -> usize) -> Answer {
        if !self.structured {
            let head = self.take(16);
            assert_eq!(be(&head[..4]), 0x6744_6698);
            let (error, cookie) = (be(&head[4..8]) as u32, be(&head[8..]));
            let data = self.take(if error == 0 { data_len(cookie) } else { 0 });
            return Answer { cookie, error, data };
        }
        let mut answer: Option<Answer> = None;
        loop {
            let head = self.take(20);
            assert_eq!(be(&head[..4]), 0x668e_33ef);
            let (kind, cookie, len) = (be(&head[6..8]), be(&head[8..16]), be(&head[16..]) as usize);
            let payload = self.take(len);
            let (error, data) = match kind {
                0 => (0, Vec::new()),
                1 => (0, payload[8..].to_vec()),
                2 => (0, vec![0; be(&payload[8..]) as usize]),
                0x8001 => (be(&payload[..4]) as u32, payload[6..].to_vec()),
                other => panic!("chunk {other:#x}"),
            };
            // The chunks of a reply come in order here, and not between those of another.
            let answer = answer.get_or_insert_with(|| Answer { cookie, error, data: Vec::new() });
            assert_eq!((answer.cookie, answer.error), (cookie, error));
            answer.data.extend(data);
            if be(&head[4..6]) == 1 {
                return std::mem::replace(answer, Answer { cookie, error, data: Vec::new() });
            }
        }
    }

    /// One request and its answer.
    pub fn ask(&mut self, flags: u16, kind: u16, offset: u64, len: u32, payload: &[u8]) -> Answer {
        self.send(&[&request(flags, kind, 42, offset, len), payload].concat());
        let answer = self.answer(|_| if kind == 0 { len as usize } else { 0 });
        assert_eq!(answer.cookie, 42);
        answer
    }

    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let answer = self.ask(0, 0, offset, len, b"");
        assert_eq!((answer.error, answer.data.len()), (0, len as usize));
        answer.data
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        assert_eq!(self.ask(0, 1, offset, data.len() as u32, data).error, 0);
    }

    /// True once the server has closed the connection; what it still sends is thrown away.
    pub fn is_closed(&mut self) -> bool {
        self.stream.read_to_end(&mut Vec::new()).is_ok()
    }
}

pub fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
