//! The executor node WarmScan.
//!
//! Delta rows come first, from the heap's own scan (or from a btree, see [`super::lookup`]), then fragment rows, block by
//! block. All clauses are in the plan's qualification; those that fragments can answer ([`super::clause`]) are put to zone
//! maps and decoded columns, and are not evaluated again for the rows that come through.
//!
//! Delta rows are returned in the scan slot, a buffer-heap slot as EvalPlanQual expects it; fragment rows in a virtual slot
//! of our own. So expressions are compiled for a slot of no fixed kind: PostgreSQL initializes a custom scan for virtual
//! slots, and [`begin`] does it again.
//!
//! [`exec`] has no guard and holds nothing that needs dropping: it calls PostgreSQL's functions directly, and an ERROR may
//! pass through. What is Rust is behind functions with a guard.

use super::blocks::{BlockScan, Stats};
use super::clause::{self, Leaf};
use super::evaluate::{project, reset, satisfies};
use super::lookup::{DeltaIndex, FragmentKeys, KeyColumn, match_keys};
use super::parallel::Shared;
use super::private::{Part, Private};
use super::rows::Rows;
use super::test::Test;
use crate::am::handler::heap;
use crate::am::{deletion, fragments, promote, scan as am_scan, ssi};
use crate::memory::access::{self, Pattern};
use crate::pg::list::{from_items, items};
use crate::pg::{OpenRelation, guarded, stat};
use pgrx::PgMemoryContexts;
use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, Oid};
use pgrx::prelude::*;
use roaring::RoaringTreemap;
use std::ptr::null_mut;
use strata_fragment::memory;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Start,
    Delta,
    Fragments,
    Done,
}

/// The Rust part of the state.
pub struct Scan {
    pub private: Private,
    /// The clauses that fragments answer, with what evaluates their expressions.
    pub leaves: Vec<Leaf>,
    expressions: Vec<*mut pg_sys::ExprState>,
    pub pushed: *mut pg_sys::List,
    /// Attributes (from 0) whose values the plan needs from fragment rows.
    pub attributes: Vec<usize>,
    pub blocks: Option<BlockScan>,
    pub rows: Rows,
    index: Option<DeltaIndex>,
    matched: Vec<usize>,
    keys: Option<FragmentKeys>,
    /// Kept between rescans: the snapshot is the same.
    deleted: Option<RoaringTreemap>,
    /// When it was read ([`promote::revelations`]).
    deleted_at: u64,
    never: bool,
    /// What finished scans of this node did, and the workers.
    pub stats: Stats,
    /// The rows that the look-up at hand has found in fragments.
    found: u64,
    context: pg_sys::MemoryContext,
}

/// The state node: PostgreSQL's part first.
#[repr(C)]
pub struct WarmScanState {
    pub css: pg_sys::CustomScanState,
    /// Null under EXPLAIN without ANALYZE only in its scans.
    pub scan: *mut Scan,
    phase: Phase,
    heap_slot: *mut pg_sys::TupleTableSlot,
    fragment_slot: *mut pg_sys::TupleTableSlot,
    /// The clauses that fragments cannot answer, compiled.
    rest: *mut pg_sys::ExprState,
    delta: pg_sys::TableScanDesc,
    delta_inner: pg_sys::TableScanDesc,
    delta_rows: u64,
    /// Those that the qualification let through.
    delta_kept: u64,
    filtered: u64,
    pub shared: *mut Shared,
}

/// A static that PostgreSQL reads.
#[repr(transparent)]
pub struct Methods<T>(pub T);
// SAFETY: never written; a backend has one thread.
unsafe impl<T> Sync for Methods<T> {}

/// How PostgreSQL makes the state.
pub static SCAN_METHODS: Methods<pg_sys::CustomScanMethods> =
    Methods(pg_sys::CustomScanMethods { CustomName: c"WarmScan".as_ptr(), CreateCustomScanState: Some(create) });

