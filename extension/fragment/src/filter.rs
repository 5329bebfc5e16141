//! Approximate membership: which keys a block may hold.
//!
//! A split-block Bloom filter as Parquet defines it (eight 32-bit words a block, one bit in each), over 64-bit hashes.
//! The hash of a key is the first eight bytes, little-endian, of the BLAKE3 of its canonical form: equal values have
//! equal forms, whatever width of number they came in.

use crate::value::Value;

/// The memory of a filter per key; about one key in a hundred that is not there passes.
const BITS_PER_KEY: usize = 10;
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];
const BLOCK: usize = 32;

/// Feeds the canonical forms of a key's values, in the order of the key's columns, and gives the hash.
pub(crate) struct KeyHasher(blake3::Hasher);

impl KeyHasher {
    pub(crate) fn new() -> Self {
        Self(blake3::Hasher::new())
    }

    /// Feeds one value; false if it is null, in which case the key is in no filter.
    pub(crate) fn feed(&mut self, value: &Value) -> bool {
        match value {
            Value::Null => return false,
            Value::Bool(v) => self.0.update(&[1, (*v).into()]),
            Value::I16(v) => self.integer((*v).into()),
            Value::I32(v) => self.integer((*v).into()),
            Value::I64(v) => self.integer((*v).into()),
            Value::I128(v) => self.integer(*v),
            Value::F32(v) => self.float((*v).into()),
            Value::F64(v) => self.float(*v),
            Value::Bytes(v) => return self.bytes(v),
        };
        true
    }

    fn integer(&mut self, v: i128) -> &mut blake3::Hasher {
        self.0.update(&[2]).update(&v.to_le_bytes())
    }

    fn float(&mut self, v: f64) -> &mut blake3::Hasher {
        let v = if v.is_nan() {
            f64::NAN
        } else if v == 0.0 {
            0.0
        } else {
            v
        };
        self.0.update(&[3]).update(&v.to_bits().to_le_bytes())
    }

    pub(crate) fn bytes(&mut self, v: &[u8]) -> bool {
        self.0.update(&[4]).update(&(v.len() as u64).to_le_bytes()).update(v);
        true
    }

    pub(crate) fn finish(&self) -> u64 {
        let mut first = [0; 8];
        first.copy_from_slice(&self.0.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
}

/// The hash of a key, or `None` if a value of it is null.
pub(crate) fn hash<'a>(values: impl IntoIterator<Item = &'a Value>) -> Option<u64> {
    let mut h = KeyHasher::new();
    for v in values {
        if !h.feed(v) {
            return None;
        }
    }
    Some(h.finish())
}

fn positions(hash: u64, blocks: usize) -> (usize, [u32; 8]) {
    let block = ((u128::from(hash >> 32) * blocks as u128) >> 32) as usize;
    (block, SALT.map(|s| 1 << ((hash as u32).wrapping_mul(s) >> 27)))
}

/// A filter of these hashes.
pub(crate) fn build(hashes: &[u64]) -> Vec<u8> {
    let blocks = (hashes.len() * BITS_PER_KEY).div_ceil(BLOCK * 8).max(1);
    let mut out = vec![0; blocks * BLOCK];
    for h in hashes {
        let (block, mask) = positions(*h, blocks);
        for (word, bit) in out[block * BLOCK..(block + 1) * BLOCK].chunks_exact_mut(4).zip(mask) {
            for (byte, set) in word.iter_mut().zip(bit.to_le_bytes()) {
                *byte |= set;
            }
        }
    }
    out
}

/// Whether the filter may hold the hash. A filter of a length that cannot be holds everything.
pub(crate) fn may_contain(filter: &[u8], hash: u64) -> bool {
    if filter.is_empty() || !filter.len().is_multiple_of(BLOCK) {
        return true;
    }
    let (block, mask) = positions(hash, filter.len() / BLOCK);
    filter[block * BLOCK..(block + 1) * BLOCK]
        .chunks_exact(4)
        .zip(mask)
        .all(|(word, bit)| word.iter().zip(bit.to_le_bytes()).all(|(byte, set)| byte & set == set))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(range: std::ops::Range<i64>) -> Vec<u64> {
        range.filter_map(|i| hash([&Value::I64(i)])).collect()
    }

    #[test]
    fn what_is_in_is_found_and_little_else() {
        let inside = hashes(0..32_768);
        let filter = build(&inside);
        assert!(inside.iter().all(|h| may_contain(&filter, *h)));
        let false_hits = hashes(100_000..200_000).iter().filter(|h| may_contain(&filter, **h)).count();
        assert!(false_hits < 2_500, "{false_hits} of 100,000");
    }

    #[test]
    fn equal_values_have_equal_hashes() {
        assert_eq!(hash([&Value::I16(7)]), hash([&Value::I128(7)]));
        assert_eq!(hash([&Value::F32(-0.0)]), hash([&Value::F64(0.0)]));
        assert_eq!(hash([&Value::F64(f64::NAN)]), hash([&Value::F32(-f32::NAN)]));
        assert_ne!(hash([&Value::I16(1)]), hash([&Value::Bool(true)]));
        assert_eq!(hash([&Value::I16(1), &Value::Null]), None);
        let (a, b) = (Value::Bytes(b"ab".to_vec()), Value::Bytes(b"c".to_vec()));
        let (c, d) = (Value::Bytes(b"a".to_vec()), Value::Bytes(b"bc".to_vec()));
        assert_ne!(hash([&a, &b]), hash([&c, &d]));
    }
}
