//! For tests only: with `strata.test_fold` every change that commits is folded into fragments before the next statement, so that
//! a test suite written for heap tables meets fragment rows everywhere.
//!
//! The fold is a consolidation of the tables that were changed, by this session or another one: their OIDs are in shared memory. It happens
//! at the start of a statement outside a transaction block, in that statement's transaction and before it is planned; ahead of BEGIN
//! in a transaction of its own. A table that somebody else uses is left for later. The parameter is that of the server's start.

use super::consolidate::consolidate;
use crate::am::{handler, index};
use crate::guc;
use crate::pg::{OpenRelation, catalog, ext};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

/// More tables that are changed and not yet folded than any suite has.
const TABLES: usize = 4096;

/// In shared memory.
struct Shared {
    /// Database and table that were changed, or 0.
    changed: [AtomicU64; TABLES],
    /// How often tables were taken to be folded.
    folds: AtomicU64,
}

thread_local! {
    static SHARED: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
    /// The table that this session noted last, and the number of folds then.
    static NOTED: Cell<(u32, u64)> = const { Cell::new((0, 0)) };
    /// The tables that this session has changed.
    static OWN: RefCell<BTreeSet<u32>> = const { RefCell::new(BTreeSet::new()) };
    /// The transaction of the last fold, and its tables.
    static FOLDED: RefCell<(u32, BTreeSet<u32>)> = const { RefCell::new((0, BTreeSet::new())) };
}

/// The size of the shared memory.
pub fn shared_size() -> usize {
    if guc::TEST_FOLD.get() { size_of::<Shared>() } else { 0 }
}

/// Attaches to the shared memory, made of zeros if it is new.
///
/// # Safety
/// Called in shmem_startup_hook, with the lock for it.
pub unsafe fn attach() {
    if !guc::TEST_FOLD.get() {
        return;
    }
    let mut found = false;
    // SAFETY: the size was requested; all-zero bytes are a valid Shared.
    unsafe {
        let p = pg_sys::ShmemInitStruct(c"strata test_fold".as_ptr(), shared_size(), &mut found);
        if !found {
            p.cast::<u8>().write_bytes(0, shared_size());
        }
        SHARED.set(p.cast());
    }
}

fn shared() -> Option<&'static Shared> {
    let p = SHARED.get();
    // SAFETY: shared memory stays mapped; everything in it is atomic.
    (!p.is_null()).then(|| unsafe { &*p })
}

/// The tables' key: this database in the upper half.
fn key(table: u32) -> u64 {
    // SAFETY: a plain variable of the backend.
    (u64::from(unsafe { pg_sys::MyDatabaseId.to_u32() }) << 32) | u64::from(table)
}

