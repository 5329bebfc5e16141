//! The differences between PostgreSQL 15, 16, 17 and 18, in one place.

use pgrx::pg_sys;

/// The relation file number of an open relation.
///
/// # Safety
/// `rel` is open.
pub unsafe fn filenode(rel: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*rel).rd_node.relNode;
        #[cfg(not(feature = "pg15"))]
        return (*rel).rd_locator.relNumber;
    }
}

/// Where the file of an open relation is.
///
/// # Safety
/// `rel` is open.
pub unsafe fn locator(rel: pg_sys::Relation) -> FileLocator {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*rel).rd_node;
        #[cfg(not(feature = "pg15"))]
        return (*rel).rd_locator;
    }
}

/// Writes a WAL record that refers to no page.
///
/// # Safety
/// `data` is a whole record of resource manager `rmgr` and kind `info`.
pub unsafe fn log_record(rmgr: pg_sys::RmgrId, info: u8, data: *const u8, size: usize) {
    // SAFETY: the caller's promise; the data is copied by XLogInsert.
    unsafe {
        pg_sys::XLogBeginInsert();
        pg_sys::XLogRegisterData(data.cast_mut().cast(), size as _);
        pg_sys::XLogInsert(rmgr, info);
    }
}

/// The inserting transaction of a tuple, frozen or not (`HeapTupleHeaderGetXmin`).
///
/// # Safety
/// `header` is a valid on-disk tuple header.
#[inline]
pub unsafe fn tuple_xmin(header: pg_sys::HeapTupleHeader) -> pg_sys::TransactionId {
    const FROZEN: u16 = (pg_sys::HEAP_XMIN_COMMITTED | pg_sys::HEAP_XMIN_INVALID) as u16;
    // SAFETY: the caller's promise.
    unsafe {
        if (*header).t_infomask & FROZEN == FROZEN {
            pg_sys::FrozenTransactionId
        } else {
            (*header).t_choice.t_heap.t_xmin
        }
    }
}

/// The attribute `i` (from 0) of a tuple descriptor.
///
/// # Safety
/// `i` is below the descriptor's number of attributes.
pub unsafe fn attribute<'a>(tupdesc: pg_sys::TupleDesc, i: usize) -> &'a pg_sys::FormData_pg_attribute {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return &*(*tupdesc).attrs.as_ptr().add(i);
        #[cfg(feature = "pg18")]
        return &*pg_sys::TupleDescAttr(tupdesc, i as i32);
    }
}

/// `heap_fetch` with SnapshotAny; on success the tuple's buffer is pinned.
///
/// # Safety
/// `rel` is open and `tuple.t_self` names a place in it.
pub unsafe fn heap_fetch_any(
    rel: pg_sys::Relation,
    tuple: &mut pg_sys::HeapTupleData,
    buffer: &mut pg_sys::Buffer,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::heap_fetch(rel, &raw mut pg_sys::SnapshotAnyData, tuple, buffer, false) }
}

/// What `tuple_update` reports about the indexes.
#[cfg(feature = "pg15")]
pub type UpdateIndexes = bool;
/// What `tuple_update` reports about the indexes.
#[cfg(not(feature = "pg15"))]
pub type UpdateIndexes = pg_sys::TU_UpdateIndexes::Type;

/// The subtransaction of this transaction in which the relation got its file, or InvalidSubTransactionId.
///
/// # Safety
/// `rel` is open.
pub unsafe fn new_file_subid(rel: pg_sys::Relation) -> pg_sys::SubTransactionId {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*rel).rd_newRelfilenodeSubid;
        #[cfg(not(feature = "pg15"))]
        return (*rel).rd_newRelfilelocatorSubid;
    }
}

/// Whether a unique index counts nulls as equal.
pub fn nulls_not_distinct(form: &pg_sys::FormData_pg_index) -> bool {
    form.indnullsnotdistinct
}

/// `GetPerTupleExprContext`
///
/// # Safety
/// `estate` is valid.
pub unsafe fn per_tuple_context(estate: *mut pg_sys::EState) -> *mut pg_sys::ExprContext {
    // SAFETY: the caller's promise.
    unsafe {
        if (*estate).es_per_tuple_exprcontext.is_null() {
            pg_sys::MakePerTupleExprContext(estate)
        } else {
            (*estate).es_per_tuple_exprcontext
        }
    }
}

