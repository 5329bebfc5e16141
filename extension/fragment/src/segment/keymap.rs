//! Key maps: from the hash of a key to the row ids among which its row is.
//!
//! An entry is a 32-bit hash and the number of a [`Place`], a range of row ids. Entries are sorted and dealt out to *groups*, each an equal
//! part of the space of hashes with [`GROUP_ENTRIES`] entries on average; some neighbouring groups make a *page*. So the
//! page and the group of a hash are computed, not searched.
//!
//! ```text
//!  page:   crc32c (4; of the numbers of segment and page too) │ end of each group in bytes (4 each) │ groups
//!  group:  entry, entry, …, padded with ones to whole bytes
//!  entry:  distance from the hash before (Rice code: unary quotient, rest of `rice` bits) │ place (`place_bits` bits)
//! ```
//!
//! A distance costs 1.5 bits more than the logarithm of the mean distance: a million keys of one fragment take 14 bits each, thirty
//! million keys of thirty fragments 14 as well. A key that is not there meets an equal hash with a probability of entries / 2³²; then a
//! fragment is asked in vain.

use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::SegmentDamage;

/// Entries of a group, on average.
const GROUP_ENTRIES: u64 = 256;
/// Bytes of a page, about.
const PAGE_BYTES: u64 = 7_000;
/// What is before the groups of a page, apart from their ends.
const PAGE_HEAD: usize = 4;

/// A range of row ids that keys lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// The first row id.
    pub first: u64,
    /// The one behind the last.
    pub end: u64,
}

/// What is known of a key map apart from its pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyMap {
    /// The attribute numbers of the key, in the order in which they were hashed.
    pub attnums: Vec<i16>,
    /// The number of entries.
    pub entries: u64,
    /// The number of its first page among those of the segment.
    pub first_page: u32,
    /// Where keys lead to.
    pub places: Vec<Place>,
    /// The number of the segment that the pages are written for. It is in their checksums, so that a page counts in its own
    /// place only.
    segment: i64,
    groups: u32,
    groups_a_page: u32,
    rice: u8,
    place_bits: u8,
}

impl KeyMap {
    /// An empty map for up to so many entries.
    fn plan(segment: i64, attnums: Vec<i16>, places: Vec<Place>, first_page: u32, entries: u64) -> Self {
        let groups = entries.div_ceil(GROUP_ENTRIES).clamp(1, u64::from(u32::MAX)) as u32;
        // The best parameter for exponentially distributed distances is the logarithm of ln 2 times the mean.
        let median = (0.69 * 4_294_967_296.0 / entries.max(1) as f64).max(1.0);
        let rice = median.log2().floor().min(31.0) as u8;
        let place_bits = (usize::BITS - places.len().saturating_sub(1).leading_zeros()) as u8;
        let bits = u64::from(rice) + 2 + u64::from(place_bits);
        let groups_a_page = (PAGE_BYTES / (GROUP_ENTRIES * bits / 8 + 5)).max(1) as u32;
        Self { attnums, entries: 0, first_page, places, segment, groups, groups_a_page, rice, place_bits }
    }

    /// The number of its pages.
    pub fn pages(&self) -> u32 {
        self.groups.div_ceil(self.groups_a_page)
    }

    fn group_of(&self, hash: u32) -> u32 {
        ((u64::from(hash) * u64::from(self.groups)) >> 32) as u32
    }

    /// The least hash of a group.
    fn base(&self, group: u32) -> u32 {
        (u64::from(group) << 32).div_ceil(u64::from(self.groups)).min(u64::from(u32::MAX)) as u32
    }

    /// The segment's page in which a hash would be.
    pub fn page_of(&self, hash: u32) -> u32 {
        self.first_page + self.group_of(hash) / self.groups_a_page
    }

    /// The segment's pages that belong to this map.
    pub fn page_range(&self) -> Range<u32> {
        self.first_page..self.first_page + self.pages()
    }

    /// Where keys with this hash lead to; `page` is the one of [`KeyMap::page_of`], checked by [`check_page`].
    ///
    /// [`check_page`]: KeyMap::check_page
    pub fn probe(&self, page: &[u8], hash: u32) -> Result<Vec<Place>, SegmentDamage> {
        let group = self.group_of(hash);
        let bytes = self.group(page, group)?;
        let mut found = Vec::new();
        for entry in Entries::new(bytes, self.base(group), self.rice, self.place_bits) {
            let at = (entry >> 32) as u32;
            if at > hash {
                break;
            }
            if at == hash {
                found.push(self.place(entry as u32)?);
            }
        }
        Ok(found)
    }

