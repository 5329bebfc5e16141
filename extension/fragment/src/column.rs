//! Decoded columns: what reading a chunk gives.

use crate::schema::PhysicalType;
use crate::value::Value;

/// The values of a column. Where a row is null the value is unspecified (zero, or no bytes).
#[derive(Debug, Clone)]
pub enum ColumnData {
    /// Booleans.
    Bool(Vec<bool>),
    /// 16-bit integers.
    I16(Vec<i16>),
    /// 32-bit integers.
    I32(Vec<i32>),
    /// 64-bit integers.
    I64(Vec<i64>),
    /// 32-bit floats.
    F32(Vec<f32>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Unscaled decimals.
    I128(Vec<i128>),
    /// Text and binary: value `i` is `data[offsets[i]..offsets[i + 1]]`; there is one more offset than rows.
    Bytes {
        /// Where values begin, and where the last one ends.
        offsets: Vec<u32>,
        /// The values, one behind the other.
        data: Vec<u8>,
    },
    /// Bytes of one length: value `i` is `data[i * width..(i + 1) * width]`.
    Fixed {
        /// The length of each value.
        width: usize,
        /// The values, one behind the other.
        data: Vec<u8>,
    },
}

impl ColumnData {
    /// No values of this type, with room for `rows` of them.
    pub fn with_capacity(ty: PhysicalType, rows: usize) -> Self {
        match ty {
            PhysicalType::Bool => Self::Bool(Vec::with_capacity(rows)),
            PhysicalType::I16 => Self::I16(Vec::with_capacity(rows)),
            PhysicalType::I32 => Self::I32(Vec::with_capacity(rows)),
            PhysicalType::I64 => Self::I64(Vec::with_capacity(rows)),
            PhysicalType::F32 => Self::F32(Vec::with_capacity(rows)),
            PhysicalType::F64 => Self::F64(Vec::with_capacity(rows)),
            PhysicalType::Decimal { .. } => Self::I128(Vec::with_capacity(rows)),
            PhysicalType::Utf8 | PhysicalType::Binary => {
                let mut offsets = Vec::with_capacity(rows + 1);
                offsets.push(0);
                Self::Bytes { offsets, data: Vec::new() }
            }
            PhysicalType::Fixed(width) => Self::Fixed { width: width as usize, data: Vec::new() },
        }
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::F64(v) => v.len(),
            Self::I128(v) => v.len(),
            Self::Bytes { offsets, .. } => offsets.len().saturating_sub(1),
            Self::Fixed { width, data } => data.len().checked_div(*width).unwrap_or(0),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of value `i`; none for numbers.
    #[inline]
    pub fn bytes(&self, i: usize) -> &[u8] {
        match self {
            Self::Bytes { offsets, data } => &data[offsets[i] as usize..offsets[i + 1] as usize],
            Self::Fixed { width, data } => &data[i * width..(i + 1) * width],
            _ => &[],
        }
    }

    /// Value `i`, as if no row were null.
    pub fn value(&self, i: usize) -> Value {
        match self {
            Self::Bool(v) => Value::Bool(v[i]),
            Self::I16(v) => Value::I16(v[i]),
            Self::I32(v) => Value::I32(v[i]),
            Self::I64(v) => Value::I64(v[i]),
            Self::F32(v) => Value::F32(v[i]),
            Self::F64(v) => Value::F64(v[i]),
            Self::I128(v) => Value::I128(v[i]),
            Self::Bytes { .. } | Self::Fixed { .. } => Value::Bytes(self.bytes(i).to_vec()),
        }
    }

    /// The memory that the values take.
    pub fn memory_bytes(&self) -> usize {
        match self {
            Self::Bool(v) => v.capacity(),
            Self::I16(v) => v.capacity() * 2,
            Self::I32(v) => v.capacity() * 4,
            Self::I64(v) => v.capacity() * 8,
            Self::F32(v) => v.capacity() * 4,
            Self::F64(v) => v.capacity() * 8,
            Self::I128(v) => v.capacity() * 16,
            Self::Bytes { offsets, data } => offsets.capacity() * 4 + data.capacity(),
            Self::Fixed { data, .. } => data.capacity(),
        }
    }

    /// Spreads values, one for each row that is not null, over all rows.
    pub(crate) fn spread(self, nulls: &[bool]) -> Self {
        fn rows<T: Copy + Default>(dense: &[T], nulls: &[bool]) -> Vec<T> {
            let mut next = dense.iter();
            nulls
                .iter()
                .map(|null| if *null { T::default() } else { next.next().copied().unwrap_or_default() })
                .collect()
        }
        match self {
            Self::Bool(v) => Self::Bool(rows(&v, nulls)),
            Self::I16(v) => Self::I16(rows(&v, nulls)),
            Self::I32(v) => Self::I32(rows(&v, nulls)),
            Self::I64(v) => Self::I64(rows(&v, nulls)),
            Self::F32(v) => Self::F32(rows(&v, nulls)),
            Self::F64(v) => Self::F64(rows(&v, nulls)),
            Self::I128(v) => Self::I128(rows(&v, nulls)),
            Self::Bytes { offsets: dense, data } => {
                let mut offsets = Vec::with_capacity(nulls.len() + 1);
                let mut next = dense.iter().copied();
                let mut end = next.next().unwrap_or(0);
                offsets.push(end);
                for null in nulls {
                    if !null {
                        end = next.next().unwrap_or(end);
                    }
                    offsets.push(end);
                }
                Self::Bytes { offsets, data }
            }
            Self::Fixed { width, data: dense } => {
                let mut data = vec![0; nulls.len() * width];
                let live = data.chunks_exact_mut(width).zip(nulls).filter(|(_, null)| !**null);
                for ((to, _), from) in live.zip(dense.chunks_exact(width)) {
                    to.copy_from_slice(from);
                }
                Self::Fixed { width, data }
            }
        }
    }
}

/// A column of one block.
#[derive(Debug, Clone)]
pub struct Column {
    /// The values.
    pub data: ColumnData,
    /// Which rows are null; `None` when none is.
    pub nulls: Option<Vec<bool>>,
}

impl Column {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether row `i` is null.
    #[inline]
    pub fn is_null(&self, i: usize) -> bool {
        self.nulls.as_ref().is_some_and(|n| n[i])
    }

