//! What a service manager and its administrator rely on: sockets that are given, what is told, stops with a bound.

use crate::{create_clean, text};
use rustix::process::Signal;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};
use tests::Need::Program;
use tests::{Disks, RawClient, Server, binary, program, run, running, skipped, takeover};

const LONG: Duration = Duration::from_secs(120);

/// The words of one message to the service manager after the other.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        Manager(socket)
    }

    fn hears(&self) -> Vec<String> {
        let mut text = [0; 4096];
        let len = self.0.recv(&mut text).expect("the daemon tells nothing");
        String::from_utf8(text[..len].to_vec()).unwrap().lines().map(str::to_string).collect()
    }

    /// Passes over all messages until one has `word`, which must come before any that has one of `not`.
    fn hears_until(&self, word: &str, not: &[&str]) -> Vec<String> {
        loop {
            let words = self.hears();
            if words.iter().any(|heard| heard.starts_with(word)) {
                return words;
            }
            for early in not {
                assert!(!words.iter().any(|heard| heard.starts_with(early)), "{words:?} before {word}");
            }
        }
    }
}

#[test]
fn the_service_manager_hears_ready_watchdog_and_stopping_in_order() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let manager = Manager::at(&disks.path("notify"));
    let mut command = program(binary());
    command.args(["serve", "--listen", &format!("unix:{}", text(&disks.path("nbd.sock")))]);
    command.args(disks.all()).env("NOTIFY_SOCKET", disks.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut server = Server::spawn(disks.dir(), "serve.log", &mut command);

    let ready = manager.hears_until("READY=1", &["WATCHDOG", "STOPPING"]);
    assert!(ready.contains(&"STATUS=serving vol0".to_string()), "{ready:?}");
    assert!(RawClient::open(server.socket(), "vol0").is_ok(), "who is ready serves");
    for _ in 0..3 {
        manager.hears_until("WATCHDOG=1", &["STOPPING"]);
    }
    server.ctl(["fail", "vol0", text(&disks.all()[0])]).ok();
    let status = manager.hears_until("STATUS=", &["STOPPING"]);
    assert_eq!(status, ["STATUS=vol0 is degraded"]);
    server.signal(Signal::HUP);
    manager.hears_until("RELOADING=1", &["READY", "STOPPING"]);
    manager.hears_until("READY=1", &["STOPPING"]);
    assert!(server.is_running());

    // The new process was not started by the manager: it hears of it from the old one.
    let mut heir = Server::spawn(disks.dir(), "heir.log", &mut takeover(disks.all()));
    let main = manager.hears_until("MAINPID=", &["STOPPING"]);
    assert_eq!(main, [format!("MAINPID={}", heir.pid())]);
    manager.hears_until("READY=1", &["STOPPING"]);
    server.end().ok();
    manager.hears_until("WATCHDOG=1", &["STOPPING"]);
    assert!(heir.is_running());
    heir.signal(Signal::TERM);
    manager.hears_until("STOPPING=1", &[]);
    heir.end().ok();
}

#[test]
fn sockets_of_systemd_are_served_and_their_files_stay() {
    if skipped(&[Program("systemd-socket-activate"), Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let (nbd, control) = (disks.path("nbd.sock"), disks.path("control.sock"));
    let mut command = program("systemd-socket-activate");
    command.args(["-l", text(&nbd), "-l", text(&control), "--fdname=nbd:control"]);
    command.arg(binary()).arg("serve").args(disks.all());
    let mut server = Server::spawn(disks.dir(), "serve.log", &mut command);
    server.wait_log("Listening");
    let info = run(program("nbdinfo").args(["--size", &server.uri("vol0")])).ok();
    assert_eq!(info.stdout.trim(), server.size_bytes("vol0").to_string());

    // They stay systemd's when another process has them.
    let heir = Server::take_over(disks.dir(), "heir.log", disks.all());
    server.end().ok();
    assert_eq!(running(&heir.array("vol0")), None);
    heir.stop();
    assert!(nbd.exists() && control.exists(), "the files of systemd's sockets were removed");
}

#[test]
fn a_given_socket_that_is_none_to_listen_at_is_refused_by_name() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let script = "exec 3</dev/null; export LISTEN_FDS=1 LISTEN_FDNAMES=odd LISTEN_PID=$$; exec \"$@\"";
    let mut command = program("sh");
    command.args(["-c", script, "sh"]).arg(binary()).arg("serve").args(disks.all());
    run(&mut command).refused(&["odd", "cannot be served"]);
}

#[test]
fn a_hundred_writes_in_flight_at_a_stop_are_answered_or_their_connection_ends() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start_with(disks.dir(), &["--drain", "20s"], disks.all());
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    const LEN: usize = 64 << 10;
    let block = |n: u64| vec![n as u8 + 1; LEN];
    let cookies: Vec<u64> =
        (0..100).map(|n| client.send(0, 1, n * LEN as u64, LEN as u32, &block(n)).unwrap()).collect();
    server.signal(Signal::TERM);
    let mut acknowledged = Vec::new();
    // A reply that is neither whole nor absent would fail here by its magic.
    while let Ok((cookie, error)) = client.reply() {
        assert_eq!(error, 0);
        acknowledged.push(cookies.iter().position(|sent| *sent == cookie).unwrap() as u64);
    }
    server.end().ok();
    println!("{} of 100 writes were acknowledged", acknowledged.len());
    let server = Server::start(disks.dir(), disks.all());
    assert_eq!(running(&server.array("vol0")), None, "a clean stop");
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    for n in acknowledged {
        assert_eq!(client.call(0, n * LEN as u64, LEN as u32, &[], LEN).unwrap().data, block(n), "write {n}");
    }
}

#[test]
fn a_client_that_never_reads_does_not_keep_a_stop_from_being_clean() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start_with(disks.dir(), &["--drain", "1s"], disks.all());
    let (mut client, _) = RawClient::open(server.socket(), "vol0").unwrap();
    for n in 0..64 {
        client.send(0, 0, n << 20, 1 << 20, &[]).unwrap();
    }
    let begun = Instant::now();
    server.stop();
    println!("stopped within {:?}", begun.elapsed());
    drop(client);
    let server = Server::start(disks.dir(), disks.all());
    assert_eq!(running(&server.array("vol0")), None);
}

#[test]
fn a_second_signal_ends_a_stop_at_once() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let mut server = Server::start_with(disks.dir(), &["--drain", "100s"], disks.all());
    // A client with a request in flight that the server cannot finish: the payload does not come.
    let stuck = UnixStream::connect(server.socket()).unwrap();
    server.signal(Signal::TERM);
    server.wait_log("stopping");
    let begun = Instant::now();
    while server.is_running() && begun.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(100));
        if server.is_running() {
            server.signal(Signal::TERM);
        }
    }
    drop(stuck);
    assert!(!server.is_running());
}
