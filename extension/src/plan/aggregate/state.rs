//! Partial states of aggregates, by group, and their form for the Finalize Aggregate.
//!
//! | aggregate | state | form |
//! |---|---|---|
//! | count | number | int8 |
//! | sum(int2, int4) | sum | int8, null without values |
//! | avg(int2, int4) | number, sum | int8[2] |
//! | sum, avg of int8 | number, 128-bit sum | bytea, as `int8_avg_serialize` writes it |
//! | sum, avg of numeric | number, sum, scale, NaNs | bytea, as `numeric_avg_serialize` writes it |
//! | sum of float4, float8 | sum | the type itself, null without values |
//! | avg of float4, float8 | number, sum, sum of squared deviations | float8[3] |
//! | min, max | value | the type itself, null without values |

use super::super::blocks::{Batch, BlockScan};
use super::super::test::float_key;
use super::exec::FEW_GROUPS;
use super::expression::{Expression, Values};
use super::keys::Groups;
use super::spec::{Argument, Transition};
use super::wide::I256;
use crate::am::datum::{self, Kind};
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use pgrx::prelude::*;
use strata_fragment::{Column, ColumnData, Value};

/// The states of one aggregate, by group.
#[derive(Debug, Default)]
pub struct States {
    transition: Option<Transition>,
    attribute: Option<usize>,
    expression: Option<Expression>,
    kind: Option<Kind>,
    /// Values that were not null (rows for count(*)).
    counts: Vec<i64>,
    /// For min and max the value (of floats the bits), else the sum.
    narrow: Vec<i64>,
    wide: Vec<i128>,
    /// What did not fit `wide`, added to it; empty if all did.
    huge: Vec<I256>,
    /// NaNs among numerics.
    nans: Vec<i64>,
    /// Sums of floats.
    floats: Vec<f64>,
    /// Their sums of squared deviations, by Youngs and Cramer as PostgreSQL does it.
    squares: Vec<f64>,
}

/// Up to this magnitude the squared deviations of floats cannot overflow. An average only needs them to find that out.
const TAME: f64 = 1e100;

impl States {
    /// States of `transition` over an argument; a column is of this kind.
    pub fn new(transition: Transition, argument: Argument, kind: Option<Kind>) -> Self {
        let (attribute, expression) = match argument {
            Argument::Nothing => (None, None),
            Argument::Column(a) => (Some(a), None),
            Argument::Expression(e) => (None, Some(e)),
        };
        Self { transition: Some(transition), attribute, expression, kind, ..Self::default() }
    }

    fn is_wide(&self) -> bool {
        matches!(self.transition, Some(Transition::Sum128 | Transition::SumNumeric))
            || matches!(self.kind, Some(Kind::Numeric(_)))
    }

    fn is_float_sum(&self) -> bool {
        matches!(self.transition, Some(Transition::SumFloat | Transition::AverageFloat))
    }

    /// Makes room for `groups` groups.
    pub fn grow(&mut self, groups: usize) {
        self.counts.resize(groups, 0);
        if self.is_wide() {
            self.wide.resize(groups, 0);
            self.nans.resize(groups, 0);
            if !self.huge.is_empty() {
                self.huge.resize(groups, I256::default());
            }
        } else if self.is_float_sum() {
            self.floats.resize(groups, 0.0);
            self.squares.resize(groups, 0.0);
        } else {
            self.narrow.resize(groups, 0);
        }
    }

    /// Forgets all groups.
    pub fn clear(&mut self) {
        self.counts.clear();
        self.narrow.clear();
        self.wide.clear();
        self.huge.clear();
        self.nans.clear();
        self.floats.clear();
        self.squares.clear();
    }

    /// Takes in the rows of a batch; `groups` has their groups, `by_group` how many rows each has, if that is known.
    pub fn update(&mut self, scan: &BlockScan, batch: &mut Batch, groups: &Groups, by_group: Option<&[u32]>) {
        let Some(transition) = self.transition else { return };
        let n = batch.selection.len();
        if let Some(expression) = self.expression.take() {
            self.sum_expression(&expression, scan, batch, groups, by_group);
            self.expression = Some(expression);
            return;
        }
        let without_nulls = |a: &usize| batch.zone(*a).is_some_and(|z| z.null_count == 0);
        let counted = transition == Transition::Count && self.attribute.as_ref().is_some_and(without_nulls);
        let Some(attribute) = self.attribute.filter(|_| !counted) else {
            self.count(n, groups, by_group);
            return;
        };
        if let Groups::One(g) = groups
            && self.by_zone(transition, batch, attribute, *g as usize)
        {
            return;
        }
        let column = scan.column(batch, attribute);
        let rows = Rows { batch, column: &column, groups };
        match transition {
            Transition::CountRows | Transition::Count => rows.each(|_, g| self.counts[g] += 1),
            Transition::SumInt | Transition::AverageInt => self.sum_narrow(&rows),
            Transition::Sum128 => self.sum_wide(&rows),
            Transition::SumNumeric => {}
            Transition::SumFloat | Transition::AverageFloat => {
                let tame = batch.zone(attribute).is_some_and(is_tame);
                self.sum_floats(&Rows { batch, column: &column, groups }, transition, tame);
            }
            Transition::Min => self.extreme(&rows, false),
            Transition::Max => self.extreme(&rows, true),
        }
    }

