//! The online move of a table from warm back to heap.
//!
//! ```text
//!  1 copy   SHARE UPDATE EXCLUSIVE: readers and writers go on; no VACUUM, no other move, no DDL
//!           a transient heap table gets every fragment row that is not deleted, and every delta row that all snapshots
//!           see, as frozen rows; where each of them is can be computed (`Places`); indexes are built over them
//!  2 swap   ACCESS EXCLUSIVE, asked for in short attempts so that nobody queues long behind it
//!           marks of fragment rows, and pages of the delta store that changed since, are looked at again:
//!             a copied row that is gone                    → its copy becomes a dead line pointer, entries of it lead nowhere
//!             a row that was deleted lately                → is written with the mark's transaction as xmax
//!             a row that was promoted lately               → is what the delta row is, without its xmin
//!             a row that was not copied                    → is written with its xmin and xmax (like CLUSTER)
//!           index entries for what was written now; files are swapped (`pg::swap`)
//! ```
//!
//! **Snapshots.** A snapshot that is older than a mark sees the fragment row; so a row whose mark is not visible to all is
//! written as a heap row with the mark's transaction as xmax. But where it was promoted, fragment row R and delta row D are one row with
//! the same values, and a snapshot sees R or D until who changed D is visible to it (who had the row promoted ended later than the
//! promotion). So only D is written, with its xmax and what its ctid leads to, as a row that was there ever since: nobody can tell that
//! it was promoted, neither a transaction that updates the row with a snapshot older than that, nor a serializable one that reads it.
//! Other marks of R are of transactions that changed D, and say no more than its xmax. A standby is told which of its
//! snapshots are older than all that (`pg::standby`).
//!
//! Where a consolidation has moved D to another place, which no mark names, R is written with the promotion's xmax beside D. Then a
//! serializable transaction whose snapshot is older than the promotion, and that reads the row only after both, gets no conflict with who
//! has changed it.
//!
//! **Places.** The rewrite fills pages one after the other, so the n-th copied row is in the page whose first row's number is
//! the last not above n. Copied rows are numbered fragment rows first, by row id, then delta rows by TID; two bitmaps and one
//! number a page tell the place of any copy.
//!
//! **Crash or abort** at any point leaves the table as it was: the transient table and its files vanish with the transaction.
//! The fragments' catalog rows stay for the sweeper after the commit.

use super::online::{self, PagesRead, Rewrite, tag};
use super::throttle::Throttle;
use crate::am::{fragments, index};
use crate::error::StrataError;
use crate::pg::catalog::{self, Deletion, DeletionScan};
use crate::pg::standby::Traces;
use crate::pg::swap::{self, IndexCopy};
use crate::pg::{OpenRelation, compat, ext, failpoint, guarded, tid};
use pgrx::pg_sys::*;
use roaring::RoaringTreemap;
use std::collections::HashSet;

/// What step 1 has done.
struct Copied {
    places: Places,
    pages: PagesRead,
    indexes: Vec<IndexCopy>,
}

/// Where the copies are.
#[derive(Default)]
struct Places {
    /// Fragment rows that were copied, by row id.
    rows: RoaringTreemap,
    /// Delta rows that were copied, by TID.
    delta: RoaringTreemap,
    /// The number of the first row in each page.
    pages: Vec<u64>,
}

impl Places {
    /// Notes that the next row is at `at`.
    fn add(&mut self, number: u64, at: &ItemPointerData) {
        while self.pages.len() <= tid::block(at) as usize {
            self.pages.push(number);
        }
    }

    fn total(&self) -> u64 {
        self.rows.len() + self.delta.len()
    }

    /// The place of the copy of a fragment row.
    fn of_row(&self, row_id: u64) -> Option<ItemPointerData> {
        self.rows.contains(row_id).then(|| self.place(self.rows.rank(row_id) - 1))
    }

