//! The certificates of one side, from a folder in the layout that nbdkit and qemu use.
//!
//! | file | server | client |
//! |---|---|---|
//! | `server-cert.pem`, `server-key.pem` | its certificate, with the chain up to the authority, and its key | |
//! | `client-cert.pem`, `client-key.pem` | | the same, if it has one |
//! | `ca-cert.pem` | who vouches for clients, if they are asked | who vouches for servers |
//! | `ca-crl.pem`, if there is one | certificates of clients that were revoked | certificates of servers that were revoked |
//!
//! What was read does not change any more: reading again makes a new value, and whoever has the old one keeps it.

use super::channel::Channel;
use super::{TlsError, pem};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Whether clients have to show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCerts {
    /// They are not asked.
    #[default]
    No,
    /// They are asked; one that is shown must be right.
    Optional,
    /// Without one that `ca-cert.pem` vouches for they are refused.
    Require,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file is missing.
    #[error("{} is not there: put it there, or name another folder of certificates", .file.display())]
    Missing {
        /// Which.
        file: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}: give the server's user access to it", .file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what its name says.
    #[error("{}: {why}", .file.display())]
    Malformed {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key are no pair.
    #[error("{} and {} do not belong together: put both of one pair there", .certificate.display(), .key.display())]
    NoPair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// No authority to trust was found.
    #[error("no list of trusted authorities on this machine: name a folder with a ca-cert.pem")]
    NoAuthorities,
}

/// What a server needs for TLS. Clones share it.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
}

impl ServerTls {
    /// From `server-cert.pem` and `server-key.pem` in `dir`; with client certificates also from `ca-cert.pem`.
    ///
    /// A key that every user can read is logged as a warning.
    pub fn from_dir(dir: &Path, clients: ClientCerts) -> Result<ServerTls, CertificateError> {
        let (certificate, key) = (dir.join("server-cert.pem"), dir.join("server-key.pem"));
        let (chain, secret) = (pem::chain(&certificate)?, pem::key(&key)?);
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| unusable(&certificate, &error))?;
        let builder = match clients {
            ClientCerts::No => builder.with_no_client_auth(),
            asked => builder.with_client_cert_verifier(client_verifier(dir, asked == ClientCerts::Require)?),
        };
        let pair = builder.with_single_cert(chain, secret);
        let mut config = pair.map_err(|error| mismatch(&certificate, &key, &error))?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(ServerTls { config: Arc::new(config) })
    }

    /// The server's end of a new connection.
    pub fn channel(&self) -> Result<Channel, TlsError> {
        let connection = rustls::ServerConnection::new(Arc::clone(&self.config))?;
        Ok(Channel::new(connection.into()))
    }
}

/// What a client needs for TLS. Clones share it.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
}

impl ClientTls {
    /// From `ca-cert.pem` in `dir`, and `client-cert.pem` and `client-key.pem` if they are there. Without a folder:
    /// from the one where libnbd looks, or else the authorities that this machine trusts and no own certificate.
    pub fn from_dir(dir: Option<&Path>) -> Result<ClientTls, CertificateError> {
        let found = dir.map(Path::to_owned).or_else(usual_dir);
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let authorities = match &found {
            Some(dir) => dir.join("ca-cert.pem"),
            None => system_authorities().ok_or(CertificateError::NoAuthorities)?,
        };
        let builder = builder.map_err(|error| unusable(&authorities, &error))?;
        let roots = pem::authorities(&authorities)?;
        let crls = found.as_ref().map_or(Ok(Vec::new()), |dir| pem::revoked(&dir.join("ca-crl.pem")))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots.into(), provider())
            .with_crls(crls)
            .only_check_end_entity_revocation()
            .build()
            .map_err(|error| unusable(&authorities, &error))?;
        let builder = builder.with_webpki_verifier(verifier);
        let mut config = match found.map(|dir| (dir.join("client-cert.pem"), dir.join("client-key.pem"))) {
            Some((certificate, key)) if certificate.exists() || key.exists() => builder
                .with_client_auth_cert(pem::chain(&certificate)?, pem::key(&key)?)
                .map_err(|error| mismatch(&certificate, &key, &error))?,
            _ => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(ClientTls { config: Arc::new(config) })
    }

    /// The client's end of a new connection to the server of this name (a host name or an address), which its
    /// certificate must be for.
    pub fn channel(&self, server: &str) -> Result<Channel, TlsError> {
        let name =
            ServerName::try_from(server.to_owned()).map_err(|_| TlsError::BadName(server.to_owned()))?;
        let connection = rustls::ClientConnection::new(Arc::clone(&self.config), name)?;
        Ok(Channel::new(connection.into()))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn client_verifier(dir: &Path, required: bool) -> Result<Arc<dyn ClientCertVerifier>, CertificateError> {
    let file = dir.join("ca-cert.pem");
    let roots: Arc<RootCertStore> = pem::authorities(&file)?.into();
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .with_crls(pem::revoked(&dir.join("ca-crl.pem"))?)
        .only_check_end_entity_revocation();
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| unusable(&file, &error))
}

/// Where libnbd looks when it is not told where.
fn usual_dir() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let own = home.iter().flat_map(|home| [home.join(".pki/libnbd"), home.join(".config/pki/libnbd")]);
    let mut dirs = own.chain([PathBuf::from("/etc/pki/libnbd")]);
    dirs.find(|dir| dir.join("ca-cert.pem").exists())
}

/// The list of authorities that this machine trusts, where distributions put it.
fn system_authorities() -> Option<PathBuf> {
    let usual = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    usual.into_iter().map(PathBuf::from).find(|file| file.exists())
}

fn mismatch(certificate: &Path, key: &Path, error: &rustls::Error) -> CertificateError {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            CertificateError::NoPair { certificate: certificate.to_owned(), key: key.to_owned() }
        }
        error => unusable(certificate, error),
    }
}

fn unusable(file: &Path, error: &dyn std::fmt::Display) -> CertificateError {
    CertificateError::Malformed { file: file.to_owned(), why: format!("it cannot be used: {error}") }
}

#[cfg(test)]
mod tests;
