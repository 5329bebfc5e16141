//! Planner hooks and executor nodes for warm tables.

mod aggregate;
mod blocks;
mod clause;
mod exec;
mod explain;
mod guard;
mod list;
mod lookup;
mod parallel;
mod paths;
mod rows;
mod test;

/// Installs the hooks; called once when the library is loaded.
pub fn init() {
    guard::install();
    paths::install();
    aggregate::install();
}