/// `ExecQual` on a qualification that is not null.
///
/// # Safety
/// `qual` was prepared by ExecPrepareQual or ExecInitQual; `econtext` holds its tuple.
pub unsafe fn exec_qual(qual: *mut pg_sys::ExprState, econtext: *mut pg_sys::ExprContext) -> bool {
    if qual.is_null() {
        return true;
    }
    let mut is_null = false;
    // SAFETY: the caller's promise; evalfunc is set once an expression is prepared.
    unsafe {
        let old = pg_sys::MemoryContextSwitchTo((*econtext).ecxt_per_tuple_memory);
        let result = super::guarded(|| (*qual).evalfunc.unwrap_unchecked()(qual, econtext, &mut is_null));
        pg_sys::MemoryContextSwitchTo(old);
        !is_null && result.value() != 0
    }
}

/// Where a relation file is.
#[cfg(feature = "pg15")]
pub type FileLocator = pg_sys::RelFileNode;
/// Where a relation file is.
#[cfg(not(feature = "pg15"))]
pub type FileLocator = pg_sys::RelFileLocator;

/// The relation file number of a locator.
pub fn file_number(locator: &FileLocator) -> pg_sys::Oid {
    #[cfg(feature = "pg15")]
    return locator.relNode;
    #[cfg(not(feature = "pg15"))]
    return locator.relNumber;
}

/// Whether the current user owns a relation, or is a superuser.
pub fn is_owner(relid: pg_sys::Oid) -> bool {
    // SAFETY: system-cache look-ups.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_class_ownercheck(relid, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::RelationRelationId, relid, pg_sys::GetUserId());
    }
}

/// `pg_total_relation_size`
///
/// # Safety
/// `relid` is a relation.
pub unsafe fn total_relation_size(relid: pg_sys::Oid) -> i64 {
    // SAFETY: the caller's promise.
    unsafe {
        pgrx::direct_function_call::<i64>(pg_sys::pg_total_relation_size, &[Some(pg_sys::Datum::from(relid))])
            .unwrap_or(0)
    }
}

/// The last line pointer of a page.
///
/// # Safety
/// `page` is a locked heap page.
#[inline]
pub unsafe fn max_offset(page: pg_sys::Page) -> pg_sys::OffsetNumber {
    // SAFETY: the caller's promise.
    unsafe {
        let header = page.cast::<pg_sys::PageHeaderData>();
        let lower = (*header).pd_lower as usize;
        let start = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);
        (lower.saturating_sub(start) / size_of::<pg_sys::ItemIdData>()) as pg_sys::OffsetNumber
    }
}

/// A line pointer of a page.
///
/// # Safety
/// `page` is a locked heap page with that offset.
#[inline]
pub unsafe fn item_id(page: pg_sys::Page, offset: pg_sys::OffsetNumber) -> *const pg_sys::ItemIdData {
    // SAFETY: the caller's promise.
    unsafe {
        let start = std::mem::offset_of!(pg_sys::PageHeaderData, pd_linp);
        page.cast::<u8>().add(start).cast::<pg_sys::ItemIdData>().add(offset as usize - 1)
    }
}

/// The LSN of a page.
///
/// # Safety
/// `page` is a locked page.
#[inline]
pub unsafe fn page_lsn(page: pg_sys::Page) -> pg_sys::XLogRecPtr {
    // SAFETY: the caller's promise.
    unsafe {
        let lsn = (*page.cast::<pg_sys::PageHeaderData>()).pd_lsn;
        (u64::from(lsn.xlogid) << 32) | u64::from(lsn.xrecoff)
    }
}

/// The OID of an access method.
pub fn access_method_oid(name: &std::ffi::CStr) -> pg_sys::Oid {
    // SAFETY: system-cache look-up; raises an ERROR if it is missing.
    unsafe { pg_sys::get_am_oid(name.as_ptr(), false) }
}

/// Takes a lock if it can be had within `ms` milliseconds. The lock is the current transaction's.
pub fn lock_with_timeout(relid: pg_sys::Oid, mode: pg_sys::LOCKMODE, ms: u64) -> bool {
    // SAFETY: an internal subtransaction around the wait, as PL/pgSQL's exception blocks do; `LockTimeout` is what
    // lock_timeout sets.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        let timeout = pg_sys::LockTimeout;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let locked = pgrx::PgTryBuilder::new(|| {
            pg_sys::LockTimeout = ms as i32;
            pg_sys::LockRelationOid(relid, mode);
            true
        })
        .catch_when(pgrx::PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, |_| false)
        .finally(|| pg_sys::LockTimeout = timeout)
        .execute();
        if locked {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::MemoryContextSwitchTo(context);
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        locked
    }
}

