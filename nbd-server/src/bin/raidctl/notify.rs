//! What the service manager is told, as sd_notify(3) describes it: READY, STATUS, STOPPING, WATCHDOG, MAINPID.
//!
//! Without a service manager nothing is told, and nothing goes wrong. The socket can be handed to the process that
//! takes over, which was not started by the manager and knows of it only by this.

use crate::report::StatusReport;
use sd_notify::NotifyState;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How often the daemon looks after itself where no watchdog wants it more often.
const PULSE: Duration = Duration::from_secs(5);
/// However short a watchdog's interval is.
const SHORTEST_PULSE: Duration = Duration::from_millis(10);

/// The way to the service manager.
#[derive(Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
    last_status: String,
}

impl Notifier {
    /// The manager that the environment names, if there is one.
    pub fn from_env() -> Notifier {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Notifier::default();
        };
        match connect(path.as_bytes()) {
            Ok(socket) => Notifier::new(socket, sd_notify::watchdog_enabled()),
            Err(error) => {
                tracing::warn!("cannot reach the service manager at {}: {error}", path.display());
                Notifier::default()
            }
        }
    }

    /// A manager at the other end of `socket`, which wants to hear once in `watchdog` that we live.
    pub fn new(socket: UnixDatagram, watchdog: Option<Duration>) -> Notifier {
        Notifier { socket: Some(socket), watchdog, last_status: String::new() }
    }

    /// The socket, to hand it on.
    pub fn socket(&self) -> Option<&UnixDatagram> {
        self.socket.as_ref()
    }

    /// The watchdog's interval.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// How often to say [`alive`](Notifier::alive): twice in the watchdog's interval.
    pub fn pulse(&self) -> Duration {
        self.watchdog.map_or(PULSE, |interval| (interval / 2).clamp(SHORTEST_PULSE, PULSE))
    }

    /// Clients are served.
    pub fn ready(&mut self, report: &StatusReport) {
        self.last_status = sentence(report);
        self.tell(&[NotifyState::Ready, NotifyState::Status(&self.last_status)]);
    }

    /// The daemon does what it is for. Tells the status if it has changed.
    pub fn alive(&mut self, report: &StatusReport) {
        if self.watchdog.is_some() {
            self.tell(&[NotifyState::Watchdog]);
        }
        let now = sentence(report);
        if now != self.last_status {
            self.status(now);
        }
    }

    /// What the daemon does, for `systemctl status`.
    pub fn status(&mut self, sentence: String) {
        self.tell(&[NotifyState::Status(&sentence)]);
        self.last_status = sentence;
    }

    /// A reload begins; [`ready`](Notifier::ready) ends it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!("clock: {error}"),
        }
    }

    /// The daemon stops.
    pub fn stopping(&mut self) {
        self.last_status = "stopping".to_string();
        self.tell(&[NotifyState::Stopping, NotifyState::Status(&self.last_status)]);
    }

    /// The service is another process from now on.
    pub fn main_pid(&self, pid: u32) {
        self.tell(&[NotifyState::MainPid(pid)]);
    }

    /// Does something that has an end of its own, while the watchdog is kept quiet.
    pub fn during<R>(&self, act: impl FnOnce() -> R) -> R {
        let (done, wait) = channel::<()>();
        std::thread::scope(|scope| {
            if self.watchdog.is_some() {
                scope.spawn(move || {
                    while wait.recv_timeout(self.pulse()) == Err(RecvTimeoutError::Timeout) {
                        self.tell(&[NotifyState::Watchdog]);
                    }
                });
            }
            let result = act();
            drop(done);
            result
        })
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        if let Err(error) = socket.send(text.as_bytes()) {
            tracing::debug!("the service manager cannot be told: {error}");
        }
    }
}

fn connect(path: &[u8]) -> io::Result<UnixDatagram> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read must not stop the daemon.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The arrays in one sentence, what is wrong with them first.
fn sentence(report: &StatusReport) -> String {
    let ill = |array: &&crate::report::ArrayReport| matches!(array.state.as_str(), "degraded" | "failed");
    let ill: Vec<String> =
        report.arrays.iter().filter(ill).map(|array| format!("{} is {}", array.name, array.state)).collect();
    match (report.arrays.as_slice(), ill.is_empty()) {
        ([], _) => "no array is served".to_string(),
        ([only], true) => format!("serving {}", only.name),
        ([_], false) => ill.join(", "),
        (many, true) => format!("serving {} arrays", many.len()),
        (many, false) => format!("serving {} arrays: {}", many.len(), ill.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    fn heard(manager: &UnixDatagram) -> String {
        let mut text = [0; 4096];
        manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let len = manager.recv(&mut text).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_of_a_change_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let socket = connect(path.as_os_str().as_bytes()).unwrap();
        let mut notifier = Notifier::new(socket, Some(Duration::from_secs(1)));
        let report = samples::rebuilding();
        notifier.ready(&StatusReport::default());
        assert_eq!(heard(&manager), "READY=1\nSTATUS=no array is served\n");
        for _ in 0..2 {
            notifier.alive(&report);
        }
        assert_eq!(heard(&manager), "WATCHDOG=1\n");
        let state = &report.arrays[0].state;
        assert_eq!(heard(&manager), format!("STATUS={} is {state}\n", report.arrays[0].name));
        assert_eq!(heard(&manager), "WATCHDOG=1\n");
        notifier.stopping();
        assert_eq!(heard(&manager), "STOPPING=1\nSTATUS=stopping\n");
    }

    #[test]
    fn a_long_step_with_an_end_keeps_the_watchdog_quiet() {
        let (manager, socket) = UnixDatagram::pair().unwrap();
        let notifier = Notifier::new(socket, Some(Duration::from_millis(20)));
        notifier.during(|| assert_eq!(heard(&manager), "WATCHDOG=1\n"));
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let mut notifier = Notifier::default();
        notifier.ready(&StatusReport::default());
        assert_eq!((notifier.pulse(), notifier.during(|| 7)), (PULSE, 7));
    }
}
