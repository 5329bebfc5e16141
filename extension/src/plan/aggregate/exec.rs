//! The executor node WarmAggregate: partial states of the fragments of one table.
//!
//! Its child is a WarmScan over fragments, which it drives block by block; the scan's clauses are put as in a scan.

use super::keys::{Groups, Keys};
use super::spec::{self, Argument, Output};
use super::state::States;
use crate::am::datum;
use crate::pg::list::{from_items, items};
use crate::pg::{compat, guarded};
use crate::plan::exec::{self as scan, Methods, WarmScanState};
use crate::plan::explain::text;
use pgrx::PgMemoryContexts;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;

/// Groups are given out and forgotten when there are so many.
const MANY_GROUPS: usize = 100_000;
/// Up to so many groups, the rows of a block are counted by group once for all aggregates.
pub const FEW_GROUPS: usize = 4_096;

struct Aggregation {
    outputs: Vec<Output>,
    /// By output: the number of its state; outputs of the same aggregate share one.
    state_of: Vec<Option<usize>>,
    /// By output: what computes it from its column, which is in `row`.
    computed: Vec<Option<(usize, *mut pg_sys::ExprState)>>,
    row: *mut pg_sys::TupleTableSlot,
    keys: Keys,
    states: Vec<States>,
    /// Rows of each group; a group number without rows is not given out.
    rows: Vec<u64>,
    /// The next group to give out, while groups are given out.
    next: Option<usize>,
    finished: bool,
}

/// The state node: PostgreSQL's part first.
#[repr(C)]
struct WarmAggregateState {
    css: pg_sys::CustomScanState,
    aggregation: *mut Aggregation,
}

/// How PostgreSQL makes the state.
pub static SCAN_METHODS: Methods<pg_sys::CustomScanMethods> =
    Methods(pg_sys::CustomScanMethods { CustomName: c"WarmAggregate".as_ptr(), CreateCustomScanState: Some(create) });

static EXEC_METHODS: Methods<pg_sys::CustomExecMethods> = Methods(pg_sys::CustomExecMethods {
    CustomName: c"WarmAggregate".as_ptr(),
    BeginCustomScan: Some(begin),
    ExecCustomScan: Some(exec),
    EndCustomScan: Some(end),
    ReScanCustomScan: Some(rescan),
    MarkPosCustomScan: None,
    RestrPosCustomScan: None,
    EstimateDSMCustomScan: None,
    InitializeDSMCustomScan: None,
    ReInitializeDSMCustomScan: None,
    InitializeWorkerCustomScan: None,
    ShutdownCustomScan: None,
    ExplainCustomScan: Some(explain),
});

#[pg_guard]
unsafe extern "C-unwind" fn create(_plan: *mut pg_sys::CustomScan) -> *mut pg_sys::Node {
    // SAFETY: zeroed memory is a valid state.
    unsafe {
        let state = pg_sys::palloc0(size_of::<WarmAggregateState>()).cast::<WarmAggregateState>();
        (*state).css.ss.ps.type_ = pg_sys::NodeTag::T_CustomScanState;
        (*state).css.methods = &raw const EXEC_METHODS.0;
        state.cast()
    }
}

