//! Bitmap heap scans: heap blocks go to the heap, virtual blocks to the fragments.
//!
//! Up to PostgreSQL 17 the executor walks through the bitmap and hands out one block after the other. From 18 on the access
//! method does it; the heap would skip what lies beyond its last block, so the walk is done here for all blocks.

#[cfg(not(feature = "pg18"))]
pub use up_to_17::{State, scan_bitmap_next_block, scan_bitmap_next_tuple};

#[cfg(feature = "pg18")]
pub use from_18::{State, scan_bitmap_next_tuple};

#[cfg(not(feature = "pg18"))]
mod up_to_17 {
    use crate::am::fragments;
    use crate::am::handler::heap;
    use crate::am::scan::{WarmScan, inner};
    use crate::pg::{guarded, stat, tid};
    use pgrx::pg_sys::*;
    use pgrx::prelude::*;

    /// The virtual block at hand and the next of its rows; below 0 while a heap block is at hand.
    pub struct State {
        index: i32,
        block: BlockNumber,
    }

    impl State {
        /// Nothing at hand.
        pub fn new() -> Self {
            Self { index: -1, block: 0 }
        }

        /// Back to the start.
        pub fn reset(&mut self) {
            *self = Self::new();
        }

        /// The end of the scan.
        pub fn end(&mut self) {}
    }

    #[pg_guard]
    pub unsafe extern "C-unwind" fn scan_bitmap_next_block(scan: TableScanDesc, found: *mut TBMIterateResult) -> bool {
        // SAFETY: `scan` was made by scan_begin; `found` is the executor's.
        unsafe {
            let state = &mut (*scan.cast::<WarmScan>()).bitmap;
            let block = (*found).blockno;
            if block < tid::FIRST_VIRTUAL_BLOCK {
                state.index = -1;
                let inner = inner(scan);
                return guarded(|| heap().scan_bitmap_next_block.unwrap_unchecked()(inner, found));
            }
            state.block = block;
            state.index = 0;
            true
        }
    }

    #[pg_guard]
    pub unsafe extern "C-unwind" fn scan_bitmap_next_tuple(
        scan: TableScanDesc,
        found: *mut TBMIterateResult,
        slot: *mut TupleTableSlot,
    ) -> bool {
        // SAFETY: `scan` was made by scan_begin; `found` has ntuples offsets if that is not negative.
        unsafe {
            let state = &mut (*scan.cast::<WarmScan>()).bitmap;
            if state.index < 0 {
                let inner = inner(scan);
                return guarded(|| heap().scan_bitmap_next_tuple.unwrap_unchecked()(inner, found, slot));
            }
            loop {
                let offset = if (*found).ntuples >= 0 {
                    if state.index >= (*found).ntuples {
                        return false;
                    }
                    *(*found).offsets.as_ptr().add(state.index as usize)
                } else {
                    if state.index as u64 >= tid::ROWS_PER_BLOCK {
                        return false;
                    }
                    state.index as u16 + 1
                };
                state.index += 1;
                let row_id = tid::row_at(state.block, offset);
                if fragments::fetch_visible((*scan).rs_rd, row_id, (*scan).rs_snapshot, slot) {
                    stat::fetched((*scan).rs_rd, 1);
                    return true;
                }
            }
        }
    }
}

#[cfg(feature = "pg18")]
mod from_18 {
    use crate::am::fragments;
    use crate::am::handler::heap;
    use crate::am::scan::WarmScan;
    use crate::pg::{compat, guarded, stat, tid};
    use pgrx::pg_sys::*;
    use pgrx::prelude::*;

    /// The block at hand, the offsets to try in it, and the next of them.
    pub struct State {
        block: BlockNumber,
        lossy: bool,
        recheck: bool,
        offsets: [OffsetNumber; tid::ROWS_PER_BLOCK as usize],
        count: usize,
        next: usize,
        fetch: *mut IndexFetchTableData,
    }

    impl State {
        /// Nothing at hand.
        pub fn new() -> Self {
            Self {
                block: 0,
                lossy: false,
                recheck: false,
                offsets: [0; tid::ROWS_PER_BLOCK as usize],
                count: 0,
                next: 0,
                fetch: std::ptr::null_mut(),
            }
        }