/// Adds rows to `pg_class.reltuples`, in place and in the cache entry, after VACUUM has written there.
///
/// # Safety
/// `rel` is open and locked as VACUUM locks it.
pub unsafe fn add_to_reltuples(rel: pg_sys::Relation, rows: f64) {
    // SAFETY: the caller's promise; the row of an open relation is there. What was written in place shows after the next
    // command begins.
    unsafe {
        pg_sys::GetCurrentCommandId(true);
        pg_sys::CommandCounterIncrement();
        pg_sys::AcceptInvalidationMessages();
        let key = pg_sys::Datum::from((*rel).rd_id);
        let tuple = pg_sys::SearchSysCacheCopy(
            pg_sys::SysCacheIdentifier::RELOID as i32,
            key,
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
            pg_sys::Datum::null(),
        );
        if tuple.is_null() {
            return;
        }
        let form = struct_of::<pg_sys::FormData_pg_class>(tuple);
        let rows = f64::from((*form).reltuples.max(0.0)) + rows;
        pg_sys::vac_update_relstats(
            rel,
            (*form).relpages as pg_sys::BlockNumber,
            rows,
            (*form).relallvisible as pg_sys::BlockNumber,
            #[cfg(feature = "pg18")]
            ((*form).relallfrozen as pg_sys::BlockNumber),
            (*form).relhasindex,
            pg_sys::InvalidTransactionId,
            pg_sys::MultiXactId::from(0),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            true,
        );
        (*(*rel).rd_rel).reltuples = rows as f32;
        pg_sys::heap_freetuple(tuple);
    }
}

/// Marks a path as one to be taken only if there is no other, if `enable_seqscan` is off.
///
/// # Safety
/// `path` is being made, and its costs are set.
pub unsafe fn mind_enable_seqscan(path: *mut pg_sys::Path) {
    // SAFETY: the caller's promise.
    unsafe {
        if pg_sys::enable_seqscan {
            return;
        }
        #[cfg(not(feature = "pg18"))]
        {
            (*path).startup_cost += pg_sys::disable_cost;
            (*path).total_cost += pg_sys::disable_cost;
        }
        #[cfg(feature = "pg18")]
        {
            (*path).disabled_nodes += 1;
        }
    }
}

/// `AddinShmemInitLock` in the array of named locks (`lwlocknames.h`).
pub const ADDIN_SHMEM_INIT_LOCK: usize = 21;

/// `PortalRun` of everything, at top level.
///
/// # Safety
/// The portal is started.
pub unsafe fn portal_run(portal: pg_sys::Portal, receiver: *mut pg_sys::DestReceiver) {
    let all = core::ffi::c_long::MAX;
    let none = std::ptr::null_mut();
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::PortalRun(portal, all, true, true, receiver, receiver, none);
        #[cfg(feature = "pg18")]
        pg_sys::PortalRun(portal, all, true, receiver, receiver, none);
    }
}

/// `index_beginscan` without order-by operators.
///
/// # Safety
/// The relations are open, `snapshot` is valid.
pub unsafe fn index_beginscan(
    rel: pg_sys::Relation,
    index: pg_sys::Relation,
    snapshot: pg_sys::Snapshot,
    keys: i32,
) -> pg_sys::IndexScanDesc {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return pg_sys::index_beginscan(rel, index, snapshot, keys, 0);
        #[cfg(feature = "pg18")]
        return pg_sys::index_beginscan(rel, index, snapshot, std::ptr::null_mut(), keys, 0);
    }
}

/// Whether a collation sorts by bytes.
pub fn is_c_collation(collation: pg_sys::Oid) -> bool {
    if collation == pg_sys::Oid::from(pg_sys::C_COLLATION_OID.to_u32()) {
        return true;
    }
    if collation == pg_sys::Oid::INVALID {
        return false;
    }
    // SAFETY: a cache look-up; from 18 on the locale is never null and lives as long as the cache.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return super::guarded(|| super::ext::lc_collate_is_c(collation));
        #[cfg(feature = "pg18")]
        return (*super::guarded(|| super::ext::pg_newlocale_from_collation(collation))).collate_is_c;
    }
}

/// Whether a transaction has ended, without waiting (`ConditionalXactLockTableWait`).
pub fn transaction_has_ended(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: a lock-manager call on a transaction id.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        return pg_sys::ConditionalXactLockTableWait(xid);
        #[cfg(feature = "pg18")]
        return pg_sys::ConditionalXactLockTableWait(xid, false);
    }
}

