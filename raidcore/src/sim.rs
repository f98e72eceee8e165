//! A simulated disk: seeded faults on virtual time.
