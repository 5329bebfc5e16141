//! Zone maps: bounds and null counts of a column over a block or over the whole fragment.
//!
//! A bound is a promise about every value, never about nulls. Bytes longer than [`BOUND_BYTES`] are cut: the lower bound
//! to a prefix, the upper bound to a prefix whose last byte below 255 is raised by one. Where no byte is below 255 there
//! is no upper bound.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::column::{Column, ColumnData};
use crate::rows::Rows;
use crate::value::{Value, cmp_float};

/// The longest bound of bytes.
pub const BOUND_BYTES: usize = 64;

/// Bounds and null count of a column over some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Zone {
    /// No value is less. `None` iff every row is null.
    pub min: Option<Value>,
    /// No value is greater. `None` when every row is null, or when there is no bound: see [`Zone::unbounded`].
    pub max: Option<Value>,
    /// Whether the bounds are values that occur, as opposed to cut ones.
    pub exact: bool,
    /// The number of null rows.
    pub null_count: u32,
    /// The number of rows.
    pub rows: u32,
}

impl Zone {
    /// Whether every row is null.
    pub fn all_null(&self) -> bool {
        self.null_count == self.rows
    }

    /// Whether values may be arbitrarily large: there are some, but no upper bound is known.
    pub fn unbounded(&self) -> bool {
        self.max.is_none() && !self.all_null()
    }

    /// Whether a row with this value may be there. Never true of `Null`.
    pub fn may_contain(&self, value: &Value) -> bool {
        !value.is_null()
            && self.min.as_ref().is_some_and(|min| min <= value)
            && self.max.as_ref().is_none_or(|max| max >= value)
    }

    /// The zone of the rows of a block.
    pub(crate) fn of_rows(rows: &Rows<'_>) -> Self {
        match rows {
            Rows::Column(column) => Self::of(column),
            Rows::Narrow { values, nulls } => {
                let ends = ends(values, nulls.as_deref(), i64::cmp);
                Self::exact(
                    ends.map(|(a, b)| (Value::I128(a.into()), Value::I128(b.into()))),
                    rows.len(),
                    rows.null_count(),
                )
            }
            Rows::Codes(codes) => {
                let (rows, null_count) = (rows.len() as u32, rows.null_count() as u32);
                Self::of_bytes(codes.values.iter().copied(), rows, null_count)
            }
        }
    }

    pub(crate) fn of(column: &Column) -> Self {
        let nulls = column.nulls.as_deref();
        macro_rules! number {
            ($v:expr, $variant:ident, $cmp:expr) => {
                ends($v, nulls, $cmp).map(|(a, b)| (Value::$variant(a), Value::$variant(b)))
            };
        }
        macro_rules! float {
            ($v:expr, $variant:ident) => {
                if nulls.is_none() && !$v.iter().any(|x| x.is_nan()) {
                    let first = $v.first().copied();
                    first.map(|first| {
                        let min = $v.iter().fold(first, |m, x| if *x < m { *x } else { m });
                        let max = $v.iter().fold(first, |m, x| if *x > m { *x } else { m });
                        (Value::$variant(min), Value::$variant(max))
                    })
                } else {
                    number!($v, $variant, |a, b| cmp_float((*a).into(), (*b).into()))
                }
            };
        }
        let found = match &column.data {
            ColumnData::Bool(v) => number!(v, Bool, bool::cmp),
            ColumnData::I16(v) => number!(v, I16, i16::cmp),
            ColumnData::I32(v) => number!(v, I32, i32::cmp),
            ColumnData::I64(v) => number!(v, I64, i64::cmp),
            ColumnData::I128(v) => number!(v, I128, i128::cmp),
            ColumnData::F32(v) => float!(v, F32),
            ColumnData::F64(v) => float!(v, F64),
            data @ (ColumnData::Bytes { .. } | ColumnData::Fixed { .. }) => {
                let live = (0..column.len()).filter(|i| !column.is_null(*i)).map(|i| data.bytes(i));
                return Self::of_bytes(live, column.len() as u32, column.null_count() as u32);
            }
        };
        Self::exact(found, column.len(), column.null_count())
    }

    fn exact(ends: Option<(Value, Value)>, rows: usize, null_count: usize) -> Self {
        let (min, max) = ends.unzip();
        Self { min, max, exact: true, null_count: null_count as u32, rows: rows as u32 }
    }

    fn of_bytes<'a>(values: impl Iterator<Item = &'a [u8]>, rows: u32, null_count: u32) -> Self {
        let Some((min, max)) = byte_ends(values) else {
            return Self { min: None, max: None, exact: true, null_count, rows };
        };
        let exact = min.len() <= BOUND_BYTES && max.len() <= BOUND_BYTES;
        let min = Some(Value::Bytes(min[..min.len().min(BOUND_BYTES)].to_vec()));
        Self { min, max: upper_bound(max).map(Value::Bytes), exact, null_count, rows }
    }

    /// The zone of these rows and those of another zone of the same column.
    pub(crate) fn merge(&self, other: &Self) -> Self {
        fn pick(a: Option<&Value>, b: Option<&Value>, first: fn(&Value, &Value) -> bool) -> Option<Value> {
            match (a, b) {
                (Some(a), Some(b)) => Some(if first(a, b) { a } else { b }.clone()),
                (a, b) => a.or(b).cloned(),
            }
        }
        let max = match self.unbounded() || other.unbounded() {
            true => None,
            false => pick(self.max.as_ref(), other.max.as_ref(), |a, b| a >= b),
        };
        Self {
            min: pick(self.min.as_ref(), other.min.as_ref(), |a, b| a <= b),
            max,
            exact: self.exact && other.exact,
            null_count: self.null_count + other.null_count,
            rows: self.rows + other.rows,
        }
    }

    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.min.as_ref().map_or(0, Value::memory) + self.max.as_ref().map_or(0, Value::memory)
    }
}

