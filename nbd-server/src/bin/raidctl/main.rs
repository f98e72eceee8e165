//! `raidctl`: daemon and command line.
fn main() {}
