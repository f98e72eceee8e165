//! `serve` meets disks and places that are not what they should be.

use crate::{create, create_clean, text};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tests::{Disks, Finished, Server, raidctl};

fn refused(disks: &Disks, devices: &[PathBuf], words: &[&str]) -> Finished {
    Server::try_start(disks.dir(), devices).err().expect("the server started").refused(words)
}

/// Overwrites everything that a superblock copy can be in: the first or the last MiB.
fn destroy(disk: &Path, at_end: bool) {
    let file = OpenOptions::new().write(true).open(disk).unwrap();
    let end = file.metadata().unwrap().len();
    let offset = if at_end { end - (1 << 20) } else { 0 };
    file.write_all_at(&tests::random_bytes(1 << 20, 9), offset).unwrap();
}

/// The first MiB and the last.
fn ends(disk: &Path) -> (Vec<u8>, Vec<u8>) {
    let content = std::fs::read(disk).unwrap();
    (content[..1 << 20].to_vec(), content[content.len() - (1 << 20)..].to_vec())
}

#[test]
fn a_device_without_an_array_or_missing_is_named() {
    let disks = Disks::new(2, 64);
    refused(&disks, &disks.all()[..1], &[text(&disks.all()[0])]);
    let nowhere = disks.path("nowhere");
    refused(&disks, std::slice::from_ref(&nowhere), &[text(&nowhere)]);
}

#[test]
fn a_corrupted_superblock_copy_is_replaced_by_the_other_one_and_mended() {
    for at_end in [false, true] {
        let disks = Disks::new(3, 64);
        create_clean("5", &disks);
        destroy(&disks.all()[1], at_end);
        let garbage = ends(&disks.all()[1]);
        let server = Server::start(disks.dir(), disks.all());
        let array = server.wait_whole("vol0");
        assert_ne!(array["state"], "degraded", "{array:#}");
        server.stop();
        let mended = ends(&disks.all()[1]);
        let same = if at_end { mended.1 == garbage.1 } else { mended.0 == garbage.0 };
        assert!(!same, "the bad copy was not mended");
        // Mended means: good enough to start from when the other copy is lost.
        destroy(&disks.all()[1], !at_end);
        let server = Server::start(disks.dir(), disks.all());
        assert_ne!(server.array("vol0")["state"], "degraded");
        server.stop();
    }
}

#[test]
fn a_member_with_both_superblock_copies_corrupted_is_named_and_left_out() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    destroy(&disks.all()[1], false);
    destroy(&disks.all()[1], true);
    let bad = text(&disks.all()[1]);
    raidctl(["examine", bad]).refused(&[bad]);
    match Server::try_start(disks.dir(), disks.all()) {
        Ok(server) => {
            assert_eq!(server.array("vol0")["state"], "degraded");
            assert!(server.log().contains(bad), "{}", server.log());
        }
        Err(end) => drop(end.refused(&[bad])),
    }
    // Without it on the command line the array is degraded, and starts.
    let server = Server::start(disks.dir(), &disks.without(1));
    assert_eq!(server.array("vol0")["state"], "degraded");
}

#[test]
fn members_of_different_arrays_do_not_make_one() {
    let disks = Disks::new(6, 64);
    let (ours, theirs) = disks.all().split_at(3);
    create(&["--level", "5"], ours).ok();
    let words = ["create", "vol1", "--level", "5"].map(PathBuf::from);
    raidctl(words.into_iter().chain(theirs.iter().cloned())).ok();
    let mixed = [ours[0].clone(), theirs[1].clone()];
    refused(&disks, &mixed, &["vol0", "vol1"]);
    // Two complete arrays on one command line are two exports.
    let server = Server::start(disks.dir(), disks.all());
    assert_ne!(server.array("vol0")["uuid"], server.array("vol1")["uuid"]);
}

#[test]
fn a_live_socket_is_refused_and_a_dead_one_is_replaced() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    // Another server, with disks of its own, at the same place.
    let others = Disks::new(3, 64);
    create_clean("5", &others);
    let listen = format!("unix:{}", server.socket().display());
    let words =
        ["serve", "--control", text(&others.path("control.sock")), "--listen", &listen].map(PathBuf::from);
    raidctl(words.into_iter().chain(others.all().iter().cloned())).refused(&[text(server.socket())]);
    assert_eq!(server.array("vol0")["name"], "vol0", "the first server no longer answers");
    server.crash();
    assert!(disks.path("nbd.sock").exists(), "a killed server cannot have cleaned up");
    Server::start(disks.dir(), disks.all()).stop();
}

#[test]
fn a_file_in_the_place_of_the_socket_is_not_removed() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let place = disks.path("nbd.sock");
    std::fs::write(&place, "precious").unwrap();
    refused(&disks, disks.all(), &[text(&place)]);
    assert_eq!(std::fs::read(&place).unwrap(), b"precious");
}

#[test]
fn wrong_usage_ends_with_status_2_and_no_server_with_a_remedy() {
    assert_eq!(raidctl(["frobnicate"]).code, Some(2));
    assert_eq!(raidctl(["create", "vol0"]).code, Some(2));
    raidctl(["status"]).refused(&["/nonexistent/control.sock"]);
}
