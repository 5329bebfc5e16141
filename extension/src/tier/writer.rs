//! Writing fragments: rows in, durable files and catalog rows out.
//!
//! A file is written, synchronized and renamed before its catalog row is inserted, in the same transaction. So a crash or
//! an abort leaves at most a file that nothing names, which the sweeper removes, and never a row without its file. Until the transaction
//! has ended, locks keep the sweeper away ([`super::in_use`]).

use super::throttle::Throttle;
use super::{claim, in_use};
use crate::am::datum::{self, Kind, Number};
use crate::am::fragments::TableFragment;
use crate::am::{fragments, handler, index};
use crate::error::StrataError;
use crate::guc;
use crate::memory::shared::Building;
use crate::pg::catalog::{self, FragmentRow};
use crate::pg::standby::Traces;
use crate::pg::{compat, failpoint, guarded};
use pgrx::pg_sys::*;
use roaring::{RoaringBitmap, RoaringTreemap};
use std::result::Result;
use std::string::String;
use strata_fragment::{Builder, BuilderOptions, ColumnSpec, FragmentError, KeySpec, PhysicalType, Schema, make_folder};

/// The rows of one fragment that was written, by position: what the caller gave for each row.
pub struct Finished {
    /// The catalog row, its `first_row_id` not yet known.
    pub row: FragmentRow,
    /// The caller's tags in the order of the fragment's rows.
    pub tags: Vec<u64>,
}

/// Collects rows of one table into fragments.
pub struct FragmentWriter {
    relid: Oid,
    tupdesc: TupleDesc,
    /// Attribute (from 0), and how its datums are kept; by column of the fragment.
    columns: Vec<(usize, Kind)>,
    /// Those that are kept as numbers: attribute and scale; and their numbers in the row that is being appended.
    numerics: Vec<(usize, u8)>,
    numbers: Vec<Option<Number>>,
    /// Attributes that are kept as bytes in the next fragments, because a value did not fit their type.
    plain_bytes: Vec<usize>,
    sort_key: Vec<i16>,
    keys: Vec<(String, Vec<i16>)>,
    /// Boxed, because each row takes it out and puts it back.
    builder: Option<Box<Builder>>,
    memory: Building,
    /// Bytes of values, about, since the builder's memory was looked at.
    unweighed: usize,
    tags: Vec<u64>,
    finished: Vec<Finished>,
}

impl FragmentWriter {
    /// A writer for rows of `rel`. Rows are sorted by the primary key, or the first plain unique index.
    ///
    /// # Safety
    /// `rel` is open; it stays open while the writer is used. `keys_of` has the indexes (the table for which `rel` is a
    /// transient copy, or `rel`).
    pub unsafe fn new(rel: Relation, keys_of: Relation) -> Self {
        let mut keys = Vec::new();
        let mut sort_key: Vec<i16> = Vec::new();
        // SAFETY: the caller's promise.
        unsafe {
            for oid in index::index_oids(keys_of) {
                let idx = index_open(oid, AccessShareLock as i32);
                let form = &*(*idx).rd_index;
                if form.indisunique && index::is_plain(idx) {
                    let attnums = index::key_attributes(form).to_vec();
                    let name = std::ffi::CStr::from_ptr((*(*idx).rd_rel).relname.data.as_ptr());
                    if form.indisprimary || sort_key.is_empty() {
                        sort_key = attnums.clone();
                    }
                    keys.push((name.to_string_lossy().into_owned(), attnums));
                }
                index_close(idx, NoLock as i32);
            }
            Self {
                relid: (*keys_of).rd_id,
                tupdesc: (*rel).rd_att,
                columns: Vec::new(),
                numerics: Vec::new(),
                numbers: Vec::new(),
                plain_bytes: Vec::new(),
                sort_key,
                keys,
                builder: None,
                memory: Building::default(),
                unweighed: 0,
                tags: Vec::new(),
                finished: Vec::new(),
            }
        }
    }

