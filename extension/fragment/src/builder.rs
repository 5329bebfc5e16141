//! Collecting rows in memory until they are written as a fragment.
//!
//! Columns grow independently; [`Builder::end_row`] is what makes a row, and refuses one that has not got exactly one
//! value in every column. Nothing is sorted or encoded before [`Builder::finish`].

use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::Path;

use crate::column::{Column, ColumnData};
use crate::error::{FragmentError, Result};
use crate::schema::{PhysicalType, Schema};
use crate::value::{Value, cmp_float};
use crate::writer::{self, Written};

/// How a fragment is laid out.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BuilderOptions {
    /// The number of rows in a block, at most 65,536.
    pub block_rows: u32,
    /// A block ends early when one of its columns has this many bytes of values.
    pub block_bytes: usize,
}

impl Default for BuilderOptions {
    fn default() -> Self {
        Self { block_rows: 32_768, block_bytes: 16 << 20 }
    }
}

impl BuilderOptions {
    /// The defaults, with blocks of this many rows.
    pub fn with_block_rows(block_rows: u32) -> Self {
        Self { block_rows, ..Self::default() }
    }
}

/// The most rows that a block can have.
pub const MAX_BLOCK_ROWS: u32 = 65_536;

/// The values of one column, in the order in which they came.
#[derive(Debug)]
pub struct ColumnBuilder {
    ty: PhysicalType,
    data: ColumnData,
    /// For text and binary, in place of the 32-bit offsets of `data`.
    ends: Vec<u64>,
    nulls: Option<Vec<bool>>,
    rows: usize,
    wrong: Option<String>,
}

