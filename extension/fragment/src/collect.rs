//! The values of one column while rows are collected, and the rows of a block gathered from them.
//!
//! Values are kept as cheaply as they allow, since collecting and gathering is a good part of what a move costs:
//!
//! - decimals as 64-bit integers until one does not fit, which is never for most columns;
//! - text and binary as the numbers of distinct values ([`Interner`]) until there are too many of those.
//!
//! [`ColumnBuilder`] changes to the wider form by itself; nobody outside notices.

use std::cmp::Ordering;

use crate::column::ColumnData;
use crate::intern::Interner;
use crate::rows::{Codes, Rows};
use crate::schema::PhysicalType;
use crate::value::{Value, cmp_float};

/// The longest value, which is PostgreSQL's limit too.
pub const MAX_VALUE_BYTES: usize = 1 << 30;

/// Rows after which a column must have repeated values to be numbered on, and the distinct values that it may have then.
const TRIAL: usize = 1024;
const TRIAL_DISTINCT: usize = 512;

/// How the values are kept.
#[derive(Debug)]
enum Store {
    /// As a column keeps them.
    Plain(ColumnData),
    /// Unscaled decimals, all of 64 bits.
    Narrow(Vec<i64>),
    /// Numbers of distinct byte strings.
    Numbered(Vec<u16>, Interner),
    /// Byte strings one behind the other, and where each ends.
    Long { ends: Vec<u64>, data: Vec<u8> },
}

/// The values of one column, in the order in which they came.
#[derive(Debug)]
pub struct ColumnBuilder {
    ty: PhysicalType,
    store: Store,
    nulls: Option<Vec<bool>>,
    rows: usize,
    wrong: Option<String>,
}

macro_rules! push_number {
    ($($(#[$doc:meta])* $name:ident($t:ty) => $($variant:ident),+;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(&mut self, v: $t) {
            match &mut self.store {
                $(Store::Plain(ColumnData::$variant(d)) => d.push(v.into()),)+
                Store::Narrow(_) => return self.push_decimal(v.into()),
                _ => return self.refuse(stringify!($t)),
            }
            self.present();
        }
    )*};
}

impl ColumnBuilder {
    pub(crate) fn new(ty: PhysicalType) -> Self {
        let store = match ty {
            PhysicalType::Decimal { .. } => Store::Narrow(Vec::new()),
            PhysicalType::Utf8 | PhysicalType::Binary => Store::Numbered(Vec::new(), Interner::new()),
            other => Store::Plain(ColumnData::with_capacity(other, 0)),
        };
        Self { ty, store, nulls: None, rows: 0, wrong: None }
    }

    /// The type of the column.
    pub fn ty(&self) -> PhysicalType {
        self.ty
    }

    /// The number of values so far.
    #[inline]
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are no values yet.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// What was wrong with the first value that was refused.
    #[inline]
    pub(crate) fn wrong(&self) -> Option<&String> {
        self.wrong.as_ref()
    }

