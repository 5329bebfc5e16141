//! Hashes of keys.
//!
//! Equal keys have equal hashes whatever width of number their values came in. The function is part of the format: pages are read with the
//! hashes that they were written with.

use crate::column::{Column, ColumnData};
use crate::error::Result;
use crate::fragment::Fragment;
use crate::value::Value;

/// Digits of pi.
const SEED: u64 = 0x243f_6a88_85a3_08d3;
const MULTIPLIER: u64 = 0x1319_8a2e_0370_7345;

/// Takes the values of a key, in the order of the key's columns, and gives the hash.
#[derive(Debug, Clone, Copy)]
pub struct KeyHash(u64);

impl Default for KeyHash {
    fn default() -> Self {
        Self(SEED)
    }
}

impl KeyHash {
    #[inline]
    fn word(&mut self, word: u64) {
        let product = u128::from((self.0 ^ word).wrapping_add(SEED)) * u128::from(MULTIPLIER);
        self.0 = (product as u64) ^ ((product >> 64) as u64) ^ self.0.rotate_left(23);
    }

    #[inline]
    fn integer(&mut self, v: i128) {
        self.word(v as u64);
        self.word(2 ^ ((v >> 64) as u64) << 8);
    }

    #[inline]
    fn bytes(&mut self, v: &[u8]) {
        self.word(4 ^ (v.len() as u64) << 8);
        let mut chunks = v.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.word(u64::from_le_bytes(word));
        }
    }

    /// Takes one value; false if it is null (such a key is in no key map) or of a type that no key map has (floats, which
    /// are equal in more ways than one).
    pub fn feed(&mut self, value: &Value) -> bool {
        match value {
            Value::Null | Value::F32(_) | Value::F64(_) => return false,
            Value::Bool(v) => self.word(1 ^ u64::from(*v) << 8),
            Value::I16(v) => self.integer((*v).into()),
            Value::I32(v) => self.integer((*v).into()),
            Value::I64(v) => self.integer((*v).into()),
            Value::I128(v) => self.integer(*v),
            Value::Bytes(v) => self.bytes(v),
        }
        true
    }

    /// The value of row `i`, as [`KeyHash::feed`].
    #[inline]
    fn feed_row(&mut self, column: &Column, i: usize) -> bool {
        if column.is_null(i) {
            return false;
        }
        match &column.data {
            ColumnData::I16(v) => self.integer(v[i].into()),
            ColumnData::I32(v) => self.integer(v[i].into()),
            ColumnData::I64(v) => self.integer(v[i].into()),
            data @ (ColumnData::Bytes { .. } | ColumnData::Fixed { .. }) => self.bytes(data.bytes(i)),
            data => return self.feed(&data.value(i)),
        }
        true
    }

    /// The hash.
    pub fn finish(mut self) -> u32 {
        self.word(0);
        (self.0 >> 32) as u32
    }
}

/// The hash of a key; `None` if it is in no key map.
pub fn key_hash<'a>(values: impl IntoIterator<Item = &'a Value>) -> Option<u32> {
    let mut hash = KeyHash::default();
    values.into_iter().all(|v| hash.feed(v)).then(|| hash.finish())
}

/// The hashes of the keys of all rows of a fragment, sorted; `columns` by position in its schema. Keys with a null are left out.
pub fn fragment_hashes(fragment: &Fragment, columns: &[usize]) -> Result<Vec<u32>> {
    let mut hashes = Vec::with_capacity(fragment.rows() as usize);
    for (b, block) in fragment.blocks().iter().enumerate() {
        let values = columns.iter().map(|c| fragment.read(b, *c)).collect::<Result<Vec<_>>>()?;
        for i in 0..block.rows as usize {
            let mut hash = KeyHash::default();
            if values.iter().all(|column| hash.feed_row(column, i)) {
                hashes.push(hash.finish());
            }
        }
    }
    hashes.sort_unstable();
    Ok(hashes)
}
