//! The fragments of a warm table as a backend sees them, kept between statements.
//!
//! The list is read from the catalog once and kept until the relation's cache entry is invalidated; a file's fragments
//! change only with the file (see the module header of `am`). Files are opened on first use; a bounded number stays open, and what
//! stays in memory of their values is decided in [`crate::memory`].

use super::datum::{self, Kind};
use super::deletion;
use super::segments::{self, Index};
use crate::error::StrataError;
use crate::guc;
use crate::memory::access::{self, Choice, Pattern};
use crate::memory::shared;
use crate::pg::catalog::{self, FragmentRow};
use crate::pg::{compat, ext, guarded, tid};
use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, Oid};
use roaring::RoaringTreemap;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use strata_fragment::{Fragment, FragmentError, PhysicalType, Value, fragment_path};

/// Fragments that a backend keeps open, and the memory that their footers may take together: a quarter of the budget, but at
/// least this. When a scan or look-ups go round more fragments than are kept, each is opened again each time.
const OPEN_FRAGMENTS: usize = 8_192;
const OPEN_MEMORY: usize = 16 << 20;

/// Where the values of an attribute come from.
#[derive(Clone, Copy, Debug)]
pub enum ColumnSource {
    /// Column of the fragment, and how its datums are made.
    Column(usize, Kind),
    /// The fragment was written without it: this datum (null if true).
    Missing(Datum, bool),
}

/// One fragment of a table.
pub struct TableFragment {
    /// Its row in the catalog.
    pub row: FragmentRow,
    relid: Oid,
}

impl TableFragment {
    /// A fragment of table `relid`.
    pub fn new(row: FragmentRow, relid: Oid) -> Self {
        Self { row, relid }
    }

    /// Whether the file is in the store.
    pub fn is_local(&self) -> bool {
        self.is_open() || fragment_path(&store(), &self.row.hash).exists()
    }

    /// The row id of the row at a position of the file.
    #[inline]
    pub fn row_id(&self, position: u64) -> u64 {
        self.row.first_row_id
            + match &self.row.row_ids {
                None => position,
                Some(ids) => u64::from(ids.select(position as u32).unwrap_or(0)),
            }
    }

    /// The row ids of the rows at `n` positions from `position` on, if they are not consecutive.
    pub fn sparse_row_ids(&self, position: u64, n: usize) -> Option<Vec<u64>> {
        let ids = self.row.row_ids.as_ref()?;
        let mut offsets = ids.iter();
        if let Some(first) = ids.select(position as u32) {
            offsets.advance_to(first);
        }
        Some(offsets.take(n).map(|offset| self.row.first_row_id + u64::from(offset)).collect())
    }

    /// The position of a row id in the file; None: it has no such row.
    #[inline]
    pub fn position(&self, row_id: u64) -> Option<u64> {
        let offset = row_id.checked_sub(self.row.first_row_id)?;
        match &self.row.row_ids {
            None => (offset < self.row.row_count).then_some(offset),
            Some(ids) => {
                let offset = u32::try_from(offset).ok()?;
                ids.contains(offset).then(|| ids.rank(offset) - 1)
            }
        }
    }

    /// The row id behind the last.
    pub fn end(&self) -> u64 {
        self.row.end()
    }

    /// Whether the fragment is open already.
    pub fn is_open(&self) -> bool {
        OPEN.with_borrow(|open| open.fragments.contains_key(&self.row.hash))
    }

    /// The opened fragment, begun to be read as was chosen; raises an ERROR that names it if it is missing or damaged.
    pub fn open_for(&self, choice: &Choice) -> Rc<Fragment> {
        let fragment = self.open();
        fragment.begin(choice.access, choice.at_once);
        fragment
    }

