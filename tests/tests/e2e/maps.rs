//! What clients are told of ranges: where data is, and what the next loss would take.

use crate::{create_clean, text};
use std::os::unix::fs::MetadataExt;
use tests::Need::Program;
use tests::{Disks, Server, program, run, skipped};

const MIB: u64 = 1 << 20;
const DATA: u64 = 0;
const HOLE: u64 = 3;
const REDUNDANT: u64 = 0;
const DEGRADED: u64 = 1;

/// Length and status of each extent of an export, neighbours of one status joined.
fn map(server: &Server, context: &str) -> Vec<(u64, u64)> {
    let map = run(program("nbdinfo").args(["--json", &format!("--map={context}"), &server.uri("vol0")])).ok();
    let map: serde_json::Value = serde_json::from_str(&map.stdout).unwrap();
    let mut extents: Vec<(u64, u64)> = Vec::new();
    for extent in map.as_array().unwrap() {
        let (len, status) = (extent["length"].as_u64().unwrap(), extent["type"].as_u64().unwrap());
        match extents.last_mut() {
            Some(last) if last.1 == status => last.0 += len,
            _ => extents.push((len, status)),
        }
    }
    extents
}

fn allocation(server: &Server) -> Vec<(u64, u64)> {
    map(server, "base:allocation")
}

fn qemu_io(server: &Server, commands: &[&str]) {
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["-f", "raw"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let done = run(qemu_io.arg(server.uri("vol0"))).ok();
    assert!(!done.stdout.contains("failed") && !done.stderr.contains("failed"), "{done:#?}");
}

#[test]
fn files_that_hold_nothing_make_holes_until_something_is_written_and_after_it_was_discarded() {
    if skipped(&[Program("nbdinfo"), Program("qemu-io")]) {
        return;
    }
    for level in ["0", "1", "5", "10"] {
        let disks = Disks::new(4, 64);
        create_clean(level, &disks);
        let server = Server::start(disks.dir(), disks.all());
        let size = server.size_bytes("vol0");
        assert_eq!(allocation(&server), [(size, HOLE)], "raid{level}");
        // A byte takes a granule of 64 KiB out.
        qemu_io(&server, &["write -P 1 9M 1M", "write -P 2 21000000 1", "flush"]);
        let granule = 21_000_000 / 65536 * 65536;
        let written = [
            (9 * MIB, HOLE),
            (MIB, DATA),
            (granule - 10 * MIB, HOLE),
            (65536, DATA),
            (size - granule - 65536, HOLE),
        ];
        assert_eq!(allocation(&server), written, "raid{level}");
        server.stop();
        // The files tell the same to the next one.
        let server = Server::start(disks.dir(), disks.all());
        assert_eq!(allocation(&server), written, "raid{level}, served again");
        if level == "5" || level == "1" {
            // And to one that has to do without a member.
            server.ctl(["fail", "vol0", text(&disks.all()[1])]).ok();
            assert_eq!(allocation(&server), written, "raid{level}, degraded");
        }
        // 9M to 30M are whole stripes of three columns of 64 KiB.
        qemu_io(&server, &["discard 9M 21M", "read -P 0 9M 21M"]);
        assert_eq!(allocation(&server), [(size, HOLE)], "raid{level}, discarded");
        qemu_io(&server, &["write -P 1 0 1M", "write -z 0 1M"]);
        assert_eq!(
            allocation(&server),
            [(MIB, DATA), (size - MIB, HOLE)],
            "raid{level}: zeroes that take space"
        );
        qemu_io(&server, &["write -z -u 0 1M"]);
        assert_eq!(allocation(&server), [(size, HOLE)], "raid{level}: zeroes that take none");
    }
}

#[test]
fn a_copy_of_a_sparse_unit_is_sparse() {
    if skipped(&[Program("nbdinfo"), Program("nbdcopy"), Program("qemu-io"), Program("qemu-img")]) {
        return;
    }
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    qemu_io(&server, &["write -P 0x5a 40M 2M", "write -P 0xa5 100M 1M", "flush"]);
    let copies = [disks.path("nbdcopy"), disks.path("qemu-img")];
    run(program("nbdcopy").args(["--destination-is-zero", &server.uri("vol0"), text(&copies[0])])).ok();
    run(program("qemu-img").args(["convert", "-O", "raw", &server.uri("vol0"), text(&copies[1])])).ok();
    for copy in &copies {
        let meta = std::fs::metadata(copy).unwrap();
        assert_eq!(meta.len(), server.size_bytes("vol0"));
        assert!(meta.blocks() * 512 < 4 * MIB, "{} takes {} blocks", copy.display(), meta.blocks());
        let same = run(program("qemu-img")
            .args(["compare", "-f", "raw", "-F", "raw"])
            .args([text(copy), &server.uri("vol0")]));
        assert!(same.ok().stdout.contains("identical"));
    }
}

#[test]
fn what_the_next_loss_would_take_is_told_range_by_range() {
    if skipped(&[Program("nbdinfo")]) {
        return;
    }
    let health = |server: &Server| map(server, "raidctl:health");
    for (level, healthy) in [("0", DEGRADED), ("1", REDUNDANT), ("5", REDUNDANT), ("10", REDUNDANT)] {
        let mut disks = Disks::new(4, 64);
        create_clean(level, &disks);
        let server = Server::start(disks.dir(), disks.all());
        let size = server.size_bytes("vol0");
        assert_eq!(health(&server), [(size, healthy)], "raid{level}");
        if level == "0" {
            continue;
        }
        server.ctl(["fail", "vol0", text(&disks.all()[1])]).ok();
        match level {
            // Three copies are left.
            "1" => assert_eq!(health(&server), [(size, REDUNDANT)]),
            "5" => assert_eq!(health(&server), [(size, DEGRADED)]),
            // Every other chunk had a copy there.
            _ => {
                let chunk = |at: u64| (65536, if at.is_multiple_of(2) { DEGRADED } else { REDUNDANT });
                assert_eq!(health(&server), (0..size / 65536).map(chunk).collect::<Vec<_>>());
            }
        }
        let fresh = disks.add(64);
        server.ctl(["add", "vol0", text(&fresh)]).ok();
        server.wait_whole("vol0");
        assert_eq!(health(&server), [(size, REDUNDANT)], "raid{level}, rebuilt");
    }
}
