//! WarmScan in parallel workers: the delta rows by PostgreSQL's parallel heap scan, the fragments by a shared counter of
//! blocks ([`super::blocks`]).
//!
//! ```text
//! ┌────────────────────────────────────┬──────────────────────────────┐
//! │ Shared: counter, numbers of workers │ parallel scan of the heap    │   in dynamic shared memory
//! └────────────────────────────────────┴──────────────────────────────┘
//! ```
//!
//! The counter counts fragments by their place in the table's list, so all participants must have the same list. Each reads
//! it from the catalog; whoever has another one than the first raises an ERROR instead of returning other rows.

use super::blocks::Stats;
use super::exec::WarmScanState;
use crate::am::fragments::TableFragments;
use core::ffi::c_void;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// What the participants of a parallel scan share.
#[repr(C, align(16))]
pub struct Shared {
    /// The next block: fragment in the upper half, block in the lower.
    pub counter: AtomicU64,
    /// A fingerprint of the list of fragments, 0 until somebody has begun.
    list: AtomicU64,
    numbers: [AtomicU64; 12],
}

impl Shared {
    /// The heap's part behind ours.
    pub fn heap(&mut self) -> pg_sys::ParallelTableScanDesc {
        // SAFETY: one allocation, see `estimate`.
        unsafe { (&raw mut *self).add(1).cast() }
    }

    fn reset(&self) {
        self.counter.store(0, Ordering::Relaxed);
        self.list.store(0, Ordering::Relaxed);
    }

    /// Makes sure that all participants have this list of fragments.
    pub fn agree(&self, table: &TableFragments) {
        let mut hasher = DefaultHasher::new();
        table.list.iter().for_each(|f| f.row.hash.hash(&mut hasher));
        let mine = hasher.finish().max(1);
        let first =
            self.list.compare_exchange(0, mine, Ordering::Relaxed, Ordering::Relaxed).unwrap_or_else(|known| known);
        if first != 0 && first != mine {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                "the fragments of a warm table were exchanged while a parallel scan of it began",
                "The list of fragments that this process read is not the one of the first participant. Run the query again."
            );
        }
    }

    fn add(&self, stats: &Stats) {
        for (to, from) in self.numbers.iter().zip(to_array(stats)) {
            to.fetch_add(from, Ordering::Relaxed);
        }
    }

    fn take(&self) -> Stats {
        let n = |i: usize| self.numbers[i].swap(0, Ordering::Relaxed);
        Stats {
            fragments_pruned: n(0),
            fragments_read: n(1),
            blocks_pruned: n(2),
            blocks_read: n(3),
            rows_filtered: n(4),
            rows: n(5),
            delta_rows: n(6),
            reads: n(7),
            read_bytes: n(8),
            hits: n(9),
            segments_probed: n(10),
            fragments_probed: n(11),
        }
    }
}

fn to_array(s: &Stats) -> [u64; 12] {
    [
        s.fragments_pruned,
        s.fragments_read,
        s.blocks_pruned,
        s.blocks_read,
        s.rows_filtered,
        s.rows,
        s.delta_rows,
        s.reads,
        s.read_bytes,
        s.hits,
        s.segments_probed,
        s.fragments_probed,
    ]
}

/// The bytes that the scan needs.
#[pg_guard]
pub unsafe extern "C-unwind" fn estimate(
    node: *mut pg_sys::CustomScanState,
    _context: *mut pg_sys::ParallelContext,
) -> pg_sys::Size {
    // SAFETY: called by the executor.
    unsafe {
        let snapshot = (*(*node).ss.ps.state).es_snapshot;
        size_of::<Shared>() + pg_sys::table_parallelscan_estimate((*node).ss.ss_currentRelation, snapshot)
    }
}

/// The leader fills the shared memory.
#[pg_guard]
pub unsafe extern "C-unwind" fn initialize(
    node: *mut pg_sys::CustomScanState,
    _context: *mut pg_sys::ParallelContext,
    place: *mut c_void,
) {
    // SAFETY: the place has the bytes that were asked for.
    unsafe {
        let shared = place.cast::<Shared>();
        shared.write(Shared {
            counter: AtomicU64::new(0),
            list: AtomicU64::new(0),
            numbers: [const { AtomicU64::new(0) }; 12],
        });
        let snapshot = (*(*node).ss.ps.state).es_snapshot;
        pg_sys::table_parallelscan_initialize((*node).ss.ss_currentRelation, (*shared).heap(), snapshot);
        (*node.cast::<WarmScanState>()).shared = shared;
    }
}

/// The leader begins again.
#[pg_guard]
pub unsafe extern "C-unwind" fn reinitialize(
    node: *mut pg_sys::CustomScanState,
    _context: *mut pg_sys::ParallelContext,
    place: *mut c_void,
) {
    // SAFETY: as above.
    unsafe {
        let shared = place.cast::<Shared>();
        (*shared).reset();
        pg_sys::table_parallelscan_reinitialize((*node).ss.ss_currentRelation, (*shared).heap());
    }
}

/// A worker finds what the leader made.
#[pg_guard]
pub unsafe extern "C-unwind" fn initialize_worker(
    node: *mut pg_sys::CustomScanState,
    _toc: *mut pg_sys::shm_toc,
    place: *mut c_void,
) {
    // SAFETY: as above.
    unsafe { (*node.cast::<WarmScanState>()).shared = place.cast() }
}

/// A worker leaves its numbers; the leader takes them. The shared memory may be gone afterwards.
#[pg_guard]
pub unsafe extern "C-unwind" fn shutdown(node: *mut pg_sys::CustomScanState) {
    // SAFETY: called by the executor while the shared memory is there.
    unsafe {
        let state = node.cast::<WarmScanState>();
        let Some(shared) = (*state).shared.as_ref() else { return };
        if pg_sys::ParallelWorkerNumber >= 0 {
            shared.add(&super::exec::stats(state));
        } else {
            (*(*state).scan).stats.add(&shared.take());
        }
    }
}
