//! `raidctl` as a person meets it: exit statuses, and messages that name the thing and the remedy.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::path::Path;
use std::process::{Command, Output};

fn raidctl(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_raidctl"))
        .args(words)
        .env_remove("RAIDCTL_CONTROL")
        .env_remove("RUST_LOG")
        .output()
        .unwrap()
}

/// Expects `words` to end with `status` and a message on stderr that has all `parts`; returns the message.
#[track_caller]
fn refused(status: i32, words: &[&str], parts: &[&str]) -> String {
    let output = raidctl(words);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{words:?}: {message}");
    assert!(output.stdout.is_empty(), "{words:?} printed on stdout");
    for part in parts {
        assert!(message.contains(part), "{words:?}: {part:?} is not in: {message}");
    }
    message
}

/// Files that serve as disks, and what is true of them.
struct Disks(tempfile::TempDir);

impl Disks {
    fn new(names: &[&str]) -> Disks {
        let disks = Disks(tempfile::tempdir().unwrap());
        names.iter().for_each(|name| disks.make(name, 8 << 20));
        disks
    }

    fn make(&self, name: &str, size: u64) {
        std::fs::File::create_new(self.0.path().join(name)).unwrap().set_len(size).unwrap();
    }

    fn path(&self, name: &str) -> String {
        text(&self.0.path().join(name)).to_string()
    }

    /// The words of a command, with the names of disks made into paths.
    fn words(&self, words: &[&str]) -> Vec<String> {
        let known = |word: &str| self.0.path().join(word).symlink_metadata().is_ok();
        words.iter().map(|word| if known(word) { self.path(word) } else { word.to_string() }).collect()
    }

    /// Expects `create` with these words to be refused for reasons `parts`, and to have written nothing.
    #[track_caller]
    fn create_refused(&self, words: &[&str], parts: &[&str]) {
        let before = self.content();
        let words = self.words(words);
        let words: Vec<&str> = ["create"].into_iter().chain(words.iter().map(String::as_str)).collect();
        let message = refused(1, &words, parts);
        assert_eq!(message.trim_end().lines().count(), 1, "one sentence, not {message}");
        assert!(self.content() == before, "{words:?} wrote to a disk");
    }

