//! A server with one export, and behind it a device that remembers what it was asked for, and waits or fails where a
//! test wants it to.

use crate::common::haggle::Haggle;
use crate::common::raw::{Headers, Raw};
use crate::common::{Client, Server};
use crate::nbd;
use nbd_server::export::{Export, ExportId};
use nbd_server::ram::RamDisk;
use parking_lot::Mutex;
use raidcore::buf::BufList;
use raidcore::dev::{BlockDev, BlockSize, Completion, ErrorKind, Geometry, Op, OpKind, Request, Tag};
use std::sync::Arc;

/// Bytes of the export of [`Stage::new`].
pub const SIZE: u64 = 8 << 20;
pub const TIB: u64 = 1 << 40;

/// What the device has executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: OpKind,
    pub offset: u64,
    pub len: u64,
    pub fua: bool,
    pub unmap: bool,
}

/// What the test and the device share.
struct Script {
    diary: Mutex<Vec<Entry>>,
    /// What is not executed for the time being.
    holds: Mutex<fn(&Op) -> bool>,
    fails: Mutex<fn(&Op) -> Option<ErrorKind>>,
}

/// A disk in memory, or one so vast that it keeps nothing.
pub struct Witness {
    disk: Option<RamDisk>,
    geometry: Geometry,
    waiting: Vec<Request>,
    script: Arc<Script>,
}

impl Witness {
    pub fn ram() -> Witness {
        let disk = RamDisk::new(SIZE as usize);
        Witness { geometry: disk.geometry(), disk: Some(disk), ..Witness::vast() }
    }

    /// 1 TiB of anything.
    pub fn vast() -> Witness {
        let script =
            Script { diary: Mutex::default(), holds: Mutex::new(|_| false), fails: Mutex::new(|_| None) };
        let geometry = Geometry { discard: true, ..Geometry::plain(TIB, BlockSize::B4096) };
        Witness { disk: None, geometry, waiting: Vec::new(), script: Arc::new(script) }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Geometry)) -> Witness {
        change(&mut self.geometry);
        self
    }
}

impl BlockDev for Witness {
    fn geometry(&self) -> Geometry {
        self.geometry
    }
    fn submit(&mut self, request: Request) {
        self.waiting.push(request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        let (holds, fails) = (*self.script.holds.lock(), *self.script.fails.lock());
        let (held, free): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|request| holds(&request.op));
        self.waiting = held;
        for request in free {
            self.script.diary.lock().push(Entry::of(&request.op));
            match (fails(&request.op), &mut self.disk) {
                (Some(kind), _) => done.push(request.refuse(kind)),
                (None, Some(disk)) => disk.submit(request),
                (None, None) => {
                    let bufs = match request.op {
                        Op::Read { bufs, .. } => bufs,
                        _ => BufList::new(),
                    };
                    done.push(Completion { tag: request.tag, result: Ok(()), bufs });
                }
            }
        }
        if let Some(disk) = &mut self.disk {
            disk.reap(done);
        }
    }
    fn cancel(&mut self, _: Tag) {}
}

impl Entry {
    fn of(op: &Op) -> Entry {
        let (offset, len) = op.extent();
        let (fua, unmap) = match op {
            Op::Write { fua, .. } => (*fua, false),
            Op::WriteZeroes { fua, unmap, .. } => (*fua, *unmap),
            _ => (false, false),
        };
        Entry { kind: op.kind(), offset, len, fua, unmap }
    }
}

/// The server, and the strings its device hangs on.
pub struct Stage {
    pub server: Server,
    script: Arc<Script>,
}

impl Stage {
    /// 8 MiB of zeroes, offered as `vol`, without a description.
    pub fn new() -> Stage {
        Stage::of(Witness::ram())
    }

    pub fn of(device: Witness) -> Stage {
        let script = Arc::clone(&device.script);
        Stage { server: Server::start(device), script }
    }