    #[inline]
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
        match &mut self.store {
            Store::Plain(data) => match data {
                ColumnData::Bool(d) => d.push(false),
                ColumnData::I16(d) => d.push(0),
                ColumnData::I32(d) => d.push(0),
                ColumnData::I64(d) => d.push(0),
                ColumnData::F32(d) => d.push(0.0),
                ColumnData::F64(d) => d.push(0.0),
                ColumnData::I128(d) => d.push(0),
                ColumnData::Bytes { .. } => {}
                ColumnData::Fixed { width, data } => data.resize(data.len() + *width, 0),
            },
            Store::Narrow(d) => d.push(0),
            Store::Numbered(d, _) => d.push(0),
            Store::Long { ends, data } => ends.push(data.len() as u64),
        }
        self.rows += 1;
    }

    push_number! {
        /// Adds a boolean.
        push_bool(bool) => Bool;
        /// Adds a 16-bit integer, also to a column of wider integers.
        push_i16(i16) => I16, I32, I64, I128;
        /// Adds a 32-bit integer, also to a column of wider integers.
        push_i32(i32) => I32, I64, I128;
        /// Adds an unscaled decimal.
        push_i128(i128) => I128;
    }

    /// Adds a 64-bit integer, also to a column of decimals.
    #[inline]
    pub fn push_i64(&mut self, v: i64) {
        match &mut self.store {
            Store::Narrow(d) | Store::Plain(ColumnData::I64(d)) => d.push(v),
            Store::Plain(ColumnData::I128(d)) => d.push(v.into()),
            _ => return self.refuse("i64"),
        }
        self.present();
    }

    /// Adds a 32-bit float.
    #[inline]
    pub fn push_f32(&mut self, v: f32) {
        match &mut self.store {
            Store::Plain(ColumnData::F32(d)) => d.push(v),
            _ => return self.refuse("f32"),
        }
        self.present();
    }

    /// Adds a 64-bit float.
    #[inline]
    pub fn push_f64(&mut self, v: f64) {
        match &mut self.store {
            Store::Plain(ColumnData::F64(d)) => d.push(v),
            _ => return self.refuse("f64"),
        }
        self.present();
    }

    /// Adds a whole number to a column of decimals that are kept as 64 bits so far.
    fn push_decimal(&mut self, v: i128) {
        if !matches!(self.ty, PhysicalType::Decimal { .. }) {
            return self.refuse("a whole number");
        }
        if let Store::Narrow(narrow) = &mut self.store {
            match i64::try_from(v) {
                Ok(v) => narrow.push(v),
                Err(_) => {
                    let wide = narrow.iter().map(|v| i128::from(*v)).chain([v]).collect();
                    self.store = Store::Plain(ColumnData::I128(wide));
                }
            }
        }
        self.present();
    }

    /// Adds text, binary, or bytes of the column's width.
    #[inline]
    pub fn push_bytes(&mut self, v: &[u8]) {
        match &mut self.store {
            Store::Numbered(codes, distinct) => match distinct.number(v) {
                Some(n) => {
                    codes.push(n);
                    let hopeless = codes.len() == TRIAL && distinct.len() > TRIAL_DISTINCT;
                    self.present();
                    if hopeless {
                        self.lengthen();
                    }
                    return;
                }
                None => {
                    self.lengthen();
                    return self.push_bytes(v);
                }
            },
            Store::Long { ends, data } if v.len() <= MAX_VALUE_BYTES => {
                data.extend_from_slice(v);
                ends.push(data.len() as u64);
            }
            Store::Plain(ColumnData::Fixed { width, data }) if *width == v.len() => data.extend_from_slice(v),
            _ => return self.refuse(&format!("bytes of length {}", v.len())),
        }
        self.present();
    }

    /// From numbers of distinct values to the values.
    fn lengthen(&mut self) {
        if let Store::Numbered(codes, distinct) = &self.store {
            let mut ends = Vec::with_capacity(codes.len() + 1);
            let mut data = Vec::new();
            for (row, code) in codes.iter().enumerate() {
                if !self.is_null(row) {
                    data.extend_from_slice(distinct.get(usize::from(*code)));
                }
                ends.push(data.len() as u64);
            }
            self.store = Store::Long { ends, data };
        }
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
        let values = match &self.store {
            Store::Plain(data) => data.memory_bytes(),
            Store::Narrow(v) => v.capacity() * 8,
            Store::Numbered(codes, distinct) => codes.capacity() * 2 + distinct.memory(),
            Store::Long { ends, data } => ends.capacity() * 8 + data.capacity(),
        };
        values + self.nulls.as_ref().map_or(0, Vec::capacity)
    }

    pub(crate) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|n| n[row])
    }

    /// The bytes of a row; none if it is null or a number.
    pub(crate) fn bytes(&self, row: usize) -> &[u8] {
        match &self.store {
            Store::Long { ends, data } => {
                let start = row.checked_sub(1).map_or(0, |p| ends[p]);
                &data[start as usize..ends[row] as usize]
            }
            Store::Numbered(_, _) if self.is_null(row) => &[],
            Store::Numbered(codes, distinct) => distinct.get(usize::from(codes[row])),
            Store::Plain(data) => data.bytes(row),
            Store::Narrow(_) => &[],
        }
    }

    pub(crate) fn value(&self, row: usize) -> Value {
        if self.is_null(row) {
            return Value::Null;
        }
        match &self.store {
            Store::Plain(data) => data.value(row),
            Store::Narrow(v) => Value::I128(v[row].into()),
            Store::Numbered(..) | Store::Long { .. } => Value::Bytes(self.bytes(row).to_vec()),
        }
    }

    /// The order of two rows by this column, nulls last.
    pub(crate) fn compare(&self, a: usize, b: usize) -> Ordering {
        match (self.is_null(a), self.is_null(b)) {
            (false, false) => {}
            (x, y) => return x.cmp(&y),
        }
        match &self.store {
            Store::Plain(data) => match data {
                ColumnData::Bool(v) => v[a].cmp(&v[b]),
                ColumnData::I16(v) => v[a].cmp(&v[b]),
                ColumnData::I32(v) => v[a].cmp(&v[b]),
                ColumnData::I64(v) => v[a].cmp(&v[b]),
                ColumnData::I128(v) => v[a].cmp(&v[b]),
                ColumnData::F32(v) => cmp_float(v[a].into(), v[b].into()),
                ColumnData::F64(v) => cmp_float(v[a], v[b]),
                ColumnData::Bytes { .. } | ColumnData::Fixed { .. } => self.bytes(a).cmp(self.bytes(b)),
            },
            Store::Narrow(v) => v[a].cmp(&v[b]),
            Store::Numbered(codes, _) if codes[a] == codes[b] => Ordering::Equal,
            Store::Numbered(..) | Store::Long { .. } => self.bytes(a).cmp(self.bytes(b)),
        }
    }

    /// A number for each row such that rows sort by it as by this column. None: there are nulls, or it is a column of floats,
    /// of numbers too far apart, or of too many distinct byte strings.
    pub(crate) fn ranks(&self) -> Option<Vec<u64>> {
        fn spread<T: Copy + Into<i128> + Ord>(v: &[T]) -> Option<Vec<u64>> {
            let (low, high) = (*v.iter().min()?, *v.iter().max()?);
            let (low, high): (i128, i128) = (low.into(), high.into());
            // What fits is exact in the low bits.
            u64::try_from(high.checked_sub(low)?).ok()?;
            let low = low as u64;
            Some(v.iter().map(|x| ((*x).into() as u64).wrapping_sub(low)).collect())
        }
        if self.nulls.as_ref().is_some_and(|n| n.contains(&true)) {
            return None;
        }
        match &self.store {
            Store::Plain(ColumnData::I16(v)) => spread(v),
            Store::Plain(ColumnData::I32(v)) => spread(v),
            Store::Plain(ColumnData::I64(v)) | Store::Narrow(v) => spread(v),
            Store::Plain(ColumnData::I128(v)) => spread(v),
            Store::Numbered(codes, distinct) => {
                let ranks = distinct.ranks();
                Some(codes.iter().map(|c| u64::from(ranks[usize::from(*c)])).collect())
            }
            _ => None,
        }
    }

    /// The length of the longest value of a column of bytes.
    pub(crate) fn longest(&self) -> usize {
        match &self.store {
            Store::Long { ends, .. } => {
                let mut start = 0;
                let lengths = ends.iter().map(|end| end - std::mem::replace(&mut start, *end));
                lengths.max().map_or(0, |n| usize::try_from(n).unwrap_or(usize::MAX))
            }
            Store::Numbered(_, distinct) => distinct.longest(),
            Store::Plain(ColumnData::Fixed { width, .. }) => *width,
            _ => 0,
        }
    }

    /// The number of bytes of this row's value that count towards the size of a block.
    pub(crate) fn row_bytes(&self, row: usize) -> usize {
        if self.ty.is_bytes() { self.bytes(row).len() } else { 0 }
    }

    /// The rows of a block.
    pub(crate) fn gather(&self, rows: &[u32]) -> Rows<'_> {
        fn pick<T: Copy>(v: &[T], rows: &[u32]) -> Vec<T> {
            rows.iter().map(|r| v[*r as usize]).collect()
        }
        let nulls = self.nulls.as_ref().map(|n| pick(n, rows)).filter(|n| n.contains(&true));
        let data = match &self.store {
            Store::Narrow(v) => return Rows::Narrow { values: pick(v, rows), nulls },
            Store::Numbered(codes, distinct) => return Rows::Codes(Codes::new(pick(codes, rows), nulls, distinct)),
            Store::Long { .. } => {
                let mut offsets = Vec::with_capacity(rows.len() + 1);
                let total = rows.iter().map(|r| self.bytes(*r as usize).len()).sum();
                let mut data = Vec::with_capacity(total);
                offsets.push(0);
                for r in rows {
                    data.extend_from_slice(self.bytes(*r as usize));
                    offsets.push(data.len() as u32); // a block's bytes are bounded, see `writer::cut`
                }
                ColumnData::Bytes { offsets, data }
            }
            Store::Plain(data) => match data {
                ColumnData::Bool(v) => ColumnData::Bool(pick(v, rows)),
                ColumnData::I16(v) => ColumnData::I16(pick(v, rows)),
                ColumnData::I32(v) => ColumnData::I32(pick(v, rows)),
                ColumnData::I64(v) => ColumnData::I64(pick(v, rows)),
                ColumnData::F32(v) => ColumnData::F32(pick(v, rows)),
                ColumnData::F64(v) => ColumnData::F64(pick(v, rows)),
                ColumnData::I128(v) => ColumnData::I128(pick(v, rows)),
                // Columns of bytes of any length are numbered or long.
                ColumnData::Bytes { .. } => ColumnData::Bytes { offsets: vec![0], data: Vec::new() },
                ColumnData::Fixed { width, .. } => {
                    let mut data = Vec::with_capacity(rows.len() * width);
                    for r in rows {
                        data.extend_from_slice(self.bytes(*r as usize));
                    }
                    ColumnData::Fixed { width: *width, data }
                }
            },
        };
        Rows::Column(crate::column::Column { data, nulls })
    }
}
