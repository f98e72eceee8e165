//! What is wrong with a folder of certificates is said by file.

use super::*;
use crate::tls::samples::Authority;
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn message<T>(result: Result<T, CertificateError>) -> String {
    result.err().unwrap().to_string()
}

#[test]
fn a_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let server = || ServerTls::from_dir(dir.path(), ClientCerts::Require);
    assert!(message(server()).contains("server-cert.pem is not there"));
    Authority::new().server_in(dir.path());
    assert!(message(server()).contains("ca-cert.pem is not there"));
    assert!(ServerTls::from_dir(dir.path(), ClientCerts::No).is_ok());
    fs::remove_file(dir.path().join("server-key.pem")).unwrap();
    assert!(message(server()).contains("server-key.pem is not there"));
    assert!(message(ClientTls::from_dir(Some(dir.path()))).contains("ca-cert.pem is not there"));
}

#[test]
fn a_file_that_is_something_else_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.trusted_in(dir.path()).server_in(dir.path());
    let server = || ServerTls::from_dir(dir.path(), ClientCerts::Optional);
    for rubbish in [
        "",
        "hello\n",
        "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    ] {
        for file in ["server-cert.pem", "server-key.pem", "ca-cert.pem"] {
            let file = dir.path().join(file);
            let good = fs::read(&file).unwrap();
            fs::write(&file, rubbish).unwrap();
            let message = message(server());
            assert!(message.starts_with(&file.display().to_string()), "{message}");
            fs::write(&file, good).unwrap();
        }
    }
    // Good PEM around something that is no certificate.
    fs::write(
        dir.path().join("ca-cert.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    assert!(message(server()).contains("authority"));
    fs::File::create(dir.path().join("server-key.pem")).unwrap().set_len(1 << 30).unwrap();
    assert!(message(server()).contains("too large"));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Authority::new().server_in(dir.path()).server_in(other.path());
    fs::copy(other.path().join("server-key.pem"), dir.path().join("server-key.pem")).unwrap();
    let error = ServerTls::from_dir(dir.path(), ClientCerts::No).unwrap_err();
    assert!(matches!(error, CertificateError::NoPair { .. }), "{error}");
}

#[test]
fn half_a_client_certificate_is_not_taken_for_none() {
    let dir = tempfile::tempdir().unwrap();
    Authority::new().trusted_in(dir.path()).client_in(dir.path());
    assert!(ClientTls::from_dir(Some(dir.path())).is_ok());
    fs::remove_file(dir.path().join("client-key.pem")).unwrap();
    assert!(message(ClientTls::from_dir(Some(dir.path()))).contains("client-key.pem is not there"));
}

#[test]
fn a_key_that_everybody_can_read_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    Authority::new().server_in(dir.path());
    let key = dir.path().join("server-key.pem");
    assert_eq!(pem::exposure(&key), None);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let warning = pem::exposure(&key).unwrap();
    assert!(warning.contains("server-key.pem") && warning.contains("chmod 600"), "{warning}");
}

#[test]
fn a_name_that_no_certificate_can_be_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    Authority::new().trusted_in(dir.path());
    let client = ClientTls::from_dir(Some(dir.path())).unwrap();
    assert!(matches!(client.channel("a b"), Err(TlsError::BadName(_))));
    for name in ["localhost", "127.0.0.1", "::1"] {
        assert!(client.channel(name).is_ok(), "{name}");
    }
}
