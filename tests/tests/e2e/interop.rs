//! Programs that are client and something else at once: qemu through TLS, nbdkit's nbd plugin, fio, and qemu-nbd as the
//! server of a member.

use crate::tls::{certificates, serve};
use crate::{create, create_clean, text};
use std::path::PathBuf;
use tests::Need::Program;
use tests::{Disks, Server, program, random_bytes, run, skipped};

#[test]
fn qemu_lists_converts_and_compares_through_tls() {
    if skipped(&[Program("qemu-img"), Program("qemu-nbd")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    certificates(&disks);
    let (server, port) = serve(&disks, &["--tls", "require", "--tls-verify-peer"]);
    let object = format!("tls-creds-x509,id=t,endpoint=client,dir={}", text(&disks.path("pki")));
    let place = format!("driver=nbd,host=127.0.0.1,port={port},export=vol0,tls-creds=t");
    let mut list = program("qemu-nbd");
    list.args(["--list", "--bind", "127.0.0.1", "--port", &port.to_string(), "--object", &object]);
    let listed = run(list.args(["--tls-creds", "t"])).ok().stdout;
    assert!(listed.contains("export: 'vol0'") && listed.contains("base:allocation"), "{listed}");

    let (sent, back) = (disks.path("sent"), disks.path("back"));
    let mut content = random_bytes(usize::try_from(server.size_bytes("vol0")).unwrap(), 3);
    content[7 << 20..20 << 20].fill(0);
    std::fs::write(&sent, &content).unwrap();
    let qemu_img = |words: &[&str]| run(program("qemu-img").args(words)).ok();
    let (source, target) = (format!("driver=raw,file.filename={}", text(&sent)), place.as_str());
    qemu_img(&["convert", "-n", "--object", &object, "--image-opts", "--target-image-opts", &source, target]);
    qemu_img(&["compare", "--object", &object, "--image-opts", &source, target]);
    qemu_img(&["convert", "--object", &object, "--image-opts", target, "-O", "raw", text(&back)]);
    assert!(std::fs::read(&back).unwrap() == content, "the copy differs");
    server.stop();
}

// Not through TLS: fio's engine does not let libnbd read the files that a URI names.
#[test]
fn fio_finds_what_it_wrote_over_four_connections() {
    if skipped(&[Program("fio")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let mut fio = program("fio");
    fio.args(["--name=load", "--ioengine=nbd", &format!("--uri={}", server.uri("vol0")), "--rw=randrw"]);
    fio.args(["--bs=512-64k", "--iodepth=16", "--numjobs=4", "--size=12m", "--offset_increment=24m"]);
    fio.args(["--fsync=64", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256", "--minimal"]);
    let done = run(fio.current_dir(disks.dir())).ok();
    assert!(!done.stderr.contains("verify"), "{done:#?}");
    server.stop();
}

#[test]
fn nbdkit_passes_everything_through_its_nbd_plugin() {
    if skipped(&[Program("nbdkit"), Program("nbdcopy"), Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 32);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let (source, copy) = (disks.path("source"), disks.path("copy"));
    let mut content = random_bytes(usize::try_from(server.size_bytes("vol0")).unwrap(), 9);
    content[10 << 20..30 << 20].fill(0);
    std::fs::write(&source, &content).unwrap();
    let through = |script: &str| {
        let mut nbdkit = program("nbdkit");
        nbdkit.args(["-f", "-U", "-", "nbd", &format!("uri={}", server.uri("vol0"))]);
        run(nbdkit.arg("--run").arg(format!("set -e; {script}"))).ok().stdout
    };
    through(&format!("nbdcopy --flush '{}' \"$uri\"; nbdcopy \"$uri\" '{}'", text(&source), text(&copy)));
    assert!(std::fs::read(&copy).unwrap() == content, "the copy differs");
    let info: serde_json::Value = serde_json::from_str(&through("nbdinfo --json \"$uri\"")).unwrap();
    let export = &info["exports"][0];
    for ability in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_fast_zero"] {
        assert_eq!(export[ability], true, "{ability} of {export:#}");
    }
    let map = through("nbdinfo --map --totals \"$uri\"");
    assert!(map.contains("hole"), "{map}");
    server.stop();
}

#[test]
fn an_export_of_qemu_nbd_over_tcp_is_a_member() {
    if skipped(&[Program("qemu-nbd"), Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(2, 64);
    let (member, pid) = qemu_nbd(&disks);
    let devices = [disks.all()[0].clone(), PathBuf::from(&member)];
    create(&["--level", "1", "--assume-clean"], &devices).ok();
    let server = Server::start(disks.dir(), &devices);
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["-f", "raw", "-c", "write -P 5 1M 8M", "-c", "write -z -u 2M 1M", "-c", "discard 4M 1M"]);
    qemu_io.args(["-c", "flush", "-c", "read -P 5 1M 1M", "-c", "read -P 0 2M 1M", &server.uri("vol0")]);
    run(&mut qemu_io).ok();
    server.stop();
    // The remote half alone has it all.
    let server = Server::start_with(disks.dir(), &["--force"], &devices[1..]);
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["-f", "raw", "-c", "read -P 5 1M 1M", "-c", "read -P 0 2M 1M", "-c", "read -P 5 5M 4M"]);
    let read = run(qemu_io.arg(server.uri("vol0"))).ok();
    assert!(!read.stdout.contains("failed"), "{read:#?}");
    server.stop();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

/// qemu-nbd with the second disk at some TCP port: its URI and its process.
fn qemu_nbd(disks: &Disks) -> (String, i32) {
    let pid_file = disks.path("qemu-nbd.pid");
    for _ in 0..20 {
        // Somebody else may take the port before qemu-nbd does.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut qemu_nbd = program("qemu-nbd");
        qemu_nbd.args(["--fork", "--persistent", "--shared=0", "--format=raw", "--bind=127.0.0.1"]);
        qemu_nbd.args(["--discard=unmap", "--export-name=disk", &format!("--port={port}")]);
        qemu_nbd.arg(format!("--pid-file={}", text(&pid_file))).arg(&disks.all()[1]);
        if run(&mut qemu_nbd).code == Some(0) {
            let pid = std::fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
            return (format!("nbd://127.0.0.1:{port}/disk"), pid);
        }
    }
    panic!("qemu-nbd finds no port");
}