static EXEC_METHODS: Methods<pg_sys::CustomExecMethods> = Methods(pg_sys::CustomExecMethods {
    CustomName: c"WarmScan".as_ptr(),
    BeginCustomScan: Some(begin),
    ExecCustomScan: Some(exec),
    EndCustomScan: Some(end),
    ReScanCustomScan: Some(rescan),
    MarkPosCustomScan: None,
    RestrPosCustomScan: None,
    EstimateDSMCustomScan: Some(super::parallel::estimate),
    InitializeDSMCustomScan: Some(super::parallel::initialize),
    ReInitializeDSMCustomScan: Some(super::parallel::reinitialize),
    InitializeWorkerCustomScan: Some(super::parallel::initialize_worker),
    ShutdownCustomScan: Some(super::parallel::shutdown),
    ExplainCustomScan: Some(super::explain::explain),
});

/// Whether a plan state is a WarmScan.
///
/// # Safety
/// `state` is a plan state.
pub unsafe fn is_warm_scan(state: *mut pg_sys::PlanState) -> bool {
    // SAFETY: the tag tells the type.
    unsafe {
        crate::pg::list::is_a(state, pg_sys::NodeTag::T_CustomScanState)
            && std::ptr::eq((*state.cast::<pg_sys::CustomScanState>()).methods, &raw const EXEC_METHODS.0)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn create(_plan: *mut pg_sys::CustomScan) -> *mut pg_sys::Node {
    // SAFETY: zeroed memory is a valid state; the phase is set below.
    unsafe {
        let state = pg_sys::palloc0(size_of::<WarmScanState>()).cast::<WarmScanState>();
        (*state).css.ss.ps.type_ = pg_sys::NodeTag::T_CustomScanState;
        (*state).css.methods = &raw const EXEC_METHODS.0;
        (*state).phase = Phase::Start;
        state.cast()
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin(node: *mut pg_sys::CustomScanState, estate: *mut pg_sys::EState, flags: i32) {
    // SAFETY: called by the executor after its own initialization of the node.
    unsafe {
        let state = node.cast::<WarmScanState>();
        let rel = (*node).ss.ss_currentRelation;
        let tupdesc = (*rel).rd_att;
        let plan = (*node).ss.ps.plan.cast::<pg_sys::CustomScan>();
        let varno = (*plan).scan.scanrelid as i32;
        let parent = &raw mut (*node).ss.ps;

        // Slots of no fixed kind; sub-plans of the first initialization are registered again by the second.
        (*node).ss.ss_ScanTupleSlot =
            pg_sys::ExecInitExtraTupleSlot(estate, tupdesc, &raw const pg_sys::TTSOpsBufferHeapTuple);
        (*state).heap_slot = (*node).ss.ss_ScanTupleSlot;
        (*parent).scandesc = tupdesc;
        (*parent).scanops = &raw const pg_sys::TTSOpsBufferHeapTuple;
        (*parent).scanopsfixed = false;
        (*parent).scanopsset = true;
        (*parent).subPlan = null_mut();
        (*parent).ps_ProjInfo = null_mut();
        pg_sys::ExecAssignScanProjectionInfo(&mut (*node).ss);
        if (*parent).ps_ProjInfo.is_null() {
            (*parent).resultops = (*parent).scanops;
            (*parent).resultopsfixed = false;
            (*parent).resultopsset = true;
        }
        (*parent).qual = pg_sys::ExecInitQual((*plan).scan.plan.qual, parent);

        let (mut leaves, mut expressions, mut pushed, mut rest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for clause in items::<pg_sys::Node>((*plan).scan.plan.qual) {
            match clause::analyze(null_mut(), clause, varno, tupdesc) {
                Some(leaf) => {
                    expressions.push(leaf.expression().map_or(null_mut(), |e| pg_sys::ExecInitExpr(e, parent)));
                    leaves.push(leaf);
                    pushed.push(clause);
                }
                None => rest.push(clause),
            }
        }
        let private = Private::from_list((*plan).custom_private);
        // Rows that are looked up are checked against everything.
        (*state).rest = if private.lookup.is_some() {
            (*parent).qual
        } else {
            pg_sys::ExecInitQual(from_items(rest.iter().copied()), parent)
        };

        let mut wanted = null_mut();
        pg_sys::pull_varattnos((*plan).scan.plan.targetlist.cast(), varno as u32, &mut wanted);
        // Clauses in the plan are evaluated as well where a fragment cannot answer them (see `blocks`), but that is rare
        // and decided by block; a column that only such clauses need is fetched in any case if they may be needed. Inside
        // EvalPlanQual a sub-plan's scan returns rows through ExecScan, which evaluates all clauses.
        let in_recheck = !(*estate).es_epq_active.is_null();
        let for_quals = if private.lookup.is_some() || in_recheck || needs_recheck(rel, &leaves) {
            (*plan).scan.plan.qual
        } else {
            from_items(rest.iter().copied())
        };
        pg_sys::pull_varattnos(for_quals.cast(), varno as u32, &mut wanted);
        let member = |attnum: i32| pg_sys::bms_is_member(attnum - pg_sys::FirstLowInvalidHeapAttributeNumber, wanted);
        let attributes: Vec<usize> =
            (0..(*tupdesc).natts as usize).filter(|i| member(0) || member(*i as i32 + 1)).collect();

        let slot = pg_sys::ExecInitExtraTupleSlot(estate, tupdesc, &raw const pg_sys::TTSOpsVirtual);
        std::slice::from_raw_parts_mut((*slot).tts_isnull, (*tupdesc).natts as usize).fill(true);
        (*slot).tts_tableOid = (*rel).rd_id;
        (*state).fragment_slot = slot;

        let context = (*estate).es_query_cxt;
        let rows = Rows::new(attributes.clone(), tupdesc, context);
        let mut index = None;
        let mut matched = Vec::new();
        if let Some((oid, keys)) = private.lookup {
            matched = index_columns(oid, keys).map(|c| match_keys(&leaves, &c)).unwrap_or_default();
            let pages = pg_sys::RelationGetNumberOfBlocksInFork(rel, pg_sys::ForkNumber::MAIN_FORKNUM);
            // A serializable transaction locks the index page of the key, not the whole table.
            let by_index = pages > 1 || ssi::serializable();
            if flags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 == 0 && by_index && matched.len() == keys {
                index = Some(DeltaIndex::open(rel, oid, (*estate).es_snapshot, &leaves, &matched, context));
            }
        }
        let private_part = private.part;
        let lookup_context =
            pg_sys::AllocSetContextCreateInternal(context, c"strata lookup row".as_ptr(), 0, 1024, 8 * 1024 * 1024);
        let scan = Scan {
            private,
            leaves,
            expressions,
            pushed: from_items(pushed),
            attributes,
            blocks: None,
            rows,
            index,
            matched,
            keys: None,
            deleted: None,
            deleted_at: 0,
            never: false,
            stats: Stats::default(),
            found: 0,
            context: lookup_context,
        };
        if private_part != Part::Delta
            && let Some(table) = fragments::of(rel)
        {
            access::register(estate, (*rel).rd_id, &table);
        }
        (*state).scan = PgMemoryContexts::For(context).leak_and_drop_on_delete(scan);
    }
}

/// Whether some clause may not fit how a fragment keeps the column, so that rows are checked against all clauses.
unsafe fn needs_recheck(rel: pg_sys::Relation, leaves: &[Leaf]) -> bool {
    // Only numerics are kept in two ways.
    // SAFETY: `rel` is open.
    unsafe {
        leaves.iter().any(|l| matches!(l.kind, crate::am::datum::Kind::Numeric(_))) && fragments::of(rel).is_some()
    }
}

/// The first `n` key columns of an index.
unsafe fn index_columns(index: Oid, n: usize) -> Option<Vec<KeyColumn>> {
    // SAFETY: the index is locked by the plan.
    unsafe {
        let rel = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
        let form = &*(*rel).rd_index;
        let columns: Vec<KeyColumn> = (0..n.min(form.indnkeyatts as usize))
            .map(|i| KeyColumn { attnum: *form.indkey.values.as_ptr().add(i), family: *(*rel).rd_opfamily.add(i) })
            .collect();
        pg_sys::index_close(rel, pg_sys::NoLock as i32);
        (columns.len() == n).then_some(columns)
    }
}

/// Evaluates the clauses' expressions and begins with the delta rows.
#[pg_guard]
unsafe extern "C-unwind" fn start(node: *mut pg_sys::CustomScanState) {
    // SAFETY: the node was begun.
    unsafe {
        let state = node.cast::<WarmScanState>();
        let scan = &mut *(*state).scan;
        let estate = (*node).ss.ps.state;
        let rel = (*node).ss.ss_currentRelation;
        let tests = tests(node, scan);
        scan.never = tests.iter().any(|(_, t)| *t == Test::Never);
        let lookup = scan.private.lookup.is_some();
        let snapshot = (*estate).es_snapshot;

        if scan.private.part != Part::Fragments && !scan.never && scan.index.is_none() && (*state).delta.is_null() {
            let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
                | pg_sys::ScanOptions::SO_ALLOW_STRAT
                | pg_sys::ScanOptions::SO_ALLOW_SYNC
                | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
            (*state).delta = match (*state).shared.as_mut() {
                Some(shared) => pg_sys::table_beginscan_parallel(rel, shared.heap()),
                None => am_scan::scan_begin(rel, snapshot, 0, null_mut(), null_mut(), flags),
            };
            (*state).delta_inner = am_scan::inner((*state).delta);
            uncount_scan(state);
        }
        let table = if scan.private.part == Part::Delta || scan.never { None } else { fragments::of(rel) };
        if let (Some(table), true) = (&table, lookup) {
            let wanted: Vec<_> = scan.matched.iter().map(|i| tests[*i].clone()).collect();
            let choice = access::of_statement(estate, Pattern::Rows);
            let before = memory::counters();
            let keys = FragmentKeys::find(table.clone(), rel, snapshot, &wanted, scan.context, choice);
            scan.stats.add_reads(&memory::counters().since(&before));
            scan.stats.add(&keys.stats);
            scan.keys = Some(keys);
        } else if let Some(table) = table {
            let kept = scan.deleted.take().filter(|_| scan.deleted_at == promote::revelations());
            let deleted = kept.unwrap_or_else(|| {
                scan.deleted_at = promote::revelations();
                ssi::read_table(rel, snapshot);
                deletion::deleted(rel, snapshot)
            });
            let shared = (*state).shared.as_ref();
            shared.inspect(|s| s.agree(&table));
            let counter = shared.map(|s| &raw const s.counter);
            // A worker ends with the query: what it would keep nobody would find.
            let worker = shared.is_some() && pg_sys::ParallelWorkerNumber >= 0;
            let choice = if worker { access::ONCE } else { access::of_statement(estate, Pattern::Blocks) };
            scan.blocks = Some(BlockScan::new(table, (*rel).rd_att, deleted, tests, counter, choice));
        }
        let delta = scan.private.part != Part::Fragments && !scan.never;
        (*state).phase = if delta { Phase::Delta } else { Phase::Fragments };
    }
}

/// The tests with the values that their expressions have now; restarts the btree scan with them.
unsafe fn tests(node: *mut pg_sys::CustomScanState, scan: &mut Scan) -> Vec<(Leaf, Test)> {
    // SAFETY: the expressions were compiled for this node.
    unsafe {
        let econtext = (*node).ss.ps.ps_ExprContext;
        let old = pg_sys::MemoryContextSwitchTo((*econtext).ecxt_per_tuple_memory);
        let mut values = Vec::with_capacity(scan.leaves.len());
        let mut tests = Vec::with_capacity(scan.leaves.len());
        for (leaf, expression) in scan.leaves.iter().zip(&scan.expressions) {
            let (mut value, mut is_null) = (Datum::null(), false);
            if let Some(state) = expression.as_mut() {
                value = guarded(|| state.evalfunc.unwrap_unchecked()(*expression, econtext, &mut is_null));
            }
            values.push((value, is_null));
            tests.push((*leaf, leaf.test(value, is_null)));
        }
        if let Some(index) = &mut scan.index
            && !tests.iter().any(|(_, t)| *t == Test::Never)
        {
            index.start(&values);
        }
        pg_sys::MemoryContextSwitchTo(old);
        tests
    }
}

/// The next fragment row in the fragment slot: 0 none, 1 check the rest of the clauses, 2 check all.
#[pg_guard]
unsafe extern "C-unwind" fn next_fragment_row(state: *mut WarmScanState) -> i32 {
    // SAFETY: the scan was started.
    unsafe {
        let scan = &mut *(*state).scan;
        let slot = (*state).fragment_slot;
        if let Some(keys) = &mut scan.keys {
            let rel = (*state).css.ss.ss_currentRelation;
            let snapshot = (*(*state).css.ss.ps.state).es_snapshot;
            let before = memory::counters();
            let found = keys.next(rel, snapshot, &scan.attributes, slot);
            scan.stats.add_reads(&memory::counters().since(&before));
            scan.stats.rows += u64::from(found);
            scan.found += u64::from(found);
            return if found { 2 } else { 0 };
        }
        let Some(blocks) = &mut scan.blocks else { return 0 };
        loop {
            if scan.rows.next(blocks, slot).is_some() {
                return if scan.rows.recheck() { 2 } else { 1 };
            }
            match blocks.next() {
                Some(mut batch) => {
                    let first = scan.private.first.filter(|_| (*state).rest.is_null());
                    first.inspect(|f| f.reduce(blocks, &mut batch));
                    scan.rows.begin(batch);
                }
                None => {
                    scan.rows.clear();
                    return 0;
                }
            }
        }
    }
}

/// The next delta row from the btree.
#[pg_guard]
unsafe extern "C-unwind" fn next_index_row(state: *mut WarmScanState) -> bool {
    // SAFETY: the scan was started.
    unsafe {
        let slot = (*state).heap_slot;
        (*(*state).scan).index.as_mut().is_some_and(|index| index.next(slot))
    }
}

/// The next row of either kind, before any clause; `kind` as [`next_fragment_row`] gives it. Not guarded.
unsafe fn next_row(state: *mut WarmScanState, kind: &mut i32) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the node was begun; nothing here needs dropping.
    unsafe {
        if (*state).phase == Phase::Start {
            start(state.cast());
        }
        if (*state).phase == Phase::Delta {
            let slot = (*state).heap_slot;
            let found = if (*state).delta_inner.is_null() {
                next_index_row(state)
            } else {
                heap().scan_getnextslot.unwrap_unchecked()(
                    (*state).delta_inner,
                    pg_sys::ScanDirection::ForwardScanDirection,
                    slot,
                )
            };
            if found {
                (*state).delta_rows += 1;
                *kind = 2;
                return slot;
            }
            (*state).phase = Phase::Fragments;
        }
        if (*state).phase == Phase::Fragments {
            *kind = next_fragment_row(state);
            if *kind != 0 {
                return (*state).fragment_slot;
            }
            (*state).phase = Phase::Done;
        }
        null_mut()
    }
}

unsafe extern "C-unwind" fn exec(node: *mut pg_sys::CustomScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: called by the executor; see the module header for why there is no guard.
    unsafe {
        let state = node.cast::<WarmScanState>();
        if !(*(*node).ss.ps.state).es_epq_active.is_null() {
            return exec_recheck(node);
        }
        let econtext = (*node).ss.ps.ps_ExprContext;
        let projection = (*node).ss.ps.ps_ProjInfo;
        loop {
            reset(econtext);
            let mut kind = 0;
            let slot = next_row(state, &mut kind);
            if slot.is_null() {
                (*node).ss.ss_ScanTupleSlot = (*state).heap_slot;
                (*(*(*state).heap_slot).tts_ops).clear.unwrap_unchecked()((*state).heap_slot);
                let empty = if projection.is_null() { (*state).heap_slot } else { (*projection).pi_state.resultslot };
                (*(*empty).tts_ops).clear.unwrap_unchecked()(empty);
                return empty;
            }
            // Where WHERE CURRENT OF finds the row.
            (*node).ss.ss_ScanTupleSlot = slot;
            (*econtext).ecxt_scantuple = slot;
            let qual = if kind == 2 { (*node).ss.ps.qual } else { (*state).rest };
            if satisfies(qual, econtext) {
                (*state).delta_kept += u64::from(slot == (*state).heap_slot);
                return if projection.is_null() { slot } else { project(projection) };
            }
            (*state).filtered += 1;
        }
    }
}

/// Inside EvalPlanQual: the row to check comes from there; another table's rows come from the scan.
#[pg_guard]
unsafe extern "C-unwind" fn exec_recheck(node: *mut pg_sys::CustomScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: called by the executor.
    unsafe { pg_sys::ExecScan(&mut (*node).ss, Some(access), Some(recheck)) }
}

unsafe extern "C-unwind" fn access(node: *mut pg_sys::ScanState) -> *mut pg_sys::TupleTableSlot {
    let mut kind = 0;
    // SAFETY: the node is a WarmScan.
    unsafe { next_row(node.cast(), &mut kind) }
}

/// All clauses are in the qualification, which ExecScan evaluates.
unsafe extern "C-unwind" fn recheck(_node: *mut pg_sys::ScanState, _slot: *mut pg_sys::TupleTableSlot) -> bool {
    true
}

/// Adds what the current scan did to the node's numbers, and drops it.
unsafe fn finish(state: *mut WarmScanState) {
    // SAFETY: the node was begun.
    unsafe {
        count_reading(state);
        let scan = &mut *(*state).scan;
        if let Some(blocks) = scan.blocks.take() {
            scan.stats.add(&blocks.stats());
            scan.deleted = Some(blocks.into_deleted());
        }
        scan.stats.delta_rows += std::mem::take(&mut (*state).delta_rows);
        scan.keys = None;
        scan.rows.clear();
        count_filtered(state);
        (*state).phase = Phase::Start;
    }
}

/// A look-up counts as a scan of its index, also where it reads a small delta store instead of the btree: what the heap has
/// counted for the beginning of that is taken back.
unsafe fn uncount_scan(state: *mut WarmScanState) {
    // SAFETY: the node was begun.
    unsafe {
        if (*(*state).scan).private.lookup.is_some() {
            stat::scans((*state).css.ss.ss_currentRelation, -1);
        }
    }
}

/// Counts what the scan at hand has read, for `pg_stat_*_tables`. The heap has counted a sequential scan and its rows, the btree what
/// it found.
unsafe fn count_reading(state: *mut WarmScanState) {
    // SAFETY: the node was begun.
    unsafe {
        let scan = &mut *(*state).scan;
        let rel = (*state).css.ss.ss_currentRelation;
        if let Some(blocks) = &scan.blocks {
            let stats = blocks.stats();
            let read = stats.rows + stats.rows_filtered - scan.rows.left() as u64;
            stat::returned(rel, read as i64);
        }
        let kept = std::mem::take(&mut (*state).delta_kept);
        let found = std::mem::take(&mut scan.found);
        let Some((index, _)) = scan.private.lookup.filter(|_| (*state).phase != Phase::Start) else { return };
        let (mut scans, mut rows) = (0, found);
        if !(*state).delta_inner.is_null() {
            stat::returned(rel, -((*state).delta_rows as i64));
            (scans, rows) = (1, found + kept);
        }
        if scans > 0 || rows > 0 {
            let index = OpenRelation::open(index, pg_sys::NoLock);
            stat::scans(index.0, scans);
            stat::returned(index.0, rows as i64);
            stat::fetched(index.0, rows as i64);
        }
    }
}

/// Brings "Rows Removed by Filter" up to date.
unsafe fn count_filtered(state: *mut WarmScanState) {
    // SAFETY: the node was begun.
    unsafe {
        let filtered = std::mem::take(&mut (*state).filtered);
        if let Some(instrument) = (*state).css.ss.ps.instrument.as_mut() {
            instrument.nfiltered1 += filtered as f64;
        }
    }
}

/// What the node did so far.
///
/// # Safety
/// The node was begun.
pub unsafe fn stats(state: *mut WarmScanState) -> Stats {
    // SAFETY: the caller's promise.
    unsafe {
        count_filtered(state);
        let scan = &*(*state).scan;
        let mut stats = scan.stats;
        if let Some(blocks) = &scan.blocks {
            stats.add(&blocks.stats());
        }
        stats.delta_rows += (*state).delta_rows;
        stats
    }
}

/// The next block of fragment rows, for aggregation; the scan's `rest` must be checked by the caller.
///
/// # Safety
/// The node was begun and reads fragments only.
pub unsafe fn next_batch(state: *mut WarmScanState) -> Option<super::blocks::Batch> {
    // SAFETY: the caller's promise; EXPLAIN ANALYZE measures the node as if the executor had run it.
    unsafe {
        let instrument = (*state).css.ss.ps.instrument;
        if instrument.is_null() {
            return next_measured(state);
        }
        pg_sys::InstrStartNode(instrument);
        let batch = next_measured(state);
        pg_sys::InstrStopNode(instrument, batch.as_ref().map_or(0.0, |b| b.selection.len() as f64));
        batch
    }
}

unsafe fn next_measured(state: *mut WarmScanState) -> Option<super::blocks::Batch> {
    // SAFETY: as for `next_batch`.
    unsafe {
        if (*state).phase == Phase::Start {
            start(state.cast());
        }
        loop {
            let scan = &mut *(*state).scan;
            let blocks = scan.blocks.as_mut()?;
            let batch = blocks.next()?;
            let qual = if batch.recheck { (*state).css.ss.ps.qual } else { (*state).rest };
            if qual.is_null() {
                return Some(batch);
            }
            // Row by row, as the scan itself would.
            let econtext = (*state).css.ss.ps.ps_ExprContext;
            scan.rows.begin(batch);
            let mut kept = Vec::new();
            loop {
                reset(econtext);
                let Some(at) = scan.rows.next(blocks, (*state).fragment_slot) else { break };
                (*econtext).ecxt_scantuple = (*state).fragment_slot;
                if crate::pg::compat::exec_qual(qual, econtext) {
                    kept.push(at);
                } else {
                    (*state).filtered += 1;
                }
            }
            let mut batch = scan.rows.take()?;
            if !kept.is_empty() {
                if kept.len() < batch.selection.len() {
                    let rows = kept.into_iter().map(|i| batch.selection.row(i) as u32).collect();
                    batch.selection = super::blocks::Selection::Rows(rows);
                }
                return Some(batch);
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn rescan(node: *mut pg_sys::CustomScanState) {
    // SAFETY: called by the executor.
    unsafe {
        let state = node.cast::<WarmScanState>();
        finish(state);
        if !(*state).delta.is_null() {
            am_scan::scan_rescan((*state).delta, null_mut(), false, false, false, false);
            uncount_scan(state);
        }
        pg_sys::ExecClearTuple((*state).fragment_slot);
        (*node).ss.ss_ScanTupleSlot = (*state).heap_slot;
        pg_sys::ExecScanReScan(&mut (*node).ss);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn end(node: *mut pg_sys::CustomScanState) {
    // SAFETY: called by the executor once; what begin did not make is null.
    unsafe {
        let state = node.cast::<WarmScanState>();
        if (*state).scan.is_null() {
            return;
        }
        finish(state);
        if let Some(index) = (*(*state).scan).index.take() {
            index.close();
        }
        if !(*state).delta.is_null() {
            am_scan::scan_end((*state).delta);
            (*state).delta = null_mut();
        }
        pg_sys::ExecClearTuple((*state).heap_slot);
    }
}
