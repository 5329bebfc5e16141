//! Which fragments of a table may matter to a scan or a look-up.

use std::ops::Range;

/// Fragments that may matter, by their number in the table's list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Stretches of them, ascending.
    pub ranges: Vec<Range<usize>>,
    /// The segments that were asked.
    pub segments_probed: u64,
}

impl Candidates {
    /// All of `n`.
    pub fn all(n: usize) -> Self {
        let mut all = Self::default();
        if n > 0 {
            all.ranges.push(0..n);
        }
        all
    }

    /// From numbers in any order.
    pub fn from_numbers(mut numbers: Vec<usize>, segments_probed: u64) -> Self {
        numbers.sort_unstable();
        let mut all = Self { ranges: Vec::new(), segments_probed };
        for n in numbers {
            match all.ranges.last_mut() {
                Some(last) if last.end > n => {}
                Some(last) if last.end == n => last.end += 1,
                _ => all.ranges.push(n..n + 1),
            }
        }
        all
    }

    /// Their numbers.
    pub fn numbers(&self) -> impl Iterator<Item = usize> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }

    /// The first from `number` on.
    pub fn next(&self, number: usize) -> Option<usize> {
        let i = self.ranges.partition_point(|r| r.end <= number);
        self.ranges.get(i).map(|r| r.start.max(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_stretches_in_order() {
        let c = Candidates::from_numbers(vec![7, 1, 2, 2, 9, 8], 3);
        assert_eq!(c.ranges, vec![1..3, 7..10]);
        assert_eq!(c.len(), 5);
        assert_eq!(c.numbers().collect::<Vec<_>>(), vec![1, 2, 7, 8, 9]);
        assert_eq!(
            (c.next(0), c.next(2), c.next(3), c.next(9), c.next(10)),
            (Some(1), Some(2), Some(7), Some(9), None)
        );
        assert_eq!(Candidates::all(0).len(), 0);
    }
}
