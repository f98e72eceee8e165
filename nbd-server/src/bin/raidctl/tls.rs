//! TLS of the daemon: which places use it, and the certificates, which can be read again.

use crate::failure::{Failure, Outcome};
use clap::Args;
use nbd_server::listen::{ListenAddr, Listener};
use nbd_server::tls::{ClientCerts, ServerTls, TlsMode};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The options of `serve` about TLS.
#[derive(Args, Debug, Clone, Default)]
pub struct TlsArgs {
    /// Whether clients at TCP addresses use TLS: off, allow or require; for one address alone, and for a unix socket,
    /// say --listen ADDR,tls=MODE [default: off]
    #[arg(long, value_name = "MODE")]
    pub tls: Option<TlsMode>,
    /// Folder with server-cert.pem, server-key.pem and ca-cert.pem; SIGHUP reads them again
    #[arg(long, value_name = "DIR")]
    pub tls_certificates: Option<PathBuf>,
    /// Refuse clients without a certificate that ca-cert.pem vouches for
    #[arg(long)]
    pub tls_verify_peer: bool,
}

/// The table `[tls]` of the configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct TlsSection {
    mode: Option<String>,
    certificates: Option<PathBuf>,
    verify_peer: bool,
}

/// What was decided about TLS, and the certificates in use.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    of_tcp: Option<TlsMode>,
    of_place: Vec<(ListenAddr, TlsMode)>,
    folder: Option<PathBuf>,
    clients: ClientCerts,
    certificates: Option<ServerTls>,
}

impl Tls {
    /// The options, which win over the file's keys, and what was said of single places. The
    /// certificates are not yet read.
    pub fn new(args: &TlsArgs, file: &TlsSection, of_place: Vec<(ListenAddr, TlsMode)>) -> Outcome<Tls> {
        let of_file = file.mode.as_deref().map(str::parse).transpose().map_err(Failure::usage)?;
        let folder = args.tls_certificates.as_ref().or(file.certificates.as_ref());
        let must_show = args.tls_verify_peer || file.verify_peer;
        Ok(Tls {
            of_tcp: args.tls.or(of_file),
            of_place,
            folder: folder.map(|folder| crate::devices::absolute(folder)).transpose()?,
            clients: if must_show { ClientCerts::Require } else { ClientCerts::No },
            certificates: None,
        })
    }

    /// What clients do at `place`.
    pub fn mode_at(&self, place: &ListenAddr) -> TlsMode {
        let said = self.of_place.iter().find(|(of, _)| of == place).map(|(_, mode)| *mode);
        let usual = match place {
            ListenAddr::Tcp(_) => self.of_tcp.unwrap_or_default(),
            ListenAddr::Unix(_) => TlsMode::Off,
        };
        said.unwrap_or(usual)
    }

    /// Takes on what the daemon before did, where nothing is said: a word that is forgotten opens nothing.
    pub fn inherit(&mut self, modes: &BTreeMap<String, String>) -> Outcome<()> {
        for (place, mode) in modes {
            let place: ListenAddr = place.parse().map_err(Failure::new)?;
            let mode = mode.parse().map_err(Failure::new)?;
            let is_said = self.of_place.iter().any(|(of, _)| *of == place)
                || (matches!(place, ListenAddr::Tcp(_)) && self.of_tcp.is_some());
            if !is_said {
                self.of_place.push((place, mode));
            }
        }
        Ok(())
    }

    /// A socket with what clients do there.
    pub fn over(&self, socket: Listener) -> Listener {
        let mode = self.mode_at(socket.addr());
        socket.with_tls(mode)
    }

