//! Row ids and virtual TIDs.
//!
//! A fragment row has no place in a heap block, but everything in PostgreSQL names a row by its TID. So a row id maps 1:1
//! to a TID in blocks from 2^31 up, 291 rows a block (the most that a TID bitmap takes).

use pgrx::pg_sys::{self, BlockIdData, ItemPointerData};
use std::ops::Range;

/// The first virtual block.
pub const FIRST_VIRTUAL_BLOCK: u32 = 1 << 31;
/// Rows in a virtual block: `MaxHeapTuplesPerPage` at 8 kB, which is what a TID bitmap accepts.
pub const ROWS_PER_BLOCK: u64 = 291;
/// Row ids are below this; the last block number is `InvalidBlockNumber` and stays unused.
pub const ROW_ID_LIMIT: u64 = ((1 << 31) - 1) * ROWS_PER_BLOCK;

/// The virtual TID of a row id (which must be below [`ROW_ID_LIMIT`]).
#[inline]
pub fn from_row_id(row_id: u64) -> ItemPointerData {
    debug_assert!(row_id < ROW_ID_LIMIT);
    let block = FIRST_VIRTUAL_BLOCK + (row_id / ROWS_PER_BLOCK) as u32;
    ItemPointerData {
        ip_blkid: BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: (block & 0xffff) as u16 },
        ip_posid: (row_id % ROWS_PER_BLOCK) as u16 + 1,
    }
}

/// The TID of a place in a block of the delta store.
#[inline]
pub fn at(block: u32, offset: u16) -> ItemPointerData {
    ItemPointerData {
        ip_blkid: BlockIdData { bi_hi: (block >> 16) as u16, bi_lo: (block & 0xffff) as u16 },
        ip_posid: offset,
    }
}

/// The block number of a TID.
#[inline]
pub fn block(tid: &ItemPointerData) -> u32 {
    (u32::from(tid.ip_blkid.bi_hi) << 16) | u32::from(tid.ip_blkid.bi_lo)
}

/// The row id of a virtual TID; None for a TID of the delta store. A special offset (above 291) is no row.
#[inline]
pub fn row_id(tid: &ItemPointerData) -> Option<u64> {
    let block = block(tid);
    if block < FIRST_VIRTUAL_BLOCK || block == pg_sys::InvalidBlockNumber {
        return None;
    }
    Some(row_at(block, tid.ip_posid))
}

/// [`row_id`] for the pointer that a callback got.
///
/// # Safety
/// `tid` points to a TID.
#[inline]
pub unsafe fn row_id_at(tid: pg_sys::ItemPointer) -> Option<u64> {
    // SAFETY: the caller's promise.
    row_id(unsafe { &*tid })
}

/// The row id of an offset in a virtual block.
#[inline]
pub fn row_at(block: u32, offset: u16) -> u64 {
    u64::from(block - FIRST_VIRTUAL_BLOCK) * ROWS_PER_BLOCK + u64::from(offset) - 1
}

/// The row ids whose virtual TIDs are from `min` to `max`, both included; TIDs of the delta store lie below all of them.
pub fn row_ids_between(min: &ItemPointerData, max: &ItemPointerData) -> Range<u64> {
    let at = |tid: &ItemPointerData, offset: u16| match block(tid).checked_sub(FIRST_VIRTUAL_BLOCK) {
        Some(virtual_block) => u64::from(virtual_block) * ROWS_PER_BLOCK + u64::from(offset).min(ROWS_PER_BLOCK),
        None => 0,
    };
    at(min, min.ip_posid.saturating_sub(1))..at(max, max.ip_posid)
}
