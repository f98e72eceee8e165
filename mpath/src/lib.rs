//! `mpath`: one disk reached over several paths (HBAs, network portals), in the model of DM-Multipath.
//!
//! A multipath device will be a [`BlockDev`] over `BlockDev`s, grouped path -> path group -> map, with what
//! dm-multipath lacks: a deadline on every I/O. It knows nothing of RAID; both know only the seam.
//!
//! Nothing is built here yet: the crate holds the name and its place in the architecture.

pub use raidcore::dev::BlockDev;
