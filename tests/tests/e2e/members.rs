//! Members fail and are replaced under load, while fio verifies every block it has written.

use crate::{create, create_clean, text};
use std::process::Child;
use tests::Need::Program;
use tests::{Disks, Server, member_state, program, run, running, skipped};

/// fio's job: random writes of 4 KiB, each verified later. `loops` runs over the same region.
fn fio_job(server: &Server, mib: u64) -> Vec<String> {
    let words = "--name=job --ioengine=nbd --rw=randwrite --bs=4k --iodepth=16 --verify=crc32c \
                 --verify_backlog=512 --verify_fatal=1 --do_verify=1 --randrepeat=1 --minimal";
    let mut words: Vec<String> =
        words.split(' ').filter(|word| !word.is_empty()).map(str::to_string).collect();
    words.push(format!("--uri={}", server.uri("vol0")));
    words.push(format!("--size={mib}m"));
    words
}

fn start(disks: &Disks, words: &[String]) -> Child {
    let out = std::fs::File::create(disks.path("fio.log")).unwrap();
    let mut fio = program("fio");
    fio.args(words).current_dir(disks.dir());
    fio.stdin(std::process::Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
    fio.spawn().unwrap()
}

fn succeed(disks: &Disks, mut fio: Child) {
    let status = fio.wait().unwrap();
    let log = std::fs::read_to_string(disks.path("fio.log")).unwrap();
    assert!(status.success(), "fio ended with {status}: {log}");
}

/// Writes with verification while a member fails and another is added; then reads all of it without a third one.
fn survives_replacement(level: &str) {
    if skipped(&[Program("fio")]) {
        return;
    }
    let mut disks = Disks::new(4, 96);
    create_clean(level, &disks);
    let server = Server::start(disks.dir(), disks.all());
    let job = fio_job(&server, 48);
    let fio = start(&disks, &job);

    let failed = disks.all()[1].clone();
    server.ctl(["fail", "vol0", text(&failed)]).ok();
    let array = server.array("vol0");
    assert_eq!(array["state"], "degraded", "{array:#}");
    assert_eq!(member_state(&array, &failed), "faulty", "{array:#}");

    let fresh = disks.add(96);
    server.ctl(["add", "vol0", text(&fresh)]).ok();
    let array = server.wait_whole("vol0");
    assert_eq!(member_state(&array, &fresh), "in_sync", "{array:#}");
    assert_ne!(array["state"], "degraded", "{array:#}");
    succeed(&disks, fio);

    // What was rebuilt has to be right: read it through the new member, in place of yet another one.
    server.ctl(["fail", "vol0", text(&disks.all()[2])]).ok();
    let verify: Vec<String> = job.iter().cloned().chain(["--verify_only=1".to_string()]).collect();
    run(program("fio").args(verify).current_dir(disks.dir())).ok();
    server.stop();
}

#[test]
fn raid5_is_written_to_while_a_member_fails_and_another_is_rebuilt() {
    survives_replacement("5");
}

#[test]
fn raid1_is_written_to_while_a_member_fails_and_another_is_rebuilt() {
    survives_replacement("1");
}

#[test]
fn raid10_is_written_to_while_a_member_fails_and_another_is_rebuilt() {
    survives_replacement("10");
}

#[test]
fn a_spare_takes_the_place_of_a_failed_member_without_being_asked() {
    let mut disks = Disks::new(3, 64);
    let spare = disks.add(64);
    let members = &disks.all()[..3];
    create(&["--level", "5", "--assume-clean", "--spare", text(&spare)], members).ok();
    let server = Server::start(disks.dir(), disks.all());
    let array = server.array("vol0");
    assert_eq!(array["spares"][0]["device"], text(&spare), "{array:#}");
    server.ctl(["fail", "vol0", text(&members[0])]).ok();
    let array = server.wait_whole("vol0");
    assert_eq!(member_state(&array, &spare), "in_sync", "{array:#}");
    let events = server.events("vol0");
    for event in ["Fail", "RebuildStarted", "RebuildFinished"] {
        assert!(events.iter().any(|seen| seen == event), "no {event} in {events:?}");
    }
}

#[test]
fn a_member_that_was_failed_can_be_removed_and_stays_out_after_a_restart() {
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let failed = &disks.all()[3];
    server.ctl(["remove", "vol0", text(failed)]).refused(&[text(failed)]);
    server.ctl(["fail", "vol0", text(failed)]).ok();
    server.ctl(["remove", "vol0", text(failed)]).ok();
    assert_eq!(member_state(&server.array("vol0"), failed), "absent");
    server.stop();
    // Its superblock still speaks of a member in sync; the survivors know better.
    let server = Server::start(disks.dir(), disks.all());
    let array = server.array("vol0");
    assert_eq!(array["state"], "degraded", "{array:#}");
    assert_ne!(member_state(&array, failed), "in_sync", "{array:#}");
}

#[test]
fn a_new_array_is_served_while_it_is_brought_into_sync() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(3, 256);
    create(&["--level", "5"], disks.all()).ok();
    let server = Server::start(disks.dir(), disks.all());
    let io = ["write -P 0x5a 100M 1M", "read -P 0x5a 100M 1M"];
    let mut qemu_io = program("qemu-io");
    let done = run(qemu_io.args(["-f", "raw", "-c", io[0], "-c", io[1], &server.uri("vol0")])).ok();
    assert!(!done.stdout.contains("failed"), "{done:#?}");
    let array = server.wait_whole("vol0");
    assert_eq!(running(&array), None);
    assert!(
        server.events("vol0").iter().any(|event| event.starts_with("Resync")),
        "{:?}",
        server.events("vol0")
    );
}
