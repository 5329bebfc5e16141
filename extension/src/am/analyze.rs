//! ANALYZE, VACUUM, size estimates and TABLESAMPLE.
//!
//! ANALYZE samples heap blocks. A warm table with fragments keeps at least one heap page (empty if need be), and after the
//! first sampled page the fragment rows are emitted, so they enter the row sample with their share.
//!
//! VACUUM vacuums the delta store and then, if it is worth it, has a background worker consolidate the table. The heap counts the
//! rows of the delta store; what it writes down of that (`pg_class.reltuples`, `n_live_tup`) gets the fragment rows on top. It
//! estimates the rows on pages that it skipped by what the table had before, so those of fragments are taken off first.

use super::handler::heap;
use super::{deletion, fragments, scan};
use crate::guc;
use crate::pg::{compat, guarded, stat, tid};
use crate::tier::{consolidate, worker};
use pgrx::pg_sys::*;
use pgrx::prelude::*;

/// At most this many rows of fragments are emitted to ANALYZE; larger tables are sampled by whole blocks, evenly spread.
const ANALYZE_ROWS: u64 = 600_000;

#[cfg(any(feature = "pg15", feature = "pg16"))]
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_analyze_next_block(
    scan: TableScanDesc,
    block: BlockNumber,
    strategy: BufferAccessStrategy,
) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        let inner = scan::inner(scan);
        guarded(|| heap().scan_analyze_next_block.unwrap_unchecked()(inner, block, strategy))
    }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_analyze_next_block(scan: TableScanDesc, stream: *mut ReadStream) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        let inner = scan::inner(scan);
        guarded(|| heap().scan_analyze_next_block.unwrap_unchecked()(inner, stream))
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn scan_analyze_next_tuple(
    desc: TableScanDesc,
    oldest_xmin: TransactionId,
    live: *mut f64,
    dead: *mut f64,
    slot: *mut TupleTableSlot,
) -> bool {
    // SAFETY: `desc` was made by scan_begin.
    unsafe {
        let warm = desc.cast::<scan::WarmScan>();
        if !(*warm).emitting_fragments() {
            let inner = scan::inner(desc);
            if guarded(|| heap().scan_analyze_next_tuple.unwrap_unchecked()(inner, oldest_xmin, live, dead, slot)) {
                return true;
            }
            if (*warm).analyzed {
                return false;
            }
            (*warm).start_fragments(ANALYZE_ROWS);
        }
        if (*warm).next_analyzed((*desc).rs_rd, slot, live) {
            return true;
        }
        (*warm).analyzed = true;
        (*warm).end_fragments();
        ExecClearTuple(slot);
        false
    }
}

/// The fragment rows that nobody has deleted, as this transaction sees it now.
///
/// # Safety
/// `rel` is open and locked.
pub unsafe fn live_rows(rel: Relation) -> u64 {
    // SAFETY: the caller's promise; the snapshot outlives the call.
    unsafe {
        let Some(table) = fragments::of(rel) else { return 0 };
        let mut own = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        table.rows().saturating_sub(deletion::deleted(rel, &raw mut own).len())
    }
}

/// Makes sure that the table has a heap page for ANALYZE to sample.
///
/// # Safety
/// `rel` is open with a lock that allows to extend it.
pub unsafe fn keep_one_page(rel: Relation) {
    // SAFETY: the caller's promise.
    unsafe {
        if RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM) == 0 && fragments::of(rel).is_some() {
            add_page(rel);
        }
    }
}

