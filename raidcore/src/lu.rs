//! Logical units: what is exported.
