//! Finding rows by key: the fragment index for fragment rows, the btree for delta rows.
//!
//! The fragment index tells which fragments may have the key ([`crate::am::segments`]); these answer by sorted order, zone maps and
//! membership filters ([`strata_fragment::Fragment::lookup`]); the
//! deletion vector is asked for each row that they give. The btree has entries for exactly the delta rows. A delta store of
//! one page is read instead.

use super::blocks::{Stats, conditions};
use super::clause::{Ask, Leaf, Op};
use super::test::Test;
use crate::am::candidates::Candidates;
use crate::am::fragments::{ColumnSource, TableFragments};
use crate::am::segments;
use crate::am::{datum, deletion, ssi};
use crate::memory::Choice;
use crate::pg::{compat, ext, guarded, tid};
use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, Oid};
use std::rc::Rc;
use strata_fragment::{PhysicalType, Value};

/// A key column of an index.
#[derive(Clone, Copy, Debug)]
pub struct KeyColumn {
    /// Its attribute in the table.
    pub attnum: i16,
    /// Its operator family.
    pub family: Oid,
}

/// The equalities among `leaves` that cover the first key columns of an index, in the order of the columns. They are such
/// that the index can search for them; the keys of floats are not the values themselves.
pub fn match_keys(leaves: &[Leaf], columns: &[KeyColumn]) -> Vec<usize> {
    let fits = |l: &Leaf, c: &KeyColumn| {
        let Ask::Compare { op: Op::Eq, opno, .. } = l.ask else { return false };
        l.attnum == c.attnum
            && !matches!(l.kind, datum::Kind::F32 | datum::Kind::F64)
            // SAFETY: a system-cache look-up.
            && unsafe { pg_sys::get_op_opfamily_strategy(opno, c.family) } == pg_sys::BTEqualStrategyNumber as i32
    };
    columns.iter().map_while(|c| leaves.iter().position(|l| fits(l, c))).collect()
}

/// The btree side of a lookup.
pub struct DeltaIndex {
    index: pg_sys::Relation,
    desc: pg_sys::IndexScanDesc,
    keys: Vec<pg_sys::ScanKeyData>,
    context: pg_sys::MemoryContext,
    /// By key: the leaf that gives its value.
    leaves: Vec<usize>,
}

impl DeltaIndex {
    /// Opens `index` for equality in its first columns, one leaf each.
    ///
    /// # Safety
    /// `rel` is open, `index` is a btree of it; `context` outlives the scan.
    pub unsafe fn open(
        rel: pg_sys::Relation,
        index: Oid,
        snapshot: pg_sys::Snapshot,
        leaves: &[Leaf],
        matched: &[usize],
        context: pg_sys::MemoryContext,
    ) -> Self {
        // SAFETY: the caller's promise; the operator is a member of the key column's family, which match_keys saw to,
        // so its function compares a key with a value of its right type.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
            let mut keys = Vec::with_capacity(matched.len());
            for (i, leaf) in matched.iter().enumerate() {
                let Ask::Compare { opno, right_type, .. } = leaves[*leaf].ask else { continue };
                let mut key = pg_sys::ScanKeyData::default();
                pg_sys::ScanKeyEntryInitialize(
                    &mut key,
                    0,
                    i as i16 + 1,
                    pg_sys::BTEqualStrategyNumber as u16,
                    right_type,
                    *(*index).rd_indcollation.add(i),
                    pg_sys::get_opcode(opno),
                    Datum::null(),
                );
                keys.push(key);
            }
            let desc = compat::index_beginscan(rel, index, snapshot, keys.len() as i32);
            let context =
                pg_sys::AllocSetContextCreateInternal(context, c"strata lookup".as_ptr(), 0, 1024, 8 * 1024 * 1024);
            Self { index, desc, keys, context, leaves: matched.to_vec() }
        }
    }

    /// Begins again with these values, one for each leaf of the scan.
    ///
    /// # Safety
    /// The values are of the leaves' types and not null where a key needs them.
    pub unsafe fn start(&mut self, values: &[(Datum, bool)]) {
        // SAFETY: the caller's promise; the copies live until the next start.
        unsafe {
            pg_sys::MemoryContextReset(self.context);
            let old = pg_sys::MemoryContextSwitchTo(self.context);
            for (key, leaf) in self.keys.iter_mut().zip(&self.leaves) {
                let (mut length, mut by_value) = (0, false);
                pg_sys::get_typlenbyval(key.sk_subtype, &mut length, &mut by_value);
                let value = values[*leaf].0;
                key.sk_argument = guarded(|| ext::datumCopy(value, by_value, i32::from(length)));
            }
            pg_sys::MemoryContextSwitchTo(old);
            pg_sys::index_rescan(self.desc, self.keys.as_mut_ptr(), self.keys.len() as i32, std::ptr::null_mut(), 0);
        }
    }

    /// The next delta row, in `slot`. An index that was built while it was not plain has entries for fragment rows, too.
    ///
    /// # Safety
    /// `slot` is a buffer-heap slot of the table.
    pub unsafe fn next(&mut self, slot: *mut pg_sys::TupleTableSlot) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            while pg_sys::index_getnext_slot(self.desc, pg_sys::ScanDirection::ForwardScanDirection, slot) {
                if tid::row_id(&(*slot).tts_tid).is_none() {
                    return true;
                }
            }
            false
        }
    }

    /// Closes scan and index.
    pub fn close(self) {
        // SAFETY: opened in `open`, closed once.
        unsafe {
            pg_sys::index_endscan(self.desc);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
        }
    }
}

