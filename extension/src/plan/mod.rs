//! Planner hooks.
pub fn init() {}
