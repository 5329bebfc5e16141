//! Words where they lie packed: one of them is read without decoding the others.
//!
//! A look-up compares a few words of a key with what it looks for, and reads one of each other column. To decode
//! a block's 32,768 for that takes their memory and some ten microseconds a column; to read one from where it lies takes nanoseconds.
//!
//! ```text
//!  array (tree of encodings) ──Packed::new──► Packed: the same tree with its buffers, shared with the array
//!     Primitive                 Raw            word i at i
//!     BitPacked                 Bits           FastLanes' place of word i; what does not fit is among the patches: binary search
//!     RunEnd                    Runs           binary search in the ends
//!     Dict                      Codes          code i, then the value
//!     FoR, Sequence, Constant   …              arithmetic
//!  Numbers: a Packed and what its words mean; differences are summed from the nearest of the sums that are kept each STEPS steps
//! ```
//!
//! What has another encoding has no `Packed`, and is decoded. Whatever a damaged array claims, reading is checked: `None`.
//!
//! **FastLanes' order.** 1,024 words of `T` bits are packed together, into `W` bits each, as 1024 / T lanes of T rows: word `i` is in row
//! `8 * order(j) + i / 128` of lane `i % lanes`, where `j` counts the sixteens of `i % 128` that its lanes leave, and `order`
//! reverses three bits (<https://www.vldb.org/pvldb/vol16/p2132-afroozeh.pdf>, section 3: the unified transposed layout). A lane's rows follow
//! each other without gaps in its words, which are `lanes` apart.

use std::cell::OnceCell;
use std::ops::{Add, Div, Range, Sub};

use vortex::array::ArrayRef;
use vortex::array::arrays::dict::DictArraySlotsExt;
use vortex::array::arrays::{Constant, Dict, Primitive};
use vortex::array::patches::Patches;
use vortex::buffer::ByteBuffer;
use vortex::dtype::PType;
use vortex::encodings::fastlanes::{
    BitPacked, BitPackedArrayExt, BitWidthsView, FoR, FoRArrayExt, FoRArraySlotsExt, FoRReferences,
};
use vortex::encodings::runend::{RunEnd, RunEndArrayExt, RunEndArraySlotsExt};
use vortex::encodings::sequence::Sequence;

use super::whole::{Whole, Word};

/// FastLanes packs so many words at a time.
const PACKED: usize = 1024;
/// A sum of differences is kept after so many steps of each series.
const STEPS: usize = 128;
/// Encodings within encodings; no writer comes near it.
const DEPTH: u8 = 8;

/// Words as an array keeps them.
#[derive(Debug)]
pub(super) enum Packed {
    Raw { bytes: ByteBuffer, width: usize, len: usize },
    Bits(Bits),
    Runs { ends: Box<Self>, values: Box<Self>, offset: usize, len: usize },
    Codes { codes: Box<Self>, values: Box<Self> },
    Above { reference: u64, mask: u64, words: Box<Self> },
    Sequence { base: u64, step: u64, mask: u64, len: usize },
    Constant { word: u64, len: usize },
}

/// Bit-packed words.
#[derive(Debug)]
pub(super) struct Bits {
    bytes: ByteBuffer,
    /// The bits of a word, and of a packed one.
    word: usize,
    width: usize,
    offset: usize,
    len: usize,
    patches: Option<Box<Patched>>,
}

/// Words that did not fit, by their position.
#[derive(Debug)]
struct Patched {
    at: Packed,
    words: Packed,
    offset: usize,
}

/// The bits of an unsigned type.
fn bits_of(ptype: PType) -> Option<usize> {
    match ptype {
        PType::U8 => Some(8),
        PType::U16 => Some(16),
        PType::U32 => Some(32),
        PType::U64 => Some(64),
        _ => None,
    }
}

fn mask(bits: usize) -> u64 {
    match bits {
        64 => u64::MAX,
        bits => (1 << bits) - 1,
    }
}

