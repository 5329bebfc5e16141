//! Group keys: from the rows of a block to dense group numbers.
//!
//! Each key column numbers its distinct values as they come; several columns are combined pair by pair. Columns of bytes
//! are numbered through their dictionaries where they have one, so that a row costs a look into an array.

use super::super::blocks::{Batch, BlockScan};
use super::spec::{Output, Unit};
use crate::am::datum::{self, Kind};
use crate::am::fragments::ColumnSource;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use strata_fragment::{Column, ColumnData, Value};

/// A hash that is good enough for numbers and short strings, and fast.
#[derive(Default)]
pub struct FastHasher(u64);

impl FastHasher {
    fn add(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

impl Hasher for FastHasher {
    fn finish(&self) -> u64 {
        // The table uses the upper bits and the lower ones.
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.add(v);
    }
    fn write_i64(&mut self, v: i64) {
        self.add(v as u64);
    }
    fn write_usize(&mut self, v: usize) {
        self.add(v as u64);
    }
}

/// The groups of the rows of a batch.
pub enum Groups {
    /// One for all of them.
    One(u32),
    /// Each its own.
    Each(Vec<u32>),
}

/// Up to so many possible pairs of key values, the pairs of a block are found in an array.
const DENSE_PAIRS: usize = 16_384;

type Map<K> = HashMap<K, u32, BuildHasherDefault<FastHasher>>;

/// The distinct values of one key column.
#[derive(Default)]
struct Values {
    numbers: Map<i64>,
    bytes: Map<Vec<u8>>,
    null: Option<u32>,
    /// By number of the value.
    datums: Vec<(Datum, bool)>,
}

/// The groups.
pub struct Keys {
    columns: Vec<(Option<Unit>, usize, Values)>,
    /// Numbers of pairs, one map for each column after the first.
    pairs: Vec<Map<u64>>,
    /// By number of the pair: the numbers of its halves.
    halves: Vec<Vec<(u32, u32)>>,
    /// Where the datums are.
    context: pg_sys::MemoryContext,
}

impl Keys {
    /// The keys among the outputs; datums live in a child of `context`.
    pub fn new(outputs: &[Output], context: pg_sys::MemoryContext) -> Self {
        let columns: Vec<_> = outputs
            .iter()
            .filter_map(|o| match o {
                Output::Key(a) | Output::Computed(a, _) => Some((None, *a, Values::default())),
                Output::Truncated(unit, a) => Some((Some(*unit), *a, Values::default())),
                Output::State(..) => None,
            })
            .collect();
        // SAFETY: the parent is a valid context, which deletes this one.
        let context = unsafe {
            pg_sys::AllocSetContextCreateInternal(context, c"strata groups".as_ptr(), 0, 8 * 1024, 8 * 1024 * 1024)
        };
        let pairs = columns.len().saturating_sub(1);
        Self { columns, pairs: vec![Map::default(); pairs], halves: vec![Vec::new(); pairs], context }
    }

    /// Whether there are keys at all.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// The number of group numbers given out.
    pub fn len(&self) -> usize {
        match (self.halves.last(), self.columns.first()) {
            (Some(halves), _) => halves.len(),
            (None, Some((_, _, values))) => values.datums.len(),
            (None, None) => 1,
        }
    }

    /// Forgets all groups.
    pub fn clear(&mut self) {
        self.columns.iter_mut().for_each(|(_, _, v)| *v = Values::default());
        self.pairs.iter_mut().for_each(Map::clear);
        self.halves.iter_mut().for_each(Vec::clear);
        // SAFETY: the context is ours, and no datum of it is kept.
        unsafe { pg_sys::MemoryContextReset(self.context) }
    }

    /// The key values of a group, in the order of the columns.
    pub fn datums(&self, group: usize) -> Vec<(Datum, bool)> {
        let mut found = vec![(Datum::null(), true); self.columns.len()];
        let mut at = group as u32;
        for i in (1..self.columns.len()).rev() {
            let (left, right) = self.halves[i - 1][at as usize];
            found[i] = self.columns[i].2.datums[right as usize];
            at = left;
        }
        if let Some((_, _, values)) = self.columns.first() {
            found[0] = values.datums[at as usize];
        }
        found
    }

    /// The groups of the rows of the batch's selection.
    pub fn groups(&mut self, scan: &BlockScan, batch: &mut Batch) -> Groups {
        let mut groups = Groups::One(0);
        for i in 0..self.columns.len() {
            let left_values = match i {
                0 => 0,
                1 => self.columns[0].2.datums.len(),
                _ => self.halves[i - 2].len(),
            };
            let (unit, attribute, values) = &mut self.columns[i];
            let numbers = values.numbers(*unit, *attribute, scan, batch, self.context);
            if i == 0 {
                groups = numbers;
                continue;
            }
            let (map, halves) = (&mut self.pairs[i - 1], &mut self.halves[i - 1]);
            let mut number_of = |left: u32, right: u32| {
                *map.entry((u64::from(left) << 32) | u64::from(right)).or_insert_with(|| {
                    halves.push((left, right));
                    halves.len() as u32 - 1
                })
            };
            groups = match (groups, numbers) {
                (Groups::One(left), Groups::One(right)) => Groups::One(number_of(left, right)),
                (Groups::One(left), Groups::Each(mut rights)) => {
                    // Few distinct values as a rule: each pair is looked up once.
                    let mut known: Vec<u32> = vec![u32::MAX; values.datums.len()];
                    for right in &mut rights {
                        let slot = &mut known[*right as usize];
                        if *slot == u32::MAX {
                            *slot = number_of(left, *right);
                        }
                        *right = *slot;
                    }
                    Groups::Each(rights)
                }
                (Groups::Each(mut lefts), Groups::Each(rights)) if left_values * values.datums.len() <= DENSE_PAIRS => {
                    // Each pair is looked up once, then found by its place.
                    let width = values.datums.len();
                    let mut known: Vec<u32> = vec![u32::MAX; left_values * width];
                    for (left, right) in lefts.iter_mut().zip(rights) {
                        let slot = &mut known[*left as usize * width + right as usize];
                        if *slot == u32::MAX {
                            *slot = number_of(*left, right);
                        }
                        *left = *slot;
                    }
                    Groups::Each(lefts)
                }
                (Groups::Each(mut lefts), numbers) => {
                    let mut last = (u32::MAX, u32::MAX, 0);
                    for (j, left) in lefts.iter_mut().enumerate() {
                        let right = match &numbers {
                            Groups::One(right) => *right,
                            Groups::Each(rights) => rights[j],
                        };
                        if (last.0, last.1) != (*left, right) {
                            last = (*left, right, number_of(*left, right));
                        }
                        *left = last.2;
                    }
                    Groups::Each(lefts)
                }
            };
        }
        groups
    }
}

impl Values {
    fn numbers(
        &mut self,
        unit: Option<Unit>,
        attribute: usize,
        scan: &BlockScan,
        batch: &mut Batch,
        context: pg_sys::MemoryContext,
    ) -> Groups {
        let n = batch.selection.len();
        let (kind, constant) = match batch.fragment.sources[attribute] {
            ColumnSource::Column(_, kind) => (kind, None),
            ColumnSource::Missing(datum, is_null) => (Kind::Varlena, Some((datum, is_null))),
        };
        if let (Some((datum, is_null)), None) = (constant, unit) {
            // One value for the whole block, a new group for it if need be: the Finalize Aggregate merges.
            let number = if is_null { self.null() } else { self.push(datum) };
            return Groups::One(number);
        }
        if let Some(number) = self.by_zone(unit, attribute, batch) {
            return Groups::One(number);
        }
        if kind == Kind::Varlena
            && unit.is_none()
            && let Some(dictionary) = scan.dictionary(batch, attribute)
        {
            let mut known: Vec<Option<u32>> = vec![None; dictionary.values.len()];
            let mut numbers = Vec::with_capacity(n);
            for i in 0..n {
                let code = dictionary.codes[batch.selection.row(i)] as usize;
                let number = match known.get_mut(code) {
                    None => self.null(),
                    Some(Some(number)) => *number,
                    Some(slot) => {
                        let number = self.of_bytes(kind, &dictionary.values, code, context);
                        *slot = Some(number);
                        number
                    }
                };
                numbers.push(number);
            }
            return Groups::Each(numbers);
        }
        let column = scan.column(batch, attribute);
        let rows = (0..n).map(|i| batch.selection.row(i));
        Groups::Each(match (&column.data, unit) {
            (ColumnData::I64(v), Some(unit)) => self.truncated(unit, v, &column, rows),
            (ColumnData::I64(v), None) => self.of_numbers(kind, &column, rows, |i| v[i]),
            (ColumnData::I32(v), _) => self.of_numbers(kind, &column, rows, |i| i64::from(v[i])),
            (ColumnData::I16(v), _) => self.of_numbers(kind, &column, rows, |i| i64::from(v[i])),
            (ColumnData::Bool(v), _) => self.of_numbers(kind, &column, rows, |i| i64::from(v[i])),
            (ColumnData::F64(v), _) => self.of_numbers(kind, &column, rows, |i| v[i].to_bits() as i64),
            (ColumnData::F32(v), _) => self.of_numbers(kind, &column, rows, |i| i64::from(v[i].to_bits())),
            _ => rows
                .map(|row| if column.is_null(row) { self.null() } else { self.of_bytes(kind, &column, row, context) })
                .collect(),
        })
    }

    /// The number of the only value of a block, if its zone map tells that there is one.
    fn by_zone(&mut self, unit: Option<Unit>, attribute: usize, batch: &Batch) -> Option<u32> {
        let zone = batch.zone(attribute)?;
        if zone.all_null() {
            return Some(self.null());
        }
        let (Some(min), Some(max), 0) = (&zone.min, &zone.max, zone.null_count) else { return None };
        let (low, high) = match (min, max) {
            (Value::I16(a), Value::I16(b)) => (i64::from(*a), i64::from(*b)),
            (Value::I32(a), Value::I32(b)) => (i64::from(*a), i64::from(*b)),
            (Value::I64(a), Value::I64(b)) => (*a, *b),
            _ => return None,
        };
        let value = match unit {
            Some(unit) => {
                let (start, end) = unit.truncate(low)?;
                (high < end).then_some(start)?
            }
            None => (low == high && zone.exact).then_some(low)?,
        };
        let next = self.datums.len() as u32;
        let number = *self.numbers.entry(value).or_insert(next);
        if number == next {
            let datum = match (unit, min) {
                (None, Value::I16(v)) => match batch.fragment.sources[attribute] {
                    ColumnSource::Column(_, Kind::Int(1)) => Datum::from(*v as i8),
                    _ => Datum::from(*v),
                },
                (None, Value::I32(v)) => Datum::from(*v),
                _ => Datum::from(value),
            };
            self.datums.push((datum, false));
        }
        Some(number)
    }

    fn push(&mut self, datum: Datum) -> u32 {
        self.datums.push((datum, false));
        self.datums.len() as u32 - 1
    }

    fn null(&mut self) -> u32 {
        if let Some(number) = self.null {
            return number;
        }
        self.datums.push((Datum::null(), true));
        let number = self.datums.len() as u32 - 1;
        self.null = Some(number);
        number
    }

    fn of_numbers(
        &mut self,
        kind: Kind,
        column: &Column,
        rows: impl Iterator<Item = usize>,
        value: impl Fn(usize) -> i64,
    ) -> Vec<u32> {
        let mut last: Option<(i64, u32)> = None;
        rows.map(|row| {
            if column.is_null(row) {
                return self.null();
            }
            let v = value(row);
            if let Some((known, number)) = last
                && known == v
            {
                return number;
            }
            let next = self.datums.len() as u32;
            let number = *self.numbers.entry(v).or_insert(next);
            if number == next {
                // SAFETY: the column is of this kind; numbers are passed by value.
                self.datums.push((unsafe { datum::from_column(kind, column, row) }, false));
            }
            last = Some((v, number));
            number
        })
        .collect()
    }

    fn truncated(
        &mut self,
        unit: Unit,
        values: &[i64],
        column: &Column,
        rows: impl Iterator<Item = usize>,
    ) -> Vec<u32> {
        // The stretch of the last value, and its number.
        let mut last: Option<(i64, i64, u32)> = None;
        rows.map(|row| {
            if column.is_null(row) {
                return self.null();
            }
            let v = values[row];
            if let Some((start, end, number)) = last
                && start <= v
                && v < end
            {
                return number;
            }
            let Some((start, end)) = unit.truncate(v) else {
                ereport!(ERROR, PgSqlErrorCode::ERRCODE_DATETIME_FIELD_OVERFLOW, "timestamp out of range");
            };
            let next = self.datums.len() as u32;
            let number = *self.numbers.entry(start).or_insert(next);
            if number == next {
                self.datums.push((Datum::from(start), false));
            }
            last = Some((start, end, number));
            number
        })
        .collect()
    }

    /// A value that is kept as bytes, or a decimal.
    fn of_bytes(&mut self, kind: Kind, column: &Column, row: usize, context: pg_sys::MemoryContext) -> u32 {
        let decimal;
        let bytes: &[u8] = match &column.data {
            // An odd number of bytes, which a numeric that is kept as bytes never has.
            ColumnData::I128(v) => {
                let mut tagged = [0; 17];
                tagged[..16].copy_from_slice(&v[row].to_le_bytes());
                decimal = tagged;
                &decimal
            }
            data => data.bytes(row),
        };
        if let Some(number) = self.bytes.get(bytes) {
            return *number;
        }
        // SAFETY: the column is of this kind; the datum goes where the groups are.
        let datum = unsafe {
            let old = pg_sys::MemoryContextSwitchTo(context);
            let datum = datum::from_column(kind, column, row);
            pg_sys::MemoryContextSwitchTo(old);
            datum
        };
        let number = self.push(datum);
        self.bytes.insert(bytes.to_vec(), number);
        number
    }
}
