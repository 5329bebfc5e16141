//! The fragments of a scan, block by block: pruned, filtered, and decoded no further than asked.
//!
//! A block is handed out as a [`Batch`]: which of its rows are left after the deletion vector and the tests, and its
//! columns on demand. Blocks come from a counter (fragment in the upper half, block in the lower), which in a parallel scan
//! is shared; so a fragment is opened only by those who look at its blocks, and pruned fragments are skipped once for all.

use super::clause::Leaf;
use super::test::{Test, Verdict};
use crate::am::candidates::Candidates;
use crate::am::datum::{self, Kind};
use crate::am::fragments::{ColumnSource, TableFragment, TableFragments};
use crate::am::segments::Condition;
use crate::memory::Choice;
use pgrx::pg_sys;
use roaring::RoaringTreemap;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use strata_fragment::memory::{self, Charge, Counters};
use strata_fragment::{Column, ColumnData, Dictionary, Fragment, PhysicalType, Value, Zone};

/// What a scan did, for EXPLAIN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Fragments that zone maps excluded.
    pub fragments_pruned: u64,
    /// Fragments that were read.
    pub fragments_read: u64,
    /// Blocks that zone maps excluded, those of pruned fragments included.
    pub blocks_pruned: u64,
    /// Blocks that were read.
    pub blocks_read: u64,
    /// Fragment rows that the tests removed from blocks that were read.
    pub rows_filtered: u64,
    /// Fragment rows that came through.
    pub rows: u64,
    /// Rows of the delta store that were looked at.
    pub delta_rows: u64,
    /// Pieces of fragments that were read from files, and their bytes.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Times that something kept in memory was used instead.
    pub hits: u64,
    /// Segments of the fragment index that look-ups asked.
    pub segments_probed: u64,
    /// Fragments that look-ups asked.
    pub fragments_probed: u64,
}

impl Stats {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        self.fragments_pruned += other.fragments_pruned;
        self.fragments_read += other.fragments_read;
        self.blocks_pruned += other.blocks_pruned;
        self.blocks_read += other.blocks_read;
        self.rows_filtered += other.rows_filtered;
        self.rows += other.rows;
        self.delta_rows += other.delta_rows;
        self.reads += other.reads;
        self.read_bytes += other.read_bytes;
        self.hits += other.hits;
        self.segments_probed += other.segments_probed;
        self.fragments_probed += other.fragments_probed;
    }

    /// Adds what was read.
    pub fn add_reads(&mut self, counted: &Counters) {
        self.reads += counted.reads;
        self.read_bytes += counted.read_bytes;
        self.hits += counted.hits;
    }
}

/// A fragment that is being read.
pub struct OpenFragment {
    number: usize,
    /// The file.
    pub file: Rc<Fragment>,
    /// Where the table's attributes are.
    pub sources: Vec<ColumnSource>,
    tests: Vec<(Place, Test)>,
    /// A test could not be put to this fragment's columns: the rows must be checked against all clauses.
    recheck: bool,
    pruned: bool,
    /// Columns whose first chunk was no dictionary.
    plain: RefCell<Vec<bool>>,
}

/// Where a test is made.
#[derive(Clone, Copy, Debug)]
struct Place {
    attribute: usize,
    column: usize,
}

/// Which rows of a block are left.
#[derive(Clone, Debug)]
pub enum Selection {
    /// All of them.
    All(u32),
    /// These, ascending.
    Rows(Vec<u32>),
}

impl Selection {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::All(n) => *n as usize,
            Self::Rows(rows) => rows.len(),
        }
    }

    /// The row at a position of the selection.
    #[inline]
    pub fn row(&self, i: usize) -> usize {
        match self {
            Self::All(_) => i,
            Self::Rows(rows) => rows[i] as usize,
        }
    }
}

/// The rows of one block that a scan is interested in.
pub struct Batch {
    /// The fragment.
    pub fragment: Rc<OpenFragment>,
    /// The block's number in it.
    pub block: usize,
    /// Row id of the block's first row.
    first_row_id: u64,
    /// The row ids of the block's rows, if they are not consecutive.
    row_ids: Option<Vec<u64>>,
    /// The number of rows in the block.
    pub rows: u32,
    /// The rows that are left.
    pub selection: Selection,
    /// The rows must be checked against all clauses.
    pub recheck: bool,
    columns: Vec<Option<Rc<Column>>>,
    dictionaries: Vec<Option<Option<Rc<Dictionary>>>>,
    integers: Vec<Option<Option<Rc<Column>>>>,
    /// What was decoded.
    charge: Charge,
}

