//! What the system knows about an open file or block device: its size, its block, what it can do.
//!
//! Sizes come from the device itself, abilities from sysfs; what sysfs does not say is assumed to be absent.
#![allow(unsafe_code)] // one ioctl that rustix does not have

use super::limits::FILE_QUEUE_DEPTH;
use super::open::{OpenError, OpenHow, Opened};
use crate::dev::{BlockSize, Geometry};
use crate::limits::PAGE_BYTES;
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::ioctl::{Getter, ioctl, opcode};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

/// How an open file is to be used.
pub(super) struct Shape {
    pub(super) geometry: Geometry,
    /// Memory of direct transfers must be aligned to this and of such length; 1 if it need not be.
    pub(super) memory_align: usize,
    /// The file lives in memory (tmpfs, ramfs): transfers are copied at once.
    pub(super) in_memory: bool,
}

pub(super) fn probe(path: &Path, how: OpenHow, opened: &Opened) -> Result<Shape, OpenError> {
    let fd = opened.fd.as_fd();
    let failed = |errno| OpenError::io(path, errno);
    let stat = rustix::fs::fstat(fd).map_err(failed)?;
    let in_memory = !opened.is_block && is_in_memory(fd);
    let align =
        if opened.direct && !in_memory { direct_alignment(fd) } else { DirectAlign { memory: 1, offset: 1 } };
    let size = size_of(fd, opened.is_block).map_err(failed)?;
    let own_block = if opened.is_block {
        rustix::fs::ioctl_blksszget(fd).map_err(failed)?
    } else if align.offset > 512 {
        align.offset
    } else {
        512
    };
    let own_block = BlockSize::from_bytes(own_block)
        .ok_or_else(|| OpenError::BlockSize { path: path.to_owned(), bytes: own_block })?;
    let block_size = how.block_size.unwrap_or(own_block).max(own_block);
    if size < PAGE_BYTES as u64 {
        let needed_bytes = PAGE_BYTES as u64;
        return Err(OpenError::TooSmall { path: path.to_owned(), size_bytes: size, needed_bytes });
    }
    let device = if opened.is_block { stat.st_rdev } else { stat.st_dev };
    let punch = !how.read_only
        && if opened.is_block {
            read_queue(device, "write_zeroes_max_bytes") > 0
        } else {
            can_punch(fd, size)
        };
    let write_through = opened.is_block && opened.direct && is_write_through(device);
    Ok(Shape {
        geometry: Geometry {
            queue_depth: FILE_QUEUE_DEPTH,
            read_only: how.read_only,
            rotational: !in_memory && read_queue(device, "rotational") == 1,
            volatile_cache: !write_through,
            discard: punch,
            unmap_zeroes: punch,
            ..Geometry::plain(size, block_size)
        },
        memory_align: align.memory.max(1) as usize,
        in_memory,
    })
}

/// Size of a block device or of a file, now.
pub(super) fn size_of(fd: BorrowedFd<'_>, is_block: bool) -> rustix::io::Result<u64> {
    match is_block {
        true => block_device_bytes(fd),
        false => Ok(u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0)),
    }
}

/// True if the kernel has marked the block device read-only.
pub(super) fn is_read_only_device(device: u64) -> bool {
    read_number(&sys_block(device).join("ro")) == Some(1)
}

/// The folder of a block device in sysfs.
pub(super) fn sys_block(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

struct DirectAlign {
    memory: u32,
    offset: u32,
}

/// What O_DIRECT asks of memory and offsets (statx, Linux 6.1); before that, what every device is content with.
fn direct_alignment(fd: BorrowedFd<'_>) -> DirectAlign {
    let plain = DirectAlign { memory: 512, offset: 512 };
    match rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(found) if found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && found.stx_dio_offset_align > 0 => {
            // Lengths of segments must suit the device as well, and 512 always do.
            let memory = found.stx_dio_mem_align.max(512);
            let offset =
                if found.stx_dio_offset_align > 512 { 4096.max(found.stx_dio_offset_align) } else { 512 };
            DirectAlign { memory, offset }
        }
        _ => plain,
    }
}

/// Size of a block device (ioctl BLKGETSIZE64).
fn block_device_bytes(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    // The size in its number is that of a pointer, by an old mistake of the kernel; what it stores is a u64.
    const BLKGETSIZE64: rustix::ioctl::Opcode = opcode::read::<usize>(0x12, 114);
    // SAFETY: BLKGETSIZE64 stores one u64.
    let size = unsafe { Getter::<BLKGETSIZE64, u64>::new() };
    // SAFETY: the getter has room for what the ioctl stores.
    unsafe { ioctl(fd, size) }
}

/// tmpfs and ramfs, where io_uring hands every transfer to a worker thread, for they do not know NOWAIT.
fn is_in_memory(fd: BorrowedFd<'_>) -> bool {
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    const RAMFS_MAGIC: rustix::fs::FsWord = 0x8584_58f6;
    rustix::fs::fstatfs(fd).is_ok_and(|fs| matches!(fs.f_type, TMPFS_MAGIC | RAMFS_MAGIC))
}

/// Punches a hole behind the end of the file, which changes nothing but tells whether holes can be punched.
fn can_punch(fd: BorrowedFd<'_>, size: u64) -> bool {
    let behind = size.next_multiple_of(PAGE_BYTES as u64);
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(fd, mode, behind, PAGE_BYTES as u64).is_ok()
}

fn is_write_through(device: u64) -> bool {
    queue_file(device, "write_cache").is_some_and(|text| text.trim() == "write through")
}

/// A number of the device's queue, or of the whole disk's if it is a partition; 0 if there is none.
fn read_queue(device: u64, name: &str) -> u64 {
    queue_file(device, name).and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn queue_file(device: u64, name: &str) -> Option<String> {
    let folder = sys_block(device);
    let own = folder.join("queue").join(name);
    let disk = || std::fs::canonicalize(&folder).ok().map(|partition| partition.join("../queue").join(name));
    std::fs::read_to_string(own).ok().or_else(|| std::fs::read_to_string(disk()?).ok())
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
