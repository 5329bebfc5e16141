//! What `pg_stat_*_tables` and `pg_stat_*_indexes` count of reading: the macros `pgstat_count_*`, which are no functions.
//!
//! The heap counts what it reads of the delta store by itself, and the executor what an index scan fetches. What is counted here
//! are fragment rows, and the look-ups of WarmScan that take the place of index scans.

use pgrx::pg_sys;
use pgrx::pg_sys::{PgStat_Counter, PgStat_TableCounts, Relation};

/// The counters of an open relation, if anything is counted (`pgstat_should_count_relation`).
unsafe fn counts<'a>(rel: Relation) -> Option<&'a mut PgStat_TableCounts> {
    // SAFETY: the caller's relation is open, so its counters stay; a backend has one thread.
    unsafe {
        if (*rel).pgstat_info.is_null() {
            if !(*rel).pgstat_enabled {
                return None;
            }
            pg_sys::pgstat_assoc_relation(rel);
        }
        let status = (*rel).pgstat_info.as_mut()?;
        #[cfg(feature = "pg15")]
        return Some(&mut status.t_counts);
        #[cfg(not(feature = "pg15"))]
        return Some(&mut status.counts);
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident, $old:ident, $new:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `rel` is open.
        pub unsafe fn $name(rel: Relation, n: PgStat_Counter) {
            // SAFETY: the caller's promise.
            if let Some(counts) = unsafe { counts(rel) } {
                #[cfg(feature = "pg15")]
                {
                    counts.$old += n;
                }
                #[cfg(not(feature = "pg15"))]
                {
                    counts.$new += n;
                }
            }
        }
    };
}

counter!(
    /// Counts scans: sequential ones of a table, those of an index. Below 0: takes back what the heap counted.
    scans,
    t_numscans,
    numscans
);
counter!(
    /// Counts rows that sequential scans of a table read, or entries that scans of an index gave. Below 0: takes back what the
    /// heap counted.
    returned,
    t_tuples_returned,
    tuples_returned
);
counter!(
    /// Counts rows that bitmaps or scans of an index fetched.
    fetched,
    t_tuples_fetched,
    tuples_fetched
);
counter!(
    /// Adds to the estimate of live rows.
    live,
    t_delta_live_tuples,
    delta_live_tuples
);
