//! A real Linux kernel as the client: in a User-Mode-Linux guest, `raidctl` serves an array on the guest's disks, the
//! kernel's NBD driver attaches it, and file systems live on it while a member fails, while the server is restarted
//! and while the export grows.
//!
//! The stories themselves are tests/uml/guest-filesystem (the device made by nbd-client) and tests/uml/guest-attach (by
//! `raidctl attach`), which run as root in the guest.

use std::path::Path;
use tests::Need::{Namespaces, Program};
use tests::{program, repository, run, skipped};

/// Runs a story in a guest with disks of these sizes.
fn guest(needs: &[&'static str], disks: &[&str], story: &str, words: &[&str]) {
    let programs = ["linux.uml", "gcc", "unshare", "nbd-client", "jq"];
    let needs: Vec<_> = programs.iter().chain(needs).copied().map(Program).chain([Namespaces]).collect();
    if skipped(&needs) {
        return;
    }
    let uml = repository().join("tests/uml");
    let mut guest = program(uml.join("umlrun"));
    guest.args(["--mem", "768M", "--timeout", "170"]);
    for size in disks {
        guest.args(["--disk", size]);
    }
    guest.arg("--").arg(uml.join(story));
    guest.arg(tests::binary() as &Path).args(words);
    let told = run(&mut guest).ok();
    assert!(told.stdout.ends_with("all checks passed\n"), "{story} {words:?}: {told:#?}");
    println!("{}", told.stdout);
}

fn file_system_survives(mkfs: &'static str, fsck: &str, connections: &str) {
    guest(&[mkfs], &["160M"; 5], "guest-filesystem", &[mkfs, fsck, connections]);
}

fn attached(story: &str, mkfs: &'static str, connections: &str) {
    let needs = [mkfs, "mkfs.ext4", "nbdkit", "resize2fs", "xfs_growfs", "blkdiscard"];
    guest(&needs, &["500M"; 2], "guest-attach", &[story, mkfs, connections]);
}

#[test]
fn ext4_survives_the_loss_of_a_member_and_a_restart_of_the_server() {
    file_system_survives("mkfs.ext4", "e2fsck -fn", "1");
}

#[test]
fn xfs_survives_the_loss_of_a_member_and_a_restart_of_the_server_over_four_connections() {
    file_system_survives("mkfs.xfs", "xfs_repair -n", "4");
}

#[test]
fn ext4_only_pauses_while_the_server_is_killed_or_stopped_and_started_again() {
    attached("restart", "mkfs.ext4", "4");
}

#[test]
fn xfs_only_pauses_while_the_server_is_killed_or_stopped_and_started_again_over_one_connection() {
    attached("restart", "mkfs.xfs", "1");
}

#[test]
fn ext4_grows_with_its_export_and_waits_while_that_is_another_one() {
    attached("grow", "mkfs.ext4", "1");
}

#[test]
fn xfs_grows_with_its_export_and_waits_while_that_is_another_one() {
    attached("grow", "mkfs.xfs", "4");
}

#[test]
fn ext4_grows_with_its_array_and_only_pauses_while_a_new_process_takes_over() {
    attached("array", "mkfs.ext4", "4");
}

#[test]
fn xfs_grows_with_its_array_and_only_pauses_while_a_new_process_takes_over_one_connection() {
    attached("array", "mkfs.xfs", "1");
}

#[test]
fn an_attached_device_ends_without_a_trace_whoever_ends_it() {
    attached("ends", "mkfs.ext4", "4");
}
