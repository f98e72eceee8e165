//! The array over simulated disks.

mod degraded;
mod failure;
mod lifecycle;
mod model;
mod rig;
