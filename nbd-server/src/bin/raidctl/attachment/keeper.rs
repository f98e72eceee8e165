//! The process beside an attached device: replaces connections that died, and lets the device grow with its export.
//!
//! It ends when the device is disconnected, by whomever, or when it is told to. It never ends because a server is away:
//! how long requests wait for it is the kernel's dead-connection timeout. It keeps a descriptor of each connection,
//! without reading or writing there, to see which of them are closed. One that was started for a device whose keeper was
//! killed has none: it offers the kernel a connection for each slot, of which the kernel takes those it has use for, and
//! from then on relies on what the kernel announces.

use super::device::Device;
use super::promise::{pause, promise_of};
use super::record::{self, OwnRecord, Record};
use super::{DEFAULT_LINKS, DEVICE_PATIENCE, HANDSHAKE_PATIENCE, LOOK_AGAIN, MAX_LINKS, NOTICE};
use crate::failure::{Context, Failure, Outcome};
use crate::nbd_netlink::{Change, Connect, Driver, DriverError, LinkEvent};
use nbd_server::client::{
    Address, ConnectOptions, NbdUri, Promise, Terms, Verdict, connect_blocking, info_blocking,
};
use nbd_server::proto::wire::transmission_flags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// What is to be attached, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the data is.
    pub uri: NbdUri,
    /// As which device; none leaves the choice to the kernel.
    pub device: Option<Device>,
    /// With how many connections; none takes what the server allows.
    pub links: Option<u32>,
    /// Nothing is to be written.
    pub read_only: bool,
    /// How long one request may take before its connection is given up and it is sent again.
    pub request_timeout: Duration,
    /// How long requests wait while there is no connection, before they fail.
    pub dead_timeout: Duration,
    /// How often the size of the export is looked at.
    pub poll: Duration,
}

/// A device that is attached, and the watch over it.
pub struct Keeper {
    settings: Settings,
    driver: Driver,
    device: Device,
    record: Record,
    own: OwnRecord,
    promise: Promise,
    /// By slot; none is a connection of which we have no descriptor.
    links: Vec<Option<OwnedFd>>,
    /// It is not known yet which of the connections live.
    is_blind: bool,
    inbox: Receiver<Wake>,
    outage: Option<Outage>,
    /// Connections that the kernel said are dead, and that were not replaced yet; and when it said so last.
    announced: usize,
    announced_at: Instant,
    look_at: Instant,
    complaint: Option<String>,
}

/// Why the keeper looks before its time.
enum Wake {
    Link(LinkEvent),
    Stop,
}

/// A time in which connections are missing.
struct Outage {
    since: Instant,
    attempts: u32,
    next: Instant,
    is_over_the_limit: bool,
}

/// What became of an attempt to change the device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// It is ours and as wished.
    Ours,
    /// It is ours and could not be changed.
    Refused,
    /// It was disconnected.
    Gone,
}