/// `ExecProject`
///
/// # Safety
/// `info` is a node's projection whose expression context holds the tuple.
pub unsafe fn exec_project(info: *mut pg_sys::ProjectionInfo) -> *mut pg_sys::TupleTableSlot {
    // SAFETY: the caller's promise; evalfunc is set once an expression is prepared.
    unsafe {
        let state = &raw mut (*info).pi_state;
        let slot = (*state).resultslot;
        pg_sys::ExecClearTuple(slot);
        let mut is_null = false;
        let old = pg_sys::MemoryContextSwitchTo((*(*info).pi_exprContext).ecxt_per_tuple_memory);
        super::guarded(|| (*state).evalfunc.unwrap_unchecked()(state, (*info).pi_exprContext, &mut is_null));
        pg_sys::MemoryContextSwitchTo(old);
        pg_sys::ExecStoreVirtualTuple(slot)
    }
}

/// `adjust_appendrel_attrs_multilevel`: an expression over `top` as one over its descendant `child`.
///
/// # Safety
/// The arguments are the planner's.
pub unsafe fn translate_to_child(
    root: *mut pg_sys::PlannerInfo,
    node: *mut pg_sys::Node,
    child: *mut pg_sys::RelOptInfo,
    top: *mut pg_sys::RelOptInfo,
) -> *mut pg_sys::Node {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::adjust_appendrel_attrs_multilevel(root, node, (*child).relids, (*top).relids);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::adjust_appendrel_attrs_multilevel(root, node, child, top);
    }
}

/// The GROUP BY clauses that the planner kept.
///
/// # Safety
/// `root` is the planner's.
pub unsafe fn group_clause(root: *mut pg_sys::PlannerInfo) -> *mut pg_sys::List {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        return (*(*root).parse).groupClause;
        #[cfg(not(feature = "pg15"))]
        return (*root).processed_groupClause;
    }
}

/// What `tuple_update` reports when it changed nothing.
#[cfg(feature = "pg15")]
pub const NO_INDEXES: UpdateIndexes = false;
/// What `tuple_update` reports when it changed nothing.
#[cfg(not(feature = "pg15"))]
pub const NO_INDEXES: UpdateIndexes = pg_sys::TU_UpdateIndexes::TU_None;

/// `TransactionIdIsNormal`
pub fn is_normal(xid: pg_sys::TransactionId) -> bool {
    u32::from(xid) >= u32::from(pg_sys::FirstNormalTransactionId)
}

/// Whether changes of a table are decoded (`RelationIsLogicallyLogged`).
///
/// # Safety
/// `rel` is open.
pub unsafe fn is_logically_logged(rel: pg_sys::Relation) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_LOGICAL as i32
            && (*(*rel).rd_rel).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as i8
    }
}

/// The fixed part of a catalog row (`GETSTRUCT`).
///
/// # Safety
/// `tuple` is a row of the catalog whose struct is `T`.
pub unsafe fn struct_of<T>(tuple: pg_sys::HeapTuple) -> *mut T {
    // SAFETY: the caller's promise; the data starts at t_hoff, aligned for any catalog struct.
    unsafe { (*tuple).t_data.cast::<u8>().add(usize::from((*(*tuple).t_data).t_hoff)).cast() }
}

/// The tuple at a line pointer of a page of `rel`.
///
/// # Safety
/// The page is pinned, and locked or private, while the tuple is used; `item` is in normal use.
#[inline]
pub unsafe fn page_tuple(
    rel: pg_sys::Relation,
    page: pg_sys::Page,
    block: pg_sys::BlockNumber,
    offset: pg_sys::OffsetNumber,
    item: *const pg_sys::ItemIdData,
) -> pg_sys::HeapTupleData {
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::HeapTupleData {
            t_len: (*item).lp_len(),
            t_self: super::tid::at(block, offset),
            t_tableOid: (*rel).rd_id,
            t_data: page.cast::<u8>().add((*item).lp_off() as usize).cast(),
        }
    }
}

/// What `swap_relation_files` does to the cache entries of a relation that got another's file.
///
/// # Safety
/// Both are open; their files are being exchanged.
pub unsafe fn assume_new_file(rel: pg_sys::Relation, other: pg_sys::Relation) {
    // SAFETY: the caller's promise.
    unsafe {
        (*other).rd_createSubid = (*rel).rd_createSubid;
        #[cfg(feature = "pg15")]
        {
            (*other).rd_newRelfilenodeSubid = (*rel).rd_newRelfilenodeSubid;
            (*other).rd_firstRelfilenodeSubid = (*rel).rd_firstRelfilenodeSubid;
            pg_sys::RelationAssumeNewRelfilenode(rel);
        }
        #[cfg(not(feature = "pg15"))]
        {
            (*other).rd_newRelfilelocatorSubid = (*rel).rd_newRelfilelocatorSubid;
            (*other).rd_firstRelfilelocatorSubid = (*rel).rd_firstRelfilelocatorSubid;
            pg_sys::RelationAssumeNewRelfilelocator(rel);
        }
    }
}

