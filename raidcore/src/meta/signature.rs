//! What else may live on a device: found before it is overwritten, and wiped when that is wanted.
//!
//! A signature is trusted only as far as refusing goes: a device that looks used is not touched without --force.
//! Only the first and the last mebibyte are read; nothing in them is followed.

use super::probes;
use super::superblock::{Superblock, SuperblockError};
use crate::blocking::Blocking;
use crate::dev::{BlockDev, IoError};
use std::fmt;

/// Bytes at each end of a device that are read, and zeroed by [`wipe`].
const WINDOW_BYTES: u64 = 1 << 20;

/// A sign that a device is in use by something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What it is a sign of: `ext2/3/4`, `GPT`, `member of array vol0`.
    pub name: String,
    /// Where it was found, in bytes.
    pub offset: u64,
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (signature at byte {})", self.name, self.offset)
    }
}

/// The two ends of a device, read into memory.
pub(super) struct Ends {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Size of the device.
    pub size_bytes: u64,
}

impl Ends {
    /// The bytes at `offset`, if they were read.
    pub fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let within = |window: &'_ Vec<u8>, start: u64| {
            let from = usize::try_from(offset.checked_sub(start)?).ok()?;
            (from.checked_add(len)? <= window.len()).then_some(from)
        };
        if let Some(from) = within(&self.head, 0) {
            return self.head.get(from..from + len);
        }
        let from = within(&self.tail, self.size_bytes - self.tail.len() as u64)?;
        self.tail.get(from..from + len)
    }

    /// True if `magic` stands at `offset`.
    pub fn has(&self, offset: u64, magic: &[u8]) -> bool {
        self.at(offset, magic.len()).is_some_and(|bytes| bytes == magic)
    }

    #[cfg(test)]
    pub fn of(image: &[u8]) -> Ends {
        let window = image.len().min(WINDOW_BYTES as usize);
        Ends {
            head: image[..window].to_vec(),
            tail: image[image.len() - window..].to_vec(),
            size_bytes: image.len() as u64,
        }
    }
}

/// Looks for signs of use: file systems, volume managers, RAID members, partition tables, an array of ours. The
/// most specific is returned. Reads both ends of the device; writes nothing.
pub fn foreign_signature<D: BlockDev>(dev: &mut Blocking<D>) -> Result<Option<Signature>, IoError> {
    let size_bytes = dev.geometry().size_bytes;
    let window = size_bytes.min(WINDOW_BYTES);
    let mut ends = Ends { head: vec![0; window as usize], tail: vec![0; window as usize], size_bytes };
    if window > 0 {
        dev.read_at(0, &mut ends.head)?;
        dev.read_at(size_bytes - window, &mut ends.tail)?;
    }
    Ok(detect(&ends))
}

/// Zeroes both ends of the device, where signatures live, and makes that durable: for --force.
pub fn wipe<D: BlockDev>(dev: &mut Blocking<D>) -> Result<(), IoError> {
    let size_bytes = dev.geometry().size_bytes;
    let window = size_bytes.min(WINDOW_BYTES);
    if window > 0 {
        // Plain writes rather than write-zeroes: an unmapped range may read as anything on a defective device.
        let zeroes = vec![0; window as usize];
        dev.write_at(0, &zeroes, false)?;
        dev.write_at(size_bytes - window, &zeroes, false)?;
    }
    dev.flush()
}

pub(super) fn detect(ends: &Ends) -> Option<Signature> {
    let foreign = |probe: &probes::Probe| {
        (probe.find)(ends).map(|offset| Signature { name: probe.name.to_owned(), offset })
    };
    own(ends).or_else(|| probes::PROBES.iter().find_map(foreign))
}

/// A member of an array of ours, also a damaged one.
fn own(ends: &Ends) -> Option<Signature> {
    super::format::locations(ends.size_bytes).into_iter().find_map(|offset| {
        let bytes = ends.at(offset, super::format::SUPERBLOCK_BYTES)?;
        let name = match Superblock::decode(bytes) {
            Ok(superblock) => format!("member of array {}", superblock.array.name),
            Err(SuperblockError::NotOurs) => return None,
            Err(_) => "member of an array of ours (damaged or of another version)".to_owned(),
        };
        Some(Signature { name, offset })
    })
}

#[cfg(test)]
mod tests;
