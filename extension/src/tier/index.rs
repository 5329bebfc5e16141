//! The fragment index's other side: segments are written, folded and rebuilt here. ([`crate::am::segments`] asks them.)
//!
//! [`settle`] makes the segments of a relation file fit the fragments that the catalog records for it. Whoever adds, replaces or removes
//! fragments calls it once, when that is done, in the same transaction. It compares and writes what differs; so it does not matter what was
//! done, and calling it again does nothing.
//!
//! ```text
//!   fragments of the file   a b c d │ e │ x        (x was written for f and g)
//!   segments                [abcd]    [e]  [f] [g]
//!   1 row ids               [abcd]    [e]  [f   g]   x has row ids of both: they become one
//!   2 fold                  [abcd]    [e]  [x]       (`strata_fragment::segment::fold`: four of a level become one)
//!   3 write                   kept    kept  new      directories from the fragments' footers, key maps merged
//! ```
//!
//! * **Transactions.** Segments and pages are rows of heap tables, written below the executor: rollback, savepoints, crashes, standbys and
//!   point-in-time recovery do with them what they do with the fragments' rows. They are read and changed as they are now, whatever
//!   snapshot the transaction has: the caller holds a lock on the table that conflicts with itself (or the one of
//!   [`segment_rows::lock`], for CREATE INDEX), so nobody else changes them.
//! * **Files.** A table that gets another relation file keeps its fragments, and its segments go over to the new file
//!   (`catalog::copy_file`): a row each is changed, no page is written.
//! * **Key maps** are made where they pay: of fragments of which a typical key is within the bounds of several (`key_choice`). They are
//!   merged from the pages of the segments that are folded; keys of fragments that are in none of these are read from the file. Their row ids
//!   stay when consolidation writes fragments again, so it does not touch them.
//! * **What is not here is left out.** A fragment whose file is not in the store (after a recovery) cannot be described. It stays
//!   outside of all segments, which the readers notice, until `strata.rebuild_index` fetches it.
//! * **Damage** that is met here is repaired as far as the files are here: a segment whose directory does not decode counts as lost.

use super::key_choice::{key_columns, wanted_everywhere, wants_map};
use crate::am::fragments::TableFragment;
use crate::am::index::{index_oids, is_plain, key_attributes};
use crate::am::segments::{covered, is_covered};
use crate::pg::segment_rows::{self, Change, PageWriter, Summary};
use crate::pg::{catalog, compat};
use pgrx::pg_sys::{self, Oid, Relation};
use std::collections::HashSet;
use strata_fragment::segment::{
    Described, Directory, KeyMap, Node, Part, Place, Places, SegmentDamage, encode_directory, fold, fragment_hashes,
    merge_entries, write_key_map,
};

/// Keys that are in memory at a time; beyond, they are written to pages and merged from there.
const KEYS_IN_MEMORY: u64 = 32 << 20;

/// Which fragments may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Those in the store.
    Store,
    /// All; what is not in the store is fetched, or an ERROR.
    All,
}

/// What there is after [`settle`] or [`rebuild`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Segments.
    pub segments: u64,
    /// Fragments in them.
    pub fragments: u64,
    /// Bytes of directories and pages.
    pub bytes: u64,
}

/// A segment that is there.
struct Old {
    id: i64,
    level: u32,
    page_bytes: u64,
    directory: Directory,
}

/// Neighbours in row ids: segments, and the fragments among their row ids; or one fragment that is new.
struct Group {
    first: u64,
    end: u64,
    segments: Vec<usize>,
    fragments: Vec<usize>,
}

/// The keys of a table for which the fragment index answers: the attributes of its plain unique indexes.
///
/// # Safety
/// `rel` is open.
pub unsafe fn keys_of(rel: Relation) -> Vec<Vec<i16>> {
    let mut keys: Vec<Vec<i16>> = Vec::new();
    // SAFETY: the caller's promise.
    unsafe {
        for oid in index_oids(rel) {
            let index = pg_sys::index_open(oid, pg_sys::AccessShareLock as i32);
            let form = &*(*index).rd_index;
            if form.indisunique && is_plain(index) {
                let key = key_attributes(form).to_vec();
                let same = |k: &Vec<i16>| k.len() == key.len() && k.iter().all(|a| key.contains(a));
                if !keys.iter().any(same) {
                    keys.push(key);
                }
            }
            pg_sys::index_close(index, pg_sys::NoLock as i32);
        }
    }
    keys
}

