//! What is known to hold nothing: the holes of members, and the zeroes of a logical unit that follow from them.
//!
//! Nothing here is ever written down. [`Holes`] is what a file system says of a member when it is opened; the array
//! makes a [`ZeroMap`] of all its members' ([`Array::zero_map`](crate::array::Array::zero_map)), and the logical unit
//! [keeps it true](crate::lu::Lu::with_zero_map) from then on. What is not known counts as data, so to forget is
//! always right, and to be wrong about a hole never is.

mod holes;
mod map;

pub use holes::Holes;
pub use map::{GRANULE_BYTES, ZeroMap};
