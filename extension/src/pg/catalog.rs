//! Reading and writing schema `strata` from inside the access method.
//!
//! The access method cannot use SQL here: it runs below the executor, for users who hold no privilege on the catalog, and
//! with snapshots and command ids that only it knows. So it scans and inserts with the system-table functions.
//! OIDs are looked up once and kept until an invalidation says that one of the tables is gone.

use super::standby::Traces;
use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, Oid};
use roaring::{RoaringBitmap, RoaringTreemap};
use std::cell::Cell;
use std::collections::HashSet;
use std::ptr::null_mut;

/// OIDs of the catalog's tables and indexes in this database.
#[derive(Clone, Copy, Debug)]
pub struct Oids {
    /// `strata.fragment`
    pub fragment: Oid,
    /// Its index on (relid, filenode, first_row_id).
    pub fragment_relid: Oid,
    /// `strata.deletion`
    pub deletion: Oid,
    /// Its index on (relid, row_id).
    pub deletion_row: Oid,
    /// Its index on (relid, delta).
    pub deletion_delta: Oid,
}

thread_local! {
    static OIDS: Cell<Option<Oids>> = const { Cell::new(None) };
}

/// Forgets the OIDs when one of the tables changed; called for every relation-cache invalidation.
pub fn invalidate(relid: Oid) {
    super::segment_rows::invalidate(relid);
    OIDS.with(|cell| {
        if let Some(o) = cell.get()
            && (relid == Oid::INVALID
                || [o.fragment, o.fragment_relid, o.deletion, o.deletion_row, o.deletion_delta].contains(&relid))
        {
            cell.set(None);
        }
    });
}

/// The catalog's OIDs, or None where the extension is not created in this database.
pub fn oids() -> Option<Oids> {
    if let Some(o) = OIDS.get() {
        return Some(o);
    }
    // SAFETY: system-cache look-ups by name; a transaction is in progress.
    unsafe {
        let space = pg_sys::get_namespace_oid(c"strata".as_ptr(), true);
        if space == Oid::INVALID {
            return None;
        }
        let find = |name: &std::ffi::CStr| {
            let oid = pg_sys::get_relname_relid(name.as_ptr(), space);
            (oid != Oid::INVALID).then_some(oid)
        };
        let oids = Oids {
            fragment: find(c"fragment")?,
            fragment_relid: find(c"fragment_relid")?,
            deletion: find(c"deletion")?,
            deletion_row: find(c"deletion_row")?,
            deletion_delta: find(c"deletion_delta")?,
        };
        OIDS.set(Some(oids));
        Some(oids)
    }
}

/// A row of `strata.fragment`.
#[derive(Clone, Debug)]
pub struct FragmentRow {
    /// BLAKE3 of the file, hexadecimal.
    pub hash: String,
    /// Row id of the fragment's first row.
    pub first_row_id: u64,
    /// Number of rows.
    pub row_count: u64,
    /// Size of the file.
    pub bytes: u64,
    /// What its rows took as heap pages with their index entries.
    pub heap_bytes: u64,
    /// The row ids less the first, if they are not consecutive.
    pub row_ids: Option<RoaringBitmap>,
    /// The row ids less the first of rows that are deleted for every snapshot.
    pub deleted: Option<RoaringBitmap>,
}

impl FragmentRow {
    /// The row id behind the last.
    pub fn end(&self) -> u64 {
        let last = self.row_ids.as_ref().and_then(RoaringBitmap::max);
        self.first_row_id + last.map_or(self.row_count, |last| u64::from(last) + 1)
    }
}

/// An index scan of a catalog table: the system-table scan, closed on drop.
///
/// It reads with SnapshotAny and asks for each tuple whether the snapshot sees it. So a serializable transaction takes no
/// predicate locks on the catalog: two transactions that change different rows of one warm table have no conflict, as
/// on a heap. What conflicts is decided per row in `am::ssi`. (Rows here are never updated, so there are no HOT chains.)
pub(super) struct SysScan {
    rel: pg_sys::Relation,
    desc: pg_sys::SysScanDesc,
    snapshot: pg_sys::Snapshot,
}

