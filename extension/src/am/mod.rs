//! The table access method `warm`.
//!
//! A warm table is a heap (its main fork: the *delta store*) plus *fragments*, immutable columnar files in the store. The
//! callback table starts as a copy of the heap's; only what must know fragments is replaced ([`handler`]).
//!
//! ```text
//!                 scan / index_fetch / fetch_row_version               update / delete / lock
//!                        │                       │                             │
//!        TID block < 2^31│                       │block ≥ 2^31                 │block ≥ 2^31: promote
//!                        ▼                       ▼                             ▼
//!              heap's own callback      fragments.rs: row id →          promote.rs: fragment row → delta row,
//!              (delta store)            fragment, position, columns     then heap's own callback
//!                                                │
//!                                        deletion.rs: visible to this snapshot?
//! ```
//!
//! * **Which fragments.** Fragments belong to a relation file (relfilenode), as heap pages do. A move builds a new file and
//!   swaps it in under an exclusive lock; so whoever sees the file sees its fragments, and rollback, DROP, TRUNCATE and
//!   rewrites follow the file. Only rows that every snapshot sees go into a fragment (`tier::to_warm`), so a snapshot that is
//!   older than the move finds what it should.
//! * **Which rows.** A fragment row is there for a snapshot unless a row of `strata.deletion` that the snapshot sees names it.
//! * **Indexes.** A *plain* btree (on columns, no predicate, not deferrable; for a unique one, types whose equality is that
//!   of their bytes) has entries for delta rows only; for fragment rows its place is taken by the fragment index ([`segments`]) and by sorted
//!   order, zone maps and membership filters in the fragments ([`index`], [`unique`]). Every other index holds entries with virtual TIDs. The
//!   planner is kept from scanning a plain btree of a table with fragments (`plan`).
//! * **Damage.** A fragment that is missing is asked of the agent; a damaged one is an ERROR XX001 that names it.

pub mod adopted;
pub mod analyze;
pub mod bitmap;
pub mod builds;
pub mod candidates;
pub mod datum;
pub mod deletion;
pub mod fetch;
pub mod fragments;
pub mod handed;
pub mod handler;
pub mod index;
pub mod modify;
mod oversized;
pub mod probe;
pub mod promote;
pub mod promoter;
pub mod scan;
pub mod segments;
pub mod speculative;
pub mod ssi;
pub mod storage;
pub mod unique;