impl Keeper {
    /// Attaches the device; once this returns it can be used.
    pub fn attach(settings: Settings) -> Outcome<Keeper> {
        let mut driver = Driver::open().map_err(Failure::new)?;
        if let Some(device) = settings.device
            && let Some((record, false)) = record::read(device)?
            && driver.reconfigure(device.index, &record.identity, &Change::default()).is_ok()
        {
            return Keeper::adopt(settings, driver, device, record);
        }
        let (first, terms) = dial(&settings)?;
        let promise = promise_of(&terms, settings.read_only)
            .map_err(|why| Failure::new(format!("{} cannot be a block device here: {why}", settings.uri)))?;
        let mut links = vec![first];
        for _ in 1..link_count(&settings, &terms)? {
            let (link, terms) = dial(&settings)?;
            if promise.judge(&terms) != Verdict::Same {
                return Err(Failure::new(format!("{} is changing: try again", settings.uri)));
            }
            links.push(link);
        }
        let inbox = listen(&driver)?;
        let identity = format!("raidctl-{}", uuid::Uuid::new_v4());
        let index = driver
            .connect(&Connect {
                index: settings.device.map(|device| device.index),
                size_bytes: promise.size_bytes,
                block_bytes: promise.block_bytes.into(),
                flags: promise.flags,
                request_timeout: settings.request_timeout,
                dead_timeout: settings.dead_timeout,
                identity: &identity,
                sockets: &links,
            })
            .map_err(|error| connect_failure(error, settings.device))?;
        let device = Device { index };
        let record = Record {
            device: device.to_string(),
            uri: settings.uri.to_string(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            identity,
            size_bytes: promise.size_bytes,
            block_bytes: promise.block_bytes,
            flags: promise.flags,
            connections: u32::try_from(links.len()).unwrap_or(u32::MAX),
            read_only: promise.is_read_only(),
        };
        let own = match settle(device, &terms).and_then(|()| record::write(device, &record)) {
            Ok(own) => own,
            Err(failure) => {
                driver.disconnect(index).map_err(Failure::new)?;
                return Err(failure);
            }
        };
        let links = links.into_iter().map(Some).collect();
        Ok(Keeper::new(settings, driver, device, (record, own), promise, links, inbox))
    }

    /// Takes over a device whose keeper was killed.
    fn adopt(settings: Settings, driver: Driver, device: Device, record: Record) -> Outcome<Keeper> {
        if record.uri != settings.uri.to_string() {
            return Err(Failure::new(format!(
                "{device} is attached to {}, and its keeper was killed: attach that again to keep it, or \
                 `raidctl detach {device}`",
                record.uri
            )));
        }
        let size_bytes = device.size_bytes();
        let promise = Promise { size_bytes, block_bytes: record.block_bytes, flags: record.flags };
        let inbox = listen(&driver)?;
        let record = Record { pid: rustix::process::getpid().as_raw_nonzero().get(), size_bytes, ..record };
        let own = record::write(device, &record)?;
        let links: Vec<_> = (0..record.connections.clamp(1, MAX_LINKS)).map(|_| None).collect();
        tracing::warn!("taking over {device}, whose keeper was killed");
        let now = Instant::now();
        let mut keeper = Keeper::new(settings, driver, device, (record, own), promise, links, inbox);
        keeper.is_blind = true;
        keeper.announced = keeper.links.len();
        keeper.look_at = now;
        keeper.outage = Some(Outage { since: now, attempts: 0, next: now, is_over_the_limit: false });
        Ok(keeper)
    }

    fn new(
        settings: Settings,
        driver: Driver,
        device: Device,
        (record, own): (Record, OwnRecord),
        promise: Promise,
        links: Vec<Option<OwnedFd>>,
        inbox: Receiver<Wake>,
    ) -> Keeper {
        let now = Instant::now();
        Keeper {
            look_at: now + settings.poll,
            outage: None,
            announced: 0,
            announced_at: now,
            complaint: None,
            is_blind: false,
            settings,
            driver,
            device,
            record,
            own,
            promise,
            links,
            inbox,
        }
    }

    /// What is attached.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The device.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Watches until the device is disconnected or a signal comes.
    pub fn keep(mut self) -> Outcome<()> {
        tracing::info!("{} is {} ({} connections)", self.device, self.settings.uri, self.links.len());
        loop {
            match self.inbox.recv_timeout(self.look_at.saturating_duration_since(Instant::now())) {
                Ok(Wake::Stop) => return self.stop(),
                Ok(Wake::Link(LinkEvent::Dead(index))) if index != self.device.index => continue,
                Ok(Wake::Link(event)) => self.hear(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.own.leave();
                    return Err(Failure::new(format!(
                        "{} is no longer watched: netlink failed",
                        self.device
                    )));
                }
            }
            if self.look() == Hold::Gone {
                tracing::info!("{} was disconnected", self.device);
                return Ok(());
            }
        }
    }

    fn hear(&mut self, event: LinkEvent) {
        self.announced_at = Instant::now();
        self.announced = match event {
            LinkEvent::Dead(_) => (self.announced + 1).min(self.links.len()),
            LinkEvent::Lost => self.links.len(),
        };
    }

    /// Does what is due, and sets the time of the next look.
    fn look(&mut self) -> Hold {
        let dead = self.dead_links();
        if dead.is_empty() {
            if self.announced > 0 && self.announced_at.elapsed() < NOTICE {
                // It is announced before it is closed.
                self.look_at = Instant::now() + LOOK_AGAIN;
                return Hold::Ours;
            }
            self.announced = 0;
            self.look_at = Instant::now() + self.settings.poll;
            if self.is_ours() == Hold::Gone {
                return Hold::Gone;
            }
            return self.follow_size();
        }
        if self.is_ours() == Hold::Gone {
            return Hold::Gone;
        }
        let now = Instant::now();
        let missing =
            format!("{} of {} connections to {} are gone", dead.len(), self.links.len(), self.settings.uri);
        let outage = self.outage.get_or_insert_with(|| {
            tracing::warn!("{missing}");
            Outage { since: now, attempts: 0, next: now, is_over_the_limit: false }
        });
        let all_dead = dead.len() == self.links.len();
        if all_dead && !outage.is_over_the_limit && outage.since.elapsed() > self.settings.dead_timeout {
            outage.is_over_the_limit = true;
            tracing::error!("{}: the server is away for too long: requests fail now", self.device);
        }
        let noticed = match self.announced < dead.len() {
            true => outage.since + NOTICE,
            false => outage.since,
        };
        let due = outage.next.max(noticed);
        if due > now {
            self.look_at = due;
            return Hold::Ours;
        }
        let state = self.reconnect(&dead);
        if let Some(outage) = &mut self.outage {
            outage.next = Instant::now() + pause(outage.attempts);
            outage.attempts = outage.attempts.saturating_add(1);
            self.look_at = outage.next;
        }
        state
    }

    /// Replaces what can be replaced of the connections in the slots `dead`.
    fn reconnect(&mut self, dead: &[usize]) -> Hold {
        let (mut fresh, mut promise, mut problem) = (Vec::new(), self.promise, None);
        for _ in dead {
            match dial(&self.settings) {
                Err(failure) => problem = Some(failure.to_string()),
                Ok((link, terms)) => match promise.judge(&terms) {
                    Verdict::Refused(why) => problem = Some(format!("{}: {why}", self.settings.uri)),
                    verdict => {
                        if let Verdict::Grown(size_bytes) = verdict {
                            promise.size_bytes = size_bytes;
                        }
                        fresh.push(link);
                    }
                },
            }
            if problem.is_some() {
                break;
            }
        }
        if !fresh.is_empty() {
            match self.change(promise, &fresh) {
                Hold::Ours => {}
                other => return other,
            }
            self.announced = self.announced.saturating_sub(fresh.len());
            for (slot, link) in dead.iter().zip(fresh) {
                // What the kernel had no use for must not look alive: it is closed, and what it took is its own.
                if let Some(old) = self.links.get_mut(*slot).filter(|_| !self.is_blind) {
                    *old = Some(link);
                }
            }
        }
        match problem {
            Some(problem) => self.complain(problem),
            None => self.recovered(),
        }
        Hold::Ours
    }

    fn recovered(&mut self) {
        self.is_blind = false;
        self.complaint = None;
        if let Some(outage) = self.outage.take() {
            let away = humantime::format_duration(Duration::from_millis(
                u64::try_from(outage.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            ));
            tracing::info!("{}: all connections are back after {away}", self.device);
        }
    }

    /// Lets the device grow if its export did.
    fn follow_size(&mut self) -> Hold {
        // A server that is away is seen by its connections, and one that is busy is asked again.
        let Ok(terms) = info_blocking(&self.settings.uri, &handshake()) else { return Hold::Ours };
        match self.promise.judge(&terms) {
            Verdict::Same => {
                self.complaint = None;
                Hold::Ours
            }
            Verdict::Grown(size_bytes) => self.change(Promise { size_bytes, ..self.promise }, &[]),
            Verdict::Refused(why) => {
                self.complain(format!("{}: {why}", self.settings.uri));
                Hold::Ours
            }
        }
    }

    /// Tells the kernel of a new size and of new connections.
    fn change(&mut self, promise: Promise, sockets: &[OwnedFd]) -> Hold {
        let grown = (promise.size_bytes != self.promise.size_bytes).then_some(promise.size_bytes);
        let change = Change { size_bytes: grown, sockets };
        match self.driver.reconfigure(self.device.index, &self.record.identity, &change) {
            Err(error) if is_gone(&error) => return Hold::Gone,
            Err(error) => {
                self.complain(error.to_string());
                return Hold::Refused;
            }
            Ok(()) => {
                self.promise = promise;
                if let Some(size_bytes) = grown {
                    tracing::info!("{} has grown to {size_bytes} bytes", self.device);
                    self.device.find_partitions();
                }
            }
        }
        Hold::Ours
    }

    fn is_ours(&mut self) -> Hold {
        self.change(self.promise, &[])
    }

    /// Says what is wrong, once.
    fn complain(&mut self, problem: String) {
        if self.complaint.as_ref() != Some(&problem) {
            tracing::warn!("{}: {problem}", self.device);
            self.complaint = Some(problem);
        }
    }

    /// The slots whose connections are closed: those we see, and for what was announced beyond them such as we cannot.
    fn dead_links(&self) -> Vec<usize> {
        let (seen, unseen): (Vec<usize>, Vec<usize>) =
            (0..self.links.len()).partition(|slot| self.links[*slot].is_some());
        let mut polled: Vec<PollFd<'_>> =
            self.links.iter().flatten().map(|link| PollFd::new(link, PollFlags::RDHUP)).collect();
        let closed = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut dead: Vec<usize> = match poll(&mut polled, Some(&Timespec::default())) {
            Ok(_) => {
                let slots = seen.iter().zip(&polled).filter(|(_, link)| link.revents().intersects(closed));
                slots.map(|(slot, _)| *slot).collect()
            }
            Err(_) => Vec::new(),
        };
        let beyond = self.announced.saturating_sub(dead.len());
        dead.extend(unseen.iter().take(beyond));
        dead
    }

    /// The end a signal asks for: a device that nobody uses is disconnected; one that is in use stays, without a keeper.
    fn stop(mut self) -> Outcome<()> {
        if self.is_ours() == Hold::Gone {
            return Ok(());
        }
        let users = self.device.users();
        if users.is_empty() {
            tracing::info!("disconnecting {}", self.device);
            return self.driver.disconnect(self.device.index).map_err(Failure::new);
        }
        self.own.leave();
        Err(Failure::new(format!(
            "{device} stays attached, and from now on nobody replaces its connections, for {}: end that, then \
             `raidctl detach {device}`",
            users.join(", and "),
            device = self.device,
        )))
    }
}

fn handshake() -> ConnectOptions {
    // The kernel knows no other replies than simple ones.
    ConnectOptions { timeout: HANDSHAKE_PATIENCE, structured: false, extended: false }
}

/// One connection, ready for requests.
fn dial(settings: &Settings) -> Outcome<(OwnedFd, Terms)> {
    let connected = connect_blocking(&settings.uri, &handshake()).map_err(Failure::new)?;
    if matches!(settings.uri.address, Address::Tcp { .. }) {
        notice_silence(&connected.stream, settings.request_timeout)
            .context("cannot set up the connection")?;
    }
    Ok((connected.stream, connected.export))
}

/// A machine that vanished says no goodbye: ask a connection that is idle whether anybody is there.
fn notice_silence(stream: &OwnedFd, patience: Duration) -> rustix::io::Result<()> {
    use rustix::net::sockopt::{
        set_socket_keepalive, set_tcp_keepcnt, set_tcp_keepidle, set_tcp_keepintvl, set_tcp_user_timeout,
    };
    set_socket_keepalive(stream, true)?;
    set_tcp_keepidle(stream, Duration::from_secs(10))?;
    set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    set_tcp_keepcnt(stream, 3)?;
    set_tcp_user_timeout(stream, u32::try_from(patience.as_millis()).unwrap_or(u32::MAX))
}

fn link_count(settings: &Settings, terms: &Terms) -> Outcome<u32> {
    let several = terms.has(transmission_flags::CAN_MULTI_CONN);
    match settings.links {
        None => Ok(if several { DEFAULT_LINKS } else { 1 }),
        Some(links) if links > 1 && !several => Err(Failure::new(format!(
            "{} does not allow several connections to be used as one: say --connections 1",
            settings.uri
        ))),
        Some(links) => Ok(links),
    }
}

/// Waits until the device can be used.
fn settle(device: Device, terms: &Terms) -> Outcome<()> {
    let end = Instant::now() + DEVICE_PATIENCE;
    while !device.is_there() {
        if Instant::now() > end {
            return Err(Failure::new(format!(
                "{device} is connected but does not appear: is /dev kept by udev?"
            )));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    device.find_partitions();
    device.limit_requests(terms.block.max).context(format!("cannot limit the requests of {device}"))
}

fn connect_failure(error: DriverError, device: Option<Device>) -> Failure {
    match (error.errno(), device) {
        (Some(Errno::PERM | Errno::ACCESS), _) => Failure::new("attaching a device takes root: use sudo"),
        (Some(Errno::BUSY), Some(device)) => {
            Failure::new(format!("{device} is in use by another program: choose another one, or none"))
        }
        _ => Failure::new(error),
    }
}

/// The device was disconnected, or is somebody else's by now.
fn is_gone(error: &DriverError) -> bool {
    matches!(error.errno(), Some(Errno::INVAL | Errno::NODEV | Errno::NOENT | Errno::NXIO))
}

/// Starts the threads that wait for dead connections and for signals.
fn listen(driver: &Driver) -> Outcome<Receiver<Wake>> {
    let (tell, inbox) = channel();
    let events = driver.link_events().map_err(Failure::new)?;
    spawn("links", tell.clone(), move |tell| {
        loop {
            let news = match events.wait() {
                Ok(news) => news,
                Err(error) => {
                    tracing::error!("dead connections are no longer announced: {error}");
                    return;
                }
            };
            for event in news {
                if tell.send(Wake::Link(event)).is_err() {
                    return;
                }
            }
        }
    })?;
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])
            .context("cannot set up signals")?;
    spawn("signals", tell, move |tell| {
        for _ in signals.forever() {
            if tell.send(Wake::Stop).is_err() {
                return;
            }
        }
    })?;
    Ok(inbox)
}

fn spawn(name: &str, tell: Sender<Wake>, work: impl FnOnce(Sender<Wake>) + Send + 'static) -> Outcome<()> {
    let thread = std::thread::Builder::new().name(name.to_string());
    thread.spawn(move || work(tell)).map(drop).context(format!("cannot start the thread {name}"))
}
