//! The words of the control protocol. Each stands on a line of its own, as JSON:
//!
//! ```text
//! > {"op":"fail","array":"vol0","device":"/dev/loop1"}
//! < {"done":"/dev/loop1 is faulty"}
//! ```

use crate::events::EventRecord;
use crate::report::StatusReport;
use serde::{Deserialize, Serialize};

/// What is asked of the daemon. Devices are absolute paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// All arrays, or one: answered with [`Reply::Status`].
    Status {
        /// Only this one.
        #[serde(default)]
        array: Option<String>,
    },
    /// Mark a member faulty.
    Fail {
        /// The array.
        array: String,
        /// The member.
        device: String,
    },
    /// Add a spare.
    Add {
        /// The array.
        array: String,
        /// The device.
        device: String,
        /// Even if it carries something else.
        #[serde(default)]
        force: bool,
    },
    /// Let go of a faulty member or a spare.
    Remove {
        /// The array.
        array: String,
        /// The device.
        device: String,
    },
    /// Grow an array into members that became larger.
    Grow {
        /// The array.
        array: String,
        /// What it is to hold at least, in bytes; all that its members have room for, if it is left out.
        #[serde(default)]
        size_bytes: Option<u64>,
    },
    /// Stop an array.
    Stop {
        /// The array.
        array: String,
    },
    /// Events: answered with [`Reply::Events`], once, or again and again if `follow`.
    Events {
        /// Those with a number above this one.
        #[serde(default)]
        after: u64,
        /// Go on when there are new ones, until the connection is closed.
        #[serde(default)]
        follow: bool,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// The arrays.
    Status(StatusReport),
    /// Events, in order.
    Events(Vec<EventRecord>),
    /// It is done; a sentence for people.
    Done(String),
    /// It is not done; a sentence that names the thing and the remedy.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_short_lines() {
        let request = Request::Fail { array: "vol0".into(), device: "/dev/loop1".into() };
        let line = serde_json::to_string(&request).unwrap();
        assert_eq!(line, r#"{"op":"fail","array":"vol0","device":"/dev/loop1"}"#);
        assert_eq!(serde_json::from_str::<Request>(&line).unwrap(), request);
    }

    #[test]
    fn what_may_be_left_out_may_be_left_out() {
        let events: Request = serde_json::from_str(r#"{"op":"events"}"#).unwrap();
        assert_eq!(events, Request::Events { after: 0, follow: false });
        let status: Request = serde_json::from_str(r#"{"op":"status"}"#).unwrap();
        assert_eq!(status, Request::Status { array: None });
    }

    #[test]
    fn unknown_operations_and_fields_are_refused() {
        assert!(serde_json::from_str::<Request>(r#"{"op":"format"}"#).is_err());
        assert!(serde_json::from_str::<Request>(r#"{"op":"stop","array":"a","now":true}"#).is_err());
    }
}
