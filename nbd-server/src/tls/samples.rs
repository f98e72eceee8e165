//! Folders of certificates for tests, made on the spot: an authority, and what it vouches for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::path::Path;

/// An authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// A new one, that nobody trusts yet.
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "an authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    /// Makes `dir` trust it.
    pub(crate) fn trusted_in(&self, dir: &Path) -> &Authority {
        std::fs::write(dir.join("ca-cert.pem"), &self.certificate).unwrap();
        self
    }

    /// Puts a server's certificate and key for `localhost` and 127.0.0.1 into `dir`.
    pub(crate) fn server_in(&self, dir: &Path) -> &Authority {
        self.sign(dir, "server", ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Puts a client's certificate and key into `dir`.
    pub(crate) fn client_in(&self, dir: &Path) -> &Authority {
        self.sign(dir, "client", ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn sign(&self, dir: &Path, whose: &str, usage: ExtendedKeyUsagePurpose) -> &Authority {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, whose);
        params.extended_key_usages.push(usage);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join(format!("{whose}-cert.pem")), certificate.pem()).unwrap();
        let file = dir.join(format!("{whose}-key.pem"));
        std::fs::write(&file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        self
    }
}