    /// The number of null rows.
    pub fn null_count(&self) -> usize {
        self.nulls.as_ref().map_or(0, |n| n.iter().filter(|null| **null).count())
    }

    /// The value of row `i`.
    pub fn value(&self, i: usize) -> Value {
        if self.is_null(i) { Value::Null } else { self.data.value(i) }
    }

    /// The bytes of row `i`; none when it is null or a number.
    #[inline]
    pub fn bytes(&self, i: usize) -> &[u8] {
        if self.is_null(i) { &[] } else { self.data.bytes(i) }
    }

    /// The memory that the column takes.
    pub fn memory_bytes(&self) -> usize {
        self.data.memory_bytes() + self.nulls.as_ref().map_or(0, Vec::capacity)
    }

    /// Whether two columns hold the same values and nulls, floats compared bit for bit.
    pub fn identical(&self, other: &Self) -> bool {
        if self.len() != other.len() || self.null_count() != other.null_count() {
            return false;
        }
        if self.null_count() == 0 {
            match (&self.data, &other.data) {
                (ColumnData::Bool(a), ColumnData::Bool(b)) => return a == b,
                (ColumnData::I16(a), ColumnData::I16(b)) => return a == b,
                (ColumnData::I32(a), ColumnData::I32(b)) => return a == b,
                (ColumnData::I64(a), ColumnData::I64(b)) => return a == b,
                (ColumnData::I128(a), ColumnData::I128(b)) => return a == b,
                (ColumnData::F32(a), ColumnData::F32(b)) => {
                    return a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                }
                (ColumnData::F64(a), ColumnData::F64(b)) => {
                    return a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                }
                (ColumnData::Bytes { offsets: a, data: c }, ColumnData::Bytes { offsets: b, data: d }) => {
                    return a == b && c == d;
                }
                (ColumnData::Fixed { width: a, data: c }, ColumnData::Fixed { width: b, data: d }) => {
                    return a == b && c == d;
                }
                _ => return false,
            }
        }
        let (a, b) = (&self.data, &other.data);
        let bytes = matches!(a, ColumnData::Bytes { .. } | ColumnData::Fixed { .. });
        std::mem::discriminant(a) == std::mem::discriminant(b)
            && (0..self.len()).all(|i| {
                self.is_null(i) == other.is_null(i)
                    && (self.is_null(i)
                        || if bytes { a.bytes(i) == b.bytes(i) } else { a.value(i).identical(&b.value(i)) })
            })
    }
}

/// A column of one block as codes into its distinct values.
#[derive(Debug, Clone)]
pub struct Dictionary {
    /// The position in `values` for each row; [`Dictionary::NULL`] for a null row.
    pub codes: Vec<u32>,
    /// The values, none of them null.
    pub values: Column,
}

impl Dictionary {
    /// The code of a null row.
    pub const NULL: u32 = u32::MAX;

    /// The memory that codes and values take.
    pub fn memory_bytes(&self) -> usize {
        self.codes.capacity() * 4 + self.values.memory_bytes()
    }
}
