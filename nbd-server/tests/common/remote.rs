//! An export as a device, with what drives it and what it is measured by; and our own server at a path of choice.

use super::PATIENCE;
use nbd_server::client::{Address, ConnectError, ConnectOptions, NbdDev, NbdOptions, NbdUri};
use nbd_server::engine::Devices;
use nbd_server::export::{Export, ExportId};
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::reactor::{Reactor, ReactorConfig};
use raidcore::buf::{BufList, Slab, SlabConfig, list_len};
use raidcore::dev::{BlockDev, BlockSize, Checked, Completion, ErrorKind, Geometry, Op, Request, Tag};
use raidcore::time::Clock;
use raidcore::uring::{Ring, RingConfig};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const SIZE: usize = 4 << 20;

pub fn unix(path: &Path, export: &str) -> NbdUri {
    NbdUri { address: Address::Unix(path.to_owned()), export: export.to_owned(), tls: None }
}

pub fn new_ring() -> Ring {
    let slab = Slab::new(&SlabConfig::of(&[(4 << 10, 2048), (64 << 10, 256), (1 << 20, 8)])).unwrap();
    Ring::new(&RingConfig::default(), &Clock::monotonic(), &slab).unwrap()
}

pub fn options(extended: bool, structured: bool, connections: usize) -> NbdOptions {
    let connect = ConnectOptions { timeout: PATIENCE, structured, extended };
    NbdOptions { connections, connect }
}

pub fn open(path: &Path, ring: &Ring) -> NbdDev {
    NbdDev::open(&unix(path, ""), ring, &options(false, true, 1)).unwrap()
}

/// A device and what drives it.
pub struct Bench {
    pub ring: Ring,
    pub dev: Checked<NbdDev>,
    pub last_tag: u64,
    pub done: Vec<Completion>,
}

impl Bench {
    pub fn on(path: &Path) -> Bench {
        Bench::of(&unix(path, ""), &options(false, true, 1)).unwrap()
    }

    pub fn of(uri: &NbdUri, options: &NbdOptions) -> Result<Bench, ConnectError> {
        let ring = new_ring();
        let dev = Checked::new(NbdDev::open(uri, &ring, options)?);
        Ok(Bench { dev, ring, last_tag: 0, done: Vec::new() })
    }

    /// With blocks as an array has them that was made of smaller ones.
    pub fn with_blocks_of(path: &Path, block_size: BlockSize) -> Bench {
        let ring = new_ring();
        let mut dev = open(path, &ring);
        dev.allow_blocks_of(block_size);
        Bench { dev: Checked::new(dev), ring, last_tag: 0, done: Vec::new() }
    }

    pub fn submit(&mut self, op: Op, limit: Duration) -> Tag {
        self.last_tag += 1;
        let tag = Tag(self.last_tag);
        self.dev.submit(Request { tag, op, deadline: self.ring.clock().refresh() + limit });
        tag
    }

    /// One turn.
    pub fn turn(&mut self, may_block: bool) {
        self.dev.reap(&mut self.done);
        let soon = self.ring.clock().refresh() + Duration::from_millis(20);
        let until = self.dev.wake_at().map_or(soon, |at| at.min(soon));
        self.ring.enter(Some(until), may_block).unwrap();
        self.dev.reap(&mut self.done);
    }

    pub fn wait(&mut self, tag: Tag) -> Completion {
        let start = Instant::now();
        loop {
            if let Some(at) = self.done.iter().position(|completion| completion.tag == tag) {
                return self.done.remove(at);
            }
            assert!(start.elapsed() < 2 * PATIENCE, "waited in vain for {tag:?}");
            self.turn(true);
        }
    }

    pub fn run(&mut self, op: Op) -> Result<Completion, ErrorKind> {
        let tag = self.submit(op, PATIENCE);
        let completion = self.wait(tag);
        match completion.result {
            Ok(()) => Ok(completion),
            Err(error) => Err(error.kind),
        }
    }

    pub fn write(&mut self, offset: u64, len: usize, fill: u8) -> Result<(), ErrorKind> {
        let op = self.write_op(offset, len, fill);
        self.run(op).map(drop)
    }

    /// Memory in pieces, so that many requests find some.
    pub fn alloc(&self, len: usize) -> BufList {
        let pieces = (0..len).step_by(64 << 10).map(|at| (len - at).min(64 << 10));
        pieces.map(|piece| self.ring.slab().alloc(piece).unwrap()).collect()
    }

    pub fn write_op(&self, offset: u64, len: usize, fill: u8) -> Op {
        let mut bufs = self.alloc(len);
        bufs.iter_mut().for_each(|buf| buf.fill(fill));
        Op::Write { offset, data: bufs.into_iter().map(|buf| buf.freeze()).collect(), fua: false }
    }

    pub fn read_op(&self, offset: u64, len: usize) -> Op {
        Op::Read { offset, bufs: self.alloc(len) }
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, ErrorKind> {
        let op = self.read_op(offset, len);
        let completion = self.run(op)?;
        Ok(completion.bufs.iter().flat_map(|buf| buf.to_vec()).collect())
    }

    pub fn trouble(&self) -> String {
        self.dev.inner().trouble().unwrap_or_default().to_owned()
    }
}

/// A disk whose content outlives its server, and that fails where it is told to.
#[derive(Clone)]
pub struct Platter {
    pub bytes: Arc<Mutex<Vec<u8>>>,
    pub geometry: Geometry,
}

impl Platter {
    pub fn new(size: usize) -> Platter {
        let geometry = Geometry { discard: true, ..Geometry::plain(size as u64, BlockSize::B512) };
        Platter { bytes: Arc::new(Mutex::new(vec![0; size])), geometry }
    }

