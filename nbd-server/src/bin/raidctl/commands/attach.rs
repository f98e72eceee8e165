//! `raidctl attach`: an export as /dev/nbdX, and the process that keeps it.
//!
//! In the foreground this process is the keeper. Otherwise it starts itself once more as one, in a session of its own,
//! waits until the device can be used or the keeper says why not, and ends.

use crate::attachment::keeper::{Keeper, Settings};
use crate::attachment::record::{self, Record};
use crate::cli::{AttachArgs, ControlArgs};
use crate::control::client::Client;
use crate::control::socket::default_listen;
use crate::failure::{Context, Failure, Outcome};
use crate::listen;
use crate::nbd_netlink::Driver;
use crate::output;
use crate::report::ListenReport;
use nbd_server::client::{Address, NbdUri};
use nbd_server::listen::ListenAddr;
use nbd_server::tls::TlsMode;
use sd_notify::NotifyState;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Attaches, and prints the device.
pub fn run(args: &AttachArgs) -> Outcome<()> {
    let settings = settings(args)?;
    Driver::open().map_err(Failure::new)?;
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("attaching a device takes root: use sudo"));
    }
    if let Some(device) = settings.device
        && let Some((record, true)) = record::read(device)?
    {
        return Err(Failure::new(format!(
            "{device} is attached to {} already, kept by process {}: choose another device, or `raidctl detach {device}`",
            record.uri, record.pid
        )));
    }
    record::make_folder()?;
    if args.foreground { keep(args, settings) } else { start_keeper() }
}

/// What the command line means.
fn settings(args: &AttachArgs) -> Outcome<Settings> {
    let mut uri = if NbdUri::is_meant_by(&args.export) {
        parse(&args.export)?
    } else {
        local(&args.export, &args.control)?
    };
    if uri.tls.is_some() {
        return Err(Failure::new(format!(
            "{uri} uses TLS, which the kernel's NBD driver does not know: let the server listen without TLS on a unix \
             socket or a trusted network, or connect the machines by a tunnel"
        )));
    }
    // The keeper leaves this folder.
    if let Address::Unix(path) = &mut uri.address {
        *path = std::path::absolute(&path).context(path.display())?;
    }
    Ok(Settings {
        uri,
        device: args.device,
        links: args.connections,
        read_only: args.read_only,
        request_timeout: args.timeout,
        dead_timeout: args.dead_timeout,
        poll: args.poll,
    })
}

fn parse(text: &str) -> Outcome<NbdUri> {
    text.parse().map_err(Failure::usage)
}

/// An export of the daemon on this machine, which says itself where it listens.
fn local(name: &str, control: &ControlArgs) -> Outcome<NbdUri> {
    let report = Client::connect(control).and_then(|mut daemon| daemon.status(None)).map_err(|failure| {
        Failure::new(format!(
            "{name:?} is no NBD URI, and of the name of an export only the daemon knows the place: {failure}; or say \
             nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH"
        ))
    })?;
    let names: Vec<&str> =
        report.arrays.iter().flat_map(|array| &array.lus).map(|lu| lu.name.as_str()).collect();
    if !names.contains(&name) {
        return Err(Failure::new(format!(
            "there is no export {name:?}: the daemon serves {}",
            names.join(", ")
        )));
    }
    let place = place_for_kernel(&report.listen).ok_or_else(|| {
        Failure::new(format!(
            "the daemon offers {name} with TLS only, which the kernel's NBD driver does not know: let it listen \
             without TLS on a unix socket as well"
        ))
    })?;
    parse(&listen::uri(&place, TlsMode::Off, name))
}

/// Of the places where a daemon listens, the one for the kernel of the same machine: without TLS, and a unix socket
/// before any TCP address. A daemon of a version that does not say is where daemons are by default.
fn place_for_kernel(places: &[ListenReport]) -> Option<ListenAddr> {
    if places.is_empty() {
        return Some(ListenAddr::Unix(default_listen()));
    }
    let clear = places.iter().filter(|place| place.tls != TlsMode::Require.to_string());
    let clear: Vec<ListenAddr> =
        clear.filter_map(|place| place.address.parse().ok()).map(reachable).collect();
    let unix = clear.iter().find(|place| matches!(place, ListenAddr::Unix(_)));
    unix.or(clear.first()).cloned()
}

