//! Zone maps: bounds and null counts of a column over a block or over the whole fragment.
//!
//! A bound is a promise about every value, never about nulls. Bytes longer than [`BOUND_BYTES`] are cut: the lower bound
//! to a prefix, the upper bound to a prefix whose last byte below 255 is raised by one. Where no byte is below 255 there
//! is no upper bound.

use serde::{Deserialize, Serialize};

use crate::column::{Column, ColumnData};
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

    pub(crate) fn of(column: &Column) -> Self {
        let rows = column.len() as u32;
        let null_count = column.null_count() as u32;
        let live = || (0..column.len()).filter(|i| !column.is_null(*i));
        macro_rules! ends {
            ($v:expr, $cmp:expr) => {{
                let mut ends = None;
                for i in live() {
                    let v = &$v[i];
                    ends = Some(match ends {
                        None => (v, v),
                        Some((min, max)) => {
                            (if $cmp(v, min).is_lt() { v } else { min }, if $cmp(v, max).is_gt() { v } else { max })
                        }
                    });
                }
                ends
            }};
        }
        macro_rules! number {
            ($v:expr, $variant:ident, $cmp:expr) => {
                ends!($v, $cmp).map(|(a, b)| (Value::$variant(*a), Value::$variant(*b)))
            };
        }
        let ends = match &column.data {
            ColumnData::Bool(v) => number!(v, Bool, bool::cmp),
            ColumnData::I16(v) => number!(v, I16, i16::cmp),
            ColumnData::I32(v) => number!(v, I32, i32::cmp),
            ColumnData::I64(v) => number!(v, I64, i64::cmp),
            ColumnData::I128(v) => number!(v, I128, i128::cmp),
            ColumnData::F32(v) => number!(v, F32, |a: &f32, b: &f32| cmp_float((*a).into(), (*b).into())),
            ColumnData::F64(v) => number!(v, F64, |a: &f64, b: &f64| cmp_float(*a, *b)),
            data @ (ColumnData::Bytes { .. } | ColumnData::Fixed { .. }) => {
                let mut values = live().map(|i| data.bytes(i));
                let first = values.next();
                return Self::of_bytes(
                    first.map(|f| values.fold((f, f), |(min, max), v| (min.min(v), max.max(v)))),
                    rows,
                    null_count,
                );
            }
        };
        let (min, max) = ends.unzip();
        Self { min, max, exact: true, null_count, rows }
    }

    fn of_bytes(ends: Option<(&[u8], &[u8])>, rows: u32, null_count: u32) -> Self {
        let Some((min, max)) = ends else {
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
