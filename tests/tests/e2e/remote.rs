//! Members that are exports of another server: nbdkit, which goes away, for a moment and for good.

use crate::{create, text};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};
use tests::Need::Program;
use tests::{Disks, Server, member_state, program, raidctl, run, skipped, takeover};

/// nbdkit with one file, on a socket beside it. It is killed when it is dropped.
struct Remote {
    process: Child,
    file: PathBuf,
    socket: PathBuf,
}

impl Remote {
    fn start(file: &Path) -> Remote {
        let socket = file.with_extension("nbd");
        let mut nbdkit = program("nbdkit");
        nbdkit.args(["-f", "-U", text(&socket), "file", text(file)]);
        nbdkit.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let process = nbdkit.spawn().unwrap();
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "nbdkit does not listen");
            std::thread::yield_now();
        }
        Remote { process, file: file.to_owned(), socket }
    }

    fn uri(&self) -> PathBuf {
        PathBuf::from(format!("nbd+unix:///?socket={}", self.socket.display()))
    }

    fn restart(self) -> Remote {
        let file = self.file.clone();
        drop(self);
        Remote::start(&file)
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        std::fs::remove_file(&self.socket).unwrap();
    }
}

/// qemu-io's commands on the export.
fn io(server: &Server, commands: &[&str]) {
    let mut words = vec!["-f".to_string(), "raw".to_string()];
    words.extend(commands.iter().flat_map(|command| ["-c".to_string(), command.to_string()]));
    words.push(server.uri("vol0"));
    let said = run(program("qemu-io").args(words)).ok();
    assert!(!said.stdout.contains("failed"), "{}", said.stdout);
}

#[test]
fn an_array_of_a_file_and_exports_rides_out_a_restart_and_survives_a_loss() {
    if skipped(&[Program("nbdkit"), Program("qemu-io")]) {
        return;
    }
    for level in ["1", "5"] {
        let disks = Disks::new(3, 64);
        let remotes: Vec<Remote> = disks.all()[1..].iter().map(|file| Remote::start(file)).collect();
        let [first, second] = <[Remote; 2]>::try_from(remotes).ok().unwrap();
        let devices = [disks.all()[0].clone(), first.uri(), second.uri()];
        create(&["--level", level, "--assume-clean"], &devices).ok();
        let seen = raidctl(["examine", text(&devices[1])]).ok();
        assert!(seen.stdout.contains("vol0"), "{}", seen.stdout);

        let server = Server::start(disks.dir(), &devices);
        io(&server, &["write -P 1 0 16M", "read -P 1 0 16M"]);
        let first = first.restart();
        io(&server, &["write -P 2 1M 8M", "flush", "read -P 2 1M 8M", "read -P 1 0 1M", "read -P 1 9M 7M"]);
        assert_eq!(member_state(&server.array("vol0"), &devices[1]), "in_sync");

        // Writes wait for the deadline of the member; then it is done without.
        drop(first);
        io(&server, &["write -P 3 4M 8M", "flush", "read -P 3 4M 8M", "read -P 2 1M 3M"]);
        let array = server.array("vol0");
        assert_eq!(array["state"], "degraded", "{array:#}");
        assert_eq!(member_state(&array, &devices[1]), "faulty", "{array:#}");

        // It is removed and added again by its URI.
        let first = Remote::start(&disks.all()[1]);
        server.ctl(["remove", "vol0", text(&devices[1])]).ok();
        server.ctl(["add", "vol0", text(&devices[1])]).ok();
        let array = server.wait_whole("vol0");
        assert_eq!(member_state(&array, &devices[1]), "in_sync", "{array:#}");
        io(&server, &["read -P 3 4M 8M", "read -P 2 1M 3M", "read -P 1 12M 4M"]);
        server.stop().ok();
        drop((first, second));
    }
}

/// Exports were looked for among the files, so that a daemon that had any was not taken over.
#[test]
fn a_daemon_with_an_export_as_member_is_taken_over() {
    if skipped(&[Program("nbdkit"), Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(2, 64);
    let remote = Remote::start(&disks.all()[1]);
    let devices = [disks.all()[0].clone(), remote.uri()];
    create(&["--level", "1", "--assume-clean"], &devices).ok();
    let server = Server::start(disks.dir(), &devices);
    io(&server, &["write -P 7 0 4M"]);
    let heir = Server::take_over(disks.dir(), "heir.log", &devices);
    assert_eq!(server.end().ok().code, Some(0));
    io(&heir, &["read -P 7 0 4M", "write -P 8 1M 1M", "flush", "read -P 8 1M 1M"]);
    let array = heir.array("vol0");
    assert_eq!(member_state(&array, &devices[1]), "in_sync", "{array:#}");
    // A path that leads nowhere is found before anything is let go of.
    let nowhere = disks.path("nowhere");
    let mut late = Server::spawn(disks.dir(), "late.log", &mut takeover(&[devices[0].clone(), nowhere]));
    late.wait_log("no such device");
    late.end().refused(&["nowhere", "nothing was taken over"]);
    io(&heir, &["read -P 8 1M 1M"]);
    heir.stop();
}

#[test]
fn an_export_that_cannot_be_used_is_named() {
    let disks = Disks::new(1, 64);
    let nobody = PathBuf::from(format!("nbd+unix:///x?socket={}", disks.path("nobody").display()));
    let devices = [disks.all()[0].clone(), nobody.clone()];
    create(&["--level", "1"], &devices).refused(&["nobody", "cannot connect"]);
    create(&["--level", "1"], &[nobody.clone(), nobody]).refused(&["given twice"]);
    create(&["--level", "1"], &[disks.all()[0].clone(), "nbd://host/x?sokcet=y".into()]).refused(&["sokcet"]);
}
