//! What is asked for, and what is right: a `Layout` exists only if its numbers fit together.

use super::ParityAlgorithm;
use crate::limits::{MAX_CHUNK_BYTES, MAX_MEMBERS, MIN_CHUNK_BYTES};
use std::fmt;
use std::str::FromStr;

/// The RAID level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Striping without redundancy.
    Raid0,
    /// Mirroring on all members.
    Raid1,
    /// Striping with one rotating parity chunk per stripe.
    Raid5,
    /// Striping with two rotating parity chunks per stripe: P and Q.
    Raid6,
    /// Striping over copies.
    Raid10,
}

impl Level {
    /// md's number of the level, which is also what people write.
    pub fn number(self) -> u8 {
        match self {
            Level::Raid0 => 0,
            Level::Raid1 => 1,
            Level::Raid5 => 5,
            Level::Raid6 => 6,
            Level::Raid10 => 10,
        }
    }

    /// The level of md's number.
    pub fn from_number(number: u8) -> Option<Level> {
        let all = [Level::Raid0, Level::Raid1, Level::Raid5, Level::Raid6, Level::Raid10];
        all.into_iter().find(|level| level.number() == number)
    }

    /// Fewest members.
    pub fn min_members(self) -> usize {
        match self {
            Level::Raid0 | Level::Raid1 | Level::Raid10 => 2,
            Level::Raid5 => 3,
            Level::Raid6 => 4,
        }
    }

    /// Chunks of parity in each stripe.
    pub fn parities(self) -> usize {
        match self {
            Level::Raid0 | Level::Raid1 | Level::Raid10 => 0,
            Level::Raid5 => 1,
            Level::Raid6 => 2,
        }
    }

    /// False for RAID0: there every loss is a loss of data.
    pub fn is_redundant(self) -> bool {
        self != Level::Raid0
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "raid{}", self.number())
    }
}

impl FromStr for Level {
    type Err = LayoutError;
    /// Accepts `5` and `raid5`.
    fn from_str(text: &str) -> Result<Level, LayoutError> {
        let digits = text.strip_prefix("raid").unwrap_or(text);
        digits
            .parse()
            .ok()
            .and_then(Level::from_number)
            .ok_or_else(|| LayoutError::UnknownLevel(text.chars().take(32).collect()))
    }
}

/// Number of a member's place in the array, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u8);

impl Slot {
    /// From an index below [`MAX_MEMBERS`].
    pub fn from_index(index: usize) -> Slot {
        debug_assert!(index < MAX_MEMBERS);
        Slot(index as u8)
    }

    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutSpec {
    /// The level.
    pub level: Level,
    /// Members, spares not counted.
    pub slots: usize,
    /// Bytes on one member before the next: a power of two, 4 KiB to 16 MiB. RAID1 has no chunks but is worked
    /// on in pieces of this size.
    pub chunk_bytes: u32,
    /// Where the parity of RAID5 and RAID6 goes; of no meaning elsewhere.
    pub algorithm: ParityAlgorithm,
    /// Copies of each chunk in RAID10; of no meaning elsewhere.
    pub copies: usize,
}

impl LayoutSpec {
    /// The level with md's defaults: left-symmetric parity, two near copies.
    pub fn new(level: Level, slots: usize, chunk_bytes: u32) -> LayoutSpec {
        LayoutSpec { level, slots, chunk_bytes, algorithm: ParityAlgorithm::LeftSymmetric, copies: 2 }
    }
}

/// Why there is no such layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A level no one knows.
    #[error("unknown level `{0}`: use 0, 1, 5, 6 or 10")]
    UnknownLevel(String),
    /// Fewer members than the level needs.
    #[error("{level} needs at least {needed} members, {given} given")]
    TooFewMembers {
        /// The level.
        level: Level,
        /// What it needs.
        needed: usize,
        /// What was given.
        given: usize,
    },
    /// More members than an array takes.
    #[error("{0} members given: an array takes at most {MAX_MEMBERS}")]
    TooManyMembers(usize),
    /// A chunk that is no power of two or out of range.
    #[error("chunk of {0} bytes: use a power of two from 4K to 16M")]
    BadChunk(u64),
    /// RAID10 with fewer than two copies or more copies than members.
    #[error("{copies} copies over {slots} members: use 2 to {slots}")]
    BadCopies {
        /// Copies asked for.
        copies: usize,
        /// Members given.
        slots: usize,
    },
    /// A parity algorithm no one knows.
    #[error(
        "unknown parity layout `{0}`: use left-symmetric, right-symmetric, left-asymmetric or right-asymmetric"
    )]
    UnknownAlgorithm(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Near { copies: usize },
    Parity(ParityAlgorithm),
}

/// A layout that is right. Small and `Copy`: pass it by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    level: Level,
    slots: usize,
    chunk_bytes: u32,
    family: Family,
}

impl Layout {
    /// Checks that the numbers fit together.
    pub fn new(spec: LayoutSpec) -> Result<Layout, LayoutError> {
        let LayoutSpec { level, slots, chunk_bytes, algorithm, copies } = spec;
        if slots < level.min_members() {
            return Err(LayoutError::TooFewMembers { level, needed: level.min_members(), given: slots });
        }
        if slots > MAX_MEMBERS {
            return Err(LayoutError::TooManyMembers(slots));
        }
        if !chunk_bytes.is_power_of_two() || !(MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk_bytes) {
            return Err(LayoutError::BadChunk(u64::from(chunk_bytes)));
        }
        let family = match level {
            Level::Raid0 => Family::Near { copies: 1 },
            Level::Raid1 => Family::Near { copies: slots },
            Level::Raid5 | Level::Raid6 => Family::Parity(algorithm),
            Level::Raid10 if (2..=slots).contains(&copies) => Family::Near { copies },
            Level::Raid10 => return Err(LayoutError::BadCopies { copies, slots }),
        };
        Ok(Layout { level, slots, chunk_bytes, family })
    }

    /// The level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Members, spares not counted.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The chunk.
    pub fn chunk_bytes(&self) -> u32 {
        self.chunk_bytes
    }

    /// Copies of each byte: 1 where redundancy comes from parity or there is none.
    pub fn copies(&self) -> usize {
        match self.family {
            Family::Near { copies } => copies,
            Family::Parity(_) => 1,
        }
    }

    /// Chunks of parity in each stripe: so many members may be lost. Zero where redundancy comes from copies or there
    /// is none.
    pub fn parities(&self) -> usize {
        self.level.parities()
    }

    /// The rotation of the parity, where there is one.
    pub fn parity_algorithm(&self) -> Option<ParityAlgorithm> {
        match self.family {
            Family::Near { .. } => None,
            Family::Parity(algorithm) => Some(algorithm),
        }
    }
}
