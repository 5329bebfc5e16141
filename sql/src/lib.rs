//! The contract between the extension and the sidecar, as Rust types: names of the catalog, states, row types, and the
//! messages on the agent's socket.
//!
//! The SQL side of the same contract is in `schema/`; `docs/design/contract.md` says who writes what. The two programs
//! never link each other; both link this crate, which links neither PostgreSQL nor a client for it. Whatever is in here
//! has a text form (serde) that is part of the contract, so a change here is a change of a released interface.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![forbid(unsafe_code)]

pub mod agent;
pub mod lsn;
pub mod names;
pub mod rows;

pub use agent::{Event, Request};
pub use lsn::{Lsn, ParseLsnError};
pub use rows::{BackupRow, BackupState, FragmentRow, JobKind, JobState, LogBackupRow, LogKind};