/// Makes the segments of relation file `filenode` of table `relid` fit its fragments. `keys` are those of [`keys_of`].
///
/// # Safety
/// The table is locked so that nobody else does this.
pub unsafe fn settle(relid: Oid, filenode: Oid, keys: &[Vec<i16>]) -> Report {
    // SAFETY: the caller's promise.
    unsafe { arrange(relid, filenode, keys, Reach::Store, |_| false) }
}

/// [`settle`], with every segment written again.
///
/// # Safety
/// As for [`settle`].
pub unsafe fn rebuild(relid: Oid, filenode: Oid, keys: &[Vec<i16>]) -> Report {
    // SAFETY: the caller's promise.
    unsafe { arrange(relid, filenode, keys, Reach::All, |_| true) }
}

/// Writes the index of warm table `relid` again: `strata.rebuild_index`.
pub fn rebuild_index(relid: Oid) -> Report {
    let rel = super::online::lock_warm(relid);
    // SAFETY: the lock keeps others from moving and consolidating the table.
    unsafe { rebuild(relid, compat::filenode(rel.0), &keys_of(rel.0)) }
}

/// A unique index of these attributes has come into being: segments that want a key map for it get one.
///
/// # Safety
/// The table is locked against changes of its fragments.
pub unsafe fn add_key(relid: Oid, filenode: Oid, key: &[i16]) {
    segment_rows::lock(relid);
    // SAFETY: the caller's promise, and the lock.
    unsafe {
        let lacks = |d: &Directory| {
            map_of(d, key).is_none() && d.described().is_ok_and(|all| wants_map(&all.iter().collect::<Vec<_>>(), key))
        };
        let all = read(relid, filenode).0;
        if all.iter().any(|s| lacks(&s.directory)) {
            let mut keys: Vec<Vec<i16>> = Vec::new();
            let known = all.iter().flat_map(|s| &s.directory.key_maps).map(|m| m.attnums.clone());
            for k in known.chain([key.to_vec()]) {
                if !keys.iter().any(|other| same_key(other, &k)) {
                    keys.push(k);
                }
            }
            arrange(relid, filenode, &keys, Reach::Store, lacks);
        }
    }
}

fn same_key(a: &[i16], b: &[i16]) -> bool {
    a.len() == b.len() && a.iter().all(|attnum| b.contains(attnum))
}

fn map_of<'a>(directory: &'a Directory, key: &[i16]) -> Option<&'a KeyMap> {
    directory.key_maps.iter().find(|m| same_key(&m.attnums, key))
}

/// The segments of a file, by row id, and the numbers of those that are damaged.
fn read(relid: Oid, filenode: Oid) -> (Vec<Old>, Vec<i64>) {
    let (mut good, mut damaged) = (Vec::new(), Vec::new());
    for row in segment_rows::read(relid, filenode) {
        match Directory::decode(&row.directory) {
            Ok(directory) if !directory.members.is_empty() => {
                good.push(Old { id: row.id, level: row.level, page_bytes: row.page_bytes, directory });
            }
            _ => damaged.push(row.id),
        }
    }
    good.sort_by_key(|s| s.directory.members[0].first_row_id);
    (good, damaged)
}