    /// The opened fragment, for what is in its footer; raises an ERROR that names it if it is missing or damaged.
    pub fn open(&self) -> Rc<Fragment> {
        if let Some(fragment) = OPEN.with_borrow_mut(|open| open.get(&self.row.hash)) {
            return fragment;
        }
        shared::enter();
        let path = fragment_path(&store(), &self.row.hash);
        let opened = match Fragment::open(&path, Some(&self.row.hash)) {
            Err(FragmentError::Missing { .. }) => {
                if let Err(why) = crate::api::agent::fetch_fragment(&self.row.hash) {
                    StrataError::MissingFragment {
                        relid: self.relid,
                        hash: self.row.hash.clone(),
                        path: path.display().to_string(),
                        why,
                    }
                    .raise();
                }
                Fragment::open(&path, Some(&self.row.hash))
            }
            other => other,
        };
        let fragment = Rc::new(self.check(opened));
        if fragment.rows() != self.row.row_count {
            StrataError::DamagedFragment {
                relid: self.relid,
                hash: self.row.hash.clone(),
                what: format!("it has {} rows, the catalog says {}", fragment.rows(), self.row.row_count),
            }
            .raise();
        }
        OPEN.with_borrow_mut(|open| open.put(self.row.hash.clone(), fragment.clone()));
        fragment
    }

    /// The value, or an ERROR that names the fragment.
    pub fn check<T>(&self, result: Result<T, FragmentError>) -> T {
        match result {
            Ok(v) => v,
            Err(e) => StrataError::from_fragment(self.relid, &self.row.hash, e).raise(),
        }
    }

    /// Where the attributes of `tupdesc` are in this fragment.
    ///
    /// # Safety
    /// `tupdesc` is the table's.
    pub unsafe fn columns(&self, fragment: &Fragment, tupdesc: pg_sys::TupleDesc) -> Vec<ColumnSource> {
        // SAFETY: the indexes are below natts.
        unsafe { (0..(*tupdesc).natts as usize).map(|i| column_source(fragment, tupdesc, i)).collect() }
    }
}

impl TableFragment {
    /// Whether rows of this fragment have a value that stands only in the catalog: a default of an attribute that was added
    /// later. It is lost when the catalog forgets it, after a rewrite of the table.
    ///
    /// # Safety
    /// `tupdesc` is the table's.
    pub unsafe fn relies_on_catalog(&self, tupdesc: pg_sys::TupleDesc) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            if !(0..(*tupdesc).natts as usize).any(|i| compat::attribute(tupdesc, i).atthasmissing) {
                return false;
            }
            let fragment = self.open();
            self.columns(&fragment, tupdesc).iter().any(|c| matches!(c, ColumnSource::Missing(_, false)))
        }
    }
}

/// Where attribute `i` of `tupdesc` is in `fragment`.
///
/// # Safety
/// `i` is an attribute of `tupdesc`.
pub unsafe fn column_source(fragment: &Fragment, tupdesc: pg_sys::TupleDesc, i: usize) -> ColumnSource {
    // SAFETY: the caller's promise.
    unsafe {
        let attr = compat::attribute(tupdesc, i);
        let column = if attr.attisdropped { None } else { fragment.schema().by_attnum(attr.attnum) };
        match column {
            Some(c) => match fragment.schema().columns[c].ty {
                // How the fragment keeps a numeric counts, whatever was made of the column's type since.
                PhysicalType::Decimal { scale, .. } => ColumnSource::Column(c, Kind::Numeric(scale as u8)),
                ty => ColumnSource::Column(c, datum::kind_of(attr, ty == PhysicalType::Binary).0),
            },
            None => datum::missing(tupdesc, i),
        }
    }
}

/// The fragments of one table, by first row id; the row ids of one lie before those of the next.
pub struct TableFragments {
    pub(super) relid: Oid,
    /// The table and the file under which they are recorded.
    pub(super) owner: Oid,
    pub(super) filenode: Oid,
    /// Its fragments.
    pub list: Vec<TableFragment>,
    /// Rows that are deleted for every snapshot and have no mark any more.
    pub folded: RoaringTreemap,
    /// Rows and bytes of all of them.
    total: (u64, u64),
    /// See [`super::segments`].
    pub(super) loaded: RefCell<Option<Rc<Index>>>,
}

thread_local! {
    static TABLES: RefCell<HashMap<Oid, Rc<TableFragments>>> = RefCell::default();
    static OPEN: RefCell<Open> = RefCell::default();
}

/// The open fragments: by hash, each with when it was last asked for.
#[derive(Default)]
struct Open {
    fragments: HashMap<String, (u64, Rc<Fragment>)>,
    /// What their footers take.
    memory: usize,
    clock: u64,
}