/// The fragment rows with some key.
pub struct FragmentKeys {
    table: Rc<TableFragments>,
    found: std::vec::IntoIter<u64>,
    deleted: Option<roaring::RoaringTreemap>,
    sources: Option<(usize, Vec<ColumnSource>)>,
    context: pg_sys::MemoryContext,
    choice: Choice,
    /// What it asked.
    pub stats: Stats,
}

/// From so many rows on the deletion vector is read at once.
const MANY_ROWS: usize = 256;

impl FragmentKeys {
    /// Looks up the rows for which all `tests` (equalities) hold, with the access that was chosen. `context` is reset for each row.
    ///
    /// # Safety
    /// `rel` is the table, `snapshot` valid.
    pub unsafe fn find(
        table: Rc<TableFragments>,
        rel: pg_sys::Relation,
        snapshot: pg_sys::Snapshot,
        tests: &[(Leaf, Test)],
        context: pg_sys::MemoryContext,
        choice: Choice,
    ) -> Self {
        let mut found = Vec::new();
        // SAFETY: the caller's promise.
        let candidates = unsafe { candidates(&table, (*rel).rd_att, tests) };
        segments::count(|c| c.fragments_probed += candidates.len() as u64);
        let stats = Stats {
            segments_probed: candidates.segments_probed,
            fragments_probed: candidates.len() as u64,
            ..Stats::default()
        };
        for number in candidates.numbers() {
            let tf = &table.list[number];
            let fragment = tf.open_for(&choice);
            let (mut columns, mut values, mut possible) = (Vec::new(), Vec::new(), true);
            for (leaf, test) in tests {
                // SAFETY: the attribute is the table's.
                let source =
                    unsafe { crate::am::fragments::column_source(&fragment, (*rel).rd_att, leaf.attnum as usize - 1) };
                match source {
                    ColumnSource::Column(column, kind) if kind == leaf.kind => {
                        match wanted(test, fragment.schema().columns[column].ty) {
                            Some(value) => {
                                columns.push(column);
                                values.push(value);
                            }
                            None => possible = false,
                        }
                    }
                    // Kept in another way: the clauses decide.
                    ColumnSource::Column(..) => {}
                    ColumnSource::Missing(_, true) => possible = false,
                    ColumnSource::Missing(datum, false) => {
                        // SAFETY: the datum is of the attribute's type.
                        let value = unsafe { datum::value(leaf.kind, datum) };
                        possible &= value.is_none_or(|v| test.holds(&v));
                    }
                }
            }
            if !possible {
                continue;
            }
            let rows = if columns.is_empty() {
                (0..tf.row.row_count).collect()
            } else {
                tf.check(fragment.lookup(&columns, &values))
            };
            found.extend(rows.into_iter().map(|p| tf.row_id(p)));
        }
        // SAFETY: the caller's promise.
        let deleted = (found.len() >= MANY_ROWS).then(|| unsafe { deletion::deleted(rel, snapshot) });
        Self { table, found: found.into_iter(), deleted, sources: None, context, choice, stats }
    }

