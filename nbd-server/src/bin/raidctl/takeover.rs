//! The new process's side of a takeover: `raidctl serve --takeover`.
//!
//! Everything that can be wrong with the configuration is found before the running daemon is asked to let go; after
//! that, whatever goes wrong ends this process, and the running daemon takes everything back.

use crate::control::socket::OwnedSocket;
use crate::control::takeover::{Answer, Ask, Offer, PROTOCOLS, Passed, Role, Wire, is_timeout};
use crate::failure::{Context, Failure, Outcome};
use crate::notify::Notifier;
use nbd_server::listen::{ListenAddr, Listener};
use raidcore::uring::identify;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the running daemon may take for what takes it no time.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A conversation with the running daemon.
pub struct Takeover {
    wire: Wire,
    offer: Offer,
}

/// What the running daemon let go of.
pub struct Inheritance {
    /// For clients.
    pub listen: Vec<(Listener, Passed)>,
    /// For control, and whether its file is ours once we serve.
    pub control: (OwnedSocket, bool),
    /// The service manager.
    pub notifier: Notifier,
}

impl Takeover {
    /// Asks the daemon at `control` what there is to take. It serves on.
    pub fn begin(control: &Path) -> Outcome<Takeover> {
        let name = control.display();
        let stream = UnixStream::connect(control).map_err(|error| {
            Failure::new(format!(
                "no daemon to take over at {name} ({error}): start without --takeover, or name its socket with \
                 --control"
            ))
        })?;
        let mut wire = Wire::new(stream).context(&name)?;
        let version = env!("CARGO_PKG_VERSION").to_string();
        wire.send(&Ask::Takeover { protocols: PROTOCOLS.to_vec(), version }, &[]).context(&name)?;
        match receive(&mut wire, ANSWER_LIMIT)? {
            (Answer::Offer(offer), _) => {
                tracing::info!("taking over from process {}, version {}", offer.pid, offer.version);
                Ok(Takeover { wire, offer })
            }
            (Answer::Error(why), _) if why.contains("not understood") => Err(Failure::new(format!(
                "the daemon at {name} is of a version that cannot be taken over: stop it and start this one"
            ))),
            (other, _) => Err(out_of_place(other)),
        }
    }

    /// What there is to take.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// True if the daemon listens at `place`.
    pub fn has(&self, place: &ListenAddr) -> bool {
        self.offer.listen.iter().any(|offered| *offered == place.to_string())
    }

    /// Where the daemon listens.
    pub fn places(&self) -> Outcome<Vec<ListenAddr>> {
        self.offer.listen.iter().map(|place| place.parse().map_err(Failure::new)).collect()
    }

    /// `devices` and those that the daemon uses beside them: what was added to an array since it was started.
    pub fn with_devices_in_use(&self, devices: &[PathBuf]) -> Vec<PathBuf> {
        let mut all = devices.to_vec();
        for used in self.offer.devices.iter().map(PathBuf::from) {
            let is_same = |known: &PathBuf| {
                *known == used || matches!((identify(known), identify(&used)), (Ok(a), Ok(b)) if a == b)
            };
            if !all.iter().any(is_same) {
                tracing::warn!(
                    "{} belongs to an array that is served and not to the configuration: it is taken over as well; \
                     add it to the configuration",
                    used.display()
                );
                all.push(used);
            }
        }
        all
    }

    /// Has the daemon let go. From here on clients wait.
    pub fn release(&mut self) -> Outcome<Inheritance> {
        self.wire.send(&Ask::Release, &[]).context("the daemon to take over is gone")?;
        let patience = Duration::from_secs(self.offer.release_within_s) + ANSWER_LIMIT;
        let (passed, sockets) = match receive(&mut self.wire, patience)? {
            (Answer::Released(passed), sockets) => (passed, sockets),
            (other, _) => return Err(out_of_place(other)),
        };
        if passed.len() != sockets.len() {
            return Err(Failure::new("the running daemon handed over other sockets than it said"));
        }
        self.sort(passed.into_iter().zip(sockets))
    }

    fn sort(&self, sockets: impl Iterator<Item = (Passed, OwnedFd)>) -> Outcome<Inheritance> {
        let (mut listen, mut control, mut notifier) = (Vec::new(), None, Notifier::from_env());
        for (passed, socket) in sockets {
            match passed.role {
                Role::Listen => {
                    listen.push((Listener::inherited(socket).map_err(Failure::new)?, passed));
                }
                Role::Control => control = Some((OwnedSocket::inherited(socket)?, passed.owns_file)),
                // A manager of our own is asked first.
                Role::Notify if notifier.socket().is_some() => {}
                Role::Notify => {
                    let watchdog = self.offer.watchdog_us.map(Duration::from_micros);
                    notifier = Notifier::new(UnixDatagram::from(socket), watchdog);
                }
            }
        }
        let control = control.ok_or_else(|| Failure::new("the running daemon kept its control socket"))?;
        Ok(Inheritance { listen, control, notifier })
    }

    /// Tells the daemon that it is not needed any more. If it is gone already, so be it: this process serves. True if
    /// it was asked to stop meanwhile, which is this process's to do now.
    pub fn finish(mut self) -> bool {
        let told = self.wire.send(&Ask::Serving, &[]).map_err(Failure::new);
        match told.and_then(|()| receive(&mut self.wire, ANSWER_LIMIT)) {
            Ok((Answer::Done(sentence), _)) => tracing::info!("taken over: {sentence}"),
            Ok((Answer::Stop, _)) => return true,
            Ok((other, _)) => tracing::warn!("taken over, but the daemon before said: {other:?}"),
            Err(failure) => tracing::warn!("taken over, but the daemon before is gone: {failure}"),
        }
        false
    }
}

fn receive(wire: &mut Wire, patience: Duration) -> Outcome<(Answer, Vec<OwnedFd>)> {
    match wire.receive(patience) {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(Failure::new("the daemon to take over has closed the conversation: see its log")),
        Err(error) if is_timeout(&error) => {
            Err(Failure::new("the daemon to take over does not answer: see its log"))
        }
        Err(error) => Err(Failure::new(format!("the daemon to take over is not understood: {error}"))),
    }
}

fn out_of_place(answer: Answer) -> Failure {
    Failure::new(match answer {
        Answer::Error(sentence) => format!("cannot take over: {sentence}"),
        other => format!("the daemon to take over answered out of place: {other:?}"),
    })
}
