//! The fragment row that this backend has fetched last, as a heap tuple, for its promotion.
//!
//! An UPDATE fetches the whole old row by its TID and then changes it. Its promotion needs the same values, and to read them means
//! to decode one of each column. So the tuple is kept until the next one is fetched, and handed on: to `promote`, or through
//! shared memory to the promoter, which then reads nothing. Where none was fetched (INSERT … ON CONFLICT goes by the key), it is read
//! for that ([`read`]): what this backend has kept of the fragment, the promoter would have to read from the file, all columns of a block.
//!
//! A fragment row never changes, but the columns of its table may. So a tuple counts only for the command that fetched it, whose
//! lock keeps others from changing the table, and only with as many attributes as the table has.

use super::fragments;
use crate::pg::compat;
use pgrx::pg_sys;
use std::cell::RefCell;

/// Larger tuples are not kept.
pub const MOST_BYTES: usize = 8192;

/// What a tuple is of, and when it was fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Origin {
    relid: u32,
    filenode: u32,
    row_id: u64,
    statement: i64,
    command: pg_sys::CommandId,
}

impl Origin {
    /// # Safety
    /// `rel` is open.
    unsafe fn now(rel: pg_sys::Relation, row_id: u64) -> Self {
        // SAFETY: the caller's promise; plain variables of the backend.
        unsafe {
            Self {
                relid: (*rel).rd_id.to_u32(),
                filenode: compat::filenode(rel).to_u32(),
                row_id,
                statement: pg_sys::GetCurrentStatementStartTimestamp(),
                command: pg_sys::GetCurrentCommandId(false),
            }
        }
    }
}

thread_local! {
    static LAST: RefCell<(Origin, Vec<u8>)> = RefCell::default();
}

/// Keeps the tuple in `slot`, which is this row of `rel`.
///
/// # Safety
/// `rel` is open; `slot` holds a heap tuple of it.
pub unsafe fn keep(rel: pg_sys::Relation, row_id: u64, slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: the caller's promise; the tuple is copied before anything else happens.
    unsafe {
        let mut should_free = false;
        let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &mut should_free);
        let bytes = std::slice::from_raw_parts((*tuple).t_data.cast::<u8>(), (*tuple).t_len as usize);
        let origin = if bytes.len() <= MOST_BYTES { Origin::now(rel, row_id) } else { Origin::default() };
        LAST.with_borrow_mut(|(of, kept)| {
            kept.clear();
            *of = origin;
            if origin.relid != 0 {
                kept.extend_from_slice(bytes);
            }
        });
        if should_free {
            pg_sys::heap_freetuple(tuple);
        }
    }
}

/// The bytes of the tuple, if it is the one that was fetched last. It is given once.
///
/// # Safety
/// `rel` is open.
pub unsafe fn take(rel: pg_sys::Relation, row_id: u64) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise.
    let wanted = unsafe { Origin::now(rel, row_id) };
    LAST.with_borrow_mut(|last| (last.0 == wanted).then(|| std::mem::take(last).1))
}

/// The bytes of the tuple, read for the purpose; None: it is too large to be handed over, or there is no such row.
///
/// # Safety
/// `rel` is open and locked.
pub unsafe fn read(rel: pg_sys::Relation, row_id: u64) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise; an ERROR on the way leaves the slot to its memory context.
    unsafe {
        let table = fragments::of(rel)?;
        let slot = pg_sys::MakeSingleTupleTableSlot((*rel).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
        let bytes = table.fetch(rel, row_id, slot).then(|| {
            let mut should_free = false;
            let tuple = pg_sys::ExecFetchSlotHeapTuple(slot, false, &mut should_free);
            std::slice::from_raw_parts((*tuple).t_data.cast::<u8>(), (*tuple).t_len as usize)
        });
        let bytes = bytes.filter(|bytes| bytes.len() <= MOST_BYTES).map(<[u8]>::to_vec);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        bytes
    }
}

/// Stores a tuple that was handed over in `slot`. False: it does not have the table's attributes.
///
/// # Safety
/// `bytes` are those of a tuple that [`keep`] kept of this row of `rel`; `slot` has the descriptor of `rel`.
pub unsafe fn store(rel: pg_sys::Relation, row_id: u64, bytes: &[u8], slot: *mut pg_sys::TupleTableSlot) -> bool {
    const HEADER: usize = size_of::<pg_sys::HeapTupleData>().next_multiple_of(8);
    if bytes.len() < std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits) {
        return false;
    }
    // SAFETY: one allocation, the tuple behind its header, as heap_form_tuple makes it; the slot frees it.
    unsafe {
        let old = pg_sys::MemoryContextSwitchTo((*slot).tts_mcxt);
        let tuple = pg_sys::palloc(HEADER + bytes.len()).cast::<pg_sys::HeapTupleData>();
        pg_sys::MemoryContextSwitchTo(old);
        let data = tuple.cast::<u8>().add(HEADER);
        data.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        let at = crate::pg::tid::from_row_id(row_id);
        tuple.write(pg_sys::HeapTupleData {
            t_len: bytes.len() as u32,
            t_self: at,
            t_tableOid: (*rel).rd_id,
            t_data: data.cast(),
        });
        let attributes = i32::from((*(*tuple).t_data).t_infomask2) & pg_sys::HEAP_NATTS_MASK as i32;
        if attributes != (*(*rel).rd_att).natts {
            pg_sys::pfree(tuple.cast());
            return false;
        }
        pg_sys::ExecForceStoreHeapTuple(tuple, slot, true);
        (*slot).tts_tid = at;
        (*slot).tts_tableOid = (*rel).rd_id;
        true
    }
}
