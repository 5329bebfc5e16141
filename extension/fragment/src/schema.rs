//! What the columns of a fragment are, how its rows are sorted, and which of its columns are keys.

use serde::{Deserialize, Serialize};

use crate::error::{FragmentError, Result};
use crate::value::Value;

/// How the values of a column are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PhysicalType {
    /// Booleans.
    Bool,
    /// 16-bit integers.
    I16,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
    /// 32-bit floats, kept bit for bit.
    F32,
    /// 64-bit floats, kept bit for bit.
    F64,
    /// Decimals, as 128-bit unscaled integers. Precision and scale are the caller's; they are kept, not enforced.
    Decimal {
        /// The number of digits.
        precision: u8,
        /// The number of digits after the point.
        scale: i8,
    },
    /// Text. Any bytes are kept, whether they are valid UTF-8 or not.
    Utf8,
    /// Bytes.
    Binary,
    /// Bytes of one length.
    Fixed(u32),
}

impl PhysicalType {
    /// Whether values are bytes.
    pub fn is_bytes(self) -> bool {
        matches!(self, Self::Utf8 | Self::Binary | Self::Fixed(_))
    }

    /// Whether values are whole numbers (booleans excepted).
    pub fn is_integer(self) -> bool {
        matches!(self, Self::I16 | Self::I32 | Self::I64 | Self::Decimal { .. })
    }

    /// Whether a value can be compared with values of this column for equality.
    pub(crate) fn accepts(self, value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Bool(_) => self == Self::Bool,
            Value::I16(_) | Value::I32(_) | Value::I64(_) | Value::I128(_) => self.is_integer(),
            Value::F32(_) | Value::F64(_) => matches!(self, Self::F32 | Self::F64),
            Value::Bytes(_) => self.is_bytes(),
        }
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnSpec {
    /// Its name when the fragment was written.
    pub name: String,
    /// Its attribute number in PostgreSQL.
    pub attnum: i16,
    /// How its values are stored.
    pub ty: PhysicalType,
}

/// A unique key. Unless its columns are the first columns of the sort key, each block has a membership filter for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySpec {
    /// Its name.
    pub name: String,
    /// Its columns, by position in the schema.
    pub columns: Vec<usize>,
}

/// The columns of a fragment, its sort key and its unique keys.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Schema {
    /// The columns.
    pub columns: Vec<ColumnSpec>,
    /// The columns by which rows are sorted, ascending, nulls last; may be empty.
    pub sort_key: Vec<usize>,
    /// The unique keys.
    pub keys: Vec<KeySpec>,
}

impl Schema {
    /// Checks that positions exist and that nothing is named twice where that would be ambiguous.
    pub fn check(&self) -> Result<()> {
        let width = self.columns.len();
        if width == 0 || width > u16::MAX.into() {
            return Err(FragmentError::input(format!("a fragment with {width} columns")));
        }
        for c in &self.columns {
            if c.ty == PhysicalType::Fixed(0) {
                return Err(FragmentError::input(format!("column {:?} with values of zero bytes", c.name)));
            }
        }
        let distinct = |columns: &[usize], what: &str| {
            for (i, c) in columns.iter().enumerate() {
                if *c >= width {
                    return Err(FragmentError::input(format!("{what} names column {c} of {width}")));
                }
                if columns[..i].contains(c) {
                    return Err(FragmentError::input(format!("{what} names column {c} twice")));
                }
            }
            Ok(())
        };
        distinct(&self.sort_key, "sort key")?;
        for k in &self.keys {
            if k.columns.is_empty() {
                return Err(FragmentError::input(format!("key {:?} has no columns", k.name)));
            }
            distinct(&k.columns, &format!("key {:?}", k.name))?;
        }
        Ok(())
    }

    /// Whether these columns, in whatever order, are the first columns of the sort key.
    pub fn is_sort_prefix(&self, columns: &[usize]) -> bool {
        columns.len() <= self.sort_key.len() && self.sort_key[..columns.len()].iter().all(|c| columns.contains(c))
    }

    /// The keys that have membership filters, by position.
    pub fn filtered_keys(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.keys.len()).filter(|k| !self.is_sort_prefix(&self.keys[*k].columns))
    }

    /// The position of the column with this attribute number.
    pub fn by_attnum(&self, attnum: i16) -> Option<usize> {
        self.columns.iter().position(|c| c.attnum == attnum)
    }
}
