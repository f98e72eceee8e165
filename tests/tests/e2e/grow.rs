//! `raidctl grow`: members become larger while the array is served.

use crate::{create, create_clean, text};
use std::path::{Path, PathBuf};
use tests::Need::{LoopDevices, Program};
use tests::{Disks, LoopDevice, RawClient, Server, program, random_bytes, run, skipped};

const MIB: u64 = 1 << 20;

fn enlarge(path: &Path, mib: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(mib * MIB).unwrap();
}

fn size_by_nbdinfo(server: &Server) -> u64 {
    run(program("nbdinfo").args(["--size", &server.uri("vol0")])).ok().stdout.trim().parse().unwrap()
}

fn qemu_io(server: &Server, commands: &[String]) {
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["-f", "raw"]);
    commands.iter().for_each(|command| {
        qemu_io.args(["-c", command]);
    });
    let done = run(qemu_io.arg(server.uri("vol0"))).ok();
    assert!(!done.stdout.contains("failed") && !done.stderr.contains("failed"), "{done:#?}");
}

/// Fills the array, grows it twice as large, and finds everything again, also after a restart.
fn grows(level: &str, members: usize) {
    if skipped(&[Program("nbdinfo"), Program("nbdcopy"), Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(members, 32);
    create_clean(level, &disks);
    let server = Server::start(disks.dir(), disks.all());
    let old = server.size_bytes("vol0");
    let content = random_bytes(usize::try_from(old).unwrap(), 5);
    let (source, copy) = (disks.path("source"), disks.path("copy"));
    std::fs::write(&source, &content).unwrap();
    run(program("nbdcopy").args(["--flush", text(&source), &server.uri("vol0")])).ok();
    let (mut connected, size) = RawClient::open(server.socket(), "vol0").unwrap();
    assert_eq!(
        (size, connected.call(0, old, 4096, &[], 4096).unwrap().error),
        (old, 22),
        "EINVAL behind the end"
    );

    disks.all().iter().for_each(|disk| enlarge(disk, 72));
    let said = server.ctl(["grow", "vol0", "--size", "max"]).ok().stdout;
    let new = size_by_nbdinfo(&server);
    assert!(new >= 2 * old && server.size_bytes("vol0") == new, "{new} of {old}");
    assert!(said.contains("vol0 has grown from") && said.contains(&format!("({new} bytes)")), "{said}");
    assert_eq!(
        connected.call(0, new - 4096, 4096, &[], 4096).unwrap().error,
        0,
        "a client that was there before"
    );
    let (end, len) = (new - 2 * MIB, 2 * MIB);
    qemu_io(&server, &[format!("write -P 0x5a {end} {len}")]);
    server.wait_idle("vol0");
    assert!(server.events("vol0").contains(&"Grown".to_string()));
    drop(connected);
    server.stop();

    let server = Server::start(disks.dir(), disks.all());
    assert_eq!(size_by_nbdinfo(&server), new);
    qemu_io(&server, &[format!("read -P 0x5a {end} {len}")]);
    run(program("nbdcopy").args([&server.uri("vol0"), text(&copy)])).ok();
    let read = std::fs::read(copy).unwrap();
    assert!(read[..content.len()] == content, "level {level}: what was there before");
    server.ctl(["grow", "vol0"]).refused(&[
        "vol0 cannot grow",
        "disk0",
        "are no larger",
        "enlarge them first",
    ]);
    server.stop();
}

#[test]
fn a_raid0_grows() {
    grows("0", 2);
}

#[test]
fn a_raid1_grows() {
    grows("1", 2);
}

#[test]
fn a_raid5_grows() {
    grows("5", 3);
}

#[test]
fn a_raid10_of_three_grows() {
    grows("10", 3);
}

#[test]
fn growth_is_refused_with_the_member_that_is_in_the_way() {
    let disks = Disks::new(3, 32);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let [first, second, third] = disks.all() else { unreachable!() };
    [first, third].into_iter().for_each(|disk| enlarge(disk, 64));
    server.ctl(["grow", "vol0"]).refused(&[text(second), "is no larger", "enlarge it first"]);
    server.ctl(["grow", "vol0", "--size", "100M"]).refused(&[text(second), "smallest member"]);
    server.ctl(["grow", "vol0", "--size", "1M"]).refused(&["arrays only grow"]);
    server.ctl(["grow", "vol1"]).refused(&["no array vol1"]);
    enlarge(second, 64);
    server.ctl(["fail", "vol0", text(first)]).ok();
    server.ctl(["grow", "vol0"]).refused(&["slot 0 is faulty"]);
    let wrong = server.ctl(["grow", "vol0", "--size", "much"]);
    assert_eq!(wrong.code, Some(2), "{wrong:#?}");
    server.stop();
}

/// All members became larger while nothing ran: the array starts as it was, and grows.
#[test]
fn members_that_grew_while_nothing_ran_are_grown_into_later() {
    let disks = Disks::new(2, 32);
    create_clean("1", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let old = server.size_bytes("vol0");
    server.stop();
    disks.all().iter().for_each(|disk| enlarge(disk, 64));
    let server = Server::start(disks.dir(), disks.all());
    assert_eq!(server.size_bytes("vol0"), old);
    server.ctl(["grow", "vol0"]).ok();
    assert!(server.size_bytes("vol0") > old);
    server.stop();
}

#[test]
fn loop_devices_that_were_resized_are_grown_into() {
    if skipped(&[LoopDevices, Program("qemu-io"), Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    let loops: Vec<LoopDevice> = disks.all().iter().map(|file| LoopDevice::attach(file, &[])).collect();
    let devices: Vec<PathBuf> = loops.iter().map(|device| device.path().to_path_buf()).collect();
    create(&["--level", "5", "--assume-clean"], &devices).ok();
    let server = Server::start(disks.dir(), &devices);
    let old = server.size_bytes("vol0");
    qemu_io(&server, &["write -P 0x41 0 1M".to_string()]);
    disks.all().iter().for_each(|disk| enlarge(disk, 64));
    server.ctl(["grow", "vol0"]).refused(&["are no larger"]);
    devices.iter().for_each(|device| {
        run(program("losetup").arg("--set-capacity").arg(device)).ok();
    });
    server.ctl(["grow", "vol0"]).ok();
    let new = size_by_nbdinfo(&server);
    assert!(new > old, "{new} of {old}");
    let end = new - MIB;
    qemu_io(&server, &[format!("write -P 0x42 {end} 1M"), "read -P 0x41 0 1M".to_string()]);
    server.stop();
}
