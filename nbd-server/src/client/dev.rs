//! An export of another server as a [`BlockDev`]: requests in, answers out. Connections are in `links`.
//!
//! Invariants: a job is in exactly one place: in `waiting`, in flight on the connection that it names, or ended and
//! waiting for its memory. Whatever is in flight on a connection is in `waiting` again once that is lost.

mod links;

use super::blocking::{ConnectOptions, Dialled, dial};
use super::error::{ClientError, ConnectError};
use super::job::{Job, JobId, Jobs};
use super::promise::{Promise, Verdict};
use super::reply::Refusal;
use super::terms::Terms;
use super::unflushed::{Unflushed, Written};
use super::uri::NbdUri;
use crate::limits::{CLIENT_QUEUE_DEPTH, MAX_CLIENT_CONNECTIONS, PIECE_BYTES, VERIFY_BYTES};
use crate::proto::wire::transmission_flags as flags;
use links::{Dials, Place};
use raidcore::buf::{BufList, View};
use raidcore::dev::{BlockDev, BlockSize, Completion, ErrorKind, Geometry, IoError, OpKind, Request, Tag};
use raidcore::limits::MAX_REQUEST_BYTES;
use raidcore::time::{Clock, Time};
use raidcore::uring::{Port, Ring};
use rustix::io::Errno;
use smallvec::SmallVec;
use std::collections::{HashMap, VecDeque};

/// The error number with which a server says that it ends.
const ESHUTDOWN: u32 = 108;

/// How an export is used.
#[derive(Clone, Copy, Debug)]
pub struct NbdOptions {
    /// Connections; more than one only where the server says that they agree (`NBD_FLAG_CAN_MULTI_CONN`).
    pub connections: usize,
    /// How they are made.
    pub connect: ConnectOptions,
}

impl Default for NbdOptions {
    /// One connection.
    fn default() -> NbdOptions {
        NbdOptions { connections: 1, connect: ConnectOptions::default() }
    }
}

/// Connections to an export, to be made a device of: may be sent to the thread of the ring.
#[derive(Debug)]
pub struct Reached {
    uri: NbdUri,
    options: NbdOptions,
    terms: Terms,
    geometry: Geometry,
    dialled: Vec<Dialled>,
}

impl Reached {
    /// Connects, with blocking calls that end within the connect timeout, each connection's.
    ///
    /// All connections are made now, before anything is written: one that is made later has to look for what is not
    /// flushed first.
    pub fn new(uri: &NbdUri, options: &NbdOptions) -> Result<Reached, ConnectError> {
        let first = dial(uri, &options.connect)?;
        let terms = first.export;
        let geometry =
            geometry(&terms, options).map_err(|error| ConnectError { uri: Box::new(uri.clone()), error })?;
        let connections = geometry.queue_depth / CLIENT_QUEUE_DEPTH;
        let mut dialled = vec![first];
        for made in 1..connections {
            let promise = promise(&terms, &geometry, connections as usize);
            let same = |dialled: &Dialled| !matches!(promise.judge(&dialled.export), Verdict::Refused(_));
            let Some(next) = dial(uri, &options.connect).ok().filter(same) else {
                tracing::warn!("{uri}: {made} connections of {connections} could be made; they will do");
                break;
            };
            dialled.push(next);
        }
        Ok(Reached { uri: uri.clone(), options: *options, terms, geometry, dialled })
    }

    /// The device that it will be.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
}