/// Does it; segments for which `again` says so are written again in any case.
unsafe fn arrange(
    relid: Oid,
    filenode: Oid,
    keys: &[Vec<i16>],
    reach: Reach,
    again: impl Fn(&Directory) -> bool,
) -> Report {
    if !segment_rows::is_there() {
        return Report::default();
    }
    segment_rows::lock(relid);
    // SAFETY: a transaction is in progress.
    unsafe { pg_sys::CommandCounterIncrement() };
    let list: Vec<TableFragment> =
        catalog::fragments(relid, filenode).into_iter().map(|row| TableFragment::new(row, relid)).collect();
    let (old, mut gone) = read(relid, filenode);
    let rebuilt = reach == Reach::All;
    let groups = if rebuilt { group(&list, &[]) } else { group(&list, &old) };
    let nodes =
        fold(groups.iter().enumerate().filter(|(_, g)| !g.fragments.is_empty()).map(|(i, g)| match &g.segments[..] {
            [] => Node { level: 0, parts: vec![Part::Fragment(i)] },
            segments => {
                let level = segments.iter().map(|s| old[*s].level).max().unwrap_or(0);
                Node { level, parts: vec![Part::Segment(i)] }
            }
        }));
    let described = describe(&list, if rebuilt { &[] } else { &old }, reach);
    let everywhere = wanted_everywhere(&described, keys);
    let mut work = Work { relid, filenode, list: &list, old: &old, described: &described, report: Report::default() };
    let mut kept: HashSet<i64> = HashSet::new();
    let mut directories: Vec<(i64, Vec<u8>, Summary)> = Vec::new();
    for node in &nodes {
        let parts = node.parts.iter().map(|p| match p {
            Part::Segment(i) | Part::Fragment(i) => &groups[*i],
        });
        let mut segments = Vec::new();
        let mut fragments = Vec::new();
        for g in parts {
            segments.extend_from_slice(&g.segments);
            fragments.extend(g.fragments.iter().copied().filter(|f| described[*f].is_some()));
        }
        if fragments.is_empty() {
            continue;
        }
        if let [only] = segments[..]
            && !again(&old[only].directory)
            && !fragments.iter().any(|f| work.is_new(*f, &segments))
        {
            // The same fragments, or what took their place among the same row ids: the pages stay.
            let segment = &old[only];
            kept.insert(segment.id);
            match work.same_members(segment, &fragments) {
                true => work.count(segment.directory.members.len(), segment.page_bytes + segment.directory.bytes()),
                false => directories.push(work.directory(segment, &fragments)),
            }
            continue;
        }
        work.write(node.level, &segments, &fragments, keys, &everywhere);
    }
    gone.extend(old.iter().map(|s| s.id).filter(|id| !kept.contains(id)));
    if !gone.is_empty() || !directories.is_empty() {
        segment_rows::change(relid, filenode, |id| {
            if gone.contains(&id) {
                return Some(Change::Remove);
            }
            let i = directories.iter().position(|d| d.0 == id)?;
            let (_, directory, summary) = directories.swap_remove(i);
            Some(Change::Directory(directory, summary))
        });
    }
    // SAFETY: as above; others read the index again.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::CacheInvalidateRelcacheByRelid(relid);
    }
    work.report
}

/// Fragments and segments as neighbours in row ids.
fn group(list: &[TableFragment], old: &[Old]) -> Vec<Group> {
    let mut groups: Vec<Group> = old
        .iter()
        .enumerate()
        .map(|(i, s)| {
            let members = &s.directory.members;
            let end = members.iter().map(|m| m.end).max().unwrap_or(0);
            Group { first: members[0].first_row_id, end, segments: vec![i], fragments: Vec::new() }
        })
        .collect();
    for (i, f) in list.iter().enumerate() {
        let (first, end) = (f.row.first_row_id, f.end());
        let start = groups.partition_point(|g| g.end <= first);
        let stop = groups.partition_point(|g| g.first < end).max(start);
        if start == stop {
            groups.insert(start, Group { first, end, segments: Vec::new(), fragments: vec![i] });
            continue;
        }
        let mut rest: Vec<Group> = groups.drain(start + 1..stop).collect();
        let g = &mut groups[start];
        for mut other in rest.drain(..) {
            g.segments.append(&mut other.segments);
            g.fragments.append(&mut other.fragments);
            g.end = g.end.max(other.end);
        }
        g.first = g.first.min(first);
        g.end = g.end.max(end);
        g.fragments.push(i);
    }
    groups
}

