//! TLS with the clients of libnbd and qemu: who gets in, that data is the same, and that certificates are read again.

use crate::{create_clean, text};
use rustix::process::Signal;
use std::path::Path;
use tests::Need::Program;
use tests::{Disks, Finished, Server, program, random_bytes, run, skipped};

#[path = "../../../nbd-server/src/tls/samples.rs"]
mod samples;
use samples::Authority;

/// A server at a TCP port where TLS is in this mode; the port.
fn serve(disks: &Disks, options: &[&str]) -> (Server, u16) {
    create_clean("5", disks);
    let pki = disks.dir().join("pki");
    let fixed = ["--listen", "tcp:127.0.0.1:0", "--tls-certificates", text(&pki)];
    let mut server = Server::start_with(disks.dir(), &[&fixed, options].concat(), disks.all());
    server.wait_log("://127.0.0.1:");
    let log = server.log();
    let port = log.split("://127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    (server, port.parse().unwrap())
}

fn certificates(disks: &Disks) -> Authority {
    let (pki, authority) = (disks.dir().join("pki"), Authority::new());
    std::fs::create_dir_all(&pki).unwrap();
    authority.trusted_in(&pki).server_in(&pki).client_in(&pki);
    authority
}

fn nbdinfo(uri: &str) -> Finished {
    run(program("nbdinfo").args(["--json", uri]))
}

fn uri(port: u16, pki: &Path) -> String {
    format!("nbds://localhost:{port}/vol0?tls-certificates={}", pki.display())
}

#[test]
fn libnbd_and_qemu_copy_through_tls_and_get_the_same_data() {
    if skipped(&[Program("nbdcopy"), Program("qemu-io"), Program("qemu-img"), Program("cmp")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    certificates(&disks);
    let (server, port) = serve(&disks, &["--tls", "require", "--tls-verify-peer"]);
    let pki = disks.dir().join("pki");
    let uri = uri(port, &pki);
    let info: serde_json::Value = serde_json::from_str(&nbdinfo(&uri).ok().stdout).unwrap();
    assert_eq!(info["TLS"], true, "{info:#}");

    let (sent, back) = (disks.dir().join("sent"), disks.dir().join("back"));
    std::fs::write(&sent, random_bytes(server.size_bytes("vol0") as usize, 7)).unwrap();
    run(program("nbdcopy").args([text(&sent), &uri])).ok();
    run(program("nbdcopy").args([&uri, text(&back)])).ok();
    assert!(std::fs::read(&sent).unwrap() == std::fs::read(&back).unwrap(), "the copy differs");

    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}", pki.display());
    let place = format!("driver=nbd,host=127.0.0.1,port={port},export=vol0,tls-creds=t");
    run(program("qemu-img").args(["info", "--object", &object, "--image-opts", &place])).ok();
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["--object", &object, "--image-opts", &place]);
    let commands = ["write -P 0x5a 100k 3M", "write -z 1M 64k", "read -P 0x5a 100k 512k", "read -P 0 1M 64k"];
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let done = run(&mut qemu_io).ok();
    assert!(!done.stdout.contains("failed") && !done.stderr.contains("failed"), "{done:#?}");
}

#[test]
fn where_tls_is_required_clients_in_clear_and_strangers_learn_nothing() {
    if skipped(&[Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    let authority = certificates(&disks);
    let (server, port) = serve(&disks, &["--tls", "require", "--tls-verify-peer"]);
    let clear = run(program("nbdinfo").args(["--list", &format!("nbd://localhost:{port}/")]));
    assert!(clear.code != Some(0) && !clear.stdout.contains("vol0"), "{clear:#?}");
    let stranger = disks.dir().join("stranger");
    std::fs::create_dir(&stranger).unwrap();
    authority.trusted_in(&stranger);
    assert_ne!(nbdinfo(&uri(port, &stranger)).code, Some(0), "without a certificate");
    Authority::new().client_in(&stranger);
    assert_ne!(nbdinfo(&uri(port, &stranger)).code, Some(0), "with a stranger's");
    nbdinfo(&uri(port, &disks.dir().join("pki"))).ok();
    // The unix socket is without TLS, unless it is said.
    nbdinfo(&server.uri("vol0")).ok();
}

#[test]
fn certificates_are_read_again_on_sighup_and_bad_ones_are_refused_loudly() {
    if skipped(&[Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    certificates(&disks);
    let (mut server, port) = serve(&disks, &["--tls", "allow"]);
    let (pki, new) = (disks.dir().join("pki"), disks.dir().join("new"));
    let key = pki.join("server-key.pem");
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "no key").unwrap();
    server.signal(Signal::HUP);
    server.wait_log("CertificatesRefused");
    assert!(server.log().contains("server-key.pem"), "{}", server.log());
    nbdinfo(&uri(port, &pki)).ok();
    std::fs::write(&key, good).unwrap();

    // Clients trust only the new authority.
    std::fs::create_dir(&new).unwrap();
    let authority = Authority::new();
    authority.trusted_in(&new);
    assert_ne!(nbdinfo(&uri(port, &new)).code, Some(0));
    authority.server_in(&pki);
    server.signal(Signal::HUP);
    server.wait_log("with the certificates of now");
    nbdinfo(&uri(port, &new)).ok();
    assert!(server.is_running());
}
