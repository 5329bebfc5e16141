//! The fragment index: segments over the fragments of a table, by age. No PostgreSQL here, and no files: who keeps the
//! segments gives and takes bytes.
//!
//! ```text
//!  row ids   0 ──────────────────────────────────────────────────────────────────────────────► newest
//!  level 2  [ 16 fragments                    ]
//!  level 1                                      [ 4 fragments ][ 4 fragments ]
//!  level 0                                                                     [ 1 ][ 1 ][ 1 ]
//! ```
//!
//! The newest fragments have a segment of their own. [`FAN_OUT`] segments of a level become one of the next as fragments are
//! added ([`fold`]), so a table of n fragments has at most `(FAN_OUT - 1) · (1 + log n)` of them, and what is known of a
//! fragment is written again `log n` times in its life. Segments divide the row ids among them: those of one lie before
//! those of the next, and each fragment is in one segment.
//!
//! A segment has two parts:
//!
//! - **Its [`Directory`]**: which fragments it spans, with their row ids, bounds of all their columns and how they are kept. It
//!   answers "which fragment has this row id" and "which fragments may have values in this range". It is small, and written
//!   again when one of its fragments is replaced.
//! - **[`KeyMap`]s** for unique keys whose ranges do not tell fragments apart, as those of random uuids: pages with one
//!   entry for each key, a 32-bit hash and the place it leads to. A look-up reads one page of a segment and learns which of its
//!   fragments may have the key: mostly one or none, whatever their number. A place is a *range of row ids*, not a
//!   fragment. Row ids stay when fragments are written again or merged, so consolidation leaves the pages alone.
//!
//! Everything here may say "maybe" where the truth is "no", and never "no" where the truth is "maybe": a key map has the keys of all rows
//! in its ranges, also of deleted ones; bounds are those of the fragments' own zone maps.
//!
//! Directory and pages carry a version and a checksum. Damage is an error; the caller then looks at the fragments themselves.

mod directory;
mod fold;
mod hash;
mod keymap;

pub use directory::{Described, Directory, Layout, Member, encode_directory};
pub use fold::{FAN_OUT, Node, Part, fold};
pub use hash::{KeyHash, fragment_hashes, key_hash};
pub use keymap::{KeyMap, Place, Places, merge_entries, write_key_map};

use crate::value::Value;

/// A segment's bytes are not what was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SegmentDamage(pub String);

impl SegmentDamage {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// An integer that values are in the order of, as far as it goes: of two values the smaller one never has the larger
/// integer, but different ones may have the same. `None` for null. Only integers of values of one type compare.
pub fn order_key(value: &Value) -> Option<i128> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(v) => i128::from(*v),
        Value::I16(v) => i128::from(*v),
        Value::I32(v) => i128::from(*v),
        Value::I64(v) => i128::from(*v),
        Value::I128(v) => *v,
        Value::F32(v) => i128::from(float_key(f64::from(*v))),
        Value::F64(v) => i128::from(float_key(*v)),
        Value::Bytes(v) => bytes_key(v),
    })
}

/// [`order_key`] of bytes: the first fifteen.
pub fn bytes_key(bytes: &[u8]) -> i128 {
    let mut first = [0; 16];
    let n = bytes.len().min(15);
    first[1..=n].copy_from_slice(&bytes[..n]);
    i128::from_be_bytes(first)
}

/// An integer that sorts as PostgreSQL sorts floats: NaN largest and equal to itself, minus zero equal to zero.
#[inline]
pub fn float_key(v: f64) -> i64 {
    if v.is_nan() {
        return i64::MAX;
    }
    // Adding zero makes minus zero plus zero.
    let bits = (v + 0.0).to_bits() as i64;
    if bits < 0 { i64::MIN.wrapping_sub(bits) } else { bits }
}

#[cfg(test)]
mod tests;
