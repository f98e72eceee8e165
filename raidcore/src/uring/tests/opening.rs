//! Opening refuses what must not be used, and says which and what to do.

use super::*;

fn refusal(ring: &Ring, path: &std::path::Path, how: OpenHow) -> OpenError {
    let error = File::open(path, ring, how).err().unwrap();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    error
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let ring = ring();
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let small = dir.path().join("small");
    std::fs::write(&small, [0; 4095]).unwrap();
    let member = OpenHow::MEMBER;
    assert!(matches!(refusal(&ring, &dir.path().join("none"), member), OpenError::Missing { .. }));
    assert!(matches!(refusal(&ring, &small.join("below"), member), OpenError::Missing { .. }));
    assert!(matches!(refusal(&ring, dir.path(), member), OpenError::NotADisk { what: "directory", .. }));
    assert!(matches!(refusal(&ring, &fifo, member), OpenError::NotADisk { what: "FIFO", .. }));
    let null = std::path::Path::new("/dev/null");
    assert!(matches!(refusal(&ring, null, member), OpenError::NotADisk { what: "character device", .. }));
    assert!(matches!(refusal(&ring, &small, member), OpenError::TooSmall { size_bytes: 4095, .. }));
}

#[test]
fn a_claimed_file_is_refused_a_second_time_but_may_be_examined() {
    let ring = ring();
    for place in [on_disk(1 << 20), in_memory(1 << 20)] {
        let member = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
        let error = refusal(&ring, &place.path, OpenHow::MEMBER);
        assert!(matches!(error, OpenError::Busy { .. }));
        assert!(error.to_string().contains("in use by a running array"), "{error}");
        let mut look = File::open(&place.path, &ring, OpenHow::EXAMINE).unwrap();
        read(&ring, &mut look, 0, 4096).unwrap();
        assert!(look.geometry().read_only && !look.geometry().discard);
        drop(member);
        drop(File::open(&place.path, &ring, OpenHow::MEMBER).unwrap());
    }
}

#[test]
fn a_file_system_without_direct_io_is_used_with_one_warning() {
    // procfs and sysfs have no O_DIRECT, and are on every machine; this file is read-only and large enough.
    let ring = ring();
    let Some(path) = ["/sys/kernel/btf/vmlinux", "/sys/kernel/notes"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| std::fs::metadata(path).is_ok_and(|meta| meta.len() >= 4096))
    else {
        eprintln!("skipped: no file of sysfs is large enough");
        return;
    };
    let file = File::open(&path, &ring, OpenHow::EXAMINE).unwrap();
    let warning = file.warning().unwrap().to_string();
    assert!(warning.contains("O_DIRECT") && warning.contains(path.to_str().unwrap()), "{warning}");
    let place = on_disk(1 << 20);
    assert_eq!(File::open(&place.path, &ring, OpenHow::MEMBER).unwrap().warning(), None);
}

#[test]
fn the_holes_of_a_file_are_where_nothing_was_written_and_those_of_a_device_are_not_known() {
    use std::os::unix::fs::FileExt;
    let ring = ring();
    for place in [on_disk(8 << 20), in_memory(8 << 20)] {
        let holes = || -> Vec<_> {
            let file = File::open(&place.path, &ring, OpenHow::EXAMINE).unwrap();
            file.holes().iter().collect()
        };
        assert_eq!(holes(), vec![0..8 << 20; 1]);
        let writer = std::fs::OpenOptions::new().write(true).open(&place.path).unwrap();
        writer.write_all_at(&[1; 1 << 20], 2 << 20).unwrap();
        writer.write_all_at(&[1; 1 << 20], 7 << 20).unwrap();
        assert_eq!(holes(), [0..2 << 20, 3 << 20..7 << 20]);
        writer.write_all_at(&vec![1; 8 << 20], 0).unwrap();
        assert_eq!(holes(), []);
    }
}