macro_rules! push_number {
    ($($(#[$doc:meta])* $name:ident($t:ty) => $value:ident { $($variant:ident),+ };)*) => {$(
        $(#[$doc])*
        pub fn $name(&mut self, v: $t) {
            match &mut self.data {
                $(ColumnData::$variant(d) => d.push(v.into()),)+
                _ => return self.refuse(stringify!($t)),
            }
            self.present();
        }
    )*};
}

impl ColumnBuilder {
    fn new(ty: PhysicalType) -> Self {
        Self { ty, data: ColumnData::with_capacity(ty, 0), ends: Vec::new(), nulls: None, rows: 0, wrong: None }
    }

    /// The type of the column.
    pub fn ty(&self) -> PhysicalType {
        self.ty
    }

    /// The number of values so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no values yet.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    fn present(&mut self) {
        if let Some(n) = &mut self.nulls {
            n.push(false);
        }
        self.rows += 1;
    }

    /// The first wrong push is reported by the `end_row` that follows, so that pushing needs no error path of its own.
    fn refuse(&mut self, what: &str) {
        self.wrong.get_or_insert_with(|| format!("a value of type {what} for a column of type {:?}", self.ty));
    }

    /// Adds a null.
    pub fn push_null(&mut self) {
        let rows = self.rows;
        self.nulls.get_or_insert_with(|| vec![false; rows]).push(true);
        match &mut self.data {
            ColumnData::Bool(d) => d.push(false),
            ColumnData::I16(d) => d.push(0),
            ColumnData::I32(d) => d.push(0),
            ColumnData::I64(d) => d.push(0),
            ColumnData::F32(d) => d.push(0.0),
            ColumnData::F64(d) => d.push(0.0),
            ColumnData::I128(d) => d.push(0),
            ColumnData::Bytes { data, .. } => self.ends.push(data.len() as u64),
            ColumnData::Fixed { width, data } => data.resize(data.len() + *width, 0),
        }
        self.rows += 1;
    }

    push_number! {
        /// Adds a boolean.
        push_bool(bool) => Bool { Bool };
        /// Adds a 16-bit integer, also to a column of wider integers.
        push_i16(i16) => I16 { I16, I32, I64, I128 };
        /// Adds a 32-bit integer, also to a column of wider integers.
        push_i32(i32) => I32 { I32, I64, I128 };
        /// Adds a 64-bit integer, also to a column of decimals.
        push_i64(i64) => I64 { I64, I128 };
        /// Adds an unscaled decimal.
        push_i128(i128) => I128 { I128 };
        /// Adds a 32-bit float.
        push_f32(f32) => F32 { F32 };
        /// Adds a 64-bit float.
        push_f64(f64) => F64 { F64 };
    }

    /// Adds text, binary, or bytes of the column's width.
    pub fn push_bytes(&mut self, v: &[u8]) {
        match &mut self.data {
            ColumnData::Bytes { data, .. } if v.len() <= MAX_VALUE_BYTES => {
                data.extend_from_slice(v);
                self.ends.push(data.len() as u64);
            }
            ColumnData::Fixed { width, data } if *width == v.len() => data.extend_from_slice(v),
            _ => return self.refuse(&format!("bytes of length {}", v.len())),
        }
        self.present();
    }

    /// Adds a value.
    pub fn push(&mut self, v: &Value) {
        match v {
            Value::Null => self.push_null(),
            Value::Bool(v) => self.push_bool(*v),
            Value::I16(v) => self.push_i16(*v),
            Value::I32(v) => self.push_i32(*v),
            Value::I64(v) => self.push_i64(*v),
            Value::F32(v) => self.push_f32(*v),
            Value::F64(v) => self.push_f64(*v),
            Value::I128(v) => self.push_i128(*v),
            Value::Bytes(v) => self.push_bytes(v),
        }
    }

    /// The memory that the column takes.
    pub fn memory_bytes(&self) -> usize {
        self.data.memory_bytes() + self.ends.capacity() * 8 + self.nulls.as_ref().map_or(0, Vec::capacity)
    }

    pub(crate) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|n| n[row])
    }

    pub(crate) fn bytes(&self, row: usize) -> &[u8] {
        match &self.data {
            ColumnData::Bytes { data, .. } => {
                let start = row.checked_sub(1).map_or(0, |p| self.ends[p]);
                &data[start as usize..self.ends[row] as usize]
            }
            other => other.bytes(row),
        }
    }

    pub(crate) fn value(&self, row: usize) -> Value {
        if self.is_null(row) {
            Value::Null
        } else if self.ty.is_bytes() {
            Value::Bytes(self.bytes(row).to_vec())
        } else {
            self.data.value(row)
        }
    }

    /// The order of two rows by this column, nulls last.
    pub(crate) fn compare(&self, a: usize, b: usize) -> Ordering {
        match (self.is_null(a), self.is_null(b)) {
            (false, false) => {}
            (x, y) => return x.cmp(&y),
        }
        match &self.data {
            ColumnData::Bool(v) => v[a].cmp(&v[b]),
            ColumnData::I16(v) => v[a].cmp(&v[b]),
            ColumnData::I32(v) => v[a].cmp(&v[b]),
            ColumnData::I64(v) => v[a].cmp(&v[b]),
            ColumnData::I128(v) => v[a].cmp(&v[b]),
            ColumnData::F32(v) => cmp_float(v[a].into(), v[b].into()),
            ColumnData::F64(v) => cmp_float(v[a], v[b]),
            ColumnData::Bytes { .. } | ColumnData::Fixed { .. } => self.bytes(a).cmp(self.bytes(b)),
        }
    }

    /// A number for each row such that rows sort by it as by this column. None: there are nulls, or it is a column of floats,
    /// of numbers too far apart, or of more than `most` distinct byte strings.
    pub(crate) fn ranks(&self, most: usize) -> Option<Vec<u64>> {
        fn spread<T: Copy + Into<i128>>(v: &[T]) -> Option<Vec<u64>> {
            let low: i128 = (*v.iter().min_by_key(|x| (**x).into())?).into();
            v.iter().map(|x| u64::try_from((*x).into().checked_sub(low)?).ok()).collect()
        }
        if self.nulls.as_ref().is_some_and(|n| n.contains(&true)) {
            return None;
        }
        match &self.data {
            ColumnData::I16(v) => spread(v),
            ColumnData::I32(v) => spread(v),
            ColumnData::I64(v) => spread(v),
            ColumnData::I128(v) => spread(v),
            ColumnData::Bytes { .. } | ColumnData::Fixed { .. } => {
                let mut known: HashMap<&[u8], u64> = HashMap::new();
                for row in 0..self.rows {
                    let next = known.len() as u64;
                    known.entry(self.bytes(row)).or_insert(next);
                    if known.len() > most {
                        return None;
                    }
                }
                let mut sorted: Vec<(&[u8], u64)> = known.iter().map(|(v, n)| (*v, *n)).collect();
                sorted.sort_unstable();
                for (rank, (value, _)) in sorted.into_iter().enumerate() {
                    known.insert(value, rank as u64);
                }
                (0..self.rows).map(|row| known.get(self.bytes(row)).copied()).collect()
            }
            ColumnData::Bool(_) | ColumnData::F32(_) | ColumnData::F64(_) => None,
        }
    }

    /// The length of the longest value of a column of bytes.
    pub(crate) fn longest(&self) -> usize {
        match &self.data {
            ColumnData::Bytes { .. } => {
                let mut start = 0;
                let lengths = self.ends.iter().map(|end| end - std::mem::replace(&mut start, *end));
                lengths.max().map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX))
            }
            ColumnData::Fixed { width, .. } => *width,
            _ => 0,
        }
    }

    /// The number of bytes of this row's value that count towards the size of a block.
    pub(crate) fn row_bytes(&self, row: usize) -> usize {
        if self.ty.is_bytes() { self.bytes(row).len() } else { 0 }
    }

    /// The rows of a block as a column.
    pub(crate) fn gather(&self, rows: &[u32]) -> Column {
        fn pick<T: Copy>(v: &[T], rows: &[u32]) -> Vec<T> {
            rows.iter().map(|r| v[*r as usize]).collect()
        }
        let data = match &self.data {
            ColumnData::Bool(v) => ColumnData::Bool(pick(v, rows)),
            ColumnData::I16(v) => ColumnData::I16(pick(v, rows)),
            ColumnData::I32(v) => ColumnData::I32(pick(v, rows)),
            ColumnData::I64(v) => ColumnData::I64(pick(v, rows)),
            ColumnData::F32(v) => ColumnData::F32(pick(v, rows)),
            ColumnData::F64(v) => ColumnData::F64(pick(v, rows)),
            ColumnData::I128(v) => ColumnData::I128(pick(v, rows)),
            ColumnData::Bytes { .. } => {
                let mut offsets = Vec::with_capacity(rows.len() + 1);
                let mut data = Vec::new();
                offsets.push(0);
                for r in rows {
                    data.extend_from_slice(self.bytes(*r as usize));
                    offsets.push(data.len() as u32); // a block's bytes are bounded, see `writer::cut`
                }
                ColumnData::Bytes { offsets, data }
            }
            ColumnData::Fixed { width, .. } => {
                let mut data = Vec::with_capacity(rows.len() * width);
                for r in rows {
                    data.extend_from_slice(self.bytes(*r as usize));
                }
                ColumnData::Fixed { width: *width, data }
            }
        };
        let nulls = self.nulls.as_ref().map(|n| pick(n, rows)).filter(|n| n.contains(&true));
        Column { data, nulls }
    }
}

