//! `create` and `add` refuse what cannot be right: exit status 1, a sentence that names the thing, nothing written.

use crate::{create, create_clean, text};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tests::Need::{LoopDevices, Program};
use tests::{Disks, LoopDevice, Server, program, run, skipped};

/// Runs `create`, which must be refused with `words` in its message and leave every disk as it was.
fn refused(disks: &Disks, options: &[&str], devices: &[PathBuf], words: &[&str]) {
    let before = disks.trace();
    create(options, devices).refused(words);
    assert!(disks.trace() == before, "something was written by: create {options:?}");
}

#[test]
fn an_unknown_level_is_refused() {
    let disks = Disks::new(4, 8);
    for level in ["7", "five", "", "-1"] {
        let option = format!("--level={level}");
        refused(&disks, &[&option], disks.all(), &["level"]);
    }
}

#[test]
fn too_few_members_are_refused() {
    let disks = Disks::new(4, 8);
    for (level, members) in [("0", 1), ("1", 1), ("5", 2), ("10", 1)] {
        refused(&disks, &["--level", level], &disks.all()[..members], &["member"]);
    }
}

#[test]
fn too_many_members_are_refused() {
    let disks = Disks::new(65, 8);
    refused(&disks, &["--level", "5"], disks.all(), &["64"]);
}

#[test]
fn a_chunk_that_is_no_power_of_two_or_out_of_range_is_refused() {
    let disks = Disks::new(4, 64);
    for chunk in ["48K", "2K", "32M", "0", "65537", "64Q", "-64K", "99999999999999999999G"] {
        let option = format!("--chunk={chunk}");
        refused(&disks, &["--level", "5", &option], disks.all(), &["chunk"]);
    }
}

#[test]
fn a_device_given_twice_is_refused() {
    let disks = Disks::new(3, 64);
    let twice = [disks.all()[0].clone(), disks.all()[1].clone(), disks.all()[0].clone()];
    refused(&disks, &["--level", "5"], &twice, &[text(&disks.all()[0])]);
    // Also as a member and as a spare.
    let spare = text(&disks.all()[1]);
    refused(&disks, &["--level", "5", "--spare", spare], disks.all(), &[spare]);
}

#[test]
fn a_device_given_twice_through_a_link_is_refused() {
    let disks = Disks::new(3, 64);
    let (soft, hard) = (disks.path("soft"), disks.path("hard"));
    std::os::unix::fs::symlink(&disks.all()[0], &soft).unwrap();
    std::fs::hard_link(&disks.all()[0], &hard).unwrap();
    for link in [soft, hard] {
        let twice = [disks.all()[0].clone(), disks.all()[1].clone(), link.clone()];
        refused(&disks, &["--level", "5"], &twice, &[text(&link)]);
    }
}

#[test]
fn two_loop_devices_over_one_file_are_refused() {
    if skipped(&[LoopDevices]) {
        return;
    }
    let disks = Disks::new(3, 64);
    let file = &disks.all()[0];
    let (one, other) = (LoopDevice::attach(file, &[]), LoopDevice::attach(file, &[]));
    let devices = [one.path().to_path_buf(), disks.all()[1].clone(), other.path().to_path_buf()];
    refused(&disks, &["--level", "5"], &devices, &[text(other.path())]);
    // The file and a loop device over it are one disk, too.
    let devices = [file.clone(), disks.all()[1].clone(), other.path().to_path_buf()];
    refused(&disks, &["--level", "5"], &devices, &[text(other.path())]);
}

#[test]
fn a_device_that_is_too_small_is_refused() {
    let mut disks = Disks::new(3, 64);
    for bytes in [0, 511, 4096, 1 << 20] {
        let small = disks.path(&format!("small{bytes}"));
        std::fs::File::create(&small).unwrap().set_len(bytes).unwrap();
        let devices = [disks.all()[0].clone(), disks.all()[1].clone(), small.clone()];
        refused(&disks, &["--level", "5"], &devices, &[text(&small), "small"]);
    }
    // A member much smaller than the others is a mistake only if it holds nothing at all: this one is used.
    let odd = disks.add(32);
    let devices = [disks.all()[0].clone(), disks.all()[1].clone(), odd];
    create(&["--level", "5"], &devices).ok();
}

#[test]
fn a_device_that_is_missing_or_no_disk_is_refused() {
    let disks = Disks::new(3, 64);
    for path in [disks.path("nowhere"), disks.dir().to_path_buf(), PathBuf::from("/dev/null")] {
        let devices = [disks.all()[0].clone(), disks.all()[1].clone(), path.clone()];
        refused(&disks, &["--level", "5"], &devices, &[text(&path)]);
        assert!(path == Path::new("/dev/null") || path.is_dir() || !path.exists(), "create made a file");
    }
}

#[test]
fn a_read_only_device_is_refused() {
    if skipped(&[LoopDevices]) {
        return;
    }
    let disks = Disks::new(3, 64);
    let read_only = LoopDevice::attach(&disks.all()[0], &["--read-only"]);
    let devices = [read_only.path().to_path_buf(), disks.all()[1].clone(), disks.all()[2].clone()];
    refused(&disks, &["--level", "5"], &devices, &[text(read_only.path())]);
}