    /// What the zone map answers for a whole block: counts, and the extremes of whole numbers.
    fn by_zone(&mut self, transition: Transition, batch: &Batch, attribute: usize, g: usize) -> bool {
        let (super::super::blocks::Selection::All(_), Some(zone)) = (&batch.selection, batch.zone(attribute)) else {
            return false;
        };
        let values = i64::from(zone.rows - zone.null_count);
        match transition {
            Transition::Count => {
                self.counts[g] += values;
                true
            }
            Transition::Min | Transition::Max => {
                let larger = transition == Transition::Max;
                let bound = if larger { zone.max.as_ref() } else { zone.min.as_ref() };
                match bound {
                    _ if values == 0 => true,
                    _ if !zone.exact => false,
                    Some(Value::I16(v)) => self.take_narrow(g, i64::from(*v), values, larger),
                    Some(Value::I32(v)) => self.take_narrow(g, i64::from(*v), values, larger),
                    Some(Value::I64(v)) => self.take_narrow(g, *v, values, larger),
                    _ => false,
                }
            }
            _ => false,
        }
    }

    #[inline]
    fn take_narrow(&mut self, g: usize, v: i64, values: i64, larger: bool) -> bool {
        if self.counts[g] == 0 || (v > self.narrow[g]) == larger {
            self.narrow[g] = v;
        }
        self.counts[g] += values;
        true
    }

    fn sum_narrow(&mut self, rows: &Rows) {
        macro_rules! sum {
            ($v:expr) => {
                match rows.all_in_one() {
                    Some((n, g)) => {
                        self.counts[g] += n as i64;
                        self.narrow[g] = self.narrow[g].wrapping_add($v.iter().map(|x| i64::from(*x)).sum::<i64>());
                    }
                    None => rows.each(|i, g| {
                        self.counts[g] += 1;
                        self.narrow[g] = self.narrow[g].wrapping_add(i64::from($v[i]));
                    }),
                }
            };
        }
        match &rows.column.data {
            ColumnData::I16(v) => sum!(v),
            ColumnData::I32(v) => sum!(v),
            _ => {}
        }
    }

    fn sum_wide(&mut self, rows: &Rows) {
        if let ColumnData::I64(v) = &rows.column.data {
            rows.each(|i, g| {
                self.counts[g] += 1;
                self.wide[g] += i128::from(v[i]);
            });
        }
    }

    /// Counts all rows of a batch.
    fn count(&mut self, n: usize, groups: &Groups, by_group: Option<&[u32]>) {
        match (groups, by_group) {
            (Groups::One(g), _) => self.counts[*g as usize] += n as i64,
            (_, Some(by_group)) => self.counts.iter_mut().zip(by_group).for_each(|(c, n)| *c += i64::from(*n)),
            (Groups::Each(groups), None) => groups.iter().for_each(|g| self.counts[*g as usize] += 1),
        }
    }

