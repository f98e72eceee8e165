//! Opening a file or block device safely: what it is, whether somebody else has it, and whether it is ours to use.
//!
//! A writable device is claimed twice: a block device by O_EXCL, which the kernel refuses while it is mounted, in
//! use by md, dm or swap, or claimed by another program; and both kinds by an exclusive `flock`, which
//! refuses a second array, also in the same process. The lock is taken on what lies below a loop device, too: the
//! kernel lets the device and its file be written side by side, and both would be taken for the same member. A plain read-only opening claims nothing, so that `examine`
//! works on the members of a running array.

use super::identity::below;
use crate::dev::BlockSize;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// How to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenHow {
    /// Refuse writes; the file may be read-only.
    pub read_only: bool,
    /// Go past the page cache (O_DIRECT) where the file system can; where not, a [`Warning`] says so.
    pub direct: bool,
    /// Claim the device, and fail with [`OpenError::Busy`] if somebody else has.
    pub exclusive: bool,
    /// The logical block size to present, if it is to be larger than what the device has.
    pub block_size: Option<BlockSize>,
}

impl OpenHow {
    /// To be a member of a running array: writable, direct, claimed.
    pub const MEMBER: OpenHow = OpenHow { read_only: false, direct: true, exclusive: true, block_size: None };

    /// To look at it: read-only, unclaimed, so that it may be in use. Reads are direct, for the page cache may not
    /// know what an array wrote past it.
    pub const EXAMINE: OpenHow =
        OpenHow { read_only: true, direct: true, exclusive: false, block_size: None };
}

impl Default for OpenHow {
    fn default() -> OpenHow {
        OpenHow::MEMBER
    }
}

/// Something to tell the administrator about a device that was opened all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// O_DIRECT is not supported: I/O goes through the page cache.
    Buffered {
        /// The device.
        path: PathBuf,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Buffered { path } => write!(
                f,
                "{}: the file system does not support O_DIRECT; using the page cache (durable after a flush, but each \
                 block is kept in memory twice)",
                path.display()
            ),
        }
    }
}

/// Why a device cannot be used. Each names the device and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing is there.
    #[error("{}: does not exist; check the name", path.display())]
    Missing {
        /// The device.
        path: PathBuf,
    },
    /// A directory, a character device, a socket...
    #[error("{}: is a {what}; give a regular file or a block device", path.display())]
    NotADisk {
        /// The device.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Permission denied.
    #[error("{}: permission denied; run as root, or give the user access to it", path.display())]
    Permission {
        /// The device.
        path: PathBuf,
    },
    /// The device or its file system is read-only.
    #[error("{}: is read-only; make it writable (blockdev --setrw, or remount) or use another device", path.display())]
    ReadOnly {
        /// The device.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("{}: is in use by {by}; stop that first or use another device", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
        /// By whom, as far as can be known.
        by: &'static str,
    },
    /// It does not even hold one block.
    #[error("{}: is too small ({size_bytes} bytes; at least {needed_bytes} are needed); enlarge it", path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// What it has.
        size_bytes: u64,
        /// What is needed.
        needed_bytes: u64,
    },
    /// Its logical block is neither 512 nor 4096 bytes.
    #[error("{}: has logical blocks of {bytes} bytes; only 512 and 4096 are supported", path.display())]
    BlockSize {
        /// The device.
        path: PathBuf,
        /// Its block.
        bytes: u32,
    },
    /// The device is there, but without a medium or its driver.
    #[error("{}: no medium, or the device is gone; check its cable and `dmesg`", path.display())]
    Gone {
        /// The device.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{}: cannot be opened: {source}", path.display())]
    Io {
        /// The device.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
}

impl OpenError {
    pub(super) fn io(path: &Path, errno: Errno) -> OpenError {
        OpenError::Io { path: path.to_owned(), source: errno.into() }
    }
}

/// An opened device before it becomes a [`File`](super::File).
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) is_block: bool,
    /// O_DIRECT was obtained.
    pub(super) direct: bool,
    /// Locked files below it; their locks are to be held for as long as it is open.
    pub(super) claims: Vec<OwnedFd>,
}