/// An export of another server.
///
/// # What holds
///
/// - **Deadlines.** Each request is answered at its deadline at the latest, whether the server is there, silent or
///   away. A request that was sent and not answered in time ends its connection.
/// - **A lost connection** is made again, 100 ms later at first, up to 5 s later if that fails, for as long as the
///   device lives. What was in flight is sent again, within its deadline and at most five times. Requests that overlap
///   must not be in flight together where one is a write, as everywhere in the engine: then sending again changes
///   nothing.
/// - **No late write (rule 6).** A write that was sent and timed out makes the device [`Gone`](ErrorKind::Gone) for good:
///   nothing is sent after it. A write that was sent again may be executed twice by a server that still works on
///   what a broken connection had brought it. NBD has no way to find out: between the two executions a later write to
///   the same place can be undone. A server that ends its connections only when it is done with their requests, or by
///   ending itself, does not do that.
/// - **Durable (rule 1).** What was answered and not flushed is remembered by checksum and looked for after each
///   reconnect, before anything else is sent; if it cannot be, or is not there, the device is gone. So a server may be
///   killed and started again without harm, and one that lost its caches is found out. Blocks have 4096 bytes, the
///   unit of that memory. A writable export without flush is refused: nothing could ever be known to be durable.
/// - **The same export.** If it comes back smaller, read-only, with larger blocks or without an ability that is relied
///   on, the device is gone: see [`Promise`]. One that has grown goes on, and
///   [`refresh_size`](BlockDev::refresh_size) takes the size that each connection was told when it was made. That an
///   export of the same shape is another one cannot be seen.
/// - **Nothing a server sends is believed** beyond what was asked: see [`ReplyParser`](super::ReplyParser).
pub struct NbdDev {
    uri: Box<NbdUri>,
    clock: Clock,
    ring: Ring,
    port: Port,
    terms: Terms,
    geometry: Geometry,
    places: Vec<Place>,
    dials: Dials,
    jobs: Jobs,
    by_tag: HashMap<Tag, JobId>,
    /// Jobs to be sent, the oldest first.
    waiting: VecDeque<JobId>,
    last_job: u64,
    /// Not later than the earliest deadline of a job.
    earliest: Time,
    unflushed: Unflushed,
    /// Memory of the next look at what was not flushed; lent to that job.
    look: BufList,
    /// Zeroes to write, where the server does not know better.
    zeroes: Option<View>,
    /// Reads whose memory is on loan to connections that have ended, by connection.
    stranded: HashMap<u64, JobId>,
    done: Vec<Completion>,
    gone: Option<String>,
}

impl NbdDev {
    /// Connects to an export, with blocking calls, and makes a device of it on `ring`.
    pub fn open(uri: &NbdUri, ring: &Ring, options: &NbdOptions) -> Result<NbdDev, ConnectError> {
        NbdDev::on(ring, Reached::new(uri, options)?)
    }

    /// Makes a device on `ring` of connections that were made elsewhere; it does not wait for anything.
    ///
    /// The host's name is resolved anew at each reconnect, in a short-lived thread, as all of connecting.
    pub fn on(ring: &Ring, reached: Reached) -> Result<NbdDev, ConnectError> {
        let Reached { uri, options, terms, geometry, dialled } = reached;
        let fail = |error| ConnectError { uri: Box::new(uri.clone()), error };
        let memory = |_| fail(ClientError::NoMemory);
        let needs_zeroes = !terms.has(flags::SEND_WRITE_ZEROES) && !geometry.read_only;
        let zeroes = match needs_zeroes {
            true => {
                let mut buf = ring.slab().alloc(PIECE_BYTES).map_err(memory)?;
                buf.fill(0);
                Some(buf.freeze())
            }
            false => None,
        };
        let mut dev = NbdDev {
            uri: Box::new(uri.clone()),
            clock: ring.clock().clone(),
            ring: ring.clone(),
            port: ring.port(),
            terms,
            geometry,
            places: dialled.iter().map(|_| Place::new()).collect(),
            dials: Dials::new(options.connect),
            jobs: Jobs::new(),
            by_tag: HashMap::new(),
            waiting: VecDeque::new(),
            last_job: 0,
            earliest: Time::NEVER,
            unflushed: Unflushed::new(geometry.size_bytes),
            look: ring.slab().alloc_list(VERIFY_BYTES).map_err(memory)?,
            zeroes,
            stranded: HashMap::new(),
            done: Vec::new(),
            gone: None,
        };
        for (at, dialled) in dialled.into_iter().enumerate() {
            if !dev.install(at, dialled) {
                return Err(fail(ClientError::NoMemory));
            }
        }
        Ok(dev)
    }

