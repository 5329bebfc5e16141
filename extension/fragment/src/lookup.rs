//! Finding rows by the values of some columns.
//!
//! Zones, then the membership filter of a key with just these columns, say which blocks are worth reading. In such a
//! block, where the columns include the first ones of the sort key, binary search narrows the rows: whole numbers are searched where
//! they lie packed, text by single values, anything else is decoded. The rest is compared exactly, one column after the other.

use std::cell::Cell;
use std::cmp::Ordering;
use std::ops::Range;

use crate::codec::partition;
use crate::column::{Column, ColumnData};
use crate::error::{FragmentError, Result};
use crate::filter;
use crate::fragment::Fragment;
use crate::value::{Value, cmp_float};

/// So many rows are compared by their single values.
const FEW_ROWS: u32 = 4;

impl Fragment {
    /// The positions of the rows whose columns have these values, ascending. Null equals nothing.
    pub fn lookup(&self, columns: &[usize], values: &[Value]) -> Result<Vec<u64>> {
        self.check_lookup(columns, values)?;
        let mut found = Vec::new();
        let wanted: Vec<(usize, &Value)> = columns.iter().copied().zip(values).collect();
        if wanted.iter().any(|(c, v)| v.is_null() || !self.fragment_zone(*c).may_contain(v)) {
            return Ok(found);
        }
        let filter = self.filter_for(&wanted);
        let sorted: Vec<(usize, &Value)> = self.sort_prefix(&wanted);
        let rest: Vec<(usize, &Value)> =
            wanted.iter().filter(|(c, _)| !sorted.iter().any(|(s, _)| s == c)).copied().collect();
        for (block, info) in self.blocks().iter().enumerate() {
            if !wanted.iter().all(|(c, v)| self.zone(block, *c).may_contain(v)) {
                continue;
            }
            if let Some((f, hash)) = filter
                && !filter::may_contain(&self.filter(f, block)?, hash)
            {
                continue;
            }
            let range = self.narrow(block, &sorted)?;
            let mut rows: Vec<u32> = range.collect();
            for (c, v) in &rest {
                if rows.is_empty() {
                    break;
                }
                let column = self.column(block, *c)?;
                rows.retain(|r| !column.is_null(*r as usize) && compare(&column, *r as usize, v).is_eq());
            }
            found.extend(rows.iter().map(|r| info.first_row + u64::from(*r)));
        }
        Ok(found)
    }

    fn check_lookup(&self, columns: &[usize], values: &[Value]) -> Result<()> {
        if columns.is_empty() || columns.len() != values.len() {
            let (c, v) = (columns.len(), values.len());
            return Err(FragmentError::input(format!("a lookup of {v} values in {c} columns")));
        }
        for (i, (c, v)) in columns.iter().zip(values).enumerate() {
            let Some(spec) = self.schema().columns.get(*c) else {
                return Err(FragmentError::input(format!("a lookup in column {c}")));
            };
            if !spec.ty.accepts(v) {
                let what = format!("a lookup of {v:?} in column {:?} of type {:?}", spec.name, spec.ty);
                return Err(FragmentError::input(what));
            }
            if columns[..i].contains(c) {
                return Err(FragmentError::input(format!("a lookup that names column {:?} twice", spec.name)));
            }
        }
        Ok(())
    }

    /// The filter of a key with exactly these columns, and the hash to look for in it.
    fn filter_for(&self, wanted: &[(usize, &Value)]) -> Option<(usize, u64)> {
        self.footer.filters.iter().enumerate().find_map(|(f, filter)| {
            let key = &self.schema().keys.get(filter.key)?.columns;
            if key.len() != wanted.len() {
                return None;
            }
            let value_of = |c: &usize| wanted.iter().find(|(w, _)| w == c).map(|(_, v)| *v);
            let values: Vec<&Value> = key.iter().map(value_of).collect::<Option<_>>()?;
            Some((f, filter::hash(values)?))
        })
    }

    /// The longest prefix of the sort key that is looked for, in its order.
    fn sort_prefix<'a>(&self, wanted: &[(usize, &'a Value)]) -> Vec<(usize, &'a Value)> {
        let value_of = |c: &usize| wanted.iter().find(|(w, _)| w == c).copied();
        self.schema().sort_key.iter().map_while(value_of).collect()
    }

    /// The rows of a block that equal these values of the first columns of the sort key.
    fn narrow(&self, block: usize, sorted: &[(usize, &Value)]) -> Result<Range<u32>> {
        let mut range = 0..self.blocks().get(block).map_or(0, |b| b.rows);
        for (c, v) in sorted {
            if range.len() <= FEW_ROWS as usize {
                // Decoding a column for a few rows would cost more than they do.
                let mut rows = Vec::with_capacity(range.len());
                for row in range.clone() {
                    if self.value(block, *c, row)? == **v {
                        rows.push(row);
                    }
                }
                // Rows that are equal in a column of the sort key, and in those before it, follow each other.
                range = match (rows.first(), rows.last()) {
                    (Some(first), Some(last)) => *first..last + 1,
                    _ => range.start..range.start,
                };
                continue;
            }
            if let Some(v) = v.as_i128()
                && let Some(found) = self.equal(block, *c, range.clone(), v)?
            {
                range = found;
                continue;
            }
            if self.schema().columns[*c].ty.is_bytes() && !self.is_decoded(block, *c) {
                range = self.narrow_by_values(block, *c, range, v)?;
                continue;
            }
            // Within the rows that are equal in the columns before, this column is sorted, its nulls last.
            let column = self.column(block, *c)?;
            let order = |row: u32| match column.is_null(row as usize) {
                true => Ordering::Greater,
                false => compare(&column, row as usize, v),
            };
            let start = partition(range.clone(), |r| order(r).is_lt());
            range = start..partition(start..range.end, |r| order(r).is_eq());
        }
        Ok(range)
    }

    /// Of rows in the order of a column of bytes, nulls last, those with this value. Some twenty values are read for that: decoding all of them takes
    /// longer, and where many are read, reading them sees to it that they are decoded.
    fn narrow_by_values(&self, block: usize, col: usize, range: Range<u32>, value: &Value) -> Result<Range<u32>> {
        let failed = Cell::new(None);
        let order = |row: u32| match self.value(block, col, row) {
            Ok(Value::Null) => Ordering::Greater,
            Ok(found) => found.cmp(value),
            Err(e) => {
                failed.set(Some(e));
                Ordering::Greater
            }
        };
        let start = partition(range.clone(), |r| order(r).is_lt());
        let found = start..partition(start..range.end, |r| order(r).is_eq());
        match failed.take() {
            Some(e) => Err(e),
            None => Ok(found),
        }
    }
}

/// The order of a row's value, which is not null, and another of the column's class.
fn compare(column: &Column, row: usize, value: &Value) -> Ordering {
    match (&column.data, value) {
        (ColumnData::I64(c), Value::I64(v)) => c[row].cmp(v),
        (ColumnData::I32(c), Value::I32(v)) => c[row].cmp(v),
        (ColumnData::F64(c), Value::F64(v)) => cmp_float(c[row], *v),
        (data @ (ColumnData::Bytes { .. } | ColumnData::Fixed { .. }), Value::Bytes(v)) => {
            data.bytes(row).cmp(v.as_slice())
        }
        (data, v) => data.value(row).cmp(v),
    }
}
