//! Rows of fragments as slots: datums are made column by column for a window of rows, then handed out row by row.
//!
//! What is passed by reference lies in an arena (text and bytes) or in a memory context (the rest) until the next window.
//! A slot's values are only needed until the scan is asked for its next row.

use super::blocks::{Batch, BlockScan};
use crate::am::datum::{self, Kind};
use crate::am::fragments::ColumnSource;
use crate::pg::{compat, tid};
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use strata_fragment::{ColumnData, Dictionary};

/// Rows of which datums are made at once.
const WINDOW: usize = 1024;
/// So few rows of a block are read value by value, unless the column is decoded already.
const FEW_ROWS: usize = 8;

/// The rows of a batch that are being handed out.
pub struct Rows {
    /// Attributes that are needed.
    attributes: Vec<usize>,
    /// Whether a varlena of the attribute may have a one-byte header.
    packable: Vec<bool>,
    batch: Option<Batch>,
    /// The window: from this position of the selection, so many rows.
    start: usize,
    count: usize,
    /// The next row within the window.
    next: usize,
    /// Datums and nulls of the window, by needed attribute.
    values: Vec<Vec<Datum>>,
    nulls: Vec<Vec<bool>>,
    arena: Vec<Vec<u8>>,
    context: pg_sys::MemoryContext,
}

impl Rows {
    /// Rows with these attributes (from 0) of `tupdesc`; values live in a child of `context`.
    ///
    /// # Safety
    /// The attributes are the descriptor's, `context` is valid.
    pub unsafe fn new(attributes: Vec<usize>, tupdesc: pg_sys::TupleDesc, context: pg_sys::MemoryContext) -> Self {
        let n = attributes.len();
        // SAFETY: the caller's promise; the parent deletes the context.
        let (context, packable) = unsafe {
            let storage = |a: &usize| compat::attribute(tupdesc, *a).attstorage != pg_sys::TYPSTORAGE_PLAIN as i8;
            (
                pg_sys::AllocSetContextCreateInternal(context, c"strata rows".as_ptr(), 0, 8 * 1024, 8 * 1024 * 1024),
                attributes.iter().map(storage).collect(),
            )
        };
        Self {
            packable,
            attributes,
            batch: None,
            start: 0,
            count: 0,
            next: 0,
            values: vec![Vec::new(); n],
            nulls: vec![Vec::new(); n],
            arena: vec![Vec::new(); n],
            context,
        }
    }

    /// Begins with a batch.
    pub fn begin(&mut self, batch: Batch) {
        (self.start, self.count, self.next) = (0, 0, 0);
        self.batch = Some(batch);
    }

    /// Drops the batch.
    pub fn clear(&mut self) {
        self.batch = None;
        (self.start, self.count, self.next) = (0, 0, 0);
    }

    /// The batch, given back for its columns.
    pub fn take(&mut self) -> Option<Batch> {
        self.batch.take()
    }

    /// The rows of the batch that were not handed out yet.
    pub fn left(&self) -> usize {
        self.batch.as_ref().map_or(0, |b| b.selection.len() - (self.start + self.next).min(b.selection.len()))
    }

    /// Whether the rows of the batch must be checked against all clauses.
    pub fn recheck(&self) -> bool {
        self.batch.as_ref().is_some_and(|b| b.recheck)
    }

    /// The next row of the batch, stored in a virtual slot of the table; the position in the selection, or None.
    ///
    /// # Safety
    /// `slot` is a virtual slot with the table's descriptor whose nulls were all set once.
    #[inline]
    pub unsafe fn next(&mut self, scan: &BlockScan, slot: *mut pg_sys::TupleTableSlot) -> Option<usize> {
        // SAFETY: the caller's promise; the window has `count` rows.
        unsafe {
            if self.next >= self.count && !self.fill(scan) {
                return None;
            }
            let i = self.next;
            self.next += 1;
            let batch = self.batch.as_ref()?;
            let row_id = batch.row_id(batch.selection.row(self.start + i));
            if (*slot).tts_flags & pg_sys::TTS_FLAG_SHOULDFREE as u16 != 0 {
                pg_sys::ExecClearTuple(slot);
            }
            for (a, attribute) in self.attributes.iter().enumerate() {
                *(*slot).tts_values.add(*attribute) = *self.values[a].get_unchecked(i);
                *(*slot).tts_isnull.add(*attribute) = *self.nulls[a].get_unchecked(i);
            }
            (*slot).tts_flags &= !(pg_sys::TTS_FLAG_EMPTY as u16);
            (*slot).tts_nvalid = (*(*slot).tts_tupleDescriptor).natts as i16;
            (*slot).tts_tid = tid::from_row_id(row_id);
            Some(self.start + i)
        }
    }

