//! Superblocks: what an array knows of itself, on its members.