impl Open {
    fn get(&mut self, hash: &str) -> Option<Rc<Fragment>> {
        self.clock += 1;
        let entry = self.fragments.get_mut(hash)?;
        entry.0 = self.clock;
        Some(entry.1.clone())
    }

    fn put(&mut self, hash: String, fragment: Rc<Fragment>) {
        self.memory += fragment.footer_bytes();
        self.trim();
        self.clock += 1;
        if let Some((_, old)) = self.fragments.insert(hash, (self.clock, fragment)) {
            self.memory -= old.footer_bytes();
        }
    }

    /// Closes the fragments that were not asked for the longest if there are too many: down to an eighth below the limits.
    fn trim(&mut self) {
        let limit = shared::shared().map_or(0, |s| s.limit() as usize / 4).max(OPEN_MEMORY);
        if self.fragments.len() < OPEN_FRAGMENTS && self.memory <= limit {
            return;
        }
        let (most, limit) = (OPEN_FRAGMENTS - OPEN_FRAGMENTS / 8, limit - limit / 8);
        let mut by_age: Vec<(u64, String)> = self.fragments.iter().map(|(hash, (at, _))| (*at, hash.clone())).collect();
        by_age.sort_unstable();
        for (_, hash) in by_age {
            if self.fragments.len() <= most && self.memory <= limit {
                break;
            }
            if let Some((_, fragment)) = self.fragments.remove(&hash) {
                self.memory -= fragment.footer_bytes();
            }
        }
    }
}

thread_local! {
    static STAND_IN: std::cell::Cell<Option<(Oid, Oid)>> = const { std::cell::Cell::new(None) };
}

/// While it lives, a transient table shows the fragments that are recorded for its file under the table it stands for.
pub struct StandIn;

impl StandIn {
    /// `transient` stands for `table`.
    pub fn new(transient: Oid, table: Oid) -> Self {
        invalidate(transient);
        STAND_IN.set(Some((transient, table)));
        Self
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some((transient, _)) = STAND_IN.take() {
            invalidate(transient);
        }
    }
}

/// The store's folder of this database.
pub fn store() -> PathBuf {
    // SAFETY: a plain variable of the backend.
    let database = unsafe { pg_sys::MyDatabaseId };
    guc::store_directory().join(database.to_u32().to_string())
}

/// The fragments of `rel`, or None if it has none.
///
/// # Safety
/// `rel` is open and locked.
pub unsafe fn of(rel: pg_sys::Relation) -> Option<Rc<TableFragments>> {
    // SAFETY: the caller's promise.
    let (relid, filenode) = unsafe { ((*rel).rd_id, compat::filenode(rel)) };
    let cached = TABLES.with_borrow(|t| t.get(&relid).filter(|f| f.filenode == filenode).cloned());
    let table = cached.unwrap_or_else(|| {
        let owner = STAND_IN.get().filter(|s| s.0 == relid).map_or(relid, |s| s.1);
        let rows = catalog::fragments(owner, filenode);
        let folded = rows
            .iter()
            .flat_map(|r| r.deleted.iter().flatten().map(|offset| r.first_row_id + u64::from(offset)))
            .collect();
        let total = rows.iter().fold((0, 0), |(n, bytes), r| (n + r.row_count, bytes + r.bytes));
        let list = rows.into_iter().map(|row| TableFragment { row, relid }).collect();
        let loaded = RefCell::default();
        let table = Rc::new(TableFragments { relid, owner, filenode, list, folded, total, loaded });
        TABLES.with_borrow_mut(|t| t.insert(relid, table.clone()));
        table
    });
    (!table.list.is_empty()).then_some(table)
}

/// Forgets what is known of a table (of all for InvalidOid); called for every relation-cache invalidation.
pub fn invalidate(relid: Oid) {
    TABLES.with(|t| {
        if let Ok(mut t) = t.try_borrow_mut() {
            if relid == Oid::INVALID {
                t.clear();
            } else {
                t.remove(&relid);
            }
        }
    });
}

impl TableFragments {
    /// The number of rows in fragments, deleted ones included.
    pub fn rows(&self) -> u64 {
        self.total.0
    }

    /// The bytes of the fragments.
    pub fn bytes(&self) -> u64 {
        self.total.1
    }

