//! The fragment index as a backend uses it: which fragments may have a key, a range of values, a row id.
//!
//! ```text
//!   strata.segment ─ directories ─► Index (with the backend's list of the table's fragments)
//!                                    │ bounds of a column, by segment: least and largest up to each fragment
//!   strata.segment_page ─ cache ────►│ key maps
//!                                    ▼
//!                     numbers of fragments in the list that may matter
//! ```
//!
//! The directories are read once and live as long as the backend's list of the table's fragments, which a change of either
//! invalidates. No fragment is opened for an answer. Pages are read when a key falls into them; a bounded number stays in memory.
//!
//! * **Ranges.** Within a segment a backend keeps, for each column that is asked for, the largest value in the fragments up to each,
//!   and the least in those from each on. Both ascend, so two binary searches give the stretch of its fragments that may have values in a
//!   range; then the bounds of each of these count. Where fragments are in the order of the column, as events in the order of time are,
//!   that is the one or two that are needed.
//! * **Keys.** A segment whose fragments cannot be told apart by the bounds of a unique key has a key map for it ([`strata_fragment::segment`]),
//!   which leads to row ids, and these to fragments.
//! * **Row ids.** Segments divide the row ids; the fragment is searched among those of one segment.
//!
//! **Nothing is excluded that is not known.** A fragment that is in no segment, because one was lost or is damaged, always is a
//! candidate, with a WARNING that names `strata.rebuild_index`. So is a fragment of which a key map does not know all row ids (the pages
//! may be older than the fragment), and every fragment of a segment whose page is missing or damaged. A member of a directory counts
//! only if the list has a fragment with its first row id *and* its hash. What is left is what the fragments say themselves.

use super::candidates::Candidates;
use super::datum::{self, Kind};
use super::fragments::TableFragments;
use crate::pg::catalog::FragmentRow;
use crate::pg::segment_rows;
use crate::pg::{compat, qualified_name};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use strata_fragment::segment::{Directory, KeyMap, Place, SegmentDamage, key_hash, order_key};
use strata_fragment::{PhysicalType, Value, Zone};

/// The memory that a backend's pages may take.
const CACHE_BYTES: usize = 8 << 20;

/// What this session asked of the index.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Look-ups of a key.
    pub lookups: u64,
    /// Segments that these asked.
    pub segments_probed: u64,
    /// Pages that were read from the catalog.
    pub pages_read: u64,
    /// Fragments that were asked for a key.
    pub fragments_probed: u64,
    /// Row ids whose fragment was looked for.
    pub row_ids: u64,
    /// Times that something was damaged or missing.
    pub damaged: u64,
}

thread_local! {
    static COUNTERS: Cell<Counters> = Cell::default();
    static PAGES: RefCell<Pages> = RefCell::default();
}

/// The counters of this session.
pub fn counters() -> Counters {
    COUNTERS.get()
}

/// Changes the counters.
pub fn count(f: impl FnOnce(&mut Counters)) {
    let mut counters = COUNTERS.get();
    f(&mut counters);
    COUNTERS.set(counters);
}

/// The table of the pages, a segment and the number of one of its pages.
type PageKey = (pg_sys::Oid, i64, u32);

/// Pages in memory, each with when it was last asked for. A page never changes and its segment's number is never
/// used again as long as the table is there, so nothing has to be forgotten. (An extension that is created anew has another table.)
#[derive(Default)]
struct Pages {
    pages: HashMap<PageKey, (u64, Rc<Vec<u8>>)>,
    bytes: usize,
    clock: u64,
}

impl Pages {
    fn get(&mut self, key: PageKey) -> Option<Rc<Vec<u8>>> {
        self.clock += 1;
        let entry = self.pages.get_mut(&key)?;
        entry.0 = self.clock;
        Some(Rc::clone(&entry.1))
    }

    fn put(&mut self, key: PageKey, page: Rc<Vec<u8>>) {
        self.clock += 1;
        self.bytes += page.len();
        self.pages.insert(key, (self.clock, page));
        if self.bytes > CACHE_BYTES {
            let mut ages: Vec<u64> = self.pages.values().map(|(at, _)| *at).collect();
            let middle = ages.len() / 2;
            let (_, median, _) = ages.select_nth_unstable(middle);
            let median = *median;
            self.pages.retain(|_, (at, _)| *at >= median);
            self.bytes = self.pages.values().map(|(_, page)| page.len()).sum();
        }
    }
}

