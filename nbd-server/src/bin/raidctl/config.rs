//! The configuration of `serve`: the file, and the command line that wins over it.

use crate::allow::Names;
use crate::cli::ServeArgs;
use crate::devices::absolute;
use crate::failure::{Context, Failure, Outcome};
use crate::listen;
use crate::policy::{ExportSection, LimitsSection, Policy};
use crate::tls::{Tls, TlsSection};
use nbd_server::listen::ListenAddr;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest configuration file read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What `serve` is to do.
#[derive(Debug)]
pub struct ServeConfig {
    /// Where clients connect; empty means the default place.
    pub listen: Vec<ListenAddr>,
    /// Whether they use TLS there.
    pub tls: Tls,
    /// The control socket, if not the default one.
    pub control: Option<PathBuf>,
    /// What to look for arrays on; absolute, symlinks kept, in the order given.
    pub devices: Vec<PathBuf>,
    /// Who may use what.
    pub policy: Policy,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Vec<String>,
    tls: TlsSection,
    control: Option<PathBuf>,
    devices: Vec<PathBuf>,
    limits: LimitsSection,
    export: BTreeMap<String, ExportSection>,
}

impl ServeConfig {
    /// Reads the file, if there is one, and lets the command line win over each of its keys.
    pub fn load(args: &ServeArgs) -> Outcome<ServeConfig> {
        let file = match &args.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let in_file = |failure: Failure| match &args.config {
            Some(path) => {
                Failure::new(format!("the configuration file {} is wrong: {failure}", path.display()))
            }
            None => failure,
        };
        let policy =
            Policy::new(&file.limits, &file.export, &args.read_only, &Names::read()).map_err(in_file)?;
        let listen = if args.listen.is_empty() { &file.listen } else { &args.listen };
        let devices = if args.devices.is_empty() { &file.devices } else { &args.devices };
        if devices.is_empty() {
            return Err(Failure::usage(
                "no devices to serve: name them on the command line or in the configuration file (devices = [...])",
            ));
        }
        let listen = listen.iter().map(|text| listen::parse(text)).collect::<Outcome<Vec<_>>>()?;
        let of_place = listen.iter().filter_map(|spec| Some((spec.addr.clone(), spec.tls?))).collect();
        Ok(ServeConfig {
            listen: listen.into_iter().map(|spec| spec.addr).collect(),
            tls: Tls::new(&args.tls, &file.tls, of_place)?,
            control: args.control.control.clone().or(file.control),
            devices: devices.iter().map(|path| absolute(path)).collect::<Outcome<_>>()?,
            policy,
        })
    }
}

