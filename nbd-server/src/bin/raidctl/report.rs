//! What `status --json` shows: a promise to scripts, so its shape changes only by addition.
//!
//! Plain data that travels over the control socket; the daemon makes it from what the engine says of itself.

use nbd_server::listen::Listener;
use raidcore::array::{Action, ArrayStatus, MemberStatus};
use raidcore::meta::MemberState;
use serde::{Deserialize, Serialize};

/// All arrays of a daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// In the order in which they were found.
    pub arrays: Vec<ArrayReport>,
    /// Where clients connect.
    #[serde(default)]
    pub listen: Vec<ListenReport>,
}

/// A place where clients connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenReport {
    /// As `serve --listen` takes it: `unix:PATH`, `tcp:ADDR:PORT`.
    pub address: String,
    /// `off`, `allow`, `require`.
    pub tls: String,
}

/// One array.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArrayReport {
    /// Its name, which is its export's name, too.
    pub name: String,
    /// Its identity.
    pub uuid: String,
    /// `raid0`, `raid1`, `raid5`, `raid6`, `raid10`.
    pub level: String,
    /// `clean`, `active`, `degraded`, `failed`, `read-only`.
    pub state: String,
    /// What it offers, in bytes.
    pub size_bytes: u64,
    /// Its chunk, in bytes.
    pub chunk_bytes: u32,
    /// `resync`.
    pub consistency: String,
    /// `off`.
    pub checksums: String,
    /// By slot.
    pub members: Vec<MemberReport>,
    /// What stands by.
    pub spares: Vec<MemberReport>,
    /// What runs in the background.
    pub action: Option<ActionReport>,
    /// What is exported.
    pub lus: Vec<LuReport>,
}

/// One member, spare, or device that was one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberReport {
    /// Its slot; a spare and a faulty device that lost its slot have none.
    pub slot: Option<u32>,
    /// Its path; none if it is missing.
    pub device: Option<String>,
    /// `in_sync`, `rebuilding`, `spare`, `faulty`, `missing`.
    pub state: String,
    /// What went wrong on it since the daemon started.
    pub errors: ErrorCounts,
}

/// Errors of a member since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorCounts {
    /// Failed reads.
    pub read: u64,
    /// Failed writes.
    pub write: u64,
    /// Requests that were not answered by their deadline.
    pub timeout: u64,
}

/// A background action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionReport {
    /// `resync` or `rebuild`.
    pub kind: String,
    /// How much of it is done, 0 to 100, one digit behind the point.
    pub percent: f64,
    /// Seconds until it is done at the present speed, if that is known.
    pub eta_s: Option<u64>,
}

/// What is exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LuReport {
    /// The name of the export.
    pub name: String,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// The report of a place to listen at.
pub fn of_listener(listener: &Listener) -> ListenReport {
    ListenReport { address: listener.addr().to_string(), tls: listener.tls().to_string() }
}

/// The report of an array that says this of itself.
pub fn of_array(status: &ArrayStatus) -> ArrayReport {
    let is_spare = |member: &&MemberStatus| member.slot.is_none() && member.state == MemberState::Spare;
    let (spares, members): (Vec<_>, Vec<_>) = status.members.iter().partition(is_spare);
    ArrayReport {
        name: status.name.clone(),
        uuid: status.uuid.to_string(),
        level: status.level.to_string(),
        state: status.state.to_string(),
        size_bytes: status.size_bytes,
        chunk_bytes: status.chunk_bytes,
        consistency: status.consistency.to_string(),
        checksums: if status.checksums { "on" } else { "off" }.to_string(),
        members: members.into_iter().map(of_member).collect(),
        spares: spares.into_iter().map(of_member).collect(),
        action: status.action.as_ref().map(of_action),
        lus: vec![LuReport { name: status.name.clone(), size_bytes: status.size_bytes }],
    }
}

fn of_member(status: &MemberStatus) -> MemberReport {
    MemberReport {
        slot: status.slot.and_then(|slot| u32::try_from(slot).ok()),
        device: status.device.clone(),
        state: status.state.to_string(),
        errors: ErrorCounts {
            read: status.errors.read,
            write: status.errors.write,
            timeout: status.errors.timeout,
        },
    }
}

fn of_action(action: &Action) -> ActionReport {
    let left_bytes = action.total_bytes.saturating_sub(action.done_bytes);
    let done = action.done_bytes as f64 / action.total_bytes.max(1) as f64;
    ActionReport {
        kind: action.kind.name().to_string(),
        percent: (done * 1000.0).floor() / 10.0,
        eta_s: left_bytes.checked_div(action.bytes_per_s),
    }
}

#[cfg(test)]
pub mod samples {
    use super::*;

    /// A degraded RAID5 that rebuilds on its former spare.
    pub fn rebuilding() -> StatusReport {
        let member = |slot, device: Option<&str>, state: &str| MemberReport {
            slot,
            device: device.map(str::to_string),
            state: state.to_string(),
            errors: ErrorCounts::default(),
        };
        StatusReport {
            arrays: vec![ArrayReport {
                name: "vol0".into(),
                uuid: "00000000-0000-0000-0000-000000000001".into(),
                level: "raid5".into(),
                state: "degraded".into(),
                size_bytes: 768 << 20,
                chunk_bytes: 64 << 10,
                consistency: "resync".into(),
                checksums: "off".into(),
                members: vec![
                    member(Some(0), Some("/dev/loop0"), "in_sync"),
                    member(Some(1), Some("/dev/loop4"), "rebuilding"),
                    member(Some(2), None, "missing"),
                    member(None, Some("/dev/loop1"), "faulty"),
                ],
                spares: vec![member(None, Some("/dev/loop5"), "spare")],
                action: Some(ActionReport { kind: "rebuild".into(), percent: 12.5, eta_s: Some(61) }),
                lus: vec![LuReport { name: "vol0".into(), size_bytes: 768 << 20 }],
            }],
            listen: vec![ListenReport { address: "unix:/run/raidctl/nbd.sock".into(), tls: "off".into() }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_promised_keys_in_the_promised_order() {
        let text = serde_json::to_string(&samples::rebuilding()).unwrap();
        let mut rest = text.as_str();
        for key in [
            "arrays",
            "name",
            "uuid",
            "level",
            "state",
            "size_bytes",
            "chunk_bytes",
            "consistency",
            "checksums",
            "members",
            "slot",
            "device",
            "state",
            "errors",
            "spares",
            "action",
            "kind",
            "percent",
            "eta_s",
            "lus",
            "name",
            "size_bytes",
            "listen",
            "address",
            "tls",
        ] {
            let key = format!("\"{key}\":");
            let at = rest.find(&key).unwrap_or_else(|| panic!("{key} is missing or out of order in {text}"));
            rest = &rest[at + key.len()..];
        }
        assert_eq!(serde_json::from_str::<StatusReport>(&text).unwrap(), samples::rebuilding());
    }

    #[test]
    fn an_idle_array_has_a_null_action() {
        let mut report = samples::rebuilding();
        report.arrays[0].action = None;
        assert!(serde_json::to_string(&report).unwrap().contains("\"action\":null"));
    }
}
