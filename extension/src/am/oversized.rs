//! Rows that a btree could not hold.
//!
//! A plain btree has no entries for fragment rows, so that building one over a value of more than a third of a page would succeed where
//! heap refuses it, and the first UPDATE of such a row would fail instead: its promotion writes an entry. So a build looks for such
//! rows. Only columns of variable length can be that long; their sizes as they are bound the entry's, and an entry is formed (and its
//! values compressed, as the btree does) only where the bound is past the limit.

use super::index;
use super::unique::{name_index, name_of};
use crate::error::StrataError;
use crate::pg::compat;
use pgrx::pg_sys::*;
use pgrx::prelude::PgSqlErrorCode;

/// `BTMaxItemSize` of nbtree.h for pages of `BLCKSZ`: a third of a page without its header, three line pointers and the btree's own
/// part, without room for a heap TID.
const LIMIT: usize = align_down((BLCKSZ as usize - align(24 + 3 * 4) - align(16)) / 3) - 8;
/// What an entry takes beside its values: the header, and padding of each value.
const OVERHEAD: usize = 16;

const fn align_down(n: usize) -> usize {
    n & !7
}

const fn align(n: usize) -> usize {
    align_down(n + 7)
}

/// Raises the btree's error if a fragment row that anybody may see is too large for the index.
///
/// # Safety
/// `rel` and `index` are open and locked; `info` is the index's, which has neither expressions nor a predicate.
pub unsafe fn refuse(rel: Relation, index: Relation, info: *mut IndexInfo) {
    // SAFETY: the caller's promise; the arrays have room for INDEX_MAX_KEYS values, the descriptor has natts attributes.
    unsafe {
        let descriptor = (*index).rd_att;
        let lengths: Vec<i16> =
            (0..(*descriptor).natts as usize).map(|i| compat::attribute(descriptor, i).attlen).collect();
        if lengths.iter().all(|length| *length > 0) {
            return;
        }
        let attributes = index::attributes(&*(*index).rd_index);
        let slot = MakeSingleTupleTableSlot((*rel).rd_att, &raw const TTSOpsHeapTuple);
        let (mut values, mut nulls) = ([Datum::null(); INDEX_MAX_KEYS as usize], [false; INDEX_MAX_KEYS as usize]);
        index::for_each_row(rel, std::ptr::null_mut(), slot, Some(attributes), |at| {
            FormIndexDatum(info, slot, std::ptr::null_mut(), values.as_mut_ptr(), nulls.as_mut_ptr());
            let size = lengths.iter().enumerate().map(|(i, length)| match *length {
                _ if nulls[i] => 0,
                -1 => align(pgrx::varsize_any(values[i].cast_mut_ptr())),
                -2 => align(std::ffi::CStr::from_ptr(values[i].cast_mut_ptr()).count_bytes() + 1),
                fixed => align(fixed as usize),
            });
            if OVERHEAD + size.sum::<usize>() <= LIMIT {
                return;
            }
            let entry = index_form_tuple(descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            let size = align(usize::from((*entry).t_info & INDEX_SIZE_MASK as u16));
            pfree(entry.cast());
            if size > LIMIT {
                let at = pgrx::itemptr::item_pointer_get_both(at);
                name_index(index, PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED);
                StrataError::Oversized { relid: (*rel).rd_id, index: name_of(index), size, limit: LIMIT, at }.raise();
            }
        });
        ExecDropSingleTupleTableSlot(slot);
    }
}
