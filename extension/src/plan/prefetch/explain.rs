//! What EXPLAIN says of prefetch.
//!
//! PostgreSQL 18 asks for each node. Up to 17 nothing is asked for nodes of its own kinds, so there is a section behind the plan,
//! as for JIT: it is written when EXPLAIN ends the executor, while the output of the query is still open. EXPLAIN tells its
//! output only to who plans its query, so the section is missing for EXPLAIN EXECUTE and auto_explain on these versions.

use super::{Counters, Node, counters};
use crate::guc;
use crate::pg::OpenRelation;
use pgrx::pg_sys;
use std::ffi::CStr;

/// What is said of a node.
#[cfg_attr(feature = "pg18", allow(dead_code, reason = "there the node itself names index and table"))]
struct Line {
    index: String,
    table: String,
    distance: i32,
    counters: Counters,
}

/// If `state` is a scan that is looked at.
unsafe fn line(state: *mut pg_sys::PlanState) -> Option<Line> {
    // SAFETY: the plan's tables and indexes are locked since it was planned, or by the executor.
    unsafe {
        let node = Node::of(state)?;
        let distance = guc::INDEX_PREFETCH_DISTANCE.get();
        if distance == 0 || node.table.is_null() {
            return None;
        }
        let opened = node.index_relation.is_null().then(|| OpenRelation::open(node.index, pg_sys::AccessShareLock));
        let index = opened.as_ref().map_or(node.index_relation, |o| o.0);
        if !node.eligible(index, (*state).plan) {
            return None;
        }
        let name = |rel: pg_sys::Relation| {
            let name = pg_sys::quote_identifier((*(*rel).rd_rel).relname.data.as_ptr());
            CStr::from_ptr(name).to_string_lossy().into_owned()
        };
        Some(Line { index: name(index), table: name(node.table), distance, counters: counters(node.scan) })
    }
}

impl Line {
    fn text(&self, analyze: bool) -> String {
        if !analyze {
            return format!("distance {}", self.distance);
        }
        let Counters { leaves, blocks, .. } = self.counters;
        format!("distance {}, leaves {leaves}, blocks {blocks}", self.distance)
    }

    unsafe fn numbers(&self, analyze: bool, es: *mut pg_sys::ExplainState) {
        // SAFETY: `es` is EXPLAIN's.
        unsafe {
            super::super::explain::number(c"Prefetch Distance", self.distance as u64, es);
            if analyze {
                super::super::explain::number(c"Prefetched Leaves", self.counters.leaves, es);
                super::super::explain::number(c"Prefetched Blocks", self.counters.blocks, es);
            }
        }
    }
}

#[cfg(feature = "pg18")]
mod per_node {
    use super::line;
    use crate::pg::guarded;
    use crate::plan::explain::text;
    use core::ffi::c_char;
    use pgrx::pg_sys;
    use pgrx::prelude::*;

    static mut PREVIOUS: pg_sys::explain_per_node_hook_type = None;

    pub fn install() {
        // SAFETY: called once when the library is loaded; the previous hook is chained.
        unsafe {
            PREVIOUS = pg_sys::explain_per_node_hook;
            pg_sys::explain_per_node_hook = Some(per_node);
        }
    }

    #[pg_guard]
    unsafe extern "C-unwind" fn per_node(
        state: *mut pg_sys::PlanState,
        ancestors: *mut pg_sys::List,
        relationship: *const c_char,
        name: *const c_char,
        es: *mut pg_sys::ExplainState,
    ) {
        // SAFETY: the arguments are EXPLAIN's.
        unsafe {
            if let Some(previous) = PREVIOUS {
                guarded(|| previous(state, ancestors, relationship, name, es));
            }
            let Some(line) = line(state) else { return };
            if (*es).format == pg_sys::ExplainFormat::EXPLAIN_FORMAT_TEXT {
                text(c"Prefetch", &line.text((*es).analyze), es);
            } else {
                line.numbers((*es).analyze, es);
            }
        }
    }
}

#[cfg(feature = "pg18")]
pub use per_node::install;

#[cfg(not(feature = "pg18"))]
mod section {
    use super::{Line, line};
    use crate::pg::{compat, ext, guarded};
    use crate::plan::explain::text;
    use core::ffi::{c_char, c_int, c_void};
    use pgrx::pg_sys;
    use pgrx::prelude::*;
    use std::ptr::{null, null_mut};