/// The little-endian word of `width` bytes at position `i`.
#[inline]
fn word_at(bytes: &[u8], width: usize, i: usize) -> Option<u64> {
    let start = i.checked_mul(width)?;
    let word = bytes.get(start..start.checked_add(width)?)?;
    Some(match width {
        1 => u64::from(*word.first()?),
        2 => u64::from(u16::from_le_bytes(word.try_into().ok()?)),
        4 => u64::from(u32::from_le_bytes(word.try_into().ok()?)),
        _ => u64::from_le_bytes(word.try_into().ok()?),
    })
}

impl Packed {
    /// The words of an array, if all of its encodings are known here.
    pub(super) fn new(array: &ArrayRef) -> Option<Self> {
        Self::within(array, DEPTH)
    }

    fn within(array: &ArrayRef, depth: u8) -> Option<Self> {
        let depth = depth.checked_sub(1)?;
        let dtype = array.dtype();
        if dtype.is_nullable() || !dtype.is_primitive() {
            return None;
        }
        let bits = bits_of(dtype.as_ptype())?;
        let len = array.len();
        let boxed = |array: &ArrayRef| Self::within(array, depth).map(Box::new);
        if let Some(a) = array.as_opt::<Primitive>() {
            let bytes = a.buffer_handle().as_host_opt()?.clone();
            return Some(Self::Raw { bytes, width: bits / 8, len });
        }
        if let Some(a) = array.as_opt::<BitPacked>() {
            let BitWidthsView::Global(width) = a.bit_widths() else { return None };
            let patches = match a.patches() {
                Some(patches) => Some(Box::new(Patched::new(&patches, depth)?)),
                None => None,
            };
            let bytes = a.packed().as_host_opt()?.clone();
            let (width, offset) = (usize::from(width), usize::from(a.offset()));
            return (width <= bits).then_some(Self::Bits(Bits { bytes, word: bits, width, offset, len, patches }));
        }
        if let Some(a) = array.as_opt::<RunEnd>() {
            return Some(Self::Runs { ends: boxed(a.ends())?, values: boxed(a.values())?, offset: a.offset(), len });
        }
        if let Some(a) = array.as_opt::<Dict>() {
            return Some(Self::Codes { codes: boxed(a.codes())?, values: boxed(a.values())? });
        }
        if let Some(a) = array.as_opt::<FoR>() {
            let FoRReferences::Global(reference) = a.references() else { return None };
            let reference = reference.as_primitive().as_::<u64>()?;
            return Some(Self::Above { reference, mask: mask(bits), words: boxed(a.encoded())? });
        }
        if let Some(a) = array.as_opt::<Sequence>() {
            let (base, step) = a.wrapping_bits().ok()?;
            return Some(Self::Sequence { base, step, mask: mask(bits), len });
        }
        if let Some(a) = array.as_opt::<Constant>() {
            return Some(Self::Constant { word: a.scalar().as_primitive().as_::<u64>()?, len });
        }
        None
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Raw { len, .. }
            | Self::Runs { len, .. }
            | Self::Sequence { len, .. }
            | Self::Constant { len, .. }
            | Self::Bits(Bits { len, .. }) => *len,
            Self::Codes { codes: words, .. } | Self::Above { words, .. } => words.len(),
        }
    }

    /// Word `i`; `None` if there is none, or if the array contradicts itself.
    pub(super) fn get(&self, i: usize) -> Option<u64> {
        if i >= self.len() {
            return None;
        }
        match self {
            Self::Raw { bytes, width, .. } => word_at(bytes, *width, i),
            Self::Bits(bits) => match bits.patches.as_deref().and_then(|p| p.get(i)) {
                Some(word) => Some(word),
                None => bits.unpatched(i),
            },
            Self::Runs { ends, values, offset, .. } => {
                let at = (i + offset) as u64;
                values.get(ends.partition(0..ends.len(), |end| end <= at))
            }
            Self::Codes { codes, values } => values.get(usize::try_from(codes.get(i)?).ok()?),
            Self::Above { reference, mask, words } => Some(words.get(i)?.wrapping_add(*reference) & mask),
            Self::Sequence { base, step, mask, .. } => Some(base.wrapping_add(step.wrapping_mul(i as u64)) & mask),
            Self::Constant { word, .. } => Some(*word),
        }
    }

    /// The first position of the range whose word does not satisfy the condition, where none after one that does not does.
    fn partition(&self, range: Range<usize>, holds: impl Fn(u64) -> bool) -> usize {
        partition(range, |i| self.get(i).is_some_and(&holds))
    }
}

