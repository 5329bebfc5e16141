//! Conditions on one column in a form that zone maps and decoded blocks can answer. No PostgreSQL here.
//!
//! Whole numbers, booleans, unscaled decimals and floats are all compared as integers: a float is mapped to a key that
//! sorts as PostgreSQL sorts floats (NaN largest and equal to itself, minus zero equal to zero), so every comparison with
//! a constant is a range of integers. Bytes compare as memcmp and then by length.
//!
//! Every test is exact: it holds for a row if and only if the SQL condition is true for it. A null satisfies only IS NULL.

use std::collections::HashSet;
use strata_fragment::segment::bytes_key;
pub use strata_fragment::segment::float_key;
use strata_fragment::{Column, ColumnData, Dictionary, Value, Zone};

/// A condition on one column.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// No row (a comparison with null).
    Never,
    /// IS NULL (true) or IS NOT NULL.
    Null(bool),
    /// Inclusive range of integers; negated: outside of it.
    Range { lo: i128, hi: i128, negate: bool },
    /// One of these integers, sorted.
    Among(Vec<i128>),
    /// Bounds of bytes, each with whether it is included; negated: outside.
    Bytes { lo: Option<(Vec<u8>, bool)>, hi: Option<(Vec<u8>, bool)>, negate: bool },
    /// One of these.
    AmongBytes(HashSet<Vec<u8>>),
}

/// What a zone map says of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No row satisfies it.
    None,
    /// Every row satisfies it.
    All,
    /// The rows must be looked at.
    Some,
}

/// The integer by which a value is compared.
fn key(value: &Value) -> Option<i128> {
    Some(match value {
        Value::Bool(v) => i128::from(*v),
        Value::I16(v) => i128::from(*v),
        Value::I32(v) => i128::from(*v),
        Value::I64(v) => i128::from(*v),
        Value::I128(v) => *v,
        Value::F32(v) => i128::from(float_key(f64::from(*v))),
        Value::F64(v) => i128::from(float_key(*v)),
        Value::Null | Value::Bytes(_) => return None,
    })
}

