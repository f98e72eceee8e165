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
    for command in ["demo", "create", "serve", "status", "examine", "fail", "add", "remove", "stop", "events"]
    {
        let output = raidctl(&[command, "--help"]);
        let help = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(help.contains(&format!("raidctl {command} ")), "{command} has no example:\n{help}");
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
