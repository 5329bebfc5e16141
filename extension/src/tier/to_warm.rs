//! The online move of a table (mostly a partition) from heap to warm.
//!
//! ```text
//!  1 copy   SHARE UPDATE EXCLUSIVE: readers and writers go on; no VACUUM, no other move, no DDL
//!           every row that all snapshots see (xmin before the horizon, not deleted) goes into fragments; their TIDs are kept
//!           fragments are recorded for the file of a transient warm table, and indexes that hold entries for fragment
//!           rows are built there
//!  2 swap   ACCESS EXCLUSIVE, asked for in short attempts so that nobody queues long behind it
//!           pages that changed since (by LSN) or had other rows are read again:
//!             a copied row that is gone      → it joins the bitmap of its fragment's rows that are deleted for every snapshot
//!             a row that was not copied      → goes to the new delta store with its xmin and xmax (like CLUSTER)
//!           files are swapped (`pg::swap`); plain btrees are rebuilt over the delta rows
//! ```
//!
//! **Snapshots.** A fragment holds only rows that every snapshot of step 1 and later sees, unless they are deleted; versions
//! that only some snapshots see stay heap tuples. So also a REPEATABLE READ transaction that is older than the move reads
//! the same table before and after it. A standby is told which of its snapshots are too old for that (`pg::standby`).
//!
//! **Writers** of step 1 change the heap, which is read again in step 2 where its pages changed. A line pointer may have
//! been pruned and used again meanwhile; the new tuple's xmin is not before the horizon, which tells it apart.
//!
//! **Crash or abort** at any point leaves the table as it was, and fragment files without a catalog row for the sweeper. The
//! commit makes all visible at once; the old heap file goes with it.
//!
//! **Logical decoding** sees nothing: the rewrite logs no logical changes.

use super::online::{self, PagesRead, Rewrite, tag};
use super::writer::{self, FragmentWriter};
use crate::am::{analyze, fragments, handler, index, unique};
use crate::error::StrataError;
use crate::pg::deform::Deformer;
use crate::pg::standby::Traces;
use crate::pg::swap::{self, IndexCopy};
use crate::pg::{OpenRelation, catalog, compat, failpoint};
use pgrx::pg_sys::*;
use roaring::RoaringBitmap;
use std::collections::HashSet;

/// Moves the rows of heap table `relid` into fragments; returns how many.
pub fn to_warm(relid: Oid) -> i64 {
    let started = std::time::Instant::now();
    online::check(relid);
    // SAFETY: `check` saw an ordinary table; the lock keeps it.
    unsafe {
        LockRelationOid(relid, ShareUpdateExclusiveLock as i32);
        let rel = OpenRelation::open(relid, NoLock);
        if handler::is_warm(rel.0) {
            StrataError::WrongObject {
                message: format!("table {} is warm already", crate::pg::qualified_name(relid)),
                hint: "strata.to_hot() moves it back.".into(),
            }
            .raise();
        }
        let mut copied = copy(rel.0);
        let heap_bytes = compat::total_relation_size(relid).max(0) as u64;
        let transient = swap::transient(rel.0, compat::access_method_oid(c"warm"), ShareUpdateExclusiveLock);
        let (rows, copies) = record(rel.0, transient, &mut copied, heap_bytes);
        let mut traces = copied.pages.traces;
        traces.tell(rel.0);
        drop(rel);
        failpoint::hit(failpoint::MOVE_BEFORE_SWAP);
        online::lock_for_swap(relid);
        let locked = std::time::Instant::now();
        let rows = swap(relid, transient, &copied, &copies, rows, &mut traces);
        failpoint::hit(failpoint::MOVE_BEFORE_COMMIT);
        pgrx::debug1!(
            "strata: moved {} rows of {} in {:?}, exclusive lock held {:?}",
            rows,
            crate::pg::qualified_name(relid),
            started.elapsed(),
            locked.elapsed()
        );
        rows as i64
    }
}

/// What step 1 has done.
pub(super) struct Copied {
    pub(super) finished: Vec<writer::Finished>,
    pub(super) pages: PagesRead,
}

