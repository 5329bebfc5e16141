//! Paths of WarmScan: the whole table, in parallel too, and look-ups by key.
//!
//! Costs follow what was measured: a fragment row costs a small part of a heap row, and the more so the fewer columns are
//! needed and the more blocks the zone maps exclude for the constants in the query. A look-up costs about as much as a
//! handful of rows of a sequential scan.

use super::blocks;
use super::clause::{self, Leaf};
use super::exec::SCAN_METHODS;
use super::first::{self, First};
use super::guard;
use super::lookup::{KeyColumn, match_keys};
use super::private::{Part, Private};
use super::test::Test;
use crate::am::fragments::{self, TableFragment, TableFragments};
use crate::am::{datum, handler, ssi};
use crate::guc;
use crate::pg::list::{from_items, is_a, items};
use crate::pg::{OpenRelation, compat, guarded};
use core::ffi::c_void;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ptr::null_mut;
use std::rc::Rc;
use strata_fragment::PhysicalType;

/// For one fragment row: a test on a column, decoding a column, making the row.
const FILTER_COST: f64 = 0.0002;
const DECODE_COST: f64 = 0.0002;
const ROW_COST: f64 = 0.0015;
/// For one column of one block, apart from its rows: reading and checking it, taking its encodings apart.
const CHUNK_COST: f64 = 0.5;
/// A look-up, one fragment in it, one row that it finds.
const LOOKUP_COST: f64 = 1.0;
const LOOKUP_FRAGMENT_COST: f64 = 0.02;
const LOOKUP_ROW_COST: f64 = 0.3;
/// The share of its cost that a look-up is reckoned at in a serializable transaction.
const SERIALIZABLE_SHARE: f64 = 0.01;
/// So many fragment rows are reckoned as a page when parallel workers are counted.
const ROWS_A_PAGE: f64 = 100.0;
/// Rows of a block, as a rule.
const BLOCK_ROWS: f64 = 32_768.0;
/// At most so many sets of outer relations are tried for look-ups.
const PARAMETER_SETS: usize = 8;

static PATH_METHODS: super::exec::Methods<pg_sys::CustomPathMethods> =
    super::exec::Methods(pg_sys::CustomPathMethods {
        CustomName: c"WarmScan".as_ptr(),
        PlanCustomPath: Some(plan),
        ReparameterizeCustomPathByChild: None,
    });

static mut PREVIOUS: pg_sys::set_rel_pathlist_hook_type = None;

/// Installs the hook.
pub fn install() {
    // SAFETY: called once when the library is loaded; the previous hook is chained.
    unsafe {
        pg_sys::RegisterCustomScanMethods(&raw const SCAN_METHODS.0);
        PREVIOUS = pg_sys::set_rel_pathlist_hook;
        pg_sys::set_rel_pathlist_hook = Some(set_rel_pathlist);
    }
}

/// What is known of a warm table while it is planned.
pub struct Planned {
    rel: *mut pg_sys::RelOptInfo,
    rte: *mut pg_sys::RangeTblEntry,
    table: Rc<TableFragments>,
    delta_pages: f64,
    /// The clauses on the table that fragments answer.
    leaves: Vec<Leaf>,
    /// Those of them that compare with constants.
    known: Vec<(Leaf, Test)>,
    /// The number of other clauses.
    others: usize,
    estimate: blocks::Estimate,
    columns: f64,
    /// Only rows that can come first are needed; how many a block has of them.
    first: Option<(First, f64)>,
}