/// The least and the greatest of the values that are not null; of equal ones the first.
fn ends<T: Copy>(v: &[T], nulls: Option<&[bool]>, cmp: impl Fn(&T, &T) -> Ordering) -> Option<(T, T)> {
    let wider = |(min, max): (T, T), x: &T| {
        (if cmp(x, &min).is_lt() { *x } else { min }, if cmp(x, &max).is_gt() { *x } else { max })
    };
    match nulls {
        None => v.first().map(|first| v.iter().fold((*first, *first), wider)),
        Some(nulls) => {
            let mut live = v.iter().zip(nulls).filter(|(_, null)| !**null).map(|(x, _)| x);
            live.next().map(|first| live.fold((*first, *first), wider))
        }
    }
}

/// The least and the greatest. Most values are told apart by their first eight bytes, as a number.
fn byte_ends<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> Option<(&'a [u8], &'a [u8])> {
    fn head(v: &[u8]) -> u64 {
        match v.first_chunk() {
            Some(eight) => u64::from_be_bytes(*eight),
            // Zeros behind a short value put it before what is longer, or leave it to the whole comparison.
            None => v.iter().fold(0, |n, b| n << 8 | u64::from(*b)) << (8 * (8 - v.len() as u32) % 64),
        }
    }
    let first = values.next()?;
    let (mut min, mut max) = ((head(first), first), (head(first), first));
    for v in values {
        let v = (head(v), v);
        if v < min {
            min = v;
        } else if v > max {
            max = v;
        }
    }
    Some((min.1, max.1))
}

/// The shortest bytes of at most [`BOUND_BYTES`] that nothing with the given value as its prefix exceeds.
fn upper_bound(max: &[u8]) -> Option<Vec<u8>> {
    if max.len() <= BOUND_BYTES {
        return Some(max.to_vec());
    }
    let mut bound = max[..BOUND_BYTES].to_vec();
    while let Some(last) = bound.pop() {
        if last < u8::MAX {
            bound.push(last + 1);
            return Some(bound);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(values: &[Option<&[u8]>]) -> Column {
        let mut offsets = vec![0];
        let mut data = vec![];
        for v in values {
            data.extend_from_slice(v.unwrap_or_default());
            offsets.push(data.len() as u32);
        }
        Column { data: ColumnData::Bytes { offsets, data }, nulls: Some(values.iter().map(Option::is_none).collect()) }
    }

    #[test]
    fn long_bounds_are_cut_and_the_upper_one_is_raised() {
        let long = [b'a'; 100];
        let z = Zone::of(&text(&[Some(&long), None]));
        let mut up = [b'a'; BOUND_BYTES].to_vec();
        assert_eq!(z.min, Some(Value::Bytes(up.clone())));
        up[BOUND_BYTES - 1] = b'b';
        assert_eq!(z.max, Some(Value::Bytes(up)));
        assert!(!z.exact && z.null_count == 1);
        assert!(z.may_contain(&Value::Bytes(long.to_vec())));
    }

    #[test]
    fn a_bound_of_255s_cannot_be_raised() {
        let mut long = vec![255; 80];
        let z = Zone::of(&text(&[Some(&long)]));
        assert!(z.unbounded() && z.max.is_none() && z.min.is_some());
        assert!(z.may_contain(&Value::Bytes(long.clone())));
        long[0] = 7;
        let z = Zone::of(&text(&[Some(&long)]));
        assert_eq!(z.max, Some(Value::Bytes(vec![8])));
    }

    #[test]
    fn all_null_is_not_unbounded() {
        let z = Zone::of(&text(&[None, None]));
        assert!(z.all_null() && !z.unbounded() && !z.may_contain(&Value::Bytes(vec![])));
        let some = Zone::of(&text(&[Some(b"x")]));
        assert_eq!(z.merge(&some).max, Some(Value::Bytes(b"x".to_vec())));
        let open = Zone::of(&text(&[Some(&[255; 80])]));
        assert!(open.merge(&some).unbounded() && z.merge(&open).unbounded());
    }

    #[test]
    fn nan_is_the_largest_float() {
        let z = Zone::of(&Column { data: ColumnData::F64(vec![1.0, f64::NAN, -3.0]), nulls: None });
        assert_eq!(z.min, Some(Value::F64(-3.0)));
        assert!(matches!(z.max, Some(Value::F64(v)) if v.is_nan()));
        assert!(z.may_contain(&Value::F64(f64::INFINITY)) && z.may_contain(&Value::F64(f64::NAN)));
    }
}
