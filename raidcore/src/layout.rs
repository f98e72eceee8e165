//! Where each block lives: pure maps of the RAID levels.
