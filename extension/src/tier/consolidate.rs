//! Consolidation: fragments are written again without their deleted rows, small ones are merged, rows of the delta store
//! become fragments.
//!
//! ```text
//!  1 write  SHARE UPDATE EXCLUSIVE: readers and writers go on
//!           gone = rows that are deleted for every snapshot (their marks precede the horizon)
//!           fragments with a large share of them, and small neighbours, are written again without them
//!           delta rows that all snapshots see go into new fragments, as in a move (`to_warm`)
//!           marks of gone rows are removed; others see them until the commit
//!  2 swap   ACCESS EXCLUSIVE, asked for in short attempts
//!           the catalog gets the new fragments for the old ones, and for the rest a bitmap of their gone rows
//!           if delta rows were absorbed: a new delta store with the others, files are exchanged (`pg::swap`)
//! ```
//!
//! **Row ids stay.** A row that is written again keeps its row id: the row ids of such a fragment are a bitmap beside it
//! (`strata.fragment.row_ids`), position and row id are rank and select in it. Only neighbours are merged, so the row ids of
//! one fragment still lie before those of the next, and only while their row ids span less than 2^32. The fragment index leads to row ids, so only its directories change (`index`). Index entries of fragment rows (of indexes that have any) stay valid; entries of rows
//! that are no more lead nowhere.
//!
//! **Snapshots.** Only rows that no snapshot sees are left out, and only rows that every snapshot sees leave the delta store. So
//! any snapshot, also one older than the swap, reads the same from the old fragments with the marks and from the new
//! ones. The exclusive lock is there for the lists of fragments that backends keep: nobody uses an old list with a snapshot
//! that no longer sees the removed marks. Snapshots of standbys that may be older are cancelled there (`pg::standby`).
//!
//! **Crash or abort** at any point leaves the old fragments in use, and files without a catalog row for the sweeper. Replaced
//! fragments keep their catalog row, out of use, until the sweeper finds that the fragment log has them.

use super::online;
use super::to_warm::{self, Copied};
use super::writer;
use crate::am::fragments::{self, TableFragment, TableFragments};
use crate::am::{analyze, deletion, index, unique};
use crate::guc;
use crate::pg::catalog::{self, FragmentRow};
use crate::pg::standby::Traces;
use crate::pg::swap::{self, IndexCopy};
use crate::pg::{OpenRelation, compat, failpoint};
use pgrx::pg_sys::*;
use roaring::{RoaringBitmap, RoaringTreemap};
use std::rc::Rc;

/// A delta store is large from so many rows on, and
const DELTA_ROWS: u64 = 10_000;
/// a page of it counts for so many.
const DELTA_ROWS_PER_PAGE: u64 = 80;

/// What a consolidation did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Fragments before and after.
    pub fragments: (u64, u64),
    /// Their bytes before and after.
    pub bytes: (u64, u64),
    /// Deleted rows that were left out.
    pub rows_removed: u64,
    /// Rows of the delta store that are in fragments now.
    pub rows_absorbed: u64,
}

/// Fragments that are written again as one.
struct Group {
    /// Their numbers in the table's list.
    members: std::ops::Range<usize>,
    /// What takes their place.
    written: Vec<FragmentRow>,
}

/// What step 1 has done.
struct Written {
    groups: Vec<Group>,
    /// Rows of other fragments that are deleted for every snapshot, by the fragment's number.
    folded: Vec<(usize, RoaringBitmap)>,
    removed: u64,
    /// Who deleted the rows whose marks are gone.
    traces: Traces,
}

