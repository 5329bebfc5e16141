//! The container around the chunks: header, footer and tail of a file. `docs/design/fragment-format.md` has the details.
//!
//! ```text
//! ┌────────┬─────────────────────────────┬─────────────────────────┬────────┬──────┐
//! │ header │ chunks, column after column │ membership filters      │ footer │ tail │
//! └────────┴─────────────────────────────┴─────────────────────────┴────────┴──────┘
//! ```
//!
//! Every byte is covered: header, footer and tail by the tail's checksum or by comparison, each chunk and filter by its
//! own checksum in the footer.

use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::builder::MAX_BLOCK_ROWS;
use crate::codec::Repr;
use crate::error::{FragmentError, Result};
use crate::schema::Schema;
use crate::zone::Zone;

/// The format version that is written, and the newest that can be read.
pub const FORMAT_VERSION: u32 = 2;

pub(crate) const HEADER_LEN: usize = 16;
pub(crate) const TAIL_LEN: usize = 24;
const HEADER_MAGIC: &[u8; 8] = b"STRATAFR";
const TAIL_MAGIC: &[u8; 8] = b"STRATAEN";

/// Where a checked piece of the file is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) crc32c: u32,
}

impl Piece {
    pub(crate) fn range(&self) -> Option<Range<u64>> {
        Some(self.offset..self.offset.checked_add(self.len)?)
    }
}

/// One column of one block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) piece: Piece,
    /// How many bytes at the beginning are the Vortex array. The rest is the set of nulls.
    pub(crate) values_len: u64,
    pub(crate) repr: Repr,
    pub(crate) zone: Zone,
}

/// The membership filters of one key, one for each block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyFilter {
    /// The position of the key in the schema.
    pub(crate) key: usize,
    pub(crate) blocks: Vec<Piece>,
}

/// Everything about a fragment but its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Footer {
    pub(crate) version: u32,
    /// The edition of Vortex whose encodings are used.
    pub(crate) edition: String,
    /// The Vortex encodings that arrays refer to by position.
    pub(crate) encodings: Vec<String>,
    pub(crate) schema: Schema,
    /// The number of rows of each block.
    pub(crate) blocks: Vec<u32>,
    /// For each column, its chunks by block.
    pub(crate) columns: Vec<Vec<Chunk>>,
    pub(crate) filters: Vec<KeyFilter>,
}

pub(crate) fn header() -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..8].copy_from_slice(HEADER_MAGIC);
    out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out
}

/// What the checksum in the tail covers.
fn checksum(header: &[u8], footer: &[u8], len_and_version: &[u8]) -> u32 {
    let crc = crc32c::crc32c(header);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, footer), len_and_version)
}

pub(crate) fn tail(footer: &[u8]) -> [u8; TAIL_LEN] {
    let mut out = [0; TAIL_LEN];
    out[..8].copy_from_slice(&(footer.len() as u64).to_le_bytes());
    out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    let crc = checksum(&header(), footer, &out[..12]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out[16..].copy_from_slice(TAIL_MAGIC);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.iter().skip(at).take(4).rev().fold(0, |v, b| v << 8 | u32::from(*b))
}

/// Checks header and tail of a file of `file_len` bytes and says where its footer is.
pub(crate) fn locate(path: &Path, header: &[u8], tail: &[u8], file_len: u64) -> Result<Range<u64>> {
    if header.get(..8) != Some(HEADER_MAGIC) {
        return Err(FragmentError::damaged(path, "header: it does not begin like a fragment"));
    }
    if tail.get(16..) != Some(TAIL_MAGIC) {
        return Err(FragmentError::damaged(path, "tail: it does not end like a fragment, it may have been cut off"));
    }
    let (first, last) = (u32_at(header, 8), u32_at(tail, 8));
    if first != last {
        return Err(FragmentError::damaged(path, format!("header and tail name versions {first} and {last}")));
    }
    if first > FORMAT_VERSION || first == 0 {
        let path = path.to_path_buf();
        return Err(FragmentError::UnsupportedVersion { path, found: first, supported: FORMAT_VERSION });
    }
    let footer_len = u64::from(u32_at(tail, 4)) << 32 | u64::from(u32_at(tail, 0));
    let end = file_len.saturating_sub(TAIL_LEN as u64);
    match end.checked_sub(footer_len) {
        Some(start) if start >= HEADER_LEN as u64 => Ok(start..end),
        _ => Err(FragmentError::damaged(path, format!("tail: a footer of {footer_len} bytes in a file of {file_len}"))),
    }
}

impl Footer {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        postcard::to_allocvec(self).map_err(|e| e.to_string())
    }

    /// Reads a footer whose place [`locate`] has found; `body_end` is where it begins.
    pub(crate) fn decode(path: &Path, header: &[u8], footer: &[u8], tail: &[u8], body_end: u64) -> Result<Self> {
        let damaged = |what: String| FragmentError::damaged(path, format!("footer: {what}"));
        if checksum(header, footer, tail.get(..12).unwrap_or_default()) != u32_at(tail, 12) {
            return Err(damaged("checksum mismatch".to_string()));
        }
        let (out, rest) = postcard::take_from_bytes::<Self>(footer).map_err(|e| damaged(e.to_string()))?;
        if !rest.is_empty() {
            return Err(damaged(format!("{} bytes too many", rest.len())));
        }
        out.check(u32_at(header, 8), body_end).map_err(damaged)?;
        Ok(out)
    }

    pub(crate) fn rows(&self) -> u64 {
        self.blocks.iter().map(|r| u64::from(*r)).sum()
    }

    /// Checks that the parts agree, so that readers may rely on it. `version` is the header's.
    fn check(&self, version: u32, body_end: u64) -> Result<(), String> {
        if self.version != version {
            return Err(format!("version {}", self.version));
        }
        self.schema.check().map_err(|e| e.to_string())?;
        if self.blocks.is_empty() || self.blocks.iter().any(|r| !(1..=MAX_BLOCK_ROWS).contains(r)) {
            return Err("blocks of impossible size".to_string());
        }
        if self.columns.len() != self.schema.columns.len() {
            return Err(format!("chunks of {} columns for {}", self.columns.len(), self.schema.columns.len()));
        }
        let inside = |p: &Piece| p.range().is_some_and(|r| r.start >= HEADER_LEN as u64 && r.end <= body_end);
        for (c, chunks) in self.columns.iter().enumerate() {
            if chunks.len() != self.blocks.len() {
                return Err(format!("column {c} has {} chunks for {} blocks", chunks.len(), self.blocks.len()));
            }
            for (b, (chunk, rows)) in chunks.iter().zip(&self.blocks).enumerate() {
                let z = &chunk.zone;
                if z.rows != *rows || z.null_count > *rows || z.min.is_none() != z.all_null() {
                    return Err(format!("zone of column {c}, block {b} contradicts the block"));
                }
                if chunk.repr.since() > version {
                    return Err(format!("column {c}, block {b} is in a form that version {version} has not"));
                }
                if !inside(&chunk.piece) || chunk.values_len > chunk.piece.len {
                    return Err(format!("chunk of column {c}, block {b} is out of bounds"));
                }
            }
        }
        let keys: Vec<usize> = self.filters.iter().map(|f| f.key).collect();
        if keys != self.schema.filtered_keys().collect::<Vec<_>>() {
            return Err(format!("filters of keys {keys:?}"));
        }
        for f in &self.filters {
            if f.blocks.len() != self.blocks.len() || !f.blocks.iter().all(inside) {
                return Err(format!("filters of key {} are out of bounds", f.key));
            }
        }
        Ok(())
    }
}