/// A scan over the fragments of one table.
pub struct BlockScan {
    table: Rc<TableFragments>,
    tupdesc: pg_sys::TupleDesc,
    deleted: RoaringTreemap,
    tests: Vec<(Leaf, Test)>,
    own: AtomicU64,
    shared: Option<*const AtomicU64>,
    current: Option<Rc<OpenFragment>>,
    /// The fragments that the tests may hold in.
    candidates: Candidates,
    choice: Choice,
    stats: Stats,
    /// What was read after the block was chosen.
    counted: Cell<Stats>,
}

/// What tests ask of the fragment index. Those that are no ranges ask only the bounds of each fragment.
pub fn conditions(tests: &[(Leaf, Test)]) -> Vec<Condition<'_>> {
    let mut all = Vec::with_capacity(tests.len());
    for (leaf, test) in tests {
        let excludes = Box::new(|zone: &Zone| test.verdict(zone) == Verdict::None);
        all.push(Condition { attnum: leaf.attnum, kind: leaf.kind, between: test.between(), excludes });
    }
    all
}

/// The fragments that the tests may hold in, as far as the fragment index knows.
pub fn candidates(table: &TableFragments, tupdesc: pg_sys::TupleDesc, tests: &[(Leaf, Test)]) -> Candidates {
    if tests.is_empty() {
        return Candidates::all(table.list.len());
    }
    // SAFETY: the leaves' attributes are the descriptor's, which is the table's.
    unsafe { table.index().candidates(tupdesc, &conditions(tests)) }
}

impl BlockScan {
    /// A scan of the rows that satisfy all `tests` and are not in `deleted`, with the access that was chosen. Who shares the
    /// counter shares the work.
    pub fn new(
        table: Rc<TableFragments>,
        tupdesc: pg_sys::TupleDesc,
        deleted: RoaringTreemap,
        tests: Vec<(Leaf, Test)>,
        shared: Option<*const AtomicU64>,
        choice: Choice,
    ) -> Self {
        let candidates = candidates(&table, tupdesc, &tests);
        let (stats, counted, own) = (Stats::default(), Cell::default(), AtomicU64::new(0));
        Self { table, tupdesc, deleted, tests, own, shared, current: None, candidates, choice, stats, counted }
    }

    /// What was done.
    pub fn stats(&self) -> Stats {
        let mut stats = self.stats;
        stats.add(&self.counted.get());
        stats
    }

    /// Does something that reads, and counts that.
    fn counting<R>(&self, read: impl FnOnce() -> R) -> R {
        let before = memory::counters();
        let result = read();
        let mut counted = self.counted.get();
        counted.add_reads(&memory::counters().since(&before));
        self.counted.set(counted);
        result
    }

    /// The deletion vector, for the next scan with the same snapshot.
    pub fn into_deleted(self) -> RoaringTreemap {
        self.deleted
    }

    fn counter(&self) -> &AtomicU64 {
        match self.shared {
            // SAFETY: the counter is in the dynamic shared memory of the parallel scan, which outlives it.
            Some(shared) => unsafe { &*shared },
            None => &self.own,
        }
    }

