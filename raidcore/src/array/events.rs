//! What the array tells people: events, with md's names where md has them.

use crate::layout::Slot;
use std::fmt;

/// Something an administrator wants to hear of. The array's name and the time are added by whoever records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The array was started.
    NewArray,
    /// The array is running without full redundancy. `survives_more` tells if a further loss can be survived.
    DegradedArray {
        /// Slots that are not in sync.
        slots: Vec<Slot>,
        /// False: the next failure loses data.
        survives_more: bool,
    },
    /// A member failed, or was failed by hand.
    Fail {
        /// The device.
        device: String,
        /// Its slot, if it had one.
        slot: Option<Slot>,
        /// Why.
        reason: String,
    },
    /// A block could not be read from a member; it was rebuilt from the others and written back.
    ReadErrorCorrected {
        /// The device.
        device: String,
        /// Byte offset on it.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// More members are lost than the level survives: the array has stopped serving.
    ArrayFailed {
        /// What tipped it over.
        reason: String,
    },
    /// A spare was added.
    SpareAdded {
        /// The device.
        device: String,
    },
    /// Filling a member has begun.
    RebuildStarted {
        /// The device that is filled.
        device: String,
        /// Its slot.
        slot: Slot,
    },
    /// A rebuilt member is in sync.
    SpareActive {
        /// The device.
        device: String,
        /// Its slot.
        slot: Slot,
    },
    /// Filling a member has ended well.
    RebuildFinished {
        /// The device.
        device: String,
    },
    /// Filling a member was given up: something it needs cannot be read.
    RebuildFailed {
        /// The device.
        device: String,
        /// Why.
        reason: String,
    },
    /// Redundancy is being brought into step with the data.
    ResyncStarted,
    /// Redundancy is complete.
    ResyncFinished,
    /// The resync came to its end, but some blocks could not be read: redundancy is not complete there.
    ResyncIncomplete {
        /// How many pieces of 4 KiB rows were left as they are.
        rows: u64,
    },
    /// A member was lost before the resync after an unclean stop had checked its stripes.
    ParityInDoubt,
    /// The members' devices had become larger, and the array has taken the room.
    Grown {
        /// What it held before, in bytes.
        from_bytes: u64,
        /// What it holds now.
        to_bytes: u64,
    },
    /// A growth was given up: the array is as large as before.
    GrowFailed {
        /// Why.
        reason: String,
    },
    /// A member was taken out of the array.
    Removed {
        /// The device.
        device: String,
    },
    /// The array was stopped.
    Stopped {
        /// False if the superblocks could not be marked clean.
        clean: bool,
    },
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// For the record.
    Info,
    /// Something was lost that redundancy made up for.
    Warning,
    /// Act now: redundancy or data is gone.
    Critical,
}

impl Event {
    /// The name, as `raidctl events` and md's monitor print it.
    pub fn name(&self) -> &'static str {
        match self {
            Event::NewArray => "NewArray",
            Event::DegradedArray { .. } => "DegradedArray",
            Event::Fail { .. } => "Fail",
            Event::ReadErrorCorrected { .. } => "ReadErrorCorrected",
            Event::ArrayFailed { .. } => "ArrayFailed",
            Event::SpareAdded { .. } => "SpareAdded",
            Event::RebuildStarted { .. } => "RebuildStarted",
            Event::SpareActive { .. } => "SpareActive",
            Event::RebuildFinished { .. } => "RebuildFinished",
            Event::RebuildFailed { .. } => "RebuildFailed",
            Event::ResyncStarted => "ResyncStarted",
            Event::ResyncFinished => "ResyncFinished",
            Event::ResyncIncomplete { .. } => "ResyncIncomplete",
            Event::ParityInDoubt => "ParityInDoubt",
            Event::Grown { .. } => "Grown",
            Event::GrowFailed { .. } => "GrowFailed",
            Event::Removed { .. } => "Removed",
            Event::Stopped { .. } => "Stopped",
        }
    }

    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Event::DegradedArray { survives_more: false, .. }
            | Event::ArrayFailed { .. }
            | Event::RebuildFailed { .. }
            | Event::ResyncIncomplete { .. }
            | Event::ParityInDoubt
            | Event::Stopped { clean: false } => Severity::Critical,
            Event::DegradedArray { .. }
            | Event::Fail { .. }
            | Event::ReadErrorCorrected { .. }
            | Event::GrowFailed { .. } => Severity::Warning,
            _ => Severity::Info,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::NewArray => f.write_str("array started"),
            Event::DegradedArray { slots, survives_more } => {
                let slots: Vec<String> = slots.iter().map(|slot| slot.to_string()).collect();
                write!(f, "running without slot {}", slots.join(", "))?;
                f.write_str(if *survives_more {
                    ""
                } else {
                    ": THE NEXT FAILURE LOSES DATA, add a device now"
                })
            }
            Event::Fail { device, slot: Some(slot), reason } => {
                write!(f, "{device} (slot {slot}) failed: {reason}")
            }
            Event::Fail { device, slot: None, reason } => write!(f, "{device} (spare) failed: {reason}"),
            Event::ReadErrorCorrected { device, offset, len } => {
                write!(f, "{device}: {len} bytes at {offset} could not be read; rebuilt and written back")
            }
            Event::ArrayFailed { reason } => {
                write!(f, "array has FAILED and serves no more writes: {reason}")
            }
            Event::SpareAdded { device } => write!(f, "{device} added as spare"),
            Event::RebuildStarted { device, slot } => write!(f, "rebuilding slot {slot} onto {device}"),
            Event::SpareActive { device, slot } => write!(f, "{device} is in sync in slot {slot}"),
            Event::RebuildFinished { device } => write!(f, "rebuild of {device} finished"),
            Event::RebuildFailed { device, reason } => write!(f, "rebuild of {device} given up: {reason}"),
            Event::ResyncStarted => f.write_str("resync started"),
            Event::ResyncFinished => f.write_str("resync finished"),
            Event::ResyncIncomplete { rows } => {
                write!(f, "resync ended, but {rows} rows could not be read and have NO redundancy: replace the disk")
            }
            Event::ParityInDoubt => f.write_str(
                "a member was lost before the resync after a crash was through: blocks written just before the crash \
                 may be rebuilt WRONGLY; compare them with a backup",
            ),
            Event::Grown { from_bytes, to_bytes } => {
                write!(f, "array has grown from {from_bytes} to {to_bytes} bytes")
            }
            Event::GrowFailed { reason } => {
                write!(f, "growing given up, the array is as large as before: {reason}")
            }
            Event::Removed { device } => write!(f, "{device} removed"),
            Event::Stopped { clean: true } => f.write_str("array stopped, clean"),
            Event::Stopped { clean: false } => {
                f.write_str("array stopped, NOT clean: a resync follows at the next start")
            }
        }
    }
}
