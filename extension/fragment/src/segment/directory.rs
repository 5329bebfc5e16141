//! The directory of a segment: its fragments, the bounds of their columns, its key maps.
//!
//! ```text
//!  "STRATASG" │ version (4) │ crc32c of the rest (4) │ length of the head (4) │ head │ bounds, column after column
//! ```
//!
//! Head and bounds are in the encoding of postcard. Bounds are decoded column by column, when they are asked for.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{KeyMap, SegmentDamage};
use crate::fragment::Fragment;
use crate::schema::PhysicalType;
use crate::zone::Zone;

const MAGIC: &[u8; 8] = b"STRATASG";
const VERSION: u32 = 1;
const HEAD: usize = 20;

/// How a fragment keeps its rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The attribute number of each column, and how its values are stored.
    pub columns: Vec<(i16, PhysicalType)>,
    /// The attribute numbers of the sort key.
    pub sort_key: Vec<i16>,
}

/// A fragment of a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// BLAKE3 of its file.
    pub hash: [u8; 32],
    /// Its first row id.
    pub first_row_id: u64,
    /// The row id behind its last.
    pub end: u64,
    /// Its number of rows.
    pub rows: u64,
    /// Its number of blocks.
    pub blocks: u32,
    /// Its layout, by position.
    pub layout: u32,
}

/// A fragment as it goes into a directory.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    /// The member; its layout's position is not known yet.
    pub member: Member,
    /// How it keeps its rows.
    pub layout: Layout,
    /// The bounds of its columns, in the order of the layout.
    pub zones: Vec<Zone>,
}

impl Described {
    /// What an open fragment says of itself. `None`: the hash is none.
    pub fn of(fragment: &Fragment, hash: &str, row_ids: Range<u64>) -> Option<Self> {
        let schema = fragment.schema();
        let layout = Layout {
            columns: schema.columns.iter().map(|c| (c.attnum, c.ty)).collect(),
            sort_key: schema.sort_key.iter().map(|c| schema.columns[*c].attnum).collect(),
        };
        let member = Member {
            hash: hash_bytes(hash)?,
            first_row_id: row_ids.start,
            end: row_ids.end,
            rows: fragment.rows(),
            blocks: fragment.blocks().len() as u32,
            layout: 0,
        };
        let zones = (0..schema.columns.len()).map(|c| fragment.fragment_zone(c).clone()).collect();
        Some(Self { member, layout, zones })
    }
}