    /// The next block with rows in it.
    pub fn next(&mut self) -> Option<Batch> {
        if self.tests.iter().any(|(_, t)| *t == Test::Never) {
            return None;
        }
        loop {
            let at = self.counter().load(Ordering::Relaxed);
            let (number, block) = ((at >> 32) as usize, (at & u64::from(u32::MAX)) as usize);
            if number >= self.table.list.len() {
                return None;
            }
            let to = self.candidates.next(number).unwrap_or(self.table.list.len());
            if to != number {
                // All participants of a parallel scan have the same candidates; one of them counts what is left out.
                let next = (to as u64) << 32;
                if self.counter().compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    self.stats.fragments_pruned += (to - number) as u64;
                    self.stats.blocks_pruned += self.table.index().blocks(number..to);
                }
                continue;
            }
            pgrx::check_for_interrupts!();
            let fragment = self.open(number);
            let blocks = fragment.file.blocks().len();
            let done = fragment.pruned || block >= blocks;
            let next = if done { ((number + 1) as u64) << 32 } else { at + 1 };
            if self.counter().compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                continue;
            }
            if done {
                if fragment.pruned {
                    self.stats.fragments_pruned += 1;
                    self.stats.blocks_pruned += blocks as u64;
                } else {
                    self.stats.fragments_read += 1;
                }
                continue;
            }
            if let Some(batch) = self.block(fragment, block) {
                self.stats.rows += batch.selection.len() as u64;
                return Some(batch);
            }
        }
    }

    fn open(&mut self, number: usize) -> Rc<OpenFragment> {
        if let Some(current) = self.current.as_ref().filter(|c| c.number == number) {
            return Rc::clone(current);
        }
        let tf = &self.table.list[number];
        let file = tf.open();
        // SAFETY: the descriptor is the table's.
        let sources = unsafe { tf.columns(&file, self.tupdesc) };
        let mut open = OpenFragment {
            number,
            tests: Vec::with_capacity(self.tests.len()),
            recheck: false,
            pruned: false,
            plain: RefCell::new(vec![false; sources.len()]),
            file,
            sources,
        };
        for (leaf, test) in &self.tests {
            match bind(leaf, test, &open.file, &open.sources) {
                Bound::Column(place) => {
                    open.pruned |= test.verdict(open.file.fragment_zone(place.column)) == Verdict::None;
                    open.tests.push((place, test.clone()));
                }
                Bound::Constant(holds) => open.pruned |= !holds,
                Bound::Unknown => open.recheck = true,
            }
        }
        if !open.pruned {
            self.counting(|| open.file.begin(self.choice.access, self.choice.at_once));
        }
        let open = Rc::new(open);
        self.current = Some(Rc::clone(&open));
        open
    }

    /// The rows of a block that are left; None: none.
    fn block(&mut self, fragment: Rc<OpenFragment>, block: usize) -> Option<Batch> {
        let info = fragment.file.blocks()[block];
        let tf = &self.table.list[fragment.number];
        let first_row_id = tf.row_id(info.first_row);
        let mut open_tests: Vec<(Place, Test)> = Vec::new();
        for (place, test) in &fragment.tests {
            match test.verdict(fragment.file.zone(block, place.column)) {
                Verdict::None => {
                    self.stats.blocks_pruned += 1;
                    return None;
                }
                Verdict::All => {}
                Verdict::Some => open_tests.push((*place, test.clone())),
            }
        }
        self.stats.blocks_read += 1;
        let mut mask: Option<Vec<bool>> = None;
        let row_ids = tf.sparse_row_ids(info.first_row, info.rows as usize);
        let end = row_ids.as_ref().and_then(|ids| ids.last()).unwrap_or(&(first_row_id + u64::from(info.rows) - 1)) + 1;
        if self.deleted.range_cardinality(first_row_id..end) > 0 {
            let mask = mask.get_or_insert_with(|| vec![true; info.rows as usize]);
            let mut deleted = self.deleted.iter();
            deleted.advance_to(first_row_id);
            for row_id in deleted.take_while(|row_id| *row_id < end) {
                let at = match &row_ids {
                    None => Some((row_id - first_row_id) as usize),
                    Some(ids) => ids.binary_search(&row_id).ok(),
                };
                if let Some(at) = at {
                    mask[at] = false;
                }
            }
        }
        let attributes = fragment.sources.len();
        let mut batch = Batch {
            recheck: fragment.recheck,
            fragment,
            block,
            first_row_id,
            row_ids,
            rows: info.rows,
            selection: Selection::All(info.rows),
            columns: vec![None; attributes],
            dictionaries: vec![None; attributes],
            integers: vec![None; attributes],
            charge: Charge::default(),
        };
        let live = mask.as_ref().map_or(info.rows as usize, |m| m.iter().filter(|x| **x).count());
        let before = memory::counters();
        for (place, test) in &open_tests {
            let mask = mask.get_or_insert_with(|| vec![true; info.rows as usize]);
            if let Some(dictionary) = batch.dictionary(&self.table, place.attribute) {
                test.filter_codes(&dictionary, mask);
            } else if let Some(integers) = batch.decimals(&self.table, place.attribute) {
                test.filter(&integers, mask);
            } else {
                test.filter(&batch.column(&self.table, self.tupdesc, place.attribute), mask);
            }
            if !mask.contains(&true) {
                break;
            }
        }
        self.stats.add_reads(&memory::counters().since(&before));
        if let Some(mask) = mask {
            let rows: Vec<u32> = (0u32..).zip(&mask).filter(|(_, keep)| **keep).map(|(i, _)| i).collect();
            self.stats.rows_filtered += (live - rows.len()) as u64;
            if rows.is_empty() {
                return None;
            }
            if rows.len() < mask.len() {
                batch.selection = Selection::Rows(rows);
            }
        }
        Some(batch)
    }

    /// The decoded column of an attribute.
    pub fn column(&self, batch: &mut Batch, attribute: usize) -> Rc<Column> {
        self.counting(|| batch.column(&self.table, self.tupdesc, attribute))
    }

    /// A column of bytes as codes into its distinct values, if it is kept like that.
    pub fn dictionary(&self, batch: &mut Batch, attribute: usize) -> Option<Rc<Dictionary>> {
        self.counting(|| batch.dictionary(&self.table, attribute))
    }

    /// The decoded column of whole numbers or decimals as 64-bit integers, if they fit.
    pub fn integers(&self, batch: &mut Batch, attribute: usize) -> Option<Rc<Column>> {
        self.counting(|| batch.integers(&self.table, attribute))
    }

    /// One value.
    pub fn value(&self, batch: &Batch, column: usize, row: usize) -> Value {
        let tf = &self.table.list[batch.fragment.number];
        self.counting(|| tf.check(batch.fragment.file.value(batch.block, column, row as u32)))
    }

    /// Whether the column of an attribute is decoded already.
    pub fn is_decoded(&self, batch: &Batch, attribute: usize) -> bool {
        batch.columns[attribute].is_some()
    }
}

