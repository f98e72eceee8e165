//! Devices that belong to somebody else are recognised: images made by the real tools, read through the ring. And
//! a wiped device is clean in the eyes of a tool no one here wrote.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use raidcore::blocking::Blocking;
use raidcore::buf::{Slab, SlabConfig};
use raidcore::meta::{foreign_signature, wipe};
use raidcore::time::Clock;
use raidcore::uring::{File, OpenHow, Ring, RingConfig};
use std::path::Path;
use tests::{Disks, LoopDevice, Need, program, run, shell, skipped};

/// Enough for the greediest of them, xfs; the file is sparse.
const DISK_MIB: u64 = 512;

fn ring() -> Ring {
    let slab = Slab::new(&SlabConfig::small()).expect("memory");
    Ring::new(&RingConfig::default(), &Clock::monotonic(), &slab).expect("a ring")
}

fn open(path: &Path, ring: &Ring, how: OpenHow) -> Blocking<File> {
    Blocking::on_ring(File::open(path, ring, how).expect("the disk opens"), ring)
}

fn signature(path: &Path) -> Option<String> {
    let ring = ring();
    let found = foreign_signature(&mut open(path, &ring, OpenHow::EXAMINE)).expect("the disk is read");
    found.map(|signature| signature.name)
}

/// What util-linux finds on the disk; empty if nothing.
fn seen_by_wipefs(path: &Path) -> String {
    run(program("wipefs").arg("--no-act").arg(path)).ok().stdout
}

/// Runs `make` on an empty disk, `$DISK` in it; our opinion must be `name`, and wiping must satisfy wipefs, too.
fn recognises(tool: &'static str, make: &str, name: &str) {
    if skipped(&[Need::Program(tool), Need::Program("wipefs")]) {
        return;
    }
    let disks = Disks::new(1, DISK_MIB);
    let disk = &disks.all()[0];
    assert_eq!(signature(disk), None, "an empty disk");
    shell(&make.replace("$DISK", &disk.display().to_string())).ok();
    check(disk, name);
}

fn check(disk: &Path, name: &str) {
    assert_eq!(signature(disk).as_deref(), Some(name));
    assert_ne!(seen_by_wipefs(disk), "", "wipefs agrees that there is something");
    {
        let ring = ring();
        wipe(&mut open(disk, &ring, OpenHow::MEMBER)).expect("the disk is wiped");
    }
    assert_eq!(signature(disk), None, "a wiped disk");
    assert_eq!(seen_by_wipefs(disk), "", "a wiped disk");
}

#[test]
fn ext4_is_recognised() {
    recognises("mkfs.ext4", "mkfs.ext4 -q -F $DISK", "ext2/3/4");
}

#[test]
fn ext2_is_recognised() {
    recognises("mkfs.ext4", "mkfs.ext4 -q -F -t ext2 $DISK", "ext2/3/4");
}

#[test]
fn xfs_is_recognised() {
    recognises("mkfs.xfs", "mkfs.xfs -q -f $DISK", "xfs");
}

#[test]
fn btrfs_is_recognised() {
    recognises("mkfs.btrfs", "mkfs.btrfs -q -f $DISK", "btrfs");
}

#[test]
fn swap_is_recognised() {
    recognises("mkswap", "chmod 600 $DISK; mkswap $DISK", "swap");
}

#[test]
fn fat_is_recognised_though_its_boot_sector_looks_like_a_partition_table() {
    for bits in [12, 16, 32] {
        let clusters = if bits == 12 { "-s 128 -S 2048" } else { "" };
        recognises("mkfs.vfat", &format!("mkfs.vfat -F {bits} {clusters} $DISK"), "FAT");
    }
}

#[test]
fn a_gpt_is_recognised_also_by_its_backup_alone() {
    let make = "echo size=100MiB | sfdisk -q --label gpt $DISK";
    recognises("sfdisk", make, "GPT");
    let without_head = format!("{make}; dd if=/dev/zero of=$DISK bs=1M count=1 conv=notrunc status=none");
    recognises("sfdisk", &without_head, "GPT");
}

#[test]
fn an_mbr_partition_table_is_recognised() {
    recognises("sfdisk", "echo size=100MiB | sfdisk -q --label dos $DISK", "MBR partition table");
}

#[test]
fn luks_of_both_versions_is_recognised() {
    for version in [1, 2] {
        let make = format!(
            "echo secret | cryptsetup luksFormat -q --type luks{version} --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
             $DISK -"
        );
        recognises("cryptsetup", &make, &format!("LUKS{version}"));
    }
}

#[test]
fn an_lvm_physical_volume_is_recognised() {
    if skipped(&[Need::Program("pvcreate"), Need::Program("wipefs"), Need::LoopDevices]) {
        return;
    }
    let disks = Disks::new(1, DISK_MIB);
    {
        // pvcreate takes block devices only.
        let device = LoopDevice::attach(&disks.all()[0], &[]);
        run(program("pvcreate").args(["-qq", "-y", "--devices"]).arg(device.path()).arg(device.path())).ok();
    }
    check(&disks.all()[0], "LVM2 physical volume");
}