    fn sum_expression(
        &mut self,
        expression: &Expression,
        scan: &BlockScan,
        batch: &mut Batch,
        groups: &Groups,
        by_group: Option<&[u32]>,
    ) {
        let n = batch.selection.len();
        let found = expression.evaluate(scan, batch);
        let group = |i: usize| match groups {
            Groups::One(g) => *g as usize,
            Groups::Each(groups) => groups[i] as usize,
        };
        let all = found.nulls.is_none() && found.nans.is_none();
        if all {
            self.count(n, groups, by_group);
        }
        // A whole block fits 64 bits as a rule, and is added up in them first.
        if let (Values::Narrow(values, most), true) = (&found.values, all)
            && u128::from(*most) * (n as u128) < 1 << 62
        {
            match groups {
                Groups::One(g) => self.wide[*g as usize] += i128::from(values.iter().sum::<i64>()),
                Groups::Each(groups) if self.wide.len() <= FEW_GROUPS => {
                    let mut sums = vec![0i64; self.wide.len()];
                    groups.iter().zip(values).for_each(|(g, v)| sums[*g as usize] += v);
                    self.wide.iter_mut().zip(sums).for_each(|(wide, sum)| *wide += i128::from(sum));
                }
                Groups::Each(groups) => {
                    groups.iter().zip(values).for_each(|(g, v)| self.wide[*g as usize] += i128::from(*v));
                }
            }
            return;
        }
        if matches!(found.values, Values::Huge(_)) && self.huge.is_empty() {
            self.huge.resize(self.wide.len(), I256::default());
        }
        for i in 0..n {
            // Null in one operand makes the whole null, NaN in another or not.
            if found.nulls.as_ref().is_some_and(|nulls| nulls[i]) {
                continue;
            }
            let g = group(i);
            if found.nans.as_ref().is_some_and(|nans| nans[i]) {
                self.nans[g] += 1;
                continue;
            }
            if !all {
                self.counts[g] += 1;
            }
            match &found.values {
                Values::Narrow(v, _) => self.wide[g] += i128::from(v[i]),
                Values::Wide(v) => self.wide[g] += v[i],
                Values::Huge(v) => self.huge[g] = self.huge[g].plus(v[i]),
            }
        }
    }

    /// As `float4pl`, `float8pl` and `float8_accum` do, row by row.
    fn sum_floats(&mut self, rows: &Rows, transition: Transition, tame: bool) {
        let average = transition == Transition::AverageFloat;
        match &rows.column.data {
            ColumnData::F64(v) if average && tame => rows.each(|i, g| self.accumulate_tame(g, v[i])),
            ColumnData::F32(v) if average && tame => rows.each(|i, g| self.accumulate_tame(g, f64::from(v[i]))),
            ColumnData::F64(v) if average => rows.each(|i, g| self.accumulate(g, v[i])),
            ColumnData::F32(v) if average => rows.each(|i, g| self.accumulate(g, f64::from(v[i]))),
            ColumnData::F64(v) => rows.each(|i, g| {
                let sum = if self.counts[g] == 0 { v[i] } else { self.floats[g] + v[i] };
                if sum.is_infinite() && !v[i].is_infinite() && !self.floats[g].is_infinite() {
                    overflow();
                }
                self.floats[g] = sum;
                self.counts[g] += 1;
            }),
            ColumnData::F32(v) => rows.each(|i, g| {
                let before = self.floats[g] as f32;
                let sum = if self.counts[g] == 0 { v[i] } else { before + v[i] };
                if sum.is_infinite() && !v[i].is_infinite() && !before.is_infinite() {
                    overflow();
                }
                self.floats[g] = f64::from(sum);
                self.counts[g] += 1;
            }),
            _ => {}
        }
    }

    #[inline]
    fn accumulate_tame(&mut self, g: usize, v: f64) {
        self.floats[g] += v;
        self.counts[g] += 1;
    }

    fn accumulate(&mut self, g: usize, v: f64) {
        let before = self.counts[g] as f64;
        let n = before + 1.0;
        let sum = self.floats[g] + v;
        if before > 0.0 {
            let step = v * n - sum;
            self.squares[g] += step * step / (n * before);
            if sum.is_infinite() || self.squares[g].is_infinite() {
                if !self.floats[g].is_infinite() && !v.is_infinite() {
                    overflow();
                }
                self.squares[g] = f64::NAN;
            }
        } else if !v.is_finite() {
            self.squares[g] = f64::NAN;
        }
        self.floats[g] = sum;
        self.counts[g] += 1;
    }

    fn scale(&self) -> i32 {
        match (&self.expression, self.kind) {
            (Some(expression), _) => expression.scale,
            (None, Some(Kind::Numeric(scale))) => i32::from(scale),
            _ => 0,
        }
    }

