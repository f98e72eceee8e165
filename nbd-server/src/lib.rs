//! `nbd-server`: exports logical units as NBD devices.