/// Consolidates warm table `relid`.
pub fn consolidate(relid: Oid) -> Report {
    // SAFETY: the lock keeps the table.
    unsafe {
        let rel = online::lock_warm(relid);
        let table = fragments::of(rel.0);
        let mut report = Report {
            fragments: (table.as_ref().map_or(0, |t| t.list.len() as u64), 0),
            bytes: (table.as_ref().map_or(0, |t| t.bytes()), 0),
            ..Report::default()
        };
        let horizon = online::wait_for_horizon(rel.0);
        let written = table.as_ref().map(|t| write(rel.0, t, horizon));
        let mut absorbed = to_warm::copy(rel.0);
        report.rows_removed = written.as_ref().map_or(0, |w| w.removed);
        let absorbs = !absorbed.finished.is_empty();
        let heap_bytes = compat::total_relation_size(relid).max(0) as u64;
        let changed = written.as_ref().is_some_and(|w| !w.groups.is_empty() || !w.folded.is_empty());
        let file = compat::filenode(rel.0);
        let keys = super::index::keys_of(rel.0);
        let prepared = absorbs.then(|| prepare(rel.0, &mut absorbed, written.as_ref(), table.as_ref(), heap_bytes));
        let mut traces = written.as_ref().map_or_else(Traces::default, |w| w.traces);
        if absorbs {
            traces.join(&absorbed.pages.traces);
        }
        traces.tell(rel.0);
        drop(rel);
        if changed || absorbs {
            failpoint::hit(failpoint::CONSOLIDATE_BEFORE_SWAP);
            online::lock_for_swap(relid);
            match &prepared {
                Some(prepared) => report.rows_absorbed = exchange(relid, &absorbed, prepared, &mut traces),
                None => {
                    if let (Some(table), Some(written)) = (&table, &written) {
                        replace(relid, file, table, written, true);
                        super::index::settle(relid, file, &keys);
                    }
                }
            }
            CacheInvalidateRelcacheByRelid(relid);
            CommandCounterIncrement();
            failpoint::hit(failpoint::CONSOLIDATE_BEFORE_COMMIT);
        }
        let rel = OpenRelation::open(relid, NoLock);
        let now = fragments::of(rel.0);
        report.fragments.1 = now.as_ref().map_or(0, |t| t.list.len() as u64);
        report.bytes.1 = now.map_or(0, |t| t.bytes());
        report
    }
}

/// Whether a consolidation would be worth it: a fragment has lost `strata.consolidate_threshold` of its rows, or the delta store
/// is large (the same rule as in `strata.policy_worn`).
///
/// # Safety
/// `rel` is an open warm table.
pub unsafe fn is_worth_it(rel: Relation) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let pages = RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM);
        let delta = u64::from(pages.saturating_sub(1)) * DELTA_ROWS_PER_PAGE;
        let Some(table) = fragments::of(rel) else { return delta > DELTA_ROWS };
        if delta > DELTA_ROWS.max(table.rows() / 20) {
            return true;
        }
        let gone = deletion::deleted_for_all(rel);
        let threshold = guc::CONSOLIDATE_THRESHOLD.get();
        table.list.iter().any(|f| {
            let lost = gone_of(f, &gone);
            lost > 0 && lost as f64 >= threshold * f.row.row_count as f64
        })
    }
}

/// Step 1 for the fragments: writes again what is worth it.
unsafe fn write(rel: Relation, table: &Rc<TableFragments>, horizon: TransactionId) -> Written {
    // SAFETY: `rel` is open and locked.
    unsafe {
        let gone = deletion::deleted_before(rel, horizon);
        let groups: Vec<Group> = groups(rel, table, &gone)
            .into_iter()
            .map(|members| {
                pgrx::check_for_interrupts!();
                let list: Vec<&TableFragment> = table.list[members.clone()].iter().collect();
                Group { members, written: writer::rewrite(rel, &list, &RoaringTreemap::new(), &gone) }
            })
            .collect();
        let rewritten = |i: usize| groups.iter().any(|g| g.members.contains(&i));
        let removed = groups.iter().flat_map(|g| g.members.clone()).map(|i| gone_of(&table.list[i], &gone)).sum();
        let folded = table
            .list
            .iter()
            .enumerate()
            .filter(|(i, _)| !rewritten(*i))
            .filter_map(|(i, f)| {
                let first = f.row.first_row_id;
                let mut ids = gone.iter();
                ids.advance_to(first);
                let mut deleted: RoaringBitmap =
                    ids.take_while(|id| *id < f.end()).map(|id| writer::row_id_offset(first, id)).collect();
                deleted.optimize();
                let before = f.row.deleted.as_ref().map_or(0, RoaringBitmap::len);
                (deleted.len() > before).then_some((i, deleted))
            })
            .collect();
        let traces = catalog::remove_marks((*rel).rd_id, &gone, horizon);
        Written { groups, folded, removed, traces }
    }
}

/// How many rows of a fragment are gone.
fn gone_of(f: &TableFragment, gone: &RoaringTreemap) -> u64 {
    match &f.row.row_ids {
        None => gone.range_cardinality(f.row.first_row_id..f.end()),
        Some(ids) => ids.iter().filter(|id| gone.contains(f.row.first_row_id + u64::from(*id))).count() as u64,
    }
}

