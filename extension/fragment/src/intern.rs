//! Numbering the distinct values of a column of bytes while its rows are collected.
//!
//! Columns of text mostly have few distinct values. Told apart as they come, their rows are small numbers from then on: to sort,
//! to gather into blocks, to bound and to encode as a dictionary. A value that comes again costs one hash and one comparison.

/// Distinct values and their numbers, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Interner {
    data: Vec<u8>,
    ends: Vec<u32>,
    /// Open addressing: the number of a value plus one, or zero. A power of two of them, at most half of them used.
    slots: Vec<u16>,
}

/// Values that may be numbered; a column with more is kept as it is.
pub(crate) const MOST: usize = 4096;
/// Slots looked at for one value before the column is given up: whoever chooses values that collide gains nothing.
const PATIENCE: usize = 64;
/// All distinct values together.
const MOST_BYTES: usize = 1 << 20;

/// Every bit of the result depends on every bit of the value: both halves of a product of 128 bits.
fn hash(v: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |h: u64, word: u64| {
        let product = u128::from(h ^ word ^ 0xa076_1d64_78bd_642f) * u128::from(K);
        product as u64 ^ (product >> 64) as u64
    };
    let mut h = mix(0, v.len() as u64);
    let mut words = v.chunks_exact(8);
    for w in &mut words {
        h = mix(h, w.try_into().map_or(0, u64::from_le_bytes));
    }
    let last = words.remainder().iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
    mix(mix(h, last), K)
}

impl Interner {
    pub(crate) fn new() -> Self {
        Self { data: Vec::new(), ends: Vec::new(), slots: vec![0; 64] }
    }

    /// The number of distinct values.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The value with this number.
    pub(crate) fn get(&self, number: usize) -> &[u8] {
        let start = number.checked_sub(1).map_or(0, |p| self.ends[p]);
        &self.data[start as usize..self.ends[number] as usize]
    }

    /// The number of a value, which gets one if it has none; `None` if there would be too many.
    pub(crate) fn number(&mut self, v: &[u8]) -> Option<u16> {
        let mask = self.slots.len() - 1;
        let mut at = hash(v) as usize & mask;
        for _ in 0..PATIENCE {
            match self.slots[at] {
                0 => return self.add(at, v),
                n if self.get(usize::from(n) - 1) == v => return Some(n - 1),
                _ => at = (at + 1) & mask,
            }
        }
        None
    }

    fn add(&mut self, slot: usize, v: &[u8]) -> Option<u16> {
        let number = self.len();
        if number >= MOST || self.data.len() + v.len() > MOST_BYTES {
            return None;
        }
        self.data.extend_from_slice(v);
        self.ends.push(self.data.len() as u32);
        self.slots[slot] = number as u16 + 1;
        if (number + 1) * 2 > self.slots.len() {
            let size = self.slots.len() * 2;
            let mut slots = vec![0; size];
            for n in 0..self.len() {
                let mut at = hash(self.get(n)) as usize & (size - 1);
                while slots[at] != 0 {
                    at = (at + 1) & (size - 1);
                }
                slots[at] = n as u16 + 1;
            }
            self.slots = slots;
        }
        Some(number as u16)
    }

    /// For each value by number, its place among the values in the order of bytes.
    pub(crate) fn ranks(&self) -> Vec<u16> {
        let mut sorted: Vec<usize> = (0..self.len()).collect();
        sorted.sort_unstable_by(|a, b| self.get(*a).cmp(self.get(*b)));
        let mut ranks = vec![0; self.len()];
        for (rank, n) in sorted.into_iter().enumerate() {
            ranks[n] = rank as u16;
        }
        ranks
    }

    /// The length of the longest value.
    pub(crate) fn longest(&self) -> usize {
        (0..self.len()).map(|n| self.get(n).len()).max().unwrap_or(0)
    }

    pub(crate) fn memory(&self) -> usize {
        self.data.capacity() + self.ends.capacity() * 4 + self.slots.capacity() * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_have_one_number_and_others_another() {
        let mut i = Interner::new();
        let values: Vec<Vec<u8>> = (0..3000u32).map(|n| n.to_string().into_bytes()).collect();
        for round in 0..2 {
            for (n, v) in values.iter().enumerate() {
                assert_eq!(i.number(v), Some(n as u16), "round {round}");
            }
        }
        assert_eq!((i.len(), i.get(17)), (3000, &b"17"[..]));
        assert_eq!(i.number(b""), Some(3000));
        assert_eq!(i.number(b"12345678901234567890"), Some(3001));
        let ranks = i.ranks();
        assert!(ranks[10] < ranks[2] && ranks[3000] == 0);
        assert_eq!(i.longest(), 20);
    }

    #[test]
    fn names_that_differ_at_their_end_do_not_collide() {
        for length in [1, 5, 6, 7, 8, 12, 30] {
            let mut i = Interner::new();
            let prefix = "x".repeat(length);
            for n in 0..2000 {
                assert_eq!(i.number(format!("{prefix}{n}").as_bytes()), Some(n), "{length} {n}");
            }
        }
    }

    #[test]
    fn too_many_values_are_refused() {
        let mut i = Interner::new();
        let known = (0..10_000u32).take_while(|n| i.number(&n.to_le_bytes()).is_some()).count();
        assert!(known <= MOST, "{known}");
        assert_eq!(i.number(&vec![1; MOST_BYTES]), None);
    }
}