    /// The place of the copy of a delta row.
    fn of_delta(&self, tag: u64) -> Option<ItemPointerData> {
        self.delta.contains(tag).then(|| self.place(self.rows.len() + self.delta.rank(tag) - 1))
    }

    fn place(&self, number: u64) -> ItemPointerData {
        let block = self.pages.partition_point(|first| *first <= number) - 1;
        tid::at(block as u32, (number - self.pages[block]) as u16 + 1)
    }
}

/// Moves warm table `relid` back to heap; returns its rows.
pub fn to_hot(relid: Oid) -> i64 {
    let started = std::time::Instant::now();
    // SAFETY: the lock keeps the table.
    unsafe {
        let rel = online::lock_warm(relid);
        let transient = swap::transient(rel.0, HEAP_TABLE_AM_OID, ShareUpdateExclusiveLock);
        let copied = copy(rel.0, transient);
        let mut traces = copied.pages.traces;
        traces.tell(rel.0);
        drop(rel);
        failpoint::hit(failpoint::MOVE_BEFORE_SWAP);
        online::lock_for_swap(relid);
        let locked = std::time::Instant::now();
        let rows = carry_over(relid, transient, &copied, &mut traces);
        swap::exchange(relid, transient, &copied.indexes, rows as f64);
        failpoint::hit(failpoint::MOVE_BEFORE_COMMIT);
        pgrx::debug1!(
            "strata: moved {} rows of {} back in {:?}, exclusive lock held {:?}",
            rows,
            crate::pg::qualified_name(relid),
            started.elapsed(),
            locked.elapsed()
        );
        rows as i64
    }
}

/// Step 1: fills the transient table and builds its indexes.
unsafe fn copy(rel: Relation, transient: Oid) -> Copied {
    // SAFETY: `rel` is open; tuples of the delta store are used while their page is pinned.
    unsafe {
        let new = OpenRelation::open(transient, AccessExclusiveLock);
        let mut places = Places::default();
        let mut rewrite = Rewrite::begin(rel, new.0, GetOldestNonRemovableTransactionId(rel));
        let mut frozen = FrozenHeader::new();

        let slot = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsHeapTuple);
        let mut now = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let mut throttle = Throttle::begin();
        index::for_each_row(rel, &raw mut now, slot, None, |at| {
            let Some(row_id) = tid::row_id(&at) else { return };
            let mut should_free = false;
            let tuple = ExecFetchSlotHeapTuple(slot, true, &mut should_free);
            rewrite.write(frozen.tuple(), tuple);
            places.add(places.total(), &(*tuple).t_self);
            places.rows.insert(row_id);
            throttle.spent(u64::from((*tuple).t_len));
        });
        ExecDropSingleTupleTableSlot(slot);

        let pages = PagesRead::read(rel, |tuple| {
            let copy = rewrite.reform(tuple);
            rewrite.write(frozen.tuple(), copy);
            places.add(places.total(), &(*copy).t_self);
            places.delta.insert(tag(&tuple.t_self));
            heap_freetuple(copy);
        });
        rewrite.end();
        let indexes = swap::build_indexes(rel, new.0, |_| true);
        Copied { places, pages, indexes }
    }
}

/// A tuple header that says: committed before everything, deleted by nobody.
struct FrozenHeader {
    header: HeapTupleHeaderData,
    tuple: HeapTupleData,
}

impl FrozenHeader {
    fn new() -> Self {
        let mut header = HeapTupleHeaderData::default();
        header.t_choice.t_heap.t_xmin = FrozenTransactionId;
        header.t_infomask = (HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID | HEAP_XMAX_INVALID) as u16;
        Self { header, tuple: HeapTupleData { t_self: tid::at(0, 1), ..Default::default() } }
    }

    /// To be used before `self` moves.
    fn tuple(&mut self) -> HeapTuple {
        self.tuple.t_data = &raw mut self.header;
        self.header.t_ctid = self.tuple.t_self;
        &raw mut self.tuple
    }
}

