//! What the sidecar knows of PostgreSQL: how to connect, what to ask, the format of its pages, and where its programs are.

pub mod connect;
pub mod page;
pub mod program;
pub mod replication;
pub mod server;

pub use connect::{Conninfo, Session};
pub use server::ServerInfo;

/// Microseconds from 1970 to 2000, where PostgreSQL's times begin.
pub(crate) const PG_EPOCH: i64 = 946_684_800_000_000;
