//! The first command a user types.

use std::ffi::OsString;
use tests::Need::Program;
use tests::{Disks, Server, program, run, skipped};

fn demo(disks: &Disks) -> Server {
    // The port of the documentation may be in use on this machine; 0 lets the kernel choose.
    let words = ["demo", "--tcp", "127.0.0.1:0", "--size", "64M", "--dir"].map(OsString::from);
    let words: Vec<OsString> = words.into_iter().chain([disks.dir().into()]).collect();
    Server::launch(disks.dir(), &words).unwrap_or_else(|end| panic!("{end:#?}"))
}

#[test]
fn demo_serves_a_raid5_with_a_spare_and_finds_its_data_when_started_again() {
    if skipped(&[Program("nbdinfo"), Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(0, 0);
    let server = demo(&disks);
    let array = server.array("demo");
    assert_eq!(array["level"], "raid5", "{array:#}");
    assert_eq!(array["members"].as_array().unwrap().len(), 4, "{array:#}");
    assert_eq!(array["spares"].as_array().unwrap().len(), 1, "{array:#}");
    let size = run(program("nbdinfo").args(["--size", &server.uri("demo")])).ok();
    assert_eq!(size.stdout.trim(), array["size_bytes"].to_string());
    run(program("qemu-io").args(["-f", "raw", "-c", "write -P 0x61 1M 1M", &server.uri("demo")])).ok();
    let told = server.log();
    for way in ["nbdinfo", "qemu-io", "fio", "nbd-client", "mount"] {
        assert!(told.contains(way), "{way} is not among the ways to attach: {told}");
    }
    server.end_with(rustix::process::Signal::INT).ok();

    let server = demo(&disks);
    let read =
        run(program("qemu-io").args(["-f", "raw", "-c", "read -P 0x61 1M 1M", &server.uri("demo")])).ok();
    assert!(!read.stdout.contains("failed"), "{read:#?}");
    server.stop();
}
