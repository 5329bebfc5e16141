//! Sequential and sample scans through the table-AM interface: delta rows from the heap, then fragment rows.
//!
//! The planner prefers `plan`'s WarmScan for reading whole tables; these callbacks serve everything else (COPY, CLUSTER,
//! constraint checks, rewrites, cursors). A scan is a descriptor of our own around the heap's. The descriptor is plain C;
//! its Rust part is dropped with the memory context, also after an ERROR.
//!
//! In a parallel scan the participants claim whole fragments with a counter behind the heap's shared state.

use super::fragments::{self, ColumnSource, TableFragment, TableFragments};
use super::handler::heap;
use super::{datum, deletion, ssi};
use crate::memory::access::{self, Choice, Pattern};
use crate::pg::{guarded, stat, tid};
use pgrx::PgMemoryContexts;
use pgrx::pg_sys::*;
use pgrx::prelude::*;
use roaring::RoaringTreemap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use strata_fragment::memory::Charge;
use strata_fragment::{Column, Fragment};

/// The scan descriptor: ours first, the heap's behind `inner`.
#[repr(C)]
pub struct WarmScan {
    base: TableScanDescData,
    inner: TableScanDesc,
    rows: *mut FragmentRows,
    in_fragments: bool,
    /// A row was asked for.
    started: bool,
    /// Where a bitmap scan is.
    pub bitmap: super::bitmap::State,
    sample_block: i64,
    /// ANALYZE has emitted the fragment rows.
    pub analyzed: bool,
}

impl WarmScan {
    /// ANALYZE is among the fragment rows.
    pub fn emitting_fragments(&self) -> bool {
        self.in_fragments
    }

    /// ANALYZE goes on with fragment rows: with whole blocks of them, spread evenly, if there are more than `limit`.
    pub fn start_fragments(&mut self, limit: u64) {
        self.in_fragments = true;
        // SAFETY: made by scan_begin.
        unsafe { (*self.rows).sample_limit = Some(limit) };
    }

    /// ANALYZE is through with the fragment rows.
    pub fn end_fragments(&mut self) {
        self.in_fragments = false;
    }

    /// The virtual blocks of the table, for TABLESAMPLE: the row ids of each.
    ///
    /// # Safety
    /// `rel` is the scan's table.
    pub unsafe fn sample_blocks(&mut self, rel: Relation) -> &[(u64, u64)] {
        // SAFETY: made by scan_begin; the caller's promise.
        unsafe { (*self.rows).sample_blocks.get_or_insert_with(|| super::analyze::virtual_blocks(rel)) }
    }

    /// The next fragment row for ANALYZE; `live` grows by what it stands for.
    ///
    /// # Safety
    /// The arguments are those of scan_analyze_next_tuple.
    pub unsafe fn next_analyzed(&mut self, rel: Relation, slot: *mut TupleTableSlot, live: *mut f64) -> bool {
        // SAFETY: the caller's promise; ANALYZE sees what is there now.
        unsafe {
            let mut own = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
            let rows = &mut *self.rows;
            let found = rows.next(rel, &raw mut own, slot, true, None);
            if found {
                *live += rows.sample_weight();
            }
            found
        }
    }
}

/// The heap's descriptor of a scan.
///
/// # Safety
/// `scan` was made by [`scan_begin`].
pub unsafe fn inner(scan: TableScanDesc) -> TableScanDesc {
    // SAFETY: the caller's promise.
    unsafe {
        let warm = scan.cast::<WarmScan>();
        // table_scan_update_snapshot gives a parallel bitmap scan its snapshot after the fact.
        (*(*warm).inner).rs_snapshot = (*warm).base.rs_snapshot;
        (*warm).inner
    }
}

