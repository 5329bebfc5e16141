//! Strata's sidecar: backup, recovery, and the agent that stands beside each server.
//!
//! ```text
//!   cli ──► agent ──► backup, recovery, verify, wal ──► repository   (files, checksums, atomic writes) ◄─► tool (pipes)
//!    │        │                │                  └───► postgres     (connections, formats of PostgreSQL's files)
//!    └────────┴── config, progress, error: used by all, use nothing above them
//! ```
//!
//! Arrows point downwards only. Nothing here links PostgreSQL or the extension; what both know is in `strata-catalog`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![forbid(unsafe_code)]

pub mod agent;
pub mod backup;
pub mod check;
pub mod cli;
pub mod config;
pub mod drill;
pub mod error;
pub mod failpoint;
pub mod postgres;
pub mod progress;
pub mod recovery;
pub mod repository;
pub mod retention;
pub mod socket;
pub mod tool;
pub mod verify;
pub mod wal;

pub use error::{Error, ErrorKind, Result};
