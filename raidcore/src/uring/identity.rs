//! Which disk a name means, so that one given twice is seen.
//!
//! Two names are the same disk if they lead, through symbolic links and loop devices, to the same inode or device
//! number at the same offset. A partition and the disk around it, or a loop device over a part of a file and that
//! file, overlap but are not the same; this is not seen here, and O_EXCL sees the former.

use super::geometry::sys_block;
use super::limits::MAX_LOOP_DEPTH;
use rustix::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};

/// Names a disk within this system until it is rebooted: equal for all names of the same disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceId {
    base: Base,
    /// Where it starts in the base, in bytes.
    offset: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Base {
    File { device: u64, inode: u64 },
    Block { device: u64 },
}

/// Finds out which disk `path` means. Needs no permission to read it. Fails if there is nothing by that name.
pub fn identify(path: &Path) -> io::Result<DeviceId> {
    let mut offset = 0u64;
    let mut id = base_of(path)?;
    for _ in 0..MAX_LOOP_DEPTH {
        let Base::Block { device } = id else { break };
        let Some((backing, start)) = loop_backing(device) else { break };
        // A backing file that was deleted, or that lies in another mount namespace, has no name here.
        let Ok(below) = base_of(&backing) else { break };
        offset = offset.saturating_add(start);
        id = below;
    }
    Ok(DeviceId { base: id, offset })
}

fn base_of(path: &Path) -> io::Result<Base> {
    let stat = rustix::fs::stat(path)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Base::Block { device: stat.st_rdev },
        _ => Base::File { device: stat.st_dev, inode: stat.st_ino },
    })
}

/// The file behind a loop device and where in it the device starts.
fn loop_backing(device: u64) -> Option<(PathBuf, u64)> {
    let folder = sys_block(device).join("loop");
    let file = std::fs::read_to_string(folder.join("backing_file")).ok()?;
    let offset = std::fs::read_to_string(folder.join("offset")).ok()?.trim().parse().ok()?;
    Some((PathBuf::from(file.trim_end_matches('\n')), offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_seen_through_and_different_files_are_different() {
        let dir = tempfile::tempdir().unwrap();
        let [file, soft, hard, other] = ["file", "soft", "hard", "other"].map(|name| dir.path().join(name));
        std::fs::write(&file, b"x").unwrap();
        std::fs::write(&other, b"x").unwrap();
        std::os::unix::fs::symlink(&file, &soft).unwrap();
        std::fs::hard_link(&file, &hard).unwrap();
        let id = identify(&file).unwrap();
        assert_eq!(identify(&soft).unwrap(), id);
        assert_eq!(identify(&hard).unwrap(), id);
        assert_ne!(identify(&other).unwrap(), id);
        assert!(identify(&dir.path().join("nothing")).is_err());
    }
}
