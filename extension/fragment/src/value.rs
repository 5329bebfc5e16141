//! One value of a column, and the order in which fragments sort, bound and compare values.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// One value.
///
/// The order is total and is PostgreSQL's: numbers by their numeric value whatever their width, NaN equal to itself and
/// larger than every other number, minus zero equal to zero, bytes as `memcmp` and then by length, null last. Values of
/// different classes compare by class: booleans, numbers, bytes, null.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Value {
    /// No value.
    Null,
    /// A boolean.
    Bool(bool),
    /// A 16-bit integer.
    I16(i16),
    /// A 32-bit integer.
    I32(i32),
    /// A 64-bit integer.
    I64(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// The unscaled value of a decimal.
    I128(i128),
    /// Text, binary, or bytes of fixed width.
    Bytes(Vec<u8>),
}

enum Number {
    Int(i128),
    Float(f64),
}

impl Value {
    /// Whether this is `Null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The value as an integer, if it is one.
    pub fn as_i128(&self) -> Option<i128> {
        match self.number()? {
            Number::Int(v) => Some(v),
            Number::Float(_) => None,
        }
    }

    /// The bytes, if it has any.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(b) => Some(b),
            _ => None,
        }
    }

    fn number(&self) -> Option<Number> {
        Some(match self {
            Self::I16(v) => Number::Int((*v).into()),
            Self::I32(v) => Number::Int((*v).into()),
            Self::I64(v) => Number::Int((*v).into()),
            Self::I128(v) => Number::Int(*v),
            Self::F32(v) => Number::Float((*v).into()),
            Self::F64(v) => Number::Float(*v),
            Self::Null | Self::Bool(_) | Self::Bytes(_) => return None,
        })
    }

    fn class(&self) -> u8 {
        match self {
            Self::Bool(_) => 0,
            Self::I16(_) | Self::I32(_) | Self::I64(_) | Self::I128(_) | Self::F32(_) | Self::F64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Null => 3,
        }
    }

    /// Whether two values are of the same variant and equal in every bit.
    pub fn identical(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32(a), Self::F32(b)) => a.to_bits() == b.to_bits(),
            (Self::F64(a), Self::F64(b)) => a.to_bits() == b.to_bits(),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other) && self == other,
        }
    }

    /// The approximate memory that the value takes.
    pub(crate) fn memory(&self) -> usize {
        size_of::<Self>() + self.as_bytes().map_or(0, <[u8]>::len)
    }
}

/// PostgreSQL's order of floats: NaN equal to itself and largest, minus zero equal to zero.
pub(crate) fn cmp_float(a: f64, b: f64) -> Ordering {
    match a.partial_cmp(&b) {
        Some(o) => o,
        None => a.is_nan().cmp(&b.is_nan()),
    }
}

fn cmp_int_float(a: i128, b: f64) -> Ordering {
    const LIMIT: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0; // 2^127
    if b.is_nan() || b >= LIMIT {
        return Ordering::Less;
    }
    if b < -LIMIT {
        return Ordering::Greater;
    }
    let whole = b.trunc();
    a.cmp(&(whole as i128)).then_with(|| cmp_float(0.0, b - whole))
}

impl Ord for Value {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Bytes(a), Self::Bytes(b)) => a.cmp(b),
            _ => match (self.number(), other.number()) {
                (Some(Number::Int(a)), Some(Number::Int(b))) => a.cmp(&b),
                (Some(Number::Float(a)), Some(Number::Float(b))) => cmp_float(a, b),
                (Some(Number::Int(a)), Some(Number::Float(b))) => cmp_int_float(a, b),
                (Some(Number::Float(a)), Some(Number::Int(b))) => cmp_int_float(b, a).reverse(),
                _ => self.class().cmp(&other.class()),
            },
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_order_as_in_postgresql() {
        let nan = Value::F64(f64::NAN);
        assert_eq!(nan, Value::F64(-f64::NAN));
        assert!(nan > Value::F64(f64::INFINITY));
        assert_eq!(Value::F64(-0.0), Value::F64(0.0));
        assert!(!Value::F64(-0.0).identical(&Value::F64(0.0)));
        assert!(Value::F32(f32::NAN) > Value::F64(1e308));
    }

    #[test]
    fn integers_and_floats_compare_exactly() {
        assert!(Value::I64(i64::MAX) < Value::F64(9_223_372_036_854_775_808.0));
        assert!(Value::I64(1) < Value::F64(1.5));
        assert!(Value::I64(-1) > Value::F64(-1.5));
        assert!(Value::I128(i128::MAX) < Value::F64(f64::INFINITY));
        assert!(Value::I128(i128::MIN) > Value::F64(f64::NEG_INFINITY));
        assert_eq!(Value::I16(3), Value::I128(3));
        assert_eq!(Value::I16(3), Value::F64(3.0));
    }

    #[test]
    fn null_is_last_and_bytes_compare_as_memcmp() {
        assert!(Value::Null > Value::Bytes(vec![255; 9]));
        assert!(Value::Bytes(vec![]) < Value::Bytes(vec![0]));
        assert!(Value::Bytes(vec![1, 2]) < Value::Bytes(vec![1, 2, 0]));
        assert!(Value::Bytes(vec![2]) > Value::Bytes(vec![1, 255]));
    }
}
