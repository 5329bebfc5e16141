//! Tiering: moving partitions between hot and warm.
//!
//! * [`writer`] turns rows into fragments of a relation file and records them.
//! * [`to_warm`] is the online move; its module header has the crash reasoning.
//! * [`sweep`] removes fragment files and catalog rows that no table needs any more.
//! * [`worker`] runs the policies in the background. The policies themselves are SQL (`sql/schema/40_policies.sql`).

pub mod sweep;
pub mod to_warm;
pub mod worker;
pub mod writer;
