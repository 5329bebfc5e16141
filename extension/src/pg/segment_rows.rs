//! Reading and writing `strata.segment` and `strata.segment_page`, in the way of [`super::catalog`].
//!
//! Pages are written once, under a segment's number that nobody else has or will have, and are removed with the segment. So any
//! tuple with the right number is the right page, whatever became of its transaction, and pages are read without asking whether a snapshot
//! sees them. Segments are read as catalogs are: as of now.

use super::catalog::{self, SysScan};
use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, Oid};
use std::cell::Cell;
use std::ptr::null_mut;

/// OIDs of the tables and their indexes.
#[derive(Clone, Copy, Debug)]
struct Oids {
    segment: Oid,
    segment_file: Oid,
    page: Oid,
    page_key: Oid,
}

thread_local! {
    static OIDS: Cell<Option<Oids>> = const { Cell::new(None) };
}

/// Forgets the OIDs when one of the tables changed; called for every relation-cache invalidation.
pub fn invalidate(relid: Oid) {
    OIDS.with(|cell| {
        if let Some(o) = cell.get()
            && (relid == Oid::INVALID || [o.segment, o.segment_file, o.page, o.page_key].contains(&relid))
        {
            cell.set(None);
        }
    });
}

fn oids() -> Option<Oids> {
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
            segment: find(c"segment")?,
            segment_file: find(c"segment_file")?,
            page: find(c"segment_page")?,
            page_key: find(c"segment_page_pkey")?,
        };
        OIDS.set(Some(oids));
        Some(oids)
    }
}

/// Whether the catalog has the fragment index (the extension in this database may be older than the library).
pub fn is_there() -> bool {
    oids().is_some()
}

/// The table of the pages, if there is one.
pub fn page_table() -> Option<Oid> {
    oids().map(|o| o.page)
}

/// The number of columns of `strata.segment`, and the places (from 0) of those that are read or changed.
const COLUMNS: usize = 12;
const ID: usize = 0;
const FILENODE: usize = 2;
const LEVEL: usize = 3;
const PAGE_BYTES: usize = 9;
const DIRECTORY: usize = 10;

/// A row of `strata.segment`.
#[derive(Clone, Debug)]
pub struct SegmentRow {
    /// Its number.
    pub id: i64,
    /// Its level.
    pub level: u32,
    /// The bytes of its pages.
    pub page_bytes: u64,
    /// Its directory, as it is stored.
    pub directory: Vec<u8>,
}

/// What a segment's row says of its contents, for people.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Its first row id and the one behind its last.
    pub row_ids: (u64, u64),
    /// The number of its fragments, and of their rows.
    pub fragments: u64,
    /// The number of rows in them.
    pub rows: u64,
    /// The attribute numbers of its key maps: `1,2;4`.
    pub keys: String,
    /// The bytes of its pages.
    pub page_bytes: u64,
}

/// Keeps others from changing the index of a table until the transaction ends: CREATE INDEX may run twice at a time.
pub fn lock(relid: Oid) {
    if let Some(oids) = oids() {
        // SAFETY: a lock on an object of the catalog.
        unsafe { pg_sys::LockDatabaseObject(oids.segment, relid, 0, pg_sys::ExclusiveLock as i32) };
    }
}

/// Calls `f` with each row of the segments of a file and the table, which is open.
unsafe fn for_each(relid: Oid, filenode: Oid, mut f: impl FnMut(pg_sys::Relation, pg_sys::HeapTuple)) {
    let Some(oids) = oids() else { return };
    let keys = [(2, pg_sys::F_OIDEQ, Datum::from(relid)), (3, pg_sys::F_OIDEQ, Datum::from(filenode))];
    // SAFETY: index and keys fit the table; the tuple lives until the next.
    unsafe {
        let mut scan = SysScan::new(oids.segment, oids.segment_file, &keys, null_mut());
        let mut copies = Vec::new();
        while let Some(tuple) = scan.next() {
            copies.push(pg_sys::heap_copytuple(tuple));
        }
        for tuple in copies {
            f(scan.rel(), tuple);
            pg_sys::heap_freetuple(tuple);
        }
    }
}