    /// Makes the datums of the next window.
    unsafe fn fill(&mut self, scan: &BlockScan) -> bool {
        let Some(mut batch) = self.batch.take() else { return false };
        self.start += self.count;
        self.count = (batch.selection.len() - self.start).min(WINDOW);
        self.next = 0;
        if self.count == 0 {
            self.batch = Some(batch);
            return false;
        }
        pgrx::check_for_interrupts!();
        // SAFETY: the context is ours; the columns are of the batch, the rows of its selection.
        unsafe {
            pg_sys::MemoryContextReset(self.context);
            let old = pg_sys::MemoryContextSwitchTo(self.context);
            for a in 0..self.attributes.len() {
                self.fill_column(scan, &mut batch, a);
            }
            pg_sys::MemoryContextSwitchTo(old);
        }
        self.batch = Some(batch);
        true
    }

    unsafe fn fill_column(&mut self, scan: &BlockScan, batch: &mut Batch, a: usize) {
        let (attribute, packable) = (self.attributes[a], self.packable[a]);
        let (values, nulls, arena) = (&mut self.values[a], &mut self.nulls[a], &mut self.arena[a]);
        values.clear();
        nulls.clear();
        let window = self.start..self.start + self.count;
        let (column, kind) = match batch.fragment.sources[attribute] {
            ColumnSource::Missing(datum, is_null) => {
                values.resize(self.count, datum);
                nulls.resize(self.count, is_null);
                return;
            }
            ColumnSource::Column(column, kind) => (column, kind),
        };
        // SAFETY: values come from a column of this kind.
        unsafe {
            if batch.selection.len() <= FEW_ROWS && !scan.is_decoded(batch, attribute) {
                for i in window {
                    let value = scan.value(batch, column, batch.selection.row(i));
                    let datum = datum::from_value(kind, &value);
                    values.push(datum.unwrap_or(Datum::null()));
                    nulls.push(datum.is_none());
                }
                return;
            }
            if kind == Kind::Varlena
                && let Some(dictionary) = scan.dictionary(batch, attribute)
            {
                let datums = dictionary_datums(&dictionary, arena, packable);
                for i in window {
                    let code = dictionary.codes[batch.selection.row(i)];
                    let datum = datums.get(code as usize).copied();
                    values.push(datum.unwrap_or(Datum::null()));
                    nulls.push(datum.is_none());
                }
                return;
            }
            let column = scan.column(batch, attribute);
            macro_rules! by_value {
                ($v:expr, $f:expr) => {
                    values.extend(window.clone().map(|i| $f($v[batch.selection.row(i)])))
                };
            }
            match (&column.data, kind) {
                (ColumnData::I16(v), Kind::Int(2)) => by_value!(v, Datum::from),
                (ColumnData::I32(v), _) => by_value!(v, Datum::from),
                (ColumnData::I64(v), _) => by_value!(v, Datum::from),
                (ColumnData::F64(v), _) => by_value!(v, |x: f64| Datum::from(x.to_bits())),
                (ColumnData::Bytes { .. }, Kind::Varlena) => {
                    arena.clear();
                    let bytes: usize =
                        window.clone().map(|i| column.data.bytes(batch.selection.row(i)).len() + 12).sum();
                    arena.reserve(bytes);
                    for i in window.clone() {
                        values.push(push_varlena(arena, column.data.bytes(batch.selection.row(i)), packable));
                    }
                }
                _ => {
                    for i in window.clone() {
                        let row = batch.selection.row(i);
                        let is_null = column.is_null(row);
                        values.push(if is_null { Datum::null() } else { datum::from_column(kind, &column, row) });
                    }
                }
            }
            match &column.nulls {
                Some(n) => nulls.extend(window.map(|i| n[batch.selection.row(i)])),
                None => nulls.resize(self.count, false),
            }
        }
    }
}

/// A datum for each value of a dictionary.
///
/// # Safety
/// The datums live as long as `arena` is not changed.
unsafe fn dictionary_datums(dictionary: &Dictionary, arena: &mut Vec<u8>, packable: bool) -> Vec<Datum> {
    arena.clear();
    let n = dictionary.values.len();
    arena.reserve((0..n).map(|i| dictionary.values.data.bytes(i).len() + 12).sum());
    // SAFETY: there is room for all of them, so nothing moves.
    (0..n).map(|i| unsafe { push_varlena(arena, dictionary.values.data.bytes(i), packable) }).collect()
}

/// Appends a varlena; short ones get a one-byte header, as in a heap tuple.
///
/// # Safety
/// `arena` has room for the bytes and 12 more.
unsafe fn push_varlena(arena: &mut Vec<u8>, bytes: &[u8], packable: bool) -> Datum {
    let short = packable && bytes.len() < 127;
    if !short {
        // As heap tuples align the types with the widest elements.
        while !(arena.as_ptr() as usize + arena.len()).is_multiple_of(8) {
            arena.push(0);
        }
    }
    let at = arena.len();
    if short {
        arena.push(((bytes.len() as u8 + 1) << 1) | 1);
    } else {
        arena.extend_from_slice(&(((bytes.len() + 4) as u32) << 2).to_ne_bytes());
    }
    arena.extend_from_slice(bytes);
    // SAFETY: `at` is inside the arena, which does not move.
    Datum::from(unsafe { arena.as_ptr().add(at) })
}