impl File {
    fn read(path: &Path) -> Outcome<File> {
        let name = path.display();
        let len =
            std::fs::metadata(path).context(format!("cannot read the configuration file {name}"))?.len();
        if len > MAX_CONFIG_BYTES {
            return Err(Failure::new(format!(
                "the configuration file {name} is larger than 1 MiB: is it the right one?"
            )));
        }
        let text =
            std::fs::read_to_string(path).context(format!("cannot read the configuration file {name}"))?;
        toml::from_str(&text)
            .map_err(|error| Failure::new(format!("the configuration file {name} is wrong: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use nbd_server::access::{Peer, Rights};

    fn load(words: &[&str]) -> Outcome<ServeConfig> {
        let words = ["raidctl", "serve"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Serve(args) => ServeConfig::load(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file_key_by_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("raidctl.toml");
        std::fs::write(
            &file,
            "listen = ['tcp:127.0.0.1:7']\ncontrol = '/c'\ndevices = ['/dev/a', '/dev/b']\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let config = load(&["--config", file, "--listen", "unix:/x"]).unwrap();
        assert_eq!(config.listen, [ListenAddr::Unix("/x".into())]);
        assert_eq!(config.devices, [PathBuf::from("/dev/a"), PathBuf::from("/dev/b")]);
        assert_eq!(config.control, Some("/c".into()));
        let config = load(&["--config", file, "--control", "/d", "/dev/z"]).unwrap();
        assert_eq!(config.listen, [ListenAddr::Tcp("127.0.0.1:7".parse().unwrap())]);
        assert_eq!((config.devices, config.control), (vec!["/dev/z".into()], Some("/d".into())));
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("raidctl.toml");
        std::fs::write(&file, "device = ['/dev/a']\n").unwrap();
        let error = load(&["--config", file.to_str().unwrap()]).unwrap_err();
        assert!(error.sentence().unwrap().contains("device"), "{error:?}");
        assert_eq!(error.exit_status(), 1);
    }

    /// Reads a file of these lines on top of a device.
    fn policy(lines: &str, words: &[&str]) -> Outcome<Policy> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("raidctl.toml");
        std::fs::write(&file, format!("devices = ['/dev/a']\n{lines}")).unwrap();
        let words = [&["--config", file.to_str().unwrap()], words].concat();
        load(&words).map(|config| config.policy)
    }

    #[test]
    fn exports_and_limits_are_understood() {
        let lines = "[limits]\nconnections = 100\nconnections_per_client = 5\nrequests_per_client = 7\n\
                     bytes_per_client = '8M'\nhandshake_timeout = '5s'\nidle_timeout = '1h 30m'\n\
                     stall_timeout = '10s'\ndead_peer_timeout = '1m'\n\
                     [export.vol0]\ndescription = 'of Ann'\nallow = ['10.0.0.0/8', 'unix:user=0:ro']\n\
                     [export.vol1]\nread_only = true\n[export.\"odd name\"]\nallow = []\n";
        let policy = policy(lines, &["--read-only=vol2"]).unwrap();
        let reactor = policy.reactor();
        assert_eq!((reactor.max_connections, reactor.stall_timeout.as_secs()), (100, 10));
        let clients = reactor.clients;
        assert_eq!((clients.connections, clients.requests, clients.bytes), (5, 7, 8 << 20));
        assert_eq!((clients.handshake_timeout.as_secs(), clients.dead_peer_timeout.as_secs()), (5, 60));
        assert_eq!(clients.idle_timeout.map(|time| time.as_secs()), Some(5400));
        assert_eq!(policy.description_of("vol0"), "of Ann");
        let root = Peer::Unix { uid: 0, gid: 0, pid: 1 };
        let rights =
            ["vol0", "vol1", "vol2", "odd name", "other"].map(|name| policy.access_of(name).rights(&root));
        let (read, write) = (Some(Rights::ReadOnly), Some(Rights::ReadWrite));
        assert_eq!(rights, [read, read, read, None, write]);
        assert_eq!(policy.names_beside(&["vol0".into(), "vol2".into()]), ["odd name", "vol1"]);
    }

    #[test]
    fn the_command_line_makes_everything_read_only() {
        let words = ["--read-only", "/dev/a"];
        let config = load(&words).unwrap();
        assert_eq!(config.devices, [PathBuf::from("/dev/a")]);
        let tcp = Peer::Tcp("192.0.2.1:1".parse().unwrap());
        assert_eq!(config.policy.access_of("any").rights(&tcp), Some(Rights::ReadOnly));
        assert_eq!(load(&["/dev/a"]).unwrap().policy.access_of("any").rights(&tcp), Some(Rights::ReadWrite));
    }

    #[test]
    fn what_is_wrong_in_the_file_is_named() {
        let cases = [
            ("[export.vol0]\nreadonly = true", "readonly"),
            ("[limits]\nconnection = 3", "connection"),
            ("[export.vol0]\nallow = ['10.0.0.0/40']", "export.vol0"),
            ("[export.vol0]\nallow = ['unix:user=no such']", "no such"),
            ("[limits]\nidle_timeout = 'soon'", "limits.idle_timeout"),
            ("[limits]\nbytes_per_client = '1X'", "limits.bytes_per_client"),
            ("[limits]\nconnections = 0", "connections must be 1 to"),
            ("[limits]\nhandshake_timeout = '0s'", "timeout"),
        ];
        for (lines, named) in cases {
            let error = policy(lines, &[]).unwrap_err();
            let sentence = error.sentence().unwrap();
            assert!(sentence.contains(named) && sentence.contains("raidctl.toml"), "{lines}: {sentence}");
            assert_eq!(error.exit_status(), 1);
        }
    }

    #[test]
    fn to_serve_nothing_is_wrong_usage() {
        assert_eq!(load(&[]).unwrap_err().exit_status(), 2);
    }
}