    static mut PREVIOUS_EXPLAIN: pg_sys::ExplainOneQuery_hook_type = None;
    static mut PREVIOUS_END: pg_sys::ExecutorEnd_hook_type = None;
    /// The output of the EXPLAIN that is running.
    static mut OUTPUT: *mut pg_sys::ExplainState = null_mut();

    pub fn install() {
        // SAFETY: called once when the library is loaded; previous hooks are chained.
        unsafe {
            PREVIOUS_EXPLAIN = pg_sys::ExplainOneQuery_hook;
            pg_sys::ExplainOneQuery_hook = Some(explain_one_query);
            PREVIOUS_END = pg_sys::ExecutorEnd_hook;
            pg_sys::ExecutorEnd_hook = Some(executor_end);
        }
    }

    /// Puts back what [`OUTPUT`] was, after an ERROR too.
    struct Restore(*mut pg_sys::ExplainState);
    impl Drop for Restore {
        fn drop(&mut self) {
            // SAFETY: a backend has one thread.
            unsafe { OUTPUT = self.0 };
        }
    }

    #[pg_guard]
    unsafe extern "C-unwind" fn explain_one_query(
        query: *mut pg_sys::Query,
        options: c_int,
        into: *mut pg_sys::IntoClause,
        es: *mut pg_sys::ExplainState,
        text: *const c_char,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
    ) {
        // SAFETY: the arguments are EXPLAIN's.
        unsafe {
            let _restore = Restore(OUTPUT);
            OUTPUT = es;
            match PREVIOUS_EXPLAIN {
                Some(previous) => guarded(|| previous(query, options, into, es, text, params, environment)),
                None => compat::explain_one_query(query, options, into, es, text, params, environment),
            }
        }
    }

    #[pg_guard]
    unsafe extern "C-unwind" fn executor_end(query: *mut pg_sys::QueryDesc) {
        // SAFETY: the argument is the executor's; EXPLAIN has printed exactly this plan into its output.
        unsafe {
            let es = OUTPUT;
            if !es.is_null() && (*es).pstmt == (*query).plannedstmt && !(*query).planstate.is_null() {
                let mut lines: Vec<Line> = Vec::new();
                walk((*query).planstate, (&raw mut lines).cast());
                print(&lines, es);
            }
            match PREVIOUS_END {
                Some(previous) => guarded(|| previous(query)),
                None => pg_sys::standard_ExecutorEnd(query),
            }
        }
    }

    #[pg_guard]
    unsafe extern "C-unwind" fn walk(state: *mut pg_sys::PlanState, lines: *mut c_void) -> bool {
        // SAFETY: a walker over the executor's tree.
        unsafe {
            if state.is_null() {
                return false;
            }
            if let Some(line) = line(state) {
                (*lines.cast::<Vec<Line>>()).push(line);
            }
            guarded(|| ext::planstate_tree_walker(state, Some(walk), lines))
        }
    }

    unsafe fn print(lines: &[Line], es: *mut pg_sys::ExplainState) {
        if lines.is_empty() {
            return;
        }
        // SAFETY: `es` is EXPLAIN's; groups are closed in the order in which they were opened.
        unsafe {
            let analyze = (*es).analyze;
            if (*es).format == pg_sys::ExplainFormat::EXPLAIN_FORMAT_TEXT {
                for line in lines {
                    text(c"Index Prefetch", &format!("{} on {}: {}", line.index, line.table, line.text(analyze)), es);
                }
                return;
            }
            let label = c"Index Prefetch".as_ptr();
            pg_sys::ExplainOpenGroup(label, label, false, es);
            for line in lines {
                pg_sys::ExplainOpenGroup(c"Scan".as_ptr(), null(), true, es);
                text(c"Index Name", &line.index, es);
                text(c"Relation Name", &line.table, es);
                line.numbers(analyze, es);
                pg_sys::ExplainCloseGroup(c"Scan".as_ptr(), null(), true, es);
            }
            pg_sys::ExplainCloseGroup(label, label, false, es);
        }
    }
}

#[cfg(not(feature = "pg18"))]
pub use section::install;