pub(super) fn open(path: &Path, how: OpenHow) -> Result<Opened, OpenError> {
    // The type is looked at before opening: opening a FIFO would wait for its other end, and opening some
    // character devices does things.
    let stat = rustix::fs::stat(path).map_err(|errno| explain(path, errno, false))?;
    let is_block = is_disk(path, FileType::from_raw_mode(stat.st_mode))?;
    let mut flags = OFlags::CLOEXEC | if how.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    if is_block && how.exclusive {
        flags |= OFlags::EXCL;
    }
    if how.direct {
        flags |= OFlags::DIRECT;
    }
    let mut opened = rustix::fs::open(path, flags, Mode::empty());
    if how.direct && matches!(opened, Err(Errno::INVAL | Errno::OPNOTSUPP)) {
        flags -= OFlags::DIRECT;
        opened = rustix::fs::open(path, flags, Mode::empty());
    }
    let read_only_device = is_block && super::geometry::is_read_only_device(stat.st_rdev);
    let fd = opened.map_err(|errno| explain(path, errno, read_only_device))?;
    // The name may have come to mean something else meanwhile.
    let stat = rustix::fs::fstat(&fd).map_err(|errno| OpenError::io(path, errno))?;
    let is_block = is_disk(path, FileType::from_raw_mode(stat.st_mode))?;
    if is_block && !how.read_only && super::geometry::is_read_only_device(stat.st_rdev) {
        return Err(OpenError::ReadOnly { path: path.to_owned() });
    }
    if how.exclusive {
        rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => OpenError::Busy { path: path.to_owned(), by: "a running array" },
            errno => OpenError::io(path, errno),
        })?;
    }
    let claims = if how.exclusive && is_block { claim_below(path)? } else { Vec::new() };
    Ok(Opened { fd, is_block, direct: flags.contains(OFlags::DIRECT), claims })
}

/// Locks what lies below a loop device: exclusively, or shared with others over other parts of it. What cannot be
/// opened by its name (deleted, another mount namespace) or knows no locks goes without.
fn claim_below(path: &Path) -> Result<Vec<OwnedFd>, OpenError> {
    let mut claims = Vec::new();
    let mut is_part = false;
    for backing in below(path) {
        is_part |= backing.is_part;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(fd) = rustix::fs::open(&backing.path, flags, Mode::empty()) else { break };
        let lock = match is_part {
            true => FlockOperation::NonBlockingLockShared,
            false => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(&fd, lock) {
            Ok(()) => claims.push(fd),
            Err(Errno::WOULDBLOCK) => {
                let by = "a running array, which has the file below this loop device";
                return Err(OpenError::Busy { path: path.to_owned(), by });
            }
            Err(_) => break,
        }
    }
    Ok(claims)
}

fn is_disk(path: &Path, kind: FileType) -> Result<bool, OpenError> {
    let what = match kind {
        FileType::RegularFile => return Ok(false),
        FileType::BlockDevice => return Ok(true),
        FileType::Directory => "directory",
        FileType::CharacterDevice => "character device",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::Symlink | FileType::Unknown => "special file",
    };
    Err(OpenError::NotADisk { path: path.to_owned(), what })
}

fn explain(path: &Path, errno: Errno, read_only_device: bool) -> OpenError {
    let path = path.to_owned();
    match errno {
        Errno::NOENT | Errno::NOTDIR => OpenError::Missing { path },
        Errno::ROFS => OpenError::ReadOnly { path },
        Errno::ACCESS | Errno::PERM if read_only_device => OpenError::ReadOnly { path },
        Errno::ACCESS | Errno::PERM => OpenError::Permission { path },
        Errno::BUSY => OpenError::Busy { path, by: "a mount, another program or another array" },
        Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM => OpenError::Gone { path },
        errno => OpenError::Io { path, source: errno.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_system_names_the_device_and_its_remedy() {
        let path = Path::new("/dev/thing");
        let cases = [
            (Errno::NOENT, false, "does not exist; check the name"),
            (Errno::ROFS, false, "is read-only; make it writable"),
            (Errno::ACCESS, true, "is read-only; make it writable"),
            (Errno::ACCESS, false, "permission denied; run as root"),
            (Errno::BUSY, false, "is in use by a mount, another program or another array; stop that first"),
            (Errno::NOMEDIUM, false, "no medium, or the device is gone; check its cable"),
            (Errno::MFILE, false, "cannot be opened: Too many open files"),
        ];
        for (errno, read_only_device, words) in cases {
            let text = explain(path, errno, read_only_device).to_string();
            assert!(text.starts_with("/dev/thing: ") && text.contains(words), "{text}");
        }
    }
}
