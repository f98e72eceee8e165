//! The life of a daemon: it serves, looks after itself, and ends by a clean stop or by handing over to a new process.
//!
//! Handing over is a clean stop that keeps the sockets: clients that reconnect wait in the listen queues, which belong
//! to the sockets and not to a process. Until the new process says that it serves, this one can take everything back,
//! and does so whatever becomes of the new one.
//!
//! Invariant: at any time at most one of the two processes has the devices. The new one gets to them only when this one
//! has closed them; this one opens them again only when the new one has ended.

use crate::compose::{Company, Ending, Places, Plan, Service};
use crate::control::takeover::{Answer, Ask, Passed, Role, is_timeout};
use crate::devices::Bench;
use crate::events::Severity;
use crate::failure::{Failure, Outcome};
use crate::house::Window;
use crate::notify::Notifier;
use crate::policy::Policy;
use crate::report::StatusReport;
use crate::signals::{Wish, Wishes};
use crate::succession::{Estate, Heir, devices_in_use};
use nbd_server::export::Export;
use nbd_server::reactor::{CallError, StopLimits};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long flushing and marking clean may take at a stop, each: giving up costs a resync.
const DEVICES_LIMIT: Duration = Duration::from_secs(60);
/// How long a new process may take from getting the sockets to serving.
const SERVE_WITHIN: Duration = Duration::from_secs(20);
/// How often it is looked whether a stop is asked for meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Reads again what can be read again: the policy, and a sentence for the log.
pub type Reload = Box<dyn FnMut() -> Outcome<(Policy, String)>>;

/// What a daemon is made of.
pub struct Setup {
    /// What it serves.
    pub plan: Plan,
    /// Where.
    pub places: Places,
    /// How long a stop waits for clients.
    pub drain: Duration,
    /// The service manager.
    pub notifier: Notifier,
    /// What SIGHUP does; without it, SIGHUP stops.
    pub on_reload: Option<Reload>,
}

/// A daemon that serves.
pub struct Daemon {
    service: Service,
    base: Base,
}

/// What stays of a daemon while nothing is served.
struct Base {
    plan: Plan,
    places: Places,
    company: Company,
    wishes: Wishes,
    limits: StopLimits,
    notifier: Notifier,
    on_reload: Option<Reload>,
}

impl Daemon {
    /// Starts to serve.
    pub fn start(setup: Setup) -> Outcome<Daemon> {
        let Setup { plan, places, drain, notifier, on_reload } = setup;
        // Before anything is written: a signal that comes early stops cleanly, too.
        let wishes = Wishes::listen()?;
        let limits = StopLimits { clients: drain, devices: DEVICES_LIMIT };
        let estate = Estate {
            listen: places.listen.iter().map(|listener| listener.addr().to_string()).collect(),
            tls: crate::tls::modes(&places.listen),
            // Beside the steps of the stop, the kernel has to let go of the devices.
            release_within: limits.clients + 4 * DEVICES_LIMIT,
            serve_within: SERVE_WITHIN,
            watchdog: notifier.watchdog(),
        };
        let company = Company { window: Arc::new(Window::default()), estate, post: wishes.post.clone() };
        let service = Service::start(&plan, &places, &company)?;
        Ok(Daemon { service, base: Base { plan, places, company, wishes, limits, notifier, on_reload } })
    }

    /// What is exported.
    pub fn exports(&self) -> &[Export] {
        self.service.exports()
    }

    /// Where.
    pub fn places(&self) -> &Places {
        &self.base.places
    }

    /// Says which sockets' files are removed at a stop.
    pub fn own_files(&mut self, listen: &[bool], control: bool) {
        for (listener, own) in self.base.places.listen.iter_mut().zip(listen) {
            listener.own_file(*own);
        }
        self.base.places.control.own_file(control);
    }

    /// Stops as soon as it runs.
    pub fn ask_to_stop(&self) {
        if self.base.wishes.post.try_send(Wish::Stop).is_err() {
            tracing::debug!("it has been asked to already");
        }
    }

    /// Serves until somebody wants it to stop, or a new process has taken over.
    pub fn run(mut self) -> Outcome<()> {
        self.base.notifier.ready(&self.base.company.window.status.lock());
        loop {
            match self.base.wishes.next(self.base.notifier.pulse()) {
                Some(Wish::Stop) => return self.stop(),
                Some(Wish::Reload) if self.base.on_reload.is_none() => return self.stop(),
                Some(Wish::Reload) => self.base.reload(&self.service),
                Some(Wish::HandOver(heir)) => match self.hand_over(*heir)? {
                    Some(daemon) => self = daemon,
                    None => return Ok(()),
                },
                None => {}
            }
            self.look_after()?;
        }
    }

    fn look_after(&mut self) -> Outcome<()> {
        let answered = self.service.answers();
        feed(&mut self.base.notifier, answered, &self.base.company.window.status.lock())
    }

