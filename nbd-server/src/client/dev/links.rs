//! The connections of a device: made, lost and made again; and the look at what was not flushed that comes before
//! anything else.
//!
//! Connecting blocks, so it is done by a thread that lives for one attempt; it hands the socket over and wakes the
//! ring. There is at most one such thread for each connection, and each ends within the connect timeout.

use super::super::link::{Link, SocketOp};
use super::{ClientError, ConnectError, ConnectOptions, Dialled, JobId, NbdDev, Verdict, dial, promise};
use crate::client::job::Job;
use crate::client::unflushed::Mark;
use crate::limits::{
    FIRST_BACK_OFF, LARGE_RECEIVE_BYTES, LAST_BACK_OFF, LOOK_TIMEOUT, MAX_SENDS, VERIFY_BYTES,
};
use raidcore::dev::{ErrorKind, IoError};
use raidcore::time::Time;
use raidcore::uring::EventMemory;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Where one connection is, or will be.
pub(super) struct Place {
    state: State,
    /// Attempts since a request was last answered.
    attempts: u32,
    /// What is to be looked for before requests are sent.
    looking: Option<Looking>,
    /// The read that looks.
    pub(super) look_job: Option<JobId>,
}

enum State {
    Up(Box<Link>),
    Dialling,
    Down { retry_at: Time },
}

struct Looking {
    ranges: VecDeque<Range<u64>>,
    /// What was answered later is not looked for.
    until: Mark,
}

impl Place {
    /// A place to be connected as soon as possible.
    pub(super) fn new() -> Place {
        Place { state: State::Down { retry_at: Time::ZERO }, attempts: 0, looking: None, look_job: None }
    }

    pub(super) fn link(&self) -> Option<&Link> {
        match &self.state {
            State::Up(link) => Some(link),
            _ => None,
        }
    }

    pub(super) fn link_mut(&mut self) -> Option<&mut Link> {
        match &mut self.state {
            State::Up(link) => Some(link),
            _ => None,
        }
    }

    /// The connection, if a request may be sent on it.
    pub(super) fn open_link(&mut self) -> Option<&mut Link> {
        let looks = self.looking.is_some() || self.look_job.is_some();
        self.link_mut().filter(|link| !looks && link.has_room())
    }