    /// The export.
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    /// What the server said of it.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Why the device is gone, if it is.
    pub fn trouble(&self) -> Option<&str> {
        self.gone.as_deref()
    }

    /// Lets blocks be as small as `block_size`, as far as the server does: for an array that was made of such ones.
    ///
    /// The price: a write of less than 4096 bytes that was not flushed when a connection is lost costs the device.
    pub fn allow_blocks_of(&mut self, block_size: BlockSize) {
        let least = smallest_block(&self.terms).unwrap_or(self.geometry.block_size);
        self.geometry.block_size = self.geometry.block_size.min(block_size.max(least));
    }

    /// Connections that stand.
    pub fn connections(&self) -> usize {
        self.places.iter().filter(|place| place.link().is_some()).count()
    }

    /// Ends everything for good.
    fn condemn(&mut self, reason: String) {
        tracing::error!("{}: {reason}; the device is given up", self.uri);
        self.gone.get_or_insert(reason);
        for at in 0..self.places.len() {
            self.lose(at);
        }
        self.waiting.clear();
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            self.fail(id, ErrorKind::Gone);
        }
    }

    fn fail(&mut self, id: JobId, kind: ErrorKind) {
        if let Some(job) = self.jobs.get(&id) {
            let error = IoError::new(kind, job.kind, job.offset, job.len);
            self.finish(id, Err(error));
        }
    }

    /// Answers a job, unless its memory is on loan: then it is answered when that is back, or at its deadline.
    fn finish(&mut self, id: JobId, result: Result<(), IoError>) {
        let is_late = matches!(result, Err(IoError { kind: ErrorKind::Timeout, .. }));
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.memory.is_on_loan() && !is_late {
            job.ending.get_or_insert(result);
            return;
        }
        let Some(mut job) = self.jobs.remove(&id) else { return };
        let bufs = job.memory.take();
        if let Some(tag) = job.tag {
            self.by_tag.remove(&tag);
            self.done.push(Completion { tag, result, bufs });
        }
    }

    /// A piece of a job was answered on the connection `link`, which stands at `place`.
    fn answered(&mut self, id: JobId, place: usize, link: u64, result: Result<(), Refusal>) {
        // Not if the connection was given up meanwhile: then the piece is sent again.
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.on == Some(link)) else { return };
        if matches!(result, Err(Refusal { errno: ESHUTDOWN, .. })) {
            // Not done, and nothing else will be: another connection may lead to a successor.
            return self.fail_link(place, &ClientError::Closing);
        }
        job.on = None;
        let result = result.map_err(|refusal| {
            let errno = i32::try_from(refusal.errno).unwrap_or(Errno::IO.raw_os_error());
            let error = IoError::from_errno(errno, job.kind, job.offset, job.len);
            tracing::debug!("{}: {error}{}", self.uri, refusal.said);
            error
        });
        if result.is_ok() {
            self.places[place].has_served();
        }
        if self.places[place].look_job == Some(id) {
            return self.looked(id, place, result);
        }
        if result.is_err() {
            return self.finish(id, result);
        }
        self.note_written(id);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let was_flush = job.kind == OpKind::Flush || job.is_syncing;
        let mark = job.mark;
        let more = job.advance();
        let sync_now = !more && !was_flush && job.fua && needs_sync(&self.terms);
        if sync_now {
            job.is_syncing = true;
            job.mark = self.unflushed.mark();
        }
        if was_flush {
            self.unflushed.flushed(mark);
        }
        match more || sync_now {
            true => self.waiting.push_front(id),
            false => self.finish(id, Ok(())),
        }
    }

    /// Remembers what is written and not durable.
    fn note_written(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let is_durable = job.fua && self.terms.has(flags::SEND_FUA);
        if !job.is_write() || job.is_syncing || is_durable || !self.geometry.volatile_cache {
            return;
        }
        let range = job.piece_range();
        match job.kind {
            OpKind::Discard => self.unflushed.answered(range, Written::Discarded),
            OpKind::WriteZeroes => self.unflushed.answered(range, Written::Zeroes),
            _ => {
                let data = job.piece_data();
                let pieces: SmallVec<[&[u8]; 8]> = data.iter().map(|view| &**view).collect();
                self.unflushed.answered(range, Written::Bytes(&pieces));
            }
        }
    }

    /// Answers what is late.
    fn give_up_late(&mut self, now: Time) {
        if now < self.earliest {
            return;
        }
        let is_late = |job: &Job| job.deadline <= now;
        let late: Vec<JobId> = self.jobs.iter().filter(|(_, job)| is_late(job)).map(|(id, _)| *id).collect();
        let mut in_doubt = None;
        for &id in &late {
            let Some(job) = self.jobs.get(&id) else { continue };
            if job.is_write() && job.was_sent && !job.is_syncing {
                in_doubt = Some(job.piece_range());
            }
            let on = job.on;
            let place =
                self.places.iter().position(|place| place.link().is_some_and(|link| Some(link.id) == on));
            self.fail(id, ErrorKind::Timeout);
            self.waiting.retain(|waiting| *waiting != id);
            if let Some(place) = place {
                self.fail_link(place, &ClientError::NoAnswer);
            }
        }
        self.earliest = self.jobs.values().map(|job| job.deadline).min().unwrap_or(Time::NEVER);
        if let Some(range) = in_doubt {
            self.condemn(format!(
                "a write of {} bytes at {} was not answered in time and may still be executed",
                range.end - range.start,
                range.start
            ));
        }
    }

    /// Sends what waits, as far as there is room.
    fn dispatch(&mut self) {
        self.start_looking();
        let mut skipped = Vec::new();
        while let Some(id) = self.waiting.pop_front() {
            let Some(job) = self.jobs.get_mut(&id).filter(|job| job.ending.is_none()) else { continue };
            if job.memory.is_on_loan() {
                skipped.push(id);
                continue;
            }
            let free = self.places.iter_mut().filter_map(Place::open_link);
            let Some(link) = free.min_by_key(|link| link.in_flight()) else {
                self.waiting.push_front(id);
                break;
            };
            link.queue(id, job, self.zeroes.as_ref());
            if job.is_write() && !job.is_syncing {
                self.unflushed.sending(job.piece_range());
            }
        }
        skipped.into_iter().rev().for_each(|id| self.waiting.push_front(id));
        for place in &mut self.places {
            if let Some(link) = place.link_mut() {
                link.pump(&self.port);
            }
        }
    }
}