    /// The next row, stored in `slot` with the attributes that are needed.
    ///
    /// # Safety
    /// `slot` is a virtual slot of `rel` whose nulls were all set once.
    pub unsafe fn next(
        &mut self,
        rel: pg_sys::Relation,
        snapshot: pg_sys::Snapshot,
        attributes: &[usize],
        slot: *mut pg_sys::TupleTableSlot,
    ) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            for row_id in self.found.by_ref() {
                let visible = match &self.deleted {
                    Some(deleted) => !deleted.contains(row_id),
                    None => deletion::visible(rel, row_id, snapshot),
                };
                if !visible {
                    continue;
                }
                let Some((i, position)) = self.table.locate(row_id) else { continue };
                let tf = &self.table.list[i];
                let fragment = tf.open_for(&self.choice);
                let Some((block, row)) = fragment.block_of(position) else { continue };
                ssi::read_row(rel, row_id, snapshot);
                if self.sources.as_ref().is_none_or(|(f, _)| *f != i) {
                    self.sources = Some((i, tf.columns(&fragment, (*rel).rd_att)));
                }
                let Some((_, sources)) = &self.sources else { continue };
                pg_sys::ExecClearTuple(slot);
                pg_sys::MemoryContextReset(self.context);
                let old = pg_sys::MemoryContextSwitchTo(self.context);
                for attribute in attributes {
                    let (value, is_null) = match sources[*attribute] {
                        ColumnSource::Missing(datum, is_null) => (datum, is_null),
                        ColumnSource::Column(column, kind) => {
                            let value = tf.check(fragment.value(block, column, row));
                            let datum = datum::from_value(kind, &value);
                            (datum.unwrap_or(Datum::null()), datum.is_none())
                        }
                    };
                    *(*slot).tts_values.add(*attribute) = value;
                    *(*slot).tts_isnull.add(*attribute) = is_null;
                }
                pg_sys::MemoryContextSwitchTo(old);
                (*slot).tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
                (*slot).tts_nvalid = (*(*slot).tts_tupleDescriptor).natts as i16;
                (*slot).tts_tid = tid::from_row_id(row_id);
                return true;
            }
        }
        false
    }
}

/// The fragments that may have rows for which all `tests` (equalities) hold.
///
/// # Safety
/// `tupdesc` is the table's, the tests are on attributes of it.
unsafe fn candidates(table: &TableFragments, tupdesc: pg_sys::TupleDesc, tests: &[(Leaf, Test)]) -> Candidates {
    // SAFETY: the caller's promise.
    unsafe {
        let value = |(leaf, test): &(Leaf, Test)| {
            wanted(test, datum::kind_of(compat::attribute(tupdesc, leaf.attnum as usize - 1), false).1)
        };
        let values: Option<Vec<Value>> = tests.iter().map(value).collect();
        let attnums: Vec<i16> = tests.iter().map(|(leaf, _)| leaf.attnum).collect();
        // A value that the column cannot hold may still be that of an attribute that a fragment lacks.
        match values {
            Some(values) => table.index().with_key(tupdesc, &attnums, &values, &conditions(tests)),
            None => Candidates::all(table.list.len()),
        }
    }
}

/// The value that an equality asks for, as the column keeps it; None: the column cannot hold it.
fn wanted(test: &Test, ty: PhysicalType) -> Option<Value> {
    match test {
        Test::Range { lo, hi, negate: false } if lo == hi => match ty {
            PhysicalType::Bool => match *lo {
                0 => Some(Value::Bool(false)),
                1 => Some(Value::Bool(true)),
                _ => None,
            },
            PhysicalType::I16 => i16::try_from(*lo).ok().map(Value::I16),
            PhysicalType::I32 => i32::try_from(*lo).ok().map(Value::I32),
            PhysicalType::I64 => i64::try_from(*lo).ok().map(Value::I64),
            PhysicalType::Decimal { .. } => Some(Value::I128(*lo)),
            _ => None,
        },
        Test::Bytes { lo: Some((bytes, true)), .. } if ty.is_bytes() => Some(Value::Bytes(bytes.clone())),
        _ => None,
    }
}
