//! Which fragments of a table may have values in a range, without a look at each.
//!
//! A table may have thousands of fragments, and a look-up by key, or a narrow range, needs one or two of them. A backend keeps,
//! for each column that is asked for, the largest value in the fragments up to each, and the least in those from each on. Both
//! ascend, so two binary searches give the stretch of fragments that may have values in a range. Where fragments are in the order
//! of the column, as events in the order of time are, that is the few that are needed; where they are not, it is all.
//!
//! It is made from the fragments' footers on first use, and lives as long as the backend's list of the table's fragments.

use super::datum::{self, Kind};
use super::fragments::{ColumnSource, TableFragments, column_source, store};
use crate::pg::compat;
use pgrx::pg_sys;
use pgrx::pg_sys::Datum;
use std::ops::Range;
use std::rc::Rc;
use strata_fragment::{Value, fragment_path};

/// Fewer fragments are looked at one by one.
const FEW_FRAGMENTS: usize = 8;

/// What is kept of one column that is kept as whole numbers.
#[derive(Debug)]
pub struct Summary {
    kind: Kind,
    /// By fragment: the largest value in it and those before.
    largest: Vec<i128>,
    /// By fragment: the least value in it and those behind.
    least: Vec<i128>,
    /// By fragment: the blocks of those before it.
    blocks: Vec<u64>,
}

impl Summary {
    /// The fragments that may have values in a range.
    pub fn stretch(&self, lo: i128, hi: i128) -> Range<usize> {
        let start = self.largest.partition_point(|v| *v < lo);
        let end = self.least.partition_point(|v| *v <= hi);
        start..end.max(start)
    }

    /// The number of blocks of the fragments in a stretch.
    pub fn blocks(&self, of: Range<usize>) -> u64 {
        self.blocks[of.end] - self.blocks[of.start]
    }
}

fn whole(v: &Value) -> Option<i128> {
    Some(match v {
        Value::I16(v) => i128::from(*v),
        Value::I32(v) => i128::from(*v),
        Value::I64(v) => i128::from(*v),
        Value::I128(v) => *v,
        _ => return None,
    })
}

impl TableFragments {
    /// The summary of an attribute of this kind; None if there is none: few fragments, other kinds, or a fragment that is not
    /// in the store.
    ///
    /// # Safety
    /// `tupdesc` is the table's, `attnum` an attribute of it.
    pub unsafe fn summary(&self, tupdesc: pg_sys::TupleDesc, attnum: i16, kind: Kind) -> Option<Rc<Summary>> {
        if self.list.len() < FEW_FRAGMENTS || !matches!(kind, Kind::Int(_) | Kind::Numeric(_)) {
            return None;
        }
        if let Some(known) = self.summaries.borrow().get(&attnum) {
            return known.clone().filter(|s| s.kind == kind);
        }
        // SAFETY: the caller's promise.
        let (made, final_) = unsafe { self.summarize(tupdesc, attnum, kind) };
        let made = made.map(Rc::new);
        if final_ {
            self.summaries.borrow_mut().insert(attnum, made.clone());
        }
        made
    }

    /// The fragments that may have rows whose attributes `attnums` equal `values`.
    ///
    /// # Safety
    /// `tupdesc` is the table's; the datums are of the attributes' types.
    pub unsafe fn stretch_of(&self, tupdesc: pg_sys::TupleDesc, attnums: &[i16], values: &[Datum]) -> Range<usize> {
        let mut stretch = 0..self.list.len();
        for (attnum, value) in attnums.iter().zip(values) {
            // SAFETY: the caller's promise.
            unsafe {
                let kind = datum::kind_of(compat::attribute(tupdesc, *attnum as usize - 1), false).0;
                let Some(summary) = self.summary(tupdesc, *attnum, kind) else { continue };
                let Some(v) = datum::value(kind, *value).as_ref().and_then(whole) else { continue };
                let found = summary.stretch(v, v);
                let (start, end) = (stretch.start.max(found.start), stretch.end.min(found.end));
                stretch = start..end.max(start);
            }
        }
        stretch
    }

    /// The summary, and whether another try would give the same.
    unsafe fn summarize(&self, tupdesc: pg_sys::TupleDesc, attnum: i16, kind: Kind) -> (Option<Summary>, bool) {
        let n = self.list.len();
        let mut ends: Vec<Option<(i128, i128)>> = Vec::with_capacity(n);
        let mut blocks = vec![0];
        for tf in &self.list {
            pgrx::check_for_interrupts!();
            if !tf.is_open() && !fragment_path(&store(), &tf.row.hash).exists() {
                return (None, false);
            }
            let file = tf.open();
            blocks.push(blocks[blocks.len() - 1] + file.blocks().len() as u64);
            // SAFETY: the caller's promise.
            let source = unsafe { column_source(&file, tupdesc, attnum as usize - 1) };
            let ColumnSource::Column(column, found) = source else { return (None, true) };
            let zone = file.fragment_zone(column);
            if found != kind {
                return (None, true);
            }
            if zone.all_null() {
                ends.push(None);
                continue;
            }
            match (zone.min.as_ref().and_then(whole), zone.max.as_ref().and_then(whole)) {
                (Some(min), Some(max)) => ends.push(Some((min, max))),
                _ => return (None, true),
            }
        }
        let mut largest = Vec::with_capacity(n);
        let mut most = i128::MIN;
        for e in &ends {
            most = e.map_or(most, |(_, max)| most.max(max));
            largest.push(most);
        }
        let mut least = vec![i128::MAX; n];
        let mut fewest = i128::MAX;
        for (e, to) in ends.iter().zip(&mut least).rev() {
            fewest = e.map_or(fewest, |(min, _)| fewest.min(min));
            *to = fewest;
        }
        (Some(Summary { kind, largest, least, blocks }), true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_hold_every_fragment_that_matters() {
        let s = Summary {
            kind: Kind::Int(4),
            largest: vec![10, 20, 20, 40],
            least: vec![1, 5, 5, 30],
            blocks: vec![0, 1, 2, 3, 4],
        };
        assert_eq!(s.stretch(15, 16), 1..3);
        assert_eq!(s.stretch(30, 30), 3..4);
        assert_eq!(s.stretch(0, 0), 0..0);
        assert_eq!(s.stretch(50, 60), 4..4);
        assert_eq!(s.stretch(i128::MIN, i128::MAX), 0..4);
        assert_eq!(s.stretch(9, 3), 0..1);
        assert_eq!(s.blocks(1..3), 2);
    }
}
