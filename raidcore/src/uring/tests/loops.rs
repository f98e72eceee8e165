//! Block devices, by loop devices over files. Needs root; with CI=true it fails rather than skips.

use super::*;
use std::process::Command;

/// A loop device of its own over a file; detached by name when dropped.
struct Loop {
    device: PathBuf,
}

impl Loop {
    fn attach(file: &std::path::Path, options: &[&str]) -> Result<Loop, String> {
        let output = Command::new("losetup").args(["--find", "--show"]).args(options).arg(file).output();
        let output = output.map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Loop { device: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.device).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays attached", self.device.display());
    }
}

/// A loop device, or a printed reason why there is none.
fn attach(file: &std::path::Path, options: &[&str]) -> Option<Loop> {
    match Loop::attach(file, options) {
        Ok(device) => Some(device),
        Err(why) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("no loop device: {why}"),
        Err(why) => {
            eprintln!("skipped: no loop device: {why}");
            None
        }
    }
}

#[test]
fn a_block_device_reads_writes_flushes_discards_and_zeroes() {
    let ring = ring();
    let place = on_disk(8 << 20);
    for options in [&["--sector-size", "512"][..], &["--sector-size", "4096", "--direct-io=on"]] {
        let Some(device) = attach(&place.path, options) else { return };
        let mut file = File::open(&device.device, &ring, OpenHow::MEMBER).unwrap();
        let geometry = file.geometry();
        assert_eq!(geometry.size_bytes, 8 << 20);
        assert_eq!(geometry.block_size.bytes().to_string(), options[1]);
        assert!(geometry.discard && geometry.volatile_cache && file.warning().is_none());
        write(&ring, &mut file, 1 << 20, &vec![3; 1 << 20], true).unwrap();
        run(&ring, &mut file, Op::Discard { offset: 1 << 20, len: 65536 }).result.unwrap();
        let zeroes = |offset, unmap| Op::WriteZeroes { offset, len: 65536, fua: true, unmap };
        run(&ring, &mut file, zeroes((1 << 20) + 131072, false)).result.unwrap();
        run(&ring, &mut file, zeroes((1 << 20) + 262144, true)).result.unwrap();
        run(&ring, &mut file, Op::Flush).result.unwrap();
        let bytes = read(&ring, &mut file, 1 << 20, 1 << 20).unwrap();
        let zeroed = |i: usize| matches!(i / 65536, 0 | 2 | 4);
        assert!(bytes.iter().enumerate().all(|(i, &b)| b == if zeroed(i) { 0 } else { 3 }));
        assert!(read(&ring, &mut file, 8 << 20, 4096).is_err());
    }
}

#[test]
fn a_block_device_in_use_is_refused_and_a_read_only_one_named() {
    let ring = ring();
    let place = on_disk(8 << 20);
    let Some(device) = attach(&place.path, &[]) else { return };
    let member = File::open(&device.device, &ring, OpenHow::MEMBER).unwrap();
    let busy = File::open(&device.device, &ring, OpenHow::MEMBER).err().unwrap();
    assert!(matches!(busy, OpenError::Busy { .. }), "{busy}");
    drop(File::open(&device.device, &ring, OpenHow::EXAMINE).unwrap());
    drop(member);
    drop(File::open(&device.device, &ring, OpenHow::MEMBER).unwrap());
    drop(device);
    let Some(device) = attach(&place.path, &["--read-only"]) else { return };
    let error = File::open(&device.device, &ring, OpenHow::MEMBER).err().unwrap();
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
    drop(File::open(&device.device, &ring, OpenHow::EXAMINE).unwrap());
}

#[test]
fn two_loop_devices_over_one_file_and_the_file_are_one_disk_unless_they_start_elsewhere() {
    let place = on_disk(8 << 20);
    let Some(first) = attach(&place.path, &[]) else { return };
    let Some(second) = attach(&place.path, &[]) else { return };
    let Some(shifted) = attach(&place.path, &["--offset", "1048576"]) else { return };
    let id = identify(&place.path).unwrap();
    assert_eq!(identify(&first.device).unwrap(), id);
    assert_eq!(identify(&second.device).unwrap(), id);
    assert_ne!(identify(&shifted.device).unwrap(), id);
}

/// An array on files was served a second time on loop devices over them, and the other way round: the kernel knows no
/// lock between a loop device and its file.
#[test]
fn a_loop_device_and_the_file_below_it_are_never_both_members() {
    let ring = ring();
    let place = on_disk(8 << 20);
    let Some(first) = attach(&place.path, &[]) else { return };
    let Some(second) = attach(&place.path, &[]) else { return };
    let busy = |path: &std::path::Path| {
        let error = File::open(path, &ring, OpenHow::MEMBER).err().unwrap();
        assert!(matches!(error, OpenError::Busy { .. }), "{error}");
    };
    let member = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
    busy(&first.device);
    drop(member);
    let member = File::open(&first.device, &ring, OpenHow::MEMBER).unwrap();
    busy(&place.path);
    busy(&second.device);
    drop(File::open(&second.device, &ring, OpenHow::EXAMINE).unwrap());
    drop(member);
    drop(File::open(&place.path, &ring, OpenHow::MEMBER).unwrap());
}

#[test]
fn parts_of_a_file_are_members_side_by_side_and_exclude_the_whole() {
    let ring = ring();
    let place = on_disk(8 << 20);
    let Some(first) = attach(&place.path, &["--sizelimit", "4194304"]) else { return };
    let Some(second) = attach(&place.path, &["--offset", "4194304"]) else { return };
    let members = [&first, &second].map(|part| File::open(&part.device, &ring, OpenHow::MEMBER).unwrap());
    assert!(matches!(File::open(&place.path, &ring, OpenHow::MEMBER), Err(OpenError::Busy { .. })));
    drop(members);
    drop(File::open(&place.path, &ring, OpenHow::MEMBER).unwrap());
}

#[test]
fn a_loop_device_whose_file_was_deleted_can_be_a_member() {
    let ring = ring();
    let place = on_disk(8 << 20);
    let Some(device) = attach(&place.path, &[]) else { return };
    std::fs::rename(&place.path, place.path.with_extension("away")).unwrap();
    std::fs::remove_file(place.path.with_extension("away")).unwrap();
    drop(File::open(&device.device, &ring, OpenHow::MEMBER).unwrap());
}

#[test]
fn a_loop_device_that_was_resized_is_as_large_once_it_is_looked_at_again() {
    let ring = ring();
    let place = on_disk(8 << 20);
    let Some(device) = attach(&place.path, &[]) else { return };
    let mut member = File::open(&device.device, &ring, OpenHow::MEMBER).unwrap();
    std::fs::OpenOptions::new().write(true).open(&place.path).unwrap().set_len(12 << 20).unwrap();
    let resized = Command::new("losetup").arg("--set-capacity").arg(&device.device).status();
    assert!(resized.unwrap().success());
    member.refresh_size();
    assert_eq!(member.geometry().size_bytes, 12 << 20);
    write(&ring, &mut member, (12 << 20) - 4096, &[5; 4096], true).unwrap();
    assert_eq!(read(&ring, &mut member, (12 << 20) - 4096, 4096).unwrap(), [5; 4096]);
}
