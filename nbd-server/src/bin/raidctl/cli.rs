//! The command line, as `--help` shows it. Only shape: what the words mean is decided by the commands.
//!
//! Level, chunk, layout and the like come in as text on purpose: a wrong one is a refused creation (exit status 1,
//! with a remedy), not wrong usage.

use crate::attachment::MAX_LINKS;
use crate::attachment::device::Device;
use crate::size::{Size, SizeOrMax};
use crate::tls::TlsArgs;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// RAID arrays served as network block devices.
#[derive(Parser, Debug)]
#[command(
    name = "raidctl",
    version,
    after_help = "Examples:\n  raidctl demo\n  raidctl create vol0 --level 5 /dev/sdb /dev/sdc /dev/sdd /dev/sde\n  \
                  raidctl serve --listen unix:/run/vol0.sock /dev/sd[b-e]\n  raidctl status"
)]
pub struct Cli {
    /// What the log on stderr shows: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG", hide_env_values = true)]
    pub log_level: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// One command.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve a RAID5 of four files and a spare, to try things out
    Demo(DemoArgs),
    /// Write the metadata of a new array to its devices; no daemon is needed
    Create(CreateArgs),
    /// Assemble the arrays on these devices and serve them as network block devices
    Serve(ServeArgs),
    /// Show the arrays of the running daemon
    Status(StatusArgs),
    /// Show what is on a device: superblock, member, array
    Examine(ExamineArgs),
    /// Mark a member faulty, so that it is no longer used
    Fail(MemberArgs),
    /// Add a device to an array as a spare; a degraded array starts to rebuild on it at once
    Add(AddArgs),
    /// Let go of a faulty member or a spare
    Remove(MemberArgs),
    /// Let an array take the room of members that became larger; it is served meanwhile
    Grow(GrowArgs),
    /// Stop an array: finish what is in flight, flush, mark it clean
    Stop(StopArgs),
    /// Show what happened to the arrays
    Events(EventsArgs),
    /// Make an export a block device of this machine, /dev/nbdX
    Attach(AttachArgs),
    /// End a block device that `raidctl attach` made
    Detach(DetachArgs),
}

impl Command {
    /// True for the commands that stay and serve.
    pub fn is_daemon(&self) -> bool {
        match self {
            Command::Demo(_) | Command::Serve(_) => true,
            Command::Attach(args) => args.foreground,
            _ => false,
        }
    }
}

/// Where the daemon is controlled.
#[derive(Args, Debug, Clone)]
pub struct ControlArgs {
    /// The control socket of the daemon [default: /run/raidctl/control.sock, for other users than root
    /// $XDG_RUNTIME_DIR/raidctl/control.sock]
    #[arg(long, value_name = "PATH", env = "RAIDCTL_CONTROL", hide_env_values = true)]
    pub control: Option<PathBuf>,
}

/// `raidctl demo`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raidctl demo --dir /var/tmp/demo --size 1G\n\n\
                        Started again on the same folder, it finds its array and the data on it.")]
pub struct DemoArgs {
    /// The folder of the disks [default: $XDG_DATA_HOME/raidctl/demo or ~/.local/share/raidctl/demo]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Size of each of the five disks; the files are sparse
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub size: Size,
    /// TCP address to listen at, on top of the unix socket DIR/nbd.sock
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10809")]
    pub tcp: String,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `raidctl create`
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  raidctl create vol0 --level 5 --chunk 64K --spare /dev/sdf /dev/sdb /dev/sdc /dev/sdd\n  \
                        raidctl create fast --level 10 --copies 2 /dev/nvme0n1 /dev/nvme1n1 /dev/nvme2n1 /dev/nvme3n1\n  \
                        truncate -s 1G a.img b.img && raidctl create mirror --level 1 a.img b.img\n\n\
                        Only metadata is written. A new array with redundancy is brought into sync in the background\n\
                        once it is served."
)]
pub struct CreateArgs {
    /// Name of the array and of its export
    pub name: String,
    /// RAID level: 0, 1, 5, 6 or 10
    #[arg(long, value_name = "LEVEL")]
    pub level: String,
    /// Bytes on one member before the next: a power of two, 4K to 16M
    #[arg(long, value_name = "SIZE", default_value = "64K")]
    pub chunk: String,
    /// Where RAID5 and RAID6 put parity: left-symmetric, left-asymmetric, right-symmetric, right-asymmetric
    #[arg(long, value_name = "LAYOUT")]
    pub layout: Option<String>,
    /// How many copies of each chunk RAID10 keeps [default: 2]
    #[arg(long, value_name = "N")]
    pub copies: Option<u32>,
    /// A device that stands by; may be given several times
    #[arg(long = "spare", value_name = "DEV")]
    pub spares: Vec<PathBuf>,
    /// How the array becomes consistent after a crash: this version knows resync
    #[arg(long, value_name = "HOW", default_value = "resync")]
    pub consistency: String,
    /// Checksums of the data: this version knows off
    #[arg(long, value_name = "on|off", default_value = "off")]
    pub checksums: String,
    /// Trust that the devices are in sync already (all zeroes, for example) and skip the first resync
    #[arg(long)]
    pub assume_clean: bool,
    /// Use devices that carry something else; what they carry is lost
    #[arg(long)]
    pub force: bool,
    /// The members, in order
    #[arg(required = true, value_name = "DEV")]
    pub devices: Vec<PathBuf>,
}

