//! Runs programs to their end, with a limit on how long that may take.

use std::ffi::OsStr;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// No command of a test takes longer than this, unless something hangs.
const LIMIT: Duration = Duration::from_secs(180);

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// What was run, for messages.
    pub command: String,
    /// The exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// Insists on exit status 0.
    pub fn ok(self) -> Finished {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Insists on exit status 1 with a message on stderr that has each of `words` in it.
    pub fn refused(self, words: &[&str]) -> Finished {
        assert_eq!(self.code, Some(1), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in the message of {self:#?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }
}

/// A command, with the directories that only root's search path has.
pub fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin").env("LC_ALL", "C");
    command
}

/// Runs a script; for the cases that are clearest as a user would type them.
pub fn shell(script: &str) -> Finished {
    run(program("sh").args(["-ec", script]))
}

/// Runs a command to its end, without input.
///
/// # Panics
///
/// When it cannot be started, or has to be killed because it passes the limit.
pub fn run(command: &mut Command) -> Finished {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let name = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{name}: {error}"));
    let pid = rustix::process::Pid::from_child(&child);
    let (ended, end) = mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    match end.recv_timeout(LIMIT) {
        Ok(output) => {
            let output = output.unwrap_or_else(|error| panic!("{name}: {error}"));
            Finished {
                command: name,
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }
        }
        Err(_) => {
            let killed = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("{name}: still running after {LIMIT:?}; kill: {killed:?}")
        }
    }
}