/// A hash of 64 hexadecimal digits as bytes.
fn hash_bytes(hash: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hash.len() != 64 || !hash.is_ascii() {
        return None;
    }
    for (i, b) in bytes.iter_mut().enumerate() {
        *b = u8::from_str_radix(hash.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl Member {
    /// Whether its file has this hash, in hexadecimal.
    pub fn has_hash(&self, hash: &str) -> bool {
        hash_bytes(hash).is_some_and(|bytes| bytes == self.hash)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    layouts: Vec<Layout>,
    members: Vec<Member>,
    key_maps: Vec<KeyMap>,
    /// The attribute number of each column that a member has, and the bytes of its bounds.
    columns: Vec<(i16, u32)>,
}

/// A segment's directory.
#[derive(Debug)]
pub struct Directory {
    /// How its fragments keep their rows.
    pub layouts: Vec<Layout>,
    /// Its fragments, by row id.
    pub members: Vec<Member>,
    /// Its key maps.
    pub key_maps: Vec<KeyMap>,
    columns: Vec<(i16, Range<usize>)>,
    bounds: Vec<u8>,
    bytes: u64,
}

/// Encodes the directory of a segment of these fragments, which come by row id.
pub fn encode_directory(fragments: &[Described], key_maps: Vec<KeyMap>) -> Vec<u8> {
    let mut head = Head { layouts: Vec::new(), members: Vec::new(), key_maps, columns: Vec::new() };
    let mut attnums: Vec<i16> = Vec::new();
    for f in fragments {
        let layout = head.layouts.iter().position(|l| *l == f.layout).unwrap_or_else(|| {
            head.layouts.push(f.layout.clone());
            attnums.extend(f.layout.columns.iter().map(|(attnum, _)| *attnum));
            head.layouts.len() - 1
        });
        head.members.push(Member { layout: layout as u32, ..f.member.clone() });
    }
    attnums.sort_unstable();
    attnums.dedup();
    let mut bounds = Vec::new();
    for attnum in attnums {
        let of_column: Vec<Option<&Zone>> = fragments
            .iter()
            .map(|f| f.layout.columns.iter().position(|(a, _)| *a == attnum).and_then(|c| f.zones.get(c)))
            .collect();
        // Encoding to memory does not fail.
        let encoded = postcard::to_allocvec(&of_column).unwrap_or_default();
        head.columns.push((attnum, encoded.len() as u32));
        bounds.extend_from_slice(&encoded);
    }
    let head = postcard::to_allocvec(&head).unwrap_or_default();
    let mut out = Vec::with_capacity(HEAD + head.len() + bounds.len());
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(head.len() as u32).to_le_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(&bounds);
    let crc = crc32c::crc32c(&out[16..]);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

impl Directory {
    /// Checks and decodes a directory.
    pub fn decode(bytes: &[u8]) -> Result<Self, SegmentDamage> {
        let word = |at: usize| bytes.iter().skip(at).take(4).rev().fold(0, |v, b| v << 8 | u32::from(*b));
        if bytes.len() < HEAD || !bytes.starts_with(MAGIC) {
            return Err(SegmentDamage::new("it does not begin like a directory"));
        }
        if word(8) != VERSION {
            return Err(SegmentDamage::new(format!("its version is {}, known is {VERSION}", word(8))));
        }
        let (found, wanted) = (crc32c::crc32c(&bytes[16..]), word(12));
        if found != wanted {
            return Err(SegmentDamage::new(format!("checksum {found:08x} instead of {wanted:08x}")));
        }
        let head_end = HEAD + word(16) as usize;
        let head = bytes.get(HEAD..head_end).ok_or_else(|| SegmentDamage::new("it ends within its head"))?;
        let head: Head = postcard::from_bytes(head).map_err(|e| SegmentDamage::new(e.to_string()))?;
        let mut columns = Vec::with_capacity(head.columns.len());
        let mut start = 0;
        for (attnum, len) in head.columns {
            columns.push((attnum, start..start + len as usize));
            start += len as usize;
        }
        let bounds = bytes[head_end..].to_vec();
        if bounds.len() != start {
            return Err(SegmentDamage::new(format!("{} bytes of bounds instead of {start}", bounds.len())));
        }
        let known = head.layouts.len() as u32;
        if let Some(m) = head.members.iter().find(|m| m.layout >= known || m.end <= m.first_row_id) {
            return Err(SegmentDamage::new(format!("a fragment with layout {} of {known}", m.layout)));
        }
        let Head { layouts, members, key_maps, .. } = head;
        Ok(Self { layouts, members, key_maps, columns, bounds, bytes: bytes.len() as u64 })
    }

    /// The length of its encoded form.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How a member keeps its rows.
    pub fn layout(&self, member: usize) -> &Layout {
        &self.layouts[self.members[member].layout as usize]
    }

    /// The bounds of a column, by member; `None` for members without it.
    pub fn zones(&self, attnum: i16) -> Result<Vec<Option<Zone>>, SegmentDamage> {
        let Some((_, place)) = self.columns.iter().find(|(a, _)| *a == attnum) else {
            return Ok(vec![None; self.members.len()]);
        };
        let zones: Vec<Option<Zone>> =
            postcard::from_bytes(&self.bounds[place.clone()]).map_err(|e| SegmentDamage::new(e.to_string()))?;
        match zones.len() == self.members.len() {
            true => Ok(zones),
            false => Err(SegmentDamage::new(format!("bounds of {} fragments", zones.len()))),
        }
    }

    /// The member with this row id among its own, by position.
    pub fn member_of(&self, row_id: u64) -> Option<usize> {
        let i = self.members.partition_point(|m| m.first_row_id <= row_id).checked_sub(1)?;
        (row_id < self.members[i].end).then_some(i)
    }

    /// The members as they go into another directory.
    pub fn described(&self) -> Result<Vec<Described>, SegmentDamage> {
        let mut all: Vec<Described> = self
            .members
            .iter()
            .enumerate()
            .map(|(i, m)| Described { member: m.clone(), layout: self.layout(i).clone(), zones: Vec::new() })
            .collect();
        let mut by_column = std::collections::HashMap::new();
        for (attnum, _) in &self.columns {
            by_column.insert(*attnum, self.zones(*attnum)?);
        }
        for (i, d) in all.iter_mut().enumerate() {
            for (attnum, _) in &d.layout.columns {
                let zone = by_column.get(attnum).and_then(|z| z[i].clone());
                d.zones.push(zone.ok_or_else(|| SegmentDamage::new(format!("no bounds of column {attnum}")))?);
            }
        }
        Ok(all)
    }
}
