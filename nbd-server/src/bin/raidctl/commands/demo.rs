//! `raidctl demo`: a RAID5 of four sparse files and a spare, served at once, to try things out.
//!
//! The folder is kept: started again on it, the demo finds its array and the data on it. What is in the folder
//! and not ours is never overwritten.

use super::create::{Plan, create};
use crate::cli::DemoArgs;
use crate::compose::{self, Places, uris};
use crate::control::socket::{OwnedSocket, default_control};
use crate::daemon::{Daemon, Setup};
use crate::devices::Bench;
use crate::devices::absolute;
use crate::failure::{Context, Failure, Outcome};
use crate::listen;
use crate::notify::Notifier;
use crate::output::say;
use crate::policy::Policy;
use crate::tls::Tls;
use nbd_server::listen::ListenAddr;
use raidcore::layout::{LayoutSpec, Level};
use raidcore::meta::{self, LoadError};
use raidcore::uring::OpenHow;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Name of the demo's array and export.
const NAME: &str = "demo";
/// The members' files, then the spare's.
const FILES: [&str; 5] = ["disk0.img", "disk1.img", "disk2.img", "disk3.img", "spare.img"];
/// How long a stop waits for clients.
const DRAIN: Duration = Duration::from_secs(10);
/// The demo's chunk.
const CHUNK_BYTES: u32 = 64 << 10;

/// Runs the demo until it is stopped.
pub fn run(args: &DemoArgs) -> Outcome<()> {
    let dir = folder(args.dir.as_deref())?;
    let tcp = listen::parse(&format!("tcp:{}", args.tcp))?.addr;
    let mut listen = vec![listen::bind(&ListenAddr::Unix(dir.join("nbd.sock")))?];
    match listen::bind(&tcp) {
        Ok(listener) => listen.push(listener),
        // A busy port is no reason to show nothing.
        Err(failure) => {
            tracing::warn!("{failure} (--tcp 127.0.0.1:PORT); serving on the unix socket only");
        }
    }
    let found = prepare(&dir, args.size.0)?;
    let control = control_path(args, &dir);
    let devices = FILES.iter().map(|file| dir.join(file)).collect();
    let uris = uris(&listen, NAME);
    let daemon = Daemon::start(Setup {
        plan: compose::Plan {
            devices,
            force: false,
            required: Vec::new(),
            policy: Policy::default(),
            tls: Tls::default(),
        },
        places: Places::new(listen, OwnedSocket::bind(&control)?),
        drain: DRAIN,
        notifier: Notifier::from_env(),
        on_reload: None,
    })?;
    say(how_to(&dir, &control, &uris, found))?;
    daemon.run()
}

/// The demo's folder: the one asked for, or one of the user's data folders.
fn folder(asked: Option<&Path>) -> Outcome<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = match asked {
        Some(folder) => absolute(folder)?,
        None => match (var("XDG_DATA_HOME"), var("HOME")) {
            (Some(data), _) => data.join("raidctl/demo"),
            (None, Some(home)) => home.join(".local/share/raidctl/demo"),
            (None, None) => {
                return Err(Failure::new("neither XDG_DATA_HOME nor HOME is set: say where with --dir DIR"));
            }
        },
    };
    std::fs::create_dir_all(&folder).context(format!("cannot make the folder {}", folder.display()))?;
    Ok(folder)
}

/// Makes sure that there is an array in the folder. True: it was there before.
fn prepare(dir: &Path, size: u64) -> Outcome<bool> {
    let fresh = make_disks(dir, size)?;
    let bench = Bench::new()?;
    for file in FILES {
        let mut disk = bench.open(&dir.join(file), OpenHow::EXAMINE)?;
        // A damaged superblock is one, too: what becomes of it is decided where arrays are assembled.
        if !matches!(meta::load(&mut disk), Err(LoadError::NoSuperblock)) {
            return Ok(true);
        }
    }
    let paths: Vec<PathBuf> = FILES.iter().map(|file| dir.join(file)).collect();
    let (members, spares) = paths.split_at(FILES.len() - 1);
    create(&Plan {
        name: NAME.to_string(),
        layout: LayoutSpec::new(Level::Raid5, members.len(), CHUNK_BYTES),
        members: members.to_vec(),
        spares: spares.to_vec(),
        // The parity of zeroes is zero. Files that were here before hold anything.
        assume_clean: fresh == FILES.len(),
        force: false,
    })?;
    Ok(false)
}