#[test]
fn a_device_of_a_running_array_is_refused_even_with_force() {
    let mut disks = Disks::new(3, 64);
    let (one, two) = (disks.add(64), disks.add(64));
    let members = disks.all()[..3].to_vec();
    create(&["--level", "5", "--assume-clean"], &members).ok();
    let server = Server::start(disks.dir(), &members);
    let used = members[1].clone();
    create(&["--level", "1", "--force"], &[one.clone(), used.clone()]).refused(&[text(&used)]);
    // The same for a second server, and for `add`.
    let other = Disks::new(0, 0);
    Server::try_start(other.dir(), &members).err().expect("it started twice").refused(&["in use"]);
    server.ctl(["fail", "vol0", text(&members[2])]).ok();
    server.ctl(["add", "vol0", text(&used)]).refused(&[text(&used)]);
    server.ctl(["add", "vol0", text(&two)]).ok();
    server.wait_whole("vol0");
}

/// Puts bytes on a disk.
fn put(disk: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(disk).unwrap().write_all_at(bytes, offset).unwrap();
}

/// A disk that carries something is refused by name and kind, and used with --force.
fn foreign(kind: &str, mib: u64, carry: impl Fn(&Path)) {
    let disks = Disks::new(3, mib);
    carry(&disks.all()[1]);
    refused(&disks, &["--level", "5"], disks.all(), &[text(&disks.all()[1]), kind, "--force"]);
    create(&["--level", "5", "--assume-clean", "--force"], disks.all()).ok();
    Server::start(disks.dir(), disks.all()).stop();
}

fn mkfs(kind: &'static str, program_name: &'static str, mib: u64) {
    if !skipped(&[Program(program_name)]) {
        foreign(kind, mib, |disk| drop(run(program(program_name).arg(disk)).ok()));
    }
}

#[test]
fn a_disk_with_ext4_is_refused_without_force() {
    mkfs("ext", "mkfs.ext4", 64);
}

#[test]
fn a_disk_with_xfs_is_refused_without_force() {
    mkfs("xfs", "mkfs.xfs", 320);
}

#[test]
fn a_disk_with_btrfs_is_refused_without_force() {
    mkfs("btrfs", "mkfs.btrfs", 128);
}

#[test]
fn a_disk_with_a_partition_table_is_refused_without_force() {
    if skipped(&[Program("sfdisk")]) {
        return;
    }
    foreign("GPT", 64, |disk| {
        drop(tests::shell(&format!("echo 'label: gpt' | PATH=$PATH:/sbin sfdisk -q {}", text(disk))).ok())
    });
}

#[test]
fn a_disk_with_luks_is_refused_without_force() {
    foreign("LUKS", 64, |disk| put(disk, 0, b"LUKS\xba\xbe\x00\x02"));
}

#[test]
fn a_disk_with_lvm_is_refused_without_force() {
    foreign("LVM", 64, |disk| put(disk, 512, b"LABELONE\x01\0\0\0\0\0\0\0\0\0\0\0\x20\0\0\0LVM2 001"));
}

#[test]
fn a_disk_with_md_is_refused_without_force() {
    foreign("md", 64, |disk| put(disk, 4096, &[0xfc, 0x4e, 0x2b, 0xa9, 1, 0, 0, 0]));
}

#[test]
fn a_disk_of_another_array_is_refused_without_force() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    refused(&disks, &["--level", "1"], &disks.all()[..2], &[text(&disks.all()[0]), "vol0", "--force"]);
    create(&["--level", "1", "--force"], &disks.all()[..2]).ok();
    // The third one still belongs to the first array, which is incomplete now.
    let end = Server::try_start(disks.dir(), &disks.all()[2..]).err().expect("it started");
    end.refused(&["vol0"]);
}

#[test]
fn add_refuses_what_create_refuses() {
    let mut disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let members = disks.all().to_vec();
    let server = Server::start(disks.dir(), &members);
    let fresh = disks.add(64);
    server.ctl(["add", "another", text(&fresh)]).refused(&["another"]);
    server.ctl(["fail", "another", text(&fresh)]).refused(&["another"]);
    server.ctl(["fail", "vol0", text(&fresh)]).refused(&[text(&fresh)]);

    let small = disks.add(16);
    server.ctl(["add", "vol0", text(&small)]).refused(&[text(&small), "small"]);
    let missing = disks.path("nowhere");
    server.ctl(["add", "vol0", text(&missing)]).refused(&[text(&missing)]);
    put(&fresh, 0, b"LUKS\xba\xbe\x00\x02");
    server.ctl(["add", "vol0", text(&fresh)]).refused(&[text(&fresh), "LUKS", "--force"]);
    assert_eq!(&std::fs::read(&fresh).unwrap()[..6], b"LUKS\xba\xbe");
    server.ctl(["add", "--force", "vol0", text(&fresh)]).ok();
}

#[test]
fn the_last_member_that_holds_the_data_cannot_be_failed_by_command() {
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    server.ctl(["fail", "vol0", text(&disks.all()[0])]).ok();
    server.ctl(["fail", "vol0", text(&disks.all()[1])]).refused(&[text(&disks.all()[1])]);
    assert_eq!(server.array("vol0")["state"], "degraded");
}
