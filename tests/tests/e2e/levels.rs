//! Every level keeps its data, and starts without each single member that it can do without.

use crate::{create, create_clean, text};
use std::path::PathBuf;
use tests::Need::{LoopDevices, Program};
use tests::{Disks, LoopDevice, Server, program, random_bytes, run, skipped};

const MIB: usize = 1 << 20;

fn write_all(server: &Server, disks: &Disks, content: &[u8]) {
    let source = disks.path("source");
    std::fs::write(&source, content).unwrap();
    run(program("nbdcopy").args(["--flush", text(&source), &server.uri("vol0")])).ok();
}

fn read_all(server: &Server, disks: &Disks) -> Vec<u8> {
    let copy = disks.path("copy");
    run(program("nbdcopy").args([&server.uri("vol0"), text(&copy)])).ok();
    std::fs::read(copy).unwrap()
}

fn keeps_its_data(level: &str, members: usize) {
    if skipped(&[Program("nbdcopy")]) {
        return;
    }
    let disks = Disks::new(members, 64);
    create_clean(level, &disks);
    let server = Server::start(disks.dir(), disks.all());
    let mut content = random_bytes(16 * MIB + 4096, 3);
    content.resize(usize::try_from(server.size_bytes("vol0")).unwrap(), 0);
    write_all(&server, &disks, &content);
    assert!(read_all(&server, &disks) == content, "level {level} reads something else");
    server.stop();

    // Members are found by what is written on them, not by their order on the command line.
    let mut backwards = disks.all().to_vec();
    backwards.reverse();
    let server = Server::start(disks.dir(), &backwards);
    assert!(read_all(&server, &disks) == content, "level {level} reads something else after a restart");
    server.stop();

    if level == "0" {
        Server::try_start(disks.dir(), &disks.without(0)).err().expect("it started").refused(&["vol0"]);
        return;
    }
    for left_out in 0..members {
        // Each round works on copies: a member that was left out once is stale from then on.
        let mut round = Disks::new(0, 0);
        let copies: Vec<PathBuf> = disks.all().iter().map(|disk| copy_of(disk, &mut round)).collect();
        let present: Vec<PathBuf> =
            (0..members).filter(|&at| at != left_out).map(|at| copies[at].clone()).collect();
        let server = Server::start(round.dir(), &present);
        let array = server.array("vol0");
        assert_eq!(array["state"], "degraded", "{array:#}");
        assert!(read_all(&server, &disks) == content, "level {level} lost data without member {left_out}");
        server.stop();
    }
}

fn copy_of(disk: &std::path::Path, round: &mut Disks) -> PathBuf {
    let copy = round.add(0);
    run(program("cp").args(["--sparse=always", text(disk), text(&copy)])).ok();
    copy
}

#[test]
fn raid0_keeps_its_data_and_does_not_start_without_a_member() {
    keeps_its_data("0", 3);
}

#[test]
fn raid1_keeps_its_data_without_any_one_of_three_members() {
    keeps_its_data("1", 3);
}

#[test]
fn raid5_keeps_its_data_without_any_one_of_four_members() {
    keeps_its_data("5", 4);
}

#[test]
fn raid6_keeps_its_data_without_any_one_of_five_members() {
    keeps_its_data("6", 5);
}

#[test]
fn raid6_keeps_its_data_without_two_members() {
    if skipped(&[Program("nbdcopy")]) {
        return;
    }
    let disks = Disks::new(5, 64);
    create_clean("6", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let mut content = random_bytes(8 * MIB + 4096, 6);
    content.resize(usize::try_from(server.size_bytes("vol0")).unwrap(), 0);
    write_all(&server, &disks, &content);
    server.stop();
    let present = [&disks.all()[1..2], &disks.all()[3..]].concat();
    let server = Server::start(disks.dir(), &present);
    assert_eq!(server.array("vol0")["state"], "degraded");
    assert!(read_all(&server, &disks) == content, "without the first and the third");
    server.stop();
}

#[test]
fn raid10_keeps_its_data_without_any_one_of_four_members() {
    keeps_its_data("10", 4);
}

#[test]
fn raid10_with_an_odd_number_of_members_keeps_its_data_without_any_one() {
    keeps_its_data("10", 3);
}

#[test]
fn devices_with_blocks_of_4096_bytes_serve_clients_that_ask_for_less() {
    if skipped(&[LoopDevices, Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    let attach = |file: &PathBuf| LoopDevice::attach(file, &["--sector-size", "4096"]);
    let loops: Vec<LoopDevice> = disks.all().iter().map(attach).collect();
    let devices: Vec<PathBuf> = loops.iter().map(|device| device.path().to_path_buf()).collect();
    create(&["--level", "5", "--assume-clean"], &devices).ok();
    let server = Server::start(disks.dir(), &devices);
    let io =
        ["write -P 0xaa 0 64k", "write -P 0x11 1000 100", "read -P 0x11 1000 100", "read -P 0xaa 1100 64436"];
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["-f", "raw"]);
    for command in io {
        qemu_io.args(["-c", command]);
    }
    let done = run(qemu_io.arg(server.uri("vol0"))).ok();
    assert!(!done.stdout.contains("failed"), "{done:#?}");
    server.stop();
}