impl SysScan {
    /// Scans `table` through `index` for rows whose first index columns equal `keys` (attribute number, equality
    /// function, value); `snapshot` null means a fresh catalog snapshot.
    ///
    /// # Safety
    /// Index and keys fit the table; `snapshot` outlives the scan.
    pub(super) unsafe fn new(table: Oid, index: Oid, keys: &[(i16, u32, Datum)], snapshot: pg_sys::Snapshot) -> Self {
        let equal = pg_sys::BTEqualStrategyNumber;
        let keys: Vec<_> = keys.iter().map(|(attnum, proc_, value)| (*attnum, equal, *proc_, *value)).collect();
        // SAFETY: the caller's promise.
        unsafe { Self::with_strategies(table, index, &keys, snapshot) }
    }

    /// [`SysScan::new`] with other operators than equality.
    unsafe fn with_strategies(
        table: Oid,
        index: Oid,
        keys: &[(i16, u32, u32, Datum)],
        snapshot: pg_sys::Snapshot,
    ) -> Self {
        // SAFETY: the OIDs are of the catalog's tables; systable_beginscan copies the keys.
        unsafe {
            let rel = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
            let mut scankeys = [pg_sys::ScanKeyData::default(); 3];
            for (key, (attnum, strategy, proc_, value)) in scankeys.iter_mut().zip(keys) {
                pg_sys::ScanKeyInit(key, *attnum, *strategy as u16, Oid::from(*proc_), *value);
            }
            let any = if snapshot.is_null() { null_mut() } else { &raw mut pg_sys::SnapshotAnyData };
            let desc = pg_sys::systable_beginscan(rel, index, true, any, keys.len() as i32, scankeys.as_mut_ptr());
            Self { rel, desc, snapshot }
        }
    }

    /// The next row, which lives until the next call.
    ///
    /// # Safety
    /// The snapshot is still valid.
    pub(super) unsafe fn next(&mut self) -> Option<pg_sys::HeapTuple> {
        // SAFETY: the scan is open; the tuple lives until the next call; the scan's slot holds the same tuple.
        unsafe {
            loop {
                let tuple = pg_sys::systable_getnext(self.desc);
                if tuple.is_null() {
                    return None;
                }
                if self.snapshot.is_null()
                    || pg_sys::table_tuple_satisfies_snapshot(self.rel, (*self.desc).slot, self.snapshot)
                {
                    return Some(tuple);
                }
            }
        }
    }

    fn tupdesc(&self) -> pg_sys::TupleDesc {
        // SAFETY: the relation is open.
        unsafe { (*self.rel).rd_att }
    }

    /// The table, open.
    pub(super) fn rel(&self) -> pg_sys::Relation {
        self.rel
    }
}

impl Drop for SysScan {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened in `new`, closed once; after an ERROR the resource owner does it.
            unsafe {
                pg_sys::systable_endscan(self.desc);
                pg_sys::table_close(self.rel, pg_sys::AccessShareLock as i32);
            }
        }
    }
}

/// The fragments of relation file `filenode` of table `relid`, by first row id.
pub fn fragments(relid: Oid, filenode: Oid) -> Vec<FragmentRow> {
    let Some(oids) = oids() else { return Vec::new() };
    let mut rows = Vec::new();
    // SAFETY: the attribute numbers and types are those of sql/schema/20_tables.sql; the columns read are NOT NULL.
    unsafe {
        let keys = [(2, pg_sys::F_OIDEQ, Datum::from(relid)), (3, pg_sys::F_OIDEQ, Datum::from(filenode))];
        let mut scan = SysScan::new(oids.fragment, oids.fragment_relid, &keys, null_mut());
        while let Some(tuple) = scan.next() {
            let mut values = [Datum::null(); 14];
            // A library may be newer than the extension in this database: columns that are not there are null.
            let mut nulls = [true; 14];
            pg_sys::heap_deform_tuple(tuple, scan.tupdesc(), values.as_mut_ptr(), nulls.as_mut_ptr());
            rows.push(FragmentRow {
                hash: text(values[3]),
                first_row_id: values[4].value() as u64,
                row_count: values[5].value() as u64,
                bytes: values[6].value() as u64,
                heap_bytes: values[7].value() as u64,
                row_ids: bitmap(values[10], nulls[10]),
                deleted: bitmap(values[11], nulls[11]),
            });
        }
    }
    rows.sort_by_key(|r| r.first_row_id);
    rows
}

