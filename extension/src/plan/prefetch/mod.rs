//! Prefetch for sequential access by a btree.
//!
//! PostgreSQL's plain and index-only scans wait for each block that is not in memory: an index in another order than the table
//! means one wait a row. Here the scan stays PostgreSQL's own, in every respect; ahead of it, [`ahead`] reads the tree and asks the
//! operating system for the next leaves and for the table blocks that their entries point to, so that the reads of the scan find
//! them there. It works for heap tables, for the delta store of warm tables, and for indexes of warm tables with entries for
//! fragment rows, which are in no block and are passed over.
//!
//! # The way in
//!
//! An access method gives its callbacks to the relation cache, which keeps a copy for each open index (`rd_indam`). When the
//! executor starts a plan with an index scan that is eligible ([`Node::eligible`]), the copy of that index gets our `ambeginscan`,
//! `amrescan`, `amgettuple` and `amendscan`, which call the btree's own and look at the scan afterwards. So plans, EvalPlanQual,
//! marks, cursors, backward scans, predicate locks and row visibility are untouched, and there is a moment to act for each entry,
//! also where a filter above throws the rows away. A cache entry that is built again has the btree's callbacks, until the
//! next plan starts.
//!
//! # When it acts
//!
//! ```text
//!            reads were seen              a third of them slow                      distance asked and passed
//!   Idle ───────────────────► Measuring ───────────────────────► Ahead ── now and then ──► Draining ──┐
//!    ▲                         │  ▲  │                            │                                   │
//!    └── fast: out of a cache ─┘  └──┼────────────────────────────┼───────────────────────────────────┘
//!    ▲                               │ rescan, jump               │ all blocks are in shared buffers
//!    └───────────────────────────────┴────────────────────────────┘
//! ```
//!
//! * Point look-ups and short scans stay in Idle or Measuring: a comparison an entry. Unique look-ups are not eligible at all.
//! * A read is slow if it takes `strata.index_prefetch_latency`. Reads out of the operating system's cache, and those that it reads
//!   ahead by itself because the table is in the index's order, are not. Ahead of a scan that stays slow without help only: after
//!   some thousand blocks it stops asking, and measures again.
//! * Within a leaf, the blocks of the entries that the scan has already found to match are asked for. Behind it, only once the
//!   scan has gone from leaf to neighbour [`SEQUENTIAL`] times: then the links in the level above tell the next leaves.
//! * The distance grows by two for each block that the scan comes to, so a small LIMIT costs little.
//!
//! # What it may not do
//!
//! * Change results, or take part in them: nothing here is given to the scan.
//! * Wait for others or have them wait: a page is copied under its share lock; one lock at a time, no pin is kept. The
//!   scan holds pins only while its callbacks are not running, as always between two entries.
//! * Trust what it reads: pages may have been split, deleted or used again; blocks beyond the end of the table are dropped.
//! * Rely on the layout of the btree's state: the current entry must be the one that the scan returned, or it stays off.
//!
//! State is kept by the address of the scan's descriptor, from its begin to its end. An ERROR frees descriptors without their end, so
//! their states are dropped with the transaction or subtransaction that began them, before an address can be another scan's. What
//! is palloc'd lives in a context below the descriptor's, and goes with it.

mod ahead;
mod explain;
mod watch;

use crate::am::probe;
use crate::guc;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::null_mut;
use watch::Watched;

/// Steps from a leaf to its neighbour that make a scan sequential.
const SEQUENTIAL: u32 = 2;

pub use explain::install as install_explain;

/// What was done for a scan.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Leaves that were asked for.
    pub leaves: u64,
    /// Table blocks that were asked for.
    pub blocks: u64,
    /// Table blocks (runs of the same one) that came up.
    looked_at: u64,
}
/// The btree's own callbacks, once one of its indexes was seen.
static mut BTREE: Option<pg_sys::IndexAmRoutine> = None;
/// The scan that was asked for last, and its state; null if none is known.
static mut LAST: (pg_sys::IndexScanDesc, *mut Watched) = (null_mut(), null_mut());

/// Addresses are as good as random.
#[derive(Default)]
struct ByAddress(u64);

