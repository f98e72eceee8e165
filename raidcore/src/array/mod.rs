//! The array: plan and execute.

mod plan;
mod slots;