    /// When it is to be connected.
    pub(super) fn retry_at(&self) -> Option<Time> {
        match self.state {
            State::Down { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    /// A request was answered: the next loss is the first one.
    pub(super) fn has_served(&mut self) {
        self.attempts = 0;
    }

    fn back_off(&mut self, now: Time) {
        let factor = 1 << self.attempts.min(16);
        self.attempts += 1;
        self.looking = None;
        self.state = State::Down { retry_at: now + (FIRST_BACK_OFF * factor).min(LAST_BACK_OFF) };
    }
}

/// An attempt of a place, ended.
type Attempt = (usize, Result<Dialled, ConnectError>);

/// The way from the threads that connect.
pub(super) struct Dials {
    options: ConnectOptions,
    tell: Sender<Attempt>,
    told: Receiver<Attempt>,
    last_link: u64,
    /// The last trouble, so that it is logged once.
    said: String,
}

impl Dials {
    pub(super) fn new(options: ConnectOptions) -> Dials {
        let (tell, told) = channel();
        Dials { options, tell, told, last_link: 0, said: String::new() }
    }
}

impl NbdDev {
    /// Takes what the ring brought.
    pub(super) fn take_events(&mut self) {
        let mut answers = Vec::new();
        while let Some(mut event) = self.port.next() {
            let (link, op) = SocketOp::of_token(event.token);
            let at = self.places.iter().position(|place| place.link().is_some_and(|up| up.id == link));
            if op == SocketOp::Direct {
                let memory = std::mem::replace(&mut event.memory, EventMemory::None);
                let borrower = at.and_then(|at| self.places[at].link()?.borrower());
                let stranded = self.stranded.remove(&link);
                self.restore(borrower.or(stranded), memory);
            }
            let Some(at) = at else { continue };
            let Some(up) = self.places[at].link_mut() else { continue };
            let worked = up.on_event(op, event, &mut self.jobs, &self.port, &mut answers);
            for answer in answers.drain(..) {
                self.answered(answer.job, at, link, answer.result);
            }
            if let Err(error) = worked {
                self.fail_link(at, &error);
            }
        }
    }

    /// Gives a read its memory back; one that ended meanwhile is answered now.
    fn restore(&mut self, borrower: Option<JobId>, memory: EventMemory) {
        let (Some(id), EventMemory::Bufs(bufs)) = (borrower, memory) else { return };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.memory.restore(bufs);
        if let Some(result) = job.ending.take() {
            self.finish(id, result);
        }
    }

    /// Takes the connections that were made, and the reasons why others were not.
    pub(super) fn take_dialled(&mut self) {
        while let Ok((at, result)) = self.dials.told.try_recv() {
            if self.gone.is_some() {
                continue;
            }
            match result {
                Ok(dialled) => {
                    let promise = promise(&self.terms, &self.geometry, self.places.len());
                    if let Verdict::Refused(why) = promise.judge(&dialled.export) {
                        self.condemn(format!("the server has come back with another export: {why}"));
                    } else if self.unflushed.is_beyond_proof() {
                        self.condemn(
                            "the server was away, and whether it kept what was not flushed cannot be checked"
                                .to_owned(),
                        );
                    } else if !self.install(at, dialled) {
                        self.places[at].back_off(self.clock.now());
                    } else if !std::mem::take(&mut self.dials.said).is_empty() {
                        tracing::info!("{}: connected again", self.uri);
                    }
                }
                Err(error) => {
                    self.say(&error.error);
                    self.places[at].back_off(self.clock.now());
                }
            }
        }
    }

    /// Makes a connection one of the device's; false if there is no memory for it.
    pub(super) fn install(&mut self, at: usize, dialled: Dialled) -> bool {
        let Ok(staging) = self.ring.slab().alloc(LARGE_RECEIVE_BYTES) else { return false };
        self.dials.last_link += 1;
        let mut link = Link::new(self.dials.last_link, dialled, staging);
        link.start(&self.port);
        let place = &mut self.places[at];
        place.state = State::Up(Box::new(link));
        place.looking = (!self.unflushed.is_empty()).then(|| Looking {
            ranges: self.unflushed.ranges(VERIFY_BYTES as u64).into(),
            until: self.unflushed.mark(),
        });
        true
    }

    /// A connection has failed: what was in flight on it waits for another one.
    pub(super) fn fail_link(&mut self, at: usize, error: &ClientError) {
        let Some(link) = self.places[at].link().map(|link| link.id) else { return };
        self.say(error);
        self.lose(at);
        let mut again: Vec<JobId> =
            self.jobs.iter().filter(|(_, job)| job.on == Some(link)).map(|(id, _)| *id).collect();
        again.sort_unstable();
        for id in again.into_iter().rev() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            job.on = None;
            let sends = job.sends;
            if job.tag.is_none() {
                self.drop_own(id);
            } else if sends >= MAX_SENDS {
                tracing::error!("{}: given up after {sends} connections that broke: {error}", self.uri);
                if job.is_write() {
                    return self.condemn("a write broke each connection it was sent on".to_owned());
                }
                self.fail(id, ErrorKind::Gone);
            } else {
                self.waiting.push_front(id);
            }
        }
        self.places[at].back_off(self.clock.now());
    }

    /// Hangs up. Memory on loan comes back by an event.
    pub(super) fn lose(&mut self, at: usize) {
        let place = &mut self.places[at];
        place.looking = None;
        let look = place.look_job.take();
        let Some(link) = place.link() else { return };
        link.hang_up();
        if let Some(borrower) = link.borrower() {
            self.stranded.insert(link.id, borrower);
        }
        place.state = State::Down { retry_at: Time::NEVER };
        if let Some(id) = look {
            self.drop_own(id);
        }
    }

    /// A read that nobody waits for has no use any more.
    fn drop_own(&mut self, id: JobId) {
        if let Some(mut job) = self.jobs.remove(&id)
            && self.look.is_empty()
        {
            self.look = job.memory.take();
        }
    }

    /// Connects what is to be connected.
    pub(super) fn redial(&mut self, now: Time) {
        if self.gone.is_some() {
            return;
        }
        for at in 0..self.places.len() {
            if self.places[at].retry_at().is_some_and(|retry_at| retry_at <= now) {
                self.places[at].state = State::Dialling;
                let (tell, waker) = (self.dials.tell.clone(), self.ring.waker());
                let (uri, options) = (self.uri.clone(), self.dials.options);
                let attempt = move || {
                    // If nobody is there to be told, the socket closes itself.
                    if tell.send((at, dial(&uri, &options))).is_ok() {
                        waker.wake();
                    }
                };
                if let Err(error) = std::thread::Builder::new().name("nbd-connect".into()).spawn(attempt) {
                    self.say(&ClientError::Io(error));
                    self.places[at].back_off(now);
                }
            }
        }
    }

    /// Sends the next look of connections that have one to take, one at a time.
    pub(super) fn start_looking(&mut self) {
        for place in &mut self.places {
            let Some(looking) = place.looking.as_mut().filter(|_| place.look_job.is_none()) else { continue };
            let Some(range) = looking.ranges.front().cloned() else {
                place.looking = None;
                continue;
            };
            let State::Up(link) = &mut place.state else { continue };
            let mut memory = std::mem::take(&mut self.look);
            if memory.is_empty() {
                // It is with another connection, or in the kernel after one was lost.
                match self.ring.slab().alloc_list(VERIFY_BYTES) {
                    Ok(more) => memory = more,
                    Err(_) => continue,
                }
            }
            self.last_job += 1;
            let id = JobId(self.last_job);
            let deadline = self.clock.now() + LOOK_TIMEOUT;
            let mut job = Job::look(range, memory, deadline);
            self.earliest = self.earliest.min(deadline);
            link.queue(id, &mut job, None);
            place.look_job = Some(id);
            self.jobs.insert(id, job);
        }
    }

    /// A look was answered: all is as it should be, or the device is gone.
    pub(super) fn looked(&mut self, id: JobId, at: usize, result: Result<(), IoError>) {
        let Some(mut job) = self.jobs.remove(&id) else { return };
        let place = &mut self.places[at];
        place.look_job = None;
        let Some(looking) = &mut place.looking else { return };
        let until = looking.until;
        looking.ranges.pop_front();
        if looking.ranges.is_empty() {
            place.looking = None;
        }
        let found = job.memory.take();
        let mut bytes: Vec<u8> = Vec::with_capacity(job.len as usize);
        found.iter().for_each(|buf| bytes.extend_from_slice(buf));
        bytes.truncate(job.len as usize);
        self.look = found;
        if let Err(error) = result {
            self.condemn(format!("what was not flushed when the server was away cannot be read: {error}"));
        } else if !self.unflushed.is_there(job.offset, &bytes, until) {
            self.condemn(format!(
                "the server was away and has lost acknowledged data that was not flushed, near byte {}",
                job.offset
            ));
        }
    }

    fn say(&mut self, error: &ClientError) {
        let text = error.to_string();
        if self.dials.said != text {
            tracing::warn!("{}: {text}; trying again", self.uri);
            self.dials.said = text;
        }
    }
}