/// The segments of a table's relation file, by row id as far as they say it.
pub fn read(relid: Oid, filenode: Oid) -> Vec<SegmentRow> {
    let mut rows = Vec::new();
    // SAFETY: the attribute numbers and types are those of sql/schema/27_fragment_index.sql; all columns are NOT NULL.
    unsafe {
        for_each(relid, filenode, |rel, tuple| {
            let mut values = [Datum::null(); COLUMNS];
            let mut nulls = [true; COLUMNS];
            pg_sys::heap_deform_tuple(tuple, (*rel).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            rows.push(SegmentRow {
                id: values[ID].value() as i64,
                level: values[LEVEL].value() as u32,
                page_bytes: values[PAGE_BYTES].value() as u64,
                directory: catalog::bytes(values[DIRECTORY]),
            });
        });
    }
    rows
}

/// Records the segments of one file of a table for another file of it: they go over, with their pages.
pub fn move_file(relid: Oid, from: Oid, to: Oid) {
    lock(relid);
    // SAFETY: as in `read`; the new tuple has the old one's place.
    unsafe {
        for_each(relid, from, |rel, tuple| {
            replace(rel, tuple, &[(FILENODE, Datum::from(to))]);
        });
        pg_sys::CommandCounterIncrement();
    }
}

/// Writes some columns of a row again.
unsafe fn replace(rel: pg_sys::Relation, tuple: pg_sys::HeapTuple, columns: &[(usize, Datum)]) {
    // SAFETY: the values are of the columns' types.
    unsafe {
        let mut values = [Datum::null(); COLUMNS];
        let mut changed = [false; COLUMNS];
        let mut nulls = [false; COLUMNS];
        for (column, value) in columns {
            values[*column] = *value;
            changed[*column] = true;
        }
        let (desc, changed) = ((*rel).rd_att, changed.as_mut_ptr());
        let new = pg_sys::heap_modify_tuple(tuple, desc, values.as_mut_ptr(), nulls.as_mut_ptr(), changed);
        pg_sys::CatalogTupleUpdate(rel, &mut (*tuple).t_self, new);
        pg_sys::heap_freetuple(new);
    }
}

/// What is to become of a segment.
#[derive(Debug)]
pub enum Change {
    /// It is removed, with its pages.
    Remove,
    /// It gets another directory.
    Directory(Vec<u8>, Summary),
}

/// Changes segments of a file: `change` tells what is to become of each, by its number; None: it stays.
pub fn change(relid: Oid, filenode: Oid, mut change: impl FnMut(i64) -> Option<Change>) {
    let mut gone = Vec::new();
    // SAFETY: as in `read`.
    unsafe {
        for_each(relid, filenode, |rel, tuple| {
            let mut is_null = false;
            let id = pg_sys::heap_getattr(tuple, ID as i32 + 1, (*rel).rd_att, &mut is_null).value() as i64;
            match change(id) {
                None => {}
                Some(Change::Remove) => {
                    pg_sys::CatalogTupleDelete(rel, &mut (*tuple).t_self);
                    gone.push(id);
                }
                Some(Change::Directory(directory, summary)) => {
                    let columns = summary_columns(&summary);
                    let directory = (DIRECTORY, catalog::bytea(&directory));
                    replace(rel, tuple, &[&columns[..], &[directory]].concat());
                }
            }
        });
    }
    gone.into_iter().for_each(remove_pages);
}

/// The columns that a summary fills.
unsafe fn summary_columns(s: &Summary) -> [(usize, Datum); 6] {
    let keys = std::ffi::CString::new(s.keys.as_str()).unwrap_or_default();
    // SAFETY: the text is copied.
    let keys = unsafe { pg_sys::cstring_to_text(keys.as_ptr()) };
    [
        (4, Datum::from(s.row_ids.0 as i64)),
        (5, Datum::from(s.row_ids.1 as i64)),
        (6, Datum::from(s.fragments as i64)),
        (7, Datum::from(s.rows as i64)),
        (8, Datum::from(keys)),
        (PAGE_BYTES, Datum::from(s.page_bytes as i64)),
    ]
}

/// A number that no segment has had.
pub fn new_id() -> i64 {
    catalog::execute("SELECT pg_catalog.nextval('strata.segment_id')", &[]).unwrap_or_default()
}

/// Records a segment; its pages are there.
pub fn insert(id: i64, relid: Oid, filenode: Oid, level: u32, directory: &[u8], summary: &Summary) {
    let Some(oids) = oids() else { return };
    // SAFETY: the values are of the columns' types, none is null.
    unsafe {
        let rel = pg_sys::table_open(oids.segment, pg_sys::RowExclusiveLock as i32);
        let mut values = [Datum::null(); COLUMNS];
        let mut nulls = [false; COLUMNS];
        values[ID] = Datum::from(id);
        values[1] = Datum::from(relid);
        values[FILENODE] = Datum::from(filenode);
        values[LEVEL] = Datum::from(level as i32);
        summary_columns(summary).into_iter().for_each(|(column, value)| values[column] = value);
        values[DIRECTORY] = catalog::bytea(directory);
        values[11] = Datum::from(pg_sys::GetCurrentTimestamp());
        let tuple = pg_sys::heap_form_tuple((*rel).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(rel, tuple);
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(rel, pg_sys::NoLock as i32);
    }
}

/// Writes pages of one segment.
pub struct PageWriter {
    rel: pg_sys::Relation,
    indexes: pg_sys::CatalogIndexState,
    /// The segment's number.
    pub id: i64,
    /// The bytes that were written.
    pub bytes: u64,
}

impl PageWriter {
    /// For the segment with this number. None: the catalog has no index.
    pub fn new(id: i64) -> Option<Self> {
        let oids = oids()?;
        // SAFETY: a table of the catalog; closed in `close`, or by the resource owner after an ERROR.
        unsafe {
            let rel = pg_sys::table_open(oids.page, pg_sys::RowExclusiveLock as i32);
            Some(Self { rel, indexes: pg_sys::CatalogOpenIndexes(rel), id, bytes: 0 })
        }
    }

    /// Writes a page.
    pub fn put(&mut self, number: u32, page: &[u8]) {
        pgrx::check_for_interrupts!();
        // SAFETY: the values are of the columns' types.
        unsafe {
            let data = catalog::bytea(page);
            let mut values = [Datum::from(self.id), Datum::from(number as i32), data];
            let mut nulls = [false; 3];
            let tuple = pg_sys::heap_form_tuple((*self.rel).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::CatalogTupleInsertWithInfo(self.rel, tuple, self.indexes);
            pg_sys::heap_freetuple(tuple);
            pg_sys::pfree(data.cast_mut_ptr());
        }
        self.bytes += page.len() as u64;
    }

    /// Ends writing; returns the bytes that were written.
    pub fn close(self) -> u64 {
        // SAFETY: opened in `new`, closed once.
        unsafe {
            pg_sys::CatalogCloseIndexes(self.indexes);
            pg_sys::table_close(self.rel, pg_sys::NoLock as i32);
        }
        self.bytes
    }
}

/// A page of a segment; None: it is not there.
pub fn page(id: i64, number: u32) -> Option<Vec<u8>> {
    let oids = oids()?;
    let keys = [(1, pg_sys::F_INT8EQ, Datum::from(id)), (2, pg_sys::F_INT4EQ, Datum::from(number as i32))];
    // SAFETY: index and keys fit the table; the snapshot is static.
    unsafe {
        let mut scan = SysScan::new(oids.page, oids.page_key, &keys, &raw mut pg_sys::SnapshotAnyData);
        let tuple = scan.next()?;
        let mut is_null = false;
        let data = pg_sys::heap_getattr(tuple, 3, (*scan.rel()).rd_att, &mut is_null);
        (!is_null).then(|| catalog::bytes(data))
    }
}

/// Removes the pages of a segment that is removed, or was never recorded.
pub fn remove_pages(id: i64) {
    let Some(oids) = oids() else { return };
    let keys = [(1, pg_sys::F_INT8EQ, Datum::from(id))];
    // SAFETY: index and keys fit the table; the scan's tuples live until the next.
    unsafe {
        pg_sys::CommandCounterIncrement();
        let rel = pg_sys::table_open(oids.page, pg_sys::RowExclusiveLock as i32);
        let mut scan = SysScan::new(oids.page, oids.page_key, &keys, null_mut());
        while let Some(tuple) = scan.next() {
            pgrx::check_for_interrupts!();
            pg_sys::CatalogTupleDelete(rel, &mut (*tuple).t_self);
        }
        drop(scan);
        pg_sys::table_close(rel, pg_sys::NoLock as i32);
    }
}