    fn place(&self, number: u32) -> Result<Place, SegmentDamage> {
        let place = self.places.get(number as usize).copied();
        place.ok_or_else(|| SegmentDamage::new(format!("an entry leads to place {number} of {}", self.places.len())))
    }

    /// Checks a page's length and checksum; `number` counts the segment's pages.
    pub fn check_page(&self, number: u32, page: &[u8]) -> Result<(), SegmentDamage> {
        let groups = self.groups_of_page(number).len();
        let head = PAGE_HEAD + 4 * groups;
        if page.len() < head || page.len() != head + end_of_group(page, groups.saturating_sub(1)) {
            return Err(SegmentDamage::new(format!("page {number} has {} bytes", page.len())));
        }
        let (found, wanted) = (self.checksum(number, &page[PAGE_HEAD..]), u32_at(page, 0));
        if found != wanted {
            return Err(SegmentDamage::new(format!("page {number}: checksum {found:08x} instead of {wanted:08x}")));
        }
        Ok(())
    }

    fn checksum(&self, number: u32, groups: &[u8]) -> u32 {
        let crc = crc32c::crc32c(&self.segment.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(crc, &number.to_le_bytes()), groups)
    }

    fn groups_of_page(&self, number: u32) -> Range<u32> {
        let first = number.saturating_sub(self.first_page).saturating_mul(self.groups_a_page).min(self.groups);
        first..first.saturating_add(self.groups_a_page).min(self.groups)
    }

    fn group<'a>(&self, page: &'a [u8], group: u32) -> Result<&'a [u8], SegmentDamage> {
        let of_page = self.groups_of_page(self.first_page + group / self.groups_a_page);
        let (i, head) = ((group - of_page.start) as usize, PAGE_HEAD + 4 * of_page.len());
        let start = if i == 0 { 0 } else { end_of_group(page, i - 1) };
        let bytes = page.get(head + start..head + end_of_group(page, i));
        bytes.ok_or_else(|| SegmentDamage::new(format!("group {group} is outside of its page")))
    }

    /// All entries of a page, ascending: the hash in the upper half, the number of the place in the lower.
    pub fn entries_of(&self, number: u32, page: &[u8]) -> Result<Vec<u64>, SegmentDamage> {
        self.check_page(number, page)?;
        let mut entries = Vec::new();
        for group in self.groups_of_page(number) {
            let bytes = self.group(page, group)?;
            entries.extend(Entries::new(bytes, self.base(group), self.rice, self.place_bits));
        }
        Ok(entries)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.iter().skip(at).take(4).rev().fold(0, |v, b| v << 8 | u32::from(*b))
}

fn end_of_group(page: &[u8], i: usize) -> usize {
    u32_at(page, PAGE_HEAD + 4 * i) as usize
}

/// The entries of one group.
struct Entries<'a> {
    bytes: &'a [u8],
    /// The next bit.
    at: usize,
    hash: u64,
    rice: u8,
    place_bits: u8,
}

impl<'a> Entries<'a> {
    fn new(bytes: &'a [u8], base: u32, rice: u8, place_bits: u8) -> Self {
        Self { bytes, at: 0, hash: u64::from(base), rice, place_bits }
    }

    /// The next 64 bits, the first of them lowest; ones behind the end.
    #[inline]
    fn peek(&self) -> u64 {
        let byte = self.at / 8;
        let mut word = [0xff; 9];
        if let Some(nine) = self.bytes.get(byte..byte + 9) {
            word.copy_from_slice(nine);
        } else if let Some(rest) = self.bytes.get(byte..) {
            word[..rest.len()].copy_from_slice(rest);
        }
        let mut low = [0; 8];
        low.copy_from_slice(&word[..8]);
        let shift = self.at % 8;
        match shift {
            0 => u64::from_le_bytes(low),
            _ => u64::from_le_bytes(low) >> shift | u64::from(word[8]) << (64 - shift),
        }
    }

    #[inline]
    fn bits(&mut self, n: u8) -> u64 {
        if n == 0 {
            return 0;
        }
        let bits = self.peek() & (u64::MAX >> (64 - n));
        self.at += usize::from(n);
        bits
    }
}

impl Iterator for Entries<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let end = self.bytes.len() * 8;
        let mut quotient = 0;
        loop {
            let ones = self.peek().trailing_ones();
            quotient += u64::from(ones);
            self.at += ones as usize;
            if self.at >= end {
                return None;
            }
            if ones < 64 {
                self.at += 1;
                break;
            }
        }
        let rest = self.bits(self.rice);
        self.hash += quotient << self.rice | rest;
        let place = self.bits(self.place_bits);
        (self.hash <= u64::from(u32::MAX)).then_some(self.hash << 32 | place)
    }
}