/// The first of the range that does not satisfy the condition, where none after one that does not does.
pub(crate) fn partition<T>(range: Range<T>, holds: impl Fn(T) -> bool) -> T
where
    T: Copy + Ord + From<u8> + Add<Output = T> + Sub<Output = T> + Div<Output = T>,
{
    let Range { mut start, mut end } = range;
    while start < end {
        let middle = start + (end - start) / T::from(2);
        if holds(middle) {
            start = middle + T::from(1);
        } else {
            end = middle;
        }
    }
    start
}

impl Bits {
    /// The bits that are packed for word `i`.
    #[inline]
    fn unpatched(&self, i: usize) -> Option<u64> {
        if self.width == 0 {
            return Some(0);
        }
        let i = i + self.offset;
        let (chunk, i) = (i / PACKED, i % PACKED);
        let lanes = PACKED / self.word;
        let (eighth, rest) = (i / 128, i % 128);
        let reversed = (rest / lanes * lanes / 16) & 7;
        let order = (reversed & 1) << 2 | reversed & 2 | reversed >> 2;
        let bit = (order * 8 + eighth) * self.width;
        let start = chunk * (PACKED * self.width / self.word);
        let at = start + bit / self.word * lanes + rest % lanes;
        let shift = bit % self.word;
        let bytes = self.word / 8;
        let mut word = word_at(&self.bytes, bytes, at)? >> shift;
        if shift + self.width > self.word {
            word |= word_at(&self.bytes, bytes, at + lanes)? << (self.word - shift);
        }
        Some(word & mask(self.width))
    }
}

impl Patched {
    fn new(patches: &Patches, depth: u8) -> Option<Self> {
        let (at, words) = (Packed::within(patches.indices(), depth)?, Packed::within(patches.values(), depth)?);
        (at.len() == words.len()).then_some(Self { at, words, offset: patches.offset() })
    }

    /// The first patch that is not before word `i`.
    fn first(&self, i: usize) -> usize {
        let i = (i + self.offset) as u64;
        self.at.partition(0..self.at.len(), |at| at < i)
    }

    fn get(&self, i: usize) -> Option<u64> {
        let patch = self.first(i);
        (self.at.get(patch)? == (i + self.offset) as u64).then(|| self.words.get(patch)).flatten()
    }
}

/// The whole numbers of a chunk where they lie packed.
#[derive(Debug)]
pub(super) struct Numbers {
    whole: Whole,
    array: ArrayRef,
    words: Packed,
    /// Of each series (see [`Whole::lag`]) the sum before each [`STEPS`] steps, made when first wanted.
    sums: OnceCell<Vec<u64>>,
}

impl Numbers {
    /// `None` if they cannot be read where they are.
    pub(super) fn new(array: &ArrayRef, whole: Whole) -> Option<Self> {
        Some(Self { whole, words: Packed::new(array)?, array: array.clone(), sums: OnceCell::new() })
    }

