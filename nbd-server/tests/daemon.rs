//! The daemon behind `raidctl serve` and `raidctl demo`, through its control socket and its signals.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const RAIDCTL: &str = env!("CARGO_BIN_EXE_raidctl");

/// A folder with disks in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(disks: &[&str]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        disks.iter().for_each(|disk| folder.disk(disk, 16));
        folder
    }

    fn disk(&self, name: &str, mib: u64) {
        std::fs::File::create_new(self.path(name)).unwrap().set_len(mib << 20).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A command in this folder, whose daemon is the one of this folder.
    fn raidctl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(RAIDCTL);
        command.args(words).current_dir(self.0.path()).env_remove("RUST_LOG");
        command.env("RAIDCTL_CONTROL", self.path("control.sock"));
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.raidctl(words).output().unwrap()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, words: &[&str], parts: &[&str]) {
        let output = self.run(words);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{words:?}: {part:?} is not in: {message}");
        }
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.done(&["status", "--json"])).unwrap()
    }

    /// A mirror `v` of `a` and `b`, served.
    fn with_mirror() -> (Folder, Daemon) {
        let folder = Folder::new(&["a", "b", "c"]);
        folder.done(&["create", "v", "--level", "1", "--assume-clean", "a", "b"]);
        let daemon = folder.serve(&["serve", "--listen", "unix:nbd.sock", "a", "b"]);
        (folder, daemon)
    }

    /// Starts a daemon and waits for the first line that it prints: then it serves.
    fn serve(&self, words: &[&str]) -> Daemon {
        let mut command = self.raidctl(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        if out.read_line(&mut first).unwrap() == 0 {
            panic!("{words:?} ended: {}", String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr));
        }
        Daemon { child, out, first }
    }
}

struct Daemon {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
    /// The first line that it printed.
    first: String,
}

impl Daemon {
    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end while nobody reads its log.
    fn wait_unheard(&mut self) -> Option<i32> {
        let begun = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < std::time::Duration::from_secs(60), "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The exit status, the rest of what it printed, and its log.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut log) = (String::new(), String::new());
        self.out.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), out, log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

fn absolute(folder: &Folder, name: &str) -> String {
    folder.path(name).to_str().unwrap().to_string()
}

#[test]
fn serve_says_where_and_stops_cleanly_without_leaving_sockets() {
    let (folder, daemon) = Folder::with_mirror();
    assert_eq!(daemon.first.trim(), format!("v nbd+unix:///v?socket={}", absolute(&folder, "nbd.sock")));
    let mode = std::fs::metadata(folder.path("control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only this user may control the daemon");
    daemon.signal(rustix::process::Signal::TERM);
    let (status, _, log) = daemon.end();
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("Stopped"), "{log}");
    assert!(!Path::exists(&folder.path("control.sock")) && !Path::exists(&folder.path("nbd.sock")));
    let examined: Value = serde_json::from_str(&folder.done(&["examine", "a", "--json"])).unwrap();
    assert_eq!(examined["array"]["clean"], true);
}

/// Only a daemon at the default place was found by the name of an export.
#[test]
fn the_status_says_where_clients_connect_so_that_a_name_is_enough_to_attach() {
    let (folder, daemon) = Folder::with_mirror();
    let expected = format!("unix:{}", absolute(&folder, "nbd.sock"));
    for words in [&["status", "--json"][..], &["status", "--json", "v"]] {
        let status: Value = serde_json::from_str(&folder.done(words)).unwrap();
        assert_eq!(status["listen"], serde_json::json!([{ "address": expected, "tls": "off" }]));
    }
    assert!(folder.done(&["status"]).contains(&format!("listening at {expected}")));
    folder.refused(&["attach", "w"], &["no export \"w\"", "serves v"]);
    drop(daemon);
    folder.refused(&["attach", "v"], &["no daemon at", "control.sock", "nbd://HOST/EXPORT"]);
}

#[test]
fn a_second_daemon_at_the_same_control_socket_is_refused() {
    let (folder, daemon) = Folder::with_mirror();
    folder.refused(&["serve", "--listen", "unix:other.sock", "c"], &["control.sock", "a running daemon"]);
    assert_eq!(folder.status()["arrays"][0]["name"], "v");
    drop(daemon);
    // What the killed one left behind is replaced.
    folder.serve(&["serve", "--listen", "unix:nbd.sock", "a", "b"]);
}

#[test]
fn what_cannot_be_done_to_a_member_is_refused_with_the_remedy() {
    let (folder, _daemon) = Folder::with_mirror();
    let a = absolute(&folder, "a");
    folder.refused(&["status", "w"], &["no array w", "serves v"]);
    folder.refused(&["fail", "w", "a"], &["no array w"]);
    folder.refused(&["fail", "v", "c"], &[&absolute(&folder, "c"), "not a member"]);
    folder.refused(&["remove", "v", "a"], &[&a, "fail it first"]);
    folder.refused(&["add", "v", "a"], &[&a, "member of v already"]);
    folder.refused(&["add", "v", "nothing"], &["nothing: does not exist"]);
    let told = folder.done(&["fail", "v", "a"]);
    assert_eq!(told.trim(), format!("{a} is faulty; v is degraded"));
    folder.refused(&["fail", "v", "a"], &["faulty already", "raidctl remove v"]);
    folder.refused(&["add", "v", "a"], &["faulty member", "raidctl remove v"]);
    folder.refused(&["fail", "v", "b"], &["cannot do without", "add another device"]);
}

#[test]
fn a_member_is_known_by_any_name_of_its_disk() {
    let (folder, _daemon) = Folder::with_mirror();
    std::os::unix::fs::symlink(folder.path("a"), folder.path("by-id")).unwrap();
    folder.refused(&["add", "v", "by-id"], &["member of v already"]);
    folder.done(&["fail", "v", "by-id"]);
    assert_eq!(folder.status()["arrays"][0]["members"][0]["state"], "faulty");
}

#[test]
fn a_removed_member_comes_back_without_force_and_a_stranger_does_not() {
    let (folder, _daemon) = Folder::with_mirror();
    folder.disk("x", 16);
    folder.disk("y", 16);
    folder.done(&["create", "w", "--level", "1", "x", "y"]);
    folder.done(&["fail", "v", "a"]);
    folder.done(&["remove", "v", "a"]);
    folder.refused(&["add", "v", "x"], &["member of array w", "--force"]);
    let told = folder.done(&["add", "v", "a"]);
    assert!(told.contains("rebuilt on") && told.contains("--watch"), "{told}");
}

#[test]
fn stop_lets_go_of_the_devices_while_the_daemon_goes_on() {
    let (folder, _daemon) = Folder::with_mirror();
    folder.refused(&["create", "n", "--level", "1", "--force", "a", "b"], &["in use"]);
    assert_eq!(folder.done(&["stop", "v"]).trim(), "v is stopped");
    folder.refused(&["stop", "v"], &["no array v"]);
    assert_eq!(folder.status()["arrays"], Value::Array(Vec::new()));
    assert!(folder.done(&["status"]).starts_with("no arrays\n"));
    folder.done(&["create", "n", "--level", "1", "--force", "a", "b"]);
}

#[test]
fn followers_see_what_happens_and_end_with_the_daemon() {
    let (folder, daemon) = Folder::with_mirror();
    let mut follow = folder.raidctl(&["events", "--follow", "--json"]);
    let mut follow = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["event"], "NewArray");
    folder.done(&["fail", "v", "b"]);
    let failed = next();
    assert_eq!((&failed["event"], &failed["array"]), (&"Fail".into(), &"v".into()));
    assert_eq!(failed["device"], absolute(&folder, "b"));
    let degraded = next();
    assert_eq!((&degraded["event"], &degraded["severity"]), (&"DegradedArray".into(), &"critical".into()));

