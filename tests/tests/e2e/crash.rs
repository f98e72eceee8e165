//! The server is killed under load. What was flushed is there afterwards, and redundancy is mended.

use crate::{create_clean, text};
use std::process::Stdio;
use tests::Need::Program;
use tests::{Disks, Server, member_state, program, run, skipped};

const FLUSHED: &str = "0 8M";

fn qemu_io(server: &Server, commands: &[String]) {
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["-f", "raw"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let done = run(qemu_io.arg(server.uri("vol0"))).ok();
    assert!(!done.stdout.contains("failed") && !done.stderr.contains("failed"), "{done:#?}");
}

fn survives_kill(level: &str) {
    if skipped(&[Program("fio"), Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(4, 96);
    create_clean(level, &disks);
    let server = Server::start(disks.dir(), disks.all());
    qemu_io(&server, &[format!("write -P 0xc5 {FLUSHED}"), "flush".to_string()]);

    // Load in another region, which shares stripes with nothing that was flushed.
    let mut fio = program("fio");
    fio.args(
        "--name=load --ioengine=nbd --rw=randwrite --bs=4k --iodepth=32 --offset=16m --size=16m".split(' '),
    );
    fio.args(["--time_based", "--runtime=120", "--status-interval=1"]);
    fio.arg(format!("--uri={}", server.uri("vol0"))).current_dir(disks.dir());
    let mut fio = fio.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let before = written_bytes(&server);
    server.wait_for("vol0", "under load", |_| written_bytes(&server) > before + (4 << 20));
    server.crash();
    fio.wait().unwrap();

    let server = Server::start(disks.dir(), disks.all());
    qemu_io(&server, &[format!("read -P 0xc5 {FLUSHED}")]);
    let array = server.wait_whole("vol0");
    assert_ne!(array["state"], "degraded", "{array:#}");
    let events = server.events("vol0");
    assert!(events.iter().any(|event| event.starts_with("Resync")), "no resync after a crash: {events:?}");

    // The copies and the parity agree again: without one member the same is read.
    let lost = &disks.all()[0];
    server.ctl(["fail", "vol0", text(lost)]).ok();
    assert_eq!(member_state(&server.array("vol0"), lost), "faulty");
    qemu_io(&server, &[format!("read -P 0xc5 {FLUSHED}")]);
    server.stop();
}

/// What the server's process has caused to be written, by the kernel's count.
fn written_bytes(server: &Server) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).unwrap();
    let line = io.lines().find(|line| line.starts_with("write_bytes:")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn raid5_killed_under_load_has_what_was_flushed_and_resyncs() {
    survives_kill("5");
}

#[test]
fn raid1_killed_under_load_has_what_was_flushed_and_resyncs() {
    survives_kill("1");
}

#[test]
fn raid10_killed_under_load_has_what_was_flushed_and_resyncs() {
    survives_kill("10");
}

#[test]
fn a_raid5_killed_while_degraded_starts_only_with_force_and_has_what_was_flushed() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let lost = &disks.all()[1];
    qemu_io(&server, &[format!("write -P 0x31 {FLUSHED}")]);
    server.ctl(["fail", "vol0", text(lost)]).ok();
    qemu_io(&server, &[format!("write -P 0x32 {FLUSHED}"), "flush".to_string()]);
    server.crash();
    // Writes cut off by the crash may have left parity that does not fit: that is for a person to decide.
    let refused = Server::try_start(disks.dir(), disks.all()).err().expect("it started");
    refused.refused(&["vol0", text(lost), "--force"]);
    // The lost member is back on the command line, with data that is stale: it must not be believed.
    let server = Server::start_with(disks.dir(), &["--force"], disks.all());
    let array = server.array("vol0");
    assert_eq!(array["state"], "degraded", "{array:#}");
    assert_ne!(member_state(&array, lost), "in_sync", "{array:#}");
    qemu_io(&server, &[format!("read -P 0x32 {FLUSHED}")]);
}

#[test]
fn a_mirror_killed_while_degraded_starts_degraded_with_what_was_flushed() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(2, 64);
    create_clean("1", &disks);
    let server = Server::start(disks.dir(), disks.all());
    qemu_io(&server, &[format!("write -P 0x31 {FLUSHED}")]);
    server.ctl(["fail", "vol0", text(&disks.all()[0])]).ok();
    qemu_io(&server, &[format!("write -P 0x32 {FLUSHED}"), "flush".to_string()]);
    server.crash();
    let server = Server::start(disks.dir(), disks.all());
    assert_eq!(server.array("vol0")["state"], "degraded");
    qemu_io(&server, &[format!("read -P 0x32 {FLUSHED}")]);
}