/// What the marks of fragment rows say under the exclusive lock.
#[derive(Default)]
struct Marks {
    /// Rows that no snapshot sees any more.
    dead: Vec<u64>,
    /// The promotions and deletions that are not visible to every snapshot, one for a row, by row id.
    recent: Vec<Deletion>,
    /// Who wrote the marks of dead rows.
    traces: Traces,
}

/// Reads the marks of `rel`. All transactions that wrote them have ended, or are this one.
unsafe fn marks(rel: Relation, oldest_xmin: TransactionId) -> Marks {
    let mut marks = Marks::default();
    // SAFETY: `rel` is open and locked; the snapshot outlives the scan.
    unsafe {
        let Some(oids) = catalog::oids() else { StrataError::NotInstalled.raise() };
        let mut now = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let first = fragments::of(rel).map_or(0, |table| crate::am::deletion::first_row_id(&table));
        let all: Vec<Deletion> = DeletionScan::from(&oids, (*rel).rd_id, first, &raw mut now).collect();
        for of_row in all.chunk_by(|a, b| a.row_id == b.row_id) {
            let everybody_sees = |mark: &&Deletion| mark.own_command.is_none() && mark.is_before(oldest_xmin);
            if let Some(mark) = of_row.iter().find(everybody_sees) {
                marks.dead.push(mark.row_id);
                marks.traces.lose(mark.xmin);
            } else if let Some(mark) = of_row.iter().find(|mark| !mark.is_superseding()) {
                marks.recent.push(*mark);
            }
        }
    }
    marks
}

/// Step 2, under ACCESS EXCLUSIVE: makes the transient table what the table is now. Returns the rows.
unsafe fn carry_over(relid: Oid, transient: Oid, copied: &Copied, traces: &mut Traces) -> u64 {
    // SAFETY: both relations are locked exclusively; pages are locked while they are looked at, and pinned while tuples of
    // them are rewritten.
    unsafe {
        let rel = OpenRelation::open(relid, NoLock);
        CheckTableNotInUse(rel.0, c"strata.to_hot".as_ptr());
        let new = OpenRelation::open(transient, NoLock);
        let oldest_xmin = GetOldestNonRemovableTransactionId(rel.0);
        let file = compat::filenode(rel.0);
        let places = &copied.places;
        let fragments = fragments::of(rel.0);
        let marks = marks(rel.0, oldest_xmin);
        let from = RelationGetNumberOfBlocksInFork(new.0, ForkNumber::MAIN_FORKNUM);
        let mut gone: Vec<ItemPointerData> = Vec::new();
        let mut added = 0;
        let mut rewrite = Rewrite::begin(rel.0, new.0, oldest_xmin);

        gone.extend(marks.dead.iter().filter_map(|row_id| places.of_row(*row_id)));
        // Delta rows that are written as if they had been there before they were promoted.
        let mut promoted: HashSet<u64> = HashSet::new();
        let slot = MakeSingleTupleTableSlot((*rel.0).rd_att, &raw const TTSOpsHeapTuple);
        for mark in &marks.recent {
            gone.extend(places.of_row(mark.row_id));
            let Some(table) = &fragments else { break };
            if mark.is_promotion() && mark.filenode == file && is_inserted_by(rel.0, &mark.delta, mark.xmin) {
                promoted.insert(tag(&mark.delta));
                continue;
            }
            if !table.fetch(rel.0, mark.row_id, slot) {
                continue;
            }
            let mut should_free = false;
            let source = ExecFetchSlotHeapTuple(slot, true, &mut should_free);
            let old = heap_copytuple(source);
            deleted_by(old, mark);
            rewrite.write(old, source);
            heap_freetuple(old);
        }
        ExecDropSingleTupleTableSlot(slot);

        let changed = copied.pages.read_again(rel.0, oldest_xmin, |tuple, status| {
            if status == HTSV_Result::HEAPTUPLE_DEAD {
                rewrite.dead(tuple);
                return;
            }
            if matches!(status, HTSV_Result::HEAPTUPLE_LIVE | HTSV_Result::HEAPTUPLE_INSERT_IN_PROGRESS) {
                added += 1;
            }
            if promoted.contains(&tag(&tuple.t_self)) {
                let old = heap_copytuple(tuple);
                (*(*old).t_data).t_infomask |= (HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID) as u16;
                rewrite.carry(old);
                heap_freetuple(old);
            } else {
                rewrite.carry(tuple);
            }
        });
        rewrite.end();
        traces.join(&marks.traces);
        traces.join(&changed.traces);
        traces.tell(rel.0);
        gone.extend(places.delta.iter().filter(|at| changed.is_gone(*at)).filter_map(|at| places.of_delta(at)));
        remove(new.0, &mut gone);
        swap::insert_entries(new.0, &copied.indexes, from);
        CacheInvalidateRelcache(rel.0);
        let rows = places.total() - gone.len() as u64 + added;
        drop(new);
        drop(rel);
        CommandCounterIncrement();
        rows
    }
}

