//! Clean stops, and starts with members missing.

use crate::{create_clean, text};
use rustix::process::Signal;
use tests::Need::Program;
use tests::{Disks, Server, program, run, running, skipped};

fn write_pattern(server: &Server, pattern: &str) {
    let write = format!("write -P {pattern} 0 1M");
    run(program("qemu-io").args(["-f", "raw", "-c", &write, &server.uri("vol0")])).ok();
}

fn stops_cleanly_on(signal: Signal) {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    write_pattern(&server, "0x42");
    server.end_with(signal).ok();
    let socket = disks.path("nbd.sock");
    assert!(!socket.exists(), "the socket is left behind");

    let server = Server::start(disks.dir(), disks.all());
    let array = server.array("vol0");
    assert_eq!(running(&array), None, "a clean stop needs no resync: {array:#}");
    assert!(
        !server.events("vol0").iter().any(|event| event.starts_with("Resync")),
        "{:?}",
        server.events("vol0")
    );
    let read =
        run(program("qemu-io").args(["-f", "raw", "-c", "read -P 0x42 0 1M", &server.uri("vol0")])).ok();
    assert!(!read.stdout.contains("failed"), "{read:#?}");
}

#[test]
fn sigterm_stops_cleanly() {
    stops_cleanly_on(Signal::TERM);
}

#[test]
fn sigint_stops_cleanly() {
    stops_cleanly_on(Signal::INT);
}

#[test]
fn a_stop_with_clients_connected_and_writing_is_clean() {
    if skipped(&[Program("fio")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let mut fio = program("fio");
    fio.args("--name=load --ioengine=nbd --rw=randwrite --bs=4k --iodepth=32 --size=16m".split(' '));
    fio.args(["--time_based", "--runtime=120"]).arg(format!("--uri={}", server.uri("vol0")));
    let null = std::process::Stdio::null;
    let mut fio = fio.current_dir(disks.dir()).stdin(null()).stdout(null()).stderr(null()).spawn().unwrap();
    server.wait_for("vol0", "active", |array| array["state"] == "active");
    server.stop();
    fio.wait().unwrap();
    let server = Server::start(disks.dir(), disks.all());
    assert_eq!(running(&server.array("vol0")), None);
}

#[test]
fn the_stop_command_ends_the_array_and_a_second_start_finds_it_clean() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    server.ctl(["stop", "vol0"]).ok();
    server.ctl(["stop", "another"]).refused(&["another"]);
    server.stop();
    let server = Server::start(disks.dir(), disks.all());
    assert_eq!(running(&server.array("vol0")), None);
}

#[test]
fn an_array_with_too_many_members_missing_names_them_and_does_not_start() {
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let end = Server::try_start(disks.dir(), &disks.all()[..2]).err().expect("it started");
    let end = end.refused(&["vol0"]);
    for slot in ["2", "3"] {
        assert!(end.stderr.contains(slot), "the message does not name slot {slot}: {end:#?}");
    }
}

#[test]
fn status_speaks_for_people_and_for_programs() {
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let table = server.ctl(["status"]).ok().stdout;
    for word in ["vol0", "raid5", text(&disks.all()[0])] {
        assert!(table.contains(word), "{word} is not in {table}");
    }
    let array = server.array("vol0");
    assert_eq!(array["chunk_bytes"], 64 << 10, "{array:#}");
    assert_eq!(array["members"].as_array().unwrap().len(), 4, "{array:#}");
    // Three members' worth of data, less what the metadata takes of 64 MiB.
    let size = array["size_bytes"].as_u64().unwrap();
    assert!((150 << 20..192 << 20).contains(&size), "{array:#}");
    let examined = tests::raidctl(["examine", text(&disks.all()[0])]).ok().stdout;
    assert!(examined.contains("vol0"), "{examined}");
}