/// Who listens at all addresses listens at the machine's own, too.
fn reachable(place: ListenAddr) -> ListenAddr {
    match place {
        ListenAddr::Tcp(mut addr) if addr.ip().is_unspecified() => {
            addr.set_ip(if addr.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
            ListenAddr::Tcp(addr)
        }
        other => other,
    }
}

/// Is the keeper, until the device is disconnected.
fn keep(args: &AttachArgs, settings: Settings) -> Outcome<()> {
    if let Some(log) = &args.keeper {
        rustix::process::setsid().context("cannot leave the terminal")?;
        std::env::set_current_dir("/").context("cannot leave the folder")?;
        let keeper = Keeper::attach(settings)?;
        std::fs::rename(log, record::log_path(keeper.device())).context("cannot name the log")?;
        return watch(args, keeper);
    }
    watch(args, Keeper::attach(settings)?)
}

fn watch(args: &AttachArgs, keeper: Keeper) -> Outcome<()> {
    withstand_pressure();
    print(args, keeper.record())?;
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("the service manager cannot be told that {} is there: {error}", keeper.device());
    }
    keeper.keep()
}

fn print(args: &AttachArgs, record: &Record) -> Outcome<()> {
    match args.json {
        true => output::say_json_line(record),
        false => output::say(&record.device),
    }
}

/// The keeper must be able to connect when memory is short because the device it keeps cannot be written to: it stays in
/// memory, and is not made to wait for the write-back of others. Where that is not allowed it does its best without.
fn withstand_pressure() {
    use rustix::mm::{MlockAllFlags, mlockall};
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        tracing::debug!("the keeper cannot be kept in memory: {error}");
    }
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::debug!("the keeper is no I/O flusher: {error}");
    }
}

/// Starts the keeper in the background, and passes on what it says.
fn start_keeper() -> Outcome<()> {
    let log = Path::new(record::FOLDER).join(format!("attach-{}.log", std::process::id()));
    let started = spawn(&log);
    let told = started.and_then(hear);
    match told {
        Ok(line) => output::say(&line),
        Err(failure) => {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if let Err(error) = std::fs::remove_file(&log) {
                tracing::debug!("cannot remove {}: {error}", log.display());
            }
            // The last line of a process that fails is the sentence.
            let sentence = said.lines().rev().find_map(|line| line.strip_prefix("raidctl: "));
            Err(sentence.map_or(failure, Failure::new))
        }
    }
}

fn spawn(log: &PathBuf) -> Outcome<Child> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(log);
    let program = std::env::current_exe().context("cannot find the program of this process")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--foreground").arg("--keeper").arg(log);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(file.context(format!("cannot write {}", log.display()))?);
    command.spawn().context("cannot start the process that keeps the device")
}

/// The line the keeper prints once the device can be used.
fn hear(mut keeper: Child) -> Outcome<String> {
    let mut line = String::new();
    if let Some(output) = keeper.stdout.take() {
        BufReader::new(output)
            .read_line(&mut line)
            .context("cannot hear the process that keeps the device")?;
    }
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.to_string()),
        None => {
            let status = keeper.wait().context("cannot wait for the process that keeps the device")?;
            Err(Failure::new(format!("the process that keeps the device ended ({status})")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(places: &[(&str, &str)]) -> Option<String> {
        let report =
            |&(address, tls): &(&str, &str)| ListenReport { address: address.into(), tls: tls.into() };
        place_for_kernel(&places.iter().map(report).collect::<Vec<_>>()).map(|place| place.to_string())
    }

    #[test]
    fn the_kernel_connects_where_it_can_and_rather_by_a_unix_socket() {
        let (tcp, unix) = (("tcp:10.0.0.1:10809", "off"), ("unix:/a b/s", "allow"));
        assert_eq!(chosen(&[tcp, unix]).as_deref(), Some("unix:/a b/s"));
        assert_eq!(chosen(&[tcp]).as_deref(), Some("tcp:10.0.0.1:10809"));
        assert_eq!(chosen(&[("tcp:0.0.0.0:1", "off")]).as_deref(), Some("tcp:127.0.0.1:1"));
        assert_eq!(chosen(&[("tcp:[::]:1", "off")]).as_deref(), Some("tcp:[::1]:1"));
        assert_eq!(chosen(&[("unix:/s", "require"), tcp]).as_deref(), Some("tcp:10.0.0.1:10809"));
        assert_eq!(chosen(&[("unix:/s", "require")]), None);
        assert_eq!(chosen(&[]), Some(format!("unix:{}", default_listen().display())));
    }
}