    /// Runs a command that must succeed; returns what it printed.
    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let words = self.words(words);
        let output = raidctl(&words.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn content(&self) -> Vec<(String, Vec<u8>)> {
        let files = std::fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut content: Vec<_> =
            files.map(|path| (text(&path).to_string(), std::fs::read(&path).unwrap())).collect();
        content.sort();
        content
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn wrong_usage_is_exit_status_2() {
    refused(2, &[], &["Usage"]);
    refused(2, &["frobnicate"], &["frobnicate"]);
    refused(2, &["status", "--jsno"], &["--jsno", "--json"]);
    refused(2, &["create", "vol0", "a", "b"], &["--level"]);
    refused(2, &["create", "vol0", "--level", "5"], &["<DEV>"]);
    refused(2, &["serve"], &["no devices", "configuration file"]);
    refused(2, &["serve", "--listen", "/run/x.sock", "/dev/null"], &["/run/x.sock", "unix:PATH"]);
    refused(2, &["demo", "--size", "1KB"], &["1KB", "64K"]);
    refused(2, &["--log-level", "a=b=c", "status"], &["a=b=c", "debug"]);
}

#[test]
fn help_comes_with_an_example_on_stdout_and_exit_status_0() {
    for command in [
        "demo", "create", "serve", "status", "examine", "fail", "add", "remove", "stop", "events", "attach",
        "detach",
    ] {
        let output = raidctl(&[command, "--help"]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(help.contains(&format!("raidctl {command} ")), "{command} has no example:\n{help}");
    }
}

#[test]
fn what_cannot_be_attached_is_refused_before_anything_is_done() {
    refused(2, &["attach"], &["<URI|NAME>"]);
    refused(2, &["attach", "nbd://host/x", "/dev/sda"], &["/dev/sda", "/dev/nbd0"]);
    refused(2, &["attach", "nbd://host/x", "--connections", "0"], &["--connections", "1..=16"]);
    refused(2, &["attach", "nbd://host/x", "--connections", "17"], &["--connections", "1..=16"]);
    refused(2, &["attach", "nbd://host/x", "--dead-timeout", "0"], &["--dead-timeout", "1h"]);
    refused(2, &["attach", "nbd://host/x", "--timeout", "1ms"], &["--timeout", "whole seconds"]);
    refused(2, &["attach", "nbd+unix:///x"], &["socket"]);
    refused(2, &["detach", "/dev/nbd0p1"], &["/dev/nbd0p1"]);
    refused(1, &["attach", "nbds://host/x"], &["nbds://host:10809/x", "TLS", "tunnel"]);
    refused(1, &["attach", "nbds+unix:///x?socket=/y"], &["TLS"]);
}

#[test]
fn without_the_kernels_driver_the_message_says_how_to_load_it() {
    if Path::new("/sys/module/nbd").exists() {
        println!("skipped: this kernel has the driver");
        return;
    }
    for words in [&["attach", "nbd://127.0.0.1:1/x"][..], &["detach", "/dev/nbd0"]] {
        let message = refused(1, words, &["modprobe nbd"]);
        assert_eq!(message.trim_end().lines().count(), 1, "one sentence, not {message}");
    }
}

#[test]
fn without_a_daemon_each_command_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("none.sock");
    let control = text(&control);
    for words in [
        &["status"][..],
        &["status", "--json"],
        &["status", "--watch"],
        &["events", "--follow"],
        &["fail", "vol0", "/dev/x"],
        &["add", "vol0", "/dev/x"],
        &["remove", "vol0", "/dev/x"],
        &["stop", "vol0"],
    ] {
        let words: Vec<&str> = words.iter().copied().chain(["--control", control]).collect();
        let message = refused(1, &words, &[control, "raidctl serve"]);
        assert_eq!(message.trim_end().lines().count(), 1, "one sentence, not {message}");
    }
}

#[test]
fn what_makes_no_array_is_refused_and_nothing_is_written() {
    let disks = Disks::new(&["a", "b", "c", "d"]);
    let refused = |words: &[&str], parts: &[&str]| disks.create_refused(words, parts);
    refused(&["v", "--level", "7", "a", "b", "c"], &["unknown level `7`", "use 0, 1, 5, 6 or 10"]);
    refused(&["v", "--level", "6", "a", "b", "c"], &["raid6 needs at least 4 members, 3 given"]);
    refused(&["v", "--level", "five", "a", "b", "c"], &["five"]);
    refused(&["v", "--level", "5", "a", "b"], &["raid5 needs at least 3 members, 2 given"]);
    refused(&["v", "--level", "1", "a"], &["at least 2"]);
    refused(&["v", "--level", "5", "--chunk", "65K", "a", "b", "c"], &["power of two from 4K to 16M"]);
    refused(&["v", "--level", "5", "--chunk", "2K", "a", "b", "c"], &["power of two from 4K to 16M"]);
    refused(&["v", "--level", "5", "--chunk", "32M", "a", "b", "c"], &["power of two from 4K to 16M"]);
    refused(&["v", "--level", "5", "--chunk", "8G", "a", "b", "c"], &["power of two from 4K to 16M"]);
    refused(&["v", "--level", "5", "--chunk", "64KB", "a", "b", "c"], &["64KB", "64K"]);
    refused(&["v", "--level", "5", "--layout", "left", "a", "b", "c"], &["`left`", "left-symmetric"]);
    refused(&["v", "--level", "1", "--layout", "left-symmetric", "a", "b"], &["--layout", "levels 5 and 6"]);
    refused(&["v", "--level", "5", "--copies", "2", "a", "b", "c"], &["--copies", "level 10"]);
    refused(&["v", "--level", "10", "--copies", "4", "a", "b", "c"], &["4 copies", "use 2 to 3"]);
    refused(&["v", "--level", "0", "--spare", "c", "a", "b"], &["spare"]);
    refused(&["v/0", "--level", "1", "a", "b"], &["v/0", "A-Z"]);
    refused(&["v", "--level", "1", "--consistency", "log", "a", "b"], &["not in this version", "resync"]);
    refused(&["v", "--level", "1", "--consistency", "hope", "a", "b"], &["hope", "resync"]);
    refused(&["v", "--level", "1", "--checksums", "on", "a", "b"], &["not in this version", "off"]);
    let many: Vec<String> = (0..65).map(|i| format!("m{i}")).collect();
    let many: Vec<&str> = ["v", "--level", "0"].into_iter().chain(many.iter().map(String::as_str)).collect();
    refused(&many, &["65 members", "at most 64"]);
}

#[test]
fn devices_that_cannot_be_members_are_named_and_nothing_is_written() {
    let disks = Disks::new(&["a", "b"]);
    disks.make("tiny", 512 << 10);
    std::fs::create_dir(disks.0.path().join("folder")).unwrap();
    std::os::unix::fs::symlink(disks.path("a"), disks.0.path().join("link")).unwrap();
    let new = |device: &str, parts: &[&str]| {
        let words = disks.words(&["create", "v", "--level", "5", "a", "b", device]);
        refused(1, &words.iter().map(String::as_str).collect::<Vec<_>>(), parts);
    };
    new("a", &["given twice"]);
    new("link", &["/link is the same device as", "name each device once"]);
    new("tiny", &["/tiny", "524288 bytes", "larger device"]);
    new("folder", &["/folder", "directory", "block device"]);
    new("/dev/null", &["/dev/null", "character device"]);
    new("/dev/raidctl-none", &["/dev/raidctl-none: does not exist"]);
    new("none.img", &["none.img: does not exist", "truncate -s 1G none.img"]);
    for name in ["a", "b"] {
        assert!(
            std::fs::read(disks.path(name)).unwrap().iter().all(|&byte| byte == 0),
            "{name} was written to"
        );
    }
}

#[test]
fn a_device_in_use_or_in_another_array_is_refused_unless_forced() {
    let disks = Disks::new(&["a", "b", "c"]);
    disks.done(&["create", "old", "--level", "1", "a", "b"]);
    disks.create_refused(&["new", "--level", "1", "b", "c"], &["/b carries member of array old", "--force"]);
    disks.done(&["create", "new", "--level", "1", "--force", "b", "c"]);

    let claimed = std::fs::File::open(disks.path("c")).unwrap();
    claimed.lock().unwrap();
    disks.create_refused(&["x", "--level", "1", "--force", "a", "c"], &["/c: is in use", "another device"]);
}

#[test]
fn a_file_system_is_refused_by_name_unless_forced() {
    let disks = Disks::new(&["a", "b"]);
    let mut image = vec![0; 4096];
    image[..4].copy_from_slice(b"XFSB");
    let file = std::fs::OpenOptions::new().write(true).open(disks.path("b")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &image, 0).unwrap();
    drop(file);
    disks.create_refused(&["v", "--level", "1", "a", "b"], &["/b carries xfs", "--force"]);
    disks.done(&["create", "v", "--level", "1", "--force", "a", "b"]);
}

#[test]
fn what_was_created_is_examined() {
    let disks = Disks::new(&["a", "b", "c", "d", "s"]);
    let words = ["create", "v", "--level", "raid10", "--copies", "3", "--chunk", "4K", "--spare", "s"];
    let printed = disks.done(&[&words[..], &["a", "b", "c", "d"]].concat());
    assert!(printed.contains("v: raid10 of 4 devices and a spare"), "{printed}");

    let text = disks.done(&["examine", "c"]);
    for part in ["slot 2 of v, in_sync", "raid10, 3 copies", "chunk 4K", "(this device)", "A valid"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&disks.done(&["examine", "s", "--json"])).unwrap();
    assert_eq!(json["array"]["name"], "v");
    assert_eq!((&json["slot"], &json["state"]), (&serde_json::Value::Null, &"spare".into()));
    assert_eq!(json["array"]["members"].as_array().unwrap().len(), 5);
    assert_eq!(json["array"]["resynced_bytes"], 0, "the first resync has not begun");

    disks.done(&["create", "w", "--level", "5", "--assume-clean", "--force", "a", "b", "c"]);
    let json: serde_json::Value = serde_json::from_str(&disks.done(&["examine", "a", "--json"])).unwrap();
    assert!(json["array"]["resynced_bytes"].is_null(), "in sync from the start");
}

#[test]
fn a_device_without_a_superblock_is_examined_in_vain() {
    let disks = Disks::new(&["a"]);
    refused(1, &["examine", &disks.path("a")], &["/a: no superblock"]);
    refused(1, &["examine", &disks.path("b")], &["/b: does not exist"]);
}

/// On a full file system the first devices kept their superblocks, and the message said nothing of it. Here the last
/// device cannot be written past its middle, so that it gets a copy A and no copy B.
#[test]
fn a_create_that_fails_half_way_leaves_no_superblock_behind() {
    let disks = Disks::new(&["a", "b"]);
    disks.make("large", 64 << 20);
    let before = disks.content();
    // ulimit counts blocks of 512 bytes.
    let script = "trap '' XFSZ; ulimit -f 65536; exec \"$0\" \"$@\"";
    let words = disks.words(&["create", "v", "--level", "1", "a", "b", "large"]);
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_raidctl")])
        .args(&words)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("large: cannot write the superblock"), "{message}");
    assert!(message.contains("no array was created") && !message.contains("left on"), "{message}");
    assert!(disks.content() == before, "something was left on a disk");
}
