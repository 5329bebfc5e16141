//! The harness of Strata's end-to-end tests: real servers, real crashes, and a heap twin as the oracle.
//!
//! ```text
//!  suites (tests/*.rs)        demo (src/bin/demo)       benches/
//!        │                          │                      │
//!        └───────────┬──────────────┴──────────────────────┘
//!    script ── twin ─┤            what to do, and what must come out (oracle: the same on heap)
//!    cluster ── sidecar ── pgbench    one server in a directory of its own; the `strata` program; load
//!                process              run as the server's user, find, kill, wait
//! ```
//!
//! Promises: a cluster lives in one temporary directory and takes nothing from the machine but free space; it is stopped
//! and removed when its value is dropped, after a panic too (then its log is printed first; `STRATA_KEEP=1` leaves
//! the directory). Expected results come from a heap table that got the same statements, never from the code under test.

pub mod checks;
pub mod cluster;
pub mod flights;
pub mod pgbench;
pub mod process;
pub mod queries;
pub mod recovered;
pub mod report;
pub mod script;
pub mod sidecar;
pub mod twin;

pub use cluster::{Cluster, Options};
pub use sidecar::{Agent, Strata};

/// The folder of this crate's sources. Asked when a test runs: a target directory may be shared by several clones, and cargo
/// does not compile again for another one.
pub fn source_dir() -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}
