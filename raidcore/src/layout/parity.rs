//! The four rotations of RAID5's parity, numbered and named as md's.
//!
//! *Left* moves the parity from the last member to the first as stripes go on, *right* the other way.
//! *Symmetric* starts the data right after the parity and wraps around, so that a sequential read visits all
//! members in turn; *asymmetric* keeps the data in member order and skips the parity.

use super::{LayoutError, Slot};
use std::fmt;
use std::str::FromStr;

/// Where the parity of a stripe stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParityAlgorithm {
    /// md's 0.
    LeftAsymmetric,
    /// md's 1.
    RightAsymmetric,
    /// md's 2, the default.
    LeftSymmetric,
    /// md's 3.
    RightSymmetric,
}

const ALL: [(ParityAlgorithm, &str); 4] = [
    (ParityAlgorithm::LeftAsymmetric, "left-asymmetric"),
    (ParityAlgorithm::RightAsymmetric, "right-asymmetric"),
    (ParityAlgorithm::LeftSymmetric, "left-symmetric"),
    (ParityAlgorithm::RightSymmetric, "right-symmetric"),
];

impl ParityAlgorithm {
    /// md's number.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The algorithm of md's number.
    pub fn from_number(number: u32) -> Option<ParityAlgorithm> {
        ALL.get(number as usize).map(|&(algorithm, _)| algorithm)
    }

    /// The member that holds the parity of `stripe`.
    pub fn parity_slot(self, slots: usize, stripe: u64) -> Slot {
        let turn = (stripe % slots as u64) as usize;
        Slot::from_index(match self {
            ParityAlgorithm::LeftAsymmetric | ParityAlgorithm::LeftSymmetric => slots - 1 - turn,
            ParityAlgorithm::RightAsymmetric | ParityAlgorithm::RightSymmetric => turn,
        })
    }

    /// The member that holds data column `column` of `stripe`.
    pub fn data_slot(self, slots: usize, stripe: u64, column: usize) -> Slot {
        let parity = self.parity_slot(slots, stripe).index();
        Slot::from_index(match self {
            ParityAlgorithm::LeftSymmetric | ParityAlgorithm::RightSymmetric => (parity + 1 + column) % slots,
            ParityAlgorithm::LeftAsymmetric | ParityAlgorithm::RightAsymmetric => {
                column + usize::from(column >= parity)
            }
        })
    }
}

impl fmt::Display for ParityAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALL[*self as usize].1)
    }
}

impl FromStr for ParityAlgorithm {
    type Err = LayoutError;
    fn from_str(text: &str) -> Result<ParityAlgorithm, LayoutError> {
        let found = ALL.iter().find(|(_, name)| *name == text).map(|&(algorithm, _)| algorithm);
        found.ok_or_else(|| LayoutError::UnknownAlgorithm(text.chars().take(32).collect()))
    }
}