    fn start(&mut self) -> Box<Builder> {
        let mut specs = Vec::new();
        self.columns.clear();
        self.numerics.clear();
        // SAFETY: the descriptor lives as long as the relation is open.
        unsafe {
            for i in 0..(*self.tupdesc).natts as usize {
                let attr = compat::attribute(self.tupdesc, i);
                if attr.attisdropped {
                    continue;
                }
                let (kind, ty) = datum::kind_of(attr, self.plain_bytes.contains(&i));
                let name = std::ffi::CStr::from_ptr(attr.attname.data.as_ptr()).to_string_lossy().into_owned();
                self.columns.push((i, kind));
                if let Kind::Numeric(scale) = kind {
                    self.numerics.push((i, scale));
                }
                specs.push(ColumnSpec { name, attnum: attr.attnum, ty });
            }
        }
        if specs.is_empty() {
            // Rows without columns are rows all the same: a column that no attribute has keeps their number.
            specs.push(ColumnSpec { name: String::new(), attnum: 0, ty: PhysicalType::Bool });
        }
        let column_of = |attnum: &i16| specs.iter().position(|c| c.attnum == *attnum);
        let keys = self
            .keys
            .iter()
            .filter_map(|(name, attnums)| {
                let columns = attnums.iter().map(column_of).collect::<Option<Vec<_>>>()?;
                Some(KeySpec { name: name.clone(), columns })
            })
            .collect();
        let sort_key = self.sort_key.iter().filter_map(column_of).collect();
        Box::new(self.take(Builder::new(Schema { columns: specs, sort_key, keys }, BuilderOptions::default())))
    }

    fn take<T>(&self, result: Result<T, FragmentError>) -> T {
        match result {
            Ok(v) => v,
            Err(e) => StrataError::from_fragment(self.relid, "(new)", e).raise(),
        }
    }

    /// Appends a row with its tag.
    ///
    /// # Safety
    /// `values` and `nulls` have an element for each attribute of the relation.
    pub unsafe fn push(&mut self, values: *const Datum, nulls: *const bool, tag: u64) {
        let mut builder = match self.builder.take() {
            Some(b) => b,
            None => self.start(),
        };
        // SAFETY: the caller's promise.
        unsafe {
            self.numbers.clear();
            for (i, scale) in &self.numerics {
                let value = match *nulls.add(*i) {
                    true => None,
                    false => match datum::number(datum::varlena_bytes(*values.add(*i)), *scale) {
                        // NaN has no unscaled value: from here on the column is kept as bytes.
                        None => {
                            self.plain_bytes.push(*i);
                            self.close(*builder);
                            return self.push(values, nulls, tag);
                        }
                        number => number,
                    },
                };
                self.numbers.push(value);
            }
            let mut numbers = self.numbers.iter();
            for (c, (i, kind)) in self.columns.iter().enumerate() {
                let column = builder.column(c);
                self.unweighed += match kind {
                    Kind::Numeric(_) => {
                        match numbers.next() {
                            Some(Some(Number::Narrow(v))) => column.push_i64(*v),
                            Some(Some(Number::Wide(v))) => column.push_i128(*v),
                            _ => column.push_null(),
                        }
                        size_of::<i128>()
                    }
                    _ => datum::push(column, *kind, *values.add(*i), *nulls.add(*i)),
                }
            }
            if self.columns.is_empty() {
                builder.column(0).push_null();
            }
        }
        let ended = builder.end_row();
        self.take(ended);
        self.tags.push(tag);
        if builder.rows() >= guc::FRAGMENT_ROWS.get() as usize || self.is_heavy(&builder) {
            self.close(*builder);
        } else {
            self.builder = Some(builder);
        }
    }

    /// Whether the rows take as much memory as they may. Looks again each time that some was added.
    fn is_heavy(&mut self, builder: &Builder) -> bool {
        const STEP: usize = 64 << 10;
        if self.unweighed < STEP {
            return false;
        }
        self.unweighed = 0;
        self.memory.is_full(builder.memory_bytes(), builder.rows())
    }