/// Adds an empty heap page.
///
/// # Safety
/// As for [`keep_one_page`].
pub unsafe fn add_page(rel: Relation) {
    // SAFETY: the caller's promise; the new page is initialized and logged before it is unlocked.
    unsafe {
        LockRelationForExtension(rel, ExclusiveLock as i32);
        let buffer = ReadBufferExtended(
            rel,
            ForkNumber::MAIN_FORKNUM,
            InvalidBlockNumber,
            ReadBufferMode::RBM_NORMAL,
            std::ptr::null_mut(),
        );
        LockBuffer(buffer, BUFFER_LOCK_EXCLUSIVE as i32);
        PageInit(BufferGetPage(buffer), BLCKSZ as usize, 0);
        MarkBufferDirty(buffer);
        log_newpage_buffer(buffer, true);
        UnlockReleaseBuffer(buffer);
        UnlockRelationForExtension(rel, ExclusiveLock as i32);
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn relation_vacuum(
    rel: Relation,
    params: *mut VacuumParams,
    strategy: BufferAccessStrategy,
) {
    // SAFETY: the arguments are vacuum.c's.
    unsafe {
        let live = live_rows(rel);
        let form = (*rel).rd_rel;
        if (*form).reltuples > 0.0 {
            (*form).reltuples = ((*form).reltuples - live as f32).max(0.0);
        }
        guarded(|| heap().relation_vacuum.unwrap_unchecked()(rel, params, strategy));
        keep_one_page(rel);
        if live > 0 {
            compat::add_to_reltuples(rel, live as f64);
            stat::live(rel, live as i64);
        }
        // Not in VACUUM's own transaction, which other snapshots do not count: it may not write catalog rows.
        if guc::CONSOLIDATE_ON_VACUUM.get()
            && (*(*rel).rd_rel).relpersistence == RELPERSISTENCE_PERMANENT as i8
            && consolidate::is_worth_it(rel)
        {
            worker::start_consolidation((*rel).rd_id);
        }
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn relation_estimate_size(
    rel: Relation,
    widths: *mut i32,
    pages: *mut BlockNumber,
    tuples: *mut f64,
    all_visible: *mut f64,
) {
    // SAFETY: the arguments are the planner's.
    unsafe {
        guarded(|| heap().relation_estimate_size.unwrap_unchecked()(rel, widths, pages, tuples, all_visible));
        let Some(table) = fragments::of(rel) else { return };
        let rows = table.rows() as f64;
        let blocks = RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM);
        // The heap's estimate divides pg_class.reltuples, which has the fragment rows too, by the heap's pages. So the
        // delta store is estimated by its size alone: at most what fits its pages at 100 bytes a row.
        let delta = if blocks <= 1 { 0.0 } else { f64::from(blocks) * 80.0 };
        *tuples = rows + delta.min(*tuples);
        *pages = blocks + (table.bytes() / u64::from(BLCKSZ)) as BlockNumber;
    }
}

/// The virtual blocks of a table: 291 rows each, by fragment.
///
/// # Safety
/// `rel` is open.
pub unsafe fn virtual_blocks(rel: Relation) -> Vec<(u64, u64)> {
    // SAFETY: `rel` is open.
    let Some(table) = (unsafe { fragments::of(rel) }) else { return Vec::new() };
    let mut blocks = Vec::new();
    for f in &table.list {
        let (mut row, end) = (f.row.first_row_id, f.end());
        while row < end {
            let next = ((row / tid::ROWS_PER_BLOCK + 1) * tid::ROWS_PER_BLOCK).min(end);
            blocks.push((row, next));
            row = next;
        }
    }
    blocks
}

/// Chooses the next virtual block of a sample; `current` is its number, or below 0 before the first.
///
/// # Safety
/// The arguments are those of the scan's callback.
pub unsafe fn sample_next_block(scan: TableScanDesc, state: *mut SampleScanState, current: &mut i64) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let blocks = (*scan.cast::<scan::WarmScan>()).sample_blocks((*scan).rs_rd);
        let next = match (*(*state).tsmroutine).NextSampleBlock {
            Some(choose) => {
                let block = guarded(|| choose(state, blocks.len() as BlockNumber));
                if block == InvalidBlockNumber { None } else { Some(i64::from(block)) }
            }
            None => Some(*current + 1),
        };
        match next {
            // A method that keeps its own count went through the heap's blocks first; it is done when it says so.
            Some(block) if (block as usize) < blocks.len() => {
                *current = block;
                true
            }
            _ => false,
        }
    }
}

/// The next sampled row of virtual block `block`.
///
/// # Safety
/// The arguments are those of the scan's callback.
pub unsafe fn sample_next_tuple(
    scan: TableScanDesc,
    state: *mut SampleScanState,
    slot: *mut TupleTableSlot,
    block: i64,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let blocks = (*scan.cast::<scan::WarmScan>()).sample_blocks((*scan).rs_rd);
        let Some((first, end)) = blocks.get(block as usize).copied() else { return false };
        let Some(choose) = (*(*state).tsmroutine).NextSampleTuple else { return false };
        loop {
            let offset = guarded(|| choose(state, block as BlockNumber, (end - first) as OffsetNumber));
            if offset == InvalidOffsetNumber as OffsetNumber {
                ExecClearTuple(slot);
                return false;
            }
            let row_id = first + u64::from(offset) - 1;
            if fragments::fetch_visible((*scan).rs_rd, row_id, (*scan).rs_snapshot, slot) {
                stat::returned((*scan).rs_rd, 1);
                return true;
            }
        }
    }
}