impl BlockDev for NbdDev {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn refresh_size(&mut self) {
        // A server serves each connection the size it told it.
        let told = self.places.iter().filter_map(|place| Some(place.link()?.terms.size_bytes)).min();
        let size_bytes = Geometry::plain(told.unwrap_or(0), BlockSize::B4096).size_bytes;
        if size_bytes > self.geometry.size_bytes {
            self.geometry.size_bytes = size_bytes;
            self.unflushed.grow(size_bytes);
        }
    }

    fn submit(&mut self, request: Request) {
        let refusal = if self.gone.is_some() {
            Some(ErrorKind::Gone)
        } else if self.jobs.len() >= 2 * self.geometry.queue_depth as usize {
            Some(ErrorKind::Busy)
        } else if request.op.kind() == OpKind::Discard && !self.geometry.discard {
            Some(ErrorKind::Unsupported)
        } else {
            None
        };
        if let Some(kind) = refusal {
            return self.done.push(request.refuse(kind));
        }
        if request.op.kind() == OpKind::Flush && !self.geometry.volatile_cache {
            return self.done.push(Completion::new(request.tag, Ok(())));
        }
        self.last_job += 1;
        let id = JobId(self.last_job);
        self.by_tag.insert(request.tag, id);
        self.earliest = self.earliest.min(request.deadline);
        self.jobs.insert(id, Job::new(request, self.unflushed.mark()));
        self.waiting.push_back(id);
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let now = self.clock.now();
        self.take_events();
        self.take_dialled();
        self.give_up_late(now);
        self.redial(now);
        self.dispatch();
        done.append(&mut self.done);
    }