/// What is known of each fragment: from its segment, or from its file.
fn describe(list: &[TableFragment], old: &[Old], reach: Reach) -> Vec<Option<Described>> {
    let mut known: Vec<Option<Described>> = list.iter().map(|_| None).collect();
    for s in old {
        for d in s.directory.described().unwrap_or_default() {
            let found = list.binary_search_by_key(&d.member.first_row_id, |f| f.row.first_row_id);
            if let Ok(i) = found
                && d.member.has_hash(&list[i].row.hash)
                && d.member.end == list[i].end()
            {
                known[i] = Some(d);
            }
        }
    }
    for (known, f) in known.iter_mut().zip(list) {
        if known.is_none() && (reach == Reach::All || f.is_local()) {
            pgrx::check_for_interrupts!();
            known.clone_from(&Described::of(&f.open(), &f.row.hash, f.row.first_row_id..f.end()));
        }
    }
    known
}

/// What segments are written from.
struct Work<'a> {
    relid: Oid,
    filenode: Oid,
    list: &'a [TableFragment],
    old: &'a [Old],
    described: &'a [Option<Described>],
    report: Report,
}

/// Ascending entries of a key map that is being made.
enum Run {
    /// Hashes of a fragment's keys, and its place.
    Hashes(Vec<u32>, u32),
    /// Pages of a segment, and what its places are now; None: no fragment has their row ids any more.
    Pages(i64, KeyMap, Vec<Option<u32>>),
}

