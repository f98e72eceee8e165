//! Superblocks on real files, through the ring: stored, damaged, loaded, mended and assembled as `raidctl` does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use raidcore::blocking::Blocking;
use raidcore::buf::{Slab, SlabConfig};
use raidcore::dev::ErrorKind;
use raidcore::layout::{LayoutSpec, Level};
use raidcore::meta::{
    Candidate, CreateParams, Found, IncarnationUuid, assemble, catch_up, foreign_signature, load, mend,
    plan_create, store,
};
use raidcore::time::Clock;
use raidcore::uring::{File, OpenHow, Ring, RingConfig};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const DISK_BYTES: u64 = 8 << 20;

fn ring() -> Ring {
    let slab = Slab::new(&SlabConfig::small()).unwrap();
    Ring::new(&RingConfig::default(), &Clock::monotonic(), &slab).unwrap()
}

fn open(path: &Path, ring: &Ring, how: OpenHow) -> Blocking<File> {
    Blocking::on_ring(File::open(path, ring, how).unwrap(), ring)
}

fn disks(dir: &Path, count: usize) -> Vec<PathBuf> {
    let disk = |i| {
        let path = dir.join(format!("disk{i}"));
        std::fs::File::create(&path).unwrap().set_len(DISK_BYTES).unwrap();
        path
    };
    (0..count).map(disk).collect()
}

fn create(paths: &[PathBuf]) {
    let ring = ring();
    let mut devs: Vec<_> = paths.iter().map(|path| open(path, &ring, OpenHow::MEMBER)).collect();
    let members = paths
        .iter()
        .zip(&devs)
        .map(|(path, dev)| Candidate { name: path.display().to_string(), geometry: dev.geometry() });
    let params = CreateParams {
        name: "files".to_owned(),
        layout: LayoutSpec::new(Level::Raid5, 0, 64 << 10),
        members: members.collect(),
        spares: vec![],
        assume_clean: true,
        now_ns: 1,
    };
    for (dev, mut superblock) in devs.iter_mut().zip(plan_create(&params, Uuid::new_v4).unwrap()) {
        store(dev, &mut superblock).unwrap();
    }
}

fn find(paths: &[PathBuf], devs: &mut [Blocking<File>]) -> Vec<Found> {
    let found = |(path, dev): (&PathBuf, &mut Blocking<File>)| Found {
        device: path.display().to_string(),
        loaded: load(dev).unwrap(),
        device_bytes: dev.geometry().size_bytes,
    };
    paths.iter().zip(devs).map(found).collect()
}

#[test]
fn an_array_created_on_files_is_assembled_again_and_a_damaged_copy_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let paths = disks(dir.path(), 3);
    create(&paths);
    let file = std::fs::OpenOptions::new().write(true).open(&paths[1]).unwrap();
    file.write_all_at(&[0xff; 512], 512).unwrap();
    drop(file);

    let ring = ring();
    let mut devs: Vec<_> = paths.iter().map(|path| open(path, &ring, OpenHow::MEMBER)).collect();
    let mut found = find(&paths, &mut devs);
    let assembly = assemble(&found, false).remove(0).unwrap();
    assert_eq!(assembly.slots, [Some(0), Some(1), Some(2)]);
    let mended: Vec<bool> =
        devs.iter_mut().zip(&mut found).map(|(dev, item)| mend(dev, &mut item.loaded).unwrap()).collect();
    assert_eq!(mended, [false, true, false]);

    // The next update reaches one member, then the power goes.
    let begun = assembly.begin(IncarnationUuid(Uuid::new_v4()), 2);
    assert!(catch_up(&mut devs[0], &mut found[0].loaded, &begun).unwrap());
    let mut found = find(&paths, &mut devs);
    let assembly = assemble(&found, false).remove(0).unwrap();
    assert_eq!((assembly.is_degraded(), assembly.lagging.as_slice()), (false, &[1, 2][..]));
    for &index in &assembly.lagging {
        assert!(catch_up(&mut devs[index], &mut found[index].loaded, &assembly.array).unwrap());
    }
    assert!(assemble(&find(&paths, &mut devs), false).remove(0).unwrap().lagging.is_empty());
}

#[test]
fn a_member_of_an_array_is_a_foreign_signature_that_names_the_array() {
    let dir = tempfile::tempdir().unwrap();
    let paths = disks(dir.path(), 3);
    create(&paths);
    let ring = ring();
    let mut dev = open(&paths[2], &ring, OpenHow::EXAMINE);
    let signature = foreign_signature(&mut dev).unwrap().unwrap();
    assert_eq!(signature.to_string(), "member of array files (signature at byte 0)");
}

#[test]
fn nothing_is_written_to_a_file_opened_for_examination() {
    let dir = tempfile::tempdir().unwrap();
    let paths = disks(dir.path(), 1);
    let ring = ring();
    let mut dev = open(&paths[0], &ring, OpenHow::EXAMINE);
    assert_eq!(dev.write_at(0, &[1; 4096], true).unwrap_err().kind, ErrorKind::ReadOnly);
    assert!(std::fs::read(&paths[0]).unwrap().iter().all(|&byte| byte == 0));
}
