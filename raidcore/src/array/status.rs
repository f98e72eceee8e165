//! What the array says of itself: plain data that may leave the thread.

use super::member::{ErrorCounts, Member};
use super::sync::SyncStep;
use super::{Array, Phase};
use crate::layout::Level;
use crate::meta::{ArrayState, ArrayUuid, Consistency, MemberState};

/// An array, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrayStatus {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: ArrayUuid,
    /// Its level.
    pub level: Level,
    /// Its state.
    pub state: ArrayState,
    /// What it holds, in bytes.
    pub size_bytes: u64,
    /// The chunk.
    pub chunk_bytes: u32,
    /// What is done after an unclean stop.
    pub consistency: Consistency,
    /// Whether blocks have checksums.
    pub checksums: bool,
    /// Slots first, in order; then members without one.
    pub members: Vec<MemberStatus>,
    /// What runs in the background.
    pub action: Option<Action>,
    /// True once it is stopped.
    pub stopped: bool,
}

/// A member, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its slot; `None` for spares and for members that lost theirs.
    pub slot: Option<usize>,
    /// Its device; `None` if that is missing.
    pub device: Option<String>,
    /// Its state.
    pub state: MemberState,
    /// Errors since the start.
    pub errors: ErrorCounts,
}

/// What runs in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// Redundancy is brought into step.
    Resync,
    /// A member is filled.
    Rebuild,
}

impl ActionKind {
    /// As `status` prints it.
    pub fn name(self) -> &'static str {
        match self {
            ActionKind::Resync => "resync",
            ActionKind::Rebuild => "rebuild",
        }
    }
}

/// A background action and how far it is, in bytes of the array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// What.
    pub kind: ActionKind,
    /// Done so far.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
    /// On average since it was started; 0 if that is not known.
    pub bytes_per_s: u64,
}

impl Array {
    /// How the array is.
    pub fn status(&self) -> ArrayStatus {
        let mut listed: Vec<&Member> = self.members.iter().filter(|member| !member.forgotten).collect();
        listed.sort_by_key(|member| (member.slot.is_none(), member.slot));
        ArrayStatus {
            name: self.meta.name.to_string(),
            uuid: self.meta.uuid,
            level: self.layout.level(),
            state: self.state(),
            size_bytes: self.geometry.size_bytes,
            chunk_bytes: self.layout.chunk_bytes(),
            consistency: self.meta.consistency,
            checksums: self.meta.checksums,
            members: listed.into_iter().map(member_status).collect(),
            action: self.action(),
            stopped: self.phase == Phase::Stopped,
        }
    }

    /// The array's state in one word.
    pub fn state(&self) -> ArrayState {
        if self.failed {
            ArrayState::Failed
        } else if self.layout.all_slots().any(|slot| !self.is_in_sync(slot)) {
            ArrayState::Degraded
        } else if self.meta.clean {
            ArrayState::Clean
        } else {
            ArrayState::Active
        }
    }

    fn action(&self) -> Option<Action> {
        let sync = self.sync.as_ref()?;
        let kind = match sync.step() {
            SyncStep::Resync => ActionKind::Resync,
            SyncStep::Rebuild(_) => ActionKind::Rebuild,
        };
        let unit_bytes = u64::from(self.layout.unit_rows()) * self.layout.columns() as u64;
        let (done, started) = sync.progress();
        let elapsed_ms = u64::try_from(self.clock.now().since(started).as_millis()).unwrap_or(u64::MAX);
        let bytes_per_s = (done * unit_bytes).saturating_mul(1000).checked_div(elapsed_ms).unwrap_or(0);
        Some(Action {
            kind,
            done_bytes: sync.reached().0 * unit_bytes,
            total_bytes: sync.total() * unit_bytes,
            bytes_per_s,
        })
    }
}

fn member_status(member: &Member) -> MemberStatus {
    MemberStatus {
        slot: member.slot.map(|slot| slot.index()),
        device: (!member.device.is_empty()).then(|| member.device.clone()),
        state: member.state,
        errors: member.errors,
    }
}