impl Work<'_> {
    fn count(&mut self, fragments: usize, bytes: u64) {
        self.report.segments += 1;
        self.report.fragments += fragments as u64;
        self.report.bytes += bytes;
    }

    /// Whether a fragment is one that some of these segments' key maps do not know.
    fn is_new(&self, fragment: usize, segments: &[usize]) -> bool {
        let row = &self.list[fragment].row;
        segments.iter().any(|s| {
            let directory = &self.old[*s].directory;
            let member =
                |m: &strata_fragment::segment::Member| m.first_row_id == row.first_row_id && m.has_hash(&row.hash);
            !directory.members.iter().any(member)
                && directory.key_maps.iter().any(|m| !is_covered(row, &covered(m.places.iter().copied())))
        })
    }

    fn same_members(&self, s: &Old, fragments: &[usize]) -> bool {
        let members = &s.directory.members;
        members.len() == fragments.len()
            && members.iter().zip(fragments).all(|(m, f)| {
                let f = &self.list[*f];
                m.first_row_id == f.row.first_row_id && m.end == f.end() && m.has_hash(&f.row.hash)
            })
    }

    fn describes(&self, fragments: &[usize]) -> Vec<Described> {
        fragments.iter().filter_map(|f| self.described[*f].clone()).collect()
    }

    fn summary(&self, fragments: &[Described], maps: &[KeyMap], page_bytes: u64) -> Summary {
        let key = |m: &KeyMap| m.attnums.iter().map(i16::to_string).collect::<Vec<_>>().join(",");
        Summary {
            row_ids: (
                fragments.iter().map(|d| d.member.first_row_id).min().unwrap_or(0),
                fragments.iter().map(|d| d.member.end).max().unwrap_or(0),
            ),
            fragments: fragments.len() as u64,
            rows: fragments.iter().map(|d| d.member.rows).sum(),
            keys: maps.iter().map(key).collect::<Vec<_>>().join(";"),
            page_bytes,
        }
    }

    /// Another directory for a segment whose pages stay.
    fn directory(&mut self, s: &Old, fragments: &[usize]) -> (i64, Vec<u8>, Summary) {
        let described = self.describes(fragments);
        let maps = s.directory.key_maps.clone();
        let summary = self.summary(&described, &maps, s.page_bytes);
        let directory = encode_directory(&described, maps);
        self.count(described.len(), s.page_bytes + directory.len() as u64);
        (s.id, directory, summary)
    }

    /// Writes a segment of these fragments; `segments` had some of them.
    fn write(&mut self, level: u32, segments: &[usize], fragments: &[usize], keys: &[Vec<i16>], everywhere: &[bool]) {
        let described = self.describes(fragments);
        let refs: Vec<&Described> = described.iter().collect();
        let id = segment_rows::new_id();
        let Some(mut pages) = PageWriter::new(id) else { return };
        let mut maps: Vec<KeyMap> = Vec::new();
        for (key, everywhere) in keys.iter().zip(everywhere) {
            if !(*everywhere || wants_map(&refs, key)) {
                continue;
            }
            let first_page = maps.last().map_or(0, |m: &KeyMap| m.page_range().end);
            match self.key_map(key, segments, fragments, first_page, &mut pages) {
                Ok(map) => maps.extend(map),
                Err(damage) => {
                    // A page that was to be merged is damaged: the segment does without the key map.
                    pgrx::warning!("a key map of the fragment index could not be carried over: {damage}");
                    segment_rows::remove_pages(id);
                    pages.bytes = 0;
                    maps.clear();
                    break;
                }
            }
        }
        let page_bytes = pages.close();
        let summary = self.summary(&described, &maps, page_bytes);
        let directory = encode_directory(&described, maps);
        segment_rows::insert(id, self.relid, self.filenode, level, &directory, &summary);
        self.count(described.len(), page_bytes + directory.len() as u64);
    }

    /// Writes the key map of a key; None if it cannot be made.
    fn key_map(
        &self,
        key: &[i16],
        segments: &[usize],
        fragments: &[usize],
        first_page: u32,
        pages: &mut PageWriter,
    ) -> Result<Option<KeyMap>, SegmentDamage> {
        let mut places = Places::default();
        let mut runs = Vec::new();
        let mut known: Vec<Place> = Vec::new();
        for s in segments {
            let Some(map) = map_of(&self.old[*s].directory, key) else { continue };
            known.extend_from_slice(&map.places);
            let now = map.places.iter().map(|p| self.place_now(*p, fragments).map(|p| places.number(p))).collect();
            runs.push(Run::Pages(self.old[*s].id, map.clone(), now));
        }
        // The order of attributes is that of the pages, which were hashed in it.
        let order = runs.iter().find_map(|r| match r {
            Run::Pages(_, map, _) => Some(map.attnums.clone()),
            Run::Hashes(..) => None,
        });
        let order = order.unwrap_or_else(|| key.to_vec());
        if runs.iter().any(|r| matches!(r, Run::Pages(_, map, _) if map.attnums != order)) {
            (places, runs, known) = (Places::default(), Vec::new(), Vec::new());
        }
        let known = covered(known);
        let mut in_memory = 0;
        let mut temporary = Vec::new();
        for f in fragments {
            let f = &self.list[*f];
            if is_covered(&f.row, &known) {
                continue;
            }
            let Some(columns) = self.described_of(f).and_then(|d| key_columns(d, &order)) else {
                temporary.into_iter().for_each(segment_rows::remove_pages);
                return Ok(None);
            };
            pgrx::check_for_interrupts!();
            let hashes = f.check(fragment_hashes(&f.open(), &columns));
            in_memory += hashes.len() as u64;
            let place = Place { first: f.row.first_row_id, end: f.end() };
            runs.push(Run::Hashes(hashes, places.number(place)));
            if in_memory > KEYS_IN_MEMORY {
                if let Err(damage) = spill(&mut runs, &places, &order, &mut temporary) {
                    temporary.into_iter().for_each(segment_rows::remove_pages);
                    return Err(damage);
                }
                in_memory = 0;
            }
        }
        let most = runs.iter().map(Run::len).sum();
        let entries = merge_entries(runs.iter().map(Run::entries).collect());
        let map = write_key_map(pages.id, order, places.list, first_page, most, entries, |number, page| {
            pages.put(number, &page);
            Ok(())
        });
        temporary.into_iter().for_each(segment_rows::remove_pages);
        map.map(Some)
    }

    fn described_of(&self, f: &TableFragment) -> Option<&Described> {
        let i = self.list.binary_search_by_key(&f.row.first_row_id, |f| f.row.first_row_id).ok()?;
        self.described[i].as_ref()
    }

    /// What a place is now: the row ids of the fragment that has them, the place itself if there are several, none if there
    /// are none.
    fn place_now(&self, place: Place, fragments: &[usize]) -> Option<Place> {
        let start = fragments.partition_point(|f| self.list[*f].end() <= place.first);
        let stop = fragments.partition_point(|f| self.list[*f].row.first_row_id < place.end);
        match fragments.get(start..stop)? {
            [] => None,
            [only] => {
                let f = &self.list[*only];
                Some(Place { first: f.row.first_row_id, end: f.end() })
            }
            _ => Some(place),
        }
    }
}