    /// The memory that they take beside the array, at most: the sums.
    pub(super) fn memory(whole: &Whole, len: usize) -> usize {
        let nodes = 4 * size_of::<Packed>();
        if whole.lag == 0 { nodes } else { nodes + size_of::<u64>() * (len / STEPS + whole.lag as usize) }
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    fn lag(&self) -> usize {
        self.whole.lag as usize
    }

    /// A word that is a difference, summed to another.
    #[inline]
    fn step(&self, sum: u64, word: u64) -> u64 {
        sum.wrapping_add(word).wrapping_add(self.whole.offset) & mask(self.whole.bits.into())
    }

    /// The sums before steps 0, [`STEPS`], 2 * [`STEPS`], … of all series, one behind the other.
    fn sums(&self) -> Option<&[u64]> {
        if let Some(sums) = self.sums.get() {
            return Some(sums);
        }
        // All at once they are decoded faster than one by one.
        let all = super::guard(|| super::decode::primitive(self.array.clone())).ok()?;
        let lag = self.lag();
        let sums = match all.ptype() {
            PType::U8 => self.sums_of(all.to_buffer::<u8>().as_slice(), lag),
            PType::U16 => self.sums_of(all.to_buffer::<u16>().as_slice(), lag),
            PType::U32 => self.sums_of(all.to_buffer::<u32>().as_slice(), lag),
            PType::U64 => self.sums_of(all.to_buffer::<u64>().as_slice(), lag),
            _ => return None,
        };
        Some(self.sums.get_or_init(|| sums))
    }

    fn sums_of<T: Word>(&self, words: &[T], lag: usize) -> Vec<u64> {
        let offset = T::low(self.whole.offset);
        let mut sums = Vec::with_capacity(words.len() / STEPS + lag);
        let mut now = vec![T::ZERO; lag.min(words.len())];
        for group in words.chunks(lag * STEPS) {
            sums.extend(now.iter().map(|sum| (*sum).into()));
            match now.as_mut_slice() {
                [sum] => *sum = group.iter().fold(*sum, |sum, w| sum.plus(*w).plus(offset)),
                now => {
                    for step in group.chunks(lag) {
                        for (sum, w) in now.iter_mut().zip(step) {
                            *sum = sum.plus(*w).plus(offset);
                        }
                    }
                }
            }
        }
        sums
    }

    /// To read words as they are kept, in ascending order from word `i` on.
    fn walk(&self, i: usize) -> Walk<'_> {
        match &self.words {
            Packed::Bits(bits) => Walk::bits(bits, i),
            words => Walk::Other(words),
        }
    }

    /// Word `i` without differences.
    fn word(&self, i: usize) -> Option<u64> {
        let lag = self.lag();
        if lag == 0 || i >= self.len() {
            return self.words.get(i);
        }
        let (step, series) = (i / lag, i % lag);
        let group = step / STEPS;
        let first = group * STEPS * lag + series;
        // Each group has a sum for each series, but the series may be fewer than the lag.
        let mut sum = *self.sums()?.get(group * lag + series)?;
        let mut walk = self.walk(first);
        let mut at = first;
        while at <= i {
            sum = self.step(sum, walk.word(at)?);
            at += lag;
        }
        Some(sum)
    }

    /// Number `i`; `None` if there is none.
    pub(super) fn get(&self, i: usize) -> Option<i128> {
        Some(self.whole.number(self.word(i)?))
    }

    /// Word `i` and how it is to be read.
    pub(super) fn plain(&self, i: usize) -> Option<(Whole, u64)> {
        Some((Whole { lag: 0, offset: 0, ..self.whole }, self.word(i)?))
    }

    /// Those of the range that equal `number`, where the range is in ascending order.
    pub(super) fn equal(&self, range: Range<usize>, number: i128) -> Option<Range<usize>> {
        let none = Some(range.start..range.start);
        let Some(distance) = number.checked_sub(self.whole.base).and_then(|d| u128::try_from(d).ok()) else {
            return none;
        };
        let scale = u128::from(self.whole.scale.max(1));
        let Ok(word) = u64::try_from(distance / scale) else { return none };
        if distance % scale != 0 || range.end > self.len() {
            return none;
        }
        if self.lag() == 1 {
            return self.equal_sums(range, word);
        }
        let start = self.search(range.clone(), |w| w < word)?;
        Some(start..self.end_of_equal(start..range.end, word)?)
    }