impl Test {
    /// Whether a value satisfies the test.
    pub fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Never => false,
            Self::Null(want) => value.is_null() == *want,
            Self::Range { lo, hi, negate } => key(value).is_some_and(|k| (*lo <= k && k <= *hi) != *negate),
            Self::Among(set) => key(value).is_some_and(|k| set.binary_search(&k).is_ok()),
            Self::Bytes { .. } | Self::AmongBytes(_) => value.as_bytes().is_some_and(|b| self.holds_bytes(b)),
        }
    }

    /// The whole numbers between which a value must be to satisfy the test, if it says so.
    pub fn span(&self) -> Option<(i128, i128)> {
        match self {
            Self::Range { lo, hi, negate: false } => Some((*lo, *hi)),
            Self::Among(set) => Some((*set.first()?, *set.last()?)),
            _ => None,
        }
    }

    /// Between which order keys (`strata_fragment::segment::order_key`) a value must be to satisfy the test, if it says so.
    pub fn between(&self) -> Option<(i128, i128)> {
        match self {
            Self::Bytes { lo, hi, negate: false } => {
                let key = |bound: &Option<(Vec<u8>, bool)>, none| bound.as_ref().map_or(none, |(b, _)| bytes_key(b));
                Some((key(lo, i128::MIN), key(hi, i128::MAX)))
            }
            Self::AmongBytes(set) => {
                let keys = || set.iter().map(|b| bytes_key(b));
                Some((keys().min()?, keys().max()?))
            }
            other => other.span(),
        }
    }

    fn holds_bytes(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Bytes { lo, hi, negate } => {
                let above = lo
                    .as_ref()
                    .is_none_or(|(b, with)| if *with { bytes >= b.as_slice() } else { bytes > b.as_slice() });
                let below = hi
                    .as_ref()
                    .is_none_or(|(b, with)| if *with { bytes <= b.as_slice() } else { bytes < b.as_slice() });
                (above && below) != *negate
            }
            Self::AmongBytes(set) => set.contains(bytes),
            _ => false,
        }
    }

    /// What the zone map of a column says.
    pub fn verdict(&self, zone: &Zone) -> Verdict {
        match self {
            Self::Never => return Verdict::None,
            Self::Null(want) => {
                let matching = if *want { zone.null_count } else { zone.rows - zone.null_count };
                return match matching {
                    0 => Verdict::None,
                    n if n == zone.rows => Verdict::All,
                    _ => Verdict::Some,
                };
            }
            _ => {}
        }
        if zone.all_null() {
            return Verdict::None;
        }
        let (none, all) = match self {
            Self::Range { lo, hi, negate } => {
                let (Some(min), Some(max)) = (zone.min.as_ref().and_then(key), zone.max.as_ref().and_then(key)) else {
                    return Verdict::Some;
                };
                let (outside, inside) = (max < *lo || min > *hi, *lo <= min && max <= *hi);
                if *negate { (inside, outside) } else { (outside, inside) }
            }
            Self::Among(set) => {
                let (Some(min), Some(max)) = (zone.min.as_ref().and_then(key), zone.max.as_ref().and_then(key)) else {
                    return Verdict::Some;
                };
                let first = set.partition_point(|v| *v < min);
                (set.get(first).is_none_or(|v| *v > max), min == max && set.get(first) == Some(&min))
            }
            Self::Bytes { lo, hi, negate } => {
                let min = zone.min.as_ref().and_then(Value::as_bytes);
                let max = zone.max.as_ref().and_then(Value::as_bytes);
                let beyond = |bound: &(Vec<u8>, bool), value: &[u8], above: bool| {
                    let order = if above { value.cmp(&bound.0) } else { bound.0.as_slice().cmp(value) };
                    // The bound excludes everything on the value's side of it.
                    order.is_lt() || (order.is_eq() && !bound.1)
                };
                let within = |bound: &(Vec<u8>, bool), value: &[u8], above: bool| {
                    let order = if above { bound.0.as_slice().cmp(value) } else { value.cmp(&bound.0) };
                    order.is_lt() || (order.is_eq() && bound.1)
                };
                let outside = lo.as_ref().is_some_and(|b| max.is_some_and(|m| beyond(b, m, true)))
                    || hi.as_ref().is_some_and(|b| min.is_some_and(|m| beyond(b, m, false)));
                let inside = lo.as_ref().is_none_or(|b| min.is_some_and(|m| within(b, m, true)))
                    && hi.as_ref().is_none_or(|b| max.is_some_and(|m| within(b, m, false)));
                if *negate { (inside, outside) } else { (outside, inside) }
            }
            Self::AmongBytes(set) => (!set.iter().any(|b| zone.may_contain(&Value::Bytes(b.clone()))), false),
            Self::Never | Self::Null(_) => (false, false),
        };
        match (none, all && zone.null_count == 0) {
            (true, _) => Verdict::None,
            (_, true) => Verdict::All,
            _ => Verdict::Some,
        }
    }

    /// Clears the rows of `mask` that do not satisfy the test.
    pub fn filter(&self, column: &Column, mask: &mut [bool]) {
        match self {
            Self::Never => mask.fill(false),
            Self::Null(want) => match &column.nulls {
                Some(nulls) => mask.iter_mut().zip(nulls).for_each(|(m, n)| *m &= *n == *want),
                None if *want => mask.fill(false),
                None => {}
            },
            Self::Range { lo, hi, negate } => {
                range(&column.data, *lo, *hi, *negate, mask);
                drop_nulls(column, mask);
            }
            Self::Among(set) => {
                match &column.data {
                    ColumnData::I16(v) => among(v, set, mask, |x| i128::from(*x)),
                    ColumnData::I32(v) => among(v, set, mask, |x| i128::from(*x)),
                    ColumnData::I64(v) => among(v, set, mask, |x| i128::from(*x)),
                    data => {
                        for (i, m) in mask.iter_mut().enumerate() {
                            *m = *m && self.holds(&data.value(i));
                        }
                    }
                }
                drop_nulls(column, mask);
            }
            Self::Bytes { lo: Some((a, true)), hi: Some((b, true)), negate } if a == b => {
                equal_bytes(&column.data, a, *negate, mask);
                drop_nulls(column, mask);
            }
            Self::Bytes { .. } | Self::AmongBytes(_) => {
                for (i, m) in mask.iter_mut().enumerate() {
                    *m = *m && self.holds_bytes(column.data.bytes(i));
                }
                drop_nulls(column, mask);
            }
        }
    }

    /// [`Test::filter`] over codes into distinct values.
    pub fn filter_codes(&self, dictionary: &Dictionary, mask: &mut [bool]) {
        let on_null = matches!(self, Self::Null(true));
        let holds: Vec<bool> = match self {
            Self::Null(want) => vec![!*want; dictionary.values.len()],
            _ => (0..dictionary.values.len()).map(|i| self.holds_bytes(dictionary.values.data.bytes(i))).collect(),
        };
        for (m, code) in mask.iter_mut().zip(&dictionary.codes) {
            *m &= holds.get(*code as usize).copied().unwrap_or(on_null);
        }
    }
}

