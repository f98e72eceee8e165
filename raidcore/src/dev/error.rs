//! Why an operation failed: a small kind that decides what happens next, and the context a person needs.

use super::request::OpKind;
use std::fmt;

/// What an error means to the floor above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The medium could not read or write these blocks; others may be fine.
    Medium,
    /// The device or the way to it is gone; every further request will fail.
    Gone,
    /// Not answered by its deadline; it may still be executed.
    Timeout,
    /// Given up on request.
    Canceled,
    /// Fewer bytes were transferred than asked for.
    Short,
    /// Past the end of the device.
    OutOfRange,
    /// Not a multiple of the block size, or empty where that means nothing.
    Misaligned,
    /// More than the device takes in one request.
    TooLarge,
    /// The device is read-only.
    ReadOnly,
    /// No space is left to write to.
    NoSpace,
    /// The device cannot do this operation.
    Unsupported,
    /// More requests in flight than the queue depth, or no memory for this one: try again later.
    Busy,
    /// More members are lost than the array's level survives.
    ArrayFailed,
    /// The device stops or has stopped.
    Stopped,
}

impl ErrorKind {
    fn phrase(self) -> &'static str {
        match self {
            ErrorKind::Medium => "medium error",
            ErrorKind::Gone => "device gone",
            ErrorKind::Timeout => "deadline passed",
            ErrorKind::Canceled => "canceled",
            ErrorKind::Short => "short transfer",
            ErrorKind::OutOfRange => "past the end of the device",
            ErrorKind::Misaligned => "not aligned to the block size",
            ErrorKind::TooLarge => "larger than the largest transfer",
            ErrorKind::ReadOnly => "device is read-only",
            ErrorKind::NoSpace => "no space left",
            ErrorKind::Unsupported => "not supported by the device",
            ErrorKind::Busy => "too much in flight",
            ErrorKind::ArrayFailed => "array has failed",
            ErrorKind::Stopped => "device is stopped",
        }
    }
}

/// A failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoError {
    /// What it means.
    pub kind: ErrorKind,
    /// What was being done.
    pub op: OpKind,
    /// First byte on the device.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// The operating system's error number, if it had one.
    pub errno: Option<i32>,
}

impl IoError {
    /// An error that no error number speaks of.
    pub fn new(kind: ErrorKind, op: OpKind, offset: u64, len: u64) -> IoError {
        IoError { kind, op, offset, len, errno: None }
    }

    /// What `errno` means for an I/O on a disk.
    pub fn from_errno(errno: i32, op: OpKind, offset: u64, len: u64) -> IoError {
        let kind = match errno {
            libc::ENODEV
            | libc::ENXIO
            | libc::ESHUTDOWN
            | libc::ENOTCONN
            | libc::ECONNRESET
            | libc::EBADF => ErrorKind::Gone,
            libc::ETIMEDOUT | libc::ETIME => ErrorKind::Timeout,
            libc::ECANCELED | libc::EINTR => ErrorKind::Canceled,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::NoSpace,
            libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => ErrorKind::Unsupported,
            libc::EROFS | libc::EPERM | libc::EACCES => ErrorKind::ReadOnly,
            libc::EINVAL => ErrorKind::Misaligned,
            libc::ENOMEM | libc::EAGAIN | libc::ENOBUFS => ErrorKind::Busy,
            // EIO, ENODATA, EREMOTEIO, EILSEQ and what no one has thought of: these blocks failed.
            _ => ErrorKind::Medium,
        };
        IoError { kind, op, offset, len, errno: Some(errno) }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes at {}: {}", self.op, self.len, self.offset, self.kind.phrase())?;
        match self.errno {
            Some(errno) => write!(f, " ({})", std::io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

impl std::error::Error for IoError {}
