//! What keeps PostgreSQL's own plans right on warm tables.
//!
//! * **Indexes.** A plain btree has no entries for fragment rows, and BRIN summarizes heap blocks only, so neither may be
//!   scanned by itself when a table has fragments. They stay in the planner's list, because what it proves from them
//!   holds (a unique index is unique over all rows), but offer no scan: neither plain, nor bitmap, nor parallel. They are
//!   marked hypothetical as well, so that estimates do not ask them for the extreme values of the table.
//! * **Bitmap prefetch** asks for blocks by number before the access method sees them; virtual blocks are in no file. It is
//!   switched off for scans of warm tables when the executor starts. From PostgreSQL 18 on the access method itself
//!   prefetches.

use crate::am::{fragments, handler, index};
use crate::pg::{OpenRelation, guarded};
use pgrx::pg_sys;
use pgrx::prelude::*;

static mut PREVIOUS_RELATION_INFO: pg_sys::get_relation_info_hook_type = None;

/// Installs the hooks.
pub fn install() {
    // SAFETY: called once by a backend or the postmaster, which have one thread; previous hooks are chained.
    unsafe {
        PREVIOUS_RELATION_INFO = pg_sys::get_relation_info_hook;
        pg_sys::get_relation_info_hook = Some(relation_info);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_info(
    root: *mut pg_sys::PlannerInfo,
    relid: pg_sys::Oid,
    inherited: bool,
    rel: *mut pg_sys::RelOptInfo,
) {
    // SAFETY: the arguments are the planner's; the relation is locked by it.
    unsafe {
        if let Some(previous) = PREVIOUS_RELATION_INFO {
            guarded(|| previous(root, relid, inherited, rel));
        }
        if (*rel).indexlist.is_null() || pg_sys::get_rel_relkind(relid) != pg_sys::RELKIND_RELATION as i8 {
            return;
        }
        let table = OpenRelation::open(relid, pg_sys::NoLock);
        if !handler::is_warm(table.0) || fragments::of(table.0).is_none() {
            return;
        }
        for i in 0..(*(*rel).indexlist).length as usize {
            let info = (*(*(*rel).indexlist).elements.add(i)).ptr_value.cast::<pg_sys::IndexOptInfo>();
            if (*info).hypothetical {
                // Another extension's idea of an index: there is none to look at.
                continue;
            }
            let index = OpenRelation::open((*info).indexoid, pg_sys::NoLock);
            if (*info).relam == pg_sys::BRIN_AM_OID || index::is_plain(index.0) {
                (*info).amhasgettuple = false;
                (*info).amhasgetbitmap = false;
                (*info).amcanparallel = false;
                (*info).hypothetical = true;
            }
        }
    }
}

/// Whether `info` is an index that [`relation_info`] took the scans from.
///
/// # Safety
/// `info` is an index of a relation that is being planned.
pub unsafe fn is_closed(info: *mut pg_sys::IndexOptInfo) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*info).hypothetical && !(*info).amhasgettuple && !(*info).amhasgetbitmap }
}

/// Switches bitmap prefetch off, which the executor does itself up to PostgreSQL 17, if `state` is a bitmap scan of a warm table.
///
/// # Safety
/// `state` is a plan state whose executor has just started.
#[cfg(not(feature = "pg18"))]
pub unsafe fn no_bitmap_prefetch(state: *mut pg_sys::PlanState) {
    // SAFETY: the node tag tells the type.
    unsafe {
        if (*state).type_ == pg_sys::NodeTag::T_BitmapHeapScanState {
            let scan = state.cast::<pg_sys::BitmapHeapScanState>();
            let rel = (*scan).ss.ss_currentRelation;
            if !rel.is_null() && handler::is_warm(rel) {
                (*scan).prefetch_maximum = 0;
            }
        }
    }
}