impl Hasher for ByAddress {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = self.0.rotate_left(8) ^ u64::from(*b));
    }

    fn write_usize(&mut self, address: usize) {
        self.0 = (address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

thread_local! {
    static WATCHED: RefCell<HashMap<usize, Box<Watched>, BuildHasherDefault<ByAddress>>> = RefCell::default();
}

/// Installs what is to be installed when the library is loaded.
pub fn install() {
    // SAFETY: called once; the callbacks have no argument.
    unsafe {
        pg_sys::RegisterXactCallback(Some(transaction_ended), null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction_ended), null_mut());
    }
    install_explain();
}

#[pg_guard]
unsafe extern "C-unwind" fn transaction_ended(event: pg_sys::XactEvent::Type, _argument: *mut core::ffi::c_void) {
    use pg_sys::XactEvent::*;
    if matches!(
        event,
        XACT_EVENT_COMMIT
            | XACT_EVENT_ABORT
            | XACT_EVENT_PARALLEL_COMMIT
            | XACT_EVENT_PARALLEL_ABORT
            | XACT_EVENT_PREPARE
    ) {
        // SAFETY: a backend has one thread.
        unsafe { LAST = (null_mut(), null_mut()) };
        WATCHED.with_borrow_mut(HashMap::clear);
    }
}

/// Scans that were begun in a subtransaction that failed are gone, without their end; those of one that succeeded are its parent's.
#[pg_guard]
unsafe extern "C-unwind" fn subtransaction_ended(
    event: pg_sys::SubXactEvent::Type,
    own: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _argument: *mut core::ffi::c_void,
) {
    use pg_sys::SubXactEvent::*;
    match event {
        SUBXACT_EVENT_ABORT_SUB => {
            // SAFETY: a backend has one thread.
            unsafe { LAST = (null_mut(), null_mut()) };
            WATCHED.with_borrow_mut(|w| w.retain(|_, scan| scan.begun_in != own));
        }
        SUBXACT_EVENT_COMMIT_SUB => WATCHED.with_borrow_mut(|w| {
            w.values_mut().filter(|scan| scan.begun_in == own).for_each(|scan| scan.begun_in = parent);
        }),
        _ => {}
    }
}

/// An index scan in a plan.
struct Node {
    table: pg_sys::Relation,
    index: pg_sys::Oid,
    /// Null under EXPLAIN without ANALYZE.
    index_relation: pg_sys::Relation,
    /// Null before it has begun.
    scan: pg_sys::IndexScanDesc,
    quals: *mut pg_sys::List,
}

impl Node {
    /// If a plan state is a plain or index-only scan.
    unsafe fn of(state: *mut pg_sys::PlanState) -> Option<Self> {
        // SAFETY: the tag tells the type.
        unsafe {
            match (*state).type_ {
                pg_sys::NodeTag::T_IndexScanState => {
                    let node = &*state.cast::<pg_sys::IndexScanState>();
                    let plan = &*(*state).plan.cast::<pg_sys::IndexScan>();
                    Some(Self {
                        table: node.ss.ss_currentRelation,
                        index: plan.indexid,
                        index_relation: node.iss_RelationDesc,
                        scan: node.iss_ScanDesc,
                        quals: plan.indexqual,
                    })
                }
                pg_sys::NodeTag::T_IndexOnlyScanState => {
                    let node = &*state.cast::<pg_sys::IndexOnlyScanState>();
                    let plan = &*(*state).plan.cast::<pg_sys::IndexOnlyScan>();
                    Some(Self {
                        table: node.ss.ss_currentRelation,
                        index: plan.indexid,
                        index_relation: node.ioss_RelationDesc,
                        scan: node.ioss_ScanDesc,
                        quals: plan.indexqual,
                    })
                }
                _ => None,
            }
        }
    }

    /// Whether it is a scan by a btree of a large table that may touch many rows.
    unsafe fn eligible(&self, index: pg_sys::Relation, plan: *mut pg_sys::Plan) -> bool {
        // SAFETY: the relations are open.
        unsafe {
            let btree = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID && !self.table.is_null();
            if !btree || (*(*self.table).rd_rel).relpersistence == pg_sys::RELPERSISTENCE_TEMP as i8 {
                return false;
            }
            if (*plan).plan_rows <= 1.0 && (*(*index).rd_index).indisunique && is_whole_key(index, self.quals) {
                return false;
            }
            let blocks = pg_sys::RelationGetNumberOfBlocksInFork(self.table, pg_sys::ForkNumber::MAIN_FORKNUM);
            blocks >= guc::INDEX_PREFETCH_MIN_SIZE.get() as u32
        }
    }
}

/// Whether the conditions are equalities that cover the whole key of an index.
unsafe fn is_whole_key(index: pg_sys::Relation, quals: *mut pg_sys::List) -> bool {
    // SAFETY: `quals` are the conditions of a scan of the index: comparisons with a column of it at the left.
    unsafe {
        let form = &*(*index).rd_index;
        let mut equal = 0u32;
        for qual in crate::pg::list::items::<pg_sys::OpExpr>(quals) {
            if !crate::pg::list::is_a(qual, pg_sys::NodeTag::T_OpExpr) {
                return false;
            }
            let column = crate::pg::list::items::<pg_sys::Var>((*qual).args).next();
            let Some(column) = column.filter(|v| crate::pg::list::is_a(*v, pg_sys::NodeTag::T_Var)) else {
                return false;
            };
            let i = (*column).varattno - 1;
            if !(0..form.indnkeyatts).contains(&i) {
                return false;
            }
            let family = *(*index).rd_opfamily.add(i as usize);
            if pg_sys::get_op_opfamily_strategy((*qual).opno, family) == pg_sys::BTEqualStrategyNumber as i32 {
                equal |= 1 << i;
            }
        }
        u64::from(equal) == (1u64 << form.indnkeyatts) - 1
    }
}

/// Has the scans of a plan's index looked at, if it is one to look at.
///
/// # Safety
/// `state` is a plan state whose executor has just started.
pub unsafe fn attach(state: *mut pg_sys::PlanState) {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(node) = Node::of(state) else { return };
        let index = node.index_relation;
        if index.is_null() || guc::INDEX_PREFETCH_DISTANCE.get() == 0 {
            return;
        }
        let routine = (*index).rd_indam;
        if routine.is_null()
            || is_ours((*routine).amgettuple)
            || probe::is_ours((*routine).amgettuple)
            || !node.eligible(index, (*state).plan)
        {
            return;
        }
        let known = &raw mut BTREE;
        let own = (*known).get_or_insert(*routine);
        // All btrees have the same callbacks, unless somebody else has changed them.
        let same = own.amgettuple.map(|f| f as usize) == (*routine).amgettuple.map(|f| f as usize)
            && own.ambeginscan.map(|f| f as usize) == (*routine).ambeginscan.map(|f| f as usize);
        if same {
            (*routine).ambeginscan = Some(begin);
            (*routine).amrescan = Some(rescan);
            (*routine).amgettuple = Some(next);
            (*routine).amendscan = Some(end);
        }
    }
}