/// The hashes of all fragments that the catalog names now, for snapshots that begin now and for this transaction. None: the extension is
/// not created in this database.
pub fn fragment_hashes() -> Option<HashSet<String>> {
    let oids = oids()?;
    let mut hashes = HashSet::new();
    // SAFETY: as in `fragments`; a transaction is in progress.
    unsafe {
        pg_sys::CommandCounterIncrement();
        let mut scan = SysScan::new(oids.fragment, oids.fragment_relid, &[], null_mut());
        while let Some(tuple) = scan.next() {
            let mut is_null = false;
            hashes.insert(text(pg_sys::heap_getattr(tuple, 4, scan.tupdesc(), &mut is_null)));
        }
    }
    Some(hashes)
}

/// The characters of a text.
///
/// # Safety
/// `datum` is a text, not null.
unsafe fn text(datum: Datum) -> String {
    // SAFETY: the caller's promise.
    unsafe {
        let copy = pg_sys::text_to_cstring(datum.cast_mut_ptr());
        let text = std::ffi::CStr::from_ptr(copy).to_string_lossy().into_owned();
        pg_sys::pfree(copy.cast());
        text
    }
}

/// The bytes of a bytea.
///
/// # Safety
/// `value` is of type bytea.
pub(super) unsafe fn bytes(value: Datum) -> Vec<u8> {
    // SAFETY: the caller's promise; a detoasted copy is freed.
    unsafe {
        let stored = value.cast_mut_ptr();
        let plain = pg_sys::pg_detoast_datum(stored);
        let bytes = pgrx::varlena::varlena_to_byte_slice(plain).to_vec();
        if plain != stored {
            pg_sys::pfree(plain.cast());
        }
        bytes
    }
}

/// A bytea, palloc'd.
pub(super) fn bytea(bytes: &[u8]) -> Datum {
    // SAFETY: the allocation has room for the header and the bytes.
    unsafe {
        let all = pg_sys::palloc(bytes.len() + pg_sys::VARHDRSZ).cast::<pg_sys::varlena>();
        pgrx::varlena::set_varsize_4b(all, (bytes.len() + pg_sys::VARHDRSZ) as i32);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), all.cast::<u8>().add(pg_sys::VARHDRSZ), bytes.len());
        Datum::from(all)
    }
}

/// A Roaring bitmap in the portable format.
unsafe fn bitmap(value: Datum, is_null: bool) -> Option<RoaringBitmap> {
    if is_null {
        return None;
    }
    // SAFETY: the column is of type bytea.
    let bytes = unsafe { bytes(value) };
    match RoaringBitmap::deserialize_from(bytes.as_slice()) {
        Ok(rows) => Some(rows),
        Err(e) => pgrx::error!("a bitmap in strata.fragment is damaged: {e}"),
    }
}

/// [`bitmap`] the other way.
fn bitmap_bytes(rows: Option<&RoaringBitmap>) -> Option<Vec<u8>> {
    rows.map(|rows| {
        let mut bytes = Vec::with_capacity(rows.serialized_size());
        // Writing to memory does not fail.
        let _ = rows.serialize_into(&mut bytes);
        bytes
    })
}

/// A row of `strata.deletion` with what its tuple says of its writer.
#[derive(Clone, Copy, Debug)]
pub struct Deletion {
    /// The deleted fragment row.
    pub row_id: u64,
    /// The relation file in which `delta` is.
    pub filenode: Oid,
    /// The delta row that took its place.
    pub delta: pg_sys::ItemPointerData,
    /// The transaction that wrote it.
    pub xmin: pg_sys::TransactionId,
    /// The command that wrote it, if the current transaction did.
    pub own_command: Option<pg_sys::CommandId>,
    /// Its place in `strata.deletion`.
    pub at: pg_sys::ItemPointerData,
}

/// What stands in `strata.deletion.delta` for a row that was deleted, not promoted: no delta row has a virtual TID. (The
/// index on `delta` leaves such rows out.)
pub fn nowhere() -> pg_sys::ItemPointerData {
    super::tid::from_row_id(0)
}