impl Planned {
    /// If `rel` is a warm table with fragments that WarmScan can read.
    ///
    /// # Safety
    /// The arguments are the planner's.
    pub unsafe fn new(
        root: *mut pg_sys::PlannerInfo,
        rel: *mut pg_sys::RelOptInfo,
        rte: *mut pg_sys::RangeTblEntry,
    ) -> Option<Self> {
        // SAFETY: the caller's promise; the relation is locked.
        unsafe {
            let plain = (*rte).rtekind == pg_sys::RTEKind::RTE_RELATION
                && (*rte).relkind == pg_sys::RELKIND_RELATION as i8
                && (*rte).tablesample.is_null()
                && !(*rte).inh
                && ((*rel).reloptkind == pg_sys::RelOptKind::RELOPT_BASEREL
                    || (*rel).reloptkind == pg_sys::RelOptKind::RELOPT_OTHER_MEMBER_REL);
            if !plain || !guc::ENABLE_WARM_SCAN.get() {
                return None;
            }
            let open = OpenRelation::open((*rte).relid, pg_sys::NoLock);
            if !handler::is_warm(open.0) {
                return None;
            }
            let table = fragments::of(open.0)?;
            let columns = needed_columns(rel)?;
            let tupdesc = (*open.0).rd_att;
            let varno = (*rel).relid as i32;
            let mut leaves = Vec::new();
            let mut others = 0;
            for info in items::<pg_sys::RestrictInfo>((*rel).baserestrictinfo) {
                if is_a((*info).clause, pg_sys::NodeTag::T_CurrentOfExpr) {
                    // Only a scan by TID can do it.
                    return None;
                }
                match clause::analyze(root, (*info).clause.cast(), varno, tupdesc) {
                    _ if (*info).pseudoconstant => {}
                    Some(leaf) => leaves.push(leaf),
                    None => others += 1,
                }
            }
            let known: Vec<(Leaf, Test)> = leaves
                .iter()
                .filter_map(|l| match (l.expression(), l.constant()) {
                    (None, _) => Some((*l, l.test(pg_sys::Datum::null(), false))),
                    (Some(_), Some((value, is_null))) => Some((*l, l.test(value, is_null))),
                    (Some(_), None) => None,
                })
                .collect();
            let estimate = blocks::estimate(&table, tupdesc, &known, is_local);
            let delta_pages =
                f64::from(pg_sys::RelationGetNumberOfBlocksInFork(open.0, pg_sys::ForkNumber::MAIN_FORKNUM));
            let first = first::wanted(root, rel, tupdesc).filter(|_| others == 0).map(|(first, key)| {
                let (none, rows) = (null_mut(), (*rel).rows);
                (first, pg_sys::estimate_num_groups(root, from_items([key]), rows, none, null_mut()))
            });
            Some(Self { rel, rte, table, delta_pages, leaves, known, others, estimate, columns, first })
        }
    }

    /// What the values of a column (attribute from 0, of 64 bits) lie between, as far as the fragment index and constants tell.
    pub fn span(&self, attribute: usize) -> Option<(i64, i64)> {
        let narrow = |v: i128| v.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64;
        // SAFETY: the attribute is the table's.
        let ends = unsafe {
            let open = OpenRelation::open((*self.rte).relid, pg_sys::NoLock);
            let tupdesc = (*open.0).rd_att;
            let (kind, ty) = datum::kind_of(compat::attribute(tupdesc, attribute), false);
            if ty != PhysicalType::I64 {
                return None;
            }
            self.table.index().span(tupdesc, attribute as i16 + 1, kind)?
        };
        let (mut lo, mut hi) = ends.map_or((i64::MAX, i64::MIN), |(lo, hi)| (narrow(lo), narrow(hi)));
        for (leaf, test) in &self.known {
            if leaf.attnum as usize == attribute + 1
                && let Some((from, to)) = test.span()
            {
                (lo, hi) = (lo.max(narrow(from)), hi.min(narrow(to)));
            }
        }
        Some((lo, hi))
    }

    /// A path that reads a part of the table.
    ///
    /// # Safety
    /// Called while the table is planned.
    pub unsafe fn path(&self, root: *mut pg_sys::PlannerInfo, part: Part) -> *mut pg_sys::CustomPath {
        // SAFETY: the caller's promise.
        unsafe {
            let rel = &*self.rel;
            let parameters = pg_sys::get_baserel_parampathinfo(root, self.rel, rel.lateral_relids);
            let first = self.first.filter(|_| part == Part::All);
            let private = Private { part, lookup: None, first: first.map(|f| f.0) };
            let path = new_path(self.rel, parameters, private);
            let (delta, mut fragments) = self.costs();
            let output = (*rel.reltarget).cost;
            let delta_tuples = (rel.tuples - self.estimate.rows as f64).max(0.0);
            let (cost, rows) = match part {
                Part::All => (delta + fragments, (*path).path.rows),
                Part::Fragments => (fragments, (*path).path.rows),
                Part::Delta => (delta, ((*path).path.rows * delta_tuples / rel.tuples.max(1.0)).max(1.0)),
            };
            let mut rows = rows;
            if let Some((_, groups)) = first {
                let fewer = rows.min(groups * (self.estimate.kept as f64 / BLOCK_ROWS).ceil().max(1.0));
                fragments = (fragments - (rows - fewer) * ROW_COST).max(0.0);
                rows = fewer;
            }
            let cost = match part {
                Part::All => delta + fragments,
                Part::Fragments | Part::Delta => cost,
            };
            (*path).path.rows = rows;
            (*path).path.startup_cost = rel.baserestrictcost.startup + output.startup;
            (*path).path.total_cost = (*path).path.startup_cost + cost + output.per_tuple * rows;
            compat::mind_enable_seqscan(&raw mut (*path).path);
            path
        }
    }

