//! What nbdinfo, nbdcopy, qemu-img and qemu-io see and do.

use crate::{create_clean, text};
use tests::Need::Program;
use tests::{Disks, RawClient, Server, program, random_bytes, run, skipped};

fn qemu_io(uri: &str, commands: &[&str]) -> String {
    let mut qemu_io = program("qemu-io");
    qemu_io.args(["-f", "raw"]);
    for command in commands {
        qemu_io.args(["-c", command]);
    }
    let done = run(qemu_io.arg(uri)).ok();
    // qemu-io says so, and ends with 0 all the same, when a pattern is not what was expected.
    assert!(!done.stdout.contains("failed") && !done.stderr.contains("failed"), "{done:#?}");
    done.stdout
}

#[test]
fn nbdinfo_lists_the_export_with_its_size_and_abilities() {
    if skipped(&[Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let size = server.size_bytes("vol0");

    let list = run(program("nbdinfo").args(["--json", "--list", &server.uri("")])).ok();
    let list: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
    assert_eq!(list["protocol"], "newstyle-fixed", "{list:#}");
    let exports = list["exports"].as_array().unwrap();
    assert_eq!(exports.len(), 1, "{list:#}");
    assert_eq!(exports[0]["export-name"], "vol0", "{list:#}");

    let info = run(program("nbdinfo").args(["--json", &server.uri("vol0")])).ok();
    let info: serde_json::Value = serde_json::from_str(&info.stdout).unwrap();
    assert_eq!(info["structured"], true, "{info:#}");
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], size, "{export:#}");
    for (ability, wanted) in [
        ("is_read_only", false),
        ("can_flush", true),
        ("can_fua", true),
        ("can_multi_conn", true),
        ("can_trim", true),
        ("can_zero", true),
    ] {
        assert_eq!(export[ability], wanted, "{ability} of {export:#}");
    }
    assert!(matches!(export["block_size_minimum"].as_u64(), Some(1 | 512)), "{export:#}");
    assert_eq!(export["block_size_maximum"], 32 << 20, "{export:#}");
}

#[test]
fn an_export_that_does_not_exist_is_refused_by_name() {
    if skipped(&[Program("nbdinfo")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let info = run(program("nbdinfo").arg(server.uri("another")));
    assert_ne!(info.code, Some(0), "{info:#?}");
    assert!(info.stderr.contains("another"), "{info:#?}");
}

#[test]
fn nbdcopy_brings_in_and_out_the_same_bytes() {
    if skipped(&[Program("nbdcopy")]) {
        return;
    }
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let (source, copy) = (disks.path("source"), disks.path("copy"));
    let content = random_bytes(usize::try_from(server.size_bytes("vol0")).unwrap(), 1);
    std::fs::write(&source, &content).unwrap();
    run(program("nbdcopy").args(["--flush", text(&source), &server.uri("vol0")])).ok();
    run(program("nbdcopy").args([&server.uri("vol0"), text(&copy)])).ok();
    assert!(std::fs::read(&copy).unwrap() == content, "the copy differs");
}

#[test]
fn qemu_img_converts_to_the_export_and_finds_it_identical() {
    if skipped(&[Program("qemu-img")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let size = server.size_bytes("vol0");
    // Data with a hole in it: the hole arrives as write-zeroes.
    let source = disks.path("source");
    let mut content = random_bytes(20 << 20, 2);
    content[5 << 20..15 << 20].fill(0);
    content.resize(usize::try_from(size).unwrap(), 0);
    std::fs::write(&source, &content).unwrap();
    let uri = server.uri("vol0");
    run(program("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "raw", text(&source), &uri])).ok();
    let same = run(program("qemu-img").args(["compare", "-f", "raw", "-F", "raw", text(&source), &uri])).ok();
    assert!(same.stdout.contains("identical"), "{same:#?}");
}

#[test]
fn requests_smaller_than_a_block_change_no_other_byte() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(4, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    qemu_io(
        &server.uri("vol0"),
        &[
            "write -P 0xaa 0 1M",
            "write -P 0x11 1 511",
            "write -P 0x22 70000 3",
            "write -P 0x33 131071 65538",
            "flush",
            "read -P 0xaa 0 1",
            "read -P 0x11 1 511",
            "read -P 0xaa 512 69488",
            "read -P 0x22 70000 3",
            "read -P 0xaa 70003 61068",
            "read -P 0x33 131071 65538",
            "read -P 0xaa 196609 851967",
        ],
    );
}

#[test]
fn zeroes_and_discards_reach_exactly_their_range() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    for level in ["0", "1", "5", "10"] {
        let disks = Disks::new(4, 64);
        create_clean(level, &disks);
        let server = Server::start(disks.dir(), disks.all());
        qemu_io(
            &server.uri("vol0"),
            &[
                "write -P 0x55 0 4M",
                "write -z 1000 3000",
                "write -z -u 1M 1M",
                "write -f -P 0x66 2M 4k",
                // What a discarded range reads as is open; that it ends where it should is not.
                "discard 3M 256k",
                "flush",
                "read -P 0x55 0 1000",
                "read -P 0 1000 3000",
                "read -P 0x55 4000 1044576",
                "read -P 0 1M 1M",
                "read -P 0x66 2M 4k",
                "read -P 0x55 2101248 1044480",
                "read -P 0x55 3407872 786432",
            ],
        );
    }
}

#[test]
fn two_connections_see_each_others_flushed_writes() {
    if skipped(&[Program("qemu-io")]) {
        return;
    }
    let disks = Disks::new(3, 64);
    create_clean("5", &disks);
    let server = Server::start(disks.dir(), disks.all());
    let (mut reader, _) = RawClient::open(server.socket(), "vol0").unwrap();
    let mut read = || reader.call(0, 0, 64 << 10, &[], 64 << 10).unwrap().data;
    assert!(read().iter().all(|&byte| byte == 0));
    qemu_io(&server.uri("vol0"), &["write -P 0x77 0 64k", "flush"]);
    assert!(read().iter().all(|&byte| byte == 0x77));
}