    /// The number of the fragment of a row id, and the row's position in it.
    pub fn locate(&self, row_id: u64) -> Option<(usize, u64)> {
        segments::count(|c| c.row_ids += 1);
        let stretch = self.index().stretch_of_row(row_id);
        let within = self.list[stretch.clone()].partition_point(|f| f.row.first_row_id <= row_id).checked_sub(1)?;
        let i = stretch.start + within;
        self.list[i].position(row_id).map(|position| (i, position))
    }

    /// The fragment of a row id and the row's position in it.
    pub fn find(&self, row_id: u64) -> Option<(&TableFragment, u64)> {
        self.locate(row_id).map(|(i, position)| (&self.list[i], position))
    }

    /// Stores a fragment row in `slot` (any kind but a virtual one) as a heap tuple with frozen xmin and its virtual TID.
    /// False: no fragment has the row.
    ///
    /// # Safety
    /// `rel` is this table; `slot` has its descriptor, or the one from before a change that rewrites it.
    pub unsafe fn fetch(&self, rel: pg_sys::Relation, row_id: u64, slot: *mut pg_sys::TupleTableSlot) -> bool {
        let Some((table_fragment, position)) = self.find(row_id) else { return false };
        // SAFETY: the caller's promise.
        let choice = access::of_table(unsafe { (*rel).rd_id }, self, Pattern::Rows);
        let fragment = table_fragment.open_for(&choice);
        let Some((block, row)) = fragment.block_of(position) else { return false };
        // SAFETY: the caller's promise; values are palloc'd in the current context and copied into the tuple.
        unsafe {
            let tupdesc = (*slot).tts_tupleDescriptor;
            let n = (*tupdesc).natts as usize;
            let mut values = vec![Datum::null(); n];
            let mut nulls = vec![true; n];
            for i in 0..n {
                match column_source(&fragment, tupdesc, i) {
                    ColumnSource::Missing(d, is_null) => (values[i], nulls[i]) = (d, is_null),
                    ColumnSource::Column(c, kind) => {
                        let value = table_fragment.check(fragment.value(block, c, row));
                        if let Some(d) = datum::from_value(kind, &value) {
                            (values[i], nulls[i]) = (d, false);
                        }
                    }
                }
            }
            store_tuple(rel, slot, row_id, &mut values, &mut nulls);
        }
        true
    }

    /// The live-or-dead fragment rows whose attributes `attnums` equal `values` (none of them null), by row id.
    ///
    /// # Safety
    /// `rel` is this table; the datums are of the attributes' types.
    pub unsafe fn lookup(&self, rel: pg_sys::Relation, attnums: &[i16], values: &[Datum]) -> Vec<u64> {
        let mut rows = Vec::new();
        // SAFETY: the caller's promise.
        let candidates = unsafe { self.with_values((*rel).rd_att, attnums, values) };
        segments::count(|c| c.fragments_probed += candidates.len() as u64);
        // SAFETY: the caller's promise.
        let choice = access::of_table(unsafe { (*rel).rd_id }, self, Pattern::Rows);
        for i in candidates.numbers() {
            let f = &self.list[i];
            let fragment = f.open_for(&choice);
            let mut columns = Vec::with_capacity(attnums.len());
            let mut wanted: Vec<Value> = Vec::with_capacity(attnums.len());
            let mut possible = true;
            for (attnum, datum) in attnums.iter().zip(values) {
                // SAFETY: the caller's promise.
                unsafe {
                    match column_source(&fragment, (*rel).rd_att, *attnum as usize - 1) {
                        ColumnSource::Column(c, kind) => match datum::value(kind, *datum) {
                            Some(v) => {
                                columns.push(c);
                                wanted.push(v);
                            }
                            None => possible = false,
                        },
                        // Added to the table later: its rows all have the missing value.
                        ColumnSource::Missing(_, true) => possible = false,
                        ColumnSource::Missing(d, false) => {
                            let attr = compat::attribute((*rel).rd_att, *attnum as usize - 1);
                            possible &= guarded(|| ext::datumIsEqual(d, *datum, attr.attbyval, i32::from(attr.attlen)));
                        }
                    }
                }
            }
            if possible {
                let found = if columns.is_empty() {
                    (0..f.row.row_count).collect()
                } else {
                    f.check(fragment.lookup(&columns, &wanted))
                };
                rows.extend(found.into_iter().map(|p| f.row_id(p)));
            }
        }
        rows
    }
}