/// `raidctl serve`
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Examples:\n  raidctl serve --listen unix:/run/vol0.sock --listen tcp:127.0.0.1:10809 /dev/sd[b-e]\n  \
                        raidctl serve --tls require --tls-certificates /etc/raidctl/pki --listen tcp:0.0.0.0:10809 /dev/sd[b-e]\n  \
                        raidctl serve --config /etc/raidctl.toml\n\n\
                        The configuration file (what the command line says wins):\n  \
                        listen = [\"unix:/run/raidctl/nbd.sock\"]\n  control = \"/run/raidctl/control.sock\"\n  \
                        devices = [\"/dev/sdb\", \"/dev/sdc\"]\n  \
                        [export.vol0]\n  allow = [\"10.0.0.0/8\", \"unix:user=backup:ro\"]\n  \
                        [limits]\n  connections_per_client = 16\n\n\
                        SIGHUP reads who may use which export again. \
                        SIGTERM and SIGINT stop it cleanly; a second signal stops it at once.\n\n\
                        A new version, without an error for clients that reconnect:\n  \
                        raidctl serve --takeover --config /etc/raidctl.toml"
)]
pub struct ServeArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where clients connect: tcp:ADDR:PORT or unix:PATH, with ,tls=off|allow|require behind it; may be given several
    /// times
    /// [default: unix:/run/raidctl/nbd.sock, for other users than root unix:$XDG_RUNTIME_DIR/raidctl/nbd.sock]
    #[arg(long, value_name = "WHERE")]
    pub listen: Vec<String>,
    /// Let nobody write: to the export of this name, or to any if there is none; may be given several times
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub read_only: Vec<String>,
    /// TLS.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
    /// Start arrays that refuse to start without you having looked: the message says which and why
    #[arg(long)]
    pub force: bool,
    /// How long a stop waits for clients to have their requests answered; the rest is cut
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    pub drain: Duration,
    /// Take sockets and arrays over from the daemon at the control socket; its clients see a pause
    #[arg(long)]
    pub takeover: bool,
    /// Block devices or files with arrays on them
    #[arg(value_name = "DEV")]
    pub devices: Vec<PathBuf>,
}

