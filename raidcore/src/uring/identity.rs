//! Which disk a name means, so that one given twice is seen, and what lies below it, so that it can be claimed too.
//!
//! Two names are the same disk if they lead, through symbolic links and loop devices, to the same inode or device
//! number at the same offset. A partition and the disk around it, or a loop device over a part of a file and that
//! file, overlap but are not the same; this is not seen here: O_EXCL sees the former, the claim on what is below a
//! loop device the latter.

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
        let Some(Backing { path: backing, start, .. }) = loop_backing(device) else { break };
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

/// What lies below `path` if it is a loop device, nearest first; empty for everything else. Names only: a file that
/// was deleted, or lies in another mount namespace, is named as the kernel knows it, and may not be found.
pub fn files_below(path: &Path) -> Vec<PathBuf> {
    below(path).into_iter().map(|backing| backing.path).collect()
}

/// What a loop device is over.
pub(super) struct Backing {
    pub(super) path: PathBuf,
    /// Where in it the device starts, in bytes.
    start: u64,
    /// The device ends before it does, or begins after it does.
    pub(super) is_part: bool,
}

pub(super) fn below(path: &Path) -> Vec<Backing> {
    let mut found: Vec<Backing> = Vec::new();
    for _ in 0..MAX_LOOP_DEPTH {
        let upper = found.last().map_or(path, |backing| &backing.path);
        let Ok(Base::Block { device }) = base_of(upper) else { break };
        let Some(backing) = loop_backing(device) else { break };
        found.push(backing);
    }
    found
}

fn loop_backing(device: u64) -> Option<Backing> {
    let folder = sys_block(device).join("loop");
    let number = |name: &str| std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let path = std::fs::read_to_string(folder.join("backing_file")).ok()?;
    let start = number("offset")?;
    let is_part = start > 0 || number("sizelimit").is_some_and(|limit| limit > 0);
    Some(Backing { path: PathBuf::from(path.trim_end_matches('\n')), start, is_part })
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