fn drop_nulls(column: &Column, mask: &mut [bool]) {
    if let Some(nulls) = &column.nulls {
        mask.iter_mut().zip(nulls).for_each(|(m, n)| *m &= !*n);
    }
}

fn range(data: &ColumnData, lo: i128, hi: i128, negate: bool, mask: &mut [bool]) {
    // The range in the column's own type; empty when it lies outside of the type.
    macro_rules! native {
        ($v:expr, $t:ty) => {{
            let (min, max) = (i128::from(<$t>::MIN), i128::from(<$t>::MAX));
            if lo > max || hi < min || lo > hi {
                if !negate {
                    mask.fill(false);
                }
            } else {
                let (lo, hi) = (lo.max(min) as $t, hi.min(max) as $t);
                for (m, x) in mask.iter_mut().zip($v) {
                    *m &= ((*x >= lo) & (*x <= hi)) != negate;
                }
            }
        }};
    }
    match data {
        ColumnData::Bool(v) => {
            for (m, x) in mask.iter_mut().zip(v) {
                let x = i128::from(*x);
                *m &= (lo <= x && x <= hi) != negate;
            }
        }
        ColumnData::I16(v) => native!(v, i16),
        ColumnData::I32(v) => native!(v, i32),
        ColumnData::I64(v) => native!(v, i64),
        ColumnData::I128(v) => {
            for (m, x) in mask.iter_mut().zip(v) {
                *m &= ((*x >= lo) & (*x <= hi)) != negate;
            }
        }
        ColumnData::F32(v) => {
            for (m, x) in mask.iter_mut().zip(v) {
                let x = i128::from(float_key(f64::from(*x)));
                *m &= ((x >= lo) & (x <= hi)) != negate;
            }
        }
        ColumnData::F64(v) => {
            for (m, x) in mask.iter_mut().zip(v) {
                let x = i128::from(float_key(*x));
                *m &= ((x >= lo) & (x <= hi)) != negate;
            }
        }
        ColumnData::Bytes { .. } | ColumnData::Fixed { .. } => mask.fill(false),
    }
}

fn among<T>(values: &[T], set: &[i128], mask: &mut [bool], widen: impl Fn(&T) -> i128) {
    for (m, x) in mask.iter_mut().zip(values) {
        *m = *m && set.binary_search(&widen(x)).is_ok();
    }
}

fn equal_bytes(data: &ColumnData, value: &[u8], negate: bool, mask: &mut [bool]) {
    match data {
        ColumnData::Bytes { offsets, data } => {
            for (m, ends) in mask.iter_mut().zip(offsets.windows(2)) {
                let (start, end) = (ends[0] as usize, ends[1] as usize);
                *m = *m && (end - start == value.len() && &data[start..end] == value) != negate;
            }
        }
        other => {
            for (i, m) in mask.iter_mut().enumerate() {
                *m = *m && (other.bytes(i) == value) != negate;
            }
        }
    }
}