    fn stop(self) -> Outcome<()> {
        let Daemon { service, mut base } = self;
        base.notifier.stopping();
        // New clients are refused from here on.
        base.places.listen.clear();
        let ending = service.stop(base.limits, &base.wishes.is_clean)?;
        base.end(ending)
    }

    /// Lets go of everything for the sake of a new process. Returns the daemon, served again, if the new process does
    /// not come to serve.
    fn hand_over(self, mut heir: Heir) -> Outcome<Option<Daemon>> {
        let Daemon { service, mut base } = self;
        let (pid, version) = (heir.pid, heir.version.clone());
        tracing::info!("process {pid}, version {version}, takes over: clients have to reconnect");
        base.notifier.status(format!("handing over to process {pid}"));
        base.announce(Severity::Info, "HandingOver", &format!("to process {pid}, version {version}"));
        let report = base.company.window.status.lock().clone();
        let devices: Vec<PathBuf> = devices_in_use(&report).into_iter().map(PathBuf::from).collect();
        let begun = Instant::now();
        let ending = base.notifier.during(|| service.stop(base.limits, &base.wishes.is_clean))?;
        if ending.held_up.is_some() {
            // The devices are not free, for nobody. What waits at the sockets is refused when this process is gone.
            return base.end(ending).map(|()| None);
        }
        let served = base.notifier.during(|| {
            let passed = wait_until_free(&devices).and_then(|()| base.pass_on(&mut heir));
            passed.map_err(|why| NotServed { why, stop_asked: false })?;
            base.await_service(&mut heir)
        });
        match served {
            Ok(stop_asked) => {
                base.notifier.main_pid(pid);
                base.disown();
                let sentence = format!("clients waited for {} ms", begun.elapsed().as_millis());
                tracing::info!("process {pid} has taken over; {sentence}");
                // As late as can be: what is asked of this process after the answer reaches nobody.
                let stop_asked = stop_asked || base.wishes.stop_is_among();
                let answer = if stop_asked { Answer::Stop } else { Answer::Done(sentence) };
                if let Err(error) = heir.wire.send(&answer, &[]) {
                    tracing::debug!("process {pid}: {error}");
                }
                base.end(ending).map(|()| None)
            }
            Err(NotServed { why, stop_asked: false }) => base.take_back(heir, &why, devices).map(Some),
            Err(NotServed { why, stop_asked: true }) => {
                tracing::warn!(
                    "process {pid} did not take over: {why}; a stop was asked for, so nobody does"
                );
                base.notifier.during(|| heir.end());
                base.end(ending).map(|()| None)
            }
        }
    }
}

/// The watchdog is fed only if the reactor answers: one that hangs is to be found out by it. One that is gone ends the
/// daemon.
fn feed(notifier: &mut Notifier, answered: Result<(), CallError>, report: &StatusReport) -> Outcome<()> {
    match answered {
        Ok(()) => notifier.alive(report),
        Err(CallError::Gone) => return Err(Failure::new("the reactor has stopped: see the log")),
        Err(error) => tracing::error!("{error}: a device may hang in the kernel; see dmesg"),
    }
    Ok(())
}

/// The new process did not come to serve.
struct NotServed {
    why: String,
    /// Meanwhile a stop was asked for.
    stop_asked: bool,
}

impl Base {
    fn end(self, ending: Ending) -> Outcome<()> {
        let outcome = match ending.trouble {
            Some(trouble) => Err(Failure::new(trouble)),
            None => Ok(()),
        };
        match (ending.held_up, outcome.is_ok()) {
            (Some(held_up), _) => tracing::warn!("{held_up}"),
            (None, true) => tracing::info!("stopped"),
            (None, false) => {}
        }
        outcome
    }

    fn reload(&mut self, service: &Service) {
        let Some(reload) = &mut self.on_reload else { return };
        self.notifier.reloading();
        let reloaded = reload().and_then(|(policy, sentence)| {
            service.admit(&policy)?;
            // The limits are those of the start for as long as it serves.
            self.plan.policy = policy;
            Ok(sentence)
        });
        match reloaded {
            Ok(sentence) => tracing::info!("reloaded: {sentence}"),
            Err(failure) => tracing::error!("not reloaded, everything stays as it is: {failure}"),
        }
        self.reload_certificates(service);
        self.notifier.ready(&self.company.window.status.lock());
    }

    /// New connections get the certificates as they are now; bad ones are refused loudly, and the old ones stay.
    fn reload_certificates(&mut self, service: &Service) {
        let reread = self.plan.tls.reread();
        match reread
            .and_then(|certificates| certificates.map(|new| service.use_certificates(Some(new))).transpose())
        {
            Ok(None) => {}
            Ok(Some(())) => {
                tracing::info!("reloaded: new connections start TLS with the certificates of now")
            }
            Err(failure) => {
                tracing::error!("the certificates are not reloaded, those of before stay in use: {failure}");
                self.announce(Severity::Warning, "CertificatesRefused", &failure.to_string());
            }
        }
    }