    fn cancel(&mut self, tag: Tag) {
        let Some(&id) = self.by_tag.get(&tag) else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        // A write that a server may have is waited for: nobody may believe that it will not happen.
        if (job.is_write() && job.was_sent) || job.ending.is_some() {
            return;
        }
        if job.on.is_none() {
            self.waiting.retain(|waiting| *waiting != id);
            return self.fail(id, ErrorKind::Canceled);
        }
        if !job.memory.is_on_loan() {
            // The answer is still to come; nobody waits for it.
            job.tag = None;
            let error = IoError::new(ErrorKind::Canceled, job.kind, job.offset, job.len);
            let bufs = job.memory.take();
            self.by_tag.remove(&tag);
            self.done.push(Completion { tag, result: Err(error), bufs });
        }
    }

    fn wake_at(&self) -> Option<Time> {
        if !self.done.is_empty() {
            return Some(Time::ZERO);
        }
        let redial = self.places.iter().filter_map(Place::retry_at).filter(|_| self.gone.is_none()).min();
        let at = redial.unwrap_or(Time::NEVER).min(self.earliest);
        Some(at).filter(|at| *at < Time::NEVER)
    }
}

impl Drop for NbdDev {
    fn drop(&mut self) {
        self.places.iter().filter_map(Place::link).for_each(|link| link.say_good_bye());
    }
}

/// What a server that is back must still offer.
fn promise(terms: &Terms, geometry: &Geometry, connections: usize) -> Promise {
    let agree = if connections > 1 { 0 } else { flags::CAN_MULTI_CONN };
    Promise {
        size_bytes: geometry.size_bytes,
        block_bytes: geometry.block_size.bytes(),
        flags: if terms.has(flags::HAS_FLAGS) { terms.flags & !agree } else { 0 },
    }
}

/// True if FUA is made of a flush.
fn needs_sync(terms: &Terms) -> bool {
    !terms.has(flags::SEND_FUA) && terms.has(flags::SEND_FLUSH)
}

/// The smallest block that the server and a device can have.
fn smallest_block(terms: &Terms) -> Result<BlockSize, ClientError> {
    match terms.block.min {
        ..=512 => Ok(BlockSize::B512),
        513..=4096 => Ok(BlockSize::B4096),
        min => Err(ClientError::BlockTooLarge(min)),
    }
}

/// What the export is as a device. Its blocks are the units of [`Unflushed`], also where the server knows smaller ones:
/// a part of one could not be looked for after a lost connection.
fn geometry(terms: &Terms, options: &NbdOptions) -> Result<Geometry, ClientError> {
    smallest_block(terms)?;
    let block_size = BlockSize::B4096;
    let read_only = terms.has(flags::READ_ONLY);
    if !read_only && !terms.has(flags::SEND_FLUSH) {
        return Err(ClientError::NoFlush);
    }
    let plain = Geometry::plain(terms.size_bytes, block_size);
    if plain.size_bytes == 0 {
        return Err(ClientError::TooSmall(terms.size_bytes));
    }
    let wanted = options.connections.clamp(1, MAX_CLIENT_CONNECTIONS);
    let connections = if terms.has(flags::CAN_MULTI_CONN) { wanted } else { 1 };
    Ok(Geometry {
        preferred_bytes: terms.block.preferred.max(block_size.bytes()),
        // Larger ones than the server takes are sent piece by piece.
        max_transfer_bytes: MAX_REQUEST_BYTES,
        queue_depth: CLIENT_QUEUE_DEPTH * connections as u32,
        read_only,
        rotational: terms.has(flags::ROTATIONAL),
        volatile_cache: terms.has(flags::SEND_FLUSH),
        discard: terms.has(flags::SEND_TRIM),
        unmap_zeroes: terms.has(flags::SEND_TRIM) && terms.has(flags::SEND_WRITE_ZEROES),
        ..plain
    })
}