    pub fn copy(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

pub struct Drive {
    platter: Platter,
    queued: Vec<Request>,
}

impl BlockDev for Drive {
    fn geometry(&self) -> Geometry {
        self.platter.geometry
    }
    fn submit(&mut self, request: Request) {
        self.queued.push(request);
    }
    fn reap(&mut self, done: &mut Vec<Completion>) {
        let mut bytes = self.platter.bytes.lock().unwrap();
        for Request { tag, op, .. } in self.queued.drain(..) {
            let (offset, len) = op.extent();
            let (mut at, range) = (offset as usize, offset as usize..(offset + len) as usize);
            let mut completion = Completion::new(tag, Ok(()));
            match op {
                Op::Read { mut bufs, .. } => {
                    for buf in &mut bufs {
                        let end = at + buf.len();
                        buf.copy_from_slice(&bytes[at..end]);
                        at = end;
                    }
                    completion.bufs = bufs;
                }
                Op::Write { data, .. } => {
                    for view in &data {
                        bytes[at..at + view.len()].copy_from_slice(view);
                        at += view.len();
                    }
                }
                Op::WriteZeroes { .. } | Op::Discard { .. } => bytes[range].fill(0),
                Op::Flush => {}
            }
            done.push(completion);
        }
    }
    fn cancel(&mut self, _: Tag) {}
}

/// Our own server at a path of the test's choice.
pub fn serve(path: &Path, platter: &Platter) -> Reactor<Devices> {
    serve_at(Listener::bind(&ListenAddr::Unix(path.to_owned())).unwrap(), None, platter)
}

/// Our own server, with these certificates if it has any.
pub fn serve_at(
    listener: Listener,
    certificates: Option<nbd_server::tls::ServerTls>,
    platter: &Platter,
) -> Reactor<Devices> {
    let reactor = Reactor::spawn(ReactorConfig::small(), |_| Ok(Devices::new())).unwrap();
    let drive = Drive { platter: platter.clone(), queued: Vec::new() };
    let add = move |host: &mut nbd_server::reactor::Host<Devices>| {
        let geometry = host.engine_mut().insert(ExportId(1), Box::new(drive));
        let (id, name, description) = (ExportId(1), "vol".to_owned(), String::new());
        host.add_export(Export { id, name, description, geometry, byte_granular: false }).unwrap();
        host.set_certificates(certificates);
        host.add_listener(listener).unwrap();
    };
    reactor.handle().call(add).unwrap();
    reactor
}

pub fn stop(reactor: Reactor<Devices>) {
    reactor.handle().stop(PATIENCE).unwrap();
    reactor.join();
}

/// Random requests that do not overlap, many in flight, against a model in memory.
pub fn exercise(
    bench: &mut Bench,
    model: &mut [u8],
    (rounds, align): (u64, u64),
    mut between: impl FnMut(u64),
) {
    let geometry = bench.dev.geometry();
    let mut seed = rounds;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    for round in 0..rounds {
        let mut reads = HashMap::new();
        let slots = 16u64;
        let slot = model.len() as u64 / slots;
        for i in 0..slots {
            let len = (align + random(slot.min(200 << 10) - align)) / align * align;
            let offset = i * slot + random((slot - len) / align + 1) * align;
            let (start, end) = (offset as usize, (offset + len) as usize);
            let fill = random(255) as u8 + 1;
            match random(8) {
                0..3 => {
                    let op = bench.write_op(offset, len as usize, fill);
                    model[start..end].fill(fill);
                    bench.submit(op, PATIENCE);
                }
                3 if geometry.volatile_cache => {
                    bench.submit(Op::Flush, PATIENCE);
                }
                4 => {
                    let (fua, unmap) = (fill.is_multiple_of(2), fill.is_multiple_of(3));
                    model[start..end].fill(0);
                    bench.submit(Op::WriteZeroes { offset, len, fua, unmap }, PATIENCE);
                }
                _ => {
                    let op = bench.read_op(offset, len as usize);
                    reads.insert(bench.submit(op, PATIENCE), (start, end));
                }
            }
        }
        // Some are on their way then.
        (0..3).for_each(|_| bench.turn(false));
        between(round);
        let start = Instant::now();
        let mut answers = 0;
        while answers < slots {
            assert!(start.elapsed() < 2 * PATIENCE, "round {round}: {}", bench.trouble());
            bench.turn(true);
            for completion in bench.done.drain(..) {
                answers += 1;
                assert_eq!(completion.result, Ok(()), "round {round}");
                if let Some((start, end)) = reads.remove(&completion.tag) {
                    assert_eq!(list_len(&completion.bufs), (end - start) as u64);
                    let bytes: Vec<u8> = completion.bufs.iter().flat_map(|buf| buf.to_vec()).collect();
                    assert!(bytes == model[start..end], "round {round}: wrong data");
                }
            }
        }
    }
    assert_eq!(bench.dev.broken_promises(), 0);
}