    /// An event of every array.
    fn announce(&self, severity: Severity, event: &str, message: &str) {
        let names: Vec<String> =
            self.company.window.status.lock().arrays.iter().map(|array| array.name.clone()).collect();
        for name in names {
            self.company.window.events.push(severity, event, &name, None, message);
        }
    }

    /// Hands the sockets over.
    fn pass_on(&self, heir: &mut Heir) -> Result<(), String> {
        let mut passed = Vec::new();
        let mut sockets: Vec<BorrowedFd<'_>> = Vec::new();
        for listener in &self.places.listen {
            let of_manager = self.places.of_manager.contains(listener.addr());
            passed.push(Passed { role: Role::Listen, owns_file: listener.owns_file(), of_manager });
            sockets.push(listener.as_fd());
        }
        let owns_file = self.places.control.owns_file();
        passed.push(Passed { role: Role::Control, owns_file, of_manager: false });
        sockets.push(self.places.control.listener().as_fd());
        if let Some(manager) = self.notifier.socket() {
            passed.push(Passed { role: Role::Notify, owns_file: false, of_manager: false });
            sockets.push(manager.as_fd());
        }
        let sent = heir.wire.send(&Answer::Released(passed), &sockets);
        sent.map_err(|error| format!("it is gone ({error})"))
    }

    /// Waits until the new process serves. True if a stop was asked for meanwhile.
    fn await_service(&self, heir: &mut Heir) -> Result<bool, NotServed> {
        let mut stop_asked = false;
        let until = Instant::now() + self.company.estate.serve_within;
        loop {
            let why = match heir.wire.receive(LOOK_INTERVAL) {
                Ok(Some((Ask::Serving, _))) => return Ok(stop_asked),
                Ok(Some((other, _))) => format!("it said {other:?} out of place"),
                Ok(None) => "it has ended".to_string(),
                Err(error) if is_timeout(&error) && Instant::now() < until => {
                    stop_asked |= self.wishes.stop_is_among();
                    continue;
                }
                Err(error) if is_timeout(&error) => {
                    format!("it did not serve within {} s", self.company.estate.serve_within.as_secs())
                }
                Err(error) => format!("it is not understood ({error})"),
            };
            return Err(NotServed { why, stop_asked });
        }
    }

    /// The files of the sockets are the new process's from now on.
    fn disown(&mut self) {
        self.places.listen.iter_mut().for_each(|listener| listener.own_file(false));
        self.places.control.own_file(false);
    }

    /// Serves again what was served before.
    fn take_back(mut self, heir: Heir, why: &str, devices: Vec<PathBuf>) -> Outcome<Daemon> {
        let pid = heir.pid;
        tracing::error!("process {pid} did not take over: {why}; taking everything back");
        if !self.notifier.during(|| heir.end()) {
            tracing::error!("process {pid} does not end: it may keep the devices");
        }
        self.wishes.is_clean.store(false, Ordering::Release);
        let (policy, tls) = (self.plan.policy.clone(), self.plan.tls.clone());
        self.plan = Plan { devices, force: false, required: Vec::new(), policy, tls };
        let service = self.notifier.during(|| Service::start(&self.plan, &self.places, &self.company))?;
        self.announce(Severity::Warning, "TakenBack", &format!("process {pid} did not take over: {why}"));
        self.notifier.ready(&self.company.window.status.lock());
        Ok(Daemon { service, base: self })
    }
}

/// The kernel takes a ring apart in its own time, and only then lets go of the files it knew. Remote devices are
/// nobody's.
fn wait_until_free(devices: &[PathBuf]) -> Result<(), String> {
    let free = |device: &PathBuf, bench: &Bench, begun: Instant| match device.exists() {
        true => bench.claim(device, begun).map(drop),
        false => Ok(()),
    };
    let wait = || {
        let (bench, begun) = (Bench::that_lets_go()?, Instant::now());
        devices.iter().try_for_each(|device| free(device, &bench, begun))
    };
    wait().map_err(|failure: Failure| format!("the devices are not free: {failure}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn the_watchdog_of_a_reactor_that_hangs_goes_hungry() {
        let (manager, socket) = UnixDatagram::pair().unwrap();
        manager.set_nonblocking(true).unwrap();
        let heard = || {
            let mut text = [0; 100];
            manager.recv(&mut text).ok().map(|len| String::from_utf8_lossy(&text[..len]).into_owned())
        };
        let mut notifier = Notifier::new(socket, Some(Duration::from_secs(1)));
        let report = StatusReport::default();
        notifier.ready(&report);
        assert!(heard().is_some_and(|text| text.starts_with("READY=1")));
        for hangs in [CallError::Timeout, CallError::Busy] {
            feed(&mut notifier, Err(hangs), &report).unwrap();
            assert_eq!(heard(), None, "{hangs}");
        }
        feed(&mut notifier, Ok(()), &report).unwrap();
        assert_eq!(heard().as_deref(), Some("WATCHDOG=1\n"));
        assert!(feed(&mut notifier, Err(CallError::Gone), &report).is_err());
        assert_eq!(heard(), None);
    }
}