    fn extreme(&mut self, rows: &Rows, larger: bool) {
        macro_rules! narrow {
            ($v:expr, $key:expr) => {
                rows.each(|i, g| {
                    self.take_narrow(g, $key($v[i]), 1, larger);
                })
            };
        }
        let scale = self.scale();
        match &rows.column.data {
            ColumnData::I16(v) => narrow!(v, i64::from),
            ColumnData::I32(v) => narrow!(v, i64::from),
            ColumnData::I64(v) => narrow!(v, |x: i64| x),
            ColumnData::F32(v) => rows.each(|i, g| self.take_float(g, f64::from(v[i]), larger)),
            ColumnData::F64(v) => rows.each(|i, g| self.take_float(g, v[i], larger)),
            ColumnData::I128(v) => rows.each(|i, g| self.take_wide(g, v[i], larger)),
            data => rows.each(|i, g| match datum::numeric_unscaled(data.bytes(i), scale) {
                Some(v) => self.take_wide(g, v, larger),
                None => self.nans[g] += 1,
            }),
        }
    }

    /// As `float8larger` and `float8smaller` do: of equal values (zeros of both signs) the later one stays.
    #[inline]
    fn take_float(&mut self, g: usize, v: f64, larger: bool) {
        let known = float_key(f64::from_bits(self.narrow[g] as u64));
        let stays = if larger { known > float_key(v) } else { known < float_key(v) };
        if self.counts[g] == 0 || !stays {
            self.narrow[g] = v.to_bits() as i64;
        }
        self.counts[g] += 1;
    }

    fn take_wide(&mut self, g: usize, v: i128, larger: bool) {
        if self.counts[g] == 0 || (v > self.wide[g]) == larger {
            self.wide[g] = v;
        }
        self.counts[g] += 1;
    }

    /// The state of a group for the Finalize Aggregate; None: null. Allocates in the current memory context.
    ///
    /// # Safety
    /// A memory context is current that lives as long as the datum is needed.
    pub unsafe fn datum(&self, g: usize) -> Option<Datum> {
        let count = self.counts[g];
        let nans = self.nans.get(g).copied().unwrap_or(0);
        // SAFETY: the caller's promise.
        unsafe {
            match self.transition? {
                Transition::CountRows | Transition::Count => Some(Datum::from(count)),
                Transition::SumInt => (count > 0).then(|| Datum::from(self.narrow[g])),
                Transition::AverageInt => {
                    let mut elements = [Datum::from(count), Datum::from(self.narrow[g])];
                    let array = pg_sys::construct_array(
                        elements.as_mut_ptr(),
                        2,
                        pg_sys::INT8OID,
                        8,
                        true,
                        pg_sys::TYPALIGN_DOUBLE as _,
                    );
                    Some(Datum::from(array))
                }
                Transition::Sum128 => (count > 0).then(|| {
                    let mut out = Vec::with_capacity(64);
                    out.extend_from_slice(&count.to_be_bytes());
                    push_sum(&mut out, self.wide[g].into(), 0);
                    bytea(&out)
                }),
                Transition::SumNumeric => (count > 0 || nans > 0).then(|| {
                    let scale = self.scale();
                    let mut out = Vec::with_capacity(96);
                    out.extend_from_slice(&count.to_be_bytes());
                    let huge = self.huge.get(g).copied().unwrap_or_default();
                    push_sum(&mut out, huge.plus(self.wide[g].into()), scale);
                    out.extend_from_slice(&(if count > 0 { scale } else { 0 }).to_be_bytes());
                    out.extend_from_slice(&count.to_be_bytes());
                    for special in [nans, 0, 0] {
                        out.extend_from_slice(&special.to_be_bytes());
                    }
                    bytea(&out)
                }),
                Transition::SumFloat => (count > 0).then(|| match self.kind {
                    Some(Kind::F32) => Datum::from((self.floats[g] as f32).to_bits() as i32),
                    _ => Datum::from(self.floats[g].to_bits() as i64),
                }),
                Transition::AverageFloat => {
                    let sum = self.floats[g];
                    let squares = if sum.is_finite() { self.squares[g] } else { f64::NAN };
                    let mut elements = [count as f64, sum, squares].map(|v| Datum::from(v.to_bits() as i64));
                    let array = pg_sys::construct_array(
                        elements.as_mut_ptr(),
                        3,
                        pg_sys::FLOAT8OID,
                        8,
                        true,
                        pg_sys::TYPALIGN_DOUBLE as _,
                    );
                    Some(Datum::from(array))
                }
                transition @ (Transition::Min | Transition::Max) => self.extreme_datum(g, transition, nans),
            }
        }
    }

