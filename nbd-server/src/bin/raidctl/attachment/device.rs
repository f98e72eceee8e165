//! /dev/nbdX: its name, what the kernel says of it, and who uses it.

use super::OPEN_PATIENCE;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs::read_to_string;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc::channel;

/// One device of the NBD driver, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// The X of /dev/nbdX.
    pub index: u32,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let digits = text.strip_prefix("/dev/").unwrap_or(text).strip_prefix("nbd").unwrap_or_default();
        let plain =
            digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        match digits.parse() {
            // The driver keeps some bits of the number for partitions.
            Ok(index) if plain && index < 1 << 12 => Ok(Device { index }),
            _ => Err(format!("{text:?} is no NBD device: say /dev/nbd0, for example")),
        }
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.index)
    }
}

impl Device {
    /// Its name without a folder.
    pub fn name(self) -> String {
        format!("nbd{}", self.index)
    }

    fn sysfs(self, file: &str) -> PathBuf {
        PathBuf::from(format!("/sys/block/nbd{}/{file}", self.index))
    }

    /// True once programs can open it and it has a size.
    pub fn is_there(self) -> bool {
        PathBuf::from(self.to_string()).exists() && self.size_bytes() > 0
    }

    /// Its size as the kernel knows it, in bytes; 0 if it has none.
    pub fn size_bytes(self) -> u64 {
        let sectors =
            read_to_string(self.sysfs("size")).ok().and_then(|size| size.trim().parse::<u64>().ok());
        sectors.unwrap_or(0).saturating_mul(512)
    }

    /// Lets the kernel send requests of at most this many bytes. It has its own, lower limit for most servers.
    pub fn limit_requests(self, max_bytes: u32) -> std::io::Result<()> {
        let file = self.sysfs("queue/max_sectors_kb");
        let now_kib: u32 = read_to_string(&file)?.trim().parse().unwrap_or(u32::MAX);
        match max_bytes / 1024 {
            max_kib if max_kib < now_kib => std::fs::write(file, max_kib.to_string()),
            _ => Ok(()),
        }
    }

    /// Who uses the device or one of its partitions, in words: file systems, swap, devices on top. Empty if nobody does.
    pub fn users(self) -> Vec<String> {
        let mounts = read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let swaps = read_to_string("/proc/swaps").unwrap_or_default();
        let mut users = users_in(self, &mounts, &swaps);
        users.extend(self.holders().iter().map(|name| format!("{} is built on it", name.to_string_lossy())));
        if users.is_empty() && self.is_claimed() {
            users.push("it is mounted elsewhere, or another program has it to itself".to_string());
        }
        users
    }

    fn holders(self) -> Vec<OsString> {
        let whole = self.sysfs("holders");
        let entries = std::fs::read_dir(self.sysfs("")).into_iter().flatten().flatten();
        let parts = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("nbd"))
            .map(|entry| entry.path().join("holders"));
        let folders = std::iter::once(whole).chain(parts);
        folders
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flatten()
            .flatten()
            .map(|e| e.file_name())
            .collect()
    }

    /// Lets the kernel look for partitions, which it does when a device is opened for the first time.
    pub fn find_partitions(self) {
        if let Some(Err(error)) = self.try_open(OFlags::empty()) {
            tracing::warn!("{self} cannot be opened: {error}");
        }
    }

    /// A file system or a program that wants a device for itself keeps others from claiming it, in all namespaces.
    fn is_claimed(self) -> bool {
        self.try_open(OFlags::EXCL) == Some(Err(Errno::BUSY))
    }

    /// Opens the device and closes it again. The kernel may read the partition table then, and hang in it while the
    /// server is away: so it is left to a thread that nobody waits for longer than [`OPEN_PATIENCE`].
    fn try_open(self, flags: OFlags) -> Option<Result<(), Errno>> {
        let (tell, told) = channel();
        let attempt = move || {
            let opened = open(self.to_string(), OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty());
            // Closed before it is told: an open device cannot be detached.
            tell.send(opened.map(drop))
        };
        std::thread::Builder::new().name("open".to_string()).spawn(attempt).ok()?;
        told.recv_timeout(OPEN_PATIENCE).ok()
    }
}

/// Mount points and swap on the device or its partitions. `mounts` as in /proc/self/mountinfo, `swaps` as in /proc/swaps.
fn users_in(device: Device, mounts: &str, swaps: &str) -> Vec<String> {
    let is_ours = |source: &str| {
        let rest = source.strip_prefix(&device.to_string());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    };
    let mounted = mounts.lines().filter_map(|line| {
        // ... root POINT options [fields] - type SOURCE options
        let (place, origin) = line.split_once(" - ")?;
        let point = place.split(' ').nth(4)?;
        is_ours(origin.split(' ').nth(1)?).then(|| format!("it is mounted at {}", unescaped(point)))
    });
    let swap = swaps.lines().filter(|line| is_ours(line.split([' ', '\t']).next().unwrap_or_default()));
    mounted.chain(swap.map(|_| "the system swaps to it".to_string())).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_string(), |text, (code, meant)| text.replace(code, meant))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_driver() {
        for (text, index) in [("/dev/nbd0", 0), ("nbd7", 7), ("/dev/nbd15", 15)] {
            assert_eq!(text.parse(), Ok(Device { index }));
        }
        for text in
            ["", "/dev/nbd", "/dev/sda", "/dev/nbd0p1", "/dev/nbd-1", "nbd+1", "nbd01", "nbd99999999", "0"]
        {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
        assert_eq!(Device { index: 3 }.to_string(), "/dev/nbd3");
    }

    #[test]
    fn mounts_and_swap_are_found_partitions_included() {
        let mounts = "36 35 43:0 / /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/nbd1 rw\n\
                      37 35 43:1 / /part rw - xfs /dev/nbd1p2 rw\n\
                      38 35 43:9 / /other rw - xfs /dev/nbd11 rw\n\
                      39 35 0:5 / /proc rw - proc proc rw\n";
        let swaps = "Filename\tType\n/dev/nbd2                partition\t100\t0\t-2\n";
        let users = |index| users_in(Device { index }, mounts, swaps);
        assert_eq!(users(1), ["it is mounted at /mnt/a b", "it is mounted at /part"]);
        assert_eq!(users(2), ["the system swaps to it"]);
        assert_eq!(users(0), Vec::<String>::new());
    }

    #[test]
    fn rubbish_names_no_user() {
        assert!(
            users_in(Device { index: 0 }, " - \n - /dev/nbd0\nx - y\n - a /dev/nbd0", "\n \n").is_empty()
        );
    }
}