/// A checked page of a segment.
fn page(segment: i64, map: &KeyMap, number: u32) -> Result<Rc<Vec<u8>>, SegmentDamage> {
    let missing = || SegmentDamage(format!("page {number} is missing"));
    let key = (segment_rows::page_table().ok_or_else(missing)?, segment, number);
    if let Some(page) = PAGES.with_borrow_mut(|pages| pages.get(key)) {
        return Ok(page);
    }
    let page = segment_rows::page(segment, number);
    let page = Rc::new(page.ok_or_else(missing)?);
    map.check_page(number, &page)?;
    count(|c| c.pages_read += 1);
    PAGES.with_borrow_mut(|pages| pages.put(key, Rc::clone(&page)));
    Ok(page)
}

/// What a condition on a column asks of the index.
pub struct Condition<'a> {
    /// The column.
    pub attnum: i16,
    /// How its values are kept; bounds of fragments that keep them in another way say nothing.
    pub kind: Kind,
    /// Between which [order keys](order_key) a value must be, if that is known.
    pub between: Option<(i128, i128)>,
    /// Whether no row of a fragment with these bounds satisfies it.
    pub excludes: Box<dyn Fn(&Zone) -> bool + 'a>,
}

/// A segment and where its fragments are in the list.
struct Segment {
    id: i64,
    directory: Directory,
    /// By member: its number in the list. Members that are not there any more have none.
    numbers: Vec<Option<usize>>,
    /// By key map: the members of which it does not know all row ids.
    unknown: Vec<Vec<usize>>,
}

/// The bounds of a column that is kept in one way, over all segments.
struct Bounds {
    /// By segment, by member: what is known.
    zones: Vec<Vec<Option<Zone>>>,
    /// By segment, by member: the largest [order key](order_key) in it and those before; the least in it and those behind.
    largest: Vec<Vec<i128>>,
    least: Vec<Vec<i128>>,
}

/// The index of one table.
pub struct Index {
    /// Row ids of the fragments, to find them by.
    starts: Vec<u64>,
    ends: Vec<u64>,
    segments: Vec<Segment>,
    /// Fragments that are in no segment.
    outside: Vec<usize>,
    /// By fragment, and one more: the blocks of those before it, as far as they are known.
    blocks: Vec<u64>,
    bounds: RefCell<HashMap<(i16, KindKey), Rc<Bounds>>>,
    relid: pg_sys::Oid,
}

/// [`Kind`] as a key.
type KindKey = (std::mem::Discriminant<Kind>, u32);

fn kind_key(kind: Kind) -> KindKey {
    let more = match kind {
        Kind::Int(n) | Kind::Numeric(n) => n.into(),
        Kind::Fixed(n) => n,
        _ => 0,
    };
    (std::mem::discriminant(&kind), more)
}

/// How a column that a fragment keeps as `ty` gives datums of the attribute; see [`super::fragments::column_source`].
pub fn kind_in(attr: &pg_sys::FormData_pg_attribute, ty: PhysicalType) -> Kind {
    match ty {
        PhysicalType::Decimal { scale, .. } => Kind::Numeric(scale as u8),
        ty => datum::kind_of(attr, ty == PhysicalType::Binary).0,
    }
}

/// Ranges of row ids, ascending and apart, made of places.
pub fn covered(places: impl IntoIterator<Item = Place>) -> Vec<Place> {
    let mut places: Vec<Place> = places.into_iter().collect();
    places.sort_unstable_by_key(|p| p.first);
    let mut apart: Vec<Place> = Vec::new();
    for p in places {
        match apart.last_mut() {
            Some(last) if last.end >= p.first => last.end = last.end.max(p.end),
            _ => apart.push(p),
        }
    }
    apart
}

/// Whether all row ids of a fragment are in these ranges, which are [`covered`].
pub fn is_covered(row: &FragmentRow, ranges: &[Place]) -> bool {
    let end = row.end();
    let first = ranges.partition_point(|p| p.end <= row.first_row_id);
    let within = ranges[first..].iter().take_while(|p| p.first < end);
    match &row.row_ids {
        None => within.clone().next().is_some_and(|p| p.first <= row.first_row_id && end <= p.end),
        Some(ids) => {
            let offset = |row_id: u64| row_id.saturating_sub(row.first_row_id).min(end - row.first_row_id) as u32;
            let known: u64 = within.map(|p| ids.range_cardinality(offset(p.first)..offset(p.end))).sum();
            known == row.row_count
        }
    }
}