/// Whether the delta row at `at` is one that `xid` inserted. If that is gone, every snapshot sees who removed it, and so the
/// promotion before.
unsafe fn is_inserted_by(rel: Relation, at: &ItemPointerData, xid: TransactionId) -> bool {
    let mut tuple = HeapTupleData { t_self: *at, ..Default::default() };
    let mut buffer: Buffer = 0;
    // SAFETY: `rel` is open and locked exclusively; the tuple is read while its buffer is pinned.
    unsafe {
        let found = compat::heap_fetch_any(rel, &mut tuple, &mut buffer);
        let inserted = found && compat::tuple_xmin(tuple.t_data) == xid;
        if found {
            ReleaseBuffer(buffer);
        }
        inserted
    }
}

/// Makes `tuple` one that the mark's transaction deleted.
unsafe fn deleted_by(tuple: HeapTuple, mark: &Deletion) {
    // SAFETY: `tuple` is a copy in memory, its xmin frozen.
    unsafe {
        let header = (*tuple).t_data;
        (*header).t_infomask &= !(HEAP_XMAX_INVALID as u16);
        (*header).t_infomask2 |= HEAP_KEYS_UPDATED as u16;
        (*header).t_choice.t_heap.t_xmax = mark.xmin;
        (*header).t_choice.t_heap.t_field3.t_cid = mark.own_command.unwrap_or(0);
    }
}

/// Makes the copies at `places` dead line pointers: index entries of them lead nowhere, and the next VACUUM removes both.
unsafe fn remove(new: Relation, places: &mut [ItemPointerData]) {
    places.sort_by_key(tag);
    // SAFETY: `new` is locked exclusively and known to this session only; what is changed of a page are its line pointers.
    unsafe {
        for page in places.chunk_by(|a, b| tid::block(a) == tid::block(b)) {
            pgrx::check_for_interrupts!();
            let block = tid::block(&page[0]);
            let buffer = ReadBuffer(new, block);
            for at in page {
                let item = compat::item_id(BufferGetPage(buffer), at.ip_posid);
                let mut tuple = compat::page_tuple(new, BufferGetPage(buffer), block, at.ip_posid, item);
                if (*tuple.t_data).t_infomask & HEAP_HASEXTERNAL as u16 != 0 {
                    guarded(|| ext::heap_toast_delete(new, &mut tuple, true));
                }
            }
            online::change_page(new, buffer, |copy| {
                for at in page {
                    let item = compat::item_id(copy, at.ip_posid).cast_mut();
                    (*item).set_lp_flags(LP_DEAD);
                    (*item).set_lp_off(0);
                    (*item).set_lp_len(0);
                }
            });
            ReleaseBuffer(buffer);
        }
    }
}
