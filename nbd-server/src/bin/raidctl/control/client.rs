//! The command line's end of the control socket.

use super::proto::{Reply, Request};
use super::socket::default_control;
use super::{MAX_REPLY_LINE, STATUS_PATIENCE, WORK_PATIENCE, WRITE_LIMIT};
use crate::cli::ControlArgs;
use crate::events::EventRecord;
use crate::failure::{Context, Failure, Outcome};
use crate::report::StatusReport;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// A connection to a daemon.
pub struct Client {
    reader: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the daemon that `args` name, or to the one at the default place.
    pub fn connect(args: &ControlArgs) -> Outcome<Client> {
        let path = args.control.clone().unwrap_or_else(default_control);
        let stream = UnixStream::connect(&path).map_err(|error| connect_failure(&path, &error))?;
        stream.set_write_timeout(Some(WRITE_LIMIT)).context(path.display())?;
        Ok(Client { reader: BufReader::new(stream), path })
    }

    /// All arrays, or one.
    pub fn status(&mut self, array: Option<&str>) -> Outcome<StatusReport> {
        match self.ask(&Request::Status { array: array.map(str::to_string) })? {
            Reply::Status(report) => Ok(report),
            other => Err(self.out_of_place(&other)),
        }
    }

    /// Has something done; returns the daemon's sentence about it.
    pub fn work(&mut self, request: &Request) -> Outcome<String> {
        match self.ask(request)? {
            Reply::Done(sentence) => Ok(sentence),
            other => Err(self.out_of_place(&other)),
        }
    }

    /// The events so far.
    pub fn events(&mut self) -> Outcome<Vec<EventRecord>> {
        match self.ask(&Request::Events { after: 0, follow: false })? {
            Reply::Events(events) => Ok(events),
            other => Err(self.out_of_place(&other)),
        }
    }

    /// Hands each event to `each`, the past ones first, until the daemon stops.
    pub fn follow(&mut self, mut each: impl FnMut(EventRecord) -> Outcome<()>) -> Outcome<()> {
        self.reader.get_ref().set_read_timeout(None).context(self.path.display())?;
        // As in `ask`: who refuses the connection has said why, and closed it, before it hears what is asked.
        let mut sent = self.send(&Request::Events { after: 0, follow: true });
        loop {
            match self.receive() {
                Ok(Some(Reply::Events(events))) => events.into_iter().try_for_each(&mut each)?,
                Ok(Some(other)) => return Err(self.out_of_place(&other)),
                Ok(None) => return sent,
                Err(failure) => return sent.and(Err(failure)),
            }
            sent = Ok(());
        }
    }

    fn ask(&mut self, request: &Request) -> Outcome<Reply> {
        let patience = match request {
            Request::Status { .. } | Request::Events { .. } => STATUS_PATIENCE,
            _ => WORK_PATIENCE,
        };
        self.reader.get_ref().set_read_timeout(Some(patience)).context(self.path.display())?;
        // A daemon that refuses the connection says why before it hears what is asked: listen first, then complain.
        let sent = self.send(request);
        match self.receive() {
            Ok(Some(Reply::Error(sentence))) => Err(Failure::new(sentence)),
            Ok(Some(reply)) => Ok(reply),
            Ok(None) => {
                Err(Failure::new(format!("the daemon at {} stopped before it answered", self.path.display())))
            }
            Err(failure) => sent.and(Err(failure)),
        }
    }

    fn send(&mut self, request: &Request) -> Outcome<()> {
        let mut line = serde_json::to_vec(request).map_err(Failure::new)?;
        line.push(b'\n');
        let sent = self.reader.get_mut().write_all(&line);
        sent.map_err(|error| {
            Failure::new(format!("the daemon at {} has stopped ({error})", self.path.display()))
        })
    }

    /// The next reply; `None` if the daemon closed the connection.
    fn receive(&mut self) -> Outcome<Option<Reply>> {
        let name = self.path.display();
        let mut line = Vec::new();
        let read = self.reader.by_ref().take(MAX_REPLY_LINE as u64).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(Failure::new(format!("the daemon at {name} does not answer: see its log")));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(Failure::new(format!("the daemon at {name} has stopped ({error})"))),
        }
        let reply = serde_json::from_slice(&line);
        reply.map(Some).context(format!("what listens at {name} does not speak as raidctl does"))
    }

    fn out_of_place(&self, reply: &Reply) -> Failure {
        Failure::new(match reply {
            Reply::Error(sentence) => sentence.clone(),
            other => format!("the daemon at {} answered out of place: {other:?}", self.path.display()),
        })
    }
}

