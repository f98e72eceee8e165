//! A real Linux kernel as the client: in a User-Mode-Linux guest, `raidctl` serves a RAID5 on the guest's disks,
//! the kernel's NBD driver attaches it, and file systems live on it while a member fails.
//!
//! The story itself is tests/uml/guest-filesystem, which runs as root in the guest.

use std::path::Path;
use tests::Need::{Namespaces, Program};
use tests::{program, repository, run, skipped};

fn file_system_survives(name: &str, mkfs: &'static str, fsck: &str) {
    let programs = ["linux.uml", "gcc", "unshare", "nbd-client", "jq", mkfs];
    if skipped(&programs.map(Program)) || skipped(&[Namespaces]) {
        return;
    }
    let uml = repository().join("tests/uml");
    let mut guest = program(uml.join("umlrun"));
    guest.args(["--mem", "768M", "--timeout", "170"]);
    for _ in 0..5 {
        guest.args(["--disk", "160M"]);
    }
    guest.arg("--").arg(uml.join("guest-filesystem"));
    guest.arg(tests::binary() as &Path).args([mkfs, fsck]);
    let told = run(&mut guest).ok();
    assert!(told.stdout.ends_with("all checks passed\n"), "{name}: {told:#?}");
}

#[test]
fn ext4_survives_the_loss_of_a_member_and_a_restart_of_the_server() {
    file_system_survives("ext4", "mkfs.ext4", "e2fsck -fn");
}

#[test]
fn xfs_survives_the_loss_of_a_member_and_a_restart_of_the_server() {
    file_system_survives("xfs", "mkfs.xfs", "xfs_repair -n");
}