impl Index {
    /// Reads the index of the table whose fragments are in `list`; `owner` and `filenode` name it in the catalog.
    pub fn load<'a>(
        relid: pg_sys::Oid,
        owner: pg_sys::Oid,
        filenode: pg_sys::Oid,
        list: impl Iterator<Item = &'a FragmentRow>,
    ) -> Self {
        let rows: Vec<&FragmentRow> = list.collect();
        let mut index = Self {
            starts: rows.iter().map(|r| r.first_row_id).collect(),
            ends: rows.iter().map(|r| r.end()).collect(),
            segments: Vec::new(),
            outside: Vec::new(),
            blocks: Vec::new(),
            bounds: RefCell::default(),
            relid,
        };
        let mut blocks: Vec<Option<u32>> = vec![None; rows.len()];
        for stored in segment_rows::read(owner, filenode) {
            let directory = match Directory::decode(&stored.directory) {
                Ok(directory) => directory,
                Err(damage) => {
                    index.warn(stored.id, &damage);
                    continue;
                }
            };
            let find = |first: u64| index.starts.binary_search(&first).ok();
            let numbers: Vec<Option<usize>> = directory
                .members
                .iter()
                .map(|m| find(m.first_row_id).filter(|n| m.has_hash(&rows[*n].hash) && m.end == index.ends[*n]))
                .collect();
            for (number, m) in numbers.iter().zip(&directory.members) {
                if let Some(n) = number {
                    blocks[*n] = Some(m.blocks);
                }
            }
            let unknown = directory
                .key_maps
                .iter()
                .map(|map| {
                    let ranges = covered(map.places.iter().copied());
                    let not = |n: &usize| !is_covered(rows[*n], &ranges);
                    numbers.iter().flatten().copied().filter(not).collect()
                })
                .collect();
            index.segments.push(Segment { id: stored.id, directory, numbers, unknown });
        }
        index.segments.sort_by_key(|s| s.directory.members.first().map(|m| m.first_row_id));
        index.outside = blocks.iter().enumerate().filter(|(_, b)| b.is_none()).map(|(n, _)| n).collect();
        let mut before = 0;
        index.blocks.push(0);
        for b in blocks {
            before += u64::from(b.unwrap_or(0));
            index.blocks.push(before);
        }
        if !index.outside.is_empty() && segment_rows::is_there() {
            let what = format!("{} of {} fragments are in no segment of it", index.outside.len(), rows.len());
            report(relid, what);
        }
        index
    }

    fn warn(&self, segment: i64, damage: &SegmentDamage) {
        report(self.relid, format!("Segment {segment}: {damage}."));
    }

    /// The number of segments.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Whether a key map knows the keys of all these attributes in every segment of more than one fragment.
    pub fn maps_key(&self, attnums: &[i16]) -> bool {
        !self.segments.is_empty()
            && self.segments.iter().all(|s| s.numbers.len() < 2 || s.map_of(attnums).is_some())
            && self.segments.iter().any(|s| s.map_of(attnums).is_some())
    }

    /// The blocks of the fragments in a stretch, as far as they are known.
    pub fn blocks(&self, of: Range<usize>) -> u64 {
        self.blocks[of.end] - self.blocks[of.start]
    }

    /// The sort key of the newest fragment that is known, as attribute numbers.
    pub fn sort_key(&self) -> Option<&[i16]> {
        let directory = &self.segments.last()?.directory;
        let last = directory.members.len().checked_sub(1)?;
        Some(&directory.layout(last).sort_key)
    }

    /// Among which fragments of the list the row is, by the segments' row ids.
    pub fn stretch_of_row(&self, row_id: u64) -> Range<usize> {
        let all = 0..self.starts.len();
        let first = |s: &Segment| s.directory.members.first().map_or(u64::MAX, |m| m.first_row_id);
        let Some(i) = self.segments.partition_point(|s| first(s) <= row_id).checked_sub(1) else { return all };
        let s = &self.segments[i];
        match (s.numbers.first().copied().flatten(), s.numbers.last().copied().flatten()) {
            // Fragments that the segment does not know may lie before the next one.
            (Some(start), Some(end)) if self.outside.is_empty() => start..end + 1,
            _ => all,
        }
    }

    /// The bounds of an attribute that is kept as `kind`.
    ///
    /// # Safety
    /// `tupdesc` is the table's, `attnum` an attribute of it.
    unsafe fn bounds(&self, tupdesc: pg_sys::TupleDesc, attnum: i16, kind: Kind) -> Rc<Bounds> {
        let key = (attnum, kind_key(kind));
        if let Some(known) = self.bounds.borrow().get(&key) {
            return Rc::clone(known);
        }
        // SAFETY: the caller's promise.
        let attr = unsafe { compat::attribute(tupdesc, attnum as usize - 1) };
        let mut bounds = Bounds { zones: Vec::new(), largest: Vec::new(), least: Vec::new() };
        for s in &self.segments {
            let mut zones = s.directory.zones(attnum).unwrap_or_else(|damage| {
                self.warn(s.id, &damage);
                vec![None; s.numbers.len()]
            });
            // By layout: whether the column is kept in this way.
            let fits: Vec<bool> = s
                .directory
                .layouts
                .iter()
                .map(|l| l.columns.iter().any(|(a, ty)| *a == attnum && kind_in(attr, *ty) == kind))
                .collect();
            for (zone, m) in zones.iter_mut().zip(&s.directory.members) {
                if attr.attisdropped || !fits[m.layout as usize] {
                    *zone = None;
                }
            }
            let ends: Vec<(i128, i128)> = zones.iter().map(|z| ends(z.as_ref())).collect();
            let mut most = i128::MIN;
            let largest = ends.iter().map(|(_, max)| {
                most = most.max(*max);
                most
            });
            bounds.largest.push(largest.collect());
            let mut fewest = i128::MAX;
            let mut least: Vec<i128> = ends
                .iter()
                .rev()
                .map(|(min, _)| {
                    fewest = fewest.min(*min);
                    fewest
                })
                .collect();
            least.reverse();
            bounds.least.push(least);
            bounds.zones.push(zones);
        }
        let bounds = Rc::new(bounds);
        self.bounds.borrow_mut().insert(key, Rc::clone(&bounds));
        bounds
    }

    /// What the values of an attribute lie between, if all fragments tell: no value at all is None inside.
    ///
    /// # Safety
    /// As for [`Index::bounds`].
    pub unsafe fn span(&self, tupdesc: pg_sys::TupleDesc, attnum: i16, kind: Kind) -> Option<Option<(i128, i128)>> {
        if !self.outside.is_empty() {
            return None;
        }
        // SAFETY: the caller's promise.
        let bounds = unsafe { self.bounds(tupdesc, attnum, kind) };
        let (mut lo, mut hi) = (i128::MAX, i128::MIN);
        for (s, zones) in self.segments.iter().zip(&bounds.zones) {
            for (_, zone) in s.numbers.iter().zip(zones).filter(|(n, _)| n.is_some()) {
                let (min, max) = ends(Some(zone.as_ref()?));
                (lo, hi) = (lo.min(min), hi.max(max));
            }
        }
        Some((lo <= hi).then_some((lo, hi)))
    }

    /// The fragments in which all conditions may hold for some row.
    ///
    /// # Safety
    /// `tupdesc` is the table's, the conditions are on attributes of it.
    pub unsafe fn candidates(&self, tupdesc: pg_sys::TupleDesc, conditions: &[Condition]) -> Candidates {
        let mut found = self.outside.clone();
        // SAFETY: the caller's promise.
        let bounds: Vec<Rc<Bounds>> =
            conditions.iter().map(|c| unsafe { self.bounds(tupdesc, c.attnum, c.kind) }).collect();
        for i in 0..self.segments.len() {
            self.within(i, conditions, &bounds, &mut found);
        }
        Candidates::from_numbers(found, self.segments.len() as u64)
    }

    /// The members of a segment in which the conditions may hold, as far as the ends up to each and from each on tell.
    fn stretch(&self, i: usize, conditions: &[Condition], bounds: &[Rc<Bounds>]) -> Range<usize> {
        let mut stretch = 0..self.segments[i].numbers.len();
        for (c, b) in conditions.iter().zip(bounds) {
            let Some((lo, hi)) = c.between else { continue };
            let start = b.largest[i].partition_point(|v| *v < lo);
            let end = b.least[i].partition_point(|v| *v <= hi);
            stretch = stretch.start.max(start)..stretch.end.min(end);
        }
        stretch
    }

    /// Whether some condition holds for no row of a member.
    fn excluded(&self, i: usize, m: usize, conditions: &[Condition], bounds: &[Rc<Bounds>]) -> bool {
        let excludes = |(c, b): (&Condition, &Rc<Bounds>)| b.zones[i][m].as_ref().is_some_and(|z| (c.excludes)(z));
        conditions.iter().zip(bounds).any(excludes)
    }

    /// Adds the fragments of a segment in which all conditions may hold.
    fn within(&self, i: usize, conditions: &[Condition], bounds: &[Rc<Bounds>], found: &mut Vec<usize>) {
        for m in self.stretch(i, conditions, bounds) {
            if let Some(number) = self.segments[i].numbers[m]
                && !self.excluded(i, m, conditions, bounds)
            {
                found.push(number);
            }
        }
    }

    /// The fragments that may have a row whose attributes `attnums` have these values; `conditions` say the same of each of them.
    ///
    /// # Safety
    /// As for [`Index::candidates`].
    pub unsafe fn with_key(
        &self,
        tupdesc: pg_sys::TupleDesc,
        attnums: &[i16],
        values: &[Value],
        conditions: &[Condition],
    ) -> Candidates {
        count(|c| {
            c.lookups += 1;
            c.segments_probed += self.segments.len() as u64;
        });
        let mut found = self.outside.clone();
        // SAFETY: the caller's promise.
        let bounds: Vec<Rc<Bounds>> =
            conditions.iter().map(|c| unsafe { self.bounds(tupdesc, c.attnum, c.kind) }).collect();
        for (i, s) in self.segments.iter().enumerate() {
            let stretch = self.stretch(i, conditions, &bounds);
            let led = match s.map_of(attnums) {
                Some(map) if !stretch.is_empty() => self.probe(s, map, attnums, values).map(|led| Some((led, map))),
                _ => Ok(None),
            };
            match led {
                Ok(Some((led, map))) => {
                    for number in led.into_iter().flatten().chain(s.unknown[map].iter().copied()) {
                        let m = s.directory.member_of(self.starts[number]);
                        if m.is_none_or(|m| stretch.contains(&m) && !self.excluded(i, m, conditions, &bounds)) {
                            found.push(number);
                        }
                    }
                }
                Ok(None) => self.within(i, conditions, &bounds, &mut found),
                Err(damage) => {
                    self.warn(s.id, &damage);
                    self.within(i, conditions, &bounds, &mut found);
                }
            }
        }
        Candidates::from_numbers(found, self.segments.len() as u64)
    }

    /// The fragments that a key map leads to.
    fn probe(
        &self,
        s: &Segment,
        map: usize,
        attnums: &[i16],
        values: &[Value],
    ) -> Result<Vec<Range<usize>>, SegmentDamage> {
        let map = &s.directory.key_maps[map];
        let value_of = |a: &i16| attnums.iter().position(|b| a == b).and_then(|i| values.get(i));
        let key: Option<Vec<&Value>> = map.attnums.iter().map(value_of).collect();
        let Some(hash) = key.and_then(key_hash) else { return Err(SegmentDamage("the key cannot be hashed".into())) };
        let number = map.page_of(hash);
        let places = map.probe(&page(s.id, map, number)?, hash)?;
        let stretch = |p: Place| {
            let start = self.ends.partition_point(|end| *end <= p.first);
            start..self.starts.partition_point(|first| *first < p.end).max(start)
        };
        Ok(places.into_iter().map(stretch).collect())
    }
}