fn connect_failure(path: &Path, error: &io::Error) -> Failure {
    let name = path.display();
    Failure::new(match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
            "no daemon at {name}: start one with `raidctl serve` or `raidctl demo`, or name its socket with \
             --control or RAIDCTL_CONTROL"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("the daemon at {name} belongs to another user: run this as that user, or as root")
        }
        _ => format!("cannot connect to the daemon at {name}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::server::{ControlServer, Desk};
    use super::super::socket::OwnedSocket;
    use super::super::{MAX_CONNECTIONS, MAX_REQUEST_LINE};
    use super::*;
    use crate::events::{EventLog, Severity};
    use crate::report::samples;
    use std::sync::Arc;

    struct TestDesk(EventLog);

    impl Desk for TestDesk {
        fn answer(&self, request: Request) -> Reply {
            match request {
                Request::Status { .. } => Reply::Status(samples::rebuilding()),
                Request::Stop { array } => Reply::Done(format!("{array} is stopped")),
                _ => Reply::Error("no such array: see raidctl status".to_string()),
            }
        }
        fn events(&self) -> &EventLog {
            &self.0
        }
    }

    struct Daemon {
        dir: tempfile::TempDir,
        desk: Arc<TestDesk>,
        server: ControlServer,
    }

    impl Daemon {
        fn start() -> Daemon {
            let dir = tempfile::tempdir().unwrap();
            let desk = Arc::new(TestDesk(EventLog::default()));
            let socket = OwnedSocket::bind(&dir.path().join("c")).unwrap();
            let server = ControlServer::start(Arc::new(socket), Arc::clone(&desk) as Arc<dyn Desk>).unwrap();
            Daemon { dir, desk, server }
        }
        fn path(&self) -> PathBuf {
            self.dir.path().join("c")
        }
        fn client(&self) -> Client {
            Client::connect(&ControlArgs { control: Some(self.path()) }).unwrap()
        }
        fn raw(&self, bytes: &[u8]) -> String {
            let mut stream = UnixStream::connect(self.path()).unwrap();
            stream.write_all(bytes).unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        }
    }

    #[test]
    fn several_requests_on_one_connection_are_answered_in_order() {
        let daemon = Daemon::start();
        let mut client = daemon.client();
        assert_eq!(client.status(None).unwrap(), samples::rebuilding());
        assert_eq!(client.work(&Request::Stop { array: "vol0".into() }).unwrap(), "vol0 is stopped");
        let error = client.work(&Request::Fail { array: "x".into(), device: "/y".into() }).unwrap_err();
        assert_eq!(error.sentence(), Some("no such array: see raidctl status"));
        assert_eq!(client.status(Some("vol0")).unwrap().arrays.len(), 1);
    }

    #[test]
    fn a_line_that_is_no_request_is_answered_with_an_error() {
        let daemon = Daemon::start();
        assert!(daemon.raw(b"hello\n").contains("not understood"));
        assert!(daemon.raw(b"\xff\x00\n").contains("not understood"));
    }

    #[test]
    fn a_line_without_an_end_is_cut_off() {
        let daemon = Daemon::start();
        assert!(daemon.raw(&vec![b'x'; MAX_REQUEST_LINE + 1]).contains("at most"));
    }

    #[test]
    fn one_connection_too_many_is_told_so_and_a_closed_one_makes_room() {
        let daemon = Daemon::start();
        let mut clients: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| daemon.client()).collect();
        for client in &mut clients {
            client.status(None).unwrap();
        }
        let mut extra = daemon.client();
        let error = extra.status(None).unwrap_err();
        assert!(error.sentence().unwrap().contains("the daemon is busy: 32 control connections"), "{error}");
        let error = daemon.client().follow(|_| Ok(())).unwrap_err();
        assert!(error.sentence().unwrap().contains("the daemon is busy"), "{error}");
        drop(clients);
        let room = (0..3000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            daemon.client().status(None).is_ok()
        });
        assert!(room);
    }

    /// 32 connections without a request kept `status` out for a minute.
    #[test]
    fn connections_that_ask_for_nothing_are_closed_and_make_room() {
        let daemon = Daemon::start();
        let idle: Vec<Client> = (0..MAX_CONNECTIONS).map(|_| daemon.client()).collect();
        for mut client in idle {
            let limit = super::super::IDLE_LIMIT * 6;
            client.reader.get_ref().set_read_timeout(Some(limit)).unwrap();
            assert!(matches!(client.receive(), Ok(None)), "it is closed, and not by us");
        }
        daemon.client().status(None).unwrap();
    }

    #[test]
    fn a_follower_sees_past_and_new_events_until_the_daemon_stops() {
        let mut daemon = Daemon::start();
        daemon.desk.0.push(Severity::Info, "NewArray", "vol0", None, "");
        let mut client = daemon.client();
        let (tell, told) = std::sync::mpsc::channel();
        let follower = std::thread::spawn(move || {
            client.follow(|event| {
                tell.send(event.event).unwrap();
                Ok(())
            })
        });
        assert_eq!(told.recv().unwrap(), "NewArray");
        daemon.desk.0.push(Severity::Warning, "Fail", "vol0", Some("/dev/loop1"), "");
        assert_eq!(told.recv().unwrap(), "Fail");
        daemon.server.stop();
        follower.join().unwrap().unwrap();
        assert!(!daemon.path().exists());
    }

    #[test]
    fn without_a_daemon_the_message_says_how_to_start_one() {
        let dir = tempfile::tempdir().unwrap();
        let args = ControlArgs { control: Some(dir.path().join("none")) };
        let error = Client::connect(&args).err().unwrap();
        assert!(error.sentence().unwrap().contains("raidctl serve"));
        assert_eq!(error.exit_status(), 1);
    }
}