/// Bits into bytes, the first ones lowest.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    word: u64,
    used: u32,
}

impl Bits {
    /// Appends the lowest `n` bits, at most 32.
    #[inline]
    fn put(&mut self, bits: u64, n: u32) {
        self.word |= bits << self.used;
        self.used += n;
        while self.used >= 8 {
            self.bytes.push(self.word as u8);
            self.word >>= 8;
            self.used -= 8;
        }
    }

    fn ones(&mut self, mut n: u64) {
        while n > 0 {
            let some = n.min(32);
            self.put((1 << some) - 1, some as u32);
            n -= some;
        }
    }

    /// Fills the last byte with ones.
    fn pad(&mut self) {
        if self.used > 0 {
            self.ones(u64::from(8 - self.used));
        }
    }
}

/// Writes a key map from ascending entries (the hash in the upper half, the number of the place in the lower), of which there are at
/// most `most`; equal ones are written once. `page` takes the pages, with their numbers among those of the segment.
pub fn write_key_map<E: From<SegmentDamage>>(
    segment: i64,
    attnums: Vec<i16>,
    places: Vec<Place>,
    first_page: u32,
    most: u64,
    entries: impl IntoIterator<Item = Result<u64, E>>,
    mut page: impl FnMut(u32, Vec<u8>) -> Result<(), E>,
) -> Result<KeyMap, E> {
    let mut map = KeyMap::plan(segment, attnums, places, first_page, most);
    let mut entries = entries.into_iter();
    let mut next = entries.next().transpose()?;
    let mut last = None;
    for number in map.page_range() {
        let groups = map.groups_of_page(number);
        let mut ends: Vec<u32> = Vec::with_capacity(groups.len());
        let mut bits = Bits::default();
        for group in groups {
            let mut before = u64::from(map.base(group));
            while let Some(entry) = next.filter(|e| map.group_of((e >> 32) as u32) == group) {
                if last != Some(entry) {
                    let hash = entry >> 32;
                    let distance =
                        hash.checked_sub(before).ok_or_else(|| SegmentDamage::new("entries do not ascend"))?;
                    bits.ones(distance >> map.rice);
                    bits.put(0, 1);
                    bits.put(distance & ((1 << map.rice) - 1), map.rice.into());
                    bits.put(entry & u64::from(u32::MAX), map.place_bits.into());
                    before = hash;
                    map.entries += 1;
                    last = Some(entry);
                }
                next = entries.next().transpose()?;
            }
            bits.pad();
            ends.push(bits.bytes.len() as u32);
        }
        let mut out = vec![0; PAGE_HEAD];
        ends.iter().for_each(|e| out.extend_from_slice(&e.to_le_bytes()));
        out.extend_from_slice(&bits.bytes);
        let crc = map.checksum(number, &out[PAGE_HEAD..]);
        out[..PAGE_HEAD].copy_from_slice(&crc.to_le_bytes());
        page(number, out)?;
    }
    match next {
        None => Ok(map),
        Some(_) => Err(SegmentDamage::new("entries do not ascend").into()),
    }
}

/// Merges ascending runs of entries into one.
pub fn merge_entries<E>(
    runs: Vec<Box<dyn Iterator<Item = Result<u64, E>> + '_>>,
) -> impl Iterator<Item = Result<u64, E>> {
    let mut runs = runs;
    let mut heads = BinaryHeap::new();
    let mut failed = None;
    for (i, run) in runs.iter_mut().enumerate() {
        match run.next() {
            Some(Ok(entry)) => heads.push(std::cmp::Reverse((entry, i))),
            Some(Err(e)) => failed = Some(e),
            None => {}
        }
    }
    std::iter::from_fn(move || {
        if let Some(e) = failed.take() {
            heads.clear();
            return Some(Err(e));
        }
        let std::cmp::Reverse((entry, i)) = heads.pop()?;
        match runs[i].next() {
            Some(Ok(next)) => heads.push(std::cmp::Reverse((next, i))),
            Some(Err(e)) => failed = Some(e),
            None => {}
        }
        Some(Ok(entry))
    })
}

/// Numbers places, each once.
#[derive(Debug, Default)]
pub struct Places {
    /// The places, by number.
    pub list: Vec<Place>,
    numbers: HashMap<Place, u32>,
}

impl Places {
    /// The number of a place.
    pub fn number(&mut self, place: Place) -> u32 {
        *self.numbers.entry(place).or_insert_with(|| {
            self.list.push(place);
            self.list.len() as u32 - 1
        })
    }
}