/// Writes the keys that are in memory to pages of their own, which take their place among the runs; their number is added to `temporary`.
fn spill(runs: &mut Vec<Run>, places: &Places, key: &[i16], temporary: &mut Vec<i64>) -> Result<(), SegmentDamage> {
    let (hashes, rest): (Vec<Run>, Vec<Run>) =
        std::mem::take(runs).into_iter().partition(|r| matches!(r, Run::Hashes(..)));
    *runs = rest;
    let id = segment_rows::new_id();
    temporary.push(id);
    let most = hashes.iter().map(Run::len).sum();
    let entries = merge_entries(hashes.iter().map(Run::entries).collect());
    let mut pages = PageWriter::new(id);
    let map = write_key_map(id, key.to_vec(), places.list.clone(), 0, most, entries, |number, page| {
        if let Some(pages) = &mut pages {
            pages.put(number, &page);
        }
        Ok::<(), SegmentDamage>(())
    });
    pages.map(PageWriter::close);
    let map = map?;
    // SAFETY: a transaction is in progress; the pages are read from here on.
    unsafe { pg_sys::CommandCounterIncrement() };
    let same = (0..places.list.len() as u32).map(Some).collect();
    runs.push(Run::Pages(id, map, same));
    Ok(())
}

impl Run {
    /// The number of its entries.
    fn len(&self) -> u64 {
        match self {
            Self::Hashes(hashes, _) => hashes.len() as u64,
            Self::Pages(_, map, _) => map.entries,
        }
    }

    /// Its entries, with the places that they lead to now.
    fn entries(&self) -> Box<dyn Iterator<Item = Result<u64, SegmentDamage>> + '_> {
        match self {
            Self::Hashes(hashes, place) => Box::new(hashes.iter().map(|h| Ok(u64::from(*h) << 32 | u64::from(*place)))),
            Self::Pages(id, map, now) => Box::new(map.page_range().flat_map(move |number| {
                let page = segment_rows::page(*id, number);
                let entries = match page {
                    Some(page) => map.entries_of(number, &page),
                    None => Err(SegmentDamage(format!("page {number} of segment {id} is missing"))),
                };
                let place = |e: u64| now.get((e & u64::from(u32::MAX)) as usize).copied().flatten();
                let (good, bad) = match entries {
                    Ok(entries) => (entries, None),
                    Err(damage) => (Vec::new(), Some(Err(damage))),
                };
                let moved = move |e: u64| place(e).map(|p| Ok(e >> 32 << 32 | u64::from(p)));
                good.into_iter().filter_map(moved).chain(bad)
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_choice::tests::described;
    use super::*;

    fn fragment(first: u64, rows: u64) -> TableFragment {
        let row = crate::pg::catalog::FragmentRow {
            hash: "00".repeat(32),
            first_row_id: first,
            row_count: rows,
            bytes: 0,
            heap_bytes: 0,
            row_ids: None,
            deleted: None,
        };
        TableFragment::new(row, Oid::INVALID)
    }

    #[test]
    fn segments_whose_fragments_were_merged_become_one() {
        let old = |ends: &[(u64, u64)]| {
            let mut all = described(ends.iter().map(|_| (0, 1)));
            for (d, (first, end)) in all.iter_mut().zip(ends) {
                (d.member.first_row_id, d.member.end) = (*first, *end);
            }
            let directory = Directory::decode(&encode_directory(&all, Vec::new())).unwrap();
            Old { id: 1, level: 0, page_bytes: 0, directory }
        };
        let segments = [old(&[(0, 10), (10, 20)]), old(&[(20, 30)]), old(&[(30, 40)]), old(&[(50, 60)])];
        let list = [fragment(0, 10), fragment(10, 10), fragment(20, 20), fragment(45, 2), fragment(70, 5)];
        let groups = group(&list, &segments);
        let seen: Vec<(Vec<usize>, Vec<usize>)> =
            groups.iter().map(|g| (g.segments.clone(), g.fragments.clone())).collect();
        assert_eq!(
            seen,
            [(vec![0], vec![0, 1]), (vec![1, 2], vec![2]), (vec![], vec![3]), (vec![3], vec![]), (vec![], vec![4]),]
        );
    }
}