/// What stands there in a mark that is for the snapshot of the transaction that wrote it: another transaction had promoted the row.
pub fn superseded() -> pg_sys::ItemPointerData {
    super::tid::from_row_id(1)
}

impl Deletion {
    /// Whether a delta row took the fragment row's place.
    pub fn is_promotion(&self) -> bool {
        super::tid::row_id(&self.delta).is_none()
    }

    /// Whether every snapshot sees it that counts transactions before `horizon` as ended. (One of this transaction is behind it.)
    pub fn is_before(&self, horizon: pg_sys::TransactionId) -> bool {
        // SAFETY: reads nothing but its arguments.
        self.xmin == pg_sys::FrozenTransactionId || unsafe { pg_sys::TransactionIdPrecedes(self.xmin, horizon) }
    }

    /// Whether it is a second mark of a row, which says nothing to other transactions than its own.
    pub fn is_superseding(&self) -> bool {
        super::tid::row_id(&self.delta) == super::tid::row_id(&superseded())
    }
}

/// A scan of the deletion vectors of one table.
pub struct DeletionScan(SysScan);

impl DeletionScan {
    /// All deletions of `relid`, or those of one row, that `snapshot` sees.
    ///
    /// # Safety
    /// `snapshot` outlives the scan.
    pub unsafe fn new(oids: &Oids, relid: Oid, row_id: Option<u64>, snapshot: pg_sys::Snapshot) -> Self {
        let keys =
            [(1, pg_sys::F_OIDEQ, Datum::from(relid)), (2, pg_sys::F_INT8EQ, Datum::from(row_id.unwrap_or(0) as i64))];
        let n = if row_id.is_some() { 2 } else { 1 };
        // SAFETY: index and keys fit the table.
        Self(unsafe { SysScan::new(oids.deletion, oids.deletion_row, &keys[..n], snapshot) })
    }

    /// The deletions of `relid` with row ids from `first` up that `snapshot` sees.
    ///
    /// # Safety
    /// `snapshot` outlives the scan.
    pub unsafe fn from(oids: &Oids, relid: Oid, first: u64, snapshot: pg_sys::Snapshot) -> Self {
        let keys = [
            (1, pg_sys::BTEqualStrategyNumber, pg_sys::F_OIDEQ, Datum::from(relid)),
            (2, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_INT8GE, Datum::from(first as i64)),
        ];
        // SAFETY: index and keys fit the table.
        Self(unsafe { SysScan::with_strategies(oids.deletion, oids.deletion_row, &keys, snapshot) })
    }

    /// The deletions whose delta row is (or was) at `delta`.
    ///
    /// # Safety
    /// `snapshot` and `delta` outlive the scan.
    pub unsafe fn by_delta(
        oids: &Oids,
        relid: Oid,
        delta: &pg_sys::ItemPointerData,
        snapshot: pg_sys::Snapshot,
    ) -> Self {
        let keys = [
            (1, pg_sys::F_OIDEQ, Datum::from(relid)),
            (4, pg_sys::F_TIDEQ, Datum::from(std::ptr::from_ref(delta).cast_mut())),
        ];
        // SAFETY: index and keys fit the table.
        Self(unsafe { SysScan::new(oids.deletion, oids.deletion_delta, &keys, snapshot) })
    }
}

impl Iterator for DeletionScan {
    type Item = Deletion;

    fn next(&mut self) -> Option<Deletion> {
        // SAFETY: the table's columns are fixed-width and NOT NULL; the tuple lives until the next call.
        unsafe {
            let tuple = self.0.next()?;
            let mut values = [Datum::null(); 4];
            let mut nulls = [false; 4];
            pg_sys::heap_deform_tuple(tuple, self.0.tupdesc(), values.as_mut_ptr(), nulls.as_mut_ptr());
            let header = (*tuple).t_data;
            let xmin = super::compat::tuple_xmin(header);
            let own = pg_sys::TransactionIdIsCurrentTransactionId(xmin);
            Some(Deletion {
                row_id: values[1].value() as u64,
                filenode: Oid::from(values[2].value() as u32),
                delta: *values[3].cast_mut_ptr::<pg_sys::ItemPointerData>(),
                xmin,
                own_command: own.then(|| pg_sys::HeapTupleHeaderGetCmin(header)),
                at: (*tuple).t_self,
            })
        }
    }
}

