//! TLS with the clients of libnbd and qemu: who gets in, that data is the same, and that certificates are read again.

use crate::{create, create_clean, text};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use tests::Need::Program;
use tests::{Disks, Finished, Server, program, raidctl, random_bytes, run, skipped, takeover};

#[path = "../../../nbd-server/src/tls/samples.rs"]
mod samples;
use samples::Authority;

/// A server at a TCP port where TLS is in this mode; the port.
pub(crate) fn serve(disks: &Disks, options: &[&str]) -> (Server, u16) {
    create_clean("5", disks);
    let pki = disks.dir().join("pki");
    let fixed = ["--listen", "tcp:127.0.0.1:0", "--tls-certificates", text(&pki)];
    let mut server = Server::start_with(disks.dir(), &[&fixed, options].concat(), disks.all());
    server.wait_log("://127.0.0.1:");
    let log = server.log();
    let port = log.split("://127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()).unwrap();
    (server, port.parse().unwrap())
}

pub(crate) fn certificates(disks: &Disks) -> Authority {
    let (pki, authority) = (disks.dir().join("pki"), Authority::new());
    std::fs::create_dir_all(&pki).unwrap();
    authority.trusted_in(&pki).server_in(&pki).client_in(&pki);
    authority
}

/// A folder that trusts `authority`, for clients.
fn folder(disks: &Disks, name: &str, authority: &Authority) -> PathBuf {
    let folder = disks.dir().join(name);
    std::fs::create_dir(&folder).unwrap();
    authority.trusted_in(&folder);
    folder
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
    let stranger = folder(&disks, "stranger", &authority);
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
    let pki = disks.dir().join("pki");
    let key = pki.join("server-key.pem");
    let good = std::fs::read(&key).unwrap();
    std::fs::write(&key, "no key").unwrap();
    server.signal(Signal::HUP);
    server.wait_log("CertificatesRefused");
    assert!(server.log().contains("server-key.pem"), "{}", server.log());
    nbdinfo(&uri(port, &pki)).ok();
    std::fs::write(&key, good).unwrap();

    // Clients trust only the new authority.
    let authority = Authority::new();
    let new = folder(&disks, "new", &authority);
    assert_ne!(nbdinfo(&uri(port, &new)).code, Some(0));
    authority.server_in(&pki);
    server.signal(Signal::HUP);
    server.wait_log("with the certificates of now");
    nbdinfo(&uri(port, &new)).ok();
    assert!(server.is_running());
}

#[test]
fn a_takeover_keeps_what_each_place_wants_and_brings_the_certificates_of_the_new_process() {
    if skipped(&[Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    certificates(&disks);
    let (server, port) = serve(&disks, &["--tls", "require"]);
    let authority = Authority::new();
    let new = folder(&disks, "new", &authority);
    authority.server_in(&new);
    // What was encrypted is not served in clear because a word was forgotten.
    let mut forgetful = takeover(disks.all());
    let refused = run(forgetful.env("RAIDCTL_CONTROL", disks.path("control.sock")));
    assert!(refused.code == Some(2) && refused.stderr.contains("--tls-certificates"), "{refused:#?}");
    nbdinfo(&uri(port, &disks.path("pki"))).ok();

    let mut command = takeover(disks.all());
    command.args(["--tls-certificates", text(&new)]);
    let mut heir = Server::spawn(disks.dir(), "heir.log", &mut command);
    heir.wait_log("nbds://127.0.0.1:");
    server.end().ok();
    nbdinfo(&uri(port, &new)).ok();
    assert_ne!(nbdinfo(&uri(port, &disks.path("pki"))).code, Some(0), "the certificates of before");
    assert_ne!(nbdinfo(&format!("nbd://127.0.0.1:{port}/vol0")).code, Some(0), "in clear");
    nbdinfo(&heir.uri("vol0")).ok();
    heir.stop();
}

#[test]
fn sockets_of_the_service_manager_have_the_policy_of_their_place() {
    if skipped(&[Program("systemd-socket-activate"), Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    certificates(&disks);
    create_clean("5", &disks);
    let (clear, sealed) = (disks.path("nbd.sock"), disks.path("sealed.sock"));
    let mut command = program("systemd-socket-activate");
    let control = format!("--setenv=RAIDCTL_CONTROL={}", text(&disks.path("control.sock")));
    command.args([&control, "-l", text(&clear), "-l", text(&sealed), text(tests::binary()), "serve"]);
    command.args(["--listen", &format!("unix:{},tls=require", text(&sealed))]);
    command.args(["--listen", &format!("unix:{}", text(&clear))]);
    command.args(["--tls-certificates", text(&disks.path("pki"))]).args(disks.all());
    let mut server = Server::spawn(disks.dir(), "serve.log", &mut command);
    server.wait_log("sealed.sock as 4");
    nbdinfo(&server.uri("vol0")).ok();
    let place = format!("unix:///vol0?socket={}", sealed.display());
    assert_ne!(nbdinfo(&format!("nbd+{place}")).code, Some(0), "in clear");
    let named = format!("nbds+{place}&tls-certificates={}", text(&disks.path("pki")));
    nbdinfo(&format!("{named}&tls-hostname=localhost")).ok();
    server.stop();
}

#[test]
fn an_array_of_a_file_and_an_encrypted_export_and_every_refusal_by_its_reason() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let (far, near) = (Disks::new(3, 32), Disks::new(1, 64));
    let authority = certificates(&far);
    let (remote, port) = serve(&far, &["--tls", "require", "--tls-verify-peer"]);
    let bare = folder(&far, "bare", &authority);
    let deceived = folder(&far, "deceived", &Authority::new());
    let good = uri(port, &far.path("pki"));
    for (uri, words) in [
        (uri(port, &bare), ["vol0", "wants a client-cert.pem"]),
        (uri(port, &deceived), ["vol0", "not from an authority in our ca-cert.pem"]),
        (uri(port, &far.path("nowhere")), ["nowhere/ca-cert.pem", "is not there"]),
        (
            format!("{good}&tls-hostname=elsewhere.example"),
            ["elsewhere.example", "use the name that is in it"],
        ),
        (format!("nbd://localhost:{port}/vol0"), ["vol0", "use nbds://"]),
    ] {
        create(&["--level", "1"], &[near.all()[0].clone(), uri.into()]).refused(&words);
    }
    let devices = [near.all()[0].clone(), good.into()];
    create(&["--level", "1", "--assume-clean"], &devices).ok();
    assert!(raidctl(["examine", text(&devices[1])]).ok().stdout.contains("vol0"));
    let server = Server::start(near.dir(), &devices);
    let words = ["-f", "raw", "-c", "write -P 7 0 16M", "-c", "flush", "-c", "read -P 7 0 16M"];
    let said = run(program("qemu-io").args(words).arg(server.uri("vol0"))).ok();
    assert!(!said.stdout.contains("failed"), "{}", said.stdout);
    assert_eq!(tests::member_state(&server.array("vol0"), &devices[1]), "in_sync");
    server.stop();
    remote.stop();
}
