//! The configuration of `serve`: the file, and the command line that wins over it.

use crate::cli::ServeArgs;
use crate::failure::{Context, Failure, Outcome};
use crate::listen;
use nbd_server::listen::ListenAddr;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Largest configuration file read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What `serve` is to do.
#[derive(Debug)]
pub struct ServeConfig {
    /// Where clients connect; empty means the default place.
    pub listen: Vec<ListenAddr>,
    /// The control socket, if not the default one.
    pub control: Option<PathBuf>,
    /// What to look for arrays on; absolute, symlinks kept, in the order given.
    pub devices: Vec<PathBuf>,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    listen: Vec<String>,
    control: Option<PathBuf>,
    devices: Vec<PathBuf>,
}

impl ServeConfig {
    /// Reads the file, if there is one, and lets the command line win over each of its keys.
    pub fn load(args: &ServeArgs) -> Outcome<ServeConfig> {
        let file = match &args.config {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        let listen = if args.listen.is_empty() { &file.listen } else { &args.listen };
        let devices = if args.devices.is_empty() { &file.devices } else { &args.devices };
        if devices.is_empty() {
            return Err(Failure::usage(
                "no devices to serve: name them on the command line or in the configuration file (devices = [...])",
            ));
        }
        Ok(ServeConfig {
            listen: listen.iter().map(|text| listen::parse(text)).collect::<Outcome<_>>()?,
            control: args.control.control.clone().or(file.control),
            devices: devices.iter().map(|path| absolute(path)).collect::<Outcome<_>>()?,
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

/// The path from the root on, symlinks kept: /dev/disk/by-id/... says more than /dev/sdb.
pub fn absolute(path: &Path) -> Outcome<PathBuf> {
    std::path::absolute(path).context(path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

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

    #[test]
    fn to_serve_nothing_is_wrong_usage() {
        assert_eq!(load(&[]).unwrap_err().exit_status(), 2);
    }
}