/// Which neighbours are to be written again together: those that have lost many rows, and runs of small ones; and those with
/// values that the catalog forgets when the table gets another file.
unsafe fn groups(rel: Relation, table: &TableFragments, gone: &RoaringTreemap) -> Vec<std::ops::Range<usize>> {
    let most = guc::FRAGMENT_ROWS.get() as u64;
    let threshold = guc::CONSOLIDATE_THRESHOLD.get();
    let mut groups: Vec<std::ops::Range<usize>> = Vec::new();
    let (mut start, mut live, mut due) = (0, 0, false);
    let mut close = |start: usize, end: usize, due: bool| {
        if due || end - start > 1 {
            groups.push(start..end);
        }
    };
    for (i, f) in table.list.iter().enumerate() {
        let lost = gone_of(f, gone);
        let left = f.row.row_count - lost;
        // SAFETY: `rel` is the fragments' table, open.
        let forgets = unsafe { f.relies_on_catalog((*rel).rd_att) };
        let worth = forgets || (lost > 0 && lost as f64 >= threshold * f.row.row_count as f64);
        if !worth && left > most / 4 {
            close(start, i, due);
            (start, live, due) = (i + 1, 0, false);
            continue;
        }
        // What the bitmaps beside a fragment can tell apart.
        let is_far = f.end() - table.list[start].row.first_row_id > u64::from(u32::MAX);
        if live + left > most || is_far {
            close(start, i, due);
            (start, live, due) = (i, 0, false);
        }
        live += left;
        due |= worth;
    }
    close(start, table.list.len(), due);
    groups
}

/// The transient table that will give its file.
struct Prepared {
    transient: Oid,
    indexes: Vec<IndexCopy>,
    rows: u64,
}

/// Records all fragments for the file of a transient table and builds the indexes that hold entries for their rows.
unsafe fn prepare(
    rel: Relation,
    absorbed: &mut Copied,
    written: Option<&Written>,
    table: Option<&Rc<TableFragments>>,
    heap_bytes: u64,
) -> Prepared {
    // SAFETY: `rel` is open and locked; the transient table is known to this session only.
    unsafe {
        let relid = (*rel).rd_id;
        let transient = swap::transient(rel, compat::access_method_oid(c"warm"), ShareUpdateExclusiveLock);
        let new = OpenRelation::open(transient, AccessExclusiveLock);
        let file = compat::filenode(new.0);
        catalog::copy_file(relid, compat::filenode(rel), file);
        if let (Some(written), Some(table)) = (written, table) {
            replace(relid, file, table, written, false);
        }
        writer::record(relid, file, &mut absorbed.finished, heap_bytes);
        super::index::settle(relid, file, &super::index::keys_of(rel));
        let _stand_in = fragments::StandIn::new(transient, relid);
        let rows = fragments::of(new.0).map_or(0, |t| t.rows() - t.folded.len());
        Prepared { transient, indexes: swap::build_indexes(rel, new.0, |index| !index::is_plain(index)), rows }
    }
}

/// Puts what was written in the place of what it was written from, in the catalog's rows of a file. Replaced fragments of a
/// file that is in use keep a row for the sweeper.
fn replace(relid: Oid, file: Oid, table: &TableFragments, written: &Written, in_use: bool) {
    for group in &written.groups {
        for f in &table.list[group.members.clone()] {
            if in_use {
                catalog::retire_fragment(relid, file, f.row.first_row_id);
            } else {
                catalog::remove_fragment(relid, file, f.row.first_row_id);
            }
        }
        for row in &group.written {
            catalog::record_fragment(relid, file, row);
        }
    }
    for (i, deleted) in &written.folded {
        catalog::fold_deletions(relid, file, table.list[*i].row.first_row_id, deleted);
    }
}

/// Step 2 with absorbed rows: a new delta store. Returns how many rows were absorbed.
unsafe fn exchange(relid: Oid, absorbed: &Copied, prepared: &Prepared, traces: &mut Traces) -> u64 {
    // SAFETY: the relation is locked exclusively.
    unsafe {
        let gone = {
            let rel = OpenRelation::open(relid, NoLock);
            CheckTableNotInUse(rel.0, c"strata.consolidate".as_ptr());
            let new = OpenRelation::open(prepared.transient, NoLock);
            let gone = to_warm::carry_over(rel.0, new.0, absorbed, traces);
            to_warm::mark_gone(relid, compat::filenode(new.0), absorbed, &gone);
            swap::insert_entries(new.0, &prepared.indexes, 0);
            gone
        };
        CacheInvalidateRelcacheByRelid(relid);
        CommandCounterIncrement();
        unique::with_known_unique(|| {
            swap::exchange(relid, prepared.transient, &prepared.indexes, prepared.rows as f64);
        });
        let rel = OpenRelation::open(relid, NoLock);
        analyze::keep_one_page(rel.0);
        absorbed.finished.iter().map(|f| f.row.row_count).sum::<u64>() - gone.len() as u64
    }
}