        /// Back to the start.
        pub fn reset(&mut self) {
            self.count = 0;
            self.next = 0;
        }

        /// The end of the scan: releases what is pinned.
        pub fn end(&mut self) {
            if !self.fetch.is_null() {
                let fetch = std::mem::replace(&mut self.fetch, std::ptr::null_mut());
                // SAFETY: begun by the heap's own callback.
                unsafe { guarded(|| heap().index_fetch_end.unwrap_unchecked()(fetch)) };
            }
        }
    }

    #[pg_guard]
    pub unsafe extern "C-unwind" fn scan_bitmap_next_tuple(
        scan: TableScanDesc,
        slot: *mut TupleTableSlot,
        recheck: *mut bool,
        lossy_pages: *mut u64,
        exact_pages: *mut u64,
    ) -> bool {
        // SAFETY: `scan` was made by scan_begin; the executor has put its bitmap's iterator into it.
        unsafe {
            let rel = (*scan).rs_rd;
            let snapshot = (*scan).rs_snapshot;
            let state = &mut (*scan.cast::<WarmScan>()).bitmap;
            loop {
                while state.next < state.count {
                    let offset = state.offsets[state.next];
                    state.next += 1;
                    *recheck = state.recheck;
                    if state.block >= tid::FIRST_VIRTUAL_BLOCK {
                        if fragments::fetch_visible(rel, tid::row_at(state.block, offset), snapshot, slot) {
                            stat::fetched(rel, 1);
                            return true;
                        }
                        continue;
                    }
                    let mut at = ItemPointerData {
                        ip_blkid: BlockIdData {
                            bi_hi: (state.block >> 16) as u16,
                            bi_lo: (state.block & 0xffff) as u16,
                        },
                        ip_posid: offset,
                    };
                    let found = if state.lossy {
                        guarded(|| heap().tuple_fetch_row_version.unwrap_unchecked()(rel, &mut at, snapshot, slot))
                    } else {
                        if state.fetch.is_null() {
                            state.fetch = guarded(|| heap().index_fetch_begin.unwrap_unchecked()(rel));
                        }
                        let (fetch, mut again) = (state.fetch, false);
                        guarded(|| {
                            heap().index_fetch_tuple.unwrap_unchecked()(
                                fetch,
                                &mut at,
                                snapshot,
                                slot,
                                &mut again,
                                std::ptr::null_mut(),
                            )
                        })
                    };
                    if found {
                        stat::fetched(rel, 1);
                        return true;
                    }
                }
                pgrx::check_for_interrupts!();
                let mut page = TBMIterateResult::default();
                if !tbm_iterate(&mut (*scan).st.rs_tbmiterator, &mut page) {
                    ExecClearTuple(slot);
                    return false;
                }
                state.block = page.blockno;
                state.lossy = page.lossy;
                state.recheck = page.recheck;
                state.next = 0;
                if page.lossy {
                    *lossy_pages += 1;
                    state.count = lines(rel, page.blockno);
                    for (i, o) in state.offsets.iter_mut().enumerate() {
                        *o = i as OffsetNumber + 1;
                    }
                } else {
                    *exact_pages += 1;
                    let room = state.offsets.len() as u32;
                    state.count = tbm_extract_page_tuple(&mut page, state.offsets.as_mut_ptr(), room) as usize;
                }
            }
        }
    }

    /// The number of line pointers of a block.
    unsafe fn lines(rel: Relation, block: BlockNumber) -> usize {
        if block >= tid::FIRST_VIRTUAL_BLOCK {
            return tid::ROWS_PER_BLOCK as usize;
        }
        // SAFETY: `rel` is open; blocks beyond its end came after the scan began and hold nothing for it.
        unsafe {
            if block >= RelationGetNumberOfBlocksInFork(rel, ForkNumber::MAIN_FORKNUM) {
                return 0;
            }
            let buffer = ReadBuffer(rel, block);
            LockBuffer(buffer, BUFFER_LOCK_SHARE as i32);
            let n = compat::max_offset(BufferGetPage(buffer));
            UnlockReleaseBuffer(buffer);
            usize::from(n).min(tid::ROWS_PER_BLOCK as usize)
        }
    }
}
