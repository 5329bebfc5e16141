//! Aggregation inside the scan of warm tables.
//!
//! ```text
//!   Finalize Aggregate                        PostgreSQL's own
//!     Append
//!       WarmAggregate                         partial states of the fragments of a warm table, made on decoded blocks
//!         WarmScan (fragments)
//!       Partial Aggregate                     PostgreSQL's own, for the rows of its delta store
//!         WarmScan (delta store)
//!       Partial Aggregate                     … and for a hot partition
//!         Seq Scan
//! ```
//!
//! The states are those that PostgreSQL's transition functions would have made, in the form in which parallel workers send
//! them ([`state`]); so combining them, the final functions and the errors are PostgreSQL's, HAVING included.
//!
//! Rows are grouped by the bits of their keys ([`keys`]). Values that are equal but differ in their bits make two groups
//! here, which the Finalize Aggregate merges, as it merges those of different partitions. For the same reason groups may
//! be given out and forgotten when there are many, so memory stays bounded.

mod exec;
mod keys;
mod plan;
mod spec;
mod state;

pub use plan::install;