    let mut watch = folder.raidctl(&["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    // Its first line tells that it has found the daemon: one that comes too late fails, as it should.
    let mut watched = BufReader::new(watch.stdout.take().unwrap()).lines();
    assert!(watched.next().unwrap().unwrap().contains("arrays"));
    daemon.signal(rustix::process::Signal::INT);
    assert_eq!(daemon.end().0, Some(0));
    assert_eq!(next()["event"], "Stopped");
    assert_eq!(follow.wait().unwrap().code(), Some(0));
    assert!(watched.all(|line| line.is_ok()));
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn the_control_socket_survives_what_is_no_request() {
    let (folder, _daemon) = Folder::with_mirror();
    for garbage in [&b"hello\n"[..], b"{\"op\":\"fail\"}\n", b"\0\0\0\n", b"{\"op\":\"status\",\"x\":1}\n"] {
        let mut stream = UnixStream::connect(folder.path("control.sock")).unwrap();
        stream.write_all(garbage).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        assert!(answer.starts_with("{\"error\":"), "{answer}");
    }
    assert_eq!(folder.status()["arrays"][0]["state"], "clean");
}

#[test]
fn devices_that_are_of_no_use_are_named_and_the_rest_is_served() {
    let folder = Folder::new(&["a", "b", "c", "blank"]);
    folder.done(&["create", "v", "--level", "5", "--assume-clean", "a", "b", "c"]);
    let daemon = folder.serve(&["serve", "--listen", "unix:nbd.sock", "a", "b", "blank", "nothing"]);
    assert_eq!(folder.status()["arrays"][0]["state"], "degraded");
    daemon.signal(rustix::process::Signal::TERM);
    let (status, _, log) = daemon.end();
    assert_eq!(status, Some(0));
    for part in ["/blank: no superblock", "/nothing: does not exist", "slot 2", "NEXT FAILURE LOSES DATA"] {
        assert!(log.contains(part), "{part:?} is not in: {log}");
    }
    folder.refused(&["serve", "--listen", "unix:nbd.sock", "a"], &["2 of 3 slots", "slot 1", "slot 2"]);
    folder.refused(&["serve", "--listen", "unix:nbd.sock", "blank"], &["/blank: no superblock"]);
}

/// A member cut by `truncate -s` panicked the daemon: its missing copy B was to be mended, with a size its data does
/// not fit. It is left out like any other member that cannot be used, and other arrays do not notice.
#[test]
fn a_member_that_has_shrunk_is_left_out_and_everything_else_is_served() {
    let folder = Folder::new(&["a", "b", "c", "x", "y"]);
    folder.done(&["create", "v", "--level", "5", "--assume-clean", "a", "b", "c"]);
    folder.done(&["create", "w", "--level", "1", "--assume-clean", "x", "y"]);
    std::fs::File::options().write(true).open(folder.path("c")).unwrap().set_len(10 << 20).unwrap();
    let daemon = folder.serve(&["serve", "--listen", "unix:nbd.sock", "c", "a", "b", "x", "y"]);
    let arrays = folder.status()["arrays"].clone();
    let states: Vec<_> = arrays.as_array().unwrap().iter().map(|array| &array["state"]).collect();
    assert_eq!(states, ["degraded", "clean"]);
    daemon.signal(rustix::process::Signal::TERM);
    let (status, _, log) = daemon.end();
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains("c has shrunk: it has 10485760 bytes"), "{log}");
}

/// `timeout` signals its child and its group: the second signal, a moment later, ended the daemon before it was clean.
#[test]
fn signals_that_come_together_are_one_request_to_stop() {
    let (folder, daemon) = Folder::with_mirror();
    daemon.signal(rustix::process::Signal::TERM);
    daemon.signal(rustix::process::Signal::INT);
    let (status, _, log) = daemon.end();
    assert_eq!(status, Some(0), "{log}");
    let examined: Value = serde_json::from_str(&folder.done(&["examine", "a", "--json"])).unwrap();
    assert_eq!(examined["array"]["clean"], true);
}

/// A removed leg of a mirror kept a superblock that calls it in sync, and could be served alone with its old data.
#[test]
fn a_removed_member_cannot_be_served_by_itself_and_is_free_at_once() {
    let (folder, daemon) = Folder::with_mirror();
    folder.done(&["fail", "v", "a"]);
    let told = folder.done(&["remove", "v", "a"]);
    assert!(told.contains("its superblock is erased, its data is not"), "{told}");
    folder.refused(&["examine", "a"], &["no superblock"]);
    folder.done(&["create", "w", "--level", "1", "--force", "a", "c"]);
    drop(daemon);
}

#[test]
fn what_cannot_be_erased_from_a_removed_member_is_said() {
    let (folder, _daemon) = Folder::with_mirror();
    folder.done(&["fail", "v", "a"]);
    std::fs::rename(folder.path("a"), folder.path("away")).unwrap();
    let told = folder.done(&["remove", "v", "a"]);
    assert!(told.contains("could not be erased") && told.contains("does not exist"), "{told}");
}

#[test]
fn a_demo_whose_port_is_taken_serves_on_its_unix_socket() {
    let folder = Folder::new(&[]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let daemon = folder.serve(&["demo", "--dir", "demo", "--size", "16M", "--tcp", &port]);
    assert!(daemon.first.contains("new, empty"), "{}", daemon.first);
    daemon.signal(rustix::process::Signal::INT);
    let (status, told, log) = daemon.end();
    assert_eq!(status, Some(0), "{log}");
    assert!(log.contains(&port) && log.contains("unix socket only"), "{log}");
    assert!(told.contains("nbd+unix:///demo") && !told.contains("nbd://"), "{told}");
    let daemon = folder.serve(&["demo", "--dir", "demo", "--tcp", "127.0.0.1:0"]);
    assert!(daemon.first.contains("found again"), "{}", daemon.first);
}

/// After 859 connections the pipe was full, and with it the reactor hung, and everything that waits for the reactor.
#[test]
fn a_log_that_nobody_reads_stops_neither_clients_nor_the_stop() {
    let (folder, mut daemon) = Folder::with_mirror();
    for i in 0..5000 {
        let mut client = UnixStream::connect(folder.path("nbd.sock")).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        // NBD_OPT_EXPORT_NAME, NO_ZEROES: answered by size and flags.
        client.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x01v").unwrap();
        let mut answer = [0; 18 + 10];
        client.read_exact(&mut answer).unwrap_or_else(|error| panic!("client {i}: {error}"));
    }
    assert_eq!(folder.status()["arrays"][0]["name"], "v");
    daemon.signal(rustix::process::Signal::TERM);
    assert_eq!(daemon.wait_unheard(), Some(0));
    let (_, _, log) = daemon.end();
    assert!(log.matches("client attached").count() > 100, "{log}");
    // Its array was marked clean.
    let again = folder.serve(&["serve", "--listen", "unix:nbd.sock", "a", "b"]);
    assert!(folder.status()["arrays"][0]["action"].is_null());
    drop(again);
}
