//! What is left of a daemon that was killed.
//!
//! Its sockets and the locks on its devices outlive the process for a moment: the kernel takes its ring apart in the
//! background, and what the ring was working on (a flush, say) stays open until that is done. A daemon that is
//! restarted at once must not mistake this for a living one, nor refuse a living one late.

use raidcore::uring::files_below;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

/// How long to wait for a dead daemon's last flush.
pub const AFTERLIFE: Duration = Duration::from_secs(20);
/// How often to look again.
pub const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// True if this process runs; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    // The state is the first word behind the name, which is in brackets and may hold anything.
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// How long it may pay to wait for a device that is in use.
pub fn patience_with_lock(path: &Path) -> Duration {
    // A loop device is also refused because of the lock on the file below it.
    if is_locked_by_the_living(path) || files_below(path).iter().any(|file| is_locked_by_the_living(file)) {
        return Duration::ZERO;
    }
    // A block device may as well be mounted, which does not end by waiting.
    let is_block = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
    if is_block { AFTERLIFE / 4 } else { AFTERLIFE }
}

/// True if another running process is known to hold the lock (flock) on this file. What this process itself still
/// holds, it has closed, and the kernel will let go of it.
fn is_locked_by_the_living(path: &Path) -> bool {
    let (Ok(file), Ok(locks)) = (std::fs::metadata(path), std::fs::read_to_string("/proc/locks")) else {
        return false;
    };
    let ours = i32::try_from(std::process::id()).ok();
    let device = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    locks
        .lines()
        .filter_map(|line| holder(line, device, file.ino()))
        .any(|pid| Some(pid) != ours && is_alive(pid))
}

/// The process that holds a lock on `inode` of `device` (major and minor), from a line of /proc/locks:
/// `1: FLOCK  ADVISORY  WRITE 708 fd:01:9306 0 EOF`. For file systems without a device of their own (major 0) any
/// other such device will do: btrfs shows another one there than `stat` does.
fn holder(line: &str, device: (u32, u32), inode: u64) -> Option<i32> {
    let mut words = line.split_whitespace().skip(1);
    if words.next() != Some("FLOCK") {
        return None;
    }
    let mut words = words.skip(2);
    let pid = words.next()?.parse().ok()?;
    let mut place = words.next()?.split(':');
    let mut number = || u32::from_str_radix(place.next()?, 16).ok();
    let found = (number()?, number()?);
    let is_there = found == device || (found.0, device.0) == (0, 0);
    (is_there && place.next()?.parse() == Ok(inode)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_process_is_alive_and_one_that_was_waited_for_is_not() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(is_alive(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }

    #[test]
    fn a_lock_of_another_process_is_seen_and_one_of_ours_is_as_good_as_gone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().lock().unwrap();
        assert!(!is_locked_by_the_living(file.path()));
        file.as_file().unlock().unwrap();
        let path = file.path().to_str().unwrap();
        let mut child = std::process::Command::new("flock")
            .args(["-F", path, "sh", "-c", "echo locked; exec sleep 60"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
            .unwrap();
        assert!(is_locked_by_the_living(file.path()));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn only_a_flock_on_this_inode_counts() {
        let line = "1: FLOCK  ADVISORY  WRITE 708 fd:01:9306 0 EOF";
        assert_eq!(holder(line, (0xfd, 1), 9306), Some(708));
        assert_eq!(holder(line, (0xfd, 1), 930), None);
        assert_eq!(holder(&line.replace("FLOCK", "POSIX"), (0xfd, 1), 9306), None);
        assert_eq!(holder("", (0xfd, 1), 9306), None);
    }

    #[test]
    fn a_lock_on_the_same_number_of_another_file_system_is_another_one() {
        let line = "1: FLOCK  ADVISORY  WRITE 708 00:1a:12 0 EOF";
        assert_eq!(holder(line, (0x62, 0), 12), None);
        assert_eq!(holder(&line.replace("00:1a", "62:10"), (0x62, 0), 12), None);
        assert_eq!(holder(line, (0, 0x1b), 12), Some(708), "btrfs");
    }
}
