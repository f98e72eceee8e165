//! The daemon's end of the control socket: a thread that accepts, and a thread per connection.
//!
//! Connections are few ([`MAX_CONNECTIONS`]) and short; a thread each keeps a slow client from holding up
//! another one. They end with the process; [`ControlServer::stop`] only stops accepting, and sees followers off:
//! they are to hear the last event, that the arrays were stopped, before the process is gone.

use super::proto::{Reply, Request};
use super::socket::OwnedSocket;
use super::takeover::Ask;
use super::{FOLLOW_PULSE, IDLE_LIMIT, MAX_CONNECTIONS, MAX_REQUEST_LINE, WRITE_LIMIT};
use crate::events::EventLog;
use crate::failure::{Context, Outcome};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a stop waits for followers to take the last events. One that does not read gets no more.
const FAREWELL_LIMIT: Duration = Duration::from_secs(1);

/// Who answers requests. Events are not asked for here: the server takes them from the log itself.
pub trait Desk: Send + Sync + 'static {
    /// Answers; may take as long as the work takes, within limits of its own.
    fn answer(&self, request: Request) -> Reply;
    /// What happened so far.
    fn events(&self) -> &EventLog;
    /// A new process begins to take over; the connection is this conversation's from now on.
    fn succeed(&self, stream: &UnixStream, _ask: Ask) -> io::Result<()> {
        send(stream, &Reply::Error("this daemon cannot be taken over".to_string()))
    }
}

/// A running server.
pub struct ControlServer {
    thread: Option<JoinHandle<()>>,
    /// Closing this end wakes the accepting thread.
    wake: Option<UnixStream>,
    shared: Arc<Shared>,
}

struct Shared {
    desk: Arc<dyn Desk>,
    stopping: AtomicBool,
    connections: AtomicUsize,
    /// Connections that follow the events, and what tells that one has ended.
    followers: Mutex<usize>,
    follower_left: Condvar,
}

impl ControlServer {
    /// Serves `socket` until it is stopped or dropped.
    pub fn start(socket: Arc<OwnedSocket>, desk: Arc<dyn Desk>) -> Outcome<ControlServer> {
        let shared = Arc::new(Shared {
            desk,
            stopping: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
            followers: Mutex::new(0),
            follower_left: Condvar::new(),
        });
        socket.listen()?;
        let (wake, woken) = UnixStream::pair().context("cannot make a socket pair")?;
        socket.listener().set_nonblocking(true).context("cannot set up the control socket")?;
        let thread = std::thread::Builder::new()
            .name("control".to_string())
            .spawn({
                let shared = Arc::clone(&shared);
                move || accept_all(&socket, &woken, &shared)
            })
            .context("cannot start the control thread")?;
        Ok(ControlServer { thread: Some(thread), wake: Some(wake), shared })
    }

    /// Stops accepting and lets followers go. Requests that are being answered go on.
    pub fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.wake = None;
        self.shared.desk.events().close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
        let until = Instant::now() + FAREWELL_LIMIT;
        let mut followers = self.shared.followers.lock();
        while *followers > 0 && !self.shared.follower_left.wait_until(&mut followers, until).timed_out() {}
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept_all(socket: &OwnedSocket, woken: &UnixStream, shared: &Arc<Shared>) {
    while !shared.stopping.load(Ordering::Relaxed) {
        let mut fds = [
            PollFd::from_borrowed_fd(socket.listener().as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(woken.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!("the control socket fails: {error}"),
        }
        match socket.listener().accept() {
            Ok((stream, _)) => take_on(stream, shared),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, most likely: others will be closed, and the client waits in the backlog.
                tracing::warn!("cannot accept a control connection: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

fn take_on(stream: UnixStream, shared: &Arc<Shared>) {
    if shared.connections.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        shared.connections.fetch_sub(1, Ordering::Relaxed);
        let reply = Reply::Error(format!(
            "the daemon is busy: {MAX_CONNECTIONS} control connections are open; try again in {} s, when idle ones \
             are closed",
            IDLE_LIMIT.as_secs()
        ));
        if let Err(error) = limit_waits(&stream).and_then(|()| send(&stream, &reply)) {
            tracing::debug!("control connection: {error}");
        }
        return;
    }
    let place = Place(Arc::clone(shared));
    let spawned = std::thread::Builder::new().name("control-conn".to_string()).spawn(move || {
        if let Err(error) = converse(&stream, &place.0) {
            tracing::debug!("control connection: {error}");
        }
    });
    if let Err(error) = spawned {
        tracing::warn!("cannot start a thread for a control connection: {error}");
    }
}

/// One of the [`MAX_CONNECTIONS`] places; dropping it makes it free.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn limit_waits(stream: &UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE_LIMIT))?;
    stream.set_write_timeout(Some(WRITE_LIMIT))
}

fn converse(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    limit_waits(stream)?;
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_REQUEST_LINE as u64 + 1;
        reader.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(());
        }
        if line.last() != Some(&b'\n') {
            let reply = Reply::Error(format!("a request is one line of at most {MAX_REQUEST_LINE} bytes"));
            return send(stream, &reply);
        }
        match serde_json::from_slice(&line) {
            Ok(Request::Events { after, follow: true }) => return follow(stream, shared, after),
            Ok(Request::Events { after, follow: false }) => {
                send(stream, &Reply::Events(shared.desk.events().after(after)))?;
            }
            Ok(request) => send(stream, &shared.desk.answer(request))?,
            Err(error) => match serde_json::from_slice(&line) {
                Ok(ask) => return shared.desk.succeed(stream, ask),
                Err(_) => send(stream, &Reply::Error(format!("the request is not understood: {error}")))?,
            },
        }
    }
}

/// Sends events as they come, until the client or the daemon has had enough.
fn follow(stream: &UnixStream, shared: &Shared, mut seen: u64) -> io::Result<()> {
    let _follower = Follower::new(shared);
    let log = shared.desk.events();
    while let Some(events) = log.wait_a_while_after(seen, FOLLOW_PULSE) {
        if let Some(last) = events.last() {
            seen = last.seq;
            send(stream, &Reply::Events(events))?;
        } else if hung_up(stream)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Counted while it lives.
struct Follower<'a>(&'a Shared);

impl Follower<'_> {
    fn new(shared: &Shared) -> Follower<'_> {
        *shared.followers.lock() += 1;
        Follower(shared)
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        *self.0.followers.lock() -= 1;
        self.0.follower_left.notify_all();
    }
}

fn hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR))
}

fn send(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}