impl Segment {
    /// The key map of exactly these attributes, in whatever order.
    fn map_of(&self, attnums: &[i16]) -> Option<usize> {
        let same = |m: &KeyMap| m.attnums.len() == attnums.len() && m.attnums.iter().all(|a| attnums.contains(a));
        self.directory.key_maps.iter().position(same)
    }
}

/// The order keys of a zone's ends; all of them where nothing is known.
fn ends(zone: Option<&Zone>) -> (i128, i128) {
    match zone {
        None => (i128::MIN, i128::MAX),
        Some(z) if z.all_null() => (i128::MAX, i128::MIN),
        Some(z) => (
            z.min.as_ref().and_then(order_key).unwrap_or(i128::MIN),
            z.max.as_ref().and_then(order_key).unwrap_or(i128::MAX),
        ),
    }
}

/// Says that something of the index cannot be used.
fn report(relid: pg_sys::Oid, what: String) {
    count(|c| c.damaged += 1);
    let name = qualified_name(relid);
    pgrx::pg_sys::panic::ErrorReport::new(
        PgSqlErrorCode::ERRCODE_INDEX_CORRUPTED,
        format!("the fragment index of table {name} is incomplete"),
        "strata",
    )
    .set_detail(format!("{what} The fragments themselves are looked at instead, which is slower."))
    .set_hint(format!("Run SELECT strata.rebuild_index('{}').", name.replace('\'', "''")))
    .report(pgrx::PgLogLevel::WARNING);
}