    /// Refuses what cannot be meant: TLS without certificates, and certificates without TLS.
    pub fn check<'a>(&self, places: impl Iterator<Item = (&'a ListenAddr, TlsMode)>) -> Outcome<()> {
        let used: Vec<_> = places.filter(|(_, mode)| *mode != TlsMode::Off).collect();
        let must_show = self.clients == ClientCerts::Require;
        let open = used.iter().find(|(_, mode)| *mode == TlsMode::Allow);
        if let Some((place, _)) = open.filter(|_| must_show) {
            return Err(Failure::usage(format!(
                "{place} also lets clients in without TLS, and so without a certificate, which --tls-verify-peer is to \
                 refuse: say require for it, not allow"
            )));
        }
        let used = used.first();
        match (used, &self.certificates) {
            (Some((place, _)), None) => Err(Failure::usage(format!(
                "{place} is to use TLS, and there are no certificates: say --tls-certificates DIR"
            ))),
            (None, _)
                if must_show
                    || self.certificates.is_some()
                    || self.of_tcp.is_some_and(|mode| mode != TlsMode::Off) =>
            {
                Err(Failure::usage(
                    "TLS is prepared, and no address uses it: say --tls require or allow with a TCP address, or \
                     --listen unix:PATH,tls=require",
                ))
            }
            _ => Ok(()),
        }
    }

    /// The certificates in use.
    pub fn certificates(&self) -> Option<ServerTls> {
        self.certificates.clone()
    }

    /// Reads the certificates, as they are now. If they are not good, the old ones stay.
    pub fn reread(&mut self) -> Outcome<Option<ServerTls>> {
        self.certificates = self.read()?;
        Ok(self.certificates())
    }

    fn read(&self) -> Outcome<Option<ServerTls>> {
        let read = self.folder.as_ref().map(|folder| ServerTls::from_dir(folder, self.clients));
        read.transpose().map_err(Failure::new)
    }
}

/// The modes of `listen`, in words; places without TLS are left out.
pub fn modes(listen: &[Listener]) -> BTreeMap<String, String> {
    let used = listen.iter().filter(|listener| listener.tls() != TlsMode::Off);
    used.map(|listener| (listener.addr().to_string(), listener.tls().to_string())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(words: &str, file: &str) -> Outcome<Tls> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            tls: TlsArgs,
        }
        let line = <Line as clap::Parser>::try_parse_from(["x"].into_iter().chain(words.split_whitespace()));
        let place = "tcp:127.0.0.1:7".parse().unwrap();
        Tls::new(&line.unwrap().tls, &toml::from_str(file).unwrap(), vec![(place, TlsMode::Allow)])
    }

    #[test]
    fn a_place_has_its_own_mode_or_that_of_its_kind() {
        for (words, file, usual) in [
            ("", "", TlsMode::Off),
            ("--tls=require", "", TlsMode::Require),
            ("", "mode = 'require'", TlsMode::Require),
            ("--tls=off", "mode = 'require'", TlsMode::Off),
        ] {
            let tls = tls(words, file).unwrap();
            let mode_at = |place: &str| tls.mode_at(&place.parse().unwrap());
            assert_eq!(mode_at("tcp:127.0.0.1:8"), usual);
            assert_eq!((mode_at("tcp:127.0.0.1:7"), mode_at("unix:/x")), (TlsMode::Allow, TlsMode::Off));
        }
    }

    #[test]
    fn where_nothing_is_said_a_place_keeps_the_mode_it_had() {
        let places = ["tcp:127.0.0.1:7", "tcp:127.0.0.1:8", "unix:/x"];
        let before = places.map(|place| (place.to_owned(), "require".to_owned())).into();
        for (words, of_tcp) in [("", TlsMode::Require), ("--tls=off", TlsMode::Off)] {
            let mut tls = tls(words, "").unwrap();
            tls.inherit(&before).unwrap();
            let modes = places.map(|place| tls.mode_at(&place.parse().unwrap()));
            assert_eq!(modes, [TlsMode::Allow, of_tcp, TlsMode::Require]);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let place = "tcp:127.0.0.1:9".parse().unwrap();
        let listen = |mode| std::iter::once((&place, mode));
        let (bare, wanted) = (tls("", "").unwrap(), tls("--tls=require", "").unwrap());
        assert!(bare.check(listen(TlsMode::Off)).is_ok());
        assert!(bare.check(listen(TlsMode::Allow)).unwrap_err().to_string().contains("--tls-certificates"));
        assert!(wanted.check(listen(TlsMode::Off)).unwrap_err().to_string().contains("no address uses it"));
        // Both used to be taken without a word, and clients without a certificate let in.
        let verifies = tls("--tls-verify-peer", "").unwrap();
        assert!(verifies.check(listen(TlsMode::Off)).unwrap_err().to_string().contains("no address uses it"));
        assert!(verifies.check(listen(TlsMode::Allow)).unwrap_err().to_string().contains("say require"));
        assert_eq!(tls("", "mode = 'maybe'").unwrap_err().exit_status(), 2);
        let missing = tls("--tls-certificates /nonexistent", "").unwrap().reread().unwrap_err();
        assert!(missing.to_string().contains("/nonexistent/server-cert.pem is not there"), "{missing}");
    }
}
