//! Planner hooks and executor nodes for warm tables.

mod guard;

/// Installs the hooks; called once when the library is loaded.
pub fn init() {
    guard::install();
}
