//! Functions of PostgreSQL that pgrx does not bind. Call them through [`super::guarded`].

use core::ffi::{c_char, c_int, c_void};
use pgrx::pg_sys::*;

/// State of a heap rewrite (`rewriteheap.c`); opaque.
#[repr(C)]
pub struct RewriteStateData {
    _opaque: [u8; 0],
}
/// Handle of a heap rewrite.
pub type RewriteState = *mut RewriteStateData;

/// `BTStackData` (`nbtree.h`): the link that a search followed, and the one on the level above.
#[repr(C)]
pub struct BtreeStack {
    /// The page.
    pub block: BlockNumber,
    /// Where the link is on it.
    pub offset: OffsetNumber,
    _parent: *mut BtreeStack,
}

/// The beginning of `struct pg_locale_struct` (`pg_locale.h`).
#[cfg(feature = "pg18")]
#[repr(C)]
pub struct Locale {
    _provider: c_char,
    _deterministic: bool,
    /// Whether it sorts by bytes.
    pub collate_is_c: bool,
}

unsafe extern "C-unwind" {
    /// `cluster.c`: a transient table with the shape of `old`.
    pub fn make_new_heap(old: Oid, tablespace: Oid, access_method: Oid, persistence: c_char, lock: LOCKMODE) -> Oid;
    /// `cluster.c`: swaps the files of `old` and `new`, rebuilds the indexes of `old` and drops `new`.
    pub fn finish_heap_swap(
        old: Oid,
        new: Oid,
        is_system_catalog: bool,
        swap_toast_by_content: bool,
        check_constraints: bool,
        is_internal: bool,
        frozen_xid: TransactionId,
        cutoff_multi: MultiXactId,
        persistence: c_char,
    );
    /// `rewriteheap.c`
    pub fn begin_heap_rewrite(
        old: Relation,
        new: Relation,
        oldest_xmin: TransactionId,
        freeze_xid: TransactionId,
        cutoff_multi: MultiXactId,
    ) -> RewriteState;
    /// `rewriteheap.c`
    pub fn end_heap_rewrite(state: RewriteState);
    /// `rewriteheap.c`
    pub fn rewrite_heap_tuple(state: RewriteState, old: HeapTuple, new: HeapTuple);
    /// `rewriteheap.c`
    pub fn rewrite_heap_dead_tuple(state: RewriteState, old: HeapTuple) -> bool;
    /// `predicate.c`
    pub fn PredicateLockTID(relation: Relation, tid: ItemPointer, snapshot: Snapshot, tuple_xid: TransactionId);
    /// `predicate.c`
    pub fn PredicateLockRelation(relation: Relation, snapshot: Snapshot);
    /// `predicate.c`
    pub fn CheckForSerializableConflictIn(relation: Relation, tid: ItemPointer, blkno: BlockNumber);
    /// `predicate.c`
    pub fn CheckForSerializableConflictOut(relation: Relation, xid: TransactionId, snapshot: Snapshot);
    /// `predicate.c`: whether the transaction has to look for writers of what `snapshot` reads.
    pub fn CheckForSerializableConflictOutNeeded(relation: Relation, snapshot: Snapshot) -> bool;
    /// `predicate.c`: makes the predicate locks on pages and tuples locks on the table.
    pub fn TransferPredicateLocksToHeapRelation(relation: Relation);
    /// `heapam.c`: moves `newest` up to the transaction that a snapshot must see as ended not to miss a dead tuple.
    #[cfg_attr(feature = "pg15", link_name = "HeapTupleHeaderAdvanceLatestRemovedXid")]
    #[cfg_attr(not(feature = "pg15"), link_name = "HeapTupleHeaderAdvanceConflictHorizon")]
    pub fn advance_conflict_horizon(tuple: HeapTupleHeader, newest: *mut TransactionId);
    /// `heaptoast.c`: removes the values of `old` that are stored apart.
    pub fn heap_toast_delete(relation: Relation, old: HeapTuple, is_speculative: bool);
    /// `nodeFuncs.c`
    #[cfg_attr(not(feature = "pg15"), link_name = "planstate_tree_walker_impl")]
    pub fn planstate_tree_walker(
        planstate: *mut PlanState,
        walker: Option<unsafe extern "C-unwind" fn(*mut PlanState, *mut c_void) -> bool>,
        context: *mut c_void,
    ) -> bool;
    /// `tuplesort.c` (`tuplesortvariants.c`)
    pub fn tuplesort_begin_index_btree(
        heap: Relation,
        index: Relation,
        enforce_unique: bool,
        nulls_not_distinct: bool,
        work_mem: c_int,
        coordinate: *mut c_void,
        options: c_int,
    ) -> *mut c_void;
    /// `tuplesort.c`
    pub fn tuplesort_putindextuplevalues(
        state: *mut c_void,
        index: Relation,
        tid: ItemPointer,
        values: *mut Datum,
        nulls: *mut bool,
    );
    /// `tuplesort.c`
    pub fn tuplesort_performsort(state: *mut c_void);
    /// `tuplesort.c`
    pub fn tuplesort_end(state: *mut c_void);
    /// `datum.c`
    pub fn datumCopy(value: Datum, by_value: bool, length: c_int) -> Datum;
    /// `datum.c`
    pub fn datumIsEqual(a: Datum, b: Datum, by_value: bool, length: c_int) -> bool;
    /// `prepagg.c`
    pub fn get_agg_clause_costs(root: *mut PlannerInfo, split: AggSplit::Type, costs: *mut AggClauseCosts);
    /// `pg_locale.c`
    #[cfg(not(feature = "pg18"))]
    pub fn lc_collate_is_c(collation: Oid) -> bool;
    /// `pg_locale.c`
    #[cfg(feature = "pg18")]
    pub fn pg_newlocale_from_collation(collation: Oid) -> *const Locale;
    /// `pqsignal.c`
    #[cfg_attr(feature = "pg18", link_name = "pqsignal_be")]
    pub fn pqsignal(signal: c_int, handler: Option<unsafe extern "C-unwind" fn(c_int)>) -> *mut c_void;
    /// `postgres.c`
    pub fn die(signal: c_int);
    /// `nbtutils.c`: what to search a btree for to find a tuple.
    pub fn _bt_mkscankey(index: Relation, tuple: IndexTuple) -> *mut c_void;
    /// `nbtsearch.c`: from the root to a leaf, which is locked and pinned.
    #[cfg(feature = "pg15")]
    pub fn _bt_search(
        index: Relation,
        key: *mut c_void,
        leaf: *mut Buffer,
        access: c_int,
        snapshot: Snapshot,
    ) -> *mut BtreeStack;
    /// `nbtsearch.c`: from the root to a leaf, which is locked and pinned.
    #[cfg(feature = "pg16")]
    pub fn _bt_search(
        index: Relation,
        heap: Relation,
        key: *mut c_void,
        leaf: *mut Buffer,
        access: c_int,
        snapshot: Snapshot,
    ) -> *mut BtreeStack;
    /// `nbtsearch.c`: from the root to a leaf, which is locked and pinned.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    pub fn _bt_search(
        index: Relation,
        heap: Relation,
        key: *mut c_void,
        leaf: *mut Buffer,
        access: c_int,
    ) -> *mut BtreeStack;
    /// `nbtpage.c`: unlocks and unpins.
    pub fn _bt_relbuf(index: Relation, buffer: Buffer);
    /// `nbtutils.c`
    pub fn _bt_freestack(stack: *mut BtreeStack);
    /// `planner.c`
    pub fn standard_planner(
        query: *mut Query,
        text: *const c_char,
        options: c_int,
        params: ParamListInfo,
    ) -> *mut PlannedStmt;
    /// `utility.c`
    pub fn standard_ProcessUtility(
        statement: *mut PlannedStmt,
        text: *const c_char,
        read_only: bool,
        context: ProcessUtilityContext::Type,
        params: ParamListInfo,
        environment: *mut QueryEnvironment,
        receiver: *mut DestReceiver,
        completion: *mut QueryCompletion,
    );
}

/// `InvalidSubTransactionId` (c.h)
pub const INVALID_SUBTRANSACTION_ID: SubTransactionId = 0;