    fn close(&mut self, builder: Builder) {
        if builder.rows() == 0 {
            return;
        }
        pgrx::check_for_interrupts!();
        let directory = fragments::store();
        self.take(make_folder(&directory));
        if let Err(e) = claim::for_writing() {
            StrataError::FragmentIo {
                relid: self.relid,
                what: format!("{}: {e}", directory.display()),
                disk_full: e.kind() == std::io::ErrorKind::StorageFull,
            }
            .raise();
        }
        let finished = builder.finish_named(&directory, |hash| {
            failpoint::hit(failpoint::MOVE_FRAGMENT_UNNAMED);
            in_use::hold(hash);
        });
        let written = self.take(finished);
        let tags = std::mem::take(&mut self.tags);
        self.memory = Building::default();
        self.finished.push(Finished {
            row: FragmentRow {
                hash: written.hash,
                first_row_id: 0,
                row_count: written.rows,
                bytes: written.bytes,
                heap_bytes: 0,
                row_ids: None,
                deleted: None,
            },
            tags: written.order.iter().map(|i| tags[*i as usize]).collect(),
        });
        failpoint::hit(failpoint::MOVE_FRAGMENT_WRITTEN);
    }

    /// Writes the last fragment; returns all of them.
    pub fn finish(mut self) -> Vec<Finished> {
        if let Some(builder) = self.builder.take() {
            self.close(*builder);
        }
        std::mem::take(&mut self.finished)
    }
}

/// Records finished fragments for a file of a table; gives them their row ids. Returns the rows.
pub fn record(relid: Oid, filenode: Oid, finished: &mut [Finished], heap_bytes: u64) -> u64 {
    let rows: u64 = finished.iter().map(|f| f.row.row_count).sum();
    if rows == 0 {
        return 0;
    }
    let mut next = catalog::reserve_row_ids(relid, rows);
    for f in finished.iter_mut() {
        f.row.first_row_id = next;
        next += f.row.row_count;
        f.row.heap_bytes = (u128::from(heap_bytes) * u128::from(f.row.row_count) / u128::from(rows)) as u64;
        catalog::record_fragment(relid, filenode, &f.row);
    }
    rows
}

/// Writes neighbouring fragments again as one, with all attributes that the table has now and without the rows in `gone`. The
/// others keep their row ids and their order; those in `folded` stay deleted. Returns what takes their place.
///
/// # Safety
/// `rel` is the fragments' table, open and locked.
pub unsafe fn rewrite(
    rel: Relation,
    fragments: &[&TableFragment],
    folded: &RoaringTreemap,
    gone: &RoaringTreemap,
) -> Vec<FragmentRow> {
    // SAFETY: the caller's promise.
    unsafe {
        // Rows of one fragment are in the order of its sort key, if that still means the same; those of several are not.
        let sort_key = match fragments {
            [only] => {
                let old = only.open();
                let schema = old.schema();
                schema.sort_key.iter().map(|c| schema.columns[*c].attnum).collect()
            }
            _ => Vec::new(),
        };
        let mut finished = rewrite_sorted_by(rel, fragments, gone, sort_key);
        if finished.iter().any(|f| f.tags.windows(2).any(|t| t[0] > t[1])) {
            finished = rewrite_sorted_by(rel, fragments, gone, Vec::new());
        }
        let rows: u64 = fragments.iter().map(|f| f.row.row_count).sum();
        let heap_bytes: u64 = fragments.iter().map(|f| f.row.heap_bytes).sum();
        finished.into_iter().map(|f| placed(f, heap_bytes, rows, folded)).collect()
    }
}

/// The catalog row of a fragment whose tags are its row ids.
fn placed(f: Finished, heap_bytes: u64, of_rows: u64, folded: &RoaringTreemap) -> FragmentRow {
    let mut row = f.row;
    let first = f.tags.first().copied().unwrap_or(0);
    let offset = |row_id: u64| row_id_offset(first, row_id);
    row.first_row_id = first;
    if f.tags.last().is_some_and(|last| last - first + 1 != row.row_count) {
        let mut ids: RoaringBitmap = f.tags.iter().map(|t| offset(*t)).collect();
        ids.optimize();
        row.row_ids = Some(ids);
    }
    let deleted: RoaringBitmap = f.tags.iter().filter(|t| folded.contains(**t)).map(|t| offset(*t)).collect();
    row.deleted = (!deleted.is_empty()).then_some(deleted);
    row.heap_bytes = (u128::from(heap_bytes) * u128::from(row.row_count) / u128::from(of_rows.max(1))) as u64;
    row
}