    unsafe fn extreme_datum(&self, g: usize, transition: Transition, nans: i64) -> Option<Datum> {
        let (kind, count) = (self.kind?, self.counts[g]);
        // SAFETY: as for `datum`.
        unsafe {
            if let Kind::Numeric(scale) = kind {
                // NaN is larger than every number.
                return match (count > 0, nans > 0) {
                    (_, true) if transition == Transition::Max || count == 0 => Some(nan()),
                    (true, _) => Some(datum::numeric_datum(self.wide[g], i32::from(scale))),
                    _ => None,
                };
            }
            (count > 0).then(|| match kind {
                Kind::F64 => Datum::from(self.narrow[g]),
                // As Float4GetDatum: the sign goes on through the upper half.
                Kind::F32 => Datum::from((f64::from_bits(self.narrow[g] as u64) as f32).to_bits() as i32),
                Kind::Int(2) => Datum::from(self.narrow[g] as i16),
                Kind::Int(4) => Datum::from(self.narrow[g] as i32),
                _ => Datum::from(self.narrow[g]),
            })
        }
    }
}

/// The rows of a batch with their groups.
struct Rows<'a> {
    batch: &'a Batch,
    column: &'a Column,
    groups: &'a Groups,
}

impl Rows<'_> {
    /// The number of rows and their group, if all rows of the block are in one group and none is null.
    fn all_in_one(&self) -> Option<(usize, usize)> {
        match (&self.batch.selection, self.groups, &self.column.nulls) {
            (super::super::blocks::Selection::All(n), Groups::One(g), None) => Some((*n as usize, *g as usize)),
            _ => None,
        }
    }

    /// Calls `f` with the row in the block and the group of each row whose value is not null.
    #[inline]
    fn each(&self, mut f: impl FnMut(usize, usize)) {
        use super::super::blocks::Selection;
        let nulls = self.column.nulls.as_deref();
        let live = |row: usize| nulls.is_none_or(|n| !n[row]);
        match (&self.batch.selection, self.groups) {
            (Selection::All(n), Groups::One(g)) => {
                (0..*n as usize).filter(|r| live(*r)).for_each(|r| f(r, *g as usize));
            }
            (Selection::All(_), Groups::Each(groups)) => {
                groups.iter().enumerate().filter(|(r, _)| live(*r)).for_each(|(r, g)| f(r, *g as usize));
            }
            (Selection::Rows(rows), Groups::One(g)) => {
                rows.iter().map(|r| *r as usize).filter(|r| live(*r)).for_each(|r| f(r, *g as usize));
            }
            (Selection::Rows(rows), Groups::Each(groups)) => {
                let rows = rows.iter().map(|r| *r as usize);
                rows.zip(groups).filter(|(r, _)| live(*r)).for_each(|(r, g)| f(r, *g as usize));
            }
        }
    }
}

/// Whether the values of a block of floats are finite and below [`TAME`].
fn is_tame(zone: &strata_fragment::Zone) -> bool {
    let tame = |v: &Option<Value>| match v {
        Some(Value::F32(_)) => v.as_ref().is_some_and(|v| matches!(v, Value::F32(x) if x.is_finite())),
        Some(Value::F64(x)) => x.abs() < TAME,
        _ => false,
    };
    tame(&zone.min) && tame(&zone.max)
}

/// As `float_overflow_error`.
fn overflow() -> ! {
    ereport!(ERROR, PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, "value out of range: overflow");
}

/// Appends a sum as numeric.c's `numericvar_serialize` does: number of digits of base 10^4, weight, sign, scale, digits.
fn push_sum(out: &mut Vec<u8>, sum: I256, scale: i32) {
    // Groups of four decimal digits are counted from the point, so the last one is padded.
    let pad = (4 - scale % 4) % 4;
    let mut digits = sum.times(I256::from(10i128.pow(pad as u32))).digits();
    let fraction = (scale + pad) / 4;
    let weight = if digits.is_empty() { 0 } else { digits.len() as i32 - 1 - fraction };
    digits.reverse();
    const NEGATIVE: i32 = 0x4000;
    let sign = if sum.is_negative() { NEGATIVE } else { 0 };
    for word in [digits.len() as i32, weight, sign, scale] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for digit in digits {
        out.extend_from_slice(&digit.to_be_bytes());
    }
}

/// A bytea in the current memory context.
unsafe fn bytea(bytes: &[u8]) -> Datum {
    // SAFETY: a copy of the bytes behind a length word.
    unsafe { Datum::from(pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32)) }
}

/// A numeric NaN in the current memory context.
unsafe fn nan() -> Datum {
    const HEADER: [u8; 2] = 0xC000u16.to_ne_bytes();
    // SAFETY: a varlena with the header that numeric.c gives NaN.
    unsafe { Datum::from(pg_sys::cstring_to_text_with_len(HEADER.as_ptr().cast(), 2)) }
}