/// Step 1: reads the heap and writes the fragments.
pub(super) unsafe fn copy(rel: Relation) -> Copied {
    // SAFETY: `rel` is open; tuples are used while their page is pinned.
    unsafe {
        let mut writer = FragmentWriter::new(rel, rel);
        let mut row = Deformer::new((*rel).rd_att);
        let context = writer::row_context();
        let pages = PagesRead::read(rel, |tuple| {
            // Only detoasting takes memory there.
            if !(*context).isReset {
                MemoryContextReset(context);
            }
            let old = MemoryContextSwitchTo(context);
            row.take_apart(tuple);
            writer.push(row.values.as_ptr(), row.nulls.as_ptr(), tag(&tuple.t_self));
            MemoryContextSwitchTo(old);
        });
        MemoryContextDelete(context);
        Copied { finished: writer.finish(), pages }
    }
}

/// Records the fragments for the transient table's file and builds the indexes that hold entries for their rows. Returns the
/// rows in fragments and the indexes.
unsafe fn record(rel: Relation, transient: Oid, copied: &mut Copied, heap_bytes: u64) -> (u64, Vec<IndexCopy>) {
    // SAFETY: `rel` is open and locked; the transient table is known to this session only.
    unsafe {
        let relid = (*rel).rd_id;
        let new = OpenRelation::open(transient, AccessExclusiveLock);
        let file = compat::filenode(new.0);
        let rows = writer::record(relid, file, &mut copied.finished, heap_bytes);
        super::index::settle(relid, file, &super::index::keys_of(rel));
        let _stand_in = fragments::StandIn::new(transient, relid);
        (rows, swap::build_indexes(rel, new.0, |index| !index::is_plain(index)))
    }
}

/// Step 2, under ACCESS EXCLUSIVE. Returns the rows that are in fragments.
unsafe fn swap(
    relid: Oid,
    transient: Oid,
    copied: &Copied,
    copies: &[IndexCopy],
    rows: u64,
    traces: &mut Traces,
) -> u64 {
    // SAFETY: the relation is locked exclusively: nobody else reads or writes it, all writers have ended.
    unsafe {
        let gone = {
            let rel = OpenRelation::open(relid, NoLock);
            CheckTableNotInUse(rel.0, c"strata.to_warm".as_ptr());
            let new = OpenRelation::open(transient, NoLock);
            let gone = carry_over(rel.0, new.0, copied, traces);
            mark_gone(relid, compat::filenode(new.0), copied, &gone);
            swap::insert_entries(new.0, copies, 0);
            CacheInvalidateRelcache(rel.0);
            gone
        };
        CommandCounterIncrement();
        unique::with_known_unique(|| swap::exchange(relid, transient, copies, rows as f64));
        let rel = OpenRelation::open(relid, NoLock);
        analyze::keep_one_page(rel.0);
        rows - gone.len() as u64
    }
}

/// Copies what is not in the fragments to the new delta store; returns the tags of copied rows that are gone.
pub(super) unsafe fn carry_over(old: Relation, new: Relation, copied: &Copied, traces: &mut Traces) -> Vec<u64> {
    // SAFETY: both relations are locked exclusively; tuples are rewritten while their page is pinned.
    unsafe {
        let oldest_xmin = GetOldestNonRemovableTransactionId(old);
        let mut rewrite = Rewrite::begin(old, new, oldest_xmin);
        let changed = copied.pages.read_again(old, oldest_xmin, |tuple, status| {
            if status == HTSV_Result::HEAPTUPLE_DEAD {
                rewrite.dead(tuple);
            } else {
                rewrite.carry(tuple);
            }
        });
        rewrite.end();
        traces.join(&changed.traces);
        traces.tell(old);
        copied.finished.iter().flat_map(|f| f.tags.iter()).filter(|t| changed.is_gone(**t)).copied().collect()
    }
}

/// Deletes the fragment rows of `gone` for every snapshot: where a snapshot still sees such a row, it is a delta row. They are noted
/// beside the fragment, in a catalog row that this transaction made: marks that every snapshot sees would outlive its abort.
pub(super) fn mark_gone(relid: Oid, filenode: Oid, copied: &Copied, gone: &[u64]) {
    if gone.is_empty() {
        return;
    }
    let gone: HashSet<u64> = gone.iter().copied().collect();
    for f in &copied.finished {
        let deleted: RoaringBitmap =
            f.tags.iter().enumerate().filter(|(_, t)| gone.contains(t)).map(|(i, _)| i as u32).collect();
        if !deleted.is_empty() {
            catalog::fold_deletions(relid, filenode, f.row.first_row_id, &deleted);
        }
    }
}