impl Batch {
    /// The row id of a row of the block.
    #[inline]
    pub fn row_id(&self, row: usize) -> u64 {
        match &self.row_ids {
            None => self.first_row_id + row as u64,
            Some(ids) => ids[row],
        }
    }

    fn dictionary(&mut self, table: &TableFragments, attribute: usize) -> Option<Rc<Dictionary>> {
        if let Some(known) = &self.dictionaries[attribute] {
            return known.clone();
        }
        let ColumnSource::Column(column, _) = self.fragment.sources[attribute] else { return None };
        let bytes = self.fragment.file.schema().columns[column].ty.is_bytes();
        if !bytes || self.fragment.plain.borrow()[attribute] || self.columns[attribute].is_some() {
            return None;
        }
        let tf = &table.list[self.fragment.number];
        let found = tf.check(self.fragment.file.read_dictionary(self.block, column)).map(Rc::new);
        if let Some(dictionary) = &found {
            self.charge.add(dictionary.memory_bytes());
        } else {
            self.fragment.plain.borrow_mut()[attribute] = true;
        }
        self.dictionaries[attribute] = Some(found.clone());
        found
    }

    /// Decimals as 64-bit integers, of half the size.
    fn decimals(&mut self, table: &TableFragments, attribute: usize) -> Option<Rc<Column>> {
        let numeric = matches!(self.fragment.sources[attribute], ColumnSource::Column(_, Kind::Numeric(_)));
        if numeric && self.columns[attribute].is_none() { self.integers(table, attribute) } else { None }
    }

    fn integers(&mut self, table: &TableFragments, attribute: usize) -> Option<Rc<Column>> {
        if let Some(known) = &self.integers[attribute] {
            return known.clone();
        }
        let ColumnSource::Column(column, _) = self.fragment.sources[attribute] else { return None };
        let found = match self.fragment.file.schema().columns[column].ty {
            PhysicalType::Decimal { .. } | PhysicalType::I16 | PhysicalType::I32 | PhysicalType::I64 => {
                let tf = &table.list[self.fragment.number];
                tf.check(self.fragment.file.read_integers(self.block, column)).map(Rc::new)
            }
            _ => None,
        };
        self.charge.add(found.as_ref().map_or(0, |c| c.memory_bytes()));
        self.integers[attribute] = Some(found.clone());
        found
    }