    /// The end of the words at the beginning of a range, in ascending order, that equal `word`.
    fn end_of_equal(&self, range: Range<usize>, word: u64) -> Option<usize> {
        // As a rule there are few of them.
        let (mut end, mut stride) = (range.start, 1);
        while end < range.end && self.word(end)? == word {
            let next = (end + stride).min(range.end);
            if next == range.end || self.word(next)? != word {
                return self.search(end + 1..next, |w| w == word);
            }
            (end, stride) = (next, stride * 2);
        }
        Some(end)
    }

    /// [`partition`] by words without differences.
    fn search(&self, range: Range<usize>, holds: impl Fn(u64) -> bool) -> Option<usize> {
        // The runs of a range are fewer than its words.
        if let (Packed::Runs { ends, values, offset, .. }, 0) = (&self.words, self.lag()) {
            if range.is_empty() {
                return Some(range.start);
            }
            let run = |i: usize| ends.partition(0..ends.len(), |end| end <= (i + offset) as u64);
            let (first, last) = (run(range.start), run(range.end - 1));
            let run = values.partition(first..last + 1, &holds);
            let end = match run.checked_sub(1) {
                Some(before) if run > first => usize::try_from(ends.get(before)?).ok()?.checked_sub(*offset)?,
                _ => range.start,
            };
            return Some(end.clamp(range.start, range.end));
        }
        let missing = std::cell::Cell::new(false);
        let found = partition(range, |i| match self.word(i) {
            Some(word) => holds(word),
            None => {
                missing.set(true);
                false
            }
        });
        (!missing.get()).then_some(found)
    }

    /// Those of the range, which is in ascending order, whose sum of single differences is `word`.
    fn equal_sums(&self, range: Range<usize>, word: u64) -> Option<Range<usize>> {
        if range.is_empty() {
            return Some(range.start..range.start);
        }
        let sums = self.sums()?;
        // The sum before a group is the number at its last position before it.
        let groups = range.start / STEPS + 1..range.end.div_ceil(STEPS);
        let group = partition(groups, |g| sums.get(g).is_some_and(|sum| *sum < word)) - 1;
        let (first, mut sum) = (group * STEPS, *sums.get(group)?);
        let mut walk = self.walk(first);
        let mut found = None;
        // The one that is looked for is in this group or the first of the next; those that equal it follow.
        for i in first..range.end.min(first + 2 * STEPS) {
            sum = self.step(sum, walk.word(i)?);
            if i < range.start {
                continue;
            }
            match found {
                None if sum == word => found = Some(i),
                None if sum > word => return Some(i..i),
                Some(start) if sum != word => return Some(start..i),
                _ => {}
            }
        }
        let end = range.end.min(first + 2 * STEPS);
        match found {
            Some(start) => Some(start..self.end_of_equal(end..range.end, word)?),
            None => Some(end..end),
        }
    }
}

/// Reads words in ascending order: patches are gone through beside them.
enum Walk<'a> {
    Bits { bits: &'a Bits, patch: usize, next: usize },
    Other(&'a Packed),
}

impl<'a> Walk<'a> {
    fn bits(bits: &'a Bits, from: usize) -> Self {
        let patch = bits.patches.as_deref().map_or(0, |p| p.first(from));
        Self::Bits { bits, patch, next: Self::position(bits, patch) }
    }

    /// The word that a patch is for.
    fn position(bits: &Bits, patch: usize) -> usize {
        let at = bits.patches.as_deref().and_then(|p| p.at.get(patch)?.checked_sub(p.offset as u64));
        at.and_then(|at| usize::try_from(at).ok()).unwrap_or(usize::MAX)
    }

    /// Word `i`, which is not before the last one that was read.
    #[inline]
    fn word(&mut self, i: usize) -> Option<u64> {
        match self {
            Self::Other(words) => words.get(i),
            Self::Bits { bits, patch, next } => {
                while *next < i {
                    *patch += 1;
                    *next = Self::position(bits, *patch);
                }
                match *next == i {
                    true => bits.patches.as_deref()?.words.get(*patch),
                    false => bits.unpatched(i),
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