    /// Reading the delta rows; reading the fragment rows.
    unsafe fn costs(&self) -> (f64, f64) {
        // SAFETY: the relation is being planned.
        unsafe {
            let rel = &*self.rel;
            let per_tuple = pg_sys::cpu_tuple_cost + rel.baserestrictcost.per_tuple;
            let delta_tuples = (rel.tuples - self.estimate.rows as f64).max(0.0);
            let delta = self.delta_pages * pg_sys::seq_page_cost + delta_tuples * per_tuple;
            let kept = self.estimate.kept as f64;
            let survivors = if self.others == 0 { kept.min(rel.rows) } else { kept };
            let share = ((self.columns + self.leaves.len() as f64) / f64::from(rel.max_attr.max(1))).min(1.0);
            let pages = self.estimate.bytes as f64 * share / f64::from(pg_sys::BLCKSZ);
            let rest = if self.others == 0 { 0.0 } else { rel.baserestrictcost.per_tuple };
            let chunks = (kept / BLOCK_ROWS).ceil() * (self.columns + self.leaves.len() as f64);
            let fragments = chunks * CHUNK_COST
                + pages * pg_sys::seq_page_cost * 0.5
                + kept * FILTER_COST * self.leaves.len() as f64
                + survivors * (ROW_COST + DECODE_COST * self.columns + rest);
            (delta, fragments)
        }
    }

    /// The cost of reading the fragments for aggregation: no rows are made.
    ///
    /// # Safety
    /// Called while the table is planned.
    pub unsafe fn aggregate_cost(&self) -> f64 {
        // SAFETY: the caller's promise.
        unsafe {
            let kept = self.estimate.kept as f64;
            let (_, fragments) = self.costs();
            let survivors = if self.others == 0 { kept.min((*self.rel).rows) } else { 0.0 };
            fragments - survivors * ROW_COST
        }
    }
}

/// Whether the file is here: planning does not fetch.
fn is_local(fragment: &TableFragment) -> bool {
    fragment.is_local()
}

/// The number of columns that are needed; None if there are system columns that a virtual slot does not have.
unsafe fn needed_columns(rel: *mut pg_sys::RelOptInfo) -> Option<f64> {
    // SAFETY: a relation that is being planned.
    unsafe {
        let mut wanted = null_mut();
        pg_sys::pull_varattnos((*(*rel).reltarget).exprs.cast(), (*rel).relid, &mut wanted);
        let output = pg_sys::bms_num_members(wanted);
        for info in
            items::<pg_sys::RestrictInfo>((*rel).baserestrictinfo).chain(items::<pg_sys::RestrictInfo>((*rel).joininfo))
        {
            pg_sys::pull_varattnos((*info).clause.cast(), (*rel).relid, &mut wanted);
        }
        let allowed = [pg_sys::SelfItemPointerAttributeNumber, pg_sys::TableOidAttributeNumber];
        for attno in pg_sys::FirstLowInvalidHeapAttributeNumber + 1..0 {
            if !allowed.contains(&attno)
                && pg_sys::bms_is_member(attno - pg_sys::FirstLowInvalidHeapAttributeNumber, wanted)
            {
                return None;
            }
        }
        if pg_sys::bms_is_member(-pg_sys::FirstLowInvalidHeapAttributeNumber, wanted) {
            return Some(f64::from((*rel).max_attr));
        }
        Some(f64::from(output))
    }
}