/// The rows of the fragments of one scan, in order, in both directions.
#[derive(Default)]
pub struct FragmentRows {
    table: Option<Rc<TableFragments>>,
    loaded: bool,
    deleted: RoaringTreemap,
    /// The place between two rows where the scan is, and which of the two is the current row, if any: the next row in
    /// either direction is the neighbour of the current row.
    at: Position,
    current: Current,
    block: Option<Block>,
    /// The scan starts behind the last row.
    from_end: bool,
    /// The row ids of a TID range scan.
    range: Option<Range<u64>>,
    /// ANALYZE reads about this many rows.
    sample_limit: Option<u64>,
    /// For TABLESAMPLE.
    sample_blocks: Option<Vec<(u64, u64)>>,
    choice: Option<Choice>,
    context: MemoryContext,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Position {
    fragment: usize,
    block: usize,
    row: usize,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Current {
    #[default]
    None,
    Before,
    After,
}

struct Block {
    fragment: usize,
    number: usize,
    file: Rc<Fragment>,
    sources: Vec<ColumnSource>,
    columns: Vec<Option<Rc<Column>>>,
    _charge: Charge,
}

impl FragmentRows {
    /// Reads the list of fragments and what is deleted for `snapshot`.
    unsafe fn load(&mut self, rel: Relation, snapshot: Snapshot) {
        if self.loaded {
            return;
        }
        // SAFETY: `rel` is open, `snapshot` valid.
        unsafe {
            self.table = fragments::of(rel);
            if let Some(table) = &self.table {
                self.choice = Some(access::of_table((*rel).rd_id, table, Pattern::Blocks));
                self.deleted = deletion::deleted(rel, snapshot);
                ssi::read_table(rel, snapshot);
            }
        }
        self.loaded = true;
    }

    /// The next visible row in `direction`, stored in `slot`.
    unsafe fn next(
        &mut self,
        rel: Relation,
        snapshot: Snapshot,
        slot: *mut TupleTableSlot,
        forward: bool,
        claim: Option<&AtomicU32>,
    ) -> bool {
        // SAFETY: the caller's arguments are those of scan_getnextslot.
        unsafe {
            self.load(rel, snapshot);
            let Some(table) = self.table.clone() else { return false };
            if std::mem::take(&mut self.from_end) {
                self.at = Position { fragment: table.list.len(), block: 0, row: 0 };
            }
            match (self.current, forward) {
                (Current::Before, false) => self.at.row -= 1,
                (Current::After, true) => self.at.row += 1,
                _ => {}
            }
            self.current = Current::None;
            loop {
                let Some((position, tf)) = self.step(&table, forward, claim) else { return false };
                if let Some(range) = &self.range {
                    let first = tf.open().blocks()[position.block].first_row;
                    if !range.contains(&tf.row_id(first + position.row as u64)) {
                        continue;
                    }
                }
                // A rewrite reads with the descriptor from before the change: the slot's, not the relation's.
                let fragment = self.block_at((*slot).tts_tupleDescriptor, tf, position);
                let first = fragment.file.blocks()[position.block].first_row;
                let row_id = tf.row_id(first + position.row as u64);
                if self.deleted.contains(row_id) {
                    continue;
                }
                self.store(rel, slot, position.row, row_id);
                self.current = if forward { Current::Before } else { Current::After };
                return true;
            }
        }
    }

    /// Whether no row of a fragment is in the range that is asked for.
    fn is_outside(&self, tf: &TableFragment) -> bool {
        let (first, end) = (tf.row.first_row_id, tf.end());
        self.range.as_ref().is_some_and(|r| r.end <= first || end <= r.start)
    }

    /// Every how many blocks ANALYZE reads one.
    fn sample_step(&self) -> usize {
        match (self.sample_limit, &self.table) {
            (Some(limit), Some(table)) => (table.rows() / limit.max(1) + 1) as usize,
            _ => 1,
        }
    }

    /// The rows that a sampled row stands for.
    fn sample_weight(&self) -> f64 {
        self.sample_step() as f64
    }

    /// Moves by one row; returns the row's position.
    fn step<'t>(
        &mut self,
        table: &'t TableFragments,
        forward: bool,
        claim: Option<&AtomicU32>,
    ) -> Option<(Position, &'t TableFragment)> {
        loop {
            if forward {
                if let Some(counter) = claim
                    && self.at == Position::default()
                    && self.block.is_none()
                {
                    self.at.fragment = counter.fetch_add(1, Ordering::Relaxed) as usize;
                }
                let tf = table.list.get(self.at.fragment)?;
                if self.is_outside(tf) {
                    self.at = Position { fragment: self.at.fragment + 1, block: 0, row: 0 };
                    continue;
                }
                let file = tf.open();
                match file.blocks().get(self.at.block) {
                    Some(b) if self.at.row < b.rows as usize => {
                        let found = self.at;
                        self.at.row += 1;
                        return Some((found, tf));
                    }
                    Some(_) => self.at = Position { block: self.at.block + self.sample_step(), row: 0, ..self.at },
                    None => {
                        let next = match claim {
                            Some(counter) => counter.fetch_add(1, Ordering::Relaxed) as usize,
                            None => self.at.fragment + 1,
                        };
                        self.at = Position { fragment: next, block: 0, row: 0 };
                    }
                }
            } else if self.at.row > 0 {
                self.at.row -= 1;
                let tf = table.list.get(self.at.fragment)?;
                return Some((self.at, tf));
            } else if self.at.block > 0 {
                let file = table.list.get(self.at.fragment)?.open();
                let block = self.at.block - 1;
                self.at = Position { block, row: file.blocks()[block].rows as usize, ..self.at };
            } else if self.at.fragment > 0 {
                let fragment = self.at.fragment - 1;
                let tf = table.list.get(fragment)?;
                let blocks = if self.is_outside(tf) { 0 } else { tf.open().blocks().len() };
                self.at = Position { fragment, block: blocks, row: 0 };
            } else {
                return None;
            }
        }
    }

    /// Makes sure that the block of `position` is decoded.
    unsafe fn block_at(&mut self, tupdesc: TupleDesc, tf: &TableFragment, position: Position) -> &Block {
        let current = self.block.take().filter(|b| b.fragment == position.fragment && b.number == position.block);
        let block = current.unwrap_or_else(|| {
            pgrx::check_for_interrupts!();
            let choice = self.choice.filter(|_| self.sample_limit.is_none()).unwrap_or(access::ONCE);
            let file = tf.open_for(&choice);
            // SAFETY: the descriptor is the slot's.
            let sources = unsafe { tf.columns(&file, tupdesc) };
            let columns: Vec<_> = sources
                .iter()
                .map(|s| match s {
                    ColumnSource::Column(c, _) => Some(tf.check(file.read(position.block, *c))),
                    ColumnSource::Missing(..) => None,
                })
                .collect();
            let charge = Charge::new(columns.iter().flatten().map(|c| c.memory_bytes()).sum());
            Block { fragment: position.fragment, number: position.block, file, sources, columns, _charge: charge }
        });
        self.block.insert(block)
    }

    /// Stores a row of the current block.
    unsafe fn store(&mut self, rel: Relation, slot: *mut TupleTableSlot, row: usize, row_id: u64) {
        let Some(block) = &self.block else { return };
        // SAFETY: the slot has the descriptor of `rel`; by-reference values live until the next row.
        unsafe {
            ExecClearTuple(slot);
            if self.context.is_null() {
                self.context = AllocSetContextCreateInternal(
                    (*slot).tts_mcxt,
                    c"strata fragment row".as_ptr(),
                    0,
                    8 * 1024,
                    8 * 1024 * 1024,
                );
            }
            MemoryContextReset(self.context);
            let old = MemoryContextSwitchTo(self.context);
            let n = block.sources.len();
            let mut values = vec![Datum::null(); n];
            let mut nulls = vec![true; n];
            for (a, source) in block.sources.iter().enumerate() {
                match (source, &block.columns[a]) {
                    (ColumnSource::Column(_, kind), Some(c)) if !c.is_null(row) => {
                        (values[a], nulls[a]) = (datum::from_column(*kind, c, row), false);
                    }
                    (ColumnSource::Missing(d, is_null), _) => (values[a], nulls[a]) = (*d, *is_null),
                    _ => {}
                }
            }
            MemoryContextSwitchTo(old);
            fragments::store_tuple(rel, slot, row_id, &mut values, &mut nulls);
        }
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn scan_begin(
    rel: Relation,
    snapshot: Snapshot,
    nkeys: i32,
    key: *mut ScanKeyData,
    parallel: ParallelTableScanDesc,
    flags: u32,
) -> TableScanDesc {
    // SAFETY: the arguments are core's, as for the heap.
    unsafe {
        let inner = guarded(|| heap().scan_begin.unwrap_unchecked()(rel, snapshot, nkeys, key, parallel, flags));
        let warm = palloc0(size_of::<WarmScan>()).cast::<WarmScan>();
        (*warm).base = *inner;
        (*warm).inner = inner;
        (*warm).bitmap = super::bitmap::State::new();
        (*warm).sample_block = -1;
        (*warm).rows = PgMemoryContexts::CurrentMemoryContext.leak_and_drop_on_delete(FragmentRows::default());
        warm.cast()
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn scan_end(scan: TableScanDesc) {
    // SAFETY: `scan` was made by scan_begin; a snapshot that core attached is released by the heap.
    unsafe {
        let warm = scan.cast::<WarmScan>();
        let inner = inner(scan);
        (*inner).rs_flags |= (*warm).base.rs_flags & ScanOptions::SO_TEMP_SNAPSHOT;
        *(*warm).rows = FragmentRows::default();
        (*warm).bitmap.end();
        guarded(|| heap().scan_end.unwrap_unchecked()(inner));
        pfree(warm.cast());
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn scan_rescan(
    scan: TableScanDesc,
    key: *mut ScanKeyData,
    set_params: bool,
    allow_strat: bool,
    allow_sync: bool,
    allow_pagemode: bool,
) {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        let warm = scan.cast::<WarmScan>();
        let inner = inner(scan);
        guarded(|| {
            heap().scan_rescan.unwrap_unchecked()(inner, key, set_params, allow_strat, allow_sync, allow_pagemode);
        });
        let context = (*(*warm).rows).context;
        *(*warm).rows = FragmentRows { context, ..Default::default() };
        (*warm).in_fragments = false;
        (*warm).started = false;
        (*warm).bitmap.reset();
        (*warm).sample_block = -1;
    }
}

/// The counter of claimed fragments of a parallel scan.
unsafe fn claim<'a>(scan: TableScanDesc) -> Option<&'a AtomicU32> {
    // SAFETY: parallelscan_initialize put the counter behind the heap's part.
    unsafe {
        let shared = (*scan).rs_parallel;
        (!shared.is_null()).then(|| &*shared.cast::<u8>().add(size_of::<ParallelBlockTableScanDescData>()).cast())
    }
}

/// No `#[pg_guard]` on the way to the heap: nothing here needs dropping, so an ERROR may pass; fragments are behind one.
pub unsafe extern "C-unwind" fn scan_getnextslot(
    scan: TableScanDesc,
    direction: ScanDirection::Type,
    slot: *mut TupleTableSlot,
) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe { next_slot(scan, direction, slot, heap().scan_getnextslot.unwrap_unchecked()) }
}

/// A TID range scan reads the delta rows of the range, then the fragment rows of the range: virtual TIDs are the greater.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_set_tidrange(scan: TableScanDesc, min: ItemPointer, max: ItemPointer) {
    // SAFETY: `scan` was made by scan_begin and has not begun to read.
    unsafe {
        let inner = inner(scan);
        guarded(|| heap().scan_set_tidrange.unwrap_unchecked()(inner, min, max));
        (*(*scan.cast::<WarmScan>()).rows).range = Some(tid::row_ids_between(&*min, &*max));
    }
}

/// As [`scan_getnextslot`].
pub unsafe extern "C-unwind" fn scan_getnextslot_tidrange(
    scan: TableScanDesc,
    direction: ScanDirection::Type,
    slot: *mut TupleTableSlot,
) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe { next_slot(scan, direction, slot, heap().scan_getnextslot_tidrange.unwrap_unchecked()) }
}

/// The next row: of the delta store with the heap's function `next_delta`, or of the fragments behind it.
#[inline]
unsafe fn next_slot(
    scan: TableScanDesc,
    direction: ScanDirection::Type,
    slot: *mut TupleTableSlot,
    next_delta: unsafe extern "C-unwind" fn(TableScanDesc, ScanDirection::Type, *mut TupleTableSlot) -> bool,
) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        let warm = scan.cast::<WarmScan>();
        let forward = direction >= 0;
        if !(*warm).started {
            (*warm).started = true;
            if !forward {
                // From the end: a node that has reached the end may start anew and go backward.
                (*warm).in_fragments = true;
                (*(*warm).rows).from_end = true;
            }
        }
        loop {
            if (*warm).in_fragments {
                if next_fragment_row(scan, slot, forward) {
                    return true;
                }
                if forward {
                    return false;
                }
                (*warm).in_fragments = false;
            } else {
                if next_delta((*warm).inner, direction, slot) {
                    return true;
                }
                if !forward {
                    return false;
                }
                (*warm).in_fragments = true;
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn next_fragment_row(scan: TableScanDesc, slot: *mut TupleTableSlot, forward: bool) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        let warm = scan.cast::<WarmScan>();
        let found = (*(*warm).rows).next((*scan).rs_rd, (*scan).rs_snapshot, slot, forward, claim(scan));
        if found {
            stat::returned((*scan).rs_rd, 1);
        } else {
            ExecClearTuple(slot);
        }
        found
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn parallelscan_estimate(rel: Relation) -> Size {
    // SAFETY: the arguments are core's.
    unsafe { guarded(|| heap().parallelscan_estimate.unwrap_unchecked()(rel)) + size_of::<u64>() }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn parallelscan_initialize(rel: Relation, shared: ParallelTableScanDesc) -> Size {
    // SAFETY: core allocated what parallelscan_estimate said.
    unsafe {
        // The workers of an index build are about to be started.
        super::builds::building(rel);
        let size = guarded(|| heap().parallelscan_initialize.unwrap_unchecked()(rel, shared));
        shared.cast::<u8>().add(size_of::<ParallelBlockTableScanDescData>()).cast::<u64>().write(0);
        size + size_of::<u64>()
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn parallelscan_reinitialize(rel: Relation, shared: ParallelTableScanDesc) {
    // SAFETY: as above.
    unsafe {
        guarded(|| heap().parallelscan_reinitialize.unwrap_unchecked()(rel, shared));
        shared.cast::<u8>().add(size_of::<ParallelBlockTableScanDescData>()).cast::<u64>().write(0);
    }
}

/// TABLESAMPLE: first the blocks of the delta store, then the virtual blocks of the fragments, chosen by the same method.
#[pg_guard]
pub unsafe extern "C-unwind" fn scan_sample_next_block(scan: TableScanDesc, state: *mut SampleScanState) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        let warm = scan.cast::<WarmScan>();
        let inner = inner(scan);
        if (*warm).sample_block < 0 && guarded(|| heap().scan_sample_next_block.unwrap_unchecked()(inner, state)) {
            return true;
        }
        super::analyze::sample_next_block(scan, state, &mut (*warm).sample_block)
    }
}

#[pg_guard]
pub unsafe extern "C-unwind" fn scan_sample_next_tuple(
    scan: TableScanDesc,
    state: *mut SampleScanState,
    slot: *mut TupleTableSlot,
) -> bool {
    // SAFETY: `scan` was made by scan_begin.
    unsafe {
        let warm = scan.cast::<WarmScan>();
        if (*warm).sample_block < 0 {
            let inner = inner(scan);
            return guarded(|| heap().scan_sample_next_tuple.unwrap_unchecked()(inner, state, slot));
        }
        super::analyze::sample_next_tuple(scan, state, slot, (*warm).sample_block)
    }
}