    fn column(&mut self, table: &TableFragments, tupdesc: pg_sys::TupleDesc, attribute: usize) -> Rc<Column> {
        if let Some(column) = &self.columns[attribute] {
            return Rc::clone(column);
        }
        let column = match self.fragment.sources[attribute] {
            ColumnSource::Column(c, _) => {
                table.list[self.fragment.number].check(self.fragment.file.read(self.block, c))
            }
            ColumnSource::Missing(datum, is_null) => {
                Rc::new(missing(tupdesc, attribute, datum, is_null, self.rows as usize))
            }
        };
        // What is kept is counted already.
        if Rc::strong_count(&column) == 1 {
            self.charge.add(column.memory_bytes());
        }
        self.columns[attribute] = Some(Rc::clone(&column));
        column
    }

    /// The zone map of an attribute in this block, if the fragment has the attribute.
    pub fn zone(&self, attribute: usize) -> Option<&Zone> {
        match self.fragment.sources[attribute] {
            ColumnSource::Column(c, _) => Some(self.fragment.file.zone(self.block, c)),
            ColumnSource::Missing(..) => None,
        }
    }
}

/// A column that the fragment does not have: one value for all rows.
fn missing(tupdesc: pg_sys::TupleDesc, attribute: usize, value: pg_sys::Datum, is_null: bool, rows: usize) -> Column {
    // SAFETY: the attribute is one of the descriptor's, and the datum is of its type.
    let (ty, value) = unsafe {
        let attr = crate::pg::compat::attribute(tupdesc, attribute);
        let (kind, ty) = datum::kind_of(attr, false);
        let value = if is_null {
            Value::Null
        } else {
            // A numeric that is no whole number of the column's scale (NaN) stays as its bytes.
            datum::value(kind, value).unwrap_or_else(|| Value::Bytes(datum::varlena_bytes(value).to_vec()))
        };
        (ty, value)
    };
    let data = match &value {
        Value::Bool(v) => ColumnData::Bool(vec![*v; rows]),
        Value::I16(v) => ColumnData::I16(vec![*v; rows]),
        Value::I32(v) => ColumnData::I32(vec![*v; rows]),
        Value::I64(v) => ColumnData::I64(vec![*v; rows]),
        Value::F32(v) => ColumnData::F32(vec![*v; rows]),
        Value::F64(v) => ColumnData::F64(vec![*v; rows]),
        Value::I128(v) => ColumnData::I128(vec![*v; rows]),
        Value::Bytes(v) => {
            ColumnData::Bytes { offsets: (0..=rows).map(|i| (i * v.len()) as u32).collect(), data: v.repeat(rows) }
        }
        Value::Null => empty(ty, rows),
    };
    Column { data, nulls: value.is_null().then(|| vec![true; rows]) }
}

/// Rows without a value.
fn empty(ty: PhysicalType, rows: usize) -> ColumnData {
    match ty {
        PhysicalType::Bool => ColumnData::Bool(vec![false; rows]),
        PhysicalType::I16 => ColumnData::I16(vec![0; rows]),
        PhysicalType::I32 => ColumnData::I32(vec![0; rows]),
        PhysicalType::I64 => ColumnData::I64(vec![0; rows]),
        PhysicalType::F32 => ColumnData::F32(vec![0.0; rows]),
        PhysicalType::F64 => ColumnData::F64(vec![0.0; rows]),
        PhysicalType::Decimal { .. } => ColumnData::I128(vec![0; rows]),
        PhysicalType::Utf8 | PhysicalType::Binary | PhysicalType::Fixed(_) => {
            ColumnData::Bytes { offsets: vec![0; rows + 1], data: Vec::new() }
        }
    }
}

/// How a test is put to a fragment.
enum Bound {
    Column(Place),
    /// The fragment was written without the column: the same for all rows.
    Constant(bool),
    /// The column is kept in another way than the test is made for.
    Unknown,
}