/// `raidctl status`
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  raidctl status\n  raidctl status vol0 --json\n  raidctl status --watch")]
pub struct StatusArgs {
    /// Only this array
    pub name: Option<String>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Keep the display up to date until Ctrl-C or until the daemon stops; with --json, one line per change
    #[arg(long)]
    pub watch: bool,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `raidctl examine`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raidctl examine /dev/sdb")]
pub struct ExamineArgs {
    /// The device
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `raidctl fail` and `raidctl remove`
#[derive(Args, Debug)]
#[command(
    after_help = "Example, a disk that is to be pulled out:\n  raidctl fail vol0 /dev/sdc && raidctl remove vol0 /dev/sdc\n\nA device that is removed and answers loses its superblock, so that its old data cannot be served by mistake; the\ndata itself stays. A device that cannot be written keeps it, and is said to."
)]
pub struct MemberArgs {
    /// The array
    pub name: String,
    /// The member or spare
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `raidctl add`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raidctl add vol0 /dev/sdf && raidctl status --watch")]
pub struct AddArgs {
    /// The array
    pub name: String,
    /// The new device
    #[arg(value_name = "DEV")]
    pub device: PathBuf,
    /// Use a device that carries something else; what it carries is lost
    #[arg(long)]
    pub force: bool,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `raidctl grow`
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  lvextend -L +100G /dev/vg/disk1    (and each other member)\n  raidctl grow vol0\n  \
                        truncate -s 2G a.img b.img c.img && raidctl grow vol0 --size max\n  raidctl grow vol0 --size 3G\n\n\
                        Every member is looked at again, and must be large enough. Data stays where it is. New clients\n\
                        see the new size at once; clients that are connected are answered in the new part as well, but\n\
                        NBD cannot tell them of it: reconfigure or reconnect them, then grow what is on the device."
)]
pub struct GrowArgs {
    /// The array
    pub name: String,
    /// What the array is to hold, rounded up to whole stripes; `max` for all that the smallest member allows
    #[arg(long, value_name = "max|SIZE", default_value = "max")]
    pub size: SizeOrMax,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `raidctl stop`
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  raidctl stop vol0\n\nTo stop the daemon and all of its arrays, send it SIGTERM."
)]
pub struct StopArgs {
    /// The array
    pub name: String,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `raidctl events`
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  raidctl events --follow --json")]
pub struct EventsArgs {
    /// Keep printing what happens, until Ctrl-C or until the daemon stops
    #[arg(long)]
    pub follow: bool,
    /// As JSON, one event per line
    #[arg(long)]
    pub json: bool,
    /// Where the daemon is controlled.
    #[command(flatten)]
    pub control: ControlArgs,
}

/// `raidctl attach`
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  raidctl attach vol0\n  raidctl attach nbd://storage/vol0 /dev/nbd3 --connections 4\n\n\
                  Prints the device. A process stays beside it: it connects again when the server was away, so that reads and\n\
                  writes only pause, and lets the device grow when the export does. Takes root and the module nbd."
)]
pub struct AttachArgs {
    /// The export: nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, or the name of one of the daemon on this
    /// machine
    #[arg(value_name = "URI|NAME")]
    pub export: String,
    /// The device [default: the first that is free]
    #[arg(value_name = "/dev/nbdX")]
    pub device: Option<Device>,
    /// Connections to the server, 1 to 16 [default: 4 if the server allows several to be used as one, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_LINKS)))]
    pub connections: Option<u32>,
    /// How long requests wait while the server is away, before programs see errors. An hour outlasts the reboot of a
    /// server and lets somebody come to help, and still nothing hangs for ever
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    pub dead_timeout: Duration,
    /// How long one request may take before its connection is given up and it is sent again. So long at most do
    /// requests that were under way pause when the server is killed
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = seconds)]
    pub timeout: Duration,
    /// How often the size of the export is looked at
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = seconds)]
    pub poll: Duration,
    /// A device that cannot be written
    #[arg(long)]
    pub read_only: bool,
    /// Stay, and log to stderr; for service managers
    #[arg(long)]
    pub foreground: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Where the daemon is controlled, if the export is given by its name.
    #[command(flatten)]
    pub control: ControlArgs,
    /// This is the process in the background, and this is its log.
    #[arg(long, hide = true, requires = "foreground", value_name = "LOG")]
    pub keeper: Option<PathBuf>,
}

/// `raidctl detach`
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  umount /mnt && raidctl detach /dev/nbd0\n\nWhat is in flight on a device that is detached by force fails."
)]
pub struct DetachArgs {
    /// The device
    #[arg(value_name = "/dev/nbdX")]
    pub device: Device,
    /// Also if it is mounted or otherwise in use: whoever uses it sees errors
    #[arg(long)]
    pub force: bool,
}

/// `30s`, `1h`, or a number of seconds. The kernel counts in seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = match text.parse() {
        Ok(number) => Ok(Duration::from_secs(number)),
        Err(_) => humantime::parse_duration(text),
    };
    match time {
        Ok(time) if time.subsec_nanos() == 0 && (1..=MAX_SECONDS).contains(&time.as_secs()) => Ok(time),
        _ => Err("say 30s or 1h, for example: whole seconds, at least one, at most a year".to_string()),
    }
}

/// The kernel turns seconds into its own, smaller ticks; a year leaves it room.
const MAX_SECONDS: u64 = 366 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(seconds("30"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "0", "0s", "100ms", "1s 1ms", "2years", "-1", "soon"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_command_has_an_example_in_its_help() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.contains(&format!("raidctl {}", command.get_name())),
                "{} has no example",
                command.get_name()
            );
        }
    }
}
