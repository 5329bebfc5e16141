//! The set of null rows of a chunk, stored as a Roaring bitmap in its portable format.

use roaring::RoaringBitmap;

/// Which rows of a block are null.
#[derive(Debug, Clone)]
pub(crate) struct NullSet(RoaringBitmap);

impl NullSet {
    pub(crate) fn encode(nulls: &[bool]) -> Vec<u8> {
        let mut set: RoaringBitmap = (0u32..).zip(nulls).filter(|(_, null)| **null).map(|(i, _)| i).collect();
        set.optimize();
        let mut out = Vec::with_capacity(set.serialized_size());
        // Writing to a vector cannot fail; were it to, the check after encoding would see it.
        let _ = set.serialize_into(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8], rows: u32, count: u32) -> Result<Self, String> {
        let set = RoaringBitmap::deserialize_from(bytes).map_err(|e| format!("null set: {e}"))?;
        if set.len() != u64::from(count) || set.max().is_some_and(|m| m >= rows) {
            return Err(format!("null set of {} rows instead of {count} of {rows}", set.len()));
        }
        Ok(Self(set))
    }

    pub(crate) fn contains(&self, row: u32) -> bool {
        self.0.contains(row)
    }

    /// The position of a row among the rows that are not null.
    pub(crate) fn dense(&self, row: u32) -> usize {
        (u64::from(row) - self.0.rank(row)) as usize
    }

    pub(crate) fn to_bools(&self, rows: u32) -> Vec<bool> {
        let mut out = vec![false; rows as usize];
        for i in &self.0 {
            if let Some(b) = out.get_mut(i as usize) {
                *b = true;
            }
        }
        out
    }

    pub(crate) fn memory(&self) -> usize {
        self.0.serialized_size()
    }
}