impl TableFragments {
    /// The table's index; read on first use.
    pub fn index(&self) -> Rc<Index> {
        if let Some(index) = self.loaded.borrow().as_ref() {
            return Rc::clone(index);
        }
        let index = Rc::new(Index::load(self.relid, self.owner, self.filenode, self.list.iter().map(|f| &f.row)));
        *self.loaded.borrow_mut() = Some(Rc::clone(&index));
        index
    }

    /// The fragments that may have rows whose attributes `attnums` equal `values` (none of them null).
    ///
    /// # Safety
    /// `tupdesc` is the table's; the datums are of the attributes' types.
    pub unsafe fn with_values(
        &self,
        tupdesc: pg_sys::TupleDesc,
        attnums: &[i16],
        values: &[pg_sys::Datum],
    ) -> Candidates {
        let mut wanted = Vec::with_capacity(attnums.len());
        let mut kinds = Vec::with_capacity(attnums.len());
        for (attnum, value) in attnums.iter().zip(values) {
            // SAFETY: the caller's promise.
            unsafe {
                let kind = datum::kind_of(compat::attribute(tupdesc, *attnum as usize - 1), false).0;
                let Some(value) = datum::value(kind, *value) else { return Candidates::all(self.list.len()) };
                wanted.push(value);
                kinds.push(kind);
            }
        }
        let conditions: Vec<Condition> =
            attnums.iter().zip(&kinds).zip(&wanted).map(|((a, k), v)| Condition::equals(*a, *k, v)).collect();
        // SAFETY: the caller's promise.
        unsafe { self.index().with_key(tupdesc, attnums, &wanted, &conditions) }
    }
}

