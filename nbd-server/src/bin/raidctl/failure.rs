//! How a command ends when it does not end well.
//!
//! A failure is one sentence for a person who has to act on it: it names the thing and the remedy. Typed errors
//! are turned into such a sentence at the edge, where it is known what the person was trying to do.

use std::fmt::Display;
use std::io;

/// What a command returns.
pub type Outcome<T> = Result<T, Failure>;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// It was tried and failed. The sentence names the thing and the remedy.
    Failed(String),
    /// The command line makes no sense in a way that the parser cannot see.
    Usage(String),
    /// Whoever read our output went away (`raidctl events | head`); nothing is wrong.
    PipeClosed,
}

impl Failure {
    /// Something failed; `sentence` names it and the remedy.
    pub fn new(sentence: impl Display) -> Failure {
        Failure::Failed(sentence.to_string())
    }

    /// The command line makes no sense.
    pub fn usage(sentence: impl Display) -> Failure {
        Failure::Usage(sentence.to_string())
    }

    /// A failure to print.
    pub fn of_output(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::PipeClosed,
            _ => Failure::new(format!("cannot write to standard output: {error}")),
        }
    }

    /// What is printed on stderr, if anything.
    pub fn sentence(&self) -> Option<&str> {
        match self {
            Failure::Failed(sentence) | Failure::Usage(sentence) => Some(sentence),
            Failure::PipeClosed => None,
        }
    }

    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Failure::Failed(_) => 1,
            Failure::Usage(_) => 2,
            Failure::PipeClosed => 0,
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.sentence().unwrap_or("the output was closed"))
    }
}

/// Adds to an error what was being done.
pub trait Context<T> {
    /// The error as a sentence: `what: error`.
    fn context(self, what: impl Display) -> Outcome<T>;
}

impl<T, E: Display> Context<T> for Result<T, E> {
    fn context(self, what: impl Display) -> Outcome<T> {
        self.map_err(|error| Failure::new(format!("{what}: {error}")))
    }
}