fn bind(leaf: &Leaf, test: &Test, file: &Fragment, sources: &[ColumnSource]) -> Bound {
    let attribute = leaf.attnum as usize - 1;
    let any_kind = matches!(test, Test::Null(_));
    match sources.get(attribute) {
        Some(ColumnSource::Column(column, kind)) => {
            let decimal = match (kind, file.schema().columns[*column].ty) {
                (datum::Kind::Numeric(s), PhysicalType::Decimal { scale, .. }) => i32::from(*s) == i32::from(scale),
                (_, PhysicalType::Decimal { .. }) => false,
                _ => true,
            };
            if any_kind || (*kind == leaf.kind && decimal) {
                Bound::Column(Place { attribute, column: *column })
            } else {
                Bound::Unknown
            }
        }
        Some(ColumnSource::Missing(_, true)) => Bound::Constant(test.holds(&Value::Null)),
        Some(ColumnSource::Missing(value, false)) => {
            // SAFETY: the datum is of the attribute's type, from which the leaf's kind was made.
            match unsafe { datum::value(leaf.kind, *value) } {
                Some(value) => Bound::Constant(test.holds(&value)),
                None => Bound::Unknown,
            }
        }
        None => Bound::Unknown,
    }
}

/// At most so many fragments are opened for an estimate.
const OPENED: usize = 8;

/// How much of a table the tests leave: fragments that the index does not exclude, and of these the blocks that zone maps do not
/// exclude. Where more than a few are left, the blocks of some of them stand for the others'. Only fragments whose files are here
/// are looked at; `local` says which.
pub fn estimate(
    table: &TableFragments,
    tupdesc: pg_sys::TupleDesc,
    tests: &[(Leaf, Test)],
    local: impl Fn(&crate::am::fragments::TableFragment) -> bool,
) -> Estimate {
    let mut estimate = Estimate { rows: table.rows(), ..Estimate::default() };
    if tests.iter().any(|(_, t)| *t == Test::Never) {
        return estimate;
    }
    if tests.is_empty() {
        (estimate.kept, estimate.bytes) = (table.rows(), table.bytes());
        return estimate;
    }
    let candidates = candidates(table, tupdesc, tests);
    let step = candidates.len().div_ceil(OPENED).max(1);
    let (mut seen, mut kept) = (0, 0);
    let (mut rows, mut bytes) = (0, 0);
    for (i, number) in candidates.numbers().enumerate() {
        let tf = &table.list[number];
        rows += tf.row.row_count;
        bytes += tf.row.bytes;
        if i % step == step / 2 && local(tf) {
            seen += tf.row.row_count;
            kept += kept_rows(tf, tupdesc, tests);
        }
    }
    let part = |of: u64| if seen == 0 { of } else { (u128::from(of) * u128::from(kept) / u128::from(seen)) as u64 };
    (estimate.kept, estimate.bytes) = (part(rows), part(bytes));
    estimate
}

/// The rows of the blocks of a fragment that the tests leave.
fn kept_rows(tf: &TableFragment, tupdesc: pg_sys::TupleDesc, tests: &[(Leaf, Test)]) -> u64 {
    let file = tf.open();
    // SAFETY: the descriptor is the table's.
    let sources = unsafe { tf.columns(&file, tupdesc) };
    let bound: Vec<(Bound, &Test)> = tests.iter().map(|(l, t)| (bind(l, t, &file, &sources), t)).collect();
    let excluded = |zone: &dyn Fn(usize) -> Zone| {
        bound.iter().any(|(b, t)| match b {
            Bound::Column(p) => t.verdict(&zone(p.column)) == Verdict::None,
            Bound::Constant(holds) => !holds,
            Bound::Unknown => false,
        })
    };
    if excluded(&|c| file.fragment_zone(c).clone()) {
        return 0;
    }
    let blocks = file.blocks().iter().enumerate();
    blocks.filter(|(b, _)| !excluded(&|c| file.zone(*b, c).clone())).map(|(_, info)| u64::from(info.rows)).sum()
}

/// What [`estimate`] found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimate {
    /// Rows of all fragments.
    pub rows: u64,
    /// Rows of the blocks that must be read.
    pub kept: u64,
    /// Their share of the files' bytes.
    pub bytes: u64,
}
