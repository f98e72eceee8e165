//! Which process keeps which device: a file each below /run/raidctl/attach, in JSON.
//!
//! The keeper holds a lock on its file for as long as it lives. A file nobody locks is what a killed one left.

use super::device::Device;
use super::{DEVICE_PATIENCE, LOOK_AGAIN};
use crate::failure::{Context, Failure, Outcome};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where the records are.
pub const FOLDER: &str = "/run/raidctl/attach";

/// One attached device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// /dev/nbdX.
    pub device: String,
    /// Where its data is.
    pub uri: String,
    /// The process that keeps it.
    pub pid: i32,
    /// What the kernel knows the attachment by, see /sys/block/nbdX/backend.
    pub identity: String,
    /// Size when it was attached, in bytes.
    pub size_bytes: u64,
    /// Logical block, in bytes.
    pub block_bytes: u32,
    /// The export's transmission flags, as the kernel knows them.
    pub flags: u16,
    /// Connections to the server.
    pub connections: u32,
    /// Nothing can be written.
    pub read_only: bool,
}

/// A record that is ours. Dropping it removes the file, unless it is left.
#[derive(Debug)]
pub struct OwnRecord {
    path: PathBuf,
    lock: File,
    is_left: bool,
}

impl OwnRecord {
    /// Leaves the file when the process ends, for a device that goes on without it.
    pub fn leave(&mut self) {
        self.is_left = true;
    }
}

/// Makes the folder of the records, for root alone.
pub fn make_folder() -> Outcome<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(FOLDER);
    made.context(format!("cannot make the folder {FOLDER}"))
}

/// Where the keeper of a device logs to, unless it stays in the foreground.
pub fn log_path(device: Device) -> PathBuf {
    Path::new(FOLDER).join(device.name() + ".log")
}

/// The record of a device, and whether its keeper lives. None if there is no record.
pub fn read(device: Device) -> Outcome<Option<(Record, bool)>> {
    read_at(&path_of(device))
}

/// Writes down that this process keeps a device. Waits a little for a keeper before us that is about to end.
pub fn write(device: Device, record: &Record) -> Outcome<OwnRecord> {
    write_at(&path_of(device), record)
}

/// Removes what a killed keeper left.
pub fn remove_stale(device: Device) -> Outcome<()> {
    let path = path_of(device);
    remove_file(&path).context(format!("cannot remove {}", path.display()))
}

fn path_of(device: Device) -> PathBuf {
    Path::new(FOLDER).join(device.name() + ".json")
}

fn read_at(path: &Path) -> Outcome<Option<(Record, bool)>> {
    let name = path.display();
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.context(format!("cannot read {name}"))?,
    };
    let kept = matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock));
    let text = std::io::read_to_string(file).context(format!("cannot read {name}"))?;
    let record = serde_json::from_str(&text).map_err(|error| {
        Failure::new(format!("{name} is no record of an attached device ({error}): remove it"))
    })?;
    Ok(Some((record, kept)))
}

fn write_at(path: &Path, record: &Record) -> Outcome<OwnRecord> {
    let name = path.display();
    let end = Instant::now() + DEVICE_PATIENCE;
    loop {
        let opened = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path);
        let mut lock = opened.context(format!("cannot write {name}"))?;
        // The one we waited for may have removed the file: then the lock is one of a file that is gone.
        let held = lock.try_lock().is_ok() && is_still(path, &lock);
        if held {
            lock.set_len(0).context(format!("cannot write {name}"))?;
            let text = serde_json::to_string(record).context("cannot write down what is attached")?;
            writeln!(lock, "{text}").context(format!("cannot write {name}"))?;
            return Ok(OwnRecord { path: path.to_path_buf(), lock, is_left: false });
        }
        if Instant::now() > end {
            return Err(Failure::new(format!("another process keeps {}: see {name}", record.device)));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn is_still(path: &Path, file: &File) -> bool {
    let (Ok(there), Ok(ours)) = (std::fs::metadata(path), file.metadata()) else { return false };
    (there.dev(), there.ino()) == (ours.dev(), ours.ino())
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl Drop for OwnRecord {
    fn drop(&mut self) {
        if !self.is_left
            && is_still(&self.path, &self.lock)
            && let Err(error) = remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            device: "/dev/nbd3".into(),
            uri: "nbd://host/vol0".into(),
            pid: 7,
            identity: "raidctl-x".into(),
            size_bytes: 1 << 30,
            block_bytes: 512,
            flags: 1,
            connections: 4,
            read_only: false,
        }
    }

    #[test]
    fn a_record_is_kept_while_its_keeper_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd3.json");
        assert_eq!(read_at(&path).unwrap(), None);
        let own = write_at(&path, &record()).unwrap();
        assert_eq!(read_at(&path).unwrap(), Some((record(), true)));
        drop(own);
        assert_eq!(read_at(&path).unwrap(), None);
    }

    #[test]
    fn what_a_killed_keeper_left_is_told_apart_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd3.json");
        std::fs::write(
            &path,
            serde_json::to_string(&record()).unwrap() + "\n and more than the next one has",
        )
        .unwrap();
        assert!(read_at(&path).is_err());
        std::fs::write(&path, serde_json::to_string(&record()).unwrap()).unwrap();
        assert_eq!(read_at(&path).unwrap(), Some((record(), false)));
        let own = write_at(&path, &Record { pid: 8, ..record() }).unwrap();
        assert_eq!(read_at(&path).unwrap().unwrap().0.pid, 8);
        drop(own);
    }
}
