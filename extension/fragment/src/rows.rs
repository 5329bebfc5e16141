//! The rows of one block of a column on their way to the encoder.

use crate::column::{Column, ColumnData};
use crate::intern::Interner;
use crate::schema::PhysicalType;

/// The rows of one block of a column, in the cheapest form that the builder has.
#[derive(Debug)]
pub(crate) enum Rows<'a> {
    /// Values of the column's own type.
    Column(Column),
    /// Unscaled decimals of 64 bits.
    Narrow { values: Vec<i64>, nulls: Option<Vec<bool>> },
    /// Text or binary with few distinct values.
    Codes(Codes<'a>),
}

/// Rows as numbers of distinct byte strings.
#[derive(Debug)]
pub(crate) struct Codes<'a> {
    /// For each row that is not null, its position in `values`.
    pub(crate) codes: Vec<u16>,
    /// The distinct values, in the order in which they first occur.
    pub(crate) values: Vec<&'a [u8]>,
    pub(crate) nulls: Option<Vec<bool>>,
}

impl<'a> Codes<'a> {
    /// From the numbers of all rows (of null rows too, where they mean nothing).
    pub(crate) fn new(mut codes: Vec<u16>, nulls: Option<Vec<bool>>, distinct: &'a Interner) -> Self {
        if let Some(nulls) = &nulls {
            let mut null = nulls.iter();
            codes.retain(|_| null.next() == Some(&false));
        }
        const NEW: u16 = u16::MAX;
        let mut local = vec![NEW; distinct.len()];
        let mut values = Vec::new();
        for code in &mut codes {
            let to = &mut local[usize::from(*code)];
            if *to == NEW {
                *to = values.len() as u16;
                values.push(distinct.get(usize::from(*code)));
            }
            *code = *to;
        }
        Self { codes, values, nulls }
    }
}

impl Rows<'_> {
    /// The number of rows.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Column(c) => c.len(),
            Self::Narrow { values, .. } => values.len(),
            Self::Codes(c) => c.nulls.as_ref().map_or(c.codes.len(), Vec::len),
        }
    }

    /// Which rows are null; `None` when none is.
    pub(crate) fn nulls(&self) -> Option<&[bool]> {
        match self {
            Self::Column(c) => c.nulls.as_deref(),
            Self::Narrow { nulls, .. } => nulls.as_deref(),
            Self::Codes(c) => c.nulls.as_deref(),
        }
    }

    /// The number of null rows.
    pub(crate) fn null_count(&self) -> usize {
        self.nulls().map_or(0, |n| n.iter().filter(|null| **null).count())
    }

    /// The same rows as values of the column's type.
    pub(crate) fn to_column(&self, ty: PhysicalType) -> Column {
        match self {
            Self::Column(c) => c.clone(),
            Self::Narrow { values, nulls } => {
                let values = values.iter().map(|v| i128::from(*v)).collect();
                Column { data: ColumnData::I128(values), nulls: nulls.clone() }
            }
            Self::Codes(c) => {
                let mut dense = ColumnData::with_capacity(ty, c.codes.len());
                if let ColumnData::Bytes { offsets, data } = &mut dense {
                    for code in &c.codes {
                        data.extend_from_slice(c.values[usize::from(*code)]);
                        offsets.push(data.len() as u32);
                    }
                }
                let data = match &c.nulls {
                    Some(nulls) => dense.spread(nulls),
                    None => dense,
                };
                Column { data, nulls: c.nulls.clone() }
            }
        }
    }
}
