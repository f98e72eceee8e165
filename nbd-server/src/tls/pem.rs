//! Certificates, keys and revocation lists in PEM files: what is wrong with a file is said by its name.

use super::CertificateError;
use crate::limits::MAX_CERTIFICATE_FILE_BYTES;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// A chain of certificates, the owner's first.
pub(super) fn chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    all(file, "a certificate")
}

/// The authorities that are trusted.
pub(super) fn authorities(file: &Path) -> Result<RootCertStore, CertificateError> {
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(chain(file)?);
    match good {
        0 => Err(malformed(file, "none of its certificates can be used as an authority")),
        _ => Ok(roots),
    }
}

/// Lists of revoked certificates; none if the file is not there, for most authorities have none.
pub(super) fn revoked(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CertificateError> {
    if file.exists() { all(file, "a revocation list") } else { Ok(Vec::new()) }
}

/// A private key.
pub(super) fn key(file: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let text = read(file)?;
    if let Some(warning) = exposure(file) {
        tracing::warn!("{warning}");
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        malformed(file, &format!("there is no private key without a password in it ({error})"))
    })
}

/// A warning if others than the owner and the group may read a key.
pub(super) fn exposure(file: &Path) -> Option<String> {
    let mode = std::fs::metadata(file).ok()?.permissions().mode();
    let name = file.display();
    (mode & 0o007 != 0)
        .then(|| format!("{name}: every user of this machine can read this private key: chmod 600 {name}"))
}

fn all<T: PemObject>(file: &Path, what: &str) -> Result<Vec<T>, CertificateError> {
    let text = read(file)?;
    let items = T::pem_slice_iter(&text).collect::<Result<Vec<T>, _>>();
    let items = items.map_err(|error| malformed(file, &format!("it is not PEM ({error})")))?;
    if items.is_empty() {
        return Err(malformed(file, &format!("there is not {what} in PEM form in it")));
    }
    Ok(items)
}

/// The whole file, if it is not larger than any such file is.
fn read(file: &Path) -> Result<Vec<u8>, CertificateError> {
    let mut text = Vec::new();
    let opened = std::fs::File::open(file);
    let read = opened.and_then(|opened| opened.take(MAX_CERTIFICATE_FILE_BYTES + 1).read_to_end(&mut text));
    match read {
        Ok(_) if text.len() as u64 > MAX_CERTIFICATE_FILE_BYTES => {
            Err(malformed(file, "it is far too large"))
        }
        Ok(_) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(CertificateError::Missing { file: file.to_owned() })
        }
        Err(source) => Err(CertificateError::Unreadable { file: file.to_owned(), source }),
    }
}

fn malformed(file: &Path, why: &str) -> CertificateError {
    CertificateError::Malformed { file: file.to_owned(), why: why.to_owned() }
}
