//! What EXPLAIN says of WarmScan.

use super::blocks::Stats;
use super::exec::{self, WarmScanState};
use super::private::Part;
use crate::am::fragments;
use crate::memory::access::{self, Pattern};
use crate::pg::compat;
use crate::pg::list::items;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CStr, CString};

/// A property whose value is text.
///
/// # Safety
/// `es` is EXPLAIN's.
pub unsafe fn text(name: &CStr, value: &str, es: *mut pg_sys::ExplainState) {
    let value = CString::new(value.replace('\0', "")).unwrap_or_default();
    // SAFETY: the caller's promise; the strings are copied.
    unsafe { pg_sys::ExplainPropertyText(name.as_ptr(), value.as_ptr(), es) }
}

/// A property whose value is a number.
///
/// # Safety
/// `es` is EXPLAIN's.
pub unsafe fn number(name: &CStr, value: u64, es: *mut pg_sys::ExplainState) {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::ExplainPropertyInteger(name.as_ptr(), std::ptr::null(), value as i64, es) }
}

/// A number and how much of it was pruned: one line of text, two properties otherwise.
unsafe fn pruned(what: &CStr, pruned_name: &CStr, total: u64, gone: Option<u64>, es: *mut pg_sys::ExplainState) {
    // SAFETY: as in `text`.
    unsafe {
        match gone {
            Some(gone) if (*es).format == pg_sys::ExplainFormat::EXPLAIN_FORMAT_TEXT => {
                text(what, &format!("{total}  pruned: {gone}"), es);
            }
            Some(gone) => {
                number(what, total, es);
                number(pruned_name, gone, es);
            }
            None => number(what, total, es),
        }
    }
}

/// What was read from files, and what was in memory.
unsafe fn read(stats: &Stats, es: *mut pg_sys::ExplainState) {
    // SAFETY: as in `text`.
    unsafe {
        if (*es).format == pg_sys::ExplainFormat::EXPLAIN_FORMAT_TEXT {
            let Stats { reads, read_bytes, hits, .. } = stats;
            text(c"Fragment Reads", &format!("{reads} ({} kB)  from memory: {hits}", read_bytes.div_ceil(1024)), es);
        } else {
            number(c"Fragment Reads", stats.reads, es);
            number(c"Fragment Read Bytes", stats.read_bytes, es);
            number(c"Fragment Reads From Memory", stats.hits, es);
        }
    }
}

/// The callback.
#[pg_guard]
pub unsafe extern "C-unwind" fn explain(
    node: *mut pg_sys::CustomScanState,
    ancestors: *mut pg_sys::List,
    es: *mut pg_sys::ExplainState,
) {
    // SAFETY: called by EXPLAIN for a node that was begun.
    unsafe {
        let state = node.cast::<WarmScanState>();
        let scan = &*(*state).scan;
        let rel = (*node).ss.ss_currentRelation;
        let plan = (*node).ss.ps.plan;
        match scan.private.part {
            Part::All => {}
            Part::Fragments => text(c"Rows Of", "fragments", es),
            Part::Delta => text(c"Rows Of", "delta store", es),
        }
        if let Some((index, _)) = scan.private.lookup {
            let name = pg_sys::get_rel_name(index);
            if !name.is_null() {
                text(c"Key Lookup", &CStr::from_ptr(name).to_string_lossy(), es);
            }
        }
        if let Some(first) = scan.private.first {
            let name = |attnum: i16| {
                let name = compat::attribute((*rel).rd_att, attnum as usize - 1).attname.data.as_ptr();
                CStr::from_ptr(pg_sys::quote_identifier(name)).to_string_lossy().into_owned()
            };
            let order = if first.largest { " DESC" } else { "" };
            text(c"First Of", &format!("{} by {}{order}", name(first.key), name(first.by)), es);
        }
        if items::<pg_sys::Node>(scan.pushed).len() > 0 && scan.private.part != Part::Delta {
            let context = pg_sys::set_deparse_context_plan((*es).deparse_cxt, plan, ancestors);
            let clause = pg_sys::make_ands_explicit(scan.pushed);
            let prefix = items::<pg_sys::Node>((*es).rtable).len() > 1 || (*es).verbose;
            let expression = pg_sys::deparse_expression(clause.cast(), context, prefix, false);
            text(c"Pushed Filter", &CStr::from_ptr(expression).to_string_lossy(), es);
        }
        let stats = (*es).analyze.then(|| exec::stats(state));
        if scan.private.part != Part::Delta {
            let names: Vec<String> = scan
                .attributes
                .iter()
                .map(|a| {
                    let name = compat::attribute((*rel).rd_att, *a).attname.data.as_ptr();
                    CStr::from_ptr(pg_sys::quote_identifier(name)).to_string_lossy().into_owned()
                })
                .collect();
            if !names.is_empty() {
                text(c"Columns", &names.join(", "), es);
            }
            let total = fragments::of(rel).map_or(0, |t| t.list.len() as u64);
            let lookup = scan.private.lookup.is_some();
            let gone = stats.filter(|_| !lookup).map(|s| s.fragments_pruned);
            pruned(c"Fragments", c"Fragments Pruned", total, gone, es);
            if let (Some(s), true) = (stats, lookup) {
                number(c"Segments Probed", s.segments_probed, es);
                number(c"Fragments Probed", s.fragments_probed, es);
            }
            if let (Some(s), false) = (stats, lookup) {
                pruned(c"Blocks", c"Blocks Pruned", s.blocks_read + s.blocks_pruned, Some(s.blocks_pruned), es);
                if s.rows_filtered > 0 {
                    number(c"Rows Removed by Pushed Filter", s.rows_filtered, es);
                }
            }
        }
        if (*es).verbose && scan.private.part != Part::Delta && fragments::of(rel).is_some() {
            let pattern = if scan.private.lookup.is_some() { Pattern::Rows } else { Pattern::Blocks };
            let choice = access::known((*node).ss.ps.state, pattern);
            text(c"Access", access::name(choice.access as u32), es);
            text(c"Access Reason", &choice.reason(), es);
            if let Some(s) = stats {
                read(&s, es);
            }
        }
        if let Some(s) = stats
            && scan.private.part != Part::Fragments
        {
            number(c"Delta Rows", s.delta_rows, es);
        }
    }
}