/// Stores values as a heap tuple of a fragment row.
///
/// # Safety
/// `slot` has the descriptor of `rel`; values and nulls have one element an attribute.
pub unsafe fn store_tuple(
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    row_id: u64,
    values: &mut [Datum],
    nulls: &mut [bool],
) {
    // SAFETY: the caller's promise; the slot frees the tuple.
    unsafe {
        let at = tid::from_row_id(row_id);
        let old = pg_sys::MemoryContextSwitchTo((*slot).tts_mcxt);
        let tuple = pg_sys::heap_form_tuple((*slot).tts_tupleDescriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::MemoryContextSwitchTo(old);
        (*tuple).t_self = at;
        (*tuple).t_tableOid = (*rel).rd_id;
        let header = (*tuple).t_data;
        // heap_form_tuple makes the header of a value of a composite type.
        (*header).t_choice.t_heap.t_xmin = pg_sys::FrozenTransactionId;
        (*header).t_choice.t_heap.t_xmax = pg_sys::InvalidTransactionId;
        (*header).t_choice.t_heap.t_field3.t_cid = 0;
        (*header).t_infomask |=
            (pg_sys::HEAP_XMIN_COMMITTED | pg_sys::HEAP_XMIN_INVALID | pg_sys::HEAP_XMAX_INVALID) as u16;
        (*header).t_ctid = at;
        pg_sys::ExecForceStoreHeapTuple(tuple, slot, true);
        (*slot).tts_tid = at;
        (*slot).tts_tableOid = (*rel).rd_id;
    }
}

/// A row that this transaction has deleted has its id as xmax, for DELETE … RETURNING and triggers.
///
/// # Safety
/// `rel` is open; the slot holds the row as [`store_tuple`] left it.
unsafe fn show_own_deletion(rel: pg_sys::Relation, row_id: u64, slot: *mut pg_sys::TupleTableSlot) {
    const NOT_DELETED: u16 =
        (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_IS_MULTI | pg_sys::HEAP_XMAX_LOCK_ONLY) as u16;
    // SAFETY: the caller's promise; the tuple is the slot's own, that of the delta row is pinned while it is looked at.
    unsafe {
        if pg_sys::GetTopTransactionIdIfAny() == pg_sys::InvalidTransactionId {
            return;
        }
        let deletion::RowState::Promoted(mark) = deletion::latest(rel, row_id) else { return };
        let mut xmax = mark.xmin;
        if mark.is_promotion() {
            let mut tuple = pg_sys::HeapTupleData { t_self: mark.delta, ..Default::default() };
            let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
            if mark.filenode != compat::filenode(rel) || !compat::heap_fetch_any(rel, &mut tuple, &mut buffer) {
                return;
            }
            let header = tuple.t_data;
            let deleted = (*header).t_infomask & NOT_DELETED == 0;
            xmax = if deleted { (*header).t_choice.t_heap.t_xmax } else { pg_sys::InvalidTransactionId };
            pg_sys::ReleaseBuffer(buffer);
        }
        if pg_sys::TransactionIdIsCurrentTransactionId(xmax) {
            let header = (*pg_sys::ExecFetchSlotHeapTuple(slot, false, std::ptr::null_mut())).t_data;
            (*header).t_choice.t_heap.t_xmax = xmax;
            (*header).t_infomask &= !(pg_sys::HEAP_XMAX_INVALID as u16);
        }
    }
}

/// [`TableFragments::fetch`] if `snapshot` sees the row.
///
/// # Safety
/// `rel` is open; `snapshot` is valid; `slot` has the table's descriptor.
pub unsafe fn fetch_visible(
    rel: pg_sys::Relation,
    row_id: u64,
    snapshot: pg_sys::Snapshot,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        if !deletion::visible(rel, row_id, snapshot) {
            pg_sys::ExecClearTuple(slot);
            return false;
        }
        let found = of(rel).is_some_and(|table| table.fetch(rel, row_id, slot));
        if found && (*snapshot).snapshot_type == pg_sys::SnapshotType::SNAPSHOT_ANY {
            show_own_deletion(rel, row_id, slot);
        } else if found {
            super::ssi::read_row(rel, row_id, snapshot);
        }
        found
    }
}
