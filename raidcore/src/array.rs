//! The array: plan and execute.
