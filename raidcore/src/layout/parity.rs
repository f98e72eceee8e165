//! The four rotations of parity in RAID5 and RAID6, numbered and named as md's.
//!
//! *Left* moves the parity from the last member to the first as stripes go on, *right* the other way.
//! *Symmetric* starts the data right after the parity and wraps around, so that a sequential read visits all
//! members in turn; *asymmetric* keeps the data in member order and skips the parity. In RAID6, Q stands after P,
//! around the end, and the powers of Q's generator count the data from the member after Q on, also around the end.

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

    /// The member that holds Q of `stripe`, in RAID6: the one after P's.
    pub fn q_slot(self, slots: usize, stripe: u64) -> Slot {
        Slot::from_index((self.parity_slot(slots, stripe).index() + 1) % slots)
    }

    /// The member that holds data column `column` of `stripe`, of which as many hold parity as `parities` says.
    pub fn data_slot(self, slots: usize, parities: usize, stripe: u64, column: usize) -> Slot {
        let parity = self.parity_slot(slots, stripe).index();
        Slot::from_index(match self {
            ParityAlgorithm::LeftSymmetric | ParityAlgorithm::RightSymmetric => {
                (parity + parities + column) % slots
            }
            ParityAlgorithm::LeftAsymmetric | ParityAlgorithm::RightAsymmetric => {
                // Parity that goes around the end stands before the data, too.
                let around = (parity + parities).saturating_sub(slots);
                let before = if column + around >= parity { parities - around } else { 0 };
                column + around + before
            }
        })
    }

    /// The data column whose factor in Q is 1: it stands first after Q.
    pub fn first_column(self, slots: usize, stripe: u64) -> usize {
        match self {
            ParityAlgorithm::LeftSymmetric | ParityAlgorithm::RightSymmetric => 0,
            ParityAlgorithm::LeftAsymmetric | ParityAlgorithm::RightAsymmetric => {
                match self.parity_slot(slots, stripe).index() {
                    parity if parity + 2 < slots => parity,
                    _ => 0,
                }
            }
        }
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