/// The child.
unsafe fn child(node: *mut pg_sys::CustomScanState) -> *mut WarmScanState {
    // SAFETY: `begin` put it there; the planner made no other kind.
    unsafe { items::<WarmScanState>((*node).custom_ps).next().unwrap_or(std::ptr::null_mut()) }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin(node: *mut pg_sys::CustomScanState, estate: *mut pg_sys::EState, flags: i32) {
    // SAFETY: called by the executor; the plan is the planner's of this module.
    unsafe {
        let plan = (*node).ss.ps.plan.cast::<pg_sys::CustomScan>();
        let children = items::<pg_sys::Plan>((*plan).custom_plans).map(|p| pg_sys::ExecInitNode(p, estate, flags));
        (*node).custom_ps = from_items(children);
        let scan = child(node);
        if scan.is_null() || !scan::is_warm_scan(scan.cast()) {
            ereport!(ERROR, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "WarmAggregate needs a WarmScan below it");
        }
        let tupdesc = (*(*scan).css.ss.ss_currentRelation).rd_att;
        let mut outputs = Vec::new();
        for entry in items::<pg_sys::TargetEntry>((*plan).custom_scan_tlist) {
            match spec::output((*entry).expr.cast(), tupdesc) {
                Some(output) => outputs.push(output),
                None => {
                    ereport!(ERROR, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "WarmAggregate cannot compute a column");
                }
            }
        }
        let (mut states, mut state_of): (Vec<States>, Vec<Option<usize>>) = (Vec::new(), Vec::new());
        let mut known: Vec<&Output> = Vec::new();
        let mut computed = Vec::new();
        for output in &outputs {
            computed.push(match output {
                Output::Computed(a, expression) => Some((*a, pg_sys::ExecInitExpr(*expression, std::ptr::null_mut()))),
                _ => None,
            });
            let Output::State(transition, argument) = output else {
                state_of.push(None);
                continue;
            };
            let at = known.iter().position(|o| *o == output).unwrap_or_else(|| {
                let kind = match argument {
                    Argument::Column(a) => Some(datum::kind_of(compat::attribute(tupdesc, *a), false).0),
                    _ => None,
                };
                known.push(output);
                states.push(States::new(*transition, argument.clone(), kind));
                known.len() - 1
            });
            state_of.push(Some(at));
        }
        let mut row = std::ptr::null_mut();
        if computed.iter().any(Option::is_some) {
            row = pg_sys::ExecAllocTableSlot(&mut (*estate).es_tupleTable, tupdesc, &raw const pg_sys::TTSOpsVirtual);
            pg_sys::ExecStoreAllNullTuple(row);
        }
        let context = (*estate).es_query_cxt;
        let aggregation = Aggregation {
            keys: Keys::new(&outputs, context),
            state_of,
            computed,
            row,
            outputs,
            states,
            rows: Vec::new(),
            next: None,
            finished: false,
        };
        (*node.cast::<WarmAggregateState>()).aggregation =
            PgMemoryContexts::For(context).leak_and_drop_on_delete(aggregation);
    }
}

impl Aggregation {
    /// Reads blocks until the end, or until there are many groups.
    unsafe fn collect(&mut self, scan: *mut WarmScanState) {
        self.keys.clear();
        self.rows.clear();
        self.states.iter_mut().for_each(States::clear);
        if self.keys.is_empty() {
            self.grow(1);
            // One row in any case, as an aggregation without groups gives.
            self.rows[0] = 1;
        }
        // SAFETY: the child was begun and reads fragments only.
        while let Some(mut batch) = unsafe { scan::next_batch(scan) } {
            // SAFETY: the scan gave a batch, so its blocks are there.
            let Some(blocks) = (unsafe { (*(*scan).scan).blocks.as_ref() }) else { break };
            if self.keys.is_empty() {
                self.states.iter_mut().for_each(|s| s.update(blocks, &mut batch, &Groups::One(0), None));
                continue;
            }
            let groups = self.keys.groups(blocks, &mut batch);
            self.grow(self.keys.len());
            let mut counts = None;
            match &groups {
                Groups::One(g) => self.rows[*g as usize] += batch.selection.len() as u64,
                Groups::Each(groups) if self.rows.len() <= FEW_GROUPS => {
                    let counts = counts.insert(vec![0u32; self.rows.len()]);
                    groups.iter().for_each(|g| counts[*g as usize] += 1);
                    self.rows.iter_mut().zip(counts).for_each(|(rows, n)| *rows += u64::from(*n));
                }
                Groups::Each(groups) => groups.iter().for_each(|g| self.rows[*g as usize] += 1),
            }
            self.states.iter_mut().for_each(|s| s.update(blocks, &mut batch, &groups, counts.as_deref()));
            if self.keys.len() >= MANY_GROUPS {
                self.next = Some(0);
                return;
            }
        }
        self.finished = true;
        self.next = Some(0);
    }

    fn grow(&mut self, groups: usize) {
        self.rows.resize(groups, 0);
        self.states.iter_mut().for_each(|s| s.grow(groups));
    }

    /// The number of the next group to give out; reads blocks as needed.
    unsafe fn advance(&mut self, scan: *mut WarmScanState) -> Option<usize> {
        loop {
            match self.next {
                Some(g) if g < self.rows.len() => {
                    self.next = Some(g + 1);
                    if self.rows[g] > 0 {
                        return Some(g);
                    }
                }
                Some(_) if self.finished => return None,
                _ => {
                    self.next = None;
                    // SAFETY: the caller's child.
                    unsafe { self.collect(scan) };
                }
            }
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn exec(node: *mut pg_sys::CustomScanState) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: called by the executor after `begin`.
    unsafe {
        let aggregation = &mut *(*node.cast::<WarmAggregateState>()).aggregation;
        let slot = (*node).ss.ss_ScanTupleSlot;
        let projection = (*node).ss.ps.ps_ProjInfo;
        let econtext = (*node).ss.ps.ps_ExprContext;
        pg_sys::MemoryContextReset((*econtext).ecxt_per_tuple_memory);
        pg_sys::ExecClearTuple(slot);
        let Some(group) = aggregation.advance(child(node)) else {
            return if projection.is_null() { slot } else { pg_sys::ExecClearTuple((*projection).pi_state.resultslot) };
        };
        let old = pg_sys::MemoryContextSwitchTo((*econtext).ecxt_per_tuple_memory);
        let mut keys = aggregation.keys.datums(group).into_iter();
        for i in 0..aggregation.outputs.len() {
            let (mut value, mut is_null) = match aggregation.state_of[i] {
                Some(state) => {
                    let datum = aggregation.states[state].datum(group);
                    (datum.unwrap_or(pg_sys::Datum::null()), datum.is_none())
                }
                None => keys.next().unwrap_or((pg_sys::Datum::null(), true)),
            };
            if let Some((attribute, expression)) = aggregation.computed[i] {
                let row = aggregation.row;
                *(*row).tts_values.add(attribute) = value;
                *(*row).tts_isnull.add(attribute) = is_null;
                (*econtext).ecxt_scantuple = row;
                value = guarded(|| (*expression).evalfunc.unwrap_unchecked()(expression, econtext, &mut is_null));
            }
            *(*slot).tts_values.add(i) = value;
            *(*slot).tts_isnull.add(i) = is_null;
        }
        pg_sys::MemoryContextSwitchTo(old);
        pg_sys::ExecStoreVirtualTuple(slot);
        if projection.is_null() {
            return slot;
        }
        (*econtext).ecxt_scantuple = slot;
        compat::exec_project(projection)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn rescan(node: *mut pg_sys::CustomScanState) {
    // SAFETY: called by the executor; the child is told of changed parameters as other nodes tell theirs.
    unsafe {
        let aggregation = &mut *(*node.cast::<WarmAggregateState>()).aggregation;
        aggregation.next = None;
        aggregation.finished = false;
        let scan = child(node).cast::<pg_sys::PlanState>();
        if !(*node).ss.ps.chgParam.is_null() {
            pg_sys::UpdateChangedParamSet(scan, (*node).ss.ps.chgParam);
        }
        // ExecProcNode would rescan a child with changed parameters by itself; this one is not run by it.
        pg_sys::ExecReScan(scan);
        if !(*node).ss.ss_ScanTupleSlot.is_null() {
            pg_sys::ExecClearTuple((*node).ss.ss_ScanTupleSlot);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn end(node: *mut pg_sys::CustomScanState) {
    // SAFETY: called by the executor.
    unsafe { items::<pg_sys::PlanState>((*node).custom_ps).for_each(|p| pg_sys::ExecEndNode(p)) }
}

#[pg_guard]
unsafe extern "C-unwind" fn explain(
    node: *mut pg_sys::CustomScanState,
    _ancestors: *mut pg_sys::List,
    es: *mut pg_sys::ExplainState,
) {
    // SAFETY: called by EXPLAIN after `begin`.
    unsafe {
        let aggregation = &*(*node.cast::<WarmAggregateState>()).aggregation;
        let tupdesc = (*(*child(node)).css.ss.ss_currentRelation).rd_att;
        let mut names: Vec<String> = Vec::new();
        for output in &aggregation.outputs {
            for a in output.attributes() {
                let name = pg_sys::quote_identifier(compat::attribute(tupdesc, a).attname.data.as_ptr());
                let name = CStr::from_ptr(name).to_string_lossy().into_owned();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        if !names.is_empty() {
            text(c"Columns", &names.join(", "), es);
        }
    }
}
