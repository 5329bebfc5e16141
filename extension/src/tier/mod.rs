//! Tiering: moving partitions between hot and warm.
//!
//! * [`writer`] turns rows into fragments of a relation file and records them.
//! * [`to_warm`] and [`to_hot`] are the online moves; their module headers have the crash reasoning. [`online`] is what they share.
//! * [`consolidate`] writes fragments again without deleted rows, merges small ones, absorbs the delta store.
//! * [`index`] keeps the fragment index fitting the fragments.
//! * [`sweep`] removes fragment files and catalog rows that no table needs any more; [`in_use`] keeps it from files of transactions that
//!   have not ended; [`claim`] says whose store it is.
//! * [`throttle`] limits what they read and write each second.
//! * [`worker`] runs the policies in the background. The policies themselves are SQL (`sql/schema/40_policies.sql`).

pub mod claim;
pub mod consolidate;
mod in_use;
pub mod index;
mod key_choice;
pub mod online;
pub mod sweep;
pub mod test_fold;
pub mod throttle;
pub mod to_hot;
pub mod to_warm;
pub mod worker;
pub mod writer;