unsafe fn new_path(
    rel: *mut pg_sys::RelOptInfo,
    parameters: *mut pg_sys::ParamPathInfo,
    private: Private,
) -> *mut pg_sys::CustomPath {
    // SAFETY: a relation that is being planned.
    unsafe {
        let path = pg_sys::palloc0(size_of::<pg_sys::CustomPath>()).cast::<pg_sys::CustomPath>();
        (*path).path.type_ = pg_sys::NodeTag::T_CustomPath;
        (*path).path.pathtype = pg_sys::NodeTag::T_CustomScan;
        (*path).path.parent = rel;
        (*path).path.pathtarget = (*rel).reltarget;
        (*path).path.param_info = parameters;
        (*path).path.parallel_safe = (*rel).consider_parallel;
        (*path).path.rows = if parameters.is_null() { (*rel).rows } else { (*parameters).ppi_rows };
        (*path).flags = pg_sys::CUSTOMPATH_SUPPORT_PROJECTION;
        (*path).custom_private = private.to_list();
        (*path).methods = &raw const PATH_METHODS.0;
        path
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn set_rel_pathlist(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    rti: pg_sys::Index,
    rte: *mut pg_sys::RangeTblEntry,
) {
    // SAFETY: the arguments are the planner's.
    unsafe {
        if let Some(previous) = PREVIOUS {
            guarded(|| previous(root, rel, rti, rte));
        }
        if items::<pg_sys::Path>((*rel).pathlist).len() == 0 || pg_sys::is_dummy_rel(rel) {
            return;
        }
        let Some(planned) = Planned::new(root, rel, rte) else { return };
        pg_sys::add_path(rel, planned.path(root, Part::All).cast());
        if (*rel).consider_parallel && (*rel).lateral_relids.is_null() {
            let pages = planned.delta_pages + planned.estimate.kept as f64 / ROWS_A_PAGE;
            let workers = pg_sys::compute_parallel_worker(rel, pages, -1.0, pg_sys::max_parallel_workers_per_gather);
            if workers > 0 {
                let path = planned.path(root, Part::All);
                let leader =
                    if pg_sys::parallel_leader_participation { (1.0 - 0.3 * f64::from(workers)).max(0.0) } else { 0.0 };
                let divisor = f64::from(workers) + leader;
                (*path).path.parallel_aware = true;
                (*path).path.parallel_workers = workers;
                (*path).path.rows = ((*path).path.rows / divisor).max(1.0);
                let run = (*path).path.total_cost - (*path).path.startup_cost;
                (*path).path.total_cost = (*path).path.startup_cost + run / divisor;
                pg_sys::add_partial_path(rel, path.cast());
            }
        }
        for index in items::<pg_sys::IndexOptInfo>((*rel).indexlist) {
            // Plain btrees.
            if guard::is_closed(index) && (*index).relam == pg_sys::BTREE_AM_OID {
                lookups(root, &planned, index);
            }
        }
    }
}

/// An equality with another table's column, and the tables it needs.
struct JoinLeaf {
    leaf: Leaf,
    outer: pg_sys::Relids,
}

/// Adds paths that look up the key of `index`: with constants, and with what other tables give.
unsafe fn lookups(root: *mut pg_sys::PlannerInfo, planned: &Planned, index: *mut pg_sys::IndexOptInfo) {
    // SAFETY: the arguments are the planner's.
    unsafe {
        let rel = planned.rel;
        let keys: Vec<KeyColumn> = (0..(*index).nkeycolumns as usize)
            .map(|i| KeyColumn { attnum: *(*index).indexkeys.add(i) as i16, family: *(*index).opfamily.add(i) })
            .collect();
        let joins = join_leaves(root, rel, &keys);
        add_lookup(root, planned, index, &keys, &planned.leaves, (*rel).lateral_relids);
        let mut sets: Vec<pg_sys::Relids> = Vec::new();
        let all = joins.iter().fold(null_mut(), |s, j| pg_sys::bms_add_members(s, j.outer));
        for set in joins.iter().map(|j| j.outer).chain((!joins.is_empty()).then_some(all)) {
            if sets.len() < PARAMETER_SETS && !sets.iter().any(|s| pg_sys::bms_equal(*s, set)) {
                sets.push(set);
            }
        }
        for set in sets {
            let mut leaves: Vec<Leaf> =
                joins.iter().filter(|j| pg_sys::bms_is_subset(j.outer, set)).map(|j| j.leaf).collect();
            leaves.extend(&planned.leaves);
            let outer = pg_sys::bms_union(set, (*rel).lateral_relids);
            add_lookup(root, planned, index, &keys, &leaves, outer);
        }
    }
}

/// The join clauses that equate a key column with something of other tables.
unsafe fn join_leaves(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    keys: &[KeyColumn],
) -> Vec<JoinLeaf> {
    // SAFETY: the arguments are the planner's.
    unsafe {
        let rte = *(*root).simple_rte_array.add((*rel).relid as usize);
        let open = OpenRelation::open((*rte).relid, pg_sys::NoLock);
        let mut found = Vec::new();
        let mut add = |info: *mut pg_sys::RestrictInfo| {
            if let Some(leaf) = clause::analyze(root, (*info).clause.cast(), (*rel).relid as i32, (*open.0).rd_att) {
                found.push(JoinLeaf { leaf, outer: pg_sys::bms_difference((*info).clause_relids, (*rel).relids) });
            }
        };
        for info in items::<pg_sys::RestrictInfo>((*rel).joininfo) {
            if pg_sys::join_clause_is_movable_to(info, rel) {
                add(info);
            }
        }
        if (*rel).has_eclass_joins {
            for mut column in keys.iter().copied() {
                let list = pg_sys::generate_implied_equalities_for_column(
                    root,
                    rel,
                    Some(is_key_column),
                    (&raw mut column).cast(),
                    (*rel).lateral_referencers,
                );
                items::<pg_sys::RestrictInfo>(list).for_each(&mut add);
            }
        }
        found.retain(|j| keys.iter().any(|k| !match_keys(&[j.leaf], &[*k]).is_empty()));
        found
    }
}

/// Whether a member of an equivalence class is the key column.
#[pg_guard]
unsafe extern "C-unwind" fn is_key_column(
    _root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    class: *mut pg_sys::EquivalenceClass,
    member: *mut pg_sys::EquivalenceMember,
    column: *mut c_void,
) -> bool {
    // SAFETY: the arguments are the planner's, and what `join_leaves` gave.
    unsafe {
        let column = &*column.cast::<KeyColumn>();
        let mut node = (*member).em_expr.cast::<pg_sys::Node>();
        while crate::pg::list::is_a(node, pg_sys::NodeTag::T_RelabelType) {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        crate::pg::list::is_a(node, pg_sys::NodeTag::T_Var)
            && (*node.cast::<pg_sys::Var>()).varno as u32 == (*rel).relid
            && (*node.cast::<pg_sys::Var>()).varattno == column.attnum
            && pg_sys::list_member_oid((*class).ec_opfamilies, column.family)
    }
}

/// The clauses with values of other relations that the plan of a path with these parameters will have. An equality may be
/// missing that an equivalence class implies: then the plan has another one of the class, and the rest on the table itself.
unsafe fn planned_leaves(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    parameters: *mut pg_sys::ParamPathInfo,
) -> Vec<Leaf> {
    // SAFETY: the arguments are the planner's.
    unsafe {
        if parameters.is_null() {
            return Vec::new();
        }
        let rte = *(*root).simple_rte_array.add((*rel).relid as usize);
        let open = OpenRelation::open((*rte).relid, pg_sys::NoLock);
        items::<pg_sys::RestrictInfo>((*parameters).ppi_clauses)
            .filter_map(|i| clause::analyze(root, (*i).clause.cast(), (*rel).relid as i32, (*open.0).rd_att))
            .collect()
    }
}

/// Adds a look-up with these equalities, if the fragments are good at it.
unsafe fn add_lookup(
    root: *mut pg_sys::PlannerInfo,
    planned: &Planned,
    index: *mut pg_sys::IndexOptInfo,
    keys: &[KeyColumn],
    leaves: &[Leaf],
    outer: pg_sys::Relids,
) {
    let matched = match_keys(leaves, keys).len();
    if matched == 0 {
        return;
    }
    // SAFETY: the arguments are the planner's.
    unsafe {
        let whole_key = (*index).unique && matched == keys.len();
        let index_of_table = planned.table.index();
        let attnums: Vec<i16> = keys[..matched].iter().map(|k| k.attnum).collect();
        let mapped = whole_key && index_of_table.maps_key(&attnums);
        let sorted = is_sorted_by(&planned.table, &keys[..matched]);
        if !whole_key && !sorted {
            return;
        }
        // In the order of the key, or with its pages in the index, few of many fragments are asked.
        let fragments = planned.table.list.len() as f64;
        let asked = if mapped {
            fragments.min(2.0 + index_of_table.segments() as f64)
        } else if sorted {
            fragments.min(2.0 + fragments.log2())
        } else {
            fragments
        };
        let rel = &*planned.rel;
        let parameters = pg_sys::get_baserel_parampathinfo(root, planned.rel, outer);
        let mut in_plan = planned_leaves(root, planned.rel, parameters);
        in_plan.extend(&planned.leaves);
        if match_keys(&in_plan, keys).len() < matched {
            return;
        }
        let private = Private { part: Part::All, lookup: Some(((*index).indexoid, matched)), first: None };
        let path = new_path(planned.rel, parameters, private);
        let output = (*rel.reltarget).cost;
        let rows = (*path).path.rows;
        // What the key alone finds may be more than what the other clauses leave.
        let found = rows.max(1.0);
        (*path).path.startup_cost = rel.baserestrictcost.startup + output.startup;
        (*path).path.total_cost = (*path).path.startup_cost
            + LOOKUP_COST
            + LOOKUP_FRAGMENT_COST * asked
            + found * (LOOKUP_ROW_COST + pg_sys::cpu_tuple_cost * planned.columns + rel.baserestrictcost.per_tuple)
            + rows * output.per_tuple
            + if planned.delta_pages > 1.0 { pg_sys::random_page_cost * 0.1 } else { pg_sys::seq_page_cost * 0.1 };
        if ssi::serializable() {
            // A look-up locks what it finds, a scan the whole table, and with it whoever writes there.
            (*path).path.total_cost =
                (*path).path.startup_cost + SERIALIZABLE_SHARE * ((*path).path.total_cost - (*path).path.startup_cost);
        }
        pg_sys::add_path(planned.rel, path.cast());
    }
}

/// Whether these columns are the first of the sort key of the fragments (as the newest has it that the index knows; without an
/// index, the first one that is here).
fn is_sorted_by(table: &TableFragments, keys: &[KeyColumn]) -> bool {
    let is_prefix = |sort_key: &[i16]| {
        keys.len() <= sort_key.len() && sort_key[..keys.len()].iter().all(|a| keys.iter().any(|k| k.attnum == *a))
    };
    if let Some(sort_key) = table.index().sort_key() {
        return is_prefix(sort_key);
    }
    let Some(tf) = table.list.iter().find(|f| is_local(f)) else { return false };
    let file = tf.open();
    let schema = file.schema();
    is_prefix(&schema.sort_key.iter().map(|c| schema.columns[*c].attnum).collect::<Vec<_>>())
}

#[pg_guard]
unsafe extern "C-unwind" fn plan(
    _root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    path: *mut pg_sys::CustomPath,
    targets: *mut pg_sys::List,
    clauses: *mut pg_sys::List,
    _plans: *mut pg_sys::List,
) -> *mut pg_sys::Plan {
    // SAFETY: called by the planner for a path of ours.
    unsafe {
        let scan = pg_sys::palloc0(size_of::<pg_sys::CustomScan>()).cast::<pg_sys::CustomScan>();
        (*scan).scan.plan.type_ = pg_sys::NodeTag::T_CustomScan;
        (*scan).scan.plan.targetlist = targets;
        (*scan).scan.plan.qual = pg_sys::extract_actual_clauses(clauses, false);
        (*scan).scan.scanrelid = (*rel).relid;
        (*scan).flags = (*path).flags;
        (*scan).custom_private = (*path).custom_private;
        (*scan).methods = &raw const SCAN_METHODS.0;
        scan.cast()
    }
}
