//! `raidctl attach`: an export as /dev/nbdX, and the process that keeps it.
//!
//! In the foreground this process is the keeper. Otherwise it starts itself once more as one, in a session of its own,
//! waits until the device can be used or the keeper says why not, and ends.

use crate::attachment::keeper::{Keeper, Settings};
use crate::attachment::record::{self, Record};
use crate::cli::AttachArgs;
use crate::control::socket::default_listen;
use crate::failure::{Context, Failure, Outcome};
use crate::listen;
use crate::nbd_netlink::Driver;
use crate::output;
use nbd_server::client::{Address, NbdUri};
use nbd_server::listen::ListenAddr;
use nbd_server::tls::TlsMode;
use sd_notify::NotifyState;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
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
    let mut uri = if NbdUri::is_meant_by(&args.export) { parse(&args.export)? } else { local(&args.export)? };
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

/// An export of the daemon that listens where daemons listen if nobody says otherwise.
fn local(name: &str) -> Outcome<NbdUri> {
    let socket = default_listen();
    if !socket.exists() {
        return Err(Failure::new(format!(
            "{name:?} is no NBD URI, and no daemon listens at {}: say nbd://HOST/EXPORT or \
             nbd+unix:///EXPORT?socket=PATH, as the daemon printed it when it started",
            socket.display()
        )));
    }
    parse(&listen::uri(&ListenAddr::Unix(socket), TlsMode::Off, name))
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