/// The longest value, which is PostgreSQL's limit too.
pub const MAX_VALUE_BYTES: usize = 1 << 30;

/// Rows that will be a fragment.
#[derive(Debug)]
pub struct Builder {
    schema: Schema,
    options: BuilderOptions,
    columns: Vec<ColumnBuilder>,
    rows: usize,
}

impl Builder {
    /// No rows yet. Fails if the schema or the options make no sense.
    pub fn new(schema: Schema, options: BuilderOptions) -> Result<Self> {
        schema.check()?;
        if !(1..=MAX_BLOCK_ROWS).contains(&options.block_rows) {
            let n = options.block_rows;
            return Err(FragmentError::input(format!("blocks of {n} rows (1 to {MAX_BLOCK_ROWS} are possible)")));
        }
        let columns = schema.columns.iter().map(|c| ColumnBuilder::new(c.ty)).collect();
        Ok(Self { schema, options, columns, rows: 0 })
    }

    /// The schema.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Column `i`, to add a value to.
    ///
    /// # Panics
    /// When there is no such column.
    pub fn column(&mut self, i: usize) -> &mut ColumnBuilder {
        &mut self.columns[i]
    }

    /// Ends a row: every column must have got exactly one value since the last one, of its own type.
    pub fn end_row(&mut self) -> Result<()> {
        let rows = self.rows + 1;
        for (i, c) in self.columns.iter_mut().enumerate() {
            if c.rows == rows && c.wrong.is_none() {
                continue;
            }
            let name = &self.schema.columns[i].name;
            return Err(FragmentError::input(match &c.wrong {
                Some(wrong) => format!("row {rows}, column {name:?}: {wrong}"),
                None => format!("row {rows}, column {name:?}: {} values instead of {rows}", c.rows),
            }));
        }
        if rows > MAX_ROWS {
            return Err(FragmentError::input(format!("more than {MAX_ROWS} rows in a fragment")));
        }
        self.rows = rows;
        Ok(())
    }

    /// Adds a row.
    pub fn push_row<'a>(&mut self, values: impl IntoIterator<Item = &'a Value>) -> Result<()> {
        for (n, v) in values.into_iter().enumerate() {
            match self.columns.get_mut(n) {
                Some(c) => c.push(v),
                None => return Err(FragmentError::input(format!("a row with more than {n} values"))),
            }
        }
        self.end_row()
    }

    /// The number of rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The memory that the rows take. Writing takes about the size of one block more.
    pub fn memory_bytes(&self) -> usize {
        self.columns.iter().map(ColumnBuilder::memory_bytes).sum()
    }

    /// Sorts the rows, writes them below `dir` under the name that their content gives, and makes that durable.
    ///
    /// When this returns, file and folders are on stable storage. When it fails, nothing is left behind. A crash leaves
    /// at most a file whose name ends in [`crate::TEMPORARY_SUFFIX`].
    pub fn finish(self, dir: &Path) -> Result<Written> {
        if self.rows == 0 {
            return Err(FragmentError::input("a fragment without rows"));
        }
        if let Some((i, c)) = self.columns.iter().enumerate().find(|(_, c)| c.rows != self.rows) {
            let name = &self.schema.columns[i].name;
            return Err(FragmentError::input(format!("column {name:?} has {} values for {} rows", c.rows, self.rows)));
        }
        writer::write(dir, self.schema, &self.options, self.columns, self.rows)
    }
}

/// The most rows that a fragment can have. About a million is what the format is made for.
pub const MAX_ROWS: usize = 1 << 28;