impl Shared {
    fn note(&self, table: u32) {
        let key = key(table);
        if self.changed.iter().any(|t| t.load(Ordering::Acquire) == key) {
            return;
        }
        for t in &self.changed {
            if t.compare_exchange(0, key, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// Whether any table of this database was changed.
    fn any(&self) -> bool {
        self.changed.iter().any(|t| t.load(Ordering::Acquire) >> 32 == key(0) >> 32)
    }

    /// Takes the changed tables of this database.
    fn take(&self) -> BTreeSet<u32> {
        self.folds.fetch_add(1, Ordering::AcqRel);
        let mut tables = BTreeSet::new();
        for t in &self.changed {
            let found = t.load(Ordering::Acquire);
            if found >> 32 == key(0) >> 32 && t.compare_exchange(found, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                tables.insert(found as u32);
            }
        }
        tables
    }
}

static mut PREVIOUS_PLANNER: pg_sys::planner_hook_type = None;

/// Installs the hook of the planner if the parameter is set. That of utility statements is [`crate::utility`]'s.
pub fn install() {
    if !guc::TEST_FOLD.get() {
        return;
    }
    // SAFETY: called once, while the library is loaded; the previous hook is chained.
    unsafe {
        PREVIOUS_PLANNER = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner);
    }
}

/// Notes that this session has changed a table.
///
/// # Safety
/// `rel` is open.
#[inline]
pub unsafe fn changed(rel: pg_sys::Relation) {
    if guc::TEST_FOLD.get()
        && let Some(shared) = shared()
    {
        // SAFETY: the caller's promise.
        let relid = unsafe { (*rel).rd_id }.to_u32();
        let folds = shared.folds.load(Ordering::Acquire);
        if NOTED.get() != (relid, folds) {
            shared.note(relid);
            OWN.with_borrow_mut(|own| own.insert(relid));
            NOTED.set((relid, folds));
        }
    }
}

// The hook catches nothing that PostgreSQL raises: an error reaches the client with all that it says. So it holds nothing that
// would have to be dropped, and calls PostgreSQL's own functions and not those of pgrx, which catch.

unsafe extern "C-unwind" fn planner(
    query: *mut pg_sys::Query,
    text: *const core::ffi::c_char,
    options: core::ffi::c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: the arguments are PostgreSQL's. Outside of any portal nothing of this session is being executed.
    unsafe {
        if pg_sys::ActivePortal.is_null() && !is_about_decoding(text) {
            fold();
        }
        PREVIOUS_PLANNER.unwrap_or(ext::standard_planner)(query, text, options, params)
    }
}

/// Folds before a utility statement.
///
/// # Safety
/// The arguments are those of the hook.
pub unsafe fn before_utility(statement: *mut pg_sys::PlannedStmt, context: pg_sys::ProcessUtilityContext::Type) {
    use pg_sys::NodeTag as T;
    if !guc::TEST_FOLD.get() || context != pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL {
        return;
    }
    // SAFETY: the arguments are PostgreSQL's.
    unsafe {
        let tag = (*(*statement).utilityStmt).type_;
        let leaves_alone = matches!(
            tag,
            T::T_TransactionStmt | T::T_VariableSetStmt | T::T_VariableShowStmt | T::T_FetchStmt | T::T_DiscardStmt
        );
        if !leaves_alone {
            fold();
        } else if tag == T::T_TransactionStmt && (*statement).stmt_location <= 0 {
            let kind = (*(*statement).utilityStmt.cast::<pg_sys::TransactionStmt>()).kind;
            use pg_sys::TransactionStmtKind as K;
            if kind == K::TRANS_STMT_BEGIN || kind == K::TRANS_STMT_START {
                fold_apart();
            }
        }
    }
}

/// Whether a statement calls functions of logical decoding (`pg_create_logical_replication_slot`, `pg_logical_slot_get_changes`). Those
/// want a transaction that has written nothing.
unsafe fn is_about_decoding(text: *const core::ffi::c_char) -> bool {
    // SAFETY: the text of a statement, or null.
    !text.is_null() && unsafe { std::ffi::CStr::from_ptr(text) }.to_bytes().windows(8).any(|part| part == b"logical_")
}

/// Folds in a transaction of its own, as the first statement of a string begins a transaction block. As VACUUM does it, the statement's
/// transaction is ended and another one begun.
#[pg_guard]
unsafe extern "C-unwind" fn fold_apart() {
    // SAFETY: BEGIN is run with no snapshot, and nothing was done in its transaction. With more statements in the string there
    // is an implicit block.
    unsafe {
        if !shared().is_some_and(Shared::any) || pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId {
            return;
        }
        let implicit = pg_sys::IsTransactionBlock();
        if implicit {
            pg_sys::EndImplicitTransactionBlock();
            if pg_sys::IsTransactionBlock() {
                return;
            }
        }
        let context = pg_sys::CurrentMemoryContext;
        fold();
        pg_sys::CommitTransactionCommand();
        pg_sys::StartTransactionCommand();
        if implicit {
            pg_sys::BeginImplicitTransactionBlock();
        }
        pg_sys::MemoryContextSwitchTo(context);
    }
}

/// Folds what was changed, where that can be done now.
#[pg_guard]
unsafe extern "C-unwind" fn fold() {
    // SAFETY: called at the start of a statement, with nothing of this session in execution.
    unsafe {
        if pg_sys::IsTransactionBlock() {
            return;
        }
        let Some(shared) = shared() else { return };
        // What was folded in a statement that failed was not.
        let (xid, folded) = FOLDED.take();
        if !folded.is_empty() && !pg_sys::TransactionIdDidCommit(pg_sys::TransactionId::from_inner(xid)) {
            folded.iter().for_each(|table| shared.note(*table));
            OWN.with_borrow_mut(|own| own.extend(folded));
        }
        if !shared.any() || pg_sys::XactReadOnly || catalog::oids().is_none() {
            return;
        }
        let mut folded = BTreeSet::new();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        for table in shared.take() {
            let relid = pg_sys::Oid::from_u32(table);
            if !pg_sys::ConditionalLockRelationOid(relid, pg_sys::AccessExclusiveLock as i32) {
                shared.note(table);
                continue;
            }
            let mine = OWN.with_borrow_mut(|own| own.remove(&table));
            let (mut foldable, mut later) = (false, false);
            if let Some(rel) = OpenRelation::try_open(relid, pg_sys::NoLock) {
                // Deferred triggers run statements while the transaction's own tables are open.
                foldable = (*rel.0).rd_refcnt == 1
                    && (*(*rel.0).rd_rel).relkind == pg_sys::RELKIND_RELATION as i8
                    && handler::is_warm(rel.0)
                    && (*(*rel.0).rd_rel).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as i8;
                // An expression may ask for what is set in the session that made the change.
                later = foldable && !mine && has_index_expressions(rel.0);
            }
            if later {
                shared.note(table);
            } else if foldable {
                catalog::as_owner(|| consolidate(relid));
                folded.insert(table);
            }
        }
        pg_sys::PopActiveSnapshot();
        FOLDED.set((pg_sys::GetCurrentTransactionIdIfAny().into_inner(), folded));
    }
}

unsafe fn has_index_expressions(rel: pg_sys::Relation) -> bool {
    // SAFETY: `rel` is open and locked.
    unsafe {
        index::index_oids(rel).into_iter().any(|oid| {
            let index = OpenRelation::open(oid, pg_sys::AccessShareLock);
            !pg_sys::RelationGetIndexExpressions(index.0).is_null()
        })
    }
}