/// A row id as a bitmap beside the fragment has it, which begins at `first`. The row ids of one fragment span less than 2^32.
pub fn row_id_offset(first: u64, row_id: u64) -> u32 {
    u32::try_from(row_id - first)
        .unwrap_or_else(|_| pgrx::error!("strata: row ids {first} and {row_id} are too far apart for one fragment"))
}

unsafe fn rewrite_sorted_by(
    rel: Relation,
    fragments: &[&TableFragment],
    gone: &RoaringTreemap,
    sort_key: Vec<i16>,
) -> Vec<Finished> {
    // SAFETY: the caller's promise.
    unsafe {
        let mut writer = FragmentWriter::new(rel, rel);
        writer.sort_key = sort_key;
        let slot = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsHeapTuple);
        let natts = i32::from((*(*rel).rd_att).natts as i16);
        let mut throttle = Throttle::begin();
        for fragment in fragments {
            let row_bytes = 1 + fragment.row.bytes / fragment.row.row_count.max(1);
            index::for_each_row_of(rel, fragment, gone, slot, None, &mut |at| {
                throttle.spent(row_bytes);
                slot_getsomeattrs_int(slot, natts);
                let row = crate::pg::tid::row_id(&at).unwrap_or(0);
                writer.push((*slot).tts_values, (*slot).tts_isnull, row);
            });
        }
        ExecDropSingleTupleTableSlot(slot);
        writer.finish()
    }
}

/// Folds all rows of a file that this transaction made and nobody else sees into fragments of `table`.
///
/// # Safety
/// `rel` is the open transient table of a rewrite of `table`.
pub unsafe fn fold_new_file(rel: Relation, table: Oid) {
    // SAFETY: the caller's promise. All rows were inserted by this transaction; they are read as the heap they are in.
    unsafe {
        let heap_bytes = u64::from(RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM)) * u64::from(BLCKSZ);
        let owner = crate::pg::OpenRelation::open(table, NoLock);
        let mut writer = FragmentWriter::new(rel, owner.0);
        CommandCounterIncrement();
        let am = handler::heap();
        let mut own = SnapshotData { snapshot_type: SnapshotType::SNAPSHOT_SELF, ..Default::default() };
        let flags = ScanOptions::SO_TYPE_SEQSCAN | ScanOptions::SO_ALLOW_STRAT;
        let snapshot = &raw mut own;
        let null = std::ptr::null_mut();
        let scan = guarded(|| am.scan_begin.unwrap_unchecked()(rel, snapshot, 0, null, std::ptr::null_mut(), flags));
        let slot = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsBufferHeapTuple);
        let context = row_context();
        while guarded(|| am.scan_getnextslot.unwrap_unchecked()(scan, ScanDirection::ForwardScanDirection, slot)) {
            pgrx::check_for_interrupts!();
            slot_getsomeattrs_int(slot, i32::from((*(*rel).rd_att).natts as i16));
            MemoryContextReset(context);
            let old = MemoryContextSwitchTo(context);
            writer.push((*slot).tts_values, (*slot).tts_isnull, 0);
            MemoryContextSwitchTo(old);
        }
        MemoryContextDelete(context);
        ExecDropSingleTupleTableSlot(slot);
        guarded(|| am.scan_end.unwrap_unchecked()(scan));
        let mut finished = writer.finish();
        if record(table, compat::filenode(rel), &mut finished, heap_bytes) > 0 {
            // Nothing tells any more who made these rows.
            let mut traces = Traces::default();
            traces.lose_all();
            traces.tell(owner.0);
            super::index::settle(table, compat::filenode(rel), &super::index::keys_of(owner.0));
            heap_truncate_one_rel(rel);
            CommandCounterIncrement();
            crate::am::analyze::add_page(rel);
        }
    }
}

/// A memory context for what one row needs (detoasted values).
pub fn row_context() -> MemoryContext {
    // SAFETY: a child of the current context.
    unsafe { AllocSetContextCreateInternal(CurrentMemoryContext, c"strata row".as_ptr(), 0, 8 * 1024, 8 * 1024 * 1024) }
}