/// Makes the files that are not there yet, sparse and all zeroes. Existing ones stay as they are. Returns how many
/// it made.
fn make_disks(folder: &Path, size: u64) -> Outcome<usize> {
    let mut made = 0;
    for file in FILES {
        let path = folder.join(file);
        let name = path.display();
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(disk) => {
                disk.set_len(size).context(format!("cannot make {name} {size} bytes long"))?;
                made += 1;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Failure::new(format!("cannot make {name}: {error}"))),
        }
    }
    Ok(made)
}

/// The socket asked for; otherwise the default one, so that `raidctl status` just works; otherwise, because another
/// daemon has that, one in the folder.
fn control_path(args: &DemoArgs, dir: &Path) -> PathBuf {
    if let Some(path) = &args.control.control {
        return path.clone();
    }
    let path = default_control();
    if UnixStream::connect(&path).is_ok() { dir.join("control.sock") } else { path }
}

/// What the user can do now, to copy and paste.
fn how_to(dir: &Path, control: &Path, uris: &[String], found: bool) -> String {
    let story = if found { "found again, with what was on it" } else { "new, empty" };
    let uri = uris.first().map_or("", String::as_str);
    let socket = quoted(&dir.join("nbd.sock"));
    let disk = quoted(&dir.join(FILES[1]));
    format!(
        "\
Serving `{NAME}`, a RAID5 of four files and a spare in {dir} ({story}):
{all}

Look at it and use it, in another terminal:
  nbdinfo '{uri}'
  qemu-io -f raw -c 'write -P 0xab 0 1M' -c 'read -P 0xab 0 1M' '{uri}'
  fio --name=demo --ioengine=nbd --uri='{uri}' --rw=randrw --bs=4k --iodepth=32 --size=64M --verify=crc32c

As a disk of this machine (as root; the kernel needs its nbd module):
  modprobe nbd && nbd-client -unix {socket} -N {NAME} /dev/nbd0
  mkfs.ext4 /dev/nbd0 && mount /dev/nbd0 /mnt
  umount /mnt && nbd-client -d /dev/nbd0

Lose a disk, and watch the spare take over:
  {fail}
  {status}

Ctrl-C stops the demo. The folder stays; to be rid of it: rm -r {folder}",
        dir = dir.display(),
        folder = quoted(dir),
        all = uris.iter().map(|uri| format!("  {uri}")).collect::<Vec<_>>().join("\n"),
        fail = command(control, &format!("fail {NAME} {disk}")),
        status = command(control, "status --watch"),
    )
}

/// A command line of this program, with the control socket if that is not the default one.
fn command(control: &Path, words: &str) -> String {
    let me = std::env::args_os().next().map(PathBuf::from).unwrap_or_else(|| PathBuf::from("raidctl"));
    let option = match control == default_control() {
        true => String::new(),
        false => format!(" --control {}", quoted(control)),
    };
    format!("{} {words}{option}", quoted(&me))
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_pasted_into_a_shell() {
        assert_eq!(quoted(Path::new("/a/b.img")), "/a/b.img");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn disks_that_are_there_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk1.img"), "precious").unwrap();
        assert_eq!(make_disks(dir.path(), 1 << 20).unwrap(), 4);
        assert_eq!(std::fs::read_to_string(dir.path().join("disk1.img")).unwrap(), "precious");
        assert_eq!(std::fs::metadata(dir.path().join("spare.img")).unwrap().len(), 1 << 20);
        assert_eq!(make_disks(dir.path(), 1 << 20).unwrap(), 0);
    }
}
