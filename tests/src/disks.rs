//! Disks for tests: sparse files in a directory of their own, and loop devices over them.

use crate::{program, run};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Files that serve as disks, in a directory that also takes the sockets and logs of the test.
pub struct Disks {
    dir: TempDir,
    paths: Vec<PathBuf>,
}

impl Disks {
    /// `count` sparse files of `mib` MiB each, named disk0, disk1, ...
    pub fn new(count: usize, mib: u64) -> Disks {
        let mut disks = Disks { dir: TempDir::with_prefix("raid-").unwrap(), paths: Vec::new() };
        for _ in 0..count {
            disks.add(mib);
        }
        disks
    }

    /// One more file, and its path.
    pub fn add(&mut self, mib: u64) -> PathBuf {
        let path = self.dir().join(format!("disk{}", self.paths.len()));
        File::create_new(&path).unwrap().set_len(mib << 20).unwrap();
        self.paths.push(path.clone());
        path
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// All the disks, in the order they were made.
    pub fn all(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The disks without number `left_out`.
    pub fn without(&self, left_out: usize) -> Vec<PathBuf> {
        let mut paths = self.paths.clone();
        paths.remove(left_out);
        paths
    }

    /// What would differ if anything had written to a disk: the space it takes, and its first and last MiB, where
    /// metadata lives. (Not its times: finding out whether a file can have holes touches them.)
    pub fn trace(&self) -> Vec<(u64, Vec<u8>)> {
        let ends = 1 << 20;
        let trace_of = |path: &PathBuf| {
            let file = File::open(path).unwrap();
            let meta = file.metadata().unwrap();
            let (mut bytes, tail_at) = (Vec::new(), meta.len().saturating_sub(ends));
            (&file).take(ends).read_to_end(&mut bytes).unwrap();
            (&file).seek(SeekFrom::Start(tail_at)).unwrap();
            (&file).read_to_end(&mut bytes).unwrap();
            (meta.blocks(), bytes)
        };
        self.paths.iter().map(trace_of).collect()
    }
}

/// A loop device, detached on drop.
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches a file, with further options of losetup.
    ///
    /// # Panics
    ///
    /// When losetup fails; ask for `Need::LoopDevices` first.
    pub fn attach(file: &Path, options: &[&str]) -> LoopDevice {
        let attached = run(program("losetup").args(["--find", "--show"]).args(options).arg(file)).ok();
        LoopDevice { path: PathBuf::from(attached.stdout.trim()) }
    }

    /// Its device node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn possible() -> bool {
        if !crate::need::on_path("losetup") {
            return false;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let attached = run(program("losetup").args(["--find", "--show"]).arg(file.path()));
        let works = attached.code == Some(0);
        if works {
            drop(LoopDevice { path: PathBuf::from(attached.stdout.trim()) });
        }
        works
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = run(program("losetup").arg("--detach").arg(&self.path));
        if detached.code != Some(0) && !std::thread::panicking() {
            detached.ok();
        }
    }
}

/// Bytes that look random and are the same for the same seed (xorshift64*).
pub fn random_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