fn is_ours(callback: pg_sys::amgettuple_function) -> bool {
    callback.map(|f| f as usize) == Some(next as *const () as usize)
}

/// The btree's callbacks. Only asked inside ours, which are there once these are.
unsafe fn btree() -> &'static pg_sys::IndexAmRoutine {
    // SAFETY: set by `attach`, and never changed again.
    unsafe {
        let known = &raw const BTREE;
        (&*known).as_ref().unwrap_unchecked()
    }
}

/// The state of a scan; null if it is not looked at.
#[inline]
unsafe fn watched(desc: pg_sys::IndexScanDesc) -> *mut Watched {
    // SAFETY: a backend has one thread; a box stays where it is.
    unsafe {
        if LAST.0 != desc {
            let found = WATCHED.with_borrow_mut(|w| w.get_mut(&(desc as usize)).map_or(null_mut(), |b| &raw mut **b));
            LAST = (desc, found);
        }
        LAST.1
    }
}

/// `ambeginscan`
#[pg_guard]
unsafe extern "C-unwind" fn begin(index: pg_sys::Relation, keys: i32, order_bys: i32) -> pg_sys::IndexScanDesc {
    // SAFETY: the arguments are PostgreSQL's.
    unsafe {
        let begin = btree().ambeginscan.unwrap_unchecked();
        let desc = crate::pg::guarded(|| begin(index, keys, order_bys));
        WATCHED.with_borrow_mut(|w| w.insert(desc as usize, Box::new(Watched::new())));
        LAST = (null_mut(), null_mut());
        desc
    }
}

/// `amrescan`
unsafe extern "C-unwind" fn rescan(
    desc: pg_sys::IndexScanDesc,
    keys: pg_sys::ScanKey,
    count: i32,
    order_bys: pg_sys::ScanKey,
    order_by_count: i32,
) {
    // SAFETY: as above; nothing here needs dropping when an ERROR passes.
    unsafe {
        if let Some(w) = watched(desc).as_mut() {
            w.jump();
        }
        btree().amrescan.unwrap_unchecked()(desc, keys, count, order_bys, order_by_count);
    }
}

/// `amendscan`
#[pg_guard]
unsafe extern "C-unwind" fn end(desc: pg_sys::IndexScanDesc) {
    // SAFETY: as above.
    unsafe {
        LAST = (null_mut(), null_mut());
        drop(WATCHED.with_borrow_mut(|w| w.remove(&(desc as usize))));
        let end = btree().amendscan.unwrap_unchecked();
        crate::pg::guarded(|| end(desc));
    }
}

/// `amgettuple`. Without a guard, because it runs for each entry: nothing here needs dropping when an ERROR passes.
unsafe extern "C-unwind" fn next(desc: pg_sys::IndexScanDesc, direction: pg_sys::ScanDirection::Type) -> bool {
    // SAFETY: as above.
    unsafe {
        let state = watched(desc);
        if let Some(w) = state.as_mut() {
            w.before();
        }
        let found = btree().amgettuple.unwrap_unchecked()(desc, direction);
        // Looked up again: the btree may have run other scans, and ended them, in functions of its operator class.
        if found && let Some(w) = watched(desc).as_mut() {
            w.after(desc, direction != pg_sys::ScanDirection::BackwardScanDirection);
        }
        found
    }
}
/// What was done for a scan so far.
pub fn counters(desc: pg_sys::IndexScanDesc) -> Counters {
    WATCHED.with_borrow(|w| w.get(&(desc as usize)).map(|w| w.counters)).unwrap_or_default()
}