impl<'a> Condition<'a> {
    /// The attribute has this value.
    pub fn equals(attnum: i16, kind: Kind, value: &'a Value) -> Self {
        let at = order_key(value);
        Self { attnum, kind, between: at.map(|k| (k, k)), excludes: Box::new(move |zone| !zone.may_contain(value)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roaring::RoaringBitmap;

    fn fragment(first: u64, ids: Option<&[u32]>, rows: u64) -> FragmentRow {
        FragmentRow {
            hash: String::new(),
            first_row_id: first,
            row_count: rows,
            bytes: 0,
            heap_bytes: 0,
            row_ids: ids.map(|ids| ids.iter().copied().collect::<RoaringBitmap>()),
            deleted: None,
        }
    }

    #[test]
    fn a_fragment_is_covered_only_if_all_of_its_row_ids_are() {
        let place = |first, end| Place { first, end };
        let ranges = covered([place(200, 300), place(0, 100), place(100, 150)]);
        assert_eq!(ranges, vec![place(0, 150), place(200, 300)]);
        assert!(is_covered(&fragment(20, None, 130), &ranges));
        assert!(!is_covered(&fragment(20, None, 131), &ranges));
        assert!(!is_covered(&fragment(300, None, 1), &ranges));
        // Merged from two whose row ids are not neighbours.
        assert!(is_covered(&fragment(90, Some(&[0, 59, 110, 209]), 4), &ranges));
        assert!(!is_covered(&fragment(90, Some(&[0, 60, 110]), 3), &ranges));
        assert!(!is_covered(&fragment(90, Some(&[0, 210]), 2), &ranges));
    }
}
