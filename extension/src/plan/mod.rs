//! Planner hooks and executor nodes for warm tables. See `docs/design/plan.md`.
//!
//! ```text
//!   planner                                        executor
//!   guard      plain btrees, BRIN: no scans        guard      no bitmap prefetch
//!   paths      WarmScan: table, parallel, by key   exec       delta rows, then fragment rows
//!   aggregate  WarmAggregate below a Finalize        ├ lookup    rows by key: btree and fragment index
//!              Aggregate                             ├ blocks    pruned, filtered, decoded on demand
//!   clause     which clauses fragments answer        │   └ test     exact conditions on columns
//!   first      DISTINCT ON: rows that count          ├ rows      datums column by column
//!                                                    ├ parallel  shared counter of blocks
//!                                                    └ explain
//!                                                  start      one walk over the plan when the executor starts
//!                                                  prefetch   ahead of PostgreSQL's own index scans
//! ```
//!
//! What this room promises:
//!
//! * **The same rows as a sequential scan**, for every snapshot and isolation level: delta rows by the heap's scan or
//!   btree, fragment rows less the deletion vector of the snapshot, both seen with the snapshot of the executor.
//! * **A pushed condition is exact.** It holds for a row if and only if the SQL clause is true. What cannot be reproduced
//!   exactly stays a clause that PostgreSQL evaluates; delta rows and EvalPlanQual always get the whole qualification.
//! * **Nothing is decoded that is not needed**: not for pruned blocks, not for columns without use, not for rows that only
//!   are counted.
//! * **Settings**: `strata.enable_warm_scan` off leaves PostgreSQL's own scans, which give the same;
//!   `strata.enable_aggregate_pushdown` off leaves PostgreSQL's own aggregation over WarmScan.

mod aggregate;
mod blocks;
mod clause;
mod evaluate;
mod exec;
mod explain;
mod first;
mod guard;
mod lookup;
mod parallel;
mod paths;
mod prefetch;
mod private;
mod rows;
mod start;
mod test;

/// Installs the hooks; called once when the library is loaded.
pub fn init() {
    guard::install();
    paths::install();
    aggregate::install();
    prefetch::install();
    start::install();
}