    /// Changes what is said of the export.
    pub fn reoffer(self, change: impl FnOnce(&mut Export) + Send + 'static) -> Stage {
        let again = move |host: &mut nbd_server::reactor::Host<_>| {
            let mut export = host.remove_export(ExportId(1)).unwrap();
            change(&mut export);
            host.add_export(export).unwrap();
        };
        self.server.handle.call(again).unwrap();
        self
    }

    /// Offers more exports of these names, with nothing behind them.
    pub fn also(self, names: Vec<String>) -> Stage {
        let add = move |host: &mut nbd_server::reactor::Host<_>| {
            for (number, name) in names.into_iter().enumerate() {
                let geometry = Geometry::plain(1 << 20, BlockSize::B4096);
                let (id, description) = (ExportId(2 + number as u32), format!("about {name}"));
                host.add_export(Export { id, name, description, geometry, byte_granular: true }).unwrap();
            }
        };
        self.server.handle.call(add).unwrap();
        self
    }

    /// Operations of which this is true are not executed until [`Stage::release`].
    pub fn hold(&self, which: fn(&Op) -> bool) {
        *self.script.holds.lock() = which;
    }

    pub fn release(&self) {
        self.hold(|_| false);
        self.server.handle.call(|_| ()).unwrap();
    }

    pub fn fail(&self, how: fn(&Op) -> Option<ErrorKind>) {
        *self.script.fails.lock() = how;
    }

    /// What the device has executed since the last time.
    pub fn diary(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.script.diary.lock())
    }

    /// Waits until so many requests are with the device, on all connections.
    pub fn wait_for_in_flight(&self, requests: usize) {
        self.server.wait_for("requests to be in flight", move |host| {
            host.connections().iter().map(|c| c.in_flight).sum::<usize>() == requests
        });
    }

    pub fn haggle(&self) -> Haggle {
        Haggle::open(&self.server.path)
    }

    pub fn raw(&self, headers: Headers) -> Raw {
        Raw::connect(&self.server.path, headers, &["base:allocation"])
    }

    /// A client of each kind, those that can with `base:allocation`.
    pub fn lines(&self) -> [Line; 3] {
        [
            Line::Simple(self.server.connect(false)),
            Line::Chunks(self.raw(Headers::Structured)),
            Line::Chunks(self.raw(Headers::Extended)),
        ]
    }
}

/// A client with any kind of replies.
pub enum Line {
    Simple(Client),
    Chunks(Raw),
}

impl Line {
    pub fn is_simple(&self) -> bool {
        matches!(self, Line::Simple(_))
    }

    pub fn is_extended(&self) -> bool {
        matches!(self, Line::Chunks(Raw { headers: Headers::Extended, .. }))
    }

    /// The transmission flags.
    pub fn flags(&self) -> u16 {
        match self {
            Line::Simple(client) => client.flags,
            Line::Chunks(raw) => raw.client.flags,
        }
    }

    /// The error a request is answered with; 0 for none. The flag of a payload is set where it belongs.
    pub fn error(&mut self, flags: u16, kind: u16, offset: u64, len: u64, payload: &[u8]) -> u64 {
        let flag = if self.is_extended() && kind == nbd::WRITE { nbd::PAYLOAD_LEN } else { 0 };
        match self {
            Line::Simple(client) => u64::from(client.ask(flags, kind, offset, len as u32, payload).error),
            Line::Chunks(raw) => raw.error(flags | flag, kind, offset, len, payload),
        }
    }

    /// Panics unless the connection is in step: what is written can be read.
    pub fn assert_alive(&mut self) {
        assert_eq!(self.error(0, nbd::WRITE, 4096, 5, b"alive"), 0);
        let read = match self {
            Line::Simple(client) => client.read(4096, 5),
            Line::Chunks(raw) => raw.read(0, 4096, 5).0,
        };
        assert_eq!(read, b"alive");
    }
}
