//! The words for states, as `status` prints them and superblocks number them. They are md's where md has them.

use std::fmt;

/// State of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArrayState {
    /// Running, no write since the superblocks were last marked clean.
    Clean,
    /// Running, with writes that the superblocks announce.
    Active,
    /// Running without one or more members.
    Degraded,
    /// More members are lost than the level survives.
    Failed,
    /// Running, and refuses writes.
    ReadOnly,
}

impl fmt::Display for ArrayState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ArrayState::Clean => "clean",
            ArrayState::Active => "active",
            ArrayState::Degraded => "degraded",
            ArrayState::Failed => "failed",
            ArrayState::ReadOnly => "read-only",
        })
    }
}

/// State of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Has every acknowledged write.
    InSync,
    /// Being filled; right up to its checkpoint.
    Rebuilding,
    /// Waits to take a slot.
    Spare,
    /// Failed, or was failed; holds old data.
    Faulty,
    /// Was not there when the array was started; holds old data.
    Missing,
}

impl MemberState {
    /// Every state, at the place of its number on disk less one.
    const ALL: [MemberState; 5] = [
        MemberState::InSync,
        MemberState::Rebuilding,
        MemberState::Spare,
        MemberState::Faulty,
        MemberState::Missing,
    ];

    /// Number on disk: 1 to 5.
    pub(super) fn number(self) -> u8 {
        self as u8 + 1
    }

    pub(super) fn from_number(number: u8) -> Option<MemberState> {
        MemberState::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// True if its data is not to be read: faulty or missing.
    pub fn is_out(self) -> bool {
        matches!(self, MemberState::Faulty | MemberState::Missing)
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemberState::InSync => "in_sync",
            MemberState::Rebuilding => "rebuilding",
            MemberState::Spare => "spare",
            MemberState::Faulty => "faulty",
            MemberState::Missing => "missing",
        })
    }
}

/// How redundancy is brought back into step after an unclean stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// All of it is read and compared. The only policy of this version; 2 (bitmap) and 3 (log) are reserved.
    Resync,
}

impl Consistency {
    /// Number on disk.
    pub(super) fn number(self) -> u32 {
        match self {
            Consistency::Resync => 1,
        }
    }

    pub(super) fn from_number(number: u32) -> Option<Consistency> {
        (number == 1).then_some(Consistency::Resync)
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Consistency::Resync => f.write_str("resync"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_numbers_are_those_of_the_format() {
        for (number, name) in [(1, "in_sync"), (2, "rebuilding"), (3, "spare"), (4, "faulty"), (5, "missing")]
        {
            let state = MemberState::from_number(number).unwrap();
            assert_eq!((state.number(), state.to_string().as_str()), (number, name));
        }
        assert!(MemberState::from_number(0).is_none() && MemberState::from_number(6).is_none());
    }
}