/// Inserts a row into `strata.deletion` with the command id `cid`.
pub fn insert_deletion(
    oids: &Oids,
    relid: Oid,
    row_id: u64,
    filenode: Oid,
    delta: &pg_sys::ItemPointerData,
    cid: pg_sys::CommandId,
) {
    let mut tid = *delta;
    let mut values = [Datum::from(relid), Datum::from(row_id as i64), Datum::from(filenode), Datum::from(&raw mut tid)];
    let mut nulls = [false; 4];
    // SAFETY: values fit the table's columns; both indexes are plain btrees on columns of this tuple.
    unsafe {
        let rel = pg_sys::table_open(oids.deletion, pg_sys::RowExclusiveLock as i32);
        let tuple = pg_sys::heap_form_tuple((*rel).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        let options = pg_sys::HEAP_INSERT_NO_LOGICAL as i32;
        pg_sys::heap_insert(rel, tuple, cid, options, null_mut());
        // The index on delta is partial: rows that were deleted have no delta row to be found by.
        let indexes = [(oids.deletion_row, [0usize, 1]), (oids.deletion_delta, [0, 3])];
        let wanted = if super::tid::row_id(delta).is_none() { 2 } else { 1 };
        for (index, attrs) in indexes.into_iter().take(wanted) {
            let index = pg_sys::index_open(index, pg_sys::RowExclusiveLock as i32);
            let mut keys = attrs.map(|a| values[a]);
            let mut isnull = [false; 2];
            pg_sys::index_insert(
                index,
                keys.as_mut_ptr(),
                isnull.as_mut_ptr(),
                &mut (*tuple).t_self,
                rel,
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO,
                false,
                null_mut(),
            );
            pg_sys::index_close(index, pg_sys::NoLock as i32);
        }
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(rel, pg_sys::NoLock as i32);
    }
}

/// Runs `f` with the rights of the bootstrap superuser, who owns the catalog: for statements on schema `strata` whose
/// text is a constant of this library, on behalf of users who hold no privilege on it.
pub fn as_owner<R>(f: impl FnOnce() -> R) -> R {
    struct Role(core::ffi::c_int);
    impl Drop for Role {
        fn drop(&mut self) {
            // SAFETY: a plain variable of the backend.
            unsafe { pg_sys::SessionReplicationRole = self.0 };
        }
    }
    let (mut user, mut context) = (Oid::INVALID, 0);
    // SAFETY: an ERROR ends the (sub)transaction, which restores the user as well.
    unsafe {
        // In a subscription's worker the role is `replica`, for which the catalog's triggers drop what is written.
        let _role = Role(pg_sys::SessionReplicationRole);
        pg_sys::SessionReplicationRole = pg_sys::SESSION_REPLICATION_ROLE_ORIGIN as core::ffi::c_int;
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(
            Oid::from(pg_sys::BOOTSTRAP_SUPERUSERID),
            context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32 | pg_sys::SECURITY_RESTRICTED_OPERATION as i32,
        );
        let result = f();
        pg_sys::SetUserIdAndSecContext(user, context);
        result
    }
}

/// A statement on the catalog, with arguments; returns the first column of the first row if there is one.
pub fn execute(sql: &str, args: &[pgrx::datum::DatumWithOid]) -> Option<i64> {
    as_owner(|| {
        pgrx::Spi::connect_mut(|client| match client.update(sql, None, args) {
            Ok(table) => table.first().get_one::<i64>().ok().flatten(),
            Err(e) => pgrx::error!("strata catalog: {e}"),
        })
    })
}

/// The places (from 0) of columns of `strata.fragment` that are changed.
const FRAGMENT_ID: usize = 0;
const FILENODE: usize = 2;
const DELETED: usize = 11;
const DELETED_ROWS: usize = 12;

/// Calls `f` with each row of `strata.fragment` for a file, or the one of the fragment that begins at a row id, and with the table.
///
/// Rows are found as they are now, not as the transaction's snapshot has them: under REPEATABLE READ a fragment may be younger
/// than the snapshot, and is a fragment of the file all the same.
fn for_each_fragment(
    relid: Oid,
    filenode: Oid,
    first_row_id: Option<u64>,
    mut f: impl FnMut(pg_sys::Relation, pg_sys::HeapTuple),
) {
    let Some(oids) = oids() else { return };
    let keys = [
        (2, pg_sys::F_OIDEQ, Datum::from(relid)),
        (3, pg_sys::F_OIDEQ, Datum::from(filenode)),
        (5, pg_sys::F_INT8EQ, Datum::from(first_row_id.unwrap_or(0) as i64)),
    ];
    let n = if first_row_id.is_some() { 3 } else { 2 };
    // SAFETY: index and keys fit the table; the tuples are copies.
    unsafe {
        pg_sys::CommandCounterIncrement();
        let mut scan = SysScan::new(oids.fragment, oids.fragment_relid, &keys[..n], null_mut());
        let mut copies = Vec::new();
        while let Some(tuple) = scan.next() {
            copies.push(pg_sys::heap_copytuple(tuple));
        }
        let table = pg_sys::table_open(oids.fragment, pg_sys::RowExclusiveLock as i32);
        for tuple in copies {
            f(table, tuple);
            pg_sys::heap_freetuple(tuple);
        }
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        drop(scan);
        pg_sys::CommandCounterIncrement();
    }
}

/// A row of `strata.fragment` with other values in some columns.
///
/// # Safety
/// The tuple is one of the table, the values are of the columns' types.
unsafe fn changed(table: pg_sys::Relation, tuple: pg_sys::HeapTuple, columns: &[(usize, Datum)]) -> pg_sys::HeapTuple {
    // SAFETY: the table is open.
    let n = unsafe { (*(*table).rd_att).natts as usize };
    let (mut values, mut nulls, mut replaced) = (vec![Datum::null(); n], vec![false; n], vec![false; n]);
    for (column, value) in columns {
        values[*column] = *value;
        replaced[*column] = true;
    }
    // SAFETY: the caller's promise.
    unsafe {
        let (desc, replaced) = ((*table).rd_att, replaced.as_mut_ptr());
        pg_sys::heap_modify_tuple(tuple, desc, values.as_mut_ptr(), nulls.as_mut_ptr(), replaced)
    }
}

/// Writes some columns of fragments' rows again.
fn update_fragments(relid: Oid, filenode: Oid, first_row_id: Option<u64>, columns: &[(usize, Datum)]) {
    for_each_fragment(relid, filenode, first_row_id, |table, tuple| {
        // SAFETY: the callers' columns; the new row takes the place of the old one.
        unsafe {
            let new = changed(table, tuple, columns);
            pg_sys::CatalogTupleUpdate(table, &mut (*tuple).t_self, new);
            pg_sys::heap_freetuple(new);
        }
    });
}

/// Records the fragments of one file of a table for another file of it.
///
/// The segments of the index go over to the new file; the caller has it [settled](crate::tier::index::settle) when the file's fragments are
/// complete. The old file is not used any more unless all this is rolled back.
pub fn copy_file(relid: Oid, from: Oid, to: Oid) {
    super::segment_rows::move_file(relid, from, to);
    for_each_fragment(relid, from, None, |table, tuple| {
        let id = execute("SELECT pg_catalog.nextval('strata.fragment_fragment_id_seq')", &[]).unwrap_or_default();
        // SAFETY: the values are of the columns' types.
        unsafe {
            let new = changed(table, tuple, &[(FRAGMENT_ID, Datum::from(id)), (FILENODE, Datum::from(to))]);
            pg_sys::CatalogTupleInsert(table, new);
            pg_sys::heap_freetuple(new);
        }
    });
}

fn remove_fragments(relid: Oid, filenode: Oid, first_row_id: Option<u64>) {
    for_each_fragment(relid, filenode, first_row_id, |table, tuple| {
        // SAFETY: the row is there.
        unsafe { pg_sys::CatalogTupleDelete(table, &mut (*tuple).t_self) }
    });
}

/// Removes the fragments of a file from the catalog, and their index.
pub fn forget_file(relid: Oid, filenode: Oid) {
    super::segment_rows::change(relid, filenode, |_| Some(super::segment_rows::Change::Remove));
    remove_fragments(relid, filenode, None);
}

/// Removes the fragment of a file that begins at `first_row_id`: it was replaced in a file that nobody else knows.
pub fn remove_fragment(relid: Oid, filenode: Oid, first_row_id: u64) {
    remove_fragments(relid, filenode, Some(first_row_id));
}

/// Takes the fragment of a file that begins at `first_row_id` out of use; its row stays for the sweeper.
pub fn retire_fragment(relid: Oid, filenode: Oid, first_row_id: u64) {
    update_fragments(relid, filenode, Some(first_row_id), &[(FILENODE, Datum::from(Oid::INVALID))]);
}

/// Records which rows of a fragment are deleted for every snapshot.
pub fn fold_deletions(relid: Oid, filenode: Oid, first_row_id: u64, deleted: &RoaringBitmap) {
    let bytes = bytea(&bitmap_bytes(Some(deleted)).unwrap_or_default());
    let columns = [(DELETED, bytes), (DELETED_ROWS, Datum::from(deleted.len() as i64))];
    update_fragments(relid, filenode, Some(first_row_id), &columns);
}

/// Removes the marks of rows in `rows` that were made before `horizon`; returns who made them. Other transactions see them until this
/// one commits.
///
/// # Safety
/// A transaction is in progress that holds SHARE UPDATE EXCLUSIVE on the table.
pub unsafe fn remove_marks(relid: Oid, rows: &RoaringTreemap, horizon: pg_sys::TransactionId) -> Traces {
    let mut traces = Traces::default();
    let (Some(oids), Some(first)) = (oids(), rows.min()) else { return traces };
    let mut own = pg_sys::SnapshotData { snapshot_type: pg_sys::SnapshotType::SNAPSHOT_SELF, ..Default::default() };
    // SAFETY: the caller's promise; the snapshot outlives the scan; nobody else changes marks of fragments in use.
    unsafe {
        let table = pg_sys::table_open(oids.deletion, pg_sys::RowExclusiveLock as i32);
        for mark in DeletionScan::from(&oids, relid, first, &raw mut own) {
            pgrx::check_for_interrupts!();
            let old = mark.xmin == pg_sys::FrozenTransactionId || pg_sys::TransactionIdPrecedes(mark.xmin, horizon);
            if old && rows.contains(mark.row_id) {
                let mut at = mark.at;
                pg_sys::simple_heap_delete(table, &mut at);
                traces.lose(mark.xmin);
            }
        }
        pg_sys::table_close(table, pg_sys::NoLock as i32);
    }
    traces
}

/// Reserves `rows` row ids of a table; returns the first.
pub fn reserve_row_ids(relid: Oid, rows: u64) -> u64 {
    let next = execute(
        "INSERT INTO strata.warm_table AS t (relid, next_row_id) VALUES ($1, $2) \
         ON CONFLICT (relid) DO UPDATE SET next_row_id = t.next_row_id OPERATOR(pg_catalog.+) excluded.next_row_id \
         RETURNING next_row_id",
        &[relid.into(), (rows as i64).into()],
    );
    next.unwrap_or(rows as i64) as u64 - rows
}

/// Records a fragment of a table's file.
pub fn record_fragment(relid: Oid, filenode: Oid, row: &FragmentRow) {
    execute(
        "INSERT INTO strata.fragment (relid, filenode, hash, first_row_id, row_count, bytes, heap_bytes, row_ids, deleted, deleted_rows) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        &[
            relid.into(),
            filenode.into(),
            row.hash.as_str().into(),
            (row.first_row_id as i64).into(),
            (row.row_count as i64).into(),
            (row.bytes as i64).into(),
            (row.heap_bytes as i64).into(),
            bitmap_bytes(row.row_ids.as_ref()).into(),
            bitmap_bytes(row.deleted.as_ref()).into(),
            (row.deleted.as_ref().map_or(0, RoaringBitmap::len) as i64).into(),
        ],
    );
}
