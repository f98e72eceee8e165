//! The daemon with a configuration of who may use what, and a thousand clients that do nothing.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod common;

use common::{Client, PATIENCE, be, open, option};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

/// `raidctl serve` with a configuration, two mirrors, and its log. It is killed in the end.
struct Daemon {
    child: Child,
    _out: BufReader<ChildStdout>,
    /// How much of the log was read.
    read: usize,
    dir: tempfile::TempDir,
}

impl Daemon {
    /// Serves two mirrors `v` and `w` with these lines in its configuration.
    fn with(lines: &str) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        for (name, disks) in [("v", ["a", "b"]), ("w", ["c", "d"])] {
            for disk in disks {
                std::fs::File::create_new(dir.path().join(disk)).unwrap().set_len(16 << 20).unwrap();
            }
            let words = ["create", name, "--level", "1", "--assume-clean", disks[0], disks[1]];
            assert!(command(&dir).args(words).output().unwrap().status.success());
        }
        configure(&dir, lines);
        let mut command = command(&dir);
        command.args(["serve", "--config", "raidctl.toml"]).stdout(Stdio::piped());
        // A file: a pipe that nobody reads fills up, and then the daemon waits.
        command.stderr(std::fs::File::create(dir.path().join("log")).unwrap());
        let mut child = command.spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        assert_ne!(out.read_line(&mut first).unwrap(), 0, "it serves");
        Daemon { child, _out: out, read: 0, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    /// Waits until the log has `part` in what was not yet read of it.
    fn await_log(&mut self, part: &str) {
        let begun = Instant::now();
        loop {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            if let Some(at) = log[self.read..].find(part) {
                self.read += at + part.len();
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{part:?} is not in {}", &log[self.read..]);
            std::thread::yield_now();
        }
    }

    /// Has it read its configuration again, with other lines in it.
    fn reload(&mut self, lines: &str) {
        configure(&self.dir, lines);
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        self.await_log("reloaded");
    }

    /// Names and descriptions that a client is told of.
    fn list(&self) -> Vec<(String, String)> {
        let mut stream = open(&self.socket());
        stream.write_all(&[&[0, 0, 0, 3], &option(3, b"")[..], &option(2, b"")].concat()).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        let (mut rest, mut list) = (&said[18..], Vec::new());
        while be(&rest[12..16]) == 2 {
            let (data, name) = (be(&rest[16..20]) as usize, be(&rest[20..24]) as usize);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            list.push((text(&rest[24..24 + name]), text(&rest[24 + name..20 + data])));
            rest = &rest[20 + data..];
        }
        list
    }

    /// What the process has in memory: its own pages, and its part of shared ones.
    fn memory_bytes(&self) -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Pss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn command(dir: &tempfile::TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raidctl"));
    command.current_dir(dir.path()).env_remove("RUST_LOG");
    command.env("RAIDCTL_CONTROL", dir.path().join("control.sock"));
    command
}

fn configure(dir: &tempfile::TempDir, lines: &str) {
    let head = "listen = ['unix:nbd.sock']\ndevices = ['a', 'b', 'c', 'd']\n";
    std::fs::write(dir.path().join("raidctl.toml"), format!("{head}{lines}")).unwrap();
}

#[test]
fn exports_are_offered_as_the_file_says_and_after_sighup_as_it_says_then() {
    const READ_ONLY: u16 = 2;
    let mut daemon = Daemon::with(
        "[export.v]\ndescription = 'for all'\nread_only = true\n[export.w]\nallow = ['tcp']\n\
         [export.x]\nread_only = true\n[limits]\nconnections_per_client = 8\n",
    );
    daemon.await_log("export \"x\", which is not served");
    assert_eq!(daemon.list(), [("v".to_string(), "for all".to_string())]);
    // The only export there is for this client.
    let mut first = Client::connect(&daemon.socket(), true);
    assert_eq!(first.flags & READ_ONLY, READ_ONLY);
    assert_eq!(first.ask(0, 1, 0, 4, b"lost").error, 1);

    daemon.reload("[export.v]\nallow = []\n");
    first.read(0, 4096);
    assert_eq!(daemon.list(), [("w".to_string(), String::new())]);
    let mut writer = Client::connect(&daemon.socket(), true);
    assert_eq!(writer.flags & READ_ONLY, 0);
    writer.write(0, b"kept");

    // What is wrong changes nothing.
    configure(&daemon.dir, "[export.v]\nalow = []\n");
    let pid = rustix::process::Pid::from_child(&daemon.child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    daemon.await_log("alow");
    writer.write(0, b"still");

    // The limit is that of the start. What is too much is accepted and closed, without a word.
    let streams: Vec<UnixStream> = (0..8).map(|_| open(&daemon.socket())).collect();
    let greeted = |mut stream: &UnixStream| stream.read(&mut [0; 18]).unwrap() == 18;
    assert!(streams.iter().filter(|stream| greeted(stream)).count() <= 6);
    daemon.await_log("too many connections");
    drop(first);
}

/// A thousand clients that have chosen an export and then do nothing must not cost more than 50 MiB. The file can say
/// how many may come from one user.
#[test]
fn a_thousand_idle_connections_cost_at_most_50_mib() {
    const IDLE: usize = 1000;
    let daemon = Daemon::with("[export.w]\nallow = ['tcp']\n");
    // What the first one needs is not of the idle ones.
    Client::connect(&daemon.socket(), true).read(0, 1 << 20);
    let before = daemon.memory_bytes();
    let idle: Vec<UnixStream> = (0..IDLE).map(|_| Client::connect(&daemon.socket(), true).stream).collect();
    let cost = daemon.memory_bytes().saturating_sub(before);
    println!("{IDLE} idle connections: {} KiB, {} bytes each", cost >> 10, cost / IDLE as u64);
    assert!(cost <= 50 << 20, "{cost} bytes");
    drop(idle);
}