/// Closes the file of a relation whose catalog row was given another (newer versions do so by themselves).
pub fn close_file(relid: pg_sys::Oid) {
    // SAFETY: a relation-cache call on an existing relation.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    unsafe {
        pg_sys::RelationCloseSmgrByOid(relid);
    }
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    let _ = relid;
}

/// Releases what insertions into an index keep between them, with the same `info` (BRIN does so from PostgreSQL 17 on).
///
/// # Safety
/// `index` is open; `info` was given to `index_insert`.
pub unsafe fn index_insert_cleanup(index: pg_sys::Relation, info: *mut pg_sys::IndexInfo) {
    // SAFETY: the caller's promise.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    unsafe {
        pg_sys::index_insert_cleanup(index, info);
    }
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    let _ = (index, info);
}

/// Lifts what a database or a role sets to limit sessions, as autovacuum does: work in the background takes its time.
pub fn lift_session_limits() {
    let limits = [
        (c"statement_timeout", c"0"),
        (c"lock_timeout", c"0"),
        (c"idle_in_transaction_session_timeout", c"0"),
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        (c"transaction_timeout", c"0"),
        (c"default_transaction_isolation", c"read committed"),
    ];
    for (name, value) in limits {
        // SAFETY: parameters of the server and values that they take.
        unsafe {
            pg_sys::SetConfigOption(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_OVERRIDE,
            );
        }
    }
}

/// Has the settings' nest level that is open look for names in `pg_catalog` only, as maintenance commands do from PostgreSQL 17 on.
pub fn restrict_search_path() {
    // SAFETY: the caller opened a nest level.
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    unsafe {
        pg_sys::RestrictSearchPath();
    }
}

/// Searches a btree for reading; the leaf is locked and pinned. Null without a level above the leaf. Call it through
/// [`super::guarded`].
///
/// # Safety
/// `key` was made for `index`, a btree of `heap`.
pub unsafe fn btree_search(
    index: pg_sys::Relation,
    heap: pg_sys::Relation,
    key: *mut core::ffi::c_void,
    leaf: &mut pg_sys::Buffer,
) -> *mut super::ext::BtreeStack {
    let read = pg_sys::BUFFER_LOCK_SHARE as i32;
    // SAFETY: the caller's promise. A null snapshot is one that is never too old.
    unsafe {
        #[cfg(feature = "pg15")]
        return {
            let _ = heap;
            super::ext::_bt_search(index, key, leaf, read, std::ptr::null_mut())
        };
        #[cfg(feature = "pg16")]
        return super::ext::_bt_search(index, heap, key, leaf, read, std::ptr::null_mut());
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        return super::ext::_bt_search(index, heap, key, leaf, read);
    }
}

/// `standard_ExplainOneQuery`: plans a query and explains the plan.
///
/// # Safety
/// The arguments are those of `ExplainOneQuery_hook`.
#[cfg(not(feature = "pg18"))]
pub unsafe fn explain_one_query(
    query: *mut pg_sys::Query,
    options: i32,
    into: *mut pg_sys::IntoClause,
    es: *mut pg_sys::ExplainState,
    text: *const core::ffi::c_char,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
) {
    // SAFETY: the caller's promise.
    #[cfg(feature = "pg17")]
    unsafe {
        pg_sys::standard_ExplainOneQuery(query, options, into, es, text, params, environment);
    }
    // SAFETY: as above.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    unsafe {
        let before = pg_sys::pgBufferUsage;
        let start = std::time::Instant::now();
        let plan = pg_sys::pg_plan_query(query, text, options, params);
        let took = start.elapsed();
        #[cfg(feature = "pg15")]
        let took = pg_sys::instr_time { tv_sec: took.as_secs() as _, tv_nsec: took.subsec_nanos().into() };
        #[cfg(feature = "pg16")]
        let took = pg_sys::instr_time { ticks: took.as_nanos() as i64 };
        let mut usage = pg_sys::BufferUsage::default();
        pg_sys::BufferUsageAccumDiff(&mut usage, &raw mut pg_sys::pgBufferUsage, (&raw const before).cast_mut());
        let usage = if (*es).buffers { &raw const usage } else { std::ptr::null() };
        pg_sys::ExplainOnePlan(plan, into, es, text, params, environment, &took, usage);
    }
}
