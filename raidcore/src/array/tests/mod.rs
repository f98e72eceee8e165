//! The array over simulated disks.

mod degraded;
mod edges;
mod failure;
mod grow;
mod health;
mod lifecycle;
mod model;
mod rig;
mod storm;
mod unsynced;
mod zeroes;
